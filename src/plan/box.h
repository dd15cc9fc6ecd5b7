/* SPDX-License-Identifier: Apache-2.0 */
/* box.h - boxes of a tensor: as text, and where their bytes lie. Safe against any values. */
#ifndef WEIR_PLAN_BOX_H
#define WEIR_PLAN_BOX_H

#include "weir/tensor.h"

/* Writes "[0, 4) x [128, 256)" and returns the buffer. */
#define WEIR_BOX_TEXT 384
const char *weir_box_text(const weir_box *box, char buffer[WEIR_BOX_TEXT]);

bool weir_box_equal(const weir_box *a, const weir_box *b);

bool weir_shape_empty(const weir_shape *shape);

/* Of the shape's rank and within it, and empty only where the shape is. */
bool weir_box_fits(const weir_box *box, const weir_shape *shape);

/* The bytes of a box in its tensor: n_bytes / run_bytes runs. */
typedef struct weir_box_runs {
    uint64_t offset; /* of the first */
    uint64_t n_bytes, run_bytes;
    uint64_t pitch_bytes; /* from one run to the next; 0 when there is one */
} weir_box_runs;

typedef enum weir_box_fault {
    WEIR_BOX_GOOD,
    WEIR_BOX_UNEVEN, /* its runs are not equally spaced */
    WEIR_BOX_BITS,   /* a run begins or ends within a byte, or the tensor has no such size */
} weir_box_fault;

/* The box fits the shape. An empty one has no runs and is good. */
weir_box_fault weir_box_runs_of(weir_dtype dtype, const weir_shape *shape, const weir_box *box,
                                weir_box_runs *out);

#endif
