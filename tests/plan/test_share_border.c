/* SPDX-License-Identifier: Apache-2.0 */
#include "plan/fleet.h"

#include "share_fleet.h"

/* ---- real kernels ----------------------------------------------------------------------------*/

/* Matrices of a few blocks, in pieces of any shape on five ranks. */
static void make_matrices(share_case *c, uint64_t seed, const weir_conversion *conversion)
{
    memset(c, 0, sizeof(*c));
    c->fleet.state = seed * 0x9E3779B97F4A7C15 + 1;
    c->fleet.trainer = (weir_trainer_mesh){ .pp = 1, .hsdp = 1, .fsdp = 1, .ep = 1, .tp = 1 };
    c->fleet.replica = (weir_replica_mesh){ .tp = 1, .ep = 1, .dp = 1, .pp = 1, .replicas = 1 };
    c->fleet.n_tensors = 2;
    c->fleet.trainer.n_expert_owners = 2;
    for (size_t i = 0; i < 2; i++) {
        weir_fleet_tensor *t = &c->fleet.tensors[i];
        *t = matrix_of("t", WEIR_CUT_NONE, 0, 1 + case_random(&c->fleet, 300));
        t->conversion = conversion;
        t->n_experts = i == 0 ? 0 : 2;
        t->n_sources = t->n_parts = 1 + (uint32_t)case_random(&c->fleet, WEIR_MAX_PARTS);
        for (uint32_t p = 0; p < t->n_parts; p++) {
            t->source_rows[p] = 1 + case_random(&c->fleet, 200);
            t->parts[p] = (weir_fleet_part){ .source = p, .n_rows = t->source_rows[p] };
        }
    }
    give_out_all(c);
}

static void kernels_that_scale_by_magnitude_make_the_bytes_of_whole_blocks(void **state)
{
    (void)state;
    uint64_t seed = first_seed();
    share_case *c = calloc(1, sizeof(*c));
    weir_conversion kernels[] = { by_magnitude("fp8_128x128", true),
                                  by_magnitude("cutlass_fp8_e4m3_per_channel", true) };
    print_message("WEIR_TEST_SEED=%llu, %d cases from there\n", (unsigned long long)seed,
                  N_CASES / 50);
    for (int i = 0; i < N_CASES / 50; i++) {
        make_matrices(c, seed + (uint64_t)i, &kernels[i % 2]);
        check_case(c);
    }
    free(c);
}

/* ---- who lends -------------------------------------------------------------------------------*/

static void ranks_that_hold_rows_whole_share_the_work_and_lend_nothing(void **state)
{
    (void)state;
    weir_fleet_tensor t = matrix_of("t", WEIR_CUT_NONE, 10, 8);
    for (int i = 0; i < 4; i++) {
        bool whole = i % 2 == 1, shared = i == 2; /* by magnitude, and nobody has all of it */
        t.conversion = i < 2 ? &share_block : &share_block_by_magnitude;
        weir_fleet *fleet = open_meshes(&t, 1, whole ? "ep=2,dense_whole=1" : "ep=2", "");
        weir_share *a = share_of(fleet, 0), *b = share_of(fleet, 1);
        assert_true(a->n_jobs > 0 && b->n_jobs > 0);
        assert_int_equal(a->n_lends + b->n_lends, whole ? 0 : 1 + shared);
        assert_int_equal(a->n_borders + b->n_borders, shared ? 2 : 0);
        /* Rows [0, 4), a border (of two pieces), rows [8, 10). */
        assert_int_equal(a->n_jobs + b->n_jobs, 3 + shared);
        weir_share_free(a);
        weir_share_free(b);
        weir_fleet_close(fleet);
    }
}

static void a_border_of_many_blocks_is_divided_among_its_holders(void **state)
{
    (void)state;
    /* A scale per row, and columns on four ranks: each makes a quarter of the rows. */
    weir_fleet_tensor t = matrix_of("t", WEIR_CUT_ROW, 64, 16);
    t.conversion = &share_channel;
    weir_fleet *fleet = open_meshes(&t, 1, "tp=4", "");
    for (uint32_t rank = 0; rank < 4; rank++) {
        weir_share *share = share_of(fleet, rank);
        assert_int_equal(share->n_jobs, 1);
        assert_int_equal(share->jobs[0].copy.row, rank * 16);
        assert_int_equal(share->jobs[0].copy.n_rows, 16);
        assert_int_equal(share->n_borrows, 3);
        for (size_t i = 0; i < 3; i++)
            assert_int_equal(share->borrows[i].n_bytes, 16 * 4 * 2);
        weir_share_free(share);
    }
    weir_fleet_close(fleet);
}

static void magnitudes_of_columns_go_to_all_that_have_others(void **state)
{
    (void)state;
    weir_fleet_tensor t = matrix_of("t", WEIR_CUT_ROW, 64, 16);
    t.conversion = &share_channel_by_magnitude;
    weir_fleet *fleet = open_meshes(&t, 1, "tp=4", "");
    for (uint32_t rank = 0; rank < 4; rank++) {
        weir_share *share = share_of(fleet, rank);
        assert_int_equal(share->n_borders, 4); /* each owned by another */
        assert_int_equal(share->n_jobs, 4);
        assert_int_equal(share->n_shards, 2);
        assert_int_equal(share->shards[0].n_bytes, 64 * 4); /* its columns */
        assert_int_equal(share->shards[1].n_bytes, 16 * 4); /* scales of a quarter of the rows */
        assert_int_equal(share->shards[1].box.lo[0], rank * 16);
        assert_int_equal(share->n_borrows, 3);
        assert_int_equal(share->n_lends, 3);
        for (size_t i = 0; i < 3; i++)
            assert_int_equal(share->borrows[i].n_bytes, 64 * sizeof(float));
        weir_share_free(share);
    }
    weir_fleet_close(fleet);
}

static void rows_and_magnitudes_are_lent_side_by_side(void **state)
{
    (void)state;
    /* Rank 0 lends rank 1 one row of three elements, then magnitudes of three blocks. */
    weir_fleet_tensor t[] = { matrix_of("rows", WEIR_CUT_NONE, 6, 3),
                              matrix_of("magnitudes", WEIR_CUT_NONE, 6, 12) };
    weir_held held[] = {
        { .rank = 0, .tensor = 0, .expert_hi = 1, .row_hi = 1, .col_hi = 3 },
        { .rank = 1, .tensor = 0, .expert_hi = 1, .row_lo = 1, .row_hi = 6, .col_hi = 3 },
        { .rank = 0, .tensor = 1, .expert_hi = 1, .row_hi = 1, .col_hi = 12 },
        { .rank = 1, .tensor = 1, .expert_hi = 1, .row_lo = 1, .row_hi = 6, .col_hi = 12 },
    };
    weir_replica_mesh to = { .tp = 1 };
    weir_fleet_args args = WEIR_FLEET_ARGS_INIT;
    weir_fleet *fleet = NULL;
    t[0].conversion = &share_block;
    t[1].conversion = &share_block_by_magnitude;
    args.tensors = t;
    args.n_tensors = 2;
    args.held = held;
    args.n_held = 4;
    args.replica = &to;
    assert_int_equal(weir_fleet_open(&args, &fleet), WEIR_OK);
    weir_share *a = share_of(fleet, 0), *b = share_of(fleet, 1);
    assert_int_equal(a->n_lends, 1);
    assert_int_equal(a->n_lent, 2);
    assert_int_equal(a->lent[0].border, WEIR_ANY);
    assert_int_equal(a->lent[1].border, 0);
    assert_int_equal(a->lent[1].offset, 8); /* 6 bytes of a row, then of four */
    assert_int_equal(a->lends[0].n_bytes, 8 + 3 * sizeof(float));
    assert_int_equal(b->borrows[0].n_bytes, a->lends[0].n_bytes);
    assert_int_equal(b->lends[0].n_bytes, 3 * sizeof(float));
    assert_int_equal(a->borrows[0].n_bytes, 3 * sizeof(float));
    weir_share_free(a);
    weir_share_free(b);
    weir_fleet_close(fleet);
}

/* ---- what is joined --------------------------------------------------------------------------*/

static void a_chunk_of_rows_is_one_shard_however_it_lies_to_the_blocks(void **state)
{
    (void)state;
    weir_fleet_tensor t = matrix_of("t", WEIR_CUT_NONE, 10, 8);
    t.conversion = &share_block_by_magnitude;
    weir_fleet *fleet = open_meshes(&t, 1, "fsdp=2", ""); /* rows [0, 5) and [5, 10) */
    weir_share *a = share_of(fleet, 0), *b = share_of(fleet, 1);
    assert_int_equal(a->n_jobs, 2);
    assert_int_equal(a->n_shards, 2);
    assert_int_equal(a->shards[0].box.hi[0], 5);
    assert_int_equal(a->shards[1].box.hi[0], 1); /* of scales */
    assert_int_equal(a->jobs[0].border, WEIR_ANY);
    assert_int_equal(a->jobs[1].border, 0);
    assert_int_equal(a->jobs[1].offsets[0], 4 * 8);
    assert_int_equal(a->jobs[1].shards[1], WEIR_ANY); /* rank 1 has more rows of the block */
    assert_int_equal(a->borders[0].copy.rank, 1);
    assert_int_equal(b->n_jobs, 2);
    assert_int_equal(b->n_shards, 2);
    assert_int_equal(b->shards[0].box.lo[0], 5);
    assert_int_equal(b->shards[1].box.lo[0], 1);
    assert_int_equal(b->shards[1].box.hi[0], 3);
    assert_int_equal(b->jobs[0].copy.source, 0);
    assert_int_equal(b->jobs[0].copy.source_row, 5);
    assert_int_equal(b->jobs[0].copy.n_rows, 3);
    assert_int_equal(b->jobs[1].offsets[0], 3 * 8);
    assert_int_equal(b->jobs[1].offsets[1], 2 * 4);
    weir_share_free(a);
    weir_share_free(b);
    weir_fleet_close(fleet);
}

static void parts_that_interleave_ranks_are_joined_across_blocks(void **state)
{
    (void)state;
    /* [q; k; v] of 3, 3 and 2 rows, each on two ranks: rows 0, 1, 3, 4 and 6 are rank 0's. */
    weir_fleet_tensor t = matrix_of("qkv", WEIR_CUT_NONE, 3, 8);
    t.conversion = &share_block_by_magnitude;
    add_second(&t, 3);
    t.n_sources = t.n_parts = 3;
    t.source_rows[2] = 2;
    t.parts[2] = (weir_fleet_part){ .source = 2, .n_rows = 2 };
    weir_fleet *fleet = open_meshes(&t, 1, "fsdp=2", "");
    weir_share *share = share_of(fleet, 0);
    const uint64_t rows[3][2] = { { 0, 2 }, { 3, 5 }, { 6, 7 } };
    const uint32_t borders[] = { 0, 0, 1, 1 };
    assert_int_equal(share->n_borders, 2);
    assert_int_equal(share->n_jobs, 4);
    for (size_t i = 0; i < 4; i++)
        assert_int_equal(share->jobs[i].border, borders[i]);
    for (size_t i = 0; i < 3; i++) {
        assert_int_equal(share->shards[i].output, 0);
        assert_int_equal(share->shards[i].box.lo[0], rows[i][0]);
        assert_int_equal(share->shards[i].box.hi[0], rows[i][1]);
    }
    assert_int_equal(share->jobs[2].shards[0], 1); /* k's second row, below its first */
    assert_int_equal(share->jobs[2].offsets[0], 8);
    assert_int_equal(share->borders[0].copy.rank, 0);
    assert_int_equal(share->jobs[0].shards[1], 3);
    assert_int_equal(share->jobs[1].shards[1], WEIR_ANY); /* the first job makes them all */
    assert_int_equal(share->n_lends, 1);
    assert_int_equal(share->lends[0].n_bytes, 2 * 2 * sizeof(float));
    weir_share_free(share);
    weir_fleet_close(fleet);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(kernels_that_scale_by_magnitude_make_the_bytes_of_whole_blocks),
        cmocka_unit_test(ranks_that_hold_rows_whole_share_the_work_and_lend_nothing),
        cmocka_unit_test(a_border_of_many_blocks_is_divided_among_its_holders),
        cmocka_unit_test(magnitudes_of_columns_go_to_all_that_have_others),
        cmocka_unit_test(rows_and_magnitudes_are_lent_side_by_side),
        cmocka_unit_test(a_chunk_of_rows_is_one_shard_however_it_lies_to_the_blocks),
        cmocka_unit_test(parts_that_interleave_ranks_are_joined_across_blocks),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
