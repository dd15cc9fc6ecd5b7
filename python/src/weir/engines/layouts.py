# SPDX-License-Identifier: Apache-2.0
"""What lies in the memory of a parameter, in the words of docs/formats.md, and how Weir sees it.

A layer has one layout, which its engine's package reads off the layer's method and kernel. Here a
parameter of that layout becomes a contiguous view of its own memory, or is refused with its dtype,
shape and strides: nothing is copied.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Optional, Tuple

from . import Refused

PLAIN, BLOCK, CHANNEL = "plain", "block", "channel"

# What a quantised layer's weights are, in the words of docs/formats.md.
CONVERSIONS = {BLOCK: "fp8_128x128", CHANNEL: "cutlass_fp8_e4m3_per_channel"}

_FLOATS = ("torch.bfloat16", "torch.float16", "torch.float32")
_E4M3, _F32 = "torch.float8_e4m3fn", "torch.float32"


@dataclass(frozen=True)
class Layout:
    """How a layer keeps its weights. `transposed`: matrices are (K, N), with K contiguous."""

    kind: str
    transposed: bool = False


def type_name(thing: object) -> str:
    return type(thing).__name__


def _block_size(*owners: object) -> Optional[Tuple[int, ...]]:
    for owner in owners:
        size = getattr(owner, "weight_block_size", None)
        if size is not None:
            return tuple(int(n) for n in size)
    return None


def block_layout(*owners: object) -> Layout:
    """A scale per block, of the size that the first of `owners` says that knows one.

    Raises Refused for another size than 128 by 128.
    """
    size = _block_size(*owners)
    if size != (128, 128):
        raise Refused(f"blocks of {size}: fp8_128x128 has (128, 128)")
    return Layout(BLOCK)


# ---- one parameter of a layer --------------------------------------------------------------------


def _seen(tensor: Any) -> str:
    dtype = str(tensor.dtype).replace("torch.", "")
    return f"{dtype} {list(tensor.shape)}, strides {list(tensor.stride())}"


def _contiguous(tensor: Any, what: str) -> Any:
    if not tensor.is_contiguous():
        raise Refused(f"{_seen(tensor)}: expected {what} without gaps")
    return tensor


def _codes(tensor: Any, layout: Layout) -> Any:
    if str(tensor.dtype) != _E4M3:
        raise Refused(f"{_seen(tensor)}: expected float8_e4m3fn")
    if not layout.transposed or tensor.dim() != 2:
        return _contiguous(tensor, "rows")
    if not tensor.t().is_contiguous():
        raise Refused(f"{_seen(tensor)}: expected (K, N) with K contiguous")
    return tensor.t()


def _scales(tensor: Any, layout: Layout) -> Any:
    if str(tensor.dtype) != _F32:
        packed = " (DeepGEMM packs powers of two on Blackwell: VLLM_USE_DEEP_GEMM=0)"
        hint = packed if str(tensor.dtype) == "torch.int32" else ""
        raise Refused(f"{_seen(tensor)}: expected float32 scales{hint}")
    _contiguous(tensor, "scales")
    per_row = layout.kind == CHANNEL and tensor.dim() > 1 and tensor.shape[-1] == 1
    return tensor.view(tensor.shape[:-1]) if per_row else tensor


def view_of(attribute: str, tensor: Any, layout: Layout) -> Tuple[str, Any]:
    """The attribute's name at Weir's, and the contiguous view of the parameter's own memory that
    Weir writes. Raises Refused, saying what was seen and what was expected."""
    if layout.kind == PLAIN or not attribute.endswith(
        ("weight", "weight_scale", "weight_scale_inv")
    ):
        if str(tensor.dtype) not in _FLOATS:
            raise Refused(f"{_seen(tensor)}: expected bfloat16, float16 or float32")
        return attribute, _contiguous(tensor, "rows")
    if attribute.endswith("weight"):
        return attribute, _codes(tensor, layout)
    scale = "weight_scale_inv" if layout.kind == BLOCK else "weight_scale"
    return attribute.split("weight_scale")[0] + scale, _scales(tensor, layout)
