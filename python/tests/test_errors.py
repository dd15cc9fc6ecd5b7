# SPDX-License-Identifier: Apache-2.0
"""One class per group of statuses, carrying the C line, through pickle, copy and threads."""

from __future__ import annotations

import copy
import gc
import pickle
import threading
import weakref
from typing import List, Type

import pytest

import weir
from weir import errors
from weir.library import library

GROUPS = [
    (-1, -19, weir.CallError),
    (-20, -39, weir.PeerError),
    (-40, -59, weir.VersionError),
    (-60, -79, weir.ContextError),
]
RAISED = [status for status in weir.Status if status < 0]


@pytest.mark.parametrize("status", RAISED)
def test_a_status_is_raised_as_its_group(status: weir.Status) -> None:
    group = next(kind for first, last, kind in GROUPS if last <= status <= first)
    error = errors.error_of(status, "what failed")
    assert isinstance(error, group) and isinstance(error, weir.WeirError)
    assert sum(isinstance(error, kind) for _, _, kind in GROUPS) == 1
    assert error.status is status and str(error) == "what failed"


def test_a_time_out_is_pythons_too() -> None:
    with pytest.raises(TimeoutError) as caught:
        raise errors.error_of(weir.Status.ERR_TIMED_OUT, "rank 3 is missing")
    assert isinstance(caught.value, weir.PeerError) and str(caught.value) == "rank 3 is missing"
    assert not isinstance(errors.error_of(weir.Status.ERR_PEER_LOST, ""), TimeoutError)


@pytest.mark.parametrize("number", [-19, -39, -59, -79, -99])
def test_a_status_of_a_newer_library_is_raised_as_its_group(number: int) -> None:
    error = errors.error_of(number, "new")
    group = next(
        (kind for first, last, kind in GROUPS if last <= number <= first), weir.ContextError
    )
    assert type(error) is group and error.status == number


@pytest.mark.parametrize(
    "kind", [weir.CallError, weir.PeerError, weir.TimedOut, weir.VersionError, weir.ContextError]
)
def test_an_error_survives_pickle_and_copy(kind: Type[weir.WeirError]) -> None:
    error = kind("é: expected [1, 2], got [3]")
    for again in (pickle.loads(pickle.dumps(error)), copy.copy(error), copy.deepcopy(error)):
        assert type(again) is kind
        assert (str(again), again.status) == (str(error), error.status)
    assert str(error) in repr(error)


def test_check_returns_what_is_no_failure() -> None:
    assert errors.check(weir.Status.OK) == 0
    assert errors.check(weir.Status.IN_PROGRESS) == 1


def test_check_raises_this_threads_line() -> None:
    lines: List[str] = []

    def fail(name: str, first: threading.Barrier) -> None:
        status = library().weir_conversion_get(name.encode(), None)
        first.wait(10)
        try:
            errors.check(status)
        except weir.CallError as error:
            lines.append(str(error))

    together = threading.Barrier(2)
    threads = [threading.Thread(target=fail, args=(name, together)) for name in ("one", "two")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert sorted(line.split(";")[0] for line in lines) == [
        "unknown conversion 'one'",
        "unknown conversion 'two'",
    ]


def test_a_cause_is_kept_and_an_interrupt_goes_through() -> None:
    library().weir_conversion_get(b"none", None)
    why = ZeroDivisionError()
    with pytest.raises(weir.CallError) as caught:
        errors.check(weir.Status.ERR_NOT_FOUND, cause=why)
    assert caught.value.__cause__ is why
    with pytest.raises(KeyboardInterrupt):
        errors.check(weir.Status.ERR_NOT_FOUND, cause=KeyboardInterrupt())


def test_an_error_keeps_its_callers_memory_no_longer_than_itself() -> None:
    class Owned(bytearray):
        pass

    def refused() -> "weakref.ref[Owned]":
        memory = Owned(8)
        alive = weakref.ref(memory)
        try:
            weir.convert(
                "fp32_cast",
                weir.tensor(memory, dtype="F32", shape=(2,)),
                axis=5,
                names="w",
                out={"weight": b""},
            )
        except weir.CallError:
            pass
        try:
            weir.convert("fp8_128x128", weir.tensor(memory, dtype="F32", shape=(2,)))
        except weir.CallError:
            pass
        return alive

    gc.disable()
    try:
        assert refused()() is None
    finally:
        gc.enable()
