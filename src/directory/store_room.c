/* SPDX-License-Identifier: Apache-2.0 */
/* store_room.c - what goes when there is no room, and how much of it one model may have: whoever
 * fills the store for one must not fill it for all. */
#include <string.h>

#include "base/error.h"
#include "directory/store_record.h"

#define HURRY 5u /* of abandon_after_ms, when there is no room */

/* ---- versions --------------------------------------------------------------------------------*/

static bool is_over(const store_version *version)
{
    return version->view.state == WEIR_STORE_RELEASING || version->view.state == WEIR_STORE_ABORTED;
}

/* A trainer that is cut off for a moment goes on with its version. */
static bool is_abandoned(const weir_store *store, const store_version *version, uint64_t now_ms)
{
    return version->view.state == WEIR_STORE_STAGING &&
           weir_store_is_quiet_for(version, store->options.abandon_after_ms / HURRY, now_ms);
}

/* Of this model, NULL: of all. Lists have the newest first. */
static store_version *oldest_to_go(const weir_store *store, const store_model *model,
                                   uint64_t now_ms)
{
    store_version *abandoned = NULL;
    const store_link *head = model != NULL ? &model->versions : &store->all_versions;
    for (store_link *link = head->prev; link != head; link = link->prev) {
        store_version *version = model != NULL ? WEIR_STORE_OF(store_version, of_model, link)
                                               : WEIR_STORE_OF(store_version, link, link);
        bool may_go =
            is_over(version) || (abandoned == NULL && is_abandoned(store, version, now_ms));
        if (!may_go || weir_store_has_live_lease(version, now_ms) ||
            weir_store_has_live_shard(version, now_ms))
            continue;
        if (is_over(version))
            return version;
        abandoned = version;
    }
    return abandoned;
}

static bool has_as_many_as_may_be(const weir_store *store, const store_model *model)
{
    size_t n = 0;
    if (model == NULL || store->n_versions < WEIR_STORE_MAX_VERSIONS_OF_MODEL)
        return false;
    for (const store_link *link = model->versions.next; link != &model->versions; link = link->next)
        n++;
    return n >= WEIR_STORE_MAX_VERSIONS_OF_MODEL;
}

weir_status weir_store_make_room(const weir_store *store, const char *model, uint64_t now_ms,
                                 store_version **out_over)
{
    const store_model *of = weir_store_find_model(store, model);
    bool is_model_full = has_as_many_as_may_be(store, of);
    *out_over = NULL;
    if (!is_model_full && store->n_versions < WEIR_STORE_MAX_VERSIONS)
        return WEIR_OK;
    *out_over = oldest_to_go(store, is_model_full ? of : NULL, now_ms);
    if (*out_over != NULL)
        return WEIR_OK;
    if (is_model_full)
        return weir_fail(WEIR_ERR_NO_MEMORY,
                         "the directory is full: %u weight versions of model_name '%.64s'",
                         WEIR_STORE_MAX_VERSIONS_OF_MODEL, model);
    return weir_fail(WEIR_ERR_NO_MEMORY, "the directory is full: %u weight versions",
                     WEIR_STORE_MAX_VERSIONS);
}

/* ---- sources ---------------------------------------------------------------------------------*/

weir_status weir_store_check_source_room(const weir_store *store, const weir_store_source *source)
{
    const store_source *known =
        weir_store_find_source(store, weir_store_text(source->source_id), source->worker_id);
    if (known == NULL && store->n_sources == WEIR_STORE_MAX_SOURCES)
        return weir_fail(WEIR_ERR_NO_MEMORY, "the directory is full: %u sources",
                         WEIR_STORE_MAX_SOURCES);
    const store_model *model = weir_store_find_model(store, source->model);
    size_t n_before = model != NULL ? model->n_source_bytes : 0;
    if (known != NULL && known->record_of == model)
        n_before -= weir_rpc_heap_block_bytes(known->block_bytes);
    size_t n_bytes = weir_rpc_heap_block_bytes(weir_store_source_bytes(source));
    if (n_bytes > WEIR_STORE_MAX_BYTES / 2 - n_before)
        return weir_fail(WEIR_ERR_NO_MEMORY,
                         "the directory is full: sources of model_name '%.64s' occupy %zu MiB",
                         source->model, n_before >> 20);
    return WEIR_OK;
}
