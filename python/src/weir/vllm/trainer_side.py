# SPDX-License-Identifier: Apache-2.0
"""The trainer's half of vLLM's interfaces: a source of weights becomes versions of a weir.Trainer.

Takes whatever a version of vLLM calls a source: local pieces with the mesh that they are cut by
(they are published as they lie), or whole tensors one after the other. It drives one engine's
workers through the client that vLLM brings; who has several engines hands the client all of them.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Any, Dict, Iterable, List, Mapping, Optional, Sequence, Tuple, Union

from weir import Report, Security, Shard, Trainer
from weir.engines.worker_settings import SECURITY_FIELDS

Piece = Tuple[str, Any]


@dataclass
class TrainerSettings:
    """What this rank publishes, and for whom. Times are seconds, sizes bytes."""

    model: str
    config: Union[str, Dict[str, Any], None] = None
    """The engine's config.json: a path, or its content."""
    directory: Optional[str] = None
    """None: the sender has one within itself."""
    run: Optional[str] = None
    n_ranks: int = 1
    n_replicas: int = 1
    """Engines that a version is sent to."""
    replica_mesh: Optional[str] = None
    """How each of them is parallel, "tp=4,ep=8"; None: one worker."""
    replica_experts: Optional[str] = None
    conversion: Optional[str] = None
    family: Optional[str] = None
    layout: Optional[str] = None
    transport: Optional[str] = None
    transport_directory: Optional[str] = None
    listen: Optional[str] = None
    delivery: Optional[str] = None
    wire: str = "kernel"
    timeout: float = 60.0
    lease: float = 90.0
    window_bytes: int = 0
    keep_masters: bool = False
    ignore: List[str] = field(default_factory=list)
    first_version: int = 1
    security: Optional[Dict[str, Any]] = field(default=None, repr=False)
    worker: Dict[str, Any] = field(default_factory=dict)
    """More of weir.vllm.settings.Settings for the workers, over what follows from these."""

    def __post_init__(self) -> None:
        if self.n_ranks < 1 or self.first_version < 1:
            raise ValueError(
                "n_ranks and first_version: expected 1 or more, got "
                f"{self.n_ranks} and {self.first_version}"
            )
        unknown = sorted(set(self.security or {}) - set(SECURITY_FIELDS))
        if unknown:
            raise ValueError(f"security: expected some of {SECURITY_FIELDS}, got {unknown}")


# ---- what a source holds here --------------------------------------------------------------------


def _coordinates(index: int, mesh_shape: Sequence[int]) -> List[int]:
    """Of the index-th rank of a mesh, slowest axis first."""
    places: List[int] = []
    for size in reversed(list(mesh_shape)):
        index, place = divmod(index, size)
        places.insert(0, place)
    return places


def box_of(meta: Any, rank: int) -> Tuple[List[int], List[int]]:
    """The lowest and highest corner of what `rank` holds of a parameter, by its mesh and
    placements: cut as torch.chunk cuts, the outer axis of the mesh first."""
    lo, hi = [0] * len(meta.shape), list(meta.shape)
    if not meta.placements:
        return lo, hi
    places = _coordinates(list(meta.owners).index(rank), meta.mesh_shape)
    for place, n_chunks, placement in zip(places, meta.mesh_shape, meta.placements):
        dim = getattr(placement, "dim", None)
        if dim is not None:
            length = -(-(hi[dim] - lo[dim]) // n_chunks)
            lo[dim], hi[dim] = (
                min(hi[dim], lo[dim] + place * length),
                min(hi[dim], lo[dim] + (place + 1) * length),
            )
    return lo, hi


def _local_pieces(source: Any, rank: int) -> List[Piece]:
    metas = {meta.name: meta for meta in source.metadata}
    pieces: List[Piece] = []
    for name, local in source.iter_local():
        lo, hi = box_of(metas[name], rank)
        whole = tuple(metas[name].shape)
        is_whole = tuple(hi) == whole and not any(lo)
        pieces.append((name, local if is_whole else Shard(local, whole, tuple(lo), tuple(hi))))
    return pieces


def weights_of(source: Any, rank: int) -> Any:
    """What weir.Trainer.register() takes, of any source.

    A source over a module gives the module: its parameters are published where they lie, shards
    as shards. Otherwise the pieces that it has here, or whole tensors, which are kept until the
    next version.
    """
    module = getattr(source, "_module", None)
    if callable(getattr(module, "named_parameters", None)):
        return module
    implements_local = getattr(source, "implements_iter_local", None)
    if implements_local is not None and implements_local():
        return _local_pieces(source, rank)
    whole = source.iter_full() if hasattr(source, "iter_full") else source
    return whole if isinstance(whole, Mapping) else [(n, t) for n, t in whole if t is not None]


# ---- versions ------------------------------------------------------------------------------------


class Sender:
    """One trainer rank. Rank 0 drives the engines through `client`; each rank publishes its part.

    Raises weir.WeirError: what the trainer or its directory refuses.
    """

    def __init__(self, settings: TrainerSettings, rank: int, client: Any, source: Any) -> None:
        s = settings
        self._settings, self._rank = s, rank
        self._client, self._source = client, source
        self._version = s.first_version - 1
        self.trainer = Trainer(
            s.model,
            config=s.config,
            directory=s.directory,
            run=s.run,
            rank=rank,
            n_ranks=s.n_ranks,
            mesh="explicit" if s.n_ranks > 1 else None,
            replica_mesh=s.replica_mesh,
            replica_experts=s.replica_experts,
            conversion=s.conversion,
            family=s.family,
            layout=s.layout,
            transport=s.transport,
            transport_directory=s.transport_directory,
            listen=s.listen,
            delivery=s.delivery,
            wire=s.wire,
            timeout=s.timeout,
            lease=s.lease,
            window_bytes=s.window_bytes,
            keep_masters=s.keep_masters,
            ignore=s.ignore,
            security=Security(**s.security) if s.security else None,
        )

    def worker_info(self) -> Dict[str, Any]:
        """The init info of the engines' workers: JSON values."""
        s = self._settings
        info: Dict[str, Any] = {
            "directory": self.trainer.directory,
            "model": s.model,
            "wire": s.wire,
            "timeout": s.timeout,
        }
        for name in ("run", "family", "layout", "transport", "transport_directory"):
            if getattr(s, name) is not None:
                info[name] = getattr(s, name)
        return {**info, **s.worker}

    def connect(self) -> None:
        """Rank 0: tells the engines' workers whom to follow."""
        if self._rank == 0:
            self._client.init_weight_transfer_engine(self.worker_info())

    def _drive(self, version: int, failures: List[BaseException]) -> None:
        try:
            self._client.start_weight_update()
            self._client.update_weights({"version": version})
            self._client.finish_weight_update(str(version))
        except BaseException as error:
            failures.append(error)
            self.trainer.cancel()

    def send(self) -> Report:
        """Publishes the next version and returns once n_replicas engines hold it.

        Called on every rank. Raises what an engine answered, or weir.TimedOut: who is missing.
        """
        version = self._version + 1
        self.trainer.register(weights_of(self._source, self._rank))
        report = self.trainer.publish(version)
        failures: List[BaseException] = []
        drive = threading.Thread(target=self._drive, args=(version, failures), daemon=True)
        if self._rank == 0:
            drive.start()
        try:
            self.trainer.wait(version, self._settings.n_replicas)
        except Exception:
            if failures:
                raise failures[0] from None
            raise
        if self._rank == 0:
            drive.join(self._settings.timeout)
        if failures:
            raise failures[0]
        self._version = version
        return report

    def close(self) -> None:
        self.trainer.close()


def send_with(trainer_args: Mapping[str, Any], iterator: Iterable[Piece]) -> None:
    """For interfaces whose trainer side is a static method: publishes one version of the caller's
    trainer, {"trainer": weir.Trainer, "version": int, "n_replicas": int = 0}, and waits for as many
    engines, which the caller drives meanwhile."""
    missing = [name for name in ("trainer", "version") if name not in trainer_args]
    if missing:
        raise ValueError(f"trainer_args: missing {', '.join(missing)}")
    trainer, version = trainer_args["trainer"], trainer_args["version"]
    trainer.register(list(iterator))
    trainer.publish(version)
    if trainer_args.get("n_replicas"):
        trainer.wait(version, trainer_args["n_replicas"])
