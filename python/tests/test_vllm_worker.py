# SPDX-License-Identifier: Apache-2.0
"""vLLM's own GPU worker drives updates: its class, its config and its parallel state are the real
ones, on a CPU; the model is a stand-in (standin_vllm.py), and nothing is computed with it."""
from __future__ import annotations

import types

import pytest

import weir

pytest.importorskip(
    "vllm", reason="vLLM is not installed: its worker does NOT drive Weir's adapter here "
    "(pip install --no-deps -r python/tests/requirements-vllm.txt)")
pytest.importorskip("ml_dtypes")

import standin_vllm as standin  # noqa: E402
import torch  # noqa: E402
from vllm.config import DeviceConfig, VllmConfig, set_current_vllm_config  # noqa: E402
from vllm.config.weight_transfer import WeightTransferConfig  # noqa: E402
from vllm.distributed import parallel_state  # noqa: E402
from vllm.distributed.weight_transfer import factory  # noqa: E402
from vllm.v1.worker.gpu_worker import Worker  # noqa: E402

import weir.vllm as plugin  # noqa: E402
from weir.vllm.extension import WeirWorkerExtension  # noqa: E402

CONVERSION = "fp8_128x128"
CONFIG = standin.config("deepseek_v3")
SHAPES = standin.hf_shapes(CONFIG)


def parts(version):
    return standin.fused(CONFIG, standin.sources(SHAPES, version))


@pytest.fixture(scope="module")
def vllm_config(tmp_path_factory):
    """Of one worker, whose parallel groups are there."""
    config = VllmConfig(device_config=DeviceConfig(device="cpu"))
    config.weight_transfer_config = WeightTransferConfig(backend="weir")
    store = tmp_path_factory.mktemp("vllm") / "store"
    with set_current_vllm_config(config):
        parallel_state.init_distributed_environment(1, 0, "file://%s" % store, 0, "gloo")
        parallel_state.initialize_model_parallel(1, 1, backend="gloo")
    config.model_config = types.SimpleNamespace(model="policy", served_model_name=["policy"],
                                                hf_config=CONFIG, dtype=torch.bfloat16)
    yield config
    parallel_state.destroy_model_parallel()
    parallel_state.destroy_distributed_environment()


@pytest.fixture
def trainer():
    with weir.Trainer("policy", config=CONFIG, conversion=CONVERSION, timeout=10) as opened:
        yield opened


@pytest.fixture
def worker(vllm_config, monkeypatch):
    """As its constructor and load_model() leave it, as far as updates look."""
    if not torch.accelerator.is_available():
        monkeypatch.setattr(torch.accelerator, "synchronize", lambda *device: None)
    plugin.register()
    extended = type("ExtendedWorker", (Worker, WeirWorkerExtension), {})
    made = extended.__new__(extended)
    model = standin.Engine(CONFIG, parts(1), CONVERSION)
    made.vllm_config, made.rank, made.speculative_config = vllm_config, 0, None
    made.model_runner = types.SimpleNamespace(
        get_model=lambda: model, get_draft_model=lambda: None, reset_lora_state=lambda: None)
    made._weight_update_active = made._weight_update_is_draft = False
    made.weight_transfer_engine = factory.WeightTransferEngineFactory.create_engine(
        vllm_config.weight_transfer_config, vllm_config, torch.device("cpu"), model)
    yield made
    made.weight_transfer_engine.shutdown()
    made.weir_close()


def publish(trainer, version):
    trainer.register(standin.sources(SHAPES, version))
    trainer.publish(version)


def test_the_worker_takes_one_version_after_the_other(worker, trainer):
    model = worker.get_model()
    addresses = {n: p.data_ptr() for n, p in model.named_parameters()}
    worker.init_weight_transfer_engine({"directory": trainer.directory, "timeout": 10})
    for version, update in ((1, {"version": 1}), (2, [{"version": "latest"}])):  # [] goes by rank
        publish(trainer, version)
        worker.start_weight_update()
        worker.update_weights(update)
        worker.finish_weight_update()
        assert model.differences(parts(version)) == []
    assert {n: p.data_ptr() for n, p in model.named_parameters()} == addresses
    worker.shutdown_weight_transfer_engine()


def test_an_update_that_fails_leaves_the_version_before_and_the_worker_ready(worker, trainer):
    worker.init_weight_transfer_engine({"directory": trainer.directory, "timeout": 1.5})
    publish(trainer, 1)
    with pytest.raises(RuntimeError, match="start_weight_update must be called"):
        worker.update_weights({"version": 1})
    worker.start_weight_update()
    worker.update_weights({"version": 1})
    worker.finish_weight_update()
    worker.start_weight_update()
    with pytest.raises(weir.TimedOut, match="7"):
        worker.update_weights({"version": 7})
    assert worker.get_model().differences(parts(1)) == []
    publish(trainer, 2)
    worker.start_weight_update()
    worker.update_weights({"version": 2})
    worker.finish_weight_update()
    assert worker.get_model().differences(parts(2)) == []


def test_the_extension_installs_through_the_same_worker(worker, trainer):
    state = worker.weir_init(directory=trainer.directory, timeout=10)
    assert (state["state"], state["conversion"]) == ("EMPTY", CONVERSION)
    publish(trainer, 1)
    assert worker.weir_update(1)["state"] == "HOLDING"
    assert worker.get_model().differences(parts(1)) == []


# ---- vLLM's own layers ---------------------------------------------------------------------------


def tree(modules):
    """A module that has others under dotted names."""
    root = torch.nn.Module()
    for path, module in modules.items():
        *parents, name = path.split(".")
        at = root
        for part in parents:
            if part not in at._modules:
                at.add_module(part, torch.nn.Module())
            at = at._modules[part]
        at.add_module(name, module)
    return root


def llama_of_vllm(c):
    """The layers that vLLM makes a llama of, without its attention, which has no parameter."""
    from vllm.model_executor.layers.layernorm import RMSNorm
    from vllm.model_executor.layers.linear import (MergedColumnParallelLinear, QKVParallelLinear,
                                                   RowParallelLinear)
    from vllm.model_executor.layers.vocab_parallel_embedding import (ParallelLMHead,
                                                                     VocabParallelEmbedding)

    d, m, heads = c["hidden_size"], c["intermediate_size"], c["num_attention_heads"]
    modules = {"model.embed_tokens": VocabParallelEmbedding(c["vocab_size"], d)}
    for layer in range(c["num_hidden_layers"]):
        p = "model.layers.%d." % layer
        modules.update({
            p + "input_layernorm": RMSNorm(d),
            p + "self_attn.qkv_proj": QKVParallelLinear(
                d, c["head_dim"], heads, c["num_key_value_heads"], bias=True),
            p + "self_attn.o_proj": RowParallelLinear(heads * c["head_dim"], d, bias=True),
            p + "post_attention_layernorm": RMSNorm(d),
            p + "mlp.gate_up_proj": MergedColumnParallelLinear(d, [m, m], bias=True),
            p + "mlp.down_proj": RowParallelLinear(m, d, bias=True)})
    return tree({**modules, "model.norm": RMSNorm(d),
                 "lm_head": ParallelLMHead(c["vocab_size"], d)})


def test_vllms_own_layers_take_a_version(vllm_config, monkeypatch):
    from weir.vllm.settings import Settings
    from weir.vllm.vllm_receiver import receiver_for_vllm

    config = standin.config("llama")
    monkeypatch.setattr(vllm_config.model_config, "hf_config", config)
    weights = standin.sources(standin.hf_shapes(config), 1)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with set_current_vllm_config(vllm_config):
            model = llama_of_vllm(config)
    finally:
        torch.set_default_dtype(before)
    with weir.Trainer("policy", config=config, timeout=10) as opened:
        opened.register(weights)
        opened.publish(1)
        receiver = receiver_for_vllm(model, vllm_config, Settings(opened.directory, timeout=10))
        receiver.install(1)
        receiver.close()
    live = dict(model.named_parameters())
    expected = standin.converted(standin.fused(config, weights), "bf16_cast")
    assert live.keys() == expected.keys()
    for name, value in expected.items():
        n_rows = config["vocab_size"] if "embed" in name or "head" in name else len(value)
        assert standin.bytes_of(live[name][:n_rows]) == value[:n_rows].tobytes(), name
