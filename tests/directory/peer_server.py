# SPDX-License-Identifier: Apache-2.0
"""A directory by Python's own gRPC, for test_client_peer.c. Prints its address, serves until its
input ends. It keeps little; what it says depends on what it is asked."""
import concurrent.futures
import shutil
import sys
import time

import grpc

import peer_stubs

FOLDER = peer_stubs.generate()
import p2p_pb2  # noqa: E402
import p2p_pb2_grpc  # noqa: E402
import refit_pb2  # noqa: E402
import refit_pb2_grpc  # noqa: E402


def version(uid, **fields):
    return refit_pb2.WeightVersion(uid=uid, model_name="m", state=2, created_at_unix_ms=5,
                                   expected_source_slots=["rank-0", "rank-1"], **fields)


class Refit(refit_pb2_grpc.RefitServiceServicer):
    def CreateWeightVersion(self, request, context):
        if not request.HasField("version_number") or request.HasField("base_version_id"):
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "presence is wrong")
        return refit_pb2.WeightVersion(
            uid="00000001", model_name=request.model_name, version_number=request.version_number,
            expected_source_slots=request.expected_source_slots, state=1)

    def GetWeightVersion(self, request, context):
        if request.uid == "slow":
            time.sleep(3)
        if request.uid.startswith("deny:"):
            context.abort(getattr(grpc.StatusCode, request.uid[5:]), "d\u00e9nied, 100%")
        if request.uid == "without":
            return version("without")
        if request.uid == "zero":
            return version("zero", version_number=0)
        if request.uid == "wide":
            return refit_pb2.WeightVersion(uid="wide", expected_source_slots=["s"] * 1025)
        if request.uid == "long":
            return refit_pb2.WeightVersion(uid="long", model_name="m" * 256)
        if request.uid == "crash":
            raise RuntimeError("no such luck")
        return version(request.uid, version_number=2**64 - 1)

    def RegisterWorker(self, request, context):
        return request.worker

    def ListWeightVersionShards(self, request, context):
        return refit_pb2.ListWeightVersionShardsResponse(shards=[
            refit_pb2.WeightVersionShard(
                version_id=request.version_id, source_slot_id="rank-%d" % i, worker_id="w\u00e9%d" % i,
                tensor_count=i, total_bytes=2**63, manifest_digest="sha256:" + "0" * 64,
                manifest_endpoint="[::1]:%d" % i, transport="ucx") for i in range(500)])

    def CreateWeightVersionShard(self, request, context):
        if request.shard.worker_id == "forgets":
            return refit_pb2.CreateWeightVersionShardResponse(shard=request.shard)
        return refit_pb2.CreateWeightVersionShardResponse(
            shard=request.shard, version=version(request.shard.version_id))

    def RegisterVersionLease(self, request, context):
        return refit_pb2.VersionLease(lease_id="l" * (64 if request.worker_id == "long" else 63))


class Worker(refit_pb2_grpc.RefitWorkerServiceServicer):
    def GetWeightVersionShardManifest(self, request, context):
        return refit_pb2.GetWeightVersionShardManifestResponse(
            manifest=bytes(range(256)) * (8 << 12), manifest_digest="sha256:" + "f" * 64)


class P2p(p2p_pb2_grpc.P2pServiceServicer):
    def __init__(self):
        self.published = {}

    def PublishMetadata(self, request, context):
        self.published[request.worker_id] = request
        return p2p_pb2.PublishMetadataResponse(success=True, mx_source_id="0" * 16)

    def ListSources(self, request, context):
        if not (request.HasField("model_name_filter") and request.HasField("limit")) or \
                request.HasField("min_training_step") or request.HasField("identity"):
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "presence is wrong")
        return p2p_pb2.ListSourcesResponse(instances=[
            p2p_pb2.SourceInstanceRef(mx_source_id="0" * 16, worker_id="w", model_name=name,
                                      worker_rank=1, updated_at=7) for name in ("m", "other")])

    def GetMetadata(self, request, context):
        if request.worker_id in self.published:
            stored = self.published[request.worker_id]
            return p2p_pb2.GetMetadataResponse(found=True, worker=stored.worker,
                                               identity=stored.identity)
        if request.worker_id == "foreign":
            sidecar = p2p_pb2.TensorDescriptor(
                name="__mx_v2_meta__", dtype='{"mx_v2":"1","role":"trainer","training_step":9}')
            return p2p_pb2.GetMetadataResponse(
                found=True, identity=p2p_pb2.SourceIdentity(model_name="m"),
                worker=p2p_pb2.WorkerMetadata(worker_rank=5, status=2, tensors=[sidecar]))
        if request.worker_id == "bad":
            bad = p2p_pb2.TensorDescriptor(name="__mx_weir__", dtype="no number")
            return p2p_pb2.GetMetadataResponse(
                found=True, worker=p2p_pb2.WorkerMetadata(tensors=[bad]))
        return p2p_pb2.GetMetadataResponse(found=False)

    def UpdateStatus(self, request, context):
        return p2p_pb2.UpdateStatusResponse(success=False)


def main():
    large = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
    server = grpc.server(concurrent.futures.ThreadPoolExecutor(4), options=large)
    refit_pb2_grpc.add_RefitServiceServicer_to_server(Refit(), server)
    refit_pb2_grpc.add_RefitWorkerServiceServicer_to_server(Worker(), server)
    p2p_pb2_grpc.add_P2pServiceServicer_to_server(P2p(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    print("127.0.0.1:%d" % port, flush=True)
    sys.stdin.read()
    server.stop(0)
    shutil.rmtree(FOLDER, ignore_errors=True)


main()
