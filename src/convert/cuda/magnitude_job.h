/* SPDX-License-Identifier: Apache-2.0 */
/* magnitude_job.h - what the host tells the GPU of rows to measure, as cuda_job.h does of
 * conversions.
 *
 * A job is one view. Each block of scales that it meets is cut into runs of at most
 * WEIR_CUDA_RUN_ELEMENTS, a warp each; the runs of all jobs are numbered through.
 */
#ifndef WEIR_CONVERT_MAGNITUDE_JOB_H
#define WEIR_CONVERT_MAGNITUDE_JOB_H

#include "convert/cuda/cuda_job.h"
#include "numeric/scalar.h"

#define WEIR_CUDA_RUN_ELEMENTS 2048u
#define WEIR_CUDA_RUNS (WEIR_CUDA_THREADS / 32u) /* of a thread block */

typedef struct weir_cuda_magnitude_job {
    uint64_t data, pitch_bytes, magnitudes;
    uint32_t dtype; /* weir_dtype */
    uint32_t n_rows, n_cols, row, col, block_rows, block_cols, n_block_cols;
    uint32_t blocks_across;          /* that the view meets */
    uint32_t run_rows, run_cols;     /* at most */
    uint32_t runs_down, runs_across; /* of what the view has of one block, at most */
} weir_cuda_magnitude_job;

typedef struct weir_cuda_magnitude_launch {
    const weir_cuda_magnitude_job *jobs;
    const uint32_t *first_runs; /* parallel to jobs */
    uint32_t n_jobs, n_runs;
} weir_cuda_magnitude_launch;

/* Rows and columns count from the view's first; those at the edges of the view may have none. */
typedef struct weir_cuda_run {
    uint32_t row, n_rows, col, n_cols;
    uint32_t block; /* its magnitude's number */
} weir_cuda_run;

/* Part `at` of what a view that begins at `first` has of block `block`, along one axis. */
WEIR_HOST_DEVICE void weir_cuda_run_along(uint32_t first, uint32_t n, uint32_t block,
                                          uint32_t block_extent, uint32_t at, uint32_t run_extent,
                                          uint32_t *out_begin, uint32_t *out_n)
{
    uint64_t begin = (uint64_t)block * block_extent, end = begin + block_extent;
    uint64_t last = (uint64_t)first + n;
    begin = (begin > first ? begin : first) + (uint64_t)at * run_extent;
    end = end < last ? end : last;
    end = end < begin + run_extent ? end : begin + run_extent;
    *out_begin = (uint32_t)(begin - first);
    *out_n = end > begin ? (uint32_t)(end - begin) : 0;
}

WEIR_HOST_DEVICE weir_cuda_run weir_cuda_run_of(const weir_cuda_magnitude_job *job, uint32_t index)
{
    weir_cuda_run run;
    uint32_t per_block = job->runs_down * job->runs_across, in_block = index % per_block;
    uint32_t met = index / per_block;
    uint32_t block_row = job->row / job->block_rows + met / job->blocks_across;
    uint32_t block_col = job->col / job->block_cols + met % job->blocks_across;
    weir_cuda_run_along(job->row, job->n_rows, block_row, job->block_rows,
                        in_block / job->runs_across, job->run_rows, &run.row, &run.n_rows);
    weir_cuda_run_along(job->col, job->n_cols, block_col, job->block_cols,
                        in_block % job->runs_across, job->run_cols, &run.col, &run.n_cols);
    run.block = block_row * job->n_block_cols + block_col;
    return run;
}

#endif
