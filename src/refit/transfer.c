/* SPDX-License-Identifier: Apache-2.0 */
/* transfer.c - stop 6 of 9: moves the bytes of a plan onto the replica.
 *
 * Takes   a leased version with its plan of copies.
 * Gives   every copy's bytes at its destination: beside the live parameters (staged) or in them
 *         (direct). What arrived is verified by the next stop.
 * Before  discover.c        After  install.c
 * Breaks  a source dies or stalls: all transfers are ended, so that nothing writes any more.
 * Staged: the live parameters were never touched. Direct: they hold a mixture.
 *
 * One-sided: the trainer's threads take no part. All sources are read at the same time.
 */
#include <inttypes.h>

#include "base/error.h"
#include "refit/replica.h"

static weir_status post_all(weir_schedule *schedule, bool *out_landed)
{
    for (size_t p = 0; p < schedule->n_participants; p++) {
        weir_participant *participant = &schedule->participants[p];
        if (participant->n_reads == 0)
            continue;
        *out_landed = true;
        participant->read_begun_s = weir_now_s();
        weir_status status = participant->remote->link.ops->post(
            participant->remote->peer, schedule->landing.reads + participant->first_read,
            participant->n_reads, &participant->transfer);
        if (status != WEIR_OK) {
            participant->transfer = NULL;
            return status;
        }
    }
    return WEIR_OK;
}

/* One round over the unfinished transfers. *out_slowest: one that is still under way. */
static weir_status test_all(weir_schedule *schedule, uint64_t *out_done_bytes,
                            const weir_remote **out_slowest)
{
    weir_status result = WEIR_OK;
    *out_done_bytes = 0;
    for (size_t p = 0; p < schedule->n_participants; p++) {
        weir_participant *participant = &schedule->participants[p];
        uint64_t done_bytes = 0;
        if (participant->transfer == NULL)
            continue;
        weir_status status =
            participant->remote->link.ops->test(participant->transfer, &done_bytes);
        if (status < WEIR_OK)
            return status;
        if (status == WEIR_IN_PROGRESS) {
            result = WEIR_IN_PROGRESS;
            *out_slowest = participant->remote;
        } else if (participant->read_ended_s == 0) {
            participant->read_ended_s = weir_now_s();
        }
        participant->read_bytes = done_bytes;
        *out_done_bytes += done_bytes;
    }
    return result;
}

void weir_transfer_note(const weir_replica *replica, uint64_t version, uint64_t done_bytes)
{
    const weir_schedule *schedule = &replica->schedule;
    const weir_participant *slowest = NULL;
    uint64_t most_bytes = 0;
    for (size_t p = 0; p < schedule->n_participants; p++) {
        const weir_participant *participant = &schedule->participants[p];
        uint64_t left_bytes = participant->all_bytes - participant->read_bytes;
        if (participant->all_bytes > participant->read_bytes && left_bytes > most_bytes) {
            most_bytes = left_bytes;
            slowest = participant;
        }
    }
    weir_worker_waits_for(&replica->worker, slowest != NULL ? slowest->remote->worker_id : "");
    weir_worker_progress(&replica->worker, WEIR_STOP_TRANSFER, version, done_bytes,
                         schedule->n_bytes);
}

static weir_status drive(weir_replica *replica, uint64_t version)
{
    weir_schedule *schedule = &replica->schedule;
    const weir_remote *slowest = NULL;
    uint64_t best_bytes = 0, done_bytes;
    weir_deadline deadline = weir_deadline_in(replica->worker.timeout_ms);
    for (;;) {
        weir_status status = test_all(schedule, &done_bytes, &slowest);
        if (done_bytes > best_bytes) {
            best_bytes = done_bytes;
            deadline = weir_deadline_in(replica->worker.timeout_ms);
            weir_transfer_note(replica, version, done_bytes);
        }
        if (status == WEIR_IN_PROGRESS && replica->mode == WEIR_INSTALL_STAGED &&
            weir_worker_check_cancelled(&replica->worker) != WEIR_OK)
            return WEIR_ERR_CANCELLED;
        if (status != WEIR_IN_PROGRESS)
            return status;
        if (weir_deadline_passed(deadline))
            return weir_fail(
                WEIR_ERR_TIMED_OUT,
                "timed out: no byte from %s for %.1f s (%" PRIu64 " of %" PRIu64 " have arrived)",
                slowest->who, replica->worker.timeout_ms / 1e3, done_bytes, schedule->n_bytes);
    }
}

static void begin_reads(weir_schedule *schedule)
{
    for (size_t p = 0; p < schedule->n_participants; p++) {
        weir_participant *participant = &schedule->participants[p];
        participant->read_begun_s = participant->read_ended_s = 0;
        participant->read_bytes = participant->all_bytes = 0;
        for (size_t i = 0; i < participant->n_reads; i++)
            participant->all_bytes += schedule->landing.reads[participant->first_read + i].n_bytes;
    }
}

/* Which source took how long, until now those that are not done. */
static void tell_reads(weir_replica *replica, const weir_discovery *discovery)
{
    const weir_schedule *schedule = &replica->schedule;
    const char *peer = discovery->peer.worker_id;
    double now_s = weir_now_s();
    for (size_t p = 0; p < schedule->n_participants; p++) {
        const weir_participant *participant = &schedule->participants[p];
        double ended_s = participant->read_ended_s;
        if (participant->read_begun_s > 0)
            weir_worker_has_read(&replica->worker, peer[0] != '\0' ? peer : participant->slot,
                                 participant->read_bytes, participant->read_begun_s,
                                 ended_s > 0 ? ended_s : now_s);
    }
}

/* Groups that are broadcast have been left, those of a round that had begun. */
static void finish_all(weir_schedule *schedule, bool failed)
{
    for (size_t p = 0; p < schedule->n_participants; p++) {
        weir_participant *participant = &schedule->participants[p];
        if (participant->transfer != NULL)
            participant->remote->link.ops->finish(participant->transfer);
        participant->transfer = NULL;
        if (failed && !weir_catch_is_cast(participant))
            weir_remote_disconnect(participant->remote);
    }
}

/* Bytes that go to a GPU must come by a transport that writes there; staged ones pass through host
 * memory anyway. */
static weir_status check_reach(const weir_replica *replica)
{
    const weir_schedule *schedule = &replica->schedule;
    bool staged = replica->mode == WEIR_INSTALL_STAGED && !schedule->loads;
    uint32_t memory = staged ? WEIR_MEMORY_HOST : weir_work_memory(replica->work);
    for (size_t p = 0; p < schedule->n_participants && memory == WEIR_MEMORY_CUDA; p++) {
        const weir_participant *participant = &schedule->participants[p];
        const weir_transport_ops *ops = participant->remote->link.ops;
        if (!weir_catch_is_cast(participant) && !(ops->memory & memory))
            return weir_fail(WEIR_ERR_UNSUPPORTED,
                             "replica %s %s on a GPU, where transport %s of %s cannot write: "
                             "%s, or publish through cuda_ipc",
                             replica->worker.id,
                             schedule->loads ? "loads a checkpoint" : "installs direct", ops->name,
                             participant->remote->who,
                             schedule->loads ? "have kernel bytes sent" : "install staged");
    }
    return WEIR_OK;
}

weir_status weir_stop_transfer(weir_replica *replica, const weir_discovery *discovery,
                               bool *out_landed)
{
    weir_schedule *schedule = &replica->schedule;
    *out_landed = false;
    weir_status status = check_reach(replica);
    if (status == WEIR_OK)
        status = weir_catch_check_idle(replica);
    if (status != WEIR_OK)
        return status;
    if (schedule->loads) /* its buffers are where it is aimed */
        status = weir_load_begin(replica);
    if (status != WEIR_OK)
        return status;
    weir_landing_aim(replica);
    begin_reads(schedule);
    if (schedule->loads || weir_group_any(schedule)) {
        status = weir_group_transfer(replica, discovery, out_landed);
    } else {
        status = post_all(schedule, out_landed);
        if (status == WEIR_OK)
            status = drive(replica, discovery->version);
    }
    tell_reads(replica, discovery);
    weir_error_line cause;
    weir_error_save(&cause);
    finish_all(schedule, status != WEIR_OK);
    weir_error_restore(&cause);
    return status;
}
