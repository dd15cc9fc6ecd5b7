/* SPDX-License-Identifier: Apache-2.0 */
/* fuzz_manifest.c - any bytes as a manifest: decoded within bounds, or refused. */
#include <stddef.h>
#include <stdint.h>

#include "refit/manifest.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    weir_arena arena;
    weir_manifest manifest;
    weir_shard *shards;
    size_t n_shards;
    weir_arena_init(&arena, (size_t)16 << 20);
    if (weir_manifest_decode(data, size, &arena, &manifest) == WEIR_OK)
        weir_layout_decode(manifest.layout, manifest.layout_bytes, manifest.regions,
                           manifest.n_regions, &arena, &shards, &n_shards);
    weir_arena_reset(&arena);
    const weir_manifest_region region = { data, 1, 1u << 20 };
    weir_layout_decode(data, size, &region, 1, &arena, &shards, &n_shards);
    weir_arena_close(&arena);
    return 0;
}
