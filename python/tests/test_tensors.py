# SPDX-License-Identifier: Apache-2.0
"""How arrays of every kind become weir.Tensors over the same memory, and which are refused."""

from __future__ import annotations

import array
import gc
import sys
import time
import weakref
from typing import Any, Callable, List, Optional, Tuple

import pytest

import weir
from weir import arrays, tensors

numpy = pytest.importorskip("numpy")
ml_dtypes = pytest.importorskip("ml_dtypes")

try:
    import torch
except ImportError:
    torch = None
needs_torch = pytest.mark.skipif(torch is None, reason="needs torch")


class Interface:
    """Something with __cuda_array_interface__."""

    def __init__(self, **told: Any) -> None:
        self.__cuda_array_interface__ = {
            "shape": (2, 3),
            "typestr": "<f4",
            "data": (4096, False),
            "version": 3,
            **told,
        }


@pytest.fixture
def some_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets addresses be those of a GPU, of which this machine may have none."""
    monkeypatch.setattr(arrays, "_device_of", lambda label, address: 3)


# ---- taken -----------------------------------------------------------------------------------

NUMPY = {
    "bool": "BOOL",
    "uint8": "U8",
    "int8": "I8",
    "uint16": "U16",
    "int16": "I16",
    "uint32": "U32",
    "int32": "I32",
    "uint64": "U64",
    "int64": "I64",
    "float16": "F16",
    "float32": "F32",
    "float64": "F64",
    "complex64": "C64",
    "bfloat16": "BF16",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
    "float8_e8m0fnu": "F8_E8M0",
    "float8_e4m3fnuz": "F8_E4M3FNUZ",
    "float8_e5m2fnuz": "F8_E5M2FNUZ",
}


@pytest.mark.parametrize("name", NUMPY)
def test_numpy_arrays_of_every_dtype(name: str) -> None:
    if not hasattr(numpy, name) and not hasattr(ml_dtypes, name) and name != "bool":
        pytest.skip(f"this ml_dtypes has no {name}")
    dtype = numpy.dtype(getattr(ml_dtypes, name, name))
    source = numpy.zeros((2, 5), dtype)
    source.view(numpy.uint8)[:] = numpy.arange(source.nbytes, dtype=numpy.uint8).reshape(2, -1) % 2
    got = weir.tensor(source, name="w")
    assert (got.name, got.dtype.name, got.shape) == ("w", NUMPY[name], (2, 5))
    assert got.address == source.ctypes.data and got.device == "cpu" and got.owner is source
    assert got.n_bytes == source.nbytes and got.raw == source.tobytes()
    assert got.numpy().dtype == dtype and got.numpy().tobytes() == source.tobytes()
    assert weir.DType.of(dtype) is got.dtype


@needs_torch
def test_torch_tensors_of_every_dtype() -> None:
    taken = 0
    for name, expected in {**NUMPY, "float4_e2m1fn_x2": "F4"}.items():
        dtype = getattr(torch, name, None)
        if dtype is None:
            continue
        taken += 1
        source = torch.arange(32, dtype=torch.uint8).remainder(2)[:16].reshape(2, 8).view(dtype)
        got = weir.tensor(source)
        assert got.dtype.name == expected and weir.DType.of(dtype) is got.dtype
        assert got.address == source.data_ptr() and got.n_bytes == 16 and got.device == "cpu"
        last = source.shape[1] * (2 if expected == "F4" else 1)
        assert got.shape == (2, last)
        again = got.torch()
        assert again.dtype is dtype and again.shape == source.shape
        assert again.data_ptr() == source.data_ptr()
    assert taken >= 19


@needs_torch
def test_torch_parameters_and_what_requires_a_gradient() -> None:
    parameter = torch.nn.Parameter(torch.zeros(3, 4))
    assert weir.tensor(parameter).address == parameter.data_ptr()
    computed = torch.ones(3, 4, requires_grad=True)
    assert weir.tensor(computed).address == computed.data_ptr()
    with torch.inference_mode():
        assert weir.tensor(torch.zeros(2)).shape == (2,)


@needs_torch
def test_torch_views_that_are_contiguous() -> None:
    whole = torch.arange(24.0).reshape(4, 6)
    rows = whole[1:3]
    assert weir.tensor(rows).raw == whole.numpy()[1:3].tobytes()
    assert weir.tensor(whole[2:3].t()[:, 0]).shape == (6,)  # strides of one column do not count
    assert weir.tensor(torch.zeros(1, 5).expand(1, 5)).shape == (1, 5)
    assert weir.tensor(torch.zeros(0, 7).t()).shape == (7, 0)


@pytest.mark.parametrize(
    "source,dtype,shape",
    [
        (bytearray(6), "U8", (6,)),
        (b"abc", "U8", (3,)),
        (memoryview(bytearray(24)).cast("f", (2, 3)), "F32", (2, 3)),
        (memoryview(bytearray(8)).cast("B", (2, 4)), "U8", (2, 4)),
        (memoryview(bytearray(8)).cast("d", ()), "F64", ()),
        (array.array("h", [1, 2, 3]), "I16", (3,)),
        (array.array("Q", [1]), "U64", (1,)),
        (array.array("f"), "F32", (0,)),
    ],
)
def test_the_buffer_protocol(source: Any, dtype: str, shape: Tuple[int, ...]) -> None:
    got = weir.tensor(source)
    assert (got.dtype.name, got.shape) == (dtype, shape)
    assert got.raw == memoryview(source).tobytes() and got.owner is source
    assert got.read_only == memoryview(source).readonly == got.raw.readonly


def test_a_bytearray_keeps_its_size_while_it_is_used() -> None:
    source = bytearray(8)
    got = weir.tensor(source)
    with pytest.raises(BufferError):
        source.extend(b"more")
    del got
    gc.collect()
    source.extend(b"more")


def test_scalars_and_empty_tensors() -> None:
    scalar = weir.tensor(numpy.array(1.5, numpy.float32))
    assert scalar.shape == () and scalar.n_bytes == 4 and scalar.numpy().item() == 1.5
    for shape in ((0,), (0, 3), (3, 0, 2)):
        empty = weir.tensor(numpy.empty(shape, numpy.float32))
        assert empty.shape == shape and empty.n_bytes == 0 and bytes(empty.raw) == b""
        assert empty.numpy().shape == shape


@pytest.mark.parametrize(
    "told,stream",
    [
        ({}, None),
        ({"strides": (12, 4)}, None),
        ({"strides": None, "stream": None}, None),
        ({"stream": 1}, 1),
        ({"stream": 0x7F00, "version": 2}, 0x7F00),
    ],
)
def test_the_cuda_array_interface(told: Any, stream: Optional[int], some_gpu: None) -> None:
    got = weir.tensor(Interface(**told))
    assert (got.dtype.name, got.shape, got.address) == ("F32", (2, 3), 4096)
    assert (got.device, got.stream) == ("cuda:3", stream)
    with pytest.raises(weir.CallError, match="is on cuda:3, raw bytes are of host memory"):
        got.raw


def test_the_cuda_array_interface_of_host_memory_is_refused() -> None:
    own = numpy.zeros((2, 3), numpy.float32)
    with pytest.raises(weir.CallError, match="^w: "):
        weir.tensor(Interface(data=(own.ctypes.data, False)), name="w")


@pytest.mark.parametrize("told", [{"shape": (2,)}, {"shape": 2, "typestr": "<f4", "data": (8, 0)},
                                  {"shape": (2,), "typestr": "<f4", "data": 8}, None])
def test_a_cuda_array_interface_that_lacks_something_is_refused_by_name(told: Any) -> None:
    array = Interface()
    array.__cuda_array_interface__ = told
    with pytest.raises(weir.CallError, match="^w: its __cuda_array_interface__ "):
        weir.tensor(array, name="w")


@pytest.mark.parametrize("shape", [(), (3,), (2, 2, 2, 2, 2, 2, 2, 2)])
def test_up_to_eight_axes(shape: Tuple[int, ...]) -> None:
    described = weir.tensor(numpy.zeros(shape, numpy.float32), name="é.weight").to_abi()
    assert described.shape.rank == len(shape)
    assert tensors.shape_of_abi(described.shape) == shape
    assert described.name.decode() == "é.weight" and described.dtype == weir.DType.F32


def test_integers_are_read_as_another_dtype() -> None:
    raw = numpy.arange(6, dtype=numpy.uint16).reshape(2, 3)
    got = weir.tensor(raw, dtype="BF16")
    assert (got.dtype, got.shape, got.address) == (weir.DType.BF16, (2, 3), raw.ctypes.data)
    assert weir.tensor(raw.view(numpy.int16), dtype=ml_dtypes.bfloat16).dtype is weir.DType.BF16
    assert weir.tensor(bytearray(12), dtype="F16", shape=(3, 2)).shape == (3, 2)
    assert weir.tensor(bytearray(6), dtype="F4", shape=(2, 6)).n_bytes == 6
    assert weir.tensor(bytearray(3), dtype="F6_E2M3", shape=(4,)).numpy().shape == (3,)
    assert weir.tensor(numpy.zeros(6, numpy.float32), shape=(2, 3)).shape == (2, 3)


def test_a_tensor_is_taken_again() -> None:
    first = weir.tensor(bytearray(12), name="a")
    assert weir.tensor(first) is first and weir.tensor(first, name="a") is first
    renamed = weir.tensor(first, name="b", dtype="F32", shape=(3,))
    assert (renamed.name, renamed.dtype, renamed.owner) == ("b", weir.DType.F32, first.owner)
    renamed.raw[:4] = b"\1\2\3\4"
    assert bytes(first.raw[:4]) == b"\1\2\3\4"
    with pytest.raises(weir.CallError, match="a: is read-only, and Weir would write to it"):
        weir.tensor(weir.tensor(b"1234", name="a"), writable=True)


def test_the_owner_lives_as_long_as_its_memory_is_used() -> None:
    class Owned(bytearray):
        pass

    source = Owned(b"abcd")
    alive = weakref.ref(source)
    view = weir.tensor(source).raw
    del source
    gc.collect()
    assert alive() is not None and bytes(view) == b"abcd"
    del view
    gc.collect()
    assert alive() is None


def test_describing_leaks_nothing() -> None:
    source = numpy.zeros((4, 4), numpy.float32)
    before = sys.getrefcount(source)
    for _ in range(100):
        got = weir.tensor(source, name="w")
        got.raw, got.numpy(), got.to_abi()
    del got
    gc.collect()
    assert sys.getrefcount(source) == before


# ---- refused ---------------------------------------------------------------------------------


def frozen(source: Any) -> Any:
    source.setflags(write=False)
    return source


class WithoutMemory:
    pass


REFUSED: List[Tuple[str, Callable[[], Any], str]] = [
    (
        "transposed",
        lambda: numpy.zeros((128, 256), "f4").T,
        "strides [1, 256], contiguous would be [128, 1]",
    ),
    ("every second", lambda: numpy.zeros(8, "f4")[::2], "strides [2], contiguous would be [1]"),
    ("backwards", lambda: numpy.zeros(8, "f4")[::-1], "strides [-1], contiguous would be [1]"),
    (
        "broadcast",
        lambda: numpy.broadcast_to(numpy.zeros(4, "f4"), (3, 4)),
        "strides [0, 1], contiguous would be [4, 1]",
    ),
    (
        "a column",
        lambda: memoryview(bytearray(16)).cast("f")[::2],
        "strides [2], contiguous would be [1]",
    ),
    ("a field", lambda: numpy.zeros(3, "f4, u1")["f0"], "strides [5] in bytes, elements are of 4"),
    ("byte order", lambda: numpy.zeros(3, ">f4"), "dtype >f4 is not in this machine's byte order"),
    (
        "format's byte order",
        lambda: memoryview(numpy.zeros(3, ">f4")),
        "dtype the buffer format '>f' is none of Weir's",
    ),
    ("objects", lambda: numpy.zeros(3, object), "dtype numpy's object is none of Weir's"),
    ("complex128", lambda: numpy.zeros(3, "c16"), "dtype numpy's complex128 is none of Weir's"),
    ("records", lambda: numpy.zeros(3, "f4, u1"), "is none of Weir's"),
    ("dates", lambda: numpy.zeros(3, "M8[s]"), "dtype numpy's datetime64[s] is none of Weir's"),
    (
        "unpacked float4",
        lambda: numpy.zeros(3, ml_dtypes.float4_e2m1fn),
        "float4_e2m1fn is none of",
    ),
    ("masked", lambda: numpy.ma.zeros(3), "is a masked array, Weir takes plain ones"),
    ("nine axes", lambda: numpy.zeros((1,) * 9), "9 axes, Weir's tensors have at most 8"),
    ("a number", lambda: 5, "builtins.int is no array: torch tensors, __dlpack__"),
    ("a list", lambda: [1.0, 2.0], "builtins.list is no array"),
    ("None", lambda: None, "builtins.NoneType is no array"),
    ("something", WithoutMemory, "WithoutMemory is no array"),
    ("interface's mask", lambda: Interface(mask=1), "is masked, Weir takes plain arrays"),
    (
        "interface's strides",
        lambda: Interface(strides=(4, 8)),
        "strides [1, 2], contiguous would be [3, 1]",
    ),
    (
        "interface's byte order",
        lambda: Interface(typestr=">f4"),
        "dtype >f4 is not in this machine's",
    ),
    ("interface's dtype", lambda: Interface(typestr="<f3"), "dtype <f3 is none of Weir's"),
    ("interface's stream", lambda: Interface(stream=0), "its stream is 0, which"),
    ("interface's address", lambda: Interface(data=(0, False)), "is F32 [2, 3] at address 0"),
]


@pytest.mark.parametrize("make,text", [r[1:] for r in REFUSED], ids=[r[0] for r in REFUSED])
def test_what_is_no_plain_memory_is_refused_by_name(
    make: Callable[[], Any], text: str, some_gpu: None
) -> None:
    with pytest.raises(weir.CallError) as caught:
        weir.tensor(make(), name="model.up_proj.weight")
    assert str(caught.value).startswith("model.up_proj.weight: ") and text in str(caught.value)


def fake_tensor() -> Any:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        return torch.zeros(2, 2)


class Wrapper:
    """Makes a tensor subclass without memory of its own, as quantisation libraries have."""

    def __new__(cls, name: str = "Wrapped") -> Any:
        class Wrapped(torch.Tensor):
            @staticmethod
            def __new__(kind: Any) -> Any:
                return torch.Tensor._make_wrapper_subclass(kind, (2, 2), dtype=torch.float32)

            @classmethod
            def __torch_dispatch__(
                kind, function: Any, types: Any, args: Any = (), kwargs: Any = None
            ) -> Any:
                raise NotImplementedError(str(function))

        Wrapped.__name__ = name
        return Wrapped()


TORCH_REFUSED: List[Tuple[str, Callable[[], Any], str]] = [
    (
        "transposed",
        lambda: torch.zeros(128, 256).t(),
        "strides [1, 256], contiguous would be [128, 1]",
    ),
    ("expanded", lambda: torch.zeros(4).expand(3, 4), "strides [0, 1], contiguous would be [4, 1]"),
    (
        "channels last",
        lambda: torch.zeros(1, 2, 3, 4).to(memory_format=torch.channels_last),
        "contiguous would be [24, 12, 4, 1]",
    ),
    (
        "sparse",
        lambda: torch.zeros(2, 2).to_sparse(),
        "layout torch.sparse_coo, Weir takes torch.strided",
    ),
    ("meta", lambda: torch.zeros(2, device="meta"), "is a meta tensor, which has no memory"),
    ("fake", fake_tensor, "is a fake tensor, which has no memory"),
    ("conjugate", lambda: torch.zeros(2, dtype=torch.complex64).conj(), "its conjugate bit is set"),
    (
        "negative",
        lambda: torch.zeros(2, dtype=torch.complex64).conj().imag,
        "its negative bit is set",
    ),
    (
        "complex128",
        lambda: torch.zeros(2, dtype=torch.complex128),
        "torch.complex128 is none of Weir's",
    ),
    ("nine axes", lambda: torch.zeros((1,) * 9), "9 axes, Weir's tensors have at most 8"),
    ("a wrapper", Wrapper, "has no memory of its own"),
    ("a DTensor", lambda: Wrapper("DTensor"), "is a DTensor, here plain memory is asked for"),
]


@needs_torch
@pytest.mark.parametrize(
    "make,text", [r[1:] for r in TORCH_REFUSED], ids=[r[0] for r in TORCH_REFUSED]
)
def test_what_torch_has_no_plain_memory_of_is_refused(make: Callable[[], Any], text: str) -> None:
    with pytest.raises(weir.CallError) as caught:
        weir.tensor(make(), name="w")
    assert str(caught.value).startswith("w: ") and text in str(caught.value)


@needs_torch
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_quantized_tensor_is_refused() -> None:
    try:
        quantized = torch.quantize_per_tensor(torch.zeros(2), 1.0, 0, torch.qint8)
    except (AttributeError, RuntimeError):
        pytest.skip("this torch has no quantized tensors")
    with pytest.raises(weir.CallError, match=r"is quantized \(torch.qint8\)"):
        weir.tensor(quantized)


@pytest.mark.parametrize(
    "make",
    [lambda: b"1234", lambda: frozen(numpy.zeros(3, "f4")), lambda: Interface(data=(4096, True))],
)
def test_read_only_memory_is_refused_where_it_is_written(
    make: Callable[[], Any], some_gpu: None
) -> None:
    assert weir.tensor(make()).read_only
    with pytest.raises(weir.CallError, match="w: is read-only, and Weir would write to it"):
        weir.tensor(make(), name="w", writable=True)


@pytest.mark.parametrize(
    "arguments,text",
    [
        ({"dtype": "BF15"}, "dtype 'BF15' is none of Weir's: BOOL, U8"),
        ({"dtype": "F16"}, "elements of 8 bits read as F16 (16 bits) need a shape"),
        ({"dtype": "F32", "shape": (2, 2)}, "F32 [2, 2] takes 16 bytes, U8 [8] has 8"),
        ({"shape": (3,)}, "U8 [3] takes 3 bytes, U8 [8] has 8"),
        ({"shape": (-1, 2)}, "shape [-1, 2] has a negative axis"),
        ({"dtype": "F4", "shape": (3, 5)}, "w: F4 [3, 5] is no whole number of bytes"),
        ({"shape": (1,) * 8 + (8,)}, "9 axes"),
    ],
)
def test_another_dtype_or_shape_must_fit(arguments: Any, text: str) -> None:
    with pytest.raises(weir.CallError) as caught:
        weir.tensor(bytearray(8), name="w", **arguments)
    assert text in str(caught.value)


def test_floats_are_read_as_nothing_else() -> None:
    with pytest.raises(weir.CallError, match="is of F32: only integers can be read as U32"):
        weir.tensor(numpy.zeros(2, numpy.float32), dtype="U32")


# ---- addresses -------------------------------------------------------------------------------


@needs_torch
def test_replaced_storages_are_found_again() -> None:
    weights = [torch.nn.Parameter(torch.zeros(4, 6)) for _ in range(3)]
    held = bytearray(4)
    book = tensors.Addresses(
        [weir.tensor(w, name=f"w{i}") for i, w in enumerate(weights)] + [weir.tensor(held)]
    )
    first = list(book.now)
    assert first[:3] == [w.data_ptr() for w in weights] and not book.look()
    weights[1].data = torch.ones(4, 6)
    assert book.look() and not book.look()
    assert book.now == [first[0], weights[1].data_ptr(), *first[2:]]
    assert tensors.addresses([weir.tensor(w) for w in weights]) == [w.data_ptr() for w in weights]


@needs_torch
@pytest.mark.parametrize(
    "make,kind,text",
    [
        (
            lambda: torch.zeros(6, 4).t(),
            weir.CallError,
            "w: strides [1, 4], contiguous would be [6, 1]",
        ),
        (
            lambda: torch.zeros(6, 4),
            weir.VersionError,
            "w: is [6, 4] of torch.float32 now, was [4, 6] of",
        ),
        (
            lambda: torch.zeros(4, 6).double(),
            weir.VersionError,
            "torch.float64 now, was [4, 6] of torch.float32",
        ),
    ],
)
def test_a_storage_that_does_not_fit_any_more_is_refused(
    make: Callable[[], Any], kind: Any, text: str
) -> None:
    weight = torch.nn.Parameter(torch.zeros(4, 6))
    book = tensors.Addresses([weir.tensor(weight, name="w")])
    before = list(book.now)
    weight.data = make()
    with pytest.raises(kind) as caught:
        book.look()
    assert text in str(caught.value) and book.now == before


@needs_torch
def test_looking_again_takes_less_than_a_microsecond_per_tensor() -> None:
    weights = [torch.nn.Parameter(torch.zeros(2, 2)) for _ in range(2000)]
    book = tensors.Addresses([weir.tensor(w) for w in weights])

    def seconds() -> float:
        begun = time.thread_time()
        book.look()
        return time.thread_time() - begun

    assert min(seconds() for _ in range(20)) / len(weights) < 1e-6
