/* SPDX-License-Identifier: Apache-2.0 */
/* keeper.h - the heartbeat of a worker: a thread that keeps the directory's records of it alive,
 * and says how far a refit that takes long has come.
 *
 * Renews the worker's registration, the lease it holds and its source entry every third of the
 * lease time, each whole, so a directory that was restarted knows the worker again. Heartbeats say
 * nothing about readiness: the source entry repeats what the worker last announced.
 *
 * Of a refit that lasts longer than half a second it tells the directory once a second, for people
 * who watch; a quicker one costs no message.
 *
 * Threads    calls may come from the handle's thread; the keeper has its own client. Who changes
 * one of these records in the directory does so between pause and resume, or a renewal under way
 * could bring back what was just replaced. Errors     renewals that fail are logged and tried again
 * after a second; they fail nobody.
 */
#ifndef WEIR_REFIT_KEEPER_H
#define WEIR_REFIT_KEEPER_H

#include "directory/client.h"

typedef struct weir_keeper weir_keeper;

typedef struct weir_keeper_options {
    const char *directory;
    const char *worker_id;
    const char *model;
    weir_worker_role role;
    unsigned lease_s;
    unsigned timeout_ms; /* bound of a call; 5 s at most */
    const weir_rpc_security *security;
} weir_keeper_options;

weir_status weir_keeper_open(const weir_keeper_options *options, weir_keeper **out);
void weir_keeper_close(weir_keeper *keeper); /* accepts NULL */
/* Between the two no renewal is under way: waits for the end of one, which takes a call's bound at
 * most. */
void weir_keeper_pause(weir_keeper *keeper);
void weir_keeper_resume(weir_keeper *keeper);
/* Renew the lease on this version from now on; NULL: none. */
void weir_keeper_hold(weir_keeper *keeper, const char *version_uid);
/* Repeat this source entry from now on. `now`: send it at once as well, from the keeper's thread.
 */
void weir_keeper_announce(weir_keeper *keeper, const weir_source_record *record, bool now);
/* Has this said as well, once, and at once, from the keeper's thread: the directory was not there
 * when it was to hear it. */
void weir_keeper_acknowledge(weir_keeper *keeper, const weir_acknowledgement *acknowledgement);

/* ---- how far a refit has come; each accepts a keeper of NULL
 * -----------------------------------*/

/* Where it stands. */
typedef struct weir_keeper_step {
    const char *stop; /* "transfer": a constant */
    uint64_t version;
    uint64_t done_bytes, total_bytes; /* both 0: as they were */
} weir_keeper_step;

/* Between the two a refit is under way; it counts from the first step that is noted. Whatever is
 * announced or acknowledged ends it as well. What is noted outside of one is not told. */
void weir_keeper_begin(weir_keeper *keeper);
void weir_keeper_end(weir_keeper *keeper);
void weir_keeper_note(weir_keeper *keeper, const weir_keeper_step *step);
/* Whom it waits for longest, until the next stop. */
void weir_keeper_waits_for(weir_keeper *keeper, const char *whom);

#endif
