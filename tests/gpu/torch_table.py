# SPDX-License-Identifier: Apache-2.0
"""torch_table.py - what the checks beside it share: a table of results, and torch on a device.

A row is "PASS", "FAIL" or "SKIP", a name, and figures. What raises inside `check()` has failed.
"""
from __future__ import annotations

import contextlib
import ctypes
import sys
import traceback
from typing import Iterator

import torch


class Table:
    def __init__(self) -> None:
        self.n_failed = 0

    def row(self, result: str, name: str, words: str) -> None:
        self.n_failed += result == "FAIL"
        print(f"{result:5} {name:40} {words}", flush=True)

    def skip(self, name: str, why: str) -> None:
        self.row("SKIP", name, why)

    @contextlib.contextmanager
    def check(self, name: str) -> Iterator[list[str]]:
        """The list takes the words of the row."""
        words: list[str] = []
        try:
            yield words
        except Exception as error:
            traceback.print_exc()
            self.row("FAIL", name, (str(error).splitlines() or [repr(error)])[0][:200])
        else:
            self.row("PASS", name, ", ".join(words))

    def end(self) -> None:
        sys.exit(1 if self.n_failed else 0)


def same_bytes(a: torch.Tensor, b: torch.Tensor) -> bool:
    """-0 and 0 differ, a NaN equals itself."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    flat = [t.contiguous().view(-1).view(torch.uint8).to("cpu") for t in (a, b)]
    return torch.equal(*flat)


def random_weights(shape: tuple[int, ...], dtype: torch.dtype, seed: int,
                   device: str = "cpu") -> torch.Tensor:
    """Made on the device: the same on every device of one kind."""
    generator = torch.Generator(device=device).manual_seed(seed)
    made = torch.randn(shape, generator=generator, device=device, dtype=torch.float32)
    return made.mul_(0.02).to(dtype)


def synchronize(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def bytes_in_use(device: str) -> int:
    """Of the whole GPU, whoever uses them; of this process' resident memory on a CPU."""
    if device.startswith("cuda"):
        free, total = torch.cuda.mem_get_info(device)
        return total - free
    ctypes.CDLL(None).malloc_trim(0)
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * 4096
