/* SPDX-License-Identifier: Apache-2.0 */
/* test_wait_handlers.c - what a trainer waits for: that replicas hold its version, and that nobody
 * reads an older one; and what those are told of it who know ModelExpress alone. */
#include "directory/fleet_case.h"

/* ---- what became of it -----------------------------------------------------------------------*/

static Weir__Directory__AwaitReplicasRequest await(char *uid, unsigned n, unsigned timeout_ms)
{
    Weir__Directory__AwaitReplicasRequest request = WEIR__DIRECTORY__AWAIT_REPLICAS_REQUEST__INIT;
    request.model_name = (char *)MODEL;
    request.version_id = uid;
    request.n_replicas = n;
    request.timeout_ms = timeout_ms;
    return request;
}

static void test_a_word_ends_the_lease_and_tells_the_trainer(void **state)
{
    fixture *f = *state;
    char uid[16], lease[WEIR_ID_BYTES];
    word_case c;
    register_all(f);
    publish_all(f, 5, uid);
    Weir__Directory__AcquireVersionRequest request = wish("replica-0", 5, 0);
    const Weir__Directory__AcquireVersionResponse *acquired = answered(f, &request.base);
    snprintf(lease, sizeof(lease), "%s", acquired->lease->lease_id);
    Weir__Directory__AwaitReplicasRequest trainer = await(uid, 1, 60000);
    assert_int_equal(call(f, &trainer.base), WEIR_RPC_LATER);
    uint64_t ticket = f->ticket;
    word_request(&c, "replica-0", uid, 5);
    c.request.lease_id = lease;
    c.request.host = (char *)"h", c.request.part = (char *)"p";
    answered(f, &c.request.base);
    assert_int_equal(weir_store_count(f->core.store).n_leases, 0);
    weir_directory_core_tick(&f->core);
    const Weir__Directory__AwaitReplicasResponse *response = later(f, ticket);
    assert_int_equal(response->n_holding, 1);
    assert_int_equal(response->n_words, 1);
    assert_string_equal(response->words[0]->worker_id, "replica-0");
    assert_int_equal(response->words[0]->n_bytes, 200);
    assert_int_equal(f->core.counts.words[0], 1);
    /* It can be read from. */
    request = wish("replica-1", 5, 0);
    request.part = (char *)"p";
    Weir__Directory__AcquireVersionRequest other = wish("replica-0", 5, 0);
    answered(f, &other.base); /* the trainers have a reader */
    acquired = answered(f, &request.base);
    assert_non_null(acquired->peer);
    assert_string_equal(acquired->peer->worker_id, "replica-0");
    assert_string_equal(acquired->peer->manifest_endpoint, "10.0.0.1:7");
}

static void test_a_refusal_is_a_word_too(void **state)
{
    fixture *f = *state;
    char uid[16];
    word_case c;
    register_all(f);
    publish_all(f, 5, uid);
    word_request(&c, "replica-0", uid, 5);
    c.request.status = (uint32_t)WEIR_ERR_LAYOUT;
    c.request.text = (char *)"tag: expected fp8, got bf16";
    fill_record(&c.record, "replica-0", "inference_replica", 4); /* what it holds still */
    assert_int_equal(weir_client_entry_fill(&c.record, &c.entry), WEIR_OK);
    answered(f, &c.request.base);
    Weir__Directory__AwaitReplicasRequest trainer = await(uid, 1, 0);
    const Weir__Directory__AwaitReplicasResponse *response = answered(f, &trainer.base);
    assert_int_equal(response->n_holding, 0);
    assert_int_equal(response->n_words, 1);
    assert_int_equal((int32_t)response->words[0]->status, WEIR_ERR_LAYOUT);
    assert_string_equal(response->words[0]->text, "tag: expected fp8, got bf16");
    assert_int_equal(f->core.counts.words[-WEIR_ERR_LAYOUT], 1);
    c.request.status = 3;
    refused(f, &c.request.base, WEIR_RPC_INVALID_ARGUMENT, "status is no weir_status");
}

static void test_an_older_version_or_attempt_satisfies_no_wait(void **state)
{
    fixture *f = *state;
    char old[16], uid[16];
    word_case c;
    register_all(f);
    publish_all(f, 5, old);
    answered(f, word_request(&c, "replica-0", old, 5));
    Weir__Directory__AbortVersionRequest abort = WEIR__DIRECTORY__ABORT_VERSION_REQUEST__INIT;
    abort.version_id = old;
    abort.worker_id = (char *)"trainer-0";
    answered(f, &abort.base);
    publish_all(f, 5, uid); /* the second attempt */
    Weir__Directory__AwaitReplicasRequest trainer = await(uid, 1, 0);
    const Weir__Directory__AwaitReplicasResponse *response = answered(f, &trainer.base);
    assert_int_equal(response->n_holding, 0);
    publish_all(f, 6, uid);
    answered(f, word_request(&c, "replica-0", uid, 6));
    response = answered(f, &trainer.base); /* a later one does */
    assert_int_equal(response->n_holding, 1);
    trainer = await((char *)"nothing", 1, 60000);
    assert_int_equal(call(f, &trainer.base), WEIR_RPC_NOT_FOUND);
}

/* ---- retiring --------------------------------------------------------------------------------*/

static void test_shards_go_when_nobody_reads(void **state)
{
    fixture *f = *state;
    char uid[16];
    char *uids[] = { uid };
    register_all(f);
    publish_all(f, 5, uid);
    Weir__Directory__AcquireVersionRequest request = wish("replica-0", 5, 0);
    answered(f, &request.base);
    Weir__Directory__RetireVersionsRequest retire = WEIR__DIRECTORY__RETIRE_VERSIONS_REQUEST__INIT;
    retire.version_ids = uids;
    retire.n_version_ids = 1;
    retire.source_slot_id = (char *)"a";
    retire.worker_id = (char *)"trainer-0";
    const Weir__Directory__RetireVersionsResponse *response = answered(f, &retire.base);
    assert_int_equal(response->n_leased_by, 1);
    assert_string_equal(response->leased_by[0], "replica-0");
    const weir_store_version *version = NULL;
    weir_store_get_version(f->core.store, uid, &version);
    assert_int_equal(version->state, WEIR_STORE_RELEASING); /* no new reader */
    retire.timeout_ms = 60000;
    assert_int_equal(call(f, &retire.base), WEIR_RPC_LATER);
    uint64_t ticket = f->ticket;
    let_time_pass(f, 61000); /* the reader died: its lease runs out */
    response = later(f, ticket);
    assert_int_equal(response->n_leased_by, 0);
    const weir_store_shard *shard = NULL;
    weir_store_list_shards(f->core.store, uid, &shard);
    assert_non_null(shard);
    assert_string_equal(shard->worker_id, "trainer-1");
    assert_null(shard->next);
    answered(f, &retire.base); /* again is no harm */
}

static void test_a_version_that_loses_a_shard_before_it_is_ready_is_aborted(void **state)
{
    fixture *f = *state;
    char uid[16];
    char *uids[] = { uid };
    register_all(f);
    publish(f, "trainer-0", "a", 5, uid);
    Weir__Directory__RetireVersionsRequest retire = WEIR__DIRECTORY__RETIRE_VERSIONS_REQUEST__INIT;
    retire.version_ids = uids;
    retire.n_version_ids = 1;
    retire.source_slot_id = (char *)"a";
    retire.worker_id = (char *)"trainer-0";
    const Weir__Directory__RetireVersionsResponse *response = answered(f, &retire.base);
    assert_int_equal(response->n_leased_by, 0);
    const weir_store_version *version = NULL;
    assert_int_equal(weir_store_get_version(f->core.store, uid, &version), WEIR_OK);
    assert_int_equal(version->state, WEIR_STORE_ABORTED);
}

/* ---- who counts, and who is waited for -------------------------------------------------------*/

static Weir__Directory__RetireVersionsRequest retire(char **uids, const char *slot,
                                                     const char *worker, unsigned timeout_ms)
{
    Weir__Directory__RetireVersionsRequest request = WEIR__DIRECTORY__RETIRE_VERSIONS_REQUEST__INIT;
    request.version_ids = uids;
    request.n_version_ids = 1;
    request.source_slot_id = (char *)slot;
    request.worker_id = (char *)worker;
    request.timeout_ms = timeout_ms;
    return request;
}

static void hold(fixture *f, const char *worker_id, char *uid, uint64_t number)
{
    word_case c;
    word_request(&c, worker_id, uid, number);
    c.request.host = (char *)"h", c.request.part = (char *)"p";
    answered(f, &c.request.base);
}

/* Both trainers have ended in order. */
static void take_back(fixture *f, char *uid)
{
    char *uids[] = { uid };
    Weir__Directory__RetireVersionsRequest a = retire(uids, "a", "trainer-0", 0);
    Weir__Directory__RetireVersionsRequest b = retire(uids, "b", "trainer-1", 0);
    answered(f, &a.base);
    answered(f, &b.base);
}

static void report(fixture *f, const char *worker_id, const char *stop, const char *from,
                   uint64_t number)
{
    Weir__Directory__ReportProgressRequest request = WEIR__DIRECTORY__REPORT_PROGRESS_REQUEST__INIT;
    request.worker_id = (char *)worker_id;
    request.model_name = (char *)MODEL;
    request.stop = (char *)stop;
    request.slowest_from = (char *)from;
    request.version_number = number;
    answered(f, &request.base);
}

static void test_time_that_is_up_names_who_is_waited_for_readers_first(void **state)
{
    fixture *f = *state;
    char old[16], uid[16];
    word_case c;
    register_all(f);
    register_worker(f, "replica-2", 2);
    register_worker(f, "replica-3", 2);
    publish_all(f, 4, old);
    hold(f, "replica-0", old, 4);
    publish_all(f, 5, uid);
    hold(f, "replica-3", uid, 5);
    word_request(&c, "replica-2", uid, 5);
    c.request.status = (uint32_t)WEIR_ERR_LAYOUT;
    answered(f, &c.request.base);
    f->log->now_ms += 1500;
    Weir__Directory__AcquireVersionRequest request = wish("replica-0", 5, 0);
    answered(f, &request.base);
    report(f, "replica-0", "transfer", "rank-1", 5);
    report(f, "replica-1", "install", "", 4); /* of another version */
    f->log->now_ms += 4200;
    Weir__Directory__AwaitReplicasRequest trainer = await(uid, 1, 0);
    const Weir__Directory__AwaitReplicasResponse *response = answered(f, &trainer.base);
    assert_int_equal(response->n_holding, 1);
    assert_int_equal(response->n_stragglers, 0); /* it is as many as were wanted */
    trainer = await(uid, 3, 0);
    response = answered(f, &trainer.base);
    assert_int_equal(response->n_stragglers, 2); /* of those that have refused it words speak */
    const Weir__Directory__Straggler *first = response->stragglers[0],
                                     *second = response->stragglers[1];
    assert_string_equal(first->worker_id, "replica-0");
    assert_true(first->reads);
    assert_true(first->has_number);
    assert_int_equal(first->version_number, 4);
    assert_string_equal(first->stop, "transfer");
    assert_string_equal(first->slowest_from, "rank-1");
    assert_int_equal(first->silent_ms, 4200);
    assert_string_equal(second->worker_id, "replica-1");
    assert_false(second->reads);
    assert_false(second->has_number);
    assert_string_equal(second->stop, "");
    assert_int_equal(second->silent_ms, 5700);
}

static void test_no_more_than_64_are_named(void **state)
{
    fixture *f = *state;
    char uid[16], name[32];
    register_all(f);
    publish_all(f, 5, uid);
    for (int i = 0; i < 100; i++) {
        snprintf(name, sizeof(name), "late-%d", i);
        register_worker(f, name, 2);
    }
    Weir__Directory__AcquireVersionRequest request = wish("replica-0", 5, 0);
    answered(f, &request.base);
    Weir__Directory__AwaitReplicasRequest trainer = await(uid, 1, 0);
    const Weir__Directory__AwaitReplicasResponse *response = answered(f, &trainer.base);
    assert_int_equal(response->n_stragglers, 64);
    assert_string_equal(response->stragglers[0]->worker_id, "replica-0");
}

static void test_a_replica_that_crashed_ends_no_wait_and_one_that_left_does(void **state)
{
    fixture *f = *state;
    char uid[16];
    register_all(f);
    publish_all(f, 5, uid);
    hold(f, "replica-0", uid, 5);
    hold(f, "replica-1", uid, 5);
    ModelExpress__P2p__UpdateStatusRequest update = MODEL_EXPRESS__P2P__UPDATE_STATUS_REQUEST__INIT;
    word_case c;
    word_request(&c, "replica-0", uid, 5);
    const Weir__Directory__AcknowledgeVersionResponse *word = answered(f, &c.request.base);
    char source_id[WEIR_ID_BYTES];
    snprintf(source_id, sizeof(source_id), "%s", word->mx_source_id);
    update.mx_source_id = source_id;
    update.worker_id = (char *)"replica-0";
    update.status = MODEL_EXPRESS__P2P__SOURCE_STATUS__SOURCE_STATUS_STALE;
    answered(f, &update.base);
    Weir__Directory__AwaitReplicasRequest trainer = await(uid, 2, 0);
    const Weir__Directory__AwaitReplicasResponse *response = answered(f, &trainer.base);
    assert_int_equal(response->n_holding, 2);
    let_time_pass(f, 91000);
    response = answered(f, &trainer.base);
    assert_int_equal(response->n_holding, 1);
    assert_int_equal(response->n_stragglers, 1); /* the one that crashed */
    assert_string_equal(response->stragglers[0]->worker_id, "replica-1");
    assert_int_equal(response->stragglers[0]->ended_ms, 1000);
    register_worker(f, "replica-1", 2); /* it was cut off alone */
    hold(f, "replica-1", uid, 5);
    response = answered(f, &trainer.base);
    assert_int_equal(response->n_holding, 2);
}

/* ---- what trainers have taken back -----------------------------------------------------------*/

static void test_a_trainer_that_ends_waits_for_its_own_readers_alone(void **state)
{
    fixture *f = *state;
    char uid[16];
    char *uids[] = { uid };
    register_all(f);
    register_worker(f, "replica-2", 2);
    publish_all(f, 5, uid);
    hold(f, "replica-0", uid, 5);
    Weir__Directory__AcquireVersionRequest request = wish("replica-1", 5, 0);
    answered(f, &request.base); /* without a part: of the trainers */
    request = wish("replica-2", 5, 0);
    request.part = (char *)"p";
    const Weir__Directory__AcquireVersionResponse *acquired = answered(f, &request.base);
    assert_string_equal(acquired->peer->worker_id, "replica-0");
    Weir__Directory__RetireVersionsRequest a = retire(uids, "a", "trainer-0", 60000);
    assert_int_equal(call(f, &a.base), WEIR_RPC_LATER);
    uint64_t ticket = f->ticket;
    unsigned n_records = f->log->n_records;
    weir_directory_core_tick(&f->core); /* what is taken back is not taken back again */
    assert_int_equal(f->log->n_records, n_records);
    word_case c;
    word_request(&c, "replica-1", uid, 5);
    char lease[WEIR_ID_BYTES];
    ModelExpress__Refit__RegisterVersionLeaseRequest renewal =
        MODEL_EXPRESS__REFIT__REGISTER_VERSION_LEASE_REQUEST__INIT;
    renewal.version_id = uid, renewal.worker_id = (char *)"replica-1", renewal.ttl_seconds = 60;
    const ModelExpress__Refit__VersionLease *renewed = answered(f, &renewal.base);
    snprintf(lease, sizeof(lease), "%s", renewed->lease_id);
    c.request.lease_id = lease;
    answered(f, &c.request.base);
    weir_directory_core_tick(&f->core);
    const Weir__Directory__RetireVersionsResponse *response = later(f, ticket);
    assert_int_equal(response->n_leased_by, 0);
    const weir_store_version *version = NULL;
    assert_int_equal(weir_store_get_version(f->core.store, uid, &version), WEIR_OK);
    assert_int_equal(version->state, WEIR_STORE_READY);
    a.timeout_ms = 0;
    n_records = f->log->n_records;
    answered(f, &a.base); /* again is no harm, and changes nothing */
    assert_int_equal(f->log->n_records, n_records);
}

static void test_readers_get_peers_and_modelexpress_hears_that_it_is_over(void **state)
{
    fixture *f = *state;
    char uid[16];
    register_all(f);
    publish_all(f, 5, uid);
    hold(f, "replica-0", uid, 5);
    take_back(f, uid);
    Weir__Directory__AcquireVersionRequest request = wish("replica-1", 5, 0);
    request.part = (char *)"p";
    const Weir__Directory__AcquireVersionResponse *acquired = answered(f, &request.base);
    assert_true(acquired->found);
    assert_int_equal(acquired->version->state, WEIR_STORE_READY);
    assert_int_equal(acquired->n_shards, 0);
    assert_string_equal(acquired->peer->worker_id, "replica-0");
    ModelExpress__Refit__GetWeightVersionRequest get =
        MODEL_EXPRESS__REFIT__GET_WEIGHT_VERSION_REQUEST__INIT;
    ModelExpress__Refit__ListWeightVersionShardsRequest list =
        MODEL_EXPRESS__REFIT__LIST_WEIGHT_VERSION_SHARDS_REQUEST__INIT;
    ModelExpress__Refit__RegisterVersionLeaseRequest lease =
        MODEL_EXPRESS__REFIT__REGISTER_VERSION_LEASE_REQUEST__INIT;
    get.uid = list.version_id = lease.version_id = uid;
    const ModelExpress__Refit__WeightVersion *version = answered(f, &get.base);
    assert_int_equal(version->state, WEIR_STORE_RELEASING);
    const ModelExpress__Refit__ListWeightVersionShardsResponse *shards = answered(f, &list.base);
    assert_int_equal(shards->n_shards, 0);
    lease.worker_id = (char *)"replica-0", lease.ttl_seconds = 60;
    refused(f, &lease.base, WEIR_RPC_FAILED_PRECONDITION,
            "no worker that is alive has source_slot_id 'a': no new lease");
    lease.worker_id = (char *)"replica-1"; /* it reads a peer: renewed as ever */
    answered(f, &lease.base);
    publish_all(f, 6, uid);
    version = answered(f, &get.base);
    assert_int_equal(version->state, WEIR_STORE_READY);
}

static void test_modelexpress_is_told_of_no_shard_of_a_worker_that_is_gone(void **state)
{
    fixture *f = *state;
    char uid[16];
    register_all(f);
    publish_all(f, 5, uid);
    f->log->now_ms += 89000;
    register_worker(f, "trainer-0", 1);
    register_worker(f, "replica-0", 2);
    f->log->now_ms += 2000;
    ModelExpress__Refit__ListWeightVersionShardsRequest list =
        MODEL_EXPRESS__REFIT__LIST_WEIGHT_VERSION_SHARDS_REQUEST__INIT;
    ModelExpress__Refit__RegisterVersionLeaseRequest lease =
        MODEL_EXPRESS__REFIT__REGISTER_VERSION_LEASE_REQUEST__INIT;
    list.version_id = lease.version_id = uid;
    const ModelExpress__Refit__ListWeightVersionShardsResponse *shards = answered(f, &list.base);
    assert_int_equal(shards->n_shards, 1);
    assert_string_equal(shards->shards[0]->source_slot_id, "a");
    lease.worker_id = (char *)"replica-0", lease.ttl_seconds = 60;
    refused(f, &lease.base, WEIR_RPC_FAILED_PRECONDITION,
            "no worker that is alive has source_slot_id 'b': no new lease");
    register_worker(f, "trainer-1", 1); /* it was cut off for a moment */
    answered(f, &lease.base);
    shards = answered(f, &list.base);
    assert_int_equal(shards->n_shards, 2);
}

int main(void)
{
#define CASE(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        CASE(test_a_word_ends_the_lease_and_tells_the_trainer),
        CASE(test_a_refusal_is_a_word_too),
        CASE(test_an_older_version_or_attempt_satisfies_no_wait),
        CASE(test_shards_go_when_nobody_reads),
        CASE(test_a_version_that_loses_a_shard_before_it_is_ready_is_aborted),
        CASE(test_time_that_is_up_names_who_is_waited_for_readers_first),
        CASE(test_no_more_than_64_are_named),
        CASE(test_a_replica_that_crashed_ends_no_wait_and_one_that_left_does),
        CASE(test_a_trainer_that_ends_waits_for_its_own_readers_alone),
        CASE(test_readers_get_peers_and_modelexpress_hears_that_it_is_over),
        CASE(test_modelexpress_is_told_of_no_shard_of_a_worker_that_is_gone),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
