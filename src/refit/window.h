/* SPDX-License-Identifier: Apache-2.0 */
/* window.h - a sharded version that is read while it is made: groups of shards pass through a few
 * buffers instead of lying in a slot whole.
 *
 * Publishing says what the version consists of; the bytes are made while weir_trainer_wait() waits
 * for the replicas. The trainer's slots are the buffers, and the first of them stands for the
 * version.
 *
 * Threads    the trainer's; weir_window_answer() the manifest service's, under the trainer's lock.
 * Errors     ERR_TIMED_OUT names the worker, the group and the version that is waited for;
 *            ERR_PEER_LOST a reader that has given up, with its reason.
 */
#ifndef WEIR_REFIT_WINDOW_H
#define WEIR_REFIT_WINDOW_H

#include "refit/credits.h"
#include "refit/groups.h"

typedef struct weir_window {
    weir_groups groups;
    weir_digest *digests;     /* of the source's shards, group by group */
    weir_digest *making;      /* the same while they are made, the trainer's thread alone */
    const weir_slot *version; /* that is offered; NULL: none */
    char uid[WEIR_ID_BYTES];  /* that answers are for, also when it is offered no more */
    weir_credits credits;
    weir_buffer answer;
    pthread_cond_t changed; /* by the monotonic clock: a reader has said something */
} weir_window;

/* Whether the trainer was asked for one. */
bool weir_window_is_wanted(const weir_trainer *trainer);
/* How large a piece the share may have, so that groups fill the buffers well; 0: any. */
uint64_t weir_window_most_piece(const weir_trainer *trainer);
/* Cuts what trainer->source makes into groups, and sets trainer->window. */
weir_status weir_window_open(weir_trainer *trainer);
/* Takes it out of trainer->window; there may be none. */
void weir_window_close(weir_trainer *trainer);

/* Converts all of it, to see that it can be: nobody reads yet. */
weir_status weir_window_try(weir_trainer *trainer);
/* Readers may come for the version in `slot`, which has its uid. */
void weir_window_offer(weir_trainer *trainer, const weir_slot *slot);
/* The version goes: those who are in the midst of it are told. */
void weir_window_withdraw(weir_trainer *trainer);
/* Stop 6, the trainer's end: sends `version` to n_replicas engines. */
weir_status weir_window_serve(weir_trainer *trainer, uint64_t version, unsigned n_replicas,
                              unsigned timeout_ms);
/* How many engines wait for it. */
weir_status weir_window_ready(weir_trainer *trainer, uint64_t version, unsigned *out_n);

/* Answers a reader: false when the version is not this window's, or the request makes no sense. The
 * lock is held, and what *out points to lasts until it is released. */
bool weir_window_answer(weir_window *window, const weir_manifest_request *request,
                        weir_manifest_found *out);

#endif
