/* SPDX-License-Identifier: Apache-2.0 */
/* publish.c - stop 4 of 9: tells the directory that this rank's shard of a version can be read.
 *
 * Takes   a SEALED slot.
 * Gives   the slot PUBLISHED; the version READY once every expected rank has come this far.
 * Before  slot.c        After  discover.c, on the replicas
 * Breaks  the directory: the slot is dropped and its manifest refused, so that a version record
 * that may be left STAGING can never be read.
 *
 * All ranks create the same version record: the idempotency key makes them meet. The manifest can
 * be had before the record says so, never the other way round.
 */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/error.h"
#include "refit/publish_registry.h"
#include "refit/serve.h"
#include "refit/window.h"

#define MAX_ATTEMPTS 100u

static weir_status create_attempt(weir_trainer *trainer, uint64_t version, unsigned attempt,
                                  weir_version_record *record)
{
    char key[2 * WEIR_NAME_BYTES + 64];
    const weir_worker *worker = &trainer->worker;
    snprintf(key, sizeof(key), "weir/%s/%s/%" PRIu64 "/%u", worker->model, worker->run, version,
             attempt);
    weir_status status = weir_directory_create_version(worker->client, worker->model, version, key,
                                                       (const char *const *)trainer->slot_names,
                                                       trainer->n_ranks, record);
    if (status == WEIR_ERR_EXISTS)
        return weir_fail(WEIR_ERR_EXISTS,
                         "version %" PRIu64 " of %s, run %s: this is trainer rank %u of %u, but "
                         "another rank has begun it with another number of ranks",
                         version, worker->model, worker->run, trainer->rank, trainer->n_ranks);
    return status;
}

/* A version that was READY and released is over: a trainer that was started again publishes the
 * number anew, as the next attempt. All its ranks find the same one, because a version is released
 * only after all ranks were in. */
static weir_status create_version(weir_trainer *trainer, weir_slot *slot)
{
    weir_version_record record;
    unsigned attempt = 0;
    do {
        weir_status status = create_attempt(trainer, slot->version, ++attempt, &record);
        if (status != WEIR_OK)
            return status;
    } while (record.state == WEIR_VERSION_RELEASING && attempt < MAX_ATTEMPTS);
    if (record.state == WEIR_VERSION_RELEASING)
        return weir_fail(WEIR_ERR_EXISTS,
                         "version %" PRIu64 " of %s, run %s, was published and released %u times",
                         slot->version, trainer->worker.model, trainer->worker.run, attempt);
    pthread_mutex_lock(&trainer->lock);
    memcpy(slot->uid, record.uid, sizeof(slot->uid));
    pthread_mutex_unlock(&trainer->lock);
    return WEIR_OK;
}

static weir_status create_shard(weir_trainer *trainer, const weir_slot *slot)
{
    weir_shard_record shard = { .n_tensors = trainer->source.n_shards,
                                .n_bytes = trainer->source.n_bytes };
    weir_version_record record;
    snprintf(shard.version_uid, sizeof(shard.version_uid), "%s", slot->uid);
    snprintf(shard.slot, sizeof(shard.slot), "%s", trainer->slot_name);
    snprintf(shard.worker_id, sizeof(shard.worker_id), "%s", trainer->worker.id);
    snprintf(shard.manifest_digest, sizeof(shard.manifest_digest), "%s", slot->manifest_digest);
    snprintf(shard.manifest_endpoint, sizeof(shard.manifest_endpoint), "%s",
             weir_manifest_service_address(trainer->service));
    snprintf(shard.transport, sizeof(shard.transport), "%s",
             trainer->pushes ? weir_outlet_transport(trainer->push->outlet)
                             : slot->region->transport->ops->name);
    return weir_directory_create_shard(trainer->worker.client, &shard, &record);
}

/* Last, because replicas look here first: who finds the entry finds the shard too. */
static weir_status announce(weir_trainer *trainer, const weir_slot *slot)
{
    weir_source_record record = weir_worker_entry(&trainer->worker, slot->version, slot->uid,
                                                  weir_manifest_service_address(trainer->service));
    record.rank = trainer->rank;
    record.n_ranks = trainer->n_ranks;
    snprintf(record.layout_signature, sizeof(record.layout_signature), "%s",
             trainer->source.signature);
    weir_keeper_pause(trainer->worker.keeper);
    weir_publish_registry(trainer, &record);
    weir_status status =
        weir_directory_publish_source(trainer->worker.client, &record, trainer->source_id);
    if (status == WEIR_OK)
        weir_keeper_announce(trainer->worker.keeper, &record, false);
    weir_keeper_resume(trainer->worker.keeper);
    return status;
}

weir_status weir_stop_publish(weir_trainer *trainer, weir_slot *slot)
{
    weir_status status = create_version(trainer, slot);
    if (status == WEIR_OK && trainer->window != NULL)
        weir_window_offer(trainer, slot);
    if (status == WEIR_OK)
        status = create_shard(trainer, slot);
    if (status == WEIR_OK)
        status = announce(trainer, slot);
    if (status != WEIR_OK) {
        weir_window_withdraw(trainer);
        return status;
    }
    slot->state = WEIR_SLOT_PUBLISHED;
    weir_push_version pushed = { slot->version, slot->uid, trainer->keep_masters };
    if (trainer->pushes)
        weir_members_announce(trainer->push, &pushed);
    return WEIR_OK;
}
