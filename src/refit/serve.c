/* SPDX-License-Identifier: Apache-2.0 */
/* serve.c - the trainer's half of stop 6 of 9, where a version is pushed: one round.
 *
 * Takes   a PUBLISHED version and the tensors it is made of.
 * Gives   every replica that wanted it holds it, verified, and has said so.
 * Before  publish.c        After  the next version
 * Breaks  a weight that is not finite, a replica that dies, stalls or refuses: the round is off,
 * all of its replicas are told, none of them keeps a part of it; the next call begins afresh.
 *
 * Steps are made a few ahead. A step that is made is told to the first member, whose memory it lies
 * in already, and to each further one when the member before it has passed it on; broadcasts are
 * told to all at once. A member that stages frees windows: no step is begun that would not fit.
 */
#include "refit/serve.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "base/error.h"

#define SEND_MS 5000u
#define IDLE_MS 20u
#define LEAST_WINDOW_BYTES ((uint64_t)64 << 10)

/* One round. */
typedef struct round {
    weir_push *push;
    const weir_push_version *version;
    weir_member *members[WEIR_MAX_MEMBERS]; /* in the order in which steps are passed on */
    size_t n_members;
    unsigned timeout_ms;
    weir_deadline deadline; /* renewed by progress */
    uint32_t n_started, n_made, n_sent;
    uint64_t sent_bytes;
} round;

/* ---- who holds it already --------------------------------------------------------------------*/

static bool was_served(const weir_push *push, const char *worker_id)
{
    for (size_t i = 0; i < push->n_served; i++) {
        if (strcmp(push->served[i], worker_id) == 0)
            return true;
    }
    return false;
}

/* Those who are done hold the version, whatever became of the others. */
static void note_served(weir_push *push)
{
    for (size_t i = 0; i < push->n_members; i++) {
        const weir_member *member = push->members[i];
        if (member->state == WEIR_MEMBER_DONE && member->status == WEIR_OK &&
            push->n_served < WEIR_MAX_MEMBERS && !was_served(push, member->worker_id))
            memcpy(push->served[push->n_served++], member->worker_id, sizeof(member->worker_id));
    }
}

static void begin_count(weir_push *push, const weir_push_version *version)
{
    if (strcmp(push->served_uid, version->uid) == 0)
        return;
    snprintf(push->served_uid, sizeof(push->served_uid), "%s", version->uid);
    push->n_served = 0;
}

/* ---- gather ----------------------------------------------------------------------------------*/

/* Replicas that want the version. */
typedef struct turnout {
    size_t n_ready, n_new; /* the latter do not hold it */
    size_t n_expected;     /* whom the rank before sent it to at once: each has a part of it, and is
                              left with a mixture by a rank that begins without it */
} turnout;

static turnout count_ready(const weir_push *push)
{
    turnout found = { 0 };
    for (size_t i = 0; i < push->n_members; i++) {
        const weir_member *member = push->members[i];
        if (member->state != WEIR_MEMBER_READY)
            continue;
        found.n_ready++;
        found.n_new += !was_served(push, member->worker_id);
        if (member->ready.n_expected > found.n_expected)
            found.n_expected = member->ready.n_expected;
    }
    return found;
}

static weir_status nobody_came(const round *r, const turnout *found, size_t n_members)
{
    const weir_push *push = r->push;
    char absent[512] = "";
    size_t used = 0;
    for (size_t i = 0; i < push->n_members && used + WEIR_NAME_BYTES + 8 < sizeof(absent); i++) {
        if (push->members[i]->state == WEIR_MEMBER_JOINED &&
            !was_served(push, push->members[i]->worker_id))
            used += (size_t)snprintf(
                absent + used, sizeof(absent) - used, "%s%s",
                used ? ", " : "; joined, but not ready: ", push->members[i]->worker_id);
    }
    char holding[48] = "";
    if (push->n_served > 0)
        snprintf(holding, sizeof(holding), ", %zu hold it already", push->n_served);
    if (push->n_served + found->n_new >= n_members)
        return weir_fail(WEIR_ERR_TIMED_OUT,
                         "timed out after %.1f s: %zu of the %zu replicas to which the rank before "
                         "sent version %" PRIu64 " of %s are ready%s",
                         r->timeout_ms / 1e3, found->n_ready, found->n_expected,
                         r->version->version, push->worker->model, absent);
    return weir_fail(WEIR_ERR_TIMED_OUT,
                     "timed out after %.1f s: %zu of %zu replicas are ready for version %" PRIu64
                     " of %s%s%s",
                     r->timeout_ms / 1e3, found->n_new, n_members, r->version->version,
                     push->worker->model, holding, absent);
}

static weir_status gather(round *r, size_t n_members)
{
    weir_push *push = r->push;
    for (;;) {
        weir_status status = weir_members_hear(push, IDLE_MS);
        if (status == WEIR_OK)
            status = weir_worker_check_cancelled(push->worker);
        if (status != WEIR_OK)
            return status;
        weir_members_refuse_others(push, r->version);
        turnout found = count_ready(push);
        if (push->n_served + found.n_new >= n_members && found.n_ready >= found.n_expected)
            break;
        if (weir_deadline_passed(r->deadline))
            return nobody_came(r, &found, n_members);
    }
    for (size_t i = 0; i < push->n_members; i++) {
        weir_member *member = push->members[i];
        if (member->state != WEIR_MEMBER_READY)
            continue;
        member->n_told = member->n_passed = member->n_freed = 0;
        member->ended = false;
        member->state = WEIR_MEMBER_CALLED;
        r->members[r->n_members++] = member;
    }
    return WEIR_OK;
}

/* ---- prepare ---------------------------------------------------------------------------------*/

/* Before steps are cut: a window of a few bytes would make millions of pieces of a large model. */
static weir_status check_least(const round *r)
{
    for (size_t i = 0; i < r->n_members; i++) {
        const weir_round_ready *ready = &r->members[i]->ready;
        if (ready->staged && ready->window_bytes < LEAST_WINDOW_BYTES)
            return weir_fail(WEIR_ERR_UNSUPPORTED,
                             "replica %s stages through windows of %" PRIu64
                             " bytes, at least %" PRIu64 " are needed: give it more window_bytes",
                             r->members[i]->worker_id, ready->window_bytes, LEAST_WINDOW_BYTES);
    }
    return WEIR_OK;
}

static weir_status check_windows(const round *r)
{
    for (size_t i = 0; i < r->n_members; i++) {
        const weir_round_ready *ready = &r->members[i]->ready;
        if (ready->staged && ready->window_bytes < r->push->steps.largest_packed_bytes)
            return weir_fail(WEIR_ERR_UNSUPPORTED,
                             "replica %s stages through windows of %" PRIu64
                             " bytes, the largest piece has %" PRIu64 ": give it more window_bytes",
                             r->members[i]->worker_id, ready->window_bytes,
                             r->push->steps.largest_packed_bytes);
    }
    return WEIR_OK;
}

static weir_status call_member(round *r, size_t i, const void *group_key)
{
    weir_push *push = r->push;
    bool passes = i + 1 < r->n_members && !weir_outlet_broadcasts(push->outlet);
    const weir_member *next = passes ? r->members[i + 1] : NULL;
    weir_round_round message = { .version = r->version->version,
                                 .version_uid = r->version->uid,
                                 .n_members = (uint32_t)r->n_members,
                                 .position = (uint32_t)i,
                                 .transport = weir_outlet_transport(push->outlet),
                                 .group_key = group_key,
                                 .group_key_bytes = group_key != NULL ? WEIR_GROUP_KEY_BYTES : 0,
                                 .largest_step_bytes = push->steps.largest_packed_bytes,
                                 .next_worker_id = passes ? next->worker_id : "" };
    if (passes) {
        message.next_places = next->ready.places;
        message.next_places_bytes = next->ready.places_bytes;
        message.next_staged = next->ready.staged;
        message.next_n_windows = next->ready.n_windows;
        message.next_window_bytes = next->ready.window_bytes;
    }
    weir_arena_reset(&push->scratch);
    return weir_round_send_round(r->members[i]->link, &message, &push->scratch, SEND_MS);
}

/* Waits until every member has paused, and joined the group where there is one. */
static weir_status wait_paused(round *r)
{
    for (;;) {
        const weir_member *slow = NULL;
        weir_status status = weir_members_hear(r->push, 0);
        if (status != WEIR_OK)
            return status;
        for (size_t i = 0; i < r->n_members && slow == NULL; i++)
            slow = r->members[i]->state == WEIR_MEMBER_CALLED ? r->members[i] : NULL;
        weir_status joined = weir_outlet_ready(r->push->outlet);
        if (joined < WEIR_OK && slow != NULL) /* a group does not know who is missing */
            weir_error_prefix("replica %s is not ready to take version %" PRIu64, slow->worker_id,
                              r->version->version);
        if (joined < WEIR_OK || (slow == NULL && joined == WEIR_OK))
            return joined;
        if (weir_deadline_passed(r->deadline))
            return weir_fail(WEIR_ERR_TIMED_OUT,
                             "timed out after %.1f s: replica %s did not get ready to take version "
                             "%" PRIu64,
                             r->timeout_ms / 1e3,
                             slow != NULL ? slow->worker_id : r->members[0]->worker_id,
                             r->version->version);
        status = weir_worker_check_cancelled(r->push->worker);
        if (status != WEIR_OK)
            return status;
        status = weir_members_hear(r->push, 1);
        if (status != WEIR_OK)
            return status;
    }
}

static weir_status prepare(round *r)
{
    weir_push *push = r->push;
    const void *group_key = NULL;
    uint64_t limit = weir_outlet_step_limit(push->outlet, r->members, r->n_members);
    weir_status status = check_least(r);
    if (status == WEIR_OK)
        status = weir_outlet_rest(push->outlet);
    if (status == WEIR_OK)
        status = weir_push_cut(push, limit, r->version->keep_masters);
    if (status == WEIR_OK)
        status = check_windows(r);
    if (status == WEIR_OK)
        status = weir_outlet_begin(push->outlet, r->members, r->n_members, &group_key);
    for (size_t i = 0; i < r->n_members && status == WEIR_OK; i++)
        status = call_member(r, i, group_key);
    return status == WEIR_OK ? wait_paused(r) : status;
}

/* ---- steps -----------------------------------------------------------------------------------*/

/* Every window that the step will pass through is free. */
static bool fits(const round *r, uint32_t step)
{
    for (size_t i = 0; i < r->n_members; i++) {
        const weir_member *member = r->members[i];
        if (member->ready.staged && step >= member->n_freed + member->ready.n_windows)
            return false;
    }
    return true;
}

static weir_status tell_step(round *r, weir_member *member)
{
    weir_push *push = r->push;
    const weir_step *step = &push->steps.steps[member->n_told];
    weir_round_step message = { .number = member->n_told,
                                .version = r->version->version,
                                .version_uid = r->version->uid,
                                .n_steps = (uint32_t)push->steps.n_steps };
    weir_arena_reset(&push->scratch);
    weir_round_part *parts =
        weir_arena_alloc(&push->scratch, (step->n_pieces * WEIR_MAX_OUTPUTS + 1) * sizeof(*parts));
    if (parts == NULL)
        return WEIR_ERR_NO_MEMORY;
    for (size_t i = step->first_piece; i < step->first_piece + step->n_pieces; i++) {
        const weir_piece *piece = &push->steps.pieces[i];
        for (size_t o = 0; o < piece->n_parts; o++)
            parts[message.n_parts++] =
                (weir_round_part){ .shard = piece->parts[o].shard,
                                   .offset = piece->parts[o].offset,
                                   .n_bytes = piece->parts[o].n_bytes,
                                   .packed_offset = piece->part_offsets[o],
                                   .digest = push->digests[i * WEIR_MAX_OUTPUTS + o] };
    }
    message.parts = parts;
    weir_status status = weir_round_send_step(member->link, &message, &push->scratch, SEND_MS);
    if (status == WEIR_OK)
        member->n_told++;
    return status;
}

static weir_status tell_end(round *r, weir_member *member)
{
    if (member->ended || member->n_told < r->push->steps.n_steps)
        return WEIR_OK;
    member->ended = true;
    weir_arena_reset(&r->push->scratch);
    return weir_round_send_number(member->link, WEIR_ROUND_END, member->n_told, &r->push->scratch,
                                  SEND_MS);
}

/* What each member may know by now: the first, or all of a broadcast, what is made; the others
 * what the member before them has passed on. */
static weir_status tell_members(round *r, bool *out_progress)
{
    bool broadcasts = weir_outlet_broadcasts(r->push->outlet);
    weir_status status = WEIR_OK;
    for (size_t i = 0; i < r->n_members; i++) {
        uint32_t may_know = i == 0 || broadcasts ? r->n_made : r->members[i - 1]->n_passed;
        while (status == WEIR_OK && r->members[i]->n_told < may_know) {
            status = tell_step(r, r->members[i]);
            *out_progress = true;
        }
        if (status == WEIR_OK)
            status = tell_end(r, r->members[i]);
    }
    return status;
}

static void note_sent(round *r)
{
    const weir_push *push = r->push;
    const weir_member *slowest = NULL;
    r->sent_bytes += push->steps.steps[r->n_sent++].n_bytes;
    for (size_t i = 0; i < r->n_members; i++) {
        if (r->members[i]->state != WEIR_MEMBER_DONE &&
            (slowest == NULL || r->members[i]->n_freed < slowest->n_freed))
            slowest = r->members[i];
    }
    weir_worker_waits_for(push->worker, slowest != NULL ? slowest->worker_id : "");
    weir_worker_progress(push->worker, WEIR_STOP_TRANSFER, r->version->version, r->sent_bytes,
                         push->source->n_bytes);
}

static weir_status make_steps(round *r, bool *out_progress)
{
    weir_outlet *outlet = r->push->outlet;
    uint32_t n_steps = (uint32_t)r->push->steps.n_steps;
    weir_status status = WEIR_OK;
    while (r->n_started < n_steps && r->n_started - r->n_sent < WEIR_STEPS_AHEAD &&
           fits(r, r->n_started)) {
        status = weir_outlet_start(outlet, r->n_started);
        if (status != WEIR_OK)
            return status;
        r->n_started++;
        *out_progress = true;
    }
    if (r->n_made < r->n_started) {
        status = weir_outlet_made(outlet, r->n_made);
        if (status < WEIR_OK)
            return status;
        if (status == WEIR_OK) {
            r->n_made++;
            *out_progress = true;
            status = tell_members(r, out_progress);
            if (status == WEIR_OK)
                status = weir_outlet_send(outlet, r->n_made - 1);
            if (status != WEIR_OK)
                return status;
        }
    }
    if (r->n_sent < r->n_made) {
        status = weir_outlet_sent(outlet, r->n_sent);
        if (status < WEIR_OK)
            return status;
        if (status == WEIR_OK)
            note_sent(r);
    }
    return WEIR_OK;
}

static bool all_are_done(const round *r)
{
    for (size_t i = 0; i < r->n_members; i++) {
        if (r->members[i]->state != WEIR_MEMBER_DONE)
            return false;
    }
    return true;
}

static weir_status no_progress(const round *r)
{
    char absent[512] = "";
    size_t used = 0;
    for (size_t i = 0; i < r->n_members && used + WEIR_NAME_BYTES + 64 < sizeof(absent); i++) {
        const weir_member *member = r->members[i];
        if (member->state != WEIR_MEMBER_DONE)
            used += (size_t)snprintf(absent + used, sizeof(absent) - used,
                                     "%s%s (was told %u, has freed %u)",
                                     used ? ", " : "; not done: replica ", member->worker_id,
                                     member->n_told, member->n_freed);
    }
    return weir_fail(
        WEIR_ERR_TIMED_OUT,
        "timed out: %.1f s without progress at step %u of %zu of version %" PRIu64 "%s",
        r->timeout_ms / 1e3, r->n_made, r->push->steps.n_steps, r->version->version, absent);
}

static weir_status run_steps(round *r)
{
    weir_push *push = r->push;
    while (!all_are_done(r) || r->n_sent < push->steps.n_steps) {
        bool progress = false;
        weir_status status = make_steps(r, &progress);
        if (status == WEIR_OK)
            status = tell_members(r, &progress);
        /* While steps are in the making their ends are looked for, else only what members say. */
        if (status == WEIR_OK)
            status = weir_members_hear(push, r->n_sent < r->n_started ? 0 : 1);
        if (status == WEIR_OK)
            status = weir_worker_check_cancelled(push->worker);
        if (status != WEIR_OK)
            return status;
        if (progress)
            r->deadline = weir_deadline_in(r->timeout_ms);
        else if (weir_deadline_passed(r->deadline))
            return no_progress(r);
    }
    return WEIR_OK;
}

/* ---- one version -----------------------------------------------------------------------------*/

/* All have said how it went: who failed is the error, the others hold the version. */
static weir_status settle(round *r)
{
    weir_status status = WEIR_OK;
    for (size_t i = 0; i < r->n_members; i++) {
        weir_member *member = r->members[i];
        if (member->status != WEIR_OK && status == WEIR_OK)
            status = weir_fail(member->status, "replica %s: %s", member->worker_id, member->text);
        member->state = WEIR_MEMBER_JOINED;
    }
    return status;
}

weir_status weir_push_serve(weir_push *push, const weir_push_version *version, size_t n_members,
                            unsigned timeout_ms)
{
    round r = { .push = push,
                .version = version,
                .timeout_ms = timeout_ms,
                .deadline = weir_deadline_in(timeout_ms) };
    if (n_members == 0)
        return WEIR_OK;
    if (n_members > WEIR_MAX_MEMBERS)
        return weir_fail(WEIR_ERR_INVALID, "%zu replicas, at most %u can be served at once",
                         n_members, WEIR_MAX_MEMBERS);
    begin_count(push, version);
    if (push->n_served >= n_members)
        return WEIR_OK;
    weir_status status = gather(&r, n_members);
    if (status != WEIR_OK)
        return status;
    r.deadline = weir_deadline_in(timeout_ms);
    weir_keeper_begin(push->worker->keeper);
    weir_worker_progress(push->worker, WEIR_STOP_TRANSFER, version->version, 0, 0);
    status = prepare(&r);
    if (status == WEIR_OK)
        status = run_steps(&r);
    weir_keeper_end(push->worker->keeper);
    note_served(push);
    if (status == WEIR_OK)
        return settle(&r);
    weir_members_abort(push, status, r.n_started == 0);
    weir_error_line cause;
    weir_error_save(&cause);
    weir_outlet_abort(push->outlet);
    weir_error_restore(&cause);
    return status;
}

weir_status weir_push_count_ready(weir_push *push, const weir_push_version *version,
                                  unsigned *out_n)
{
    begin_count(push, version);
    weir_status status = weir_members_hear(push, 0);
    if (status != WEIR_OK)
        return status;
    weir_members_refuse_others(push, version);
    *out_n = (unsigned)(push->n_served + count_ready(push).n_new);
    return WEIR_OK;
}
