# SPDX-License-Identifier: Apache-2.0
"""Versions that pass through a window, as real processes: pairs of meshes verified byte for byte,
and what is left when a worker or a trainer rank dies in the midst of one."""
import json
import os
import subprocess
import tempfile
import unittest

from flow_case import WEIR, FlowCase

WAIT_S = 180
WINDOW = "256K"


class Pairs(unittest.TestCase):
    def demo(self, family, trainer, replica, *more, window=WINDOW):
        """Three versions through real processes, all of them verified."""
        with tempfile.TemporaryDirectory(prefix="weir-window-") as folder:
            result = subprocess.run(
                [WEIR, "demo", "--family", family, "--preset", "tiny", "--versions", "3", "--trainer",
                 trainer, "--replica", replica, "--window", window, "--json", *more], text=True,
                capture_output=True, timeout=WAIT_S, env={**os.environ, "TMPDIR": folder},
                check=False)
        self.assertEqual(result.returncode, 0, result.stderr)
        said = json.loads(result.stdout)
        self.assertIs(said["verified"], True)
        self.assertGreater(said["bytes_of_all_workers"], 0)

    def test_shards_of_two_ranks_through_a_small_window_to_two_engines(self):
        self.demo("llama", "fsdp=2", "tp=2,replicas=2")

    def test_borders_between_ranks(self):
        self.demo("llama", "fsdp=3", "tp=2", "--install", "direct")

    def test_experts_here_and_there(self):
        self.demo("qwen3_moe", "fsdp=2,ep=2", "tp=2,ep=2")

    def test_pipelines_whose_ranks_have_no_group_for_some_workers(self):
        self.demo("qwen3", "pp=2", "pp=3")

    def test_one_engine_of_one_worker(self):
        self.demo("qwen3", "fsdp=2", "replicas=2", "--conversion", "bf16_cast")


class Refits(FlowCase):
    family = "llama"
    delivery = "pull"
    event = "sent"
    needs = "--window with --mesh needs --replicas"
    words_of_dead = "dead"

    def rank(self, rank, *more):
        return self.start("publish", "--follow", "--version", "1", "--rank", str(rank), "--mesh",
                          "fsdp=2", "--window", WINDOW, "--replicas", "2", *self.flow, "--timeout",
                          "6", "--delivery", self.delivery, *more)

    def send(self, ranks, version):
        for rank in ranks:
            rank.send(self.checkpoint(version))

    def expect_sent(self, ranks, version):
        for rank in ranks:
            for event in ("published", self.event):
                said = rank.line()
                self.assertEqual((said["event"], said["version"]), (event, version), said)

    def expect_failed_to_send(self, ranks, version, words):
        for rank in ranks:
            self.assertEqual(rank.line()["event"], "published")
            said = self.expect_failed(rank)
            self.assertRegex(said["error"], words)
            self.assertEqual(said["version"], version)

    def test_later_refits_take_nothing_on_the_replica(self):
        ranks = [self.rank(0), self.rank(1)]
        replicas = [self.replica(name, "--follow") for name in ("a", "b")]
        for version in range(1, self.versions + 1):
            self.send(ranks, version)
            self.expect_sent(ranks, version)
            took = [self.expect_installed(replica, version)["counters"] for replica in replicas]
        for counters in took:
            self.assertEqual(set(counters.values()), {0}, counters)

    def test_a_window_without_a_number_of_replicas_is_refused(self):
        publish = self.start("publish", self.checkpoint(1), "--version", "1", "--mesh", "fsdp=2",
                             "--window", WINDOW, "--delivery", self.delivery, *self.flow)
        code, error = publish.wait()
        self.assertEqual(code, 2)
        self.assertIn(self.needs, error)

    def test_a_replica_that_dies_in_the_midst_is_named_and_the_other_keeps_its_version(self):
        ranks = [self.rank(0), self.rank(1)]
        alive = self.replica("alive", "--follow")
        dead = self.replica("dead", "--follow", "--die-at", "transfer+:2")
        self.send(ranks, 1)
        self.expect_sent(ranks, 1)
        for replica in (alive, dead):
            self.expect_installed(replica, 1)
        self.send(ranks, 2)
        self.expect_failed_to_send(ranks, 2, self.words_of_dead)
        self.expect_one_version(alive)
        again = self.replica("again", "--follow")
        self.send(ranks, 3)
        self.expect_sent(ranks, 3)
        for replica in (alive, again):
            self.expect_installed_at_last(replica, 3)
        self.verify("alive", 3)
        self.verify("again", 3)

    def expect_one_version(self, alive):
        self.assertRegex(self.expect_failed(alive)["error"], self.words_of_dead)
        self.verify("alive", 1)

    def expect_installed_at_last(self, replica, version):
        """A replica that is quick asks for the version that has failed once more meanwhile."""
        said = replica.line()
        for _ in range(3):
            if said is not None and said["event"] == "failed":
                self.assertIn("version 2", said["error"])
                said = replica.line()
        self.assertIsNotNone(said, "the replica has ended")
        self.assertEqual((said["event"], said["version"]), ("installed", version), said)

    def test_a_trainer_that_dies_in_the_midst_leaves_replicas_on_their_version(self):
        ranks = [self.rank(0), self.rank(1, "--die-at", "transfer+:2")]
        replicas = [self.replica(name, "--follow") for name in ("a", "b")]
        self.send(ranks, 1)
        self.expect_sent(ranks, 1)
        for replica in replicas:
            self.expect_installed(replica, 1)
        self.send(ranks, 2)
        for replica in replicas:
            self.expect_failed(replica, "trainer rank")
        self.verify("a", 1)
        self.verify("b", 1)


class BroadcastRefits(Refits):
    delivery = "push"
    event = "pushed"
    needs = "pushing needs --replicas"
    words_of_dead = "dead|went away|has left"  # by name, or by its place in a broadcast group

    def expect_one_version(self, alive):
        """It may have had all of the new one when the other died."""
        said = alive.line()
        if said["event"] == "failed":
            self.assertRegex(said["error"], self.words_of_dead)
        self.verify("alive", 1 if said["event"] == "failed" else 2)


if __name__ == "__main__":
    unittest.main()
