/* SPDX-License-Identifier: Apache-2.0 */
/* fuzz_store_snapshot.c - any bytes as a directory's snapshot: refused, or a store that works,
 * whose own bytes make it again. */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "directory/store.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void must(bool holds)
{
    if (!holds)
        abort();
}

static void save_again(const weir_store *store)
{
    const weir_store_options options = { 0 };
    unsigned char *bytes, *again;
    size_t n, n_again;
    weir_store *copy = NULL;
    must(weir_store_save(store, &bytes, &n) == WEIR_OK);
    must(weir_store_load(&options, bytes, n, &copy) == WEIR_OK);
    must(weir_store_save(copy, &again, &n_again) == WEIR_OK);
    must(n == n_again && memcmp(bytes, again, n) == 0);
    weir_store_close(copy);
    weir_free(bytes);
    weir_free(again);
}

static bool visit_version(void *context, const weir_store_version *version, size_t n_leases)
{
    (void)n_leases;
    must(strlen(version->uid) == 8 && version->n_covered <= version->n_slots);
    memcpy(context, version->uid, 9);
    return true;
}

/* What a fleet would go on with. */
static void use(weir_store *store)
{
    char uid[9] = "";
    uint64_t now_ms = 1000, expires_ms;
    weir_store_each_version(store, NULL, visit_version, uid);
    weir_store_register_worker(store, "g", WEIR_STORE_GENERATOR, "m", 9, now_ms, &expires_ms);
    const weir_store_wish wish = {
        .model = "m", .worker_id = "g", .run = "r", .highest = UINT64_MAX, .part = "p", .ttl_s = 9
    };
    weir_store_grant grant;
    weir_store_acquire(store, &wish, true, now_ms, &grant);
    const weir_store_shard *shards;
    const weir_store_version *version;
    if (weir_store_list_shards(store, uid, &shards) == WEIR_OK && shards != NULL)
        weir_store_abort_version(store, uid, shards->worker_id, "fuzzed", now_ms, &version);
    const weir_store_source source = { .model = "m", .worker_id = "g", .role = "trainer" };
    weir_store_publish_source(store, &source, now_ms);
    weir_store_sweep(store, now_ms);
    weir_store_sweep(store, UINT64_MAX);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const weir_store_options options = { 0 };
    weir_store *store = NULL;
    if (weir_store_load(&options, data, size, &store) != WEIR_OK)
        return 0;
    save_again(store);
    use(store);
    save_again(store);
    weir_store_close(store);
    return 0;
}
