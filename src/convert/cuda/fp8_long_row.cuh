/* SPDX-License-Identifier: Apache-2.0 */
/* fp8_long_row.cuh - a scale over a row that no tile holds: the block reads it once for its largest
 * magnitude and once more, mostly from the second-level cache, for its codes. */
#ifndef WEIR_CONVERT_FP8_LONG_ROW_CUH
#define WEIR_CONVERT_FP8_LONG_ROW_CUH

#include "convert/cuda/fp8_tile.cuh"

#define TURN (WEIR_CUDA_THREADS * WEIR_CUDA_CHUNK) /* elements a block handles side by side */

template <class From>
__device__ __forceinline__ typename From::held
long_row_chunk(const weir_cuda_launch &launch, const weir_cuda_job &job, const tile_rows &rows,
               uint32_t column)
{
    return From::hold(
        chunk_loader<From>::load(launch, job, rows, 0, column, min(8u, job.n_cols - column)));
}

template <class From>
__global__ void __launch_bounds__(WEIR_CUDA_THREADS, From::blocks_per_sm)
    fp8_long_row(const __grid_constant__ weir_cuda_launch launch)
{
    __shared__ tile_rows rows;
    const uint32_t index = find_job(launch, blockIdx.x);
    const fp8_place<channel_layout> place(launch.jobs[index], launch.first_tiles[index]);
    const weir_cuda_job &job = place.job;
    find_rows(launch, job, place.tile, &rows);
    __syncthreads();

    uint32_t peak = 0;
#pragma unroll 4
    for (uint32_t column = threadIdx.x * 8; column < job.n_cols; column += TURN)
        peak = From::peak(peak, long_row_chunk<From>(launch, job, rows, column));
    const fp8_scale scale = scale_of(place.layout.shared_peak(From::magnitude(peak)));
    store_scale(launch, place, scale);

    digest_sum digest;
    digest.clear();
    uint64_t key = digest_key(place.out_row * job.words_per_row + threadIdx.x);
    uint8_t *out = reinterpret_cast<uint8_t *>(job.out) + place.out_row * job.n_cols;
#pragma unroll 4
    for (uint32_t column = threadIdx.x * 8; column < job.n_cols;
         column += TURN, key += WEIR_CUDA_THREADS * WEIR_DIGEST_STEP) {
        typename From::held chunk = long_row_chunk<From>(launch, job, rows, column);
        uint2 codes = scale.finite ? finite_codes<From>(chunk, scale)
                                   : recipe_codes<From>(chunk, scale.scale);
        codes = store_codes<From>(out + column, codes, min(8u, job.n_cols - column));
        digest.add(codes.x, codes.y, key);
    }
    if (job.digests)
        block_add(digest, &launch.results[job.number].product, &launch.results[job.number].sum);
}

#endif
