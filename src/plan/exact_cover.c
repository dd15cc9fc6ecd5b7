/* SPDX-License-Identifier: Apache-2.0 */
/* exact_cover.c - exact cover by signed corners.
 *
 * Every box puts +1 on its lowest corner and on each other corner +1 or -1, by how many of its
 * coordinates are upper bounds. How many boxes have an element is the sum of all signs at points
 * that are at most the element in every coordinate. So boxes cover the region exactly once if and
 * only if their signs add up to the region's own at every point; and at the first point in
 * row-major order where they do not, the difference is how many boxes too many have that element.
 * Sorting the corners finds it, whatever the boxes look like, without comparing them in pairs.
 */
#include "plan/exact_cover.h"

#include <stdlib.h>

#define MAX_CORNERS ((size_t)1 << 22)
#define MASK_BITS 8

_Static_assert(WEIR_MAX_RANK <= MASK_BITS, "a corner's mask has one bit per axis");

/* The region is the last of the boxes. A corner is box << MASK_BITS | mask; bit a of the mask picks
 * the upper bound on cut axis a. */
typedef struct corner_set {
    uint32_t axes[WEIR_MAX_RANK];
    uint32_t n_axes;
    size_t n_boxes;
    uint64_t *bounds; /* of each box: its lower bounds on the cut axes, then the upper ones */
    uint64_t *corners;
    size_t n_corners;
} corner_set;

static void find_cut_axes(corner_set *set, const weir_shape *region, const weir_box *const *boxes)
{
    for (uint32_t d = 0; d < region->rank; d++) {
        size_t i = 0;
        while (i < set->n_boxes && boxes[i]->hi[d] - boxes[i]->lo[d] == region->dim[d])
            i++;
        if (i < set->n_boxes)
            set->axes[set->n_axes++] = d;
    }
}

static const uint64_t *corner_bound(const corner_set *set, uint64_t corner, uint32_t axis)
{
    size_t upper = corner >> axis & 1;
    return &set->bounds[((corner >> MASK_BITS) * 2 + upper) * set->n_axes + axis];
}

static int compare_corners(const void *a, const void *b, void *context)
{
    const corner_set *set = context;
    uint64_t left = *(const uint64_t *)a, right = *(const uint64_t *)b;
    for (uint32_t axis = 0; axis < set->n_axes; axis++) {
        uint64_t x = *corner_bound(set, left, axis), y = *corner_bound(set, right, axis);
        if (x != y)
            return x < y ? -1 : 1;
    }
    return 0;
}

static weir_status list_corners(corner_set *set, const weir_shape *region,
                                const weir_box *const *boxes, weir_arena *scratch)
{
    size_t n_all = set->n_boxes + 1, per_box = (size_t)1 << set->n_axes;
    set->bounds = weir_arena_alloc(scratch, n_all * 2 * set->n_axes * sizeof(*set->bounds));
    set->corners = weir_arena_alloc(scratch, n_all * per_box * sizeof(*set->corners));
    if (set->bounds == NULL || set->corners == NULL)
        return WEIR_ERR_NO_MEMORY;
    uint64_t *bound = set->bounds;
    for (size_t i = 0; i < n_all; i++) {
        for (uint32_t a = 0; a < set->n_axes; a++)
            *bound++ = i < set->n_boxes ? boxes[i]->lo[set->axes[a]] : 0;
        for (uint32_t a = 0; a < set->n_axes; a++)
            *bound++ = i < set->n_boxes ? boxes[i]->hi[set->axes[a]] : region->dim[set->axes[a]];
        for (uint64_t mask = 0; mask < per_box; mask++)
            set->corners[set->n_corners++] = (uint64_t)i << MASK_BITS | mask;
    }
    qsort_r(set->corners, set->n_corners, sizeof(*set->corners), compare_corners, set);
    return WEIR_OK;
}

static int64_t sign_of(const corner_set *set, uint64_t corner)
{
    uint64_t mask = corner & (((uint64_t)1 << MASK_BITS) - 1);
    int64_t sign = __builtin_parityll(mask) ? -1 : 1;
    return corner >> MASK_BITS == set->n_boxes ? -sign : sign;
}

/* How many boxes too many have the first wrong element; 0: none is wrong. Leaves the element. */
static int64_t first_excess(corner_set *set, uint64_t at[WEIR_MAX_RANK])
{
    for (size_t i = 0, end; i < set->n_corners; i = end) {
        int64_t excess = 0;
        for (end = i; end < set->n_corners; end++) {
            if (compare_corners(&set->corners[i], &set->corners[end], set) != 0)
                break;
            excess += sign_of(set, set->corners[end]);
        }
        if (excess == 0)
            continue;
        for (uint32_t axis = 0; axis < set->n_axes; axis++)
            at[set->axes[axis]] = *corner_bound(set, set->corners[i], axis);
        return excess;
    }
    return 0;
}

/* Whether the box has index at[d] on each of the first n_axes axes. */
static bool reaches(const weir_box *box, const uint64_t *at, uint32_t n_axes)
{
    for (uint32_t d = 0; d < n_axes; d++) {
        if (at[d] < box->lo[d] || at[d] >= box->hi[d])
            return false;
    }
    return true;
}

static void name_overlap(const weir_box *const *boxes, size_t n_boxes, weir_cover *out)
{
    size_t found[2] = { 0, 0 }, n = 0;
    for (size_t i = 0; i < n_boxes && n < 2; i++) {
        if (reaches(boxes[i], out->at, boxes[i]->rank))
            found[n++] = i;
    }
    out->first = found[0];
    out->second = found[1];
}

/* The outermost axis on which no box reaches the element, and how far that goes on. */
static void name_gap(const weir_shape *region, const weir_box *const *boxes, size_t n_boxes,
                     weir_cover *out)
{
    for (uint32_t d = 0; d < region->rank; d++) {
        bool reached = false;
        uint64_t end = region->dim[d];
        for (size_t i = 0; i < n_boxes && !reached; i++) {
            if (!reaches(boxes[i], out->at, d))
                continue;
            reached = reaches(boxes[i], out->at, d + 1);
            if (boxes[i]->lo[d] > out->at[d] && boxes[i]->lo[d] < end)
                end = boxes[i]->lo[d];
        }
        if (reached)
            continue;
        out->axis = d;
        out->lo = out->at[d];
        out->hi = end;
        return;
    }
}

weir_status weir_cover_of(const weir_shape *region, const weir_box *const *boxes, size_t n_boxes,
                          weir_arena *scratch, weir_cover *out)
{
    corner_set set = { .n_boxes = n_boxes };
    weir_cover found = { .kind = WEIR_COVER_EXACT };
    find_cut_axes(&set, region, boxes);
    found.n_cut_axes = set.n_axes;
    if (n_boxes >= MAX_CORNERS >> set.n_axes) {
        found.kind = WEIR_COVER_TOO_FINE;
        *out = found;
        return WEIR_OK;
    }
    weir_status status = list_corners(&set, region, boxes, scratch);
    if (status != WEIR_OK)
        return status;
    int64_t excess = first_excess(&set, found.at);
    if (excess > 0) {
        found.kind = WEIR_COVER_OVERLAP;
        name_overlap(boxes, n_boxes, &found);
    } else if (excess < 0) {
        found.kind = WEIR_COVER_GAP;
        name_gap(region, boxes, n_boxes, &found);
    }
    *out = found;
    return WEIR_OK;
}
