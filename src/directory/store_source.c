/* SPDX-License-Identifier: Apache-2.0 */
/* store_source.c - sources: what workers say that they hold, until they fall silent. */
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "directory/store_record.h"

#define MAX_SOURCES 16384u

static size_t text_bytes(const char *text)
{
    return text != NULL ? strlen(text) + 1 : 0;
}

static size_t source_bytes(const weir_store_source *source)
{
    return sizeof(store_source) + source->n_identity + source->n_metadata +
           text_bytes(source->source_id) + text_bytes(source->worker_id) +
           text_bytes(source->model) + text_bytes(source->accelerator) +
           text_bytes(source->layout_signature);
}

static store_source **find_source(const weir_store *store, const char *source_id,
                                  const char *worker_id)
{
    store_source **link = (store_source **)&store->sources;
    while (*link != NULL && (strcmp((*link)->view.worker_id, worker_id) != 0 ||
                             strcmp((*link)->view.source_id, source_id) != 0))
        link = &(*link)->next;
    return link;
}

static void drop_source(weir_store *store, store_source **link)
{
    store_source *source = *link;
    *link = source->next;
    weir_store_free(store, source, source_bytes(&source->view));
    store->n_sources--;
}

static const void *put_bytes(char **at, const void *data, size_t n_bytes)
{
    void *copy = *at;
    if (n_bytes != 0)
        memcpy(copy, data, n_bytes);
    *at += n_bytes;
    return copy;
}

/* A record's memory: what the worker said before makes room where that is enough, so that a word
 * that is as long as the last takes none. */
static store_source *make_room(weir_store *store, const weir_store_source *source)
{
    size_t n_bytes = source_bytes(source);
    store_source **link = find_source(store, source->source_id, source->worker_id);
    store_source *known = *link;
    if (known != NULL && weir_rpc_heap_block_bytes(source_bytes(&known->view)) ==
                             weir_rpc_heap_block_bytes(n_bytes)) {
        *link = known->next;
        store->n_sources--;
        return known;
    }
    store_source *room = weir_store_alloc(store, n_bytes);
    if (room != NULL && known != NULL)
        drop_source(store, find_source(store, source->source_id, source->worker_id));
    return room;
}

static store_source *copy_source(weir_store *store, const weir_store_source *source)
{
    store_source *copy = make_room(store, source);
    if (copy == NULL)
        return NULL;
    char *at = (char *)(copy + 1);
    copy->view = *source;
    copy->view.identity = put_bytes(&at, source->identity, source->n_identity);
    copy->view.metadata = put_bytes(&at, source->metadata, source->n_metadata);
    copy->view.source_id = weir_store_put_text(&at, source->source_id);
    copy->view.worker_id = weir_store_put_text(&at, source->worker_id);
    copy->view.model = weir_store_put_text(&at, source->model);
    copy->view.accelerator = weir_store_put_text(&at, source->accelerator);
    if (source->layout_signature != NULL)
        copy->view.layout_signature = weir_store_put_text(&at, source->layout_signature);
    return copy;
}

static void set_status(store_source *source, weir_store_source_status status, uint64_t now_ms)
{
    source->view.status = status;
    source->view.updated_at_ms = (int64_t)now_ms;
    source->stale_since_ms = now_ms;
}

weir_status weir_store_publish_source(weir_store *store, const weir_store_source *source,
                                      uint64_t now_ms)
{
    weir_status status = weir_store_check_name("identity.model_name", source->model);
    if (status == WEIR_OK)
        status = weir_store_check_name("worker_id", source->worker_id);
    if (status != WEIR_OK)
        return status;
    bool is_known = *find_source(store, source->source_id, source->worker_id) != NULL;
    if (!is_known && store->n_sources == MAX_SOURCES)
        return weir_fail(WEIR_ERR_NO_MEMORY, "the directory is full: %u sources", MAX_SOURCES);
    store_source *copy = copy_source(store, source);
    if (copy == NULL)
        return WEIR_ERR_NO_MEMORY;
    set_status(copy, source->status, now_ms);
    copy->next = store->sources;
    store->sources = copy;
    store->n_sources++;
    return WEIR_OK;
}

weir_status weir_store_update_source(weir_store *store, const char *source_id,
                                     const char *worker_id, weir_store_source_status status,
                                     uint64_t now_ms)
{
    store_source *source = *find_source(store, source_id, worker_id);
    if (source == NULL)
        return weir_fail(WEIR_ERR_NOT_FOUND, "no source '%.64s' of worker '%.64s'", source_id,
                         worker_id);
    set_status(source, status, now_ms);
    return WEIR_OK;
}

const weir_store_source *weir_store_get_source(const weir_store *store, const char *source_id,
                                               const char *worker_id)
{
    const store_source *source = *find_source(store, source_id, worker_id);
    return source != NULL ? &source->view : NULL;
}

/* ---- listing ---------------------------------------------------------------------------------*/

static bool matches(const weir_store_source *source, const weir_store_filter *filter)
{
    if (filter->source_id != NULL && strcmp(source->source_id, filter->source_id) != 0)
        return false;
    if (filter->model != NULL && strcmp(source->model, filter->model) != 0)
        return false;
    if (filter->has_status && (int)source->status != filter->status)
        return false;
    if (filter->has_rank && source->rank != filter->rank)
        return false;
    if (filter->has_min_step && (!source->has_step || source->step < filter->min_step))
        return false;
    return !filter->has_min_updated || source->updated_at_ms >= filter->min_updated_at_ms;
}

static int compare_three_way(uint64_t a, uint64_t b)
{
    return (a > b) - (a < b);
}

/* Newest first; what came in the same millisecond by step, then by worker, so that the order is
 * always the same. */
static int compare_sources(const void *left, const void *right)
{
    const weir_store_source *a = *(const weir_store_source *const *)left;
    const weir_store_source *b = *(const weir_store_source *const *)right;
    int order = compare_three_way((uint64_t)b->updated_at_ms, (uint64_t)a->updated_at_ms);
    if (order == 0)
        order = compare_three_way(b->has_step ? b->step : 0, a->has_step ? a->step : 0);
    return order != 0 ? order : strcmp(a->worker_id, b->worker_id);
}

size_t weir_store_count_sources(const weir_store *store)
{
    return store->n_sources;
}

size_t weir_store_list_sources(const weir_store *store, const weir_store_filter *filter,
                               const weir_store_source **out)
{
    size_t n = 0;
    for (const store_source *source = store->sources; source != NULL; source = source->next) {
        if (matches(&source->view, filter))
            out[n++] = &source->view;
    }
    qsort(out, n, sizeof(*out), compare_sources);
    return filter->has_limit && n > filter->limit ? filter->limit : n;
}

/* ---- sweeping --------------------------------------------------------------------------------*/

void weir_store_sweep_sources(weir_store *store, uint64_t now_ms)
{
    const weir_store_options *options = &store->options;
    for (store_source **link = &store->sources; *link != NULL;) {
        store_source *source = *link;
        uint64_t since_ms = now_ms > source->stale_since_ms ? now_ms - source->stale_since_ms : 0;
        bool is_stale = source->view.status == WEIR_STORE_SOURCE_STALE;
        if (is_stale && since_ms > options->delete_after_ms) {
            drop_source(store, link);
            continue;
        }
        if (!is_stale && since_ms > options->stale_after_ms) {
            source->view.status = WEIR_STORE_SOURCE_STALE;
            source->stale_since_ms = now_ms; /* updated_at stays the worker's last word */
        }
        link = &source->next;
    }
}

void weir_store_drop_sources(weir_store *store)
{
    while (store->sources != NULL)
        drop_source(store, &store->sources);
}
