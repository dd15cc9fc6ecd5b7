# SPDX-License-Identifier: Apache-2.0
"""Stand-ins of DTensors for any rank of any mesh, without a process group: split by torch's own
placements, from left to right."""

from __future__ import annotations

from torch.distributed.tensor import Replicate, Shard
from torch.distributed.tensor.placement_types import _StridedShard


class Mesh:
    """What shards.py asks of a DeviceMesh."""

    mesh_dim_names = None

    def __init__(self, sizes, at):
        self.sizes, self.at = sizes, at

    def size(self, dim):
        return self.sizes[dim]

    def get_coordinate(self):
        return self.at


class Placed:
    """What shards.py asks of a DTensor."""

    def __init__(self, shape, local, sizes, at, placed):
        self.shape = shape
        self.local = local
        self.device_mesh = Mesh(sizes, at)
        self.placements = tuple(placed)

    def to_local(self):
        return self.local


def split(tensor, sizes, at, placed):
    """The local tensor as torch's placements split it, from left to right."""
    for size, index, placement in zip(sizes, at, placed):
        if not placement.is_replicate():
            pieces, _ = placement._split_tensor(tensor, size, with_padding=False)
            tensor = pieces[index]
    return tensor.contiguous()


def random_placement(generator, n_axes, strided_axes=None):
    kind = generator.choice(("replicate", "shard", "shard", "strided"))
    axis = generator.randrange(n_axes)
    if kind == "replicate":
        return Replicate()
    if kind == "shard":
        return Shard(axis)
    if strided_axes is not None:
        axis = generator.choice(strided_axes)
    return _StridedShard(axis, split_factor=generator.choice((2, 3)))
