# SPDX-License-Identifier: Apache-2.0
"""torch_pair.py - a trainer here and an engine in another process, both with tensors of PyTorch's.

`publish()` trains nothing: it writes the weights of version 1, 2, … and waits until the engine
holds each. The weights of a version are the same wherever they are made, so an engine knows what it
should hold without being told.
"""
from __future__ import annotations

import time
import traceback
from multiprocessing.connection import Connection
from typing import Any, Callable, Optional

import torch
import torch.multiprocessing as mp

import weir
from tiny_lm import CONFIG, TinyLM, parts
from torch_table import bytes_in_use, random_weights, synchronize

TIMEOUT = 30.0
SETTLED = 10  # the version after which memory must not grow
BLOCKS = {"quant_method": "fp8", "weight_block_size": [128, 128]}
CHANNELS = {"quant_method": "fp8", "activation_scheme": "dynamic"}


def config_of(quantization: dict[str, Any], **sizes: int) -> dict[str, Any]:
    return {**CONFIG, "quantization_config": quantization, **sizes}


def shapes_of(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        return {name: tuple(t.shape) for name, t in TinyLM(config).state_dict().items()}


def weights_of(version: int, config: dict[str, Any], device: str) -> dict[str, torch.Tensor]:
    """bf16, by Hugging Face's names."""
    return {name: random_weights(shape, torch.bfloat16, 100_000 * version + i, device)
            for i, (name, shape) in enumerate(shapes_of(config).items())}


def converted(weights: dict[str, torch.Tensor], config: dict[str, Any]) -> dict[str, torch.Tensor]:
    """What an engine should hold, by weir.convert()."""
    made: dict[str, torch.Tensor] = {}
    wish = weir.select_conversion(config)
    for name, made_of in parts(weights).items():
        conversion = wish if name.endswith("_proj.weight") else "bf16_cast"
        found = weir.convert(conversion, [weights[part] for part in made_of])
        for suffix, tensor in found.items():
            made[name if suffix == "weight" else name.replace("weight", suffix)] = tensor
    return made


def engine_memory(config: dict[str, Any], device: str) -> dict[str, torch.Tensor]:
    """Live parameters, every byte 0xFF: no number."""
    made: dict[str, torch.Tensor] = {}
    for name, t in converted(weights_of(0, config, "cpu"), config).items():
        shape = (*t.shape[:-1], t.shape[-1] * t.element_size())
        made[name] = torch.full(shape, 0xFF, dtype=torch.uint8, device=device).view(t.dtype)
    synchronize(device)  # what is queued here would come after another process' writes
    return made


def engine_main(pipe: Connection, engine: Callable[..., Any], args: tuple[Any, ...]) -> None:
    try:
        pipe.send(("ok", engine(*args)))
    except BaseException:  # noqa: B036 - whatever it was, the other side is told
        traceback.print_exc()
        pipe.send(("failed", traceback.format_exc()))


class Timing:
    """Of one version: seconds of publish() and wait(), and what the library says of the former."""

    def __init__(self, trainer: weir.Trainer, version: int) -> None:
        begun = time.perf_counter()
        report = trainer.publish(version)
        published = time.perf_counter()
        trainer.wait(version, n_replicas=1)
        self.wait = time.perf_counter() - published
        self.publish = published - begun
        self.inside = report.total_seconds


def write(live: dict[str, torch.Tensor], version: int, config: dict[str, Any],
          stream: Optional[torch.cuda.Stream]) -> None:
    """In a stream of its own on a GPU, and behind slow work: nothing here waits for it."""
    with torch.cuda.stream(stream):
        if stream is not None:
            torch.cuda._sleep(1_000_000)
        for name, fresh in weights_of(version, config, str(live["lm_head.weight"].device)).items():
            live[name].copy_(fresh)


def growth(in_use: dict[int, int], n_versions: int) -> int:
    """Bytes, from when all is settled to the last version but one: then neither side is closing."""
    return in_use[n_versions - 1] - in_use[min(SETTLED, n_versions - 1)]


def publish(config: dict[str, Any], device: str, n_versions: int, engine: Callable[..., Any],
            *args: Any, change: bool = True) -> tuple[Any, list[Timing], int]:
    """Runs engine(directory, config, n_versions, *args) in a process of its own. Returns what it
    returned, a Timing per version, and by how many bytes memory grew."""
    live = {name: torch.empty_like(t) for name, t in weights_of(0, config, device).items()}
    synchronize(device)  # before another stream writes into it
    stream = torch.cuda.Stream(device) if device.startswith("cuda") else None
    pipe, far_pipe = mp.Pipe()
    timings, in_use = [], {}
    error: Optional[BaseException] = None
    with weir.Trainer("torch", config=config, stream=stream, timeout=TIMEOUT) as trainer:
        trainer.register(live)
        place = (trainer.directory, config, n_versions, *args)
        other = mp.get_context("spawn").Process(target=engine_main, args=(far_pipe, engine, place),
                                                daemon=True)
        other.start()
        far_pipe.close()
        try:
            for version in range(1, n_versions + 1):
                if change or version == 1:
                    write(live, version, config, stream)
                timings.append(Timing(trainer, version))
                in_use[version] = bytes_in_use(device)
        except weir.WeirError as failed:
            error = failed
        result, words = pipe.recv() if pipe.poll(TIMEOUT) else ("failed", "the engine hangs")
        other.join(TIMEOUT)
        other.kill()
    if error is not None or result != "ok":
        raise RuntimeError(f"trainer: {error}; engine: {str(words).splitlines()[-1]}") from error
    return words, timings, growth(in_use, n_versions)
