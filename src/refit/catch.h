/* SPDX-License-Identifier: Apache-2.0 */
/* catch.h - the reader's end of groups that are broadcast (group_cast.h has the protocol): its
 * places in the broadcast groups of each rank, and the windows that bytes are caught in.
 *
 *   catch.c         places, windows, and the way from a window to where bytes belong
 *   catch_turns.c   whose group is caught when
 *
 * What is caught lies in a window as in the trainer's buffer, and is verified there; then is copied
 * what would have been read, to where it would have been read. So staging, loading and rolling back
 * are as of any version that is read. Groups of an audience that the reader is in, but of which it
 * needs nothing, are caught and let go.
 *
 * Groups are caught in the order of group_cast.h, over all ranks: whose turn it is not, waits.
 * Which one is the next is known before it is made, so a window is held out as soon as it is free;
 * what the rank says of the group is heard while its bytes are on their way, and nothing is taken
 * without. A GPU verifies and copies meanwhile: nobody waits for it while there is something else
 * to do.
 *
 * Ownership  windows are the replica's, kept from refit to refit, as large as the largest group
 * that any rank broadcasts; broadcast groups are the remote's they are of.
 */
#ifndef WEIR_REFIT_CATCH_H
#define WEIR_REFIT_CATCH_H

#include "refit/landing.h"
#include "refit/manifest.h"
#include "refit/matched.h"

#define WEIR_CATCH_WINDOWS 2u

struct weir_replica;
struct weir_remote;
struct weir_participant;
struct weir_group_pass;

/* A group on its way through the replica. */
typedef struct weir_catch_window {
    void *data;
    struct weir_participant *from; /* NULL: nothing is caught here */
    weir_matched *cast;
    uint64_t turn, ticket; /* of all that was ever caught; of its broadcast group */
    uint32_t group;
    bool is_caught;
    size_t part, end_part; /* of the landing: the next one to copy, one past the last */
} weir_catch_window;

/* Zeroed is valid: nothing was ever caught. */
typedef struct weir_catch {
    weir_catch_window windows[WEIR_CATCH_WINDOWS];
    uint64_t window_bytes; /* each */
    uint64_t n_turns;
    weir_catch_window *taken; /* whose next part is being verified or copied; NULL: of none */
    bool is_copied;           /* it is verified, and is being copied */
    weir_task *digest, *copy;
    weir_work_range *ranges; /* of one part, like the next two */
    weir_digest *found;
    weir_work_rows *rows;
    size_t room; /* copies */
} weir_catch;

/* ---- catch.c ---------------------------------------------------------------------------------*/

/* Whether what the participant publishes is broadcast. */
bool weir_catch_is_cast(const struct weir_participant *participant);
/* Whether this worker is sent some of it. */
bool weir_catch_is_sent(const struct weir_remote *remote);

/* Before a refit: begins to leave the groups, and says so in is_casting, when one of them has
 * broken meanwhile or was left in the midst of a broadcast. */
void weir_catch_look(struct weir_remote *remote);
/* Whether it does not stand in its groups of the rank: it is in none, or not all ranks have joined
 * one of them, or one is broken. */
bool weir_catch_is_fresh(const struct weir_remote *remote);
/* Takes the places that the rank names: keeps those with a known key, begins to join the others,
 * leaves what is not named. ERR_LAYOUT names a tensor that this worker needs and is not sent. */
weir_status weir_catch_enter(struct weir_replica *replica, struct weir_participant *participant,
                             const weir_membership *memberships, size_t n_memberships);
/* IN_PROGRESS until all have joined the groups of the rank. */
weir_status weir_catch_joined(const struct weir_remote *remote);
/* The audience of the first group that not all have joined; WEIR_MAX_AUDIENCES: there is none. */
uint32_t weir_catch_waits_in(const struct weir_remote *remote);
/* The first group from `group` on that this worker is sent; n_groups: there is none. */
uint32_t weir_catch_next(const struct weir_remote *remote, uint32_t group);

/* Windows for what the participants broadcast, taken once and when groups grow; nothing is in them.
 * Before the ranks are asked: where windows grow, all groups are left.
 * ERR_UNSUPPORTED where a transport does not reach this replica's memory. */
weir_status weir_catch_open(struct weir_replica *replica);
void weir_catch_close(struct weir_replica *replica);
/* Begins to digest what lies in a window; one part at a time. Nothing has landed yet. */
weir_status weir_catch_verify(struct weir_replica *replica, const void *window,
                              const weir_landing_part *part);
/* IN_PROGRESS until that is done. Compared with what was published: ERR_CORRUPT names the first
 * copy that differs. */
weir_status weir_catch_verified(struct weir_replica *replica, const weir_landing_part *part);
/* Begins to copy a part to where it would have been read. */
weir_status weir_catch_copy(struct weir_replica *replica, const void *window,
                            const weir_landing_part *part);
/* IN_PROGRESS until that is done. */
weir_status weir_catch_copied(struct weir_replica *replica);
/* Before anything is written where it writes: ERR_TIMED_OUT when what weir_catch_settle() waited
 * for has not ended yet. */
weir_status weir_catch_check_idle(struct weir_replica *replica);
/* After a failure: lets what the GPU is at come to its end, for two seconds at most. */
void weir_catch_settle(struct weir_replica *replica);

/* ---- catch_turns.c ---------------------------------------------------------------------------*/

/* Moves a participant that broadcasts on: joins its groups, asks for the next. */
weir_status weir_catch_step(struct weir_group_pass *pass, struct weir_participant *participant);
/* Moves all windows on: catches what is next, copies and verifies what was caught.
 * ERR_UNSUPPORTED when a loader needs what can never come. */
weir_status weir_catch_turns(struct weir_group_pass *pass);
/* Whether bytes or those who join are waited for, which is not to be slept through. */
bool weir_catch_is_busy(const struct weir_group_pass *pass);
/* ERR_TIMED_OUT, after `waited_s`, naming the rank and the group that hold all others up.
 * `slowest` broadcasts and is not done. */
weir_status weir_catch_time_out(const struct weir_group_pass *pass, double waited_s);

#endif
