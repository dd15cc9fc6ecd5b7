# SPDX-License-Identifier: Apache-2.0
"""The two FP8 recipes in numpy, written from their description alone: an independent opinion on
what the converter must write. Scales multiply by fl32(1/448), codes are a true fp32 division."""
import numpy

RECIPROCAL = numpy.array(0x3B124925, dtype="<u4").view("<f4")
FLOOR = numpy.float32(1e-12)


def _e4m3_values():
    values = []
    for code in range(0x7F):
        exponent, mantissa = code >> 3, code & 7
        values.append(mantissa * 2.0 ** -9 if exponent == 0 else
                      (1 + mantissa / 8) * 2.0 ** (exponent - 7))
    return numpy.array(values)


VALUES = _e4m3_values()


def e4m3(x):
    """Codes of finite fp32 values within +-448: the nearest, the even code of two as near."""
    magnitude = numpy.abs(x).astype(numpy.float64)
    above = numpy.clip(numpy.searchsorted(VALUES, magnitude), 1, len(VALUES) - 1)
    below = above - 1
    to_above, to_below = VALUES[above] - magnitude, magnitude - VALUES[below]
    up = (to_above < to_below) | ((to_above == to_below) & (above % 2 == 0))
    return (numpy.where(up, above, below) | numpy.where(numpy.signbit(x), 0x80, 0)).astype("u1")


def _quantise(x, scale):
    quotient = (x / scale).astype("<f4")
    return e4m3(numpy.clip(quotient, numpy.float32(-448), numpy.float32(448)))


def _scale(amax):
    return numpy.maximum((amax * RECIPROCAL).astype("<f4"), FLOOR).astype("<f4")


def per_channel(x):
    scale = _scale(numpy.abs(x).max(axis=-1))
    return _quantise(x, scale[..., None]), scale


def block_128(x):
    if x.ndim == 3:
        parts = [block_128(matrix) for matrix in x]
        return numpy.stack([q for q, _ in parts]), numpy.stack([s for _, s in parts])
    rows, cols = x.shape
    scale = numpy.zeros((-(-rows // 128), -(-cols // 128)), dtype="<f4")
    codes = numpy.zeros(x.shape, dtype="u1")
    for i in range(scale.shape[0]):
        for j in range(scale.shape[1]):
            cut = (slice(i * 128, i * 128 + 128), slice(j * 128, j * 128 + 128))
            scale[i, j] = _scale(numpy.abs(x[cut]).max())
            codes[cut] = _quantise(x[cut], scale[i, j])
    return codes, scale
