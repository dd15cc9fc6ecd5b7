/* SPDX-License-Identifier: Apache-2.0 */
/* stage.c - stop 2 of 9: converts what this rank owns straight into a slot.
 *
 * Takes   the bound entries of source.c and a slot that is FILLING.
 * Gives   the slot's bytes and the digest of every shard, made in the same pass.
 * Before  source.c        After  slot.c
 * Breaks  a weight that is not finite, named with its index: the slot is dropped, nothing was
 *         published, the next publish starts afresh.
 */
#include "base/error.h"
#include "refit/trainer.h"

weir_status weir_stop_stage(weir_trainer *trainer, weir_slot *slot)
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
        if (status != WEIR_OK) {
            weir_error_prefix("trainer rank %u", trainer->rank);
            return status;
        }
        weir_worker_progress(&trainer->worker, WEIR_STOP_STAGE, slot->version, done_bytes,
                             source->n_bytes);
    }
    return WEIR_OK;
}
