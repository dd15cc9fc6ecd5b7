# SPDX-License-Identifier: Apache-2.0
"""weir top: what it prints of real refits, and what it leaves of a terminal."""
import fcntl
import json
import os
import pty
import select
import shutil
import signal
import struct
import subprocess
import sys
import termios
import time
import unittest

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [os.path.join(HERE, "..", "refit"), os.path.join(HERE, "..", "directory")]
import flow_case  # noqa: E402
import grpc  # noqa: E402
import peer_stubs  # noqa: E402

FOLDER = peer_stubs.generate()
import p2p_pb2  # noqa: E402
import p2p_pb2_grpc  # noqa: E402


def tearDownModule():
    shutil.rmtree(FOLDER, ignore_errors=True)


class Top(flow_case.FlowCase):
    def run_top(self, *more):
        return subprocess.run([flow_case.WEIR, "top", "--directory", self.address, *more],
                              capture_output=True, text=True, timeout=20, check=False)

    def refit(self):
        trainers = self.trainers()
        replica = self.replica("engine-0", "--follow")
        self.publish(trainers, 1)
        self.expect_installed(replica, 1)

    def test_one_frame_says_who_holds_what(self):
        self.refit()
        frame = self.run_top("--once")
        self.assertEqual((frame.returncode, frame.stderr), (0, ""))
        lines = [line.split() for line in frame.stdout.splitlines()]
        self.assertIn(["rank", "0", "1", "READY"], [line[:4] for line in lines])
        self.assertIn(["rank", "1", "1", "READY"], [line[:4] for line in lines])
        self.assertIn(["engine-0", "1", "READY"], [line[:3] for line in lines])
        self.assertIn("version 1: 1 of 1 installed", frame.stdout)
        self.assertRegex(frame.stdout, r"engine-0 .* ms  .*transfer [0-9.]+ install [0-9.]+")
        self.assertNotIn("\x1b", frame.stdout)

    def test_json_is_the_directorys(self):
        self.refit()
        fleet = json.loads(self.run_top("--json").stdout)
        self.assertEqual([v["state"] for v in fleet["versions"]], ["READY"])
        self.assertEqual({s["role"] for s in fleet["sources"]}, {"trainer", "inference_replica"})
        self.assertEqual(self.run_top("--json", "--model", "none").returncode, 0)

    def test_a_directory_that_is_gone_is_named(self):
        self.directory.end()
        frame = self.run_top("--once")
        self.assertEqual(frame.returncode, 1)
        self.assertIn(self.address, frame.stderr)

    def on_terminal(self, end, *more):
        """Runs it on a terminal of 70 columns until `end` has been given; all that it wrote."""
        master, slave = pty.openpty()
        self.addCleanup(os.close, master)
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 20, 70, 0, 0))
        before = termios.tcgetattr(slave)
        process = subprocess.Popen([flow_case.WEIR, "top", "--directory", self.address, *more],
                                   stdin=slave, stdout=slave, stderr=slave)
        written, ended = b"", False
        until = time.monotonic() + 20
        while time.monotonic() < until and (not ended or process.poll() is None):
            if select.select([master], [], [], 0.05)[0]:
                written += os.read(master, 65536)
            if not ended and b"directory" in written:
                end(process, master)
                ended = True
        self.assertEqual(process.wait(5), 0)
        while select.select([master], [], [], 0)[0]:
            written += os.read(master, 65536)
        self.assertEqual(termios.tcgetattr(slave), before)
        os.close(slave)
        return written.decode()

    def assert_restored(self, written):
        self.assertIn("\x1b[?1049h", written)
        self.assertTrue(written.rstrip().endswith("\x1b[?1049l"), written[-80:])
        for line in written.replace("\r", "").split("\n"):
            plain = line.split("\x1b[H")[-1]
            self.assertLessEqual(len(plain.replace("\x1b[1m", "").replace("\x1b[0m\x1b[K", "")), 80)

    def test_q_and_ctrl_c_restore_the_terminal(self):
        self.assert_restored(self.on_terminal(lambda process, master: os.write(master, b"q")))
        self.assert_restored(self.on_terminal(
            lambda process, master: process.send_signal(signal.SIGINT)))



class TopOfModelExpress(Top):
    """A server without Weir's own service: what its sources say is all that there is to see."""

    def setUp(self):
        super().setUp()
        server = self.start_plain()
        self.address = server.stdout.readline().strip()
        channel = grpc.insecure_channel(self.address)
        self.addCleanup(channel.close)
        said = {"mx_v2": "1", "role": "trainer", "worker_rank": 3, "training_step": 41,
                "world_layout": "fsdp:1,tp:1,pp:1,ep:1", "framework": "nemo_rl"}
        p2p_pb2_grpc.P2pServiceStub(channel).PublishMetadata(p2p_pb2.PublishMetadataRequest(
            identity=p2p_pb2.SourceIdentity(model_name="m", mx_version="0.5.0"), worker_id="w",
            worker=p2p_pb2.WorkerMetadata(
                worker_rank=3, status=p2p_pb2.SOURCE_STATUS_READY, agent_name="w",
                tensor_source=p2p_pb2.TensorSourceMetadata(tensors=[p2p_pb2.TensorDescriptor(
                    name="__mx_v2_meta__", dtype=json.dumps(said))]))), timeout=10)

    def start_plain(self):
        process = subprocess.Popen([sys.executable, os.path.join(HERE, "..", "directory",
                                                                 "peer_server.py")],
                                   stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

        def end():
            process.stdin.close()
            process.wait(20)
            process.stdout.close()
        self.addCleanup(end)
        return process

    def test_one_frame_says_who_holds_what(self):
        frame = self.run_top("--once", "--model", "m")
        self.assertEqual((frame.returncode, frame.stderr), (0, ""))
        self.assertIn(["rank", "3", "41", "READY"],
                      [line.split()[:4] for line in frame.stdout.splitlines()])

    def test_json_is_the_directorys(self):
        fleet = json.loads(self.run_top("--json", "--model", "m").stdout)
        self.assertEqual([(s["worker_id"], s["role"], s["version"]) for s in fleet["sources"]],
                         [("w", "trainer", 41)])
        self.assertNotIn("refits", fleet)

    def test_a_directory_that_is_gone_is_named(self):
        self.address = "127.0.0.1:1"
        frame = self.run_top("--once", "--model", "m")
        self.assertEqual(frame.returncode, 1)
        self.assertIn("127.0.0.1:1", frame.stderr)

    def test_without_a_model_it_says_what_the_server_lacks(self):
        frame = self.run_top("--once")
        self.assertEqual(frame.returncode, 1)
        self.assertIn("DirectoryService", frame.stderr)

    def test_q_and_ctrl_c_restore_the_terminal(self):
        self.assert_restored(self.on_terminal(lambda process, master: os.write(master, b"q"),
                                              "--model", "m"))


if __name__ == "__main__":
    unittest.main(verbosity=2)
