# SPDX-License-Identifier: Apache-2.0
"""Interface 2 of vLLM: an engine is given the whole config and the model, and owns the update.

The trainer's side is one static method, which takes a `weir.Trainer` that the caller keeps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Iterator

from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)

from weir.engines.worker_settings import Settings, Update

from .adapter import UpdateLife
from .trainer_side import send_with

__all__ = ["WeirInitInfo", "WeirUpdateInfo", "WeirWeightTransferEngine"]


@dataclass
class WeirInitInfo(Settings, WeightTransferInitInfo):
    """weir.vllm.settings.Settings, as vLLM asks for it."""


@dataclass
class WeirUpdateInfo(Update, WeightTransferUpdateInfo):
    """weir.vllm.settings.Update, as vLLM asks for it."""


class WeirWeightTransferEngine(UpdateLife, WeightTransferEngine[WeirInitInfo, WeirUpdateInfo]):
    """Installs published versions into the model's parameters, in place."""

    init_info_cls = WeirInitInfo
    update_info_cls = WeirUpdateInfo

    def init_transfer_engine(self, init_info: WeirInitInfo) -> None:
        self._init(self.model, self.vllm_config, init_info)

    def start_weight_update(self) -> None:
        self._start()

    def receive_weights(self, update_info: WeirUpdateInfo) -> None:
        self._receive(update_info)

    def finish_weight_update(self) -> None:
        self._finish()

    def shutdown(self) -> None:
        self._shut_down()

    @staticmethod
    def trainer_send_weights(iterator: Iterator[Any], trainer_args: Any) -> None:
        """trainer_args: {"trainer": weir.Trainer, "version": int, "n_replicas": int = 0}."""
        send_with(trainer_args, iterator)
