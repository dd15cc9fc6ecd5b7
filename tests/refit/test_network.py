# SPDX-License-Identifier: Apache-2.0
"""Refits over a network that delays, reorders and loses packets, that is split while somebody waits
or reads, and from which hosts vanish. Each scenario has hosts of its own; all play at once, since
most of their time is waiting. Skipped where network namespaces cannot be made."""
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import unittest

from flow_case import WAIT_S, WEIR
from net_case import Net

SLACK_S = 5  # beyond a bound, for a machine that does other things too
LOST_S = 10  # without a sign of its machine a peer is lost, although nothing is under way to it
NOTHING_RAN = 77


def publish(trainers, net, version):
    for trainer in trainers:
        trainer.send(net.checkpoint(version))
    for trainer in trainers:
        expect_published(trainer, version)


def expect_published(trainer, version):
    said = trainer.line()
    assert said and (said["event"], said["version"]) == ("published", version), said


def expect_installed(replica, version):
    said = replica.line()
    assert said and (said["event"], said["version"]) == ("installed", version), said
    return said


def expect_failed(replica, *words):
    said = replica.line()
    assert said and said["event"] == "failed", said
    for word in words:
        assert word in said["error"], f"{word!r} is not in: {said['error']}"
    return said


def until_installed(replica, version):
    """Whatever else it says before."""
    said = replica.line()
    while said and (said["event"], said["version"]) != ("installed", version):
        said = replica.line()
    assert said, "the replica has ended"


def silent_for(process, seconds):
    try:
        said = process.line(seconds)
    except AssertionError:
        return
    raise AssertionError(f"it was to wait, but said {said}")


# ---- scenarios -----------------------------------------------------------------------------------

TRIO = ("directory", "trainer", "replica")


def bad_lines(net):
    """50 to 70 ms each way, in any order, one packet of twenty lost, one of fifty twice."""
    net.wire.everywhere(delay_s=0.05, jitter_s=0.02, loss=0.05, twice=0.02)
    net.serve()
    trainer, replica = net.trainer("trainer"), net.replica("replica", "one")
    for version in (1, 2):
        publish([trainer], net, version)
        said = expect_installed(replica, version)
        assert said["total_seconds"] < 20, said
    net.verify("directory", "one", 2)
    assert net.wire.n_lost > 10, net.wire.n_lost


def cut_from_the_directory_while_waiting(net):
    """For longer than its lease, and the version that it waits for is published meanwhile."""
    directory, replica_host = net["directory"], net["replica"]
    net.serve()
    trainer = net.trainer("trainer")
    replica = net.replica("replica", "one", lease_s=1)
    publish([trainer], net, 1)
    expect_installed(replica, 1)
    net.wire.cut(directory, replica_host)
    publish([trainer], net, 2)
    silent_for(replica, 3)
    net.wire.heal(directory, replica_host)
    expect_installed(replica, 2)
    net.verify("directory", "one", 2)


def answers_lost_while_publishing(net):
    """Requests arrive, answers do not: what the trainer says again changes nothing."""
    net.serve()
    trainer, replica = net.trainer("trainer"), net.replica("replica", "one")
    publish([trainer], net, 1)
    expect_installed(replica, 1)
    net.wire.way(net["directory"], net["trainer"]).cut = True
    trainer.send(net.checkpoint(2))
    until_installed(replica, 2)  # it is READY all the same
    net.wire.way(net["directory"], net["trainer"]).cut = False
    expect_published(trainer, 2)
    publish([trainer], net, 3)
    expect_installed(replica, 3)
    net.verify("directory", "one", 3)


def cut_in_the_midst_of_a_transfer(net):
    """For longer than the bound: the source is named, the version before is kept."""
    timeout_s = 3
    net.serve()
    trainer = net.trainer("trainer", timeout_s=timeout_s)
    replica = net.replica("replica", "one", timeout_s=timeout_s)
    publish([trainer], net, 1)
    expect_installed(replica, 1)
    cut = net.wire.cut_after(net["trainer"], net["replica"], 200000)
    publish([trainer], net, 2)
    assert cut.wait(WAIT_S), "the transfer did not begin"
    begun = time.monotonic()
    expect_failed(replica, "trainer rank 0")
    took = time.monotonic() - begun
    assert took < timeout_s + SLACK_S, f"it took {took:.1f} s"
    net.verify("directory", "one", 1)
    net.wire.heal(net["trainer"], net["replica"])
    until_installed(replica, 2)
    publish([trainer], net, 3)
    until_installed(replica, 3)
    net.verify("directory", "one", 3)


def trainer_cut_beyond_its_lease(net):
    """Nobody is sent to it; who waits is told which rank is missing. It comes back by itself."""
    net.serve()
    near = net.trainer("trainer", 0, 2, lease_s=2)
    far = net.trainer("far", 1, 2, lease_s=2)
    publish([near, far], net, 1)
    net.wire.cut(net["directory"], net["far"])
    time.sleep(4)  # its lease, by the directory's clock
    late = net.replica("replica", "late", timeout_s=2)
    words = net_note(late)
    assert "these published it, but are gone: rank-1" in words, words
    net.wire.heal(net["directory"], net["far"])
    expect_installed(late, 1)
    net.verify("directory", "late", 1)
    publish([near, far], net, 2)
    expect_installed(late, 2)


def net_note(process):
    """The next line of stderr: what a replica that follows waits for."""
    timer = threading.Timer(WAIT_S, process.process.kill)
    timer.start()
    line = process.process.stderr.readline().decode()
    timer.cancel()
    return line


def directory_host_vanishes(net):
    """Another is started at its address, and nobody's connections hear of it: a wait that nobody
    would ever answer is made anew."""
    net.serve()
    port = int(net.address.rsplit(":", 1)[1])
    trainer = net.trainer("trainer", timeout_s=40, lease_s=2)
    replica = net.replica("replica", "one", timeout_s=60, lease_s=600)
    publish([trainer], net, 1)
    expect_installed(replica, 1)
    silent_for(replica, 0.5)  # it waits
    net.replace("directory")
    net.serve("directory", port)
    begun = time.monotonic()
    publish([trainer], net, 2)
    until_installed(replica, 2)
    took = time.monotonic() - begun
    assert took < LOST_S + SLACK_S, f"it took {took:.1f} s"
    net.verify("trainer", "one", 2)


def n_waiting(net):
    """Calls that the directory keeps, by its own metrics."""
    ask = f"import urllib.request as u; print(u.urlopen('http://{net['directory'].ip}:8501/metrics')"
    said = subprocess.run([*net["trainer"].command(), sys.executable, "-c", ask + ".read().decode())"],
                          capture_output=True, text=True, timeout=WAIT_S, check=True).stdout
    return int(next(line for line in said.splitlines() if line.startswith("weir_waits ")).split()[1])


def caller_vanishes(net):
    """A call that waits is given up soon after its caller's host is gone, and the directory keeps
    nothing for it."""
    net.serve("directory", 0, "--http", f"{net['directory'].ip}:8501")
    trainer, replica = net.trainer("trainer"), net.replica("replica", "one", lease_s=600)
    publish([trainer], net, 1)
    expect_installed(replica, 1)
    deadline = time.monotonic() + WAIT_S
    while n_waiting(net) == 0:
        assert time.monotonic() < deadline, "the replica does not wait"
    net.wire.cut(net["directory"], net["replica"])
    begun = time.monotonic()
    while n_waiting(net) != 0:
        assert time.monotonic() < begun + LOST_S + SLACK_S, "the directory still keeps its call"
        time.sleep(0.1)
    publish([trainer], net, 2)
    net.wire.heal(net["directory"], net["replica"])
    until_installed(replica, 2)


def directory_split_from_redis(net):
    """Who publishes is told; what was acknowledged outlives that, and the directory's end."""
    if shutil.which("redis-server") is None:
        raise unittest.SkipTest("SKIPPED: no redis-server")
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        redis_port = one.getsockname()[1]
    folder = tempfile.mkdtemp(prefix="weir-redis-")
    redis = subprocess.Popen(
        [*net["redis"].command(), "redis-server", "--port", str(redis_port), "--bind",
         net["redis"].ip, "--protected-mode", "no", "--dir", folder, "--save", "", "--appendonly",
         "yes", "--appendfsync", "always"], stdout=subprocess.PIPE)
    try:
        while b"Ready to accept" not in redis.stdout.readline():
            pass
        play_with_redis(net, f"redis://{net['redis'].ip}:{redis_port}")
    finally:
        redis.kill()
        redis.wait()
        redis.stdout.close()
        shutil.rmtree(folder, ignore_errors=True)


def play_with_redis(net, url):
    timeout_s = 8  # the directory says it of itself after 5
    directory = net.serve("directory", 8500, "--store", url)
    trainer = net.trainer("trainer", timeout_s=timeout_s)
    replica = net.replica("replica", "one", timeout_s=timeout_s)
    publish([trainer], net, 1)
    until_installed(replica, 1)
    net.wire.cut(net["directory"], net["redis"])
    begun = time.monotonic()
    trainer.send(net.checkpoint(2))
    expect_failed(trainer, "redis")
    took = time.monotonic() - begun
    assert took < 2 * timeout_s + SLACK_S, f"it took {took:.1f} s"
    net.wire.heal(net["directory"], net["redis"])
    publish([trainer], net, 3)
    until_installed(replica, 3)
    directory.signal(signal.SIGKILL)
    directory.process.wait()
    directory = net.serve("directory", 8500, "--store", url)
    late = net.replica("replica", "late", timeout_s=10)
    until_installed(late, 3)
    net.verify("directory", "late", 3)


# ---- the cases -----------------------------------------------------------------------------------

SCENARIOS = {
    bad_lines: TRIO, cut_from_the_directory_while_waiting: TRIO,
    answers_lost_while_publishing: TRIO, cut_in_the_midst_of_a_transfer: TRIO,
    trainer_cut_beyond_its_lease: (*TRIO, "far"), directory_host_vanishes: TRIO,
    caller_vanishes: TRIO,
    directory_split_from_redis: (*TRIO, "redis")}


class Play:
    """A scenario in a thread of its own."""

    def __init__(self, scenario, net):
        self.scenario, self.net, self.failure, self.skipped = scenario, net, None, None
        self.seconds = 0.0
        self.thread = threading.Thread(target=self.run)
        self.thread.start()

    def run(self):
        begun = time.monotonic()
        try:
            self.scenario(self.net)
        except unittest.SkipTest as skip:
            self.skipped = str(skip)
        except Exception:  # pylint: disable=broad-except
            self.failure = traceback.format_exc()
        self.seconds = time.monotonic() - begun
        said = self.net.close()
        if self.failure:
            self.failure += said


class NetworkTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.checkpoints = tempfile.mkdtemp(prefix="weir-steps-")
        cls.addClassCleanup(shutil.rmtree, cls.checkpoints, ignore_errors=True)
        for step in (1, 2, 3):
            subprocess.run([WEIR, "synth", "--family", "llama", "--preset", "tiny", "--step",
                            str(step), "-o", os.path.join(cls.checkpoints, str(step))],
                           check=True, capture_output=True, timeout=WAIT_S)
        only = os.environ.get("WEIR_TEST_SCENARIO")
        cls.plays = {scenario: Play(scenario, Net(cls.checkpoints, hosts))
                     for scenario, hosts in SCENARIOS.items()
                     if only in (None, scenario.__name__)}

    def expect(self, scenario):
        play = self.plays.get(scenario) or self.skipTest("not asked for")
        play.thread.join()
        print(f"{scenario.__name__}: {play.seconds:.1f} s", file=sys.stderr)
        if play.skipped:
            self.skipTest(play.skipped)
        self.assertIsNone(play.failure, play.failure)


def add_case(scenario):
    setattr(NetworkTest, "test_" + scenario.__name__, lambda self: self.expect(scenario))


for each in SCENARIOS:
    add_case(each)

if __name__ == "__main__":
    ended = unittest.main(exit=False).result
    skipped_all = ended.testsRun == 0 or len(ended.skipped) == ended.testsRun
    sys.exit(1 if not ended.wasSuccessful() else NOTHING_RAN if skipped_all else 0)
