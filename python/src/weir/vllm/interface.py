# SPDX-License-Identifier: Apache-2.0
"""Which interface for weight transfer the installed vLLM has. Looks, and changes nothing.

| version | how it is told |
|---|---|
| 4 | trainer side dispatched by its init info (`TrainerInitInfo`) |
| 3 | trainer side classes, with a config |
| 2 | `WeightTransferEngine(config, vllm_config, device, model)` |
| 1 | `WeightTransferEngine(config, parallel_config)` |

0: none; the worker extension works there.
"""

from __future__ import annotations

import importlib
import inspect
from typing import Any, Optional, Tuple

_BASE = "vllm.distributed.weight_transfer.base"


def vllm_version() -> str:
    """Of the installed package, without importing it; "" when there is none."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("vllm")
    except PackageNotFoundError:
        return ""


def _version_of(base: Any) -> Tuple[int, str]:
    engine = getattr(base, "WeightTransferEngine", None)
    if engine is None:
        return 0, "%s has no WeightTransferEngine" % _BASE
    arguments = list(inspect.signature(engine.__init__).parameters)[1:]
    if arguments[:2] == ["config", "parallel_config"]:
        return 1, ""
    if arguments[:4] != ["config", "vllm_config", "device", "model"]:
        return 0, "WeightTransferEngine(%s) is not known" % ", ".join(arguments)
    if not hasattr(base, "TrainerWeightTransferEngine"):
        return 2, ""
    return (4, "") if hasattr(base, "TrainerInitInfo") else (3, "")


def interface_version() -> Tuple[int, str]:
    """The number of the table above, and of 0 the reason."""
    try:
        base: Optional[Any] = importlib.import_module(_BASE)
    except ImportError as error:
        return 0, str(error)
    return _version_of(base)
