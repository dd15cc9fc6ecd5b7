# SPDX-License-Identifier: Apache-2.0
"""The live parameters of SGLang's model, by the names that Weir's families have for them.

Takes a torch module as SGLang serves it, gives views of its own memory: nothing is copied, no
address changes, and what cannot be read off with certainty is refused by name. As
`weir.vllm.parameters`, with SGLang's layouts, and with the weights that its attention computes from
kv_b_proj (w_kc, w_vc).
"""

from __future__ import annotations

import fnmatch
from typing import Any, Dict, List, Optional, Sequence

from weir.vllm.layouts import CONVERSIONS, Layout, without_padding
from weir.vllm.parameters import LiveModel, LiveParameter, family_name
from weir.vllm.placement import Refused

from .layouts import layout_of, view_in

# Scales of caches and activations, made when the engine starts: no version of a model brings them.
_ENGINE_OWN = ("k_scale", "v_scale", "q_scale", "input_scale", "workspace")

# w_kc (heads, nope, rank) and w_vc (heads, rank, v): what Weir calls W_UK_T and W_UV.
_DERIVED = (("w_kc", "W_UK_T"), ("w_vc", "W_UV"))


def _derived_of(path: str, module: Any) -> List[LiveParameter]:
    import torch

    if getattr(module, "use_deep_gemm_bmm", False):
        raise Refused("weir: %s: w_kc and w_vc are kept in FP8 (SGLANG_USE_DEEPGEMM_BMM=0 keeps "
                      "them in bfloat16)" % path)
    found = []
    for attribute, name in _DERIVED:
        memory = getattr(module, attribute, None)
        if memory is None or memory.dtype != torch.bfloat16 or memory.dim() != 3:
            seen = None if memory is None else "%s %s" % (memory.dtype, list(memory.shape))
            raise Refused("weir: %s.%s is %s: expected bfloat16 with three axes"
                          % (path, attribute, seen))
        is_copied, beside = not memory.is_contiguous(), memory.data
        if is_copied:
            beside = torch.empty(memory.shape, dtype=memory.dtype, device=memory.device)
        found.append(LiveParameter(family_name(path + "." + name), path + "." + attribute, beside,
                                   memory, is_copied))
    return found


def _find_derived(modules: Dict[str, Any]) -> List[LiveParameter]:
    found: List[LiveParameter] = []
    for path, module in modules.items():
        computed = any(getattr(module, attribute, None) is not None for attribute, _ in _DERIVED)
        if computed and getattr(module, "kv_b_proj", None) is not None:
            found += _derived_of(path, module)
    return found


def _check_memory(tensor: Any) -> None:
    if str(tensor.device) == "meta" or tensor.numel() == 0:
        raise Refused("the engine has given its memory back (%s, shape %s)"
                      % (tensor.device, list(tensor.shape)))


def _conversion_of(layouts: Dict[str, Layout]) -> Optional[str]:
    kinds = {layout.kind: path for path, layout in layouts.items() if layout.kind in CONVERSIONS}
    if len(kinds) > 1:
        (one, at), (other, elsewhere) = sorted(kinds.items())
        raise Refused("weir: %s has a scale per %s, %s per %s: one version is of one conversion"
                      % (at, one, elsewhere, other))
    return CONVERSIONS[next(iter(kinds))] if kinds else None


def _refuse_shared(parameters: Sequence[LiveParameter]) -> None:
    spans = sorted((p.tensor.data_ptr(), p.tensor.numel() * p.tensor.element_size(), p.engine_name)
                   for p in parameters)
    for (address, n_bytes, name), (following, _, other) in zip(spans, spans[1:]):
        if following < address + n_bytes:
            raise Refused("weir: parameters %s and %s share memory, and the model has both"
                          % (name, other))


def _take(engine_name: str, memory: Any, module: Any, layout: Layout,
          is_padded: bool) -> LiveParameter:
    path, _, attribute = engine_name.rpartition(".")
    data = memory.data if is_padded else without_padding(module, attribute, memory.data)
    attribute, view = view_in(module, attribute, memory, data, layout)
    return LiveParameter(family_name(path + "." + attribute), engine_name, view, memory)


def find_parameters(model: Any, ignore: Sequence[str] = (), *,
                    is_padded: bool = False) -> LiveModel:
    """Every parameter of `model` that Weir may write, less those whose names match a glob of
    `ignore`. `is_padded`: Weir knows of the rows that pad the vocabulary, as it does of parallel
    engines.

    Raises Refused naming the first parameters whose layout is not known: nothing has been written.
    """
    modules = dict(model.named_modules())
    found = LiveModel()
    layouts: Dict[str, Layout] = {}
    reasons: List[str] = []
    for engine_name, memory in model.named_parameters():
        path, _, attribute = engine_name.rpartition(".")
        is_ignored = any(fnmatch.fnmatchcase(engine_name, glob) for glob in ignore)
        if is_ignored or attribute.endswith(_ENGINE_OWN):
            found.ignored.append(engine_name)
            continue
        try:
            _check_memory(memory)
            layouts[path] = layouts.get(path) or layout_of(modules[path])
            found.parameters.append(
                _take(engine_name, memory, modules[path], layouts[path], is_padded))
        except Refused as reason:
            reasons.append("parameter %s: %s" % (engine_name, reason))
    if reasons:
        more = "" if len(reasons) <= 3 else " (and %d more)" % (len(reasons) - 3)
        raise Refused("weir: " + "; ".join(reasons[:3]) + more)
    found.parameters += _find_derived(modules)
    found.conversion = _conversion_of(layouts)
    _refuse_shared(found.parameters)
    return found
