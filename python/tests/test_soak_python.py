# SPDX-License-Identifier: Apache-2.0
"""A thousand refits keep nothing: no memory, objects, threads, descriptors."""
from __future__ import annotations

import gc
import os
import sys
import threading
import tracemalloc
import weakref

import numpy as np
import pytest

import weir

N_REFITS = 1000
N_FIRST = 200  # what grows until then is buffers of Weir's and the directory's records

CONFIG = {"model_type": "llama", "torch_dtype": "bfloat16", "hidden_size": 64,
          "intermediate_size": 128, "num_hidden_layers": 1, "num_attention_heads": 4,
          "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 100}
LAYER = {"input_layernorm": (64,), "post_attention_layernorm": (64,), "self_attn.q_proj": (64, 64),
         "self_attn.k_proj": (32, 64), "self_attn.v_proj": (32, 64), "self_attn.o_proj": (64, 64),
         "mlp.gate_proj": (128, 64), "mlp.up_proj": (128, 64), "mlp.down_proj": (64, 128)}
SHAPES = {"model.embed_tokens": (100, 64), "model.norm": (64,), "lm_head": (100, 64),
          **{f"model.layers.0.{name}": shape for name, shape in LAYER.items()}}


def resident_bytes():
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE")


def counts():
    gc.collect()
    return {"objects": len(gc.get_objects()), "threads": threading.active_count(),
            "descriptors": len(os.listdir("/proc/self/fd")), "resident": resident_bytes(),
            "Python": tracemalloc.get_traced_memory()[0]}


def test_a_thousand_refits_grow_nothing():
    weights = {f"{name}.weight": np.full(shape, 0x3f80, np.uint16)
               for name, shape in SHAPES.items()}
    given = {name: weir.tensor(value, dtype="BF16") for name, value in weights.items()}
    hooked = []

    def hook(*_):
        hooked.append(1)
        return True

    hooks = dict.fromkeys(("pause", "postprocess", "resume", "agree"), hook)
    norm = weights["model.norm.weight"]
    before = after = {}
    with weir.Trainer("policy", config=CONFIG, n_threads=1, timeout=20) as trainer, weir.Replica(
            "policy", directory=trainer.directory, config=CONFIG, n_threads=1, timeout=20,
            **hooks) as replica:
        trainer.register(given)
        replica.allocate()
        held = replica.parameters["model.norm.weight"].numpy().view(np.uint16)
        for version in range(1, N_REFITS + 1):
            norm[0] = version
            trainer.publish(version)
            assert replica.install().version == version
            assert held[0] == version
            if version == N_FIRST:
                del hooked[:]
                tracemalloc.start()
                before = counts()  # collects, as below, what other tests have left
                references = sys.getrefcount(trainer), sys.getrefcount(hook), sys.getrefcount(None)
        after = counts()
        tracemalloc.stop()
        assert (sys.getrefcount(trainer), sys.getrefcount(hook)) == references[:2]
        assert sys.getrefcount(None) - references[2] < N_REFITS // 10
    assert len(hooked) == 5 * (N_REFITS - N_FIRST)
    assert after["objects"] - before["objects"] < 50
    assert after["threads"] == before["threads"] and after["descriptors"] == before["descriptors"]
    assert after["Python"] - before["Python"] < 100_000
    assert after["resident"] - before["resident"] < 8 << 20


def test_registering_again_keeps_the_last_alone():
    arrays = []
    with weir.Trainer("policy", config=CONFIG, n_threads=1) as trainer:
        for _ in range(20):
            weights = {f"{name}.weight": np.full(shape, 0x3f80, np.uint16)
                       for name, shape in SHAPES.items()}
            trainer.register({name: weir.tensor(value, dtype="BF16")
                              for name, value in weights.items()})
            arrays.append(weakref.ref(weights["lm_head.weight"]))
            del weights
        assert [array() is not None for array in arrays] == [False] * 19 + [True]
    assert arrays[-1]() is None


@pytest.mark.parametrize("kind", ["closed", "cancelled"])
def test_handles_that_come_and_go_leave_no_thread_and_no_descriptor(kind):
    def come_and_go():
        with weir.Directory() as directory:
            with weir.Trainer("policy", directory=directory.address, config=CONFIG) as trainer:
                if kind == "cancelled":
                    timer = threading.Timer(0.02, trainer.cancel)
                    timer.start()
                    with pytest.raises(weir.WeirError):
                        trainer.wait(1, n_replicas=1, timeout=1)
                    timer.join()

    come_and_go()
    before = counts()
    for _ in range(10):
        come_and_go()
    after = counts()
    assert after["threads"] == before["threads"]
    assert after["descriptors"] == before["descriptors"]
