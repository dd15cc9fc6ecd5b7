/* SPDX-License-Identifier: Apache-2.0 */
/* store.h - what the directory knows: workers, versions, shards, leases, sources. Pure.
 *
 * No I/O, no clock, no protobuf: the time is passed in, so that every expiry can be tested.
 *
 * Threads    one at a time.
 * Ownership  arguments are borrowed and copied; records given out are the store's and valid until
 *            its next change.
 * Errors     ERR_INVALID a bad request, ERR_NOT_FOUND an unknown id, ERR_REFUSED the state does not
 *            allow it, ERR_EXISTS a key is taken, ERR_NO_MEMORY one of the caps below. The lines
 * are ModelExpress' texts where it has one. Caps       names have at most 255 bytes; a version
 * 1,024 slots, 8,192 shards and 8,192 leases; the store 4,096 versions, 16,384 workers, 16,384
 * sources, and 512 MiB in all.
 */
#ifndef WEIR_DIRECTORY_STORE_H
#define WEIR_DIRECTORY_STORE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "weir/status.h"

typedef struct weir_store weir_store;
typedef struct weir_store_options {
    uint64_t seed;            /* version ids are derived from it: random, or ids repeat */
    uint64_t stale_after_ms;  /* 0: 90 s; a source without an update turns STALE */
    uint64_t delete_after_ms; /* 0: 3,600 s; a STALE source is deleted */
    uint64_t forget_after_ms; /* 0: 3,600 s; a version that nobody can serve or reads is dropped */
} weir_store_options;

weir_status weir_store_open(const weir_store_options *options, weir_store **out);
void weir_store_close(weir_store *store); /* accepts NULL */

/* Ends what has expired: sources turn STALE and go, workers and leases go, and with them versions
 * that are left without either. Expired workers and leases count for nothing even before. */
void weir_store_sweep(weir_store *store, uint64_t now_ms);

/* ---- workers ---------------------------------------------------------------------------------*/

typedef enum weir_store_role {
    WEIR_STORE_TRAINER = 1,
    WEIR_STORE_GENERATOR = 2,
} weir_store_role;

/* Registers or renews; a live worker keeps its role and model. ttl_s beyond a day is cut to one. */
weir_status weir_store_register_worker(weir_store *store, const char *worker_id, int role,
                                       const char *model, uint32_t ttl_s, uint64_t now_ms,
                                       uint64_t *out_expires_ms);

/* ---- versions and shards ---------------------------------------------------------------------*/

typedef enum weir_store_payload {
    WEIR_STORE_FULL_TENSOR = 1,
    WEIR_STORE_XOR_DELTA = 2,
} weir_store_payload;

typedef enum weir_store_state {
    WEIR_STORE_STAGING = 1,
    WEIR_STORE_READY = 2,
    WEIR_STORE_RELEASING = 3,
} weir_store_state;

typedef struct weir_store_version {
    const char *uid; /* eight hexadecimal digits; not read in requests */
    const char *model;
    bool has_number;
    uint64_t number;
    const char *idempotency_key;
    int payload;
    const char *base_uid; /* NULL: none */
    const char *const *slots;
    size_t n_slots;
    weir_store_state state; /* this and the next: not read in requests */
    uint64_t created_at_ms;
} weir_store_version;

/* The same key and request again give the same version. */
weir_status weir_store_create_version(weir_store *store, const weir_store_version *request,
                                      uint64_t now_ms, const weir_store_version **out);
weir_status weir_store_get_version(weir_store *store, const char *uid,
                                   const weir_store_version **out);
/* READY -> RELEASING. */
weir_status weir_store_delete_version(weir_store *store, const char *uid, uint64_t now_ms,
                                      const weir_store_version **out);

typedef struct weir_store_shard {
    const struct weir_store_shard *next; /* in the order of publication */
    const char *version_uid, *slot, *worker_id;
    uint64_t n_tensors, n_bytes;
    const char *manifest_digest, *manifest_endpoint, *transport;
} weir_store_shard;

/* Puts a shard in; the version is READY with the shard that covers the last expected slot. */
weir_status weir_store_create_shard(weir_store *store, const weir_store_shard *shard,
                                    uint64_t now_ms, const weir_store_version **out);
/* NULL in *out_first: there is none yet. */
weir_status weir_store_list_shards(weir_store *store, const char *version_uid,
                                   const weir_store_shard **out_first);
/* *out_deleted false: there was no such shard. */
weir_status weir_store_delete_shard(weir_store *store, const char *version_uid, const char *slot,
                                    const char *worker_id, uint64_t now_ms, bool *out_deleted);

/* ---- leases ----------------------------------------------------------------------------------*/

typedef struct weir_store_lease {
    char lease_id[9]; /* the first eight hex digits of SHA-256(version NUL worker) */
    uint64_t expires_ms;
} weir_store_lease;

/* Registers or renews. ttl_s beyond a day is cut to one. */
weir_status weir_store_register_lease(weir_store *store, const char *version_uid,
                                      const char *worker_id, uint32_t ttl_s, uint64_t now_ms,
                                      weir_store_lease *out);
weir_status weir_store_delete_lease(weir_store *store, const char *version_uid,
                                    const char *lease_id, const char *worker_id, uint64_t now_ms,
                                    bool *out_deleted);

/* ---- sources ---------------------------------------------------------------------------------*/

typedef enum weir_store_source_status {
    WEIR_STORE_SOURCE_UNKNOWN = 0,
    WEIR_STORE_SOURCE_INITIALIZING = 1,
    WEIR_STORE_SOURCE_READY = 2,
    WEIR_STORE_SOURCE_STALE = 3,
} weir_store_source_status;

/* What a worker said of itself; identity and metadata are kept as they came. */
typedef struct weir_store_source {
    const char *source_id, *worker_id; /* together they identify it */
    const char *model, *accelerator;
    uint32_t rank;
    weir_store_source_status status;
    int64_t updated_at_ms; /* the last word of the worker; not read in requests */
    bool has_step;
    uint64_t step;
    const char *layout_signature; /* NULL: none said */
    const void *identity, *metadata;
    size_t n_identity, n_metadata;
} weir_store_source;

/* Replaces what the same worker said before. */
weir_status weir_store_publish_source(weir_store *store, const weir_store_source *source,
                                      uint64_t now_ms);
/* ERR_NOT_FOUND when there is no such source. */
weir_status weir_store_update_source(weir_store *store, const char *source_id,
                                     const char *worker_id, weir_store_source_status status,
                                     uint64_t now_ms);
/* NULL when there is none. */
const weir_store_source *weir_store_get_source(const weir_store *store, const char *source_id,
                                               const char *worker_id);

/* Each has_… asks for what follows it. Sources that do not say a step match no min_step. */
typedef struct weir_store_filter {
    const char *source_id, *model; /* NULL: any */
    bool has_status, has_rank, has_min_step, has_min_updated, has_limit;
    int status;
    uint32_t rank;
    uint64_t min_step;
    int64_t min_updated_at_ms;
    uint32_t limit;
} weir_store_filter;

size_t weir_store_count_sources(const weir_store *store);
/* Writes pointers to those that match, newest first, at most `limit`, into an array with room for
 * all sources, and returns how many. */
size_t weir_store_list_sources(const weir_store *store, const weir_store_filter *filter,
                               const weir_store_source **out);

#endif
