/* SPDX-License-Identifier: Apache-2.0 */
/* revert.c - the way back of a staged install that stands already, without any trainer.
 *
 * Takes   what the last install has left beside the parameters: bytes that were read have changed
 *         places with the staged ones, and of bytes that were pushed the undo log kept the old.
 * Gives   what was held before, at the same addresses; the directory and peers hear of it.
 * Breaks  the engine's hooks or another worker refuse: the version that was held stands again. The
 *         same exchange leads there, too.
 *
 * The next transfer lands where the old bytes are: from its lease on there is no way back.
 */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "base/error.h"
#include "base/log.h"
#include "refit/replica.h"

#define MOST_TELLING_MS 2000u

void weir_way_back_keep(weir_replica *replica)
{
    weir_way_back *back = &replica->back;
    back->is_there =
        replica->mode == WEIR_INSTALL_STAGED && replica->state != WEIR_REPLICA_UNUSABLE;
    back->of_peer = replica->schedule.of_peer;
    back->state = replica->state;
    back->version = replica->state == WEIR_REPLICA_HOLDING ? replica->version : 0;
    back->attempt = replica->attempt;
    memcpy(back->version_uid, replica->version_uid, sizeof(back->version_uid));
    back->told = replica->told;
}

void weir_way_back_forget(weir_replica *replica)
{
    replica->back.is_there = false;
}

static void name_goal(const weir_replica *replica, char *text, size_t n_text)
{
    if (replica->back.state == WEIR_REPLICA_HOLDING)
        snprintf(text, n_text, "version %" PRIu64, replica->back.version);
    else
        snprintf(text, n_text, "what the engine came with");
}

static weir_status check(const weir_replica *replica)
{
    if (replica->mode == WEIR_INSTALL_DIRECT)
        return weir_fail(WEIR_ERR_UNSUPPORTED,
                         "replica %s installs directly: nothing of what was there is kept",
                         replica->worker.id);
    if (!replica->back.is_there)
        return weir_fail(WEIR_ERR_NOT_FOUND,
                         "replica %s has nothing to go back to: no install has succeeded since it "
                         "opened or went back, or a later version has begun to come",
                         replica->worker.id);
    return WEIR_OK;
}

/* ---- the live parameters ---------------------------------------------------------------------*/

/* `back`: the old bytes come; else those that they had replaced. */
static weir_status change_places(weir_replica *replica, bool back)
{
    if (!replica->schedule.pushed)
        return weir_exchange(replica);
    weir_status status = WEIR_OK;
    if (weir_work_memory(replica->work) == WEIR_MEMORY_CUDA)
        status = weir_bounce_open(replica);
    return status == WEIR_OK ? weir_undo_exchange(&replica->undo, back, replica->bounce,
                                                  replica->worker.timeout_ms)
                             : status;
}

/* From the first live byte on. *out_changed: there is something to take back. */
static weir_status change_live(weir_replica *replica, bool *out_changed)
{
    weir_status status = weir_live_begin(replica);
    if (status != WEIR_OK)
        return status;
    weir_schedule_choose(replica, replica->back.of_peer);
    status = change_places(replica, true);
    if (status != WEIR_OK) {
        weir_refit_mark_unusable(replica, "going back");
        return status;
    }
    *out_changed = true;
    status = weir_derived_refresh(replica);
    return status == WEIR_OK ? weir_engine_take(replica, replica->back.version) : status;
}

/* The version that was held stands. */
static void stay(weir_replica *replica)
{
    weir_error_line cause;
    weir_error_save(&cause);
    weir_status status = change_places(replica, false);
    if (status == WEIR_OK)
        status = weir_derived_refresh(replica);
    if (status != WEIR_OK)
        weir_log(WEIR_LOG_ERROR, "replica %s can go neither back nor forth: %s", replica->worker.id,
                 weir_last_error());
    weir_error_restore(&cause);
    if (status != WEIR_OK) {
        weir_refit_mark_unusable(replica, "going back");
        return;
    }
    weir_holding_restore(replica);
    weir_live_end(replica);
}

/* ---- what is held ----------------------------------------------------------------------------*/

/* An engine that runs already waits for no directory, which may be gone with its trainer. */
static void tell(weir_replica *replica, uint64_t left, const char *left_uid)
{
    weir_directory_client *client = replica->worker.client;
    unsigned bound_ms = replica->worker.timeout_ms;
    bound_ms = bound_ms < MOST_TELLING_MS ? bound_ms : MOST_TELLING_MS;
    bound_ms = weir_directory_client_bound(client, bound_ms);
    weir_stop_take_back(replica, left, left_uid);
    weir_directory_client_bound(client, bound_ms);
}

static void hold_again(weir_replica *replica)
{
    const weir_way_back *back = &replica->back;
    uint64_t left = replica->version;
    char left_uid[WEIR_ID_BYTES], goal[64];
    memcpy(left_uid, replica->version_uid, sizeof(left_uid));
    replica->state = back->state;
    replica->version = back->version;
    replica->attempt = back->attempt;
    memcpy(replica->version_uid, back->version_uid, sizeof(replica->version_uid));
    replica->told = back->told;
    weir_way_back_forget(replica);
    weir_live_end(replica);
    if (replica->state == WEIR_REPLICA_HOLDING) {
        weir_holding_digest_anew(replica);
        weir_holding_publish(replica, replica->version_uid);
    } else {
        replica->published_uid[0] = '\0';
    }
    tell(replica, left, left_uid);
    name_goal(replica, goal, sizeof(goal));
    weir_log(WEIR_LOG_INFO, "replica worker %u (%s) went back from version %" PRIu64 " to %s",
             replica->worker.rank, replica->worker.id, left, goal);
}

static weir_status go_back(weir_replica *replica)
{
    bool changed = false;
    uint64_t version = replica->back.version;
    weir_status status = weir_refit_agree(replica, version, check(replica));
    if (status != WEIR_OK)
        return status;
    status = change_live(replica, &changed);
    status = weir_refit_agree(replica, version, status);
    if (status == WEIR_OK)
        hold_again(replica);
    else if (changed)
        stay(replica);
    return status;
}

weir_status weir_replica_revert(weir_replica *replica, weir_report *report)
{
    double begun_s = weir_now_s();
    uint64_t n_allocations = weir_alloc_count();
    weir_status status = go_back(replica);
    if (report == NULL)
        return status;
    *report = (weir_report){ .version = weir_replica_version(replica),
                             .n_tensors = replica->n_parameters,
                             .n_bytes = status == WEIR_OK ? replica->schedule.n_bytes : 0,
                             .total_seconds = weir_now_s() - begun_s };
    report->counters.allocations = weir_alloc_count() - n_allocations;
    return status;
}
