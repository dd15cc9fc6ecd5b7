#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Cuts the golden files of the converter down to what a clone carries: some keys of each, whole.
The files of the GLM layer are small enough to be carried as they are.

usage: cut_golden.py FULL_DIRECTORY [OUT_DIRECTORY]"""
import json
import os
import re
import struct
import sys

CONVERSIONS = ("fp8_128x128", "cutlass_fp8_e4m3_per_channel")
KEPT = re.compile(r"(bf16|f32)\.(1x1|5x7)\.|bf16\.127x129\.(special|nonfinite)"
                  r"|bf16\.2x64x192\.normal|f32\.127x129\.outlier")
FLOATS_KEPT = 4096  # of the random fp32 patterns of casts; all 65,536 bf16 patterns stay


def read(path):
    with open(path, "rb") as stream:
        length, = struct.unpack("<Q", stream.read(8))
        header = json.loads(stream.read(length))
        data = stream.read()
    header.pop("__metadata__", None)
    return {name: (entry["dtype"], entry["shape"], data[slice(*entry["data_offsets"])])
            for name, entry in header.items()}


def write(path, tensors):
    header, data = {}, b""
    # Widest elements first, so that every tensor is aligned.
    for name, (dtype, shape, raw) in sorted(
            tensors.items(), key=lambda item: (-int("32" in item[1][0]), -int("16" in item[1][0]),
                                               item[0])):
        header[name] = {"dtype": dtype, "shape": shape,
                        "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as stream:
        stream.write(struct.pack("<Q", len(text)) + text + data)


def first_elements(tensor, n):
    dtype, shape, raw = tensor
    return dtype, [n], raw[:len(raw) // shape[0] * n]


def main(full, out):
    for conversion in CONVERSIONS:
        for kind in ("input", "expected"):
            name = f"{conversion}.{kind}.safetensors"
            tensors = read(os.path.join(full, name))
            write(os.path.join(out, name), {key: tensor for key, tensor in tensors.items()
                                            if KEPT.match(key)})
    casts = read(os.path.join(full, "casts.safetensors"))
    write(os.path.join(out, "casts.safetensors"),
          {key: first_elements(tensor, FLOATS_KEPT) if key.startswith("f32") else tensor
           for key, tensor in casts.items()})


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    main(sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else os.path.dirname(__file__) or ".")
