/* SPDX-License-Identifier: Apache-2.0 */
/* share_shard.h - one part of a tensor, output by output: boxes that continue each other become one
 * shard.
 */
#ifndef WEIR_PLAN_SHARE_SHARD_H
#define WEIR_PLAN_SHARE_SHARD_H

#include "plan/fleet.h"

/* Rows and columns of one output, of experts in slots. */
typedef struct weir_shard_extent {
    uint64_t slot_lo, slot_hi, row_lo, row_hi, col_lo, col_hi;
} weir_shard_extent;

/* One output of a part, and what one rank makes of it. */
typedef struct weir_part_output {
    weir_shape shape;
    uint32_t leading;        /* axes in front of the rows: 1 with experts */
    bool is_vector;          /* rows are the last axis, one element each */
    uint64_t n_rows, n_cols; /* of a slot, padding left out */
    uint64_t n_padding_rows;
    uint64_t cell_rows, cell_cols; /* cell_cols WEIR_WHOLE: one element per row */
    unsigned bits;                 /* of an element */
    weir_shard_extent *shards;
    size_t n_shards, room;
    size_t first_open; /* shards before it take in nothing more */
} weir_part_output;

/* Forgets the shards but not their memory, and takes on output `o` of a slice of a tensor. */
weir_status weir_part_output_start(weir_part_output *output, const weir_fleet_tensor *tensor,
                                   const weir_fleet_slice *slice, size_t o);
void weir_part_output_close(weir_part_output *output);

/* Adds what a copy makes of this output; copies come by slot, row, column. *out_shard: where it is,
 * until another shard takes that in: then *out_gone (SIZE_MAX: none) is now the one before it. */
weir_status weir_part_output_put(weir_part_output *output, const weir_fleet_copy *copy,
                                 size_t *out_shard, size_t *out_gone);

/* No shard that is there takes in what comes from now on. */
void weir_part_output_fence(weir_part_output *output);

/* Adds an empty shard, for a part that nobody fills. */
weir_status weir_part_output_put_none(weir_part_output *output);

/* Where in a shard a copy's bytes and digest words begin. */
void weir_part_output_locate(const weir_part_output *output, const weir_shard_extent *shard,
                             const weir_fleet_copy *copy, uint64_t *out_offset,
                             uint64_t *out_first_word);
weir_box weir_part_output_box(const weir_part_output *output, const weir_shard_extent *shard);
uint64_t weir_part_output_bytes(const weir_part_output *output, const weir_shard_extent *shard);

#endif
