/* SPDX-License-Identifier: Apache-2.0 */
/* descriptor_cover.c - which publishers cover one slice of every tensor, or the reasons why they do
 * not.
 *
 * Descriptors of all publishers are sorted by name; the publishers of one name must agree, then a
 * cursor walks the slice from end to end. What it cannot step over is a gap, what it has passed
 * already is left out: each element comes once. Nothing here knows of boxes: registries that cut
 * several axes go by held_of_registry.c to a fleet's plan.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "base/arena.h"
#include "base/error.h"
#include "base/options.h"
#include "plan/tag.h"
#include "plan/tensor_registry.h"

#define REASON_BYTES 512

struct weir_coverage {
    weir_arena arena; /* reasons */
    weir_contribution *contributions;
    size_t contributions_room;
    weir_missing *missing;
    size_t missing_room;
    weir_coverage_summary summary;
};

/* One descriptor of one publisher. */
typedef struct offer {
    const weir_tensor_descriptor *descriptor;
    uint32_t publisher;
} offer;

/* A contiguous range that an offer gives, and where it begins in the publisher's tensor. */
typedef struct range {
    uint64_t lo, hi, source_lo;
    const offer *from;
} range;

/* The offers of one name, and what is wanted of them. */
typedef struct wish {
    const char *name;
    const offer *offers;
    size_t n_offers;
    uint64_t lo, hi;             /* of the slice */
    uint64_t outer, inner_bytes; /* before the axis; behind it, times the element */
} wish;

typedef struct coverer {
    weir_coverage_args args;
    bool *used;    /* by publisher: takes part */
    offer *offers; /* sorted by name, then publisher */
    size_t n_offers;
    range *ranges; /* of the tensor at hand */
    size_t ranges_room;
    uint64_t *given; /* bytes that each publisher has been asked for */
    weir_coverage *coverage;
} coverer;

static weir_status grow(void **items, size_t *room, size_t n, size_t item_bytes)
{
    size_t wanted = *room;
    while (wanted < n)
        wanted = wanted * 2 + 64;
    if (wanted == *room)
        return WEIR_OK;
    void *grown = weir_realloc(*items, wanted * item_bytes);
    if (grown == NULL)
        return WEIR_ERR_NO_MEMORY;
    *items = grown;
    *room = wanted;
    return WEIR_OK;
}

/* ---- what is missing -------------------------------------------------------------------------*/

/* Of a tensor, by two of its offers (either may be NULL). */
static weir_status miss(coverer *c, const wish *w, const offer *first, const offer *second,
                        const char *format, ...) __attribute__((format(printf, 5, 6)));

static weir_status miss(coverer *c, const wish *w, const offer *first, const offer *second,
                        const char *format, ...)
{
    char reason[REASON_BYTES];
    weir_coverage *coverage = c->coverage;
    va_list args;
    va_start(args, format);
    vsnprintf(reason, sizeof(reason), format, args);
    va_end(args);
    weir_status status = grow((void **)&coverage->missing, &coverage->missing_room,
                              coverage->summary.n_missing + 1, sizeof(coverage->missing[0]));
    char *kept = weir_arena_strdup(&coverage->arena, reason);
    char *name = weir_arena_strdup(&coverage->arena, w->name);
    if (status != WEIR_OK || kept == NULL || name == NULL)
        return WEIR_ERR_NO_MEMORY;
    weir_error_one_line(kept);
    coverage->missing[coverage->summary.n_missing++] =
        (weir_missing){ name, kept, first != NULL ? first->publisher : WEIR_NO_PUBLISHER,
                        second != NULL ? second->publisher : WEIR_NO_PUBLISHER };
    return WEIR_OK;
}

/* ---- who takes part --------------------------------------------------------------------------*/

static bool matches_filter(const coverer *c, const weir_tensor_registry *registry)
{
    for (size_t i = 0; i < registry->n_tensors; i++) {
        if (!weir_tensor_descriptor_matches(&registry->tensors[i], c->args.allowed_targets,
                                            c->args.n_allowed, c->args.required_metadata))
            return false;
    }
    return true;
}

/* Publishers without a registry say nothing to filter by: where a filter is set they do not count.
 */
static weir_status choose_publishers(coverer *c)
{
    const weir_publisher *first = NULL;
    bool filtered = c->args.allowed_targets != NULL || c->args.required_metadata != NULL;
    bool any = false;
    for (uint32_t p = 0; p < c->args.n_publishers; p++) {
        const weir_publisher *publisher = &c->args.publishers[p];
        const weir_tensor_registry *registry = publisher->registry;
        any = any || registry != NULL || filtered;
        if (registry == NULL ||
            (c->args.version != NULL && registry->version != *c->args.version) ||
            (filtered && !matches_filter(c, registry)))
            continue;
        weir_status status =
            first != NULL ? weir_publishers_check_version(first, publisher) : WEIR_OK;
        if (status != WEIR_OK)
            return status;
        first = first != NULL ? first : publisher;
        c->used[p] = true;
        c->n_offers += registry->n_tensors;
    }
    c->coverage->summary.legacy_single_source = !any && c->args.n_publishers > 0;
    return WEIR_OK;
}

static int compare_offers(const void *a, const void *b)
{
    const offer *x = a, *y = b;
    int order = strcmp(x->descriptor->name, y->descriptor->name);
    return order != 0 ? order : (x->publisher > y->publisher) - (x->publisher < y->publisher);
}

static weir_status collect_offers(coverer *c)
{
    size_t n = 0;
    c->offers = weir_alloc_zeroed(c->n_offers, sizeof(c->offers[0]));
    if (c->offers == NULL)
        return WEIR_ERR_NO_MEMORY;
    for (uint32_t p = 0; p < c->args.n_publishers; p++) {
        const weir_tensor_registry *registry = c->args.publishers[p].registry;
        for (size_t i = 0; c->used[p] && i < registry->n_tensors; i++)
            c->offers[n++] = (offer){ &registry->tensors[i], p };
    }
    qsort(c->offers, n, sizeof(c->offers[0]), compare_offers);
    return WEIR_OK;
}

/* ---- do they agree ---------------------------------------------------------------------------*/

static const char *worker_of(const coverer *c, const offer *from)
{
    return c->args.publishers[from->publisher].worker;
}

static const char *target_of(const offer *from)
{
    const char *target = from->descriptor->compile_target;
    return target != NULL ? target : WEIR_TARGET_HF_RAW;
}

static const char *metadata_of(const offer *from)
{
    const char *metadata = from->descriptor->compile_metadata;
    return metadata != NULL ? metadata : "{}";
}

/* Whether two offers of a tensor say the same of it; *out_agree false: the reason is recorded. */
static weir_status compare_two(coverer *c, const wish *w, const offer *a, const offer *b,
                               bool *out_agree)
{
    const weir_tensor_descriptor *x = a->descriptor, *y = b->descriptor;
    char first[WEIR_SHAPE_TEXT], second[WEIR_SHAPE_TEXT], difference[WEIR_TAG_TEXT];
    *out_agree = false;
    if (!weir_shape_equal(&x->global_shape, &y->global_shape))
        return miss(c, w, a, b, "shape disagreement %s vs %s",
                    weir_shape_text(&x->global_shape, first, sizeof(first)),
                    weir_shape_text(&y->global_shape, second, sizeof(second)));
    if (strcmp(x->dtype, y->dtype) != 0)
        return miss(c, w, a, b, "dtype disagreement %.40s vs %.40s", x->dtype, y->dtype);
    if (x->placement != y->placement)
        return miss(c, w, a, b, "placement_kind disagreement %s vs %s",
                    weir_placement_name(x->placement), weir_placement_name(y->placement));
    if (x->placement == WEIR_PLACEMENT_SHARD && x->shard_axis != y->shard_axis)
        return miss(c, w, a, b, "shard_axis disagreement %u vs %u", x->shard_axis, y->shard_axis);
    if (strcmp(target_of(a), target_of(b)) != 0)
        return miss(c, w, a, b, "compile_target disagreement %.80s vs %.80s", target_of(a),
                    target_of(b));
    if (!weir_tag_metadata_equal(metadata_of(b), metadata_of(a), worker_of(c, b), difference))
        return miss(c, w, a, b, "compile_metadata disagreement %.120s vs %.120s", metadata_of(a),
                    metadata_of(b));
    *out_agree = true;
    return WEIR_OK;
}

/* Sizes for runs in bytes; false: the dtype's bytes cannot be counted. A tensor without elements
 * has no bytes, whatever its other extents multiply to. */
static bool measure(const weir_tensor_descriptor *d, uint32_t axis, wish *w)
{
    weir_dtype dtype = weir_dtype_from_torch_name(d->dtype);
    uint64_t n_bytes;
    if (dtype == WEIR_DTYPE_NONE || weir_tensor_bytes(dtype, &d->global_shape, &n_bytes) != WEIR_OK)
        return false;
    w->outer = n_bytes > 0;
    w->inner_bytes = n_bytes > 0 ? weir_dtype_bits(dtype) / 8 : 0;
    for (uint32_t a = 0; a < d->global_shape.rank && n_bytes > 0; a++) {
        if (a < axis)
            w->outer *= d->global_shape.dim[a];
        else if (a > axis)
            w->inner_bytes *= d->global_shape.dim[a];
    }
    return true;
}

static weir_status check_offers(coverer *c, wish *w, bool *out_good)
{
    weir_status status = WEIR_OK;
    *out_good = true;
    for (size_t i = 0; i < w->n_offers && status == WEIR_OK && *out_good; i++) {
        if (weir_tensor_descriptor_check(w->offers[i].descriptor) != WEIR_OK) {
            *out_good = false;
            return miss(c, w, &w->offers[i], NULL, "%s", weir_last_error());
        }
        if (i > 0)
            status = compare_two(c, w, &w->offers[0], &w->offers[i], out_good);
    }
    const weir_tensor_descriptor *d = w->offers[0].descriptor;
    uint32_t axis = d->placement == WEIR_PLACEMENT_SHARD ? d->shard_axis : 0;
    if (status == WEIR_OK && *out_good && !measure(d, axis, w)) {
        *out_good = false;
        return miss(c, w, w->offers, NULL, "dtype %.40s: its bytes cannot be counted", d->dtype);
    }
    return status;
}

/* ---- contributions ---------------------------------------------------------------------------*/

static weir_status contribute(coverer *c, const offer *from, const weir_contribution *part)
{
    weir_coverage *coverage = c->coverage;
    size_t n = coverage->summary.n_contributions;
    weir_status status = grow((void **)&coverage->contributions, &coverage->contributions_room,
                              n + 1, sizeof(coverage->contributions[0]));
    if (status != WEIR_OK)
        return status;
    weir_contribution *made = &coverage->contributions[n];
    *made = *part;
    made->name = from->descriptor->name;
    made->descriptor = from->descriptor;
    made->publisher = from->publisher;
    if (made->n_runs > 1 && made->run_bytes == made->source_pitch &&
        made->run_bytes == made->target_pitch) {
        made->run_bytes *= made->n_runs; /* whole on both sides: one run */
        made->n_runs = 1;
    }
    coverage->summary.n_contributions++;
    coverage->summary.n_bytes += made->n_runs * made->run_bytes;
    c->given[from->publisher] += made->n_runs * made->run_bytes;
    return WEIR_OK;
}

static weir_status cover_replicate(coverer *c, const wish *w)
{
    const weir_shape *shape = &w->offers[0].descriptor->global_shape;
    const offer *best = NULL;
    for (size_t i = 0; i < w->n_offers; i++) {
        /* Of equals each target rank begins with another one. */
        const offer *from = &w->offers[(i + c->args.rank) % w->n_offers];
        if (best == NULL || c->given[from->publisher] < c->given[best->publisher])
            best = from;
    }
    uint64_t extent = shape->rank > 0 ? shape->dim[0] : 0;
    uint64_t n_bytes = (shape->rank > 0 ? extent : 1) * w->outer * w->inner_bytes;
    weir_contribution whole = { .source_hi = extent,
                                .target_hi = extent,
                                .n_runs = n_bytes > 0,
                                .run_bytes = n_bytes,
                                .source_pitch = n_bytes,
                                .target_pitch = n_bytes };
    return contribute(c, best, &whole);
}

/* ---- shards ----------------------------------------------------------------------------------*/

/* Where the slice begins and ends; *out_good false: the reason is recorded. */
static weir_status find_slice(coverer *c, wish *w, bool *out_good)
{
    const weir_coverage_args *args = &c->args;
    const weir_tensor_descriptor *d = w->offers[0].descriptor;
    uint64_t extent = d->global_shape.dim[d->shard_axis];
    *out_good = false;
    if (d->shard_axis != args->shard_axis)
        return miss(c, w, w->offers, NULL, "shard_axis mismatch: publisher=%u target=%u",
                    d->shard_axis, args->shard_axis);
    if (args->range != NULL) {
        w->lo = args->range[0];
        w->hi = args->range[1];
        if (w->lo > w->hi || w->hi > extent)
            return miss(c, w, NULL, NULL,
                        "target_range [%" PRIu64 ", %" PRIu64 ") outside axis extent %" PRIu64,
                        w->lo, w->hi, extent);
    } else if (args->world_size == 0) {
        return miss(c, w, NULL, NULL, "target world_size must be positive");
    } else if (args->rank >= args->world_size) {
        return miss(c, w, NULL, NULL, "target rank %u outside world_size %u", args->rank,
                    args->world_size);
    } else if (extent % args->world_size != 0) {
        return miss(c, w, NULL, NULL,
                    "axis extent %" PRIu64 " is not divisible by target world_size %u; "
                    "pass target_range for uneven layouts",
                    extent, args->world_size);
    } else {
        w->lo = extent / args->world_size * args->rank;
        w->hi = w->lo + extent / args->world_size;
    }
    *out_good = true;
    return WEIR_OK;
}

static weir_status add_range(coverer *c, size_t *n, const offer *from, uint64_t lo, uint64_t hi,
                             uint64_t source_lo)
{
    if (lo >= hi)
        return WEIR_OK;
    weir_status status = grow((void **)&c->ranges, &c->ranges_room, *n + 1, sizeof(c->ranges[0]));
    if (status == WEIR_OK)
        c->ranges[(*n)++] = (range){ lo, hi, source_lo, from };
    return status;
}

/* Ids in place of a range: neighbours are one. */
static weir_status add_experts(coverer *c, size_t *n, const offer *from)
{
    const weir_tensor_descriptor *d = from->descriptor;
    weir_status status = WEIR_OK;
    for (size_t i = 0, k; i < d->n_expert_ids && status == WEIR_OK; i = k) {
        for (k = i + 1; k < d->n_expert_ids && d->expert_ids[k] == d->expert_ids[k - 1] + 1;)
            k++;
        status = add_range(c, n, from, d->expert_ids[i], (uint64_t)d->expert_ids[k - 1] + 1, i);
    }
    return status;
}

static int compare_ranges(const void *a, const void *b)
{
    const range *x = a, *y = b;
    if (x->lo != y->lo)
        return x->lo < y->lo ? -1 : 1;
    return (x->from > y->from) - (x->from < y->from);
}

static weir_status find_ranges(coverer *c, const wish *w, size_t *out_n, bool *out_good)
{
    weir_status status = WEIR_OK;
    *out_n = 0;
    *out_good = true;
    for (size_t i = 0; i < w->n_offers && status == WEIR_OK; i++) {
        const offer *from = &w->offers[i];
        const weir_tensor_descriptor *d = from->descriptor;
        if (d->is_expert && d->n_expert_ids > 0 && d->expert_axis != d->shard_axis &&
            d->n_expert_ids < d->global_shape.dim[d->expert_axis]) {
            *out_good = false;
            return miss(c, w, from, NULL,
                        "%zu of %" PRIu64 " experts on axis %u: a slice of axis %u needs all",
                        d->n_expert_ids, d->global_shape.dim[d->expert_axis], d->expert_axis,
                        d->shard_axis);
        }
        status = d->has_range ? add_range(c, out_n, from, d->range_lo, d->range_hi, 0)
                              : add_experts(c, out_n, from);
    }
    if (*out_n > 1)
        qsort(c->ranges, *out_n, sizeof(c->ranges[0]), compare_ranges);
    return status;
}

/* Elements of the axis in the publisher's own tensor. */
static uint64_t local_extent(const weir_tensor_descriptor *d)
{
    return d->has_range ? d->range_hi - d->range_lo : d->n_expert_ids;
}

static weir_status take(coverer *c, const wish *w, const range *from, uint64_t lo, uint64_t hi)
{
    uint64_t row = w->inner_bytes, source_lo = from->source_lo + lo - from->lo;
    weir_contribution part = { .axis = c->args.shard_axis,
                               .source_lo = source_lo,
                               .source_hi = source_lo + hi - lo,
                               .target_lo = lo - w->lo,
                               .target_hi = hi - w->lo,
                               .n_runs = w->outer,
                               .run_bytes = (hi - lo) * row,
                               .source_offset = source_lo * row,
                               .source_pitch = local_extent(from->from->descriptor) * row,
                               .target_offset = (lo - w->lo) * row,
                               .target_pitch = (w->hi - w->lo) * row };
    return contribute(c, from->from, &part);
}

/* Of the ranges that hold `at` the one that reaches farthest, of equals the one of the publisher
 * that has been asked for least; NULL: none. *out_next: where the next one begins. */
static const range *choose_range(const coverer *c, size_t n, uint64_t at, size_t *first,
                                 uint64_t *out_next)
{
    const range *best = NULL;
    *out_next = UINT64_MAX;
    for (size_t i = *first; i < n; i++) {
        const range *r = &c->ranges[i];
        if (r->lo > at) {
            *out_next = r->lo;
            break;
        }
        if (r->hi <= at)
            continue;
        if (best == NULL || r->hi > best->hi ||
            (r->hi == best->hi && c->given[r->from->publisher] < c->given[best->from->publisher]))
            best = r;
    }
    while (*first < n && c->ranges[*first].hi <= at)
        (*first)++;
    return best;
}

static weir_status walk(coverer *c, const wish *w, size_t n)
{
    weir_status status = WEIR_OK;
    uint64_t offered = 0, taken = 0, next;
    size_t first = 0;
    for (size_t i = 0; i < n; i++) {
        uint64_t lo = c->ranges[i].lo > w->lo ? c->ranges[i].lo : w->lo;
        uint64_t hi = c->ranges[i].hi < w->hi ? c->ranges[i].hi : w->hi;
        offered += lo < hi ? hi - lo : 0;
    }
    for (uint64_t at = w->lo; at < w->hi && status == WEIR_OK; at = next) {
        const range *from = choose_range(c, n, at, &first, &next);
        if (from != NULL)
            next = from->hi;
        next = next < w->hi ? next : w->hi;
        if (from == NULL) {
            status = miss(c, w, NULL, NULL, "coverage gap at axis %u [%" PRIu64 ", %" PRIu64 ")",
                          c->args.shard_axis, at, next);
            continue;
        }
        taken += next - at;
        status = take(c, w, from, at, next);
    }
    c->coverage->summary.n_duplicate_bytes += (offered - taken) * w->outer * w->inner_bytes;
    return status;
}

/* ---- one tensor ------------------------------------------------------------------------------*/

static weir_status cover(coverer *c, wish *w)
{
    size_t n;
    bool good;
    c->coverage->summary.n_tensors++;
    if (w->n_offers == 0)
        return miss(c, w, NULL, NULL, "no publishers");
    weir_status status = check_offers(c, w, &good);
    if (status != WEIR_OK || !good)
        return status;
    switch (w->offers[0].descriptor->placement) {
    case WEIR_PLACEMENT_REPLICATE:
        return cover_replicate(c, w);
    case WEIR_PLACEMENT_PARTIAL:
    case WEIR_PLACEMENT_BOX:
        return miss(c, w, w->offers, NULL, "placement_kind=%s not supported in v0",
                    weir_placement_name(w->offers[0].descriptor->placement));
    case WEIR_PLACEMENT_SHARD:
        break;
    }
    status = find_slice(c, w, &good);
    if (status == WEIR_OK && good)
        status = find_ranges(c, w, &n, &good);
    return status == WEIR_OK && good ? walk(c, w, n) : status;
}

/* The offers of that name, from `at` on. */
static size_t count_offers(const coverer *c, size_t at, const char *name)
{
    size_t n = 0;
    while (at + n < c->n_offers && strcmp(c->offers[at + n].descriptor->name, name) == 0)
        n++;
    return n;
}

static weir_status cover_published(coverer *c)
{
    weir_status status = WEIR_OK;
    for (size_t at = 0, n; at < c->n_offers && status == WEIR_OK; at += n) {
        const char *name = c->offers[at].descriptor->name;
        n = count_offers(c, at, name);
        wish w = { .name = name, .offers = &c->offers[at], .n_offers = n };
        status = cover(c, &w);
    }
    return status;
}

static int compare_names(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

/* Both lists are sorted: one walk. A name that is wanted twice is one. */
static weir_status cover_wanted(coverer *c)
{
    size_t n_wanted = c->args.n_wanted, at = 0;
    const char **wanted = weir_alloc_zeroed(n_wanted, sizeof(*wanted));
    weir_status status = wanted != NULL ? WEIR_OK : WEIR_ERR_NO_MEMORY;
    if (wanted != NULL && n_wanted > 0)
        memcpy(wanted, c->args.wanted, n_wanted * sizeof(*wanted));
    if (wanted != NULL)
        qsort(wanted, n_wanted, sizeof(*wanted), compare_names);
    for (size_t i = 0; i < n_wanted && status == WEIR_OK; i++) {
        if (i > 0 && strcmp(wanted[i - 1], wanted[i]) == 0)
            continue;
        while (at < c->n_offers && strcmp(c->offers[at].descriptor->name, wanted[i]) < 0)
            at++;
        wish w = { .name = wanted[i],
                   .offers = c->offers + at,
                   .n_offers = count_offers(c, at, wanted[i]) };
        status = cover(c, &w);
    }
    weir_free(wanted);
    return status;
}

/* ---- the whole -------------------------------------------------------------------------------*/

static weir_status make(coverer *c)
{
    size_t n = c->args.n_publishers;
    c->used = weir_alloc_zeroed(n, sizeof(c->used[0]));
    c->given = weir_alloc_zeroed(n, sizeof(c->given[0]));
    if (c->used == NULL || c->given == NULL)
        return WEIR_ERR_NO_MEMORY;
    weir_status status = choose_publishers(c);
    if (status == WEIR_OK)
        status = collect_offers(c);
    if (status != WEIR_OK)
        return status;
    weir_coverage_summary *summary = &c->coverage->summary;
    if (!summary->legacy_single_source)
        status = c->args.wanted != NULL ? cover_wanted(c) : cover_published(c);
    summary->covered =
        summary->n_missing == 0 && (summary->legacy_single_source || summary->n_tensors > 0);
    return status;
}

weir_status weir_coverage_open(const weir_coverage_args *args, weir_coverage **out)
{
    coverer c = { 0 };
    weir_status status = weir_options_read(args, "weir_coverage_args", &c.args, sizeof(c.args));
    if (status != WEIR_OK)
        return status;
    if (c.args.n_publishers >= WEIR_NO_PUBLISHER)
        return weir_fail(WEIR_ERR_INVALID, "%zu publishers", c.args.n_publishers);
    c.coverage = weir_alloc_zeroed(1, sizeof(*c.coverage));
    if (c.coverage == NULL)
        return WEIR_ERR_NO_MEMORY;
    weir_arena_init(&c.coverage->arena, 0);
    status = make(&c);
    weir_free(c.used);
    weir_free(c.given);
    weir_free(c.offers);
    weir_free(c.ranges);
    if (status != WEIR_OK) {
        weir_coverage_close(c.coverage);
        return status;
    }
    *out = c.coverage;
    return WEIR_OK;
}

void weir_coverage_close(weir_coverage *coverage)
{
    if (coverage == NULL)
        return;
    weir_arena_close(&coverage->arena);
    weir_free(coverage->contributions);
    weir_free(coverage->missing);
    weir_free(coverage);
}

weir_coverage_summary weir_coverage_summarise(const weir_coverage *coverage)
{
    return coverage->summary;
}

const weir_contribution *weir_coverage_contributions(const weir_coverage *coverage, size_t *out_n)
{
    *out_n = coverage->summary.covered ? coverage->summary.n_contributions : 0;
    return coverage->contributions;
}

const weir_missing *weir_coverage_missing(const weir_coverage *coverage, size_t *out_n)
{
    *out_n = coverage->summary.n_missing;
    return coverage->missing;
}

weir_status weir_coverage_check(const weir_coverage *coverage)
{
    char text[WEIR_ERROR_TEXT - 64] = "";
    size_t used = 0;
    if (coverage->summary.covered)
        return WEIR_OK;
    if (coverage->summary.n_missing == 0)
        return weir_fail(WEIR_ERR_LAYOUT, "plan is not fully covered; no publisher takes part");
    for (size_t i = 0; i < coverage->summary.n_missing && used < sizeof(text); i++) {
        const weir_missing *m = &coverage->missing[i];
        used += (size_t)snprintf(text + used, sizeof(text) - used, "%s%s: %s", i > 0 ? ", " : "",
                                 m->name, m->reason);
    }
    return weir_fail(WEIR_ERR_LAYOUT, "plan is not fully covered; missing=[%s%s]", text,
                     used < sizeof(text) ? "" : "…");
}
