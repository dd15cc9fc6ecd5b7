/* SPDX-License-Identifier: Apache-2.0 */
/* slot.c - stop 3 of 9: the memory that a version lies in while replicas read it.
 *
 * Takes   a slot that stage.c has filled.
 * Gives   the same slot SEALED: digests in place, final, known to the transport.
 * Before  stage.c        After  publish.c
 * Breaks  memory or the transport: the slot is dropped, nothing was published.
 *
 * FREE -> FILLING -> SEALED -> PUBLISHED -> RETIRED -> FREE. A slot is taken back only when the
 * directory has no lease on its version: the directory's refusal to delete the shard is what keeps
 * the bytes under a reader.
 */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "base/error.h"
#include "refit/trainer.h"

static weir_status allocate_slot(weir_trainer *trainer, weir_slot *slot)
{
    const weir_source *source = &trainer->source;
    weir_link link;
    weir_status status = weir_worker_link(&trainer->worker, trainer->transport, &link);
    if (status != WEIR_OK)
        return status;
    uint64_t n_bytes = source->slot_bytes ? source->slot_bytes : 1;
    slot->digests = weir_alloc_zeroed(source->n_shards, sizeof(*slot->digests));
    slot->shards = weir_alloc(source->n_shards * sizeof(*slot->shards));
    if (slot->digests == NULL || slot->shards == NULL)
        return WEIR_ERR_NO_MEMORY;
    memcpy(slot->shards, source->shards, source->n_shards * sizeof(*slot->shards));
    trainer->worker.counters.registrations++;
    trainer->worker.counters.allocations++;
    status = link.ops->allocate(link.transport, n_bytes, &slot->region);
    if (status != WEIR_OK) {
        weir_error_prefix("slot of %" PRIu64 " bytes", n_bytes);
        return status;
    }
    slot->data = link.ops->region_data(slot->region);
    return WEIR_OK;
}

/* Who else retires this version does not matter: what counts is that the shard goes. */
static weir_status retire(weir_trainer *trainer, weir_slot *slot)
{
    weir_directory_client *client = trainer->worker.client;
    weir_deadline deadline = weir_deadline_in(trainer->worker.timeout_ms);
    weir_directory_delete_version(client, slot->uid);
    slot->state = WEIR_SLOT_RETIRED;
    for (weir_patience patience = { 0 };;) {
        weir_status status =
            weir_directory_delete_shard(client, slot->uid, trainer->slot_name, trainer->worker.id);
        if (status == WEIR_OK || status == WEIR_ERR_NOT_FOUND)
            return WEIR_OK;
        weir_version_record record;
        if (status != WEIR_ERR_REFUSED)
            return status;
        /* No lease can exist on a version that never became READY. */
        if (weir_directory_get_version(client, slot->uid, &record) == WEIR_OK &&
            record.state == WEIR_VERSION_STAGING)
            return WEIR_OK;
        if (weir_deadline_passed(deadline))
            return weir_fail(WEIR_ERR_TIMED_OUT,
                             "timed out after %.1f s: trainer rank %u has no free slot, version "
                             "%" PRIu64 " is still being read (%u slots)",
                             trainer->worker.timeout_ms / 1e3, trainer->rank, slot->version,
                             trainer->n_slots);
        status = weir_worker_pause(&trainer->worker, &patience);
        if (status != WEIR_OK)
            return status;
    }
}

weir_status weir_slots_retire(weir_trainer *trainer)
{
    for (unsigned i = 0; i < trainer->n_slots; i++) {
        weir_status status = WEIR_OK;
        if (trainer->slots[i].state == WEIR_SLOT_PUBLISHED)
            status = retire(trainer, &trainer->slots[i]);
        if (status != WEIR_OK)
            return status;
    }
    return WEIR_OK;
}

void weir_slots_withdraw(weir_trainer *trainer)
{
    weir_directory_client *client = trainer->worker.client;
    for (unsigned i = 0; i < trainer->n_slots && client != NULL; i++) {
        const weir_slot *slot = &trainer->slots[i];
        if (slot->state != WEIR_SLOT_PUBLISHED)
            continue;
        if (weir_directory_delete_version(client, slot->uid) == WEIR_ERR_PEER_LOST)
            return; /* no directory, nobody to tell */
        weir_directory_delete_shard(client, slot->uid, trainer->slot_name, trainer->worker.id);
    }
}

weir_status weir_slot_acquire(weir_trainer *trainer, weir_slot **out)
{
    weir_slot *slot = &trainer->slots[0];
    for (unsigned i = 0; i < trainer->n_slots; i++) {
        weir_slot *candidate = &trainer->slots[i];
        if (candidate->state == WEIR_SLOT_FREE) {
            slot = candidate;
            break;
        }
        if (candidate->version < slot->version)
            slot = candidate;
    }
    weir_status status = WEIR_OK;
    if (slot->state != WEIR_SLOT_FREE)
        status = retire(trainer, slot);
    if (status != WEIR_OK)
        return status;
    weir_slot_drop(trainer, slot);
    if (slot->region == NULL)
        status = allocate_slot(trainer, slot);
    if (status != WEIR_OK)
        return status;
    slot->state = WEIR_SLOT_FILLING;
    *out = slot;
    return WEIR_OK;
}

void weir_slot_drop(weir_trainer *trainer, weir_slot *slot)
{
    pthread_mutex_lock(&trainer->lock);
    slot->state = WEIR_SLOT_FREE;
    slot->uid[0] = '\0';
    pthread_mutex_unlock(&trainer->lock);
}

static weir_status encode_manifest(weir_trainer *trainer, weir_slot *slot, const weir_link *link)
{
    const weir_source *source = &trainer->source;
    weir_manifest_region region = { .n_bytes = source->slot_bytes ? source->slot_bytes : 1 };
    weir_manifest manifest = { .model = trainer->worker.model,
                               .run = trainer->worker.run,
                               .worker_id = trainer->worker.id,
                               .transport = link->ops->name,
                               .layout_signature = source->signature,
                               .version = slot->version,
                               .rank = trainer->rank,
                               .n_ranks = trainer->n_ranks,
                               .regions = &region,
                               .n_regions = 1,
                               .layout = source->layout.data,
                               .layout_bytes = source->layout.n_bytes,
                               .digests = slot->digests,
                               .n_digests = source->n_shards };
    weir_status status = link->ops->region_key(slot->region, &region.key, &region.key_bytes);
    if (status == WEIR_OK)
        status = link->ops->address(link->transport, &manifest.address, &manifest.address_bytes);
    if (status == WEIR_OK)
        status = weir_manifest_encode(&manifest, &trainer->scratch, &slot->manifest);
    if (status == WEIR_OK)
        status =
            weir_sha256_hex(slot->manifest.data, slot->manifest.n_bytes, slot->manifest_digest);
    return status;
}

weir_status weir_stop_slot(weir_trainer *trainer, weir_slot *slot, uint64_t version)
{
    const weir_source *source = &trainer->source;
    char label[96];
    weir_link link;
    weir_status status = weir_worker_link(&trainer->worker, trainer->transport, &link);
    if (status != WEIR_OK)
        return status;
    slot->version = version;
    for (size_t i = 0; i < source->n_shards; i++)
        slot->shards[i].digest = slot->digests[i];
    snprintf(label, sizeof(label), "v%08" PRIu64 "-%s", version, trainer->slot_name);
    weir_seal seal = WEIR_SEAL_INIT;
    seal.model = trainer->worker.model;
    seal.label = label;
    seal.shards = slot->shards;
    seal.n_shards = source->n_shards;
    status = link.ops->seal(slot->region, &seal);
    weir_arena_reset(&trainer->scratch);
    if (status == WEIR_OK)
        status = encode_manifest(trainer, slot, &link);
    if (status == WEIR_OK)
        slot->state = WEIR_SLOT_SEALED;
    return status;
}

void weir_slots_release(weir_trainer *trainer)
{
    for (unsigned i = 0; i < trainer->n_slots; i++) {
        weir_slot *slot = &trainer->slots[i];
        weir_slot_drop(trainer, slot);
        if (slot->region != NULL)
            slot->region->transport->ops->release(slot->region);
        weir_free(slot->digests);
        weir_free(slot->shards);
        weir_buffer_free(&slot->manifest);
        *slot = (weir_slot){ 0 };
    }
}
