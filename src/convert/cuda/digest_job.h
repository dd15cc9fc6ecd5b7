/* SPDX-License-Identifier: Apache-2.0 */
/* digest_job.h - what the host tells the GPU of ranges to digest, as cuda_job.h does of
 * conversions.
 *
 * A job is one range, cut into slices of WEIR_CUDA_SLICE_WORDS; the slices of all jobs are numbered
 * through, a thread block each.
 */
#ifndef WEIR_CONVERT_DIGEST_JOB_H
#define WEIR_CONVERT_DIGEST_JOB_H

#include "convert/cuda/cuda_job.h"

#define WEIR_CUDA_SLICE_LOADS 8u /* of two words that a thread has on their way at once */
#define WEIR_CUDA_SLICE_TURNS 2u
#define WEIR_CUDA_SLICE_WORDS \
    (2u * WEIR_CUDA_THREADS * WEIR_CUDA_SLICE_LOADS * WEIR_CUDA_SLICE_TURNS)

typedef enum weir_cuda_digest_check {
    WEIR_CUDA_CHECK_NONE = 0,
    WEIR_CUDA_CHECK_HALVES = 1, /* 16-bit floats */
    WEIR_CUDA_CHECK_WORDS = 2,  /* fp32 */
} weir_cuda_digest_check;

typedef struct weir_cuda_digest_job {
    uint64_t data;
    uint64_t n_words;                  /* all that are whole; of ragged rows all there are */
    uint64_t first_word;               /* its number */
    uint64_t row_bytes, words_per_row; /* of ragged rows */
    uint32_t n_tail_bytes;             /* behind the last whole word; not of ragged rows */
    uint32_t ragged; /* rows that end within a word, or begin at any byte: byte by byte */
    uint32_t check, least_refused; /* the latter a magnitude */
} weir_cuda_digest_job;

/* The last block to end hands the results over and leaves all zero. */
typedef struct weir_cuda_digest_launch {
    const weir_cuda_digest_job *jobs;
    const uint32_t *first_slices; /* parallel to jobs */
    weir_cuda_result *results;    /* the same numbers; product, sum and nonfinite are used */
    weir_cuda_result *out;        /* pinned */
    uint32_t *n_done;             /* blocks that have ended */
    uint32_t n_jobs, n_slices;
} weir_cuda_digest_launch;

#endif
