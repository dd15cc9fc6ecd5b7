/* SPDX-License-Identifier: Apache-2.0 */
/* store.c - the store's life, its memory, and the workers. */
#include "directory/store.h"

#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "base/error.h"
#include "directory/store_record.h"

#define MAX_WORKERS 16384u
#define MAX_BYTES ((size_t)512 << 20)

weir_status weir_store_open(const weir_store_options *options, weir_store **out)
{
    weir_store *store = weir_alloc_zeroed(1, sizeof(*store));
    if (store == NULL)
        return WEIR_ERR_NO_MEMORY;
    store->options = *options;
    if (store->options.stale_after_ms == 0)
        store->options.stale_after_ms = 90u * 1000;
    if (store->options.delete_after_ms == 0)
        store->options.delete_after_ms = 3600u * 1000;
    if (store->options.forget_after_ms == 0)
        store->options.forget_after_ms = 3600u * 1000;
    weir_rpc_heap_init(&store->heap);
    *out = store;
    return WEIR_OK;
}

/* ---- memory ----------------------------------------------------------------------------------*/

void *weir_store_alloc(weir_store *store, size_t n_bytes)
{
    size_t n_block = weir_rpc_heap_block_bytes(n_bytes);
    if (n_block > MAX_BYTES - store->used_bytes) {
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

weir_status weir_store_check_name(const char *field, const char *name)
{
    if (name == NULL || name[0] == '\0')
        return weir_fail(WEIR_ERR_INVALID, "%s is required", field);
    size_t n = strlen(name);
    if (n > WEIR_STORE_MAX_NAME)
        return weir_fail(WEIR_ERR_INVALID, "%s has %zu bytes, at most %u are allowed", field, n,
                         WEIR_STORE_MAX_NAME);
    return WEIR_OK;
}

const char *weir_store_put_text(char **at, const char *text)
{
    size_t n = strlen(text) + 1;
    char *copy = memcpy(*at, text, n);
    *at += n;
    return copy;
}

/* ---- workers ---------------------------------------------------------------------------------*/

store_worker *weir_store_find_worker(const weir_store *store, const char *worker_id,
                                     uint64_t now_ms)
{
    for (store_worker *worker = store->workers; worker != NULL; worker = worker->next) {
        if (strcmp(worker->worker_id, worker_id) == 0)
            return worker->expires_ms > now_ms ? worker : NULL;
    }
    return NULL;
}

static size_t worker_bytes(const char *worker_id, const char *model)
{
    return sizeof(store_worker) + strlen(worker_id) + strlen(model) + 2;
}

static void drop_worker(weir_store *store, store_worker **link)
{
    store_worker *worker = *link;
    *link = worker->next;
    weir_store_free(store, worker, worker_bytes(worker->worker_id, worker->model));
    store->n_workers--;
}

static weir_status check_registration(const char *worker_id, int role, const char *model,
                                      uint32_t ttl_s)
{
    weir_status status = weir_store_check_name("worker_id", worker_id);
    if (status == WEIR_OK)
        status = weir_store_check_name("model_name", model);
    if (status != WEIR_OK)
        return status;
    if (role != WEIR_STORE_TRAINER && role != WEIR_STORE_GENERATOR)
        return weir_fail(WEIR_ERR_INVALID, "role must be TRAINER or GENERATOR, not %d", role);
    if (ttl_s == 0)
        return weir_fail(WEIR_ERR_INVALID, "ttl_seconds must be greater than zero");
    return WEIR_OK;
}

/* Gives the worker of this id, made if need be; an expired one is replaced, for it may have been
 * anything. */
static weir_status have_worker(weir_store *store, const char *worker_id, int role,
                               const char *model, uint64_t now_ms, store_worker **out)
{
    store_worker **link = &store->workers;
    while (*link != NULL && strcmp((*link)->worker_id, worker_id) != 0)
        link = &(*link)->next;
    store_worker *worker = *link;
    if (worker != NULL && worker->role == role && strcmp(worker->model, model) == 0) {
        *out = worker;
        return WEIR_OK;
    }
    if (worker != NULL && worker->expires_ms > now_ms)
        return weir_fail(WEIR_ERR_EXISTS,
                         "worker_id is registered with another role or model_name");
    if (worker != NULL)
        drop_worker(store, link);
    if (store->n_workers == MAX_WORKERS)
        return weir_fail(WEIR_ERR_NO_MEMORY, "the directory is full: %u workers", MAX_WORKERS);
    worker = weir_store_alloc(store, worker_bytes(worker_id, model));
    if (worker == NULL)
        return WEIR_ERR_NO_MEMORY;
    char *at = (char *)(worker + 1);
    worker->worker_id = weir_store_put_text(&at, worker_id);
    worker->model = weir_store_put_text(&at, model);
    worker->role = role;
    worker->next = store->workers;
    store->workers = worker;
    store->n_workers++;
    *out = worker;
    return WEIR_OK;
}

weir_status weir_store_register_worker(weir_store *store, const char *worker_id, int role,
                                       const char *model, uint32_t ttl_s, uint64_t now_ms,
                                       uint64_t *out_expires_ms)
{
    store_worker *worker = NULL;
    weir_status status = check_registration(worker_id, role, model, ttl_s);
    if (status == WEIR_OK)
        status = have_worker(store, worker_id, role, model, now_ms, &worker);
    if (status != WEIR_OK)
        return status;
    if (ttl_s > WEIR_STORE_MAX_TTL_S)
        ttl_s = WEIR_STORE_MAX_TTL_S;
    worker->expires_ms = now_ms + (uint64_t)ttl_s * 1000;
    *out_expires_ms = worker->expires_ms;
    return WEIR_OK;
}

/* ---- sweeping and closing --------------------------------------------------------------------*/

static void sweep_workers(weir_store *store, uint64_t now_ms)
{
    for (store_worker **link = &store->workers; *link != NULL;) {
        if ((*link)->expires_ms <= now_ms)
            drop_worker(store, link);
        else
            link = &(*link)->next;
    }
}

void weir_store_sweep(weir_store *store, uint64_t now_ms)
{
    sweep_workers(store, now_ms);
    weir_store_sweep_versions(store, now_ms);
    weir_store_sweep_sources(store, now_ms);
}

void weir_store_close(weir_store *store)
{
    if (store == NULL)
        return;
    while (store->workers != NULL)
        drop_worker(store, &store->workers);
    weir_store_drop_versions(store);
    weir_store_drop_sources(store);
    weir_rpc_heap_close(&store->heap);
    weir_free(store);
}
