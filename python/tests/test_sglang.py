# SPDX-License-Identifier: Apache-2.0
"""Weir in SGLang: the wish, the loader against a stand-in model, the driver against a stand-in
server.

What needs SGLang itself is in test_sglang_package.py.
"""
from __future__ import annotations

import contextlib
import functools
import threading
import types

import numpy as np
import pytest
import tiny_model as tiny

torch = pytest.importorskip("torch")

import sglang_stand_in as stand_in  # noqa: E402

import weir  # noqa: E402
from weir.engines import Refused  # noqa: E402
from weir.engines.layouts import Layout  # noqa: E402
from weir.sglang import (  # noqa: E402
    LOADER,
    STATUS_NAME,
    http_calls,
    kernels,
    loader,
    sglang_placement,
    wish,
)
from weir.sglang.client import Client  # noqa: E402
from weir.sglang.sglang_parameters import find_parameters  # noqa: E402
from weir.sglang.wish import Wish, WishError  # noqa: E402

TIMEOUT_S = 10.0


# ---- the wish
# --------------------------------------------------------------------------------------


def test_a_wish_comes_through_a_pickle_of_one_global():
    asked = Wish(7, {"directory": "10.0.0.1:8500", "model": "größer", "timeout": 2.5})
    named_tensors = stand_in.read_payload(wish.payload_of(asked))
    assert [name for name, _ in named_tensors] == [wish.NAME]
    assert named_tensors[0][1].dtype == torch.uint8
    assert wish.wish_of(named_tensors) == asked


@pytest.mark.parametrize("version", [0, -1, True, 1.5, "7", None])
def test_a_wish_for_no_version_is_refused(version):
    with pytest.raises(WishError, match="version"):
        wish.payload_of(Wish(version, {}))


def test_a_wish_that_is_no_json_or_too_long_is_refused():
    with pytest.raises(WishError, match="JSON"):
        wish.payload_of(Wish(1, {"directory": object()}))
    with pytest.raises(WishError, match="JSON"):
        wish.payload_of(Wish(1, {"timeout": float("nan")}))
    with pytest.raises(WishError, match="bytes"):
        wish.payload_of(Wish(1, {"model": "x" * wish.MOST_BYTES}))


def as_tensor(content):
    return torch.tensor(list(content), dtype=torch.uint8)


@pytest.mark.parametrize("named_tensors, message", [
    ([], "nothing"),
    ([("model.norm.weight", torch.ones(2))], "model.norm.weight"),
    ([(wish.NAME, torch.ones(2))], "float32"),
    ([(wish.NAME, as_tensor(b"\xff\xfe"))], "no JSON"),
    ([(wish.NAME, as_tensor(b"[1]"))], "no JSON object"),
    ([(wish.NAME, as_tensor(b'{"version": 0, "settings": {}}'))], "version 0"),
    ([(wish.NAME, as_tensor(b'{"version": 1}'))], "settings"),
])
def test_tensors_that_are_no_wish_are_refused(named_tensors, message):
    with pytest.raises(WishError, match=message):
        wish.wish_of(named_tensors)


def test_a_status_comes_back_as_numbers():
    told = {"state": "holding", "version": 2**40, "error": "größer"}
    assert wish.status_of(wish.numbers_of(told)) == told
    for wrong in (None, [], [1.5], [256], ["a"], [[91.0]], [91.0], {"a": 1}):
        with pytest.raises(WishError):
            wish.status_of(wrong)


# ---- the loader
# ------------------------------------------------------------------------------------


@pytest.fixture
def trained():
    """A trainer that publishes versions of the tiny model."""
    trainer, weights = tiny.open_trainer(n_threads=1)

    def publish(version):
        tiny.fill(weights, version)
        trainer.publish(version)

    with trainer:
        yield types.SimpleNamespace(directory=trainer.directory, publish=publish, trainer=trainer)


def ask(model, version, directory, **settings):
    """What SGLang does with a wish, in its worker; gives the status."""
    told = {"model": "policy", "directory": directory, "timeout": TIMEOUT_S, "n_threads": 1,
            **settings}
    with stand_in.parallel_state():
        loader.install(model, stand_in.read_payload(wish.payload_of(Wish(version, told))))
    return wish.status_of(model.get_weights_by_name(STATUS_NAME))


def test_versions_are_installed_in_place(trained):
    model = stand_in.tiny_engine()
    addresses = {name: p.data_ptr() for name, p in model.named_parameters()}
    for version in (1, 2):
        trained.publish(version)
        status = ask(model, version, trained.directory)
        assert (status["state"], status["version"], status["error"]) == ("holding", version, "")
        stand_in.expect_engine_holds(model, version)
    assert addresses == {name: p.data_ptr() for name, p in model.named_parameters()}
    assert status["n_updates"] == 2 and status["n_failed"] == 0


def test_the_newest_version_can_be_asked_for(trained):
    trained.publish(5)
    model = stand_in.tiny_engine()
    assert ask(model, "latest", trained.directory)["version"] == 5


def test_other_weights_by_name_are_the_models_own():
    model = stand_in.tiny_engine()
    model.get_weights_by_name = lambda name, size, tp_size: [name, size, tp_size]
    loader.worker_of(model)
    assert model.get_weights_by_name("lm_head.weight", 3, tp_size=2) == ["lm_head.weight", 3, 2]
    assert wish.status_of(model.get_weights_by_name(STATUS_NAME))["state"] == "empty"
    bare = stand_in.tiny_engine()
    loader.worker_of(bare)
    with pytest.raises(AttributeError):
        bare.get_weights_by_name("lm_head.weight")


def test_a_version_that_never_comes_is_an_error_that_does_not_raise(trained):
    trained.publish(1)
    model = stand_in.tiny_engine()
    ask(model, 1, trained.directory)
    status = ask(model, 9, trained.directory, timeout=0.5)
    assert (status["state"], status["version"]) == ("holding", 1)
    assert "TimedOut" in status["error"] and "9" in status["error"]
    stand_in.expect_engine_holds(model, 1)
    trained.publish(2)
    status = ask(model, 2, trained.directory)
    assert (status["version"], status["error"], status["n_failed"]) == (2, "", 1)
    stand_in.expect_engine_holds(model, 2)


def test_a_parameter_that_has_moved_is_bound_again_by_the_next_wish(trained):
    trained.publish(1)
    model = stand_in.tiny_engine()
    ask(model, 1, trained.directory)
    model.lm_head.weight.data = model.lm_head.weight.data.clone()
    trained.publish(2)
    status = ask(model, 2, trained.directory)
    assert "lm_head.weight was bound at" in status["error"] and status["version"] == 1
    assert ask(model, 2, trained.directory)["version"] == 2
    stand_in.expect_engine_holds(model, 2)


class BrokenReceiver:
    def __init__(self, problem, state="HOLDING"):
        self._problem, self._state = problem, state

    def install(self, version):
        raise self._problem

    def state(self):
        return {"state": self._state}

    def close(self):
        pass


@pytest.mark.parametrize("receiver, state", [
    (BrokenReceiver(weir.VersionError("half way"), "UNUSABLE"), "unusable"),
    (BrokenReceiver(RuntimeError("the copy of derived weights failed")), "unusable"),
    (BrokenReceiver(weir.TimedOut("nobody came")), "holding"),
    (BrokenReceiver(Refused("moved")), "holding"),
])
def test_a_worker_that_may_hold_a_mixture_says_that_it_is_unusable(
        trained, monkeypatch, receiver, state):
    trained.publish(1)
    model = stand_in.tiny_engine()
    ask(model, 1, trained.directory)
    monkeypatch.setattr(loader, "_open_receiver", lambda model, settings: receiver)
    status = ask(model, 2, trained.directory, timeout=1.0)
    assert status["state"] == state and (status["version"] is None) == (state == "unusable")


def test_weights_instead_of_a_wish_change_nothing(trained):
    trained.publish(1)
    model = stand_in.tiny_engine()
    ask(model, 1, trained.directory)
    loader.install(model, [("lm_head.weight", torch.ones(1))])
    status = wish.status_of(model.get_weights_by_name(STATUS_NAME))
    assert status["version"] == 1 and "lm_head.weight" in status["error"]
    stand_in.expect_engine_holds(model, 1)


@pytest.mark.parametrize("settings, message", [
    ({"directory": "nowhere"}, "directory"),
    ({"directory": "127.0.0.1:1", "timeout": 0.3}, "127.0.0.1:1"),
    ({"flavour": 1}, "flavour"),
    ({"conversion": "fp8_128x128"}, "fp8_128x128"),
])
def test_settings_that_do_not_work_are_named(trained, settings, message):
    model = stand_in.tiny_engine()
    status = ask(model, 1, **{"directory": trained.directory, **settings})
    assert status["state"] == "empty" and message in status["error"]


def test_a_model_that_lacks_a_parameter_or_has_one_more_is_refused_by_name(trained):
    trained.publish(1)
    for change, name in (
            (lambda m: m.model.layers.get_submodule("0.mlp").register_parameter(
                "gate", torch.nn.Parameter(torch.ones(2, dtype=torch.bfloat16))), "mlp.gate"),
            (lambda m: delattr(m.model.norm, "weight"), "model.norm.weight")):
        model = stand_in.tiny_engine()
        change(model)
        status = ask(model, 1, trained.directory)
        assert status["state"] == "empty" and name in status["error"]


# ---- layouts
# ---------------------------------------------------------------------------------------


def method(name, **attributes):
    return type(name, (), attributes)()


def triton_w8a8_block_fp8_linear():
    """By its name."""


def block_method(**more):
    return method("Fp8LinearMethod", block_quant=True, weight_block_size=[128, 128],
                  w8a8_block_fp8_linear=staticmethod(triton_w8a8_block_fp8_linear), **more)


def runner(name):
    return types.SimpleNamespace(runner_backend=types.SimpleNamespace(value=name))


def module(quant_method, **attributes):
    return types.SimpleNamespace(quant_method=quant_method, **attributes)


@pytest.mark.parametrize("seen, layout", [
    (module(None), Layout("plain")),
    (module(method("UnquantizedLinearMethod")), Layout("plain")),
    (module(block_method()), Layout("block")),
    (module(method("Fp8LinearMethod", block_quant=False)), Layout("channel", True)),
    (module(method("W8A8Fp8LinearMethod")), Layout("channel", True)),
    (module(method("UnquantizedFusedMoEMethod", runner=runner("triton"))), Layout("plain")),
    (module(method("W8A8FP8MoEMethod", runner=runner("triton"))), Layout("channel")),
    (module(method("Fp8MoEMethod", runner=runner("deep_gemm"), block_quant=True,
                   weight_block_size=[128, 128])), Layout("block")),
    (module(method("CompressedTensorsLinearMethod"),
            scheme=method("CompressedTensorsW8A8Fp8", strategy="channel")),
     Layout("channel", True)),
])
def test_layouts_that_weir_writes_are_recognised(seen, layout):
    assert kernels.layout_of(seen) == layout


@pytest.mark.parametrize("seen, reason", [
    (module(method("GPTQLinearMethod")), "GPTQLinearMethod is not known"),
    (module(block_method(use_marlin=True)), "Marlin"),
    (module(block_method(use_mxfp8=True)), "MXFP8"),
    (module(method("Fp8LinearMethod", block_quant=True, weight_block_size=[32, 32],
                   w8a8_block_fp8_linear=functools.partial(triton_w8a8_block_fp8_linear))),
     r"\(32, 32\)"),
    (module(method("Fp8LinearMethod", block_quant=True, w8a8_block_fp8_linear=print)),
     "kernel print"),
    (module(method("UnquantizedFusedMoEMethod", runner=runner("flashinfer_cutlass"))),
     "flashinfer_cutlass"),
    (module(method("UnquantizedFusedMoEMethod", use_flashinfer_cutlass=True)), "w3 kept before w1"),
    (module(method("UnquantizedFusedMoEMethod", load_up_proj_weight_first=True)),
     "w3 kept before w1"),
    (module(method("UnquantizedFusedMoEMethod", w13_swiglu_interleaved=True)), "interleaved"),
    (module(method("Fp8MoEMethod", runner=runner("triton"))), "one scale per expert"),
    (module(method("UnquantizedLinearMethod"), use_intel_amx_backend=True), "AMX"),
    (module(method("CompressedTensorsLinearMethod"), scheme=method("CompressedTensorsWNA16")),
     "CompressedTensorsWNA16"),
])
def test_layouts_that_are_not_known_are_refused_with_a_reason(seen, reason):
    with pytest.raises(Refused, match=reason):
        kernels.layout_of(seen)


class TensorOfItsOwn(torch.Tensor):
    """Whose memory a library arranges as it likes."""


@pytest.mark.parametrize("change, reason", [
    (lambda weight: setattr(weight, "data", torch.empty(0)), "given its memory back"),
    (lambda weight: setattr(weight, "is_shuffled", True), "shuffled for a kernel"),
])
def test_memory_that_is_not_as_it_was_loaded_is_refused(change, reason):
    model = torch.nn.Sequential(torch.nn.Linear(4, 4, bias=False))
    change(model[0].weight)
    with pytest.raises(Refused, match="parameter 0.weight: .*" + reason):
        find_parameters(model)


def test_a_tensor_of_another_class_is_refused():
    model = torch.nn.Sequential(torch.nn.Linear(4, 4, bias=False))
    weight = torch.ones(4, 4).as_subclass(TensorOfItsOwn)
    model[0].weight = torch.nn.Parameter(weight, requires_grad=False)
    with pytest.raises(Refused, match="0.weight: a TensorOfItsOwn, whose memory"):
        find_parameters(model)


FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic"}
DTYPES = {"BF16": torch.bfloat16, "F32": torch.float32, "F8_E4M3": torch.float8_e4m3fn}


@contextlib.contextmanager
def quantised(config, quant_method):
    """A model as SGLang would keep it, a replica of Weir's own memory beside it, and their
    trainer."""
    weights = tiny.bits(1)
    with weir.Trainer("policy", config=config, timeout=TIMEOUT_S, n_threads=1) as trainer:
        trainer.register(tiny.tensors(weights))
        with weir.Replica("policy", directory=trainer.directory, config=config, timeout=TIMEOUT_S,
                          n_threads=1) as reference:
            reference.allocate()
            shapes = {name: (DTYPES[tensor.dtype.name], tensor.shape)
                      for name, tensor in reference.parameters.items()}
            model = stand_in.model_of(shapes, config)
            for layer in model.modules():
                weight = getattr(layer, "weight", None)
                if weight is not None and weight.dtype == torch.float8_e4m3fn:
                    layer.quant_method = quant_method
            trainer.publish(1)
            reference.install(1)
            yield model, reference, trainer.directory


def test_block_scales_are_installed_in_place():
    config = {**tiny.CONFIG, "quantization_config": {**FP8, "weight_block_size": [128, 128]}}
    with quantised(config, block_method()) as (model, reference, directory):
        assert ask(model, 1, directory)["error"] == ""
        held = dict(model.named_parameters())
        assert any(p.dtype == torch.float8_e4m3fn for p in held.values())
        for name, expected in reference.parameters.items():
            assert stand_in.bytes_of(held[name]) == bytes(expected.raw), name


def transpose_as_kernels_want(model):
    """(K, N) with K contiguous and scales (1, N), as SGLang leaves linear layers per channel."""
    for layer in model.modules():
        if hasattr(layer, "weight_scale"):
            layer.weight = torch.nn.Parameter(layer.weight.data.t(), requires_grad=False)
            layer.weight_scale = torch.nn.Parameter(layer.weight_scale.data.view(1, -1),
                                                    requires_grad=False)


def test_scales_per_channel_are_installed_into_transposed_weights():
    config = {**tiny.CONFIG, "quantization_config": FP8}
    per_channel = method("Fp8LinearMethod", block_quant=False)
    with quantised(config, per_channel) as (model, expected, directory):
        transpose_as_kernels_want(model)
        assert ask(model, 1, directory)["error"] == ""
        for name, tensor in expected.parameters.items():
            held = model.get_parameter(name)
            held = held.t() if held.dtype == torch.float8_e4m3fn else held
            assert stand_in.bytes_of(held) == bytes(tensor.raw), name


def test_scales_that_were_made_powers_of_two_are_refused():
    config = {**tiny.CONFIG, "quantization_config": {**FP8, "weight_block_size": [128, 128]}}
    with quantised(config, block_method()) as (model, _, directory):
        scales = [p for n, p in model.named_parameters() if n.endswith("weight_scale_inv")]
        scales[0].format_ue8m0 = True
        assert "UE8M0" in ask(model, 1, directory)["error"]


def test_rows_that_pad_a_vocabulary_are_left_alone(trained):
    model = stand_in.tiny_engine()
    n_rows, n_columns = model.lm_head.weight.shape
    model.lm_head.org_vocab_size = n_rows
    padded = torch.full((n_rows + 5, n_columns), 3.0, dtype=torch.bfloat16)
    model.lm_head.weight = torch.nn.Parameter(padded, requires_grad=False)
    trained.publish(1)
    assert ask(model, 1, trained.directory)["error"] == ""
    assert bool((model.lm_head.weight[n_rows:] == 3.0).all())
    head = tiny.bits(1)["lm_head.weight"]
    assert stand_in.bytes_of(model.lm_head.weight[:n_rows]) == head.tobytes()


def mla_model(config, parameters):
    """W_UK_T and W_UV are SGLang's w_kc and w_vc, kept with the strides of their products."""
    plain = {name: shape for name, shape in parameters.items()
             if not name.endswith(("W_UK_T", "W_UV"))}
    model = stand_in.model_of(plain, config)
    for name, (dtype, shape) in parameters.items():
        path, _, attribute = name.rpartition(".")
        if attribute in ("W_UK_T", "W_UV"):
            swapped = torch.zeros(shape[0], shape[2], shape[1], dtype=dtype).transpose(1, 2)
            setattr(model.get_submodule(path), "w_kc" if attribute == "W_UK_T" else "w_vc", swapped)
    for layer in model.modules():
        if hasattr(layer, "w13_weight"):
            layer.quant_method = method("UnquantizedFusedMoEMethod", runner=runner("triton"))
    return model


def mla_weights(config):
    """Small random weights of any family, in bf16, by the names of its checkpoint."""
    random = np.random.default_rng(1)
    with contextlib.ExitStack() as stack:
        reference = stack.enter_context(weir.Directory())
        replica = stack.enter_context(weir.Replica(
            "policy", directory=reference.address, config=config, layout="checkpoint",
            conversion="bf16_cast"))
        replica.allocate()
        shapes = {name: (t.dtype.name, t.shape) for name, t in replica.parameters.items()}
    values = {}
    for name, (dtype, shape) in shapes.items():
        value = random.normal(size=shape).astype(np.float32)
        tensor = torch.from_numpy(value)
        values[name] = tensor if dtype == "F32" else tensor.to(torch.bfloat16)
    return values


def test_experts_and_weights_that_attention_computes_follow():
    config = tiny.config("deepseek_v3")
    config.pop("quantization_config", None)
    with weir.Trainer("policy", config=config, timeout=TIMEOUT_S, n_threads=1) as trainer, \
            weir.Replica("policy", directory=trainer.directory, config=config, timeout=TIMEOUT_S,
                         n_threads=1) as reference:
        weights = mla_weights(config)
        trainer.register(weights)
        reference.allocate()
        trainer.publish(1)
        reference.install(1)
        expected = reference.parameters
        model = mla_model(config, {n: (DTYPES[t.dtype.name], t.shape) for n, t in expected.items()})
        attention = model.get_submodule("model.layers.0.self_attn")
        addresses = attention.w_kc.data_ptr(), attention.w_vc.data_ptr()
        assert ask(model, 1, trainer.directory)["error"] == ""
        for ours, theirs in (("W_UK_T", "w_kc"), ("W_UV", "w_vc")):
            theirs_now = stand_in.bytes_of(getattr(attention, theirs))
            assert theirs_now == bytes(expected[f"model.layers.0.self_attn.{ours}"].raw)
        assert addresses == (attention.w_kc.data_ptr(), attention.w_vc.data_ptr())
        held = dict(model.named_parameters())
        assert any(name.endswith("experts.w13_weight") for name in held)
        for name, parameter in held.items():
            assert stand_in.bytes_of(parameter) == bytes(expected[name].raw), name
        attention.w_kc = attention.w_kc.float()
        with pytest.raises(Refused, match="w_kc: torch.float32"):
            find_parameters(model)
        attention.use_deep_gemm_bmm = True
        with pytest.raises(Refused, match="FP8"):
            find_parameters(model)


# ---- where a worker stands
# -------------------------------------------------------------------------


@pytest.mark.parametrize("older", [False, True])
def test_sglang_says_where_a_worker_stands(older):
    with stand_in.parallel_state(5, 8, experts=(1, 2), older=older):
        place = sglang_placement.placement_of_sglang()
    assert (place.worker, place.n_workers, place.mesh) == (5, 8, "tp=8,ep=2")
    with stand_in.parallel_state():
        assert sglang_placement.placement_of_sglang().mesh is None


@pytest.mark.parametrize("state, reason", [
    ({"pp": 2}, "--pp-size 2"),
    ({"size": 4, "attention": 2}, "dp-attention"),
    ({"enable_eplb": True}, "eplb"),
    ({"ep_num_redundant_experts": 2}, "redundant"),
    ({"init_expert_location": "/tmp/map.pt"}, "init-expert-location"),
    ({"rank": 3, "size": 4, "experts": (0, 2)}, "expert rank 0"),
])
def test_engines_that_no_mesh_describes_are_refused(state, reason):
    with stand_in.parallel_state(**state), pytest.raises(Refused, match=reason):
        sglang_placement.placement_of_sglang()


WORKER = """
import sys, torch
import sglang_stand_in as stand_in, tiny_model as tiny
from weir.sglang import loader, wish
rank, store = int(sys.argv[1]), sys.argv[2]
torch.distributed.init_process_group("gloo", init_method="file://" + store, rank=rank, world_size=2)
model = None
for line in sys.stdin:
    version, directory, moved = line.split()
    if model is None:
        model = stand_in.tensor_parallel_engine(rank, directory)
    if int(moved):
        head = model.lm_head.weight
        head.data = head.data.clone()
    settings = {"model": "policy", "directory": directory, "timeout": 5, "agree_timeout": 2,
                "n_threads": 1}
    with stand_in.parallel_state(rank, 2):
        loader.install(model, stand_in.read_payload(wish.payload_of(wish.Wish(int(version),
        settings))))
    status = loader.worker_of(model).status()
    print(status["state"], status["version"], status["error"].replace("\\n", " ")[:60], flush=True)
"""


def test_workers_of_one_engine_install_all_or_none(tmp_path):
    weights = tiny.bits(1)
    with weir.Trainer("policy", config=tiny.CONFIG, replica_mesh="tp=2", timeout=TIMEOUT_S,
                      n_threads=1) as trainer, contextlib.ExitStack() as stack:
        trainer.register(tiny.tensors(weights))
        workers = [stack.enter_context(tiny.start_python(WORKER, rank, tmp_path / "store"))
                   for rank in range(2)]

        def order(version, moved_on=None):
            for rank, worker in enumerate(workers):
                worker.stdin.write(f"{version} {trainer.directory} {int(rank == moved_on)}\n")
                worker.stdin.flush()
            return [worker.stdout.readline() for worker in workers]

        trainer.publish(1)
        assert order(1) == ["holding 1 \n"] * 2
        trainer.wait(1, n_replicas=2)
        trainer.publish(2)
        said = order(2, moved_on=1)
        assert all(line.startswith("holding 1 ") for line in said), said
        assert "lm_head.weight" in said[1] and len(said[0]) > len("holding 1 \n")
        assert order(2) == ["holding 2 \n"] * 2
        for worker in workers:
            worker.stdin.close()
        errors = [worker.stderr.read() for worker in workers]
        assert [worker.wait(timeout=20) for worker in workers] == [0, 0], errors


# ---- the driver
# ------------------------------------------------------------------------------------


UPDATE = ["/server_info", "/pause_generation", "/begin_weight_update",
          "/update_weights_from_tensor", "/end_weight_update", "/get_weights_by_name",
          "/update_weight_version", "/continue_generation"]


@pytest.fixture
def engines(trained):
    """Servers over stand-in engines, and clients that drive them."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(stand_in.parallel_state())

        def start(n=1, **options):
            made = [stand_in.Engine(stand_in.tiny_engine(), **options) for _ in range(n)]
            addresses = [stack.enter_context(stand_in.serve(engine)) for engine in made]
            return made, client_of(addresses, trained.directory)

        yield start


def client_of(addresses, directory, **options):
    told = {"model": "policy", "directory": directory, "timeout": TIMEOUT_S, "n_threads": 1,
            **options}
    return Client(addresses, **told)


def test_an_update_pauses_installs_asks_and_goes_on(trained, engines):
    (engine,), client = engines()
    for version in (1, 2):
        engine.calls.clear()
        trained.publish(version)
        update = client.update(version)
        assert update.version == version and 0 < update.paused_seconds <= update.seconds
        assert engine.calls == UPDATE and not engine.is_paused
        assert engine.weight_version == str(version)
        stand_in.expect_engine_holds(engine.model, version)
    assert client.status()[update.servers[0]]["n_updates"] == 2


def test_an_older_server_has_no_sessions_and_no_names_of_versions(trained, engines):
    (engine,), client = engines(has_sessions=False)
    engine.fails["/update_weight_version"] = 404, {"detail": "Not Found"}
    trained.publish(1)
    assert client.update("latest").version == 1
    assert "/end_weight_update" not in engine.calls and not engine.is_paused


def test_a_session_that_a_driver_left_open_is_closed_first(trained, engines):
    (engine,), client = engines()
    engine.in_session = True
    trained.publish(1)
    client.update(1)
    assert not engine.in_session and not engine.is_paused


def test_every_tensor_parallel_rank_gets_its_payload(trained, engines):
    (engine,), client = engines(n_ranks=4)
    trained.publish(1)
    client.update(1)
    order = engine.bodies[engine.calls.index("/update_weights_from_tensor")]
    assert len(order["serialized_named_tensors"]) == 4 and order["flush_cache"] is True
    assert "weight_version" not in order  # said only once it is known to be held


def test_a_server_that_keeps_the_old_version_goes_on_with_it(trained, engines):
    (engine,), client = engines()
    trained.publish(1)
    client.update(1)
    short = client_of(client._servers[0].url, trained.directory, timeout=1.0)
    with pytest.raises(weir.VersionError, match="TimedOut.*version 9"):
        short.update(9)
    assert not engine.is_paused and not engine.in_session and engine.weight_version == "1"
    stand_in.expect_engine_holds(engine.model, 1)


def test_servers_with_different_versions_stay_paused_until_they_agree(trained, engines):
    (good, bad), client = engines(n=2)
    trained.publish(1)
    client.update(1)
    trained.publish(2)
    bad.fails["/update_weights_from_tensor"] = 400, {"success": False, "message": "derived weights"}
    with pytest.raises(weir.WeirError, match="derived weights.*stay paused.*version 2.*version 1"):
        client.update(2)
    assert good.is_paused and bad.is_paused and not bad.in_session
    bad.fails["/pause_generation"] = 500, {"message": "busy"}
    with pytest.raises(weir.WeirError, match="busy"):
        client.update(2)
    assert good.is_paused and bad.is_paused
    bad.fails.clear()
    client.update(2)
    assert not good.is_paused and not bad.is_paused
    for engine in (good, bad):
        stand_in.expect_engine_holds(engine.model, 2)


def test_servers_are_not_paused_for_one_that_is_not_there(trained, engines):
    (engine,), client = engines()
    nowhere = client_of([client._servers[0].url, "127.0.0.1:1"], trained.directory)
    with pytest.raises(weir.PeerError, match="127.0.0.1:1"):
        nowhere.update(1)
    assert engine.calls == ["/server_info"]


def test_those_that_were_paused_go_on_when_another_cannot_be(trained, engines):
    (one, other), client = engines(n=2)
    other.fails["/pause_generation"] = 500, {"message": "busy"}
    trained.publish(1)
    with pytest.raises(weir.PeerError, match="busy"):
        client.update(1)
    assert not one.is_paused
    assert "/update_weights_from_tensor" not in one.calls


@pytest.mark.parametrize("failure", [
    lambda body: (200, [1.0, 2.0]),
    lambda body: (200, b"no json"),
    lambda body: (None, None),
    lambda body: (200, [float(b) for b in b'{"state": "unusable", "version": null, "error": "x"}']),
    lambda body: (200, [float(b) for b in b'{"state": "holding", "version": 8, "error": ""}']),
])
def test_a_server_that_does_not_say_that_it_holds_the_version_stays_paused_or_is_refused(
        trained, engines, failure):
    (engine, other), client = engines(n=2)
    trained.publish(1)
    engine.fails["/get_weights_by_name"] = failure
    with pytest.raises(weir.WeirError, match="stay paused"):
        client.update(1)
    assert engine.is_paused and other.is_paused


def test_a_server_without_the_loader_is_refused_before_it_would_end_itself(trained, engines):
    (engine,), client = engines()
    engine.loaders = []
    with pytest.raises(weir.CallError, match="--custom-weight-loader " + LOADER):
        client.update(1)
    assert engine.calls == ["/server_info"]


def test_a_version_that_cannot_be_named_is_an_error_but_no_reason_to_stay_paused(trained, engines):
    (engine,), client = engines()
    trained.publish(1)
    engine.fails["/update_weight_version"] = 500, {"message": "no"}
    with pytest.raises(weir.PeerError, match="update_weight_version: 500: no"):
        client.update(1)
    assert not engine.is_paused
    stand_in.expect_engine_holds(engine.model, 1)


def test_a_session_that_cannot_be_closed_is_an_error(trained, engines):
    (engine,), client = engines()
    trained.publish(1)
    engine.fails["/end_weight_update"] = 500, {"detail": "gone"}
    with pytest.raises(weir.WeirError, match="end_weight_update: 500: gone"):
        client.update(1)


def test_a_server_that_hangs_ends_the_wait_within_its_bound():
    engine = stand_in.Engine()
    ended = threading.Event()
    engine.fails["/server_info"] = lambda body: (ended.wait(10), (200, {}))[1]
    with stand_in.serve(engine) as address:
        client = client_of(address, "127.0.0.1:1", call_timeout=0.3)
        with pytest.raises(weir.TimedOut, match=f"{address}: GET /server_info"):
            client.update(1)
        ended.set()


def test_calls_carry_the_token_and_refusals_are_told():
    with stand_in.serve(stand_in.Engine(), token="s3cret") as address:
        server = http_calls.Server(address, token="s3cret")
        assert server.call("/server_info", None, 5.0)["tp_size"] == 1
        with pytest.raises(http_calls.CallRefused, match="401: Unauthorized") as caught:
            http_calls.Server(address).call("/server_info", None, 5.0)
        assert caught.value.code == 401
    with pytest.raises(weir.CallError, match="in the clear"):
        http_calls.Server("10.1.2.3:30000", token="s3cret")
    with pytest.raises(weir.CallError, match="https"):
        http_calls.Server("ftp://10.1.2.3")


@pytest.mark.parametrize("options, message", [
    ({"addresses": []}, "addresses"),
    ({"addresses": ["a:1", "a:1"]}, "addresses"),
    ({"mode": "now"}, "mode 'now'"),
    ({"directory": "nowhere"}, "directory"),
    ({"wire": "smoke"}, "wire"),
    ({"flavour": 1}, "flavour"),
])
def test_drivers_that_make_no_sense_are_refused(options, message):
    told = {"addresses": "127.0.0.1:1", "model": "policy", "directory": "127.0.0.1:1", **options}
    with pytest.raises(weir.CallError, match=message):
        Client(**told)
