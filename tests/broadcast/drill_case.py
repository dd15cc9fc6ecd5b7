# SPDX-License-Identifier: Apache-2.0
"""A run of two servers that has come to version 1, of which a part then dies or stalls."""
import time

from broadcast_case import BroadcastCase, read_until

TIMEOUT_S = 3


class DrillCase(BroadcastCase):
    timeout = TIMEOUT_S

    def start(self, *arguments):
        """Killed at the end: a trainer in order would wait for readers that are dead."""
        process = super().start(*arguments)
        self.addCleanup(process.process.kill)
        return process

    def run_first(self, *orchestrate, trainer=(), rank_0=(), ranks=(), servers=(), server_1=(),
                  policy="abort"):
        """Version 1 is served by two servers; then server 1 and a trainer rank may die, rank 1 as
        `trainer` says."""
        self.two = [self.replica_server(0, *servers), self.replica_server(1, *servers, *server_1)]
        urls = [server.url for server in self.two]
        self.run_config = self.write_config(urls, policy, self.timeout)
        self.ranks = [self.broadcast(self.run_config, 0, *ranks, *rank_0),
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
