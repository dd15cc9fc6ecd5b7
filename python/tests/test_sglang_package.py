# SPDX-License-Identifier: Apache-2.0
"""Weir against SGLang itself, on a CPU: its endpoints' structs, its reader of tensors, its own
weight updater calling Weir's loader, and the names that layouts go by. requirements-sglang.txt has
what these imports need; without SGLang they are skipped."""
from __future__ import annotations

import ast
import importlib.util
import inspect
import pathlib
import types

import pytest
import tiny_model as tiny

pytest.importorskip("torch")
pytest.importorskip("sglang", reason="SGLang is not installed (requirements-sglang.txt)")

import sglang_stand_in as stand_in  # noqa: E402
import torch  # noqa: E402

from weir.sglang import LOADER, STATUS_NAME, kernels, loader, sglang_placement, wish  # noqa: E402
from weir.sglang.client import Client  # noqa: E402
from weir.sglang.wish import Wish  # noqa: E402

SOURCES = pathlib.Path(importlib.util.find_spec("sglang").origin).parent / "srt"


def fields_of(struct):
    return set(inspect.signature(struct).parameters)


@pytest.fixture(scope="module")
def structs():
    from sglang.srt.managers import io_struct

    return io_struct


def test_the_endpoints_take_what_the_driver_sends(structs):
    assert {"serialized_named_tensors", "load_format", "selector", "flush_cache"} <= fields_of(
        structs.UpdateWeightsFromTensorReqInput)
    assert "selector" in fields_of(structs.BeginWeightUpdateReqInput)
    assert structs.EndWeightUpdateReqInput()
    assert {"new_version", "abort_all_requests"} <= fields_of(structs.UpdateWeightVersionReqInput)
    assert structs.ContinueGenerationReqInput()
    assert "name" in fields_of(structs.GetWeightsByNameReqInput)
    modes = {mode for mode in ("abort", "retract", "in_place")
             if structs.PauseGenerationReqInput(mode=mode)}
    assert modes == {"abort", "retract", "in_place"}


def paths_of_server():
    tree = ast.parse((SOURCES / "entrypoints/http_server.py").read_text(encoding="utf-8"))
    calls = (node for node in ast.walk(tree) if isinstance(node, ast.Call) and node.args)
    return {call.args[0].value for call in calls
            if getattr(getattr(call.func, "value", None), "id", None) == "app"
            and isinstance(call.args[0], ast.Constant)}


def test_the_paths_that_the_driver_calls_are_there():
    assert {"/server_info", "/pause_generation", "/begin_weight_update", "/end_weight_update",
            "/update_weights_from_tensor", "/get_weights_by_name", "/update_weight_version",
            "/continue_generation"} <= paths_of_server()


def test_sglang_reads_the_wish_with_its_own_list_of_globals():
    from sglang.srt.utils.common import MultiprocessingSerializer

    asked = Wish(3, {"directory": "10.0.0.1:8500", "model": "policy"})
    payload = wish.payload_of(asked)
    for sent in (payload, stand_in.base64.b64encode(payload).decode()):
        assert wish.wish_of(MultiprocessingSerializer.deserialize(sent)) == asked


def test_the_answer_of_a_status_fits_the_struct_of_the_endpoint(structs):
    import msgspec

    answer = structs.GetWeightsByNameReqOutput(parameter=wish.numbers_of({"state": "holding"}))
    decoded = msgspec.msgpack.decode(msgspec.msgpack.encode(answer),
                                     type=structs.GetWeightsByNameReqOutput)
    assert wish.status_of(decoded.parameter) == {"state": "holding"}


def classes_in(*paths):
    return {node.name for path in paths for node in
            ast.walk(ast.parse((SOURCES / path).read_text(encoding="utf-8")))
            if isinstance(node, (ast.ClassDef, ast.FunctionDef))}


def attributes_in(*paths):
    return {node.attr for path in paths for node in
            ast.walk(ast.parse((SOURCES / path).read_text(encoding="utf-8")))
            if isinstance(node, ast.Attribute)}


QUANTIZATION = ("layers/quantization/fp8.py", "layers/quantization/unquant.py",
                "layers/quantization/w8a8_fp8.py", "layers/quantization/fp8_utils.py")
COMPRESSED = ("layers/quantization/compressed_tensors/compressed_tensors.py",
              "layers/quantization/compressed_tensors/schemes/compressed_tensors_w8a8_fp8.py")


def test_the_names_that_layouts_go_by_are_sglangs():
    known = classes_in(*QUANTIZATION, *COMPRESSED)
    named = {kernels.PLAIN_EXPERTS, kernels.FP8_LINEAR, kernels.FP8_EXPERTS, kernels.CHANNEL_LINEAR,
             kernels.CHANNEL_EXPERTS, "CompressedTensorsLinearMethod", "CompressedTensorsW8A8Fp8"}
    missing = (named | kernels.PLAIN_METHODS | kernels.BLOCK_FUNCTIONS) - known
    assert not missing
    attributes = attributes_in(*QUANTIZATION, "layers/amx_utils.py") | known
    marks = {attribute for attribute, _ in kernels.MARKS}
    assert not marks - attributes
    assert {"block_quant", "weight_block_size", "w8a8_block_fp8_linear", "format_ue8m0",
            "is_shuffled", "use_intel_amx_backend"} <= attributes
    assert "runner_backend" in attributes_in("layers/moe/moe_runner/runner.py")
    source = (SOURCES / "layers/moe/utils.py").read_text(encoding="utf-8")
    assert all(f'"{runner}"' in source for runner in kernels.EXPERT_RUNNERS)


def test_the_weights_that_attention_computes_have_the_names_that_are_looked_for():
    found = attributes_in("models/deepseek_common/deepseek_weight_loader.py")
    assert {"w_kc", "w_vc", "use_deep_gemm_bmm", "kv_b_proj"} <= found


def test_the_groups_that_say_where_a_worker_stands_are_there():
    from sglang.srt.runtime_context import get_parallel
    from sglang.srt.server_args import ServerArgs

    with pytest.raises((AssertionError, RuntimeError)):
        sglang_placement.placement_of_sglang()  # of a process that is no worker
    groups = {"tp_group": stand_in.group(1, 2), "pp_group": stand_in.group(0, 1),
              "attn_tp_group": stand_in.group(1, 2), "moe_ep_group": stand_in.group(0, 1)}
    with get_parallel().override(**groups):
        assert sglang_placement.placement_of_sglang().mesh == "tp=2"
    settings = {"enable_eplb", "ep_num_redundant_experts", "init_expert_location",
                "custom_weight_loader"}
    assert settings <= set(getattr(ServerArgs, "__dataclass_fields__", {}) or fields_of(ServerArgs))


# ---- SGLang's own updater
# -------------------------------------------------------------------------


@pytest.fixture
def updater(monkeypatch):
    """SGLang's classes from the request down to the loader, over a stand-in model on the CPU."""
    from sglang.srt.managers.scheduler_components import weight_updater as scheduling
    from sglang.srt.model_executor.model_runner_components import weight_updater as running
    from sglang.srt.utils.common import MultiprocessingSerializer

    model = stand_in.tiny_engine()
    here = types.SimpleNamespace(tp_rank=0, tp_group=types.SimpleNamespace(cpu_group=None))
    for module in (scheduling, running):
        monkeypatch.setattr(module, "get_parallel", lambda: here)
        monkeypatch.setattr(module, "get_model",
                            lambda: types.SimpleNamespace(weight_cache_mode="off"))
    monkeypatch.setattr(running, "_unsupported_derived_weight_cache_error", lambda model: None)
    monkeypatch.setattr(torch.distributed, "barrier", lambda group=None: None)
    own = running.WeightUpdater(
        tp_rank=0, device="cpu", gpu_id=0, model_config=None, custom_weight_loaders=[LOADER],
        get_model=lambda: model, update_model_fields=None, recapture_cuda_graph=None,
        get_model_runner=None)
    runner = types.SimpleNamespace(weight_updater=own)
    worker = types.SimpleNamespace(
        weight_update_runners=lambda: [("target", runner)], model_runner=runner,
        deserialize_own_rank=lambda payloads: MultiprocessingSerializer.deserialize(payloads[0]))
    manager = scheduling.SchedulerWeightUpdaterManager(
        tp_worker=worker, draft_worker=None, memory_saver_adapter=None,
        flush_cache=lambda empty_cache: True, is_fully_idle=None,
        scheduler=types.SimpleNamespace(record_weight_version_change=lambda new_version: None))
    return manager, model


class RealEngine(stand_in.Engine):
    """A server whose begin, update and end are SGLang's own."""

    def __init__(self, manager, model, structs):
        super().__init__(model)
        self._manager, self._structs = manager, structs

    @staticmethod
    def _told(output):
        return (200 if output.success else 400), {"success": output.success,
                                                  "message": output.message}

    def do_begin_weight_update(self, body):
        request = self._structs.BeginWeightUpdateReqInput(**body)
        return self._told(self._manager.begin_weight_update(request))

    def do_end_weight_update(self, _):
        return self._told(self._manager.end_weight_update(self._structs.EndWeightUpdateReqInput()))

    def do_update_weights_from_tensor(self, body):
        payloads = [stand_in.base64.b64decode(p) for p in body.pop("serialized_named_tensors")]
        request = self._structs.UpdateWeightsFromTensorReqInput(
            serialized_named_tensors=payloads, **body)
        return self._told(self._manager.update_weights_from_tensor(request))


@pytest.mark.parametrize("wire", ["kernel", "checkpoint"])
def test_sglangs_own_updater_installs_versions_in_place(updater, structs, monkeypatch, wire):
    manager, model = updater
    monkeypatch.setattr(sglang_placement, "placement_of_sglang", sglang_placement.SGLangPlacement)
    addresses = [p.data_ptr() for p in model.parameters()]
    trainer, weights = tiny.open_trainer(n_threads=1, wire=wire)
    with trainer, stand_in.serve(RealEngine(manager, model, structs)) as address:
        client = Client(address, model="policy", directory=trainer.directory, timeout=10.0,
                        wire=wire, n_threads=1)
        for version in (1, 2):
            tiny.fill(weights, version)
            trainer.publish(version)
            assert client.update(version).version == version
            stand_in.expect_engine_holds(model, version)
        loader.worker_of(model)
        assert wish.status_of(model.get_weights_by_name(STATUS_NAME))["n_updates"] == 2
    assert addresses == [p.data_ptr() for p in model.parameters()]


def test_sglangs_own_updater_wants_a_session_and_the_loader_by_name(updater, structs):
    manager, _ = updater
    request = structs.UpdateWeightsFromTensorReqInput(
        serialized_named_tensors=[wish.payload_of(Wish(1, {}))], load_format=LOADER)
    assert not manager.update_weights_from_tensor(request).success
    assert manager.begin_weight_update(structs.BeginWeightUpdateReqInput(selector="draft")).success
    again = manager.begin_weight_update(structs.BeginWeightUpdateReqInput(selector="draft"))
    assert not again.success and "already open" in again.message
    # What a server without the loader does: it would end itself, so the driver looks before.
    other = structs.UpdateWeightsFromTensorReqInput(
        serialized_named_tensors=request.serialized_named_tensors, load_format="no.such.loader")
    with pytest.raises(NotImplementedError, match="no.such.loader"):
        manager.update_weights_from_tensor(other)


def test_the_loader_has_the_signature_that_sglang_calls():
    assert list(inspect.signature(loader.install).parameters) == ["model", "named_tensors"]
    from sglang.srt.utils import dynamic_import

    assert dynamic_import(LOADER) is loader.install
