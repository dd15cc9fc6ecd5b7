/* SPDX-License-Identifier: Apache-2.0 */
/* to_float.cuh - a held tile in another float dtype, without a scale. What is refused is found on
 * the way: for bf16 what is not finite after rounding. */
#ifndef WEIR_CONVERT_TO_FLOAT_CUH
#define WEIR_CONVERT_TO_FLOAT_CUH

#include "convert/cuda/tile_walk.cuh"

/* A chunk of output as 32-bit words: 4 of bf16, 8 of fp32. */
template <int N> struct float_words {
    uint32_t w[N];
};

struct as_bf16 {
    static constexpr uint32_t n_words = 4, element_bytes = 2;
    template <class From>
    static __device__ __forceinline__ float_words<4> cast(const typename From::held &chunk)
    {
        float v[8];
        float_words<4> out;
        From::values(chunk, v);
#pragma unroll
        for (int i = 0; i < 4; i++)
            out.w[i] = from_master::pair(v[2 * i], v[2 * i + 1]);
        return out;
    }
    static __device__ __forceinline__ bool refuses(const float_words<4> &words)
    {
        uint32_t peak = 0;
#pragma unroll
        for (int i = 0; i < 4; i++)
            peak = peak_bf16(peak, words.w[i]);
        return from_bf16::magnitude(peak) >= WEIR_F32_INF_BITS;
    }
};

struct as_f32 {
    static constexpr uint32_t n_words = 8, element_bytes = 4;
    template <class From>
    static __device__ __forceinline__ float_words<8> cast(const typename From::held &chunk)
    {
        float v[8];
        float_words<8> out;
        From::exact_values(chunk, v);
#pragma unroll
        for (int i = 0; i < 8; i++)
            out.w[i] = __float_as_uint(v[i]);
        return out;
    }
    static __device__ __forceinline__ bool refuses(const float_words<8> &words)
    {
        uint32_t peak = 0;
#pragma unroll
        for (int i = 0; i < 8; i++)
            peak = max(peak, words.w[i] & 0x7FFFFFFFu);
        return peak >= WEIR_F32_INF_BITS;
    }
};

__device__ __forceinline__ uint4 four_words(const uint32_t *w)
{
    return make_uint4(w[0], w[1], w[2], w[3]);
}

/* Stores chunks of 16 bytes side by side. Whole warps call it. */
__device__ __forceinline__ void store_words(char *out, const float_words<4> &words, bool there)
{
    if (there)
        __stcs(reinterpret_cast<uint4 *>(out), four_words(words.w));
}

/* Chunks of 32 bytes: two neighbours, whose chunks lie side by side, swap halves, so that each of
 * their two stores fills sectors whole. The last chunk of a row may have no neighbour. */
__device__ __forceinline__ void store_words(char *out, const float_words<8> &words, bool there)
{
    const bool odd = threadIdx.x % 2 != 0;
    uint32_t low[4], high[4];
#pragma unroll
    for (int i = 0; i < 4; i++) {
        uint32_t other = __shfl_xor_sync(FULL_WARP, odd ? words.w[i] : words.w[4 + i], 1);
        low[i] = odd ? other : words.w[i];
        high[i] = odd ? words.w[4 + i] : other;
    }
    const bool pair = __shfl_xor_sync(FULL_WARP, there, 1) != 0;
    if (!there)
        return;
    if (!pair) {
        __stcs(reinterpret_cast<uint4 *>(out), four_words(words.w));
        __stcs(reinterpret_cast<uint4 *>(out + 16), four_words(words.w + 4));
        return;
    }
    char *even_out = odd ? out - 16 : out;
    __stcs(reinterpret_cast<uint4 *>(even_out), four_words(low));
    __stcs(reinterpret_cast<uint4 *>(even_out + 32), four_words(high));
}

/* The first n elements; what lies behind them in the words becomes zero. */
template <class As>
__device__ __noinline__ void store_some_words(void *out, float_words<As::n_words> *words,
                                              uint32_t n)
{
    for (uint32_t i = 0; i < 8; i++) {
        uint32_t bits = 8 * As::element_bytes, at = i * As::element_bytes;
        uint32_t mask = bits == 32 ? 0xFFFFFFFFu : 0xFFFFu, shift = at % 4 * 8;
        if (i >= n)
            words->w[at / 4] &= ~(mask << shift);
        else if (bits == 32)
            static_cast<uint32_t *>(out)[i] = words->w[at / 4];
        else
            static_cast<uint16_t *>(out)[i] = static_cast<uint16_t>(words->w[at / 4] >> shift);
    }
}

template <class As> struct to_float {
    static constexpr bool block = false, staged = false;
    static constexpr uint32_t element_bytes = As::element_bytes;

    static __device__ __forceinline__ uint64_t scale_address(const weir_cuda_job &, uint32_t,
                                                             uint32_t, uint32_t)
    {
        return 0;
    }

    template <class From>
    static __device__ __forceinline__ void
    convert(const weir_cuda_launch &launch, const tile_place &place,
            const thread_chunks<false> &chunks, const typename From::held (&held)[WEIR_CUDA_CHUNKS],
            uint32_t, digest_sum *digest)
    {
        const bool digests = place.digests;
        bool refused = false;
        uint64_t key = chunks.key(place, element_bytes);
        const uint64_t key_step = chunks.key_step(place, element_bytes);
#pragma unroll
        for (int i = 0; i < static_cast<int>(WEIR_CUDA_CHUNKS); i++, key += key_step) {
            const bool there = chunks.has(i);
            const uint32_t n = chunks.n_of(i);
            float_words<As::n_words> words = As::template cast<From>(held[i]);
            char *out = reinterpret_cast<char *>(place.out + chunks.offset(i) * element_bytes);
            if (From::exact_rows)
                store_some_words<As>(out, &words, n);
            else
                store_words(out, words, there);
            if (!there)
                continue;
            refused |= As::refuses(words);
#pragma unroll
            for (uint32_t w = 0; w < element_bytes; w++) {
                if (digests && (!From::exact_rows || w * 8 < n * element_bytes))
                    digest->add(words.w[2 * w], words.w[2 * w + 1], key + w * WEIR_DIGEST_STEP);
            }
        }
        if (refused && !place.propagate)
            launch.results[place.number].nonfinite = 1;
        __syncthreads();
    }
};

#endif
