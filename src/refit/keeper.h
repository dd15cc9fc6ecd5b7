/* SPDX-License-Identifier: Apache-2.0 */
/* keeper.h - the heartbeat of a worker: a thread that keeps the directory's records of it alive,
 * and says how far a refit that takes long has come.
 *
 * Renews the worker's registration, the lease it holds and its source entry every third of the
 * lease time, each whole, so a directory that was restarted knows the worker again; one that has
 * lost what the worker has published, or holds, is told of that as well. Heartbeats say nothing
 * about readiness: the source entry repeats what the worker last announced.
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
/* Accepts NULL. A call under way gets half a second, then it is cancelled. */
void weir_keeper_close(weir_keeper *keeper);
/* The worker leaves: from here on a pause waits no longer than that either. Accepts NULL. */
void weir_keeper_hurry(weir_keeper *keeper);
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

/* What is held, as `word` said it to the directory, which has the entry as source_id: the next
 * announcement of another version ends that. */
void weir_keeper_held(weir_keeper *keeper, const weir_acknowledgement *word, const char *source_id);
/* A shard that the directory has taken: until it is retired, a directory that does not know the
 * worker's entry any more gets it again, whole, under the same uid. Between pause and resume. What
 * the request points to is copied, but for the slots' names, which must live as long as the keeper.
 */
void weir_keeper_published(weir_keeper *keeper, const weir_publish_request *request,
                           const weir_publish_answer *answer);
/* What the directory says later of a version that was published. */
void weir_keeper_remember(weir_keeper *keeper, const char *uid, const weir_slot_marks *marks);
/* A directory that had lost the version does not take it again: why. */
bool weir_keeper_is_refused(weir_keeper *keeper, const char *uid, char out_why[WEIR_NAME_BYTES]);
/* The directory did not know the worker's entry: it has lost the rest too. */
void weir_keeper_forgotten(weir_keeper *keeper);
/* Ends that, once no renewal is under way. out_uid: the version's by now, which is another one
 * where another rank was there first; `uid` when nothing is known of it. */
void weir_keeper_retire(weir_keeper *keeper, const char *uid, char out_uid[WEIR_ID_BYTES]);
/* The uid that was given, of a version that has this one by now; false: of none. From any thread.
 */
bool weir_keeper_find(weir_keeper *keeper, const char *uid, char out_uid[WEIR_ID_BYTES]);

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
