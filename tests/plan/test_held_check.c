/* SPDX-License-Identifier: Apache-2.0 */
/* test_held_check.c - boxes that are the whole model, and those that are not, named. */
#include "plan/held_check.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/alloc.h"

static const weir_tensor matrix = { .name = "a", .dtype = WEIR_BF16, .shape = { 2, { 16, 8 } } };
static const weir_tensor stack = { .name = "s", .dtype = WEIR_BF16, .shape = { 3, { 4, 16, 8 } } };
static const weir_tensor apart[] = {
    { .name = "x0", .dtype = WEIR_BF16, .shape = { 2, { 16, 8 } } },
    { .name = "x1", .dtype = WEIR_BF16, .shape = { 2, { 16, 8 } } },
};

/* A matrix, a stack of experts, and experts that have a tensor each. */
static const weir_map_entry entries[] = {
    { .sources = &matrix, .n_sources = 1 },
    { .sources = &stack, .n_sources = 1 },
    { .sources = apart, .n_sources = 1, .n_experts = 2 },
};
static const weir_fleet_tensor tensors[] = {
    { .name = "A", .n_cols = 8, .n_sources = 1, .source_rows = { 16 } },
    { .name = "S",
      .n_cols = 8,
      .n_sources = 1,
      .source_rows = { 16 },
      .n_experts = 4,
      .stacked = true },
    { .name = "X", .n_cols = 8, .n_sources = 1, .source_rows = { 16 }, .n_experts = 2 },
};

static weir_held box(uint32_t rank, uint64_t row_lo, uint64_t row_hi, uint64_t col_lo,
                     uint64_t col_hi)
{
    return (weir_held){ .rank = rank,
                        .expert_hi = 1,
                        .row_lo = row_lo,
                        .row_hi = row_hi,
                        .col_lo = col_lo,
                        .col_hi = col_hi };
}

static weir_held experts(uint32_t rank, uint32_t tensor, uint32_t lo, uint32_t hi)
{
    weir_held held = box(rank, 0, 16, 0, 8);
    held.tensor = tensor;
    held.expert_lo = lo;
    held.expert_hi = hi;
    return held;
}

static weir_status check(uint32_t tensor, const weir_held *held, size_t n)
{
    weir_described_model model = { &entries[tensor], &tensors[tensor], 1 };
    weir_held *own = calloc(n + 1, sizeof(*own));
    assert_non_null(own);
    for (size_t i = 0; i < n; i++) {
        own[i] = held[i];
        own[i].tensor = 0;
    }
    weir_status status = weir_held_check(&model, own, n);
    free(own);
    return status;
}

#define assert_whole(tensor, ...)                                           \
    do {                                                                    \
        const weir_held held[] = { __VA_ARGS__ };                           \
        if (check(tensor, held, sizeof(held) / sizeof(held[0])) != WEIR_OK) \
            fail_msg("%s", weir_last_error());                              \
    } while (0)
#define assert_refused(tensor, line, ...)                                                       \
    do {                                                                                        \
        const weir_held held[] = { __VA_ARGS__ };                                               \
        assert_int_equal(check(tensor, held, sizeof(held) / sizeof(held[0])), WEIR_ERR_LAYOUT); \
        assert_string_equal(weir_last_error(), line);                                           \
    } while (0)

static void boxes_that_tile_a_matrix_are_all_of_it(void **state)
{
    (void)state;
    assert_whole(0, box(0, 0, 16, 0, 8));
    assert_whole(0, box(2, 9, 16, 0, 8), box(0, 0, 9, 0, 8));
    assert_whole(0, box(0, 0, 7, 0, 3), box(1, 0, 7, 3, 8), box(1, 7, 16, 0, 5),
                 box(0, 7, 16, 5, 8));
    /* A pinwheel has no line across. */
    assert_whole(0, box(0, 0, 10, 0, 3), box(1, 10, 16, 0, 5), box(2, 6, 16, 5, 8),
                 box(3, 0, 6, 3, 8), box(4, 6, 10, 3, 5));
}

static void ranks_may_hold_the_same_box(void **state)
{
    (void)state;
    assert_whole(0, box(0, 0, 9, 0, 8), box(1, 0, 9, 0, 8), box(2, 9, 16, 0, 8));
    assert_whole(1, experts(0, 1, 0, 3), experts(1, 1, 1, 4));
    assert_whole(2, experts(0, 2, 0, 2), experts(1, 2, 1, 2));
}

static void gaps_are_named_by_axis_range_and_neighbours(void **state)
{
    (void)state;
    assert_refused(0,
                   "a: coverage gap at axis 0 [4, 9): no rank holds it; held by rank 0 axis 0 "
                   "[0, 4), rank 2 axis 0 [9, 16)",
                   box(0, 0, 4, 0, 8), box(2, 9, 16, 0, 8));
    assert_refused(0,
                   "a: coverage gap at axis 1 [3, 6): no rank holds it; held by rank 0 axis 1 "
                   "[0, 3), rank 1 axis 1 [6, 8)",
                   box(0, 0, 16, 0, 3), box(1, 0, 16, 6, 8));
    assert_refused(0,
                   "a: coverage gap at axis 0 [6, 10) x axis 1 [3, 5): no rank holds it; held by "
                   "rank 0 axis 0 [0, 10) x axis 1 [0, 3), rank 3 axis 0 [0, 6) x axis 1 [3, 8), "
                   "rank 2 axis 0 [6, 16) x axis 1 [5, 8) and others",
                   box(0, 0, 10, 0, 3), box(1, 10, 16, 0, 5), box(2, 6, 16, 5, 8),
                   box(3, 0, 6, 3, 8));
    assert_refused(0,
                   "a: coverage gap at axis 0 [12, 16): no rank holds it; held by rank 5 axis 0 "
                   "[0, 12)",
                   box(5, 0, 12, 0, 8));
}

static void experts_that_nobody_holds_are_named(void **state)
{
    (void)state;
    assert_refused(1, "s, expert 2: coverage gap: no rank holds any of it", experts(0, 1, 0, 2),
                   experts(1, 1, 3, 4));
    assert_refused(2, "x1: coverage gap: no rank holds any of it", experts(0, 2, 0, 1));
    weir_held half = experts(1, 1, 3, 4);
    half.row_lo = 8;
    assert_refused(1,
                   "s, expert 3: coverage gap at axis 1 [0, 8): no rank holds it; held by rank 1 "
                   "axis 1 [8, 16)",
                   experts(0, 1, 0, 3), half);
}

static void boxes_that_overlap_are_named_with_their_ranks(void **state)
{
    (void)state;
    assert_refused(0,
                   "a: rank 0 holds axis 0 [0, 9), which overlaps axis 0 [8, 16) of rank 1: ranks "
                   "hold the same box or nothing in common",
                   box(1, 8, 16, 0, 8), box(0, 0, 9, 0, 8));
    assert_refused(0,
                   "a: rank 0 holds axis 0 [0, 16), which overlaps axis 1 [0, 3) of rank 1: ranks "
                   "hold the same box or nothing in common",
                   box(0, 0, 16, 0, 8), box(1, 0, 16, 0, 3));
    assert_refused(0, "a: rank 1 holds axis 0 [0, 16) and, once more, axis 0 [0, 16)",
                   box(1, 0, 16, 0, 8), box(1, 0, 16, 0, 8));
    assert_refused(1, "s, expert 1: rank 4 holds axis 1 [0, 16) and, once more, axis 1 [0, 16)",
                   experts(4, 1, 0, 2), experts(4, 1, 1, 4));
}

static void a_model_of_which_there_is_nothing_is_refused(void **state)
{
    (void)state;
    assert_int_equal(check(0, NULL, 0), WEIR_ERR_LAYOUT);
    assert_string_equal(weir_last_error(), "a: coverage gap: no rank holds any of it");
}

static void every_lack_of_memory_is_reported(void **state)
{
    (void)state;
    const weir_held whole = box(0, 0, 16, 0, 8);
    weir_described_model model = { &entries[0], &tensors[0], 1 };
    weir_status status = WEIR_ERR_NO_MEMORY;
    uint64_t n = 0;
    while (status == WEIR_ERR_NO_MEMORY) {
        weir_alloc_fail_at(++n);
        status = weir_held_check(&model, &whole, 1);
        weir_alloc_fail_at(0);
    }
    assert_int_equal(status, WEIR_OK);
    assert_true(n > 2);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(boxes_that_tile_a_matrix_are_all_of_it),
        cmocka_unit_test(ranks_may_hold_the_same_box),
        cmocka_unit_test(gaps_are_named_by_axis_range_and_neighbours),
        cmocka_unit_test(experts_that_nobody_holds_are_named),
        cmocka_unit_test(boxes_that_overlap_are_named_with_their_ranks),
        cmocka_unit_test(a_model_of_which_there_is_nothing_is_refused),
        cmocka_unit_test(every_lack_of_memory_is_reported),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
