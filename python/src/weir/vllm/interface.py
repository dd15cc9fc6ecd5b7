# SPDX-License-Identifier: Apache-2.0
"""Which interface for weight transfer the installed vLLM has. Looks, and changes nothing.

| version | how it is told |
|---|---|
| 4 | a trainer side, `trainer_init(init_info, *, client, source)` |
| 3 | a trainer side, `trainer_init(config, init_info, *, client, source)` |
| 2 | `WeightTransferEngine(config, vllm_config, device, model)` |
| 1 | `WeightTransferEngine(config, parallel_config, model)` |

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
        return 0, f"{_BASE} has no WeightTransferEngine"
    arguments = list(inspect.signature(engine.__init__).parameters)[1:]
    if arguments == ["config", "parallel_config", "model"]:
        return 1, ""
    if arguments == ["config", "parallel_config"]:
        return 0, "its WeightTransferConfig takes built-in backends alone"
    if arguments[:4] != ["config", "vllm_config", "device", "model"]:
        return 0, f"WeightTransferEngine({', '.join(arguments)}) is not known"
    trainer = getattr(base, "TrainerWeightTransferEngine", None)
    if trainer is None:
        return 2, ""
    return (3, "") if "config" in inspect.signature(trainer.trainer_init).parameters else (4, "")


def interface_version() -> Tuple[int, str]:
    """The number of the table above, and of 0 the reason."""
    try:
        base: Optional[Any] = importlib.import_module(_BASE)
    except ImportError as error:
        return 0, str(error)
    return _version_of(base)
