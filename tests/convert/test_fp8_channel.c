/* SPDX-License-Identifier: Apache-2.0 */
/* cutlass_fp8_e4m3_per_channel: golden bytes, and the acceptance checks of the recipe. */
#include "convert/convert_case.h"

#include <math.h>

#include "convert/golden_case.h"

static const char channel[] = "cutlass_fp8_e4m3_per_channel";

static void golden_files_are_reproduced_byte_for_byte(void **state)
{
    (void)state;
    check_golden(channel);
}

/* A17; the second scale is amax * fl32(1/448), one above a true division */
static void rows_of_known_values(void **state)
{
    (void)state;
    float rows[3][4] = { { 1, -2, 0.5f, 448 }, { 3, -0.75f, 1.1f, 0.2f }, { 0, 0, 0, 0 } };
    const uint32_t scales[3] = { 0x3F800000, 0x3BDB6DB8, 0x2B8CBCCC };
    const uint8_t codes[12] = { 0x38, 0xC0, 0x30, 0x7E, 0x7E, 0xEE, 0x72, 0x5F, 0, 0, 0, 0 };
    weir_tensor source = tensor_2d("w", WEIR_F32, 3, 4, rows);
    converted result;
    must_convert(&result, args_for(channel, &source, 1), 0);
    assert_memory_equal(result.out[0].data, codes, sizeof(codes));
    assert_memory_equal(result.out[1].data, scales, sizeof(scales));
    converted_free(&result);
}

/* A18 */
static void a_nan_spoils_only_its_row(void **state)
{
    (void)state;
    float rows[8][32];
    for (size_t i = 0; i < 8 * 32; i++)
        rows[i / 32][i % 32] = (float)i + 1;
    rows[3][17] = NAN;
    weir_tensor source = tensor_2d("w", WEIR_F32, 8, 32, rows);
    weir_convert_args args = args_for(channel, &source, 1);
    args.propagate = true;
    converted result;
    must_convert(&result, args, 0);
    for (size_t r = 0; r < 8; r++) {
        float scale;
        memcpy(&scale, result.out[1].data + 4 * r, 4);
        assert_int_equal(isnan(scale) != 0, r == 3);
        for (size_t c = 0; c < 32; c++)
            assert_int_equal(result.out[0].data[r * 32 + c] == 0x7F, r == 3);
    }
    converted_free(&result);
}

/* No scale crosses a row, so fusing before or after makes no difference. */
static void fusing_changes_nothing(void **state)
{
    (void)state;
    uint64_t seed = 10;
    const size_t cols = 333;
    uint16_t *data = malloc(90 * cols * 2);
    fill(data, WEIR_BF16, 90 * cols, WIDE, &seed);
    weir_tensor parts[2] = { tensor_2d("a", WEIR_BF16, 37, cols, data),
                             tensor_2d("b", WEIR_BF16, 53, cols, data + 37 * cols) };
    converted fused, first;
    must_convert(&fused, args_for(channel, parts, 2), 0);
    must_convert(&first, args_for(channel, parts, 1), 0);
    assert_memory_equal(fused.out[0].data, first.out[0].data, 37 * cols);
    assert_memory_equal(fused.out[1].data, first.out[1].data, 37 * 4);
    converted_free(&fused);
    converted_free(&first);
    free(data);
}

/* The largest magnitude of no elements is 0. */
static void rows_without_elements_have_the_floor_as_scale(void **state)
{
    (void)state;
    weir_tensor source = tensor_2d("w", WEIR_BF16, 3, 0, NULL);
    converted result;
    must_convert(&result, args_for(channel, &source, 1), 0);
    const uint32_t scales[3] = { 0x2B8CBCCC, 0x2B8CBCCC, 0x2B8CBCCC };
    assert_memory_equal(result.out[1].data, scales, sizeof(scales));
    converted_free(&result);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(golden_files_are_reproduced_byte_for_byte),
        cmocka_unit_test(rows_of_known_values),
        cmocka_unit_test(a_nan_spoils_only_its_row),
        cmocka_unit_test(fusing_changes_nothing),
        cmocka_unit_test(rows_without_elements_have_the_floor_as_scale),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
