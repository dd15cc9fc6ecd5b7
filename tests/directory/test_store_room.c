/* SPDX-License-Identifier: Apache-2.0 */
/* test_store_room.c - what goes when there is no room, and what one model may have of it. */
#include "directory/store_fixture.h"

#define MINUTE ((uint64_t)60000)
#define OF_MODEL 1024

static weir_status create_at(weir_store *store, const char *model, int n, uint64_t now_ms,
                             char uid[9])
{
    char key[48];
    snprintf(key, sizeof(key), "%s-%d", model, n);
    weir_store_version request = version_request(key);
    const weir_store_version *version = NULL;
    request.model = model;
    weir_status status = weir_store_create_version(store, &request, 7, now_ms, &version);
    if (status == WEIR_OK && uid != NULL)
        snprintf(uid, 9, "%s", version->uid);
    return status;
}

static weir_status create(weir_store *store, const char *model, int n, char uid[9])
{
    return create_at(store, model, n, NOW, uid);
}

/* All that the model may have; gives the uids of the 11th and the 21st. */
static void fill(weir_store *store, const char *model, char uids[2][9])
{
    char uid[9];
    for (int n = 0; n < OF_MODEL; n++) {
        assert_int_equal(create(store, model, n, uid), WEIR_OK);
        if (uids != NULL && (n == 10 || n == 20))
            memcpy(uids[n / 20], uid, sizeof(uid));
    }
}

static bool is_there(weir_store *store, const char *uid)
{
    const weir_store_version *version;
    return weir_store_get_version(store, uid, &version) == WEIR_OK;
}

static void test_one_model_has_a_quarter_of_the_versions_and_four_have_all(void **state)
{
    static const char *const models[] = { "m0", "m1", "m2", "m3" };
    fill(*state, models[0], NULL);
    expect_refusal(create(*state, "m0", OF_MODEL, NULL), WEIR_ERR_NO_MEMORY,
                   "the directory is full: 1024 weight versions of model_name 'm0'");
    for (int i = 1; i < 4; i++)
        fill(*state, models[i], NULL);
    expect_refusal(create(*state, "m4", 0, NULL), WEIR_ERR_NO_MEMORY,
                   "the directory is full: 4096 weight versions");
}

static void test_what_is_over_makes_room_the_oldest_first(void **state)
{
    const weir_store_version *version;
    char uids[2][9];
    add_worker(*state, "t", WEIR_STORE_TRAINER);
    fill(*state, "model", uids);
    for (int i = 1; i >= 0; i--)
        assert_int_equal(weir_store_abort_version(*state, uids[i], "t", "why", NOW, &version),
                         WEIR_OK);
    assert_int_equal(create(*state, "model", 2000, NULL), WEIR_OK);
    assert_false(is_there(*state, uids[0]));
    assert_true(is_there(*state, uids[1]));
    assert_int_equal(create(*state, "model", 2001, NULL), WEIR_OK);
    assert_false(is_there(*state, uids[1]));
    assert_int_equal(create(*state, "model", 2002, NULL), WEIR_ERR_NO_MEMORY);
    assert_int_equal(weir_store_count(*state).n_versions, OF_MODEL);
}

static void test_a_full_model_makes_room_for_itself_alone(void **state)
{
    const weir_store_version *version;
    char uids[2][9], other[9];
    add_worker(*state, "t", WEIR_STORE_TRAINER);
    assert_int_equal(create(*state, "other", 0, other), WEIR_OK);
    uint64_t expires;
    assert_int_equal(
        weir_store_register_worker(*state, "o", WEIR_STORE_TRAINER, "other", 90, NOW, &expires),
        WEIR_OK);
    assert_int_equal(weir_store_abort_version(*state, other, "o", "why", NOW, &version), WEIR_OK);
    fill(*state, "model", uids);
    assert_int_equal(create(*state, "model", 2000, NULL), WEIR_ERR_NO_MEMORY);
    assert_true(is_there(*state, other));
}

static void test_what_was_abandoned_makes_room_when_nothing_is_over(void **state)
{
    char uids[2][9];
    weir_store_shard shard = { .slot = "a", .worker_id = "t", .manifest_digest = "" };
    const weir_store_version *version;
    add_worker_for(*state, "t", WEIR_STORE_TRAINER, 60, NOW);
    fill(*state, "model", uids);
    shard.version_uid = uids[0];
    assert_int_equal(weir_store_create_shard(*state, &shard, NOW, &version), WEIR_OK);
    /* The first ten go after two minutes, then who has published, once it is gone for two. */
    for (int n = 0; n < 10; n++) {
        assert_int_equal(create_at(*state, "model", 2000 + n, NOW + 2 * MINUTE, NULL),
                         WEIR_ERR_NO_MEMORY);
        assert_int_equal(create_at(*state, "model", 2000 + n, NOW + 2 * MINUTE + 1, NULL), WEIR_OK);
        if (n == 8)
            break;
    }
    assert_int_equal(create_at(*state, "model", 2009, NOW + 3 * MINUTE, NULL), WEIR_OK);
    assert_true(is_there(*state, uids[0]));
    assert_int_equal(create_at(*state, "model", 2010, NOW + 3 * MINUTE, NULL), WEIR_OK);
    assert_true(is_there(*state, uids[0])); /* its publisher went two minutes ago just now */
    assert_int_equal(create_at(*state, "model", 2011, NOW + 3 * MINUTE + 1, NULL), WEIR_OK);
    assert_true(is_there(*state, uids[1]));
    assert_int_equal(weir_store_count(*state).n_versions, OF_MODEL);
}

/* ---- without pressure ------------------------------------------------------------------------*/

static void test_a_version_that_its_publishers_left_goes_after_ten_minutes(void **state)
{
    char left[9], expected[9];
    weir_store_shard shard = { .slot = "a", .worker_id = "t", .manifest_digest = "" };
    const weir_store_version *version;
    add_worker_for(*state, "t", WEIR_STORE_TRAINER, 60, NOW);
    assert_int_equal(create(*state, "model", 0, left), WEIR_OK);
    assert_int_equal(create(*state, "model", 1, expected), WEIR_OK);
    shard.version_uid = left;
    assert_int_equal(weir_store_create_shard(*state, &shard, NOW, &version), WEIR_OK);
    add_worker_for(*state, "u", WEIR_STORE_TRAINER, 3600, NOW);
    weir_store_sweep(*state, NOW + 11 * MINUTE);
    assert_true(is_there(*state, left));
    weir_store_sweep(*state, NOW + 11 * MINUTE + 1);
    assert_false(is_there(*state, left));
    assert_true(is_there(*state, expected)); /* nobody has begun it, and a trainer is there */
    weir_store_sweep(*state, NOW + HOUR + 1);
    assert_false(is_there(*state, expected));
}

static void test_a_version_that_no_trainer_is_there_for_goes_after_ten_minutes(void **state)
{
    char uid[9];
    add_worker_for(*state, "g", WEIR_STORE_GENERATOR, 3600, NOW);
    assert_int_equal(create(*state, "model", 0, uid), WEIR_OK);
    weir_store_sweep(*state, NOW + 10 * MINUTE);
    assert_true(is_there(*state, uid));
    weir_store_sweep(*state, NOW + 10 * MINUTE + 1);
    assert_false(is_there(*state, uid));
}

static void test_a_publisher_that_was_cut_off_for_some_minutes_goes_on(void **state)
{
    char uid[9];
    weir_store_shard shard = { .slot = "a", .worker_id = "t", .manifest_digest = "" };
    const weir_store_version *version;
    add_worker_for(*state, "t", WEIR_STORE_TRAINER, 1200, NOW);
    assert_int_equal(create(*state, "model", 0, uid), WEIR_OK);
    shard.version_uid = uid;
    assert_int_equal(weir_store_create_shard(*state, &shard, NOW, &version), WEIR_OK);
    for (int i = 20; i <= 29; i++) /* 20 minutes it waited for another rank, nine it was away */
        weir_store_sweep(*state, NOW + (uint64_t)i * MINUTE);
    add_worker_for(*state, "t", WEIR_STORE_TRAINER, 90, NOW + 29 * MINUTE);
    shard.slot = "b";
    assert_int_equal(weir_store_create_shard(*state, &shard, NOW + 29 * MINUTE, &version), WEIR_OK);
    assert_int_equal(version->state, WEIR_STORE_READY);
}

int main(void)
{
#define CASE(name) cmocka_unit_test_setup_teardown(name, open_store, close_store)
    const struct CMUnitTest tests[] = {
        CASE(test_one_model_has_a_quarter_of_the_versions_and_four_have_all),
        CASE(test_what_is_over_makes_room_the_oldest_first),
        CASE(test_a_full_model_makes_room_for_itself_alone),
        CASE(test_what_was_abandoned_makes_room_when_nothing_is_over),
        CASE(test_a_version_that_its_publishers_left_goes_after_ten_minutes),
        CASE(test_a_version_that_no_trainer_is_there_for_goes_after_ten_minutes),
        CASE(test_a_publisher_that_was_cut_off_for_some_minutes_goes_on),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
