# SPDX-License-Identifier: Apache-2.0
"""Interface 4 of vLLM: the trainer's side is chosen by its init info, and needs no config.

`send_weights()` publishes the source as the next version and drives the engines through one update.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Optional

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

    backend: ClassVar[str] = "weir"


class WeirTrainerWeightTransferEngine(TrainerWeightTransferEngine[WeirTrainerInitInfo]):
    """Publishes versions that the engines behind `client` install."""

    init_info_cls = WeirTrainerInitInfo
    sender: Sender

    @classmethod
    def trainer_init(
        cls, init_info: WeirTrainerInitInfo, *, client: Any, source: Optional[Any] = None
    ) -> "WeirTrainerWeightTransferEngine":
        if source is None:
            raise ValueError("source: the weights of every version, as a WeightSource")
        self = cls(client=client, source=source, is_sender=init_info.is_sender)
        self.sender = Sender(init_info, init_info.rank, client, source)
        self.sender.connect()
        return self

    def send_weights(self) -> None:
        self.sender.send()

    def shutdown(self) -> None:
        self.sender.close()
