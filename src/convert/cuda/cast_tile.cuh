/* SPDX-License-Identifier: Apache-2.0 */
/* cast_tile.cuh - the casts: the same walk as the per-channel kernel, without a scale.
 *
 * What is refused is found on the way: for bf16 what is not finite after rounding.
 */
#ifndef WEIR_CONVERT_CAST_TILE_CUH
#define WEIR_CONVERT_CAST_TILE_CUH

#include "convert/cuda/digest_sum.cuh"

/* A chunk of output as 32-bit words: 4 of bf16, 8 of fp32. */
template <int N> struct cast_words {
    uint32_t w[N];
};

struct to_bf16 {
    static constexpr int n_words = 4, element_bytes = 2;
    template <class From>
    static __device__ __forceinline__ cast_words<4> cast(const typename From::held &chunk)
    {
        float v[8];
        cast_words<4> out;
        From::values(chunk, v);
#pragma unroll
        for (int i = 0; i < 4; i++)
            out.w[i] = from_master::pair(v[2 * i], v[2 * i + 1]);
        return out;
    }
    static __device__ __forceinline__ bool refuses(const cast_words<4> &words)
    {
        uint32_t peak = 0;
#pragma unroll
        for (int i = 0; i < 4; i++)
            peak = peak_bf16(peak, words.w[i]);
        return from_bf16::magnitude(peak) >= WEIR_F32_INF_BITS;
    }
};

struct to_f32 {
    static constexpr int n_words = 8, element_bytes = 4;
    template <class From>
    static __device__ __forceinline__ cast_words<8> cast(const typename From::held &chunk)
    {
        float v[8];
        cast_words<8> out;
        From::exact_values(chunk, v);
#pragma unroll
        for (int i = 0; i < 8; i++)
            out.w[i] = __float_as_uint(v[i]);
        return out;
    }
    static __device__ __forceinline__ bool refuses(const cast_words<8> &words)
    {
        uint32_t peak = 0;
#pragma unroll
        for (int i = 0; i < 8; i++)
            peak = max(peak, words.w[i] & 0x7FFFFFFFu);
        return peak >= WEIR_F32_INF_BITS;
    }
};

template <int N> __device__ __forceinline__ void store_words(void *out, const cast_words<N> &words)
{
#pragma unroll
    for (int i = 0; i < N / 4; i++)
        static_cast<uint4 *>(out)[i] =
            make_uint4(words.w[4 * i], words.w[4 * i + 1], words.w[4 * i + 2], words.w[4 * i + 3]);
}

/* The first n elements; what lies behind them in the words becomes zero. */
template <class To>
__device__ __noinline__ void store_some_words(void *out, cast_words<To::n_words> *words, uint32_t n)
{
    for (uint32_t i = 0; i < 8; i++) {
        if (To::element_bytes == 4) {
            if (i < n)
                static_cast<uint32_t *>(out)[i] = words->w[i % To::n_words];
        } else {
            uint32_t shift = i % 2 * 16;
            if (i < n)
                static_cast<uint16_t *>(out)[i] = static_cast<uint16_t>(words->w[i / 2] >> shift);
            else
                words->w[i / 2] &= ~(0xFFFFu << shift);
        }
    }
    for (uint32_t i = n; To::element_bytes == 4 && i < 8; i++)
        words->w[i % To::n_words] = 0;
}

template <class From, class To>
__global__ void __launch_bounds__(WEIR_CUDA_THREADS, From::blocks_per_sm)
    cast_tile(const __grid_constant__ weir_cuda_launch launch)
{
    __shared__ tile_rows rows;
    const uint32_t index = find_job(launch, blockIdx.x);
    const weir_cuda_job &job = launch.jobs[index];
    const tile_place place = place_of(job, blockIdx.x - launch.first_tiles[index]);
    const uint32_t row = threadIdx.x >> job.log_lanes;
    const uint32_t lane = threadIdx.x & ((1u << job.log_lanes) - 1);
    find_rows(launch, job, place, &rows);
    __syncthreads();

    typename From::raw raw[WEIR_CUDA_CHUNKS];
#pragma unroll
    for (int i = 0; i < static_cast<int>(WEIR_CUDA_CHUNKS); i++) {
        uint32_t column = (lane + (static_cast<uint32_t>(i) << job.log_lanes)) * 8;
        if (row < place.n_rows && column < place.n_cols)
            raw[i] = chunk_loader<From>::load(launch, job, rows, row, place.column + column,
                                              min(8u, place.n_cols - column));
    }

    constexpr uint32_t words_per_chunk = To::element_bytes; /* 64-bit words of eight elements */
    const uint64_t out_row = static_cast<uint64_t>(place.matrix) * job.n_rows + place.row + row;
    digest_sum digest;
    digest.clear();
    bool refused = false;
#pragma unroll
    for (int i = 0; i < static_cast<int>(WEIR_CUDA_CHUNKS); i++) {
        uint32_t column = (lane + (static_cast<uint32_t>(i) << job.log_lanes)) * 8;
        if (row >= place.n_rows || column >= place.n_cols)
            continue;
        cast_words<To::n_words> words = To::template cast<From>(From::hold(raw[i]));
        uint32_t n = min(8u, place.n_cols - column);
        uint8_t *out = reinterpret_cast<uint8_t *>(job.out) +
                       (out_row * job.n_cols + place.column + column) * To::element_bytes;
        if (From::exact_rows)
            store_some_words<To>(out, &words, n);
        else
            store_words<To::n_words>(out, words);
        refused |= To::refuses(words);
        uint64_t key =
            digest_key(out_row * job.words_per_row + (place.column + column) / 8 * words_per_chunk);
#pragma unroll
        for (uint32_t w = 0; w < words_per_chunk; w++, key += WEIR_DIGEST_STEP) {
            if (!From::exact_rows || w * 8 < n * To::element_bytes)
                digest.add(words.w[2 * w], words.w[2 * w + 1], key);
        }
    }
    if (refused && !job.propagate)
        launch.results[job.number].nonfinite = 1;
    if (job.digests)
        block_add(digest, &launch.results[job.number].product, &launch.results[job.number].sum);
}

#endif
