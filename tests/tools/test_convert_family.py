# SPDX-License-Identifier: Apache-2.0
"""`weir convert --family`: whole layers to engine parameters, against golden files and against a
small Llama whose fused tensors are computed here."""
import json
import os
import unittest

import numpy

import fp8_recipe
from cli_case import CliCase, bf16_bits, bf16_values, golden, read_file, write_file

HIDDEN, INTER, VOCAB, HEADS, KV_HEADS, HEAD_DIM = 128, 192, 64, 4, 2, 32
CONFIG = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": HIDDEN,
          "intermediate_size": INTER, "vocab_size": VOCAB, "num_hidden_layers": 2,
          "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS, "head_dim": HEAD_DIM,
          "tie_word_embeddings": False, "torch_dtype": "bfloat16"}
FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}


def llama_shapes():
    shapes = {"model.embed_tokens.weight": (VOCAB, HIDDEN), "model.norm.weight": (HIDDEN,),
              "lm_head.weight": (VOCAB, HIDDEN)}
    for layer in range(2):
        prefix = f"model.layers.{layer}."
        shapes.update({prefix + "input_layernorm.weight": (HIDDEN,),
                       prefix + "post_attention_layernorm.weight": (HIDDEN,),
                       prefix + "self_attn.q_proj.weight": (HEADS * HEAD_DIM, HIDDEN),
                       prefix + "self_attn.k_proj.weight": (KV_HEADS * HEAD_DIM, HIDDEN),
                       prefix + "self_attn.v_proj.weight": (KV_HEADS * HEAD_DIM, HIDDEN),
                       prefix + "self_attn.o_proj.weight": (HIDDEN, HEADS * HEAD_DIM),
                       prefix + "mlp.gate_proj.weight": (INTER, HIDDEN),
                       prefix + "mlp.up_proj.weight": (INTER, HIDDEN),
                       prefix + "mlp.down_proj.weight": (HIDDEN, INTER)})
    return shapes


class FamilyCase(CliCase):
    def convert(self, *sources, more=()):
        out = self.path("out.safetensors")
        result = self.weir("convert", *sources, "-o", out, *more)
        return (*read_file(out), result)

    def refuse(self, *sources, more=()):
        line = self.error("convert", *sources, "-o", self.path("out.safetensors"), *more)
        self.assertFalse(os.path.exists(self.path("out.safetensors")))
        return line


class Golden(FamilyCase):
    def check(self, conversion):
        source, wanted = (golden(f"glm_moe_dsa_layer.{kind}.safetensors")
                          for kind in ("trainer", conversion))
        if source is None or wanted is None:
            self.skipTest("SKIPPED: no golden layer here")
        expected, _ = read_file(wanted)
        outputs, metadata, result = self.convert(
            source, more=("--family", "glm_moe_dsa", "--layout", "split_indexer", "--conversion",
                          conversion))
        self.assertEqual(sorted(outputs), sorted(expected))
        for name, (dtype, shape, raw) in expected.items():
            self.assertEqual(outputs[name][:2], (dtype, shape), name)
            self.assertEqual(outputs[name][2].tobytes(), raw.tobytes(), name)
        self.assertEqual((metadata["weir.family"], metadata["weir.layout"]),
                         ("glm_moe_dsa", "split_indexer"))
        tags = json.loads(metadata["weir.tags"])
        self.assertEqual(sorted(tags), sorted(expected))
        self.assertEqual(tags["model.layers.3.mlp.gate.weight"]["compile_target"], "hf_raw")
        self.assertIn("no config.json", result.stderr)
        return tags

    def test_a_block_fp8_layer_equals_the_golden_bytes(self):
        tag = self.check("fp8_128x128")["model.layers.3.mlp.experts.w13_weight"]
        self.assertEqual(tag["compile_target"], "deep_gemm_fp8")
        self.assertEqual(tag["compile_metadata"]["block_size"], [128, 128])

    def test_a_bf16_layer_equals_the_golden_bytes(self):
        self.check("bf16_cast")


class Llama(FamilyCase):
    def setUp(self):
        super().setUp()
        random = numpy.random.default_rng(11)
        os.mkdir(self.path("model"))
        self.bits = {name: bf16_bits(random.standard_normal(shape) * 0.05)
                     for name, shape in llama_shapes().items()}
        self.write({name: ("BF16", bits) for name, bits in self.bits.items()})

    def write(self, tensors, config=None):
        write_file(self.path("model/model.safetensors"), tensors)
        with open(self.path("model/config.json"), "w", encoding="utf-8") as stream:
            json.dump({**CONFIG, **(config or {})}, stream)

    def fused(self, layer, *parts):
        return numpy.concatenate([self.bits[f"model.layers.{layer}.{part}.weight"]
                                  for part in parts])

    def auto(self, *more):
        return self.convert(self.path("model"),
                            more=("--family", "auto", "--conversion", "auto", *more))

    def test_auto_reads_the_config_and_fuses_rows(self):
        outputs, metadata, result = self.auto()
        self.assertEqual(metadata["weir.conversion"], "bf16_cast")
        self.assertEqual(result.stderr, "")
        for layer in range(2):
            qkv = self.fused(layer, "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
            got = outputs[f"model.layers.{layer}.self_attn.qkv_proj.weight"]
            self.assertEqual(got[0], "BF16")
            numpy.testing.assert_array_equal(got[2], qkv)
            numpy.testing.assert_array_equal(
                outputs[f"model.layers.{layer}.mlp.gate_up_proj.weight"][2],
                self.fused(layer, "mlp.gate_proj", "mlp.up_proj"))

    def test_blocks_are_scaled_after_fusing(self):
        self.write({name: ("BF16", bits) for name, bits in self.bits.items()},
                   {"quantization_config": FP8})
        outputs, metadata, _ = self.auto()
        self.assertEqual(metadata["weir.conversion"], "fp8_128x128")
        codes, scale = fp8_recipe.block_128(bf16_values(
            self.fused(1, "mlp.gate_proj", "mlp.up_proj")))
        name = "model.layers.1.mlp.gate_up_proj.weight"
        numpy.testing.assert_array_equal(outputs[name][2], codes)
        numpy.testing.assert_array_equal(outputs[name + "_scale_inv"][2], scale)
        self.assertEqual(outputs["model.embed_tokens.weight"][0], "BF16")

    def test_masters_are_rounded_once_unless_kept(self):
        random = numpy.random.default_rng(5)
        name = "model.layers.0.self_attn.o_proj.weight"
        master = (random.standard_normal((HIDDEN, HEADS * HEAD_DIM)) * 0.05).astype("<f4")
        self.write({**{n: ("BF16", b) for n, b in self.bits.items()}, name: ("F32", master)},
                   {"quantization_config": FP8})
        for more, values in (((), bf16_values(bf16_bits(master))), (("--keep-masters",), master)):
            codes, scale = fp8_recipe.block_128(values)
            outputs, _, _ = self.auto(*more)
            numpy.testing.assert_array_equal(outputs[name][2], codes)
            numpy.testing.assert_array_equal(outputs[name + "_scale_inv"][2], scale)

    def test_a_source_that_nothing_consumes_is_named(self):
        extra = {"model.layers.0.frob.weight": ("BF16", bf16_bits(numpy.ones((2, 2))))}
        self.write({**{n: ("BF16", b) for n, b in self.bits.items()}, **extra})
        more = ("--family", "llama", "--conversion", "bf16_cast")
        self.assertIn("model.layers.0.frob.weight", self.refuse(self.path("model"), more=more))
        outputs, _, _ = self.convert(self.path("model"), more=(*more, "--ignore", "*.frob.*"))
        self.assertIn("model.norm.weight", outputs)

    def test_a_parameter_that_nothing_fills_is_named(self):
        line = self.refuse(self.path("model"), more=("--family", "llama", "--conversion",
                                                     "bf16_cast", "--ignore", "*.1.mlp.up_proj.*"))
        self.assertRegex(line, r"model\.layers\.1\.mlp\.(up_proj|gate_up_proj)")

    def test_a_wrong_shape_is_named(self):
        name = "model.layers.1.self_attn.k_proj.weight"
        self.write({**{n: ("BF16", b) for n, b in self.bits.items()},
                    name: ("BF16", bf16_bits(numpy.ones((32, HIDDEN))))})
        self.assertIn("k_proj", self.refuse(self.path("model"), more=(
            "--family", "auto", "--conversion", "bf16_cast")))

    def test_a_nonfinite_weight_is_named_by_its_source(self):
        name = "model.layers.1.self_attn.k_proj.weight"
        self.bits[name] = self.bits[name].copy()
        self.bits[name][5, 9] = 0x7F80
        self.write({n: ("BF16", b) for n, b in self.bits.items()}, {"quantization_config": FP8})
        line = self.refuse(self.path("model"), more=("--family", "auto", "--conversion", "auto"))
        self.assertIn(name, line)
        self.assertIn("[5, 9]", line)

    def test_auto_without_a_config_says_what_is_missing(self):
        os.remove(self.path("model/config.json"))
        for more in (("--family", "auto", "--conversion", "bf16_cast"),
                     ("--family", "llama", "--conversion", "auto")):
            self.assertIn("name one with --config", self.refuse(self.path("model"), more=more))

    def test_a_config_elsewhere_is_found_and_a_missing_one_named(self):
        os.rename(self.path("model/config.json"), self.path("engine.json"))
        outputs, _, result = self.auto("--config", self.path("engine.json"))
        self.assertEqual(result.stderr, "")
        self.assertEqual(len(outputs), 3 + 2 * 6)
        os.remove(self.path("out.safetensors"))
        self.assertIn("missing.json", self.refuse(self.path("model"), more=(
            "--family", "auto", "--conversion", "auto", "--config", self.path("missing.json"))))

    def test_an_unknown_layout_is_named(self):
        self.assertIn("'frob'", self.refuse(self.path("model"), more=(
            "--family", "llama", "--conversion", "auto", "--layout", "frob")))


if __name__ == "__main__":
    unittest.main()
