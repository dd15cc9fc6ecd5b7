/* SPDX-License-Identifier: Apache-2.0 */
/* serve.h - the trainer's half of stop 6 where bytes are pushed: replicas join, say which version
 * they want and where its bytes go, and get it in one round, all at once.
 *
 *   push.c      what is kept from version to version: members, steps, the outlet
 *   members.c   who has joined, what they said last
 *   serve.c     one round: gather, prepare, steps, end
 *   outlet.c    where a step's bytes go: mapped memory of the first member, or windows that are
 *               broadcast
 *
 * Belongs to the trainer's thread: nothing happens between calls, and what members say then waits
 * in their sockets.
 */
#ifndef WEIR_REFIT_SERVE_H
#define WEIR_REFIT_SERVE_H

#include "base/clock.h"
#include "refit/pieces.h"
#include "refit/places.h"
#include "refit/work.h"

#define WEIR_MAX_MEMBERS 256u
#define WEIR_STEPS_AHEAD 3u /* steps in the making at once */

typedef enum weir_member_state {
    WEIR_MEMBER_NEW = 0, /* connected, has not said who it is */
    WEIR_MEMBER_JOINED,  /* waits for news */
    WEIR_MEMBER_READY,   /* wants a version */
    WEIR_MEMBER_CALLED,  /* takes part in the round, sets up */
    WEIR_MEMBER_PAUSED,  /* bytes may come */
    WEIR_MEMBER_DONE,    /* has said how its install went */
} weir_member_state;

/* One replica, as the trainer sees it. */
typedef struct weir_member {
    weir_frame_link *link;
    uint64_t number; /* of all that ever connected: addresses of closed links come again */
    weir_member_state state;
    weir_deadline join_by; /* of one that has not said who it is */
    char worker_id[WEIR_NAME_BYTES];
    weir_arena arena; /* `ready` borrows from it */
    weir_round_ready ready;
    uint32_t n_told, n_passed, n_freed; /* steps of the round */
    bool ended;                         /* was told that that was all */
    weir_status status;                 /* of DONE */
    char text[512];
} weir_member;

typedef struct weir_outlet weir_outlet;

/* What a trainer rank that pushes keeps from version to version. */
typedef struct weir_push {
    weir_worker *worker;
    const weir_source *source;
    weir_frame_listener *listener;
    weir_work *work;
    weir_member *members[WEIR_MAX_MEMBERS];
    size_t n_members;
    uint64_t n_accepted;
    weir_arena scratch; /* of one message */

    weir_arena steps_arena; /* steps and what is as long as them */
    weir_steps steps;
    uint64_t step_limit;  /* that they were cut with; 0: not yet */
    uint64_t n_cuts;      /* so far */
    uint64_t bound_at;    /* binding that they were cut from */
    weir_digest *digests; /* WEIR_MAX_OUTPUTS per piece */
    weir_digest unused;   /* of what is only looked through */
    weir_task *scan;
    weir_outlet *outlet;

    char served_uid[WEIR_ID_BYTES]; /* the version that was served last, and who holds it */
    char served[WEIR_MAX_MEMBERS][WEIR_NAME_BYTES];
    size_t n_served;
} weir_push;

typedef struct weir_push_options {
    const char *listen;    /* host */
    const char *transport; /* through which bytes go */
    uint32_t memory;       /* where the sources lie */
    unsigned device;
    uint64_t window_bytes; /* broadcasts; 0: the default */
} weir_push_options;

/* push.c. `worker` and `source` must outlive it. Gives *out. */
weir_status weir_push_open(weir_worker *worker, const weir_source *source,
                           const weir_push_options *options, weir_push **out);
void weir_push_close(weir_push *push); /* accepts NULL */
/* "HOST:PORT" to join at. */
const char *weir_push_address(const weir_push *push);

/* Cuts the steps, unless they stand: the binding and the limit are the same. */
weir_status weir_push_cut(weir_push *push, uint64_t step_limit, bool keep_masters);

/* What a round sends. */
typedef struct weir_push_version {
    uint64_t version;
    const char *uid;
    bool keep_masters;
} weir_push_version;

/* Sends a version to all replicas that want it, once `n_members` do or hold it from an earlier
 * call; returns when all of them have said that they hold it. ERR_TIMED_OUT names who is missing;
 * any other error ended the round, and names the replica or the weight. */
weir_status weir_push_serve(weir_push *push, const weir_push_version *version, size_t n_members,
                            unsigned timeout_ms);
/* How many want the version by now, or hold it. */
weir_status weir_push_count_ready(weir_push *push, const weir_push_version *version,
                                  unsigned *out_n);
/* Reads every weight once: ERR_NONFINITE names the first that is not finite. */
weir_status weir_push_scan(weir_push *push, bool keep_masters);

/* ---- members.c -------------------------------------------------------------------------------*/

/* Takes in whoever has connected and whatever has been said; sleeps at most wait_ms when nothing
 * has. A member whose link died, or who talks nonsense, is closed: ERR_PEER_LOST (or its own error)
 * when it had a part in the round, else it is only gone. An Abort of such a member is its error. */
weir_status weir_members_hear(weir_push *push, unsigned wait_ms);
/* Tells all who have joined of a new version; those who still want an older one are refused. */
void weir_members_announce(weir_push *push, const weir_push_version *version);
/* Whoever is READY for another version is told that it is gone. */
void weir_members_refuse_others(weir_push *push, const weir_push_version *version);
/* Whoever is READY for this version is told that it will not come, and why. */
void weir_members_withdraw(weir_push *push, uint64_t version, const char *uid, const char *why);
/* Whether a member has a part in the round that runs. */
bool weir_member_in_round(const weir_member *member);
/* Tells those who have a part in the round that it is off, with the calling thread's last error,
 * and whether not a byte of it was on its way; afterwards nobody has one. */
void weir_members_abort(weir_push *push, weir_status status, bool nothing_sent);
void weir_members_close(weir_push *push);

/* ---- outlet.c --------------------------------------------------------------------------------*/

weir_status weir_outlet_open(weir_push *push, const weir_push_options *options, weir_outlet **out);
void weir_outlet_close(weir_outlet *outlet); /* accepts NULL */
const char *weir_outlet_transport(const weir_outlet *outlet);
bool weir_outlet_broadcasts(const weir_outlet *outlet);
/* The largest step that the members of a round, in this order, and the outlet itself can take. */
uint64_t weir_outlet_step_limit(const weir_outlet *outlet, weir_member *const *members, size_t n);
/* Readies it for a round: maps the first member's places, or makes the group's key (which members
 * are to be told; NULL when the old group stands). */
weir_status weir_outlet_begin(weir_outlet *outlet, weir_member *const *members, size_t n,
                              const void **out_group_key);
/* IN_PROGRESS until every member has joined a new group. */
weir_status weir_outlet_ready(weir_outlet *outlet);

/* Steps run through slots 0 … WEIR_STEPS_AHEAD - 1 in turn. */
/* Queues the making of a step. */
weir_status weir_outlet_start(weir_outlet *outlet, uint32_t step);
/* IN_PROGRESS until a started step is made, its digests known; ERR_NONFINITE. */
weir_status weir_outlet_made(weir_outlet *outlet, uint32_t step);
/* Broadcasts it (nothing to do for mapped memory): after the members were told. */
weir_status weir_outlet_send(weir_outlet *outlet, uint32_t step);
/* IN_PROGRESS until the step's slot may be started again. */
weir_status weir_outlet_sent(weir_outlet *outlet, uint32_t step);
/* ERR_BUSY while something of a round that failed runs on: it uses steps, digests and mapped
 * memory, so none of them may change. */
weir_status weir_outlet_rest(weir_outlet *outlet);
/* After a round that failed: a group is left, and whatever runs is waited for, with a bound. */
void weir_outlet_abort(weir_outlet *outlet);

#endif
