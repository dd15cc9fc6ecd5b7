/* SPDX-License-Identifier: Apache-2.0 */
/* test_store_publish.c - a version never mixes two states of a model: ranks that are started anew
 * go on with an attempt, or end it and begin the next one; and who holds which attempt. */
#include "directory/store_fixture.h"

static const char *const slots_abc[] = { "a", "b", "c" };
static uint64_t salt = 7;

static int set_up(void **state)
{
    int failed = open_store(state);
    add_worker(*state, "t0", WEIR_STORE_TRAINER);
    add_worker(*state, "t1", WEIR_STORE_TRAINER);
    add_worker_for(*state, "r", WEIR_STORE_GENERATOR, 9999, NOW);
    return failed;
}

static weir_store_version request_of(const char *const *slots, size_t n_slots)
{
    weir_store_version request = version_request(NULL);
    request.run = "run";
    request.slots = slots;
    request.n_slots = n_slots;
    return request;
}

static weir_status try_publish(weir_store *store, const weir_store_version *request,
                               const char *slot, const char *worker, const char *content,
                               uint64_t now_ms, const weir_store_version **out)
{
    const weir_store_shard shard = { .slot = slot,
                                     .worker_id = worker,
                                     .n_tensors = 3,
                                     .n_bytes = 4096,
                                     .manifest_digest = "sha256:00",
                                     .manifest_endpoint = "127.0.0.1:1",
                                     .transport = "ucx",
                                     .content = content };
    return weir_store_publish_shard(store, request, &shard, salt, now_ms, out);
}

static const weir_store_version *publish(weir_store *store, const char *slot, const char *worker,
                                         const char *content)
{
    const weir_store_version request = request_of(slots_ab, 2), *version = NULL;
    assert_int_equal(try_publish(store, &request, slot, worker, content, NOW, &version), WEIR_OK);
    return version;
}

static const weir_store_version *publish_both(weir_store *store)
{
    publish(store, "a", "t0", "old a");
    return publish(store, "b", "t1", "old b");
}

static void expect_attempt(const weir_store_version *version, uint32_t attempt,
                           weir_store_state state)
{
    assert_int_equal(version->attempt, attempt);
    assert_int_equal(version->state, state);
}

static void start_anew(weir_store *store, const char *worker)
{
    add_worker(store, worker, WEIR_STORE_TRAINER);
}

/* As rank 0 of the trainer. */
static void enter(weir_store *store, const char *worker)
{
    const weir_store_source source = { .source_id = "s",
                                       .worker_id = worker,
                                       .model = "model",
                                       .run = "run",
                                       .role = "trainer",
                                       .status = WEIR_STORE_SOURCE_READY };
    assert_int_equal(weir_store_publish_source(store, &source, NOW), WEIR_OK);
}

static weir_store_wish wish_beyond(const char *held_uid)
{
    return (weir_store_wish){ .model = "model",
                              .run = "run",
                              .worker_id = "r",
                              .lowest = 1,
                              .highest = UINT64_MAX,
                              .held_uid = held_uid,
                              .ttl_s = 30 };
}

static const char *uid_given(weir_store *store, const char *held_uid, uint64_t now_ms)
{
    weir_store_grant grant;
    const weir_store_wish wish = wish_beyond(held_uid);
    weir_status status = weir_store_acquire(store, &wish, true, now_ms, &grant);
    assert_true(status == WEIR_OK || status == WEIR_IN_PROGRESS);
    return status == WEIR_OK ? grant.version->uid : "";
}

/* ---- what is published -----------------------------------------------------------------------*/

static void test_ranks_meet_in_one_attempt_and_make_it_ready(void **state)
{
    const weir_store_version *first = publish(*state, "a", "t0", "old a");
    expect_attempt(first, 1, WEIR_STORE_STAGING);
    assert_string_equal(first->idempotency_key, "weir/model/run/1/1");
    assert_ptr_equal(publish(*state, "b", "t1", "old b"), first);
    expect_attempt(first, 1, WEIR_STORE_READY);
    const weir_store_shard *shard = NULL;
    assert_int_equal(weir_store_list_shards(*state, first->uid, &shard), WEIR_OK);
    assert_string_equal(shard->content, "old a");
    assert_ptr_equal(publish(*state, "a", "t0", "old a"), first);
    assert_int_equal(weir_store_count(*state).n_shards, 2);
}

static void test_a_rank_started_anew_with_the_same_bytes_goes_on(void **state)
{
    const weir_store_version *version = publish_both(*state);
    start_anew(*state, "t0-anew");
    assert_ptr_equal(publish(*state, "a", "t0-anew", "old a"), version);
    expect_attempt(version, 1, WEIR_STORE_READY);
    weir_store_grant grant;
    const weir_store_wish wish = wish_beyond("");
    assert_int_equal(weir_store_acquire(*state, &wish, true, NOW, &grant), WEIR_OK);
    assert_string_equal(grant.shards[0]->worker_id, "t0-anew");
    assert_string_equal(grant.shards[1]->worker_id, "t1");
}

static void test_other_bytes_end_the_attempt_and_begin_the_next_which_needs_all(void **state)
{
    const weir_store_version *first = publish_both(*state);
    assert_string_equal(uid_given(*state, "", NOW), first->uid);
    start_anew(*state, "t0-anew");
    const weir_store_version *second = publish(*state, "a", "t0-anew", "new a");
    expect_attempt(first, 1, WEIR_STORE_ABORTED);
    assert_string_equal(first->reason,
                        "a was started anew as t0-anew, with other weights than those of t0");
    expect_attempt(second, 2, WEIR_STORE_STAGING);
    assert_string_equal(uid_given(*state, "", NOW), "");
    start_anew(*state, "t1-anew");
    assert_ptr_equal(publish(*state, "b", "t1-anew", "new b"), second);
    expect_attempt(second, 2, WEIR_STORE_READY);
    assert_string_equal(uid_given(*state, "", NOW), second->uid);
}

static void test_a_slot_remembers_what_it_had_when_the_shard_is_gone(void **state)
{
    const weir_store_version *first = publish_both(*state);
    start_anew(*state, "t0-anew");
    enter(*state, "t0");
    enter(*state, "t0-anew"); /* it says what it is before it publishes */
    weir_store_sweep(*state, NOW);
    assert_int_equal(weir_store_count(*state).n_shards, 1);
    const weir_store_version *second = publish(*state, "a", "t0-anew", "new a");
    expect_attempt(first, 1, WEIR_STORE_ABORTED);
    assert_non_null(strstr(first->reason, "than those of a worker that is gone"));
    expect_attempt(second, 2, WEIR_STORE_STAGING);
}

static void test_an_older_start_ends_nothing_and_joins_nothing(void **state)
{
    const weir_store_version request = request_of(slots_ab, 2), *version = NULL;
    const weir_store_version *first = publish(*state, "a", "t0", "old a");
    start_anew(*state, "t0-anew");
    const weir_store_version *second = publish(*state, "a", "t0-anew", "new a");
    expect_refusal(try_publish(*state, &request, "a", "t0", "old a", NOW, &version),
                   WEIR_ERR_REFUSED, "worker t0 is not the one that was started last as its rank");
    /* t1 computed its bytes beside the old t0. */
    expect_refusal(try_publish(*state, &request, "b", "t1", "old b", NOW, &version),
                   WEIR_ERR_REFUSED,
                   "version 1 was begun anew by ranks that were started after worker t1: start "
                   "this rank anew too, or publish another number");
    expect_attempt(first, 1, WEIR_STORE_ABORTED);
    expect_attempt(second, 2, WEIR_STORE_STAGING);
    /* Nor when the attempt was over before the rank came back. */
    weir_store_version next = request;
    next.number = 2;
    assert_int_equal(try_publish(*state, &next, "a", "t0-anew", "2 a", NOW, &version), WEIR_OK);
    assert_int_equal(
        weir_store_abort_version(*state, version->uid, "t0-anew", "it ends", NOW, &version),
        WEIR_OK);
    start_anew(*state, "t0-third");
    assert_int_equal(try_publish(*state, &next, "a", "t0-third", "2 other", NOW, &version),
                     WEIR_OK);
    expect_attempt(version, 2, WEIR_STORE_STAGING);
    assert_int_equal(try_publish(*state, &next, "b", "t1", "2 b", NOW, &version), WEIR_ERR_REFUSED);
    start_anew(*state, "t1-anew");
    assert_int_equal(try_publish(*state, &next, "b", "t1-anew", "2 b", NOW, &version), WEIR_OK);
    expect_attempt(version, 2, WEIR_STORE_READY);
}

static void test_a_trainer_that_goes_on_may_repeat_a_version_that_it_ended(void **state)
{
    const weir_store_version *version = publish(*state, "a", "t0", "a"), *after;
    assert_int_equal(weir_store_abort_version(*state, version->uid, "t1", "no", NOW, &after),
                     WEIR_OK);
    publish(*state, "a", "t0", "mended a");
    version = publish(*state, "b", "t1", "b");
    expect_attempt(version, 2, WEIR_STORE_READY);
}

static void test_contents_that_are_not_said_are_not_compared(void **state)
{
    const weir_store_version *version = publish(*state, "a", "t0", "");
    start_anew(*state, "other");
    assert_ptr_equal(publish(*state, "a", "other", "a"), version);
    assert_int_equal(put_shard(*state, version, "a", "t1"), WEIR_OK);
    assert_ptr_equal(publish(*state, "b", "t1", ""), version);
    expect_attempt(version, 1, WEIR_STORE_READY);
}

/* ---- other ranks -----------------------------------------------------------------------------*/

static void test_another_number_of_ranks_ends_what_the_older_start_of_one_began(void **state)
{
    const weir_store_version *first = publish_both(*state), *second = NULL;
    const weir_store_version request = request_of(slots_abc, 3);
    start_anew(*state, "t0-anew");
    assert_int_equal(try_publish(*state, &request, "a", "t0-anew", "old a", NOW, &second), WEIR_OK);
    expect_attempt(first, 1, WEIR_STORE_ABORTED);
    assert_string_equal(first->reason,
                        "a was started anew as t0-anew, one of 3 ranks; t0 was one of 2");
    expect_attempt(second, 2, WEIR_STORE_STAGING);
}

static void test_another_number_of_ranks_waits_for_the_others_to_be_gone(void **state)
{
    const weir_store_version *first = publish_both(*state), *second = NULL;
    const weir_store_version request = request_of(slots_abc, 3);
    add_worker_for(*state, "t2", WEIR_STORE_TRAINER, 9999, NOW);
    expect_refusal(try_publish(*state, &request, "c", "t2", "c", NOW, &second), WEIR_ERR_EXISTS,
                   "idempotency_key was already used for a different WeightVersion");
    uint64_t later = NOW + 91000;
    assert_int_equal(try_publish(*state, &request, "c", "t2", "c", later, &second), WEIR_OK);
    expect_attempt(first, 1, WEIR_STORE_ABORTED);
    assert_string_equal(first->reason,
                        "the workers of its 2 ranks are gone, and c, t2, is one of 3");
    expect_attempt(second, 2, WEIR_STORE_STAGING);
}

/* ---- all or nothing --------------------------------------------------------------------------*/

static void expect_unchanged(weir_store *store, const weir_store_version *request, const char *slot,
                             const char *worker, const char *content)
{
    unsigned char *before = NULL, *after = NULL;
    size_t n_before = 0, n_after = 0;
    const weir_store_version *version = NULL;
    assert_int_equal(weir_store_save(store, &before, &n_before), WEIR_OK);
    assert_int_not_equal(try_publish(store, request, slot, worker, content, NOW, &version),
                         WEIR_OK);
    assert_int_equal(weir_store_save(store, &after, &n_after), WEIR_OK);
    assert_int_equal(n_before, n_after);
    assert_memory_equal(before, after, n_before);
    weir_free(before);
    weir_free(after);
}

static void test_what_is_refused_changes_nothing(void **state)
{
    const weir_store_version good = request_of(slots_ab, 2);
    weir_store_version bad = good;
    char long_name[300];
    memset(long_name, 'x', sizeof(long_name));
    long_name[sizeof(long_name) - 1] = '\0';
    publish_both(*state);
    start_anew(*state, "t0-anew");
    expect_unchanged(*state, &good, "a", "nobody", "new a");
    expect_unchanged(*state, &good, "z", "t0-anew", "new a");
    expect_unchanged(*state, &good, "a", "t0-anew", long_name);
    expect_unchanged(*state, &good, "a", "t0", "new a");
    bad.run = "";
    expect_unchanged(*state, &bad, "a", "t0-anew", "new a");
    bad = good, bad.has_number = false;
    expect_unchanged(*state, &bad, "a", "t0-anew", "new a");
    bad = good, bad.payload = WEIR_STORE_XOR_DELTA;
    expect_unchanged(*state, &bad, "a", "t0-anew", "new a");
    bad = good, bad.model = "another";
    expect_unchanged(*state, &bad, "a", "t0-anew", "new a");
    bad = good, bad.n_slots = 0;
    expect_unchanged(*state, &bad, "a", "t0-anew", "new a");
}

/* The new attempt is made before its shard is refused. */
static void test_one_that_is_not_its_rank_any_more_ends_nothing(void **state)
{
    const weir_store_version request = request_of(slots_ab, 2);
    const weir_store_version *first = publish_both(*state);
    start_anew(*state, "t0-anew");
    start_anew(*state, "t0-third");
    enter(*state, "t0-anew");
    enter(*state, "t0-third");
    expect_unchanged(*state, &request, "a", "t0-anew", "new a");
    assert_non_null(strstr(weir_last_error(), "is not the one that was started last"));
    expect_attempt(first, 1, WEIR_STORE_READY);
    weir_store_version fresh = request;
    fresh.run = "another run";
    expect_unchanged(*state, &fresh, "a", "t0-anew", "new a");
}

/* ---- who holds an attempt --------------------------------------------------------------------*/

static void test_who_holds_an_attempt_is_given_a_later_one_alone(void **state)
{
    char held[16];
    const weir_store_version *first = publish_both(*state);
    snprintf(held, sizeof(held), "%s", first->uid);
    assert_string_equal(uid_given(*state, held, NOW), "");
    start_anew(*state, "t0-anew");
    start_anew(*state, "t1-anew");
    publish(*state, "a", "t0-anew", "new a");
    weir_store_grant grant;
    weir_store_wish wish = wish_beyond(held);
    assert_int_equal(weir_store_acquire(*state, &wish, true, NOW, &grant), WEIR_IN_PROGRESS);
    assert_int_equal(grant.awaited->attempt, 2);
    assert_int_equal(grant.n_missing, 1);
    const weir_store_version *second = publish(*state, "b", "t1-anew", "new b");
    assert_string_equal(uid_given(*state, held, NOW), second->uid);
    snprintf(held, sizeof(held), "%s", second->uid);
    assert_string_equal(uid_given(*state, held, NOW), "");
    wish = wish_beyond(held); /* nor is the attempt before any news */
    assert_int_equal(weir_store_acquire(*state, &wish, true, NOW, &grant), WEIR_IN_PROGRESS);
    assert_null(grant.awaited);
}

static void test_of_a_held_version_that_is_not_known_any_other_is_news(void **state)
{
    const weir_store_version *version = publish_both(*state);
    assert_string_equal(uid_given(*state, "01234567", NOW), version->uid);
}

/* ---- when the records are lost ---------------------------------------------------------------*/

/* What a rank remembers of the version that it published. */
typedef struct memory {
    char uid[9];
    uint32_t attempt;
    uint64_t workers[2], contents[2];
} memory;

static memory recall(weir_store *store, const weir_store_version *version)
{
    memory known = { .attempt = version->attempt };
    memcpy(known.uid, version->uid, sizeof(known.uid));
    assert_int_equal(weir_store_recall(store, version->uid, known.workers, known.contents),
                     WEIR_OK);
    return known;
}

static void lose(void **state)
{
    close_store(state);
    assert_int_equal(open_store(state), 0);
    salt++; /* it gives other uids */
}

static weir_status try_again(weir_store *store, const memory *known, const char *slot,
                             const char *worker, const char *content,
                             const weir_store_version **out)
{
    weir_store_version request = request_of(slots_ab, 2);
    request.uid = known->uid;
    request.attempt = known->attempt;
    request.slot_workers = known->workers;
    request.slot_contents = known->contents;
    start_anew(store, worker);
    return try_publish(store, &request, slot, worker, content, NOW, out);
}

static const weir_store_version *publish_again(weir_store *store, const memory *known,
                                               const char *slot, const char *worker,
                                               const char *content)
{
    const weir_store_version *version = NULL;
    assert_int_equal(try_again(store, known, slot, worker, content, &version), WEIR_OK);
    return version;
}

static void test_who_was_where_is_told_of_this_version_or_the_one_before(void **state)
{
    memory before = recall(*state, publish_both(*state));
    assert_true(before.workers[0] != 0 && before.workers[1] != 0 && before.contents[1] != 0);
    weir_store_version request = request_of(slots_ab, 2);
    const weir_store_version *version = NULL;
    request.number = 2;
    assert_int_equal(try_publish(*state, &request, "a", "t0", "a of 2", NOW, &version), WEIR_OK);
    memory known = recall(*state, version);
    assert_int_equal(known.workers[1], before.workers[1]);
    assert_int_equal(known.contents[1], 0);
    assert_true(known.contents[0] != 0 && known.contents[0] != before.contents[0]);
}

static void test_all_ranks_bring_a_lost_version_back_as_it_was(void **state)
{
    memory known = recall(*state, publish_both(*state));
    known.attempt = 3; /* of those before nobody knows any more */
    lose(state);
    expect_attempt(publish_again(*state, &known, "b", "t1", "old b"), 3, WEIR_STORE_STAGING);
    const weir_store_version *version = publish_again(*state, &known, "a", "t0", "old a");
    expect_attempt(version, 3, WEIR_STORE_READY);
    assert_string_equal(version->uid, known.uid);
}

static void test_a_lost_version_takes_nobody_of_whom_nothing_is_known(void **state)
{
    memory known = recall(*state, publish_both(*state));
    for (int knows_more = 1; knows_more >= 0; knows_more--) {
        lose(state);
        if (!knows_more)
            known.workers[1] = known.contents[1] = 0;
        start_anew(*state, "t1-anew"); /* whichever of both is there first */
        const weir_store_version *first = publish_again(*state, &known, "a", "t0", "old a");
        expect_attempt(publish(*state, "b", "t1-anew", "new b"), 2, WEIR_STORE_STAGING);
        expect_attempt(first, 1, WEIR_STORE_ABORTED);
        assert_string_equal(first->reason,
                            "the directory was restarted, and b was started anew as t1-anew: "
                            "whether its weights are those of the others is not known");
        const weir_store_version request = request_of(slots_ab, 2), *version = NULL;
        expect_refusal(try_publish(*state, &request, "a", "t0", "old a", NOW, &version),
                       WEIR_ERR_REFUSED,
                       "version 1 was begun anew by ranks that were started after worker t0: start "
                       "this rank anew too, or publish another number");
        assert_int_equal(try_again(*state, &known, "a", "t0", "old a", &version), WEIR_ERR_REFUSED);
        start_anew(*state, "t0-anew");
        expect_attempt(publish(*state, "a", "t0-anew", "new a"), 2, WEIR_STORE_READY);
    }
}

static void test_a_lost_version_takes_the_same_worker_or_the_same_content(void **state)
{
    memory known = recall(*state, publish_both(*state));
    lose(state);
    start_anew(*state, "t1-anew");
    publish_again(*state, &known, "a", "t0", "old a");
    const weir_store_version *version = publish(*state, "b", "t1-anew", "old b");
    expect_attempt(version, 1, WEIR_STORE_READY);
    lose(state);
    known.contents[1] = 0; /* it had published the version before alone */
    start_anew(*state, "t1");
    publish_again(*state, &known, "a", "t0", "old a");
    version = publish(*state, "b", "t1", "its first");
    expect_attempt(version, 1, WEIR_STORE_READY);
    assert_string_equal(version->uid, known.uid);
}

static void test_who_was_first_in_the_lost_records_keeps_a_lost_version_out(void **state)
{
    memory known = recall(*state, publish_both(*state));
    const weir_store_version *version = NULL;
    lose(state);
    start_anew(*state, "t1-anew");
    expect_attempt(publish(*state, "b", "t1-anew", "new b"), 1, WEIR_STORE_STAGING);
    expect_refusal(try_again(*state, &known, "a", "t0", "old a", &version), WEIR_ERR_REFUSED,
                   "the directory was restarted, and version 1 went on as attempt 1 without what "
                   "worker t0 had published");
    lose(state);
    start_anew(*state, "t1"); /* but not one of the same start */
    known.contents[1] = 0;
    publish(*state, "b", "t1", "its first");
    expect_attempt(publish_again(*state, &known, "a", "t0", "old a"), 1, WEIR_STORE_READY);
}

static void test_of_two_lost_attempts_the_later_one_goes_on(void **state)
{
    memory known = recall(*state, publish_both(*state)), later = known;
    const weir_store_version *version = NULL;
    memcpy(later.uid, "01234567", sizeof(later.uid));
    later.attempt = 2;
    lose(state);
    const weir_store_version *first = publish_again(*state, &known, "a", "t0", "old a");
    expect_attempt(publish_again(*state, &later, "b", "t1-anew", "new b"), 2, WEIR_STORE_STAGING);
    expect_attempt(first, 1, WEIR_STORE_ABORTED);
    assert_string_equal(first->reason,
                        "the directory was restarted, and ranks go on with attempt 2");
    assert_int_equal(try_again(*state, &known, "a", "t0", "old a", &version), WEIR_ERR_REFUSED);
    memcpy(known.uid, "76543210", sizeof(known.uid)); /* nor one that is not known at all */
    assert_int_equal(try_again(*state, &known, "a", "t0", "old a", &version), WEIR_ERR_REFUSED);
}

static void test_a_copy_of_the_store_knows_what_was_lost(void **state)
{
    unsigned char *bytes = NULL;
    size_t n_bytes = 0;
    weir_store *copy = NULL;
    const weir_store_options options = { 0 };
    memory known = recall(*state, publish_both(*state));
    lose(state);
    publish_again(*state, &known, "a", "t0", "old a");
    assert_int_equal(weir_store_save(*state, &bytes, &n_bytes), WEIR_OK);
    assert_int_equal(weir_store_load(&options, bytes, n_bytes, &copy), WEIR_OK);
    weir_free(bytes);
    memory copied = known;
    assert_int_equal(weir_store_recall(copy, known.uid, copied.workers, copied.contents), WEIR_OK);
    assert_memory_equal(copied.workers, known.workers, sizeof(known.workers));
    assert_memory_equal(copied.contents, known.contents, sizeof(known.contents));
    start_anew(copy, "t1-anew");
    expect_attempt(publish(copy, "b", "t1-anew", "new b"), 2, WEIR_STORE_STAGING);
    weir_store_close(copy);
}

/* ---- across directories ----------------------------------------------------------------------*/

static void test_a_copy_of_the_store_knows_the_same_past(void **state)
{
    unsigned char *bytes = NULL;
    size_t n_bytes = 0;
    weir_store *copy = NULL;
    const weir_store_options options = { 0 };
    const weir_store_version request = request_of(slots_ab, 2), *version = NULL;
    publish_both(*state);
    start_anew(*state, "t0-anew");
    publish(*state, "a", "t0-anew", "new a");
    assert_int_equal(weir_store_save(*state, &bytes, &n_bytes), WEIR_OK);
    assert_int_equal(weir_store_load(&options, bytes, n_bytes, &copy), WEIR_OK);
    weir_free(bytes);
    assert_int_equal(try_publish(copy, &request, "b", "t1", "old b", NOW, &version),
                     WEIR_ERR_REFUSED);
    start_anew(copy, "t0-third");
    assert_int_equal(try_publish(copy, &request, "a", "t0-third", "new a", NOW, &version), WEIR_OK);
    assert_int_equal(version->attempt, 2);
    start_anew(copy, "t0-fourth");
    assert_int_equal(try_publish(copy, &request, "a", "t0-fourth", "newest a", NOW, &version),
                     WEIR_OK);
    assert_int_equal(version->attempt, 3);
    weir_store_close(copy);
}

#define CASE(name) cmocka_unit_test_setup_teardown(name, set_up, close_store)

int main(void)
{
    const struct CMUnitTest tests[] = {
        CASE(test_ranks_meet_in_one_attempt_and_make_it_ready),
        CASE(test_a_rank_started_anew_with_the_same_bytes_goes_on),
        CASE(test_other_bytes_end_the_attempt_and_begin_the_next_which_needs_all),
        CASE(test_a_slot_remembers_what_it_had_when_the_shard_is_gone),
        CASE(test_an_older_start_ends_nothing_and_joins_nothing),
        CASE(test_a_trainer_that_goes_on_may_repeat_a_version_that_it_ended),
        CASE(test_contents_that_are_not_said_are_not_compared),
        CASE(test_another_number_of_ranks_ends_what_the_older_start_of_one_began),
        CASE(test_another_number_of_ranks_waits_for_the_others_to_be_gone),
        CASE(test_what_is_refused_changes_nothing),
        CASE(test_one_that_is_not_its_rank_any_more_ends_nothing),
        CASE(test_who_holds_an_attempt_is_given_a_later_one_alone),
        CASE(test_of_a_held_version_that_is_not_known_any_other_is_news),
        CASE(test_who_was_where_is_told_of_this_version_or_the_one_before),
        CASE(test_all_ranks_bring_a_lost_version_back_as_it_was),
        CASE(test_a_lost_version_takes_nobody_of_whom_nothing_is_known),
        CASE(test_a_lost_version_takes_the_same_worker_or_the_same_content),
        CASE(test_who_was_first_in_the_lost_records_keeps_a_lost_version_out),
        CASE(test_of_two_lost_attempts_the_later_one_goes_on),
        CASE(test_a_copy_of_the_store_knows_what_was_lost),
        CASE(test_a_copy_of_the_store_knows_the_same_past),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
