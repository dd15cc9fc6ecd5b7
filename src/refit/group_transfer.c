/* SPDX-License-Identifier: Apache-2.0 */
/* group_transfer.c - stop 6 of 9, where the version passes through windows of its trainer ranks, or
 * through a loader of this replica: takes it part by part.
 *
 * Takes   a leased version with its plan of copies, sorted by group.
 * Gives   every copy's bytes at its destination, verified against the digests that came with their
 *         group.
 * Before  discover.c, which joins the readers        After  install.c
 * Breaks  a rank dies, stalls or fails, or the digest of a group differs: every rank that counts on
 * this reader is told. Staged: the live parameters were never touched. Direct: they hold a mixture
 * once a byte has landed; before, the wait can be cancelled and costs nothing.
 *
 * Every rank that is read goes through its groups by itself, and all of them are read at the same
 * time: ask, read, verify, ask for the next, which is what frees the buffer. Behind the last group
 * one more question says that nothing more is needed. Groups that are broadcast come in one order
 * (catch_turns.c).
 *
 * A checkpoint's tensors are converted as soon as a group of the loader has landed; who is ahead of
 * that waits until a buffer is free.
 */
#include <inttypes.h>
#include <sched.h>

#include "base/error.h"
#include "refit/group_pass.h"

#define BUSY_NS 50000
#define BUSY_YIELDS 64u /* before it sleeps that long */

static weir_landing_part *part_of(const weir_replica *replica, const weir_participant *participant)
{
    return &replica->schedule.landing.parts[participant->first_part + participant->reading.part];
}

/* ---- one participant -------------------------------------------------------------------------*/

static weir_status post_part(weir_group_pass *pass, weir_participant *participant)
{
    const weir_replica *replica = pass->replica;
    const weir_landing_part *part = part_of(replica, participant);
    pass->landed |= !pass->loads;
    if (participant->read_begun_s == 0)
        participant->read_begun_s = weir_now_s();
    weir_status status = participant->remote->link.ops->post(
        participant->remote->peer, replica->schedule.landing.reads + part->first_read,
        part->n_reads, &participant->transfer);
    if (status != WEIR_OK)
        participant->transfer = NULL;
    return status;
}

/* Asks for the next group, and begins to read it when it is there. */
static weir_status ask_for_part(weir_group_pass *pass, weir_participant *participant)
{
    weir_group_reading *reading = &participant->reading;
    weir_status status = weir_group_ask_in_time(pass, participant);
    if (status != WEIR_OK)
        return status == WEIR_IN_PROGRESS ? WEIR_OK : status;
    if (reading->part < participant->n_parts)
        return post_part(pass, participant);
    reading->done = true;
    return WEIR_OK;
}

/* The next part is of a group that was asked for already. */
static bool is_asked_for(const weir_group_pass *pass, const weir_participant *participant)
{
    size_t part = participant->reading.part;
    const weir_landing_part *next = part_of(pass->replica, participant);
    return part > 0 && part < participant->n_parts && next[-1].group == next->group;
}

/* There is no buffer for the next part yet. */
static bool is_held_back(const weir_group_pass *pass, const weir_participant *participant)
{
    return pass->loads && participant->reading.part < participant->n_parts &&
           !weir_loader_has_room(pass->replica->loader, part_of(pass->replica, participant)->load);
}

static weir_status begin_part(weir_group_pass *pass, weir_participant *participant)
{
    weir_group_reading *reading = &participant->reading;
    reading->held_back = is_held_back(pass, participant);
    if (reading->held_back)
        return WEIR_OK;
    if (weir_group_is_asked(pass->replica, participant) && !is_asked_for(pass, participant))
        return ask_for_part(pass, participant);
    if (reading->part < participant->n_parts)
        return post_part(pass, participant);
    reading->done = true;
    return WEIR_OK;
}

void weir_group_part_landed(weir_group_pass *pass, weir_participant *participant,
                            const weir_landing_part *part)
{
    if (pass->loads)
        weir_loader_landed(pass->replica->loader, part->load, 1);
    participant->read_ended_s = weir_now_s();
    pass->moved = true;
}

/* What has been read is verified before the next group is asked for: it may be gone then. */
static weir_status finish_part(weir_group_pass *pass, weir_participant *participant,
                               uint64_t n_bytes)
{
    weir_group_reading *reading = &participant->reading;
    const weir_landing_part *part = part_of(pass->replica, participant);
    weir_status status = WEIR_OK;
    participant->remote->link.ops->finish(participant->transfer);
    participant->transfer = NULL;
    if (weir_group_is_asked(pass->replica, participant) || pass->loads)
        status = weir_landing_verify_part(pass->replica, part);
    if (status != WEIR_OK)
        return status;
    weir_group_part_landed(pass, participant, part);
    reading->done_bytes += n_bytes;
    reading->part++;
    return WEIR_OK;
}

/* *out_bytes: of the part that is being read. */
static weir_status step_reading(weir_group_pass *pass, weir_participant *participant,
                                uint64_t *out_bytes)
{
    weir_status status = WEIR_OK;
    if (participant->transfer != NULL) {
        status = participant->remote->link.ops->test(participant->transfer, out_bytes);
        if (status < WEIR_OK)
            return status;
        if (status == WEIR_OK) {
            status = finish_part(pass, participant, *out_bytes);
            *out_bytes = 0;
        } else {
            status = WEIR_OK;
        }
    }
    if (participant->transfer == NULL && !participant->reading.done && status == WEIR_OK)
        status = begin_part(pass, participant);
    return status;
}

static weir_status step(weir_group_pass *pass, weir_participant *participant, uint64_t *done_bytes)
{
    weir_group_reading *reading = &participant->reading;
    uint64_t n_bytes = 0;
    bool is_sent =
        weir_catch_is_cast(participant) && weir_group_is_asked(pass->replica, participant);
    weir_status status =
        is_sent ? weir_catch_step(pass, participant) : step_reading(pass, participant, &n_bytes);
    if (status != WEIR_OK)
        return status;
    if (!reading->done && (pass->slowest == NULL || !reading->held_back))
        pass->slowest = participant;
    participant->read_bytes = reading->done_bytes + n_bytes;
    *done_bytes += participant->read_bytes;
    return WEIR_OK;
}

/* ---- all of them -----------------------------------------------------------------------------*/

static weir_status time_out(const weir_group_pass *pass, uint64_t done_bytes)
{
    const weir_replica *replica = pass->replica;
    const weir_participant *slowest = pass->slowest;
    double waited_s = replica->worker.timeout_ms / 1e3;
    if (weir_catch_is_cast(slowest))
        return weir_catch_time_out(pass, waited_s);
    if (slowest->transfer != NULL)
        return weir_fail(WEIR_ERR_TIMED_OUT,
                         "timed out: no byte from %s for %.1f s (%" PRIu64 " of %" PRIu64
                         " have arrived)",
                         slowest->remote->who, waited_s, done_bytes, replica->schedule.n_bytes);
    return weir_fail(WEIR_ERR_TIMED_OUT,
                     "timed out after %.1f s: %s has not made group %u of %zu of version %" PRIu64
                     "%s",
                     waited_s, slowest->remote->who, weir_group_next(replica, slowest),
                     slowest->remote->n_groups, pass->discovery->version,
                     slowest->reading.round == 0 ? ": it has not begun to send it" : "");
}

/* Bytes are on their way that nobody wakes this thread for. */
static void rest_briefly(unsigned *n_rests)
{
    const struct timespec busy = { 0, BUSY_NS };
    if ((*n_rests)++ < BUSY_YIELDS)
        sched_yield();
    else
        nanosleep(&busy, NULL);
}

static void sleep_for(uint64_t ns) /* less than a second */
{
    const struct timespec left = { 0, (long)ns };
    nanosleep(&left, NULL);
}

/* Sleeps when nothing is under way but questions. *n_rests: in a row. */
static void rest(const weir_group_pass *pass, unsigned *n_rests)
{
    const weir_schedule *schedule = &pass->replica->schedule;
    const uint64_t now = weir_now_ns();
    uint64_t until = now + (uint64_t)WEIR_GROUP_WAIT_US * 1000;
    *n_rests = pass->moved ? 0 : *n_rests;
    if (pass->moved)
        return;
    for (size_t p = 0; p < schedule->n_participants; p++) {
        const weir_participant *participant = &schedule->participants[p];
        if (participant->transfer != NULL)
            return;
        weir_deadline ask_at = participant->reading.ask_at;
        bool asks = !participant->reading.done && !participant->reading.held_back;
        if (asks && ask_at < until)
            until = ask_at;
    }
    if (weir_catch_is_busy(pass))
        rest_briefly(n_rests);
    else if (until > now)
        sleep_for(until - now);
}

static weir_status step_all(weir_group_pass *pass, uint64_t *out_done_bytes)
{
    const weir_schedule *schedule = &pass->replica->schedule;
    weir_status status = WEIR_OK;
    pass->slowest = NULL;
    pass->moved = false;
    *out_done_bytes = 0;
    for (size_t p = 0; p < schedule->n_participants && status == WEIR_OK; p++)
        status = step(pass, &schedule->participants[p], out_done_bytes);
    return status == WEIR_OK ? weir_catch_turns(pass) : status;
}

/* Direct, the live parameters change with the first group that is converted. */
static weir_status convert_landed(weir_group_pass *pass)
{
    bool any = false;
    if (!pass->loads || !weir_loader_is_ready(pass->replica->loader))
        return WEIR_OK;
    pass->landed = true;
    weir_status status = weir_load_convert(pass->replica, &any);
    pass->moved |= any;
    return status;
}

static weir_status drive(weir_group_pass *pass)
{
    weir_replica *replica = pass->replica;
    uint64_t best_bytes = 0, done_bytes;
    unsigned n_rests = 0;
    weir_deadline deadline = weir_deadline_in(replica->worker.timeout_ms);
    for (;;) {
        weir_status status = step_all(pass, &done_bytes);
        if (status == WEIR_OK)
            status = convert_landed(pass);
        if (status != WEIR_OK || pass->slowest == NULL)
            return status;
        if (done_bytes > best_bytes || pass->moved)
            deadline = weir_deadline_in(replica->worker.timeout_ms);
        if (done_bytes > best_bytes)
            weir_transfer_note(replica, pass->discovery->version, done_bytes);
        best_bytes = done_bytes > best_bytes ? done_bytes : best_bytes;
        if (replica->mode == WEIR_INSTALL_STAGED || !pass->landed)
            status = weir_worker_check_cancelled(&replica->worker);
        if (status != WEIR_OK)
            return status;
        if (weir_deadline_passed(deadline))
            return time_out(pass, done_bytes);
        rest(pass, &n_rests);
    }
}

/* Who is sent what is broadcast tells why it goes before it does: that others see by themselves. */
static void give_up(weir_group_pass *pass)
{
    const weir_schedule *schedule = &pass->replica->schedule;
    weir_error_line cause;
    bool any = false;
    for (size_t p = 0; p < schedule->n_participants; p++)
        any |= weir_catch_is_cast(&schedule->participants[p]);
    if (!any)
        return;
    weir_error_save(&cause);
    weir_group_leave(pass->replica, pass->discovery);
    weir_error_restore(&cause);
}

weir_status weir_group_transfer(weir_replica *replica, const weir_discovery *discovery,
                                bool *out_landed)
{
    weir_group_pass pass = { .replica = replica,
                             .discovery = discovery,
                             .loads = replica->schedule.loads };
    weir_status status = drive(&pass);
    if (status != WEIR_OK) {
        weir_catch_settle(replica);
        give_up(&pass);
    }
    *out_landed = pass.landed;
    return status;
}
