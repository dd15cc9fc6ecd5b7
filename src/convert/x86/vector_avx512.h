/* SPDX-License-Identifier: Apache-2.0 */
/* vector_avx512.h - what all AVX-512 kernels share: ragged ends, peaks, stores, and the digest of
 * bytes that are still in registers. */
#ifndef WEIR_CONVERT_X86_VECTOR_AVX512_H
#define WEIR_CONVERT_X86_VECTOR_AVX512_H

#include <immintrin.h>

#include "base/digest.h"

#define INLINE static inline __attribute__((always_inline))

/* ---- ragged ends -----------------------------------------------------------------------------*/

INLINE __mmask32 first_32(size_t n)
{
    return n >= 32 ? 0xFFFFFFFFu : (__mmask32)_bzhi_u32(0xFFFFFFFFu, (unsigned)n);
}

INLINE __mmask16 first_16(size_t n)
{
    return n >= 16 ? 0xFFFFu : (__mmask16)_bzhi_u32(0xFFFFu, (unsigned)n);
}

/* n less the elements of vectors that came before, not below 0. */
INLINE size_t less(size_t n, size_t before)
{
    return n > before ? n - before : 0;
}

typedef __m512i vector_bytes;
#define VECTOR_BYTES 64u

/* `stream`: `out` is aligned and is not read again soon. */
INLINE void store_vector(void *out, __m512i bytes, bool stream)
{
    if (stream)
        _mm512_stream_si512(out, bytes);
    else
        _mm512_storeu_si512(out, bytes);
}

/* ---- peaks: the largest magnitudes seen, in the source's own bits ----------------------------*/

typedef __m512i peak_lanes;

INLINE void peak_16bit(peak_lanes *peak, __m512i x)
{
    *peak = _mm512_max_epu16(*peak, _mm512_and_si512(x, _mm512_set1_epi16(0x7FFF)));
}

INLINE void peak_32bit(peak_lanes *peak, __m512i x)
{
    *peak = _mm512_max_epu32(*peak, _mm512_and_si512(x, _mm512_set1_epi32(0x7FFFFFFF)));
}

INLINE uint32_t top_16bit(const peak_lanes *peak)
{
    __m512i low = _mm512_and_si512(*peak, _mm512_set1_epi32(0xFFFF));
    __m512i high = _mm512_srli_epi32(*peak, 16);
    return _mm512_reduce_max_epu32(_mm512_max_epu32(low, high));
}

INLINE uint32_t top_32bit(const peak_lanes *peak)
{
    return _mm512_reduce_max_epu32(*peak);
}

/* ---- digest ----------------------------------------------------------------------------------*/

typedef struct digest_lanes {
    __m512i product, sum;
} digest_lanes;

/* Keys of eight words that follow each other. */
INLINE vector_bytes digest_keys(uint64_t word)
{
    const __m512i steps = _mm512_mullo_epi64(_mm512_set_epi64(7, 6, 5, 4, 3, 2, 1, 0),
                                             _mm512_set1_epi64((long long)WEIR_DIGEST_STEP));
    return _mm512_add_epi64(_mm512_set1_epi64((long long)weir_digest_key(word)), steps);
}

/* Keys of the eight words after these. */
INLINE vector_bytes digest_next(__m512i keys)
{
    return _mm512_add_epi64(keys, _mm512_set1_epi64((long long)(8 * WEIR_DIGEST_STEP)));
}

INLINE void digest_add(digest_lanes *lanes, __m512i words, __m512i keys)
{
    __m512i keyed = _mm512_add_epi32(words, keys);
    lanes->product =
        _mm512_add_epi64(lanes->product, _mm512_mul_epu32(keyed, _mm512_srli_epi64(keyed, 32)));
    lanes->sum = _mm512_add_epi64(lanes->sum, words);
}

/* A ragged end: stores the first n_bytes (fewer than 64) and adds their words, the last one padded
 * with zeros. */
INLINE void store_end(void *out, __m512i bytes, size_t n_bytes, digest_lanes *lanes, uint64_t word)
{
    unsigned n_words = (unsigned)(n_bytes + 7) / 8;
    __mmask64 there = _bzhi_u64(~0ull, (unsigned)n_bytes);
    __m512i words = _mm512_maskz_mov_epi8(there, bytes);
    __m512i keyed = _mm512_add_epi32(words, digest_keys(word));
    keyed = _mm512_maskz_mov_epi64((__mmask8)_bzhi_u32(0xFF, n_words), keyed);
    _mm512_mask_storeu_epi8(out, there, bytes);
    lanes->product =
        _mm512_add_epi64(lanes->product, _mm512_mul_epu32(keyed, _mm512_srli_epi64(keyed, 32)));
    lanes->sum = _mm512_add_epi64(lanes->sum, words);
}

/* By hand: the intrinsic adds signed numbers, which must not overflow. */
INLINE void digest_finish(const digest_lanes *lanes, weir_digest *into)
{
    uint64_t product[8], sum[8];
    _mm512_storeu_si512(product, lanes->product);
    _mm512_storeu_si512(sum, lanes->sum);
    for (int i = 0; into != NULL && i < 8; i++) {
        weir_digest part = { product[i], sum[i] };
        weir_digest_merge(into, &part);
    }
}

#endif
