/* SPDX-License-Identifier: Apache-2.0 */
/* store_lease.c - who reads a version, and until when.
 *
 * A lease keeps the shards of its version from being deleted. It ends by the store's time alone, so
 * that a reader that died cannot hold a trainer's memory. */
#include <stdio.h>
#include <string.h>

#include "base/error.h"
#include "directory/sha256.h"
#include "directory/store_record.h"

#define MAX_LEASES 8192u /* of one version */

bool weir_store_has_live_lease(const store_version *version, uint64_t now_ms)
{
    for (const store_lease *lease = version->leases; lease != NULL; lease = lease->next) {
        if (lease->view.expires_ms > now_ms)
            return true;
    }
    return false;
}

static size_t lease_bytes(const char *worker_id)
{
    return sizeof(store_lease) + strlen(worker_id) + 1;
}

static void drop_lease(weir_store *store, store_version *version, store_lease **link)
{
    store_lease *lease = *link;
    *link = lease->next;
    weir_store_free(store, lease, lease_bytes(lease->worker_id));
    version->n_leases--;
}

void weir_store_sweep_leases(weir_store *store, store_version *version, uint64_t now_ms)
{
    for (store_lease **link = &version->leases; *link != NULL;) {
        if ((*link)->view.expires_ms <= now_ms)
            drop_lease(store, version, link);
        else
            link = &(*link)->next;
    }
}

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

static weir_status add_lease(weir_store *store, store_version *version, const char *worker_id,
                             store_lease **out)
{
    if (version->n_leases == MAX_LEASES)
        return weir_fail(WEIR_ERR_NO_MEMORY, "weight version %s has %u leases already",
                         version->uid, MAX_LEASES);
    char lease_id[9];
    weir_status status = make_id(version->uid, worker_id, lease_id);
    if (status != WEIR_OK)
        return status;
    store_lease *lease = weir_store_alloc(store, lease_bytes(worker_id));
    if (lease == NULL)
        return WEIR_ERR_NO_MEMORY;
    char *at = (char *)(lease + 1);
    lease->worker_id = weir_store_put_text(&at, worker_id);
    memcpy(lease->view.lease_id, lease_id, sizeof(lease_id));
    lease->next = version->leases;
    version->leases = lease;
    version->n_leases++;
    *out = lease;
    return WEIR_OK;
}

/* A lease is new in READY alone, and renewed as long as its shards may be there. */
static weir_status have_lease(weir_store *store, store_version *version, const char *worker_id,
                              uint64_t now_ms, store_lease **out)
{
    weir_store_sweep_leases(store, version, now_ms);
    store_lease *lease = version->leases;
    while (lease != NULL && strcmp(lease->worker_id, worker_id) != 0)
        lease = lease->next;
    if (lease == NULL && version->view.state != WEIR_STORE_READY)
        return weir_fail(WEIR_ERR_REFUSED, "weight version is not READY: no new lease");
    if (lease == NULL)
        return add_lease(store, version, worker_id, out);
    *out = lease;
    return WEIR_OK;
}

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
    store_lease *lease = NULL;
    status = have_lease(store, version, worker_id, now_ms, &lease);
    if (status != WEIR_OK)
        return status;
    if (ttl_s > WEIR_STORE_MAX_TTL_S)
        ttl_s = WEIR_STORE_MAX_TTL_S;
    lease->view.expires_ms = now_ms + (uint64_t)ttl_s * 1000;
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
    weir_store_sweep_leases(store, version, now_ms);
    store_lease **link = &version->leases;
    while (*link != NULL && strcmp((*link)->view.lease_id, lease_id) != 0)
        link = &(*link)->next;
    if (*link != NULL && strcmp((*link)->worker_id, worker_id) != 0)
        return weir_fail(WEIR_ERR_REFUSED, "only the leasing worker can delete its lease");
    *out_deleted = *link != NULL;
    if (*link != NULL)
        drop_lease(store, version, link);
    return WEIR_OK;
}
