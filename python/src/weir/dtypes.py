# SPDX-License-Identifier: Apache-2.0
"""Weir's dtypes, and what numpy, ml_dtypes, torch and DLPack call them.

Imports none of those: torch's and numpy's dtypes are known by their names. The makers at the end,
which import, are for callers that have been handed something of theirs.
"""

from __future__ import annotations

import enum
import functools
import sys
from typing import Any, Dict, Optional, Tuple

from weir.errors import CallError


class DType(enum.IntEnum):
    """An element type: the names are those of safetensors, the numbers ``weir_dtype``'s."""

    BOOL = 1
    U8 = 2
    I8 = 3
    U16 = 4
    I16 = 5
    U32 = 6
    I32 = 7
    U64 = 8
    I64 = 9
    F16 = 10
    BF16 = 11
    F32 = 12
    F64 = 13
    C64 = 14
    F8_E4M3 = 15
    F8_E5M2 = 16
    F8_E8M0 = 17
    F8_E4M3FNUZ = 18
    F8_E5M2FNUZ = 19
    F6_E2M3 = 20
    F6_E3M2 = 21
    F4 = 22

    @property
    def bits(self) -> int:
        """Bits per element."""
        return _BITS[self]

    def __str__(self) -> str:
        return self.name

    @classmethod
    def of(cls, dtype: Any) -> "DType":
        """The dtype of ``DType``, "BF16", a torch dtype or a numpy (ml_dtypes) dtype or type.

        torch's float4_e2m1fn_x2 is F4 here, two elements in one of torch's. Raises
        :class:`CallError` for what Weir has no name for.
        """
        if isinstance(dtype, cls):
            return dtype
        found = _by_name(dtype) if isinstance(dtype, str) else _by_object(dtype)
        if found is None:
            raise CallError(f"dtype {dtype!r} is none of Weir's: {', '.join(cls.__members__)}")
        return found


_BITS: Dict[DType, int] = {
    DType.BOOL: 8,
    DType.U8: 8,
    DType.I8: 8,
    DType.U16: 16,
    DType.I16: 16,
    DType.U32: 32,
    DType.I32: 32,
    DType.U64: 64,
    DType.I64: 64,
    DType.F16: 16,
    DType.BF16: 16,
    DType.F32: 32,
    DType.F64: 64,
    DType.C64: 64,
    DType.F8_E4M3: 8,
    DType.F8_E5M2: 8,
    DType.F8_E8M0: 8,
    DType.F8_E4M3FNUZ: 8,
    DType.F8_E5M2FNUZ: 8,
    DType.F6_E2M3: 6,
    DType.F6_E3M2: 6,
    DType.F4: 4,
}

_TORCH: Dict[str, DType] = {
    "bool": DType.BOOL,
    "uint8": DType.U8,
    "int8": DType.I8,
    "uint16": DType.U16,
    "int16": DType.I16,
    "uint32": DType.U32,
    "int32": DType.I32,
    "uint64": DType.U64,
    "int64": DType.I64,
    "float16": DType.F16,
    "bfloat16": DType.BF16,
    "float32": DType.F32,
    "float64": DType.F64,
    "complex64": DType.C64,
    "float8_e4m3fn": DType.F8_E4M3,
    "float8_e5m2": DType.F8_E5M2,
    "float8_e8m0fnu": DType.F8_E8M0,
    "float8_e4m3fnuz": DType.F8_E4M3FNUZ,
    "float8_e5m2fnuz": DType.F8_E5M2FNUZ,
    "float4_e2m1fn_x2": DType.F4,
}
# numpy's names are torch's but for the packed one: ml_dtypes spreads float4 and float6 over a byte
# each, which is no layout of Weir's.
_NUMPY = {name: dtype for name, dtype in _TORCH.items() if dtype is not DType.F4}
_TORCH_NAME = {dtype: name for name, dtype in _TORCH.items()}

# (code, bits) of DLDataType.
_DLPACK: Dict[Tuple[int, int], DType] = {
    (6, 8): DType.BOOL,
    (1, 8): DType.U8,
    (0, 8): DType.I8,
    (1, 16): DType.U16,
    (0, 16): DType.I16,
    (1, 32): DType.U32,
    (0, 32): DType.I32,
    (1, 64): DType.U64,
    (0, 64): DType.I64,
    (2, 16): DType.F16,
    (4, 16): DType.BF16,
    (2, 32): DType.F32,
    (2, 64): DType.F64,
    (5, 64): DType.C64,
    (10, 8): DType.F8_E4M3,
    (12, 8): DType.F8_E5M2,
    (14, 8): DType.F8_E8M0,
    (11, 8): DType.F8_E4M3FNUZ,
    (13, 8): DType.F8_E5M2FNUZ,
    (15, 6): DType.F6_E2M3,
    (16, 6): DType.F6_E3M2,
    (17, 4): DType.F4,
}

_UNSIGNED = {8: DType.U8, 16: DType.U16, 32: DType.U32, 64: DType.U64}
_SIGNED = {8: DType.I8, 16: DType.I16, 32: DType.I32, 64: DType.I64}
_FLOATS = {"e": DType.F16, "f": DType.F32, "d": DType.F64, "Zf": DType.C64, "?": DType.BOOL}


def _by_name(name: str) -> Optional[DType]:
    short = name[len("torch.") :] if name.startswith("torch.") else name
    return DType.__members__.get(name) or _TORCH.get(short)


def _by_object(dtype: Any) -> Optional[DType]:
    """By the name that a dtype, or a numpy scalar type, gives itself."""
    if type(dtype).__module__ == "torch":
        return _TORCH.get(str(dtype)[len("torch.") :])
    numpy = sys.modules.get("numpy")
    if numpy is None:
        return None
    try:
        described = numpy.dtype(dtype)
    except TypeError:
        return None
    return of_numpy(described) if dtype is not None else None


def of_torch(dtype: Any) -> Optional[DType]:
    """Of a torch.dtype; None when Weir has no such dtype."""
    return _TORCH.get(str(dtype)[len("torch.") :])


@functools.lru_cache(maxsize=64)  # numpy makes a dtype's name anew each time
def of_numpy(dtype: Any) -> Optional[DType]:
    """Of a numpy.dtype in native byte order; None when Weir has no such dtype."""
    if dtype.names is not None or dtype.subdtype is not None or not dtype.isnative:
        return None
    return _NUMPY.get(dtype.name)


def of_dlpack(code: int, bits: int) -> Optional[DType]:
    """Of a DLDataType's code and bits."""
    return _DLPACK.get((code, bits))


def of_format(text: str, element_bytes: int) -> Optional[DType]:
    """Of the buffer protocol's format and item size; None for what is not in native byte order."""
    native = {"little": "<", "big": ">"}[sys.byteorder]
    if text[:1] in ("@", "=", native):
        text = text[1:]
    if text in ("B", "H", "I", "L", "Q", "N", "c"):
        return _UNSIGNED.get(8 * element_bytes)
    if text in ("b", "h", "i", "l", "q", "n"):
        return _SIGNED.get(8 * element_bytes)
    return _FLOATS.get(text)


def is_raw(dtype: DType) -> bool:
    """Whether it is an integer type: what bits of a dtype that numpy lacks come in."""
    return dtype in _RAW


_RAW = frozenset(_UNSIGNED.values()) | frozenset(_SIGNED.values())


def n_bytes_of(dtype: DType, shape: Tuple[int, ...], label: str = "the array") -> int:
    """Bytes of a contiguous tensor. Raises :class:`CallError` when they are no whole number."""
    n = dtype.bits
    for extent in shape:
        n *= extent
    if n % 8 != 0:
        raise CallError(f"{label}: {dtype.name} {list(shape)} is no whole number of bytes")
    return n // 8


# ---- what others call them -------------------------------------------------------------------


def numpy_dtype(dtype: DType) -> Any:
    """numpy's dtype: ml_dtypes' where it is installed, else the unsigned integer of that width.

    Returns None for what is packed, F4 and F6: numpy can only hold its bytes.
    """
    import numpy

    if dtype.bits % 8 != 0:
        return None
    name = _TORCH_NAME[dtype]
    try:
        return numpy.dtype(name)
    except TypeError:
        pass
    try:
        import ml_dtypes

        return numpy.dtype(getattr(ml_dtypes, name))
    except (ImportError, AttributeError):
        return numpy.dtype(f"uint{dtype.bits}")


def torch_dtype(dtype: DType) -> Any:
    """torch's dtype, None where this torch has none. F4 is float4_e2m1fn_x2: pairs."""
    import torch

    return getattr(torch, _TORCH_NAME.get(dtype, ""), None)


def byte_shape(dtype: DType, shape: Tuple[int, ...]) -> Tuple[int, ...]:
    """The same memory as bytes: the last axis packed, or all flat where rows share bytes."""
    if not shape or shape[-1] * dtype.bits % 8 != 0:
        return (n_bytes_of(dtype, shape),)
    return (*shape[:-1], shape[-1] * dtype.bits // 8)
