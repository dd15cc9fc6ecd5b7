# SPDX-License-Identifier: Apache-2.0
"""What the tests of the command line share: running it, and reading and writing safetensors files
with code that has nothing in common with Weir's."""
import json
import os
import shutil
import struct
import subprocess
import tempfile
import unittest

import numpy

WEIR = os.path.abspath(os.path.join(os.environ.get("WEIR_TEST_BIN", "build/bin"), "weir"))
DTYPES = {"BF16": ("<u2", 2), "F16": ("<f2", 2), "F32": ("<f4", 4), "F8_E4M3": ("u1", 1),
          "U8": ("u1", 1), "I32": ("<i4", 4), "I64": ("<i8", 8)}


def golden(name):
    """The path of a golden file: the large set if it is there, else the small copies; or None."""
    for variable in ("WEIR_TEST_SHARED_GOLDEN", "WEIR_TEST_GOLDEN"):
        path = os.path.join(os.environ.get(variable, ""), name)
        if os.environ.get(variable) and os.path.exists(path):
            return path
    return None


def read_file(path):
    """name -> (dtype, shape, raw array); bf16 and fp8 as their bit patterns. And the metadata."""
    with open(path, "rb") as stream:
        data = stream.read()
    n_header = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8:8 + n_header])
    metadata = header.pop("__metadata__", {})
    tensors = {}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        raw = numpy.frombuffer(data[8 + n_header + begin:8 + n_header + end],
                               dtype=DTYPES[entry["dtype"]][0])
        tensors[name] = (entry["dtype"], entry["shape"], raw.reshape(entry["shape"]))
    return tensors, metadata


def write_file(path, tensors, metadata=None):
    """Writes name -> (dtype, raw array)."""
    header, at = ({"__metadata__": metadata} if metadata else {}), 0
    for name, (dtype, array) in tensors.items():
        header[name] = {"dtype": dtype, "shape": list(array.shape),
                        "data_offsets": [at, at + array.nbytes]}
        at += array.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as stream:
        stream.write(struct.pack("<Q", len(text)) + text)
        for _, array in tensors.values():
            stream.write(numpy.ascontiguousarray(array).tobytes())


def bf16_bits(values):
    """fp32 values as bf16 bit patterns, rounded to nearest even."""
    bits = numpy.asarray(values, dtype="<f4").view("<u4").astype(numpy.uint64)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2")


def bf16_values(bits):
    return (bits.astype("<u4") << 16).view("<f4")


class CliCase(unittest.TestCase):
    """A folder of its own for each test, and a weir to run in it."""

    def setUp(self):
        self.folder = tempfile.mkdtemp(prefix="weir-test-")
        self.addCleanup(shutil.rmtree, self.folder, ignore_errors=True)

    def path(self, name):
        return os.path.join(self.folder, name)

    def weir(self, *arguments, code=0, environment=None, **options):
        """Runs it and checks the exit code. A failure is one line on stderr, begun with weir:."""
        result = subprocess.run([WEIR, *arguments], capture_output=True, text=True, timeout=120,
                                cwd=self.folder, check=False,
                                env={**os.environ, **(environment or {})}, **options)
        self.assertEqual(result.returncode, code,
                         f"weir {' '.join(arguments)}\n{result.stdout}\n{result.stderr}")
        if code != 0:
            errors = [line for line in result.stderr.splitlines()
                      if not line.startswith(("weir: note: ", "weir: warning: "))]
            self.assertEqual(len(errors), 1, result.stderr)
            self.assertTrue(errors[0].startswith("weir: "), result.stderr)
            self.assertEqual(result.stdout, "")
        return result

    def weir_json(self, *arguments):
        return json.loads(self.weir(*arguments, "--json").stdout)

    def error(self, *arguments, code=1, **options):
        return self.weir(*arguments, code=code, **options).stderr.strip().splitlines()[-1]
