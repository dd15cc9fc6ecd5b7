/* SPDX-License-Identifier: Apache-2.0 */
/* cuda_plan.h - a batch of conversions as the words of cuda_job.h: pure, no GPU needed.
 *
 * The words form one image that is uploaded as it is. Equal batches give equal images, so a caller
 * compares the image with the one it sent last instead of remembering layouts.
 */
#ifndef WEIR_CONVERT_CUDA_PLAN_H
#define WEIR_CONVERT_CUDA_PLAN_H

#include "convert/cuda/cuda_job.h"
#include "convert/fused.h"

#define WEIR_CUDA_MAX_LAUNCHES (WEIR_CUDA_N_KINDS * WEIR_CUDA_N_FROM)

/* One destination of the batch, checked. */
typedef struct weir_cuda_entry {
    weir_convert_args args; /* at this version's size */
    weir_fused fused;       /* points to the caller's sources and pitches */
    bool empty;             /* writes nothing */
    bool rounds;            /* F32 sources become bf16 first */
    uint32_t kind, from;
    const float *magnitudes; /* of others, parallel to output 1; NULL: none */
} weir_cuda_entry;

/* The jobs of one kernel, which follow each other in the image. */
typedef struct weir_cuda_group {
    uint32_t kind, from;
    uint32_t first_job, n_jobs, n_tiles;
} weir_cuda_group;

/* Where things lie in the image. */
typedef struct weir_cuda_plan {
    size_t n_entries, n_jobs, n_segments;
    size_t first_tiles_at, segments_at, image_bytes; /* the jobs lie at 0 */
    size_t n_groups;
    weir_cuda_group groups[WEIR_CUDA_MAX_LAUNCHES];
} weir_cuda_plan;

/* Checks n args, `stride` bytes apart, into entries[n], and measures the image. Errors name the
 * tensor; ERR_UNSUPPORTED for a conversion without CUDA kernels. */
weir_status weir_cuda_plan_init(weir_cuda_plan *plan, const weir_convert_args *args, size_t n,
                                weir_cuda_entry *entries);

/* Writes plan->image_bytes bytes; every byte is determined by the entries. */
weir_status weir_cuda_plan_build(weir_cuda_plan *plan, const weir_cuda_entry *entries,
                                 unsigned char *image);

#endif
