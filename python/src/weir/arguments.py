# SPDX-License-Identifier: Apache-2.0
"""Python's arguments as the fields of C's options: texts, times, choices, versions.

What is refused here C could not even be told; everything else is C's to judge.
"""

from __future__ import annotations

import ctypes
import json
import math
import numbers
import operator
import os
from typing import Any, Iterable, Mapping, Optional, Tuple

from weir import abi
from weir.errors import CallError
from weir.security import Security

_MAX_MS = 2**32 - 1


def text(name: str, value: Any) -> Optional[bytes]:
    """A str, bytes or path as C has it; None stays None, which is the default."""
    if value is None:
        return None
    if not isinstance(value, (str, bytes, os.PathLike)):
        raise CallError(f"{name}: {value!r} is no text")
    encoded = os.fsencode(value)
    if b"\0" in encoded:
        raise CallError(f"{name}: {value!r} has a NUL character in it")
    return encoded


def json_text(name: str, value: Any) -> Optional[bytes]:
    """What is no text already, as JSON."""
    if value is None or isinstance(value, (str, bytes)):
        return text(name, value)
    try:
        return json.dumps(value).encode()
    except (TypeError, ValueError) as error:
        raise CallError(f"{name}: not to be said in JSON: {error}") from error


def config(value: Any) -> Optional[bytes]:
    """A config.json: its path, its text, or a mapping of what is in it."""
    if isinstance(value, Mapping):
        return json_text("config", dict(value))
    return text("config", value)


def milliseconds(name: str, seconds: Any) -> int:
    """At least one: C takes 0 for the default."""
    if isinstance(seconds, bool) or not isinstance(seconds, numbers.Real):
        raise CallError(f"{name}: {seconds!r} is no number of seconds")
    if not 0 <= float(seconds) * 1000 <= _MAX_MS:
        raise CallError(f"{name}: {seconds!r} s is not between 0 and {_MAX_MS // 1000}")
    return max(1, math.ceil(float(seconds) * 1000))


def whole(name: str, value: Any, most: int = _MAX_MS) -> int:
    """A number that C's field can hold."""
    try:
        number = operator.index(value)
    except TypeError:
        raise CallError(f"{name}: {value!r} is no whole number") from None
    if not 0 <= number <= most:
        raise CallError(f"{name}: {number} is not between 0 and {most}")
    return number


def axis(value: Any) -> int:
    """An axis of a tensor; negative ones count from its last."""
    try:
        return operator.index(value)
    except TypeError:
        raise CallError(f"axis: {value!r} is no whole number") from None


def version(value: Any) -> int:
    """A version's number, or "latest"."""
    if value == "latest":
        return abi.WEIR_LATEST
    return whole("version", value, abi.WEIR_LATEST - 1)


def choice(name: str, value: Any, choices: Mapping[Any, int]) -> int:
    """The number of a word."""
    if value not in choices:
        known = ", ".join(repr(word) for word in choices)
        raise CallError(f"{name}: {value!r} is none of {known}")
    return choices[value]


def security(value: Any) -> abi.weir_security:
    """A weir.Security; None is what the environment says."""
    if value is None:
        return abi.weir_security()
    if not isinstance(value, Security):
        raise CallError(f"security: {value!r} is no weir.Security")
    return value.to_abi()


def texts(name: str, values: Iterable[Any]) -> Tuple[Any, int]:
    """An array of C strings, and how many; the array keeps them."""
    if isinstance(values, (str, bytes)):
        raise CallError(f"{name}: {values!r} is one text, not a list of them")
    encoded = [text(name, value) for value in values]
    if None in encoded:
        raise CallError(f"{name}: None in a list of texts")
    return (ctypes.c_char_p * len(encoded))(*encoded), len(encoded)
