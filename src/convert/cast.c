/* SPDX-License-Identifier: Apache-2.0 */
/* cast.c - bf16_cast and fp32_cast: the weight in another float dtype, no scale
 * (docs/formats.md). */
#include "convert/kernels.h"
#include "convert/source_value.h"

void weir_round_to_bf16_c(uint16_t *out, const float *in, size_t n)
{
    for (size_t i = 0; i < n; i++)
        out[i] = weir_bf16_from_float(in[i]);
}

/* Refuses what is not finite after rounding: a weight beyond bf16 would be served as Inf. */
weir_status weir_bf16_cast_c(const weir_tile *tile)
{
    for (size_t r = 0; r < tile->n_rows; r++) {
        uint16_t *out =
            (uint16_t *)(void *)((char *)tile->out[0].data + r * tile->out[0].pitch_bytes);
        for (size_t c = 0; c < tile->n_cols; c++) {
            float value = weir_source_value(tile->dtype, tile->rows[r], c);
            out[c] = weir_bf16_from_float(value);
            if (!tile->propagate && !weir_value_is_finite(weir_float_from_bf16(out[c])))
                return WEIR_ERR_NONFINITE;
        }
    }
    return WEIR_OK;
}

weir_status weir_fp32_cast_c(const weir_tile *tile)
{
    for (size_t r = 0; r < tile->n_rows; r++) {
        float *out = (float *)(void *)((char *)tile->out[0].data + r * tile->out[0].pitch_bytes);
        for (size_t c = 0; c < tile->n_cols; c++) {
            float value = weir_source_value(tile->dtype, tile->rows[r], c);
            if (!tile->propagate && !weir_value_is_finite(value))
                return WEIR_ERR_NONFINITE;
            out[c] = value;
        }
    }
    return WEIR_OK;
}

const weir_conversion weir_bf16_cast = {
    .size = sizeof(weir_conversion),
    .name = "bf16_cast",
    .summary = "bfloat16, unquantised: what an engine without quantization_config loads",
    .compile_target = WEIR_TARGET_HF_RAW,
    .compile_metadata = "{\"dtype\":\"bfloat16\"}",
    .sources = WEIR_SOURCE_FLOATS,
    .border_rows = 1,
    .border_cols = 1,
    .n_outputs = 1,
    .outputs = { { "weight", WEIR_BF16, 1, 1 } },
    .reference = weir_bf16_cast_c,
};

const weir_conversion weir_fp32_cast = {
    .size = sizeof(weir_conversion),
    .name = "fp32_cast",
    .summary = "float32, unquantised: router biases and norms that must stay exact",
    .compile_target = WEIR_TARGET_HF_RAW,
    .compile_metadata = "{\"dtype\":\"float32\"}",
    .sources = WEIR_SOURCE_FLOATS,
    .border_rows = 1,
    .border_cols = 1,
    .n_outputs = 1,
    .outputs = { { "weight", WEIR_F32, 1, 1 } },
    .reference = weir_fp32_cast_c,
};
