/* SPDX-License-Identifier: Apache-2.0 */
/* Scalar conversions against PyTorch on CUDA, against the golden vectors of the recipe, and there
 * and back again. */
#include "convert/convert_case.h"

#include <math.h>

static bool both_nan_e4m3(uint8_t a, uint8_t b)
{
    return (a & 0x7F) == 0x7F && (b & 0x7F) == 0x7F;
}

static bool both_nan_e5m2(uint8_t a, uint8_t b)
{
    return (a & 0x7F) > 0x7C && (b & 0x7F) > 0x7C;
}

static bool both_nan_bf16(uint16_t a, uint16_t b)
{
    return (a & 0x7FFF) > 0x7F80 && (b & 0x7FFF) > 0x7F80;
}

static float clamped(float value)
{
    return value > 448.0f ? 448.0f : value < -448.0f ? -448.0f : value;
}

static void check_bf16_patterns(const weir_checkpoint *golden)
{
    const weir_tensor *in = golden_find(golden, "bf16_all");
    const uint8_t *e4m3 = golden_find(golden, "e4m3_cast")->data;
    const uint8_t *bounded = golden_find(golden, "e4m3_clamped")->data;
    const uint8_t *e5m2 = golden_find(golden, "e5m2_cast")->data;
    assert_int_equal(in->shape.dim[0], 65536);
    for (uint32_t i = 0; i < 65536; i++) {
        float value = weir_float_from_bf16(((const uint16_t *)in->data)[i]);
        uint8_t got = weir_e4m3_from_float(value);
        assert_true(got == e4m3[i] || both_nan_e4m3(got, e4m3[i]));
        got = weir_e4m3_from_float(clamped(value));
        assert_true(got == bounded[i] || both_nan_e4m3(got, bounded[i]));
        got = weir_e5m2_from_float(value);
        assert_true(got == e5m2[i] || both_nan_e5m2(got, e5m2[i]));
    }
}

static void check_fp32_patterns(const weir_checkpoint *golden)
{
    const weir_tensor *in = golden_find(golden, "f32_in");
    const uint16_t *bf16 = golden_find(golden, "f32_to_bf16")->data;
    const uint8_t *e4m3 = golden_find(golden, "f32_to_e4m3")->data;
    const uint8_t *e8m0 = golden_find(golden, "f32_to_e8m0")->data;
    assert_true(in->shape.dim[0] >= 4096);
    for (uint64_t i = 0; i < in->shape.dim[0]; i++) {
        float value = ((const float *)in->data)[i];
        uint16_t half = weir_bf16_from_float(value);
        assert_true(half == bf16[i] || both_nan_bf16(half, bf16[i]));
        uint8_t code = weir_e4m3_from_float(value);
        assert_true(code == e4m3[i] || both_nan_e4m3(code, e4m3[i]));
        assert_int_equal(weir_e8m0_from_float(value), e8m0[i]);
    }
}

static void casts_equal_the_golden_files(void **state)
{
    (void)state;
    for (int full = 0; full <= 1; full++) {
        weir_checkpoint *golden = golden_open("casts.safetensors", full);
        if (golden == NULL)
            continue;
        check_bf16_patterns(golden);
        check_fp32_patterns(golden);
        weir_checkpoint_close(golden);
    }
}

/* A1 to A3 of the acceptance checks. */
static void e4m3_of_known_values(void **state)
{
    (void)state;
    const struct {
        float value;
        uint8_t code;
    } rows[] = {
        { 1.0f, 0x38 },          { -0.5f, 0xB0 },
        { 448.0f, 0x7E },        { 449.0f, 0x7E },
        { 464.0f, 0x7E },        { 465.0f, 0x7F },
        { 480.0f, 0x7F },        { INFINITY, 0x7F },
        { -INFINITY, 0xFF },     { 0x1p-9f, 0x01 },
        { 0x1p-10f, 0x00 },      { 0x1.8p-9f, 0x02 },
        { 0x1p-6f, 0x08 },       { 17.0f, 0x58 },
        { 18.0f, 0x59 },         { 19.0f, 0x5A },
        { 240.0f, 0x77 },        { 4.48f, 0x49 },
        { 0.0146484375f, 0x08 }, { -0.0f, 0x80 },
        { 0.0f, 0x00 },          { 0x1.000002p-10f, 0x01 },
        { -0x1p-149f, 0x80 },
    };
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++)
        assert_int_equal(weir_e4m3_from_float(rows[i].value), rows[i].code);
    assert_int_equal(weir_e4m3_from_float(NAN) & 0x7F, 0x7F);
}

static void every_code_survives_the_way_through_fp32(void **state)
{
    (void)state;
    for (uint32_t code = 0; code < 256; code++) {
        if ((code & 0x7F) != 0x7F)
            assert_int_equal(weir_e4m3_from_float(weir_float_from_e4m3((uint8_t)code)), code);
        if ((code & 0x7F) <= 0x7C)
            assert_int_equal(weir_e5m2_from_float(weir_float_from_e5m2((uint8_t)code)), code);
        if (code != 0xFF)
            assert_int_equal(weir_e8m0_from_float(weir_float_from_e8m0((uint8_t)code)), code);
    }
    for (uint32_t bits = 0; bits < 65536; bits++) {
        if ((bits & 0x7FFF) <= 0x7F80)
            assert_int_equal(weir_bf16_from_float(weir_float_from_bf16((uint16_t)bits)), bits);
    }
    assert_true(isnan(weir_float_from_e4m3(0x7F)) && isnan(weir_float_from_e4m3(0xFF)));
    assert_true(isnan(weir_float_from_e5m2(0x7D)) && isnan(weir_float_from_e8m0(0xFF)));
    assert_true(weir_float_from_e8m0(0) == 0x1p-127f);
}

/* Against arithmetic rather than bits: value = (-1)^s * (1 + m / 1024) * 2^(e - 15). */
static void fp16_is_widened_exactly(void **state)
{
    (void)state;
    for (uint32_t bits = 0; bits < 65536; bits++) {
        float got = weir_float_from_fp16((uint16_t)bits);
        int exponent = bits >> 10 & 31, mantissa = bits & 1023;
        double want = exponent == 0 ? ldexp(mantissa, -24) : ldexp(1024 + mantissa, exponent - 25);
        if (exponent == 31) {
            assert_true(mantissa ? isnan(got) : isinf(got));
            assert_int_equal(signbit(got) != 0, bits >> 15);
            continue;
        }
        assert_true(got == (bits >> 15 ? -want : want));
        assert_int_equal(signbit(got) != 0, bits >> 15);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(casts_equal_the_golden_files),
        cmocka_unit_test(e4m3_of_known_values),
        cmocka_unit_test(every_code_survives_the_way_through_fp32),
        cmocka_unit_test(fp16_is_widened_exactly),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
