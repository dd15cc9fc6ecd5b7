#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""torch_kernels.py - torch's own FP8 kernels over weights that Weir installed.

    torch_kernels.py [TRAINER_DEVICE ENGINE_DEVICE]      cuda:0 cuda:0 by default; or cpu cpu

torch._scaled_mm() of the installed codes and scales gives the same bits as of those that this file
makes of the same weights with torch alone, by the recipe of docs/formats.md. A captured CUDA graph
of such products is replayed before and after installs, and never captured again.
"""
from __future__ import annotations

import sys
from typing import Any, Callable

import torch
import torch.nn.functional as F

import weir
from tiny_lm import fused
from torch_pair import (BLOCKS, CHANNELS, TIMEOUT, config_of, engine_memory, publish, weights_of)
from torch_table import Table, same_bytes, synchronize

N_VERSIONS, N_TOKENS = 8, 64
# What _scaled_mm takes block-wise: rows and columns of whole blocks, a multiple of 4 along columns.
SIZES = {"hidden_size": 512, "intermediate_size": 1024, "num_attention_heads": 8,
         "num_key_value_heads": 2, "head_dim": 64, "vocab_size": 1000}
Weights = dict[str, torch.Tensor]


def to_fp8(blocks: torch.Tensor, axes: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes, and one scale for all elements along the axes."""
    x = blocks.float()
    largest = x.abs().amax(axes, keepdim=True)
    scale = (largest * (1 / 448)).clamp(min=1e-12)
    return (x / scale).clamp(-448, 448).to(torch.float8_e4m3fn), scale


def by_channel(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    codes, scale = to_fp8(weight, (1,))
    return codes, scale[:, 0].contiguous()


def by_block(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    grid = weight.unflatten(1, (-1, 128)).unflatten(0, (-1, 128))
    codes, scale = to_fp8(grid, (1, 3))
    return codes.view(weight.shape), scale[:, 0, :, 0].contiguous()


# ---- products ------------------------------------------------------------------------------------


def row_wise(x: torch.Tensor, codes: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    tokens, token_scale = to_fp8(x, (1,))
    return torch._scaled_mm(tokens, codes.t(), token_scale, scale.view(1, -1),
                            out_dtype=torch.bfloat16)


def per_tensor(x: torch.Tensor, codes: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """One scale for all: of the codes alone."""
    tokens, token_scale = to_fp8(x, (0, 1))
    return torch._scaled_mm(tokens, codes.t(), token_scale.view(()), scale.max(),
                            out_dtype=torch.bfloat16)


def block_wise(x: torch.Tensor, codes: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    tokens, token_scale = to_fp8(x.unflatten(1, (-1, 128)), (2,))
    columns_first = token_scale[:, :, 0].t().contiguous().t()
    return torch._scaled_mm(tokens.flatten(1), codes.t(), columns_first, scale.t(),
                            out_dtype=torch.bfloat16)


def dequantised(x: torch.Tensor, codes: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    spread = scale.repeat_interleave(128, 0).repeat_interleave(128, 1)
    return x @ (codes.float() * spread).to(torch.bfloat16).t()


# ---- the engine ----------------------------------------------------------------------------------


def expected(version: int, config: dict[str, Any], device: str) -> Weights:
    """What torch alone makes of a version's weights."""
    recipe, suffix = by_channel, "weight_scale"
    if config["quantization_config"] == BLOCKS:
        recipe, suffix = by_block, "weight_scale_inv"
    made: Weights = {}
    for name, weight in fused(weights_of(version, config, device)).items():
        if name.endswith("_proj.weight"):
            made[name], made[name.replace("weight", suffix)] = recipe(weight)
        else:
            made[name] = weight
    return made


def scale_of(weights: Weights, name: str) -> torch.Tensor:
    found = weights.get(name.replace("weight", "weight_scale"))
    return weights[name.replace("weight", "weight_scale_inv")] if found is None else found


def check_products(products: list[Callable[..., torch.Tensor]], live: Weights, wanted: Weights,
                   version: int) -> int:
    n_products = 0
    for name, codes in wanted.items():
        if not same_bytes(live[name], codes):
            raise AssertionError(f"version {version}: {name} differs from torch's recipe")
        if not name.endswith("_proj.weight"):
            continue
        x = torch.randn(N_TOKENS, codes.shape[1], device=codes.device).to(torch.bfloat16)
        for product in products:
            found = product(x, live[name], scale_of(live, name))
            same = product(x, codes, scale_of(wanted, name))
            if not same_bytes(found, same):
                raise AssertionError(f"version {version}: {product.__name__} of {name} differs")
            if not found.isfinite().all() or not found.any():
                raise AssertionError(f"version {version}: {product.__name__} of {name} is empty")
            n_products += 1
    return n_products


def works(product: Callable[..., torch.Tensor], device: str) -> str:
    """Empty, or why this torch cannot."""
    recipe = by_block if product is block_wise else by_channel
    weight = torch.randn(512, 512, device=device).to(torch.bfloat16)
    try:
        product(weight[:N_TOKENS], *recipe(weight))
        synchronize(device)
    except (RuntimeError, ValueError, NotImplementedError) as error:
        return str(error).splitlines()[0][:90]
    return ""


def multiply(directory: str, config: dict[str, Any], n_versions: int, device: str,
             names: list[str]) -> int:
    products = [globals()[name] for name in names]
    live = engine_memory(config, device)
    n_products = 0
    with weir.Replica("torch", directory=directory, config=config, install="direct",
                      timeout=TIMEOUT) as replica:
        replica.register(live)
        for report in replica.watch():
            n_products += check_products(products, live, expected(report.version, config, device),
                                         report.version)
            if report.version == n_versions:
                return n_products
    raise AssertionError("watch() ended")


def forward(x: torch.Tensor, weights: Weights, config: dict[str, Any]) -> torch.Tensor:
    """Every matrix of every layer, row-wise; what stands for attention takes the queries alone."""
    n_queries = config["num_attention_heads"] * config["head_dim"]
    for i in range(config["num_hidden_layers"]):
        def product(y: torch.Tensor, name: str) -> torch.Tensor:
            weight = f"model.layers.{i}.{name}.weight"  # noqa: B023 - called in this round alone
            return row_wise(y, weights[weight], scale_of(weights, weight))
        x = x + product(product(x, "self_attn.qkv_proj")[:, :n_queries], "self_attn.o_proj")
        gate, up = product(x, "mlp.gate_up_proj").chunk(2, -1)
        x = x + product(F.silu(gate) * up, "mlp.down_proj")
    return x


def capture(x: torch.Tensor, live: Weights,
            config: dict[str, Any]) -> tuple[torch.cuda.CUDAGraph, torch.Tensor]:
    side = torch.cuda.Stream(x.device)
    side.wait_stream(torch.cuda.current_stream(x.device))
    with torch.cuda.stream(side):
        forward(x, live, config)
    torch.cuda.current_stream(x.device).wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = forward(x, live, config)
    return graph, found


def replay(directory: str, config: dict[str, Any], n_versions: int, device: str,
           install: str) -> int:
    """Returns how many replays gave what was expected."""
    torch.cuda.set_device(device)
    live = engine_memory(config, device)
    x = torch.randn(N_TOKENS, config["hidden_size"], device=device).to(torch.bfloat16)
    n_replays = 0
    with weir.Replica("torch", directory=directory, config=config, install=install,
                      pause=lambda: torch.cuda.synchronize(device), timeout=TIMEOUT) as replica:
        replica.register(live)
        versions = replica.watch()
        next(versions)
        graph, found = capture(x, live, config)
        for version in range(1, n_versions + 1):
            before = found.clone()
            graph.replay()
            if not same_bytes(found, forward(x, expected(version, config, device), config)):
                raise AssertionError(f"version {version}: the graph gives other numbers")
            if version > 1 and same_bytes(found, before):
                raise AssertionError(f"version {version}: the graph gives those of the one before")
            n_replays += 1
            if version < n_versions:
                next(versions)
    return n_replays


# ---- the table -----------------------------------------------------------------------------------


def main() -> None:
    trainer, engine = sys.argv[1:3] if len(sys.argv) > 2 else ("cuda:0", "cuda:0")
    table = Table()
    kernels = (row_wise, per_tensor) if engine.startswith("cuda") else (row_wise,)  # the rest: slow
    wholes = [product for product in kernels if not works(product, engine)]
    with table.check("_scaled_mm, a scale per channel") as words:
        if row_wise not in wholes:
            raise AssertionError(works(row_wise, engine))
        n, _, _ = publish(config_of(CHANNELS, **SIZES), trainer, N_VERSIONS, multiply, engine,
                          [p.__name__ for p in wholes])
        words += [f"{n} products bit-equal", f"{N_VERSIONS} versions",
                  " and ".join(p.__name__ for p in wholes)]
    why = works(block_wise, engine)
    blocks = [dequantised] if why else [dequantised, block_wise]
    with table.check("FP8 in blocks of 128 x 128") as words:
        n, _, _ = publish(config_of(BLOCKS, **SIZES), trainer, N_VERSIONS, multiply, engine,
                          [p.__name__ for p in blocks])
        words += [f"{n} products bit-equal", f"{N_VERSIONS} versions",
                  f"dequantised alone: {why}" if why else "_scaled_mm and dequantised"]
    for install in ("direct", "staged"):
        name = f"a CUDA graph, {install}"
        if not engine.startswith("cuda"):
            table.skip(name, "no GPU")
            continue
        with table.check(name) as words:
            n, _, _ = publish(config_of(CHANNELS, **SIZES), trainer, N_VERSIONS, replay, engine,
                              install)
            words += [f"captured once, {n} replays bit-equal over {N_VERSIONS - 1} installs"]
    table.end()


if __name__ == "__main__":
    main()
