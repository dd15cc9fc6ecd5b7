/* SPDX-License-Identifier: Apache-2.0 */
/* bf16_cast and fp32_cast: every pattern, every source dtype, and what is refused. */
#include "convert/convert_case.h"

#include <math.h>

/* All 65,536 bf16 patterns that are finite, as one vector. */
static size_t finite_bf16(uint16_t *out)
{
    size_t n = 0;
    for (uint32_t bits = 0; bits < 65536; bits++) {
        if ((bits & 0x7F80) != 0x7F80)
            out[n++] = (uint16_t)bits;
    }
    return n;
}

static weir_tensor vector(weir_dtype dtype, size_t n, void *data)
{
    return (weir_tensor){ "v", dtype, { 1, { n } }, data };
}

static void bf16_stays_as_it_is(void **state)
{
    (void)state;
    static uint16_t patterns[65536];
    weir_tensor source = vector(WEIR_BF16, finite_bf16(patterns), patterns);
    converted result;
    must_convert(&result, args_for("bf16_cast", &source, 1), 0);
    assert_memory_equal(result.out[0].data, patterns, result.out[0].n_bytes);
    converted_free(&result);
}

static void bf16_widens_exactly(void **state)
{
    (void)state;
    static uint16_t patterns[65536];
    size_t n = finite_bf16(patterns);
    weir_tensor source = vector(WEIR_BF16, n, patterns);
    converted result;
    must_convert(&result, args_for("fp32_cast", &source, 1), 0);
    for (size_t i = 0; i < n; i++)
        assert_int_equal(((uint32_t *)(void *)result.out[0].data)[i], (uint32_t)patterns[i] << 16);
    converted_free(&result);
}

static void fp16_and_fp32_round_to_the_nearest_bf16(void **state)
{
    (void)state;
    const size_t n = 20011;
    uint64_t seed = 11;
    uint16_t *fp16 = malloc(n * 2);
    float *fp32 = malloc(n * 4);
    fill(fp16, WEIR_F16, n, WIDE, &seed);
    fill(fp32, WEIR_F32, n, NORMAL, &seed);
    weir_tensor sources[2] = { vector(WEIR_F16, n, fp16), vector(WEIR_F32, n, fp32) };
    for (int round = 0; round <= 1; round++) {
        converted a, b;
        weir_convert_args args = args_for("bf16_cast", &sources[0], 1);
        args.round_masters = round;
        must_convert(&a, args, 0);
        args.sources = &sources[1];
        must_convert(&b, args, 0);
        for (size_t i = 0; i < n; i++) {
            assert_int_equal(((uint16_t *)(void *)a.out[0].data)[i],
                             weir_bf16_from_float(weir_float_from_fp16(fp16[i])));
            assert_int_equal(((uint16_t *)(void *)b.out[0].data)[i], weir_bf16_from_float(fp32[i]));
        }
        converted_free(&a);
        converted_free(&b);
    }
    free(fp16);
    free(fp32);
}

static void fp32_cast_ignores_round_masters(void **state)
{
    (void)state;
    float value = 1.00000012f;
    weir_tensor source = vector(WEIR_F32, 1, &value);
    weir_convert_args args = args_for("fp32_cast", &source, 1);
    args.round_masters = true;
    converted result;
    must_convert(&result, args, 0);
    assert_memory_equal(result.out[0].data, &value, 4);
    converted_free(&result);
}

static void assert_refused(const char *conversion, float value, bool round_masters,
                           const char *error)
{
    float values[5] = { 1, 2, 3, value, NAN };
    weir_tensor source = vector(WEIR_F32, 5, values);
    source.name = "model.norm.weight";
    weir_convert_args args = args_for(conversion, &source, 1);
    args.round_masters = round_masters;
    converted result;
    assert_int_equal(convert_into(&result, args, 0), WEIR_ERR_NONFINITE);
    assert_string_equal(weir_last_error(), error);
    converted_free(&result);
}

/* The largest finite bf16 is 0x7F7F0000; from the tie above it upwards, fp32 rounds to Inf. */
static void what_would_become_infinite_is_refused(void **state)
{
    (void)state;
    float below = weir_float_from_bits(0x7F7F7FFF), tie = weir_float_from_bits(0x7F7F8000);
    assert_refused("bf16_cast", tie, false, "model.norm.weight[3] rounds to Inf in bf16");
    assert_refused("bf16_cast", -tie, false, "model.norm.weight[3] rounds to Inf in bf16");
    assert_refused("bf16_cast", -INFINITY, false, "model.norm.weight[3] is -Inf");
    assert_refused("bf16_cast", below, false, "model.norm.weight[4] is NaN");
    assert_refused("fp32_cast", tie, true, "model.norm.weight[4] is NaN");
    assert_refused("fp32_cast", INFINITY, false, "model.norm.weight[3] is +Inf");
    float matrix[2] = { 1, -tie };
    weir_tensor source = tensor_2d("w", WEIR_F32, 2, 1, matrix);
    weir_convert_args args = args_for("fp8_128x128", &source, 1);
    converted result;
    must_convert(&result, args, 0); /* fine as an fp32 */
    converted_free(&result);
    args.round_masters = true;
    assert_int_equal(convert_into(&result, args, 0), WEIR_ERR_NONFINITE);
    assert_string_equal(weir_last_error(), "w[1, 0] rounds to Inf in bf16");
    converted_free(&result);
}

static void propagate_keeps_infinities_and_makes_one_nan(void **state)
{
    (void)state;
    float values[4] = { INFINITY, -INFINITY, NAN, 3.4e38f };
    weir_tensor source = vector(WEIR_F32, 4, values);
    weir_convert_args args = args_for("bf16_cast", &source, 1);
    args.propagate = true;
    converted result;
    must_convert(&result, args, 0);
    const uint16_t want[4] = { 0x7F80, 0xFF80, 0x7FFF, 0x7F80 };
    assert_memory_equal(result.out[0].data, want, sizeof(want));
    converted_free(&result);
}

/* Cuts between sources fall anywhere, also within a word of the digest. */
static void vectors_are_joined_end_to_end(void **state)
{
    (void)state;
    uint64_t seed = 12;
    const size_t lengths[4] = { 3, 1000, 0, 77777 }, n = 78780;
    uint16_t *data = malloc(n * 2);
    fill(data, WEIR_BF16, n, NORMAL, &seed);
    weir_tensor whole = vector(WEIR_BF16, n, data), parts[4];
    for (size_t i = 0, at = 0; i < 4; at += lengths[i++])
        parts[i] = vector(WEIR_BF16, lengths[i], data + at);
    const char *const conversions[] = { "bf16_cast", "fp32_cast" };
    for (int k = 0; k < 2; k++) {
        converted a, b;
        must_convert(&a, args_for(conversions[k], &whole, 1), 0);
        must_convert(&b, args_for(conversions[k], parts, 4), 4);
        assert_same_outputs(&a, &b);
        converted_free(&a);
        converted_free(&b);
    }
    free(data);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(bf16_stays_as_it_is),
        cmocka_unit_test(bf16_widens_exactly),
        cmocka_unit_test(fp16_and_fp32_round_to_the_nearest_bf16),
        cmocka_unit_test(fp32_cast_ignores_round_masters),
        cmocka_unit_test(what_would_become_infinite_is_refused),
        cmocka_unit_test(propagate_keeps_infinities_and_makes_one_nan),
        cmocka_unit_test(vectors_are_joined_end_to_end),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
