#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Writes tests/golden/bad/*.safetensors: files that a reader must refuse, one defect in each.

Run it to make them again; tests/checkpoint/test_safetensors.c says which line each must give.
"""
import json
import pathlib
import struct

TARGET = pathlib.Path(__file__).parent / "bad"


def raw(header: bytes, data: bytes = b"", length=None) -> bytes:
    return struct.pack("<Q", len(header) if length is None else length) + header + data


def entry(dtype="F32", shape=(2,), offsets=(0, 8), **others):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets), **others}


def file(data=8, **entries) -> bytes:
    return raw(json.dumps(entries).encode(), bytes(data))


def without(key):
    fields = entry()
    del fields[key]
    return file(a=fields)


GOOD = json.dumps({"a": entry()}).encode()

FILES = {
    "empty_file": b"",
    "short_length": b"\x10\x00\x00",
    "header_length_0": raw(b""),
    "header_length_huge": raw(GOOD, bytes(8), length=2**64 - 1),
    "header_length_over_limit": raw(GOOD, bytes(8), length=100_000_001),
    "header_truncated": raw(GOOD[:20], length=len(GOOD)),
    "header_cut": raw(GOOD[:-1], bytes(8)),
    "header_leading_space": raw(b" " + GOOD, bytes(8)),
    "header_array": raw(b"[" + GOOD + b"]", bytes(8)),
    "header_trailing_text": raw(GOOD + b"{}", bytes(8)),
    "header_invalid_utf8": raw(GOOD.replace(b'"a"', b'"\xff\xfe"'), bytes(8)),
    "header_nul_in_name": raw(GOOD.replace(b'"a"', b'"a\\u0000b"'), bytes(8)),
    "duplicate_tensor": raw(GOOD[:-1] + b", " + GOOD[1:], bytes(8)),
    "duplicate_field": raw(GOOD.replace(b'"dtype"', b'"dtype": "U8", "dtype"'), bytes(8)),
    "deep_nesting": raw(b'{"a":' + b"[" * 3000 + b"]" * 3000 + b"}"),
    "metadata_array": raw(b'{"__metadata__": []}'),
    "metadata_nested": raw(b'{"__metadata__": {"a": {"b": "c"}}}'),
    "metadata_number": raw(b'{"__metadata__": {"format": 1}}'),
    "tensor_no_object": raw(b'{"a": [1, 2]}', bytes(8)),
    "dtype_missing": without("dtype"),
    "dtype_unknown": file(a=entry("F33")),
    "dtype_number": file(a=entry(32)),
    "shape_missing": without("shape"),
    "shape_negative": file(a=entry(shape=[-2])),
    "shape_fraction": file(a=entry(shape=[2.0])),
    "shape_product_overflow": file(a=entry(shape=[2**32, 2**32, 2])),
    "shape_overflow_behind_zero": file(0, a=entry(shape=[0, 2**62, 2**62], offsets=(0, 0))),
    "shape_bytes_overflow": file(a=entry(shape=[2**62])),
    "shape_count_over_64_bits": file(a=entry(shape=[2**64])),
    "shape_rank_9": file(a=entry(shape=[1] * 8 + [2])),
    "offsets_missing": without("data_offsets"),
    "offsets_three": file(a=entry(offsets=(0, 8, 8))),
    "offsets_fraction": file(a=entry(offsets=(0.0, 8.0))),
    "offsets_negative": file(a=entry(offsets=(-8, 0))),
    "offsets_reversed": file(a=entry(offsets=(8, 0))),
    "offsets_over_64_bits": file(a=entry(offsets=(0, 2**64 - 1))),
    "offsets_near_overflow": file(a=entry(offsets=(2**63 - 9, 2**63 - 1))),
    "size_wrong": file(a=entry(shape=[3])),
    "size_wrong_sub_byte": file(a=entry("F4", [15], (0, 8))),
    "size_wrong_scalar": file(a=entry(shape=[])),
    "data_truncated": file(7, a=entry()),
    "data_missing": file(0, a=entry()),
    "data_too_long": file(9, a=entry()),
    "data_without_tensors": raw(b"{}", bytes(8)),
    "gap_at_start": file(12, a=entry(offsets=(4, 12))),
    "gap_between": file(20, a=entry(), b=entry(offsets=(12, 20))),
    "overlap": file(12, a=entry(), b=entry(offsets=(4, 12))),
    "overlap_same": file(8, a=entry(), b=entry()),
}


def main():
    TARGET.mkdir(exist_ok=True)
    for name, content in FILES.items():
        (TARGET / f"{name}.safetensors").write_bytes(content)


if __name__ == "__main__":
    main()
