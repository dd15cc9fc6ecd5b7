/* SPDX-License-Identifier: Apache-2.0 */
#include "plan/held.h"

#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

static weir_fleet_tensor tensor_of(weir_cut cut, uint64_t rows)
{
    const weir_conversion *cast;
    assert_int_equal(weir_conversion_get("bf16_cast", &cast), WEIR_OK);
    return (weir_fleet_tensor){ .name = "t",
                                .conversion = cast,
                                .cut = cut,
                                .source_bits = 16,
                                .n_cols = 8,
                                .n_sources = 1,
                                .n_parts = 1,
                                .source_rows = { rows },
                                .parts = { { 0, 0, 0, rows } } };
}

/* Publishers of n_ranks equal ranges of 4096 rows; one of them may be absent. */
static weir_status open_publishers(uint32_t n_ranks, uint32_t absent, uint32_t n_workers,
                                   weir_fleet **out)
{
    weir_fleet_tensor t = tensor_of(WEIR_CUT_COLUMN, 4096);
    weir_replica_mesh replica = { .tp = n_workers };
    weir_shape shape = { 2, { 4096, 8 } };
    weir_held held[16];
    size_t n = 0;
    for (uint32_t r = 0; r < n_ranks; r++) {
        uint64_t rows = 4096 / n_ranks;
        if (r == absent)
            continue;
        assert_int_equal(weir_held_of_range(&t, 0, &shape, 0, r * rows, (r + 1) * rows, &held[n]),
                         WEIR_OK);
        held[n++].rank = r;
    }
    weir_fleet_args args = WEIR_FLEET_ARGS_INIT;
    args.tensors = &t;
    args.n_tensors = 1;
    args.held = held;
    args.n_held = n;
    args.replica = &replica;
    return weir_fleet_open(&args, out);
}

static void a_narrower_reader_takes_a_part_of_one_publisher(void **state)
{
    (void)state;
    weir_fleet *fleet = NULL;
    weir_fleet_copy copies[2];
    assert_int_equal(open_publishers(4, 16, 8, &fleet), WEIR_OK);
    assert_int_equal(weir_fleet_copies(fleet, 3, copies, 2), 1);
    assert_int_equal(copies[0].rank, 1);
    assert_int_equal(copies[0].source_row, 1024 + 512);
    assert_int_equal(copies[0].row, 0);
    assert_int_equal(copies[0].n_rows, 512);
    weir_fleet_close(fleet);
}

static void a_wider_reader_takes_from_several_publishers(void **state)
{
    (void)state;
    weir_fleet *fleet = NULL;
    weir_fleet_copy copies[3];
    assert_int_equal(open_publishers(8, 16, 4, &fleet), WEIR_OK);
    assert_int_equal(weir_fleet_copies(fleet, 1, copies, 3), 2);
    for (uint32_t i = 0; i < 2; i++) {
        assert_int_equal(copies[i].rank, 2 + i);
        assert_int_equal(copies[i].row, i * 512);
        assert_int_equal(copies[i].n_rows, 512);
    }
    weir_fleet_close(fleet);
}

static void an_absent_publisher_leaves_a_gap(void **state)
{
    (void)state;
    weir_fleet *fleet = NULL;
    assert_int_equal(open_publishers(4, 1, 8, &fleet), WEIR_ERR_LAYOUT);
    assert_string_equal(weir_last_error(),
                        "t: coverage gap at axis 0 [1024, 2048): no rank holds it");
    assert_null(fleet);
}

static void stacked_experts_are_cut_between_experts_or_within(void **state)
{
    (void)state;
    weir_fleet_tensor t = tensor_of(WEIR_CUT_COLUMN, 16);
    weir_shape shape = { 3, { 4, 16, 8 } };
    weir_held held[4];
    weir_held_list list;
    const weir_holding *holdings;
    size_t n;
    t.n_experts = 4;
    t.stacked = true;
    assert_int_equal(weir_held_of_range(&t, 0, &shape, 0, 0, 2, &held[0]), WEIR_OK);
    assert_int_equal(weir_held_of_range(&t, 0, &shape, 1, 0, 8, &held[1]), WEIR_OK);
    assert_int_equal(weir_held_of_range(&t, 0, &shape, 1, 8, 16, &held[2]), WEIR_OK);
    held[0].rank = 0;
    held[1].rank = 1;
    held[2].rank = 2;
    memset(&list, 0, sizeof(list));
    assert_int_equal(weir_held_open(&list, held, 3, &t, 1), WEIR_OK);
    assert_int_equal(weir_held_holdings(&list, 0, &t, 0, 3, &holdings, &n), WEIR_OK);
    assert_int_equal(n, 2); /* expert 3: its two halves */
    assert_int_equal(holdings[0].rank, 1);
    assert_int_equal(holdings[1].rank, 2);
    assert_int_equal(weir_held_holdings(&list, 0, &t, 0, 0, &holdings, &n), WEIR_OK);
    assert_int_equal(holdings[0].rank, 0); /* which has been asked for nothing yet */
    weir_held_close(&list);
}

/* They are two pieces of memory: no copy reads across. */
static void boxes_of_one_rank_that_touch_stay_apart(void **state)
{
    (void)state;
    weir_fleet_tensor t = tensor_of(WEIR_CUT_COLUMN, 16);
    weir_shape shape = { 2, { 16, 8 } };
    weir_held held[2];
    weir_held_list list;
    const weir_holding *holdings;
    size_t n;
    assert_int_equal(weir_held_of_range(&t, 0, &shape, 0, 0, 8, &held[0]), WEIR_OK);
    assert_int_equal(weir_held_of_range(&t, 0, &shape, 0, 8, 16, &held[1]), WEIR_OK);
    memset(&list, 0, sizeof(list));
    assert_int_equal(weir_held_open(&list, held, 2, &t, 1), WEIR_OK);
    assert_int_equal(weir_held_holdings(&list, 0, &t, 0, 0, &holdings, &n), WEIR_OK);
    assert_int_equal(n, 2);
    assert_int_equal(holdings[0].rank, holdings[1].rank);
    assert_int_not_equal(holdings[0].box, holdings[1].box);
    weir_held_close(&list);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_narrower_reader_takes_a_part_of_one_publisher),
        cmocka_unit_test(a_wider_reader_takes_from_several_publishers),
        cmocka_unit_test(an_absent_publisher_leaves_a_gap),
        cmocka_unit_test(stacked_experts_are_cut_between_experts_or_within),
        cmocka_unit_test(boxes_of_one_rank_that_touch_stay_apart),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
