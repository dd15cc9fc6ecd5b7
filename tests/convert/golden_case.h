/* SPDX-License-Identifier: Apache-2.0 */
/* golden_case.h - a conversion against its golden files: our small copies, and the full set. */
#ifndef WEIR_TESTS_GOLDEN_CASE_H
#define WEIR_TESTS_GOLDEN_CASE_H

#include "convert/convert_case.h"

/* Any NaN equals any other; everything else is exact. */
static inline void assert_golden_codes(const char *key, const uint8_t *got, const weir_tensor *want)
{
    uint64_t n;
    assert_int_equal(weir_tensor_bytes(want->dtype, &want->shape, &n), WEIR_OK);
    for (uint64_t i = 0; i < n; i++) {
        uint8_t code = ((const uint8_t *)want->data)[i];
        if (got[i] != code && ((got[i] & 0x7F) != 0x7F || (code & 0x7F) != 0x7F))
            fail_msg("%s: code %llu is %02X, expected %02X", key, (unsigned long long)i, got[i],
                     code);
    }
}

static inline void assert_golden_scales(const char *key, const void *got, const weir_tensor *want)
{
    uint64_t n_bytes;
    assert_int_equal(weir_tensor_bytes(want->dtype, &want->shape, &n_bytes), WEIR_OK);
    for (uint64_t i = 0; i < n_bytes / 4; i++) {
        float a = ((const float *)got)[i], b = ((const float *)want->data)[i];
        if (weir_float_bits(a) != weir_float_bits(b) && (a == a || b == b))
            fail_msg("%s: scale %llu is %08X, expected %08X", key, (unsigned long long)i,
                     weir_float_bits(a), weir_float_bits(b));
    }
}

static inline void check_golden_key(const char *conversion, const weir_tensor *source,
                                    const weir_checkpoint *expected, bool reference)
{
    char q[256], scale[256];
    snprintf(q, sizeof(q), "%s.q", source->name);
    snprintf(scale, sizeof(scale), "%s.scale", source->name);
    weir_convert_args args = args_for(conversion, source, 1);
    args.propagate = strstr(source->name, "nonfinite") != NULL;
    args.reference = reference;
    converted result;
    must_convert(&result, args, 0);
    assert_golden_codes(q, result.out[0].data, golden_find(expected, q));
    assert_golden_scales(scale, result.out[1].data, golden_find(expected, scale));
    weir_shape shape;
    assert_int_equal(weir_conversion_output_shape(args.conversion, 1, &source->shape, &shape),
                     WEIR_OK);
    assert_true(weir_shape_equal(&shape, &golden_find(expected, scale)->shape));
    converted_free(&result);
}

static inline void check_golden(const char *conversion)
{
    for (int full = 0; full <= 1; full++) {
        char file[256];
        snprintf(file, sizeof(file), "%s.input.safetensors", conversion);
        weir_checkpoint *input = golden_open(file, full);
        if (input == NULL)
            continue;
        snprintf(file, sizeof(file), "%s.expected.safetensors", conversion);
        weir_checkpoint *expected = golden_open(file, full);
        size_t n;
        const weir_tensor *sources = weir_checkpoint_tensors(input, &n);
        assert_true(n >= 30);
        for (size_t i = 0; i < n; i++) {
            check_golden_key(conversion, &sources[i], expected, false);
            check_golden_key(conversion, &sources[i], expected, true);
        }
        weir_checkpoint_close(input);
        weir_checkpoint_close(expected);
    }
}

#endif
