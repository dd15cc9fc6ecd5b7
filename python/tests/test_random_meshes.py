# SPDX-License-Identifier: Apache-2.0
"""Random meshes and placements of a mixture of experts, all ranks in one process: an engine holds
the bytes that it gets from one trainer with the whole tensors. Ranks are threads with a handle
each; their DTensors are stand-ins, split by torch's own placements.
"""

from __future__ import annotations

import itertools
import math
import random
import threading

import pytest

torch = pytest.importorskip("torch")

from placed_tensors import Placed, random_placement, split  # noqa: E402

import weir  # noqa: E402
from weir import shards  # noqa: E402

N_EXPERTS, HIDDEN, WIDTH, HEAD_DIM = 5, 160, 72, 32

CONFIG = {
    "model_type": "qwen3_moe",
    "torch_dtype": "bfloat16",
    "tie_word_embeddings": False,
    "hidden_size": HIDDEN,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": HEAD_DIM,
    "intermediate_size": WIDTH,
    "moe_intermediate_size": WIDTH,
    "num_experts": N_EXPERTS,
    "num_experts_per_tok": 2,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "vocab_size": 130,
}
LAYER = {
    "input_layernorm.weight": (HIDDEN,),
    "post_attention_layernorm.weight": (HIDDEN,),
    "self_attn.q_proj.weight": (4 * HEAD_DIM, HIDDEN),
    "self_attn.k_proj.weight": (2 * HEAD_DIM, HIDDEN),
    "self_attn.v_proj.weight": (2 * HEAD_DIM, HIDDEN),
    "self_attn.o_proj.weight": (HIDDEN, 4 * HEAD_DIM),
    "self_attn.q_norm.weight": (HEAD_DIM,),
    "self_attn.k_norm.weight": (HEAD_DIM,),
    "mlp.gate.weight": (N_EXPERTS, HIDDEN),
    "mlp.experts.gate_up_proj": (N_EXPERTS, 2 * WIDTH, HIDDEN),
    "mlp.experts.down_proj": (N_EXPERTS, HIDDEN, WIDTH),
}
SHAPES = {
    "model.embed_tokens.weight": (130, HIDDEN),
    "model.norm.weight": (HIDDEN,),
    "lm_head.weight": (130, HIDDEN),
    **{f"model.layers.0.{name}": shape for name, shape in LAYER.items()},
}


def on_all_ranks(work, trainers, weights):
    """work(trainer, weights) of every rank at once: registering waits for the others."""
    problems = []

    def one(rank):
        try:
            work(trainers[rank], weights[rank])
        except weir.WeirError as error:
            problems.append(f"rank {rank}: {error}")

    threads = [threading.Thread(target=one, args=(rank,)) for rank in range(len(trainers))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []


def held_after(trainers, weights, conversion, address):
    """What an engine holds once all these ranks have published."""
    given = {"directory": address, "config": CONFIG, "conversion": conversion, "timeout": 30.0}

    def publish(trainer, named):
        trainer.register(named)
        trainer.publish(1)

    try:
        on_all_ranks(publish, trainers, weights)
        with weir.Replica("policy", n_threads=1, **given) as replica:
            replica.allocate()
            replica.install(1)
            return {name: bytes(tensor.raw) for name, tensor in replica.parameters.items()}
    finally:
        for trainer in trainers:
            trainer.close()


def open_ranks(n_ranks, conversion, address):
    options = {"config": CONFIG, "conversion": conversion, "timeout": 30.0, "n_threads": 1}
    if n_ranks > 1:
        options.update(n_ranks=n_ranks, mesh="explicit")
    return [
        weir.Trainer("policy", directory=address, rank=rank, **options) for rank in range(n_ranks)
    ]


@pytest.mark.parametrize("seed", range(9))
def test_an_engine_holds_the_bytes_of_one_trainer_with_everything(seed):
    generator = random.Random(seed)
    conversion = ("fp8_128x128", "bf16_cast", "cutlass_fp8_e4m3_per_channel")[seed % 3]
    sizes = generator.choice(((2,), (3,), (2, 2), (3, 2), (2, 3)))
    torch.manual_seed(seed)
    full = {name: torch.randn(shape).to(torch.bfloat16) for name, shape in SHAPES.items()}
    placed = {
        name: [random_placement(generator, len(shape), (0,)) for _ in sizes]
        for name, shape in SHAPES.items()
    }
    weights = []
    for at in itertools.product(*(range(n) for n in sizes)):
        weights.append([])
        for name, whole in full.items():
            local = split(whole, sizes, at, placed[name])
            dtensor = Placed(whole.shape, local, sizes, list(at), placed[name])
            held = shards._shards_of_dtensor(name, dtensor)
            weights[-1] += [(name, shard) for shard in held]
    with weir.Directory() as directory:
        ranks = open_ranks(math.prod(sizes), conversion, directory.address)
        sharded = held_after(ranks, weights, conversion, directory.address)
    with weir.Directory() as directory:
        ranks = open_ranks(1, conversion, directory.address)
        whole = held_after(ranks, [full], conversion, directory.address)
    assert set(sharded) == set(whole)
    different = [name for name in whole if sharded[name] != whole[name]]
    assert different == [], f"mesh {sizes}: {[(name, placed.get(name)) for name in different]}"
