# SPDX-License-Identifier: Apache-2.0
"""The live parameters of an engine's model, by the names that Weir's families have for them.

Takes a torch module as vLLM leaves it behind, gives views of its own memory: nothing is copied, and
no address changes. What cannot be read off with certainty is refused by name. The weights that
attention computes from kv_b_proj (W_UV, W_UK_T) are found wherever a version keeps them.
"""

from __future__ import annotations

import fnmatch
from dataclasses import dataclass, field
from typing import Any, Dict, Iterator, List, Optional, Sequence, Tuple

from .layouts import BLOCK, CHANNEL, CONVERSIONS, Layout, layout_of, view_of, without_padding
from .placement import Refused

# Parts of a name that a version of vLLM, or a wrapper, puts between those that families know.
_WRAPPERS = frozenset({"routed_experts", "base_layer"})

# What no version of a model brings: scales of caches and activations, made when the engine starts.
_ENGINE_OWN = ("k_scale", "v_scale", "q_scale", "prob_scale", "input_scale")

_DERIVED = ("W_UV", "W_UK_T")
# What attention computes besides, in memory that Weir's conversions do not describe.
_UNKNOWN_DERIVED = ("W_UK_T_dcp_qrep", "W_K", "W_V", "W_K_scale", "W_V_scale")


@dataclass
class LiveParameter:
    """`tensor` is contiguous: what Weir writes. `memory` is the engine's own tensor. Where they do
    not share memory `tensor` stands beside it and is copied in once it is written, unless `memory`
    is a view of another parameter and changes with that (`follows`)."""

    name: str
    engine_name: str
    tensor: Any
    memory: Any
    is_copied: bool = False
    follows: Optional[str] = None


@dataclass
class LiveModel:
    """What was found. `conversion`: what the quantised layers hold; None: there are none."""

    parameters: List[LiveParameter] = field(default_factory=list)
    conversion: Optional[str] = None
    ignored: List[str] = field(default_factory=list)


def family_name(engine_name: str) -> str:
    """The engine's name of a parameter without the parts that wrappers add."""
    return ".".join(p for p in engine_name.split(".") if p not in _WRAPPERS)


def _matches(name: str, globs: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, g) for g in globs)


def _check_memory(tensor: Any) -> None:
    if str(tensor.device) == "meta" or tensor.numel() == 0:
        raise Refused(
            f"the engine has given its memory back ({tensor.device}, shape {list(tensor.shape)})"
        )
    kind = type(tensor.data).__name__
    if kind != "Tensor":
        raise Refused(f"a {kind}, whose memory is its own matter")
    if getattr(tensor, "is_shuffled", False):
        raise Refused(f"shuffled for a kernel ({tensor.dtype} {list(tensor.shape)})")


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
                _check_memory(memory)
                found.append(
                    _derived(family_name(parent + "." + attribute), engine_name, memory, kv_b_proj)
                )
            except (AttributeError, Refused) as reason:
                raise Refused(f"parameter {engine_name}: {reason}") from None
    return found


# ---- all parameters ------------------------------------------------------------------------------


class _Layouts:
    """The layout of each layer, asked for once; a refusal is kept for whatever it hits."""

    def __init__(self, modules: Dict[str, Any]) -> None:
        self.modules = modules
        self._known: Dict[str, Any] = {}

    def of(self, path: str) -> Layout:
        if path not in self._known:
            try:
                self._known[path] = layout_of(self.modules[path])
            except Refused as reason:
                self._known[path] = reason
        known = self._known[path]
        if isinstance(known, Refused):
            raise known
        assert isinstance(known, Layout)
        return known

    def conversion(self) -> Optional[str]:
        kinds = {
            layout.kind: path
            for path, layout in self._known.items()
            if isinstance(layout, Layout) and layout.kind in CONVERSIONS
        }
        if len(kinds) > 1:
            raise Refused(
                f"{kinds[BLOCK]} has a scale per block, {kinds[CHANNEL]} one per row: one version "
                "is of one conversion"
            )
        return CONVERSIONS[next(iter(kinds))] if kinds else None


def _take(engine_name: str, memory: Any, layouts: _Layouts, is_padded: bool) -> LiveParameter:
    path, _, attribute = engine_name.rpartition(".")
    _check_memory(memory)
    data = memory.data
    if not is_padded:
        data = without_padding(layouts.modules[path], attribute, data)
    attribute, view = view_of(attribute, data, layouts.of(path))
    return LiveParameter(family_name(path + "." + attribute), engine_name, view, memory)


def _refuse_overlaps(parameters: Sequence[LiveParameter]) -> None:
    """Two parameters of Weir's in one memory would overwrite each other."""
    spans = sorted(
        (p.tensor.data_ptr(), p.tensor.numel() * p.tensor.element_size(), p.engine_name)
        for p in parameters
    )
    for (address, n_bytes, name), (following, _, other) in zip(spans, spans[1:]):
        if following < address + n_bytes:
            raise Refused(
                f"parameters {name} and {other} share memory, and the model has both: the "
                "engine has tied what config.json has not"
            )


def _summary(reasons: Sequence[str]) -> str:
    more = "" if len(reasons) <= 3 else f" (and {len(reasons) - 3} more)"
    return "" + "; ".join(reasons[:3]) + more


def find_parameters(
    model: Any, ignore: Sequence[str] = (), *, is_padded: bool = False
) -> LiveModel:
    """Every parameter of `model` that Weir may write, less those whose engine names match `ignore`.
    `is_padded`: Weir knows of the rows that pad the vocabulary, as it does of parallel engines.

    Raises Refused naming the first parameters whose layout is not known: nothing has been written.
    """
    modules = dict(model.named_modules())
    layouts, found, reasons = _Layouts(modules), LiveModel(), []
    derived = _find_derived(modules)
    apart = {id(d.memory) for d in derived}
    for engine_name, memory in model.named_parameters():
        if id(memory) in apart or engine_name.rpartition(".")[2] in _DERIVED:
            continue
        if _matches(engine_name, ignore) or engine_name.endswith(_ENGINE_OWN):
            found.ignored.append(engine_name)
            continue
        try:
            found.parameters.append(_take(engine_name, memory, layouts, is_padded))
        except Refused as reason:
            reasons.append(f"parameter {engine_name}: {reason}")
    if reasons:
        raise Refused(_summary(reasons))
    found.parameters += derived
    found.conversion = layouts.conversion()
    _refuse_overlaps(found.parameters)
    return found


def addresses(parameters: Sequence[LiveParameter]) -> Dict[str, int]:
    """Where each parameter is, in the engine's own tensors, for captured graphs hold these."""
    return {p.engine_name: int(p.memory.data_ptr()) for p in parameters}


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
