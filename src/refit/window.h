/* SPDX-License-Identifier: Apache-2.0 */
/* window.h - a sharded version that is read while it is made, or broadcast: groups of shards pass
 * through a few buffers instead of lying in a slot whole.
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
#include "refit/group_cast.h"
#include "refit/groups.h"

typedef struct weir_window {
    weir_groups groups;
    weir_digest *digests;     /* of the source's shards, group by group */
    weir_digest *making;      /* the same while they are made, the trainer's thread alone */
    const weir_slot *version; /* that is offered; NULL: none */
    char uid[WEIR_ID_BYTES];  /* that answers are for, also when it is offered no more */
    uint64_t number;          /* and its number */
    weir_credits credits;
    weir_audiences audiences; /* of groups that are broadcast, as the next */
    weir_cast *cast;          /* NULL: groups are read */
    const char *run;          /* the trainer's */
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
void weir_window_withdraw(weir_trainer *trainer, const char *why);
/* Stop 6, the trainer's end: sends `version` to n_replicas engines. */
weir_status weir_window_serve(weir_trainer *trainer, uint64_t version, unsigned n_replicas,
                              unsigned timeout_ms);
/* ERR_PEER_LOST when one of those who have taken all of what was sent last does not hold it. */
weir_status weir_window_check_held(weir_trainer *trainer, uint64_t version);
/* How many engines wait for it. */
weir_status weir_window_ready(weir_trainer *trainer, uint64_t version, unsigned *out_n);

/* Answers a reader: false when the version is not this window's, or the request makes no sense. The
 * lock is held, and what *out points to lasts until it is released. */
bool weir_window_answer(weir_window *window, const weir_manifest_request *request,
                        weir_manifest_found *out);

/* ---- a round, as window.c and window_cast.c run it -------------------------------------------*/

typedef struct weir_window_round {
    weir_trainer *trainer;
    weir_window *window;
    uint64_t version;
    unsigned n_replicas, timeout_ms;
    weir_deadline deadline; /* renewed by progress, once it is being sent */
    uint64_t progress;      /* the most that there was */
    uint64_t done_bytes;
} weir_window_round;

/* Converts a group into its buffer. */
weir_status weir_window_make(weir_trainer *trainer, uint32_t group);
/* Has every reader done with a group: tells whoever watches. */
void weir_window_group_done(weir_window_round *r, uint32_t group);

/* The lock is held. */
/* The bound begins anew when readers have gone on further than ever in this round: who comes and
 * goes again and again renews nothing. */
void weir_window_note_progress(weir_window_round *r);
void weir_window_await_change(const weir_window_round *r, unsigned wait_us);
/* What a reader's leaving the round is. */
weir_status weir_window_gave_up(const weir_window_round *r, const weir_reader *reader);
/* "; NAME gave up: REASON" of a reader of this worker that came and went, or "". */
const char *weir_window_who_left(const weir_window_round *r, uint32_t worker, char *text,
                                 size_t text_bytes);

/* window_cast.c: the round of a window whose groups are broadcast. */
weir_status weir_window_cast(weir_window_round *r);

#endif
