# SPDX-License-Identifier: Apache-2.0
"""A directory in Python, and what every handle has in common: one call at a time, closing from
anywhere, processes that fork or end."""
from __future__ import annotations

import os
import threading
import urllib.request
import warnings

import pytest
import tiny_model as tiny

import weir
from weir import Status

pytestmark = tiny.NO_WARNINGS


def test_it_serves_trainers_and_replicas_and_a_page():
    with weir.Directory(http="127.0.0.1:0") as directory:
        trainer, _ = tiny.open_trainer(directory=directory.address)
        with trainer, tiny.open_replica(directory.address) as replica:
            assert trainer.directory == directory.address
            trainer.publish(1)
            replica.install(1)
            with urllib.request.urlopen(f"http://{directory.http_address}/metrics") as answer:
                assert b"weir_" in answer.read()
    assert directory.http_address != ""
    assert "(closed)" in repr(directory)
    directory.close()


def test_where_it_cannot_listen_is_named():
    with weir.Directory() as directory:
        assert directory.http_address == ""
        with pytest.raises(weir.WeirError, match=directory.address):
            weir.Directory(directory.address)
    with pytest.raises(weir.CallError, match="stale_after: -1"):
        weir.Directory(stale_after=-1)
    with pytest.raises(weir.CallError, match="store"):
        weir.Directory(store="sqlite:///x")


def test_a_token_is_asked_of_every_caller():
    security = weir.Security(token="s3cret")
    trainer, _ = tiny.open_trainer(security=security)
    with trainer:
        trainer.publish(1)
        with tiny.open_replica(trainer.directory, security=security) as replica:
            assert replica.install(1).version == 1
        with pytest.raises(weir.CallError, match="token is missing, or another") as caught:
            tiny.open_replica(trainer.directory, security=weir.Security(token="guess"))
        assert caught.value.status is Status.ERR_REFUSED


# ---- one call at a time --------------------------------------------------------------------------


@pytest.fixture
def waiting():
    """A trainer that waits for a replica in a thread, and what its wait ends with."""
    told = threading.Event()
    trainer, _ = tiny.open_trainer(timeout=30)
    trainer.publish(1)
    ends = []

    def wait():
        told.set()
        try:
            trainer.wait(1, n_replicas=1)
        except weir.WeirError as error:
            ends.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    told.wait()
    while trainer._running is None:
        pass
    yield trainer, thread, ends
    trainer.close()
    thread.join()


def test_a_second_call_is_refused_and_names_the_first(waiting):
    trainer, thread, ends = waiting
    with pytest.raises(weir.CallError, match=r"publish\(\) while wait\(\) runs") as caught:
        trainer.publish(2)
    assert caught.value.status is Status.ERR_BUSY
    trainer.cancel()
    thread.join()
    assert [error.status for error in ends] == [Status.ERR_CANCELLED]
    trainer.publish(2)  # the cancel was for the wait


def test_closing_ends_the_call_that_runs(waiting):
    trainer, thread, ends = waiting
    trainer.close()
    thread.join()
    assert [error.status for error in ends] == [Status.ERR_CANCELLED]
    with pytest.raises(weir.CallError, match="closed"):
        trainer.publish(2)


def test_closing_by_many_threads_closes_once(waiting):
    trainer, thread, ends = waiting
    threads = [threading.Thread(target=trainer.close) for _ in range(8)]
    for closer in threads:
        closer.start()
    for closer in [*threads, thread]:
        closer.join()
    assert [error.status for error in ends] == [Status.ERR_CANCELLED]


def test_a_cancel_without_a_call_is_for_the_next_one_that_waits():
    trainer, _ = tiny.open_trainer()
    with trainer:
        trainer.publish(1)
        trainer.cancel()
        with pytest.raises(weir.PeerError) as caught:
            trainer.wait(1, n_replicas=1)
        assert caught.value.status is Status.ERR_CANCELLED
        with pytest.raises(weir.TimedOut):
            trainer.wait(1, n_replicas=1, timeout=0.05)


# ---- processes -----------------------------------------------------------------------------------


def in_child(function):
    """What function returns, or the exception that it raises, in a process that was forked."""
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # fork() among threads
        child = os.fork()
    if child == 0:
        try:
            said = str(function())
        except BaseException as error:
            said = f"{type(error).__name__}: {error}"
        os.write(writer, said.encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as file:
        said = file.read()
    assert os.waitpid(child, 0)[1] == 0
    return said


def test_a_child_is_refused_the_handles_of_its_parent_and_harms_none():
    trainer, _ = tiny.open_trainer()
    with trainer, tiny.open_replica(trainer.directory) as replica:
        trainer.publish(1)
        for call in (lambda: trainer.publish(2), lambda: replica.install(1), replica.cancel,
                     lambda: next(replica.watch())):
            assert "does not outlive fork()" in in_child(call)
        assert in_child(trainer.close) == "None"
        assert in_child(trainer.__del__) == "None"
        assert replica.install(1).version == 1


FORK = """
import os, sys
import tiny_model as tiny

trainer, _ = tiny.open_trainer()
trainer.publish(1)
child = os.fork()
if child == 0:
    sys.exit(0)  # with the handles of the parent, atexit and all
assert os.waitpid(child, 0)[1] == 0
with tiny.open_replica(trainer.directory) as replica:
    print(replica.install(1).version)
"""


def test_a_child_that_exits_leaves_its_parents_handles():
    code = "import warnings; warnings.simplefilter('ignore')\n" + FORK
    assert tiny.run_python(code) == "1\n"


LEFT_OPEN = """
import sys, threading
import tiny_model as tiny
import weir

directory = weir.Directory()
trainer, _ = tiny.open_trainer(directory=directory.address)
replica = tiny.open_replica(directory.address, timeout=30)
trainer.publish(1)
replica.install(1)
{more}
print("end")
"""

ENDS = {
    "at the end": "",
    "by sys.exit()": "print('end'); sys.exit(0)",
    "in a cycle": "trainer.me = trainer; replica.me = [replica, directory]; del trainer, replica",
    "while a daemon waits": (
        "threading.Thread(target=lambda: replica.install(2), daemon=True).start()\n"
        "while replica._running is None: pass\n"
        "threading.excepthook = lambda _: None"
    ),
    "in the midst of a watch": "watch = replica.watch(start=1); next(watch)",
}


@pytest.mark.parametrize("more", ENDS.values(), ids=ENDS.keys())
def test_an_interpreter_that_ends_closes_what_is_open(more):
    assert tiny.run_python(LEFT_OPEN.format(more=more)) == "end\n"


BARE = """
import sys
import weir

weights = {"bert.x": weir.tensor(bytearray(4), dtype="F32", shape=(1,))}
with weir.Trainer("m", config={"model_type": "llama"}) as trainer:
    try:
        trainer.register(weights)
    except weir.WeirError as error:
        print(type(error).__name__, "numpy" in sys.modules, "torch" in sys.modules)
"""


def test_handles_need_neither_numpy_nor_torch():
    kind, *loaded = tiny.run_python(BARE).split()
    assert kind.endswith("Error") and loaded == ["False", "False"]
