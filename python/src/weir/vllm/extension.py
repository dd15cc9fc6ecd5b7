# SPDX-License-Identifier: Apache-2.0
"""A worker extension: Weir in any vLLM that has `worker_extension_cls` and `collective_rpc`.

    vllm serve MODEL --worker-extension-cls weir.vllm.extension.WeirWorkerExtension
    llm.collective_rpc("weir_init", kwargs={"directory": "10.0.0.1:8500", "model": "policy"})
    llm.collective_rpc("weir_update", kwargs={"version": 7})

vLLM mixes the class into its worker and refuses names that the worker has, so all of them begin
with `weir_`. Whoever calls pauses the scheduler before and resets the prefix cache after.
"""

from __future__ import annotations

from typing import Any, Dict, Optional, Union

from weir.engines.receiver import Receiver
from weir.engines.worker_settings import Settings, Update

from .vllm_receiver import receiver_for_vllm


def _model_of(worker: Any) -> Any:
    """The module that runs, out of what captures its graphs."""
    runner = worker.model_runner
    get = getattr(runner, "get_model", None)
    model = get() if callable(get) else runner.model
    return getattr(model, "runnable", model)


class WeirWorkerExtension:
    """Methods for collective_rpc. All workers of an engine are called at once, as it does."""

    weir_receiver: Optional[Receiver] = None

    def weir_init(self, **settings: Any) -> Dict[str, Any]:
        """Takes weir.vllm.settings.Settings by name and binds the parameters. Returns the state.

        Raises ValueError for a setting, a layout or an engine that is refused, with the reason.
        """
        try:
            given = Settings(**settings)
        except TypeError as error:
            raise ValueError(f"weir_init: {error}") from None
        self.weir_close()
        worker: Any = self
        self.weir_receiver = receiver_for_vllm(_model_of(worker), worker.vllm_config, given)
        return self.weir_receiver.state()

    def weir_update(self, version: Union[int, str] = "latest") -> Dict[str, Any]:
        """Installs one version, on all workers or none. Returns the state.

        Raises weir.WeirError, or ValueError when weir_init has not been called.
        """
        update = Update(version)
        if self.weir_receiver is None:
            raise ValueError("weir_init comes first")
        report = self.weir_receiver.install(update.version)
        return {
            **self.weir_receiver.state(),
            "seconds": report.total_seconds,
            "waited_seconds": report.waited_seconds,
        }

    def weir_state(self) -> Dict[str, Any]:
        """What this worker holds, as JSON values."""
        return self.weir_receiver.state() if self.weir_receiver is not None else {"state": "closed"}

    def weir_close(self) -> None:
        """Lets go of the parameters, which stay as they are."""
        receiver, self.weir_receiver = self.weir_receiver, None
        if receiver is not None:
            receiver.close()
