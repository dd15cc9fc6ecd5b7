# SPDX-License-Identifier: Apache-2.0
"""A trainer rank that has the whole model and servers of one worker: versions are pushed to all at
once, as those of a mesh are."""
import signal
import unittest

from broadcast_case import BroadcastCase, read_until

VERSIONS = 4


class OneWorkerEach(BroadcastCase):
    n_workers = 1

    def begin(self, *more, n_servers=2, **config):
        servers = self.servers(n_servers)
        path = self.write_config([server.url for server in servers], **config)
        trainer = self.pushes(path, *more)
        orchestrator = self.orchestrate(path, "--keep-going")
        return servers, trainer, orchestrator

    def pushes(self, path, *more):
        return self.start("broadcast", path, "--follow", "--json", "--threads", "1", *more)

    def serve(self, trainer, orchestrator, version, updated):
        self.send([trainer], version)
        said = self.expect_served(orchestrator, version)
        self.assertEqual(said["updated"], updated, said)
        held = read_until(trainer, "held", version=version)
        self.assertEqual(held["workers"], updated, held)


class Pushed(OneWorkerEach):
    def test_versions_reach_every_server_byte_for_byte(self):
        servers, trainer, orchestrator = self.begin()
        for version in range(1, VERSIONS + 1):
            self.serve(trainer, orchestrator, version, 2)
            self.verify_servers(servers, version)

    def test_one_that_was_killed_is_dropped_and_its_next_start_is_served(self):
        servers, trainer, orchestrator = self.begin(policy="drop")
        self.serve(trainer, orchestrator, 1, 2)
        port = servers[1].url.rsplit(":", 1)[1]
        servers[1].process.signal(signal.SIGKILL)
        servers[1].process.wait()
        self.serve(trainer, orchestrator, 2, 1)
        self.verify_servers(servers[:1], 2)
        servers[1] = self.replica_server(1, http="127.0.0.1:" + port)
        self.serve(trainer, orchestrator, 3, 2)
        self.verify_servers(servers, 3)

    def test_one_that_dies_meanwhile_is_waited_for_and_served_with_the_others(self):
        servers = [self.replica_server(0), self.replica_server(1, "--die-at", "transfer:2")]
        path = self.write_config([server.url for server in servers], policy="wait")
        trainer = self.pushes(path)
        orchestrator = self.orchestrate(path)
        self.serve(trainer, orchestrator, 1, 2)
        self.send([trainer], 2)
        servers[1].process.wait()
        port = servers[1].url.rsplit(":", 1)[1]
        servers[1] = self.replica_server(1, http="127.0.0.1:" + port)
        self.expect_served(orchestrator, 2)
        read_until(trainer, "held", version=2)
        self.verify_servers(servers, 2)


class IntoLiveParameters(OneWorkerEach):
    def test_servers_that_install_directly_are_pushed_to_with_others(self):
        servers = [self.replica_server(0, "--install", "direct"), self.replica_server(1)]
        path = self.write_config([server.url for server in servers])
        trainer = self.pushes(path)
        orchestrator = self.orchestrate(path)
        for version in (1, 2):
            self.serve(trainer, orchestrator, version, 2)
            self.verify_servers(servers, version)


class WhatIsRefused(OneWorkerEach):
    def test_each_refusal_names_the_way_out(self):
        path = self.write_config(["http://127.0.0.1:1"])
        cases = ((["--delivery", "pull", "--transport", "nccl"], "transport nccl cannot be read from: "
                  "leave the transport out"),
                 (["--delivery", "push", "--transport", "cuda_ipc", "--mesh", "fsdp=1"],
                  "transport cuda_ipc brings all workers the same bytes"))
        for more, words in cases:
            process = self.start("broadcast", path, self.checkpoint(1), *more)
            code, errors = process.wait()
            self.assertEqual(code, 1)
            self.assertIn(words, errors)


class PushedInCheckpointMode(OneWorkerEach):
    kernel_mode = False

    def test_versions_reach_every_server_byte_for_byte(self):
        servers, trainer, orchestrator = self.begin()
        for version in range(1, VERSIONS + 1):
            self.serve(trainer, orchestrator, version, 2)
        self.verify_servers(servers, VERSIONS)


if __name__ == "__main__":
    unittest.main(verbosity=2)
