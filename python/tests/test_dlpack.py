# SPDX-License-Identifier: Apache-2.0
"""weir.tensor() over DLPack: producers written here in ctypes, which count their deleter's calls,
and numpy's and torch's own."""

from __future__ import annotations

import ctypes
import gc
import weakref
from typing import Any, Dict, List, Optional, Tuple

import pytest

import weir
from weir import dlpack

api = ctypes.PyDLL(None)
api.PyCapsule_New.restype = ctypes.py_object
api.PyCapsule_New.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]


class Producer:
    """Memory with __dlpack__: what it says is what its keyword arguments say."""

    def __init__(
        self,
        *,
        shape: Tuple[int, ...] = (2, 3),
        strides: Optional[List[int]] = None,
        code: int = 2,
        bits: int = 32,
        lanes: int = 1,
        device: Tuple[int, int] = (1, 0),
        version: Optional[Tuple[int, int]] = (1, 1),
        flags: int = 0,
        offset: int = 0,
        data: Optional[int] = None,
        deletes: bool = True,
        knows: Tuple[str, ...] = ("stream", "max_version", "dl_device", "copy"),
    ) -> None:
        self.memory = (ctypes.c_float * 24)(*range(24))
        self.n_deleted = 0
        self.asked: List[Dict[str, Any]] = []
        self._knows = knows
        self._shape = (ctypes.c_int64 * 9)(*shape)
        self._strides = (ctypes.c_int64 * 9)(*strides) if strides is not None else None
        self._deleter = dlpack._DELETER(self._delete if deletes else 0)
        kind = dlpack._ManagedVersioned if version else dlpack._Managed
        self.managed: Any = kind()
        if version:
            self.managed.major, self.managed.minor = version
            self.managed.flags = flags
        if deletes:
            self.managed.deleter = self._deleter
        tensor = self.managed.tensor
        tensor.data = ctypes.addressof(self.memory) if data is None else data
        tensor.device.type, tensor.device.id = device
        tensor.n_axes = len(shape)
        tensor.dtype.code, tensor.dtype.bits, tensor.dtype.lanes = code, bits, lanes
        tensor.shape = ctypes.cast(self._shape, ctypes.POINTER(ctypes.c_int64))
        if self._strides is not None:
            tensor.strides = ctypes.cast(self._strides, ctypes.POINTER(ctypes.c_int64))
        tensor.byte_offset = offset
        self._name = b"dltensor_versioned" if version else b"dltensor"
        self._device = device

    def _delete(self, managed: int) -> None:
        assert managed == ctypes.addressof(self.managed)
        self.n_deleted += 1

    def __dlpack_device__(self) -> Tuple[int, int]:
        return self._device

    def __dlpack__(self, **wishes: Any) -> Any:
        self.asked.append(wishes)
        for wish in wishes:
            if wish not in self._knows:
                raise TypeError(f"unexpected keyword argument '{wish}'")
        return api.PyCapsule_New(ctypes.addressof(self.managed), self._name, None)


@pytest.mark.parametrize("version", [None, (1, 0), (1, 1), (1, 9)])
def test_the_deleter_is_called_once_when_the_last_user_is_gone(version: Any) -> None:
    producer = Producer(version=version)
    got = weir.tensor(producer, name="w")
    assert (got.dtype.name, got.shape, got.device) == ("F32", (2, 3), "cpu")
    assert got.address == ctypes.addressof(producer.memory) and got.owner is producer
    renamed, view = weir.tensor(got, name="again"), got.raw
    del got
    assert producer.n_deleted == 0 and view.cast("f")[5] == 5.0
    del view
    assert producer.n_deleted == 0
    del renamed
    assert producer.n_deleted == 1


def test_the_producer_lives_as_long_as_its_memory() -> None:
    producer = Producer()
    alive = weakref.ref(producer)
    got = weir.tensor(producer)
    del producer
    gc.collect()
    assert alive() is not None
    del got
    gc.collect()  # its deleter is a method of its own
    assert alive() is None


def test_a_producer_without_a_deleter_is_fine() -> None:
    weir.tensor(Producer(deletes=False))


def test_old_producers_are_asked_without_what_they_do_not_know() -> None:
    for knows, n in (((), 3), (("stream",), 3), (("stream", "max_version"), 2)):
        producer = Producer(knows=knows, version=None)
        assert weir.tensor(producer).shape == (2, 3)
        assert len(producer.asked) == n and set(producer.asked[-1]) <= set(knows)
    producer = Producer()
    weir.tensor(producer)
    assert producer.asked == [{"max_version": (1, 1), "copy": False}]


def test_offsets_strides_and_axes() -> None:
    assert weir.tensor(Producer(offset=8)).raw.cast("f")[0] == 2.0
    assert weir.tensor(Producer(strides=[3, 1])).shape == (2, 3)
    assert weir.tensor(Producer(shape=(1, 6), strides=[99, 1])).shape == (1, 6)
    assert weir.tensor(Producer(shape=())).shape == ()
    assert weir.tensor(Producer(shape=(0, 3), strides=[1, 7], data=0)).n_bytes == 0


@pytest.mark.parametrize(
    "code,bits,lanes,expected,shape",
    [
        (4, 16, 1, "BF16", (2, 3)),
        (10, 8, 1, "F8_E4M3", (2, 3)),
        (12, 8, 1, "F8_E5M2", (2, 3)),
        (14, 8, 1, "F8_E8M0", (2, 3)),
        (6, 8, 1, "BOOL", (2, 3)),
        (5, 64, 1, "C64", (2, 3)),
        (1, 16, 1, "U16", (2, 3)),
        (0, 64, 1, "I64", (2, 3)),
        (17, 4, 2, "F4", (2, 6)),
    ],
)
def test_dtypes(code: int, bits: int, lanes: int, expected: str, shape: Tuple[int, ...]) -> None:
    got = weir.tensor(Producer(code=code, bits=bits, lanes=lanes))
    assert (got.dtype.name, got.shape) == (expected, shape)


@pytest.mark.parametrize(
    "device,expected", [((1, 0), "cpu"), ((3, 0), "cpu"), ((2, 5), "cuda:5"), ((13, 1), "cuda:1")]
)
def test_devices(device: Tuple[int, int], expected: str) -> None:
    producer = Producer(device=device)
    got = weir.tensor(producer)
    assert got.device == expected
    is_gpu = expected != "cpu"  # whose producer orders its work before the default stream
    assert got.stream == (1 if is_gpu else None)
    assert producer.asked[-1].get("stream") == (1 if is_gpu else None)
    assert ("stream" in producer.asked[-1]) == is_gpu


def test_read_only_memory() -> None:
    got = weir.tensor(Producer(flags=1))
    assert got.read_only and got.raw.readonly
    assert not weir.tensor(Producer(), writable=True).read_only
    producer = Producer(flags=1)
    with pytest.raises(weir.CallError, match="w: is read-only, and Weir would write to it"):
        weir.tensor(producer, name="w", writable=True)
    assert producer.n_deleted == 1


@pytest.mark.parametrize(
    "told,text",
    [
        ({"strides": [1, 2]}, "strides [1, 2], contiguous would be [3, 1]"),
        ({"strides": [0, 1]}, "strides [0, 1], contiguous would be [3, 1]"),
        ({"strides": [-3, 1]}, "strides [-3, 1], contiguous would be [3, 1]"),
        ({"shape": (1,) * 9}, "9 axes, Weir's tensors have at most 8"),
        ({"code": 2, "bits": 128}, "DLPack's (code 2, 128 bits, 1 lanes) is none of Weir's"),
        ({"lanes": 4}, "DLPack's (code 2, 32 bits, 4 lanes) is none of Weir's"),
        ({"code": 17, "bits": 4, "lanes": 2, "shape": ()}, "need at least one axis"),
        ({"code": 17, "bits": 4, "shape": (3,)}, "is no whole number of bytes"),
        ({"code": 17, "bits": 4, "flags": 4}, "4-bit elements in a byte each, Weir's are packed"),
        ({"flags": 2}, "gave a copy"),
        ({"device": (8, 0)}, "is on DLPack's device type 8, Weir takes CPU (1) and CUDA (2)"),
        ({"data": 0}, "is F32 [2, 3] at address 0"),
    ],
)
def test_what_is_refused_is_given_back(told: Dict[str, Any], text: str) -> None:
    producer = Producer(**told)
    with pytest.raises(weir.CallError) as caught:
        weir.tensor(producer, name="w")
    assert str(caught.value).startswith("w: ") and text in str(caught.value)
    del caught
    assert producer.n_deleted == 1


def test_another_major_version_stays_in_its_capsule() -> None:
    producer = Producer(version=(2, 0))
    with pytest.raises(weir.CallError, match="w: DLPack 2.0, Weir reads 1.x"):
        weir.tensor(producer, name="w")
    assert producer.n_deleted == 0  # its capsule's destructor would, of which it has none


def test_what_gives_no_capsule_is_refused() -> None:
    class Refuses:
        def __dlpack_device__(self) -> Tuple[int, int]:
            return 1, 0

        def __dlpack__(self, **wishes: Any) -> Any:
            raise BufferError("cannot be exported")

    class Lies(Refuses):
        def __dlpack__(self, **wishes: Any) -> Any:
            return "capsule"

    with pytest.raises(weir.CallError, match="w: .*Refuses gives no DLPack tensor: cannot be exp"):
        weir.tensor(Refuses(), name="w")
    with pytest.raises(weir.CallError, match="w: .*gave no unused DLPack capsule"):
        weir.tensor(Lies(), name="w")


class Through:
    """Hands on an array's __dlpack__ alone."""

    def __init__(self, array: Any) -> None:
        self._array = array

    def __dlpack__(self, **wishes: Any) -> Any:
        return self._array.__dlpack__(**wishes)

    def __dlpack_device__(self) -> Any:
        return self._array.__dlpack_device__()


def test_numpys_own() -> None:
    numpy = pytest.importorskip("numpy")
    source = numpy.arange(12, dtype=numpy.float32).reshape(3, 4)
    for _ in range(3):
        got = weir.tensor(Through(source))
        assert (got.dtype.name, got.shape) == ("F32", (3, 4)) and got.address == source.ctypes.data
    with pytest.raises(weir.CallError, match=r"strides \[1, 4\], contiguous would be \[3, 1\]"):
        weir.tensor(Through(source.T))


def test_torchs_own() -> None:
    torch = pytest.importorskip("torch")
    for dtype, expected in ((torch.bfloat16, "BF16"), (torch.float32, "F32"), (torch.int8, "I8")):
        source = torch.zeros(3, 4).to(dtype)
        got = weir.tensor(Through(source))
        assert (got.dtype.name, got.shape) == (expected, (3, 4))
        assert got.address == source.data_ptr()
    with pytest.raises(weir.CallError, match=r"strides \[1, 4\], contiguous would be \[3, 1\]"):
        weir.tensor(Through(torch.zeros(3, 4).t()))


def test_conversions_take_and_fill_it() -> None:
    source, out = Producer(), Producer()
    got = weir.convert("fp32_cast", source, out={"weight": out})
    assert got["weight"] is out
    out.memory[0] = -1.0
    weir.convert("fp32_cast", source, out={"weight": out})
    assert out.memory[0] == 0.0
    assert source.n_deleted == 2 and out.n_deleted == 2
