# SPDX-License-Identifier: Apache-2.0
"""A trainer rank: registers the weights as they are trained, publishes versions of them.

What a call does, blocks on and refuses is what ``include/weir/weir.h`` says of ``weir_trainer``.
"""

from __future__ import annotations

import ctypes
from typing import Any, Callable, Iterable, Mapping, Optional, Sequence, Tuple, Union

from weir import abi, arguments, local_address, shards
from weir.calls import Handle
from weir.directory import Directory
from weir.errors import CallError, Status, WeirError, check, error_of
from weir.library import library
from weir.registration import Registration, is_module, named_weights
from weir.report import Report
from weir.security import Security

Progress = Callable[[str, int, int, int], None]

_DELIVERIES = {
    None: abi.WEIR_DELIVERY_DEFAULT,
    "pull": abi.WEIR_DELIVERY_PULL,
    "push": abi.WEIR_DELIVERY_PUSH,
}
_EXPLICIT = abi.WEIR_MESH_EXPLICIT.encode()
WIRES = {"kernel": abi.WEIR_WIRE_KERNEL, "checkpoint": abi.WEIR_WIRE_CHECKPOINT}


def _not_reachable(error: WeirError, directory: str, own: str) -> WeirError:
    """Of a trainer that did not say ``listen``, and may not listen where others would find it."""
    return error_of(
        error.status,
        f"{error}; {own}, where replicas find this trainer as the directory is {directory}, is "
        "taken for want of listen: give security, or listen=\"127.0.0.1\" when all replicas run "
        "on this machine",
    )


def progress_callback(progress: Optional[Progress]) -> Any:
    """A ``weir_progress_fn`` that calls ``progress(stop, version, done_bytes, total_bytes)``.

    An exception of it goes to ``sys.unraisablehook``: it has nothing to fail.
    """
    if progress is None:
        return abi.weir_progress_fn()

    def call(_context: Any, stop: int, version: int, done: int, total: int) -> None:
        progress(abi.STOPS[stop], version, done, total)

    return abi.weir_progress_fn(call)


class Trainer(Handle):
    """One trainer rank of ``model``.

    config      the engine's config.json: a path, or a mapping of what is in it; None: nothing is
                checked against it
    directory   "HOST:PORT" or several, by commas; None: an embedded one, see ``.directory``
    rank, n_ranks, mesh
                which rank of how many, and how they shard the model ("fsdp=8,ep=4"). None: when a
                weight is a ``DTensor`` (or a ``Shard``), torch.distributed's and "explicit": ranks
                tell each other what each holds. Else 0 of 1. With several ranks ``directory`` is
                required
    replica_mesh, expert_owners, replica_experts
                engines that are parallel themselves, and where experts are: see weir.h; expert maps
                as JSON or as lists
    delivery    None (pull from host memory, push from a GPU), "pull" or "push"
    wire        "kernel" or "checkpoint"
    listen      host by which replicas reach this rank; None: 127.0.0.1 where the directory is
                there, else this machine's address on the way to the directory. Beyond loopback
                ``security`` is required, a certificate and a token or ``insecure``
    timeout     seconds: bounds every wait of this handle; lease: of its registration
    stream      CUDA: the stream whose work writes the weights, a torch.cuda.Stream or its number;
                None: the default stream
    progress    progress(stop, version, done_bytes, total_bytes), at the entry of every stop and
                while one takes long; must be quick, and must not call Weir

    The other options are ``weir_trainer_options``'. Raises :class:`weir.WeirError`: what C refuses.
    """

    _exit_order = 1

    def __init__(
        self,
        model: str,
        *,
        config: Any = None,
        directory: Optional[str] = None,
        run: Optional[str] = None,
        rank: Optional[int] = None,
        n_ranks: Optional[int] = None,
        mesh: Optional[str] = None,
        replica_mesh: Optional[str] = None,
        family: Optional[str] = None,
        layout: Optional[str] = None,
        conversion: Optional[str] = None,
        transport: Optional[str] = None,
        wire: str = "kernel",
        delivery: Optional[str] = None,
        timeout: float = 60.0,
        lease: float = 90.0,
        n_slots: int = 0,
        n_threads: int = 0,
        window_bytes: int = 0,
        keep_masters: bool = False,
        ignore: Iterable[str] = (),
        scan_first: bool = False,
        stream: Any = None,
        listen: Optional[str] = None,
        transport_directory: Optional[str] = None,
        expert_owners: Any = None,
        replica_experts: Any = None,
        security: Optional[Security] = None,
        traceparent: Optional[str] = None,
        progress: Optional[Progress] = None,
    ) -> None:
        super().__init__(f"trainer of {model}")
        options = abi.weir_trainer_options(size=ctypes.sizeof(abi.weir_trainer_options))
        options.model = arguments.text("model", model)
        options.config = arguments.config(config)
        options.wire = arguments.choice("wire", wire, WIRES)
        options.delivery = arguments.choice("delivery", delivery, _DELIVERIES)
        options.timeout_ms = arguments.milliseconds("timeout", timeout)
        options.lease_ms = arguments.milliseconds("lease", lease)
        options.window_bytes = arguments.whole("window_bytes", window_bytes, 2**64 - 1)
        options.n_slots = arguments.whole("n_slots", n_slots)
        options.n_threads = arguments.whole("n_threads", n_threads)
        options.keep_masters = keep_masters
        options.scan_first = scan_first
        options.ignore, options.n_ignore = arguments.texts("ignore", ignore)
        options.stream = getattr(stream, "cuda_stream", stream)
        options.expert_owners = arguments.json_text("expert_owners", expert_owners)
        options.replica_experts = arguments.json_text("replica_experts", replica_experts)
        options.progress = progress_callback(progress)
        for name, value in (
            ("run", run),
            ("replica_mesh", replica_mesh),
            ("family", family),
            ("layout", layout),
            ("conversion", conversion),
            ("transport", transport),
            ("transport_directory", transport_directory),
            ("traceparent", traceparent),
        ):
            setattr(options, name, arguments.text(name, value))
        options.security = arguments.security(security)
        self._options = options
        self._listen = listen
        arguments.text("listen", listen)
        self._given = (
            None if rank is None else arguments.whole("rank", rank),
            None if n_ranks is None else arguments.whole("n_ranks", n_ranks),
            arguments.text("mesh", mesh),
        )
        self._registration: Optional[Registration] = None
        self._embedded = Directory(security=security) if directory is None else None
        self._directory = directory if self._embedded is None else self._embedded.address
        options.directory = arguments.text("directory", self._directory)
        try:
            self._open(lambda: self._open_as(self._place(is_sharded=self._may_be_a_rank())))
        except BaseException:
            self._release()
            raise

    # ---- opening ---------------------------------------------------------------------------------

    def _may_be_a_rank(self) -> bool:
        """Before the weights are seen: whether to be one until they say otherwise, so that no rank
        is another one's namesake in the directory for a moment."""
        rank, _, mesh = self._given
        ranks = shards.torch_ranks()
        is_one_of_many = ranks is not None and ranks[1] > 1
        return mesh is not None or (rank is None and is_one_of_many and self._embedded is None)

    def _place(self, is_sharded: bool) -> Tuple[int, int, Optional[bytes]]:
        """(rank, n_ranks, mesh) as given, else torch.distributed's where weights are shards."""
        rank, n_ranks, mesh = self._given
        ranks = shards.torch_ranks() if is_sharded else None
        if is_sharded and mesh is None:
            mesh = _EXPLICIT
        if rank is None:
            rank = ranks[0] if ranks is not None else 0
        if n_ranks is None:  # 0: as many as the mesh has
            n_ranks = ranks[1] if ranks is not None else int(mesh == _EXPLICIT)
        return rank, n_ranks, mesh

    def _open_as(self, place: Tuple[int, int, Optional[bytes]]) -> int:
        rank, n_ranks, mesh = place
        if n_ranks > 1 and self._embedded is not None:
            raise CallError(
                f"directory is required: each of {n_ranks} ranks would have an embedded one of its "
                "own"
            )
        self._options.rank, self._options.n_ranks, self._options.mesh = rank, n_ranks, mesh
        out = ctypes.c_void_p()
        own = local_address.towards(self.directory) if self._listen is None else None
        self._options.listen = arguments.text("listen", own or self._listen)
        try:
            check(library().weir_trainer_open(ctypes.byref(self._options), ctypes.byref(out)))
        except CallError as error:
            if own is None or error.status != Status.ERR_REFUSED or own not in str(error):
                raise
            raise _not_reachable(error, self.directory, own) from None
        assert out.value is not None
        self._opened_as = place
        return out.value

    def _become(self, weights: Sequence[Tuple[str, Any]]) -> None:
        """Only weights say whether this is a rank that has shards, and a handle is of one kind."""
        was_sharded = self._registration is not None and self._registration.is_sharded
        is_sharded = self._given[2] is not None or any(shards.is_sharded(w) for _, w in weights)
        place = self._place(is_sharded or was_sharded)
        if place == self._opened_as:
            return
        if self._registration is not None:
            raise CallError(
                f"{self._title}: weights that are shards, after weights that were whole: close it "
                "and open another"
            )
        self._replace(lambda: self._open_as(place))

    @property
    def directory(self) -> str:
        """ "HOST:PORT" of its directory, also of the embedded one: what replicas are told."""
        assert self._directory is not None
        return self._directory

    # ---- registering -----------------------------------------------------------------------------

    def register(
        self, weights: Union[Mapping[str, Any], Iterable[Tuple[str, Any]], Any]
    ) -> None:
        """All weights of the model: a torch module, a mapping, or pairs of name and array.

        Arrays are what :func:`weir.tensor` takes, ``DTensor`` and :class:`weir.Shard` too; names
        are those of Hugging Face or another convention that the family knows. A module gives its
        parameters and persistent buffers under the names of ``state_dict()``, those that are tied
        once; what torch.compile() puts into names is taken out. The memory must stay until the next
        registration or ``close()``, which the objects that are kept see to.

        With the same names, dtypes and shapes it only takes the new addresses; another layout is
        planned afresh once nobody reads the old one. ERR_INVALID names an array that cannot be
        taken as it is, ERR_LAYOUT a weight that is missing, too many, or of another shape. With
        shards it waits, at most ``timeout``, until all ranks have registered.
        """
        if is_module(weights):
            shards.refuse_flat_parameters(weights)  # whose state_dict() would gather the model
        named = named_weights(weights)
        self._require_open()
        self._become(named)
        registration = Registration(named, is_sharded=self._opened_as[2] is not None)
        self._run("register", lambda pointer: self._register(pointer, registration))

    def _register(self, pointer: int, registration: Registration) -> None:
        if registration.is_sharded:
            status = library().weir_trainer_register_shards(
                pointer, registration.array, registration.n
            )
        else:
            status = library().weir_trainer_register(pointer, registration.array, registration.n)
        check(status)
        registration.note_told()
        self._registration = registration

    def _publish(self, pointer: int, version: int) -> Report:
        registration = self._registration
        if registration is not None:
            again = registration.moved()
            if again is not None:
                self._register(pointer, again)
        report = abi.weir_report()
        check(library().weir_trainer_publish(pointer, version, ctypes.byref(report)))
        return Report.of(report)

    # ---- publishing ------------------------------------------------------------------------------

    def publish(self, version: int) -> Report:
        """Converts what this rank owns, seals and publishes it as ``version``, which must be
        greater than the last. Blocks until this rank's part is in; when no slot is free, until the
        oldest version is read no more, at most ``timeout``.

        Looks at the address of every registered tensor again: an optimizer may have replaced
        storage. Shapes and dtypes stay until the next :meth:`register`. On failure the version is
        not published, and the rank is good for the next call.
        """
        number = arguments.whole("version", version, abi.WEIR_LATEST - 1)
        return self._run("publish", lambda pointer: self._publish(pointer, number))

    async def publish_async(self, version: int) -> Report:
        """:meth:`publish` in a thread of the handle; cancelling the task cancels it."""
        number = arguments.whole("version", version, abi.WEIR_LATEST - 1)
        return await self._run_async("publish", lambda pointer: self._publish(pointer, number))

    def wait(self, version: int, n_replicas: int, timeout: Optional[float] = None) -> None:
        """Blocks until ``n_replicas`` replicas hold ``version``, at most ``timeout`` seconds (None:
        the handle's). Delivery "push" and a window send it from within this call: until it returns
        the weights must not change. :class:`weir.TimedOut` says who has it and who has not.
        """
        self._run("wait", self._waiting(version, n_replicas, timeout))

    async def wait_async(
        self, version: int, n_replicas: int, timeout: Optional[float] = None
    ) -> None:
        """:meth:`wait` in a thread of the handle; cancelling the task cancels it."""
        await self._run_async("wait", self._waiting(version, n_replicas, timeout))

    def _waiting(
        self, version: int, n_replicas: int, timeout: Optional[float]
    ) -> Callable[[int], None]:
        number = arguments.whole("version", version, abi.WEIR_LATEST - 1)
        n = arguments.whole("n_replicas", n_replicas)
        timeout_ms = 0 if timeout is None else arguments.milliseconds("timeout", timeout)

        def work(pointer: int) -> None:
            self._check_sendable()
            check(library().weir_trainer_wait(pointer, number, n, timeout_ms))

        return work

    def withdraw(
        self, version: int, why: Optional[str] = None, timeout: Optional[float] = None
    ) -> None:
        """Gives up a version that this rank has published: nobody is given it from then on, and
        whoever waits for it, or asks for it, hears so at once, and why. The first rank ends it for
        all; each withdraws its own. Waits, at most ``timeout`` seconds (None: the handle's), for
        those who are in the midst of its bytes; :class:`weir.TimedOut` names them, and the same
        call goes on.
        """
        self._run("withdraw", self._withdrawing(version, why, timeout))

    async def withdraw_async(
        self, version: int, why: Optional[str] = None, timeout: Optional[float] = None
    ) -> None:
        """:meth:`withdraw` in a thread of the handle; cancelling the task cancels it."""
        await self._run_async("withdraw", self._withdrawing(version, why, timeout))

    @staticmethod
    def _withdrawing(
        version: int, why: Optional[str], timeout: Optional[float]
    ) -> Callable[[int], None]:
        number = arguments.whole("version", version, abi.WEIR_LATEST - 1)
        reason = arguments.text("why", why)
        timeout_ms = 0 if timeout is None else arguments.milliseconds("timeout", timeout)

        def work(pointer: int) -> None:
            check(library().weir_trainer_withdraw(pointer, number, reason, timeout_ms))

        return work

    def _check_sendable(self) -> None:
        """A wait that sends reads the memory that publish() was told of."""
        registration, options = self._registration, self._options
        if registration is None:
            return
        pushes = options.delivery == abi.WEIR_DELIVERY_PUSH or (
            options.delivery == abi.WEIR_DELIVERY_DEFAULT and registration.is_on_gpu
        )
        if (pushes or options.window_bytes > 0) and registration.has_moved():
            raise CallError(
                f"{self._title}: weights were replaced between publish() and wait(), which sends "
                "them: publish another version"
            )

    # ---- closing ---------------------------------------------------------------------------------

    def _close_pointer(self, pointer: int) -> None:
        library().weir_trainer_close(pointer)

    def _cancel_pointer(self, pointer: int) -> None:
        library().weir_trainer_cancel(pointer)

    def _uncancel_pointer(self, pointer: int) -> None:
        library().weir_trainer_uncancel(pointer)

    def _release(self) -> None:
        self._registration = None
        if self._embedded is not None:
            self._embedded.close()
