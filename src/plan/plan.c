/* SPDX-License-Identifier: Apache-2.0 */
/* plan.c - which bytes of which source fill which parameter, after everything has been compared.
 *
 * Shards of the worker's place are grouped by parameter with a counting sort; then each parameter's
 * are sorted by where they begin, one of equal boxes is chosen, and exact_cover.c looks at the
 * boxes that are left. Differences do not stop the walk: the first one becomes the error line, the
 * others are counted.
 */
#include "weir/plan.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "base/arena.h"
#include "base/digest.h"
#include "base/error.h"
#include "plan/box.h"
#include "plan/exact_cover.h"
#include "plan/shard_match.h"

struct weir_plan {
    weir_plan_copy *copies;
    size_t n_copies;
    uint64_t n_bytes;
};

/* One shard of the parameter at hand. */
typedef struct piece {
    uint32_t source, shard;
    uint64_t first_byte; /* of the parameter */
} piece;

typedef struct planner {
    const weir_parameter *wanted;
    size_t n_wanted;
    const weir_mesh_place *place;
    const weir_plan_source *sources;
    size_t n_sources;
    uint32_t *by_name;     /* wanted parameters, sorted by name */
    piece *pieces;         /* all shards, grouped by parameter */
    size_t *first;         /* of each parameter's pieces; n_wanted + 1 of them */
    uint64_t *given_bytes; /* by source: what it has been asked for */
    weir_arena scratch;    /* of one parameter's cover */
    weir_plan *plan;
    weir_error_line line;
    size_t n_problems;
} planner;

static void problem(planner *p, const char *format, ...) __attribute__((format(printf, 2, 3)));

static void problem(planner *p, const char *format, ...)
{
    if (p->n_problems++ > 0)
        return;
    va_list args;
    va_start(args, format);
    vsnprintf(p->line.text, sizeof(p->line.text) - 64, format, args);
    va_end(args);
}

/* ---- shards to parameters --------------------------------------------------------------------*/

static int compare_names(const void *a, const void *b, void *context)
{
    const weir_parameter *wanted = context;
    return strcmp(wanted[*(const uint32_t *)a].name, wanted[*(const uint32_t *)b].name);
}

/* The wanted parameter of that name, looking first at the one that the shard before was of, and at
 * the next; UINT32_MAX: none. */
static uint32_t find_wanted(const planner *p, const char *name, uint32_t before)
{
    for (uint32_t guess = before; guess < p->n_wanted && guess < before + 2; guess++) {
        if (strcmp(p->wanted[guess].name, name) == 0)
            return guess;
    }
    size_t low = 0, high = p->n_wanted;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        int order = strcmp(p->wanted[p->by_name[middle]].name, name);
        if (order == 0)
            return p->by_name[middle];
        if (order < 0)
            low = middle + 1;
        else
            high = middle;
    }
    return UINT32_MAX;
}

static weir_box_runs runs_of(const weir_shard *shard)
{
    weir_box_runs runs = { 0 };
    weir_box_runs_of(shard->dtype, &shard->global_shape, &shard->box, &runs);
    return runs;
}

/* Looks at every shard of this worker's parameters. `next` NULL: complains, and counts those that
 * fit; else: puts each where `next` says. */
static void walk_shards(planner *p, size_t *next)
{
    char why[WEIR_ERROR_TEXT];
    for (uint32_t s = 0; s < p->n_sources; s++) {
        const weir_plan_source *source = &p->sources[s];
        uint32_t before = 0;
        for (uint32_t i = 0; i < source->n_shards; i++) {
            const weir_shard *shard = &source->shards[i];
            if (!weir_mesh_place_matches(&shard->place, p->place))
                continue;
            uint32_t at = find_wanted(p, shard->name, before);
            if (at == UINT32_MAX) {
                if (next == NULL)
                    problem(p, "%s: published by %s, this replica has no such parameter",
                            shard->name, source->worker);
                continue;
            }
            before = at;
            const weir_parameter *parameter = &p->wanted[at];
            if (parameter->entry == SIZE_MAX)
                continue; /* the replica computes it */
            if (next != NULL)
                p->pieces[next[at]++] = (piece){ s, i, runs_of(shard).offset };
            else if (weir_shard_matches(shard, parameter, source->worker, why))
                p->first[at + 1]++;
            else
                problem(p, "%s", why);
        }
    }
}

/* ---- covering one parameter ------------------------------------------------------------------*/

static const weir_shard *shard_of(const planner *p, const piece *at)
{
    return &p->sources[at->source].shards[at->shard];
}

static const char *worker_of(const planner *p, const piece *at)
{
    return p->sources[at->source].worker;
}

/* By first byte; equal boxes stand together, by source. */
static int compare_pieces(const void *a, const void *b, void *context)
{
    const planner *p = context;
    const piece *x = a, *y = b;
    if (x->first_byte != y->first_byte)
        return x->first_byte < y->first_byte ? -1 : 1;
    const weir_box *left = &shard_of(p, x)->box, *right = &shard_of(p, y)->box;
    for (uint32_t d = 0; d < left->rank; d++) {
        if (left->hi[d] != right->hi[d])
            return left->hi[d] < right->hi[d] ? -1 : 1;
    }
    if (x->source != y->source)
        return x->source < y->source ? -1 : 1;
    return (x->shard > y->shard) - (x->shard < y->shard);
}

/* Of n_same pieces of the same box, the one whose source has been asked for least. They must hold
 * the same bytes, or the sources are not of one version. */
static piece choose_piece(planner *p, const piece *same, size_t n_same)
{
    const piece *best = &same[0];
    const weir_shard *a = shard_of(p, &same[0]);
    char box[WEIR_BOX_TEXT];
    for (size_t i = 1; i < n_same; i++) {
        const weir_shard *b = shard_of(p, &same[i]);
        if (same[i].source == same[i - 1].source)
            problem(p, "%s: %s publishes %s twice", a->name, worker_of(p, &same[i]),
                    weir_box_text(&a->box, box));
        else if (!weir_digest_equal(&a->digest, &b->digest))
            problem(p, "%s: %s differs between %s and %s", a->name, weir_box_text(&a->box, box),
                    worker_of(p, &same[0]), worker_of(p, &same[i]));
        if (p->given_bytes[same[i].source] < p->given_bytes[best->source])
            best = &same[i];
    }
    p->given_bytes[best->source] += a->n_bytes;
    return *best;
}

/* Leaves one of equal boxes each, and returns how many. */
static size_t choose_pieces(planner *p, piece *pieces, size_t n_pieces)
{
    size_t n_chosen = 0, n_same;
    for (size_t i = 0; i < n_pieces; i += n_same) {
        const weir_box *box = &shard_of(p, &pieces[i])->box;
        n_same = 1;
        while (i + n_same < n_pieces && pieces[i + n_same].first_byte == pieces[i].first_byte &&
               weir_box_equal(&shard_of(p, &pieces[i + n_same])->box, box))
            n_same++;
        pieces[n_chosen++] = choose_piece(p, &pieces[i], n_same);
    }
    return n_chosen;
}

static bool padding_agrees(planner *p, const piece *pieces, size_t n_pieces)
{
    const weir_shard *a = shard_of(p, &pieces[0]);
    for (size_t i = 1; i < n_pieces; i++) {
        const weir_shard *b = shard_of(p, &pieces[i]);
        if (a->n_padding_rows == b->n_padding_rows)
            continue;
        problem(p, "%s: %" PRIu64 " rows of padding at %s, %" PRIu64 " at %s", a->name,
                a->n_padding_rows, worker_of(p, &pieces[0]), b->n_padding_rows,
                worker_of(p, &pieces[i]));
        return false;
    }
    return true;
}

static void report_cover(planner *p, const char *name, const piece *pieces, size_t n_pieces,
                         const weir_cover *found)
{
    char text[2][WEIR_BOX_TEXT];
    const piece *first = &pieces[found->first], *second = &pieces[found->second];
    weir_shape before = { .rank = found->axis };
    memcpy(before.dim, found->at, sizeof(before.dim));
    switch (found->kind) {
    case WEIR_COVER_EXACT:
        break;
    case WEIR_COVER_GAP:
        problem(p, "%s: coverage gap at axis %u [%" PRIu64 ", %" PRIu64 ")%s%s", name, found->axis,
                found->lo, found->hi, found->axis > 0 ? " of index " : "",
                found->axis > 0 ? weir_shape_text(&before, text[0], sizeof(text[0])) : "");
        break;
    case WEIR_COVER_OVERLAP:
        problem(p, "%s: %s of %s overlaps %s of %s", name,
                weir_box_text(&shard_of(p, second)->box, text[0]), worker_of(p, second),
                weir_box_text(&shard_of(p, first)->box, text[1]), worker_of(p, first));
        break;
    case WEIR_COVER_TOO_FINE:
        problem(p, "%s: cut along %u axes into %zu boxes, more than can be compared", name,
                found->n_cut_axes, n_pieces);
        break;
    }
}

static weir_status check_cover(planner *p, const weir_parameter *wanted, const weir_shape *filled,
                               const piece *pieces, size_t n_pieces)
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

static void add_copies(planner *p, uint32_t parameter, const piece *pieces, size_t n_pieces)
{
    uint64_t packed = 0;
    for (size_t i = 0; i < n_pieces; i++) {
        const weir_shard *shard = shard_of(p, &pieces[i]);
        weir_box_runs runs = runs_of(shard);
        p->plan->copies[p->plan->n_copies++] = (weir_plan_copy){
            .source = pieces[i].source,
            .shard = pieces[i].shard,
            .region = shard->region,
            .source_offset = shard->offset,
            .parameter = parameter,
            .parameter_offset = runs.offset,
            .n_bytes = runs.n_bytes,
            .run_bytes = runs.run_bytes,
            .pitch_bytes = runs.pitch_bytes,
            .packed_offset = packed,
        };
        packed += runs.n_bytes;
    }
    p->plan->n_bytes += packed;
}

static weir_status cover_parameter(planner *p, uint32_t parameter)
{
    const weir_parameter *wanted = &p->wanted[parameter];
    piece *pieces = p->pieces + p->first[parameter];
    size_t n_pieces = p->first[parameter + 1] - p->first[parameter];
    qsort_r(pieces, n_pieces, sizeof(*pieces), compare_pieces, p);
    if (!padding_agrees(p, pieces, n_pieces))
        return WEIR_OK;
    size_t n_chosen = choose_pieces(p, pieces, n_pieces);
    weir_shape filled = weir_shard_filled(shard_of(p, pieces));
    if (weir_shape_empty(&filled))
        return WEIR_OK; /* all padding: there is nothing to copy */
    weir_status status = check_cover(p, wanted, &filled, pieces, n_chosen);
    if (status == WEIR_OK)
        add_copies(p, parameter, pieces, n_chosen);
    return status;
}

static weir_status cover_all(planner *p)
{
    weir_status status = WEIR_OK;
    for (uint32_t i = 0; i < p->n_wanted && status == WEIR_OK; i++) {
        if (p->wanted[i].entry == SIZE_MAX)
            continue;
        if (p->first[i] == p->first[i + 1])
            problem(p, "%s: no source publishes it", p->wanted[i].name);
        else
            status = cover_parameter(p, i);
    }
    return status;
}

/* ---- opening ---------------------------------------------------------------------------------*/

static int compare_copies(const void *a, const void *b)
{
    const weir_plan_copy *x = a, *y = b;
    if (x->source != y->source)
        return x->source < y->source ? -1 : 1;
    if (x->region != y->region)
        return x->region < y->region ? -1 : 1;
    return (x->source_offset > y->source_offset) - (x->source_offset < y->source_offset);
}

static weir_status sort_wanted(planner *p)
{
    for (uint32_t i = 0; i < p->n_wanted; i++)
        p->by_name[i] = i;
    qsort_r(p->by_name, p->n_wanted, sizeof(p->by_name[0]), compare_names,
            (void *)(uintptr_t)p->wanted);
    for (size_t i = 1; i < p->n_wanted; i++) {
        const char *name = p->wanted[p->by_name[i]].name;
        if (strcmp(name, p->wanted[p->by_name[i - 1]].name) == 0)
            return weir_fail(WEIR_ERR_INVALID, "parameter %s is wanted twice", name);
    }
    return WEIR_OK;
}

static weir_status report(const planner *p)
{
    if (p->n_problems == 0)
        return WEIR_OK;
    if (p->n_problems == 1)
        return weir_fail(WEIR_ERR_LAYOUT, "%s", p->line.text);
    return weir_fail(WEIR_ERR_LAYOUT, "%s (and %zu more)", p->line.text, p->n_problems - 1);
}

static weir_status make_plan(planner *p, weir_arena *tables)
{
    walk_shards(p, NULL);
    /* What differs also leaves gaps: naming those too would bury the cause. */
    if (p->n_problems > 0)
        return report(p);
    for (size_t i = 0; i < p->n_wanted; i++)
        p->first[i + 1] += p->first[i];
    size_t n_pieces = p->first[p->n_wanted];
    size_t *next = weir_arena_alloc(tables, (p->n_wanted + 1) * sizeof(*next));
    p->pieces = weir_arena_zeroed(tables, n_pieces, sizeof(piece));
    p->plan->copies = weir_alloc_zeroed(n_pieces, sizeof(weir_plan_copy));
    if (next == NULL || p->pieces == NULL || p->plan->copies == NULL)
        return WEIR_ERR_NO_MEMORY;
    memcpy(next, p->first, (p->n_wanted + 1) * sizeof(*next));
    walk_shards(p, next);
    weir_status status = cover_all(p);
    if (status != WEIR_OK)
        return status;
    qsort(p->plan->copies, p->plan->n_copies, sizeof(weir_plan_copy), compare_copies);
    return report(p);
}

static weir_status check_counts(size_t n_wanted, const weir_plan_source *sources, size_t n_sources)
{
    bool fits = n_wanted < UINT32_MAX && n_sources < UINT32_MAX;
    for (size_t s = 0; s < n_sources && fits; s++)
        fits = sources[s].n_shards < UINT32_MAX;
    return fits ? WEIR_OK : weir_fail(WEIR_ERR_INVALID, "a plan takes less than 2^32 of anything");
}

bool weir_mesh_place_matches(const weir_mesh_place *part, const weir_mesh_place *worker)
{
    return (part->stage == WEIR_ANY || part->stage == worker->stage) &&
           (part->d == WEIR_ANY || part->d == worker->d) &&
           (part->t == WEIR_ANY || part->t == worker->t);
}

weir_status weir_plan_open(const weir_parameter *wanted, size_t n_wanted,
                           const weir_mesh_place *place, const weir_plan_source *sources,
                           size_t n_sources, weir_plan **out)
{
    weir_status status = check_counts(n_wanted, sources, n_sources);
    if (status != WEIR_OK)
        return status;
    weir_arena tables;
    weir_arena_init(&tables, 0);
    planner p = { .wanted = wanted,
                  .n_wanted = n_wanted,
                  .place = place,
                  .sources = sources,
                  .n_sources = n_sources };
    weir_arena_init(&p.scratch, 0);
    p.by_name = weir_arena_zeroed(&tables, n_wanted, sizeof(p.by_name[0]));
    p.first = weir_arena_zeroed(&tables, n_wanted + 1, sizeof(p.first[0]));
    p.given_bytes = weir_arena_zeroed(&tables, n_sources, sizeof(p.given_bytes[0]));
    p.plan = weir_alloc_zeroed(1, sizeof(*p.plan));
    if (p.by_name == NULL || p.first == NULL || p.given_bytes == NULL || p.plan == NULL)
        status = WEIR_ERR_NO_MEMORY;
    if (status == WEIR_OK)
        status = sort_wanted(&p);
    if (status == WEIR_OK)
        status = make_plan(&p, &tables);
    weir_arena_close(&tables);
    weir_arena_close(&p.scratch);
    if (status != WEIR_OK) {
        weir_plan_close(p.plan);
        return status;
    }
    *out = p.plan;
    return WEIR_OK;
}

void weir_plan_close(weir_plan *plan)
{
    if (plan == NULL)
        return;
    weir_free(plan->copies);
    weir_free(plan);
}

const weir_plan_copy *weir_plan_copies(const weir_plan *plan, size_t *out_n_copies)
{
    *out_n_copies = plan->n_copies;
    return plan->copies;
}

uint64_t weir_plan_bytes(const weir_plan *plan)
{
    return plan->n_bytes;
}
