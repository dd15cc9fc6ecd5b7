# SPDX-License-Identifier: Apache-2.0
"""Where a worker stands in SGLang's engine, as SGLang itself says it.

SGLang numbers tensor parallel ranks as Weir does, and gives each group of them that shares experts
a contiguous range. What Weir's meshes cannot say, or one endpoint cannot reach at once, is refused
by name: attention that is cut otherwise than the rest, experts that move, stages of a pipeline (a
stage would wait for one that has not heard of the wish yet).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Tuple

from weir.engines import Refused
from weir.engines.placement import Placement


@dataclass(frozen=True)
class SGLangPlacement(Placement):
    """With expert parallelism of its own size: `n_expert_ranks` divides tp_size."""

    n_expert_ranks: int = 1

    @property
    def ep_size(self) -> int:
        return self.n_expert_ranks

    @property
    def ep_rank(self) -> int:
        return self.tp_rank // (self.tp_size // self.n_expert_ranks)


def _size(group: Any) -> int:
    return int(group.world_size) if group is not None else 1


def _refuse(what: str, why: str) -> None:
    raise Refused(f"{what}: {why}")


def _refuse_settings(server_args: Any) -> None:
    if getattr(server_args, "enable_eplb", False):
        _refuse("--enable-eplb", "the engine moves experts while it serves; serve without it")
    if int(getattr(server_args, "ep_num_redundant_experts", 0) or 0) > 0:
        _refuse("--ep-num-redundant-experts", "experts that are there twice are not known to Weir")
    if getattr(server_args, "init_expert_location", "trivial") not in (None, "trivial"):
        _refuse("--init-expert-location", "Weir knows experts in ascending order")


def _groups() -> Tuple[Any, Any, Any, Any]:
    """Tensor parallel, pipeline, attention's tensor parallel, expert parallel, wherever a version
    of SGLang keeps them."""
    try:
        from sglang.srt.runtime_context import get_parallel

        here = get_parallel()
        return here.tp_group, here.pp_group, here.attn_tp_group, here.moe_ep_group
    except (ImportError, AttributeError):
        from sglang.srt.distributed import parallel_state as there
    tp = there.get_tp_group()
    attention = getattr(there, "get_attn_tp_group", lambda: tp)()
    return tp, there.get_pp_group(), attention, getattr(there, "get_moe_ep_group", lambda: None)()


def placement_of_sglang() -> SGLangPlacement:
    """Of the worker of this process. Raises Refused for what Weir's meshes cannot say."""
    tp, pp, attention, experts = _groups()
    if _size(pp) > 1:
        _refuse("--pp-size %d" % _size(pp), "stages hear of a wish one after the other, and would "
                "wait for each other")
    if _size(attention) != _size(tp):
        _refuse("--enable-dp-attention", "attention is cut in %d parts, the rest in %d: Weir's "
                "meshes cut both alike" % (_size(attention), _size(tp)))
    _refuse_settings(_server_args())
    placement = SGLangPlacement(tp_rank=int(tp.rank_in_group), tp_size=_size(tp),
                                n_expert_ranks=_size(experts))
    if experts is not None and int(experts.rank_in_group) != placement.ep_rank:
        _refuse("expert rank %d of tensor parallel rank %d"
                % (experts.rank_in_group, placement.tp_rank), "expected %d" % placement.ep_rank)
    return placement


def _server_args() -> Any:
    """SGLang's settings, wherever a version keeps them; None where it cannot be asked."""
    try:
        from sglang.srt.runtime_context import get_server_args
    except ImportError:
        try:
            from sglang.srt.server_args import (  # type: ignore[import-not-found,unused-ignore]
                get_global_server_args as get_server_args,
            )
        except ImportError:
            return None
    try:
        return get_server_args()
    except (RuntimeError, ValueError, AttributeError):
        return None
