/* SPDX-License-Identifier: Apache-2.0 */
/* test_store_end.c - trainers that take their shards back: what replicas hold can be had of them as
 * long as it is the newest, and nobody is told of what cannot be read. */
#include "directory/store_fixture.h"

#define MINUTE ((uint64_t)60000)

static int set_up(void **state)
{
    int failed = open_store(state);
    add_worker_for(*state, "t0", WEIR_STORE_TRAINER, 9999, NOW);
    add_worker_for(*state, "t1", WEIR_STORE_TRAINER, 9999, NOW);
    add_worker_for(*state, "r1-0", WEIR_STORE_GENERATOR, 9999, NOW);
    add_worker_for(*state, "r2-0", WEIR_STORE_GENERATOR, 9999, NOW);
    return failed;
}

static void make(weir_store *store, uint64_t number, char uid[9])
{
    weir_store_version request = version_request(NULL);
    const weir_store_version *version = NULL;
    request.run = "run", request.number = number;
    assert_int_equal(weir_store_create_version(store, &request, 7, NOW, &version), WEIR_OK);
    snprintf(uid, 9, "%s", version->uid);
    assert_int_equal(put_shard(store, version, "a", "t0"), WEIR_OK);
}

static void make_ready(weir_store *store, uint64_t number, char uid[9])
{
    const weir_store_version *version = NULL;
    make(store, number, uid);
    assert_int_equal(weir_store_get_version(store, uid, &version), WEIR_OK);
    assert_int_equal(put_shard(store, version, "b", "t1"), WEIR_OK);
}

static int state_of(weir_store *store, const char *uid)
{
    const weir_store_version *version = NULL;
    return weir_store_get_version(store, uid, &version) == WEIR_OK ? (int)version->state : 0;
}

static size_t count_shards(weir_store *store, const char *uid)
{
    const weir_store_shard *shard = NULL;
    size_t n = 0;
    assert_int_equal(weir_store_list_shards(store, uid, &shard), WEIR_OK);
    for (; shard != NULL; shard = shard->next)
        n += weir_store_shard_counts(shard, NOW);
    return n;
}

static void hold_at(weir_store *store, const char *worker, const char *uid, uint64_t number,
                    uint64_t now_ms)
{
    const weir_store_source source = { .source_id = "s",
                                       .worker_id = worker,
                                       .model = "model",
                                       .run = "run",
                                       .role = "inference_replica",
                                       .status = WEIR_STORE_SOURCE_READY,
                                       .has_step = true,
                                       .step = number,
                                       .version_uid = uid,
                                       .endpoint = "h:1",
                                       .host = "near",
                                       .part = "part" };
    assert_int_equal(weir_store_publish_source(store, &source, now_ms), WEIR_OK);
}

static void hold(weir_store *store, const char *worker, const char *uid, uint64_t number)
{
    hold_at(store, worker, uid, number, NOW);
}

static weir_status acquire(weir_store *store, const char *worker, weir_store_grant *out)
{
    const weir_store_wish wish = { .model = "model",
                                   .run = "run",
                                   .worker_id = worker,
                                   .highest = UINT64_MAX,
                                   .part = "part",
                                   .ttl_s = 30 };
    return weir_store_acquire(store, &wish, true, NOW, out);
}

/* Whether somebody reads the trainers still. */
static bool retire(weir_store *store, const char *uid, const char *slot, const char *worker)
{
    bool is_read = false;
    assert_int_equal(weir_store_retire_shard(store, uid, slot, worker, NOW, &is_read), WEIR_OK);
    return is_read;
}

static void retire_both(weir_store *store, const char *uid)
{
    assert_false(retire(store, uid, "a", "t0"));
    assert_false(retire(store, uid, "b", "t1"));
}

/* ---- what is taken back ----------------------------------------------------------------------*/

static void test_without_a_holder_a_version_is_released(void **state)
{
    char uid[9];
    make_ready(*state, 7, uid);
    assert_true(weir_store_can_retire(*state, uid, "a", "t0", NOW));
    retire_both(*state, uid);
    assert_int_equal(state_of(*state, uid), WEIR_STORE_RELEASING);
    assert_int_equal(weir_store_count(*state).n_shards, 0);
    assert_false(weir_store_can_retire(*state, uid, "a", "t0", NOW));
    retire_both(*state, uid); /* again is no harm, nor is what is not there */
    assert_false(retire(*state, "00000000", "a", "t0"));
    assert_false(retire(*state, uid, "z", "t0"));
}

static void test_a_version_that_is_not_ready_is_aborted(void **state)
{
    char uid[9];
    make(*state, 7, uid);
    assert_false(retire(*state, uid, "b", "t0")); /* not its slot */
    assert_int_equal(state_of(*state, uid), WEIR_STORE_STAGING);
    assert_false(retire(*state, uid, "a", "t0"));
    const weir_store_version *version = NULL;
    assert_int_equal(weir_store_get_version(*state, uid, &version), WEIR_OK);
    assert_int_equal(version->state, WEIR_STORE_ABORTED);
    assert_string_equal(version->reason, "its trainer took a shard back before all were in");
    assert_int_equal(weir_store_count(*state).n_shards, 0);
}

static void test_readers_of_the_trainers_are_waited_for(void **state)
{
    char uid[9];
    weir_store_grant grant;
    bool is_deleted;
    make_ready(*state, 7, uid);
    assert_int_equal(acquire(*state, "r1-0", &grant), WEIR_OK);
    char lease[9];
    memcpy(lease, grant.lease.lease_id, sizeof(lease));
    assert_true(retire(*state, uid, "a", "t0"));
    assert_int_equal(state_of(*state, uid), WEIR_STORE_RELEASING);
    assert_int_equal(weir_store_count(*state).n_shards, 2);
    assert_int_equal(count_shards(*state, uid), 1); /* nobody else is told of it */
    assert_false(weir_store_can_retire(*state, uid, "a", "t0", NOW));
    assert_true(weir_store_can_retire(*state, uid, "b", "t1", NOW));
    assert_int_equal(weir_store_delete_lease(*state, uid, lease, "r1-0", NOW, &is_deleted),
                     WEIR_OK);
    assert_true(weir_store_can_retire(*state, uid, "a", "t0", NOW));
    assert_false(retire(*state, uid, "a", "t0"));
    assert_int_equal(weir_store_count(*state).n_shards, 1);
}

static void test_who_reads_a_peer_keeps_no_trainer(void **state)
{
    char uid[9];
    weir_store_grant grant;
    make_ready(*state, 7, uid);
    hold(*state, "r1-0", uid, 7);
    assert_false(retire(*state, uid, "a", "t0"));
    assert_int_equal(acquire(*state, "r2-0", &grant), WEIR_OK);
    assert_string_equal(grant.peer->worker_id, "r1-0");
    assert_null(grant.shards);
    assert_false(retire(*state, uid, "b", "t1"));
    assert_int_equal(state_of(*state, uid), WEIR_STORE_READY);
}

/* ---- what replicas hold ----------------------------------------------------------------------*/

static void test_the_newest_stays_ready_as_long_as_a_replica_has_it(void **state)
{
    char uid[9];
    weir_store_grant grant;
    weir_store_lease lease;
    make_ready(*state, 7, uid);
    hold(*state, "r1-0", uid, 7);
    assert_false(weir_store_is_taken_back(*state, uid));
    retire_both(*state, uid);
    assert_int_equal(state_of(*state, uid), WEIR_STORE_READY);
    assert_true(weir_store_is_taken_back(*state, uid));
    assert_int_equal(count_shards(*state, uid), 0);
    expect_refusal(weir_store_register_lease(*state, uid, "r2-0", 9, NOW, &lease), WEIR_ERR_REFUSED,
                   "no worker that is alive has source_slot_id 'a': no new lease");
    assert_int_equal(acquire(*state, "r2-0", &grant), WEIR_OK);
    assert_string_equal(grant.peer->worker_id, "r1-0");
    assert_int_equal(weir_store_register_lease(*state, uid, "r2-0", 9, NOW, &lease), WEIR_OK);
    weir_store_sweep(*state, NOW + MINUTE);
    assert_int_equal(state_of(*state, uid), WEIR_STORE_READY);
    assert_int_equal(weir_store_update_source(*state, "s", "r1-0", WEIR_STORE_SOURCE_STALE, NOW),
                     WEIR_OK);
    weir_store_sweep(*state, NOW + MINUTE);
    assert_int_equal(state_of(*state, uid), WEIR_STORE_RELEASING);
    assert_int_equal(weir_store_count(*state).n_shards, 0);
}

static void test_it_stays_ready_for_a_replica_that_is_cut_off_for_a_moment(void **state)
{
    char uid[9];
    make_ready(*state, 7, uid);
    hold(*state, "r1-0", uid, 7);
    retire_both(*state, uid);
    weir_store_sweep(*state, NOW + 10 * MINUTE); /* STALE long since */
    assert_int_equal(state_of(*state, uid), WEIR_STORE_READY);
    weir_store_sweep(*state, NOW + 10 * MINUTE + 1);
    assert_int_equal(state_of(*state, uid), WEIR_STORE_RELEASING);
}

static void test_a_later_version_ends_what_only_replicas_have(void **state)
{
    char uid[9], later[9];
    make_ready(*state, 7, uid);
    hold(*state, "r1-0", uid, 7);
    retire_both(*state, uid);
    make(*state, 8, later); /* STAGING: not yet */
    assert_int_equal(state_of(*state, uid), WEIR_STORE_READY);
    make_ready(*state, 8, later);
    assert_int_equal(state_of(*state, uid), WEIR_STORE_RELEASING);
    assert_int_equal(state_of(*state, later), WEIR_STORE_READY);
    assert_int_equal(weir_store_count(*state).n_shards, 2);
}

static void test_earlier_versions_are_released_whoever_holds_them(void **state)
{
    char uid[9], later[9];
    make_ready(*state, 7, uid);
    make_ready(*state, 8, later);
    hold(*state, "r1-0", uid, 7);
    retire_both(*state, uid);
    assert_int_equal(state_of(*state, uid), WEIR_STORE_RELEASING);
    assert_int_equal(state_of(*state, later), WEIR_STORE_READY);
}

static void test_a_version_with_one_slot_left_of_the_trainers_is_read_from_peers(void **state)
{
    char uid[9];
    weir_store_grant grant;
    make_ready(*state, 7, uid);
    hold(*state, "r1-0", uid, 7);
    assert_false(retire(*state, uid, "a", "t0"));
    assert_true(weir_store_is_taken_back(*state, uid));
    weir_store_sweep(*state, NOW + 2 * HOUR); /* a dead holder leaves nothing to wait for */
    assert_int_equal(acquire(*state, "r2-0", &grant), WEIR_IN_PROGRESS);
}

static void test_steady_refits_leave_no_version_ready_but_the_last(void **state)
{
    char uid[9];
    for (uint64_t number = 1; number <= 50; number++) {
        make_ready(*state, number, uid); /* one slot: what was before is taken back already */
        hold(*state, "r1-0", uid, number);
        hold(*state, "r2-0", uid, number);
        retire_both(*state, uid);
        assert_int_equal(state_of(*state, uid), WEIR_STORE_READY);
    }
    assert_int_equal(weir_store_count(*state).n_versions, 50);
    assert_int_equal(weir_store_count(*state).n_shards, 2);
    weir_store_sweep(*state, NOW + HOUR + 1);
    assert_int_equal(weir_store_count(*state).n_versions, 0);
}

/* ---- publishing again ------------------------------------------------------------------------*/

static weir_status publish(weir_store *store, const char *slot, const char *worker,
                           const char *digest, const char *content, const weir_store_version **out)
{
    weir_store_version request = version_request(NULL);
    request.run = "run", request.number = 7;
    const weir_store_shard shard = {
        .slot = slot, .worker_id = worker, .manifest_digest = digest, .content = content
    };
    return weir_store_publish_shard(store, &request, &shard, 7, NOW, out);
}

static void publish_both(weir_store *store, const char *digest, const char *content, char uid[9])
{
    const weir_store_version *version = NULL;
    assert_int_equal(publish(store, "a", "t0", digest, content, &version), WEIR_OK);
    assert_int_equal(publish(store, "b", "t1", digest, content, &version), WEIR_OK);
    snprintf(uid, 9, "%s", version->uid);
}

static void test_the_same_bytes_published_again_can_be_had_of_the_trainers_again(void **state)
{
    char uid[9], again[9];
    weir_store_lease lease;
    publish_both(*state, "sha256:0", "weights", uid);
    hold(*state, "r1-0", uid, 7);
    retire_both(*state, uid);
    publish_both(*state, "sha256:1", "weights", again); /* out of another slot of memory */
    assert_string_equal(uid, again);
    assert_false(weir_store_is_taken_back(*state, uid));
    assert_int_equal(count_shards(*state, uid), 2);
    assert_int_equal(weir_store_count(*state).n_shards, 2);
    assert_int_equal(weir_store_register_lease(*state, uid, "r2-0", 9, NOW, &lease), WEIR_OK);
}

static void test_other_bytes_published_after_that_are_another_attempt(void **state)
{
    char uid[9], again[9];
    const weir_store_version *version = NULL;
    publish_both(*state, "sha256:0", "weights", uid);
    hold(*state, "r1-0", uid, 7);
    retire_both(*state, uid);
    publish_both(*state, "sha256:1", "other weights", again);
    assert_string_not_equal(uid, again);
    assert_int_equal(state_of(*state, again), WEIR_STORE_READY);
    assert_int_equal(weir_store_get_version(*state, uid, &version), WEIR_OK);
    assert_int_equal(version->state, WEIR_STORE_ABORTED);
    assert_string_equal(version->reason, "a took it back, and offers other weights");
}

/* ---- snapshots -------------------------------------------------------------------------------*/

static void test_a_loaded_store_knows_what_was_taken_back(void **state)
{
    const weir_store_options options = { 0 };
    unsigned char *bytes = NULL;
    size_t n_bytes = 0;
    weir_store *store = NULL;
    char uid[9], later[9];
    make_ready(*state, 7, uid);
    hold(*state, "r1-0", uid, 7);
    retire_both(*state, uid);
    assert_int_equal(weir_store_save(*state, &bytes, &n_bytes), WEIR_OK);
    assert_int_equal(weir_store_load(&options, bytes, n_bytes, &store), WEIR_OK);
    weir_free(bytes);
    assert_true(weir_store_is_taken_back(store, uid));
    make_ready(store, 8, later);
    assert_int_equal(state_of(store, uid), WEIR_STORE_RELEASING);
    weir_store_close(store);
}

int main(void)
{
#define CASE(name) cmocka_unit_test_setup_teardown(name, set_up, close_store)
    const struct CMUnitTest tests[] = {
        CASE(test_without_a_holder_a_version_is_released),
        CASE(test_a_version_that_is_not_ready_is_aborted),
        CASE(test_readers_of_the_trainers_are_waited_for),
        CASE(test_who_reads_a_peer_keeps_no_trainer),
        CASE(test_the_newest_stays_ready_as_long_as_a_replica_has_it),
        CASE(test_it_stays_ready_for_a_replica_that_is_cut_off_for_a_moment),
        CASE(test_a_later_version_ends_what_only_replicas_have),
        CASE(test_earlier_versions_are_released_whoever_holds_them),
        CASE(test_a_version_with_one_slot_left_of_the_trainers_is_read_from_peers),
        CASE(test_steady_refits_leave_no_version_ready_but_the_last),
        CASE(test_the_same_bytes_published_again_can_be_had_of_the_trainers_again),
        CASE(test_other_bytes_published_after_that_are_another_attempt),
        CASE(test_a_loaded_store_knows_what_was_taken_back),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
