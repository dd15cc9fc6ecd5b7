/* SPDX-License-Identifier: Apache-2.0 */
/* ack.c - stop 9 of 9: the replica says what it holds; the trainer may wait to hear it.
 *
 * Takes   an installed version and the timings of its stops.
 * Gives   the replica's entry in the directory, the lease given back.
 * Before  postprocess.c        After  the next version
 * Breaks  the directory: the install stands all the same. The keeper repeats the entry until it is
 *         known, and the lease expires by the directory's clock.
 */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/error.h"
#include "base/log.h"
#include "refit/replica.h"
#include "refit/window.h"

#define MAX_REFS 512u

/* One flat JSON object: bytes and the seconds of every stop so far. */
static void write_note(const weir_report *report, char *note, size_t note_bytes)
{
    size_t used = (size_t)snprintf(note, note_bytes, "{\"bytes\":%" PRIu64, report->n_bytes);
    for (int stop = WEIR_STOP_DISCOVER; stop < WEIR_STOP_ACK && used < note_bytes; stop++)
        used += (size_t)snprintf(note + used, note_bytes - used, ",\"%s_s\":%.6f",
                                 weir_stop_name((weir_stop)stop), report->seconds[stop]);
    if (used + 2 <= note_bytes)
        snprintf(note + used, note_bytes - used, "}");
}

void weir_stop_ack(weir_replica *replica, const weir_discovery *discovery,
                   const weir_report *report)
{
    weir_source_record record =
        weir_worker_entry(&replica->worker, discovery->version, discovery->uid,
                          weir_manifest_service_address(replica->service));
    snprintf(record.layout_signature, sizeof(record.layout_signature), "%s", replica->signature);
    write_note(report, record.note, sizeof(record.note));
    weir_keeper_pause(replica->worker.keeper);
    bool told = weir_directory_publish_source(replica->worker.client, &record,
                                              replica->source_id) == WEIR_OK;
    if (!told)
        weir_log(WEIR_LOG_WARN, "version %" PRIu64 " is installed, but not yet acknowledged: %s",
                 discovery->version, weir_last_error());
    weir_keeper_announce(replica->worker.keeper, &record, !told);
    weir_keeper_resume(replica->worker.keeper);
    weir_group_keep(replica);
    weir_discovery_release(replica, discovery);
}

/* ---- the trainer's end -----------------------------------------------------------------------*/

/* "" when this rank does not publish it any more. */
static const char *uid_of(const weir_trainer *trainer, uint64_t version)
{
    for (unsigned i = 0; i < trainer->n_slots; i++) {
        if (trainer->slots[i].version == version)
            return trainer->slots[i].uid;
    }
    return "";
}

/* A replica that has left since has acknowledged all the same; but entries of dead ones from before
 * this training may have higher numbers, so only this very version counts of it. */
static bool is_ack(const weir_trainer *trainer, const weir_source_record *record, uint64_t version)
{
    if (strcmp(record->role, "inference_replica") != 0 ||
        strcmp(record->run, trainer->worker.run) != 0)
        return false;
    if (record->status == WEIR_SOURCE_READY)
        return record->version >= version;
    const char *uid = uid_of(trainer, version);
    return record->status == WEIR_SOURCE_STALE && uid[0] != '\0' &&
           strcmp(record->version_uid, uid) == 0;
}

/* How many replicas of this run say that they hold `version` or a later one, or said so of it. */
static weir_status count_acks(weir_trainer *trainer, uint64_t version, weir_source_ref *refs,
                              unsigned *out_n)
{
    weir_directory_client *client = trainer->worker.client;
    size_t n = 0;
    *out_n = 0;
    weir_status status = weir_directory_list_sources(
        client, trainer->worker.model, WEIR_SOURCE_UNKNOWN, version, refs, MAX_REFS, &n);
    for (size_t i = 0; i < n && i < MAX_REFS && status == WEIR_OK; i++) {
        weir_source_record record;
        status = weir_directory_get_source(client, refs[i].source_id, refs[i].worker_id, &record);
        *out_n += status == WEIR_OK && is_ack(trainer, &record, version);
        if (status == WEIR_ERR_NOT_FOUND)
            status = WEIR_OK; /* gone since it was listed */
    }
    return status;
}

static weir_status await_acks(weir_trainer *trainer, uint64_t version, unsigned n_wanted,
                              unsigned bound_ms)
{
    weir_deadline deadline = weir_deadline_in(bound_ms);
    weir_arena_reset(&trainer->scratch);
    weir_source_ref *refs = weir_arena_alloc(&trainer->scratch, MAX_REFS * sizeof(*refs));
    if (refs == NULL)
        return WEIR_ERR_NO_MEMORY;
    for (weir_patience patience = { 0 };;) {
        unsigned n = 0;
        weir_status status = count_acks(trainer, version, refs, &n);
        if (status != WEIR_OK || n >= n_wanted)
            return status;
        if (weir_deadline_passed(deadline))
            return weir_fail(WEIR_ERR_TIMED_OUT,
                             "timed out after %.1f s: %u of %u replicas have acknowledged version "
                             "%" PRIu64 " of %s",
                             bound_ms / 1e3, n, n_wanted, version, trainer->worker.model);
        status = weir_worker_pause(&trainer->worker, &patience);
        if (status != WEIR_OK)
            return status;
    }
}

/* All workers of the engines have to hold it; then nobody can read it any more. */
static weir_status send_through_window(weir_trainer *trainer, uint64_t version, unsigned n_replicas,
                                       unsigned bound_ms)
{
    unsigned n_workers = n_replicas * weir_replica_mesh_workers(&trainer->replica_mesh);
    weir_status status = weir_window_serve(trainer, version, n_replicas, bound_ms);
    if (status == WEIR_OK)
        status = await_acks(trainer, version, n_workers, bound_ms);
    return status == WEIR_OK ? weir_slot_retire_sent(trainer, version) : status;
}

weir_status weir_trainer_wait(weir_trainer *trainer, uint64_t version, unsigned n_replicas,
                              unsigned timeout_ms)
{
    unsigned bound_ms = timeout_ms ? timeout_ms : trainer->worker.timeout_ms;
    if (trainer->pushes || trainer->asked_delivery == WEIR_DELIVERY_PUSH)
        return weir_delivery_serve(trainer, version, n_replicas, bound_ms);
    if (weir_window_is_wanted(trainer))
        return send_through_window(trainer, version, n_replicas, bound_ms);
    return await_acks(trainer, version, n_replicas, bound_ms);
}
