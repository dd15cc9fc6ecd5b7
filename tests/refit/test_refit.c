/* SPDX-License-Identifier: Apache-2.0 */
/* test_refit.c - whole refits in one process: real directory, real transports, real bytes. */
#include "refit/refit_rig.h"

#include <pthread.h>

#include "base/clock.h"
#include "directory/client.h"
#include "refit/replica.h"

static const char *const transports[] = { "ucx", "file" };

static void expect_verified(const rig *r, const char *name, uint64_t version)
{
    weir_verify_report report = rig_verify(r, name);
    assert_string_equal(report.first_difference, "");
    assert_int_equal(report.n_different, 0);
    assert_int_equal(report.version, version);
    assert_true(report.n_parameters > 10);
}

/* ---- what must work --------------------------------------------------------------------------*/

static void follow_three_versions(const char *family, const char *conversion, const char *transport,
                                  weir_install_mode mode)
{
    rig *r = rig_open(family, conversion, transport);
    weir_replica *replica = rig_open_replica(r, "one", mode);
    for (unsigned version = 1; version <= 3; version++) {
        weir_report report;
        rig_publish(r, version);
        assert_ok(weir_replica_install(replica, WEIR_LATEST, &report));
        assert_int_equal(report.version, version);
        assert_int_equal(weir_replica_version(replica), version);
        assert_int_equal(weir_replica_get_state(replica), WEIR_REPLICA_HOLDING);
        expect_verified(r, "one", version);
        assert_ok(weir_trainer_wait(r->trainers[0], version, 1, 0));
    }
    weir_replica_close(replica);
    rig_close(r);
}

static void every_family_and_conversion_follows_byte_for_byte(void **state)
{
    static const char *const families[] = { "qwen3_moe", "glm_moe_dsa", "qwen3", "llama", "bert" };
    static const char *const conversions[] = { "bf16_cast", "fp8_128x128",
                                               "cutlass_fp8_e4m3_per_channel" };
    (void)state;
    for (size_t f = 0; f < sizeof(families) / sizeof(*families); f++) {
        for (size_t c = 0; c < sizeof(conversions) / sizeof(*conversions); c++)
            follow_three_versions(families[f], conversions[c], NULL, WEIR_INSTALL_STAGED);
    }
}

static void every_transport_follows_staged_and_direct(void **state)
{
    (void)state;
    for (size_t t = 0; t < sizeof(transports) / sizeof(*transports); t++) {
        follow_three_versions("glm_moe_dsa", "fp8_128x128", transports[t], WEIR_INSTALL_STAGED);
        follow_three_versions("glm_moe_dsa", "fp8_128x128", transports[t], WEIR_INSTALL_DIRECT);
    }
}

static void addresses_never_change(void **state)
{
    rig *r = rig_open("qwen3", "fp8_128x128", NULL);
    weir_replica *replica = rig_open_replica(r, "one", WEIR_INSTALL_STAGED);
    size_t n;
    const weir_tensor *live = weir_replica_parameters(replica, &n);
    void **before = calloc(n, sizeof(void *));
    (void)state;
    for (size_t i = 0; i < n; i++)
        before[i] = live[i].data;
    rig_publish(r, 1);
    assert_ok(weir_replica_install(replica, 1, NULL));
    rig_publish(r, 2);
    assert_ok(weir_replica_install(replica, 2, NULL));
    for (size_t i = 0; i < n; i++)
        assert_ptr_equal(live[i].data, before[i]);
    free(before);
    weir_replica_close(replica);
    rig_close(r);
}

static void a_second_refit_takes_nothing(weir_install_mode mode)
{
    rig *r = rig_open("glm_moe_dsa", "fp8_128x128", "ucx");
    weir_replica *replica = rig_open_replica(r, "one", mode);
    for (unsigned version = 1; version <= 8; version++) {
        weir_report published, installed;
        rig_fill(&r->model, version);
        for (int rank = 0; rank < RIG_RANKS; rank++) {
            assert_ok(weir_trainer_register(r->trainers[rank], r->model.tensors, r->model.n));
            assert_ok(weir_trainer_publish(r->trainers[rank], version, &published));
            if (version < 2)
                continue;
            assert_int_equal(published.counters.allocations, 0);
            assert_int_equal(published.counters.registrations, 0);
            assert_int_equal(published.counters.plans, 0);
        }
        assert_ok(weir_replica_install(replica, version, &installed));
        if (version < 2)
            continue;
        assert_int_equal(installed.counters.allocations, 0);
        assert_int_equal(installed.counters.registrations, 0);
        assert_int_equal(installed.counters.plans, 0);
        assert_int_equal(installed.counters.connections, 0);
    }
    weir_replica_close(replica);
    rig_close(r);
}

static void the_second_refit_allocates_registers_plans_and_connects_nothing(void **state)
{
    (void)state;
    a_second_refit_takes_nothing(WEIR_INSTALL_STAGED);
    a_second_refit_takes_nothing(WEIR_INSTALL_DIRECT);
}

static void the_first_refit_counts_what_the_second_does_without(void **state)
{
    rig *r = rig_open("qwen3", "fp8_128x128", "ucx");
    weir_replica *replica = rig_open_replica(r, "one", WEIR_INSTALL_STAGED);
    weir_report first, second;
    (void)state;
    rig_publish(r, 1);
    assert_ok(weir_replica_install(replica, 1, &first));
    assert_int_equal(first.counters.plans, 1);
    assert_int_equal(first.counters.connections, RIG_RANKS);
    rig_publish(r, 2);
    assert_ok(weir_replica_install(replica, 2, &second));
    assert_int_equal(second.counters.plans, 0);
    assert_int_equal(second.counters.connections, 0);
    weir_replica_close(replica);
    rig_close(r);
}

static void two_replicas_hold_what_each_has_installed(void **state)
{
    rig *r = rig_open("qwen3_moe", "fp8_128x128", NULL);
    weir_replica *one = rig_open_replica(r, "one", WEIR_INSTALL_STAGED);
    weir_replica *two = rig_open_replica(r, "two", WEIR_INSTALL_DIRECT);
    (void)state;
    rig_publish(r, 5);
    assert_ok(weir_replica_install(one, WEIR_LATEST, NULL));
    assert_ok(weir_replica_install(two, 5, NULL));
    expect_verified(r, "one", 5);
    expect_verified(r, "two", 5);
    assert_ok(weir_trainer_wait(r->trainers[1], 5, 2, 0));
    assert_error(weir_trainer_wait(r->trainers[1], 5, 3, 100), WEIR_ERR_TIMED_OUT,
                 "2 of 3 replica workers hold version 5");
    weir_replica_close(one);
    weir_replica_close(two);
    rig_close(r);
}

static void a_replica_that_leaves_has_acknowledged_all_the_same(void **state)
{
    rig *r = rig_open("qwen3", "fp8_128x128", NULL);
    weir_replica *replica = rig_open_replica(r, "one", WEIR_INSTALL_STAGED);
    (void)state;
    rig_publish(r, 1);
    assert_ok(weir_replica_install(replica, 1, NULL));
    weir_replica_close(replica);
    assert_ok(weir_trainer_wait(r->trainers[0], 1, 1, 500));
    rig_publish(r, 2);
    assert_error(weir_trainer_wait(r->trainers[0], 2, 1, 100), WEIR_ERR_TIMED_OUT, "0 of 1");
    rig_close(r);
}

static void parameters_of_the_engines_own_are_installed_in_place(void **state)
{
    rig *r = rig_open("llama", "fp8_128x128", NULL);
    weir_replica *model = rig_open_replica(r, "model", WEIR_INSTALL_STAGED);
    weir_replica_options options = rig_replica_options(r, "engine", WEIR_INSTALL_STAGED);
    weir_replica *engine;
    size_t n;
    const weir_tensor *live = weir_replica_parameters(model, &n);
    weir_tensor *own = calloc(n, sizeof(*own));
    weir_parameter *tags = calloc(n, sizeof(*tags));
    const weir_conversion *fp8;
    (void)state;
    assert_ok(weir_conversion_get("fp8_128x128", &fp8));
    const weir_conversion *raw;
    assert_ok(weir_conversion_get("bf16_cast", &raw));
    for (size_t i = 0; i < n; i++) {
        uint64_t n_bytes;
        bool quantised = live[i].dtype == WEIR_F8_E4M3 || live[i].dtype == WEIR_F32;
        own[i] = live[i];
        assert_ok(weir_tensor_bytes(live[i].dtype, &live[i].shape, &n_bytes));
        own[i].data = aligned_alloc(64, (n_bytes + 63) / 64 * 64);
        tags[i].compile_target = (quantised ? fp8 : raw)->compile_target;
        tags[i].compile_metadata = (quantised ? fp8 : raw)->compile_metadata;
    }
    assert_ok(weir_replica_open(&options, &engine));
    assert_ok(weir_replica_register(engine, own, tags, n));
    rig_publish(r, 1);
    assert_ok(weir_replica_install(model, 1, NULL));
    assert_ok(weir_replica_install(engine, 1, NULL));
    expect_verified(r, "engine", 1);
    for (size_t i = 0; i < n; i++) {
        uint64_t n_bytes;
        assert_ok(weir_tensor_bytes(live[i].dtype, &live[i].shape, &n_bytes));
        assert_memory_equal(own[i].data, live[i].data, n_bytes);
    }
    weir_replica_close(engine);
    weir_replica_close(model);
    for (size_t i = 0; i < n; i++)
        free(own[i].data);
    free(own);
    free(tags);
    rig_close(r);
}

/* ---- what must be refused --------------------------------------------------------------------*/

/* The replica holds version 1, is asked for version 2 and must refuse with `line`, unchanged. */
static void expect_refused(rig *r, weir_replica *replica, weir_status status, const char *line)
{
    uint64_t n_bytes;
    uint64_t version = weir_replica_version(replica);
    unsigned char *before = rig_snapshot(replica, &n_bytes), *after;
    assert_error(weir_replica_install(replica, 2, NULL), status, line);
    after = rig_snapshot(replica, &n_bytes);
    assert_memory_equal(before, after, n_bytes);
    assert_int_equal(weir_replica_version(replica), version);
    free(before);
    free(after);
    (void)r;
}

static void a_tag_that_does_not_match_is_refused_before_a_byte_moves(void **state)
{
    rig *r = rig_open("qwen3", "fp8_128x128", NULL);
    (void)state;
    r->conversion = "cutlass_fp8_e4m3_per_channel";
    weir_replica *replica = rig_open_replica(r, "one", WEIR_INSTALL_DIRECT);
    rig_publish(r, 2);
    expect_refused(r, replica, WEIR_ERR_LAYOUT, "trainer rank");
    assert_int_equal(weir_replica_get_state(replica), WEIR_REPLICA_EMPTY);
    weir_replica_close(replica);
    rig_close(r);
}

/* Tags and shapes could all match: which part of what a name is depends on the mesh. */
static void a_version_for_other_engines_is_refused_with_both_meshes(void **state)
{
    rig *r = rig_open("qwen3", "bf16_cast", NULL);
    weir_replica *replica = rig_open_replica(r, "one", WEIR_INSTALL_STAGED);
    (void)state;
    snprintf(replica->mesh_text, sizeof(replica->mesh_text), "tp=2,ep=1");
    rig_publish(r, 2);
    expect_refused(r, replica, WEIR_ERR_LAYOUT,
                   ") publishes version 2 for engines of one worker, this replica is of tp=2,ep=1");
    assert_int_equal(strncmp(weir_last_error(), "trainer rank 0 (", 16), 0);
    weir_replica_close(replica);
    rig_close(r);
}

typedef struct own_engine {
    weir_tensor *tensors;
    weir_parameter *tags;
    size_t n;
    weir_replica *replica;
} own_engine;

/* A replica with the model's own parameters, to be changed before it is registered. */
static own_engine own_engine_make(rig *r)
{
    own_engine engine = { 0 };
    weir_mapping *mapping;
    weir_mapping_options options = WEIR_MAPPING_OPTIONS_INIT;
    options.config = r->config;
    options.family = r->family;
    options.conversion = r->conversion;
    assert_ok(weir_mapping_open(&options, r->model.tensors, r->model.n, &mapping));
    const weir_parameter *parameters = weir_mapping_parameters(mapping, &engine.n);
    engine.tensors = calloc(engine.n + 1, sizeof(*engine.tensors));
    engine.tags = calloc(engine.n + 1, sizeof(*engine.tags));
    for (size_t i = 0; i < engine.n; i++) {
        uint64_t n_bytes;
        assert_ok(weir_tensor_bytes(parameters[i].dtype, &parameters[i].shape, &n_bytes));
        engine.tags[i] = parameters[i];
        engine.tensors[i] = (weir_tensor){ strdup(parameters[i].name), parameters[i].dtype,
                                           parameters[i].shape, calloc(1, n_bytes * 2 + 64) };
    }
    weir_mapping_close(mapping);
    return engine;
}

static void own_engine_register(own_engine *engine, rig *r)
{
    weir_replica_options options = rig_replica_options(r, "engine", WEIR_INSTALL_STAGED);
    assert_ok(weir_replica_open(&options, &engine->replica));
    assert_ok(weir_replica_register(engine->replica, engine->tensors, engine->tags, engine->n));
}

static void own_engine_close(own_engine *engine, size_t n_made)
{
    weir_replica_close(engine->replica);
    for (size_t i = 0; i < n_made; i++) {
        free(engine->tensors[i].data);
        free((char *)engine->tensors[i].name);
    }
    free(engine->tensors);
    free(engine->tags);
}

static void a_parameter_that_nobody_fills_is_refused(void **state)
{
    rig *r = rig_open("qwen3", "bf16_cast", NULL);
    own_engine engine = own_engine_make(r);
    (void)state;
    engine.tags[engine.n] = engine.tags[0];
    engine.tensors[engine.n] = engine.tensors[0];
    engine.tensors[engine.n].name = strdup("model.layers.0.extra.weight");
    engine.tensors[engine.n].data = calloc(1, 1 << 20);
    engine.n++;
    own_engine_register(&engine, r);
    rig_publish(r, 2);
    expect_refused(r, engine.replica, WEIR_ERR_LAYOUT, "model.layers.0.extra.weight");
    own_engine_close(&engine, engine.n);
    rig_close(r);
}

static void a_tensor_that_the_engine_lacks_is_refused(void **state)
{
    rig *r = rig_open("qwen3", "bf16_cast", NULL);
    own_engine engine = own_engine_make(r);
    size_t n_made = engine.n;
    (void)state;
    engine.n--;
    own_engine_register(&engine, r);
    rig_publish(r, 2);
    expect_refused(r, engine.replica, WEIR_ERR_LAYOUT, engine.tensors[n_made - 1].name);
    own_engine_close(&engine, n_made);
    rig_close(r);
}

static void a_wrong_dtype_or_shape_is_refused_with_both_sides(void **state)
{
    rig *r = rig_open("qwen3", "bf16_cast", NULL);
    own_engine engine = own_engine_make(r);
    (void)state;
    engine.tensors[0].dtype = WEIR_F16;
    own_engine_register(&engine, r);
    rig_publish(r, 2);
    expect_refused(r, engine.replica, WEIR_ERR_LAYOUT, "F16");
    assert_non_null(strstr(weir_last_error(), "BF16"));
    own_engine_close(&engine, engine.n);
    engine = own_engine_make(r);
    engine.tensors[0].shape.dim[0] += 1;
    own_engine_register(&engine, r);
    expect_refused(r, engine.replica, WEIR_ERR_LAYOUT, engine.tensors[0].name);
    own_engine_close(&engine, engine.n);
    rig_close(r);
}

static void a_weight_that_is_not_finite_is_refused_on_the_trainer(void **state)
{
    rig *r = rig_open("qwen3", "fp8_128x128", NULL);
    weir_replica *replica = rig_open_replica(r, "one", WEIR_INSTALL_STAGED);
    (void)state;
    rig_publish(r, 1);
    assert_ok(weir_replica_install(replica, 1, NULL));
    for (size_t t = 0; t < r->model.n; t++) {
        uint16_t *p = r->model.tensors[t].data;
        if (strstr(r->model.tensors[t].name, "layers.1.mlp.down_proj") != NULL)
            p[r->model.tensors[t].shape.dim[1] * 3 + 5] = 0x7fc0;
    }
    int refused = 0;
    bool last = false;
    for (int rank = 0; rank < RIG_RANKS; rank++) {
        assert_ok(weir_trainer_register(r->trainers[rank], r->model.tensors, r->model.n));
        weir_status status = weir_trainer_publish(r->trainers[rank], 2, NULL);
        last = status != WEIR_OK;
        if (status == WEIR_OK)
            continue;
        refused++;
        assert_int_equal(status, WEIR_ERR_NONFINITE);
        assert_non_null(strstr(weir_last_error(), "model.layers.1.mlp.down_proj.weight[3, 5]"));
    }
    assert_int_equal(refused, 1);
    if (last) /* the rank before it had published, so there is a version to say it of */
        expect_refused(r, replica, WEIR_ERR_ABORTED, "model.layers.1.mlp.down_proj.weight[3, 5]");
    else
        expect_refused(r, replica, WEIR_ERR_TIMED_OUT, "have not published it: rank-0");
    rig_fill(&r->model, 1);
    expect_verified(r, "one", 1);
    weir_replica_close(replica);
    rig_close(r);
}

static void a_rank_that_is_missing_is_named_when_the_wait_ends(void **state)
{
    rig *r = rig_open("qwen3", "bf16_cast", NULL);
    weir_replica *replica = rig_open_replica(r, "one", WEIR_INSTALL_STAGED);
    (void)state;
    rig_fill(&r->model, 1);
    assert_ok(weir_trainer_register(r->trainers[0], r->model.tensors, r->model.n));
    assert_ok(weir_trainer_publish(r->trainers[0], 1, NULL));
    double begun = weir_now_s();
    assert_error(weir_replica_install(replica, 1, NULL), WEIR_ERR_TIMED_OUT,
                 "of 2 trainer ranks these have not published it: rank-1");
    assert_true(weir_now_s() - begun < 2 * RIG_TIMEOUT_MS / 1e3);
    weir_replica_close(replica);
    rig_close(r);
}

static void a_version_that_nobody_has_is_said_so(void **state)
{
    rig *r = rig_open("qwen3", "bf16_cast", NULL);
    weir_replica *replica = rig_open_replica(r, "one", WEIR_INSTALL_STAGED);
    (void)state;
    assert_error(weir_replica_install(replica, WEIR_LATEST, NULL), WEIR_ERR_TIMED_OUT,
                 "knows no trainer of it");
    rig_publish(r, 3);
    assert_error(weir_replica_install(replica, 9, NULL), WEIR_ERR_TIMED_OUT,
                 "the trainer's newest is 3");
    assert_error(weir_replica_install(replica, 2, NULL), WEIR_ERR_NOT_FOUND,
                 "its trainer has moved on to 3");
    weir_replica_close(replica);
    rig_close(r);
}

static void versions_go_up(void **state)
{
    rig *r = rig_open("qwen3", "bf16_cast", NULL);
    (void)state;
    rig_publish(r, 3);
    assert_error(weir_trainer_publish(r->trainers[0], 3, NULL), WEIR_ERR_INVALID,
                 "version 3 is not after version 3");
    rig_close(r);
}

/* ---- what must be undone ---------------------------------------------------------------------*/

typedef struct hook_log {
    int paused, resumed;
    weir_status pause_answer, postprocess_answer;
} hook_log;

static weir_status on_pause(void *context)
{
    hook_log *log = context;
    log->paused++;
    return log->pause_answer;
}

static weir_status on_postprocess(void *context, uint64_t version)
{
    (void)version;
    return ((hook_log *)context)->postprocess_answer;
}

static void on_resume(void *context)
{
    ((hook_log *)context)->resumed++;
}

static weir_replica *open_hooked(rig *r, hook_log *log, weir_install_mode mode)
{
    weir_replica_options options = rig_replica_options(r, "one", mode);
    weir_replica *replica;
    options.hooks = (weir_engine_hooks){ on_pause, on_postprocess, on_resume, log };
    assert_ok(weir_replica_open(&options, &replica));
    assert_ok(weir_replica_allocate(replica));
    rig_publish(r, 1);
    assert_ok(weir_replica_install(replica, 1, NULL));
    rig_publish(r, 2);
    return replica;
}

static void a_staged_install_that_fails_half_way_brings_the_old_version_back(void **state)
{
    rig *r = rig_open("glm_moe_dsa", "fp8_128x128", NULL);
    hook_log log = { 0 };
    weir_replica *replica = open_hooked(r, &log, WEIR_INSTALL_STAGED);
    (void)state;
    log.postprocess_answer = WEIR_ERR_DEVICE;
    expect_refused(r, replica, WEIR_ERR_DEVICE, "postprocess hook refused version 2");
    assert_int_equal(log.paused, 2);
    assert_int_equal(log.resumed, 2);
    rig_fill(&r->model, 1);
    expect_verified(r, "one", 1); /* derived parameters included */
    log.postprocess_answer = WEIR_OK;
    assert_ok(weir_replica_install(replica, 2, NULL));
    rig_fill(&r->model, 2);
    expect_verified(r, "one", 2);
    weir_replica_close(replica);
    rig_close(r);
}

static void an_engine_that_does_not_pause_is_left_alone(void **state)
{
    static const weir_install_mode modes[] = { WEIR_INSTALL_STAGED, WEIR_INSTALL_DIRECT };
    (void)state;
    for (int m = 0; m < 2; m++) {
        rig *r = rig_open("qwen3", "fp8_128x128", NULL);
        hook_log log = { 0 };
        weir_replica *replica = open_hooked(r, &log, modes[m]);
        log.pause_answer = WEIR_ERR_BUSY;
        expect_refused(r, replica, WEIR_ERR_BUSY, "the engine did not pause");
        assert_int_equal(log.resumed, 1);
        weir_replica_close(replica);
        rig_close(r);
    }
}

static void a_direct_install_that_fails_is_unusable_until_one_succeeds(void **state)
{
    rig *r = rig_open("qwen3", "fp8_128x128", NULL);
    hook_log log = { 0 };
    weir_replica *replica = open_hooked(r, &log, WEIR_INSTALL_DIRECT);
    (void)state;
    log.postprocess_answer = WEIR_ERR_DEVICE;
    assert_error(weir_replica_install(replica, 2, NULL), WEIR_ERR_DEVICE, "is unusable until");
    assert_int_equal(weir_replica_get_state(replica), WEIR_REPLICA_UNUSABLE);
    assert_int_equal(weir_replica_version(replica), 0);
    assert_int_equal(log.resumed, 1); /* an unusable engine stays paused */
    log.postprocess_answer = WEIR_OK;
    assert_ok(weir_replica_install(replica, 2, NULL));
    assert_int_equal(weir_replica_get_state(replica), WEIR_REPLICA_HOLDING);
    assert_int_equal(log.resumed, 2);
    expect_verified(r, "one", 2);
    weir_replica_close(replica);
    rig_close(r);
}

/* ---- restarts --------------------------------------------------------------------------------*/

static void publish_as(rig *r, weir_trainer *const *trainers, unsigned version)
{
    rig_fill(&r->model, version);
    for (int rank = 0; rank < RIG_RANKS; rank++) {
        assert_ok(weir_trainer_register(trainers[rank], r->model.tensors, r->model.n));
        assert_ok(weir_trainer_publish(trainers[rank], 1, NULL));
    }
}

static void reopen_trainers(rig *r)
{
    for (uint32_t rank = 0; rank < RIG_RANKS; rank++) {
        weir_trainer_close(r->trainers[rank]);
        r->trainers[rank] = NULL;
    }
    for (uint32_t rank = 0; rank < RIG_RANKS; rank++)
        r->trainers[rank] = rig_open_trainer(r, rank, 2);
}

static void trainers_that_start_again_publish_their_numbers_anew(void **state)
{
    rig *r = rig_open("qwen3", "fp8_128x128", NULL);
    (void)state;
    for (unsigned life = 1; life <= 3; life++) {
        publish_as(r, r->trainers, life);
        weir_replica *replica = rig_open_replica(r, "one", WEIR_INSTALL_STAGED);
        assert_ok(weir_replica_install(replica, 1, NULL));
        expect_verified(r, "one", 1);
        weir_replica_close(replica);
        reopen_trainers(r);
    }
    rig_close(r);
}

typedef struct reader {
    weir_directory_client *client;
    char uid[WEIR_ID_BYTES], lease_id[WEIR_ID_BYTES];
} reader;

/* A reader of version 1 that holds its lease until it is told otherwise. */
static reader lease_version_1(const rig *r)
{
    static const char *const slots[] = { "rank-0", "rank-1" };
    reader made = { 0 };
    weir_version_record record;
    assert_ok(weir_directory_client_open(weir_directory_address(r->directory), RIG_TIMEOUT_MS,
                                         &made.client));
    assert_ok(
        weir_directory_register_worker(made.client, "reader", WEIR_ROLE_GENERATOR, "model", 60));
    assert_ok(weir_directory_create_version(made.client, "model", 1, "weir/model/default/1/1",
                                            slots, RIG_RANKS, &record));
    assert_ok(weir_directory_register_lease(made.client, record.uid, "reader", 60, made.lease_id));
    memcpy(made.uid, record.uid, sizeof(made.uid));
    return made;
}

static void memory_that_is_being_read_is_kept_when_another_layout_comes(void **state)
{
    rig *r = rig_open("qwen3", "fp8_128x128", NULL);
    weir_trainer *trainer = r->trainers[0];
    (void)state;
    rig_publish(r, 1);
    reader one = lease_version_1(r);
    assert_ok(weir_trainer_publish(trainer, 2, NULL));
    assert_error(weir_trainer_publish(trainer, 3, NULL), WEIR_ERR_TIMED_OUT,
                 "version 1 is still being read");
    for (size_t t = 0; t < r->model.n; t++)
        r->model.tensors[t].dtype = WEIR_F16;
    assert_error(weir_trainer_register(trainer, r->model.tensors, r->model.n), WEIR_ERR_TIMED_OUT,
                 "version 1 is still being read");
    assert_ok(weir_directory_delete_lease(one.client, one.uid, one.lease_id, "reader"));
    assert_ok(weir_trainer_register(trainer, r->model.tensors, r->model.n));
    assert_ok(weir_trainer_publish(trainer, 3, NULL));
    weir_directory_client_close(one.client);
    rig_close(r);
}

static void a_late_replica_takes_the_version_before_one_that_never_gets_ready(void **state)
{
    rig *r = rig_open("qwen3", "bf16_cast", NULL);
    (void)state;
    rig_publish(r, 1);
    rig_fill(&r->model, 2);
    assert_ok(weir_trainer_register(r->trainers[0], r->model.tensors, r->model.n));
    assert_ok(weir_trainer_publish(r->trainers[0], 2, NULL));
    weir_replica *replica = rig_open_replica(r, "late", WEIR_INSTALL_STAGED);
    assert_ok(weir_replica_install(replica, WEIR_LATEST, NULL));
    assert_int_equal(weir_replica_version(replica), 1);
    assert_error(weir_replica_install(replica, WEIR_LATEST, NULL), WEIR_ERR_TIMED_OUT,
                 "waiting for version 2 of model: of 2 trainer ranks these have not published it: "
                 "rank-1");
    weir_replica_close(replica);
    rig_close(r);
}

static void another_number_of_ranks_is_refused_with_both_sides(void **state)
{
    rig *r = rig_open("qwen3", "bf16_cast", NULL);
    weir_trainer_options options = WEIR_TRAINER_OPTIONS_INIT;
    weir_trainer *stranger;
    (void)state;
    rig_publish(r, 1);
    options.directory = weir_directory_address(r->directory);
    options.model = "model";
    options.rank = 2;
    options.n_ranks = 3;
    options.family = r->family;
    options.conversion = r->conversion;
    options.timeout_ms = RIG_TIMEOUT_MS;
    assert_ok(weir_trainer_open(&options, &stranger));
    assert_ok(weir_trainer_register(stranger, r->model.tensors, r->model.n));
    assert_error(weir_trainer_publish(stranger, 1, NULL), WEIR_ERR_EXISTS,
                 "version 1 of model, run default: this is trainer rank 2 of 3");
    assert_error(weir_trainer_publish(stranger, WEIR_LATEST, NULL), WEIR_ERR_INVALID,
                 "stands for the latest");
    weir_trainer_close(stranger);
    rig_close(r);
}

static void a_replica_name_that_is_too_long_or_empty_is_refused(void **state)
{
    rig *r = rig_open("qwen3", "bf16_cast", NULL);
    char name[400];
    weir_replica_options options = rig_replica_options(r, "", WEIR_INSTALL_STAGED);
    weir_replica *replica;
    (void)state;
    assert_error(weir_replica_open(&options, &replica), WEIR_ERR_INVALID, "name is required");
    memset(name, 'x', sizeof(name) - 1);
    name[sizeof(name) - 1] = '\0';
    options.name = name;
    assert_error(weir_replica_open(&options, &replica), WEIR_ERR_INVALID,
                 "name has 399 characters");
    rig_close(r);
}

static void a_name_that_a_running_replica_has_is_refused(void **state)
{
    rig *r = rig_open("qwen3", "bf16_cast", NULL);
    weir_replica_options options = rig_replica_options(r, "one", WEIR_INSTALL_STAGED);
    weir_replica *replica = rig_open_replica(r, "one", WEIR_INSTALL_STAGED), *second;
    (void)state;
    rig_publish(r, 1);
    assert_ok(weir_replica_install(replica, 1, NULL));
    assert_error(weir_replica_open(&options, &second), WEIR_ERR_EXISTS,
                 "replica one of model is running already: it answers at 127.0.0.1:");
    expect_verified(r, "one", 1);
    weir_replica_close(replica);
    replica = rig_open_replica(r, "one", WEIR_INSTALL_STAGED);
    assert_ok(weir_replica_install(replica, 1, NULL));
    weir_replica_close(replica);
    rig_close(r);
}

/* ---- waits -----------------------------------------------------------------------------------*/

static void *cancel_soon(void *replica)
{
    weir_sleep_ms(200);
    weir_replica_cancel(replica);
    return NULL;
}

static void a_waiting_install_can_be_cancelled(void **state)
{
    rig *r = rig_open("qwen3", "bf16_cast", NULL);
    weir_replica *replica = rig_open_replica(r, "one", WEIR_INSTALL_STAGED);
    pthread_t thread;
    (void)state;
    double begun = weir_now_s();
    assert_int_equal(pthread_create(&thread, NULL, cancel_soon, replica), 0);
    assert_error(weir_replica_install(replica, WEIR_LATEST, NULL), WEIR_ERR_CANCELLED, "cancelled");
    assert_true(weir_now_s() - begun < 1.5);
    pthread_join(thread, NULL);
    rig_publish(r, 1);
    assert_ok(weir_replica_install(replica, 1, NULL));
    weir_replica_close(replica);
    rig_close(r);
}

static void a_directory_that_stays_away_is_an_error_when_the_wait_ends(void **state)
{
    rig *r = rig_open("qwen3", "bf16_cast", NULL);
    weir_replica *replica = rig_open_replica(r, "one", WEIR_INSTALL_STAGED);
    (void)state;
    rig_publish(r, 1);
    assert_ok(weir_replica_install(replica, 1, NULL));
    weir_directory_close(r->directory);
    r->directory = NULL;
    double begun = weir_now_s();
    assert_error(weir_replica_install(replica, WEIR_LATEST, NULL), WEIR_ERR_PEER_LOST,
                 "directory 127.0.0.1:");
    assert_error(weir_trainer_publish(r->trainers[0], 2, NULL), WEIR_ERR_PEER_LOST,
                 "directory 127.0.0.1:");
    assert_true(weir_now_s() - begun < 2 * RIG_TIMEOUT_MS / 1e3 + 2);
    assert_int_equal(weir_replica_version(replica), 1);
    weir_replica_close(replica);
    rig_close(r);
}

static void options_without_a_size_are_refused(void **state)
{
    weir_trainer_options trainer = { 0 };
    weir_replica_options replica = { 0 };
    weir_verify_options verify = { 0 };
    weir_verify_report report;
    weir_trainer *t;
    weir_replica *p;
    (void)state;
    assert_error(weir_trainer_open(&trainer, &t), WEIR_ERR_INVALID, "weir_trainer_options: size");
    assert_error(weir_replica_open(&replica, &p), WEIR_ERR_INVALID, "weir_replica_options: size");
    assert_error(weir_verify(&verify, &report), WEIR_ERR_INVALID, "weir_verify_options: size");
}

static void a_trainer_can_bring_its_own_directory(void **state)
{
    weir_trainer_options options = WEIR_TRAINER_OPTIONS_INIT;
    weir_trainer *trainer;
    (void)state;
    options.model = "model";
    assert_ok(weir_trainer_open(&options, &trainer));
    assert_non_null(strstr(weir_trainer_directory(trainer), "127.0.0.1:"));
    assert_error(weir_trainer_publish(trainer, 1, NULL), WEIR_ERR_INVALID,
                 "has registered no tensors");
    weir_trainer_close(trainer);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_family_and_conversion_follows_byte_for_byte),
        cmocka_unit_test(every_transport_follows_staged_and_direct),
        cmocka_unit_test(addresses_never_change),
        cmocka_unit_test(the_first_refit_counts_what_the_second_does_without),
        cmocka_unit_test(the_second_refit_allocates_registers_plans_and_connects_nothing),
        cmocka_unit_test(two_replicas_hold_what_each_has_installed),
        cmocka_unit_test(a_replica_that_leaves_has_acknowledged_all_the_same),
        cmocka_unit_test(parameters_of_the_engines_own_are_installed_in_place),
        cmocka_unit_test(a_tag_that_does_not_match_is_refused_before_a_byte_moves),
        cmocka_unit_test(a_version_for_other_engines_is_refused_with_both_meshes),
        cmocka_unit_test(a_parameter_that_nobody_fills_is_refused),
        cmocka_unit_test(a_tensor_that_the_engine_lacks_is_refused),
        cmocka_unit_test(a_wrong_dtype_or_shape_is_refused_with_both_sides),
        cmocka_unit_test(a_weight_that_is_not_finite_is_refused_on_the_trainer),
        cmocka_unit_test(a_rank_that_is_missing_is_named_when_the_wait_ends),
        cmocka_unit_test(a_version_that_nobody_has_is_said_so),
        cmocka_unit_test(versions_go_up),
        cmocka_unit_test(a_staged_install_that_fails_half_way_brings_the_old_version_back),
        cmocka_unit_test(an_engine_that_does_not_pause_is_left_alone),
        cmocka_unit_test(a_direct_install_that_fails_is_unusable_until_one_succeeds),
        cmocka_unit_test(trainers_that_start_again_publish_their_numbers_anew),
        cmocka_unit_test(memory_that_is_being_read_is_kept_when_another_layout_comes),
        cmocka_unit_test(a_late_replica_takes_the_version_before_one_that_never_gets_ready),
        cmocka_unit_test(another_number_of_ranks_is_refused_with_both_sides),
        cmocka_unit_test(a_replica_name_that_is_too_long_or_empty_is_refused),
        cmocka_unit_test(a_name_that_a_running_replica_has_is_refused),
        cmocka_unit_test(a_waiting_install_can_be_cancelled),
        cmocka_unit_test(a_directory_that_stays_away_is_an_error_when_the_wait_ends),
        cmocka_unit_test(options_without_a_size_are_refused),
        cmocka_unit_test(a_trainer_can_bring_its_own_directory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
