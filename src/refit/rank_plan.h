/* SPDX-License-Identifier: Apache-2.0 */
/* rank_plan.h - the plan of a sharded trainer as one of its ranks makes it, and this rank's share
 * of it.
 *
 * Each rank plans for itself, from the config and the two meshes, and comes to the same plan: no
 * rank is told what another holds. Where no mesh says it, the ranks tell each other first
 * (registries.h), and all plan from the same boxes.
 */
#ifndef WEIR_REFIT_RANK_PLAN_H
#define WEIR_REFIT_RANK_PLAN_H

#include "refit/checkpoint_share.h"
#include "refit/trainer.h"

/* Kept by its signature: registering anew what follows from the same plan makes none. */
typedef struct weir_rank_plan {
    char signature[33]; /* of the fleet: what it is kept by */
    weir_mapping *mapping;
    weir_tensor *described; /* the whole model's */
    size_t n_described;
    weir_fleet_tensor *tensors;
    size_t n_tensors;
    weir_fleet *fleet;
    weir_share *share;           /* of a rank that holds nothing, empty */
    weir_checkpoint_share named; /* of one that sends a checkpoint: what its shards are */
} weir_rank_plan;

/* Makes trainer->rank_plan what these shards ask for, or leaves it where it is that already, and
 * signs trainer->source by it: of a mesh with its outline, which all ranks come to alike. Where
 * this fails the plan is as before. */
weir_status weir_rank_plan_open(weir_trainer *trainer, const weir_tensor_shard *shards,
                                size_t n_shards);
void weir_rank_plan_close(weir_rank_plan *plan); /* accepts NULL */

#endif
