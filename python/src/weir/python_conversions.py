# SPDX-License-Identifier: Apache-2.0
"""Conversions and selection rules written in Python: for trying one out, not for speed.

The C library calls them as it calls its own kernels, from any of its threads, on any tile. Each
tile is copied, converted under the GIL, and copied back: hundreds of times slower than a kernel. An
exception ends the conversion with an error; what it was is kept here until that error is raised,
which it becomes the cause of.
"""

from __future__ import annotations

import collections
import ctypes
import json
import logging
import re
import sys
import threading
from typing import Any, Callable, Deque, Dict, List, Mapping, NamedTuple, Optional
from typing import Sequence, Tuple, Union

from weir import abi, dtypes, logs
from weir.conversions import Output
from weir.dtypes import DType
from weir.errors import CallError, Status, check
from weir.library import library
from weir.tensors import Tensor, tensor

#: Fills the outputs, by suffix, of one tile. All are contiguous host memory: see Tensor.numpy().
ConvertFunction = Callable[[Tensor, Dict[str, Tensor]], None]


def register_conversion(
    name: str,
    fn: ConvertFunction,
    *,
    outputs: Sequence[Union[Output, Tuple[Any, ...]]],
    compile_target: str,
    compile_metadata: Optional[Mapping[str, Any]] = None,
    sources: Sequence[Any] = ("BF16", "F32", "F16"),
    summary: str = "",
    border: Tuple[int, int] = (0, 0),
    ranks: Tuple[int, int] = (2, 3),
) -> None:
    """Registers a conversion for the rest of the process.

    ``fn(source, outputs)`` gets one tile: ``source``, a read-only :class:`weir.Tensor` (rows, cols)
    of one of the dtypes ``sources``, and ``outputs``, a dict of tensors by suffix that it fills. It
    must not keep them. A tile is a whole matrix, or, with ``border`` (rows, cols), any multiple of
    that block, ragged at the edges; 0 is a whole axis. Tiles come one after the other, from any
    thread. What is not finite is refused before ``fn`` sees it, unless the caller propagates.

    ``outputs``: up to four :class:`weir.Output` or tuples ``(suffix, dtype, cell_rows,
    cell_cols)``. ``ranks``: the least and the most axes of a source, 3 with leading experts.

    Raises :class:`weir.CallError`: ERR_EXISTS for a name that is taken, ERR_INVALID.
    """
    if not isinstance(name, str) or not isinstance(compile_target, str):
        raise CallError(
            f"conversion {name!r} for {compile_target!r}: name and compile target are to be texts"
        )
    if not callable(fn):
        raise CallError(f"conversion '{name}': {fn!r} is no function")
    rows = [_output(name, output) for output in outputs]
    if len(rows) > abi.WEIR_MAX_OUTPUTS:
        raise CallError(f"conversion '{name}': {len(rows)} outputs, {abi.WEIR_MAX_OUTPUTS} at most")
    kernel = abi.weir_convert_fn(_Kernel(name, fn, rows))
    row = abi.weir_conversion(
        size=ctypes.sizeof(abi.weir_conversion),
        name=name.encode(),
        summary=f"{summary} (Python: slow)".strip().encode(),
        compile_target=compile_target.encode(),
        compile_metadata=_json(name, compile_metadata),
        sources=sum({1 << DType.of(dtype) for dtype in sources}),
        min_rank=ranks[0],
        max_rank=ranks[1],
        border_rows=border[0],
        border_cols=border[1],
        n_outputs=len(rows),
        reference=kernel,
    )
    for i, output in enumerate(rows):
        row.outputs[i] = abi.weir_conversion_output(
            output.suffix.encode(), output.dtype, output.cell_rows, output.cell_cols
        )
    check(library().weir_conversion_register(ctypes.byref(row)))
    _kept.append((row, kernel))  # the registry has pointers into both, for ever


def register_default_rule(
    matches: Callable[[Dict[str, Any]], Any], conversion: str, *, insert_first: bool = False
) -> None:
    """Adds a rule for ``conversion`` behind all others, or before them.

    ``matches(quantization_config)`` gets that part of a config.json as a dict; true selects the
    conversion, which may be registered later. A rule that raises cannot read its config, so it does
    not match.
    """
    if not isinstance(conversion, str):
        raise CallError(f"a rule is for a conversion's name, got {conversion!r}")
    if not callable(matches):
        raise CallError(f"the rule for '{conversion}': {matches!r} is no function")
    rule = abi.weir_default_rule_fn(_Rule(matches, conversion))
    text = conversion.encode()
    check(library().weir_default_rule_register(rule, None, text, insert_first))
    _kept.append((rule, text))


_kept: List[Any] = []


def _output(name: str, given: Union[Output, Tuple[Any, ...]]) -> Output:
    try:
        output = given if isinstance(given, Output) else Output(*given)
    except TypeError as error:
        raise CallError(f"conversion '{name}': output {given!r}: {error}") from error
    return Output(output.suffix, DType.of(output.dtype), output.cell_rows, output.cell_cols)


def _json(name: str, metadata: Optional[Mapping[str, Any]]) -> bytes:
    try:
        return json.dumps(dict(metadata or {}), separators=(",", ":")).encode()
    except (TypeError, ValueError) as error:
        raise CallError(f"conversion '{name}': its compile metadata is no JSON: {error}") from error


# ---- what went wrong -------------------------------------------------------------------------


class _Failure(NamedTuple):
    conversion: str
    address: int  # of the first output of the tile
    exception: BaseException


# Few: an exception holds on to the frames it came through.
_failures: Deque[_Failure] = collections.deque(maxlen=16)
_failing = threading.Lock()
_KERNEL_FAILED = re.compile(r"conversion '([^']*)': its kernel failed")


def failure_at(first: int, end: int) -> Optional[BaseException]:
    """Takes what was raised while converting into these addresses: the first of it, or None."""
    with _failing:
        mine = [failure for failure in _failures if first <= failure.address < end]
        for failure in mine:
            _failures.remove(failure)
    return mine[0].exception if mine else None


def failure_named_in(line: str) -> Optional[BaseException]:
    """Takes what the conversion raised that an error line names: the last of it, or None.

    For calls that do not know where they convert to, as ``publish()``. Where several of them fail
    in one conversion at once, the exceptions are handed out in any order.
    """
    named = _KERNEL_FAILED.search(line)
    if named is None:
        return None
    with _failing:
        for failure in reversed(_failures):
            if failure.conversion == named.group(1):
                _failures.remove(failure)
                return failure.exception
    return None


# ---- what C calls ----------------------------------------------------------------------------


class _Kernel:
    """A ``weir_convert_fn``. Never raises: statuses are all that C understands."""

    def __init__(self, name: str, fn: ConvertFunction, outputs: Sequence[Output]) -> None:
        self._name = name
        self._fn = fn
        self._outputs = outputs
        self._one_at_a_time = threading.RLock()
        self._was_used = False

    def __call__(self, tile_pointer: Any) -> int:
        tile = tile_pointer.contents
        try:
            with self._one_at_a_time:
                return self._convert(tile)
        except BaseException as exception:
            with _failing:
                _failures.append(_Failure(self._name, tile.out[0].data or 0, exception))
            return Status.ERR_INVALID

    def _convert(self, tile: Any) -> int:
        if not self._was_used:
            self._was_used = True
            logs.log(logging.WARNING, f"conversion '{self._name}' is written in Python: slow")
        source = _source_of(tile)
        if not tile.propagate and _has_nonfinite(source):
            return Status.ERR_NONFINITE
        rooms = [_room_for(output, tile) for output in self._outputs]
        self._fn(source, {room.name: room for room in rooms})
        for i in range(len(rooms)):
            _write_back(tile.out[i], rooms[i])
        return Status.OK


def _source_of(tile: Any) -> Tensor:
    """A copy of the tile's rows, one after the other."""
    dtype = DType(tile.dtype)
    row_bytes = tile.n_cols * dtype.bits // 8
    rows = tile.rows
    copied = b"".join(
        [ctypes.string_at(rows[i], row_bytes) if row_bytes else b"" for i in range(tile.n_rows)]
    )
    return tensor(copied, name="source", dtype=dtype, shape=(tile.n_rows, tile.n_cols))


def _room_for(output: Output, tile: Any) -> Tensor:
    n_rows = -(-tile.n_rows // output.cell_rows)
    shape: Tuple[int, ...] = (n_rows,)
    if output.cell_cols != abi.WEIR_WHOLE:
        shape = (n_rows, -(-tile.n_cols // output.cell_cols))
    memory = bytearray(dtypes.n_bytes_of(output.dtype, shape))
    return tensor(memory, name=output.suffix, dtype=output.dtype, shape=shape)


def _write_back(place: Any, filled: Tensor) -> None:
    n_rows = filled.shape[0]
    row_bytes = filled.n_bytes // n_rows if n_rows else 0
    for i in range(n_rows if row_bytes else 0):
        ctypes.memmove(
            place.data + i * place.pitch_bytes, filled.address + i * row_bytes, row_bytes
        )


# The bits of the exponent, all set in what is not finite.
_EXPONENTS = {
    DType.BF16: ("H", 0x7F80),
    DType.F16: ("H", 0x7C00),
    DType.F32: ("I", 0x7F800000),
    DType.F64: ("Q", 0x7FF0000000000000),
}


def _has_nonfinite(source: Tensor) -> bool:
    if source.dtype not in _EXPONENTS or source.n_bytes == 0:
        return False
    code, exponent = _EXPONENTS[source.dtype]
    words: Any = source.raw.cast(code)  # type: ignore[call-overload]
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        return bool(((numpy.asarray(words) & exponent) == exponent).any())
    return any(word & exponent == exponent for word in words)


class _Rule:
    """A ``weir_default_rule_fn``. Never raises."""

    def __init__(self, matches: Callable[[Dict[str, Any]], Any], conversion: str) -> None:
        self._matches = matches
        self._conversion = conversion

    def __call__(self, context: Any, config: int) -> int:
        try:
            return 1 if self._matches(_dict_of(config)) else 0
        except Exception as error:
            why = f"{type(error).__name__}: {error}"
            logs.log(
                logging.DEBUG, f"the rule for '{self._conversion}' cannot read a config: {why}"
            )
            return -1


def _dict_of(config: int) -> Dict[str, Any]:
    text = library().weir_config_text(config)
    if not text:
        raise CallError("the config has no text", Status.ERR_NO_MEMORY)
    try:
        read: Dict[str, Any] = json.loads(ctypes.string_at(text))
        return read
    finally:
        library().weir_string_free(text)
