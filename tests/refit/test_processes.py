# SPDX-License-Identifier: Apache-2.0
"""Refits between real processes: what they end up with when all is well, and when one of them is
killed at each stop, stalls, or sends bytes that have changed."""
import glob
import json
import os
import signal
import subprocess
import threading
import time
import unittest

import flow_case
from flow_case import FlowCase

TRAINER_STOPS = ("source", "stage", "slot", "publish")
REPLICA_STOPS = ("discover", "transfer", "install", "postprocess", "ack")


class WhenAllIsWell(FlowCase):
    def test_two_replicas_follow_two_trainer_ranks(self):
        trainers = self.trainers()
        replicas = [self.replica("one", "--follow"),
                    self.replica("two", "--follow", "--install", "direct")]
        for version in (1, 2, 3):
            self.publish(trainers, version)
            for replica in replicas:
                said = self.expect_installed(replica, version)
                if version > 1:
                    self.assertEqual(said["counters"]["plans"], 0)
                    self.assertEqual(said["counters"]["connections"], 0)
            self.verify("one", version)
            self.verify("two", version)

    def test_the_file_transport_leaves_versions_that_others_can_read(self):
        trainers = self.trainers("--transport", "file")
        replica = self.replica("one", "--follow")
        for version in (1, 2):
            self.publish(trainers, version)
            self.expect_installed(replica, version)
            self.verify("one", version)
        files = [os.path.basename(path) for path in glob.glob(self.folder + "/*/*")]
        for rank in (0, 1):
            for kind in ("safetensors", "manifest.json", "ready"):
                self.assertTrue([name for name in files if f"rank-{rank}" in name and
                                 name.endswith(kind)], files)

    def test_a_trainer_that_was_told_how_many_replicas_ends_by_itself(self):
        replica = self.replica("one", "--version", "1", "--hold")
        ranks = [self.start("publish", self.checkpoint(1), "--version", "1", "--rank", str(rank),
                            "--ranks", "2", "--replicas", "1", *self.flow) for rank in (0, 1)]
        self.expect_installed(replica, 1)
        for rank in ranks:
            self.assertEqual(rank.wait(), (0, ""))

    def test_sigterm_ends_every_process_at_once(self):
        trainers = self.trainers()
        replica = self.replica("one", "--follow")
        self.publish(trainers, 1)
        self.expect_installed(replica, 1)
        for process in (replica, *trainers, self.directory):
            begun = time.monotonic()
            process.signal(signal.SIGTERM)
            self.assertEqual(process.wait(5)[0], 0, process.arguments)
            self.assertLess(time.monotonic() - begun, 3)


class WhenATrainerDies(FlowCase):
    def test_at_each_stop_the_replica_keeps_the_old_version_and_names_the_rank(self):
        for stop in TRAINER_STOPS:
            with self.subTest(stop=stop):
                flow = ["--run", stop]
                good = self.trainer(0, *flow)
                doomed = self.trainer(1, *flow, "--die-at", f"{stop}:2")
                replica = self.replica(stop, *flow, "--version", "1", "--hold")
                self.publish([good, doomed], 1)
                self.expect_installed(replica, 1)
                for trainer in (good, doomed):
                    trainer.send(self.checkpoint(2))
                self.assertEqual(doomed.wait()[0], -signal.SIGKILL)
                late = self.replica(stop + "-late", *flow, "--version", "2", "--timeout", "2")
                self.expect_failed(late, "rank-1")
                self.assertEqual(late.wait()[0], 1)
                self.flow += flow
                self.verify(stop, 1)
                self.flow = self.flow[:-2]

    def test_after_publishing_a_replica_is_told_who_is_gone_within_its_bound(self):
        trainers = self.trainers()
        replica = self.replica("one", "--follow", "--timeout", "5")
        self.publish(trainers, 1)
        self.expect_installed(replica, 1)
        trainers[1].signal(signal.SIGKILL)
        trainers[1].wait()
        begun = time.monotonic()
        late = self.replica("late", "--version", "1", "--timeout", "3", "--trainers-only")
        self.expect_failed(late, "could not be read within 3.0 s: trainer rank 1 (worker trainer-1-",
                           " 127.0.0.1:", "Connection refused")
        self.assertTrue(3 <= time.monotonic() - begun < 4.5)
        self.assertEqual(late.wait()[0], 1)
        self.verify("one", 1)

    def test_within_its_lease_a_replica_waits_for_it_to_come_back(self):
        trainers = self.trainers()
        self.publish(trainers, 1)
        trainers[1].signal(signal.SIGKILL)
        trainers[1].wait()
        late = self.replica("late", "--version", "1", "--timeout", "30", "--hold")
        waits = threading.Thread(target=self.expect_installed, args=(late, 1))
        waits.start()
        again = self.trainer(1)
        again.send(self.checkpoint(1))
        self.assertEqual(again.line()["version"], 1)
        waits.join()
        self.verify("late", 1)

    def test_once_its_lease_is_over_the_wait_ends_with_the_rank_that_is_missing(self):
        trainers = self.trainers("--lease", "2")
        self.publish(trainers, 1)
        trainers[1].signal(signal.SIGKILL)
        trainers[1].wait()
        late = self.replica("late", "--version", "1", "--timeout", "5")
        self.expect_failed(late, "these published it, but are gone: rank-1 (worker trainer-1-",
                           "; what was tried last: trainer rank 1 (worker trainer-1-",
                           "Connection refused")
        self.assertEqual(late.wait()[0], 1)

    def test_a_peer_that_holds_the_version_ends_the_wait(self):
        trainers = self.trainers()
        one = self.replica("one", "--version", "1", "--hold")
        self.publish(trainers, 1)
        self.expect_installed(one, 1)
        for trainer in trainers:
            trainer.signal(signal.SIGKILL)
            trainer.wait()
        begun = time.monotonic()
        said = self.expect_installed(self.replica("two", "--version", "1"), 1)
        self.assertEqual(flow_case.name_of(said["read_from"]), "one")
        self.assertLess(time.monotonic() - begun, 5)

    def test_a_restarted_rank_is_taken_instead_of_the_dead_one(self):
        trainers = self.trainers("--lease", "2")
        self.publish(trainers, 1)
        trainers[1].signal(signal.SIGKILL)
        trainers[1].wait()
        again = self.trainer(1, "--lease", "2")
        again.send(self.checkpoint(1))
        self.assertEqual(again.line()["version"], 1)
        replica = self.replica("one", "--version", "1", "--hold")
        self.expect_installed(replica, 1)
        self.verify("one", 1)

    def test_a_plan_does_not_outlive_a_refit_that_met_only_some_of_its_sources(self):
        trainers = self.trainers()
        replica = self.replica("one", "--follow", "--timeout", "2")
        self.publish(trainers, 1)
        self.expect_installed(replica, 1)
        trainers[0].end()
        other = self.trainer(0, "--conversion", "cutlass_fp8_e4m3_per_channel", first=2)
        self.publish([trainers[1]], 2)
        trainers[1].signal(signal.SIGSTOP)
        self.publish([other], 2)
        self.expect_failed(replica, "trainer rank 1")
        trainers[1].signal(signal.SIGCONT)
        self.expect_failed(replica, "compile target is cutlass_fp8 at trainer rank 0")
        self.verify("one", 1)

    def test_that_were_ended_publish_their_numbers_anew(self):
        trainers = self.trainers()
        self.publish(trainers, 1)
        for trainer in trainers:
            trainer.end()
        again = self.trainers()
        for trainer in again:
            trainer.send(self.checkpoint(2))
        for trainer in again:
            self.assertEqual(trainer.line()["version"], 1)
        replica = self.replica("one", "--version", "1", "--hold")
        self.expect_installed(replica, 1)
        result = self.run_verify("one", 2)
        self.assertEqual(result.returncode, 0, result.stderr)

    def test_that_stalls_ends_the_wait_with_its_name(self):
        trainers = self.trainers()
        self.publish(trainers, 1)
        trainers[0].signal(signal.SIGSTOP)
        begun = time.monotonic()
        replica = self.replica("one", "--version", "1", "--timeout", "2")
        self.expect_failed(replica, "trainer rank 0")
        self.assertLess(time.monotonic() - begun, 8)


class WhenATrainerIsEnded(FlowCase):
    """By SIGTERM, while a replica that stands still at the first of its bytes reads from it."""

    def halt_a_reader(self, install, *more):
        trainers = self.trainers("--timeout", "3", *more)
        self.publish(trainers, 1)
        replica = self.replica("one", "--version", "1", "--install", install, "--timeout", "4",
                               "--stall-at", "transfer", "--trainers-only")
        self.until(lambda: self.is_halted(replica))
        return trainers, replica

    def is_halted(self, process):
        with open(f"/proc/{process.process.pid}/stat", encoding="ascii") as stat:
            return stat.read().rsplit(")", 1)[1].split()[0] == "T"

    def test_it_waits_for_the_reader_to_be_done(self):
        for install in ("staged", "direct"):
            with self.subTest(install=install):
                trainers, replica = self.halt_a_reader(install)
                for trainer in trainers:
                    trainer.signal(signal.SIGTERM)
                with self.assertRaises(subprocess.TimeoutExpired):
                    trainers[0].process.wait(1)
                replica.signal(signal.SIGCONT)
                self.expect_installed(replica, 1)
                for trainer in trainers:
                    self.assertEqual(trainer.wait(5), (0, ""))

    def test_beyond_its_bound_the_reader_is_told_who_has_gone(self):
        for install in ("staged", "direct"):
            with self.subTest(install=install):
                trainers, replica = self.halt_a_reader(install)
                for trainer in trainers:
                    trainer.signal(signal.SIGTERM)
                for trainer in trainers:
                    code, line = trainer.wait(8)
                    self.assertEqual(code, 0)
                    self.assertIn("goes, though version 1 is still being read", line)
                replica.signal(signal.SIGCONT)
                said = self.expect_failed(replica, "trainer rank ")
                self.assertNotIn("digest of ", said["error"])

    def test_a_directory_that_is_halted_is_waited_for_no_longer_than_the_bound(self):
        trainers = self.trainers("--timeout", "5", "--lease", "3")
        replica = self.replica("one", "--follow", "--lease", "3")
        self.publish(trainers, 1)
        self.expect_installed(replica, 1)
        self.directory.signal(signal.SIGSTOP)
        time.sleep(1.5)  # by then renewals are under way
        begun = time.monotonic()
        for process in (*trainers, replica):
            process.signal(signal.SIGTERM)
        for process in (*trainers, replica):
            self.assertEqual(process.wait(15)[0], 0)
        self.assertLess(time.monotonic() - begun, 6)
        self.directory.signal(signal.SIGCONT)

    def test_a_second_signal_ends_it_at_once(self):
        trainers, _ = self.halt_a_reader("staged")
        trainers[0].signal(signal.SIGTERM)
        with self.assertRaises(subprocess.TimeoutExpired):
            trainers[0].process.wait(0.7)
        trainers[0].signal(signal.SIGTERM)
        self.assertEqual(trainers[0].process.wait(1), -signal.SIGTERM)


class WhenAReplicaDies(FlowCase):
    def test_at_each_stop_the_others_go_on(self):
        trainers = self.trainers("--lease", "2")
        good = self.replica("good", "--follow", "--lease", "2")
        version = 1
        self.publish(trainers, version)
        self.expect_installed(good, version)
        for stop in REPLICA_STOPS:
            with self.subTest(stop=stop):
                doomed = self.replica("doomed-" + stop, "--version", str(version), "--lease", "2",
                                      "--die-at", stop)
                self.assertEqual(doomed.wait()[0], -signal.SIGKILL)
        # Its leases expire by themselves: both slots can be filled again.
        for version in (2, 3):
            self.publish(trainers, version)
            self.expect_installed(good, version)
            self.verify("good", version)
        reborn = self.replica("doomed-install", "--version", "3", "--hold")
        self.expect_installed(reborn, 3)
        self.verify("doomed-install", 3)

    def entries(self, name):
        """Of that name, as the directory has them: (worker id, status), the newest first."""
        said = subprocess.run([flow_case.WEIR, "top", "--json", "--directory", self.address],
                              capture_output=True, text=True, timeout=flow_case.WAIT_S, check=True)
        return [(entry["worker_id"], entry["status"]) for entry in json.loads(said.stdout)["sources"]
                if flow_case.name_of(entry["worker_id"]) == name]

    def test_one_that_is_started_again_under_its_name_supersedes_the_dead_one_at_once(self):
        trainers = self.trainers()
        self.publish(trainers, 1)
        first = self.replica("one", "--version", "1", "--hold")
        self.expect_installed(first, 1)
        (dead, status), = self.entries("one")
        self.assertEqual(status, "READY")
        second = self.replica("one", "--version", "1", "--hold")
        self.assertIn("replica one of m is running already", second.wait()[1])
        self.assertEqual(self.entries("one"), [(dead, "READY")])
        first.signal(signal.SIGKILL)
        first.wait()
        again = self.replica("one", "--follow")  # there is no later one: it waits
        self.expect_installed(again, 1)
        entries = self.entries("one")
        self.assertEqual([status for _, status in entries if _ != dead], ["READY"])
        self.assertIn((dead, "STALE"), entries)
        self.verify("one", 1)
        again.signal(signal.SIGKILL)
        again.wait()
        self.start("receive", "--name", "one", "--config", self.config, *self.flow, "--version",
                   "2")  # which nobody publishes
        self.until(lambda: "INITIALIZING" in [status for _, status in self.entries("one")])
        self.assertNotIn("READY", [status for _, status in self.entries("one")])

    def test_models_have_names_of_their_own(self):
        for model in ("m", "other"):
            self.flow[self.flow.index("--model") + 1] = model
            self.publish(self.trainers(), 1)
            self.expect_installed(self.replica("one", "--version", "1", "--hold"), 1)
            self.verify("one", 1)


class WhenTheDirectoryIsStartedAgain(FlowCase):
    def serve_again(self):
        self.directory.end()
        self.directory = self.start("serve", "--listen", self.address, "--json")
        self.directory.line()

    def test_it_hears_by_itself_what_was_published_and_who_holds_it(self):
        trainers = self.trainers("--lease", "2")
        one = self.replica("one", "--follow", "--lease", "2")
        for version in (1, 2):
            self.publish(trainers, version)
            self.expect_installed(one, version)
        self.serve_again()
        for name, version in (("newest", 2), ("older", 1)):
            late = self.replica(name, "--version", str(version), "--trainers-only", "--no-serve",
                                "--hold")
            self.expect_installed(late, version)
            self.verify(name, version)
        for trainer in trainers:
            trainer.signal(signal.SIGKILL)
            trainer.wait()
        reader = self.replica("reader", "--version", "2", "--hold")
        self.assertEqual(flow_case.name_of(self.expect_installed(reader, 2)["read_from"]), "one")
        self.verify("reader", 2)

    def test_versions_that_were_published_again_end_like_others(self):
        trainers = self.trainers("--lease", "2", "--slots", "1")
        replica = self.replica("one", "--follow", "--lease", "2")
        self.publish(trainers, 1)
        self.expect_installed(replica, 1)
        self.serve_again()
        self.expect_installed(self.replica("late", "--version", "1", "--hold"), 1)
        self.publish(trainers, 2)  # into the same slot
        self.expect_installed(replica, 2)
        gone = self.replica("gone", "--version", "1", "--timeout", "5", "--trainers-only")
        self.expect_failed(gone, "version 1 of m is gone: its trainer has moved on to 2")

    def test_everybody_goes_on_with_the_next_version(self):
        trainers = self.trainers("--lease", "2")
        replica = self.replica("one", "--follow", "--lease", "2", "--timeout", "20")
        self.publish(trainers, 1)
        self.expect_installed(replica, 1)
        self.directory.end()
        self.expect_failed(replica, f"directory {self.address}")
        self.serve_again()
        for version in (2, 3):
            self.publish(trainers, version)
            self.expect_installed(replica, version)
            self.verify("one", version)


class WhenBytesChange(FlowCase):
    def corrupt(self, version):
        for path in glob.glob(self.folder + f"/*/v{version:08d}*rank-1*.safetensors"):
            size = os.path.getsize(path)
            with open(path, "r+b") as stream:
                stream.seek(size - 4096)
                byte = stream.read(1)
                stream.seek(size - 4096)
                stream.write(bytes([byte[0] ^ 1]))
            return
        self.fail("no file of rank 1 was found")

    def test_a_staged_replica_keeps_its_old_version(self):
        trainers = self.trainers("--transport", "file")
        replica = self.replica("one", "--version", "1", "--hold")
        self.publish(trainers, 1)
        self.expect_installed(replica, 1)
        self.publish(trainers, 2)
        self.corrupt(2)
        late = self.replica("two", "--version", "2")
        said = self.expect_failed(late, "digest of ", "trainer rank 1", "arrived")
        self.assertEqual(said["state"], "empty")
        self.assertEqual(late.wait()[0], 1)
        self.verify("one", 1)

    def test_a_direct_replica_is_unusable_until_the_next_good_version(self):
        trainers = self.trainers("--transport", "file")
        self.publish(trainers, 1)
        self.corrupt(1)
        replica = self.replica("one", "--follow", "--install", "direct")
        said = self.expect_failed(replica, "digest of ", "unusable")
        self.assertEqual(said["state"], "unusable")
        self.publish(trainers, 2)
        while said["event"] != "installed":
            said = replica.line()
        self.assertEqual(said["version"], 2)
        self.verify("one", 2)


class WhenSomethingIsWrong(FlowCase):
    def failure(self, *arguments):
        process = self.start(*arguments)
        code, line = process.wait()
        self.assertEqual(code, 1, line)
        self.assertTrue(line.startswith("weir: "), line)
        return line

    def test_a_directory_that_is_down_fails_at_once(self):
        self.directory.end()
        begun = time.monotonic()
        for arguments in (("publish", self.checkpoint(1), "--version", "1", *self.flow),
                          ("receive", "--config", self.config, *self.flow),
                          ("verify", self.checkpoint(1), "--replica", "x", *self.flow)):
            self.assertIn(f"directory {self.address}", self.failure(*arguments).replace(": ", " "))
        self.assertLess(time.monotonic() - begun, 10)

    def test_a_tag_that_does_not_match_is_refused_with_both_sides(self):
        self.publish(self.trainers(), 1)
        replica = self.replica("one", "--version", "1", "--conversion",
                               "cutlass_fp8_e4m3_per_channel")
        self.expect_failed(replica, "trainer rank")
        self.assertEqual(replica.wait()[0], 1)

    def test_what_fails_again_and_again_is_said_once(self):
        self.publish(self.trainers(), 1)
        replica = self.replica("one", "--follow", "--conversion", "cutlass_fp8_e4m3_per_channel")
        self.expect_failed(replica, "compile target")
        time.sleep(1)
        replica.signal(signal.SIGTERM)
        output, errors = replica.process.communicate(timeout=5)
        self.assertEqual((output, errors.count(b"compile target")), (b"", 1))

    def test_a_replica_of_another_model_knows_no_trainer(self):
        self.publish(self.trainers(), 1)
        replica = self.replica("one", "--model", "other", "--timeout", "1")
        self.expect_failed(replica, "other", "knows no trainer")

    def test_a_port_that_is_taken_is_named(self):
        line = self.failure("serve", "--listen", self.address)
        self.assertIn(self.address, line)
        self.assertIn("in use", line)

    def test_verify_finds_a_replica_that_holds_something_else(self):
        trainers = self.trainers()
        replica = self.replica("one", "--follow")
        self.publish(trainers, 1)
        self.expect_installed(replica, 1)
        line = self.failure("verify", self.checkpoint(2), "--replica", "one", *self.flow)
        self.assertIn("parameters differ: model.", line)
        self.assertIn("in the replica", line)

    def test_verify_of_an_unknown_replica_says_so(self):
        line = self.failure("verify", self.checkpoint(1), "--replica", "nobody", *self.flow)
        self.assertIn("knows no replica nobody of m", line)


if __name__ == "__main__":
    unittest.main()
