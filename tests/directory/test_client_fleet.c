/* SPDX-License-Identifier: Apache-2.0 */
/* test_client_fleet.c - the client's calls of DirectoryService, against a server that answers what
 * it is told to. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <pthread.h>
#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "directory.pb-c.h"
#include "directory/client.h"
#include "rpc/rpc.h"

#define TIMEOUT_MS 2000
#define FILL(type, init, name) \
    type name;                 \
    init(&name)

typedef struct fixture {
    weir_rpc_server *server;
    weir_directory_client *client;
    weir_rpc_code code; /* of every answer */
    unsigned n_calls;
    const ProtobufCMessage *answer;
    char asked[512]; /* what of the request is of interest */
} fixture;

/* Beside a call that nobody has answered nothing orders the two threads. */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static weir_rpc_code reply(fixture *f, const ProtobufCMessage **out, char *text)
{
    f->n_calls++;
    *out = f->answer;
    snprintf(text, WEIR_RPC_MESSAGE_TEXT, "as it was told");
    return f->code;
}

static weir_rpc_code on_publish(void *context, const weir_rpc_call_info *call,
                                const ProtobufCMessage *message, weir_arena *arena,
                                const ProtobufCMessage **out, char *text)
{
    const Weir__Directory__PublishVersionShardRequest *r = (const void *)message;
    fixture *f = context;
    (void)call, (void)arena;
    snprintf(f->asked, sizeof(f->asked), "%s %s %llu %zu %s %s %s %d %zu %s %llu", r->model_name,
             r->run, (unsigned long long)r->version_number, r->n_expected_source_slots,
             r->shard->source_slot_id, r->source->worker_id, r->layout_signature,
             r->source->identity != NULL && r->source->worker != NULL, r->n_stops,
             r->stops[0]->name, (unsigned long long)r->stops[0]->duration_us);
    return reply(f, out, text);
}

static weir_rpc_code on_acquire(void *context, const weir_rpc_call_info *call,
                                const ProtobufCMessage *message, weir_arena *arena,
                                const ProtobufCMessage **out, char *text)
{
    const Weir__Directory__AcquireVersionRequest *r = (const void *)message;
    fixture *f = context;
    (void)call, (void)arena;
    snprintf(f->asked, sizeof(f->asked), "%s %s %s %llu %s %u", r->model_name, r->run, r->worker_id,
             (unsigned long long)r->lowest, r->but_not_id, r->timeout_ms);
    pthread_mutex_lock(&lock);
    bool later = f->answer == NULL && f->code == WEIR_RPC_OK;
    weir_rpc_code code = later ? WEIR_RPC_LATER : reply(f, out, text);
    pthread_mutex_unlock(&lock);
    return code;
}

static weir_rpc_code on_any(void *context, const weir_rpc_call_info *call,
                            const ProtobufCMessage *message, weir_arena *arena,
                            const ProtobufCMessage **out, char *text)
{
    (void)call, (void)arena, (void)message;
    return reply(context, out, text);
}

static weir_rpc_code on_acknowledge(void *context, const weir_rpc_call_info *call,
                                    const ProtobufCMessage *message, weir_arena *arena,
                                    const ProtobufCMessage **out, char *text)
{
    const Weir__Directory__AcknowledgeVersionRequest *r = (const void *)message;
    fixture *f = context;
    (void)call, (void)arena;
    snprintf(f->asked, sizeof(f->asked), "%s %d %s %s %s", r->version_id, (int)(int32_t)r->status,
             r->text, r->lease_id, r->source->worker_id);
    return reply(f, out, text);
}

static const weir_rpc_method methods[] = {
    { "PublishVersionShard", on_publish },
    { "AcquireVersion", on_acquire },
    { "AwaitReplicas", on_any },
    { "RetireVersions", on_any },
    { "AbortVersion", on_any },
    { "AcknowledgeVersion", on_acknowledge },
};

static int open_fixture(void **state)
{
    static fixture f;
    f = (fixture){ .code = WEIR_RPC_OK };
    const weir_rpc_service service = { &weir__directory__directory_service__descriptor, methods,
                                       sizeof(methods) / sizeof(methods[0]), &f };
    const weir_rpc_server_options options = { .listen = "127.0.0.1:0",
                                              .services = &service,
                                              .n_services = 1 };
    *state = &f;
    return weir_rpc_server_open(&options, &f.server) != WEIR_OK ||
           weir_directory_client_open(weir_rpc_server_address(f.server), TIMEOUT_MS, &f.client) !=
               WEIR_OK;
}

static int close_fixture(void **state)
{
    fixture *f = *state;
    weir_directory_client_close(f->client);
    weir_rpc_server_close(f->server);
    return 0;
}

static void assert_error_has(const char *piece)
{
    if (strstr(weir_last_error(), piece) == NULL)
        fail_msg("'%s' is not in '%s'", piece, weir_last_error());
}

/* ---- publishing ------------------------------------------------------------------------------*/

static weir_status publish(fixture *f, bool is_known, weir_publish_answer *answer)
{
    static const char *const slots[] = { "rank-0", "rank-1" };
    const weir_stop_span span = { .name = "stage", .begun_unix_us = 7, .duration_us = 11 };
    weir_shard_record shard = { .slot = "rank-1", .worker_id = "w" };
    weir_source_record source = { .worker_id = "w",
                                  .model = "m",
                                  .run = "r",
                                  .role = "trainer",
                                  .version = 5,
                                  .layout_signature = "sig" };
    weir_publish_request request = { .shard = &shard,
                                     .source = &source,
                                     .source_is_known = is_known,
                                     .slots = slots,
                                     .n_slots = 2,
                                     .trace_id = "",
                                     .spans = &span,
                                     .n_spans = 1 };
    return weir_directory_publish_version_shard(f->client, &request, answer);
}

static void test_a_shard_and_its_entry_go_in_one_message(void **state)
{
    fixture *f = *state;
    weir_publish_answer answer;
    char long_text[300];
    FILL(ModelExpress__Refit__WeightVersion, model_express__refit__weight_version__init, version);
    FILL(Weir__Directory__PublishVersionShardResponse,
         weir__directory__publish_version_shard_response__init, response);
    version.uid = (char *)"0000000a";
    version.state = MODEL_EXPRESS__REFIT__WEIGHT_VERSION_STATE__WEIGHT_VERSION_STATE_READY;
    response.version = &version;
    response.attempt = 3;
    response.mx_source_id = (char *)"source";
    f->answer = &response.base;
    assert_int_equal(publish(f, false, &answer), WEIR_OK);
    assert_string_equal(f->asked, "m r 5 2 rank-1 w sig 1 1 stage 11");
    assert_string_equal(answer.version.uid, "0000000a");
    assert_int_equal(answer.version.state, WEIR_VERSION_READY);
    assert_int_equal(answer.attempt, 3);
    assert_string_equal(answer.source_id, "source");
    assert_int_equal(publish(f, true, &answer), WEIR_OK);
    assert_string_equal(f->asked, "m r 5 2 rank-1 w sig 0 1 stage 11");
    memset(long_text, 'x', sizeof(long_text) - 1);
    long_text[sizeof(long_text) - 1] = '\0';
    response.trace_id = long_text;
    assert_int_equal(publish(f, true, &answer), WEIR_ERR_FORMAT);
    assert_error_has("trace_id has 299 bytes, at most 63 are allowed");
    response.version = NULL;
    assert_int_equal(publish(f, true, &answer), WEIR_ERR_FORMAT);
    assert_error_has("PublishVersionShard gave no version");
}

/* ---- waiting ---------------------------------------------------------------------------------*/

static weir_status acquire(fixture *f, unsigned timeout_ms, weir_acquire_answer *answer)
{
    weir_shard_record shard;
    const weir_acquire_request request = { .model = "m",
                                           .run = "r",
                                           .worker_id = "w",
                                           .lowest = 4,
                                           .highest = UINT64_MAX,
                                           .but_not_uid = "b",
                                           .host = "",
                                           .part = "",
                                           .ttl_s = 9,
                                           .timeout_ms = timeout_ms,
                                           .trace_id = "" };
    return weir_directory_acquire_version(f->client, &request, &shard, 1, answer);
}

static void test_a_version_comes_with_its_lease_and_shards(void **state)
{
    fixture *f = *state;
    weir_acquire_answer answer;
    char *slots[] = { (char *)"rank-0" };
    FILL(ModelExpress__Refit__WeightVersion, model_express__refit__weight_version__init, version);
    FILL(ModelExpress__Refit__VersionLease, model_express__refit__version_lease__init, lease);
    FILL(ModelExpress__Refit__WeightVersionShard, model_express__refit__weight_version_shard__init,
         shard);
    FILL(Weir__Directory__Peer, weir__directory__peer__init, peer);
    FILL(Weir__Directory__AcquireVersionResponse, weir__directory__acquire_version_response__init,
         response);
    ModelExpress__Refit__WeightVersionShard *shards[] = { &shard, &shard };
    version.uid = (char *)"0000000a";
    version.expected_source_slots = slots;
    version.n_expected_source_slots = 1;
    lease.lease_id = (char *)"lease";
    peer.worker_id = (char *)"near";
    response = (Weir__Directory__AcquireVersionResponse){ .base = response.base,
                                                          .found = true,
                                                          .version = &version,
                                                          .lease = &lease,
                                                          .shards = shards,
                                                          .n_shards = 2,
                                                          .peer = &peer,
                                                          .trace_id = response.trace_id,
                                                          .awaited_id = response.awaited_id,
                                                          .reason = response.reason };
    f->answer = &response.base;
    assert_int_equal(acquire(f, 100000, &answer), WEIR_OK);
    assert_string_equal(f->asked, "m r w 4 b 20000"); /* one slice of the wait */
    assert_string_equal(answer.lease_id, "lease");
    assert_string_equal(answer.peer.worker_id, "near");
    assert_int_equal(answer.n_shards, 2); /* of which there was room for one */
    assert_string_equal(weir_directory_version_slot(f->client, 0), "rank-0");
    response.lease = NULL;
    assert_int_equal(acquire(f, 0, &answer), WEIR_ERR_FORMAT);
    assert_error_has("AcquireVersion gave no version or lease");
}

static void test_what_there_is_instead_is_said(void **state)
{
    fixture *f = *state;
    weir_acquire_answer answer;
    char *missing[] = { (char *)"rank-2", (char *)"rank-3" };
    char reason[600];
    FILL(Weir__Directory__GoneSlot, weir__directory__gone_slot__init, gone);
    Weir__Directory__GoneSlot *all_gone[] = { &gone };
    gone.source_slot_id = (char *)"rank-3", gone.worker_id = (char *)"trainer-3";
    FILL(Weir__Directory__AcquireVersionResponse, weir__directory__acquire_version_response__init,
         response);
    memset(reason, 'r', sizeof(reason) - 1);
    reason[3] = '\n';
    reason[sizeof(reason) - 1] = '\0';
    response.has_trainer = true;
    response.newest = 8;
    response.awaited_id = (char *)"0000000b";
    response.awaited_state = WEIR__DIRECTORY__VERSION_STATE__VERSION_STATE_ABORTED;
    response.missing_slots = missing;
    response.n_missing_slots = 2;
    response.gone_slots = all_gone;
    response.n_gone_slots = 1;
    response.reason = reason;
    f->answer = &response.base;
    assert_int_equal(acquire(f, 10, &answer), WEIR_IN_PROGRESS);
    assert_true(answer.has_trainer && answer.newest == 8);
    assert_int_equal(answer.n_missing, 1);
    assert_string_equal(answer.missing, "rank-2");
    assert_int_equal(answer.n_gone, 1);
    assert_string_equal(answer.gone, "rank-3 (worker trainer-3)");
    assert_int_equal(answer.awaited_state, WEIR_VERSION_ABORTED);
    assert_int_equal(strlen(answer.reason), WEIR_NAME_BYTES - 1); /* as much as there is room for */
    assert_null(strchr(answer.reason, '\n'));
}

static void *interrupt_soon(void *context)
{
    fixture *f = ((void **)context)[0];
    weir_sleep_ms(150);
    atomic_store((atomic_bool *)((void **)context)[1], true);
    weir_directory_client_interrupt(f->client);
    return NULL;
}

static void test_a_wait_is_interrupted_and_no_other_call(void **state)
{
    fixture *f = *state;
    atomic_bool cancelled = false;
    void *context[] = { f, &cancelled };
    pthread_t thread;
    weir_acquire_answer answer;
    /* The last call is cancelled: its answer may be packed when this case is over. */
    static Weir__Directory__AbortVersionResponse response;
    weir__directory__abort_version_response__init(&response);
    weir_directory_client_heed(f->client, &cancelled);
    pthread_create(&thread, NULL, interrupt_soon, context);
    double begun_s = weir_now_s();
    assert_int_equal(acquire(f, 10000, &answer), WEIR_IN_PROGRESS);
    assert_true(weir_now_s() - begun_s < 2);
    pthread_join(thread, NULL);
    unsigned n_calls = f->n_calls;
    assert_int_equal(acquire(f, 10000, &answer), WEIR_IN_PROGRESS); /* it does not even begin */
    assert_int_equal(f->n_calls, n_calls);
    weir_directory_client_interrupt(f->client); /* nobody waits */
    pthread_mutex_lock(&lock);
    f->answer = &response.base;
    pthread_mutex_unlock(&lock);
    assert_int_equal(weir_directory_abort_version(f->client, "v", "w", "why"), WEIR_OK);
    weir_directory_client_cancel(f->client);
    assert_int_equal(weir_directory_abort_version(f->client, "v", "w", "why"), WEIR_ERR_CANCELLED);
}

static void test_a_server_that_does_not_answer_is_left_in_time(void **state)
{
    fixture *f = *state;
    weir_acquire_answer answer;
    double begun_s = weir_now_s();
    assert_int_equal(acquire(f, 100, &answer), WEIR_ERR_TIMED_OUT);
    assert_true(weir_now_s() - begun_s < 2 * TIMEOUT_MS / 1e3);
}

static void test_who_refuses_is_told_apart_from_who_holds(void **state)
{
    fixture *f = *state;
    weir_refusal refusal;
    weir_await_answer answer;
    FILL(Weir__Directory__ReplicaWord, weir__directory__replica_word__init, good);
    Weir__Directory__ReplicaWord bad = good, worse = good;
    Weir__Directory__ReplicaWord *words[] = { &good, &bad, &worse };
    FILL(Weir__Directory__AwaitReplicasResponse, weir__directory__await_replicas_response__init,
         response);
    bad.worker_id = (char *)"b", bad.status = (uint32_t)WEIR_ERR_LAYOUT, bad.text = (char *)"no";
    worse.status = (uint32_t)WEIR_ERR_DEVICE;
    response.words = words;
    response.n_words = 3;
    response.n_holding = 1;
    f->answer = &response.base;
    assert_int_equal(
        weir_directory_await_replicas(f->client, "m", "v", 3, 10, &refusal, 1, &answer),
        WEIR_IN_PROGRESS);
    assert_int_equal(answer.n_holding, 1);
    assert_int_equal(answer.n_refusals, 2);
    assert_string_equal(refusal.worker_id, "b");
    assert_int_equal(refusal.status, WEIR_ERR_LAYOUT);
    assert_string_equal(refusal.text, "no");
    assert_int_equal(
        weir_directory_await_replicas(f->client, "m", "v", 1, 10, &refusal, 1, &answer), WEIR_OK);
    response.state = WEIR__DIRECTORY__VERSION_STATE__VERSION_STATE_ABORTED;
    assert_int_equal(
        weir_directory_await_replicas(f->client, "m", "v", 3, 10, &refusal, 1, &answer), WEIR_OK);
    assert_int_equal(answer.state, WEIR_VERSION_ABORTED);
}

static void test_who_is_waited_for_is_named_as_far_as_there_is_room(void **state)
{
    fixture *f = *state;
    weir_await_answer answer;
    FILL(Weir__Directory__Straggler, weir__directory__straggler__init, plain);
    Weir__Directory__Straggler reads = plain;
    Weir__Directory__Straggler *all[] = { &reads, &plain, &plain, &plain, &plain, &plain };
    FILL(Weir__Directory__AwaitReplicasResponse, weir__directory__await_replicas_response__init,
         response);
    reads.worker_id = (char *)"r", reads.reads = true, reads.stop = (char *)"transfer";
    reads.slowest_from = (char *)"rank-1", reads.silent_ms = 4200;
    reads.has_number = true, reads.version_number = 6, reads.ended_ms = 2000;
    response.stragglers = all;
    response.n_stragglers = 6;
    f->answer = &response.base;
    assert_int_equal(weir_directory_await_replicas(f->client, "m", "v", 3, 10, NULL, 0, &answer),
                     WEIR_IN_PROGRESS);
    assert_int_equal(answer.n_stragglers, 6);
    const weir_await_straggler *first = &answer.stragglers[0];
    assert_string_equal(first->worker_id, "r");
    assert_true(first->reads);
    assert_true(first->has_version);
    assert_int_equal(first->version, 6);
    assert_string_equal(first->stop, "transfer");
    assert_string_equal(first->from, "rank-1");
    assert_int_equal(first->silent_ms, 4200);
    assert_int_equal(first->ended_ms, 2000);
    assert_false(answer.stragglers[3].reads);
}

static void test_readers_of_what_is_taken_back_are_named(void **state)
{
    fixture *f = *state;
    const char *uid = "v";
    char *names[] = { (char *)"one", (char *)"two" };
    char readers[600];
    FILL(Weir__Directory__RetireVersionsResponse, weir__directory__retire_versions_response__init,
         response);
    f->answer = &response.base;
    assert_int_equal(weir_directory_retire_versions(f->client, &uid, 1, "rank-0", "w", 10, readers,
                                                    sizeof(readers)),
                     WEIR_OK);
    response.leased_by = names;
    response.n_leased_by = 2;
    assert_int_equal(weir_directory_retire_versions(f->client, &uid, 1, "rank-0", "w", 10, readers,
                                                    sizeof(readers)),
                     WEIR_IN_PROGRESS);
    assert_string_equal(readers, "one, two");
}

static void test_a_failure_is_told_with_its_status(void **state)
{
    fixture *f = *state;
    char source_id[WEIR_ID_BYTES];
    weir_acknowledgement word = { .source = { .worker_id = "w", .model = "m", .run = "r" },
                                  .version_uid = "v",
                                  .lease_id = "l",
                                  .status = WEIR_ERR_LAYOUT,
                                  .text = "too wide" };
    FILL(Weir__Directory__AcknowledgeVersionResponse,
         weir__directory__acknowledge_version_response__init, response);
    response.mx_source_id = (char *)"s";
    f->answer = &response.base;
    assert_int_equal(weir_directory_acknowledge_version(f->client, &word, source_id), WEIR_OK);
    assert_string_equal(f->asked, "v -41 too wide l w");
    assert_string_equal(source_id, "s");
}

/* ---- a server that has no such service -------------------------------------------------------*/

static void test_a_server_without_the_service_is_asked_once(void **state)
{
    fixture *f = *state;
    weir_acquire_answer answer;
    f->code = WEIR_RPC_UNIMPLEMENTED;
    assert_int_equal(acquire(f, 10, &answer), WEIR_ERR_UNSUPPORTED);
    assert_true(weir_directory_is_plain(f->client));
    uint64_t n_messages = weir_directory_client_messages(f->client);
    assert_int_equal(acquire(f, 10, &answer), WEIR_ERR_UNSUPPORTED);
    assert_error_has("has no weir.directory.DirectoryService");
    assert_int_equal(weir_directory_abort_version(f->client, "v", "w", ""), WEIR_ERR_UNSUPPORTED);
    assert_int_equal(weir_directory_client_messages(f->client), n_messages);
    f->code = WEIR_RPC_UNAVAILABLE;
    assert_int_equal(weir_directory_delete_version(f->client, "v"), WEIR_ERR_UNSUPPORTED);
    assert_true(weir_directory_is_plain(f->client));
}

int main(void)
{
#define CASE(test) cmocka_unit_test_setup_teardown(test, open_fixture, close_fixture)
    const struct CMUnitTest tests[] = {
        CASE(test_a_shard_and_its_entry_go_in_one_message),
        CASE(test_a_version_comes_with_its_lease_and_shards),
        CASE(test_what_there_is_instead_is_said),
        CASE(test_a_wait_is_interrupted_and_no_other_call),
        CASE(test_a_server_that_does_not_answer_is_left_in_time),
        CASE(test_who_refuses_is_told_apart_from_who_holds),
        CASE(test_who_is_waited_for_is_named_as_far_as_there_is_room),
        CASE(test_readers_of_what_is_taken_back_are_named),
        CASE(test_a_failure_is_told_with_its_status),
        CASE(test_a_server_without_the_service_is_asked_once),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
