# SPDX-License-Identifier: Apache-2.0
"""The conversions against an independent implementation: numpy's fp32 arithmetic, and e4m3 by
search for the nearest of all its values. Covers what has no golden file, fp16 sources above all.

Calls libweir.so as any foreign program would."""
import ctypes
import os
import unittest

import numpy

LIBRARY = os.path.join(os.environ["WEIR_TEST_BIN"], "..", "lib", "libweir.so")
MAX_RANK, MAX_OUTPUTS = 8, 4
DTYPES = {"f16": 10, "bf16": 11, "f32": 12}
BLOCK, CHANNEL = "fp8_128x128", "cutlass_fp8_e4m3_per_channel"


class Shape(ctypes.Structure):
    _fields_ = [("rank", ctypes.c_uint32), ("dim", ctypes.c_uint64 * MAX_RANK)]


class Tensor(ctypes.Structure):
    _fields_ = [("name", ctypes.c_char_p), ("dtype", ctypes.c_int), ("shape", Shape),
                ("data", ctypes.c_void_p)]


class ConvertArgs(ctypes.Structure):
    _fields_ = [("size", ctypes.c_size_t), ("conversion", ctypes.c_void_p),
                ("sources", ctypes.POINTER(Tensor)), ("n_sources", ctypes.c_size_t),
                ("n_experts", ctypes.c_size_t), ("axis", ctypes.c_uint32),
                ("outputs", ctypes.c_void_p * MAX_OUTPUTS), ("digests", ctypes.c_void_p),
                ("propagate", ctypes.c_bool), ("round_masters", ctypes.c_bool),
                ("reference", ctypes.c_bool), ("pool", ctypes.c_void_p)]


with open(LIBRARY, "rb") as stream:
    program = stream.read()
if b"__asan_init" in program or b"__tsan_init" in program:
    print("SKIPPED: a sanitised library cannot be loaded into this Python")
    raise SystemExit(0)
weir = ctypes.CDLL(LIBRARY)
weir.weir_last_error.restype = ctypes.c_char_p


def check(status):
    if status != 0:
        raise RuntimeError(weir.weir_last_error().decode())


def as_tensor(array, dtype):
    shape = Shape(array.ndim, (ctypes.c_uint64 * MAX_RANK)(*array.shape))
    return Tensor(b"w", DTYPES[dtype], shape, array.ctypes.data)


def convert(name, arrays, dtype, axis=0, round_masters=False):
    """Codes and scales of arrays joined along `axis`."""
    conversion = ctypes.c_void_p()
    check(weir.weir_conversion_get(name.encode(), ctypes.byref(conversion)))
    pool = ctypes.c_void_p()
    check(weir.weir_pool_open(2, ctypes.byref(pool)))
    shape = list(arrays[0].shape)
    shape[axis] = sum(array.shape[axis] for array in arrays)
    codes = numpy.full(shape, 0xAA, "u1")
    if name == BLOCK:
        scales = numpy.zeros(shape[:-2] + [-(-n // 128) for n in shape[-2:]], "<f4")
    else:
        scales = numpy.zeros(shape[:-1], "<f4")
    sources = (Tensor * len(arrays))(*(as_tensor(array, dtype) for array in arrays))
    args = ConvertArgs(ctypes.sizeof(ConvertArgs), conversion, sources, len(arrays), 0, axis)
    args.outputs[0], args.outputs[1] = codes.ctypes.data, scales.ctypes.data
    args.round_masters, args.pool = round_masters, pool
    try:
        check(weir.weir_convert(ctypes.byref(args)))
    finally:
        weir.weir_pool_close(pool)
    return codes, scales


# ---- the recipe --------------------------------------------------------------------------------

VALUES = numpy.array([(code & 7) * 2.0 ** -9 if code < 8 else
                      (8 + (code & 7)) * 2.0 ** ((code >> 3) - 10) for code in range(127)])
MIDDLES = (VALUES[1:] + VALUES[:-1]) / 2


def nearest_code(quotient):
    """The nearest value's code; of two as near, the even one."""
    magnitude = numpy.abs(quotient).astype("f8")
    code = numpy.searchsorted(MIDDLES, magnitude, side="left")
    tie = (code < 126) & (MIDDLES[numpy.minimum(code, 125)] == magnitude) & (code % 2 == 1)
    return ((code + tie) | numpy.where(numpy.signbit(quotient), 0x80, 0)).astype("u1")


def scale_of(amax):
    one_448th = numpy.array(0x3B124925, "<u4").view("<f4")
    return numpy.maximum(amax.astype("<f4") * one_448th, numpy.float32(1e-12)).astype("<f4")


def blockwise(x):
    if x.ndim == 3:
        parts = [blockwise(matrix) for matrix in x]
        return numpy.stack([p[0] for p in parts]), numpy.stack([p[1] for p in parts])
    rows, cols = x.shape
    padded = numpy.zeros((-(-rows // 128) * 128, -(-cols // 128) * 128), "<f4")
    padded[:rows, :cols] = x
    blocks = padded.reshape(padded.shape[0] // 128, 128, padded.shape[1] // 128, 128)
    scales = scale_of(numpy.abs(blocks).max(axis=(1, 3)))
    spread = numpy.repeat(numpy.repeat(scales, 128, 0), 128, 1)[:rows, :cols]
    return nearest_code(x / spread), scales


def per_channel(x):
    scales = scale_of(numpy.abs(x).max(axis=-1))
    return nearest_code(x / scales[..., None]), scales


RECIPES = {BLOCK: blockwise, CHANNEL: per_channel}


def random_source(rng, shape, dtype, kind):
    """The array in its own bits, and its values as fp32."""
    if kind == "wide":
        bits = rng.integers(0, 2 ** 32, shape, "u4")
        exponent = {"f32": 0x7F800000, "bf16": 0x7F80, "f16": 0x7C00}[dtype]
        bits = bits.astype("<u4" if dtype == "f32" else "<u2")
        bits[(bits & exponent) == exponent] = 0
    else:
        values = rng.standard_normal(shape).astype("<f4") * numpy.float32(0.02)
        if kind == "ties": # with 448 in it a scale is 1, and halves of steps are common
            values = rng.integers(-448 * 8, 448 * 8, shape).astype("<f4") / numpy.float32(8)
            values.reshape(-1)[0] = 448
        elif kind == "sparse":
            values[rng.random(shape) < 0.9] *= numpy.float32(0)
        bits = values.view("<u4")
        if dtype == "bf16":
            bits = (bits >> 16).astype("<u2")
        elif dtype == "f16":
            bits = values.astype("<f2").view("<u2")
    if dtype == "bf16":
        return bits, (bits.astype("<u4") << 16).view("<f4")
    return bits, bits.view("<f2").astype("<f4") if dtype == "f16" else bits.view("<f4")


def rounded_to_bf16(values):
    bits = values.view("<u4").astype("u8")
    return (((bits + 0x7FFF + (bits >> 16 & 1)) >> 16) << 16).astype("<u4").view("<f4")


class Recipe(unittest.TestCase):
    def compare(self, name, expected, got):
        with numpy.errstate(all="ignore"):
            codes, scales = RECIPES[name](expected)
        numpy.testing.assert_array_equal(got[1].view("<u4"), scales.view("<u4"))
        numpy.testing.assert_array_equal(got[0], codes)

    def test_every_dtype_shape_and_kind_of_value(self):
        rng = numpy.random.default_rng(7)
        shapes = [(1, 1), (3, 200), (128, 128), (129, 257), (300, 640), (2, 130, 65), (4, 64, 256)]
        for name in RECIPES:
            for dtype in DTYPES:
                for kind in ("normal", "wide", "ties", "sparse"):
                    for shape in shapes:
                        with self.subTest(name=name, dtype=dtype, kind=kind, shape=shape):
                            bits, values = random_source(rng, shape, dtype, kind)
                            self.compare(name, values, convert(name, [bits], dtype))

    def test_sources_are_joined_before_they_are_quantised(self):
        rng = numpy.random.default_rng(8)
        for name in RECIPES:
            for dtype in DTYPES:
                for heights in ((64, 64), (192, 192), (576, 2048), (1, 130, 3)):
                    pairs = [random_source(rng, (rows, 192), dtype, "normal") for rows in heights]
                    got = convert(name, [bits for bits, _ in pairs], dtype)
                    self.compare(name, numpy.concatenate([values for _, values in pairs]), got)
                pairs = [random_source(rng, (3, 70, 150), dtype, "normal") for _ in range(2)]
                got = convert(name, [bits for bits, _ in pairs], dtype, axis=1)
                self.compare(name, numpy.concatenate([values for _, values in pairs], 1), got)

    def test_masters_are_rounded_to_bf16_once(self):
        rng = numpy.random.default_rng(9)
        for name in RECIPES:
            bits, values = random_source(rng, (260, 300), "f32", "normal")
            self.compare(name, rounded_to_bf16(values),
                         convert(name, [bits], "f32", round_masters=True))
            self.compare(name, values, convert(name, [bits], "f32"))


if __name__ == "__main__":
    unittest.main()
