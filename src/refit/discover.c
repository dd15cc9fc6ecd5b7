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

#define PEER_SLOT "replica"
#define MAX_IDLE_PEERS 4u /* whose connections are kept */
#define LEAST_CALL_MS 2000u

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

static weir_status known_remote(weir_replica *replica, const char *worker_id, const char *slot,
                                const char *who, weir_remote **out)
{
    for (size_t i = 0; i < replica->n_remotes; i++) {
        weir_remote *remote = replica->remotes[i];
        if (strcmp(remote->worker_id, worker_id) == 0 && strcmp(remote->slot, slot) == 0) {
            *out = remote;
            return WEIR_OK;
        }
    }
    weir_remote **grown = weir_realloc(replica->remotes, (replica->n_remotes + 1) * sizeof(*grown));
    if (grown == NULL)
        return WEIR_ERR_NO_MEMORY;
    replica->remotes = grown;
    weir_status status = weir_remote_open(&replica->worker, worker_id, slot, who, out);
    if (status == WEIR_OK)
        replica->remotes[replica->n_remotes++] = *out;
    return status;
}

static weir_status fetch_shard(weir_replica *replica, const weir_discovery *discovery,
                               const weir_shard_record *shard, weir_remote **out)
{
    char who[2 * WEIR_NAME_BYTES];
    const char *number = strncmp(shard->slot, "rank-", 5) == 0 ? shard->slot + 5 : shard->slot;
    const weir_manifest_wish wish = { .endpoint = shard->manifest_endpoint,
                                      .uid = discovery->uid,
                                      .digest = shard->manifest_digest,
                                      .version = discovery->version,
                                      .transport = replica->settings.transport,
                                      .place = weir_load_place(replica) };
    snprintf(who, sizeof(who), "trainer rank %.64s (worker %.255s)", number, shard->worker_id);
    weir_status status = known_remote(replica, shard->worker_id, shard->slot, who, out);
    return status == WEIR_OK ? weir_remote_fetch(*out, &wish) : status;
}

/* Nobody but the replica itself says what its manifest should be: every byte is verified against
 * it. */
static weir_status fetch_peer(weir_replica *replica, const weir_discovery *discovery,
                              weir_remote **out)
{
    const weir_peer_record *peer = &discovery->peer;
    char who[2 * WEIR_NAME_BYTES], worker[24] = "";
    const weir_manifest_wish wish = { .endpoint = peer->endpoint,
                                      .uid = discovery->uid,
                                      .version = discovery->version,
                                      .transport = replica->settings.transport,
                                      .place = &replica->place,
                                      .is_whole = true };
    if (replica->mesh_text[0] != '\0') /* the part is the same, so the place is too */
        snprintf(worker, sizeof(worker), " worker %" PRIu32, replica->mesh_worker);
    snprintf(who, sizeof(who), "replica %.220s%s at %.220s", peer->worker_id, worker,
             peer->endpoint);
    weir_status status = known_remote(replica, peer->worker_id, PEER_SLOT, who, out);
    if (status != WEIR_OK)
        return status;
    memcpy((*out)->who, who, sizeof(who)); /* it may have moved */
    return weir_remote_fetch(*out, &wish);
}

/* Several workers may have published one slot (a rank that was restarted): the latest first, and
 * when none can be had, its error. */
static weir_status fetch_slot(weir_replica *replica, const weir_discovery *discovery,
                              const char *slot, weir_remote **out)
{
    weir_error_line line;
    weir_status first = WEIR_OK;
    if (replica->schedule.of_peer)
        return fetch_peer(replica, discovery, out);
    for (size_t i = discovery->n_shards; i-- > 0;) {
        const weir_shard_record *shard = &replica->shards[i];
        if (strcmp(shard->slot, slot) != 0)
            continue;
        weir_status status = fetch_shard(replica, discovery, shard, out);
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

void weir_schedule_close(weir_schedule *schedule)
{
    weir_schedule_dismiss(schedule);
    weir_plan_close(schedule->plan);
    weir_landing_close(&schedule->landing);
    schedule->plan = NULL;
}

/* Who reads a replica once may read the trainers next time: neither is planned for anew. */
void weir_schedule_choose(weir_replica *replica, bool of_peer)
{
    if (replica->schedule.of_peer == of_peer)
        return;
    weir_schedule before = replica->schedule;
    replica->schedule = replica->other;
    replica->other = before;
    replica->schedule.of_peer = of_peer;
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
        remote->used_at = ++replica->n_prepared;
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
    const char *mesh = weir_load_mesh(replica);
    weir_status status = weir_load_check_wire(replica, remote);
    if (status != WEIR_OK)
        return status;
    if (remote->push != NULL && mesh[0] != '\0')
        return weir_fail(WEIR_ERR_UNSUPPORTED,
                         "%s pushes, which reaches engines of one worker: this replica is of %s",
                         remote->who, mesh);
    if (strcmp(remote->engine_mesh, mesh) != 0)
        return weir_fail(WEIR_ERR_LAYOUT,
                         "%s publishes version %" PRIu64
                         " for engines of %s, this replica is of %s",
                         remote->who, remote->manifest.version, mesh_or_one(remote->engine_mesh),
                         mesh_or_one(mesh));
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
    size_t n = schedule->n_participants, n_wanted;
    schedule->loads = replica->loader != NULL && !schedule->of_peer;
    const weir_parameter *wanted = weir_load_wanted(replica, &n_wanted);
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
        status =
            weir_plan_open(wanted, n_wanted, weir_load_place(replica), sources, n, &schedule->plan);
    weir_free(sources);
    if (status != WEIR_OK) {
        schedule->plan = NULL;
        return status;
    }
    snprintf(schedule->signature, sizeof(schedule->signature), "%s",
             schedule->participants[0].remote->manifest.layout_signature);
    schedule->planned = weir_plan_copies(schedule->plan, &schedule->n_copies);
    schedule->n_bytes = weir_plan_bytes(schedule->plan);
    if (replica->filled_bytes != NULL && !schedule->loads)
        status = weir_engine_part_check(replica->wanted, replica->n_parameters,
                                        replica->filled_bytes, schedule->plan);
    if (status == WEIR_OK)
        status = weir_load_arrange(replica);
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

static bool is_peer(const weir_remote *remote)
{
    return strcmp(remote->slot, PEER_SLOT) == 0;
}

/* Replicas come and go as sources: those that were read lately may be read again. */
static bool is_recent(const weir_replica *replica, const weir_remote *remote)
{
    size_t n_later = 0;
    for (size_t i = 0; i < replica->n_remotes; i++)
        n_later += is_peer(replica->remotes[i]) && replica->remotes[i]->used_at > remote->used_at;
    return is_peer(remote) && n_later < MAX_IDLE_PEERS;
}

/* Workers that were restarted are met under a new id; the old ones would pile up. */
static void close_strangers(weir_replica *replica)
{
    for (size_t i = 0; i < replica->n_remotes;) {
        weir_remote *remote = replica->remotes[i];
        if (takes_part(&replica->schedule, remote) || takes_part(&replica->other, remote) ||
            is_recent(replica, remote)) {
            i++;
            continue;
        }
        weir_directory_forget_worker(replica->worker.client, remote->endpoint);
        weir_remote_close(remote);
        replica->remotes[i] = replica->remotes[--replica->n_remotes];
    }
}

static weir_status choose_schedule(weir_replica *replica, const weir_discovery *discovery)
{
    bool of_peer = discovery->peer.worker_id[0] != '\0';
    weir_schedule_choose(replica, of_peer);
    if (!of_peer || replica->schedule.n_participants == 1)
        return WEIR_OK;
    replica->schedule.participants = weir_alloc_zeroed(1, sizeof(weir_participant));
    if (replica->schedule.participants == NULL)
        return WEIR_ERR_NO_MEMORY;
    replica->schedule.n_participants = 1;
    return WEIR_OK;
}

/* The leased version's sources, and a plan of its copies. */
static weir_status prepare(weir_replica *replica, const weir_discovery *discovery)
{
    bool changed = true;
    weir_status status = choose_schedule(replica, discovery);
    if (status == WEIR_OK)
        status = fetch_sources(replica, discovery, &changed);
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

/* ---- another source --------------------------------------------------------------------------*/

/* A replica's every failure is its own; a trainer's is the version's, unless it is gone. */
static bool may_be_elsewhere(const weir_replica *replica, const weir_discovery *discovery,
                             weir_status failed)
{
    if (failed == WEIR_ERR_CANCELLED || failed == WEIR_ERR_NO_MEMORY)
        return false;
    if (discovery->peer.worker_id[0] != '\0')
        return true;
    bool is_gone = failed == WEIR_ERR_PEER_LOST || failed == WEIR_ERR_TIMED_OUT;
    return is_gone && replica->part[0] != '\0' && !replica->reads_trainers_alone &&
           !replica->schedule.pushed && !weir_group_any(&replica->schedule) &&
           !weir_directory_is_plain(replica->worker.client);
}

static void shun(weir_discovery *discovery, const char *worker_id)
{
    if (discovery->n_avoid < WEIR_MAX_AVOIDED)
        snprintf(discovery->avoid[discovery->n_avoid++], WEIR_NAME_BYTES, "%s", worker_id);
}

/* Of many trainer ranks not all have to be named: a version is not complete without one of them. */
static void shun_source(const weir_replica *replica, weir_discovery *discovery)
{
    if (discovery->peer.worker_id[0] != '\0') {
        shun(discovery, discovery->peer.worker_id);
        return;
    }
    discovery->shuns_trainers = true;
    for (size_t i = 0; i < discovery->n_shards && discovery->n_avoid < WEIR_MAX_AVOIDED / 2; i++)
        shun(discovery, replica->shards[i].worker_id);
}

/* The directory may know another source; and the trainers that have this lease's shards can be
 * read whatever it knows. */
static weir_status choose_other(weir_replica *replica, weir_discovery *discovery)
{
    bool is_full = discovery->n_avoid == WEIR_MAX_AVOIDED;
    shun_source(replica, discovery);
    memset(&discovery->peer, 0, sizeof(discovery->peer));
    weir_status status = is_full ? WEIR_ERR_NOT_FOUND : weir_acquire_again(replica, discovery);
    if (status == WEIR_OK && discovery->peer.worker_id[0] != '\0')
        return WEIR_OK;
    return !discovery->shuns_trainers && discovery->n_shards > 0 ? WEIR_OK : WEIR_ERR_NOT_FOUND;
}

weir_status weir_discover_elsewhere(weir_replica *replica, weir_discovery *discovery,
                                    weir_status failed)
{
    weir_error_line cause;
    while (failed != WEIR_OK && may_be_elsewhere(replica, discovery, failed)) {
        weir_error_save(&cause);
        weir_status status = choose_other(replica, discovery);
        weir_error_restore(&cause);
        if (status != WEIR_OK)
            return failed;
        weir_log(WEIR_LOG_INFO, "replica %s reads version %" PRIu64 " from %s%s instead: %s",
                 replica->worker.id, discovery->version,
                 discovery->peer.worker_id[0] != '\0' ? "replica " : "its trainers",
                 discovery->peer.worker_id, cause.text);
        failed = prepare(replica, discovery);
    }
    return failed;
}

weir_status weir_discover_gone(weir_replica *replica, const weir_discovery *discovery,
                               weir_status failed)
{
    weir_error_line cause, answer;
    weir_remote *remote = replica->schedule.differs;
    if (failed != WEIR_ERR_CORRUPT || remote == NULL)
        return failed;
    replica->schedule.differs = NULL;
    weir_error_save(&cause);
    weir_status status = weir_remote_ask_again(remote, discovery->uid);
    weir_error_save(&answer);
    weir_error_restore(&cause);
    if (status != WEIR_ERR_PEER_LOST && status != WEIR_ERR_NOT_FOUND)
        return failed;
    return weir_fail(WEIR_ERR_PEER_LOST,
                     "%s at %s was gone, or took version %" PRIu64
                     " back, while it was read: %.400s",
                     remote->who, remote->endpoint, discovery->version, answer.text);
}

/* ---- the search ------------------------------------------------------------------------------*/

weir_status weir_search_again(weir_replica *replica, weir_search *search, weir_status failed)
{
    bool is_gone = failed == WEIR_ERR_PEER_LOST || failed == WEIR_ERR_TIMED_OUT;
    if (!is_gone || weir_deadline_passed(search->retry.deadline))
        return failed;
    weir_error_save(&search->lost);
    search->has_lost = true;
    if (search->retry.wait_ms == 0)
        weir_log(WEIR_LOG_WARN, "replica %s goes on trying: %s", replica->worker.id,
                 search->lost.text);
    return weir_worker_rest(&replica->worker, &search->retry);
}

/* A version that is waited for in vain is one that could not be read before. */
static weir_status name_lost(const weir_search *search, weir_status status)
{
    weir_error_line line;
    weir_error_save(&line);
    return search->has_lost && status == WEIR_ERR_TIMED_OUT
               ? weir_fail(status, "%.500s; what was tried last: %.500s", line.text,
                           search->lost.text)
               : status;
}

/* The first source may take as long as ever; what comes late in the wait gets a little. */
static unsigned call_bound_ms(const weir_replica *replica, const weir_search *search)
{
    unsigned left_ms = weir_deadline_left_ms(search->retry.deadline);
    unsigned timeout_ms = replica->worker.timeout_ms;
    unsigned least_ms = timeout_ms < LEAST_CALL_MS ? timeout_ms : LEAST_CALL_MS;
    return left_ms > least_ms ? left_ms : least_ms;
}

/* One version, leased and planned. No lease: there is none to be had. */
static weir_status find_version(weir_replica *replica, weir_search *search, weir_discovery *out)
{
    memset(out, 0, sizeof(*out));
    weir_schedule_choose(replica, false); /* whose slots the answer names */
    weir_status status =
        weir_acquire_version(replica, search->version, search->retry.deadline, out);
    if (status == WEIR_OK) {
        weir_way_back_forget(replica);
        weir_directory_client_bound(replica->worker.client, call_bound_ms(replica, search));
        return weir_discover_elsewhere(replica, out, prepare(replica, out));
    }
    if (out->lease_id[0] != '\0')
        weir_discovery_release(replica, out);
    out->lease_id[0] = '\0';
    return name_lost(search, status);
}

/* A version that passes through a window is read from its beginning or not at all: who wanted any
 * takes the next one. */
static bool is_late(weir_replica *replica, const weir_discovery *out, weir_status status)
{
    if (status != WEIR_ERR_NOT_FOUND || !weir_group_any(&replica->schedule))
        return false;
    memcpy(replica->missed_uid, out->uid, sizeof(replica->missed_uid));
    replica->missed = out->version;
    return true;
}

/* A source that has not got what the directory says it has is as good as gone. */
static weir_status try_again(weir_replica *replica, weir_search *search, const weir_discovery *out,
                             weir_status status)
{
    bool was_lost = search->has_lost;
    if (status == WEIR_ERR_NOT_FOUND)
        status = WEIR_ERR_PEER_LOST;
    weir_status again = weir_search_again(replica, search, status);
    if (again == status && was_lost)
        weir_error_prefix("version %" PRIu64 " of %s could not be read within %.1f s", out->version,
                          replica->worker.model, replica->worker.timeout_ms / 1e3);
    return again;
}

static weir_status discover(weir_replica *replica, weir_search *search, weir_discovery *out)
{
    for (;;) {
        weir_status status = find_version(replica, search, out);
        if (status == WEIR_OK || out->lease_id[0] == '\0')
            return status;
        weir_status again = status;
        if (!is_late(replica, out, status)) {
            again = try_again(replica, search, out, status);
        } else if (search->version == WEIR_LATEST) {
            weir_log(WEIR_LOG_INFO, "replica %s waits for the next version: %s", replica->worker.id,
                     weir_last_error());
            again = WEIR_OK;
        }
        if (again != WEIR_OK) {
            weir_stop_refuse(replica, out, again);
            return again;
        }
        weir_discovery_release(replica, out);
    }
}

weir_status weir_stop_discover(weir_replica *replica, weir_search *search, weir_discovery *out)
{
    weir_directory_client *client = replica->worker.client;
    unsigned bound_ms = weir_directory_client_bound(client, replica->worker.timeout_ms);
    weir_status status = discover(replica, search, out);
    weir_directory_client_bound(client, bound_ms);
    return status;
}
