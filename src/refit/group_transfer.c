/* SPDX-License-Identifier: Apache-2.0 */
/* group_transfer.c - stop 6 of 9, where the version passes through windows of its trainer ranks, or
 * through a loader of this replica: reads it part by part.
 *
 * Takes   a leased version with its plan of copies, sorted by group.
 * Gives   every copy's bytes at its destination, verified against the digests that came with their
 *         group.
 * Before  discover.c, which joins the readers        After  install.c
 * Breaks  a rank dies, stalls or fails, or the digest of a group differs: every rank that counts on
 * this reader is told. Staged: the live parameters were never touched. Direct: they hold a mixture.
 *
 * Every rank goes through its groups by itself, and all of them are read at the same time: ask,
 * read, verify, ask for the next, which is what frees the buffer. Behind the last group one more
 * question says that nothing more is needed.
 *
 * A checkpoint's tensors are converted as soon as a group of the loader has landed; who is ahead of
 * that waits until a buffer is free.
 */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/error.h"
#include "base/log.h"
#include "refit/credits.h"
#include "refit/replica.h"

#define FIRST_WAIT_MS 1u
#define LAST_WAIT_MS 16u
#define LEAVE_MS 1000u
#define JOIN_MS 500u

/* One refit. */
typedef struct group_pass {
    weir_replica *replica;
    const weir_discovery *discovery;
    bool landed, moved;              /* a byte may have; one has, or a group was done */
    bool loads;                      /* into the loader: nothing has landed before it converts */
    const weir_participant *slowest; /* one that is not done */
} group_pass;

bool weir_group_any(const weir_schedule *schedule)
{
    for (size_t p = 0; p < schedule->n_participants; p++) {
        const weir_remote *remote = schedule->participants[p].remote;
        if (remote != NULL && remote->n_groups > 0)
            return true;
    }
    return false;
}

/* What it publishes passes through a window, and this replica reads some of it. A checkpoint's
 * readers are all counted on, so one that needs nothing of it says that too. */
static bool is_grouped(const weir_replica *replica, const weir_participant *participant)
{
    return participant->remote->n_groups > 0 &&
           (participant->n_parts > 0 || replica->schedule.loads);
}

static weir_landing_part *part_of(const weir_replica *replica, const weir_participant *participant)
{
    return &replica->schedule.landing.parts[participant->first_part + participant->reading.part];
}

/* The group that is asked for next. */
static uint32_t group_of(const weir_replica *replica, const weir_participant *participant)
{
    bool all = participant->reading.part == participant->n_parts;
    return all ? (uint32_t)participant->remote->n_groups : part_of(replica, participant)->group;
}

/* The worker of its engine that a participant knows this one as: what a checkpoint is sent to are
 * engines of one worker. */
static uint32_t known_as(const weir_replica *replica)
{
    return replica->schedule.loads ? 0 : replica->mesh_worker;
}

/* ---- asking ----------------------------------------------------------------------------------*/

static weir_status ask(weir_replica *replica, const weir_discovery *discovery,
                       const weir_participant *participant, weir_group_record *out)
{
    const weir_remote *remote = participant->remote;
    weir_group_ask question = { .reader = replica->worker.id,
                                .worker = known_as(replica),
                                .group = group_of(replica, participant),
                                .round = participant->reading.round };
    size_t n_bytes;
    weir_status status = weir_directory_ask_group(
        replica->worker.client, remote->endpoint, remote->who, discovery->uid, remote->slot,
        &question, 0, &replica->answer.data, &replica->answer.capacity_bytes, &n_bytes);
    weir_arena_reset(&replica->scratch);
    if (status == WEIR_OK)
        status = weir_group_record_decode(replica->answer.data, n_bytes, &replica->scratch, out);
    return status;
}

/* What an answer means; IN_PROGRESS: ask again. */
static weir_status read_state(const weir_replica *replica, const weir_discovery *discovery,
                              const weir_participant *participant, const weir_group_record *record)
{
    const char *who = participant->remote->who;
    uint32_t group = group_of(replica, participant);
    switch (record->state) {
    case WEIR_GROUP_WAIT:
        return WEIR_IN_PROGRESS;
    case WEIR_GROUP_READY:
        return WEIR_OK;
    case WEIR_GROUP_GONE:
        return weir_fail(WEIR_ERR_NOT_FOUND,
                         "replica %s came too late for version %" PRIu64
                         ": its group %u is gone at %s, which has begun to send it",
                         replica->worker.id, discovery->version, group, who);
    case WEIR_GROUP_OFF:
        return weir_fail(WEIR_ERR_PEER_LOST, "%s has stopped sending version %" PRIu64 ": %.600s",
                         who, discovery->version,
                         record->why[0] != '\0' ? record->why : "it does not say why");
    default:
        return weir_fail(WEIR_ERR_CORRUPT, "%s: group %u is in state %u, which is unknown", who,
                         group, record->state);
    }
}

/* A rank may hear last of all which version it is that it has published. */
static weir_status ask_to_join(weir_replica *replica, const weir_discovery *discovery,
                               const weir_participant *participant, weir_group_record *out)
{
    weir_deadline deadline = weir_deadline_in(JOIN_MS);
    for (weir_patience patience = { 0 };;) {
        weir_status status = ask(replica, discovery, participant, out);
        if (status != WEIR_ERR_NOT_FOUND || weir_deadline_passed(deadline))
            return status;
        status = weir_worker_pause(&replica->worker, &patience);
        if (status != WEIR_OK)
            return status;
    }
}

weir_status weir_group_join(weir_replica *replica, const weir_discovery *discovery)
{
    const weir_schedule *schedule = &replica->schedule;
    weir_status status = WEIR_OK;
    for (size_t p = 0; p < schedule->n_participants; p++)
        schedule->participants[p].reading = (weir_group_reading){ 0 };
    for (size_t p = 0; p < schedule->n_participants && status == WEIR_OK; p++) {
        weir_participant *participant = &schedule->participants[p];
        weir_group_record record;
        if (!is_grouped(replica, participant))
            continue;
        status = ask_to_join(replica, discovery, participant, &record);
        if (status == WEIR_OK)
            status = read_state(replica, discovery, participant, &record);
        if (status < WEIR_OK)
            return status;
        participant->reading.joined = true;
        participant->reading.round = record.round;
        status = WEIR_OK;
    }
    return status;
}

void weir_group_leave(weir_replica *replica, const weir_discovery *discovery)
{
    const weir_schedule *schedule = &replica->schedule;
    char why[WEIR_ERROR_TEXT];
    snprintf(why, sizeof(why), "%s", weir_last_error()[0] ? weir_last_error() : "it failed");
    for (size_t p = 0; p < schedule->n_participants; p++) {
        const weir_remote *remote = schedule->participants[p].remote;
        weir_group_reading *reading = &schedule->participants[p].reading;
        weir_group_ask word = { .reader = replica->worker.id,
                                .worker = known_as(replica),
                                .round = reading->round,
                                .gave_up = why };
        size_t n_bytes;
        if (!reading->joined)
            continue;
        reading->joined = false;
        weir_status status = weir_directory_ask_group(
            replica->worker.client, remote->endpoint, remote->who, discovery->uid, remote->slot,
            &word, LEAVE_MS, &replica->answer.data, &replica->answer.capacity_bytes, &n_bytes);
        if (status == WEIR_ERR_TIMED_OUT)
            break; /* the others find out when their bounds end */
    }
}

void weir_group_keep(weir_replica *replica)
{
    for (size_t p = 0; p < replica->schedule.n_participants; p++)
        replica->schedule.participants[p].reading.joined = false;
}

/* ---- one participant -------------------------------------------------------------------------*/

static void ask_later(weir_group_reading *reading)
{
    reading->wait_ms = reading->wait_ms == 0 ? FIRST_WAIT_MS : reading->wait_ms * 2;
    if (reading->wait_ms > LAST_WAIT_MS)
        reading->wait_ms = LAST_WAIT_MS;
    reading->ask_at = weir_deadline_in(reading->wait_ms);
}

/* The digests of a group become those of its shards. */
static weir_status take_digests(const weir_participant *participant, uint32_t group,
                                const weir_group_record *record)
{
    const weir_remote *remote = participant->remote;
    uint32_t first = group > 0 ? remote->group_ends[group - 1] : 0;
    uint32_t n = remote->group_ends[group] - first;
    if (record->n_digests != n)
        return weir_fail(WEIR_ERR_CORRUPT, "%s: group %u has %u shards, and %zu digests",
                         remote->who, group, n, record->n_digests);
    for (size_t s = weir_remote_first_shard(remote, first);
         s < remote->n_shards && remote->numbers[s] - first < n; s++)
        remote->shards[s].digest = record->digests[remote->numbers[s] - first];
    return WEIR_OK;
}

static weir_status post_part(group_pass *pass, weir_participant *participant)
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
static weir_status ask_for_part(group_pass *pass, weir_participant *participant)
{
    weir_group_reading *reading = &participant->reading;
    weir_group_record record;
    if (!weir_deadline_passed(reading->ask_at))
        return WEIR_OK;
    weir_status status = ask(pass->replica, pass->discovery, participant, &record);
    if (status == WEIR_OK)
        status = read_state(pass->replica, pass->discovery, participant, &record);
    if (status < WEIR_OK)
        return status;
    reading->round = record.round;
    if (status == WEIR_IN_PROGRESS) {
        ask_later(reading);
        return WEIR_OK;
    }
    reading->wait_ms = 0;
    pass->moved = true;
    if (reading->part == participant->n_parts) {
        reading->done = true;
        return WEIR_OK;
    }
    status = take_digests(participant, part_of(pass->replica, participant)->group, &record);
    return status == WEIR_OK ? post_part(pass, participant) : status;
}

/* The next part is of a group that was asked for already. */
static bool is_asked_for(const group_pass *pass, const weir_participant *participant)
{
    size_t part = participant->reading.part;
    const weir_landing_part *next = part_of(pass->replica, participant);
    return part > 0 && part < participant->n_parts && next[-1].group == next->group;
}

/* There is no buffer for the next part yet. */
static bool is_held_back(const group_pass *pass, const weir_participant *participant)
{
    return pass->loads && participant->reading.part < participant->n_parts &&
           !weir_loader_has_room(pass->replica->loader, part_of(pass->replica, participant)->load);
}

static weir_status begin_part(group_pass *pass, weir_participant *participant)
{
    weir_group_reading *reading = &participant->reading;
    reading->held_back = is_held_back(pass, participant);
    if (reading->held_back)
        return WEIR_OK;
    if (is_grouped(pass->replica, participant) && !is_asked_for(pass, participant))
        return ask_for_part(pass, participant);
    if (reading->part < participant->n_parts)
        return post_part(pass, participant);
    reading->done = true;
    return WEIR_OK;
}

/* What has been read is verified before the next group is asked for: it may be gone then. */
static weir_status finish_part(group_pass *pass, weir_participant *participant, uint64_t n_bytes)
{
    weir_group_reading *reading = &participant->reading;
    participant->remote->link.ops->finish(participant->transfer);
    participant->transfer = NULL;
    weir_status status = WEIR_OK;
    const weir_landing_part *part = part_of(pass->replica, participant);
    if (is_grouped(pass->replica, participant) || pass->loads)
        status = weir_landing_verify_part(pass->replica, part);
    if (status != WEIR_OK)
        return status;
    if (pass->loads)
        weir_loader_landed(pass->replica->loader, part->load, 1);
    reading->done_bytes += n_bytes;
    participant->read_ended_s = weir_now_s();
    reading->part++;
    pass->moved = true;
    return WEIR_OK;
}

static weir_status step(group_pass *pass, weir_participant *participant, uint64_t *done_bytes)
{
    weir_group_reading *reading = &participant->reading;
    weir_status status = WEIR_OK;
    uint64_t n_bytes = 0;
    if (participant->transfer != NULL) {
        status = participant->remote->link.ops->test(participant->transfer, &n_bytes);
        if (status < WEIR_OK)
            return status;
        if (status == WEIR_OK) {
            status = finish_part(pass, participant, n_bytes);
            n_bytes = 0;
        } else {
            status = WEIR_OK;
        }
    }
    if (participant->transfer == NULL && !reading->done && status == WEIR_OK)
        status = begin_part(pass, participant);
    if (!reading->done && (pass->slowest == NULL || !reading->held_back))
        pass->slowest = participant;
    participant->read_bytes = reading->done_bytes + n_bytes;
    *done_bytes += participant->read_bytes;
    return status;
}

/* ---- all of them -----------------------------------------------------------------------------*/

static weir_status time_out(const group_pass *pass, uint64_t done_bytes)
{
    const weir_replica *replica = pass->replica;
    const weir_participant *slowest = pass->slowest;
    double waited_s = replica->worker.timeout_ms / 1e3;
    if (slowest->transfer != NULL)
        return weir_fail(WEIR_ERR_TIMED_OUT,
                         "timed out: no byte from %s for %.1f s (%" PRIu64 " of %" PRIu64
                         " have arrived)",
                         slowest->remote->who, waited_s, done_bytes, replica->schedule.n_bytes);
    return weir_fail(WEIR_ERR_TIMED_OUT,
                     "timed out after %.1f s: %s has not made group %u of %zu of version %" PRIu64
                     "%s",
                     waited_s, slowest->remote->who, group_of(replica, slowest),
                     slowest->remote->n_groups, pass->discovery->version,
                     slowest->reading.round == 0 ? ": it has not begun to send it" : "");
}

/* Sleeps when nothing is under way but questions. */
static void rest(const weir_schedule *schedule)
{
    unsigned wait_ms = LAST_WAIT_MS;
    for (size_t p = 0; p < schedule->n_participants; p++) {
        const weir_participant *participant = &schedule->participants[p];
        if (participant->transfer != NULL)
            return;
        unsigned left_ms = weir_deadline_left_ms(participant->reading.ask_at);
        bool asks = !participant->reading.done && !participant->reading.held_back;
        if (asks && left_ms < wait_ms)
            wait_ms = left_ms;
    }
    if (wait_ms > 0)
        weir_sleep_ms(wait_ms);
}

static weir_status step_all(group_pass *pass, uint64_t *out_done_bytes)
{
    const weir_schedule *schedule = &pass->replica->schedule;
    weir_status status = WEIR_OK;
    pass->slowest = NULL;
    pass->moved = false;
    *out_done_bytes = 0;
    for (size_t p = 0; p < schedule->n_participants && status == WEIR_OK; p++)
        status = step(pass, &schedule->participants[p], out_done_bytes);
    return status;
}

/* Direct, the live parameters change with the first group that is converted. */
static weir_status convert_landed(group_pass *pass)
{
    bool any = false;
    if (!pass->loads || !weir_loader_is_ready(pass->replica->loader))
        return WEIR_OK;
    pass->landed = true;
    weir_status status = weir_load_convert(pass->replica, &any);
    pass->moved |= any;
    return status;
}

static weir_status drive(group_pass *pass)
{
    weir_replica *replica = pass->replica;
    uint64_t best_bytes = 0, done_bytes;
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
        if (replica->mode == WEIR_INSTALL_STAGED)
            status = weir_worker_check_cancelled(&replica->worker);
        if (status != WEIR_OK)
            return status;
        if (weir_deadline_passed(deadline))
            return time_out(pass, done_bytes);
        rest(&replica->schedule);
    }
}

weir_status weir_group_transfer(weir_replica *replica, const weir_discovery *discovery,
                                bool *out_landed)
{
    group_pass pass = { .replica = replica,
                        .discovery = discovery,
                        .loads = replica->schedule.loads };
    weir_status status = drive(&pass);
    *out_landed = pass.landed;
    return status;
}
