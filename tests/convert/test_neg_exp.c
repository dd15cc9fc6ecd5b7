/* SPDX-License-Identifier: Apache-2.0 */
/* neg_exp: the golden file, numbers that it has not, and what is refused. */
#include "convert/convert_case.h"

#include <math.h>

static weir_tensor vector(weir_dtype dtype, size_t n, void *data)
{
    return (weir_tensor){ "layers.0.mixer.A_log", dtype, { 1, { n } }, data };
}

static void equals_the_golden_file(void **state)
{
    (void)state;
    weir_checkpoint *golden = golden_open("neg_exp.safetensors", 0);
    static const char *const keys[][2] = { { "bf16", "bf16.expected" }, { "f32", "f32.expected" } };
    for (size_t k = 0; k < 2; k++) {
        const weir_tensor *source = golden_find(golden, keys[k][0]);
        const weir_tensor *want = golden_find(golden, keys[k][1]);
        assert_true(source->shape.dim[0] > 4000);
        converted result;
        must_convert(&result, args_for("neg_exp", source, 1), 0);
        for (uint64_t i = 0; i < source->shape.dim[0]; i++) {
            uint32_t got = ((const uint32_t *)(const void *)result.out[0].data)[i];
            if (got != ((const uint32_t *)want->data)[i])
                fail_msg("%s[%llu] is %08X, expected %08X", keys[k][0], (unsigned long long)i, got,
                         ((const uint32_t *)want->data)[i]);
        }
        converted_free(&result);
    }
    weir_checkpoint_close(golden);
}

/* Against this machine's long double, at every 1,009th fp32 between the two ends. */
static void is_the_nearest_fp32_all_over_its_range(void **state)
{
    (void)state;
    size_t n = 0, n_off = 0;
    for (uint32_t bits = 0; bits <= weir_float_bits(104.0f); bits += 1009) {
        for (uint32_t sign = 0; sign <= 1; sign++, n++) {
            float x = weir_float_from_bits(bits | sign << 31), got = NAN;
            if (x > 88.7f)
                continue;
            weir_tensor source = vector(WEIR_F32, 1, &x);
            weir_tile tile = {
                .dtype = WEIR_F32, .n_rows = 1, .n_cols = 1, .out = { { &got, 4 } }
            };
            const void *row = source.data;
            tile.rows = &row;
            assert_int_equal(conversion_named("neg_exp")->reference(&tile), WEIR_OK);
            n_off += weir_float_bits(got) != weir_float_bits((float)-expl((long double)x));
        }
    }
    assert_true(n > 2000000);
    assert_true(n_off <= 1); /* where the true value is all but in the middle of two */
}

static void fp16_and_masters_are_read_as_they_are(void **state)
{
    (void)state;
    uint16_t half = 0x3C00; /* 1 */
    float master = 1.00000012f;
    weir_tensor sources[2] = { vector(WEIR_F16, 1, &half), vector(WEIR_F32, 1, &master) };
    const uint32_t want[2] = { 0xC02DF854, 0xC02DF856 }; /* -e, and less by 1.4 units */
    for (size_t s = 0; s < 2; s++) {
        weir_convert_args args = args_for("neg_exp", &sources[s], 1);
        args.round_masters = true; /* its output is fp32: never rounded */
        converted result;
        must_convert(&result, args, 0);
        assert_memory_equal(result.out[0].data, &want[s], 4);
        converted_free(&result);
    }
}

static void assert_refused(float value, const char *error)
{
    float values[3] = { 1, value, 2 };
    weir_tensor source = vector(WEIR_F32, 3, values);
    converted result;
    assert_int_equal(convert_into(&result, args_for("neg_exp", &source, 1), 0), WEIR_ERR_NONFINITE);
    assert_string_equal(weir_last_error(), error);
    converted_free(&result);
}

static void what_is_or_becomes_infinite_is_refused(void **state)
{
    (void)state;
    assert_refused(NAN, "layers.0.mixer.A_log[1] is NaN");
    assert_refused(INFINITY, "layers.0.mixer.A_log[1] is +Inf");
    assert_refused(-INFINITY, "layers.0.mixer.A_log[1] is -Inf");
    assert_refused(88.8f, "conversion 'neg_exp' refused a weight of layers.0.mixer.A_log that is "
                          "finite");
}

static void propagate_carries_infinities_and_makes_one_nan(void **state)
{
    (void)state;
    float values[6] = { INFINITY, -INFINITY, NAN, 88.8f, 1e30f, -1e30f };
    weir_tensor source = vector(WEIR_F32, 6, values);
    weir_convert_args args = args_for("neg_exp", &source, 1);
    args.propagate = true;
    converted result;
    must_convert(&result, args, 0);
    const uint32_t want[6] = { 0xFF800000, 0x80000000, 0x7FC00000,
                               0xFF800000, 0xFF800000, 0x80000000 };
    assert_memory_equal(result.out[0].data, want, sizeof(want));
    converted_free(&result);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(equals_the_golden_file),
        cmocka_unit_test(is_the_nearest_fp32_all_over_its_range),
        cmocka_unit_test(fp16_and_masters_are_read_as_they_are),
        cmocka_unit_test(what_is_or_becomes_infinite_is_refused),
        cmocka_unit_test(propagate_carries_infinities_and_makes_one_nan),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
