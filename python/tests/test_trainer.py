# SPDX-License-Identifier: Apache-2.0
"""A trainer in Python: what it registers, what it sees of memory that moves, what it refuses."""
from __future__ import annotations

import asyncio
import gc
import json
import threading

import numpy as np
import pytest
import tiny_model as tiny

import weir
from weir import Status

pytestmark = tiny.NO_WARNINGS

UP = "model.layers.0.mlp.up_proj.weight"


@pytest.fixture
def trained():
    trainer, weights = tiny.open_trainer()
    with trainer:
        yield trainer, weights


def expect_follows(trainer, version, replica):
    trainer.publish(version)
    assert replica.install(version).version == version
    tiny.expect_holds(replica, version)


# ---- what is taken -------------------------------------------------------------------------------


def test_a_report_says_what_was_published(trained):
    trainer, _ = trained
    report = trainer.publish(7)
    held = tiny.fused(tiny.bits(1))
    assert (report.version, report.n_tensors) == (7, len(held))
    assert report.n_bytes == sum(value.nbytes for value in held.values())
    assert report.total_seconds == pytest.approx(sum(report.seconds.values()), rel=0.01)
    assert report.seconds["stage"] > 0 and report.seconds["install"] == 0
    assert report.counters.keys() == {"allocations", "registrations", "plans", "connections"}
    assert trainer.publish(8).counters["plans"] == 0


def test_weights_that_change_in_place_are_published_as_they_are(trained):
    trainer, weights = trained
    with tiny.open_replica(trainer.directory) as replica:
        for version in (1, 2, 3):
            tiny.fill(weights, version)
            expect_follows(trainer, version, replica)
        trainer.wait(3, n_replicas=1)


def test_an_iterable_of_pairs_is_a_registration_too():
    weights = tiny.tensors(tiny.bits(1))
    with weir.Trainer("policy", config=tiny.CONFIG, timeout=tiny.TIMEOUT_S) as trainer:
        trainer.register((name, value) for name, value in reversed(list(weights.items())))
        with tiny.open_replica(trainer.directory) as replica:
            expect_follows(trainer, 1, replica)


def test_a_config_is_a_path_too(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(tiny.CONFIG), encoding="utf-8")
    with weir.Trainer("policy", config=path) as trainer:
        trainer.register(tiny.tensors(tiny.bits(1)))
    with pytest.raises(weir.CallError, match="no-such.json") as caught:
        weir.Trainer("policy", config=tmp_path / "no-such.json")
    assert caught.value.status is Status.ERR_NOT_FOUND


def test_another_layout_can_be_registered_later(trained):
    trainer, _ = trained
    trainer.publish(1)
    masters = {name: (value.astype(np.uint32) << 16).view(np.float32)
               for name, value in tiny.bits(2).items()}
    trainer.register(masters)
    with tiny.open_replica(trainer.directory) as replica:
        expect_follows(trainer, 2, replica)


# ---- torch ---------------------------------------------------------------------------------------


class Torch:
    """The tiny model in torch: modules that have nothing but its names."""

    def __init__(self, torch):
        self.torch = torch
        self.module = torch.nn.Module()
        for name, value in tiny.bits(1).items():
            *parents, last = name.split(".")
            module = self.module
            for parent in parents:
                if not hasattr(module, parent):
                    module.add_module(parent, torch.nn.Module())
                module = getattr(module, parent)
            setattr(module, last, torch.nn.Parameter(self.of(value), requires_grad=False))

    def of(self, value):
        return self.torch.from_numpy(value.view(np.int16).copy()).view(self.torch.bfloat16)

    def replace(self, version):
        for name, parameter in self.module.named_parameters():
            parameter.data = self.of(tiny.bits(version)[name])


@pytest.fixture
def torch_model():
    return Torch(pytest.importorskip("torch"))


def test_a_module_is_followed_through_storage_that_is_replaced(torch_model):
    with weir.Trainer("policy", config=tiny.CONFIG, timeout=tiny.TIMEOUT_S) as trainer:
        trainer.register(torch_model.module)
        with tiny.open_replica(trainer.directory) as replica:
            expect_follows(trainer, 1, replica)
            for version in (2, 3):
                torch_model.replace(version)
                expect_follows(trainer, version, replica)


def test_a_state_dict_is_followed_too(torch_model):
    with weir.Trainer("policy", config=tiny.CONFIG, timeout=tiny.TIMEOUT_S) as trainer:
        trainer.register(torch_model.module.state_dict())
        with tiny.open_replica(trainer.directory) as replica:
            expect_follows(trainer, 1, replica)


def test_tied_weights_and_buffers_of_a_module_come_once_and_under_one_name(torch_model):
    from weir.registration import named_weights

    torch = torch_model.torch
    module = torch.nn.Module()
    module.embed = torch.nn.Embedding(4, 2)
    module.head = torch.nn.Linear(2, 4, bias=False)
    module.head.weight = module.embed.weight
    module.register_buffer("kept", torch.zeros(1))
    module.register_buffer("computed", torch.zeros(1), persistent=False)
    assert [name for name, _ in named_weights(module)] == ["kept", "embed.weight"]
    wrapped = torch.nn.Module()
    wrapped.add_module("_orig_mod", module)
    assert [name for name, _ in named_weights(wrapped)] == ["kept", "embed.weight"]


def test_a_weight_that_is_no_longer_what_it_was_is_named_and_nothing_is_published(torch_model):
    parameter = dict(torch_model.module.named_parameters())[UP]
    kept = parameter.data
    torch = torch_model.torch
    with weir.Trainer("policy", config=tiny.CONFIG, timeout=tiny.TIMEOUT_S) as trainer:
        trainer.register(torch_model.module)
        for other in (kept.float(), kept[:-1].contiguous(), torch.empty(0, dtype=kept.dtype),
                      kept.t().contiguous().t()):
            parameter.data = other
            with pytest.raises(weir.WeirError, match=UP.replace(".", r"\.")):
                trainer.publish(1)
        parameter.data = kept
        with tiny.open_replica(trainer.directory) as replica:
            expect_follows(trainer, 1, replica)


@pytest.mark.parametrize("options", [{"delivery": "push"},
                                     {"window_bytes": 4 << 20, "replica_mesh": ""}],
                         ids=["push", "window"])
def test_a_wait_that_sends_refuses_weights_that_were_replaced(torch_model, options):
    with weir.Trainer("policy", config=tiny.CONFIG, timeout=tiny.TIMEOUT_S, **options) as trainer:
        trainer.register(torch_model.module)
        with tiny.open_replica(trainer.directory) as replica:
            trainer.publish(1)
            torch_model.replace(2)
            with pytest.raises(weir.CallError, match="replaced between publish.* and wait"):
                trainer.wait(1, n_replicas=1)
            trainer.publish(2)
            installing = threading.Thread(target=replica.install, args=(2,))
            installing.start()
            trainer.wait(2, n_replicas=1)
            installing.join()
            tiny.expect_holds(replica, 2)


# ---- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change, status, words",
    [
        (lambda w: w.pop(UP), Status.ERR_LAYOUT, [UP.rsplit(".", 2)[0]]),
        (lambda w: w.update(extra=w[UP]), Status.ERR_LAYOUT, ["extra"]),
        (lambda w: w.update({UP: w[UP].T}), Status.ERR_INVALID, [UP, "strides", "contiguous"]),
        (lambda w: w.update({UP: w[UP][:-1]}), Status.ERR_LAYOUT, [UP, "511", "512"]),
        (lambda w: w.update({UP: w[UP].view(np.int16)}), Status.ERR_LAYOUT, [UP, "I16"]),
        (lambda w: w.update({UP: "no array"}), Status.ERR_INVALID, [UP, "str"]),
    ],
    ids=["missing", "extra", "not contiguous", "shape", "dtype", "no array"],
)
def test_weights_that_do_not_fit_are_named_with_both_sides(change, status, words):
    weights = tiny.bits(1)
    change(weights)
    given = {name: weir.tensor(value, dtype="BF16")
             if getattr(value, "dtype", None) == np.uint16 and value.flags.c_contiguous else value
             for name, value in weights.items()}
    with weir.Trainer("policy", config=tiny.CONFIG, timeout=1) as trainer:
        with pytest.raises(weir.WeirError) as caught:
            trainer.register(given)
        assert caught.value.status is status
        for word in words:
            assert word in str(caught.value)
        with pytest.raises(weir.CallError, match="registered no tensors"):
            trainer.publish(1)


def test_an_array_that_is_refused_leaves_the_registration_before(trained):
    trainer, weights = trained
    with pytest.raises(weir.CallError, match="strides"):
        trainer.register({**tiny.tensors(weights), UP: weights[UP].T})
    with pytest.raises(weir.CallError, match="a name is 3"):
        trainer.register([(3, weights[UP])])
    with pytest.raises(weir.CallError, match="int is no torch module, mapping or iterable"):
        trainer.register(3)
    with tiny.open_replica(trainer.directory) as replica:
        expect_follows(trainer, 1, replica)


def test_versions_must_grow_and_be_numbers(trained):
    trainer, _ = trained
    trainer.publish(5)
    for version in (5, 4, 0):
        with pytest.raises(weir.CallError, match="not after version 5"):
            trainer.publish(version)
    for version in (-1, 2**64 - 1, 1.5, "latest", None):
        with pytest.raises(weir.CallError, match="version"):
            trainer.publish(version)
    assert trainer.publish(6).version == 6


def test_a_weight_that_is_not_finite_is_named_with_its_place(trained):
    trainer, weights = trained
    weights[UP][3, 5] = 0x7fc0
    with pytest.raises(weir.CallError, match=r"up_proj.*3, 5") as caught:
        trainer.publish(1)
    assert caught.value.status is Status.ERR_NONFINITE
    tiny.fill(weights, 1)
    trainer.publish(1)


@pytest.mark.parametrize(
    "options, words",
    [
        ({"wire": "bytes"}, "wire: 'bytes' is none of 'kernel', 'checkpoint'"),
        ({"delivery": "post"}, "delivery"),
        ({"timeout": -1}, "timeout: -1 s"),
        ({"timeout": "soon"}, "timeout: 'soon' is no number of seconds"),
        ({"timeout": float("nan")}, "timeout: nan"),
        ({"n_slots": 1.5}, "n_slots: 1.5 is no whole number"),
        ({"n_threads": -1}, "n_threads: -1"),
        ({"run": "a\0b"}, "run: .*NUL"),
        ({"model": 3}, "model: 3 is no text"),
        ({"ignore": "lm_head*"}, "ignore: .*one text"),
        ({"family": "no_such"}, None),
        ({"mesh": "tp=x"}, "tp=x"),
        ({"rank": 2, "n_ranks": 2, "directory": "127.0.0.1:1"}, "of 2 ranks the last is 1"),
        ({"rank": 0, "n_ranks": 2}, "directory is required"),
        ({"config": {"a": object()}}, "config: not to be said in JSON"),
        ({"config": '{"model_type": '}, "config"),
        ({"config": "/no/such/config.json"}, "/no/such/config.json"),
        ({"directory": "nowhere"}, "nowhere"),
    ],
)
def test_options_are_judged_when_it_is_opened(options, words):
    options = {"model": "policy", "config": tiny.CONFIG, **options}
    if words is None:
        weir.Trainer(options.pop("model"), **options).close()
        return
    with pytest.raises(weir.CallError, match=words):
        weir.Trainer(options.pop("model"), **options)


def test_ranks_without_shards_each_own_a_part():
    weights = tiny.tensors(tiny.bits(1))
    with weir.Directory() as directory:
        trainers = [weir.Trainer("policy", config=tiny.CONFIG, directory=directory.address,
                                 rank=rank, n_ranks=2) for rank in range(2)]
        for trainer in trainers:
            trainer.register(weights)
            trainer.publish(1)
        with tiny.open_replica(directory.address) as replica:
            replica.install(1)
            tiny.expect_holds(replica, 1)
        for trainer in trainers:
            trainer.close()


def test_shards_make_it_a_rank_that_tells_what_it_holds():
    weights = tiny.tensors(tiny.bits(1))
    rows = weights[UP].shape[0]
    half = tiny.bits(1)[UP]
    parts = [weir.Shard(weir.tensor(half[lo:hi], dtype="BF16"), half.shape, (lo, 0), (hi, 192))
             for lo, hi in ((0, 128), (128, rows))]
    pairs = [pair for pair in weights.items() if pair[0] != UP] + [(UP, part) for part in parts]
    with weir.Trainer("policy", config=tiny.CONFIG, timeout=tiny.TIMEOUT_S) as trainer:
        trainer.register(pairs)
        with tiny.open_replica(trainer.directory) as replica:
            expect_follows(trainer, 1, replica)
        with pytest.raises(weir.CallError, match="shape .*for the box from"):
            trainer.register([(UP, weir.Shard(half[:5], half.shape, (0, 0), (6, 192)))])


def test_whole_weights_and_then_shards_need_another_trainer(trained):
    trainer, weights = trained
    shape = weights[UP].shape
    with pytest.raises(weir.CallError, match="close it and open another"):
        trainer.register({UP: weir.Shard(weights[UP], shape, (0, 0), shape)})


# ---- waiting, closing ----------------------------------------------------------------------------


def test_a_wait_that_is_over_says_who_is_missing(trained):
    trainer, _ = trained
    trainer.publish(1)
    with pytest.raises(weir.TimedOut, match="0 of 1|0 replicas|1") as caught:
        trainer.wait(1, n_replicas=1, timeout=0.05)
    assert isinstance(caught.value, TimeoutError)
    assert caught.value.status is Status.ERR_TIMED_OUT


def test_a_version_that_is_withdrawn_is_refused_at_once_and_the_next_one_is_not(trained):
    trainer, weights = trained
    trainer.publish(1)
    trainer.withdraw(1, "the loss is nan")
    trainer.withdraw(1)
    with tiny.open_replica(trainer.directory) as replica:
        with pytest.raises(weir.VersionError, match="withdrawn it: the loss is nan") as caught:
            replica.install(1)
        assert caught.value.status is Status.ERR_ABORTED
        tiny.fill(weights, 2)
        expect_follows(trainer, 2, replica)
    with pytest.raises(weir.WeirError, match="has published 2 last") as caught:
        trainer.withdraw(3)
    assert caught.value.status is Status.ERR_NOT_FOUND
    asyncio.run(trainer.withdraw_async(2, "its step is taken back"))


def test_a_closed_trainer_says_so_and_closes_again():
    trainer, _ = tiny.open_trainer()
    trainer.close()
    trainer.close()
    trainer.cancel()
    assert "(closed)" in repr(trainer)
    for call in (lambda: trainer.publish(1), lambda: trainer.register({}),
                 lambda: trainer.wait(1, 1), trainer.__enter__):
        with pytest.raises(weir.CallError, match="trainer of policy is closed"):
            call()


def test_one_that_is_forgotten_warns_and_is_closed():
    trainer, _ = tiny.open_trainer()
    address = trainer.directory
    with pytest.warns(ResourceWarning, match="unclosed <weir.Trainer trainer of policy>"):
        del trainer
        gc.collect()
    with pytest.raises(weir.PeerError):
        with weir.Replica("policy", directory=address, config=tiny.CONFIG, timeout=0.2) as replica:
            replica.allocate()
            replica.install()


def test_progress_tells_of_every_stop():
    told = []
    trainer, _ = tiny.open_trainer(progress=lambda *step: told.append(step))
    with trainer:
        trainer.publish(9)
    stops = [stop for stop, version, done, total in told if version == 9 and done == 0]
    assert stops[:4] == ["source", "stage", "slot", "publish"]
