/* SPDX-License-Identifier: Apache-2.0 */
/* test_web.c - what a directory says over HTTP: whether it is well, metrics that a strict reader of
 * Prometheus' text format takes, the fleet as JSON, at once or when it has changed. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <ctype.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "directory/client.h"
#include "directory/made_up_log.h"
#include "directory/web.h"
#include "refit.pb-c.h"
#include "rpc/http_caller.h"
#include "weir/weir.h"

#define NOW_MS 1700000000000u
#define HOSTILE "a\"b\\c\nd<script>"

typedef struct fixture {
    weir_directory_core core;
    made_up_log *log;
    weir_rpc_server *server;
    weir_web *web;
    const char *address;
} fixture;

/* ---- a directory, filled before its thread begins --------------------------------------------*/

static bool answer_call(void *context, uint64_t ticket, weir_rpc_code code,
                        const ProtobufCMessage *response, const char *text)
{
    fixture *f = context;
    if (weir_web_owns(ticket))
        return weir_web_answer(f->web, ticket, code, response, text);
    return weir_rpc_server_answer(f->server, ticket, code, response, text);
}

static int set_up(void **state)
{
    fixture *f = calloc(1, sizeof(*f));
    const weir_directory_core_options options = { .salt = 7, .hooks = { answer_call, NULL, f } };
    assert_int_equal(weir_directory_core_open(&options, &f->core), WEIR_OK);
    const weir_log_reader reader = weir_directory_core_reader(&f->core);
    assert_int_equal(made_up_log_open(&reader, &f->log), WEIR_OK);
    f->core.log = &f->log->log;
    *state = f;
    return 0;
}

static weir_status begin(void *context, weir_rpc_server *server)
{
    fixture *f = context;
    const weir_rpc_security security = { .token = NULL };
    f->core.server = f->server = server;
    return weir_web_open(&f->core, "127.0.0.1:0", &security, &f->web);
}

static unsigned tick(void *context)
{
    unsigned next_ms = weir_directory_core_tick(context);
    return next_ms < 5 ? next_ms : 5;
}

static void start(fixture *f)
{
    const weir_rpc_server_options options = { .listen = "127.0.0.1:0",
                                              .services = f->core.services,
                                              .n_services = WEIR_DIRECTORY_SERVICES,
                                              .gone = weir_directory_core_gone,
                                              .gone_context = &f->core,
                                              .refused = weir_directory_core_refused,
                                              .refused_context = &f->core,
                                              .tick = tick,
                                              .tick_context = &f->core,
                                              .begin = begin,
                                              .begin_context = f };
    weir_rpc_server *server;
    assert_int_equal(weir_rpc_server_open(&options, &server), WEIR_OK);
    f->address = weir_web_address(f->web);
}

static int tear_down(void **state)
{
    fixture *f = *state;
    weir_rpc_server_close(f->server);
    weir_web_close(f->web);
    weir_directory_core_close(&f->core);
    free(f);
    return 0;
}

static void add_worker(fixture *f, const char *worker, const char *model)
{
    uint64_t expires_ms;
    assert_int_equal(weir_store_register_worker(f->core.store, worker, WEIR_STORE_TRAINER, model,
                                                3600, NOW_MS, &expires_ms),
                     WEIR_OK);
}

static void add_source(fixture *f, const char *worker, const char *model, uint64_t step)
{
    const weir_store_source source = { .source_id = "0123456789abcdef",
                                       .worker_id = worker,
                                       .model = model,
                                       .accelerator = "",
                                       .status = WEIR_STORE_SOURCE_READY,
                                       .has_step = true,
                                       .step = step,
                                       .identity = "",
                                       .metadata = "",
                                       .run = "r",
                                       .role = "inference_replica",
                                       .version_uid = "",
                                       .endpoint = "",
                                       .host = "h",
                                       .part = "" };
    assert_int_equal(weir_store_publish_source(f->core.store, &source, NOW_MS), WEIR_OK);
}

static const weir_store_version *add_version(fixture *f, const char *model, uint64_t number)
{
    static const char *const slots[] = { "rank-0", "rank-1" };
    const weir_store_version request = { .model = model,
                                         .has_number = true,
                                         .number = number,
                                         .idempotency_key = "",
                                         .payload = WEIR_STORE_FULL_TENSOR,
                                         .slots = slots,
                                         .n_slots = 2,
                                         .run = "r",
                                         .trace_id = "",
                                         .layout_signature = "" };
    const weir_store_version *version;
    assert_int_equal(
        weir_store_create_version(f->core.store, &request, number * 977 + 3, NOW_MS, &version),
        WEIR_OK);
    return version;
}

/* ---- whether it is well ----------------------------------------------------------------------*/

static void expect(const fixture *f, const char *path, int status, const char *body)
{
    http_reply reply = http_get(f->address, path);
    assert_int_equal(reply.status, status);
    assert_string_equal(reply.body, body);
    free(reply.text);
}

static void test_a_directory_that_is_well_says_so(void **state)
{
    fixture *f = *state;
    start(f);
    expect(f, "/healthz", 200, "ok\n");
    expect(f, "/readyz", 200, "ready\n");
    expect(f, "/elsewhere", 404, "there is nothing here: try /\n");
}

static void test_trouble_with_the_log_is_told_and_is_no_death(void **state)
{
    fixture *f = *state;
    f->log->is_broken = true;
    start(f);
    expect(f, "/healthz", 200, "ok\n");
    expect(f, "/readyz", 503, "broken\n");
    http_reply reply = http_get(f->address, "/api/fleet");
    assert_int_equal(reply.status, 503);
    free(reply.text);
    reply = http_get(f->address, "/metrics");
    assert_non_null(strstr(reply.body, "\nweir_log_up 0\n"));
    free(reply.text);
}

static void test_the_page_comes_in_files_of_its_own(void **state)
{
    static const char *const files[][2] = { { "/", "Content-Type: text/html" },
                                            { "/fleet.css", "Content-Type: text/css" },
                                            { "/fleet.js", "Content-Type: text/javascript" },
                                            { "/fleet.svg", "Content-Type: image/svg+xml" } };
    fixture *f = *state;
    start(f);
    for (size_t i = 0; i < 4; i++) {
        http_reply reply = http_get(f->address, files[i][0]);
        assert_int_equal(reply.status, 200);
        assert_true(http_has(&reply, files[i][1]));
        assert_true(reply.n_body > 100);
        assert_null(strstr(reply.body, "innerHTML"));
        assert_null(strstr(reply.body, "https://"));
        free(reply.text);
    }
}

/* ---- metrics ---------------------------------------------------------------------------------*/

typedef struct metrics_reader {
    char family[128], type[16];
    size_t n_samples, n_families;
    char *series[4096];
    char families[128][128];
} metrics_reader;

static bool is_metric_name(const char *text, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        if (!islower((unsigned char)text[i]) && text[i] != '_' &&
            (i == 0 || !isdigit((unsigned char)text[i])))
            return false;
    }
    return n != 0;
}

/* {name="value",…}: returns what is behind it; asserts on the way. */
static const char *skip_labels(const char *at)
{
    if (*at != '{')
        return at;
    do {
        const char *name = ++at;
        at += strcspn(at, "=");
        assert_true(is_metric_name(name, (size_t)(at - name)));
        assert_memory_equal(at, "=\"", 2);
        for (at += 2; *at != '"'; at++) {
            assert_true(*at != '\0');
            if (*at == '\\') {
                at++;
                assert_true(*at == '\\' || *at == '"' || *at == 'n');
            }
        }
        at++;
    } while (*at == ',');
    assert_int_equal(*at, '}');
    return at + 1;
}

static void read_sample(metrics_reader *reader, const char *line)
{
    size_t n_name = strcspn(line, "{ "), n_family = strlen(reader->family);
    assert_true(is_metric_name(line, n_name));
    assert_true(reader->type[0] != '\0'); /* HELP, TYPE, then what it is about */
    assert_true(n_name >= n_family && memcmp(line, reader->family, n_family) == 0);
    const char *suffix = line + n_family;
    size_t n_suffix = n_name - n_family;
    bool is_part = (n_suffix == 4 && memcmp(suffix, "_sum", 4) == 0) ||
                   (n_suffix == 6 && memcmp(suffix, "_count", 6) == 0);
    assert_true(strcmp(reader->type, "summary") == 0 ? is_part : n_suffix == 0);
    const char *at = skip_labels(line + n_name);
    char *end;
    for (size_t i = 0; i < reader->n_samples; i++) /* no series twice */
        assert_false(strncmp(reader->series[i], line, (size_t)(at - line) + 1) == 0);
    reader->series[reader->n_samples++] = strndup(line, (size_t)(at - line) + 1);
    assert_int_equal(*at, ' ');
    double value = strtod(at + 1, &end);
    assert_true(end != at + 1 && *end == '\0' && value >= 0);
}

static void begin_family(metrics_reader *reader, const char *line)
{
    char name[128], type[16];
    if (strncmp(line, "# HELP ", 7) == 0) {
        assert_int_equal(sscanf(line, "# HELP %127s", reader->family), 1);
        assert_true(strlen(line) > 8 + strlen(reader->family));
        reader->type[0] = '\0';
        for (size_t i = 0; i < reader->n_families; i++)
            assert_string_not_equal(reader->families[i], reader->family);
        assert_true(reader->n_families < 128);
        memcpy(reader->families[reader->n_families++], reader->family, sizeof(reader->family));
        return;
    }
    assert_int_equal(sscanf(line, "# TYPE %127s %15s", name, type), 2);
    assert_string_equal(name, reader->family);
    assert_int_equal(reader->type[0], '\0');
    snprintf(reader->type, sizeof(reader->type), "%s", type);
    bool is_total = strlen(name) > 6 && strcmp(name + strlen(name) - 6, "_total") == 0;
    assert_true(strcmp(type, "counter") == 0 ? is_total : !is_total);
    assert_true(strcmp(type, "counter") == 0 || strcmp(type, "gauge") == 0 ||
                strcmp(type, "summary") == 0);
    static const char *const odd_units[] = { "_ms", "_us", "_mb", "_kb", "_millis", "_percent" };
    for (size_t i = 0; i < sizeof(odd_units) / sizeof(odd_units[0]); i++)
        assert_null(strstr(name, odd_units[i]));
}

static metrics_reader *read_metrics(char *text)
{
    metrics_reader *reader = calloc(1, sizeof(*reader));
    size_t n = strlen(text);
    assert_int_equal(text[n - 1], '\n');
    char *rest = text;
    for (char *line; (line = strsep(&rest, "\n")) != NULL && rest != NULL;) {
        if (line[0] == '#')
            begin_family(reader, line);
        else
            read_sample(reader, line);
    }
    return reader;
}

static void free_metrics(metrics_reader *reader)
{
    for (size_t i = 0; i < reader->n_samples; i++)
        free(reader->series[i]);
    free(reader);
}

static void test_metrics_are_read_by_a_strict_reader(void **state)
{
    fixture *f = *state;
    add_worker(f, "trainer-0", HOSTILE);
    add_version(f, HOSTILE, 41);
    add_source(f, "engine-0", HOSTILE, 40);
    add_source(f, "engine-1", HOSTILE, 39);
    f->core.counts.n_stops = 1;
    f->core.counts.stops[0] =
        (weir_directory_stop_counts){ .name = "transfer", .n = 3, .sum_us = 1500000 };
    f->core.counts.words[-WEIR_ERR_LAYOUT] = 2;
    start(f);
    http_reply reply = http_get(f->address, "/metrics");
    assert_int_equal(reply.status, 200);
    assert_true(http_has(&reply, "Content-Type: text/plain; version=0.0.4"));
    static const char *const expected[] = {
        "\nweir_versions{model=\"a\\\"b\\\\c\\nd<script>\",run=\"r\",state=\"staging\"} 1\n",
        "\nweir_replica_version_number_min{model=\"a\\\"b\\\\c\\nd<script>\",run=\"r\"} 39\n",
        "\nweir_staging_missing_shards{model=\"a\\\"b\\\\c\\nd<script>\",run=\"r\"} 2\n",
        "\nweir_workers{model=\"a\\\"b\\\\c\\nd<script>\",role=\"trainer\"} 1\n",
        "\nweir_sources{model=\"a\\\"b\\\\c\\nd<script>\",status=\"ready\"} 2\n",
        "\nweir_stop_seconds_sum{stop=\"transfer\"} 1.5\n",
        "\nweir_stop_seconds_count{stop=\"transfer\"} 3\n",
        "\nweir_refusals_total{reason=\"ERR_LAYOUT\"} 2\n",
        "\nweir_log_up 1\n",
        "\nweir_published_bytes_total 0\n",
        "\nweir_build_info{version=\"" WEIR_VERSION "\"} 1\n",
    };
    for (size_t i = 0; i < sizeof(expected) / sizeof(expected[0]); i++) {
        if (strstr(reply.body, expected[i]) == NULL)
            print_error("missing:%s%s", expected[i], reply.body);
        assert_non_null(strstr(reply.body, expected[i]));
    }
    assert_null(strstr(reply.body, "engine-0")); /* workers are too many to be names here */
    metrics_reader *reader = read_metrics(reply.text + (reply.body - reply.text));
    assert_true(reader->n_families > 30);
    free_metrics(reader);
    free(reply.text);
}

static void test_models_beyond_a_hundred_are_others(void **state)
{
    fixture *f = *state;
    char model[32], worker[32];
    for (int i = 0; i < 150; i++) {
        snprintf(model, sizeof(model), "model-%d", i);
        snprintf(worker, sizeof(worker), "w-%d", i);
        add_worker(f, worker, model);
        add_version(f, model, 1);
    }
    start(f);
    http_reply reply = http_get(f->address, "/metrics");
    assert_non_null(strstr(
        reply.body, "\nweir_versions{model=\"other\",run=\"other\",state=\"staging\"} 50\n"));
    assert_non_null(strstr(reply.body, "\nweir_workers{model=\"other\",role=\"trainer\"} 50\n"));
    metrics_reader *reader = read_metrics(reply.text + (reply.body - reply.text));
    assert_true(reader->n_samples < 101 * 16 + 400);
    free_metrics(reader);
    free(reply.text);
}

/* ---- the fleet -------------------------------------------------------------------------------*/

static json_t *get_fleet(const fixture *f, const char *path)
{
    http_reply reply = http_get(f->address, path);
    assert_int_equal(reply.status, 200);
    assert_true(http_has(&reply, "Content-Type: application/json"));
    json_error_t error;
    json_t *fleet = json_loads(reply.body, 0, &error);
    if (fleet == NULL)
        print_error("%s: %s\n", error.text, reply.body);
    assert_non_null(fleet);
    free(reply.text);
    return fleet;
}

static json_int_t number(const json_t *object, const char *key)
{
    assert_true(json_is_integer(json_object_get(object, key)));
    return json_integer_value(json_object_get(object, key));
}

static const char *text(const json_t *object, const char *key)
{
    assert_true(json_is_string(json_object_get(object, key)));
    return json_string_value(json_object_get(object, key));
}

static void test_the_fleet_is_told_as_the_store_has_it(void **state)
{
    fixture *f = *state;
    add_worker(f, "trainer-0", HOSTILE);
    const weir_store_version *version = add_version(f, HOSTILE, 41);
    const weir_store_shard shard = { .version_uid = version->uid,
                                     .slot = "rank-1",
                                     .worker_id = "trainer-0",
                                     .n_tensors = 1,
                                     .n_bytes = 8,
                                     .manifest_digest = "",
                                     .manifest_endpoint = "h:1",
                                     .transport = "ucx" };
    assert_int_equal(weir_store_create_shard(f->core.store, &shard, NOW_MS, &version), WEIR_OK);
    add_source(f, "engine-0", HOSTILE, 40);
    const weir_store_span spans[] = { { .name = "transfer", .begun_us = 5, .duration_us = 7 } };
    const weir_store_word word = { .worker_id = "engine-0",
                                   .run = "r",
                                   .role = "inference_replica",
                                   .number = 40,
                                   .version_uid = "00000000",
                                   .status = WEIR_ERR_LAYOUT,
                                   .text = HOSTILE,
                                   .spans = spans,
                                   .n_spans = 1 };
    assert_int_equal(weir_store_put_word(f->core.store, HOSTILE, &word, NOW_MS), WEIR_OK);
    start(f);
    json_t *fleet = get_fleet(f, "/api/fleet");
    const json_t *got = json_array_get(json_object_get(fleet, "versions"), 0);
    assert_string_equal(text(got, "state"), "STAGING");
    assert_string_equal(text(got, "model"), HOSTILE);
    assert_int_equal(number(got, "covered"), 1);
    const json_t *missing = json_object_get(got, "missing");
    assert_int_equal(json_array_size(missing), 1);
    assert_string_equal(json_string_value(json_array_get(missing, 0)), "rank-0");
    got = json_array_get(json_object_get(fleet, "refits"), 0);
    assert_int_equal(number(got, "n_refused"), 1);
    got = json_array_get(json_object_get(got, "words"), 0);
    assert_string_equal(text(got, "status"), "ERR_LAYOUT");
    assert_string_equal(text(got, "text"), HOSTILE);
    got = json_array_get(json_object_get(got, "stops"), 0);
    assert_int_equal(number(got, "duration_us"), 7);
    json_decref(fleet);
    fleet = get_fleet(f, "/api/fleet?version=39");
    assert_int_equal(json_array_size(json_object_get(fleet, "refits")), 0);
    assert_int_equal(json_array_size(json_object_get(fleet, "versions")), 0);
    json_decref(fleet);
    fleet = get_fleet(f, "/api/fleet?model=another");
    assert_int_equal(json_array_size(json_object_get(fleet, "sources")), 0);
    json_decref(fleet);
}

static void test_a_large_fleet_is_counted_and_listed_in_part(void **state)
{
    fixture *f = *state;
    char worker[32];
    for (int i = 0; i < 3000; i++) {
        snprintf(worker, sizeof(worker), "engine-%d", i);
        add_source(f, worker, "m", i < 10 ? 6 : 7);
    }
    start(f);
    json_t *fleet = get_fleet(f, "/api/fleet");
    assert_int_equal(json_array_size(json_object_get(fleet, "sources")), 2048);
    assert_int_equal(number(fleet, "sources_left_out"), 3000 - 2048);
    json_int_t n_sixes = 0, n_all = 0;
    size_t i;
    const json_t *group;
    json_array_foreach(json_object_get(fleet, "groups"), i, group)
    {
        n_all += number(group, "n");
        n_sixes += number(group, "version") == 6 ? number(group, "n") : 0;
    }
    assert_int_equal(n_all, 3000);
    assert_int_equal(n_sixes, 10);
    json_decref(fleet);
}

static void register_worker(const fixture *f, const char *worker)
{
    weir_rpc_client *client;
    weir_arena arena;
    const ProtobufCMessage *response;
    ModelExpress__Refit__WorkerRegistration who = MODEL_EXPRESS__REFIT__WORKER_REGISTRATION__INIT;
    ModelExpress__Refit__RegisterWorkerRequest request =
        MODEL_EXPRESS__REFIT__REGISTER_WORKER_REQUEST__INIT;
    who.worker_id = (char *)worker;
    who.role = 1;
    who.model_name = (char *)"m";
    request.worker = &who;
    request.ttl_seconds = 60;
    weir_arena_init(&arena, 0);
    assert_int_equal(weir_rpc_client_open(weir_rpc_server_address(f->server), NULL, NULL, &client),
                     WEIR_OK);
    assert_int_equal(weir_rpc_call(client, &model_express__refit__refit_service__descriptor,
                                   "RegisterWorker", &request.base, 5000, &arena, &response),
                     WEIR_OK);
    weir_rpc_client_close(client);
    weir_arena_close(&arena);
}

/* As a client of ModelExpress does: no call of DirectoryService, and each twice, as after an answer
 * that was lost. */
static void publish_and_read_as_modelexpress(weir_directory_client *client)
{
    weir_version_record version;
    static const char *const slots[] = { "rank-0" };
    weir_shard_record shard = { .slot = "rank-0", .worker_id = "t", .n_bytes = 1000 };
    char lease[WEIR_ID_BYTES];
    assert_int_equal(weir_directory_register_worker(client, "t", WEIR_ROLE_TRAINER, "m", 60),
                     WEIR_OK);
    assert_int_equal(weir_directory_register_worker(client, "r", WEIR_ROLE_GENERATOR, "m", 60),
                     WEIR_OK);
    for (int i = 0; i < 2; i++) {
        assert_int_equal(weir_directory_create_version(client, "m", 1, "key", slots, 1, &version),
                         WEIR_OK);
        snprintf(shard.version_uid, sizeof(shard.version_uid), "%s", version.uid);
        assert_int_equal(weir_directory_create_shard(client, &shard, &version), WEIR_OK);
    }
    for (int i = 0; i < 2; i++)
        assert_int_equal(weir_directory_register_lease(client, version.uid, "r", 60, lease),
                         WEIR_OK);
    for (int i = 0; i < 2; i++)
        assert_int_equal(weir_directory_delete_lease(client, version.uid, lease, "r"), WEIR_OK);
    assert_int_equal(weir_directory_delete_version(client, version.uid), WEIR_OK);
}

static void be_refused(weir_directory_client *client, const char *address)
{
    weir_version_record version;
    weir_shard_record shard = { .version_uid = "none", .slot = "s", .worker_id = "t" };
    unsigned char *manifest = NULL;
    size_t n_room = 0, n_bytes;
    char digest[WEIR_DIGEST_TEXT];
    for (int i = 0; i < 2; i++)
        assert_int_equal(weir_directory_get_version(client, "none", &version), WEIR_ERR_NOT_FOUND);
    assert_int_equal(weir_directory_create_shard(client, &shard, &version), WEIR_ERR_NOT_FOUND);
    assert_int_equal(weir_directory_update_status(client, "none", "t", 0, WEIR_SOURCE_READY),
                     WEIR_ERR_REFUSED);
    assert_int_equal(weir_directory_get_manifest(client, address, NULL, "v", "s", &manifest,
                                                 &n_room, &n_bytes, digest),
                     WEIR_ERR_UNSUPPORTED);
}

static void test_what_modelexpress_does_is_counted_and_all_that_is_refused(void **state)
{
    fixture *f = *state;
    weir_directory_client *client;
    start(f);
    const char *address = weir_rpc_server_address(f->server);
    assert_int_equal(weir_directory_client_open(address, 5000, &client), WEIR_OK);
    publish_and_read_as_modelexpress(client);
    be_refused(client, address);
    weir_directory_client_close(client);
    http_reply reply = http_get(f->address, "/metrics");
    static const char *const expected[] = {
        "\nweir_versions_total{state=\"staging\"} 1\n",
        "\nweir_versions_total{state=\"ready\"} 1\n",
        "\nweir_versions_total{state=\"releasing\"} 1\n",
        "\nweir_versions_total{state=\"aborted\"} 0\n",
        "\nweir_published_shards_total 1\n",
        "\nweir_published_bytes_total 1000\n",
        "\nweir_granted_leases_total 1\n",
        "\nweir_renewed_leases_total 1\n",
        "\nweir_ended_leases_total{reason=\"given_back\"} 1\n",
        "\nweir_refused_calls_total{method=\"RefitService.GetWeightVersion\",reason=\"NOT_FOUND\"} "
        "2\n",
        "\nweir_refused_calls_total{method=\"RefitService.CreateWeightVersionShard\",reason=\"NOT_"
        "FOUND\"} "
        "1\n",
        "\nweir_refused_calls_total{method=\"P2pService.UpdateStatus\",reason=\"REPLY\"} 1\n",
        "\nweir_refused_calls_total{method=\"other\",reason=\"UNIMPLEMENTED\"} 1\n",
    };
    for (size_t i = 0; i < sizeof(expected) / sizeof(expected[0]); i++) {
        if (strstr(reply.body, expected[i]) == NULL)
            fail_msg("missing:%s%s", expected[i], reply.body);
    }
    free_metrics(read_metrics(reply.text + (reply.body - reply.text)));
    free(reply.text);
}

static void test_leases_that_expire_are_counted_by_whoever_notices(void **state)
{
    fixture *f = *state;
    const weir_store_version *version = add_version(f, "m", 1);
    char uid[16];
    snprintf(uid, sizeof(uid), "%s", version->uid);
    weir_store_lease lease;
    uint64_t expires_ms;
    add_worker(f, "t", "m");
    assert_int_equal(weir_store_register_worker(f->core.store, "r", WEIR_STORE_GENERATOR, "m", 3600,
                                                NOW_MS, &expires_ms),
                     WEIR_OK);
    for (int i = 0; i < 2; i++) {
        const weir_store_shard shard = { .version_uid = uid,
                                         .slot = i == 0 ? "rank-0" : "rank-1",
                                         .worker_id = "t",
                                         .manifest_digest = "",
                                         .manifest_endpoint = "",
                                         .transport = "",
                                         .content = "" };
        assert_int_equal(weir_store_create_shard(f->core.store, &shard, NOW_MS, &version), WEIR_OK);
    }
    assert_int_equal(weir_store_register_lease(f->core.store, uid, "r", 1, NOW_MS, &lease),
                     WEIR_OK);
    f->log->now_ms = NOW_MS + 2000;
    f->core.sweep_ns = 0;
    weir_directory_core_tick(&f->core);
    assert_int_equal(f->core.counts.events.n_expired, 1);
    assert_int_equal(f->core.counts.events.n_leases, 0); /* nobody asked for it here */
}

static void test_a_look_waits_for_the_next_change(void **state)
{
    fixture *f = *state;
    char request[200];
    start(f);
    json_t *fleet = get_fleet(f, "/api/fleet");
    json_int_t revision = number(fleet, "revision");
    json_decref(fleet);
    int fd = http_connect(f->address);
    snprintf(request, sizeof(request),
             "GET /api/fleet?after=%lld HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
             (long long)revision);
    assert_true(http_send(fd, request));
    struct pollfd ready = { .fd = fd, .events = POLLIN };
    assert_int_equal(poll(&ready, 1, 150), 0);
    register_worker(f, "trainer-0");
    uint64_t changed_ns = weir_now_ns();
    http_reply reply = http_receive(fd);
    assert_true(weir_now_ns() - changed_ns < 2000000000);
    assert_int_equal(reply.status, 200);
    assert_non_null(strstr(reply.body, "trainer-0"));
    free(reply.text);
    close(fd);
}

static void test_a_look_ends_by_its_bound(void **state)
{
    fixture *f = *state;
    start(f);
    uint64_t begun_ns = weir_now_ns();
    json_t *fleet = get_fleet(f, "/api/fleet?after=1000000&wait_ms=200");
    assert_true(weir_now_ns() - begun_ns >= 190000000);
    json_decref(fleet);
    static const char *const wrong[] = { "after=x", "after=-1", "wait_ms=1.5", "version=1e3",
                                         "after=99999999999999999999" };
    char path[64];
    for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++) {
        snprintf(path, sizeof(path), "/api/fleet?%s", wrong[i]);
        http_reply reply = http_get(f->address, path);
        assert_int_equal(reply.status, 400);
        free(reply.text);
    }
}

int main(void)
{
#define CASE(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        CASE(test_a_directory_that_is_well_says_so),
        CASE(test_trouble_with_the_log_is_told_and_is_no_death),
        CASE(test_the_page_comes_in_files_of_its_own),
        CASE(test_metrics_are_read_by_a_strict_reader),
        CASE(test_models_beyond_a_hundred_are_others),
        CASE(test_the_fleet_is_told_as_the_store_has_it),
        CASE(test_a_large_fleet_is_counted_and_listed_in_part),
        CASE(test_what_modelexpress_does_is_counted_and_all_that_is_refused),
        CASE(test_leases_that_expire_are_counted_by_whoever_notices),
        CASE(test_a_look_waits_for_the_next_change),
        CASE(test_a_look_ends_by_its_bound),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
