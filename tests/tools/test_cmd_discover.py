# SPDX-License-Identifier: Apache-2.0
"""`weir discover` over real processes: a trainer of Weir's, sources of ModelExpress v2 by Python's own
gRPC, and a directory that is not Weir's."""
import json
import os
import shutil
import subprocess
import sys
import unittest

import grpc

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "directory"))
import peer_stubs  # noqa: E402
from cli_case import WEIR, CliCase  # noqa: E402

FOLDER = peer_stubs.generate()
import p2p_pb2  # noqa: E402
import p2p_pb2_grpc  # noqa: E402

LARGE = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]


def tearDownModule():
    shutil.rmtree(FOLDER, ignore_errors=True)


def registry(*targets, metadata=None):
    return json.dumps({"version": 1, "trainer_world_layout": "fsdp:1,tp:1,pp:1,ep:1", "tensors": [
        {"name": f"t{i}", "global_shape": [4], "dtype": "bfloat16", "placement_kind": "REPLICATE",
         "shard_axis": 0, "compile_target": target, "compile_metadata": metadata or {}}
        for i, target in enumerate(targets)]}, separators=(",", ":"))


def words(rank=0, step=1, role="trainer", text=None):
    said = {"mx_v2": "1", "role": role, "worker_rank": rank, "training_step": step,
            "world_layout": "fsdp:1,tp:1,pp:1,ep:1", "framework": "nemo_rl"}
    return {**said, "shape_registry": text} if text else said


def discover_v2(p2p, model, min_version=0, targets=None):
    """What a client of ModelExpress v2 makes of a directory: reference for what Weir publishes."""
    found = []
    listed = p2p.ListSources(p2p_pb2.ListSourcesRequest(status_filter=2), timeout=10)
    for ref in listed.instances:
        if ref.model_name != model:
            continue
        meta = p2p.GetMetadata(p2p_pb2.GetMetadataRequest(
            mx_source_id=ref.mx_source_id, worker_id=ref.worker_id), timeout=10)
        extras = dict(meta.identity.extra_parameters)
        tensors = list(meta.worker.tensor_source.tensors) or list(meta.worker.tensors)
        if not extras:
            for tensor in tensors:
                if tensor.name == "__mx_v2_meta__":
                    extras = {k: str(v) for k, v in json.loads(tensor.dtype).items()}
                    break
        if extras.get("mx_v2") != "1" or extras.get("role") not in ("trainer", "inference_replica") \
                or int(extras.get("training_step", 0)) < min_version:
            continue
        text = extras.get("shape_registry")
        document = json.loads(text) if text else None
        if targets and (document is None or not all(
                t.get("compile_target", "hf_raw") in targets for t in document["tensors"])):
            continue
        found.append((ref, extras, document))
    return found


class DiscoverCase(CliCase):
    def start(self, *command, **options):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True,
                                   **options)
        self.addCleanup(self.end, process)
        return process

    def end(self, process):
        process.stdin.close()
        process.terminate()
        process.wait(20)
        process.stdout.close()

    def connect(self, address):
        self.address = address
        channel = grpc.insecure_channel(address, options=LARGE)
        self.addCleanup(channel.close)
        self.p2p = p2p_pb2_grpc.P2pServiceStub(channel)

    def publish(self, worker_id, said, by, model="m", status=2, **worker):
        """A source as a client of ModelExpress v2 publishes it: by its identity (a), a sidecar (b), or
        its agent's name (c)."""
        identity = p2p_pb2.SourceIdentity(model_name=model, mx_version="0.5.0", dtype="bfloat16")
        tensors = [p2p_pb2.TensorDescriptor(name="t0", addr=4096, size=8, dtype="bfloat16")]
        agent = worker_id
        if by == "a":
            identity.extra_parameters.update({k: str(v) for k, v in said.items()})
        elif by == "b":
            tensors.append(p2p_pb2.TensorDescriptor(
                name="__mx_v2_meta__", dtype=json.dumps(said, separators=(",", ":"))))
        else:
            agent = "mx_v2|%s|rank=%s|version=%s|orig=%s" % (
                said["role"], said["worker_rank"], said["training_step"], worker_id)
        answer = self.p2p.PublishMetadata(p2p_pb2.PublishMetadataRequest(
            identity=identity, worker_id=worker_id, worker=p2p_pb2.WorkerMetadata(
                worker_rank=0, status=status, agent_name=agent, nixl_metadata=b"n",
                tensor_source=p2p_pb2.TensorSourceMetadata(tensors=tensors), **worker)), timeout=10)
        self.assertTrue(answer.success, answer.message)

    def discover(self, *wishes, code=0):
        result = subprocess.run(
            [WEIR, "discover", "--directory", self.address, "--model", "m", "--json", "--explain",
             *wishes], capture_output=True, text=True, timeout=60, check=False)
        self.assertEqual(result.returncode, code, result.stderr)
        return json.loads(result.stdout)

    def taken(self, *wishes, code=0):
        return [s["worker_id"] for s in self.discover(*wishes, code=code)["sources"] if s["taken"]]

    def reason(self, worker_id, *wishes, code=0):
        return next(s["reason"] for s in self.discover(*wishes, code=code)["sources"]
                    if s["worker_id"] == worker_id)


class ForeignTest(DiscoverCase):
    """Sources of ModelExpress v2 in Weir's directory."""

    def setUp(self):
        super().setUp()
        serve = self.start(WEIR, "serve", "--listen", "127.0.0.1:0", "--json")
        self.connect(json.loads(serve.stdout.readline())["address"])

    def test_all_routes_are_read(self):
        for rank, by in enumerate("abc"):
            self.publish(by, words(rank, 7, text=registry("cutlass_fp8")), by)
        self.assertEqual(sorted(self.taken()), ["a", "b", "c"])
        self.assertEqual(sorted(self.taken("--target", "cutlass_fp8")), ["a", "b"])
        self.assertIn("shape_registry: ", self.reason("c", "--target", "cutlass_fp8"))
        self.assertEqual(self.taken("--rank", "2", "--endpoint", "nixl"), ["c"])
        source = self.discover("--rank", "1")["sources"][0]
        self.assertEqual((source["version"], source["targets"], source["endpoint_kind"]),
                         (7, "cutlass_fp8", "nixl"))

    def test_one_tensor_drops_its_source(self):
        self.publish("mixed", words(0, text=registry("cutlass_fp8", "hf_raw", "cutlass_fp8")), "b")
        self.assertEqual(
            self.reason("mixed", "--target", "cutlass_fp8", code=1),
            "compile_target of t1: wanted cutlass_fp8, found hf_raw (1 of 3 tensors differ)")
        self.assertEqual(self.taken("--target", "cutlass_fp8", "--target", "hf_raw"), ["mixed"])

    def test_metadata_versions_roles_and_status(self):
        blocks = registry("f", metadata={"block_size": [128, 128]})
        self.publish("t", words(0, 5, text=blocks), "a")
        self.publish("r", words(0, 6, "inference_replica", registry("f")), "b")
        self.publish("begun", words(1, 5), "b", status=1)
        self.assertEqual(self.taken(), ["t", "r"])
        self.assertEqual(self.taken("--no-replicas"), ["t"])
        self.assertEqual(self.taken("--role", "replica"), ["r"])
        self.assertEqual(self.taken("--min-version", "6"), ["r"])
        self.assertEqual(self.taken("--max-version", "5"), ["t"])
        self.assertEqual(self.taken("--metadata", '{"block_size":[128,128]}'), ["t"])
        self.assertEqual(self.reason("begun"), "status: wanted READY, found INITIALIZING")
        self.assertEqual(self.taken("--run", "other", code=1), [])

    def test_replicas_are_judged_by_every_tensor_that_they_hold(self):
        small, large = {"block_size": [64, 64]}, {"block_size": [128, 128]}
        for rank, (name, text) in enumerate((
                ("good", registry("f", "f", metadata=large)),
                ("mixed", registry("f", "f", "hf_raw", metadata=large)),
                ("small", registry("f", "f", metadata=small)),
                ("silent", None))):
            self.publish(name, words(rank, 7, "inference_replica", text), "b")
        target = ("--role", "replica", "--target", "f")
        both = (*target, "--metadata", json.dumps(large))
        self.assertEqual(sorted(self.taken("--role", "replica")),
                         ["good", "mixed", "silent", "small"])
        self.assertEqual(sorted(self.taken(*target)), ["good", "small"])
        self.assertEqual(self.taken(*both), ["good"])
        self.assertEqual(self.reason("mixed", *both),
                         "compile_target of t2: wanted f, found hf_raw (1 of 3 tensors differ)")
        self.assertRegex(self.reason("small", *both),
                         r"block_size.* of t0: wanted \[128,128\], found \[64,64\]")
        self.assertIn("shape_registry: ", self.reason("silent", *both))
        self.assertEqual(sorted(self.taken(*target, "--target", "hf_raw", "--metadata",
                                           json.dumps(large))), ["good", "mixed"])
        text = self.weir("discover", "--directory", self.address, "--model", "m", "--explain",
                         *both).stdout
        self.assertIn("1 of 4 sources taken\n", text)
        for name in ("mixed", "small", "silent"):
            self.assertRegex(text, r"of worker %s: refused\b" % name)
        self.discover(*both, "--min-version", "8", code=1)

    def test_every_step_of_a_worker_but_the_last_is_superseded(self):
        for step in (1, 2, 3):
            self.publish("w", words(0, step), "a")
        sources = self.discover()["sources"]
        self.assertEqual([(s["version"], s["taken"]) for s in sources if s["taken"]], [(3, True)])
        self.assertEqual(len(sources), 3)
        self.assertIn("version 3 of worker w is newer", sources[1]["reason"])

    def test_hostile_words_are_refused_with_their_values(self):
        self.publish("number", words("r2"), "b")
        self.publish("deep", words(0, text="[" * 100000), "a")
        self.publish("junk", words(1, text="{\"tensors\":[{}]}"), "a")
        self.assertEqual(self.reason("number"), "worker_rank: wanted a number, found r2")
        self.assertIn("nested deeper", self.reason("deep", "--target", "x", code=1))
        self.assertIn("its tensor 0 has no name", self.reason("junk", "--target", "x", code=1))

    def test_the_command_line(self):
        error = self.error("discover", "--directory", self.address, "--model", "m")
        self.assertIn("knows no source of model 'm'", error)
        error = self.error("discover", "--directory", self.address, "--model", "m", "--role", "x",
                           code=2)
        self.assertIn("--role 'x': expected trainer or replica", error)
        self.assertIn("--model is required", self.error("discover", "--directory", "x", code=2))
        self.assertIn("is no JSON object", self.error(
            "discover", "--directory", self.address, "--model", "m", "--metadata", "[]"))
        self.assertIn("127.0.0.1:1", self.error("discover", "--directory", "127.0.0.1:1",
                                                "--model", "m"))
        self.publish("t", words(4, 2, text=registry("f")), "b")
        table = self.weir("discover", "--directory", self.address, "--model", "m").stdout
        self.assertRegex(table, r"(?m)^trainer +4 +2 +[0-9.]+ s +1 +t +f +")
        text = self.weir("discover", "--directory", self.address, "--model", "m",
                         "--explain").stdout
        self.assertIn("of worker t: taken\n  ok  model_name", text)
        self.assertIn("1 of 1 sources taken\n", text)


class WeirTest(DiscoverCase):
    """A trainer of Weir's, seen by both kinds of clients."""

    def setUp(self):
        super().setUp()
        self.weir("synth", "--family", "qwen3_moe", "--preset", "tiny", "-o", "one")
        serve = self.start(WEIR, "serve", "--listen", "127.0.0.1:0", "--json")
        self.connect(json.loads(serve.stdout.readline())["address"])

    def train(self, *more):
        trainer = self.start(
            WEIR, "publish", "one", "--version", "1", "--model", "m", "--conversion", "fp8_128x128",
            "--directory", self.address, "--transport", "file", "--transport-directory", ".",
            "--follow", "--json", *more, cwd=self.folder)
        json.loads(trainer.stdout.readline())
        return trainer

    def test_a_trainers_tensors_are_seen_by_both_kinds_of_clients(self):
        trainer = self.train()
        can_read = ["deep_gemm_fp8", "hf_raw"]
        self.assertEqual(discover_v2(self.p2p, "m", targets=["deep_gemm_fp8"]), [])
        (first, extras, document), = discover_v2(self.p2p, "m", 1, can_read)
        self.assertEqual((extras["role"], extras["worker_rank"], document["version"]),
                         ("trainer", "0", 1))
        blocks = [t for t in document["tensors"] if t.get("compile_target") == "deep_gemm_fp8"]
        self.assertTrue(all(t["compile_metadata"] for t in blocks))
        stacked = [t for t in blocks if t.get("is_expert")]
        self.assertTrue(stacked)
        self.assertEqual(stacked[0]["owned_expert_ids"],
                         list(range(stacked[0]["global_shape"][0])))
        wishes = [w for target in can_read for w in ("--target", target)]
        source, = self.discover(*wishes, "--endpoint", "weir", "--run", "default")["sources"]
        self.assertEqual((source["tensors"], source["version"], source["host"]),
                         (len(document["tensors"]), 1, "127.0.0.1"))
        self.discover("--target", "deep_gemm_fp8", code=1)
        trainer.stdin.write("one\n")
        trainer.stdin.flush()
        json.loads(trainer.stdout.readline())
        (second, _, again), = discover_v2(self.p2p, "m", 2, can_read)
        self.assertEqual(first.mx_source_id, second.mx_source_id)
        self.assertEqual(again, {**document, "version": 2})

    def test_a_replica_of_weirs_is_a_source_whose_tensors_are_judged(self):
        self.train()
        replica = self.start(
            WEIR, "receive", "--name", "engine", "--config", "one/config.json", "--model", "m",
            "--conversion", "fp8_128x128", "--directory", self.address, "--transport-directory",
            ".", "--follow", "--json", cwd=self.folder)
        self.assertEqual(json.loads(replica.stdout.readline())["event"], "installed")
        wish = ("--role", "replica")
        all_of_it = (*wish, "--target", "deep_gemm_fp8", "--target", "hf_raw")
        source = next(s for s in self.discover(*all_of_it)["sources"] if s["taken"])
        self.assertEqual((source["role"], source["version"]), ("inference_replica", 1))
        self.assertGreater(source["tensors"], 1)
        refused = next(s for s in self.discover(*wish, "--target", "deep_gemm_fp8",
                                                code=1)["sources"]
                       if s["role"] == "inference_replica")
        self.assertRegex(refused["reason"],
                         r"compile_target of .*: wanted deep_gemm_fp8, found hf_raw \(\d+ of ")

    def test_parts_of_workers_are_told_from_whole_tensors(self):
        self.train("--replica-mesh", "tp=2,ep=2")
        (_, _, document), = discover_v2(self.p2p, "m")
        targets = {t.get("compile_target", "hf_raw") for t in document["tensors"]}
        self.assertEqual(targets, {"deep_gemm_fp8", "weir_part"})
        places = {tuple(t["compile_metadata"]["weir_place"]) for t in document["tensors"]}
        self.assertTrue({(0, None, 0), (0, None, 1)} & places or {(0, 0, 0), (0, 0, 1)} & places,
                        places)
        names = [t["name"] for t in document["tensors"]]
        self.assertEqual(len(names), len(set(names)))
        self.assertEqual(discover_v2(self.p2p, "m", targets=["deep_gemm_fp8", "hf_raw"]), [])

    def test_a_registry_that_is_left_in_the_manifest_is_fetched_there(self):
        self.train()
        (ref, extras, document), = discover_v2(self.p2p, "m")
        meta = self.p2p.GetMetadata(p2p_pb2.GetMetadataRequest(
            mx_source_id=ref.mx_source_id, worker_id=ref.worker_id), timeout=10)
        extras["registry"] = "manifest"
        del extras["shape_registry"]
        for tensor in meta.worker.tensor_source.tensors:
            if tensor.name == "__mx_v2_meta__":
                tensor.dtype = json.dumps(extras)
        for model, endpoint in (("m", meta.worker.worker_grpc_endpoint), ("gone", "127.0.0.1:1")):
            meta.worker.worker_grpc_endpoint = endpoint
            meta.identity.model_name = model
            self.p2p.PublishMetadata(p2p_pb2.PublishMetadataRequest(
                identity=meta.identity, worker=meta.worker, worker_id=ref.worker_id), timeout=10)
        source, = self.discover("--target", "deep_gemm_fp8", "--target", "hf_raw")["sources"]
        self.assertEqual((source["tensors"], source["targets"]),
                         (len(document["tensors"]), "deep_gemm_fp8,hf_raw"))
        self.assertEqual(self.discover()["sources"][0]["targets"], "")  # nobody asks for tensors
        error = self.error("discover", "--directory", self.address, "--model", "gone", "--target",
                           "hf_raw")
        self.assertIn("found its manifest: ", error)
        self.assertIn("127.0.0.1:1", error)


class OtherDirectoryTest(DiscoverCase):
    def test_a_directory_that_is_not_weirs_will_do(self):
        server = self.start(sys.executable, os.path.join(HERE, "..", "directory", "peer_server.py"))
        self.connect(server.stdout.readline().strip())
        self.assertEqual(self.reason("w", code=1),
                         "metadata: wanted an entry, found it is gone since it was listed")
        self.publish("w", words(3, 9, text=registry("f")), "b", updated_at=5)
        self.assertEqual(self.taken("--target", "f", "--rank", "3"), ["w"])


if __name__ == "__main__":
    unittest.main()
