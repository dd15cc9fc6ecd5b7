/* SPDX-License-Identifier: Apache-2.0 */
/* kernels.h - the built-in rows, their reference kernels, and the ladder of faster ones. */
#ifndef WEIR_CONVERT_KERNELS_H
#define WEIR_CONVERT_KERNELS_H

#include "weir/convert.h"

/* Rows as they are written down: reference kernel only. */
extern const weir_conversion weir_bf16_cast;
extern const weir_conversion weir_fp32_cast;
extern const weir_conversion weir_fp8_128x128;
extern const weir_conversion weir_fp8_channel;
extern const weir_conversion weir_neg_exp_row;

/* Rounds n fp32 to bf16, as weir_bf16_from_float(). */
typedef void (*weir_round_fn)(uint16_t *out, const float *in, size_t n);

/* What this CPU runs. Every entry but the rounding is byte for byte its row's reference, and sums
 * the digest itself. NULL: the reference is the fastest there is. */
typedef struct weir_kernel_table {
    weir_convert_fn bf16_cast;
    weir_convert_fn fp32_cast;
    weir_convert_fn fp8_128x128;
    weir_convert_fn fp8_channel;
    weir_round_fn round_to_bf16; /* never NULL */
} weir_kernel_table;

const weir_kernel_table *weir_kernels(void); /* chosen at the first call */

weir_status weir_bf16_cast_c(const weir_tile *tile);
weir_status weir_fp32_cast_c(const weir_tile *tile);
weir_status weir_fp8_128x128_c(const weir_tile *tile);
weir_status weir_fp8_channel_c(const weir_tile *tile);
weir_status weir_neg_exp_c(const weir_tile *tile);
void weir_round_to_bf16_c(uint16_t *out, const float *in, size_t n);

weir_status weir_bf16_cast_avx2(const weir_tile *tile);
weir_status weir_fp32_cast_avx2(const weir_tile *tile);
weir_status weir_fp8_128x128_avx2(const weir_tile *tile);
weir_status weir_fp8_channel_avx2(const weir_tile *tile);
void weir_round_to_bf16_avx2(uint16_t *out, const float *in, size_t n);

weir_status weir_bf16_cast_avx512(const weir_tile *tile);
weir_status weir_fp32_cast_avx512(const weir_tile *tile);
weir_status weir_fp8_128x128_avx512(const weir_tile *tile);
weir_status weir_fp8_channel_avx512(const weir_tile *tile);
void weir_round_to_bf16_avx512(uint16_t *out, const float *in, size_t n);

/* What an ISA kernel does with a tile that it cannot take because an element is not finite:
 * refuses it, or has the reference convert it and adds its digest. */
weir_status weir_convert_nonfinite_tile(const weir_tile *tile, weir_convert_fn reference,
                                        size_t output_row_bytes);

#endif
