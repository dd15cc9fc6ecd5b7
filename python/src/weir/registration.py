# SPDX-License-Identifier: Apache-2.0
"""The weights that a trainer has registered: the C array of them, and whether they have moved.

Names and memory are kept here for as long as the C library keeps pointers to them.
"""

from __future__ import annotations

import ctypes
import operator
import sys
from array import array
from collections.abc import Mapping
from typing import Any, Dict, List, Optional, Tuple

from weir import abi, shards
from weir.errors import CallError
from weir.tensors import Addresses, Tensor, shape_to_abi, tensor

_KIND = operator.attrgetter("dtype", "shape", "device")

Named = List[Tuple[str, Any]]
_Place = Tuple[int, int, Any]  # which tensor, its address, whose memory that is
_Box = Tuple[Tuple[int, ...], Tuple[int, ...], Tuple[int, ...]]  # global shape, lo, hi


def is_module(weights: Any) -> bool:
    """Whether it is a torch.nn.Module, of a torch that somebody has imported."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(weights, torch.nn.Module)


def _of_module(module: Any) -> Named:
    """Parameters and persistent buffers. Tied ones are one object under several names."""
    named: Dict[int, Tuple[str, Any]] = {}
    torch: Any = sys.modules["torch"]
    for name, value in module.state_dict(keep_vars=True).items():
        if isinstance(value, torch.Tensor):  # the rest are extra states
            named.setdefault(id(value), (name.replace("_orig_mod.", ""), value))
    return list(named.values())


def named_weights(weights: Any) -> Named:
    """Pairs of name and array of whatever ``Trainer.register()`` takes."""
    if is_module(weights):
        return _of_module(weights)
    pairs = weights.items() if isinstance(weights, Mapping) else weights
    named = []
    try:
        for name, value in pairs:
            if not isinstance(name, str):
                raise CallError(f"weights: a name is {name!r}, not a text")
            named.append((name, value))
    except (TypeError, ValueError) as error:
        raise CallError(
            f"weights: {type(weights).__name__} is no torch module, mapping or iterable of names "
            f"and arrays: {error}"
        ) from error
    return named


def _describe(name: str, value: Any) -> Tuple[List[Tensor], List[_Box]]:
    """What a rank holds of an array: contiguous memory and its boxes."""
    if not isinstance(value, shards.Shard) and not shards.is_sharded(value):
        whole = tensor(value, name=name)
        return [whole], [(whole.shape, (0,) * len(whole.shape), whole.shape)]
    tensors, boxes = [], []
    for part in shards.shards_of(name, value):
        local = tensor(part.local, name=name)
        if local.shape != part.shape:
            raise CallError(
                f"{name}: memory of shape {list(local.shape)} for the box from "
                f"{list(part.lo)} to {list(part.hi)} of {list(part.global_shape)}"
            )
        tensors.append(local)
        boxes.append((part.global_shape, part.lo, part.hi))
    return tensors, boxes


def _differing(now: List[Any], before: List[Any]) -> List[int]:
    if now == before:
        return []
    return [i for i, (one, other) in enumerate(zip(now, before)) if one != other]


def _address_column(structs: Any, offset: int) -> memoryview:
    """The pointers at ``offset`` of an array of C structs, as integers that can be written at once:
    one attribute of one struct after the other takes longer than all else of telling C anew."""
    flat = (ctypes.c_ubyte * ctypes.sizeof(structs)).from_buffer(structs)
    step = ctypes.sizeof(structs._type_) // ctypes.sizeof(ctypes.c_void_p)
    return memoryview(flat).cast("B").cast("Q")[offset // ctypes.sizeof(ctypes.c_void_p) :: step]


class Registration:
    """Arrays as C structs: ``array`` of ``n`` weir_tensor, or of weir_tensor_shard.

    Raises :class:`weir.CallError` naming the first array that cannot be taken; nothing else has
    happened then. When memory moves, addresses are all that is written anew: names, boxes and
    shapes stay what they were.
    """

    def __init__(self, named: Named, *, is_sharded: bool) -> None:
        self.is_sharded = is_sharded
        self._tensors: List[Tensor] = []
        self._boxes: List[_Box] = []  # of each, when they are shards
        self._plain: List[int] = []  # which of them are no DTensor's
        self._dtensors = [pair for pair in named if is_sharded and shards.is_dtensor(pair[1])]
        self._entries: List[range] = []  # of each DTensor: which of the tensors are its boxes
        # Before the views are taken: what is replaced meanwhile is seen as another.
        self._bases, self._looks = self._look_at_dtensors()
        for name, value in named:
            first = len(self._tensors)
            if is_sharded:
                tensors, boxes = _describe(name, value)
                self._tensors += tensors
                self._boxes += boxes
            else:
                self._tensors.append(tensor(value, name=name))
            added = range(first, len(self._tensors))
            if is_sharded and shards.is_dtensor(value):
                self._entries.append(added)
            else:
                self._plain += added
        self._book = Addresses([self._tensors[i] for i in self._plain])
        self._now = [described.address for described in self._tensors]
        self._told = list(self._now)  # the addresses that C has
        for i, entries in enumerate(self._entries):
            if entries:
                self._bases[i] = self._now[entries.start]
        self.n = len(self._tensors)
        self.is_on_gpu = any(not described.is_host for described in self._tensors)
        self.array = self._shard_array() if is_sharded else self._tensor_array()
        self._column = _address_column(self.array, abi.weir_tensor.data.offset)

    def _tensor_array(self) -> Any:
        return (abi.weir_tensor * self.n)(*(described.to_abi() for described in self._tensors))

    def _shard_array(self) -> Any:
        structs = (abi.weir_tensor_shard * self.n)()
        for entry, (global_shape, lo, hi), local in zip(structs, self._boxes, self._tensors):
            entry.local = local.to_abi()
            entry.global_shape = shape_to_abi(global_shape)
            entry.box.rank = len(lo)
            entry.box.lo[: len(lo)] = lo
            entry.box.hi[: len(hi)] = hi
        return structs

    # ---- what has moved --------------------------------------------------------------------------

    def has_moved(self) -> bool:
        """Whether a tensor lies elsewhere than C was told. Raises as moved() does."""
        if self._book.look():
            for place, address in zip(self._plain, self._book.now):
                self._now[place] = address
        self._follow_dtensors()
        return self._now != self._told

    def moved(self) -> "Optional[Registration]":
        """None when every tensor lies where C was told; else itself, with the addresses of now.

        ERR_LAYOUT or ERR_INVALID names a tensor that is not what it was; C's structs have not
        changed then. About a microsecond per tensor, and some more for each DTensor that moved.
        """
        if not self.has_moved():
            return None
        self._column[:] = memoryview(array("Q", self._now))
        return self

    def note_told(self) -> None:
        """C has taken the addresses that the structs have."""
        self._told = self._column.tolist()

    def _look_at_dtensors(self) -> Tuple[List[int], List[List[Any]]]:
        if not self._dtensors:
            return [], []
        return shards.look_at_locals([dtensor for _, dtensor in self._dtensors])

    def _follow_dtensors(self) -> None:
        bases, looks = self._look_at_dtensors()
        if bases == self._bases and looks == self._looks:
            return
        others = {i for pair in zip(looks, self._looks) for i in _differing(*pair)}
        found: List[_Place] = []  # taken when all of them are what they were
        for i in sorted(others.union(_differing(bases, self._bases))):
            found += self._described_again(i) if i in others else self._moved_to(i, bases[i])
        for entry, address, owner in found:
            described = self._tensors[entry]
            described.address, described.owner = address, owner
            self._now[entry] = address
        self._bases, self._looks = bases, looks

    def _moved_to(self, i: int, base: int) -> List[_Place]:
        """All boxes of a DTensor are views of one memory, the first where that begins."""
        owner = shards.local_tensor(*self._dtensors[i])
        held = [(entry, self._tensors[entry]) for entry in self._entries[i]]
        if base == 0 or any(str(owner.device) != known.device for _, known in held):
            return self._described_again(i)
        shift = base - held[0][1].address if held else 0
        return [(entry, known.address + shift, owner) for entry, known in held]

    def _described_again(self, i: int) -> List[_Place]:
        name, dtensor = self._dtensors[i]
        entries = self._entries[i]
        tensors, boxes = _describe(name, dtensor)
        before = self._tensors[entries.start : entries.stop]
        if list(map(_KIND, tensors)) != list(map(_KIND, before)):
            raise CallError(
                f"{name}: {before!r} when it was registered, {tensors!r} by now: register it again"
            )
        if boxes != self._boxes[entries.start : entries.stop]:
            raise CallError(
                f"{name}: this rank holds other rows of it than it registered: register it again"
            )
        return [(entry, now.address, now.owner) for entry, now in zip(entries, tensors)]
