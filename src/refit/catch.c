/* SPDX-License-Identifier: Apache-2.0 */
/* catch.c - a reader's places in the broadcast groups of each rank, the windows that it catches
 * groups in, and the way from there to where bytes belong.
 */
#include "refit/catch.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "base/digest.h"
#include "base/error.h"
#include "refit/replica.h"

#define SETTLE_MS 2000u /* what takes longer on a GPU hangs there */

bool weir_catch_is_cast(const weir_participant *participant)
{
    return participant->remote->group_bytes != NULL;
}

/* Padding, which has no bytes, is for nobody. */
bool weir_catch_is_sent(const weir_remote *remote)
{
    for (size_t s = 0; s < remote->n_shards; s++) {
        if (remote->shards[s].n_bytes > 0)
            return true;
    }
    return false;
}

/* ---- places ----------------------------------------------------------------------------------*/

weir_status weir_catch_joined(const weir_remote *remote)
{
    weir_status all = WEIR_OK;
    for (size_t a = 0; a < WEIR_MAX_AUDIENCES; a++) {
        weir_status status =
            remote->casts[a] != NULL ? weir_matched_joined(remote->casts[a]) : WEIR_OK;
        if (status < WEIR_OK)
            return status;
        all = status == WEIR_IN_PROGRESS ? status : all;
    }
    return all;
}

bool weir_catch_is_fresh(const weir_remote *remote)
{
    weir_error_line before; /* a group that is broken is no failure here */
    size_t a = 0;
    while (a < WEIR_MAX_AUDIENCES && remote->casts[a] == NULL)
        a++;
    weir_error_save(&before);
    bool stands = a < WEIR_MAX_AUDIENCES && weir_catch_joined(remote) == WEIR_OK;
    weir_error_restore(&before);
    return !stands;
}

void weir_catch_look(weir_remote *remote)
{
    weir_error_line before; /* it is no failure of this refit */
    weir_error_save(&before);
    remote->is_casting |= weir_catch_joined(remote) != WEIR_OK;
    if (remote->is_casting)
        weir_remote_begin_leaving(remote, true);
    weir_error_restore(&before);
}

uint32_t weir_catch_waits_in(const weir_remote *remote)
{
    uint32_t a = 0;
    while (a < WEIR_MAX_AUDIENCES &&
           (remote->casts[a] == NULL || weir_matched_joined(remote->casts[a]) == WEIR_OK))
        a++;
    return a;
}

uint32_t weir_catch_next(const weir_remote *remote, uint32_t group)
{
    while (group < remote->n_groups && remote->casts[remote->group_audiences[group]] == NULL)
        group++;
    return group;
}

static weir_matched *take_kept(weir_matched **kept, const void *key)
{
    for (size_t a = 0; a < WEIR_MAX_AUDIENCES; a++) {
        weir_matched *one = kept[a];
        if (one == NULL || memcmp(weir_matched_key(one), key, WEIR_GROUP_KEY_BYTES) != 0)
            continue;
        kept[a] = NULL;
        return one;
    }
    return NULL;
}

/* The transport says what is wrong before whoever waits for it gives up. */
static unsigned bound_of_joining(const weir_worker *worker)
{
    unsigned bound_ms = worker->timeout_ms - worker->timeout_ms / 10;
    return bound_ms > 0 ? bound_ms : 1;
}

static weir_status open_place(weir_replica *replica, weir_remote *remote,
                              const weir_membership *place)
{
    char who[2 * WEIR_NAME_BYTES + 48];
    snprintf(who, sizeof(who), "broadcast group %u of %s", place->audience, remote->who);
    const weir_matched_options options = { .link = remote->link,
                                           .work = replica->work,
                                           .key = place->key,
                                           .rank = place->position,
                                           .n_ranks = place->n_members,
                                           .timeout_ms = bound_of_joining(&replica->worker),
                                           .who = who };
    remote->is_casting = true;
    replica->worker.counters.connections++;
    return weir_matched_open(&options, &remote->casts[place->audience]);
}

static weir_status take_places(weir_replica *replica, weir_remote *remote,
                               const weir_membership *memberships, size_t n, weir_matched **kept)
{
    weir_status status = WEIR_OK;
    for (size_t i = 0; i < n && status == WEIR_OK; i++) {
        weir_matched **place = &remote->casts[memberships[i].audience];
        if (*place != NULL)
            return weir_fail(WEIR_ERR_CORRUPT, "%s names broadcast group %u twice", remote->who,
                             memberships[i].audience);
        *place = take_kept(kept, memberships[i].key);
        if (*place == NULL)
            status = open_place(replica, remote, &memberships[i]);
    }
    return status;
}

/* What this worker needs comes to it. */
static weir_status check_parts(const weir_replica *replica, const weir_participant *participant)
{
    const weir_schedule *schedule = &replica->schedule;
    const weir_remote *remote = participant->remote;
    for (size_t k = 0; k < participant->n_parts; k++) {
        const weir_landing_part *part = &schedule->landing.parts[participant->first_part + k];
        uint32_t audience = remote->group_audiences[part->group];
        if (remote->casts[audience] != NULL)
            continue;
        return weir_fail(WEIR_ERR_LAYOUT,
                         "%s does not send %s to replica %s (worker %u of its engine), which needs "
                         "it: its group %u goes to broadcast group %u, where that one is not named",
                         remote->who,
                         remote->shards[schedule->planned[part->first_copy].shard].name,
                         replica->worker.id, replica->mesh_worker, part->group, audience);
    }
    return WEIR_OK;
}

weir_status weir_catch_enter(weir_replica *replica, weir_participant *participant,
                             const weir_membership *memberships, size_t n_memberships)
{
    weir_remote *remote = participant->remote;
    weir_matched *kept[WEIR_MAX_AUDIENCES];
    memcpy(kept, remote->casts, sizeof(kept));
    memset(remote->casts, 0, sizeof(remote->casts));
    weir_status status = take_places(replica, remote, memberships, n_memberships, kept);
    for (size_t a = 0; a < WEIR_MAX_AUDIENCES; a++)
        weir_matched_leave(kept[a], true); /* its rank has left it already */
    for (size_t a = 0; a < WEIR_MAX_AUDIENCES; a++)
        weir_matched_close(kept[a], true);
    return status == WEIR_OK ? check_parts(replica, participant) : status;
}

/* ---- windows ---------------------------------------------------------------------------------*/

static void free_windows(weir_replica *replica)
{
    weir_catch *caught = &replica->caught;
    for (size_t w = 0; w < WEIR_CATCH_WINDOWS; w++) {
        if (caught->windows[w].data != NULL)
            weir_work_free(replica->work, caught->windows[w].data, caught->window_bytes);
        caught->windows[w] = (weir_catch_window){ 0 };
    }
    caught->window_bytes = 0;
}

static weir_status check_reach(const weir_replica *replica, const weir_remote *remote)
{
    uint32_t memory = weir_work_memory(replica->work);
    if (remote->link.ops->memory & memory)
        return WEIR_OK;
    return weir_fail(WEIR_ERR_UNSUPPORTED,
                     "%s broadcasts over %s, which does not reach %s, where replica %s has its "
                     "parameters",
                     remote->who, remote->link.ops->name,
                     memory == WEIR_MEMORY_CUDA ? "a GPU" : "host memory", replica->worker.id);
}

/* The largest group of all ranks, and the part of most copies. */
static weir_status measure(const weir_replica *replica, uint64_t *out_bytes, size_t *out_copies)
{
    const weir_schedule *schedule = &replica->schedule;
    weir_status status = WEIR_OK;
    for (size_t p = 0; p < schedule->n_participants && status == WEIR_OK; p++) {
        const weir_participant *participant = &schedule->participants[p];
        const weir_remote *remote = participant->remote;
        if (!weir_catch_is_cast(participant))
            continue;
        status = check_reach(replica, remote);
        for (size_t g = 0; g < remote->n_groups; g++)
            *out_bytes = remote->group_bytes[g] > *out_bytes ? remote->group_bytes[g] : *out_bytes;
        for (size_t k = 0; k < participant->n_parts; k++) {
            size_t n = schedule->landing.parts[participant->first_part + k].n_copies;
            *out_copies = n > *out_copies ? n : *out_copies;
        }
    }
    return status;
}

static weir_status reserve_windows(weir_replica *replica, uint64_t n_bytes)
{
    weir_catch *caught = &replica->caught;
    weir_status status = WEIR_OK;
    if (n_bytes <= caught->window_bytes)
        return WEIR_OK;
    bool grows = caught->window_bytes > 0; /* groups may have registered what they were caught in */
    for (size_t i = 0; i < replica->n_remotes && grows; i++)
        weir_remote_begin_leaving(replica->remotes[i], true);
    for (size_t i = 0; i < replica->n_remotes && grows; i++)
        weir_remote_leave_casts(replica->remotes[i], true);
    free_windows(replica);
    caught->window_bytes = n_bytes;
    for (size_t w = 0; w < WEIR_CATCH_WINDOWS && status == WEIR_OK; w++) {
        status = weir_work_allocate(replica->work, n_bytes, &caught->windows[w].data);
        replica->worker.counters.allocations++;
    }
    if (status == WEIR_OK)
        return WEIR_OK;
    weir_error_prefix("the %u windows that groups of up to %" PRIu64 " bytes are caught in",
                      WEIR_CATCH_WINDOWS, n_bytes);
    free_windows(replica);
    return status;
}

static void free_tables(weir_catch *caught)
{
    weir_free(caught->ranges);
    weir_free(caught->found);
    weir_free(caught->rows);
    caught->ranges = NULL;
    caught->found = NULL;
    caught->rows = NULL;
    caught->room = 0;
}

static weir_status reserve_tables(weir_catch *caught, size_t n)
{
    if (n <= caught->room)
        return WEIR_OK;
    free_tables(caught);
    caught->ranges = weir_alloc_zeroed(n, sizeof(*caught->ranges));
    caught->found = weir_alloc_zeroed(n, sizeof(*caught->found));
    caught->rows = weir_alloc_zeroed(n, sizeof(*caught->rows));
    if (caught->ranges == NULL || caught->found == NULL || caught->rows == NULL) {
        free_tables(caught);
        return WEIR_ERR_NO_MEMORY;
    }
    caught->room = n;
    return WEIR_OK;
}

/* With room for the largest part: while broadcasts are under way there is no more to be had. */
static weir_status open_tasks(weir_replica *replica)
{
    weir_catch *caught = &replica->caught;
    weir_status status = WEIR_OK;
    if (caught->digest == NULL)
        status = weir_task_open(replica->work, &caught->digest);
    if (status == WEIR_OK && caught->copy == NULL)
        status = weir_task_open(replica->work, &caught->copy);
    if (status == WEIR_OK)
        status = weir_task_room(caught->digest, caught->room, 0);
    return status == WEIR_OK ? weir_task_room(caught->copy, 0, caught->room) : status;
}

/* A GPU loads its kernels when they are first started, and may have to wait for what runs then. */
static weir_status load_kernels(weir_replica *replica)
{
    weir_catch *caught = &replica->caught;
    unsigned char *from = caught->windows[0].data, *to = caught->windows[1].data;
    if (weir_work_memory(replica->work) != WEIR_MEMORY_CUDA || caught->window_bytes < 2 ||
        caught->room == 0)
        return WEIR_OK;
    const weir_work_rows rows[2] = { { to, from, 1, 1, 0, 0 }, { to + 1, from + 1, 1, 1, 0, 0 } };
    caught->ranges[0] = (weir_work_range){ .name = "window",
                                           .data = from,
                                           .n_rows = 1,
                                           .row_bytes = 1,
                                           .dtype = WEIR_U8,
                                           .digest = &caught->found[0] };
    weir_status status = weir_task_digest(caught->digest, WEIR_LANE_COMPUTE, caught->ranges, 1);
    if (status == WEIR_OK)
        status = weir_task_wait(caught->digest, replica->worker.timeout_ms);
    if (status == WEIR_OK)
        status = weir_task_scatter(caught->copy, WEIR_LANE_COMPUTE, rows, 2);
    return status == WEIR_OK ? weir_task_wait(caught->copy, replica->worker.timeout_ms) : status;
}

static bool runs(weir_task *task)
{
    weir_error_line before; /* how it ended is no failure of this refit */
    weir_error_save(&before);
    bool still = task != NULL && weir_task_test(task) == WEIR_IN_PROGRESS;
    weir_error_restore(&before);
    return still;
}

weir_status weir_catch_check_idle(weir_replica *replica)
{
    const weir_catch *caught = &replica->caught;
    if (!runs(caught->digest) && !runs(caught->copy))
        return WEIR_OK;
    return weir_fail(WEIR_ERR_TIMED_OUT,
                     "timed out: GPU %u is still at what replica %s caught of a version before",
                     weir_work_device(replica->work), replica->worker.id);
}

weir_status weir_catch_open(weir_replica *replica)
{
    weir_catch *caught = &replica->caught;
    uint64_t n_bytes = 0, bytes_before = caught->window_bytes;
    size_t n_copies = 0;
    weir_status status = weir_catch_check_idle(replica);
    if (status != WEIR_OK)
        return status;
    for (size_t w = 0; w < WEIR_CATCH_WINDOWS; w++)
        caught->windows[w] = (weir_catch_window){ .data = caught->windows[w].data };
    caught->n_turns = 0;
    caught->taken = NULL;
    status = measure(replica, &n_bytes, &n_copies);
    if (status == WEIR_OK)
        status = reserve_windows(replica, n_bytes);
    if (status == WEIR_OK)
        status = reserve_tables(caught, n_copies);
    if (status != WEIR_OK || n_bytes == 0)
        return status;
    status = open_tasks(replica);
    if (status == WEIR_OK && caught->window_bytes != bytes_before)
        status = load_kernels(replica);
    return status;
}

void weir_catch_close(weir_replica *replica)
{
    free_windows(replica);
    weir_task_close(replica->caught.digest);
    weir_task_close(replica->caught.copy);
    free_tables(&replica->caught);
    replica->caught = (weir_catch){ 0 };
}

/* ---- what was caught -------------------------------------------------------------------------*/

/* A shard lies in the window in one piece, wherever its rows belong. */
static weir_work_range range_of(const weir_shard *shard, const void *window, weir_digest *digest)
{
    const weir_shape shape = weir_box_shape(&shard->box);
    weir_work_range range = { .name = shard->name,
                              .data = (const unsigned char *)window + shard->offset,
                              .dtype = shard->dtype,
                              .digest = digest };
    weir_digest_rows_of(shard->dtype, &shape, &range.n_rows, &range.row_bytes);
    return range;
}

weir_status weir_catch_verify(weir_replica *replica, const void *window,
                              const weir_landing_part *part)
{
    weir_catch *caught = &replica->caught;
    const weir_schedule *schedule = &replica->schedule;
    for (size_t i = 0; i < part->n_copies; i++) {
        const weir_plan_copy *planned = &schedule->planned[part->first_copy + i];
        const weir_remote *remote = schedule->participants[planned->source].remote;
        caught->ranges[i] = range_of(&remote->shards[planned->shard], window, &caught->found[i]);
    }
    return weir_task_digest(caught->digest, WEIR_LANE_COMPUTE, caught->ranges, part->n_copies);
}

weir_status weir_catch_verified(weir_replica *replica, const weir_landing_part *part)
{
    weir_status status = weir_task_test(replica->caught.digest);
    if (status != WEIR_OK)
        return status;
    return weir_landing_compare_part(replica, part, replica->caught.found);
}

weir_status weir_catch_copy(weir_replica *replica, const void *window,
                            const weir_landing_part *part)
{
    weir_catch *caught = &replica->caught;
    bool is_staged = replica->mode == WEIR_INSTALL_STAGED && !replica->schedule.loads;
    size_t n_rows = weir_landing_rows(replica, part, window, caught->rows);
    if (is_staged) /* into host memory, beside an engine that runs on: its GPU copies by itself */
        return weir_task_copy_rows(caught->copy, WEIR_LANE_COMPUTE, caught->rows, n_rows);
    return weir_task_scatter(caught->copy, WEIR_LANE_COMPUTE, caught->rows, n_rows);
}

weir_status weir_catch_copied(weir_replica *replica)
{
    return weir_task_test(replica->caught.copy);
}

void weir_catch_settle(weir_replica *replica)
{
    weir_catch *caught = &replica->caught;
    unsigned bound_ms = replica->worker.timeout_ms;
    weir_error_line cause;
    if (caught->taken == NULL)
        return;
    weir_error_save(&cause);
    weir_task_wait(caught->is_copied ? caught->copy : caught->digest,
                   bound_ms < SETTLE_MS ? bound_ms : SETTLE_MS);
    weir_error_restore(&cause);
    caught->taken = NULL;
}
