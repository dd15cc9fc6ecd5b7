/* SPDX-License-Identifier: Apache-2.0 */
/* held_check.c - source by source: no overlaps, no gaps, or their names.
 *
 * Experts that the same boxes hold are looked at once. Boxes that are the same or disjoint cover a
 * source when their sizes add up to its own: where the gap is, is only looked for when there is
 * one.
 */
#include "plan/held_check.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "base/error.h"

#define MAX_NAMED_BOXES 3
#define RANGE_TEXT 128

/* One source, and experts that the same boxes hold. */
typedef struct checked_source {
    const weir_described_model *model;
    uint32_t tensor, source;
    uint32_t expert_lo, expert_hi;
    weir_held *boxes; /* scratch for all; those that hold the experts, by row, column and rank */
    size_t n_boxes;
    uint64_t *lines; /* scratch */
} checked_source;

static const weir_fleet_tensor *tensor_of(const checked_source *s)
{
    return &s->model->tensors[s->tensor];
}

static int compare_sources(const void *a, const void *b)
{
    const weir_held *x = a, *y = b;
    if (x->tensor != y->tensor)
        return x->tensor < y->tensor ? -1 : 1;
    if (x->source != y->source)
        return x->source < y->source ? -1 : 1;
    return (x->expert_lo > y->expert_lo) - (x->expert_lo < y->expert_lo);
}

static int compare_boxes(const void *a, const void *b)
{
    const weir_held *x = a, *y = b;
    if (x->row_lo != y->row_lo)
        return x->row_lo < y->row_lo ? -1 : 1;
    if (x->col_lo != y->col_lo)
        return x->col_lo < y->col_lo ? -1 : 1;
    return (x->rank > y->rank) - (x->rank < y->rank);
}

static int compare_numbers(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

/* ---- what is said of a source ----------------------------------------------------------------*/

static const char *name_of(const checked_source *s)
{
    const weir_map_entry *entry = &s->model->entries[s->tensor];
    const weir_fleet_tensor *t = tensor_of(s);
    bool apart = t->n_experts > 0 && !t->stacked;
    return entry->sources[(apart ? (size_t)s->expert_lo * t->n_sources : 0) + s->source].name;
}

/* ", expert 3": where one tensor has them all. */
static const char *expert_text(const checked_source *s, char buffer[32])
{
    buffer[0] = '\0';
    if (tensor_of(s)->stacked)
        snprintf(buffer, 32, ", expert %u", s->expert_lo);
    return buffer;
}

/* By axes of the tensor as the trainer has it. */
static const char *range_text(const checked_source *s, const weir_held *box,
                              char buffer[RANGE_TEXT])
{
    const weir_fleet_tensor *t = tensor_of(s);
    int rows = t->stacked ? 1 : 0;
    bool all_rows = box->row_lo == 0 && box->row_hi == t->source_rows[s->source];
    bool all_cols = box->col_lo == 0 && box->col_hi == t->n_cols;
    if (all_cols)
        snprintf(buffer, RANGE_TEXT, "axis %d [%" PRIu64 ", %" PRIu64 ")", rows, box->row_lo,
                 box->row_hi);
    else if (all_rows)
        snprintf(buffer, RANGE_TEXT, "axis %d [%" PRIu64 ", %" PRIu64 ")", rows + 1, box->col_lo,
                 box->col_hi);
    else
        snprintf(buffer, RANGE_TEXT,
                 "axis %d [%" PRIu64 ", %" PRIu64 ") x axis %d [%" PRIu64 ", %" PRIu64 ")", rows,
                 box->row_lo, box->row_hi, rows + 1, box->col_lo, box->col_hi);
    return buffer;
}

static weir_status fail_gap(const checked_source *s, const weir_held *gap)
{
    char range[RANGE_TEXT], expert[32], holders[MAX_NAMED_BOXES * (RANGE_TEXT + 24) + 32] = "";
    size_t used = 0;
    if (s->n_boxes == 0)
        return weir_fail(WEIR_ERR_LAYOUT, "%s%s: coverage gap: no rank holds any of it", name_of(s),
                         expert_text(s, expert));
    for (size_t i = 0; i < s->n_boxes && i < MAX_NAMED_BOXES; i++)
        used += (size_t)snprintf(holders + used, sizeof(holders) - used, "%s rank %u %s",
                                 i > 0 ? "," : "", s->boxes[i].rank,
                                 range_text(s, &s->boxes[i], range));
    if (s->n_boxes > MAX_NAMED_BOXES)
        snprintf(holders + used, sizeof(holders) - used, " and others");
    return weir_fail(WEIR_ERR_LAYOUT, "%s%s: coverage gap at %s: no rank holds it; held by%s",
                     name_of(s), expert_text(s, expert), range_text(s, gap, range), holders);
}

static weir_status fail_overlap(const checked_source *s, const weir_held *a, const weir_held *b)
{
    char expert[32], first[RANGE_TEXT], second[RANGE_TEXT];
    if (a->rank == b->rank)
        return weir_fail(WEIR_ERR_LAYOUT, "%s%s: rank %u holds %s and, once more, %s", name_of(s),
                         expert_text(s, expert), a->rank, range_text(s, a, first),
                         range_text(s, b, second));
    return weir_fail(WEIR_ERR_LAYOUT,
                     "%s%s: rank %u holds %s, which overlaps %s of rank %u: ranks hold the same "
                     "box or nothing in common",
                     name_of(s), expert_text(s, expert), a->rank, range_text(s, a, first),
                     range_text(s, b, second), b->rank);
}

/* ---- overlaps and gaps -----------------------------------------------------------------------*/

static bool same_box(const weir_held *a, const weir_held *b)
{
    return a->row_lo == b->row_lo && a->row_hi == b->row_hi && a->col_lo == b->col_lo &&
           a->col_hi == b->col_hi;
}

static weir_status check_overlaps(const checked_source *s)
{
    for (size_t i = 0; i < s->n_boxes; i++) {
        const weir_held *a = &s->boxes[i];
        for (const weir_held *b = a + 1; b < s->boxes + s->n_boxes && b->row_lo < a->row_hi; b++) {
            bool meet = a->col_lo < b->col_hi && b->col_lo < a->col_hi;
            if (meet && (!same_box(a, b) || a->rank == b->rank))
                return fail_overlap(s, a, b);
        }
    }
    return WEIR_OK;
}

/* The first columns of rows [row_lo, row_hi), between two lines, that nobody holds. */
static bool find_columns(const checked_source *s, weir_held *gap)
{
    uint64_t n_cols = tensor_of(s)->n_cols, next;
    gap->col_lo = 0;
    do {
        next = gap->col_lo;
        gap->col_hi = n_cols;
        for (size_t i = 0; i < s->n_boxes; i++) {
            const weir_held *b = &s->boxes[i];
            if (b->row_lo > gap->row_lo || b->row_hi < gap->row_hi)
                continue;
            if (b->col_lo <= next && next < b->col_hi)
                gap->col_lo = b->col_hi;
            else if (b->col_lo > next && b->col_lo < gap->col_hi)
                gap->col_hi = b->col_lo;
        }
    } while (gap->col_lo > next && gap->col_lo < n_cols);
    return gap->col_lo < n_cols;
}

static weir_status name_gap(const checked_source *s)
{
    weir_held gap = { .row_hi = tensor_of(s)->source_rows[s->source] };
    size_t n = 0;
    s->lines[n++] = gap.row_hi;
    for (size_t i = 0; i < s->n_boxes; i++) {
        s->lines[n++] = s->boxes[i].row_lo;
        s->lines[n++] = s->boxes[i].row_hi;
    }
    qsort(s->lines, n, sizeof(*s->lines), compare_numbers);
    for (size_t i = 0; i < n; gap.row_lo = s->lines[i++]) {
        gap.row_hi = s->lines[i];
        if (gap.row_lo < gap.row_hi && find_columns(s, &gap))
            return fail_gap(s, &gap);
    }
    return weir_fail(WEIR_ERR_INTERNAL, "%s: a gap that is none", name_of(s));
}

static weir_status check_experts(const checked_source *s)
{
    const weir_fleet_tensor *t = tensor_of(s);
    uint64_t n_missing = t->source_rows[s->source] * t->n_cols;
    weir_status status = check_overlaps(s);
    if (status != WEIR_OK)
        return status;
    for (size_t i = 0; i < s->n_boxes; i++) {
        const weir_held *b = &s->boxes[i];
        if (i == 0 || !same_box(b - 1, b))
            n_missing -= (b->row_hi - b->row_lo) * (b->col_hi - b->col_lo);
    }
    return n_missing == 0 ? WEIR_OK : name_gap(s);
}

/* ---- all sources -----------------------------------------------------------------------------*/

/* Where another set of boxes begins: expert ids, sorted, with the end. */
static size_t expert_lines(const weir_held *held, size_t n, uint32_t n_experts, uint64_t *lines)
{
    size_t n_lines = 0, kept = 0;
    lines[n_lines++] = 0;
    lines[n_lines++] = n_experts;
    for (size_t i = 0; i < n; i++) {
        lines[n_lines++] = held[i].expert_lo;
        lines[n_lines++] = held[i].expert_hi;
    }
    qsort(lines, n_lines, sizeof(*lines), compare_numbers);
    for (size_t i = 0; i < n_lines; i++) {
        if (kept == 0 || lines[kept - 1] != lines[i])
            lines[kept++] = lines[i];
    }
    return kept;
}

/* `held` are the source's boxes, by their first expert. */
static weir_status check_source(checked_source *s, const weir_held *held, size_t n,
                                uint64_t *expert_ends)
{
    const weir_fleet_tensor *t = tensor_of(s);
    weir_status status = WEIR_OK;
    size_t first = 0;
    size_t n_lines = expert_lines(held, n, t->n_experts > 0 ? t->n_experts : 1, expert_ends);
    for (size_t x = 0; x + 1 < n_lines && status == WEIR_OK; x++) {
        s->expert_lo = (uint32_t)expert_ends[x];
        s->expert_hi = (uint32_t)expert_ends[x + 1];
        s->n_boxes = 0;
        while (first < n && held[first].expert_hi <= s->expert_lo)
            first++;
        for (size_t i = first; i < n && held[i].expert_lo <= s->expert_lo; i++) {
            if (held[i].expert_hi > s->expert_lo)
                s->boxes[s->n_boxes++] = held[i];
        }
        qsort(s->boxes, s->n_boxes, sizeof(*s->boxes), compare_boxes);
        status = check_experts(s);
    }
    return status;
}

static weir_status check_all(const weir_described_model *model, const weir_held *sorted, size_t n,
                             checked_source *s, uint64_t *expert_ends)
{
    weir_status status = WEIR_OK;
    size_t first = 0, end = 0;
    for (s->tensor = 0; s->tensor < model->n_tensors && status == WEIR_OK; s->tensor++) {
        for (s->source = 0; s->source < tensor_of(s)->n_sources && status == WEIR_OK; s->source++) {
            while (end < n && sorted[end].tensor == s->tensor && sorted[end].source == s->source)
                end++;
            status = check_source(s, sorted + first, end - first, expert_ends);
            first = end;
        }
    }
    return status;
}

weir_status weir_held_check(const weir_described_model *model, const weir_held *held, size_t n_held)
{
    checked_source s = { .model = model };
    weir_held *sorted = weir_alloc_zeroed(n_held, sizeof(*sorted));
    uint64_t *expert_ends = weir_alloc_zeroed(2 * n_held + 2, sizeof(*expert_ends));
    s.boxes = weir_alloc_zeroed(n_held, sizeof(*s.boxes));
    s.lines = weir_alloc_zeroed(2 * n_held + 1, sizeof(*s.lines));
    weir_status status = WEIR_ERR_NO_MEMORY;
    if (sorted != NULL && expert_ends != NULL && s.boxes != NULL && s.lines != NULL) {
        if (n_held > 0)
            memcpy(sorted, held, n_held * sizeof(*sorted));
        qsort(sorted, n_held, sizeof(*sorted), compare_sources);
        status = check_all(model, sorted, n_held, &s, expert_ends);
    }
    weir_free(sorted);
    weir_free(expert_ends);
    weir_free(s.boxes);
    weir_free(s.lines);
    return status;
}
