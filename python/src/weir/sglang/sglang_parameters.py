# SPDX-License-Identifier: Apache-2.0
"""The live parameters of SGLang's model, by the names that Weir's families have for them.

What `weir.engines.live_parameters` finds by SGLang's layouts, and the weights that its attention
computes from kv_b_proj (w_kc, w_vc). What cannot be read off with certainty is refused by name.
"""

from __future__ import annotations

from typing import Any, Dict, List, Sequence

from weir.engines import Refused, live_parameters
from weir.engines.live_parameters import (
    EngineRules,
    LiveModel,
    LiveParameter,
    check_memory,
    family_name,
)

from .kernels import layout_of, view_in

# Scales of caches and activations, made when the engine starts: no version of a model brings them.
_ENGINE_OWN = ("k_scale", "v_scale", "q_scale", "input_scale", "workspace")

# w_kc (heads, nope, rank) and w_vc (heads, rank, v): what Weir calls W_UK_T and W_UV.
_DERIVED = (("w_kc", "W_UK_T"), ("w_vc", "W_UV"))


def _check_derived(memory: Any) -> None:
    import torch

    if memory is None or memory.dtype != torch.bfloat16 or memory.dim() != 3:
        seen = None if memory is None else f"{memory.dtype} {list(memory.shape)}"
        raise Refused(f"{seen}: expected bfloat16 with three axes")
    check_memory(memory)


def _derived(path: str, attribute: str, name: str, memory: Any) -> LiveParameter:
    import torch

    try:
        _check_derived(memory)
    except Refused as reason:
        raise Refused(f"parameter {path}.{attribute}: {reason}") from None
    is_copied, beside = not memory.is_contiguous(), memory.data
    if is_copied:
        beside = torch.empty(memory.shape, dtype=memory.dtype, device=memory.device)
    engine_name = path + "." + attribute
    return LiveParameter(family_name(path + "." + name), engine_name, beside, memory, is_copied)


def _derived_of(path: str, module: Any) -> List[LiveParameter]:
    if getattr(module, "use_deep_gemm_bmm", False):
        raise Refused(
            f"{path}: w_kc and w_vc are kept in FP8 (SGLANG_USE_DEEPGEMM_BMM=0 keeps them in "
            "bfloat16)"
        )
    return [
        _derived(path, attribute, name, getattr(module, attribute, None))
        for attribute, name in _DERIVED
    ]


def _find_derived(modules: Dict[str, Any]) -> List[LiveParameter]:
    found: List[LiveParameter] = []
    for path, module in modules.items():
        computed = any(getattr(module, attribute, None) is not None for attribute, _ in _DERIVED)
        if computed and getattr(module, "kv_b_proj", None) is not None:
            found += _derived_of(path, module)
    return found


_RULES = EngineRules(layout_of, view_in, _find_derived, _ENGINE_OWN)


def find_parameters(
    model: Any, ignore: Sequence[str] = (), *, is_padded: bool = False
) -> LiveModel:
    """As weir.engines.live_parameters.find_parameters(), of a model of SGLang's."""
    return live_parameters.find_parameters(model, _RULES, ignore, is_padded=is_padded)
