/* SPDX-License-Identifier: Apache-2.0 */
/* attend.c - stop 6 of 9 where a version is pushed: the replica's half of a round.
 *
 * Takes   a leased version whose trainer ranks push, and where their shards go.
 * Gives   every byte in the live parameters, verified; staged, with an undo log of what was there.
 * Before  discover.c        After  install.c, which has nothing left to do
 * Breaks  the trainer does not begin, stalls, dies or calls the round off, a digest differs: the
 *         other side is told; staged: the caller undoes; direct: a mixture, once the engine paused.
 *
 * The engine runs until everything else is ready, and is paused just before the first byte may
 * come.
 */
#include "refit/attend.h"

#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "base/error.h"
#include "refit/replica.h"

#define SEND_MS 5000u

/* ---- open and close --------------------------------------------------------------------------*/

static weir_status open_turn(weir_work *work, weir_turn *turn)
{
    weir_arena_init(&turn->arena, 0);
    weir_status status = weir_task_open(work, &turn->digest);
    if (status == WEIR_OK)
        status = weir_task_open(work, &turn->pass);
    if (status == WEIR_OK)
        status = weir_task_open(work, &turn->commit);
    return status;
}

weir_status weir_attendance_open(weir_replica *replica, weir_remote *remote, weir_attendance **out)
{
    weir_attendance *a = weir_alloc_zeroed(1, sizeof(*a));
    if (a == NULL)
        return WEIR_ERR_NO_MEMORY;
    a->replica = replica;
    a->remote = remote;
    weir_arena_init(&a->arena, 0);
    weir_arena_init(&a->scratch, 0);
    weir_status status = WEIR_OK;
    for (size_t i = 0; i < WEIR_TURNS && status == WEIR_OK; i++)
        status = open_turn(replica->work, &a->turns[i]);
    if (status != WEIR_OK) {
        weir_attendance_close(a);
        return status;
    }
    *out = a;
    return WEIR_OK;
}

static void leave_group(weir_attendance *a, bool abort)
{
    if (a->group != NULL)
        a->link.ops->group_close(a->group, abort);
    a->group = NULL;
}

void weir_attendance_close(weir_attendance *a)
{
    if (a == NULL)
        return;
    for (size_t i = 0; i < WEIR_TURNS; i++) {
        weir_task_close(a->turns[i].digest);
        weir_task_close(a->turns[i].pass);
        weir_task_close(a->turns[i].commit);
        weir_arena_close(&a->turns[i].arena);
    }
    leave_group(a, false);
    weir_places_drop(&a->next);
    weir_arena_close(&a->arena);
    weir_arena_close(&a->scratch);
    weir_free(a);
}

/* ---- ready -----------------------------------------------------------------------------------*/

bool weir_attend_by_windows(const weir_replica *replica)
{
    return replica->mode == WEIR_INSTALL_STAGED || replica->schedule.loads;
}

/* Into a live parameter, or the loader; of a tensor that the loader does not need anywhere: no byte
 * of it is kept. */
static unsigned char *target_of(weir_attendance *a, const weir_plan_copy *planned)
{
    const weir_replica *replica = a->replica;
    if (!replica->schedule.loads)
        return (unsigned char *)replica->live[planned->parameter].data + planned->parameter_offset;
    a->tensors[planned->shard] = planned->parameter;
    return replica->loader->tensors[planned->parameter].group != WEIR_ANY
               ? weir_loader_at(replica->loader, planned->parameter)
               : replica->loader->buffers[0];
}

/* Where each shard of this rank goes; NULL for one that another rank sends. */
static weir_status aim(weir_attendance *a, size_t source)
{
    const weir_schedule *schedule = &a->replica->schedule;
    size_t n = a->remote->n_shards;
    weir_arena_reset(&a->arena);
    a->targets = weir_arena_zeroed(&a->arena, n, sizeof(*a->targets));
    a->received_bytes = weir_arena_zeroed(&a->arena, n, sizeof(*a->received_bytes));
    a->digests = weir_arena_zeroed(&a->arena, n, sizeof(*a->digests));
    a->tensors = NULL;
    if (schedule->loads)
        a->tensors = weir_arena_zeroed(&a->arena, n, sizeof(*a->tensors));
    if (a->targets == NULL || a->received_bytes == NULL || a->digests == NULL ||
        (schedule->loads && a->tensors == NULL))
        return WEIR_ERR_NO_MEMORY;
    for (size_t i = 0; i < schedule->n_copies; i++) {
        const weir_plan_copy *planned = &schedule->planned[i];
        if (planned->source != source)
            continue;
        const weir_shard *shard = &a->remote->shards[planned->shard];
        if (planned->n_bytes != shard->n_bytes)
            return weir_fail(WEIR_ERR_LAYOUT,
                             "%s: %s pushes all of it, but part of it comes from another rank",
                             shard->name, a->remote->who);
        a->targets[planned->shard] = target_of(a, planned);
    }
    for (size_t s = 0; s < n; s++) {
        if (a->targets[s] == NULL)
            return weir_fail(WEIR_ERR_LAYOUT, "%s: pushed by %s and by another rank",
                             a->remote->shards[s].name, a->remote->who);
    }
    a->n_received = a->n_verified = a->n_passed = a->n_committed = 0;
    a->passes = a->ended = a->called = a->exposed = false;
    a->done_bytes = source > 0 ? schedule->participants[source - 1].attendance->done_bytes : 0;
    return WEIR_OK;
}

static weir_status send_ready(weir_attendance *a, size_t source, const weir_discovery *discovery)
{
    weir_replica *replica = a->replica;
    const weir_participant *before = &replica->schedule.participants[source > 0 ? source - 1 : 0];
    bool staged = weir_attend_by_windows(replica);
    weir_round_ready ready = { .version = discovery->version,
                               .version_uid = discovery->uid,
                               .staged = staged,
                               .n_windows = staged ? WEIR_REPLICA_WINDOWS : 0,
                               .window_bytes = staged ? replica->window_bytes : 0,
                               .n_expected = source > 0 ? before->attendance->n_members : 0 };
    weir_link link;
    weir_arena_reset(&a->scratch);
    weir_status status = weir_worker_link(&replica->worker, a->remote->manifest.transport, &link);
    if (status == WEIR_OK && (link.ops->caps & WEIR_CAP_MAP)) {
        status = weir_replica_places(replica, a->remote->shards, a->remote->n_shards, a->targets,
                                     &a->scratch);
        ready.places = replica->places.data;
        ready.places_bytes = replica->places.n_bytes;
    }
    a->link = link;
    if (status == WEIR_OK)
        status = weir_round_send_ready(a->remote->push, &ready, &a->scratch, SEND_MS);
    return status;
}

/* ---- called ----------------------------------------------------------------------------------*/

static weir_status called_off(weir_attendance *a, const weir_round_abort *abort)
{
    if (abort->nothing_sent && a->n_received == 0)
        a->exposed = false;
    return weir_fail(abort->status, "%s called it off: %s", a->remote->who, abort->text);
}

static weir_status out_of_place(const weir_attendance *a, const weir_round_message *message)
{
    return weir_fail(WEIR_ERR_CORRUPT, "%s sent %s out of place", a->remote->who,
                     weir_round_type_name((uint16_t)message->type));
}

/* The next message that is not news, decoded into `arena`. IN_PROGRESS when none came. */
static weir_status listen_to(weir_attendance *a, unsigned wait_ms, weir_arena *arena,
                             weir_round_message *out)
{
    weir_arena_reset(arena);
    weir_status status = weir_round_receive(a->remote->push, wait_ms, arena, out);
    if (status != WEIR_OK)
        return status;
    if (out->type == WEIR_ROUND_ABORT)
        return called_off(a, &out->abort);
    return out->type == WEIR_ROUND_NEWS ? WEIR_IN_PROGRESS : WEIR_OK;
}

static weir_status join_group(weir_attendance *a, const weir_round_round *called)
{
    if (called->group_key_bytes == 0)
        return a->group != NULL ? WEIR_OK
                                : weir_fail(WEIR_ERR_CORRUPT, "%s counts on a group that is gone",
                                            a->remote->who);
    leave_group(a, false);
    weir_group_options options = WEIR_GROUP_OPTIONS_INIT;
    options.key = called->group_key;
    options.rank = called->position + 1;
    options.n_ranks = called->n_members + 1;
    options.timeout_ms = a->replica->worker.timeout_ms;
    options.who = a->remote->who;
    a->replica->worker.counters.connections++;
    weir_status status = a->link.ops->group_open(a->link.transport, &options, &a->group);
    weir_deadline deadline = weir_deadline_in(options.timeout_ms);
    while (status == WEIR_OK) {
        weir_round_message message;
        weir_status joined = a->link.ops->group_test(a->group);
        if (joined != WEIR_IN_PROGRESS)
            return joined;
        if (weir_deadline_passed(deadline))
            return weir_fail(WEIR_ERR_TIMED_OUT, "timed out after %.1f s joining the group of %s",
                             options.timeout_ms / 1e3, a->remote->who);
        status = listen_to(a, 1, &a->scratch, &message);
        status = status == WEIR_IN_PROGRESS ? WEIR_OK
                 : status == WEIR_OK        ? out_of_place(a, &message)
                                            : status;
    }
    return status;
}

static weir_status take_call(weir_attendance *a, const weir_round_round *called)
{
    if (strcmp(called->transport, a->remote->manifest.transport) != 0)
        return weir_fail(WEIR_ERR_LAYOUT, "%s pushes by %s, its manifest says %s", a->remote->who,
                         called->transport, a->remote->manifest.transport);
    a->largest_step_bytes = called->largest_step_bytes;
    a->n_members = called->n_members;
    a->called = true;
    a->passes = called->next_worker_id[0] != '\0';
    if (a->passes) {
        char who[WEIR_NAME_BYTES + 16];
        snprintf(who, sizeof(who), "replica %s", called->next_worker_id);
        weir_places_told told = { called->next_places,       called->next_places_bytes,
                                  called->next_staged,       called->next_n_windows,
                                  called->next_window_bytes, who };
        return weir_places_take(&a->next, &a->replica->worker, &told, a->remote->shards,
                                a->remote->n_shards);
    }
    return a->link.ops->caps & WEIR_CAP_MAP ? WEIR_OK : join_group(a, called);
}

/* A rank whose bytes are all here may still call the version off, because another replica failed:
 * then the ranks after it will not begin. One that is gone has nothing more to say. */
static weir_status hear_earlier(weir_attendance *a, size_t source)
{
    for (size_t p = 0; p < source; p++) {
        weir_attendance *earlier = a->replica->schedule.participants[p].attendance;
        weir_round_message message = { 0 };
        if (earlier->remote->push == NULL)
            continue;
        weir_status status = listen_to(earlier, 0, &earlier->scratch, &message);
        if (message.type == WEIR_ROUND_ABORT)
            return status;
    }
    return WEIR_OK;
}

static weir_status wait_called(weir_attendance *a, size_t source, const weir_discovery *discovery)
{
    weir_worker *worker = &a->replica->worker;
    weir_deadline deadline = weir_deadline_in(worker->timeout_ms);
    for (;;) {
        weir_round_message message;
        weir_status status = listen_to(a, 20, &a->scratch, &message);
        if (status == WEIR_OK) {
            if (message.type != WEIR_ROUND_ROUND)
                return out_of_place(a, &message);
            if (strcmp(message.round.version_uid, discovery->uid) != 0)
                return weir_fail(WEIR_ERR_CORRUPT, "%s begins a round of another version",
                                 a->remote->who);
            a->version = discovery->version;
            snprintf(a->version_uid, sizeof(a->version_uid), "%s", discovery->uid);
            return take_call(a, &message.round);
        }
        if (status != WEIR_IN_PROGRESS)
            return status;
        if (weir_deadline_passed(deadline))
            return weir_fail(WEIR_ERR_TIMED_OUT,
                             "timed out: %s has version %" PRIu64
                             ", but has not begun to push it for %.1f s; it does while it waits "
                             "for its replicas (weir_trainer_wait)",
                             a->remote->who, discovery->version, worker->timeout_ms / 1e3);
        status = weir_worker_check_cancelled(worker);
        if (status == WEIR_OK)
            status = hear_earlier(a, source);
        if (status != WEIR_OK)
            return status;
    }
}

/* ---- steps -----------------------------------------------------------------------------------*/

static weir_status take_end(weir_attendance *a, uint32_t n_steps)
{
    if (n_steps != a->n_received)
        return weir_fail(WEIR_ERR_CORRUPT, "%s sent %u steps, %u have come", a->remote->who,
                         n_steps, a->n_received);
    for (size_t s = 0; s < a->remote->n_shards; s++) {
        const weir_shard *shard = &a->remote->shards[s];
        if (a->received_bytes[s] != shard->n_bytes)
            return weir_fail(WEIR_ERR_LAYOUT, "%s: %" PRIu64 " of %" PRIu64 " bytes came from %s",
                             shard->name, a->received_bytes[s], shard->n_bytes, a->remote->who);
    }
    a->ended = true;
    return WEIR_OK;
}

static weir_status hear(weir_attendance *a, bool *out_progress)
{
    weir_round_message message;
    weir_turn *turn = weir_turn_next(a);
    /* With nothing to look after there is only the trainer to wait for. */
    unsigned wait_ms = weir_turns_settled(a) ? 1 : 0;
    weir_status status = listen_to(a, wait_ms, &turn->arena, &message);
    if (status != WEIR_OK)
        return status == WEIR_IN_PROGRESS ? WEIR_OK : status;
    *out_progress = true;
    if (message.type == WEIR_ROUND_STEP)
        return weir_turn_begin(a, &message.step);
    return message.type == WEIR_ROUND_END ? take_end(a, message.number) : out_of_place(a, &message);
}

/* The trainer knows which replica keeps all others waiting: its own bound is to end first. */
static unsigned bound_of_steps(const weir_worker *worker)
{
    unsigned more_ms = worker->timeout_ms / 4;
    return worker->timeout_ms + (more_ms < UINT_MAX - worker->timeout_ms ? more_ms : 0);
}

static weir_status take_steps(weir_attendance *a, uint64_t version)
{
    weir_worker *worker = &a->replica->worker;
    unsigned timeout_ms = bound_of_steps(worker);
    weir_deadline deadline = weir_deadline_in(timeout_ms);
    while (!a->ended || !weir_turns_settled(a)) {
        bool progress = false;
        weir_status status = WEIR_OK;
        if (!a->ended && weir_turns_have_room(a))
            status = hear(a, &progress);
        if (status == WEIR_OK)
            status = weir_turns_advance(a, &progress);
        if (status != WEIR_OK)
            return status;
        if (progress) {
            deadline = weir_deadline_in(timeout_ms);
            weir_worker_progress(worker, WEIR_STOP_TRANSFER, version, a->done_bytes,
                                 a->replica->schedule.n_bytes);
        } else if (weir_deadline_passed(deadline)) {
            return weir_fail(WEIR_ERR_TIMED_OUT,
                             "timed out: nothing from %s for %.1f s (%u steps have come, %u are "
                             "verified)",
                             a->remote->who, timeout_ms / 1e3, a->n_received, a->n_verified);
        }
    }
    return WEIR_OK;
}

/* ---- one round -------------------------------------------------------------------------------*/

static weir_status attend(weir_attendance *a, size_t source, const weir_discovery *discovery,
                          bool *out_paused)
{
    weir_replica *replica = a->replica;
    weir_status status = aim(a, source);
    weir_worker_waits_for(&replica->worker, a->remote->worker_id);
    if (status == WEIR_OK)
        status = send_ready(a, source, discovery);
    if (status == WEIR_OK)
        status = wait_called(a, source, discovery);
    if (status == WEIR_OK && !*out_paused) {
        status = weir_live_begin(replica);
        *out_paused = status == WEIR_OK;
    }
    if (status == WEIR_OK) {
        a->exposed = true;
        weir_arena_reset(&a->scratch);
        status =
            weir_round_send_number(a->remote->push, WEIR_ROUND_PAUSED, 0, &a->scratch, SEND_MS);
    }
    if (status == WEIR_OK)
        status = take_steps(a, discovery->version);
    for (size_t s = 0; s < a->remote->n_shards && status == WEIR_OK; s++)
        a->remote->shards[s].digest = a->digests[s];
    return status;
}

/* Whatever is still on its way ends here; the trainer hears why, and may begin again. */
static void give_up(weir_attendance *a, weir_status why)
{
    weir_error_line cause;
    weir_error_save(&cause);
    weir_round_abort abort = { .status = why, .text = cause.text };
    if (a->called) /* else the trainer counts on the group of the last round */
        leave_group(a, true);
    weir_turns_end(a);
    weir_arena_reset(&a->scratch);
    if (a->remote->push != NULL &&
        weir_round_send_abort(a->remote->push, &abort, &a->scratch, SEND_MS) != WEIR_OK)
        weir_remote_disconnect(a->remote);
    weir_error_restore(&cause);
}

static weir_status attend_participant(weir_replica *replica, size_t p,
                                      const weir_discovery *discovery, bool *out_paused)
{
    weir_participant *participant = &replica->schedule.participants[p];
    weir_status status = WEIR_OK;
    if (participant->attendance == NULL)
        status = weir_attendance_open(replica, participant->remote, &participant->attendance);
    if (status != WEIR_OK)
        return status;
    status = attend(participant->attendance, p, discovery, out_paused);
    if (status != WEIR_OK)
        give_up(participant->attendance, status);
    return status;
}

weir_status weir_stop_attend(weir_replica *replica, const weir_discovery *discovery,
                             bool *out_paused, bool *out_landed)
{
    weir_status status = WEIR_OK;
    *out_paused = *out_landed = false;
    if (weir_attend_by_windows(replica))
        status = weir_windows_open(replica);
    if (status == WEIR_OK && replica->schedule.loads)
        status = weir_load_begin(replica);
    for (size_t p = 0; p < replica->schedule.n_participants && status == WEIR_OK; p++) {
        status = attend_participant(replica, p, discovery, out_paused);
        const weir_attendance *a = replica->schedule.participants[p].attendance;
        *out_landed |=
            replica->schedule.loads ? replica->loader->has_written : a != NULL && a->exposed;
    }
    return status;
}

void weir_attend_tell(weir_replica *replica, const weir_report *report, weir_status status)
{
    weir_error_line cause;
    weir_error_save(&cause);
    weir_round_done done = { .version = report->version,
                             .status = status,
                             .text = status == WEIR_OK ? "" : cause.text,
                             .seconds = report->seconds,
                             .n_seconds = WEIR_N_STOPS };
    for (size_t p = 0; p < replica->schedule.n_participants; p++) {
        const weir_participant *participant = &replica->schedule.participants[p];
        weir_attendance *a = participant->attendance;
        if (a == NULL || !a->ended || participant->remote->push == NULL)
            continue;
        a->ended = false;
        weir_arena_reset(&a->scratch);
        weir_round_send_done(participant->remote->push, &done, &a->scratch, SEND_MS);
    }
    weir_error_restore(&cause);
}
