# SPDX-License-Identifier: Apache-2.0
"""Weir in vLLM: a weight transfer backend named "weir", and a worker extension.

`register()` is the entry point `weir` of the group `vllm.general_plugins`: vLLM calls it in every
process when it starts. It must never stop an engine that does not use Weir from starting, so it
says in the log what is missing and returns. Nothing of vLLM, torch or libweir is imported before.
"""

from __future__ import annotations

import logging

from weir.submodules import importer

from .interface import interface_version, vllm_version

BACKEND = "weir"

logger = logging.getLogger("weir.vllm")

__all__ = ["BACKEND", "register"]

__getattr__ = importer(__name__, "extension", "settings")


def _register_in(factory: object, module: str, class_name: str) -> None:
    """Once: a factory refuses a name that it has, and processes load plug-ins more than once."""
    if BACKEND not in getattr(factory, "_registry", {}):
        factory.register_engine(BACKEND, module, class_name)  # type: ignore[attr-defined]


def register() -> int:
    """Makes backend "weir" known to this vLLM. Returns the interface version (0: there is none and
    the log says why; `weir.vllm.extension.WeirWorkerExtension` works there). Never raises."""
    try:
        number, reason = interface_version()
        if number == 0:
            logger.info(
                "vLLM %s has no interface for weight transfer that is known (%s); "
                "worker_extension_cls=weir.vllm.extension.WeirWorkerExtension works",
                vllm_version() or "(not installed)",
                reason,
            )
            return 0
        from vllm.distributed.weight_transfer import factory

        module = f"weir.vllm.engine_v{number}"
        _register_in(factory.WeightTransferEngineFactory, module, "WeirWeightTransferEngine")
        trainers = getattr(factory, "WeightTransferTrainerFactory", None)
        if trainers is not None:
            _register_in(trainers, module, "WeirTrainerWeightTransferEngine")
        return number
    except Exception:
        logger.exception(
            "backend %r could not be registered in vLLM %s; the engine starts without it",
            BACKEND,
            vllm_version(),
        )
        return 0
