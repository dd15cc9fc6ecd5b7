# SPDX-License-Identifier: Apache-2.0
"""Conversions: which there are, which one a config.json asks for, and ``convert()``.

What each writes, to the bit, stands in ``docs/formats.md``. Conversions and rules written in Python
are in ``weir.python_conversions``.
"""

from __future__ import annotations

import ctypes
import dataclasses
import json
import os
import sys
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple, Union

from weir import abi, arguments, conversion_outputs, dlpack, pools
from weir.arrays import refuse
from weir.conversion_outputs import Ready, Wanted
from weir.dtypes import DType
from weir.errors import CallError, Status, check
from weir.library import library
from weir.tensors import Tensor, shape_of_abi, tensor


@dataclasses.dataclass(frozen=True)
class Output:
    """One buffer that a conversion fills, named by ``suffix``.

    An element stands for ``cell_rows`` x ``cell_cols`` elements of the source, ragged cells
    counted; ``cell_cols`` 0: for a whole row, and the last axis is dropped.
    """

    suffix: str
    dtype: DType
    cell_rows: int = 1
    cell_cols: int = 1


@dataclasses.dataclass(frozen=True)
class Format:
    """A registered conversion. ``border`` is the block that a cut must respect, 0 a whole axis."""

    name: str
    summary: str
    compile_target: str
    compile_metadata: Dict[str, Any]
    sources: Tuple[DType, ...]
    outputs: Tuple[Output, ...]
    border: Tuple[int, int]
    ranks: Tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Family:
    """A model architecture that Weir has a table of. The first of ``layouts`` is the default."""

    name: str
    summary: str
    layouts: Tuple[str, ...]
    model_types: Tuple[str, ...]
    presets: Tuple[str, ...]


def formats() -> List[Format]:
    """All registered conversions, by name: those of Weir and those registered since."""
    n_room = 0
    while True:
        names = (ctypes.c_char_p * n_room)()
        n = library().weir_conversion_names(names, n_room)
        if n <= n_room:
            return [_format_of(row_of((names[i] or b"").decode())) for i in range(n)]
        n_room = n


def families() -> List[Family]:
    """All model architectures."""
    n = library().weir_families(None, 0)
    infos = (abi.weir_family_info * n)()
    library().weir_families(infos, n)
    return [
        Family(
            info.name.decode(),
            info.summary.decode(),
            _texts(info.layouts),
            _texts(info.model_types),
            _texts(info.presets),
        )
        for info in infos
    ]


def select_conversion(config: Union[str, "os.PathLike[str]", Mapping[str, Any]]) -> str:
    """The name of the conversion that a config.json asks for: a path, or its content.

    "bf16_cast" without a quantization_config; else what the first rule says that matches. Raises
    :class:`weir.CallError` (ERR_UNSUPPORTED) that lists what is registered when none does.
    """
    handle, row = ctypes.c_void_p(), ctypes.POINTER(abi.weir_conversion)()
    if isinstance(config, Mapping):
        try:
            text = json.dumps(config).encode()
        except (TypeError, ValueError) as error:
            raise CallError(f"the config is no JSON: {error}") from error
        check(library().weir_config_parse(text, b"the config", ctypes.byref(handle)))
    else:
        check(library().weir_config_open(os.fsencode(config), ctypes.byref(handle)))
    try:
        check(library().weir_conversion_select(handle, ctypes.byref(row)))
        name: bytes = row.contents.name
        return name.decode()
    finally:
        library().weir_config_close(handle)


def convert(
    conversion: str,
    sources: Any,
    *,
    axis: int = 0,
    n_experts: int = 0,
    out: Optional[Mapping[str, Any]] = None,
    names: Union[str, Sequence[str], None] = None,
    round_masters: bool = True,
    propagate: bool = False,
    reference: bool = False,
    n_threads: int = 0,
    stream: Any = None,
) -> Dict[str, Any]:
    """Converts one destination: its outputs by suffix, as "weight" and "weight_scale_inv".

    ``sources``: one array, or a list that is fused along ``axis`` first and quantised then: (rows,
    cols) along 0, stacked experts (E, rows, cols) along 1. With ``n_experts`` E the list has E *
    n matrices, expert by expert, and the destination is (E, rows, cols). Dtypes BF16, F16, F32,
    also mixed. All in host memory or all on one GPU.

    The outputs are of the first source's kind: torch tensors, numpy arrays, else
    :class:`weir.Tensor`. ``out`` gives some or all of them by suffix; integers of the width will
    do.

    ``names`` are what errors call the sources. ``round_masters``: F32 is rounded to bf16 first.
    ``propagate``: NaN and Inf are converted, not refused. ``reference``: the portable C kernel.
    ``n_threads``: 0, one per core. ``stream``: CUDA, a torch stream or a number; None: torch's
    current one. Returns when the outputs are written; the GIL is released meanwhile.

    Raises :class:`weir.CallError`: ERR_NOT_FOUND, ERR_INVALID, ERR_NONFINITE (with tensor and
    index). The content of outputs is then unspecified.
    """
    row = row_of(conversion)
    given = list(sources) if isinstance(sources, (list, tuple)) else [sources]
    taken = _taken(given, names)
    device = taken[0].device
    n_threads = arguments.whole("n_threads", n_threads)
    args = _args(row, taken, arguments.axis(axis), arguments.whole("n_experts", n_experts))
    args.round_masters, args.propagate, args.reference = round_masters, propagate, reference
    cuda_stream = None if device == "cpu" else _stream_of(stream, device)
    outputs = conversion_outputs.prepare(
        conversion,
        _wanted(row, args),
        out,
        conversion_outputs.kind_of(given[0]),
        device,
        cuda_stream,
    )
    conversion_outputs.refuse_overlaps(taken, outputs)
    for i, output in enumerate(outputs):
        args.outputs[i] = output.tensor.address
    if device == "cpu":
        _convert_here(args, outputs, n_threads)
    else:
        _convert_there(args, taken, outputs, int(device[len("cuda:") :]), cuda_stream)
    return {row.contents.outputs[i].suffix.decode(): o.array for i, o in enumerate(outputs)}


# ---- what a call says ------------------------------------------------------------------------


def _taken(given: Sequence[Any], names: Union[str, Sequence[str], None]) -> List[Tensor]:
    if not given:
        raise CallError("convert() was given no sources")
    called = [names] if isinstance(names, str) else list(names or ())
    if called and len(called) != len(given):
        raise CallError(f"{len(given)} sources have {len(called)} names")
    taken = []
    for i, array in enumerate(given):
        own = array.name if isinstance(array, Tensor) else ""
        name = called[i] if called else own or (f"sources[{i}]" if len(given) > 1 else "source")
        taken.append(tensor(array, name=name))
        if taken[i].device != taken[0].device:
            refuse(
                name,
                f"is on {taken[i].device}, {taken[0].name} is on {taken[0].device}: "
                "one call converts in one place",
            )
    return taken


def _args(row: Any, taken: Sequence[Tensor], axis: int, n_experts: int) -> abi.weir_convert_args:
    if n_experts and len(taken) % n_experts != 0:
        raise CallError(f"{len(taken)} sources are not the same number for {n_experts} experts")
    if axis < 0:
        axis += len(taken[0].shape)
    if n_experts and axis == 0:
        axis = 1
    if not 0 <= axis < abi.WEIR_MAX_RANK:
        raise CallError(f"axis {axis} is none of a tensor of {len(taken[0].shape)} axes")
    args = abi.weir_convert_args(ctypes.sizeof(abi.weir_convert_args))
    args.conversion = row
    args.sources = (abi.weir_tensor * len(taken))(*[source.to_abi() for source in taken])
    args.n_sources = len(taken) // n_experts if n_experts else len(taken)
    args.n_experts = n_experts
    args.axis = axis
    return args


def _wanted(row: Any, args: abi.weir_convert_args) -> List[Wanted]:
    fused, shape = abi.weir_shape(), abi.weir_shape()
    check(library().weir_convert_fused_shape(ctypes.byref(args), ctypes.byref(fused)))
    wanted = []
    for i in range(row.contents.n_outputs):
        output = row.contents.outputs[i]
        check(
            library().weir_conversion_output_shape(row, i, ctypes.byref(fused), ctypes.byref(shape))
        )
        wanted.append(Wanted(output.suffix.decode(), DType(output.dtype), shape_of_abi(shape)))
    return wanted


def _stream_of(stream: Any, device: str) -> Optional[int]:
    """A cudaStream_t, None for the default one: of a torch stream, a cupy stream or a number."""
    if stream is None:
        torch = sys.modules.get("torch")
        if torch is None or not torch.cuda.is_initialized():
            return None
        stream = torch.cuda.current_stream(device)
    number = getattr(stream, "cuda_stream", getattr(stream, "ptr", stream))
    if not isinstance(number, int):
        raise CallError(f"stream {stream!r} is neither a stream of torch or cupy nor a number")
    return number or None


# ---- running it ------------------------------------------------------------------------------


def _convert_here(args: abi.weir_convert_args, outputs: Sequence[Ready], n_threads: int) -> None:
    with pools.pool(n_threads) as pool:
        args.pool = pool
        status = library().weir_convert(ctypes.byref(args))
        if status != Status.OK:
            check(status, cause=_python_failure(outputs))


def _python_failure(outputs: Sequence[Ready]) -> Optional[BaseException]:
    """What a conversion in Python raised in this call: it was writing to these outputs."""
    written_in_python = sys.modules.get("weir.python_conversions")
    if written_in_python is None:
        return None
    first = outputs[0].tensor
    failure: Optional[BaseException] = written_in_python.failure_at(
        first.address, first.address + first.n_bytes
    )
    return failure


def _convert_there(
    args: abi.weir_convert_args,
    taken: Sequence[Tensor],
    outputs: Sequence[Ready],
    device: int,
    stream: Optional[int],
) -> None:
    read_in = stream or dlpack.DEFAULT_STREAM
    for written_in in {source.stream for source in taken} - {None, read_in}:
        check(library().weir_cuda_stream_wait(device, written_in))
    with pools.Batch(device) as batch:
        check(library().weir_cuda_batch_start(batch.handle, ctypes.byref(args), 1, stream))
        status = library().weir_cuda_batch_wait(batch.handle)
        if status == Status.ERR_TIMED_OUT:
            batch.abandon(args, taken, outputs)
        check(status)


# ---- rows ------------------------------------------------------------------------------------


def row_of(name: str) -> Any:
    """The C library's row of a conversion. Raises ERR_NOT_FOUND, which lists those there are."""
    row = ctypes.POINTER(abi.weir_conversion)()
    if not isinstance(name, str):
        raise CallError(f"conversion: {name!r} is no text, as \"bf16_cast\" is")
    check(library().weir_conversion_get(name.encode(), ctypes.byref(row)))
    return row


def _format_of(row: Any) -> Format:
    told = row.contents
    return Format(
        name=told.name.decode(),
        summary=(told.summary or b"").decode(),
        compile_target=told.compile_target.decode(),
        compile_metadata=json.loads(told.compile_metadata),
        sources=tuple(dtype for dtype in DType if told.sources >> dtype & 1),
        outputs=tuple(
            Output(o.suffix.decode(), DType(o.dtype), o.cell_rows, o.cell_cols)
            for o in told.outputs[: told.n_outputs]
        ),
        border=(told.border_rows, told.border_cols),
        ranks=(told.min_rank or 1, told.max_rank or abi.WEIR_MAX_RANK),
    )


def _texts(pointers: Any) -> Tuple[str, ...]:
    found: List[str] = []
    while pointers and pointers[len(found)] is not None:
        found.append(pointers[len(found)].decode())
    return tuple(found)
