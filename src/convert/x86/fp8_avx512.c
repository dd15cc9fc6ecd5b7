/* SPDX-License-Identifier: Apache-2.0 */
/* fp8_avx512.c - both FP8 conversions for processors with AVX-512 VBMI. */
#include <string.h>

#include "convert/x86/fp8_avx512.h"
#include "convert/x86/fp8_body.h"

static const fp8_ops bf16_ops = { 2, amax_16bit, amax_bits_bf16, prepare_bf16, encode_bf16 };
static const fp8_ops f16_ops = { 2, amax_16bit, amax_bits_f16, prepare_division, encode_f16 };
static const fp8_ops f32_ops = { 4, amax_f32, top_32bit, prepare_division, encode_f32 };

weir_status weir_fp8_128x128_avx512(const weir_tile *tile)
{
    switch (tile->dtype) {
    case WEIR_BF16:
        return block_tile(tile, &bf16_ops);
    case WEIR_F16:
        return block_tile(tile, &f16_ops);
    default:
        return block_tile(tile, &f32_ops);
    }
}

weir_status weir_fp8_channel_avx512(const weir_tile *tile)
{
    switch (tile->dtype) {
    case WEIR_BF16:
        return channel_tile(tile, &bf16_ops);
    case WEIR_F16:
        return channel_tile(tile, &f16_ops);
    default:
        return channel_tile(tile, &f32_ops);
    }
}
