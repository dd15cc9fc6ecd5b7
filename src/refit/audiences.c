/* SPDX-License-Identifier: Apache-2.0 */
/* audiences.c - finds the sets of workers that shards are for. */
#include "refit/audiences.h"

#include <string.h>

#include "base/error.h"

const unsigned char *weir_audiences_row(const weir_audiences *audiences, uint32_t audience)
{
    return audiences->sent + (size_t)audience * audiences->n_workers;
}

/* The row behind the last: filled by the caller, it becomes an audience unless there is one such.
 */
static unsigned char *next_row(weir_audiences *audiences)
{
    return audiences->sent + (size_t)audiences->n * audiences->n_workers;
}

static weir_status take_row(weir_audiences *audiences, uint32_t *out)
{
    const unsigned char *row = next_row(audiences);
    for (uint32_t a = 0; a < audiences->n; a++) {
        if (memcmp(weir_audiences_row(audiences, a), row, audiences->n_workers) != 0)
            continue;
        *out = a;
        return WEIR_OK;
    }
    if (audiences->n == WEIR_MAX_AUDIENCES)
        return weir_fail(WEIR_ERR_UNSUPPORTED,
                         "what one trainer rank makes is for more than %u sets of workers of an "
                         "engine, which is more broadcast groups than it may have: let the "
                         "replicas read this version (PULL)",
                         WEIR_MAX_AUDIENCES);
    *out = audiences->n++;
    return WEIR_OK;
}

static bool is_same_place(const weir_mesh_place *a, const weir_mesh_place *b)
{
    return a->stage == b->stage && a->d == b->d && a->t == b->t;
}

weir_status weir_audiences_find(const weir_shard *shards, size_t n_shards,
                                const weir_replica_mesh *mesh, weir_arena *arena,
                                weir_audiences *out)
{
    weir_audiences found = { .n_workers = weir_replica_mesh_workers(mesh) };
    const weir_shard *before = NULL; /* neighbours are mostly for the same workers */
    uint32_t audience = WEIR_ANY;
    /* One more, to compare what would be too many. */
    found.sent = weir_arena_zeroed(arena, WEIR_MAX_AUDIENCES + 1, found.n_workers);
    found.of_shards = weir_arena_zeroed(arena, n_shards, sizeof(*found.of_shards));
    if (found.sent == NULL || found.of_shards == NULL)
        return WEIR_ERR_NO_MEMORY;
    for (size_t s = 0; s < n_shards; s++) {
        found.of_shards[s] = WEIR_ANY;
        if (shards[s].n_bytes == 0)
            continue;
        if (before == NULL || !is_same_place(&before->place, &shards[s].place)) {
            unsigned char *row = next_row(&found);
            for (uint32_t w = 0; w < found.n_workers; w++) {
                weir_mesh_place place = weir_replica_mesh_place(mesh, w);
                row[w] = weir_mesh_place_matches(&shards[s].place, &place);
            }
            weir_status status = take_row(&found, &audience);
            if (status != WEIR_OK)
                return status;
        }
        before = &shards[s];
        found.of_shards[s] = audience;
    }
    *out = found;
    return WEIR_OK;
}

weir_status weir_audiences_join(weir_audiences *audiences, uint32_t one, uint32_t other,
                                uint32_t *out)
{
    unsigned char *row = next_row(audiences);
    for (uint32_t w = 0; w < audiences->n_workers; w++)
        row[w] = (one != WEIR_ANY && weir_audiences_row(audiences, one)[w]) ||
                 (other != WEIR_ANY && weir_audiences_row(audiences, other)[w]);
    return take_row(audiences, out);
}
