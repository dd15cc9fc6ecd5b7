/* SPDX-License-Identifier: Apache-2.0 */
/* test_engine.c - every worker of parallel engines follows two sharded trainer ranks, byte for
 * byte.
 */
#include "refit/refit_rig.h"

#include <pthread.h>

#define MAX_WORKERS 8

typedef struct engine {
    rig *r;
    const char *trainer_mesh, *mesh, *experts;
    uint32_t n_workers;
    weir_install_mode mode;
    weir_engine_hooks hooks;
    weir_replica *workers[MAX_WORKERS];
} engine;

/* ---- the trainer's side ----------------------------------------------------------------------*/

static weir_trainer *open_rank(const engine *e, uint32_t rank)
{
    weir_trainer_options options = WEIR_TRAINER_OPTIONS_INIT;
    weir_trainer *trainer = NULL;
    options.directory = weir_directory_address(e->r->directory);
    options.model = "model";
    options.rank = rank;
    options.family = e->r->family;
    options.conversion = e->r->conversion;
    options.config = e->r->config_path;
    options.transport = e->r->transport;
    options.transport_directory = e->r->share;
    options.n_threads = 1;
    options.timeout_ms = 3 * RIG_TIMEOUT_MS;
    options.mesh = e->trainer_mesh;
    options.replica_mesh = e->mesh;
    options.replica_experts = e->experts;
    assert_ok(weir_trainer_open(&options, &trainer));
    return trainer;
}

/* Another mesh of the trainer: its ranks are new workers. */
static void retrain(engine *e, const char *mesh)
{
    e->trainer_mesh = mesh;
    for (uint32_t rank = 0; rank < RIG_RANKS; rank++) {
        weir_trainer_close(e->r->trainers[rank]);
        e->r->trainers[rank] = open_rank(e, rank);
    }
}

typedef struct publishing {
    weir_trainer *trainer;
    unsigned version;
    weir_status status;
    weir_report report;
    char line[256];
} publishing;

static void *publish_rank(void *context)
{
    publishing *p = context;
    p->status = weir_trainer_publish(p->trainer, p->version, &p->report);
    snprintf(p->line, sizeof(p->line), "%s", weir_last_error());
    return NULL;
}

/* Ranks hand each other rows, so they publish at the same time. */
static void publish(engine *e, unsigned version)
{
    publishing ranks[RIG_RANKS];
    pthread_t threads[RIG_RANKS];
    rig_fill(&e->r->model, version);
    for (int k = 0; k < RIG_RANKS; k++) {
        ranks[k] = (publishing){ .trainer = e->r->trainers[k], .version = version };
        assert_ok(weir_trainer_register(e->r->trainers[k], e->r->model.tensors, e->r->model.n));
        assert_int_equal(pthread_create(&threads[k], NULL, publish_rank, &ranks[k]), 0);
    }
    for (int k = 0; k < RIG_RANKS; k++)
        pthread_join(threads[k], NULL);
    for (int k = 0; k < RIG_RANKS; k++) {
        if (ranks[k].status != WEIR_OK)
            fail_msg("rank %d: %s", k, ranks[k].line);
    }
}

/* ---- the engine's side -----------------------------------------------------------------------*/

static weir_replica_options worker_options(const engine *e, uint32_t worker, char name[32])
{
    snprintf(name, 32, "engine-%u", worker);
    weir_replica_options options = rig_replica_options(e->r, name, e->mode);
    options.mesh = e->mesh;
    options.experts = e->experts;
    options.worker = worker;
    options.hooks = e->hooks;
    return options;
}

static void open_workers(engine *e)
{
    for (uint32_t w = 0; w < e->n_workers; w++) {
        char name[32];
        weir_replica_options options = worker_options(e, w, name);
        assert_ok(weir_replica_open(&options, &e->workers[w]));
        assert_ok(weir_replica_allocate(e->workers[w]));
    }
}

static void close_workers(engine *e)
{
    for (uint32_t w = 0; w < e->n_workers; w++)
        weir_replica_close(e->workers[w]);
}

static weir_status verify_as(const engine *e, uint32_t name_of, uint32_t worker, const char *mesh,
                             weir_verify_report *report)
{
    weir_verify_options options = WEIR_VERIFY_OPTIONS_INIT;
    char name[32];
    snprintf(name, sizeof(name), "engine-%u", name_of);
    options.directory = weir_directory_address(e->r->directory);
    options.model = "model";
    options.replica = name;
    options.family = e->r->family;
    options.conversion = e->r->conversion;
    options.config = e->r->config_path;
    options.sources = e->r->model.tensors;
    options.n_sources = e->r->model.n;
    options.n_threads = 1;
    options.timeout_ms = RIG_TIMEOUT_MS;
    options.mesh = mesh;
    options.experts = mesh != NULL ? e->experts : NULL;
    options.worker = worker;
    return weir_verify(&options, report);
}

static void expect_verified(const engine *e, uint32_t worker, uint64_t version)
{
    weir_verify_report report;
    assert_ok(verify_as(e, worker, worker, e->mesh, &report));
    assert_string_equal(report.first_difference, "");
    assert_int_equal(report.n_different, 0);
    assert_int_equal(report.version, version);
    assert_true(report.n_parameters > 4);
}

static engine open_engine(const char *family, const char *conversion, const engine *wish)
{
    engine e = *wish;
    e.r = rig_open(family, conversion, "ucx");
    retrain(&e, e.trainer_mesh);
    open_workers(&e);
    return e;
}

static void close_engine(engine *e)
{
    close_workers(e);
    rig_close(e->r);
}

static void follow(const char *family, const char *conversion, const engine *wish)
{
    engine e = open_engine(family, conversion, wish);
    for (unsigned version = 1; version <= 3; version++) {
        publish(&e, version);
        for (uint32_t w = 0; w < e.n_workers; w++) {
            weir_report report;
            assert_ok(weir_replica_install(e.workers[w], version, &report));
            expect_verified(&e, w, version);
            if (version == 1)
                continue;
            assert_int_equal(report.counters.plans, 0);
            assert_int_equal(report.counters.allocations, 0);
            assert_int_equal(report.counters.registrations, 0);
            assert_int_equal(report.counters.connections, 0);
        }
    }
    close_engine(&e);
}

/* ---- what must work --------------------------------------------------------------------------*/

static const struct {
    const char *family, *conversion;
    engine wish;
} pairs[] = {
    { "llama", "bf16_cast", { .trainer_mesh = "fsdp=2", .mesh = "tp=2", .n_workers = 2 } },
    { "llama", "bf16_cast", { .trainer_mesh = "tp=2", .mesh = "tp=4", .n_workers = 4 } },
    { "llama", "bf16_cast", { .trainer_mesh = "hsdp=2,sender=1", .mesh = "tp=2", .n_workers = 2 } },
    { "llama", "fp8_128x128", { .trainer_mesh = "tp=2", .n_workers = 1 } },
    { "qwen3", "fp8_128x128", { .trainer_mesh = "pp=2", .mesh = "pp=2", .n_workers = 2 } },
    { "qwen3",
      "cutlass_fp8_e4m3_per_channel",
      { .trainer_mesh = "tp=2", .mesh = "tp=1,pad=64", .n_workers = 1 } },
    { "qwen3_moe",
      "fp8_128x128",
      { .trainer_mesh = "ep=2",
        .mesh = "dp=2,ep=2",
        .experts = "[[3,1,0,7,6],[2,0,1,4,5]]",
        .n_workers = 2 } },
    { "qwen3_moe",
      "bf16_cast",
      { .trainer_mesh = "tp=2", .mesh = "dp=2,tp=2,ep=2", .n_workers = 4 } },
    { "glm_moe_dsa",
      "cutlass_fp8_e4m3_per_channel",
      { .trainer_mesh = "fsdp=2", .mesh = "tp=2", .n_workers = 2 } },
    { "glm_moe_dsa",
      "fp8_128x128",
      { .trainer_mesh = "tp=2", .mesh = "dp=2,ep=2", .n_workers = 2 } },
    { "glm_moe_dsa", "bf16_cast", { .trainer_mesh = "tp=2", .mesh = "tp=4", .n_workers = 4 } },
};

static void every_worker_follows_staged_and_direct(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof(pairs) / sizeof(*pairs); i++) {
        engine wish = pairs[i].wish;
        print_message("%s %s: %s -> %s\n", pairs[i].family, pairs[i].conversion, wish.trainer_mesh,
                      wish.mesh != NULL ? wish.mesh : "one worker");
        follow(pairs[i].family, pairs[i].conversion, &wish);
        wish.mode = WEIR_INSTALL_DIRECT;
        follow(pairs[i].family, pairs[i].conversion, &wish);
    }
}

/* ---- what stays as it was --------------------------------------------------------------------*/

/* Where a parameter lies that the engine pads: of 1,000 rows the second worker has 488. */
static const weir_tensor *padded(const weir_replica *worker)
{
    size_t n;
    const weir_tensor *live = weir_replica_parameters(worker, &n);
    for (size_t i = 0; i < n; i++) {
        if (strcmp(live[i].name, "model.embed_tokens.weight") == 0)
            return &live[i];
    }
    fail_msg("no embeddings");
    return NULL;
}

static void rows_that_pad_a_vocabulary_are_never_touched(void **state)
{
    static const weir_install_mode modes[] = { WEIR_INSTALL_STAGED, WEIR_INSTALL_DIRECT };
    (void)state;
    for (size_t m = 0; m < 2; m++) {
        engine wish = { .trainer_mesh = "fsdp=2", .mesh = "tp=2", .n_workers = 2 };
        wish.mode = modes[m];
        engine e = open_engine("llama", "bf16_cast", &wish);
        const weir_tensor *live = padded(e.workers[1]);
        unsigned char mark[24 * 512];
        assert_int_equal(live->shape.dim[0], 512);
        assert_int_equal(live->shape.dim[1], 256);
        memset(mark, 0xa5, sizeof(mark));
        memcpy((unsigned char *)live->data + 488 * 512, mark, sizeof(mark));
        for (unsigned version = 1; version <= 2; version++) {
            publish(&e, version);
            for (uint32_t w = 0; w < 2; w++)
                assert_ok(weir_replica_install(e.workers[w], version, NULL));
            expect_verified(&e, 1, version);
            assert_memory_equal((unsigned char *)live->data + 488 * 512, mark, sizeof(mark));
        }
        close_engine(&e);
    }
}

static weir_status refuse_version_3(void *context, uint64_t version)
{
    (void)context;
    return version == 3 ? WEIR_ERR_INVALID : WEIR_OK;
}

/* Version 3 comes from a trainer that is cut otherwise, so by another plan than version 2; the
 * engine refuses it when it is in. */
static void a_version_that_came_by_another_plan_is_taken_back(void **state)
{
    engine wish = { .trainer_mesh = "fsdp=2", .mesh = "tp=2,ep=2", .n_workers = 2 };
    wish.hooks.postprocess = refuse_version_3;
    engine e = open_engine("glm_moe_dsa", "cutlass_fp8_e4m3_per_channel", &wish);
    uint64_t n_bytes;
    (void)state;
    for (unsigned version = 1; version <= 2; version++) {
        publish(&e, version);
        for (uint32_t w = 0; w < 2; w++)
            assert_ok(weir_replica_install(e.workers[w], version, NULL));
    }
    unsigned char *before = rig_snapshot(e.workers[1], &n_bytes);
    retrain(&e, "tp=2");
    publish(&e, 3);
    assert_error(weir_replica_install(e.workers[1], 3, NULL), WEIR_ERR_INVALID,
                 "postprocess hook refused version 3");
    unsigned char *after = rig_snapshot(e.workers[1], &n_bytes);
    assert_memory_equal(before, after, n_bytes);
    assert_int_equal(weir_replica_version(e.workers[1]), 2);
    publish(&e, 4);
    for (uint32_t w = 0; w < 2; w++) {
        assert_ok(weir_replica_install(e.workers[w], 4, NULL));
        expect_verified(&e, w, 4);
    }
    free(before);
    free(after);
    close_engine(&e);
}

/* ---- what is refused -------------------------------------------------------------------------*/

static void a_byte_that_differs_is_found_in_any_parameter(void **state)
{
    engine wish = { .trainer_mesh = "fsdp=2", .mesh = "tp=2,ep=2", .n_workers = 2 };
    engine e = open_engine("glm_moe_dsa", "cutlass_fp8_e4m3_per_channel", &wish);
    size_t n;
    (void)state;
    publish(&e, 1);
    assert_ok(weir_replica_install(e.workers[1], 1, NULL));
    const weir_tensor *live = weir_replica_parameters(e.workers[1], &n);
    for (size_t i = 0; i < n; i++) {
        weir_verify_report report;
        unsigned char *byte = live[i].data;
        *byte ^= 4;
        assert_ok(verify_as(&e, 1, 1, e.mesh, &report));
        assert_int_equal(report.n_different, 1);
        assert_non_null(strstr(report.first_difference, live[i].name));
        *byte ^= 4;
    }
    close_engine(&e);
}

static void verifying_as_another_worker_or_engine_is_refused(void **state)
{
    engine wish = { .trainer_mesh = "fsdp=2", .mesh = "tp=2", .n_workers = 2 };
    engine e = open_engine("llama", "bf16_cast", &wish);
    weir_verify_report report;
    (void)state;
    publish(&e, 1);
    assert_ok(weir_replica_install(e.workers[0], 1, NULL));
    assert_error(verify_as(&e, 0, 1, "tp=2", &report), WEIR_ERR_LAYOUT,
                 "replica engine-0 is the worker of stage 0, dp 0, tp 0; worker 1 of tp=2");
    assert_error(verify_as(&e, 0, 0, "tp=4", &report), WEIR_ERR_LAYOUT,
                 "replica engine-0 is of an engine of tp=2");
    assert_error(verify_as(&e, 0, 0, NULL, &report), WEIR_ERR_LAYOUT, "not of one worker");
    assert_error(verify_as(&e, 0, 2, "tp=2", &report), WEIR_ERR_INVALID, "worker 2: an engine of");
    close_engine(&e);
}

static weir_status open_worker(const engine *e, const char *mesh, const char *experts,
                               uint32_t worker)
{
    weir_replica *replica = NULL;
    char name[32];
    weir_replica_options options = worker_options(e, worker, name);
    options.mesh = mesh;
    options.experts = experts;
    weir_status status = weir_replica_open(&options, &replica);
    if (status == WEIR_OK)
        status = weir_replica_allocate(replica);
    weir_replica_close(replica);
    return status;
}

static void a_worker_that_cannot_be_is_refused_before_anything_is_allocated(void **state)
{
    engine e = { .trainer_mesh = "fsdp=2", .mesh = "tp=2" };
    (void)state;
    e.r = rig_open("qwen3_moe", "fp8_128x128", "ucx");
    assert_error(open_worker(&e, "tp=2", NULL, 2), WEIR_ERR_INVALID,
                 "worker 2: an engine of 'tp=2' has 2");
    assert_error(open_worker(&e, "tp=2,replicas=3", NULL, 4), WEIR_ERR_INVALID, "has 2");
    assert_error(open_worker(&e, NULL, NULL, 1), WEIR_ERR_INVALID, "has 1");
    assert_error(open_worker(&e, "tp=x", NULL, 0), WEIR_ERR_INVALID, "'tp=x'");
    assert_error(open_worker(&e, "tp=3", NULL, 0), WEIR_ERR_LAYOUT, "do not divide over 3 workers");
    assert_error(open_worker(&e, "tp=2", NULL, 0), WEIR_ERR_UNSUPPORTED, "block of 128");
    assert_error(open_worker(&e, "dp=2,ep=2", "[[0,1],[2,9]]", 0), WEIR_ERR_LAYOUT,
                 "holds expert 9 of 8");
    rig_close(e.r);
}

static void another_mesh_and_pushes_are_refused_by_name(void **state)
{
    engine wish = { .trainer_mesh = "fsdp=2", .mesh = "tp=2", .n_workers = 1 };
    engine e = open_engine("llama", "bf16_cast", &wish);
    (void)state;
    e.mesh = "tp=4";
    retrain(&e, "fsdp=2");
    publish(&e, 1);
    assert_error(weir_replica_install(e.workers[0], 1, NULL), WEIR_ERR_LAYOUT,
                 "publishes version 1 for engines of tp=4");
    for (uint32_t rank = 0; rank < RIG_RANKS; rank++)
        weir_trainer_close(e.r->trainers[rank]);
    e.r->delivery = WEIR_DELIVERY_PUSH;
    for (uint32_t rank = 0; rank < RIG_RANKS; rank++)
        e.r->trainers[rank] = rig_open_trainer(e.r, rank, 2);
    rig_publish(e.r, 2);
    assert_error(weir_replica_install(e.workers[0], 2, NULL), WEIR_ERR_UNSUPPORTED,
                 "pushes, which reaches engines of one worker");
    assert_int_equal(weir_replica_get_state(e.workers[0]), WEIR_REPLICA_EMPTY);
    close_engine(&e);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_worker_follows_staged_and_direct),
        cmocka_unit_test(rows_that_pad_a_vocabulary_are_never_touched),
        cmocka_unit_test(a_version_that_came_by_another_plan_is_taken_back),
        cmocka_unit_test(a_byte_that_differs_is_found_in_any_parameter),
        cmocka_unit_test(verifying_as_another_worker_or_engine_is_refused),
        cmocka_unit_test(a_worker_that_cannot_be_is_refused_before_anything_is_allocated),
        cmocka_unit_test(another_mesh_and_pushes_are_refused_by_name),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
