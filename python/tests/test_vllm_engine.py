# SPDX-License-Identifier: Apache-2.0
"""What the adapters of vLLM's interfaces share, against a stand-in engine (standin_vllm.py): a real
trainer publishes, a real replica installs into torch parameters that are named, shaped and strided
as vLLM's. No vLLM is needed, and none imported: test_vllm_interface.py has the real one."""
from __future__ import annotations

import functools
import json
import os
import pathlib
import subprocess
import sys
import types

import numpy as np
import pytest

import weir

torch = pytest.importorskip("torch")
pytest.importorskip("ml_dtypes")

import standin_vllm as standin  # noqa: E402

from weir.engines import Refused, placement  # noqa: E402
from weir.engines.receiver import engine_config  # noqa: E402
from weir.vllm import extension, trainer_side, vllm_parameters, vllm_placement  # noqa: E402
from weir.vllm.adapter import UpdateLife  # noqa: E402
from weir.vllm.settings import Settings, Update  # noqa: E402
from weir.vllm.vllm_receiver import config_of_vllm, open_receiver  # noqa: E402

BLOCK, CHANNEL, CAST = "fp8_128x128", "cutlass_fp8_e4m3_per_channel", "bf16_cast"
TIMEOUT_S = 10.0


class Run:
    """A trainer of a model, and what it has published."""

    def __init__(self, family, conversion, **options):
        self.c = standin.config(family)
        self.shapes, self.conversion = standin.hf_shapes(self.c), conversion
        self.trainer = weir.Trainer("policy", config=self.c, conversion=conversion,
                                    timeout=TIMEOUT_S, **options)

    def weights(self, version):
        return standin.sources(self.shapes, version)

    def publish(self, version):
        self.trainer.register(self.weights(version))
        self.trainer.publish(version)

    def parts(self, version):
        return standin.fused(self.c, self.weights(version))

    def engine(self, **options):
        return standin.Engine(self.c, self.parts(1), self.conversion, **options)

    def receiver(self, engine, **settings):
        settings = Settings(self.trainer.directory, **{"timeout": TIMEOUT_S, **settings})
        return open_receiver(engine, settings, config=self.c, placement=placement.Placement(),
                             model_name="policy")


@pytest.fixture
def open_run():
    runs = []

    def start(*arguments, **options):
        runs.append(Run(*arguments, **options))
        return runs[-1]

    yield start
    for run in runs:
        run.trainer.close()


# ---- installing ----------------------------------------------------------------------------------


@pytest.mark.parametrize("family, conversion, options", [
    ("qwen3_moe", BLOCK, {}),
    ("qwen3_moe", CAST, {"experts_inside": False}),
    ("qwen3_moe", CHANNEL, {}),
    ("llama", CHANNEL, {}),
    ("llama", CAST, {}),
    ("deepseek_v3", BLOCK, {"mla": "views"}),
    ("deepseek_v3", BLOCK, {"mla": "attributes"}),
    ("deepseek_v3", CAST, {"mla": "aliases"}),
])
def test_parameters_are_what_an_independent_conversion_gives(open_run, family, conversion, options):
    run = open_run(family, conversion)
    engine = run.engine(**options)
    receiver = run.receiver(engine)
    before = {n: p.data_ptr() for n, p in engine.named_parameters()}
    for version in (1, 2):
        run.publish(version)
        assert receiver.install(version).version == version
        assert engine.differences(run.parts(version)) == []
    assert {n: p.data_ptr() for n, p in engine.named_parameters()} == before
    state = receiver.state()
    assert (state["state"], state["version"], state["conversion"]) == ("HOLDING", 2, conversion)
    receiver.close()


def test_a_direct_install_lands_in_the_parameters(open_run):
    run = open_run("deepseek_v3", BLOCK)
    engine = run.engine()
    receiver = run.receiver(engine, install="direct")
    run.publish(3)
    receiver.install("latest")
    assert engine.differences(run.parts(3)) == []
    receiver.close()


def test_a_version_that_never_comes_leaves_what_was_there(open_run):
    run = open_run("deepseek_v3", BLOCK)
    engine = run.engine()
    run.publish(1)
    receiver = run.receiver(engine, timeout=1.5)
    receiver.install(1)
    with pytest.raises(weir.TimedOut, match="9"):
        receiver.install(9)
    assert engine.differences(run.parts(1)) == []
    receiver.close()


def test_derived_weights_go_back_with_the_version_before(open_run, monkeypatch):
    """The last of all checks fails: parameters, and what lies beside them with strides, are those
    that the engine came with."""
    run = open_run("deepseek_v3", BLOCK)
    engine = run.engine()
    original = engine.contents()

    def refuse(version):
        raise ValueError("not this one")

    monkeypatch.setattr("weir.engines.receiver.Replica", functools.partial(
        weir.Replica, postprocess=refuse))
    receiver = run.receiver(engine)
    run.publish(1)
    with pytest.raises(weir.WeirError, match="not this one"):
        receiver.install(1)
    assert engine.contents() == original
    receiver.close()


def test_an_engine_that_moved_a_parameter_is_refused_by_its_name(open_run):
    run = open_run("llama", CAST)
    engine = run.engine()
    receiver = run.receiver(engine)
    run.publish(1)
    norm = engine.at("model.norm").weight
    norm.data = norm.data.clone()
    original = engine.contents()
    with pytest.raises(ValueError, match="parameter model.norm.weight was bound at 0x"):
        receiver.install(1)
    assert engine.contents() == original
    receiver.close()


# ---- what is refused, and why --------------------------------------------------------------------


def _linear(engine, name="model.layers.0.self_attn.o_proj"):
    return engine.at(name)


def _experts(engine):
    return engine.at("model.layers.1.mlp.experts.routed_experts")


def _flashinfer(engine):
    _experts(engine).quant_method.fp8_backend = standin.Backend.FLASHINFER_CUTLASS


def _marlin(engine):
    _linear(engine).quant_method.fp8_linear = standin.named("MarlinFP8ScaledMMLinearKernel")


def _packed_scales(engine):
    scales = _linear(engine).weight_scale_inv
    _linear(engine).weight_scale_inv = torch.nn.Parameter(scales.data.view(torch.int32),
                                                         requires_grad=False)


def _per_tensor(engine):
    _linear(engine).quant_method.block_quant = False


def _other_blocks(engine):
    _linear(engine).weight_block_size = [1, 128]


def _unknown_method(engine):
    _linear(engine).quant_method = standin.named("AutoGPTQLinearMethod")


def _unknown_backend(engine):
    _experts(engine).quant_method = standin.named("Fp8MoEMethod", block_quant=True)


def _shuffled(engine):
    _experts(engine).w13_weight.is_shuffled = True


def _columns_first(engine):
    weight = _linear(engine).weight
    weight.data = weight.data.view(torch.uint8).t().contiguous().t().view(torch.float8_e4m3fn)


def _taken_away(engine):
    engine.at("model.norm").weight = torch.nn.Parameter(torch.empty(192, device="meta"))


def _retied(engine):
    engine.at("lm_head").weight = torch.nn.Parameter(
        engine.at("model.embed_tokens").weight.data, requires_grad=False)


def _mixed(engine):
    standin._channel_linear(_linear(engine))
    weight = _linear(engine).weight
    weight.data = weight.data.view(torch.uint8).t().contiguous().t().view(torch.float8_e4m3fn)


@pytest.mark.parametrize("change, name, reason", [
    (_flashinfer, "experts.w13_weight", "FLASHINFER_CUTLASS: it keeps w3 before w1"),
    (_marlin, "o_proj.weight", "MarlinFP8ScaledMMLinearKernel: known are"),
    (_packed_scales, "o_proj.weight_scale_inv", "int32 .*DeepGEMM packs powers of two"),
    (_per_tensor, "o_proj.weight", "one scale per tensor"),
    (_other_blocks, "o_proj.weight", r"blocks of \(1, 128\)"),
    (_unknown_method, "o_proj.weight", "method AutoGPTQLinearMethod is not known"),
    (_unknown_backend, "experts.w13_weight", "does not say which backend"),
    (_shuffled, "experts.w13_weight", "shuffled"),
    (_columns_first, "o_proj.weight", r"strides \[1, 192\].*without gaps"),
    (_taken_away, "model.norm.weight", "given its memory back"),
    (_retied, "lm_head.weight", "share memory"),
    (_mixed, "o_proj", "a scale per block, .*one per row"),
])
def test_a_layout_that_is_not_known_is_refused_with_what_was_seen(change, name, reason):
    c = standin.config("qwen3_moe")
    parts = standin.fused(c, standin.sources(standin.hf_shapes(c), 1))
    engine = standin.Engine(c, parts, BLOCK)
    change(engine)
    with pytest.raises(Refused, match=reason) as refused:
        vllm_parameters.find_parameters(engine)
    assert name in str(refused.value)


def test_deep_gemm_is_taken_as_long_as_its_scales_are_fp32():
    c = standin.config("qwen3_moe")
    engine = standin.Engine(c, standin.fused(c, standin.sources(standin.hf_shapes(c), 1)), BLOCK)
    _linear(engine).quant_method.fp8_linear = standin.named("DeepGemmFp8BlockScaledMMKernel")
    assert vllm_parameters.find_parameters(engine).conversion == BLOCK


def test_derived_weights_in_another_layout_are_refused(open_run):
    run = open_run("deepseek_v3", BLOCK)
    engine = run.engine()
    engine.at("model.layers.0.self_attn.mla_attn").W_K = torch.zeros(1)
    with pytest.raises(ValueError, match=r"mla_attn.W_K is computed from kv_b_proj.weight"):
        run.receiver(engine)


def test_parameters_without_a_row_in_the_family_are_refused_unless_ignored(open_run):
    run = open_run("llama", CAST)
    engine = run.engine()
    engine.at("visual.merger").weight = torch.nn.Parameter(torch.zeros(8, 8), requires_grad=False)
    engine.at("model.layers.0.self_attn.attn").k_scale = torch.nn.Parameter(
        torch.ones(1), requires_grad=False)  # the engine's own
    with pytest.raises(ValueError, match=r"no parameter for visual.merger.weight: "):
        run.receiver(engine)
    receiver = run.receiver(engine, ignore=["visual.*"])
    assert sorted(receiver.state()["ignored"]) == ["model.layers.0.self_attn.attn.k_scale",
                                                   "visual.merger.weight"]
    run.publish(1)
    receiver.install(1)
    receiver.close()


def test_a_conversion_that_the_layers_do_not_hold_is_refused(open_run):
    run = open_run("llama", CAST)
    with pytest.raises(ValueError, match="fp8_128x128 was asked for.*hold bf16_cast"):
        run.receiver(run.engine(), conversion=BLOCK)


@pytest.mark.parametrize("given, reason", [
    ({"directory": "nowhere"}, "directory: expected"),
    ({"directory": "h:1", "install": "sideways"}, "install: expected"),
    ({"directory": "h:1", "timeout": 0}, "timeout: expected seconds above 0, got 0"),
    ({"directory": "h:1", "ignore": "visual.*"}, "ignore: expected a list"),
    ({"directory": "h:1", "security": {"cert": "x"}}, "security: expected some of .* got .'cert'"),
])
def test_settings_that_make_no_sense_are_refused(given, reason):
    with pytest.raises(ValueError, match=reason):
        Settings(**given)


def test_a_token_is_not_in_what_settings_print():
    assert "secret" not in repr(Settings("h:1", security={"token": "secret"}))


@pytest.mark.parametrize("version", [0, -1, True, "newest", 1.5, None])
def test_versions_that_are_none_are_refused(version):
    with pytest.raises(ValueError, match="version: expected a number above 0"):
        Update(version)


# ---- where a worker stands -----------------------------------------------------------------------


def test_workers_are_numbered_as_vllm_numbers_them():
    ranks = [placement.Placement(t, 2, p, 3, d, 2, True).worker
             for d in range(2) for p in range(3) for t in range(2)]
    assert ranks == list(range(12))
    assert placement.Placement(1, 2, 0, 3, 1, 2, True).ep_rank == 3
    assert placement.Placement(1, 2, 0, 3, 1, 2, True).mesh == "tp=2,ep=4,dp=2,pp=3"
    assert placement.Placement().mesh is None


def test_expert_maps_become_lists_by_rank():
    assert placement.experts_json([[0, 1, 2], [3, 4]]) is None  # as it is without a map
    assert placement.experts_json([[3, 1], [0, 2]]) == "[[3, 1], [0, 2]]"
    with pytest.raises(ValueError, match=r"no rank of the engine has the experts \[1\]"):
        placement.experts_json([[0], [2]])


def _moe(*maps):
    model = torch.nn.Module()
    for i, expert_map in enumerate(maps):
        layer = standin.Layer()
        layer.register_buffer("_expert_map", torch.tensor(expert_map))
        layer.w13_weight = torch.nn.Parameter(torch.zeros(3, 2, 2))
        model.add_module("layer%d" % i, layer)
    return model


def test_experts_are_taken_by_their_slots():
    assert vllm_parameters.local_experts(_moe([-1, 1, 0, -1, 2])) == [2, 1, 4]
    assert vllm_parameters.local_experts(_moe([2, 0, 1])) == [1, 2, 0]  # all here, in another order
    with pytest.raises(ValueError, match="layer1 others"):
        vllm_parameters.local_experts(_moe([0, 1, 2, -1], [0, 1, -1, 2]))
    with pytest.raises(ValueError, match="its weights 3"):
        vllm_parameters.local_experts(_moe([0, 1, -1, -1]))


def test_what_no_mesh_can_say_is_refused_by_name():
    for name in ("enable_eplb", "enable_elastic_ep"):
        with pytest.raises(ValueError, match=name):
            vllm_placement._refuse_what_no_mesh_says(types.SimpleNamespace(**{name: True}))
    with pytest.raises(ValueError, match="prefill_context_parallel_size=2"):
        vllm_placement._refuse_what_no_mesh_says(
            types.SimpleNamespace(prefill_context_parallel_size=2))


def test_config_is_that_of_the_engine():
    given = {"model_type": "llama", "dtype": "float32"}
    assert engine_config(given)["torch_dtype"] == "float32"
    assert engine_config(given, torch.bfloat16)["torch_dtype"] == "bfloat16"
    assert given == {"model_type": "llama", "dtype": "float32"}
    assert engine_config({"limits": (0.0, float("inf")), "kind": torch.bfloat16}) == {
        "limits": [0.0, None], "kind": "torch.bfloat16", "torch_dtype": "bfloat16"}


def test_config_json_is_read_where_the_model_is_a_folder(tmp_path):
    served = types.SimpleNamespace(model=str(tmp_path), hf_config={"model_type": "transformed"})
    assert config_of_vllm(served) == {"model_type": "transformed"}
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    assert config_of_vllm(served) == {"model_type": "llama"}


def test_keys_that_transformers_keeps_under_other_names_have_both():
    class Config:
        attribute_map = {"num_experts": "num_local_experts"}

        def to_dict(self):
            return {"num_local_experts": 8}

    inside = types.SimpleNamespace(to_dict=lambda: {"text_config": {}}, text_config=Config())
    assert engine_config(Config())["num_experts"] == 8
    assert engine_config(inside)["text_config"]["num_experts"] == 8


# ---- two workers ---------------------------------------------------------------------------------


class Workers:
    """Two processes of one engine, tensor parallel, with experts in an order of their own."""

    def __init__(self, directory, store):
        here = pathlib.Path(__file__).parent
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(
            [str(here), str(pathlib.Path(weir.__file__).parents[1])])}
        self.processes = [subprocess.Popen(
            [sys.executable, str(here / "standin_vllm.py"), directory, str(rank), str(store)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
            for rank in range(2)]

    def lines(self):
        return [json.loads(p.stdout.readline() or '"ended"') for p in self.processes]

    def install(self, version, sabotaged=-1):
        for process in self.processes:
            process.stdin.write("%d %d\n" % (version, sabotaged))
            process.stdin.flush()
        return self.lines()

    def lose(self, rank):
        with self.processes.pop(rank) as process:
            process.kill()

    def end(self):
        for process in self.processes:
            process.stdin.close()
        for process in self.processes:
            try:
                process.wait(10)
            finally:
                process.kill()
                process.stdout.close()


@pytest.fixture
def open_workers(open_run, tmp_path):
    opened = []

    def start():
        run = open_run("qwen3_moe", BLOCK, replica_mesh="tp=2,ep=2",
                       replica_experts=json.dumps(standin.EXPERTS))
        opened.append(Workers(run.trainer.directory, tmp_path / "store"))
        assert opened[-1].lines() == [{"ready": 0}, {"ready": 1}]
        return run, opened[-1]

    yield start
    for workers in opened:
        workers.end()


def test_two_workers_install_their_parts_with_experts_by_id_all_or_none(open_workers):
    run, workers = open_workers()
    for version in (1, 2):
        run.publish(version)
        assert workers.install(version) == 2 * [{"held": version, "wrong": [], "error": ""}]
    run.publish(3)
    first, second = workers.install(3, sabotaged=1)
    assert (first["held"], first["wrong"]) == (second["held"], second["wrong"]) == (2, [])
    assert "a fault of worker 1" in second["error"]
    assert "another worker of it did not take version 3" in first["error"]
    assert workers.install(3) == 2 * [{"held": 3, "wrong": [], "error": ""}]
    workers.lose(1)
    run.publish(4)
    alone, = workers.install(4)
    assert (alone["held"], alone["wrong"]) == (3, [])
    assert "did not meet within 10 s" in alone["error"]


# ---- adapters ------------------------------------------------------------------------------------


def test_an_update_has_an_order(open_run):
    run = open_run("llama", CAST)
    engine = run.engine()
    life = UpdateLife()
    life.make_receiver = lambda model, config, settings: run.receiver(model)
    with pytest.raises(ValueError, match="init_weight_transfer_engine comes first"):
        life._start()
    life._init(engine, None, Settings(run.trainer.directory))
    life._start()
    with pytest.raises(ValueError, match="no version was installed"):
        life._finish()
    run.publish(1)
    life._receive(Update(1))
    life._finish()
    assert engine.differences(run.parts(1)) == []
    life._shut_down()
    life._shut_down()


def test_the_worker_extension_does_the_same_without_an_interface(open_run, monkeypatch):
    run = open_run("llama", CHANNEL)
    engine = run.engine()
    monkeypatch.setattr(extension, "receiver_for_vllm",
                        lambda model, config, settings: run.receiver(model))

    class Worker(extension.WeirWorkerExtension):
        model_runner = types.SimpleNamespace(model=types.SimpleNamespace(runnable=engine))
        vllm_config = None

    worker = Worker()
    assert all(name.startswith(("weir_", "__")) for name in dir(extension.WeirWorkerExtension))
    with pytest.raises(ValueError, match="weir_init comes first"):
        worker.weir_update(1)
    with pytest.raises(ValueError, match="unexpected keyword argument 'server'"):
        worker.weir_init(server="h:1")
    json.dumps(worker.weir_init(directory=run.trainer.directory))
    run.publish(1)
    assert worker.weir_update()["version"] == 1
    assert engine.differences(run.parts(1)) == []
    worker.weir_close()
    assert worker.weir_state() == {"state": "closed"}


# ---- the trainer's side --------------------------------------------------------------------------


class Source:
    """Whole weights of a version, as sources give them."""

    def __init__(self, run):
        self.run, self.version = run, 0

    def iter_full(self):
        self.version += 1
        return iter(self.run.weights(self.version).items())


class Client:
    """An engine of one worker behind the calls of a client."""

    def __init__(self, run, engine):
        self.run, self.engine, self.calls = run, engine, []
        self.fails = False

    def init_weight_transfer_engine(self, init_info):
        info = json.loads(json.dumps(init_info))
        self.receiver = open_receiver(self.engine, Settings(**info), config=self.run.c,
                                      placement=placement.Placement(), model_name="other")

    def start_weight_update(self):
        self.calls.append("start")

    def update_weights(self, update_info):
        if self.fails:
            raise RuntimeError("HTTP 500")
        self.calls.append(self.receiver.install(Update(**update_info).version).version)

    def finish_weight_update(self, weight_version=None):
        self.calls.append(weight_version)


def test_a_source_is_sent_version_by_version(open_run):
    run = open_run("llama", BLOCK)
    engine = run.engine()
    client = Client(run, engine)
    settings = trainer_side.TrainerSettings("policy", config=run.c, conversion=BLOCK,
                                            timeout=TIMEOUT_S, worker={"n_threads": 1})
    sender = trainer_side.Sender(settings, 0, client, Source(run))
    sender.connect()
    for version in (1, 2):
        assert sender.send().version == version
        assert engine.differences(run.parts(version)) == []
    assert client.calls == ["start", 1, "1", "start", 2, "2"]
    client.fails = True
    with pytest.raises(RuntimeError, match="HTTP 500"):
        sender.send()
    client.receiver.close()
    sender.close()


def test_boxes_are_cut_as_torch_cuts():
    shard = types.SimpleNamespace
    meta = shard(shape=(10, 6), owners=(4, 5, 6, 7), mesh_shape=(2, 2),
                 placements=(shard(dim=0), shard(dim=1)))
    whole = torch.arange(60).view(10, 6)
    for index, rank in enumerate(meta.owners):
        lo, hi = trainer_side.box_of(meta, rank)
        expected = whole.chunk(2, 0)[index // 2].chunk(2, 1)[index % 2]
        assert torch.equal(whole[lo[0]:hi[0], lo[1]:hi[1]], expected)
    meta.placements = (shard(dim=0), shard(dim=0))
    lo, hi = trainer_side.box_of(meta, 7)
    assert torch.equal(whole[lo[0]:hi[0]], whole.chunk(2, 0)[1].chunk(2, 0)[1])
    assert np.all(np.asarray(hi) >= np.asarray(lo))
