/* SPDX-License-Identifier: Apache-2.0 */
/* groups.c - cuts a rank's shards into groups, each of which fits a buffer of the window.
 *
 * Conversions come in the order of their tensors, and what one of them makes (weights and their
 * scales) belongs together. The smallest run of conversions that shares no shard with any other is
 * a unit; units are laid one behind the other until the next does not fit, or is of another key or
 * audience.
 *
 * What is broadcast is shared out evenly among as many groups as a key and an audience need: they
 * take turns in two buffers, and a small one in the one waits for a large one in the other.
 */
#include "refit/groups.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"

#define NO_JOB SIZE_MAX

typedef struct unit {
    size_t first_job, end_job;
    uint32_t key, audience; /* of what is read: 0 */
    size_t end_placed;      /* in the order of shards: one past its last */
    uint64_t n_bytes;
} unit;

typedef struct cutter {
    weir_source *source;
    weir_audiences *audiences; /* NULL: groups are read */
    unit *units;
    size_t n_units;
    uint64_t buffer_bytes;
    size_t *last_job;  /* of each shard */
    uint32_t *order;   /* shards as they are placed, by their old numbers */
    uint32_t *renamed; /* by old number: the new one */
    size_t n_placed;
    size_t n_closed; /* of those: in groups that are closed */
    uint64_t largest_bytes;
    weir_groups *groups;
} cutter;

static size_t n_outputs_of(const weir_stage_job *job)
{
    return job->args.conversion->n_outputs;
}

static void note_last_jobs(cutter *c)
{
    const weir_source *source = c->source;
    for (size_t s = 0; s < source->n_shards; s++)
        c->last_job[s] = NO_JOB;
    for (size_t i = 0; i < source->n_jobs; i++) {
        for (size_t o = 0; o < n_outputs_of(&source->jobs[i]); o++) {
            if (source->jobs[i].shards[o] != WEIR_ANY)
                c->last_job[source->jobs[i].shards[o]] = i;
        }
    }
}

static weir_status start(cutter *c)
{
    weir_source *source = c->source;
    weir_groups *groups = c->groups;
    size_t n_shards = source->n_shards, n_jobs = source->n_jobs;
    c->last_job = weir_arena_alloc(&source->arena, n_shards * sizeof(*c->last_job));
    c->order = weir_arena_zeroed(&source->arena, n_shards, sizeof(*c->order));
    c->renamed = weir_arena_zeroed(&source->arena, n_shards, sizeof(*c->renamed));
    groups->shard_ends = weir_arena_zeroed(&source->arena, n_jobs, sizeof(*groups->shard_ends));
    groups->job_ends = weir_arena_zeroed(&source->arena, n_jobs, sizeof(*groups->job_ends));
    c->units = weir_arena_zeroed(&source->arena, n_jobs, sizeof(*c->units));
    if (c->last_job == NULL || c->order == NULL || c->renamed == NULL || c->units == NULL ||
        groups->shard_ends == NULL || groups->job_ends == NULL)
        return WEIR_ERR_NO_MEMORY;
    if (c->audiences != NULL) {
        groups->n_bytes = weir_arena_zeroed(&source->arena, n_jobs, sizeof(*groups->n_bytes));
        groups->keys = weir_arena_zeroed(&source->arena, n_jobs, sizeof(*groups->keys));
        groups->audiences = weir_arena_zeroed(&source->arena, n_jobs, sizeof(*groups->audiences));
        if (groups->n_bytes == NULL || groups->keys == NULL || groups->audiences == NULL)
            return WEIR_ERR_NO_MEMORY;
    }
    note_last_jobs(c);
    for (size_t s = 0; s < n_shards; s++) { /* padding, which nobody makes, takes no room */
        if (c->last_job[s] == NO_JOB)
            c->order[c->n_placed++] = (uint32_t)s;
    }
    return WEIR_OK;
}

/* ---- units -----------------------------------------------------------------------------------*/

/* One past the last job of the unit that begins with `first`. */
static size_t end_of_unit(const cutter *c, size_t first)
{
    const weir_source *source = c->source;
    size_t last = first;
    for (size_t i = first; i <= last; i++) {
        const weir_stage_job *job = &source->jobs[i];
        for (size_t o = 0; o < n_outputs_of(job); o++) {
            if (job->shards[o] != WEIR_ANY && c->last_job[job->shards[o]] > last)
                last = c->last_job[job->shards[o]];
        }
    }
    return last + 1;
}

/* The workers that any of the unit's shards are for. */
static weir_status find_audience(cutter *c, unit *u)
{
    const weir_source *source = c->source;
    weir_status status = WEIR_OK;
    u->audience = WEIR_ANY;
    for (size_t i = u->first_job; i < u->end_job; i++) {
        const weir_stage_job *job = &source->jobs[i];
        for (size_t o = 0; o < n_outputs_of(job) && status == WEIR_OK; o++) {
            uint32_t shard = job->shards[o];
            uint32_t audience = shard != WEIR_ANY ? c->audiences->of_shards[shard] : WEIR_ANY;
            if (audience == WEIR_ANY || audience == u->audience)
                continue;
            status = weir_audiences_join(c->audiences, u->audience, audience, &u->audience);
        }
    }
    if (status == WEIR_OK && u->audience == WEIR_ANY) /* for nobody */
        status = weir_audiences_join(c->audiences, WEIR_ANY, WEIR_ANY, &u->audience);
    return status;
}

static weir_status find_units(cutter *c)
{
    weir_status status = WEIR_OK;
    for (size_t first = 0; first < c->source->n_jobs && status == WEIR_OK;) {
        unit *u = &c->units[c->n_units++];
        *u = (unit){ .first_job = first, .end_job = end_of_unit(c, first) };
        first = u->end_job;
        if (c->audiences == NULL)
            continue;
        u->key = c->source->jobs[u->first_job].key;
        status = find_audience(c, u);
    }
    return status;
}

static int compare_units(const void *a, const void *b)
{
    const unit *x = a, *y = b;
    if (x->key != y->key)
        return x->key < y->key ? -1 : 1;
    if (x->audience != y->audience)
        return x->audience < y->audience ? -1 : 1;
    return (x->first_job > y->first_job) - (x->first_job < y->first_job);
}

/* Units, and their jobs with them, by key and audience. */
static weir_status order_units(cutter *c)
{
    weir_source *source = c->source;
    size_t n = source->n_jobs, n_moved = 0;
    weir_stage_job *before = weir_arena_alloc(&source->arena, n * sizeof(*before));
    if (before == NULL)
        return WEIR_ERR_NO_MEMORY;
    memcpy(before, source->jobs, n * sizeof(*before));
    qsort(c->units, c->n_units, sizeof(*c->units), compare_units);
    for (size_t u = 0; u < c->n_units; u++) {
        size_t n_jobs = c->units[u].end_job - c->units[u].first_job;
        memcpy(&source->jobs[n_moved], &before[c->units[u].first_job], n_jobs * sizeof(*before));
        c->units[u].first_job = n_moved;
        c->units[u].end_job = n_moved += n_jobs;
    }
    note_last_jobs(c);
    return WEIR_OK;
}

/* Puts the unit's shards into the order, and adds up their bytes. A shard is put there by its last
 * job. */
static void place_unit(cutter *c, unit *u)
{
    const weir_source *source = c->source;
    for (size_t i = u->first_job; i < u->end_job; i++) {
        const weir_stage_job *job = &source->jobs[i];
        for (size_t o = 0; o < n_outputs_of(job); o++) {
            uint32_t shard = job->shards[o];
            if (shard == WEIR_ANY || c->last_job[shard] != i)
                continue;
            c->order[c->n_placed++] = shard;
            u->n_bytes += weir_source_align(source->shards[shard].n_bytes);
        }
    }
    u->end_placed = c->n_placed;
}

static weir_status fail_large(const cutter *c, const unit *u)
{
    const weir_source *source = c->source;
    return weir_fail(WEIR_ERR_UNSUPPORTED,
                     "%s: a piece of %" PRIu64 " bytes that cannot be cut does not fit a buffer of "
                     "%" PRIu64 " bytes of the window: give it more window_bytes, or fewer slots",
                     source->shards[source->jobs[u->first_job].shards[0]].name, u->n_bytes,
                     c->buffer_bytes);
}

static weir_status place_units(cutter *c)
{
    for (size_t i = 0; i < c->n_units; i++) {
        place_unit(c, &c->units[i]);
        if (c->units[i].n_bytes > c->buffer_bytes)
            return fail_large(c, &c->units[i]);
    }
    return WEIR_OK;
}

/* ---- groups ----------------------------------------------------------------------------------*/

static int compare_numbers(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return (x > y) - (x < y);
}

/* Within a group shards keep their order: rows that continue each other are read as one. `last` is
 * the last unit of it. */
static void close_group(cutter *c, const unit *last)
{
    weir_source *source = c->source;
    weir_groups *groups = c->groups;
    uint64_t offset = 0, end = 0;
    qsort(c->order + c->n_closed, last->end_placed - c->n_closed, sizeof(*c->order),
          compare_numbers);
    for (; c->n_closed < last->end_placed; c->n_closed++) {
        weir_shard *shard = &source->shards[c->order[c->n_closed]];
        c->renamed[c->order[c->n_closed]] = (uint32_t)c->n_closed;
        shard->region = groups->n_groups % groups->n_buffers;
        shard->offset = offset;
        end = offset + shard->n_bytes;
        offset += weir_source_align(shard->n_bytes);
    }
    if (c->audiences != NULL) {
        groups->n_bytes[groups->n_groups] = end;
        groups->keys[groups->n_groups] = last->key;
        groups->audiences[groups->n_groups] = last->audience;
    }
    groups->shard_ends[groups->n_groups] = (uint32_t)last->end_placed;
    groups->job_ends[groups->n_groups++] = last->end_job;
    if (offset > c->largest_bytes)
        c->largest_bytes = offset;
}

static bool belong_together(const unit *a, const unit *b)
{
    return a->key == b->key && a->audience == b->audience;
}

/* One past the last unit of those that `first` belongs together with; their bytes. */
static size_t end_of_kin(const cutter *c, size_t first, uint64_t *out_bytes)
{
    size_t end = first;
    for (*out_bytes = 0; end < c->n_units; end++) {
        if (!belong_together(&c->units[first], &c->units[end]))
            break;
        *out_bytes += c->units[end].n_bytes;
    }
    return end;
}

/* One past the last unit of the group that begins with `first`; left_bytes: of all up to `end`. */
static size_t end_of_group(const cutter *c, size_t first, size_t end, uint64_t left_bytes)
{
    uint64_t n_needed = left_bytes / c->buffer_bytes + (left_bytes % c->buffer_bytes != 0);
    uint64_t share = c->audiences != NULL && n_needed > 0 ? left_bytes / n_needed : c->buffer_bytes;
    uint64_t used = c->units[first].n_bytes;
    size_t i = first + 1;
    for (; i < end; i++) {
        uint64_t n_bytes = c->units[i].n_bytes;
        if (used + n_bytes > c->buffer_bytes || used + n_bytes / 2 > share)
            break;
        used += n_bytes;
    }
    return i;
}

static void form_groups(cutter *c)
{
    uint64_t left_bytes;
    for (size_t first = 0; first < c->n_units;) {
        size_t end = end_of_kin(c, first, &left_bytes);
        while (first < end) {
            size_t last = end_of_group(c, first, end, left_bytes) - 1;
            for (; first <= last; first++)
                left_bytes -= c->units[first].n_bytes;
            close_group(c, &c->units[last]);
        }
    }
}

/* The shards in their new order, and jobs that know them by their new numbers. */
static weir_status rename_shards(cutter *c)
{
    weir_source *source = c->source;
    size_t n = source->n_shards;
    weir_shard *before = weir_arena_alloc(&source->arena, n * sizeof(*before));
    if (before == NULL)
        return WEIR_ERR_NO_MEMORY;
    memcpy(before, source->shards, n * sizeof(*before));
    for (size_t i = 0; i < n; i++)
        source->shards[i] = before[c->order[i]];
    for (size_t i = 0; i < source->n_jobs; i++) {
        weir_stage_job *job = &source->jobs[i];
        for (size_t o = 0; o < n_outputs_of(job); o++) {
            if (job->shards[o] != WEIR_ANY)
                job->shards[o] = c->renamed[job->shards[o]];
        }
    }
    return WEIR_OK;
}

weir_status weir_groups_cut(weir_source *source, weir_audiences *audiences, uint64_t buffer_bytes,
                            unsigned n_buffers, weir_groups *out)
{
    weir_groups groups = { .n_buffers = n_buffers };
    cutter c = {
        .source = source, .audiences = audiences, .buffer_bytes = buffer_bytes, .groups = &groups
    };
    weir_status status = start(&c);
    if (status == WEIR_OK)
        status = find_units(&c);
    if (status == WEIR_OK && audiences != NULL)
        status = order_units(&c);
    if (status == WEIR_OK)
        status = place_units(&c);
    if (status != WEIR_OK)
        return status;
    form_groups(&c);
    status = rename_shards(&c);
    if (status != WEIR_OK)
        return status;
    source->slot_bytes = c.largest_bytes;
    *out = groups;
    return WEIR_OK;
}

uint32_t weir_groups_first_shard(const weir_groups *groups, uint32_t group)
{
    return group > 0 ? groups->shard_ends[group - 1] : 0;
}

size_t weir_groups_first_job(const weir_groups *groups, uint32_t group)
{
    return group > 0 ? groups->job_ends[group - 1] : 0;
}

unsigned char *weir_groups_readers(const weir_groups *groups, const weir_shard *shards,
                                   const weir_replica_mesh *mesh, weir_arena *arena)
{
    uint32_t n_workers = weir_replica_mesh_workers(mesh);
    unsigned char *readers = weir_arena_zeroed(arena, (size_t)groups->n_groups + 1, n_workers);
    if (readers == NULL)
        return NULL;
    unsigned char *any = readers + (size_t)groups->n_groups * n_workers;
    for (uint32_t w = 0; w < n_workers; w++) {
        weir_mesh_place place = weir_replica_mesh_place(mesh, w);
        for (uint32_t g = 0; g < groups->n_groups; g++) {
            unsigned char *reads = &readers[(size_t)g * n_workers + w];
            for (uint32_t s = weir_groups_first_shard(groups, g);
                 s < groups->shard_ends[g] && !*reads; s++)
                *reads = shards[s].n_bytes > 0 && weir_mesh_place_matches(&shards[s].place, &place);
            any[w] |= *reads;
        }
    }
    return readers;
}

unsigned char *weir_groups_receivers(const weir_groups *groups, const weir_audiences *audiences,
                                     weir_arena *arena)
{
    uint32_t n_workers = audiences->n_workers;
    unsigned char *readers = weir_arena_zeroed(arena, (size_t)groups->n_groups + 1, n_workers);
    if (readers == NULL)
        return NULL;
    unsigned char *any = readers + (size_t)groups->n_groups * n_workers;
    for (uint32_t g = 0; g < groups->n_groups; g++) {
        const unsigned char *sent = weir_audiences_row(audiences, groups->audiences[g]);
        memcpy(readers + (size_t)g * n_workers, sent, n_workers);
        for (uint32_t w = 0; w < n_workers; w++)
            any[w] |= sent[w];
    }
    return readers;
}
