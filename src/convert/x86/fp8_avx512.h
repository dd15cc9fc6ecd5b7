/* SPDX-License-Identifier: Apache-2.0 */
/* fp8_avx512.h - rows of bf16, fp16 and fp32 to e4m3, 64 elements at a time (F, BW, DQ, VL, VBMI).
 *
 * bf16 goes through the tables of e4m3_steps.h: no division, no float at all. The others divide.
 */
#ifndef WEIR_CONVERT_X86_FP8_AVX512_H
#define WEIR_CONVERT_X86_FP8_AVX512_H

#include <immintrin.h>

#include "convert/e4m3_steps.h"
#include "convert/fp8_recipe.h"
#include "convert/x86/vector_avx512.h"

/* What encoding needs to know of one scale. */
typedef struct fp8_coder {
    uint8_t delta[128]; /* of the steps, less 8 per power of two of the scale */
    uint16_t subnormal[8];
    uint16_t normal;
    float scale;
} __attribute__((aligned(64))) fp8_coder;

/* The first n codes (any number), with their digest. */
INLINE void store_up_to_64(uint8_t *out, size_t n, __m512i codes, bool stream, digest_lanes *digest,
                           uint64_t word)
{
    if (n < 64) {
        store_end(out, codes, n, digest, word);
        return;
    }
    store_vector(out, codes, stream);
    digest_add(digest, codes, digest_keys(word));
}

/* ---- bf16 ------------------------------------------------------------------------------------*/

INLINE void amax_16bit(peak_lanes *peak, const void *source, size_t n)
{
    const uint16_t *row = source;
    peak_lanes top = *peak;
    size_t i = 0;
    for (; i + 32 <= n; i += 32)
        peak_16bit(&top, _mm512_loadu_si512(row + i));
    if (i < n)
        peak_16bit(&top, _mm512_maskz_loadu_epi16(first_32(n - i), row + i));
    *peak = top;
}

INLINE uint32_t amax_bits_bf16(const peak_lanes *peak)
{
    return top_16bit(peak) << 16;
}

INLINE void prepare_bf16(fp8_coder *coder, uint32_t amax_bits)
{
    coder->scale = weir_fp8_scale(weir_float_from_bits(amax_bits));
    const weir_e4m3_steps *steps = weir_e4m3_steps_of((uint16_t)(amax_bits >> 16), coder->scale);
    uint32_t exponent = weir_float_bits(coder->scale) >> 23;
    __m512i shift = _mm512_set1_epi8((char)(8 * exponent));
    _mm512_store_si512(coder->delta, _mm512_sub_epi8(_mm512_load_si512(steps->delta), shift));
    _mm512_store_si512(coder->delta + 64,
                       _mm512_sub_epi8(_mm512_load_si512(steps->delta + 64), shift));
    uint16_t offset = (uint16_t)(128 * (exponent - 127));
    __m128i least = _mm_load_si128((const __m128i *)(const void *)steps->subnormal);
    _mm_store_si128((__m128i *)(void *)coder->subnormal,
                    _mm_add_epi16(least, _mm_set1_epi16((short)offset)));
    coder->normal = (uint16_t)(steps->normal + offset);
}

/* For 32 magnitudes below the normal range: how many of the eight steps each reaches. */
INLINE __m512i subnormal_codes(const fp8_coder *coder, __m512i magnitude)
{
    const __m512i one = _mm512_set1_epi16(1);
    __m512i codes = _mm512_setzero_si512();
    for (int k = 0; k < 8; k++) {
        __m512i least = _mm512_set1_epi16((short)coder->subnormal[k]);
        codes = _mm512_mask_add_epi16(codes, _mm512_cmpge_epu16_mask(magnitude, least), codes, one);
    }
    return codes;
}

static const uint8_t odd_bytes[64] __attribute__((aligned(
    64))) = { 1,  3,  5,   7,   9,   11,  13,  15,  17,  19,  21,  23,  25,  27,  29,  31,
              33, 35, 37,  39,  41,  43,  45,  47,  49,  51,  53,  55,  57,  59,  61,  63,
              65, 67, 69,  71,  73,  75,  77,  79,  81,  83,  85,  87,  89,  91,  93,  95,
              97, 99, 101, 103, 105, 107, 109, 111, 113, 115, 117, 119, 121, 123, 125, 127 };

/* Sign bit of 64 16-bit elements where the codes have theirs. */
INLINE __m512i add_signs(__m512i codes, __m512i x0, __m512i x1)
{
    __m512i high = _mm512_permutex2var_epi8(x0, _mm512_load_si512(odd_bytes), x1);
    return _mm512_ternarylogic_epi32(high, _mm512_set1_epi8((char)0x80), codes, 0xEA);
}

/* The codes of 64 elements, right for those in the normal range, without signs. */
INLINE __m512i normal_codes(const fp8_coder *coder, __m512i x0, __m512i x1)
{
    /* From four elements in 64 bits: bits 4-11 of each (the exponent and the three mantissa bits
     * of a code, unrounded), then bits 0-7 (of which the look-up uses the mantissa). */
    const __m512i fields = _mm512_set1_epi64(0x3020100034241404);
    const __m512i even =
        _mm512_set_epi32(30, 28, 26, 24, 22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0);
    const __m512i odd = _mm512_set_epi32(31, 29, 27, 25, 23, 21, 19, 17, 15, 13, 11, 9, 7, 5, 3, 1);
    __m512i f0 = _mm512_multishift_epi64_epi8(fields, x0);
    __m512i f1 = _mm512_multishift_epi64_epi8(fields, x1);
    __m512i truncated = _mm512_permutex2var_epi32(f0, even, f1);
    __m512i mantissa = _mm512_permutex2var_epi32(f0, odd, f1);
    __m512i delta = _mm512_permutex2var_epi8(_mm512_load_si512(coder->delta), mantissa,
                                             _mm512_load_si512(coder->delta + 64));
    return _mm512_add_epi8(truncated, delta);
}

/* Replaces the codes of the elements below the normal range. */
INLINE __m512i fix_subnormals(const fp8_coder *coder, __m512i codes, __m512i a0, __m512i a1)
{
    __m512i normal = _mm512_set1_epi16((short)coder->normal);
    uint64_t below =
        _mm512_cmplt_epu16_mask(a0, normal) | (uint64_t)_mm512_cmplt_epu16_mask(a1, normal) << 32;
    __m512i even_bytes = _mm512_sub_epi8(_mm512_load_si512(odd_bytes), _mm512_set1_epi8(1));
    __m512i small = _mm512_permutex2var_epi8(subnormal_codes(coder, a0), even_bytes,
                                             subnormal_codes(coder, a1));
    return _mm512_mask_mov_epi8(codes, below, small);
}

/* 128 elements in x to 128 codes: one look whether any is below the normal range. */
INLINE void codes_bf16(const fp8_coder *coder, const __m512i x[4], __m512i codes[2])
{
    const __m512i magnitude = _mm512_set1_epi16(0x7FFF);
    __m512i a[4];
    for (int i = 0; i < 4; i++)
        a[i] = _mm512_and_si512(x[i], magnitude);
    __m512i least = _mm512_min_epu16(_mm512_min_epu16(a[0], a[1]), _mm512_min_epu16(a[2], a[3]));
    codes[0] = normal_codes(coder, x[0], x[1]);
    codes[1] = normal_codes(coder, x[2], x[3]);
    __m512i normal = _mm512_set1_epi16((short)coder->normal);
    if (__builtin_expect(_mm512_cmplt_epu16_mask(least, normal) != 0, 0)) {
        codes[0] = fix_subnormals(coder, codes[0], a[0], a[1]);
        codes[1] = fix_subnormals(coder, codes[1], a[2], a[3]);
    }
    codes[0] = add_signs(codes[0], x[0], x[1]);
    codes[1] = add_signs(codes[1], x[2], x[3]);
}

INLINE void encode_bf16(const fp8_coder *coder, const void *source, size_t n, uint8_t *out,
                        bool stream, digest_lanes *digest, uint64_t word)
{
    const uint16_t *row = source;
    __m512i keys = digest_keys(word), x[4], codes[2];
    size_t i = 0;
    for (; i + 128 <= n; i += 128) {
        for (int k = 0; k < 4; k++)
            x[k] = _mm512_loadu_si512(row + i + 32 * k);
        codes_bf16(coder, x, codes);
        for (int k = 0; k < 2; k++, keys = digest_next(keys)) {
            store_vector(out + i + 64 * k, codes[k], stream);
            digest_add(digest, codes[k], keys);
        }
    }
    if (i == n)
        return;
    for (size_t k = 0; k < 4; k++)
        x[k] = _mm512_maskz_loadu_epi16(first_32(less(n, i + 32 * k)), row + i + 32 * k);
    codes_bf16(coder, x, codes);
    store_up_to_64(out + i, n - i, codes[0], stream, digest, word + i / 8);
    if (n - i > 64)
        store_up_to_64(out + i + 64, n - i - 64, codes[1], stream, digest, word + i / 8 + 8);
}

/* ---- fp16 and fp32: by division --------------------------------------------------------------*/

INLINE void prepare_division(fp8_coder *coder, uint32_t amax_bits)
{
    coder->scale = weir_fp8_scale(weir_float_from_bits(amax_bits));
}

/* The codes less 0x38 of 16 magnitudes, in the low bytes: the addition rounds to the last place of
 * a code, which is a power of two fixed by the exponent, or by the subnormals' 2^-6. No clamp:
 * nothing finite is more than one rounding beyond amax / scale = 448. */
INLINE __m512i rounded(__m512 x, __m512 scale)
{
    __m512 magnitude = _mm512_castsi512_ps(
        _mm512_and_si512(_mm512_castps_si512(x), _mm512_set1_epi32(0x7FFFFFFF)));
    __m512 quotient = _mm512_div_ps(magnitude, scale);
    __m512i exponent = _mm512_max_epi32(
        _mm512_and_si512(_mm512_castps_si512(quotient), _mm512_set1_epi32(0x7F800000)),
        _mm512_set1_epi32(0x3C800000));
    __m512 unit = _mm512_castsi512_ps(_mm512_add_epi32(exponent, _mm512_set1_epi32(20 << 23)));
    __m512i sum = _mm512_castps_si512(_mm512_add_ps(quotient, unit));
    return _mm512_add_epi32(sum, _mm512_srli_epi32(exponent, 20));
}

static const uint8_t fourth_bytes[64]
    __attribute__((aligned(64))) = { 0,   4,   8,   12,  16,  20,  24,  28,  32,  36,  40,  44, 48,
                                     52,  56,  60,  64,  68,  72,  76,  80,  84,  88,  92,  96, 100,
                                     104, 108, 112, 116, 120, 124, 0,   4,   8,   12,  16,  20, 24,
                                     28,  32,  36,  40,  44,  48,  52,  56,  60,  64,  68,  72, 76,
                                     80,  84,  88,  92,  96,  100, 104, 108, 112, 116, 120, 124 };

/* Byte `which` of 64 32-bit elements. */
INLINE __m512i pack_bytes(const __m512i v[4], char which)
{
    __m512i index = _mm512_add_epi8(_mm512_load_si512(fourth_bytes), _mm512_set1_epi8(which));
    __m512i low = _mm512_permutex2var_epi8(v[0], index, v[1]);
    __m512i high = _mm512_permutex2var_epi8(v[2], index, v[3]);
    return _mm512_mask_blend_epi64(0xF0, low, high);
}

INLINE uint32_t amax_bits_f16(const peak_lanes *peak)
{
    return weir_float_bits(weir_float_from_fp16((uint16_t)top_16bit(peak)));
}

INLINE __m512i codes_f16(const fp8_coder *coder, __m512i x0, __m512i x1)
{
    __m512 scale = _mm512_set1_ps(coder->scale);
    __m512i v[4] = {
        rounded(_mm512_cvtph_ps(_mm512_castsi512_si256(x0)), scale),
        rounded(_mm512_cvtph_ps(_mm512_extracti64x4_epi64(x0, 1)), scale),
        rounded(_mm512_cvtph_ps(_mm512_castsi512_si256(x1)), scale),
        rounded(_mm512_cvtph_ps(_mm512_extracti64x4_epi64(x1, 1)), scale),
    };
    __m512i codes = _mm512_add_epi8(pack_bytes(v, 0), _mm512_set1_epi8(0x38));
    return add_signs(codes, x0, x1);
}

INLINE void encode_f16(const fp8_coder *coder, const void *source, size_t n, uint8_t *out,
                       bool stream, digest_lanes *digest, uint64_t word)
{
    const uint16_t *row = source;
    for (size_t i = 0; i < n; i += 64) {
        __m512i x0 = _mm512_maskz_loadu_epi16(first_32(n - i), row + i);
        __m512i x1 = _mm512_maskz_loadu_epi16(first_32(less(n, i + 32)), row + i + 32);
        __m512i codes = codes_f16(coder, x0, x1);
        store_up_to_64(out + i, n - i, codes, stream, digest, word + i / 8);
    }
}

INLINE void amax_f32(peak_lanes *peak, const void *source, size_t n)
{
    const float *row = source;
    peak_lanes top = *peak;
    for (size_t i = 0; i < n; i += 16)
        peak_32bit(&top, _mm512_maskz_loadu_epi32(first_16(n - i), row + i));
    *peak = top;
}

INLINE void encode_f32(const fp8_coder *coder, const void *source, size_t n, uint8_t *out,
                       bool stream, digest_lanes *digest, uint64_t word)
{
    const float *row = source;
    __m512 scale = _mm512_set1_ps(coder->scale);
    for (size_t i = 0; i < n; i += 64) {
        __m512i x[4], v[4];
        for (size_t k = 0; k < 4; k++) {
            x[k] = _mm512_maskz_loadu_epi32(first_16(less(n, i + 16 * k)), row + i + 16 * k);
            v[k] = rounded(_mm512_castsi512_ps(x[k]), scale);
        }
        __m512i codes = _mm512_add_epi8(pack_bytes(v, 0), _mm512_set1_epi8(0x38));
        codes =
            _mm512_ternarylogic_epi32(pack_bytes(x, 3), _mm512_set1_epi8((char)0x80), codes, 0xEA);
        store_up_to_64(out + i, n - i, codes, stream, digest, word + i / 8);
    }
}

#endif
