/* SPDX-License-Identifier: Apache-2.0 */
/* cuda_plan.c - numbers the tiles of a batch, kernel by kernel, and writes the image. */
#include "convert/cuda/cuda_plan.h"

#include <string.h>

#include "base/digest.h"
#include "base/error.h"
#include "convert/cuda/cuda_entry.h"

#define MAX_TILES ((uint64_t)0x7FFFFFFF) /* of one launch */

static uint64_t divide_up(uint64_t n, uint64_t by)
{
    return n / by + (n % by != 0);
}

static size_t aligned(size_t n_bytes)
{
    return (n_bytes + 15) & ~(size_t)15;
}

weir_status weir_cuda_plan_init(weir_cuda_plan *plan, const weir_convert_args *args, size_t n,
                                weir_cuda_entry *entries)
{
    *plan = (weir_cuda_plan){ .n_entries = n };
    const unsigned char *at = (const unsigned char *)args;
    for (size_t i = 0; i < n; i++, at += args->size) {
        weir_cuda_entry *entry = &entries[i];
        weir_status status =
            weir_cuda_entry_init(entry, (const weir_convert_args *)(const void *)at);
        if (status != WEIR_OK)
            return status;
        if (entry->empty)
            continue;
        plan->n_jobs++;
        plan->n_segments += weir_fused_n_tensors(&entry->fused);
    }
    if (plan->n_jobs > UINT32_MAX || plan->n_segments > UINT32_MAX)
        return weir_fail(WEIR_ERR_UNSUPPORTED, "a batch of %zu sources is too large",
                         plan->n_segments);
    plan->first_tiles_at = aligned(plan->n_jobs * sizeof(weir_cuda_job));
    plan->segments_at = plan->first_tiles_at + aligned(plan->n_jobs * sizeof(uint32_t));
    plan->image_bytes = plan->segments_at + plan->n_segments * sizeof(weir_cuda_segment);
    return WEIR_OK;
}

/* The threads that share a row, as few as hold it: with many rows to a tile none is idle. */
static uint32_t log_lanes_of(uint64_t n_cols)
{
    uint32_t log_lanes = 3;
    while (log_lanes < 8 && ((uint64_t)WEIR_CUDA_CHUNK * WEIR_CUDA_CHUNKS << log_lanes) < n_cols)
        log_lanes++;
    return log_lanes;
}

static void cut(weir_cuda_job *job, uint32_t kind)
{
    job->log_lanes = log_lanes_of(job->n_cols);
    job->tile_rows = WEIR_CUDA_THREADS >> job->log_lanes;
    job->tile_cols = job->n_cols > 0 ? job->n_cols : 1;
    if (kind == WEIR_CUDA_FP8_BLOCK)
        job->tile_rows = job->tile_cols = WEIR_CUDA_BLOCK;
    else if (kind != WEIR_CUDA_FP8_LONG_ROW && job->tile_cols > WEIR_CUDA_TILE_ELEMENTS)
        job->tile_cols = WEIR_CUDA_TILE_ELEMENTS;
    job->tiles_down = (uint32_t)divide_up(job->n_rows, job->tile_rows);
    job->tiles_across = job->n_cols > 0 ? (uint32_t)divide_up(job->n_cols, job->tile_cols) : 1;
}

static void describe_scales(weir_cuda_job *job, const weir_fused *fused, uint32_t kind)
{
    if (kind == WEIR_CUDA_FP8_BLOCK) {
        job->scale_rows = fused->n_matrices * job->tiles_down;
        job->scale_cols = job->tiles_across;
    } else if (kind == WEIR_CUDA_FP8_CHANNEL || kind == WEIR_CUDA_FP8_LONG_ROW) {
        job->scale_rows = fused->n_matrices;
        job->scale_cols = job->n_rows;
    }
}

static weir_cuda_job make_job(const weir_cuda_entry *entry, uint32_t number)
{
    const weir_fused *fused = &entry->fused;
    const weir_conversion *conversion = entry->args.conversion;
    weir_cuda_job job;
    memset(&job, 0, sizeof(job)); /* the padding too: images are compared */
    job.out = (uintptr_t)entry->args.outputs[0];
    job.scales = conversion->n_outputs > 1 ? (uintptr_t)entry->args.outputs[1] : 0;
    job.magnitudes = (uintptr_t)entry->magnitudes;
    job.number = number;
    job.n_rows = (uint32_t)fused->n_rows;
    job.n_cols = (uint32_t)fused->n_cols;
    job.words_per_row = weir_digest_words_per_row(
        fused->n_cols * (weir_dtype_bits(conversion->outputs[0].dtype) / 8));
    job.first_word = entry->args.first_words[0];
    job.first_scale_word = entry->args.first_words[1];
    job.n_segments = (uint32_t)fused->n_sources;
    job.separate = fused->separate;
    job.vector = fused->shape.rank == 1 && fused->n_sources > 1;
    job.digests = entry->args.digests != NULL;
    job.propagate = entry->args.propagate;
    cut(&job, entry->kind);
    describe_scales(&job, fused, entry->kind);
    return job;
}

/* The segments of one entry; returns how many. */
static size_t write_segments(const weir_cuda_entry *entry, weir_cuda_segment *out)
{
    const weir_fused *fused = &entry->fused;
    size_t n = weir_fused_n_tensors(fused);
    uint32_t first = 0;
    for (size_t i = 0; i < n; i++) {
        const weir_tensor *source = &fused->sources[i];
        uint32_t rank = source->shape.rank;
        uint64_t extent = source->shape.dim[rank >= 2 ? rank - 2 : 0];
        if (rank == 1 && fused->n_sources == 1)
            extent = 1; /* one row, not n columns side by side */
        if (fused->separate && i % fused->n_sources == 0)
            first = 0;
        out[i] = (weir_cuda_segment){ .data = (uintptr_t)source->data,
                                      .row_step = weir_fused_row_step(fused, source),
                                      .first = first,
                                      .n = (uint32_t)extent,
                                      .dtype = (uint32_t)source->dtype,
                                      .rounds = entry->rounds && source->dtype == WEIR_F32 };
        first += (uint32_t)extent;
    }
    return n;
}

/* The state of a walk over the entries. */
typedef struct writer {
    weir_cuda_job *jobs;
    uint32_t *first_tiles;
    weir_cuda_segment *segments;
    uint32_t n_jobs, n_segments;
} writer;

static weir_status write_group(writer *w, const weir_cuda_plan *plan,
                               const weir_cuda_entry *entries, weir_cuda_group *group)
{
    uint64_t n_tiles = 0;
    for (size_t i = 0; i < plan->n_entries; i++) {
        const weir_cuda_entry *entry = &entries[i];
        if (entry->empty || entry->kind != group->kind || entry->from != group->from)
            continue;
        weir_cuda_job job = make_job(entry, (uint32_t)i);
        job.first_segment = w->n_segments;
        w->first_tiles[w->n_jobs] = (uint32_t)n_tiles;
        uint64_t per_matrix = (uint64_t)job.tiles_down * job.tiles_across, n;
        if (__builtin_mul_overflow(per_matrix, entry->fused.n_matrices, &n) || n > MAX_TILES ||
            (n_tiles += n) > MAX_TILES)
            return weir_fail(WEIR_ERR_UNSUPPORTED, "%s: more tiles than one launch takes",
                             entry->fused.sources[0].name != NULL ? entry->fused.sources[0].name
                                                                  : "(unnamed)");
        w->jobs[w->n_jobs++] = job;
        w->n_segments += (uint32_t)write_segments(entry, w->segments + w->n_segments);
    }
    group->n_tiles = (uint32_t)n_tiles;
    group->n_jobs = w->n_jobs - group->first_job;
    return WEIR_OK;
}

weir_status weir_cuda_plan_build(weir_cuda_plan *plan, const weir_cuda_entry *entries,
                                 unsigned char *image)
{
    writer w = { (weir_cuda_job *)(void *)image, (uint32_t *)(void *)(image + plan->first_tiles_at),
                 (weir_cuda_segment *)(void *)(image + plan->segments_at), 0, 0 };
    memset(image, 0, plan->image_bytes); /* gaps too */
    plan->n_groups = 0;
    for (uint32_t kind = 0; kind < WEIR_CUDA_N_KINDS; kind++) {
        for (uint32_t from = 0; from < WEIR_CUDA_N_FROM; from++) {
            weir_cuda_group group = { .kind = kind, .from = from, .first_job = w.n_jobs };
            weir_status status = write_group(&w, plan, entries, &group);
            if (status != WEIR_OK)
                return status;
            if (group.n_jobs > 0)
                plan->groups[plan->n_groups++] = group;
        }
    }
    return WEIR_OK;
}
