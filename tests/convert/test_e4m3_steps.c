/* SPDX-License-Identifier: Apache-2.0 */
/* The tables that the x86 kernels look up, against the recipe that they replace. */
#include "convert/convert_case.h"

#include "convert/e4m3_steps.h"
#include "convert/fp8_recipe.h"

static uint8_t looked_up(const weir_e4m3_steps *steps, uint32_t magnitude, uint32_t exponent)
{
    int offset = 128 * ((int)exponent - 127);
    if ((int)magnitude >= steps->normal + offset)
        return (uint8_t)((magnitude >> 4) + steps->delta[magnitude & 127] - 8 * exponent);
    uint8_t code = 0;
    for (int k = 0; k < 8; k++)
        code += (int)magnitude >= steps->subnormal[k] + offset;
    return code;
}

static void check_amax(uint32_t amax)
{
    float scale = weir_fp8_scale(weir_float_from_bf16((uint16_t)amax));
    const weir_e4m3_steps *steps = weir_e4m3_steps_of((uint16_t)amax, scale);
    uint32_t exponent = weir_float_bits(scale) >> 23, n_different = 0;
    for (uint32_t magnitude = 0; magnitude <= amax; magnitude++)
        n_different += looked_up(steps, magnitude, exponent) !=
                       weir_fp8_code(weir_float_from_bf16((uint16_t)magnitude), scale);
    if (n_different != 0)
        fail_msg("%u codes differ for amax 0x%04X", n_different, amax);
}

/* All 256 largest magnitudes of two binades, those at the scale's floor, and a sample of the
 * rest; all magnitudes below each. */
static void tables_equal_the_recipe(void **state)
{
    (void)state;
    for (uint32_t amax = 0; amax < 0x80; amax++)
        check_amax(amax);
    for (uint32_t amax = 0x3F00; amax < 0x4000; amax++)
        check_amax(amax);
    for (uint32_t amax = 0x2E80; amax < 0x3080; amax += 3) /* 4.48e-10 lies in here */
        check_amax(amax);
    for (uint32_t amax = 0x80; amax < 0x7F80; amax += 61)
        check_amax(amax);
    check_amax(0x7F7F);
}

static void each_run_of_eight_steps_at_most_once(void **state)
{
    (void)state;
    for (uint32_t amax = 0x2E80; amax < 0x3F80; amax++) {
        float scale = weir_fp8_scale(weir_float_from_bf16((uint16_t)amax));
        const weir_e4m3_steps *steps = weir_e4m3_steps_of((uint16_t)amax, scale);
        for (uint32_t m = 0; m < 128; m++)
            assert_int_equal(steps->delta[m],
                             (uint8_t)(steps->base[m >> 3] + ((m & 7) >= steps->step[m >> 3])));
    }
}

/* A14: an element as large as its block's largest is 0x7E, wherever the scale is above its floor.
 */
static void largest_element_gets_the_largest_code(void **state)
{
    (void)state;
    for (uint32_t amax = 1; amax < 0x7F80; amax++) {
        float value = weir_float_from_bf16((uint16_t)amax);
        if (value >= 4.48e-10f)
            assert_int_equal(weir_fp8_code(value, weir_fp8_scale(value)), 0x7E);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(tables_equal_the_recipe),
        cmocka_unit_test(each_run_of_eight_steps_at_most_once),
        cmocka_unit_test(largest_element_gets_the_largest_code),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
