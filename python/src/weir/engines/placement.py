# SPDX-License-Identifier: Apache-2.0
"""Where a worker stands in its engine, and what that engine's mesh is to Weir.

Ranks count as Weir's do, slowest first: data parallel, pipeline, tensor parallel. What an engine
itself says of them is read in its own package.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import List, Optional, Sequence

from . import Refused


@dataclass(frozen=True)
class Placement:
    """One worker of one engine. Sizes are at least 1, ranks count from 0.

    `expert_parallel`: experts are spread over all dp * tp workers of a stage; otherwise each of
    those holds a part of the width of every expert.
    """

    tp_rank: int = 0
    tp_size: int = 1
    pp_rank: int = 0
    pp_size: int = 1
    dp_rank: int = 0
    dp_size: int = 1
    expert_parallel: bool = False

    @property
    def n_workers(self) -> int:
        return self.dp_size * self.pp_size * self.tp_size

    @property
    def worker(self) -> int:
        return (self.dp_rank * self.pp_size + self.pp_rank) * self.tp_size + self.tp_rank

    @property
    def ep_size(self) -> int:
        return self.dp_size * self.tp_size if self.expert_parallel else 1

    @property
    def ep_rank(self) -> int:
        return self.dp_rank * self.tp_size + self.tp_rank if self.expert_parallel else 0

    @property
    def mesh(self) -> Optional[str]:
        """As weir.Replica takes it, and as a trainer's replica_mesh must be; None: one worker."""
        sizes = (
            ("tp", self.tp_size),
            ("ep", self.ep_size),
            ("dp", self.dp_size),
            ("pp", self.pp_size),
        )
        return ",".join(f"{name}={size}" for name, size in sizes if size > 1) or None


def contiguous_experts(n_experts: int, ep_size: int) -> List[List[int]]:
    """The experts of each rank where nobody says otherwise: the first ranks have one more."""
    each, over = divmod(n_experts, ep_size)
    firsts = [r * each + min(r, over) for r in range(ep_size + 1)]
    return [list(range(firsts[r], firsts[r + 1])) for r in range(ep_size)]


def experts_json(by_rank: Sequence[Sequence[int]]) -> Optional[str]:
    """The experts of each expert rank, in slot order, as weir.Replica takes them; None where that
    is what it assumes anyway."""
    ids = sorted({e for rank in by_rank for e in rank})
    if ids != list(range(len(ids))):
        missing = sorted(set(range(ids[-1] + 1 if ids else 0)) - set(ids))
        raise Refused(f"no rank of the engine has the experts {missing[:8]}")
    lists = [list(rank) for rank in by_rank]
    return None if lists == contiguous_experts(len(ids), len(lists)) else json.dumps(lists)
