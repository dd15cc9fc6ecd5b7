# SPDX-License-Identifier: Apache-2.0
"""Ctrl-C in the main thread: heard within a second wherever it waits, and the process goes on."""
from __future__ import annotations

import signal
import threading
import time

import pytest
import tiny_model as tiny

import weir

pytestmark = tiny.NO_WARNINGS

BEGIN = """
import sys, time
import tiny_model as tiny
import weir

trainer, weights = tiny.open_trainer(timeout=60)
trainer.publish(1)
replica = tiny.open_replica(trainer.directory, timeout=60)

def interrupted(call):
    print("waits", flush=True)
    try:
        call()
    except KeyboardInterrupt:
        print("heard", time.time(), flush=True)
        return
    print("missed", flush=True)

{call}

replica.install(1)
trainer.wait(1, n_replicas=1)
tiny.fill(weights, 2)
trainer.publish(2)
assert replica.install().version == 2
tiny.expect_holds(replica, 2)
replica.close()
trainer.close()
print("usable")
"""

SILENT = """
import socket
with socket.create_server(("127.0.0.1", 0)) as listener:
    address = "127.0.0.1:%d" % listener.getsockname()[1]
    interrupted(lambda: weir.Replica("policy", directory=address, config=tiny.CONFIG, timeout=60))
"""

CALLS = {
    "wait": "interrupted(lambda: trainer.wait(1, n_replicas=1))",
    "install": "interrupted(lambda: replica.install(2))",
    "watch": "interrupted(lambda: list(replica.watch(start=2)))",
    "a hook": "def pause(): time.sleep(60)\n"
              "other = tiny.open_replica(trainer.directory, timeout=60, pause=pause)\n"
              "interrupted(lambda: other.install(1))\n"
              "assert other.version == 0\n"
              "other.close()",
    "a coroutine": "import asyncio\n"
                   "interrupted(lambda: asyncio.run(replica.install_async(2)))",
    "opening": SILENT,
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
def test_ctrl_c_is_heard_within_a_second_and_the_process_is_usable(call):
    with tiny.start_python(BEGIN.format(call=call)) as process:
        assert process.stdout.readline() == "waits\n"
        time.sleep(0.3)  # into the call: no event tells of that from outside
        sent = time.time()
        process.send_signal(signal.SIGINT)
        word, heard = process.stdout.readline().split()
        out, error = process.communicate(timeout=20)
    assert (process.returncode, error, out) == (0, "", "usable\n")
    assert word == "heard" and float(heard) - sent < 1


class Alarm(Exception):
    """What the handler of a timer raises."""


class Alarms:
    """A timer that goes off all the time, and raises as often as it is allowed to."""

    def __init__(self):
        self.allowed = []

    def ring(self, *_):
        if self.allowed:
            self.allowed.pop()
            raise Alarm

    def __enter__(self):
        self.before = signal.signal(signal.SIGALRM, self.ring)
        signal.setitimer(signal.ITIMER_REAL, 0.001, 0.00037)
        return self

    def __exit__(self, *_):
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, self.before)


def publish_until(ends, trainer, alarms, count):
    """Publishes, every other time interrupted; counts how it goes."""
    while time.monotonic() < ends:
        count["version"] += 1
        alarms.allowed[:] = [None] * (count["version"] % 2)
        trainer.publish(count["version"])
        alarms.allowed.clear()
        count["done"] += 1


def test_interrupts_between_any_two_lines_leave_a_handle_usable():
    trainer, weights = tiny.open_trainer()
    count = {"version": 0, "done": 0, "heard": 0}
    ends = time.monotonic() + 3
    with Alarms() as alarms:
        while time.monotonic() < ends:
            try:
                publish_until(ends, trainer, alarms, count)
            except Alarm:
                count["heard"] += 1
        alarms.allowed.clear()
    assert count["heard"] > 10 and count["done"] > 10, count
    assert trainer._running is None
    with trainer, tiny.open_replica(trainer.directory) as replica:
        tiny.fill(weights, 2)
        trainer.publish(count["version"] + 1)
        assert replica.install().version == count["version"] + 1
        tiny.expect_holds(replica, 2)


def test_a_signal_handler_may_cancel():
    trainer, _ = tiny.open_trainer(timeout=30)
    before = signal.signal(signal.SIGUSR1, lambda *_: trainer.cancel())
    try:
        trainer.publish(1)
        main = threading.main_thread().ident
        threading.Timer(0.2, signal.pthread_kill, (main, signal.SIGUSR1)).start()
        with pytest.raises(weir.PeerError, match="cancelled"):
            trainer.wait(1, n_replicas=1)
        trainer.publish(2)
    finally:
        signal.signal(signal.SIGUSR1, before)
        trainer.close()
