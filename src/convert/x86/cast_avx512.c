/* SPDX-License-Identifier: Apache-2.0 */
/* cast_avx512.c - bf16_cast and fp32_cast for processors with AVX-512. */
#include "convert/x86/vector_avx512.h"

#include "convert/x86/cast_body.h"

/* bf16, nearest even, in the upper half of each fp32. Not for NaN. */
INLINE __m512i round_upper(__m512i x)
{
    __m512i odd = _mm512_and_si512(_mm512_srli_epi32(x, 16), _mm512_set1_epi32(1));
    return _mm512_add_epi32(_mm512_add_epi32(x, _mm512_set1_epi32(0x7FFF)), odd);
}

/* The upper halves of 32 fp32. */
INLINE __m512i pack_upper(__m512i x0, __m512i x1)
{
    const __m512i odd =
        _mm512_set_epi16(63, 61, 59, 57, 55, 53, 51, 49, 47, 45, 43, 41, 39, 37, 35, 33, 31, 29, 27,
                         25, 23, 21, 19, 17, 15, 13, 11, 9, 7, 5, 3, 1);
    return _mm512_permutex2var_epi16(x0, odd, x1);
}

/* ---- to bf16, 32 elements per vector ---------------------------------------------------------*/

INLINE void bf16_row(void *out, const void *in, size_t n, bool stream, peak_lanes *peak,
                     digest_lanes *digest, uint64_t word)
{
    const uint16_t *row = in;
    __m512i keys = digest_keys(word);
    for (size_t i = 0; i < n; i += 32, keys = digest_next(keys)) {
        size_t n_bytes = n - i < 32 ? 2 * (n - i) : 64;
        __m512i x = _mm512_maskz_loadu_epi16(first_32(n - i), row + i);
        peak_16bit(peak, x);
        store_bytes((char *)out + 2 * i, n_bytes, x, stream);
        digest_add_bytes(digest, x, keys, n_bytes);
    }
}

INLINE void f16_to_bf16_row(void *out, const void *in, size_t n, bool stream, peak_lanes *peak,
                            digest_lanes *digest, uint64_t word)
{
    const uint16_t *row = in;
    __m512i keys = digest_keys(word);
    for (size_t i = 0; i < n; i += 32, keys = digest_next(keys)) {
        size_t n_bytes = n - i < 32 ? 2 * (n - i) : 64;
        __m512i x = _mm512_maskz_loadu_epi16(first_32(n - i), row + i);
        __m512 low = _mm512_cvtph_ps(_mm512_castsi512_si256(x));
        __m512 high = _mm512_cvtph_ps(_mm512_extracti64x4_epi64(x, 1));
        __m512i y = pack_upper(round_upper(_mm512_castps_si512(low)),
                               round_upper(_mm512_castps_si512(high)));
        peak_16bit(peak, x);
        store_bytes((char *)out + 2 * i, n_bytes, y, stream);
        digest_add_bytes(digest, y, keys, n_bytes);
    }
}

INLINE void f32_to_bf16_row(void *out, const void *in, size_t n, bool stream, peak_lanes *peak,
                            digest_lanes *digest, uint64_t word)
{
    const float *row = in;
    __m512i keys = digest_keys(word);
    for (size_t i = 0; i < n; i += 32, keys = digest_next(keys)) {
        size_t n_bytes = n - i < 32 ? 2 * (n - i) : 64;
        __m512i x0 = _mm512_maskz_loadu_epi32(first_16(n - i), row + i);
        __m512i x1 = _mm512_maskz_loadu_epi32(first_16(less(n, i + 16)), row + i + 16);
        __m512i y = pack_upper(round_upper(x0), round_upper(x1));
        peak_32bit(peak, x0);
        peak_32bit(peak, x1);
        store_bytes((char *)out + 2 * i, n_bytes, y, stream);
        digest_add_bytes(digest, y, keys, n_bytes);
    }
}

/* ---- to fp32, 16 elements per vector ---------------------------------------------------------*/

INLINE __m256i load_16bit(const uint16_t *row, size_t n)
{
    return _mm256_maskz_loadu_epi16(first_16(n), row);
}

INLINE void bf16_to_f32_row(void *out, const void *in, size_t n, bool stream, peak_lanes *peak,
                            digest_lanes *digest, uint64_t word)
{
    const uint16_t *row = in;
    __m512i keys = digest_keys(word);
    for (size_t i = 0; i < n; i += 16, keys = digest_next(keys)) {
        size_t n_bytes = n - i < 16 ? 4 * (n - i) : 64;
        __m512i y = _mm512_slli_epi32(_mm512_cvtepu16_epi32(load_16bit(row + i, n - i)), 16);
        peak_32bit(peak, y);
        store_bytes((char *)out + 4 * i, n_bytes, y, stream);
        digest_add_bytes(digest, y, keys, n_bytes);
    }
}

INLINE void f16_to_f32_row(void *out, const void *in, size_t n, bool stream, peak_lanes *peak,
                           digest_lanes *digest, uint64_t word)
{
    const uint16_t *row = in;
    __m512i keys = digest_keys(word);
    for (size_t i = 0; i < n; i += 16, keys = digest_next(keys)) {
        size_t n_bytes = n - i < 16 ? 4 * (n - i) : 64;
        __m512i y = _mm512_castps_si512(_mm512_cvtph_ps(load_16bit(row + i, n - i)));
        peak_32bit(peak, y);
        store_bytes((char *)out + 4 * i, n_bytes, y, stream);
        digest_add_bytes(digest, y, keys, n_bytes);
    }
}

INLINE void f32_row(void *out, const void *in, size_t n, bool stream, peak_lanes *peak,
                    digest_lanes *digest, uint64_t word)
{
    const float *row = in;
    __m512i keys = digest_keys(word);
    for (size_t i = 0; i < n; i += 16, keys = digest_next(keys)) {
        size_t n_bytes = n - i < 16 ? 4 * (n - i) : 64;
        __m512i x = _mm512_maskz_loadu_epi32(first_16(n - i), row + i);
        peak_32bit(peak, x);
        store_bytes((char *)out + 4 * i, n_bytes, x, stream);
        digest_add_bytes(digest, x, keys, n_bytes);
    }
}

/* ---- kernels ---------------------------------------------------------------------------------*/

static const cast_ops bf16_to_bf16 = { 2, BF16_LIMIT, top_16bit, bf16_row };
static const cast_ops f16_to_bf16 = { 2, F16_LIMIT, top_16bit, f16_to_bf16_row };
static const cast_ops f32_to_bf16 = { 2, F32_AS_BF16_LIMIT, top_32bit, f32_to_bf16_row };
static const cast_ops bf16_to_f32 = { 4, F32_LIMIT, top_32bit, bf16_to_f32_row };
static const cast_ops f16_to_f32 = { 4, F32_LIMIT, top_32bit, f16_to_f32_row };
static const cast_ops f32_to_f32 = { 4, F32_LIMIT, top_32bit, f32_row };

weir_status weir_bf16_cast_avx512(const weir_tile *tile)
{
    switch (tile->dtype) {
    case WEIR_BF16:
        return cast_tile(tile, &bf16_to_bf16, weir_bf16_cast_c);
    case WEIR_F16:
        return cast_tile(tile, &f16_to_bf16, weir_bf16_cast_c);
    default:
        return cast_tile(tile, &f32_to_bf16, weir_bf16_cast_c);
    }
}

weir_status weir_fp32_cast_avx512(const weir_tile *tile)
{
    switch (tile->dtype) {
    case WEIR_BF16:
        return cast_tile(tile, &bf16_to_f32, weir_fp32_cast_c);
    case WEIR_F16:
        return cast_tile(tile, &f16_to_f32, weir_fp32_cast_c);
    default:
        return cast_tile(tile, &f32_to_f32, weir_fp32_cast_c);
    }
}

void weir_round_to_bf16_avx512(uint16_t *out, const float *in, size_t n)
{
    for (size_t i = 0; i < n; i += 32) {
        __m512i x0 = _mm512_maskz_loadu_epi32(first_16(n - i), in + i);
        __m512i x1 = _mm512_maskz_loadu_epi32(first_16(less(n, i + 16)), in + i + 16);
        peak_lanes peak = _mm512_setzero_si512();
        peak_32bit(&peak, x0);
        peak_32bit(&peak, x1);
        if (_mm512_cmpgt_epu32_mask(peak, _mm512_set1_epi32(F32_LIMIT)) != 0) { /* NaN */
            weir_round_to_bf16_c(out + i, in + i, n - i < 32 ? n - i : 32);
            continue;
        }
        __m512i y = pack_upper(round_upper(x0), round_upper(x1));
        store_bytes(out + i, n - i < 32 ? 2 * (n - i) : 64, y, false);
    }
}
