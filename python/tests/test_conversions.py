# SPDX-License-Identifier: Apache-2.0
"""weir.convert(): every conversion against an independent computation, byte for byte, from every
kind of array and into every kind; what it refuses."""

from __future__ import annotations

import json
import pathlib
import struct
import subprocess
import sys
from typing import Any, Callable, Dict, List, Tuple

import pytest

import weir

numpy = pytest.importorskip("numpy")
ml_dtypes = pytest.importorskip("ml_dtypes")

import recipes  # noqa: E402  (it needs both)
from recipes import DTYPES, assert_same, bytes_of, random  # noqa: E402

QUANTISING = ("fp8_128x128", "cutlass_fp8_e4m3_per_channel")


# ---- the bytes -------------------------------------------------------------------------------


def test_every_conversion_has_a_recipe_here() -> None:
    built_in = [f.name for f in weir.formats() if "(Python: slow)" not in f.summary]
    assert sorted(recipes.RECIPES) == built_in


SHAPES = [
    (1, 1),
    (1, 300),
    (300, 1),
    (128, 128),
    (129, 257),
    (384, 640),
    (3, 130, 70),
    (2, 128, 129),
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("conversion", recipes.RECIPES)
def test_bytes_are_those_of_an_independent_computation(conversion: str, dtype: str) -> None:
    for seed, shape in enumerate(SHAPES):
        x = random(shape, dtype, seed)
        for round_masters in (True, False):
            for options in ({}, {"n_threads": 1}, {"reference": True}):
                assert_same(
                    weir.convert(conversion, x, round_masters=round_masters, **options),
                    recipes.RECIPES[conversion]([x], round_masters),
                )


@pytest.mark.parametrize("conversion", ["bf16_cast", "fp32_cast", "neg_exp"])
@pytest.mark.parametrize("shape", [(), (7,), (0,), (2, 3, 4, 5), (1, 1, 1, 1, 1, 1, 1, 9)])
def test_casts_take_any_rank(conversion: str, shape: Tuple[int, ...]) -> None:
    x = random(shape, "F32")
    if shape == ():
        with pytest.raises(weir.CallError, match=r"does not take shape=\(\)"):
            weir.convert(conversion, x)
        return
    assert_same(weir.convert(conversion, x), recipes.RECIPES[conversion]([x]))


@pytest.mark.parametrize("conversion", recipes.RECIPES)
def test_sources_are_fused_first_and_quantised_then(conversion: str) -> None:
    parts = [
        random((rows, 200), dtype, rows)
        for rows, dtype in ((100, "BF16"), (1, "F32"), (155, "F16"), (40, "BF16"))
    ]
    assert_same(weir.convert(conversion, parts), recipes.RECIPES[conversion](parts))
    stacked = [random((3, rows, 130), "BF16", rows) for rows in (70, 71)]
    assert_same(weir.convert(conversion, stacked, axis=1), recipes.RECIPES[conversion](stacked))
    assert_same(weir.convert(conversion, stacked, axis=-2), recipes.RECIPES[conversion](stacked))


@pytest.mark.parametrize("conversion", QUANTISING)
def test_matrices_of_experts_become_one_stack(conversion: str) -> None:
    matrices = [random((60, 140), "BF16", seed) for seed in range(8)]
    gate_up = [numpy.stack(matrices[0::2]), numpy.stack(matrices[1::2])]
    assert_same(
        weir.convert(conversion, matrices, n_experts=4), recipes.RECIPES[conversion](gate_up)
    )


def test_torch_computes_the_same_bytes() -> None:
    torch = pytest.importorskip("torch")
    torch.manual_seed(1)
    for rows, cols in ((256, 384), (130, 70)):
        x = (torch.randn(rows, cols) * 0.02).bfloat16()
        wide = x.float()
        padded = torch.nn.functional.pad(wide, (0, -cols % 128, 0, -rows % 128))
        blocks = padded.unflatten(0, (-1, 128)).unflatten(2, (-1, 128))
        one_448th = torch.tensor(1 / 448, dtype=torch.float32)
        scale = (blocks.abs().amax(dim=(1, 3)) * one_448th).clamp(min=1e-12)
        spread = scale.repeat_interleave(128, 0).repeat_interleave(128, 1)[:rows, :cols]
        weight = (wide / spread).clamp(-448, 448).to(torch.float8_e4m3fn)
        got = weir.convert("fp8_128x128", x)
        assert torch.equal(got["weight_scale_inv"], scale)
        assert torch.equal(got["weight"].view(torch.uint8), weight.view(torch.uint8))
        channel = (wide.abs().amax(dim=1) * one_448th).clamp(min=1e-12)
        weight = (wide / channel[:, None]).clamp(-448, 448).to(torch.float8_e4m3fn)
        got = weir.convert("cutlass_fp8_e4m3_per_channel", x)
        assert torch.equal(got["weight_scale"], channel)
        assert torch.equal(got["weight"].view(torch.uint8), weight.view(torch.uint8))
        assert torch.equal(weir.convert("bf16_cast", wide * 1.7)["weight"], (wide * 1.7).bfloat16())


# ---- golden files ----------------------------------------------------------------------------

Golden = Dict[str, Tuple[str, Tuple[int, ...], bytes]]


def read_safetensors(path: pathlib.Path) -> Golden:
    text = path.read_bytes()
    end = 8 + struct.unpack_from("<Q", text)[0]
    header = json.loads(text[8:end])
    header.pop("__metadata__", None)
    return {
        name: (
            told["dtype"],
            tuple(told["shape"]),
            text[end + told["data_offsets"][0] : end + told["data_offsets"][1]],
        )
        for name, told in header.items()
    }


def golden_tensor(entry: Tuple[str, Tuple[int, ...], bytes], name: str = "") -> weir.Tensor:
    dtype, shape, data = entry
    return weir.tensor(data, dtype=dtype, shape=shape, name=name)


def with_one_nan(entry: Tuple[str, Tuple[int, ...], bytes]) -> bytes:
    """The reference system has NaNs of either sign, where Weir has one of each dtype."""
    dtype, _, data = entry
    code, nan, largest = {
        "F32": ("u4", 0x7FC00000, 0x7F800000),
        "BF16": ("u2", 0x7FFF, 0x7F80),
        "F8_E4M3": ("u1", 0x7F, 0x7E),
    }[dtype]
    words = numpy.frombuffer(data, code).copy()
    sign = 1 << (8 * words.itemsize - 1)
    words[(words & (sign - 1)) > largest] = nan
    return bytes(words.tobytes())


@pytest.mark.parametrize("conversion", QUANTISING)
def test_golden_files_of_the_reference_system(conversion: str, golden: pathlib.Path) -> None:
    sources = read_safetensors(golden / f"{conversion}.input.safetensors")
    expected = read_safetensors(golden / f"{conversion}.expected.safetensors")
    assert len(sources) > 20
    for name, entry in sources.items():
        got = list(
            weir.convert(
                conversion, golden_tensor(entry), round_masters=False, propagate="nonfinite" in name
            ).values()
        )
        assert got[0].raw == with_one_nan(expected[f"{name}.q"]), name
        assert got[1].raw == with_one_nan(expected[f"{name}.scale"]), name


def test_golden_files_of_casts(golden: pathlib.Path) -> None:
    casts = read_safetensors(golden / "casts.safetensors")
    got = weir.convert("bf16_cast", golden_tensor(casts["f32_in"]), propagate=True)
    assert got["weight"].raw == with_one_nan(casts["f32_to_bf16"])
    exponentials = read_safetensors(golden / "neg_exp.safetensors")
    for name in ("bf16", "f32"):
        got = weir.convert("neg_exp", golden_tensor(exponentials[name]))
        assert got["weight"].raw == exponentials[f"{name}.expected"][2]


def test_golden_layer_is_fused_as_the_engine_has_it(golden: pathlib.Path) -> None:
    layer = read_safetensors(golden / "glm_moe_dsa_layer.trainer.safetensors")
    expected = read_safetensors(golden / "glm_moe_dsa_layer.fp8_128x128.safetensors")
    experts = "model.layers.3.mlp.experts"
    got = weir.convert(
        "fp8_128x128", [golden_tensor(layer[f"{experts}.{w}"]) for w in ("w1", "w3")], axis=1
    )
    assert got["weight"].raw == expected[f"{experts}.w13_weight"][2]
    assert got["weight_scale_inv"].raw == expected[f"{experts}.w13_weight_scale_inv"][2]
    fused = "model.layers.3.self_attn.fused_qkv_a_proj"
    got = weir.convert(
        "fp8_128x128",
        [
            golden_tensor(layer[f"model.layers.3.self_attn.{name}.weight"])
            for name in ("q_a_proj", "kv_a_proj_with_mqa")
        ],
    )
    assert got["weight"].raw == expected[f"{fused}.weight"][2]
    assert got["weight_scale_inv"].raw == expected[f"{fused}.weight_scale_inv"][2]


# ---- kinds of arrays -------------------------------------------------------------------------


@pytest.mark.parametrize("conversion", recipes.RECIPES)
def test_numpy_torch_and_plain_memory_give_the_same_bytes(conversion: str) -> None:
    torch = pytest.importorskip("torch")
    x = random((140, 260), "BF16")
    raw = x.view(numpy.uint16)
    of_numpy = weir.convert(conversion, x)
    of_torch = weir.convert(
        conversion, torch.from_numpy(raw.view(numpy.int16)).view(torch.bfloat16)
    )
    of_integers = weir.convert(conversion, weir.tensor(raw, dtype="BF16"))
    of_bytes = weir.convert(
        conversion, weir.tensor(bytearray(x.tobytes()), dtype="BF16", shape=x.shape)
    )
    assert {type(a).__name__ for a in of_numpy.values()} == {"ndarray"}
    assert {type(a).__name__ for a in of_torch.values()} == {"Tensor"}
    assert all(isinstance(a, torch.Tensor) for a in of_torch.values())
    assert all(isinstance(a, weir.Tensor) for a in (*of_integers.values(), *of_bytes.values()))
    for suffix, array in of_numpy.items():
        for other in (of_torch, of_integers, of_bytes):
            assert bytes_of(other[suffix]) == array.tobytes()
        assert weir.DType.of(array.dtype) is weir.DType.of(of_torch[suffix].dtype)


def test_numpy_without_ml_dtypes_gets_integers() -> None:
    code = (
        "import sys; sys.modules['ml_dtypes'] = None\n"
        "import numpy, weir\n"
        "x = numpy.linspace(-1, 1, 600, dtype='f4').reshape(20, 30)\n"
        "for name in ('fp8_128x128', 'bf16_cast'):\n"
        "    got = weir.convert(name, x)['weight']\n"
        "    print(got.dtype, got.tobytes().hex())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], text=True, capture_output=True, timeout=60, check=True
    )
    x = numpy.linspace(-1, 1, 600, dtype="f4").reshape(20, 30)
    expected = [recipes.fp8_128x128([x])["weight"], recipes.bf16_cast([x])["weight"]]
    assert done.stdout.split() == [
        "uint8",
        expected[0].tobytes().hex(),
        "uint16",
        expected[1].tobytes().hex(),
    ]


def test_out_takes_arrays_of_any_kind_and_gives_them_back() -> None:
    x = random((130, 200), "BF16")
    expected = recipes.fp8_128x128([x])
    raw = numpy.zeros((130, 200), numpy.uint8)
    scale = weir.tensor(bytearray(2 * 2 * 4), dtype="F32", shape=(2, 2))
    got = weir.convert("fp8_128x128", x, out={"weight": raw, "weight_scale_inv": scale})
    assert got["weight"] is raw and got["weight_scale_inv"] is scale
    assert_same(got, expected)
    only = numpy.empty((2, 2), numpy.float32)
    got = weir.convert("fp8_128x128", x, out={"weight_scale_inv": only})
    assert got["weight_scale_inv"] is only
    assert_same(got, expected)


def test_sources_without_elements_give_outputs_without_elements() -> None:
    for shape in ((0, 128), (128, 0), (2, 0, 3)):
        x = numpy.empty(shape, numpy.float32)
        for conversion in recipes.RECIPES:
            got = weir.convert(conversion, x)
            assert got["weight"].shape == shape


def test_read_only_sources_are_read() -> None:
    x = random((5, 6), "F32")
    x.setflags(write=False)
    assert_same(weir.convert("bf16_cast", x), recipes.bf16_cast([x]))
    whole = weir.tensor(x.tobytes(), dtype="F32", shape=(5, 6))
    assert_same(weir.convert("bf16_cast", whole), recipes.bf16_cast([x]))


# ---- what there is ---------------------------------------------------------------------------


def test_formats_are_described_whole() -> None:
    block = {f.name: f for f in weir.formats()}["fp8_128x128"]
    assert block.compile_target == "deep_gemm_fp8"
    assert block.compile_metadata == {
        "dtype": "e4m3",
        "scale_layout": "blockwise",
        "block_size": [128, 128],
    }
    assert set(block.sources) == {weir.DType.BF16, weir.DType.F16, weir.DType.F32}
    assert block.border == (128, 128) and block.ranks == (2, 3)
    assert [(o.suffix, o.dtype, o.cell_rows, o.cell_cols) for o in block.outputs] == [
        ("weight", weir.DType.F8_E4M3, 1, 1),
        ("weight_scale_inv", weir.DType.F32, 128, 128),
    ]


def test_families_are_described_whole() -> None:
    glm = {f.name: f for f in weir.families()}["glm_moe_dsa"]
    assert (
        glm.layouts and "glm_moe_dsa" in glm.model_types and "tiny" in glm.presets and glm.summary
    )


FP8 = {"quant_method": "fp8"}


@pytest.mark.parametrize(
    "config,expected",
    [
        ({}, "bf16_cast"),
        ({"quantization_config": None}, "bf16_cast"),
        ({"quantization_config": {**FP8, "weight_block_size": [128, 128]}}, "fp8_128x128"),
        (
            {"text_config": {"quantization_config": {**FP8, "activation_scheme": "dynamic"}}},
            "cutlass_fp8_e4m3_per_channel",
        ),
    ],
)
def test_a_config_selects_its_conversion(
    config: Dict[str, Any], expected: str, tmp_path: pathlib.Path
) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config), encoding="utf-8")
    assert weir.select_conversion(config) == expected
    assert weir.select_conversion(path) == expected
    assert weir.select_conversion(str(tmp_path)) == expected


@pytest.mark.parametrize(
    "config,status,text",
    [
        (
            {"quantization_config": {"quant_method": "awq"}},
            weir.Status.ERR_UNSUPPORTED,
            'unsupported inference quantization: {"quant_method":"awq"}; registered conversions: [',
        ),
        ("/nowhere/config.json", weir.Status.ERR_NOT_FOUND, "/nowhere/config.json"),
        ({"a": {1, 2}}, weir.Status.ERR_INVALID, "the config is no JSON: Object of type set"),
    ],
)
def test_a_config_that_selects_nothing_is_refused(
    config: Any, status: weir.Status, text: str
) -> None:
    with pytest.raises(weir.CallError) as caught:
        weir.select_conversion(config)
    assert caught.value.status is status and text in str(caught.value)


# ---- what is refused -------------------------------------------------------------------------


def zeros(*shape: int, dtype: Any = numpy.float32) -> Any:
    return numpy.zeros(shape, dtype)


def frozen(array: Any) -> Any:
    array.setflags(write=False)
    return array


def with_value(value: float, *at: int) -> Any:
    x = zeros(40, 50)
    x[at] = value
    return x


X = zeros(130, 20)
WEIGHT, SCALE = (130, 20), (2, 1)
REFUSED: List[Tuple[str, Callable[[], Any], str]] = [
    (
        "unknown",
        lambda: weir.convert("int3", X),
        "unknown conversion 'int3'; registered: [bf16_cast, ",
    ),
    ("rank", lambda: weir.convert("fp8_128x128", zeros(4)), "(4,)"),
    (
        "dtype",
        lambda: weir.convert("bf16_cast", zeros(2, 2, dtype="f8"), names="a.weight"),
        "a.weight has dtype F64, conversion 'bf16_cast' takes F16, BF16, F32",
    ),
    (
        "strides",
        lambda: weir.convert("bf16_cast", zeros(4, 6).T, names="a.weight"),
        "a.weight: strides [1, 6], contiguous would be [4, 1]",
    ),
    ("no sources", lambda: weir.convert("bf16_cast", []), "convert() was given no sources"),
    ("names", lambda: weir.convert("bf16_cast", [X, X], names=["a"]), "2 sources have 1 names"),
    (
        "shapes",
        lambda: weir.convert("bf16_cast", [X, zeros(5, 21)], names=["a", "b"]),
        "a [130, 20] and b [5, 21] cannot be joined along axis 0",
    ),
    ("axis", lambda: weir.convert("bf16_cast", [X, X], axis=1), "are joined along axis 0"),
    ("axis beyond", lambda: weir.convert("bf16_cast", X, axis=-3), "axis -1 is none of"),
    (
        "experts",
        lambda: weir.convert("fp8_128x128", [X, X, X], n_experts=2),
        "3 sources are not the same number for 2 experts",
    ),
    ("no name", lambda: weir.convert(weir.formats()[0], X), "conversion: Format(name="),
    (
        "threads",
        lambda: weir.convert("bf16_cast", X, n_threads=-1),
        "n_threads: -1 is not between 0 and",
    ),
    ("axis", lambda: weir.convert("bf16_cast", X, axis="0"), "axis: '0' is no whole number"),
    (
        "half experts",
        lambda: weir.convert("bf16_cast", X, n_experts=1.5),
        "n_experts: 1.5 is no whole number",
    ),
    ("kind", lambda: weir.convert("bf16_cast", "weights"), "builtins.str is no array"),
    (
        "NaN",
        lambda: weir.convert("fp8_128x128", with_value(float("nan"), 3, 7), names="w"),
        "w[3, 7] is NaN",
    ),
    (
        "Inf",
        lambda: weir.convert(
            "bf16_cast",
            [X[:, :20], with_value(float("-inf"), 0, 1)[:40, :20].copy()],
            names=["a", "b"],
        ),
        "b[0, 1] is -Inf",
    ),
    (
        "too large",
        lambda: weir.convert("bf16_cast", with_value(3.4e38, 1, 0)),
        "source[1, 0] rounds to Inf in bf16",
    ),
    (
        "out suffix",
        lambda: weir.convert("fp8_128x128", X, out={"scale": zeros(2, 1)}),
        "out['scale']: conversion 'fp8_128x128' writes weight, weight_scale_inv",
    ),
    (
        "out dtype",
        lambda: weir.convert("fp8_128x128", X, out={"weight": zeros(*WEIGHT)}),
        "out['weight']: is of F32, the conversion writes F8_E4M3",
    ),
    (
        "out shape",
        lambda: weir.convert("fp8_128x128", X, out={"weight_scale_inv": zeros(1, 2)}),
        "out['weight_scale_inv']: shape [1, 2], the conversion writes [2, 1]",
    ),
    (
        "out strides",
        lambda: weir.convert("bf16_cast", X, out={"weight": zeros(20, 130, dtype="u2").T}),
        "out['weight']: strides [1, 130], contiguous would be [20, 1]",
    ),
    (
        "out read-only",
        lambda: weir.convert("fp8_128x128", X, out={"weight_scale_inv": frozen(zeros(*SCALE))}),
        "out['weight_scale_inv']: is read-only, and Weir would write to it",
    ),
    (
        "out bytes",
        lambda: weir.convert("fp8_128x128", X, out={"weight": bytes(2600)}),
        "is read-only",
    ),
    ("stream", lambda: weir.conversions._stream_of("s", "cuda:0"), "stream 's' is neither"),
]


@pytest.mark.parametrize("call,text", [r[1:] for r in REFUSED], ids=[r[0] for r in REFUSED])
def test_bad_calls_are_refused_with_both_sides(call: Callable[[], Any], text: str) -> None:
    with pytest.raises(weir.CallError) as caught:
        call()
    assert text in str(caught.value)


def test_nothing_is_written_when_one_output_is_refused() -> None:
    weight = numpy.full(WEIGHT, 0xAB, numpy.uint8)
    with pytest.raises(weir.CallError):
        weir.convert("fp8_128x128", X, out={"weight": weight, "weight_scale_inv": zeros(3, 3)})
    assert (weight == 0xAB).all()


def test_outputs_that_share_memory_are_refused() -> None:
    memory = numpy.zeros(8192, numpy.uint8)
    weight, scale = memory[:2600].reshape(130, 20), memory[2592:2600].view("f4").reshape(2, 1)
    with pytest.raises(weir.CallError, match="weight_scale_inv'.*shares memory with .*'weight'"):
        weir.convert("fp8_128x128", X, out={"weight": weight, "weight_scale_inv": scale})
    x = numpy.zeros((4, 4), numpy.float32)
    with pytest.raises(weir.CallError, match="shares memory with source"):
        weir.convert("fp32_cast", x, out={"weight": x})


def test_propagate_converts_what_is_not_finite() -> None:
    x = with_value(float("nan"), 3, 7)
    got = weir.convert("fp32_cast", x, propagate=True)["weight"]
    assert numpy.isnan(got[3, 7]) and numpy.isfinite(got).sum() == got.size - 1
