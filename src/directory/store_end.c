/* SPDX-License-Identifier: Apache-2.0 */
/* store_end.c - how versions end: released, aborted with a reason, and forgotten once nobody can
 * serve or reads them. */
#include <string.h>

#include "base/error.h"
#include "directory/store_record.h"
#include "rpc/rpc_message.h"

/* ---- by request ------------------------------------------------------------------------------*/

weir_status weir_store_delete_version(weir_store *store, const char *uid, uint64_t now_ms,
                                      const weir_store_version **out)
{
    store_version *version = weir_store_find_version(store, uid);
    if (version == NULL)
        return WEIR_ERR_NOT_FOUND;
    if (version->view.state != WEIR_STORE_READY)
        return weir_fail(WEIR_ERR_REFUSED, "only a READY weight version can be deleted");
    version->view.state = WEIR_STORE_RELEASING;
    version->touched_ms = now_ms;
    weir_store_note_change(store, version->model);
    *out = &version->view;
    return WEIR_OK;
}

/* Cut to what fits, between two characters. */
weir_status weir_store_set_reason(weir_store *store, store_version *version, const char *reason)
{
    size_t n = strnlen(reason, WEIR_STORE_MAX_TEXT + 1);
    if (n > WEIR_STORE_MAX_TEXT)
        n = WEIR_STORE_MAX_TEXT;
    if (n == 0)
        return WEIR_OK;
    while (reason[n] != '\0' && ((unsigned char)reason[n] & 0xc0) == 0x80)
        n--;
    version->reason = weir_store_alloc(store, n + 1);
    if (version->reason == NULL)
        return WEIR_ERR_NO_MEMORY;
    memcpy(version->reason, reason, n);
    weir_rpc_text_repair(version->reason);
    version->view.reason = version->reason;
    return WEIR_OK;
}

static bool has_shard_of(const store_version *version, const store_worker *worker)
{
    for (const store_link *link = worker->shards.next; link != &worker->shards; link = link->next) {
        if (WEIR_STORE_OF(store_shard, of_worker, link)->version == version)
            return true;
    }
    return false;
}

static bool may_abort(const weir_store *store, const store_version *version, const char *worker_id,
                      uint64_t now_ms)
{
    const store_worker *worker = weir_store_worker_record(store, worker_id);
    if (worker == NULL)
        return false;
    if (worker->expires_ms > now_ms && worker->role == WEIR_STORE_TRAINER &&
        worker->model == version->model)
        return true;
    const store_lease *lease = weir_store_find_lease(store, version, worker_id);
    return (lease != NULL && lease->view.expires_ms > now_ms) || has_shard_of(version, worker);
}

weir_status weir_store_abort_version(weir_store *store, const char *uid, const char *worker_id,
                                     const char *reason, uint64_t now_ms,
                                     const weir_store_version **out)
{
    store_version *version = weir_store_find_version(store, uid);
    if (version == NULL)
        return WEIR_ERR_NOT_FOUND;
    if (version->view.state == WEIR_STORE_ABORTED) {
        *out = &version->view;
        return WEIR_OK;
    }
    weir_status status = weir_store_check_name("worker_id", worker_id);
    if (status != WEIR_OK)
        return status;
    if (version->view.state == WEIR_STORE_RELEASING)
        return weir_fail(WEIR_ERR_REFUSED, "a RELEASING weight version cannot be aborted");
    if (!may_abort(store, version, worker_id, now_ms))
        return weir_fail(WEIR_ERR_REFUSED,
                         "only a worker that publishes or reads a weight version can abort it");
    status = weir_store_set_reason(store, version, weir_store_text(reason));
    if (status != WEIR_OK)
        return status;
    version->view.state = WEIR_STORE_ABORTED;
    version->touched_ms = now_ms;
    weir_store_drop_leases(store, version);
    weir_store_note_change(store, version->model);
    *out = &version->view;
    return WEIR_OK;
}

/* ---- sweeping --------------------------------------------------------------------------------*/

void weir_store_drop_version(weir_store *store, store_version *version)
{
    store_run *run = version->run;
    weir_store_drop_leases(store, version);
    while (!weir_store_list_is_empty(&version->shards))
        weir_store_drop_shard(store, WEIR_STORE_OF(store_shard, of_version, version->shards.next));
    weir_store_note_change(store, run->model);
    weir_store_index_remove(&store->versions_by_uid, &version->by_uid);
    weir_store_index_remove(&store->versions_by_key, &version->by_key);
    weir_store_list_remove(&version->link);
    weir_store_list_remove(&version->of_model);
    weir_store_list_remove(&version->of_run);
    if (version->reason != NULL)
        weir_store_free(store, version->reason, strlen(version->reason) + 1);
    weir_store_free(store, version, weir_store_version_bytes(&version->view));
    store->n_versions--;
    run->n_versions--;
    run->model->n_users--;
    weir_store_let_run(store, run);
}

static bool has_live_shard(const store_version *version, uint64_t now_ms)
{
    for (const store_link *link = version->shards.next; link != &version->shards;
         link = link->next) {
        if (weir_store_is_live(WEIR_STORE_OF(store_shard, of_version, link), now_ms))
            return true;
    }
    return false;
}

store_version *weir_store_oldest_over(const weir_store *store, uint64_t now_ms)
{
    const store_link *head = &store->all_versions;
    for (store_link *link = head->prev; link != head; link = link->prev) {
        store_version *version = WEIR_STORE_OF(store_version, link, link);
        bool is_over = version->view.state == WEIR_STORE_RELEASING ||
                       version->view.state == WEIR_STORE_ABORTED;
        if (is_over && !weir_store_has_live_lease(version, now_ms) &&
            !has_live_shard(version, now_ms))
            return version;
    }
    return NULL;
}

void weir_store_sweep_versions(weir_store *store, uint64_t now_ms)
{
    store_link *head = &store->all_versions;
    for (store_link *link = head->next, *next; link != head; link = next) {
        store_version *version = WEIR_STORE_OF(store_version, link, link);
        next = link->next;
        bool is_old = now_ms > version->touched_ms &&
                      now_ms - version->touched_ms > store->options.forget_after_ms;
        if (!is_old || version->n_leases != 0 || has_live_shard(version, now_ms))
            continue;
        if (version->view.state == WEIR_STORE_READY &&
            weir_store_has_holder(store, version, now_ms))
            continue;
        weir_store_drop_version(store, version);
    }
}

void weir_store_drop_versions(weir_store *store)
{
    while (!weir_store_list_is_empty(&store->all_versions))
        weir_store_drop_version(store,
                                WEIR_STORE_OF(store_version, link, store->all_versions.next));
}
