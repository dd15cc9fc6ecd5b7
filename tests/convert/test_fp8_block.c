/* SPDX-License-Identifier: Apache-2.0 */
/* fp8_128x128: golden bytes, and the acceptance checks of the recipe. */
#include "convert/convert_case.h"

#include <math.h>

#include "convert/golden_case.h"

static void golden_files_are_reproduced_byte_for_byte(void **state)
{
    (void)state;
    check_golden("fp8_128x128");
}

/* Converts a matrix of fp32 as it is. */
static void quantise(converted *result, float *data, size_t rows, size_t cols)
{
    weir_tensor source = tensor_2d("w", WEIR_F32, rows, cols, data);
    must_convert(result, args_for("fp8_128x128", &source, 1), 0);
}

static uint32_t scale_bits(const converted *result, size_t index)
{
    uint32_t bits;
    memcpy(&bits, result->out[1].data + 4 * index, 4);
    return bits;
}

/* Codes of the first n elements of a 128 x 128 block that is zero beyond them. Scales are
 * amax * fl32(1/448): one above a true division by 448 for the first and the third row. */
static void assert_block(const float *values, size_t n, uint32_t scale, const uint8_t *codes)
{
    static float block[128 * 128];
    converted result;
    memset(block, 0, sizeof(block));
    memcpy(block, values, n * sizeof(float));
    quantise(&result, block, 128, 128);
    assert_int_equal(scale_bits(&result, 0), scale);
    assert_memory_equal(result.out[0].data, codes, n);
    for (size_t i = n; i < 128 * 128; i++)
        assert_int_equal(result.out[0].data[i], 0);
    converted_free(&result);
}

/* A4, A6 to A8 and the worked blocks of the recipe */
static void blocks_of_known_values(void **state)
{
    (void)state;
    assert_block((float[]){ 1, -0.5f, 0.25f, 0.1f, -3, 0, 2, 1e-3f, 0.007f, -1e-5f }, 10,
                 0x3BDB6DB8,
                 (uint8_t[]){ 0x71, 0xE9, 0x61, 0x57, 0xFE, 0x00, 0x79, 0x22, 0x38, 0x81 });
    assert_block((float[]){ 0 }, 1, 0x2B8CBCCC, (uint8_t[]){ 0x00 });
    assert_block((float[]){ -0.0f }, 1, 0x2B8CBCCC, (uint8_t[]){ 0x80 });
    assert_block((float[]){ 1e-10f }, 1, 0x2B8CBCCC, (uint8_t[]){ 0x6C });
    assert_block((float[]){ 1e-13f, -1e-13f }, 2, 0x2B8CBCCC, (uint8_t[]){ 0x1D, 0x9D });
    assert_block((float[]){ 1, -2, 0.5f, 448 }, 4, 0x3F800000,
                 (uint8_t[]){ 0x38, 0xC0, 0x30, 0x7E });
    assert_block((float[]){ 3, -0.75f, 1.1f, 0.2f }, 4, 0x3BDB6DB8,
                 (uint8_t[]){ 0x7E, 0xEE, 0x72, 0x5F });
}

/* A5: rounding these to bf16 first changes nothing. */
static void round_masters_equals_rounding_the_tensor_first(void **state)
{
    (void)state;
    uint64_t seed = 6;
    const size_t rows = 300, cols = 700;
    float *masters = malloc(rows * cols * sizeof(float));
    uint16_t *rounded = malloc(rows * cols * 2);
    for (int kind = 0; kind < N_REGIMES; kind++) {
        fill(masters, WEIR_F32, rows * cols, kind == WIDE ? NORMAL : (regime)kind, &seed);
        for (size_t i = 0; i < rows * cols; i++)
            rounded[i] = weir_bf16_from_float(masters[i]);
        weir_tensor fp32 = tensor_2d("w", WEIR_F32, rows, cols, masters);
        weir_tensor bf16 = tensor_2d("w", WEIR_BF16, rows, cols, rounded);
        converted a, b;
        weir_convert_args args = args_for("fp8_128x128", &fp32, 1);
        args.round_masters = true;
        must_convert(&a, args, 0);
        must_convert(&b, args_for("fp8_128x128", &bf16, 1), 0);
        assert_same_outputs(&a, &b);
        converted_free(&a);
        converted_free(&b);
    }
    free(masters);
    free(rounded);
}

/* A15: documented as multiplying by fl32(1/448), on every device. */
static void the_scale_is_a_product_not_a_quotient(void **state)
{
    (void)state;
    float value = weir_float_from_bf16(0x3F82);
    converted result;
    quantise(&result, &value, 1, 1);
    assert_int_equal(scale_bits(&result, 0), 0x3B14924A);
    converted_free(&result);
}

/* A9 */
static void ragged_blocks_depend_on_their_own_elements_alone(void **state)
{
    (void)state;
    const size_t rows = 130, cols = 200;
    uint64_t seed = 7;
    float *data = malloc(rows * cols * sizeof(float));
    converted before, after;
    fill(data, WEIR_F32, rows * cols, NORMAL, &seed);
    quantise(&before, data, rows, cols);
    for (size_t r = 0; r < rows; r++) {
        for (size_t c = 0; c < cols; c++)
            data[r * cols + c] *= r >= 128 && c >= 128 ? 1.0f : 3.0f;
    }
    quantise(&after, data, rows, cols);
    assert_int_equal(before.out[1].n_bytes, 4 * 4);
    assert_int_equal(scale_bits(&before, 3), scale_bits(&after, 3));
    for (size_t i = 0; i < 3; i++)
        assert_int_not_equal(scale_bits(&before, i), scale_bits(&after, i));
    for (size_t c = 128; c < cols; c++)
        assert_int_equal(before.out[0].data[129 * cols + c], after.out[0].data[129 * cols + c]);
    converted_free(&before);
    converted_free(&after);
    free(data);
}

/* A11, A12 */
static void propagate_spoils_one_block(void **state)
{
    (void)state;
    const float bad[] = { NAN, INFINITY };
    for (int k = 0; k < 2; k++) {
        float *data = calloc(256 * 256, sizeof(float));
        data[0] = bad[k];
        data[1] = -2.0f;
        weir_tensor source = tensor_2d("w", WEIR_F32, 256, 256, data);
        weir_convert_args args = args_for("fp8_128x128", &source, 1);
        args.propagate = true;
        converted result;
        must_convert(&result, args, 0);
        assert_int_equal(scale_bits(&result, 0), k == 0 ? 0x7FC00000 : 0x7F800000);
        assert_int_equal(result.out[0].data[0], 0x7F);
        assert_int_equal(result.out[0].data[1], k == 0 ? 0x7F : 0x80);
        assert_int_equal(result.out[0].data[127 * 256 + 127], k == 0 ? 0x7F : 0x00);
        for (size_t i = 1; i < 4; i++)
            assert_int_equal(scale_bits(&result, i), 0x2B8CBCCC);
        assert_int_equal(result.out[0].data[128], 0x00);
        converted_free(&result);
        free(data);
    }
}

/* A19 */
static void dequantised_weights_are_close(void **state)
{
    (void)state;
    const size_t rows = 256, cols = 256;
    uint64_t seed = 8;
    float *data = malloc(rows * cols * sizeof(float));
    converted result;
    fill(data, WEIR_F32, rows * cols, NORMAL, &seed);
    quantise(&result, data, rows, cols);
    size_t n_far = 0;
    for (size_t i = 0; i < rows * cols; i++) {
        float scale =
            weir_float_from_bits(scale_bits(&result, i / cols / 128 * 2 + i % cols / 128));
        float back = weir_float_from_e4m3(result.out[0].data[i]) * scale;
        n_far += fabsf(back - data[i]) > 0.05f * fabsf(data[i]);
    }
    assert_true(n_far < rows * cols / 2);
    converted_free(&result);
    free(data);
}

/* A21 */
static void experts_are_independent(void **state)
{
    (void)state;
    const size_t n_experts = 5, rows = 130, cols = 70, n = rows * cols;
    uint64_t seed = 9;
    uint16_t *stacked = malloc(n_experts * n * 2), *permuted = malloc(n_experts * n * 2);
    const size_t order[] = { 3, 0, 4, 1, 2 };
    fill(stacked, WEIR_BF16, n_experts * n, NORMAL, &seed);
    for (size_t e = 0; e < n_experts; e++)
        memcpy(permuted + e * n, stacked + order[e] * n, n * 2);
    weir_tensor a = { "w", WEIR_BF16, { 3, { n_experts, rows, cols } }, stacked };
    weir_tensor b = { "w", WEIR_BF16, { 3, { n_experts, rows, cols } }, permuted };
    converted direct, other;
    must_convert(&direct, args_for("fp8_128x128", &a, 1), 0);
    must_convert(&other, args_for("fp8_128x128", &b, 1), 0);
    for (size_t e = 0; e < n_experts; e++) {
        assert_memory_equal(other.out[0].data + e * n, direct.out[0].data + order[e] * n, n);
        assert_memory_equal(other.out[1].data + e * 8, direct.out[1].data + order[e] * 8, 8);
    }
    converted_free(&direct);
    converted_free(&other);
    free(stacked);
    free(permuted);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(golden_files_are_reproduced_byte_for_byte),
        cmocka_unit_test(blocks_of_known_values),
        cmocka_unit_test(round_masters_equals_rounding_the_tensor_first),
        cmocka_unit_test(the_scale_is_a_product_not_a_quotient),
        cmocka_unit_test(ragged_blocks_depend_on_their_own_elements_alone),
        cmocka_unit_test(propagate_spoils_one_block),
        cmocka_unit_test(dequantised_weights_are_close),
        cmocka_unit_test(experts_are_independent),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
