/* SPDX-License-Identifier: Apache-2.0 */
/* scatter_job.h - what the host tells the GPU of rows to copy, as cuda_job.h does of conversions.
 *
 * A job is one weir_rows. It is cut into runs of at most WEIR_CUDA_SCATTER_BYTES, a warp each: some
 * rows of it, or a part of a long one; the runs of all jobs are numbered through.
 */
#ifndef WEIR_CONVERT_SCATTER_JOB_H
#define WEIR_CONVERT_SCATTER_JOB_H

#include "convert/cuda/cuda_job.h"
#include "numeric/scalar.h"

#define WEIR_CUDA_SCATTER_BYTES 16384u                   /* a multiple of 16 */
#define WEIR_CUDA_SCATTER_RUNS (WEIR_CUDA_THREADS / 32u) /* of a thread block */

typedef struct weir_cuda_scatter_job {
    uint64_t to, from, to_pitch, from_pitch, row_bytes, n_rows;
    uint32_t run_rows, run_bytes; /* at most; of one row */
    uint32_t runs_across;         /* of one row */
    uint32_t unit_bytes;          /* that are copied at once: 16, 4 or 1 */
} weir_cuda_scatter_job;

typedef struct weir_cuda_scatter_launch {
    const weir_cuda_scatter_job *jobs;
    const uint32_t *first_runs; /* parallel to jobs */
    uint32_t n_jobs, n_runs;
} weir_cuda_scatter_launch;

/* Rows [row, row + n_rows), of each of them n_bytes from `at` on. */
typedef struct weir_cuda_scatter_run {
    uint64_t row, at;
    uint32_t n_rows, n_bytes;
} weir_cuda_scatter_run;

WEIR_HOST_DEVICE weir_cuda_scatter_run weir_cuda_scatter_run_of(const weir_cuda_scatter_job *job,
                                                                uint32_t index)
{
    weir_cuda_scatter_run run;
    run.row = (uint64_t)(index / job->runs_across) * job->run_rows;
    run.at = (uint64_t)(index % job->runs_across) * job->run_bytes;
    uint64_t rows = job->n_rows - run.row, bytes = job->row_bytes - run.at;
    run.n_rows = rows < job->run_rows ? (uint32_t)rows : job->run_rows;
    run.n_bytes = bytes < job->run_bytes ? (uint32_t)bytes : job->run_bytes;
    return run;
}

#endif
