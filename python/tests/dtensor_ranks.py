# SPDX-License-Identifier: Apache-2.0
"""What the processes of test_dtensor_processes.py run: trainer ranks of real gloo groups, and the
workers of an engine. A model of Qwen3's names and odd sizes, sharded in the ways that torch has.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import runpy
import sys
import traceback

import torch
import torch._dynamo  # which torch imports when it first distributes a tensor: once, before forks
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, StateDictType, fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)
from torch.distributed.tensor.placement_types import _StridedShard

import weir

HIDDEN, HEADS, KV_HEADS, HEAD_DIM, WIDTH, VOCABULARY = 192, 4, 2, 64, 330, 333
VERSIONS = (1, 2)
MOVED = "model.layers.0.mlp.up_proj.weight"

CONFIG = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "torch_dtype": "bfloat16",
    "hidden_act": "silu",
    "attention_bias": False,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "tie_word_embeddings": False,
    "hidden_size": HIDDEN,
    "num_hidden_layers": 1,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "head_dim": HEAD_DIM,
    "intermediate_size": WIDTH,
    "vocab_size": VOCABULARY,
}


# ---- the model -----------------------------------------------------------------------------------


def linear(n_in, n_out):
    return nn.Linear(n_in, n_out, bias=False)


class Attention(nn.Module):
    """No attention: every weight of one, multiplied in some way, so that all have gradients."""

    def __init__(self):
        super().__init__()
        self.q_proj = linear(HIDDEN, HEADS * HEAD_DIM)
        self.k_proj = linear(HIDDEN, KV_HEADS * HEAD_DIM)
        self.v_proj = linear(HIDDEN, KV_HEADS * HEAD_DIM)
        self.o_proj = linear(HEADS * HEAD_DIM, HIDDEN)
        self.q_norm, self.k_norm = nn.RMSNorm(HEAD_DIM), nn.RMSNorm(HEAD_DIM)

    def forward(self, x):
        q = self.q_norm(self.q_proj(x).unflatten(-1, (-1, HEAD_DIM))).flatten(-2)
        k = self.k_norm(self.k_proj(x).unflatten(-1, (-1, HEAD_DIM))).flatten(-2)
        return self.o_proj(q * torch.cat([k, self.v_proj(x)], -1))


class Mlp(nn.Module):
    def __init__(self):
        super().__init__()
        self.gate_proj, self.up_proj = linear(HIDDEN, WIDTH), linear(HIDDEN, WIDTH)
        self.down_proj = linear(WIDTH, HIDDEN)

    def forward(self, x):
        return self.down_proj(nn.functional.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.input_layernorm = nn.RMSNorm(HIDDEN)
        self.post_attention_layernorm = nn.RMSNorm(HIDDEN)
        self.self_attn, self.mlp = Attention(), Mlp()

    def forward(self, x):
        x = x + self.self_attn(self.input_layernorm(x))
        return x + self.mlp(self.post_attention_layernorm(x))


class Qwen(nn.Module):
    def __init__(self):
        super().__init__()
        self.model = nn.ModuleDict(
            {
                "embed_tokens": nn.Embedding(VOCABULARY, HIDDEN),
                "layers": nn.ModuleList([Layer()]),
                "norm": nn.RMSNorm(HIDDEN),
            }
        )
        self.lm_head = linear(HIDDEN, VOCABULARY)

    def forward(self, tokens):
        x = self.model["embed_tokens"](tokens)
        for layer in self.model["layers"]:
            x = layer(x)
        return self.lm_head(self.model["norm"](x))


def new_model():
    torch.manual_seed(7)
    return Qwen().to(torch.bfloat16)


def train(model, version):
    """One real step: every rank its own tokens, gradients reduced by FSDP."""
    torch.manual_seed(100 * version)
    tokens = torch.randint(0, VOCABULARY, (2, 5))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    logits = model(tokens)
    logits.float().log_softmax(-1)[..., 0].mean().neg().backward()
    optimizer.step()
    optimizer.zero_grad()


# ---- how the ranks hold it -----------------------------------------------------------------------


def whole_weights(version):
    """The full tensors of a version that nobody trains: the same on every rank."""
    generator = torch.Generator().manual_seed(version)
    return {
        name: torch.randn(value.shape, generator=generator).to(value.dtype)
        for name, value in new_model().state_dict().items()
    }


class Distributed:
    """Weights that distribute_tensor() places, filled anew for each version. Those without
    placements are whole on every rank."""

    gives_copies = False

    def __init__(self, mesh, place):
        self.mesh, self.place = mesh, place
        self.weights = {name: self.put(name, value) for name, value in whole_weights(0).items()}

    def put(self, name, value):
        placed = self.place(name)
        if placed is None:
            return value.clone()
        return distribute_tensor(value, self.mesh, placed, src_data_rank=None)

    def advance(self, version):
        full = whole_weights(version)
        for name, held in self.weights.items():
            if isinstance(held, DTensor):
                given = self.put(name, full[name]).to_local()
                if name == MOVED and version > 1:  # as FSDP does when it pads what was loaded
                    held._local_tensor = given
                held.to_local().copy_(given)
            else:
                held.copy_(full[name])
        return full


class Trained:
    """A module that torch shards; a version is a step."""

    gives_copies = False

    def __init__(self, model):
        self.weights = model

    def advance(self, version):
        train(self.weights, version)
        return {
            name: value.full_tensor() if isinstance(value, DTensor) else value.clone()
            for name, value in self.weights.state_dict().items()
        }


class Flattened:
    """FSDP1: its sharded state dict is a copy, taken again for each version."""

    gives_copies = True

    def __init__(self, n_ranks):
        self.model = FullyShardedDataParallel(new_model(), device_id=torch.device("cpu"))

    def state_dict(self, kind):
        with FullyShardedDataParallel.state_dict_type(self.model, kind):
            return self.model.state_dict()

    @property
    def weights(self):
        return self.state_dict(StateDictType.SHARDED_STATE_DICT)

    def advance(self, version):
        train(self.model, version)
        return self.state_dict(StateDictType.FULL_STATE_DICT)


def of_all_kinds(name):
    """Rows of most, columns of some, several runs of rows, all of it, and no DTensor at all."""
    if name.endswith(("o_proj.weight", "down_proj.weight")):
        return [Shard(1)]
    if name.endswith("gate_proj.weight"):
        return [_StridedShard(0, split_factor=3)]
    if name == "model.norm.weight":
        return None
    return [Replicate() if "layernorm" in name else Shard(0)]


def flat(n_ranks):
    return init_device_mesh("cpu", (n_ranks,))


def grid(first, second):
    return init_device_mesh("cpu", (2, 2), mesh_dim_names=(first, second))


def fsdp2(n_ranks):
    model, mesh = new_model(), flat(n_ranks)
    for layer in model.model["layers"]:
        fully_shard(layer, mesh=mesh)
    return Trained(fully_shard(model, mesh=mesh))


def fsdp_over_tp(n_ranks):
    model, mesh = new_model(), grid("dp", "tp")
    for layer in model.model["layers"]:
        plan = {f"self_attn.{p}_proj": ColwiseParallel() for p in "qkv"}
        plan.update({f"mlp.{p}_proj": ColwiseParallel() for p in ("gate", "up")})
        plan.update({p: RowwiseParallel() for p in ("self_attn.o_proj", "mlp.down_proj")})
        parallelize_module(layer, mesh["tp"], plan)
        for norm in (layer.self_attn.q_norm, layer.self_attn.k_norm):
            norm.weight.requires_grad_(False)  # each rank has gradients of its own heads alone
        fully_shard(layer, mesh=mesh["dp"])
    parallelize_module(model, mesh["tp"], {"lm_head": ColwiseParallel(output_layouts=Replicate())})
    return Trained(fully_shard(model, mesh=mesh["dp"]))


CASES = {
    "all kinds": lambda n: Distributed(flat(n), of_all_kinds),
    "two cuts of one axis": lambda n: Distributed(
        grid("a", "b"), lambda name: [Shard(0), Shard(0)]
    ),
    "some ranks": lambda n: Distributed(DeviceMesh("cpu", [1, 3]), lambda name: [Shard(0)]),
    "hsdp": lambda n: Distributed(grid("replicate", "shard"), lambda name: [Replicate(), Shard(0)]),
    "fsdp2": fsdp2,
    "fsdp over tp": fsdp_over_tp,
    "fsdp1": Flattened,
}


# ---- processes -----------------------------------------------------------------------------------


def report_to(pipe, work, *args):
    """Runs work(*args) and sends what it gave, or how it failed."""
    try:
        pipe.send(("done", work(*args)))
    except weir.WeirError as error:
        pipe.send(("refused", (type(error).__name__, error.status.name, str(error))))
    except BaseException:
        pipe.send(("failed", traceback.format_exc()))


def join_group(rank, n_ranks, store):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        store=dist.FileStore(store, n_ranks),
        rank=rank,
        world_size=n_ranks,
        timeout=datetime.timedelta(seconds=30),
    )


def run_rank(rank, n_ranks, given):
    """A trainer rank: registers once, publishes every version, waits for the engines."""
    join_group(rank, n_ranks, given["store"])
    holder = CASES[given["case"]](n_ranks)
    with weir.Trainer(**given["trainer"]) as trainer:
        trainer.register(holder.weights)
        for version in VERSIONS:
            full = holder.advance(version)
            if holder.gives_copies:
                trainer.register(holder.weights)
            if rank == 0:
                torch.save(full, f"{given['full']}-{version}.pt")
            dist.barrier()
            report = trainer.publish(version)
            trainer.wait(version, n_replicas=1)
    dist.destroy_process_group()
    return report.n_tensors


def run_worker(worker, n_workers, given):
    """A worker of an engine: installs every version and sends what it then holds."""
    held = {}
    with weir.Replica(worker=worker, name=f"engine-{worker}", **given["replica"]) as replica:
        replica.allocate()
        for version in VERSIONS:
            replica.install(version)
            held[version] = {
                name: (tensor.dtype.name, tensor.shape, bytes(memoryview(tensor.raw)))
                for name, tensor in replica.parameters.items()
            }
    return held


def run_wrong_rank(rank, n_ranks, given):
    """Ranks that do not agree: how register() ends on each of them."""
    join_group(rank, n_ranks, given["store"])
    mesh = flat(n_ranks)
    weights = dict(Distributed(mesh, lambda name: [Shard(0)]).weights)
    name = MOVED
    if given["wrong"] == "shape" and rank == 1:
        local = weights[name].to_local()
        shape = torch.Size((WIDTH + 2, HIDDEN))
        local = torch.zeros(WIDTH + 2 - (WIDTH + 2 + 1) // 2, HIDDEN, dtype=local.dtype)
        weights[name] = DTensor.from_local(
            local, mesh, [Shard(0)], run_check=False, shape=shape, stride=(HIDDEN, 1)
        )
    if given["wrong"] == "lacks" and rank == 1:
        del weights[name]
    if given["wrong"] == "mesh":
        given["trainer"]["mesh"] = "tp=2"
    if given["wrong"] == "missing" and rank == 1:
        return None
    with weir.Trainer(**given["trainer"]) as trainer:
        trainer.register(weights)
    return None


class Lines:
    """A stdout whose lines go to a pipe."""

    def __init__(self, pipe):
        self.pipe = pipe
        self.begun = ""

    def write(self, text):
        *lines, self.begun = (self.begun + text).split("\n")
        for line in lines:
            self.pipe.send(line)

    def flush(self):
        pass


def run_example(pipe, rank, n_ranks, given):
    """examples/python/fsdp_publish.py as torchrun starts it."""
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(n_ranks), LOCAL_RANK=str(rank))
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(given["port"]))
    sys.path.insert(0, given["folder"])
    sys.argv = ["fsdp_publish.py", "--steps", str(given["steps"])]
    with contextlib.redirect_stdout(Lines(pipe)):
        try:
            runpy.run_path(os.path.join(given["folder"], "fsdp_publish.py"), run_name="__main__")
            print("done")
        except BaseException:
            print("failed", traceback.format_exc())
