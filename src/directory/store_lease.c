/* SPDX-License-Identifier: Apache-2.0 */
/* store_lease.c - who reads a version, from whom, and until when.
 *
 * A lease keeps the shards of its version from being deleted. It ends by the store's time alone, so
 * that a reader that died cannot hold a trainer's memory. */
#include <stdio.h>
#include <string.h>

#include "base/error.h"
#include "directory/sha256.h"
#include "directory/store_record.h"

bool weir_store_has_live_lease(const store_version *version, uint64_t now_ms)
{
    for (const store_link *link = version->leases.next; link != &version->leases;
         link = link->next) {
        if (WEIR_STORE_OF(store_lease, link, link)->view.expires_ms > now_ms)
            return true;
    }
    return false;
}

/* ---- ids -------------------------------------------------------------------------------------*/

static weir_status make_id(const char *version_uid, const char *worker_id, char out[9])
{
    char text[16 + WEIR_STORE_MAX_NAME], hash[WEIR_SHA256_HEX];
    size_t n_uid = strlen(version_uid), n_worker = strlen(worker_id);
    if (n_uid + 1 + n_worker > sizeof(text)) /* both were found in the store */
        return weir_fail(WEIR_ERR_INTERNAL, "a lease's names have %zu bytes", n_uid + n_worker);
    memcpy(text, version_uid, n_uid + 1);
    memcpy(text + n_uid + 1, worker_id, n_worker);
    weir_status status = weir_sha256_hex(text, n_uid + 1 + n_worker, hash);
    if (status == WEIR_OK)
        snprintf(out, 9, "%.8s", hash);
    return status;
}

static uint64_t hash_lease(const weir_store *store, const store_version *version,
                           const char *worker_id)
{
    return weir_store_hash_text(weir_store_hash_text(store->seed, version->uid), worker_id);
}

store_lease *weir_store_find_lease(const weir_store *store, const store_version *version,
                                   const char *worker_id)
{
    store_node *node =
        weir_store_index_first(&store->leases, hash_lease(store, version, worker_id));
    for (; node != NULL; node = weir_store_index_next(node)) {
        store_lease *lease = WEIR_STORE_OF(store_lease, node, node);
        if (lease->version == version && strcmp(lease->worker_id, worker_id) == 0)
            return lease;
    }
    return NULL;
}

bool weir_store_has_direct_reader(const store_version *version, uint64_t now_ms)
{
    if (version->n_direct == 0)
        return false;
    for (const store_link *link = version->leases.next; link != &version->leases;
         link = link->next) {
        const store_lease *lease = WEIR_STORE_OF(store_lease, link, link);
        if (lease->peer == NULL && lease->view.expires_ms > now_ms)
            return true;
    }
    return false;
}

static bool is_id_taken(const store_version *version, const char *lease_id, uint64_t now_ms)
{
    for (const store_link *link = version->leases.next; link != &version->leases;
         link = link->next) {
        const store_lease *lease = WEIR_STORE_OF(store_lease, link, link);
        if (lease->view.expires_ms > now_ms && strcmp(lease->view.lease_id, lease_id) == 0)
            return true;
    }
    return false;
}

/* ---- putting and dropping --------------------------------------------------------------------*/

static size_t lease_bytes(const char *worker_id)
{
    return sizeof(store_lease) + strlen(worker_id) + 1;
}

static void count_reader(store_lease *lease, store_worker *peer)
{
    lease->peer = peer;
    if (peer != NULL)
        peer->n_readers++;
    else
        lease->version->n_direct++;
}

static void uncount_reader(const store_lease *lease)
{
    if (lease->peer != NULL)
        lease->peer->n_readers--;
    else
        lease->version->n_direct--;
}

static void drop_lease(weir_store *store, store_lease *lease)
{
    store_version *version = lease->version;
    uncount_reader(lease);
    weir_store_index_remove(&store->leases, &lease->node);
    weir_store_list_remove(&lease->link);
    weir_store_free(store, lease, lease_bytes(lease->worker_id));
    version->n_leases--;
    store->n_leases--;
    weir_store_note_change(store, version->model);
}

static weir_status add_lease(weir_store *store, store_version *version, const char *worker_id,
                             store_worker *peer, store_lease **out)
{
    char lease_id[9];
    weir_status status = make_id(version->uid, worker_id, lease_id);
    if (status != WEIR_OK)
        return status;
    store_lease *lease = weir_store_alloc(store, lease_bytes(worker_id));
    if (lease == NULL)
        return WEIR_ERR_NO_MEMORY;
    char *at = (char *)(lease + 1);
    lease->worker_id = weir_store_put_text(&at, worker_id);
    lease->version = version;
    memcpy(lease->view.lease_id, lease_id, sizeof(lease_id));
    weir_store_list_add_first(&version->leases, &lease->link);
    weir_store_index_add(&store->leases, &lease->node, hash_lease(store, version, worker_id));
    version->n_leases++;
    store->n_leases++;
    count_reader(lease, peer);
    weir_store_note_change(store, version->model);
    *out = lease;
    return WEIR_OK;
}

/* Leases that have expired are no hindrance, and go only when a new one comes for certain. */
static size_t count_live(const store_version *version, uint64_t now_ms)
{
    size_t n = 0;
    for (const store_link *link = version->leases.next; link != &version->leases; link = link->next)
        n += WEIR_STORE_OF(store_lease, link, link)->view.expires_ms > now_ms;
    return n;
}

weir_status weir_store_put_lease(weir_store *store, store_version *version, const char *worker_id,
                                 store_worker *peer, uint64_t expires_ms, store_lease **out)
{
    store_lease *lease = weir_store_find_lease(store, version, worker_id);
    if (lease == NULL) {
        weir_status status = add_lease(store, version, worker_id, peer, &lease);
        if (status != WEIR_OK)
            return status;
    } else if (lease->peer != peer) {
        uncount_reader(lease);
        count_reader(lease, peer);
        weir_store_note_change(store, version->model);
    }
    lease->view.expires_ms = expires_ms;
    if (expires_ms < store->lease_due_ms)
        store->lease_due_ms = expires_ms;
    *out = lease;
    return WEIR_OK;
}

weir_status weir_store_check_room(const store_version *version, uint64_t now_ms)
{
    if (version->n_leases >= WEIR_STORE_MAX_LEASES &&
        count_live(version, now_ms) >= WEIR_STORE_MAX_LEASES)
        return weir_fail(WEIR_ERR_NO_MEMORY, "weight version %s has %u leases already",
                         version->uid, WEIR_STORE_MAX_LEASES);
    return WEIR_OK;
}

/* ---- requests --------------------------------------------------------------------------------*/

static weir_status check_new(store_version *version, uint64_t now_ms)
{
    if (version->view.state == WEIR_STORE_ABORTED)
        return weir_fail(WEIR_ERR_REFUSED,
                         "weight version is not READY: no new lease: it was aborted: %s",
                         version->view.reason);
    if (version->view.state != WEIR_STORE_READY)
        return weir_fail(WEIR_ERR_REFUSED, "weight version is not READY: no new lease");
    const store_coverage *coverage = weir_store_cover(version, now_ms);
    if (coverage->n_missing != 0)
        return weir_fail(WEIR_ERR_REFUSED,
                         "no worker that is alive has source_slot_id '%.64s': no new lease",
                         coverage->missing[0]);
    return weir_store_check_room(version, now_ms);
}

/* A lease is new in READY alone, and renewed as long as its shards may be there. */
weir_status weir_store_register_lease(weir_store *store, const char *version_uid,
                                      const char *worker_id, uint32_t ttl_s, uint64_t now_ms,
                                      weir_store_lease *out)
{
    if (ttl_s == 0)
        return weir_fail(WEIR_ERR_INVALID, "ttl_seconds must be greater than zero");
    store_version *version = weir_store_find_version(store, version_uid);
    if (version == NULL)
        return WEIR_ERR_NOT_FOUND;
    weir_status status = WEIR_OK;
    const store_worker *worker = weir_store_worker_for(store, version, worker_id, now_ms, &status);
    if (worker == NULL)
        return status;
    if (worker->role != WEIR_STORE_GENERATOR)
        return weir_fail(WEIR_ERR_REFUSED, "only a GENERATOR worker can lease a weight version");
    store_lease *lease = weir_store_find_lease(store, version, worker_id);
    bool is_live = lease != NULL && lease->view.expires_ms > now_ms;
    if (!is_live)
        status = check_new(version, now_ms);
    if (status == WEIR_OK)
        status = weir_store_put_lease(store, version, worker_id, is_live ? lease->peer : NULL,
                                      weir_store_ttl_end(ttl_s, now_ms), &lease);
    if (status != WEIR_OK)
        return status;
    if (!is_live)
        lease->view.begun_ms = now_ms;
    store->events.n_leases += !is_live;
    store->events.n_renewed += is_live;
    weir_store_sweep_leases(store, now_ms);
    if (!is_live)
        weir_store_note_change(store, version->model);
    version->touched_ms = now_ms;
    *out = lease->view;
    return WEIR_OK;
}

weir_status weir_store_delete_lease(weir_store *store, const char *version_uid,
                                    const char *lease_id, const char *worker_id, uint64_t now_ms,
                                    bool *out_deleted)
{
    store_version *version = weir_store_find_version(store, version_uid);
    if (version == NULL)
        return WEIR_ERR_NOT_FOUND;
    store_lease *lease = weir_store_find_lease(store, version, worker_id);
    bool is_it = lease != NULL && lease->view.expires_ms > now_ms &&
                 strcmp(lease->view.lease_id, lease_id) == 0;
    if (!is_it && is_id_taken(version, lease_id, now_ms))
        return weir_fail(WEIR_ERR_REFUSED, "only the leasing worker can delete its lease");
    if (is_it) {
        drop_lease(store, lease);
        store->events.n_given_back++;
    }
    *out_deleted = is_it;
    return WEIR_OK;
}

bool weir_store_get_lease(const weir_store *store, const char *version_uid, const char *worker_id,
                          uint64_t now_ms, weir_store_lease *out)
{
    const store_version *version = weir_store_version_record(store, version_uid);
    const store_lease *lease =
        version != NULL ? weir_store_find_lease(store, version, worker_id) : NULL;
    if (lease == NULL || lease->view.expires_ms <= now_ms)
        return false;
    *out = lease->view;
    return true;
}

void weir_store_each_lease(const weir_store *store, const char *version_uid, uint64_t now_ms,
                           bool (*visit)(void *context, const char *worker_id, uint64_t expires_ms),
                           void *context)
{
    const store_version *version = weir_store_version_record(store, version_uid);
    if (version == NULL)
        return;
    for (const store_link *link = version->leases.next; link != &version->leases;
         link = link->next) {
        const store_lease *lease = WEIR_STORE_OF(store_lease, link, link);
        if (lease->view.expires_ms > now_ms &&
            !visit(context, lease->worker_id, lease->view.expires_ms))
            return;
    }
}

void weir_store_each_direct_reader(
    const weir_store *store, const char *version_uid, uint64_t now_ms,
    bool (*visit)(void *context, const char *worker_id, uint64_t expires_ms), void *context)
{
    const store_version *version = weir_store_version_record(store, version_uid);
    if (version == NULL)
        return;
    for (const store_link *link = version->leases.next; link != &version->leases;
         link = link->next) {
        const store_lease *lease = WEIR_STORE_OF(store_lease, link, link);
        if (lease->peer == NULL && lease->view.expires_ms > now_ms &&
            !visit(context, lease->worker_id, lease->view.expires_ms))
            return;
    }
}

/* ---- sweeping --------------------------------------------------------------------------------*/

static uint64_t sweep_version(weir_store *store, store_version *version, uint64_t now_ms)
{
    uint64_t due_ms = UINT64_MAX;
    for (store_link *link = version->leases.next, *next; link != &version->leases; link = next) {
        store_lease *lease = WEIR_STORE_OF(store_lease, link, link);
        next = link->next;
        if (lease->view.expires_ms <= now_ms) {
            weir_store_tell_version(store, WEIR_STORE_LEASE_EXPIRED, version, lease->worker_id);
            drop_lease(store, lease);
            store->events.n_expired++;
        } else if (lease->view.expires_ms < due_ms) {
            due_ms = lease->view.expires_ms;
        }
    }
    return due_ms;
}

void weir_store_sweep_leases(weir_store *store, uint64_t now_ms)
{
    if (now_ms < store->lease_due_ms)
        return;
    uint64_t due_ms = UINT64_MAX;
    store_link *head = &store->all_versions;
    for (store_link *link = head->next; link != head; link = link->next) {
        uint64_t of_version =
            sweep_version(store, WEIR_STORE_OF(store_version, link, link), now_ms);
        due_ms = of_version < due_ms ? of_version : due_ms;
    }
    store->lease_due_ms = due_ms;
}

void weir_store_drop_leases(weir_store *store, store_version *version)
{
    while (!weir_store_list_is_empty(&version->leases))
        drop_lease(store, WEIR_STORE_OF(store_lease, link, version->leases.next));
}
