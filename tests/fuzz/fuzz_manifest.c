/* SPDX-License-Identifier: Apache-2.0 */
/* fuzz_manifest.c - any bytes as a manifest, as a layout, and as what a reader of a group is told:
 * decoded within bounds and with what manifest.h promises of every shard and group, or refused; and
 * whatever was decoded, a plan of it stays within its parameter. */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "plan/box.h"
#include "plan/shard_match.h"
#include "refit/manifest.h"

#define CAP_BYTES ((size_t)16 << 20)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void must(bool holds)
{
    if (!holds)
        abort();
}

static void look_at_shard(const weir_shard *shard, const weir_manifest_region *regions)
{
    uint64_t region_bytes = regions[shard->region].n_bytes;
    must(shard->name[0] != '\0' && weir_dtype_bits(shard->dtype) != 0);
    must(shard->offset <= region_bytes && shard->n_bytes <= region_bytes - shard->offset);
    must(shard->n_padding_rows == 0 || shard->n_padding_rows <= shard->global_shape.dim[0]);
    weir_shape filled = weir_shard_filled(shard);
    must(weir_box_fits(&shard->box, &filled));
}

/* Encoded again, a layout decodes to as many shards. */
static void look_at_layout(const weir_shard *shards, size_t n_shards,
                           const weir_manifest_region *regions, size_t n_regions, weir_arena *arena)
{
    weir_buffer again = { 0 };
    weir_shard *other;
    size_t n_other;
    for (size_t i = 0; i < n_shards; i++)
        look_at_shard(&shards[i], regions);
    if (weir_layout_encode(shards, n_shards, arena, &again) == WEIR_OK) {
        weir_status status = weir_layout_decode(again.data, again.n_bytes, regions, n_regions,
                                                arena, &other, &n_other);
        must(status == WEIR_ERR_NO_MEMORY || (status == WEIR_OK && n_other == n_shards));
    }
    weir_buffer_free(&again);
}

/* Plans the parameter of the first shard, for a worker that shard is for. */
static void plan_first(const weir_shard *shards, size_t n_shards)
{
    const weir_shard *first = &shards[0];
    const weir_parameter wanted = { .name = first->name,
                                    .dtype = first->dtype,
                                    .shape = first->global_shape,
                                    .compile_target = first->compile_target,
                                    .compile_metadata = first->compile_metadata };
    weir_mesh_place place = first->place;
    place.stage = place.stage == WEIR_ANY ? 0 : place.stage;
    place.d = place.d == WEIR_ANY ? 0 : place.d;
    place.t = place.t == WEIR_ANY ? 0 : place.t;
    size_t n_same = 1, n_copies;
    while (n_same < n_shards && strcmp(shards[n_same].name, first->name) == 0)
        n_same++;
    const weir_plan_source source = { "fuzz", shards, n_same };
    weir_plan *plan;
    uint64_t whole_bytes;
    if (weir_plan_open(&wanted, 1, &place, &source, 1, &plan) != WEIR_OK)
        return;
    must(weir_tensor_bytes(wanted.dtype, &wanted.shape, &whole_bytes) == WEIR_OK);
    const weir_plan_copy *copies = weir_plan_copies(plan, &n_copies);
    for (size_t i = 0; i < n_copies; i++) {
        const weir_plan_copy *copy = &copies[i];
        must(copy->run_bytes > 0 && copy->n_bytes % copy->run_bytes == 0);
        uint64_t last = (copy->n_bytes / copy->run_bytes - 1) * copy->pitch_bytes;
        must(copy->parameter_offset + last + copy->run_bytes <= whole_bytes);
        must(copy->packed_offset + copy->n_bytes <= weir_plan_bytes(plan));
    }
    must(weir_plan_bytes(plan) <= whole_bytes);
    weir_plan_close(plan);
}

static void decode_layout(const void *bytes, size_t n_bytes, const weir_manifest_region *regions,
                          size_t n_regions, weir_arena *arena)
{
    weir_shard *shards;
    size_t n_shards;
    if (weir_layout_decode(bytes, n_bytes, regions, n_regions, arena, &shards, &n_shards) !=
        WEIR_OK)
        return;
    look_at_layout(shards, n_shards, regions, n_regions, arena);
    if (n_shards > 0)
        plan_first(shards, n_shards);
}

/* Groups that are broadcast: what readers count on without a look of their own. */
static void look_at_groups(const weir_manifest *manifest)
{
    uint32_t end = 0, key = 0;
    bool none = manifest->group_bytes == NULL;
    must(none == (manifest->group_keys == NULL) && none == (manifest->group_audiences == NULL));
    for (size_t g = 0; g < manifest->n_groups; g++) {
        must(manifest->group_ends[g] > end && manifest->group_ends[g] <= manifest->n_digests);
        end = manifest->group_ends[g];
        if (none)
            continue;
        must(manifest->group_keys[g] >= key && manifest->group_audiences[g] < WEIR_MAX_AUDIENCES);
        key = manifest->group_keys[g];
    }
}

/* What a reader of a group is told; encoded again it says the same. */
static void decode_record(const void *bytes, size_t n_bytes, weir_arena *arena)
{
    weir_buffer again = { 0 };
    weir_group_record record, other;
    if (weir_group_record_decode(bytes, n_bytes, arena, &record) != WEIR_OK)
        return;
    must(record.format <= WEIR_GROUP_FORMAT && record.n_memberships <= WEIR_MAX_AUDIENCES);
    for (size_t i = 0; i < record.n_memberships; i++) {
        const weir_membership *place = &record.memberships[i];
        const unsigned char *key = place->key;
        must(place->audience < WEIR_MAX_AUDIENCES && place->position > 0);
        must(place->position < place->n_members);
        must((key[0] ^ key[WEIR_GROUP_KEY_BYTES - 1]) < 256); /* all of it is there */
    }
    if (weir_group_record_encode(&record, &again) == WEIR_OK &&
        weir_group_record_decode(again.data, again.n_bytes, arena, &other) == WEIR_OK)
        must(other.version == record.version && other.n_bytes == record.n_bytes &&
             other.n_digests == record.n_digests && other.n_memberships == record.n_memberships);
    weir_buffer_free(&again);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    weir_arena arena;
    weir_manifest manifest;
    weir_arena_init(&arena, CAP_BYTES);
    if (weir_manifest_decode(data, size, &arena, &manifest) == WEIR_OK) {
        must(strlen(manifest.engine_mesh) < WEIR_MESH_TEXT);
        must(strlen(manifest.plan) < WEIR_PLAN_TEXT);
        look_at_groups(&manifest);
        decode_layout(manifest.layout, manifest.layout_bytes, manifest.regions, manifest.n_regions,
                      &arena);
    }
    weir_arena_reset(&arena);
    const weir_manifest_region region = { data, 1, 1u << 20 };
    decode_layout(data, size, &region, 1, &arena);
    weir_arena_reset(&arena);
    decode_record(data, size, &arena);
    weir_arena_close(&arena);
    return 0;
}
