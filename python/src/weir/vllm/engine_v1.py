# SPDX-License-Identifier: Apache-2.0
"""Interface 1 of vLLM: an engine is given its parallel config and the model, and no more.

What the model is follows from the config that vLLM's models keep; the name that it is published
under must be said. vLLM itself starts and finishes an update, and takes parameters away for weights
in checkpoint format: start_weight_update(is_checkpoint_format=False) is needed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Callable, Iterator

from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)

from weir.engines import Refused
from weir.engines.receiver import Receiver
from weir.engines.worker_settings import Settings, Update

from .adapter import UpdateLife
from .trainer_side import send_with
from .vllm_parameters import has_experts
from .vllm_placement import placement_of_vllm
from .vllm_receiver import open_receiver

__all__ = ["WeirInitInfo", "WeirUpdateInfo", "WeirWeightTransferEngine"]


@dataclass
class WeirInitInfo(Settings, WeightTransferInitInfo):
    """weir.vllm.settings.Settings, as vLLM asks for it."""


@dataclass
class WeirUpdateInfo(Update, WeightTransferUpdateInfo):
    """weir.vllm.settings.Update, as vLLM asks for it."""


def receiver_of_model(model: Any, parallel_config: Any, settings: Settings) -> Receiver:
    """The receiver of a worker that knows its model and its parallel config alone."""
    if settings.model is None:
        raise Refused("model: this vLLM does not say what it serves: name it in init_info")
    first = next(iter(model.parameters()))
    return open_receiver(
        model,
        settings,
        config=model.config,
        dtype=first.dtype if first.dtype.itemsize > 1 else None,
        placement=placement_of_vllm(parallel_config, has_experts(model)),
        model_name=settings.model,
    )


class WeirWeightTransferEngine(UpdateLife, WeightTransferEngine[WeirInitInfo, WeirUpdateInfo]):
    """Installs published versions into the model's parameters, in place."""

    init_info_cls = WeirInitInfo
    update_info_cls = WeirUpdateInfo
    make_receiver = staticmethod(receiver_of_model)

    def init_transfer_engine(self, init_info: WeirInitInfo) -> None:
        self._init(self.model, self.parallel_config, init_info)

    def receive_weights(
        self, update_info: WeirUpdateInfo, load_weights: Callable[..., Any]
    ) -> None:
        if any(parameter.is_meta for parameter in self.model.parameters()):
            raise Refused(
                "start_weight_update(is_checkpoint_format=False) is needed: vLLM has taken the "
                "parameters away"
            )
        self._receive(update_info)

    def shutdown(self) -> None:
        self._shut_down()

    @staticmethod
    def trainer_send_weights(iterator: Iterator[Any], trainer_args: Any) -> None:
        """trainer_args: {"trainer": weir.Trainer, "version": int, "n_replicas": int = 0}."""
        send_with(trainer_args, iterator)
