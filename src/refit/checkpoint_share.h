/* SPDX-License-Identifier: Apache-2.0 */
/* checkpoint_share.h - a trainer rank's share of the engine's parameters, said as boxes of the
 * checkpoint's tensors: what it publishes where replicas convert by themselves.
 *
 * Who holds and makes what is planned by the rows of the engine, unquantised, for one worker. Each
 * job of that is a box of one source, so each becomes a shard of one tensor of the checkpoint.
 */
#ifndef WEIR_REFIT_CHECKPOINT_SHARE_H
#define WEIR_REFIT_CHECKPOINT_SHARE_H

#include "refit/settings.h"
#include "weir/mesh.h"

typedef struct weir_checkpoint_share {
    weir_tensor *described;
    weir_mapping *checkpoint;          /* of layout "checkpoint" */
    const weir_parameter **parameters; /* of each shard, of that mapping */
    const weir_map_entry *entries;     /* of that mapping: parameters[i]->entry says which */
} weir_checkpoint_share;

/* Rewrites the shards and jobs of `share`, which is of `tensors`: one shard per job, those outside
 * the layers first. `out` is zeroed; close it whatever this returns. */
weir_status weir_checkpoint_share_open(const weir_settings *settings,
                                       const weir_fleet_tensor *tensors, size_t n_tensors,
                                       weir_share *share, weir_checkpoint_share *out);
void weir_checkpoint_share_close(weir_checkpoint_share *named);

#endif
