/* SPDX-License-Identifier: Apache-2.0 */
/* plan_traffic.h - what a plan makes every rank, worker and pair of them hold and move in one
 * refit: the shares of all ranks, added up.
 */
#ifndef WEIR_TOOLS_PLAN_TRAFFIC_H
#define WEIR_TOOLS_PLAN_TRAFFIC_H

#include "plan_model.h"

#define WEIR_PLAN_LENDS 2 /* buffers of what it lends */

/* Of one trainer rank. */
typedef struct weir_rank_traffic {
    uint64_t slot_bytes, n_shards; /* one version's converted bytes, in how many pieces */
    uint64_t sent_bytes;           /* to all workers */
    uint64_t lent_bytes, borrowed_bytes;
    uint64_t n_jobs, job_bytes; /* conversions, and what they read and write */
} weir_rank_traffic;

/* Of one worker; those of all replicas are alike. */
typedef struct weir_worker_traffic {
    uint64_t received_bytes, n_copies;
    uint64_t needed_bytes;    /* of its parameters, padding left out */
    uint64_t parameter_bytes; /* with padding; derived parameters are the engine's own affair */
} weir_worker_traffic;

/* Bytes from a rank to a worker of each replica, or (loans) to another rank. */
typedef struct weir_pair_traffic {
    uint32_t from, to;
    uint64_t n_bytes, n_copies;
} weir_pair_traffic;

typedef struct weir_pair_list {
    weir_pair_traffic *pairs;
    size_t n, room;
} weir_pair_list;

typedef struct weir_plan_traffic {
    weir_rank_traffic *ranks;     /* n_ranks */
    weir_worker_traffic *workers; /* n_parts */
    weir_pair_list reads, loans;
    uint64_t n_copies, n_bytes, n_needed_bytes; /* of all replicas */
    uint64_t largest_copy_bytes, n_jobs, n_loan_bytes, n_border_pieces;
    double seconds, slowest_share_seconds; /* for the shares of all ranks; of one */
} weir_plan_traffic;

/* Returns an exit code, after having printed why when it is not 0; weir_plan_traffic_close()
 * follows in any case. */
int weir_plan_traffic_open(const weir_plan_model *model, weir_plan_traffic *traffic);
void weir_plan_traffic_close(weir_plan_traffic *traffic);

#endif
