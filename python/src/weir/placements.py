# SPDX-License-Identifier: Apache-2.0
"""Which part of an axis a rank holds, and which boxes that makes of a tensor: pure arithmetic.

An axis is held as ranges [lo, hi) of the whole tensor's axis, in the order of the rank's memory.
Every mesh dimension that shards the axis is a `Cut`; a rank stands at one index of each. Chunks are
torch's: ceil(n / k) long, the last ones shorter or empty.

It knows no tensor and no torch: `weir.shards` reads those.
"""

from __future__ import annotations

import functools
import itertools
from typing import Iterator, List, NamedTuple, Optional, Sequence, Tuple

Range = Tuple[int, int]
Ranges = Tuple[Range, ...]


class Cut(NamedTuple):
    """A mesh dimension of `n` ranks that shards an axis.

    `split_factor` is that of torch's `_StridedShard`: the axis is cut into so many chunks, each of
    them into n, and a rank holds its piece of every chunk; 1 for a plain `Shard`.
    """

    n: int
    split_factor: int = 1


class Ambiguous(ValueError):
    """Two ways to read the placements put other rows on a rank and no size tells them apart."""


class TooManyBoxes(ValueError):
    """What a rank holds is contiguous in memory only in more boxes than are allowed."""


def length(ranges: Sequence[Range]) -> int:
    """How many indices the ranges have."""
    return sum(hi - lo for lo, hi in ranges)


def chunk(n: int, k: int, index: int) -> Range:
    """Chunk `index` of `k` of `n` things, as torch.chunk() has it; empty behind the end."""
    size = -(-n // k)
    return min(n, size * index), min(n, size * (index + 1))


# ---- one axis ------------------------------------------------------------------------------------


def _select(ranges: Sequence[Range], first: int, end: int) -> List[Range]:
    """The positions [first, end) of the ranges, counted in the order of memory."""
    out = []
    for lo, hi in ranges:
        a, b = max(first, 0), min(end, hi - lo)
        if a < b:
            out.append((lo + a, lo + b))
        first -= hi - lo
        end -= hi - lo
    return out


def _merge(ranges: Sequence[Range]) -> Ranges:
    out: List[Range] = []
    for lo, hi in ranges:
        if out and out[-1][1] == lo:
            out[-1] = (out[-1][0], hi)
        else:
            out.append((lo, hi))
    return tuple(out)


def _apply(ranges: Ranges, cut: Cut, index: int) -> Ranges:
    n = length(ranges)
    parts: List[Range] = []
    for piece in range(cut.split_factor):
        lo, hi = chunk(n, cut.split_factor, piece)
        first, end = chunk(hi - lo, cut.n, index)
        parts += _select(ranges, lo + first, lo + end)
    return _merge(parts)


def in_sequence(size: int, cuts: Sequence[Cut], at: Sequence[int]) -> Ranges:
    """What a rank holds when the cuts are made one after the other, as placements are defined."""
    ranges: Ranges = ((0, size),) if size > 0 else ()
    for cut, index in zip(cuts, at):
        ranges = _apply(ranges, cut, index)
    return ranges


def order_of(cuts: Sequence[Cut]) -> Optional[Tuple[int, ...]]:
    """The order in which plain cuts come to what strided ones say; None: there is no such order.

    A split factor is the number of shards that were there before: of cuts further right.
    """
    order: List[int] = []
    for i in reversed(range(len(cuts))):
        position, shards = 0, 1
        while shards != cuts[i].split_factor and position < len(order):
            shards *= cuts[order[position]].n
            position += 1
        if shards != cuts[i].split_factor:
            return None
        order.insert(position, i)
    return tuple(order)


def in_order(size: int, cuts: Sequence[Cut], at: Sequence[int], order: Sequence[int]) -> Ranges:
    """What a rank holds when plain chunks are made in that order of the cuts."""
    return in_sequence(size, [Cut(cuts[i].n) for i in order], [at[i] for i in order])


@functools.lru_cache(maxsize=4096)
def _sizes_tell(size: int, cuts: Tuple[Cut, ...], order: Tuple[int, ...]) -> bool:
    """Whether, wherever the two readings differ, the number of rows differs too. The same on all
    ranks, so that they refuse together."""
    for at in itertools.product(*(range(cut.n) for cut in cuts)):
        strided, plain = in_sequence(size, cuts, at), in_order(size, cuts, at, order)
        if strided != plain and length(strided) == length(plain):
            return False
    return True


def held_ranges(size: int, cuts: Sequence[Cut], at: Sequence[int], n_held: int) -> Ranges:
    """What a rank holds of an axis of `size`, standing at index at[i] of cuts[i]; it has n_held.

    `_StridedShard` says two things that agree only where the axis divides evenly: FSDP cuts what
    tensor parallelism has cut before (the right cut first), while torch.distributed.tensor defines
    placements from left to right. The size of the rank's own memory says which is meant. Raises
    Ambiguous where it could not, on every rank.
    """
    ranges = in_sequence(size, cuts, at)
    n_shards = 1
    for cut in cuts:
        n_shards *= max(cut.n, cut.split_factor)
    if size % n_shards == 0 or all(cut.split_factor == 1 for cut in cuts):
        return ranges
    order = order_of(cuts)
    if order is None:
        return ranges
    if not _sizes_tell(size, tuple(cuts), order):
        raise Ambiguous(f"{size} rows")
    plain = in_order(size, cuts, at, order)
    return plain if length(plain) == n_held else ranges


# ---- all axes ------------------------------------------------------------------------------------


class Part(NamedTuple):
    """A box of the whole tensor and where it lies in the rank's own tensor: ranges per axis."""

    box: Tuple[Range, ...]
    local: Tuple[Range, ...]


def _singles(ranges: Sequence[Range]) -> Ranges:
    return tuple((i, i + 1) for lo, hi in ranges for i in range(lo, hi))


def _with_places(ranges: Sequence[Range]) -> Iterator[Tuple[Range, Range]]:
    place = 0
    for lo, hi in ranges:
        yield (lo, hi), (place, place + hi - lo)
        place += hi - lo


def parts_of(axes: Sequence[Ranges], most: int) -> List[Part]:
    """Boxes that are contiguous in a row-major tensor of the axes' lengths, in its order.

    Axes in front of one that has several ranges are taken index by index, for the memory between
    two of its ranges is another range's. Raises TooManyBoxes beyond `most`.
    """
    if any(not ranges for ranges in axes):
        return []
    last_cut = max((i for i, ranges in enumerate(axes) if len(ranges) > 1), default=0)
    n_boxes = len(axes[last_cut]) if axes else 1
    for ranges in axes[:last_cut]:
        n_boxes *= length(ranges)
    if n_boxes > most:
        raise TooManyBoxes(f"{n_boxes} boxes, at most {most} are taken")
    fine = [_singles(r) if i < last_cut else r for i, r in enumerate(axes)]
    return [
        Part(tuple(box for box, _ in choice), tuple(place for _, place in choice))
        for choice in itertools.product(*(list(_with_places(ranges)) for ranges in fine))
    ]
