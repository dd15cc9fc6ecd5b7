# SPDX-License-Identifier: Apache-2.0
"""A described piece of memory, and how any array becomes one without a copy.

What is not contiguous is refused by name: a copy would be trained past. Nothing is imported that
was not imported before. Which kinds of arrays there are stands in ``weir.arrays``.
"""

from __future__ import annotations

import ctypes
import functools
import operator
import sys
from typing import Any, List, Optional, Sequence, Tuple, Type

from weir import abi, arrays, dtypes
from weir.arrays import refuse
from weir.dtypes import DType
from weir.errors import CallError, Status


class Tensor:
    """Contiguous, row-major memory: what every call of Weir takes and gives.

    ``name``; ``dtype``, a :class:`weir.DType`; ``shape``, in elements; ``address``, an int;
    ``n_bytes``; ``device``, "cpu" or "cuda:N"; ``read_only``; ``owner``, the object whose memory it
    is, kept alive by this one; ``stream``, the CUDA stream that an owner said it writes in, else
    None. Made by :func:`tensor`.
    """

    __slots__ = (
        "name",
        "dtype",
        "shape",
        "address",
        "n_bytes",
        "device",
        "read_only",
        "owner",
        "stream",
        "_keep",
        "_seen",
        "__weakref__",
    )

    def __init__(
        self,
        name: str,
        dtype: DType,
        shape: Sequence[int],
        address: int,
        *,
        device: str = "cpu",
        read_only: bool = False,
        owner: Any = None,
        stream: Optional[int] = None,
        keep: Any = None,
    ) -> None:
        """Describes memory that the caller vouches for: ``owner`` must keep ``address`` valid."""
        self.name = name
        self.dtype = dtype
        self.shape = tuple(int(extent) for extent in shape)
        self.address = address
        self.n_bytes = dtypes.n_bytes_of(dtype, self.shape, name or "the array")
        self.device = device
        self.read_only = read_only
        self.owner = owner
        self.stream = stream
        self._keep = keep
        self._seen = _look_of(owner)

    def __repr__(self) -> str:
        return f"Tensor({self.name!r}, {self.dtype.name} {list(self.shape)}, {self.device})"

    @property
    def is_host(self) -> bool:
        """Whether this processor reads it."""
        return self.device == "cpu"

    @property
    def raw(self) -> memoryview:
        """Its bytes, flat: a view that keeps the owner alive. Raises for memory of a GPU."""
        if not self.is_host:
            refuse(self.name or "the tensor", f"is on {self.device}, raw bytes are of host memory")
        view = self._window()
        return view.toreadonly() if self.read_only else view

    def _window(self) -> memoryview:
        if self.n_bytes == 0:
            return memoryview(bytearray())
        window = _window_type(self.n_bytes).from_address(self.address)
        window.owner = self
        return memoryview(window).cast("B")

    def numpy(self) -> Any:
        """A numpy array over the same memory. F4 and F6, which numpy cannot hold, as bytes."""
        import numpy

        flat = numpy.frombuffer(self.raw, dtype=numpy.uint8)
        dtype = dtypes.numpy_dtype(self.dtype)
        if dtype is None:
            return flat.reshape(dtypes.byte_shape(self.dtype, self.shape))
        return flat.view(dtype).reshape(self.shape)

    def torch(self) -> Any:
        """A torch tensor over the same memory. F6, which torch cannot hold, as bytes.

        torch knows no read-only memory: what must not be written must not be written through it.
        """
        import torch

        dtype = dtypes.torch_dtype(self.dtype)
        shape = self.shape
        if dtype is None:
            dtype, shape = torch.uint8, dtypes.byte_shape(self.dtype, self.shape)
        elif self.dtype is DType.F4:
            shape = dtypes.byte_shape(self.dtype, self.shape)
        if self.n_bytes == 0:
            return torch.empty(shape, dtype=dtype, device=self.device)
        if self.is_host:
            flat = torch.frombuffer(self._window(), dtype=torch.uint8)
        else:
            flat = torch.as_tensor(_CudaBytes(self), device=self.device)
        return flat.view(dtype).reshape(shape)

    def to_abi(self) -> abi.weir_tensor:
        """The C struct. It keeps the name's bytes alive, not the memory."""
        described = abi.weir_tensor(self.name.encode(), self.dtype, shape_to_abi(self.shape))
        described.data = self.address
        return described


def tensor(
    array: Any,
    *,
    name: str = "",
    dtype: Any = None,
    shape: Optional[Sequence[int]] = None,
    writable: bool = False,
) -> Tensor:
    """Describes ``array`` without copying it.

    ``array`` is a torch tensor, has ``__dlpack__``, ``__cuda_array_interface__`` or the buffer
    protocol, or is a :class:`Tensor`. ``dtype`` reads memory of integers as another dtype of that
    width ("BF16" over uint16; of any width with ``shape``); ``shape`` gives it another shape of as
    many bytes. ``writable`` refuses read-only memory.

    Raises :class:`weir.CallError` that names the array and both sides: strides that are not
    contiguous, a dtype that Weir lacks, more than 8 axes, memory that is not there.
    """
    label = name or "the array"
    if isinstance(array, Tensor):
        return _again(array, name, dtype, shape, writable)
    told = arrays.describe(label, array)
    if len(told.shape) > abi.WEIR_MAX_RANK:
        refuse(label, f"{len(told.shape)} axes, Weir's tensors have at most {abi.WEIR_MAX_RANK}")
    if told.strides is not None:
        expected = arrays.contiguous_strides(told.shape)
        refuse(label, f"strides {list(told.strides)}, contiguous would be {expected}")
    if told.dtype is None:
        refuse(label, f"dtype {told.dtype_text} is none of Weir's")
    if writable and told.read_only:
        refuse(label, "is read-only, and Weir would write to it")
    if told.address == 0 and 0 not in told.shape:
        refuse(label, f"is {told.dtype.name} {list(told.shape)} at address 0")
    as_dtype, as_shape = _reinterpreted(label, told.dtype, told.shape, dtype, shape)
    return Tensor(
        name,
        as_dtype,
        as_shape,
        told.address,
        device=told.device,
        read_only=told.read_only,
        owner=array,
        stream=told.stream,
        keep=told.keep,
    )


class Addresses:
    """Where tensors lie, looked at again and again: an optimizer may replace a torch storage.

    ``now`` has the address of each tensor in the order given, as of the last :meth:`look`.
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._tensors = list(tensors)
        self.now = [known.address for known in self._tensors]
        # Only torch's storages can be replaced; those of other kinds are held where they are.
        self._places = [i for i, known in enumerate(self._tensors) if known._seen is not None]
        self._owners = [self._tensors[i].owner for i in self._places]
        self._looks = [self._tensors[i]._seen for i in self._places]
        self._devices = list(map(_DEVICE, self._owners))
        self._addresses = [self.now[i] for i in self._places]

    def look(self) -> bool:
        """Reads all addresses again; True when one has changed since the last look.

        Well below a microsecond per tensor. Raises :class:`weir.CallError` or
        :class:`weir.VersionError` when a tensor changed its shape, dtype or device since it was
        described, or is no longer contiguous: it is to be registered again.
        """
        if not self._owners:
            return False
        torch = sys.modules["torch"]
        addresses = list(map(torch.Tensor.data_ptr, self._owners))
        moved = addresses != self._addresses
        looks_the_same = (
            list(map(_SHAPE_AND_DTYPE, self._owners)) == self._looks
            and all(map(torch.Tensor.is_contiguous, self._owners))
            and (not moved or list(map(_DEVICE, self._owners)) == self._devices)
        )
        if not looks_the_same:
            for i in self._places:
                _refuse_if_changed(self._tensors[i])
        if moved:
            self._addresses = addresses
            for i, address in zip(self._places, addresses):
                self.now[i] = self._tensors[i].address = address
        return moved


def addresses(tensors: Sequence[Tensor]) -> List[int]:
    """Where each tensor's memory lies by now; see :class:`Addresses`, which asks faster."""
    book = Addresses(tensors)
    book.look()
    return book.now


def shape_to_abi(shape: Sequence[int]) -> abi.weir_shape:
    """The C struct of a shape. Raises :class:`weir.CallError` beyond 8 axes."""
    if len(shape) > abi.WEIR_MAX_RANK:
        raise CallError(f"{len(shape)} axes, Weir's tensors have at most {abi.WEIR_MAX_RANK}")
    described = abi.weir_shape(len(shape))
    for axis, extent in enumerate(shape):
        described.dim[axis] = extent
    return described


def shape_of_abi(shape: abi.weir_shape) -> Tuple[int, ...]:
    """A C struct's shape as a tuple."""
    return tuple(shape.dim[: shape.rank])


def of_abi(described: abi.weir_tensor, *, device: str = "cpu", owner: Any = None) -> Tensor:
    """A C struct's tensor. ``owner`` keeps its memory, as a handle does that gave it."""
    return Tensor(
        (described.name or b"").decode(),
        DType(described.dtype),
        shape_of_abi(described.shape),
        described.data or 0,
        device=device,
        owner=owner,
    )


# ---- within ----------------------------------------------------------------------------------

_SHAPE_AND_DTYPE = operator.attrgetter("shape", "dtype")
_DEVICE = operator.attrgetter("device")


class _CudaBytes:
    """Hands a GPU tensor's bytes to torch, which keeps this object and so the owner."""

    def __init__(self, described: Tensor) -> None:
        self.tensor = described
        self.__cuda_array_interface__ = {
            "shape": (described.n_bytes,),
            "typestr": "|u1",
            "data": (described.address, False),
            "strides": None,
            "version": 2,
        }


@functools.lru_cache(maxsize=256)
def _window_type(n_bytes: int) -> Type[Any]:
    # A subclass, because its instances can hold on to an owner. Cached, as types are dear.
    return type("Window", (ctypes.c_ubyte * n_bytes,), {})


def _look_of(owner: Any) -> Optional[Tuple[Any, Any]]:
    """What a torch tensor looks like; None for owners whose memory cannot be replaced."""
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(owner, torch.Tensor):
        return None
    look: Tuple[Any, Any] = _SHAPE_AND_DTYPE(owner)
    return look


def _refuse_if_changed(known: Tensor) -> None:
    label = known.name or "the array"
    told = arrays.describe(label, known.owner)
    if told.strides is not None:
        expected = arrays.contiguous_strides(told.shape)
        refuse(label, f"strides {list(told.strides)}, contiguous would be {expected}")
    seen: Tuple[Any, Any] = known._seen or ((), None)
    now = (known.owner.shape, known.owner.dtype)
    if now != seen:
        refuse(
            label,
            f"is {list(now[0])} of {now[1]} now, was {list(seen[0])} of {seen[1]}",
            Status.ERR_LAYOUT,
        )
    if told.device != known.device:
        refuse(label, f"is on {told.device} now, was on {known.device}", Status.ERR_LAYOUT)


def _again(known: Tensor, name: str, dtype: Any, shape: Any, writable: bool) -> Tensor:
    label = name or known.name or "the array"
    if writable and known.read_only:
        refuse(label, "is read-only, and Weir would write to it")
    as_dtype, as_shape = _reinterpreted(label, known.dtype, known.shape, dtype, shape)
    same = as_dtype is known.dtype and as_shape == known.shape
    if same and name in ("", known.name):
        return known
    return Tensor(
        name or known.name,
        as_dtype,
        as_shape,
        known.address,
        device=known.device,
        read_only=known.read_only,
        owner=known.owner,
        stream=known.stream,
        keep=known._keep,
    )


def _reinterpreted(
    label: str, own: DType, own_shape: Tuple[int, ...], dtype: Any, shape: Optional[Sequence[int]]
) -> Tuple[DType, Tuple[int, ...]]:
    as_dtype = own if dtype is None else DType.of(dtype)
    as_shape = own_shape if shape is None else tuple(int(extent) for extent in shape)
    if as_dtype is not own and not dtypes.is_raw(own):
        refuse(label, f"is of {own.name}: only integers can be read as {as_dtype.name}")
    if as_dtype.bits != own.bits and shape is None:
        refuse(
            label,
            f"elements of {own.bits} bits read as {as_dtype.name} ({as_dtype.bits} bits) "
            "need a shape",
        )
    if len(as_shape) > abi.WEIR_MAX_RANK:
        refuse(label, f"{len(as_shape)} axes, Weir's tensors have at most {abi.WEIR_MAX_RANK}")
    if any(extent < 0 for extent in as_shape):
        refuse(label, f"shape {list(as_shape)} has a negative axis")
    has = dtypes.n_bytes_of(own, own_shape, label)
    wants = dtypes.n_bytes_of(as_dtype, as_shape, label)
    if has != wants:
        refuse(
            label,
            f"{as_dtype.name} {list(as_shape)} takes {wants} bytes, "
            f"{own.name} {list(own_shape)} has {has}",
        )
    return as_dtype, as_shape
