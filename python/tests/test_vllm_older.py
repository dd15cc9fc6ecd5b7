# SPDX-License-Identifier: Apache-2.0
"""The adapters of interfaces 1 to 3 of vLLM, which the installed one does not have, over records of
their base classes: signatures alone, written down from vLLM 0.22.1, 0.25.0 and 0.26.0. They install
into the model of standin_vllm.py."""
from __future__ import annotations

import dataclasses
import importlib
import sys
import types
from abc import ABC, abstractmethod
from typing import Generic, TypeVar

import pytest

import weir

torch = pytest.importorskip("torch")
pytest.importorskip("ml_dtypes")

import standin_vllm as standin  # noqa: E402

from weir.engines.placement import Placement  # noqa: E402
from weir.vllm import adapter  # noqa: E402
from weir.vllm.vllm_receiver import open_receiver  # noqa: E402

First, Second = TypeVar("First"), TypeVar("Second")
CONFIG = standin.config("llama")
SHAPES = standin.hf_shapes(CONFIG)


@dataclasses.dataclass
class Info(ABC):
    pass


class Engine1(ABC, Generic[First, Second]):
    def __init__(self, config, parallel_config, model):
        self.config, self.parallel_config, self.model = config, parallel_config, model

    @abstractmethod
    def init_transfer_engine(self, init_info):
        pass

    @abstractmethod
    def receive_weights(self, update_info, load_weights):
        pass

    @abstractmethod
    def shutdown(self):
        pass

    @staticmethod
    @abstractmethod
    def trainer_send_weights(iterator, trainer_args):
        pass


class Engine2(Engine1[First, Second]):
    def __init__(self, config, vllm_config, device, model):
        self.config, self.vllm_config, self.device, self.model = config, vllm_config, device, model

    @abstractmethod
    def start_weight_update(self):
        pass

    @abstractmethod
    def finish_weight_update(self):
        pass

    @abstractmethod
    def receive_weights(self, update_info):
        pass


@dataclasses.dataclass
class TrainerInfo(Info):
    rank: int = dataclasses.field(kw_only=True)

    @property
    def is_sender(self):
        return self.rank == 0


class Trainer3(ABC, Generic[First, Second]):
    def __init__(self, config, *, client, source, is_sender=True):
        self.config, self.client, self.source = config, client, source
        self.is_sender = is_sender

    @classmethod
    @abstractmethod
    def trainer_init(cls, config, init_info, *, client, source):
        pass

    @abstractmethod
    def send_weights(self):
        pass


@pytest.fixture
def adapter_of(monkeypatch):
    """Imports an adapter as a vLLM with that interface would have it imported."""

    def load(number, **base):
        modules = {"base": types.SimpleNamespace(WeightTransferInitInfo=Info,
                                                 WeightTransferUpdateInfo=Info, **base)}
        names = ["vllm", "vllm.config", "vllm.config.weight_transfer", "vllm.distributed",
                 "vllm.distributed.weight_transfer", "vllm.distributed.weight_transfer.base"]
        for name in names:
            module = modules.get(name.rpartition(".")[2], types.ModuleType(name))
            monkeypatch.setitem(sys.modules, name, module)
        sys.modules["vllm.config.weight_transfer"].WeightTransferConfig = object
        for name in ("weir.vllm.engine_v2", "weir.vllm.engine_v%d" % number):
            monkeypatch.delitem(sys.modules, name, raising=False)
        loaded = importlib.import_module("weir.vllm.engine_v%d" % number)
        for name in ("weir.vllm.engine_v2", "weir.vllm.engine_v%d" % number):
            monkeypatch.delitem(sys.modules, name, raising=False)
        return loaded

    return load


@pytest.fixture
def trainer():
    with weir.Trainer("policy", config=CONFIG, timeout=10) as opened:
        yield opened


def parts(version):
    return standin.fused(CONFIG, standin.sources(SHAPES, version))


def model():
    made = standin.Engine(CONFIG, parts(1), "bf16_cast")
    made.config = CONFIG  # as vLLM's models have it
    return made


def send(engine, trainer, version):
    engine.trainer_send_weights(iter(standin.sources(SHAPES, version).items()),
                                {"trainer": trainer, "version": version})


def test_interface_1_installs_with_its_parallel_config_and_model_alone(adapter_of, trainer,
                                                                       monkeypatch):
    loaded = adapter_of(1, WeightTransferEngine=Engine1)
    monkeypatch.setattr(loaded, "placement_of_vllm",
                        lambda parallel, has_experts: Placement())
    target = model()
    engine = loaded.WeirWeightTransferEngine(None, None, target)
    with pytest.raises(ValueError, match="name it in init_info"):
        engine.init_transfer_engine(loaded.WeirInitInfo(trainer.directory))
    engine.init_transfer_engine(loaded.WeirInitInfo(trainer.directory, "policy", timeout=10))
    send(engine, trainer, 1)
    engine.receive_weights(loaded.WeirUpdateInfo(1), target.named_parameters)
    assert target.differences(parts(1)) == []
    target.at("model.norm").weight = torch.nn.Parameter(torch.empty(1, device="meta"))
    with pytest.raises(ValueError, match=r"start_weight_update\(is_checkpoint_format=False\)"):
        engine.receive_weights(loaded.WeirUpdateInfo(2), target.named_parameters)
    engine.shutdown()


def test_interface_2_owns_the_update(adapter_of, trainer, monkeypatch):
    def receiver(given, vllm_config, settings):
        return open_receiver(given, settings, config=CONFIG, placement=Placement(),
                             model_name="policy")

    monkeypatch.setattr(adapter.UpdateLife, "make_receiver", staticmethod(receiver))
    loaded = adapter_of(2, WeightTransferEngine=Engine2)
    target = model()
    engine = loaded.WeirWeightTransferEngine(None, None, None, target)
    engine.init_transfer_engine(loaded.WeirInitInfo(trainer.directory, timeout=10))
    send(engine, trainer, 3)
    engine.start_weight_update()
    engine.receive_weights(loaded.WeirUpdateInfo("latest"))
    engine.finish_weight_update()
    assert target.differences(parts(3)) == []
    engine.shutdown()
    with pytest.raises(ValueError, match="trainer_args: missing version"):
        engine.trainer_send_weights(iter(()), {"trainer": trainer})


def test_interface_3_gives_its_trainers_a_config(adapter_of, monkeypatch):
    loaded = adapter_of(3, WeightTransferEngine=Engine2, TrainerInitInfo=TrainerInfo,
                        TrainerWeightTransferEngine=Trainer3)
    calls = []

    class Sender:
        def __init__(self, settings, rank, client, source):
            calls.append((settings.model, rank))

        connect = send = close = lambda self: calls.append("called")

    monkeypatch.setattr(loaded, "Sender", Sender)
    trainer = loaded.WeirTrainerWeightTransferEngine.trainer_init(
        object(), loaded.WeirTrainerInitInfo(model="policy", rank=0), client=None, source={})
    assert trainer.is_sender
    trainer.send_weights()
    trainer.shutdown()
    assert calls == [("policy", 0), "called", "called", "called"]
