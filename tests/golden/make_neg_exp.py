#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Makes the golden file of neg_exp with Python's decimal numbers: -exp(x) to 60 digits, then the
nearest fp32. All bf16 of magnitudes between 2^-31 and 128 whose result is finite, and fp32 such as
A_log has, near overflow and among subnormal results.

usage: make_neg_exp.py [OUT_DIRECTORY]"""
import decimal
import os
import random
import struct
import sys

from cut_golden import write

FLT_OVERFLOW = decimal.Decimal(2) ** 128 - decimal.Decimal(2) ** 103  # rounds to Inf from here


def float_of(bits):
    return struct.unpack("<f", struct.pack("<I", bits))[0]


def bits_of(value):
    return struct.unpack("<I", struct.pack("<f", value))[0]


def neg_exp_bits(bits):
    """Bits of the fp32 nearest to -exp(x), None where that is infinite."""
    exact = decimal.Decimal(float_of(bits)).exp()
    if exact >= FLT_OVERFLOW:
        return None
    low = bits_of(float(exact))  # off by one at the most: a double in between was rounded first
    near = [b for b in (low - 1, low, low + 1) if 0 <= b < 0x7F800000]
    best = min(near, key=lambda b: (abs(decimal.Decimal(float_of(b)) - exact), b & 1))
    return best | 0x80000000


def both(name, dtype, inputs):
    pairs = [(x, neg_exp_bits(x << 16 if dtype == "BF16" else x)) for x in inputs]
    pairs = [(x, y) for x, y in pairs if y is not None]
    form = "H" if dtype == "BF16" else "I"
    return {name: (dtype, [len(pairs)], b"".join(struct.pack("<" + form, x) for x, _ in pairs)),
            name + ".expected": ("F32", [len(pairs)],
                                 b"".join(struct.pack("<I", y) for _, y in pairs))}


def main(out):
    decimal.getcontext().prec = 60
    rng = random.Random(1)
    patterns = [sign | bits for sign in (0, 0x8000) for bits in [0, *range(0x3000, 0x4300)]]
    values = ([rng.uniform(-20, 20) for _ in range(3000)] + [rng.gauss(0, 1) for _ in range(500)] +
              [rng.uniform(88, 88.73) for _ in range(300)] +
              [rng.uniform(-104.5, -87) for _ in range(300)])
    tensors = both("bf16", "BF16", patterns)
    tensors.update(both("f32", "F32", [bits_of(value) for value in values]))
    write(os.path.join(out, "neg_exp.safetensors"), tensors)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else os.path.dirname(__file__) or ".")
