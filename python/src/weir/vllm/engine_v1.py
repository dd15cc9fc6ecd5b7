# SPDX-License-Identifier: Apache-2.0
"""Interface 1 of vLLM: an engine is given its parallel config alone, later the model too.

Where the constructor has no model it is taken from the `load_weights` that vLLM hands over. Updates
are not in checkpoint format: vLLM takes parameters away for those. Where it asks for that when an
update starts, start_weight_update(is_checkpoint_format=False) is needed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Callable, Iterator, Optional

from vllm.config import get_current_vllm_config
from vllm.distributed.weight_transfer.base import (WeightTransferEngine, WeightTransferInitInfo,
                                                   WeightTransferUpdateInfo)

from .adapter import UpdateLife
from .placement import Refused
from .settings import Settings, Update
from .trainer_side import send_with

__all__ = ["WeirInitInfo", "WeirUpdateInfo", "WeirWeightTransferEngine"]


@dataclass
class WeirInitInfo(Settings, WeightTransferInitInfo):
    """weir.vllm.settings.Settings, as vLLM asks for it."""


@dataclass
class WeirUpdateInfo(Update, WeightTransferUpdateInfo):
    """weir.vllm.settings.Update, as vLLM asks for it."""

    is_checkpoint_format: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.is_checkpoint_format:
            raise ValueError("weir: is_checkpoint_format: expected False, as versions come in the "
                             "layout of the kernels")


def model_behind(load_weights: Callable[..., Any]) -> Any:
    """The module whose method, or in whose closure, `load_weights` is. Raises Refused."""
    import torch

    owner = getattr(load_weights, "__self__", None)
    cells = [c.cell_contents for c in getattr(load_weights, "__closure__", None) or ()]
    for candidate in [owner, *cells]:
        if isinstance(candidate, torch.nn.Module):
            return candidate
    raise Refused("weir: this vLLM does not say which model its load_weights is of; "
                  "weir.vllm.extension.WeirWorkerExtension works there")


class WeirWeightTransferEngine(
        UpdateLife, WeightTransferEngine[WeirInitInfo, WeirUpdateInfo]):
    """Installs published versions into the model's parameters, in place."""

    init_info_cls = WeirInitInfo
    update_info_cls = WeirUpdateInfo

    def __init__(self, config: Any, parallel_config: Any, model: Any = None) -> None:
        self.config = config
        self.parallel_config = parallel_config
        self.model = model
        self._vllm_config = get_current_vllm_config()
        self._settings: Optional[WeirInitInfo] = None

    def init_transfer_engine(self, init_info: WeirInitInfo) -> None:
        self._shut_down()
        self._settings = init_info
        if self.model is not None:
            self._init(self.model, self._vllm_config, init_info)

    def receive_weights(self, update_info: WeirUpdateInfo,
                        load_weights: Callable[..., Any]) -> None:
        if self._receiver is None and self._settings is not None:
            self._init(model_behind(load_weights), self._vllm_config, self._settings)
        self._receive(update_info)

    def shutdown(self) -> None:
        self._shut_down()

    @staticmethod
    def trainer_send_weights(iterator: Iterator[Any], trainer_args: Any) -> None:
        """trainer_args: {"trainer": weir.Trainer, "version": int, "n_replicas": int = 0}."""
        send_with(trainer_args, iterator)
