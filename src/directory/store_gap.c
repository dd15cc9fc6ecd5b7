/* SPDX-License-Identifier: Apache-2.0 */
/* store_gap.c - what nobody can read, though it was published: for whoever has to say why. */
#include "directory/store_record.h"

/* Who published into the slot last; NULL: nobody has, or it is forgotten. */
static const store_shard *last_of_slot(const store_link *slot)
{
    const store_shard *last = NULL;
    for (const store_link *link = slot->next; link != slot; link = link->next) {
        const store_shard *shard = WEIR_STORE_OF(store_shard, of_slot, link);
        if (last == NULL || shard->generation > last->generation)
            last = shard;
    }
    return last;
}

size_t weir_store_each_gap(const weir_store *store, const char *version_uid, uint64_t now_ms,
                           bool (*visit)(void *context, const weir_store_gap *gap), void *context)
{
    store_version *version = weir_store_version_record(store, version_uid);
    if (version == NULL)
        return 0;
    const store_coverage *coverage = weir_store_cover(version, now_ms);
    size_t n = coverage->n_missing;
    for (size_t i = 0; visit != NULL && n != 0 && i < version->view.n_slots; i++) {
        if (coverage->shards[i] != NULL)
            continue;
        const store_shard *last = last_of_slot(&version->slots[i]);
        const weir_store_gap gap = { .slot = version->view.slots[i],
                                     .was_published = version->pasts[i].generation != 0,
                                     .worker_id = last != NULL ? last->view.worker_id : "" };
        if (!visit(context, &gap))
            break;
    }
    return n;
}

bool weir_store_is_unreadable(const weir_store *store, const char *version_uid, uint64_t now_ms)
{
    store_version *version = weir_store_version_record(store, version_uid);
    return version != NULL && version->view.state == WEIR_STORE_READY &&
           weir_store_cover(version, now_ms)->n_missing != 0 &&
           !weir_store_has_holder(store, version, now_ms);
}

bool weir_store_is_source_gone(const weir_store_source *source, uint64_t now_ms)
{
    const store_worker *worker = WEIR_STORE_OF(store_source, view, source)->worker;
    if (source->status != WEIR_STORE_SOURCE_READY || source->generation == 0)
        return false;
    return worker == NULL || worker->expires_ms <= now_ms ||
           worker->generation != source->generation;
}
