# SPDX-License-Identifier: Apache-2.0
"""The weights that a trainer has registered: the C array of them, and whether they have moved.

Names and memory are kept here for as long as the C library keeps pointers to them.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any, Dict, List, Optional, Tuple

from weir import abi, shards
from weir.errors import CallError
from weir.tensors import Addresses, Tensor, shape_to_abi, tensor

Named = List[Tuple[str, Any]]


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


class Registration:
    """Arrays as C structs: ``array`` of ``n`` weir_tensor, or of weir_tensor_shard.

    Raises :class:`weir.CallError` naming the first array that cannot be taken; nothing else has
    happened then.
    """

    def __init__(self, named: Named, *, is_sharded: bool) -> None:
        self.is_sharded = is_sharded
        self._named = named
        self._parts: List[shards.Shard] = []
        self._tensors: List[Tensor] = []
        self._dtensors = [value for _, value in named if shards.is_dtensor(value)]
        # Before the views are taken: a storage that is replaced meanwhile is seen as moved.
        self._locals = shards.local_addresses(self._dtensors)
        for name, value in named:
            if is_sharded:
                self._add_shards(name, value)
            else:
                self._tensors.append(tensor(value, name=name))
        self._book = Addresses(self._tensors)
        self._addresses = list(self._book.now)
        self.n = len(self._tensors)
        self.is_on_gpu = any(not described.is_host for described in self._tensors)
        self.array = self._shard_array() if is_sharded else self._tensor_array()

    def _add_shards(self, name: str, value: Any) -> None:
        if not isinstance(value, shards.Shard) and not shards.is_sharded(value):
            whole = tensor(value, name=name)
            self._add(shards.Shard(whole, whole.shape, (0,) * len(whole.shape), whole.shape), whole)
            return
        for part in shards.shards_of(name, value):
            self._add(part, tensor(part.local, name=name))

    def _add(self, part: shards.Shard, local: Tensor) -> None:
        if local.shape != part.shape:
            raise CallError(
                f"{local.name}: memory of shape {list(local.shape)} for the box from "
                f"{list(part.lo)} to {list(part.hi)} of {list(part.global_shape)}"
            )
        self._parts.append(part)
        self._tensors.append(local)

    def _tensor_array(self) -> Any:
        return (abi.weir_tensor * self.n)(*(described.to_abi() for described in self._tensors))

    def _shard_array(self) -> Any:
        array = (abi.weir_tensor_shard * self.n)()
        for entry, part, local in zip(array, self._parts, self._tensors):
            entry.local = local.to_abi()
            entry.global_shape = shape_to_abi(part.global_shape)
            entry.box.rank = len(part.lo)
            entry.box.lo[: len(part.lo)] = part.lo
            entry.box.hi[: len(part.hi)] = part.hi
        return array

    def has_moved(self) -> bool:
        """Whether a tensor lies elsewhere than C was told. Raises as moved() does."""
        if shards.local_addresses(self._dtensors) != self._locals:
            return True
        self._book.look()
        return self._book.now != self._addresses

    def moved(self) -> "Optional[Registration]":
        """None when every tensor lies where it lay; else the same weights where they lie now.

        ERR_LAYOUT or ERR_INVALID names a tensor that is not what it was; then nothing has changed.
        Below a microsecond per tensor when nothing has moved.
        """
        if not self.has_moved():
            return None
        if shards.local_addresses(self._dtensors) != self._locals:
            return self._again()
        for i, address in enumerate(self._book.now):
            if address != self._addresses[i]:
                entry = self.array[i].local if self.is_sharded else self.array[i]
                entry.data = address
        self._addresses = list(self._book.now)
        return self

    def _again(self) -> "Registration":
        again = Registration(self._named, is_sharded=self.is_sharded)
        for before, after in zip(self._tensors, again._tensors):
            if before.dtype is not after.dtype or before.shape != after.shape:
                raise CallError(
                    f"{before.name}: {before!r} when it was registered, {after!r} by now: register "
                    "it again"
                )
        return again
