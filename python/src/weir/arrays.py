# SPDX-License-Identifier: Apache-2.0
"""What an object says of its memory: one reader for each kind of array that Weir takes.

Kinds are told by what they are or have, in the order of ``describe()``; torch and numpy are not
imported for it. Readers refuse what has no plain memory, by name; what shape, dtype and strides
mean is judged in ``weir.tensors``.
"""

from __future__ import annotations

import ctypes
import sys
from typing import Any, List, NamedTuple, NoReturn, Optional, Sequence, Set, Tuple

from weir import dlpack, dtypes
from weir.dtypes import DType
from weir.errors import CallError, Status, check, error_of


class Described(NamedTuple):
    """Memory as its owner describes it. ``strides`` in elements; None when it is contiguous."""

    address: int
    dtype: Optional[DType]
    dtype_text: str  # the owner's own name of it
    shape: Tuple[int, ...]
    strides: Optional[Sequence[int]]
    device: str
    read_only: bool
    keep: Any  # besides the object itself: what holds the memory where it is
    stream: Optional[int] = None  # CUDA: what is queued there writes the memory


def describe(label: str, array: Any) -> Described:
    """``label`` names the array in errors. Raises :class:`CallError`."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(array, torch.Tensor):
        return _of_torch(label, array)
    numpy = sys.modules.get("numpy")
    if numpy is not None and isinstance(array, numpy.ndarray):
        return _of_numpy(label, array)
    if hasattr(array, "__dlpack__") and hasattr(array, "__dlpack_device__"):
        return _of_dlpack(label, array)
    if hasattr(array, "__cuda_array_interface__"):
        return _of_cuda_interface(label, array)
    return _of_buffer(label, array)


def refuse(label: str, why: str, status: int = Status.ERR_INVALID) -> NoReturn:
    raise error_of(status, f"{label}: {why}")


def contiguous_strides(shape: Sequence[int]) -> List[int]:
    """Of a row-major tensor, in elements."""
    strides, step = [], 1
    for extent in reversed(shape):
        strides.append(step)
        step *= max(extent, 1)
    return strides[::-1]


def is_contiguous(shape: Sequence[int], strides: Sequence[int]) -> bool:
    """Whether elements follow each other; axes of one element do not count, nor do no elements."""
    if 0 in shape:
        return True
    expected = contiguous_strides(shape)
    return all(n == 1 or s == e for n, s, e in zip(shape, strides, expected))


def _kinds_of(array: Any) -> Set[str]:
    """The names of its type and that one's bases: types are known without their modules."""
    return {kind.__name__ for kind in type(array).__mro__}


# ---- torch -----------------------------------------------------------------------------------


def _of_torch(label: str, tensor: Any) -> Described:
    _refuse_without_memory(label, tensor)
    device = tensor.device.type
    if device not in ("cpu", "cuda"):
        refuse(label, f"is on {tensor.device}, Weir takes cpu and cuda", Status.ERR_UNSUPPORTED)
    if device == "cuda":
        device = f"cuda:{tensor.device.index}"
    try:
        address = tensor.data_ptr()
    except RuntimeError as error:
        raise CallError(f"{label}: {_kind(tensor)} has no memory: {error}") from error
    if address == 0 and tensor.numel() != 0:
        refuse(label, f"{_kind(tensor)} has no memory of its own")
    shape: Tuple[int, ...] = tuple(tensor.shape)
    strides: Optional[Tuple[int, ...]] = None if tensor.is_contiguous() else tensor.stride()
    dtype = dtypes.of_torch(tensor.dtype)
    if dtype is DType.F4:
        if strides is not None:
            refuse(label, f"strides {list(strides)} of packed pairs are not contiguous")
        shape = _unpacked(label, shape)
    return Described(address, dtype, str(tensor.dtype), shape, strides, device, False, None)


def _refuse_without_memory(label: str, tensor: Any) -> None:
    kinds = _kinds_of(tensor)
    if "DTensor" in kinds:
        refuse(
            label, "is a DTensor, here plain memory is asked for: weir.shards_of() gives its parts"
        )
    if "FakeTensor" in kinds or tensor.device.type == "meta":
        refuse(label, f"is a {'meta' if tensor.is_meta else 'fake'} tensor, which has no memory")
    if str(tensor.layout) != "torch.strided":
        refuse(label, f"layout {tensor.layout}, Weir takes torch.strided")
    if tensor.is_quantized:
        refuse(label, f"is quantized ({tensor.dtype}), Weir takes plain dtypes")
    if tensor.is_conj() or tensor.is_neg():
        bit = "conjugate" if tensor.is_conj() else "negative"
        refuse(label, f"its {bit} bit is set, so its memory holds other values: resolve it first")


def _unpacked(label: str, shape: Tuple[int, ...]) -> Tuple[int, ...]:
    if not shape:
        refuse(label, "pairs of F4 need at least one axis, got shape []")
    return (*shape[:-1], 2 * shape[-1])


# ---- numpy -----------------------------------------------------------------------------------


def _of_numpy(label: str, array: Any) -> Described:
    if "MaskedArray" in _kinds_of(array):
        refuse(label, "is a masked array, Weir takes plain ones")
    dtype = array.dtype
    if not dtype.isnative:
        refuse(label, f"dtype {dtype.str} is not in this machine's byte order")
    strides = None
    if not array.flags.c_contiguous:
        strides = _in_elements(label, array.strides, dtype.itemsize)
    address = array.__array_interface__["data"][0]
    return Described(
        address,
        dtypes.of_numpy(dtype),
        f"numpy's {dtype.name}",
        array.shape,
        strides,
        "cpu",
        not array.flags.writeable,
        None,
    )


def _in_elements(label: str, strides: Sequence[int], element_bytes: int) -> List[int]:
    if element_bytes == 0 or any(stride % element_bytes != 0 for stride in strides):
        refuse(label, f"strides {list(strides)} in bytes, elements are of {element_bytes}")
    return [stride // element_bytes for stride in strides]


# ---- DLPack ----------------------------------------------------------------------------------


def _of_dlpack(label: str, array: Any) -> Described:
    loan = dlpack.borrow(label, array)
    kind, index = loan.device
    if kind not in (dlpack.CPU, dlpack.CUDA, dlpack.CUDA_HOST, dlpack.CUDA_MANAGED):
        refuse(label, f"is on DLPack's device type {kind}, Weir takes CPU (1) and CUDA (2)")
    device = f"cuda:{index}" if kind in (dlpack.CUDA, dlpack.CUDA_MANAGED) else "cpu"
    dtype, lanes, text = dlpack.dtype_of(loan)
    shape, strides = loan.shape, loan.strides
    if strides is not None and is_contiguous(shape, strides):
        strides = None
    if lanes == 2:
        if strides is not None:
            refuse(label, f"strides {strides} of packed pairs are not contiguous")
        shape = _unpacked(label, shape)
    stream = dlpack.DEFAULT_STREAM if device != "cpu" else None
    return Described(
        loan.address, dtype, text, shape, strides, device, loan.read_only, loan, stream
    )


# ---- __cuda_array_interface__ ----------------------------------------------------------------

_INTERFACE_DTYPES = {
    "b1": DType.BOOL,
    "u1": DType.U8,
    "i1": DType.I8,
    "u2": DType.U16,
    "i2": DType.I16,
    "u4": DType.U32,
    "i4": DType.I32,
    "u8": DType.U64,
    "i8": DType.I64,
    "f2": DType.F16,
    "f4": DType.F32,
    "f8": DType.F64,
    "c8": DType.C64,
}


def _of_cuda_interface(label: str, array: Any) -> Described:
    told = array.__cuda_array_interface__
    try:
        typestr, shape = str(told["typestr"]), tuple(told["shape"])
        address, read_only = told["data"]
    except (KeyError, TypeError, ValueError) as error:
        raise CallError(
            f"{label}: its __cuda_array_interface__ {told!r} is to have typestr, shape and data, "
            f"a pair: {type(error).__name__} {error}"
        ) from error
    if told.get("mask") is not None:
        refuse(label, "is masked, Weir takes plain arrays")
    foreign = {"little": ">", "big": "<"}[sys.byteorder]
    if typestr[0] == foreign:
        refuse(label, f"dtype {typestr} is not in this machine's byte order")
    dtype = _INTERFACE_DTYPES.get(typestr[1:])
    strides = told.get("strides")
    if strides is not None:
        strides = _in_elements(label, strides, int(typestr[2:]))
        strides = None if is_contiguous(shape, strides) else strides
    if told.get("stream") == 0:
        refuse(label, "its stream is 0, which __cuda_array_interface__ forbids: 1 or 2")
    device = f"cuda:{_device_of(label, address)}" if address else "cuda:0"
    stream = told.get("stream")
    return Described(
        address or 0, dtype, typestr, shape, strides, device, bool(read_only), None, stream
    )


def _device_of(label: str, address: int) -> int:
    from weir.library import library

    index = ctypes.c_uint()
    try:
        check(library().weir_cuda_device_of(address, ctypes.byref(index)))
    except CallError as error:
        raise error_of(error.status, f"{label}: {error}") from None
    return index.value


# ---- the buffer protocol ---------------------------------------------------------------------


class _PyBuffer(ctypes.Structure):
    _fields_ = [
        ("buf", ctypes.c_void_p),
        ("obj", ctypes.c_void_p),
        ("n_bytes", ctypes.c_ssize_t),
        ("element_bytes", ctypes.c_ssize_t),
        ("read_only", ctypes.c_int),
        ("n_axes", ctypes.c_int),
        ("format", ctypes.c_void_p),
        ("shape", ctypes.c_void_p),
        ("strides", ctypes.c_void_p),
        ("suboffsets", ctypes.c_void_p),
        ("internal", ctypes.c_void_p),
    ]


# A PyDLL of our own: prototypes set on ctypes.pythonapi would be everybody's.
_python = ctypes.PyDLL(None)
_python.PyObject_GetBuffer.argtypes = [ctypes.py_object, ctypes.POINTER(_PyBuffer), ctypes.c_int]
_python.PyBuffer_Release.argtypes = [ctypes.POINTER(_PyBuffer)]
_python.PyBuffer_Release.restype = None
_FULL_READ_ONLY = 0x011C  # PyBUF_FULL_RO


def _of_buffer(label: str, array: Any) -> Described:
    try:
        view = memoryview(array)
    except (TypeError, ValueError, BufferError) as error:
        raise CallError(
            f"{label}: {_kind(array)} is no array: torch tensors, __dlpack__, "
            f"__cuda_array_interface__ and the buffer protocol are taken ({error})"
        ) from error
    shape = tuple(view.shape or ())
    strides = None
    if not view.c_contiguous:
        strides = _in_elements(label, view.strides or (), view.itemsize)
    dtype = dtypes.of_format(view.format, view.itemsize)
    text = f"the buffer format '{view.format}'"
    address = _address_of(view)
    return Described(address, dtype, text, shape, strides, "cpu", view.readonly, view)


def _address_of(view: memoryview) -> int:
    """Of a view's first element; the view itself keeps it there."""
    buffer = _PyBuffer()
    _python.PyObject_GetBuffer(view, ctypes.byref(buffer), _FULL_READ_ONLY)
    try:
        return buffer.buf or 0
    finally:
        _python.PyBuffer_Release(ctypes.byref(buffer))


def _kind(array: Any) -> str:
    return f"{type(array).__module__}.{type(array).__qualname__}"
