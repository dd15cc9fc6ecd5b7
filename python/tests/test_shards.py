# SPDX-License-Identifier: Apache-2.0
"""Placements become boxes: against torch's own splitting, over random shapes and meshes.

No process group of several processes here: ranks are coordinates of a mesh that does not exist, or
torch's fake process group. What real groups do is in test_dtensor_processes.py.
"""

from __future__ import annotations

import itertools
import random
import subprocess
import sys

import pytest

torch = pytest.importorskip("torch")

import torch.distributed as dist  # noqa: E402
from placed_tensors import Placed, random_placement, split  # noqa: E402
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard  # noqa: E402
from torch.distributed.tensor.placement_types import _StridedShard  # noqa: E402

import weir  # noqa: E402
from weir import placements, shards  # noqa: E402
from weir.errors import CallError, Status  # noqa: E402
from weir.placements import Cut  # noqa: E402
from weir.registration import Registration  # noqa: E402

NAME = "model.layers.0.mlp.up_proj.weight"


def shards_at(whole, local, sizes, at, placed):
    return shards._shards_of_dtensor(NAME, Placed(whole.shape, local, sizes, list(at), placed))


def box_of(shard):
    return tuple(slice(lo, hi) for lo, hi in zip(shard.lo, shard.hi))


def check_ranks(whole, found):
    """The shards of all ranks cover the tensor, with its values, by boxes equal or disjoint."""
    covered = torch.zeros(whole.shape, dtype=torch.int32)
    seen = set()
    for shard in itertools.chain(*found):
        assert tuple(shard.local.shape) == shard.shape and shard.local.is_contiguous()
        assert torch.equal(shard.local, whole[box_of(shard)])
        if (shard.lo, shard.hi) not in seen:
            seen.add((shard.lo, shard.hi))
            covered[box_of(shard)] += 1
    assert bool((covered == 1).all())


def coordinates(sizes):
    return itertools.product(*(range(n) for n in sizes))


# ---- arithmetic ----------------------------------------------------------------------------------


def test_chunks_are_those_of_torch():
    for n in range(1, 40):
        for k in range(1, 12):
            ours = [placements.chunk(n, k, i) for i in range(k)]
            theirs = [len(piece) for piece in torch.arange(n).chunk(k)]
            assert [hi - lo for lo, hi in ours] == theirs + [0] * (k - len(theirs))
            assert ours[0][0] == 0 and all(a[1] == b[0] for a, b in zip(ours, ours[1:]))


def test_an_empty_axis_has_no_ranges():
    assert placements.held_ranges(0, [Cut(4)], [1], 0) == ()
    assert placements.parts_of([(), ((0, 3),)], 1) == []


@pytest.mark.parametrize("seed", range(150))
def test_boxes_of_all_ranks_are_the_tensor(seed):
    """Any shape, mesh and placements, uneven and empty chunks among them."""
    generator = random.Random(seed)
    shape = [generator.randrange(1, 14) for _ in range(generator.randrange(1, 4))]
    sizes = [generator.randrange(1, 4) for _ in range(generator.randrange(1, 4))]
    placed = [random_placement(generator, len(shape)) for _ in sizes]
    whole = torch.arange(torch.Size(shape).numel()).reshape(shape)
    found, refused = [], 0
    for at in coordinates(sizes):
        try:
            found.append(shards_at(whole, split(whole, sizes, at, placed), sizes, at, placed))
        except CallError as error:
            assert error.status == Status.ERR_UNSUPPORTED
            assert "does not say which rows" in str(error)
            refused += 1
    if refused:
        assert refused == len(list(coordinates(sizes))), "one rank refuses what another takes"
    else:
        check_ranks(whole, found)


def test_most_random_cases_are_taken():
    """So that the property test is none of refusals."""
    taken = 0
    for seed in range(150):
        generator = random.Random(seed)
        shape = [generator.randrange(1, 14) for _ in range(generator.randrange(1, 4))]
        sizes = [generator.randrange(1, 4) for _ in range(generator.randrange(1, 4))]
        placed = [random_placement(generator, len(shape)) for _ in sizes]
        whole = torch.arange(torch.Size(shape).numel()).reshape(shape)
        at = [0] * len(sizes)
        try:
            shards_at(whole, split(whole, sizes, at, placed), sizes, at, placed)
            taken += 1
        except CallError:
            pass
    assert taken > 120


# ---- FSDP over tensor parallelism ----------------------------------------------------------------


def fsdp_of_tp(whole, sizes, at):
    """What fully_shard() keeps of a tensor that tensor parallelism has cut: chunks of a chunk."""
    pieces = list(whole.chunk(sizes[1], 0))
    rows = pieces[at[1]] if at[1] < len(pieces) else whole[:0]
    pieces = list(rows.chunk(sizes[0], 0))
    return (pieces[at[0]] if at[0] < len(pieces) else whole[:0]).contiguous()


@pytest.mark.parametrize("sizes", [(2, 2), (3, 2), (3, 4), (4, 3)])
def test_fsdp_over_tp_has_one_box_or_is_refused_by_all(sizes):
    placed = [_StridedShard(0, split_factor=sizes[1]), Shard(0)]
    n_refused = 0
    for n_rows in range(1, 80):
        whole = torch.arange(n_rows * 3).reshape(n_rows, 3)
        found, refused = [], 0
        for at in coordinates(sizes):
            try:
                found.append(shards_at(whole, fsdp_of_tp(whole, sizes, at), sizes, at, placed))
            except CallError as error:
                assert "tensor parallelism does not divide it" in str(error)
                refused += 1
        assert refused in (0, sizes[0] * sizes[1])
        assert n_rows % sizes[1] != 0 or refused == 0
        n_refused += refused > 0
        if not refused:
            check_ranks(whole, found)
            assert all(len(held) <= 1 for held in found)
    assert n_refused == (1 if sizes == (3, 4) else 0)


def test_plain_shards_of_one_axis_are_cut_from_left_to_right():
    whole = torch.arange(8 * 2).reshape(8, 2)
    held = shards_at(whole, whole[4:6].clone(), (2, 2), (1, 0), [Shard(0), Shard(0)])
    assert [(s.lo, s.hi) for s in held] == [((4, 0), (6, 2))]


def test_a_shard_order_of_its_own_is_followed():
    class Entry:
        tensor_dim, mesh_dims = 0, (1, 0)

    whole = torch.arange(8 * 2).reshape(8, 2)
    dtensor = Placed(whole.shape, whole[2:4].clone(), (2, 2), [1, 0], [Shard(0), Shard(0)])
    dtensor._spec = type("Spec", (), {"shard_order": (Entry,)})
    held = shards._shards_of_dtensor(NAME, dtensor)
    assert [(s.lo, s.hi) for s in held] == [((2, 0), (4, 2))]


def test_strided_rows_are_a_view_for_each_run():
    whole = torch.arange(12 * 2).reshape(12, 2)
    placed = [_StridedShard(0, split_factor=3)]
    local = split(whole, (2,), (1,), placed)
    held = shards_at(whole, local, (2,), (1,), placed)
    assert [(s.lo[0], s.hi[0]) for s in held] == [(2, 4), (6, 8), (10, 12)]
    assert [s.local.data_ptr() - local.data_ptr() for s in held] == [0, 32, 64]


def test_strided_shards_of_experts_are_taken_expert_by_expert():
    whole = torch.arange(3 * 8 * 2).reshape(3, 8, 2)
    placed = [_StridedShard(1, split_factor=2)]
    found = [
        shards_at(whole, split(whole, (2,), at, placed), (2,), at, placed) for at in ((0,), (1,))
    ]
    assert [len(held) for held in found] == [6, 6]
    check_ranks(whole, found)


# ---- what is refused -----------------------------------------------------------------------------


def refuse(status, text, shape, local, sizes, at, placed):
    with pytest.raises(CallError) as caught:
        shards._shards_of_dtensor(NAME, Placed(torch.Size(shape), local, sizes, list(at), placed))
    assert caught.value.status == status
    assert str(caught.value).find(NAME) >= 0 and text in str(caught.value)


def test_partial_sums_are_refused_with_the_way_out():
    local = torch.zeros(4, 4)
    refuse(Status.ERR_UNSUPPORTED, "reduce it first", (4, 4), local, (2,), (0,), [Partial()])


def test_strided_columns_of_many_rows_are_refused_with_the_way_out():
    whole = torch.zeros(600, 8)
    placed = [_StridedShard(1, split_factor=2)]
    local = split(whole, (2,), (0,), placed)
    refuse(Status.ERR_UNSUPPORTED, "1200 boxes, at most 1024", (600, 8), local, (2,), (0,), placed)


def test_an_unknown_placement_is_refused():
    class Ragged:
        dim = 0

        def is_replicate(self):
            return False

        is_partial = is_replicate

        def __str__(self):
            return "Ragged(0)"

    refuse(Status.ERR_UNSUPPORTED, "Ragged(0)", (4,), torch.zeros(2), (2,), (0,), [Ragged()])


def test_a_local_tensor_that_is_not_what_placements_say_is_refused():
    refuse(
        Status.ERR_INVALID,
        "local tensor has shape [3, 4], but [S(0)] on a mesh of (2) puts [2, 4] of [4, 4]",
        (4, 4),
        torch.zeros(3, 4),
        (2,),
        (0,),
        [Shard(0)],
    )


def test_a_local_tensor_without_memory_of_its_own_is_refused():
    class Wrapped(torch.Tensor):
        pass

    local = torch.zeros(2, 4).as_subclass(Wrapped)
    refuse(Status.ERR_UNSUPPORTED, "is a Wrapped", (4, 4), local, (2,), (0,), [Shard(0)])


def test_a_box_that_is_no_part_is_refused():
    with pytest.raises(CallError, match=r"box from \[0\] to \[9\] is no part of shape \[8\]"):
        shards.Shard(None, (8,), (0,), (9,))
    with pytest.raises(CallError):
        shards.Shard(None, (8, 8), (0,), (8,))


# ---- real DTensors, one process ------------------------------------------------------------------


@pytest.fixture
def fake_group():
    """Makes this process any rank of a group that is not there."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    def begin(rank, n_ranks):
        if dist.is_initialized():
            dist.destroy_process_group()
        dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=n_ranks)

    yield begin
    if dist.is_initialized():
        dist.destroy_process_group()


def as_dtensor(local, mesh, placed, shape):
    stride = torch.empty(shape, device="meta").stride()
    return DTensor.from_local(local, mesh, placed, run_check=False, shape=shape, stride=stride)


@pytest.mark.parametrize(
    "placed",
    [
        [Shard(0), Shard(0)],
        [Shard(0), Shard(1)],
        [Replicate(), Shard(0)],
        [Shard(1), Replicate()],
        [_StridedShard(0, split_factor=2), Shard(0)],
    ],
    ids=str,
)
def test_offsets_are_those_that_torch_computes(fake_group, placed):
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    whole = torch.arange(10 * 6, dtype=torch.float32).reshape(10, 6)
    found = []
    for rank in range(6):
        fake_group(rank, 6)
        mesh = dist.device_mesh.init_device_mesh("cpu", (3, 2), mesh_dim_names=("dp", "tp"))
        local = split(whole, (3, 2), mesh.get_coordinate(), placed)
        dtensor = as_dtensor(local, mesh, placed, whole.shape)
        assert shards.is_dtensor(dtensor) and shards.torch_ranks() == (rank, 6)
        held = shards.shards_of(NAME, dtensor)
        shape, offset = compute_local_shape_and_global_offset(whole.shape, mesh, placed)
        assert len(held) == (0 not in shape)
        for shard in held:
            assert (shard.shape, shard.lo) == (tuple(shape), tuple(offset))
        found.append(held)
    check_ranks(whole, found)


def test_a_parameter_that_needs_gradients_gives_a_view_of_its_memory(fake_group):
    fake_group(1, 2)
    mesh = dist.device_mesh.init_device_mesh("cpu", (2,))
    local = torch.zeros(2, 3)
    parameter = torch.nn.Parameter(as_dtensor(local, mesh, [Shard(0)], torch.Size((4, 3))))
    (shard,) = shards.shards_of(NAME, parameter)
    assert not shard.local.requires_grad and shard.local.data_ptr() == local.data_ptr()
    with torch.no_grad():
        parameter.to_local().fill_(7)
    assert bool((shard.local == 7).all())


def test_a_rank_outside_the_mesh_holds_nothing(fake_group):
    fake_group(3, 4)
    mesh = dist.device_mesh.DeviceMesh("cpu", [0, 1])
    dtensor = as_dtensor(torch.zeros(0), mesh, [Shard(0)], torch.Size((4, 3)))
    assert shards.shards_of(NAME, dtensor) == []


def test_what_is_under_way_is_waited_for(fake_group):
    from torch.distributed._functional_collectives import AsyncCollectiveTensor

    fake_group(0, 2)
    mesh = dist.device_mesh.init_device_mesh("cpu", (2,))
    local = AsyncCollectiveTensor(torch.ones(2, 3))
    (shard,) = shards.shards_of(NAME, as_dtensor(local, mesh, [Shard(0)], torch.Size((4, 3))))
    assert type(shard.local) is torch.Tensor and bool((shard.local == 1).all())


def test_addresses_are_those_of_the_views(fake_group):
    from torch.distributed._functional_collectives import AsyncCollectiveTensor

    fake_group(0, 2)
    mesh = dist.device_mesh.init_device_mesh("cpu", (2,))
    locals_ = [torch.ones(2, 3), AsyncCollectiveTensor(torch.ones(2, 3)), torch.ones(2, 3)]
    dtensors = [as_dtensor(one, mesh, [Shard(0)], torch.Size((4, 3))) for one in locals_]
    views = [shards.shards_of(NAME, dtensor)[0].local.data_ptr() for dtensor in dtensors]
    assert shards.look_at_locals(dtensors)[0] == views
    assert shards.look_at_locals(dtensors[:1])[0] == [locals_[0].data_ptr()]


def addresses_told(registration):
    return [entry.local.data for entry in registration.array]


def test_a_moved_dtensor_has_another_address_and_the_boxes_it_had(fake_group, monkeypatch):
    fake_group(0, 2)
    mesh = dist.device_mesh.init_device_mesh("cpu", (2,))
    strided = [_StridedShard(0, split_factor=2)]
    dtensors = [
        as_dtensor(torch.ones(4, 3), mesh, placed, torch.Size((8, 3)))
        for placed in ([Shard(0)], strided, [Shard(0)])
    ]
    registration = Registration([(NAME, d) for d in dtensors], is_sharded=True)
    assert registration.n == 4 and registration.moved() is None
    before = addresses_told(registration)
    dtensors[1]._local_tensor.data = torch.zeros(4, 3)
    monkeypatch.setattr(shards, "shards_of", lambda *_: pytest.fail("boxes are computed again"))
    assert registration.moved() is registration
    base = dtensors[1]._local_tensor.data_ptr()
    assert addresses_told(registration) == [before[0], base, base + 24, before[3]]
    assert registration.moved() is registration, "C has not taken it yet"
    registration.note_told()
    assert registration.moved() is None


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.ones(2, 3).double(),
        lambda: torch.ones(3, 3),
        lambda: torch.ones(3, 2).t(),
        lambda: torch.ones(2, 3, device="meta"),
    ],
    ids=["dtype", "shape", "strides", "device"],
)
def test_a_dtensor_that_is_no_longer_what_it_was_is_named(fake_group, make):
    fake_group(0, 2)
    mesh = dist.device_mesh.init_device_mesh("cpu", (2,))
    dtensors = [
        as_dtensor(torch.ones(2, 3), mesh, [Shard(0)], torch.Size((4, 3))) for _ in range(2)
    ]
    kept = dtensors[1]._local_tensor
    registration = Registration([("other", dtensors[0]), (NAME, dtensors[1])], is_sharded=True)
    before = addresses_told(registration)
    dtensors[0]._local_tensor.data = torch.zeros(2, 3)
    dtensors[1]._local_tensor = make()
    with pytest.raises(weir.WeirError, match=NAME.replace(".", r"\.")):
        registration.moved()
    assert addresses_told(registration) == before
    dtensors[1]._local_tensor = kept
    assert registration.moved() is registration
    assert addresses_told(registration) == [dtensors[0]._local_tensor.data_ptr(), before[1]]


def test_sharded_tensors_have_their_boxes_in_their_metadata(fake_group):
    from torch.distributed._shard.metadata import ShardMetadata
    from torch.distributed._shard.sharded_tensor import Shard as Piece
    from torch.distributed._shard.sharded_tensor import ShardedTensor
    from torch.distributed._shard.sharded_tensor.metadata import (
        ShardedTensorMetadata,
        TensorProperties,
    )

    fake_group(1, 2)
    pieces = [
        ShardMetadata([0, 0], [3, 4], "rank:0/cpu"),
        ShardMetadata([3, 0], [2, 4], "rank:1/cpu"),
    ]
    whole = ShardedTensorMetadata(pieces, torch.Size((5, 4)), TensorProperties(torch.float32))
    local = torch.ones(2, 4)
    sharded = ShardedTensor._init_from_local_shards_and_global_metadata(
        [Piece(local, pieces[1])], whole
    )
    (shard,) = shards.shards_of(NAME, sharded)
    assert shards.is_sharded(sharded) and not shards.is_dtensor(sharded)
    assert (shard.global_shape, shard.lo, shard.hi) == ((5, 4), (3, 0), (5, 4))
    assert shard.local.data_ptr() == local.data_ptr()


def test_flat_parameters_are_refused_with_the_way_out(fake_group):
    from torch.distributed.fsdp import FullyShardedDataParallel

    fake_group(0, 2)
    plain = torch.nn.Sequential(torch.nn.Linear(4, 4))
    shards.refuse_flat_parameters(plain)
    plain[0] = FullyShardedDataParallel(plain[0], device_id=torch.device("cpu"))
    with pytest.raises(CallError, match="^0: .*fully_shard.*SHARDED_STATE_DICT") as caught:
        shards.refuse_flat_parameters(plain)
    assert caught.value.status == Status.ERR_UNSUPPORTED


def test_a_trainer_refuses_flat_parameters_before_they_are_gathered(fake_group, monkeypatch):
    from torch.distributed.fsdp import FullyShardedDataParallel

    fake_group(0, 2)
    flat = FullyShardedDataParallel(torch.nn.Linear(4, 4), device_id=torch.device("cpu"))
    monkeypatch.setattr(flat, "state_dict", lambda *args, **kwargs: pytest.fail("gathered"))
    with weir.Trainer("policy", family="qwen3", conversion="bf16_cast") as trainer:
        with pytest.raises(CallError, match="FSDP1"):
            trainer.register(flat)


# ---- anything else -------------------------------------------------------------------------------


def test_any_other_array_is_whole():
    local = torch.zeros(2, 3)
    (shard,) = shards.shards_of(NAME, local)
    assert shard.local is local and (shard.lo, shard.hi) == ((0, 0), (2, 3))
    assert shards.shards_of(NAME, shard) == [shard]
    assert not shards.is_dtensor(local) and not shards.is_sharded(local)


def test_torch_is_not_imported():
    code = (
        "import sys; from weir import shards\n"
        "assert not shards.is_dtensor(object()) and shards.torch_ranks() is None\n"
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=30)
