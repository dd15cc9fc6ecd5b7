/* SPDX-License-Identifier: Apache-2.0 */
/* fleet.h - what a weir_fleet is made of, for the files of this folder. */
#ifndef WEIR_PLAN_FLEET_H
#define WEIR_PLAN_FLEET_H

#include "plan/cells.h"
#include "plan/held.h"
#include "plan/slice.h"

/* What one worker's part of a tensor of some pattern is made of. */
typedef struct weir_pattern_slice {
    size_t first_rule, n_rules;
    weir_fleet_slice shape;
} weir_pattern_slice;

/* Tensors that are alike but for name and layer: their copies are the same but for the first rank
 * of the trainer's stage. `like` is one of them, name and layer left out. */
typedef struct weir_pattern {
    weir_fleet_tensor like;
    size_t first_slice, n_slices; /* one per worker of a replica's stage that holds another part */
    uint32_t n_tensors;
} weir_pattern;

typedef struct weir_fleet_entry {
    weir_fleet_tensor tensor;
    uint32_t pattern;
    uint32_t turn;       /* the how manieth of its pattern: whose turn it is among equals */
    uint32_t first_rank; /* of the trainer's stage that has it */
    uint32_t stage;      /* of the replicas */
} weir_fleet_entry;

struct weir_fleet {
    weir_trainer_mesh
        trainer; /* every field at least 1; its pointers are the caller's and unused */
    weir_replica_mesh replica; /* the same */
    uint32_t n_ranks;
    weir_fleet_entry *entries;
    size_t n_entries;
    weir_pattern *patterns;
    size_t n_patterns;
    weir_pattern_slice *slices;
    size_t n_slices, slices_room;
    weir_cells cells;  /* the rules */
    weir_digest given; /* of expert maps and held boxes, which are not kept */
};

/* A trainer mesh with no 0 in it. ERR_INVALID for one of too many ranks, or without its sender. */
weir_status weir_trainer_mesh_read(const weir_trainer_mesh *given, weir_trainer_mesh *out);
/* One more than the highest layer that a tensor is of. */
uint32_t weir_fleet_layers(const weir_fleet_tensor *tensors, size_t n_tensors);
/* The trainer's stage that has what is of this layer. The mesh has no 0. */
uint32_t weir_trainer_stage(const weir_trainer_mesh *mesh, int32_t layer, uint32_t n_layers);

/* Whether an expert map says no more than that there is none: every rank has its chunk, in order. */
bool weir_experts_are_contiguous(const weir_replica_mesh *mesh);
bool weir_owners_are_contiguous(const weir_trainer_mesh *mesh);

/* Of what a fleet is made from but does not keep. */
weir_digest weir_fleet_digest_given(const weir_fleet_args *args);

/* The slice of an entry that a worker holds; NULL: another stage's. */
const weir_pattern_slice *weir_fleet_find_slice(const weir_fleet *fleet,
                                                const weir_fleet_entry *entry,
                                                const weir_mesh_place *place);

/* The workers that hold one slice of an entry. */
typedef struct weir_fleet_part_place {
    weir_mesh_place place;
    uint64_t n_workers; /* of all replicas */
} weir_fleet_part_place;
/* False when nobody does: another stage's, or the same as a slice before it. */
bool weir_fleet_part_at(const weir_fleet *fleet, const weir_fleet_entry *entry, uint32_t stage,
                        size_t slice, weir_fleet_part_place *out);
/* Who makes what a rule of that slice says. Where several hold it they take turns, entry by entry
 * and slice by slice: all replicas ask the same one. */
uint32_t weir_fleet_rank_of(const weir_fleet *fleet, const weir_fleet_entry *entry, size_t slice,
                            const weir_rule *rule);
/* A piece of a border that `owner` makes: from itself where it holds it. */
weir_fleet_piece weir_fleet_border_piece(const weir_fleet *fleet, const weir_fleet_entry *entry,
                                         const weir_rule_piece *from, uint32_t owner);
/* Which rank that piece is taken from. */
uint32_t weir_fleet_border_rank(const weir_fleet *fleet, const weir_fleet_entry *entry,
                                const weir_rule_piece *from, uint32_t owner);
/* Whether a border of which `owner` publishes the scales is converted by all that hold pieces of
 * it, each its own: ranks then hand each other magnitudes, and no rows. */
bool weir_fleet_border_is_shared(const weir_fleet *fleet, const weir_fleet_entry *entry,
                                 const weir_fleet_copy *border, uint32_t owner);
/* How many blocks of scales a border has, down and across, and how large they are. */
typedef struct weir_border_grid {
    uint32_t block_rows, block_cols, n_block_rows, n_block_cols;
} weir_border_grid;
weir_border_grid weir_fleet_border_grid(const weir_conversion *conversion,
                                        const weir_fleet_copy *border);
/* Whether an output has an element of each element of the source, and none of a block. */
bool weir_fleet_output_is_plain(const weir_conversion_output *output);
/* Bytes of a box of converted weights, and of the scales of its blocks. */
uint64_t weir_fleet_box_bytes(const weir_conversion *conversion, uint64_t n_rows, uint64_t n_cols);

#endif
