/* SPDX-License-Identifier: Apache-2.0 */
/* magnitudes.h - borders of conversions that scale by magnitude: this rank's magnitudes, which it
 * lends; all ranks' together; and the conversion of this rank's rows by those.
 *
 * A kernel finds a block's scale by itself, from the rows it is given. So it is given one more row,
 * or column where columns are cut, that holds the largest magnitude of the blocks and is not kept:
 * any kernel of any instruction set then makes the bytes of an unsharded conversion. A GPU's
 * kernels take the magnitudes themselves (convert/magnitude_batch.h), and write where the bytes
 * belong.
 *
 * Threads    the trainer's; the pool's within a call.
 */
#ifndef WEIR_REFIT_MAGNITUDES_H
#define WEIR_REFIT_MAGNITUDES_H

#include "base/arena.h"
#include "refit/trainer.h"

typedef struct weir_magnitudes weir_magnitudes;

/* Rows of this rank that a border's job or piece is made of. */
typedef struct weir_magnitude_rows {
    weir_tensor view; /* n_rows x n_cols of the source */
    uint64_t pitch_bytes;
} weir_magnitude_rows;

/* All of it is kept. */
typedef struct weir_magnitudes_options {
    const weir_share *share;
    const weir_fleet_tensor *tensors; /* as the share was planned from */
    weir_pool *pool;
    weir_work *work;     /* of the GPU where the tensors lie; NULL: host memory */
    unsigned timeout_ms; /* of the GPU's work */
    weir_arena *arena;   /* for what lasts */
} weir_magnitudes_options;

/* Room for the share's borders. */
weir_status weir_magnitudes_open(const weir_magnitudes_options *options, weir_magnitudes **out);
void weir_magnitudes_close(weir_magnitudes *magnitudes); /* accepts NULL */

/* Where a border's own magnitudes lie, in host memory: what is lent of it. */
const float *weir_magnitudes_own(const weir_magnitudes *magnitudes, uint32_t border,
                                 uint32_t *out_n);
/* Which rows an own piece of a border has now (piece: index in share->pieces), and a job. */
void weir_magnitudes_aim_piece(weir_magnitudes *magnitudes, size_t piece,
                               const weir_magnitude_rows *rows);
void weir_magnitudes_aim_job(weir_magnitudes *magnitudes, size_t job,
                             const weir_magnitude_rows *rows);

/* Finds this rank's magnitudes, of every border. */
weir_status weir_magnitudes_measure(weir_magnitudes *magnitudes);

/* Joins them with those of the other ranks: `at` gives what a loan has handed over. */
typedef const void *(*weir_loan_at)(void *context, uint32_t loan, uint64_t offset);
void weir_magnitudes_join(weir_magnitudes *magnitudes, weir_loan_at at, void *context);

/* Where the outputs go: shard i's bytes at shards[i].offset of `data`, which a GPU that converts
 * reaches. Of all jobs [first_job,
 * end_job) those of borders are converted. Digests are added to digests[shard]. */
typedef struct weir_magnitude_target {
    unsigned char *data;
    const weir_shard *shards;
    size_t first_job, end_job;
    const weir_stage_job *jobs; /* of first_job and those behind it: whose shards count, where they
                                   were put into another order; NULL: the share's own */
    weir_digest *digests;
    bool round_masters;
} weir_magnitude_target;
/* Converts the jobs of borders. ERR_NONFINITE names the tensor. Allocates nothing. */
weir_status weir_magnitudes_convert(weir_magnitudes *magnitudes,
                                    const weir_magnitude_target *target);

#endif
