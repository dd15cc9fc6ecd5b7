# SPDX-License-Identifier: Apache-2.0
"""How the workers of one engine come to one answer, each within a bound.

A process group of Weir's own, on the CPU: a worker that never comes breaks this group, and not one
that the engine computes with. Only numbers travel. Once a wait has failed the group is of no more
use, and says so until all workers make a new one.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any, List, Optional, Sequence

from . import Refused
from .placement import Placement

_LATEST = -1  # a version that a worker never got to know


class Agreement:
    """Of the `placement.n_workers` workers of one engine. Made by all of them at once.

    Raises Refused where torch.distributed is not there or has too few ranks.
    """

    def __init__(self, placement: Placement, seconds: float) -> None:
        import torch.distributed as dist

        n_workers = placement.n_workers
        if not dist.is_available() or not dist.is_initialized():
            raise Refused(f"an engine of {n_workers} workers, but no torch.distributed among them")
        first = dist.get_rank() - placement.worker
        if first < 0 or first + n_workers > dist.get_world_size():
            raise Refused(
                f"worker {placement.worker} of {n_workers} has rank {dist.get_rank()} of "
                f"{dist.get_world_size()}: expected the engine's ranks in one row"
            )
        self._seconds = seconds
        self._n_workers = n_workers
        self._broken: Optional[str] = None
        self._group = dist.new_group(
            list(range(first, first + n_workers)),
            backend="gloo",
            timeout=timedelta(seconds=seconds),
            use_local_synchronization=True,
        )

    def _wait(self, work: Any) -> None:
        try:
            work.wait(timedelta(seconds=self._seconds))
        except RuntimeError as error:
            cause = str(error).splitlines()[0][:200]
            self._broken = (
                f"workers of this engine did not meet within {self._seconds:g} s: {cause}"
            )
            raise TimeoutError(self._broken) from error

    def _check(self) -> None:
        if self._broken is not None:
            raise TimeoutError(
                f"{self._broken}: all workers meet again once each has been initialised anew"
            )

    def agree(self, version: int, error: Optional[BaseException]) -> bool:
        """True when all workers came to the same version without an error.

        Raises TimeoutError when a worker does not come, ValueError when versions differ.
        """
        import torch
        import torch.distributed as dist

        self._check()
        number = version if 0 <= version < 2**62 else _LATEST
        mine = torch.tensor([0 if error else 1, number, -number], dtype=torch.int64)
        self._wait(dist.all_reduce(mine, op=dist.ReduceOp.MIN, group=self._group, async_op=True))
        ok, least, most = int(mine[0]), int(mine[1]), -int(mine[2])
        if ok and least != most:
            raise ValueError(
                f"workers of this engine came to versions {least} and {most}: one was "
                "published meanwhile; ask for a version by its number"
            )
        return bool(ok)

    def gather(self, numbers: Sequence[int], most: int) -> List[List[int]]:
        """The numbers (0 or above, at most `most` of them) of each worker, in their order."""
        import torch
        import torch.distributed as dist

        self._check()
        mine = torch.full((most,), -1, dtype=torch.int64)
        mine[: len(numbers)] = torch.tensor(list(numbers), dtype=torch.int64)
        all_of_them = [torch.empty_like(mine) for _ in range(self._n_workers)]
        self._wait(dist.all_gather(all_of_them, mine, group=self._group, async_op=True))
        return [[int(n) for n in theirs.tolist() if n >= 0] for theirs in all_of_them]

    def close(self) -> None:
        import torch.distributed as dist

        if self._group is not None and dist.is_initialized():
            dist.destroy_process_group(self._group)
        self._group = None
