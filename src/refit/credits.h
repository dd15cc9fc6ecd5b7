/* SPDX-License-Identifier: Apache-2.0 */
/* credits.h - who may still read which group of a window, and so which buffer may be filled anew.
 *
 * A reader asks for the groups of its part in order: asking for one says that all before it have
 * been read. That is its credit. Of every worker of the engine n_replicas readers are waited for,
 * and all others that came in time with them. Pure: no clock of its own, no lock, no I/O.
 *
 * A version is offered until it has been read. Sending it is a round; a round that fails may be
 * followed by another, and whoever was in the midst of the old one is told that it is off.
 *
 * Groups that are broadcast (group_cast.h) are sent to those who wait when the round begins, its
 * members: nothing of theirs is ever gone, whoever comes later is late, and none of them can be
 * replaced.
 */
#ifndef WEIR_REFIT_CREDITS_H
#define WEIR_REFIT_CREDITS_H

#include <stdbool.h>
#include <stdint.h>

#include "directory/client.h"

#define WEIR_CREDIT_TEXT 512
#define WEIR_MAX_READERS 65536

typedef enum weir_group_state {
    WEIR_GROUP_WAIT = 0,  /* not made yet: ask again */
    WEIR_GROUP_READY = 1, /* its bytes are there */
    WEIR_GROUP_GONE = 2,  /* overwritten: the reader came too late for this round or version */
    WEIR_GROUP_OFF = 3    /* the round that the reader is in has failed */
} weir_group_state;

typedef struct weir_reader {
    char id[WEIR_NAME_BYTES];
    uint32_t worker;  /* of its engine */
    uint32_t first;   /* the group that it asked for when it came */
    uint32_t next;    /* and last */
    bool left;        /* gave up, for the reason in `why` */
    uint64_t seen_ns; /* when it asked */
    /* Of groups that are broadcast: */
    bool fresh;  /* did not stand in its broadcast groups when it asked */
    bool member; /* of the round; and of those: */
    bool began;  /* has said so itself */
    bool joined; /* stands in all of its groups */
    char why[WEIR_CREDIT_TEXT];
} weir_reader;

typedef struct weir_credits {
    uint32_t n_groups, n_workers, n_buffers;
    const unsigned char *reads; /* weir_groups_readers() */
    uint32_t *counts;           /* n_workers: scratch */
    weir_reader *readers;
    size_t n_readers, readers_room;
    bool casts;                   /* set by who opens it: groups are broadcast */
    bool sending, sent;           /* a round is under way; one has ended well */
    bool withdrawn;               /* there will be none */
    uint32_t round;               /* of all versions; 0: there was none */
    unsigned n_replicas;          /* that this round is for */
    uint32_t oldest, made;        /* groups [oldest, made) can be read */
    char why[WEIR_CREDIT_TEXT];   /* the last round failed */
    char undone[WEIR_NAME_BYTES]; /* had all of it in this round or before, and does not hold it */
} weir_credits;

/* `credits` is zeroed; `reads` is borrowed. */
weir_status weir_credits_open(weir_credits *credits, uint32_t n_groups, uint32_t n_workers,
                              uint32_t n_buffers, const unsigned char *reads);
void weir_credits_close(weir_credits *credits);

/* Another version: nobody has come for it. */
void weir_credits_reset(weir_credits *credits);
/* A round begins. Readers that have come meanwhile count when they were seen in the last moments,
 * and those that hold all of it from an earlier round; those that gave up are remembered. */
void weir_credits_begin(weir_credits *credits, unsigned n_replicas, uint64_t now_ns);
/* The buffer of this group is filled from now on: what it held is gone. */
void weir_credits_fill(weir_credits *credits, uint32_t group);
void weir_credits_made(weir_credits *credits); /* it can be read */
/* NULL: all is read. Otherwise why the round is off. */
void weir_credits_end(weir_credits *credits, const char *why);
/* The version is offered no more. */
void weir_credits_withdraw(weir_credits *credits, const char *why);

/* Takes what a reader says. ERR_INVALID for what no reader of this engine says. *out is what the
 * reader is to do; the round that it is in from then on is credits->round while one is under way.
 */
weir_status weir_credits_ask(weir_credits *credits, const weir_group_ask *ask, uint64_t now_ns,
                             weir_group_state *out);

/* Whom a wait is for. */
typedef struct weir_credit_gap {
    const weir_reader *reader; /* that has not gone on; NULL: too few have come of `worker` */
    uint32_t worker, n_there;
} weir_credit_gap;
/* Whether all have read this group; n_groups: all of them. */
bool weir_credits_passed(const weir_credits *credits, uint32_t group, weir_credit_gap *out_gap);
/* Whether readers of n_replicas have come for every worker that is sent something. */
bool weir_credits_gathered(const weir_credits *credits, unsigned n_replicas, uint64_t now_ns,
                           weir_credit_gap *out_gap);
/* The member of that name; NULL: it is none. */
const weir_reader *weir_credits_member(const weir_credits *credits, const char *id);
/* Whether groups are being broadcast without that reader; no more once all have them, or one has
 * left: such a round is over, though its trainer may not know yet. */
bool weir_credits_left_out(const weir_credits *credits, const char *id);
/* A member that does not stand in its broadcast groups yet; NULL: all do. */
const weir_reader *weir_credits_outside(const weir_credits *credits);
/* A reader that gave up and that nobody can replace any more; NULL: there is none. */
const weir_reader *weir_credits_lost(const weir_credits *credits);
/* Of how many engines readers have come for every worker that reads something: seen in the last
 * moments, or holding all of it from an earlier round. */
uint32_t weir_credits_ready(const weir_credits *credits, uint64_t now_ns);
/* Grows whenever a reader goes on, a member where groups are broadcast; coming is none. It falls
 * when one leaves: what counts is only what is more than ever before. */
uint64_t weir_credits_progress(const weir_credits *credits);

#endif
