# SPDX-License-Identifier: Apache-2.0
"""Sharded trainers in real processes: gloo groups of 2 and 4 ranks register DTensors, publish two
versions, and an engine of one or two workers holds every byte that a conversion of the full tensors
has. The full tensors are torch's own (full_tensor()), the conversion is of one process.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import socket
import sys
import time

import pytest

torch = pytest.importorskip("torch")

import dtensor_ranks as ranks  # noqa: E402

import weir  # noqa: E402

TIMEOUT_S = 30.0


class Processes:
    """Processes that begin with torch imported, and what each of them ended with."""

    def __init__(self, context):
        self.context = context
        self.running = []

    def start(self, work, *args):
        """A process that reports what work(*args) comes to."""
        return self.start_reporting(ranks.report_to, work, *args)

    def start_reporting(self, work, *args):
        """A process that runs work(pipe, *args); our end of the pipe."""
        ours, theirs = self.context.Pipe(duplex=False)
        process = self.context.Process(target=work, args=(theirs, *args))
        process.start()
        theirs.close()
        self.running.append((process, ours))
        return ours

    def start_all(self, work, n, given):
        return [self.start(work, i, n, given) for i in range(n)]

    def outcome(self, pipe):
        if not pipe.poll(2 * TIMEOUT_S):
            return "failed", "a process that reports nothing"
        return pipe.recv()

    def results(self, pipes):
        outcomes = [self.outcome(pipe) for pipe in pipes]
        for kind, value in outcomes:
            assert kind == "done", value
        return [value for _, value in outcomes]

    def close(self):
        for process, pipe in self.running:
            process.join(1)
            if process.is_alive():
                process.terminate()
                process.join(TIMEOUT_S)
            pipe.close()


@pytest.fixture(scope="module")
def context():
    """Processes are forked from one that has imported all, which finds it by PYTHONPATH."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
        forking = multiprocessing.get_context("forkserver")
        forking.set_forkserver_preload(["dtensor_ranks"])
        yield forking


@pytest.fixture
def processes(context):
    started = Processes(context)
    yield started
    started.close()


@pytest.fixture
def directory():
    with weir.Directory() as opened:
        yield opened


# ---- what must be there --------------------------------------------------------------------------


def of_worker(full, worker, n_workers):
    """The engine's unquantised parameters by name: lists of sources that are fused."""

    def rows(name):
        return full[name].chunk(n_workers, 0)[worker].contiguous()

    def columns(name):
        return full[name].chunk(n_workers, 1)[worker].contiguous()

    layer = "model.layers.0."
    out = {
        layer + "self_attn.qkv_proj": [rows(f"{layer}self_attn.{p}_proj.weight") for p in "qkv"],
        layer + "self_attn.o_proj": [columns(layer + "self_attn.o_proj.weight")],
        layer + "mlp.gate_up_proj": [rows(f"{layer}mlp.{p}_proj.weight") for p in ("gate", "up")],
        layer + "mlp.down_proj": [columns(layer + "mlp.down_proj.weight")],
    }
    plain = ("input_layernorm", "post_attention_layernorm", "self_attn.q_norm", "self_attn.k_norm")
    out.update({layer + name: [full[f"{layer}{name}.weight"]] for name in plain})
    out["model.norm"] = [full["model.norm.weight"]]
    for name in ("model.embed_tokens", "lm_head"):
        whole, padded = full[name + ".weight"], -(-ranks.VOCABULARY // 64) * 64
        part = padded // n_workers
        out[name] = [whole[worker * part : (worker + 1) * part] if n_workers > 1 else whole]
    return out


def expected_parameters(full, worker, n_workers, conversion):
    out = {}
    for name, sources in of_worker(full, worker, n_workers).items():
        quantised = sources[0].ndim == 2 and "layers" in name
        made = weir.convert(conversion if quantised else "bf16_cast", sources)
        for suffix, tensor in made.items():
            out[f"{name}.{suffix}"] = tensor.contiguous().view(torch.uint8).numpy().tobytes()
    return out


def check_worker(held, full, worker, n_workers, conversion):
    expected = expected_parameters(full, worker, n_workers, conversion)
    assert set(held) == set(expected)
    for name, (_, _, data) in held.items():
        n_bytes = len(expected[name])
        assert data[:n_bytes] == expected[name], f"{name} of worker {worker} differs"
        assert not any(data[n_bytes:]), f"{name} of worker {worker}: its padding is no padding"


def given_to(tmp_path, directory, case, conversion, n_workers):
    common = {"model": "policy", "config": ranks.CONFIG, "directory": directory.address}
    common.update(conversion=conversion, timeout=TIMEOUT_S)
    mesh = f"tp={n_workers}" if n_workers > 1 else None
    return {
        "case": case,
        "store": str(tmp_path / "store"),
        "full": str(tmp_path / "full"),
        "trainer": {**common, "replica_mesh": mesh, "n_threads": 1},
        "replica": {**common, "mesh": mesh, "n_threads": 1},
    }


# ---- bytes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "case, n_ranks, n_workers, conversion, mesh",
    [
        ("all kinds", 2, 1, "fp8_128x128", None),
        ("two cuts of one axis", 4, 1, "fp8_128x128", None),
        ("some ranks", 4, 1, "bf16_cast", None),
        ("hsdp", 4, 2, "bf16_cast", None),
        ("fsdp2", 2, 2, "bf16_cast", "fsdp=2"),
        ("fsdp2", 4, 1, "fp8_128x128", None),
        ("fsdp over tp", 4, 2, "bf16_cast", None),
        ("fsdp1", 2, 1, "bf16_cast", None),
    ],
)
def test_an_engine_holds_what_sharded_ranks_trained(
    tmp_path, directory, processes, case, n_ranks, n_workers, conversion, mesh
):
    given = given_to(tmp_path, directory, case, conversion, n_workers)
    given["trainer"]["mesh"] = mesh
    trainers = processes.start_all(ranks.run_rank, n_ranks, given)
    workers = processes.start_all(ranks.run_worker, n_workers, given)
    n_published = processes.results(trainers)
    assert sum(n_published) > 0
    before = None
    held_by_worker = processes.results(workers)
    for version in ranks.VERSIONS:
        full = torch.load(f"{given['full']}-{version}.pt")
        assert before is None or any(not torch.equal(full[name], before[name]) for name in full)
        before = full
        for worker, held in enumerate(held_by_worker):
            check_worker(held[version], full, worker, n_workers, conversion)


# ---- ranks that do not agree ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong, n_ranks, error, text",
    [
        ("shape", 2, "ERR_LAYOUT", "up_proj.weight: shape disagreement [330, 192] vs [332, 192]"),
        ("lacks", 2, "ERR_LAYOUT", "up_proj.weight: coverage gap at axis 0 [165, 330)"),
        ("lacks", 4, "ERR_LAYOUT", "up_proj.weight: coverage gap at axis 0 [83, 166)"),
        ("mesh", 2, "ERR_LAYOUT", "this rank must register rows [0, 192)"),
        ("missing", 2, "ERR_TIMED_OUT", "from rank 1"),
    ],
)
def test_ranks_that_do_not_agree_are_told_so_on_every_rank(
    tmp_path, directory, processes, wrong, n_ranks, error, text
):
    given = given_to(tmp_path, directory, "", "bf16_cast", 1)
    given["wrong"] = wrong
    given["trainer"]["timeout"] = 1.0 if wrong == "missing" else TIMEOUT_S
    begun = time.monotonic()
    started = processes.start_all(ranks.run_wrong_rank, n_ranks, given)
    outcomes = [processes.outcome(pipe) for pipe in started]
    assert time.monotonic() - begun < 15
    for rank, (kind, value) in enumerate(outcomes):
        if wrong == "missing" and rank == 1:
            assert (kind, value) == ("done", None)
            continue
        assert kind == "refused", value
        assert value[1] == error and text in value[2]


# ---- the example ---------------------------------------------------------------------------------


def free_port():
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return bound.getsockname()[1]


def lines_until(pipe, pattern):
    """The lines of an example's rank, up to one that matches."""
    lines = []
    while pipe.poll(TIMEOUT_S):
        lines.append(pipe.recv())
        if re.search(pattern, lines[-1]):
            return lines
    raise AssertionError(f"no line matches {pattern!r}: {lines}")


def test_the_fsdp_example_trains_what_its_engine_holds(checkout, processes, monkeypatch):
    folder, n_steps = checkout / "examples" / "python", 8
    monkeypatch.syspath_prepend(folder)
    from tiny_engine import engine_logits, engine_parameters
    from tiny_lm import CONFIG, batch

    given = {"folder": str(folder), "port": free_port(), "steps": n_steps}
    pipes = [processes.start_reporting(ranks.run_example, rank, 3, given) for rank in range(3)]
    address = lines_until(pipes[0], "^directory ")[-1].split()[1]
    parameters = engine_parameters("cpu")
    prompts = batch(8, 32, seed=0)
    losses = []
    with weir.Replica("counter", directory=address, config=CONFIG, timeout=TIMEOUT_S) as replica:
        replica.register(parameters)
        for report in replica.watch():
            logits = engine_logits(parameters, prompts[:, :-1]).flatten(0, 1)
            losses.append(torch.nn.functional.cross_entropy(logits, prompts[:, 1:].flatten()))
            if report.version == n_steps:
                break
    ended = [lines_until(pipe, "^(done|failed)") for pipe in pipes]
    assert [lines[-1] for lines in ended] == ["done"] * 3, ended
    held = [re.search(r"rows (\d+) to (\d+)", "\n".join(lines)).groups() for lines in ended]
    assert held == [("0", "22"), ("22", "44"), ("44", "64")]
    assert len(losses) == n_steps and losses[-1] < 0.75 * losses[0]
