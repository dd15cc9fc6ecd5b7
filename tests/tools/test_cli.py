# SPDX-License-Identifier: Apache-2.0
"""The frame of the command line, and the verbs that look things up: formats, families, resolve,
inspect, info."""
import json
import os
import re
import subprocess
import unittest

import numpy

from cli_case import WEIR, CliCase, bf16_bits, write_file

FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic"}


class Frame(CliCase):
    def verbs(self):
        lines = self.weir("--help").stdout.split("verbs:\n")[1].split("\n\n")[0].splitlines()
        return [re.split(r"  +", line.strip())[0] for line in lines if "not in this build" not in line]

    def test_help_lists_the_verbs(self):
        verbs = self.verbs()
        for verb in ("convert", "formats", "families", "resolve", "inspect", "info"):
            self.assertIn(verb, verbs)

    def test_every_verb_explains_itself_on_stdout(self):
        for verb in self.verbs():
            with self.subTest(verb=verb):
                result = self.weir(*verb.split(), "--help")
                self.assertIn(f"usage: weir {verb}", result.stdout)
                self.assertEqual(result.stderr, "")

    def test_help_wins_over_missing_arguments(self):
        self.assertIn("usage: weir convert", self.weir("convert", "--family", "x", "--help").stdout)

    def test_version(self):
        self.assertRegex(self.weir("--version").stdout, r"^weir \d+\.\d+\.\d+\n$")

    def test_wrong_command_lines_exit_with_2_and_say_where_to_look(self):
        lines = [((), "which verb"), (("frobnicate",), "unknown verb 'frobnicate'"),
                 (("--frob",), "unknown option '--frob'"),
                 (("bench",), "takes one of: convert"),
                 (("bench", "frob"), "takes one of: convert"),
                 (("formats", "--frob"), "formats: unknown option '--frob'"),
                 (("formats", "-x"), "formats: unknown option '-x'"),
                 (("formats", "extra"), "takes no argument, got 'extra'"),
                 (("info", "--json=3"), "--json=3"),
                 (("resolve",), "takes one config.json"),
                 (("inspect", "a", "b"), "takes one file or directory"),
                 (("convert", "-o"), "needs a value"),
                 (("convert", "--conversion"), "needs a value")]
        for arguments, text in lines:
            with self.subTest(arguments=arguments):
                line = self.error(*arguments, code=2)
                self.assertIn(text, line)
                self.assertIn("--help'", line)

    def test_a_stdout_that_cannot_be_written_is_a_failure(self):
        for arguments in (("formats",), ("formats", "--json"), ("--help",)):
            with open("/dev/full", "w", encoding="utf-8") as full:
                result = subprocess.run([WEIR, *arguments], stdout=full, stderr=subprocess.PIPE,
                                        text=True, timeout=60, check=False)
            self.assertEqual(result.returncode, 1)
            self.assertEqual(result.stderr,
                             "weir: cannot write to stdout: No space left on device\n")


class Formats(CliCase):
    def test_rows_carry_the_tags_that_engines_look_for(self):
        rows = {row["name"]: row for row in self.weir_json("formats")["conversions"]}
        expected = {"bf16_cast": ("hf_raw", {"dtype": "bfloat16"}),
                    "fp32_cast": ("hf_raw", {"dtype": "float32"}),
                    "neg_exp": ("vllm_fused", {"dtype": "float32", "function": "neg_exp"}),
                    "fp8_128x128": ("deep_gemm_fp8", {"dtype": "e4m3", "scale_layout": "blockwise",
                                                      "block_size": [128, 128]}),
                    "cutlass_fp8_e4m3_per_channel":
                        ("cutlass_fp8", {"dtype": "e4m3", "scale_layout": "per_channel",
                                         "scale_axis": -1, "activation_scheme": "dynamic"})}
        for name, (target, metadata) in expected.items():
            self.assertEqual(rows[name]["compile_target"], target)
            self.assertEqual(rows[name]["compile_metadata"], metadata)
        self.assertEqual(sorted(rows["fp8_128x128"]["sources"]), ["BF16", "F16", "F32"])
        outputs = rows["fp8_128x128"]["outputs"]
        self.assertEqual([(o["suffix"], o["dtype"], o["cell"]) for o in outputs],
                         [("weight", "F8_E4M3", [1, 1]),
                          ("weight_scale_inv", "F32", [128, 128])])
        channel = rows["cutlass_fp8_e4m3_per_channel"]["outputs"][1]
        self.assertEqual((channel["suffix"], channel["cell"]), ("weight_scale", [1, None]))

    def test_text_names_every_row(self):
        text = self.weir("formats").stdout
        for row in self.weir_json("formats")["conversions"]:
            self.assertIn(f"\n{row['name']}\n", "\n" + text)


class Families(CliCase):
    def test_rows_and_text_agree(self):
        rows = {row["name"]: row for row in self.weir_json("families")["families"]}
        text = self.weir("families").stdout
        for name in ("qwen3_moe", "glm_moe_dsa", "qwen3", "llama"):
            self.assertIn(name, rows)
            self.assertIn(f"\n{name}\n", "\n" + text)
            self.assertTrue(rows[name]["model_types"])
            self.assertIn("tiny", rows[name]["presets"])
        self.assertEqual(sorted(rows["glm_moe_dsa"]["layouts"]), ["fused_indexer", "split_indexer"])


class Resolve(CliCase):
    def config(self, quantization, **more):
        path = self.path("config.json")
        content = {"model_type": "qwen3_moe", **more}
        if quantization is not None:
            content["quantization_config"] = quantization
        with open(path, "w", encoding="utf-8") as stream:
            json.dump(content, stream)
        return path

    def test_rules_choose_the_conversion(self):
        cases = [(None, "bf16_cast"),
                 ({**FP8, "weight_block_size": [128, 128]}, "fp8_128x128"),
                 ({**FP8, "weight_block_size": [128, 128], "quant_format": "cutlass"}, "fp8_128x128"),
                 ({"quant_method": "fp8", "quant_format": "cutlass"}, "cutlass_fp8_e4m3_per_channel"),
                 (FP8, "cutlass_fp8_e4m3_per_channel")]
        for quantization, name in cases:
            with self.subTest(quantization=quantization):
                choice = self.weir_json("resolve", self.config(quantization))
                self.assertEqual(choice["conversion"], name)
                self.assertEqual(choice["family"], "qwen3_moe")
        self.assertEqual(choice["compile_target"], "cutlass_fp8")
        self.assertIn("cutlass_fp8_e4m3_per_channel",
                      self.weir("resolve", self.config(FP8)).stdout)

    def test_a_directory_stands_for_its_config(self):
        self.config(None)
        self.assertEqual(self.weir_json("resolve", self.folder)["conversion"], "bf16_cast")

    def test_an_unknown_model_type_still_resolves(self):
        choice = self.weir_json("resolve", self.config(None, model_type="frob"))
        self.assertIsNone(choice["family"])

    def test_failures_name_the_cause(self):
        line = self.error("resolve", self.config({"quant_method": "awq", "bits": 4}))
        self.assertIn("unsupported inference quantization", line)
        self.assertIn("registered conversions", line)
        self.assertIn("missing.json", self.error("resolve", self.path("missing.json")))
        with open(self.path("bad.json"), "w", encoding="utf-8") as stream:
            stream.write('{"a": ')
        self.assertIn("bad.json", self.error("resolve", self.path("bad.json")))


class Inspect(CliCase):
    def checkpoint(self):
        write_file(self.path("model.safetensors"),
                   {"b.weight": ("BF16", bf16_bits(numpy.ones((3, 5)))),
                    "a.bias": ("F32", numpy.zeros(7, dtype="<f4")),
                    "n": ("I64", numpy.array(5, dtype="<i8"))}, {"format": "pt", "step": "7"})

    def test_tensors_totals_and_metadata(self):
        self.checkpoint()
        found = self.weir_json("inspect", self.path("model.safetensors"))
        rows = [(row["name"], row["dtype"], row["shape"], row["bytes"]) for row in found["tensors"]]
        self.assertEqual(rows, [("a.bias", "F32", [7], 28), ("b.weight", "BF16", [3, 5], 30),
                                ("n", "I64", [], 8)])
        self.assertEqual(found["totals"],
                         {"tensors": 3, "elements": 23, "bytes": 66, "files": 1})
        self.assertEqual(found["metadata"], {"format": "pt", "step": "7"})
        self.assertIsNone(found["config"])

    def test_text_lists_the_same(self):
        self.checkpoint()
        text = self.weir("inspect", self.path("model.safetensors")).stdout
        self.assertRegex(text, r"(?m)^b\.weight +BF16 +\[3, 5\] +30 B$")
        self.assertIn("3 tensors, 23 elements, 66 B (66 bytes) in 1 file\n", text)
        self.assertIn("metadata format = pt", text)

    def test_a_directory_adds_what_its_config_says(self):
        self.checkpoint()
        with open(self.path("config.json"), "w", encoding="utf-8") as stream:
            json.dump({"model_type": "llama", "num_hidden_layers": 2,
                       "quantization_config": {**FP8, "weight_block_size": [128, 128]}}, stream)
        config = self.weir_json("inspect", self.folder)["config"]
        self.assertEqual(config, {"model_type": "llama", "family": "llama",
                                  "conversion": "fp8_128x128", "num_hidden_layers": 2})
        self.assertIn("family llama", self.weir("inspect", self.folder).stdout)

    def test_failures_name_the_file(self):
        self.assertIn("missing", self.error("inspect", self.path("missing")))
        self.checkpoint()
        os.truncate(self.path("model.safetensors"), 100)
        self.assertIn("model.safetensors", self.error("inspect", self.path("model.safetensors")))

    def test_what_a_file_says_cannot_steer_the_terminal(self):
        path, name = self.path("model.safetensors"), "a\nb\x1b[31m"
        write_file(path, {name: ("I32", numpy.zeros(1, dtype="<i4"))}, {"k\n": "v\x1b[2J"})
        text = self.weir("inspect", path).stdout
        self.assertRegex(text, r"(?m)^a b \[31m +I32 +\[1\] +4 B$")
        self.assertIn("metadata k  = v [2J\n", text)
        self.assertEqual(self.weir_json("inspect", path)["tensors"][0]["name"], name)
        self.assertIn("a b [31m: dtype I32", self.error(
            "convert", path, "-o", self.path("out"), "--conversion", "bf16_cast"))

    def test_a_very_long_name_does_not_widen_the_other_rows(self):
        path = self.path("model.safetensors")
        write_file(path, {"n" * 5000: ("U8", numpy.zeros(1, dtype="u1")),
                          "short": ("U8", numpy.zeros(2, dtype="u1"))})
        self.assertRegex(self.weir("inspect", path).stdout, r"(?m)^short {1,9}U8 +\[2\] +2 B$")


class Info(CliCase):
    def test_what_there_is_and_why_not(self):
        info = self.weir_json("info")
        self.assertRegex(info["version"], r"^\d+\.\d+")
        self.assertGreaterEqual(info["threads"], 1)
        self.assertEqual([row["name"] for row in info["cpu"]], ["c", "avx2", "avx512"])
        self.assertTrue(info["cpu"][0]["available"])
        devices = {row["name"]: row for row in info["devices"]}
        self.assertTrue(devices["cpu"]["available"])
        if not devices["cuda"]["available"]:
            self.assertRegex(devices["cuda"]["why_not"],
                             "^(no NVIDIA|libweir_cuda.so cannot be loaded: )")
        self.assertEqual(len(info["gpus"]) > 0, devices["cuda"]["available"])
        self.assertIn("file", [row["name"] for row in info["transports"]])
        for group in ("cpu", "devices", "transports"):
            for row in info[group]:
                self.assertEqual(row["available"], row["why_not"] == "", row)

    def test_rungs_can_be_switched_off_and_say_so(self):
        result = self.weir("info", "--json", environment={"WEIR_CPU_DISABLE": "all"})
        info = json.loads(result.stdout)
        for row in info["cpu"][1:]:
            self.assertFalse(row["available"])
            self.assertNotEqual(row["why_not"], "")
        table = {row["name"]: row for row in info["environment"]}
        self.assertEqual(table["WEIR_CPU_DISABLE"]["value"], "all")
        text = self.weir("info", environment={"WEIR_CPU_DISABLE": "all"}).stdout
        self.assertIn("WEIR_CPU_DISABLE (list) = all", text)
        self.assertRegex(text, r"cpu +avx2 +off: ")

    def test_threads_follow_the_environment(self):
        result = self.weir("info", "--json", environment={"WEIR_THREADS": "3"})
        self.assertEqual(json.loads(result.stdout)["threads"], 3)


if __name__ == "__main__":
    unittest.main()
