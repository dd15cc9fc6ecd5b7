/* SPDX-License-Identifier: Apache-2.0 */
#include "refit/find_nonfinite.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

static weir_tensor_shard floats(const char *name, float *data)
{
    return (weir_tensor_shard){ .local = { name, WEIR_F32, { 2, { 2, 3 } }, data },
                                .global_shape = { 2, { 10, 20 } },
                                .box = { 2, { 4, 5 }, { 6, 8 } } };
}

static void a_weight_is_named_by_its_place_in_the_whole_tensor(void **state)
{
    (void)state;
    float data[6] = { 0 };
    weir_tensor_shard shard = floats("a", data);
    assert_int_equal(weir_find_nonfinite(&shard, 1, true), WEIR_OK);
    data[5] = -INFINITY;
    assert_int_equal(weir_find_nonfinite(&shard, 1, true), WEIR_ERR_NONFINITE);
    assert_string_equal(weir_last_error(), "a[5, 7] is -Inf");
    data[1] = NAN;
    assert_int_equal(weir_find_nonfinite(&shard, 1, false), WEIR_ERR_NONFINITE);
    assert_string_equal(weir_last_error(), "a[4, 6] is NaN");
}

static void experts_are_counted_from_the_first_of_the_model(void **state)
{
    (void)state;
    uint16_t data[2 * 2 * 2] = { 0 };
    weir_tensor_shard shard = { .local = { "stack", WEIR_BF16, { 3, { 2, 2, 2 } }, data },
                                .global_shape = { 3, { 8, 4, 2 } },
                                .box = { 3, { 6, 2, 0 }, { 8, 4, 2 } } };
    data[7] = 0x7F80;
    assert_int_equal(weir_find_nonfinite(&shard, 1, false), WEIR_ERR_NONFINITE);
    assert_string_equal(weir_last_error(), "stack[7, 3, 1] is +Inf");
}

static void what_rounding_would_make_infinite_comes_after_what_is(void **state)
{
    (void)state;
    float first[6] = { 3.4e38f }, second[6] = { 0, NAN };
    weir_tensor_shard shards[] = { floats("first", first), floats("second", second) };
    assert_int_equal(weir_find_nonfinite(shards, 2, true), WEIR_ERR_NONFINITE);
    assert_string_equal(weir_last_error(), "second[4, 6] is NaN");
    assert_int_equal(weir_find_nonfinite(shards, 1, false), WEIR_OK);
    assert_int_equal(weir_find_nonfinite(shards, 1, true), WEIR_ERR_NONFINITE);
    assert_string_equal(weir_last_error(), "first[4, 5] rounds to Inf in bf16");
}

static void what_is_no_float_or_has_no_memory_is_passed_over(void **state)
{
    (void)state;
    uint32_t ones[6];
    memset(ones, 0xFF, sizeof(ones));
    weir_tensor_shard shards[] = { floats("a", (float *)(void *)ones), floats("b", NULL) };
    shards[0].local.dtype = WEIR_I32;
    assert_int_equal(weir_find_nonfinite(shards, 2, true), WEIR_OK);
    shards[0].local.dtype = WEIR_F32;
    shards[0].local.shape.dim[0] = shards[0].box.hi[0] = 0; /* empty */
    assert_int_equal(weir_find_nonfinite(shards, 2, true), WEIR_OK);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_weight_is_named_by_its_place_in_the_whole_tensor),
        cmocka_unit_test(experts_are_counted_from_the_first_of_the_model),
        cmocka_unit_test(what_rounding_would_make_infinite_comes_after_what_is),
        cmocka_unit_test(what_is_no_float_or_has_no_memory_is_passed_over),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
