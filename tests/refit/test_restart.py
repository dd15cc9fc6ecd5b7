# SPDX-License-Identifier: Apache-2.0
"""A trainer rank that is killed and started anew under the number that it had published: whatever it
brings, no replica ever holds its bytes beside another start's. Nor when the directory is killed as
well, and what the ranks had published is gone with its records."""
import json
import os
import select
import signal
import subprocess
import time
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

    def test_all_with_another_number_of_ranks_publish_in_whatever_order_they_come(self):
        for rank in self.ranks:
            rank.signal(signal.SIGKILL)
            rank.wait()
        self.ranks = [self.trainer(rank, "--ranks", "3") for rank in range(3)]
        for rank in (2, 0, 1):  # no rank 2 was there before
            self.ranks[rank].send(self.checkpoint(2))
            time.sleep(0.3)
        for rank in self.ranks:
            self.assertEqual(rank.line()["version"], 1)
        self.assertEqual([state for state, _ in self.attempts()], ["ABORTED", "READY"])
        self.expect_installed(self.follower, 1)
        self.expect_bytes_of("follower", 2)

    def test_with_the_same_weights_goes_on_in_the_same_version(self):
        self.start_anew(0, 1)
        self.assertEqual(self.attempts(), [("READY", "")])
        late = self.replica("late", "--version", "1", "--hold", "--trainers-only")
        self.expect_installed(late, 1)
        self.expect_bytes_of("late", 1)
        self.publish(self.ranks, 2)
        self.expect_installed(self.follower, 2)  # and nothing in between
        self.verify("follower", 2)


class ADirectoryThatLosesItsRecords(ARankThatIsStartedAnew):
    """With leases so short that ranks notice within a second."""
    test_with_other_weights_ends_the_attempt_and_the_next_one_needs_all_ranks = None
    test_with_the_same_weights_goes_on_in_the_same_version = None
    test_all_with_another_number_of_ranks_publish_in_whatever_order_they_come = None

    def trainers(self, *more):
        return super().trainers("--lease", "3", *more)

    def trainer(self, rank, *more, first=1):
        return super().trainer(rank, *(more or ("--lease", "3")), first=first)

    def replica(self, name, *more):
        return super().replica(name, "--lease", "3", *more)

    def lose_records(self, dead_rank=None):
        self.directory.signal(signal.SIGKILL)
        self.directory.wait()
        if dead_rank is not None:
            self.ranks[dead_rank].signal(signal.SIGKILL)
            self.ranks[dead_rank].wait()
        self.directory = self.start("serve", "--listen", self.address, "--json")
        self.directory.line()

    def known(self):
        said = subprocess.run([flow_case.WEIR, "top", "--json", "--directory", self.address],
                              capture_output=True, text=True, timeout=flow_case.WAIT_S, check=True)
        return {(one["version"], one["attempt"]): one for one in json.loads(said.stdout)["versions"]}

    def await_state(self, version, attempt, state):
        until = time.monotonic() + flow_case.WAIT_S
        while self.known().get((version, attempt), {}).get("state") != state:
            self.assertLess(time.monotonic(), until, self.known())
            time.sleep(0.05)
        return self.known()[version, attempt]

    def publish_anew(self, rank, checkpoint):
        self.ranks[rank] = self.trainer(rank)
        self.ranks[rank].send(self.checkpoint(checkpoint))
        self.assertEqual(self.ranks[rank].line()["version"], 1)

    def expect_no_mixture(self):
        late = self.replica("late", "--version", "1", "--timeout", "1", "--trainers-only")
        code, error = late.wait()
        self.assertNotEqual(code, 0, error)
        self.expect_bytes_of("follower", 1)

    def test_is_told_by_the_same_ranks_and_has_the_version_again(self):
        uid = self.known()[1, 1]["uid"]
        self.lose_records()
        self.assertEqual(self.await_state(1, 1, "READY")["uid"], uid)
        late = self.replica("late", "--version", "1", "--hold", "--trainers-only")
        self.expect_installed(late, 1)
        self.expect_bytes_of("late", 1)

    def test_takes_no_other_weights_beside_those_of_a_rank_that_lives(self):
        self.lose_records(dead_rank=0)
        self.await_state(1, 1, "STAGING")
        self.publish_anew(0, 2)
        self.assertRegex(self.await_state(1, 1, "ABORTED")["reason"],
                         "^the directory was restarted, and rank-0 was started anew as trainer-0-")
        self.expect_no_mixture()
        self.ranks[1].signal(signal.SIGKILL)
        self.ranks[1].wait()
        self.publish_anew(1, 2)
        self.expect_installed(self.follower, 1)
        self.expect_bytes_of("follower", 2)

    def test_takes_no_rank_that_lives_beside_other_weights_that_came_first(self):
        self.lose_records(dead_rank=0)
        self.publish_anew(0, 2)
        deadline = time.monotonic() + flow_case.WAIT_S
        lines = self.ranks[1].process.stderr
        wait = select.poll()
        wait.register(lines, select.POLLIN)
        said = b""
        while b"went on as attempt 1 without what" not in said and b"not known" not in said:
            self.assertTrue(wait.poll(1000 * max(0, deadline - time.monotonic())), said)
            said += os.read(lines.fileno(), 65536)
            if any(one["state"] == "ABORTED" for one in self.known().values()):
                break  # the rank that lives was there first after all
        self.expect_no_mixture()

    def test_goes_on_with_a_version_that_a_rank_had_published_alone(self):
        self.ranks[0].send(self.checkpoint(2))
        self.assertEqual(self.ranks[0].line()["version"], 2)
        self.lose_records()
        self.ranks[1].send(self.checkpoint(2))
        self.assertEqual(self.ranks[1].line()["version"], 2)
        self.await_state(2, 1, "READY")
        self.expect_installed(self.follower, 2)
        self.expect_bytes_of("follower", 2)


if __name__ == "__main__":
    unittest.main()
