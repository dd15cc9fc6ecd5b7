/* SPDX-License-Identifier: Apache-2.0 */
/* fp8_tile.cuh - the FP8 kernels: a tile is read once, held in registers, and written once.
 *
 * 256 threads hold 64 elements each. For fp8_128x128 the tile is one block: 16 threads per row,
 * chunk i of a thread 16 rows below the one before. For per-channel scales 2^log_lanes threads
 * share a row, chunk i one step to the right, and several rows make a tile.
 */
#ifndef WEIR_CONVERT_FP8_TILE_CUH
#define WEIR_CONVERT_FP8_TILE_CUH

#include "convert/cuda/fp8_chunk.cuh"

/* The place of a thread's chunks in its tile, and who shares its scale. */
struct block_layout {
    uint32_t row, column;
    __device__ __forceinline__ explicit block_layout(const weir_cuda_job &)
        : row(threadIdx.x / 16), column(threadIdx.x % 16 * 8)
    {
    }
    __device__ __forceinline__ uint32_t row_of(int i) const
    {
        return row + 16 * i;
    }
    __device__ __forceinline__ uint32_t column_of(int) const
    {
        return column;
    }
    __device__ __forceinline__ uint64_t word_step(uint64_t words_per_row) const
    {
        return 16 * words_per_row;
    }
    __device__ __forceinline__ bool leads() const
    {
        return threadIdx.x == 0;
    }
    __device__ __forceinline__ uint64_t scale_index(const weir_cuda_job &job,
                                                    const tile_place &p) const
    {
        uint64_t down = static_cast<uint64_t>(p.matrix) * job.tiles_down + p.row / WEIR_CUDA_BLOCK;
        return down * job.tiles_across + p.column / WEIR_CUDA_BLOCK;
    }
    __device__ __forceinline__ uint32_t shared_peak(uint32_t mine) const
    {
        __shared__ uint32_t peaks[WEIR_CUDA_THREADS / 32];
        uint32_t warp = __reduce_max_sync(FULL_WARP, mine);
        if (threadIdx.x % 32 == 0)
            peaks[threadIdx.x / 32] = warp;
        __syncthreads();
        for (uint32_t i = 0; i < WEIR_CUDA_THREADS / 32; i++)
            warp = max(warp, peaks[i]);
        return warp;
    }
};

struct channel_layout {
    uint32_t log_lanes, row, lane;
    __device__ __forceinline__ explicit channel_layout(const weir_cuda_job &job)
        : log_lanes(job.log_lanes), row(threadIdx.x >> log_lanes),
          lane(threadIdx.x & ((1u << log_lanes) - 1))
    {
    }
    __device__ __forceinline__ uint32_t row_of(int) const
    {
        return row;
    }
    __device__ __forceinline__ uint32_t column_of(int i) const
    {
        return (lane + (static_cast<uint32_t>(i) << log_lanes)) * 8;
    }
    __device__ __forceinline__ uint64_t word_step(uint64_t) const
    {
        return 1ull << log_lanes;
    }
    __device__ __forceinline__ bool leads() const
    {
        return lane == 0;
    }
    __device__ __forceinline__ uint64_t scale_index(const weir_cuda_job &job,
                                                    const tile_place &p) const
    {
        return static_cast<uint64_t>(p.matrix) * job.n_rows + p.row + row;
    }
    __device__ __forceinline__ uint32_t shared_peak(uint32_t mine) const
    {
        __shared__ uint32_t peaks[WEIR_CUDA_THREADS / 32];
        for (uint32_t i = 0; i < min(log_lanes, 5u); i++)
            mine = max(mine, __shfl_xor_sync(FULL_WARP, mine, 1u << i));
        if (log_lanes <= 5) /* the same for the whole block */
            return mine;
        if (threadIdx.x % 32 == 0)
            peaks[threadIdx.x / 32] = mine;
        __syncthreads();
        for (uint32_t i = 0; i < 1u << (log_lanes - 5); i++)
            mine = max(mine, peaks[(row << (log_lanes - 5)) + i]);
        return mine;
    }
};

/* One tile of one launch, as its block sees it. */
template <class Layout> struct fp8_place {
    const weir_cuda_job &job;
    tile_place tile;
    Layout layout;
    uint64_t out_row; /* of the tile's first, in all of the output */

    __device__ __forceinline__ fp8_place(const weir_cuda_job &a_job, uint32_t first_tile)
        : job(a_job), tile(place_of(a_job, blockIdx.x - first_tile)), layout(a_job),
          out_row(static_cast<uint64_t>(tile.matrix) * job.n_rows + tile.row)
    {
    }
    __device__ __forceinline__ bool has(int i) const
    {
        return layout.row_of(i) < tile.n_rows && layout.column_of(i) < tile.n_cols;
    }
    __device__ __forceinline__ uint32_t n_of(int i) const
    {
        return min(8u, tile.n_cols - layout.column_of(i));
    }
    __device__ __forceinline__ uint8_t *out(int i) const
    {
        return reinterpret_cast<uint8_t *>(job.out) + (out_row + layout.row_of(i)) * job.n_cols +
               tile.column + layout.column_of(i);
    }
    __device__ __forceinline__ uint64_t first_key() const
    {
        return digest_key((out_row + layout.row_of(0)) * job.words_per_row +
                          (tile.column + layout.column_of(0)) / 8);
    }
    __device__ __forceinline__ uint64_t key_step() const
    {
        return layout.word_step(job.words_per_row) * WEIR_DIGEST_STEP;
    }
};

template <class From, class Layout>
__device__ __forceinline__ typename From::raw load_chunk(const weir_cuda_launch &launch,
                                                         const tile_rows &rows,
                                                         const fp8_place<Layout> &place, int i)
{
    return chunk_loader<From>::load(launch, place.job, rows, place.layout.row_of(i),
                                    place.tile.column + place.layout.column_of(i), place.n_of(i));
}

template <class From>
__device__ __forceinline__ uint2 store_codes(uint8_t *out, uint2 codes, uint32_t n)
{
    if (From::exact_rows)
        return store_some(out, codes, n);
    *reinterpret_cast<uint2 *>(out) = codes;
    return codes;
}

/* A tile with a scale of Inf or NaN, read again: off the way of all others. */
template <class From, class Layout>
__device__ __noinline__ digest_sum nonfinite_tile(const weir_cuda_launch &launch,
                                                  const tile_rows &rows,
                                                  const fp8_place<Layout> &place, float scale)
{
    digest_sum digest;
    digest.clear();
    uint64_t key = place.first_key();
#pragma unroll 1
    for (int i = 0; i < static_cast<int>(WEIR_CUDA_CHUNKS); i++, key += place.key_step()) {
        if (!place.has(i))
            continue;
        uint2 codes =
            recipe_codes<From>(From::hold(load_chunk<From>(launch, rows, place, i)), scale);
        codes = store_codes<From>(place.out(i), codes, place.n_of(i));
        digest.add(codes.x, codes.y, key);
    }
    return digest;
}

template <class Layout>
__device__ __forceinline__ void store_scale(const weir_cuda_launch &launch,
                                            const fp8_place<Layout> &place, const fp8_scale &scale)
{
    if (!place.layout.leads() || place.layout.row_of(0) >= place.tile.n_rows)
        return;
    float *scales = reinterpret_cast<float *>(place.job.scales);
    scales[place.layout.scale_index(place.job, place.tile)] = scale.scale;
    if (!scale.finite && !place.job.propagate)
        launch.results[place.job.number].nonfinite = 1;
}

template <class From, class Layout>
__global__ void __launch_bounds__(WEIR_CUDA_THREADS, From::blocks_per_sm)
    fp8_tile(const __grid_constant__ weir_cuda_launch launch)
{
    __shared__ tile_rows rows;
    const uint32_t index = find_job(launch, blockIdx.x);
    const fp8_place<Layout> place(launch.jobs[index], launch.first_tiles[index]);
    find_rows(launch, place.job, place.tile, &rows);
    __syncthreads();

    typename From::raw raw[WEIR_CUDA_CHUNKS];
    typename From::held held[WEIR_CUDA_CHUNKS];
#pragma unroll
    for (int i = 0; i < static_cast<int>(WEIR_CUDA_CHUNKS); i++) {
        if (place.has(i))
            raw[i] = load_chunk<From>(launch, rows, place, i);
    }
    uint32_t peak = 0;
#pragma unroll
    for (int i = 0; i < static_cast<int>(WEIR_CUDA_CHUNKS); i++) {
        held[i] = place.has(i) ? From::hold(raw[i]) : From::nothing();
        peak = From::peak(peak, held[i]);
    }
    const fp8_scale scale = scale_of(place.layout.shared_peak(From::magnitude(peak)));
    store_scale(launch, place, scale);

    digest_sum digest;
    if (!scale.finite && place.job.propagate) {
        digest = nonfinite_tile<From>(launch, rows, place, scale.scale);
    } else {
        digest.clear();
        uint64_t key = place.first_key();
        const uint64_t key_step = place.key_step();
#pragma unroll
        for (int i = 0; i < static_cast<int>(WEIR_CUDA_CHUNKS); i++, key += key_step) {
            if (!place.has(i))
                continue;
            uint2 codes = finite_codes<From>(held[i], scale);
            codes = store_codes<From>(place.out(i), codes, place.n_of(i));
            digest.add(codes.x, codes.y, key);
        }
    }
    if (place.job.digests)
        block_add(digest, &launch.results[place.job.number].product,
                  &launch.results[place.job.number].sum);
}

#endif
