/* SPDX-License-Identifier: Apache-2.0 */
/* test_store_speed.c - a store as large as a fleet's: what each call takes, and what a record takes
 * of memory. The bounds: a mean of 50 us per call, 1 ms for the last of 1,024
 * shards; sanitizers make everything slower. */
#include "base/clock.h"
#include "directory/store_fixture.h"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SLOWER 40u
#else
#define SLOWER 1u
#endif

#define N_TRAINERS 1024u
#define N_GENERATORS 9216u
#define N_SOURCES 16384u
#define MEAN_NS (50000ull * SLOWER)

static char slot_names[N_TRAINERS][16], trainers[N_TRAINERS][32], generators[N_GENERATORS][32];
static const char *slots[N_TRAINERS];

static void name_all(void)
{
    for (unsigned i = 0; i < N_TRAINERS; i++) {
        snprintf(slot_names[i], sizeof(slot_names[i]), "rank-%05u", i);
        snprintf(trainers[i], sizeof(trainers[i]), "run-trainer-%05u-ab12cd34", i);
        slots[i] = slot_names[i];
    }
    for (unsigned i = 0; i < N_GENERATORS; i++)
        snprintf(generators[i], sizeof(generators[i]), "replica-%05u-0", i);
}

/* Prints and checks the mean of n calls that began at `begun_ns`. */
static void took(const char *what, uint64_t begun_ns, size_t n)
{
    uint64_t each_ns = (weir_now_ns() - begun_ns) / n;
    print_message("%-44s %8.2f us (mean of %zu)\n", what, (double)each_ns / 1000, n);
    assert_true(each_ns < MEAN_NS);
}

static void takes(const weir_store *store, const char *what, size_t before, size_t n)
{
    print_message("%-44s %8zu bytes\n", what, (weir_store_count(store).n_bytes - before) / n);
}

static void register_all(weir_store *store, const char *what, uint64_t now_ms)
{
    uint64_t begun_ns = weir_now_ns();
    for (unsigned i = 0; i < N_TRAINERS; i++)
        add_worker_for(store, trainers[i], WEIR_STORE_TRAINER, 90, now_ms);
    for (unsigned i = 0; i < N_GENERATORS; i++)
        add_worker_for(store, generators[i], WEIR_STORE_GENERATOR, 90, now_ms);
    took(what, begun_ns, N_TRAINERS + N_GENERATORS);
}

static const weir_store_version *create(weir_store *store, uint64_t number, uint64_t now_ms)
{
    const weir_store_version *version = NULL;
    const weir_store_version request = { .model = "model",
                                         .run = "run",
                                         .has_number = true,
                                         .number = number,
                                         .payload = WEIR_STORE_FULL_TENSOR,
                                         .slots = slots,
                                         .n_slots = N_TRAINERS };
    assert_int_equal(weir_store_create_version(store, &request, number, now_ms, &version), WEIR_OK);
    return version;
}

static weir_store_shard shard_in(const weir_store_version *version, unsigned i)
{
    weir_store_shard shard = shard_of(version, slot_names[i], trainers[i]);
    shard.manifest_digest = "sha256:"
                            "0000000000000000000000000000000000000000000000000000000000000000";
    shard.manifest_endpoint = "trainer-host-0123:43210";
    return shard;
}

static const weir_store_version *publish(weir_store *store, uint64_t number, uint64_t now_ms)
{
    const weir_store_version *version = create(store, number, now_ms), *after = NULL;
    uint64_t begun_ns = weir_now_ns();
    for (unsigned i = 0; i < N_TRAINERS; i++)
        assert_ptr_equal(create(store, number, now_ms), version);
    took("joining a version of 1,024 slots", begun_ns, N_TRAINERS);
    begun_ns = weir_now_ns();
    for (unsigned i = 0; i + 1 < N_TRAINERS; i++) {
        weir_store_shard shard = shard_in(version, i);
        assert_int_equal(weir_store_create_shard(store, &shard, now_ms, &after), WEIR_OK);
    }
    took("publishing a shard", begun_ns, N_TRAINERS - 1);
    assert_int_equal(version->state, WEIR_STORE_STAGING);
    weir_store_shard last = shard_in(version, N_TRAINERS - 1);
    begun_ns = weir_now_ns();
    assert_int_equal(weir_store_create_shard(store, &last, now_ms, &after), WEIR_OK);
    took("READY with the last of 1,024 shards", begun_ns, 1);
    assert_int_equal(version->state, WEIR_STORE_READY);
    return version;
}

static weir_status acquire(weir_store *store, unsigned i, uint64_t lowest, uint64_t now_ms,
                           weir_store_grant *grant)
{
    const weir_store_wish wish = { .model = "model",
                                   .run = "run",
                                   .worker_id = generators[i],
                                   .lowest = lowest,
                                   .highest = UINT64_MAX,
                                   .host = "host",
                                   .part = "part",
                                   .ttl_s = 30 };
    return weir_store_acquire(store, &wish, true, now_ms, grant);
}

static void acquire_all(weir_store *store, const char *what, uint64_t now_ms)
{
    weir_store_grant grant;
    uint64_t begun_ns = weir_now_ns();
    for (unsigned i = 0; i < 1000; i++)
        assert_int_equal(acquire(store, i, 1, now_ms, &grant), WEIR_OK);
    took(what, begun_ns, 1000);
}

static void publish_source(weir_store *store, unsigned i, const char *uid, uint64_t now_ms)
{
    static char text[400];
    char id[17], worker[32];
    snprintf(id, sizeof(id), "%016x", i);
    if (i < N_GENERATORS)
        snprintf(worker, sizeof(worker), "%s", generators[i]);
    else
        snprintf(worker, sizeof(worker), "peer-%05u", i);
    const weir_store_source source = { .source_id = id,
                                       .worker_id = worker,
                                       .model = i % 2 == 0 || i < 1000 ? "model" : "other",
                                       .rank = i,
                                       .status = WEIR_STORE_SOURCE_READY,
                                       .has_step = true,
                                       .step = i,
                                       .identity = text,
                                       .n_identity = 150,
                                       .metadata = text,
                                       .n_metadata = 250,
                                       .run = i < 1000 ? "run" : "",
                                       .role = i < 1000 ? "inference_replica" : "",
                                       .version_uid = i < 1000 ? uid : "",
                                       .endpoint = "host:1",
                                       .host = "host",
                                       .part = "part" };
    assert_int_equal(weir_store_publish_source(store, &source, now_ms), WEIR_OK);
}

static void list(weir_store *store, const char *what, weir_store_filter filter, size_t n_expected)
{
    static const weir_store_source *sources[N_SOURCES];
    uint64_t begun_ns = weir_now_ns();
    for (int i = 0; i < 1000; i++)
        assert_int_equal(weir_store_list_sources(store, &filter, sources), n_expected);
    took(what, begun_ns, 1000);
}

static void test_calls_on_a_large_store(void **state)
{
    weir_store *store = *state;
    uint64_t now_ms = NOW;
    name_all();
    size_t before = weir_store_count(store).n_bytes;
    register_all(store, "registering a worker", now_ms);
    takes(store, "a worker", before, N_TRAINERS + N_GENERATORS);
    register_all(store, "renewing a worker", now_ms + 1000);
    before = weir_store_count(store).n_bytes;
    const weir_store_version *version = publish(store, 1, now_ms);
    takes(store, "a slot with its shard", before, N_TRAINERS);
    acquire_all(store, "acquiring, nobody holds it", now_ms);
    before = weir_store_count(store).n_bytes;
    uint64_t begun_ns = weir_now_ns();
    for (unsigned i = 0; i < N_SOURCES; i++)
        publish_source(store, i, version->uid, now_ms + i / 20);
    took("publishing a source", begun_ns, N_SOURCES);
    takes(store, "a source with 400 bytes of metadata", before, N_SOURCES);
    now_ms += N_SOURCES / 20;
    begun_ns = weir_now_ns();
    for (unsigned i = 0; i < N_SOURCES; i++)
        publish_source(store, i, version->uid, now_ms + i / 20);
    took("publishing it again", begun_ns, N_SOURCES);
    list(store, "listing 10 of 16,384 sources",
         (weir_store_filter){ .has_limit = true, .limit = 10 }, 10);
    list(store, "listing 10 of a model's sources",
         (weir_store_filter){ .model = "model", .has_limit = true, .limit = 10 }, 10);
    list(store, "listing the sources of an identity",
         (weir_store_filter){ .source_id = "0000000000000007" }, 1);
    acquire_all(store, "acquiring, 1,000 replicas hold it", now_ms + 1000);
    begun_ns = weir_now_ns();
    weir_store_sweep(store, now_ms + 1000);
    took("a sweep that ends nothing, per worker", begun_ns, N_TRAINERS + N_GENERATORS);
}

/* While a version is published, everybody who waits for it asks after every shard. */
static void test_a_thousand_waits_while_a_version_is_published(void **state)
{
    weir_store *store = *state;
    weir_store_grant grant;
    name_all();
    register_all(store, "registering a worker", NOW);
    const weir_store_version *version = create(store, 1, NOW), *after = NULL;
    uint64_t begun_ns = weir_now_ns();
    const unsigned n_shards = N_TRAINERS / (SLOWER > 1 ? 16 : 4);
    for (unsigned i = 0; i < n_shards; i++) {
        weir_store_shard shard = shard_in(version, i);
        assert_int_equal(weir_store_create_shard(store, &shard, NOW, &after), WEIR_OK);
        for (unsigned k = 0; k < 1000; k++)
            assert_int_equal(acquire(store, k, 1, NOW, &grant), WEIR_IN_PROGRESS);
        assert_int_equal(grant.n_missing, N_TRAINERS - i - 1);
    }
    took("asking for a version that is not READY", begun_ns, 1000 * n_shards);
}

int main(void)
{
#define CASE(name) cmocka_unit_test_setup_teardown(name, open_store, close_store)
    const struct CMUnitTest tests[] = {
        CASE(test_calls_on_a_large_store),
        CASE(test_a_thousand_waits_while_a_version_is_published),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
