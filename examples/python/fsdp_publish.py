# SPDX-License-Identifier: Apache-2.0
"""fsdp_publish.py - FSDP2 ranks that publish every step, each the rows that it holds.

Three ranks hold a third of every weight, 64 rows of some in 22, 22 and 20. None of them gathers a
weight to publish it: they tell each other once which rows they have, and the engine's FP8 matrices,
whose blocks of scales lie on two ranks, are converted where the rows are.

    python fsdp_publish.py        needs weir and torch; ranks on CPUs, and an engine beside them
"""
from __future__ import annotations

import argparse
import tempfile

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import weir
from tiny_engine import engine_logits, engine_parameters
from tiny_lm import CONFIG, TinyLM, batch


def trainer_rank(rank: int, n_ranks: int, store: str, directory: str, n_steps: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=n_ranks)
    torch.manual_seed(1)
    model = TinyLM()
    fully_shard(model, mesh=init_device_mesh("cpu", (n_ranks,)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    with weir.Trainer("counter", config=CONFIG, directory=directory) as trainer:
        trainer.register(model)  # waits for the other ranks
        for shard in weir.shards_of("lm_head.weight", model.lm_head.weight):
            print(f"rank {rank} holds rows {shard.lo[0]} to {shard.hi[0]} of lm_head", flush=True)
        for step in range(1, n_steps + 1):
            loss = model.loss(batch(16, 32, seed=step * n_ranks + rank))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            trainer.publish(step)
            trainer.wait(step, n_replicas=1)
    dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--ranks", type=int, default=3)
    parser.add_argument("--steps", type=int, default=50)
    args = parser.parse_args()
    parameters = engine_parameters("cpu")
    prompts = batch(8, 32, seed=0)
    with tempfile.TemporaryDirectory() as folder, weir.Directory() as directory:
        given = (args.ranks, f"{folder}/store", directory.address, args.steps)
        ranks = mp.spawn(trainer_rank, args=given, nprocs=args.ranks, join=False)
        with weir.Replica("counter", directory=directory.address, config=CONFIG) as replica:
            replica.register(parameters)
            for report in replica.watch():
                logits = engine_logits(parameters, prompts[:, :-1])
                loss = F.cross_entropy(logits.flatten(0, 1), prompts[:, 1:].flatten())
                print(f"version {report.version}: the engine's loss is {loss:.4f}", flush=True)
                if report.version == args.steps:
                    break
        ranks.join()


if __name__ == "__main__":
    main()
