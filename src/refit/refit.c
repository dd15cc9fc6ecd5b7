/* SPDX-License-Identifier: Apache-2.0 */
/* refit.c - one refit, from the trainer's weights to a replica's live parameters.
 *
 *   TRAINER RANK                                    REPLICA WORKER
 *   1 source -> 2 stage -> 3 slot -> 4 publish      5 discover -> 6 transfer -> 7 install
 *                                                     -> 8 postprocess -> 9 ack
 *
 * Each stop is a file of its own and hands on one struct: a slot on the trainer, a discovery on the
 * replica. This file calls them in order and decides what a failure leaves behind. The two halves
 * meet in the directory (who has what) and in the transport (the bytes, read one-sided).
 */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/error.h"
#include "base/log.h"
#include "refit/replica.h"
#include "refit/trainer.h"

/* ---- trainer: stops 1 to 4 -------------------------------------------------------------------*/

static weir_status publish_slot(weir_trainer *trainer, weir_stopwatch *watch, weir_slot *slot)
{
    slot->version = watch->report->version;
    weir_stopwatch_enter(watch, WEIR_STOP_STAGE);
    weir_status status = weir_stop_stage(trainer, slot);
    if (status != WEIR_OK)
        return status;
    weir_stopwatch_enter(watch, WEIR_STOP_SLOT);
    status = weir_stop_slot(trainer, slot, watch->report->version);
    if (status != WEIR_OK)
        return status;
    weir_stopwatch_enter(watch, WEIR_STOP_PUBLISH);
    return weir_stop_publish(trainer, slot);
}

/* Unless another rank has published the version before: then that one's counts. */
static void begin_trace(weir_trainer *trainer, uint64_t version)
{
    char made[WEIR_TRACE_BYTES] = "";
    if (trainer->given_trace[0] == '\0')
        weir_trace_make(made);
    weir_worker_is_about(&trainer->worker, version,
                         trainer->given_trace[0] != '\0' ? trainer->given_trace : made);
}

weir_status weir_trainer_publish(weir_trainer *trainer, uint64_t version, weir_report *report)
{
    weir_report unread;
    weir_stopwatch watch;
    weir_slot *slot = NULL;
    if (version == WEIR_LATEST)
        return weir_fail(WEIR_ERR_INVALID, "version %" PRIu64 " stands for the latest one",
                         version);
    if (trainer->has_published && version <= trainer->last_version)
        return weir_fail(WEIR_ERR_INVALID,
                         "version %" PRIu64 " is not after version %" PRIu64
                         ", the last that trainer rank %u published",
                         version, trainer->last_version, trainer->rank);
    weir_stopwatch_start(&watch, &trainer->worker, version, report != NULL ? report : &unread);
    begin_trace(trainer, version);
    weir_stopwatch_enter(&watch, WEIR_STOP_SOURCE);
    weir_status status = weir_stop_source(trainer);
    if (status == WEIR_OK)
        status = weir_slot_acquire(trainer, &slot);
    if (status == WEIR_OK)
        status = publish_slot(trainer, &watch, slot);
    watch.report->n_tensors = trainer->source.n_shards;
    watch.report->n_bytes = trainer->source.n_bytes;
    weir_stopwatch_end(&watch, status);
    if (status == WEIR_OK) {
        trainer->last_version = version;
        trainer->has_published = true;
    } else if (slot != NULL) {
        weir_slot_drop(trainer, slot);
        if (status == WEIR_ERR_NONFINITE) /* no other call can make a whole of it */
            weir_publish_give_up(trainer, version);
    }
    return status;
}

/* ---- replica: stops 5 to 9 -------------------------------------------------------------------*/

void weir_refit_mark_unusable(weir_replica *replica, const char *doing)
{
    replica->state = WEIR_REPLICA_UNUSABLE;
    weir_way_back_forget(replica);
    weir_error_prefix("replica %s is unusable until a whole version is in: %s failed",
                      replica->worker.id, doing);
}

static void mark_unusable(weir_replica *replica, uint64_t version)
{
    char doing[64];
    snprintf(doing, sizeof(doing), "install of version %" PRIu64, version);
    weir_refit_mark_unusable(replica, doing);
}

/* Brings the old version back, derived parameters included. */
static void roll_back(weir_replica *replica, uint64_t failed_version)
{
    weir_error_line cause;
    weir_error_save(&cause);
    weir_status status = replica->schedule.pushed
                             ? weir_undo_run(&replica->undo, replica->worker.timeout_ms)
                             : weir_install_undo(replica);
    if (status == WEIR_OK)
        status = weir_derived_refresh(replica);
    if (status != WEIR_OK) {
        weir_log(WEIR_LOG_ERROR, "replica %s cannot bring its old version back: %s",
                 replica->worker.id, weir_last_error());
        weir_error_restore(&cause);
        mark_unusable(replica, failed_version);
        return;
    }
    weir_error_restore(&cause);
    weir_holding_restore(replica);
    weir_live_end(replica);
}

weir_status weir_refit_agree(weir_replica *replica, uint64_t version, weir_status mine)
{
    weir_error_line cause;
    if (replica->agree == NULL)
        return mine;
    weir_error_save(&cause);
    weir_status all = replica->agree(replica->hooks.context, version, mine);
    weir_error_restore(&cause);
    if (mine != WEIR_OK || all == WEIR_OK)
        return mine;
    return weir_fail(all, "replica %s: another worker of it did not take version %" PRIu64 ": %s",
                     replica->worker.id, version, weir_status_text(all));
}

/* Direct, when not all workers have come to the end: whether bytes may have landed in one of them,
 * `mine` being this one. A ballot that fails by itself leaves that open: then they have. */
static bool has_landed_anywhere(weir_replica *replica, uint64_t version, bool mine)
{
    weir_error_line cause;
    if (replica->agree == NULL)
        return mine;
    weir_error_save(&cause);
    weir_status all =
        replica->agree(replica->hooks.context, version, mine ? WEIR_ERR_PARTIAL : WEIR_OK);
    weir_error_restore(&cause);
    return mine || all != WEIR_OK;
}

/* From the first live byte on. *out_changed: there is something to roll back. */
static weir_status change_live(weir_replica *replica, weir_stopwatch *watch, uint64_t version,
                               bool *out_changed)
{
    weir_status status = weir_stop_install(replica);
    if (status == WEIR_ERR_PARTIAL)
        mark_unusable(replica, version);
    *out_changed = status == WEIR_OK;
    if (status != WEIR_OK)
        return status;
    weir_stopwatch_enter(watch, WEIR_STOP_POSTPROCESS);
    return weir_stop_postprocess(replica, version);
}

/* All bytes, verified: of the sources that were discovered or, when one of them fails, of others.
 * *out_landed as weir_stop_transfer(), of any of them. */
static weir_status fetch(weir_replica *replica, weir_stopwatch *watch, weir_discovery *discovery,
                         bool *out_landed)
{
    *out_landed = false;
    for (;;) {
        bool landed = false;
        weir_stopwatch_enter(watch, WEIR_STOP_TRANSFER);
        weir_status status = weir_staging_open(replica);
        if (status == WEIR_OK)
            status = weir_stop_transfer(replica, discovery, &landed);
        *out_landed |= landed;
        weir_stopwatch_enter(watch, WEIR_STOP_INSTALL);
        if (status == WEIR_OK)
            status = weir_landing_verify(replica);
        if (status == WEIR_OK)
            return WEIR_OK;
        status = weir_discover_gone(replica, discovery, status);
        status = weir_discover_elsewhere(replica, discovery, status);
        if (status != WEIR_OK)
            return status;
    }
}

static weir_status install_staged(weir_replica *replica, weir_stopwatch *watch,
                                  weir_discovery *discovery)
{
    bool landed, changed = false;
    weir_status status = fetch(replica, watch, discovery, &landed);
    status = weir_refit_agree(replica, discovery->version, status);
    if (status != WEIR_OK)
        return status;
    status = change_live(replica, watch, discovery->version, &changed);
    status = weir_refit_agree(replica, discovery->version, status);
    if (status != WEIR_OK && changed)
        roll_back(replica, discovery->version);
    return status;
}

static weir_status land_directly(weir_replica *replica, weir_stopwatch *watch,
                                 weir_discovery *discovery, bool *out_landed)
{
    weir_status status = fetch(replica, watch, discovery, out_landed);
    if (status != WEIR_OK)
        return status;
    weir_stopwatch_enter(watch, WEIR_STOP_POSTPROCESS);
    return weir_stop_postprocess(replica, discovery->version);
}

static weir_status install_direct(weir_replica *replica, weir_stopwatch *watch,
                                  weir_discovery *discovery)
{
    bool landed = false;
    weir_stopwatch_enter(watch, WEIR_STOP_TRANSFER);
    weir_status paused = weir_live_begin(replica);
    weir_status status = weir_refit_agree(replica, discovery->version, paused);
    if (paused != WEIR_OK)
        return status;
    if (status == WEIR_OK) {
        status = land_directly(replica, watch, discovery, &landed);
        status = weir_refit_agree(replica, discovery->version, status);
        if (status == WEIR_OK)
            return WEIR_OK;
        landed = has_landed_anywhere(replica, discovery->version, landed);
    }
    if (landed) {
        mark_unusable(replica, discovery->version);
    } else if (replica->state != WEIR_REPLICA_UNUSABLE) {
        weir_holding_restore(replica);
        weir_live_end(replica);
    }
    return status;
}

/* Its engine runs, but the parameters of another worker of it hold a mixture. */
static void pause_late(weir_replica *replica)
{
    weir_error_line cause;
    weir_error_save(&cause);
    if (weir_live_begin(replica) != WEIR_OK)
        weir_log(WEIR_LOG_ERROR, "replica %s: %s", replica->worker.id, weir_last_error());
    weir_error_restore(&cause);
}

static void undo_pushed(weir_replica *replica, uint64_t version, bool paused, bool landed)
{
    bool is_mixed =
        replica->mode == WEIR_INSTALL_DIRECT && has_landed_anywhere(replica, version, landed);
    if (is_mixed && !paused)
        pause_late(replica);
    if (is_mixed)
        mark_unusable(replica, version);
    else if (paused && replica->state != WEIR_REPLICA_UNUSABLE)
        roll_back(replica, version);
}

/* A version that is pushed: what came was verified step by step, and lies where it belongs. */
static weir_status install_pushed(weir_replica *replica, weir_stopwatch *watch,
                                  const weir_discovery *discovery)
{
    bool paused, landed;
    weir_status status = weir_refit_agree(replica, discovery->version, WEIR_OK);
    if (status != WEIR_OK)
        return status;
    weir_stopwatch_enter(watch, WEIR_STOP_TRANSFER);
    status = weir_stop_attend(replica, discovery, &paused, &landed);
    if (status == WEIR_OK) {
        weir_stopwatch_enter(watch, WEIR_STOP_POSTPROCESS);
        status = weir_stop_postprocess(replica, discovery->version);
    }
    status = weir_refit_agree(replica, discovery->version, status);
    if (status != WEIR_OK)
        undo_pushed(replica, discovery->version, paused, landed);
    return status;
}

static void hold(weir_replica *replica, weir_stopwatch *watch, const weir_discovery *discovery)
{
    weir_way_back_keep(replica);
    replica->state = WEIR_REPLICA_HOLDING;
    replica->version = discovery->version;
    replica->attempt = discovery->attempt;
    memcpy(replica->version_uid, discovery->uid, sizeof(replica->version_uid));
    snprintf(watch->report->read_from, sizeof(watch->report->read_from), "%s",
             discovery->peer.worker_id);
    weir_live_end(replica);
    weir_stopwatch_enter(watch, WEIR_STOP_ACK);
    weir_holding_publish(replica, discovery->uid);
    weir_stop_ack(replica, discovery, watch->report);
}

static weir_status install(weir_replica *replica, weir_stopwatch *watch, weir_discovery *discovery)
{
    if (replica->schedule.pushed)
        return install_pushed(replica, watch, discovery);
    return replica->mode == WEIR_INSTALL_DIRECT ? install_direct(replica, watch, discovery)
                                                : install_staged(replica, watch, discovery);
}

static weir_status try_install(weir_replica *replica, weir_stopwatch *watch, weir_search *search)
{
    weir_discovery discovery = { 0 };
    weir_stopwatch_enter(watch, WEIR_STOP_DISCOVER);
    weir_status status = weir_stop_discover(replica, search, &discovery);
    if (status != WEIR_OK)
        return weir_refit_agree(replica, search->version, status);
    watch->report->version = discovery.version;
    watch->report->n_tensors = replica->n_parameters;
    watch->report->n_bytes = replica->schedule.n_bytes;
    status = install(replica, watch, &discovery);
    if (status == WEIR_OK)
        hold(replica, watch, &discovery);
    else
        weir_stop_refuse(replica, &discovery, status);
    return status;
}

/* Workers that agree try together or not at all; who is pushed to waits for the next round. */
static bool may_try_again(const weir_replica *replica)
{
    return replica->agree == NULL && !replica->schedule.pushed &&
           !weir_group_any(&replica->schedule);
}

weir_status weir_replica_install(weir_replica *replica, uint64_t version, weir_report *report)
{
    weir_report unread;
    weir_stopwatch watch;
    weir_search search = { .version = version,
                           .retry.deadline = weir_deadline_in(replica->worker.timeout_ms) };
    if (replica->n_parameters == 0)
        return weir_fail(WEIR_ERR_INVALID, "replica %s has registered no parameters",
                         replica->worker.id);
    weir_stopwatch_start(&watch, &replica->worker, version, report != NULL ? report : &unread);
    weir_status status = WEIR_OK, again = WEIR_OK;
    do {
        status = try_install(replica, &watch, &search);
        again = status;
        if (status != WEIR_OK && may_try_again(replica))
            again = weir_search_again(replica, &search, status);
    } while (status != WEIR_OK && again == WEIR_OK);
    weir_stopwatch_end(&watch, again);
    if (replica->schedule.pushed)
        weir_attend_tell(replica, watch.report, again);
    return again;
}

weir_replica_state weir_replica_get_state(const weir_replica *replica)
{
    return replica->state;
}

uint64_t weir_replica_version(const weir_replica *replica)
{
    return replica->state == WEIR_REPLICA_HOLDING ? replica->version : 0;
}
