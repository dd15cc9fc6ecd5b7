# SPDX-License-Identifier: Apache-2.0
"""Sharded trainers and parallel engines as real processes: every worker of every engine verified
byte for byte, for pairs of meshes that cut alike, crosswise, unevenly, and not at all."""
import json
import os
import subprocess
import tempfile
import unittest

WEIR = os.path.abspath(os.path.join(os.environ.get("WEIR_TEST_BIN", "build/bin"), "weir"))
WAIT_S = 180


class Pairs(unittest.TestCase):
    def demo(self, family, trainer, replica, *more, workers, ranks):
        """Two versions through real processes; what the demo says of them."""
        with tempfile.TemporaryDirectory(prefix="weir-mesh-") as folder:
            result = subprocess.run(
                [WEIR, "demo", "--family", family, "--preset", "tiny", "--versions", "3", "--trainer",
                 trainer, "--replica", replica, "--json", *more], text=True, capture_output=True,
                timeout=WAIT_S, env={**os.environ, "TMPDIR": folder}, check=False)
        self.assertEqual(result.returncode, 0, result.stderr)
        said = json.loads(result.stdout)
        self.assertIs(said["verified"], True)
        self.assertEqual((said["trainer_ranks"], said["workers"]), (ranks, workers))
        self.assertGreater(said["parameters_compared"], 0)
        self.assertGreater(said["bytes_of_all_workers"], 0)
        return said

    def test_fsdp_and_expert_parallel_to_two_tensor_parallel_engines(self):
        said = self.demo("qwen3_moe", "fsdp=2,ep=2", "tp=2,replicas=2", ranks=4, workers=4)
        self.assertEqual(said["replicas"], 2)

    def test_the_same_with_stacked_experts_and_latent_attention(self):
        self.demo("glm_moe_dsa", "fsdp=2,ep=2", "tp=2,replicas=2", "--naming", "stacked", ranks=4,
                  workers=4)

    def test_uneven_chunks_cut_through_blocks_of_scales(self):
        self.demo("llama", "fsdp=3", "tp=2", ranks=3, workers=2)

    def test_tensor_parallel_on_both_sides_crosswise(self):
        self.demo("qwen3", "tp=4", "tp=2,replicas=2", "--conversion",
                  "cutlass_fp8_e4m3_per_channel", ranks=4, workers=4)

    def test_more_tensor_parallel_workers_than_heads_of_keys(self):
        self.demo("llama", "fsdp=2", "tp=4", "--conversion", "bf16_cast", ranks=2, workers=4)

    def test_sources_that_are_fused_already_are_cut_part_by_part(self):
        self.demo("qwen3_5", "tp=2,fsdp=2", "tp=2", ranks=4, workers=2)

    def test_gate_and_up_of_stacked_experts_are_cut_part_by_part(self):
        self.demo("qwen3_moe", "tp=2,ep=2", "tp=2,ep=2", "--naming", "hf_fused", ranks=4, workers=2)

    def test_columns_of_gate_and_up_that_alternate_are_cut_as_one(self):
        self.demo("gpt_oss", "tp=2,fsdp=2", "tp=1", ranks=4, workers=1)

    def test_pipelines_of_different_depth(self):
        self.demo("qwen3", "pp=2,fsdp=2", "pp=3", ranks=4, workers=3)

    def test_one_group_of_a_replicated_trainer_sends(self):
        self.demo("llama", "hsdp=2,fsdp=2", "tp=1,replicas=2", ranks=4, workers=2)

    def test_expert_parallel_engines_with_experts_anywhere_and_twice(self):
        self.demo("qwen3_moe", "ep=2,fsdp=2", "tp=2,ep=2", "--owners",
                  "[1,0,1,0,0,1,1,0]", "--experts", "[[3,1,0,7,5],[2,0,1,4,6]]", ranks=4, workers=2)

    def test_data_parallel_attention_with_expert_parallel_experts(self):
        self.demo("deepseek_v3", "fsdp=2,tp=2", "dp=2,tp=2,ep=4", ranks=4, workers=4)

    def test_bytes_land_in_place_when_installed_direct(self):
        self.demo("qwen3_moe", "tp=2,ep=2", "tp=2", "--install", "direct", ranks=4, workers=2)

    def test_shards_of_several_workers_are_sealed_in_one_file(self):
        self.demo("qwen3_moe", "fsdp=2,ep=2", "tp=2,ep=2", "--transport", "file", ranks=4, workers=2)

    def test_a_rank_that_has_no_experts_plans_by_the_naming_of_the_others(self):
        self.demo("qwen3_moe", "fsdp=5", "tp=2", "--naming", "hf_fused", "--conversion", "bf16_cast",
                  ranks=5, workers=2)

    def test_one_trainer_feeds_a_parallel_engine(self):
        self.demo("gemma2", "fsdp=1", "tp=2", "--conversion", "bf16_cast", ranks=1, workers=2)

    def test_a_sharded_trainer_feeds_engines_of_one_worker(self):
        self.demo("mixtral", "fsdp=2,ep=2,tp=2", "replicas=1", ranks=8, workers=1)


if __name__ == "__main__":
    unittest.main()
