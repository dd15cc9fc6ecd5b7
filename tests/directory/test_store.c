/* SPDX-License-Identifier: Apache-2.0 */
/* test_store.c - workers, and what a sweep leaves. */
#include "directory/store_fixture.h"

static void test_workers_register_and_renew(void **state)
{
    uint64_t expires;
    assert_int_equal(
        weir_store_register_worker(*state, "w", WEIR_STORE_TRAINER, "model", 90, NOW, &expires),
        WEIR_OK);
    assert_int_equal(expires, NOW + 90000);
    assert_int_equal(weir_store_register_worker(*state, "w", WEIR_STORE_TRAINER, "model", 10,
                                                NOW + 1000, &expires),
                     WEIR_OK);
    assert_int_equal(expires, NOW + 11000);
    assert_int_equal(weir_store_register_worker(*state, "w", WEIR_STORE_TRAINER, "model",
                                                UINT32_MAX, NOW, &expires),
                     WEIR_OK);
    assert_int_equal(expires, NOW + 24 * HOUR);
}

static void test_bad_registrations_are_refused(void **state)
{
    uint64_t expires;
    char name[300];
    memset(name, 'n', sizeof(name) - 1);
    name[sizeof(name) - 1] = '\0';
    expect_refusal(weir_store_register_worker(*state, "", 1, "m", 9, NOW, &expires),
                   WEIR_ERR_INVALID, "worker_id is required");
    expect_refusal(weir_store_register_worker(*state, "w", 1, "", 9, NOW, &expires),
                   WEIR_ERR_INVALID, "model_name is required");
    expect_refusal(weir_store_register_worker(*state, name, 1, "m", 9, NOW, &expires),
                   WEIR_ERR_INVALID, "worker_id has 299 bytes, at most 255 are allowed");
    expect_refusal(weir_store_register_worker(*state, "w", 0, "m", 9, NOW, &expires),
                   WEIR_ERR_INVALID, "role must be TRAINER or GENERATOR, not 0");
    expect_refusal(weir_store_register_worker(*state, "w", 1, "m", 0, NOW, &expires),
                   WEIR_ERR_INVALID, "ttl_seconds must be greater than zero");
}

static void test_a_live_worker_keeps_role_and_model(void **state)
{
    uint64_t expires;
    add_worker(*state, "w", WEIR_STORE_TRAINER);
    expect_refusal(
        weir_store_register_worker(*state, "w", WEIR_STORE_GENERATOR, "model", 9, NOW, &expires),
        WEIR_ERR_EXISTS, "worker_id is registered with another role or model_name");
    /* Once it has expired it may come back as anything. */
    assert_int_equal(weir_store_register_worker(*state, "w", WEIR_STORE_GENERATOR, "other", 9,
                                                NOW + HOUR, &expires),
                     WEIR_OK);
}

static void test_workers_are_bounded_and_swept(void **state)
{
    uint64_t expires;
    char id[16];
    weir_status status = WEIR_OK;
    int n = 0;
    for (; n < 20000 && status == WEIR_OK; n++) {
        snprintf(id, sizeof(id), "w%d", n);
        status = weir_store_register_worker(*state, id, 1, "model", 90, NOW, &expires);
    }
    expect_refusal(status, WEIR_ERR_NO_MEMORY, "the directory is full: 16384 workers");
    assert_int_equal(n, 16385);
    weir_store_sweep(*state, NOW + HOUR);
    assert_int_equal(weir_store_register_worker(*state, id, 1, "model", 90, NOW + HOUR, &expires),
                     WEIR_OK);
}

/* A directory that runs for weeks: a version a minute, published, leased, released, deleted. */
static void test_a_long_run_does_not_grow(void **state)
{
    uint64_t now = NOW, before = 0;
    for (int i = 0; i < 3000; i++, now += 60000) {
        char key[16];
        snprintf(key, sizeof(key), "k%d", i);
        weir_store_version request = version_request(key);
        const weir_store_version *version, *after;
        weir_store_lease lease;
        bool deleted;
        add_worker_for(*state, "t", WEIR_STORE_TRAINER, 90, now);
        add_worker_for(*state, "g", WEIR_STORE_GENERATOR, 90, now);
        assert_int_equal(weir_store_create_version(*state, &request, 7, now, &version), WEIR_OK);
        for (int s = 0; s < 2; s++) {
            weir_store_shard shard = shard_of(version, slots_ab[s], "t");
            assert_int_equal(weir_store_create_shard(*state, &shard, now, &after), WEIR_OK);
        }
        assert_int_equal(weir_store_register_lease(*state, version->uid, "g", 30, now, &lease),
                         WEIR_OK);
        assert_int_equal(
            weir_store_delete_lease(*state, version->uid, lease.lease_id, "g", now, &deleted),
            WEIR_OK);
        assert_int_equal(weir_store_delete_version(*state, version->uid, now, &after), WEIR_OK);
        for (int s = 0; s < 2; s++)
            assert_int_equal(
                weir_store_delete_shard(*state, version->uid, slots_ab[s], "t", now, &deleted),
                WEIR_OK);
        weir_store_sweep(*state, now);
        if (i == 100) /* more than an hour has passed: what is old goes as fast as new comes */
            before = weir_alloc_count();
    }
    assert_int_equal(weir_alloc_count(), before);
}

static void test_every_failed_allocation_is_survived(void **state)
{
    (void)state;
    for (uint64_t n = 1; n < 6; n++) {
        weir_store_options options = { .stale_after_ms = 0 };
        weir_store *store = NULL;
        uint64_t expires;
        weir_alloc_fail_at(n);
        weir_status status = weir_store_open(&options, &store);
        if (status == WEIR_OK)
            status = weir_store_register_worker(store, "w", 1, "model", 90, NOW, &expires);
        weir_alloc_fail_at(0);
        if (n <= 2)
            assert_int_equal(status, WEIR_ERR_NO_MEMORY);
        if (store != NULL)
            add_worker(store, "w", WEIR_STORE_TRAINER);
        weir_store_close(store);
    }
}

int main(void)
{
#define CASE(name) cmocka_unit_test_setup_teardown(name, open_store, close_store)
    const struct CMUnitTest tests[] = {
        CASE(test_workers_register_and_renew),
        CASE(test_bad_registrations_are_refused),
        CASE(test_a_live_worker_keeps_role_and_model),
        CASE(test_workers_are_bounded_and_swept),
        CASE(test_a_long_run_does_not_grow),
        cmocka_unit_test(test_every_failed_allocation_is_survived),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
