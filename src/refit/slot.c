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
 * the bytes under a reader. The slots of a version that passes through a window are its buffers:
 * plain memory where they are broadcast.
 */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "base/error.h"
#include "base/log.h"
#include "device/device.h"
#include "refit/serve.h"
#include "refit/window.h"

#define SHORT_ANSWER_S 0.05
#define MOVED_ON "its trainer has gone on to the next version"

/* What a slot holds, told to the transport. Its key can be had from then on. */
static weir_status seal_region(const weir_trainer *trainer, weir_slot *slot, const weir_link *link)
{
    char label[96];
    snprintf(label, sizeof(label), "v%08" PRIu64 "-%s", slot->version, trainer->slot_name);
    weir_seal seal = WEIR_SEAL_INIT;
    seal.model = trainer->worker.model;
    seal.label = label;
    seal.shards = slot->shards;
    seal.n_shards = trainer->source.n_shards;
    return link->ops->seal(slot->region, &seal);
}

/* A GPU converts into host memory only when that is pinned. */
static weir_status pin_slot(const weir_trainer *trainer, weir_slot *slot,
                            const weir_transport_ops *ops, uint64_t n_bytes)
{
    const weir_device_ops *cuda;
    if (trainer->memory != WEIR_MEMORY_CUDA || (ops->memory & WEIR_MEMORY_CUDA))
        return WEIR_OK;
    weir_status status = weir_device_get(WEIR_MEMORY_CUDA, &cuda);
    if (status == WEIR_OK)
        status = cuda->pin(slot->data, n_bytes);
    slot->pinned_bytes = status == WEIR_OK ? n_bytes : 0;
    return status;
}

static void unpin_slot(weir_slot *slot)
{
    const weir_device_ops *cuda;
    if (slot->pinned_bytes != 0 && weir_device_get(WEIR_MEMORY_CUDA, &cuda) == WEIR_OK)
        cuda->unpin(slot->data, slot->pinned_bytes);
    slot->pinned_bytes = 0;
}

static weir_status allocate_plain(weir_trainer *trainer, weir_slot *slot, uint64_t n_bytes)
{
    void *data;
    trainer->worker.counters.allocations++;
    weir_status status = weir_work_allocate(trainer->work, n_bytes, &data);
    if (status != WEIR_OK) {
        weir_error_prefix("buffer of %" PRIu64 " bytes", n_bytes);
        return status;
    }
    slot->data = data;
    slot->plain_bytes = n_bytes;
    return WEIR_OK;
}

static weir_status allocate_region(weir_trainer *trainer, weir_slot *slot, uint64_t n_bytes)
{
    weir_link link;
    weir_status status = weir_delivery_link(trainer, &link);
    if (status != WEIR_OK)
        return status;
    if (trainer->window != NULL && (link.ops->caps & WEIR_CAP_DURABLE))
        return weir_fail(WEIR_ERR_UNSUPPORTED,
                         "transport %s keeps versions whole: none can pass through a window",
                         link.ops->name);
    trainer->worker.counters.registrations++;
    trainer->worker.counters.allocations++;
    status = link.ops->allocate(link.transport, n_bytes, &slot->region);
    if (status != WEIR_OK) {
        weir_error_prefix("slot of %" PRIu64 " bytes", n_bytes);
        return status;
    }
    slot->data = link.ops->region_data(slot->region);
    status = pin_slot(trainer, slot, link.ops, n_bytes);
    if (status != WEIR_OK)
        return status;
    return link.ops->caps & WEIR_CAP_DURABLE ? WEIR_OK : seal_region(trainer, slot, &link);
}

static weir_status allocate_slot(weir_trainer *trainer, weir_slot *slot)
{
    const weir_source *source = &trainer->source;
    uint64_t n_bytes = source->slot_bytes ? source->slot_bytes : 1;
    weir_free(slot->digests);
    weir_free(slot->shards);
    slot->digests = weir_alloc_zeroed(source->n_shards, sizeof(*slot->digests));
    slot->shards = weir_alloc(source->n_shards * sizeof(*slot->shards));
    if (slot->digests == NULL || slot->shards == NULL)
        return WEIR_ERR_NO_MEMORY;
    memcpy(slot->shards, source->shards, source->n_shards * sizeof(*slot->shards));
    if (trainer->pushes)
        return WEIR_OK;
    return trainer->casts ? allocate_plain(trainer, slot, n_bytes)
                          : allocate_region(trainer, slot, n_bytes);
}

static void release_slot(weir_trainer *trainer, weir_slot *slot)
{
    weir_slot_drop(trainer, slot);
    unpin_slot(slot);
    if (slot->region != NULL)
        slot->region->transport->ops->release(slot->region);
    if (slot->plain_bytes != 0)
        weir_work_free(trainer->work, slot->data, slot->plain_bytes);
    weir_free(slot->digests);
    weir_free(slot->shards);
    weir_buffer_free(&slot->manifest);
    *slot = (weir_slot){ 0 };
}

/* All at the first publish: the second refit allocates nothing, and a rank that lacks the memory
 * says so before it has published anything. A slot is there whole or not at all. */
static weir_status allocate_slots(weir_trainer *trainer)
{
    for (unsigned i = 0; i < trainer->n_slots; i++) {
        weir_slot *slot = &trainer->slots[i];
        if (slot->digests != NULL)
            continue;
        weir_status status = allocate_slot(trainer, slot);
        if (status != WEIR_OK) {
            release_slot(trainer, slot);
            return status;
        }
    }
    return WEIR_OK;
}

static weir_status still_read(const weir_trainer *trainer, const weir_slot *slot,
                              const char *readers, unsigned bound_ms)
{
    return weir_fail(WEIR_ERR_TIMED_OUT,
                     "timed out after %.1f s: trainer rank %u cannot free a slot (of %u), version "
                     "%" PRIu64 " is still being read%s%s",
                     bound_ms / 1e3, trainer->rank, trainer->n_slots, slot->version,
                     readers[0] != '\0' ? " by " : "", readers);
}

/* No lease keeps the bytes of what is sent, or passes through a window. */
static bool keeps_no_bytes(const weir_trainer *trainer)
{
    return trainer->pushes || trainer->window != NULL;
}

/* No lease can exist on a version that never became READY. */
static bool is_staging(const weir_trainer *trainer, const weir_slot *slot)
{
    weir_version_record record;
    return !slot->is_ready &&
           weir_directory_get_version(trainer->worker.client, slot->uid, &record) == WEIR_OK &&
           record.state == WEIR_VERSION_STAGING;
}

/* Step by step. Who else retires this version does not matter: what counts is that the shard goes.
 */
static weir_status retire_in_steps(weir_trainer *trainer, const weir_slot *slot, weir_retry *retry,
                                   unsigned bound_ms)
{
    weir_directory_client *client = trainer->worker.client;
    weir_directory_delete_version(client, slot->uid);
    for (weir_patience patience = { 0 };;) {
        weir_status status =
            weir_directory_delete_shard(client, slot->uid, trainer->slot_name, trainer->worker.id);
        if (status == WEIR_OK || status == WEIR_ERR_NOT_FOUND ||
            (status == WEIR_ERR_REFUSED && keeps_no_bytes(trainer)))
            return WEIR_OK;
        if (status != WEIR_ERR_REFUSED)
            status = weir_worker_retry(&trainer->worker, retry, status);
        else if (is_staging(trainer, slot))
            return WEIR_OK;
        else if (weir_deadline_passed(retry->deadline))
            return still_read(trainer, slot, "", bound_ms);
        else
            status = weir_worker_pause(&trainer->worker, &patience);
        if (status != WEIR_OK)
            return status;
    }
}

/* Nobody tells the directory of it again; from now on the slot goes by the uid that it has there.
 */
void weir_slot_stop_offering(weir_trainer *trainer, weir_slot *slot)
{
    char uid[WEIR_ID_BYTES];
    weir_keeper_retire(trainer->worker.keeper, slot->uid, uid);
    pthread_mutex_lock(&trainer->lock);
    memcpy(slot->uid, uid, sizeof(slot->uid));
    pthread_mutex_unlock(&trainer->lock);
    slot->state = WEIR_SLOT_RETIRED;
}

weir_status weir_slot_retire(weir_trainer *trainer, weir_slot *slot, unsigned bound_ms)
{
    weir_retry retry = { .deadline = weir_deadline_in(bound_ms) };
    const char *uid = slot->uid;
    char readers[512];
    weir_slot_stop_offering(trainer, slot);
    for (weir_patience patience = { 0 };;) {
        unsigned left_ms = keeps_no_bytes(trainer) ? 0 : weir_deadline_left_ms(retry.deadline);
        double asked_s = weir_now_s();
        weir_status status =
            weir_directory_retire_versions(trainer->worker.client, &uid, 1, trainer->slot_name,
                                           trainer->worker.id, left_ms, readers, sizeof(readers));
        if (status == WEIR_ERR_UNSUPPORTED && weir_directory_is_plain(trainer->worker.client))
            return retire_in_steps(trainer, slot, &retry, bound_ms);
        if (status == WEIR_OK || status == WEIR_ERR_NOT_FOUND ||
            (status == WEIR_IN_PROGRESS && keeps_no_bytes(trainer)))
            return WEIR_OK;
        if (status != WEIR_IN_PROGRESS)
            status = weir_worker_retry(&trainer->worker, &retry, status);
        else if (weir_deadline_passed(retry.deadline))
            return still_read(trainer, slot, readers, bound_ms);
        else if (weir_now_s() - asked_s < SHORT_ANSWER_S)
            status = weir_worker_pause(&trainer->worker, &patience);
        else
            status = weir_worker_check_cancelled(&trainer->worker);
        if (status != WEIR_OK)
            return status;
    }
}

/* Within the handle's bound. */
static weir_status retire(weir_trainer *trainer, weir_slot *slot)
{
    return weir_slot_retire(trainer, slot, trainer->worker.timeout_ms);
}

weir_status weir_slot_retire_sent(weir_trainer *trainer, uint64_t version)
{
    weir_slot *slot = &trainer->slots[0];
    if (slot->state != WEIR_SLOT_PUBLISHED || slot->version != version)
        return WEIR_OK;
    weir_window_withdraw(trainer, MOVED_ON);
    weir_status status = retire(trainer, slot);
    if (status == WEIR_OK)
        weir_slot_drop(trainer, slot);
    return status;
}

weir_status weir_slots_retire(weir_trainer *trainer)
{
    weir_window_withdraw(trainer, MOVED_ON);
    for (unsigned i = 0; i < trainer->n_slots; i++) {
        weir_status status = WEIR_OK;
        const weir_slot *slot = &trainer->slots[i];
        if (slot->state == WEIR_SLOT_PUBLISHED || slot->state == WEIR_SLOT_RETIRED)
            status = retire(trainer, &trainer->slots[i]);
        if (status != WEIR_OK)
            return status;
    }
    return WEIR_OK;
}

static weir_status withdraw_in_steps(weir_trainer *trainer, const weir_slot *slot)
{
    weir_directory_client *client = trainer->worker.client;
    weir_status status = weir_directory_delete_version(client, slot->uid);
    if (status != WEIR_ERR_PEER_LOST)
        status =
            weir_directory_delete_shard(client, slot->uid, trainer->slot_name, trainer->worker.id);
    return status == WEIR_ERR_REFUSED && !is_staging(trainer, slot) ? WEIR_IN_PROGRESS : status;
}

/* IN_PROGRESS: somebody reads it still. */
static weir_status withdraw(weir_trainer *trainer, const weir_slot *slot, unsigned wait_ms)
{
    char readers[WEIR_NAME_BYTES];
    const char *uid = slot->uid;
    weir_directory_client *client = trainer->worker.client;
    unsigned left_ms = weir_deadline_left_ms(trainer->worker.leave_by);
    weir_directory_client_bound(client, left_ms > wait_ms ? left_ms - wait_ms : 0);
    weir_status status = weir_directory_retire_versions(
        client, &uid, 1, trainer->slot_name, trainer->worker.id, wait_ms, readers, sizeof(readers));
    return status == WEIR_ERR_UNSUPPORTED && weir_directory_is_plain(client)
               ? withdraw_in_steps(trainer, slot)
               : status;
}

/* Their memory goes with the handle: who reads one to its end has all of it. */
static void await_readers(weir_trainer *trainer, const weir_slot *slot, weir_deadline deadline)
{
    for (weir_patience patience = { 0 };;) {
        double asked_s = weir_now_s();
        weir_status status = withdraw(trainer, slot, weir_deadline_left_ms(deadline));
        if (status != WEIR_IN_PROGRESS)
            return;
        if (weir_deadline_passed(deadline)) {
            weir_log(WEIR_LOG_WARN,
                     "trainer rank %u goes, though version %" PRIu64 " is still being read",
                     trainer->rank, slot->version);
            return;
        }
        bool is_short = weir_now_s() - asked_s < SHORT_ANSWER_S;
        status = is_short ? weir_worker_pause(&trainer->worker, &patience)
                          : weir_worker_check_cancelled(&trainer->worker);
        if (status != WEIR_OK)
            return;
    }
}

static bool is_offered(const weir_slot *slot)
{
    return slot->state == WEIR_SLOT_PUBLISHED || slot->state == WEIR_SLOT_RETIRED;
}

/* All are taken back before the first is waited for, so that nobody begins to read one. */
void weir_slots_withdraw(weir_trainer *trainer)
{
    bool is_read[WEIR_MAX_SLOTS] = { false };
    if (!trainer->worker.is_registered)
        return;
    weir_worker_uncancel(&trainer->worker); /* that was for the call before */
    weir_worker_hurry(&trainer->worker);
    unsigned left_ms = weir_deadline_left_ms(trainer->worker.leave_by);
    weir_deadline deadline = weir_deadline_in(left_ms - left_ms / 10); /* the last words' time */
    for (unsigned i = 0; i < trainer->n_slots; i++) {
        weir_slot *slot = &trainer->slots[i];
        if (!is_offered(slot))
            continue;
        weir_directory_client_bound(trainer->worker.client, weir_worker_hurry_ms(&trainer->worker));
        bool was_published = slot->state == WEIR_SLOT_PUBLISHED;
        weir_slot_stop_offering(trainer, slot);
        if (was_published && is_staging(trainer, slot))
            weir_publish_abort(trainer, slot->version, slot->uid,
                               "it was closed before all ranks had published the version");
        weir_status status = withdraw(trainer, slot, 0);
        if (status == WEIR_ERR_PEER_LOST || status == WEIR_ERR_TIMED_OUT) {
            trainer->worker.is_registered = false; /* no directory, nobody to tell */
            return;
        }
        is_read[i] = status == WEIR_IN_PROGRESS && !keeps_no_bytes(trainer);
    }
    for (unsigned i = 0; i < trainer->n_slots; i++) {
        if (is_read[i])
            await_readers(trainer, &trainer->slots[i], deadline);
    }
}

/* The one to take: a free one, or else that of the oldest version. Of a window the first, which
 * stands for all of it. */
static weir_slot *choose_slot(weir_trainer *trainer)
{
    weir_slot *slot = &trainer->slots[0];
    for (unsigned i = 0; i < trainer->n_slots && trainer->window == NULL; i++) {
        weir_slot *candidate = &trainer->slots[i];
        if (candidate->state == WEIR_SLOT_FREE) {
            slot = candidate;
            break;
        }
        if (candidate->version < slot->version)
            slot = candidate;
    }
    return slot;
}

weir_status weir_slot_acquire(weir_trainer *trainer, weir_slot **out)
{
    weir_slot *slot = choose_slot(trainer);
    weir_status status = WEIR_OK;
    weir_window_withdraw(trainer, MOVED_ON);
    if (slot->state != WEIR_SLOT_FREE) {
        double begun_s = weir_now_s();
        status = retire(trainer, slot);
        weir_worker_waited(&trainer->worker, "wait slot", begun_s);
    }
    if (status != WEIR_OK)
        return status;
    weir_slot_drop(trainer, slot);
    status = allocate_slots(trainer);
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
    slot->is_ready = false;
    slot->uid[0] = '\0';
    pthread_mutex_unlock(&trainer->lock);
}

static weir_status list_region(const weir_trainer *trainer, const weir_slot *slot,
                               weir_manifest_region *out)
{
    out->n_bytes = trainer->source.slot_bytes ? trainer->source.slot_bytes : 1;
    return slot->region->transport->ops->region_key(slot->region, &out->key, &out->key_bytes);
}

/* First the region that holds the shards. The other slots' follow where their keys last, so that a
 * reader imports them once, with its first version. */
static weir_status list_regions(const weir_trainer *trainer, const weir_slot *slot,
                                const weir_link *link, weir_manifest_region *regions, size_t *out_n)
{
    weir_status status = list_region(trainer, slot, &regions[0]);
    *out_n = 1;
    for (unsigned i = 0; i < trainer->n_slots && status == WEIR_OK; i++) {
        if (&trainer->slots[i] != slot && !(link->ops->caps & WEIR_CAP_DURABLE))
            status = list_region(trainer, &trainer->slots[i], &regions[(*out_n)++]);
    }
    return status;
}

/* The other slots' manifests will be about as long. */
static weir_status reserve_manifests(weir_trainer *trainer, size_t n_bytes)
{
    weir_status status = WEIR_OK;
    for (unsigned i = 0; i < trainer->n_slots && status == WEIR_OK; i++) {
        weir_slot *slot = &trainer->slots[i];
        if (slot->manifest.data == NULL)
            status = weir_buffer_reserve(&slot->manifest, n_bytes);
    }
    return status;
}

/* What is pushed has no bytes to read: one region of no key bounds the shards' places. */
static void describe_push(const weir_trainer *trainer, weir_manifest_region *regions,
                          weir_manifest *manifest)
{
    regions[0] = (weir_manifest_region){ "", 0, trainer->source.slot_bytes };
    manifest->n_regions = 1;
    manifest->transport = weir_outlet_transport(trainer->push->outlet);
    manifest->push_address = weir_push_address(trainer->push);
}

/* Nor has what is broadcast: a region bounds the shards of each buffer. */
static void describe_cast(const weir_trainer *trainer, weir_manifest_region *regions,
                          weir_manifest *manifest)
{
    const weir_groups *groups = &trainer->window->groups;
    for (unsigned i = 0; i < trainer->n_slots; i++)
        regions[i] = (weir_manifest_region){ "", 0, trainer->source.slot_bytes };
    manifest->n_regions = trainer->n_slots;
    manifest->transport = weir_cast_transport(trainer->window->cast);
    manifest->group_bytes = groups->n_bytes;
    manifest->group_keys = groups->keys;
    manifest->group_audiences = groups->audiences;
}

static weir_status describe_slot(const weir_trainer *trainer, const weir_slot *slot,
                                 const weir_link *link, weir_manifest_region *regions,
                                 weir_manifest *manifest)
{
    manifest->transport = link->ops->name;
    weir_status status = list_regions(trainer, slot, link, regions, &manifest->n_regions);
    if (status == WEIR_OK)
        status = link->ops->address(link->transport, &manifest->address, &manifest->address_bytes);
    return status;
}

static weir_status encode_manifest(weir_trainer *trainer, weir_slot *slot, const weir_link *link)
{
    const weir_source *source = &trainer->source;
    weir_manifest_region regions[WEIR_MAX_SLOTS];
    weir_manifest manifest = { .model = trainer->worker.model,
                               .run = trainer->worker.run,
                               .worker_id = trainer->worker.id,
                               .layout_signature = source->signature,
                               .engine_mesh = trainer->mesh_text,
                               .plan = trainer->plan,
                               .version = slot->version,
                               .rank = trainer->rank,
                               .n_ranks = trainer->n_ranks,
                               .regions = regions,
                               .layout = source->layout.data,
                               .layout_bytes = source->layout.n_bytes,
                               .digests = slot->digests,
                               .n_digests = source->n_shards };
    weir_status status = WEIR_OK;
    if (trainer->window != NULL) {
        manifest.group_ends = trainer->window->groups.shard_ends;
        manifest.n_groups = trainer->window->groups.n_groups;
    }
    if (trainer->pushes)
        describe_push(trainer, regions, &manifest);
    else if (trainer->casts)
        describe_cast(trainer, regions, &manifest);
    else
        status = describe_slot(trainer, slot, link, regions, &manifest);
    if (status == WEIR_OK)
        status = weir_manifest_encode(&manifest, &trainer->scratch, &slot->manifest);
    if (status == WEIR_OK)
        status = reserve_manifests(trainer, slot->manifest.n_bytes);
    if (status == WEIR_OK)
        status =
            weir_sha256_hex(slot->manifest.data, slot->manifest.n_bytes, slot->manifest_digest);
    return status;
}

weir_status weir_stop_slot(weir_trainer *trainer, weir_slot *slot, uint64_t version)
{
    const weir_source *source = &trainer->source;
    weir_link link = { NULL, NULL };
    weir_status status = WEIR_OK;
    if (!trainer->pushes)
        status = weir_delivery_link(trainer, &link);
    if (status != WEIR_OK)
        return status;
    slot->version = version;
    for (size_t i = 0; i < source->n_shards; i++)
        slot->shards[i].digest = slot->digests[i];
    if (!trainer->pushes && trainer->window == NULL)
        status = seal_region(trainer, slot, &link);
    weir_arena_reset(&trainer->scratch);
    if (status == WEIR_OK)
        status = encode_manifest(trainer, slot, &link);
    if (status == WEIR_OK)
        slot->state = WEIR_SLOT_SEALED;
    return status;
}

void weir_slots_release(weir_trainer *trainer)
{
    for (unsigned i = 0; i < trainer->n_slots; i++)
        release_slot(trainer, &trainer->slots[i]);
}
