# SPDX-License-Identifier: Apache-2.0
"""`weir families`, and each family through the command line: a synthetic checkpoint in every
naming, converted for every layout of the engine."""
import os
import re
import unittest

from cli_case import CliCase, read_file

NAMINGS = ("hf", "hf_fused", "stacked")
ENGINE_FP32 = (".A", ".A_log", "e_score_correction_bias", "expert_bias", "indexer.k_norm.weight",
               "indexer.k_norm.bias", "_weight_bias", "mlp.gate.weight", "mixer.gate.weight",
               "block_sparse_moe.gate.weight")


class Families(CliCase):
    def families(self):
        return self.weir_json("families")["families"]

    def test_lists_what_the_readme_lists(self):
        readme = os.path.join(os.environ["WEIR_TEST_SOURCE"], "README.md")
        with open(readme, encoding="utf-8") as stream:
            row = next(line for line in stream if line.startswith("| families |"))
        self.assertEqual([family["name"] for family in self.families()],
                         re.findall("`([a-z0-9_]+)`", row))

    def test_every_family_has_the_presets_that_its_documentation_promises(self):
        for family in self.families():
            self.assertLessEqual({"tiny", "ragged", "demo"}, set(family["presets"]), family["name"])

    def test_every_family_has_a_layout_for_checkpoints(self):
        for family in self.families():
            self.assertEqual(family["wire_layout"], "checkpoint", family["name"])

    def test_engines_can_cut_tiny_and_demo_in_block_fp8(self):
        for family in self.families():
            if family["name"] == "gpt_oss":  # one worker alone would have a bias
                continue
            for preset, replica in (("tiny", "tp=2"), ("demo", "tp=2"), ("demo", "tp=4")):
                with self.subTest(family=family["name"], preset=preset, replica=replica):
                    self.weir("plan", "--family", family["name"], "--preset", preset,
                              "--conversion", "fp8_128x128", "--trainer", "fsdp=2", "--replica",
                              replica)

    def test_every_family_converts_from_every_naming_to_every_layout(self):
        for family in self.families():
            made = {}
            for naming in NAMINGS:
                model = self.path(f"{family['name']}.{naming}")
                self.weir("synth", "--family", family["name"], "--preset", "tiny", "--naming",
                          naming, "-o", model)
                for layout in family["layouts"]:
                    with self.subTest(family=family["name"], naming=naming, layout=layout):
                        self.check(model, family["name"], layout, made)

    def check(self, model, family, layout, made):
        out = self.path("out.safetensors")
        self.weir("convert", model, "-o", out, "--family", family, "--layout", layout,
                  "--conversion", "fp8_128x128")
        tensors, metadata = read_file(out)
        self.assertEqual(metadata["weir.family"], family)
        self.assertEqual(metadata["weir.layout"], layout)
        # The engine's parameters do not show what the trainer called them.
        described = {name: (dtype, tuple(shape)) for name, (dtype, shape, _) in tensors.items()}
        self.assertEqual(described, made.setdefault(layout, described))
        for name, (dtype, shape, _) in tensors.items():
            if dtype == "F32" and not name.endswith(ENGINE_FP32):
                self.assertTrue(name.endswith("_scale_inv"), name)
            if dtype == "F8_E4M3":
                self.assertGreaterEqual(len(shape), 2, name)
                self.assertIn(name + "_scale_inv", tensors)


if __name__ == "__main__":
    unittest.main()
