# SPDX-License-Identifier: Apache-2.0
"""Where a worker stands in vLLM's engine, as vLLM itself says it.

vLLM numbers its ranks as Weir does. What Weir's meshes cannot say (prefill context parallelism,
experts that move while the engine serves) is refused by name.
"""

from __future__ import annotations

from typing import Any

from weir.engines import Refused
from weir.engines.placement import Placement


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
