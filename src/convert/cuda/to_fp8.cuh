/* SPDX-License-Identifier: Apache-2.0 */
/* to_fp8.cuh - a held tile as e4m3 with its scales: one for a block, or one for every row. */
#ifndef WEIR_CONVERT_TO_FP8_CUH
#define WEIR_CONVERT_TO_FP8_CUH

#include "convert/cuda/fp8_chunk.cuh"
#include "convert/cuda/tile_walk.cuh"

/* The largest magnitude among the threads that share a scale. Meets the whole block once; two sets
 * of words take turns, so that a late reader of one tile meets no early writer of the next. */
template <bool BLOCK>
__device__ __forceinline__ uint32_t shared_peak(uint32_t mine, uint32_t log_lanes, uint32_t turn)
{
    __shared__ uint32_t peaks[2][WEIR_CUDA_THREADS / 32];
    if (!BLOCK && log_lanes < 5) {
        for (uint32_t i = 0; i < log_lanes; i++)
            mine = max(mine, __shfl_xor_sync(FULL_WARP, mine, 1u << i));
        __syncthreads();
        return mine;
    }
    mine = __reduce_max_sync(FULL_WARP, mine);
    if (threadIdx.x % 32 == 0)
        peaks[turn % 2][threadIdx.x / 32] = mine;
    __syncthreads();
    const uint32_t n = BLOCK ? WEIR_CUDA_THREADS / 32 : 1u << (log_lanes - 5);
    const uint32_t first = BLOCK ? 0 : (threadIdx.x >> log_lanes) * n;
    for (uint32_t i = 0; i < n; i++)
        mine = max(mine, peaks[turn % 2][first + i]);
    return mine;
}

/* The larger of a scale's own magnitude and of what others hold under it. */
__device__ __forceinline__ uint32_t joined_peak(const tile_place &place, uint32_t number,
                                                uint32_t mine)
{
    const uint32_t *others = reinterpret_cast<const uint32_t *>(place.magnitudes);
    return others != nullptr ? max(mine, __ldg(&others[number])) : mine;
}

template <class From>
__device__ __forceinline__ uint2 store_codes(uint64_t address, uint2 codes, uint32_t n)
{
    uint8_t *out = reinterpret_cast<uint8_t *>(address);
    if (From::exact_rows)
        return store_some(out, codes, n);
    __stcs(reinterpret_cast<uint2 *>(out),
           codes); /* nobody reads it here: first out of the cache */
    return codes;
}

/* A tile with a scale of Inf or NaN is read again and goes through the recipe, off the way of all
 * others. */
template <class From, bool BLOCK>
__device__ __noinline__ digest_sum nonfinite_codes(const weir_cuda_launch &launch,
                                                   const tile_place &place, float scale)
{
    const thread_chunks<BLOCK> chunks(place);
    digest_sum digest = { 0, 0 };
    uint64_t key = chunks.key(place, 1);
#pragma unroll 1
    for (int i = 0; i < static_cast<int>(WEIR_CUDA_CHUNKS); i++, key += chunks.key_step(place, 1)) {
        if (!chunks.has(i))
            continue;
        uint32_t n = chunks.n_of(i);
        typename From::held held = From::hold(
            chunk_loader<From>::load(launch, place, chunks.row_of(i), chunks.column_of(i), n));
        uint2 codes =
            store_codes<From>(place.out + chunks.offset(i), recipe_codes<From>(held, scale), n);
        digest.add(codes.x, codes.y, key);
    }
    return digest;
}

template <bool BLOCK> struct to_fp8 {
    static constexpr bool block = BLOCK, staged = true;
    static constexpr uint32_t element_bytes = 1;

    static __device__ __forceinline__ uint64_t scale_address(const weir_cuda_job &job,
                                                             uint32_t matrix, uint32_t row,
                                                             uint32_t column)
    {
        uint64_t index = static_cast<uint64_t>(matrix) * job.n_rows + row;
        if (BLOCK)
            index = (static_cast<uint64_t>(matrix) * job.tiles_down + row / WEIR_CUDA_BLOCK) *
                        job.tiles_across +
                    column / WEIR_CUDA_BLOCK;
        return job.scales + index * sizeof(float);
    }

    template <class From>
    static __device__ __forceinline__ void
    convert(const weir_cuda_launch &launch, const tile_place &place,
            const thread_chunks<BLOCK> &chunks, const typename From::held (&held)[WEIR_CUDA_CHUNKS],
            uint32_t turn, digest_sum *digest)
    {
        uint32_t peak = 0;
#pragma unroll
        for (int i = 0; i < static_cast<int>(WEIR_CUDA_CHUNKS); i++)
            peak = From::peak(peak, held[i]);
        peak = shared_peak<BLOCK>(From::magnitude(peak), place.log_lanes, turn);
        if (BLOCK || chunks.row < place.n_rows)
            peak = joined_peak(place, BLOCK ? 0 : chunks.row, peak);
        const fp8_scale scale = scale_of(peak);
        if (BLOCK ? threadIdx.x == 0 : chunks.column == 0 && chunks.row < place.n_rows) {
            reinterpret_cast<float *>(place.scale)[BLOCK ? 0 : chunks.row] = scale.scale;
            if (!scale.finite && !place.propagate)
                launch.results[place.number].nonfinite = 1;
        }
        if (!scale.finite && place.propagate) {
            digest_sum part = nonfinite_codes<From, BLOCK>(launch, place, scale.scale);
            digest->product += part.product;
            digest->sum += part.sum;
            return;
        }
        const bool digests = place.digests;
        uint64_t key = chunks.key(place, 1), key_step = chunks.key_step(place, 1);
#pragma unroll
        for (int i = 0; i < static_cast<int>(WEIR_CUDA_CHUNKS); i++, key += key_step) {
            uint2 codes = finite_codes<From>(held[i], scale);
            if (!chunks.has(i))
                continue;
            codes = store_codes<From>(place.out + chunks.offset(i), codes, chunks.n_of(i));
            if (digests)
                digest->add(codes.x, codes.y, key);
        }
    }
};

/* ---- long rows -------------------------------------------------------------------------------*/

/* A scale over a row that no tile holds: the block reads it once for its largest magnitude and once
 * more, mostly from the second-level cache, for its codes. A block per row. */
template <class From>
__global__ void __launch_bounds__(WEIR_CUDA_THREADS, From::blocks_per_sm)
    convert_long_rows(const __grid_constant__ weir_cuda_launch launch)
{
    const uint32_t turn = WEIR_CUDA_THREADS * WEIR_CUDA_CHUNK; /* elements side by side */
    __shared__ tile_place place;
    await_previous();
    if (threadIdx.x < 32)
        find_place<From, to_fp8<false>>(launch, blockIdx.x, &place, From::prefetches);
    __syncthreads();

    uint32_t peak = 0;
#pragma unroll 4
    for (uint32_t column = threadIdx.x * 8; column < place.n_cols; column += turn)
        peak = From::peak(peak, From::hold(chunk_loader<From>::load(
                                    launch, place, 0, column, min(8u, place.n_cols - column))));
    const fp8_scale scale =
        scale_of(joined_peak(place, 0, shared_peak<true>(From::magnitude(peak), 0, 0)));
    if (threadIdx.x == 0) {
        *reinterpret_cast<float *>(place.scale) = scale.scale;
        if (!scale.finite && !place.propagate)
            launch.results[place.number].nonfinite = 1;
    }

    job_digest digest = { { 0, 0 }, place.number, place.digests };
    uint64_t key = digest_key(place.first_word + threadIdx.x);
#pragma unroll 4
    for (uint32_t column = threadIdx.x * 8; column < place.n_cols;
         column += turn, key += WEIR_CUDA_THREADS * WEIR_DIGEST_STEP) {
        uint32_t n = min(8u, place.n_cols - column);
        typename From::held held =
            From::hold(chunk_loader<From>::load(launch, place, 0, column, n));
        uint2 codes =
            scale.finite ? finite_codes<From>(held, scale) : recipe_codes<From>(held, scale.scale);
        codes = store_codes<From>(place.out + column, codes, n);
        digest.sums.add(codes.x, codes.y, key);
    }
    digest.flush(launch);
}

#endif
