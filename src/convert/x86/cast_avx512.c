/* SPDX-License-Identifier: Apache-2.0 */
/* cast_avx512.c - bf16_cast and fp32_cast for processors with AVX-512. */
#include "convert/x86/vector_avx512.h"

/* bf16, nearest even, in the upper half of each fp32. Not for NaN. */
INLINE __m512i round_upper(__m512i x)
{
    __m512i odd = _mm512_and_si512(_mm512_srli_epi32(x, 16), _mm512_set1_epi32(1));
    return _mm512_add_epi32(_mm512_add_epi32(x, _mm512_set1_epi32(0x7FFF)), odd);
}

/* 32 fp32 to bf16. */
INLINE __m512i round_32(__m512i x0, __m512i x1)
{
    const __m512i upper =
        _mm512_set_epi16(63, 61, 59, 57, 55, 53, 51, 49, 47, 45, 43, 41, 39, 37, 35, 33, 31, 29, 27,
                         25, 23, 21, 19, 17, 15, 13, 11, 9, 7, 5, 3, 1);
    return _mm512_permutex2var_epi16(round_upper(x0), upper, round_upper(x1));
}

INLINE __m512i widen_f16(__m256i x)
{
    return _mm512_castps_si512(_mm512_cvtph_ps(x));
}

INLINE __m256i load_half(const void *in)
{
    return _mm256_loadu_si256((const __m256i *)in);
}

/* ---- one vector of 64 output bytes from the elements at `in` ---------------------------------*/

INLINE __m512i bf16_to_bf16_vector(const void *in, peak_lanes *peak)
{
    __m512i x = _mm512_loadu_si512(in);
    peak_16bit(peak, x);
    return x;
}

INLINE __m512i f16_to_bf16_vector(const void *in, peak_lanes *peak)
{
    __m512i x = _mm512_loadu_si512(in);
    peak_16bit(peak, x);
    return round_32(widen_f16(_mm512_castsi512_si256(x)),
                    widen_f16(_mm512_extracti64x4_epi64(x, 1)));
}

INLINE __m512i f32_to_bf16_vector(const void *in, peak_lanes *peak)
{
    __m512i x0 = _mm512_loadu_si512(in), x1 = _mm512_loadu_si512((const char *)in + 64);
    peak_32bit(peak, x0);
    peak_32bit(peak, x1);
    return round_32(x0, x1);
}

INLINE __m512i bf16_to_f32_vector(const void *in, peak_lanes *peak)
{
    __m512i y = _mm512_slli_epi32(_mm512_cvtepu16_epi32(load_half(in)), 16);
    peak_32bit(peak, y);
    return y;
}

INLINE __m512i f16_to_f32_vector(const void *in, peak_lanes *peak)
{
    __m512i y = widen_f16(load_half(in));
    peak_32bit(peak, y);
    return y;
}

INLINE __m512i f32_to_f32_vector(const void *in, peak_lanes *peak)
{
    __m512i x = _mm512_loadu_si512(in);
    peak_32bit(peak, x);
    return x;
}

/* ---- kernels ---------------------------------------------------------------------------------*/

#include "convert/x86/cast_body.h"

weir_status weir_bf16_cast_avx512(const weir_tile *tile)
{
    return bf16_cast_tile(tile);
}

weir_status weir_fp32_cast_avx512(const weir_tile *tile)
{
    return fp32_cast_tile(tile);
}

void weir_round_to_bf16_avx512(uint16_t *out, const float *in, size_t n)
{
    size_t i = 0;
    for (; i + 32 <= n; i += 32) {
        peak_lanes peak = _mm512_setzero_si512();
        __m512i y = f32_to_bf16_vector(in + i, &peak);
        if (_mm512_cmpgt_epu32_mask(peak, _mm512_set1_epi32(0x7F800000)) != 0) /* NaN */
            weir_round_to_bf16_c(out + i, in + i, 32);
        else
            store_vector(out + i, y, false);
    }
    weir_round_to_bf16_c(out + i, in + i, n - i);
}
