/* SPDX-License-Identifier: Apache-2.0 */
#include "plan/exact_cover.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/alloc.h"
#include "base/clock.h"

#define MAX_BOXES 64

/* Sanitizers slow everything down. */
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__) || !defined(__OPTIMIZE__)
#define TIME_FACTOR 20
#else
#define TIME_FACTOR 1
#endif

static weir_cover cover(const weir_shape *region, const weir_box *boxes, size_t n_boxes)
{
    weir_arena scratch;
    weir_cover found;
    const weir_box **list = calloc(n_boxes + 1, sizeof(const weir_box *));
    for (size_t i = 0; i < n_boxes; i++)
        list[i] = &boxes[i];
    weir_arena_init(&scratch, 0);
    assert_int_equal(weir_cover_of(region, list, n_boxes, &scratch, &found), WEIR_OK);
    weir_arena_close(&scratch);
    free(list);
    return found;
}

static void a_scalar_is_covered_by_one_box(void **state)
{
    (void)state;
    const weir_shape region = { 0, { 0 } };
    const weir_box boxes[2] = { { 0, { 0 }, { 0 } }, { 0, { 0 }, { 0 } } };
    assert_int_equal(cover(&region, boxes, 1).kind, WEIR_COVER_EXACT);
    assert_int_equal(cover(&region, boxes, 2).kind, WEIR_COVER_OVERLAP);
}

/* Five boxes that no straight cut separates. */
static void a_pinwheel_is_exact(void **state)
{
    (void)state;
    const weir_shape region = { 2, { 3, 3 } };
    weir_box boxes[] = { { 2, { 0, 0 }, { 1, 2 } },
                         { 2, { 0, 2 }, { 2, 3 } },
                         { 2, { 2, 1 }, { 3, 3 } },
                         { 2, { 1, 0 }, { 3, 1 } },
                         { 2, { 1, 1 }, { 2, 2 } } };
    assert_int_equal(cover(&region, boxes, 5).kind, WEIR_COVER_EXACT);
    weir_cover found = cover(&region, boxes, 4);
    assert_int_equal(found.kind, WEIR_COVER_GAP);
    assert_int_equal(found.axis, 1);
    assert_int_equal(found.at[0], 1);
    assert_int_equal(found.lo, 1);
    assert_int_equal(found.hi, 2);
}

/* As many elements as the region has, so that counting alone would not show it. */
static void an_overlap_and_a_gap_do_not_make_up_for_each_other(void **state)
{
    (void)state;
    const weir_shape region = { 2, { 4, 4 } };
    const weir_box boxes[] = { { 2, { 0, 0 }, { 2, 4 } },
                               { 2, { 1, 0 }, { 2, 4 } },
                               { 2, { 3, 0 }, { 4, 4 } } };
    weir_cover found = cover(&region, boxes, 3);
    assert_int_equal(found.kind, WEIR_COVER_OVERLAP);
    assert_int_equal(found.first, 0);
    assert_int_equal(found.second, 1);
}

/* ---- against counting ------------------------------------------------------------------------*/

static uint64_t next_random(uint64_t *state)
{
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}

static uint64_t below(uint64_t *state, uint64_t n)
{
    return next_random(state) % n;
}

/* Cuts box `which` in two, or copies, moves or drops it. */
static size_t change(uint64_t *seed, weir_box *boxes, size_t n, size_t which, bool harmless)
{
    weir_box *box = &boxes[which];
    uint32_t d = (uint32_t)below(seed, box->rank);
    uint64_t extent = box->hi[d] - box->lo[d];
    if (harmless && extent > 1) {
        boxes[n] = *box;
        boxes[n].lo[d] = box->hi[d] = box->lo[d] + 1 + below(seed, extent - 1);
        return n + 1;
    }
    if (harmless)
        return n;
    if (extent > 1 && below(seed, 2) == 0)
        box->lo[d]++;
    else
        boxes[which] = boxes[below(seed, n)];
    return n;
}

static unsigned count_at(const weir_box *boxes, size_t n, const uint64_t *at, uint32_t rank)
{
    unsigned count = 0;
    for (size_t i = 0; i < n; i++) {
        bool within = true;
        for (uint32_t d = 0; d < rank; d++)
            within &= boxes[i].lo[d] <= at[d] && at[d] < boxes[i].hi[d];
        count += within;
    }
    return count;
}

/* The first element that is not in one box; false: there is none. */
static bool find_wrong(const weir_shape *region, const weir_box *boxes, size_t n,
                       uint64_t at[WEIR_MAX_RANK], unsigned *out_count)
{
    uint64_t n_elements;
    assert_int_equal(weir_shape_elements(region, &n_elements), WEIR_OK);
    for (uint64_t e = 0; e < n_elements; e++) {
        uint64_t rest = e;
        for (uint32_t d = region->rank; d-- > 0; rest /= region->dim[d])
            at[d] = rest % region->dim[d];
        *out_count = count_at(boxes, n, at, region->rank);
        if (*out_count != 1)
            return true;
    }
    return false;
}

static void assert_as_counted(const weir_shape *region, const weir_box *boxes, size_t n)
{
    uint64_t at[WEIR_MAX_RANK] = { 0 };
    unsigned count = 0;
    weir_cover found = cover(region, boxes, n);
    if (!find_wrong(region, boxes, n, at, &count)) {
        assert_int_equal(found.kind, WEIR_COVER_EXACT);
        return;
    }
    assert_int_equal(found.kind, count == 0 ? WEIR_COVER_GAP : WEIR_COVER_OVERLAP);
    assert_memory_equal(found.at, at, region->rank * sizeof(at[0]));
    if (count > 1) {
        assert_true(found.first < found.second);
        assert_int_equal(count_at(&boxes[found.first], 1, at, region->rank), 1);
        assert_int_equal(count_at(&boxes[found.second], 1, at, region->rank), 1);
        return;
    }
    assert_int_equal(found.lo, at[found.axis]);
    for (at[found.axis] = found.lo; at[found.axis] < found.hi; at[found.axis]++)
        assert_int_equal(count_at(boxes, n, at, region->rank), 0);
}

static void every_verdict_agrees_with_counting_element_by_element(void **state)
{
    (void)state;
    uint64_t seed = 0x5eed1234;
    size_t n_exact = 0;
    for (int i = 0; i < 20000; i++) {
        weir_box boxes[MAX_BOXES];
        weir_shape region = { .rank = 1 + (uint32_t)below(&seed, 4) };
        for (uint32_t d = 0; d < region.rank; d++)
            region.dim[d] = 1 + below(&seed, 5);
        size_t n = 1, n_cuts = below(&seed, MAX_BOXES / 2), n_faults = below(&seed, 3);
        boxes[0] = weir_box_whole(&region);
        for (size_t k = 0; k < n_cuts; k++)
            n = change(&seed, boxes, n, below(&seed, n), true);
        for (size_t k = 0; k < n_faults; k++)
            n = change(&seed, boxes, n, below(&seed, n), false);
        n_exact += cover(&region, boxes, n).kind == WEIR_COVER_EXACT;
        assert_as_counted(&region, boxes, n);
    }
    assert_true(n_exact > 1000 && n_exact < 19000);
}

/* ---- hostile boxes ---------------------------------------------------------------------------*/

/* Each overlaps each other: whoever compared them in pairs would be at it for minutes. */
static void nested_boxes_are_refused_as_fast_as_they_sort(void **state)
{
    (void)state;
    enum { N = 100000 };
    const weir_shape region = { 3, { 2 * N, 2 * N, UINT64_MAX >> 40 } };
    weir_box *boxes = calloc(N, sizeof(*boxes));
    for (uint64_t i = 0; i < N; i++)
        boxes[i] = (weir_box){ 3, { i, i, i }, { 2 * N - i, 2 * N - i, region.dim[2] - i } };
    double begun = weir_now_s();
    weir_cover found = cover(&region, boxes, N);
    double took = weir_now_s() - begun;
    assert_int_equal(found.kind, WEIR_COVER_OVERLAP);
    assert_int_equal(found.first, 0);
    assert_int_equal(found.second, 1);
    print_message("refused %d nested boxes in %.3f s\n", N, took);
    assert_true(took < 5.0 * TIME_FACTOR);
    free(boxes);
}

static void corners_beyond_count_are_refused_unseen(void **state)
{
    (void)state;
    enum { N = 20000 };
    weir_shape region = { .rank = WEIR_MAX_RANK };
    weir_box *boxes = calloc(N, sizeof(*boxes));
    for (uint32_t d = 0; d < WEIR_MAX_RANK; d++)
        region.dim[d] = 16;
    for (size_t i = 0; i < N; i++) {
        boxes[i] = weir_box_whole(&region);
        for (uint32_t d = 0; d < WEIR_MAX_RANK; d++)
            boxes[i].hi[d] = 1 + i % 15;
    }
    weir_cover found = cover(&region, boxes, N);
    assert_int_equal(found.kind, WEIR_COVER_TOO_FINE);
    assert_int_equal(found.n_cut_axes, WEIR_MAX_RANK);
    double begun = weir_now_s();
    assert_int_equal(cover(&region, boxes, 16000).kind, WEIR_COVER_OVERLAP);
    print_message("compared the most corners there may be in %.3f s\n", weir_now_s() - begun);
    free(boxes);
}

static void bounds_near_the_end_of_numbers_are_compared(void **state)
{
    (void)state;
    const weir_shape region = { 1, { UINT64_MAX } };
    const weir_box boxes[] = { { 1, { 0 }, { UINT64_MAX - 1 } },
                               { 1, { UINT64_MAX - 1 }, { UINT64_MAX } } };
    assert_int_equal(cover(&region, boxes, 2).kind, WEIR_COVER_EXACT);
    assert_int_equal(cover(&region, boxes, 1).kind, WEIR_COVER_GAP);
    assert_int_equal(cover(&region, boxes, 0).kind, WEIR_COVER_GAP);
}

static void every_allocation_may_fail(void **state)
{
    (void)state;
    const weir_shape region = { 1, { 4 } };
    const weir_box boxes[] = { { 1, { 0 }, { 1 } }, { 1, { 1 }, { 4 } } };
    const weir_box *list[] = { &boxes[0], &boxes[1] };
    weir_arena scratch;
    weir_cover found;
    weir_arena_init(&scratch, 0);
    weir_alloc_fail_at(1);
    assert_int_equal(weir_cover_of(&region, list, 2, &scratch, &found), WEIR_ERR_NO_MEMORY);
    weir_alloc_fail_at(0);
    weir_arena_close(&scratch);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_scalar_is_covered_by_one_box),
        cmocka_unit_test(a_pinwheel_is_exact),
        cmocka_unit_test(an_overlap_and_a_gap_do_not_make_up_for_each_other),
        cmocka_unit_test(every_verdict_agrees_with_counting_element_by_element),
        cmocka_unit_test(nested_boxes_are_refused_as_fast_as_they_sort),
        cmocka_unit_test(corners_beyond_count_are_refused_unseen),
        cmocka_unit_test(bounds_near_the_end_of_numbers_are_compared),
        cmocka_unit_test(every_allocation_may_fail),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
