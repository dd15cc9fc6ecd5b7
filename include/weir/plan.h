/* SPDX-License-Identifier: Apache-2.0 */
/* plan.h - who sends which box to whom: pure data in, pure data out, no I/O.
 *
 * The simplest form: a source publishes whole rows of a parameter (a box that is whole on every
 * axis but the first), a replica wants whole parameters.
 *
 * Threads    pure functions; a plan is immutable once made.
 * Ownership  a plan borrows nothing: it holds indices into the arrays it was made from.
 * Errors     ERR_LAYOUT: the first difference in weir_last_error(), all of them in the report.
 */
#ifndef WEIR_PLAN_H
#define WEIR_PLAN_H

#include "weir/family.h"

#ifdef __cplusplus
extern "C" {
#endif

/* What one source holds of one parameter. */
typedef struct weir_shard {
    const char *name;
    weir_dtype dtype;
    weir_shape global_shape;
    weir_box box;                 /* the part that is here, contiguous */
    const char *compile_target;
    const char *compile_metadata;
    uint32_t region;              /* which region of the source */
    uint64_t offset;              /* of the first byte within that region */
    uint64_t n_bytes;
    weir_digest digest;           /* of these bytes */
} weir_shard;

/* One source: a trainer rank, or a replica that publishes what it holds. */
typedef struct weir_plan_source {
    const char *worker;           /* "trainer rank 1 (worker 9f3c…)", for errors */
    const weir_shard *shards;
    size_t n_shards;
} weir_plan_source;

/* One contiguous copy, and the digest that its bytes must have. */
typedef struct weir_plan_copy {
    uint32_t source, shard;       /* indices into the sources and their shards */
    uint32_t region;
    uint64_t source_offset;       /* bytes within the source's region */
    uint32_t parameter;           /* index into the wanted parameters */
    uint64_t parameter_offset;    /* bytes within the parameter */
    uint64_t n_bytes;
} weir_plan_copy;

typedef struct weir_plan weir_plan;

/* Plans how `wanted` is filled from `sources`. Checked before anything else happens: every wanted
 * parameter is covered exactly once, of the same dtype, global shape, compile target and metadata;
 * no source holds a parameter that is not wanted. Duplicated ranges are taken once, from the
 * source that has been given the fewest bytes so far. Copies come sorted by source, region and
 * offset; touching ones stay apart when they belong to different parameters. Derived parameters
 * (entry == SIZE_MAX) are not wanted from anyone. Gives *out. */
WEIR_API weir_status weir_plan_open(const weir_parameter *wanted, size_t n_wanted,
                                    const weir_plan_source *sources, size_t n_sources,
                                    weir_plan **out);
WEIR_API void weir_plan_close(weir_plan *plan); /* accepts NULL */
WEIR_API const weir_plan_copy *weir_plan_copies(const weir_plan *plan, size_t *out_n_copies);
WEIR_API uint64_t weir_plan_bytes(const weir_plan *plan);

/* Which of n_ranks owns each entry of a mapping: whole entries, largest first, to the rank with the
 * fewest bytes so far; ties to the lowest index. Deterministic. owners has one number per entry. */
WEIR_API weir_status weir_plan_owners(const weir_mapping *mapping, uint32_t n_ranks,
                                      uint32_t *owners);

/* 32 hex digits: the weir_digest of names, dtypes, shapes, tags, in order. Equal layouts, equal
 * signatures. Writes 33 bytes. */
WEIR_API weir_status weir_layout_signature(const weir_parameter *parameters, size_t n_parameters,
                                           char out[33]);

#ifdef __cplusplus
}
#endif
#endif
