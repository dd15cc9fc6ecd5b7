# SPDX-License-Identifier: Apache-2.0
"""Takes what ``__dlpack__`` gives, the old struct and the versioned one, without copying.

The producer's deleter is called once, when the last :class:`weir.Tensor` over its memory is gone.
Weir gives nothing out this way: see ``Tensor.numpy()`` and ``Tensor.torch()``.
"""

from __future__ import annotations

import ctypes
from ctypes import CFUNCTYPE, POINTER, Structure, c_int32, c_int64, c_uint8, c_uint16
from ctypes import c_uint32, c_uint64, c_void_p
from typing import Any, Dict, List, Optional, Tuple

from weir import dtypes
from weir.errors import CallError

CPU, CUDA, CUDA_HOST, CUDA_MANAGED = 1, 2, 3, 13
DEFAULT_STREAM = 1  # the legacy one: 0 is none of DLPack's streams

_READ_ONLY = 1
_IS_COPIED = 2
_SUB_BYTE_PADDED = 4

_DELETER = CFUNCTYPE(None, c_void_p)


class _Device(Structure):
    _fields_ = [("type", c_int32), ("id", c_int32)]


class _DataType(Structure):
    _fields_ = [("code", c_uint8), ("bits", c_uint8), ("lanes", c_uint16)]


class _DLTensor(Structure):
    _fields_ = [
        ("data", c_void_p),
        ("device", _Device),
        ("n_axes", c_int32),
        ("dtype", _DataType),
        ("shape", POINTER(c_int64)),
        ("strides", POINTER(c_int64)),
        ("byte_offset", c_uint64),
    ]


class _Managed(Structure):
    _fields_ = [("tensor", _DLTensor), ("context", c_void_p), ("deleter", _DELETER)]


class _ManagedVersioned(Structure):
    _fields_ = [
        ("major", c_uint32),
        ("minor", c_uint32),
        ("context", c_void_p),
        ("deleter", _DELETER),
        ("flags", c_uint64),
        ("tensor", _DLTensor),
    ]


# A PyDLL of our own: prototypes set on ctypes.pythonapi would be everybody's.
_python = ctypes.PyDLL(None)
_python.PyCapsule_IsValid.argtypes = [ctypes.py_object, ctypes.c_char_p]
_python.PyCapsule_GetPointer.restype = c_void_p
_python.PyCapsule_GetPointer.argtypes = [ctypes.py_object, ctypes.c_char_p]
_python.PyCapsule_SetName.argtypes = [ctypes.py_object, ctypes.c_char_p]

# The capsule keeps the pointer to its new name.
_USED, _USED_VERSIONED = b"used_dltensor", b"used_dltensor_versioned"


class Loan:
    """A producer's memory until this object dies. Fields as DLTensor's; strides in elements."""

    __slots__ = ("_managed", "address", "device", "dtype", "lanes", "shape", "strides", "read_only")

    def __init__(self, managed: Any, flags: int) -> None:
        self._managed = managed
        tensor = managed.contents.tensor
        n_axes = tensor.n_axes
        self.address = (tensor.data or 0) + tensor.byte_offset
        self.device: Tuple[int, int] = (tensor.device.type, tensor.device.id)
        self.dtype = (tensor.dtype.code, tensor.dtype.bits)
        self.lanes = tensor.dtype.lanes
        self.shape = tuple(tensor.shape[d] for d in range(n_axes))
        self.strides: Optional[List[int]] = (
            [tensor.strides[d] for d in range(n_axes)] if tensor.strides else None
        )
        self.read_only = bool(flags & _READ_ONLY)

    def __del__(self) -> None:
        managed = self._managed
        self._managed = None
        if managed is not None and managed.contents.deleter:
            managed.contents.deleter(ctypes.cast(managed, c_void_p))


def borrow(label: str, producer: Any) -> Loan:
    """Calls ``producer.__dlpack__()`` and takes what its capsule holds.

    Raises :class:`CallError`, named ``label``, for a producer that refuses or gives a copy.
    """
    capsule = _ask(label, producer)
    if _python.PyCapsule_IsValid(capsule, b"dltensor_versioned"):
        return _take_versioned(label, capsule)
    if _python.PyCapsule_IsValid(capsule, b"dltensor"):
        address = _python.PyCapsule_GetPointer(capsule, b"dltensor")
        _python.PyCapsule_SetName(capsule, _USED)
        return Loan(ctypes.cast(address, POINTER(_Managed)), 0)
    raise CallError(f"{label}: __dlpack__() of {_kind(producer)} gave no unused DLPack capsule")


def dtype_of(loan: Loan) -> Tuple[Optional[dtypes.DType], int, str]:
    """Weir's dtype or None, how many of it one element holds, and the producer's name for it."""
    code, bits = loan.dtype
    text = f"DLPack's (code {code}, {bits} bits, {loan.lanes} lanes)"
    dtype = dtypes.of_dlpack(code, bits)
    if dtype is None or (loan.lanes * bits) % 8 != 0 and bits != 4:
        return None, 1, text
    if loan.lanes != 1 and not (dtype is dtypes.DType.F4 and loan.lanes == 2):
        return None, 1, text
    return dtype, loan.lanes, text


def _ask(label: str, producer: Any) -> Any:
    # Producers older than a keyword do not know it. A copy would be trained past, so none is asked
    # for. A GPU's producer is told to order what it has queued before the default stream.
    kind, _ = producer.__dlpack_device__()
    stream = {"stream": DEFAULT_STREAM} if kind in (CUDA, CUDA_MANAGED) else {}
    wishes: List[Dict[str, Any]] = [
        {"max_version": (1, 1), "copy": False, **stream},
        {"max_version": (1, 1), **stream},
        stream,
    ]
    for wish in wishes:
        try:
            return producer.__dlpack__(**wish)
        except TypeError as error:
            if wish is wishes[-1]:
                raise _refused(label, producer, error) from error
        except (BufferError, ValueError, RuntimeError, NotImplementedError) as error:
            raise _refused(label, producer, error) from error


def _refused(label: str, producer: Any, why: BaseException) -> CallError:
    return CallError(f"{label}: {_kind(producer)} gives no DLPack tensor: {why}")


def _take_versioned(label: str, capsule: Any) -> Loan:
    address = _python.PyCapsule_GetPointer(capsule, b"dltensor_versioned")
    managed = ctypes.cast(address, POINTER(_ManagedVersioned))
    major, minor = managed.contents.major, managed.contents.minor
    if major > 1:  # left in its capsule, whose destructor deletes it
        raise CallError(f"{label}: DLPack {major}.{minor}, Weir reads 1.x")
    _python.PyCapsule_SetName(capsule, _USED_VERSIONED)
    flags = managed.contents.flags
    loan = Loan(managed, flags)
    if flags & _IS_COPIED:
        raise CallError(f"{label}: __dlpack__() gave a copy, which nothing would change any more")
    if flags & _SUB_BYTE_PADDED and loan.dtype[1] < 8:
        raise CallError(f"{label}: {loan.dtype[1]}-bit elements in a byte each, Weir's are packed")
    return loan


def _kind(producer: Any) -> str:
    return f"{type(producer).__module__}.{type(producer).__qualname__}"
