/* SPDX-License-Identifier: Apache-2.0 */
/* test_fleet_handlers.c - a step of a refit in one message: all of it or nothing; answers that wait
 * come when they can, and at their bound say what is missing. */
#include "directory/fleet_case.h"

/* ---- publishing ------------------------------------------------------------------------------*/

static void test_a_shard_its_version_and_its_entry_are_one_step(void **state)
{
    fixture *f = *state;
    publish_case c;
    register_all(f);
    const Weir__Directory__PublishVersionShardResponse *response =
        answered(f, publish_request(&c, "trainer-0", "a", 5));
    char uid[16];
    snprintf(uid, sizeof(uid), "%s", response->version->uid);
    assert_int_equal(response->version->state, WEIR_STORE_STAGING);
    assert_int_equal(response->attempt, 1);
    assert_string_equal(response->trace_id, "0123456789abcdef0123456789abcdef");
    const weir_store_source *source =
        weir_store_get_source(f->core.store, response->mx_source_id, "trainer-0");
    assert_non_null(source);
    assert_string_equal(source->version_uid, uid);
    assert_string_equal(source->run, RUN);
    assert_string_equal(source->endpoint, "10.0.0.1:7");
    const weir_store_word *word = weir_store_words(f->core.store, MODEL, RUN, 5);
    assert_non_null(word);
    assert_string_equal(word->worker_id, "trainer-0");
    assert_int_equal(word->n_spans, 1);
    response = answered(f, publish_request(&c, "trainer-1", "b", 5));
    assert_string_equal(response->version->uid, uid);
    assert_int_equal(response->version->state, WEIR_STORE_READY);
    assert_int_equal(f->core.counts.events.n_shards, 2);
}

static weir_store_totals totals(const fixture *f)
{
    weir_store_totals count = weir_store_count(f->core.store);
    count.n_bytes = 0;
    return count;
}

static void test_a_refused_shard_leaves_nothing_behind(void **state)
{
    fixture *f = *state;
    publish_case c;
    weir_store_totals before = totals(f);
    refused(f, publish_request(&c, "trainer-0", "a", 5), WEIR_RPC_FAILED_PRECONDITION,
            "worker registration is missing or expired");
    weir_store_totals after = totals(f);
    assert_memory_equal(&before, &after, sizeof(before));
    register_all(f);
    before = totals(f);
    refused(f, publish_request(&c, "trainer-0", "c", 5), WEIR_RPC_INVALID_ARGUMENT,
            "source_slot_id is not required by the weight version");
    publish_request(&c, "trainer-0", "a", 5);
    c.entry.request.identity = NULL;
    assert_int_equal(call(f, &c.request.base), WEIR_RPC_NOT_FOUND); /* no entry to go on from */
    publish_request(&c, "trainer-0", "a", 5);
    c.entry.request.worker_id = (char *)"trainer-1";
    refused(f, &c.request.base, WEIR_RPC_INVALID_ARGUMENT,
            "shard and source are of different workers");
    publish_request(&c, "trainer-0", "a", 5);
    c.entry.identity.model_name = (char *)"other";
    refused(f, &c.request.base, WEIR_RPC_INVALID_ARGUMENT,
            "source.identity is of another model_name");
    publish_request(&c, "trainer-0", "a", 5);
    c.request.source = NULL;
    refused(f, &c.request.base, WEIR_RPC_INVALID_ARGUMENT, "source is required");
    c.request.shard = NULL;
    refused(f, &c.request.base, WEIR_RPC_INVALID_ARGUMENT, "shard is required");
    after = totals(f);
    assert_memory_equal(&before, &after, sizeof(before));
}

static void test_other_bytes_under_the_same_slot_are_refused_whole(void **state)
{
    fixture *f = *state;
    publish_case c;
    char uid[16];
    register_all(f);
    publish(f, "trainer-0", "a", 5, uid);
    publish_request(&c, "trainer-0", "a", 5);
    c.shard.manifest_digest = (char *)"sha256:1";
    strcpy(c.record.endpoint, "elsewhere:1");
    refused(f, &c.request.base, WEIR_RPC_ALREADY_EXISTS,
            "worker and source_slot_id already published different metadata");
    const weir_store_source *source = NULL;
    weir_store_filter filter = { .model = MODEL };
    assert_int_equal(weir_store_list_sources(f->core.store, &filter, &source), 1);
    assert_string_equal(source->endpoint, "10.0.0.1:7");
    answered(f, publish_request(&c, "trainer-0", "a", 5)); /* the same again is no harm */
}

static void test_an_entry_without_identity_is_the_old_one_of_the_new_version(void **state)
{
    fixture *f = *state;
    publish_case c;
    char first[16];
    register_all(f);
    publish(f, "trainer-0", "a", 5, first);
    publish_request(&c, "trainer-0", "a", 6);
    c.entry.request.identity = NULL;
    c.entry.request.worker = NULL;
    const Weir__Directory__PublishVersionShardResponse *response = answered(f, &c.request.base);
    char source_id[WEIR_ID_BYTES], uid[16];
    snprintf(source_id, sizeof(source_id), "%s", response->mx_source_id);
    snprintf(uid, sizeof(uid), "%s", response->version->uid);
    ModelExpress__P2p__GetMetadataRequest get = MODEL_EXPRESS__P2P__GET_METADATA_REQUEST__INIT;
    get.mx_source_id = source_id;
    get.worker_id = (char *)"trainer-0";
    const ModelExpress__P2p__GetMetadataResponse *entry = answered(f, &get.base);
    assert_true(entry->found);
    weir_source_record record;
    memset(&record, 0, sizeof(record));
    assert_int_equal(
        weir_sidecar_parse(weir_sidecar_find(entry->worker, WEIR_SIDECAR_WEIR), &record), WEIR_OK);
    assert_int_equal(record.version, 6);
    assert_string_equal(record.version_uid, uid);
    assert_string_equal(record.layout_signature, "layout");
    assert_int_equal(record.n_ranks, 2);
    assert_non_null(
        strstr(weir_sidecar_find(entry->worker, WEIR_SIDECAR_JSON), "\"training_step\":6,"));
    assert_string_equal(entry->worker->worker_grpc_endpoint, "10.0.0.1:7");
}

static void test_an_aborted_version_is_another_attempt(void **state)
{
    fixture *f = *state;
    publish_case c;
    char uid[16];
    register_all(f);
    publish(f, "trainer-0", "a", 5, uid);
    Weir__Directory__AbortVersionRequest abort = WEIR__DIRECTORY__ABORT_VERSION_REQUEST__INIT;
    abort.version_id = uid;
    abort.worker_id = (char *)"trainer-1";
    abort.reason = (char *)"a weight is NaN";
    const Weir__Directory__AbortVersionResponse *aborted = answered(f, &abort.base);
    assert_int_equal(aborted->version->state, WEIR_STORE_RELEASING); /* as ModelExpress knows it */
    const Weir__Directory__PublishVersionShardResponse *response =
        answered(f, publish_request(&c, "trainer-0", "a", 5));
    assert_int_equal(response->attempt, 2);
    assert_string_not_equal(response->version->uid, uid);
}

/* ---- a replica's wish ------------------------------------------------------------------------*/

static void test_what_is_ready_is_given_at_once_with_a_lease(void **state)
{
    fixture *f = *state;
    char uid[16];
    register_all(f);
    publish_all(f, 5, uid);
    Weir__Directory__AcquireVersionRequest request = wish("replica-0", 5, 1000);
    const Weir__Directory__AcquireVersionResponse *response = answered(f, &request.base);
    assert_true(response->found);
    assert_string_equal(response->version->uid, uid);
    assert_int_equal(response->n_shards, 2);
    assert_string_equal(response->shards[1]->worker_id, "trainer-1");
    assert_string_equal(response->lease->worker_id, "replica-0");
    assert_null(response->peer);
    assert_int_equal(weir_store_count(f->core.store).n_leases, 1);
    assert_int_equal(f->core.waits.n_waits, 0);
}

static void test_a_wish_waits_for_the_last_shard(void **state)
{
    fixture *f = *state;
    char uid[16];
    register_all(f);
    Weir__Directory__AcquireVersionRequest request = wish("replica-0", 5, 60000);
    assert_int_equal(call(f, &request.base), WEIR_RPC_LATER);
    uint64_t ticket = f->ticket;
    publish(f, "trainer-0", "a", 5, uid);
    weir_directory_core_tick(&f->core);
    assert_null(find_later(f, ticket));
    publish(f, "trainer-1", "b", 5, uid);
    assert_null(find_later(f, ticket)); /* not from within a change */
    weir_directory_core_tick(&f->core);
    const Weir__Directory__AcquireVersionResponse *response = later(f, ticket);
    assert_true(response->found);
    assert_string_equal(response->version->uid, uid);
    assert_int_equal(f->core.waits.n_waits, 0);
    assert_int_equal(f->core.counts.events.n_leases, 1);
}

static void test_a_wish_ends_naming_what_is_missing(void **state)
{
    fixture *f = *state;
    char uid[16];
    register_all(f);
    publish(f, "trainer-1", "b", 5, uid);
    Weir__Directory__AcquireVersionRequest request = wish("replica-0", 5, 0);
    const Weir__Directory__AcquireVersionResponse *response = answered(f, &request.base);
    assert_false(response->found);
    assert_true(response->has_trainer);
    assert_int_equal(response->newest, 5);
    assert_string_equal(response->awaited_id, uid);
    assert_int_equal(response->awaited_state,
                     WEIR__DIRECTORY__VERSION_STATE__VERSION_STATE_STAGING);
    assert_int_equal(response->n_missing_slots, 1);
    assert_string_equal(response->missing_slots[0], "a");
    assert_int_equal(response->n_gone_slots, 0);
    /* The same at the bound of a wait, which comes before the caller's deadline. */
    request.timeout_ms = 60000;
    assert_int_equal(call_within(f, &request.base, 200), WEIR_RPC_LATER);
    uint64_t ticket = f->ticket;
    weir_directory_core_tick(&f->core);
    assert_null(find_later(f, ticket));
    weir_deadline deadline = weir_deadline_in(195);
    while (find_later(f, ticket) == NULL && !weir_deadline_passed(deadline))
        weir_sleep_ms(weir_directory_core_tick(&f->core) % 8 + 1);
    response = later(f, ticket);
    assert_false(response->found);
    assert_string_equal(response->missing_slots[0], "a");
    assert_int_equal(f->core.waits.n_waits, 0);
}

/* The log's clock stands still here: what ends the wait is its time, not a change. */
static void test_a_wish_for_a_peer_is_looked_at_when_its_patience_ends(void **state)
{
    fixture *f = *state;
    char uid[16];
    register_all(f);
    register_worker(f, "replica-2", 2);
    publish_all(f, 5, uid);
    Weir__Directory__AcquireVersionRequest request = wish("replica-0", 5, 0);
    answered(f, &request.base);
    request = wish("replica-1", 5, 0);
    answered(f, &request.base); /* two slots, two readers */
    request = wish("replica-2", 5, 60000);
    request.part = (char *)"p";
    request.peer_wait_ms = 50;
    assert_int_equal(call(f, &request.base), WEIR_RPC_LATER);
    uint64_t ticket = f->ticket;
    weir_directory_core_tick(&f->core);
    assert_null(find_later(f, ticket));
    f->log->now_ms += 50;
    weir_deadline deadline = weir_deadline_in(5000);
    while (find_later(f, ticket) == NULL && !weir_deadline_passed(deadline))
        weir_sleep_ms(weir_directory_core_tick(&f->core) % 8 + 1);
    const Weir__Directory__AcquireVersionResponse *response = later(f, ticket);
    assert_true(response->found);
    assert_null(response->peer);
    assert_int_equal(f->core.waits.n_waits, 0);
}

static void test_a_dead_trainer_is_missing_and_a_wait_sees_it_come_back(void **state)
{
    fixture *f = *state;
    char uid[16];
    register_all(f);
    publish_all(f, 5, uid);
    f->log->now_ms += 60000;
    register_worker(f, "trainer-1", 1);
    register_worker(f, "replica-0", 2);
    let_time_pass(f, 40000); /* trainer-0 is silent for 100 s */
    Weir__Directory__AcquireVersionRequest request = wish("replica-0", 5, 0);
    const Weir__Directory__AcquireVersionResponse *response = answered(f, &request.base);
    assert_false(response->found);
    assert_int_equal(response->n_missing_slots, 1);
    assert_string_equal(response->missing_slots[0], "a");
    assert_int_equal(response->n_gone_slots, 1); /* it was published, but its worker is gone */
    assert_string_equal(response->gone_slots[0]->source_slot_id, "a");
    assert_string_equal(response->gone_slots[0]->worker_id, "trainer-0");
    request.timeout_ms = 60000;
    assert_int_equal(call(f, &request.base), WEIR_RPC_LATER);
    uint64_t ticket = f->ticket;
    register_worker(f, "trainer-2", 1);
    publish(f, "trainer-2", "a", 5, uid); /* in the place of the dead one */
    weir_directory_core_tick(&f->core);
    response = later(f, ticket);
    assert_true(response->found);
    assert_string_equal(response->shards[0]->worker_id, "trainer-2");
}

static void test_who_is_gone_gets_no_lease(void **state)
{
    fixture *f = *state;
    char uid[16];
    register_all(f);
    Weir__Directory__AcquireVersionRequest request = wish("replica-0", 5, 60000);
    assert_int_equal(call(f, &request.base), WEIR_RPC_LATER);
    weir_directory_core_gone(&f->core, f->ticket);
    weir_directory_core_gone(&f->core, 12345);
    publish_all(f, 5, uid);
    weir_directory_core_tick(&f->core);
    assert_int_equal(f->n_later, 0);
    assert_int_equal(weir_store_count(f->core.store).n_leases, 0);
}

static void test_bad_wishes_are_refused_at_once(void **state)
{
    fixture *f = *state;
    register_all(f);
    Weir__Directory__AcquireVersionRequest request = wish("replica-0", 5, 60000);
    request.run = (char *)"";
    refused(f, &request.base, WEIR_RPC_INVALID_ARGUMENT,
            "model_name, run and worker_id are required, of at most 255 bytes");
    request = wish("replica-0", 5, 60000);
    request.highest = 4;
    refused(f, &request.base, WEIR_RPC_INVALID_ARGUMENT, "lowest is greater than highest");
    request = wish("nobody", 5, 60000);
    refused(f, &request.base, WEIR_RPC_FAILED_PRECONDITION,
            "worker registration is missing or expired");
    request = wish("trainer-0", 5, 60000);
    assert_int_equal(call(f, &request.base), WEIR_RPC_FAILED_PRECONDITION);
    assert_int_equal(f->core.waits.n_waits, 0);
}

static void test_a_thousand_waits_are_answered_by_one_look(void **state)
{
    fixture *f = *state;
    char uid[16], name[32];
    register_all(f);
    for (unsigned i = 0; i < 1000; i++) {
        snprintf(name, sizeof(name), "reader-%u", i);
        register_worker(f, name, 2);
        Weir__Directory__AcquireVersionRequest request = wish(name, 5, 60000);
        assert_int_equal(call(f, &request.base), WEIR_RPC_LATER);
    }
    publish_all(f, 5, uid);
    weir_directory_core_tick(&f->core);
    assert_int_equal(f->n_later, 1000);
    for (unsigned i = 1; i < 1000; i++)
        assert_true(f->later[i].ticket > f->later[i - 1].ticket); /* who came first goes first */
    assert_int_equal(weir_store_count(f->core.store).n_leases, 1000);
}

/* ---- over a log that takes time --------------------------------------------------------------*/

static void test_a_change_is_answered_when_it_comes_back(void **state)
{
    fixture *f = *state;
    publish_case c;
    register_all(f);
    f->log->is_slow = true;
    assert_int_equal(call(f, publish_request(&c, "trainer-0", "a", 5)), WEIR_RPC_LATER);
    uint64_t first = f->ticket;
    publish_request(&c, "nobody", "b", 5);
    assert_int_equal(call(f, &c.request.base), WEIR_RPC_LATER);
    uint64_t second = f->ticket;
    assert_int_equal(f->n_later, 0);
    made_up_log_deliver(f->log);
    const Weir__Directory__PublishVersionShardResponse *response = later(f, first);
    assert_int_equal(response->version->state, WEIR_STORE_STAGING);
    assert_int_equal(find_later(f, second)->code, WEIR_RPC_FAILED_PRECONDITION);
    assert_string_equal(find_later(f, second)->text, "worker registration is missing or expired");
}

static void test_a_read_sees_what_was_written_before_it(void **state)
{
    fixture *f = *state;
    char uid[16];
    register_all(f);
    publish_all(f, 5, uid);
    f->log->is_slow = true;
    ModelExpress__Refit__DeleteWeightVersionRequest delete =
        MODEL_EXPRESS__REFIT__DELETE_WEIGHT_VERSION_REQUEST__INIT;
    ModelExpress__Refit__GetWeightVersionRequest get =
        MODEL_EXPRESS__REFIT__GET_WEIGHT_VERSION_REQUEST__INIT;
    delete.uid = get.uid = uid;
    assert_int_equal(call(f, &delete.base), WEIR_RPC_LATER);
    assert_int_equal(call(f, &get.base), WEIR_RPC_LATER);
    uint64_t ticket = f->ticket;
    made_up_log_deliver(f->log);
    const ModelExpress__Refit__WeightVersion *version = later(f, ticket);
    assert_int_equal(version->state, WEIR_STORE_RELEASING);
    assert_int_equal(f->core.waits.n_waits, 0);
}

static void test_a_wish_is_granted_by_a_record(void **state)
{
    fixture *f = *state;
    char uid[16];
    register_all(f);
    publish_all(f, 5, uid);
    f->log->is_slow = true;
    Weir__Directory__AcquireVersionRequest request = wish("replica-0", 5, 60000);
    assert_int_equal(call(f, &request.base), WEIR_RPC_LATER);
    uint64_t ticket = f->ticket;
    made_up_log_deliver(f->log); /* caught up: it is there, so a record goes out */
    assert_int_equal(f->log->n_items, 1);
    assert_null(find_later(f, ticket));
    weir_directory_core_tick(&f->core); /* one record is enough */
    assert_int_equal(f->log->n_items, 1);
    made_up_log_deliver(f->log);
    const Weir__Directory__AcquireVersionResponse *response = later(f, ticket);
    assert_true(response->found);
}

static void test_a_wish_that_another_directory_spoiled_waits_on(void **state)
{
    fixture *f = *state;
    char uid[16];
    register_all(f);
    publish_all(f, 5, uid);
    f->log->is_slow = true;
    ModelExpress__Refit__DeleteWeightVersionRequest delete =
        MODEL_EXPRESS__REFIT__DELETE_WEIGHT_VERSION_REQUEST__INIT;
    delete.uid = uid;
    Weir__Directory__AcquireVersionRequest request = wish("replica-0", 5, 60000);
    assert_int_equal(call(f, &request.base), WEIR_RPC_LATER);
    uint64_t ticket = f->ticket;
    const made_up_item caught_up = f->log->items[0];
    f->log->n_items = 0;
    assert_int_equal(call(f, &delete.base), WEIR_RPC_LATER); /* in the log before the grant */
    caught_up.then(caught_up.context, ticket, f->log->now_ms);
    made_up_log_deliver(f->log);
    assert_null(find_later(f, ticket));
    f->log->is_slow = false;
    publish_all(f, 6, uid);
    weir_directory_core_tick(&f->core);
    const Weir__Directory__AcquireVersionResponse *response = later(f, ticket);
    assert_true(response->found);
    assert_string_equal(response->version->uid, uid);
}

static void test_a_log_that_cannot_be_reached_is_unavailable(void **state)
{
    fixture *f = *state;
    publish_case c;
    register_all(f);
    f->log->is_broken = true;
    Weir__Directory__AcquireVersionRequest request = wish("replica-0", 5, 60000);
    assert_int_equal(call(f, &request.base), WEIR_RPC_UNAVAILABLE);
    assert_int_equal(call(f, publish_request(&c, "trainer-0", "a", 5)), WEIR_RPC_UNAVAILABLE);
    assert_int_equal(f->core.waits.n_waits, 0);
    f->log->is_broken = false;
    f->log->is_slow = true;
    assert_int_equal(call(f, &request.base), WEIR_RPC_LATER);
    f->log->reader.lost(f->log->reader.context, f->ticket, "redis is gone");
    assert_int_equal(find_later(f, f->ticket)->code, WEIR_RPC_UNAVAILABLE);
    assert_string_equal(find_later(f, f->ticket)->text, "redis is gone");
    assert_int_equal(f->core.waits.n_waits, 0);
}

static void test_records_of_a_newer_weir_are_passed_over(void **state)
{
    fixture *f = *state;
    const char *const names[] = { "DirectoryService.Invented", "DirectoryService.GetFleet",
                                  "P2pService.ListSources", "x" };
    weir_store_totals before = totals(f);
    for (size_t i = 0; i < 4; i++) {
        const weir_log_record record = { .method = names[i],
                                         .bytes = (const unsigned char *)"\xff\xff",
                                         .n_bytes = 2 };
        f->log->reader.apply(f->log->reader.context, &record, f->log->now_ms, 0);
    }
    const weir_log_record broken = { .method = "RefitService.RegisterWorker",
                                     .bytes = (const unsigned char *)"\xff\xff",
                                     .n_bytes = 2 };
    f->log->reader.apply(f->log->reader.context, &broken, f->log->now_ms, 0);
    weir_store_totals after = totals(f);
    assert_memory_equal(&before, &after, sizeof(before));
}

/* ---- for people ------------------------------------------------------------------------------*/

static void test_progress_is_kept_until_the_worker_is_done(void **state)
{
    fixture *f = *state;
    char uid[16];
    word_case c;
    register_all(f);
    publish_all(f, 5, uid);
    Weir__Directory__ReportProgressRequest request = WEIR__DIRECTORY__REPORT_PROGRESS_REQUEST__INIT;
    request.worker_id = (char *)"replica-0";
    request.model_name = (char *)MODEL;
    request.stop = (char *)"transfer";
    unsigned n_records = f->log->n_records;
    answered(f, &request.base);
    request.done_bytes = 5;
    answered(f, &request.base);
    assert_int_equal(f->core.progress.n, 1);
    assert_int_equal(f->log->n_records, n_records);
    answered(f, word_request(&c, "replica-0", uid, 5));
    assert_int_equal(f->core.progress.n, 0);
    request.worker_id = (char *)"";
    assert_int_equal(call(f, &request.base), WEIR_RPC_INVALID_ARGUMENT);
}

static void test_a_watch_of_the_fleet_ends_with_a_change(void **state)
{
    fixture *f = *state;
    Weir__Directory__GetFleetRequest request = WEIR__DIRECTORY__GET_FLEET_REQUEST__INIT;
    const Weir__Directory__GetFleetResponse *response = answered(f, &request.base);
    request.after_revision = response->revision;
    request.timeout_ms = 60000;
    assert_int_equal(call(f, &request.base), WEIR_RPC_LATER);
    uint64_t ticket = f->ticket;
    weir_directory_core_tick(&f->core);
    assert_null(find_later(f, ticket));
    register_worker(f, "trainer-0", 1);
    weir_directory_core_tick(&f->core);
    response = later(f, ticket);
    assert_true(response->revision > request.after_revision);
    assert_int_equal(response->json[0], '{');
}

int main(void)
{
#define CASE(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        CASE(test_a_shard_its_version_and_its_entry_are_one_step),
        CASE(test_a_refused_shard_leaves_nothing_behind),
        CASE(test_other_bytes_under_the_same_slot_are_refused_whole),
        CASE(test_an_entry_without_identity_is_the_old_one_of_the_new_version),
        CASE(test_an_aborted_version_is_another_attempt),
        CASE(test_what_is_ready_is_given_at_once_with_a_lease),
        CASE(test_a_wish_waits_for_the_last_shard),
        CASE(test_a_wish_ends_naming_what_is_missing),
        CASE(test_a_wish_for_a_peer_is_looked_at_when_its_patience_ends),
        CASE(test_a_dead_trainer_is_missing_and_a_wait_sees_it_come_back),
        CASE(test_who_is_gone_gets_no_lease),
        CASE(test_bad_wishes_are_refused_at_once),
        CASE(test_a_thousand_waits_are_answered_by_one_look),
        CASE(test_a_change_is_answered_when_it_comes_back),
        CASE(test_a_read_sees_what_was_written_before_it),
        CASE(test_a_wish_is_granted_by_a_record),
        CASE(test_a_wish_that_another_directory_spoiled_waits_on),
        CASE(test_a_log_that_cannot_be_reached_is_unavailable),
        CASE(test_records_of_a_newer_weir_are_passed_over),
        CASE(test_progress_is_kept_until_the_worker_is_done),
        CASE(test_a_watch_of_the_fleet_ends_with_a_change),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
