/* SPDX-License-Identifier: Apache-2.0 */
/* test_store_holder.c - which replica workers hold a version, and who is waited for. */
#include "directory/store_fixture.h"

static const weir_store_version *make_at(weir_store *store, const char *run, uint64_t number,
                                         uint64_t now_ms)
{
    weir_store_version request = version_request(NULL);
    const weir_store_version *version = NULL;
    request.run = run, request.number = number;
    assert_int_equal(weir_store_create_version(store, &request, 7, now_ms, &version), WEIR_OK);
    return version;
}

static const weir_store_version *make(weir_store *store, uint64_t number)
{
    return make_at(store, "run", number, NOW);
}

typedef struct entry {
    const char *worker_id, *run, *source_id;
    int status;
} entry;

static void enter(weir_store *store, const entry *e, const weir_store_version *version)
{
    const weir_store_source source = { .source_id = e->source_id != NULL ? e->source_id : "s",
                                       .worker_id = e->worker_id,
                                       .model = "model",
                                       .run = e->run != NULL ? e->run : "run",
                                       .role = "inference_replica",
                                       .rank = 3,
                                       .status = e->status != 0
                                                     ? (weir_store_source_status)e->status
                                                     : WEIR_STORE_SOURCE_READY,
                                       .has_step = true,
                                       .step = version->number,
                                       .version_uid = version->uid };
    assert_int_equal(weir_store_publish_source(store, &source, NOW), WEIR_OK);
}

static void hold(weir_store *store, const char *worker_id, const weir_store_version *version)
{
    const entry e = { .worker_id = worker_id };
    enter(store, &e, version);
}

static void leave(weir_store *store, const char *worker_id)
{
    assert_int_equal(weir_store_update_source(store, "s", worker_id, WEIR_STORE_SOURCE_STALE, NOW),
                     WEIR_OK);
}

static size_t count(weir_store *store, const weir_store_version *version, uint64_t now_ms)
{
    return weir_store_count_holders(store, version->uid, now_ms);
}

/* ---- who counts ------------------------------------------------------------------------------*/

static void test_this_version_or_a_later_one_of_its_run_counts(void **state)
{
    const weir_store_version *five = make(*state, 5), *six = make(*state, 6),
                             *four = make(*state, 4);
    const weir_store_version *other = make_at(*state, "other", 9, NOW);
    for (int i = 0; i < 4; i++)
        add_worker(*state, (const char *const[]){ "a", "b", "c", "d" }[i], WEIR_STORE_GENERATOR);
    hold(*state, "a", five);
    hold(*state, "b", six);
    hold(*state, "c", four);
    const entry e = { .worker_id = "d", .run = "other" };
    enter(*state, &e, other);
    assert_int_equal(count(*state, five, NOW), 2);
    assert_int_equal(count(*state, six, NOW), 1);
    assert_int_equal(count(*state, four, NOW), 3);
    assert_int_equal(count(*state, other, NOW), 1);
    assert_int_equal(weir_store_count_holders(*state, "00000000", NOW), 0);
}

static void test_what_a_worker_says_before_it_registers_counts_from_then_on(void **state)
{
    const weir_store_version *version = make(*state, 5);
    hold(*state, "a", version);
    assert_int_equal(count(*state, version, NOW), 0);
    add_worker(*state, "b", WEIR_STORE_GENERATOR);
    assert_int_equal(count(*state, version, NOW), 0);
    add_worker(*state, "a", WEIR_STORE_GENERATOR);
    assert_int_equal(count(*state, version, NOW), 1);
}

static void test_a_crashed_replica_counts_as_long_as_its_registration(void **state)
{
    const weir_store_version *version = make(*state, 5);
    add_worker_for(*state, "a", WEIR_STORE_GENERATOR, 30, NOW);
    hold(*state, "a", version);
    assert_int_equal(count(*state, version, NOW + 29999), 1);
    assert_int_equal(count(*state, version, NOW + 30000), 0);
    weir_store_sweep(*state, NOW + 30000); /* before its entry is STALE */
    assert_int_equal(count(*state, version, NOW + 30000), 0);
    add_worker_for(*state, "a", WEIR_STORE_GENERATOR, 30, NOW + 31000);
    assert_int_equal(count(*state, version, NOW + 31000), 1); /* it was cut off */
}

static void test_who_left_in_order_counts_and_who_fell_silent_does_not(void **state)
{
    const weir_store_version *version = make(*state, 5);
    add_worker_for(*state, "left", WEIR_STORE_GENERATOR, 9999, NOW);
    add_worker_for(*state, "silent", WEIR_STORE_GENERATOR, 9999, NOW);
    add_worker_for(*state, "never", WEIR_STORE_GENERATOR, 9999, NOW);
    hold(*state, "left", version);
    hold(*state, "silent", version);
    const entry e = { .worker_id = "never", .status = WEIR_STORE_SOURCE_STALE };
    enter(*state, &e, version);
    assert_int_equal(count(*state, version, NOW), 2);
    leave(*state, "left");
    assert_true(weir_store_get_source(*state, "s", "left")->has_left);
    assert_int_equal(count(*state, version, NOW), 2);
    weir_store_sweep(*state, NOW + 100000);
    assert_int_equal(count(*state, version, NOW + 100000), 1);
    assert_false(weir_store_get_source(*state, "s", "silent")->has_left);
    hold(*state, "left", version); /* it is there again */
    assert_false(weir_store_get_source(*state, "s", "left")->has_left);
}

static void test_who_left_with_a_greater_number_of_before_does_not_count(void **state)
{
    const weir_store_version *before = make(*state, 9);
    add_worker(*state, "a", WEIR_STORE_GENERATOR);
    hold(*state, "a", before);
    leave(*state, "a");
    const weir_store_version *version = make_at(*state, "run", 5, NOW + 1);
    assert_int_equal(count(*state, version, NOW + 1), 0);
    const weir_store_version *later = make_at(*state, "run", 6, NOW + 2);
    add_worker(*state, "b", WEIR_STORE_GENERATOR);
    hold(*state, "b", later);
    leave(*state, "b");
    assert_int_equal(count(*state, version, NOW + 2), 1);
}

static void test_who_was_started_anew_does_not_count_twice(void **state)
{
    const weir_store_version *version = make(*state, 5);
    add_worker(*state, "engine-00000001", WEIR_STORE_GENERATOR);
    hold(*state, "engine-00000001", version);
    leave(*state, "engine-00000001");
    assert_int_equal(count(*state, version, NOW), 1);
    add_worker(*state, "engine-00000002", WEIR_STORE_GENERATOR);
    hold(*state, "engine-00000002", version);
    assert_int_equal(count(*state, version, NOW), 1);
    const entry e = { .worker_id = "engine-00000002", .source_id = "another" };
    enter(*state, &e, version); /* nor does one that says it twice */
    assert_int_equal(count(*state, version, NOW), 1);
}

static void test_holders_of_an_earlier_attempt_do_not_count(void **state)
{
    const weir_store_version *first = make(*state, 5), *second = NULL, *after = NULL;
    add_worker(*state, "t", WEIR_STORE_TRAINER);
    add_worker(*state, "a", WEIR_STORE_GENERATOR);
    hold(*state, "a", first);
    assert_int_equal(weir_store_abort_version(*state, first->uid, "t", "why", NOW, &after),
                     WEIR_OK);
    second = make(*state, 5);
    assert_int_equal(second->attempt, 2);
    assert_int_equal(count(*state, second, NOW), 0);
    hold(*state, "a", second);
    assert_int_equal(count(*state, second, NOW), 1);
}

/* ---- who is waited for -----------------------------------------------------------------------*/

static bool note(void *context, const weir_store_straggler *straggler)
{
    char *text = context;
    size_t used = strlen(text);
    snprintf(text + used, 256 - used, "%s%s rank %u", used != 0 ? ", " : "", straggler->worker_id,
             (unsigned)straggler->rank);
    used = strlen(text);
    if (straggler->has_number)
        snprintf(text + used, 256 - used, " holds %u", (unsigned)straggler->number);
    used = strlen(text);
    if (straggler->reads)
        snprintf(text + used, 256 - used, " reads");
    used = strlen(text);
    if (straggler->ended_at_ms != 0)
        snprintf(text + used, 256 - used, " ended at %u", (unsigned)(straggler->ended_at_ms - NOW));
    return true;
}

static bool note_first(void *context, const weir_store_straggler *straggler)
{
    note(context, straggler);
    return false;
}

static bool count_all(void *context, const weir_store_straggler *straggler)
{
    (void)straggler;
    ++*(size_t *)context;
    return true;
}

static void test_live_generators_that_neither_hold_nor_refused_are_waited_for(void **state)
{
    static const char *const names[] = {
        "t", "holds", "behind", "reads", "refused", "other", "idle"
    };
    const weir_store_version *version, *old = make(*state, 4);
    char text[256] = "";
    for (int i = 0; i < 7; i++)
        add_worker(*state, names[i], i == 0 ? WEIR_STORE_TRAINER : WEIR_STORE_GENERATOR);
    add_worker_for(*state, "gone", WEIR_STORE_GENERATOR, 1, NOW);
    version = make(*state, 5);
    assert_int_equal(put_shard(*state, version, "a", "t"), WEIR_OK);
    assert_int_equal(put_shard(*state, version, "b", "t"), WEIR_OK);
    hold(*state, "holds", version);
    hold(*state, "behind", old);
    hold(*state, "refused", old);
    const entry e = { .worker_id = "other", .run = "other" };
    enter(*state, &e, old);
    weir_store_lease lease;
    assert_int_equal(weir_store_register_lease(*state, version->uid, "reads", 60, NOW, &lease),
                     WEIR_OK);
    const weir_store_word word = { .worker_id = "refused",
                                   .run = "run",
                                   .role = "inference_replica",
                                   .number = 5,
                                   .version_uid = version->uid,
                                   .status = WEIR_ERR_LAYOUT };
    assert_int_equal(weir_store_put_word(*state, "model", &word, NOW), WEIR_OK);
    weir_store_each_straggler(*state, version->uid, NOW + 2000, note, text);
    assert_string_equal(text, "reads rank 0 reads, gone rank 0 ended at 1000, idle rank 0, "
                              "behind rank 3 holds 4");
    weir_store_each_straggler(*state, "00000000", NOW, note, text);
    assert_int_equal(count(*state, version, NOW + 2000), 1);
}

static void test_who_went_since_the_version_was_made_is_remembered(void **state)
{
    static const char *const names[] = { "died", "left", "back", "engine-00000001" };
    const weir_store_version *old = make(*state, 4), *version;
    char text[256] = "";
    add_worker_for(*state, "earlier", WEIR_STORE_GENERATOR, 1, NOW);
    for (int i = 0; i < 4; i++) {
        add_worker_for(*state, names[i], WEIR_STORE_GENERATOR, 5, NOW);
        hold(*state, names[i], old);
    }
    version = make_at(*state, "run", 5, NOW + 3000);
    leave(*state, "left");
    weir_store_sweep(*state, NOW + 6000);
    assert_int_equal(weir_store_count(*state).n_workers, 0);
    add_worker_for(*state, "back", WEIR_STORE_GENERATOR, 60, NOW + 6000);
    add_worker_for(*state, "engine-00000002", WEIR_STORE_GENERATOR, 60, NOW + 6000);
    hold(*state, "engine-00000002", version); /* in the place of the one that died */
    weir_store_each_straggler(*state, version->uid, NOW + 7000, note, text);
    assert_string_equal(text, "died rank 3 holds 4 ended at 5000, back rank 3 holds 4");
}

static void test_of_those_that_went_the_last_64_are_remembered_each_once(void **state)
{
    const weir_store_version *version = make(*state, 5);
    char name[32], text[256] = "";
    for (int i = 0; i < 200; i++) {
        uint64_t now_ms = NOW + (uint64_t)i * 2000;
        snprintf(name, sizeof(name), "w-%d", i % 100);
        add_worker_for(*state, name, WEIR_STORE_GENERATOR, 1, now_ms);
        weir_store_sweep(*state, now_ms + 1000);
    }
    size_t n = 0;
    weir_store_each_straggler(*state, version->uid, NOW + 400000, count_all, &n);
    assert_int_equal(n, 64);
    weir_store_each_straggler(*state, version->uid, NOW + 400000, note_first, text);
    assert_string_equal(text, "w-99 rank 0 ended at 399000");
}

int main(void)
{
#define CASE(name) cmocka_unit_test_setup_teardown(name, open_store, close_store)
    const struct CMUnitTest tests[] = {
        CASE(test_this_version_or_a_later_one_of_its_run_counts),
        CASE(test_what_a_worker_says_before_it_registers_counts_from_then_on),
        CASE(test_a_crashed_replica_counts_as_long_as_its_registration),
        CASE(test_who_left_in_order_counts_and_who_fell_silent_does_not),
        CASE(test_who_left_with_a_greater_number_of_before_does_not_count),
        CASE(test_who_was_started_anew_does_not_count_twice),
        CASE(test_holders_of_an_earlier_attempt_do_not_count),
        CASE(test_live_generators_that_neither_hold_nor_refused_are_waited_for),
        CASE(test_who_went_since_the_version_was_made_is_remembered),
        CASE(test_of_those_that_went_the_last_64_are_remembered_each_once),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
