# SPDX-License-Identifier: Apache-2.0
"""Weir moves freshly trained weights into running inference engines, in their kernels' format.

Everything a user needs is here by name; the modules are imported when a name of theirs is first
used. Neither numpy nor torch is imported before something of theirs is handed in.
``docs/python.md`` tells what there is, ``include/weir/weir.h`` what holds of threads, waits and
errors.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, List

from weir.library import __version__

if TYPE_CHECKING:
    from weir import engines as engines
    from weir import frameworks as frameworks
    from weir import sglang as sglang
    from weir import vllm as vllm
    from weir.conversions import Family as Family
    from weir.conversions import Format as Format
    from weir.conversions import Output as Output
    from weir.conversions import convert as convert
    from weir.conversions import families as families
    from weir.conversions import formats as formats
    from weir.conversions import select_conversion as select_conversion
    from weir.directory import Directory as Directory
    from weir.dtypes import DType as DType
    from weir.errors import CallError as CallError
    from weir.errors import ContextError as ContextError
    from weir.errors import PeerError as PeerError
    from weir.errors import Status as Status
    from weir.errors import TimedOut as TimedOut
    from weir.errors import VersionError as VersionError
    from weir.errors import WeirError as WeirError
    from weir.library import library_path as library_path
    from weir.library import version as version
    from weir.logs import set_logger as set_logger
    from weir.python_conversions import register_conversion as register_conversion
    from weir.python_conversions import register_default_rule as register_default_rule
    from weir.replica import Replica as Replica
    from weir.replica import ReplicaState as ReplicaState
    from weir.report import Report as Report
    from weir.security import Security as Security
    from weir.shards import Shard as Shard
    from weir.shards import shards_of as shards_of
    from weir.tensors import Tensor as Tensor
    from weir.tensors import tensor as tensor
    from weir.trainer import Trainer as Trainer

_MODULE_OF = {
    "CallError": "errors",
    "ContextError": "errors",
    "DType": "dtypes",
    "Directory": "directory",
    "Family": "conversions",
    "Format": "conversions",
    "Output": "conversions",
    "PeerError": "errors",
    "Replica": "replica",
    "ReplicaState": "replica",
    "Report": "report",
    "Security": "security",
    "Shard": "shards",
    "Status": "errors",
    "Tensor": "tensors",
    "TimedOut": "errors",
    "Trainer": "trainer",
    "VersionError": "errors",
    "WeirError": "errors",
    "convert": "conversions",
    "families": "conversions",
    "formats": "conversions",
    "library_path": "library",
    "register_conversion": "python_conversions",
    "register_default_rule": "python_conversions",
    "select_conversion": "conversions",
    "set_logger": "logs",
    "shards_of": "shards",
    "tensor": "tensors",
    "version": "library",
}

_PACKAGES = ("engines", "frameworks", "sglang", "vllm")

__all__ = ["__version__", *_MODULE_OF]


def __getattr__(name: str) -> Any:
    if name in _PACKAGES:
        return importlib.import_module(f"weir.{name}")
    module = _MODULE_OF.get(name)
    if module is None:
        raise AttributeError(f"module 'weir' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"weir.{module}"), name)
    globals()[name] = value
    return value


def __dir__() -> List[str]:
    return sorted({*globals(), *__all__, *_PACKAGES})
