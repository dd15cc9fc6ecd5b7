/* SPDX-License-Identifier: Apache-2.0 */
/* shards.h - what a rank of a mesh has registered: which memory holds which rows of which source.
 *
 * Boxes come as the trainer has them; a planner asks for rows of a source of one expert. Each box
 * must lie within its tensor, and its memory is contiguous.
 */
#ifndef WEIR_REFIT_SHARDS_H
#define WEIR_REFIT_SHARDS_H

#include "weir/weir.h"

/* One matrix, or vector, of one expert: a box of it that is here. */
typedef struct weir_local_box {
    uint32_t tensor, source, expert; /* as in weir_fleet_tensor; expert 0 without */
    uint64_t row_lo, row_hi, col_lo, col_hi;
    uint32_t shard;                  /* which registered one holds it */
    uint64_t offset;                 /* of its first byte therein */
} weir_local_box;

typedef struct weir_local_shards {
    weir_tensor_shard *shards; /* names copied */
    size_t n_shards;
    weir_local_box *boxes; /* sorted by tensor, source, expert, row, column */
    size_t n_boxes;
} weir_local_shards;

/* Finds the mapping's sources by name. ERR_LAYOUT: a tensor that the model does not have, another
 * global shape, a box outside it or not of its memory's shape; named, with both sides. Keeps the
 * data pointers. */
weir_status weir_local_shards_open(const weir_mapping *mapping, const weir_fleet_tensor *tensors,
                                   size_t n_tensors, const weir_tensor_shard *shards,
                                   size_t n_shards, weir_local_shards **out);
void weir_local_shards_close(weir_local_shards *local); /* accepts NULL */

/* Takes new data pointers where names, dtypes, shapes and boxes are the same, in the same order.
 * ERR_LAYOUT, with nothing changed, when they are not. Allocates nothing. */
weir_status weir_local_shards_rebind(weir_local_shards *local, const weir_tensor_shard *shards,
                                     size_t n_shards);

/* The rows of one source that are held here in one piece. */
typedef struct weir_local_rows {
    const weir_tensor_shard *shard;
    unsigned char *data;  /* of the first element */
    uint64_t pitch_bytes; /* from one row to the next */
} weir_local_rows;
/* `piece` says which: its tensor, source, expert, place and extent. ERR_LAYOUT names the source and
 * the rows when no box holds them all. */
weir_status weir_local_shards_find(const weir_local_shards *local,
                                   const weir_fleet_tensor *tensors, const weir_share_piece *piece,
                                   weir_local_rows *out);

#endif
