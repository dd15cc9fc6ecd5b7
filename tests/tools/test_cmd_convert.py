# SPDX-License-Identifier: Apache-2.0
"""`weir convert`, tensor by tensor: its bytes against golden files and against an independent
recipe, its names, and what it leaves behind when something is wrong."""
import json
import os
import resource
import signal
import subprocess
import unittest

import numpy

import fp8_recipe
from cli_case import WEIR, CliCase, bf16_bits, bf16_values, golden, read_file, write_file

SCALES = {"fp8_128x128": "weight_scale_inv", "cutlass_fp8_e4m3_per_channel": "weight_scale"}
RECIPES = {"fp8_128x128": fp8_recipe.block_128,
           "cutlass_fp8_e4m3_per_channel": fp8_recipe.per_channel}


def is_sanitized():
    with open(WEIR, "rb") as stream:
        program = stream.read()
    return b"__asan_init" in program or b"__tsan_init" in program


def same_bytes(dtype, got, expected):
    """Byte for byte, save that any NaN equals any other."""
    if dtype == "F8_E4M3":
        nan = ((got & 0x7F) == 0x7F) & ((expected & 0x7F) == 0x7F)
        return bool((nan | (got == expected)).all())
    a, b = got.view("<u4"), expected.view("<u4")
    return bool(((a == b) | (numpy.isnan(got) & numpy.isnan(expected))).all())


class ConvertCase(CliCase):
    def convert(self, *sources, conversion="fp8_128x128", more=(), **options):
        """Converts into out.safetensors and reads it."""
        out = self.path("out.safetensors")
        self.weir("convert", *sources, "-o", out, "--conversion", conversion, *more, **options)
        return read_file(out)

    def write(self, name, tensors):
        path = self.path(name)
        write_file(path, tensors)
        return path

    def assert_nothing_left(self, *expected):
        self.assertEqual(sorted(os.listdir(self.folder)), sorted(expected))


class Golden(ConvertCase):
    def check(self, conversion):
        source, wanted = (golden(f"{conversion}.{kind}.safetensors")
                          for kind in ("input", "expected"))
        self.assertIsNotNone(source, "no golden input was found")
        inputs, _ = read_file(source)
        expected, _ = read_file(wanted)
        outputs, _ = self.convert(source, conversion=conversion, more=("--nonfinite", "propagate"))
        self.assertEqual(len(outputs), 2 * len(inputs))
        for name in inputs:
            for got, suffix in ((name, "q"), (f"{name}.{SCALES[conversion]}", "scale")):
                dtype, shape, raw = outputs[got]
                want = expected[f"{name}.{suffix}"]
                self.assertEqual((dtype, shape), want[:2], got)
                self.assertTrue(same_bytes(dtype, raw, want[2]), got)

    def test_block_fp8_equals_the_golden_bytes(self):
        self.check("fp8_128x128")

    def test_per_channel_fp8_equals_the_golden_bytes(self):
        self.check("cutlass_fp8_e4m3_per_channel")

    def test_reference_kernels_and_one_thread_write_the_same_file(self):
        source = golden("fp8_128x128.input.safetensors")
        self.assertIsNotNone(source)
        more = ("--nonfinite", "propagate")
        fast, _ = self.convert(source, more=more)
        slow, _ = self.convert(source, more=(*more, "--threads", "1"),
                               environment={"WEIR_CPU_DISABLE": "all"})
        for name, (dtype, _, raw) in fast.items():
            self.assertTrue(same_bytes(dtype, slow[name][2], raw), name)


class Recipe(ConvertCase):
    """Random weights of many magnitudes, whose bf16 maxima put quotients on rounding ties."""

    def sources(self):
        random = numpy.random.default_rng(7)
        tensors, values = {}, {}
        for shape in ((300, 257), (1, 1), (128, 128), (2, 130, 65)):
            x = random.standard_normal(shape) * 2.0 ** random.integers(-12, 4, shape)
            name = "x".join(map(str, shape))
            bits = bf16_bits(x)
            tensors[f"bf16.{name}.weight"] = ("BF16", bits)
            values[f"bf16.{name}.weight"] = bf16_values(bits)
            tensors[f"f16.{name}.weight"] = ("F16", x.astype("<f2"))
            values[f"f16.{name}.weight"] = x.astype("<f2").astype("<f4")
            tensors[f"f32.{name}.weight"] = ("F32", x.astype("<f4"))
            values[f"f32.{name}.weight"] = x.astype("<f4")
        return self.write("in.safetensors", tensors), values

    def test_codes_and_scales_equal_an_independent_computation(self):
        source, values = self.sources()
        for conversion, recipe in RECIPES.items():
            outputs, _ = self.convert(source, conversion=conversion)
            for name, x in values.items():
                with self.subTest(conversion=conversion, name=name):
                    codes, scale = recipe(x)
                    numpy.testing.assert_array_equal(outputs[name][2], codes)
                    got = outputs[name.replace(".weight", f".{SCALES[conversion]}")]
                    self.assertEqual(got[1], list(scale.shape))
                    numpy.testing.assert_array_equal(got[2].view("<u4"), scale.view("<u4"))

    def test_casts_equal_an_independent_computation(self):
        source, values = self.sources()
        outputs, _ = self.convert(source, conversion="bf16_cast")
        for name, x in values.items():
            self.assertEqual(outputs[name][0], "BF16")
            numpy.testing.assert_array_equal(outputs[name][2], bf16_bits(x))
        outputs, _ = self.convert(source, conversion="fp32_cast")
        for name, x in values.items():
            self.assertEqual(outputs[name][0], "F32")
            numpy.testing.assert_array_equal(outputs[name][2].view("<u4"), x.view("<u4"))


class Names(ConvertCase):
    def test_scales_are_named_after_their_tensor(self):
        one = ("F32", numpy.ones((2, 2), dtype="<f4"))
        source = self.write("in.safetensors", {n: one for n in ("a.weight", "b_weight", "c.w1")})
        for conversion, suffix in SCALES.items():
            outputs, _ = self.convert(source, conversion=conversion)
            self.assertEqual(sorted(outputs),
                             sorted(["a.weight", f"a.{suffix}", "b_weight", f"b_{suffix}",
                                     "c.w1", f"c.w1.{suffix}"]))

    def test_metadata_says_what_the_bytes_are(self):
        source = self.write("in.safetensors", {"w": ("F32", numpy.ones((2, 2), dtype="<f4"))})
        _, metadata = self.convert(source)
        self.assertEqual(metadata["weir.conversion"], "fp8_128x128")
        self.assertEqual(metadata["weir.compile_target"], "deep_gemm_fp8")
        self.assertEqual(json.loads(metadata["weir.compile_metadata"])["block_size"], [128, 128])
        self.assertEqual(metadata["format"], "pt")

    def test_every_tensor_of_the_file_is_aligned(self):
        odd = ("F32", numpy.ones((3, 5), dtype="<f4"))
        source = self.write("in.safetensors", {f"t{i}.weight": odd for i in range(5)})
        self.convert(source)
        with open(self.path("out.safetensors"), "rb") as stream:
            data = stream.read()
        n_header = int.from_bytes(data[:8], "little")
        for name, entry in json.loads(data[8:8 + n_header]).items():
            if name != "__metadata__" and entry["dtype"] == "F32":
                self.assertEqual((8 + n_header + entry["data_offsets"][0]) % 4, 0, name)

    def test_select_and_ignore_leave_tensors_out(self):
        one = ("F32", numpy.ones((2, 2), dtype="<f4"))
        source = self.write("in.safetensors", {n: one for n in ("a.x", "a.y", "b.x")})
        outputs, _ = self.convert(source, conversion="fp32_cast", more=("--select", "a.*"))
        self.assertEqual(sorted(outputs), ["a.x", "a.y"])
        outputs, _ = self.convert(source, conversion="fp32_cast",
                                  more=("--select", "a.*", "--select", "b.*", "--ignore", "*.y"))
        self.assertEqual(sorted(outputs), ["a.x", "b.x"])

    def test_several_files_and_directories_become_one(self):
        one = ("F32", numpy.ones((2, 2), dtype="<f4"))
        os.mkdir(self.path("dir"))
        write_file(self.path("dir/model.safetensors"), {"b": one})
        source = self.write("in.safetensors", {"a": one})
        outputs, _ = self.convert(source, self.path("dir"), conversion="bf16_cast")
        self.assertEqual(sorted(outputs), ["a", "b"])

    def test_an_empty_tensor_stays_empty(self):
        source = self.write("in.safetensors", {"w": ("F32", numpy.ones((0, 8), dtype="<f4")),
                                               "v": ("F32", numpy.ones((2, 8), dtype="<f4"))})
        outputs, _ = self.convert(source, conversion="bf16_cast")
        self.assertEqual(outputs["w"][1], [0, 8])

    def test_summary_counts_bytes(self):
        source = self.write("in.safetensors", {"w": ("F32", numpy.ones((8, 8), dtype="<f4"))})
        out = self.path("out.safetensors")
        summary = self.weir_json("convert", source, "-o", out, "--conversion", "fp8_128x128")
        self.assertEqual((summary["output"], summary["conversion"], summary["source_tensors"],
                          summary["output_tensors"], summary["source_bytes"],
                          summary["output_bytes"]), (out, "fp8_128x128", 1, 2, 256, 68))
        self.assertGreater(summary["gb_per_s"], 0)
        text = self.weir("convert", source, "-o", out, "--conversion", "bf16_cast").stdout
        self.assertIn("out.safetensors: 1 tensors, 128 B, from 1 tensors, 256 B, by bf16_cast", text)

    def test_progress_is_drawn_when_asked_for(self):
        source = self.write("in.safetensors", {"w": ("F32", numpy.ones((8, 8), dtype="<f4"))})
        result = self.weir("convert", source, "-o", self.path("out.safetensors"), "--conversion",
                           "bf16_cast", "--progress")
        self.assertRegex(result.stderr, r"converting \[#+\] 100 %  256 B of 256 B  .*/s  .* left")


class BadInput(ConvertCase):
    def refuse(self, *arguments, code=1, **options):
        """The error line; DST must not have come into being."""
        line = self.error("convert", *arguments, "-o", self.path("out.safetensors"), code=code,
                          **options)
        self.assertFalse(os.path.exists(self.path("out.safetensors")))
        return line

    def matrix(self, name="in.safetensors", **more):
        tensors = {"w.weight": ("F32", numpy.ones((2, 2), dtype="<f4"))}
        return self.write(name, {**tensors, **more})

    def test_wrong_command_lines_exit_with_2(self):
        source = self.matrix()
        cast = ("--conversion", "bf16_cast")
        for arguments, text in [((source,), "--conversion is missing"),
                                (cast, "SRC is missing"),
                                ((source, *cast, "--layout", "x"), "--layout goes with --family"),
                                ((source, *cast, "--config", "x"), "--config goes with --family"),
                                ((source, "--conversion", "auto"), "auto goes with --family"),
                                ((source, *cast, "--keep-masters"), "goes with --family"),
                                ((source, *cast, "--nonfinite", "maybe"), "refuse or propagate"),
                                ((source, *cast, "--device", "tpu"), "--device takes cpu"),
                                ((source, *cast, "--threads", "0"), "from 1 to 1024"),
                                ((source, *cast, "--threads", "1025"), "from 1 to 1024"),
                                ((source, *cast, "--threads", "2x"), "whole number from 1"),
                                ((source, *cast, "--frob"), "unknown option '--frob'")]:
            with self.subTest(arguments=arguments):
                self.assertIn(text, self.refuse(*arguments, code=2))
        line = self.error("convert", source, *cast, code=2)
        self.assertIn("-o DST is missing", line)

    def test_a_device_that_is_not_built_is_a_failure(self):
        line = self.refuse(self.matrix(), "--conversion", "bf16_cast", "--device", "cuda")
        self.assertEqual(line, "weir: device 'cuda' is not in this build")

    def test_a_missing_file_is_named(self):
        self.assertIn("missing.safetensors",
                      self.refuse(self.path("missing.safetensors"), "--conversion", "bf16_cast"))

    def test_a_truncated_file_is_named(self):
        source = self.matrix()
        os.truncate(source, os.path.getsize(source) - 1)
        self.assertIn("in.safetensors", self.refuse(source, "--conversion", "bf16_cast"))

    def test_an_unknown_conversion_lists_the_known(self):
        line = self.refuse(self.matrix(), "--conversion", "frob")
        self.assertIn("unknown conversion 'frob'; registered: [bf16_cast, ", line)

    def test_an_unknown_family_is_named(self):
        line = self.refuse(self.matrix(), "--conversion", "bf16_cast", "--family", "frob")
        self.assertIn("'frob'", line)

    def test_a_tensor_of_wrong_rank_is_named_and_can_be_left_out(self):
        source = self.matrix(bias=("F32", numpy.ones(4, dtype="<f4")))
        for conversion in SCALES:
            line = self.refuse(source, "--conversion", conversion)
            self.assertIn("bias: ", line)
            self.assertIn("4", line)
        outputs, _ = self.convert(source, more=("--select", "*.weight"))
        self.assertNotIn("bias", outputs)

    def test_a_tensor_of_wrong_dtype_is_named(self):
        source = self.matrix(ids=("I64", numpy.ones((2, 2), dtype="<i8")))
        self.assertEqual(self.refuse(source, "--conversion", "fp8_128x128"),
                         "weir: ids: dtype I64, but conversion 'fp8_128x128' takes F16, BF16, F32")

    def test_nothing_selected_is_a_failure(self):
        self.assertIn("none of the 1 tensors",
                      self.refuse(self.matrix(), "--conversion", "bf16_cast", "--select", "x*"))

    def test_one_name_in_two_files_is_refused(self):
        line = self.refuse(self.matrix("a.safetensors"), self.matrix("b.safetensors"),
                           "--conversion", "bf16_cast")
        self.assertIn("w.weight", line)

    def test_two_outputs_of_one_name_are_refused(self):
        one = ("F32", numpy.ones((2, 2), dtype="<f4"))
        source = self.write("in.safetensors", {"a.weight": one, "a.weight_scale_inv": one})
        line = self.refuse(source, "--conversion", "fp8_128x128")
        self.assertIn("'a.weight_scale_inv' would be written twice", line)
        self.assertIn("'a.weight'", line)

    def nonfinite(self, value):
        x = numpy.ones((200, 150), dtype="<f4")
        x[130, 7] = value
        x[199, 149] = numpy.nan
        return self.write("in.safetensors", {"fine.weight": ("F32", numpy.ones((2, 2), "<f4")),
                                             "layer.weight": ("BF16", bf16_bits(x))})

    def test_nonfinite_weights_are_refused_by_name_and_index(self):
        for conversion in (*SCALES, "bf16_cast"):
            for value in (numpy.nan, numpy.inf, -numpy.inf):
                with self.subTest(conversion=conversion, value=value):
                    line = self.refuse(self.nonfinite(value), "--conversion", conversion)
                    self.assertIn("layer.weight", line)
                    self.assertRegex(line, r"\[130, 7\]")
        self.assert_nothing_left("in.safetensors")

    def test_nonfinite_weights_pass_when_asked(self):
        outputs, _ = self.convert(self.nonfinite(numpy.inf), more=("--nonfinite", "propagate"))
        self.assertEqual(int(outputs["layer.weight"][2][130, 7]) & 0x7F, 0x7F)
        self.assertEqual(int(outputs["layer.weight"][2][0, 0]), 0x7E)

    def test_a_failure_leaves_the_old_file_alone(self):
        source = self.nonfinite(numpy.nan)
        with open(self.path("out.safetensors"), "wb") as stream:
            stream.write(b"old")
        self.error("convert", source, "-o", self.path("out.safetensors"), "--conversion",
                   "fp8_128x128")
        with open(self.path("out.safetensors"), "rb") as stream:
            self.assertEqual(stream.read(), b"old")
        self.assert_nothing_left("in.safetensors", "out.safetensors")

    def test_a_success_replaces_the_old_file(self):
        with open(self.path("out.safetensors"), "wb") as stream:
            stream.write(b"old")
        outputs, _ = self.convert(self.matrix())
        self.assertIn("w.weight", outputs)
        self.assert_nothing_left("in.safetensors", "out.safetensors")

    def test_destinations_that_cannot_be_written_are_named(self):
        source = self.matrix()
        os.mkdir(self.path("folder"))
        for destination in (self.path("missing/out.safetensors"), "/proc/out.safetensors",
                            self.path("folder"), "/dev/null"):
            with self.subTest(destination=destination):
                line = self.error("convert", source, "-o", destination, "--conversion", "bf16_cast")
                self.assertIn(destination, line)
        self.assert_nothing_left("folder", "in.safetensors")

    def test_a_source_cannot_be_the_destination(self):
        source = self.matrix()
        os.link(source, self.path("link.safetensors"))
        for destination in (source, self.path("link.safetensors"), self.path("./in.safetensors")):
            line = self.error("convert", source, "-o", destination, "--conversion", "bf16_cast")
            self.assertIn("is also a source", line)
        self.assertEqual(read_file(source)[0]["w.weight"][0], "F32")

    def test_a_disk_that_fills_up_leaves_nothing(self):
        x = numpy.ones((512, 512), dtype="<f4")
        source = self.write("in.safetensors", {"w": ("F32", x)})

        def limit():
            resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

        line = self.refuse(source, "--conversion", "bf16_cast", preexec_fn=limit,
                           restore_signals=False)
        self.assertIn("File too large", line)
        self.assert_nothing_left("in.safetensors")


class Large(ConvertCase):
    N_TENSORS, SIDE = 36, 2048

    def setUp(self):
        super().setUp()
        bits = bf16_bits(numpy.linspace(-1, 1, self.SIDE * self.SIDE).reshape(self.SIDE, self.SIDE))
        self.source = self.write("in.safetensors",
                                 {f"layer.{i}.weight": ("BF16", numpy.roll(bits, i, axis=0))
                                  for i in range(self.N_TENSORS)})

    def test_a_checkpoint_larger_than_the_memory_allowed_is_converted(self):
        if is_sanitized():
            self.skipTest("SKIPPED: the sanitizer's own memory is above the limit")
        n_bytes = os.path.getsize(self.source)
        limit = n_bytes // 2
        outputs, _ = self.convert(
            self.source,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, (limit, limit)))
        self.assertEqual(len(outputs), 2 * self.N_TENSORS)
        unlimited, _ = self.convert(self.source)
        for name, (_, _, raw) in unlimited.items():
            self.assertEqual(raw.tobytes(), outputs[name][2].tobytes(), name)

    def test_a_signal_leaves_nothing(self):
        command = [WEIR, "convert", self.source, "-o", self.path("out.safetensors"), "--conversion",
                   "fp8_128x128", "--threads", "1", "--progress"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                              env={**os.environ, "WEIR_CPU_DISABLE": "all"}) as process:
            self.assertIn("converting", process.stderr.readline())
            process.send_signal(signal.SIGTERM)
            _, errors = process.communicate(timeout=60)
        self.assertEqual(process.returncode, 1, errors)
        self.assertIn("interrupted", errors)
        self.assert_nothing_left("in.safetensors")


if __name__ == "__main__":
    unittest.main()
