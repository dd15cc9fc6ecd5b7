/* SPDX-License-Identifier: Apache-2.0 */
/* Arithmetic on shapes and boxes, with values that overflow. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <string.h>

#include "weir/tensor.h"

static void equal_shapes_agree_in_rank_and_dims(void **state)
{
    (void)state;
    const weir_shape a = { 2, { 3, 4, 9 } }, b = { 2, { 3, 4, 7 } }, c = { 3, { 3, 4, 9 } };
    const weir_shape d = { 2, { 4, 3 } };
    assert_true(weir_shape_equal(&a, &b)); /* what lies beyond the rank does not count */
    assert_false(weir_shape_equal(&a, &c));
    assert_false(weir_shape_equal(&a, &d));
}

static void elements_are_the_product(void **state)
{
    (void)state;
    const weir_shape scalar = { 0, { 0 } }, matrix = { 2, { 3, 5 } }, empty = { 2, { 7, 0 } };
    const weir_shape most = { 2, { 1ull << 32, (1ull << 32) - 1 } };
    uint64_t n;
    assert_int_equal(weir_shape_elements(&scalar, &n), WEIR_OK);
    assert_int_equal(n, 1);
    assert_int_equal(weir_shape_elements(&matrix, &n), WEIR_OK);
    assert_int_equal(n, 15);
    assert_int_equal(weir_shape_elements(&empty, &n), WEIR_OK);
    assert_int_equal(n, 0);
    assert_int_equal(weir_shape_elements(&most, &n), WEIR_OK);
    assert_true(n == 0xFFFFFFFF00000000ull);
}

static void a_product_over_64_bits_is_refused(void **state)
{
    (void)state;
    const weir_shape huge = { 2, { 1ull << 32, 1ull << 32 } }, ranks = { 9, { 1 } };
    const weir_shape empty = { 3, { 1ull << 40, 1ull << 40, 0 } };
    uint64_t n = 42;
    assert_int_equal(weir_shape_elements(&huge, &n), WEIR_ERR_INVALID);
    assert_non_null(strstr(weir_last_error(), "[4294967296, 4294967296]"));
    assert_int_equal(weir_shape_elements(&ranks, &n), WEIR_ERR_INVALID);
    assert_int_equal(n, 42);
    assert_int_equal(weir_shape_elements(&empty, &n), WEIR_OK);
    assert_int_equal(n, 0);
}

static void bytes_count_bits_of_the_dtype(void **state)
{
    (void)state;
    const weir_shape shape = { 2, { 2, 4 } };
    uint64_t n;
    for (int dtype = 1; dtype < WEIR_DTYPE_END; dtype++) {
        assert_int_equal(weir_tensor_bytes((weir_dtype)dtype, &shape, &n), WEIR_OK);
        assert_int_equal(n, weir_dtype_bits((weir_dtype)dtype));
    }
}

static void bytes_that_are_not_whole_or_overflow_are_refused(void **state)
{
    (void)state;
    const weir_shape three = { 1, { 3 } }, huge = { 1, { 1ull << 61 } };
    uint64_t n = 42;
    assert_int_equal(weir_tensor_bytes(WEIR_F4, &three, &n), WEIR_ERR_INVALID);
    assert_int_equal(weir_tensor_bytes(WEIR_F6_E2M3, &three, &n), WEIR_ERR_INVALID);
    assert_int_equal(weir_tensor_bytes(WEIR_U8, &huge, &n), WEIR_ERR_INVALID);
    assert_int_equal(weir_tensor_bytes(WEIR_DTYPE_NONE, &three, &n), WEIR_ERR_INVALID);
    assert_int_equal(weir_tensor_bytes((weir_dtype)77, &three, &n), WEIR_ERR_INVALID);
    assert_int_equal(n, 42);
}

static void text_fits_its_buffer(void **state)
{
    (void)state;
    const weir_shape shape = { 3, { 4, 320, 256 } }, scalar = { 0, { 0 } };
    weir_shape longest = { WEIR_MAX_RANK, { 0 } };
    char text[WEIR_SHAPE_TEXT], small[6];
    for (int d = 0; d < WEIR_MAX_RANK; d++)
        longest.dim[d] = UINT64_MAX;
    assert_string_equal(weir_shape_text(&shape, text, sizeof(text)), "[4, 320, 256]");
    assert_string_equal(weir_shape_text(&scalar, text, sizeof(text)), "[]");
    weir_shape_text(&longest, text, sizeof(text));
    assert_int_equal(text[strlen(text) - 1], ']');
    assert_string_equal(weir_shape_text(&shape, small, sizeof(small)), "[4, 3");
    assert_string_equal(weir_shape_text(&shape, NULL, 0), "");
}

static void boxes_meet_where_all_axes_do(void **state)
{
    (void)state;
    const weir_box a = { 2, { 0, 4 }, { 4, 8 } }, b = { 2, { 2, 0 }, { 9, 6 } };
    const weir_box apart = { 2, { 4, 0 }, { 6, 8 } }, line = { 1, { 0 }, { 9 } };
    weir_box out = { 7, { 0 }, { 0 } };
    assert_false(weir_box_intersect(&a, &apart, &out)); /* half open: 4 is not in a */
    assert_false(weir_box_intersect(&a, &line, &out));
    assert_int_equal(out.rank, 7);
    assert_true(weir_box_intersect(&a, &b, &out));
    assert_int_equal(out.rank, 2);
    assert_int_equal(out.lo[0], 2);
    assert_int_equal(out.hi[0], 4);
    assert_int_equal(out.lo[1], 4);
    assert_int_equal(out.hi[1], 6);
}

static void the_whole_box_has_the_shape(void **state)
{
    (void)state;
    const weir_shape shape = { 3, { 4, 0, 256 } };
    const weir_box whole = weir_box_whole(&shape);
    const weir_shape back = weir_box_shape(&whole);
    assert_true(weir_shape_equal(&shape, &back));
    for (int d = 0; d < 3; d++)
        assert_int_equal(whole.lo[d], 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(equal_shapes_agree_in_rank_and_dims),
        cmocka_unit_test(elements_are_the_product),
        cmocka_unit_test(a_product_over_64_bits_is_refused),
        cmocka_unit_test(bytes_count_bits_of_the_dtype),
        cmocka_unit_test(bytes_that_are_not_whole_or_overflow_are_refused),
        cmocka_unit_test(text_fits_its_buffer),
        cmocka_unit_test(boxes_meet_where_all_axes_do),
        cmocka_unit_test(the_whole_box_has_the_shape),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
