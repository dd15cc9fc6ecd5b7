# SPDX-License-Identifier: Apache-2.0
"""What trainers, replicas and directories have in common: a C handle, and calls on it.

A call that may block runs without the GIL, one at a time per handle. In the main thread it runs in
a thread of the handle while the main thread waits where signals reach it: Ctrl-C cancels the C
call, waits for its end and goes on as KeyboardInterrupt. Other threads make their calls themselves,
and coroutines await the thread of the handle. What a call does, this module does not know.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import os
import queue
import sys
import threading
import warnings
import weakref
from typing import Any, Callable, Generic, List, NoReturn, Optional, Tuple, TypeVar

from weir.errors import CallError, Status

T = TypeVar("T")
HandleT = TypeVar("HandleT", bound="Handle")


class _Request:
    """A function that the thread which waits for a call is to run for it."""

    def __init__(self, function: Callable[..., Any], arguments: Tuple[Any, ...]) -> None:
        self._function = function
        self._arguments = arguments
        self._began = False
        self.reply: queue.SimpleQueue[Tuple[Any, Optional[BaseException]]] = queue.SimpleQueue()

    def answer(self) -> None:
        # An interrupt may arrive between any two lines; the caller then comes back here, and the
        # function must neither run twice nor be waited for in vain.
        outcome: Tuple[Any, Optional[BaseException]] = (None, KeyboardInterrupt())
        if not self._began:
            self._began = True
            try:
                outcome = (self._function(*self._arguments), None)
            except BaseException as error:
                outcome = (None, error)
        self.reply.put(outcome)


class Call(Generic[T]):
    """One call: what it runs, who waits for it, and what came of it."""

    def __init__(self, name: str, work: Callable[[int], T]) -> None:
        self.name = name
        self.work = work
        self.has_begun = False
        self.thread: Optional[int] = None  # that runs it
        self.waiter: Optional[int] = None  # that waits for it, and runs its requests
        self.is_cancelled = False
        self.is_done = False
        self.request: Optional[_Request] = None
        self.tokens: queue.SimpleQueue[None] = queue.SimpleQueue()  # something has changed
        self.ended = threading.Event()
        self.on_end: Optional[Callable[[], None]] = None
        self._result: Optional[T] = None
        self._error: Optional[BaseException] = None

    def run(self, pointer: int) -> None:
        self.thread = threading.get_ident()
        try:
            self._result = self.work(pointer)
        except BaseException as error:
            self._error = error

    def in_waiter(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Runs function in the thread that waits for this call, or here when none does."""
        if self.waiter is None:
            return function(*arguments)
        request = _Request(function, arguments)
        self.request = request
        self.tokens.put(None)
        result, error = request.reply.get()
        self.request = None
        if error is not None:
            raise error
        return result

    def outcome(self) -> T:
        error, self._error = self._error, None
        if error is not None:
            try:
                raise error
            finally:
                del error  # its traceback has this frame
        return self._result  # type: ignore[return-value]


def _serve(calls: "queue.SimpleQueue[Optional[Tuple[Handle, Call[Any]]]]") -> None:
    """The thread of a handle, which keeps the handle alive only while it has a call."""
    while True:
        job = calls.get()
        if job is None:
            return
        handle, call = job
        handle._execute(call)
        del job, handle, call


class _Opening:
    """A C object on its way: who is interrupted leaves it to be closed once it is there."""

    def __init__(self, open_one: Callable[[], int], close_pointer: Callable[[int], None]) -> None:
        self._open_one = open_one
        self._close_pointer = close_pointer
        self._pointer: Optional[int] = None
        self._error: Optional[BaseException] = None
        self._is_abandoned = False
        self._lock = threading.Lock()
        self._ended = threading.Event()

    def _run(self) -> None:
        try:
            self._pointer = self._open_one()
        except BaseException as error:
            self._error = error
        with self._lock:
            self._ended.set()
            is_abandoned = self._is_abandoned
        if is_abandoned and self._pointer is not None:
            self._close_pointer(self._pointer)

    def wait(self) -> int:
        try:
            threading.Thread(target=self._run, name="weir opens", daemon=True).start()
            self._ended.wait()
        except BaseException:
            with self._lock:
                self._is_abandoned = True
                has_ended = self._ended.is_set()
            if has_ended and self._pointer is not None:
                self._close_pointer(self._pointer)
            raise
        error, self._error = self._error, None
        if error is not None:
            try:
                raise error
            finally:
                del error
        assert self._pointer is not None
        return self._pointer


class Handle:
    """A C object that blocking calls are made on; see the module. Subclasses open and close it."""

    _exit_order = 0  # at interpreter exit the lowest are closed first

    def __init__(self, title: str) -> None:
        self._title = title
        self._pid = os.getpid()
        self._lock = threading.RLock()  # what follows; a signal handler may cancel while it is held
        self._pointer: Optional[int] = None
        self._running: Optional[Call[Any]] = None
        self._is_closing = False
        self._n_cancels = 0
        self._jobs: Optional[queue.SimpleQueue[Optional[Tuple[Handle, Call[Any]]]]] = None
        self._thread: Optional[threading.Thread] = None

    # ---- what a subclass says --------------------------------------------------------------------

    def _close_pointer(self, pointer: int) -> None:
        raise NotImplementedError

    def _cancel_pointer(self, pointer: int) -> None:
        raise NotImplementedError

    def _uncancel_pointer(self, pointer: int) -> None:
        raise NotImplementedError

    def _release(self) -> None:
        """Lets go of what was kept for the C object, which is gone."""

    # ---- opening ---------------------------------------------------------------------------------

    def _open(self, open_one: Callable[[], int]) -> None:
        """Goes on with the C object that open_one() opens, which may wait for the directory."""
        if threading.current_thread() is threading.main_thread():
            opening = _Opening(open_one, self._close_pointer)
            pointer = opening.wait()
        else:
            pointer = open_one()
        with self._lock:
            self._pointer = pointer
        _open_handles.add(self)

    def _check_process(self) -> None:
        if self._pid != os.getpid():
            raise CallError(
                f"{self._title} is of process {self._pid}: a handle does not outlive fork(), "
                "open another one in the child"
            )

    def _require_open(self) -> int:
        self._check_process()
        pointer = self._pointer
        if pointer is None or self._is_closing:
            raise CallError(f"{self._title} is closed")
        return pointer

    def _busy(self, name: str) -> CallError:
        running = self._running
        return CallError(
            f"{self._title}: {name}() while {running.name if running else name}() runs: a handle "
            "makes one call at a time",
            Status.ERR_BUSY,
        )

    # ---- one call --------------------------------------------------------------------------------

    def _claim(self, call: Call[Any]) -> None:
        self._check_process()
        with self._lock:
            self._require_open()
            if self._running is not None:
                raise self._busy(call.name)
            self._running = call

    def _withdraw(self, call: Call[Any]) -> bool:
        """Whether the call has not begun; then it never will."""
        with self._lock:
            if call.has_begun:
                return False
            call.has_begun = True
            if self._running is call:
                self._running = None
            call.ended.set()
            return True

    def _execute(self, call: Call[Any]) -> None:
        with self._lock:
            if call.has_begun:
                return
            call.has_begun = True
            pointer = self._pointer
        assert pointer is not None  # close() waits for the end of a call that is claimed
        call.run(pointer)
        with self._lock:
            if call.is_cancelled:
                self._uncancel_pointer(pointer)  # it may have come too late for this call
            self._running = None
            call.is_done = True
        call.ended.set()
        call.tokens.put(None)
        if call.on_end is not None:
            call.on_end()

    def _submit(self, call: Call[Any]) -> None:
        self._claim(call)
        with self._lock:
            if self._jobs is None:
                jobs: queue.SimpleQueue[Optional[Tuple[Handle, Call[Any]]]] = queue.SimpleQueue()
                # A daemon, so that the interpreter's exit comes to _close_all(), which joins it.
                thread = threading.Thread(
                    target=_serve, args=(jobs,), name=f"weir {self._title}", daemon=True
                )
                thread.start()
                self._jobs, self._thread = jobs, thread
            self._jobs.put((self, call))

    def _run(self, name: str, work: Callable[[int], T]) -> T:
        """work(pointer), which makes the C call, when no other call runs. Blocks."""
        call = Call(name, work)
        if threading.current_thread() is not threading.main_thread():
            self._claim(call)
            self._execute(call)
            return call.outcome()
        interrupt: Optional[BaseException] = None
        call.waiter = threading.get_ident()
        try:  # up to the end: nothing may be raised between two blocks, where the call would go on
            self._submit(call)
            self._attend(call)
        except BaseException as error:  # of the handler of a signal, too
            if self._withdraw(call):
                raise
            interrupt = error
        while not call.is_done:
            try:
                interrupt = self._wait_out(call, interrupt)
            except BaseException as error:  # a second one, before the first was seen to
                interrupt = error
        return _outcome(call, interrupt)

    def _wait_out(
        self, call: Call[Any], interrupt: Optional[BaseException]
    ) -> Optional[BaseException]:
        while not call.is_done:
            try:
                if interrupt is not None:
                    self._cancel_call(call)
                self._attend(call)
            except BaseException as error:
                interrupt = error
        return interrupt

    @staticmethod
    def _attend(call: Call[Any]) -> None:
        while not call.is_done:
            request = call.request
            if request is not None:
                request.answer()
            call.tokens.get()

    async def _run_async(self, name: str, work: Callable[[int], T]) -> T:
        """The same in the thread of the handle; whose task is cancelled, cancels the call."""
        loop = asyncio.get_running_loop()
        call = Call(name, work)
        ended: asyncio.Future[None] = loop.create_future()
        call.on_end = lambda: _tell(loop, ended)
        try:
            self._submit(call)
        except BaseException:
            if not self._withdraw(call):
                self._cancel_call(call)
            raise
        cancelled: Optional[asyncio.CancelledError] = None
        while not call.is_done:
            try:
                await asyncio.shield(ended)
            except asyncio.CancelledError as error:
                cancelled = error
                self._cancel_call(call)
            except BaseException:
                self._cancel_call(call)
                raise
        return _outcome(call, cancelled)

    def _in_waiter(self, function: Callable[..., Any], *arguments: Any) -> Any:
        call = self._running
        if call is None:
            return function(*arguments)
        return call.in_waiter(function, *arguments)

    # ---- cancelling and closing ------------------------------------------------------------------

    def _cancel_call(self, call: Call[Any]) -> None:
        with self._lock:
            if self._running is call and self._pointer is not None:
                call.is_cancelled = True
                self._cancel_pointer(self._pointer)

    def cancel(self) -> None:
        """Makes the call that waits, or the next one that would, end with ERR_CANCELLED. From any
        thread, or a signal handler; without effect on a closed handle."""
        self._check_process()
        with self._lock:
            if self._pointer is None:
                return
            self._n_cancels += 1
            if self._running is not None:
                self._running.is_cancelled = True
            self._cancel_pointer(self._pointer)

    def _forget_cancel(self) -> None:
        with self._lock:
            if self._pointer is not None and self._running is None:
                self._uncancel_pointer(self._pointer)

    def close(self) -> None:
        """Cancels the call that runs, waits for its end, and closes. From any thread, but from
        within no hook. A handle that is closed already, or that is of a process which has forked
        this one, is left alone."""
        if self._pid != os.getpid():
            return
        with self._lock:
            call = self._running
            if call is not None and threading.get_ident() in (call.thread, call.waiter):
                raise CallError(
                    f"{self._title}: close() within {call.name}(), by a hook of it",
                    Status.ERR_BUSY,
                )
            self._is_closing = True
            if call is not None:
                self._cancel_call(call)
        if call is not None:
            call.ended.wait()
        with self._lock:
            pointer, self._pointer = self._pointer, None
        if pointer is None:  # another thread closes it, or has
            return
        try:
            self._close_idle(pointer)
        finally:
            self._release()

    def _close_idle(self, pointer: int) -> None:
        _open_handles.discard(self)
        with self._lock:
            jobs, self._jobs = self._jobs, None
            thread, self._thread = self._thread, None
        try:
            if jobs is not None:
                jobs.put(None)
            if thread is not None and thread is not threading.current_thread():
                thread.join()
        finally:
            self._close_pointer(pointer)

    def _replace(self, open_another: Callable[[], int]) -> None:
        """Closes the C object and goes on with another one; without it when that fails."""
        with self._lock:
            old = self._require_open()
            if self._running is not None:
                raise self._busy("register")
            self._pointer = None
        try:
            self._close_idle(old)
            self._open(open_another)
        except BaseException:
            self._release()
            raise
        if self._is_closing:  # meanwhile, by another thread
            self.close()

    def __enter__(self: HandleT) -> HandleT:
        self._require_open()
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise TypeError(
            f"{self._title}: a handle can be neither copied nor pickled: open one where it is used"
        )

    def __repr__(self) -> str:
        state = " (closed)" if self._pointer is None else ""
        return f"<weir.{type(self).__name__} {self._title}{state}>"

    def __del__(self) -> None:
        if getattr(self, "_pointer", None) is None or sys.is_finalizing():
            return
        if self._pid != os.getpid():
            return
        try:
            warnings.warn(f"unclosed {self!r}", ResourceWarning, source=self)
        finally:
            self.close()


def _outcome(call: Call[T], interrupt: Optional[BaseException]) -> T:
    if interrupt is None:
        return call.outcome()
    try:
        raise interrupt
    finally:
        del interrupt  # its traceback has this frame


def _tell(loop: asyncio.AbstractEventLoop, ended: "asyncio.Future[None]") -> None:
    def set_result() -> None:
        if not ended.done():
            ended.set_result(None)

    try:
        loop.call_soon_threadsafe(set_result)
    except RuntimeError:  # the loop is closed, and nobody waits in it
        pass


_open_handles: "weakref.WeakSet[Handle]" = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    """Readers before those whom they read, and the directory that both ask last."""
    handles: List[Handle] = sorted(_open_handles, key=lambda handle: handle._exit_order)
    with contextlib.ExitStack() as closing:  # all, whatever one of them raises
        for handle in reversed(handles):
            closing.callback(handle.close)
