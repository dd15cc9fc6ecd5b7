# SPDX-License-Identifier: Apache-2.0
"""tiny_lm.py - a causal language model for the examples beside it, in plain torch.

Its weights bear the names of a Hugging Face Qwen3; `fused()` gives them as an engine holds them: q,
k and v one matrix, gate and up one matrix. `logits()` computes from those, so that a trainer and
an engine run the same forward. It knows nothing of Weir.
"""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CONFIG: dict[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "torch_dtype": "bfloat16",
    "hidden_size": 128, "intermediate_size": 320, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 32, "vocab_size": 64, "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0, "tie_word_embeddings": False,
    "quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]},
}
FUSED = {"q_proj": "qkv_proj", "k_proj": "qkv_proj", "v_proj": "qkv_proj",
         "gate_proj": "gate_up_proj", "up_proj": "gate_up_proj"}


def matrix(n_in: int, n_out: int) -> nn.Linear:
    return nn.Linear(n_in, n_out, bias=False)


class Layer(nn.Module):
    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        hidden, middle = config["hidden_size"], config["intermediate_size"]
        dim, n_kv = config["head_dim"], config["num_key_value_heads"]
        n_heads = config["num_attention_heads"]
        self.input_layernorm = nn.RMSNorm(hidden)
        self.self_attn = nn.ModuleDict({
            "q_proj": matrix(hidden, n_heads * dim), "k_proj": matrix(hidden, n_kv * dim),
            "v_proj": matrix(hidden, n_kv * dim), "o_proj": matrix(n_heads * dim, hidden),
            "q_norm": nn.RMSNorm(dim), "k_norm": nn.RMSNorm(dim)})
        self.post_attention_layernorm = nn.RMSNorm(hidden)
        self.mlp = nn.ModuleDict({
            "gate_proj": matrix(hidden, middle), "up_proj": matrix(hidden, middle),
            "down_proj": matrix(middle, hidden)})


class TinyLM(nn.Module):
    """Parameters in fp32, as an optimizer wants them."""

    def __init__(self, config: Mapping[str, Any] = CONFIG) -> None:
        super().__init__()
        self.config = config
        self.model = nn.ModuleDict({
            "embed_tokens": nn.Embedding(config["vocab_size"], config["hidden_size"]),
            "layers": nn.ModuleList(Layer(config) for _ in range(config["num_hidden_layers"])),
            "norm": nn.RMSNorm(config["hidden_size"])})
        self.lm_head = matrix(config["hidden_size"], config["vocab_size"])

    def forward(self, tokens: Tensor) -> Tensor:
        return logits(fused(dict(self.named_parameters())), tokens, self.config)

    def loss(self, tokens: Tensor) -> Tensor:
        return F.cross_entropy(self(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())


def parts(names: Mapping[str, Any]) -> dict[str, list[str]]:
    """The tensors that make up each parameter of an engine."""
    found: dict[str, list[str]] = {}
    for name in names:
        *path, module, leaf = name.split(".")
        found.setdefault(".".join([*path, FUSED.get(module, module), leaf]), []).append(name)
    return found


def fused(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: torch.cat([weights[part] for part in made_of])
            for name, made_of in parts(weights).items()}


def batch(n: int, length: int, seed: int, vocabulary: int = CONFIG["vocab_size"]) -> Tensor:
    """The task: sequences that count up, each by a step of its own."""
    generator = torch.Generator().manual_seed(seed)
    begin = torch.randint(vocabulary, (n, 1), generator=generator)
    step = torch.randint(1, 8, (n, 1), generator=generator)
    return (begin + step * torch.arange(length)) % vocabulary


def rotate(x: Tensor, theta: float) -> Tensor:
    """Rotary position embedding of (batch, head, position, dim)."""
    a, b = x.chunk(2, -1)
    frequency = theta ** (-torch.arange(a.shape[-1], device=x.device) / a.shape[-1])
    angle = torch.arange(x.shape[-2], device=x.device)[:, None] * frequency
    return torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], -1)


def logits(weights: Mapping[str, Tensor], tokens: Tensor, config: Mapping[str, Any]) -> Tensor:
    """(batch, position, vocabulary) of (batch, position) tokens and the fused weights."""
    dim, eps, theta = config["head_dim"], config["rms_norm_eps"], config["rope_theta"]
    n_heads, n_kv = config["num_attention_heads"], config["num_key_value_heads"]

    def norm(x: Tensor, name: str) -> Tensor:
        return F.rms_norm(x, x.shape[-1:], weights[name], eps)

    x = weights["model.embed_tokens.weight"][tokens]
    for i in range(config["num_hidden_layers"]):
        at = f"model.layers.{i}."
        qkv = norm(x, at + "input_layernorm.weight") @ weights[at + "self_attn.qkv_proj.weight"].T
        q, k, v = (y.unflatten(-1, (-1, dim)).transpose(1, 2)
                   for y in qkv.split([n_heads * dim, n_kv * dim, n_kv * dim], -1))
        q = rotate(norm(q, at + "self_attn.q_norm.weight"), theta)
        k = rotate(norm(k, at + "self_attn.k_norm.weight"), theta)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        x = x + mixed.transpose(1, 2).flatten(2) @ weights[at + "self_attn.o_proj.weight"].T
        y = norm(x, at + "post_attention_layernorm.weight")
        gate, up = (y @ weights[at + "mlp.gate_up_proj.weight"].T).chunk(2, -1)
        x = x + (F.silu(gate) * up) @ weights[at + "mlp.down_proj.weight"].T
    return norm(x, "model.norm.weight") @ weights["lm_head.weight"].T
