/* SPDX-License-Identifier: Apache-2.0 */
/* audiences.h - which workers of an engine are sent the same of a rank's shards. Pure.
 *
 * A shard is for the workers whose place matches its own. Shards for the same workers have one
 * audience, whose workers, of all engines, stand in one broadcast group.
 */
#ifndef WEIR_REFIT_AUDIENCES_H
#define WEIR_REFIT_AUDIENCES_H

#include "base/arena.h"
#include "refit/manifest.h"

typedef struct weir_audiences {
    uint32_t n, n_workers; /* workers: of one engine */
    unsigned char *sent;   /* a row of n_workers each: whether the worker is in the audience; there
                              is room for WEIR_MAX_AUDIENCES of them */
    uint32_t *of_shards;   /* parallel to the shards; WEIR_ANY: for nobody (padding) */
} weir_audiences;

/* Audiences in the order in which the shards first need them. ERR_UNSUPPORTED when there are more
 * than WEIR_MAX_AUDIENCES: such a version is read. Allocated in `arena`. */
weir_status weir_audiences_find(const weir_shard *shards, size_t n_shards,
                                const weir_replica_mesh *mesh, weir_arena *arena,
                                weir_audiences *out);

/* The row of one of them. */
const unsigned char *weir_audiences_row(const weir_audiences *audiences, uint32_t audience);
/* The audience of all workers of either (WEIR_ANY: of none), which is added where there is none
 * such. ERR_UNSUPPORTED as above. */
weir_status weir_audiences_join(weir_audiences *audiences, uint32_t one, uint32_t other,
                                uint32_t *out);

#endif
