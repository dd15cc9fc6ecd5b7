/* SPDX-License-Identifier: Apache-2.0 */
/* test_store_version.c - versions and shards: every rule, in order, with its text. */
#include "directory/store_fixture.h"

/* ---- creating --------------------------------------------------------------------------------*/

static weir_status create(weir_store *store, weir_store_version request)
{
    const weir_store_version *version;
    return weir_store_create_version(store, &request, 7, NOW, &version);
}

static void test_a_new_version_is_staging_with_a_uid_of_eight_digits(void **state)
{
    const weir_store_version *version = add_version(*state, "k");
    assert_int_equal(strlen(version->uid), 8);
    assert_int_equal(strspn(version->uid, "0123456789abcdef"), 8);
    assert_int_equal(version->state, WEIR_STORE_STAGING);
    assert_int_equal(version->created_at_ms, NOW);
    assert_string_equal(version->slots[1], "b");
    const weir_store_version *found;
    assert_int_equal(weir_store_get_version(*state, version->uid, &found), WEIR_OK);
    assert_ptr_equal(found, version);
    expect_refusal(weir_store_get_version(*state, "nope", &found), WEIR_ERR_NOT_FOUND,
                   "no weight version 'nope'");
}

static void test_the_same_request_again_gives_the_same_version(void **state)
{
    const weir_store_version *first = add_version(*state, "k");
    assert_ptr_equal(add_version(*state, "k"), first);
    assert_ptr_not_equal(add_version(*state, "other"), first);
}

static void test_h6_a_key_used_for_another_request_is_refused(void **state)
{
    static const char *const other_slots[] = { "a", "c" };
    add_version(*state, "k");
    weir_store_version requests[4];
    for (int i = 0; i < 4; i++)
        requests[i] = version_request("k");
    requests[0].model = "other";
    requests[1].number = 2;
    requests[2].has_number = false;
    requests[3].slots = other_slots;
    for (int i = 0; i < 4; i++)
        expect_refusal(create(*state, requests[i]), WEIR_ERR_EXISTS,
                       "idempotency_key was already used for a different WeightVersion");
}

static void test_h7_slots_must_be_there_and_unique(void **state)
{
    static const char *const twice[] = { "a", "a" };
    static const char *const empty[] = { "a", "" };
    weir_store_version request = version_request("k");
    request.n_slots = 0;
    expect_refusal(create(*state, request), WEIR_ERR_INVALID,
                   "expected_source_slots must not be empty");
    request.slots = twice, request.n_slots = 2;
    expect_refusal(create(*state, request), WEIR_ERR_INVALID,
                   "expected_source_slots must not contain duplicates");
    request.slots = empty;
    expect_refusal(create(*state, request), WEIR_ERR_INVALID, "expected_source_slots is required");
    request.n_slots = 1025;
    expect_refusal(create(*state, request), WEIR_ERR_NO_MEMORY,
                   "expected_source_slots has 1025 names, at most 1024 are allowed");
}

static void test_names_are_required(void **state)
{
    weir_store_version request = version_request("");
    expect_refusal(create(*state, request), WEIR_ERR_INVALID, "idempotency_key is required");
    request = version_request("k");
    request.model = "";
    expect_refusal(create(*state, request), WEIR_ERR_INVALID, "model_name is required");
    request = version_request("k");
    request.payload = 0;
    expect_refusal(create(*state, request), WEIR_ERR_INVALID,
                   "payload_format must be FULL_TENSOR or XOR_DELTA");
}

static void test_h8_a_base_goes_with_a_delta_alone(void **state)
{
    weir_store_version request = version_request("k");
    request.base_uid = "12345678";
    expect_refusal(create(*state, request), WEIR_ERR_INVALID,
                   "base_version_id must be omitted for FULL_TENSOR");
    request.payload = WEIR_STORE_XOR_DELTA;
    expect_refusal(create(*state, request), WEIR_ERR_NOT_FOUND, "no weight version '12345678'");
    request.base_uid = NULL;
    expect_refusal(create(*state, request), WEIR_ERR_INVALID,
                   "base_version_id is required for XOR_DELTA");
    request.base_uid = add_version(*state, "staging")->uid;
    expect_refusal(create(*state, request), WEIR_ERR_REFUSED, "base_version_id is not READY");
    add_worker(*state, "t", WEIR_STORE_TRAINER);
    request.base_uid = add_ready(*state, "base")->uid;
    assert_int_equal(create(*state, request), WEIR_OK);
    request.model = "other", request.idempotency_key = "k2";
    expect_refusal(create(*state, request), WEIR_ERR_REFUSED,
                   "base_version_id has another model_name");
}

static void test_other_salts_give_other_uids(void **state)
{
    weir_store *other;
    const weir_store_version *version;
    weir_store_options options = { 0 };
    weir_store_version request = version_request("k");
    assert_int_equal(weir_store_open(&options, &other), WEIR_OK);
    assert_int_equal(weir_store_create_version(other, &request, 8, NOW, &version), WEIR_OK);
    assert_string_not_equal(add_version(*state, "k")->uid, version->uid);
    weir_store_close(other);
}

/* ---- publishing ------------------------------------------------------------------------------*/

static void test_h1_the_last_slot_makes_it_ready_in_the_same_call(void **state)
{
    add_worker(*state, "t", WEIR_STORE_TRAINER);
    const weir_store_version *version = add_version(*state, "k"), *after;
    weir_store_shard shard = shard_of(version, "a", "t");
    assert_int_equal(weir_store_create_shard(*state, &shard, NOW, &after), WEIR_OK);
    assert_int_equal(after->state, WEIR_STORE_STAGING);
    shard.slot = "b";
    assert_int_equal(weir_store_create_shard(*state, &shard, NOW, &after), WEIR_OK);
    assert_int_equal(after->state, WEIR_STORE_READY);
}

static void test_a_slot_covered_twice_counts_once(void **state)
{
    add_worker(*state, "t", WEIR_STORE_TRAINER);
    add_worker(*state, "u", WEIR_STORE_TRAINER);
    const weir_store_version *version = add_version(*state, "k");
    assert_int_equal(put_shard(*state, version, "a", "t"), WEIR_OK);
    assert_int_equal(put_shard(*state, version, "a", "u"), WEIR_OK);
    assert_int_equal(version->state, WEIR_STORE_STAGING);
    assert_int_equal(put_shard(*state, version, "b", "u"), WEIR_OK);
    assert_int_equal(version->state, WEIR_STORE_READY);
    assert_int_equal(put_shard(*state, version, "b", "t"), WEIR_OK); /* READY takes more */
    const weir_store_shard *shard;
    assert_int_equal(weir_store_list_shards(*state, version->uid, &shard), WEIR_OK);
    static const char *const order[] = { "t", "u", "u", "t" };
    for (int i = 0; i < 4; i++, shard = shard->next)
        assert_string_equal(shard->worker_id, order[i]);
    assert_null(shard);
}

static void test_publication_is_checked_in_order(void **state)
{
    const weir_store_version *version = add_version(*state, "k"), *after;
    weir_store_shard shard = shard_of(version, "nope", "t");
    shard.version_uid = "00000000";
    expect_refusal(weir_store_create_shard(*state, &shard, NOW, &after), WEIR_ERR_NOT_FOUND,
                   "no weight version '00000000'");
    shard.version_uid = version->uid;
    expect_refusal(weir_store_create_shard(*state, &shard, NOW, &after), WEIR_ERR_REFUSED,
                   "worker registration is missing or expired");
    uint64_t expires;
    assert_int_equal(weir_store_register_worker(*state, "o", 1, "other", 90, NOW, &expires),
                     WEIR_OK);
    shard.worker_id = "o";
    expect_refusal(weir_store_create_shard(*state, &shard, NOW, &after), WEIR_ERR_REFUSED,
                   "worker and weight version model_name differ");
    shard.worker_id = "t";
    add_worker(*state, "t", WEIR_STORE_TRAINER);
    expect_refusal(weir_store_create_shard(*state, &shard, NOW, &after), WEIR_ERR_INVALID,
                   "source_slot_id is not required by the weight version");
    expect_refusal(weir_store_create_shard(*state, &shard, NOW + HOUR, &after), WEIR_ERR_REFUSED,
                   "worker registration is missing or expired");
    version = add_ready(*state, "ready");
    assert_int_equal(release(*state, version), WEIR_OK);
    shard.version_uid = version->uid;
    expect_refusal(weir_store_create_shard(*state, &shard, NOW, &after), WEIR_ERR_REFUSED,
                   "weight version does not accept shard publication");
}

static void test_h5_a_replayed_shard_is_fine_and_a_changed_one_is_not(void **state)
{
    add_worker(*state, "t", WEIR_STORE_TRAINER);
    const weir_store_version *version = add_ready(*state, "k"), *after;
    assert_int_equal(put_shard(*state, version, "a", "t"), WEIR_OK);
    weir_store_shard shards[5];
    for (int i = 0; i < 5; i++)
        shards[i] = shard_of(version, "a", "t");
    shards[0].manifest_digest = "sha256:01";
    shards[1].n_tensors++;
    shards[2].n_bytes++;
    shards[3].manifest_endpoint = "127.0.0.1:2";
    shards[4].transport = "file";
    for (int i = 0; i < 5; i++)
        expect_refusal(weir_store_create_shard(*state, &shards[i], NOW, &after), WEIR_ERR_EXISTS,
                       "worker and source_slot_id already published different metadata");
}

static void test_shards_of_one_version_are_bounded(void **state)
{
    const weir_store_version *version = add_version(*state, "k");
    weir_status status = WEIR_OK;
    int n = 0;
    for (; n < 9000 && status == WEIR_OK; n++) {
        char id[16];
        snprintf(id, sizeof(id), "w%d", n);
        add_worker(*state, id, WEIR_STORE_TRAINER);
        status = put_shard(*state, version, "a", id);
    }
    assert_int_equal(status, WEIR_ERR_NO_MEMORY);
    assert_int_equal(n, 8193);
}

/* ---- releasing -------------------------------------------------------------------------------*/

static void test_h2_only_a_ready_version_can_be_deleted(void **state)
{
    static const char text[] = "only a READY weight version can be deleted";
    add_worker(*state, "t", WEIR_STORE_TRAINER);
    expect_refusal(release(*state, add_version(*state, "staging")), WEIR_ERR_REFUSED, text);
    const weir_store_version *version = add_ready(*state, "ready");
    assert_int_equal(release(*state, version), WEIR_OK);
    assert_int_equal(version->state, WEIR_STORE_RELEASING);
    expect_refusal(release(*state, version), WEIR_ERR_REFUSED, text);
}

static weir_status delete_at(weir_store *store, const weir_store_version *version,
                             const char *worker, uint64_t now_ms, bool *out_deleted)
{
    return weir_store_delete_shard(store, version->uid, "a", worker, now_ms, out_deleted);
}

static void test_h4_deleting_a_shard_is_checked_in_order(void **state)
{
    bool deleted = false;
    add_worker(*state, "t", WEIR_STORE_TRAINER);
    add_worker_for(*state, "g", WEIR_STORE_GENERATOR, 9999, NOW);
    const weir_store_version *version = add_ready(*state, "k");
    weir_store_lease lease;
    assert_int_equal(weir_store_register_lease(*state, version->uid, "g", 30, NOW, &lease),
                     WEIR_OK);
    expect_refusal(weir_store_delete_shard(*state, "00000000", "a", "t", NOW, &deleted),
                   WEIR_ERR_NOT_FOUND, "no weight version '00000000'");
    expect_refusal(delete_at(*state, version, "u", NOW, &deleted), WEIR_ERR_REFUSED,
                   "only the publishing worker can delete its shard");
    expect_refusal(delete_at(*state, version, "t", NOW, &deleted), WEIR_ERR_REFUSED,
                   "weight version must be RELEASING before its shards can be deleted");
    assert_int_equal(release(*state, version), WEIR_OK);
    expect_refusal(delete_at(*state, version, "t", NOW + 90000, &deleted), WEIR_ERR_REFUSED,
                   "worker registration is missing or expired");
    expect_refusal(delete_at(*state, version, "t", NOW + 29999, &deleted), WEIR_ERR_REFUSED,
                   "weight version has an active lease");
    assert_int_equal(delete_at(*state, version, "t", NOW + 30000, &deleted), WEIR_OK);
    assert_true(deleted);
    assert_int_equal(delete_at(*state, version, "t", NOW + 30000, &deleted), WEIR_OK);
    assert_false(deleted); /* it is gone already */
    const weir_store_shard *shard;
    assert_int_equal(weir_store_list_shards(*state, version->uid, &shard), WEIR_OK);
    assert_string_equal(shard->slot, "b");
    assert_null(shard->next);
}

/* ---- sweeping --------------------------------------------------------------------------------*/

static bool is_there(weir_store *store, const char *uid)
{
    const weir_store_version *version;
    return weir_store_get_version(store, uid, &version) == WEIR_OK;
}

static void test_a_version_nobody_can_serve_is_forgotten(void **state)
{
    char staging[9], ready[9];
    add_worker(*state, "t", WEIR_STORE_TRAINER);
    snprintf(staging, sizeof(staging), "%s", add_version(*state, "staging")->uid);
    snprintf(ready, sizeof(ready), "%s", add_ready(*state, "ready")->uid);
    add_worker_for(*state, "t", WEIR_STORE_TRAINER, 3700, NOW);
    weir_store_sweep(*state, NOW + HOUR);
    assert_true(is_there(*state, staging));
    weir_store_sweep(*state, NOW + HOUR + 1);
    assert_false(is_there(*state, staging));
    assert_true(is_there(*state, ready)); /* its publisher lives */
    weir_store_sweep(*state, NOW + 2 * HOUR);
    assert_false(is_there(*state, ready));
}

static void test_a_trainer_that_was_cut_off_serves_again_what_it_had_published(void **state)
{
    const weir_store_shard *shard;
    weir_store_grant grant;
    add_worker(*state, "t", WEIR_STORE_TRAINER);
    add_worker_for(*state, "g", WEIR_STORE_GENERATOR, 9999, NOW);
    const weir_store_version *version = add_ready(*state, "k");
    const weir_store_wish wish = { .model = version->model,
                                   .run = version->run,
                                   .worker_id = "g",
                                   .highest = UINT64_MAX,
                                   .but_not_uid = "",
                                   .host = "",
                                   .part = "",
                                   .ttl_s = 9,
                                   .trace_id = "" };
    assert_int_equal(weir_store_acquire(*state, &wish, false, NOW, &grant), WEIR_OK);
    weir_store_sweep(*state, NOW + 100000);
    assert_int_equal(weir_store_acquire(*state, &wish, false, NOW + 100000, &grant),
                     WEIR_IN_PROGRESS);
    add_worker_for(*state, "t", WEIR_STORE_TRAINER, 90, NOW + 100000);
    assert_int_equal(weir_store_acquire(*state, &wish, false, NOW + 100000, &grant), WEIR_OK);
    char uid[9];
    snprintf(uid, sizeof(uid), "%s", version->uid);
    weir_store_sweep(*state, NOW + 190001 + HOUR); /* it does not come back a second time */
    assert_int_equal(weir_store_list_shards(*state, uid, &shard), WEIR_ERR_NOT_FOUND);
}

static void test_shards_of_a_crashed_trainer_go_when_released(void **state)
{
    add_worker(*state, "t", WEIR_STORE_TRAINER);
    add_worker_for(*state, "g", WEIR_STORE_GENERATOR, 9999, NOW);
    const weir_store_version *version = add_ready(*state, "k");
    const weir_store_shard *shard;
    weir_store_lease lease;
    assert_int_equal(weir_store_register_lease(*state, version->uid, "g", 200, NOW, &lease),
                     WEIR_OK);
    weir_store_sweep(*state, NOW + 100000); /* the trainer has expired, the version is READY */
    assert_int_equal(weir_store_list_shards(*state, version->uid, &shard), WEIR_OK);
    assert_non_null(shard);
    assert_int_equal(release(*state, version), WEIR_OK);
    weir_store_sweep(*state, NOW + 100000); /* but a lease lives */
    assert_int_equal(weir_store_list_shards(*state, version->uid, &shard), WEIR_OK);
    assert_non_null(shard);
    weir_store_sweep(*state, NOW + 200000);
    assert_int_equal(weir_store_list_shards(*state, version->uid, &shard), WEIR_OK);
    assert_null(shard);
    add_worker_for(*state, "t", WEIR_STORE_TRAINER, 90, NOW + 200000);
    expect_refusal(put_shard(*state, version, "a", "t"), WEIR_ERR_REFUSED,
                   "weight version does not accept shard publication");
}

int main(void)
{
#define CASE(name) cmocka_unit_test_setup_teardown(name, open_store, close_store)
    const struct CMUnitTest tests[] = {
        CASE(test_a_new_version_is_staging_with_a_uid_of_eight_digits),
        CASE(test_the_same_request_again_gives_the_same_version),
        CASE(test_h6_a_key_used_for_another_request_is_refused),
        CASE(test_h7_slots_must_be_there_and_unique),
        CASE(test_names_are_required),
        CASE(test_h8_a_base_goes_with_a_delta_alone),
        CASE(test_other_salts_give_other_uids),
        CASE(test_h1_the_last_slot_makes_it_ready_in_the_same_call),
        CASE(test_a_slot_covered_twice_counts_once),
        CASE(test_publication_is_checked_in_order),
        CASE(test_h5_a_replayed_shard_is_fine_and_a_changed_one_is_not),
        CASE(test_shards_of_one_version_are_bounded),
        CASE(test_h2_only_a_ready_version_can_be_deleted),
        CASE(test_h4_deleting_a_shard_is_checked_in_order),
        CASE(test_a_version_nobody_can_serve_is_forgotten),
        CASE(test_a_trainer_that_was_cut_off_serves_again_what_it_had_published),
        CASE(test_shards_of_a_crashed_trainer_go_when_released),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
