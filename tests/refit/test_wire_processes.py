# SPDX-License-Identifier: Apache-2.0
"""Checkpoints on the wire between real processes: trainers that shard, stack and send through
windows, engines that cut; a trainer that dies in the midst; sides that mean different things."""
import json
import os
import signal
import subprocess
import tempfile
import unittest

from flow_case import WEIR, FlowCase

WAIT_S = 180


class Pairs(unittest.TestCase):
    def demo(self, family, *more, mode="checkpoint"):
        """Two versions through real processes, every parameter verified; what the demo says."""
        with tempfile.TemporaryDirectory(prefix="weir-wire-") as folder:
            result = subprocess.run(
                [WEIR, "demo", "--family", family, "--preset", "tiny", "--versions", "2", "--mode",
                 mode, "--json", *more], text=True, capture_output=True, timeout=WAIT_S,
                env={**os.environ, "TMPDIR": folder}, check=False)
        self.assertEqual(result.returncode, 0, result.stderr)
        said = json.loads(result.stdout)
        self.assertIs(said["verified"], True)
        self.assertEqual(said["mode"], mode)
        self.assertGreater(said["parameters_compared"], 0)
        return said

    def test_sharded_stacked_experts_with_latent_attention_to_tensor_parallel_engines(self):
        self.demo("glm_moe_dsa", "--trainer", "fsdp=2,ep=2", "--replica", "tp=2", "--naming",
                  "stacked")

    def test_fused_experts_cut_crosswise_to_expert_parallel_engines(self):
        self.demo("qwen3_moe", "--trainer", "tp=2,ep=2", "--replica", "tp=2,ep=2", "--naming",
                  "hf_fused", "--install", "direct")

    def test_uneven_shards_of_a_dense_model(self):
        self.demo("llama", "--trainer", "fsdp=3", "--replica", "tp=2")

    def test_what_engines_compute_as_they_load_is_computed_once(self):
        self.demo("nemotron_h", "--trainer", "fsdp=2", "--replica", "tp=2")

    def test_groups_through_a_window_to_workers_that_read_each_for_itself(self):
        self.demo("qwen3_moe", "--trainer", "fsdp=2,ep=2", "--replica", "tp=2", "--window", "1M")

    def test_ranks_of_which_a_worker_needs_nothing_do_not_wait_for_it(self):
        self.demo("qwen3", "--trainer", "pp=2,fsdp=2", "--replica", "pp=2", "--window", "1M")

    def test_kernel_mode_moves_about_half_the_bytes(self):
        checkpoint = self.demo("qwen3", "--conversion", "fp8_128x128")
        kernel = self.demo("qwen3", "--conversion", "fp8_128x128", mode="kernel")
        self.assertLess(kernel["bytes_per_version"], 0.75 * checkpoint["bytes_per_version"])
        for said in (checkpoint, kernel):
            self.assertGreater(said["trainer_memory_bytes"], 0)
            self.assertGreater(said["worker_memory_bytes"], 0)


class Failures(FlowCase):
    family = "qwen3_moe"

    def test_a_trainer_that_dies_while_it_is_read_leaves_the_old_version(self):
        trainers = self.trainers("--wire", "checkpoint")
        replica = self.replica("r", "--wire", "checkpoint", "--follow", "--timeout", "3",
                               "--stall-at", "transfer+:2")
        self.publish(trainers, 1)
        self.expect_installed(replica, 1)
        self.publish(trainers, 2)
        self.until(lambda: self.is_stopped(replica))
        trainers[0].signal(signal.SIGKILL)
        trainers[0].process.wait(10)
        replica.signal(signal.SIGCONT)
        said = replica.line()
        if said["event"] == "failed":
            self.assertIn("trainer rank 0", said["error"])
            self.verify("r", 1)
        else:  # all of its bytes had come
            self.verify("r", 2)

    def is_stopped(self, replica):
        with open(f"/proc/{replica.process.pid}/stat", encoding="ascii") as stat:
            return stat.read().rsplit(")", 1)[1].split()[0] == "T"

    def test_modes_that_differ_are_refused_by_name(self):
        trainers = self.trainers("--wire", "checkpoint")
        replica = self.replica("r", "--follow")
        self.publish(trainers, 1)
        self.expect_failed(replica, "sends a checkpoint", "wants kernel bytes",
                           "set quantize_in_weight_transfer alike")

    def test_an_unknown_wire_is_a_usage_error(self):
        replica = self.replica("r", "--wire", "bf16")
        code, line = replica.wait()
        self.assertEqual(code, 2)
        self.assertIn("--wire takes kernel or checkpoint, got 'bf16'", line)


if __name__ == "__main__":
    unittest.main()
