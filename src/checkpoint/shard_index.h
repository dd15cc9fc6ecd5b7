/* SPDX-License-Identifier: Apache-2.0 */
/* shard_index.h - model.safetensors.index.json: which shard file holds which tensor.
 *
 * Pure: text in, table out. Whether the shards keep what the index says is checked against their
 * parsed headers, by weir_shard_index_check().
 */
#ifndef WEIR_CHECKPOINT_SHARD_INDEX_H
#define WEIR_CHECKPOINT_SHARD_INDEX_H

#include <jansson.h>
#include <stddef.h>

#include "checkpoint/safetensors.h"
#include "weir/status.h"

typedef struct weir_shard_index {
    json_t *root;
    json_t *weight_map; /* borrowed from root: tensor name to file name */
    const char **files; /* each named file once, in order of first mention; borrowed from root */
    size_t n_files;
} weir_shard_index;

/* ERR_FORMAT when there is no weight_map, or a file name is more than a plain name: a path could
 * lead out of the checkpoint's directory. `path` names the index in errors. */
weir_status weir_shard_index_parse(const void *text, size_t n_bytes, const char *path,
                                   weir_shard_index *out);
void weir_shard_index_free(weir_shard_index *index); /* accepts a zeroed one */

/* shards[i] is the header of files[i]. ERR_FORMAT naming a tensor that is in the index but not in
 * its shard, or in a shard but not in the index. */
weir_status weir_shard_index_check(const weir_shard_index *index,
                                   const weir_safetensors *const *shards, const char *path);

#endif
