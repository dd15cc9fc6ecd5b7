# SPDX-License-Identifier: Apache-2.0
"""`weir trace` and structured logs over real processes: two trainer ranks, two replicas, a directory,
and a replica that refuses the version."""
import json
import os
import shutil
import subprocess
import sys
import time
import unittest

import grpc

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "refit"))
sys.path.insert(0, os.path.join(HERE, "..", "directory"))
import peer_stubs  # noqa: E402
from flow_case import WAIT_S, WEIR, FlowCase, name_of  # noqa: E402

FOLDER = peer_stubs.generate()
import directory_pb2  # noqa: E402
import directory_pb2_grpc  # noqa: E402
import p2p_pb2  # noqa: E402

TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
TRACEPARENT = f"00-{TRACE_ID}-00f067aa0ba902b7-01"
TRAINER_STOPS = ["source", "stage", "slot", "publish"]
REPLICA_STOPS = ["discover", "transfer", "install", "postprocess", "ack"]
LOGS = ["--log-format", "json", "--log-level", "info"]
SLACK_US = 2  # of numbers that were rounded


def tearDownModule():
    shutil.rmtree(FOLDER, ignore_errors=True)


def spans(trace, **wanted):
    return [e for e in trace["traceEvents"] if e["ph"] == "X"
            and all(e[key] == value for key, value in wanted.items())]


def log_lines(process):
    """All of stderr, once the process has ended: each line is an object."""
    process.process.terminate()
    _, errors = process.process.communicate(timeout=WAIT_S)
    return [json.loads(line) for line in errors.decode().splitlines()]


class TraceCase(FlowCase):
    versions = 1

    def trace(self, *arguments, code=0):
        path = os.path.join(self.folder, "trace.json")
        result = subprocess.run([WEIR, "trace", *arguments, "--directory", self.address, "-o", path],
                                capture_output=True, text=True, timeout=WAIT_S, check=False)
        self.assertEqual(result.returncode, code, result.stderr)
        if code != 0:
            return result.stderr
        with open(path, encoding="utf-8") as stream:
            return {**json.load(stream), "text": result.stdout}

    def refit(self):
        """One version from two ranks to two replicas. The reports of all four."""
        self.ranks = self.trainers("--traceparent", TRACEPARENT, *LOGS)
        self.replicas = [self.replica(name, "--hold", *LOGS) for name in ("r0", "r1")]
        for rank in self.ranks:
            rank.send(self.checkpoint(1))
        reports = [rank.line() for rank in self.ranks]
        return reports, [self.expect_installed(replica, 1) for replica in self.replicas]

    def parents(self, trace):
        """Worker -> its whole refit, and the stops in it."""
        found = {}
        for parent in spans(trace):
            if "worker_id" in parent["args"]:
                inside = [e for e in spans(trace, pid=parent["pid"], tid=parent["tid"])
                          if e is not parent]
                found[name_of(parent["args"]["worker_id"])] = (parent, inside)
        return found

    def check_inside(self, trace, parent):
        begin, end = parent["ts"], parent["ts"] + parent["dur"]
        for event in spans(trace, pid=parent["pid"]):
            same = parent["tid"] <= event["tid"] < parent["tid"] + 16
            if same:
                self.assertGreaterEqual(event["ts"], begin - SLACK_US, event)
                self.assertLessEqual(event["ts"] + event["dur"], end + SLACK_US, event)

    def check_stops(self, stops, wanted, report):
        by_name = {e["name"]: e for e in stops}
        self.assertEqual([e["name"] for e in stops if e["name"] in wanted], wanted)
        for before, after in zip(wanted, wanted[1:]):
            self.assertLessEqual(by_name[before]["ts"] + by_name[before]["dur"],
                                 by_name[after]["ts"] + SLACK_US)
        for name in wanted[:-1]:  # the last one tells all this, and ends behind it
            self.assertAlmostEqual(by_name[name]["dur"] * 1e-6, report["seconds"].get(name, 0),
                                   delta=SLACK_US * 1e-6, msg=name)
        self.assertLessEqual(by_name[wanted[-1]]["dur"] * 1e-6,
                             report["seconds"][wanted[-1]] + SLACK_US * 1e-6)
        return by_name

    def test_every_worker_has_every_stop_and_one_id_is_everywhere(self):
        published, installed = self.refit()
        trace = self.trace("1")
        self.assertEqual(trace["otherData"]["trace_id"], TRACE_ID)
        parents = self.parents(trace)
        self.assertEqual(len(parents), 4)
        for worker, (parent, stops) in parents.items():
            is_replica = worker in ("r0", "r1")
            self.assertEqual(parent["args"]["trace_id"], TRACE_ID)
            self.assertEqual(parent["args"]["status"], "OK")
            self.assertEqual(parent["name"],
                             "version 1 installed" if is_replica else "version 1 published")
            self.check_inside(trace, parent)
            reports = installed if is_replica else published
            number = int(worker[1]) if is_replica else parent["args"]["rank"]
            by_name = self.check_stops(stops, REPLICA_STOPS if is_replica else TRAINER_STOPS,
                                       reports[number])
            if not is_replica:
                continue
            self.assertAlmostEqual(by_name["wait ready"]["dur"] * 1e-6,
                                   reports[number]["waited_seconds"], delta=1e-3)
            self.assertEqual(by_name["transfer"]["args"]["bytes"], reports[number]["bytes"])
            reads = [e for e in spans(trace, pid=parent["pid"]) if "source" in e["args"]
                     and e["name"].startswith("read ")]
            self.assertEqual(sorted(e["args"]["source"] for e in reads), ["rank-0", "rank-1"])
            self.assertEqual(sum(e["args"]["bytes"] for e in reads), reports[number]["bytes"])
        names = {e["args"]["name"] for e in trace["traceEvents"]
                 if e["ph"] == "M" and e["name"] == "process_name"}
        self.assertEqual({name_of(name) for name in names},
                         {"directory", "trainer", "replica r0", "replica r1"})
        staging = spans(trace, pid=1)
        self.assertEqual([e["args"]["state"] for e in staging], ["READY"])
        for word in ("trainer", "r0", "r1", "OK"):
            self.assertIn(word, trace["text"])

    def test_logs_are_json_and_carry_the_same_id(self):
        self.refit()
        for process, said in [(p, "published") for p in self.ranks] + \
                             [(p, "installed") for p in self.replicas]:
            lines = log_lines(process)
            for line in lines:
                self.assertRegex(line["ts"], r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$")
                self.assertIn(line["level"], ("error", "warn", "info", "debug"))
            done = [line for line in lines if line.get("status") == "OK"]
            self.assertEqual(len(done), 1, lines)
            self.assertEqual((done[0]["version"], done[0]["trace_id"], done[0]["model"]),
                             (1, TRACE_ID, "m"))
            self.assertIn(said, done[0]["msg"])
            self.assertGreater(done[0]["bytes"], 0)
            self.assertGreater(done[0]["seconds"], 0)

    def test_who_refused_a_version_says_why(self):
        ranks = self.trainers()
        good = self.replica("good", "--hold")
        other = self.start("receive", "--name", "bad", "--config", self.config, "--directory",
                           self.address, "--model", "m", "--conversion", "bf16_cast", "--json",
                           "--transport-directory", self.folder)
        self.publish(ranks, 1)
        self.expect_installed(good, 1)
        failed = self.expect_failed(other)
        trace = self.trace("1", "--model", "m", "--run", "default")
        ids = {parent["args"]["trace_id"] for parent, _ in self.parents(trace).values()}
        self.assertEqual(ids, {trace["otherData"]["trace_id"]})  # the first rank's counts
        parent, stops = self.parents(trace)["bad"]
        self.assertEqual(parent["name"], "version 1 refused")
        self.assertEqual(parent["args"]["text"], failed["error"])
        self.assertNotIn(parent["args"]["status"], ("OK", "UNKNOWN"))
        self.assertEqual([e["name"] for e in stops if not e["name"].startswith("wait")], ["discover"])
        self.check_inside(trace, parent)
        self.assertIn(failed["error"][:60], trace["text"])

    def test_a_version_that_nobody_knows_is_answered_with_those_that_are(self):
        self.assertIn("the last that it knows: none", self.trace("7", code=1))
        self.publish(self.trainers(), 1)
        self.assertIn("knows nothing of version 7; the last that it knows: 1 of m (run default)",
                      self.trace("7", code=1))
        self.assertIn("the last that it knows: none", self.trace("1", "--model", "n", code=1))
        self.assertIn("one version at a time", self.trace("1", "2", code=2))
        self.assertIn("takes text or json", self.trace("1", "--log-format", "xml", code=2))
        self.assertIn("error, warn, info or debug", self.trace("1", "--log-level", "loud", code=2))

    def say(self, fleet, worker, host, late_s):
        """A word that ends so long before it comes, by that host's clock."""
        ended_us = int((time.time() - late_s) * 1e6)
        fleet.AcknowledgeVersion(directory_pb2.AcknowledgeVersionRequest(
            source=p2p_pb2.PublishMetadataRequest(
                worker_id=worker, identity=p2p_pb2.SourceIdentity(model_name="m"),
                worker=p2p_pb2.WorkerMetadata(worker_rank=0, status=2)),
            version_id="u", version_number=5, run="r", host=host,
            stops=[directory_pb2.Stop(name="discover", begun_unix_us=ended_us - 3000,
                                      duration_us=1000),
                   directory_pb2.Stop(name="transfer", begun_unix_us=ended_us - 2000,
                                      duration_us=2000)]), timeout=10)

    def test_clocks_that_cannot_be_right_are_moved(self):
        with grpc.insecure_channel(self.address) as channel:
            fleet = directory_pb2_grpc.DirectoryServiceStub(channel)
            begun = time.time()
            for word in (("right", "a", 0), ("ahead", "b", -3600), ("behind", "c", 7200),
                         ("told-late", "a", 60)):
                self.say(fleet, *word)
        trace = self.trace("5")
        zero_us = trace["otherData"]["begun_unix_us"]
        parents = {worker: parent for worker, (parent, _) in self.parents(trace).items()}
        for worker, moved_s in (("ahead", -3600), ("behind", 7200)):
            self.assertAlmostEqual(parents[worker]["args"]["clock_moved_us"] * 1e-6, moved_s, delta=5)
        for worker in ("right", "told-late"):  # another word shows that this host's clock is right
            self.assertNotIn("clock_moved_us", parents[worker]["args"])
        for worker in ("right", "ahead", "behind"):
            self.assertAlmostEqual((zero_us + parents[worker]["ts"]) * 1e-6, begun, delta=5)
            self.assertEqual(parents[worker]["dur"], 3000)
            self.check_inside(trace, parents[worker])
        self.assertEqual(min(e["ts"] for e in spans(trace)), 0)

    def test_a_trace_that_is_none_is_refused_before_anything_is_published(self):
        rank = self.trainer(0, "--traceparent", "00-abc-def-01")
        rank.send(self.checkpoint(1))
        code, error = rank.wait()
        self.assertEqual(code, 1)
        self.assertIn("traceparent '00-abc-def-01'", error)


if __name__ == "__main__":
    unittest.main()
