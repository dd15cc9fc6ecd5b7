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
#include "plan/box.h"
#include "refit/replica.h"
#include "rpc/rpc_security.h"

/* ---- manifest service ------------------------------------------------------------------------*/

/* Runs in the service's thread; holds the lock until manifest_done(). The slot's name is not
 * looked at: a replica has one. */
static bool manifest_find(void *context, const weir_manifest_request *request,
                          weir_manifest_found *out)
{
    weir_replica *replica = context;
    pthread_mutex_lock(&replica->lock);
    if (replica->held_uid[0] == '\0' || strcmp(replica->held_uid, request->version_uid) != 0 ||
        request->reader[0] != '\0') {
        pthread_mutex_unlock(&replica->lock);
        return false;
    }
    *out = (weir_manifest_found){ replica->manifest.data, replica->manifest.n_bytes,
                                  replica->manifest_digest };
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
    replica->held_digests =
        weir_arena_zeroed(&replica->arena, replica->n_parameters, sizeof(*replica->held_digests));
    if (replica->held == NULL || replica->held_digests == NULL)
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
                              .place = replica->place,
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

/* Memory of a GPU is shared within a host, and an address there is known to nobody else. */
static bool is_read_on_its_host(const weir_replica *replica)
{
    return weir_work_memory(replica->work) == WEIR_MEMORY_CUDA || replica->listen == NULL ||
           weir_host_is_loopback(replica->listen);
}

/* What makes these bytes those that another worker needs, as they are: the same parameters with the
 * same tags, of the same place in engines of the same mesh; and a way to move them. */
static weir_status name_part(weir_replica *replica)
{
    char text[WEIR_MESH_TEXT + 256], hash[WEIR_SHA256_HEX];
    const char *transport = replica->serving.ops->name, *asked = replica->settings.transport;
    const weir_mesh_place *place = &replica->place;
    if (asked != NULL && strcmp(asked, transport) != 0)
        return WEIR_OK;
    snprintf(text, sizeof(text), "1%s %s %s %u.%u.%u %s %s",
             replica->loader != NULL ? " checkpoint" : "", replica->signature, replica->mesh_text,
             place->stage, place->d, place->t, transport,
             is_read_on_its_host(replica) ? replica->worker.host : "");
    weir_status status = weir_sha256_hex(text, strlen(text), hash);
    if (status == WEIR_OK)
        snprintf(replica->part, sizeof(replica->part), "%.32s", hash);
    return status;
}

weir_status weir_holding_open(weir_replica *replica)
{
    weir_manifest_source source = { manifest_find, manifest_done, replica };
    weir_status status =
        weir_manifest_service_open(replica->listen != NULL ? replica->listen : "127.0.0.1", &source,
                                   &replica->worker.security.security, &replica->service);
    if (status == WEIR_OK)
        status = weir_layout_signature(replica->wanted, replica->n_parameters, replica->signature);
    if (status != WEIR_OK || replica->serving.ops == NULL)
        return status;
    status = describe_held(replica);
    if (status == WEIR_OK && replica->n_regions == 0)
        status = expose_each(replica);
    if (status == WEIR_OK)
        status = name_part(replica);
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

static void describe_range(const weir_replica *replica, size_t i, weir_digest *digests,
                           weir_work_range *out)
{
    weir_shape filled = weir_box_shape(&replica->held[i].box);
    digests[i] = (weir_digest){ 0, 0 };
    *out = (weir_work_range){ .name = replica->live[i].name,
                              .data = replica->live[i].data,
                              .dtype = replica->live[i].dtype,
                              .digest = &digests[i] };
    weir_digest_rows_of(out->dtype, &filled, &out->n_rows, &out->row_bytes);
}

static weir_status digest_unknown(weir_replica *replica, const bool *known, weir_digest *digests)
{
    weir_work_range *ranges =
        weir_arena_zeroed(&replica->scratch, replica->n_parameters, sizeof(*ranges));
    size_t n = 0;
    if (ranges == NULL)
        return WEIR_ERR_NO_MEMORY;
    for (size_t i = 0; i < replica->n_parameters; i++) {
        if (known[i])
            continue;
        describe_range(replica, i, digests, &ranges[n++]);
    }
    weir_status status = weir_task_digest(replica->derive, WEIR_LANE_COMPUTE, ranges, n);
    if (status == WEIR_OK)
        status = weir_task_wait(replica->derive, replica->worker.timeout_ms);
    return status;
}

static const weir_shard *shard_of(const weir_schedule *schedule, const weir_plan_copy *planned)
{
    return &schedule->participants[planned->source].remote->shards[planned->shard];
}

/* Rows that pad a parameter have no source, so nobody gets them from here either. */
static weir_status leave_padding_out(weir_replica *replica)
{
    const weir_schedule *schedule = &replica->schedule;
    const uint64_t *padding_rows = schedule->loads ? replica->loader->padding_rows : NULL;
    size_t n = padding_rows != NULL ? replica->n_parameters : schedule->n_copies;
    bool changed = false;
    weir_status status = WEIR_OK;
    for (size_t i = 0; i < n && status == WEIR_OK; i++) {
        const weir_plan_copy *planned = padding_rows == NULL ? &schedule->planned[i] : NULL;
        weir_shard *held = &replica->held[planned != NULL ? planned->parameter : i];
        uint64_t n_rows =
            planned != NULL ? shard_of(schedule, planned)->n_padding_rows : padding_rows[i];
        if (held->n_padding_rows == n_rows)
            continue;
        weir_shape filled = held->global_shape;
        filled.dim[0] -= n_rows; /* the plan has found that many */
        held->n_padding_rows = n_rows;
        held->box = weir_box_whole(&filled);
        status = weir_tensor_bytes(held->dtype, &filled, &held->n_bytes);
        changed = true;
    }
    if (status == WEIR_OK && changed)
        status = weir_layout_encode(replica->held, replica->n_parameters, &replica->scratch,
                                    &replica->held_layout);
    return status;
}

/* Whole parameters have the digest that they came with; what came in pieces, or was computed or
 * converted here, is digested now. */
static weir_status digest_held(weir_replica *replica)
{
    const weir_schedule *schedule = &replica->schedule;
    weir_arena_reset(&replica->scratch);
    weir_status status = leave_padding_out(replica);
    bool *known = weir_arena_zeroed(&replica->scratch, replica->n_parameters, sizeof(*known));
    if (status != WEIR_OK || known == NULL)
        return status != WEIR_OK ? status : WEIR_ERR_NO_MEMORY;
    for (size_t i = 0; i < schedule->n_copies && !schedule->loads; i++) {
        const weir_plan_copy *planned = &schedule->planned[i];
        const weir_shard *shard = shard_of(schedule, planned);
        if (!weir_box_equal(&shard->box, &replica->held[planned->parameter].box))
            continue;
        replica->held_digests[planned->parameter] = shard->digest;
        known[planned->parameter] = true;
    }
    return digest_unknown(replica, known, replica->held_digests);
}

static void note_digested(weir_replica *replica, weir_status status)
{
    replica->is_digested = status == WEIR_OK;
    if (status != WEIR_OK)
        weir_log(WEIR_LOG_WARN, "replica %s cannot be read by others: %s", replica->worker.id,
                 weir_last_error());
}

void weir_holding_digest(weir_replica *replica)
{
    if (replica->serving.ops != NULL)
        note_digested(replica, digest_held(replica));
}

/* One by one: a task that has digested a few has no room for all. */
void weir_holding_digest_anew(weir_replica *replica)
{
    if (replica->serving.ops == NULL)
        return;
    weir_status status = WEIR_OK;
    for (size_t i = 0; i < replica->n_parameters && status == WEIR_OK; i++) {
        weir_work_range range;
        describe_range(replica, i, replica->held_digests, &range);
        status = weir_task_digest(replica->derive, WEIR_LANE_COMPUTE, &range, 1);
        if (status == WEIR_OK)
            status = weir_task_wait(replica->derive, replica->worker.timeout_ms);
    }
    note_digested(replica, status);
}

static weir_status list_regions(weir_replica *replica, weir_arena *scratch,
                                const weir_manifest_region **out)
{
    weir_manifest_region *regions =
        weir_arena_zeroed(scratch, replica->n_regions, sizeof(*regions));
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
    *out = regions;
    return WEIR_OK;
}

static weir_status encode_held(weir_replica *replica)
{
    weir_manifest manifest = { .model = replica->worker.model,
                               .run = replica->worker.run,
                               .worker_id = replica->worker.id,
                               .transport = replica->serving.ops->name,
                               .layout_signature = replica->signature,
                               .engine_mesh = replica->mesh_text,
                               .version = replica->version,
                               .n_ranks = 1,
                               .layout = replica->held_layout.data,
                               .layout_bytes = replica->held_layout.n_bytes,
                               .n_digests = replica->n_parameters };
    weir_arena_reset(&replica->scratch);
    manifest.digests = replica->held_digests;
    manifest.n_regions = replica->n_regions;
    weir_status status = list_regions(replica, &replica->scratch, &manifest.regions);
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

void weir_holding_publish(weir_replica *replica, const char *uid)
{
    /* held_uid is "", so the service does not look at the manifest while it is written; and a
     * manifest that was not finished is none to come back to. */
    replica->published_uid[0] = '\0';
    if (replica->serving.ops == NULL || !replica->is_digested)
        return;
    weir_status status = encode_held(replica);
    if (status != WEIR_OK) {
        weir_log(WEIR_LOG_WARN, "replica %s cannot be read by others: %s", replica->worker.id,
                 weir_last_error());
        return;
    }
    snprintf(replica->published_uid, sizeof(replica->published_uid), "%s", uid);
    set_held(replica, uid);
}

bool weir_holding_serves(const weir_replica *replica, const char *uid)
{
    /* Trainers that push, or send through a window, wait for every reader to come to them. */
    return !replica->serves_nobody && replica->part[0] != '\0' && !replica->schedule.pushed &&
           !weir_group_any(&replica->schedule) && strcmp(replica->published_uid, uid) == 0;
}

void weir_holding_withdraw(weir_replica *replica)
{
    set_held(replica, "");
}

void weir_holding_restore(weir_replica *replica)
{
    set_held(replica, replica->published_uid);
}

/* ---- places ----------------------------------------------------------------------------------*/

/* The region that holds an address, and where in it. */
static bool find_place(const weir_replica *replica, const unsigned char *target,
                       const weir_manifest_region *regions, uint32_t *out_region,
                       uint64_t *out_offset)
{
    for (size_t i = 0; i < replica->n_regions; i++) {
        const unsigned char *base = replica->serving.ops->region_data(replica->regions[i]);
        if (target < base || (uint64_t)(target - base) >= regions[i].n_bytes)
            continue;
        *out_region = (uint32_t)i;
        *out_offset = (uint64_t)(target - base);
        return true;
    }
    return false;
}

static weir_status list_targets(weir_replica *replica, const weir_shard *shards, size_t n_shards,
                                unsigned char *const *targets, weir_arena *scratch,
                                weir_round_places *places)
{
    uint32_t *regions = weir_arena_alloc(scratch, n_shards * sizeof(*regions));
    uint64_t *offsets = weir_arena_alloc(scratch, n_shards * sizeof(*offsets));
    if (regions == NULL || offsets == NULL)
        return WEIR_ERR_NO_MEMORY;
    for (size_t i = 0; i < n_shards; i++) {
        if (!find_place(replica, targets[i], places->regions, &regions[i], &offsets[i]))
            return weir_fail(WEIR_ERR_INTERNAL, "%s lies in no region that is exposed",
                             shards[i].name);
    }
    places->target_regions = regions;
    places->target_offsets = offsets;
    places->n_targets = n_shards;
    return WEIR_OK;
}

static weir_status list_windows(weir_replica *replica, weir_arena *scratch,
                                weir_round_places *places)
{
    weir_manifest_region *region = weir_arena_zeroed(scratch, 1, sizeof(*region));
    if (region == NULL)
        return WEIR_ERR_NO_MEMORY;
    region->n_bytes = replica->window_bytes * WEIR_REPLICA_WINDOWS;
    places->regions = region;
    places->n_regions = 1;
    return replica->serving.ops->region_key(replica->windows, &region->key, &region->key_bytes);
}

weir_status weir_replica_places(weir_replica *replica, const weir_shard *shards, size_t n_shards,
                                unsigned char *const *targets, weir_arena *scratch)
{
    const weir_link *serving = &replica->serving;
    if (serving->ops == NULL)
        return weir_fail(WEIR_ERR_UNSUPPORTED,
                         "replica %s has no transport by which its memory could be written",
                         replica->worker.id);
    weir_round_places places = { .transport = serving->ops->name, .n_regions = replica->n_regions };
    weir_status status =
        serving->ops->address(serving->transport, &places.address, &places.address_bytes);
    if (status == WEIR_OK && weir_attend_by_windows(replica)) {
        status = list_windows(replica, scratch, &places);
    } else if (status == WEIR_OK) {
        status = list_regions(replica, scratch, &places.regions);
        if (status == WEIR_OK)
            status = list_targets(replica, shards, n_shards, targets, scratch, &places);
    }
    if (status == WEIR_OK)
        status = weir_round_places_encode(&places, scratch, &replica->places);
    return status;
}
