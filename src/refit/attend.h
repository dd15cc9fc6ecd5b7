/* SPDX-License-Identifier: Apache-2.0 */
/* attend.h - the replica's half of stop 6 where bytes are pushed: it says that it wants a version
 * and where its bytes go, pauses the engine, and checks every step that comes.
 *
 *   attend.c   one round with one trainer rank
 *   turn.c     one step: verify, pass on, write under the undo log
 */
#ifndef WEIR_REFIT_ATTEND_H
#define WEIR_REFIT_ATTEND_H

#include "refit/places.h"
#include "refit/remote.h"
#include "refit/undo.h"
#include "refit/work.h"

struct weir_replica;

#define WEIR_TURNS 4u /* steps looked after at once */

/* One step on its way through the replica. */
typedef struct weir_turn {
    weir_arena arena; /* the step and what is as long as it */
    weir_round_step step;
    weir_digest *found;      /* parallel to its parts */
    weir_work_copy *commits; /* staged: two per part */
    weir_task *digest, *pass, *commit;
} weir_turn;

/* What a replica keeps of one trainer rank that pushes to it. */
typedef struct weir_attendance {
    struct weir_replica *replica;
    weir_remote *remote;
    weir_places next; /* of the member that steps are passed on to */
    bool passes;
    weir_group *group; /* of broadcasts */
    weir_link link;    /* that the group is of */
    weir_turn turns[WEIR_TURNS];

    /* Of the round at hand. */
    weir_arena arena;        /* what is as long as the rank's shards */
    unsigned char **targets; /* where each shard lies among the live parameters, or in the loader */
    uint32_t *tensors;       /* which of the loader's each is; NULL without a loader */
    uint64_t *received_bytes;        /* of each shard */
    weir_digest *digests;            /* of what was received and verified */
    weir_arena scratch;              /* of one message */
    char version_uid[WEIR_ID_BYTES]; /* that every step must be of */
    uint64_t version;
    uint64_t largest_step_bytes;
    uint32_t n_members;                                     /* of the round */
    uint32_t n_received, n_verified, n_passed, n_committed; /* steps */
    bool called;                                            /* the round has begun */
    bool exposed; /* bytes of the round may have been written here */
    bool ended;
    uint64_t done_bytes;
} weir_attendance;

/* attend.c. Gives *out. */
weir_status weir_attendance_open(struct weir_replica *replica, weir_remote *remote,
                                 weir_attendance **out);
void weir_attendance_close(weir_attendance *attendance); /* accepts NULL */

/* Whether bytes come through windows: staged, or on their way to a loader. */
bool weir_attend_by_windows(const struct weir_replica *replica);

/* turn.c. Takes in a step that was told: checks it against the rank's layout and begins to verify
 * it and to pass it on. */
weir_status weir_turn_begin(weir_attendance *attendance, const weir_round_step *step);
/* The turn that the next step will take: its arena is where that step is to be decoded. */
weir_turn *weir_turn_next(weir_attendance *attendance);
/* Moves all turns on; tells the trainer what it needs to know. Sets *out_progress. */
weir_status weir_turns_advance(weir_attendance *attendance, bool *out_progress);
/* Whether every step that came is verified, passed on and written. */
bool weir_turns_settled(const weir_attendance *attendance);
/* Room for one more step. */
bool weir_turns_have_room(const weir_attendance *attendance);
/* Waits, bounded, until nothing of a failed round reads or writes any more. */
void weir_turns_end(weir_attendance *attendance);

#endif
