/* SPDX-License-Identifier: Apache-2.0 */
/* stage.c - stop 2 of 9: converts what this rank owns straight into a slot.
 *
 * Takes   the bound entries of source.c and a slot that is FILLING.
 * Gives   the slot's bytes and the digest of every shard, made in the same pass.
 * Before  source.c        After  slot.c
 * Breaks  a weight that is not finite, named with its index: the slot is dropped, nothing was
 *         published, the next publish starts afresh.
 *
 * Of a version that is pushed there are no bytes yet; its weights are looked through when that was
 * asked for.
 */
#include "base/error.h"
#include "family/mapping.h"
#include "refit/serve.h"
#include "refit/trainer.h"

static weir_status stage_on_host(weir_trainer *trainer, weir_slot *slot)
{
    const weir_source *source = &trainer->source;
    uint64_t done_bytes = 0;
    for (size_t i = 0; i < source->n_owned; i++) {
        const weir_owned_entry *owned = &source->owned[i];
        const weir_shard *shards = &source->shards[owned->first_shard];
        weir_entry_convert_args args = WEIR_ENTRY_CONVERT_ARGS_INIT;
        args.digests = &slot->digests[owned->first_shard];
        args.keep_masters = trainer->keep_masters;
        args.pool = trainer->worker.pool;
        for (size_t o = 0; o < owned->entry->conversion->n_outputs; o++) {
            args.outputs[o] = slot->data + shards[o].offset;
            done_bytes += shards[o].n_bytes;
        }
        weir_status status = weir_map_entry_convert(owned->entry, &args);
        if (status != WEIR_OK)
            return status;
        weir_worker_progress(&trainer->worker, WEIR_STOP_STAGE, slot->version, done_bytes,
                             source->n_bytes);
    }
    return WEIR_OK;
}

/* All entries as one piece of work. */
static weir_status stage_on_gpu(weir_trainer *trainer, weir_slot *slot)
{
    const weir_source *source = &trainer->source;
    weir_arena_reset(&trainer->scratch);
    weir_convert_args *args = weir_arena_zeroed(&trainer->scratch, source->n_owned, sizeof(*args));
    if (args == NULL)
        return WEIR_ERR_NO_MEMORY;
    for (size_t i = 0; i < source->n_owned; i++) {
        const weir_owned_entry *owned = &source->owned[i];
        args[i] = weir_map_entry_args(owned->entry);
        args[i].digests = &slot->digests[owned->first_shard];
        args[i].round_masters = !trainer->keep_masters;
        for (size_t o = 0; o < args[i].conversion->n_outputs; o++)
            args[i].outputs[o] = slot->data + source->shards[owned->first_shard + o].offset;
    }
    weir_status status = WEIR_OK;
    if (trainer->stage == NULL)
        status = weir_task_open(trainer->work, &trainer->stage);
    if (status == WEIR_OK)
        status = weir_task_convert(trainer->stage, WEIR_LANE_COMPUTE, args, source->n_owned);
    if (status == WEIR_OK)
        status = weir_task_wait(trainer->stage, trainer->worker.timeout_ms);
    return status;
}

weir_status weir_stop_stage(weir_trainer *trainer, weir_slot *slot)
{
    weir_status status = WEIR_OK;
    if (!trainer->pushes)
        status = trainer->memory == WEIR_MEMORY_CUDA ? stage_on_gpu(trainer, slot)
                                                     : stage_on_host(trainer, slot);
    else if (trainer->scan_first)
        status = weir_push_scan(trainer->push, trainer->keep_masters);
    if (status != WEIR_OK)
        weir_error_prefix("trainer rank %u", trainer->rank);
    return status;
}
