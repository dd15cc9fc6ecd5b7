/* SPDX-License-Identifier: Apache-2.0 */
/* mesh_shards.h - a rank's shards of a checkpoint, as a sharded trainer would have them in memory.
 */
#ifndef WEIR_TOOLS_MESH_SHARDS_H
#define WEIR_TOOLS_MESH_SHARDS_H

#include "cli.h"

/* Which rank's, of which model. NULL where a verb's option was not given. */
typedef struct weir_mesh_cut {
    const char *mesh, *owners;
    uint32_t rank;
    const char *family, *layout, *conversion, *config;
    const char *const *ignore;
    size_t n_ignore;
} weir_mesh_cut;

typedef struct weir_mesh_shards {
    weir_tensor_shard *shards; /* in one block of memory */
    size_t n_shards;
    unsigned char *memory;
} weir_mesh_shards;

/* Copies this rank's shards out of the whole model's tensors, whose names it borrows. False after
 * having printed the error. */
bool weir_mesh_shards_cut(const weir_mesh_cut *cut, const weir_tensor *tensors, size_t n_tensors,
                          weir_mesh_shards *out);
void weir_mesh_shards_close(weir_mesh_shards *shards); /* accepts a zeroed one */

#endif
