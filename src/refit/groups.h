/* SPDX-License-Identifier: Apache-2.0 */
/* groups.h - a rank's shards in groups that pass through a few buffers, one after another.
 *
 * Group g lies in buffer g % n_buffers, which is the region of its shards. Jobs and shards of a
 * group follow each other, and no job writes into two groups: a group is converted by itself. Pure:
 * nothing is allocated but in the source's arena, nothing is moved.
 *
 * Groups that are broadcast have one key and one audience each, and come in the order of those:
 * group_cast.h says why.
 */
#ifndef WEIR_REFIT_GROUPS_H
#define WEIR_REFIT_GROUPS_H

#include "refit/audiences.h"
#include "refit/trainer.h"

typedef struct weir_groups {
    uint32_t n_groups, n_buffers;
    uint32_t *shard_ends; /* of each group: one past its last shard */
    size_t *job_ends;
    /* Of those that are broadcast; NULL: they are read. */
    uint64_t *n_bytes; /* from the begin of its buffer to the end of its last shard */
    uint32_t *keys, *audiences;
} weir_groups;

/* Cuts what the source makes into groups of at most buffer_bytes. Puts the shards in the order of
 * the groups, sets their regions and offsets, and source->slot_bytes to the largest group.
 * `audiences`, of the source's shards: groups are broadcast, by the keys of their jobs, and jobs
 * are put into their order too; what is made together for several audiences is for all of their
 * workers. NULL: groups are read. ERR_UNSUPPORTED names the tensor that does not fit. */
weir_status weir_groups_cut(weir_source *source, weir_audiences *audiences, uint64_t buffer_bytes,
                            unsigned n_buffers, weir_groups *out);

/* Shards and jobs of a group: from the end of the group before. */
uint32_t weir_groups_first_shard(const weir_groups *groups, uint32_t group);
size_t weir_groups_first_job(const weir_groups *groups, uint32_t group);

/* Which workers of an engine read something of which group: row g has a byte per worker, row
 * n_groups says who reads anything at all. Allocated in `arena`; NULL without memory. */
unsigned char *weir_groups_readers(const weir_groups *groups, const weir_shard *shards,
                                   const weir_replica_mesh *mesh, weir_arena *arena);
/* The same of groups that are broadcast: who is sent them. */
unsigned char *weir_groups_receivers(const weir_groups *groups, const weir_audiences *audiences,
                                     weir_arena *arena);

#endif
