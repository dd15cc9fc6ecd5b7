/* SPDX-License-Identifier: Apache-2.0 */
/* magnitudes_state.h - what magnitudes.c and its half for GPUs share; nobody else includes it. */
#ifndef WEIR_REFIT_MAGNITUDES_STATE_H
#define WEIR_REFIT_MAGNITUDES_STATE_H

#include "convert/magnitude.h"
#include "refit/magnitudes.h"

/* A job of a border, or a part of it. */
typedef struct weir_magnitude_chunk {
    uint32_t job;
    uint32_t row, n_rows; /* within the job's copy */
} weir_magnitude_chunk;

typedef struct weir_magnitudes_gpu weir_magnitudes_gpu;

struct weir_magnitudes {
    const weir_share *share;
    const weir_fleet_tensor *tensors;
    weir_pool *pool;
    size_t *first_value;         /* of each border; one more for the end */
    float *own, *joined;         /* parallel; the GPU's half owns them where there is one */
    weir_magnitude_rows *pieces; /* parallel to share->pieces; those of own rows are set */
    weir_magnitude_rows *jobs;   /* parallel to share->jobs; those of borders are set */
    weir_magnitudes_gpu *gpu;    /* NULL: rows lie in host memory, and what follows is used */
    weir_magnitude_chunk *chunks;
    size_t n_chunks;
    size_t first_chunk;     /* of the target's jobs */
    unsigned char *scratch; /* scratch_bytes for each thread of the pool */
    uint64_t scratch_bytes;
    const weir_magnitude_target *target; /* of the call at hand */
    weir_digest *digests;                /* of each chunk, WEIR_MAX_OUTPUTS apart */
};

static inline const weir_conversion *weir_magnitudes_conversion(const weir_magnitudes *m,
                                                                const weir_share_job *job)
{
    return m->tensors[job->copy.tensor].conversion;
}

/* WEIR_ANY: it is not wanted. */
static inline uint32_t weir_magnitudes_shard(const weir_magnitudes *m,
                                             const weir_magnitude_target *target, size_t job,
                                             size_t o)
{
    return target->jobs != NULL ? target->jobs[job - target->first_job].shards[o]
                                : m->share->jobs[job].shards[o];
}

/* Rows of this rank of a piece, as they lie on the blocks of its border. */
weir_magnitude_view weir_magnitudes_view_of(const weir_magnitudes *m,
                                            const weir_share_border *border, size_t piece);

/* magnitudes_cuda.c: in *m, whose first_value, pieces and jobs are there. */
weir_status weir_magnitudes_cuda_open(weir_magnitudes *m, const weir_magnitudes_options *options);
void weir_magnitudes_cuda_close(weir_magnitudes *m); /* accepts one that was never opened */
weir_status weir_magnitudes_cuda_measure(weir_magnitudes *m);
weir_status weir_magnitudes_cuda_convert(weir_magnitudes *m, const weir_magnitude_target *target);

#endif
