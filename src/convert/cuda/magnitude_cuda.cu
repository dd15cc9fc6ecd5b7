/* SPDX-License-Identifier: Apache-2.0 */
/* magnitude_cuda.cu - weir_magnitude_raise() on a GPU: a warp takes the largest of a run and raises
 * the magnitude of its block by it. All are integers, so the order does not matter. */
#include "convert/cuda/digest_sum.cuh"
#include "convert/cuda/kernel_start.cuh"
#include "convert/cuda/kernels_cuda.h"
#include "convert/cuda/magnitude_job.h"
#include "convert/cuda/tile_place.cuh"

/* Of 16 bytes, two halves or one word. */
template <class Word> __device__ __forceinline__ uint32_t larger_of(uint32_t peak, uint4 v)
{
    if (sizeof(Word) == 4)
        return max(max(max(peak, v.x & 0x7FFFFFFFu), max(v.y & 0x7FFFFFFFu, v.z & 0x7FFFFFFFu)),
                   v.w & 0x7FFFFFFFu);
    peak = __vmaxu2(__vmaxu2(peak, v.x & 0x7FFF7FFFu), v.y & 0x7FFF7FFFu);
    return __vmaxu2(__vmaxu2(peak, v.z & 0x7FFF7FFFu), v.w & 0x7FFF7FFFu);
}

/* The largest bits without sign that this lane meets. */
template <class Word>
__device__ __forceinline__ uint32_t peak_of(const weir_cuda_magnitude_job &job,
                                            const weir_cuda_run &run)
{
    constexpr uint32_t per_vector = 16 / sizeof(Word),
                       magnitude = sizeof(Word) == 2 ? 0x7FFF : ~0u >> 1;
    const uint32_t lane = threadIdx.x % 32;
    const char *first = reinterpret_cast<const char *>(job.data) + run.row * job.pitch_bytes +
                        run.col * sizeof(Word);
    const bool aligned = (reinterpret_cast<uint64_t>(first) | job.pitch_bytes) % 16 == 0;
    const uint32_t n_vectors = aligned ? run.n_cols / per_vector : 0;
    const uint32_t whole = n_vectors * per_vector, n_rest = run.n_cols - whole;
    uint32_t peak = 0;
#pragma unroll 4
    for (uint32_t i = lane; i < run.n_rows * n_vectors; i += 32) {
        const uint32_t r = i / n_vectors;
        peak = larger_of<Word>(peak,
                               __ldg(reinterpret_cast<const uint4 *>(first + r * job.pitch_bytes) +
                                     (i - r * n_vectors)));
    }
    if (sizeof(Word) == 2)
        peak = max(peak & 0xFFFFu, peak >> 16);
#pragma unroll 4
    for (uint32_t i = lane; i < run.n_rows * n_rest; i += 32) {
        const uint32_t r = i / n_rest, c = whole + (i - r * n_rest);
        const Word *row = reinterpret_cast<const Word *>(first + r * job.pitch_bytes);
        peak = max(peak, static_cast<uint32_t>(__ldg(&row[c])) & magnitude);
    }
    return peak;
}

static __global__ void __launch_bounds__(WEIR_CUDA_THREADS)
    measure(const __grid_constant__ weir_cuda_magnitude_launch launch)
{
    const uint32_t index = blockIdx.x * WEIR_CUDA_RUNS + threadIdx.x / 32;
    await_previous();
    if (index >= launch.n_runs)
        return;
    const uint32_t number = find_job(launch.first_runs, launch.n_jobs, index);
    const weir_cuda_magnitude_job &job = launch.jobs[number];
    const weir_cuda_run run = weir_cuda_run_of(&job, index - __ldg(&launch.first_runs[number]));
    uint32_t peak =
        job.dtype == WEIR_F32 ? peak_of<uint32_t>(job, run) : peak_of<uint16_t>(job, run);
    peak = __reduce_max_sync(FULL_WARP, peak);
    if (job.dtype == WEIR_BF16)
        peak <<= 16;
    else if (job.dtype == WEIR_F16)
        peak = weir_float_bits(weir_float_from_fp16(static_cast<uint16_t>(peak)));
    if (threadIdx.x % 32 == 0 && peak != 0)
        atomicMax(reinterpret_cast<uint32_t *>(job.magnitudes) + run.block, peak);
}

extern "C" int weir_cuda_measure_rows(const weir_cuda_magnitude_launch *launch, void *stream)
{
    uint32_t n_blocks = launch->n_runs / WEIR_CUDA_RUNS + (launch->n_runs % WEIR_CUDA_RUNS != 0);
    return start_kernel(measure, n_blocks, WEIR_CUDA_THREADS, *launch, stream);
}
