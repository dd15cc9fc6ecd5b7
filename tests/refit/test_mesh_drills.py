# SPDX-License-Identifier: Apache-2.0
"""Sharded trainers and parallel engines as real processes, when one of them comes, goes, is killed at
each stop, stalls, or was started with something else than the others."""
import glob
import json
import os
import signal
import struct
import subprocess
import time
import unittest

from flow_case import WAIT_S, WEIR, FlowCase

BOUND_S = 3
SETTLED = {"allocations": 0, "registrations": 0, "plans": 0, "connections": 0}


class MeshFlow(FlowCase):
    """Four ranks that borrow rows of each other, engines of two workers."""
    family = "qwen3_moe"
    mesh = "fsdp=2,ep=2"
    engine_mesh = "tp=2"
    n_ranks = 4
    n_workers = 2

    def rank(self, number, *more, first=1, mesh=None, engine=None):
        return self.start("publish", "--follow", "--version", str(first), "--rank", str(number),
                          "--mesh", mesh or self.mesh, "--replica-mesh",
                          engine or self.engine_mesh, *self.flow, *more)

    def ranks(self, *more):
        return [self.rank(number, *more) for number in range(self.n_ranks)]

    def worker(self, engine, number, *more, mesh=None):
        return self.replica(f"{engine}-{number}", "--replica-mesh", mesh or self.engine_mesh,
                            "--worker", str(number), *more)

    def engine(self, name, *more):
        return [self.worker(name, number, *more) for number in range(self.n_workers)]

    def send(self, ranks, version):
        for rank in ranks:
            rank.send(self.checkpoint(version))

    def expect_published(self, rank, version):
        said = rank.line()
        self.assertIsNotNone(said, "the rank has ended")
        self.assertEqual((said["event"], said["version"]), ("published", version), said)
        return said

    def publish(self, trainers, version):
        self.send(trainers, version)
        return [self.expect_published(rank, version) for rank in trainers]

    def expect_all_installed(self, workers, version):
        return [self.expect_installed(worker, version) for worker in workers]

    def run_verify_worker(self, engine, number, checkpoint, *more):
        return subprocess.run([WEIR, "verify", self.checkpoint(checkpoint), "--replica",
                               f"{engine}-{number}", "--replica-mesh", self.engine_mesh,
                               "--worker", str(number), *self.flow, *more], capture_output=True,
                              text=True, timeout=WAIT_S, check=False)

    def verify_worker(self, engine, number, version, *more, held=None):
        """The worker holds exactly its part of this checkpoint, as version `held`."""
        result = self.run_verify_worker(engine, number, version, *more)
        self.assertEqual(result.returncode, 0, result.stderr)
        answer = json.loads(result.stdout)
        self.assertTrue(answer["verified"])
        self.assertEqual(answer["version"], held or version)
        self.assertGreater(answer["parameters"], 0)

    def verify_engine(self, engine, version, *more):
        for number in range(self.n_workers):
            self.verify_worker(engine, number, version, *more)


class WhenEnginesComeAndGo(MeshFlow):
    versions = 4

    def test_only_their_own_part_changes(self):
        ranks = self.ranks()
        stays, leaves = self.engine("stays", "--follow"), self.engine("leaves", "--follow")
        self.publish(ranks, 1)
        self.expect_all_installed(stays + leaves, 1)
        self.verify_engine("stays", 1)  # whose first call takes memory in the worker
        comes = self.engine("comes", "--follow", "--version", "2")
        reports = self.publish(ranks, 2)
        self.expect_all_installed(stays + leaves + comes, 2)
        for engine in ("stays", "leaves", "comes"):
            self.verify_engine(engine, 2)
        for worker in leaves:
            worker.signal(signal.SIGTERM)
            self.assertEqual(worker.wait()[0], 0)
        for version in (3, 4):
            reports += self.publish(ranks, version)
            reports += self.expect_all_installed(stays, version)
            last = self.expect_all_installed(comes, version)
            self.verify_engine("stays", version)
            self.verify_engine("comes", version)
        for report in reports + last:
            self.assertEqual(report["counters"], SETTLED, report)


class Scene:
    """Ranks and one engine under a run of their own: several are played side by side, so that
    their waits overlap."""

    def __init__(self, case, name, doomed, *drill):
        self.case, self.name, self.doomed = case, name, doomed
        self.flow = ["--run", name, "--timeout", str(BOUND_S), "--lease", "2"]
        self.ranks = [case.rank(number, *self.flow, *(drill if number == doomed else ()))
                      for number in range(case.n_ranks)]
        self.workers = case.engine(name, "--follow", *self.flow)
        self.good = [rank for number, rank in enumerate(self.ranks) if number != doomed]

    def restart(self, version):
        self.ranks[self.doomed] = self.case.rank(self.doomed, *self.flow, first=version)

    def publish_and_install(self, version):
        self.case.publish(self.ranks, version)
        self.case.expect_all_installed(self.workers, version)
        self.case.verify_engine(self.name, version, *self.flow)


class WhenARankIsLost(MeshFlow):
    versions = 5

    def begin(self, scenes):
        for scene in scenes:
            self.publish(scene.ranks, 1)
        for scene in scenes:
            self.expect_all_installed(scene.workers, 1)

    def expect_end(self, rank, version, number):
        """It published, or says within its bound which rank has not lent which version."""
        said = rank.line()
        self.assertIsNotNone(said, "the rank has ended")
        self.assertEqual(said["version"], version)
        if said["event"] == "failed":
            self.assertIn(f"rank {number}", said["error"])
            self.assertIn(f"version {version}", said["error"])
        return said["event"] == "failed"

    def test_killed_at_each_stop_the_others_name_it_and_the_next_version_takes_it_back(self):
        stops = ("source", "stage", "stage+", "slot", "publish")
        scenes = [Scene(self, stop.replace("+", "-midst"), 1, "--die-at", f"{stop}:2")
                  for stop in stops]
        self.begin(scenes)
        begun = time.monotonic()
        for scene in scenes:
            self.send(scene.ranks, 2)
        late = [self.worker(scene.name + "-late", 0, *scene.flow, "--version", "2")
                for scene in scenes]
        for scene in scenes:
            with self.subTest(stop=scene.name):
                self.assertEqual(scene.ranks[1].wait()[0], -signal.SIGKILL)
                failed = [self.expect_end(rank, 2, 1) for rank in scene.good]
                if scene.name in ("source", "stage"):  # it has lent nothing
                    self.assertIn(True, failed)
                if True not in failed:
                    self.expect_failed(late[scenes.index(scene)], "version 2", "rank-1")
        self.assertLess(time.monotonic() - begun, 2 * BOUND_S + 4)
        for scene in scenes:
            with self.subTest(stop=scene.name):
                self.verify_engine(scene.name, 1, *scene.flow)
                scene.restart(3)
                scene.publish_and_install(3)

    def test_halted_before_and_after_it_lends_it_goes_on_with_the_next_version(self):
        scenes = [Scene(self, "before", 2, "--stall-at", "stage:2"),
                  Scene(self, "after", 2, "--stall-at", "stage+:2")]
        self.begin(scenes)
        begun = time.monotonic()
        for scene in scenes:
            self.send(scene.ranks, 2)
        for scene in scenes:
            failed = [self.expect_end(rank, 2, 2) for rank in scene.good]
            if scene.name == "before":
                self.assertIn(True, failed)
        self.assertLess(time.monotonic() - begun, 2 * BOUND_S + 4)
        for scene in scenes:
            with self.subTest(stop=scene.name):
                self.verify_engine(scene.name, 1, *scene.flow)
                scene.ranks[2].signal(signal.SIGCONT)
                self.expect_published(scene.ranks[2], 2)  # of which the others have lent
                scene.publish_and_install(3)

    def test_halted_for_longer_than_rows_are_kept_it_says_so_and_catches_up(self):
        scene = Scene(self, "long", 2, "--stall-at", "stage:2")
        self.begin([scene])
        for version in (2, 3, 4):
            self.send(scene.ranks, version)
        for version in (2, 3, 4):
            self.assertIn(True, [self.expect_end(rank, version, 2) for rank in scene.good])
        scene.ranks[2].signal(signal.SIGCONT)
        said = scene.ranks[2].line()
        self.assertEqual((said["event"], said["version"]), ("failed", 2), said)
        self.assertIn("rows of version 2 from rank", said["error"])
        self.assertIn("version 4 already", said["error"])
        self.expect_published(scene.ranks[2], 3)
        self.expect_published(scene.ranks[2], 4)
        scene.publish_and_install(5)


class WhenAWorkerIsLost(MeshFlow):
    versions = 4

    def test_at_each_stop_the_others_go_on_and_it_comes_back(self):
        stops = ("transfer+", "install", "postprocess")
        flow = ("--lease", "2")
        ranks = self.ranks(*flow)
        good = self.engine("good", "--follow", *flow)
        halves = [self.worker(stop.strip("+"), 0, "--follow", *flow) for stop in stops]
        doomed = [self.worker(stop.strip("+"), 1, "--follow", "--die-at", stop + ":2", *flow)
                  for stop in stops]
        self.publish(ranks, 1)
        self.expect_all_installed(good + halves + doomed, 1)
        reports = self.publish(ranks, 2)
        for worker in doomed:
            self.assertEqual(worker.wait()[0], -signal.SIGKILL)
        self.expect_all_installed(good + halves, 2)
        self.verify_engine("good", 2)
        again = [self.worker(stop.strip("+"), 1, "--follow", *flow) for stop in stops]
        self.expect_all_installed(again, 2)
        for version in (3, 4):  # the leases of the dead ones end by themselves
            reports += self.publish(ranks, version)
            self.expect_all_installed(good + halves + again, version)
        for engine in ("good", "transfer", "install", "postprocess"):
            self.verify_engine(engine, 4)
        for report in reports:
            self.assertEqual(report["counters"], SETTLED, report)


if __name__ == "__main__":
    unittest.main()
