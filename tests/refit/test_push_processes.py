# SPDX-License-Identifier: Apache-2.0
"""Versions that are pushed between real processes: what everybody is left with when one of them is
killed or halted at each point of a round, and that the next version brings all to it."""
import contextlib
import re
import signal
import time
import unittest

from flow_case import FlowCase

PUSH = ("--delivery", "push", "--transport", "ucx")
SMALL = ("--window", "512K")  # many steps through it
BOUND_S = 6
NAMES = ("one", "two", "three")
DIGITS = re.compile(r"-[0-9a-f]{8}\b")  # behind the names, in workers' ids


class PushCase(FlowCase):
    def setUp(self):
        self.started = []
        super().setUp()

    def start(self, *arguments):
        self.started.append(super().start(*arguments))
        return self.started[-1]

    @contextlib.contextmanager
    def drill(self, **parameters):
        """In a training run of its own; its processes end with it."""
        before, n_before = self.flow, len(self.started)
        self.flow = [*before, "--run", "-".join(str(value) for value in parameters.values())]
        with self.subTest(**parameters):
            try:
                yield
            finally:
                for process in self.started[n_before:]:
                    process.end()
        self.flow = before

    def push_trainers(self, n_replicas, first=1):
        return [self.trainer(rank, *PUSH, "--replicas", str(n_replicas), "--timeout", str(BOUND_S),
                             first=first) for rank in (0, 1)]

    def follower(self, name, install, *more):
        window = SMALL if install == "staged" else ()
        return self.replica(name, "--follow", "--install", install, "--timeout", str(BOUND_S),
                            *window, *more)

    def followers(self, installs, *more):
        """Replicas by name, `more` for the first of them."""
        return {name: self.follower(name, install, *(more if name == NAMES[0] else ()))
                for name, install in zip(NAMES, installs)}

    def send(self, trainers, version):
        for trainer in trainers:
            trainer.send(self.checkpoint(version))

    def kill(self, process):
        process.signal(signal.SIGKILL)
        self.expect_killed(process)

    def expect_killed(self, process):
        self.assertEqual(process.process.wait(60), -signal.SIGKILL, process.arguments)

    def wait_halted(self, process):
        until = time.monotonic() + 30
        while time.monotonic() < until:
            with open(f"/proc/{process.process.pid}/stat", encoding="ascii") as stat:
                if stat.read().rsplit(")", 1)[1].split()[0] == "T":
                    return
            time.sleep(0.01)
        self.fail(f"{process.arguments} was never halted")

    def next_of(self, process, *events):
        """The next line that is one of these events."""
        while True:
            said = process.line()
            self.assertIsNotNone(said, f"{process.arguments} has ended")
            if said["event"] in events:
                return said

    def expect_pushed(self, trainers, version):
        for trainer in trainers:
            said = self.next_of(trainer, "pushed", "failed")
            self.assertEqual((said["event"], said["version"]), ("pushed", version), said)

    def expect_push_failed(self, trainers, version, *words):
        """All of these trainers say so; a line of one of them has all the words."""
        lines = []
        for trainer in trainers:
            said = self.next_of(trainer, "pushed", "failed")
            self.assertEqual((said["event"], said["version"]), ("failed", version), said)
            lines.append(DIGITS.sub("", said["error"]))
        self.assertTrue([line for line in lines if all(word in line for word in words)],
                        (words, lines))

    def bring(self, trainers, replicas, version):
        """A version that reaches everybody, and is what everybody holds."""
        self.send(trainers, version)
        self.expect_pushed(trainers, version)
        for name, replica in replicas.items():
            while self.next_of(replica, "installed")["version"] != version:
                pass
            self.verify(name, version)

    def expect_whole(self, name, replica):
        """A replica that held version 1 has said what became of version 2: its live bytes agree."""
        said = self.next_of(replica, "installed", "failed")
        if said["event"] == "installed":
            self.verify(name, 2)
        elif said["state"] == "holding":
            self.assertEqual(said["version"], 1)
            self.verify(name, 1)
        else:
            self.assertEqual(said["state"], "unusable", said)
            self.assertIn("unusable until a whole version is in", said["error"])
            for version in (1, 2):
                self.assertNotEqual(self.run_verify(name, version).returncode, 0)
        return said


class WhenATrainerDies(PushCase):
    def test_in_the_midst_of_its_steps(self):
        for installs in (("direct", "direct"), ("staged", "direct"), ("staged", "staged")):
            for rank in (0, 1):
                with self.drill(installs=installs, rank=rank):
                    trainers = self.push_trainers(2)
                    replicas = self.followers(installs, "--stall-at", "transfer+:2")
                    self.bring(trainers, replicas, 1)
                    self.send(trainers, 2)
                    self.wait_halted(replicas["one"])
                    self.kill(trainers[rank])
                    replicas["one"].signal(signal.SIGCONT)
                    for name, replica in replicas.items():
                        self.expect_whole(name, replica)
                    trainers[1 - rank].end()
                    self.bring(self.push_trainers(2, first=3), replicas, 3)

    def test_while_it_gathers_replicas_nothing_has_changed(self):
        trainers = self.push_trainers(2)
        replicas = self.followers(("direct", "staged"))
        self.bring(trainers, replicas, 1)
        replicas["two"].signal(signal.SIGSTOP)  # no round begins without it
        self.send(trainers, 2)
        for trainer in trainers:
            self.assertEqual(self.next_of(trainer, "published")["version"], 2)
        self.kill(trainers[0])
        said = self.expect_whole("one", replicas["one"])
        self.assertEqual((said["event"], said["state"]), ("failed", "holding"), said)
        self.assertIn("trainer rank 0", said["error"])
        self.expect_push_failed(trainers[1:], 2, "0 of 2 replicas are ready for version 2")
        replicas["two"].signal(signal.SIGCONT)
        trainers[1].end()
        self.bring(self.push_trainers(2, first=3), replicas, 3)

    def test_ranks_that_are_started_again_serve_those_who_follow(self):
        trainers = self.push_trainers(2)
        replicas = self.followers(("direct", "staged"))
        self.bring(trainers, replicas, 1)
        for version in (2, 3):
            for trainer in trainers:
                self.kill(trainer)
            trainers = self.push_trainers(2, first=version)
            self.bring(trainers, replicas, version)


class WhenAReplicaDies(PushCase):
    def check(self, stop):
        """Others are told why; it comes back by its name for the next version."""
        for installs in (("direct",), ("direct", "staged"), ("staged", "direct", "staged"),
                         ("direct", "direct", "direct")):
            with self.drill(stop=stop, installs=installs):
                trainers = self.push_trainers(len(installs))
                replicas = self.followers(installs, "--die-at", stop)
                self.bring(trainers, replicas, 1)
                self.send(trainers, 2)
                self.expect_killed(replicas.pop("one"))
                self.expect_push_failed(trainers, 2, "replica one")
                for name, replica in replicas.items():
                    self.expect_whole(name, replica)
                replicas["one"] = self.follower("one", installs[0])
                self.bring(trainers, replicas, 3)

    def test_in_the_midst_of_its_steps(self):
        self.check("transfer+:2")

    def test_when_all_bytes_are_there(self):
        self.check("postprocess:2")

    def test_when_it_holds_the_version_but_has_not_said_so(self):
        self.check("ack:2")

    def test_before_it_is_ready_it_can_come_back_into_the_same_version(self):
        for installs in (("direct",), ("staged", "direct"), ("direct", "staged", "staged")):
            with self.drill(installs=installs):
                trainers = self.push_trainers(len(installs))
                replicas = self.followers(installs, "--die-at", "transfer:1")
                self.send(trainers, 1)
                self.expect_killed(replicas["one"])
                replicas["one"] = self.follower("one", installs[0])
                self.expect_pushed(trainers, 1)
                self.bring(trainers, replicas, 2)


class WhenAReplicaHalts(PushCase):
    def test_all_others_end_within_their_bound_and_say_who(self):
        for installs in (("direct", "direct"), ("staged", "direct"),
                         ("staged", "staged", "direct")):
            with self.drill(installs=installs):
                trainers = self.push_trainers(len(installs))
                replicas = self.followers(installs, "--stall-at", "transfer+:2")
                self.bring(trainers, replicas, 1)
                self.send(trainers, 2)
                self.wait_halted(replicas["one"])
                begun = time.monotonic()
                self.expect_push_failed(trainers, 2, "one (was told ")
                for name in NAMES[1:len(installs)]:
                    self.expect_whole(name, replicas[name])
                self.assertLess(time.monotonic() - begun, 2 * BOUND_S)
                replicas["one"].signal(signal.SIGCONT)
                self.expect_whole("one", replicas["one"])
                self.bring(trainers, replicas, 3)


if __name__ == "__main__":
    unittest.main()
