/* SPDX-License-Identifier: Apache-2.0 */
/* scatter_cuda.cu - rows to where they belong: a warp copies a run, eight pieces of each lane under
 * way at once, as wide as the run's alignment allows. */
#include "convert/cuda/kernel_start.cuh"
#include "convert/cuda/kernels_cuda.h"
#include "convert/cuda/scatter_job.h"
#include "convert/cuda/tile_place.cuh"

#define AHEAD 8

template <class Unit>
__device__ __forceinline__ void copy_run(const weir_cuda_scatter_job &job,
                                         const weir_cuda_scatter_run &run)
{
    const uint32_t lane = threadIdx.x % 32;
    const uint32_t per_row = run.n_bytes / sizeof(Unit), n = run.n_rows * per_row;
    const char *from = reinterpret_cast<const char *>(job.from) + run.row * job.from_pitch + run.at;
    char *to = reinterpret_cast<char *>(job.to) + run.row * job.to_pitch + run.at;
    for (uint32_t first = lane; first < n; first += 32 * AHEAD) {
        Unit held[AHEAD];
#pragma unroll
        for (uint32_t k = 0; k < AHEAD; k++) {
            const uint32_t i = first + 32 * k, r = i / per_row;
            if (i < n)
                held[k] = __ldcs(reinterpret_cast<const Unit *>(from + r * job.from_pitch) +
                                 (i - r * per_row));
        }
#pragma unroll
        for (uint32_t k = 0; k < AHEAD; k++) {
            const uint32_t i = first + 32 * k, r = i / per_row;
            if (i < n)
                __stcs(reinterpret_cast<Unit *>(to + r * job.to_pitch) + (i - r * per_row),
                       held[k]);
        }
    }
}

static __global__ void __launch_bounds__(WEIR_CUDA_THREADS)
    scatter(const __grid_constant__ weir_cuda_scatter_launch launch)
{
    const uint32_t index = blockIdx.x * WEIR_CUDA_SCATTER_RUNS + threadIdx.x / 32;
    await_previous();
    if (index >= launch.n_runs)
        return;
    const uint32_t number = find_job(launch.first_runs, launch.n_jobs, index);
    const weir_cuda_scatter_job &job = launch.jobs[number];
    const weir_cuda_scatter_run run =
        weir_cuda_scatter_run_of(&job, index - __ldg(&launch.first_runs[number]));
    if (job.unit_bytes == 16)
        copy_run<uint4>(job, run);
    else if (job.unit_bytes == 4)
        copy_run<uint32_t>(job, run);
    else
        copy_run<unsigned char>(job, run);
}

extern "C" int weir_cuda_scatter_rows(const weir_cuda_scatter_launch *launch, void *stream)
{
    uint32_t n_blocks =
        launch->n_runs / WEIR_CUDA_SCATTER_RUNS + (launch->n_runs % WEIR_CUDA_SCATTER_RUNS != 0);
    return start_kernel(scatter, n_blocks, WEIR_CUDA_THREADS, *launch, stream);
}
