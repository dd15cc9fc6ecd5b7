/* SPDX-License-Identifier: Apache-2.0 */
/* plan.h - which bytes of which source fill which parameter: pure data in, pure data out, no I/O.
 *
 * A source publishes boxes of parameters, a worker of a replica wants its parameters filled. Where
 * the engine is parallel, workers hold different parts of one name: a box then says whose part it
 * belongs to. Who makes which box, of sharded trainers, is mesh.h.
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

#define WEIR_ANY UINT32_MAX

/* The workers of a replica that hold the same part of a parameter: those of one pipeline stage, of
 * this data parallel and this tensor parallel rank; WEIR_ANY: of every. Of one worker, none is ANY.
 * An engine of one worker is all zero. */
typedef struct weir_mesh_place {
    uint32_t stage, d, t;
} weir_mesh_place;

/* Whether a worker is one of those. */
WEIR_API bool weir_mesh_place_matches(const weir_mesh_place *part, const weir_mesh_place *worker);

/* What one source holds of one parameter. */
typedef struct weir_shard {
    const char *name;
    weir_dtype dtype;
    weir_shape global_shape;      /* of the whole parameter, as the workers of `place` have it */
    weir_box box;                 /* the part that is here, contiguous */
    weir_mesh_place place;        /* whose parameter */
    uint64_t n_padding_rows;      /* the last of the parameter's axis 0, which nobody fills: vocabulary
                                     that the engine pads. Of a parameter that is all padding one
                                     shard has an empty box */
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

/* One shard's bytes: contiguous at the source, at the parameter n_bytes / run_bytes runs. */
typedef struct weir_plan_copy {
    uint32_t source, shard;       /* indices into the sources and their shards */
    uint32_t region;
    uint64_t source_offset;       /* bytes within the source's region */
    uint32_t parameter;           /* index into the wanted parameters */
    uint64_t parameter_offset;    /* bytes within the parameter, of the first run */
    uint64_t n_bytes;
    uint64_t run_bytes;           /* of each run; n_bytes when there is one */
    uint64_t pitch_bytes;         /* from one run to the next; 0 when there is one */
    uint64_t packed_offset;       /* where it begins when a parameter's copies are laid one behind
                                     the other, in the order of their first bytes: together they
                                     take the parameter's bytes, padding left out */
} weir_plan_copy;

typedef struct weir_plan weir_plan;

/* Plans how `wanted`, the parameters of the worker at `place`, are filled from `sources`. Checked
 * before anything else happens: every wanted parameter is covered exactly once, of the same dtype,
 * global shape, compile target and metadata; no source holds a parameter for that place that is not
 * wanted. Shards of other places are passed over. A box may be cut along any axes as long as its
 * bytes are runs at equal distances, each a whole number of bytes: rows, columns, the same columns
 * of experts that follow each other. Boxes that several sources have are taken once, from the one
 * that has been given the fewest bytes so far; others that overlap are refused. Copies come sorted
 * by source, region and offset, one per shard. Derived parameters (entry == SIZE_MAX) are not
 * wanted from anyone. Gives *out. */
WEIR_API weir_status weir_plan_open(const weir_parameter *wanted, size_t n_wanted,
                                    const weir_mesh_place *place, const weir_plan_source *sources,
                                    size_t n_sources, weir_plan **out);
WEIR_API void weir_plan_close(weir_plan *plan); /* accepts NULL */
WEIR_API const weir_plan_copy *weir_plan_copies(const weir_plan *plan, size_t *out_n_copies);
WEIR_API uint64_t weir_plan_bytes(const weir_plan *plan);

/* Which of n_ranks owns each entry of a mapping: whole bundles, largest first, to the rank with the
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
