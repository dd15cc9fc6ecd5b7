/* SPDX-License-Identifier: Apache-2.0 */
#include <pthread.h>

#include "refit/replica.h"
#include "refit_rig.h"

#define WORKERS 2

/* The workers of one engine, each in a thread, and how they vote: all have voted, or none hears. */
typedef struct engine {
    rig *model;
    weir_trainer *trainer;
    weir_replica *workers[WORKERS];
    pthread_barrier_t gather, told;
    weir_status votes[WORKERS];
    uint64_t versions[WORKERS];
    struct member {
        struct engine *engine;
        int index;
        unsigned n_votes, n_pauses, n_resumes;
        uint64_t version;         /* that it is to install */
        weir_status pause, after; /* what its hooks say */
        bool reverts;
        weir_status result;
        char error[512];
    } members[WORKERS];
} engine;

static weir_status vote(void *context, uint64_t version, weir_status mine)
{
    struct member *member = context;
    engine *e = member->engine;
    member->n_votes++;
    e->votes[member->index] = mine;
    e->versions[member->index] = version;
    pthread_barrier_wait(&e->gather);
    weir_status all = WEIR_OK;
    for (int i = 0; i < WORKERS; i++) {
        if (all == WEIR_OK && e->votes[i] != WEIR_OK)
            all = e->votes[i];
        if (all == WEIR_OK && e->versions[i] != version)
            all = WEIR_ERR_REFUSED;
    }
    pthread_barrier_wait(&e->told);
    return all;
}

static weir_status pause_engine(void *context)
{
    struct member *member = context;
    member->n_pauses++;
    return member->pause;
}

static weir_status after_install(void *context, uint64_t version)
{
    (void)version;
    return ((struct member *)context)->after;
}

static void resume_engine(void *context)
{
    ((struct member *)context)->n_resumes++;
}

static weir_trainer *open_trainer(const rig *r)
{
    weir_trainer_options options = WEIR_TRAINER_OPTIONS_INIT;
    weir_trainer *trainer = NULL;
    options.directory = weir_directory_address(r->directory);
    options.model = "model";
    options.run = "parallel";
    options.conversion = "bf16_cast";
    options.config = r->config_path;
    options.n_threads = 1;
    options.timeout_ms = RIG_TIMEOUT_MS;
    options.replica_mesh = "tp=2";
    assert_ok(weir_trainer_open(&options, &trainer));
    return trainer;
}

static engine *engine_open(weir_install_mode mode)
{
    engine *e = calloc(1, sizeof(*e));
    assert_non_null(e);
    e->model = rig_open("llama", "bf16_cast", NULL);
    e->trainer = open_trainer(e->model);
    pthread_barrier_init(&e->gather, NULL, WORKERS);
    pthread_barrier_init(&e->told, NULL, WORKERS);
    for (int i = 0; i < WORKERS; i++) {
        char name[16];
        snprintf(name, sizeof(name), "worker-%d", i);
        e->members[i] = (struct member){ .engine = e, .index = i };
        weir_replica_options options = rig_replica_options(e->model, name, mode);
        options.run = "parallel";
        options.mesh = "tp=2";
        options.worker = (uint32_t)i;
        options.hooks =
            (weir_engine_hooks){ pause_engine, after_install, resume_engine, &e->members[i] };
        options.agree = vote;
        assert_ok(weir_replica_open(&options, &e->workers[i]));
        assert_ok(weir_replica_allocate(e->workers[i]));
    }
    return e;
}

static void engine_close(engine *e)
{
    for (int i = 0; i < WORKERS; i++)
        weir_replica_close(e->workers[i]);
    weir_trainer_close(e->trainer);
    pthread_barrier_destroy(&e->gather);
    pthread_barrier_destroy(&e->told);
    rig_close(e->model);
    free(e);
}

static void publish(engine *e, unsigned version)
{
    rig_fill(&e->model->model, version);
    assert_ok(weir_trainer_register(e->trainer, e->model->model.tensors, e->model->model.n));
    assert_ok(weir_trainer_publish(e->trainer, version, NULL));
}

static void *install_one(void *context)
{
    struct member *member = context;
    weir_replica *worker = member->engine->workers[member->index];
    member->result = member->reverts ? weir_replica_revert(worker, NULL)
                                     : weir_replica_install(worker, member->version, NULL);
    snprintf(member->error, sizeof(member->error), "%s", weir_last_error());
    return NULL;
}

static void run(engine *e, uint64_t version, bool reverts)
{
    pthread_t threads[WORKERS];
    for (int i = 0; i < WORKERS; i++) {
        struct member *member = &e->members[i];
        member->n_votes = member->n_pauses = member->n_resumes = 0;
        member->version = version;
        member->reverts = reverts;
        assert_int_equal(pthread_create(&threads[i], NULL, install_one, member), 0);
    }
    for (int i = 0; i < WORKERS; i++)
        pthread_join(threads[i], NULL);
}

static void install(engine *e, uint64_t version)
{
    run(e, version, false);
}

static void expect_all_hold(const engine *e, uint64_t version)
{
    for (int i = 0; i < WORKERS; i++) {
        assert_int_equal(weir_replica_get_state(e->workers[i]), WEIR_REPLICA_HOLDING);
        assert_int_equal(weir_replica_version(e->workers[i]), version);
    }
}

static void all_take_what_all_can_take(void **state)
{
    (void)state;
    engine *e = engine_open(WEIR_INSTALL_STAGED);
    for (unsigned version = 1; version <= 2; version++) {
        publish(e, version);
        install(e, version);
        for (int i = 0; i < WORKERS; i++) {
            assert_int_equal(e->members[i].result, WEIR_OK);
            assert_int_equal(e->members[i].n_votes, 2);
            assert_int_equal(e->members[i].n_resumes, 1);
        }
        expect_all_hold(e, version);
    }
    engine_close(e);
}

/* The bytes of both workers, to be compared with later. */
static unsigned char *snapshot(const engine *e, int i, uint64_t *n_bytes)
{
    return rig_snapshot(e->workers[i], n_bytes);
}

static void expect_unchanged(const engine *e, unsigned char *const before[WORKERS])
{
    for (int i = 0; i < WORKERS; i++) {
        uint64_t n_bytes;
        unsigned char *now = snapshot(e, i, &n_bytes);
        assert_memory_equal(now, before[i], n_bytes);
        free(now);
    }
}

static void a_worker_whose_engine_does_not_pause_takes_the_others_back(void **state)
{
    (void)state;
    engine *e = engine_open(WEIR_INSTALL_STAGED);
    unsigned char *before[WORKERS];
    uint64_t n_bytes;
    publish(e, 1);
    install(e, 1);
    for (int i = 0; i < WORKERS; i++)
        before[i] = snapshot(e, i, &n_bytes);
    publish(e, 2);
    e->members[1].pause = WEIR_ERR_BUSY;
    install(e, 2);
    assert_int_equal(e->members[1].result, WEIR_ERR_BUSY);
    assert_int_equal(e->members[0].result, WEIR_ERR_BUSY);
    assert_non_null(strstr(e->members[0].error, "another worker of it did not take version 2"));
    assert_int_equal(e->members[0].n_resumes, 1);
    expect_all_hold(e, 1);
    expect_unchanged(e, before);
    e->members[1].pause = WEIR_OK;
    install(e, 2);
    expect_all_hold(e, 2);
    for (int i = 0; i < WORKERS; i++)
        free(before[i]);
    engine_close(e);
}

static void a_worker_that_fails_behind_its_install_takes_the_others_back(void **state)
{
    (void)state;
    engine *e = engine_open(WEIR_INSTALL_STAGED);
    unsigned char *before[WORKERS];
    uint64_t n_bytes;
    publish(e, 1);
    install(e, 1);
    for (int i = 0; i < WORKERS; i++)
        before[i] = snapshot(e, i, &n_bytes);
    publish(e, 2);
    e->members[0].after = WEIR_ERR_INTERNAL;
    install(e, 2);
    assert_int_equal(e->members[0].result, WEIR_ERR_INTERNAL);
    assert_int_equal(e->members[1].result, WEIR_ERR_INTERNAL);
    expect_all_hold(e, 1);
    expect_unchanged(e, before);
    for (int i = 0; i < WORKERS; i++)
        free(before[i]);
    engine_close(e);
}

static void nothing_changes_when_one_worker_finds_no_version(void **state)
{
    (void)state;
    engine *e = engine_open(WEIR_INSTALL_STAGED);
    publish(e, 1);
    install(e, 1);
    publish(e, 2);
    weir_replica_cancel(e->workers[1]);
    install(e, 3); /* worker 0 waits for it until its time is up */
    for (int i = 0; i < WORKERS; i++) {
        assert_int_not_equal(e->members[i].result, WEIR_OK);
        assert_int_equal(e->members[i].n_votes, 1);
        assert_int_equal(e->members[i].n_pauses, 0);
    }
    expect_all_hold(e, 1);
    engine_close(e);
}

static void direct_workers_are_unusable_together(void **state)
{
    (void)state;
    engine *e = engine_open(WEIR_INSTALL_DIRECT);
    publish(e, 1);
    install(e, 1);
    expect_all_hold(e, 1);
    publish(e, 2);
    e->members[1].after = WEIR_ERR_INTERNAL;
    install(e, 2);
    for (int i = 0; i < WORKERS; i++) {
        assert_int_equal(weir_replica_get_state(e->workers[i]), WEIR_REPLICA_UNUSABLE);
        assert_int_equal(e->members[i].n_resumes, 0);
        assert_int_equal(e->members[i].n_votes, 3);
    }
    e->members[1].after = WEIR_OK;
    install(e, 2);
    expect_all_hold(e, 2);
    engine_close(e);
}

static void direct_workers_go_on_when_one_did_not_pause(void **state)
{
    (void)state;
    engine *e = engine_open(WEIR_INSTALL_DIRECT);
    publish(e, 1);
    install(e, 1);
    publish(e, 2);
    e->members[0].pause = WEIR_ERR_BUSY;
    install(e, 2);
    expect_all_hold(e, 1);
    assert_int_equal(e->members[1].n_resumes, 1);
    assert_int_equal(e->members[1].result, WEIR_ERR_BUSY);
    for (int i = 0; i < WORKERS; i++)
        assert_int_equal(e->members[i].n_votes, 1);
    engine_close(e);
}

static void all_go_back_or_none(void **state)
{
    (void)state;
    engine *e = engine_open(WEIR_INSTALL_STAGED);
    unsigned char *before[WORKERS], *after[WORKERS];
    uint64_t n_bytes;
    publish(e, 1);
    install(e, 1);
    for (int i = 0; i < WORKERS; i++)
        before[i] = snapshot(e, i, &n_bytes);
    publish(e, 2);
    install(e, 2);
    for (int i = 0; i < WORKERS; i++)
        after[i] = snapshot(e, i, &n_bytes);
    e->members[1].after = WEIR_ERR_INTERNAL;
    run(e, 1, true);
    for (int i = 0; i < WORKERS; i++)
        assert_int_equal(e->members[i].result, WEIR_ERR_INTERNAL);
    expect_all_hold(e, 2);
    expect_unchanged(e, after);
    e->members[1].after = WEIR_OK;
    run(e, 1, true);
    for (int i = 0; i < WORKERS; i++) {
        assert_int_equal(e->members[i].result, WEIR_OK);
        assert_int_equal(e->members[i].n_votes, 2);
        assert_int_equal(e->members[i].n_resumes, 1);
    }
    expect_all_hold(e, 1);
    expect_unchanged(e, before);
    for (int i = 0; i < WORKERS; i++) {
        free(before[i]);
        free(after[i]);
    }
    engine_close(e);
}

static void none_goes_back_when_one_has_nothing_to_go_back_to(void **state)
{
    (void)state;
    engine *e = engine_open(WEIR_INSTALL_STAGED);
    publish(e, 1);
    install(e, 1);
    weir_way_back_forget(e->workers[0]);
    run(e, 0, true);
    for (int i = 0; i < WORKERS; i++) {
        assert_int_equal(e->members[i].result, WEIR_ERR_NOT_FOUND);
        assert_int_equal(e->members[i].n_votes, 1);
        assert_int_equal(e->members[i].n_pauses, 0);
    }
    expect_all_hold(e, 1);
    engine_close(e);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(all_take_what_all_can_take),
        cmocka_unit_test(a_worker_whose_engine_does_not_pause_takes_the_others_back),
        cmocka_unit_test(a_worker_that_fails_behind_its_install_takes_the_others_back),
        cmocka_unit_test(nothing_changes_when_one_worker_finds_no_version),
        cmocka_unit_test(direct_workers_are_unusable_together),
        cmocka_unit_test(direct_workers_go_on_when_one_did_not_pause),
        cmocka_unit_test(all_go_back_or_none),
        cmocka_unit_test(none_goes_back_when_one_has_nothing_to_go_back_to),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
