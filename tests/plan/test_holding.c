/* SPDX-License-Identifier: Apache-2.0 */
#include "plan/holding.h"

#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>

static void chunks_are_those_of_torch(void **state)
{
    (void)state;
    /* torch.chunk(10, 4) gives 3, 3, 3, 1; torch.chunk(5, 4) 2, 2, 1 and none. */
    static const uint64_t ten[] = { 0, 3, 6, 9, 10 }, five[] = { 0, 2, 4, 5, 5 };
    for (uint64_t i = 0; i < 4; i++) {
        uint64_t lo, hi;
        weir_torch_chunk(10, 4, i, &lo, &hi);
        assert_int_equal(lo, ten[i]);
        assert_int_equal(hi, ten[i + 1]);
        weir_torch_chunk(5, 4, i, &lo, &hi);
        assert_int_equal(lo, five[i]);
        assert_int_equal(hi, five[i + 1]);
    }
}

static void contiguous_experts_are_where_a_stacked_trainer_keeps_them(void **state)
{
    (void)state;
    /* 64 experts, ep 4, fsdp 2: expert rank 2, fsdp rank 1 owns 40 … 47. */
    weir_trainer_mesh mesh = { .pp = 1, .hsdp = 1, .fsdp = 2, .ep = 4, .tp = 1 };
    weir_fleet_tensor t = { .name = "w1",
                            .cut = WEIR_CUT_COLUMN,
                            .n_experts = 64,
                            .stacked = true,
                            .n_cols = 4,
                            .n_sources = 1,
                            .n_parts = 1,
                            .source_rows = { 8 },
                            .parts = { { 0, 0, 0, 8 } } };
    weir_expert_place places[64];
    weir_holding holdings[8];
    assert_int_equal(weir_expert_places(&mesh, &t, places), WEIR_OK);
    for (uint32_t x = 0; x < 64; x++) {
        assert_int_equal(weir_holdings_of(&mesh, &t, 0, &places[x], holdings), 1);
        assert_true((holdings[0].rank == 1 * 4 + 2) == (x >= 40 && x < 48));
        assert_int_equal(holdings[0].row_hi - holdings[0].row_lo, 8);
    }
}

static void an_owner_map_that_does_not_fit_is_refused(void **state)
{
    (void)state;
    uint32_t owners[] = { 0, 1, 2, 0 };
    weir_trainer_mesh mesh = { 1, 1, 1, 2, 1, 0, owners, 4, 0 };
    weir_fleet_tensor t = { .name = "w1", .n_experts = 4 };
    weir_expert_place places[4];
    assert_int_equal(weir_expert_places(&mesh, &t, places), WEIR_ERR_LAYOUT);
    assert_string_equal(weir_last_error(), "w1: expert 2 is of expert rank 2 of 2");
    mesh.n_expert_owners = 3;
    assert_int_equal(weir_expert_places(&mesh, &t, places), WEIR_ERR_LAYOUT);
    assert_string_equal(weir_last_error(), "w1: 4 experts, the trainer's owner map has 3");
}

/* ---- sources of several parts ----------------------------------------------------------------*/

/* [q;k;v] in one tensor. */
static weir_fleet_tensor fused_qkv(uint32_t q_heads, uint32_t kv_heads, uint64_t head_rows)
{
    uint64_t q = q_heads * head_rows, kv = kv_heads * head_rows;
    return (weir_fleet_tensor){
        .name = "qkv",
        .cut = WEIR_CUT_COLUMN,
        .n_cols = 8,
        .n_sources = 1,
        .n_parts = 3,
        .source_rows = { q + 2 * kv },
        .parts = { { 0, q_heads, 0, q }, { 0, kv_heads, q, kv }, { 0, kv_heads, q + kv, kv } }
    };
}

typedef struct rows_of_rank {
    uint32_t rank, n_owners, box;
    uint64_t row_lo, row_hi;
} rows_of_rank;

static void assert_rows(const weir_holding *got, size_t n_got, const rows_of_rank *wanted, size_t n)
{
    assert_int_equal(n_got, n);
    for (size_t i = 0; i < n; i++) {
        assert_int_equal(got[i].rank, wanted[i].rank);
        assert_int_equal(got[i].n_owners, wanted[i].n_owners);
        assert_int_equal(got[i].box, wanted[i].box);
        assert_int_equal(got[i].row_lo, wanted[i].row_lo);
        assert_int_equal(got[i].row_hi, wanted[i].row_hi);
        assert_int_equal(got[i].col_lo, 0);
        assert_int_equal(got[i].col_hi, 8);
    }
}

#define ASSERT_HOLDINGS(mesh, tensor, ...)                                     \
    do {                                                                       \
        const rows_of_rank wanted[] = { __VA_ARGS__ };                         \
        weir_holding got[64];                                                  \
        assert_true(weir_holdings_most(mesh) <= 64);                           \
        assert_rows(got, weir_holdings_of(mesh, tensor, 0, NULL, got), wanted, \
                    sizeof(wanted) / sizeof(wanted[0]));                       \
    } while (0)
#define ASSERT_RANK(mesh, tensor, place, at, ...)                                        \
    do {                                                                                 \
        const rows_of_rank wanted[] = { __VA_ARGS__ };                                   \
        weir_holding got[WEIR_MAX_PARTS];                                                \
        assert_rows(got, weir_holdings_of_rank(mesh, tensor, 0, place, at, got), wanted, \
                    sizeof(wanted) / sizeof(wanted[0]));                                 \
    } while (0)

static void grouped_heads_of_one_tensor_are_cut_part_by_part(void **state)
{
    (void)state;
    weir_trainer_mesh mesh = { .pp = 1, .hsdp = 1, .fsdp = 1, .ep = 1, .tp = 2 };
    weir_fleet_tensor t = fused_qkv(4, 2, 3);
    ASSERT_HOLDINGS(&mesh, &t, { 0, 1, 0, 0, 6 }, { 1, 1, 0, 6, 12 }, { 0, 1, 1, 12, 15 },
                    { 1, 1, 1, 15, 18 }, { 0, 1, 2, 18, 21 }, { 1, 1, 2, 21, 24 });
    ASSERT_RANK(&mesh, &t, NULL, 1, { 1, 1, 0, 6, 12 }, { 1, 1, 1, 15, 18 }, { 1, 1, 2, 21, 24 });
}

static void heads_fewer_than_ranks_are_on_neighbours_but_for_the_first_part_s(void **state)
{
    (void)state;
    weir_trainer_mesh mesh = { .pp = 1, .hsdp = 1, .fsdp = 1, .ep = 1, .tp = 4 };
    weir_fleet_tensor t = fused_qkv(8, 2, 2);
    ASSERT_HOLDINGS(&mesh, &t, { 0, 1, 0, 0, 4 }, { 1, 1, 0, 4, 8 }, { 2, 1, 0, 8, 12 },
                    { 3, 1, 0, 12, 16 }, { 0, 2, 1, 16, 18 }, { 2, 2, 1, 18, 20 },
                    { 0, 2, 2, 20, 22 }, { 2, 2, 2, 22, 24 });
    ASSERT_RANK(&mesh, &t, NULL, 3, { 3, 1, 0, 12, 16 }, { 3, 1, 1, 18, 20 }, { 3, 1, 2, 22, 24 });
    t.parts[0].units = 2; /* no head is whole on four ranks: rows are, as of any first part */
    ASSERT_RANK(&mesh, &t, NULL, 1, { 1, 1, 0, 4, 8 }, { 1, 1, 1, 16, 18 }, { 1, 1, 2, 20, 22 });
}

/* Rank t of tp has 4 + 1 + 1 rows; two chunks of three, or four of two, two, two and none. */
static void fsdp_cuts_a_rank_s_own_rows_one_behind_the_other(void **state)
{
    (void)state;
    weir_trainer_mesh mesh = { .pp = 1, .hsdp = 1, .fsdp = 2, .ep = 1, .tp = 2 };
    weir_fleet_tensor t = fused_qkv(8, 2, 1);
    ASSERT_HOLDINGS(&mesh, &t, { 0, 1, 0, 0, 3 }, { 2, 1, 0, 3, 4 }, { 1, 1, 0, 4, 7 },
                    { 3, 1, 0, 7, 8 }, { 2, 1, 1, 8, 9 }, { 3, 1, 1, 9, 10 }, { 2, 1, 2, 10, 11 },
                    { 3, 1, 2, 11, 12 });
    ASSERT_RANK(&mesh, &t, NULL, 2, { 2, 1, 0, 3, 4 }, { 2, 1, 1, 8, 9 }, { 2, 1, 2, 10, 11 });
    mesh.fsdp = 4;
    ASSERT_RANK(&mesh, &t, NULL, 4, { 4, 1, 1, 8, 9 }, { 4, 1, 2, 10, 11 });
    weir_holding none[WEIR_MAX_PARTS];
    assert_int_equal(weir_holdings_of_rank(&mesh, &t, 0, NULL, 6, none), 0);
    mesh.ep = 2;
    mesh.dense_whole = 1;
    for (uint32_t rank = 1; rank < 16; rank += 2)
        ASSERT_RANK(&mesh, &t, NULL, rank, { rank, 1, 0, 4, 8 }, { rank, 1, 1, 9, 10 },
                    { rank, 1, 2, 11, 12 });
}

/* Of five rows without heads the first rank has three: it and its neighbour have the one head of k
 * in chunks that are not the same. */
static void neighbours_share_heads_only_where_they_have_them_in_the_same_chunk(void **state)
{
    (void)state;
    weir_trainer_mesh mesh = { .pp = 1, .hsdp = 1, .fsdp = 2, .ep = 1, .tp = 2 };
    weir_fleet_tensor t = fused_qkv(1, 1, 5);
    t.n_parts = 2;
    t.source_rows[0] = 10;
    ASSERT_HOLDINGS(&mesh, &t, { 0, 1, 0, 0, 3 }, { 1, 1, 0, 3, 5 }, { 0, 1, 1, 5, 6 },
                    { 2, 1, 1, 6, 10 });
    ASSERT_RANK(&mesh, &t, NULL, 1, { 1, 1, 0, 3, 5 }, { 1, 1, 1, 5, 7 });
    ASSERT_RANK(&mesh, &t, NULL, 3, { 3, 1, 1, 7, 10 });
    mesh.dense_whole = 1; /* each has all of it */
    ASSERT_HOLDINGS(&mesh, &t, { 0, 1, 0, 0, 3 }, { 1, 1, 0, 3, 5 }, { 0, 2, 1, 5, 6 },
                    { 2, 2, 1, 6, 10 });
    mesh.fsdp = 1;
    mesh.dense_whole = 0;
    ASSERT_HOLDINGS(&mesh, &t, { 0, 1, 0, 0, 3 }, { 1, 1, 0, 3, 5 }, { 0, 2, 1, 5, 10 });
}

static void gate_and_up_of_one_tensor_are_cut_for_each_expert(void **state)
{
    (void)state;
    weir_trainer_mesh mesh = { .pp = 1, .hsdp = 1, .fsdp = 2, .ep = 2, .tp = 2 };
    weir_fleet_tensor t = { .name = "w13",
                            .cut = WEIR_CUT_COLUMN,
                            .n_experts = 8,
                            .stacked = true,
                            .n_cols = 8,
                            .n_sources = 1,
                            .n_parts = 2,
                            .source_rows = { 10 },
                            .parts = { { 0, 0, 0, 5 }, { 0, 0, 5, 5 } } };
    weir_expert_place places[8];
    weir_holding none[WEIR_MAX_PARTS];
    assert_int_equal(weir_expert_places(&mesh, &t, places), WEIR_OK);
    /* Expert 6 is of expert rank 1, there the third of four: fsdp rank 1. */
    ASSERT_RANK(&mesh, &t, &places[6], 6, { 6, 1, 0, 0, 3 }, { 6, 1, 1, 5, 8 });
    ASSERT_RANK(&mesh, &t, &places[6], 7, { 7, 1, 0, 3, 5 }, { 7, 1, 1, 8, 10 });
    assert_int_equal(weir_holdings_of_rank(&mesh, &t, 0, &places[6], 5, none), 0);
    assert_int_equal(weir_holdings_of_rank(&mesh, &t, 0, &places[6], 3, none), 0);
    /* A tensor each: fsdp cuts the rank's own six rows, or four. */
    t.stacked = false;
    ASSERT_RANK(&mesh, &t, &places[6], 2, { 2, 1, 0, 0, 3 });
    ASSERT_RANK(&mesh, &t, &places[6], 6, { 6, 1, 1, 5, 8 });
    ASSERT_RANK(&mesh, &t, &places[6], 7, { 7, 1, 1, 8, 10 });
}

static void what_tensor_parallelism_does_not_cut_by_rows_is_one_box(void **state)
{
    (void)state;
    weir_trainer_mesh mesh = { .pp = 1, .hsdp = 1, .fsdp = 2, .ep = 1, .tp = 2 };
    weir_fleet_tensor t = fused_qkv(8, 2, 1);
    weir_holding own[WEIR_MAX_PARTS];
    t.cut = WEIR_CUT_NONE;
    ASSERT_HOLDINGS(&mesh, &t, { 0, 2, 0, 0, 6 }, { 2, 2, 0, 6, 12 });
    t.cut = WEIR_CUT_ROW;
    assert_int_equal(weir_holdings_of_rank(&mesh, &t, 0, NULL, 3, own), 1);
    assert_int_equal(own[0].row_lo, 6);
    assert_int_equal(own[0].row_hi, 12);
    assert_int_equal(own[0].col_lo, 4);
    assert_int_equal(own[0].col_hi, 8);
    t.cut = WEIR_CUT_COLUMN;
    mesh.tp = 1; /* its parts are one piece of memory */
    ASSERT_HOLDINGS(&mesh, &t, { 0, 1, 0, 0, 6 }, { 1, 1, 0, 6, 12 });
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(chunks_are_those_of_torch),
        cmocka_unit_test(contiguous_experts_are_where_a_stacked_trainer_keeps_them),
        cmocka_unit_test(an_owner_map_that_does_not_fit_is_refused),
        cmocka_unit_test(grouped_heads_of_one_tensor_are_cut_part_by_part),
        cmocka_unit_test(heads_fewer_than_ranks_are_on_neighbours_but_for_the_first_part_s),
        cmocka_unit_test(fsdp_cuts_a_rank_s_own_rows_one_behind_the_other),
        cmocka_unit_test(neighbours_share_heads_only_where_they_have_them_in_the_same_chunk),
        cmocka_unit_test(gate_and_up_of_one_tensor_are_cut_for_each_expert),
        cmocka_unit_test(what_tensor_parallelism_does_not_cut_by_rows_is_one_box),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
