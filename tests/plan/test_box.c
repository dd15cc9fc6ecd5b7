/* SPDX-License-Identifier: Apache-2.0 */
#include "plan/box.h"

#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

static const weir_shape experts = { 3, { 4, 8, 16 } };

static void text_is_ranges_axis_by_axis(void **state)
{
    char text[WEIR_BOX_TEXT];
    (void)state;
    const weir_box box = { 3, { 0, 2, 4 }, { 4, 8, 16 } };
    assert_string_equal(weir_box_text(&box, text), "[0, 4) x [2, 8) x [4, 16)");
    assert_string_equal(weir_box_text(&(weir_box){ 0, { 0 }, { 0 } }, text), "[]");
    weir_box large = { .rank = 4000000 }; /* from outside: only what there is room for is read */
    for (int d = 0; d < WEIR_MAX_RANK; d++)
        large.lo[d] = large.hi[d] = UINT64_MAX;
    assert_int_equal(strlen(weir_box_text(&large, text)), WEIR_MAX_RANK * (2 * 20 + 4) + 7 * 3);
}

static void a_box_fits_when_it_lies_within_and_is_not_empty(void **state)
{
    (void)state;
    assert_true(weir_box_fits(&(weir_box){ 3, { 0, 2, 4 }, { 4, 8, 16 } }, &experts));
    assert_false(weir_box_fits(&(weir_box){ 2, { 0, 2 }, { 4, 8 } }, &experts));
    assert_false(weir_box_fits(&(weir_box){ 3, { 0, 2, 4 }, { 5, 8, 16 } }, &experts));
    assert_false(weir_box_fits(&(weir_box){ 3, { 0, 2, 4 }, { 4, 2, 16 } }, &experts));
    assert_false(weir_box_fits(&(weir_box){ 3, { 0, 2, 4 }, { 4, 1, 16 } }, &experts));
    const weir_box far = { .rank = WEIR_MAX_RANK + 1 };
    assert_false(weir_box_fits(&far, &(weir_shape){ .rank = WEIR_MAX_RANK + 1 }));
}

static void of_an_empty_shape_only_empty_boxes_fit(void **state)
{
    const weir_shape empty = { 2, { 0, 8 } };
    (void)state;
    assert_true(weir_box_fits(&(weir_box){ 2, { 0, 0 }, { 0, 8 } }, &empty));
    assert_true(weir_box_fits(&(weir_box){ 2, { 0, 0 }, { 0, 0 } }, &empty));
    assert_false(weir_box_fits(&(weir_box){ 2, { 0, 0 }, { 1, 8 } }, &empty));
}

static void expect_runs(weir_dtype dtype, const weir_shape *shape, weir_box box,
                        weir_box_runs expected)
{
    weir_box_runs runs;
    assert_int_equal(weir_box_runs_of(dtype, shape, &box, &runs), WEIR_BOX_GOOD);
    assert_int_equal(runs.offset, expected.offset);
    assert_int_equal(runs.n_bytes, expected.n_bytes);
    assert_int_equal(runs.run_bytes, expected.run_bytes);
    assert_int_equal(runs.pitch_bytes, expected.pitch_bytes);
}

static void rows_columns_and_experts_are_equally_spaced(void **state)
{
    (void)state;
    weir_dtype two = WEIR_BF16;
    expect_runs(two, &experts, weir_box_whole(&experts), (weir_box_runs){ 0, 1024, 1024, 0 });
    expect_runs(two, &experts, (weir_box){ 3, { 1, 0, 0 }, { 3, 8, 16 } },
                (weir_box_runs){ 256, 512, 512, 0 });
    expect_runs(two, &experts, (weir_box){ 3, { 1, 2, 0 }, { 3, 4, 16 } },
                (weir_box_runs){ 320, 128, 64, 256 });
    expect_runs(two, &experts, (weir_box){ 3, { 1, 2, 4 }, { 2, 4, 8 } },
                (weir_box_runs){ 328, 16, 8, 32 });
    expect_runs(two, &experts, (weir_box){ 3, { 0, 0, 4 }, { 4, 8, 8 } },
                (weir_box_runs){ 8, 256, 8, 32 }); /* the same columns of all experts */
    expect_runs(two, &experts, (weir_box){ 3, { 0, 3, 4 }, { 4, 4, 8 } },
                (weir_box_runs){ 104, 32, 8, 256 }); /* of one row of each */
    expect_runs(two, &(weir_shape){ 0, { 0 } }, (weir_box){ 0, { 0 }, { 0 } },
                (weir_box_runs){ 0, 2, 2, 0 });
    expect_runs(two, &(weir_shape){ 2, { 0, 8 } }, (weir_box){ 2, { 0, 0 }, { 0, 8 } },
                (weir_box_runs){ 0, 0, 0, 0 });
}

static void what_is_not_equally_spaced_is_said_so(void **state)
{
    weir_box_runs runs;
    (void)state;
    const weir_box columns_of_some_rows = { 3, { 0, 2, 4 }, { 2, 4, 8 } };
    assert_int_equal(weir_box_runs_of(WEIR_BF16, &experts, &columns_of_some_rows, &runs),
                     WEIR_BOX_UNEVEN);
}

static void runs_within_bytes_are_said_so(void **state)
{
    weir_box_runs runs;
    (void)state;
    const weir_shape shape = { 2, { 4, 10 } }, odd = { 2, { 3, 3 } };
    expect_runs(WEIR_F4, &shape, (weir_box){ 2, { 1, 2 }, { 3, 8 } },
                (weir_box_runs){ 6, 6, 3, 5 });
    const weir_box odd_start = { 2, { 0, 1 }, { 4, 3 } }, odd_run = { 2, { 0, 0 }, { 4, 3 } };
    assert_int_equal(weir_box_runs_of(WEIR_F4, &shape, &odd_start, &runs), WEIR_BOX_BITS);
    assert_int_equal(weir_box_runs_of(WEIR_F4, &shape, &odd_run, &runs), WEIR_BOX_BITS);
    const weir_box whole = weir_box_whole(&odd);
    assert_int_equal(weir_box_runs_of(WEIR_F4, &odd, &whole, &runs), WEIR_BOX_BITS);
}

static void a_tensor_beyond_64_bits_has_no_runs(void **state)
{
    weir_box_runs runs;
    (void)state;
    const weir_shape huge = { 3, { UINT64_MAX, UINT64_MAX, 2 } };
    const weir_box box = { 3, { UINT64_MAX - 1, 0, 0 }, { UINT64_MAX, 1, 1 } };
    assert_int_equal(weir_box_runs_of(WEIR_BF16, &huge, &box, &runs), WEIR_BOX_BITS);
    assert_int_equal(weir_box_runs_of((weir_dtype)200, &experts, &box, &runs), WEIR_BOX_BITS);
}

static void boxes_are_equal_when_all_bounds_are(void **state)
{
    (void)state;
    const weir_box a = { 2, { 0, 1 }, { 2, 3 } }, b = { 2, { 0, 1 }, { 2, 4 } };
    const weir_box shorter = { 1, { 0 }, { 2 } };
    assert_true(weir_box_equal(&a, &a));
    assert_false(weir_box_equal(&a, &b));
    assert_false(weir_box_equal(&shorter, &a));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(text_is_ranges_axis_by_axis),
        cmocka_unit_test(a_box_fits_when_it_lies_within_and_is_not_empty),
        cmocka_unit_test(of_an_empty_shape_only_empty_boxes_fit),
        cmocka_unit_test(rows_columns_and_experts_are_equally_spaced),
        cmocka_unit_test(what_is_not_equally_spaced_is_said_so),
        cmocka_unit_test(runs_within_bytes_are_said_so),
        cmocka_unit_test(a_tensor_beyond_64_bits_has_no_runs),
        cmocka_unit_test(boxes_are_equal_when_all_bounds_are),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
