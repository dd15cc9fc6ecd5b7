/* SPDX-License-Identifier: Apache-2.0 */
/* window.c - the trainer's half of stop 6 of 9, where a version passes through a window: one round.
 *
 * Takes   a PUBLISHED version, of which no byte has been made.
 * Gives   every worker that reads a part of it has read it, verified, group by group.
 * Before  publish.c        After  the next version
 * Breaks  a weight that is not finite, a reader that dies, stalls or gives up: the round is off,
 *         all readers are told why, and nobody keeps a part of it. The next call begins afresh.
 *
 * A buffer is filled again when every reader of the group in it has asked for a later one. The
 * manifest service takes down what readers say; this thread makes bytes and waits.
 */
#include "refit/window.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "base/error.h"

#define LOOK_EVERY_US 20000u /* for a cancellation, and for the end of the bound */
#define PIECES_PER_BUFFER 4u
#define ANSWER_BYTES (WEIR_CREDIT_TEXT + WEIR_NAME_BYTES + 192u)
#define MEMBERSHIP_BYTES (WEIR_GROUP_KEY_BYTES + 32u)
/* A broadcast between two GPUs is over in less than a millisecond: groups are to be large. */
#define DEFAULT_CAST_BYTES ((uint64_t)192 << 20)
#define DEFAULT_GPU_CAST_BYTES ((uint64_t)512 << 20)

/* ---- open and close --------------------------------------------------------------------------*/

bool weir_window_is_wanted(const weir_trainer *trainer)
{
    return trainer->is_sharded && (trainer->window_bytes > 0 || trainer->casts);
}

static uint64_t buffer_bytes_of(const weir_trainer *trainer)
{
    bool on_gpu = trainer->memory == WEIR_MEMORY_CUDA;
    uint64_t n_bytes = on_gpu ? DEFAULT_GPU_CAST_BYTES : DEFAULT_CAST_BYTES;
    if (trainer->window_bytes > 0)
        n_bytes = trainer->window_bytes;
    return n_bytes / trainer->n_slots;
}

uint64_t weir_window_most_piece(const weir_trainer *trainer)
{
    return weir_window_is_wanted(trainer) ? buffer_bytes_of(trainer) / PIECES_PER_BUFFER + 1 : 0;
}

static uint64_t largest_group(const weir_groups *groups)
{
    uint64_t most = 0;
    for (uint32_t g = 0; g < groups->n_groups; g++) {
        uint64_t n = groups->shard_ends[g] - weir_groups_first_shard(groups, g);
        most = n > most ? n : most;
    }
    return most;
}

static weir_status cut_window(weir_trainer *trainer, weir_window *window)
{
    weir_source *source = &trainer->source;
    weir_status status = WEIR_OK;
    if (trainer->casts)
        status = weir_audiences_find(source->shards, source->n_shards, &trainer->replica_mesh,
                                     &source->arena, &window->audiences);
    if (status == WEIR_OK)
        status = weir_groups_cut(source, trainer->casts ? &window->audiences : NULL,
                                 buffer_bytes_of(trainer), trainer->n_slots, &window->groups);
    return status;
}

static weir_status open_cast(weir_trainer *trainer, weir_window *window)
{
    weir_link link;
    weir_status status = weir_delivery_link(trainer, &link);
    if (status == WEIR_OK)
        status = weir_cast_open(trainer, &link, &window->groups, &window->audiences, &window->cast);
    return status;
}

static weir_status fill_window(weir_trainer *trainer, weir_window *window)
{
    weir_source *source = &trainer->source;
    const weir_groups *groups = &window->groups;
    weir_status status = cut_window(trainer, window);
    if (status != WEIR_OK)
        return status;
    window->run = trainer->worker.run;
    window->digests = weir_arena_zeroed(&source->arena, source->n_shards, sizeof(weir_digest));
    const unsigned char *reads =
        trainer->casts
            ? weir_groups_receivers(groups, &window->audiences, &source->arena)
            : weir_groups_readers(groups, source->shards, &trainer->replica_mesh, &source->arena);
    window->making = weir_arena_zeroed(&source->arena, source->n_shards, sizeof(weir_digest));
    if (window->digests == NULL || window->making == NULL || reads == NULL)
        return WEIR_ERR_NO_MEMORY;
    status = weir_credits_open(&window->credits, groups->n_groups,
                               weir_replica_mesh_workers(&trainer->replica_mesh), groups->n_buffers,
                               reads);
    window->credits.casts = trainer->casts;
    if (status == WEIR_OK)
        status = weir_buffer_reserve(&window->answer,
                                     ANSWER_BYTES + window->audiences.n * MEMBERSHIP_BYTES +
                                         largest_group(groups) * sizeof(weir_digest));
    if (status == WEIR_OK && trainer->casts)
        status = open_cast(trainer, window);
    return status;
}

static void free_window(weir_window *window)
{
    weir_cast_close(window->cast);
    weir_credits_close(&window->credits);
    weir_buffer_free(&window->answer);
    pthread_cond_destroy(&window->changed);
    weir_free(window);
}

weir_status weir_window_open(weir_trainer *trainer)
{
    weir_window *window = weir_alloc_zeroed(1, sizeof(*window));
    if (window == NULL)
        return WEIR_ERR_NO_MEMORY;
    pthread_condattr_t monotonic;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&window->changed, &monotonic);
    pthread_condattr_destroy(&monotonic);
    weir_status status = fill_window(trainer, window);
    if (status != WEIR_OK) {
        free_window(window);
        return status;
    }
    pthread_mutex_lock(&trainer->lock);
    trainer->window = window;
    pthread_mutex_unlock(&trainer->lock);
    return WEIR_OK;
}

void weir_window_close(weir_trainer *trainer)
{
    pthread_mutex_lock(&trainer->lock);
    weir_window *window = trainer->window;
    trainer->window = NULL;
    pthread_mutex_unlock(&trainer->lock);
    if (window != NULL)
        free_window(window);
}

/* ---- what readers hear -----------------------------------------------------------------------*/

void weir_window_offer(weir_trainer *trainer, const weir_slot *slot)
{
    weir_window *window = trainer->window;
    pthread_mutex_lock(&trainer->lock);
    weir_credits_reset(&window->credits);
    window->version = slot;
    window->number = slot->version;
    memcpy(window->uid, slot->uid, sizeof(window->uid));
    pthread_mutex_unlock(&trainer->lock);
}

void weir_window_withdraw(weir_trainer *trainer, const char *why)
{
    weir_window *window = trainer->window;
    pthread_mutex_lock(&trainer->lock);
    if (window != NULL && window->version != NULL) {
        weir_credits_withdraw(&window->credits, why);
        window->version = NULL;
    }
    pthread_mutex_unlock(&trainer->lock);
}

/* The digests of a group that is there. */
static void add_digests(const weir_window *window, uint32_t group, weir_group_record *record)
{
    const weir_groups *groups = &window->groups;
    if (group == groups->n_groups)
        return;
    uint32_t first = weir_groups_first_shard(groups, group);
    record->digests = window->digests + first;
    record->n_digests = groups->shard_ends[group] - first;
}

/* Of groups that are broadcast: who gave up in the midst, and comes again, is for the next one. */
static bool is_in_round(const weir_window *window, const char *reader)
{
    const weir_credits *credits = &window->credits;
    return credits->sending &&
           (window->cast == NULL || weir_credits_member(credits, reader) != NULL);
}

/* Of groups that are broadcast: what the answer is of, and where its reader stands. */
static void add_header(weir_window *window, const weir_manifest_request *request,
                       weir_group_record *record)
{
    bool has_begun = request->round != 0 && window->credits.made > 0;
    const weir_groups *groups = &window->groups;
    record->format = WEIR_GROUP_FORMAT;
    record->run = window->run;
    record->version = window->number;
    record->version_uid = window->uid;
    record->n_groups = groups->n_groups;
    record->n_bytes = record->group < groups->n_groups ? groups->n_bytes[record->group] : 0;
    record->left_out = record->state == WEIR_GROUP_WAIT &&
                       weir_credits_left_out(&window->credits, request->reader);
    if (record->state == WEIR_GROUP_WAIT && !has_begun && is_in_round(window, request->reader))
        record->memberships =
            weir_cast_memberships(window->cast, request->reader, &record->n_memberships);
}

bool weir_window_answer(weir_window *window, const weir_manifest_request *request,
                        weir_manifest_found *out)
{
    weir_credits *credits = &window->credits;
    weir_group_ask ask = { .reader = request->reader,
                           .worker = request->worker,
                           .group = request->group,
                           .round = request->round,
                           .gave_up = request->gave_up,
                           .fresh = request->fresh };
    weir_group_state state;
    if (strcmp(window->uid, request->version_uid) != 0 ||
        weir_credits_ask(credits, &ask, weir_now_ns(), &state) != WEIR_OK)
        return false;
    weir_group_record record = {
        .state = state,
        .round = is_in_round(window, request->reader) ? credits->round : request->round,
        .why = state == WEIR_GROUP_OFF || credits->withdrawn ? credits->why : "",
        .group = request->group
    };
    if (state == WEIR_GROUP_READY)
        add_digests(window, request->group, &record);
    if (window->cast != NULL)
        add_header(window, request, &record);
    if (weir_group_record_encode(&record, &window->answer) != WEIR_OK)
        return false;
    *out = (weir_manifest_found){ window->answer.data, window->answer.n_bytes, "" };
    pthread_cond_signal(&window->changed);
    return true;
}

/* ---- making groups ---------------------------------------------------------------------------*/

weir_status weir_window_make(weir_trainer *trainer, uint32_t group)
{
    weir_window *window = trainer->window;
    const weir_groups *groups = &window->groups;
    size_t first_job = weir_groups_first_job(groups, group);
    uint32_t first = weir_groups_first_shard(groups, group);
    size_t n_bytes = (groups->shard_ends[group] - first) * sizeof(*window->digests);
    memset(window->making + first, 0, n_bytes);
    weir_status status =
        weir_stage_jobs(trainer, &trainer->slots[group % groups->n_buffers], first_job,
                        groups->job_ends[group] - first_job, window->making);
    if (status != WEIR_OK)
        return status;
    pthread_mutex_lock(&trainer->lock); /* other groups' are being handed out meanwhile */
    memcpy(window->digests + first, window->making + first, n_bytes);
    pthread_mutex_unlock(&trainer->lock);
    return WEIR_OK;
}

weir_status weir_window_try(weir_trainer *trainer)
{
    weir_status status = WEIR_OK;
    for (uint32_t g = 0; g < trainer->window->groups.n_groups && status == WEIR_OK; g++)
        status = weir_window_make(trainer, g);
    return status;
}

void weir_window_group_done(weir_window_round *r, uint32_t group)
{
    const weir_groups *groups = &r->window->groups;
    const weir_source *source = &r->trainer->source;
    for (uint32_t s = weir_groups_first_shard(groups, group); s < groups->shard_ends[group]; s++)
        r->done_bytes += source->shards[s].n_bytes;
    weir_worker_progress(&r->trainer->worker, WEIR_STOP_TRANSFER, r->version, r->done_bytes,
                         source->n_bytes);
}

/* ---- waiting ---------------------------------------------------------------------------------*/

const char *weir_window_who_left(const weir_window_round *r, uint32_t worker, char *text,
                                 size_t text_bytes)
{
    const weir_credits *credits = &r->window->credits;
    text[0] = '\0';
    for (size_t i = 0; i < credits->n_readers && text[0] == '\0'; i++) {
        const weir_reader *reader = &credits->readers[i];
        if (reader->left && reader->worker == worker)
            snprintf(text, text_bytes, "; %s gave up: %s", reader->id, reader->why);
    }
    return text;
}

/* The lock is held: the gap points into the table. */
static weir_status time_out(const weir_window_round *r, uint32_t group, const weir_credit_gap *gap)
{
    const weir_worker *worker = &r->trainer->worker;
    uint32_t n_groups = r->window->groups.n_groups;
    char what[64], left[2 * WEIR_CREDIT_TEXT];
    if (group < n_groups)
        snprintf(what, sizeof(what), "group %u of %u of", group, n_groups);
    else
        snprintf(what, sizeof(what), "the last of %u groups of", n_groups);
    if (gap->reader == NULL)
        return weir_fail(WEIR_ERR_TIMED_OUT,
                         "timed out after %.1f s: %u of %u replicas have a worker %u that has come "
                         "for %s version %" PRIu64 " of %s%s",
                         r->timeout_ms / 1e3, gap->n_there, r->n_replicas, gap->worker, what,
                         r->version, worker->model,
                         weir_window_who_left(r, gap->worker, left, sizeof(left)));
    return weir_fail(WEIR_ERR_TIMED_OUT,
                     "timed out after %.1f s: %s (worker %u of its engine) has not read %s version "
                     "%" PRIu64 " of %s: the last that it asked for is group %u",
                     r->timeout_ms / 1e3, gap->reader->id, gap->worker, what, r->version,
                     worker->model, gap->reader->next);
}

weir_status weir_window_gave_up(const weir_window_round *r, const weir_reader *reader)
{
    return weir_fail(WEIR_ERR_PEER_LOST,
                     "%s (worker %u of its engine) gave up version %" PRIu64 " at group %u of %u: "
                     "%.300s",
                     reader->id, reader->worker, r->version, reader->next,
                     r->window->groups.n_groups, reader->why);
}

void weir_window_await_change(const weir_window_round *r, unsigned wait_us)
{
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_nsec += (long)wait_us * 1000; /* less than a second */
    if (until.tv_nsec >= 1000000000) {
        until.tv_sec++;
        until.tv_nsec -= 1000000000;
    }
    pthread_cond_timedwait(&r->window->changed, &r->trainer->lock, &until);
}

void weir_window_note_progress(weir_window_round *r)
{
    const weir_credits *credits = &r->window->credits;
    uint64_t progress = credits->sending ? weir_credits_progress(credits) : 0;
    if (progress <= r->progress)
        return;
    r->deadline = weir_deadline_in(r->timeout_ms);
    r->progress = progress;
}

/* One look under the lock, and a little wait when there is nothing to see. IN_PROGRESS: somebody
 * has not read the group. */
static weir_status look(weir_window_round *r, uint32_t group)
{
    const weir_credits *credits = &r->window->credits;
    weir_credit_gap gap;
    const weir_reader *lost = weir_credits_lost(credits);
    if (lost != NULL)
        return weir_window_gave_up(r, lost);
    if (weir_credits_passed(credits, group, &gap))
        return WEIR_OK;
    weir_window_note_progress(r);
    if (weir_deadline_passed(r->deadline))
        return time_out(r, group, &gap);
    weir_worker_waits_for(&r->trainer->worker, gap.reader != NULL ? gap.reader->id : "");
    weir_window_await_change(r, LOOK_EVERY_US);
    return WEIR_IN_PROGRESS;
}

static weir_status wait_until_read(weir_window_round *r, uint32_t group)
{
    for (;;) {
        pthread_mutex_lock(&r->trainer->lock);
        weir_status status = look(r, group);
        pthread_mutex_unlock(&r->trainer->lock);
        if (status == WEIR_IN_PROGRESS)
            status = weir_worker_check_cancelled(&r->trainer->worker);
        else
            return status;
        if (status != WEIR_OK)
            return status;
    }
}

/* ---- a round ---------------------------------------------------------------------------------*/

/* Frees the buffer, fills it, and lets readers have it. */
static weir_status send_group(weir_window_round *r, uint32_t group)
{
    weir_trainer *trainer = r->trainer;
    weir_credits *credits = &r->window->credits;
    weir_status status = WEIR_OK;
    if (group >= credits->n_buffers) {
        status = wait_until_read(r, group - credits->n_buffers);
        if (status != WEIR_OK)
            return status;
        weir_window_group_done(r, group - credits->n_buffers);
    }
    pthread_mutex_lock(&trainer->lock);
    weir_credits_fill(credits, group);
    pthread_mutex_unlock(&trainer->lock);
    status = weir_window_make(trainer, group);
    if (status != WEIR_OK)
        return status;
    pthread_mutex_lock(&trainer->lock);
    weir_credits_made(credits);
    pthread_mutex_unlock(&trainer->lock);
    return WEIR_OK;
}

static weir_status run_round(weir_window_round *r)
{
    uint32_t n_groups = r->window->groups.n_groups;
    weir_status status = WEIR_OK;
    pthread_mutex_lock(&r->trainer->lock);
    weir_credits_begin(&r->window->credits, r->n_replicas, weir_now_ns());
    pthread_mutex_unlock(&r->trainer->lock);
    weir_worker_progress(&r->trainer->worker, WEIR_STOP_TRANSFER, r->version, 0, 0);
    for (uint32_t g = 0; g < n_groups && status == WEIR_OK; g++)
        status = send_group(r, g);
    if (status == WEIR_OK)
        status = wait_until_read(r, n_groups);
    if (status != WEIR_OK)
        weir_error_prefix("trainer rank %u", r->trainer->rank);
    pthread_mutex_lock(&r->trainer->lock);
    weir_credits_end(&r->window->credits, status != WEIR_OK ? weir_last_error() : NULL);
    pthread_mutex_unlock(&r->trainer->lock);
    return status;
}

static weir_status find_version(const weir_trainer *trainer, uint64_t version)
{
    const weir_window *window = trainer->window;
    if (window != NULL && window->version != NULL && window->version->version == version)
        return WEIR_OK;
    return weir_fail(WEIR_ERR_NOT_FOUND,
                     "version %" PRIu64 " cannot be sent: trainer rank %u has published %s"
                     "%" PRIu64 " last",
                     version, trainer->rank, trainer->has_published ? "" : "nothing, ",
                     trainer->last_version);
}

weir_status weir_window_check_held(weir_trainer *trainer, uint64_t version)
{
    char who[WEIR_NAME_BYTES] = "";
    pthread_mutex_lock(&trainer->lock);
    if (trainer->window != NULL)
        memcpy(who, trainer->window->credits.undone, sizeof(who));
    pthread_mutex_unlock(&trainer->lock);
    if (who[0] == '\0')
        return WEIR_OK;
    return weir_fail(WEIR_ERR_PEER_LOST,
                     "trainer rank %u: %s has taken all of version %" PRIu64
                     ", and does not hold it: it has failed, or was started anew",
                     trainer->rank, who, version);
}

weir_status weir_window_ready(weir_trainer *trainer, uint64_t version, unsigned *out_n)
{
    weir_status status = find_version(trainer, version);
    if (status != WEIR_OK)
        return status;
    pthread_mutex_lock(&trainer->lock);
    *out_n = weir_credits_ready(&trainer->window->credits, weir_now_ns());
    pthread_mutex_unlock(&trainer->lock);
    return WEIR_OK;
}

weir_status weir_window_serve(weir_trainer *trainer, uint64_t version, unsigned n_replicas,
                              unsigned timeout_ms)
{
    weir_window *window = trainer->window;
    if (n_replicas == 0)
        return weir_fail(WEIR_ERR_INVALID,
                         "version %" PRIu64 " passes through a window: it can be sent only to a "
                         "number of replicas, not to none",
                         version);
    weir_status status = find_version(trainer, version);
    if (status != WEIR_OK)
        return status;
    weir_window_round r = { .trainer = trainer,
                            .window = window,
                            .version = version,
                            .n_replicas = n_replicas,
                            .timeout_ms = timeout_ms,
                            .deadline = weir_deadline_in(timeout_ms) };
    status = weir_delivery_follow(trainer);
    if (status != WEIR_OK)
        return status;
    weir_keeper_begin(trainer->worker.keeper);
    status = window->cast != NULL ? weir_window_cast(&r) : run_round(&r);
    weir_keeper_end(trainer->worker.keeper);
    return status;
}
