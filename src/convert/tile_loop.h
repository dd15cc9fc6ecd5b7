/* SPDX-License-Identifier: Apache-2.0 */
/* tile_loop.h - cuts a fused source into tiles and has the pool convert them. */
#ifndef WEIR_CONVERT_TILE_LOOP_H
#define WEIR_CONVERT_TILE_LOOP_H

#include <stdatomic.h>

#include "convert/fused.h"

/* One conversion in progress: constants for all threads but for the digest. */
typedef struct weir_tile_loop {
    const weir_convert_args *args;
    const weir_conversion *conversion;
    const weir_fused *fused;
    weir_pool *pool; /* NULL for little work */
    weir_convert_fn kernel;
    bool kernel_digests, rounds; /* rounds: fp32 rows are rounded to bf16 on the way */
    bool copies;                 /* some tile needs rows in scratch */
    bool digests;                /* of output 0, tile by tile */
    size_t tile_rows, tile_cols;
    uint64_t tiles_down, tiles_across; /* per matrix */
    uint64_t n_tiles, tiles_per_task;
    uint64_t n_out_rows[WEIR_MAX_OUTPUTS]; /* per matrix */
    uint64_t out_row_bytes[WEIR_MAX_OUTPUTS];
    size_t pointer_bytes, row_bytes; /* of a thread's scratch: one array of rows; one copied row */
    atomic_uint_fast64_t product, sum;
} weir_tile_loop;

/* Plans. Every argument has been checked and every product of sizes fits; `out_bytes` is what all
 * outputs take. */
void weir_tile_loop_init(weir_tile_loop *loop, const weir_convert_args *args,
                         const weir_fused *fused, uint64_t out_bytes);

/* Converts all tiles. ERR_NONFINITE comes without an error line. */
weir_status weir_tile_loop_run(weir_tile_loop *loop);

#endif
