/* SPDX-License-Identifier: Apache-2.0 */
/* vector_avx2.h - what all AVX2 kernels share: ragged ends, peaks, stores, and the digest of bytes
 * that are still in registers.
 *
 * AVX2 has no masked byte access, so a ragged end is copied to a zero-padded line and back.
 */
#ifndef WEIR_CONVERT_X86_VECTOR_AVX2_H
#define WEIR_CONVERT_X86_VECTOR_AVX2_H

#include <immintrin.h>
#include <string.h>

#include "base/digest.h"

#define INLINE static inline __attribute__((always_inline))

INLINE __m256i load_32(const void *from)
{
    return _mm256_loadu_si256((const __m256i *)from);
}

INLINE __m128i load_16(const void *from)
{
    return _mm_loadu_si128((const __m128i *)from);
}

typedef __m256i vector_bytes;
#define VECTOR_BYTES 32u

/* `stream`: `out` is aligned and is not read again soon. */
INLINE void store_vector(void *out, __m256i bytes, bool stream)
{
    if (stream)
        _mm256_stream_si256((__m256i *)out, bytes);
    else
        _mm256_storeu_si256((__m256i *)out, bytes);
}

/* ---- peaks: the largest magnitudes seen, in the source's own bits ----------------------------*/

typedef __m256i peak_lanes;

INLINE void peak_16bit(peak_lanes *peak, __m256i x)
{
    *peak = _mm256_max_epu16(*peak, _mm256_and_si256(x, _mm256_set1_epi16(0x7FFF)));
}

INLINE void peak_32bit(peak_lanes *peak, __m256i x)
{
    *peak = _mm256_max_epu32(*peak, _mm256_and_si256(x, _mm256_set1_epi32(0x7FFFFFFF)));
}

INLINE uint32_t top_16bit(const peak_lanes *peak)
{
    __m128i half = _mm_max_epu16(_mm256_castsi256_si128(*peak), _mm256_extracti128_si256(*peak, 1));
    /* phminposuw finds the least; the complement of the least complement is the largest. */
    __m128i least = _mm_minpos_epu16(_mm_xor_si128(half, _mm_set1_epi16(-1)));
    return 0xFFFFu & ~(uint32_t)_mm_cvtsi128_si32(least);
}

INLINE uint32_t top_32bit(const peak_lanes *peak)
{
    __m128i half = _mm_max_epu32(_mm256_castsi256_si128(*peak), _mm256_extracti128_si256(*peak, 1));
    half = _mm_max_epu32(half, _mm_shuffle_epi32(half, 0x4E));
    half = _mm_max_epu32(half, _mm_shuffle_epi32(half, 0xB1));
    return (uint32_t)_mm_cvtsi128_si32(half);
}

/* ---- digest ----------------------------------------------------------------------------------*/

typedef struct digest_lanes {
    __m256i product, sum;
} digest_lanes;

/* Keys of four words that follow each other. */
INLINE vector_bytes digest_keys(uint64_t word)
{
    const __m256i steps =
        _mm256_set_epi64x((long long)(3 * WEIR_DIGEST_STEP), (long long)(2 * WEIR_DIGEST_STEP),
                          (long long)WEIR_DIGEST_STEP, 0);
    return _mm256_add_epi64(_mm256_set1_epi64x((long long)weir_digest_key(word)), steps);
}

/* Keys of the four words after these. */
INLINE vector_bytes digest_next(__m256i keys)
{
    return _mm256_add_epi64(keys, _mm256_set1_epi64x((long long)(4 * WEIR_DIGEST_STEP)));
}

INLINE void digest_add(digest_lanes *lanes, __m256i words, __m256i keys)
{
    __m256i keyed = _mm256_add_epi32(words, keys);
    lanes->product =
        _mm256_add_epi64(lanes->product, _mm256_mul_epu32(keyed, _mm256_srli_epi64(keyed, 32)));
    lanes->sum = _mm256_add_epi64(lanes->sum, words);
}

/* A ragged end: stores the first n_bytes (fewer than 32) and adds their words, the last one padded
 * with zeros. */
INLINE void store_end(void *out, __m256i bytes, size_t n_bytes, digest_lanes *lanes, uint64_t word)
{
    unsigned char line[32];
    weir_digest part = { 0, 0 };
    _mm256_storeu_si256((__m256i *)(void *)line, bytes);
    memset(line + n_bytes, 0, sizeof(line) - n_bytes);
    memcpy(out, line, n_bytes);
    for (size_t i = 0; i < n_bytes; i += 8) {
        uint64_t value;
        memcpy(&value, line + i, 8);
        weir_digest_word(&part, value, weir_digest_key(word + i / 8));
    }
    lanes->product =
        _mm256_add_epi64(lanes->product, _mm256_set_epi64x(0, 0, 0, (long long)part.product));
    lanes->sum = _mm256_add_epi64(lanes->sum, _mm256_set_epi64x(0, 0, 0, (long long)part.sum));
}

INLINE void digest_finish(const digest_lanes *lanes, weir_digest *into)
{
    uint64_t product[4], sum[4];
    _mm256_storeu_si256((__m256i *)(void *)product, lanes->product);
    _mm256_storeu_si256((__m256i *)(void *)sum, lanes->sum);
    for (int i = 0; into != NULL && i < 4; i++) {
        weir_digest part = { product[i], sum[i] };
        weir_digest_merge(into, &part);
    }
}

#endif
