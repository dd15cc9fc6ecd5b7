# SPDX-License-Identifier: Apache-2.0
"""NeMo-RL's checkpoint engine: Weir as `refit_transport`.

    policy:
      generation:
        colocated: {enabled: false}
        refit_transport: "weir.frameworks.nemo_rl:WeirRefit"
        refit_cfg:
          "weir.frameworks.nemo_rl:WeirRefit": {model: policy, config: /models/qwen/config.json}

All options are those of `weir.frameworks.channel.Options`. The class needs nothing of NeMo-RL.

NeMo-RL makes one engine in every policy worker and in every generation worker. prepare() is called
on all of them, and init_policy_process_group() or init_rollout_process_group() on each, once; from
then on each refit is one send_weights() on every policy worker and one receive_weight_batches() on
every generation worker, at the same time. Policy rank 0 sends; the others read their stream to its
end.

What receive_weight_batches() yields: in mode "checkpoint" batches of at most `bucket_size` bytes,
once all tensors are here and verified; in mode "kernel" nothing, for the engine holds the version
when the stream ends. NeMo-RL says no step: versions are counted, on both sides from the number that
prepare() tells, once per refit whether it succeeds or not.
"""

from __future__ import annotations

from typing import Any, AsyncIterator, Dict, List, Mapping, Optional, Sequence, Tuple

from weir.errors import CallError
from weir.frameworks.channel import Options, Receiver, Sender, drain

Batch = List[Tuple[str, Any]]

try:
    from nemo_rl.utils.checkpoint_engines.base import CheckpointEngine as _Base
except ImportError:
    _Base = object


def _metadata_of_sender(metadata: Sequence[Any], train_world_size: int) -> Mapping[str, Any]:
    """What policy rank 0 has prepared: the first of all, which are the policy's in rank order."""
    if train_world_size < 1 or len(metadata) < train_world_size:
        raise CallError(
            f"metadata of {len(metadata)} workers came; the policy alone has {train_world_size}"
        )
    first = metadata[0]
    if not isinstance(first, Mapping) or "directory" not in first or "last" not in first:
        raise CallError("policy rank 0 has prepared no Weir directory: every worker runs prepare()")
    return first


class WeirRefit(_Base):  # type: ignore[misc,unused-ignore]
    """One worker of NeMo-RL's policy or generation. Options: `weir.frameworks.channel.Options`;
    `release_after_refit` is NeMo-RL's own, which it asks finalize() for."""

    cleanup_after_load = True
    shard_hf_weights = False
    shard_expert_weights = False

    def __init__(self, bucket_size: int, release_after_refit: bool = False, **options: Any) -> None:
        if bucket_size < 1:
            raise CallError(f"bucket_size {bucket_size}: bytes, above 0, are wanted")
        self.bucket_size = bucket_size
        self.release_after_refit = release_after_refit
        self.options = Options.of(options)
        self._sender: Optional[Sender] = None
        self._receiver: Optional[Receiver] = None
        self._last = 0
        self._n_workers: Optional[int] = None

    def prepare(self) -> Dict[str, Any]:
        """Where a trainer of this worker would be found, should it turn out to be the sender:
        nobody knows yet who is. A directory of its own is closed again where it is not."""
        if self._sender is None and self._receiver is None:
            self._sender = Sender(self.options)
        if self._sender is None:
            return {}
        return {"directory": self._sender.open(), "last": self._last}

    def get_target_weight_layout(self) -> None:
        """None: the sender is handed whole tensors, and Weir cuts them for each worker."""
        return None

    def init_policy_process_group(
        self,
        *,
        worker_rank: int,
        train_world_size: int,
        rollout_world_size: int,
        metadata: List[Any],
    ) -> None:
        """Makes this the policy worker `worker_rank`. Nobody is waited for."""
        first = _metadata_of_sender(metadata, train_world_size)
        self._last, self._n_workers = int(first["last"]), rollout_world_size
        if worker_rank != 0:
            self._close_sender()
        elif self._sender is None:
            raise CallError("policy rank 0 was not prepared")

    def init_rollout_process_group(
        self,
        *,
        rollout_rank: int,
        train_world_size: int,
        rollout_world_size: int,
        metadata: List[Any],
    ) -> None:
        """Makes this the generation worker `rollout_rank`. Nobody is waited for."""
        if not 0 <= rollout_rank < rollout_world_size:
            raise CallError(f"rollout rank {rollout_rank} of {rollout_world_size}")
        first = _metadata_of_sender(metadata, train_world_size)
        self._close_sender()
        self._last, self._n_workers = int(first["last"]), None
        if self._receiver is None:
            self._receiver = Receiver(self.options, rollout_rank)
        self._receiver.open(str(first["directory"]), rollout_rank)

    def finalize(self) -> None:
        """Leaves the group and gives all memory back; prepare() begins anew."""
        self._close_sender()
        if self._receiver is not None:
            self._receiver.close()
        self._receiver, self._n_workers = None, None

    def _close_sender(self) -> None:
        sender, self._sender = self._sender, None
        if sender is not None:
            self._last = max(self._last, sender.last)
            sender.close()

    async def send_weights(self, weights: Any) -> None:
        """Sends (name, tensor) pairs as the next version, and returns when all generation workers
        have installed it. A tensor may be overwritten once the next one is asked for. Raises
        WeirError: of a worker that never came, TimedOut names it."""
        if self._n_workers is None:
            raise CallError("this worker sends nothing: init_policy_process_group() is missing")
        self._last += 1
        if self._sender is None:
            await drain(weights)
        else:
            await self._sender.send(weights, self._last, self._n_workers)

    async def receive_weight_batches(self) -> AsyncIterator[Batch]:
        """Installs the next version, then yields what the engine's loader is to load: see above.
        Tensors are torch's, valid until the next refit. Raises WeirError before the first batch: an
        engine never gets a part of a version."""
        if self._receiver is None:
            raise CallError("this worker receives nothing: init_rollout_process_group() is missing")
        self._last += 1
        await self._receiver.install(self._last)
        batch: Batch = []
        n_bytes = 0
        for name, tensor in self._receiver.tensors():
            size = tensor.numel() * tensor.element_size()
            if batch and n_bytes + size > self.bucket_size:
                yield batch
                batch, n_bytes = [], 0
            batch.append((name, tensor))
            n_bytes += size
        if batch:
            yield batch
