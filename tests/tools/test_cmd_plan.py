# SPDX-License-Identifier: Apache-2.0
"""`weir plan`: its figures add up, from a file and from a preset, and wrong words are refused."""
import unittest

from cli_case import CliCase

PRESET = ("--family", "qwen3_moe", "--preset", "tiny")


class Plan(CliCase):
    def plan(self, *arguments):
        return self.weir_json("plan", *arguments)

    def test_what_ranks_send_is_what_workers_get(self):
        for trainer, replica in (("", ""), ("fsdp=3,ep=2", "tp=2,replicas=3"),
                                 ("tp=2,pp=2,hsdp=2", "dp=2,ep=2,pp=2")):
            plan = self.plan(*PRESET, "--trainer", trainer, "--replica", replica)
            self.assertEqual(sum(plan["rank_bytes_sent"]), plan["bytes"])
            self.assertEqual(sum(plan["worker_bytes"]), plan["bytes"])
            self.assertEqual(len(plan["rank_bytes_sent"]), plan["ranks"])
            self.assertEqual(len(plan["worker_bytes"]), plan["workers"])
            self.assertGreater(plan["copies"], 0)

    def test_a_config_file_plans_as_its_preset(self):
        self.weir("synth", *PRESET, "-o", "model")
        meshes = ("--trainer", "fsdp=2", "--replica", "tp=2", "--naming", "stacked")
        ours, theirs = self.plan("--config", "model", *meshes), self.plan(*PRESET, *meshes)
        del ours["plan_seconds"], theirs["plan_seconds"]
        self.assertEqual(ours, theirs)

    def test_blocks_over_several_ranks_are_borders(self):
        plan = self.plan(*PRESET, "--trainer", "fsdp=3", "--replica", "", "--conversion",
                         "fp8_128x128")
        self.assertGreater(plan["border_pieces"], 0)
        self.assertEqual(sum(plan["rank_bytes_to_ranks"]), plan["border_bytes"])

    def test_the_summary_is_for_people(self):
        text = self.weir("plan", *PRESET, "--trainer", "fsdp=2", "--replica", "tp=2").stdout
        for word in ("copies", "borders", "rank sends", "worker gets", "made in"):
            self.assertIn(word, text)

    def test_what_cannot_be_is_refused_with_the_reason(self):
        meshes = ("--trainer", "fsdp=2", "--replica", "tp=2")
        for arguments, code, reason in (
                ((*PRESET, "--trainer", "fsdp=x", "--replica", ""), 2, "'fsdp=x'"),
                ((*PRESET, "--trainer", "", "--replica", "tp=2,ep=3"), 2, "'ep=3'"),
                ((*PRESET, "--trainer", ""), 2, "--replica MESH is missing"),
                (("--config", "x", *PRESET, *meshes), 2, "not both"),
                ((*PRESET, *meshes, "--naming", "x"), 2, "--naming takes"),
                ((*PRESET, *meshes, "--conversion", "fp8_128x128"), 1, "width of 48 per worker"),
                ((*PRESET, "--trainer", "", "--replica", "tp=5"), 1, "do not divide over 5"),
                (("--config", "nowhere", *meshes), 1, "nowhere")):
            self.assertIn(reason, self.weir("plan", *arguments, code=code).stderr)


if __name__ == "__main__":
    unittest.main()
