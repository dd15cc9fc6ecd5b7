/* SPDX-License-Identifier: Apache-2.0 */
/* places.h - another worker's memory, mapped here so that the bytes of a push can be written into
 * it.
 *
 * Its owner says where (weir_round_places): every shard's place among its live parameters, or
 * windows that steps pass through. Kept while it says the same.
 */
#ifndef WEIR_REFIT_PLACES_H
#define WEIR_REFIT_PLACES_H

#include "refit/round.h"
#include "refit/worker.h"

typedef struct weir_places {
    weir_buffer bytes; /* as the owner packed them; empty: nothing is mapped */
    weir_arena arena;  /* decoded */
    weir_round_places told;
    weir_link link;
    weir_peer *peer;
    weir_remote_region **remotes; /* parallel to told.regions */
    unsigned char **mapped;
    size_t n_mapped;
    bool staged;
    uint32_t n_windows;
    uint64_t window_bytes;
} weir_places;

/* What the owner told, as messages carry it. */
typedef struct weir_places_told {
    const void *bytes;
    size_t n_bytes;
    bool staged;
    uint32_t n_windows;
    uint64_t window_bytes;
    const char *who; /* the owner, for errors */
} weir_places_told;

/* Maps what is told, for the shards that will be written; the same bytes as last time cost nothing.
 * ERR_CORRUPT when a shard would lie outside, ERR_UNSUPPORTED when it cannot be mapped. On an error
 * nothing is mapped any more. */
weir_status weir_places_take(weir_places *places, weir_worker *worker, const weir_places_told *told,
                             const weir_shard *shards, size_t n_shards);
/* Unmaps everything; a zeroed struct is fine. */
void weir_places_drop(weir_places *places);

/* Where the bytes of a shard go: in step `step` from packed_offset on, or at their own place. */
void *weir_places_at(const weir_places *places, uint32_t step, uint32_t shard, uint64_t offset,
                     uint64_t packed_offset);

#endif
