/* SPDX-License-Identifier: Apache-2.0 */
/* ucx_kept.c - what a group has registered to be read, and what it may read of the rank before.
 *
 * Trainers and readers broadcast from the same few buffers, version after version: what was
 * registered for one broadcast serves those that follow, and the second version registers nothing.
 * A group keeps WEIR_UCX_KEPT of either kind, and those that have not been needed for longest go.
 */
#include <string.h>

#include "base/alloc.h"
#include "transport/transport_table.h"
#include "transport/ucx_group.h"

/* ---- to be read ------------------------------------------------------------------------------*/

static void drop_region(ucx_kept *kept, size_t index)
{
    weir_transport_ucx.release(kept->regions[index].region);
    kept->regions[index] = kept->regions[--kept->n_regions];
}

static bool covers(const ucx_kept_region *region, const uint8_t *data, uint64_t n_bytes)
{
    uint64_t from = (uintptr_t)data - (uintptr_t)region->data;
    return data >= region->data && from <= region->n_bytes && n_bytes <= region->n_bytes - from;
}

/* Buffers are filled to different degrees: what a longer region covers is needed no more. */
static void make_room(ucx_kept *kept, const weir_group_part *part, uint64_t n_taken)
{
    const ucx_kept_region whole = { .data = part->data, .n_bytes = part->n_bytes };
    size_t oldest = kept->n_regions;
    for (size_t i = kept->n_regions; i-- > 0;) {
        const ucx_kept_region *region = &kept->regions[i];
        if (region->last_cast < n_taken && covers(&whole, region->data, region->n_bytes))
            drop_region(kept, i);
    }
    if (kept->n_regions < WEIR_UCX_KEPT)
        return;
    oldest = 0;
    for (size_t i = 1; i < kept->n_regions; i++) {
        if (kept->regions[i].last_cast < kept->regions[oldest].last_cast)
            oldest = i;
    }
    if (kept->regions[oldest].last_cast < n_taken)
        drop_region(kept, oldest);
}

static weir_status add_region(ucx_kept *kept, weir_transport *data, const weir_group_part *part)
{
    const weir_seal seal = WEIR_SEAL_INIT;
    ucx_kept_region region = { .data = part->data, .n_bytes = part->n_bytes };
    if (kept->n_regions == kept->region_room) {
        size_t room = kept->region_room * 2 + 8;
        ucx_kept_region *grown = weir_realloc(kept->regions, room * sizeof(*grown));
        if (grown == NULL)
            return WEIR_ERR_NO_MEMORY;
        kept->regions = grown;
        kept->region_room = room;
    }
    weir_status status = weir_transport_ucx.expose(data, part->data, part->n_bytes, &region.region);
    if (status != WEIR_OK)
        return status;
    (void)weir_transport_ucx.seal(region.region, &seal);
    kept->regions[kept->n_regions++] = region;
    return WEIR_OK;
}

weir_status weir_ucx_keep_region(ucx_kept *kept, weir_transport *data, const weir_group_part *part,
                                 uint64_t number, uint64_t n_taken, ucx_kept_region *out)
{
    size_t at = 0;
    while (at < kept->n_regions && !covers(&kept->regions[at], part->data, part->n_bytes))
        at++;
    if (at == kept->n_regions) {
        make_room(kept, part, n_taken);
        weir_status status = add_region(kept, data, part);
        if (status != WEIR_OK)
            return status;
        at = kept->n_regions - 1;
    }
    kept->regions[at].last_cast = number;
    *out = kept->regions[at];
    return WEIR_OK;
}

void weir_ucx_kept_release(ucx_kept *kept)
{
    while (kept->n_regions > 0)
        drop_region(kept, kept->n_regions - 1);
    weir_free(kept->regions);
    kept->regions = NULL;
    kept->region_room = 0;
}

/* ---- to read ---------------------------------------------------------------------------------*/

static void drop_remote(ucx_kept *kept, size_t index)
{
    weir_transport_ucx.forget(kept->remotes[index].remote);
    weir_free(kept->remotes[index].key);
    kept->remotes[index] = kept->remotes[--kept->n_remotes];
}

/* Broadcasts are read one after another, so whatever is of an earlier one may go. */
static void drop_oldest_remote(ucx_kept *kept, uint64_t number)
{
    size_t oldest = 0;
    for (size_t i = 1; i < kept->n_remotes; i++) {
        if (kept->remotes[i].last_cast < kept->remotes[oldest].last_cast)
            oldest = i;
    }
    if (kept->remotes[oldest].last_cast < number)
        drop_remote(kept, oldest);
}

static weir_status add_remote(ucx_kept *kept, weir_peer *before, const void *key, size_t key_bytes)
{
    ucx_kept_remote remote = { .key_bytes = key_bytes };
    if (kept->n_remotes == kept->remote_room) {
        size_t room = kept->remote_room * 2 + 8;
        ucx_kept_remote *grown = weir_realloc(kept->remotes, room * sizeof(*grown));
        if (grown == NULL)
            return WEIR_ERR_NO_MEMORY;
        kept->remotes = grown;
        kept->remote_room = room;
    }
    remote.key = weir_alloc(key_bytes);
    if (remote.key == NULL)
        return WEIR_ERR_NO_MEMORY;
    memcpy(remote.key, key, key_bytes);
    weir_status status = weir_transport_ucx.import(before, key, key_bytes, &remote.remote);
    if (status != WEIR_OK) {
        weir_free(remote.key);
        return status;
    }
    kept->remotes[kept->n_remotes++] = remote;
    return WEIR_OK;
}

weir_status weir_ucx_keep_remote(ucx_kept *kept, weir_peer *before, const void *key,
                                 size_t key_bytes, uint64_t number, weir_remote_region **out)
{
    size_t at = 0;
    while (at < kept->n_remotes && (kept->remotes[at].key_bytes != key_bytes ||
                                    memcmp(kept->remotes[at].key, key, key_bytes) != 0))
        at++;
    if (at == kept->n_remotes) {
        if (kept->n_remotes >= WEIR_UCX_KEPT)
            drop_oldest_remote(kept, number);
        weir_status status = add_remote(kept, before, key, key_bytes);
        if (status != WEIR_OK)
            return status;
        at = kept->n_remotes - 1;
    }
    kept->remotes[at].last_cast = number;
    *out = kept->remotes[at].remote;
    return WEIR_OK;
}

void weir_ucx_kept_forget(ucx_kept *kept)
{
    while (kept->n_remotes > 0)
        drop_remote(kept, kept->n_remotes - 1);
    weir_free(kept->remotes);
    kept->remotes = NULL;
    kept->remote_room = 0;
}
