/* SPDX-License-Identifier: Apache-2.0 */
/* test_revert.c - a staged install that stands is taken back without a trainer: what is read and
 * what is pushed, in kernel and in checkpoint format. What workers of one engine agree on is in
 * test_agree.c. */
#include <pthread.h>

#include "base/alloc.h"
#include "refit_rig.h"

/* One way that bytes come. */
typedef struct way {
    weir_delivery delivery;
    weir_wire wire;
} way;

static way read_kernel = { WEIR_DELIVERY_PULL, WEIR_WIRE_KERNEL };
static way read_checkpoint = { WEIR_DELIVERY_PULL, WEIR_WIRE_CHECKPOINT };
static way pushed_kernel = { WEIR_DELIVERY_PUSH, WEIR_WIRE_KERNEL };
static way pushed_checkpoint = { WEIR_DELIVERY_PUSH, WEIR_WIRE_CHECKPOINT };

/* The engine: what it was asked to do, and what it says to it. */
typedef struct hooks {
    unsigned n_pauses, n_resumes, n_taken;
    uint64_t taken;
    weir_status pause, after;
} hooks;

static weir_status pause_engine(void *context)
{
    hooks *engine = context;
    engine->n_pauses++;
    return engine->pause;
}

static weir_status take(void *context, uint64_t version)
{
    hooks *engine = context;
    engine->n_taken++;
    engine->taken = version;
    return engine->after;
}

static void resume_engine(void *context)
{
    ((hooks *)context)->n_resumes++;
}

/* A model with parameters that are derived from others. */
static rig *open_rig(const way *by)
{
    rig wish = { .family = "glm_moe_dsa",
                 .conversion = "fp8_128x128",
                 .transport = "ucx",
                 .delivery = by->delivery,
                 .wire = by->wire,
                 .window_bytes = by->delivery == WEIR_DELIVERY_PUSH ? 4u << 20 : 0 };
    return rig_open_as(&wish);
}

static weir_replica *open_replica(const rig *r, weir_install_mode mode, hooks *engine)
{
    weir_replica_options options = rig_replica_options(r, "replica", mode);
    weir_replica *replica = NULL;
    options.hooks = (weir_engine_hooks){ pause_engine, take, resume_engine, engine };
    options.reads_trainers_alone = true;
    assert_ok(weir_replica_open(&options, &replica));
    assert_ok(weir_replica_allocate(replica));
    return replica;
}

/* ---- installs --------------------------------------------------------------------------------*/

typedef struct rank_wait {
    pthread_t thread;
    weir_trainer *trainer;
    uint64_t version;
    weir_status status;
} rank_wait;

static void *wait_as_rank(void *context)
{
    rank_wait *rank = context;
    weir_alloc_uncount_thread();
    rank->status = weir_trainer_wait(rank->trainer, rank->version, 1, 0);
    return NULL;
}

/* Ranks that push do so while they wait. */
static void install(rig *r, weir_replica *replica, unsigned version)
{
    rank_wait ranks[RIG_RANKS];
    rig_publish(r, version);
    for (int i = 0; i < RIG_RANKS; i++) {
        ranks[i] = (rank_wait){ .trainer = r->trainers[i], .version = version };
        assert_int_equal(pthread_create(&ranks[i].thread, NULL, wait_as_rank, &ranks[i]), 0);
    }
    assert_ok(weir_replica_install(replica, version, NULL));
    for (int i = 0; i < RIG_RANKS; i++) {
        pthread_join(ranks[i].thread, NULL);
        assert_int_equal(ranks[i].status, WEIR_OK);
    }
}

static void expect_bytes(const weir_replica *replica, const unsigned char *wanted)
{
    uint64_t n_bytes;
    unsigned char *now = rig_snapshot(replica, &n_bytes);
    assert_memory_equal(now, wanted, n_bytes);
    free(now);
}

static void expect_served(const rig *r, uint64_t version)
{
    weir_verify_report report = rig_verify(r, "replica");
    assert_string_equal(report.first_difference, "");
    assert_int_equal(report.version, version);
}

/* ---- the way back ----------------------------------------------------------------------------*/

static void what_the_engine_came_with_comes_back(void **state)
{
    hooks engine = { 0 };
    rig *r = open_rig(*state);
    weir_replica *replica = open_replica(r, WEIR_INSTALL_STAGED, &engine);
    weir_report report;
    uint64_t n_bytes;
    unsigned char *came_with = rig_snapshot(replica, &n_bytes);
    install(r, replica, 1);
    unsigned char *first = rig_snapshot(replica, &n_bytes);
    assert_memory_not_equal(came_with, first, n_bytes);
    assert_ok(weir_replica_revert(replica, &report));
    expect_bytes(replica, came_with);
    assert_int_equal(weir_replica_get_state(replica), WEIR_REPLICA_EMPTY);
    assert_int_equal(weir_replica_version(replica), 0);
    assert_int_equal(report.version, 0);
    assert_int_equal(engine.n_pauses, 2);
    assert_int_equal(engine.n_resumes, 2);
    assert_int_equal(engine.taken, 0);
    install(r, replica, 2); /* it goes on as ever */
    expect_served(r, 2);
    free(came_with);
    free(first);
    weir_replica_close(replica);
    rig_close(r);
}

static void the_version_before_comes_back_and_is_served(void **state)
{
    hooks engine = { 0 };
    rig *r = open_rig(*state);
    weir_replica *replica = open_replica(r, WEIR_INSTALL_STAGED, &engine);
    weir_report report;
    uint64_t n_bytes;
    install(r, replica, 1);
    const weir_tensor *live = weir_replica_parameters(replica, &(size_t){ 0 });
    const void *address = live[0].data;
    unsigned char *first = rig_snapshot(replica, &n_bytes);
    install(r, replica, 2);
    assert_ok(weir_replica_revert(replica, &report));
    expect_bytes(replica, first);
    assert_ptr_equal(live[0].data, address);
    assert_int_equal(weir_replica_version(replica), 1);
    assert_int_equal(report.version, 1);
    assert_int_equal(report.counters.allocations, 0);
    assert_int_equal(engine.taken, 1);
    rig_fill(&r->model, 1);
    expect_served(r, 1);
    assert_error(weir_replica_revert(replica, NULL), WEIR_ERR_NOT_FOUND, "nothing to go back to");
    install(r, replica, 3);
    expect_served(r, 3);
    free(first);
    weir_replica_close(replica);
    rig_close(r);
}

/* The engine has to say to what comes back what it says to a version. */
static void a_hook_that_refuses_leaves_what_is_held(void **state)
{
    hooks engine = { 0 };
    rig *r = open_rig(*state);
    weir_replica *replica = open_replica(r, WEIR_INSTALL_STAGED, &engine);
    uint64_t n_bytes;
    install(r, replica, 1);
    install(r, replica, 2);
    unsigned char *second = rig_snapshot(replica, &n_bytes);
    engine.after = WEIR_ERR_INTERNAL;
    assert_error(weir_replica_revert(replica, NULL), WEIR_ERR_INTERNAL,
                 "postprocess hook refused version 1");
    engine.after = WEIR_OK;
    expect_bytes(replica, second);
    assert_int_equal(weir_replica_version(replica), 2);
    assert_int_equal(engine.n_resumes, 3);
    expect_served(r, 2);
    engine.pause = WEIR_ERR_BUSY;
    assert_error(weir_replica_revert(replica, NULL), WEIR_ERR_BUSY, "did not pause");
    engine.pause = WEIR_OK;
    expect_bytes(replica, second);
    assert_ok(weir_replica_revert(replica, NULL)); /* neither has cost the way back */
    rig_fill(&r->model, 1);
    expect_served(r, 1);
    free(second);
    weir_replica_close(replica);
    rig_close(r);
}

/* ---- no way back -----------------------------------------------------------------------------*/

static void without_an_install_there_is_nothing_to_go_back_to(void **state)
{
    hooks engine = { 0 };
    rig *r = open_rig(*state);
    weir_replica *replica = open_replica(r, WEIR_INSTALL_STAGED, &engine);
    assert_error(weir_replica_revert(replica, NULL), WEIR_ERR_NOT_FOUND, "nothing to go back to");
    assert_int_equal(engine.n_pauses, 0);
    weir_replica_close(replica);
    rig_close(r);
}

static void what_has_landed_since_has_taken_the_place(void **state)
{
    hooks engine = { 0 };
    rig *r = open_rig(*state);
    weir_replica *replica = open_replica(r, WEIR_INSTALL_STAGED, &engine);
    install(r, replica, 1);
    install(r, replica, 2);
    rig_publish(r, 3);
    engine.pause = WEIR_ERR_BUSY; /* its bytes are all here by then */
    assert_error(weir_replica_install(replica, 3, NULL), WEIR_ERR_BUSY, "did not pause");
    engine.pause = WEIR_OK;
    assert_error(weir_replica_revert(replica, NULL), WEIR_ERR_NOT_FOUND, "has begun to come");
    assert_int_equal(weir_replica_version(replica), 2);
    rig_fill(&r->model, 2);
    expect_served(r, 2);
    weir_replica_close(replica);
    rig_close(r);
}

/* Nothing has come, so nothing was written over; whichever source the wait had looked for. */
static void a_version_that_never_came_costs_nothing(void **state)
{
    hooks engine = { 0 };
    rig *r = open_rig(*state);
    weir_replica *replica = open_replica(r, WEIR_INSTALL_STAGED, &engine);
    uint64_t n_bytes;
    install(r, replica, 1);
    unsigned char *first = rig_snapshot(replica, &n_bytes);
    install(r, replica, 2);
    weir_replica_cancel(replica);
    assert_int_equal(weir_replica_install(replica, 3, NULL), WEIR_ERR_CANCELLED);
    assert_ok(weir_replica_revert(replica, NULL));
    expect_bytes(replica, first);
    free(first);
    weir_replica_close(replica);
    rig_close(r);
}

static void direct_installs_keep_nothing(void **state)
{
    hooks engine = { 0 };
    rig *r = open_rig(*state);
    weir_replica *replica = open_replica(r, WEIR_INSTALL_DIRECT, &engine);
    install(r, replica, 1);
    assert_error(weir_replica_revert(replica, NULL), WEIR_ERR_UNSUPPORTED, "installs directly");
    expect_served(r, 1);
    weir_replica_close(replica);
    rig_close(r);
}

/* The trainer is not asked, and need not be there. */
static void no_trainer_is_needed(void **state)
{
    hooks engine = { 0 };
    rig *r = open_rig(*state);
    weir_replica *replica = open_replica(r, WEIR_INSTALL_STAGED, &engine);
    uint64_t n_bytes;
    install(r, replica, 1);
    unsigned char *first = rig_snapshot(replica, &n_bytes);
    install(r, replica, 2);
    for (int i = 0; i < RIG_RANKS; i++) {
        weir_trainer_close(r->trainers[i]);
        r->trainers[i] = NULL;
    }
    weir_directory_close(r->directory);
    r->directory = NULL;
    assert_ok(weir_replica_revert(replica, NULL));
    expect_bytes(replica, first);
    assert_int_equal(weir_replica_version(replica), 1);
    free(first);
    weir_replica_close(replica);
    rig_close(r);
}

#define EACH_WAY(test)                                                       \
    { #test " (read)", test, NULL, NULL, &read_kernel },                     \
        { #test " (pushed)", test, NULL, NULL, &pushed_kernel },             \
        { #test " (read, checkpoint)", test, NULL, NULL, &read_checkpoint }, \
    {                                                                        \
#test " (pushed, checkpoint)", test, NULL, NULL, &pushed_checkpoint  \
    }

int main(void)
{
    const struct CMUnitTest tests[] = {
        EACH_WAY(what_the_engine_came_with_comes_back),
        EACH_WAY(the_version_before_comes_back_and_is_served),
        EACH_WAY(a_hook_that_refuses_leaves_what_is_held),
        EACH_WAY(no_trainer_is_needed),
        cmocka_unit_test_prestate(without_an_install_there_is_nothing_to_go_back_to, &read_kernel),
        cmocka_unit_test_prestate(what_has_landed_since_has_taken_the_place, &read_kernel),
        cmocka_unit_test_prestate(a_version_that_never_came_costs_nothing, &read_kernel),
        cmocka_unit_test_prestate(direct_installs_keep_nothing, &read_kernel),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
