/* SPDX-License-Identifier: Apache-2.0 */
/* store_version.c - versions and their shards.
 *
 * STAGING until every expected slot is covered, then READY, then RELEASING by request. Shards are
 * identified by (version, slot, worker): several workers may offer one slot. Checks stand in the
 * order in which ModelExpress makes them, because clients see the first that fails. */
#include <stdio.h>
#include <string.h>

#include "base/error.h"
#include "directory/sha256.h"
#include "directory/store_record.h"

#define MAX_VERSIONS 4096u
#define MAX_SLOTS 1024u
#define MAX_SHARDS 8192u /* of one version */

store_version *weir_store_find_version(const weir_store *store, const char *uid)
{
    for (store_version *version = store->versions; version != NULL; version = version->next) {
        if (strcmp(version->uid, uid) == 0)
            return version;
    }
    weir_fail(WEIR_ERR_NOT_FOUND, "no weight version '%.64s'", uid);
    return NULL;
}

/* ---- creating --------------------------------------------------------------------------------*/

static weir_status check_slots(const weir_store_version *request)
{
    if (request->n_slots == 0)
        return weir_fail(WEIR_ERR_INVALID, "expected_source_slots must not be empty");
    if (request->n_slots > MAX_SLOTS)
        return weir_fail(WEIR_ERR_NO_MEMORY,
                         "expected_source_slots has %zu names, at most %u are allowed",
                         request->n_slots, MAX_SLOTS);
    for (size_t i = 0; i < request->n_slots; i++) {
        weir_status status = weir_store_check_name("expected_source_slots", request->slots[i]);
        if (status != WEIR_OK)
            return status;
        for (size_t j = 0; j < i; j++) {
            if (strcmp(request->slots[i], request->slots[j]) == 0)
                return weir_fail(WEIR_ERR_INVALID,
                                 "expected_source_slots must not contain duplicates");
        }
    }
    return WEIR_OK;
}

static weir_status check_base(const weir_store *store, const weir_store_version *request)
{
    if (request->payload == WEIR_STORE_FULL_TENSOR) {
        if (request->base_uid != NULL)
            return weir_fail(WEIR_ERR_INVALID, "base_version_id must be omitted for FULL_TENSOR");
        return WEIR_OK;
    }
    if (request->payload != WEIR_STORE_XOR_DELTA)
        return weir_fail(WEIR_ERR_INVALID, "payload_format must be FULL_TENSOR or XOR_DELTA");
    if (request->base_uid == NULL || request->base_uid[0] == '\0')
        return weir_fail(WEIR_ERR_INVALID, "base_version_id is required for XOR_DELTA");
    const store_version *base = weir_store_find_version(store, request->base_uid);
    if (base == NULL)
        return WEIR_ERR_NOT_FOUND;
    if (strcmp(base->view.model, request->model) != 0)
        return weir_fail(WEIR_ERR_REFUSED, "base_version_id has another model_name");
    if (base->view.state != WEIR_STORE_READY)
        return weir_fail(WEIR_ERR_REFUSED, "base_version_id is not READY");
    return WEIR_OK;
}

static bool is_same_request(const weir_store_version *a, const weir_store_version *b)
{
    if (strcmp(a->model, b->model) != 0 || a->has_number != b->has_number ||
        (a->has_number && a->number != b->number) || a->payload != b->payload ||
        (a->base_uid == NULL) != (b->base_uid == NULL) ||
        (a->base_uid != NULL && strcmp(a->base_uid, b->base_uid) != 0) || a->n_slots != b->n_slots)
        return false;
    for (size_t i = 0; i < a->n_slots; i++) {
        if (strcmp(a->slots[i], b->slots[i]) != 0)
            return false;
    }
    return true;
}

static weir_status make_uid(weir_store *store, uint64_t salt, char out[9])
{
    char hash[WEIR_SHA256_HEX];
    for (;;) {
        uint64_t input[2] = { salt, store->n_uids++ };
        weir_status status = weir_sha256_hex(input, sizeof(input), hash);
        if (status != WEIR_OK)
            return status;
        snprintf(out, 9, "%.8s", hash);
        const store_version *taken = store->versions;
        while (taken != NULL && strcmp(taken->uid, out) != 0)
            taken = taken->next;
        if (taken == NULL)
            return WEIR_OK;
    }
}

static size_t version_bytes(const weir_store_version *version)
{
    size_t n = sizeof(store_version) + strlen(version->model) + strlen(version->idempotency_key) +
               (version->base_uid != NULL ? strlen(version->base_uid) + 1 : 0) + 2;
    for (size_t i = 0; i < version->n_slots; i++)
        n += sizeof(char *) + sizeof(bool) + strlen(version->slots[i]) + 1;
    return n;
}

static store_version *copy_version(weir_store *store, const weir_store_version *request)
{
    store_version *version = weir_store_alloc(store, version_bytes(request));
    if (version == NULL)
        return NULL;
    const char **slots = (void *)(version + 1);
    version->is_covered = (void *)(slots + request->n_slots);
    char *at = (char *)(version->is_covered + request->n_slots);
    version->view = *request;
    version->view.uid = version->uid;
    version->view.model = weir_store_put_text(&at, request->model);
    version->view.idempotency_key = weir_store_put_text(&at, request->idempotency_key);
    if (request->base_uid != NULL)
        version->view.base_uid = weir_store_put_text(&at, request->base_uid);
    for (size_t i = 0; i < request->n_slots; i++)
        slots[i] = weir_store_put_text(&at, request->slots[i]);
    version->view.slots = slots;
    version->last_shard = &version->shards;
    return version;
}

static weir_status add_version(weir_store *store, const weir_store_version *request, uint64_t salt,
                               uint64_t now_ms, const weir_store_version **out)
{
    if (store->n_versions == MAX_VERSIONS)
        return weir_fail(WEIR_ERR_NO_MEMORY, "the directory is full: %u weight versions",
                         MAX_VERSIONS);
    char uid[9];
    weir_status status = make_uid(store, salt, uid);
    if (status != WEIR_OK)
        return status;
    store_version *version = copy_version(store, request);
    if (version == NULL)
        return WEIR_ERR_NO_MEMORY;
    memcpy(version->uid, uid, sizeof(uid));
    version->view.state = WEIR_STORE_STAGING;
    version->view.created_at_ms = version->touched_ms = now_ms;
    version->next = store->versions;
    store->versions = version;
    store->n_versions++;
    *out = &version->view;
    return WEIR_OK;
}

weir_status weir_store_create_version(weir_store *store, const weir_store_version *request,
                                      uint64_t salt, uint64_t now_ms,
                                      const weir_store_version **out)
{
    weir_status status = weir_store_check_name("model_name", request->model);
    if (status == WEIR_OK)
        status = weir_store_check_name("idempotency_key", request->idempotency_key);
    if (status == WEIR_OK)
        status = check_slots(request);
    if (status != WEIR_OK)
        return status;
    /* Before the base is looked at: a repeated request must not fail because its base has moved on
     * since the first one. */
    for (store_version *version = store->versions; version != NULL; version = version->next) {
        if (strcmp(version->view.idempotency_key, request->idempotency_key) != 0)
            continue;
        if (!is_same_request(&version->view, request))
            return weir_fail(WEIR_ERR_EXISTS,
                             "idempotency_key was already used for a different WeightVersion");
        *out = &version->view;
        return WEIR_OK;
    }
    status = check_base(store, request);
    return status != WEIR_OK ? status : add_version(store, request, salt, now_ms, out);
}

weir_status weir_store_get_version(weir_store *store, const char *uid,
                                   const weir_store_version **out)
{
    const store_version *version = weir_store_find_version(store, uid);
    if (version == NULL)
        return WEIR_ERR_NOT_FOUND;
    *out = &version->view;
    return WEIR_OK;
}

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
    *out = &version->view;
    return WEIR_OK;
}

/* ---- shards ----------------------------------------------------------------------------------*/

static size_t shard_bytes(const weir_store_shard *shard)
{
    return sizeof(store_shard) + strlen(shard->slot) + strlen(shard->worker_id) +
           strlen(shard->manifest_digest) + strlen(shard->manifest_endpoint) +
           strlen(shard->transport) + 5;
}

static store_shard **find_shard(store_version *version, const char *slot, const char *worker_id)
{
    store_shard **link = &version->shards;
    while (*link != NULL && (strcmp((*link)->view.slot, slot) != 0 ||
                             strcmp((*link)->view.worker_id, worker_id) != 0))
        link = &(*link)->next;
    return link;
}

static size_t find_slot(const store_version *version, const char *slot)
{
    size_t i = 0;
    while (i < version->view.n_slots && strcmp(version->view.slots[i], slot) != 0)
        i++;
    return i;
}

store_worker *weir_store_worker_for(const weir_store *store, const store_version *version,
                                    const char *worker_id, uint64_t now_ms, weir_status *out_status)
{
    store_worker *worker = weir_store_find_worker(store, worker_id, now_ms);
    if (worker == NULL)
        *out_status = weir_fail(WEIR_ERR_REFUSED, "worker registration is missing or expired");
    else if (strcmp(worker->model, version->view.model) != 0)
        *out_status = weir_fail(WEIR_ERR_REFUSED, "worker and weight version model_name differ");
    else
        return worker;
    return NULL;
}

static weir_status check_shard_names(const weir_store_shard *shard)
{
    const char *const names[][2] = { { "version_id", shard->version_uid },
                                     { "source_slot_id", shard->slot },
                                     { "worker_id", shard->worker_id },
                                     { "manifest_digest", shard->manifest_digest },
                                     { "manifest_endpoint", shard->manifest_endpoint },
                                     { "transport", shard->transport } };
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        bool may_be_empty = i >= 3;
        if (may_be_empty && names[i][1][0] == '\0')
            continue;
        weir_status status = weir_store_check_name(names[i][0], names[i][1]);
        if (status != WEIR_OK)
            return status;
    }
    return WEIR_OK;
}

static bool is_same_shard(const weir_store_shard *a, const weir_store_shard *b)
{
    return a->n_tensors == b->n_tensors && a->n_bytes == b->n_bytes &&
           strcmp(a->manifest_digest, b->manifest_digest) == 0 &&
           strcmp(a->manifest_endpoint, b->manifest_endpoint) == 0 &&
           strcmp(a->transport, b->transport) == 0;
}

static weir_status add_shard(weir_store *store, store_version *version,
                             const weir_store_shard *shard)
{
    if (version->n_shards == MAX_SHARDS)
        return weir_fail(WEIR_ERR_NO_MEMORY, "weight version %s has %u shards already",
                         version->uid, MAX_SHARDS);
    store_shard *added = weir_store_alloc(store, shard_bytes(shard));
    if (added == NULL)
        return WEIR_ERR_NO_MEMORY;
    char *at = (char *)(added + 1);
    added->view = *shard;
    added->view.next = NULL;
    added->view.version_uid = version->uid;
    added->view.slot = weir_store_put_text(&at, shard->slot);
    added->view.worker_id = weir_store_put_text(&at, shard->worker_id);
    added->view.manifest_digest = weir_store_put_text(&at, shard->manifest_digest);
    added->view.manifest_endpoint = weir_store_put_text(&at, shard->manifest_endpoint);
    added->view.transport = weir_store_put_text(&at, shard->transport);
    *version->last_shard = added;
    version->last_shard = &added->next;
    version->n_shards++;
    return WEIR_OK;
}

/* The views are a list of their own, which callers may walk. */
static void link_views(store_version *version)
{
    for (store_shard *shard = version->shards; shard != NULL; shard = shard->next)
        shard->view.next = shard->next != NULL ? &shard->next->view : NULL;
}

static void drop_shard(weir_store *store, store_version *version, store_shard **link)
{
    store_shard *shard = *link;
    *link = shard->next;
    if (version->last_shard == &shard->next)
        version->last_shard = link;
    weir_store_free(store, shard, shard_bytes(&shard->view));
    version->n_shards--;
}

static weir_status put_shard(weir_store *store, store_version *version,
                             const weir_store_shard *shard, uint64_t now_ms)
{
    weir_status status = WEIR_OK;
    if (weir_store_worker_for(store, version, shard->worker_id, now_ms, &status) == NULL)
        return status;
    if (version->view.state == WEIR_STORE_RELEASING)
        return weir_fail(WEIR_ERR_REFUSED, "weight version does not accept shard publication");
    size_t slot = find_slot(version, shard->slot);
    if (slot == version->view.n_slots)
        return weir_fail(WEIR_ERR_INVALID, "source_slot_id is not required by the weight version");
    const store_shard *known = *find_shard(version, shard->slot, shard->worker_id);
    if (known != NULL && !is_same_shard(&known->view, shard))
        return weir_fail(WEIR_ERR_EXISTS,
                         "worker and source_slot_id already published different metadata");
    if (known != NULL)
        return WEIR_OK;
    status = add_shard(store, version, shard);
    if (status != WEIR_OK)
        return status;
    version->touched_ms = now_ms;
    version->n_covered += !version->is_covered[slot];
    version->is_covered[slot] = true;
    if (version->n_covered == version->view.n_slots)
        version->view.state = WEIR_STORE_READY;
    return WEIR_OK;
}

weir_status weir_store_create_shard(weir_store *store, const weir_store_shard *shard,
                                    uint64_t now_ms, const weir_store_version **out)
{
    weir_status status = check_shard_names(shard);
    if (status != WEIR_OK)
        return status;
    store_version *version = weir_store_find_version(store, shard->version_uid);
    if (version == NULL)
        return WEIR_ERR_NOT_FOUND;
    status = put_shard(store, version, shard, now_ms);
    if (status == WEIR_OK)
        *out = &version->view;
    return status;
}

weir_status weir_store_list_shards(weir_store *store, const char *version_uid,
                                   const weir_store_shard **out_first)
{
    store_version *version = weir_store_find_version(store, version_uid);
    if (version == NULL)
        return WEIR_ERR_NOT_FOUND;
    link_views(version);
    *out_first = version->shards != NULL ? &version->shards->view : NULL;
    return WEIR_OK;
}

static bool has_slot_published(const store_version *version, const char *slot)
{
    for (const store_shard *shard = version->shards; shard != NULL; shard = shard->next) {
        if (strcmp(shard->view.slot, slot) == 0)
            return true;
    }
    return false;
}

weir_status weir_store_delete_shard(weir_store *store, const char *version_uid, const char *slot,
                                    const char *worker_id, uint64_t now_ms, bool *out_deleted)
{
    store_version *version = weir_store_find_version(store, version_uid);
    if (version == NULL)
        return WEIR_ERR_NOT_FOUND;
    store_shard **link = find_shard(version, slot, worker_id);
    if (*link == NULL && has_slot_published(version, slot))
        return weir_fail(WEIR_ERR_REFUSED, "only the publishing worker can delete its shard");
    if (*link == NULL) {
        *out_deleted = false;
        return WEIR_OK;
    }
    if (version->view.state != WEIR_STORE_RELEASING)
        return weir_fail(WEIR_ERR_REFUSED,
                         "weight version must be RELEASING before its shards can be deleted");
    if (weir_store_find_worker(store, worker_id, now_ms) == NULL)
        return weir_fail(WEIR_ERR_REFUSED, "worker registration is missing or expired");
    if (weir_store_has_live_lease(version, now_ms))
        return weir_fail(WEIR_ERR_REFUSED, "weight version has an active lease");
    drop_shard(store, version, link);
    version->touched_ms = now_ms;
    *out_deleted = true;
    return WEIR_OK;
}

/* ---- sweeping --------------------------------------------------------------------------------*/

static bool has_live_publisher(const weir_store *store, const store_version *version,
                               uint64_t now_ms)
{
    for (const store_shard *shard = version->shards; shard != NULL; shard = shard->next) {
        if (weir_store_find_worker(store, shard->view.worker_id, now_ms) != NULL)
            return true;
    }
    return false;
}

/* A crashed trainer cannot delete its shards itself. */
static void drop_orphans(weir_store *store, store_version *version, uint64_t now_ms)
{
    for (store_shard **link = &version->shards; *link != NULL;) {
        if (weir_store_find_worker(store, (*link)->view.worker_id, now_ms) == NULL)
            drop_shard(store, version, link);
        else
            link = &(*link)->next;
    }
}

static void drop_version(weir_store *store, store_version **link)
{
    store_version *version = *link;
    *link = version->next;
    weir_store_sweep_leases(store, version, UINT64_MAX);
    while (version->shards != NULL)
        drop_shard(store, version, &version->shards);
    weir_store_free(store, version, version_bytes(&version->view));
    store->n_versions--;
}

void weir_store_sweep_versions(weir_store *store, uint64_t now_ms)
{
    for (store_version **link = &store->versions; *link != NULL;) {
        store_version *version = *link;
        weir_store_sweep_leases(store, version, now_ms);
        if (version->view.state == WEIR_STORE_RELEASING && version->leases == NULL)
            drop_orphans(store, version, now_ms);
        bool is_old = now_ms > version->touched_ms &&
                      now_ms - version->touched_ms > store->options.forget_after_ms;
        if (is_old && version->leases == NULL && !has_live_publisher(store, version, now_ms))
            drop_version(store, link);
        else
            link = &version->next;
    }
}

void weir_store_drop_versions(weir_store *store)
{
    while (store->versions != NULL)
        drop_version(store, &store->versions);
}
