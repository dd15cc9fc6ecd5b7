/* SPDX-License-Identifier: Apache-2.0 */
/* kernels_cuda.h - the kernels of each kind, for the table of libweir_cuda.so; only its own sources
 * include this. */
#ifndef WEIR_CONVERT_KERNELS_CUDA_H
#define WEIR_CONVERT_KERNELS_CUDA_H

#include "convert/cuda/cuda_job.h"
#include "convert/cuda/derived_job.h"
#include "convert/cuda/digest_job.h"
#include "convert/cuda/magnitude_job.h"
#include "convert/cuda/scatter_job.h"

#ifdef __cplusplus
extern "C" {
#endif

/* A kernel; how many of its blocks of WEIR_CUDA_BLOCK_THREADS take tile after tile on each
 * multiprocessor (0: a block of WEIR_CUDA_THREADS per tile); and the shared memory that a block
 * takes beyond what the kernel declares. */
typedef struct weir_cuda_kernel {
    void (*start)(weir_cuda_launch launch);
    uint32_t blocks_per_sm;
    uint32_t shared_bytes;
} weir_cuda_kernel;

weir_cuda_kernel weir_fp8_128x128_cuda(weir_cuda_from from);
weir_cuda_kernel weir_fp8_channel_cuda(weir_cuda_from from);
weir_cuda_kernel weir_fp8_long_row_cuda(weir_cuda_from from);
weir_cuda_kernel weir_bf16_cast_cuda(weir_cuda_from from);
weir_cuda_kernel weir_fp32_cast_cuda(weir_cuda_from from);
weir_cuda_kernel weir_neg_exp_cuda(weir_cuda_from from); /* WEIR_CUDA_FROM_ANY alone */

/* As weir_cuda_converter's. `stream` is a cudaStream_t; returns a
 * cudaError_t. */
int weir_cuda_convert(const weir_cuda_launch *launch, void *stream);
int weir_cuda_finish_batch(const weir_cuda_finish *finish, void *stream);
int weir_cuda_find_refused(const weir_cuda_search *search, void *stream);
int weir_cuda_digest_ranges(const weir_cuda_digest_launch *launch, void *stream);
int weir_cuda_derive(const weir_cuda_derived_job *job, void *stream);
int weir_cuda_measure_rows(const weir_cuda_magnitude_launch *launch, void *stream);
int weir_cuda_scatter_rows(const weir_cuda_scatter_launch *launch, void *stream);

#ifdef __cplusplus
}
#endif
#endif
