/* SPDX-License-Identifier: Apache-2.0 */
/* test_store_lease.c - who may lease what, and for how long. */
#include "directory/sha256.h"
#include "directory/store_fixture.h"

static weir_status lease_at(weir_store *store, const weir_store_version *version,
                            const char *worker, uint32_t ttl_s, uint64_t now_ms,
                            weir_store_lease *out)
{
    return weir_store_register_lease(store, version->uid, worker, ttl_s, now_ms, out);
}

static int set_up(void **state)
{
    int failed = open_store(state);
    add_worker(*state, "t", WEIR_STORE_TRAINER);
    add_worker_for(*state, "g", WEIR_STORE_GENERATOR, 9999, NOW);
    return failed;
}

static void test_the_id_is_a_hash_of_version_and_worker(void **state)
{
    const weir_store_version *version = add_ready(*state, "k");
    weir_store_lease lease;
    char text[16], hash[WEIR_SHA256_HEX];
    int n = snprintf(text, sizeof(text), "%s%cg", version->uid, 0);
    assert_int_equal(weir_sha256_hex(text, (size_t)n, hash), WEIR_OK);
    assert_int_equal(lease_at(*state, version, "g", 30, NOW, &lease), WEIR_OK);
    assert_int_equal(strlen(lease.lease_id), 8);
    assert_memory_equal(lease.lease_id, hash, 8);
    assert_int_equal(lease.expires_ms, NOW + 30000);
}

static void test_leases_are_checked_in_order(void **state)
{
    weir_store_lease lease;
    const weir_store_version *staging = add_version(*state, "staging");
    expect_refusal(lease_at(*state, staging, "g", 0, NOW, &lease), WEIR_ERR_INVALID,
                   "ttl_seconds must be greater than zero");
    expect_refusal(weir_store_register_lease(*state, "00000000", "g", 9, NOW, &lease),
                   WEIR_ERR_NOT_FOUND, "no weight version '00000000'");
    expect_refusal(lease_at(*state, staging, "nobody", 9, NOW, &lease), WEIR_ERR_REFUSED,
                   "worker registration is missing or expired");
    expect_refusal(lease_at(*state, staging, "t", 9, NOW, &lease), WEIR_ERR_REFUSED,
                   "only a GENERATOR worker can lease a weight version");
    uint64_t expires;
    assert_int_equal(
        weir_store_register_worker(*state, "o", WEIR_STORE_GENERATOR, "other", 9, NOW, &expires),
        WEIR_OK);
    expect_refusal(lease_at(*state, staging, "o", 9, NOW, &lease), WEIR_ERR_REFUSED,
                   "worker and weight version model_name differ");
    expect_refusal(lease_at(*state, staging, "g", 9, NOW, &lease), WEIR_ERR_REFUSED,
                   "weight version is not READY: no new lease");
}

static void test_h3_a_releasing_version_renews_but_gives_no_new_lease(void **state)
{
    weir_store_lease lease;
    const weir_store_version *version = add_ready(*state, "k");
    add_worker_for(*state, "h", WEIR_STORE_GENERATOR, 9999, NOW);
    assert_int_equal(lease_at(*state, version, "g", 30, NOW, &lease), WEIR_OK);
    assert_int_equal(release(*state, version), WEIR_OK);
    expect_refusal(lease_at(*state, version, "h", 30, NOW, &lease), WEIR_ERR_REFUSED,
                   "weight version is not READY: no new lease");
    assert_int_equal(lease_at(*state, version, "g", 30, NOW + 29000, &lease), WEIR_OK);
    assert_int_equal(lease.expires_ms, NOW + 59000);
    /* A lease that has run out is no lease to renew. */
    expect_refusal(lease_at(*state, version, "g", 30, NOW + 59000, &lease), WEIR_ERR_REFUSED,
                   "weight version is not READY: no new lease");
}

static void test_only_its_worker_deletes_a_lease(void **state)
{
    weir_store_lease lease;
    bool deleted;
    const weir_store_version *version = add_ready(*state, "k");
    assert_int_equal(lease_at(*state, version, "g", 30, NOW, &lease), WEIR_OK);
    expect_refusal(
        weir_store_delete_lease(*state, version->uid, lease.lease_id, "t", NOW, &deleted),
        WEIR_ERR_REFUSED, "only the leasing worker can delete its lease");
    assert_int_equal(
        weir_store_delete_lease(*state, version->uid, lease.lease_id, "g", NOW, &deleted), WEIR_OK);
    assert_true(deleted);
    assert_int_equal(
        weir_store_delete_lease(*state, version->uid, lease.lease_id, "g", NOW, &deleted), WEIR_OK);
    assert_false(deleted);
    expect_refusal(weir_store_delete_lease(*state, "00000000", "x", "g", NOW, &deleted),
                   WEIR_ERR_NOT_FOUND, "no weight version '00000000'");
}

static void test_leases_of_one_version_are_bounded(void **state)
{
    const weir_store_version *version = add_ready(*state, "k");
    weir_store_lease lease;
    weir_status status = WEIR_OK;
    int n = 0;
    for (; n < 9000 && status == WEIR_OK; n++) {
        char id[16];
        snprintf(id, sizeof(id), "w%d", n);
        add_worker(*state, id, WEIR_STORE_GENERATOR);
        status = lease_at(*state, version, id, 30, NOW, &lease);
    }
    assert_int_equal(status, WEIR_ERR_NO_MEMORY);
    assert_int_equal(n, 8193);
    assert_int_equal(lease_at(*state, version, "g", 30, NOW + 30000, &lease), WEIR_OK);
}

int main(void)
{
#define CASE(name) cmocka_unit_test_setup_teardown(name, set_up, close_store)
    const struct CMUnitTest tests[] = {
        CASE(test_the_id_is_a_hash_of_version_and_worker),
        CASE(test_leases_are_checked_in_order),
        CASE(test_h3_a_releasing_version_renews_but_gives_no_new_lease),
        CASE(test_only_its_worker_deletes_a_lease),
        CASE(test_leases_of_one_version_are_bounded),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
