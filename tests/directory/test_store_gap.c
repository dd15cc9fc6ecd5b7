/* SPDX-License-Identifier: Apache-2.0 */
/* test_store_gap.c - what of a version nobody can read, and who had it. */
#include "directory/store_fixture.h"

static const weir_store_version *make_ready(weir_store *store)
{
    weir_store_version request = version_request(NULL);
    const weir_store_version *version = NULL;
    request.run = "run";
    assert_int_equal(weir_store_create_version(store, &request, 7, NOW, &version), WEIR_OK);
    add_worker_for(store, "t0", WEIR_STORE_TRAINER, 5, NOW);
    add_worker_for(store, "t1", WEIR_STORE_TRAINER, 600, NOW);
    assert_int_equal(put_shard(store, version, "a", "t0"), WEIR_OK);
    return version;
}

static bool note(void *context, const weir_store_gap *gap)
{
    char *text = context;
    size_t used = strlen(text);
    snprintf(text + used, 256 - used, "%s%s %s%s", used != 0 ? ", " : "", gap->slot,
             gap->was_published ? "of " : "never", gap->worker_id);
    return true;
}

static void hold(weir_store *store, const char *worker_id, const weir_store_version *version)
{
    const weir_store_source source = { .source_id = "s",
                                       .worker_id = worker_id,
                                       .model = "model",
                                       .run = "run",
                                       .role = "inference_replica",
                                       .status = WEIR_STORE_SOURCE_READY,
                                       .has_step = true,
                                       .step = version->number,
                                       .version_uid = version->uid,
                                       .endpoint = "h:1",
                                       .host = "h",
                                       .part = "p" };
    assert_int_equal(weir_store_publish_source(store, &source, NOW), WEIR_OK);
}

static void test_what_was_never_published_and_what_went_are_told_apart(void **state)
{
    const weir_store_version *version = make_ready(*state);
    char text[256] = "";
    assert_int_equal(weir_store_each_gap(*state, version->uid, NOW, note, text), 1);
    assert_string_equal(text, "b never");
    text[0] = '\0';
    assert_int_equal(weir_store_each_gap(*state, version->uid, NOW + 5000, note, text), 2);
    assert_string_equal(text, "a of t0, b never");
    assert_int_equal(weir_store_each_gap(*state, version->uid, NOW + 5000, NULL, NULL), 2);
    assert_int_equal(weir_store_each_gap(*state, "00000000", NOW, note, text), 0);
}

static void test_what_is_ready_cannot_be_read_when_a_rank_is_gone_and_nobody_holds_it(void **state)
{
    const weir_store_version *version = make_ready(*state);
    assert_false(weir_store_is_unreadable(*state, version->uid, NOW + 5000)); /* STAGING */
    assert_int_equal(put_shard(*state, version, "b", "t1"), WEIR_OK);
    assert_int_equal(version->state, WEIR_STORE_READY);
    assert_false(weir_store_is_unreadable(*state, version->uid, NOW + 4999));
    assert_true(weir_store_is_unreadable(*state, version->uid, NOW + 5000));
    assert_false(weir_store_is_unreadable(*state, "00000000", NOW));
    add_worker_for(*state, "r", WEIR_STORE_GENERATOR, 60, NOW);
    hold(*state, "r", version);
    assert_false(weir_store_is_unreadable(*state, version->uid, NOW + 5000));
    assert_true(weir_store_is_unreadable(*state, version->uid, NOW + 60000));
    add_worker_for(*state, "t0", WEIR_STORE_TRAINER, 600, NOW + 60000); /* it was cut off */
    assert_false(weir_store_is_unreadable(*state, version->uid, NOW + 60000));
}

static void test_an_entry_is_gone_with_the_registration_of_its_worker(void **state)
{
    const weir_store_version *version = make_ready(*state);
    add_worker_for(*state, "r", WEIR_STORE_GENERATOR, 5, NOW);
    hold(*state, "r", version);
    hold(*state, "never-registered", version);
    const weir_store_source *source = weir_store_get_source(*state, "s", "r");
    assert_false(weir_store_is_source_gone(source, NOW + 4999));
    assert_true(weir_store_is_source_gone(source, NOW + 5000));
    weir_store_sweep(*state, NOW + 5000); /* its record too */
    assert_true(weir_store_is_source_gone(source, NOW + 5000));
    add_worker_for(*state, "r", WEIR_STORE_GENERATOR, 5, NOW + 6000);
    assert_false(weir_store_is_source_gone(source, NOW + 6000));
    assert_false(weir_store_is_source_gone(weir_store_get_source(*state, "s", "never-registered"),
                                           NOW + 5000));
}

static void test_a_lease_says_since_when(void **state)
{
    const weir_store_version *version = make_ready(*state);
    weir_store_lease lease;
    assert_int_equal(put_shard(*state, version, "b", "t1"), WEIR_OK);
    add_worker_for(*state, "r", WEIR_STORE_GENERATOR, 600, NOW);
    assert_false(weir_store_get_lease(*state, version->uid, "r", NOW, &lease));
    for (uint64_t ms = 0; ms < 3000; ms += 1000)
        assert_int_equal(weir_store_register_lease(*state, version->uid, "r", 5, NOW + ms, &lease),
                         WEIR_OK);
    assert_true(weir_store_get_lease(*state, version->uid, "r", NOW + 3000, &lease));
    assert_int_equal(lease.begun_ms, NOW);
    assert_int_equal(lease.expires_ms, NOW + 7000);
    assert_false(weir_store_get_lease(*state, version->uid, "r", NOW + 7000, &lease));
    assert_false(weir_store_get_lease(*state, "00000000", "r", NOW, &lease));
}

int main(void)
{
#define CASE(name) cmocka_unit_test_setup_teardown(name, open_store, close_store)
    const struct CMUnitTest tests[] = {
        CASE(test_what_was_never_published_and_what_went_are_told_apart),
        CASE(test_what_is_ready_cannot_be_read_when_a_rank_is_gone_and_nobody_holds_it),
        CASE(test_an_entry_is_gone_with_the_registration_of_its_worker),
        CASE(test_a_lease_says_since_when),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
