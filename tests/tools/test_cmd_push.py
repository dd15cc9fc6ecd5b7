# SPDX-License-Identifier: Apache-2.0
"""`weir publish` and `weir receive`: how versions are delivered, and where weights lie."""
import json
import subprocess
import unittest

from cli_case import CliCase, WEIR, read_file

MODEL = ["--conversion", "fp8_128x128", "--json"]


class Push(CliCase):
    def setUp(self):
        super().setUp()
        for step in range(2):
            self.weir("synth", "--family", "glm_moe_dsa", "--preset", "tiny", "--step", str(step),
                      "-o", f"step-{step}")
        directory = self.start("serve", "--listen", "127.0.0.1:0", "--json")
        self.directory = ["--directory", json.loads(directory.stdout.readline())["address"]]

    def start(self, *arguments):
        process = subprocess.Popen([WEIR, *arguments], text=True, cwd=self.folder,
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE)

        def end():
            process.kill()
            process.communicate()

        self.addCleanup(end)
        return process

    def publish(self, *arguments):
        return self.start("publish", "step-0", "step-1", "--version", "1", *self.directory, *MODEL,
                          *arguments)

    def receive(self, name, *arguments):
        return self.start("receive", *self.directory, *MODEL, "--config", "step-0/config.json",
                          "--name", name, "--follow", "--dump", name, *arguments)

    def finish(self, process):
        """Its events; it must end well."""
        output, errors = process.communicate(timeout=100)
        self.assertEqual(process.returncode, 0, errors)
        return [json.loads(line) for line in output.splitlines()]

    def installed(self, replica):
        """The events of one that follows, once it has said that it holds the second version."""
        events = [json.loads(replica.stdout.readline()) for _ in range(2)]
        replica.terminate()  # it ends the dump first
        return events + self.finish(replica)

    def check_dumps(self, *names):
        self.weir("convert", "step-1", "-o", "expected.safetensors", "--conversion", "fp8_128x128",
                  "--family", "glm_moe_dsa")
        expected, _ = read_file(self.path("expected.safetensors"))
        for name in names:
            held, _ = read_file(self.path(f"{name}/v2.safetensors"))
            for parameter, (_, _, data) in expected.items():
                self.assertTrue((held[parameter][2] == data).all(), (name, parameter))

    def test_versions_are_pulled_when_asked_to(self):
        replica = self.receive("a", "--device", "host")
        events = self.finish(self.publish("--delivery", "pull", "--replicas", "1", "--device",
                                          "host"))
        self.assertEqual([event["event"] for event in events], ["published"] * 2)
        self.assertEqual(len(self.installed(replica)), 2)
        self.check_dumps("a")

    def test_versions_are_pushed_to_all_replicas_at_once(self):
        replicas = [self.receive("a", "--install", "direct"), self.receive("b")]
        events = self.finish(self.publish("--delivery", "push", "--replicas", "2"))
        self.assertEqual([(event["event"], event["version"]) for event in events],
                         [("published", 1), ("pushed", 1), ("published", 2), ("pushed", 2)])
        for replica in replicas:
            self.assertEqual([event["version"] for event in self.installed(replica)], [1, 2])
        self.check_dumps("a", "b")

    def test_pushing_needs_a_number_of_replicas(self):
        for arguments in (["--delivery", "push"], ["--device", "cuda:0"]):
            line = self.error("publish", "step-0", "--version", "1", *self.directory, *arguments,
                              code=2)
            self.assertIn("--replicas", line)

    def test_devices_that_are_not_there_are_refused(self):
        for device in ("gpu", "cuda", "cuda:", "cuda:x", "cuda:-1", "cuda:99999"):
            self.error("receive", *self.directory, "--config", "step-0/config.json", "--device",
                       device, code=2)
        if self.weir_json("info")["gpus"]:
            self.skipTest("there is a GPU")
        self.error("publish", "step-0", "--version", "1", "--replicas", "1", *self.directory,
                   "--device", "cuda:0")
        self.error("receive", *self.directory, "--config", "step-0/config.json", "--device",
                   "cuda:0")


if __name__ == "__main__":
    unittest.main()
