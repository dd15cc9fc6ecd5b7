# SPDX-License-Identifier: Apache-2.0
"""A trainer rank that is killed and started anew under the number that it had published: whatever it
brings, no replica ever holds its bytes beside another start's."""
import json
import signal
import subprocess
import unittest

import flow_case
from flow_case import FlowCase


class ARankThatIsStartedAnew(FlowCase):
    versions = 2

    def setUp(self):
        super().setUp()
        self.ranks = self.trainers()
        self.follower = self.replica("follower", "--follow")
        self.publish(self.ranks, 1)
        self.expect_installed(self.follower, 1)

    def start_anew(self, rank, checkpoint):
        """Killed, and there again with these weights as version 1."""
        self.ranks[rank].signal(signal.SIGKILL)
        self.ranks[rank].wait()
        self.ranks[rank] = self.trainer(rank)
        self.ranks[rank].send(self.checkpoint(checkpoint))
        self.assertEqual(self.ranks[rank].line()["version"], 1)

    def attempts(self):
        """At version 1, the first one first: (state, reason)."""
        said = subprocess.run([flow_case.WEIR, "top", "--json", "--directory", self.address],
                              capture_output=True, text=True, timeout=flow_case.WAIT_S, check=True)
        versions = sorted(json.loads(said.stdout)["versions"], key=lambda one: one["attempt"])
        self.assertEqual([one["attempt"] for one in versions],
                         list(range(1, len(versions) + 1)))
        return [(one["state"], one["reason"]) for one in versions]

    def expect_bytes_of(self, name, checkpoint):
        result = self.run_verify(name, checkpoint)
        self.assertEqual(result.returncode, 0, result.stderr)

    def test_with_other_weights_ends_the_attempt_and_the_next_one_needs_all_ranks(self):
        self.start_anew(0, 2)
        (state, reason), (next_state, _) = self.attempts()
        self.assertEqual((state, next_state), ("ABORTED", "STAGING"))
        self.assertRegex(reason, "^rank-0 was started anew as trainer-0-.*, with other weights "
                                 "than those of trainer-0-")
        late = self.replica("late", "--version", "1", "--timeout", "1")
        self.expect_failed(late, "these have not published it: rank-1")
        self.expect_bytes_of("follower", 1)
        self.start_anew(1, 2)
        self.assertEqual([state for state, _ in self.attempts()], ["ABORTED", "READY"])
        self.expect_installed(self.follower, 1)  # the number that it held, but not those weights
        self.expect_bytes_of("follower", 2)
        last = self.replica("last", "--version", "1", "--hold", "--trainers-only")
        self.expect_installed(last, 1)
        self.expect_bytes_of("last", 2)

    def test_with_the_same_weights_goes_on_in_the_same_version(self):
        self.start_anew(0, 1)
        self.assertEqual(self.attempts(), [("READY", "")])
        late = self.replica("late", "--version", "1", "--hold", "--trainers-only")
        self.expect_installed(late, 1)
        self.expect_bytes_of("late", 1)
        self.publish(self.ranks, 2)
        self.expect_installed(self.follower, 2)  # and nothing in between
        self.verify("follower", 2)


if __name__ == "__main__":
    unittest.main()
