/* SPDX-License-Identifier: Apache-2.0 */
/* acquire.c - asking the directory for a version, and what to say when there is none.
 *
 * One message gives the version, the lease on it and its shards. It is asked again only when the
 * directory has gone away and come back, or when a slice of the wait is over.
 */
#include "refit/acquire.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "base/error.h"

/* A version that is asked for by number may be gone, which no wait tells at once. */
#define FIRST_SLICE_MS 500u

uint64_t weir_acquire_lowest(const weir_replica *replica, uint64_t wish)
{
    if (wish != WEIR_LATEST)
        return wish;
    return replica->state == WEIR_REPLICA_HOLDING ? replica->version + 1 : 0;
}

/* The names are copied out before the next call on the client takes them away. */
weir_status weir_acquire_slots(weir_replica *replica, uint32_t n_slots)
{
    weir_schedule *schedule = &replica->schedule;
    if (schedule->n_participants != n_slots) {
        weir_participant *fresh = weir_alloc_zeroed(n_slots, sizeof(*fresh));
        if (fresh == NULL)
            return WEIR_ERR_NO_MEMORY;
        weir_schedule_dismiss(schedule);
        schedule->participants = fresh;
        schedule->n_participants = n_slots;
    }
    for (uint32_t s = 0; s < n_slots; s++) {
        const char *slot = weir_directory_version_slot(replica->worker.client, s);
        snprintf(schedule->participants[s].slot, sizeof(schedule->participants[s].slot), "%s",
                 slot != NULL ? slot : "");
    }
    return WEIR_OK;
}

/* ---- what is said when there is none ---------------------------------------------------------*/

static void write_wish(const weir_replica *replica, uint64_t wish, char *text, size_t text_bytes)
{
    snprintf(text, text_bytes, "%" PRIu64 "%s", weir_acquire_lowest(replica, wish),
             wish == WEIR_LATEST ? " or later" : "");
}

weir_status weir_acquire_aborted(const weir_replica *replica, const weir_lack *lack)
{
    return weir_fail(WEIR_ERR_ABORTED, "version %" PRIu64 " of %s was aborted: %s", lack->awaited,
                     replica->worker.model,
                     lack->reason[0] != '\0' ? lack->reason : "nobody says why");
}

weir_status weir_acquire_gone(const weir_replica *replica, const weir_lack *lack)
{
    return weir_fail(WEIR_ERR_NOT_FOUND,
                     "version %" PRIu64 " of %s is gone: its trainer has moved on to %" PRIu64,
                     lack->wish, replica->worker.model, lack->newest);
}

/* There is one that would do, were it READY. */
static weir_status still_waiting(const weir_replica *replica, const weir_lack *lack,
                                 const char *wish)
{
    double waited_s = replica->worker.timeout_ms / 1e3;
    if (lack->forgotten)
        return weir_fail(WEIR_ERR_TIMED_OUT,
                         "timed out after %.1f s waiting for version %s of %s: the trainer has "
                         "published %" PRIu64 ", but directory %s was restarted since and does not "
                         "know it",
                         waited_s, wish, replica->worker.model, lack->awaited,
                         weir_directory_client_address(replica->worker.client));
    bool has_gone = lack->gone != NULL && lack->gone[0] != '\0';
    if (has_gone && lack->missing[0] == '\0')
        return weir_fail(WEIR_ERR_TIMED_OUT,
                         "timed out after %.1f s waiting for version %" PRIu64
                         " of %s: of %u trainer ranks these published it, but are gone: %s",
                         waited_s, lack->awaited, replica->worker.model, lack->n_slots, lack->gone);
    return weir_fail(WEIR_ERR_TIMED_OUT,
                     "timed out after %.1f s waiting for version %" PRIu64
                     " of %s: of %u trainer ranks these have not published it: %s%s%s",
                     waited_s, lack->awaited, replica->worker.model, lack->n_slots,
                     lack->missing[0] != '\0' ? lack->missing : "(the directory does not say)",
                     has_gone ? "; published, but gone: " : "", has_gone ? lack->gone : "");
}

weir_status weir_acquire_timed_out(const weir_replica *replica, const weir_lack *lack)
{
    char wish[48];
    double waited_s = replica->worker.timeout_ms / 1e3;
    write_wish(replica, lack->wish, wish, sizeof(wish));
    if (lack->aborted)
        return weir_fail(WEIR_ERR_TIMED_OUT,
                         "timed out after %.1f s waiting for version %s of %s: version %" PRIu64
                         " was aborted: %s",
                         waited_s, wish, replica->worker.model, lack->awaited, lack->reason);
    if (lack->waits)
        return still_waiting(replica, lack, wish);
    if (lack->over)
        return weir_fail(WEIR_ERR_TIMED_OUT,
                         "timed out after %.1f s waiting for version %s of %s: version %" PRIu64
                         " is over: its trainer has ended or taken it back, and no replica holds "
                         "it",
                         waited_s, wish, replica->worker.model, lack->awaited);
    if (lack->wish == WEIR_LATEST && replica->missed_uid[0] != '\0')
        return weir_fail(WEIR_ERR_TIMED_OUT,
                         "timed out after %.1f s waiting for the version after %" PRIu64
                         " of %s, which was being sent already when this replica came",
                         waited_s, replica->missed, replica->worker.model);
    if (lack->has_trainer)
        return weir_fail(WEIR_ERR_TIMED_OUT,
                         "timed out after %.1f s waiting for version %s of %s: the trainer's "
                         "newest is %" PRIu64,
                         waited_s, wish, replica->worker.model, lack->newest);
    return weir_fail(WEIR_ERR_TIMED_OUT,
                     "timed out after %.1f s waiting for version %s of %s, run %s: directory %s "
                     "knows no trainer of it",
                     waited_s, wish, replica->worker.model, replica->worker.run,
                     weir_directory_client_address(replica->worker.client));
}

/* ---- one wait --------------------------------------------------------------------------------*/

typedef struct acquisition {
    weir_replica *replica;
    uint64_t wish;
    weir_retry retry;
    unsigned slice_ms; /* of the next message */
    weir_patience patience;
    weir_acquire_answer answer;
} acquisition;

/* A trainer that was started anew may publish the number again that is held. */
static bool asks_beyond_held(const acquisition *a)
{
    return a->wish == WEIR_LATEST && a->replica->state == WEIR_REPLICA_HOLDING;
}

/* Who was told that a version was aborted goes on to later ones, or another attempt at it. */
static uint64_t lowest_asked(const acquisition *a)
{
    const weir_replica *replica = a->replica;
    uint64_t lowest =
        asks_beyond_held(a) ? replica->version : weir_acquire_lowest(replica, a->wish);
    bool was_told = a->wish == WEIR_LATEST && replica->aborted_uid[0] != '\0';
    return was_told && replica->aborted > lowest ? replica->aborted : lowest;
}

static weir_acquire_request make_request(const weir_replica *replica)
{
    const weir_worker *worker = &replica->worker;
    return (weir_acquire_request){
        .model = worker->model,
        .run = worker->run,
        .worker_id = worker->id,
        .worker_rank = replica->mesh_worker,
        .but_not_uid = "",
        .held_uid = "",
        .host = worker->host,
        .part = replica->reads_trainers_alone ? "" : replica->part,
        .ttl_s = worker->lease_s,
        .peer_wait_ms = replica->agree == NULL ? replica->peer_wait_ms : 0,
        .trace_id = "",
    };
}

static weir_status ask(acquisition *a, unsigned left_ms)
{
    const weir_replica *replica = a->replica;
    bool missed = a->wish == WEIR_LATEST && replica->missed_uid[0] != '\0';
    weir_acquire_request request = make_request(replica);
    request.lowest = lowest_asked(a);
    request.highest = a->wish;
    request.but_not_uid = missed ? replica->missed_uid : replica->aborted_uid;
    if (asks_beyond_held(a))
        request.held_uid = replica->version_uid;
    request.timeout_ms = left_ms < a->slice_ms ? left_ms : a->slice_ms;
    return weir_directory_acquire_version(replica->worker.client, &request, replica->shards,
                                          WEIR_MAX_LISTED, &a->answer);
}

static weir_status take(const acquisition *a, weir_discovery *out)
{
    const weir_acquire_answer *answer = &a->answer;
    weir_replica *replica = a->replica;
    out->version = answer->version.number;
    out->n_shards = answer->n_shards;
    out->peer = answer->peer;
    memcpy(out->uid, answer->version.uid, sizeof(out->uid));
    memcpy(out->lease_id, answer->lease_id, sizeof(out->lease_id));
    weir_worker_is_about(&replica->worker, out->version, answer->trace_id);
    weir_keeper_hold(replica->worker.keeper, out->uid);
    weir_status status = weir_acquire_slots(replica, answer->version.n_slots);
    if (status == WEIR_OK && (answer->n_shards > WEIR_MAX_LISTED || answer->version.n_slots == 0))
        status = weir_fail(WEIR_ERR_UNSUPPORTED, "version %" PRIu64 " has %zu shards in %u slots",
                           out->version, answer->n_shards, answer->version.n_slots);
    return status;
}

/* One that may get READY yet, or again. */
static bool is_awaited(const acquisition *a)
{
    return a->answer.awaited_state == WEIR_VERSION_STAGING ||
           a->answer.awaited_state == WEIR_VERSION_READY;
}

/* What is known of the awaited version is asked for only now that it is to be said. */
static weir_lack describe(acquisition *a)
{
    const weir_acquire_answer *answer = &a->answer;
    weir_lack lack = { .wish = a->wish,
                       .aborted = answer->awaited_state == WEIR_VERSION_ABORTED,
                       .waits = is_awaited(a),
                       .over = answer->awaited_state == WEIR_VERSION_RELEASING,
                       .awaited = answer->newest,
                       .n_slots = (uint32_t)(answer->n_missing + answer->n_gone),
                       .missing = answer->missing,
                       .gone = answer->gone,
                       .reason = answer->reason,
                       .has_trainer = answer->has_trainer,
                       .newest = answer->newest };
    weir_version_record record;
    if ((lack.waits || lack.aborted || lack.over) &&
        weir_directory_get_version(a->replica->worker.client, answer->awaited_uid, &record) ==
            WEIR_OK) {
        lack.awaited = record.number;
        lack.n_slots = record.n_slots;
    }
    if (!lack.waits && !lack.has_trainer)
        weir_seek_forgotten(a->replica, &lack);
    return lack;
}

/* Each aborted version ends one wait of this replica, not all to come. */
static bool is_news(const acquisition *a)
{
    return a->answer.awaited_state == WEIR_VERSION_ABORTED &&
           strcmp(a->answer.awaited_uid, a->replica->aborted_uid) != 0;
}

static bool is_gone(const acquisition *a)
{
    return a->wish != WEIR_LATEST && !is_awaited(a) && a->answer.has_trainer &&
           a->answer.newest > a->wish;
}

/* There is none yet. IN_PROGRESS: go on waiting. */
static weir_status look_at_answer(acquisition *a, double asked_s)
{
    weir_status status = weir_worker_check_cancelled(&a->replica->worker);
    if (status != WEIR_OK)
        return status;
    if (is_news(a)) {
        weir_lack lack = describe(a);
        memcpy(a->replica->aborted_uid, a->answer.awaited_uid, sizeof(a->replica->aborted_uid));
        a->replica->aborted = lack.awaited;
        return weir_acquire_aborted(a->replica, &lack);
    }
    if (is_gone(a) || weir_deadline_passed(a->retry.deadline)) {
        weir_lack lack = describe(a);
        return is_gone(a) ? weir_acquire_gone(a->replica, &lack)
                          : weir_acquire_timed_out(a->replica, &lack);
    }
    a->retry.registered = false;
    if (weir_now_s() - asked_s < a->slice_ms / 2e3) { /* an answer that nobody was waiting for */
        status = weir_worker_pause(&a->replica->worker, &a->patience);
        return status == WEIR_OK ? WEIR_IN_PROGRESS : status;
    }
    if (a->slice_ms < WEIR_DIRECTORY_SLICE_MS)
        a->slice_ms *= 2;
    return WEIR_IN_PROGRESS;
}

static weir_status acquire(weir_replica *replica, uint64_t wish, weir_deadline deadline,
                           weir_discovery *out)
{
    acquisition a = { .replica = replica,
                      .wish = wish,
                      .retry = { .deadline = deadline },
                      .slice_ms = wish == WEIR_LATEST ? WEIR_DIRECTORY_SLICE_MS : FIRST_SLICE_MS };
    for (;;) {
        double asked_s = weir_now_s();
        weir_status status = ask(&a, weir_deadline_left_ms(deadline));
        if (status == WEIR_OK)
            return take(&a, out);
        if (status == WEIR_IN_PROGRESS)
            status = look_at_answer(&a, asked_s);
        else
            status = weir_worker_retry(&replica->worker, &a.retry, status);
        if (status < WEIR_OK)
            return status;
    }
}

weir_status weir_acquire_again(weir_replica *replica, weir_discovery *discovery)
{
    weir_acquire_answer answer;
    const char *avoid[WEIR_MAX_AVOIDED];
    weir_directory_client *client = replica->worker.client;
    weir_acquire_request request = make_request(replica);
    for (size_t i = 0; i < discovery->n_avoid; i++)
        avoid[i] = discovery->avoid[i];
    request.lowest = request.highest = discovery->version;
    request.peer_wait_ms = 0;
    request.avoid = avoid;
    request.n_avoid = discovery->n_avoid;
    weir_status status =
        weir_directory_acquire_version(client, &request, replica->shards, WEIR_MAX_LISTED, &answer);
    if (status == WEIR_IN_PROGRESS)
        return weir_fail(WEIR_ERR_NOT_FOUND, "version %" PRIu64 " of %s cannot be read any more",
                         discovery->version, replica->worker.model);
    if (status != WEIR_OK)
        return status;
    discovery->n_shards = answer.n_shards;
    if (strcmp(answer.version.uid, discovery->uid) == 0 && answer.n_shards <= WEIR_MAX_LISTED) {
        discovery->peer = answer.peer;
        return WEIR_OK;
    }
    discovery->n_shards = 0; /* another attempt at that number, of which nothing is known here */
    weir_directory_delete_lease(client, answer.version.uid, answer.lease_id, replica->worker.id);
    return weir_fail(WEIR_ERR_NOT_FOUND, "version %" PRIu64 " of %s was published anew meanwhile",
                     discovery->version, replica->worker.model);
}

weir_status weir_acquire_version(weir_replica *replica, uint64_t wish, weir_deadline deadline,
                                 weir_discovery *out)
{
    double begun_s = weir_now_s();
    weir_status status = acquire(replica, wish, deadline, out);
    if (status == WEIR_ERR_UNSUPPORTED && weir_directory_is_plain(replica->worker.client)) {
        status = weir_seek_version(replica, wish, deadline, out);
        if (status == WEIR_OK)
            weir_worker_is_about(&replica->worker, out->version, "");
    }
    weir_worker_waited_outside(&replica->worker, begun_s);
    return status;
}
