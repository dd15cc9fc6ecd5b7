/* SPDX-License-Identifier: Apache-2.0 */
/* plan.c - which bytes of which source fill which parameter, after everything has been compared.
 *
 * One walk through all shards makes a copy of each that is of the worker's place: what was read of
 * a shard is in no cache a second time, they are that many. Copies are grouped by parameter with a
 * counting sort, and plan_cover.c looks at one parameter after the other. Differences do not stop
 * the walk.
 */
#include "weir/plan.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "plan/box.h"
#include "plan/planner.h"
#include "plan/shard_match.h"

#define MAX_GUESSES 16

void weir_planner_problem(weir_planner *p, const char *format, ...)
{
    if (p->n_problems++ > 0)
        return;
    va_list args;
    va_start(args, format);
    vsnprintf(p->line.text, sizeof(p->line.text) - 64, format, args);
    va_end(args);
}

void weir_planner_mismatch(weir_planner *p, const char *why)
{
    if (p->n_mismatches++ == 0)
        snprintf(p->line.text, sizeof(p->line.text) - 64, "%.*s", (int)sizeof(p->line.text) - 65,
                 why);
    p->n_problems++;
}

/* ---- shards to parameters --------------------------------------------------------------------*/

static int compare_names(const void *a, const void *b, void *context)
{
    const weir_parameter *wanted = context;
    return strcmp(wanted[*(const uint32_t *)a].name, wanted[*(const uint32_t *)b].name);
}

/* The wanted parameter of that name, looking first at the one that the shard before was of, and at
 * the next few: sources list them in the model's order and have some of each layer. UINT32_MAX:
 * none. */
static uint32_t find_wanted(const weir_planner *p, const char *name, uint32_t before)
{
    for (uint32_t guess = before; guess < p->n_wanted && guess - before < MAX_GUESSES; guess++) {
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

static weir_plan_copy *new_copy(weir_plan *plan)
{
    if (plan->n_copies == plan->room) {
        size_t room = plan->room * 2 + 256;
        weir_plan_copy *grown = weir_realloc(plan->copies, room * sizeof(*grown));
        if (grown == NULL)
            return NULL;
        plan->copies = grown;
        plan->room = room;
    }
    return &plan->copies[plan->n_copies++];
}

static weir_status add_copy(weir_planner *p, const weir_shard *shard, const weir_box_runs *runs,
                            uint32_t parameter, uint32_t source)
{
    weir_plan_finding *found = &p->findings[parameter];
    weir_plan_copy *copy = new_copy(p->plan);
    if (copy == NULL)
        return WEIR_ERR_NO_MEMORY;
    *copy = (weir_plan_copy){
        .source = source,
        .shard = (uint32_t)(shard - p->sources[source].shards),
        .region = shard->region,
        .source_offset = shard->offset,
        .parameter = parameter,
        .parameter_offset = runs->offset,
        .n_bytes = runs->n_bytes,
        .run_bytes = runs->run_bytes,
        .pitch_bytes = runs->pitch_bytes,
        .packed_offset = WEIR_COPY_NOT_TAKEN,
    };
    if (found->n_pieces++ == 0)
        found->n_padding_rows = shard->n_padding_rows;
    else
        found->padding_differs |= found->n_padding_rows != shard->n_padding_rows;
    return WEIR_OK;
}

/* Looks at every shard of one source: complains, or makes a copy of it. */
static weir_status walk_source(weir_planner *p, uint32_t s)
{
    char why[WEIR_ERROR_TEXT];
    const weir_plan_source *source = &p->sources[s];
    const char *name = NULL; /* the last one, found at `at` */
    uint32_t at = 0;
    weir_status status = WEIR_OK;
    for (uint32_t i = 0; i < source->n_shards && status == WEIR_OK; i++) {
        const weir_shard *shard = &source->shards[i];
        weir_box_runs runs;
        if (!weir_mesh_place_matches(&shard->place, p->place))
            continue;
        uint32_t found = shard->name == name ? at : find_wanted(p, shard->name, at);
        if (found == UINT32_MAX) {
            weir_planner_problem(p, "%s: published by %s, this replica has no such parameter",
                                 shard->name, source->worker);
            continue;
        }
        at = found;
        name = shard->name;
        if (p->wanted[at].entry == SIZE_MAX)
            continue; /* the replica computes it */
        if (weir_shard_matches(shard, &p->wanted[at], source->worker, &runs, why))
            status = add_copy(p, shard, &runs, at, s);
        else
            weir_planner_mismatch(p, why);
    }
    return status;
}

static weir_status walk_sources(weir_planner *p)
{
    weir_status status = WEIR_OK;
    for (uint32_t s = 0; s < p->n_sources && status == WEIR_OK; s++)
        status = walk_source(p, s);
    return status;
}

/* Pieces of one parameter stand together. */
static weir_status group_pieces(weir_planner *p, weir_arena *tables)
{
    size_t *next = weir_arena_alloc(tables, (p->n_wanted + 1) * sizeof(*next));
    p->pieces = weir_arena_alloc(tables, p->plan->n_copies * sizeof(weir_plan_piece));
    if (next == NULL || p->pieces == NULL)
        return WEIR_ERR_NO_MEMORY;
    for (size_t i = 0; i < p->n_wanted; i++)
        p->first[i + 1] = p->first[i] + p->findings[i].n_pieces;
    memcpy(next, p->first, (p->n_wanted + 1) * sizeof(*next));
    for (size_t i = 0; i < p->plan->n_copies; i++) {
        const weir_plan_copy *copy = &p->plan->copies[i];
        p->pieces[next[copy->parameter]++] = (weir_plan_piece){ copy->parameter_offset, i };
    }
    return WEIR_OK;
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

static weir_status sort_wanted(weir_planner *p)
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

static weir_status report(const weir_planner *p)
{
    if (p->n_problems == 0)
        return WEIR_OK;
    if (p->n_problems == 1)
        return weir_fail(WEIR_ERR_LAYOUT, "%s", p->line.text);
    return weir_fail(WEIR_ERR_LAYOUT, "%s (and %zu more)", p->line.text, p->n_problems - 1);
}

/* Sources mostly list their shards in the order of their bytes, and copies are in theirs. */
static void order_copies(weir_plan *plan)
{
    size_t n = 0;
    bool sorted = true;
    for (size_t i = 0; i < plan->n_copies; i++) {
        if (plan->copies[i].packed_offset == WEIR_COPY_NOT_TAKEN)
            continue;
        if (n < i)
            plan->copies[n] = plan->copies[i];
        sorted &= n == 0 || compare_copies(&plan->copies[n - 1], &plan->copies[n]) <= 0;
        n++;
    }
    plan->n_copies = n;
    if (!sorted)
        qsort(plan->copies, n, sizeof(weir_plan_copy), compare_copies);
}

static weir_status make_plan(weir_planner *p, weir_arena *tables)
{
    weir_status status = walk_sources(p);
    /* What differs also leaves gaps: naming those too would bury the cause. */
    if (status != WEIR_OK || p->n_problems > 0)
        return status != WEIR_OK ? status : report(p);
    status = group_pieces(p, tables);
    if (status == WEIR_OK)
        status = weir_planner_cover(p);
    if (status != WEIR_OK)
        return status;
    order_copies(p->plan);
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
    weir_planner p = { .wanted = wanted,
                       .n_wanted = n_wanted,
                       .place = place,
                       .sources = sources,
                       .n_sources = n_sources };
    weir_arena_init(&p.scratch, 0);
    p.by_name = weir_arena_zeroed(&tables, n_wanted, sizeof(p.by_name[0]));
    p.findings = weir_arena_zeroed(&tables, n_wanted, sizeof(p.findings[0]));
    p.first = weir_arena_zeroed(&tables, n_wanted + 1, sizeof(p.first[0]));
    p.given_bytes = weir_arena_zeroed(&tables, n_sources, sizeof(p.given_bytes[0]));
    p.plan = weir_alloc_zeroed(1, sizeof(*p.plan));
    if (p.by_name == NULL || p.findings == NULL || p.first == NULL || p.given_bytes == NULL ||
        p.plan == NULL)
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
