/* SPDX-License-Identifier: Apache-2.0 */
/* group_pass.h - one refit of a version that passes through windows: what its files share.
 *
 *   group_ask.c        what is said to the ranks
 *   group_transfer.c   groups that are read, and the course of it all
 *   catch_turns.c      groups that are broadcast
 */
#ifndef WEIR_REFIT_GROUP_PASS_H
#define WEIR_REFIT_GROUP_PASS_H

#include "refit/replica.h"

#define WEIR_GROUP_WAIT_US 16000u /* from one question to the next, at most */

typedef struct weir_group_pass {
    weir_replica *replica;
    const weir_discovery *discovery;
    bool landed, moved;              /* a byte may have; one has, or a group was done */
    bool loads;                      /* into the loader: nothing has landed before it converts */
    const weir_participant *slowest; /* one that is not done */
} weir_group_pass;

/* What it publishes passes through a window, and this worker is to say how far it is. */
bool weir_group_is_asked(const weir_replica *replica, const weir_participant *participant);
/* The group that is asked for next. */
uint32_t weir_group_next(const weir_replica *replica, const weir_participant *participant);

/* Asks for that group, and takes in what is said of it: the round, places in broadcast groups, the
 * digests of its shards. OK: it is there; IN_PROGRESS: it is not yet, ask again. */
weir_status weir_group_ask_once(weir_replica *replica, const weir_discovery *discovery,
                                weir_participant *participant);
/* The same, not before its time has come: what is not there is asked for less and less often. */
weir_status weir_group_ask_in_time(weir_group_pass *pass, weir_participant *participant);

/* A broadcast of the participant has failed, and with it `group`, the first that is not taken: a
 * rank that has given up says why, and the calling thread's last error then does. */
weir_status weir_group_ask_why(weir_group_pass *pass, const weir_participant *participant,
                               uint32_t group, weir_status failed);

/* The part has landed, verified where it has to be by itself: the loader may have it. */
void weir_group_part_landed(weir_group_pass *pass, weir_participant *participant,
                            const weir_landing_part *part);

#endif
