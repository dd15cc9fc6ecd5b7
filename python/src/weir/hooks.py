# SPDX-License-Identifier: Apache-2.0
"""What an engine does around an install: Python functions as ``weir_engine_hooks``.

An exception cannot pass through C. It is kept here until the C call has ended, and named then.
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any, Callable, NoReturn, Optional, Tuple

from weir import abi
from weir.errors import CallError, Status, WeirError, error_of, last_error

if TYPE_CHECKING:
    from weir.replica import Replica

#: agree(version, error) -> bool
Agree = Callable[[int, Optional[WeirError]], bool]


class Hooks:
    """The hooks of one replica, which is held weakly: C has them as long as it lives."""

    def __init__(
        self,
        replica: "Replica",
        pause: Optional[Callable[[], Any]],
        postprocess: Optional[Callable[[int], Any]],
        resume: Optional[Callable[[], Any]],
        agree: Optional[Agree],
    ) -> None:
        self._replica = weakref.ref(replica)
        self._given = (pause, postprocess, resume, agree)
        self.failure: Optional[BaseException] = None  # the first one of this install
        self._failed = ""

    def to_abi(self) -> Tuple[abi.weir_engine_hooks, Any]:
        """The C struct, and the ``agree`` that lies beside it; they keep their callbacks."""
        pause, postprocess, resume, agree = self._given
        hooks = abi.weir_engine_hooks()
        if pause is not None:
            hooks.pause = abi.weir_pause_fn(lambda _: self._call("pause", pause))
        if postprocess is not None:
            hooks.postprocess = abi.weir_postprocess_fn(
                lambda _, version: self._call("postprocess", postprocess, version)
            )
        if resume is not None:
            hooks.resume = abi.weir_resume_fn(lambda _: self._resume(resume))
        if agree is None:
            return hooks, abi.weir_agree_fn()
        return hooks, abi.weir_agree_fn(
            lambda _, version, mine: self._agree(agree, version, mine)
        )

    # ---- in an install ---------------------------------------------------------------------------

    def _run(self, name: str, function: Callable[..., Any], *arguments: Any) -> Any:
        replica = self._replica()
        assert replica is not None  # it installs
        try:
            return replica._in_waiter(function, *arguments)
        except BaseException as error:
            if self.failure is None:
                self.failure, self._failed = error, name
            return error

    def _call(self, name: str, function: Callable[..., Any], *arguments: Any) -> int:
        outcome = self._run(name, function, *arguments)
        return Status.ERR_REFUSED if isinstance(outcome, BaseException) else Status.OK

    def _resume(self, function: Callable[[], Any]) -> None:
        self._run("resume", function)

    def _agree(self, function: Agree, version: int, mine: int) -> int:
        error = None if mine == Status.OK else error_of(mine, last_error())
        outcome = self._run("agree", function, version, error)
        if isinstance(outcome, BaseException) or not outcome:
            return Status.ERR_REFUSED
        return Status.OK

    # ---- before and after ------------------------------------------------------------------------

    def begin(self) -> None:
        self.failure, self._failed = None, ""

    def fail(self, error: WeirError) -> NoReturn:
        """Raises what an install failed by: an interrupt within a hook is no error of Weir's."""
        failure, self.failure = self.failure, None
        if failure is None:
            raise error
        if not isinstance(failure, Exception):
            raise failure
        what = f"{self._failed}() raised {type(failure).__name__}: {failure}"
        raise error_of(error.status, f"{error} ({what})") from failure

    def check_resumed(self, version: int) -> None:
        """After an install that went well: its resume() may have raised."""
        failure, self.failure = self.failure, None
        if failure is None:
            return
        if not isinstance(failure, Exception):
            raise failure
        raise CallError(
            f"version {version} is installed, but {self._failed}() raised "
            f"{type(failure).__name__}: {failure}",
            Status.ERR_REFUSED,
        ) from failure
