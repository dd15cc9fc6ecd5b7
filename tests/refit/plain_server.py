# SPDX-License-Identifier: Apache-2.0
"""A directory that offers ModelExpress' two services and no more, by Python's own gRPC. It keeps what
it is told, and fills no field that is optional. Prints its address, serves until its input ends."""
import concurrent.futures
import hashlib
import os
import shutil
import sys
import threading
import time

import grpc

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "directory"))
import peer_stubs  # noqa: E402

FOLDER = peer_stubs.generate()
import p2p_pb2  # noqa: E402
import p2p_pb2_grpc  # noqa: E402
import refit_pb2  # noqa: E402
import refit_pb2_grpc  # noqa: E402

STAGING, READY, RELEASING = 1, 2, 3
GENERATOR = 2
REFUSED = grpc.StatusCode.FAILED_PRECONDITION


def now_ms():
    return int(time.time() * 1000)


class P2p(p2p_pb2_grpc.P2pServiceServicer):
    def __init__(self):
        self.entries = {}

    @staticmethod
    def source_id(identity):
        return hashlib.sha256(identity.SerializeToString(deterministic=True)).hexdigest()[:16]

    def PublishMetadata(self, request, context):
        source_id = self.source_id(request.identity)
        request.worker.updated_at = now_ms()
        self.entries[source_id, request.worker_id] = request
        return p2p_pb2.PublishMetadataResponse(success=True, mx_source_id=source_id,
                                               worker_id=request.worker_id)

    def wanted(self, key, entry, request):
        """A step is not known here: no entry has the least one that is asked for."""
        return not ((request.HasField("identity") and self.source_id(request.identity) != key[0])
                    or (request.HasField("status_filter")
                        and entry.worker.status != request.status_filter)
                    or (request.HasField("model_name_filter")
                        and entry.identity.model_name != request.model_name_filter)
                    or request.HasField("min_training_step"))

    def ListSources(self, request, context):
        found = [(key, entry) for key, entry in self.entries.items()
                 if self.wanted(key, entry, request)]
        found.sort(key=lambda one: -one[1].worker.updated_at)
        if request.HasField("limit"):
            found = found[:request.limit]
        return p2p_pb2.ListSourcesResponse(instances=[p2p_pb2.SourceInstanceRef(
            mx_source_id=key[0], worker_id=key[1], model_name=entry.identity.model_name,
            worker_rank=entry.worker.worker_rank, updated_at=entry.worker.updated_at)
            for key, entry in found])

    def GetMetadata(self, request, context):
        entry = self.entries.get((request.mx_source_id, request.worker_id))
        if entry is None:
            return p2p_pb2.GetMetadataResponse(found=False)
        return p2p_pb2.GetMetadataResponse(found=True, worker=entry.worker,
                                           identity=entry.identity)

    def UpdateStatus(self, request, context):
        entry = self.entries.get((request.mx_source_id, request.worker_id))
        if entry is None:
            return p2p_pb2.UpdateStatusResponse(success=False, message="no such source")
        entry.worker.status = request.status
        return p2p_pb2.UpdateStatusResponse(success=True)


class Refit(refit_pb2_grpc.RefitServiceServicer):
    def __init__(self):
        self.lock = threading.RLock()
        self.workers, self.versions, self.by_key, self.shards, self.leases = {}, {}, {}, {}, {}

    def live(self, worker_id, context):
        worker = self.workers.get(worker_id)
        if worker is None or worker.expires_at_unix_ms < now_ms():
            context.abort(REFUSED, "worker registration is missing or expired")
        return worker

    def version(self, uid, context):
        if uid not in self.versions:
            context.abort(grpc.StatusCode.NOT_FOUND, "version not found")
        return self.versions[uid]

    def RegisterWorker(self, request, context):
        request.worker.expires_at_unix_ms = now_ms() + 1000 * request.ttl_seconds
        self.workers[request.worker.worker_id] = request.worker
        return request.worker

    def CreateWeightVersion(self, request, context):
        with self.lock:
            if request.idempotency_key in self.by_key:
                before, uid = self.by_key[request.idempotency_key]
                if before != request:
                    context.abort(REFUSED,
                                  "idempotency_key was already used for a different WeightVersion")
                return self.versions[uid]
            uid = "%08x" % (0xa0000001 + len(self.versions))
            self.by_key[request.idempotency_key] = (request, uid)
            self.versions[uid] = refit_pb2.WeightVersion(
                uid=uid, model_name=request.model_name, version_number=request.version_number,
                idempotency_key=request.idempotency_key, payload_format=request.payload_format,
                expected_source_slots=request.expected_source_slots, state=STAGING,
                created_at_unix_ms=now_ms())
            return self.versions[uid]

    def GetWeightVersion(self, request, context):
        return self.version(request.uid, context)

    def DeleteWeightVersion(self, request, context):
        with self.lock:
            version = self.version(request.uid, context)
            if version.state != READY:
                context.abort(REFUSED, "only a READY weight version can be deleted")
            version.state = RELEASING
            return version

    def CreateWeightVersionShard(self, request, context):
        shard = request.shard
        with self.lock:
            version = self.version(shard.version_id, context)
            self.live(shard.worker_id, context)
            if version.state not in (STAGING, READY):
                context.abort(REFUSED, "weight version does not accept shard publication")
            key = (shard.version_id, shard.worker_id, shard.source_slot_id)
            if self.shards.setdefault(key, shard) != shard:
                context.abort(REFUSED, "already published different metadata")
            slots = {slot for uid, _, slot in self.shards if uid == version.uid}
            if slots == set(version.expected_source_slots):
                version.state = READY
            return refit_pb2.CreateWeightVersionShardResponse(shard=shard, version=version)

    def ListWeightVersionShards(self, request, context):
        with self.lock:
            return refit_pb2.ListWeightVersionShardsResponse(
                shards=[shard for key, shard in self.shards.items()
                        if key[0] == request.version_id])

    def DeleteWeightVersionShard(self, request, context):
        with self.lock:
            version = self.version(request.version_id, context)
            if version.state != RELEASING:
                context.abort(REFUSED, "weight version must be RELEASING")
            if any(uid == version.uid and until > now_ms()
                   for (uid, _), until in self.leases.items()):
                context.abort(REFUSED, "weight version has an active lease")
            key = (request.version_id, request.worker_id, request.source_slot_id)
            return refit_pb2.DeleteWeightVersionShardResponse(
                deleted=self.shards.pop(key, None) is not None)

    def RegisterVersionLease(self, request, context):
        with self.lock:
            version = self.version(request.version_id, context)
            key = (request.version_id, request.worker_id)
            renews = self.leases.get(key, 0) > now_ms() and version.state == RELEASING
            if self.live(request.worker_id, context).role != GENERATOR or not (
                    version.state == READY or renews):
                context.abort(REFUSED, "weight version is not READY")
            self.leases[key] = now_ms() + 1000 * request.ttl_seconds
            return refit_pb2.VersionLease(lease_id="lease-" + request.worker_id[:40],
                                          version_id=request.version_id,
                                          worker_id=request.worker_id,
                                          expires_at_unix_ms=self.leases[key])

    def DeleteVersionLease(self, request, context):
        with self.lock:
            key = (request.version_id, request.worker_id)
            return refit_pb2.DeleteVersionLeaseResponse(
                deleted=self.leases.pop(key, None) is not None)


def main():
    large = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
    server = grpc.server(concurrent.futures.ThreadPoolExecutor(8), options=large)
    refit_pb2_grpc.add_RefitServiceServicer_to_server(Refit(), server)
    p2p_pb2_grpc.add_P2pServiceServicer_to_server(P2p(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    print('{"address": "127.0.0.1:%d"}' % port, flush=True)
    sys.stdin.read()
    server.stop(0)
    shutil.rmtree(FOLDER, ignore_errors=True)


main()
