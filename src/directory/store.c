/* SPDX-License-Identifier: Apache-2.0 */
/* store.c - the store's life and its memory. */
#include "directory/store.h"

#include <string.h>

#include "base/alloc.h"
#include "base/error.h"
#include "directory/store_record.h"

#define MAX_INDEXES 12

static size_t indexes_of(weir_store *store, store_index *out[MAX_INDEXES])
{
    store_index *const all[] = { &store->models,
                                 &store->runs,
                                 &store->workers,
                                 &store->versions_by_uid,
                                 &store->versions_by_key,
                                 &store->shards,
                                 &store->leases,
                                 &store->sources_by_id,
                                 &store->sources_by_worker,
                                 &store->sources_by_rank,
                                 &store->sources_by_version,
                                 &store->words };
    memcpy(out, all, sizeof(all));
    return sizeof(all) / sizeof(all[0]);
}

static void set_options(weir_store *store, const weir_store_options *options)
{
    store->options = *options;
    if (store->options.stale_after_ms == 0)
        store->options.stale_after_ms = 90u * 1000;
    if (store->options.delete_after_ms == 0)
        store->options.delete_after_ms = 3600u * 1000;
    if (store->options.forget_after_ms == 0)
        store->options.forget_after_ms = 3600u * 1000;
    if (store->options.abandon_after_ms == 0)
        store->options.abandon_after_ms = 600u * 1000;
}

weir_status weir_store_open(const weir_store_options *options, weir_store **out)
{
    weir_store *store = weir_alloc_zeroed(1, sizeof(*store));
    if (store == NULL)
        return WEIR_ERR_NO_MEMORY;
    set_options(store, options);
    store->seed = weir_store_hash_number(1, (uintptr_t)store);
    store->revision = store->gone_revision = 1;
    store->lease_due_ms = UINT64_MAX;
    weir_rpc_heap_init(&store->heap);
    weir_store_list_init(&store->all_models);
    weir_store_list_init(&store->all_workers);
    weir_store_list_init(&store->all_versions);
    weir_store_list_init(&store->all_sources);
    store_index *indexes[MAX_INDEXES];
    size_t n = indexes_of(store, indexes);
    for (size_t i = 0; i < n; i++) {
        if (weir_store_index_open(indexes[i]) != WEIR_OK) {
            weir_store_close(store);
            return WEIR_ERR_NO_MEMORY;
        }
    }
    *out = store;
    return WEIR_OK;
}

void weir_store_close(weir_store *store)
{
    if (store == NULL)
        return;
    weir_store_drop_sources(store);
    weir_store_drop_versions(store);
    weir_store_drop_words(store);
    weir_store_drop_workers(store);
    store_index *indexes[MAX_INDEXES];
    size_t n = indexes_of(store, indexes);
    for (size_t i = 0; i < n; i++)
        weir_store_index_close(indexes[i]);
    weir_rpc_heap_close(&store->heap);
    weir_free(store);
}

/* Leases first: with them goes what keeps shards, with those what keeps workers and versions. */
void weir_store_sweep(weir_store *store, uint64_t now_ms)
{
    weir_store_sweep_leases(store, now_ms);
    weir_store_sweep_sources(store, now_ms);
    weir_store_sweep_workers(store, now_ms);
    weir_store_sweep_versions(store, now_ms);
    weir_store_sweep_words(store, now_ms);
}

weir_store_events weir_store_count_events(const weir_store *store)
{
    return store->events;
}

void weir_store_listen(weir_store *store,
                       void (*hear)(void *context, const weir_store_notice *notice), void *context)
{
    store->hear = hear;
    store->hear_context = context;
}

void weir_store_tell_version(const weir_store *store, weir_store_news what,
                             const store_version *version, const char *worker_id)
{
    const weir_store_notice notice = { .what = what,
                                       .version = &version->view,
                                       .worker_id = worker_id,
                                       .model = version->model->name };
    if (store->hear != NULL)
        store->hear(store->hear_context, &notice);
}

void weir_store_tell_worker(const weir_store *store, weir_store_news what,
                            const store_worker *worker)
{
    const weir_store_notice notice = { .what = what,
                                       .worker_id = worker->worker_id,
                                       .model = worker->model->name,
                                       .role = worker->role };
    if (store->hear != NULL)
        store->hear(store->hear_context, &notice);
}

weir_store_totals weir_store_count(const weir_store *store)
{
    store_index *indexes[MAX_INDEXES];
    size_t n = indexes_of((weir_store *)store, indexes), n_bytes = store->used_bytes;
    for (size_t i = 0; i < n; i++)
        n_bytes += indexes[i]->n_buckets * sizeof(*indexes[i]->buckets);
    return (weir_store_totals){ .n_workers = store->n_workers,
                                .n_versions = store->n_versions,
                                .n_shards = store->n_shards,
                                .n_leases = store->n_leases,
                                .n_sources = store->n_sources,
                                .n_words = store->n_words,
                                .n_bytes = n_bytes + sizeof(*store) };
}

/* ---- memory ----------------------------------------------------------------------------------*/

void *weir_store_alloc(weir_store *store, size_t n_bytes)
{
    size_t n_block = weir_rpc_heap_block_bytes(n_bytes);
    if (n_block > WEIR_STORE_MAX_BYTES - store->used_bytes) {
        weir_fail(WEIR_ERR_NO_MEMORY, "the directory is full: it holds %zu MiB of records",
                  store->used_bytes >> 20);
        return NULL;
    }
    void *block = weir_rpc_heap_alloc(&store->heap, n_bytes);
    if (block == NULL)
        return NULL;
    store->used_bytes += n_block;
    return memset(block, 0, n_bytes);
}

void weir_store_free(weir_store *store, void *block, size_t n_bytes)
{
    if (block == NULL)
        return;
    store->used_bytes -= weir_rpc_heap_block_bytes(n_bytes);
    weir_rpc_heap_free(&store->heap, block);
}

/* ---- names -----------------------------------------------------------------------------------*/

weir_status weir_store_check_optional(const char *field, const char *name)
{
    size_t n = name != NULL ? strlen(name) : 0;
    if (n > WEIR_STORE_MAX_NAME)
        return weir_fail(WEIR_ERR_INVALID, "%s has %zu bytes, at most %u are allowed", field, n,
                         WEIR_STORE_MAX_NAME);
    return WEIR_OK;
}

weir_status weir_store_check_name(const char *field, const char *name)
{
    if (name == NULL || name[0] == '\0')
        return weir_fail(WEIR_ERR_INVALID, "%s is required", field);
    return weir_store_check_optional(field, name);
}

const char *weir_store_put_text(char **at, const char *text)
{
    size_t n = strlen(text) + 1;
    char *copy = memcpy(*at, text, n);
    *at += n;
    return copy;
}

const char *weir_store_text(const char *text)
{
    return text != NULL ? text : "";
}
