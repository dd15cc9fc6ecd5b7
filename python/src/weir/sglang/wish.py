# SPDX-License-Identifier: Apache-2.0
"""What the driver asks of SGLang's workers, and how that fits through an endpoint for tensors.

`POST /update_weights_from_tensor` takes one payload per tensor parallel rank: a pickle, base64, of
(name, tensor) pairs, which SGLang reads with a list of allowed globals. The wish is JSON in one
tensor of bytes. Its pickle is written here opcode by opcode, with `torch.ByteTensor` as its only
global: plain data, no memory that is shared with another process, good for workers on any host.
Weir reads no pickle: what comes out of SGLang's reader is a tensor, and the bytes in it are JSON.

The way back is `POST /get_weights_by_name`, which answers with a list of numbers: of the name
"weir.status" the bytes of a status, JSON again.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from typing import Any, Dict, Iterable, List, Mapping, Sequence, Tuple, Union

NAME = "weir.wish"
MOST_BYTES = 64 * 1024

# Opcodes of pickle's protocol 2.
_PROTO_2, _STOP = b"\x80\x02", b"."
_EMPTY_LIST, _APPEND, _MARK, _APPENDS = b"]", b"a", b"(", b"e"
_TUPLE1, _TUPLE2, _REDUCE = b"\x85", b"\x86", b"R"
_BYTE_TENSOR = b"ctorch\nByteTensor\n"


class WishError(ValueError):
    """A wish or a status that is none, and what is wrong with it."""


@dataclass(frozen=True)
class Wish:
    """Install `version` (a number above 0, or "latest": any newer one). `settings`: whom to follow,
    the fields of `weir.engines.worker_settings.Settings`, "directory" and "model" among them."""

    version: Union[int, str]
    settings: Mapping[str, Any]


def _is_version(version: Any) -> bool:
    is_number = isinstance(version, int) and not isinstance(version, bool)
    return version == "latest" or (is_number and version > 0)


def _unicode(text: str) -> bytes:
    encoded = text.encode("utf-8")
    return b"X" + struct.pack("<I", len(encoded)) + encoded


def _byte_tensor(content: bytes) -> bytes:
    """torch.ByteTensor([…]): a list of numbers below 256, each an opcode and a byte."""
    numbers = b"".join(b"K" + bytes((byte,)) for byte in content)
    return _BYTE_TENSOR + _EMPTY_LIST + _MARK + numbers + _APPENDS + _TUPLE1 + _REDUCE


def payload_of(wish: Wish) -> bytes:
    """The pickle of [(NAME, tensor of the wish's JSON)], one of `serialized_named_tensors`.

    Raises WishError for what is no wish, or too long for one.
    """
    if not _is_version(wish.version):
        raise WishError(f'version {wish.version!r}: a number above 0 or "latest" is wanted')
    try:
        told = {"version": wish.version, "settings": dict(wish.settings)}
        content = json.dumps(told, allow_nan=False).encode("utf-8")
    except (TypeError, ValueError) as problem:
        raise WishError(f"settings hold what is no JSON: {problem}") from problem
    if len(content) > MOST_BYTES:
        raise WishError(f"a wish of {len(content)} bytes, {MOST_BYTES} are the most")
    pair = _unicode(NAME) + _byte_tensor(content) + _TUPLE2
    return _PROTO_2 + _EMPTY_LIST + pair + _APPEND + _STOP


def wish_of(named_tensors: Iterable[Tuple[str, Any]]) -> Wish:
    """Reads the wish out of the tensors that SGLang hands to a loader, on whatever device they are.

    Raises WishError saying what came instead: weights, say, that were sent with Weir's load_format.
    """
    given = list(named_tensors)
    if len(given) != 1 or given[0][0] != NAME:
        names = ", ".join(str(name) for name, _ in given[:3]) or "nothing"
        raise WishError(f"one tensor '{NAME}' is wanted, {len(given)} came: {names}")
    tensor = given[0][1]
    if str(tensor.dtype) != "torch.uint8" or not 0 < tensor.numel() <= MOST_BYTES:
        raise WishError(f"'{NAME}' is {tensor.dtype} {list(tensor.shape)}: bytes are wanted")
    told = _json_object(bytes(tensor.flatten().tolist()), NAME)
    if not _is_version(told.get("version")):
        raise WishError(
            f'version {told.get("version")!r}: a number above 0 or "latest" is wanted'
        )
    if not isinstance(told.get("settings"), dict):
        raise WishError("settings: an object is wanted")
    return Wish(told["version"], told["settings"])


def _json_object(content: bytes, what: str) -> Dict[str, Any]:
    try:
        told = json.loads(content.decode("utf-8"))
    except (UnicodeDecodeError, ValueError) as problem:
        raise WishError(f"'{what}' is no JSON: {problem}") from problem
    if not isinstance(told, dict):
        raise WishError(f"'{what}' is no JSON object")
    return told


# ---- the way back --------------------------------------------------------------------------------


def numbers_of(status: Mapping[str, Any]) -> List[float]:
    """A status as /get_weights_by_name can answer it."""
    return [float(byte) for byte in json.dumps(status).encode("utf-8")]


def status_of(numbers: Any) -> Dict[str, Any]:
    """The status in such an answer. Raises WishError for any other."""
    is_list = isinstance(numbers, list) and 0 < len(numbers) <= MOST_BYTES
    if not is_list or not all(_is_byte(number) for number in numbers):
        raise WishError(f"no status of Weir's: {str(numbers)[:80]}")
    return _json_object(bytes(int(number) for number in numbers), "weir.status")


def _is_byte(number: Any) -> bool:
    return isinstance(number, (int, float)) and 0 <= number < 256 and number == int(number)


def payloads(wish: Wish, n_ranks: int) -> Sequence[bytes]:
    """The same for each tensor parallel rank: a rank reads its own."""
    if n_ranks < 1:
        raise WishError(f"{n_ranks} tensor parallel ranks")
    return [payload_of(wish)] * n_ranks
