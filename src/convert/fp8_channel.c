/* SPDX-License-Identifier: Apache-2.0 */
/* fp8_channel.c - cutlass_fp8_e4m3_per_channel: e4m3 with one fp32 scale per output row
 * (docs/formats.md). */
#include "convert/fp8_recipe.h"
#include "convert/kernels.h"
#include "convert/source_value.h"

/* The largest magnitude; NaN if there is one, whatever else there is. */
static float row_amax(const weir_tile *tile, const void *row)
{
    uint32_t peak = 0; /* magnitudes compare as integers, NaN above Inf */
    for (size_t c = 0; c < tile->n_cols; c++) {
        uint32_t magnitude = weir_float_bits(weir_source_value(tile->dtype, row, c)) & 0x7FFFFFFFu;
        peak = magnitude > peak ? magnitude : peak;
    }
    return weir_float_from_bits(peak);
}

weir_status weir_fp8_channel_c(const weir_tile *tile)
{
    for (size_t r = 0; r < tile->n_rows; r++) {
        float amax = row_amax(tile, tile->rows[r]);
        if (!tile->propagate && !weir_value_is_finite(amax))
            return WEIR_ERR_NONFINITE;
        float scale = weir_fp8_scale(amax);
        *(float *)(void *)((char *)tile->out[1].data + r * tile->out[1].pitch_bytes) = scale;
        uint8_t *out = (uint8_t *)tile->out[0].data + r * tile->out[0].pitch_bytes;
        for (size_t c = 0; c < tile->n_cols; c++)
            out[c] = weir_fp8_code(weir_source_value(tile->dtype, tile->rows[r], c), scale);
    }
    return WEIR_OK;
}

const weir_conversion weir_fp8_channel = {
    .size = sizeof(weir_conversion),
    .name = "cutlass_fp8_e4m3_per_channel",
    .summary = "FP8 e4m3, one fp32 scale per output row, for CUTLASS",
    .compile_target = WEIR_TARGET_CUTLASS_FP8,
    .compile_metadata = "{\"dtype\":\"e4m3\",\"scale_layout\":\"per_channel\",\"scale_axis\":-1,"
                        "\"activation_scheme\":\"dynamic\"}",
    .sources = WEIR_SOURCE_FLOATS,
    .min_rank = 2,
    .max_rank = 3,
    .rank_error = "fp8_per_channel_quantize expects 2D or 3D, got shape=%s",
    .border_rows = 1,
    .border_cols = WEIR_WHOLE, /* a row has one scale */
    .n_outputs = 2,
    .outputs = { { "weight", WEIR_F8_E4M3, 1, 1 }, { "weight_scale", WEIR_F32, 1, WEIR_WHOLE } },
    .reference = weir_fp8_channel_c,
    .by_magnitude = true,
};
