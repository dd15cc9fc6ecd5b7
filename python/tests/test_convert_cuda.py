# SPDX-License-Identifier: Apache-2.0
"""The path that weir.convert() takes for memory of a GPU, where there is none: the library's calls
on GPUs are replaced by others that use host memory, and say what they were asked. That the bytes of
real GPUs are right is shown by tests/gpu."""

from __future__ import annotations

import ctypes
from typing import Any, Dict, Iterator, List, Tuple

import pytest

import weir
from weir import abi, arrays, conversion_outputs, conversions, pools
from weir.library import library

DEVICE = 3


class HostGpu:
    """Stands for the library: GPU memory is the host's, a batch is weir_convert()."""

    def __init__(self) -> None:
        self.calls: List[Tuple[Any, ...]] = []
        self.memory: Dict[int, Any] = {}
        self.n_batches = 0
        self.wait_gives = 0
        self._status = 0

    def __getattr__(self, name: str) -> Any:
        assert not name.startswith("weir_cuda_"), f"{name}() has no stand-in"
        return getattr(library(), name)

    def weir_cuda_allocate(self, device: int, n_bytes: int, out: Any) -> int:
        block = ctypes.create_string_buffer(n_bytes)
        self.memory[ctypes.addressof(block)] = block
        out._obj.value = ctypes.addressof(block)
        return 0

    def weir_cuda_free(self, device: int, data: int) -> None:
        del self.memory[data]

    def weir_cuda_stream_wait(self, device: int, stream: Any) -> int:
        self.calls.append(("stream_wait", device, stream))
        return 0

    def weir_cuda_batch_open(self, device: int, out: Any) -> int:
        self.n_batches += 1
        out._obj.value = 0xBA7C0 + self.n_batches
        return 0

    def weir_cuda_batch_close(self, batch: int) -> None:
        self.calls.append(("close", batch))

    def weir_cuda_batch_start(self, batch: int, args: Any, n: int, stream: Any) -> int:
        self.calls.append(("start", batch, n, stream))
        self._status = library().weir_convert(args)
        return 0

    def weir_cuda_batch_wait(self, batch: int) -> int:
        return self.wait_gives or self._status


class OnGpu:
    """A bytearray that says it lies on a GPU."""

    def __init__(self, typestr: str, *shape: int, stream: Any = None) -> None:
        n_bytes = int(typestr[2:])
        for extent in shape:
            n_bytes *= extent
        self.memory = bytearray(n_bytes)
        self._at = ctypes.addressof((ctypes.c_char * n_bytes).from_buffer(self.memory))
        self.__cuda_array_interface__ = {
            "shape": shape,
            "typestr": typestr,
            "version": 3,
            "data": (self._at, False),
            "stream": stream,
        }


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[HostGpu]:
    fake = HostGpu()
    for module in (conversions, conversion_outputs, pools):
        monkeypatch.setattr(module, "library", lambda: fake)
    monkeypatch.setattr(pools, "_batches", pools._Shelf())
    monkeypatch.setattr(pools, "_abandoned", [])
    monkeypatch.setattr(arrays, "_device_of", lambda label, address: DEVICE)
    yield fake


def source(*shape: int, stream: Any = None) -> OnGpu:
    made = OnGpu("<f2", *shape, stream=stream)
    made.memory[:] = bytes(i % 60 for i in range(len(made.memory)))
    return made


def test_outputs_lie_beside_the_sources_and_are_freed(gpu: HostGpu) -> None:
    x = source(130, 20)
    expected = weir.convert("fp8_128x128", weir.tensor(x.memory, dtype="F16", shape=(130, 20)))
    got = weir.convert("fp8_128x128", x, stream=77)
    assert {t.device for t in got.values()} == {f"cuda:{DEVICE}"}
    for suffix, array in expected.items():
        block = gpu.memory[got[suffix].address]
        assert block.raw[: got[suffix].n_bytes] == array.raw.tobytes()
        assert (got[suffix].dtype, got[suffix].shape) == (array.dtype, array.shape)
    assert ("start", 0xBA7C1, 1, 77) in gpu.calls
    del got, block
    assert not gpu.memory


def test_given_outputs_are_filled_and_batches_are_used_again(gpu: HostGpu) -> None:
    x, weight = source(4, 8), OnGpu("<f4", 4, 8)
    for _ in range(5):
        assert weir.convert("fp32_cast", x, out={"weight": weight})["weight"] is weight
    assert weight.memory != bytearray(4 * 32) and gpu.n_batches == 1 and not gpu.memory
    with pytest.raises(weir.CallError, match="out.'weight'.: is on cpu, the sources are on cuda:3"):
        weir.convert("fp32_cast", x, out={"weight": memoryview(bytearray(128)).cast("f", (4, 8))})
    with pytest.raises(weir.CallError, match=r"sources\[1\]: is on cpu, sources\[0\] is on cuda:3"):
        weir.convert("fp32_cast", [x, memoryview(bytearray(128)).cast("f", (4, 8))])


@pytest.mark.parametrize(
    "written_in,read_in,waits",
    [
        (None, None, False),
        (None, 77, False),
        (1, None, False),
        (1, 77, True),
        (77, 77, False),
        (88, 77, True),
        (88, None, True),
    ],
)
def test_a_source_that_is_written_in_another_stream_is_waited_for(
    gpu: HostGpu, written_in: Any, read_in: Any, waits: bool
) -> None:
    weir.convert("fp32_cast", source(4, 8, stream=written_in), stream=read_in)
    expected = [("stream_wait", DEVICE, written_in)] if waits else []
    assert gpu.calls[:-1] == expected and gpu.calls[-1][0] == "start"


@pytest.mark.parametrize("attribute", ["cuda_stream", "ptr"])
def test_streams_of_torch_and_cupy_are_taken(gpu: HostGpu, attribute: str) -> None:
    stream = type("Stream", (), {attribute: 99})()
    weir.convert("fp32_cast", source(4, 8), stream=stream)
    assert gpu.calls[-1][3] == 99


def test_a_refused_weight_names_its_place(gpu: HostGpu) -> None:
    x = source(4, 8)
    x.memory[2 * 11 + 1] = 0x7E
    with pytest.raises(weir.CallError, match=r"up.weight\[1, 3\] is NaN"):
        weir.convert("fp32_cast", x, names="up.weight")
    assert not gpu.memory
    x.memory[2 * 11 + 1] = 0
    weir.convert("fp32_cast", x)
    assert gpu.n_batches == 1


def test_what_may_still_run_keeps_all_that_it_was_given(gpu: HostGpu) -> None:
    gpu.wait_gives = weir.Status.ERR_TIMED_OUT
    with pytest.raises(weir.TimedOut):
        weir.convert("fp32_cast", source(4, 8))
    assert len(gpu.memory) == 1 and len(pools._abandoned) == 1
    gpu.wait_gives = 0
    weir.convert("fp32_cast", source(4, 8))
    assert gpu.n_batches == 2  # nor is its batch used again
    assert isinstance(pools._abandoned[0][1][0], abi.weir_convert_args)
