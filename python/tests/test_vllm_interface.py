# SPDX-License-Identifier: Apache-2.0
"""Weir's adapters against the installed vLLM: its own base classes, factories, plug-in loader,
worker base and kernel classes. No GPU and no model: what installs is in test_vllm_engine.py.
Interfaces that this vLLM does not have are told apart by records of them."""
from __future__ import annotations

import ast
import dataclasses
import functools
import importlib
import inspect
import logging
import pathlib
import re
import sys
import types

import pytest
import tiny_model

import weir

pytest.importorskip(
    "vllm", reason="vLLM is not installed: its interfaces are NOT compared with Weir's adapters "
    "(pip install --no-deps -r python/tests/requirements-vllm.txt)")

import torch  # noqa: E402
from vllm.config.weight_transfer import WeightTransferConfig  # noqa: E402
from vllm.distributed.weight_transfer import base, factory  # noqa: E402

import weir.vllm as plugin  # noqa: E402
from weir.engines.receiver import engine_config  # noqa: E402
from weir.vllm import interface, kernel_classes  # noqa: E402
from weir.vllm.extension import WeirWorkerExtension  # noqa: E402

SOURCES = pathlib.Path(inspect.getfile(base)).parents[2]
WORKER = ast.parse((SOURCES / "v1/worker/gpu_worker.py").read_text())
GOOD = {"directory": "10.0.0.1:8500", "model": "policy", "timeout": 5.0}
NUMBER, REASON = interface.interface_version()
assert NUMBER, REASON
engine = importlib.import_module("weir.vllm.engine_v%d" % NUMBER)
needs_trainer_side = pytest.mark.skipif(
    NUMBER != 4, reason="interface %d has another trainer side than 4" % NUMBER)


@pytest.fixture
def forgotten(monkeypatch):
    """Factories without Weir, and with what they had once the test is over."""
    for name in ("WeightTransferEngineFactory", "WeightTransferTrainerFactory"):
        found = getattr(factory, name, None)
        if found is not None:
            without = {k: v for k, v in found._registry.items() if k != "weir"}
            monkeypatch.setattr(found, "_registry", without)


def vllm_config():
    return types.SimpleNamespace(parallel_config=types.SimpleNamespace(rank=0),
                                 model_config=types.SimpleNamespace(model="m"))


def created():
    """An engine as vLLM's worker makes one."""
    return factory.WeightTransferEngineFactory.create_engine(
        WeightTransferConfig(backend="weir"), vllm_config(), torch.device("cpu"),
        torch.nn.Linear(2, 2))


# ---- registration --------------------------------------------------------------------------------


def test_register_makes_the_backend_known_once(forgotten, caplog):
    assert [plugin.register(), plugin.register()] == [NUMBER, NUMBER]
    assert isinstance(created(), base.WeightTransferEngine)
    assert not [r for r in caplog.records if r.levelno >= logging.ERROR]
    with pytest.raises(ValueError, match="already registered"):  # a factory itself refuses it
        factory.WeightTransferEngineFactory.register_engine("weir", "weir.vllm.engine_v4", "X")


def test_the_entry_point_is_found_by_vllms_own_loader(forgotten, monkeypatch, checkout):
    """As the package's metadata say it, whether the package is installed or not."""
    import importlib.metadata

    from vllm import plugins

    text = (checkout / "python" / "pyproject.toml").read_text()
    section = text.split('[project.entry-points."%s"]' % plugins.DEFAULT_PLUGINS_GROUP)[1]
    name, value = section.strip().splitlines()[0].replace('"', "").split(" = ")
    point = importlib.metadata.EntryPoint(name, value, plugins.DEFAULT_PLUGINS_GROUP)
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: [point])
    monkeypatch.setattr(plugins, "plugins_loaded", False)
    plugins.load_general_plugins()
    assert type(created()).__name__ == "WeirWeightTransferEngine"


def test_a_vllm_without_the_interface_starts_all_the_same(forgotten, monkeypatch, caplog):
    caplog.set_level(logging.INFO, "weir.vllm")
    monkeypatch.setitem(sys.modules, "vllm.distributed.weight_transfer.base", None)
    assert plugin.register() == 0
    assert "worker_extension_cls" in caplog.text


def test_a_vllm_whose_factory_fails_starts_all_the_same(forgotten, monkeypatch, caplog):
    def refuse(*arguments):
        raise RuntimeError("no more engines")

    monkeypatch.setattr(factory.WeightTransferEngineFactory, "register_engine", refuse)
    assert plugin.register() == 0
    assert "no more engines" in caplog.text


# ---- the worker's side ---------------------------------------------------------------------------


def test_the_engine_has_every_method_with_the_arguments_of_its_base(forgotten):
    plugin.register()
    ours = type(created())
    for name, theirs in inspect.getmembers(base.WeightTransferEngine, inspect.isfunction):
        if name.startswith("_") and name != "__init__":
            continue
        expected = list(inspect.signature(theirs).parameters)
        assert list(inspect.signature(getattr(ours, name)).parameters) == expected, name
    assert not ours.__abstractmethods__
    assert not ours.supports_draft_weight_update


def test_infos_are_dataclasses_of_vllms_kind():
    assert issubclass(engine.WeirInitInfo, base.WeightTransferInitInfo)
    assert issubclass(engine.WeirUpdateInfo, base.WeightTransferUpdateInfo)
    fields = {f.name: f for f in dataclasses.fields(engine.WeirInitInfo)}
    required = [n for n, f in fields.items() if f.default is dataclasses.MISSING
                and f.default_factory is dataclasses.MISSING]
    assert required == ["directory"]
    assert [f.name for f in dataclasses.fields(engine.WeirUpdateInfo)] == ["version"]


def test_infos_are_parsed_from_dictionaries(forgotten):
    plugin.register()
    made = created()
    info = made.parse_init_info(GOOD)
    assert (type(info), info.directory, info.install) == (engine.WeirInitInfo, "10.0.0.1:8500",
                                                          "staged")
    assert made.parse_update_info({}).version == "latest"
    assert made.parse_update_info({"version": "7"}).version == 7


@pytest.mark.parametrize("given, reason", [
    ({}, "directory"),
    ({**GOOD, "master_port": 1}, "master_port"),
    ({**GOOD, "install": "now"}, "install: expected"),
    ({**GOOD, "timeout": "soon"}, "timeout: expected seconds"),
])
def test_an_init_info_that_makes_no_sense_is_refused(forgotten, given, reason):
    plugin.register()
    with pytest.raises(ValueError, match=reason):
        created().parse_init_info(given)


@pytest.mark.parametrize("given, reason", [
    ({"version": 0}, "version: expected"),
    ({"names": ["x"]}, "names"),
])
def test_an_update_info_that_makes_no_sense_is_refused(forgotten, given, reason):
    plugin.register()
    with pytest.raises(ValueError, match=reason):
        created().parse_update_info(given)


def test_an_update_before_init_is_refused_and_shutdown_is_not(forgotten):
    plugin.register()
    made = created()
    with pytest.raises(ValueError, match="init_weight_transfer_engine comes first"):
        made.update_weights({"version": 1})
    made.shutdown()


def test_the_worker_calls_no_method_that_the_engine_lacks():
    """What vLLM's worker says to its engine, read off its source."""
    called = {node.attr for node in ast.walk(WORKER)
              if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Attribute)
              and node.value.attr == "weight_transfer_engine"}
    assert {"init_transfer_engine", "parse_init_info", "update_weights"} <= called
    assert not [n for n in called if not hasattr(engine.WeirWeightTransferEngine, n)]


# ---- the trainer's side --------------------------------------------------------------------------


@needs_trainer_side
def test_the_trainer_engine_is_dispatched_by_its_init_info(forgotten, monkeypatch):
    plugin.register()
    calls = []

    class Sender:
        def __init__(self, settings, rank, client, source):
            calls.append((settings.model, rank, source))

        connect = send = close = lambda self: calls.append("called")

    monkeypatch.setattr(engine, "Sender", Sender)
    info = engine.WeirTrainerInitInfo("policy", config={"model_type": "llama"}, rank=1, n_ranks=2,
                                      directory="h:1")
    client = types.SimpleNamespace(**{name: calls.append for name in (
        "init_weight_transfer_engine", "start_weight_update", "update_weights",
        "finish_weight_update")})
    assert isinstance(client, base.VLLMWeightSyncClient)
    source = base.ModuleSource(torch.nn.Linear(2, 2))
    made = factory.WeightTransferTrainerFactory.trainer_init(init_info=info, client=client,
                                                             source=source)
    assert isinstance(made, base.TrainerWeightTransferEngine) and not made.is_sender
    made.send_weights()
    made.shutdown()
    assert calls == [("policy", 1, source), "called", "called", "called"]


@needs_trainer_side
def test_a_source_over_a_module_gives_the_module_and_others_their_pieces():
    from weir.vllm.trainer_side import weights_of

    module = torch.nn.Linear(4, 2)
    assert weights_of(base.ModuleSource(module), 0) is module

    class Pieces(base.WeightSource):
        """Rows of a matrix on ranks 0 and 1."""

        metadata = functools.cached_property(lambda self: [
            base.ParamMeta("w", torch.float32, (3, 4), owners=(0, 1), placements=(base.Shard(0),)),
            base.ParamMeta("b", torch.float32, (2,))])

        def iter_local(self):
            yield "w", module.weight[:1]
            yield "b", module.bias

    pieces = dict(weights_of(Pieces(), 1))
    assert (pieces["w"].lo, pieces["w"].hi, pieces["w"].global_shape) == ((2, 0), (3, 4), (3, 4))
    assert pieces["b"] is module.bias


# ---- the worker extension ------------------------------------------------------------------------


def test_the_extension_has_no_name_that_a_worker_has():
    """vLLM asserts that; its GPU worker cannot be imported without a GPU's libraries, so its names
    are read off its source."""
    from vllm.v1.worker.worker_base import WorkerBase

    names = {n.name for n in ast.walk(WORKER) if isinstance(n, ast.FunctionDef)}
    names |= {n.attr for n in ast.walk(WORKER) if isinstance(n, ast.Attribute)}
    ours = [n for n in dir(WeirWorkerExtension) if not n.startswith("__")]
    assert ours and not [n for n in ours if hasattr(WorkerBase, n) or n in names]


def test_the_extension_is_found_by_its_name_and_mixes_into_a_worker():
    from vllm.utils.import_utils import resolve_obj_by_qualname
    from vllm.v1.worker.worker_base import WorkerBase

    found = resolve_obj_by_qualname("weir.vllm.extension.WeirWorkerExtension")
    worker_class = type("Worker", (WorkerBase,), {})
    worker_class.__bases__ = worker_class.__bases__ + (found,)
    assert worker_class.__new__(worker_class).weir_state() == {"state": "closed"}


# ---- what layouts are told by --------------------------------------------------------------------


def names_of(package):
    """Names of all classes, and of members of enumerations, in the sources of a package."""
    return {name for path in (SOURCES / package).rglob("*.py")
            for pair in re.findall(r"^class (\w+)|^    ([A-Z0-9_]+) = ", path.read_text(), re.M)
            for name in pair}


def test_every_kernel_and_method_that_layouts_know_is_one_of_vllms():
    known = names_of("model_executor/kernels/linear") | names_of("model_executor/layers")
    asked = {*kernel_classes.PLAIN_METHODS, *kernel_classes.BLOCK_KERNELS,
             *kernel_classes.DEEP_GEMM_KERNELS, *kernel_classes.CHANNEL_KERNELS,
             *kernel_classes.EXPERT_BACKENDS, *kernel_classes.DEEP_GEMM_BACKENDS,
             *kernel_classes.REASONS, "Fp8LinearMethod", "Fp8MoEMethod",
             "CompressedTensorsLinearMethod", "CompressedTensorsW8A8Fp8",
             "CompressedTensorsW8A8Fp8MoEMethod", "UnquantizedFusedMoEMethod", "RoutedExperts"}
    assert asked <= known, asked - known


@pytest.mark.parametrize("kernel", sorted(kernel_classes.BLOCK_KERNELS))
def test_a_kernel_of_blocks_rearranges_nothing_when_weights_are_loaded(kernel):
    """Should a version of vLLM give one of them a step of its own, it is to be looked at again."""
    for path in (SOURCES / "model_executor/kernels/linear/scaled_mm").glob("*.py"):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef) and node.name == kernel:
                steps = [f.name for f in node.body if isinstance(f, ast.FunctionDef)]
                assert "process_weights_after_loading" not in steps
                return
    pytest.fail("this vLLM has no %s" % kernel)


def test_experts_that_are_taken_are_those_that_vllm_leaves_as_loaded():
    """Of FP8 experts the function that rearranges has a branch per backend, and a last one that
    names those it leaves alone."""
    source = SOURCES / "model_executor/layers/fused_moe/oracle/fp8.py"
    function = next(n for n in ast.parse(source.read_text()).body
                    if getattr(n, "name", "") == "convert_to_fp8_moe_kernel_format")
    lists = [n for n in ast.walk(function) if isinstance(n, ast.Compare)
             and isinstance(n.ops[0], ast.NotIn)]
    left_alone = {a.attr for a in ast.walk(lists[-1]) if isinstance(a, ast.Attribute)}
    assert kernel_classes.EXPERT_BACKENDS <= left_alone
    assert not {"FLASHINFER_CUTLASS", "MARLIN", "AITER"} & left_alone


def test_real_methods_without_quantisation_are_taken():
    from vllm.model_executor.layers.linear import UnquantizedLinearMethod

    layer = torch.nn.Module()
    layer.quant_method = UnquantizedLinearMethod.__new__(UnquantizedLinearMethod)
    assert kernel_classes.layout_of(layer).kind == "plain"


# ---- configs -------------------------------------------------------------------------------------


# Of nemotron_h transformers names the kinds of layers anew: only config.json says what Weir knows.
@pytest.mark.parametrize("family", [f.name for f in weir.families() if f.name != "nemotron_h"])
def test_a_config_that_went_through_transformers_describes_the_same_parameters(family):
    """vLLM hands over objects of transformers, which rename keys and add their own."""
    from transformers import AutoConfig

    given = tiny_model.config(family)
    arguments = {k: v for k, v in given.items() if k != "model_type"}
    theirs = AutoConfig.for_model(given["model_type"], **arguments)
    described = []
    with weir.Directory() as directory:
        for config in (given, engine_config(theirs, torch.bfloat16)):
            with weir.Replica("m", directory=directory.address, config=config) as replica:
                replica.allocate()
                described.append({n: (t.dtype, t.shape) for n, t in replica.parameters.items()})
    assert described[0] == described[1]


# ---- interfaces that other versions have ---------------------------------------------------------


def record(**attributes):
    """A module as vllm.distributed.weight_transfer.base of another version."""
    return types.SimpleNamespace(**attributes)


class _OfParallelConfig:
    def __init__(self, config, parallel_config):
        pass


class _OfModel:
    def __init__(self, config, parallel_config, model):
        pass


class _OfVllmConfig:
    def __init__(self, config, vllm_config, device, model):
        pass


class _OfNobody:
    def __init__(self, channel):
        pass


class _TrainerOfConfig:
    @classmethod
    def trainer_init(cls, config, init_info, *, client, source):
        pass


class _TrainerOfInfo:
    @classmethod
    def trainer_init(cls, init_info, *, client, source):
        pass


@pytest.mark.parametrize("module, number", [
    (record(), 0),
    (record(WeightTransferEngine=_OfNobody), 0),
    (record(WeightTransferEngine=_OfParallelConfig), 0),
    (record(WeightTransferEngine=_OfModel), 1),
    (record(WeightTransferEngine=_OfVllmConfig), 2),
    (record(WeightTransferEngine=_OfVllmConfig, TrainerWeightTransferEngine=_TrainerOfConfig), 3),
    (record(WeightTransferEngine=_OfVllmConfig, TrainerWeightTransferEngine=_TrainerOfInfo), 4),
])
def test_interfaces_are_told_apart(module, number):
    found, reason = interface._version_of(module)
    assert found == number
    assert bool(reason) == (number == 0)
