/* SPDX-License-Identifier: Apache-2.0 */
/* magnitude.c - magnitudes compare as integers once the sign is gone: NaN above Inf above the rest,
 * in every one of these dtypes. So a block's largest needs no floating point, and compilers make
 * vector code of the loops.
 */
#include "convert/magnitude.h"

#include "numeric/scalar.h"

static uint32_t peak_16(const uint16_t *row, size_t n)
{
    uint16_t peak = 0;
    for (size_t i = 0; i < n; i++) {
        uint16_t magnitude = row[i] & 0x7FFFu;
        peak = magnitude > peak ? magnitude : peak;
    }
    return peak;
}

static uint32_t peak_32(const uint32_t *row, size_t n)
{
    uint32_t peak = 0;
    for (size_t i = 0; i < n; i++) {
        uint32_t magnitude = row[i] & 0x7FFFFFFFu;
        peak = magnitude > peak ? magnitude : peak;
    }
    return peak;
}

/* The largest of n elements, as F32. */
static float peak_of(weir_dtype dtype, const unsigned char *at, size_t n)
{
    const void *elements = at;
    if (dtype == WEIR_F32)
        return weir_float_from_bits(peak_32(elements, n));
    uint16_t peak = (uint16_t)peak_16(elements, n);
    return dtype == WEIR_BF16 ? weir_float_from_bf16(peak) : weir_float_from_fp16(peak);
}

float weir_magnitude_max(float a, float b)
{
    uint32_t x = weir_float_bits(a) & 0x7FFFFFFFu, y = weir_float_bits(b) & 0x7FFFFFFFu;
    return weir_float_from_bits(x > y ? x : y);
}

void weir_magnitude_raise(const weir_magnitude_view *view, uint32_t n_block_cols, float *magnitudes)
{
    size_t element_bytes = weir_dtype_bits(view->dtype) / 8;
    for (uint32_t r = 0; r < view->n_rows; r++) {
        const unsigned char *row = (const unsigned char *)view->data + r * view->pitch_bytes;
        float *blocks = magnitudes + (size_t)((view->row + r) / view->block_rows) * n_block_cols;
        for (uint32_t c = 0; c < view->n_cols;) {
            uint32_t block = (view->col + c) / view->block_cols;
            uint32_t left = (block + 1) * view->block_cols - view->col - c;
            uint32_t n = view->n_cols - c < left ? view->n_cols - c : left;
            float peak = peak_of(view->dtype, row + c * element_bytes, n);
            blocks[block] = weir_magnitude_max(blocks[block], peak);
            c += n;
        }
    }
}
