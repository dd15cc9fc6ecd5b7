# SPDX-License-Identifier: Apache-2.0
"""train_publish.py - a training loop that publishes every step.

    python train_publish.py                       prints its directory's address, then each step
    python serve_replica.py --directory ADDRESS   elsewhere: the replica that it waits for
"""
import argparse

import torch

import weir
from tiny_lm import CONFIG, TinyLM, batch

parser = argparse.ArgumentParser()
parser.add_argument("--device", default="cpu")
parser.add_argument("--steps", type=int, default=100)
parser.add_argument("--replicas", type=int, default=1, help="that each step waits for")
args = parser.parse_args()

torch.manual_seed(1)
model = TinyLM().to(args.device)
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
with weir.Trainer("counter", config=CONFIG) as trainer:
    trainer.register(model)
    print("directory", trainer.directory, flush=True)
    for step in range(1, args.steps + 1):
        loss = model.loss(batch(32, 32, seed=step).to(args.device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        report = trainer.publish(step)
        trainer.wait(step, n_replicas=args.replicas)
        print(f"step {step}: loss {loss.item():.4f}, {report.n_bytes} bytes published", flush=True)
