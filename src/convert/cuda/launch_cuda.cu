/* SPDX-License-Identifier: Apache-2.0 */
/* launch_cuda.cu - starts the conversion kernels, and two small ones: digests of the scales, which
 * need two neighbours at once, and the search for a refused weight after a conversion has failed.
 */
#include "convert/cuda/digest_sum.cuh"
#include "convert/cuda/kernel_start.cuh"
#include "convert/cuda/kernels_cuda.h"

#define SEARCH_BLOCKS 1024
#define SCALE_BLOCKS 32

static weir_cuda_kernel kernel_for(const weir_cuda_launch *launch)
{
    weir_cuda_from from = static_cast<weir_cuda_from>(launch->from);
    switch (launch->kind) {
    case WEIR_CUDA_FP8_BLOCK:
        return weir_fp8_128x128_cuda(from);
    case WEIR_CUDA_FP8_CHANNEL:
        return weir_fp8_channel_cuda(from);
    case WEIR_CUDA_FP8_LONG_ROW:
        return weir_fp8_long_row_cuda(from);
    case WEIR_CUDA_TO_BF16:
        return weir_bf16_cast_cuda(from);
    case WEIR_CUDA_NEG_EXP:
        return weir_neg_exp_cuda(from);
    default:
        return weir_fp32_cast_cuda(from);
    }
}

extern "C" int weir_cuda_convert(const weir_cuda_launch *launch, void *stream)
{
    int device = 0, n_multiprocessors = 0;
    cudaError_t error = cudaGetDevice(&device);
    if (error == cudaSuccess)
        error = cudaDeviceGetAttribute(&n_multiprocessors, cudaDevAttrMultiProcessorCount, device);
    if (error != cudaSuccess)
        return taken(error);
    weir_cuda_kernel kernel = kernel_for(launch);
    uint32_t n_blocks = launch->n_tiles, n_threads = WEIR_CUDA_THREADS;
    if (kernel.blocks_per_sm != 0) {
        n_blocks = min(n_blocks, kernel.blocks_per_sm * n_multiprocessors);
        n_threads = WEIR_CUDA_BLOCK_THREADS;
    }
    return start_kernel(kernel.start, n_blocks, n_threads, *launch, stream, kernel.shared_bytes);
}

/* ---- the end of a batch ----------------------------------------------------------------------*/

/* A block's share of the digest of a job's scales. All threads take part. */
static __device__ void digest_scales(const weir_cuda_job &job, weir_cuda_result *result)
{
    const uint32_t *scales = reinterpret_cast<const uint32_t *>(job.scales);
    const uint32_t words_per_row = job.scale_cols / 2 + job.scale_cols % 2;
    const uint64_t n_words = job.scale_rows * words_per_row;
    digest_sum digest;
    digest.clear();
#pragma unroll 4
    for (uint64_t i = blockIdx.y * WEIR_CUDA_THREADS + threadIdx.x; i < n_words;
         i += SCALE_BLOCKS * WEIR_CUDA_THREADS) {
        uint64_t row = i / words_per_row;
        uint32_t column = static_cast<uint32_t>(i - row * words_per_row) * 2;
        const uint32_t *at = scales + row * job.scale_cols + column;
        digest.add(at[0], column + 1 < job.scale_cols ? at[1] : 0,
                   digest_key(job.first_scale_word + i));
    }
    block_add(digest, &result->scale_product, &result->scale_sum);
}

/* SCALE_BLOCKS blocks for each job with scales to digest, one for others; the last of them to come
 * hands the result over. */
static __global__ void __launch_bounds__(WEIR_CUDA_THREADS)
    finish_batch(const __grid_constant__ weir_cuda_finish finish)
{
    const weir_cuda_job &job = finish.jobs[blockIdx.x];
    weir_cuda_result *result = &finish.results[job.number];
    const bool has_scales = job.digests && job.scale_rows != 0;
    const uint32_t n_blocks = has_scales ? SCALE_BLOCKS : 1;
    await_previous(); /* until here only the image was read, which no kernel writes */
    if (blockIdx.y >= n_blocks)
        return;
    if (blockIdx.x == 0 && blockIdx.y == 0 && threadIdx.x < finish.n_counters)
        finish.next_tiles[threadIdx.x] = 0;
    if (has_scales)
        digest_scales(job, result);
    __threadfence();
    __syncthreads();
    if (threadIdx.x != 0 || (n_blocks > 1 && atomicAdd(&result->n_done, 1) + 1 != n_blocks))
        return;
    __threadfence();
    const unsigned long long *from = reinterpret_cast<const unsigned long long *>(result);
    unsigned long long *to = reinterpret_cast<unsigned long long *>(&finish.out[job.number]);
    for (uint32_t i = 0; i < sizeof(*result) / sizeof(*from); i++)
        to[i] = __ldcg(&from[i]); /* other blocks added to it: past this one's cache */
    *result = {};
}

extern "C" int weir_cuda_finish_batch(const weir_cuda_finish *finish, void *stream)
{
    dim3 grid(finish->n_jobs, SCALE_BLOCKS);
    return start_kernel(finish_batch, grid, WEIR_CUDA_THREADS, *finish, stream);
}

/* ---- the search ------------------------------------------------------------------------------*/

template <class Word>
static __global__ void find_refused(const __grid_constant__ weir_cuda_search search)
{
    const uint32_t magnitude = sizeof(Word) == 2 ? 0x7FFFu : 0x7FFFFFFFu;
    const char *source = static_cast<const char *>(search.source);
    await_previous();
    for (uint64_t i = static_cast<uint64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
         i < search.n_elements; i += static_cast<uint64_t>(gridDim.x) * blockDim.x) {
        const uint64_t row = i / search.n_cols, column = i - row * search.n_cols;
        const Word *at = reinterpret_cast<const Word *>(source + row * search.row_step) + column;
        if ((*at & magnitude) >= search.least_refused) {
            atomicMin(reinterpret_cast<unsigned long long *>(search.first),
                      static_cast<unsigned long long>(i));
            return;
        }
    }
}

extern "C" int weir_cuda_find_refused(const weir_cuda_search *search, void *stream)
{
    return start_kernel(search->element_bytes == 2 ? find_refused<uint16_t>
                                                   : find_refused<uint32_t>,
                        SEARCH_BLOCKS, WEIR_CUDA_THREADS, *search, stream);
}
