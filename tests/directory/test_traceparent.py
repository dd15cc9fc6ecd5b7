# SPDX-License-Identifier: Apache-2.0
"""W3C Trace Context as gRPC metadata, with Python's gRPC on the other side: what a client says of its
trace becomes the version's, and what Weir's workers say of theirs arrives at a server."""
import concurrent.futures
import json
import os
import shutil
import subprocess
import tempfile
import unittest

import grpc

import peer_stubs

FOLDER = peer_stubs.generate()
import directory_pb2  # noqa: E402
import directory_pb2_grpc  # noqa: E402
import refit_pb2  # noqa: E402
import refit_pb2_grpc  # noqa: E402

WEIR = os.path.abspath(os.path.join(os.environ.get("WEIR_TEST_BIN", "build/bin"), "weir"))
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
SPAN = "00f067aa0ba902b7"
GOOD = f"00-{TRACE}-{SPAN}-01"
BOUND_S = 60


def tearDownModule():
    shutil.rmtree(FOLDER, ignore_errors=True)


# What is started ends with this process. Not by a preexec_fn: gRPC's threads may hold a lock that a
# forked child would wait for.
END_WITH_PARENT = ["setpriv", "--pdeathsig", "KILL"]


class ToWeir(unittest.TestCase):
    """A client of ModelExpress' RefitService whose gRPC is instrumented."""

    def setUp(self):
        self.log = tempfile.TemporaryFile(mode="w+")
        self.addCleanup(self.log.close)
        self.process = subprocess.Popen(
            [*END_WITH_PARENT, WEIR, "--log-level", "debug", "--log-format", "json", "serve",
             "--listen", "127.0.0.1:0", "--no-http", "--json"], stdout=subprocess.PIPE, stderr=self.log)
        self.channel = grpc.insecure_channel(json.loads(self.process.stdout.readline())["address"])
        self.refit = refit_pb2_grpc.RefitServiceStub(self.channel)
        self.fleet = directory_pb2_grpc.DirectoryServiceStub(self.channel)
        self.addCleanup(self.end)
        self.number = 0

    def end(self):
        self.channel.close()
        self.process.terminate()
        self.process.wait()
        self.process.stdout.close()

    def trace_of_version(self, *metadata):
        """Of one that is made with this metadata."""
        self.number += 1
        uid = self.refit.CreateWeightVersion(refit_pb2.CreateWeightVersionRequest(
            model_name="m", version_number=self.number, idempotency_key=str(self.number),
            payload_format=refit_pb2.WEIGHT_PAYLOAD_FORMAT_FULL_TENSOR,
            expected_source_slots=["rank-0"]), timeout=10, metadata=metadata).uid
        fleet = json.loads(self.fleet.GetFleet(directory_pb2.GetFleetRequest(), timeout=10).json)
        return [version["trace_id"] for version in fleet["versions"] if version["uid"] == uid][0]

    def test_the_callers_trace_is_the_versions(self):
        self.assertEqual(self.trace_of_version(("traceparent", GOOD)), TRACE)
        later = f"cc-{TRACE}-{SPAN}-01-and-more"
        self.assertEqual(self.trace_of_version(("traceparent", later)), TRACE)
        self.end()
        self.log.seek(0)
        lines = [json.loads(line) for line in self.log]
        self.assertIn(("RefitService.CreateWeightVersion", TRACE, SPAN),
                      [(line.get("method"), line.get("trace_id"), line.get("parent_span_id"))
                       for line in lines])

    def test_what_is_malformed_is_as_good_as_none(self):
        for bad in ("", "00", GOOD.upper(), GOOD + "-x", GOOD[:-1], f"ff-{TRACE}-{SPAN}-01",
                    f"00-{'0' * 32}-{SPAN}-01", f"00-{TRACE}-{'0' * 16}-01", "-" * 55,
                    "0" * 8000, GOOD + "," + GOOD):
            with self.subTest(bad=bad[:70]):
                self.assertEqual(self.trace_of_version(("traceparent", bad)), "")
        self.assertEqual(self.trace_of_version(("traceparent", GOOD), ("traceparent", GOOD)), "")
        self.assertEqual(self.trace_of_version(), "")

    def test_a_message_that_says_its_trace_comes_before_the_header(self):
        self.refit.RegisterWorker(refit_pb2.RegisterWorkerRequest(
            worker=refit_pb2.WorkerRegistration(worker_id="t", role=1, model_name="m"),
            ttl_seconds=60), timeout=10)
        for number, said, expected in ((7, "a" * 32, "a" * 32), (8, "", TRACE)):
            request = directory_pb2.PublishVersionShardRequest(
                model_name="m", run="r", version_number=number, expected_source_slots=["rank-0"],
                trace_id=said, shard=refit_pb2.WeightVersionShard(
                    source_slot_id="rank-0", worker_id="t", manifest_digest="d%d" % number))
            request.source.identity.model_name = "m"
            request.source.identity.extra_parameters.update({"role": "trainer", "run": "r"})
            request.source.worker.status = 2
            request.source.worker_id = "t"
            answer = self.fleet.PublishVersionShard(request, timeout=10,
                                                    metadata=(("traceparent", GOOD),))
            self.assertEqual(answer.trace_id, expected)


class Recorder(grpc.GenericRpcHandler):
    """A server of ModelExpress that takes workers and versions, and keeps what came beside each call."""

    def __init__(self):
        self.calls = []

    def service(self, details):
        name = details.method.rsplit("/", 1)[1]
        said = [value for key, value in details.invocation_metadata if key == "traceparent"]
        self.calls.append((name, said))
        if name == "RegisterWorker":
            return grpc.unary_unary_rpc_method_handler(
                lambda request, context: request.worker,
                refit_pb2.RegisterWorkerRequest.FromString,
                refit_pb2.WorkerRegistration.SerializeToString)
        if name == "CreateWeightVersion":
            return grpc.unary_unary_rpc_method_handler(
                lambda request, context: refit_pb2.WeightVersion(
                    uid="00000001", model_name=request.model_name, state=1,
                    version_number=request.version_number,
                    expected_source_slots=request.expected_source_slots),
                refit_pb2.CreateWeightVersionRequest.FromString,
                refit_pb2.WeightVersion.SerializeToString)
        if name == "ListWeightVersionShards":
            return grpc.unary_unary_rpc_method_handler(
                lambda request, context: refit_pb2.ListWeightVersionShardsResponse(),
                refit_pb2.ListWeightVersionShardsRequest.FromString,
                refit_pb2.ListWeightVersionShardsResponse.SerializeToString)
        return None


class FromWeir(unittest.TestCase):
    def test_every_call_of_a_refit_says_its_trace(self):
        folder = tempfile.mkdtemp(prefix="weir-trace-")
        self.addCleanup(shutil.rmtree, folder, ignore_errors=True)
        subprocess.run([WEIR, "synth", "--family", "llama", "--preset", "tiny", "-o",
                        os.path.join(folder, "step")], check=True, capture_output=True,
                       timeout=BOUND_S)
        recorder = Recorder()
        server = grpc.server(concurrent.futures.ThreadPoolExecutor(4))
        server.add_generic_rpc_handlers((recorder,))
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        self.addCleanup(lambda: server.stop(0).wait())
        run = subprocess.run(
            [WEIR, "publish", os.path.join(folder, "step"), "--version", "1", "--directory",
             f"127.0.0.1:{port}", "--model", "m", "--conversion", "bf16_cast", "--transport",
             "file", "--transport-directory", folder, "--traceparent", GOOD],
            capture_output=True, text=True, timeout=BOUND_S, check=False)
        self.assertEqual(run.returncode, 1, run.stderr)  # it takes no shards
        said = {name: values for name, values in recorder.calls}
        self.assertEqual(said["RegisterWorker"], [])
        for name in ("PublishVersionShard", "CreateWeightVersion", "CreateWeightVersionShard"):
            self.assertEqual(len(said[name]), 1, recorder.calls)
            version, trace, span, flags = said[name][0].split("-")
            self.assertEqual((version, trace, flags), ("00", TRACE, "01"))
            self.assertRegex(span, "^[0-9a-f]{16}$")
            self.assertNotIn(span, (SPAN, "0" * 16))
        self.assertEqual(len({values[0] for values in said.values() if values}), 1)


if __name__ == "__main__":
    unittest.main()
