# SPDX-License-Identifier: Apache-2.0
"""follow_logits.py - a trainer and an engine in two processes, whose logits are equal.

The trainer teaches a small language model to count and publishes it after every few steps. The
engine holds fused FP8 matrices with a scale for each block of 128 x 128, which Weir fills in place.
After each version both compute the logits of one batch, the trainer from its own weights, quantised
by the lines of `quantise()`: they are equal bit for bit.

    python follow_logits.py                  needs weir and torch; nothing else is running
    python follow_logits.py --device cuda    both on a GPU; --engine-device cuda:1 for another one
"""
from __future__ import annotations

import argparse
import time
from multiprocessing.connection import Connection

import torch
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch import Tensor

import weir
from tiny_engine import BLOCK, engine_logits, engine_parameters, is_quantised, scale_name
from tiny_lm import CONFIG, TinyLM, batch, fused


def quantise(weight: Tensor) -> tuple[Tensor, Tensor]:
    """fp8_128x128 as docs/formats.md has it: codes of the matrix's shape, a scale per block."""
    rows, columns = weight.shape
    padded = F.pad(weight.bfloat16().float(), (0, -columns % BLOCK, 0, -rows % BLOCK))
    blocks = padded.unflatten(1, (-1, BLOCK)).unflatten(0, (-1, BLOCK))
    largest = blocks.abs().amax((1, 3), keepdim=True)
    scale = (largest * (1 / 448)).clamp(min=1e-12)
    codes = (blocks / scale).clamp(-448, 448).to(torch.float8_e4m3fn)
    return codes.view(padded.shape)[:rows, :columns].contiguous(), scale[:, 0, :, 0].contiguous()


def trainer_logits(model: TinyLM, tokens: Tensor) -> Tensor:
    """What an engine should compute, of the weights as they are here."""
    held: dict[str, Tensor] = {}
    for name, weight in fused(model.state_dict()).items():
        if is_quantised(name):
            held[name], held[scale_name(name)] = quantise(weight)
        else:
            held[name] = weight.bfloat16()
    return engine_logits(held, tokens)


def engine(directory: str, device: str, n_versions: int, pipe: Connection) -> None:
    parameters = engine_parameters(device)
    addresses = [held.data_ptr() for held in parameters.values()]
    prompts = batch(4, 32, seed=0).to(device)
    with weir.Replica("counter", directory=directory, config=CONFIG, install="direct") as replica:
        replica.register(parameters)
        pipe.send("ready")
        for report in replica.watch():
            pipe.send((report.version, engine_logits(parameters, prompts).cpu()))
            assert addresses == [held.data_ptr() for held in parameters.values()]
            if report.version == n_versions:
                break
        pipe.recv()  # until the trainer has read what this process shares with it


def train(model: TinyLM, optimizer: torch.optim.Optimizer, seeds: range, device: str) -> float:
    for seed in seeds:
        loss = model.loss(batch(32, 32, seed).to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return loss.item()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--engine-device")
    parser.add_argument("--versions", type=int, default=8)
    parser.add_argument("--steps", type=int, default=10, help="of the optimizer, per version")
    args = parser.parse_args()
    torch.manual_seed(1)
    model = TinyLM().to(args.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    prompts = batch(4, 32, seed=0).to(args.device)
    pipe, far_pipe = mp.Pipe()
    with weir.Trainer("counter", config=CONFIG) as trainer:
        trainer.register(model)
        place = (trainer.directory, args.engine_device or args.device, args.versions, far_pipe)
        other = mp.get_context("spawn").Process(target=engine, args=place, daemon=True)
        other.start()
        far_pipe.close()
        assert pipe.recv() == "ready"
        print("version    loss  max |difference|  refit ms")
        for version in range(1, args.versions + 1):
            seeds = range(args.steps * version, args.steps * (version + 1))
            loss = train(model, optimizer, seeds, args.device)
            begun = time.perf_counter()
            trainer.publish(version)
            trainer.wait(version, n_replicas=1)
            seconds = time.perf_counter() - begun
            held, theirs = pipe.recv()
            mine = trainer_logits(model, prompts).cpu()
            difference = (mine - theirs).abs().max().item()
            print(f"{held:7} {loss:7.4f} {difference:17g} {seconds * 1e3:9.1f}", flush=True)
            assert held == version and torch.equal(mine, theirs), "the logits differ"
        pipe.send("done")
        other.join(30)


if __name__ == "__main__":
    main()
