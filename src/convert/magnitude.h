/* SPDX-License-Identifier: Apache-2.0 */
/* magnitude.h - the largest magnitude of each block of a matrix, for ranks that hold parts of
 * blocks (weir_share_border, weir/mesh.h).
 */
#ifndef WEIR_CONVERT_MAGNITUDE_H
#define WEIR_CONVERT_MAGNITUDE_H

#include "weir/convert.h"

/* Rows of a matrix, and how the grid of blocks lies on them: the first element is element
 * (block_row, block_col) of its block. */
typedef struct weir_magnitude_view {
    weir_dtype dtype; /* BF16, F16 or F32 */
    const void *data; /* aligned to its elements */
    uint64_t pitch_bytes;
    uint32_t n_rows, n_cols;
    uint32_t row, col;               /* within the box of blocks */
    uint32_t block_rows, block_cols; /* no larger than the box */
} weir_magnitude_view;

/* Raises magnitudes[block row * n_block_cols + block column] to the largest |x| of the view's
 * elements in that block; NaN is larger than all. Exact: no value is rounded. */
void weir_magnitude_raise(const weir_magnitude_view *view, uint32_t n_block_cols,
                          float *magnitudes);

/* The larger of two magnitudes, NaN above all. */
float weir_magnitude_max(float a, float b);

#endif
