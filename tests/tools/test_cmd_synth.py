# SPDX-License-Identifier: Apache-2.0
"""`weir synth`: what it writes, that it writes the same again, and that it leaves nothing behind."""
import json
import os
import resource
import signal
import unittest

import numpy

from cli_case import CliCase, bf16_values, read_file

FAMILIES = ("afmoe", "bert", "deepseek_v3", "gemma2", "gemma3_text", "glm4_moe", "glm_moe_dsa",
            "gpt_oss", "laguna", "llama", "minimax_m2", "mistral", "mixtral", "qwen2", "qwen3",
            "qwen3_5", "qwen3_5_moe", "qwen3_moe")


def limit_file_size():
    """A file that grows beyond this fails like one on a full disk."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))


class Synth(CliCase):
    def synth(self, name, *more, family="glm_moe_dsa"):
        self.weir("synth", "--family", family, "--preset", "tiny", "-o", name, *more)
        return read_file(self.path(f"{name}/model.safetensors"))[0]

    def values(self, tensor):
        dtype, _, raw = tensor
        return bf16_values(raw) if dtype == "BF16" else raw

    def assert_same(self, first, second):
        self.assertEqual(sorted(first), sorted(second))
        for name, (dtype, shape, raw) in first.items():
            self.assertEqual(second[name][:2], (dtype, shape))
            self.assertEqual(second[name][2].tobytes(), raw.tobytes(), name)

    def test_every_family_and_naming_converts(self):
        for family in FAMILIES:
            for naming in ("hf", "hf_fused", "stacked"):
                name = f"{family}-{naming}"
                self.synth(name, "--naming", naming, family=family)
                with open(self.path(f"{name}/config.json"), encoding="utf-8") as stream:
                    self.assertIn(json.load(stream)["model_type"], (family, f"{family}_text"))
                self.weir("convert", name, "-o", "out.safetensors", "--family", family,
                          "--conversion", "fp8_128x128")

    def test_the_same_options_give_the_same_bytes(self):
        first = self.synth("a", "--seed", "7")
        self.assert_same(first, self.synth("b", "--seed", "7"))
        other = self.synth("c", "--seed", "8")
        name = "model.layers.1.self_attn.o_proj.weight"
        self.assertNotEqual(first[name][2].tobytes(), other[name][2].tobytes())

    def test_fewer_layers_are_the_first_of_the_same_shapes(self):
        whole, less = self.synth("a"), self.synth("b", "--layers", "2")
        self.assertEqual(sorted(less), sorted(name for name in whole if ".layers.2." not in name))
        for name, (dtype, shape, _) in less.items():
            self.assertEqual(whole[name][:2], (dtype, shape))
        with open(self.path("b/config.json"), encoding="utf-8") as stream:
            self.assertEqual(json.load(stream)["num_hidden_layers"], 2)
        self.assertIn("--layers 4: preset tiny has 3",
                      self.error("synth", "--family", "glm_moe_dsa", "--preset", "tiny", "-o", "c",
                                 "--layers", "4"))

    def test_values_are_plausible(self):
        tensors = self.synth("a")
        for name, tensor in tensors.items():
            values = self.values(tensor).astype(numpy.float64)
            self.assertTrue(numpy.isfinite(values).all(), name)
            if values.size < 1000:
                continue
            spread = 0.02 if "embed" in name else tensor[1][-1] ** -0.5
            self.assertLess(abs(values.mean()), spread / 5, name)
            self.assertAlmostEqual(values.std() / spread, 1, delta=0.1, msg=name)
        self.assertAlmostEqual(self.values(tensors["model.norm.weight"]).mean(), 1, delta=0.05)
        outliers = self.values(tensors["lm_head.weight"])
        self.assertGreater(abs(outliers).max() * 256 ** 0.5, 10)

    def test_a_step_moves_every_weight_a_little(self):
        name = "model.layers.1.self_attn.q_b_proj.weight"
        steps = [self.values(self.synth(f"s{n}", "--step", str(n), "--dtype", "f32")[name])
                 for n in (0, 1, 2, 10)]
        spread = steps[0].std()
        moved = [abs(later - steps[0]).mean() / spread for later in steps[1:]]
        self.assertTrue(0 < moved[0] < moved[1] < moved[2] < 0.02, moved)
        self.assertLess(abs(steps[2] - steps[1]).mean() / spread, 0.003)

    def test_from_a_checkpoint_moves_its_weights_in_proportion_and_nothing_else(self):
        base = self.synth("base", family="bert")
        self.weir("synth", "--from", "base", "-o", "same")
        self.assert_same(base, read_file(self.path("same/model.safetensors"))[0])
        self.weir("synth", "--from", "base", "--step", "5", "-o", "moved")
        moved = read_file(self.path("moved/model.safetensors"))[0]
        self.assertEqual(sorted(base), sorted(moved))
        name = "encoder.layer.0.intermediate.dense.weight"
        before, after = self.values(base[name]), self.values(moved[name])
        relative = numpy.sqrt(((after - before) ** 2).mean() / (before ** 2).mean())
        self.assertTrue(0.001 < relative < 0.02, relative)
        with open(self.path("base/config.json"), encoding="utf-8") as one, \
                open(self.path("moved/config.json"), encoding="utf-8") as two:
            self.assertEqual(json.load(one), json.load(two))
        self.assertIn("nowhere", self.error("synth", "--from", "nowhere", "-o", "x"))
        self.assertFalse(os.path.exists(self.path("x")))

    def test_masters_round_to_the_bf16_checkpoint(self):
        masters, weights = self.synth("m", "--dtype", "f32"), self.synth("w")
        name = "model.layers.2.mlp.experts.3.up_proj.weight"
        self.assertEqual(masters[name][0], "F32")
        rounded = masters[name][2].view("<u4").astype(numpy.uint64)
        rounded = ((rounded + 0x7FFF + ((rounded >> 16) & 1)) >> 16).astype("<u2")
        self.assertEqual(rounded.tobytes(), weights[name][2].tobytes())

    def test_what_is_there_is_kept_unless_forced(self):
        first = self.synth("a")
        line = self.error("synth", "--family", "bert", "--preset", "tiny", "-o", "a")
        self.assertIn("a/config.json is there already; --force replaces it", line)
        self.assert_same(first, read_file(self.path("a/model.safetensors"))[0])
        forced = self.synth("a", "--force", family="bert")
        self.assertIn("pooler.dense.weight", forced)
        self.assertEqual(sorted(os.listdir(self.path("a"))), ["config.json", "model.safetensors"])

    def test_a_large_checkpoint_is_cut_into_files(self):
        whole = self.synth("whole")
        self.weir("synth", "--family", "glm_moe_dsa", "--preset", "tiny", "-o", "a",
                  "--shard-bytes", "1000000")
        with open(self.path("a/model.safetensors.index.json"), encoding="utf-8") as stream:
            index = json.load(stream)
        files = sorted(set(index["weight_map"].values()))
        self.assertEqual(files[0], f"model-00001-of-{len(files):05}.safetensors")
        self.assertGreater(len(files), 5)
        together = {}
        for name in files:
            together.update(read_file(self.path(f"a/{name}"))[0])
        self.assert_same(whole, together)
        self.assertEqual(sorted(index["weight_map"]), sorted(whole))
        self.assertEqual(index["metadata"]["total_size"],
                         sum(t[2].nbytes for t in whole.values()))
        self.weir("convert", "a", "-o", "out.safetensors", "--family", "glm_moe_dsa",
                  "--conversion", "bf16_cast")
        self.assert_same(whole, self.synth("a", "--force"))
        self.assertFalse(os.path.exists(self.path("a/model.safetensors.index.json")))

    def test_json_says_what_was_written(self):
        report = self.weir_json("synth", "--family", "bert", "--preset", "tiny", "-o", "a")
        tensors = read_file(self.path("a/model.safetensors"))[0]
        self.assertEqual(report["tensors"], len(tensors))
        self.assertEqual(report["bytes"], sum(t[2].nbytes for t in tensors.values()))

    def test_a_failure_leaves_nothing_behind(self):
        with open(self.path("file"), "w", encoding="utf-8"):
            pass
        self.assertIn("file/", self.error("synth", "--family", "bert", "--preset", "tiny", "-o",
                                          "file/a"))
        self.assertIn("unknown family 'gpt'", self.error("synth", "--family", "gpt", "--preset",
                                                         "tiny", "-o", "a"))
        self.assertIn("no preset 'big'", self.error("synth", "--family", "bert", "--preset", "big",
                                                    "-o", "a"))
        line = self.error("synth", "--family", "bert", "--preset", "tiny", "-o", "a",
                          preexec_fn=limit_file_size)
        self.assertIn("model.safetensors", line)
        self.assertEqual(os.listdir(self.folder), ["file"])

    def test_wrong_command_lines_are_usage_errors(self):
        good = ["synth", "--family", "bert", "--preset", "tiny", "-o", "a"]
        for arguments, text in ((good[:5], "-o DIR is missing"), (good[:3], "--preset NAME is"),
                                (["synth"], "--family NAME is missing"),
                                (good + ["b"], "unexpected argument 'b'"),
                                (good + ["--naming", "x"], "--naming takes hf, hf_fused or stack"),
                                (good + ["--dtype", "x"], "--dtype takes bf16 or f32"),
                                (good + ["--seed", "-1"], "--seed takes a whole number")):
            self.assertIn(text, self.error(*arguments, code=2))
        self.assertFalse(os.path.exists(self.path("a")))


if __name__ == "__main__":
    unittest.main()
