/* SPDX-License-Identifier: Apache-2.0 */
/* cast_avx2.c - bf16_cast and fp32_cast for processors with AVX2 and F16C. */
#include "convert/x86/vector_avx2.h"

/* bf16, nearest even, in the lower half of each fp32. Not for NaN. */
INLINE __m256i round_lower(__m256i x)
{
    __m256i odd = _mm256_and_si256(_mm256_srli_epi32(x, 16), _mm256_set1_epi32(1));
    __m256i sum = _mm256_add_epi32(_mm256_add_epi32(x, _mm256_set1_epi32(0x7FFF)), odd);
    return _mm256_srli_epi32(sum, 16);
}

/* 16 fp32 to bf16. */
INLINE __m256i round_16(__m256i x0, __m256i x1)
{
    __m256i packed = _mm256_packus_epi32(round_lower(x0), round_lower(x1));
    return _mm256_permute4x64_epi64(packed, 0xD8);
}

/* ---- one vector of 32 output bytes from the elements at `in` ---------------------------------*/

INLINE __m256i bf16_to_bf16_vector(const void *in, peak_lanes *peak)
{
    __m256i x = load_32(in);
    peak_16bit(peak, x);
    return x;
}

INLINE __m256i f16_to_bf16_vector(const void *in, peak_lanes *peak)
{
    __m256i x = load_32(in);
    peak_16bit(peak, x);
    return round_16(_mm256_castps_si256(_mm256_cvtph_ps(_mm256_castsi256_si128(x))),
                    _mm256_castps_si256(_mm256_cvtph_ps(_mm256_extracti128_si256(x, 1))));
}

INLINE __m256i f32_to_bf16_vector(const void *in, peak_lanes *peak)
{
    __m256i x0 = load_32(in), x1 = load_32((const char *)in + 32);
    peak_32bit(peak, x0);
    peak_32bit(peak, x1);
    return round_16(x0, x1);
}

INLINE __m256i bf16_to_f32_vector(const void *in, peak_lanes *peak)
{
    __m256i y = _mm256_slli_epi32(_mm256_cvtepu16_epi32(load_16(in)), 16);
    peak_32bit(peak, y);
    return y;
}

INLINE __m256i f16_to_f32_vector(const void *in, peak_lanes *peak)
{
    __m256i y = _mm256_castps_si256(_mm256_cvtph_ps(load_16(in)));
    peak_32bit(peak, y);
    return y;
}

INLINE __m256i f32_to_f32_vector(const void *in, peak_lanes *peak)
{
    __m256i x = load_32(in);
    peak_32bit(peak, x);
    return x;
}

/* ---- kernels ---------------------------------------------------------------------------------*/

#include "convert/x86/cast_body.h"

weir_status weir_bf16_cast_avx2(const weir_tile *tile)
{
    return bf16_cast_tile(tile);
}

weir_status weir_fp32_cast_avx2(const weir_tile *tile)
{
    return fp32_cast_tile(tile);
}

void weir_round_to_bf16_avx2(uint16_t *out, const float *in, size_t n)
{
    size_t i = 0;
    for (; i + 16 <= n; i += 16) {
        peak_lanes peak = _mm256_setzero_si256();
        __m256i y = f32_to_bf16_vector(in + i, &peak);
        if (top_32bit(&peak) > 0x7F800000) /* NaN */
            weir_round_to_bf16_c(out + i, in + i, 16);
        else
            store_vector(out + i, y, false);
    }
    weir_round_to_bf16_c(out + i, in + i, n - i);
}
