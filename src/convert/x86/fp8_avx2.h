/* SPDX-License-Identifier: Apache-2.0 */
/* fp8_avx2.h - rows of bf16, fp16 and fp32 to e4m3, 32 elements at a time (AVX2, F16C).
 *
 * bf16 goes through the tables of e4m3_steps.h: no division, no float at all. The others divide.
 */
#ifndef WEIR_CONVERT_X86_FP8_AVX2_H
#define WEIR_CONVERT_X86_FP8_AVX2_H

#include "convert/e4m3_steps.h"
#include "convert/fp8_recipe.h"
#include "convert/x86/vector_avx2.h"

/* What encoding needs to know of one scale. */
typedef struct fp8_coder {
    uint8_t base[16]; /* of the steps, less 8 per power of two of the scale */
    uint8_t step[16]; /* less 1, for a comparison that knows only "greater" */
    uint16_t subnormal[8];
    uint16_t normal;
    float scale;
} __attribute__((aligned(32))) fp8_coder;

/* The first n_bytes (fewer than `most`) at `from`, then zeros. */
#define PADDED(name, most, from, n_bytes) \
    unsigned char name[most] = { 0 };     \
    memcpy(name, from, n_bytes)

/* ---- bf16 ------------------------------------------------------------------------------------*/

INLINE void amax_16bit(peak_lanes *peak, const void *source, size_t n)
{
    const uint16_t *row = source;
    peak_lanes top = *peak;
    size_t i = 0;
    for (; i + 16 <= n; i += 16)
        peak_16bit(&top, load_32(row + i));
    if (i < n) {
        PADDED(line, 32, row + i, 2 * (n - i));
        peak_16bit(&top, load_32(line));
    }
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
    uint16_t offset = (uint16_t)(128 * (exponent - 127));
    for (int i = 0; i < 16; i++) {
        coder->base[i] = (uint8_t)(steps->base[i] - 8 * exponent);
        coder->step[i] = (uint8_t)(steps->step[i] - 1);
    }
    for (int k = 0; k < 8; k++)
        coder->subnormal[k] = (uint16_t)(steps->subnormal[k] + offset);
    coder->normal = (uint16_t)(steps->normal + offset);
}

INLINE __m256i table_16(const uint8_t *table)
{
    return _mm256_broadcastsi128_si256(load_16(table));
}

/* Replaces the codes of elements below the normal range by how many of the eight steps each
 * reaches. Bytes are in the order of a pack: by halves of x0 and x1. */
INLINE __m256i fix_subnormals(const fp8_coder *coder, __m256i codes, __m256i a0, __m256i a1)
{
    __m256i c0 = _mm256_setzero_si256(), c1 = c0;
    for (int k = 0; k < 8; k++) {
        __m256i below = _mm256_set1_epi16((short)(coder->subnormal[k] - 1));
        c0 = _mm256_sub_epi16(c0, _mm256_cmpgt_epi16(a0, below));
        c1 = _mm256_sub_epi16(c1, _mm256_cmpgt_epi16(a1, below));
    }
    __m256i normal = _mm256_set1_epi16((short)coder->normal);
    __m256i small =
        _mm256_packs_epi16(_mm256_cmpgt_epi16(normal, a0), _mm256_cmpgt_epi16(normal, a1));
    return _mm256_blendv_epi8(codes, _mm256_packus_epi16(c0, c1), small);
}

INLINE __m256i codes_bf16(const fp8_coder *coder, __m256i x0, __m256i x1)
{
    const __m256i low_byte = _mm256_set1_epi16(0xFF), low_bits = _mm256_set1_epi16(0x7F);
    /* Bits 4-11: the exponent and the three mantissa bits of a code, unrounded. */
    __m256i truncated = _mm256_packus_epi16(_mm256_and_si256(_mm256_srli_epi16(x0, 4), low_byte),
                                            _mm256_and_si256(_mm256_srli_epi16(x1, 4), low_byte));
    __m256i mantissa =
        _mm256_packus_epi16(_mm256_and_si256(x0, low_bits), _mm256_and_si256(x1, low_bits));
    __m256i run = _mm256_and_si256(_mm256_srli_epi16(mantissa, 3), _mm256_set1_epi8(15));
    __m256i in_run = _mm256_and_si256(mantissa, _mm256_set1_epi8(7));
    __m256i base = _mm256_shuffle_epi8(table_16(coder->base), run);
    __m256i stepped = _mm256_cmpgt_epi8(in_run, _mm256_shuffle_epi8(table_16(coder->step), run));
    __m256i codes = _mm256_sub_epi8(_mm256_add_epi8(truncated, base), stepped);

    const __m256i magnitude = _mm256_set1_epi16(0x7FFF);
    __m256i a0 = _mm256_and_si256(x0, magnitude), a1 = _mm256_and_si256(x1, magnitude);
    __m256i below =
        _mm256_cmpgt_epi16(_mm256_set1_epi16((short)coder->normal), _mm256_min_epu16(a0, a1));
    if (__builtin_expect(!_mm256_testz_si256(below, below), 0))
        codes = fix_subnormals(coder, codes, a0, a1);
    /* A saturating pack keeps the sign bit of each element. */
    __m256i signs = _mm256_and_si256(_mm256_packs_epi16(x0, x1), _mm256_set1_epi8((char)0x80));
    return _mm256_permute4x64_epi64(_mm256_or_si256(codes, signs), 0xD8);
}

INLINE void encode_bf16(const fp8_coder *coder, const void *source, size_t n, uint8_t *out,
                        bool stream, digest_lanes *digest, uint64_t word)
{
    const uint16_t *row = source;
    __m256i keys = digest_keys(word);
    size_t i = 0;
    for (; i + 32 <= n; i += 32, keys = digest_next(keys)) {
        __m256i codes = codes_bf16(coder, load_32(row + i), load_32(row + i + 16));
        store_vector(out + i, codes, stream);
        digest_add(digest, codes, keys);
    }
    if (i < n) {
        PADDED(line, 64, row + i, 2 * (n - i));
        __m256i codes = codes_bf16(coder, load_32(line), load_32(line + 32));
        store_end(out + i, codes, n - i, digest, word + i / 8);
    }
}

/* ---- fp16 and fp32: by division --------------------------------------------------------------*/

INLINE void prepare_division(fp8_coder *coder, uint32_t amax_bits)
{
    coder->scale = weir_fp8_scale(weir_float_from_bits(amax_bits));
}

/* The codes of 8 values: the addition rounds to the last place of a code, which is a power of two
 * fixed by the exponent, or by the subnormals' 2^-6. No clamp: nothing finite is more than one
 * rounding beyond amax / scale = 448. */
INLINE __m256i rounded(__m256 x, __m256 scale)
{
    const __m256i sign_bit = _mm256_set1_epi32((int)0x80000000);
    __m256i bits = _mm256_castps_si256(x);
    __m256 magnitude = _mm256_castsi256_ps(_mm256_andnot_si256(sign_bit, bits));
    __m256 quotient = _mm256_div_ps(magnitude, scale);
    __m256i exponent = _mm256_max_epi32(
        _mm256_and_si256(_mm256_castps_si256(quotient), _mm256_set1_epi32(0x7F800000)),
        _mm256_set1_epi32(0x3C800000));
    __m256 unit = _mm256_castsi256_ps(_mm256_add_epi32(exponent, _mm256_set1_epi32(20 << 23)));
    __m256i sum = _mm256_castps_si256(_mm256_add_ps(quotient, unit));
    __m256i code = _mm256_add_epi32(_mm256_add_epi32(sum, _mm256_srli_epi32(exponent, 20)),
                                    _mm256_set1_epi32(0x38));
    __m256i sign = _mm256_srli_epi32(_mm256_and_si256(bits, sign_bit), 24);
    return _mm256_or_si256(_mm256_and_si256(code, _mm256_set1_epi32(0x7F)), sign);
}

/* 32 codes, one per 32-bit element, as bytes. */
INLINE __m256i pack_codes(__m256i v0, __m256i v1, __m256i v2, __m256i v3)
{
    const __m256i order = _mm256_set_epi32(7, 3, 6, 2, 5, 1, 4, 0);
    __m256i bytes = _mm256_packus_epi16(_mm256_packus_epi32(v0, v1), _mm256_packus_epi32(v2, v3));
    return _mm256_permutevar8x32_epi32(bytes, order);
}

INLINE uint32_t amax_bits_f16(const peak_lanes *peak)
{
    return weir_float_bits(weir_float_from_fp16((uint16_t)top_16bit(peak)));
}

INLINE __m256i codes_f16(const void *row, __m256 scale)
{
    const uint16_t *x = row;
    return pack_codes(rounded(_mm256_cvtph_ps(load_16(x)), scale),
                      rounded(_mm256_cvtph_ps(load_16(x + 8)), scale),
                      rounded(_mm256_cvtph_ps(load_16(x + 16)), scale),
                      rounded(_mm256_cvtph_ps(load_16(x + 24)), scale));
}

INLINE void encode_f16(const fp8_coder *coder, const void *source, size_t n, uint8_t *out,
                       bool stream, digest_lanes *digest, uint64_t word)
{
    const uint16_t *row = source;
    __m256 scale = _mm256_set1_ps(coder->scale);
    __m256i keys = digest_keys(word);
    size_t i = 0;
    for (; i + 32 <= n; i += 32, keys = digest_next(keys)) {
        __m256i codes = codes_f16(row + i, scale);
        store_vector(out + i, codes, stream);
        digest_add(digest, codes, keys);
    }
    if (i < n) {
        PADDED(line, 64, row + i, 2 * (n - i));
        store_end(out + i, codes_f16(line, scale), n - i, digest, word + i / 8);
    }
}

INLINE void amax_f32(peak_lanes *peak, const void *source, size_t n)
{
    const float *row = source;
    peak_lanes top = *peak;
    size_t i = 0;
    for (; i + 8 <= n; i += 8)
        peak_32bit(&top, load_32(row + i));
    if (i < n) {
        PADDED(line, 32, row + i, 4 * (n - i));
        peak_32bit(&top, load_32(line));
    }
    *peak = top;
}

INLINE __m256i codes_f32(const void *row, __m256 scale)
{
    const float *x = row;
    return pack_codes(rounded(_mm256_castsi256_ps(load_32(x)), scale),
                      rounded(_mm256_castsi256_ps(load_32(x + 8)), scale),
                      rounded(_mm256_castsi256_ps(load_32(x + 16)), scale),
                      rounded(_mm256_castsi256_ps(load_32(x + 24)), scale));
}

INLINE void encode_f32(const fp8_coder *coder, const void *source, size_t n, uint8_t *out,
                       bool stream, digest_lanes *digest, uint64_t word)
{
    const float *row = source;
    __m256 scale = _mm256_set1_ps(coder->scale);
    __m256i keys = digest_keys(word);
    size_t i = 0;
    for (; i + 32 <= n; i += 32, keys = digest_next(keys)) {
        __m256i codes = codes_f32(row + i, scale);
        store_vector(out + i, codes, stream);
        digest_add(digest, codes, keys);
    }
    if (i < n) {
        PADDED(line, 128, row + i, 4 * (n - i));
        store_end(out + i, codes_f32(line, scale), n - i, digest, word + i / 8);
    }
}

#endif
