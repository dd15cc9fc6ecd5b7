# SPDX-License-Identifier: Apache-2.0
"""Real processes for the tests of refits: a directory, trainer ranks, replicas, driven by lines."""
import json
import os
import re
import select
import shutil
import signal
import subprocess
import tempfile
import time
import unittest

WEIR = os.path.abspath(os.path.join(os.environ.get("WEIR_TEST_BIN", "build/bin"), "weir"))
WAIT_S = 60
MODEL = ["--model", "m", "--conversion", "fp8_128x128"]


def name_of(worker_id):
    """Without the eight random digits of this life of it."""
    return re.sub(r"-[0-9a-f]{8}$", "", worker_id)


class Process:
    """One weir in the background."""

    def __init__(self, *arguments, program=(WEIR,)):
        self.arguments = arguments
        self.process = subprocess.Popen([*program, *arguments], stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self.buffer = b""

    def send(self, line):
        self.process.stdin.write(line.encode() + b"\n")
        self.process.stdin.flush()

    def line(self, timeout_s=WAIT_S):
        """The next line of stdout as JSON; None when the process ends."""
        until = time.monotonic() + timeout_s
        while b"\n" not in self.buffer:
            wait = select.poll()
            wait.register(self.process.stdout, select.POLLIN)
            ready = wait.poll(max(0, 1000 * (until - time.monotonic())))
            if not ready:
                raise AssertionError(f"{self.arguments}: silent for {timeout_s} s")
            more = os.read(self.process.stdout.fileno(), 65536)
            if not more:
                return None
            self.buffer += more
        line, self.buffer = self.buffer.split(b"\n", 1)
        return json.loads(line)

    def wait(self, timeout_s=WAIT_S):
        """Exit code and the last line of stderr."""
        _, errors = self.process.communicate(timeout=timeout_s)
        lines = [line for line in errors.decode().splitlines()
                 if not line.startswith("weir: note: ")]
        return self.process.returncode, lines[-1] if lines else ""

    def signal(self, number):
        self.process.send_signal(number)

    def end(self):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.terminate()
            try:
                self.process.wait(5)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(5)
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            try:
                stream.close()
            except BrokenPipeError:
                pass


class FlowCase(unittest.TestCase):
    """A directory and three versions of a small checkpoint, in a folder of the test's own."""
    family = "glm_moe_dsa"
    versions = 3
    naming = "hf"
    dtype = "bf16"

    @classmethod
    def setUpClass(cls):
        cls.checkpoints = tempfile.mkdtemp(prefix="weir-steps-")
        for step in range(cls.versions):
            subprocess.run([WEIR, "synth", "--family", cls.family, "--preset", "tiny", "--naming",
                            cls.naming, "--dtype", cls.dtype, "--step", str(step), "-o",
                            os.path.join(cls.checkpoints, str(step + 1))],
                           check=True, capture_output=True, timeout=WAIT_S)

    @classmethod
    def tearDownClass(cls):
        shutil.rmtree(cls.checkpoints, ignore_errors=True)

    def setUp(self):
        self.folder = tempfile.mkdtemp(prefix="weir-flow-")
        self.addCleanup(shutil.rmtree, self.folder, ignore_errors=True)
        self.directory = self.start("serve", "--listen", "127.0.0.1:0", "--json")
        self.address = self.directory.line()["address"]
        self.flow = ["--directory", self.address, *MODEL, "--json", "--transport-directory",
                     self.folder]

    def start(self, *arguments):
        process = Process(*arguments)
        self.addCleanup(process.end)
        return process

    def checkpoint(self, version):
        return os.path.join(self.checkpoints, str(version))

    @property
    def config(self):
        return os.path.join(self.checkpoint(1), "config.json")

    def trainer(self, rank, *more, first=1):
        return self.start("publish", "--follow", "--version", str(first), "--rank", str(rank),
                          "--ranks", "2", *self.flow, *more)

    def trainers(self, *more):
        return [self.trainer(rank, *more) for rank in range(2)]

    def replica(self, name, *more):
        return self.start("receive", "--name", name, "--config", self.config, *self.flow, *more)

    def publish(self, trainers, version):
        for trainer in trainers:
            trainer.send(self.checkpoint(version))
        for trainer in trainers:
            self.assertEqual(trainer.line()["version"], version)

    def run_verify(self, name, checkpoint):
        return subprocess.run([WEIR, "verify", self.checkpoint(checkpoint), "--replica", name,
                               *self.flow], capture_output=True, text=True, timeout=WAIT_S,
                              check=False)

    def verify(self, name, version):
        """The live replica holds exactly this version's bytes."""
        result = self.run_verify(name, version)
        self.assertEqual(result.returncode, 0, result.stderr)
        answer = json.loads(result.stdout)
        self.assertTrue(answer["verified"])
        self.assertEqual(answer["version"], version)
        return answer

    def until(self, holds, timeout_s=WAIT_S):
        """Waits for what others do."""
        end = time.monotonic() + timeout_s
        while not holds():
            self.assertLess(time.monotonic(), end, "it never came to that")
            time.sleep(0.02)

    def expect_installed(self, replica, version):
        said = replica.line()
        self.assertIsNotNone(said, "the replica has ended")
        self.assertEqual((said["event"], said["version"]), ("installed", version), said)
        return said

    def expect_failed(self, replica, *words):
        said = replica.line()
        self.assertIsNotNone(said, "the replica has ended")
        self.assertEqual(said["event"], "failed", said)
        for word in words:
            self.assertIn(word, said["error"])
        return said
