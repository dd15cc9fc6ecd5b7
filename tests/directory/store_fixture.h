/* SPDX-License-Identifier: Apache-2.0 */
/* store_fixture.h - a store at a made-up time, and short forms of its requests. */
#ifndef WEIR_TEST_STORE_FIXTURE_H
#define WEIR_TEST_STORE_FIXTURE_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "directory/store.h"

#define NOW ((uint64_t)1700000000000)
#define HOUR ((uint64_t)3600 * 1000)

static inline int open_store(void **state)
{
    weir_store_options options = { 0 };
    return weir_store_open(&options, (weir_store **)state) != WEIR_OK;
}

static inline int close_store(void **state)
{
    weir_store_close(*state);
    return 0;
}

static inline void expect_refusal(weir_status got, weir_status status, const char *text)
{
    assert_int_equal(got, status);
    assert_string_equal(weir_last_error(), text);
}

static inline void add_worker_for(weir_store *store, const char *id, int role, uint32_t ttl_s,
                                  uint64_t now_ms)
{
    uint64_t expires;
    assert_int_equal(weir_store_register_worker(store, id, role, "model", ttl_s, now_ms, &expires),
                     WEIR_OK);
}

static inline void add_worker(weir_store *store, const char *id, int role)
{
    add_worker_for(store, id, role, 90, NOW);
}

static const char *const slots_ab[] = { "a", "b" };

static inline weir_store_version version_request(const char *key)
{
    return (weir_store_version){ .model = "model",
                                 .has_number = true,
                                 .number = 1,
                                 .idempotency_key = key,
                                 .payload = WEIR_STORE_FULL_TENSOR,
                                 .slots = slots_ab,
                                 .n_slots = 2 };
}

static inline const weir_store_version *add_version(weir_store *store, const char *key)
{
    weir_store_version request = version_request(key);
    const weir_store_version *version = NULL;
    assert_int_equal(weir_store_create_version(store, &request, 7, NOW, &version), WEIR_OK);
    return version;
}

static inline weir_store_shard shard_of(const weir_store_version *version, const char *slot,
                                        const char *worker)
{
    return (weir_store_shard){ .version_uid = version->uid,
                               .slot = slot,
                               .worker_id = worker,
                               .n_tensors = 3,
                               .n_bytes = 4096,
                               .manifest_digest = "sha256:00",
                               .manifest_endpoint = "127.0.0.1:1",
                               .transport = "ucx" };
}

static inline weir_status put_shard(weir_store *store, const weir_store_version *version,
                                    const char *slot, const char *worker)
{
    weir_store_shard shard = shard_of(version, slot, worker);
    const weir_store_version *after;
    return weir_store_create_shard(store, &shard, NOW, &after);
}

/* A READY version with both shards of worker "t". */
static inline const weir_store_version *add_ready(weir_store *store, const char *key)
{
    const weir_store_version *version = add_version(store, key);
    assert_int_equal(put_shard(store, version, "a", "t"), WEIR_OK);
    assert_int_equal(put_shard(store, version, "b", "t"), WEIR_OK);
    assert_int_equal(version->state, WEIR_STORE_READY);
    return version;
}

static inline weir_status release(weir_store *store, const weir_store_version *version)
{
    const weir_store_version *after;
    return weir_store_delete_version(store, version->uid, NOW, &after);
}

#endif
