# SPDX-License-Identifier: Apache-2.0
"""What every conversion must give, computed in numpy and ml_dtypes from docs/formats.md alone:
slow, whole tensors at once, no line in common with the library. A source is a list of arrays that
are fused along their rows; arrays are BF16, F16 or F32."""

from __future__ import annotations

from typing import Any, Callable, Dict, List, Tuple

import ml_dtypes
import numpy
import pytest

import weir

ONE_448TH = numpy.float32(1 / 448)
LEAST_SCALE = numpy.float32(1e-12)
assert ONE_448TH.view("u4") == 0x3B124925 and LEAST_SCALE.view("u4") == 0x2B8CBCCC

Outputs = Dict[str, numpy.ndarray]


def widened(sources: List[numpy.ndarray], round_masters: bool) -> numpy.ndarray:
    """The fused source in fp32, masters rounded first."""
    parts = []
    for source in sources:
        if source.dtype == numpy.float32 and round_masters:
            source = source.astype(ml_dtypes.bfloat16)
        parts.append(source.astype(numpy.float32))
    return numpy.concatenate(parts, axis=-2) if len(parts) > 1 else parts[0]


def codes(x: numpy.ndarray, scale: numpy.ndarray) -> numpy.ndarray:
    return numpy.clip(x / scale, -448, 448).astype(ml_dtypes.float8_e4m3fn)


def scale_of(largest: numpy.ndarray) -> numpy.ndarray:
    return numpy.maximum(largest * ONE_448TH, LEAST_SCALE)


def fp8_128x128(sources: List[numpy.ndarray], round_masters: bool = True) -> Outputs:
    x = widened(sources, round_masters)
    rows, cols = x.shape[-2:]
    down, across = -(-rows // 128), -(-cols // 128)
    around = [(0, 0)] * (x.ndim - 2) + [(0, 128 * down - rows), (0, 128 * across - cols)]
    padded = numpy.pad(numpy.abs(x), around)
    blocks = padded.reshape(*x.shape[:-2], down, 128, across, 128)
    scale = scale_of(blocks.max(axis=(-3, -1)))
    spread = scale.repeat(128, axis=-2).repeat(128, axis=-1)[..., :rows, :cols]
    return {"weight": codes(x, spread), "weight_scale_inv": scale}


def per_channel(sources: List[numpy.ndarray], round_masters: bool = True) -> Outputs:
    x = widened(sources, round_masters)
    scale = scale_of(numpy.abs(x).max(axis=-1))
    return {"weight": codes(x, scale[..., None]), "weight_scale": scale}


def bf16_cast(sources: List[numpy.ndarray], round_masters: bool = True) -> Outputs:
    return {"weight": widened(sources, round_masters).astype(ml_dtypes.bfloat16)}


def fp32_cast(sources: List[numpy.ndarray], round_masters: bool = True) -> Outputs:
    return {"weight": widened(sources, False)}


def neg_exp(sources: List[numpy.ndarray], round_masters: bool = True) -> Outputs:
    # An exp in fp64 is good to an ulp of it, so its fp32 is the nearest but for what lies within
    # 2^-28 of the middle between two: none of the values that the tests take.
    x = widened(sources, False)
    return {"weight": (-numpy.exp(x.astype(numpy.float64))).astype(numpy.float32)}


RECIPES: Dict[str, Callable[..., Outputs]] = {
    "bf16_cast": bf16_cast,
    "fp32_cast": fp32_cast,
    "neg_exp": neg_exp,
    "fp8_128x128": fp8_128x128,
    "cutlass_fp8_e4m3_per_channel": per_channel,
}


# ---- what the tests of conversions share ------------------------------------------------------

DTYPES = {"BF16": ml_dtypes.bfloat16, "F16": numpy.float16, "F32": numpy.float32}
EDGES = [0.0, -0.0, 1e-30, -3e-12, 448.0, 1.75, 2.0**-14, -65504.0]


def random(shape: Tuple[int, ...], dtype: str, seed: int = 0) -> Any:
    """Weights of many magnitudes, finite in `dtype`, among them what rounding stumbles over."""
    source = numpy.random.default_rng(seed)
    spread = numpy.exp2(source.integers(-20, 4, shape).astype(numpy.float32))
    x = source.standard_normal(shape, dtype=numpy.float32) * spread
    if x.size >= 8 * len(EDGES):
        x.flat[:: x.size // len(EDGES)][: len(EDGES)] = EDGES
    return x.astype(DTYPES[dtype])


def bytes_of(array: Any) -> bytes:
    """The bytes of an output of any kind."""
    if isinstance(array, weir.Tensor):
        return array.raw.tobytes()
    return weir.tensor(array).raw.tobytes()


def assert_same(got: Dict[str, Any], expected: Dict[str, Any]) -> None:
    assert list(got) == list(expected)
    for suffix, array in expected.items():
        assert tuple(got[suffix].shape) == array.shape, suffix
        mine, theirs = bytes_of(got[suffix]), numpy.ascontiguousarray(array).tobytes()
        if mine != theirs:
            a, b = (numpy.frombuffer(text, f"u{array.itemsize}") for text in (mine, theirs))
            at = int(numpy.argmax(a != b))
            pytest.fail(
                f"{suffix}: {int((a != b).sum())} differ, [{at}] is {a[at]:#x}, not {b[at]:#x}"
            )
