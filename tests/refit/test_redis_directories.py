# SPDX-License-Identifier: Apache-2.0
"""Workers that are told of two directories over one Redis: refits go on while either of them is killed."""
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import unittest

from flow_case import WAIT_S, WEIR, FlowCase, Process


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


class TwoDirectories(FlowCase):
    versions = 5

    def setUp(self):
        self.folder = tempfile.mkdtemp(prefix="weir-flow-")
        self.addCleanup(shutil.rmtree, self.folder, ignore_errors=True)
        port = free_port()
        redis = Process("--port", str(port), "--bind", "127.0.0.1", "--dir", self.folder, "--save",
                        "", "--appendonly", "yes", "--appendfsync", "always", "--logfile",
                        os.path.join(self.folder, "log"), program=("redis-server",))
        self.addCleanup(redis.end)
        self.store = f"redis://127.0.0.1:{port}"
        self.ports = [free_port(), free_port()]
        self.serves = [self.serve(port) for port in self.ports]
        self.addresses = ",".join(f"127.0.0.1:{port}" for port in self.ports)
        self.flow = ["--directory", self.addresses, "--model", "m", "--conversion", "fp8_128x128",
                     "--json", "--transport-directory", self.folder]

    def serve(self, port):
        process = self.start("serve", "--listen", f"127.0.0.1:{port}", "--no-http", "--store",
                             self.store, "--json")
        self.assertIsNotNone(process.line())
        return process

    def kill(self, which):
        self.serves[which].signal(signal.SIGKILL)
        self.serves[which].wait()

    def test_refits_go_on_while_either_is_killed(self):
        trainers = self.trainers("--transport", "file")
        replica = self.replica("one", "--follow")
        self.publish(trainers, 1)
        self.expect_installed(replica, 1)
        for version, kills in ((2, 0), (3, None), (4, 1), (5, None)):
            for trainer in trainers:
                trainer.send(self.checkpoint(version))
            if kills is not None:  # while ranks publish, and the replica waits
                self.kill(kills)
            for trainer in trainers:
                said = trainer.line()
                self.assertEqual((said["event"], said["version"]), ("published", version), said)
            self.expect_installed(replica, version)
            if version == 3:
                self.serves[0] = self.serve(self.ports[0])
        self.verify("one", 5)
        for verb in (("top", "--once", "--json"), ("discover", "--model", "m", "--json")):
            run = subprocess.run([WEIR, *verb, "--directory", self.addresses], capture_output=True,
                                 text=True, timeout=WAIT_S, check=False)
            self.assertEqual(run.returncode, 0, run.stderr)
            self.assertTrue(json.loads(run.stdout))
        for process in (*trainers, replica):
            process.signal(signal.SIGTERM)
            self.assertEqual(process.wait()[0], 0)

    def test_a_directory_that_is_halted_is_left_and_all_that_were_asked_are_named(self):
        trainers = self.trainers("--transport", "file", "--timeout", "8")
        replica = self.replica("one", "--follow", "--timeout", "8")
        self.publish(trainers, 1)
        self.expect_installed(replica, 1)
        self.serves[0].signal(signal.SIGSTOP)
        self.publish(trainers, 2)
        self.expect_installed(replica, 2)
        for serve in self.serves:
            serve.signal(signal.SIGKILL)
            serve.wait()
        run = subprocess.run([WEIR, "discover", "--model", "m", "--directory", self.addresses],
                             capture_output=True, text=True, timeout=WAIT_S, check=False)
        self.assertEqual(run.returncode, 1)
        for port in self.ports:
            self.assertIn(f"127.0.0.1:{port}: cannot connect: Connection refused", run.stderr)


if __name__ == "__main__":
    unittest.main()
