/* SPDX-License-Identifier: Apache-2.0 */
/* vote.h - how the workers of one server come to one verdict: all of them or none.
 *
 * A round has three ballots, in this order: a version's bytes are here and verified; they are in
 * place; the engine has taken them. Where that was not for all, a direct install has one more: no
 * byte has landed. A ballot's verdict is made once, for those who come late too, so no two workers
 * ever hear different ones: OK when every worker has said OK to it, otherwise the first failure, or
 * ERR_TIMED_OUT when not all came in time.
 *
 * Threads    any; each worker casts in its own.
 */
#ifndef WEIR_BROADCAST_VOTE_H
#define WEIR_BROADCAST_VOTE_H

#include <stdbool.h>
#include <stdint.h>

#include "weir/status.h"

typedef enum weir_ballot {
    WEIR_BALLOT_LANDED = 0,
    WEIR_BALLOT_CHANGED = 1,
    WEIR_BALLOT_TAKEN = 2,
    WEIR_BALLOT_UNTOUCHED = 3, /* whatever the verdicts before it */
    WEIR_N_BALLOTS
} weir_ballot;

#define WEIR_NO_CULPRIT UINT32_MAX

typedef struct weir_vote weir_vote;
weir_status weir_vote_open(uint32_t n_workers, weir_vote **out);
void weir_vote_close(weir_vote *vote); /* accepts NULL; nobody casts any more */

/* A new round, while nobody casts. The first ballot is open for first_ms, each later one for
 * later_ms from the verdict before it; that of those who are untouched, for twice as long: they may
 * come from waits of their own. */
void weir_vote_begin(weir_vote *vote, unsigned first_ms, unsigned later_ms);
/* Waits for the verdict. A worker whose round ends early casts its failure in any later ballot. The
 * version is compared in the first one: ERR_REFUSED where workers found different ones. */
weir_status weir_vote_cast(weir_vote *vote, uint32_t worker, weir_ballot ballot, uint64_t version,
                           weir_status mine);
/* This worker casts no more: a failure, or the last ballot's OK was its last word. */
void weir_vote_leave(weir_vote *vote, uint32_t worker, weir_status last);
/* Ends the first ballot with `status` where it is open. False: its verdict was OK, live parameters
 * may have changed. */
bool weir_vote_stop(weir_vote *vote, weir_status status);
/* The worker whose failure was the first; WEIR_NO_CULPRIT: none's. */
uint32_t weir_vote_culprit(weir_vote *vote);

#endif
