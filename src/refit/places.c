/* SPDX-License-Identifier: Apache-2.0 */
/* places.c - decodes, checks and maps the memory that another worker takes bytes in. */
#include "refit/places.h"

#include <inttypes.h>
#include <string.h>

#include "base/error.h"

#define PLACES_CAP_BYTES ((size_t)256 << 20)

void weir_places_drop(weir_places *places)
{
    for (size_t i = 0; i < places->n_mapped; i++)
        places->link.ops->forget(places->remotes[i]);
    if (places->peer != NULL)
        places->link.ops->disconnect(places->peer);
    weir_buffer_free(&places->bytes);
    weir_arena_close(&places->arena);
    *places = (weir_places){ 0 };
}

static weir_status keep_bytes(weir_places *places, const weir_places_told *told)
{
    weir_status status = weir_buffer_reserve(&places->bytes, told->n_bytes ? told->n_bytes : 1);
    if (status != WEIR_OK)
        return status;
    if (told->n_bytes > 0)
        memcpy(places->bytes.data, told->bytes, told->n_bytes);
    places->bytes.n_bytes = told->n_bytes;
    weir_arena_init(&places->arena, PLACES_CAP_BYTES);
    return weir_round_places_decode(places->bytes.data, places->bytes.n_bytes, &places->arena,
                                    &places->told);
}

static weir_status check_windows(const weir_places *places)
{
    uint64_t n_bytes;
    if (places->told.n_regions == 1 &&
        !__builtin_mul_overflow(places->n_windows, places->window_bytes, &n_bytes) &&
        n_bytes <= places->told.regions[0].n_bytes)
        return WEIR_OK;
    return weir_fail(WEIR_ERR_CORRUPT,
                     "%u windows of %" PRIu64 " bytes do not fit the %zu regions that are told",
                     places->n_windows, places->window_bytes, places->told.n_regions);
}

static weir_status check_targets(const weir_places *places, const weir_shard *shards,
                                 size_t n_shards)
{
    if (places->told.n_targets != n_shards)
        return weir_fail(WEIR_ERR_CORRUPT, "places for %zu shards are told, there are %zu",
                         places->told.n_targets, n_shards);
    for (size_t i = 0; i < n_shards; i++) {
        const weir_manifest_region *region = &places->told.regions[places->told.target_regions[i]];
        uint64_t offset = places->told.target_offsets[i];
        if (offset > region->n_bytes || shards[i].n_bytes > region->n_bytes - offset)
            return weir_fail(WEIR_ERR_CORRUPT,
                             "%s: %" PRIu64 " bytes at %" PRIu64 " of a region of %" PRIu64,
                             shards[i].name, shards[i].n_bytes, offset, region->n_bytes);
    }
    return WEIR_OK;
}

/* What is written must lie within what is mapped, whatever was told. */
static weir_status map_region(weir_places *places, size_t i, const char *who)
{
    const weir_transport_ops *ops = places->link.ops;
    const weir_manifest_region *told = &places->told.regions[i];
    void *mapped = NULL;
    uint64_t n_bytes = 0;
    weir_status status = ops->import(places->peer, told->key, told->key_bytes, &places->remotes[i]);
    if (status != WEIR_OK)
        return status;
    places->n_mapped = i + 1;
    status = ops->map(places->remotes[i], &mapped, &n_bytes);
    if (status == WEIR_OK && n_bytes < told->n_bytes)
        status = weir_fail(WEIR_ERR_CORRUPT,
                           "%s: region %zu has %" PRIu64 " bytes, %" PRIu64 " are told", who, i,
                           n_bytes, told->n_bytes);
    places->mapped[i] = mapped;
    return status;
}

static weir_status map_regions(weir_places *places, weir_worker *worker, const char *who)
{
    const weir_round_places *told = &places->told;
    weir_status status = weir_worker_link(worker, told->transport, &places->link);
    if (status != WEIR_OK)
        return status;
    worker->counters.connections++;
    status = places->link.ops->connect(places->link.transport, told->address, told->address_bytes,
                                       who, worker->timeout_ms, &places->peer);
    places->remotes = weir_arena_zeroed(&places->arena, told->n_regions, sizeof(*places->remotes));
    places->mapped = weir_arena_zeroed(&places->arena, told->n_regions, sizeof(*places->mapped));
    if (status == WEIR_OK && (places->remotes == NULL || places->mapped == NULL))
        status = WEIR_ERR_NO_MEMORY;
    for (size_t i = 0; i < told->n_regions && status == WEIR_OK; i++)
        status = map_region(places, i, who);
    return status;
}

weir_status weir_places_take(weir_places *places, weir_worker *worker, const weir_places_told *told,
                             const weir_shard *shards, size_t n_shards)
{
    bool same = places->n_mapped > 0 && places->bytes.n_bytes == told->n_bytes &&
                memcmp(places->bytes.data, told->bytes, told->n_bytes) == 0;
    weir_status status = WEIR_OK;
    if (!same) {
        weir_places_drop(places);
        status = keep_bytes(places, told);
    }
    places->staged = told->staged;
    places->n_windows = told->n_windows;
    places->window_bytes = told->window_bytes;
    if (status == WEIR_OK)
        status = told->staged ? check_windows(places) : check_targets(places, shards, n_shards);
    if (status != WEIR_OK)
        weir_error_prefix("%s", told->who);
    if (status == WEIR_OK && !same)
        status = map_regions(places, worker, told->who);
    if (status != WEIR_OK) {
        weir_error_line cause;
        weir_error_save(&cause);
        weir_places_drop(places);
        weir_error_restore(&cause);
    }
    return status;
}

void *weir_places_at(const weir_places *places, uint32_t step, uint32_t shard, uint64_t offset,
                     uint64_t packed_offset)
{
    if (places->staged)
        return places->mapped[0] + step % places->n_windows * places->window_bytes + packed_offset;
    return places->mapped[places->told.target_regions[shard]] + places->told.target_offsets[shard] +
           offset;
}
