/* SPDX-License-Identifier: Apache-2.0 */
/* fp8_block.c - fp8_128x128: e4m3 with one fp32 scale per 128 x 128 block (docs/formats.md). */
#include "convert/fp8_recipe.h"
#include "convert/kernels.h"
#include "convert/source_value.h"

#define BLOCK 128u

/* One block of a tile: rows [row, row_end) and columns [column, column_end). */
typedef struct block {
    size_t row, row_end, column, column_end;
} block;

/* The largest magnitude; NaN if there is one, whatever else there is. */
static float block_amax(const weir_tile *tile, const block *b)
{
    uint32_t peak = 0; /* magnitudes compare as integers, NaN above Inf */
    for (size_t r = b->row; r < b->row_end; r++) {
        for (size_t c = b->column; c < b->column_end; c++) {
            float value = weir_source_value(tile->dtype, tile->rows[r], c);
            uint32_t magnitude = weir_float_bits(value) & 0x7FFFFFFFu;
            peak = magnitude > peak ? magnitude : peak;
        }
    }
    return weir_float_from_bits(peak);
}

static void block_encode(const weir_tile *tile, const block *b, float scale)
{
    for (size_t r = b->row; r < b->row_end; r++) {
        uint8_t *out = (uint8_t *)tile->out[0].data + r * tile->out[0].pitch_bytes;
        for (size_t c = b->column; c < b->column_end; c++)
            out[c] = weir_fp8_code(weir_source_value(tile->dtype, tile->rows[r], c), scale);
    }
}

static size_t block_end(size_t start, size_t n)
{
    return n - start < BLOCK ? n : start + BLOCK;
}

weir_status weir_fp8_128x128_c(const weir_tile *tile)
{
    for (size_t r = 0; r < tile->n_rows; r += BLOCK) {
        char *scales = (char *)tile->out[1].data + r / BLOCK * tile->out[1].pitch_bytes;
        for (size_t c = 0; c < tile->n_cols; c += BLOCK) {
            block b = { r, block_end(r, tile->n_rows), c, block_end(c, tile->n_cols) };
            float amax = block_amax(tile, &b);
            if (!tile->propagate && !weir_value_is_finite(amax))
                return WEIR_ERR_NONFINITE;
            float scale = weir_fp8_scale(amax);
            ((float *)(void *)scales)[c / BLOCK] = scale;
            block_encode(tile, &b, scale);
        }
    }
    return WEIR_OK;
}

const weir_conversion weir_fp8_128x128 = {
    .size = sizeof(weir_conversion),
    .name = "fp8_128x128",
    .summary = "FP8 e4m3, one fp32 scale per 128 x 128 block (DeepSeek style)",
    .compile_target = WEIR_TARGET_DEEP_GEMM_FP8,
    .compile_metadata =
        "{\"dtype\":\"e4m3\",\"scale_layout\":\"blockwise\",\"block_size\":[128,128]}",
    .sources = WEIR_SOURCE_FLOATS,
    .min_rank = 2,
    .max_rank = 3,
    .rank_error = "FP8 quantization expects a 2D tensor, got shape=%s",
    .border_rows = BLOCK, /* a cut off this grid would share a scale */
    .border_cols = BLOCK,
    .n_outputs = 2,
    .outputs = { { "weight", WEIR_F8_E4M3, 1, 1 }, { "weight_scale_inv", WEIR_F32, BLOCK, BLOCK } },
    .reference = weir_fp8_128x128_c,
    .by_magnitude = true,
};
