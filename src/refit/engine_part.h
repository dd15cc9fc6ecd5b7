/* SPDX-License-Identifier: Apache-2.0 */
/* engine_part.h - the part of a model that one worker of a parallel engine has: which parameters,
 * of which shapes.
 */
#ifndef WEIR_REFIT_ENGINE_PART_H
#define WEIR_REFIT_ENGINE_PART_H

#include "base/arena.h"
#include "weir/mesh.h"

/* The mesh of one engine, as options give it: mesh NULL is one worker, `experts` may be NULL.
 * "replicas=" says how many such engines there are, which none of them needs to know: it is 1 in
 * *out. `text` tells engines apart; "" for one worker that has every parameter as the model has it.
 * Free out->expert_ids with weir_expert_map_free(). */
weir_status weir_engine_mesh_read(const char *mesh, const char *experts, weir_replica_mesh *out,
                                  char text[WEIR_MESH_TEXT]);

/* Parameters of a worker, in the mapping's order; those of other stages are left out. */
typedef struct weir_engine_part {
    weir_parameter *parameters; /* entry and output are the mapping's */
    size_t n_parameters;
    uint64_t *filled_bytes; /* parallel: without the rows that the engine pads */
    weir_derived *derived;  /* of the worker's own heads; indices are of `parameters` */
    size_t n_derived;
} weir_engine_part;

/* Worker `worker` of the mesh. Borrows names and tags from the mapping, the rest lives in `arena`.
 * ERR_LAYOUT or ERR_UNSUPPORTED names a tensor that cannot be cut that way. */
weir_status weir_engine_part_of(const weir_mapping *mapping, const weir_replica_mesh *mesh,
                                uint32_t worker, weir_arena *arena, weir_engine_part *out);

/* Whether a plan fills that much of every parameter: sources say themselves which rows nobody
 * fills. ERR_LAYOUT names the first parameter of which they leave out more, or less. */
weir_status weir_engine_part_check(const weir_parameter *parameters, size_t n_parameters,
                                   const uint64_t *filled_bytes, const weir_plan *plan);

#endif
