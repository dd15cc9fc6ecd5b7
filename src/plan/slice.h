/* SPDX-License-Identifier: Apache-2.0 */
/* slice.h - which part of a tensor an engine's worker has, and in which order of rows. */
#ifndef WEIR_PLAN_SLICE_H
#define WEIR_PLAN_SLICE_H

#include "weir/mesh.h"

/* Rows of the worker's matrix that come from one source, side by side there too. */
typedef struct weir_segment {
    uint32_t source;
    uint64_t source_row, source_col;
    uint64_t row, n_rows;
} weir_segment;

/* A worker's matrix (of one expert): n_cols wide, all segments as wide. */
typedef struct weir_slice {
    uint64_t n_rows, n_filled_rows, n_cols;
    uint32_t n_segments;
    weir_segment segments[WEIR_MAX_PARTS];
} weir_slice;

/* The matrix of worker `rank` of the n_ranks that cut it. ERR_LAYOUT when it does not divide,
 * ERR_UNSUPPORTED when the engine could not run it. */
weir_status weir_slice_of(const weir_fleet_tensor *tensor, uint32_t n_ranks, uint32_t rank,
                          uint32_t vocabulary_pad, weir_slice *out);

/* Layers [*lo, *hi) of one pipeline stage, as vLLM gives them out. */
void weir_slice_layers(uint32_t n_layers, uint32_t n_stages, uint32_t stage, uint32_t *lo,
                       uint32_t *hi);

/* Experts [*lo, *hi) of one expert rank, the same. */
void weir_slice_experts(uint32_t n_experts, uint32_t n_ranks, uint32_t rank, uint32_t *lo,
                        uint32_t *hi);

#endif
