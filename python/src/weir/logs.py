# SPDX-License-Identifier: Apache-2.0
"""Brings the C library's log lines to Python's logging.

Lines come from any thread of Weir's, under a lock of the library: they are put into a queue there,
and a thread of this module hands them on. So a handler may be slow, may fail, and may call Weir.
The library has one sink in a process: what is set here replaces what a C program set.
"""

from __future__ import annotations

import atexit
import logging
import os
import queue
import sys
import threading
import time
from typing import Any, Callable, Dict, Mapping, NamedTuple, Optional, Union

from weir import abi
from weir.errors import CallError
from weir.library import library

#: Called with a level of :mod:`logging`, the line, and what the line is about: "version", "peer", …
LogFunction = Callable[[int, str, Mapping[str, Any]], None]

_LEVEL_OF = {
    abi.WEIR_LOG_ERROR: logging.ERROR,
    abi.WEIR_LOG_WARN: logging.WARNING,
    abi.WEIR_LOG_INFO: logging.INFO,
    abi.WEIR_LOG_DEBUG: logging.DEBUG,
}
# Those names that a LogRecord already uses for itself.
_TAKEN = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}

_NOWHERE = sys.maxsize  # no line is of that level


class _Line(NamedTuple):
    level: int
    text: str
    fields: Dict[str, Any]
    created: float
    thread: int


def set_logger(
    logger: Union[logging.Logger, LogFunction, None], level: Union[int, str] = logging.INFO
) -> None:
    """Sends the library's log lines up to ``level`` to ``logger``; None: nowhere, the default.

    A :class:`logging.Logger` gets each line as a record whose attributes are what the line is
    about: ``worker``, ``rank``, ``model``, ``run``, ``version``, ``trace_id``, ``stop``, ``peer``,
    and of the line about a whole refit ``status``, ``bytes``, ``seconds``, ``waited_seconds``,
    ``gb_per_s``; those that are not known are left out. A function gets the same as arguments. An
    exception of either is shown by ``sys.unraisablehook`` and goes no further.

    Returns once what was logged before has been handed to the logger before.
    """
    if logger is not None and not isinstance(logger, logging.Logger) and not callable(logger):
        raise CallError(f"set_logger() takes a logging.Logger, a function or None, got {logger!r}")
    c_level = _c_level(level)
    with _setting:
        library().weir_log_set_structured(abi.weir_log_record_fn(), None, 0)
        _courier.stop()
        if logger is not None:
            least = min(at for c, at in _LEVEL_OF.items() if c <= c_level)
            taker = _to_logger(logger) if isinstance(logger, logging.Logger) else logger
            _courier.start(taker, least)
            library().weir_log_set_structured(_sink, None, c_level)


def log(level: int, text: str) -> None:
    """A line of this package, to where the library's lines go. ``level`` is one of logging's."""
    if level >= _courier.least:
        _courier.put(_Line(level, text, {}, time.time(), threading.get_ident()))


def flush(timeout: float = 10.0) -> bool:
    """Waits, at most ``timeout`` seconds, until all lines so far were handed on; False if not."""
    return _courier.flush(timeout)


def _c_level(level: Union[int, str]) -> int:
    number = logging.getLevelName(level.upper()) if isinstance(level, str) else level
    if not isinstance(number, int):
        raise CallError(f"log level {level!r} is none of logging's")
    if number >= logging.ERROR:
        return abi.WEIR_LOG_ERROR
    if number >= logging.WARNING:
        return abi.WEIR_LOG_WARN
    return abi.WEIR_LOG_INFO if number >= logging.INFO else abi.WEIR_LOG_DEBUG


class _Courier:
    """The thread that hands lines on, and its queue."""

    def __init__(self) -> None:
        self._function: Optional[LogFunction] = None
        self.least = _NOWHERE
        self._reset()

    def _reset(self) -> None:
        self._queue: "queue.SimpleQueue[Any]" = queue.SimpleQueue()  # its put() is reentrant
        self._thread: Optional[threading.Thread] = None

    def put(self, line: Any) -> None:
        self._queue.put(line)

    def start(self, function: LogFunction, least: int) -> None:
        """``least``: the level below which lines are not wanted."""
        self._function, self.least = function, least
        self._thread = threading.Thread(target=self._run, name="weir-log", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread behind what is queued, unless it is the one that asks."""
        thread, self._thread = self._thread, None
        self.least = _NOWHERE
        if thread is not None:
            self._queue.put(None)
            if thread is not threading.current_thread():
                thread.join(10.0)  # a function may be stuck

    def flush(self, timeout: float) -> bool:
        thread = self._thread
        if thread is None or thread is threading.current_thread():
            return True
        passed = threading.Event()
        self._queue.put(passed)
        return passed.wait(timeout)

    def renew(self) -> None:
        """In the child of a fork: its parent's thread and the lines in the queue are not here."""
        function, had_thread = self._function, self._thread is not None
        self._reset()
        if had_thread and function is not None:
            self.start(function, self.least)

    def _run(self) -> None:
        function, lines = self._function, self._queue
        while True:
            line = lines.get()
            if line is None:
                return
            if isinstance(line, threading.Event):
                line.set()
                continue
            try:
                _hand_on(function, line)
            except Exception:
                kind, error, frames = sys.exc_info()
                about: Any = _Unraisable(kind, error, frames, "a logger of Weir's failed", function)
                sys.unraisablehook(about)


class _Unraisable(NamedTuple):
    exc_type: Any
    exc_value: Any
    exc_traceback: Any
    err_msg: str
    object: Any


def _hand_on(function: Any, line: _Line) -> None:
    if isinstance(function, _ToLogger):
        function.emit(line)
    else:
        function(line.level, line.text, line.fields)


class _ToLogger:
    """Makes records of lines, with the time and thread that they were logged in."""

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger

    def __call__(self, level: int, text: str, fields: Mapping[str, Any]) -> None:
        self.emit(_Line(level, text, dict(fields), time.time(), threading.get_ident()))

    def emit(self, line: _Line) -> None:
        if not self._logger.isEnabledFor(line.level):
            return
        extra = {f"weir_{k}" if k in _TAKEN else k: v for k, v in line.fields.items()}
        record = self._logger.makeRecord(
            self._logger.name, line.level, "libweir", 0, line.text, (), None, extra=extra
        )
        record.relativeCreated += 1000 * (line.created - record.created)
        record.created = line.created
        record.msecs = 1000 * (line.created % 1)
        record.thread, record.threadName = line.thread, "weir"
        self._logger.handle(record)


def _to_logger(logger: logging.Logger) -> LogFunction:
    return _ToLogger(logger)


def _number(text: str) -> Union[int, float, str]:
    try:
        return float(text) if "." in text else int(text)
    except ValueError:
        return text


def _receive(context: Any, level: int, line: bytes, fields: Any, n_fields: int) -> None:
    try:
        about = {}
        for field in fields[:n_fields]:
            text = (field.text or b"").decode("utf-8", "replace")
            about[field.name.decode()] = _number(text) if field.is_number else text
        _courier.put(
            _Line(
                _LEVEL_OF.get(level, logging.DEBUG),
                line.decode("utf-8", "replace"),
                about,
                time.time(),
                threading.get_ident(),
            )
        )
    except Exception:  # nothing may reach C
        pass


def _close() -> None:
    if _courier.least == _NOWHERE:  # there is no logger, and perhaps no library either
        return
    # A C thread that called into an interpreter that is no more would never come back.
    library().weir_log_set_structured(abi.weir_log_record_fn(), None, 0)
    _courier.stop()


_setting = threading.Lock()
_courier = _Courier()
_sink = abi.weir_log_record_fn(_receive)
atexit.register(_close)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_courier.renew)
