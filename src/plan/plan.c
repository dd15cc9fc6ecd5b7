/* SPDX-License-Identifier: Apache-2.0 */
/* plan.c - which bytes of which source fill which parameter, after everything has been compared.
 *
 * Shards are grouped by parameter with a counting sort, then a cursor walks each parameter's shards
 * from row 0 to its end: whatever it cannot step over is a gap or an overlap. Differences do not
 * stop the walk: the first one becomes the error line, the others are counted.
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
#include "plan/tag.h"

struct weir_plan {
    weir_plan_copy *copies;
    size_t n_copies;
    uint64_t n_bytes;
};

/* One shard of the parameter at hand: where it stands, and its rows. */
typedef struct piece {
    uint32_t source, shard;
    uint64_t lo, hi;
} piece;

typedef struct planner {
    const weir_parameter *wanted;
    size_t n_wanted;
    const weir_plan_source *sources;
    size_t n_sources;
    uint32_t *by_name;     /* wanted parameters, sorted by name */
    piece *pieces;         /* all shards, grouped by parameter */
    size_t *first;         /* of each parameter's pieces; n_wanted + 1 of them */
    uint64_t *given_bytes; /* by source: what it has been asked for */
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

/* The wanted parameter of that name, looking first where the caller guesses; UINT32_MAX: none. */
static uint32_t find_wanted(const planner *p, const char *name, uint32_t guess)
{
    if (guess < p->n_wanted && strcmp(p->wanted[guess].name, name) == 0)
        return guess;
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

/* Bytes of `n_rows` rows of a parameter, one row being everything but the first axis. */
static bool row_bytes(const weir_parameter *parameter, uint64_t n_rows, uint64_t *out_bytes)
{
    weir_shape shape = parameter->shape;
    if (shape.rank > 0)
        shape.dim[0] = n_rows;
    return weir_tensor_bytes(parameter->dtype, &shape, out_bytes) == WEIR_OK;
}

/* Whole rows, within the shape, of as many bytes as they say. */
static bool check_box(planner *p, const weir_shard *shard, const weir_parameter *parameter,
                      const char *worker)
{
    const weir_box *box = &shard->box;
    const weir_shape *shape = &parameter->shape;
    bool fits = box->rank == shape->rank;
    for (uint32_t d = 0; fits && d < shape->rank; d++) {
        if (d == 0)
            fits = box->lo[0] < box->hi[0] && box->hi[0] <= shape->dim[0];
        else
            fits = box->lo[d] == 0 && box->hi[d] == shape->dim[d];
    }
    if (!fits) {
        problem(p, "%s: %s publishes a part that is no range of whole rows of it", shard->name,
                worker);
        return false;
    }
    uint64_t n_bytes, end;
    uint64_t n_rows = shape->rank > 0 ? box->hi[0] - box->lo[0] : 1;
    if (!row_bytes(parameter, n_rows, &n_bytes) || n_bytes != shard->n_bytes) {
        problem(p, "%s: %s publishes %" PRIu64 " bytes for %" PRIu64 " rows", shard->name, worker,
                shard->n_bytes, n_rows);
        return false;
    }
    if (__builtin_add_overflow(shard->offset, shard->n_bytes, &end)) {
        problem(p, "%s: %s publishes it at an impossible offset", shard->name, worker);
        return false;
    }
    return true;
}

static bool check_shard(planner *p, const weir_shard *shard, const weir_parameter *parameter,
                        const char *worker)
{
    char got[WEIR_SHAPE_TEXT], want[WEIR_SHAPE_TEXT], difference[WEIR_TAG_TEXT];
    if (shard->dtype != parameter->dtype) {
        problem(p, "%s: dtype is %s at %s, this replica needs %s", shard->name,
                weir_dtype_name(shard->dtype), worker, weir_dtype_name(parameter->dtype));
        return false;
    }
    if (shard->global_shape.rank > WEIR_MAX_RANK ||
        !weir_shape_equal(&shard->global_shape, &parameter->shape)) {
        problem(p, "%s: shape is %s at %s, this replica needs %s", shard->name,
                weir_shape_text(&shard->global_shape, got, sizeof(got)), worker,
                weir_shape_text(&parameter->shape, want, sizeof(want)));
        return false;
    }
    if (strcmp(shard->compile_target, parameter->compile_target) != 0) {
        problem(p, "%s: compile target is %s at %s, this replica needs %s", shard->name,
                shard->compile_target, worker, parameter->compile_target);
        return false;
    }
    if (!weir_tag_metadata_equal(shard->compile_metadata, parameter->compile_metadata, worker,
                                 difference)) {
        problem(p, "%s: compile metadata %s", shard->name, difference);
        return false;
    }
    return check_box(p, shard, parameter, worker);
}

/* Calls for every shard that fits its parameter; NULL `place`: only counts, and complains. */
static void walk_shards(planner *p, size_t *place)
{
    for (uint32_t s = 0; s < p->n_sources; s++) {
        const weir_plan_source *source = &p->sources[s];
        uint32_t guess = 0;
        for (uint32_t i = 0; i < source->n_shards; i++, guess++) {
            const weir_shard *shard = &source->shards[i];
            uint32_t at = find_wanted(p, shard->name, guess);
            if (at == UINT32_MAX) {
                if (place == NULL)
                    problem(p, "%s: published by %s, this replica has no such parameter",
                            shard->name, source->worker);
                continue;
            }
            guess = at;
            const weir_parameter *parameter = &p->wanted[at];
            if (parameter->entry == SIZE_MAX)
                continue; /* the replica computes it */
            if (place == NULL) {
                if (check_shard(p, shard, parameter, source->worker))
                    p->first[at + 1]++;
            } else {
                bool scalar = parameter->shape.rank == 0;
                p->pieces[place[at]++] =
                    (piece){ s, i, scalar ? 0 : shard->box.lo[0], scalar ? 1 : shard->box.hi[0] };
            }
        }
    }
}

/* ---- a cursor over one parameter -------------------------------------------------------------*/

static int compare_pieces(const void *a, const void *b)
{
    const piece *x = a, *y = b;
    if (x->lo != y->lo)
        return x->lo < y->lo ? -1 : 1;
    if (x->hi != y->hi)
        return x->hi < y->hi ? -1 : 1;
    return (x->source > y->source) - (x->source < y->source);
}

static const weir_shard *shard_of(const planner *p, const piece *at)
{
    return &p->sources[at->source].shards[at->shard];
}

/* Of n_same pieces of the same rows, the one whose source has been asked for least. They must hold
 * the same bytes, or the sources are not of one version. */
static const piece *choose_piece(planner *p, const piece *same, size_t n_same)
{
    const piece *best = &same[0];
    for (size_t i = 1; i < n_same; i++) {
        const weir_shard *a = shard_of(p, &same[0]), *b = shard_of(p, &same[i]);
        if (!weir_digest_equal(&a->digest, &b->digest))
            problem(p, "%s: rows [%" PRIu64 ", %" PRIu64 ") differ between %s and %s", a->name,
                    same->lo, same->hi, p->sources[same[0].source].worker,
                    p->sources[same[i].source].worker);
        if (p->given_bytes[same[i].source] < p->given_bytes[best->source])
            best = &same[i];
    }
    return best;
}

static void add_copy(planner *p, uint32_t parameter, const piece *at)
{
    const weir_shard *shard = shard_of(p, at);
    uint64_t offset = 0;
    row_bytes(&p->wanted[parameter], at->lo, &offset);
    p->given_bytes[at->source] += shard->n_bytes;
    p->plan->n_bytes += shard->n_bytes;
    p->plan->copies[p->plan->n_copies++] = (weir_plan_copy){
        .source = at->source,
        .shard = at->shard,
        .region = shard->region,
        .source_offset = shard->offset,
        .parameter = parameter,
        .parameter_offset = at->lo == 0 ? 0 : offset,
        .n_bytes = shard->n_bytes,
        .run_bytes = shard->n_bytes,
        .packed_offset = at->lo == 0 ? 0 : offset,
    };
}

static void cover_parameter(planner *p, uint32_t parameter)
{
    const weir_parameter *wanted = &p->wanted[parameter];
    const piece *at = p->pieces + p->first[parameter];
    const piece *end = p->pieces + p->first[parameter + 1];
    uint64_t cursor = 0, n_rows = wanted->shape.rank > 0 ? wanted->shape.dim[0] : 1;
    qsort(p->pieces + p->first[parameter], (size_t)(end - at), sizeof(*at), compare_pieces);
    while (at < end && at->lo == cursor) {
        size_t n_same = 1;
        while (at + n_same < end && at[n_same].lo == at->lo && at[n_same].hi == at->hi)
            n_same++;
        add_copy(p, parameter, choose_piece(p, at, n_same));
        cursor = at->hi;
        at += n_same;
    }
    if (at < end && at->lo < cursor)
        problem(p,
                "%s: rows [%" PRIu64 ", %" PRIu64 ") of %s overlap rows before %" PRIu64
                " of another part",
                wanted->name, at->lo, at->hi, p->sources[at->source].worker, cursor);
    else if (cursor < n_rows)
        problem(p, "%s: coverage gap at axis 0 [%" PRIu64 ", %" PRIu64 ")", wanted->name, cursor,
                at < end ? at->lo : n_rows);
}

static void cover_all(planner *p)
{
    for (uint32_t i = 0; i < p->n_wanted; i++) {
        if (p->wanted[i].entry == SIZE_MAX)
            continue;
        if (p->first[i] == p->first[i + 1])
            problem(p, "%s: no source publishes it", p->wanted[i].name);
        else
            cover_parameter(p, i);
    }
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

static weir_status make_plan(planner *p, weir_arena *scratch)
{
    walk_shards(p, NULL);
    /* What differs also leaves gaps: naming those too would bury the cause. */
    if (p->n_problems > 0)
        return report(p);
    for (size_t i = 0; i < p->n_wanted; i++)
        p->first[i + 1] += p->first[i];
    size_t n_pieces = p->first[p->n_wanted];
    size_t *place = weir_arena_alloc(scratch, (p->n_wanted + 1) * sizeof(*place));
    p->pieces = weir_arena_zeroed(scratch, n_pieces, sizeof(piece));
    p->plan->copies = weir_alloc_zeroed(n_pieces, sizeof(weir_plan_copy));
    if (place == NULL || p->pieces == NULL || p->plan->copies == NULL)
        return WEIR_ERR_NO_MEMORY;
    memcpy(place, p->first, (p->n_wanted + 1) * sizeof(*place));
    walk_shards(p, place);
    cover_all(p);
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
    (void)place;
    weir_status status = check_counts(n_wanted, sources, n_sources);
    if (status != WEIR_OK)
        return status;
    weir_arena scratch;
    weir_arena_init(&scratch, 0);
    planner p = {
        .wanted = wanted, .n_wanted = n_wanted, .sources = sources, .n_sources = n_sources
    };
    p.by_name = weir_arena_zeroed(&scratch, n_wanted, sizeof(p.by_name[0]));
    p.first = weir_arena_zeroed(&scratch, n_wanted + 1, sizeof(p.first[0]));
    p.given_bytes = weir_arena_zeroed(&scratch, n_sources, sizeof(p.given_bytes[0]));
    p.plan = weir_alloc_zeroed(1, sizeof(*p.plan));
    if (p.by_name == NULL || p.first == NULL || p.given_bytes == NULL || p.plan == NULL)
        status = WEIR_ERR_NO_MEMORY;
    if (status == WEIR_OK)
        status = sort_wanted(&p);
    if (status == WEIR_OK)
        status = make_plan(&p, &scratch);
    weir_arena_close(&scratch);
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
