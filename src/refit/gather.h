/* SPDX-License-Identifier: Apache-2.0 */
/* gather.h - what a worker's parameter is made of, copied together from the whole model's sources:
 * for verifying, where every worker's bytes are made without the trainers' plan.
 */
#ifndef WEIR_REFIT_GATHER_H
#define WEIR_REFIT_GATHER_H

#include "base/arena.h"
#include "refit/manifest.h"
#include "weir/mesh.h"

typedef struct weir_gather {
    const weir_replica_mesh *mesh; /* every field but vocabulary_pad at least 1 */
    weir_mesh_place place;
    weir_buffer bytes; /* of the last entry; the caller frees it */
    weir_arena arena;  /* the same, with what describes it */
} weir_gather;

/* *out is `entry` as if the model had the worker's part alone, its sources dense in gather->bytes
 * until the next call; rows that pad a vocabulary are left out. `tensor` is the same entry of
 * weir_fleet_tensors_of(). */
weir_status weir_gather_entry(weir_gather *gather, const weir_map_entry *entry,
                              const weir_fleet_tensor *tensor, weir_map_entry *out);

#endif
