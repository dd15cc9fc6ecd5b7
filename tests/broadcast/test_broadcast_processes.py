# SPDX-License-Identifier: Apache-2.0
"""A trainer of two ranks, an orchestrator and two servers of two workers, as real processes."""
import os
import unittest

from broadcast_case import BroadcastCase, read_until

VERSIONS = int(os.environ.get("WEIR_TEST_VERSIONS", "100"))


class WhenAllIsWell(BroadcastCase):
    def test_versions_reach_every_worker_byte_for_byte(self):
        servers = self.servers()
        config = self.write_config([server.url for server in servers])
        trainers = self.broadcasts(config)
        orchestrator = self.orchestrate(config, "--steps", str(VERSIONS))
        for version in range(1, VERSIONS + 1):
            self.send(trainers, version)
            said = self.expect_served(orchestrator, version)
            self.assertEqual((said["updated"], said["dropped"]), (2, 0))
            for trainer in trainers:
                read_until(trainer, "held", version=version)
            self.verify_servers(servers, version)
        for server in servers:
            self.expect_holds(server, VERSIONS)
        self.assertEqual(orchestrator.wait()[0], 0)


    def test_marker_files_take_the_directory_s_place(self):
        markers = os.path.join(self.folder, "broadcasts")
        servers = self.servers()
        config = self.write_config([server.url for server in servers], marker_dir=markers)
        trainers = self.broadcasts(config)
        orchestrator = self.orchestrate(config, "--steps", "2")
        for version in (1, 2):
            self.send(trainers, version)
            self.expect_served(orchestrator, version)
            for trainer in trainers:
                read_until(trainer, "held", version=version)
            for name in ("STABLE", "NCCL_READY"):
                self.assertTrue(os.path.exists(f"{markers}/step_{version}/{name}"))
        self.verify_servers(servers, 2)


class WhereTheTrainerIs(BroadcastCase):
    def test_it_may_be_said_where_the_run_is_started(self):
        servers = self.servers()
        config = self.write_config([server.url for server in servers])
        with open(config, encoding="ascii") as file:
            text = file.read()
        at_home = "weight_broadcast: {host: 127.0.0.1}"
        with open(config, "w", encoding="ascii") as file:  # the orchestrator's: the last
            file.write("weight_broadcast: {host: elsewhere.invalid}".join(text.rsplit(at_home, 1)))
        here = ("--trainer-host", "127.0.0.1")
        trainers = self.broadcasts(config, *here)
        orchestrator = self.orchestrate(config, "--steps", "1", *here)
        self.send(trainers, 1)
        self.expect_served(orchestrator, 1)
        self.verify_servers(servers, 1)


class InCheckpointMode(WhenAllIsWell):
    kernel_mode = False


if __name__ == "__main__":
    unittest.main(verbosity=2)
