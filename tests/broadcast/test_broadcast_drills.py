# SPDX-License-Identifier: Apache-2.0
"""Whole runs of which a part dies, stalls or never comes: each ends within its bound with an error
that names the culprit, and the rest serve the old version. WEIR_TEST_ALL_STOPS=1: at every stop."""
import json
import os
import signal
import socket
import time
import unittest

from broadcast_case import WORKERS, BroadcastCase, free_port, read_until

ALL = os.environ.get("WEIR_TEST_ALL_STOPS") == "1"
SERVER_STOPS = ("discover", "transfer", "transfer+", "install", "postprocess", "ack") if ALL else (
    "transfer+", "install")
TRAINER_STOPS = ("source", "stage", "slot", "publish") if ALL else ("publish",)
TIMEOUT_S = 3


class DrillCase(BroadcastCase):
    timeout = TIMEOUT_S

    def start(self, *arguments):
        """Killed at the end: a trainer in order would wait for readers that are dead."""
        process = super().start(*arguments)
        self.addCleanup(process.process.kill)
        return process

    def run_first(self, *orchestrate, trainer=(), ranks=(), servers=(), server_1=(),
                  policy="abort"):
        """Version 1 is served by two servers; then server 1 and the trainers' last rank may die."""
        self.two = [self.replica_server(0, *servers), self.replica_server(1, *servers, *server_1)]
        urls = [server.url for server in self.two]
        self.run_config = self.write_config(urls, policy, self.timeout)
        self.ranks = [self.broadcast(self.run_config, 0, *ranks),
                      self.broadcast(self.run_config, 1, *ranks, *trainer)]
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

    def expect_the_next_one_goes_to_all(self):
        """Within its bound, and nobody tries the one before it any more."""
        begun = time.monotonic()
        self.send(self.ranks, 3)
        said = self.orchestrator.line()
        while said["event"] != "served":
            self.assertNotIn("version 2", said.get("error", ""), said)
            said = self.orchestrator.line()
        self.assertLess(time.monotonic() - begun, self.timeout)
        self.assertEqual((said["version"], said["updated"], said["dropped"]), (3, 2, 0), said)
        for rank in self.ranks:
            read_until(rank, "held", version=3)
        self.verify_servers(self.two, 3)


class AServerIsKilled(DrillCase):
    def test_at_each_stop_the_other_serves_the_old_version(self):
        self.timeout = 10
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

    @unittest.skipUnless(ALL, "waits for long: WEIR_TEST_ALL_STOPS=1")
    def test_one_that_stalls_is_late_and_the_other_goes_back(self):
        self.run_first(server_1=("--stall-at", "transfer:2"))
        self.send(self.ranks, 2)
        self.expect_failed_within(4 * TIMEOUT_S, self.two[1].url, "no answer within 4.5 s")
        self.expect_holds(self.two[0], 1)


class AServerIsFrozen(DrillCase):
    """In the midst of a broadcast, under each policy."""
    timeout = 2

    def freeze(self, policy):
        self.run_first("--keep-going", server_1=("--stall-at", "transfer+:2"), policy=policy)
        self.begun = time.monotonic()
        self.send(self.ranks, 2)

    def end_within(self, event, seconds):
        said = read_until(self.orchestrator, event)
        self.assertLess(time.monotonic() - self.begun, seconds, said)
        return said

    def expect_the_old_version(self, policy):
        self.freeze(policy)
        said = self.end_within("failed", 4 * self.timeout)
        for words in ("version 2 is not installed, the run is on version 1", self.two[1].url,
                      "no answer within"):
            self.assertIn(words, said["error"])
        self.assertNotIn(f"server {self.two[0].url}", said["error"])
        self.expect_holds(self.two[0], 1)
        said = read_until(self.ranks[0], "failed", version=2)
        for rank in (3, 4):
            self.assertIn(f"rank {rank} (server 1", said["missing"])
        self.assertNotIn("after 0.0 s", said["error"])
        read_until(self.ranks[1], "failed", version=2)
        self.two[1].process.signal(signal.SIGCONT)
        self.expect_the_next_one_goes_to_all()

    def test_the_others_stay_on_the_old_version(self):
        self.expect_the_old_version("abort")

    def test_it_is_waited_for_and_the_others_stay_on_the_old_version(self):
        self.timeout = 4  # of which a round has a third
        self.expect_the_old_version("wait")

    def test_dropped_the_others_go_on(self):
        self.timeout = 12
        self.freeze("drop")
        said = self.end_within("served", 2 * self.timeout)
        self.assertEqual((said["version"], said["updated"], said["dropped"]), (2, 1, 1))
        self.verify_servers(self.two[:1], 2)
        for rank in self.ranks:
            read_until(rank, "held", version=2)
        self.two[1].process.signal(signal.SIGCONT)
        self.expect_the_next_one_goes_to_all()


class DirectServers(DrillCase):
    """Their versions land in what is live: one that has not begun to land harms nobody."""
    timeout = 2
    direct = ("--install", "direct")

    def expect_the_old_version_unharmed(self, seconds, *words):
        self.send(self.ranks, 2)
        self.expect_failed_within(
            seconds, "version 2 is not installed, the run is on version 1", *words)
        said = self.two[0].get("/weight_info")[1]
        self.assertEqual((said["state"], said["version"], said["paused"], said["updating"]),
                         ("holding", 1, False, False), said)
        self.verify_servers(self.two[:1], 1)

    def test_one_is_frozen_before_a_round_and_as_it_begins(self):
        for stop in ("discover", "transfer"):
            with self.subTest(stop):
                self.setUp()
                self.run_first("--keep-going", servers=self.direct,
                               server_1=("--stall-at", f"{stop}:2"))
                self.expect_the_old_version_unharmed(5 * self.timeout, self.two[1].url)
                self.two[1].process.signal(signal.SIGCONT)
                self.expect_the_next_one_goes_to_all()
                self.doCleanups()

    def test_one_is_killed_before_a_round_and_as_it_begins(self):
        self.timeout = 4
        for stop in ("discover", "transfer"):
            with self.subTest(stop):
                self.setUp()
                self.run_first(servers=self.direct, server_1=("--die-at", f"{stop}:2"))
                self.expect_the_old_version_unharmed(3 * self.timeout, self.two[1].url)
                self.assertEqual(self.orchestrator.wait()[0], 1)
                for rank in self.ranks:
                    read_until(rank, "failed", version=2)
                address = self.two[1].url[len("http://"):]
                self.two[1] = self.replica_server(1, *self.direct, http=address)
                self.send(self.ranks, 3)
                self.expect_served(self.orchestrate(self.run_config), 3)
                self.verify_servers(self.two, 3)
                self.doCleanups()


class TheTrainerIsKilled(DrillCase):
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

    @unittest.skipUnless(ALL, "waits for long: WEIR_TEST_ALL_STOPS=1")
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
        self.ranks = self.broadcasts(self.run_config, first=3)  # and it goes on
        self.send(self.ranks, 3)
        self.expect_served(self.orchestrate(self.run_config), 3)
        self.verify_servers(self.two, 3)


class TheFirstVersionFails(DrillCase):
    """What engines came with is what the rest serve, and no trainer could send it to them."""

    def run_first_of(self, servers, policy):
        self.two = servers
        self.run_config = self.write_config([server.url for server in servers], policy,
                                            self.timeout)
        self.ranks = self.broadcasts(self.run_config)
        self.orchestrator = self.orchestrate(self.run_config)
        self.send(self.ranks, 1)
        said = self.expect_failed_within(
            3 * self.timeout, "version 1 is not installed, the run is on what it came with",
            servers[1].url)
        self.assertNotIn("paused:", said["error"])
        self.assertNotIn(f"server {servers[0].url}", said["error"])
        self.expect_holds(servers[0], None)

    def other_architecture(self):
        path = os.path.join(self.folder, "other.json")
        with open(self.config, encoding="utf-8") as file:
            other = json.load(file)
        other["vocab_size"] *= 2
        with open(path, "w", encoding="utf-8") as file:
            json.dump(other, file)
        return path

    def test_on_a_server_of_another_architecture(self):
        for policy in ("abort", "wait"):
            with self.subTest(policy):
                self.setUp()
                other = self.replica_server(1, config=self.other_architecture())
                self.run_first_of([self.replica_server(0), other], policy)
                self.expect_holds(self.two[1], None)
                self.doCleanups()

    def test_on_a_server_that_is_killed_and_the_run_goes_on_with_another(self):
        self.timeout = 10
        self.run_first_of([self.replica_server(0),
                           self.replica_server(1, "--die-at", "install:1")], "abort")
        self.assertEqual(self.orchestrator.wait()[0], 1)
        again = self.replica_server(1, http=self.two[1].url[len("http://"):])
        self.expect_served(self.orchestrate(self.run_config), 1)
        self.verify_servers([self.two[0], again], 1)


class BetweenVersions(DrillCase):
    def test_a_server_that_is_killed_and_comes_back_is_said_paused_and_taken_in(self):
        self.timeout = 20
        self.run_first()
        killed = self.two[1]
        killed.process.signal(signal.SIGKILL)
        begun = time.monotonic()
        said = read_until(self.orchestrator, "server", server=killed.url, step="look",
                          state="unknown")
        self.assertIn("cannot be reached", said["error"])
        self.assertLess(time.monotonic() - begun, 2.5)
        again = self.replica_server(1, http=killed.url[len("http://"):])
        said = read_until(self.orchestrator, "server", server=killed.url, step="pause")
        self.assertIn("what it came with, the run is on version 1", said["error"])
        self.expect_holds(again, None, paused=True)
        self.expect_holds(self.two[0], 1)
        self.send(self.ranks, 2)
        self.assertEqual(self.expect_served(self.orchestrator, 2)["updated"], 2)
        self.verify_servers([self.two[0], again], 2)


class MarkersOfAnEarlierRun(DrillCase):
    def test_they_are_taken_away_and_do_not_stop_this_one(self):
        self.timeout = 20
        markers = os.path.join(self.folder, "broadcasts")
        for step, name in ((1, "NCCL_READY"), (2, "NCCL_READY"), (5, "STABLE"), (5, "NCCL_READY")):
            os.makedirs(f"{markers}/step_{step}", exist_ok=True)
            open(f"{markers}/step_{step}/{name}", "w", encoding="ascii").close()
        servers = self.servers(1)
        config = self.write_config([servers[0].url], marker_dir=markers)
        trainers = self.broadcasts(config, first=2)
        read_until(trainers[0], "listening")
        for step, names in ((1, ["NCCL_READY"]), (2, []), (5, [])):
            self.assertEqual(os.listdir(f"{markers}/step_{step}"), names)
        self.send(trainers, 2)
        self.expect_served(self.orchestrate(config), 2)
        read_until(trainers[0], "held", version=2)

    def test_what_the_trainer_cannot_mean_is_not_taken(self):
        """Whoever writes its markers by itself may have left the others."""
        self.timeout = 20
        markers = os.path.join(self.folder, "broadcasts")
        servers = self.servers(1)
        without = self.write_config([servers[0].url])
        trainers = self.broadcasts(without)
        read_until(trainers[0], "listening")
        os.makedirs(f"{markers}/step_5")
        open(f"{markers}/step_5/STABLE", "w", encoding="ascii").close()
        self.send(trainers, 1)
        read_until(trainers[0], "published", version=1)
        orchestrator = self.orchestrate(self.write_config([servers[0].url], marker_dir=markers))
        read_until(orchestrator, "joined")
        os.makedirs(f"{markers}/step_1")
        open(f"{markers}/step_1/STABLE", "w", encoding="ascii").close()
        self.expect_served(orchestrator, 1)
        self.assertFalse(os.path.exists(f"{markers}/step_5/NCCL_READY"))


class WhoIsOfTheGroup(DrillCase):
    def join_body(self, rank, n_servers, **more):
        return {"host": "127.0.0.1", "port": self.port, "server_rank": rank,
                "num_inference_server": n_servers, "timeout": 2,
                "quantize_in_weight_transfer": True, **more}

    def test_servers_join_before_the_first_version_and_those_of_another_group_do_not(self):
        servers = self.servers()
        trainer = self.broadcast(self.write_config([server.url for server in servers]), 0)
        self.assertEqual(trainer.line()["event"], "listening")
        self.assertEqual(servers[0].post("/init_broadcaster", self.join_body(0, 2)),
                         (200, {"ranks": [1, 2]}))
        status, said = servers[1].post("/init_broadcaster", self.join_body(6, 7))
        self.assertEqual(status, 400)
        self.assertIn("server-6, ranks 13 to 14, is of a group of 14 inference workers", said["error"])
        self.assertIn(f"the trainer at {self.address} broadcasts to 4", said["error"])
        status, said = servers[1].post("/init_broadcaster", self.join_body(1, 2, session_id="else"))
        self.assertEqual(status, 400)
        self.assertIn(f"'session_id' is 'else', but the trainer at {self.address} is of run "
                      "'default'", said["error"])

    def test_replicas_that_are_nobodys_workers_are_not_counted(self):
        of_none = "version 1 has reached replicas that are of no group, and not 2 of the 2 inference"
        for delivery, error in ((), "it was sent to 1 replicas, and not all of them are of the group"), (
                ("--delivery", "pull"), "timed out after 2.0 s: " + of_none):
            with self.subTest(delivery):
                self.setUp()
                trainers = self.broadcasts(self.write_config(["http://127.0.0.1:1"], timeout=2),
                                           *delivery)
                self.send(trainers, 1)
                read_until(trainers[0], "published")
                strays = [self.replica(f"stray-{worker}", "--hold", "--replica-mesh",
                                       f"tp={WORKERS}", "--worker", str(worker))
                          for worker in range(WORKERS)]
                for stray in strays:
                    self.assertEqual(stray.line()["version"], 1)
                said = trainers[0].line()
                self.assertEqual(said["event"], "failed")
                self.assertIn(error, said["error"])
                for tp in range(WORKERS):
                    self.assertIn(f"rank {1 + tp} (server 0, dp 0, tp {tp}) has not joined",
                                  said["missing"])
                self.doCleanups()


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

    def test_a_server_that_comes_late_is_waited_for(self):
        self.timeout = 15
        late = f"127.0.0.1:{free_port()}"
        first = self.replica_server(0)
        config = self.write_config([first.url, "http://" + late], "wait")
        trainers = self.broadcasts(config)
        orchestrator = self.orchestrate(config)
        self.send(trainers, 1)
        read_until(trainers[0], "published", version=1)
        second = self.replica_server(1, http=late)
        self.assertEqual(self.expect_served(orchestrator, 1)["updated"], 2)
        self.verify_servers([first, second], 1)

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
