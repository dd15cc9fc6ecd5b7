/* SPDX-License-Identifier: Apache-2.0 */
/* Names and shapes of outputs. */
#include "convert/convert_case.h"

static void assert_name(const char *conversion, size_t output, const char *name, const char *want)
{
    char buffer[128];
    assert_int_equal(weir_conversion_output_name(conversion_named(conversion), output, name, false,
                                                 buffer, sizeof(buffer)),
                     WEIR_OK);
    assert_string_equal(buffer, want);
}

/* B11 */
static void scale_names_follow_the_weight(void **state)
{
    (void)state;
    assert_name("fp8_128x128", 0, "a.weight", "a.weight");
    assert_name("fp8_128x128", 1, "a.weight", "a.weight_scale_inv");
    assert_name("fp8_128x128", 1, "experts.w13_weight", "experts.w13_weight_scale_inv");
    assert_name("fp8_128x128", 1, "shared_expert.w1", "shared_expert.w1.weight_scale_inv");
    assert_name("cutlass_fp8_e4m3_per_channel", 1, "a.weight", "a.weight_scale");
    assert_name("cutlass_fp8_e4m3_per_channel", 1, "experts.w2_weight", "experts.w2_weight_scale");
    assert_name("cutlass_fp8_e4m3_per_channel", 1, "weight", "weight.weight_scale");
}

static void strict_names_must_end_in_weight(void **state)
{
    (void)state;
    char buffer[64] = "kept";
    assert_int_equal(weir_conversion_output_name(conversion_named("fp8_128x128"), 1,
                                                 "shared_expert.w1", true, buffer, sizeof(buffer)),
                     WEIR_ERR_INVALID);
    assert_string_equal(weir_last_error(), "cannot derive scale name from 'shared_expert.w1'");
    assert_string_equal(buffer, "kept");
}

static void names_that_do_not_fit_are_refused(void **state)
{
    (void)state;
    char buffer[19];
    const weir_conversion *fp8 = conversion_named("fp8_128x128");
    assert_int_equal(weir_conversion_output_name(fp8, 1, "a.weight", true, buffer, 19), WEIR_OK);
    assert_int_equal(weir_conversion_output_name(fp8, 1, "a.weight", true, buffer, 18),
                     WEIR_ERR_INVALID);
    assert_int_equal(weir_conversion_output_name(fp8, 0, "a.weight", true, buffer, 8),
                     WEIR_ERR_INVALID);
    assert_int_equal(weir_conversion_output_name(fp8, 2, "a.weight", true, buffer, 19),
                     WEIR_ERR_INVALID);
    assert_string_equal(weir_last_error(),
                        "conversion 'fp8_128x128' has 2 outputs, there is no number 2");
}

static void assert_shape(const char *conversion, size_t output, weir_shape source, weir_shape want)
{
    weir_shape got;
    assert_int_equal(
        weir_conversion_output_shape(conversion_named(conversion), output, &source, &got), WEIR_OK);
    assert_true(weir_shape_equal(&got, &want));
}

/* A9, A10, A16 */
static void shapes_count_ragged_cells(void **state)
{
    (void)state;
    const char *block = "fp8_128x128", *channel = "cutlass_fp8_e4m3_per_channel";
    assert_shape(block, 0, (weir_shape){ 2, { 130, 200 } }, (weir_shape){ 2, { 130, 200 } });
    assert_shape(block, 1, (weir_shape){ 2, { 130, 200 } }, (weir_shape){ 2, { 2, 2 } });
    assert_shape(block, 1, (weir_shape){ 2, { 1, 1 } }, (weir_shape){ 2, { 1, 1 } });
    assert_shape(block, 1, (weir_shape){ 2, { 128, 128 } }, (weir_shape){ 2, { 1, 1 } });
    assert_shape(block, 1, (weir_shape){ 2, { 129, 1 } }, (weir_shape){ 2, { 2, 1 } });
    assert_shape(block, 1, (weir_shape){ 3, { 4, 320, 256 } }, (weir_shape){ 3, { 4, 3, 2 } });
    assert_shape(block, 1, (weir_shape){ 2, { 0, 256 } }, (weir_shape){ 2, { 0, 2 } });
    assert_shape(channel, 1, (weir_shape){ 2, { 64, 256 } }, (weir_shape){ 1, { 64 } });
    assert_shape(channel, 1, (weir_shape){ 3, { 8, 64, 256 } }, (weir_shape){ 2, { 8, 64 } });
    assert_shape("bf16_cast", 0, (weir_shape){ 1, { 7 } }, (weir_shape){ 1, { 7 } });
    assert_shape("fp32_cast", 0, (weir_shape){ 4, { 2, 3, 4, 5 } },
                 (weir_shape){ 4, { 2, 3, 4, 5 } });
}

/* A13, A16 */
static void ranks_that_a_conversion_does_not_take_are_named(void **state)
{
    (void)state;
    const struct {
        const char *conversion;
        weir_shape source;
        const char *error;
    } rows[] = {
        { "fp8_128x128", { 1, { 5 } }, "FP8 quantization expects a 2D tensor, got shape=(5,)" },
        { "fp8_128x128",
          { 4, { 1, 2, 3, 4 } },
          "FP8 quantization expects a 2D tensor, got shape=(1, 2, 3, 4)" },
        { "cutlass_fp8_e4m3_per_channel",
          { 1, { 5 } },
          "fp8_per_channel_quantize expects 2D or 3D, got shape=(5,)" },
        { "bf16_cast", { 0, { 0 } }, "conversion 'bf16_cast' does not take shape=()" },
    };
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        weir_shape got;
        assert_int_equal(weir_conversion_output_shape(conversion_named(rows[i].conversion), 0,
                                                      &rows[i].source, &got),
                         WEIR_ERR_INVALID);
        assert_string_equal(weir_last_error(), rows[i].error);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(scale_names_follow_the_weight),
        cmocka_unit_test(strict_names_must_end_in_weight),
        cmocka_unit_test(names_that_do_not_fit_are_refused),
        cmocka_unit_test(shapes_count_ragged_cells),
        cmocka_unit_test(ranks_that_a_conversion_does_not_take_are_named),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
