/* SPDX-License-Identifier: Apache-2.0 */
#include "numeric/scalar.h"

#include "family/source_set.h"

static weir_derived dims(weir_derived_kind kind, uint64_t n, uint64_t p, uint64_t v, uint64_t l)
{
    return (weir_derived){ .kind = kind, .n_heads = n, .nope_dim = p, .v_dim = v, .lora_rank = l };
}

/* K in a form, and its elements as bf16 computed one by one. */
typedef struct origin {
    weir_dtype dtype;
    void *bytes;
    float *scale;
    weir_shape scale_shape;
    uint16_t *bf16;
} origin;

static origin make_origin(weir_dtype dtype, bool per_row, uint64_t rows, uint64_t cols)
{
    origin o = { .dtype = dtype, .bf16 = calloc(rows * cols, 2) };
    uint64_t col_blocks = (cols + 127) / 128;
    o.bytes = calloc(rows * cols, 4);
    o.scale = calloc(rows * cols, 4);
    o.scale_shape = per_row ? SHAPE(rows) : SHAPE((rows + 127) / 128, col_blocks);
    for (uint64_t i = 0; i < rows * cols; i++)
        o.scale[i] = 0.001f * (float)(i + 1);
    for (uint64_t r = 0; r < rows; r++) {
        for (uint64_t c = 0; c < cols; c++) {
            uint64_t i = r * cols + c;
            float scale = per_row ? o.scale[r] : o.scale[r / 128 * col_blocks + c / 128];
            if (dtype == WEIR_BF16) {
                o.bf16[i] = ((uint16_t *)o.bytes)[i] = (uint16_t)(i * 40503u >> 2);
            } else if (dtype == WEIR_F32) {
                ((float *)o.bytes)[i] = (float)i * 1.001f;
                o.bf16[i] = weir_bf16_from_float((float)i * 1.001f);
            } else {
                uint8_t code = (uint8_t)(i * 37u % 127u);
                ((uint8_t *)o.bytes)[i] = code;
                o.bf16[i] = weir_bf16_from_float(weir_float_from_e4m3(code) * scale);
            }
        }
    }
    return o;
}

static void free_origin(origin *o)
{
    free(o->bytes);
    free(o->scale);
    free(o->bf16);
}

static void check(weir_dtype dtype, bool per_row, uint64_t n, uint64_t p, uint64_t v, uint64_t l)
{
    origin o = make_origin(dtype, per_row, n * (p + v), l);
    uint16_t *uv = malloc(n * l * v * 2), *uk_t = malloc(n * p * l * 2);
    weir_derived a = dims(WEIR_DERIVED_MLA_W_UV, n, p, v, l);
    weir_derived b = dims(WEIR_DERIVED_MLA_W_UK_T, n, p, v, l);
    assert_int_equal(weir_derived_compute(&a, dtype, o.bytes, o.scale, &o.scale_shape, uv),
                     WEIR_OK);
    assert_int_equal(weir_derived_compute(&b, dtype, o.bytes, o.scale, &o.scale_shape, uk_t),
                     WEIR_OK);
    for (uint64_t h = 0; h < n; h++) {
        for (uint64_t c = 0; c < l; c++) {
            for (uint64_t i = 0; i < p; i++)
                assert_int_equal(uk_t[(h * p + i) * l + c], o.bf16[(h * (p + v) + i) * l + c]);
            for (uint64_t i = 0; i < v; i++)
                assert_int_equal(uv[(h * l + c) * v + i], o.bf16[(h * (p + v) + p + i) * l + c]);
        }
    }
    free(uv);
    free(uk_t);
    free_origin(&o);
}

static void bf16_elements_land_where_the_definition_says(void **state)
{
    (void)state;
    check(WEIR_BF16, false, 2, 3, 5, 7);
    check(WEIR_BF16, false, 3, 48, 100, 130);
}

static void fp32_is_rounded_to_bf16(void **state)
{
    (void)state;
    check(WEIR_F32, false, 2, 8, 70, 65);
}

static void block_scales_are_applied_before_rounding(void **state)
{
    (void)state;
    check(WEIR_F8_E4M3, false, 4, 48, 32, 192);
    check(WEIR_F8_E4M3, false, 1, 1, 1, 1);
}

static void row_scales_are_applied_before_rounding(void **state)
{
    (void)state;
    check(WEIR_F8_E4M3, true, 4, 48, 32, 192);
}

static void bad_origins_are_refused(void **state)
{
    (void)state;
    weir_derived d = dims(WEIR_DERIVED_MLA_W_UV, 2, 64, 64, 128);
    origin o = make_origin(WEIR_F8_E4M3, false, 256, 128);
    uint16_t *out = malloc(256 * 128 * 2);
    weir_shape wrong = SHAPE(2, 2);
    assert_int_equal(weir_derived_compute(&d, WEIR_F8_E4M3, o.bytes, o.scale, &wrong, out),
                     WEIR_ERR_INVALID);
    assert_error_has("scale has shape [2, 2], expected [256] or [2, 1]");
    assert_int_equal(weir_derived_compute(&d, WEIR_F8_E4M3, o.bytes, NULL, NULL, out),
                     WEIR_ERR_INVALID);
    assert_int_equal(weir_derived_compute(&d, WEIR_I8, o.bytes, NULL, NULL, out),
                     WEIR_ERR_UNSUPPORTED);
    assert_error_has("origin is I8");
    d.kind = (weir_derived_kind)9;
    assert_int_equal(weir_derived_compute(&d, WEIR_BF16, o.bytes, NULL, NULL, out),
                     WEIR_ERR_INVALID);
    d.n_heads = UINT64_MAX / 2;
    assert_int_equal(weir_derived_compute(&d, WEIR_BF16, o.bytes, NULL, NULL, out),
                     WEIR_ERR_INVALID);
    assert_error_has("exceeds 64 bits");
    free(out);
    free_origin(&o);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(bf16_elements_land_where_the_definition_says),
        cmocka_unit_test(fp32_is_rounded_to_bf16),
        cmocka_unit_test(block_scales_are_applied_before_rounding),
        cmocka_unit_test(row_scales_are_applied_before_rounding),
        cmocka_unit_test(bad_origins_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
