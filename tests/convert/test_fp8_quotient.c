/* SPDX-License-Identifier: Apache-2.0 */
/* test_fp8_quotient.c - the quotient that GPUs compute equals the division of the recipe, on a
 * machine without one: both compile the same header. */
#include "convert/cuda/fp8_quotient.h"

#include "convert/convert_case.h"
#include "convert/fp8_recipe.h"

/* Of the codes between -448 and 448; enough for a comparison. */
static uint8_t fast_code(float value, float scale)
{
    float quotient = weir_fp8_quotient(value, scale, 1.0f / scale);
    if (quotient > WEIR_E4M3_MAX)
        quotient = WEIR_E4M3_MAX;
    if (quotient < -WEIR_E4M3_MAX)
        quotient = -WEIR_E4M3_MAX;
    return weir_e4m3_from_float(quotient);
}

/* Every bf16 under the scale of every bf16 mantissa: what a bf16 weight can meet. */
static void every_bf16_has_the_code_of_the_division(void **state)
{
    (void)state;
    const uint32_t exponents[] = { 0x0F, 0x56, 0x57, 0x76, 0x7F, 0xFE };
    for (size_t e = 0; e < 6; e++) {
        for (uint32_t mantissa = 0; mantissa < 128; mantissa += e == 4 ? 1 : 17) {
            uint32_t top = exponents[e] << 7 | mantissa;
            float scale = weir_fp8_scale(weir_float_from_bf16((uint16_t)top));
            for (uint32_t bits = 0; bits <= top; bits++) {
                for (uint32_t sign = 0; sign <= 0x8000; sign += 0x8000) {
                    float value = weir_float_from_bf16((uint16_t)(bits | sign));
                    if (fast_code(value, scale) != weir_fp8_code(value, scale))
                        fail_msg("%04X under the scale of %04X", bits | sign, top);
                }
            }
        }
    }
}

/* A quotient that is off by its last place changes a code only at a tie of e4m3, a multiple of
 * 1/16 in [1, 2) times a power of two. Any x close to tie * scale, for one scale mantissa. */
static void check_ties(uint32_t mantissa)
{
    float scale = weir_float_from_bits(0x3F800000u | mantissa);
    for (int tie = 16; tie < 32; tie++) {
        uint32_t middle = weir_float_bits((float)((double)scale * tie / 16));
        for (uint32_t bits = middle - 3; bits <= middle + 3; bits++) {
            float value = weir_float_from_bits(bits), quotient = value / scale;
            if (weir_fp8_quotient(value, scale, 1.0f / scale) != quotient)
                fail_msg("%a / %a", (double)value, (double)scale);
        }
    }
}

static void quotients_next_to_ties_are_exact_for_any_scale(void **state)
{
    (void)state;
    for (uint32_t mantissa = 0; mantissa < 1u << 23; mantissa += 61)
        check_ties(mantissa);
    for (uint32_t mantissa = (1u << 23) - 4096; mantissa < 1u << 23; mantissa++)
        check_ties(mantissa);
}

static void a_zero_keeps_its_sign_and_subnormals_become_zeros(void **state)
{
    (void)state;
    const float scales[] = { WEIR_FP8_SCALE_FLOOR, 0.00223f, 1.0f, 7.6e35f };
    for (size_t i = 0; i < 4; i++) {
        assert_int_equal(fast_code(0.0f, scales[i]), 0x00);
        assert_int_equal(fast_code(-0.0f, scales[i]), 0x80);
        assert_int_equal(fast_code(0x1p-149f, scales[i]), 0x00);
        assert_int_equal(fast_code(-0x1p-149f, scales[i]), 0x80);
        assert_int_equal(fast_code(-0x1.8p-130f, scales[i]), 0x80);
    }
}

static void random_fp32_have_the_code_of_the_division(void **state)
{
    (void)state;
    uint64_t seed = 5;
    for (int i = 0; i < 2000000; i++) {
        float scale =
            weir_float_from_bits(0x2B8CBCCCu + (uint32_t)(next_random(&seed) % 0x4EFFFFFFu));
        float unit = (float)(int32_t)next_random(&seed) * 0x1p-31f;
        float value = unit * unit * unit * 448.0f * scale;
        if (weir_float_bits(value / scale) << 1 > 0x87C00000u)
            continue;
        if (fast_code(value, scale) != weir_fp8_code(value, scale))
            fail_msg("%a under %a", (double)value, (double)scale);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_bf16_has_the_code_of_the_division),
        cmocka_unit_test(quotients_next_to_ties_are_exact_for_any_scale),
        cmocka_unit_test(a_zero_keeps_its_sign_and_subnormals_become_zeros),
        cmocka_unit_test(random_fp32_have_the_code_of_the_division),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
