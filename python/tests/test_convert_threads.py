# SPDX-License-Identifier: Apache-2.0
"""That weir.convert() leaks nothing, holds no lock, and runs in threads and in a forked child."""

from __future__ import annotations

import gc
import os
import resource
import sys
import threading
import time
import tracemalloc
from typing import Any, Dict

import pytest

import weir
from weir import pools

numpy = pytest.importorskip("numpy")
pytest.importorskip("ml_dtypes")

import recipes  # noqa: E402  (it needs both)
from recipes import assert_same, random  # noqa: E402

QUANTISING = ("fp8_128x128", "cutlass_fp8_e4m3_per_channel")


def test_sources_and_outputs_are_let_go() -> None:
    x = random((64, 64), "BF16")
    out = numpy.empty((64, 64), numpy.uint8)
    before = sys.getrefcount(x), sys.getrefcount(out)
    for _ in range(50):
        weir.convert("fp8_128x128", x, out={"weight": out})
        weir.convert("bf16_cast", weir.tensor(x, name="w"))
        with pytest.raises(weir.CallError):
            weir.convert("fp8_128x128", x, out={"weight": x})
    gc.collect()
    assert (sys.getrefcount(x), sys.getrefcount(out)) == before


def test_ten_thousand_conversions_take_no_memory() -> None:
    x = random((16, 16), "F32")
    plain = weir.tensor(bytearray(x.tobytes()), dtype="F32", shape=x.shape)

    def rounds(n: int) -> None:
        for _ in range(n):
            weir.convert("fp8_128x128", x)
            weir.convert("bf16_cast", plain)["weight"].raw

    rounds(500)
    gc.collect()
    tracemalloc.start()
    rounds(100)
    gc.collect()
    first = tracemalloc.get_traced_memory()[0]
    rounds(400)
    gc.collect()
    grown = tracemalloc.get_traced_memory()[0] - first
    tracemalloc.stop()
    assert grown < 16_000, f"{grown} bytes in 800 conversions"
    peak = peak_kib()
    rounds(4_000)
    assert peak_kib() - peak < 4_096


def peak_kib() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def test_eight_threads_convert_at_once() -> None:
    work = [(name, random((130 + i, 200), "BF16", i)) for i in range(4) for name in QUANTISING]
    expected = [recipes.RECIPES[name]([x]) for name, x in work]
    start, failures = threading.Barrier(8), []

    def convert(name: str, x: Any, right: Dict[str, Any]) -> None:
        start.wait(30)
        try:
            for _ in range(20):
                assert_same(weir.convert(name, x), right)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=convert, args=(*work[i], expected[i])) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not failures


def test_python_runs_on_while_weir_converts() -> None:
    x = random((2048, 2048), "F32")
    longest, beats, stop = [0.0], [0], threading.Event()

    def beat() -> None:
        while not stop.is_set():
            beats[0] += 1

    counter = threading.Thread(target=beat)
    counter.start()
    try:
        before = beats[0]
        begun = time.perf_counter()
        # The C reference in one thread: a call of a tenth of a second, far beyond the interval in
        # which Python switches threads, so beats stand still if the GIL is held.
        weir.convert("fp8_128x128", x, reference=True, n_threads=1)
        longest[0] = time.perf_counter() - begun
        during = beats[0] - before
    finally:
        stop.set()
        counter.join(10)
    assert longest[0] > 0.01 and during > 1000, f"{during} beats in {longest[0]:.3f} s"


@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_a_forked_child_converts() -> None:
    x = random((600, 600), "BF16")
    expected = weir.convert("fp8_128x128", x, n_threads=2)["weight"].tobytes()
    child = os.fork()
    if child == 0:
        has_none = not pools._pools._idle  # its parent's threads are not here
        same = weir.convert("fp8_128x128", x, n_threads=2)["weight"].tobytes() == expected
        os._exit(0 if same and has_none else 1)
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            assert status == 0
            return
        time.sleep(0.01)
    os.kill(child, 9)
    os.waitpid(child, 0)
    pytest.fail("the child hangs")
