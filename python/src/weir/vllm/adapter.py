# SPDX-License-Identifier: Apache-2.0
"""The life of an update in every interface of vLLM: init, start, receive, finish, shut down.

Mixed into the engine classes of the interface files, which bring the signatures. It keeps a
receiver and says when a call comes at the wrong time; whatever is done with weights, that does.
"""

from __future__ import annotations

import logging
from typing import Any, Callable, Optional

from weir.engines import Refused
from weir.engines.receiver import Receiver
from weir.engines.worker_settings import Settings, Update

from .vllm_receiver import receiver_for_vllm

logger = logging.getLogger("weir.vllm")


class UpdateLife:
    """One worker's side. `make_receiver` is how a test puts a model of its own in."""

    supports_draft_weight_update = False
    make_receiver: Callable[[Any, Any, Settings], Receiver] = staticmethod(receiver_for_vllm)
    _receiver: Optional[Receiver] = None
    _n_received = 0

    def _init(self, model: Any, vllm_config: Any, settings: Settings) -> None:
        """Binds the model's parameters and joins the trainer's directory. Again: anew."""
        self._shut_down()
        self._receiver = self.make_receiver(model, vllm_config, settings)
        logger.info("%s", self._receiver.state())

    def _started(self) -> Receiver:
        if self._receiver is None:
            raise Refused("init_weight_transfer_engine comes first")
        return self._receiver

    def _start(self) -> None:
        self._started().check_addresses()
        self._n_received = 0

    def _receive(self, update: Update) -> None:
        report = self._started().install(update.version)
        self._n_received += 1
        logger.info(
            "version %d in %.3f s (%d tensors, %d bytes; waited %.3f s)",
            report.version,
            report.total_seconds,
            report.n_tensors,
            report.n_bytes,
            report.waited_seconds,
        )

    def _finish(self) -> None:
        if self._n_received == 0:
            raise Refused("the update is finished, but no version was installed in it")

    def _shut_down(self) -> None:
        receiver, self._receiver = self._receiver, None
        if receiver is not None:
            receiver.close()
