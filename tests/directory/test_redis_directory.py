# SPDX-License-Identifier: Apache-2.0
"""Two `weir serve` over one redis-server, and Python's gRPC as their trainers and replicas: both know
the same, calls that wait at one are woken from the other, and nothing acknowledged is lost when a
directory or Redis is killed."""
import json
import os
import shutil
import socket
import subprocess
import tempfile
import threading
import time
import unittest

import grpc

import peer_stubs

FOLDER = peer_stubs.generate()
import directory_pb2  # noqa: E402
import directory_pb2_grpc  # noqa: E402
import p2p_pb2  # noqa: E402
import refit_pb2  # noqa: E402
import refit_pb2_grpc  # noqa: E402

WEIR = os.path.abspath(os.path.join(os.environ.get("WEIR_TEST_BIN", "build/bin"), "weir"))
SLOTS = ["rank-0", "rank-1"]
BOUND_S = 60


def tearDownModule():
    shutil.rmtree(FOLDER, ignore_errors=True)


# What is started ends with this process. Not by a preexec_fn: gRPC's threads may hold a lock that a
# forked child would wait for.
END_WITH_PARENT = ["setpriv", "--pdeathsig", "KILL"]


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


class Redis:
    def __init__(self):
        self.folder = tempfile.mkdtemp(prefix="weir_redis_")
        self.port = free_port()
        self.store = os.path.join(self.folder, "url")
        with open(self.store, "w") as file:
            file.write("redis://127.0.0.1:%d\n" % self.port)
        self.start()

    def start(self):
        self.process = subprocess.Popen(
            [*END_WITH_PARENT, "redis-server", "--port", str(self.port), "--bind", "127.0.0.1",
             "--dir", self.folder, "--save", "", "--appendonly", "yes", "--appendfsync", "always",
             "--logfile", os.path.join(self.folder, "log")])

    def kill(self):
        self.process.kill()
        self.process.wait()

    def close(self):
        self.kill()
        shutil.rmtree(self.folder)


class Directory:
    """`weir serve` over that Redis, and a client of it."""

    def __init__(self, redis):
        self.process = subprocess.Popen(
            [*END_WITH_PARENT, WEIR, "serve", "--listen", "127.0.0.1:0", "--store", "@" + redis.store,
             "--name", "t", "--json"], stdout=subprocess.PIPE)
        line = self.process.stdout.readline()
        assert line, "weir serve ended"
        self.channel = grpc.insecure_channel(json.loads(line)["address"])
        self.refit = refit_pb2_grpc.RefitServiceStub(self.channel)
        self.fleet = directory_pb2_grpc.DirectoryServiceStub(self.channel)

    def kill(self):
        self.process.kill()
        self.end()

    def close(self):
        self.process.terminate()
        self.end()

    def end(self):
        self.process.wait()
        self.process.stdout.close()
        self.channel.close()

    def register(self, worker, role):
        self.refit.RegisterWorker(refit_pb2.RegisterWorkerRequest(
            worker=refit_pb2.WorkerRegistration(worker_id=worker, role=role, model_name="m"),
            ttl_seconds=600), timeout=10)

    def publish(self, number, slot):
        """The shard of one trainer rank; gives the version as it stands then."""
        worker = "trainer-" + slot
        request = directory_pb2.PublishVersionShardRequest(
            model_name="m", run="r", version_number=number, expected_source_slots=SLOTS,
            shard=refit_pb2.WeightVersionShard(
                source_slot_id=slot, worker_id=worker, tensor_count=3, total_bytes=number,
                manifest_digest="d%d" % number, manifest_endpoint="127.0.0.1:1",
                transport="ucx"),
            source=p2p_pb2.PublishMetadataRequest(
                identity=p2p_pb2.SourceIdentity(mx_version="0.3.0", model_name="m",
                                                extra_parameters={"role": "trainer", "run": "r"}),
                worker=p2p_pb2.WorkerMetadata(worker_rank=SLOTS.index(slot),
                                              status=p2p_pb2.SOURCE_STATUS_READY,
                                              agent_name=worker),
                worker_id=worker))
        return self.fleet.PublishVersionShard(request, timeout=10).version

    def acquire(self, lowest, timeout_ms):
        return self.fleet.AcquireVersion(directory_pb2.AcquireVersionRequest(
            model_name="m", run="r", worker_id="replica", lowest=lowest, highest=2**63,
            ttl_seconds=60, timeout_ms=timeout_ms), timeout=BOUND_S)

    def acknowledge(self, acquired):
        request = directory_pb2.AcknowledgeVersionRequest(
            source=p2p_pb2.PublishMetadataRequest(
                identity=p2p_pb2.SourceIdentity(
                    mx_version="0.3.0", model_name="m",
                    extra_parameters={"role": "inference_replica", "run": "r"}),
                worker=p2p_pb2.WorkerMetadata(
                    status=p2p_pb2.SOURCE_STATUS_READY, agent_name="replica",
                    tensor_source=p2p_pb2.TensorSourceMetadata(tensors=[
                        p2p_pb2.TensorDescriptor(name="__mx_weir__", dtype="0 - 1 layout {}"),
                        p2p_pb2.TensorDescriptor(name="__mx_weir_of__",
                                                 dtype="inference_replica r")])),
                worker_id="replica"),
            version_id=acquired.version.uid, version_number=acquired.version.version_number,
            lease_id=acquired.lease.lease_id, run="r")
        return self.fleet.AcknowledgeVersion(request, timeout=10)

    def version(self, uid):
        return self.refit.GetWeightVersion(
            refit_pb2.GetWeightVersionRequest(uid=uid), timeout=10)

    def shards(self, uid):
        return self.refit.ListWeightVersionShards(
            refit_pb2.ListWeightVersionShardsRequest(version_id=uid), timeout=10).shards


def until_it_works(call):
    """What a client does whose directory or Redis is away: asks again, for a while."""
    deadline = time.monotonic() + BOUND_S
    while True:
        try:
            return call()
        except grpc.RpcError as error:
            if error.code() != grpc.StatusCode.UNAVAILABLE or time.monotonic() > deadline:
                raise
            time.sleep(0.02)


class RedisDirectoryTest(unittest.TestCase):
    def setUp(self):
        self.redis = Redis()
        self.addCleanup(self.redis.close)
        self.a, self.b = self.directory(), self.directory()
        for slot in SLOTS:
            self.a.register("trainer-" + slot, refit_pb2.WORKER_ROLE_TRAINER)
        self.b.register("replica", refit_pb2.WORKER_ROLE_GENERATOR)

    def directory(self):
        one = Directory(self.redis)
        self.addCleanup(lambda: one.process.poll() is None and one.close())
        return one

    def test_each_knows_at_once_what_the_other_was_told(self):
        for number in range(1, 101):
            first = self.a.publish(number, SLOTS[0])
            second = self.b.publish(number, SLOTS[1])
            self.assertEqual(first.uid, second.uid)
            self.assertEqual(second.state, refit_pb2.WEIGHT_VERSION_STATE_READY)
            self.assertEqual(self.a.version(first.uid), self.b.version(first.uid))
            self.assertEqual([shard.worker_id for shard in self.a.shards(first.uid)],
                             ["trainer-" + slot for slot in SLOTS])
        lease = self.a.acquire(100, 0)
        self.assertTrue(lease.found)
        self.assertEqual(self.b.acquire(100, 0).lease.lease_id, lease.lease.lease_id)

    def test_what_is_asked_at_both_is_done_once(self):
        """What a worker does whose directory is gone before it has answered."""
        both = (self.a, self.b)
        for directory in both:
            directory.register("replica", refit_pb2.WORKER_ROLE_GENERATOR)
        answers = [directory.publish(1, slot) for slot in SLOTS for directory in both]
        self.assertEqual({answer.uid for answer in answers}, {answers[0].uid})
        uid = answers[0].uid
        self.assertEqual(len(self.a.shards(uid)), 2)
        leases = [directory.acquire(1, 0) for directory in both]
        self.assertEqual(leases[0].lease.lease_id, leases[1].lease.lease_id)
        said = [directory.acknowledge(leases[0]) for directory in both]
        self.assertEqual(said[0], said[1])
        for directory in both:
            answer = directory.fleet.AwaitReplicas(directory_pb2.AwaitReplicasRequest(
                model_name="m", version_id=uid, n_replicas=1), timeout=10)
            self.assertEqual((answer.n_holding, len(answer.words)), (1, 1))
        fleet = self.a.fleet.GetFleet(directory_pb2.GetFleetRequest(model_name="m"), timeout=10)
        self.assertEqual([version["n_leases"] for version in json.loads(fleet.json)["versions"]],
                         [0])
        for slot in SLOTS:
            for directory in both:
                answer = directory.fleet.RetireVersions(directory_pb2.RetireVersionsRequest(
                    version_ids=[uid], source_slot_id=slot, worker_id="trainer-" + slot), timeout=10)
                self.assertEqual(list(answer.leased_by), [])
        uid = self.a.publish(2, SLOTS[0]).uid
        for directory in both:
            answer = directory.fleet.AbortVersion(directory_pb2.AbortVersionRequest(
                version_id=uid, worker_id="trainer-" + SLOTS[0], reason="why"), timeout=10)
            self.assertEqual(answer.version.uid, uid)

    def test_a_wait_at_one_is_woken_by_the_last_shard_at_the_other(self):
        for number in range(1, 6):
            self.b.publish(number, SLOTS[0])
            found = []
            wait = threading.Thread(
                target=lambda: found.append((self.a.acquire(number, 30000), time.monotonic())))
            wait.start()
            time.sleep(0.1)  # for it to be parked; were it not, it would find the version READY
            self.assertEqual(found, [])
            begun = time.monotonic()
            uid = self.b.publish(number, SLOTS[1]).uid
            wait.join()
            self.assertTrue(found[0][0].found)
            self.assertEqual(found[0][0].version.uid, uid)
            self.assertLess(found[0][1] - begun, 5)

    def test_a_directory_killed_while_it_publishes_loses_nothing_acknowledged(self):
        acknowledged, ended = [], threading.Event()

        def publish():
            for number in range(1, 100000):
                try:
                    for slot in SLOTS:
                        acknowledged.append((number, slot, self.a.publish(number, slot).uid))
                except grpc.RpcError:
                    break
            ended.set()

        thread = threading.Thread(target=publish)
        thread.start()
        while len(acknowledged) < 150:
            self.assertFalse(ended.is_set())
            time.sleep(0.001)
        self.a.kill()
        thread.join()
        again = self.directory()
        for number, slot, uid in acknowledged:
            for directory in (self.b, again):
                self.assertIn((slot, "d%d" % number),
                              [(shard.source_slot_id, shard.manifest_digest)
                               for shard in directory.shards(uid)])
        # What was not acknowledged is asked for again, elsewhere, and comes out the same.
        number = acknowledged[-1][0] + 1
        uids = {self.b.publish(number, slot).uid for slot in SLOTS}
        self.assertEqual(len(uids), 1)
        self.assertEqual(again.version(uids.pop()).state, refit_pb2.WEIGHT_VERSION_STATE_READY)

    def test_redis_killed_loses_nothing_acknowledged(self):
        known = {}
        for kill in range(3):
            for number in range(kill * 20 + 1, kill * 20 + 21):
                if number % 20 == 10:
                    self.redis.kill()
                    with self.assertRaises(grpc.RpcError) as caught:
                        while True:  # it may not have noticed yet
                            self.a.publish(number, SLOTS[0])
                    self.assertEqual(caught.exception.code(), grpc.StatusCode.UNAVAILABLE)
                    self.assertIn("redis 127.0.0.1:%d" % self.redis.port,
                                  caught.exception.details())
                    self.redis.start()
                one, other = (self.a, self.b) if number % 2 else (self.b, self.a)
                until_it_works(lambda: one.publish(number, SLOTS[0]))
                known[number] = until_it_works(lambda: other.publish(number, SLOTS[1])).uid
        for directory in (self.a, self.b, self.directory()):
            for number, uid in known.items():
                version = directory.version(uid)
                self.assertEqual(version.version_number, number)
                self.assertEqual(version.state, refit_pb2.WEIGHT_VERSION_STATE_READY)

    def test_all_directories_started_again_know_the_same(self):
        uids = [[self.a.publish(number, slot).uid for slot in SLOTS][0] for number in range(1, 31)]
        lease = self.b.acquire(30, 0).lease
        before = [(self.a.version(uid), list(self.a.shards(uid))) for uid in uids]
        self.a.close()
        self.b.kill()
        again = self.directory()
        self.assertEqual([(again.version(uid), list(again.shards(uid))) for uid in uids], before)
        self.assertEqual(again.acquire(30, 0).lease.lease_id, lease.lease_id)


class RefusedTest(unittest.TestCase):
    def test_what_weir_serve_says_of_a_redis_it_cannot_use(self):
        for store, text in (("redis://u:hidden@127.0.0.1:port", "the port is not a number"),
                            ("rediss://u:hidden@127.0.0.1:1", "the store is neither memory nor")):
            run = subprocess.run([WEIR, "serve", "--listen", "127.0.0.1:0", "--store", store],
                                 capture_output=True, text=True, timeout=BOUND_S)
            self.assertEqual(run.returncode, 1)
            self.assertIn(text, run.stderr)
            self.assertNotIn("hidden", run.stderr)
        run = subprocess.run([WEIR, "serve", "--store", "@/nonexistent"], capture_output=True,
                             text=True, timeout=BOUND_S)
        self.assertEqual(run.returncode, 2)
        self.assertIn("--store: cannot read '/nonexistent'", run.stderr)


if __name__ == "__main__":
    unittest.main()
