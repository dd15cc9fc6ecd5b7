/* SPDX-License-Identifier: Apache-2.0 */
/* cuda_job.h - what the host tells the GPU of a batch: the words that C and CUDA share.
 *
 * A job is one destination. Its matrices are cut into tiles of at most WEIR_CUDA_TILE_ELEMENTS, one
 * thread block each, and the tiles of all jobs of one kind are numbered through, so that one launch
 * converts them all. A block finds its job by its number and its rows by the job's segments: no
 * list of tiles exists. Plain values; addresses are those of the device.
 */
#ifndef WEIR_CONVERT_CUDA_JOB_H
#define WEIR_CONVERT_CUDA_JOB_H

#include <stddef.h>
#include <stdint.h>

#define WEIR_CUDA_THREADS 256u       /* of a block that convert */
#define WEIR_CUDA_BLOCK_THREADS 288u /* and a warp that finds the next tile */
#define WEIR_CUDA_CHUNK 8u  /* elements that a thread handles at once: one digest word of FP8 */
#define WEIR_CUDA_CHUNKS 8u /* chunks that a thread holds */
#define WEIR_CUDA_TILE_ELEMENTS 16384u /* the product of the three */
#define WEIR_CUDA_BLOCK 128u           /* rows and columns under one scale */

/* What is written, and over what a scale is taken. */
typedef enum weir_cuda_kind {
    WEIR_CUDA_FP8_BLOCK = 0,    /* a scale per 128 x 128 */
    WEIR_CUDA_FP8_CHANNEL = 1,  /* a scale per row of at most WEIR_CUDA_TILE_ELEMENTS */
    WEIR_CUDA_FP8_LONG_ROW = 2, /* a scale per row, any length: the row is read twice */
    WEIR_CUDA_TO_BF16 = 3,
    WEIR_CUDA_TO_F32 = 4,
    WEIR_CUDA_NEG_EXP = 5, /* -exp(x), in fp32 */
    WEIR_CUDA_N_KINDS
} weir_cuda_kind;

/* How source rows are read. All but FROM_ANY move 16 bytes at once: every row begins on 16 bytes
 * and has a multiple of 8 elements, and all sources of a job have one dtype. */
typedef enum weir_cuda_from {
    WEIR_CUDA_FROM_BF16 = 0,
    WEIR_CUDA_FROM_F16 = 1,
    WEIR_CUDA_FROM_F32 = 2,
    WEIR_CUDA_FROM_MASTER = 3, /* F32, rounded to bf16 first */
    WEIR_CUDA_FROM_ANY = 4,    /* element by element, a dtype per source */
    WEIR_CUDA_N_FROM
} weir_cuda_from;

/* One source: the rows that it gives to a matrix (of a vector: the columns). */
typedef struct weir_cuda_segment {
    uint64_t data;
    uint64_t row_step; /* bytes from one row to the next */
    uint32_t first, n;
    uint32_t dtype;  /* weir_dtype */
    uint32_t rounds; /* F32 that is rounded to bf16 first */
} weir_cuda_segment;

typedef struct weir_cuda_job {
    uint64_t out, scales;                  /* outputs 0 and 1, dense */
    uint64_t words_per_row;                /* of output 0, for its digest */
    uint64_t first_word, first_scale_word; /* numbers of the outputs' first digest words */
    uint64_t magnitudes;                   /* parallel to scales, 0: none (magnitude_batch.h) */
    uint32_t number;                       /* of its weir_cuda_result */
    uint32_t n_rows, n_cols;               /* of one matrix */
    uint32_t tile_rows, tile_cols;
    uint32_t tiles_down, tiles_across;
    uint32_t log_lanes;                 /* log2 of the threads that share a row */
    uint32_t first_segment, n_segments; /* n_segments for each matrix when they are separate */
    uint32_t separate;                  /* every matrix has segments of its own */
    uint32_t vector;                    /* the segments lie side by side in one row */
    uint32_t digests, propagate;
    uint32_t scale_cols; /* of output 1, as its digest sees it */
    uint64_t scale_rows;
} weir_cuda_job;

/* Zero before a batch; zeroed again once it was handed to the host. */
typedef struct weir_cuda_result {
    uint64_t product, sum;             /* digest of output 0 */
    uint64_t scale_product, scale_sum; /* of output 1 */
    uint32_t nonfinite;                /* not 0: some element was refused */
    uint32_t n_done;                   /* blocks that have added their part of the scales */
} weir_cuda_result;

/* One launch: the tiles of the jobs [first_job, first_job + n_jobs). */
typedef struct weir_cuda_launch {
    const weir_cuda_job *jobs;
    const uint32_t *first_tiles; /* parallel to jobs, rising from 0 within a launch */
    const weir_cuda_segment *segments;
    weir_cuda_result *results;
    uint32_t *next_tile; /* zero before the launch: tiles are handed out by it */
    uint32_t n_jobs, n_tiles;
    uint32_t kind, from;
} weir_cuda_launch;

/* What ends a batch: digests of the scales, results to the host, everything zero again. */
typedef struct weir_cuda_finish {
    const weir_cuda_job *jobs; /* all of the batch */
    weir_cuda_result *results;
    weir_cuda_result *out; /* pinned, by the same numbers */
    uint32_t *next_tiles;  /* the counters of all launches */
    uint32_t n_jobs, n_counters;
} weir_cuda_finish;

/* Where the first element at or beyond a magnitude lies: *first, on the device, is the least of
 * what it was and that position, counted without what lies between two rows. */
typedef struct weir_cuda_search {
    const void *source;
    uint64_t *first;
    uint64_t n_elements;
    uint64_t n_cols, row_step; /* elements of a row; bytes from one to the next */
    uint32_t element_bytes, least_refused;
} weir_cuda_search;

struct weir_cuda_digest_launch;    /* digest_job.h */
struct weir_cuda_derived_job;      /* derived_job.h */
struct weir_cuda_magnitude_launch; /* magnitude_job.h */
struct weir_cuda_scatter_launch;   /* scatter_job.h */

/* The kernels, as libweir_cuda.so offers them: on the calling thread's device, 0 or CUDA's error.
 * Append only; never reorder. */
typedef struct weir_cuda_converter {
    size_t size;
    int (*convert)(const weir_cuda_launch *launch, void *stream);
    int (*finish)(const weir_cuda_finish *finish, void *stream);
    int (*find_refused)(const weir_cuda_search *search, void *stream);
    int (*digest)(const struct weir_cuda_digest_launch *launch, void *stream);
    int (*derive)(const struct weir_cuda_derived_job *job, void *stream);
    int (*measure)(const struct weir_cuda_magnitude_launch *launch, void *stream);
    int (*scatter)(const struct weir_cuda_scatter_launch *launch, void *stream);
} weir_cuda_converter;

#endif
