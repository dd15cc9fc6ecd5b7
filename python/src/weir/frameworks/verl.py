# SPDX-License-Identifier: Apache-2.0
"""verl's checkpoint engine: Weir as a backend of `checkpoint_engine`.

    actor_rollout_ref.rollout.checkpoint_engine:
      backend: weir
      custom_backend_module: weir.frameworks.verl
      engine_kwargs:
        weir: {model: policy, config: /models/qwen/config.json}

Importing this module registers the backend where verl is installed; without verl the class is a
plain one. All options are those of `weir.frameworks.channel.Options`.

verl calls on every rank, for each version: prepare(), build_topology() once for all, then
init_process_group(), send_weights() on the actor's ranks and receive_weights() on the rollout's at
the same time, and finalize(). The actor's rank 0 sends, for verl gathers every tensor on every
rank; the others read their stream to its end.

What receive_weights() yields: in mode "checkpoint" every tensor of the checkpoint, bf16, once all
of them are here and verified, for the engine's own loader; in mode "kernel" nothing, for the engine
holds the version when the stream ends. verl's vLLM worker runs process_weights_after_loading()
behind every stream, an empty one too: of kernels that repack weights there, mode "kernel" is not
for that worker.
"""

from __future__ import annotations

from typing import Any, AsyncIterator, Dict, List, Optional, Sequence, Tuple

from weir.errors import CallError
from weir.frameworks.channel import Options, Receiver, Sender, drain, next_version

try:
    from verl.checkpoint_engine.base import CheckpointEngineRegistry as _Registry
    from verl.checkpoint_engine.base import CheckpointEngineWithCache as _Base
except ImportError:
    _Registry, _Base = None, object

SENDER, IDLE, RECEIVER = "sender", "idle", "receiver"
Kwargs = Dict[str, List[Any]]


class WeirCheckpointEngine(_Base):  # type: ignore[misc,unused-ignore]
    """A rank of verl's actor or rollout. It stays open from step to step: finalize() ends a step,
    and close() the engine."""

    wire_format = "named_tensors"

    def __init__(self, bucket_size: int = 0, is_master: bool = False, **options: Any) -> None:
        """`bucket_size` is verl's, and says nothing here: Weir moves what a layer has at once.
        `is_master` is said of the actor's rank 0. Options: `weir.frameworks.channel.Options`."""
        self.bucket_size = bucket_size
        self.is_master = is_master
        self.options = Options.of(options)
        self._sender = Sender(self.options) if is_master else None
        self._receiver: Optional[Receiver] = None
        self._role = IDLE
        self._last = 0
        self._n_workers = 0

    def prepare(self) -> Dict[str, Any]:
        """Of the sender: where its directory is, and the last version. Of all others: nothing."""
        if self._sender is None:
            return {}
        return {"directory": self._sender.open(), "last": self._sender.last}

    @classmethod
    def build_topology(
        cls, actor_wg_world_size: int, rollout_world_size: int, metadata: Sequence[Dict[str, Any]]
    ) -> Tuple[Kwargs, Kwargs]:
        """Keyword arguments of init_process_group(): one value per rank of either group."""
        n_all = actor_wg_world_size + rollout_world_size
        if actor_wg_world_size < 1 or len(metadata) != n_all:
            raise CallError(
                f"{len(metadata)} ranks were prepared, {actor_wg_world_size} of the actor and "
                f"{rollout_world_size} of the rollout are there"
            )
        senders = [rank for rank, told in enumerate(metadata) if told and "directory" in told]
        if senders != [0]:
            raise CallError(f"ranks {senders} say that they send: rank 0 of the actor alone does")
        told = {"master": dict(metadata[0]), "n_workers": rollout_world_size}

        def of_all(n_ranks: int, roles: List[str]) -> Kwargs:
            kwargs: Kwargs = {name: [value] * n_ranks for name, value in told.items()}
            kwargs["role"] = roles
            kwargs["rank"] = list(range(n_ranks))
            return kwargs

        actor_roles = [SENDER] + [IDLE] * (actor_wg_world_size - 1)
        return (
            of_all(actor_wg_world_size, actor_roles),
            of_all(rollout_world_size, [RECEIVER] * rollout_world_size),
        )

    def init_process_group(
        self, role: str, rank: int, master: Dict[str, Any], n_workers: int
    ) -> None:
        """Takes what build_topology() says of this rank. Nobody is waited for."""
        if role not in (SENDER, IDLE, RECEIVER):
            raise CallError(f"role '{role}': there are {SENDER}, {IDLE} and {RECEIVER}")
        if (role == SENDER) != self.is_master:
            raise CallError(f"rank {rank} is told to be {role}; is_master is {self.is_master}")
        self._role, self._n_workers = role, n_workers
        self._last = int(master["last"])
        if role == RECEIVER:
            if self._receiver is None:
                self._receiver = Receiver(self.options, rank)
            self._receiver.open(str(master["directory"]), rank)

    def finalize(self) -> None:
        """Ends a step. What the next one needs again stays: memory, connections, plans."""
        self._role = IDLE

    def close(self) -> None:
        """Gives everything back."""
        for side in (self._sender, self._receiver):
            if side is not None:
                side.close()

    async def send_weights(
        self, weights: Any, global_steps: Optional[int] = None
    ) -> Optional[Dict[str, float]]:
        """Sends (name, tensor) pairs as one version, and returns when all workers have installed
        it: the sender's figures, None of the other ranks. A tensor may be overwritten once the next
        one is asked for. Raises WeirError: of one that never came, TimedOut names it."""
        if self._role != SENDER or self._sender is None:
            await drain(weights)
            return None
        self._last = next_version(global_steps, max(self._last, self._sender.last))
        return await self._sender.send(weights, self._last, self._n_workers)

    async def receive_weights(
        self, global_steps: Optional[int] = None
    ) -> AsyncIterator[Tuple[str, Any]]:
        """Installs the version of this step, then yields what the engine's loader is to load: see
        above. Tensors are torch's, valid until the next step. Raises WeirError before the first
        one: an engine never gets a part of a version."""
        if self._role != RECEIVER or self._receiver is None:
            raise CallError(f"this rank is {self._role}, not {RECEIVER}: it receives nothing")
        self._last = next_version(global_steps, self._last)
        await self._receiver.install(self._last)
        for item in self._receiver.tensors():
            yield item

    async def get_weights(self) -> AsyncIterator[Tuple[str, Any]]:
        """Yields what was received last, again, out of this worker's memory; nothing in mode
        "kernel". ERR_INVALID when no version has been received."""
        if self._receiver is None:
            raise CallError("no version has been received yet")
        for item in self._receiver.tensors():
            yield item


if _Registry is not None:
    _Registry.register("weir")(WeirCheckpointEngine)
