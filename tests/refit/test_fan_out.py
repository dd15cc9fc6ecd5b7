# SPDX-License-Identifier: Apache-2.0
"""Replicas that read from each other, as real processes: bytes leave the trainer fewer times than
there are replicas, every replica is verified, and whoever dies costs nobody its version."""
import signal
import unittest

import flow_case

N_REPLICAS = 8
ONE_RANK = ["--ranks", "1"]


class FanOut(flow_case.FlowCase):
    family = "llama"

    def trainer_of_one_rank(self, *more):
        return self.start("publish", "--follow", "--version", "1", "--rank", "0", *ONE_RANK,
                          *self.flow, *more)

    def follow(self, name, *more):
        return self.replica(name, "--follow", *more)

    def expect_all(self, replicas, version):
        """What each said, by name."""
        return {name: self.expect_installed(replica, version)
                for name, replica in replicas.items()}

    def expect_read_from(self, replica, source):
        self.assertEqual(flow_case.name_of(self.expect_installed(replica, 1)["read_from"]), source)

    def expect_tree(self, said, n_direct):
        """Who read from whom: every peer is another replica that holds the same version."""
        sources = {name: flow_case.name_of(one["read_from"]) for name, one in said.items()}
        for name, source in sources.items():
            self.assertIn(source, [""] + [other for other in sources if other != name])
        direct = [name for name, source in sources.items() if source == ""]
        self.assertGreaterEqual(len(direct), 1)
        self.assertLessEqual(len(direct), n_direct, sources)
        for name in sources:  # no two read from each other, in however many steps
            steps = 0
            while sources[name] != "":
                name = sources[name]
                steps += 1
                self.assertLess(steps, len(sources))

    def test_replicas_that_come_one_after_another_and_all_at_once(self):
        trainer = self.trainer_of_one_rank()
        replicas, said = {}, {}
        self.publish([trainer], 1)
        for i in range(N_REPLICAS):
            name = f"one-{i}"
            replicas[name] = self.follow(name, "--peer-wait", "20",
                                         *(["--install", "direct"] if i % 2 else []))
            said[name] = self.expect_installed(replicas[name], 1)
        self.expect_tree(said, 1)
        for name in replicas:
            self.verify(name, 1)
        for version in (2, 3):
            self.publish([trainer], version)
            self.expect_tree(self.expect_all(replicas, version), N_REPLICAS // 2)
        for name in replicas:
            self.verify(name, 3)

    def test_the_trainer_may_die_once_one_replica_holds_the_version(self):
        trainer = self.trainer_of_one_rank()
        self.publish([trainer], 1)
        first = self.follow("first")
        self.expect_installed(first, 1)
        trainer.signal(signal.SIGKILL)
        trainer.process.wait(flow_case.WAIT_S)
        second = self.follow("second")
        self.expect_read_from(second, "first")
        self.verify("second", 1)

    def test_the_trainer_may_end_in_order_and_replicas_give_its_version_on(self):
        trainer = self.trainer_of_one_rank()
        for version in (1, 2):
            self.publish([trainer], version)
        first = self.follow("first")
        self.expect_installed(first, 2)
        trainer.signal(signal.SIGTERM)
        trainer.process.wait(flow_case.WAIT_S)
        second = self.follow("second")
        self.assertEqual(flow_case.name_of(self.expect_installed(second, 2)["read_from"]), "first")
        self.verify("second", 2)
        first.signal(signal.SIGTERM)  # the one that is left gives it on as well
        first.process.wait(flow_case.WAIT_S)
        third = self.follow("third", "--install", "direct")
        self.assertEqual(flow_case.name_of(self.expect_installed(third, 2)["read_from"]), "second")
        trainer = self.start("publish", "--follow", "--version", "3", "--rank", "0", *ONE_RANK,
                             *self.flow)
        self.publish([trainer], 3)
        for name, replica in (("second", second), ("third", third)):
            self.expect_installed(replica, 3)
            self.verify(name, 3)

    def test_a_peer_that_was_killed_is_left_for_the_trainer(self):
        trainer = self.trainer_of_one_rank()
        self.publish([trainer], 1)
        first = self.follow("first")
        self.expect_installed(first, 1)
        first.signal(signal.SIGKILL)
        first.process.wait(flow_case.WAIT_S)
        second = self.follow("second")
        self.expect_read_from(second, "")
        self.verify("second", 1)
        third = self.follow("third", "--install", "direct")
        self.expect_read_from(third, "second")
        self.verify("third", 1)

    def test_a_peer_that_hangs_is_left_when_its_time_is_up(self):
        trainer = self.trainer_of_one_rank()
        self.publish([trainer], 1)
        first = self.follow("first")
        self.expect_installed(first, 1)
        first.signal(signal.SIGSTOP)
        second = self.follow("second", "--timeout", "2")
        self.expect_read_from(second, "")
        first.signal(signal.SIGCONT)
        self.verify("second", 1)

    def test_workers_of_parallel_engines_read_those_of_their_own_place(self):
        mesh = ["--replica-mesh", "tp=2"]
        trainer = self.trainer_of_one_rank(*mesh, "--config", self.config)
        self.publish([trainer], 1)
        for engine, install in (("one", "staged"), ("two", "direct")):
            for worker in range(2):
                name = f"{engine}-{worker}"
                replica = self.follow(name, *mesh, "--worker", str(worker), "--install", install)
                said = self.expect_installed(replica, 1)
                self.assertEqual(flow_case.name_of(said["read_from"]),
                                 "" if engine == "one" else f"one-{worker}")
        for name, worker in (("two-0", 0), ("two-1", 1)):
            result = flow_case.subprocess.run(
                [flow_case.WEIR, "verify", self.checkpoint(1), "--replica", name, *mesh,
                 "--worker", str(worker), *self.flow], capture_output=True, text=True,
                timeout=flow_case.WAIT_S, check=False)
            self.assertEqual(result.returncode, 0, result.stderr)

    def test_who_wants_no_part_in_it_reads_trainers_and_serves_nobody(self):
        trainer = self.trainer_of_one_rank()
        self.publish([trainer], 1)
        for name, option in (("silent", "--no-serve"), ("alone", "--trainers-only"),
                             ("after", "--no-serve")):
            replica = self.follow(name, option)
            said = self.expect_installed(replica, 1)
            self.assertEqual(flow_case.name_of(said["read_from"]),
                             "alone" if name == "after" else "")


if __name__ == "__main__":
    unittest.main()
