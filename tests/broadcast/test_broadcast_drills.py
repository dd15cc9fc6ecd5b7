# SPDX-License-Identifier: Apache-2.0
"""Whole runs of which a part stalls, never comes, or is not what it should be: each ends within its
bound with an error that names the culprit, and the rest serve the old version. Who dies is in
test_broadcast_stops.py."""
import json
import os
import signal
import socket
import time
import unittest

from broadcast_case import WORKERS, free_port, read_until
from drill_case import TIMEOUT_S, DrillCase


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


class AServerStalls(DrillCase):
    def test_before_a_round_it_is_late_and_the_other_goes_back(self):
        self.run_first(server_1=("--stall-at", "transfer:2"))
        self.send(self.ranks, 2)
        self.expect_failed_within(4 * TIMEOUT_S, self.two[1].url, "no answer within 4.5 s")
        self.expect_holds(self.two[0], 1)


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
