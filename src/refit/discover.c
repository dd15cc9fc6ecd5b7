/* SPDX-License-Identifier: Apache-2.0 */
/* discover.c - stop 5 of 9: finds a version that this replica can read, and plans how.
 *
 * Takes   a wish: a version or "the latest", and the parameters that the engine has.
 * Gives   a lease on the version, its sources connected, and the plan of copies.
 * Before  publish.c, on the trainer ranks        After  transfer.c
 * Breaks  nobody publishes it, a rank is missing, a tag, name, dtype, shape or range differs: the
 *         refit is refused with the reason, no byte has moved, the lease is given back.
 */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "base/error.h"
#include "base/log.h"
#include "refit/acquire.h"
#include "refit/engine_part.h"
#include "refit/replica.h"

/* ---- the lease -------------------------------------------------------------------------------*/

void weir_discovery_release(weir_replica *replica, const weir_discovery *discovery)
{
    weir_error_line cause;
    weir_error_save(&cause);
    weir_group_leave(replica, discovery);
    weir_keeper_pause(replica->worker.keeper);
    weir_keeper_hold(replica->worker.keeper, NULL);
    if (weir_directory_delete_lease(replica->worker.client, discovery->uid, discovery->lease_id,
                                    replica->worker.id) != WEIR_OK)
        weir_log(WEIR_LOG_WARN, "the lease on version %" PRIu64 " was not given back: %s",
                 discovery->version, weir_last_error());
    weir_keeper_resume(replica->worker.keeper);
    weir_error_restore(&cause);
}

/* ---- its sources -----------------------------------------------------------------------------*/

static weir_status known_remote(weir_replica *replica, const weir_shard_record *shard,
                                weir_remote **out)
{
    for (size_t i = 0; i < replica->n_remotes; i++) {
        weir_remote *remote = replica->remotes[i];
        if (strcmp(remote->worker_id, shard->worker_id) == 0 &&
            strcmp(remote->slot, shard->slot) == 0) {
            *out = remote;
            return WEIR_OK;
        }
    }
    char who[2 * WEIR_NAME_BYTES];
    const char *number = strncmp(shard->slot, "rank-", 5) == 0 ? shard->slot + 5 : shard->slot;
    snprintf(who, sizeof(who), "trainer rank %.64s (worker %.255s)", number, shard->worker_id);
    weir_remote **grown = weir_realloc(replica->remotes, (replica->n_remotes + 1) * sizeof(*grown));
    if (grown == NULL)
        return WEIR_ERR_NO_MEMORY;
    replica->remotes = grown;
    weir_status status =
        weir_remote_open(&replica->worker, shard->worker_id, shard->slot, who, out);
    if (status == WEIR_OK)
        replica->remotes[replica->n_remotes++] = *out;
    return status;
}

/* Several workers may have published one slot (a rank that was restarted): the latest first, and
 * when none can be had, its error. */
static weir_status fetch_slot(weir_replica *replica, const weir_discovery *discovery,
                              const char *slot, weir_remote **out)
{
    weir_error_line line;
    weir_status first = WEIR_OK;
    for (size_t i = discovery->n_shards; i-- > 0;) {
        const weir_shard_record *shard = &replica->shards[i];
        if (strcmp(shard->slot, slot) != 0)
            continue;
        weir_manifest_wish wish = { shard->manifest_endpoint,    discovery->uid,
                                    shard->manifest_digest,      discovery->version,
                                    replica->settings.transport, &replica->place };
        weir_status status = known_remote(replica, shard, out);
        if (status == WEIR_OK)
            status = weir_remote_fetch(*out, &wish);
        if (status == WEIR_OK)
            return WEIR_OK;
        if (first == WEIR_OK)
            weir_error_save(&line);
        first = first == WEIR_OK ? status : first;
    }
    if (first == WEIR_OK)
        return weir_fail(WEIR_ERR_LAYOUT,
                         "version %" PRIu64 " is READY, yet %s has published nothing",
                         discovery->version, slot);
    weir_error_restore(&line);
    return first;
}

void weir_schedule_dismiss(weir_schedule *schedule)
{
    for (size_t p = 0; p < schedule->n_participants; p++)
        weir_attendance_close(schedule->participants[p].attendance);
    weir_free(schedule->participants);
    schedule->participants = NULL;
    schedule->n_participants = 0;
}

/* Whether the plan holds with `remote` in the place of the participant's source. The signature is
 * its key. What is behind it is looked at all the same: ranks sign what all of them know, which is
 * less than how each lays out its slot, and bytes are written where a layout says. */
static bool keeps_plan(const weir_schedule *schedule, const weir_participant *participant,
                       const weir_remote *remote)
{
    const weir_remote *before = participant->remote;
    return before != NULL && strcmp(schedule->signature, remote->manifest.layout_signature) == 0 &&
           participant->layout_generation == before->layout_generation &&
           (before == remote || weir_remote_layouts_equal(before, remote));
}

/* Sets *out_changed when the plan cannot be kept. */
static weir_status fetch_sources(weir_replica *replica, const weir_discovery *discovery,
                                 bool *out_changed)
{
    weir_schedule *schedule = &replica->schedule;
    weir_status status = WEIR_OK;
    *out_changed = schedule->plan == NULL;
    for (size_t s = 0; s < schedule->n_participants; s++)
        *out_changed |= schedule->participants[s].remote == NULL;
    for (size_t s = 0; s < schedule->n_participants && status == WEIR_OK; s++) {
        weir_participant *participant = &schedule->participants[s];
        weir_remote *remote = NULL;
        status = fetch_slot(replica, discovery, participant->slot, &remote);
        if (status != WEIR_OK)
            return status;
        *out_changed |= !keeps_plan(schedule, participant, remote);
        if (participant->remote != remote) { /* it belongs to the remote that it was opened with */
            weir_attendance_close(participant->attendance);
            participant->attendance = NULL;
        }
        participant->remote = remote;
        participant->layout_generation = remote->layout_generation;
    }
    return status;
}

/* ---- the plan --------------------------------------------------------------------------------*/

static void drop_plan(weir_schedule *schedule)
{
    weir_plan_close(schedule->plan);
    weir_landing_close(&schedule->landing);
    schedule->plan = NULL;
    schedule->n_copies = 0;
}

static const char *plan_or_none(const weir_remote *remote)
{
    return remote->manifest.plan[0] != '\0' ? remote->manifest.plan : "no mesh";
}

/* Parts of two plans may fit each other by chance. Shards that are the same as before say nothing
 * of the plan that they are of, so this is asked of every version. */
static weir_status check_signatures(const weir_schedule *schedule)
{
    const weir_remote *first = schedule->participants[0].remote;
    for (size_t p = 1; p < schedule->n_participants; p++) {
        const weir_remote *remote = schedule->participants[p].remote;
        const char *signature = remote->manifest.layout_signature;
        if (strcmp(remote->manifest.plan, first->manifest.plan) != 0)
            return weir_fail(WEIR_ERR_LAYOUT,
                             "version %" PRIu64 ": %s shards the model by %s, %s by %s; give all "
                             "ranks the same meshes, expert maps, conversion and config.json",
                             remote->manifest.version, first->who, plan_or_none(first), remote->who,
                             plan_or_none(remote));
        if (strcmp(signature, first->manifest.layout_signature) != 0)
            return weir_fail(WEIR_ERR_LAYOUT,
                             "%s has made version %" PRIu64
                             " by plan %s, %s by plan %s: their configs or layouts differ",
                             remote->who, remote->manifest.version, signature, first->who,
                             first->manifest.layout_signature);
    }
    return WEIR_OK;
}

static const char *mesh_or_one(const char *text)
{
    return text[0] != '\0' ? text : "one worker";
}

/* What must hold of all sources before their shards are looked at. */
static weir_status check_source(const weir_replica *replica, const weir_remote *remote)
{
    bool first = remote == replica->schedule.participants[0].remote;
    if (remote->push != NULL && replica->mesh_text[0] != '\0')
        return weir_fail(WEIR_ERR_UNSUPPORTED,
                         "%s pushes, which reaches engines of one worker: this replica is of %s",
                         remote->who, replica->mesh_text);
    if (strcmp(remote->engine_mesh, replica->mesh_text) != 0)
        return weir_fail(WEIR_ERR_LAYOUT,
                         "%s publishes version %" PRIu64
                         " for engines of %s, this replica is of %s",
                         remote->who, remote->manifest.version, mesh_or_one(remote->engine_mesh),
                         mesh_or_one(replica->mesh_text));
    if (remote->push != NULL && remote->n_shards != remote->n_published)
        return weir_fail(WEIR_ERR_LAYOUT, "%s pushes shards of engines of several workers",
                         remote->who);
    if (!first && replica->schedule.pushed != (remote->push != NULL))
        return weir_fail(WEIR_ERR_UNSUPPORTED, "%s %s, the ranks before it do not", remote->who,
                         remote->push != NULL ? "pushes" : "waits to be read");
    return WEIR_OK;
}

static weir_status make_plan(weir_replica *replica)
{
    weir_schedule *schedule = &replica->schedule;
    weir_status status = WEIR_OK;
    size_t n = schedule->n_participants;
    weir_plan_source *sources = weir_alloc(n * sizeof(*sources));
    if (sources == NULL)
        return WEIR_ERR_NO_MEMORY;
    for (size_t p = 0; p < n && status == WEIR_OK; p++) {
        const weir_remote *remote = schedule->participants[p].remote;
        status = check_source(replica, remote);
        schedule->pushed = remote->push != NULL;
        sources[p] = (weir_plan_source){ remote->who, remote->shards, remote->n_shards };
    }
    replica->worker.counters.plans++;
    if (status == WEIR_OK)
        status = weir_plan_open(replica->wanted, replica->n_parameters, &replica->place, sources, n,
                                &schedule->plan);
    weir_free(sources);
    if (status != WEIR_OK) {
        schedule->plan = NULL;
        return status;
    }
    snprintf(schedule->signature, sizeof(schedule->signature), "%s",
             schedule->participants[0].remote->manifest.layout_signature);
    schedule->planned = weir_plan_copies(schedule->plan, &schedule->n_copies);
    schedule->n_bytes = weir_plan_bytes(schedule->plan);
    if (replica->filled_bytes != NULL)
        status = weir_engine_part_check(replica->wanted, replica->n_parameters,
                                        replica->filled_bytes, schedule->plan);
    if (status == WEIR_OK && !schedule->pushed)
        status = weir_landing_open(replica);
    if (status != WEIR_OK)
        drop_plan(schedule);
    return status;
}

static bool takes_part(const weir_schedule *schedule, const weir_remote *remote)
{
    for (size_t p = 0; p < schedule->n_participants; p++) {
        if (schedule->participants[p].remote == remote)
            return true;
    }
    return false;
}

/* Workers that were restarted are met under a new id; the old ones would pile up. */
static void close_strangers(weir_replica *replica)
{
    size_t kept = 0;
    for (size_t i = 0; i < replica->n_remotes; i++) {
        if (takes_part(&replica->schedule, replica->remotes[i]))
            replica->remotes[kept++] = replica->remotes[i];
        else
            weir_remote_close(replica->remotes[i]);
    }
    replica->n_remotes = kept;
}

/* The leased version's sources, and a plan of its copies. */
static weir_status prepare(weir_replica *replica, const weir_discovery *discovery)
{
    bool changed = true;
    weir_status status = fetch_sources(replica, discovery, &changed);
    /* Also when a later source fails: the participants are not those of the old plan any more. */
    if (changed)
        drop_plan(&replica->schedule);
    if (status == WEIR_OK && changed)
        status = make_plan(replica);
    if (status == WEIR_OK) /* a parameter that does not fit says more */
        status = check_signatures(&replica->schedule);
    if (status == WEIR_OK)
        close_strangers(replica);
    return status == WEIR_OK ? weir_group_join(replica, discovery) : status;
}

/* A version that passes through a window is read from its beginning or not at all: who wanted any
 * takes the next one. */
weir_status weir_stop_discover(weir_replica *replica, uint64_t version, weir_discovery *out)
{
    weir_deadline deadline = weir_deadline_in(replica->worker.timeout_ms);
    for (;;) {
        weir_status status = weir_acquire_version(replica, version, deadline, out);
        if (status != WEIR_OK && out->lease_id[0] != '\0')
            weir_discovery_release(replica, out);
        if (status != WEIR_OK)
            return status;
        status = prepare(replica, out);
        if (status == WEIR_OK)
            return WEIR_OK;
        bool late = status == WEIR_ERR_NOT_FOUND && weir_group_any(&replica->schedule);
        if (late) {
            memcpy(replica->missed_uid, out->uid, sizeof(replica->missed_uid));
            replica->missed = out->version;
        }
        if (!late || version != WEIR_LATEST) {
            weir_stop_refuse(replica, out, status);
            return status;
        }
        weir_discovery_release(replica, out);
        out->lease_id[0] = '\0';
        weir_log(WEIR_LOG_INFO, "replica %s waits for the next version: %s", replica->worker.id,
                 weir_last_error());
    }
}
