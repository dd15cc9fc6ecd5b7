/* SPDX-License-Identifier: Apache-2.0 */
/* test_sharded.c - ranks of a mesh that run out of memory anywhere, and that register other
 * tensors than before. */
#include "refit/refit_rig.h"

#include <pthread.h>

#include "base/alloc.h"
#include "refit/rank_plan.h"
#include "refit/replica.h"

#define SPARE 24 /* allocations of other threads, beside those that were counted */

/* ---- ranks and workers -----------------------------------------------------------------------*/

typedef struct pair {
    rig *r;
    const char *trainer_mesh, *replica_mesh;
    uint32_t n_ranks;
} pair;

static weir_trainer *open_rank(const pair *p, uint32_t rank)
{
    weir_trainer_options options = WEIR_TRAINER_OPTIONS_INIT;
    weir_trainer *trainer = NULL;
    options.directory = weir_directory_address(p->r->directory);
    options.model = "model";
    options.rank = rank;
    options.family = p->r->family;
    options.conversion = p->r->conversion;
    options.config = p->r->config_path;
    options.transport = p->r->transport;
    options.transport_directory = p->r->share;
    options.n_threads = 1;
    options.timeout_ms = RIG_TIMEOUT_MS;
    options.mesh = p->trainer_mesh;
    options.replica_mesh = p->replica_mesh;
    assert_ok(weir_trainer_open(&options, &trainer));
    return trainer;
}

static pair open_pair(const char *family, const char *conversion, const pair *wish)
{
    pair p = *wish;
    p.r = rig_open(family, conversion, "file");
    for (uint32_t rank = 0; rank < RIG_RANKS; rank++) {
        weir_trainer_close(p.r->trainers[rank]);
        p.r->trainers[rank] = rank < p.n_ranks ? open_rank(&p, rank) : NULL;
    }
    rig_fill(&p.r->model, 1);
    return p;
}

static weir_replica *open_worker(const pair *p)
{
    weir_replica_options options = rig_replica_options(p->r, "worker", WEIR_INSTALL_STAGED);
    weir_replica *replica = NULL;
    options.mesh = p->replica_mesh;
    options.worker = 1;
    assert_ok(weir_replica_open(&options, &replica));
    assert_ok(weir_replica_allocate(replica));
    return replica;
}

static void expect_verified(const pair *p)
{
    weir_verify_options options = WEIR_VERIFY_OPTIONS_INIT;
    weir_verify_report report;
    options.directory = weir_directory_address(p->r->directory);
    options.model = "model";
    options.replica = "worker";
    options.family = p->r->family;
    options.conversion = p->r->conversion;
    options.config = p->r->config_path;
    options.sources = p->r->model.tensors;
    options.n_sources = p->r->model.n;
    options.n_threads = 1;
    options.timeout_ms = RIG_TIMEOUT_MS;
    options.mesh = p->replica_mesh;
    options.worker = 1;
    assert_ok(weir_verify(&options, &report));
    assert_string_equal(report.first_difference, "");
    assert_true(report.n_parameters > 4);
}

static weir_status register_all(const pair *p, uint32_t rank)
{
    return weir_trainer_register(p->r->trainers[rank], p->r->model.tensors, p->r->model.n);
}

/* ---- memory that is not there ----------------------------------------------------------------*/

/* Threads of the directory allocate too, so that the call itself may be spared. */
static bool has_failed(weir_status status, uint64_t n)
{
    weir_alloc_fail_at(0);
    if (status == WEIR_OK)
        return false;
    if (weir_last_error()[0] == '\0')
        fail_msg("allocation %llu: %s without a line", (unsigned long long)n,
                 weir_status_name(status));
    return true;
}

static void a_registration_that_lacks_memory_is_refused_whole(void **state)
{
    static const pair wish = { .trainer_mesh = "fsdp=2",
                               .replica_mesh = "dp=2,ep=2",
                               .n_ranks = 2 };
    pair p = open_pair("qwen3_moe", "fp8_128x128", &wish);
    uint64_t before = weir_alloc_count(), n_failed = 0;
    (void)state;
    assert_ok(register_all(&p, 0));
    uint64_t n_all = weir_alloc_count() - before + SPARE;
    for (uint64_t n = 1; n <= n_all; n++) {
        weir_trainer_close(p.r->trainers[0]);
        p.r->trainers[0] = open_rank(&p, 0);
        weir_alloc_fail_at(n);
        weir_status status = register_all(&p, 0);
        n_failed += has_failed(status, n);
        if (status != WEIR_OK)
            assert_ok(register_all(&p, 0));
    }
    assert_true(n_failed > n_all / 2);
    rig_close(p.r);
}

static void a_publish_that_lacks_memory_can_be_tried_again(void **state)
{
    static const pair wish = { .trainer_mesh = "fsdp=1", .replica_mesh = "tp=2", .n_ranks = 1 };
    pair p = open_pair("llama", "bf16_cast", &wish);
    unsigned version = 1;
    (void)state;
    assert_ok(register_all(&p, 0));
    uint64_t before = weir_alloc_count(), n_failed = 0;
    assert_ok(weir_trainer_publish(p.r->trainers[0], version++, NULL));
    uint64_t n_all = weir_alloc_count() - before + SPARE;
    for (uint64_t n = 1; n <= n_all; n++) {
        weir_trainer_close(p.r->trainers[0]);
        p.r->trainers[0] = open_rank(&p, 0);
        assert_ok(register_all(&p, 0));
        weir_alloc_fail_at(n);
        weir_status status = weir_trainer_publish(p.r->trainers[0], version, NULL);
        n_failed += has_failed(status, n);
        if (status != WEIR_OK)
            assert_ok(weir_trainer_publish(p.r->trainers[0], version + 1, NULL));
        version += 2;
    }
    assert_true(n_failed > 0);
    weir_replica *replica = open_worker(&p);
    assert_ok(weir_replica_install(replica, WEIR_LATEST, NULL));
    expect_verified(&p);
    weir_replica_close(replica);
    rig_close(p.r);
}

static void an_install_that_lacks_memory_can_be_tried_again(void **state)
{
    static const pair wish = { .trainer_mesh = "fsdp=1", .replica_mesh = "tp=2", .n_ranks = 1 };
    pair p = open_pair("llama", "bf16_cast", &wish);
    (void)state;
    assert_ok(register_all(&p, 0));
    assert_ok(weir_trainer_publish(p.r->trainers[0], 1, NULL));
    weir_replica *replica = open_worker(&p);
    uint64_t before = weir_alloc_count(), n_failed = 0;
    assert_ok(weir_replica_install(replica, 1, NULL));
    weir_replica_close(replica);
    uint64_t n_all = weir_alloc_count() - before + SPARE;
    for (uint64_t n = 1; n <= n_all; n++) {
        replica = open_worker(&p);
        weir_alloc_fail_at(n);
        weir_status status = weir_replica_install(replica, 1, NULL);
        bool failed = has_failed(status, n);
        n_failed += failed;
        if (failed && weir_replica_version(replica) != 1)
            assert_ok(weir_replica_install(replica, 1, NULL));
        if (n % 16 == 0)
            expect_verified(&p);
        weir_replica_close(replica);
    }
    assert_true(n_failed > 0);
    rig_close(p.r);
}

/* ---- other tensors than before ---------------------------------------------------------------*/

typedef struct publishing {
    weir_trainer *trainer;
    const rig_model *model;
    unsigned version;
    weir_status status;
    char line[256];
} publishing;

static void *publish_rank(void *context)
{
    publishing *p = context;
    p->status = weir_trainer_register(p->trainer, p->model->tensors, p->model->n);
    if (p->status == WEIR_OK)
        p->status = weir_trainer_publish(p->trainer, p->version, NULL);
    snprintf(p->line, sizeof(p->line), "%s", weir_last_error());
    return NULL;
}

/* Ranks hand each other magnitudes, so they publish at the same time. */
static void publish(const pair *p, unsigned version)
{
    publishing ranks[RIG_RANKS];
    pthread_t threads[RIG_RANKS];
    rig_fill(&p->r->model, version);
    for (uint32_t k = 0; k < RIG_RANKS; k++) {
        ranks[k] = (publishing){ p->r->trainers[k], &p->r->model, version, WEIR_OK, "" };
        assert_int_equal(pthread_create(&threads[k], NULL, publish_rank, &ranks[k]), 0);
    }
    for (uint32_t k = 0; k < RIG_RANKS; k++)
        pthread_join(threads[k], NULL);
    for (uint32_t k = 0; k < RIG_RANKS; k++) {
        if (ranks[k].status != WEIR_OK)
            fail_msg("rank %u: %s", k, ranks[k].line);
    }
}

/* All BF16 weights become F32 masters, or the other way; their memory holds either. */
static void change_dtypes(rig_model *model, weir_dtype from, weir_dtype to, const bool *matrices)
{
    for (size_t t = 0; t < model->n; t++) {
        uint64_t n_bytes;
        if (model->tensors[t].dtype != from || !matrices[t])
            continue;
        model->tensors[t].dtype = to;
        free(model->tensors[t].data);
        assert_ok(weir_tensor_bytes(to, &model->tensors[t].shape, &n_bytes));
        model->tensors[t].data = aligned_alloc(64, (n_bytes + 63) / 64 * 64);
        assert_non_null(model->tensors[t].data);
    }
}

static void ranks_may_register_another_dtype_between_versions(void **state)
{
    static const char *const conversions[] = { "fp8_128x128", "bf16_cast" };
    static const pair wish = { .trainer_mesh = "fsdp=2",
                               .replica_mesh = "dp=2,ep=2",
                               .n_ranks = 2 };
    (void)state;
    for (size_t c = 0; c < 2; c++) {
        pair p = open_pair("qwen3_moe", conversions[c], &wish);
        bool *matrices = calloc(p.r->model.n, sizeof(*matrices));
        assert_non_null(matrices);
        for (size_t t = 0; t < p.r->model.n; t++)
            matrices[t] = p.r->model.tensors[t].dtype == WEIR_BF16;
        weir_replica *replica = open_worker(&p);
        for (unsigned version = 1; version <= 4; version++) {
            bool masters = version % 2 == 0;
            change_dtypes(&p.r->model, masters ? WEIR_BF16 : WEIR_F32,
                          masters ? WEIR_F32 : WEIR_BF16, matrices);
            publish(&p, version);
            assert_ok(weir_replica_install(replica, version, NULL));
            expect_verified(&p);
        }
        weir_replica_close(replica);
        free(matrices);
        rig_close(p.r);
    }
}

/* ---- one signature, one plan -----------------------------------------------------------------*/

static void reverse(rig_model *model)
{
    for (size_t i = 0, k = model->n - 1; i < k; i++, k--) {
        weir_tensor held = model->tensors[i];
        model->tensors[i] = model->tensors[k];
        model->tensors[k] = held;
    }
}

static uint64_t plans_of(const pair *p, uint32_t rank)
{
    return p->r->trainers[rank]->worker.counters.plans;
}

/* A version through all ranks; returns how many plans the worker made for it. */
static uint64_t refit(const pair *p, weir_replica *replica, unsigned version)
{
    weir_report report;
    publish(p, version);
    assert_ok(weir_replica_install(replica, version, &report));
    expect_verified(p);
    return report.counters.plans;
}

static void a_plan_is_kept_while_its_signature_is_the_same(void **state)
{
    static const pair wish = { .trainer_mesh = "fsdp=2", .replica_mesh = "tp=2", .n_ranks = 2 };
    pair p = open_pair("qwen3_moe", "bf16_cast", &wish);
    weir_replica *replica = open_worker(&p);
    (void)state;
    assert_int_equal(refit(&p, replica, 1), 1);
    const weir_share *share = p.r->trainers[0]->rank_plan->share;
    assert_int_equal(plans_of(&p, 0), 1);
    reverse(&p.r->model); /* what is registered is bound anew */
    assert_int_equal(refit(&p, replica, 2), 0);
    assert_int_equal(plans_of(&p, 0), 1);
    assert_ptr_equal(p.r->trainers[0]->rank_plan->share, share);
    weir_tensor kept = p.r->model.tensors[0];
    p.r->model.tensors[0].shape.dim[0]--;
    assert_int_equal(register_all(&p, 0), WEIR_ERR_LAYOUT);
    p.r->model.tensors[0] = kept;
    assert_int_equal(refit(&p, replica, 3), 0); /* what was refused has changed nothing */
    assert_int_equal(plans_of(&p, 0), 1);
    weir_replica_close(replica);
    rig_close(p.r);
}

static void ranks_that_start_anew_change_no_plan_unless_their_signature_does(void **state)
{
    static const pair wish = { .trainer_mesh = "fsdp=2", .replica_mesh = "tp=2", .n_ranks = 2 };
    pair p = open_pair("qwen3_moe", "bf16_cast", &wish);
    weir_replica *replica = open_worker(&p);
    (void)state;
    assert_int_equal(refit(&p, replica, 1), 1);
    weir_trainer_close(p.r->trainers[1]);
    p.r->trainers[1] = open_rank(&p, 1);
    assert_int_equal(refit(&p, replica, 2), 0);
    assert_int_equal(replica->n_remotes, 2); /* its predecessor is forgotten */
    for (unsigned version = 3; version <= 4; version++) {
        p.trainer_mesh = version == 3 ? "ep=2" : "fsdp=2,pp=1"; /* and back again */
        for (uint32_t rank = 0; rank < 2; rank++) {
            weir_trainer_close(p.r->trainers[rank]);
            p.r->trainers[rank] = open_rank(&p, rank);
        }
        assert_int_equal(refit(&p, replica, version), 1);
        assert_int_equal(plans_of(&p, 0), 1);
    }
    weir_replica_close(replica);
    rig_close(p.r);
}

/* Two plans may lay out the slots alike. */
static void another_signature_is_another_plan_whatever_the_layout(void **state)
{
    static const pair wish = { .trainer_mesh = "fsdp=2", .replica_mesh = "tp=2", .n_ranks = 2 };
    pair p = open_pair("qwen3_moe", "bf16_cast", &wish);
    weir_replica *replica = open_worker(&p);
    (void)state;
    assert_int_equal(refit(&p, replica, 1), 1);
    for (unsigned version = 2; version <= 3; version++) {
        for (uint32_t rank = 0; rank < 2 && version == 2; rank++)
            p.r->trainers[rank]->source.signature[0] ^= 1;
        assert_int_equal(refit(&p, replica, version), version == 2);
    }
    weir_replica_close(replica);
    rig_close(p.r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_registration_that_lacks_memory_is_refused_whole),
        cmocka_unit_test(a_publish_that_lacks_memory_can_be_tried_again),
        cmocka_unit_test(an_install_that_lacks_memory_can_be_tried_again),
        cmocka_unit_test(ranks_may_register_another_dtype_between_versions),
        cmocka_unit_test(a_plan_is_kept_while_its_signature_is_the_same),
        cmocka_unit_test(ranks_that_start_anew_change_no_plan_unless_their_signature_does),
        cmocka_unit_test(another_signature_is_another_plan_whatever_the_layout),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
