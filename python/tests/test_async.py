# SPDX-License-Identifier: Apache-2.0
"""Handles in an event loop: it goes on meanwhile, and tasks that are cancelled cancel the call."""
from __future__ import annotations

import asyncio
import threading
import time

import pytest
import tiny_model as tiny

import weir
from weir import Status

pytestmark = tiny.NO_WARNINGS


@pytest.fixture
def trained():
    trainer, weights = tiny.open_trainer()
    with trainer:
        yield trainer, weights


def test_several_replicas_follow_a_trainer_in_one_loop(trained):
    trainer, weights = trained
    replicas = [tiny.open_replica(trainer.directory) for _ in range(3)]

    async def follow(replica):
        async for report in replica.watch_async():
            tiny.expect_holds(replica, report.version)
            if report.version == 3:
                return

    async def train():
        for version in (1, 2, 3):
            tiny.fill(weights, version)
            assert (await trainer.publish_async(version)).version == version
            await trainer.wait_async(version, n_replicas=len(replicas))

    async def run():
        await asyncio.gather(train(), *(follow(replica) for replica in replicas))

    asyncio.run(run())
    assert [replica.version for replica in replicas] == [3, 3, 3]
    for replica in replicas:
        replica.close()


def test_the_loop_goes_on_while_a_call_waits(trained):
    trainer, _ = trained

    async def run():
        trainer.publish(1)
        waiting = asyncio.ensure_future(trainer.wait_async(1, n_replicas=1))
        n_turns = 0
        while trainer._running is None or n_turns < 100:
            await asyncio.sleep(0)
            n_turns += 1
        assert not waiting.done()
        with pytest.raises(weir.CallError, match=r"publish\(\) while wait\(\) runs"):
            await trainer.publish_async(2)
        with tiny.open_replica(trainer.directory) as replica:
            assert (await replica.install_async(1)).version == 1
            await waiting

    asyncio.run(run())


def test_cancelling_a_task_ends_its_call_before_the_task_ends(trained):
    trainer, _ = trained

    async def run(call):
        task = asyncio.ensure_future(call())
        while not handle._running or not handle._running.has_begun:
            await asyncio.sleep(0.001)
        begun = time.monotonic()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert handle._running is None
        return time.monotonic() - begun

    trainer.publish(1)
    with tiny.open_replica(trainer.directory) as replica:
        async def watch():
            async for _ in replica.watch_async(start=2):
                pass

        for handle, call in ((trainer, lambda: trainer.wait_async(1, 1)),
                             (replica, lambda: replica.install_async(2)), (replica, watch)):
            assert asyncio.run(run(call)) < 1
        assert replica.install(1).version == 1  # neither was left cancelled
        trainer.wait(1, n_replicas=1)


def test_a_time_out_of_asyncio_is_one(trained):
    async def run():
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(trained[0].wait_async(1, 1), 0.1)

    trained[0].publish(1)
    asyncio.run(run())


def test_an_error_is_raised_where_it_is_awaited(trained):
    async def run():
        with pytest.raises(weir.TimedOut, match="policy|version 1"):
            await trained[0].wait_async(1, n_replicas=1, timeout=0.05)
        with pytest.raises(weir.CallError, match="version: -1"):
            await trained[0].publish_async(-1)

    trained[0].publish(1)
    asyncio.run(run())


def test_hooks_run_beside_the_loop(trained):
    trainer, _ = trained
    threads = []
    with weir.Replica("policy", directory=trainer.directory, config=tiny.CONFIG,
                      pause=lambda: threads.append(threading.current_thread())) as replica:
        replica.allocate()
        trainer.publish(1)
        asyncio.run(replica.install_async(1))
    assert len(threads) == 1 and threads[0] is not threading.main_thread()


def test_closing_from_the_loop_ends_what_is_awaited(trained):
    trainer, _ = trained

    async def run():
        task = asyncio.ensure_future(trainer.wait_async(1, n_replicas=1))
        while trainer._running is None:
            await asyncio.sleep(0)
        trainer.close()
        with pytest.raises(weir.PeerError) as caught:
            await task
        assert caught.value.status is Status.ERR_CANCELLED

    trainer.publish(1)
    asyncio.run(run())


def test_a_loop_that_ends_without_its_tasks_leaves_the_handle_usable(trained):
    trainer, _ = trained
    trainer.publish(1)
    loop = asyncio.new_event_loop()
    task = loop.create_task(trainer.wait_async(1, n_replicas=1))
    while trainer._running is None:
        loop.run_until_complete(asyncio.sleep(0))
    task.get_coro().close()  # as an interpreter does that ends
    while trainer._running is not None:
        time.sleep(0.01)
    task._log_destroy_pending = False
    loop.close()
    assert trainer.publish(2).version == 2
