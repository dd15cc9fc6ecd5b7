/* SPDX-License-Identifier: Apache-2.0 */
/* store_shard.c - shards of versions, identified by (version, slot, worker): several workers may
 * offer one slot.
 *
 * Checks stand in the order in which ModelExpress makes them, because clients see the first that
 * fails. */
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "directory/sha256.h"
#include "directory/store_record.h"

static size_t shard_bytes(const weir_store_shard *shard)
{
    return sizeof(store_shard) + strlen(shard->manifest_digest) + strlen(shard->manifest_endpoint) +
           strlen(shard->transport) + strlen(shard->content) + 4;
}

static uint64_t hash_shard(const weir_store *store, const store_version *version, size_t slot,
                           const char *worker_id)
{
    uint64_t hash = weir_store_hash_text(store->seed, version->uid);
    return weir_store_hash_text(weir_store_hash_number(hash, slot), worker_id);
}

store_shard *weir_store_find_shard(const weir_store *store, const store_version *version,
                                   size_t slot, const char *worker_id)
{
    store_node *node =
        weir_store_index_first(&store->shards, hash_shard(store, version, slot, worker_id));
    for (; node != NULL; node = weir_store_index_next(node)) {
        store_shard *shard = WEIR_STORE_OF(store_shard, node, node);
        if (shard->version == version && shard->slot == slot &&
            strcmp(shard->view.worker_id, worker_id) == 0)
            return shard;
    }
    return NULL;
}

bool weir_store_is_live(const store_shard *shard, uint64_t now_ms)
{
    const store_worker *worker = shard->worker;
    return worker->expires_ms > now_ms && !worker->is_superseded &&
           shard->generation == worker->generation;
}

/* ---- adding and dropping ---------------------------------------------------------------------*/

weir_status weir_store_mark_content(const char *content, uint64_t *out)
{
    char hash[WEIR_SHA256_HEX];
    *out = 0;
    if (content[0] == '\0')
        return WEIR_OK;
    weir_status status = weir_sha256_hex(content, strlen(content), hash);
    if (status != WEIR_OK)
        return status;
    hash[15] = '\0'; /* never all of 64 bits: 0 stands for none */
    *out = strtoull(hash, NULL, 16) + 1;
    return WEIR_OK;
}

/* Who publishes here later is compared with it, when the shard is long gone. */
static void remember(store_shard *shard, uint64_t content, uint64_t worker)
{
    store_past *past = &shard->version->pasts[shard->slot];
    if (shard->generation > past->generation)
        past->generation = shard->generation;
    if (content != 0)
        past->content = content;
    if (worker != 0 && (past->worker == 0 || !shard->version->is_restored))
        past->worker = worker;
}

static void put_in_lists(weir_store *store, store_shard *shard)
{
    store_version *version = shard->version;
    if (!weir_store_list_is_empty(&version->shards))
        WEIR_STORE_OF(store_shard, of_version, version->shards.prev)->view.next = &shard->view;
    weir_store_list_add_before(&version->shards, &shard->of_version);
    weir_store_list_add_first(&shard->worker->shards, &shard->of_worker);
    version->view.n_covered += weir_store_list_is_empty(&version->slots[shard->slot]);
    weir_store_list_add_before(&version->slots[shard->slot], &shard->of_slot);
    version->coverage.until_ms = 0;
    version->n_shards++;
    store->n_shards++;
    weir_store_index_add(&store->shards, &shard->node,
                         hash_shard(store, version, shard->slot, shard->view.worker_id));
}

weir_status weir_store_add_shard(weir_store *store, store_version *version, store_worker *worker,
                                 size_t slot, const weir_store_shard *shard, uint64_t generation)
{
    if (version->n_shards == WEIR_STORE_MAX_SHARDS)
        return weir_fail(WEIR_ERR_NO_MEMORY, "weight version %s has %u shards already",
                         version->uid, WEIR_STORE_MAX_SHARDS);
    uint64_t content = 0, mark = 0;
    weir_status status = weir_store_mark_content(shard->content, &content);
    if (status == WEIR_OK)
        status = weir_store_mark_content(worker->worker_id, &mark);
    if (status != WEIR_OK)
        return status;
    store_shard *added = weir_store_alloc(store, shard_bytes(shard));
    if (added == NULL)
        return WEIR_ERR_NO_MEMORY;
    char *at = (char *)(added + 1);
    added->view = *shard;
    added->view.next = NULL;
    added->view.version_uid = version->uid;
    added->view.slot = version->view.slots[slot];
    added->view.worker_id = worker->worker_id;
    added->view.manifest_digest = weir_store_put_text(&at, shard->manifest_digest);
    added->view.manifest_endpoint = weir_store_put_text(&at, shard->manifest_endpoint);
    added->view.transport = weir_store_put_text(&at, shard->transport);
    added->view.content = weir_store_put_text(&at, shard->content);
    added->version = version;
    added->worker = worker;
    added->slot = slot;
    added->generation = generation;
    remember(added, content, mark);
    put_in_lists(store, added);
    return WEIR_OK;
}

void weir_store_drop_shard(weir_store *store, store_shard *shard)
{
    store_version *version = shard->version;
    if (shard->of_version.prev != &version->shards)
        WEIR_STORE_OF(store_shard, of_version, shard->of_version.prev)->view.next =
            shard->view.next;
    weir_store_list_remove(&shard->of_version);
    weir_store_list_remove(&shard->of_worker);
    weir_store_list_remove(&shard->of_slot);
    version->view.n_covered -= weir_store_list_is_empty(&version->slots[shard->slot]);
    version->coverage.until_ms = 0;
    version->n_shards--;
    store->n_shards--;
    weir_store_index_remove(&store->shards, &shard->node);
    weir_store_note_change(store, version->model);
    weir_store_free(store, shard, shard_bytes(&shard->view));
}

/* ---- publishing ------------------------------------------------------------------------------*/

weir_status weir_store_check_shard(const weir_store_shard *shard)
{
    weir_status status = weir_store_check_name("version_id", shard->version_uid);
    if (status == WEIR_OK)
        status = weir_store_check_name("source_slot_id", shard->slot);
    if (status == WEIR_OK)
        status = weir_store_check_name("worker_id", shard->worker_id);
    if (status == WEIR_OK)
        status = weir_store_check_optional("manifest_digest", shard->manifest_digest);
    if (status == WEIR_OK)
        status = weir_store_check_optional("manifest_endpoint", shard->manifest_endpoint);
    if (status == WEIR_OK)
        status = weir_store_check_optional("transport", shard->transport);
    return status == WEIR_OK ? weir_store_check_optional("content", shard->content) : status;
}

static bool is_same_shard(const weir_store_shard *a, const weir_store_shard *b)
{
    return a->n_tensors == b->n_tensors && a->n_bytes == b->n_bytes &&
           strcmp(a->manifest_digest, b->manifest_digest) == 0 &&
           strcmp(a->manifest_endpoint, b->manifest_endpoint) == 0 &&
           strcmp(a->transport, b->transport) == 0 && strcmp(a->content, b->content) == 0;
}

static weir_status check_accepts(const store_version *version)
{
    if (version->view.state == WEIR_STORE_RELEASING)
        return weir_fail(WEIR_ERR_REFUSED, "weight version does not accept shard publication");
    if (version->view.state == WEIR_STORE_ABORTED)
        return weir_fail(WEIR_ERR_REFUSED,
                         "weight version does not accept shard publication: it was aborted: %s",
                         version->view.reason);
    return WEIR_OK;
}

/* What a worker published before it expired and came back as another, or has taken back, counts
 * again once it says so. */
static void renew_shard(weir_store *store, store_shard *shard)
{
    if (shard->generation == shard->worker->generation && !shard->is_withdrawn)
        return;
    shard->generation = shard->worker->generation;
    shard->is_withdrawn = false;
    remember(shard, 0, 0);
    shard->version->coverage.until_ms = 0;
    weir_store_note_change(store, shard->version->model);
}

weir_status weir_store_put_shard(weir_store *store, store_version *version, store_worker *worker,
                                 size_t slot, const weir_store_shard *shard, uint64_t now_ms)
{
    store_shard *known = weir_store_find_shard(store, version, slot, shard->worker_id);
    bool is_same = known != NULL && is_same_shard(&known->view, shard);
    if (known != NULL && !is_same && !known->is_withdrawn)
        return weir_fail(WEIR_ERR_EXISTS,
                         "worker and source_slot_id already published different metadata");
    if (is_same) {
        renew_shard(store, known);
        return WEIR_OK;
    }
    if (worker->is_superseded)
        return weir_fail(WEIR_ERR_REFUSED,
                         "worker %.64s is not the one that was started last as its rank",
                         shard->worker_id);
    weir_status status =
        weir_store_add_shard(store, version, worker, slot, shard, worker->generation);
    if (status != WEIR_OK)
        return status;
    if (known != NULL) /* what was taken back lies elsewhere now */
        weir_store_drop_shard(store, known);
    store->events.n_shards++;
    store->events.n_shard_bytes += shard->n_bytes;
    version->touched_ms = now_ms;
    if (version->view.state == WEIR_STORE_STAGING &&
        version->view.n_covered == version->view.n_slots) {
        store->events.n_ready++;
        version->view.state = WEIR_STORE_READY;
        version->view.ready_at_ms = now_ms;
        weir_store_tell_version(store, WEIR_STORE_VERSION_READY, version, NULL);
        weir_store_release_earlier(store, version, now_ms);
    }
    weir_store_note_change(store, version->model);
    return WEIR_OK;
}

static weir_status put_shard(weir_store *store, store_version *version,
                             const weir_store_shard *shard, uint64_t now_ms)
{
    weir_status status = WEIR_OK;
    store_worker *worker = weir_store_worker_for(store, version, shard->worker_id, now_ms, &status);
    if (worker == NULL)
        return status;
    status = check_accepts(version);
    if (status != WEIR_OK)
        return status;
    size_t slot = weir_store_find_slot(version, shard->slot);
    if (slot == version->view.n_slots)
        return weir_fail(WEIR_ERR_INVALID, "source_slot_id is not required by the weight version");
    store_past own = { .worker = 0 };
    status = weir_store_mark_content(shard->worker_id, &own.worker);
    if (status == WEIR_OK && version->is_restored &&
        !weir_store_is_of_past(&version->pasts[slot], &own))
        return weir_fail(WEIR_ERR_REFUSED,
                         "the directory was restarted, and worker %.64s is not known to be of "
                         "weight version %s",
                         worker->worker_id, version->uid);
    return status == WEIR_OK ? weir_store_put_shard(store, version, worker, slot, shard, now_ms)
                             : status;
}

weir_status weir_store_create_shard(weir_store *store, const weir_store_shard *shard,
                                    uint64_t now_ms, const weir_store_version **out)
{
    weir_store_shard wanted = *shard;
    wanted.manifest_digest = weir_store_text(shard->manifest_digest);
    wanted.manifest_endpoint = weir_store_text(shard->manifest_endpoint);
    wanted.transport = weir_store_text(shard->transport);
    wanted.content = weir_store_text(shard->content);
    weir_status status = weir_store_check_shard(&wanted);
    if (status != WEIR_OK)
        return status;
    store_version *version = weir_store_find_version(store, shard->version_uid);
    if (version == NULL)
        return WEIR_ERR_NOT_FOUND;
    status = put_shard(store, version, &wanted, now_ms);
    if (status == WEIR_OK)
        *out = &version->view;
    return status;
}

weir_status weir_store_list_shards(weir_store *store, const char *version_uid,
                                   const weir_store_shard **out_first)
{
    const store_version *version = weir_store_find_version(store, version_uid);
    if (version == NULL)
        return WEIR_ERR_NOT_FOUND;
    *out_first = version->n_shards != 0
                     ? &WEIR_STORE_OF(store_shard, of_version, version->shards.next)->view
                     : NULL;
    return WEIR_OK;
}

/* ---- taking back -----------------------------------------------------------------------------*/

weir_status weir_store_delete_shard(weir_store *store, const char *version_uid, const char *slot,
                                    const char *worker_id, uint64_t now_ms, bool *out_deleted)
{
    store_version *version = weir_store_find_version(store, version_uid);
    if (version == NULL)
        return WEIR_ERR_NOT_FOUND;
    size_t i = weir_store_find_slot(version, slot);
    bool is_slot = i != version->view.n_slots;
    store_shard *shard = is_slot ? weir_store_find_shard(store, version, i, worker_id) : NULL;
    if (shard == NULL && is_slot && !weir_store_list_is_empty(&version->slots[i]))
        return weir_fail(WEIR_ERR_REFUSED, "only the publishing worker can delete its shard");
    if (shard == NULL) {
        *out_deleted = false;
        return WEIR_OK;
    }
    if (version->view.state != WEIR_STORE_RELEASING && version->view.state != WEIR_STORE_ABORTED)
        return weir_fail(WEIR_ERR_REFUSED,
                         "weight version must be RELEASING before its shards can be deleted");
    if (weir_store_find_worker(store, worker_id, now_ms) == NULL)
        return weir_fail(WEIR_ERR_REFUSED, "worker registration is missing or expired");
    if (weir_store_has_live_lease(version, now_ms))
        return weir_fail(WEIR_ERR_REFUSED, "weight version has an active lease");
    weir_store_drop_shard(store, shard);
    version->touched_ms = now_ms;
    *out_deleted = true;
    return WEIR_OK;
}
