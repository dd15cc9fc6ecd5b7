# SPDX-License-Identifier: Apache-2.0
"""Weir against verl itself, on a CPU: its registry, its abstract engine, and its own manager and
worker driving Weir's engine. requirements-verl.txt has what these imports need; without verl they
are skipped."""
from __future__ import annotations

import asyncio
import inspect
import types

import pytest

pytest.importorskip("torch")
pytest.importorskip("verl", reason="verl is not installed (requirements-verl.txt)")

import test_frameworks as hooks  # noqa: E402
from verl.checkpoint_engine import base  # noqa: E402
from verl.utils.import_utils import import_external_libs  # noqa: E402

from weir.frameworks.verl import WeirCheckpointEngine  # noqa: E402

import_external_libs("weir.frameworks.verl")
METHODS = ("prepare", "build_topology", "init_process_group", "finalize", "send_weights",
           "receive_weights", "get_weights")


def test_the_backend_is_in_verls_registry():
    engine = base.CheckpointEngineRegistry.new("weir", bucket_size=1 << 20, is_master=True,
                                               **hooks.TOLD)
    assert type(engine) is WeirCheckpointEngine and engine.is_master
    assert isinstance(engine, base.CheckpointEngineWithCache)
    assert engine.wire_format == base.CheckpointEngine.wire_format
    engine.close()


@pytest.mark.parametrize("name", METHODS)
def test_methods_take_what_verl_hands_them(name):
    theirs = inspect.signature(getattr(base.CheckpointEngineWithCache, name)).parameters
    ours = inspect.signature(getattr(WeirCheckpointEngine, name)).parameters
    if name == "init_process_group":  # **kwargs there: what build_topology() says
        return
    assert list(ours) == list(theirs)
    for argument, parameter in theirs.items():
        assert ours[argument].default == parameter.default


class WorkerGroup:
    """Calls each rank's engine, as verl's worker groups call their workers."""

    def __init__(self, engines):
        self.engines, self.world_size = engines, len(engines)

    def execute_checkpoint_engine(self, method, **kwargs):
        assert len(method) == self.world_size
        return [getattr(engine, method[rank])(**{k: v[rank] for k, v in kwargs.items()})
                for rank, engine in enumerate(self.engines)]


class LoadingEngine:
    """A rollout's server adapter: loads what it is handed."""

    async def update_weights(self, weights, global_steps=None, wire_format=None):
        assert wire_format == "named_tensors"
        self.loaded = await hooks.collected(weights)


def test_verls_manager_and_worker_drive_a_whole_sync(monkeypatch):
    monkeypatch.setattr(base.ray, "get", lambda results: results)
    with hooks.VerlRun(n_actor=2, n_rollout=2) as run:
        manager = types.SimpleNamespace(actor_wg=WorkerGroup(run.actor),
                                        backend_cls=WeirCheckpointEngine)
        workers = [types.SimpleNamespace(checkpoint_engine=engine, server_adapter=LoadingEngine())
                   for engine in run.rollout]
        for version in (1, 2):
            base.CheckpointEngineManager.build_process_group(manager, WorkerGroup(run.rollout))

            async def sync():
                await asyncio.gather(
                    *(engine.send_weights(hooks.stream(version), global_steps=version)
                      for engine in run.actor),
                    *(base.CheckpointEngineWorker.update_weights(worker, global_steps=version)
                      for worker in workers))

            asyncio.run(sync())
            for worker in workers:
                hooks.expect_version(worker.server_adapter.loaded, version)
            for group in (manager.actor_wg, WorkerGroup(run.rollout)):
                group.execute_checkpoint_engine(["finalize"] * group.world_size)
