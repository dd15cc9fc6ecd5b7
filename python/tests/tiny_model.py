# SPDX-License-Identifier: Apache-2.0
"""A model of three megabytes for the tests of handles: its config, its weights, and what an engine
must hold of them, computed with numpy alone."""
from __future__ import annotations

import ctypes
import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

import weir
from weir import abi
from weir.errors import check
from weir.library import library
from weir.tensors import shape_of_abi

# A handle that is not closed, or that fails as it is collected, fails the test.
NO_WARNINGS = pytest.mark.filterwarnings("error::ResourceWarning",
                                         "error::pytest.PytestUnraisableExceptionWarning")
TIMEOUT_S = 10.0
N_LAYERS = 2


def config(family="llama", preset="tiny"):
    """The config.json of a preset, as a mapping."""
    out = ctypes.c_void_p()
    check(library().weir_family_preset(family.encode(), preset.encode(), ctypes.byref(out)))
    try:
        return json.loads(ctypes.string_at(out.value))
    finally:
        library().weir_string_free(out)


CONFIG = config()


def shapes():
    """Name and shape of every weight, as a checkpoint has them."""
    opened, n = ctypes.c_void_p(), ctypes.c_size_t()
    tensors = ctypes.POINTER(abi.weir_tensor)()
    check(library().weir_config_parse(json.dumps(CONFIG).encode(), b"config", ctypes.byref(opened)))
    try:
        check(library().weir_family_sources(b"llama", opened, abi.WEIR_NAMING_HF,
                                            ctypes.byref(tensors), ctypes.byref(n)))
        found = [tensors[i] for i in range(n.value)]
        assert all(tensor.dtype == weir.DType.BF16 for tensor in found)
        return {tensor.name.decode(): shape_of_abi(tensor.shape) for tensor in found}
    finally:
        library().weir_family_sources_free(tensors)
        library().weir_config_close(opened)


def bits(version):
    """The weights of a version: small finite bf16 values as uint16, other ones for each version."""
    random = np.random.default_rng(version)
    return {name: (random.integers(0x3a00, 0x3c00, shape, dtype=np.uint16)
                   | random.integers(0, 2, shape, dtype=np.uint16) << 15)
            for name, shape in shapes().items()}


def fill(weights, version):
    """Trains: the same memory has the values of another version."""
    for name, value in bits(version).items():
        np.copyto(weights[name], value)


def tensors(weights):
    """uint16 arrays as bf16."""
    return {name: weir.tensor(value, name=name, dtype="BF16") for name, value in weights.items()}


def fused(weights):
    """What an engine holds of the weights: q, k, v and gate, up in one each, the rest as it is."""
    held = dict(weights)
    for layer in range(N_LAYERS):
        for prefix, target, sources in (("self_attn.", "qkv_proj", ("q_proj", "k_proj", "v_proj")),
                                        ("mlp.", "gate_up_proj", ("gate_proj", "up_proj"))):
            for suffix in ("weight", "bias"):
                names = [f"model.layers.{layer}.{prefix}{source}.{suffix}" for source in sources]
                held[f"model.layers.{layer}.{prefix}{target}.{suffix}"] = np.concatenate(
                    [held.pop(name) for name in names])
    return held


def expect_holds(replica, version):
    """Every byte of the replica's parameters is of that version."""
    expected, held = fused(bits(version)), replica.parameters
    assert held.keys() == expected.keys()
    for name, value in expected.items():
        assert bytes(held[name].raw) == value.tobytes(), f"{name} is not that of version {version}"


def open_trainer(**options):
    """A trainer with version 1's weights registered, and those weights."""
    weights = bits(1)
    trainer = weir.Trainer("policy", config=CONFIG, **{"timeout": TIMEOUT_S, **options})
    trainer.register(tensors(weights))
    return trainer, weights


def open_replica(directory, **options):
    """A replica with memory of Weir's."""
    options = {"timeout": TIMEOUT_S, **options}
    replica = weir.Replica("policy", directory=directory, config=CONFIG, **options)
    replica.allocate()
    return replica


def start_python(code, *arguments, warnings="error", **options):
    """Runs code in an interpreter of its own, where this module can be imported."""
    environment = dict(os.environ)
    here = str(pathlib.Path(__file__).parent)
    package = str(pathlib.Path(weir.__file__).parents[1])
    environment["PYTHONPATH"] = os.pathsep.join([here, package, environment.get("PYTHONPATH", "")])
    return subprocess.Popen([sys.executable, "-W", warnings, "-c", code, *map(str, arguments)],
                            env=environment, text=True, stdin=subprocess.PIPE,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)


def run_python(code, *arguments, timeout=30):
    """The same to its end, which must be a good one without a word on stderr; what it printed."""
    with start_python(code, *arguments) as process:
        out, error = process.communicate(timeout=timeout)
    assert process.returncode == 0 and error == "", f"{process.returncode}: {error}"
    return out
