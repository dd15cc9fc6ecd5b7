/* SPDX-License-Identifier: Apache-2.0 */
/* sharded.h - the source of a trainer rank of a mesh: the plan of its fleet, what this rank makes
 * of it, and the registered rows that it is made from.
 *
 * Belongs to source.c, which asks it to bind; stage.c runs the jobs that it makes.
 */
#ifndef WEIR_REFIT_SHARDED_H
#define WEIR_REFIT_SHARDED_H

#include "refit/border.h"
#include "refit/shards.h"
#include "refit/trainer.h"

typedef struct weir_sharded weir_sharded;

/* Points source->mapping at the plan's, signs the source by it, fills shards and jobs, and opens
 * the border. Where no mesh says who holds what, waits for the other ranks to say it. On failure
 * source.c releases all of it. */
weir_status weir_sharded_bind(weir_trainer *trainer, const weir_tensor_shard *shards,
                              size_t n_shards);
/* Takes new pointers for shards of the same layout; ERR_LAYOUT when it is another. */
weir_status weir_sharded_rebind(weir_trainer *trainer, const weir_tensor_shard *shards,
                                size_t n_shards);
void weir_sharded_close(weir_sharded *sharded); /* accepts NULL; the plan stays */

/* Lets other ranks read the rows of `version` that they need of this one. */
weir_status weir_sharded_lend(weir_sharded *sharded, uint64_t version);
/* Waits for the rows that this rank needs of others: jobs that borrow are whole then. */
weir_status weir_sharded_borrow(weir_sharded *sharded, uint64_t version);
/* Converts those of jobs [first_job, first_job + n_jobs) that are by magnitude: shard i's bytes to
 * its offset in `data`, its digest added to digests[i]. Accepts NULL: there are none. */
weir_status weir_sharded_convert(weir_sharded *sharded, unsigned char *data, size_t first_job,
                                 size_t n_jobs, weir_digest *digests);
/* After ERR_NONFINITE, of tensors in host memory: records which weight of the whole model it was,
 * instead of a place within a job; or that it is another rank's. */
void weir_sharded_name_nonfinite(const weir_sharded *sharded);

#endif
