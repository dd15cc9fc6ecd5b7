/* SPDX-License-Identifier: Apache-2.0 */
/* derived_cuda.cu - W_UV and W_UK_T from kv_b_proj on a GPU, by the scalar header's arithmetic. A
 * tile passes through shared memory, so that rows are read and written side by side even where one
 * becomes the other. */
#include "convert/cuda/kernel_start.cuh"
#include "convert/cuda/kernels_cuda.h"
#include "numeric/scalar.h"

#define TILE WEIR_CUDA_DERIVED_TILE
#define ROWS_AT_ONCE (WEIR_CUDA_THREADS / TILE)
#define SCALE_BLOCK 128u

template <int FROM>
static __device__ __forceinline__ uint16_t element(const weir_cuda_derived_job &job, uint64_t row,
                                                   uint64_t column)
{
    const uint64_t at = row * job.n_cols + column;
    const float *scale = reinterpret_cast<const float *>(job.scale);
    if (FROM == WEIR_CUDA_DERIVED_FROM_BF16)
        return __ldg(reinterpret_cast<const uint16_t *>(job.from) + at);
    if (FROM == WEIR_CUDA_DERIVED_FROM_F32)
        return weir_bf16_from_float(__ldg(reinterpret_cast<const float *>(job.from) + at));
    const uint64_t across = (job.n_cols + SCALE_BLOCK - 1) / SCALE_BLOCK;
    const uint64_t cell = FROM == WEIR_CUDA_DERIVED_FROM_ROWS
                              ? row
                              : row / SCALE_BLOCK * across + column / SCALE_BLOCK;
    float value = weir_float_from_e4m3(__ldg(reinterpret_cast<const uint8_t *>(job.from) + at));
    return weir_bf16_from_float(__fmul_rn(value, __ldg(&scale[cell])));
}

/* A block takes one tile of one head. */
template <int FROM>
static __global__ void __launch_bounds__(WEIR_CUDA_THREADS)
    derive(const __grid_constant__ weir_cuda_derived_job job)
{
    __shared__ uint16_t tile[TILE][TILE + 2]; /* two more: neighbours in a column differ in bank */
    const uint32_t per_head = job.tiles_down * job.tiles_across, head = blockIdx.x / per_head;
    const uint32_t in_head = blockIdx.x - head * per_head, down = in_head / job.tiles_across;
    const uint64_t row = static_cast<uint64_t>(down) * TILE;
    const uint64_t column = static_cast<uint64_t>(in_head - down * job.tiles_across) * TILE;
    const uint32_t n_rows = static_cast<uint32_t>(min(job.n_rows - row, uint64_t{ TILE }));
    const uint32_t n_cols = static_cast<uint32_t>(min(job.n_cols - column, uint64_t{ TILE }));
    const uint32_t x = threadIdx.x % TILE, y = threadIdx.x / TILE;
    const uint64_t first = head * job.rows_per_head + job.first_row + row;
    await_previous();
#pragma unroll 8
    for (uint32_t r = y; r < n_rows; r += ROWS_AT_ONCE) {
        if (x < n_cols)
            tile[r][x] = element<FROM>(job, first + r, column + x);
    }
    __syncthreads();
    uint16_t *out = reinterpret_cast<uint16_t *>(job.out) + head * job.n_rows * job.n_cols;
    const uint64_t pitch = job.transposes ? job.n_rows : job.n_cols;
    out += job.transposes ? column * pitch + row : row * pitch + column;
    const uint32_t out_rows = job.transposes ? n_cols : n_rows;
    const uint32_t out_cols = job.transposes ? n_rows : n_cols;
#pragma unroll 8
    for (uint32_t r = y; r < out_rows; r += ROWS_AT_ONCE) {
        if (x < out_cols)
            out[r * pitch + x] = job.transposes ? tile[x][r] : tile[r][x];
    }
}

static auto kernel_for(uint32_t from) -> void (*)(weir_cuda_derived_job)
{
    switch (from) {
    case WEIR_CUDA_DERIVED_FROM_BF16:
        return derive<WEIR_CUDA_DERIVED_FROM_BF16>;
    case WEIR_CUDA_DERIVED_FROM_F32:
        return derive<WEIR_CUDA_DERIVED_FROM_F32>;
    case WEIR_CUDA_DERIVED_FROM_BLOCKS:
        return derive<WEIR_CUDA_DERIVED_FROM_BLOCKS>;
    default:
        return derive<WEIR_CUDA_DERIVED_FROM_ROWS>;
    }
}

extern "C" int weir_cuda_derive(const weir_cuda_derived_job *job, void *stream)
{
    return start_kernel(kernel_for(job->dtype), job->n_tiles, WEIR_CUDA_THREADS, *job, stream);
}
