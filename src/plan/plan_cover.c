/* SPDX-License-Identifier: Apache-2.0 */
/* plan_cover.c - which of the pieces that sources have of a parameter fill it, and that they do.
 *
 * Pieces are sorted by where they begin, and one of equal boxes is chosen. That what is left covers
 * the parameter is seen from runs of bytes that follow each other, as nearly all cuts leave them;
 * where they do not, exact_cover.c looks at the boxes, and says what is wrong with them.
 */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/digest.h"
#include "plan/box.h"
#include "plan/exact_cover.h"
#include "plan/planner.h"
#include "plan/shard_match.h"

static weir_plan_copy *copy_of(const weir_planner *p, const weir_plan_piece *at)
{
    return &p->plan->copies[at->copy];
}

static const weir_shard *shard_of(const weir_planner *p, const weir_plan_piece *at)
{
    const weir_plan_copy *copy = copy_of(p, at);
    return &p->sources[copy->source].shards[copy->shard];
}

static const char *worker_of(const weir_planner *p, const weir_plan_piece *at)
{
    return p->sources[copy_of(p, at)->source].worker;
}

/* By first byte; equal boxes stand together, by source. */
static int compare_pieces(const void *a, const void *b, void *context)
{
    const weir_planner *p = context;
    const weir_plan_piece *x = a, *y = b;
    if (x->first_byte != y->first_byte)
        return x->first_byte < y->first_byte ? -1 : 1;
    const weir_box *left = &shard_of(p, x)->box, *right = &shard_of(p, y)->box;
    for (uint32_t d = 0; d < left->rank; d++) {
        if (left->hi[d] != right->hi[d])
            return left->hi[d] < right->hi[d] ? -1 : 1;
    }
    return (x->copy > y->copy) - (x->copy < y->copy);
}

/* Of n_same pieces of the same box, the one whose source has been asked for least. They must hold
 * the same bytes, or the sources are not of one version. */
static weir_plan_piece choose_piece(weir_planner *p, const weir_plan_piece *same, size_t n_same)
{
    const weir_plan_piece *best = &same[0];
    const weir_shard *a = n_same > 1 ? shard_of(p, &same[0]) : NULL;
    char box[WEIR_BOX_TEXT];
    for (size_t i = 1; i < n_same; i++) {
        const weir_shard *b = shard_of(p, &same[i]);
        uint32_t source = copy_of(p, &same[i])->source;
        if (source == copy_of(p, &same[i - 1])->source)
            weir_planner_problem(p, "%s: %s publishes %s twice", a->name, worker_of(p, &same[i]),
                                 weir_box_text(&a->box, box));
        else if (!weir_digest_equal(&a->digest, &b->digest))
            weir_planner_problem(p, "%s: %s differs between %s and %s", a->name,
                                 weir_box_text(&a->box, box), worker_of(p, &same[0]),
                                 worker_of(p, &same[i]));
        if (p->given_bytes[source] < p->given_bytes[copy_of(p, best)->source])
            best = &same[i];
    }
    p->given_bytes[copy_of(p, best)->source] += copy_of(p, best)->n_bytes;
    return *best;
}

/* Leaves one of equal boxes each, and returns how many. */
static size_t choose_pieces(weir_planner *p, weir_plan_piece *pieces, size_t n_pieces)
{
    size_t n_chosen = 0, n_same;
    for (size_t i = 0; i < n_pieces; i += n_same) {
        n_same = 1;
        while (
            i + n_same < n_pieces && pieces[i + n_same].first_byte == pieces[i].first_byte &&
            weir_box_equal(&shard_of(p, &pieces[i + n_same])->box, &shard_of(p, &pieces[i])->box))
            n_same++;
        pieces[n_chosen++] = choose_piece(p, &pieces[i], n_same);
    }
    return n_chosen;
}

static void report_padding(weir_planner *p, const weir_plan_piece *pieces, size_t n_pieces)
{
    const weir_shard *a = shard_of(p, &pieces[0]), *b = a;
    size_t i = 0;
    while (++i < n_pieces && a->n_padding_rows == b->n_padding_rows)
        b = shard_of(p, &pieces[i]);
    weir_planner_problem(p, "%s: %" PRIu64 " rows of padding at %s, %" PRIu64 " at %s", a->name,
                         a->n_padding_rows, worker_of(p, &pieces[0]), b->n_padding_rows,
                         worker_of(p, &pieces[i - 1]));
}

static void report_cover(weir_planner *p, const char *name, const weir_plan_piece *pieces,
                         size_t n_pieces, const weir_cover *found)
{
    char text[2][WEIR_BOX_TEXT];
    const weir_plan_piece *first = &pieces[found->first], *second = &pieces[found->second];
    weir_shape before = { .rank = found->axis };
    memcpy(before.dim, found->at, sizeof(before.dim));
    switch (found->kind) {
    case WEIR_COVER_EXACT:
        break;
    case WEIR_COVER_GAP:
        weir_planner_problem(p, "%s: coverage gap at axis %u [%" PRIu64 ", %" PRIu64 ")%s%s", name,
                             found->axis, found->lo, found->hi, found->axis > 0 ? " of index " : "",
                             found->axis > 0 ? weir_shape_text(&before, text[0], sizeof(text[0]))
                                             : "");
        break;
    case WEIR_COVER_OVERLAP:
        weir_planner_problem(p, "%s: %s of %s overlaps %s of %s", name,
                             weir_box_text(&shard_of(p, second)->box, text[0]),
                             worker_of(p, second), weir_box_text(&shard_of(p, first)->box, text[1]),
                             worker_of(p, first));
        break;
    case WEIR_COVER_TOO_FINE:
        weir_planner_problem(p, "%s: cut along %u axes into %zu boxes, more than can be compared",
                             name, found->n_cut_axes, n_pieces);
        break;
    }
}

static weir_status compare_boxes(weir_planner *p, const weir_parameter *wanted,
                                 const weir_shape *filled, const weir_plan_piece *pieces,
                                 size_t n_pieces)
{
    weir_cover found;
    weir_arena_reset(&p->scratch);
    const weir_box **boxes = weir_arena_zeroed(&p->scratch, n_pieces, sizeof(const weir_box *));
    if (boxes == NULL)
        return WEIR_ERR_NO_MEMORY;
    for (size_t i = 0; i < n_pieces; i++)
        boxes[i] = &shard_of(p, &pieces[i])->box;
    weir_status status = weir_cover_of(filled, boxes, n_pieces, &p->scratch, &found);
    if (status == WEIR_OK)
        report_cover(p, wanted->name, pieces, n_pieces, &found);
    return status;
}

/* Whether pieces, in the order of their first bytes, take each of n_bytes once: runs one behind the
 * other, or several columns of the same rows that are side by side. False: not seen that way. */
static bool are_rows_of_runs(const weir_planner *p, const weir_plan_piece *pieces, size_t n_pieces,
                             uint64_t n_bytes)
{
    uint64_t at = 0;
    for (size_t i = 0; i < n_pieces;) {
        const weir_plan_copy *first = copy_of(p, &pieces[i]);
        uint64_t n_runs = first->n_bytes / first->run_bytes, width = 0;
        uint64_t pitch = n_runs > 1 ? first->pitch_bytes : first->run_bytes;
        for (; i < n_pieces && width < pitch; i++) {
            const weir_plan_copy *copy = copy_of(p, &pieces[i]);
            if (copy->parameter_offset != at + width || copy->n_bytes / copy->run_bytes != n_runs ||
                (n_runs > 1 && copy->pitch_bytes != pitch))
                return false;
            width += copy->run_bytes;
        }
        if (width != pitch)
            return false;
        at += n_runs * pitch;
    }
    return at == n_bytes;
}

static weir_status check_cover(weir_planner *p, const weir_parameter *wanted,
                               const weir_shape *filled, const weir_plan_piece *pieces,
                               size_t n_pieces)
{
    uint64_t n_bytes;
    if (weir_tensor_bytes(wanted->dtype, filled, &n_bytes) == WEIR_OK &&
        are_rows_of_runs(p, pieces, n_pieces, n_bytes))
        return WEIR_OK;
    return compare_boxes(p, wanted, filled, pieces, n_pieces);
}

static void take_pieces(weir_planner *p, const weir_plan_piece *pieces, size_t n_pieces)
{
    uint64_t packed = 0;
    for (size_t i = 0; i < n_pieces; i++) {
        weir_plan_copy *copy = copy_of(p, &pieces[i]);
        copy->packed_offset = packed;
        packed += copy->n_bytes;
    }
    p->plan->n_bytes += packed;
}

static void sort_pieces(weir_planner *p, weir_plan_piece *pieces, size_t n_pieces)
{
    size_t i = 1;
    while (i < n_pieces && pieces[i - 1].first_byte < pieces[i].first_byte)
        i++;
    if (i < n_pieces)
        qsort_r(pieces, n_pieces, sizeof(*pieces), compare_pieces, p);
}

static weir_status cover_parameter(weir_planner *p, uint32_t parameter)
{
    const weir_parameter *wanted = &p->wanted[parameter];
    weir_plan_piece *pieces = p->pieces + p->first[parameter];
    size_t n_pieces = p->findings[parameter].n_pieces;
    sort_pieces(p, pieces, n_pieces);
    if (p->findings[parameter].padding_differs) {
        report_padding(p, pieces, n_pieces);
        return WEIR_OK;
    }
    size_t n_chosen = choose_pieces(p, pieces, n_pieces);
    weir_shape filled = weir_shard_filled(shard_of(p, pieces));
    if (weir_shape_empty(&filled))
        return WEIR_OK; /* all padding: there is nothing to copy */
    weir_status status = check_cover(p, wanted, &filled, pieces, n_chosen);
    if (status == WEIR_OK)
        take_pieces(p, pieces, n_chosen);
    return status;
}

weir_status weir_planner_cover(weir_planner *p)
{
    weir_status status = WEIR_OK;
    for (uint32_t i = 0; i < p->n_wanted && status == WEIR_OK; i++) {
        if (p->wanted[i].entry == SIZE_MAX)
            continue;
        if (p->findings[i].n_pieces == 0)
            weir_planner_problem(p, "%s: no source publishes it", p->wanted[i].name);
        else
            status = cover_parameter(p, i);
    }
    return status;
}
