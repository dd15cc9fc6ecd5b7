/* SPDX-License-Identifier: Apache-2.0 */
/* store_record.h - the store's own records, for its source files alone.
 *
 * Every record is one block: the struct, then its strings. Lists have their newest entry first,
 * because that is the one that is asked for; shards alone keep their order.
 */
#ifndef WEIR_DIRECTORY_STORE_RECORD_H
#define WEIR_DIRECTORY_STORE_RECORD_H

#include "directory/store.h"
#include "rpc/rpc_heap.h"

#define WEIR_STORE_MAX_NAME 255u
#define WEIR_STORE_MAX_TTL_S 86400u

typedef struct store_worker {
    struct store_worker *next;
    const char *worker_id, *model;
    int role;
    uint64_t expires_ms;
} store_worker;

typedef struct store_shard {
    weir_store_shard view; /* first: lists are given out as views */
    struct store_shard *next;
} store_shard;

typedef struct store_lease {
    struct store_lease *next;
    const char *worker_id;
    weir_store_lease view;
} store_lease;

typedef struct store_version {
    weir_store_version view;
    struct store_version *next;
    char uid[9];
    uint64_t touched_ms; /* the last change */
    bool *is_covered;    /* per slot */
    size_t n_covered;
    store_shard *shards, **last_shard;
    size_t n_shards;
    store_lease *leases;
    size_t n_leases;
} store_version;

typedef struct store_source {
    weir_store_source view;
    struct store_source *next;
    uint64_t stale_since_ms;
} store_source;

struct weir_store {
    weir_store_options options;
    weir_rpc_heap heap;
    size_t used_bytes;
    uint64_t n_uids; /* given out so far */
    store_worker *workers;
    store_version *versions;
    store_source *sources;
    size_t n_workers, n_versions, n_sources;
};

/* ERR_NO_MEMORY when the store is full. */
void *weir_store_alloc(weir_store *store, size_t n_bytes);
void weir_store_free(weir_store *store, void *block, size_t n_bytes);

/* ERR_INVALID "FIELD is required" for NULL and "", or when it is longer than a name may be. */
weir_status weir_store_check_name(const char *field, const char *name);
/* Copies to *at, moves *at behind it. */
const char *weir_store_put_text(char **at, const char *text);

/* NULL when it is not registered or has expired. */
store_worker *weir_store_find_worker(const weir_store *store, const char *worker_id,
                                     uint64_t now_ms);
/* NULL with ERR_NOT_FOUND recorded. */
store_version *weir_store_find_version(const weir_store *store, const char *uid);
bool weir_store_has_live_lease(const store_version *version, uint64_t now_ms);
/* The registered worker that may touch this version; NULL with *out_status set and recorded. */
store_worker *weir_store_worker_for(const weir_store *store, const store_version *version,
                                    const char *worker_id, uint64_t now_ms,
                                    weir_status *out_status);

void weir_store_sweep_versions(weir_store *store, uint64_t now_ms);
void weir_store_sweep_leases(weir_store *store, store_version *version, uint64_t now_ms);
void weir_store_sweep_sources(weir_store *store, uint64_t now_ms);
void weir_store_drop_versions(weir_store *store); /* all of them */
void weir_store_drop_sources(weir_store *store);

#endif
