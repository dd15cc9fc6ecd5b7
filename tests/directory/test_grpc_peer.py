# SPDX-License-Identifier: Apache-2.0
"""Python's own gRPC as a client of Weir's directory: what we both say must be what gRPC says."""
import ctypes
import json
import os
import shutil
import threading
import time
import unittest

import grpc

import peer_stubs

FOLDER = peer_stubs.generate()
import directory_pb2  # noqa: E402
import directory_pb2_grpc  # noqa: E402
import health_pb2  # noqa: E402
import health_pb2_grpc  # noqa: E402
import p2p_pb2  # noqa: E402
import p2p_pb2_grpc  # noqa: E402
import refit_pb2  # noqa: E402
import refit_pb2_grpc  # noqa: E402

LIBRARY = os.path.join(os.environ.get("WEIR_TEST_BIN", "build/bin"), "..", "lib", "libweir.so")
LARGE = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]


def setUpModule():
    with open(LIBRARY, "rb") as file:
        if b"__asan_init" in (text := file.read()) or b"__tsan_init" in text:
            raise unittest.SkipTest("libweir.so has a sanitizer in it: Python cannot load it")


def tearDownModule():
    shutil.rmtree(FOLDER, ignore_errors=True)


class Options(ctypes.Structure):
    _fields_ = [("size", ctypes.c_size_t), ("listen", ctypes.c_char_p),
                ("stale_after_s", ctypes.c_uint), ("delete_after_s", ctypes.c_uint),
                ("sweep_every_s", ctypes.c_uint)]


class Directory:
    """A Weir directory in this process, through its public functions."""

    def __init__(self, **options):
        self.lib = ctypes.CDLL(LIBRARY)
        self.lib.weir_directory_address.restype = ctypes.c_char_p
        self.lib.weir_directory_address.argtypes = [ctypes.c_void_p]
        self.lib.weir_directory_close.argtypes = [ctypes.c_void_p]
        self.handle = ctypes.c_void_p()
        options = Options(ctypes.sizeof(Options), **options)
        status = self.lib.weir_directory_open(ctypes.byref(options), ctypes.byref(self.handle))
        assert status == 0, status
        self.address = self.lib.weir_directory_address(self.handle).decode()

    def close(self):
        self.lib.weir_directory_close(self.handle)


class PeerTest(unittest.TestCase):
    def setUp(self):
        self.directory = Directory()
        self.channel = grpc.insecure_channel(self.directory.address, options=LARGE)
        self.refit = refit_pb2_grpc.RefitServiceStub(self.channel)
        self.p2p = p2p_pb2_grpc.P2pServiceStub(self.channel)

    def tearDown(self):
        self.channel.close()
        self.directory.close()

    def assert_refused(self, code, text, call, *args, **kwargs):
        with self.assertRaises(grpc.RpcError) as caught:
            call(*args, timeout=10, **kwargs)
        self.assertEqual((caught.exception.code(), caught.exception.details()), (code, text))

    def version(self, key="k", **fields):
        request = refit_pb2.CreateWeightVersionRequest(
            model_name="m", idempotency_key=key,
            payload_format=refit_pb2.WEIGHT_PAYLOAD_FORMAT_FULL_TENSOR,
            expected_source_slots=["a", "b"])
        for name, value in fields.items():
            setattr(request, name, value)
        return self.refit.CreateWeightVersion(request, timeout=10)

    def register(self, worker, role=refit_pb2.WORKER_ROLE_TRAINER, ttl=90):
        return self.refit.RegisterWorker(refit_pb2.RegisterWorkerRequest(
            worker=refit_pb2.WorkerRegistration(worker_id=worker, role=role, model_name="m"),
            ttl_seconds=ttl), timeout=10)

    def put(self, version, slot, worker):
        return self.refit.CreateWeightVersionShard(refit_pb2.CreateWeightVersionShardRequest(
            shard=refit_pb2.WeightVersionShard(
                version_id=version.uid, source_slot_id=slot, worker_id=worker, tensor_count=2,
                total_bytes=2**40, manifest_digest="sha256:0", manifest_endpoint="h:1",
                transport="ucx")), timeout=10)


class RefitServiceTest(PeerTest):
    def test_presence_of_optional_fields(self):
        absent = self.version("absent")
        self.assertFalse(absent.HasField("version_number"))
        self.assertFalse(absent.HasField("base_version_id"))
        zero = self.version("zero", version_number=0)
        self.assertTrue(zero.HasField("version_number"))
        self.assertEqual(zero.version_number, 0)
        self.assert_refused(grpc.StatusCode.INVALID_ARGUMENT,
                            "base_version_id must be omitted for FULL_TENSOR",
                            self.refit.CreateWeightVersion,
                            refit_pb2.CreateWeightVersionRequest(
                                model_name="m", idempotency_key="base",
                                payload_format=refit_pb2.WEIGHT_PAYLOAD_FORMAT_FULL_TENSOR,
                                base_version_id="", expected_source_slots=["a"]))

    def test_a_version_goes_its_way(self):
        now = time.time() * 1000
        self.assertAlmostEqual(self.register("t").expires_at_unix_ms, now + 90000, delta=20000)
        self.register("g", refit_pb2.WORKER_ROLE_GENERATOR)
        version = self.version(version_number=41)
        self.assertRegex(version.uid, "^[0-9a-f]{8}$")
        self.assertEqual(version.state, refit_pb2.WEIGHT_VERSION_STATE_STAGING)
        self.assertEqual(version.layout_signature, "")
        self.assertEqual(self.put(version, "a", "t").version.state,
                         refit_pb2.WEIGHT_VERSION_STATE_STAGING)
        answer = self.put(version, "b", "t")
        self.assertEqual(answer.version.state, refit_pb2.WEIGHT_VERSION_STATE_READY)
        self.assertEqual(answer.shard.total_bytes, 2**40)
        lease = self.refit.RegisterVersionLease(refit_pb2.RegisterVersionLeaseRequest(
            version_id=version.uid, worker_id="g", ttl_seconds=30), timeout=10)
        shards = self.refit.ListWeightVersionShards(refit_pb2.ListWeightVersionShardsRequest(
            version_id=version.uid), timeout=10).shards
        self.assertEqual([s.source_slot_id for s in shards], ["a", "b"])
        uid = refit_pb2.DeleteWeightVersionRequest(uid=version.uid)
        self.assertEqual(self.refit.DeleteWeightVersion(uid, timeout=10).state,
                         refit_pb2.WEIGHT_VERSION_STATE_RELEASING)
        self.assert_refused(grpc.StatusCode.FAILED_PRECONDITION,
                            "only a READY weight version can be deleted",
                            self.refit.DeleteWeightVersion, uid)
        shard = refit_pb2.DeleteWeightVersionShardRequest(
            version_id=version.uid, source_slot_id="a", worker_id="t")
        self.assert_refused(grpc.StatusCode.FAILED_PRECONDITION,
                            "weight version has an active lease",
                            self.refit.DeleteWeightVersionShard, shard)
        self.assertTrue(self.refit.DeleteVersionLease(refit_pb2.DeleteVersionLeaseRequest(
            version_id=version.uid, lease_id=lease.lease_id, worker_id="g"), timeout=10).deleted)
        self.assertTrue(self.refit.DeleteWeightVersionShard(shard, timeout=10).deleted)
        self.assertFalse(self.refit.DeleteWeightVersionShard(shard, timeout=10).deleted)

    def test_codes_and_texts(self):
        code = grpc.StatusCode
        get = refit_pb2.GetWeightVersionRequest(uid="n\u00f6pe")
        self.assert_refused(code.NOT_FOUND, "no weight version 'n\u00f6pe'",
                            self.refit.GetWeightVersion, get)
        self.assert_refused(code.INVALID_ARGUMENT, "worker is required",
                            self.refit.RegisterWorker, refit_pb2.RegisterWorkerRequest())
        self.assert_refused(code.INVALID_ARGUMENT, "shard is required",
                            self.refit.CreateWeightVersionShard,
                            refit_pb2.CreateWeightVersionShardRequest())
        self.version("taken")
        self.assert_refused(code.ALREADY_EXISTS,
                            "idempotency_key was already used for a different WeightVersion",
                            self.refit.CreateWeightVersion, refit_pb2.CreateWeightVersionRequest(
                                model_name="m", idempotency_key="taken",
                                payload_format=refit_pb2.WEIGHT_PAYLOAD_FORMAT_FULL_TENSOR,
                                expected_source_slots=["other"]))
        self.assert_refused(code.RESOURCE_EXHAUSTED,
                            "expected_source_slots has 2000 names, at most 1024 are allowed",
                            self.refit.CreateWeightVersion, refit_pb2.CreateWeightVersionRequest(
                                model_name="m", idempotency_key="many",
                                payload_format=refit_pb2.WEIGHT_PAYLOAD_FORMAT_FULL_TENSOR,
                                expected_source_slots=[str(i) for i in range(2000)]))

    def test_what_is_not_offered_is_unimplemented(self):
        worker = refit_pb2_grpc.RefitWorkerServiceStub(self.channel)
        self.assert_refused(
            grpc.StatusCode.UNIMPLEMENTED,
            "/model_express.refit.RefitWorkerService/GetWeightVersionShardManifest is not offered "
            "here", worker.GetWeightVersionShardManifest,
            refit_pb2.GetWeightVersionShardManifestRequest())

    def test_bytes_that_are_no_message_are_invalid(self):
        call = self.channel.unary_unary("/model_express.refit.RefitService/GetWeightVersion")
        self.assert_refused(grpc.StatusCode.INVALID_ARGUMENT,
                            "bytes are not a GetWeightVersionRequest message", call, b"\x0a\xff")
        self.assert_refused(grpc.StatusCode.INVALID_ARGUMENT,
                            "GetWeightVersionRequest.uid is not UTF-8 text without NUL", call,
                            b"\x0a\x03a\x00b")

    def test_compressed_requests_are_refused(self):
        # The client sees identity in grpc-accept-encoding; what counts is a clean refusal.
        with self.assertRaises(grpc.RpcError) as caught:
            self.refit.GetWeightVersion(refit_pb2.GetWeightVersionRequest(uid="x" * 2000),
                                        timeout=10, compression=grpc.Compression.Gzip)
        self.assertEqual(caught.exception.code(), grpc.StatusCode.UNIMPLEMENTED)

    def test_calls_from_many_threads(self):
        failures = []

        def work(number):
            try:
                for i in range(50):
                    self.register("w%d-%d" % (number, i))
            except grpc.RpcError as error:
                failures.append(error)
        threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(failures, [])


class P2pServiceTest(PeerTest):
    def identity(self, **fields):
        return p2p_pb2.SourceIdentity(
            mx_version="0.5.0", model_name="deepseek-ai/DeepSeek-V3", backend_framework=1,
            tensor_parallel_size=8, pipeline_parallel_size=1, dtype="bfloat16", **fields)

    def publish(self, worker_id, identity=None, **worker):
        worker.setdefault("status", p2p_pb2.SOURCE_STATUS_READY)
        return self.p2p.PublishMetadata(p2p_pb2.PublishMetadataRequest(
            identity=identity or self.identity(), worker_id=worker_id,
            worker=p2p_pb2.WorkerMetadata(**worker)), timeout=30)

    def test_the_known_id(self):
        answer = self.publish("w")
        self.assertTrue(answer.success)
        self.assertEqual((answer.mx_source_id, answer.worker_id), ("5a5f555570065064", "w"))

    def test_refusals_are_replies(self):
        request = p2p_pb2.PublishMetadataRequest()
        expected = ["identity is required", "identity.model_name is required",
                    "worker_id is required", "worker is required"]
        for text in expected:
            answer = self.p2p.PublishMetadata(request, timeout=10)
            self.assertEqual((answer.success, answer.message), (False, text))
            if text == "identity is required":
                request.identity.SetInParent()
            elif text == "identity.model_name is required":
                request.identity.model_name = "m"
            elif text == "worker_id is required":
                request.worker_id = "w"
        request = p2p_pb2.UpdateStatusRequest(status=9)
        for text in ["mx_source_id is required", "worker_id is required",
                     "invalid status value: 9", "no source 'id' of worker 'w'"]:
            answer = self.p2p.UpdateStatus(request, timeout=10)
            self.assertEqual((answer.success, answer.message), (False, text))
            if text.startswith("mx_source_id"):
                request.mx_source_id = "id"
            elif text.startswith("worker_id"):
                request.worker_id = "w"
            else:
                request.status = 2

    def test_a_cut_name_is_still_text(self):
        answer = self.p2p.UpdateStatus(p2p_pb2.UpdateStatusRequest(
            mx_source_id="x" + "\u00e9" * 100, worker_id="w", status=2), timeout=10)
        self.assertEqual(answer.message,
                         "no source 'x" + "\u00e9" * 31 + "?' of worker 'w'")

    def test_metadata_comes_back_as_it_went(self):
        identity = self.identity(extra_parameters={"": "", "k\u00e9y": "v", "training_step": "12"},
                                 gpu_arch="sm_90")
        worker = dict(worker_rank=3, nixl_metadata=bytes(range(256)), agent_name="agent",
                      status=p2p_pb2.SOURCE_STATUS_INITIALIZING, updated_at=5,
                      tensor_source=p2p_pb2.TensorSourceMetadata(tensors=[
                          p2p_pb2.TensorDescriptor(name="t%d" % i, addr=2**63 + i, size=i)
                          for i in range(1000)]))
        source = self.publish("w", identity, **worker).mx_source_id
        answer = self.p2p.GetMetadata(p2p_pb2.GetMetadataRequest(
            mx_source_id=source, worker_id="w"), timeout=10)
        self.assertTrue(answer.found)
        self.assertEqual(answer.identity, identity)
        self.assertAlmostEqual(answer.worker.updated_at, time.time() * 1000, delta=20000)
        answer.worker.updated_at = 5  # the server's clock, not ours
        self.assertEqual(answer.worker, p2p_pb2.WorkerMetadata(**worker))
        self.assertFalse(self.p2p.GetMetadata(p2p_pb2.GetMetadataRequest(
            mx_source_id=source, worker_id="nobody"), timeout=10).found)

    def test_unknown_fields_survive(self):
        raw = self.channel.unary_unary("/model_express.p2p.P2pService/PublishMetadata")
        worker = p2p_pb2.WorkerMetadata(status=2).SerializeToString() + b"\xfa\x7f\x03new"
        request = p2p_pb2.PublishMetadataRequest(identity=self.identity(), worker_id="w")
        raw(request.SerializeToString() + b"\x12" + bytes([len(worker)]) + worker, timeout=10)
        raw = self.channel.unary_unary("/model_express.p2p.P2pService/GetMetadata")
        answer = raw(p2p_pb2.GetMetadataRequest(mx_source_id="5a5f555570065064", worker_id="w")
                     .SerializeToString(), timeout=10)
        self.assertIn(b"\xfa\x7f\x03new", answer)

    def test_eight_mebibytes_both_ways(self):
        blob = os.urandom(8 << 20)
        source = self.publish("w", nixl_metadata=blob).mx_source_id
        answer = self.p2p.GetMetadata(p2p_pb2.GetMetadataRequest(
            mx_source_id=source, worker_id="w"), timeout=30)
        self.assertEqual(answer.worker.nixl_metadata, blob)

    def test_a_message_over_the_limit_is_refused(self):
        with self.assertRaises(grpc.RpcError) as caught:
            self.publish("w", nixl_metadata=bytes(65 << 20))
        self.assertEqual(caught.exception.code(), grpc.StatusCode.RESOURCE_EXHAUSTED)
        self.assertTrue(self.publish("w").success)

    def test_list_filters(self):
        def listed(**fields):
            return [i.worker_id for i in self.p2p.ListSources(
                p2p_pb2.ListSourcesRequest(**fields), timeout=10).instances]
        sidecar = p2p_pb2.TensorDescriptor(
            name="__mx_v2_meta__", dtype='{"training_step": 7, "layout_signature": "lay"}')
        self.publish("plain", worker_rank=0)
        time.sleep(0.01)
        self.publish("sidecar", worker_rank=1, tensors=[sidecar])
        time.sleep(0.01)
        self.publish("extra", self.identity(extra_parameters={"training_step": "9"}),
                     worker_rank=2, status=p2p_pb2.SOURCE_STATUS_INITIALIZING)
        self.assertEqual(listed(), ["extra", "sidecar", "plain"])
        self.assertEqual(listed(identity=self.identity()), ["sidecar", "plain"])
        self.assertEqual(listed(status_filter=p2p_pb2.SOURCE_STATUS_READY), ["sidecar", "plain"])
        self.assertEqual(listed(status_filter=p2p_pb2.SOURCE_STATUS_UNKNOWN), [])
        self.assertEqual(listed(worker_rank_filter=0), ["plain"])
        self.assertEqual(listed(min_training_step=7), ["extra", "sidecar"])
        self.assertEqual(listed(min_training_step=8), ["extra"])
        self.assertEqual(listed(model_name_filter="other"), [])
        self.assertEqual(listed(limit=1), ["extra"])
        instances = self.p2p.ListSources(p2p_pb2.ListSourcesRequest(), timeout=10).instances
        self.assertEqual(instances[1].training_step, 7)
        self.assertEqual(instances[1].layout_signature, "lay")
        self.assertFalse(instances[2].HasField("training_step"))
        self.assertFalse(instances[2].HasField("layout_signature"))
        newer = instances[1].updated_at
        self.assertEqual(listed(min_updated_at=newer), ["extra", "sidecar"])


class ServerTest(unittest.TestCase):
    def test_health(self):
        directory = Directory()
        with grpc.insecure_channel(directory.address) as channel:
            answer = health_pb2_grpc.HealthServiceStub(channel).GetHealth(
                health_pb2.HealthRequest(), timeout=10)
            self.assertEqual(answer.status, "ok")
        directory.close()

    def test_silent_sources_turn_stale_and_go(self):
        directory = Directory(stale_after_s=1, delete_after_s=1, sweep_every_s=1)
        with grpc.insecure_channel(directory.address) as channel:
            p2p = p2p_pb2_grpc.P2pServiceStub(channel)
            p2p.PublishMetadata(p2p_pb2.PublishMetadataRequest(
                identity=p2p_pb2.SourceIdentity(model_name="m"), worker_id="w",
                worker=p2p_pb2.WorkerMetadata(status=2)), timeout=10)
            seen, deadline = set(), time.time() + 20
            while time.time() < deadline:
                stale = p2p.ListSources(p2p_pb2.ListSourcesRequest(status_filter=3), timeout=10)
                every = p2p.ListSources(p2p_pb2.ListSourcesRequest(), timeout=10)
                seen.add(len(stale.instances))
                if not every.instances:
                    break
                time.sleep(0.05)
            self.assertEqual(seen, {0, 1})
            self.assertEqual(len(every.instances), 0)
        directory.close()

    def test_a_closed_server_is_unavailable_at_once(self):
        directory = Directory()
        with grpc.insecure_channel(directory.address) as channel:
            stub = health_pb2_grpc.HealthServiceStub(channel)
            stub.GetHealth(health_pb2.HealthRequest(), timeout=10)
            directory.close()
            with self.assertRaises(grpc.RpcError) as caught:
                stub.GetHealth(health_pb2.HealthRequest(), timeout=10)
            self.assertEqual(caught.exception.code(), grpc.StatusCode.UNAVAILABLE)


class DirectoryServiceTest(PeerTest):
    """Weir's own service, call by call, as some other program would speak it."""

    def setUp(self):
        super().setUp()
        self.fleet = directory_pb2_grpc.DirectoryServiceStub(self.channel)

    def source(self, worker_id, role, rank=0, **worker):
        worker.setdefault("status", p2p_pb2.SOURCE_STATUS_READY)
        return p2p_pb2.PublishMetadataRequest(
            worker_id=worker_id,
            identity=p2p_pb2.SourceIdentity(mx_version="0.3.0", model_name="m",
                                            revision="run/" + role),
            worker=p2p_pb2.WorkerMetadata(
                worker_rank=rank, worker_grpc_endpoint="10.0.0.%d:7" % rank,
                tensor_source=p2p_pb2.TensorSourceMetadata(tensors=[
                    p2p_pb2.TensorDescriptor(name="__mx_weir__", dtype="0 - 2 layout {}"),
                    p2p_pb2.TensorDescriptor(name="__mx_weir_of__", dtype=role + " run")]),
                **worker))

    def publish(self, number, rank, **fields):
        worker = "trainer-%d" % rank
        fields.setdefault("source", self.source(worker, "trainer", rank))
        return self.fleet.PublishVersionShard(directory_pb2.PublishVersionShardRequest(
            model_name="m", run="run", version_number=number, expected_source_slots=["a", "b"],
            shard=refit_pb2.WeightVersionShard(
                source_slot_id="ab"[rank], worker_id=worker, total_bytes=2**40, tensor_count=3,
                manifest_digest="sha256:%d" % rank, manifest_endpoint="10.0.0.%d:7" % rank,
                transport="ucx"),
            trace_id="%032x" % number,
            stops=[directory_pb2.Stop(name="stage", begun_unix_us=1, duration_us=2)],
            **fields), timeout=10)

    def wish(self, worker_id="replica-0", timeout_ms=0, **fields):
        fields.setdefault("highest", 2**64 - 1)
        return directory_pb2.AcquireVersionRequest(
            model_name="m", run="run", worker_id=worker_id, ttl_seconds=30,
            timeout_ms=timeout_ms, **fields)

    def word(self, worker_id, answer, **fields):
        return self.fleet.AcknowledgeVersion(directory_pb2.AcknowledgeVersionRequest(
            source=self.source(worker_id, "inference_replica"), version_id=answer.version.uid,
            version_number=answer.version.version_number, lease_id=answer.lease.lease_id,
            run="run", **fields), timeout=10)

    def register_all(self):
        self.register("trainer-0")
        self.register("trainer-1")
        for replica in ("replica-0", "replica-1", "replica-2"):
            self.register(replica, refit_pb2.WORKER_ROLE_GENERATOR)

    def test_a_refit_of_three_messages(self):
        self.register_all()
        waiting = self.fleet.AcquireVersion.future(self.wish(timeout_ms=20000), timeout=30)
        first = self.publish(7, 0)
        self.assertEqual((first.version.state, first.attempt, first.trace_id),
                         (refit_pb2.WEIGHT_VERSION_STATE_STAGING, 1, "%032x" % 7))
        self.assertFalse(waiting.done())
        self.assertEqual(self.publish(7, 1).version.state, refit_pb2.WEIGHT_VERSION_STATE_READY)
        answer = waiting.result()
        self.assertTrue(answer.found)
        self.assertEqual([(s.source_slot_id, s.worker_id, s.total_bytes) for s in answer.shards],
                         [("a", "trainer-0", 2**40), ("b", "trainer-1", 2**40)])
        self.assertEqual((answer.version.uid, answer.version.version_number, answer.trace_id),
                         (first.version.uid, 7, "%032x" % 7))
        self.assertFalse(answer.HasField("peer"))
        trainer = self.fleet.AwaitReplicas.future(directory_pb2.AwaitReplicasRequest(
            model_name="m", version_id=first.version.uid, n_replicas=1, timeout_ms=20000),
            timeout=30)
        source_id = self.word("replica-0", answer, host="h", part="p", n_bytes=2**41).mx_source_id
        heard = trainer.result()
        self.assertEqual((heard.n_holding, heard.state), (1, directory_pb2.VERSION_STATE_READY))
        self.assertEqual([(w.worker_id, w.status, w.n_bytes) for w in heard.words],
                         [("replica-0", 0, 2**41)])
        entry = self.p2p.GetMetadata(p2p_pb2.GetMetadataRequest(
            mx_source_id=source_id, worker_id="replica-0"), timeout=10)
        self.assertEqual(entry.worker.tensor_source.tensors[0].dtype,
                         "7 %s 2 layout {}" % first.version.uid)

    def test_readers_are_sent_to_a_replica_that_holds_it(self):
        self.register_all()
        self.publish(7, 0)
        self.publish(7, 1)
        self.word("replica-0", self.fleet.AcquireVersion(self.wish(), timeout=10), part="p",
                  host="h")
        self.fleet.AcquireVersion(self.wish("replica-1"), timeout=10)  # reads from the trainers
        peer = self.fleet.AcquireVersion(self.wish("replica-2", part="p"), timeout=10).peer
        self.assertEqual((peer.worker_id, peer.host, peer.n_readers), ("replica-0", "h", 1))
        self.assertEqual(peer.manifest_endpoint, "10.0.0.0:7")
        answer = self.fleet.AcquireVersion(
            self.wish("replica-2", part="p", avoid=["replica-0"]), timeout=10)
        self.assertFalse(answer.HasField("peer"))

    def test_a_wait_ends_before_its_caller_does(self):
        self.register_all()
        uid = self.publish(7, 1).version.uid
        begun = time.time()
        answer = self.fleet.AcquireVersion(self.wish(timeout_ms=600000), timeout=1)
        self.assertLess(time.time() - begun, 1)
        self.assertEqual((answer.found, answer.has_trainer, answer.newest, answer.awaited_id),
                         (False, True, 7, uid))
        self.assertEqual(list(answer.missing_slots), ["a"])
        self.assertEqual(answer.awaited_state, directory_pb2.VERSION_STATE_STAGING)

    def test_an_entry_that_is_known_is_not_sent_again(self):
        self.register_all()
        known = p2p_pb2.PublishMetadataRequest(worker_id="trainer-0")
        with self.assertRaises(grpc.RpcError) as caught:
            self.publish(7, 0, source=known)
        self.assertEqual(caught.exception.code(), grpc.StatusCode.NOT_FOUND)
        first = self.publish(7, 0)
        second = self.publish(8, 0, source=known)
        self.assertEqual(first.mx_source_id, second.mx_source_id)
        entry = self.p2p.GetMetadata(p2p_pb2.GetMetadataRequest(
            mx_source_id=second.mx_source_id, worker_id="trainer-0"), timeout=10)
        self.assertEqual(entry.worker.tensor_source.tensors[0].dtype,
                         "8 %s 2 layout {}" % second.version.uid)

    def test_aborted_is_releasing_to_those_who_do_not_know_it(self):
        self.register_all()
        uid = self.publish(7, 0).version.uid
        answer = self.fleet.AbortVersion(directory_pb2.AbortVersionRequest(
            version_id=uid, worker_id="trainer-0", reason="a weight is NaN"), timeout=10)
        self.assertEqual(answer.version.state, refit_pb2.WEIGHT_VERSION_STATE_RELEASING)
        got = self.refit.GetWeightVersion(refit_pb2.GetWeightVersionRequest(uid=uid), timeout=10)
        self.assertEqual(got.state, refit_pb2.WEIGHT_VERSION_STATE_RELEASING)
        heard = self.fleet.AwaitReplicas(directory_pb2.AwaitReplicasRequest(
            model_name="m", version_id=uid, n_replicas=1, timeout_ms=20000), timeout=10)
        self.assertEqual((heard.state, heard.reason),
                         (directory_pb2.VERSION_STATE_ABORTED, "a weight is NaN"))
        self.assertEqual(self.publish(7, 0).attempt, 2)

    def test_shards_go_when_the_last_reader_has(self):
        self.register_all()
        uid = self.publish(7, 0).version.uid
        self.publish(7, 1)
        answer = self.fleet.AcquireVersion(self.wish(), timeout=10)
        retire = directory_pb2.RetireVersionsRequest(
            version_ids=[uid], source_slot_id="a", worker_id="trainer-0")
        self.assertEqual(list(self.fleet.RetireVersions(retire, timeout=10).leased_by),
                         ["replica-0"])
        retire.timeout_ms = 20000
        waiting = self.fleet.RetireVersions.future(retire, timeout=30)
        self.word("replica-0", answer, status=2**32 - 41, text="layout differs")
        self.assertEqual(list(waiting.result().leased_by), [])
        shards = self.refit.ListWeightVersionShards(
            refit_pb2.ListWeightVersionShardsRequest(version_id=uid), timeout=10).shards
        self.assertEqual([s.source_slot_id for s in shards], ["b"])

    def refusal_of(self, call, request):
        with self.assertRaises(grpc.RpcError) as caught:
            call(request, timeout=10)
        return caught.exception.details()

    def test_what_only_replicas_have_is_over_for_modelexpress(self):
        self.register_all()
        uid = self.publish(7, 0).version.uid
        self.publish(7, 1)
        self.word("replica-0", self.fleet.AcquireVersion(self.wish(), timeout=10), part="p",
                  host="h")
        for slot, worker in (("a", "trainer-0"), ("b", "trainer-1")):
            answer = self.fleet.RetireVersions(directory_pb2.RetireVersionsRequest(
                version_ids=[uid], source_slot_id=slot, worker_id=worker, timeout_ms=5000),
                timeout=10)
            self.assertEqual(list(answer.leased_by), [])
        got = self.refit.GetWeightVersion(refit_pb2.GetWeightVersionRequest(uid=uid), timeout=10)
        self.assertEqual(got.state, refit_pb2.WEIGHT_VERSION_STATE_RELEASING)
        shards = self.refit.ListWeightVersionShards(
            refit_pb2.ListWeightVersionShardsRequest(version_id=uid), timeout=10).shards
        self.assertEqual(list(shards), [])
        lease = refit_pb2.RegisterVersionLeaseRequest(version_id=uid, worker_id="replica-1",
                                                      ttl_seconds=30)
        self.assertEqual(self.refusal_of(self.refit.RegisterVersionLease, lease),
                         "no worker that is alive has source_slot_id 'a': no new lease")
        answer = self.fleet.AcquireVersion(self.wish("replica-1", part="p"), timeout=10)
        self.assertEqual((answer.found, answer.version.state, answer.peer.worker_id),
                         (True, refit_pb2.WEIGHT_VERSION_STATE_READY, "replica-0"))
        self.refit.RegisterVersionLease(lease, timeout=10)  # renewed as ever
        deleted = self.refit.DeleteWeightVersion(
            refit_pb2.DeleteWeightVersionRequest(uid=uid), timeout=10)
        self.assertEqual(deleted.state, refit_pb2.WEIGHT_VERSION_STATE_RELEASING)
        answer = self.fleet.AcquireVersion(self.wish("replica-2", part="p"), timeout=10)
        self.assertFalse(answer.found)

    def test_a_wait_that_ends_in_vain_names_who_is_waited_for(self):
        self.register_all()
        self.publish(7, 0)
        uid = self.publish(7, 1).version.uid
        self.word("replica-0", self.fleet.AcquireVersion(self.wish(), timeout=10))
        self.fleet.AcquireVersion(self.wish("replica-1"), timeout=10)
        self.fleet.ReportProgress(directory_pb2.ReportProgressRequest(
            worker_id="replica-1", model_name="m", version_number=7, stop="transfer",
            slowest_from="rank-1"), timeout=10)
        heard = self.fleet.AwaitReplicas(directory_pb2.AwaitReplicasRequest(
            model_name="m", version_id=uid, n_replicas=3, timeout_ms=200), timeout=10)
        self.assertEqual(heard.n_holding, 1)
        self.assertEqual([(s.worker_id, s.reads, s.stop, s.slowest_from, s.has_number)
                          for s in heard.stragglers],
                         [("replica-1", True, "transfer", "rank-1", False),
                          ("replica-2", False, "", "", False)])
        self.assertLess(heard.stragglers[0].silent_ms, 10000)

    def test_people_see_what_changes(self):
        fleet = self.fleet.GetFleet(directory_pb2.GetFleetRequest(), timeout=10)
        self.assertIsInstance(json.loads(fleet.json), dict)
        waiting = self.fleet.GetFleet.future(directory_pb2.GetFleetRequest(
            after_revision=fleet.revision, timeout_ms=20000), timeout=30)
        self.register_all()
        self.assertGreater(waiting.result().revision, fleet.revision)
        self.fleet.ReportProgress(directory_pb2.ReportProgressRequest(
            worker_id="replica-0", model_name="m", version_number=7, stop="transfer",
            done_bytes=1, total_bytes=2, slowest_from="trainer-1"), timeout=10)

    def test_what_is_malformed_is_refused(self):
        code = grpc.StatusCode.INVALID_ARGUMENT
        for text, call, request in (
                ("shard is required", self.fleet.PublishVersionShard,
                 directory_pb2.PublishVersionShardRequest()),
                ("source is required", self.fleet.AcknowledgeVersion,
                 directory_pb2.AcknowledgeVersionRequest()),
                ("version_id and worker_id are required", self.fleet.AbortVersion,
                 directory_pb2.AbortVersionRequest()),
                ("model_name and version_id are required", self.fleet.AwaitReplicas,
                 directory_pb2.AwaitReplicasRequest()),
                ("between 1 and 256 version_ids are required", self.fleet.RetireVersions,
                 directory_pb2.RetireVersionsRequest()),
                ("model_name, run and worker_id are required, of at most 255 bytes",
                 self.fleet.AcquireVersion, directory_pb2.AcquireVersionRequest()),
                ("worker_id and model_name are required, names have at most 255 bytes",
                 self.fleet.ReportProgress, directory_pb2.ReportProgressRequest())):
            self.assert_refused(code, text, call, request)


if __name__ == "__main__":
    unittest.main()
