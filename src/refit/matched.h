/* SPDX-License-Identifier: Apache-2.0 */
/* matched.h - one broadcast group of a rank as its trainer and its readers stand in it, wherever
 * the memory lies: streams tell how far a GPU is, the transport itself tells it of host memory.
 *
 * Rank 0 sends. Broadcasts end in the order in which they were queued.
 *
 * Threads    one at a time.
 * Errors     as of weir_transport_ops: ERR_TIMED_OUT, ERR_PEER_LOST. A group that has failed once
 *            fails for ever.
 */
#ifndef WEIR_REFIT_MATCHED_H
#define WEIR_REFIT_MATCHED_H

#include "refit/work.h"
#include "refit/worker.h"

#define WEIR_MATCHED_AHEAD 8u /* broadcasts that are queued at once, at most */

typedef struct weir_matched weir_matched;

typedef struct weir_matched_options {
    weir_link link;  /* of a transport that is WEIR_CAP_MATCHED */
    weir_work *work; /* of the memory that is broadcast */
    const void *key; /* WEIR_GROUP_KEY_BYTES (copied) */
    uint32_t rank, n_ranks;
    unsigned timeout_ms; /* to join */
    const char *who;     /* for errors (copied) */
} weir_matched_options;

/* Begins to join; returns at once. Gives *out whether or not the others ever come. */
weir_status weir_matched_open(const weir_matched_options *options, weir_matched **out);
/* Begins to close, without waiting, and nothing but closing follows: of all groups that are left at
 * once, before the first is closed. Accepts NULL. */
void weir_matched_leave(weir_matched *matched, bool abort);
/* abort: what is queued is cancelled; false only when all of it has ended. Accepts NULL. */
void weir_matched_close(weir_matched *matched, bool abort);
const void *weir_matched_key(const weir_matched *matched);

/* IN_PROGRESS until all ranks are in. */
weir_status weir_matched_joined(weir_matched *matched);
/* Queues one broadcast of rank 0 to all others; every rank names as many bytes. At most
 * WEIR_MATCHED_AHEAD are under way. *out_ticket stands for it. */
weir_status weir_matched_queue(weir_matched *matched, void *data, uint64_t n_bytes,
                               uint64_t *out_ticket);
/* IN_PROGRESS until it has ended here: rank 0 may overwrite the bytes, the others have them. */
weir_status weir_matched_ended(weir_matched *matched, uint64_t ticket);

#endif
