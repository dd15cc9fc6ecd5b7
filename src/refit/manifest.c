/* SPDX-License-Identifier: Apache-2.0 */
/* manifest.c - manifests to bytes and back, by protobuf-c, with every number checked.
 *
 * Tags repeat from shard to shard, so they travel once each and shards refer to them by index; a
 * name travels with the first of the shards in a row that have it. An encoding is a function of the
 * shards and gives each of them back, so equal bytes are equal layouts and the other way round.
 * layout_decode.c reads them.
 */
#include "refit/manifest.h"

#include <string.h>

#include "base/alloc.h"
#include "base/error.h"
#include "manifest.pb-c.h"

#define FORMAT 1u
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

/* ---- layout ----------------------------------------------------------------------------------*/

typedef struct tag_table {
    Weir__Manifest__Tag **tags;
    size_t n_tags;
} tag_table;

static uint32_t tag_of(tag_table *table, Weir__Manifest__Tag *storage, const weir_shard *shard)
{
    for (size_t i = 0; i < table->n_tags; i++) {
        if (strcmp(table->tags[i]->compile_target, shard->compile_target) == 0 &&
            strcmp(table->tags[i]->compile_metadata, shard->compile_metadata) == 0)
            return (uint32_t)i;
    }
    Weir__Manifest__Tag *tag = &storage[table->n_tags];
    weir__manifest__tag__init(tag);
    tag->compile_target = (char *)shard->compile_target;
    tag->compile_metadata = (char *)shard->compile_metadata;
    table->tags[table->n_tags] = tag;
    return (uint32_t)table->n_tags++;
}

/* Small numbers take one byte, and so does WEIR_ANY. */
static int32_t pack_place(uint32_t place)
{
    return place == WEIR_ANY ? -1 : (int32_t)place;
}

static void fill_shard(Weir__Manifest__Shard *message, const weir_shard *shard, const char *before,
                       uint32_t tag)
{
    weir__manifest__shard__init(message);
    if (strcmp(shard->name, before) != 0)
        message->name = (char *)shard->name;
    message->dtype = (uint32_t)shard->dtype;
    message->n_global_shape = message->n_lo = message->n_hi = shard->global_shape.rank;
    message->global_shape = (uint64_t *)shard->global_shape.dim;
    message->lo = (uint64_t *)shard->box.lo;
    message->hi = (uint64_t *)shard->box.hi;
    message->tag = tag;
    message->region = shard->region;
    message->offset = shard->offset;
    message->n_bytes = shard->n_bytes;
    message->stage = pack_place(shard->place.stage);
    message->d = pack_place(shard->place.d);
    message->t = pack_place(shard->place.t);
    message->n_padding_rows = shard->n_padding_rows;
}

weir_status weir_layout_encode(const weir_shard *shards, size_t n_shards, weir_arena *arena,
                               weir_buffer *out)
{
    Weir__Manifest__Layout layout = WEIR__MANIFEST__LAYOUT__INIT;
    Weir__Manifest__Shard *storage = weir_arena_alloc(arena, n_shards * sizeof(*storage));
    Weir__Manifest__Tag *tags = weir_arena_alloc(arena, n_shards * sizeof(*tags));
    tag_table table = { weir_arena_alloc(arena, n_shards * sizeof(*table.tags)), 0 };
    layout.shards = weir_arena_alloc(arena, n_shards * sizeof(*layout.shards));
    if (storage == NULL || tags == NULL || table.tags == NULL || layout.shards == NULL)
        return WEIR_ERR_NO_MEMORY;
    for (size_t i = 0; i < n_shards; i++) {
        fill_shard(&storage[i], &shards[i], i > 0 ? shards[i - 1].name : "",
                   tag_of(&table, tags, &shards[i]));
        layout.shards[i] = &storage[i];
    }
    layout.n_shards = n_shards;
    layout.tags = table.tags;
    layout.n_tags = table.n_tags;
    return pack(&layout.base, out);
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
    return read_regions(message, arena, out);
}

/* ---- groups ----------------------------------------------------------------------------------*/

weir_status weir_group_record_encode(const weir_group_record *record, weir_buffer *out)
{
    Weir__Manifest__Group message = WEIR__MANIFEST__GROUP__INIT;
    message.state = record->state;
    message.round = record->round;
    message.digests = (uint64_t *)(void *)record->digests;
    message.n_digests = 2 * record->n_digests;
    if (record->why != NULL)
        message.why = (char *)record->why;
    return pack(&message.base, out);
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
    *out = (weir_group_record){ .state = message->state,
                                .round = message->round,
                                .digests = (const weir_digest *)(const void *)message->digests,
                                .n_digests = message->n_digests / 2,
                                .why = message->why };
    return WEIR_OK;
}
