# SPDX-License-Identifier: Apache-2.0
"""fsdp_publish.py - FSDP2 ranks that publish every step, each the rows that it holds.

    torchrun --nproc-per-node 3 fsdp_publish.py      prints its directory's address, then each step
    python serve_replica.py --directory ADDRESS      elsewhere: the engine that it waits for

Three ranks hold a third of every weight: of 64 rows 22, 22 and 20. None of them gathers a weight to
publish it. They tell each other once which rows they have, and each converts its own; where a block
of the engine's FP8 scales lies on two ranks, they hand each other what the scale needs.
"""
from __future__ import annotations

import argparse
from contextlib import nullcontext

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import weir
from tiny_lm import CONFIG, TinyLM, batch


def address_of(directory: weir.Directory | None) -> str:
    """The first rank's directory, on every rank."""
    address = [directory.address if directory is not None else None]
    dist.broadcast_object_list(address)
    return str(address[0])


def train(trainer: weir.Trainer, rank: int, n_ranks: int, n_steps: int) -> None:
    torch.manual_seed(1)
    model = TinyLM()
    fully_shard(model, mesh=init_device_mesh("cpu", (n_ranks,)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    trainer.register(model)  # waits for the other ranks
    for shard in weir.shards_of("lm_head.weight", model.lm_head.weight):
        print(f"rank {rank} holds rows {shard.lo[0]} to {shard.hi[0]} of lm_head", flush=True)
    for step in range(1, n_steps + 1):
        loss = model.loss(batch(32, 32, seed=step * n_ranks + rank))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        report = trainer.publish(step)
        trainer.wait(step, n_replicas=1)
        print(f"step {step}, rank {rank}: loss {loss.item():.4f}, {report.n_bytes} bytes published",
              flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=100)
    args = parser.parse_args()
    dist.init_process_group("gloo")
    rank, n_ranks = dist.get_rank(), dist.get_world_size()
    with weir.Directory() if rank == 0 else nullcontext() as directory:
        address = address_of(directory)
        if rank == 0:
            print("directory", address, flush=True)
        with weir.Trainer("counter", config=CONFIG, directory=address) as trainer:
            train(trainer, rank, n_ranks, args.steps)
        dist.barrier()  # the directory outlives the trainers that are registered there
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
