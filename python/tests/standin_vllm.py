# SPDX-License-Identifier: Apache-2.0
"""A stand-in for a vLLM engine: torch modules that hold fused, quantised parameters as vLLM's
layers name, shape and stride them once they are loaded, under methods and kernels that are named as
vLLM's classes. It computes nothing. No code of vLLM's is in it, and none of Weir's families: which
source becomes which part of which parameter is written down here by hand, so that tests compare two
accounts of it.

Run as a program it is one worker of a parallel engine: `standin_vllm.py DIRECTORY RANK STORE`."""
from __future__ import annotations

import enum
import functools
import json
import sys
import types

import ml_dtypes
import numpy as np
import recipes
import tiny_model
import torch

from weir.engines.placement import Placement

NOISE = 0.625  # what parameters hold before the first version
ALONE = Placement()


class Backend(enum.Enum):
    TRITON = 1
    FLASHINFER_CUTLASS = 2
    MARLIN = 3


class Strategy(enum.Enum):
    CHANNEL = "channel"


def named(class_name, **attributes):
    """An object of a class of that name, as layouts are told by names of vLLM's classes."""
    return type(class_name, (), attributes)()


def config(family):
    """The smallest config.json of a family, of two layers."""
    return {**tiny_model.config(family, "tiny"), "num_hidden_layers": 2}


# ---- what a trainer has --------------------------------------------------------------------------


@functools.lru_cache(maxsize=8)
def _sources(shapes, version):
    random = np.random.default_rng(version)
    weights = {}
    for name, shape in shapes:
        dtype = np.float32 if name.endswith("e_score_correction_bias") else ml_dtypes.bfloat16
        weights[name] = (random.standard_normal(shape, dtype=np.float32) / 16).astype(dtype)
    return weights


def sources(shapes, version):
    """bf16 weights under Hugging Face's names (fp32 where config.json's model keeps that)."""
    return _sources(tuple(shapes.items()), version)


def hf_shapes(c):
    """The checkpoint's tensors, of the three families that the stand-in knows."""
    d, heads = c["hidden_size"], c["num_attention_heads"]
    shapes = {"model.embed_tokens.weight": (c["vocab_size"], d), "model.norm.weight": (d,),
              "lm_head.weight": (c["vocab_size"], d)}
    for layer in range(c["num_hidden_layers"]):
        p = "model.layers.%d." % layer
        shapes[p + "input_layernorm.weight"] = shapes[p + "post_attention_layernorm.weight"] = (d,)
        if c["model_type"] == "deepseek_v3":
            nope, rope, v = c["qk_nope_head_dim"], c["qk_rope_head_dim"], c["v_head_dim"]
            q, kv = c["q_lora_rank"], c["kv_lora_rank"]
            shapes.update({p + "self_attn." + n + ".weight": s for n, s in {
                "q_a_proj": (q, d), "kv_a_proj_with_mqa": (kv + rope, d), "q_a_layernorm": (q,),
                "kv_a_layernorm": (kv,), "q_b_proj": (heads * (nope + rope), q),
                "kv_b_proj": (heads * (nope + v), kv), "o_proj": (d, heads * v)}.items()})
        else:
            wide, narrow = heads * c["head_dim"], c["num_key_value_heads"] * c["head_dim"]
            rows = {"q_proj": wide, "k_proj": narrow, "v_proj": narrow}
            shapes.update({p + "self_attn." + n + ".weight": (r, d) for n, r in rows.items()})
            shapes[p + "self_attn.o_proj.weight"] = (d, wide)
            if c["model_type"] == "qwen3_moe":
                shapes[p + "self_attn.q_norm.weight"] = (c["head_dim"],)
                shapes[p + "self_attn.k_norm.weight"] = (c["head_dim"],)
            if c.get("attention_bias"):
                shapes.update({p + "self_attn." + n + ".bias": (r,) for n, r in rows.items()})
                shapes[p + "self_attn.o_proj.bias"] = (d,)
        if is_sparse(c, layer):
            m, n_experts = c["moe_intermediate_size"], n_experts_of(c)
            shapes[p + "mlp.gate.weight"] = (n_experts, d)
            groups = ["mlp.experts.%d." % e for e in range(n_experts)]
            if c["model_type"] == "deepseek_v3":
                shapes[p + "mlp.gate.e_score_correction_bias"] = (n_experts,)
                groups.append("mlp.shared_experts.")
        else:
            m, groups = c["intermediate_size"], ["mlp."]
        for group in groups:
            shapes.update({p + group + "gate_proj.weight": (m, d),
                           p + group + "up_proj.weight": (m, d),
                           p + group + "down_proj.weight": (d, m)})
            if c.get("mlp_bias"):
                shapes.update({p + group + "gate_proj.bias": (m,), p + group + "up_proj.bias": (m,),
                               p + group + "down_proj.bias": (d,)})
    return shapes


def is_sparse(c, layer):
    if c["model_type"] == "deepseek_v3":
        return layer >= c["first_k_dense_replace"]
    return c["model_type"] == "qwen3_moe" and layer not in c["mlp_only_layers"]


def n_experts_of(c):
    return c.get("n_routed_experts") or c["num_experts"]


# ---- what a worker must hold of it ---------------------------------------------------------------


def rows_of(x, place):
    return np.split(x, place.tp_size, axis=0)[place.tp_rank]


def columns_of(x, place):
    return np.split(x, place.tp_size, axis=1)[place.tp_rank]


def vocabulary_of(x, place):
    padded = np.zeros((-(-x.shape[0] // 64) * 64, x.shape[1]), x.dtype)
    padded[:x.shape[0]] = x
    return rows_of(padded, place)


def fused(c, w, place=ALONE, experts=None):
    """(array, is quantised) by the engine's name: this worker's part, fused, not yet quantised."""
    if experts is None and "num_experts_per_tok" in c:
        experts = range(n_experts_of(c))
    out = {n: (vocabulary_of(w[n], place), False)
           for n in ("model.embed_tokens.weight", "lm_head.weight")}
    out["model.norm.weight"] = (w["model.norm.weight"], False)

    def take(target, names, cut, quantised=True):
        parts = [w[n] if cut is None else cut(w[n], place) for n in names]
        out[target] = (np.concatenate(parts, axis=0), quantised)

    def mlp(p, group):
        for suffix in ("weight", "bias"):
            if p + group + "down_proj." + suffix in w:
                take(p + group + "gate_up_proj." + suffix,
                     [p + group + n + suffix for n in ("gate_proj.", "up_proj.")], rows_of,
                     suffix == "weight")
                take(p + group + "down_proj." + suffix, [p + group + "down_proj." + suffix],
                     columns_of if suffix == "weight" else None, suffix == "weight")

    for layer in range(c["num_hidden_layers"]):
        p = "model.layers.%d." % layer
        plain = [p + "input_layernorm.weight", p + "post_attention_layernorm.weight"]
        a = p + "self_attn."
        if c["model_type"] == "deepseek_v3":
            take(a + "fused_qkv_a_proj.weight",
                 [a + "q_a_proj.weight", a + "kv_a_proj_with_mqa.weight"], None)
            plain += [a + "q_a_layernorm.weight", a + "kv_a_layernorm.weight"]
            for n in ("q_b_proj.weight", "kv_b_proj.weight"):
                take(a + n, [a + n], rows_of)
        else:
            for suffix in ("weight", "bias"):
                if a + "q_proj." + suffix in w:
                    take(a + "qkv_proj." + suffix,
                         [a + n + suffix for n in ("q_proj.", "k_proj.", "v_proj.")], rows_of,
                         suffix == "weight")
            plain += [n for n in (a + "q_norm.weight", a + "k_norm.weight", a + "o_proj.bias")
                      if n in w]
        take(a + "o_proj.weight", [a + "o_proj.weight"], columns_of)
        if is_sparse(c, layer):
            plain += [n for n in (p + "mlp.gate.weight", p + "mlp.gate.e_score_correction_bias")
                      if n in w]
            e = [p + "mlp.experts.%d." % i for i in experts]
            out[p + "mlp.experts.w13_weight"] = (np.stack([np.concatenate(
                [w[x + "gate_proj.weight"], w[x + "up_proj.weight"]]) for x in e]), True)
            out[p + "mlp.experts.w2_weight"] = (
                np.stack([w[x + "down_proj.weight"] for x in e]), True)
            if p + "mlp.shared_experts.down_proj.weight" in w:
                mlp(p, "mlp.shared_experts.")
        else:
            mlp(p, "mlp.")
        for n in plain:
            out[n] = (w[n], False)
    return out


def converted(parts, conversion):
    """Every parameter's bytes, by tests/recipes.py."""
    out = {}
    for name, (array, quantised) in parts.items():
        if not quantised or conversion == "bf16_cast":
            out[name] = array
            continue
        for suffix, value in recipes.RECIPES[conversion]([array]).items():
            out[name[:-len("weight")] + suffix] = value
    return out


def derived(c, held, name):
    """W_UV (N, L, V) and W_UK_T (N, P, L) from a kv_b_proj as it is held."""
    k = held[name]
    if k.dtype != ml_dtypes.bfloat16:
        scale = held[name + "_scale_inv"].repeat(128, axis=0).repeat(128, axis=1)
        k = (k.astype(np.float32) * scale[:k.shape[0], :k.shape[1]]).astype(ml_dtypes.bfloat16)
    nope, v = c["qk_nope_head_dim"], c["v_head_dim"]
    k = k.reshape(-1, nope + v, k.shape[1])
    return k[:, nope:].transpose(0, 2, 1), k[:, :nope]


# ---- modules -------------------------------------------------------------------------------------

_DTYPES = {np.dtype(ml_dtypes.bfloat16): torch.bfloat16, np.dtype(np.float32): torch.float32,
           np.dtype(ml_dtypes.float8_e4m3fn): torch.float8_e4m3fn}


def blank(array, rows_last=False):
    """A parameter for such an array, full of noise."""
    shape = tuple(reversed(array.shape)) if rows_last else array.shape
    full = torch.full(shape[::-1] if rows_last else shape, NOISE, dtype=torch.float32)
    full = full.to(_DTYPES[array.dtype])
    return torch.nn.Parameter(full.t() if rows_last else full, requires_grad=False)


def bytes_of(tensor):
    """The values in row-major order, as bytes, whatever the strides."""
    tensor = tensor.detach().contiguous()
    return tensor.view(torch.uint8).numpy().tobytes()


class Layer(torch.nn.Module):
    pass


def _block_linear(layer):
    layer.quant_method = named("Fp8LinearMethod", block_quant=True, weight_block_size=[128, 128],
                               fp8_linear=named("CutlassFp8BlockScaledMMKernel"))
    layer.weight_block_size = [128, 128]


def _channel_linear(layer):
    layer.quant_method = named("CompressedTensorsLinearMethod")
    layer.scheme = named("CompressedTensorsW8A8Fp8", strategy=Strategy.CHANNEL,
                         fp8_linear=named("CutlassFP8ScaledMMLinearKernel"))


def _method(layer, conversion, is_experts):
    if conversion == "bf16_cast":
        layer.quant_method = (
            named("UnquantizedFusedMoEMethod", unquantized_backend=Backend.TRITON) if is_experts
            else named("UnquantizedLinearMethod"))
    elif is_experts and conversion == "fp8_128x128":
        layer.quant_method = named("Fp8MoEMethod", block_quant=True, fp8_backend=Backend.TRITON,
                                   weight_block_size=[128, 128])
    elif is_experts:
        layer.quant_method = named(
            "CompressedTensorsW8A8Fp8MoEMethod", block_quant=False, fp8_backend=Backend.TRITON,
            weight_quant=types.SimpleNamespace(strategy=Strategy.CHANNEL))
    elif conversion == "fp8_128x128":
        _block_linear(layer)
    else:
        _channel_linear(layer)


class Engine(torch.nn.Module):
    """`expert_map`: this worker's, from ids to slots; `experts_inside`: where newer versions keep
    the weights of experts. `mla`: "views" (strided parameters of the attention module, over memory
    of their own), "aliases" (views of kv_b_proj.weight), "attributes" (contiguous, of the impl)."""

    def __init__(self, c, parts, conversion, *, expert_map=None, experts_inside=True, mla="views"):
        super().__init__()
        self.c, self.conversion = c, conversion
        for name, array in converted(parts, conversion).items():
            path, _, attribute = name.rpartition(".")
            weight = path + ".weight" if not attribute.startswith("w") or "_" not in attribute \
                else path + "." + attribute.split("_scale")[0]
            self._add(path, attribute, array, parts.get(weight, (None, False))[1], experts_inside)
        if expert_map is not None:
            for module in self.modules():
                if hasattr(module, "w13_weight"):
                    module.register_buffer("_expert_map", expert_map, persistent=False)
        if c["model_type"] == "deepseek_v3":
            for layer in range(c["num_hidden_layers"]):
                self._add_mla("model.layers.%d.self_attn" % layer, mla)

    def at(self, path):
        module = self
        for part in path.split("."):
            if part not in module._modules:
                module.add_module(part, Layer())
            module = module._modules[part]
        return module

    def _add(self, path, attribute, array, quantised, experts_inside):
        is_experts = attribute.startswith(("w13_", "w2_"))
        layer = self.at(path + ".routed_experts" if is_experts and experts_inside else path)
        if (quantised or is_experts) and not hasattr(layer, "quant_method"):
            _method(layer, self.conversion, is_experts)
        per_row = self.conversion == "cutlass_fp8_e4m3_per_channel"
        rows_last = per_row and array.dtype == ml_dtypes.float8_e4m3fn and array.ndim == 2
        if per_row and attribute.endswith("weight_scale"):
            array = array[..., None]
        layer.register_parameter(attribute, blank(array, rows_last))
        if path in ("lm_head", "model.embed_tokens"):
            layer.quant_method = named("UnquantizedEmbeddingMethod")
            layer.org_vocab_size = self.c["vocab_size"]
            padding = ~array.any(axis=1)
            layer.weight.data[torch.from_numpy(padding)] = 0  # as vLLM leaves it

    def _add_mla(self, path, how):
        c, attention = self.c, self.at(path)
        heads, length = c["num_attention_heads"], c["kv_lora_rank"]
        nope, v = c["qk_nope_head_dim"], c["v_head_dim"]
        inner = Layer()
        inner.kv_b_proj = attention.kv_b_proj
        attention.add_module("mla_attn", inner)
        if how == "attributes":
            inner.impl = types.SimpleNamespace(
                W_UV=torch.full((heads, length, v), NOISE, dtype=torch.bfloat16),
                W_UK_T=torch.full((heads, nope, length), NOISE, dtype=torch.bfloat16))
            return
        k = attention.kv_b_proj.weight.data
        if how == "views":  # of what was dequantised when it was loaded
            k = torch.full(k.shape, NOISE * NOISE, dtype=torch.bfloat16)
        k = k.T.view(length, heads, nope + v)
        inner.W_UV = torch.nn.Parameter(k[:, :, nope:].transpose(0, 1), requires_grad=False)
        inner.W_UK_T = torch.nn.Parameter(k[:, :, :nope].permute(1, 2, 0), requires_grad=False)

    def differences(self, parts):
        """Names of parameters that do not hold what the recipes say."""
        expected = converted(parts, self.conversion)
        found = []
        live = {n.replace("routed_experts.", ""): p for n, p in self.named_parameters()
                if not n.endswith(("W_UV", "W_UK_T"))}
        assert live.keys() == expected.keys()
        for name, value in expected.items():
            if bytes_of(in_rows(live[name], value)) != np.ascontiguousarray(value).tobytes():
                found.append(name)
        for name in [n for n in expected if n.endswith("kv_b_proj.weight")]:
            holder = self.at(name.replace("kv_b_proj.weight", "mla_attn"))
            holder = getattr(holder, "impl", holder)
            for n, value in zip(("W_UV", "W_UK_T"), derived(self.c, expected, name)):
                if bytes_of(getattr(holder, n)) != np.ascontiguousarray(value).tobytes():
                    found.append(name + " -> " + n)
        return found

    def contents(self):
        """The bytes of every parameter."""
        return {n: bytes_of(p) for n, p in self.named_parameters() if str(p.device) != "meta"}


def in_rows(parameter, value):
    tensor = parameter.detach()
    if tensor.shape != value.shape and tensor.dim() == 2 and value.ndim == 2:
        return tensor.t()
    return tensor


# ---- one worker of several -----------------------------------------------------------------------

EXPERTS = ([5, 0, 7, 2], [1, 6, 3, 4])


def open_worker(directory, rank):
    """A receiver that fails installs before their first byte while it is `sabotaged`, its engine,
    and what that must hold of a version."""
    from weir.engines.receiver import Receiver
    from weir.vllm.settings import Settings
    from weir.vllm.vllm_parameters import find_parameters, local_experts

    class Worker(Receiver):
        sabotaged = False

        def _synchronize(self):
            if self.sabotaged:
                raise RuntimeError("a fault of worker %d" % rank)

    c = config("qwen3_moe")
    shapes, place = hf_shapes(c), Placement(tp_rank=rank, tp_size=2, expert_parallel=True)
    expert_map = torch.full((8,), -1, dtype=torch.int32)
    expert_map[torch.tensor(EXPERTS[rank])] = torch.arange(4, dtype=torch.int32)

    def parts(version):
        return fused(c, sources(shapes, version), place, EXPERTS[rank])

    engine = Engine(c, parts(1), "fp8_128x128", expert_map=expert_map)
    settings = Settings(directory, timeout=10, agree_timeout=10)
    worker = Worker(engine, settings, config=c, placement=place, model_name="policy",
                    find=find_parameters, experts_of=local_experts)
    return worker, engine, parts


def main(directory, rank, store):
    """Installs what it is told on stdin: a version per line, and whom to sabotage. Prints what it
    came to as a line of JSON for each."""
    from datetime import timedelta

    import torch.distributed as dist

    rank = int(rank)
    dist.init_process_group("gloo", init_method="file://" + store, rank=rank, world_size=2,
                            timeout=timedelta(seconds=20))
    receiver, engine, parts = open_worker(directory, rank)
    print(json.dumps({"ready": rank}), flush=True)
    for line in sys.stdin:
        version, sabotaged = map(int, line.split())
        receiver.sabotaged = sabotaged == rank
        error = ""
        try:
            receiver.install(version)
        except Exception as raised:
            error = "%s: %s" % (type(raised).__name__, raised)
        held = receiver.version
        print(json.dumps({"held": held, "wrong": engine.differences(parts(held)), "error": error}),
              flush=True)
    receiver.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
