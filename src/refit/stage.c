/* SPDX-License-Identifier: Apache-2.0 */
/* stage.c - stop 2 of 9: converts what this rank makes straight into a slot.
 *
 * Takes   the jobs of source.c and a slot that is FILLING.
 * Gives   the slot's bytes and the digest of every shard, made in the same pass.
 * Before  source.c        After  slot.c
 * Breaks  a weight that is not finite, named with its index; a rank of the mesh that does not hand
 *         over its rows in time: the slot is dropped, nothing was published, the next publish
 *         starts afresh.
 *
 * Ranks of a mesh lend each other rows first; what needs none of them is converted while they come.
 * Of a version that is pushed there are no bytes yet; its weights are looked through when that was
 * asked for.
 */
#include <string.h>

#include "base/digest.h"
#include "base/error.h"
#include "refit/serve.h"
#include "refit/sharded.h"
#include "refit/window.h"

/* A job's conversion into a slot. Where shards come whole from one job, as most do, its digests are
 * theirs; all are added up in the end. */
static weir_convert_args args_of(const weir_trainer *trainer, const weir_slot *slot, size_t i)
{
    const weir_source *source = &trainer->source;
    const weir_stage_job *job = &source->jobs[i];
    weir_convert_args args = job->args;
    args.digests = &source->job_digests[i * WEIR_MAX_OUTPUTS];
    args.round_masters = !trainer->keep_masters;
    for (size_t o = 0; o < args.conversion->n_outputs; o++)
        args.outputs[o] = slot->data + source->shards[job->shards[o]].offset + job->offsets[o];
    return args;
}

static uint64_t bytes_of(const weir_source *source, const weir_stage_job *job)
{
    uint64_t n_bytes = 0;
    for (size_t o = 0; o < job->args.conversion->n_outputs; o++)
        n_bytes += source->shards[job->shards[o]].n_bytes;
    return n_bytes;
}

static weir_status stage_on_host(weir_trainer *trainer, weir_slot *slot, bool borrow,
                                 uint64_t *done_bytes)
{
    const weir_source *source = &trainer->source;
    for (size_t i = 0; i < source->n_jobs; i++) {
        if (source->jobs[i].borrows != borrow || source->jobs[i].by_magnitude)
            continue;
        weir_convert_args args = args_of(trainer, slot, i);
        args.pool = trainer->worker.pool;
        weir_status status = weir_convert(&args);
        if (status != WEIR_OK)
            return status;
        *done_bytes += bytes_of(source, &source->jobs[i]);
        weir_worker_progress(&trainer->worker, WEIR_STOP_STAGE, slot->version,
                             *done_bytes < source->n_bytes ? *done_bytes : source->n_bytes,
                             source->n_bytes);
    }
    return WEIR_OK;
}

/* Jobs as one piece of work, but for those of shared borders. */
static weir_status stage_on_gpu(weir_trainer *trainer, const weir_slot *slot, size_t first_job,
                                size_t n_jobs)
{
    weir_arena_reset(&trainer->scratch);
    weir_convert_args *args = weir_arena_zeroed(&trainer->scratch, n_jobs, sizeof(*args));
    if (args == NULL)
        return WEIR_ERR_NO_MEMORY;
    size_t n_args = 0;
    for (size_t i = first_job; i < first_job + n_jobs; i++) {
        if (!trainer->source.jobs[i].by_magnitude)
            args[n_args++] = args_of(trainer, slot, i);
    }
    weir_status status = WEIR_OK;
    if (trainer->stage == NULL)
        status = weir_task_open(trainer->work, &trainer->stage);
    if (status == WEIR_OK)
        status = weir_task_convert(trainer->stage, WEIR_LANE_COMPUTE, args, n_args);
    if (status == WEIR_OK)
        status = weir_task_wait(trainer->stage, trainer->worker.timeout_ms);
    return status;
}

static void add_digests(const weir_source *source, size_t first_job, size_t n_jobs,
                        weir_digest *digests)
{
    for (size_t i = first_job; i < first_job + n_jobs; i++) {
        const weir_stage_job *job = &source->jobs[i];
        for (size_t o = 0; o < job->args.conversion->n_outputs && !job->by_magnitude; o++)
            weir_digest_merge(&digests[job->shards[o]],
                              &source->job_digests[i * WEIR_MAX_OUTPUTS + o]);
    }
}

/* A conversion counts within the piece of a tensor that it is given. */
static weir_status name_weight(const weir_trainer *trainer, weir_status status)
{
    if (status == WEIR_ERR_NONFINITE && trainer->source.sharded != NULL &&
        trainer->memory != WEIR_MEMORY_CUDA)
        weir_sharded_name_nonfinite(trainer->source.sharded);
    return status;
}

weir_status weir_stage_jobs(weir_trainer *trainer, const weir_slot *slot, size_t first_job,
                            size_t n_jobs, weir_digest *digests)
{
    const weir_source *source = &trainer->source;
    bool on_gpu = trainer->memory == WEIR_MEMORY_CUDA;
    weir_status status = on_gpu ? stage_on_gpu(trainer, slot, first_job, n_jobs) : WEIR_OK;
    for (size_t i = first_job; i < first_job + n_jobs && status == WEIR_OK && !on_gpu; i++) {
        if (source->jobs[i].by_magnitude)
            continue;
        weir_convert_args args = args_of(trainer, slot, i);
        args.pool = trainer->worker.pool;
        status = weir_convert(&args);
    }
    if (status == WEIR_OK)
        add_digests(source, first_job, n_jobs, digests);
    if (status == WEIR_OK)
        status = weir_sharded_convert(source->sharded, slot->data, first_job, n_jobs, digests);
    return name_weight(trainer, status);
}

static weir_status convert_jobs(weir_trainer *trainer, weir_slot *slot)
{
    const weir_source *source = &trainer->source;
    weir_sharded *sharded = trainer->source.sharded;
    bool on_gpu = trainer->memory == WEIR_MEMORY_CUDA;
    uint64_t done_bytes = 0;
    weir_status status = sharded != NULL ? weir_sharded_lend(sharded, slot->version) : WEIR_OK;
    if (status == WEIR_OK && !on_gpu)
        status = stage_on_host(trainer, slot, false, &done_bytes);
    if (status == WEIR_OK && sharded != NULL)
        status = weir_sharded_borrow(sharded, slot->version);
    if (status == WEIR_OK)
        status = on_gpu ? stage_on_gpu(trainer, slot, 0, source->n_jobs)
                        : stage_on_host(trainer, slot, true, &done_bytes);
    if (status != WEIR_OK)
        return status;
    memset(slot->digests, 0, source->n_shards * sizeof(*slot->digests));
    add_digests(source, 0, source->n_jobs, slot->digests);
    return weir_sharded_convert(sharded, slot->data, 0, source->n_jobs, slot->digests);
}

/* A version that passes through a window is converted when it is sent. Rows of borders are handed
 * over before, so that no rank waits for another then. */
static weir_status prepare_window(weir_trainer *trainer, const weir_slot *slot)
{
    weir_status status = weir_sharded_lend(trainer->source.sharded, slot->version);
    if (status == WEIR_OK)
        status = weir_sharded_borrow(trainer->source.sharded, slot->version);
    if (status == WEIR_OK && trainer->scan_first)
        status = weir_window_try(trainer);
    return status;
}

weir_status weir_stop_stage(weir_trainer *trainer, weir_slot *slot)
{
    weir_status status = WEIR_OK;
    if (trainer->window != NULL)
        status = prepare_window(trainer, slot);
    else if (!trainer->pushes)
        status = convert_jobs(trainer, slot);
    else if (trainer->scan_first)
        status = weir_push_scan(trainer->push, trainer->keep_masters);
    if (name_weight(trainer, status) != WEIR_OK)
        weir_error_prefix("trainer rank %u", trainer->rank);
    return status;
}
