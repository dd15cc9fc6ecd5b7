#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""torch_refit.py - weir.Trainer and weir.Replica over torch's tensors, in two processes.

    torch_refit.py [TRAINER_DEVICE ENGINE_DEVICE...]     cuda:0, and all GPUs, by default; or cpu cpu

The engine checks after every one of 50 versions that its tensors hold what weir.convert() makes
of the same weights, at their old addresses; memory must not grow. Then 10,000 tensors: what Python
adds to the time that the library reports. Needs torch, weir on PYTHONPATH and WEIR_LIBRARY.
"""
from __future__ import annotations

import statistics
import sys
import time
from typing import Any

import torch

import weir
from torch_pair import (BLOCKS, CHANNELS, TIMEOUT, config_of, converted, engine_memory, growth,
                        publish, shapes_of, weights_of)
from torch_table import Table, bytes_in_use, same_bytes

N_VERSIONS = 50
# Fused matrices whose parts end off the grid of blocks, and rows that end off it.
RAGGED = {"hidden_size": 264, "intermediate_size": 672, "num_attention_heads": 4,
          "num_key_value_heads": 1, "head_dim": 72, "vocab_size": 1000}
# Of 11 tensors a layer.
MANY = {"hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 1,
        "num_key_value_heads": 1, "head_dim": 64, "vocab_size": 64, "num_hidden_layers": 910}
N_TIMED = 20


def follow(directory: str, config: dict[str, Any], n_versions: int, device: str,
           install: str) -> tuple[int, float]:
    """Returns by how much memory grew, and the median milliseconds of an install."""
    live = engine_memory(config, device)
    addresses = {name: t.data_ptr() for name, t in live.items()}
    seconds, in_use = [], {}
    with weir.Replica("torch", directory=directory, config=config, install=install,
                      timeout=TIMEOUT) as replica:
        replica.register(live)
        for report in replica.watch():
            wanted = converted(weights_of(report.version, config, device), config)
            wrong = [name for name, t in wanted.items() if not same_bytes(live[name], t)]
            if wrong:
                raise AssertionError(f"version {report.version}: {wrong[0]} and "
                                     f"{len(wrong) - 1} more differ from weir.convert()")
            if addresses != {name: t.data_ptr() for name, t in live.items()}:
                raise AssertionError(f"version {report.version}: addresses changed")
            seconds.append(report.total_seconds)
            in_use[report.version] = bytes_in_use(device)
            if report.version == n_versions:
                break
    return growth(in_use, n_versions), 1e3 * statistics.median(seconds)


def check_follow(table: Table, trainer: str, engine: str, install: str,
                 quantization: dict[str, Any]) -> None:
    config = config_of(quantization, **RAGGED)
    conversion = weir.select_conversion(config)
    kind = "blocks" if quantization is BLOCKS else "channels"
    with table.check(f"{trainer} to {engine}, {install}, {kind}") as words:
        (theirs, ms), timings, mine = publish(config, trainer, N_VERSIONS, follow, engine, install)
        room = 0 if trainer.startswith("cuda") else 4 << 20  # a heap's pages come and go
        if max(mine, theirs) > room:
            raise AssertionError(f"memory grew by {mine} bytes (trainer), {theirs} (engine)")
        words += [f"{N_VERSIONS} versions of {conversion} equal", "addresses stay",
                  f"install {ms:.1f} ms", f"memory {mine:+d} and {theirs:+d} bytes"]


def install_many(directory: str, config: dict[str, Any], n_versions: int,
                 device: str) -> tuple[int, list[float], list[float]]:
    """Returns how many parameters there are, and of each install what Python added, and its sum."""
    live = engine_memory(config, device)
    added, total = [], []
    with weir.Replica("torch", directory=directory, config=config, install="direct",
                      timeout=TIMEOUT) as replica:
        replica.register(live)
        for version in range(1, n_versions + 1):
            begun = time.perf_counter()
            report = replica.install(version)
            seconds = time.perf_counter() - begun
            added.append(seconds - report.waited_seconds - report.total_seconds)
            total.append(report.total_seconds)
    return len(live), added, total


def of_rounds(name: str, inside: list[float], added: list[float], n: int, judged: bool) -> str:
    """After the first rounds, in which both sides plan: medians, and the least that Python added,
    by which it is judged, as another process may have interrupted any round. Not on a CPU that the
    library's threads and the other side need, too."""
    least = min(added[2:])
    words = (f"{name} {statistics.median(inside[2:]) * 1e3:.2f} ms, Python adds "
             f"{statistics.median(added[2:]) * 1e3:.2f} ms (least {least * 1e3:.2f})")
    if judged and least > 1e-3 + 1e-6 * n:
        raise AssertionError(f"more than 1 ms and 1 us for each of {n}: {words}")
    return words


def check_overhead(table: Table, trainer: str, engine: str) -> None:
    config = config_of(BLOCKS, **MANY)
    n_tensors = len(shapes_of(config))
    with table.check(f"{n_tensors} tensors, {trainer} to {engine}") as words:
        (n_parameters, added, total), timings, _ = publish(config, trainer, N_TIMED, install_many,
                                                           engine, change=False)
        judged = trainer.startswith("cuda")
        words += [of_rounds("publish", [t.inside for t in timings],
                            [t.publish - t.inside for t in timings], n_tensors, judged),
                  of_rounds(f"install of {n_parameters}", total, added, n_parameters, judged),
                  f"wait {statistics.median(t.wait for t in timings[2:]) * 1e3:.2f} ms"]


def main() -> None:
    trainer, *engines = sys.argv[1:] or ["cuda:0"]
    if not engines:
        engines = [f"cuda:{i}" for i in range(min(2, torch.cuda.device_count()))]
    table = Table()
    for engine in engines:
        check_follow(table, trainer, engine, "direct", BLOCKS)
        check_follow(table, trainer, engine, "staged", BLOCKS)
    check_follow(table, trainer, engines[0], "direct", CHANNELS)
    check_overhead(table, trainer, engines[0])
    table.end()


if __name__ == "__main__":
    main()
