/* SPDX-License-Identifier: Apache-2.0 */
/* test_store_acquire.c - a replica's wish: versions of Weir's own, restarts, aborts, peers. */
#include "directory/store_fixture.h"

static int set_up(void **state)
{
    int failed = open_store(state);
    add_worker(*state, "t0", WEIR_STORE_TRAINER);
    add_worker(*state, "t1", WEIR_STORE_TRAINER);
    add_worker_for(*state, "r1-0", WEIR_STORE_GENERATOR, 9999, NOW);
    add_worker_for(*state, "r2-0", WEIR_STORE_GENERATOR, 9999, NOW);
    add_worker_for(*state, "r3-0", WEIR_STORE_GENERATOR, 9999, NOW);
    return failed;
}

static const weir_store_version *make(weir_store *store, uint64_t number)
{
    weir_store_version request = version_request(NULL);
    const weir_store_version *version = NULL;
    request.run = "run", request.number = number;
    assert_int_equal(weir_store_create_version(store, &request, 7, NOW, &version), WEIR_OK);
    return version;
}

static const weir_store_version *make_ready(weir_store *store, uint64_t number)
{
    const weir_store_version *version = make(store, number);
    assert_int_equal(put_shard(store, version, "a", "t0"), WEIR_OK);
    assert_int_equal(put_shard(store, version, "b", "t1"), WEIR_OK);
    return version;
}

static weir_store_wish wish_of(const char *worker, uint64_t lowest)
{
    return (weir_store_wish){ .model = "model",
                              .run = "run",
                              .worker_id = worker,
                              .lowest = lowest,
                              .highest = UINT64_MAX,
                              .host = "near",
                              .part = "part",
                              .ttl_s = 30 };
}

static weir_status acquire(weir_store *store, const char *worker, uint64_t lowest, uint64_t now_ms,
                           weir_store_grant *out)
{
    weir_store_wish wish = wish_of(worker, lowest);
    return weir_store_acquire(store, &wish, true, now_ms, out);
}

static void enter(weir_store *store, const char *worker, const char *role, uint32_t rank,
                  const weir_store_version *version, const char *host)
{
    weir_store_source source = { .source_id = "s",
                                 .worker_id = worker,
                                 .model = "model",
                                 .run = "run",
                                 .role = role,
                                 .rank = rank,
                                 .status = WEIR_STORE_SOURCE_READY,
                                 .version_uid = version != NULL ? version->uid : "",
                                 .endpoint = "h:1",
                                 .host = host,
                                 .part = "part" };
    assert_int_equal(weir_store_publish_source(store, &source, NOW), WEIR_OK);
}

static void hold(weir_store *store, const char *worker, const weir_store_version *version,
                 const char *host)
{
    enter(store, worker, "inference_replica", 0, version, host);
}

/* ---- versions of Weir's own ------------------------------------------------------------------*/

static void test_ranks_meet_by_run_and_number_without_a_key(void **state)
{
    const weir_store_version *version = make(*state, 5);
    assert_string_equal(version->idempotency_key, "weir/model/run/5/1");
    assert_int_equal(version->attempt, 1);
    assert_ptr_equal(make(*state, 5), version);
    assert_ptr_not_equal(make(*state, 6), version);
    /* A rank that comes through ModelExpress' call meets it too, whoever is first. */
    weir_store_version request = version_request("weir/model/run/5/1");
    const weir_store_version *same = NULL;
    request.number = 5;
    assert_int_equal(weir_store_create_version(*state, &request, 7, NOW, &same), WEIR_OK);
    assert_ptr_equal(same, version);
    request = version_request("weir/model/a/run/9/1");
    request.number = 9;
    assert_int_equal(weir_store_create_version(*state, &request, 7, NOW, &same), WEIR_OK);
    assert_string_equal(same->run, "a/run");
    request = version_request(NULL);
    request.run = "a/run", request.number = 9;
    assert_int_equal(weir_store_create_version(*state, &request, 7, NOW, &version), WEIR_OK);
    assert_ptr_equal(same, version);
}

static void test_a_number_that_is_over_is_attempted_anew(void **state)
{
    const weir_store_version *version = make_ready(*state, 5), *after;
    assert_int_equal(release(*state, version), WEIR_OK);
    version = make(*state, 5);
    assert_int_equal(version->attempt, 2);
    assert_int_equal(weir_store_abort_version(*state, version->uid, "t0", "no", NOW, &after),
                     WEIR_OK);
    assert_int_equal(make(*state, 5)->attempt, 3);
    assert_int_equal(make(*state, 5)->attempt, 3);
}

static void test_the_first_trace_id_said_stays(void **state)
{
    const weir_store_version *version = make(*state, 5), *same = NULL;
    assert_string_equal(version->trace_id, "");
    weir_store_version request = version_request(NULL);
    request.run = "run", request.number = 5;
    for (int i = 0; i < 2; i++) {
        request.trace_id = i == 0 ? "00000000000000000000000000000001" : "2";
        assert_int_equal(weir_store_create_version(*state, &request, 7, NOW, &same), WEIR_OK);
        assert_string_equal(version->trace_id, "00000000000000000000000000000001");
    }
    request.trace_id = "000000000000000000000000000000012";
    expect_refusal(weir_store_create_version(*state, &request, 7, NOW, &same), WEIR_ERR_INVALID,
                   "trace_id has more than 32 bytes");
}

/* ---- what is given ---------------------------------------------------------------------------*/

static void test_the_newest_that_can_be_read_is_given(void **state)
{
    weir_store_grant grant;
    assert_int_equal(acquire(*state, "r1-0", 0, NOW, &grant), WEIR_IN_PROGRESS);
    assert_false(grant.has_trainer);
    const weir_store_version *first = make_ready(*state, 1), *second = make(*state, 2);
    assert_int_equal(put_shard(*state, second, "b", "t1"), WEIR_OK);
    assert_int_equal(acquire(*state, "r1-0", 0, NOW, &grant), WEIR_OK);
    assert_ptr_equal(grant.version, first); /* one that is on its way does not keep it back */
    assert_string_equal(grant.shards[0]->slot, "a");
    assert_string_equal(grant.shards[1]->worker_id, "t1");
    assert_int_equal(grant.n_shards, 2);
    assert_int_equal(grant.lease.expires_ms, NOW + 30000);
    assert_int_equal(acquire(*state, "r1-0", 2, NOW, &grant), WEIR_IN_PROGRESS);
    assert_true(grant.has_trainer);
    assert_int_equal(grant.newest, 2);
    assert_ptr_equal(grant.awaited, second);
    assert_int_equal(grant.n_missing, 1);
    assert_string_equal(grant.missing[0], "a");
    assert_int_equal(put_shard(*state, second, "a", "t0"), WEIR_OK);
    assert_int_equal(acquire(*state, "r1-0", 0, NOW, &grant), WEIR_OK);
    assert_ptr_equal(grant.version, second);
    weir_store_wish wish = wish_of("r1-0", 0);
    wish.but_not_uid = second->uid;
    assert_int_equal(weir_store_acquire(*state, &wish, true, NOW, &grant), WEIR_OK);
    assert_ptr_equal(grant.version, first);
    wish.but_not_uid = NULL, wish.highest = 1;
    assert_int_equal(weir_store_acquire(*state, &wish, true, NOW, &grant), WEIR_OK);
    assert_ptr_equal(grant.version, first);
}

static void test_a_wish_is_checked(void **state)
{
    weir_store_grant grant;
    weir_store_wish wish = wish_of("nobody", 0);
    expect_refusal(weir_store_acquire(*state, &wish, true, NOW, &grant), WEIR_ERR_REFUSED,
                   "worker registration is missing or expired");
    wish.worker_id = "t0";
    expect_refusal(weir_store_acquire(*state, &wish, true, NOW, &grant), WEIR_ERR_REFUSED,
                   "only a GENERATOR worker can lease a weight version");
    wish.model = "other";
    expect_refusal(weir_store_acquire(*state, &wish, true, NOW, &grant), WEIR_ERR_REFUSED,
                   "worker and weight version model_name differ");
    wish.ttl_s = 0;
    expect_refusal(weir_store_acquire(*state, &wish, true, NOW, &grant), WEIR_ERR_INVALID,
                   "ttl_seconds must be greater than zero");
}

static void test_asking_without_taking_changes_nothing(void **state)
{
    weir_store_grant grant;
    const weir_store_version *version = make_ready(*state, 1);
    uint64_t revision = weir_store_revision(*state, NULL);
    weir_store_wish wish = wish_of("r1-0", 0);
    assert_int_equal(weir_store_acquire(*state, &wish, false, NOW, &grant), WEIR_OK);
    assert_ptr_equal(grant.version, version);
    assert_int_equal(weir_store_count(*state).n_leases, 0);
    assert_int_equal(weir_store_revision(*state, NULL), revision);
}

/* H9: what step N left behind does not satisfy a wait for N + 1. */
static void test_h9_an_old_ready_satisfies_no_wait_for_the_next(void **state)
{
    weir_store_grant grant;
    make_ready(*state, 7);
    assert_int_equal(acquire(*state, "r1-0", 8, NOW, &grant), WEIR_IN_PROGRESS);
    assert_int_equal(grant.newest, 7);
    assert_null(grant.awaited);
    make(*state, 8);
    assert_int_equal(acquire(*state, "r1-0", 8, NOW, &grant), WEIR_IN_PROGRESS);
    assert_int_equal(grant.awaited->number, 8);
    assert_int_equal(grant.n_missing, 2);
}

/* H10: not how many have come, but who. */
static void test_h10_the_exact_set_of_ranks_is_waited_for(void **state)
{
    static const char *const four[] = { "0", "1", "2", "3" };
    weir_store_version request = version_request(NULL);
    const weir_store_version *version = NULL;
    weir_store_grant grant;
    request.run = "run", request.slots = four, request.n_slots = 4;
    assert_int_equal(weir_store_create_version(*state, &request, 7, NOW, &version), WEIR_OK);
    assert_int_equal(put_shard(*state, version, "0", "t0"), WEIR_OK);
    assert_int_equal(put_shard(*state, version, "1", "t0"), WEIR_OK);
    assert_int_equal(put_shard(*state, version, "1", "t1"), WEIR_OK);
    assert_int_equal(put_shard(*state, version, "3", "t1"), WEIR_OK);
    assert_int_equal(version->n_covered, 3);
    assert_int_equal(acquire(*state, "r1-0", 0, NOW, &grant), WEIR_IN_PROGRESS);
    assert_int_equal(grant.n_missing, 1);
    assert_string_equal(grant.missing[0], "2");
}

static void test_ready_is_not_given_when_a_publisher_is_gone(void **state)
{
    weir_store_grant grant;
    const weir_store_version *version = make_ready(*state, 1);
    add_worker_for(*state, "t1", WEIR_STORE_TRAINER, 900, NOW);
    assert_int_equal(acquire(*state, "r1-0", 1, NOW + 90000, &grant), WEIR_IN_PROGRESS);
    assert_ptr_equal(grant.awaited, version);
    assert_int_equal(grant.n_missing, 1);
    assert_string_equal(grant.missing[0], "a");
    weir_store_sweep(*state, NOW + 90000);
    assert_int_equal(version->n_covered, 2); /* t0 may come back, and would have its shard */
    assert_int_equal(version->state, WEIR_STORE_READY);
    add_worker_for(*state, "t0-again", WEIR_STORE_TRAINER, 90, NOW + 90000);
    weir_store_shard shard = shard_of(version, "a", "t0-again");
    assert_int_equal(weir_store_create_shard(*state, &shard, NOW + 90000, &version), WEIR_OK);
    assert_int_equal(acquire(*state, "r1-0", 1, NOW + 90000, &grant), WEIR_OK);
    assert_string_equal(grant.shards[0]->worker_id, "t0-again");
}

/* ---- restarts --------------------------------------------------------------------------------*/

static void test_a_restarted_worker_supersedes_its_old_self(void **state)
{
    weir_store_grant grant;
    make_ready(*state, 1);
    enter(*state, "t0", "trainer", 0, NULL, "h");
    enter(*state, "t1", "trainer", 1, NULL, "h");
    add_worker(*state, "t0-again", WEIR_STORE_TRAINER);
    enter(*state, "t0-again", "trainer", 0, NULL, "h");
    assert_int_equal(weir_store_get_source(*state, "s", "t0")->status, WEIR_STORE_SOURCE_STALE);
    assert_int_equal(weir_store_get_source(*state, "s", "t1")->status, WEIR_STORE_SOURCE_READY);
    /* The record is READY still, and can satisfy no wish. */
    assert_int_equal(acquire(*state, "r1-0", 1, NOW, &grant), WEIR_IN_PROGRESS);
    assert_string_equal(grant.missing[0], "a");
    assert_int_equal(put_shard(*state, grant.awaited, "a", "t0-again"), WEIR_OK);
    assert_int_equal(acquire(*state, "r1-0", 1, NOW, &grant), WEIR_OK);
    assert_string_equal(grant.shards[0]->worker_id, "t0-again");
    /* What the old one says counts for nothing. */
    assert_int_equal(weir_store_update_source(*state, "s", "t0", WEIR_STORE_SOURCE_READY, NOW),
                     WEIR_OK);
    enter(*state, "t0", "trainer", 0, make(*state, 2), "h");
    assert_int_equal(weir_store_get_source(*state, "s", "t0")->status, WEIR_STORE_SOURCE_STALE);
    expect_refusal(put_shard(*state, make(*state, 2), "a", "t0"), WEIR_ERR_REFUSED,
                   "worker t0 is not the one that was started last as its rank");
}

static void test_a_halted_worker_comes_back_as_old_as_it_was(void **state)
{
    enter(*state, "t0", "trainer", 0, NULL, "h");
    weir_store_sweep(*state, NOW + 95000); /* t0 is forgotten, not what it said */
    add_worker_for(*state, "t0-again", WEIR_STORE_TRAINER, 90, NOW + 95000);
    enter(*state, "t0-again", "trainer", 0, NULL, "h");
    add_worker_for(*state, "t0", WEIR_STORE_TRAINER, 90, NOW + 95000);
    enter(*state, "t0", "trainer", 0, NULL, "h");
    assert_int_equal(weir_store_get_source(*state, "s", "t0")->status, WEIR_STORE_SOURCE_STALE);
    assert_int_equal(weir_store_get_source(*state, "s", "t0-again")->status,
                     WEIR_STORE_SOURCE_READY);
}

static void test_replicas_of_the_same_ranks_do_not_compete(void **state)
{
    hold(*state, "r1-0", NULL, "h");
    hold(*state, "r2-0", NULL, "h");
    assert_int_equal(weir_store_get_source(*state, "s", "r1-0")->status, WEIR_STORE_SOURCE_READY);
    add_worker(*state, "r-00ab12cd", WEIR_STORE_GENERATOR);
    add_worker(*state, "r-ef34ab56", WEIR_STORE_GENERATOR); /* random: the same, started anew */
    hold(*state, "r-00ab12cd", NULL, "h");
    hold(*state, "r-ef34ab56", NULL, "h");
    assert_int_equal(weir_store_get_source(*state, "s", "r-00ab12cd")->status,
                     WEIR_STORE_SOURCE_STALE);
    assert_int_equal(weir_store_get_source(*state, "s", "r1-0")->status, WEIR_STORE_SOURCE_READY);
}

/* ---- aborts ----------------------------------------------------------------------------------*/

static weir_status abort_by(weir_store *store, const weir_store_version *version,
                            const char *worker, const char *reason)
{
    const weir_store_version *after;
    return weir_store_abort_version(store, version->uid, worker, reason, NOW, &after);
}

/* Two of them would be told in turn for ever. */
static void test_an_attempt_before_the_one_that_is_known_is_no_news(void **state)
{
    weir_store_grant grant;
    weir_store_wish wish = wish_of("r1-0", 0);
    const weir_store_version *first = make(*state, 1);
    assert_int_equal(abort_by(*state, first, "t0", "NaN"), WEIR_OK);
    const weir_store_version *second = make(*state, 1);
    assert_string_not_equal(second->uid, first->uid);
    assert_int_equal(abort_by(*state, second, "t1", "NaN too"), WEIR_OK);
    wish.but_not_uid = first->uid;
    assert_int_equal(weir_store_acquire(*state, &wish, true, NOW, &grant), WEIR_IN_PROGRESS);
    assert_ptr_equal(grant.awaited, second);
    wish.but_not_uid = second->uid;
    assert_int_equal(weir_store_acquire(*state, &wish, true, NOW, &grant), WEIR_IN_PROGRESS);
    assert_null(grant.awaited);
}

static void test_an_aborted_version_is_over_for_good(void **state)
{
    weir_store_grant grant;
    weir_store_lease lease;
    bool deleted = false;
    const weir_store_version *version = make_ready(*state, 1), *after;
    assert_int_equal(acquire(*state, "r1-0", 1, NOW, &grant), WEIR_OK);
    assert_int_equal(abort_by(*state, version, "r1-0", "digest differs"), WEIR_OK);
    assert_int_equal(version->state, WEIR_STORE_ABORTED);
    assert_int_equal(abort_by(*state, version, "r2-0", "again"), WEIR_OK);
    assert_string_equal(version->reason, "digest differs");
    expect_refusal(put_shard(*state, version, "a", "t1"), WEIR_ERR_REFUSED,
                   "weight version does not accept shard publication: it was aborted: "
                   "digest differs");
    expect_refusal(weir_store_register_lease(*state, version->uid, "r2-0", 9, NOW, &lease),
                   WEIR_ERR_REFUSED,
                   "weight version is not READY: no new lease: it was aborted: digest differs");
    expect_refusal(weir_store_delete_version(*state, version->uid, NOW, &after), WEIR_ERR_REFUSED,
                   "only a READY weight version can be deleted");
    assert_int_equal(acquire(*state, "r1-0", 1, NOW, &grant), WEIR_IN_PROGRESS);
    assert_ptr_equal(grant.awaited, version);
    assert_int_equal(grant.n_missing, 0);
    assert_true(weir_store_get_lease(*state, version->uid, "r1-0", NOW, &lease));
    assert_int_equal(
        weir_store_delete_lease(*state, version->uid, lease.lease_id, "r1-0", NOW, &deleted),
        WEIR_OK);
    assert_int_equal(weir_store_delete_shard(*state, version->uid, "a", "t0", NOW, &deleted),
                     WEIR_OK);
    assert_true(deleted);
}

/* Its bytes are the trainer's again when nobody is in the midst of them. */
static void test_who_reads_a_version_that_is_aborted_may_be_waited_for(void **state)
{
    weir_store_grant grant;
    weir_store_lease lease;
    bool is_read = false, deleted = false;
    const weir_store_version *version = make_ready(*state, 1);
    assert_int_equal(acquire(*state, "r1-0", 1, NOW, &grant), WEIR_OK);
    assert_int_equal(abort_by(*state, version, "t0", "given up"), WEIR_OK);
    assert_int_equal(weir_store_retire_shard(*state, version->uid, "a", "t0", NOW, &is_read),
                     WEIR_OK);
    assert_true(is_read);
    assert_int_equal(weir_store_register_lease(*state, version->uid, "r1-0", 9, NOW, &lease),
                     WEIR_OK); /* that one may still be renewed */
    expect_refusal(weir_store_delete_shard(*state, version->uid, "b", "t1", NOW, &deleted),
                   WEIR_ERR_REFUSED, "weight version has an active lease");
    assert_int_equal(
        weir_store_delete_lease(*state, version->uid, lease.lease_id, "r1-0", NOW, &deleted),
        WEIR_OK);
    assert_int_equal(weir_store_retire_shard(*state, version->uid, "a", "t0", NOW, &is_read),
                     WEIR_OK);
    assert_false(is_read);
}

static void test_who_has_to_do_with_a_version_may_abort_it(void **state)
{
    static const char refusal[] =
        "only a worker that publishes or reads a weight version can abort it";
    uint64_t expires;
    const weir_store_version *version = make(*state, 1);
    assert_int_equal(
        weir_store_register_worker(*state, "o", WEIR_STORE_TRAINER, "other", 9, NOW, &expires),
        WEIR_OK);
    expect_refusal(abort_by(*state, version, "nobody", ""), WEIR_ERR_REFUSED, refusal);
    expect_refusal(abort_by(*state, version, "o", ""), WEIR_ERR_REFUSED, refusal);
    expect_refusal(abort_by(*state, version, "r1-0", ""), WEIR_ERR_REFUSED, refusal);
    expect_refusal(abort_by(*state, version, "", ""), WEIR_ERR_INVALID, "worker_id is required");
    assert_int_equal(abort_by(*state, version, "t1", NULL), WEIR_OK); /* expected to publish */
    version = make_ready(*state, 2);
    assert_int_equal(release(*state, version), WEIR_OK);
    expect_refusal(abort_by(*state, version, "t0", ""), WEIR_ERR_REFUSED,
                   "a RELEASING weight version cannot be aborted");
}

static void test_a_long_reason_is_cut_between_characters(void **state)
{
    char reason[2001];
    for (size_t i = 0; i < 1000; i++)
        memcpy(reason + 2 * i, "\xc3\xa9", 2);
    reason[2000] = '\0';
    const weir_store_version *version = make(*state, 1);
    assert_int_equal(abort_by(*state, version, "t0", reason), WEIR_OK);
    assert_int_equal(strlen(version->reason), 1022);
    assert_memory_equal(version->reason, reason, 1022);
}

/* ---- peers -----------------------------------------------------------------------------------*/

static void test_readers_spread_over_peers(void **state)
{
    weir_store_grant grant;
    const weir_store_version *version = make_ready(*state, 1);
    assert_int_equal(acquire(*state, "r1-0", 1, NOW, &grant), WEIR_OK);
    assert_null(grant.peer); /* nobody else holds it */
    hold(*state, "r2-0", version, "far");
    assert_int_equal(acquire(*state, "r3-0", 1, NOW, &grant), WEIR_OK);
    assert_string_equal(grant.peer->worker_id, "r2-0"); /* the trainers have one reader, it none */
    assert_int_equal(grant.n_peer_readers, 1);
    assert_int_equal(grant.n_shards, 2);
    add_worker(*state, "r4-0", WEIR_STORE_GENERATOR);
    assert_int_equal(acquire(*state, "r4-0", 1, NOW, &grant), WEIR_OK);
    assert_null(grant.peer); /* as busy as the trainers */
    hold(*state, "r3-0", version, "near");
    add_worker(*state, "r5-0", WEIR_STORE_GENERATOR);
    assert_int_equal(acquire(*state, "r5-0", 1, NOW, &grant), WEIR_OK);
    assert_string_equal(grant.peer->worker_id, "r3-0");
    weir_store_wish wish = wish_of("r5-0", 1);
    const char *const avoid[] = { "r3-0", "t0" };
    wish.avoid = avoid, wish.n_avoid = 2;
    assert_int_equal(weir_store_acquire(*state, &wish, true, NOW, &grant), WEIR_OK);
    assert_string_equal(grant.peer->worker_id, "r2-0");
    assert_string_equal(grant.shards[0]->worker_id, "t0"); /* there is no other */
}

static void test_of_equal_peers_the_nearer_is_read(void **state)
{
    weir_store_grant grant;
    const weir_store_version *version = make_ready(*state, 1);
    assert_int_equal(acquire(*state, "r1-0", 1, NOW, &grant), WEIR_OK);
    hold(*state, "r1-0", version, "far");
    hold(*state, "r2-0", version, "near");
    assert_int_equal(acquire(*state, "r3-0", 1, NOW, &grant), WEIR_OK);
    assert_string_equal(grant.peer->worker_id, "r2-0");
    assert_string_equal(grant.peer_host, "near");
}

static void test_of_trainers_and_a_peer_as_busy_the_peer_on_the_same_host_is_read(void **state)
{
    weir_store_grant grant;
    const weir_store_version *version = make_ready(*state, 1);
    hold(*state, "r1-0", version, "near");
    assert_int_equal(acquire(*state, "r2-0", 1, NOW, &grant), WEIR_OK);
    assert_string_equal(grant.peer->worker_id, "r1-0");
    assert_int_equal(acquire(*state, "r3-0", 1, NOW, &grant), WEIR_OK);
    assert_null(grant.peer); /* it has a reader, the trainers have none */
    weir_store_wish wish = wish_of("r2-0", 1);
    wish.host = "";
    hold(*state, "r1-0", version, "");
    assert_int_equal(weir_store_acquire(*state, &wish, true, NOW, &grant), WEIR_OK);
    assert_string_equal(grant.peer->worker_id, "r1-0"); /* the trainers have a reader */
    hold(*state, "r1-0", NULL, "near");
    hold(*state, "r3-0", version, "");
    version = make_ready(*state, 2);
    hold(*state, "r3-0", version, "");
    wish.lowest = 2;
    assert_int_equal(weir_store_acquire(*state, &wish, true, NOW, &grant), WEIR_OK);
    assert_null(grant.peer); /* hosts without a name are not one */
}

/* Two slots, so two readers at a time. */
static void test_who_waits_for_a_peer_gets_one_as_soon_as_a_reader_is_done(void **state)
{
    weir_store_grant grant;
    weir_store_wish wish = wish_of("r3-0", 1);
    const weir_store_version *version = make_ready(*state, 1);
    wish.peer_wait_ms = 1000;
    assert_int_equal(acquire(*state, "r1-0", 1, NOW, &grant), WEIR_OK);
    assert_int_equal(acquire(*state, "r2-0", 1, NOW, &grant), WEIR_OK);
    assert_int_equal(weir_store_acquire(*state, &wish, true, NOW, &grant), WEIR_IN_PROGRESS);
    assert_ptr_equal(grant.awaited, version);
    assert_int_equal(grant.n_missing, 0);
    assert_int_equal(grant.again_ms, NOW + 1000);
    hold(*state, "r1-0", version, "far");
    assert_int_equal(weir_store_acquire(*state, &wish, true, NOW, &grant), WEIR_OK);
    assert_string_equal(grant.peer->worker_id, "r1-0");
    assert_int_equal(grant.again_ms, 0);
    assert_int_equal(weir_store_acquire(*state, &wish, true, NOW, &grant), WEIR_OK); /* again */
}

static void
test_who_waits_for_a_peer_reads_the_trainers_in_the_end_or_when_they_are_free(void **state)
{
    weir_store_grant grant;
    bool deleted;
    weir_store_wish wish = wish_of("r3-0", 1);
    const weir_store_version *version = make_ready(*state, 1);
    wish.peer_wait_ms = 1000;
    assert_int_equal(acquire(*state, "r1-0", 1, NOW, &grant), WEIR_OK);
    weir_store_lease lease = grant.lease;
    assert_int_equal(acquire(*state, "r2-0", 1, NOW, &grant), WEIR_OK);
    assert_int_equal(weir_store_acquire(*state, &wish, false, NOW + 999, &grant), WEIR_IN_PROGRESS);
    assert_int_equal(weir_store_acquire(*state, &wish, false, NOW + 1000, &grant), WEIR_OK);
    wish.part = ""; /* it can read the trainers alone */
    assert_int_equal(weir_store_acquire(*state, &wish, false, NOW, &grant), WEIR_OK);
    wish.part = "part";
    assert_int_equal(
        weir_store_delete_lease(*state, version->uid, lease.lease_id, "r1-0", NOW, &deleted),
        WEIR_OK);
    assert_int_equal(weir_store_acquire(*state, &wish, true, NOW, &grant), WEIR_OK);
    assert_null(grant.peer);
}

static void test_trainers_to_avoid_are_no_better_than_none(void **state)
{
    weir_store_grant grant;
    const char *const avoid[] = { "t1" };
    weir_store_wish wish = wish_of("r3-0", 1);
    const weir_store_version *version = make_ready(*state, 1);
    wish.avoid = avoid, wish.n_avoid = 1;
    assert_int_equal(weir_store_acquire(*state, &wish, true, NOW, &grant), WEIR_OK);
    assert_null(grant.peer); /* nobody else has it: it may be tried again */
    assert_int_equal(grant.n_shards, 2);
    hold(*state, "r1-0", version, "far");
    assert_int_equal(acquire(*state, "r2-0", 1, NOW, &grant), WEIR_OK);
    assert_string_equal(grant.peer->worker_id, "r1-0");
    assert_int_equal(weir_store_acquire(*state, &wish, true, NOW, &grant), WEIR_OK);
    assert_string_equal(grant.peer->worker_id, "r1-0"); /* which has a reader */
    add_worker(*state, "t2", WEIR_STORE_TRAINER);
    assert_int_equal(put_shard(*state, version, "b", "t2"), WEIR_OK);
    assert_int_equal(weir_store_acquire(*state, &wish, true, NOW, &grant), WEIR_OK);
    assert_null(grant.peer);
    assert_string_equal(grant.shards[1]->worker_id, "t2");
}

static void test_a_peer_must_hold_that_very_version_and_part(void **state)
{
    weir_store_grant grant;
    const weir_store_version *first = make_ready(*state, 1);
    make_ready(*state, 2);
    hold(*state, "r1-0", first, "near");
    assert_int_equal(acquire(*state, "r2-0", 2, NOW, &grant), WEIR_OK);
    assert_int_equal(acquire(*state, "r3-0", 2, NOW, &grant), WEIR_OK);
    assert_null(grant.peer);
    assert_int_equal(acquire(*state, "r2-0", 1, NOW, &grant), WEIR_OK);
    weir_store_wish wish = wish_of("r3-0", 1);
    wish.highest = 1, wish.part = "another";
    assert_int_equal(weir_store_acquire(*state, &wish, true, NOW, &grant), WEIR_OK);
    assert_null(grant.peer);
    wish.part = NULL;
    assert_int_equal(weir_store_acquire(*state, &wish, true, NOW, &grant), WEIR_OK);
    assert_null(grant.peer);
}

static void test_a_peer_is_enough_when_the_trainers_are_gone(void **state)
{
    weir_store_grant grant;
    const weir_store_version *version = make_ready(*state, 1);
    char uid[9];
    memcpy(uid, version->uid, 9);
    hold(*state, "r1-0", version, "far");
    weir_store_sweep(*state, NOW + 90000);
    assert_int_equal(acquire(*state, "r2-0", 1, NOW + 90000, &grant), WEIR_OK);
    assert_string_equal(grant.peer->worker_id, "r1-0");
    assert_int_equal(grant.n_shards, 0);
    /* One that fell silent is no peer. */
    weir_store_sweep(*state, NOW + 90001);
    assert_int_equal(acquire(*state, "r3-0", 1, NOW + 90001, &grant), WEIR_IN_PROGRESS);
    assert_int_equal(grant.n_missing, 2);
}

/* ---- words and revisions ---------------------------------------------------------------------*/

static weir_store_word word_of(const char *worker, uint64_t number, const char *text)
{
    static const weir_store_span spans[] = { { "read", 1, 2, "rank-1", 3 } };
    return (weir_store_word){ .worker_id = worker,
                              .run = "run",
                              .number = number,
                              .version_uid = "u",
                              .text = text,
                              .spans = spans,
                              .n_spans = 1 };
}

static void test_a_word_replaces_the_same_workers(void **state)
{
    const char *const said[][2] = { { "a", "1" }, { "b", "2" }, { "a", "3" } };
    for (int i = 0; i < 3; i++) {
        weir_store_word word = word_of(said[i][0], 4, said[i][1]);
        assert_int_equal(weir_store_put_word(*state, "model", &word, NOW), WEIR_OK);
    }
    const weir_store_word *word = weir_store_words(*state, "model", "run", 4);
    assert_string_equal(word->text, "2");
    assert_string_equal(word->next->text, "3");
    assert_string_equal(word->next->spans[0].name, "read");
    assert_string_equal(word->next->spans[0].peer, "rank-1");
    assert_int_equal(word->next->spans[0].n_bytes, 3);
    assert_null(word->next->next);
    assert_null(weir_store_words(*state, "model", "other", 4));
    assert_null(weir_store_words(*state, "nothing", "run", 4));
}

static bool collect(void *context, const char *model, const weir_store_word *word)
{
    uint64_t **at = context;
    assert_string_equal(model, "model");
    *(*at)++ = word->number;
    return true;
}

static void test_the_last_64_numbers_are_kept(void **state)
{
    uint64_t numbers[70], *at = numbers;
    for (uint64_t i = 0; i < 70; i++) {
        weir_store_word word = word_of("a", i * 3 % 70, "");
        assert_int_equal(weir_store_put_word(*state, "model", &word, NOW), WEIR_OK);
    }
    weir_store_each_word(*state, NULL, collect, &at);
    assert_int_equal(at - numbers, 64);
    for (uint64_t *number = numbers + 1; number < at; number++)
        assert_true(number[0] < number[-1]);
    assert_int_equal(numbers[0], 69);
    weir_store_sweep(*state, NOW + 25 * HOUR); /* nobody has a version of that run any more */
    assert_int_equal(weir_store_count(*state).n_words, 0);
}

static void test_revisions_grow_with_changes_alone(void **state)
{
    uint64_t before = weir_store_revision(*state, "model"), other;
    add_worker(*state, "t0", WEIR_STORE_TRAINER); /* a renewal */
    hold(*state, "r1-0", NULL, "h");
    assert_true(weir_store_revision(*state, "model") > before);
    before = weir_store_revision(*state, "model");
    other = weir_store_revision(*state, "other");
    hold(*state, "r1-0", NULL, "h");
    assert_int_equal(weir_store_revision(*state, "model"), before);
    make(*state, 1);
    assert_true(weir_store_revision(*state, "model") > before);
    assert_int_equal(weir_store_revision(*state, "other"), other);
    before = weir_store_revision(*state, "model");
    weir_store_sweep(*state, NOW + 24 * HOUR); /* all of it goes */
    weir_store_sweep(*state, NOW + 48 * HOUR);
    assert_int_equal(weir_store_count(*state).n_sources, 0);
    assert_true(weir_store_revision(*state, "model") > before);
}

int main(void)
{
#define CASE(name) cmocka_unit_test_setup_teardown(name, set_up, close_store)
    const struct CMUnitTest tests[] = {
        CASE(test_ranks_meet_by_run_and_number_without_a_key),
        CASE(test_a_number_that_is_over_is_attempted_anew),
        CASE(test_the_first_trace_id_said_stays),
        CASE(test_the_newest_that_can_be_read_is_given),
        CASE(test_a_wish_is_checked),
        CASE(test_asking_without_taking_changes_nothing),
        CASE(test_h9_an_old_ready_satisfies_no_wait_for_the_next),
        CASE(test_h10_the_exact_set_of_ranks_is_waited_for),
        CASE(test_ready_is_not_given_when_a_publisher_is_gone),
        CASE(test_a_restarted_worker_supersedes_its_old_self),
        CASE(test_a_halted_worker_comes_back_as_old_as_it_was),
        CASE(test_replicas_of_the_same_ranks_do_not_compete),
        CASE(test_an_aborted_version_is_over_for_good),
        CASE(test_who_reads_a_version_that_is_aborted_may_be_waited_for),
        CASE(test_an_attempt_before_the_one_that_is_known_is_no_news),
        CASE(test_who_has_to_do_with_a_version_may_abort_it),
        CASE(test_a_long_reason_is_cut_between_characters),
        CASE(test_readers_spread_over_peers),
        CASE(test_of_equal_peers_the_nearer_is_read),
        CASE(test_of_trainers_and_a_peer_as_busy_the_peer_on_the_same_host_is_read),
        CASE(test_who_waits_for_a_peer_gets_one_as_soon_as_a_reader_is_done),
        CASE(test_who_waits_for_a_peer_reads_the_trainers_in_the_end_or_when_they_are_free),
        CASE(test_trainers_to_avoid_are_no_better_than_none),
        CASE(test_a_peer_must_hold_that_very_version_and_part),
        CASE(test_a_peer_is_enough_when_the_trainers_are_gone),
        CASE(test_a_word_replaces_the_same_workers),
        CASE(test_the_last_64_numbers_are_kept),
        CASE(test_revisions_grow_with_changes_alone),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
