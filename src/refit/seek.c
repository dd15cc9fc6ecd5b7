/* SPDX-License-Identifier: Apache-2.0 */
/* seek.c - finding a version in a directory that only ModelExpress' services are had of.
 *
 * Trainers' entries say which versions there may be; a version counts when its record is READY.
 * What such a directory lacks is made up for here: an entry can say that its version was aborted,
 * and entries are listed by identity, so that those of many replicas do not crowd the trainers'
 * out.
 */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/error.h"
#include "refit/acquire.h"
#include "refit/attempts.h"

#define MAX_NEWS_LINKS 64u
/* A restarted trainer sends no news to those who had joined the old one. */
#define NEWS_WAIT_MS 50u
#define LOOK_FOR_ABORT_MS 500u
#define LOOK_FOR_ANEW_MS 500u

typedef struct search {
    weir_replica *replica;
    uint64_t wish;
    weir_retry retry;
    uint64_t highest; /* that is looked for: falls when a newer one is not READY */
    bool found;       /* a trainer's entry of a version that is wanted */
    uint64_t version;
    unsigned attempt;
    char uid[WEIR_ID_BYTES];
    bool waits;     /* the newest that is wanted is not READY: it is what follows */
    bool forgotten; /* the directory has no record of it */
    uint64_t awaited;
    char awaited_uid[WEIR_ID_BYTES];
    bool any_trainer; /* for the error: what there was instead */
    uint64_t newest;
    weir_version_record record;
    weir_deadline look_for_abort_at, look_for_anew_at;
} search;

/* ---- entries ---------------------------------------------------------------------------------*/

/* A trainer that was started anew may publish the number again that is held. */
static bool is_made_anew(const weir_replica *replica, const weir_source_record *record,
                         const weir_attempt *attempt)
{
    return replica->state == WEIR_REPLICA_HOLDING && record->version == replica->version &&
           attempt->number > replica->attempt &&
           strcmp(record->version_uid, replica->version_uid) != 0;
}

static bool is_later(const search *look, const weir_source_record *record,
                     const weir_attempt *attempt)
{
    return !look->found || record->version > look->version ||
           (record->version == look->version && attempt->number > look->attempt);
}

static weir_status look_at(search *look, const weir_source_ref *ref)
{
    weir_attempt attempt;
    weir_source_record record;
    weir_replica *replica = look->replica;
    weir_status status =
        weir_directory_get_source(replica->worker.client, ref->source_id, ref->worker_id, &record);
    if (status == WEIR_ERR_NOT_FOUND)
        return WEIR_OK; /* gone since it was listed */
    if (status != WEIR_OK)
        return status;
    if (strcmp(record.role, "trainer") != 0 || strcmp(record.run, replica->worker.run) != 0 ||
        record.version_uid[0] == '\0')
        return WEIR_OK;
    if (look->wish == WEIR_LATEST && strcmp(record.version_uid, replica->missed_uid) == 0)
        return WEIR_OK;
    if (!look->any_trainer || record.version > look->newest)
        look->newest = record.version;
    look->any_trainer = true;
    weir_attempt_read(record.note, &attempt);
    bool wanted = look->wish == WEIR_LATEST
                      ? record.version >= weir_acquire_lowest(replica, look->wish) ||
                            is_made_anew(replica, &record, &attempt)
                      : record.version == look->wish;
    if (!wanted || record.version > look->highest || !is_later(look, &record, &attempt))
        return WEIR_OK;
    look->found = true;
    look->version = record.version;
    look->attempt = attempt.number;
    memcpy(look->uid, record.version_uid, sizeof(look->uid));
    return WEIR_OK;
}

/* Entries of older versions need not be asked for. Of the one that is held they are now and then:
 * there may be another attempt at it. */
static uint64_t lowest_looked_at(search *look)
{
    const weir_replica *replica = look->replica;
    uint64_t lowest = weir_acquire_lowest(replica, look->wish);
    if (look->wish != WEIR_LATEST || replica->state != WEIR_REPLICA_HOLDING ||
        !weir_deadline_passed(look->look_for_anew_at))
        return lowest;
    look->look_for_anew_at = weir_deadline_in(LOOK_FOR_ANEW_MS);
    return replica->version;
}

/* One look through the trainers' entries: sets found, version, attempt, uid. */
static weir_status find_version(search *look)
{
    weir_replica *replica = look->replica;
    const uint64_t lowest = lowest_looked_at(look);
    size_t n = 0;
    look->found = look->any_trainer = false;
    const weir_source_wish wish = { replica->worker.model, replica->worker.run, "trainer",
                                    WEIR_SOURCE_READY, 0 };
    weir_status status =
        weir_directory_list_role(replica->worker.client, &wish, replica->refs, WEIR_MAX_REFS, &n);
    for (size_t i = 0; i < n && status == WEIR_OK; i++) {
        bool too_old = replica->refs[i].has_version && replica->refs[i].version < lowest;
        if (!too_old || !look->any_trainer)
            status = look_at(look, &replica->refs[i]);
    }
    return status;
}

void weir_seek_forgotten(weir_replica *replica, weir_lack *lack)
{
    search look = { .replica = replica, .wish = lack->wish, .highest = UINT64_MAX };
    if (find_version(&look) != WEIR_OK)
        return;
    lack->has_trainer = look.any_trainer;
    lack->newest = look.newest;
    lack->waits = lack->forgotten = look.found;
    lack->awaited = look.version;
}

/* ---- what is said when there is none ---------------------------------------------------------*/

static void name_missing_slots(search *look, char *text, size_t text_bytes)
{
    weir_replica *replica = look->replica;
    size_t n = 0, used = 0;
    text[0] = '\0';
    if (weir_directory_list_shards(replica->worker.client, look->awaited_uid, replica->shards,
                                   WEIR_MAX_LISTED, &n) != WEIR_OK)
        return;
    if (n > WEIR_MAX_LISTED)
        n = WEIR_MAX_LISTED;
    /* The listing call has replaced the slots that the last version call remembered. */
    if (weir_directory_get_version(replica->worker.client, look->awaited_uid, &look->record) !=
        WEIR_OK)
        return;
    for (size_t s = 0; s < look->record.n_slots && used + 16 < text_bytes; s++) {
        const char *slot = weir_directory_version_slot(replica->worker.client, s);
        bool there = slot == NULL;
        for (size_t i = 0; i < n && !there; i++)
            there = strcmp(replica->shards[i].slot, slot) == 0;
        if (!there)
            used +=
                (size_t)snprintf(text + used, text_bytes - used, "%s%s", used ? ", " : "", slot);
    }
}

static weir_lack describe(const search *look)
{
    return (weir_lack){ .wish = look->wish,
                        .waits = look->waits,
                        .forgotten = look->forgotten,
                        .awaited = look->awaited,
                        .n_slots = look->record.n_slots,
                        .missing = "",
                        .reason = "",
                        .has_trainer = look->any_trainer,
                        .newest = look->newest };
}

/* A rank that has failed says so in its entry, which is STALE when it has left. IN_PROGRESS: none
 * has. */
static weir_status find_abort(search *look, uint64_t lowest, uint64_t highest,
                              weir_attempt_end *out)
{
    weir_replica *replica = look->replica;
    const weir_end_wish wish = { look->awaited_uid, lowest, highest, replica->refs, WEIR_MAX_REFS };
    weir_status status = weir_attempt_find_end(&replica->worker, &wish, out);
    if (status == WEIR_OK && look->awaited_uid[0] != '\0')
        out->version = look->awaited;
    return status;
}

static weir_status time_out(search *look)
{
    weir_attempt_end end;
    char missing[512] = "";
    weir_replica *replica = look->replica;
    uint64_t lowest = weir_acquire_lowest(replica, look->wish);
    weir_status status = find_abort(look, lowest, look->wish, &end);
    if (status != WEIR_OK && look->waits && !look->forgotten)
        name_missing_slots(look, missing, sizeof(missing));
    weir_lack lack = describe(look);
    lack.missing = missing;
    if (status == WEIR_OK) {
        lack.aborted = true;
        lack.awaited = end.version;
        lack.reason = end.reason;
    }
    return weir_acquire_timed_out(replica, &lack);
}

/* Now and then: the entries of ranks that have left are listed no more, and a version that was
 * never seen may be over too when it is asked for by its number. Each ends one wait. */
static weir_status check_abort(search *look)
{
    weir_attempt_end end;
    weir_replica *replica = look->replica;
    bool has_uid = look->awaited_uid[0] != '\0';
    if (look->forgotten || (!has_uid && look->wish == WEIR_LATEST) ||
        !weir_deadline_passed(look->look_for_abort_at))
        return WEIR_IN_PROGRESS;
    look->look_for_abort_at = weir_deadline_in(LOOK_FOR_ABORT_MS);
    weir_status status = find_abort(look, look->wish, look->wish, &end);
    if (status != WEIR_OK)
        return status;
    if (strcmp(end.uid, replica->aborted_uid) == 0)
        return WEIR_IN_PROGRESS;
    weir_lack lack = describe(look);
    lack.awaited = end.version;
    lack.reason = end.reason;
    memcpy(replica->aborted_uid, end.uid, sizeof(replica->aborted_uid));
    replica->aborted = end.version;
    return weir_acquire_aborted(replica, &lack);
}

/* ---- versions --------------------------------------------------------------------------------*/

/* The newest READY version that is wanted. OK, IN_PROGRESS when there is none yet, or an error. */
static weir_status find_ready(search *look)
{
    /* A rank that fails at its newest version must not keep replicas from the one before. */
    look->waits = false;
    look->highest = UINT64_MAX;
    for (;;) {
        weir_status status = find_version(look);
        if (status != WEIR_OK || !look->found)
            return status != WEIR_OK ? status : WEIR_IN_PROGRESS;
        status = weir_directory_get_version(look->replica->worker.client, look->uid, &look->record);
        if (status != WEIR_OK && status != WEIR_ERR_NOT_FOUND)
            return status;
        if (status == WEIR_OK && look->record.state == WEIR_VERSION_READY)
            return WEIR_OK;
        if (!look->waits) {
            look->awaited = look->version;
            memcpy(look->awaited_uid, look->uid, sizeof(look->awaited_uid));
            look->forgotten = status == WEIR_ERR_NOT_FOUND;
        }
        look->waits = true;
        if (look->wish != WEIR_LATEST || look->version == 0)
            return WEIR_IN_PROGRESS;
        look->highest = look->version - 1;
    }
}

/* Lists the shards into replica->shards and the slots into the participants. */
static weir_status list_sources(weir_replica *replica, weir_discovery *discovery)
{
    weir_version_record record = { .n_slots = 0 };
    size_t n = 0;
    weir_status status = weir_directory_list_shards(replica->worker.client, discovery->uid,
                                                    replica->shards, WEIR_MAX_LISTED, &n);
    if (status == WEIR_OK)
        status = weir_directory_get_version(replica->worker.client, discovery->uid, &record);
    if (status == WEIR_OK && (n > WEIR_MAX_LISTED || record.n_slots == 0))
        status = weir_fail(WEIR_ERR_UNSUPPORTED, "version %" PRIu64 " has %zu shards in %u slots",
                           discovery->version, n, record.n_slots);
    discovery->n_shards = n;
    if (status == WEIR_OK) /* before the next call takes the slots' names away */
        status = weir_acquire_slots(replica, record.n_slots);
    if (status == WEIR_OK && n > record.n_slots)
        status = weir_attempt_check_shards(&replica->worker, discovery->uid, discovery->version,
                                           replica->shards, n, replica->refs, WEIR_MAX_REFS);
    return status;
}

/* A READY version under our lease. OK, IN_PROGRESS when there is none yet, or an error. */
static weir_status try_lease(search *look, weir_discovery *out)
{
    weir_replica *replica = look->replica;
    weir_directory_client *client = replica->worker.client;
    weir_status status = find_ready(look);
    if (status == WEIR_IN_PROGRESS)
        status = check_abort(look);
    if (status != WEIR_OK)
        return status;
    status = weir_directory_register_lease(client, look->uid, replica->worker.id,
                                           replica->worker.lease_s, out->lease_id);
    if (status == WEIR_ERR_REFUSED && look->retry.registered)
        return WEIR_IN_PROGRESS; /* released between the two calls */
    if (status != WEIR_OK)
        return status;
    out->version = look->version;
    out->attempt = look->attempt;
    memcpy(out->uid, look->uid, sizeof(out->uid));
    weir_keeper_hold(replica->worker.keeper, out->uid);
    return list_sources(replica, out);
}

/* Sleeps before the next look; less long when a trainer that pushes has news. */
static weir_status pause_for_news(weir_replica *replica, weir_patience *patience)
{
    weir_frame_link *links[MAX_NEWS_LINKS];
    size_t n = 0;
    bool any = false;
    for (size_t i = 0; i < replica->n_remotes && n < MAX_NEWS_LINKS; i++) {
        if (replica->remotes[i]->push != NULL)
            links[n++] = replica->remotes[i]->push;
    }
    if (n == 0)
        return weir_worker_pause(&replica->worker, patience);
    weir_status status = weir_frame_wait(NULL, links, n, NEWS_WAIT_MS);
    for (size_t i = 0; i < replica->n_remotes && status == WEIR_OK; i++) {
        bool news = false;
        weir_remote_hear(replica->remotes[i], &news);
        any |= news;
    }
    if (any)
        patience->wait_ms = 0;
    return status == WEIR_OK ? weir_worker_check_cancelled(&replica->worker) : status;
}

weir_status weir_seek_version(weir_replica *replica, uint64_t wish, weir_deadline deadline,
                              weir_discovery *out)
{
    search look = { .replica = replica, .wish = wish, .retry = { .deadline = deadline } };
    for (weir_patience patience = { 0 };;) {
        weir_status status = try_lease(&look, out);
        if (status == WEIR_OK)
            return WEIR_OK;
        if (status != WEIR_IN_PROGRESS) {
            status = weir_worker_retry(&replica->worker, &look.retry, status);
            if (status != WEIR_OK)
                return status;
            continue;
        }
        if (wish != WEIR_LATEST && !look.waits && look.any_trainer && look.newest > wish) {
            weir_lack lack = describe(&look);
            return weir_acquire_gone(replica, &lack);
        }
        if (weir_deadline_passed(deadline))
            return time_out(&look);
        status = pause_for_news(replica, &patience);
        if (status != WEIR_OK)
            return status;
    }
}
