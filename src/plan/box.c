/* SPDX-License-Identifier: Apache-2.0 */
/* box.c - boxes are row-major, so most that anyone cuts are runs at equal distances: rows, columns,
 * columns of each expert. Two levels, a run and its repetition, say where such a box lies.
 */
#include "plan/box.h"

#include <inttypes.h>
#include <stdio.h>

const char *weir_box_text(const weir_box *box, char buffer[WEIR_BOX_TEXT])
{
    size_t used = 0;
    snprintf(buffer, WEIR_BOX_TEXT, "%s", box->rank == 0 ? "[]" : "");
    for (uint32_t d = 0; d < box->rank && d < WEIR_MAX_RANK; d++) {
        int n = snprintf(buffer + used, WEIR_BOX_TEXT - used, "%s[%" PRIu64 ", %" PRIu64 ")",
                         d > 0 ? " x " : "", box->lo[d], box->hi[d]);
        used += n > 0 ? (size_t)n : 0;
    }
    return buffer;
}

bool weir_box_equal(const weir_box *a, const weir_box *b)
{
    for (uint32_t d = 0; d < a->rank; d++) {
        if (a->lo[d] != b->lo[d] || a->hi[d] != b->hi[d])
            return false;
    }
    return a->rank == b->rank;
}

bool weir_shape_empty(const weir_shape *shape)
{
    for (uint32_t d = 0; d < shape->rank; d++) {
        if (shape->dim[d] == 0)
            return true;
    }
    return false;
}

bool weir_box_fits(const weir_box *box, const weir_shape *shape)
{
    if (box->rank != shape->rank || shape->rank > WEIR_MAX_RANK)
        return false;
    bool may_be_empty = weir_shape_empty(shape);
    for (uint32_t d = 0; d < shape->rank; d++) {
        if (box->hi[d] > shape->dim[d] || box->lo[d] > box->hi[d])
            return false;
        if (box->lo[d] == box->hi[d] && !may_be_empty)
            return false;
    }
    return true;
}

/* Elements; a repetition of 1 has no pitch. */
typedef struct element_runs {
    uint64_t first, run, n_runs, pitch;
} element_runs;

/* From the innermost axis outwards: an axis makes the run longer as long as it continues it, the
 * next one repeats it, and what follows must continue that. */
static bool find_runs(const weir_shape *shape, const weir_box *box, element_runs *out)
{
    element_runs runs = { 0, 1, 1, 0 };
    uint64_t stride = 1;
    for (uint32_t d = shape->rank; d-- > 0; stride *= shape->dim[d]) {
        uint64_t n = box->hi[d] - box->lo[d];
        runs.first += box->lo[d] * stride;
        if (n == 1)
            continue;
        if (runs.n_runs == 1 && stride == runs.run) {
            runs.run *= n;
        } else if (runs.n_runs == 1) {
            runs.n_runs = n;
            runs.pitch = stride;
        } else if (stride == runs.n_runs * runs.pitch) {
            runs.n_runs *= n;
        } else {
            return false;
        }
    }
    *out = runs;
    return true;
}

static bool is_empty(const weir_box *box)
{
    for (uint32_t d = 0; d < box->rank; d++) {
        if (box->lo[d] == box->hi[d])
            return true;
    }
    return false;
}

weir_box_fault weir_box_runs_of(weir_dtype dtype, const weir_shape *shape, const weir_box *box,
                                weir_box_runs *out)
{
    uint64_t whole_bytes, bits = weir_dtype_bits(dtype);
    element_runs runs;
    if (is_empty(box)) {
        *out = (weir_box_runs){ 0 };
        return WEIR_BOX_GOOD;
    }
    if (weir_tensor_bytes(dtype, shape, &whole_bytes) != WEIR_OK)
        return WEIR_BOX_BITS;
    if (!find_runs(shape, box, &runs))
        return WEIR_BOX_UNEVEN;
    if ((runs.first * bits | runs.run * bits | runs.pitch * bits) % 8 != 0)
        return WEIR_BOX_BITS;
    *out = (weir_box_runs){ .offset = runs.first * bits / 8,
                            .n_bytes = runs.run * runs.n_runs * bits / 8,
                            .run_bytes = runs.run * bits / 8,
                            .pitch_bytes = runs.pitch * bits / 8 };
    return WEIR_BOX_GOOD;
}
