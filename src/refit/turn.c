/* SPDX-License-Identifier: Apache-2.0 */
/* turn.c - one step of a push on its way through a replica.
 *
 * Direct: the bytes lie in the live parameters when the step is told (or come there by broadcast);
 * they are digested where they lie. Staged: they lie in a window; what they replace is kept, they
 * are written, and the window is free again. A checkpoint's lie in a window too, and go from there
 * to the loader, which converts each group that is whole. Either way they are passed on to the next
 * member meanwhile. Steps end in the order in which they came.
 */
#include <inttypes.h>
#include <string.h>

#include "base/alloc.h"
#include "base/digest.h"
#include "base/error.h"
#include "refit/attend.h"
#include "refit/pieces.h"
#include "refit/replica.h"

#define SEND_MS 5000u
#define END_MS 10000u

static bool by_windows(const weir_attendance *a)
{
    return weir_attend_by_windows(a->replica);
}

weir_turn *weir_turn_next(weir_attendance *a)
{
    return &a->turns[a->n_received % WEIR_TURNS];
}

static unsigned char *landing(const weir_attendance *a, uint32_t number,
                              const weir_round_part *part)
{
    if (!by_windows(a))
        return a->targets[part->shard] + part->offset;
    return weir_window_of(a->replica, number) + part->packed_offset;
}

/* ---- a step comes ----------------------------------------------------------------------------*/

static weir_status check_part(const weir_attendance *a, const weir_round_part *part,
                              weir_work_range *range)
{
    const weir_remote *remote = a->remote;
    if (part->shard >= remote->n_shards)
        return weir_fail(WEIR_ERR_CORRUPT, "shard %u of %zu", part->shard, remote->n_shards);
    const weir_shard *shard = &remote->shards[part->shard];
    weir_status status = weir_part_rows(shard, part->offset, part->n_bytes, range);
    if (status != WEIR_OK)
        return status;
    if (a->targets[part->shard] == NULL)
        return weir_fail(WEIR_ERR_LAYOUT, "%s comes from another rank", shard->name);
    if (part->offset != a->received_bytes[part->shard])
        return weir_fail(WEIR_ERR_CORRUPT,
                         "bytes of %s from %" PRIu64 " on, those from %" PRIu64 " on are next",
                         shard->name, part->offset, a->received_bytes[part->shard]);
    uint64_t window_bytes = a->replica->window_bytes;
    if (by_windows(a) &&
        (part->packed_offset > window_bytes || part->n_bytes > window_bytes - part->packed_offset))
        return weir_fail(WEIR_ERR_CORRUPT,
                         "%s lies outside the window of %" PRIu64 " bytes that it comes through",
                         shard->name, window_bytes);
    return WEIR_OK;
}

/* Ranges to digest, in the turn's arena. */
static weir_status take_parts(weir_attendance *a, weir_turn *turn, weir_work_range **out)
{
    size_t n = turn->step.n_parts;
    weir_work_range *ranges = weir_arena_zeroed(&turn->arena, n, sizeof(*ranges));
    turn->found = weir_arena_zeroed(&turn->arena, n, sizeof(*turn->found));
    turn->commits = weir_arena_alloc(&turn->arena, (2 * n + 1) * sizeof(*turn->commits));
    if (ranges == NULL || turn->found == NULL || turn->commits == NULL)
        return WEIR_ERR_NO_MEMORY;
    for (size_t i = 0; i < n; i++) {
        const weir_round_part *part = &turn->step.parts[i];
        weir_status status = check_part(a, part, &ranges[i]);
        if (status != WEIR_OK)
            return status;
        a->received_bytes[part->shard] += part->n_bytes;
        ranges[i].name = a->remote->shards[part->shard].name;
        ranges[i].data = landing(a, turn->step.number, part);
        ranges[i].digest = &turn->found[i];
    }
    *out = ranges;
    return WEIR_OK;
}

static weir_status take_broadcasts(weir_attendance *a, weir_turn *turn)
{
    weir_work *work = a->replica->work;
    weir_group_part *parts =
        weir_arena_alloc(&turn->arena, (turn->step.n_parts + 1) * sizeof(*parts));
    if (parts == NULL)
        return WEIR_ERR_NO_MEMORY;
    for (size_t i = 0; i < turn->step.n_parts; i++)
        parts[i] = (weir_group_part){ landing(a, turn->step.number, &turn->step.parts[i]),
                                      turn->step.parts[i].n_bytes };
    weir_status status = a->link.ops->group_broadcast(a->group, 0, parts, turn->step.n_parts,
                                                      weir_work_stream(work, WEIR_LANE_MOVE));
    return status == WEIR_OK ? weir_work_after(work, WEIR_LANE_COMPUTE, WEIR_LANE_MOVE) : status;
}

static weir_status pass_on(weir_attendance *a, weir_turn *turn)
{
    weir_work_copy *copies =
        weir_arena_alloc(&turn->arena, (turn->step.n_parts + 1) * sizeof(*copies));
    if (copies == NULL)
        return WEIR_ERR_NO_MEMORY;
    for (size_t i = 0; i < turn->step.n_parts; i++) {
        const weir_round_part *part = &turn->step.parts[i];
        copies[i] = (weir_work_copy){ weir_places_at(&a->next, turn->step.number, part->shard,
                                                     part->offset, part->packed_offset),
                                      landing(a, turn->step.number, part), part->n_bytes };
    }
    return weir_task_copy(turn->pass, WEIR_LANE_MOVE, copies, turn->step.n_parts);
}

/* A next member that stages must have the window that a part is copied into. */
static weir_status check_next(const weir_attendance *a, const weir_round_step *step)
{
    for (size_t i = 0; a->passes && a->next.staged && i < step->n_parts; i++) {
        const weir_round_part *part = &step->parts[i];
        if (part->packed_offset > a->next.window_bytes ||
            part->n_bytes > a->next.window_bytes - part->packed_offset)
            return weir_fail(WEIR_ERR_CORRUPT, "step %u does not fit the next replica's window",
                             step->number);
    }
    return WEIR_OK;
}

/* A step is of this round and no other, whatever came before it on the link. */
static weir_status check_header(const weir_attendance *a, const weir_round_step *step)
{
    if (step->version != a->version || strcmp(step->version_uid, a->version_uid) != 0)
        return weir_fail(WEIR_ERR_CORRUPT,
                         "%s: a step of version %" PRIu64 " (%.64s) came in a round of version "
                         "%" PRIu64 " (%s)",
                         a->remote->who, step->version, step->version_uid, a->version,
                         a->version_uid);
    if (step->number != a->n_received)
        return weir_fail(WEIR_ERR_CORRUPT, "%s: step %u came, step %u is next", a->remote->who,
                         step->number, a->n_received);
    return WEIR_OK;
}

weir_status weir_turn_begin(weir_attendance *a, const weir_round_step *step)
{
    weir_turn *turn = weir_turn_next(a);
    weir_work_range *ranges = NULL;
    weir_status status = check_header(a, step);
    if (status != WEIR_OK)
        return status;
    turn->step = *step;
    if (by_windows(a) && step->number >= a->n_committed + WEIR_REPLICA_WINDOWS)
        return weir_fail(WEIR_ERR_CORRUPT, "%s: step %u came before its window was free",
                         a->remote->who, step->number);
    status = check_next(a, step);
    if (status == WEIR_OK)
        status = take_parts(a, turn, &ranges);
    if (status != WEIR_OK) {
        weir_error_prefix("%s: step %u", a->remote->who, step->number);
        return status;
    }
    if (a->group != NULL)
        status = take_broadcasts(a, turn);
    if (status == WEIR_OK)
        status = weir_task_digest(turn->digest, WEIR_LANE_COMPUTE, ranges, step->n_parts);
    if (status == WEIR_OK && a->passes)
        status = pass_on(a, turn);
    if (status == WEIR_OK)
        a->n_received++;
    return status;
}

/* ---- it moves on -----------------------------------------------------------------------------*/

static weir_status compare(weir_attendance *a, const weir_turn *turn)
{
    for (size_t i = 0; i < turn->step.n_parts; i++) {
        const weir_round_part *part = &turn->step.parts[i];
        const weir_digest *found = &turn->found[i];
        if (!weir_digest_equal(found, &part->digest))
            return weir_fail(
                WEIR_ERR_CORRUPT,
                "digest of %s, bytes %" PRIu64 " to %" PRIu64 ", differs: %s sent %016" PRIx64
                "%016" PRIx64 ", %016" PRIx64 "%016" PRIx64 " arrived",
                a->remote->shards[part->shard].name, part->offset, part->offset + part->n_bytes,
                a->remote->who, part->digest.product, part->digest.sum, found->product, found->sum);
        weir_digest_merge(&a->digests[part->shard], found);
        a->done_bytes += part->n_bytes;
    }
    return WEIR_OK;
}

/* First what is there is kept, then the new bytes are written: in the order of one lane. A note
 * whose copy is not queued would be undone with bytes that were never there. */
static weir_status commit(weir_attendance *a, weir_turn *turn)
{
    weir_undo *undo = &a->replica->undo;
    size_t n = turn->step.n_parts, n_before = undo->n_entries;
    for (size_t i = 0; i < n; i++) {
        const weir_round_part *part = &turn->step.parts[i];
        unsigned char *live = a->targets[part->shard] + part->offset;
        weir_status status = weir_undo_note(undo, live, part->n_bytes, &turn->commits[i]);
        if (status != WEIR_OK) {
            weir_undo_forget(undo, n_before);
            return status;
        }
        turn->commits[n + i] =
            (weir_work_copy){ live, landing(a, turn->step.number, part), part->n_bytes };
    }
    weir_status status = weir_task_copy(turn->commit, WEIR_LANE_KEEP, turn->commits, 2 * n);
    if (status != WEIR_OK)
        weir_undo_break(undo);
    return status;
}

/* Queues the parts from `first` on whose group has its buffer; returns the first that has not. */
static size_t list_loads(weir_attendance *a, weir_turn *turn, size_t first, size_t *out_n)
{
    const weir_loader *loader = a->replica->loader;
    size_t i = first, n = 0;
    for (; i < turn->step.n_parts; i++) {
        const weir_round_part *part = &turn->step.parts[i];
        uint32_t group = loader->tensors[a->tensors[part->shard]].group;
        if (group == WEIR_ANY)
            continue;
        if (!weir_loader_has_room(loader, group))
            break;
        turn->commits[n++] = (weir_work_copy){ a->targets[part->shard] + part->offset,
                                               landing(a, turn->step.number, part), part->n_bytes };
    }
    *out_n = n;
    return i;
}

static void note_loads(weir_attendance *a, const weir_turn *turn, size_t first, size_t end)
{
    weir_loader *loader = a->replica->loader;
    for (size_t i = first; i < end; i++) {
        const weir_round_part *part = &turn->step.parts[i];
        uint32_t group = loader->tensors[a->tensors[part->shard]].group;
        if (group != WEIR_ANY)
            weir_loader_landed(loader, group, part->n_bytes);
    }
}

/* Every part into the loader, as far as there is room, which each group that is converted makes. */
static weir_status load(weir_attendance *a, weir_turn *turn)
{
    unsigned timeout_ms = a->replica->worker.timeout_ms;
    weir_status status = WEIR_OK;
    for (size_t first = 0, end, n; first < turn->step.n_parts && status == WEIR_OK; first = end) {
        bool any;
        end = list_loads(a, turn, first, &n);
        if (end == first)
            return weir_fail(WEIR_ERR_UNSUPPORTED, "%s sends %s before tensors of earlier layers",
                             a->remote->who, a->remote->shards[turn->step.parts[first].shard].name);
        if (n > 0)
            status = weir_task_copy(turn->commit, WEIR_LANE_KEEP, turn->commits, n);
        if (status == WEIR_OK)
            status = weir_task_wait(turn->commit, timeout_ms);
        if (status != WEIR_OK)
            return status;
        note_loads(a, turn, first, end);
        status = weir_load_convert(a->replica, &any);
    }
    return status;
}

static weir_status verify_next(weir_attendance *a)
{
    weir_turn *turn = &a->turns[a->n_verified % WEIR_TURNS];
    weir_status status = weir_task_test(turn->digest);
    if (status == WEIR_OK)
        status = compare(a, turn);
    if (status == WEIR_OK && by_windows(a))
        status = a->tensors != NULL ? load(a, turn) : commit(a, turn);
    a->n_verified += status == WEIR_OK;
    return status;
}

static weir_status tell(weir_attendance *a, weir_round_type type, uint32_t number)
{
    weir_arena_reset(&a->scratch);
    return weir_round_send_number(a->remote->push, type, number, &a->scratch, SEND_MS);
}

static weir_status pass_next(weir_attendance *a)
{
    weir_status status = weir_task_test(a->turns[a->n_passed % WEIR_TURNS].pass);
    if (status == WEIR_OK)
        status = tell(a, WEIR_ROUND_PASSED, a->n_passed);
    a->n_passed += status == WEIR_OK;
    return status;
}

static weir_status commit_next(weir_attendance *a)
{
    weir_status status = weir_task_test(a->turns[a->n_committed % WEIR_TURNS].commit);
    if (status < WEIR_OK)
        weir_undo_break(&a->replica->undo);
    if (status == WEIR_OK)
        status = tell(a, WEIR_ROUND_FREED, a->n_committed);
    a->n_committed += status == WEIR_OK;
    return status;
}

/* Calls `next` until it has nothing to report. */
static weir_status repeat(weir_attendance *a, weir_status (*next)(weir_attendance *),
                          const uint32_t *count, uint32_t limit, bool *out_progress)
{
    weir_status status = WEIR_OK;
    while (*count < limit && status == WEIR_OK) {
        status = next(a);
        *out_progress |= status == WEIR_OK;
    }
    return status == WEIR_IN_PROGRESS ? WEIR_OK : status;
}

weir_status weir_turns_advance(weir_attendance *a, bool *out_progress)
{
    weir_status status = WEIR_OK;
    if (a->group != NULL)
        status = a->link.ops->group_test(a->group);
    if (status < WEIR_OK)
        return status;
    status = repeat(a, verify_next, &a->n_verified, a->n_received, out_progress);
    if (status == WEIR_OK && a->passes)
        status = repeat(a, pass_next, &a->n_passed, a->n_received, out_progress);
    if (status == WEIR_OK && by_windows(a)) {
        /* A window is free once its bytes are written here and copied on. */
        uint32_t limit = a->passes && a->n_passed < a->n_verified ? a->n_passed : a->n_verified;
        status = repeat(a, commit_next, &a->n_committed, limit, out_progress);
    }
    return status;
}

static uint32_t n_settled(const weir_attendance *a)
{
    uint32_t n = a->n_verified;
    if (a->passes && a->n_passed < n)
        n = a->n_passed;
    if (by_windows(a) && a->n_committed < n)
        n = a->n_committed;
    return n;
}

bool weir_turns_settled(const weir_attendance *a)
{
    return n_settled(a) == a->n_received;
}

bool weir_turns_have_room(const weir_attendance *a)
{
    return a->n_received - n_settled(a) < WEIR_TURNS;
}

void weir_turns_end(weir_attendance *a)
{
    for (size_t i = 0; i < WEIR_TURNS; i++) {
        weir_task_wait(a->turns[i].digest, END_MS);
        weir_task_wait(a->turns[i].pass, END_MS);
        /* One that has not ended is before the undoing, which runs in the same lane. */
        weir_status status = weir_task_wait(a->turns[i].commit, END_MS);
        if (status < WEIR_OK && status != WEIR_ERR_TIMED_OUT)
            weir_undo_break(&a->replica->undo);
    }
}
