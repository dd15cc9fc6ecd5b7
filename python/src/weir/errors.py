# SPDX-License-Identifier: Apache-2.0
"""What Weir raises: one class for each group of statuses, by what the caller must throw away.

``str(error)`` is the C library's line: what, which tensor, rank or peer, expected, got, from whom.
Nothing here calls Weir but :func:`check`, which asks for that line.
"""

from __future__ import annotations

import enum
import errno as _errno
import sys
from typing import Any, Optional, Tuple, Type


class Status(enum.IntEnum):
    """``weir_status``: the numbers are pinned."""

    IN_PROGRESS = 1
    OK = 0
    ERR_INVALID = -1
    ERR_UNSUPPORTED = -2
    ERR_NONFINITE = -3
    ERR_NOT_FOUND = -4
    ERR_EXISTS = -5
    ERR_NO_MEMORY = -6
    ERR_IO = -7
    ERR_FORMAT = -8
    ERR_BUSY = -9
    ERR_REFUSED = -10
    ERR_PEER_LOST = -20
    ERR_TIMED_OUT = -21
    ERR_CANCELLED = -22
    ERR_CORRUPT = -40
    ERR_LAYOUT = -41
    ERR_PARTIAL = -42
    ERR_ABORTED = -43
    ERR_DEVICE = -60
    ERR_INTERNAL = -61


def _status(number: int) -> int:
    try:
        return Status(number)
    except ValueError:
        return number


class WeirError(Exception):
    """Anything that Weir refuses or that fails in it.

    ``status`` is a :class:`Status`, or a plain number that this package does not know. Catch one of
    the four groups below, or look at ``status``.
    """

    default_status = Status.ERR_INTERNAL

    def __init__(self, message: str = "", status: Optional[int] = None) -> None:
        super().__init__(message)
        self.message = message
        self.status: int = self.default_status if status is None else _status(status)

    def __str__(self) -> str:
        return self.message

    def __reduce__(self) -> Tuple[Any, ...]:
        return type(self), (self.message, int(self.status))


class CallError(WeirError):
    """This call was refused (-1 … -19); everything else is still good."""

    default_status = Status.ERR_INVALID


class PeerError(WeirError):
    """The peer or the transfer is dead (-20 … -39): reconnect."""

    default_status = Status.ERR_PEER_LOST


class TimedOut(PeerError, TimeoutError):
    """Nobody came in time; the message says who is missing."""

    default_status = Status.ERR_TIMED_OUT

    def __init__(self, message: str = "", status: Optional[int] = None) -> None:
        super().__init__(message, status)
        self.errno = _errno.ETIMEDOUT
        self.strerror = message


class VersionError(WeirError):
    """This version must not be served (-40 … -59): discover another."""

    default_status = Status.ERR_CORRUPT


class ContextError(WeirError):
    """The process's use of Weir is broken (-60 … -79): close all of it."""

    default_status = Status.ERR_INTERNAL


def class_of(status: int) -> Type[WeirError]:
    """The class that a status is raised as."""
    if status == Status.ERR_TIMED_OUT:
        return TimedOut
    if -19 <= status <= -1:
        return CallError
    if -39 <= status <= -20:
        return PeerError
    if -59 <= status <= -40:
        return VersionError
    return ContextError


def error_of(status: int, message: str) -> WeirError:
    """The exception for a status, not raised: for what Python itself refuses, too."""
    return class_of(status)(message, status)


def last_error() -> str:
    """The C library's line on the last failure of this thread; "" when there was none."""
    from weir.library import library

    line: Optional[bytes] = library().weir_last_error()
    return (line or b"").decode("utf-8", "replace")


def check(status: int, *, cause: Optional[BaseException] = None) -> int:
    """Returns OK and IN_PROGRESS; raises any other status with this thread's error line.

    To be called in the thread that made the C call, before it makes another. ``cause`` becomes the
    error's ``__cause__``. Without one, what a conversion written in Python raised is looked for.
    """
    if status >= 0:
        return status
    line = last_error()
    if cause is None:
        written_in_python = sys.modules.get("weir.python_conversions")
        if written_in_python is not None:
            cause = written_in_python.failure_named_in(line)
    what = "" if cause is None else f" (it raised {type(cause).__name__}: {cause})"
    error = error_of(status, line + what)
    try:
        if cause is not None and not isinstance(cause, Exception):
            raise cause  # KeyboardInterrupt is no failure of the call's
        raise error from cause
    finally:
        del error, cause  # else this frame and its own traceback keep each other, and all callers'
