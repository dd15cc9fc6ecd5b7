# SPDX-License-Identifier: Apache-2.0
"""Versions that servers read while they are converted, through a window of each trainer rank: what
`--delivery pull` does with window_bytes."""
import signal
import unittest

from broadcast_case import BroadcastCase, read_until

WINDOW = 256 << 10


class Read(BroadcastCase):
    window = WINDOW

    def broadcast(self, config, rank, *more, first=1):
        return super().broadcast(config, rank, "--delivery", "pull", *more, first=first)

    def serve(self, trainers, orchestrator, version, updated):
        self.send(trainers, version)
        said = self.expect_served(orchestrator, version)
        self.assertEqual(said["updated"], updated, said)
        for trainer in trainers:
            held = read_until(trainer, "held", version=version)
            self.assertEqual(held["workers"], updated * self.n_workers, held)

    def begin(self, n=2, policy="abort", *more):
        servers = self.servers(n)
        config = self.write_config([server.url for server in servers], policy)
        return servers, self.broadcasts(config), self.orchestrate(config, *more)


class EnginesOfTwo(Read):
    def test_each_version_reaches_all_workers(self):
        servers, trainers, orchestrator = self.begin()
        for version in (1, 2, 3):
            self.serve(trainers, orchestrator, version, 2)
            self.verify_servers(servers, version)

    def test_one_that_was_killed_is_dropped_and_its_next_start_takes_the_next_version(self):
        self.timeout = 8
        servers, trainers, orchestrator = self.begin(policy="drop")
        self.serve(trainers, orchestrator, 1, 2)
        port = servers[1].url.rsplit(":", 1)[1]
        servers[1].process.signal(signal.SIGKILL)
        servers[1].process.wait()
        self.serve(trainers, orchestrator, 2, 1)
        servers[1] = self.replica_server(1, http="127.0.0.1:" + port)
        self.serve(trainers, orchestrator, 3, 2)
        self.verify_servers(servers, 3)


class EnginesOfTwoInCheckpointMode(Read):
    kernel_mode = False

    def test_each_version_reaches_all_workers(self):
        servers, trainers, orchestrator = self.begin()
        for version in (1, 2):
            self.serve(trainers, orchestrator, version, 2)
        self.verify_servers(servers, 2)


class ATrainerOfOneRank(Read):
    n_workers = 1

    def broadcasts(self, config):
        return [self.start("broadcast", config, "--follow", "--json", "--threads", "1",
                           "--delivery", "pull")]

    def test_each_version_reaches_all_servers(self):
        servers, trainers, orchestrator = self.begin()
        for version in (1, 2):
            self.serve(trainers, orchestrator, version, 2)
        self.verify_servers(servers, 2)

    def test_several_that_have_the_whole_model_have_no_window(self):
        path = self.write_config(["http://127.0.0.1:1"])
        process = self.start("broadcast", path, self.checkpoint(1), "--ranks", "2", "--delivery",
                             "pull")
        code, errors = process.wait()
        self.assertEqual(code, 1)
        self.assertIn("a window of trainer ranks needs --mesh", errors)


if __name__ == "__main__":
    unittest.main(verbosity=2)
