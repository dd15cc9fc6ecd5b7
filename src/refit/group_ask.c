/* SPDX-License-Identifier: Apache-2.0 */
/* group_ask.c - what a reader says to ranks whose version passes through a window, and what it is
 * told: it joins, asks for one group after another, and leaves.
 *
 * Whatever a rank has sent before, a group that is broadcast is taken only with a header that says
 * that it is the one.
 */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/error.h"
#include "refit/credits.h"
#include "refit/group_pass.h"

#define FIRST_WAIT_US 50u /* a layer is made in as little on a GPU */
#define LEAVE_MS 1000u
#define JOIN_MS 500u
#define WHY_MS 1000u

bool weir_group_any(const weir_schedule *schedule)
{
    for (size_t p = 0; p < schedule->n_participants; p++) {
        const weir_remote *remote = schedule->participants[p].remote;
        if (remote != NULL && remote->n_groups > 0)
            return true;
    }
    return false;
}

/* Those that are sent something are all counted on: of a checkpoint, and of what is broadcast, also
 * those that need nothing of it. */
bool weir_group_is_asked(const weir_replica *replica, const weir_participant *participant)
{
    const weir_remote *remote = participant->remote;
    if (remote->n_groups == 0)
        return false;
    if (weir_catch_is_cast(participant))
        return weir_catch_is_sent(remote);
    return participant->n_parts > 0 || replica->schedule.loads;
}

/* The first group that is for this worker, as long as nobody has said in which it stands. */
static uint32_t first_sent(const weir_remote *remote)
{
    size_t s = 0;
    while (s < remote->n_shards && remote->shards[s].n_bytes == 0)
        s++;
    return s < remote->n_shards ? weir_remote_group_of(remote, s) : (uint32_t)remote->n_groups;
}

uint32_t weir_group_next(const weir_replica *replica, const weir_participant *participant)
{
    const weir_group_reading *reading = &participant->reading;
    const weir_remote *remote = participant->remote;
    if (weir_catch_is_cast(participant))
        return reading->is_told ? reading->group : first_sent(remote);
    if (reading->part == participant->n_parts)
        return (uint32_t)remote->n_groups;
    return replica->schedule.landing.parts[participant->first_part + reading->part].group;
}

/* The worker of its engine that a participant knows this one as: what a checkpoint is sent to are
 * engines of one worker. */
static uint32_t known_as(const weir_replica *replica)
{
    return replica->schedule.loads ? 0 : replica->mesh_worker;
}

/* ---- asking ----------------------------------------------------------------------------------*/

/* timeout_ms 0: as long as any call may take. */
static weir_status ask(weir_replica *replica, const weir_discovery *discovery,
                       const weir_participant *participant, uint32_t group, unsigned timeout_ms,
                       weir_group_record *out)
{
    const weir_remote *remote = participant->remote;
    weir_group_ask question = { .reader = replica->worker.id,
                                .worker = known_as(replica),
                                .group = group,
                                .round = participant->reading.round,
                                .fresh = weir_catch_is_cast(participant) &&
                                         weir_catch_is_fresh(remote) };
    size_t n_bytes;
    weir_status status = weir_directory_ask_group(
        replica->worker.client, remote->endpoint, remote->who, discovery->uid, remote->slot,
        &question, timeout_ms, &replica->answer.data, &replica->answer.capacity_bytes, &n_bytes);
    weir_arena_reset(&replica->scratch);
    if (status == WEIR_OK)
        status = weir_group_record_decode(replica->answer.data, n_bytes, &replica->scratch, out);
    if (status == WEIR_ERR_NOT_FOUND) /* gone meanwhile: its rank knows uids alone */
        weir_error_prefix("version %" PRIu64, discovery->version);
    return status;
}

/* What an answer means; IN_PROGRESS: ask again. */
static weir_status read_state(const weir_replica *replica, const weir_discovery *discovery,
                              const weir_participant *participant, uint32_t group,
                              const weir_group_record *record)
{
    const char *who = participant->remote->who;
    switch (record->state) {
    case WEIR_GROUP_WAIT:
        return WEIR_IN_PROGRESS;
    case WEIR_GROUP_READY:
        return WEIR_OK;
    case WEIR_GROUP_GONE:
        return weir_fail(
            WEIR_ERR_NOT_FOUND,
            "replica %s came too late for version %" PRIu64 ": its group %u is gone at %s%s%.600s",
            replica->worker.id, discovery->version, group, who,
            record->why[0] != '\0' ? ": " : ", which has begun to send it", record->why);
    case WEIR_GROUP_OFF:
        return weir_fail(WEIR_ERR_PEER_LOST, "%s has stopped sending version %" PRIu64 ": %.600s",
                         who, discovery->version,
                         record->why[0] != '\0' ? record->why : "it does not say why");
    default:
        return weir_fail(WEIR_ERR_CORRUPT, "%s: group %u is in state %u, which is unknown", who,
                         group, record->state);
    }
}

/* The header of a group that is broadcast. One behind the last has no bytes. */
static weir_status check_header(const weir_replica *replica, const weir_discovery *discovery,
                                const weir_remote *remote, uint32_t group,
                                const weir_group_record *record)
{
    const char *run = replica->worker.run;
    uint64_t n_bytes = group < remote->n_groups ? remote->group_bytes[group] : record->n_bytes;
    if (record->format != WEIR_GROUP_FORMAT)
        return weir_fail(WEIR_ERR_CORRUPT, "%s: group %u has a header of format %u, %u is known",
                         remote->who, group, record->format, WEIR_GROUP_FORMAT);
    if (strcmp(record->run, run) != 0)
        return weir_fail(WEIR_ERR_CORRUPT, "%s: group %u is of run %.128s, this replica follows %s",
                         remote->who, group, record->run, run);
    if (record->version != discovery->version)
        return weir_fail(WEIR_ERR_CORRUPT,
                         "%s: group %u is of version %" PRIu64 ", %" PRIu64 " was asked for",
                         remote->who, group, record->version, discovery->version);
    if (strcmp(record->version_uid, discovery->uid) != 0)
        return weir_fail(WEIR_ERR_CORRUPT,
                         "%s: group %u is of version %" PRIu64 " as %.64s, %s was asked for",
                         remote->who, group, record->version, record->version_uid, discovery->uid);
    if (record->group != group || record->n_groups != remote->n_groups)
        return weir_fail(WEIR_ERR_CORRUPT, "%s: group %u of %u came, %u of %zu was asked for",
                         remote->who, record->group, record->n_groups, group, remote->n_groups);
    if (record->n_bytes != n_bytes)
        return weir_fail(WEIR_ERR_CORRUPT,
                         "%s: group %u has %" PRIu64 " bytes, its manifest says %" PRIu64,
                         remote->who, group, record->n_bytes, n_bytes);
    return WEIR_OK;
}

/* The digests of a group become those of its shards. */
static weir_status take_digests(const weir_remote *remote, uint32_t group,
                                const weir_group_record *record)
{
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

/* Ranks gather by themselves. Who came between two of them is in the round of one alone, which then
 * can have no end: it is to begin afresh, and soon. */
static weir_status check_left_out(const weir_replica *replica, const weir_discovery *discovery,
                                  const weir_participant *participant,
                                  const weir_group_record *record)
{
    const weir_schedule *schedule = &replica->schedule;
    for (size_t p = 0; p < schedule->n_participants && record->left_out; p++) {
        const weir_participant *other = &schedule->participants[p];
        if (other == participant || other->reading.round == 0)
            continue;
        return weir_fail(WEIR_ERR_PEER_LOST,
                         "%s has a round of version %" PRIu64 " under way without replica %s, and "
                         "%s one with it: both are to begin afresh",
                         participant->remote->who, discovery->version, replica->worker.id,
                         other->remote->who);
    }
    return WEIR_OK;
}

static weir_status take_in(weir_replica *replica, const weir_discovery *discovery,
                           weir_participant *participant, const weir_group_record *record)
{
    weir_remote *remote = participant->remote;
    weir_group_reading *reading = &participant->reading;
    uint32_t group = weir_group_next(replica, participant);
    bool is_cast = weir_catch_is_cast(participant);
    weir_status state = read_state(replica, discovery, participant, group, record);
    weir_status status = WEIR_OK;
    if (state < WEIR_OK)
        return state;
    reading->joined = true; /* whatever is wrong with the answer, it counts on this reader */
    reading->round = record->round;
    status = check_left_out(replica, discovery, participant, record);
    if (status != WEIR_OK)
        return status;
    if (state == WEIR_OK && is_cast)
        status = check_header(replica, discovery, remote, group, record);
    if (status == WEIR_OK && state == WEIR_OK && group < remote->n_groups)
        status = take_digests(remote, group, record);
    if (status == WEIR_OK && is_cast && record->round != 0 && !reading->is_told) {
        status = weir_catch_enter(replica, participant, record->memberships, record->n_memberships);
        if (status != WEIR_OK)
            return status;
        reading->is_told = true;
        reading->group = reading->turn = weir_catch_next(remote, 0);
        if (reading->group != group) /* that one is to be asked for */
            return WEIR_IN_PROGRESS;
    }
    return status == WEIR_OK ? state : status;
}

weir_status weir_group_ask_once(weir_replica *replica, const weir_discovery *discovery,
                                weir_participant *participant)
{
    weir_group_record record;
    weir_status status =
        ask(replica, discovery, participant, weir_group_next(replica, participant), 0, &record);
    return status == WEIR_OK ? take_in(replica, discovery, participant, &record) : status;
}

static void ask_later(weir_group_reading *reading)
{
    reading->wait_us = reading->wait_us == 0 ? FIRST_WAIT_US : reading->wait_us * 2;
    if (reading->wait_us > WEIR_GROUP_WAIT_US)
        reading->wait_us = WEIR_GROUP_WAIT_US;
    reading->ask_at = weir_now_ns() + (uint64_t)reading->wait_us * 1000;
}

weir_status weir_group_ask_in_time(weir_group_pass *pass, weir_participant *participant)
{
    weir_group_reading *reading = &participant->reading;
    if (!weir_deadline_passed(reading->ask_at))
        return WEIR_IN_PROGRESS;
    weir_status status = weir_group_ask_once(pass->replica, pass->discovery, participant);
    if (status == WEIR_IN_PROGRESS)
        ask_later(reading);
    if (status == WEIR_OK) {
        reading->wait_us = 0;
        pass->moved = true;
    }
    return status;
}

weir_status weir_group_ask_why(weir_group_pass *pass, const weir_participant *participant,
                               uint32_t group, weir_status failed)
{
    weir_replica *replica = pass->replica;
    weir_deadline deadline = weir_deadline_in(WHY_MS);
    weir_patience patience = { 0 };
    weir_group_record record = { 0 };
    weir_error_line line;
    weir_error_save(&line);
    weir_status status = failed == WEIR_ERR_PEER_LOST ? WEIR_OK : failed;
    while (status == WEIR_OK && record.state != WEIR_GROUP_OFF && !weir_deadline_passed(deadline)) {
        status = ask(replica, pass->discovery, participant, group, WHY_MS, &record);
        if (status == WEIR_OK && record.state != WEIR_GROUP_OFF)
            status = weir_worker_pause(&replica->worker, &patience);
    }
    if (status == WEIR_OK && record.state == WEIR_GROUP_OFF)
        return read_state(replica, pass->discovery, participant, group, &record);
    weir_error_restore(&line);
    return failed;
}

/* ---- coming and going ------------------------------------------------------------------------*/

/* A rank may hear last of all which version it is that it has published. */
static weir_status ask_to_join(weir_replica *replica, const weir_discovery *discovery,
                               weir_participant *participant)
{
    weir_deadline deadline = weir_deadline_in(JOIN_MS);
    weir_group_record record;
    uint32_t first = weir_group_next(replica, participant);
    for (weir_patience patience = { 0 };;) {
        weir_status status = ask(replica, discovery, participant, first, 0, &record);
        if (status == WEIR_OK)
            return take_in(replica, discovery, participant, &record);
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
    for (size_t p = 0; p < schedule->n_participants; p++) {
        schedule->participants[p].reading = (weir_group_reading){ 0 };
        weir_catch_look(schedule->participants[p].remote);
    }
    for (size_t p = 0; p < schedule->n_participants; p++) {
        if (schedule->participants[p].remote->is_casting)
            weir_remote_leave_casts(schedule->participants[p].remote, true);
    }
    weir_status status = weir_catch_open(replica);
    if (status != WEIR_OK)
        return status;
    for (size_t p = 0; p < schedule->n_participants; p++) {
        weir_participant *participant = &schedule->participants[p];
        if (!weir_group_is_asked(replica, participant))
            continue;
        status = ask_to_join(replica, discovery, participant);
        if (status < WEIR_OK)
            return status;
    }
    return WEIR_OK;
}

static weir_status tell_leaving(weir_replica *replica, const weir_discovery *discovery,
                                const weir_participant *participant, const char *why)
{
    const weir_remote *remote = participant->remote;
    weir_group_ask word = { .reader = replica->worker.id,
                            .worker = known_as(replica),
                            .round = participant->reading.round,
                            .gave_up = why };
    size_t n_bytes;
    return weir_directory_ask_group(
        replica->worker.client, remote->endpoint, remote->who, discovery->uid, remote->slot, &word,
        LEAVE_MS, &replica->answer.data, &replica->answer.capacity_bytes, &n_bytes);
}

/* The next round's groups are to be others, of ranks whose round has begun and not ended. */
static bool is_to_be_left(const weir_participant *participant)
{
    return !participant->reading.done && participant->reading.round != 0;
}

static void leave_casts(const weir_schedule *schedule)
{
    for (size_t p = 0; p < schedule->n_participants; p++) {
        if (is_to_be_left(&schedule->participants[p]))
            weir_remote_begin_leaving(schedule->participants[p].remote, true);
    }
    for (size_t p = 0; p < schedule->n_participants; p++) {
        if (is_to_be_left(&schedule->participants[p]))
            weir_remote_leave_casts(schedule->participants[p].remote, true);
    }
}

/* Behind a rank that does not answer, the others see that their groups break; the next call tells
 * them why. */
void weir_group_leave(weir_replica *replica, const weir_discovery *discovery)
{
    const weir_schedule *schedule = &replica->schedule;
    bool is_late = false;
    char why[WEIR_ERROR_TEXT];
    snprintf(why, sizeof(why), "%s", weir_last_error()[0] ? weir_last_error() : "it failed");
    for (size_t p = 0; p < schedule->n_participants; p++) {
        weir_participant *participant = &schedule->participants[p];
        weir_group_reading *reading = &participant->reading;
        if (!reading->joined)
            continue;
        reading->joined = is_late;
        if (!is_late)
            is_late = tell_leaving(replica, discovery, participant, why) == WEIR_ERR_TIMED_OUT;
    }
    leave_casts(schedule);
}

void weir_group_keep(weir_replica *replica)
{
    for (size_t p = 0; p < replica->schedule.n_participants; p++)
        replica->schedule.participants[p].reading.joined = false;
}
