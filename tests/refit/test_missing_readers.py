# SPDX-License-Identifier: Apache-2.0
"""Ranks and readers that are gone or say nothing: who waits for them is told, who watches sees it."""
import json
import os
import re
import signal
import subprocess
import unittest
import urllib.request

import flow_case


class WhoIsMissing(flow_case.FlowCase):
    def setUp(self):
        super().setUp()
        self.directory.end()
        self.directory = self.start("serve", "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0",
                                    "--json")
        said = self.directory.line()
        self.address, self.http = said["address"], said["http"]
        self.flow[1] = self.address

    def get(self, path):
        with urllib.request.urlopen(f"http://{self.http}{path}", timeout=10) as answer:
            return answer.read().decode()

    def fleet(self):
        return json.loads(self.get("/api/fleet"))

    def weir(self, *arguments):
        return subprocess.run([flow_case.WEIR, *arguments, "--directory", self.address],
                              capture_output=True, text=True, timeout=20, check=False)

    def test_a_version_that_nobody_can_read_is_seen(self):
        trainers = self.trainers("--lease", "2")
        self.publish(trainers, 1)
        self.assertIn('weir_unreadable_versions{model="m",run="default"} 0', self.get("/metrics"))
        trainers[0].signal(signal.SIGKILL)
        late = self.replica("late", "--version", "1", "--timeout", "3")
        self.expect_failed(late, "of 2 trainer ranks these published it, but are gone: rank-0 "
                                 "(worker trainer-0-")
        version, = self.fleet()["versions"]
        self.assertEqual((version["state"], version["covered"], version["slots"]), ("READY", 1, 2))
        self.assertTrue(version["unreadable"])
        self.assertEqual(version["missing"], ["rank-0"])
        self.assertEqual([flow_case.name_of(gone["worker_id"]) for gone in version["gone"]],
                         ["trainer-0"])
        status = {source["rank"]: source["status"] for source in self.fleet()["sources"]
                  if source["role"] == "trainer"}
        self.assertEqual(status, {0: "GONE", 1: "READY"})
        metrics = self.get("/metrics")
        self.assertIn('weir_unreadable_versions{model="m",run="default"} 1', metrics)
        self.assertIn('weir_sources{model="m",status="gone"} 1', metrics)
        self.assertIn("version 1: nobody can read it: 1 of 2 shards are there, no replica holds "
                      "it; gone: rank-0 (trainer-0)", self.weir("top", "--once").stdout)

    def test_a_version_that_is_over_is_said_to_be(self):
        trainers = self.trainers()
        self.publish(trainers, 1)
        for trainer in trainers:
            trainer.signal(signal.SIGTERM)
        for trainer in trainers:
            trainer.wait()
        for wish in (("--version", "1"), ()):
            late = self.replica("late", *wish, "--timeout", "1")
            self.expect_failed(late, "version 1 is over: its trainer has ended or taken it back, "
                                     "and no replica holds it")

    def test_a_replica_that_died_is_named_after_its_lease(self):
        trainer = self.start("publish", self.checkpoint(1), self.checkpoint(2), "--version", "1",
                             "--replicas", "1", *self.flow, "--timeout", "5")
        self.replica("engine", "--follow", "--lease", "2", "--die-at", "transfer:2")
        for _ in range(2):
            self.assertEqual(trainer.line()["event"], "published")
        code, error = trainer.wait()
        self.assertEqual(code, 1)
        self.assertRegex(error, r"0 of 1 replica workers hold version 2 of m; "
                                r"engine-[0-9a-f]{8}: .*its registration ended [0-9.]+ s ago, held 1")

    def test_a_reader_that_says_nothing_is_seen(self):
        trainers = self.trainers()
        self.publish(trainers, 1)
        self.replica("hangs", "--stall-at", "transfer", "--trainers-only")
        self.until(lambda: "has said nothing" in self.weir("top", "--once").stdout)
        self.assertRegex(self.weir("top", "--once").stdout,
                         r"hangs +1  reads for [0-9.]+ m?s, has said nothing")
        lease, = self.fleet()["versions"][0]["leases"]
        self.assertEqual((flow_case.name_of(lease["worker_id"]), lease["said_ms"], lease["stop"]),
                         ("hangs", 0, ""))
        self.assertGreater(lease["begun_ms"], 0)
        path = os.path.join(self.folder, "trace.json")
        self.assertEqual(self.weir("trace", "1", "-o", path).returncode, 0)
        with open(path, encoding="utf-8") as file:
            events = json.load(file)["traceEvents"]
        silent, = [event for event in events if event["name"] == "reads it, silent"]
        self.assertTrue(re.match("hangs-", silent["args"]["reader"]))
        self.assertGreater(silent["dur"], 1e6)


if __name__ == "__main__":
    unittest.main()
