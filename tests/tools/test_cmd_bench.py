# SPDX-License-Identifier: Apache-2.0
"""`weir bench copy` and `weir bench refit`: what they print, and what they refuse."""
import json
import signal
import subprocess
import unittest

from cli_case import CliCase, WEIR


class BenchCopy(CliCase):
    def test_every_way_is_listed_with_a_figure_or_a_reason(self):
        said = self.weir_json("bench", "copy", "--bytes", "4M")
        self.assertEqual(said["bytes"], 4 << 20)
        rows = {(row["transport"], row["over"]): row for row in said["results"]}
        names = [row["transport"] for row in said["results"]]
        self.assertEqual(names, ["memcpy", "ucx", "ucx", "file", "device", "peer", "to host",
                                 "from host", "nccl"])
        for row in said["results"]:
            self.assertIs(row["failed"], False, row)
            self.assertEqual(row["available"], row["why_not"] == "", row)
            self.assertEqual(row["gb_per_s"] is not None and row["gb_per_s"] > 0,
                             row["available"], row)
        for key in (("memcpy", "1 thread"), ("ucx", "shm"), ("file", "page cache")):
            self.assertTrue(rows[key]["available"], rows[key])
        self.assertGreater(rows[("ucx", "shm")]["fraction_of_limit"], 0)
        self.assertGreater(said["limit_gb_per_s"], 0)

    def test_one_way_alone_and_a_table(self):
        said = self.weir_json("bench", "copy", "--transport", "file", "--bytes", "1M")
        self.assertEqual([row["transport"] for row in said["results"]], ["file"])
        text = self.weir("bench", "copy", "--transport", "memcpy", "--bytes", "1M").stdout
        self.assertIn("1048576 bytes a copy", text)
        self.assertIn("bytes read and written", text)

    def test_what_was_asked_for_and_is_not_there_is_an_error(self):
        if self.weir_json("info")["gpus"]:
            self.skipTest("there is a GPU")
        self.assertIn("peer: ", self.error("bench", "copy", "--transport", "peer"))

    def test_wrong_command_lines_are_exit_code_2(self):
        for arguments in (("--transport", "pigeon"), ("--bytes", "0"), ("--bytes", "5T"),
                          ("--gpus", "0,"), ("--gpus", "a"), ("surplus",)):
            self.error("bench", "copy", *arguments, code=2)


REFIT = ["bench", "refit", "--gpus", "cpu:cpu", "--preset", "tiny"]


class BenchRefit(CliCase):
    def test_both_modes_stand_side_by_side(self):
        said = self.weir_json(*REFIT, "--family", "qwen3", "--versions", "2", "--mode", "both",
                              "--install", "staged")
        for mode in ("checkpoint", "kernel"):
            self.assertEqual((said[mode]["mode"], said[mode]["verified"]), (mode, True))
            side = said["side_by_side"][mode]
            self.assertEqual(side["bytes_per_replica"], said[mode]["bytes_per_replica"])
            for key in ("refit_seconds", "trainer_memory_bytes", "replica_memory_bytes"):
                self.assertGreater(side[key], 0, key)
        self.assertLess(said["side_by_side"]["bytes_of_kernel_per_checkpoint"], 0.75)
        text = self.weir(*REFIT, "--family", "qwen3", "--versions", "1", "--mode", "both").stdout
        self.assertIn("what the flag buys", text)
        self.assertIn("kernel mode moves ", text)

    def test_json_has_every_version_its_split_and_the_limit(self):
        said = self.weir_json(*REFIT[:2], "--gpus", "cpu:cpu,cpu", "--preset", "tiny",
                              "--versions", "3", "--delivery", "pull")
        self.assertEqual((said["versions"], len(said["refits"]), said["verified"]), (3, 3, True))
        self.assertEqual([worker["name"] for worker in said["workers"]],
                         ["trainer", "replica-0", "replica-1"])
        self.assertEqual(said["entries_compared"], 2 * 53)
        for refit in said["refits"]:
            self.assertAlmostEqual(refit["refit_seconds"],
                                   refit["publish_seconds"] + refit["wait_seconds"], places=6)
            self.assertGreater(refit["stop_seconds"]["transfer"], 0)
        self.assertGreater(said["median"]["refit_seconds"], 0)
        self.assertGreater(said["limit"]["gb_per_s"], 0)
        self.assertAlmostEqual(said["limit"]["fraction"],
                               said["median"]["gb_per_s"] / said["limit"]["gb_per_s"], places=6)

    def test_the_second_refit_makes_nothing_anew(self):
        """With one replica: of two, one may read from the other, which has more to plan."""
        said = self.weir_json(*REFIT, "--versions", "3", "--delivery", "pull")
        for refit in said["refits"][1:]:
            for counters in (refit["trainer_counters"], refit["replica_counters"]):
                self.assertEqual(set(counters.values()), {0}, counters)

    def test_all_conversions_namings_and_installs_are_verified(self):
        for arguments in (["--install", "staged", "--naming", "stacked"],
                          ["--conversion", "cutlass_fp8_e4m3_per_channel", "--naming", "hf_fused"],
                          ["--family", "qwen3_moe", "--conversion", "bf16_cast"],
                          ["--layout", "split_indexer", "--check", "9"]):
            said = self.weir_json(*REFIT, "--versions", "2", *arguments)
            self.assertIs(said["verified"], True, arguments)
            self.assertEqual(said["entries_compared"] == 9, "--check" in arguments)

    def test_many_rounds_leave_no_byte_behind(self):
        for install in ("direct", "staged"):
            said = self.weir_json(*REFIT[:2], "--gpus", "cpu:cpu,cpu", "--preset", "tiny",
                                  "--install", install, "--delivery", "push", "--rounds", "200")
            self.assertEqual((said["versions"], said["refits"]), (200, []))
            self.assertEqual(said["growth_bytes"], 0, said["workers"])

    def test_a_table_for_people(self):
        text = self.weir(*REFIT, "--versions", "4", "--check", "none").stdout
        for words in ("publish", "transfer", "median of versions 2 to 4", "limit: ",
                      "last version: allocations 0 + 0", "verified: no"):
            self.assertIn(words, text)

    def test_other_bytes_than_expected_are_found(self):
        """The roles by hand: the replica expects the weights of another seed."""
        self.weir("synth", "--family", "glm_moe_dsa", "--preset", "tiny", "-o", "model")
        processes = []

        def start(*arguments):
            process = subprocess.Popen([WEIR, *arguments], text=True, cwd=self.folder,
                                       stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            processes.append(process)
            self.addCleanup(process.wait)
            self.addCleanup(process.kill)
            return process

        directory = start("serve", "--listen", "127.0.0.1:0", "--json")
        address = json.loads(directory.stdout.readline())["address"]
        common = ["--directory", address, "--config", "model/config.json", "--versions", "1"]
        trainer = start("bench", "refit", "--role", "trainer", "--gpus", "cpu:cpu", *common)
        replica = start("bench", "refit", "--role", "replica", "--gpus", "cpu", "--name", "r",
                        "--seed", "2", *common)
        trainer.stdin.write("begin\npublish 1\n")
        trainer.stdin.flush()
        replica.stdin.write("check\n")
        replica.stdin.close()
        events = [json.loads(line) for line in replica.stdout]
        self.assertEqual([event["event"] for event in events], ["ready", "installed", "checked"])
        self.assertGreater(events[2]["different"], 53)
        self.assertIn("differs", events[2]["first_difference"])
        for process in processes:
            for stream in (process.stdin, process.stdout):
                stream.close()

    def test_a_worker_that_dies_is_named(self):
        process = subprocess.Popen([WEIR, *REFIT, "--rounds", "100000", "--timeout", "3"],
                                   text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self.addCleanup(process.communicate)
        self.addCleanup(process.kill)
        while not process.stdout.readline().startswith("100 "):
            self.assertIsNone(process.poll(), "it has ended")
        found = subprocess.run(["pgrep", "-P", str(process.pid), "-f", "role replica"],
                               text=True, capture_output=True, check=True)
        subprocess.run(["kill", "-9", found.stdout.strip()], check=True)
        _, errors = process.communicate(timeout=110)
        self.assertEqual(process.returncode, 1)
        self.assertIn("replica-0", errors)

    def test_a_signal_ends_it(self):
        process = subprocess.Popen([WEIR, *REFIT, "--rounds", "100000"], text=True,
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self.addCleanup(process.kill)
        while not process.stdout.readline().startswith("100 "):
            self.assertIsNone(process.poll(), "it has ended")
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)
        self.assertEqual(process.returncode, 1)

    def test_wrong_command_lines_are_exit_code_2(self):
        for arguments in ((), ("--gpus", "0"), ("--gpus", "0:"), ("--gpus", "0,1"),
                          ("--gpus", "cpu:cpu,"), ("--gpus", "0:1", "--install", "maybe"),
                          ("--gpus", "0:1", "--delivery", "drop"), ("--gpus", "0:1", "x"),
                          ("--gpus", "0:1", "--versions", "0"),
                          ("--gpus", "0:1", "--role", "trainer"),
                          ("--gpus", "0:" + ",".join("1" * 17))):
            self.error("bench", "refit", *arguments, code=2)
        self.assertIn("glm-dsa-31b", self.error(*REFIT[:4], "--preset", "none"))


if __name__ == "__main__":
    unittest.main()
