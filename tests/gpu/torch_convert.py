#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""torch_convert.py - weir.convert() of torch's tensors where they lie, against the CPU reference.

    torch_convert.py [DEVICE]        cuda:0 by default; cpu checks the same without a GPU

Needs torch, weir on PYTHONPATH and WEIR_LIBRARY. Prints a row per check.
"""
from __future__ import annotations

import sys
from typing import Any

import torch

import weir
from torch_table import Table, random_weights, same_bytes

KINDS = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
SHAPES: list[list[tuple[int, ...]]] = [
    [(128, 128)], [(300, 200)], [(1, 7)], [(129, 1)], [(640, 1024)], [(192, 136), (64, 136)],
    [(4, 130, 72)], [(3, 64, 128), (3, 64, 128)]]  # stacked experts


class OnlyDLPack:
    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor

    def __dlpack__(self, **wish: Any) -> Any:
        return self.tensor.__dlpack__(**wish)

    def __dlpack_device__(self) -> Any:
        return self.tensor.__dlpack_device__()


class OnlyCudaArray:
    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor

    @property
    def __cuda_array_interface__(self) -> Any:
        return self.tensor.__cuda_array_interface__


def sources_of(shapes: list[tuple[int, ...]], kind: torch.dtype) -> list[torch.Tensor]:
    """With what is rare in weights: a block of zeros, -0, and numbers of every size that fits."""
    made = [random_weights(shape, kind, seed) for seed, shape in enumerate(shapes)]
    first = made[0].view(-1)
    first[: first.numel() // 3] = 0
    for i, value in enumerate([-0.0, 1e-7, -6e-5, 3.0, -17.0, 1.17549435e-38, 60000.0]):
        first[(i * 131) % first.numel()] = value
    return made


def equal(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor], what: str) -> None:
    if sorted(found) != sorted(wanted):
        raise AssertionError(f"{what}: outputs {sorted(found)}, expected {sorted(wanted)}")
    for suffix, tensor in wanted.items():
        if not same_bytes(found[suffix], tensor):
            raise AssertionError(f"{what}: {suffix} differs from the CPU reference's")


def check_conversion(table: Table, conversion: Any, device: str) -> None:
    with table.check(f"convert {conversion.name}") as words:
        n_cases = 0
        for kind in (KINDS[str(getattr(s, "name", s))] for s in conversion.sources):
            for shapes in SHAPES:
                sources = sources_of(shapes, kind)
                if conversion.name == "neg_exp":
                    sources = [s.clamp(-80, 80) for s in sources]
                axis = len(shapes[0]) - 2
                there = [s.to(device) for s in sources]
                wanted = weir.convert(conversion.name, sources, axis=axis, reference=True)
                found = weir.convert(conversion.name, there, axis=axis)
                where = {str(t.device) for t in found.values()}
                if where != {device}:
                    raise AssertionError(f"outputs lie on {where}")
                equal(found, wanted, f"{kind} {shapes}")
                n_cases += 1
        words.append(f"{n_cases} cases, byte for byte")


def check_protocol(table: Table, name: str, wrap: Any, kind: torch.dtype, device: str) -> None:
    with table.check(name) as words:
        source = sources_of([(300, 200)], kind)[0]
        wanted = weir.convert("fp8_128x128", source, reference=True)
        out = {suffix: torch.empty_like(t, device=device) for suffix, t in wanted.items()}
        weir.convert("fp8_128x128", wrap(source.to(device)), out=out)
        equal(out, wanted, name)
        words.append(f"{kind}".replace("torch.", ""))


def check_streams(table: Table, device: str) -> None:
    source = sources_of([(640, 1024)], torch.bfloat16)[0]
    wanted = weir.convert("fp8_128x128", source, reference=True)
    stream = torch.cuda.Stream(device)
    for name, by_name in (("behind work of the current stream", False),
                          ("behind work of a stream that is named", True)):
        with table.check(name) as words:
            fresh, live = source.to(device), torch.zeros_like(source, device=device)
            torch.cuda.synchronize(device)
            with torch.cuda.stream(stream):  # who does not follow reads zeros
                torch.cuda._sleep(200_000_000)
                live.copy_(fresh)
                if not by_name:
                    found = weir.convert("fp8_128x128", live)
            if by_name:
                found = weir.convert("fp8_128x128", live, stream=stream.cuda_stream)
            stream.synchronize()
            equal(found, wanted, name)
            words.append("0.1 s of queued work")


def check_refusal(table: Table, device: str) -> None:
    with table.check("NaN is refused by name and index") as words:
        source = sources_of([(300, 200)], torch.bfloat16)[0].to(device)
        source[12, 34] = float("nan")
        try:
            weir.convert("fp8_128x128", source, names=["up_proj.weight"])
        except weir.CallError as error:
            if "up_proj.weight[12, 34] is NaN" not in str(error):
                raise AssertionError(f"it says: {error}") from error
            words.append(str(error))
        else:
            raise AssertionError("it was converted")


def main() -> None:
    device = sys.argv[1] if len(sys.argv) > 1 else "cuda:0"
    on_gpu = device.startswith("cuda")
    table = Table()
    for conversion in weir.formats():
        check_conversion(table, conversion, device)
    check_protocol(table, "by DLPack", OnlyDLPack, torch.bfloat16, device)
    if on_gpu:
        check_protocol(table, "by __cuda_array_interface__", OnlyCudaArray, torch.float16, device)
        check_streams(table, device)
    else:
        table.skip("by __cuda_array_interface__", "no GPU")
        table.skip("behind queued work of a stream", "no GPU")
    check_refusal(table, device)
    table.end()


if __name__ == "__main__":
    main()
