/* SPDX-License-Identifier: Apache-2.0 */
/* held.c - boxes in any order, overlapping or doubled, become disjoint holdings or a gap's name.
 *
 * The boxes of a source are cut at all of their lines; each cell is then wholly within the boxes
 * that touch it.
 */
#include "plan/held.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "base/error.h"

weir_status weir_held_of_range(const weir_fleet_tensor *tensor, uint32_t expert,
                               const weir_shape *shape, uint32_t axis, uint64_t lo, uint64_t hi,
                               weir_held *out)
{
    uint32_t leading = shape->rank == 3 ? 1 : 0; /* experts stand in front */
    char text[WEIR_SHAPE_TEXT];
    bool fits = shape->rank > 0 && shape->rank <= 3 && axis < shape->rank && lo < hi &&
                hi <= shape->dim[axis] && (leading == 0 || tensor->stacked);
    if (!fits)
        return weir_fail(WEIR_ERR_INVALID,
                         "%s: range [%" PRIu64 ", %" PRIu64 ") of axis %u does not fit shape %s",
                         tensor->name, lo, hi, axis,
                         shape->rank <= WEIR_MAX_RANK ? weir_shape_text(shape, text, sizeof(text))
                                                      : "of too many axes");
    *out = (weir_held){ .expert_lo = tensor->n_experts > 0 ? expert : 0,
                        .expert_hi = tensor->n_experts > 0 ? expert + 1 : 1,
                        .row_hi = shape->dim[leading],
                        .col_hi = shape->rank > leading + 1 ? shape->dim[leading + 1] : 1 };
    if (leading == 1) {
        out->expert_lo = axis == 0 ? (uint32_t)lo : 0;
        out->expert_hi = axis == 0 ? (uint32_t)hi : tensor->n_experts;
    }
    if (axis == leading) {
        out->row_lo = lo;
        out->row_hi = hi;
    } else if (axis == leading + 1) {
        out->col_lo = lo;
        out->col_hi = hi;
    }
    return WEIR_OK;
}

/* Of two that differ none is first by chance: plans do not depend on the order of boxes. */
static int compare_held(const void *a, const void *b)
{
    const weir_held *x = a, *y = b;
    if (x->tensor != y->tensor)
        return x->tensor < y->tensor ? -1 : 1;
    if (x->source != y->source)
        return x->source < y->source ? -1 : 1;
    if (x->row_lo != y->row_lo)
        return x->row_lo < y->row_lo ? -1 : 1;
    if (x->col_lo != y->col_lo)
        return x->col_lo < y->col_lo ? -1 : 1;
    if (x->expert_lo != y->expert_lo)
        return x->expert_lo < y->expert_lo ? -1 : 1;
    if (x->rank != y->rank)
        return x->rank < y->rank ? -1 : 1;
    if (x->row_hi != y->row_hi)
        return x->row_hi < y->row_hi ? -1 : 1;
    if (x->col_hi != y->col_hi)
        return x->col_hi < y->col_hi ? -1 : 1;
    return (x->expert_hi > y->expert_hi) - (x->expert_hi < y->expert_hi);
}

static weir_status check_held(const weir_held *h, const weir_fleet_tensor *tensors,
                              size_t n_tensors)
{
    if (h->tensor >= n_tensors || h->rank >= WEIR_MESH_MAX_RANKS)
        return weir_fail(WEIR_ERR_INVALID, "rank %u holds a part of tensor %u of %zu", h->rank,
                         h->tensor, n_tensors);
    const weir_fleet_tensor *t = &tensors[h->tensor];
    uint32_t n_experts = t->n_experts > 0 ? t->n_experts : 1;
    if (h->source >= t->n_sources || h->expert_lo >= h->expert_hi || h->expert_hi > n_experts ||
        h->row_lo >= h->row_hi || h->row_hi > t->source_rows[h->source] || h->col_lo >= h->col_hi ||
        h->col_hi > t->n_cols)
        return weir_fail(WEIR_ERR_INVALID,
                         "%s: rank %u holds a box that is no part of its source %u", t->name,
                         h->rank, h->source);
    return WEIR_OK;
}

weir_status weir_held_open(weir_held_list *list, const weir_held *held, size_t n_held,
                           const weir_fleet_tensor *tensors, size_t n_tensors)
{
    for (size_t i = 0; i < n_held; i++) {
        weir_status status = check_held(&held[i], tensors, n_tensors);
        if (status != WEIR_OK)
            return status;
        if (held[i].rank >= list->n_ranks)
            list->n_ranks = held[i].rank + 1;
    }
    list->sorted = weir_alloc_zeroed(n_held, sizeof(*held));
    list->given = weir_alloc_zeroed(list->n_ranks, sizeof(list->given[0]));
    if (list->sorted == NULL || list->given == NULL)
        return WEIR_ERR_NO_MEMORY;
    if (n_held > 0)
        memcpy(list->sorted, held, n_held * sizeof(*held));
    list->n = n_held;
    qsort(list->sorted, n_held, sizeof(*held), compare_held);
    return WEIR_OK;
}

void weir_held_close(weir_held_list *list)
{
    weir_free(list->sorted);
    weir_free(list->given);
    weir_free(list->lines);
    weir_free(list->holdings);
    memset(list, 0, sizeof(*list));
}

/* ---- one source ------------------------------------------------------------------------------*/

/* The held boxes of one source, one expert of it being asked for. */
typedef struct held_source {
    const weir_fleet_tensor *tensor;
    const weir_held *boxes;
    size_t n_boxes;
    uint32_t expert;
    uint64_t *row_lines, *col_lines;
    size_t n_row_lines, n_col_lines;
} held_source;

static bool has_expert(const held_source *s, const weir_held *h)
{
    return h->expert_lo <= s->expert && s->expert < h->expert_hi;
}

static int compare_numbers(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

static size_t sort_unique(uint64_t *lines, size_t n)
{
    size_t kept = 0;
    qsort(lines, n, sizeof(*lines), compare_numbers);
    for (size_t i = 0; i < n; i++) {
        if (kept == 0 || lines[kept - 1] != lines[i])
            lines[kept++] = lines[i];
    }
    return kept;
}

static weir_status find_lines(weir_held_list *list, held_source *s, uint64_t n_rows)
{
    size_t room = 2 * (2 * s->n_boxes + 2), n = 0;
    if (room > list->lines_room) {
        uint64_t *lines = weir_realloc(list->lines, room * sizeof(*lines));
        if (lines == NULL)
            return WEIR_ERR_NO_MEMORY;
        list->lines = lines;
        list->lines_room = room;
    }
    s->row_lines = list->lines;
    s->col_lines = list->lines + room / 2;
    s->row_lines[n] = s->col_lines[n] = 0;
    n++;
    s->row_lines[n] = n_rows;
    s->col_lines[n++] = s->tensor->n_cols;
    for (size_t i = 0; i < s->n_boxes; i++) {
        if (!has_expert(s, &s->boxes[i]))
            continue;
        s->row_lines[n] = s->boxes[i].row_lo;
        s->col_lines[n++] = s->boxes[i].col_lo;
        s->row_lines[n] = s->boxes[i].row_hi;
        s->col_lines[n++] = s->boxes[i].col_hi;
    }
    s->n_row_lines = sort_unique(s->row_lines, n);
    s->n_col_lines = sort_unique(s->col_lines, n);
    return WEIR_OK;
}

/* Who of the boxes from `first` on holds the cell and has been asked for least; NULL: nobody. */
static const weir_held *choose(const weir_held_list *list, const held_source *s,
                               const weir_holding *cell, size_t first)
{
    const weir_held *best = NULL;
    for (size_t i = first; i < s->n_boxes && s->boxes[i].row_lo <= cell->row_lo; i++) {
        const weir_held *h = &s->boxes[i];
        if (!has_expert(s, h) || h->row_hi < cell->row_hi || h->col_lo > cell->col_lo ||
            h->col_hi < cell->col_hi)
            continue;
        if (best == NULL || list->given[h->rank] < list->given[best->rank] ||
            (list->given[h->rank] == list->given[best->rank] && h->rank < best->rank))
            best = h;
    }
    return best;
}

static weir_status fail_gap(const weir_held_list *list, const held_source *s, weir_holding cell,
                            uint64_t n_rows)
{
    char expert[32] = "";
    for (size_t r = 0; r + 1 < s->n_row_lines; r++) {
        weir_holding next = cell;
        next.row_lo = s->row_lines[r];
        next.row_hi = s->row_lines[r + 1];
        if (next.row_lo == cell.row_hi && choose(list, s, &next, 0) == NULL)
            cell.row_hi = next.row_hi;
    }
    if (s->tensor->n_experts > 0)
        snprintf(expert, sizeof(expert), ", expert %u", s->expert);
    bool by_columns = cell.row_lo == 0 && cell.row_hi == n_rows && cell.col_hi < s->tensor->n_cols;
    return weir_fail(WEIR_ERR_LAYOUT,
                     "%s%s: coverage gap at axis %d [%" PRIu64 ", %" PRIu64 "): no rank holds it",
                     s->tensor->name, expert, by_columns || cell.col_lo > 0 ? 1 : 0,
                     by_columns || cell.col_lo > 0 ? cell.col_lo : cell.row_lo,
                     by_columns || cell.col_lo > 0 ? cell.col_hi : cell.row_hi);
}

/* Joins it to its left neighbour, which begins no earlier than holdings[first]. */
static weir_status add_holding(weir_held_list *list, const weir_holding *cell, size_t first,
                               size_t *n)
{
    weir_holding *left = *n > first ? &list->holdings[*n - 1] : NULL;
    if (left != NULL && left->box == cell->box && left->col_hi == cell->col_lo) {
        left->col_hi = cell->col_hi;
        return WEIR_OK;
    }
    if (*n >= list->holdings_room) {
        size_t room = list->holdings_room * 2 + 64;
        weir_holding *grown = weir_realloc(list->holdings, room * sizeof(*grown));
        if (grown == NULL)
            return WEIR_ERR_NO_MEMORY;
        list->holdings = grown;
        list->holdings_room = room;
    }
    list->holdings[(*n)++] = *cell;
    return WEIR_OK;
}

/* Joins the row holdings[second] on to the one above it where they are of the same boxes. */
static bool join_rows(weir_held_list *list, size_t first, size_t second, size_t *n)
{
    if (second - first != *n - second)
        return false;
    for (size_t i = first, k = second; i < second; i++, k++) {
        const weir_holding *a = &list->holdings[i], *b = &list->holdings[k];
        if (a->box != b->box || a->col_lo != b->col_lo || a->col_hi != b->col_hi)
            return false;
    }
    for (size_t i = first; i < second; i++)
        list->holdings[i].row_hi = list->holdings[i + second - first].row_hi;
    *n = second;
    return true;
}

static weir_status take_cells(weir_held_list *list, const held_source *s, uint64_t n_rows,
                              size_t *out_n)
{
    size_t first_box = 0, above = 0;
    *out_n = 0;
    for (size_t r = 0; r + 1 < s->n_row_lines; r++) {
        size_t row_first = *out_n;
        weir_holding cell = { .n_owners = 1,
                              .row_lo = s->row_lines[r],
                              .row_hi = s->row_lines[r + 1] };
        while (first_box < s->n_boxes && s->boxes[first_box].row_hi <= cell.row_lo)
            first_box++;
        for (size_t c = 0; c + 1 < s->n_col_lines; c++) {
            cell.col_lo = s->col_lines[c];
            cell.col_hi = s->col_lines[c + 1];
            const weir_held *from = choose(list, s, &cell, first_box);
            if (from == NULL)
                return fail_gap(list, s, cell, n_rows);
            cell.rank = from->rank;
            cell.box = (uint32_t)(from - list->sorted) + 1;
            list->given[cell.rank] += (cell.row_hi - cell.row_lo) * (cell.col_hi - cell.col_lo);
            weir_status status = add_holding(list, &cell, row_first, out_n);
            if (status != WEIR_OK)
                return status;
        }
        if (!join_rows(list, above, row_first, out_n))
            above = row_first;
    }
    return WEIR_OK;
}

/* The first box that does not come before (tensor, source). */
static size_t find_first(const weir_held_list *list, uint32_t tensor, uint32_t source)
{
    size_t low = 0, high = list->n;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        const weir_held *h = &list->sorted[middle];
        if (h->tensor < tensor || (h->tensor == tensor && h->source < source))
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

weir_status weir_held_holdings(weir_held_list *list, uint32_t tensor_index,
                               const weir_fleet_tensor *tensor, uint32_t source, uint32_t expert,
                               const weir_holding **out, size_t *out_n)
{
    size_t first = find_first(list, tensor_index, source);
    held_source s = { .tensor = tensor,
                      .boxes = list->sorted + first,
                      .n_boxes = find_first(list, tensor_index, source + 1) - first,
                      .expert = expert };
    weir_status status = find_lines(list, &s, tensor->source_rows[source]);
    if (status == WEIR_OK)
        status = take_cells(list, &s, tensor->source_rows[source], out_n);
    *out = list->holdings;
    return status;
}
