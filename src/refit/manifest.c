/* SPDX-License-Identifier: Apache-2.0 */
/* manifest.c - manifests to bytes and back, by protobuf-c, with every number checked.
 *
 * The layout travels in them as bytes: layout_encode.c writes them, layout_decode.c reads them.
 */
#include "refit/manifest.h"

#include <string.h>

#include "base/alloc.h"
#include "base/error.h"
#include "manifest.pb-c.h"

#define FORMAT 2u
/* The next version's message may be a few bytes longer: numbers grow. */
#define SLACK_BYTES 64u

weir_status weir_buffer_reserve(weir_buffer *buffer, size_t n_bytes)
{
    if (buffer->capacity_bytes >= n_bytes)
        return WEIR_OK;
    size_t capacity_bytes = n_bytes + SLACK_BYTES;
    if (capacity_bytes < n_bytes)
        capacity_bytes = n_bytes;
    unsigned char *data = weir_realloc(buffer->data, capacity_bytes);
    if (data == NULL)
        return WEIR_ERR_NO_MEMORY;
    buffer->data = data;
    buffer->capacity_bytes = capacity_bytes;
    return WEIR_OK;
}

void weir_buffer_free(weir_buffer *buffer)
{
    weir_free(buffer->data);
    *buffer = (weir_buffer){ 0 };
}

static weir_status pack(const ProtobufCMessage *message, weir_buffer *out)
{
    size_t n_bytes = protobuf_c_message_get_packed_size(message);
    weir_status status = weir_buffer_reserve(out, n_bytes);
    if (status == WEIR_OK)
        out->n_bytes = protobuf_c_message_pack(message, out->data);
    return status;
}

static void *arena_alloc(void *arena, size_t n_bytes)
{
    return weir_arena_alloc(arena, n_bytes);
}

static void arena_free(void *arena, void *piece)
{
    (void)arena, (void)piece; /* goes with the arena */
}

/* ---- manifest --------------------------------------------------------------------------------*/

_Static_assert(sizeof(weir_digest) == 2 * sizeof(uint64_t), "digests travel as pairs of fixed64");

weir_status weir_manifest_encode(const weir_manifest *manifest, weir_arena *arena, weir_buffer *out)
{
    Weir__Manifest__Manifest message = WEIR__MANIFEST__MANIFEST__INIT;
    Weir__Manifest__Region *storage =
        weir_arena_alloc(arena, manifest->n_regions * sizeof(*storage));
    message.regions = weir_arena_alloc(arena, manifest->n_regions * sizeof(*message.regions));
    if (storage == NULL || message.regions == NULL)
        return WEIR_ERR_NO_MEMORY;
    for (size_t i = 0; i < manifest->n_regions; i++) {
        weir__manifest__region__init(&storage[i]);
        storage[i].key.data = (uint8_t *)manifest->regions[i].key;
        storage[i].key.len = manifest->regions[i].key_bytes;
        storage[i].n_bytes = manifest->regions[i].n_bytes;
        message.regions[i] = &storage[i];
    }
    message.n_regions = manifest->n_regions;
    message.format = FORMAT;
    message.model = (char *)manifest->model;
    message.run = (char *)manifest->run;
    message.version = manifest->version;
    message.worker_id = (char *)manifest->worker_id;
    message.rank = manifest->rank;
    message.n_ranks = manifest->n_ranks;
    message.transport = (char *)manifest->transport;
    message.layout_signature = (char *)manifest->layout_signature;
    if (manifest->push_address != NULL)
        message.push_address = (char *)manifest->push_address;
    if (manifest->engine_mesh != NULL)
        message.engine_mesh = (char *)manifest->engine_mesh;
    if (manifest->plan != NULL)
        message.plan = (char *)manifest->plan;
    message.address.data = (uint8_t *)manifest->address;
    message.address.len = manifest->address_bytes;
    message.layout.data = (uint8_t *)manifest->layout;
    message.layout.len = manifest->layout_bytes;
    message.digests = (uint64_t *)(void *)manifest->digests;
    message.n_digests = 2 * manifest->n_digests;
    message.group_ends = (uint32_t *)manifest->group_ends;
    message.n_group_ends = manifest->n_groups;
    if (manifest->group_bytes != NULL) {
        message.group_bytes = (uint64_t *)manifest->group_bytes;
        message.group_keys = (uint32_t *)manifest->group_keys;
        message.group_audiences = (uint32_t *)manifest->group_audiences;
        message.n_group_bytes = message.n_group_keys = message.n_group_audiences =
            manifest->n_groups;
    }
    return pack(&message.base, out);
}

static weir_status read_regions(const Weir__Manifest__Manifest *message, weir_arena *arena,
                                weir_manifest *out)
{
    weir_manifest_region *regions = weir_arena_alloc(arena, message->n_regions * sizeof(*regions));
    if (regions == NULL)
        return WEIR_ERR_NO_MEMORY;
    for (size_t i = 0; i < message->n_regions; i++)
        regions[i] =
            (weir_manifest_region){ message->regions[i]->key.data, message->regions[i]->key.len,
                                    message->regions[i]->n_bytes };
    out->regions = regions;
    out->n_regions = message->n_regions;
    return WEIR_OK;
}

/* Groups that follow each other, none of them empty, and leave no shard out. */
static weir_status check_groups(const Weir__Manifest__Manifest *message)
{
    uint32_t end = 0;
    for (size_t g = 0; g < message->n_group_ends; g++) {
        if (message->group_ends[g] <= end)
            return weir_fail(WEIR_ERR_CORRUPT, "manifest: group %zu ends with shard %u of %zu", g,
                             message->group_ends[g], message->n_digests / 2);
        end = message->group_ends[g];
    }
    if (message->n_group_ends > 0 && end != message->n_digests / 2)
        return weir_fail(WEIR_ERR_CORRUPT, "manifest: %zu groups have %u shards of %zu",
                         message->n_group_ends, end, message->n_digests / 2);
    return WEIR_OK;
}

/* A number of each kind for every group, or none. */
static weir_status check_broadcast(const Weir__Manifest__Manifest *message)
{
    size_t n = message->n_group_ends;
    if (message->n_group_bytes == 0 && message->n_group_keys == 0 &&
        message->n_group_audiences == 0)
        return WEIR_OK;
    if (message->n_group_bytes != n || message->n_group_keys != n ||
        message->n_group_audiences != n)
        return weir_fail(WEIR_ERR_CORRUPT,
                         "manifest: of %zu groups that are broadcast %zu sizes, %zu keys and %zu "
                         "audiences are told",
                         n, message->n_group_bytes, message->n_group_keys,
                         message->n_group_audiences);
    for (size_t g = 0; g < n; g++) {
        if (message->group_audiences[g] >= WEIR_MAX_AUDIENCES)
            return weir_fail(WEIR_ERR_CORRUPT, "manifest: group %zu is for audience %u of %u", g,
                             message->group_audiences[g], WEIR_MAX_AUDIENCES);
        if (g > 0 && message->group_keys[g] < message->group_keys[g - 1])
            return weir_fail(WEIR_ERR_CORRUPT, "manifest: group %zu has key %u, behind key %u", g,
                             message->group_keys[g], message->group_keys[g - 1]);
    }
    return WEIR_OK;
}

weir_status weir_manifest_decode(const void *bytes, size_t n_bytes, weir_arena *arena,
                                 weir_manifest *out)
{
    ProtobufCAllocator allocator = { arena_alloc, arena_free, arena };
    Weir__Manifest__Manifest *message =
        weir__manifest__manifest__unpack(&allocator, n_bytes, bytes);
    if (message == NULL)
        return weir_fail(WEIR_ERR_CORRUPT, "manifest of %zu bytes does not decode", n_bytes);
    if (message->format != FORMAT)
        return weir_fail(WEIR_ERR_UNSUPPORTED, "manifest format %u, this build reads %u",
                         message->format, FORMAT);
    if (message->n_digests % 2 != 0)
        return weir_fail(WEIR_ERR_CORRUPT, "manifest has %zu halves of digests",
                         message->n_digests);
    if (strlen(message->engine_mesh) >= WEIR_MESH_TEXT)
        return weir_fail(WEIR_ERR_CORRUPT, "manifest has an engine mesh of %zu bytes",
                         strlen(message->engine_mesh));
    if (strlen(message->plan) >= WEIR_PLAN_TEXT)
        return weir_fail(WEIR_ERR_CORRUPT, "manifest has a plan of %zu bytes",
                         strlen(message->plan));
    weir_status status = check_groups(message);
    if (status == WEIR_OK)
        status = check_broadcast(message);
    if (status != WEIR_OK)
        return status;
    *out = (weir_manifest){ .model = message->model,
                            .run = message->run,
                            .worker_id = message->worker_id,
                            .transport = message->transport,
                            .layout_signature = message->layout_signature,
                            .push_address = message->push_address,
                            .engine_mesh = message->engine_mesh,
                            .plan = message->plan,
                            .version = message->version,
                            .rank = message->rank,
                            .n_ranks = message->n_ranks,
                            .address = message->address.data,
                            .address_bytes = message->address.len,
                            .layout = message->layout.data,
                            .layout_bytes = message->layout.len,
                            .digests = (const weir_digest *)(const void *)message->digests,
                            .n_digests = message->n_digests / 2,
                            .group_ends = message->group_ends,
                            .n_groups = message->n_group_ends };
    if (message->n_group_bytes > 0) {
        out->group_bytes = message->group_bytes;
        out->group_keys = message->group_keys;
        out->group_audiences = message->group_audiences;
    }
    return read_regions(message, arena, out);
}

/* ---- groups ----------------------------------------------------------------------------------*/

/* Points the message at as many places in broadcast groups as the record names. */
static weir_status list_memberships(const weir_group_record *record,
                                    Weir__Manifest__Membership *storage,
                                    Weir__Manifest__Membership **listed,
                                    Weir__Manifest__Group *message)
{
    if (record->n_memberships > WEIR_MAX_AUDIENCES)
        return weir_fail(WEIR_ERR_INVALID, "a reader in %zu broadcast groups, at most %u are known",
                         record->n_memberships, WEIR_MAX_AUDIENCES);
    for (size_t i = 0; i < record->n_memberships; i++) {
        const weir_membership *from = &record->memberships[i];
        weir__manifest__membership__init(&storage[i]);
        storage[i].audience = from->audience;
        storage[i].group_key.data = (uint8_t *)from->key;
        storage[i].group_key.len = WEIR_GROUP_KEY_BYTES;
        storage[i].position = from->position;
        storage[i].n_members = from->n_members;
        listed[i] = &storage[i];
    }
    message->memberships = listed;
    message->n_memberships = record->n_memberships;
    return WEIR_OK;
}

weir_status weir_group_record_encode(const weir_group_record *record, weir_buffer *out)
{
    Weir__Manifest__Membership storage[WEIR_MAX_AUDIENCES], *listed[WEIR_MAX_AUDIENCES];
    Weir__Manifest__Group message = WEIR__MANIFEST__GROUP__INIT;
    weir_status status = list_memberships(record, storage, listed, &message);
    if (status != WEIR_OK)
        return status;
    message.format = record->format;
    message.version = record->version;
    message.group = record->group;
    message.n_groups = record->n_groups;
    message.n_bytes = record->n_bytes;
    message.left_out = record->left_out;
    if (record->run != NULL)
        message.run = (char *)record->run;
    if (record->version_uid != NULL)
        message.version_uid = (char *)record->version_uid;
    message.state = record->state;
    message.round = record->round;
    message.digests = (uint64_t *)(void *)record->digests;
    message.n_digests = 2 * record->n_digests;
    if (record->why != NULL)
        message.why = (char *)record->why;
    return pack(&message.base, out);
}

static weir_status read_memberships(const Weir__Manifest__Group *message, weir_arena *arena,
                                    weir_group_record *out)
{
    size_t n = message->n_memberships;
    if (n > WEIR_MAX_AUDIENCES)
        return weir_fail(WEIR_ERR_CORRUPT, "record of a group: %zu memberships, at most %u", n,
                         WEIR_MAX_AUDIENCES);
    weir_membership *memberships = weir_arena_zeroed(arena, n + 1, sizeof(*memberships));
    if (memberships == NULL)
        return WEIR_ERR_NO_MEMORY;
    for (size_t i = 0; i < n; i++) {
        const Weir__Manifest__Membership *from = message->memberships[i];
        if (from->audience >= WEIR_MAX_AUDIENCES || from->group_key.len != WEIR_GROUP_KEY_BYTES ||
            from->position == 0 || from->position >= from->n_members)
            return weir_fail(WEIR_ERR_CORRUPT,
                             "record of a group: member %u of %u of broadcast group %u, with a key "
                             "of %zu bytes",
                             from->position, from->n_members, from->audience, from->group_key.len);
        memberships[i] = (weir_membership){ from->audience, from->group_key.data, from->position,
                                            from->n_members };
    }
    out->memberships = memberships;
    out->n_memberships = n;
    return WEIR_OK;
}

weir_status weir_group_record_decode(const void *bytes, size_t n_bytes, weir_arena *arena,
                                     weir_group_record *out)
{
    ProtobufCAllocator allocator = { arena_alloc, arena_free, arena };
    Weir__Manifest__Group *message = weir__manifest__group__unpack(&allocator, n_bytes, bytes);
    if (message == NULL)
        return weir_fail(WEIR_ERR_CORRUPT, "record of a group, %zu bytes, does not decode",
                         n_bytes);
    if (message->n_digests % 2 != 0)
        return weir_fail(WEIR_ERR_CORRUPT, "record of a group has %zu halves of digests",
                         message->n_digests);
    if (message->format > WEIR_GROUP_FORMAT)
        return weir_fail(WEIR_ERR_UNSUPPORTED, "record of a group: format %u, this build reads %u",
                         message->format, WEIR_GROUP_FORMAT);
    *out = (weir_group_record){ .state = message->state,
                                .round = message->round,
                                .digests = (const weir_digest *)(const void *)message->digests,
                                .n_digests = message->n_digests / 2,
                                .why = message->why,
                                .format = message->format,
                                .run = message->run,
                                .version = message->version,
                                .version_uid = message->version_uid,
                                .group = message->group,
                                .n_groups = message->n_groups,
                                .n_bytes = message->n_bytes,
                                .left_out = message->left_out };
    return read_memberships(message, arena, out);
}
