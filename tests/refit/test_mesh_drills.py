# SPDX-License-Identifier: Apache-2.0
"""Sharded trainers and parallel engines as real processes, when one of them comes, goes, is killed
at each stop, stalls, or was started with something else than the others."""
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

    def setUp(self):
        super().setUp()
        # A thread takes its scratch with its first task, whichever version that is of.
        self.flow += ["--threads", "1"]

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

    def __init__(self, case, name, doomed, *drill, bound_s=BOUND_S):
        self.case, self.name, self.doomed = case, name, doomed
        self.flow = ["--run", name, "--timeout", str(bound_s), "--lease", "2"]
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

    def test_started_again_while_the_others_wait_it_is_taken_for_the_same_version(self):
        scene = Scene(self, "soon", 1, "--die-at", "stage:2", bound_s=20)
        self.begin([scene])
        self.send(scene.ranks, 2)
        self.assertEqual(scene.ranks[1].wait()[0], -signal.SIGKILL)
        scene.restart(2)
        self.send([scene.ranks[1]], 2)
        for rank in scene.ranks:
            self.expect_published(rank, 2)
        self.expect_all_installed(scene.workers, 2)
        self.verify_engine(scene.name, 2, *scene.flow)

    def test_halted_while_it_waits_for_another_it_ends_at_once_when_it_goes_on(self):
        scene = Scene(self, "wait", 2, "--stall-at", "stage:2", bound_s=2)
        self.begin([scene])
        self.send(scene.ranks, 2)
        time.sleep(0.5)
        scene.ranks[0].signal(signal.SIGSTOP)
        ended = [self.expect_end(scene.ranks[number], 2, 2) for number in (1, 3)]
        for number in (0, 2):
            scene.ranks[number].signal(signal.SIGCONT)
        self.assertIn(True, ended)
        said = scene.ranks[0].line()
        self.assertEqual(said["version"], 2)
        if said["event"] == "failed":
            self.assertIn("for rows of version 2 from rank", said["error"])
        self.expect_published(scene.ranks[2], 2)
        scene.publish_and_install(3)

    def test_halted_for_longer_than_rows_are_kept_it_says_so_and_catches_up(self):
        scene = Scene(self, "long", 2, "--stall-at", "stage:2", bound_s=2)
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



class WhenSomebodyWasToldSomethingElse(MeshFlow):
    """None of these may end in bytes that are wrong: somebody says what differs, in time."""

    def changed_config(self, **changes):
        with open(self.config, encoding="utf-8") as stream:
            config = json.load(stream)
        path = os.path.join(self.folder, "-".join(changes) + ".json")
        with open(path, "w", encoding="utf-8") as stream:
            json.dump({**config, **changes}, stream)
        return path

    def test_workers_are_refused_with_both_sides(self):
        self.publish(self.ranks(), 1)
        engines = "for engines of tp=2,ep=1,dp=1,pp=1,pad=64,experts=contiguous"
        heads = self.changed_config(num_attention_heads=8)
        layers = self.changed_config(num_hidden_layers=4)
        cases = {
            "one": (("--worker", "0"), engines, "this replica is of one worker"),
            "ep": (("--replica-mesh", "tp=2,ep=2"), engines, "this replica is of tp=2,ep=2"),
            "pad": (("--replica-mesh", "tp=2,pad=128"), engines, "pad=128"),
            "experts": (("--replica-mesh", "tp=2,ep=2", "--replica-experts",
                         "[[7,6,5,4],[3,2,1,0]]"), engines, "experts="),
            "channel": (("--replica-mesh", "tp=2", "--conversion",
                         "cutlass_fp8_e4m3_per_channel"), "compile target is deep_gemm_fp8",
                        "this replica needs cutlass_fp8"),
            "bf16": (("--replica-mesh", "tp=2", "--conversion", "bf16_cast"), "dtype is F8_E4M3",
                     "this replica needs BF16"),
            "heads": (("--replica-mesh", "tp=2", "--config", heads), "qkv_proj.weight: shape is "
                      "[512, 192] at trainer rank 0", "this replica needs [768, 192]"),
            "layers": (("--replica-mesh", "tp=2", "--config", layers), "model.layers.3.",
                       "no source publishes it"),
            "number": (("--replica-mesh", "tp=2", "--worker", "2"), "worker 2",
                       "an engine of 'tp=2' has 2"),
            "many": (("--replica-mesh", "tp=8"), "4 heads do not divide over 8 workers"),
            "maps": (("--replica-mesh", "tp=2,ep=2", "--replica-experts", "[[0,1,2,3],[4,5,6]]"),
                     "no expert rank of a replica holds expert 7"),
        }
        workers = {name: self.replica(name, "--version", "1", *arguments)
                   for name, (arguments, *_) in cases.items()}
        for name, (_, *words) in cases.items():
            with self.subTest(name=name):
                code, line = workers[name].wait()
                self.assertEqual(code, 1, line)
                for word in words:
                    self.assertIn(word, line)

    def play(self, name, odd, odd_ranks=(1,), mesh=None, n_ranks=4):
        """Version 1 of ranks of which some are started otherwise, with a worker that wants it."""
        flow = ("--run", name, "--timeout", str(BOUND_S))
        usual = ("--mesh", mesh or self.mesh, "--replica-mesh", self.engine_mesh)
        ranks = [self.start("publish", "--follow", "--version", "1", "--rank", str(number),
                            *self.flow, *usual, *(odd if number in odd_ranks else ()), *flow)
                 for number in range(n_ranks)]
        worker = self.worker(name, 0, "--version", "1", *flow)
        self.send(ranks, 1)
        return ranks, worker

    def errors_of(self, ranks):
        """What each rank ends version 1 with; None: it was published."""
        errors = []
        for rank in ranks:
            said = rank.line()
            errors.append(rank.wait()[1] if said is None else said.get("error"))
        return errors

    def test_ranks_that_plan_otherwise_are_refused_by_name(self):
        otherwise = "trainer rank 1 (worker trainer-1-"
        same = "give all ranks the same"
        cases = {
            "fsdp": (("--mesh", "fsdp=4"), otherwise, "fsdp=4 to engines of", "fsdp=2,ep=2 to",
                     same),
            "ranks": (("--mesh", "fsdp=8"), otherwise, "trainer rank 1 of 8, not 1 of 4"),
            "engine": (("--replica-mesh", "tp=2,pad=128"), otherwise, "pad=128", "pad=64", same),
            "worker": (("--replica-mesh", "tp=1"), otherwise, "engines of one worker", same),
            "owners": (("--expert-owners", "[1,1,1,1,0,0,0,0]"), otherwise, "owners=8", same),
            "masters": (("--keep-masters",), otherwise, "masters kept", same),
            "layout": (("--conversion", "bf16_cast"), "version 1 from rank 1", "lent nothing",
                       "same mesh, config.json and conversion?"),
            "config": (("--config", self.changed_config(num_hidden_layers=2)),
                       "version 1 from rank 1", "it has not announced itself"),
        }
        begun = time.monotonic()
        scenes = {name: self.play(name, odd) for name, (odd, *_) in cases.items()}
        for name, (_, *words) in cases.items():
            with self.subTest(name=name):
                ranks, worker = scenes[name]
                errors = self.errors_of(ranks)
                for word in words:
                    self.assertIn(word, errors[0])
                said = worker.line()
                self.assertEqual(said["event"], "failed", said)
        self.assertLess(time.monotonic() - begun, 3 * BOUND_S + 6)

    def test_expert_maps_that_cover_the_model_together_are_told_apart(self):
        # All shards fit: the magnitudes that ranks 4 and 5 lend are of other experts.
        ranks, worker = self.play("maps", ("--expert-owners", "[1,1,1,1,0,0,0,0]"), (4, 5),
                                  mesh="fsdp=3,ep=2", n_ranks=6)
        errors = [error for error in self.errors_of(ranks) if error is not None]
        self.assertTrue(errors)
        for error in errors:
            self.assertIn("shards the model otherwise", error)
        self.assertEqual(worker.line()["event"], "failed")

    def test_ranks_without_borders_are_told_apart_by_the_replica(self):
        # Whole experts on each rank: nobody lends, so the worker is the first to see it.
        ranks, worker = self.play("whole", ("--mesh", "ep=2,dense_whole=1"), (1,),
                                  mesh="ep=2", n_ranks=2)
        errors = [error for error in self.errors_of(ranks) if error is not None]
        said = worker.line()
        self.assertEqual(said["event"], "failed", said)
        if not errors:
            self.assertIn("give all ranks the same meshes", said["error"])

    def test_meshes_that_cannot_be_read_are_usage_errors(self):
        trainers = ("fsdp=2,data=3", "fsdp=2,fsdp=2", "fsdp=0", "fsdp=99999", "fsdp=65536,ep=2",
                    "fsdp=-1", "fsdp=", "fsdp=2,", "fsdp=4294967298", "sender=1")
        replicas = ("tp=2,cp=3", "tp=2,tp=2", "tp=0", "tp=99999", "tp=65536,dp=2", "tp=2,ep=4",
                    "ep=3")
        for verb, option, texts in (("publish", "--mesh", trainers),
                                    ("publish", "--replica-mesh", replicas),
                                    ("receive", "--replica-mesh", replicas)):
            for text in texts:
                with self.subTest(verb=verb, text=text):
                    result = subprocess.run([WEIR, verb, option, text], capture_output=True,
                                            text=True, timeout=WAIT_S, check=False)
                    self.assertEqual(result.returncode, 2, result.stderr)
                    self.assertIn(option, result.stderr)
                    self.assertIn("mesh: ", result.stderr)

    def test_ranks_that_cannot_be_are_refused_before_anything_is_published(self):
        cases = ((("--mesh", self.mesh, "--expert-owners", "[0,1,0]"),
                  "8 experts, the trainer's owner map has 3"),
                 (("--mesh", self.mesh, "--expert-owners", "[0,1,0,1,0,1,0,2]"),
                  "expert 7: expected an expert rank below ep=2"),
                 (("--mesh", self.mesh, "--rank", "4"), "trainer rank 4: of 4 ranks"),
                 (("--mesh", self.mesh, "--ranks", "3"),
                  "3 trainer ranks, but the mesh fsdp=2,ep=2 has 4"),
                 (("--mesh", self.mesh, "--replica-mesh", "tp=8"),
                  "4 heads do not divide over 8 workers"))
        for arguments, words in cases:
            with self.subTest(words=words):
                rank = self.start("publish", self.checkpoint(1), "--version", "1",
                                  "--replica-mesh", "tp=2", *self.flow, *arguments)
                code, line = rank.wait()
                self.assertEqual(code, 1)
                self.assertIn(words, line)


def patch_tensor(path, name, index, value):
    """Writes one element of a tensor of a safetensors file; its shape."""
    with open(path, "r+b") as stream:
        n_bytes = struct.unpack("<Q", stream.read(8))[0]
        entry = json.loads(stream.read(n_bytes))[name]
        stream.seek(8 + n_bytes + entry["data_offsets"][0] + index * len(value))
        stream.write(value)
    return entry["shape"]


class WhenAWeightIsNotFinite(MeshFlow):
    def test_its_rank_names_it_and_replicas_keep_the_version_before(self):
        name = "model.layers.1.self_attn.o_proj.weight"
        flow = ("--timeout", str(BOUND_S))
        ranks, workers = self.ranks(*flow), self.engine("one", "--follow", *flow)
        self.publish(ranks, 1)
        self.expect_all_installed(workers, 1)
        shape = patch_tensor(os.path.join(self.checkpoint(2), "model.safetensors"), name,
                             192 * 512 - 1, b"\xc0\x7f")
        self.assertEqual(shape, [192, 512])
        self.send(ranks, 2)
        said = [rank.line() for rank in ranks]
        self.assertIn(f"trainer rank 3: {name}[191, 511] is NaN", said[3].get("error", ""))
        for line in said[:3]:  # who shares a block of scales with it points at others
            if line["event"] == "failed":
                self.assertIn("their lines say", line["error"])
        late = self.worker("late", 0, "--version", "2", *flow)
        error = self.expect_failed(late, "version 2")["error"]
        # By who was first to fail, and whether another rank had published by then.
        self.assertRegex(error, "aborted: trainer rank [0-3]: |have not published it: .*rank-3")
        self.verify_engine("one", 1)
        self.publish(ranks, 3)
        self.expect_all_installed(workers, 3)
        self.verify_engine("one", 3)


class WhenMeshesAreUneven(MeshFlow):
    versions = 2

    def follow(self, mesh, n_ranks, engine="tp=2"):
        self.engine_mesh = engine
        ranks = [self.rank(number, mesh=mesh) for number in range(n_ranks)]
        workers = self.engine("one", "--follow")
        for version in (1, 2):
            reports = self.publish(ranks, version)
            self.expect_all_installed(workers, version)
            self.verify_engine("one", version)
        for process in ranks + workers:
            process.end()
        return reports

    def test_more_ranks_than_experts_and_than_rows_of_small_tensors(self):
        reports = self.follow("fsdp=2,ep=9", 18)
        self.assertEqual(len(reports), 18)

    def test_ranks_that_hold_next_to_nothing(self):
        self.follow("fsdp=8,ep=2", 16)

    def test_a_worker_whose_vocabulary_is_all_padding(self):
        self.follow("fsdp=2", 2, engine="tp=2,pad=2048")


class WhenFewRanksSeeHowTensorsAreKept(WhenMeshesAreUneven):
    """The same of stacked experts in fp32: a rank that holds none of a tensor can only guess."""
    naming = "stacked"
    dtype = "f32"


class WhenBytesGoAnotherWay(MeshFlow):
    versions = 2

    def test_by_files(self):
        ranks, workers = self.ranks("--transport", "file"), self.engine("one", "--follow")
        for version in (1, 2):
            self.publish(ranks, version)
            self.expect_all_installed(workers, version)
            self.verify_engine("one", version)
        self.assertTrue(glob.glob(self.folder + "/*/*rank-3*"))

    def test_into_live_parameters(self):
        ranks, workers = self.ranks(), self.engine("one", "--follow", "--install", "direct")
        for version in (1, 2):
            self.publish(ranks, version)
            self.expect_all_installed(workers, version)
            self.verify_engine("one", version)


class Masters(MeshFlow):
    """Sharded or not, fp32 masters become the same bytes, rounded before they are quantised or
    kept."""
    versions = 1
    dtype = "f32"

    def dumped(self, name, *more, mesh=None, n_ranks=1):
        flow = ("--run", name, *more)
        sharded = ("--mesh", mesh) if mesh else ()
        ranks = [self.start("publish", "--follow", "--version", "1", "--rank", str(number),
                            *sharded, *self.flow, *flow) for number in range(n_ranks)]
        worker = self.replica(name, "--version", "1", "--run", name, "--dump",
                              os.path.join(self.folder, name))
        self.publish(ranks, 1)
        self.expect_installed(worker, 1)
        self.assertEqual(worker.wait()[0], 0)
        with open(os.path.join(self.folder, name, "v1.safetensors"), "rb") as stream:
            return stream.read()

    def test_sharded_bytes_are_those_of_one_rank(self):
        rounded = self.dumped("rounded")
        kept = self.dumped("kept", "--keep-masters")
        self.assertNotEqual(rounded, kept)
        self.assertEqual(self.dumped("rounded-3", mesh="fsdp=3", n_ranks=3), rounded)
        self.assertEqual(self.dumped("kept-3", "--keep-masters", mesh="fsdp=3", n_ranks=3), kept)


if __name__ == "__main__":
    unittest.main()
