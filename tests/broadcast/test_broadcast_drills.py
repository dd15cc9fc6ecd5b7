# SPDX-License-Identifier: Apache-2.0
"""Whole runs of which a part dies, stalls or never comes: each ends within its bound with an error
that names the culprit, and the rest serve the old version. WEIR_TEST_ALL_STOPS=1: at every stop."""
import os
import signal
import socket
import time
import unittest

from broadcast_case import WORKERS, BroadcastCase, read_until

ALL = os.environ.get("WEIR_TEST_ALL_STOPS") == "1"
SERVER_STOPS = ("discover", "transfer", "install", "postprocess", "ack") if ALL else ("install",)
TRAINER_STOPS = ("source", "stage", "slot", "publish") if ALL else ("publish",)
TIMEOUT_S = 3


class DrillCase(BroadcastCase):
    timeout = TIMEOUT_S

    def start(self, *arguments):
        """Killed at the end: a trainer in order would wait for readers that are dead."""
        process = super().start(*arguments)
        self.addCleanup(process.process.kill)
        return process

    def run_first(self, *orchestrate, trainer=(), server_1=(), policy="abort"):
        """Version 1 is served by two servers; then server 1 and the trainers' last rank may die."""
        self.two = [self.replica_server(0), self.replica_server(1, *server_1)]
        urls = [server.url for server in self.two]
        self.run_config = self.write_config(urls, policy, self.timeout)
        self.ranks = [self.broadcast(self.run_config, 0),
                      self.broadcast(self.run_config, 1, *trainer)]
        self.orchestrator = self.orchestrate(self.run_config, *orchestrate)
        self.send(self.ranks, 1)
        self.expect_served(self.orchestrator, 1)
        for rank in self.ranks:
            read_until(rank, "held", version=1)

    def expect_failed_within(self, seconds, *words):
        begun = time.monotonic()
        said = read_until(self.orchestrator, "failed")
        self.assertLess(time.monotonic() - begun, seconds)
        for word in words:
            self.assertIn(word, said["error"])
        return said


class AServerIsKilled(DrillCase):
    def test_at_each_stop_the_other_serves_the_old_version(self):
        self.timeout = 10
        for stop in SERVER_STOPS:
            with self.subTest(stop):
                self.setUp()
                self.run_first(server_1=("--die-at", f"{stop}:2"))
                self.send(self.ranks, 2)
                self.expect_failed_within(
                    self.timeout, "version 2 is not installed, the run is on version 1",
                    self.two[1].url, "it went away")
                self.expect_holds(self.two[0], 1)
                self.verify_servers(self.two[:1], 1)
                self.doCleanups()

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

    @unittest.skipUnless(ALL, "waits for long: WEIR_TEST_ALL_STOPS=1")
    def test_one_that_stalls_is_late_and_the_other_goes_back(self):
        self.run_first(server_1=("--stall-at", "transfer:2"))
        self.send(self.ranks, 2)
        self.expect_failed_within(4 * TIMEOUT_S, self.two[1].url, "no answer within 4.5 s")
        self.expect_holds(self.two[0], 1)


class TheTrainerIsKilled(DrillCase):
    def test_at_each_stop_both_servers_serve_the_old_version(self):
        for stop in TRAINER_STOPS:
            with self.subTest(stop):
                self.setUp()
                self.run_first(trainer=("--die-at", f"{stop}:2"))
                self.send(self.ranks, 2)
                self.expect_failed_within(2 * TIMEOUT_S, "no version after 1", self.address)
                self.assertEqual(self.orchestrator.wait()[0], 1)
                self.assertIn("rank", self.ranks[0].wait()[1])
                for server in self.two:
                    self.expect_holds(server, 1)
                self.doCleanups()

    @unittest.skipUnless(ALL, "waits for long: WEIR_TEST_ALL_STOPS=1")
    def test_with_its_directory_it_is_named(self):
        self.run_first()
        for rank in self.ranks:
            rank.signal(signal.SIGKILL)
        self.expect_failed_within(2 * TIMEOUT_S, "no version after 1", self.address)
        self.assertEqual(self.orchestrator.wait()[0], 1)
        for server in self.two:
            self.expect_holds(server, 1)

    @unittest.skipUnless(ALL, "waits for long: WEIR_TEST_ALL_STOPS=1")
    def test_while_a_server_reads_what_cannot_go_back_stays_paused(self):
        self.run_first(server_1=("--stall-at", "discover:2"))
        self.send(self.ranks, 2)
        read_until(self.orchestrator, "server", step="update")  # of the other one
        for rank in self.ranks:
            rank.signal(signal.SIGKILL)
        self.two[1].process.signal(signal.SIGCONT)
        self.expect_failed_within(4 * TIMEOUT_S, self.two[1].url,
                                  f"paused: {self.two[0].url} (holds version 2)")
        self.expect_holds(self.two[0], 2, paused=True)


class SomebodyNeverComes(DrillCase):
    def test_a_trainer_rank(self):
        servers = self.servers()
        config = self.write_config([server.url for server in servers], timeout=2)
        first = self.broadcast(config, 0)
        self.send([first], 1)
        self.orchestrator = self.orchestrate(config)
        self.expect_failed_within(8, "no version can be had within 2.0 s", self.address)
        code, error = first.wait()
        self.assertEqual(code, 1)
        self.assertIn("rank 1: it has not announced itself", error)

    def test_a_server(self):
        servers = self.servers(1)
        config = self.write_config([servers[0].url, "http://127.0.0.1:1"], timeout=2)
        trainers = self.broadcasts(config)
        self.send(trainers, 1)
        code, error = self.orchestrate(config).wait(20)
        self.assertEqual(code, 1)
        self.assertIn("server http://127.0.0.1:1: GET /weight_info: it cannot be reached", error)
        said = read_until(trainers[0], "failed")
        for tp in range(WORKERS):
            self.assertIn(f"rank {3 + tp} (server 1, dp 0, tp {tp}) has not joined",
                          said["missing"])

    def test_a_server_of_another_model(self):
        servers = [self.replica_server(0), self.replica_server(1, model="other")]
        config = self.write_config([server.url for server in servers], timeout=2)
        self.send(self.broadcasts(config), 1)
        code, error = self.orchestrate(config).wait(20)
        self.assertEqual(code, 1)
        self.assertIn(f"server {servers[1].url}: POST /init_broadcaster: HTTP 504", error)
        self.assertIn("no trainer of model 'other'", error)

    def test_the_port_is_taken(self):
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", self.port))
            taken.listen()
            config = self.write_config(["http://127.0.0.1:1"])
            begun = time.monotonic()
            code, error = self.broadcast(config, 0).wait()
        self.assertLess(time.monotonic() - begun, 2)
        self.assertEqual(code, 1)
        self.assertIn(self.address, error)
        self.assertIn("in use", error)

    def test_a_line_that_is_too_long_is_no_source(self):
        trainer = self.broadcast(self.write_config(["http://127.0.0.1:1"]), 0)
        trainer.send("x" * 5000)
        code, error = trainer.wait()
        self.assertNotEqual(code, 0)
        self.assertIn("a line of stdin has more than", error)


if __name__ == "__main__":
    unittest.main(verbosity=2)
