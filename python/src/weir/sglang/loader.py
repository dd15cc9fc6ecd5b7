# SPDX-License-Identifier: Apache-2.0
"""The custom weight loader: inside each of SGLang's workers, it installs a version in place.

SGLang calls `install(model, named_tensors)` for `load_format="weir.sglang.loader.install"` if it
was started with `--custom-weight-loader weir.sglang.loader.install`. The tensors carry a wish
(`weir.sglang.wish`), the weights come from the trainer, into the live parameters, at their
addresses.

It never raises: SGLang ends its scheduler, and so the server, when a loader does, and answers
"Success" when it does not. What came of it is what `/get_weights_by_name {"name": "weir.status"}`
answers from then on; `weir.sglang.client` asks for that before it lets the engine go on.

All workers of an engine take the version or none. Whoever calls the endpoint has paused the engine.
"""

from __future__ import annotations

import logging
import weakref
from typing import Any, Dict, Iterable, Mapping, Optional, Tuple

from weir.errors import WeirError

from . import STATUS_NAME
from .wish import Wish, numbers_of, wish_of

logger = logging.getLogger("weir.sglang")

HOLDING, EMPTY, UNUSABLE = "holding", "empty", "unusable"


def _open_receiver(model: Any, settings: Mapping[str, Any]) -> Any:
    from weir.engines.receiver import Receiver
    from weir.engines.worker_settings import Settings

    from .sglang_parameters import find_parameters
    from .sglang_placement import placement_of_sglang

    config = getattr(model, "config", None)
    if config is None:
        raise ValueError("weir: the model (%s) has no config" % type(model).__name__)
    return Receiver(model, Settings(**settings), config=config, find=find_parameters,
                    placement=placement_of_sglang(), model_name=str(settings.get("model", "")))


class Worker:
    """What this process knows of one model: whom it follows, what it holds, what failed last."""

    def __init__(self, model: Any) -> None:
        self._model = weakref.ref(model)
        self._receiver: Optional[Any] = None
        self._settings: Optional[Mapping[str, Any]] = None
        self._state, self._version, self._error = EMPTY, 0, ""
        self._n_updates = self._n_failed = 0
        self._seconds = 0.0

    def status(self) -> Dict[str, Any]:
        """JSON values. `version` is the one that is held whole, None where `state` says none is;
        `error` what failed, since an install has last succeeded."""
        return {
            "state": self._state,
            "version": self._version if self._state == HOLDING else None,
            "error": self._error,
            "n_updates": self._n_updates,
            "n_failed": self._n_failed,
            "seconds": self._seconds,
        }

    def update(self, wish: Wish) -> None:
        """Installs a version, or says in status() why not. Blocks within the settings' timeout."""
        try:
            report = self._install(wish)
        except Exception as problem:
            logger.exception("weir: version %s was not installed", wish.version)
            self.refuse(problem)
            # Weir's own errors leave one whole version, or say UNUSABLE. Of any other nobody knows.
            is_unknown = not isinstance(problem, (WeirError, ValueError, TimeoutError))
            # The next wish makes all workers meet and bind anew: what one of them found broken
            # the others may not have noticed.
            self._leave(is_unusable=is_unknown)
            return
        self._state, self._version, self._error = HOLDING, int(report.version), ""
        self._n_updates += 1
        self._seconds = float(report.total_seconds)

    def _install(self, wish: Wish) -> Any:
        model = self._model()
        if model is None:
            raise RuntimeError("weir: the model is gone")
        if self._receiver is None or self._settings != wish.settings:
            self._leave()
            self._receiver = _open_receiver(model, wish.settings)
            self._settings = dict(wish.settings)
        return self._receiver.install(wish.version)

    def refuse(self, problem: Exception) -> None:
        """Keeps a failure for status()."""
        self._n_failed += 1
        self._error = ("%s: %s" % (type(problem).__name__, problem))[:2000]

    def _leave(self, is_unusable: bool = False) -> None:
        receiver, self._receiver, self._settings = self._receiver, None, None
        if receiver is None:
            return
        if is_unusable or UNUSABLE in str(receiver.state()["state"]).lower():
            self._state, self._version = UNUSABLE, 0
        receiver.close()


_workers: "weakref.WeakKeyDictionary[Any, Worker]" = weakref.WeakKeyDictionary()


def _answer_for(worker: Worker, ask_model: Any) -> Any:
    """SGLang asks the model for weights by name: of one name more it answers itself."""

    def get_weights_by_name(name: str, *arguments: Any, **more: Any) -> Any:
        if name == STATUS_NAME:
            return numbers_of(worker.status())
        if ask_model is None:
            raise AttributeError("the model has no get_weights_by_name")
        return ask_model(name, *arguments, **more)

    return get_weights_by_name


def worker_of(model: Any) -> Worker:
    """The one worker of this model; made, and made known to SGLang, when it is first asked for."""
    worker = _workers.get(model)
    if worker is None:
        worker = _workers[model] = Worker(model)
        model.get_weights_by_name = _answer_for(worker, getattr(model, "get_weights_by_name", None))
    return worker


def install(model: Any, named_tensors: Iterable[Tuple[str, Any]]) -> None:
    """What SGLang calls: `model` is its live model, `named_tensors` hold a wish. Never raises: see
    above for where the outcome is."""
    try:
        wish = wish_of(named_tensors)
    except Exception as problem:
        # Of no version: what is held, and the way to it, stay as they are.
        logger.error("weir: %s", problem)
        worker_of(model).refuse(problem)
        return
    worker_of(model).update(wish)
