# SPDX-License-Identifier: Apache-2.0
"""`weir demo`: what it prints for programs, and what it leaves behind whoever ends it."""
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
import unittest

WEIR = os.path.abspath(os.path.join(os.environ.get("WEIR_TEST_BIN", "build/bin"), "weir"))
WAIT_S = 120


def children_of(pid):
    """Process ids and command lines of a process' children."""
    found = {}
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/stat", encoding="utf-8") as stat:
                parent = int(stat.read().rsplit(")", 1)[1].split()[1])
            with open(f"/proc/{name}/cmdline", encoding="utf-8") as line:
                if parent == pid:
                    found[int(name)] = line.read().replace("\0", " ")
        except (OSError, ProcessLookupError):
            continue
    return found


class Demo(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.mkdtemp(prefix="weir-demo-test-")
        self.addCleanup(shutil.rmtree, self.folder, ignore_errors=True)
        self.environment = {**os.environ, "TMPDIR": self.folder}

    def run_demo(self, *arguments):
        return subprocess.run([WEIR, "demo", "--preset", "tiny", *arguments], text=True,
                              capture_output=True, timeout=WAIT_S, env=self.environment,
                              check=False)

    def start_long(self):
        """A demo of many versions, once its first version is verified."""
        process = subprocess.Popen([WEIR, "demo", "--preset", "tiny", "--versions", "1000"],
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                                   env=self.environment)
        self.addCleanup(process.communicate)
        self.addCleanup(process.kill)
        while not process.stdout.readline().startswith("1 "):
            self.assertIsNone(process.poll(), "the demo has ended")
        return process

    def expect_nothing_left(self, children):
        self.assertEqual(os.listdir(self.folder), [])
        until = time.monotonic() + 5
        while any(os.path.exists(f"/proc/{pid}") for pid in children):
            self.assertLess(time.monotonic(), until, "children are left")
            time.sleep(0.05)

    def test_json_is_one_object_with_the_promised_members(self):
        result = self.run_demo("--json")
        self.assertEqual(result.returncode, 0, result.stderr)
        said = json.loads(result.stdout)
        self.assertIs(said["verified"], True)
        self.assertEqual((said["versions"], said["trainer_ranks"], said["replicas"]), (5, 2, 2))
        self.assertGreater(said["bytes_per_version"], 1000000)
        self.assertGreater(said["parameters_compared"], 100)
        self.assertEqual(len(said["refit_seconds"]), 5)
        self.assertTrue(all(seconds > 0 for seconds in said["refit_seconds"]))
        self.assertGreater(said["gb_per_s"], 0)
        self.expect_nothing_left([])

    def test_a_given_checkpoint_is_published_as_it_is(self):
        model = os.path.join(self.folder, "model")
        subprocess.run([WEIR, "synth", "--family", "llama", "--preset", "tiny", "-o", model],
                       check=True, capture_output=True, timeout=WAIT_S)
        for arguments in (["--install", "direct"], ["--transport", "file"]):
            result = self.run_demo("--model", model, "--versions", "2", "--json", *arguments)
            self.assertEqual(result.returncode, 0, result.stderr)
            self.assertTrue(json.loads(result.stdout)["verified"])
        self.assertEqual(os.listdir(self.folder), ["model"])

    def test_a_work_dir_is_left_as_it_was(self):
        with open(os.path.join(self.folder, "mine"), "w", encoding="utf-8"):
            pass
        result = self.run_demo("--work-dir", self.folder, "--transport", "file")
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertEqual(os.listdir(self.folder), ["mine"])
        os.mkdir(os.path.join(self.folder, "step-1"))
        with open(os.path.join(self.folder, "step-1", "config.json"), "w", encoding="utf-8"):
            pass
        result = self.run_demo("--work-dir", self.folder)
        self.assertEqual(result.returncode, 1)
        self.assertEqual(os.listdir(os.path.join(self.folder, "step-1")), ["config.json"])

    def test_signals_end_it_and_all_it_has_started(self):
        for number in (signal.SIGINT, signal.SIGTERM):
            process = self.start_long()
            children = children_of(process.pid)
            self.assertGreaterEqual(len(children), 5)
            process.send_signal(number)
            process.send_signal(number)  # as timeout(1) does
            output, _ = process.communicate(timeout=20)
            self.assertEqual(process.returncode, 1)
            self.assertNotIn("NOT all equal", output)
            self.expect_nothing_left(children)

    def test_a_child_that_dies_is_named(self):
        for words, name in (("--rank 1", "trainer rank 1"), ("replica-0", "replica-0")):
            process = self.start_long()
            children = children_of(process.pid)
            victim = next(pid for pid, line in children.items() if words in line)
            os.kill(victim, signal.SIGKILL)
            _, errors = process.communicate(timeout=60)
            self.assertEqual(process.returncode, 1)
            self.assertIn(name, errors)
            self.expect_nothing_left(children)

    def test_a_wrong_command_line_is_exit_code_2(self):
        for arguments in (["--install", "maybe"], ["--versions", "0"], ["surplus"]):
            self.assertEqual(self.run_demo(*arguments).returncode, 2, arguments)


if __name__ == "__main__":
    unittest.main()
