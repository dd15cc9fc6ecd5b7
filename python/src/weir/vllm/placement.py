# SPDX-License-Identifier: Apache-2.0
"""Where a worker stands in its engine, as the engine itself says it, and what its mesh is to Weir.

vLLM numbers its ranks as Weir does, slowest first: data parallel, pipeline, tensor parallel. What
Weir's meshes cannot say (prefill context parallelism, experts that move while the engine serves)
is refused by name.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, List, Optional, Sequence

from weir.engines import Refused


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


def _refuse_what_no_mesh_says(parallel: Any) -> None:
    for name in ("prefill_context_parallel_size",):
        size = getattr(parallel, name, 1) or 1
        if size > 1:
            raise Refused(f"{name}={size}: Weir's meshes have tp, pp, dp and ep")
    if getattr(parallel, "enable_eplb", False):
        raise Refused(
            "enable_eplb: the engine moves experts between its ranks while it "
            "serves, so no plan says where they are; serve without it"
        )
    if getattr(parallel, "enable_elastic_ep", False):
        raise Refused("enable_elastic_ep: the engine's ranks change while it serves")


def placement_of_vllm(parallel: Any, has_experts: bool) -> Placement:
    """The placement of this process's worker, from vLLM's parallel_state and its ParallelConfig.

    Raises Refused for what Weir's meshes cannot say.
    """
    from vllm.distributed import parallel_state

    _refuse_what_no_mesh_says(parallel)
    tp, pp = parallel_state.get_tp_group(), parallel_state.get_pp_group()
    # Without experts vLLM's data parallel ranks are engines of their own: each is a replica.
    dp_size = int(getattr(parallel, "data_parallel_size", 1)) if has_experts else 1
    dp_rank = int(parallel_state.get_dp_group().rank_in_group) if dp_size > 1 else 0
    return Placement(
        tp_rank=int(tp.rank_in_group),
        tp_size=int(tp.world_size),
        pp_rank=int(pp.rank_in_group),
        pp_size=int(pp.world_size),
        dp_rank=dp_rank,
        dp_size=dp_size,
        expert_parallel=has_experts and bool(getattr(parallel, "enable_expert_parallel", False)),
    )


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
