# SPDX-License-Identifier: Apache-2.0
"""Servers of expert-parallel engines: each worker has some experts, in an order of its own."""
import json
import subprocess
import unittest

from broadcast_case import BroadcastCase, flow_case, read_until

EXPERTS = "[[5,1,4,0],[2,7,3,6]]"  # of glm_moe_dsa's preset tiny


class ExpertParallel(BroadcastCase):
    def write_config(self, urls, **more):
        path = super().write_config(urls, **more)
        with open(path, encoding="ascii") as file:
            text = file.read()
        text = text.replace("  tp: 2\n", f"  tp: 2\n  ep: 2\n  experts: '{EXPERTS}'\n")
        with open(path, "w", encoding="ascii") as file:
            file.write(text)
        return path

    def replica_server(self, rank, *more, **options):
        return super().replica_server(rank, "--ep", "2", "--replica-experts", EXPERTS, *more,
                                      **options)

    def test_each_worker_gets_its_experts_by_id(self):
        server = self.replica_server(0)
        config = self.write_config([server.url])
        trainers = self.broadcasts(config)
        orchestrator = self.orchestrate(config, "--steps", "2")
        for version in (1, 2):
            self.send(trainers, version)
            self.expect_served(orchestrator, version)
            for trainer in trainers:
                read_until(trainer, "held", version=version)
        for worker in range(2):
            result = subprocess.run(
                [flow_case.WEIR, "verify", self.checkpoint(2), "--replica", "server-0-dp0",
                 "--worker", str(worker), "--replica-mesh", "tp=2,dp=1,ep=2", "--replica-experts",
                 EXPERTS, "--config", self.config, *self.flow],
                capture_output=True, text=True, timeout=flow_case.WAIT_S, check=False)
            self.assertEqual(result.returncode, 0, result.stderr)
            self.assertTrue(json.loads(result.stdout)["verified"])


class ExpertParallelInCheckpointMode(ExpertParallel):
    kernel_mode = False


if __name__ == "__main__":
    unittest.main(verbosity=2)
