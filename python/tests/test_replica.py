# SPDX-License-Identifier: Apache-2.0
"""A replica in Python: whose memory it writes, what its hooks may do, how it follows a trainer."""
from __future__ import annotations

import threading

import numpy as np
import pytest
import tiny_model as tiny

import weir
from weir import ReplicaState, Status

pytestmark = tiny.NO_WARNINGS

QKV = "model.layers.1.self_attn.qkv_proj.weight"
NORM = "model.norm.weight"


@pytest.fixture
def trained():
    trainer, weights = tiny.open_trainer()
    with trainer:
        yield trainer, weights


def engine_memory():
    """What the engine has, as uint16."""
    return {name: np.zeros_like(value) for name, value in tiny.fused(tiny.bits(1)).items()}


def open_replica(trainer, **options):
    options = {"timeout": tiny.TIMEOUT_S, **options}
    return weir.Replica("policy", directory=trainer.directory, config=tiny.CONFIG, **options)


# ---- live parameters -----------------------------------------------------------------------------


@pytest.mark.parametrize("install", ["staged", "direct"])
def test_an_engines_own_memory_is_followed_at_its_addresses(trained, install):
    trainer, weights = trained
    memory = engine_memory()
    with open_replica(trainer, install=install) as replica:
        assert replica.register(tiny.tensors(memory)) == []
        assert (replica.state, replica.version) == (ReplicaState.EMPTY, 0)
        before = {name: live.address for name, live in replica.parameters.items()}
        for version in (1, 2):
            tiny.fill(weights, version)
            trainer.publish(version)
            report = replica.install()
            assert (report.version, report.n_tensors) == (version, len(memory))
            assert (replica.state, replica.version) == (ReplicaState.HOLDING, version)
            tiny.expect_holds(replica, version)
        assert {name: live.address for name, live in replica.parameters.items()} == before
        assert before == {name: value.ctypes.data for name, value in memory.items()}


def test_what_the_model_has_no_parameter_of_is_left_alone_or_refused(trained):
    trainer, _ = trained
    memory = engine_memory()
    cache = np.ones((4, 4), dtype=np.float32)
    given = [("rotary.cache", cache), *reversed(list(tiny.tensors(memory).items()))]
    with open_replica(trainer) as replica:
        with pytest.raises(weir.VersionError, match="rotary.cache is no parameter of the model, 1 in"):
            replica.register(given)
        with pytest.raises(weir.CallError, match="extras: 'keep' is none of 'refuse', 'ignore'"):
            replica.register(given, extras="keep")
        assert replica.parameters == {}
        assert replica.register(given, extras="ignore") == ["rotary.cache"]
        assert replica.parameters.keys() == memory.keys()
        with pytest.raises(weir.CallError, match="already"):
            replica.register(given, extras="ignore")
        trainer.publish(1)
        replica.install()
        tiny.expect_holds(replica, 1)
        assert (cache == 1).all()


@pytest.mark.parametrize(
    "change, status, words",
    [
        (lambda m: m.pop(QKV), Status.ERR_LAYOUT, [QKV, "is missing, 1 of "]),
        (lambda m: m.update({QKV: m[QKV].view(np.float16)}), Status.ERR_LAYOUT,
         [QKV, "F16", "BF16"]),
        (lambda m: m.update({NORM: m[NORM][:-1]}), Status.ERR_LAYOUT, [NORM, "[191]", "[192]"]),
        (lambda m: m.update({QKV: m[QKV][:, ::2]}), Status.ERR_INVALID, [QKV, "strides"]),
        (lambda m: m[QKV].setflags(write=False), Status.ERR_INVALID, [QKV, "read-only"]),
        (lambda m: m.update({3: m[NORM]}), Status.ERR_INVALID, ["a name is 3"]),
    ],
    ids=["missing", "dtype", "shape", "not contiguous", "read-only", "name"],
)
def test_memory_that_does_not_fit_is_named_with_both_sides(trained, change, status, words):
    trainer, _ = trained
    memory = engine_memory()
    change(memory)
    given = {name: weir.tensor(value, dtype="BF16")
             if value.dtype == np.uint16 and value.flags.c_contiguous else value
             for name, value in memory.items()}
    with open_replica(trainer) as replica:
        with pytest.raises(weir.WeirError) as caught:
            replica.register(given)
        assert caught.value.status is status
        for word in words:
            assert word in str(caught.value)
        replica.register(tiny.tensors(engine_memory()))  # nothing was registered


def test_an_engine_s_torch_parameters_are_written_in_place(trained):
    torch = pytest.importorskip("torch")
    trainer, _ = trained
    engine = {name: torch.nn.Parameter(torch.zeros(value.shape, dtype=torch.bfloat16))
              for name, value in engine_memory().items()}
    trainer.publish(1)
    with open_replica(trainer) as replica:
        replica.register(engine)
        replica.install()
        tiny.expect_holds(replica, 1)
    expected = tiny.fused(tiny.bits(1))[QKV]
    assert engine[QKV].detach().view(torch.int16).numpy().tobytes() == expected.tobytes()


def test_parameters_that_the_engine_has_replaced_are_not_written_where_they_were(trained):
    torch = pytest.importorskip("torch")
    trainer, _ = trained
    engine = {name: torch.zeros(value.shape, dtype=torch.bfloat16)
              for name, value in engine_memory().items()}
    kept = engine[QKV].data
    trainer.publish(1)
    with open_replica(trainer) as replica:
        replica.register(engine)
        engine[QKV].data = kept.clone()
        with pytest.raises(weir.CallError, match=f"{QKV}: lies at 0x.*, was registered at 0x"):
            replica.install()
        engine[QKV].data = kept.float()
        with pytest.raises(weir.WeirError, match=QKV):
            replica.install()
        engine[QKV].data = kept
        replica.install()
        tiny.expect_holds(replica, 1)


def test_each_worker_of_a_parallel_engine_has_its_part():
    trainer, _ = tiny.open_trainer(replica_mesh="tp=2")
    with trainer:
        trainer.publish(1)
        for worker in (0, 1):
            with open_replica(trainer, mesh="tp=2", worker=worker) as replica:
                replica.allocate()
                replica.install()
                rows = replica.parameters["model.layers.0.mlp.down_proj.weight"].numpy()
                whole = tiny.bits(1)["model.layers.0.mlp.down_proj.weight"]
                assert rows.tobytes() == np.ascontiguousarray(
                    np.split(whole, 2, axis=1)[worker]).tobytes()
        with pytest.raises(weir.CallError, match="worker 2"):
            open_replica(trainer, mesh="tp=2", worker=2)


def test_a_checkpoint_on_the_wire_is_converted_by_the_replica():
    trainer, _ = tiny.open_trainer(wire="checkpoint")
    with trainer, open_replica(trainer, wire="checkpoint") as replica:
        replica.register(tiny.tensors(engine_memory()))
        trainer.publish(1)
        replica.install()
        tiny.expect_holds(replica, 1)


def test_memory_of_weirs_is_no_memory_after_closing(trained):
    trainer, _ = trained
    replica = tiny.open_replica(trainer.directory)
    parameters = replica.parameters
    assert parameters[NORM].n_bytes == 384
    replica.close()
    assert len(parameters[NORM].raw) == 0 and replica.parameters == {}


# ---- hooks ---------------------------------------------------------------------------------------


def test_hooks_are_called_in_order_by_the_thread_that_installs(trained):
    trainer, _ = trained
    told = []

    def note(*what):
        told.append((*what, threading.current_thread() is threading.main_thread()))
        return True

    hooks = {"pause": lambda: note("pause"), "resume": lambda: note("resume"),
             "postprocess": lambda version: note("postprocess", version),
             "agree": lambda version, error: note("agree", version, error)}
    with open_replica(trainer, **hooks) as replica:
        replica.allocate()
        trainer.publish(3)
        replica.install()
        expected = [("agree", 3, None), ("pause",), ("postprocess", 3), ("agree", 3, None),
                    ("resume",)]
        assert told == [(*step, True) for step in expected]
        del told[:]
        trainer.publish(4)
        thread = threading.Thread(target=replica.install)
        thread.start()
        thread.join()
        assert [step[0] for step in told] == [step[0] for step in expected]
        assert not any(step[-1] for step in told)


@pytest.mark.parametrize("hook", ["pause", "postprocess", "agree"])
def test_a_hook_that_raises_fails_the_install_and_the_old_version_comes_back(trained, hook):
    trainer, weights = trained
    failing, resumed = [], []

    def fail(*_):
        if failing:
            raise ValueError("no room")
        return True

    with open_replica(trainer, **{hook: fail}, resume=lambda: resumed.append(1)) as replica:
        replica.allocate()
        trainer.publish(1)
        replica.install()
        failing.append(1)
        tiny.fill(weights, 2)
        trainer.publish(2)
        said = rf"{hook}\(\) raised ValueError: no room"
        with pytest.raises(weir.CallError, match=said) as caught:
            replica.install()
        assert isinstance(caught.value.__cause__, ValueError)
        assert caught.value.status is Status.ERR_REFUSED
        assert (replica.state, replica.version) == (ReplicaState.HOLDING, 1)
        tiny.expect_holds(replica, 1)
        assert len(resumed) == (2 if hook == "postprocess" else 1)
        del failing[:]
        assert replica.install().version == 2
        tiny.expect_holds(replica, 2)


def test_workers_that_do_not_agree_keep_the_old_version(trained):
    trainer, weights = trained
    verdicts = []

    def agree(_, error):
        return error is None and verdicts.pop(0)

    with open_replica(trainer, agree=agree) as replica:
        replica.allocate()
        trainer.publish(1)
        verdicts += [True, True]
        replica.install()
        for refused in ([False], [True, False]):
            version = replica.version + 1
            tiny.fill(weights, 2)
            trainer.publish(version + len(refused))
            verdicts += refused
            with pytest.raises(weir.CallError, match="another worker of it did not take"):
                replica.install()
            assert not verdicts and replica.version == 1
            tiny.expect_holds(replica, 1)


def test_direct_workers_that_do_not_agree_say_whether_bytes_have_landed(trained):
    trainer, _ = trained
    told = []

    def agree(_, error):
        told.append(error)
        return error is None and (len(told) != 2 or replica.version == 0)

    with open_replica(trainer, agree=agree, install="direct") as replica:
        replica.allocate()
        trainer.publish(1)
        replica.install()
        assert told == [None, None]
        del told[:]
        trainer.publish(2)
        with pytest.raises(weir.CallError, match="unusable until a whole version is in"):
            replica.install()
        assert told[:2] == [None, None] and told[2].status is Status.ERR_PARTIAL
        assert len(told) == 3 and replica.state is ReplicaState.UNUSABLE


def test_agree_is_told_why_this_worker_cannot(trained):
    trainer, _ = trained
    told = []

    def agree(_, error):
        told.append(error)
        return False

    with open_replica(trainer, agree=agree, timeout=0.2) as replica:
        replica.allocate()
        with pytest.raises(weir.TimedOut):
            replica.install(1)
    assert [type(error) for error in told] == [weir.TimedOut]
    assert "version 1" in str(told[0])


def test_a_resume_that_raises_is_told_though_the_version_is_in(trained):
    trainer, _ = trained

    def resume():
        raise OSError("stuck")

    with open_replica(trainer, resume=resume) as replica:
        replica.allocate()
        trainer.publish(1)
        with pytest.raises(weir.CallError, match="version 1 is installed, but resume.* stuck"):
            replica.install()
        assert replica.version == 1


def test_the_version_before_comes_back_without_a_trainer(trained):
    trainer, weights = trained
    calls = []
    with open_replica(trainer, pause=lambda: calls.append("pause"),
                      postprocess=lambda version: calls.append(version),
                      resume=lambda: calls.append("resume")) as replica:
        memory = engine_memory()
        replica.register(tiny.tensors(memory))
        with pytest.raises(weir.CallError) as nothing:
            replica.revert()
        assert nothing.value.status == Status.ERR_NOT_FOUND
        for version in (1, 2):
            tiny.fill(weights, version)
            trainer.publish(version)
            replica.install()
        calls.clear()
        assert replica.revert().version == 1
        assert calls == ["pause", 1, "resume"]
        assert (replica.state, replica.version) == (ReplicaState.HOLDING, 1)
        tiny.expect_holds(replica, 1)
        with pytest.raises(weir.CallError):
            replica.revert()
        tiny.fill(weights, 3)
        trainer.publish(3)
        assert replica.install().version == 3
        tiny.expect_holds(replica, 3)


def test_what_the_engine_came_with_comes_back(trained):
    trainer, _ = trained
    memory = engine_memory()
    with open_replica(trainer) as replica:
        replica.register(tiny.tensors(memory))
        trainer.publish(1)
        replica.install()
        replica.revert()
        assert (replica.state, replica.version) == (ReplicaState.EMPTY, 0)
        assert all((value == 0).all() for value in memory.values())


def test_a_hook_that_refuses_leaves_what_was_held(trained):
    trainer, weights = trained
    refuses = []

    def pause():
        if refuses:
            raise RuntimeError("not now")

    with open_replica(trainer, pause=pause) as replica:
        replica.register(tiny.tensors(engine_memory()))
        for version in (1, 2):
            tiny.fill(weights, version)
            trainer.publish(version)
            replica.install()
        refuses.append(True)
        with pytest.raises(weir.WeirError, match="not now"):
            replica.revert()
        assert replica.version == 2
        tiny.expect_holds(replica, 2)


def test_a_direct_install_has_no_way_back(trained):
    trainer, _ = trained
    with open_replica(trainer, install="direct") as replica:
        replica.register(tiny.tensors(engine_memory()))
        trainer.publish(1)
        replica.install()
        with pytest.raises(weir.CallError) as refused:
            replica.revert()
        assert refused.value.status == Status.ERR_UNSUPPORTED


def test_a_hook_may_not_close_or_call_its_replica(trained):
    trainer, _ = trained
    told = []

    def pause():
        for call in (replica.install, replica.close):
            with pytest.raises(weir.CallError) as caught:
                call()
            told.append((caught.value.status, str(caught.value)))

    with open_replica(trainer, pause=pause) as replica:
        replica.allocate()
        trainer.publish(1)
        replica.install()
    assert [status for status, _ in told] == [Status.ERR_BUSY, Status.ERR_BUSY]
    assert "install() while install() runs" in told[0][1] and "close() within" in told[1][1]


def test_hooks_hold_no_replica(trained):
    import gc
    import weakref

    class Engine:
        def __init__(self):
            self.replica = open_replica(trained[0], pause=self.pause)

        def pause(self):
            pass

    replica = open_replica(trained[0], pause=lambda: None, agree=lambda version, error: True)
    gone = weakref.ref(replica)
    replica.close()
    gc.disable()  # without the collector: no cycle
    try:
        del replica
        assert gone() is None
    finally:
        gc.enable()
    engine = Engine()
    gone = weakref.ref(engine)
    engine.replica.close()
    del engine
    gc.collect()  # a cycle of the caller's own
    assert gone() is None


def test_progress_that_raises_is_shown_and_changes_nothing(trained, monkeypatch):
    trainer, _ = trained
    shown = []
    monkeypatch.setattr("sys.unraisablehook", lambda what: shown.append(str(what.exc_value)))

    def progress(stop, *_):
        raise RuntimeError(stop)

    with open_replica(trainer, progress=progress) as replica:
        replica.allocate()
        trainer.publish(1)
        assert replica.install().version == 1
    assert {"discover", "transfer", "install", "postprocess", "ack"} <= set(shown)


# ---- following -----------------------------------------------------------------------------------


def test_watching_waits_through_time_outs_until_it_is_cancelled(trained):
    trainer, weights = trained
    seen = []
    with open_replica(trainer, timeout=0.15) as replica:
        replica.allocate()

        def train():
            for version in (1, 2, 3):
                assert stop.wait(0.4) is False  # longer than the bound of a wait
                tiny.fill(weights, version)
                trainer.publish(version)
                trainer.wait(version, n_replicas=1)
            replica.cancel()

        stop = threading.Event()
        thread = threading.Thread(target=train)
        thread.start()
        for report in replica.watch():
            seen.append(report.version)
            tiny.expect_holds(replica, report.version)
        thread.join()
        assert seen == [1, 2, 3]
        trainer.publish(4)
        assert replica.install().version == 4  # the cancel was for the watch


def test_watching_begins_where_it_is_told_and_ends_by_close(trained):
    trainer, _ = trained
    trainer.publish(1)
    trainer.publish(2)
    replica = open_replica(trainer)
    replica.allocate()
    watch = replica.watch(start=1)
    assert next(watch).version == 1
    assert next(watch).version == 2
    threading.Timer(0.1, replica.close).start()
    assert list(watch) == []
    assert list(replica.watch()) == []
    with pytest.raises(weir.CallError, match="version"):
        next(replica.watch(start=-1))


def test_watching_raises_what_is_no_end_of_a_wait(trained):
    trainer, _ = trained
    trainer.publish(1)
    with open_replica(trainer, wire="checkpoint") as replica:
        replica.allocate()
        with pytest.raises(weir.VersionError, match="checkpoint"):
            next(replica.watch())


def test_an_install_that_waits_in_vain_says_for_what(trained):
    with tiny.open_replica(trained[0].directory, timeout=0.2) as replica:
        with pytest.raises(weir.TimedOut, match="policy"):
            replica.install(17)
        assert replica.state is ReplicaState.EMPTY


@pytest.mark.parametrize(
    "options, words",
    [
        ({"install": "now"}, "install: 'now' is none of 'staged', 'direct'"),
        ({"directory": None}, "directory is required"),
        ({"device": "disk"}, "disk"),
        ({"peer_wait": -1}, "peer_wait"),
        ({"mesh": "tp=0x"}, "tp=0x"),
        ({"experts": [[0, "a"]], "mesh": "dp=1"}, "expert"),
    ],
)
def test_options_are_judged_when_it_is_opened(options, words):
    options = {"directory": "127.0.0.1:1", "config": tiny.CONFIG, **options}
    with pytest.raises(weir.CallError, match=words):
        weir.Replica("policy", **options)


def test_without_parameters_nothing_is_installed(trained):
    with open_replica(trained[0]) as replica:
        with pytest.raises(weir.CallError, match="registered no parameters"):
            replica.install()


# ---- real processes ------------------------------------------------------------------------------

SERVE = """
import sys
import tiny_model as tiny
import weir

with weir.Replica("policy", directory=sys.argv[1], config=tiny.CONFIG, name=sys.argv[2],
                  timeout=20) as replica:
    replica.allocate()
    for report in replica.watch():
        tiny.expect_holds(replica, report.version)
        print(report.version, flush=True)
        if report.version == 3:
            break
"""


def test_a_replica_in_another_process_follows_and_one_that_is_killed_is_superseded(trained):
    trainer, weights = trained
    replica = tiny.start_python(SERVE, trainer.directory, "engine")
    trainer.publish(1)
    trainer.wait(1, n_replicas=1, timeout=20)
    assert replica.stdout.readline() == "1\n"
    replica.kill()
    assert replica.wait() == -9
    replica.stdin.close(), replica.stdout.close(), replica.stderr.close()
    with tiny.start_python(SERVE, trainer.directory, "engine") as replica:
        for version in (2, 3):
            tiny.fill(weights, version)
            trainer.publish(version)
            trainer.wait(version, n_replicas=1, timeout=20)
        out, error = replica.communicate(timeout=20)
    assert (replica.returncode, error) == (0, "")
    assert out.split()[-1] == "3"


TRAIN = """
import sys
import tiny_model as tiny

trainer, weights = tiny.open_trainer(directory=sys.argv[1], timeout=20)
with trainer:
    version = int(sys.argv[2])
    tiny.fill(weights, version)
    trainer.publish(version)
    trainer.wait(version, n_replicas=1)
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_trainer_that_is_started_again_goes_on():
    with weir.Directory() as directory:
        with tiny.open_replica(directory.address, timeout=20) as replica:
            for version in (1, 2):
                trainer = tiny.start_python(TRAIN, directory.address, version)
                assert replica.install().version == version
                tiny.expect_holds(replica, version)
                assert trainer.stdout.readline() == "held\n"
                trainer.kill()
                trainer.wait()
                trainer.stdin.close(), trainer.stdout.close(), trainer.stderr.close()


def test_threads_with_handles_of_their_own_refit_at_once():
    failures = []

    def refit(model):
        try:
            weights = tiny.bits(1)
            with weir.Trainer(model, config=tiny.CONFIG, timeout=tiny.TIMEOUT_S) as trainer:
                trainer.register(tiny.tensors(weights))
                with weir.Replica(model, directory=trainer.directory, config=tiny.CONFIG,
                                  timeout=tiny.TIMEOUT_S) as replica:
                    replica.allocate()
                    for version in range(1, 6):
                        tiny.fill(weights, version)
                        trainer.publish(version)
                        replica.install(version)
                        tiny.expect_holds(replica, version)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=refit, args=(f"model-{i}",)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
