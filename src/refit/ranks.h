/* SPDX-License-Identifier: Apache-2.0 */
/* ranks.h - the other ranks of this trainer, found in the directory and asked until each has given
 * what is wanted of it.
 *
 * Ranks find each other by their entries: INITIALIZING until the first version is published. Of
 * several entries for one rank the newest counts, and a rank that does not answer, or has not what
 * is wanted, is looked up again: it may have been started anew.
 *
 * Threads    the trainer's.
 * Errors     ERR_TIMED_OUT names the first rank that is missing, and what there was of it.
 */
#ifndef WEIR_REFIT_RANKS_H
#define WEIR_REFIT_RANKS_H

#include "refit/trainer.h"

#define WEIR_RANK_WHO (2 * WEIR_NAME_BYTES)

/* One rank, as far as it is known. Set `rank` and leave the rest zero. */
typedef struct weir_known_rank {
    uint32_t rank;
    char slot[32];                   /* "rank-3" */
    char worker_id[WEIR_NAME_BYTES]; /* "": no entry of it was found yet */
    char endpoint[WEIR_NAME_BYTES];  /* of its manifest service */
    char who[WEIR_RANK_WHO];         /* "trainer rank 3 (worker trainer-3-9f3c12ab)" */
    bool done;                       /* it has given what is wanted */
    bool waits;                      /* it is here, and waits for others: named after those */
    char found[2 * WEIR_NAME_BYTES]; /* what there was instead, when it was asked last */
    const weir_source_ref *entry;    /* during a look-up: its newest */
} weir_known_rank;

typedef struct weir_rank_search {
    weir_trainer *trainer;
    weir_known_rank *ranks;
    size_t n_ranks;
    const char *wanted; /* for the error: "rows of version 5" */
    /* Asks ranks[i], whose worker is known: OK sets `done`, or that of any other rank to false;
     * IN_PROGRESS says in `found` what it has instead; PEER_LOST and TIMED_OUT are no answer. Any
     * other status ends the search. */
    weir_status (*ask)(void *context, size_t i);
    void *context;
} weir_rank_search;

/* Makes this rank known to the others. An entry that is there already stays: once a version was
 * published it is what replicas find it by. */
weir_status weir_ranks_announce(weir_trainer *trainer);

/* Asks all ranks that are not done, again and again, until all are; at most timeout_ms. Looks at
 * the directory only after those that are known have been asked. */
weir_status weir_ranks_search(const weir_rank_search *search);

#endif
