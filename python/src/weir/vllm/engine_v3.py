# SPDX-License-Identifier: Apache-2.0
"""Interface 3 of vLLM: the trainer's side is a class that is given vLLM's config as well."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vllm.config.weight_transfer import WeightTransferConfig
from vllm.distributed.weight_transfer.base import TrainerInitInfo, TrainerWeightTransferEngine

from .engine_v2 import WeirInitInfo, WeirUpdateInfo, WeirWeightTransferEngine
from .trainer_side import Sender, TrainerSettings

__all__ = [
    "WeirInitInfo",
    "WeirTrainerInitInfo",
    "WeirTrainerWeightTransferEngine",
    "WeirUpdateInfo",
    "WeirWeightTransferEngine",
]


@dataclass
class WeirTrainerInitInfo(TrainerSettings, TrainerInitInfo):
    """weir.vllm.trainer_side.TrainerSettings, and the `rank` that vLLM asks for."""


class WeirTrainerWeightTransferEngine(
    TrainerWeightTransferEngine[WeightTransferConfig, WeirTrainerInitInfo]
):
    """Publishes versions that the engines behind `client` install."""

    init_info_cls = WeirTrainerInitInfo
    config_cls = WeightTransferConfig
    sender: Sender

    @classmethod
    def trainer_init(
        cls,
        config: WeightTransferConfig,
        init_info: WeirTrainerInitInfo,
        *,
        client: Any,
        source: Any,
    ) -> "WeirTrainerWeightTransferEngine":
        self = cls(config, client=client, source=source, is_sender=init_info.is_sender)
        self.sender = Sender(init_info, init_info.rank, client, source)
        self.sender.connect()
        return self

    def send_weights(self) -> None:
        self.sender.send()

    def shutdown(self) -> None:
        self.sender.close()
