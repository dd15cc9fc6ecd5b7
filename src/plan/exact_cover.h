/* SPDX-License-Identifier: Apache-2.0 */
/* exact_cover.h - whether boxes take every element of a shape exactly once; if not, where. Pure. */
#ifndef WEIR_PLAN_EXACT_COVER_H
#define WEIR_PLAN_EXACT_COVER_H

#include "base/arena.h"
#include "weir/tensor.h"

typedef enum weir_cover_kind {
    WEIR_COVER_EXACT,
    WEIR_COVER_GAP,
    WEIR_COVER_OVERLAP,
    WEIR_COVER_TOO_FINE, /* boxes beyond count, cut along too many axes: not looked at */
} weir_cover_kind;

typedef struct weir_cover {
    weir_cover_kind kind;
    uint32_t n_cut_axes;        /* along which any box is less than the whole */
    uint64_t at[WEIR_MAX_RANK]; /* the first element, row-major, that is wrong */
    uint32_t axis;              /* of a gap: [lo, hi) of this axis, at at[0 .. axis) */
    uint64_t lo, hi;
    size_t first, second; /* of an overlap: two boxes that have that element */
} weir_cover;

/* Boxes have the region's rank, lie within it and are not empty; nor is the region. Time is
 * n log n in the boxes, times 2^n_cut_axes, which is bounded. ERR_NO_MEMORY; `scratch` keeps what
 * was used. */
weir_status weir_cover_of(const weir_shape *region, const weir_box *const *boxes, size_t n_boxes,
                          weir_arena *scratch, weir_cover *out);

#endif
