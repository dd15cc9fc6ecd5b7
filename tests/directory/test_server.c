/* SPDX-License-Identifier: Apache-2.0 */
/* test_server.c - opening and closing a directory. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "directory/client.h"
#include "health.pb-c.h"
#include "p2p.pb-c.h"
#include "rpc/rpc.h"
#include "weir/weir.h"

static void test_it_says_where_it_listens_and_how_it_is(void **state)
{
    (void)state;
    weir_directory *directory;
    weir_rpc_client *client;
    weir_arena arena;
    weir_arena_init(&arena, 0);
    assert_int_equal(weir_directory_open(NULL, &directory), WEIR_OK);
    assert_memory_equal(weir_directory_address(directory), "127.0.0.1:", 10);
    assert_int_equal(weir_rpc_client_open(weir_directory_address(directory), NULL, NULL, &client),
                     WEIR_OK);
    ModelExpress__Health__HealthRequest request = MODEL_EXPRESS__HEALTH__HEALTH_REQUEST__INIT;
    const ProtobufCMessage *answer;
    assert_int_equal(weir_rpc_call(client, &model_express__health__health_service__descriptor,
                                   "GetHealth", &request.base, 10000, &arena, &answer),
                     WEIR_OK);
    const ModelExpress__Health__HealthResponse *response = (const void *)answer;
    assert_string_equal(response->status, "ok");
    assert_string_equal(response->version, WEIR_VERSION);
    weir_rpc_client_close(client);
    weir_arena_close(&arena);
    weir_directory_close(directory);
    weir_directory_close(NULL);
}

static void put_token(const char *path, const char *token)
{
    char next[96];
    snprintf(next, sizeof(next), "%s.next", path);
    FILE *file = fopen(next, "w");
    assert_non_null(file);
    fputs(token, file);
    fclose(file);
    assert_int_equal(rename(next, path), 0);
}

static weir_status register_through(weir_directory_client *client)
{
    return weir_directory_register_worker(client, "w", WEIR_ROLE_TRAINER, "m", 9);
}

/* Of a directory and a trainer that were told of the file in code. */
static void test_a_token_file_of_an_embedder_is_rotated_while_both_run(void **state)
{
    (void)state;
    char folder[] = "/tmp/weir-server-XXXXXX", path[64];
    weir_directory *directory;
    weir_directory_client *stranger;
    weir_trainer *trainer, *later;
    assert_non_null(mkdtemp(folder));
    snprintf(path, sizeof(path), "%s/token", folder);
    put_token(path, "one");
    weir_directory_options options = WEIR_DIRECTORY_OPTIONS_INIT;
    options.security.token_file = path;
    assert_int_equal(weir_directory_open(&options, &directory), WEIR_OK);
    weir_trainer_options worker = WEIR_TRAINER_OPTIONS_INIT;
    worker.directory = weir_directory_address(directory);
    worker.model = "m";
    worker.security.token_file = path;
    assert_int_equal(weir_trainer_open(&worker, &trainer), WEIR_OK);
    put_token(path, "two");
    assert_int_equal(weir_trainer_open(&worker, &later), WEIR_OK);
    assert_int_equal(weir_directory_client_open(worker.directory, 5000, &stranger), WEIR_OK);
    const weir_rpc_security ways[] = { { .token = NULL },
                                       { .token = "other" },
                                       { .token = "two" } };
    for (int i = 0; i < 3; i++) {
        assert_int_equal(weir_directory_client_secure(stranger, &ways[i]), WEIR_OK);
        assert_int_equal(register_through(stranger) == WEIR_OK, i == 2);
    }
    weir_directory_client_close(stranger);
    weir_trainer_close(later);
    weir_trainer_close(trainer);
    weir_directory_close(directory);
    assert_int_equal(unlink(path), 0);
    assert_int_equal(rmdir(folder), 0);
}

static void test_a_port_in_use_is_named(void **state)
{
    (void)state;
    weir_directory *first, *second;
    assert_int_equal(weir_directory_open(NULL, &first), WEIR_OK);
    weir_directory_options options = WEIR_DIRECTORY_OPTIONS_INIT;
    options.listen = weir_directory_address(first);
    assert_int_equal(weir_directory_open(&options, &second), WEIR_ERR_IO);
    char expected[128];
    snprintf(expected, sizeof(expected), "cannot listen on %s: Address already in use",
             options.listen);
    assert_string_equal(weir_last_error(), expected);
    weir_directory_close(first);
}

static void test_options_of_another_age(void **state)
{
    (void)state;
    struct {
        weir_directory_options known;
        uint64_t later;
    } options = { WEIR_DIRECTORY_OPTIONS_INIT, 0 };
    weir_directory *directory;
    options.known.size = sizeof(options);
    assert_int_equal(weir_directory_open(&options.known, &directory), WEIR_OK);
    weir_directory_close(directory);
    options.later = 1;
    assert_int_equal(weir_directory_open(&options.known, &directory), WEIR_ERR_INVALID);
    options.known.size = 0;
    assert_int_equal(weir_directory_open(&options.known, &directory), WEIR_ERR_INVALID);
    assert_string_equal(weir_last_error(),
                        "weir_directory_options: size is 0, set it with its _INIT macro");
}

static void test_failed_allocations_leave_nothing_open(void **state)
{
    (void)state;
    for (uint64_t n = 1; n <= 6; n++) {
        weir_directory *directory = NULL;
        weir_alloc_fail_at(n);
        weir_status status = weir_directory_open(NULL, &directory);
        weir_alloc_fail_at(0);
        assert_int_equal(status, WEIR_ERR_NO_MEMORY);
        assert_null(directory);
    }
}

static void test_a_store_that_is_none_is_refused(void **state)
{
    (void)state;
    weir_directory *directory;
    weir_directory_options options = WEIR_DIRECTORY_OPTIONS_INIT;
    options.store = "sqlite://x";
    assert_int_equal(weir_directory_open(&options, &directory), WEIR_ERR_INVALID);
    assert_string_equal(weir_last_error(),
                        "the store is neither memory nor redis://[USER:PASSWORD@]HOST:PORT[/DB]");
    options.store = "memory";
    assert_int_equal(weir_directory_open(&options, &directory), WEIR_OK);
    weir_directory_close(directory);
}

/* ---- waits -----------------------------------------------------------------------------------*/

#define N_READERS 8

typedef struct reader {
    pthread_t thread;
    const char *address;
    unsigned number, timeout_ms;
    weir_status status;
    weir_acquire_answer answer;
} reader;

static void *read_version(void *argument)
{
    reader *self = argument;
    weir_directory_client *client;
    weir_shard_record shard;
    char id[32];
    snprintf(id, sizeof(id), "replica-%u", self->number);
    self->status = weir_directory_client_open(self->address, 10000, &client);
    if (self->status != WEIR_OK)
        return NULL;
    self->status = weir_directory_register_worker(client, id, WEIR_ROLE_GENERATOR, "m", 90);
    const weir_acquire_request request = { .model = "m",
                                           .run = "run",
                                           .worker_id = id,
                                           .lowest = 1,
                                           .highest = UINT64_MAX,
                                           .but_not_uid = "",
                                           .host = "",
                                           .part = "",
                                           .ttl_s = 30,
                                           .timeout_ms = self->timeout_ms,
                                           .trace_id = "" };
    if (self->status == WEIR_OK)
        self->status = weir_directory_acquire_version(client, &request, &shard, 1, &self->answer);
    weir_directory_client_close(client);
    return NULL;
}

static void publish_version(const char *address)
{
    static const char *const slots[] = { "rank-0" };
    weir_directory_client *client;
    weir_publish_answer answer;
    const weir_shard_record shard = { .slot = "rank-0",
                                      .worker_id = "trainer",
                                      .manifest_digest = "sha256:0",
                                      .manifest_endpoint = "127.0.0.1:1",
                                      .transport = "ucx" };
    const weir_source_record source = { .worker_id = "trainer",
                                        .model = "m",
                                        .run = "run",
                                        .role = "trainer",
                                        .n_ranks = 1,
                                        .status = WEIR_SOURCE_READY,
                                        .version = 7,
                                        .endpoint = "127.0.0.1:1" };
    const weir_publish_request request = {
        .shard = &shard, .source = &source, .slots = slots, .n_slots = 1, .trace_id = ""
    };
    assert_int_equal(weir_directory_client_open(address, 10000, &client), WEIR_OK);
    assert_int_equal(weir_directory_register_worker(client, "trainer", WEIR_ROLE_TRAINER, "m", 90),
                     WEIR_OK);
    assert_int_equal(weir_directory_publish_version_shard(client, &request, &answer), WEIR_OK);
    assert_int_equal(answer.version.state, WEIR_VERSION_READY);
    weir_directory_client_close(client);
}

static void test_whoever_waits_is_told_at_once(void **state)
{
    (void)state;
    weir_directory *directory;
    reader readers[N_READERS];
    memset(readers, 0, sizeof(readers));
    assert_int_equal(weir_directory_open(NULL, &directory), WEIR_OK);
    for (unsigned i = 0; i < N_READERS; i++) {
        readers[i].address = weir_directory_address(directory);
        readers[i].number = i;
        readers[i].timeout_ms = 20000;
        assert_int_equal(pthread_create(&readers[i].thread, NULL, read_version, &readers[i]), 0);
    }
    publish_version(weir_directory_address(directory)); /* before some of them ask, after others */
    for (unsigned i = 0; i < N_READERS; i++) {
        pthread_join(readers[i].thread, NULL);
        assert_int_equal(readers[i].status, WEIR_OK);
        assert_int_equal(readers[i].answer.version.number, 7);
    }
    weir_directory_close(directory);
}

static void test_a_wait_ends_at_its_bound(void **state)
{
    (void)state;
    weir_directory *directory;
    reader alone = { .timeout_ms = 100 };
    assert_int_equal(weir_directory_open(NULL, &directory), WEIR_OK);
    alone.address = weir_directory_address(directory);
    double begun = weir_now_s();
    read_version(&alone);
    assert_true(weir_now_s() - begun >= 0.09); /* no sooner; a slow machine may be later */
    assert_int_equal(alone.status, WEIR_IN_PROGRESS);
    assert_false(alone.answer.has_trainer);
    weir_directory_close(directory);
}

static void *close_soon(void *argument)
{
    weir_sleep_ms(50);
    weir_directory_close(argument);
    return NULL;
}

static void test_a_directory_that_closes_lets_waits_go(void **state)
{
    (void)state;
    weir_directory *directory;
    pthread_t thread;
    char address[64];
    assert_int_equal(weir_directory_open(NULL, &directory), WEIR_OK);
    snprintf(address, sizeof(address), "%s", weir_directory_address(directory));
    reader alone = { .address = address, .timeout_ms = 20000 };
    assert_int_equal(pthread_create(&thread, NULL, close_soon, directory), 0);
    double begun = weir_now_s();
    read_version(&alone);
    assert_true(weir_now_s() - begun < 15);
    assert_int_equal(alone.status, WEIR_ERR_PEER_LOST);
    pthread_join(thread, NULL);
}

/* ---- how large a request may be --------------------------------------------------------------*/

typedef struct large_publish {
    weir_directory *directory;
    weir_directory_client *client;
    char *names[WEIR_MAX_RANKS];
    weir_shard_record shard;
    weir_source_record source;
    weir_sidecar_registry registry;
} large_publish;

/* Slots with names of so many characters; the last one is this rank's. */
static void name_slots(large_publish *large, size_t n_name)
{
    for (size_t i = 0; i < WEIR_MAX_RANKS; i++) {
        free(large->names[i]);
        large->names[i] = malloc(n_name + 1);
        memset(large->names[i], 's', n_name);
        snprintf(large->names[i] + n_name - 4, 5, "%04zu", i);
    }
    snprintf(large->shard.slot, sizeof(large->shard.slot), "%s", large->names[WEIR_MAX_RANKS - 1]);
}

/* A registry that has as many bytes as may travel: its text in one string. */
static void fill_registry(weir_sidecar_registry *registry)
{
    static const char begin[] = "{\"version\":0,\"tensors\":[\"", end[] = "\"]}";
    size_t n_text = ((size_t)4 << 20) - 64; /* quotes take two bytes as they travel */
    char *text = malloc(n_text + 1);
    memset(text, 'r', n_text);
    memcpy(text, begin, sizeof(begin) - 1);
    strcpy(text + n_text - (sizeof(end) - 1), end);
    assert_int_equal(weir_sidecar_registry_set(registry, text), WEIR_OK);
    assert_false(registry->in_manifest);
    assert_true(registry->n_bytes > ((size_t)4 << 20) - 128);
    free(text);
}

static large_publish *open_large(void)
{
    large_publish *large = calloc(1, sizeof(*large));
    weir_source_record *source = &large->source;
    assert_int_equal(weir_directory_open(NULL, &large->directory), WEIR_OK);
    assert_int_equal(
        weir_directory_client_open(weir_directory_address(large->directory), 20000, &large->client),
        WEIR_OK);
    fill_registry(&large->registry);
    strcpy(source->worker_id, "trainer-1023");
    strcpy(source->model, "m");
    strcpy(source->run, "r");
    strcpy(source->role, "trainer");
    strcpy(source->endpoint, "127.0.0.1:1");
    source->rank = WEIR_MAX_RANKS - 1;
    source->n_ranks = WEIR_MAX_RANKS;
    source->version = 1;
    source->status = WEIR_SOURCE_READY;
    source->registry = &large->registry;
    strcpy(large->shard.worker_id, source->worker_id);
    strcpy(large->shard.transport, "ucx");
    assert_int_equal(weir_directory_register_worker(large->client, source->worker_id,
                                                    WEIR_ROLE_TRAINER, "m", 60),
                     WEIR_OK);
    return large;
}

static void close_large(large_publish *large)
{
    for (size_t i = 0; i < WEIR_MAX_RANKS; i++)
        free(large->names[i]);
    weir_sidecar_registry_free(&large->registry);
    weir_directory_client_close(large->client);
    weir_directory_close(large->directory);
    free(large);
}

static weir_status publish_large(const large_publish *large, weir_publish_answer *answer)
{
    const weir_publish_request request = { .shard = &large->shard,
                                           .source = &large->source,
                                           .slots = (const char *const *)large->names,
                                           .n_slots = WEIR_MAX_RANKS,
                                           .trace_id = "",
                                           .content = "" };
    return weir_directory_publish_version_shard(large->client, &request, answer);
}

/* Gives the bytes of the entry as others read it. */
static size_t read_entry(const large_publish *large, const char *source_id)
{
    weir_rpc_client *client;
    weir_arena arena;
    const ProtobufCMessage *answer;
    ModelExpress__P2p__GetMetadataRequest request = MODEL_EXPRESS__P2P__GET_METADATA_REQUEST__INIT;
    weir_arena_init(&arena, (size_t)64 << 20);
    request.mx_source_id = (char *)source_id;
    request.worker_id = (char *)large->source.worker_id;
    assert_int_equal(
        weir_rpc_client_open(weir_directory_address(large->directory), NULL, NULL, &client),
        WEIR_OK);
    assert_int_equal(weir_rpc_call(client, &model_express__p2p__p2p_service__descriptor,
                                   "GetMetadata", &request.base, 20000, &arena, &answer),
                     WEIR_OK);
    size_t n_bytes = protobuf_c_message_get_packed_size(answer);
    weir_rpc_client_close(client);
    weir_arena_close(&arena);
    return n_bytes;
}

static void test_a_version_of_1024_slots_with_the_largest_registry_is_published(void **state)
{
    (void)state;
    large_publish *large = open_large();
    weir_publish_answer answer;
    name_slots(large, 255);
    assert_int_equal(publish_large(large, &answer), WEIR_OK);
    assert_int_equal(answer.version.state, WEIR_VERSION_STAGING);
    assert_int_equal(answer.version.n_slots, WEIR_MAX_RANKS);
    assert_string_equal(weir_directory_version_slot(large->client, WEIR_MAX_RANKS - 1),
                        large->names[WEIR_MAX_RANKS - 1]);
    assert_true(read_entry(large, answer.source_id) > ((size_t)4 << 20) - 128);
    close_large(large);
}

static void test_a_request_beyond_16_MiB_is_refused_before_it_travels(void **state)
{
    (void)state;
    large_publish *large = open_large();
    weir_publish_answer answer;
    char expected[96];
    name_slots(large, ((size_t)12 << 20) / WEIR_MAX_RANKS + 64);
    uint64_t n_before = weir_directory_client_messages(large->client);
    assert_int_equal(publish_large(large, &answer), WEIR_ERR_INVALID);
    snprintf(expected, sizeof(expected), "directory %s: PublishVersionShard: the request has ",
             weir_directory_address(large->directory));
    assert_memory_equal(weir_last_error(), expected, strlen(expected));
    assert_non_null(strstr(weir_last_error(), "a directory takes at most 16 MiB"));
    assert_int_equal(weir_directory_client_messages(large->client), n_before);
    name_slots(large, 255);
    assert_int_equal(publish_large(large, &answer), WEIR_OK);
    close_large(large);
}

static void test_a_directory_refuses_more_than_16_MiB_of_whoever_sends_it(void **state)
{
    (void)state;
    weir_directory *directory;
    weir_rpc_client *client;
    weir_arena arena;
    const ProtobufCMessage *answer;
    size_t n_name = (size_t)16 << 20;
    char *name = malloc(n_name + 1);
    memset(name, 'n', n_name);
    name[n_name] = '\0';
    weir_arena_init(&arena, 0);
    assert_int_equal(weir_directory_open(NULL, &directory), WEIR_OK);
    assert_int_equal(weir_rpc_client_open(weir_directory_address(directory), NULL, NULL, &client),
                     WEIR_OK);
    ModelExpress__P2p__GetMetadataRequest request = MODEL_EXPRESS__P2P__GET_METADATA_REQUEST__INIT;
    request.mx_source_id = name;
    assert_int_equal(weir_rpc_call(client, &model_express__p2p__p2p_service__descriptor,
                                   "GetMetadata", &request.base, 20000, &arena, &answer),
                     WEIR_ERR_REFUSED);
    assert_non_null(
        strstr(weir_last_error(), "RESOURCE_EXHAUSTED: the request is larger than 16 MiB"));
    weir_rpc_client_close(client);
    weir_arena_close(&arena);
    weir_directory_close(directory);
    free(name);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_it_says_where_it_listens_and_how_it_is),
        cmocka_unit_test(test_a_token_file_of_an_embedder_is_rotated_while_both_run),
        cmocka_unit_test(test_a_port_in_use_is_named),
        cmocka_unit_test(test_options_of_another_age),
        cmocka_unit_test(test_failed_allocations_leave_nothing_open),
        cmocka_unit_test(test_a_store_that_is_none_is_refused),
        cmocka_unit_test(test_whoever_waits_is_told_at_once),
        cmocka_unit_test(test_a_wait_ends_at_its_bound),
        cmocka_unit_test(test_a_directory_that_closes_lets_waits_go),
        cmocka_unit_test(test_a_version_of_1024_slots_with_the_largest_registry_is_published),
        cmocka_unit_test(test_a_request_beyond_16_MiB_is_refused_before_it_travels),
        cmocka_unit_test(test_a_directory_refuses_more_than_16_MiB_of_whoever_sends_it),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
