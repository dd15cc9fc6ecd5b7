# SPDX-License-Identifier: Apache-2.0
"""The live parameters of an engine's model, by the names that Weir's families have for them.

Takes a torch module as its engine leaves it behind, and what the engine's package knows of its
layers; gives views of the module's own memory: nothing is copied, and no address changes. What
cannot be read off with certainty is refused by name. Which weights attention computes, and where
they are kept, is the engine's matter.
"""

from __future__ import annotations

import fnmatch
from dataclasses import dataclass, field
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

from . import Refused
from .layouts import BLOCK, CHANNEL, CONVERSIONS, Layout

# Parts of a name that a version of an engine, or a wrapper, puts between those that families know.
_WRAPPERS = frozenset({"routed_experts", "base_layer"})


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


@dataclass(frozen=True)
class EngineRules:
    """What an engine's package knows of its models. Each function raises Refused with its reason.

    `layout_of(module)`: how a layer keeps its weights. `view_of(module, attribute, parameter, data,
    layout)`: an attribute's name at Weir's, and the contiguous view of `data` that Weir writes,
    which is the parameter's memory or rows of it. `find_derived(modules)`: what attention computes
    from kv_b_proj. `own`: ends of the names of what no version of a model brings.
    """

    layout_of: Callable[[Any], Layout]
    view_of: Callable[[Any, str, Any, Any, Layout], Tuple[str, Any]]
    find_derived: Callable[[Dict[str, Any]], List[LiveParameter]]
    own: Tuple[str, ...]


def family_name(engine_name: str) -> str:
    """The engine's name of a parameter without the parts that wrappers add."""
    return ".".join(p for p in engine_name.split(".") if p not in _WRAPPERS)


def _matches(name: str, globs: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, g) for g in globs)


def check_memory(tensor: Any) -> None:
    """Raises Refused for what is not in the plain memory of a tensor, as it was loaded."""
    if str(tensor.device) == "meta" or tensor.numel() == 0:
        raise Refused(
            f"the engine has given its memory back ({tensor.device}, shape {list(tensor.shape)})"
        )
    kind = type(tensor.data).__name__
    if kind != "Tensor":
        raise Refused(f"a {kind}, whose memory is its own matter")
    if getattr(tensor, "is_shuffled", False):
        raise Refused(f"shuffled for a kernel ({tensor.dtype} {list(tensor.shape)})")


class _Layouts:
    """The layout of each layer, asked for once; a refusal is kept for whatever it hits."""

    def __init__(self, modules: Dict[str, Any], rules: EngineRules) -> None:
        self.modules = modules
        self.rules = rules
        self._known: Dict[str, Any] = {}

    def of(self, path: str) -> Layout:
        if path not in self._known:
            try:
                self._known[path] = self.rules.layout_of(self.modules[path])
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


def without_padding(module: Any, attribute: str, tensor: Any) -> Any:
    """Of a vocabulary, the rows that the model has: engines pad them to a multiple of 64, and have
    padding last where one worker holds all of them. A view; other parameters as they are."""
    n_rows = getattr(module, "org_vocab_size", None)
    if attribute != "weight" or n_rows is None or not 0 < int(n_rows) < tensor.shape[0]:
        return tensor
    return tensor[: int(n_rows)]


def _take(engine_name: str, memory: Any, layouts: _Layouts, is_padded: bool) -> LiveParameter:
    path, _, attribute = engine_name.rpartition(".")
    check_memory(memory)
    module = layouts.modules[path]
    data = memory.data if is_padded else without_padding(module, attribute, memory.data)
    name, view = layouts.rules.view_of(module, attribute, memory, data, layouts.of(path))
    return LiveParameter(family_name(path + "." + name), engine_name, view, memory)


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
    return "; ".join(reasons[:3]) + more


def find_parameters(
    model: Any, rules: EngineRules, ignore: Sequence[str] = (), *, is_padded: bool = False
) -> LiveModel:
    """Every parameter of `model` that Weir may write, less those whose engine names match `ignore`.
    `is_padded`: Weir knows of the rows that pad the vocabulary, as it does of parallel engines.

    Raises Refused naming the first parameters whose layout is not known: nothing has been written.
    """
    modules = dict(model.named_modules())
    layouts, found, reasons = _Layouts(modules, rules), LiveModel(), []
    derived = rules.find_derived(modules)
    apart = {id(d.memory) for d in derived}
    for engine_name, memory in model.named_parameters():
        if id(memory) in apart:
            continue
        if _matches(engine_name, ignore) or engine_name.endswith(rules.own):
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
