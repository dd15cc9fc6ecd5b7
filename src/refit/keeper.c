/* SPDX-License-Identifier: Apache-2.0 */
/* keeper.c - one thread that wakes every third of the lease time, or when it is told to; while a
 * refit takes long, every second. */
#include "refit/keeper.h"

#include <inttypes.h>
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "base/error.h"
#include "base/log.h"

#define RETRY_S 1.0
#define MAX_CALL_TIMEOUT_MS 5000u
#define MAX_PUBLICATIONS 8u
#define QUICK_S 0.5 /* nobody watches a refit that is over by then */
#define TELL_EVERY_S 1.0
#define GRACE_S 0.5 /* for a call under way when the worker leaves */
#define CANCEL_AGAIN_S 0.05

/* A refit under way, for people who watch. */
typedef struct flight {
    bool runs;
    double begun_s; /* 0: nothing was noted yet */
    double told_s;  /* 0: nothing was told */
    bool owes_end;  /* one that was told of is over */
    weir_keeper_step step;
    char waits_for[WEIR_NAME_BYTES];
} flight;

/* A shard that the worker offers. */
typedef struct publication {
    char own_uid[WEIR_ID_BYTES]; /* that the worker knows the version by; "": of none */
    char uid[WEIR_ID_BYTES];     /* that the directory does */
    uint64_t version;
    weir_shard_record shard;
    const char *const *slots;
    size_t n_slots;
    char trace_id[WEIR_ID_BYTES];
    char content[WEIR_NAME_BYTES];
    uint32_t attempt;
    bool has_marks;
    char refusal[WEIR_NAME_BYTES]; /* why the directory does not take it again; "": it may */
} publication;

struct weir_keeper {
    char worker_id[WEIR_NAME_BYTES];
    char model[WEIR_NAME_BYTES];
    weir_worker_role role;
    unsigned lease_s;
    weir_directory_client *client; /* the thread's own */
    bool is_troubled;              /* the thread's own: its last renewal failed */
    pthread_t thread;
    pthread_mutex_t lock; /* protects what follows */
    pthread_cond_t wake, rest;
    bool is_busy; /* a renewal is under way, or somebody keeps it from being so */
    bool closing, leaving, now;
    bool is_unanswered;             /* a call had to be cancelled for the sake of who leaves */
    char leased_uid[WEIR_ID_BYTES]; /* "" for none */
    bool announced;
    weir_source_record record;
    bool owes; /* an acknowledgement that the directory has not heard */
    weir_acknowledgement owed;
    bool holds; /* what was said of `record` */
    weir_acknowledgement held;
    char held_id[WEIR_ID_BYTES]; /* the entry's */
    publication published[MAX_PUBLICATIONS];
    uint64_t *marks; /* of each of them, workers then contents of n_slots; last those to be sent */
    size_t n_slots;
    char published_id[WEIR_ID_BYTES]; /* the entry's that came with them */
    bool is_forgotten;
    flight flight;
};

/* What there is to renew, copied so that no call is made with the lock held. */
typedef struct renewal {
    char leased_uid[WEIR_ID_BYTES];
    bool announced;
    weir_source_record record;
    bool owes;
    weir_acknowledgement owed;
    bool holds;
    weir_acknowledgement held;
    char held_id[WEIR_ID_BYTES];
    publication published[MAX_PUBLICATIONS]; /* the oldest version first */
    size_t n_published;
    char published_id[WEIR_ID_BYTES];
    bool is_forgotten;
} renewal;

/* The same each second is said aloud once. */
static bool renewed(const weir_keeper *keeper, weir_status status, const char *what)
{
    weir_log_level level = keeper->is_troubled ? WEIR_LOG_DEBUG : WEIR_LOG_WARN;
    if (status != WEIR_OK && status != WEIR_ERR_CANCELLED)
        weir_log(level, "cannot renew the %s: %s", what, weir_last_error());
    return status == WEIR_OK;
}

/* ---- one at a time ---------------------------------------------------------------------------*/

/* The lock is held. */
static void wait_at_most(weir_keeper *keeper, pthread_cond_t *what, double end_s)
{
    struct timespec until;
    until.tv_sec = (time_t)end_s;
    until.tv_nsec = (long)((end_s - floor(end_s)) * 1e9);
    pthread_cond_timedwait(what, &keeper->lock, &until);
}

/* The lock is held. Who leaves does not wait for a directory that says nothing: each call of the
 * renewal that is left is ended. */
static void interrupt(weir_keeper *keeper)
{
    const double end_s = weir_now_s() + (keeper->is_unanswered ? 0 : GRACE_S);
    while (keeper->is_busy && weir_now_s() < end_s)
        wait_at_most(keeper, &keeper->rest, end_s);
    while (keeper->is_busy) {
        keeper->is_unanswered = true;
        weir_directory_client_cancel(keeper->client);
        wait_at_most(keeper, &keeper->rest, weir_now_s() + CANCEL_AGAIN_S);
    }
}

void weir_keeper_pause(weir_keeper *keeper)
{
    pthread_mutex_lock(&keeper->lock);
    while (keeper->is_busy) {
        if (keeper->leaving)
            interrupt(keeper);
        else
            pthread_cond_wait(&keeper->rest, &keeper->lock);
    }
    keeper->is_busy = true;
    pthread_mutex_unlock(&keeper->lock);
}

void weir_keeper_resume(weir_keeper *keeper)
{
    pthread_mutex_lock(&keeper->lock);
    keeper->is_busy = false;
    pthread_cond_broadcast(&keeper->rest);
    pthread_mutex_unlock(&keeper->lock);
}

void weir_keeper_hurry(weir_keeper *keeper)
{
    if (keeper == NULL)
        return;
    pthread_mutex_lock(&keeper->lock);
    keeper->leaving = true;
    pthread_mutex_unlock(&keeper->lock);
}

/* ---- what a directory has lost ---------------------------------------------------------------*/

/* The lock is held. NULL: there is none. */
static publication *find_publication(weir_keeper *keeper, const char *own_uid)
{
    for (size_t i = 0; i < MAX_PUBLICATIONS; i++) {
        if (strcmp(keeper->published[i].own_uid, own_uid) == 0)
            return &keeper->published[i];
    }
    return NULL;
}

/* The lock is held. What is known already stays where nothing is said. */
static void add_marks(weir_keeper *keeper, publication *one, const weir_slot_marks *marks)
{
    const size_t n = keeper->n_slots;
    if (keeper->marks == NULL || one->n_slots != n || marks->n != n)
        return;
    uint64_t *workers = keeper->marks + (size_t)(one - keeper->published) * 2 * n;
    if (!one->has_marks)
        memset(workers, 0, 2 * n * sizeof(*workers));
    one->has_marks = true;
    for (size_t i = 0; i < n; i++) {
        if (marks->workers[i] != 0)
            workers[i] = marks->workers[i];
        if (marks->contents[i] != 0)
            workers[n + i] = marks->contents[i];
    }
}

/* A copy: others may learn more while it is sent. */
static weir_slot_marks marks_to_send(weir_keeper *keeper, const publication *of)
{
    weir_slot_marks marks = { .n = 0 };
    pthread_mutex_lock(&keeper->lock);
    const publication *one = find_publication(keeper, of->own_uid);
    const size_t n = keeper->n_slots;
    if (one != NULL && one->has_marks) {
        uint64_t *copy = keeper->marks + MAX_PUBLICATIONS * 2 * n;
        memcpy(copy, keeper->marks + (size_t)(one - keeper->published) * 2 * n,
               2 * n * sizeof(*copy));
        marks = (weir_slot_marks){ copy, copy + n, n };
    }
    pthread_mutex_unlock(&keeper->lock);
    return marks;
}

static void take_answer(weir_keeper *keeper, const publication *of,
                        const weir_publish_answer *answer)
{
    pthread_mutex_lock(&keeper->lock);
    publication *one = find_publication(keeper, of->own_uid);
    if (one != NULL) {
        memcpy(one->uid, answer->version.uid, sizeof(one->uid));
        one->attempt = answer->attempt;
        one->refusal[0] = '\0';
        add_marks(keeper, one, &answer->marks);
    }
    pthread_mutex_unlock(&keeper->lock);
}

/* For who waits for it. */
static void take_refusal(weir_keeper *keeper, const publication *of)
{
    pthread_mutex_lock(&keeper->lock);
    publication *one = find_publication(keeper, of->own_uid);
    if (one != NULL)
        snprintf(one->refusal, sizeof(one->refusal), "%.*s", (int)sizeof(one->refusal) - 1,
                 weir_last_error());
    pthread_mutex_unlock(&keeper->lock);
}

/* With the entry of now, but for the version: it is repeated as it is behind this. */
static weir_status publish_again(weir_keeper *keeper, const renewal *todo, const publication *lost)
{
    weir_publish_answer answer;
    weir_source_record source = todo->record;
    weir_shard_record shard = lost->shard;
    memcpy(shard.version_uid, lost->uid, sizeof(shard.version_uid));
    source.version = lost->version;
    const weir_publish_request request = { .shard = &shard,
                                           .source = &source,
                                           .slots = lost->slots,
                                           .n_slots = lost->n_slots,
                                           .trace_id = lost->trace_id,
                                           .content = lost->content,
                                           .attempt = lost->attempt,
                                           .marks = marks_to_send(keeper, lost) };
    weir_status status = weir_directory_publish_version_shard(keeper->client, &request, &answer);
    if (status != WEIR_OK)
        return status;
    take_answer(keeper, lost, &answer);
    weir_log(WEIR_LOG_INFO, "the directory knows version %" PRIu64 " of %s again", lost->version,
             keeper->model);
    return WEIR_OK;
}

/* OK, or is_lost(); else the directory does not know it. */
static weir_status touch_entry(weir_keeper *keeper, const renewal *todo, const char *id)
{
    return weir_directory_update_status(keeper->client, id, keeper->worker_id, todo->record.rank,
                                        todo->record.status);
}

/* Nothing was heard of it. */
static bool is_lost(weir_status status)
{
    return status == WEIR_ERR_PEER_LOST || status == WEIR_ERR_TIMED_OUT ||
           status == WEIR_ERR_CANCELLED;
}

/* A directory that knows the entry knows its versions. One that refuses a version has its reasons:
 * a rank that was started anew since, or too little room. */
static bool restore_published(weir_keeper *keeper, const renewal *todo)
{
    if (todo->n_published == 0 || !todo->announced)
        return true;
    weir_status status = WEIR_OK;
    if (!todo->is_forgotten)
        status = touch_entry(keeper, todo, todo->published_id);
    if ((status == WEIR_OK && !todo->is_forgotten) || is_lost(status))
        return renewed(keeper, status, "published versions");
    for (size_t i = 0; i < todo->n_published; i++) {
        status = publish_again(keeper, todo, &todo->published[i]);
        if (is_lost(status))
            return renewed(keeper, status, "published versions");
        if (status == WEIR_OK)
            continue;
        take_refusal(keeper, &todo->published[i]);
        weir_log(WEIR_LOG_WARN, "version %" PRIu64 " cannot be published again: %s",
                 todo->published[i].version, weir_last_error());
    }
    pthread_mutex_lock(&keeper->lock);
    keeper->is_forgotten = false;
    pthread_mutex_unlock(&keeper->lock);
    return true;
}

/* The entry alone does not say what others can read here. */
static weir_status repeat_held(weir_keeper *keeper, const renewal *todo)
{
    char id[WEIR_ID_BYTES];
    weir_status status = touch_entry(keeper, todo, todo->held_id);
    if (status == WEIR_OK || is_lost(status))
        return status;
    return weir_directory_acknowledge_version(keeper->client, &todo->held, id);
}

/* The thread's own pause: whoever else is busy makes no calls of its client. False: there is
 * nothing to say any more. */
static bool begin_calls(weir_keeper *keeper)
{
    pthread_mutex_lock(&keeper->lock);
    while (keeper->is_busy && !keeper->closing)
        pthread_cond_wait(&keeper->rest, &keeper->lock);
    bool begins = !keeper->closing;
    keeper->is_busy |= begins;
    pthread_mutex_unlock(&keeper->lock);
    return begins;
}

/* ---- renewals --------------------------------------------------------------------------------*/

static bool renew_all(weir_keeper *keeper, const renewal *todo)
{
    char id[WEIR_ID_BYTES];
    if (!renewed(keeper,
                 weir_directory_register_worker(keeper->client, keeper->worker_id, keeper->role,
                                                keeper->model, keeper->lease_s),
                 "worker's registration"))
        return false;
    bool told = restore_published(keeper, todo);
    if (todo->leased_uid[0] != '\0')
        told &= renewed(keeper,
                        weir_directory_register_lease(keeper->client, todo->leased_uid,
                                                      keeper->worker_id, keeper->lease_s, id),
                        "version's lease");
    if (!todo->announced)
        return told;
    weir_status status = todo->holds
                             ? repeat_held(keeper, todo)
                             : weir_directory_publish_source(keeper->client, &todo->record, id);
    return renewed(keeper, status, "worker's source entry") && told;
}

/* A server without such calls has heard all of it with the entry. */
static bool pay(weir_keeper *keeper, const renewal *todo)
{
    char id[WEIR_ID_BYTES];
    if (!todo->owes)
        return true;
    weir_directory_client_trace(keeper->client, todo->owed.trace_id, keeper->worker_id);
    weir_status status = weir_directory_acknowledge_version(keeper->client, &todo->owed, id);
    weir_directory_client_trace(keeper->client, "", keeper->worker_id);
    if (!is_lost(status)) {
        pthread_mutex_lock(&keeper->lock);
        keeper->owes = strcmp(keeper->owed.version_uid, todo->owed.version_uid) != 0;
        pthread_mutex_unlock(&keeper->lock);
    }
    if (status == WEIR_OK && todo->owed.status == WEIR_OK)
        weir_keeper_held(keeper, &todo->owed, id);
    return status == WEIR_ERR_UNSUPPORTED || renewed(keeper, status, "acknowledgement");
}

static int compare_publications(const void *a, const void *b)
{
    const publication *x = a, *y = b;
    return (x->version > y->version) - (x->version < y->version);
}

/* The lock is held. */
static void copy_todo(const weir_keeper *keeper, renewal *todo)
{
    *todo = (renewal){ .announced = keeper->announced,
                       .record = keeper->record,
                       .owes = keeper->owes,
                       .owed = keeper->owed,
                       .holds = keeper->holds,
                       .held = keeper->held };
    memcpy(todo->leased_uid, keeper->leased_uid, sizeof(todo->leased_uid));
    memcpy(todo->held_id, keeper->held_id, sizeof(todo->held_id));
    for (size_t i = 0; i < MAX_PUBLICATIONS; i++) {
        if (keeper->published[i].own_uid[0] != '\0')
            todo->published[todo->n_published++] = keeper->published[i];
    }
    memcpy(todo->published_id, keeper->published_id, sizeof(todo->published_id));
    todo->is_forgotten = keeper->is_forgotten;
    qsort(todo->published, todo->n_published, sizeof(*todo->published), compare_publications);
}

/* One renewal of everything; false when a part of it must be tried again. */
static bool renew(weir_keeper *keeper)
{
    if (!begin_calls(keeper))
        return true;
    pthread_mutex_lock(&keeper->lock);
    renewal todo;
    copy_todo(keeper, &todo);
    keeper->now = false;
    pthread_mutex_unlock(&keeper->lock);
    bool good = renew_all(keeper, &todo) && pay(keeper, &todo);
    weir_keeper_resume(keeper);
    if (good && keeper->is_troubled)
        weir_log(WEIR_LOG_INFO, "the directory knows worker %s again", keeper->worker_id);
    keeper->is_troubled = !good;
    return good;
}

/* ---- a refit under way -----------------------------------------------------------------------*/

/* When to say how far it has come, by weir_now_s(). The lock is held. */
static double due_s(const flight *refit)
{
    if (refit->owes_end)
        return 0;
    if (!refit->runs || refit->begun_s == 0)
        return INFINITY;
    return fmax(refit->begun_s + QUICK_S, refit->told_s + TELL_EVERY_S);
}

/* Errors are forgotten: a second later there is something else to say. Within a pause nothing is
 * said, so that the directory does not hear of a refit after it has heard of its end. */
static void tell(weir_keeper *keeper)
{
    if (!begin_calls(keeper))
        return;
    pthread_mutex_lock(&keeper->lock);
    flight *refit = &keeper->flight;
    const bool ends = refit->owes_end;
    const bool is_due = due_s(refit) <= weir_now_s();
    char waits_for[WEIR_NAME_BYTES];
    memcpy(waits_for, refit->waits_for, sizeof(waits_for));
    const weir_progress_report report = { .worker_id = keeper->worker_id,
                                          .model = keeper->model,
                                          .version = refit->step.version,
                                          .stop = ends ? "" : refit->step.stop,
                                          .done_bytes = refit->step.done_bytes,
                                          .total_bytes = refit->step.total_bytes,
                                          .slowest_from = ends ? "" : waits_for };
    refit->owes_end = false;
    if (is_due && !ends)
        refit->told_s = weir_now_s();
    pthread_mutex_unlock(&keeper->lock);
    if (is_due)
        weir_directory_report_progress(keeper->client, &report);
    weir_keeper_resume(keeper);
}

/* The lock is held. */
static void end_refit(weir_keeper *keeper)
{
    flight *refit = &keeper->flight;
    if (refit->runs && refit->told_s > 0) {
        refit->owes_end = true;
        pthread_cond_signal(&keeper->wake);
    }
    refit->runs = false;
}

void weir_keeper_begin(weir_keeper *keeper)
{
    if (keeper == NULL)
        return;
    pthread_mutex_lock(&keeper->lock);
    end_refit(keeper);
    keeper->flight = (flight){ .runs = true, .owes_end = keeper->flight.owes_end };
    pthread_mutex_unlock(&keeper->lock);
}

void weir_keeper_end(weir_keeper *keeper)
{
    if (keeper == NULL)
        return;
    pthread_mutex_lock(&keeper->lock);
    end_refit(keeper);
    pthread_mutex_unlock(&keeper->lock);
}

void weir_keeper_note(weir_keeper *keeper, const weir_keeper_step *step)
{
    if (keeper == NULL)
        return;
    pthread_mutex_lock(&keeper->lock);
    flight *refit = &keeper->flight;
    if (refit->step.stop != step->stop)
        refit->waits_for[0] = '\0';
    refit->step.stop = step->stop;
    refit->step.version = step->version;
    if (step->total_bytes > 0) {
        refit->step.done_bytes = step->done_bytes;
        refit->step.total_bytes = step->total_bytes;
    }
    if (refit->runs && refit->begun_s == 0) {
        refit->begun_s = weir_now_s();
        pthread_cond_signal(&keeper->wake);
    }
    pthread_mutex_unlock(&keeper->lock);
}

void weir_keeper_waits_for(weir_keeper *keeper, const char *whom)
{
    if (keeper == NULL)
        return;
    pthread_mutex_lock(&keeper->lock);
    snprintf(keeper->flight.waits_for, sizeof(keeper->flight.waits_for), "%s", whom);
    pthread_mutex_unlock(&keeper->lock);
}

/* ---- the thread ------------------------------------------------------------------------------*/

/* The lock is held. */
static void wait_until(weir_keeper *keeper, double renewal_s)
{
    while (!keeper->closing && !keeper->now) {
        double end_s = fmin(renewal_s, due_s(&keeper->flight));
        if (weir_now_s() >= end_s)
            return;
        wait_at_most(keeper, &keeper->wake, end_s);
    }
}

static void *keeper_main(void *argument)
{
    weir_keeper *keeper = argument;
    const double period_s = keeper->lease_s / 3.0;
    double renewal_s = weir_now_s() + period_s;
    const weir_log_scope about = { .worker = keeper->worker_id, .model = keeper->model };
    weir_alloc_uncount_thread();
    weir_log_enter(&about);
    pthread_mutex_lock(&keeper->lock);
    for (;;) {
        wait_until(keeper, renewal_s);
        if (keeper->closing)
            break;
        bool renews = keeper->now || weir_now_s() >= renewal_s;
        bool tells = weir_now_s() >= due_s(&keeper->flight);
        pthread_mutex_unlock(&keeper->lock);
        if (tells)
            tell(keeper);
        if (renews)
            renewal_s = (renew(keeper) ? period_s : RETRY_S) + weir_now_s();
        pthread_mutex_lock(&keeper->lock);
    }
    pthread_mutex_unlock(&keeper->lock);
    return NULL;
}

weir_status weir_keeper_open(const weir_keeper_options *options, weir_keeper **out)
{
    weir_keeper *keeper = weir_alloc_zeroed(1, sizeof(*keeper));
    if (keeper == NULL)
        return WEIR_ERR_NO_MEMORY;
    snprintf(keeper->worker_id, sizeof(keeper->worker_id), "%s", options->worker_id);
    snprintf(keeper->model, sizeof(keeper->model), "%s", options->model);
    keeper->role = options->role;
    keeper->lease_s = options->lease_s;
    unsigned timeout_ms =
        options->timeout_ms < MAX_CALL_TIMEOUT_MS ? options->timeout_ms : MAX_CALL_TIMEOUT_MS;
    weir_status status =
        weir_directory_client_open(options->directory, timeout_ms, &keeper->client);
    if (status != WEIR_OK)
        goto err_free;
    status = weir_directory_client_secure(keeper->client, options->security);
    if (status != WEIR_OK)
        goto err_close_rpc;
    pthread_condattr_t attributes;
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(&keeper->wake, &attributes);
    pthread_cond_init(&keeper->rest, &attributes);
    pthread_condattr_destroy(&attributes);
    pthread_mutex_init(&keeper->lock, NULL);
    if (pthread_create(&keeper->thread, NULL, keeper_main, keeper) != 0) {
        status = weir_fail(WEIR_ERR_NO_MEMORY, "cannot start the keep-alive thread");
        goto err_close_client;
    }
    *out = keeper;
    return WEIR_OK;

err_close_client:
    pthread_mutex_destroy(&keeper->lock);
    pthread_cond_destroy(&keeper->rest);
    pthread_cond_destroy(&keeper->wake);
err_close_rpc:
    weir_directory_client_close(keeper->client);
err_free:
    weir_free(keeper);
    return status;
}

void weir_keeper_close(weir_keeper *keeper)
{
    if (keeper == NULL)
        return;
    pthread_mutex_lock(&keeper->lock);
    keeper->closing = true;
    pthread_cond_signal(&keeper->wake);
    interrupt(keeper);
    pthread_mutex_unlock(&keeper->lock);
    pthread_join(keeper->thread, NULL);
    pthread_mutex_destroy(&keeper->lock);
    pthread_cond_destroy(&keeper->rest);
    pthread_cond_destroy(&keeper->wake);
    weir_directory_client_close(keeper->client);
    weir_free(keeper->marks);
    weir_free(keeper);
}

void weir_keeper_hold(weir_keeper *keeper, const char *version_uid)
{
    pthread_mutex_lock(&keeper->lock);
    snprintf(keeper->leased_uid, sizeof(keeper->leased_uid), "%s", version_uid ? version_uid : "");
    pthread_mutex_unlock(&keeper->lock);
}

void weir_keeper_announce(weir_keeper *keeper, const weir_source_record *record, bool now)
{
    pthread_mutex_lock(&keeper->lock);
    keeper->record = *record;
    keeper->announced = true;
    keeper->owes = false; /* what was owed is older than this */
    if (strcmp(keeper->held.version_uid, record->version_uid) != 0)
        keeper->holds = false;
    end_refit(keeper);
    keeper->now = now || keeper->is_forgotten;
    if (now)
        pthread_cond_signal(&keeper->wake);
    pthread_mutex_unlock(&keeper->lock);
}

void weir_keeper_acknowledge(weir_keeper *keeper, const weir_acknowledgement *acknowledgement)
{
    pthread_mutex_lock(&keeper->lock);
    keeper->owed = *acknowledgement;
    keeper->owes = keeper->now = true;
    end_refit(keeper);
    pthread_cond_signal(&keeper->wake);
    pthread_mutex_unlock(&keeper->lock);
}

void weir_keeper_held(weir_keeper *keeper, const weir_acknowledgement *word, const char *source_id)
{
    pthread_mutex_lock(&keeper->lock);
    keeper->held = *word;
    keeper->held.lease_id[0] = '\0';
    keeper->holds = source_id[0] != '\0';
    snprintf(keeper->held_id, sizeof(keeper->held_id), "%s", source_id);
    pthread_mutex_unlock(&keeper->lock);
}

/* ---- what was published ----------------------------------------------------------------------*/

/* The lock is held. Once: a trainer's ranks stay as many as they are. Without memory for it nothing
 * is remembered. */
static void have_marks(weir_keeper *keeper, size_t n_slots)
{
    if (keeper->marks != NULL || n_slots == 0)
        return;
    keeper->marks = weir_alloc_zeroed((MAX_PUBLICATIONS + 1) * 2 * n_slots, sizeof(uint64_t));
    keeper->n_slots = n_slots;
}

void weir_keeper_published(weir_keeper *keeper, const weir_publish_request *request,
                           const weir_publish_answer *answer)
{
    const char *uid = answer->version.uid;
    pthread_mutex_lock(&keeper->lock);
    memcpy(keeper->published_id, answer->source_id, sizeof(keeper->published_id));
    publication *one = find_publication(keeper, uid);
    if (one == NULL)
        one = find_publication(keeper, "");
    if (one != NULL) {
        *one = (publication){ .version = request->source->version,
                              .shard = *request->shard,
                              .slots = request->slots,
                              .n_slots = request->n_slots,
                              .attempt = answer->attempt };
        snprintf(one->own_uid, sizeof(one->own_uid), "%s", uid);
        snprintf(one->uid, sizeof(one->uid), "%s", uid);
        snprintf(one->trace_id, sizeof(one->trace_id), "%s", request->trace_id);
        snprintf(one->content, sizeof(one->content), "%s", request->content);
        have_marks(keeper, request->n_slots);
        add_marks(keeper, one, &answer->marks);
    }
    pthread_mutex_unlock(&keeper->lock);
}

void weir_keeper_remember(weir_keeper *keeper, const char *uid, const weir_slot_marks *marks)
{
    pthread_mutex_lock(&keeper->lock);
    publication *one = uid[0] != '\0' ? find_publication(keeper, uid) : NULL;
    if (one != NULL)
        add_marks(keeper, one, marks);
    pthread_mutex_unlock(&keeper->lock);
}

bool weir_keeper_is_refused(weir_keeper *keeper, const char *uid, char out_why[WEIR_NAME_BYTES])
{
    pthread_mutex_lock(&keeper->lock);
    const publication *one = uid[0] != '\0' ? find_publication(keeper, uid) : NULL;
    bool is_refused = one != NULL && one->refusal[0] != '\0';
    if (is_refused)
        memcpy(out_why, one->refusal, sizeof(one->refusal));
    pthread_mutex_unlock(&keeper->lock);
    return is_refused;
}

void weir_keeper_forgotten(weir_keeper *keeper)
{
    pthread_mutex_lock(&keeper->lock);
    keeper->is_forgotten = keeper->now = true;
    pthread_cond_signal(&keeper->wake);
    pthread_mutex_unlock(&keeper->lock);
}

void weir_keeper_retire(weir_keeper *keeper, const char *uid, char out_uid[WEIR_ID_BYTES])
{
    snprintf(out_uid, WEIR_ID_BYTES, "%s", uid);
    if (uid[0] == '\0')
        return;
    weir_keeper_pause(keeper);
    pthread_mutex_lock(&keeper->lock);
    publication *one = find_publication(keeper, uid);
    if (one != NULL) {
        memcpy(out_uid, one->uid, WEIR_ID_BYTES);
        one->own_uid[0] = '\0';
    }
    pthread_mutex_unlock(&keeper->lock);
    weir_keeper_resume(keeper);
}

bool weir_keeper_find(weir_keeper *keeper, const char *uid, char out_uid[WEIR_ID_BYTES])
{
    bool found = false;
    pthread_mutex_lock(&keeper->lock);
    for (size_t i = 0; i < MAX_PUBLICATIONS && !found && uid[0] != '\0'; i++) {
        const publication *one = &keeper->published[i];
        found = one->own_uid[0] != '\0' && strcmp(one->uid, uid) == 0;
        if (found)
            memcpy(out_uid, one->own_uid, WEIR_ID_BYTES);
    }
    pthread_mutex_unlock(&keeper->lock);
    return found;
}
