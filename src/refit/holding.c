/* SPDX-License-Identifier: Apache-2.0 */
/* holding.c - a replica as a source: others may read the live parameters of the version it holds.
 *
 * The manifest is handed out only while one whole version is held. A reader that began before an
 * install and ended after its begin sees the digests differ, or the manifest gone.
 */
#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "base/digest.h"
#include "base/error.h"
#include "base/log.h"
#include "directory/sha256.h"
#include "refit/replica.h"

/* ---- manifest service ------------------------------------------------------------------------*/

/* Runs in the service's thread; holds the lock until manifest_done(). The slot's name is not
 * looked at: a replica has one. */
static bool manifest_find(void *context, const char *version_uid, const char *slot,
                          const void **out_bytes, size_t *out_n_bytes, const char **out_digest)
{
    weir_replica *replica = context;
    (void)slot;
    pthread_mutex_lock(&replica->lock);
    if (replica->held_uid[0] == '\0' || strcmp(replica->held_uid, version_uid) != 0) {
        pthread_mutex_unlock(&replica->lock);
        return false;
    }
    *out_bytes = replica->manifest.data;
    *out_n_bytes = replica->manifest.n_bytes;
    *out_digest = replica->manifest_digest;
    return true;
}

static void manifest_done(void *context)
{
    weir_replica *replica = context;
    pthread_mutex_unlock(&replica->lock);
}

/* ---- layout ----------------------------------------------------------------------------------*/

static weir_status expose_each(weir_replica *replica)
{
    replica->regions =
        weir_arena_zeroed(&replica->arena, replica->n_parameters, sizeof(*replica->regions));
    if (replica->regions == NULL)
        return WEIR_ERR_NO_MEMORY;
    for (size_t i = 0; i < replica->n_parameters; i++) {
        replica->worker.counters.registrations++;
        weir_status status =
            replica->serving.ops->expose(replica->serving.transport, replica->live[i].data,
                                         replica->held[i].n_bytes, &replica->regions[i]);
        if (status != WEIR_OK)
            return status;
        replica->held[i].region = (uint32_t)i;
        replica->n_regions = i + 1;
    }
    return WEIR_OK;
}

static weir_status describe_held(weir_replica *replica)
{
    replica->held =
        weir_arena_zeroed(&replica->arena, replica->n_parameters, sizeof(*replica->held));
    if (replica->held == NULL)
        return WEIR_ERR_NO_MEMORY;
    const unsigned char *base =
        replica->n_regions == 1 ? replica->serving.ops->region_data(replica->regions[0]) : NULL;
    for (size_t i = 0; i < replica->n_parameters; i++) {
        const weir_parameter *wanted = &replica->wanted[i];
        weir_shard *held = &replica->held[i];
        *held = (weir_shard){ .name = wanted->name,
                              .dtype = wanted->dtype,
                              .global_shape = wanted->shape,
                              .box = weir_box_whole(&wanted->shape),
                              .compile_target = wanted->compile_target,
                              .compile_metadata = wanted->compile_metadata };
        weir_status status = weir_tensor_bytes(held->dtype, &held->global_shape, &held->n_bytes);
        if (status != WEIR_OK)
            return status;
        if (base != NULL)
            held->offset = (uint64_t)((const unsigned char *)replica->live[i].data - base);
    }
    return WEIR_OK;
}

weir_status weir_holding_open(weir_replica *replica)
{
    weir_manifest_source source = { manifest_find, manifest_done, replica };
    weir_status status = weir_manifest_service_open(
        replica->listen != NULL ? replica->listen : "127.0.0.1", &source, &replica->service);
    if (status == WEIR_OK)
        status = weir_layout_signature(replica->wanted, replica->n_parameters, replica->signature);
    if (status != WEIR_OK || replica->serving.ops == NULL)
        return status;
    status = describe_held(replica);
    if (status == WEIR_OK && replica->n_regions == 0)
        status = expose_each(replica);
    weir_arena_reset(&replica->scratch);
    if (status == WEIR_OK)
        status = weir_layout_encode(replica->held, replica->n_parameters, &replica->scratch,
                                    &replica->held_layout);
    return status;
}

void weir_holding_close(weir_replica *replica)
{
    weir_manifest_service_close(replica->service);
    replica->service = NULL;
    for (size_t i = 0; i < replica->n_regions; i++)
        replica->serving.ops->release(replica->regions[i]);
    replica->n_regions = 0;
    weir_buffer_free(&replica->manifest);
    weir_buffer_free(&replica->held_layout);
}

/* ---- a version -------------------------------------------------------------------------------*/

/* Whole parameters have the digest that they came with; what came in pieces, or was computed here,
 * is digested now. */
static weir_status digest_held(weir_replica *replica, weir_digest *digests)
{
    const weir_schedule *schedule = &replica->schedule;
    bool *known = weir_arena_zeroed(&replica->scratch, replica->n_parameters, sizeof(*known));
    if (known == NULL)
        return WEIR_ERR_NO_MEMORY;
    for (size_t i = 0; i < schedule->n_copies; i++) {
        const weir_plan_copy *planned = &schedule->planned[i];
        const weir_remote *remote = schedule->participants[planned->source].remote;
        if (planned->n_bytes != replica->held[planned->parameter].n_bytes)
            continue;
        digests[planned->parameter] = remote->shards[planned->shard].digest;
        known[planned->parameter] = true;
    }
    weir_status status = WEIR_OK;
    for (size_t i = 0; i < replica->n_parameters && status == WEIR_OK; i++) {
        if (!known[i])
            status = weir_digest_tensor(replica->worker.pool, &replica->live[i], &digests[i]);
    }
    return status;
}

static weir_status list_regions(weir_replica *replica, weir_manifest *manifest)
{
    weir_manifest_region *regions =
        weir_arena_zeroed(&replica->scratch, replica->n_regions, sizeof(*regions));
    if (regions == NULL)
        return WEIR_ERR_NO_MEMORY;
    weir_seal seal = WEIR_SEAL_INIT;
    seal.model = replica->worker.model;
    seal.label = replica->worker.id;
    for (size_t i = 0; i < replica->n_regions; i++) {
        weir_status status = replica->serving.ops->seal(replica->regions[i], &seal);
        if (status == WEIR_OK)
            status = replica->serving.ops->region_key(replica->regions[i], &regions[i].key,
                                                      &regions[i].key_bytes);
        if (status != WEIR_OK)
            return status;
    }
    for (size_t i = 0; i < replica->n_parameters; i++) {
        const weir_shard *held = &replica->held[i];
        uint64_t end = held->offset + held->n_bytes;
        if (end > regions[held->region].n_bytes)
            regions[held->region].n_bytes = end;
    }
    manifest->regions = regions;
    manifest->n_regions = replica->n_regions;
    return WEIR_OK;
}

static weir_status encode_held(weir_replica *replica)
{
    weir_manifest manifest = { .model = replica->worker.model,
                               .run = replica->worker.run,
                               .worker_id = replica->worker.id,
                               .transport = replica->serving.ops->name,
                               .layout_signature = replica->signature,
                               .version = replica->version,
                               .n_ranks = 1,
                               .layout = replica->held_layout.data,
                               .layout_bytes = replica->held_layout.n_bytes,
                               .n_digests = replica->n_parameters };
    weir_arena_reset(&replica->scratch);
    weir_digest *digests =
        weir_arena_zeroed(&replica->scratch, replica->n_parameters, sizeof(*digests));
    manifest.digests = digests;
    weir_status status = digests != NULL ? digest_held(replica, digests) : WEIR_ERR_NO_MEMORY;
    if (status == WEIR_OK)
        status = list_regions(replica, &manifest);
    if (status == WEIR_OK)
        status = replica->serving.ops->address(replica->serving.transport, &manifest.address,
                                               &manifest.address_bytes);
    if (status == WEIR_OK)
        status = weir_manifest_encode(&manifest, &replica->scratch, &replica->manifest);
    if (status == WEIR_OK)
        status = weir_sha256_hex(replica->manifest.data, replica->manifest.n_bytes,
                                 replica->manifest_digest);
    return status;
}

static void set_held(weir_replica *replica, const char *uid)
{
    pthread_mutex_lock(&replica->lock);
    snprintf(replica->held_uid, sizeof(replica->held_uid), "%s", uid);
    pthread_mutex_unlock(&replica->lock);
}

void weir_holding_publish(weir_replica *replica, const weir_discovery *discovery)
{
    if (replica->serving.ops == NULL)
        return;
    /* held_uid is "", so the service does not look at the manifest while it is written; and a
     * manifest that was not finished is none to come back to. */
    replica->published_uid[0] = '\0';
    weir_status status = encode_held(replica);
    if (status != WEIR_OK) {
        weir_log(WEIR_LOG_WARN, "replica %s cannot be read by others: %s", replica->worker.id,
                 weir_last_error());
        return;
    }
    memcpy(replica->published_uid, discovery->uid, sizeof(replica->published_uid));
    set_held(replica, discovery->uid);
}

void weir_holding_withdraw(weir_replica *replica)
{
    set_held(replica, "");
}

void weir_holding_restore(weir_replica *replica)
{
    set_held(replica, replica->published_uid);
}
