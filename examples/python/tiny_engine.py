# SPDX-License-Identifier: Apache-2.0
"""tiny_engine.py - the engine's side of `tiny_lm`: fused matrices in FP8, a scale for each block.

What an inference engine holds, allocated once at addresses that never change, and a forward over
it: dequantise, then multiply. An engine's kernels read the same bytes. It knows nothing of Weir.
"""
from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from tiny_lm import CONFIG, TinyLM, fused, logits

BLOCK = 128


def is_quantised(name: str) -> bool:
    return name.endswith("_proj.weight")  # norms, embeddings and the head stay bf16


def scale_name(name: str) -> str:
    return name.replace("weight", "weight_scale_inv")


def engine_parameters(device: str) -> dict[str, Tensor]:
    """Every live parameter by name, holding zeros."""
    with torch.device("meta"):
        shapes = {name: weight.shape for name, weight in fused(TinyLM().state_dict()).items()}
    made: dict[str, Tensor] = {}
    for name, shape in shapes.items():
        kind = torch.float8_e4m3fn if is_quantised(name) else torch.bfloat16
        made[name] = torch.zeros(shape, dtype=kind, device=device)
        if is_quantised(name):
            grid = [-(-n // BLOCK) for n in shape]
            made[scale_name(name)] = torch.zeros(grid, dtype=torch.float32, device=device)
    return made


def dequantise(codes: Tensor, scale: Tensor) -> Tensor:
    rows, columns = codes.shape
    spread = scale.repeat_interleave(BLOCK, 0).repeat_interleave(BLOCK, 1)
    return codes.float() * spread[:rows, :columns]


@torch.no_grad()
def engine_logits(parameters: Mapping[str, Tensor], tokens: Tensor) -> Tensor:
    """(batch, position, vocabulary) of (batch, position) tokens, in fp32."""
    weights = {name: dequantise(held, parameters[scale_name(name)]) if is_quantised(name)
               else held.float() for name, held in parameters.items()}
    return logits(weights, tokens, CONFIG)
