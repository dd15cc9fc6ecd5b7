/* SPDX-License-Identifier: Apache-2.0 */
/* vote.c - one lock, one condition; verdicts are made by whoever comes last, fails, or waits in
 * vain. */
#include "broadcast/vote.h"

#include <limits.h>
#include <pthread.h>
#include <time.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "base/error.h"

#define OPEN WEIR_IN_PROGRESS
#define NS_PER_MS 1000000ull
#define NS_PER_S 1000000000ull

/* The last that a worker has said. */
typedef struct said {
    int ballot; /* -1: nothing in this round */
    uint64_t version;
    weir_status status;
} said;

struct weir_vote {
    pthread_mutex_t lock;
    pthread_cond_t decided;
    uint32_t n_workers, culprit;
    unsigned later_ms;
    weir_status verdicts[WEIR_N_BALLOTS];
    weir_deadline deadlines[WEIR_N_BALLOTS]; /* 0: the verdict before is not made */
    said said[];
};

/* ---- opening ---------------------------------------------------------------------------------*/

weir_status weir_vote_open(uint32_t n_workers, weir_vote **out)
{
    pthread_condattr_t monotonic;
    weir_vote *vote = weir_alloc_zeroed(1, sizeof(*vote) + n_workers * sizeof(said));
    if (vote == NULL)
        return WEIR_ERR_NO_MEMORY;
    pthread_mutex_init(&vote->lock, NULL);
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&vote->decided, &monotonic);
    pthread_condattr_destroy(&monotonic);
    vote->n_workers = n_workers;
    weir_vote_begin(vote, 0, 0);
    *out = vote;
    return WEIR_OK;
}

void weir_vote_close(weir_vote *vote)
{
    if (vote == NULL)
        return;
    pthread_cond_destroy(&vote->decided);
    pthread_mutex_destroy(&vote->lock);
    weir_free(vote);
}

void weir_vote_begin(weir_vote *vote, unsigned first_ms, unsigned later_ms)
{
    pthread_mutex_lock(&vote->lock);
    vote->culprit = WEIR_NO_CULPRIT;
    vote->later_ms = later_ms;
    for (uint32_t i = 0; i < vote->n_workers; i++)
        vote->said[i] = (said){ .ballot = -1 };
    for (int i = 0; i < WEIR_N_BALLOTS; i++) {
        vote->verdicts[i] = OPEN;
        vote->deadlines[i] = 0;
    }
    vote->deadlines[WEIR_BALLOT_LANDED] = weir_deadline_in(first_ms);
    pthread_mutex_unlock(&vote->lock);
}

/* ---- verdicts; with the lock -----------------------------------------------------------------*/

/* One that is not OK is the verdict of all that follow, to the last: who is untouched says so for
 * himself. */
static void decide(weir_vote *vote, int ballot, weir_status status)
{
    if (vote->verdicts[ballot] != OPEN)
        return;
    vote->verdicts[ballot] = status;
    if (status != WEIR_OK)
        for (int later = ballot + 1; later <= WEIR_BALLOT_TAKEN; later++)
            decide(vote, later, status);
    else if (ballot < WEIR_BALLOT_TAKEN)
        vote->deadlines[ballot + 1] = weir_deadline_in(vote->later_ms);
    pthread_cond_broadcast(&vote->decided);
}

static bool is_of_one_version(const weir_vote *vote)
{
    for (uint32_t i = 1; i < vote->n_workers; i++) {
        if (vote->said[i].version != vote->said[0].version)
            return false;
    }
    return true;
}

static void decide_what_all_have_said(weir_vote *vote, int ballot)
{
    for (uint32_t i = 0; i < vote->n_workers; i++) {
        if (vote->said[i].ballot < ballot)
            return;
    }
    if (ballot == WEIR_BALLOT_LANDED && !is_of_one_version(vote))
        decide(vote, ballot, WEIR_ERR_REFUSED);
    else
        decide(vote, ballot, WEIR_OK);
}

/* The first ballot that is not decided is where a failure counts. */
static void take(weir_vote *vote, uint32_t worker, int ballot, uint64_t version, weir_status mine)
{
    vote->said[worker] = (said){ ballot, version, mine };
    if (mine == WEIR_OK) {
        decide_what_all_have_said(vote, ballot);
        return;
    }
    bool is_fault =
        ballot != WEIR_BALLOT_UNTOUCHED; /* there it says what it has, not that it failed */
    if (is_fault && vote->culprit == WEIR_NO_CULPRIT && vote->verdicts[ballot] == OPEN)
        vote->culprit = worker;
    for (int i = 0; i <= ballot; i++)
        decide(vote, i, mine);
}

/* ---- casting ---------------------------------------------------------------------------------*/

static unsigned bound_of(const weir_vote *vote, weir_ballot ballot)
{
    unsigned twice = vote->later_ms > UINT_MAX / 2 ? UINT_MAX : 2 * vote->later_ms;
    return ballot == WEIR_BALLOT_UNTOUCHED ? twice : vote->later_ms;
}

static void wait_until(weir_vote *vote, weir_deadline deadline)
{
    struct timespec until = { .tv_sec = (time_t)(deadline / NS_PER_S),
                              .tv_nsec = (long)(deadline % NS_PER_S) };
    pthread_cond_timedwait(&vote->decided, &vote->lock, &until);
}

weir_status weir_vote_cast(weir_vote *vote, uint32_t worker, weir_ballot ballot, uint64_t version,
                           weir_status mine)
{
    pthread_mutex_lock(&vote->lock);
    take(vote, worker, (int)ballot, version, mine);
    if (vote->deadlines[ballot] == 0) /* nobody casts in the one before it */
        vote->deadlines[ballot] = weir_deadline_in(bound_of(vote, ballot));
    while (vote->verdicts[ballot] == OPEN) {
        if (weir_deadline_passed(vote->deadlines[ballot]))
            decide(vote, (int)ballot, WEIR_ERR_TIMED_OUT);
        else
            wait_until(vote, vote->deadlines[ballot]);
    }
    weir_status verdict = vote->verdicts[ballot];
    pthread_mutex_unlock(&vote->lock);
    return verdict;
}

void weir_vote_leave(weir_vote *vote, uint32_t worker, weir_status last)
{
    pthread_mutex_lock(&vote->lock);
    if (last != WEIR_OK || vote->said[worker].ballot != WEIR_BALLOT_TAKEN)
        take(vote, worker, WEIR_BALLOT_TAKEN, vote->said[worker].version,
             last != WEIR_OK ? last : WEIR_ERR_INTERNAL);
    pthread_mutex_unlock(&vote->lock);
}

bool weir_vote_stop(weir_vote *vote, weir_status status)
{
    pthread_mutex_lock(&vote->lock);
    decide(vote, WEIR_BALLOT_LANDED, status);
    bool is_stopped = vote->verdicts[WEIR_BALLOT_LANDED] != WEIR_OK;
    pthread_mutex_unlock(&vote->lock);
    return is_stopped;
}

uint32_t weir_vote_culprit(weir_vote *vote)
{
    pthread_mutex_lock(&vote->lock);
    uint32_t culprit = vote->culprit;
    pthread_mutex_unlock(&vote->lock);
    return culprit;
}
