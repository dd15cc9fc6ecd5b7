/* SPDX-License-Identifier: Apache-2.0 */
/* share_maker.h - a share while it is made, for the files that make it. */
#ifndef WEIR_PLAN_SHARE_MAKER_H
#define WEIR_PLAN_SHARE_MAKER_H

#include "plan/share_loan.h"
#include "plan/share_shard.h"

typedef struct weir_share_maker {
    const weir_fleet *fleet;
    uint32_t rank;
    uint64_t most_bytes; /* that jobs which share shards come to; 0: no bound */
    uint64_t run_bytes;  /* of the part's jobs that may share shards with the next one */
    weir_share_shard *shards;
    weir_share_job *jobs;
    weir_share_border *borders;
    size_t n_shards, shards_room, n_jobs, jobs_room, n_borders, borders_room;
    uint32_t *met; /* by rank: the last border that it had a piece of, counted from 1 */
    weir_loans loans;
    weir_part_output outputs[WEIR_MAX_OUTPUTS]; /* of the part at hand */
    uint32_t *picked;                           /* rules, slice by slice */
    size_t *first_picked;                       /* of each slice; one more for the end */
    size_t n_picked, picked_room;
} weir_share_maker;

/* A part: one slice of one entry, for the workers of `place`. */
typedef struct weir_share_part {
    const weir_fleet_entry *entry;
    const weir_pattern_slice *slice;
    uint32_t tensor;
    size_t index; /* of the slice, in its pattern */
    weir_mesh_place place;
} weir_share_part;

/* Makes room for item n of the array whose pointer is at `block`. False: no memory. */
bool weir_share_make_room(void *block, size_t *room, size_t n, size_t item_bytes);

/* Adds a job, and to the part's shards what it makes; of outputs whose shard is WEIR_ANY nothing.
 * first_job: the part's. */
weir_status weir_share_add_job(weir_share_maker *m, const weir_share_part *part,
                               weir_share_job *job, size_t first_job);

/* This rank makes a border alone: takes note of its pieces, its own and borrowed ones, in `copy`.
 */
weir_status weir_share_borrow_border(weir_share_maker *m, const weir_share_part *part,
                                     const weir_rule *rule, weir_fleet_copy *copy);
/* Another does: lends it what is here. */
weir_status weir_share_lend_border(weir_share_maker *m, const weir_share_part *part,
                                   const weir_rule *rule, uint32_t owner);

/* Whether this rank has a piece of a shared border, and what it then does about it. */
bool weir_share_has_piece(const weir_share_maker *m, const weir_share_part *part,
                          const weir_rule *rule, uint32_t owner);
weir_status weir_share_make_border(weir_share_maker *m, const weir_share_part *part,
                                   const weir_rule *rule, uint32_t owner, size_t first_job);

#endif
