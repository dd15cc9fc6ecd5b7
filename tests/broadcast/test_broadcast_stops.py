# SPDX-License-Identifier: Apache-2.0
"""Whole runs of which a server or a trainer rank is killed, at each of its stops: the step ends
within its bound with an error that names it, and the rest serve the old version."""
import signal
import unittest

from broadcast_case import read_until
from drill_case import TIMEOUT_S, DrillCase

SERVER_STOPS = ("discover", "transfer", "transfer+", "install", "postprocess", "ack")
DIRECT_STOPS = ("transfer+", "install", "postprocess", "ack")
TRAINER_STOPS = ("source", "stage", "slot", "publish")  # behind them the version can be had


class AServerIsKilled(DrillCase):
    def test_at_each_stop_the_other_serves_the_old_version(self):
        self.timeout = 5  # which one that dies before the round begins costs the other
        for stop in SERVER_STOPS:
            with self.subTest(stop):
                self.setUp()
                self.run_first(server_1=("--die-at", f"{stop}:2"))
                self.send(self.ranks, 2)
                self.expect_failed_within(
                    2 * self.timeout, "version 2 is not installed, the run is on version 1",
                    self.two[1].url, "it went away")
                self.expect_holds(self.two[0], 1)
                self.verify_servers(self.two[:1], 1)
                self.doCleanups()

    def test_its_workers_are_named_and_those_that_went_back_are_named_apart(self):
        self.timeout = 4
        self.run_first(server_1=("--die-at", "install:2"), ranks=("--delivery", "pull"))
        self.verify_servers(self.two, 1)  # which are nobody that a trainer waits for
        self.send(self.ranks, 2)
        said = read_until(self.ranks[0], "failed")
        missing = said["missing"]
        self.assertNotIn("verify-", said["error"])
        culprits, back = missing.split("; went back: ")
        self.assertIn("rank 3 (server 1, dp 0, tp 0)", culprits)
        self.assertIn("rank 4 (server 1, dp 0, tp 1)", culprits)
        self.assertNotIn("server 0", culprits)
        self.assertEqual(back, "inference rank 1 (server 0, dp 0, tp 0), "
                               "rank 2 (server 0, dp 0, tp 1)")

    def test_dropped_it_is_taken_up_again_once_it_is_back(self):
        self.timeout = 10
        self.run_first("--steps", "3", server_1=("--die-at", "transfer:2"), policy="drop")
        self.send(self.ranks, 2)
        said = self.expect_served(self.orchestrator, 2)
        self.assertEqual((said["updated"], said["dropped"]), (1, 1))
        address = self.two[1].url[len("http://"):]
        again = self.replica_server(1, http=address)
        self.send(self.ranks, 3)
        said = self.expect_served(self.orchestrator, 3)
        self.assertEqual((said["updated"], said["dropped"]), (2, 0))
        self.verify_servers([self.two[0], again], 3)

class ADirectServerIsKilled(DrillCase):
    """Before bytes land it harms nobody (test_broadcast_drills.py). Then the other one has no version to
    serve, or one that nobody else has, and stays paused until both hold one."""
    direct = ("--install", "direct")

    def test_once_bytes_have_landed_the_other_is_paused_until_both_hold_one(self):
        self.timeout = 10
        for stop in DIRECT_STOPS:
            with self.subTest(stop):
                self.setUp()
                self.run_first("--keep-going", servers=self.direct,
                               server_1=("--die-at", f"{stop}:2"))
                self.send(self.ranks, 2)
                self.expect_failed_within(
                    2 * self.timeout, "version 2 is not installed, the run is on version 1",
                    self.two[1].url, "it went away")
                said = self.two[0].get("/weight_info")[1]
                self.assertTrue(said["paused"] or said["version"] == 1, said)
                address = self.two[1].url[len("http://"):]
                self.two[1] = self.replica_server(1, *self.direct, http=address)
                read_until(self.orchestrator, "served", version=2, updated=2)
                self.verify_servers(self.two, 2)
                self.doCleanups()


class TheTrainerIsKilled(DrillCase):
    def expect_others_go_on(self):
        """Trainer and orchestrator that are started in the place of those that are gone."""
        for rank in self.ranks:
            rank.signal(signal.SIGKILL)
            rank.wait()
        self.ranks = self.broadcasts(self.run_config, first=3)
        self.send(self.ranks, 3)
        self.expect_served(self.orchestrate(self.run_config), 3)
        self.verify_servers(self.two, 3)

    def test_at_each_stop_both_servers_serve_the_old_version(self):
        for stop in TRAINER_STOPS:
            with self.subTest(stop):
                self.setUp()
                self.run_first(trainer=("--die-at", f"{stop}:2"))
                self.send(self.ranks, 2)
                self.expect_failed_within(2 * TIMEOUT_S, "no version after 1", self.address)
                self.assertEqual(self.orchestrator.wait()[0], 1)
                said = read_until(self.ranks[0], "failed", version=2)
                if said["missing"] == "":  # rank 0 still needed rows of it
                    self.assertIn("from rank 1", said["error"])
                else:
                    self.assertEqual(said["missing"], "trainer rank 1 has not published it")
                for server in self.two:
                    self.expect_holds(server, 1)
                self.doCleanups()

    def test_a_rank_in_the_midst_of_a_broadcast_is_named(self):
        self.timeout = 5
        self.run_first(trainer=("--die-at", "transfer+:2"))
        self.send(self.ranks, 2)
        self.expect_failed_within(2 * self.timeout, "trainer rank 1",
                                  "version 2 is not installed, the run is on version 1")
        for server in self.two:
            self.expect_holds(server, 1)
        self.verify_servers(self.two, 1)
        self.assertIn("trainer rank 1",
                      read_until(self.ranks[0], "failed", version=2)["missing"])

    def test_with_its_directory_in_the_midst_of_a_broadcast_it_is_named(self):
        self.timeout = 5
        self.run_first(rank_0=("--die-at", "transfer+:2"))
        self.send(self.ranks, 2)
        self.expect_failed_within(2 * self.timeout, "trainer rank 0",
                                  "version 2 is not installed, the run is on version 1")
        for server in self.two:
            self.expect_holds(server, 1)
        self.expect_others_go_on()

    def test_direct_servers_are_paused_until_a_trainer_is_back(self):
        """In the midst of a broadcast: bytes have landed."""
        self.timeout = 5
        direct = ("--install", "direct")
        self.run_first(servers=direct, trainer=("--die-at", "transfer+:2"))
        self.send(self.ranks, 2)
        said = self.expect_failed_within(2 * self.timeout, "trainer rank 1",
                                         "version 2 is not installed, the run is on version 1")
        for server in self.two:
            held = server.get("/weight_info")[1]
            self.assertTrue(held["paused"] or held["version"] == 1, held)
            self.assertEqual(held["paused"], server.url in said["error"].partition("paused:")[2])
        self.expect_others_go_on()

    def test_with_its_directory_it_is_named(self):
        self.run_first()
        for rank in self.ranks:
            rank.signal(signal.SIGKILL)
        self.expect_failed_within(2 * TIMEOUT_S, "no version after 1", self.address)
        self.assertEqual(self.orchestrator.wait()[0], 1)
        for server in self.two:
            self.expect_holds(server, 1)

    def test_while_one_server_reads_the_other_goes_back_by_itself(self):
        self.run_first(server_1=("--stall-at", "transfer:2"), ranks=("--delivery", "pull"))
        self.send(self.ranks, 2)
        read_until(self.orchestrator, "server", step="update", server=self.two[0].url)
        for rank in self.ranks:
            rank.signal(signal.SIGKILL)
        self.two[1].process.signal(signal.SIGCONT)
        while True:
            said = self.orchestrator.line()
            if said["event"] in ("served", "failed"):
                break
        held = said.get("version", 1)  # memory that it had mapped already outlives its trainers
        if said["event"] == "failed":
            for words in (self.two[1].url, "version 2 is not installed, the run is on version 1"):
                self.assertIn(words, said["error"])
            self.assertNotIn("paused:", said["error"])
        for server in self.two:
            self.expect_holds(server, held)
        self.assertEqual(self.orchestrator.wait()[0], 1)
        self.expect_others_go_on()


if __name__ == "__main__":
    unittest.main(verbosity=2)
