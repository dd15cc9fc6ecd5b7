# SPDX-License-Identifier: Apache-2.0
"""Parts of tensors that a rank holds: torch's `DTensor` and `ShardedTensor` become `Shard`s.

A shard's `local` is a view of the rank's own memory, never a copy, so that what an optimizer writes
is what is published. Which boxes those are follows from placements and mesh (`weir.placements`);
no rank is asked. Whether all ranks together hold the whole model is found out by
`weir_trainer_register_shards()`, which refuses gaps and overlaps on every rank.

torch is looked up in `sys.modules`, never imported: who hands in a DTensor has imported it.
"""

from __future__ import annotations

import operator
import sys
from dataclasses import dataclass
from typing import Any, Dict, List, Optional, Sequence, Tuple

from weir import placements
from weir.errors import CallError, Status
from weir.placements import Cut, Ranges

# Of one tensor on one rank. Each is a line of what ranks tell each other.
MAX_BOXES = 1024


@dataclass(frozen=True)
class Shard:
    """A part of a tensor: the box lo[i] <= index < hi[i] of a tensor of `global_shape`.

    `local` is whatever `weir.tensor()` takes: contiguous, of shape hi - lo.
    """

    local: Any
    global_shape: Tuple[int, ...]
    lo: Tuple[int, ...]
    hi: Tuple[int, ...]

    def __post_init__(self) -> None:
        for field in ("global_shape", "lo", "hi"):
            object.__setattr__(self, field, tuple(int(n) for n in getattr(self, field)))
        fits = len(self.lo) == len(self.hi) == len(self.global_shape) and all(
            0 <= lo <= hi <= n for lo, hi, n in zip(self.lo, self.hi, self.global_shape)
        )
        if not fits:
            raise CallError(
                f"box from {list(self.lo)} to {list(self.hi)} is no part of shape "
                f"{list(self.global_shape)}"
            )

    @property
    def shape(self) -> Tuple[int, ...]:
        """Of the box."""
        return tuple(hi - lo for lo, hi in zip(self.lo, self.hi))


# ---- what torch has ------------------------------------------------------------------------------


def _torch_class(class_name: str, *modules: str) -> Optional[type]:
    """A class of a module that somebody has imported."""
    for name in modules:
        found = getattr(sys.modules.get(name), class_name, None)
        if isinstance(found, type):
            return found
    return None


def _is_a(obj: object, class_name: str, *modules: str) -> bool:
    found = _torch_class(class_name, *modules)
    return found is not None and isinstance(obj, found)


def is_dtensor(obj: object) -> bool:
    """Whether it is a torch DTensor; False, without importing torch, where torch is not loaded."""
    return _is_a(obj, "DTensor", "torch.distributed.tensor", "torch.distributed._tensor")


def _is_sharded_tensor(obj: object) -> bool:
    return _is_a(obj, "ShardedTensor", "torch.distributed._shard.sharded_tensor")


def is_sharded(obj: object) -> bool:
    """Whether shards_of() has more to say of it than that it is whole."""
    return isinstance(obj, Shard) or is_dtensor(obj) or _is_sharded_tensor(obj)


def torch_ranks() -> Optional[Tuple[int, int]]:
    """(rank, n_ranks) of torch.distributed's default group; None where there is none."""
    distributed: Any = sys.modules.get("torch.distributed")
    if distributed is None or not distributed.is_available() or not distributed.is_initialized():
        return None
    return int(distributed.get_rank()), int(distributed.get_world_size())


def refuse_flat_parameters(module: Any) -> None:
    """ERR_UNSUPPORTED for a module that FSDP1 has wrapped: its parameters are pieces of flat ones,
    which say nothing of rows and columns, and its state_dict() gathers the whole model."""
    for name, part in module.named_modules():
        if _is_a(part, "FullyShardedDataParallel", "torch.distributed.fsdp"):
            raise CallError(
                f"{name or 'the module'}: FullyShardedDataParallel (FSDP1) flattens parameters: "
                "use fully_shard() (FSDP2), or register model.state_dict() taken under "
                "FSDP.state_dict_type(model, StateDictType.SHARDED_STATE_DICT) for each version",
                Status.ERR_UNSUPPORTED,
            )


# ---- DTensor -------------------------------------------------------------------------------------


_LOCAL = operator.attrgetter("_local_tensor")
_SPEC = operator.attrgetter("_spec")
_SHAPE = operator.attrgetter("shape")
_DTYPE = operator.attrgetter("dtype")


def _waited(name: str, dtensor: Any) -> Any:
    """This rank's memory, once what was still under way is there."""
    torch: Any = sys.modules["torch"]
    with torch.no_grad():
        local = dtensor.to_local()
    if _is_a(local, "AsyncCollectiveTensor", "torch.distributed._functional_collectives"):
        local = local.wait()
    local = local.detach()
    if type(local) is not torch.Tensor:
        raise CallError(
            f"{name}: its local tensor is a {type(local).__name__}, not a torch.Tensor with memory "
            "of its own",
            Status.ERR_UNSUPPORTED,
        )
    return local


def local_tensor(name: str, dtensor: Any) -> Any:
    """This rank's memory of a DTensor, detached: the public to_local() takes many times as long,
    and is asked only where what is there is no plain tensor."""
    local = dtensor._local_tensor
    return local.detach() if type(local) is sys.modules["torch"].Tensor else _waited(name, dtensor)


def look_at_locals(dtensors: Sequence[Any]) -> Tuple[List[int], List[List[Any]]]:
    """Where the ranks' memory of DTensors lies by now, and columns of what they look like: while
    those are equal and the device is, a DTensor's boxes are those it had. Below a microsecond
    each, for which nothing is made of one DTensor that a map can make of all."""
    torch: Any = sys.modules["torch"]
    locals_ = list(map(_LOCAL, dtensors))
    addresses = list(map(torch.Tensor.data_ptr, locals_))
    if 0 in addresses:
        for i, local in enumerate(locals_):
            if addresses[i] == 0 and local.numel() > 0:  # behind a wrapper
                addresses[i] = int(local_tensor("a DTensor", dtensors[i]).data_ptr())
    is_contiguous = list(map(torch.Tensor.is_contiguous, locals_))
    return addresses, [
        list(map(_SPEC, dtensors)),
        list(map(_SHAPE, locals_)),
        list(map(_DTYPE, locals_)),
        is_contiguous,
    ]


def _mesh_dim(mesh: Any, dim: int) -> str:
    names = getattr(mesh, "mesh_dim_names", None)
    return f"mesh dimension {dim}" + (f" ({names[dim]})" if names else "")


def _sharded_axis(name: str, dtensor: Any, mesh_dim: int) -> Optional[int]:
    """The axis that a mesh dimension shards, None: all its ranks hold the same."""
    placement = dtensor.placements[mesh_dim]
    where = _mesh_dim(dtensor.device_mesh, mesh_dim)
    if placement.is_replicate():
        return None
    if placement.is_partial():
        raise CallError(
            f"{name}: {placement} on {where}: a partial sum is no weight yet, reduce it first: "
            "redistribute(placements=[...]) to Replicate() or Shard(dim)",
            Status.ERR_UNSUPPORTED,
        )
    axis = getattr(placement, "dim", None)
    n_axes = len(dtensor.shape)
    if type(placement).__name__ not in ("Shard", "_StridedShard") or not isinstance(axis, int):
        raise CallError(
            f"{name}: {placement} on {where}: only Replicate and Shard say which box a rank holds: "
            "redistribute(placements=[...]) to those",
            Status.ERR_UNSUPPORTED,
        )
    if not -n_axes <= axis < n_axes:
        raise CallError(f"{name}: {placement} on {where}, of {n_axes} axes")
    return axis % n_axes


def _mesh_order(dtensor: Any, sharded: List[int]) -> List[int]:
    """Sharding mesh dimensions in the order in which they cut: from left to right, unless the
    DTensor has a shard order of its own."""
    given = getattr(getattr(dtensor, "_spec", None), "shard_order", None) or ()
    order = [int(mesh_dim) for entry in given for mesh_dim in entry.mesh_dims]
    return order if sorted(order) == sharded else sharded


def _held_axes(name: str, dtensor: Any, local: Any, at: Sequence[int]) -> List[Ranges]:
    """The ranges of every axis that the rank at mesh coordinate `at` holds."""
    cuts: Dict[int, List[Tuple[Cut, int]]] = {}
    sharded_axes = {}
    for mesh_dim in range(len(dtensor.placements)):
        axis = _sharded_axis(name, dtensor, mesh_dim)
        if axis is not None:
            sharded_axes[mesh_dim] = axis
    for mesh_dim in _mesh_order(dtensor, list(sharded_axes)):
        split_factor = int(getattr(dtensor.placements[mesh_dim], "split_factor", 1))
        cut = Cut(int(dtensor.device_mesh.size(mesh_dim)), split_factor)
        cuts.setdefault(sharded_axes[mesh_dim], []).append((cut, int(at[mesh_dim])))
    held = []
    for axis, size in enumerate(dtensor.shape):
        pairs = cuts.get(axis, [])
        n_local = int(local.shape[axis]) if axis < local.ndim else 0
        try:
            held.append(
                placements.held_ranges(
                    int(size), [cut for cut, _ in pairs], [index for _, index in pairs], n_local
                )
            )
        except placements.Ambiguous as problem:
            raise CallError(
                f"{name}: {_layout(dtensor)} of shape {list(dtensor.shape)} does not say which "
                f"rows of axis {axis} a rank holds, for tensor parallelism does not divide it: pad "
                "it or replicate it over one of the mesh dimensions",
                Status.ERR_UNSUPPORTED,
            ) from problem
    return held


def _layout(dtensor: Any) -> str:
    mesh = dtensor.device_mesh
    sizes = ", ".join(str(mesh.size(dim)) for dim in range(len(dtensor.placements)))
    return f"[{', '.join(str(p) for p in dtensor.placements)}] on a mesh of ({sizes})"


def _shards_of_dtensor(name: str, dtensor: Any) -> List[Shard]:
    at = dtensor.device_mesh.get_coordinate()
    if at is None:
        return []
    local = _waited(name, dtensor)
    axes = _held_axes(name, dtensor, local, at)
    lengths = tuple(placements.length(ranges) for ranges in axes)
    if 0 in lengths and local.numel() == 0:
        return []
    if lengths != tuple(local.shape):
        raise CallError(
            f"{name}: its local tensor has shape {list(local.shape)}, but {_layout(dtensor)} puts "
            f"{list(lengths)} of {list(dtensor.shape)} at coordinate {list(at)}"
        )
    try:
        parts = placements.parts_of(axes, MAX_BOXES)
    except placements.TooManyBoxes as problem:
        raise CallError(
            f"{name}: {_layout(dtensor)} leaves a rank with pieces that are contiguous only as "
            f"{problem}: strided shards are taken of axis 0 (shard_placement_fn of fully_shard()), "
            "or redistribute() to plain Shards",
            Status.ERR_UNSUPPORTED,
        ) from problem
    shape = tuple(dtensor.shape)
    shards = []
    for part in parts:
        view = local[tuple(slice(lo, hi) for lo, hi in part.local)] if len(parts) > 1 else local
        lo, hi = tuple(r[0] for r in part.box), tuple(r[1] for r in part.box)
        shards.append(Shard(view, shape, lo, hi))
    return shards


# ---- ShardedTensor -------------------------------------------------------------------------------


def _shards_of_sharded_tensor(sharded: Any) -> List[Shard]:
    shape = tuple(sharded.metadata().size)
    shards = []
    for piece in sharded.local_shards():
        lo = tuple(piece.metadata.shard_offsets)
        hi = tuple(a + n for a, n in zip(lo, piece.metadata.shard_sizes))
        if all(a < b for a, b in zip(lo, hi)):
            shards.append(Shard(piece.tensor.detach(), shape, lo, hi))
    return shards


def shards_of(name: str, value: Any) -> List[Shard]:
    """What this rank holds of `value`, in the order of its memory; an empty list: nothing.

    `value` is a DTensor, a ShardedTensor, a `Shard`, or any array, which is whole then. The views
    are the rank's own memory. ERR_UNSUPPORTED for placements that no box describes (a partial sum,
    strided shards of inner axes), ERR_INVALID where local tensor and placements disagree; `name`
    stands first in the message.
    """
    if isinstance(value, Shard):
        return [value]
    if is_dtensor(value):
        return _shards_of_dtensor(name, value)
    if _is_sharded_tensor(value):
        return _shards_of_sharded_tensor(value)
    shape = tuple(int(n) for n in value.shape)
    return [Shard(value, shape, (0,) * len(shape), shape)]
