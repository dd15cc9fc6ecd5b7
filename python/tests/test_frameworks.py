# SPDX-License-Identifier: Apache-2.0
"""The hooks of verl, NeMo-RL and prime-rl: real trainers and replicas of a tiny model behind them.

What calls the hooks stands in for the frameworks, in their order of calls; test_verl.py compares
with verl itself where it is installed. Engines here are memory of Weir's; test_vllm*.py has vLLM's.
"""
from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import os
import signal
import socket
import sys
import threading
import types

import numpy as np
import pytest
import tiny_model as tiny

import weir
from weir.frameworks import channel, markers, prime_rl
from weir.frameworks.arena import Arena
from weir.frameworks.channel import Options, next_version
from weir.frameworks.nemo_rl import WeirRefit
from weir.frameworks.verl import WeirCheckpointEngine

torch = pytest.importorskip("torch")
torch.set_num_threads(1)

TIMEOUT_S = 10.0
TOLD = {"model": "policy", "config": tiny.CONFIG, "timeout": TIMEOUT_S, "n_threads": 1}


def bf16(value):
    return torch.from_numpy(value.copy()).view(torch.bfloat16)


def bits_of(tensor):
    return tensor.view(torch.int16).numpy().view(np.uint16)


def stream(version):
    """A version tensor by tensor, all out of one buffer that the next tensor overwrites, the way
    gathered weights come."""
    values = tiny.bits(version)
    buffer = torch.empty(max(value.size for value in values.values()), dtype=torch.bfloat16)
    for name, value in values.items():
        tensor = buffer[: value.size].view(value.shape)
        tensor.copy_(bf16(value))
        yield name, tensor
        buffer.fill_(float("nan"))


def expect_version(got, version):
    want = tiny.bits(version)
    assert got.keys() == want.keys()
    for name, value in want.items():
        assert (bits_of(got[name]) == value).all(), f"{name} is not that of version {version}"


async def collected(items):
    """What an engine's loader has loaded when the stream has ended."""
    return {name: tensor.clone() async for name, tensor in items}


# ---- what is lent is kept
# ---------------------------------------------------------------------------


def test_an_arena_keeps_what_its_owner_overwrites_and_its_own_memory_stays():
    arena = Arena()
    addresses = []
    for version in (1, 2):
        arena.begin()
        for name, tensor in stream(version):
            arena.take(name, tensor)
        expect_version(arena.tensors(), version)
        addresses.append({name: t.data_ptr() for name, t in arena.tensors().items()})
    assert addresses[0] == addresses[1]


def test_an_arena_takes_strides_and_other_arrays_and_lets_go_of_what_is_gone():
    arena = Arena()
    arena.begin()
    whole = torch.arange(12, dtype=torch.float32).view(3, 4)
    numbers = np.arange(6, dtype=np.float32).reshape(2, 3)
    arena.take("columns", whole.t())
    arena.take("numpy", numbers)
    numbers[:] = -1
    kept = arena.tensors()
    assert kept["columns"].is_contiguous() and torch.equal(kept["columns"], whole.t())
    assert bytes(kept["numpy"].raw) == np.arange(6, dtype=np.float32).tobytes()
    arena.begin()
    arena.take("columns", whole.t()[:2])
    assert list(arena.tensors()) == ["columns"]
    assert arena.tensors()["columns"].shape == (2, 3)


def test_an_arena_that_borrows_copies_nothing():
    arena = Arena(borrow=True)
    weight = torch.ones(3, requires_grad=True)
    arena.begin()
    arena.take("weight", weight)
    assert arena.tensors()["weight"].data_ptr() == weight.data_ptr()


def test_an_arena_refuses_a_name_twice_shards_and_nothing():
    arena = Arena()
    arena.begin()
    with pytest.raises(weir.CallError, match="no tensor"):
        arena.tensors()
    arena.take("a", torch.ones(2))
    with pytest.raises(weir.CallError, match="a: handed out twice"):
        arena.take("a", torch.ones(2))
    shard = weir.Shard(torch.ones(1), (2,), (0,), (1,))
    with pytest.raises(weir.CallError, match="b: is a shard"):
        arena.take("b", shard)


def test_versions_follow_steps_and_grow_where_steps_do_not():
    assert [next_version(step, last) for step, last in
            ((None, 0), (0, 0), (1, 0), (7, 3), (7, 7), (2, 7))] == [1, 1, 1, 7, 8, 8]
    for wrong in (-1, 1.5, True, "3"):
        with pytest.raises(weir.CallError, match="step"):
            next_version(wrong, 0)


@pytest.mark.parametrize("given, named", [
    ({"modell": "x"}, "modell"),
    ({"mode": "fast"}, "mode 'fast'"),
    ({"mode": "checkpoint"}, "config"),
    ({"config": {}, "parameters": "a:b"}, "mode 'kernel'"),
])
def test_options_that_make_no_sense_are_named(given, named):
    with pytest.raises(weir.CallError, match=named):
        Options.of(given)


@pytest.mark.parametrize("path", ["weir", "weir:", ":f", "no.such.module:f", "weir.errors:no_such"])
def test_a_function_that_is_not_there_is_named(path):
    with pytest.raises(weir.CallError, match=path):
        channel.named_object(path)


# ---- verl
# ------------------------------------------------------------------------------------------


class VerlRun:
    """Calls the engines of all ranks in the order in which verl's manager does."""

    def __init__(self, n_actor=1, n_rollout=1, **told):
        told = {**TOLD, **told}
        self.actor = [WeirCheckpointEngine(1 << 20, is_master=rank == 0, **told)
                      for rank in range(n_actor)]
        self.rollout = [WeirCheckpointEngine(bucket_size=1 << 20, **told) for _ in range(n_rollout)]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for engine in self.actor + self.rollout:
            engine.close()

    def build(self):
        metadata = [engine.prepare() for engine in self.actor + self.rollout]
        both = WeirCheckpointEngine.build_topology(len(self.actor), len(self.rollout), metadata)
        for engines, kwargs in zip((self.actor, self.rollout), both):
            for rank, engine in enumerate(engines):
                assert all(len(values) == len(engines) for values in kwargs.values())
                engine.init_process_group(**{name: values[rank] for name, values in kwargs.items()})

    def update(self, version, step="version"):
        async def both():
            at = version if step == "version" else step
            return await asyncio.gather(
                *(e.send_weights(stream(version), global_steps=at) for e in self.actor),
                *(collected(e.receive_weights(global_steps=at)) for e in self.rollout))

        self.build()
        results = asyncio.run(both())
        for engine in self.actor + self.rollout:
            engine.finalize()
        return results[: len(self.actor)], results[len(self.actor):]


def test_verl_moves_every_step_to_every_rollout_worker():
    with VerlRun(n_actor=2, n_rollout=2, security={"token": "s3cret"}) as run:
        for version in (1, 2, 5):
            metrics, loaded = run.update(version)
            assert metrics[0]["weir/version"] == version and metrics[1] is None
            for got in loaded:
                expect_version(got, version)


def test_verl_the_address_to_listen_at_is_the_senders_alone(monkeypatch):
    listened = {}
    for kind in (weir.Trainer, weir.Replica):
        def open_one(self, *given, kind=kind, before=kind.__init__, **told):
            listened[kind] = told.get("listen")
            before(self, *given, **told)

        monkeypatch.setattr(kind, "__init__", open_one)
    with VerlRun(listen="127.0.0.2") as run:
        _, (got,) = run.update(1)
    expect_version(got, 1)
    assert listened == {weir.Trainer: "127.0.0.2", weir.Replica: None}


def test_verl_steps_that_do_not_grow_bring_what_was_sent_last():
    with VerlRun() as run:
        for version, step in ((1, 0), (2, 0), (3, 9), (4, 9), (5, None), (6, 2)):
            _, (got,) = run.update(version, step)
            expect_version(got, version)


def test_verl_a_rollout_worker_that_joins_later_gets_the_version_of_its_step():
    with VerlRun() as run:
        run.update(1)
        run.rollout.append(WeirCheckpointEngine(1 << 20, **TOLD))
        _, loaded = run.update(2)
        for got in loaded:
            expect_version(got, 2)


def test_verl_get_weights_hands_out_what_was_received_last():
    with VerlRun() as run:
        run.update(1)
        expect_version(asyncio.run(collected(run.rollout[0].get_weights())), 1)
        with pytest.raises(weir.CallError, match="no version"):
            asyncio.run(collected(WeirCheckpointEngine(1, **TOLD).get_weights()))


def test_verl_kernel_mode_installs_in_place_and_yields_nothing(tmp_path, monkeypatch):
    live = {name: weir.tensor(np.zeros_like(value), name=name, dtype="BF16")
            for name, value in tiny.fused(tiny.bits(1)).items()}
    addresses = {name: tensor.address for name, tensor in live.items()}
    monkeypatch.setitem(sys.modules, "engine_of_mine",
                        types.SimpleNamespace(parameters=lambda: live))
    with VerlRun(mode="kernel", parameters="engine_of_mine:parameters") as run:
        for version in (1, 2):
            _, (got,) = run.update(version)
            assert got == {}
            for name, value in tiny.fused(tiny.bits(version)).items():
                assert bytes(live[name].raw) == value.tobytes(), name
    assert addresses == {name: tensor.address for name, tensor in live.items()}


def test_verl_kernel_mode_can_have_the_engine_install_elsewhere():
    installed = []

    async def have_installed(version, directory):
        installed.append(version)
        with tiny.open_replica(directory) as replica:
            await replica.install_async(version)
            tiny.expect_holds(replica, version)

    with VerlRun(mode="kernel", installer=have_installed) as run:
        assert run.update(3)[1] == [{}]
    assert installed == [3]


def test_verl_kernel_mode_without_an_engine_is_refused():
    with VerlRun(mode="kernel", timeout=1.0) as run:
        run.build()
        with pytest.raises(weir.CallError, match="'parameters'.*'installer'"):
            asyncio.run(collected(run.rollout[0].receive_weights(global_steps=1)))


def test_verl_topologies_that_are_none_are_refused():
    sender, other = {"directory": "127.0.0.1:1", "last": 0}, {}
    build = WeirCheckpointEngine.build_topology
    with pytest.raises(weir.CallError, match="1 ranks were prepared"):
        build(1, 1, [sender])
    with pytest.raises(weir.CallError, match="rank 0 of the actor"):
        build(1, 1, [other, sender])
    engine = WeirCheckpointEngine(1, **TOLD)
    with pytest.raises(weir.CallError, match="told to be sender"):
        engine.init_process_group(role="sender", rank=0, master=sender, n_workers=1)
    with pytest.raises(weir.CallError, match="role 'boss'"):
        engine.init_process_group(role="boss", rank=0, master=sender, n_workers=1)
    with pytest.raises(weir.CallError, match="not receiver"):
        asyncio.run(collected(engine.receive_weights()))


def test_verl_a_stream_that_breaks_publishes_nothing_and_the_next_one_is_good():
    def broken():
        yield next(stream(1))
        raise OSError("the gather failed")

    with VerlRun(timeout=1.0) as run:
        run.build()
        with pytest.raises(OSError, match="gather"):
            asyncio.run(run.actor[0].send_weights(broken(), global_steps=1))
        with pytest.raises(weir.TimedOut):
            asyncio.run(collected(run.rollout[0].receive_weights(global_steps=1)))
        _, (got,) = run.update(2)
        expect_version(got, 2)


def test_verl_a_weight_that_is_not_finite_is_named_and_no_engine_gets_it():
    def poisoned():
        for name, tensor in stream(1):
            if name.endswith("0.mlp.up_proj.weight"):
                tensor[3, 4] = float("inf")
            yield name, tensor

    with VerlRun(timeout=1.0) as run:
        run.build()
        with pytest.raises(weir.CallError, match="mlp.up_proj.weight"):
            asyncio.run(run.actor[0].send_weights(poisoned(), global_steps=1))


def test_verl_says_who_has_not_come():
    with VerlRun(n_rollout=2, timeout=1.0) as run:
        run.build()

        async def one_of_two():
            return await asyncio.gather(
                run.actor[0].send_weights(stream(1), global_steps=1),
                collected(run.rollout[0].receive_weights(global_steps=1)), return_exceptions=True)

        sent, got = asyncio.run(one_of_two())
        assert isinstance(sent, weir.TimedOut)
        expect_version(got, 1)


SENDER = """
import asyncio, json, sys
import tiny_model as tiny
from weir.frameworks.verl import WeirCheckpointEngine

def slow():
    for i, item in enumerate(tiny.tensors(tiny.bits(1)).items()):
        if i == 5:
            print("half way", flush=True)
            sys.stdin.readline()
        yield item

async def main():
    engine = WeirCheckpointEngine(1, is_master=True, model="policy", config=tiny.CONFIG)
    print(json.dumps(engine.prepare()), flush=True)
    sys.stdin.readline()
    engine.init_process_group(role="sender", rank=0, n_workers=1, master={"last": 0})
    await engine.send_weights(slow(), global_steps=1)
    print("sent", flush=True)
    sys.stdin.readline()

asyncio.run(main())
"""


@contextlib.contextmanager
def sender_process():
    process = tiny.start_python(SENDER, warnings="ignore")  # of verl, where it is installed
    try:
        yield process, json.loads(process.stdout.readline())
    finally:
        process.kill()
        process.communicate()


def receiver_of(master, timeout=TIMEOUT_S):
    engine = WeirCheckpointEngine(1, **{**TOLD, "timeout": timeout})
    engine.init_process_group(role="receiver", rank=0, n_workers=1, master=master)
    return engine


def test_verl_moves_weights_between_two_processes():
    with sender_process() as (process, master):
        engine = receiver_of(master)
        process.stdin.write("go\ngo\n")
        process.stdin.flush()
        expect_version(asyncio.run(collected(engine.receive_weights(global_steps=1))), 1)
        assert process.stdout.readline() == "half way\n"
        assert process.stdout.readline() == "sent\n"
        engine.close()


def test_verl_a_sender_that_dies_ends_the_wait_within_its_bound():
    with sender_process() as (process, master):
        engine = receiver_of(master, timeout=3.0)
        process.stdin.write("go\n")
        process.stdin.flush()
        failed = []

        def receive():
            try:
                asyncio.run(collected(engine.receive_weights(global_steps=1)))
            except weir.WeirError as error:
                failed.append(error)

        waiting = threading.Thread(target=receive)
        waiting.start()
        assert process.stdout.readline() == "half way\n"
        os.kill(process.pid, signal.SIGKILL)
        waiting.join(timeout=20)
        assert not waiting.is_alive()
        assert len(failed) == 1 and isinstance(failed[0], weir.PeerError)
        assert engine._receiver.version == 0
        engine.close()


# ---- NeMo-RL
# ---------------------------------------------------------------------------------------


async def batches_of(engine):
    return [[(name, tensor.clone()) for name, tensor in batch]
            async for batch in engine.receive_weight_batches()]


class NemoRun:
    """Calls the engines of all workers in the order in which NeMo-RL's synchronizer does."""

    def __init__(self, n_policy=1, n_rollout=1, bucket_size=1 << 20, **told):
        told = {**TOLD, "release_after_refit": False, **told}
        self.policy = [WeirRefit(bucket_size=bucket_size, **told) for _ in range(n_policy)]
        self.rollout = [WeirRefit(bucket_size=bucket_size, **told) for _ in range(n_rollout)]

    def __enter__(self):
        metadata = [{**engine.prepare(), "rank": rank}
                    for engines in (self.policy, self.rollout)
                    for rank, engine in enumerate(engines)]
        sizes = {"train_world_size": len(self.policy), "rollout_world_size": len(self.rollout)}
        for rank, engine in enumerate(self.policy):
            engine.init_policy_process_group(worker_rank=rank, metadata=metadata, **sizes)
        for rank, engine in enumerate(self.rollout):
            engine.init_rollout_process_group(rollout_rank=rank, metadata=metadata, **sizes)
        return self

    def __exit__(self, *_):
        for engine in self.policy + self.rollout:
            engine.finalize()

    def refit(self, version, tensors=stream):
        async def all_of_them():
            return await asyncio.gather(
                *(engine.send_weights(tensors(version)) for engine in self.policy),
                *(batches_of(engine) for engine in self.rollout), return_exceptions=True)

        results = asyncio.run(all_of_them())
        return results[: len(self.policy)], results[len(self.policy):]


def test_nemo_rl_moves_refit_after_refit_in_batches():
    with NemoRun(n_policy=2, n_rollout=2, bucket_size=400_000) as run:
        for version in (1, 2):
            sent, received = run.refit(version)
            assert sent == [None, None]
            for batches in received:
                assert len(batches) > 2
                for batch in batches:
                    size = sum(tensor.nbytes for _, tensor in batch)
                    assert size <= 400_000 or len(batch) == 1
                expect_version(dict(pair for batch in batches for pair in batch), version)


def test_nemo_rl_goes_on_after_a_refit_that_failed():
    def broken(_):
        yield next(stream(1))
        raise OSError("the gather failed")

    with NemoRun(timeout=1.0) as run:
        (sent,), (received,) = run.refit(1, broken)
        assert isinstance(sent, OSError) and isinstance(received, weir.TimedOut)
        _, (batches,) = run.refit(2)
        expect_version(dict(pair for batch in batches for pair in batch), 2)


def test_nemo_rl_can_be_released_and_prepared_again():
    run = NemoRun(release_after_refit=True)
    for version in (1, 2):
        with run:
            _, (batches,) = run.refit(version)
            expect_version(dict(pair for batch in batches for pair in batch), version)


def test_nemo_rl_workers_that_were_never_told_are_refused():
    engine = WeirRefit(1, **TOLD)
    with pytest.raises(weir.CallError, match="init_policy_process_group"):
        asyncio.run(engine.send_weights(stream(1)))
    with pytest.raises(weir.CallError, match="init_rollout_process_group"):
        asyncio.run(batches_of(engine))
    told = {"train_world_size": 1, "rollout_world_size": 1}
    with pytest.raises(weir.CallError, match="metadata of 0 workers"):
        engine.init_rollout_process_group(rollout_rank=0, metadata=[], **told)
    with pytest.raises(weir.CallError, match="no Weir directory"):
        engine.init_rollout_process_group(rollout_rank=0, metadata=[None], **told)
    with pytest.raises(weir.CallError, match="rollout rank 1 of 1"):
        engine.init_rollout_process_group(rollout_rank=1, metadata=[], **told)
    with pytest.raises(weir.CallError, match="bucket_size"):
        WeirRefit(0, **TOLD)


# ---- prime-rl
# --------------------------------------------------------------------------------------


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class PrimeModel(torch.nn.Module):
    """A model with the tiny model's weights and its config, as transformers' have one."""

    def __init__(self):
        super().__init__()
        self.config = types.SimpleNamespace(to_dict=lambda: dict(tiny.CONFIG))
        self._weights = {name: bf16(value) for name, value in tiny.bits(1).items()}

    def state_dict(self, *_, **__):
        return self._weights

    def train_to(self, version):
        for name, value in tiny.bits(version).items():
            self._weights[name].copy_(bf16(value))


def config_of(quantize=False, n_workers=1, **more):
    return types.SimpleNamespace(host="localhost", port=free_port(), timeout=TIMEOUT_S,
                                 inference_world_size=n_workers,
                                 quantize_in_weight_transfer=quantize, **more)


class PrimeOrchestrator(threading.Thread):
    """Waits for STABLE, says NCCL_READY, then has the workers update, as prime-rl's does."""

    def __init__(self, output, step, update):
        super().__init__()
        self.directory, self.update, self.error = markers.step_directory(output, step), update, None
        self.start()

    def run(self):
        try:
            for _ in range(400):
                if (self.directory / "STABLE").exists():
                    break
                threading.Event().wait(0.02)
            (self.directory / "NCCL_READY").touch()
            self.update(str(self.directory))
        except BaseException as error:  # handed to the test
            self.error = error

    def end(self):
        self.join(timeout=20)
        assert not self.is_alive() and self.error is None, self.error


class StandInReceiver:
    """An engine's worker over memory of Weir's: vLLM's parameters are tested with vLLM's
    adapters."""

    def __init__(self, settings):
        self.replica = weir.Replica(
            settings.model, directory=settings.directory, config=tiny.CONFIG, run=settings.run,
            wire=settings.wire, timeout=settings.timeout, n_threads=1)
        self.replica.allocate()
        self.install, self.close = self.replica.install, self.replica.close

    def state(self):
        return {"version": self.replica.version}


@pytest.fixture
def told(monkeypatch):
    """The settings that workers' receivers were made with, which are StandInReceivers."""
    made = []

    def receiver_for_vllm(model, vllm_config, settings):
        assert (model, vllm_config) == ("the module", "the config")
        made.append(settings)
        return StandInReceiver(settings)

    monkeypatch.setattr("weir.vllm.extension.receiver_for_vllm", receiver_for_vllm)
    return made


class StandInWorker(prime_rl.WeirWeightUpdateWorker):
    """What vLLM mixes the extension into."""

    model_runner = types.SimpleNamespace(model=types.SimpleNamespace(runnable="the module"))
    vllm_config = "the config"


@pytest.fixture
def broadcast(tmp_path):
    made = []

    def make(config, **options):
        made.append(prime_rl.WeirWeightBroadcast(tmp_path, config, **options))
        return made[-1]

    yield make
    for one in made:
        one.shutdown()


def expect_engine_holds(worker, version):
    tiny.expect_holds(worker.weir_receiver.replica, version)


@pytest.mark.parametrize("quantize", [False, True])
def test_prime_rl_broadcasts_step_after_step(tmp_path, broadcast, told, quantize):
    config = config_of(quantize, session_id="run-7")
    sender = broadcast(config, engine_config=tiny.CONFIG)
    worker, model = StandInWorker(), PrimeModel()
    worker.init_broadcaster("127.0.0.1", config.port, 0, 1, TIMEOUT_S, quantize, "run-7")
    assert told[0].wire == ("kernel" if quantize else "checkpoint") and told[0].run == "run-7"
    for step in (1, 2, 4):
        model.train_to(step)
        orchestrator = PrimeOrchestrator(tmp_path, step, worker.update_weights_from_path)
        sender.broadcast_weights(model, step)
        orchestrator.end()
        expect_engine_holds(worker, step)
    worker.weir_close()


SHARDED_RANK = """
import sys, types, torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor
import tiny_model as tiny
from weir.frameworks.prime_rl import WeirWeightBroadcast

rank, store, port, output = int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4]
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method="file://" + store, rank=rank, world_size=2)
mesh = init_device_mesh("cpu", (2,))
config = {"host": "localhost", "port": port, "timeout": 60, "inference_world_size": 1}
sender = WeirWeightBroadcast(output, config, engine_config=tiny.CONFIG, markers=False, n_threads=1)
model = {name: distribute_tensor(torch.from_numpy(value).view(torch.bfloat16), mesh, [Shard(0)])
         for name, value in tiny.bits(1).items()}
for step in (1, 2):
    for name, value in tiny.bits(step).items():
        whole = torch.from_numpy(value).view(torch.bfloat16)
        model[name].to_local().copy_(distribute_tensor(whole, mesh, [Shard(0)]).to_local())
    sender.broadcast_weights(model, step)
    dist.barrier()
print(sender.broadcaster.n_ranks, flush=True)
sys.stdin.readline()
sender.shutdown()
"""


def test_prime_rl_every_rank_sends_its_shards(tmp_path):
    port = free_port()
    with contextlib.ExitStack() as stack:
        ranks = [stack.enter_context(tiny.start_python(
            SHARDED_RANK, rank, tmp_path / "store", port, tmp_path)) for rank in range(2)]
        prime_rl._await_listener("127.0.0.1", port, 60.0)
        with weir.Replica("policy", directory=f"127.0.0.1:{port}", config=tiny.CONFIG, timeout=60.0,
                          wire="checkpoint", n_threads=1) as replica:
            replica.allocate()
            for step in (1, 2):
                assert replica.install(step).version == step
                tiny.expect_holds(replica, step)
            assert [rank.stdout.readline() for rank in ranks] == ["2\n", "2\n"]
        for rank in ranks:
            _, error = rank.communicate("done\n", timeout=30)
            assert rank.returncode == 0, error


def test_prime_rl_fp8_is_what_the_flag_means_where_no_engine_says_otherwise(broadcast):
    config = config_of(quantize=True)
    sender = broadcast(config, markers=False)
    engine = {**tiny.CONFIG, "quantization_config": {"quant_method": "fp8",
                                                     "weight_block_size": [128, 128]}}
    with weir.Replica("policy", directory=f"127.0.0.1:{config.port}", config=engine,
                      timeout=TIMEOUT_S) as replica:
        replica.allocate()
        sending = threading.Thread(target=sender.broadcast_weights, args=(PrimeModel(), 1))
        sending.start()
        assert replica.install(1).version == 1
        sending.join(timeout=20)
        assert replica.parameters["model.layers.0.mlp.down_proj.weight"].dtype == weir.DType.F8_E4M3


def test_prime_rl_steps_that_do_not_grow_are_refused(broadcast):
    sender = broadcast(config_of(n_workers=0), markers=False)
    model = PrimeModel()
    sender.broadcaster.publish(model, 3)
    for step in (3, 2):
        with pytest.raises(weir.CallError, match=f"step {step} does not grow: step 3"):
            sender.broadcast_weights(model, step)
    for step in (0, -1, True, None):
        with pytest.raises(weir.CallError, match="count from 1"):
            sender.broadcast_weights(model, step)


def test_prime_rl_an_orchestrator_that_never_comes_ends_the_wait(tmp_path, broadcast):
    sender = broadcast(types.SimpleNamespace(host="localhost", port=free_port(), timeout=0.5))
    with pytest.raises(weir.TimedOut, match="step_1/NCCL_READY"):
        sender.broadcast_weights(PrimeModel(), 1)
    assert (markers.step_directory(tmp_path, 1) / "STABLE").exists()


def test_prime_rl_a_run_that_is_deleted_is_skipped(tmp_path, broadcast):
    gone, there = tmp_path / "gone", tmp_path / "there"
    there.mkdir()
    runs = types.SimpleNamespace(
        used_idxs=[0, 1, 2], ready_to_update={0: True, 1: True, 2: False},
        progress={i: types.SimpleNamespace(step=5) for i in range(3)},
        get_run_dir=lambda index: (gone, there, tmp_path / "idle")[index])
    sender = broadcast(config_of(n_workers=0), runs=runs)
    orchestrator = PrimeOrchestrator(there, 5, lambda _: None)
    with contextlib.suppress(weir.TimedOut):
        sender.broadcast_weights(PrimeModel(), 1)
    orchestrator.end()
    assert not gone.exists() and (there / "broadcasts/step_5/STABLE").exists()
    assert not any(runs.ready_to_update.values()) and not (tmp_path / "idle").exists()


def test_prime_rl_refuses_lora_and_a_port_that_is_taken(tmp_path, broadcast):
    with pytest.raises(weir.CallError, match="LoRA"):
        prime_rl.WeirWeightBroadcast(tmp_path, config_of(), lora_config=object())
    config = config_of()
    broadcast(config)
    with pytest.raises(weir.WeirError, match=str(config.port)):
        prime_rl.WeirWeightBroadcast(tmp_path, config)


def test_prime_rl_workers_take_older_and_newer_fields(told):
    port = free_port()
    with weir.Directory(f"127.0.0.1:{port}"):
        for positional, named in (
            (("127.0.0.1", port, 0, 2, 5, True), {}),
            ((), {"host": "127.0.0.1", "port": port, "server_rank": 1, "num_inference_server": 2,
                  "timeout": 5, "quantize_in_weight_transfer": True}),
            ((), {"host": "127.0.0.1", "port": port, "rank_offset": 4, "inference_world_size": 8,
                  "timeout": 5, "session_id": "s", "engine_world_size": 4}),
        ):
            worker = StandInWorker()
            worker.init_broadcaster(*positional, **named)
            first = worker.weir_receiver
            worker.init_broadcaster(*positional, **named)
            assert worker.weir_receiver is not first
            assert told[-1].run == named.get("session_id")
            worker.weir_close()


class TheirSender:
    """prime-rl's WeightSender: the handshake is its own, moving weights the transport's."""

    def __init__(self, output_dir, timeout):
        self.output_dir, self.timeout, self.seen = output_dir, timeout, []

    def broadcast(self, model, step):
        self.seen.append("ready")
        self._broadcast(model, step, self.output_dir / f"step_{step}")
        self.seen.append("finished")


def test_prime_rl_newer_versions_ask_for_the_transport_alone(tmp_path, monkeypatch):
    modules = ("prime_rl", "prime_rl.transports", "prime_rl.transports.weights",
               "prime_rl.transports.weights.base")
    for name in modules:
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    sys.modules[modules[-1]].WeightSender = TheirSender
    again = importlib.util.spec_from_file_location("prime_rl_again", prime_rl.__file__)
    newer = importlib.util.module_from_spec(again)
    again.loader.exec_module(newer)
    config, model = config_of(), PrimeModel()
    sender = newer.WeirWeightSender(tmp_path, config, engine_config=tiny.CONFIG)
    assert isinstance(sender, TheirSender) and sender.timeout == TIMEOUT_S
    with weir.Replica("policy", directory=f"127.0.0.1:{config.port}", config=tiny.CONFIG,
                      wire="checkpoint", timeout=TIMEOUT_S, n_threads=1) as replica:
        replica.allocate()
        sending = threading.Thread(target=sender.broadcast, args=(model, 1))
        sending.start()
        assert replica.install(1).version == 1
        sending.join(timeout=20)
        tiny.expect_holds(replica, 1)
    assert sender.seen == ["ready", "finished"]
    sender.broadcaster.close()


@pytest.mark.parametrize("named, message", [
    ({"rank_offset": 2, "inference_world_size": 2}, "rank 2 is beyond the group of 2"),
    ({"server_rank": -1}, "rank -1"),
    ({"port": 0}, "port"),
    ({"timeout": 0}, "timeout"),
    ({"host": ""}, "host"),
])
def test_prime_rl_workers_refuse_what_is_no_group(named, message):
    told = {"host": "127.0.0.1", "port": 1, "timeout": 1, **named}
    with pytest.raises(ValueError, match=message):
        StandInWorker().init_broadcaster(**told)


def test_prime_rl_workers_say_that_no_trainer_is_there():
    worker, port = StandInWorker(), free_port()
    with pytest.raises(weir.TimedOut, match=f"127.0.0.1:{port}"):
        worker.init_broadcaster("127.0.0.1", port, timeout=0.3)
    with pytest.raises(ValueError, match="weir_init"):
        worker.update_weights_from_path("broadcasts/step_1")
    with pytest.raises(ValueError, match="step_N"):
        worker.update_weights_from_path("broadcasts/1")


@pytest.mark.parametrize("path", ["", "step_", "step_x", "step_-1", "a/step_1/b", "step_٣"])
def test_a_path_that_names_no_step_is_refused(path):
    with pytest.raises(ValueError, match="step_N"):
        markers.step_of(path)


# ---- what is imported
# ------------------------------------------------------------------------------


def test_no_framework_and_no_torch_is_imported_by_the_modules():
    code = """
import sys
import weir.frameworks.nemo_rl, weir.frameworks.prime_rl, weir.frameworks.verl
import weir.sglang.client, weir.sglang.loader
names = ("torch", "numpy", "verl", "nemo_rl", "prime_rl", "sglang", "vllm")
found = [name for name in names if sys.modules.get(name) is not None]
assert not found, found
"""
    blocked = "import sys\nfor name in ('verl', 'nemo_rl', 'prime_rl'): sys.modules[name] = None\n"
    tiny.run_python(blocked + code)
