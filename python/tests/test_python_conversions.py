# SPDX-License-Identifier: Apache-2.0
"""Conversions and rules written in Python: what they are given, what they fill, and what becomes of
what they raise, whichever thread they were called in."""

from __future__ import annotations

import ctypes
import gc
import importlib.util
import logging
import sys
import threading
import weakref
from typing import Any, Dict, Iterator, List

import pytest

import weir
from weir import abi, logs, python_conversions

numpy = pytest.importorskip("numpy")
ml_dtypes = pytest.importorskip("ml_dtypes")

import tiny_model  # noqa: E402  (it needs numpy)

INT8 = [("weight", "I8"), ("weight_scale", "F32", 1, 0)]


def int8_rows(source: weir.Tensor, outputs: Dict[str, weir.Tensor]) -> None:
    x = source.numpy().astype(numpy.float32)
    scale = numpy.maximum(numpy.abs(x).max(axis=1), 1e-12) / 127
    outputs["weight_scale"].numpy()[:] = scale
    outputs["weight"].numpy()[:] = numpy.rint(x / scale[:, None])


def expected_int8(x: Any) -> Dict[str, Any]:
    wide = x.astype(numpy.float32)
    scale = numpy.maximum(numpy.abs(wide).max(axis=-1), 1e-12) / 127
    return {"weight": numpy.rint(wide / scale[..., None]).astype(numpy.int8), "weight_scale": scale}


def register(name: str, fn: Any, **arguments: Any) -> str:
    weir.register_conversion(name, fn, **{"outputs": INT8, "compile_target": "tests", **arguments})
    return name


def random(*shape: int) -> Any:
    x = numpy.random.default_rng(sum(shape)).standard_normal(shape).astype(numpy.float32)
    return x.astype(ml_dtypes.bfloat16)


@pytest.mark.parametrize("border", [(0, 0), (1, 0), (16, 0)])
@pytest.mark.parametrize("shape", [(1, 1), (700, 300), (3, 40, 50)])
def test_a_conversion_fills_its_outputs(border: Any, shape: Any) -> None:
    name = f"int8_{border}_{shape}"
    register(name, int8_rows, border=border)
    x = random(*shape)
    for n_threads in (1, 3):
        got = weir.convert(name, x, n_threads=n_threads)
        for suffix, array in expected_int8(x).items():
            assert got[suffix].tobytes() == array.tobytes(), suffix


def test_every_kind_of_view_writes_through() -> None:
    def by_memoryview(source: weir.Tensor, outputs: Dict[str, weir.Tensor]) -> None:
        words = source.raw.cast("H")
        outputs["weight"].raw.cast("H")[:] = words
        outputs["twice"].raw[:] = bytes(source.raw)

    def by_torch(source: weir.Tensor, outputs: Dict[str, weir.Tensor]) -> None:
        outputs["weight"].torch().copy_(source.torch())
        outputs["twice"].torch()[:] = source.torch()

    outputs = [("weight", "BF16"), weir.Output("twice", weir.DType.BF16)]
    x = random(30, 40)
    names = [register("by_memoryview", by_memoryview, outputs=outputs)]
    if importlib.util.find_spec("torch") is not None:
        names.append(register("by_torch", by_torch, outputs=outputs))
    for name in names:
        got = weir.convert(name, x)
        assert got["weight"].tobytes() == x.tobytes() == got["twice"].tobytes()


def test_tiles_are_read_only_copies_of_fused_rows_in_one_dtype() -> None:
    seen: List[Any] = []

    def look(source: weir.Tensor, outputs: Dict[str, weir.Tensor]) -> None:
        seen.append((source.dtype.name, source.shape, source.read_only, list(outputs)))
        with pytest.raises(TypeError):
            source.raw[0] = 1

    register("look", look)
    weir.convert("look", [random(10, 8), random(7, 8).astype(numpy.float16)], n_threads=1)
    assert seen == [("F32", (17, 8), True, ["weight", "weight_scale"])]


def test_packed_outputs() -> None:
    def pack(source: weir.Tensor, outputs: Dict[str, weir.Tensor]) -> None:
        assert outputs["weight"].shape == source.shape and outputs["weight"].n_bytes == 6 * 10 // 2
        outputs["weight"].raw[:] = bytes(range(30))

    register("pack", pack, outputs=[("weight", "F4")])
    got = weir.convert("pack", random(6, 10))["weight"]
    assert got.tobytes() == bytes(range(30)) and got.shape == (6, 5)


@pytest.fixture
def said() -> Iterator[List[Any]]:
    """What the one logger of the process is told: level and line."""
    got: List[Any] = []
    weir.set_logger(lambda level, line, fields: got.append((level, line)), logging.DEBUG)
    yield got
    weir.set_logger(None)


def test_it_is_listed_as_slow_and_says_so_when_first_used(said: List[Any]) -> None:
    register(
        "slow",
        int8_rows,
        summary="int8 per row",
        compile_metadata={"b": 1, "a": [2]},
        sources=["BF16", weir.DType.F32],
        border=(4, 0),
        ranks=(2, 2),
    )
    told = {f.name: f for f in weir.formats()}["slow"]
    assert told.summary == "int8 per row (Python: slow)"
    assert (told.compile_target, told.compile_metadata) == ("tests", {"b": 1, "a": [2]})
    assert set(told.sources) == {weir.DType.BF16, weir.DType.F32}
    assert (told.border, told.ranks) == ((4, 0), (2, 2))
    assert told.outputs == (
        weir.Output("weight", weir.DType.I8),
        weir.Output("weight_scale", weir.DType.F32, 1, 0),
    )
    for _ in range(3):
        weir.convert("slow", random(4, 4))
    assert logs.flush()
    assert said == [(logging.WARNING, "conversion 'slow' is written in Python: slow")]


@pytest.mark.parametrize(
    "arguments,status,text",
    [
        (
            {"name": "fp8_128x128"},
            weir.Status.ERR_EXISTS,
            "conversion 'fp8_128x128' is already registered",
        ),
        ({"fn": "int8"}, weir.Status.ERR_INVALID, "conversion 'bad': 'int8' is no function"),
        ({"outputs": [("a",)]}, weir.Status.ERR_INVALID, "output ('a',): "),
        ({"outputs": []}, weir.Status.ERR_INVALID, "n_outputs must be 1 to 4"),
        ({"outputs": [("a", "U8")] * 5}, weir.Status.ERR_INVALID, "5 outputs, 4 at most"),
        ({"outputs": [("a", "U9")]}, weir.Status.ERR_INVALID, "dtype 'U9' is none of Weir's"),
        (
            {"outputs": [("a", "U8", 3, 3)], "border": (4, 4)},
            weir.Status.ERR_INVALID,
            "splits the cells",
        ),
        ({"compile_target": ""}, weir.Status.ERR_INVALID, "no compile target"),
        ({"compile_metadata": {"a": object()}}, weir.Status.ERR_INVALID, "metadata is no JSON"),
        ({"sources": []}, weir.Status.ERR_INVALID, "no source dtype"),
        ({"name": None}, weir.Status.ERR_INVALID, "conversion None for 't': name and compile"),
        ({"name": ""}, weir.Status.ERR_INVALID, "no name"),
    ],
)
def test_a_bad_registration_is_refused(arguments: Any, status: weir.Status, text: str) -> None:
    given = {"name": "bad", "fn": int8_rows, "outputs": INT8, "compile_target": "t", **arguments}
    with pytest.raises(weir.CallError) as caught:
        weir.register_conversion(given.pop("name"), given.pop("fn"), **given)
    assert caught.value.status is status and text in str(caught.value)
    assert "bad" not in [f.name for f in weir.formats()]


# ---- what goes wrong -------------------------------------------------------------------------


class Mine(Exception):
    pass


@pytest.mark.parametrize("n_threads", [1, 4])
def test_an_exception_is_the_cause(n_threads: int) -> None:
    def fail(source: weir.Tensor, outputs: Dict[str, weir.Tensor]) -> None:
        raise Mine(f"tile of {source.shape[0]} rows")

    name = register(f"fails_{n_threads}", fail, border=(1, 0))
    with pytest.raises(weir.CallError) as caught:
        weir.convert(name, random(2000, 300), n_threads=n_threads)
    assert f"conversion '{name}': its kernel failed" in str(caught.value)
    assert isinstance(caught.value.__cause__, Mine)
    assert not python_conversions._failures  # nor do those of the other tiles stay behind


def test_each_call_gets_its_own_exception() -> None:
    def fail(source: weir.Tensor, outputs: Dict[str, weir.Tensor]) -> None:
        value = float(source.numpy()[0, 0])
        if value > 0:
            raise Mine(value)

    register("fails_by_value", fail)
    start, wrong = threading.Barrier(8), []

    def convert(i: int) -> None:
        x = numpy.full((40, 40), i, numpy.float32)
        start.wait(30)
        for _ in range(25):
            try:
                weir.convert("fails_by_value", x)
                raised = None
            except weir.CallError as error:
                raised = error.__cause__.args[0] if error.__cause__ is not None else "none"
            if raised != (float(i) if i > 0 else None):
                wrong.append((i, raised))

    threads = [threading.Thread(target=convert, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not wrong and not python_conversions._failures


def test_a_call_that_does_not_know_its_outputs_finds_the_exception_by_name() -> None:
    def fail(source: weir.Tensor, outputs: Dict[str, weir.Tensor]) -> None:
        raise Mine("in publish")

    kernel = python_conversions._Kernel("elsewhere", fail, [weir.Output("weight", weir.DType.U8)])
    tile = abi.weir_tile(dtype=weir.DType.BF16)
    assert kernel(ctypes.pointer(tile)) == weir.Status.ERR_INVALID
    assert python_conversions.failure_named_in("conversion 'other': its kernel failed: x") is None
    found = python_conversions.failure_named_in("w: conversion 'elsewhere': its kernel failed: x")
    assert isinstance(found, Mine)
    assert python_conversions.failure_named_in("conversion 'elsewhere': its kernel failed") is None


def test_an_interrupt_goes_through() -> None:
    def interrupt(source: weir.Tensor, outputs: Dict[str, weir.Tensor]) -> None:
        raise KeyboardInterrupt

    register("interrupted", interrupt)
    with pytest.raises(KeyboardInterrupt):
        weir.convert("interrupted", random(3, 3), n_threads=1)


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, numpy.float16, numpy.float32])
@pytest.mark.parametrize("value,text", [("nan", "is NaN"), ("inf", "is +Inf"), ("-inf", "is -Inf")])
def test_what_is_not_finite_is_refused_before(dtype: Any, value: str, text: str) -> None:
    name = f"finite_{numpy.dtype(dtype).name}_{value}"
    register(name, int8_rows)
    x = numpy.ones((5, 6), numpy.float32)
    x[4, 2] = float(value)
    with pytest.raises(weir.CallError) as caught:
        weir.convert(name, x.astype(dtype), names="w")
    assert caught.value.status is weir.Status.ERR_NONFINITE
    assert str(caught.value) == f"w[4, 2] {text}"


def test_without_numpy_it_is_refused_too(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    register("plain", lambda source, outputs: seen.append(source.shape))
    x = weir.tensor(bytearray(random(4, 4).tobytes()), dtype="BF16", shape=(4, 4))
    monkeypatch.delitem(sys.modules, "numpy")
    weir.convert("plain", x)
    x.raw[6:8] = b"\xc0\x7f"
    with pytest.raises(weir.CallError, match=r"source\[0, 3\] is NaN"):
        weir.convert("plain", x)
    assert seen == [(4, 4)]


def test_one_that_is_asked_to_propagate_sees_it() -> None:
    seen = []
    register("propagates", lambda source, outputs: seen.append(source.numpy()[1, 1]))
    x = numpy.ones((2, 2), numpy.float32)
    x[1, 1] = float("inf")
    weir.convert("propagates", x, propagate=True)
    assert numpy.isinf(float(seen[0]))


def test_it_may_convert_by_another() -> None:
    def through(source: weir.Tensor, outputs: Dict[str, weir.Tensor]) -> None:
        weir.convert("cutlass_fp8_e4m3_per_channel", source, out=outputs)

    register("through", through, outputs=[("weight", "F8_E4M3"), ("weight_scale", "F32", 1, 0)])
    x = random(300, 200)
    got, expected = weir.convert("through", x), weir.convert("cutlass_fp8_e4m3_per_channel", x)
    assert all(got[suffix].tobytes() == expected[suffix].tobytes() for suffix in expected)


def test_tiles_are_let_go() -> None:
    kept: List[Any] = []

    def watch(source: weir.Tensor, outputs: Dict[str, weir.Tensor]) -> None:
        kept.extend(weakref.ref(tensor) for tensor in (source, *outputs.values()))

    register("watch", watch)
    for _ in range(20):
        weir.convert("watch", random(8, 8))
    gc.collect()
    assert len(kept) == 60 and not any(reference() for reference in kept)


# ---- rules -----------------------------------------------------------------------------------


def select(**quantization: Any) -> str:
    return weir.select_conversion({"quantization_config": quantization})


def test_rules_match_in_their_order() -> None:
    given: List[Any] = []

    def mine(quantization: Dict[str, Any]) -> bool:
        given.append(quantization)
        return quantization.get("quant_method") == "mine" and quantization["bits"] == 8

    weir.register_default_rule(mine, "fp8_128x128")
    asked = {"quant_method": "mine", "bits": 8, "skip": ["lm_head", "é"], "deep": {"a": None}}
    assert select(**asked) == "fp8_128x128" and given[-1] == asked
    weir.register_default_rule(
        lambda q: q["quant_method"] == "mine", "fp32_cast", insert_first=True
    )
    assert select(**asked) == "fp32_cast"
    assert select(quant_method="fp8", weight_block_size=[128, 128]) == "fp8_128x128"


def test_a_rule_that_raises_cannot_read_its_config(said: List[Any]) -> None:
    weir.register_default_rule(lambda q: q["levels"] > 2, "bf16_cast", insert_first=True)
    with pytest.raises(weir.CallError, match="unsupported inference quantization"):
        select(quant_method="none of them")
    assert logs.flush()
    line = "the rule for 'bf16_cast' cannot read a config: KeyError: 'levels'"
    assert (logging.DEBUG, line) in said
    assert select(levels=3) == "bf16_cast"


def test_a_rule_may_name_what_is_not_there() -> None:
    weir.register_default_rule(lambda q: q.get("quant_method") == "gone", "nothing_such")
    with pytest.raises(weir.CallError, match="unknown conversion 'nothing_such'; registered: "):
        select(quant_method="gone")


def test_a_rule_that_is_no_function_is_refused() -> None:
    with pytest.raises(weir.CallError, match="the rule for 'bf16_cast': True is no function"):
        weir.register_default_rule(True, "bf16_cast")  # type: ignore[arg-type]


# ---- in a refit ------------------------------------------------------------------------------


def byte_swap(source: weir.Tensor, outputs: Dict[str, weir.Tensor]) -> None:
    outputs["weight"].numpy()[:] = source.numpy().view(numpy.uint16).byteswap()


def test_a_refit_converts_by_it() -> None:
    register("byte_swap", byte_swap, outputs=[("weight", "U16")], ranks=(1, 3), border=(1, 0))
    trainer, weights = tiny_model.open_trainer(conversion="byte_swap")
    with trainer, tiny_model.open_replica(trainer.directory, conversion="byte_swap") as replica:
        trainer.publish(1)
        replica.install(1)
        name = "model.layers.1.self_attn.o_proj.weight"
        assert bytes(replica.parameters[name].raw) == weights[name].byteswap().tobytes()


def test_what_it_raises_fails_publish_and_the_next_one_is_good() -> None:
    broken: List[str] = ["too early"]

    def fail_first(source: weir.Tensor, outputs: Dict[str, weir.Tensor]) -> None:
        if broken:
            raise Mine(broken[0])
        byte_swap(source, outputs)

    register("fail_first", fail_first, outputs=[("weight", "U16")], ranks=(1, 3), border=(1, 0))
    trainer, _ = tiny_model.open_trainer(conversion="fail_first")
    with trainer:
        with pytest.raises(
            weir.CallError, match="conversion 'fail_first': its kernel failed"
        ) as got:
            trainer.publish(1)
        assert isinstance(got.value.__cause__, Mine) and str(got.value.__cause__) == "too early"
        broken.clear()
        assert trainer.publish(2).version == 2
