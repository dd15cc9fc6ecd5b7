/* SPDX-License-Identifier: Apache-2.0 */
/* Names and widths of the element types. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <string.h>

#include "weir/tensor.h"

static void every_name_leads_back_to_its_dtype(void **state)
{
    (void)state;
    for (int dtype = 1; dtype < WEIR_DTYPE_END; dtype++) {
        const char *name = weir_dtype_name((weir_dtype)dtype);
        assert_string_not_equal(name, "?");
        assert_int_equal(weir_dtype_from_name(name), dtype);
        assert_true(weir_dtype_bits((weir_dtype)dtype) > 0);
    }
}

static void numbers_that_travel_are_pinned(void **state)
{
    (void)state;
    assert_int_equal(WEIR_BF16, 11);
    assert_int_equal(WEIR_F32, 12);
    assert_int_equal(WEIR_F8_E4M3, 15);
    assert_int_equal(WEIR_F8_E8M0, 17);
    assert_int_equal(WEIR_F4, 22);
    assert_int_equal(WEIR_DTYPE_END, 23); /* fits a weir_dtype_set */
}

static void widths_are_those_of_the_format(void **state)
{
    (void)state;
    assert_int_equal(weir_dtype_bits(WEIR_BOOL), 8);
    assert_int_equal(weir_dtype_bits(WEIR_BF16), 16);
    assert_int_equal(weir_dtype_bits(WEIR_F32), 32);
    assert_int_equal(weir_dtype_bits(WEIR_C64), 64);
    assert_int_equal(weir_dtype_bits(WEIR_F8_E5M2FNUZ), 8);
    assert_int_equal(weir_dtype_bits(WEIR_F6_E3M2), 6);
    assert_int_equal(weir_dtype_bits(WEIR_F4), 4);
}

static void numbers_and_names_from_outside_are_safe(void **state)
{
    (void)state;
    static const int numbers[] = { 0, -1, WEIR_DTYPE_END, 1 << 30 };
    for (size_t i = 0; i < 4; i++) {
        assert_string_equal(weir_dtype_name((weir_dtype)numbers[i]), "?");
        assert_int_equal(weir_dtype_bits((weir_dtype)numbers[i]), 0);
    }
    assert_int_equal(weir_dtype_from_name(""), WEIR_DTYPE_NONE);
    assert_int_equal(weir_dtype_from_name("bf16"), WEIR_DTYPE_NONE);
    assert_int_equal(weir_dtype_from_name("BF16 "), WEIR_DTYPE_NONE);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_name_leads_back_to_its_dtype),
        cmocka_unit_test(numbers_that_travel_are_pinned),
        cmocka_unit_test(widths_are_those_of_the_format),
        cmocka_unit_test(numbers_and_names_from_outside_are_safe),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
