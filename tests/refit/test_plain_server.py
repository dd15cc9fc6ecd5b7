# SPDX-License-Identifier: Apache-2.0
"""Whole refits through a server that is ModelExpress' by its messages alone, and tells nothing that
it need not: trainer ranks, replicas, versions that are given up, ranks that are started anew."""
import os
import signal
import sys
import time
import unittest

import flow_case
from flow_case import FlowCase, Process

HERE = os.path.dirname(os.path.abspath(__file__))


class APlainServer(FlowCase):
    versions = 2

    def setUp(self):
        super().setUp()
        self.directory.end()
        self.server = Process("plain_server.py", program=(sys.executable,
                                                          os.path.join(HERE, "plain_server.py")))
        self.addCleanup(self.server.end)
        self.address = self.server.line()["address"]
        self.flow[self.flow.index("--directory") + 1] = self.address

    def start_anew(self, ranks, rank, checkpoint, first=1):
        """Killed, and there again with these weights as that version."""
        ranks[rank].signal(signal.SIGKILL)
        ranks[rank].wait()
        ranks[rank] = self.trainer(rank, "--timeout", "20", first=first)
        ranks[rank].send(self.checkpoint(checkpoint))
        self.assertEqual(ranks[rank].line()["version"], first)

    def expect_bytes_of(self, name, checkpoint):
        result = self.run_verify(name, checkpoint)
        self.assertEqual(result.returncode, 0, result.stderr)

    def test_versions_are_followed_and_waited_for(self):
        ranks = self.trainers()
        follower = self.replica("follower", "--follow")
        for version in (1, 2):
            self.publish(ranks, version)
            self.expect_installed(follower, version)
            self.verify("follower", version)
        for rank in ranks:
            rank.signal(signal.SIGTERM)
            self.assertEqual(rank.wait()[0], 0)
        alone = self.start("publish", self.checkpoint(1), "--version", "5", "--replicas", "1",
                           "--timeout", "20", *self.flow)
        self.expect_installed(follower, 5)
        code, line = alone.wait()
        self.assertEqual(code, 0, line)
        behind = self.replica("behind", "--hold", "--timeout", "5")  # its trainer has ended
        self.expect_failed(behind, "timed out")

    def test_who_does_not_hold_a_version_is_named(self):
        ranks = self.trainers()
        self.publish(ranks, 1)
        held = self.replica("held", "--version", "1", "--hold")
        self.expect_installed(held, 1)
        alone = self.start("publish", self.checkpoint(2), "--version", "2", "--replicas", "2",
                           "--timeout", "2", *self.flow)
        code, line = alone.wait()
        self.assertNotEqual(code, 0)
        self.assertRegex(line, r"0 of 2 replica workers hold version 2 of m; held[^:;]*: holds 1$")

    def test_a_version_that_is_given_up_ends_waits_with_the_reason(self):
        rank = self.trainer(0, first=9)
        rank.send(self.checkpoint(1))
        self.assertEqual(rank.line()["version"], 9)
        waits = [self.replica("numbered", "--version", "9"), self.replica("latest")]
        time.sleep(0.5)  # both have seen that it is begun; who had not would be told all the same
        rank.signal(signal.SIGTERM)
        begun = time.monotonic()
        for replica in waits + [self.replica("later", "--version", "9")]:
            self.expect_failed(replica, "version 9 of m was aborted", "closed before all ranks")
        self.assertLess(time.monotonic() - begun, 10)

    def test_a_rank_started_anew_with_the_same_weights_goes_on(self):
        ranks = self.trainers()
        follower = self.replica("follower", "--follow")
        self.publish(ranks, 1)
        self.expect_installed(follower, 1)
        self.start_anew(ranks, 1, 1)
        late = self.replica("late", "--version", "1", "--hold")
        self.expect_installed(late, 1)
        self.verify("late", 1)
        self.publish(ranks, 2)
        self.expect_installed(follower, 2)  # and nothing in between
        self.verify("follower", 2)

    def test_no_replica_holds_a_mixture_of_a_rank_that_brings_other_weights(self):
        ranks = self.trainers()
        follower = self.replica("follower", "--follow")
        self.publish(ranks, 1)
        self.expect_installed(follower, 1)
        self.start_anew(ranks, 1, 2)
        late = self.replica("late", "--hold", "--timeout", "2")
        self.expect_failed(late, "these have not published it: rank-0")
        self.expect_bytes_of("follower", 1)
        self.start_anew(ranks, 0, 2)
        self.expect_installed(follower, 1)  # the number that it held, but not those weights
        self.expect_bytes_of("follower", 2)
        last = self.replica("last", "--version", "1", "--hold")
        self.expect_installed(last, 1)
        self.expect_bytes_of("last", 2)

    def test_a_rank_that_runs_on_hears_that_its_version_is_over(self):
        waiting = self.start("publish", self.checkpoint(1), "--version", "1", "--rank", "0",
                             "--ranks", "2", "--replicas", "1", "--timeout", "30", *self.flow)
        other = self.trainer(1)
        other.send(self.checkpoint(1))
        self.assertEqual(other.line()["version"], 1)
        self.until(lambda: self.run_verify("nobody", 1).returncode != 0)
        ranks = [waiting, other]
        self.start_anew(ranks, 1, 2)
        code, line = waiting.wait()
        self.assertNotEqual(code, 0)
        self.assertIn("version 1 of m was aborted: rank-1 was started anew as trainer-1-", line)
        self.assertIn("with other weights than those of trainer-1-", line)
        self.assertIn("has to publish again", line)


if __name__ == "__main__":
    unittest.main()
