# SPDX-License-Identifier: Apache-2.0
"""A replica worker: installs versions into an engine's live parameters, at their addresses.

What a call does, blocks on and refuses is what ``include/weir/weir.h`` says of ``weir_replica``.
"""

from __future__ import annotations

import ctypes
import enum
from collections.abc import Mapping
from typing import Any, AsyncIterator, Callable, Dict, Iterable, Iterator, List, Optional, Tuple
from typing import Union

from weir import abi, arguments
from weir.calls import Handle
from weir.errors import CallError, Status, WeirError, check
from weir.hooks import Agree, Hooks
from weir.library import library
from weir.report import Report
from weir.security import Security
from weir.tensors import Addresses, Tensor, of_abi, tensor
from weir.trainer import WIRES, Progress, progress_callback

_INSTALLS = {"staged": abi.WEIR_INSTALL_STAGED, "direct": abi.WEIR_INSTALL_DIRECT}


class ReplicaState(enum.IntEnum):
    """``weir_replica_state``."""

    EMPTY = abi.WEIR_REPLICA_EMPTY  # nothing installed yet
    HOLDING = abi.WEIR_REPLICA_HOLDING  # holds exactly one version
    UNUSABLE = abi.WEIR_REPLICA_UNUSABLE  # a direct install failed: must not serve


class Replica(Handle):
    """One worker of an engine that serves ``model``.

    directory   "HOST:PORT", or several by commas
    config      the engine's config.json: a path, or a mapping of what is in it
    name        None: made of host and process; one that is started again under its name supersedes
                the one before
    mesh, worker, experts
                of a parallel engine: "tp=4,ep=8", which of its workers this is, and the experts of
                each expert rank as JSON or lists
    install     "staged" (verified, then swapped in) or "direct" (lands in the live parameters; a
                failure leaves them UNUSABLE)
    wire        "kernel" or "checkpoint"
    device      where allocate() allocates: None or "host", "cuda:1"
    listen      host by which replicas on other machines read from this one; None: only those on
                this machine do. Beyond loopback ``security`` is required
    timeout     seconds: bounds every wait of this handle; lease: of its registration
    peer_wait   seconds: how long to wait for a replica to read from instead of the trainers
    pause()     before the first live byte changes
    postprocess(version)
                after all parameters changed
    resume()    only while one whole version is held, or the engine's own weights are untouched
    agree(version, error) -> bool
                how the workers of one engine install all or none: error is None, or why this one
                cannot; True when all can. See weir.h
    progress(stop, version, done_bytes, total_bytes)
                must be quick, and must not call Weir

    Hooks are called in the thread that installs (of an async variant, in a thread of the handle).
    An exception of one fails the install and is its ``__cause__``. The other options are
    ``weir_replica_options``'. Raises :class:`weir.WeirError`: what C refuses.
    """

    _exit_order = 0

    def __init__(
        self,
        model: str,
        *,
        directory: str,
        config: Any = None,
        run: Optional[str] = None,
        name: Optional[str] = None,
        family: Optional[str] = None,
        layout: Optional[str] = None,
        conversion: Optional[str] = None,
        transport: Optional[str] = None,
        wire: str = "kernel",
        install: str = "staged",
        timeout: float = 60.0,
        lease: float = 90.0,
        n_threads: int = 0,
        device: Optional[str] = None,
        mesh: Optional[str] = None,
        worker: int = 0,
        experts: Any = None,
        window_bytes: int = 0,
        peer_wait: float = 0.0,
        reads_trainers_alone: bool = False,
        serves_nobody: bool = False,
        listen: Optional[str] = None,
        transport_directory: Optional[str] = None,
        security: Optional[Security] = None,
        pause: Optional[Callable[[], Any]] = None,
        postprocess: Optional[Callable[[int], Any]] = None,
        resume: Optional[Callable[[], Any]] = None,
        agree: Optional[Agree] = None,
        progress: Optional[Progress] = None,
    ) -> None:
        super().__init__(f"replica of {model}" if name is None else f"replica {name} of {model}")
        self._state = ReplicaState.EMPTY
        self._version = 0
        self._live: Dict[str, Tensor] = {}
        self._book: Optional[Addresses] = None
        self._addresses: List[int] = []
        self._is_allocated = False
        self._has_waited_alone = False  # the last install found no version in its time
        self._hooks = Hooks(self, pause, postprocess, resume, agree)
        options = abi.weir_replica_options(size=ctypes.sizeof(abi.weir_replica_options))
        options.config = arguments.config(config)
        options.wire = arguments.choice("wire", wire, WIRES)
        options.install = arguments.choice("install", install, _INSTALLS)
        options.timeout_ms = arguments.milliseconds("timeout", timeout)
        options.lease_ms = arguments.milliseconds("lease", lease)
        options.peer_wait_ms = arguments.milliseconds("peer_wait", peer_wait) if peer_wait else 0
        options.window_bytes = arguments.whole("window_bytes", window_bytes, 2**64 - 1)
        options.n_threads = arguments.whole("n_threads", n_threads)
        options.worker = arguments.whole("worker", worker)
        options.experts = arguments.json_text("experts", experts)
        options.reads_trainers_alone = reads_trainers_alone
        options.serves_nobody = serves_nobody
        options.hooks, options.agree = self._hooks.to_abi()
        options.progress = progress_callback(progress)
        for field, value in (
            ("model", model),
            ("directory", directory),
            ("run", run),
            ("name", name),
            ("family", family),
            ("layout", layout),
            ("conversion", conversion),
            ("transport", transport),
            ("transport_directory", transport_directory),
            ("device", device),
            ("mesh", mesh),
            ("listen", listen),
        ):
            setattr(options, field, arguments.text(field, value))
        options.security = arguments.security(security)
        self._options = options
        self._open(self._open_replica)

    def _open_replica(self) -> int:
        out = ctypes.c_void_p()
        check(library().weir_replica_open(ctypes.byref(self._options), ctypes.byref(out)))
        assert out.value is not None
        return out.value

    # ---- live parameters -------------------------------------------------------------------------

    def register(
        self,
        params: Union["Mapping[str, Any]", Iterable[Tuple[str, Any]]],
        *,
        extras: str = "refuse",
    ) -> List[str]:
        """The engine's live parameters by name, written in place by every install.

        ``params`` is a mapping, or pairs of name and array: what :func:`weir.tensor` takes,
        writable. Which there must be, and their tags, follow from family, layout, conversion,
        config and mesh; those that Weir derives (MLA ``W_UV``, ``W_UK_T``) are among them. Once,
        before the first install; the memory must stay where it is until ``close()``.

        Returns the names that the model has no parameter of, with ``extras="ignore"``: they are
        left alone. "refuse" refuses them. ERR_LAYOUT names the first parameter that is missing, or
        that is of another dtype or shape, with both sides; then nothing is registered.
        """
        ignores = arguments.choice("extras", extras, {"refuse": 0, "ignore": 1}) == 1
        pairs = params.items() if isinstance(params, Mapping) else params
        given = [tensor(value, name=_named(name), writable=True) for name, value in pairs]

        def work(pointer: int) -> List[str]:
            array = (abi.weir_tensor * len(given))(*(live.to_abi() for live in given))
            used = (ctypes.c_bool * len(given))() if ignores else None
            check(library().weir_replica_bind(pointer, array, len(given), used))
            uses = [True] * len(given) if used is None else list(used)
            self._keep([live for live, is_used in zip(given, uses) if is_used])
            return [live.name for live, is_used in zip(given, uses) if not is_used]

        return self._run("register", work)

    def allocate(self) -> None:
        """Memory of Weir's own for every parameter that config and mesh describe, on ``device``,
        instead of :meth:`register`: an engine's memory without the engine. ``close()`` frees it.
        """

        def work(pointer: int) -> None:
            check(library().weir_replica_allocate(pointer))
            n = ctypes.c_size_t()
            live = library().weir_replica_parameters(pointer, ctypes.byref(n))
            where = (self._options.device or b"host").decode()
            device = "cpu" if where == "host" else where
            self._keep([of_abi(live[i], device=device) for i in range(n.value)])
            self._is_allocated = True

        self._run("allocate", work)

    def _keep(self, live: List[Tensor]) -> None:
        self._live = {parameter.name: parameter for parameter in live}
        self._book = Addresses(live)
        self._addresses = list(self._book.now)

    def _check_in_place(self) -> None:
        """C writes where parameters were: an engine that has replaced one would not see it."""
        if self._book is None:
            return
        self._book.look()
        if self._book.now == self._addresses:
            return
        for live, address in zip(self._live.values(), self._addresses):
            if live.address != address:
                raise CallError(
                    f"{live.name}: lies at {live.address:#x} now, was registered at {address:#x}: "
                    "live parameters stay where they are"
                )

    @property
    def parameters(self) -> Dict[str, Tensor]:
        """The live parameters by name, at the addresses that never change. Memory that
        :meth:`allocate` took must not be used after ``close()``."""
        return dict(self._live)

    # ---- installing ------------------------------------------------------------------------------

    def install(self, version: Union[int, str] = "latest") -> Report:
        """Waits until ``version`` ("latest": any newer than the one held) is READY, checks tags,
        dtypes, shapes and coverage, moves the bytes, verifies them, installs them in place.

        On failure the replica holds its old version, or is UNUSABLE (install "direct", once a byte
        has landed). :class:`weir.TimedOut` says whom it waited for.
        """
        number = arguments.version(version)
        return self._run("install", lambda pointer: self._install(pointer, number))

    async def install_async(self, version: Union[int, str] = "latest") -> Report:
        """:meth:`install` in a thread of the handle, hooks included; cancelling the task cancels it
        before the first live byte changes, or not at all."""
        number = arguments.version(version)
        return await self._run_async("install", lambda pointer: self._install(pointer, number))

    def revert(self) -> Report:
        """Brings back, at the same addresses, what was held before the last install: the version
        before, or what the engine came with (``version`` 0). Needs no trainer.

        The hooks are called as in an install. :class:`weir.CallError` says that there is nothing to
        go back to (ERR_NOT_FOUND: the next version has begun to come) or that installs are direct
        (ERR_UNSUPPORTED); then, and when a hook refuses, what was held stands.
        """

        def call(pointer: int, report: Any) -> int:
            status: int = library().weir_replica_revert(pointer, report)
            return status

        return self._run("revert", lambda pointer: self._change(pointer, call))

    def _install(self, pointer: int, version: int) -> Report:
        def call(pointer: int, report: Any) -> int:
            status: int = library().weir_replica_install(pointer, version, report)
            return status

        return self._change(pointer, call)

    def _change(self, pointer: int, call: Callable[[int, Any], int]) -> Report:
        """What changes the live parameters, and what came of it."""
        c = library()
        report = abi.weir_report()
        self._check_in_place()
        self._hooks.begin()
        try:
            check(call(pointer, ctypes.byref(report)))
        except WeirError as error:
            self._has_waited_alone = (
                error.status == Status.ERR_TIMED_OUT and report.version == abi.WEIR_LATEST
            )
            self._hooks.fail(error)
        finally:
            self._state = ReplicaState(c.weir_replica_get_state(pointer))
            self._version = c.weir_replica_version(pointer)
        self._hooks.check_resumed(report.version)
        return Report.of(report)

    def watch(self, *, start: Union[int, str, None] = None) -> Iterator[Report]:
        """Installs ``start`` (None: "latest"), then whatever is newer, again and again, and yields
        a :class:`weir.Report` of each. Waits for new versions as long as it takes; ends by
        ``cancel()`` or ``close()``. Any other error raises; another ``watch()`` may go on then.
        """
        wish, n_cancels = "latest" if start is None else start, self._n_cancels
        arguments.version(wish)
        while self._watches(n_cancels):
            report = None
            try:
                report = self.install(wish)
            except WeirError as error:
                if not self._goes_on(error):
                    return
            if report is not None:
                wish = "latest"
                yield report

    async def watch_async(
        self, *, start: Union[int, str, None] = None
    ) -> AsyncIterator[Report]:
        """:meth:`watch` with :meth:`install_async`."""
        wish, n_cancels = "latest" if start is None else start, self._n_cancels
        arguments.version(wish)
        while self._watches(n_cancels):
            report = None
            try:
                report = await self.install_async(wish)
            except WeirError as error:
                if not self._goes_on(error):
                    return
            if report is not None:
                wish = "latest"
                yield report

    def _watches(self, n_cancels: int) -> bool:
        if self._n_cancels == n_cancels:
            return not self._is_closing
        self._forget_cancel()  # it was for the watch
        return False

    def _goes_on(self, error: WeirError) -> bool:
        """False: the watch is over. Raises what is no end of a wait."""
        if error.status == Status.ERR_CANCELLED or self._is_closing:
            return False
        if self._has_waited_alone and error.status == Status.ERR_TIMED_OUT:
            return True
        raise error

    # ---- what there is ---------------------------------------------------------------------------

    @property
    def state(self) -> ReplicaState:
        """As the last install left it."""
        return self._state

    @property
    def version(self) -> int:
        """That it holds; 0, which a version may have, too, when ``state`` is another."""
        return self._version

    # ---- closing ---------------------------------------------------------------------------------

    def _close_pointer(self, pointer: int) -> None:
        library().weir_replica_close(pointer)

    def _cancel_pointer(self, pointer: int) -> None:
        library().weir_replica_cancel(pointer)

    def _uncancel_pointer(self, pointer: int) -> None:
        library().weir_replica_uncancel(pointer)

    def _release(self) -> None:
        if self._is_allocated:  # it is gone: views that are taken from now on are empty
            for live in self._live.values():
                live.address = live.n_bytes = 0
        self._live, self._book = {}, None


def _named(name: Any) -> str:
    if not isinstance(name, str):
        raise CallError(f"parameters: a name is {name!r}, not a text")
    return name
