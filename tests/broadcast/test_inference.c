/* SPDX-License-Identifier: Apache-2.0 */
/* test_inference.c - an inference server in this process: a trainer, two workers, an engine whose
 * hooks are counted, and an orchestrator that speaks HTTP. */
#include <jansson.h>
#include <pthread.h>
#include <stdatomic.h>

#include "base/alloc.h"
#include "refit/refit_rig.h"
#include "rpc/http_caller.h"
#include "weir/inference.h"

#define WORKERS 2u

/* What the engine was told, and what it says. */
typedef struct engine {
    atomic_uint n_pauses, n_taken, n_resumes;
    atomic_uint n_running; /* hooks at once */
    bool has_overlapped;
    weir_status pause, take;
} engine;

typedef struct bench {
    rig *model;
    engine engine;
    weir_inference *server;
    const char *address;
} bench;

/* ---- the engine ------------------------------------------------------------------------------*/

static void enter(engine *e)
{
    e->has_overlapped |= atomic_fetch_add(&e->n_running, 1u) != 0;
}

static weir_status pause_engine(void *context)
{
    engine *e = context;
    enter(e);
    e->n_pauses++;
    e->n_running--;
    return e->pause;
}

static weir_status take_version(void *context, uint64_t version)
{
    engine *e = context;
    (void)version;
    enter(e);
    e->n_taken++;
    e->n_running--;
    return e->take;
}

static void resume_engine(void *context)
{
    engine *e = context;
    enter(e);
    e->n_resumes++;
    e->n_running--;
}

static void expect_hooks(const bench *b, unsigned n_pauses, unsigned n_taken, unsigned n_resumes)
{
    assert_int_equal(b->engine.n_pauses, n_pauses);
    assert_int_equal(b->engine.n_taken, n_taken);
    assert_int_equal(b->engine.n_resumes, n_resumes);
    assert_false(b->engine.has_overlapped);
}

/* ---- the bench -------------------------------------------------------------------------------*/

static weir_inference_options options_of(bench *b, weir_install_mode mode)
{
    weir_inference_options options = WEIR_INFERENCE_OPTIONS_INIT;
    options.http = "127.0.0.1:0";
    options.model = "model";
    options.family = b->model->family;
    options.conversion = b->model->conversion;
    options.config = b->model->config_path;
    options.dp = WORKERS;
    options.install = mode;
    options.n_threads = 1;
    options.timeout_ms = RIG_TIMEOUT_MS;
    options.hooks = (weir_engine_hooks){ pause_engine, take_version, resume_engine, &b->engine };
    return options;
}

static bench *bench_open(weir_install_mode mode)
{
    bench *b = calloc(1, sizeof(*b));
    assert_non_null(b);
    b->model = rig_open("glm_moe_dsa", "fp8_128x128", NULL);
    weir_inference_options options = options_of(b, mode);
    assert_ok(weir_inference_open(&options, &b->server));
    b->address = weir_inference_address(b->server);
    return b;
}

static void bench_close(bench *b)
{
    weir_inference_close(b->server);
    rig_close(b->model);
    free(b);
}

/* ---- HTTP ------------------------------------------------------------------------------------*/

static json_t *ask(const bench *b, const char *method, const char *path, const char *body,
                   int status)
{
    char headers[1024];
    snprintf(headers, sizeof(headers), "Content-Length: %zu\r\n\r\n%s", strlen(body), body);
    bool is_post = strcmp(method, "POST") == 0;
    http_reply reply = http_ask(b->address, method, path, is_post ? headers : "");
    if (reply.status != status)
        fail_msg("%s %s %s: %d %s", method, path, body, reply.status, reply.body);
    json_t *answer = json_loads(reply.body, 0, NULL);
    assert_true(json_is_object(answer));
    free(reply.text);
    return answer;
}

static void post(const bench *b, const char *path, const char *body, int status)
{
    json_decref(ask(b, "POST", path, body, status));
}

/* Refused, with `words` in the error. */
static void expect_error(const bench *b, const char *path, const char *body, int status,
                         const char *words)
{
    json_t *answer = ask(b, "POST", path, body, status);
    const char *error = json_string_value(json_object_get(answer, "error"));
    assert_non_null(error);
    if (strstr(error, words) == NULL)
        fail_msg("%s %s: '%s', wanted '%s'", path, body, error, words);
    json_decref(answer);
}

static void join_body(const bench *b, const char *more, char body[512])
{
    const char *address = weir_directory_address(b->model->directory);
    const char *port = strrchr(address, ':') + 1;
    snprintf(body, 512,
             "{\"host\":\"127.0.0.1\",\"port\":%s,\"server_rank\":0,\"num_inference_server\":1,"
             "\"quantize_in_weight_transfer\":true%s}",
             port, more);
}

static void join(const bench *b, const char *more)
{
    char body[512];
    join_body(b, more, body);
    json_t *answer = ask(b, "POST", "/init_broadcaster", body, 200);
    const json_t *ranks = json_object_get(answer, "ranks");
    assert_int_equal(json_array_size(ranks), WORKERS);
    for (size_t i = 0; i < WORKERS; i++)
        assert_int_equal(json_integer_value(json_array_get(ranks, i)), i + 1);
    json_decref(answer);
}

/* GET /weight_info and the library say the same. */
static void expect_held(const bench *b, const char *state, uint64_t version, bool paused)
{
    weir_inference_info info;
    json_t *said = ask(b, "GET", "/weight_info", "", 200);
    const json_t *number = json_object_get(said, "version");
    assert_string_equal(json_string_value(json_object_get(said, "state")), state);
    assert_int_equal(json_is_true(json_object_get(said, "paused")), paused);
    bool holds = strcmp(state, "holding") == 0;
    assert_int_equal(json_is_integer(number), holds);
    assert_int_equal(json_is_string(json_object_get(said, "weight_version")), holds);
    const json_t *workers = json_object_get(said, "workers");
    assert_int_equal(json_array_size(workers), WORKERS);
    for (size_t i = 0; i < WORKERS && holds; i++)
        assert_int_equal(json_integer_value(json_object_get(json_array_get(workers, i), "version")),
                         version);
    weir_inference_get_info(b->server, &info);
    assert_int_equal(info.version, version);
    assert_int_equal(info.paused, paused);
    assert_int_equal(info.n_workers, WORKERS);
    json_decref(said);
}

static void update(const bench *b, const char *body, uint64_t version)
{
    json_t *answer = ask(b, "POST", "/update_weights", body, 200);
    assert_int_equal(json_integer_value(json_object_get(answer, "version")), version);
    assert_true(json_integer_value(json_object_get(answer, "bytes")) > 0);
    assert_true(json_is_real(json_object_get(answer, "seconds")));
    json_decref(answer);
}

static void verify(const bench *b, const char *run, uint64_t version)
{
    for (unsigned i = 0; i < WORKERS; i++) {
        char name[32];
        weir_verify_options options = WEIR_VERIFY_OPTIONS_INIT;
        weir_verify_report report;
        snprintf(name, sizeof(name), "server-0-dp%u", i);
        options.directory = weir_directory_address(b->model->directory);
        options.model = "model";
        options.run = run;
        options.replica = name;
        options.family = b->model->family;
        options.conversion = b->model->conversion;
        options.config = b->model->config_path;
        options.sources = b->model->model.tensors;
        options.n_sources = b->model->model.n;
        options.n_threads = 1;
        options.timeout_ms = RIG_TIMEOUT_MS;
        assert_ok(weir_verify(&options, &report));
        assert_int_equal(report.n_different, 0);
        assert_int_equal(report.version, version);
    }
}

/* ---- calls -----------------------------------------------------------------------------------*/

static void calls_are_answered_in_json_or_refused(void **state)
{
    (void)state;
    bench *b = bench_open(WEIR_INSTALL_STAGED);
    static const struct {
        const char *method, *path;
        int status;
    } rows[] = {
        { "GET", "/", 404 },
        { "GET", "/pause", 405 },
        { "POST", "/weight_info", 405 },
        { "DELETE", "/resume", 405 },
        { "GET", "/health", 200 },
        { "GET", "/is_paused", 200 },
        { "POST", "/pause?mode=keep&clear_cache=false", 200 },
        { "POST", "/pause?mode=x", 400 },
        { "GET", "/revert", 405 },
        { "POST", "/pause?clear_cache=perhaps", 400 },
    };
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++)
        json_decref(ask(b, rows[i].method, rows[i].path, "", rows[i].status));
    expect_error(b, "/init_broadcaster", "{}", 400, "'host' is missing");
    expect_error(b, "/update_weights", "[]", 400, "the body is a list");
    expect_error(b, "/update_weights", "{}", 409, "POST /init_broadcaster first");
    expect_error(b, "/revert", "{\"timeout\": 0}", 400, "'timeout' is 0");
    expect_error(b, "/revert", "", 409, "nothing to go back to");
    bench_close(b);
}

static void pausing_and_resuming_again_does_nothing(void **state)
{
    (void)state;
    bench *b = bench_open(WEIR_INSTALL_STAGED);
    expect_held(b, "empty", 0, false);
    for (int i = 0; i < 3; i++)
        post(b, "/pause", "", 200);
    expect_held(b, "empty", 0, true);
    for (int i = 0; i < 3; i++)
        post(b, "/resume", "", 200); /* what the engine came with is whole */
    expect_held(b, "empty", 0, false);
    expect_hooks(b, 1, 0, 1);
    b->engine.pause = WEIR_ERR_BUSY;
    expect_error(b, "/pause", "", 500, "the engine did not pause");
    expect_held(b, "empty", 0, false);
    bench_close(b);
}

/* ---- updates ---------------------------------------------------------------------------------*/

static void all_workers_hold_what_was_published(void **state)
{
    (void)state;
    bench *b = bench_open(WEIR_INSTALL_STAGED);
    rig_publish(b->model, 1);
    join(b, "");
    update(b, "{}", 1);
    expect_held(b, "holding", 1, false);
    expect_hooks(b, 1, 1, 1); /* once for both, around the install */
    verify(b, NULL, 1);
    rig_publish(b->model, 2);
    update(b, "{\"version\":1}", 1); /* it is held: nothing to do */
    expect_hooks(b, 1, 1, 1);
    post(b, "/pause", "", 200);
    update(b, "{\"weight_dir\":\"/x/step_2\"}", 2);
    update(b, "{\"weight_dir\":null}", 2);
    expect_held(b, "holding", 2, true); /* who paused it resumes it */
    verify(b, NULL, 2);
    post(b, "/resume", "", 200);
    expect_hooks(b, 2, 2, 2);
    bench_close(b);
}

static void a_second_update_allocates_nothing(void **state)
{
    (void)state;
    bench *b = bench_open(WEIR_INSTALL_STAGED);
    char body[32];
    join(b, "");
    for (unsigned version = 1; version <= 3; version++) {
        rig_publish(b->model, version);
        snprintf(body, sizeof(body), "{\"version\":%u}", version);
        uint64_t before = weir_alloc_count();
        update(b, body, version);
        if (version == 3) /* the first two come from both of the trainers' slots */
            assert_int_equal(weir_alloc_count(), before);
    }
    bench_close(b);
}

static void an_engine_that_does_not_pause_keeps_the_old_version(void **state)
{
    (void)state;
    bench *b = bench_open(WEIR_INSTALL_STAGED);
    rig_publish(b->model, 1);
    join(b, "");
    update(b, "{}", 1);
    rig_publish(b->model, 2);
    b->engine.pause = WEIR_ERR_BUSY;
    expect_error(b, "/update_weights", "{}", 500, "the engine did not pause");
    expect_held(b, "holding", 1, false);
    b->engine.pause = WEIR_OK;
    update(b, "{}", 2);
    bench_close(b);
}

static void a_version_that_the_engine_refuses_is_taken_back(void **state)
{
    (void)state;
    bench *b = bench_open(WEIR_INSTALL_STAGED);
    rig_publish(b->model, 1);
    join(b, "");
    update(b, "{}", 1);
    rig_publish(b->model, 2);
    b->engine.take = WEIR_ERR_INTERNAL;
    expect_error(b, "/update_weights", "{}", 500, "refused version 2");
    expect_held(b, "holding", 1, false);
    expect_hooks(b, 2, 2, 2);
    rig_fill(&b->model->model, 1); /* the old bytes */
    verify(b, NULL, 1);
    bench_close(b);
}

static void direct_installs_want_a_pause_and_may_leave_it_unusable(void **state)
{
    (void)state;
    bench *b = bench_open(WEIR_INSTALL_DIRECT);
    rig_publish(b->model, 1);
    join(b, "");
    expect_error(b, "/update_weights", "{}", 409, "POST /pause first");
    post(b, "/pause", "", 200);
    update(b, "{}", 1);
    rig_publish(b->model, 2);
    b->engine.take = WEIR_ERR_INTERNAL;
    expect_error(b, "/update_weights", "{}", 500, "refused version 2");
    expect_held(b, "unusable", 0, true);
    json_decref(ask(b, "GET", "/health", "", 503));
    expect_error(b, "/resume", "", 409, "no whole version is held");
    /* Nor does a rejoin make a version of it. */
    join(b, ",\"session_id\":\"other\"");
    expect_held(b, "unusable", 0, true);
    expect_error(b, "/resume", "", 409, "no whole version is held");
    expect_error(b, "/update_weights", "{\"timeout\":0.3}", 504, "did not come within 0.3 s");
    expect_held(b, "unusable", 0, true);
    expect_hooks(b, 1, 2, 0);
    join(b, "");
    b->engine.take = WEIR_OK;
    update(b, "{}", 2);
    expect_held(b, "holding", 2, true);
    post(b, "/resume", "", 200);
    expect_hooks(b, 1, 3, 1);
    verify(b, NULL, 2);
    bench_close(b);
}

/* ---- joining ---------------------------------------------------------------------------------*/

static weir_trainer *trainer_of_run(const bench *b, const char *run)
{
    weir_trainer_options options = WEIR_TRAINER_OPTIONS_INIT;
    weir_trainer *trainer = NULL;
    options.directory = weir_directory_address(b->model->directory);
    options.model = "model";
    options.run = run;
    options.family = b->model->family;
    options.conversion = b->model->conversion;
    options.config = b->model->config_path;
    options.n_threads = 1;
    options.timeout_ms = RIG_TIMEOUT_MS;
    assert_ok(weir_trainer_open(&options, &trainer));
    return trainer;
}

static void parameters_survive_from_one_run_to_the_next(void **state)
{
    (void)state;
    bench *b = bench_open(WEIR_INSTALL_STAGED);
    size_t n, n_again;
    rig_publish(b->model, 3);
    join(b, "");
    join(b, ",\"timeout\":7"); /* the same, whatever time it may take */
    const weir_tensor *first = weir_inference_parameters(b->server, 1, &n);
    const void *address = first[n - 1].data;
    update(b, "{}", 3);
    weir_trainer *other = trainer_of_run(b, "second");
    join(b, ",\"session_id\":\"second\"");
    expect_held(b, "holding", 3, false); /* of the run that it has left */
    post(b, "/pause", "", 200);
    post(b, "/resume", "", 200);
    rig_fill(&b->model->model, 9);
    assert_ok(weir_trainer_register(other, b->model->model.tensors, b->model->model.n));
    assert_ok(weir_trainer_publish(other, 1, NULL));
    update(b, "{}", 1);
    verify(b, "second", 1);
    assert_ptr_equal(weir_inference_parameters(b->server, 1, &n_again), first);
    assert_ptr_equal(first[n - 1].data, address);
    assert_int_equal(n, n_again);
    weir_trainer_close(other);
    bench_close(b);
}

static void a_trainer_that_is_not_there_is_waited_for_within_the_bound(void **state)
{
    (void)state;
    bench *b = bench_open(WEIR_INSTALL_STAGED);
    char body[512];
    uint64_t begun_ns = weir_now_ns();
    expect_error(b, "/init_broadcaster",
                 "{\"host\":\"127.0.0.1\",\"port\":1,\"server_rank\":0,\"num_inference_server\":1,"
                 "\"timeout\":0.3,\"quantize_in_weight_transfer\":true}",
                 504, "127.0.0.1:1");
    assert_true(weir_now_ns() - begun_ns < 2000000000ull);
    weir_inference_close(b->server); /* another one, of a model that nobody trains */
    weir_inference_options options = options_of(b, WEIR_INSTALL_STAGED);
    options.model = "other";
    assert_ok(weir_inference_open(&options, &b->server));
    b->address = weir_inference_address(b->server);
    join_body(b, ",\"timeout\":0.3", body);
    expect_error(b, "/init_broadcaster", body, 504,
                 "no trainer of model 'other' within 0.3 s: it has one of 'model'");
    bench_close(b);
}

/* ---- an engine's own memory ------------------------------------------------------------------*/

/* Parameters of both workers, as an engine without derived ones has them. */
typedef struct own_memory {
    weir_tensor *sources;
    weir_mapping *mapping;
    weir_inference_live live[WORKERS];
    weir_tensor *tensors[WORKERS];
} own_memory;

static void own_memory_open(const rig *r, own_memory *own)
{
    size_t n_sources, n;
    weir_mapping_options options = WEIR_MAPPING_OPTIONS_INIT;
    options.conversion = r->conversion;
    options.config = r->config;
    assert_ok(weir_family_sources(r->family, r->config, WEIR_NAMING_HF, &own->sources, &n_sources));
    assert_ok(weir_mapping_open(&options, own->sources, n_sources, &own->mapping));
    const weir_parameter *tags = weir_mapping_parameters(own->mapping, &n);
    for (unsigned w = 0; w < WORKERS; w++) {
        own->tensors[w] = calloc(n, sizeof(weir_tensor));
        own->live[w] = (weir_inference_live){ own->tensors[w], tags, n };
        for (size_t i = 0; i < n; i++) {
            uint64_t n_bytes;
            assert_ok(weir_tensor_bytes(tags[i].dtype, &tags[i].shape, &n_bytes));
            own->tensors[w][i] =
                (weir_tensor){ tags[i].name, tags[i].dtype, tags[i].shape, calloc(1, n_bytes) };
        }
    }
}

static void own_memory_close(own_memory *own)
{
    for (unsigned w = 0; w < WORKERS; w++) {
        for (size_t i = 0; i < own->live[w].n_tensors; i++)
            free(own->tensors[w][i].data);
        free(own->tensors[w]);
    }
    weir_mapping_close(own->mapping);
    weir_family_sources_free(own->sources);
}

static void an_engine_has_its_own_parameters(void **state)
{
    (void)state;
    bench b = { .model = rig_open("llama", "bf16_cast", NULL) };
    own_memory own;
    size_t n;
    own_memory_open(b.model, &own);
    weir_inference_options options = options_of(&b, WEIR_INSTALL_STAGED);
    options.live = own.live;
    assert_ok(weir_inference_open(&options, &b.server));
    b.address = weir_inference_address(b.server);
    assert_ptr_equal(weir_inference_parameters(b.server, 1, &n)[0].data, own.tensors[1][0].data);
    rig_publish(b.model, 1);
    join(&b, "");
    update(&b, "{}", 1);
    verify(&b, NULL, 1);
    join(&b, ",\"session_id\":\"other\"");
    join(&b, "");
    rig_publish(b.model, 2);
    update(&b, "{}", 2);
    verify(&b, NULL, 2);
    weir_inference_close(b.server);
    options.live = (const weir_inference_live[WORKERS]){ own.live[0], { NULL, NULL, 0 } };
    assert_error(weir_inference_open(&options, &b.server), WEIR_ERR_INVALID,
                 "worker 1: no live parameters");
    own_memory_close(&own);
    rig_close(b.model);
}

/* ---- one thing at a time ---------------------------------------------------------------------*/

static void *wait_for_version_9(void *context)
{
    expect_error(context, "/update_weights", "{\"version\":9,\"timeout\":1}", 504,
                 "version 9 of model 'model' did not come within 1.0 s, it was at stop discover; "
                 "the newest is 1");
    return NULL;
}

static void until_it_updates(const bench *b)
{
    weir_inference_info info;
    weir_deadline deadline = weir_deadline_in(5000);
    do {
        assert_false(weir_deadline_passed(deadline));
        weir_sleep_ms(2);
        weir_inference_get_info(b->server, &info);
    } while (!info.updating);
}

static void what_goes_on_is_named_to_who_asks_for_more(void **state)
{
    (void)state;
    bench *b = bench_open(WEIR_INSTALL_STAGED);
    pthread_t waiter;
    char body[512];
    rig_publish(b->model, 1);
    join(b, "");
    update(b, "{}", 1);
    uint64_t begun_ns = weir_now_ns();
    assert_int_equal(pthread_create(&waiter, NULL, wait_for_version_9, b), 0);
    until_it_updates(b);
    expect_error(b, "/update_weights", "{}", 409, "version 9 is being installed");
    expect_error(b, "/resume", "", 409, "version 9 is being installed");
    join_body(b, ",\"session_id\":\"x\"", body);
    expect_error(b, "/init_broadcaster", body, 409, "version 9 is being installed");
    join(b, ""); /* as it is */
    json_decref(ask(b, "GET", "/health", "", 200));
    pthread_join(waiter, NULL);
    assert_true(weir_now_ns() - begun_ns < 3000000000ull);
    expect_held(b, "holding", 1, false);
    update(b, "{}", 1);
    rig_publish(b->model, 2);
    update(b, "{}", 2); /* what was ended leaves nothing behind */
    verify(b, NULL, 2);
    bench_close(b);
}

/* Asks, and does not read the answer. */
static int begin_update(const bench *b, const char *body)
{
    char request[256];
    int fd = http_connect(b->address);
    snprintf(request, sizeof(request),
             "POST /update_weights HTTP/1.1\r\nHost: localhost\r\nContent-Length: %zu\r\n\r\n%s",
             strlen(body), body);
    assert_true(http_send(fd, request));
    until_it_updates(b);
    return fd;
}

static void closing_ends_an_update_that_waits(void **state)
{
    (void)state;
    bench *b = bench_open(WEIR_INSTALL_STAGED);
    rig_publish(b->model, 1);
    join(b, "");
    int fd = begin_update(b, "{\"version\":9,\"timeout\":3000}");
    uint64_t begun_ns = weir_now_ns();
    bench_close(b);
    assert_true(weir_now_ns() - begun_ns < 3000000000ull);
    close(fd);
}

static void a_client_that_goes_away_cancels_nothing(void **state)
{
    (void)state;
    bench *b = bench_open(WEIR_INSTALL_STAGED);
    rig_publish(b->model, 1);
    join(b, "");
    int fd = begin_update(b, "{\"version\":2,\"timeout\":9}");
    close(fd);
    rig_publish(b->model, 2);
    weir_inference_info info = { .updating = true };
    for (weir_deadline deadline = weir_deadline_in(9000); info.updating || info.version != 2;) {
        assert_false(weir_deadline_passed(deadline));
        weir_sleep_ms(5);
        weir_inference_get_info(b->server, &info);
    }
    verify(b, NULL, 2);
    bench_close(b);
}

/* ---- opening ---------------------------------------------------------------------------------*/

static void what_keeps_it_from_opening_is_named(void **state)
{
    (void)state;
    bench *b = bench_open(WEIR_INSTALL_STAGED);
    weir_inference *server = NULL;
    weir_inference_options options = options_of(b, WEIR_INSTALL_STAGED);
    options.model = NULL;
    assert_error(weir_inference_open(&options, &server), WEIR_ERR_INVALID, "model is required");
    options.model = "model";
    options.config = NULL;
    assert_error(weir_inference_open(&options, &server), WEIR_ERR_INVALID, "config is required");
    options.config = "/nowhere/config.json";
    assert_error(weir_inference_open(&options, &server), WEIR_ERR_NOT_FOUND, "worker 0: ");
    options.config = b->model->config_path;
    options.tp = 1000;
    assert_error(weir_inference_open(&options, &server), WEIR_ERR_INVALID, "2000 workers");
    options.tp = 1;
    options.http = b->address;
    assert_error(weir_inference_open(&options, &server), WEIR_ERR_IO, "Address already in use");
    options.http = "0.0.0.0:0";
    assert_error(weir_inference_open(&options, &server), WEIR_ERR_REFUSED,
                 "not without a certificate");
    static const char *const devices[] = { "host", "disk" };
    options.http = "127.0.0.1:0";
    options.devices = devices;
    assert_error(weir_inference_open(&options, &server), WEIR_ERR_INVALID, "worker 1: ");
    bench_close(b);
}

static void failed_allocations_leave_nothing_open(void **state)
{
    (void)state;
    bench *b = bench_open(WEIR_INSTALL_STAGED);
    weir_inference_options options = options_of(b, WEIR_INSTALL_STAGED);
    weir_status status = WEIR_ERR_NO_MEMORY;
    for (uint64_t n = 1; status != WEIR_OK; n += n / 8 + 1) {
        weir_inference *server = NULL;
        weir_alloc_fail_at(n);
        status = weir_inference_open(&options, &server);
        weir_alloc_fail_at(0);
        if (status != WEIR_OK)
            assert_int_equal(status, WEIR_ERR_NO_MEMORY);
        weir_inference_close(server);
    }
    bench_close(b);
}

/* ---- the way back ----------------------------------------------------------------------------*/

static void revert(const bench *b, bool holds, uint64_t version)
{
    json_t *answer = ask(b, "POST", "/revert", "{\"timeout\": 3}", 200);
    const json_t *held = json_object_get(answer, "version");
    assert_int_equal(json_is_integer(held), holds);
    assert_int_equal(json_integer_value(held), version);
    json_decref(answer);
}

static void a_server_goes_back_by_itself(void **state)
{
    (void)state;
    bench *b = bench_open(WEIR_INSTALL_STAGED);
    join(b, "");
    rig_publish(b->model, 1);
    update(b, "{\"version\": 1}", 1);
    revert(b, false, 0);
    expect_held(b, "empty", 0, false);
    expect_error(b, "/revert", "", 409, "nothing to go back to");
    update(b, "{\"version\": 1}", 1);
    rig_publish(b->model, 2);
    post(b, "/pause", "", 200);
    update(b, "{\"version\": 2}", 2);
    revert(b, true, 1);
    expect_held(b, "holding", 1, true); /* whoever paused it resumes it */
    post(b, "/resume", "", 200);
    rig_fill(&b->model->model, 1);
    verify(b, "default", 1);
    update(b, "{\"version\": 2}", 2); /* it is not held any more, so it is installed */
    rig_fill(&b->model->model, 2);
    verify(b, "default", 2);
    bench_close(b);
}

static void an_engine_that_refuses_to_go_back_stays_where_it_is(void **state)
{
    (void)state;
    bench *b = bench_open(WEIR_INSTALL_STAGED);
    join(b, "");
    rig_publish(b->model, 1);
    update(b, "", 1);
    rig_publish(b->model, 2);
    update(b, "", 2);
    b->engine.take = WEIR_ERR_BUSY;
    expect_error(b, "/revert", "", 500, "refused version 1");
    expect_held(b, "holding", 2, false);
    verify(b, "default", 2);
    b->engine.take = WEIR_OK;
    revert(b, true, 1);
    rig_fill(&b->model->model, 1);
    verify(b, "default", 1);
    bench_close(b);
}

static void whoever_joins_anew_or_installs_directly_has_no_way_back(void **state)
{
    (void)state;
    bench *b = bench_open(WEIR_INSTALL_STAGED);
    join(b, "");
    rig_publish(b->model, 1);
    update(b, "", 1);
    join(b, ",\"session_id\":\"another\"");
    expect_error(b, "/revert", "", 409, "nothing to go back to");
    expect_held(b, "holding", 1, false);
    bench_close(b);
    b = bench_open(WEIR_INSTALL_DIRECT);
    join(b, "");
    rig_publish(b->model, 1);
    post(b, "/pause", "", 200);
    update(b, "", 1);
    expect_error(b, "/revert", "", 409, "land in the live parameters");
    bench_close(b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(calls_are_answered_in_json_or_refused),
        cmocka_unit_test(pausing_and_resuming_again_does_nothing),
        cmocka_unit_test(all_workers_hold_what_was_published),
        cmocka_unit_test(a_second_update_allocates_nothing),
        cmocka_unit_test(an_engine_that_does_not_pause_keeps_the_old_version),
        cmocka_unit_test(a_version_that_the_engine_refuses_is_taken_back),
        cmocka_unit_test(direct_installs_want_a_pause_and_may_leave_it_unusable),
        cmocka_unit_test(parameters_survive_from_one_run_to_the_next),
        cmocka_unit_test(a_trainer_that_is_not_there_is_waited_for_within_the_bound),
        cmocka_unit_test(an_engine_has_its_own_parameters),
        cmocka_unit_test(what_goes_on_is_named_to_who_asks_for_more),
        cmocka_unit_test(closing_ends_an_update_that_waits),
        cmocka_unit_test(a_client_that_goes_away_cancels_nothing),
        cmocka_unit_test(what_keeps_it_from_opening_is_named),
        cmocka_unit_test(failed_allocations_leave_nothing_open),
        cmocka_unit_test(a_server_goes_back_by_itself),
        cmocka_unit_test(an_engine_that_refuses_to_go_back_stays_where_it_is),
        cmocka_unit_test(whoever_joins_anew_or_installs_directly_has_no_way_back),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
