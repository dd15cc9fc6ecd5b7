#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The structs that tests/gpu/torch_push.py declares for ctypes are those of the headers.

That program runs on machines with GPUs alone; a field that was added to a header would otherwise be
noticed there, as wrong answers.
"""
import ctypes
import importlib.util
import os
import subprocess
import sys
import tempfile
import types
import unittest

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
# Arrays of these are walked, or they are handed over without a size.
WHOLE = {"Shape": "weir_shape", "Tensor": "weir_tensor", "Parameter": "weir_parameter",
         "MapEntry": "weir_map_entry"}
# These say their own size, so that what is behind their last field is zero.
FRONT = {"MappingOptions": "weir_mapping_options", "DirectoryOptions": "weir_directory_options",
         "TrainerOptions": "weir_trainer_options", "ReplicaOptions": "weir_replica_options"}


def load_declarations():
    torch = types.ModuleType("torch")
    torch.multiprocessing = types.ModuleType("torch.multiprocessing")
    sys.modules["torch"], sys.modules["torch.multiprocessing"] = torch, torch.multiprocessing
    for name in ("bfloat16", "float32", "uint8", "float8_e4m3fn", "float16", "int32", "int64"):
        setattr(torch, name, name)
    path = os.path.join(ROOT, "tests", "gpu", "torch_push.py")
    spec = importlib.util.spec_from_file_location("torch_push", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def offsets_in_c(names):
    """What the compiler says: offset of each field, and the size, by struct."""
    lines = []
    for struct, fields in names.items():
        lines += [f'printf("{struct} {f} %zu\\n", offsetof({struct}, {f}));' for f in fields]
        lines.append(f'printf("{struct} = %zu\\n", sizeof({struct}));')
    source = ("#include <stddef.h>\n#include <stdio.h>\n#include <weir/weir.h>\n"
              "int main(void)\n{\n" + "\n".join(lines) + "\nreturn 0;\n}\n")
    with tempfile.TemporaryDirectory() as directory:
        program = os.path.join(directory, "offsets")
        subprocess.run(["cc", "-x", "c", "-", "-I", os.path.join(ROOT, "include"), "-o", program],
                       input=source, text=True, check=True)
        text = subprocess.run([program], capture_output=True, text=True, check=True).stdout
    return {tuple(line.split()[:2]): int(line.split()[2]) for line in text.splitlines()}


class TorchPushLayout(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.declared = load_declarations()
        cls.names = {}
        for python_name, struct in {**WHOLE, **FRONT}.items():
            fields = getattr(cls.declared, python_name)._fields_
            cls.names[struct] = [field[0] for field in fields]
        cls.compiled = offsets_in_c(cls.names)

    def test_every_field_lies_where_the_compiler_puts_it(self):
        for python_name, struct in {**WHOLE, **FRONT}.items():
            declared = getattr(self.declared, python_name)
            for field in self.names[struct]:
                with self.subTest(struct=struct, field=field):
                    self.assertEqual(getattr(declared, field).offset,
                                     self.compiled[(struct, field)])

    def test_structs_without_a_size_are_as_large(self):
        for python_name, struct in WHOLE.items():
            with self.subTest(struct=struct):
                self.assertEqual(ctypes.sizeof(getattr(self.declared, python_name)),
                                 self.compiled[(struct, "=")])


if __name__ == "__main__":
    unittest.main()
