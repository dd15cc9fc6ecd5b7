/* SPDX-License-Identifier: Apache-2.0 */
/* members.c - the replicas that have joined a trainer rank, and what each of them said last. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "base/error.h"
#include "base/log.h"
#include "refit/serve.h"

#define MEMBER_CAP_BYTES ((size_t)256 << 20)
/* Replicas read while they wait; one that does not for this long is stuck. */
#define SEND_MS 5000u
/* A connection says who it is, or loses its place. */
#define JOIN_MS 10000u

bool weir_member_in_round(const weir_member *member)
{
    return member->state >= WEIR_MEMBER_CALLED;
}

static void close_member(weir_member *member)
{
    weir_frame_link_close(member->link);
    weir_arena_close(&member->arena);
    weir_free(member);
}

static void drop_member(weir_push *push, size_t i)
{
    close_member(push->members[i]);
    memmove(&push->members[i], &push->members[i + 1],
            (push->n_members - i - 1) * sizeof(*push->members));
    push->n_members--;
}

void weir_members_close(weir_push *push)
{
    for (size_t i = 0; i < push->n_members; i++)
        close_member(push->members[i]);
    push->n_members = 0;
}

static void refuse(weir_push *push, weir_member *member, const weir_round_abort *abort)
{
    weir_arena_reset(&push->scratch);
    weir_round_send_abort(member->link, abort, &push->scratch, SEND_MS);
}

/* ---- joining ---------------------------------------------------------------------------------*/

static weir_status accept_all(weir_push *push)
{
    while (push->n_members < WEIR_MAX_MEMBERS) {
        weir_frame_link *link = NULL;
        weir_status status = weir_frame_listener_accept(push->listener, &link);
        if (status != WEIR_OK)
            return status == WEIR_IN_PROGRESS ? WEIR_OK : status;
        weir_member *member = weir_alloc_zeroed(1, sizeof(*member));
        if (member == NULL) {
            weir_frame_link_close(link);
            return WEIR_ERR_NO_MEMORY;
        }
        weir_arena_init(&member->arena, MEMBER_CAP_BYTES);
        member->link = link;
        member->join_by = weir_deadline_in(JOIN_MS);
        member->number = ++push->n_accepted;
        push->members[push->n_members++] = member;
    }
    return WEIR_OK;
}

static weir_status take_join(weir_push *push, weir_member *member, const weir_round_join *join)
{
    const weir_worker *worker = push->worker;
    if (strcmp(join->model, worker->model) != 0 || strcmp(join->run, worker->run) != 0)
        return weir_fail(WEIR_ERR_REFUSED, "it follows %s, run %s; this trainer has %s, run %s",
                         join->model, join->run, worker->model, worker->run);
    snprintf(member->worker_id, sizeof(member->worker_id), "%s", join->worker_id);
    char who[WEIR_NAME_BYTES + 16];
    snprintf(who, sizeof(who), "replica %s", member->worker_id);
    weir_frame_link_rename(member->link, who);
    member->state = WEIR_MEMBER_JOINED;
    return WEIR_OK;
}

/* ---- what they say ---------------------------------------------------------------------------*/

static weir_status out_of_place(const weir_member *member, const weir_round_message *message)
{
    return weir_fail(WEIR_ERR_CORRUPT, "it sent %s in state %d",
                     weir_round_type_name((uint16_t)message->type), (int)member->state);
}

/* Said before the member heard that its round was off. */
static bool is_stale(const weir_member *member, weir_round_type type)
{
    bool waits = member->state == WEIR_MEMBER_JOINED || member->state == WEIR_MEMBER_READY;
    return waits && (type == WEIR_ROUND_PAUSED || type == WEIR_ROUND_PASSED ||
                     type == WEIR_ROUND_FREED || type == WEIR_ROUND_DONE);
}

static weir_status take_done(weir_member *member, const weir_round_done *done)
{
    member->state = WEIR_MEMBER_DONE;
    member->status = done->status;
    snprintf(member->text, sizeof(member->text), "%s", done->text);
    return WEIR_OK;
}

/* A member that gives up before it has a part simply wants nothing any more. */
static weir_status take_abort(weir_member *member, const weir_round_abort *abort)
{
    if (weir_member_in_round(member)) {
        member->state = WEIR_MEMBER_JOINED;
        return weir_fail(abort->status, "%s", abort->text);
    }
    member->state = WEIR_MEMBER_JOINED;
    return WEIR_OK;
}

static weir_status take(weir_push *push, weir_member *member, const weir_round_message *message)
{
    switch (message->type) {
    case WEIR_ROUND_JOIN:
        if (member->state == WEIR_MEMBER_NEW)
            return take_join(push, member, &message->join);
        break;
    case WEIR_ROUND_READY:
        if (member->state != WEIR_MEMBER_JOINED && member->state != WEIR_MEMBER_READY)
            break;
        member->ready = message->ready;
        member->state = WEIR_MEMBER_READY;
        return WEIR_OK;
    case WEIR_ROUND_PAUSED:
        if (member->state != WEIR_MEMBER_CALLED)
            break;
        member->state = WEIR_MEMBER_PAUSED;
        return WEIR_OK;
    case WEIR_ROUND_PASSED:
        if (member->state != WEIR_MEMBER_PAUSED || message->number != member->n_passed ||
            member->n_passed >= member->n_told)
            break;
        member->n_passed++;
        return WEIR_OK;
    case WEIR_ROUND_FREED:
        if (member->state != WEIR_MEMBER_PAUSED || message->number != member->n_freed ||
            member->n_freed >= member->n_told)
            break;
        member->n_freed++;
        return WEIR_OK;
    case WEIR_ROUND_DONE:
        if (member->state != WEIR_MEMBER_PAUSED || !member->ended)
            break;
        return take_done(member, &message->done);
    case WEIR_ROUND_ABORT:
        return take_abort(member, &message->abort);
    default:
        break;
    }
    return is_stale(member, message->type) ? WEIR_OK : out_of_place(member, message);
}

/* Who has said how its install went may leave, or want the next version, while others still have a
 * part in the round: what it says and whether it is still there is for after the round. */
static bool is_heard(const weir_member *member)
{
    return member->state != WEIR_MEMBER_DONE;
}

/* Everything that has come from one member. Its own arena keeps its last Ready, so only what can
 * replace that is decoded there. */
static weir_status hear_member(weir_push *push, weir_member *member)
{
    while (is_heard(member)) {
        weir_round_message message;
        bool keeps_ready = member->state == WEIR_MEMBER_READY || weir_member_in_round(member);
        weir_arena *arena = keeps_ready ? &push->scratch : &member->arena;
        weir_arena_reset(arena);
        weir_status status = weir_round_receive(member->link, 0, arena, &message);
        if (status != WEIR_OK)
            return status;
        if (message.type == WEIR_ROUND_READY && keeps_ready)
            return out_of_place(member, &message);
        status = take(push, member, &message);
        if (status != WEIR_OK)
            return status;
    }
    return WEIR_IN_PROGRESS;
}

weir_status weir_members_hear(weir_push *push, unsigned wait_ms)
{
    weir_frame_link *links[WEIR_MAX_MEMBERS];
    for (size_t i = 0; i < push->n_members && wait_ms > 0; i++)
        links[i] = is_heard(push->members[i]) ? push->members[i]->link : NULL;
    weir_status status = WEIR_OK, result = WEIR_OK;
    if (wait_ms > 0)
        status = weir_frame_wait(push->n_members < WEIR_MAX_MEMBERS ? push->listener : NULL, links,
                                 push->n_members, wait_ms);
    if (status == WEIR_OK)
        status = accept_all(push);
    if (status != WEIR_OK)
        return status;
    weir_error_line cause;
    for (size_t i = 0; i < push->n_members;) {
        weir_member *member = push->members[i];
        bool counted = weir_member_in_round(member);
        status = hear_member(push, member);
        if (status == WEIR_IN_PROGRESS && member->state == WEIR_MEMBER_NEW &&
            weir_deadline_passed(member->join_by))
            status = weir_fail(WEIR_ERR_TIMED_OUT, "it has not said who it is");
        if (status == WEIR_IN_PROGRESS) {
            i++;
            continue;
        }
        if (counted && result == WEIR_OK) {
            result = status;
            if (strncmp(weir_last_error(), "replica ", 8) != 0)
                weir_error_prefix("replica %s", member->worker_id);
            weir_error_save(&cause);
        } else if (!counted && status != WEIR_ERR_PEER_LOST) {
            weir_log(WEIR_LOG_WARN, "%s is sent away: %s", weir_frame_link_who(member->link),
                     weir_last_error());
            refuse(push, member, &(weir_round_abort){ .status = status });
        }
        if (member->state == WEIR_MEMBER_JOINED && counted) {
            i++; /* it gave up, and is still there */
            continue;
        }
        drop_member(push, i);
    }
    if (result != WEIR_OK)
        weir_error_restore(&cause);
    return result;
}

/* ---- what they are told ----------------------------------------------------------------------*/

void weir_members_announce(weir_push *push, const weir_push_version *version)
{
    weir_error_line cause;
    weir_error_save(&cause);
    weir_members_hear(push, 0);
    weir_members_refuse_others(push, version);
    for (size_t i = 0; i < push->n_members; i++) {
        weir_arena_reset(&push->scratch);
        if (push->members[i]->state == WEIR_MEMBER_JOINED)
            weir_round_send_news(push->members[i]->link, version->version, &push->scratch, SEND_MS);
    }
    weir_error_restore(&cause);
}

void weir_members_refuse_others(weir_push *push, const weir_push_version *version)
{
    for (size_t i = 0; i < push->n_members; i++) {
        weir_member *member = push->members[i];
        if (member->state != WEIR_MEMBER_READY ||
            strcmp(member->ready.version_uid, version->uid) == 0)
            continue;
        char text[160];
        snprintf(text, sizeof(text),
                 "version %" PRIu64 " is gone: its trainer has moved on to %" PRIu64,
                 member->ready.version, version->version);
        refuse(push, member, &(weir_round_abort){ WEIR_ERR_NOT_FOUND, text, true });
        member->state = WEIR_MEMBER_JOINED;
    }
}

void weir_members_withdraw(weir_push *push, uint64_t version, const char *uid, const char *why)
{
    char text[WEIR_NAME_BYTES + 64];
    snprintf(text, sizeof(text), "version %" PRIu64 " was aborted: %.255s", version, why);
    weir_members_hear(push, 0);
    for (size_t i = 0; i < push->n_members; i++) {
        weir_member *member = push->members[i];
        if (member->state != WEIR_MEMBER_READY || strcmp(member->ready.version_uid, uid) != 0)
            continue;
        refuse(push, member, &(weir_round_abort){ WEIR_ERR_ABORTED, text, true });
        member->state = WEIR_MEMBER_JOINED;
    }
}

void weir_members_abort(weir_push *push, weir_status status, bool nothing_sent)
{
    weir_error_line cause;
    weir_error_save(&cause);
    weir_round_abort abort = { status, cause.text, nothing_sent };
    for (size_t i = 0; i < push->n_members; i++) {
        weir_member *member = push->members[i];
        if (!weir_member_in_round(member))
            continue;
        if (member->state != WEIR_MEMBER_DONE)
            refuse(push, member, &abort);
        member->state = WEIR_MEMBER_JOINED;
    }
    weir_error_restore(&cause);
}
