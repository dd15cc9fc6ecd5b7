# SPDX-License-Identifier: Apache-2.0
"""What ``weir.convert()`` writes into: made in the kind of the sources, or given and then checked.

Every check of a given output comes before the first byte is written.
"""

from __future__ import annotations

import contextlib
import ctypes
import sys
from typing import Any, List, Mapping, NamedTuple, Optional, Sequence, Tuple

from weir import dtypes
from weir.arrays import refuse
from weir.dtypes import DType
from weir.errors import check
from weir.library import library
from weir.tensors import Tensor, tensor


class Wanted(NamedTuple):
    """One output of a conversion for given sources."""

    suffix: str
    dtype: DType
    shape: Tuple[int, ...]


class Ready(NamedTuple):
    """One output as Weir writes it, and as the caller gets it."""

    tensor: Tensor
    array: Any


def kind_of(array: Any) -> str:
    """What an output for such a source is: "torch", "numpy" or "weir"."""
    torch, numpy = sys.modules.get("torch"), sys.modules.get("numpy")
    if torch is not None and isinstance(array, torch.Tensor):
        return "torch"
    if numpy is not None and isinstance(array, (numpy.ndarray, numpy.generic)):
        return "numpy"
    return "weir"


def prepare(
    conversion: str,
    wanted: Sequence[Wanted],
    given: Optional[Mapping[str, Any]],
    kind: str,
    device: str,
    stream: Optional[int],
) -> List[Ready]:
    """An array for every output, those in ``given`` checked. Raises :class:`weir.CallError`."""
    given = {} if given is None else given
    for suffix in given:
        if suffix not in [output.suffix for output in wanted]:
            known = ", ".join(output.suffix for output in wanted)
            refuse(f"out[{suffix!r}]", f"conversion '{conversion}' writes {known}")
    checked = {
        output.suffix: _checked(output, given[output.suffix], device)
        for output in wanted
        if output.suffix in given
    }
    ready = []
    for output in wanted:
        if output.suffix in checked:
            ready.append(Ready(checked[output.suffix], given[output.suffix]))
        else:
            ready.append(_made(output, kind, device, stream))
    return ready


def refuse_overlaps(sources: Sequence[Tensor], outputs: Sequence[Ready]) -> None:
    """An output must share no byte with a source or with another output."""
    spans: List[Tuple[int, int, str]] = [
        (source.address, source.address + source.n_bytes, source.name) for source in sources
    ]
    for output, _ in outputs:
        first, end = output.address, output.address + output.n_bytes
        for other_first, other_end, name in spans:
            if first < other_end and other_first < end:
                refuse(output.name, f"shares memory with {name}")
        spans.append((first, end, output.name))


# ---- given -----------------------------------------------------------------------------------


def _checked(wanted: Wanted, array: Any, device: str) -> Tensor:
    label = f"out[{wanted.suffix!r}]"
    taken = tensor(array, name=label, writable=True)
    fits = taken.dtype is wanted.dtype or (
        dtypes.is_raw(taken.dtype) and taken.dtype.bits == wanted.dtype.bits
    )
    if not fits:
        refuse(label, f"is of {taken.dtype.name}, the conversion writes {wanted.dtype.name}")
    if taken.shape != wanted.shape:
        refuse(label, f"shape {list(taken.shape)}, the conversion writes {list(wanted.shape)}")
    if taken.device != device:
        refuse(label, f"is on {taken.device}, the sources are on {device}")
    return taken


# ---- made ------------------------------------------------------------------------------------


def _made(wanted: Wanted, kind: str, device: str, stream: Optional[int]) -> Ready:
    if kind == "torch":
        array = _made_by_torch(wanted, device, stream)
    elif kind == "numpy" and device == "cpu":
        array = _made_by_numpy(wanted)
    else:
        made = _made_by_weir(wanted, device)
        return Ready(made, made)
    described = tensor(array, name=wanted.suffix)
    return Ready(
        Tensor(
            wanted.suffix,
            wanted.dtype,
            wanted.shape,
            described.address,
            device=described.device,
            owner=array,
        ),
        array,
    )


def _made_by_torch(wanted: Wanted, device: str, stream: Optional[int]) -> Any:
    import torch

    dtype, shape = dtypes.torch_dtype(wanted.dtype), wanted.shape
    if dtype is None:
        dtype = torch.uint8
    if wanted.dtype.bits % 8 != 0:
        shape = dtypes.byte_shape(wanted.dtype, wanted.shape)
    # torch's allocator must know in which stream the memory is used first.
    used_in: Any = contextlib.nullcontext()
    if device != "cpu" and stream:
        used_in = torch.cuda.stream(torch.cuda.ExternalStream(stream, device=device))
    with used_in:
        return torch.empty(shape, dtype=dtype, device=device)


def _made_by_numpy(wanted: Wanted) -> Any:
    import numpy

    dtype = dtypes.numpy_dtype(wanted.dtype)
    if dtype is None:
        return numpy.empty(dtypes.byte_shape(wanted.dtype, wanted.shape), dtype=numpy.uint8)
    return numpy.empty(wanted.shape, dtype=dtype)


def _made_by_weir(wanted: Wanted, device: str) -> Tensor:
    n_bytes = dtypes.n_bytes_of(wanted.dtype, wanted.shape)
    if device != "cpu":
        owner = _CudaMemory(int(device[len("cuda:") :]), n_bytes)
        return Tensor(
            wanted.suffix, wanted.dtype, wanted.shape, owner.address, device=device, owner=owner
        )
    return tensor(bytearray(n_bytes), name=wanted.suffix, dtype=wanted.dtype, shape=wanted.shape)


class _CudaMemory:
    """Memory of a GPU, Weir's own; freed with this object."""

    __slots__ = ("_device", "address")

    def __init__(self, device: int, n_bytes: int) -> None:
        self.address = 0
        self._device = device
        if n_bytes == 0:
            return
        memory = ctypes.c_void_p()
        check(library().weir_cuda_allocate(device, n_bytes, ctypes.byref(memory)))
        self.address = memory.value or 0

    def __del__(self) -> None:
        if self.address:
            library().weir_cuda_free(self._device, self.address)
