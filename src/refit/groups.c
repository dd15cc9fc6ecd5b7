/* SPDX-License-Identifier: Apache-2.0 */
/* groups.c - cuts a rank's shards into groups, each of which fits a buffer of the window.
 *
 * Conversions come in the order of their tensors, and what one of them makes (weights and their
 * scales) belongs together. The smallest run of conversions that shares no shard with any other is
 * a unit; units are laid one behind the other until the next does not fit.
 */
#include "refit/groups.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"

#define NO_JOB SIZE_MAX

typedef struct cutter {
    weir_source *source;
    uint64_t buffer_bytes;
    size_t *last_job;  /* of each shard */
    uint32_t *order;   /* shards as they are placed, by their old numbers */
    uint32_t *renamed; /* by old number: the new one */
    size_t n_placed;
    size_t n_closed; /* of those: in groups that are closed */
    uint64_t used_bytes, largest_bytes;
    weir_groups *groups;
} cutter;

static size_t n_outputs_of(const weir_stage_job *job)
{
    return job->args.conversion->n_outputs;
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
    if (c->last_job == NULL || c->order == NULL || c->renamed == NULL ||
        groups->shard_ends == NULL || groups->job_ends == NULL)
        return WEIR_ERR_NO_MEMORY;
    for (size_t s = 0; s < n_shards; s++)
        c->last_job[s] = NO_JOB;
    for (size_t i = 0; i < n_jobs; i++) {
        for (size_t o = 0; o < n_outputs_of(&source->jobs[i]); o++) {
            if (source->jobs[i].shards[o] != WEIR_ANY)
                c->last_job[source->jobs[i].shards[o]] = i;
        }
    }
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

/* Adds the unit's shards to the order; returns their bytes. A shard is added by its last job. */
static uint64_t add_unit(cutter *c, size_t first, size_t end)
{
    const weir_source *source = c->source;
    uint64_t n_bytes = 0;
    for (size_t i = first; i < end; i++) {
        const weir_stage_job *job = &source->jobs[i];
        for (size_t o = 0; o < n_outputs_of(job); o++) {
            uint32_t shard = job->shards[o];
            if (shard == WEIR_ANY || c->last_job[shard] != i)
                continue;
            c->order[c->n_placed++] = shard;
            n_bytes += weir_source_align(source->shards[shard].n_bytes);
        }
    }
    return n_bytes;
}

static weir_status fail_large(const cutter *c, size_t first, uint64_t n_bytes)
{
    const weir_source *source = c->source;
    return weir_fail(WEIR_ERR_UNSUPPORTED,
                     "%s: a piece of %" PRIu64 " bytes that cannot be cut does not fit a buffer of "
                     "%" PRIu64 " bytes of the window: give it more window_bytes, or fewer slots",
                     source->shards[source->jobs[first].shards[0]].name, n_bytes, c->buffer_bytes);
}

/* ---- groups ----------------------------------------------------------------------------------*/

static int compare_numbers(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return (x > y) - (x < y);
}

/* Within a group shards keep their order: rows that continue each other are read as one. */
static void close_group(cutter *c, size_t n_placed, size_t end_job)
{
    weir_source *source = c->source;
    weir_groups *groups = c->groups;
    uint64_t offset = 0;
    qsort(c->order + c->n_closed, n_placed - c->n_closed, sizeof(*c->order), compare_numbers);
    for (; c->n_closed < n_placed; c->n_closed++) {
        weir_shard *shard = &source->shards[c->order[c->n_closed]];
        c->renamed[c->order[c->n_closed]] = (uint32_t)c->n_closed;
        shard->region = groups->n_groups % groups->n_buffers;
        shard->offset = offset;
        offset += weir_source_align(shard->n_bytes);
    }
    groups->shard_ends[groups->n_groups] = (uint32_t)n_placed;
    groups->job_ends[groups->n_groups++] = end_job;
    if (offset > c->largest_bytes)
        c->largest_bytes = offset;
    c->used_bytes = 0;
}

static weir_status form_groups(cutter *c)
{
    size_t n_jobs = c->source->n_jobs, first = 0;
    for (size_t end; first < n_jobs; first = end) {
        size_t n_before = c->n_placed;
        end = end_of_unit(c, first);
        uint64_t n_bytes = add_unit(c, first, end);
        if (n_bytes > c->buffer_bytes)
            return fail_large(c, first, n_bytes);
        if (c->used_bytes > 0 && c->used_bytes + n_bytes > c->buffer_bytes)
            close_group(c, n_before, first);
        c->used_bytes += n_bytes;
    }
    if (n_jobs > 0)
        close_group(c, c->n_placed, n_jobs);
    return WEIR_OK;
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

weir_status weir_groups_cut(weir_source *source, uint64_t buffer_bytes, unsigned n_buffers,
                            weir_groups *out)
{
    weir_groups groups = { .n_buffers = n_buffers };
    cutter c = { .source = source, .buffer_bytes = buffer_bytes, .groups = &groups };
    weir_status status = start(&c);
    if (status == WEIR_OK)
        status = form_groups(&c);
    if (status == WEIR_OK)
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
