# SPDX-License-Identifier: Apache-2.0
"""What the hooks of frameworks share: one trainer that sends whole tensors, replicas that receive.

A framework calls its hook on every rank, hands the sender a stream of (name, tensor) and expects of
the receiver either such a stream or an engine that has changed. `Sender` and `Receiver` are these
two; they stay open from version to version, so that the second one plans and allocates nothing.

Two ways to receive:

``mode="checkpoint"``  bf16 under Hugging Face's names arrives in host memory of the receiver's own,
                       verified, and is handed to the engine's loader from there: any engine, any
                       quantisation, one more copy of the model in host memory per receiver.
``mode="kernel"``      the bytes that the engine's kernels read arrive in its live parameters. There
                       is nothing left to load. Who receives must then be the engine's worker, and
                       say where its parameters are (`parameters`), or have it install
                       (`installer`).

Versions  begin at 1 and always grow. A framework's step is the version where it grows too; a step
that is sent again, goes back or is not said gets the next number (`next_version`). Both sides count
alike, from the last number that the sender has told them.
"""

from __future__ import annotations

import importlib
import inspect
from dataclasses import dataclass, fields
from typing import Any, AsyncIterator, Callable, Dict, Iterator, Mapping, Optional, Tuple, Union

from weir.errors import CallError
from weir.frameworks.arena import Arena, as_torch

Named = Tuple[str, Any]
MODES = ("checkpoint", "kernel")


def next_version(step: Optional[int], last: int) -> int:
    """The version that follows `last`: the step itself where that is more."""
    if step is not None and (isinstance(step, bool) or not isinstance(step, int) or step < 0):
        raise CallError(f"step {step!r}: a number from 0 on is wanted")
    return last + 1 if step is None else max(step, last + 1)


def mesh_workers(mesh: Optional[str]) -> int:
    """How many workers one engine of this mesh has: "tp=4,ep=8" has 4."""
    n_workers = 1
    for part in (mesh or "").split(","):
        axis, _, size = part.partition("=")
        if axis.strip() in ("tp", "dp", "pp"):
            n_workers *= int(size)
    return n_workers


def named_object(path: str) -> Any:
    """What "package.module:name" is. The module is imported."""
    module, colon, name = path.partition(":")
    if not colon or not module or not name:
        raise CallError(f"'{path}': package.module:name is wanted")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as problem:
        raise CallError(f"'{path}': {problem}") from problem


@dataclass(frozen=True)
class Options:
    """What both sides are told: one and the same section of the framework's configuration.

    Those that `weir.Trainer` and `weir.Replica` have too mean the same. Of the others:
    mode         "checkpoint" or "kernel", above
    directory    of a `weir serve`; None: the sender runs one, which only this machine reaches
                 unless `listen` says its address
    listen       of the sender alone: its address for the others
    parameters   kernel: "package.module:function", or the function, whose result is the mapping of
                 live parameters by name
    installer    kernel: the same for a function (version, directory) that has the engine install,
                 wherever that runs; it returns, or is awaited, when all workers hold the version
    replica_mesh kernel: of the engine that each receiver is a worker of
    worker       kernel: its number there; None: the receiver's rank modulo the engine's workers
    security     a `weir.Security`, or its fields
    borrow       the sender copies nothing: tensors stay where they are until all have the version
    """

    model: str = "policy"
    mode: str = "checkpoint"
    config: Union[str, Mapping[str, Any], None] = None
    directory: Optional[str] = None
    run: Optional[str] = None
    family: Optional[str] = None
    layout: Optional[str] = None
    conversion: Optional[str] = None
    transport: Optional[str] = None
    transport_directory: Optional[str] = None
    listen: Optional[str] = None
    replica_mesh: Optional[str] = None
    worker: Optional[int] = None
    experts: Optional[str] = None
    window_bytes: int = 0
    n_threads: int = 0
    timeout: float = 300.0
    install: str = "staged"
    extras: str = "refuse"
    borrow: bool = False
    parameters: Union[str, Callable[[], Mapping[str, Any]], None] = None
    installer: Union[str, Callable[[int, str], Any], None] = None
    security: Any = None

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> "Options":
        """Reads a framework's section; what is no option is named."""
        known = [field.name for field in fields(cls)]
        unknown = sorted(set(given) - set(known))
        if unknown:
            raise CallError(
                f"weir has no option {', '.join(unknown)}; there are {', '.join(known)}"
            )
        options = cls(**given)
        if options.mode not in MODES:
            raise CallError(f"mode '{options.mode}': there are {' and '.join(MODES)}")
        if options.mode == "checkpoint" and options.config is None:
            raise CallError("config: the model's config.json says which tensors a checkpoint has")
        if options.mode == "checkpoint" and (options.parameters or options.installer):
            raise CallError("parameters and installer are of mode 'kernel'; mode is 'checkpoint'")
        return options

    @property
    def replica_workers(self) -> int:
        """Of one engine, as far as a trainer counts them: 1 where a checkpoint travels."""
        return mesh_workers(self.replica_mesh) if self.mode == "kernel" else 1

    def secured(self) -> Any:
        """`security`, of which a configuration file says the fields."""
        import weir

        given = self.security
        return weir.Security(**given) if isinstance(given, Mapping) else given

    def shared(self) -> Dict[str, Any]:
        """What a trainer and a replica are told alike. A checkpoint is bf16 under its own names,
        which is a layout like any other: neither side has anything to convert behind it."""
        names = ("config", "run", "family", "transport", "transport_directory", "window_bytes",
                 "n_threads", "timeout")
        told = {name: getattr(self, name) for name in names}
        told["security"] = self.secured()
        is_kernel = self.mode == "kernel"
        told["layout"] = self.layout if is_kernel else "checkpoint"
        told["conversion"] = self.conversion if is_kernel else "bf16_cast"
        return told


async def _each(weights: Any) -> AsyncIterator[Named]:
    """Of a generator or an asynchronous one, in this thread: reading it may be a collective."""
    if hasattr(weights, "__aiter__"):
        async for item in weights:
            yield item
        return
    for item in weights:
        yield item


async def drain(weights: Any) -> int:
    """Reads a stream to its end and keeps nothing: a rank that sends nothing still takes part in
    the collectives that make the tensors. Returns how many there were."""
    n_tensors = 0
    async for _ in _each(weights):
        n_tensors += 1
    return n_tensors


class Sender:
    """The one rank that sends: a `weir.Trainer`, and the memory of what it sends."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.last = 0
        self._arena = Arena(options.borrow)
        self._directory: Any = None
        self._trainer: Any = None

    def open(self) -> str:
        """Opens a directory where none was named. Returns "HOST:PORT" of the one that there is."""
        import weir

        if self.options.directory is not None:
            return self.options.directory
        if self._directory is None:
            self._directory = weir.Directory(
                f"{self.options.listen or '127.0.0.1'}:0", security=self.options.secured()
            )
        return str(self._directory.address)

    def _open_trainer(self) -> Any:
        import weir

        is_kernel = self.options.mode == "kernel"
        return weir.Trainer(
            self.options.model,
            directory=self.open(),
            replica_mesh=self.options.replica_mesh if is_kernel else None,
            replica_experts=self.options.experts if is_kernel else None,
            listen=self.options.listen,
            **self.options.shared(),
        )

    async def send(self, weights: Any, version: int, n_workers: int) -> Dict[str, float]:
        """Publishes what `weights` yields as `version` and waits until n_workers have installed it.

        The stream is read in this thread; publishing and waiting leave the event loop free.
        Whatever fails, the next version has another number. Returns figures for the framework's
        metrics.
        """
        n_engines, rest = divmod(n_workers, self.options.replica_workers)
        if rest:
            raise CallError(
                f"{n_workers} receivers: engines of mesh '{self.options.replica_mesh}' have "
                f"{self.options.replica_workers} workers each"
            )
        if version <= self.last:
            raise CallError(f"version {version} does not grow: {self.last} was sent before")
        self.last = version
        self._arena.begin()
        async for name, tensor in _each(weights):
            self._arena.take(name, tensor)
        if self._trainer is None:
            self._trainer = self._open_trainer()
        self._trainer.register(self._arena.tensors())
        report = await self._trainer.publish_async(version)
        n_wanted = n_engines if self.options.window_bytes else n_workers
        if n_wanted:
            await self._trainer.wait_async(version, n_wanted)
        return {
            "weir/version": float(version),
            "weir/tensors": float(report.n_tensors),
            "weir/bytes": float(report.n_bytes),
            "weir/publish_seconds": float(report.total_seconds),
        }

    def close(self) -> None:
        """Takes back what was published and gives all memory back. May be called twice."""
        for handle in (self._trainer, self._directory):
            if handle is not None:
                handle.close()
        self._trainer = self._directory = None
        self._arena.clear()


class Receiver:
    """One receiving worker: a `weir.Replica` over the engine's parameters, or its own memory."""

    def __init__(self, options: Options, rank: int = 0) -> None:
        self.options = options
        self.rank = rank
        self.directory: Optional[str] = None
        self._replica: Any = None
        self._installed = 0

    def open(self, directory: str, rank: int) -> None:
        """Joins the sender's directory. Another one than before, as after a restart of the sender,
        is joined anew, with the same memory where that is the engine's."""
        if (self.directory, self.rank) != (directory, rank):
            self.close()
        self.directory, self.rank = directory, rank

    @property
    def version(self) -> int:
        """The version that is held; 0: none."""
        return self._installed

    def _worker(self) -> Tuple[int, str]:
        """The number of this worker in its engine, and that engine's name."""
        n_workers = self.options.replica_workers
        worker = self.options.worker
        if worker is None:
            worker = self.rank % n_workers
        return worker, f"rollout-{self.rank // n_workers}"

    def _open_replica(self, directory: str) -> Any:
        import weir

        is_kernel = self.options.mode == "kernel"
        worker, name = self._worker()
        replica = weir.Replica(
            self.options.model,
            directory=directory,
            name=name,
            install=self.options.install,
            mesh=self.options.replica_mesh if is_kernel else None,
            worker=worker if is_kernel else 0,
            experts=self.options.experts if is_kernel else None,
            **self.options.shared(),
        )
        try:
            if is_kernel:
                replica.register(self._parameters(), extras=self.options.extras)
            else:
                replica.allocate()
        except BaseException:
            replica.close()
            raise
        return replica

    def _parameters(self) -> Mapping[str, Any]:
        given = self.options.parameters
        if given is None:
            raise CallError(
                "mode 'kernel': neither 'parameters', which gives the engine's live parameters, "
                "nor 'installer', which has it install, is said; mode 'checkpoint' needs neither"
            )
        found: Mapping[str, Any] = (named_object(given) if isinstance(given, str) else given)()
        return found

    async def install(self, version: int) -> None:
        """Returns once `version` is held whole; on failure the one before is, or none (direct)."""
        if self.directory is None:
            raise CallError("no sender is known: init_process_group() is missing")
        if self.options.installer is not None:
            given = self.options.installer
            installer = named_object(given) if isinstance(given, str) else given
            outcome = installer(version, self.directory)
            if inspect.isawaitable(outcome):
                await outcome
        else:
            if self._replica is None:
                self._replica = self._open_replica(self.directory)
            await self._replica.install_async(version)
        self._installed = version

    def tensors(self) -> Iterator[Named]:
        """What is held, for an engine's loader: torch tensors over this worker's memory, which the
        next install() overwrites. Nothing in kernel mode."""
        if self.options.mode == "kernel":
            return
        if self._installed == 0:
            raise CallError("no version has been received yet")
        for name, tensor in self._replica.parameters.items():
            yield name, as_torch(tensor)

    def close(self) -> None:
        """Leaves the directory; memory of its own goes. May be called twice."""
        if self._replica is not None:
            self._replica.close()
        self._replica = None
        self._installed = 0
