# SPDX-License-Identifier: Apache-2.0
"""The live parameters of vLLM's model, by the names that Weir's families have for them.

What `weir.engines.live_parameters` finds by vLLM's layouts, and the weights that attention computes
from kv_b_proj (W_UV, W_UK_T), wherever a version keeps them. What cannot be read off with certainty
is refused by name.
"""

from __future__ import annotations

from typing import Any, Dict, Iterator, List, Optional, Sequence, Tuple

from weir.engines import Refused, live_parameters
from weir.engines.layouts import Layout, view_of
from weir.engines.live_parameters import (
    EngineRules,
    LiveModel,
    LiveParameter,
    check_memory,
    family_name,
)

from .kernel_classes import layout_of

# What no version of a model brings: scales of caches and activations, made when the engine starts.
_ENGINE_OWN = ("k_scale", "v_scale", "q_scale", "prob_scale", "input_scale")

_DERIVED = ("W_UV", "W_UK_T")
# What attention computes besides, in memory that Weir's conversions do not describe.
_UNKNOWN_DERIVED = ("W_UK_T_dcp_qrep", "W_K", "W_V", "W_K_scale", "W_V_scale")


# ---- weights that attention computes -------------------------------------------------------------


def _attentions(modules: Dict[str, Any]) -> Iterator[Tuple[str, Any, Any]]:
    """Who holds W_UV or W_UK_T, with its path and its kv_b_proj. Some versions keep them in the
    module, some in the `impl` that it calls, which is none."""
    for path, module in modules.items():
        for owner in (module, getattr(module, "impl", None)):
            if owner is None or not any(getattr(owner, n, None) is not None for n in _DERIVED):
                continue
            kv_b_proj = getattr(owner, "kv_b_proj", None) or getattr(module, "kv_b_proj", None)
            if kv_b_proj is not None:
                yield path, owner, kv_b_proj
                break


def _same_storage(a: Any, b: Any) -> bool:
    return bool(a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr())


def _derived(name: str, engine_name: str, memory: Any, kv_b_proj: Any) -> LiveParameter:
    import torch

    if memory.dtype != torch.bfloat16 or memory.dim() != 3:
        raise Refused(f"{memory.dtype} {list(memory.shape)}: expected bfloat16 with three axes")
    if memory.is_contiguous():
        return LiveParameter(name, engine_name, memory.data, memory)
    beside = memory.detach().contiguous()
    if _same_storage(memory, kv_b_proj.weight):
        return LiveParameter(name, engine_name, beside, memory, follows="kv_b_proj.weight")
    return LiveParameter(name, engine_name, beside, memory, is_copied=True)


def _find_derived(modules: Dict[str, Any]) -> List[LiveParameter]:
    paths = {id(m): p for p, m in reversed(list(modules.items()))}
    found = []
    for path, owner, kv_b_proj in _attentions(modules):
        parent = paths[id(kv_b_proj)].rpartition(".")[0]
        for attribute in _UNKNOWN_DERIVED:
            if getattr(owner, attribute, None) is not None:
                raise Refused(
                    f"{path}.{attribute} is computed from kv_b_proj.weight in a layout that Weir "
                    "does not know; known are W_UV and W_UK_T"
                )
        for attribute in _DERIVED:
            engine_name = path + "." + attribute
            try:
                memory = getattr(owner, attribute)
                check_memory(memory)
                found.append(
                    _derived(family_name(parent + "." + attribute), engine_name, memory, kv_b_proj)
                )
            except (AttributeError, Refused) as reason:
                raise Refused(f"parameter {engine_name}: {reason}") from None
    return found


# ---- all parameters ------------------------------------------------------------------------------


def _view(
    _module: Any, attribute: str, _parameter: Any, data: Any, layout: Layout
) -> Tuple[str, Any]:
    return view_of(attribute, data, layout)


_RULES = EngineRules(layout_of, _view, _find_derived, _ENGINE_OWN)


def find_parameters(
    model: Any, ignore: Sequence[str] = (), *, is_padded: bool = False
) -> LiveModel:
    """As weir.engines.live_parameters.find_parameters(), of a model of vLLM's."""
    return live_parameters.find_parameters(model, _RULES, ignore, is_padded=is_padded)


def local_experts(model: Any) -> Optional[List[int]]:
    """The ids of this worker's experts in slot order; None where it holds all of them in order.

    Raises Refused where layers differ, or where a map is none from ids to slots.
    """
    first: Optional[Tuple[str, List[int]]] = None
    for path, module in model.named_modules():
        expert_map = getattr(module, "_expert_map", None)
        if expert_map is None or getattr(module, "w13_weight", None) is None:
            continue
        by_slot = sorted((int(slot), e) for e, slot in enumerate(expert_map.tolist()) if slot >= 0)
        slots, ids = [slot for slot, _ in by_slot], [e for _, e in by_slot]
        n_weights = module.w13_weight.shape[0]
        if slots != list(range(n_weights)):
            raise Refused(
                f"{path}: its expert map has the slots {slots[:8]}, its weights {n_weights} of them"
            )
        if first is not None and first[1] != ids:
            raise Refused(
                f"{first[0]} holds the experts {first[1][:8]}, {path} others: Weir places experts "
                "alike in every layer"
            )
        first = first or (path, ids)
    return first[1] if first else None


def has_experts(model: Any) -> bool:
    return any(name.endswith("w13_weight") for name, _ in model.named_parameters())
