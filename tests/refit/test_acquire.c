/* SPDX-License-Identifier: Apache-2.0 */
/* test_acquire.c - what a refit says to a directory of Weir's, and what becomes of it when that
 * directory dies, forgets everything and comes back. */
#include "refit/refit_rig.h"

#include <pthread.h>

#include "base/clock.h"
#include "refit/replica.h"
#include "refit/trainer.h"

#define TIMEOUT_MS 1500
#define LEASE_MS 3000 /* heartbeats every second */

static uint64_t messages_of(const weir_worker *worker)
{
    return weir_directory_client_messages(worker->client);
}

static weir_trainer *open_rank(const rig *r, uint32_t rank, uint32_t n_ranks)
{
    weir_trainer_options options = WEIR_TRAINER_OPTIONS_INIT;
    weir_trainer *trainer = NULL;
    options.directory = weir_directory_address(r->directory);
    options.model = "model";
    options.rank = rank;
    options.n_ranks = n_ranks;
    options.family = r->family;
    options.conversion = r->conversion;
    options.config = r->config_path;
    options.transport_directory = r->share;
    options.n_threads = 1;
    options.timeout_ms = TIMEOUT_MS;
    options.lease_ms = LEASE_MS;
    assert_ok(weir_trainer_open(&options, &trainer));
    return trainer;
}

static weir_replica *open_replica(const rig *r, const char *name, const weir_engine_hooks *hooks)
{
    weir_replica_options options = rig_replica_options(r, name, WEIR_INSTALL_STAGED);
    weir_replica *replica = NULL;
    options.timeout_ms = TIMEOUT_MS;
    options.lease_ms = LEASE_MS;
    options.reads_trainers_alone = true; /* one that is late reads another's single manifest */
    if (hooks != NULL)
        options.hooks = *hooks;
    assert_ok(weir_replica_open(&options, &replica));
    assert_ok(weir_replica_allocate(replica));
    return replica;
}

/* A rig whose ranks are `n_ranks` of these. */
static rig *open_fleet(uint32_t n_ranks)
{
    rig *r = rig_open("qwen3", "bf16_cast", NULL);
    for (uint32_t rank = 0; rank < RIG_RANKS; rank++) {
        weir_trainer_close(r->trainers[rank]);
        r->trainers[rank] = rank < n_ranks ? open_rank(r, rank, n_ranks) : NULL;
    }
    return r;
}

static weir_status try_publish(rig *r, int rank, unsigned version)
{
    assert_ok(weir_trainer_register(r->trainers[rank], r->model.tensors, r->model.n));
    return weir_trainer_publish(r->trainers[rank], version, NULL);
}

static void expect_verified(const rig *r, const char *name, uint64_t version)
{
    weir_verify_report report = rig_verify(r, name);
    assert_string_equal(report.first_difference, "");
    assert_int_equal(report.version, version);
}

/* ---- an install in another thread ------------------------------------------------------------*/

typedef struct install {
    weir_replica *replica;
    uint64_t version;
    weir_status status;
    char line[WEIR_ERROR_TEXT];
    double ended_s;
    pthread_t thread;
} install;

static void *run_install(void *context)
{
    install *i = context;
    i->status = weir_replica_install(i->replica, i->version, NULL);
    snprintf(i->line, sizeof(i->line), "%s", weir_last_error());
    i->ended_s = weir_now_s();
    return NULL;
}

static void begin_install(install *i, weir_replica *replica, uint64_t version)
{
    *i = (install){ .replica = replica, .version = version };
    assert_int_equal(pthread_create(&i->thread, NULL, run_install, i), 0);
}

static void end_install(install *i, weir_status status, const char *line)
{
    pthread_join(i->thread, NULL);
    if (i->status != status || (status != WEIR_OK && strstr(i->line, line) == NULL))
        fail_msg("install: %s: '%s', wanted %s: '%s'", weir_status_name(i->status), i->line,
                 weir_status_name(status), line);
}

/* ---- how much is said ------------------------------------------------------------------------*/

/* Replicas that wait for each version before it is there. */
static void count_messages(uint32_t n_ranks)
{
    enum { N_REPLICAS = 2, N_VERSIONS = 6, STEADY = 4 }; /* from 3 on slots are taken back */
    rig *r = open_fleet(n_ranks);
    weir_replica *replicas[N_REPLICAS] = { open_replica(r, "one", NULL),
                                           open_replica(r, "two", NULL) };
    for (unsigned version = 1; version <= N_VERSIONS; version++) {
        install installs[N_REPLICAS];
        uint64_t before[RIG_RANKS + N_REPLICAS] = { 0 };
        for (uint32_t rank = 0; rank < n_ranks; rank++)
            before[rank] = messages_of(&r->trainers[rank]->worker);
        for (int i = 0; i < N_REPLICAS; i++) {
            before[RIG_RANKS + i] = messages_of(&replicas[i]->worker);
            begin_install(&installs[i], replicas[i], WEIR_LATEST);
        }
        rig_fill(&r->model, version);
        for (uint32_t rank = 0; rank < n_ranks; rank++)
            assert_ok(try_publish(r, (int)rank, version));
        for (uint32_t rank = 0; rank < n_ranks; rank++)
            assert_ok(weir_trainer_wait(r->trainers[rank], version, N_REPLICAS, 0));
        for (int i = 0; i < N_REPLICAS; i++)
            end_install(&installs[i], WEIR_OK, "");
        if (version < STEADY)
            continue;
        for (uint32_t rank = 0; rank < n_ranks; rank++) /* retire, publish, await */
            assert_int_equal(messages_of(&r->trainers[rank]->worker) - before[rank], 3);
        for (int i = 0; i < N_REPLICAS; i++) /* acquire, a manifest of each rank, acknowledge */
            assert_int_equal(messages_of(&replicas[i]->worker) - before[RIG_RANKS + i],
                             2 + n_ranks);
    }
    expect_verified(r, "one", N_VERSIONS);
    expect_verified(r, "two", N_VERSIONS);
    for (int i = 0; i < N_REPLICAS; i++)
        weir_replica_close(replicas[i]);
    rig_close(r);
}

static void a_steady_refit_takes_three_control_messages_per_worker(void **state)
{
    (void)state;
    count_messages(1);
}

static void every_further_rank_costs_its_manifest_alone(void **state)
{
    (void)state;
    count_messages(2);
}

static void a_wait_is_one_message_and_ends_with_the_version(void **state)
{
    rig *r = open_fleet(1);
    weir_replica *replica = open_replica(r, "one", NULL);
    install waiting;
    (void)state;
    uint64_t before = messages_of(&replica->worker);
    begin_install(&waiting, replica, WEIR_LATEST);
    weir_sleep_ms(500);
    rig_fill(&r->model, 1);
    assert_ok(try_publish(r, 0, 1));
    double published_s = weir_now_s();
    end_install(&waiting, WEIR_OK, "");
    assert_true(waiting.ended_s - published_s < 1);
    assert_int_equal(messages_of(&replica->worker) - before, 3);
    weir_replica_close(replica);
    rig_close(r);
}

/* ---- what is told ----------------------------------------------------------------------------*/

static void replicas_hear_at_once_that_a_rank_was_closed_before_all_had_published(void **state)
{
    rig *r = open_fleet(2);
    weir_replica *replica = open_replica(r, "one", NULL);
    install waiting;
    (void)state;
    rig_fill(&r->model, 1);
    assert_ok(try_publish(r, 0, 1));
    begin_install(&waiting, replica, WEIR_LATEST);
    weir_sleep_ms(200);
    double closed_s = weir_now_s();
    weir_trainer_close(r->trainers[0]);
    r->trainers[0] = open_rank(r, 0, 2);
    end_install(&waiting, WEIR_ERR_ABORTED,
                "version 1 of model was aborted: trainer rank 0: it was closed before all ranks "
                "had published the version");
    assert_true(waiting.ended_s - closed_s < 1);
    begin_install(&waiting, replica, WEIR_LATEST); /* it is told once */
    assert_ok(try_publish(r, 0, 1));
    assert_ok(try_publish(r, 1, 1));
    end_install(&waiting, WEIR_OK, "");
    expect_verified(r, "one", 1);
    weir_replica_close(replica);
    rig_close(r);
}

static weir_status refuse_to_pause(void *context)
{
    (void)context;
    return weir_fail(WEIR_ERR_BUSY, "the engine is answering");
}

static void the_trainer_says_who_has_refused_the_version_and_why(void **state)
{
    rig *r = open_fleet(1);
    const weir_engine_hooks hooks = { .pause = refuse_to_pause };
    weir_replica *replica = open_replica(r, "stubborn", &hooks);
    (void)state;
    rig_fill(&r->model, 1);
    assert_ok(try_publish(r, 0, 1));
    assert_true(weir_replica_install(replica, 1, NULL) != WEIR_OK);
    char said[64];
    snprintf(said, sizeof(said), "%.60s", weir_last_error());
    assert_error(weir_trainer_wait(r->trainers[0], 1, 1, 200), WEIR_ERR_TIMED_OUT,
                 "0 of 1 replica workers hold version 1 of model; stubborn-");
    assert_non_null(strstr(weir_last_error(), said));
    weir_replica_close(replica);
    rig_close(r);
}

static void expect_said(const char *format, const char *worker_id)
{
    char text[WEIR_ERROR_TEXT];
    snprintf(text, sizeof(text), format, worker_id);
    if (strstr(weir_last_error(), text) == NULL)
        fail_msg("'%s' is not in '%s'", text, weir_last_error());
}

static void the_trainer_says_where_those_are_that_it_waits_for(void **state)
{
    rig *r = open_fleet(1);
    weir_replica *one = open_replica(r, "one", NULL), *two = open_replica(r, "two", NULL);
    (void)state;
    rig_fill(&r->model, 1);
    assert_ok(try_publish(r, 0, 1));
    assert_ok(weir_replica_install(two, 1, NULL));
    assert_ok(try_publish(r, 0, 2));
    assert_ok(weir_replica_install(one, 2, NULL));
    assert_error(weir_trainer_wait(r->trainers[0], 2, 2, 100), WEIR_ERR_TIMED_OUT,
                 "timed out after 0.1 s: 1 of 2 replica workers hold version 2 of model; ");
    expect_said("; %s: has not asked for it, holds 1", two->worker.id);
    const weir_progress_report report = { .worker_id = two->worker.id,
                                          .model = "model",
                                          .version = 2,
                                          .stop = "transfer",
                                          .slowest_from = "rank-1" };
    assert_ok(weir_directory_report_progress(two->worker.client, &report));
    assert_error(weir_trainer_wait(r->trainers[0], 2, 2, 100), WEIR_ERR_TIMED_OUT, "1 of 2");
    expect_said("; %s: in transfer from rank-1, silent for 0.", two->worker.id);
    for (int i = 0; i < 5; i++) {
        char id[16];
        snprintf(id, sizeof(id), "late-%d", i);
        assert_ok(weir_directory_register_worker(two->worker.client, id, WEIR_ROLE_GENERATOR,
                                                 "model", 60));
    }
    assert_error(weir_trainer_wait(r->trainers[0], 2, 9, 100), WEIR_ERR_TIMED_OUT,
                 "1 of 9 replica workers hold version 2 of model; ");
    expect_said("; %s: has not asked for it; ", "late-4");
    expect_said("; and 2 more%s", "");
    weir_replica_close(one);
    assert_ok(weir_trainer_wait(r->trainers[0], 2, 1, 0)); /* it has left, having held it */
    weir_replica_close(two);
    rig_close(r);
}

static void *cancel_soon(void *trainer)
{
    weir_sleep_ms(200);
    weir_trainer_cancel(trainer);
    return NULL;
}

static void a_trainers_wait_can_be_cancelled(void **state)
{
    rig *r = open_fleet(1);
    pthread_t thread;
    (void)state;
    rig_fill(&r->model, 1);
    assert_ok(try_publish(r, 0, 1));
    double begun_s = weir_now_s();
    assert_int_equal(pthread_create(&thread, NULL, cancel_soon, r->trainers[0]), 0);
    assert_error(weir_trainer_wait(r->trainers[0], 1, 1, 10000), WEIR_ERR_CANCELLED, "cancelled");
    assert_true(weir_now_s() - begun_s < 2);
    pthread_join(thread, NULL);
    assert_ok(try_publish(r, 0, 2)); /* nothing is left of it */
    rig_close(r);
}

/* ---- a directory that dies -------------------------------------------------------------------*/

/* Another one, that knows nothing, where the old one was. */
static void replace_directory(rig *r, unsigned away_ms)
{
    char address[64];
    snprintf(address, sizeof(address), "%s", weir_directory_address(r->directory));
    weir_directory_close(r->directory);
    r->directory = NULL;
    weir_sleep_ms(away_ms);
    weir_directory_options options = WEIR_DIRECTORY_OPTIONS_INIT;
    options.listen = address;
    assert_ok(weir_directory_open(&options, &r->directory));
}

static void *replace_soon(void *context)
{
    weir_sleep_ms(200);
    replace_directory(context, 100);
    return NULL;
}

typedef enum moment {
    BEFORE_PUBLISH,
    BETWEEN_RANKS,
    BEFORE_DISCOVER,
    IN_TRANSFER,
    IN_POSTPROCESS,
    BEFORE_WAIT,
    N_MOMENTS,
} moment;

typedef struct drill {
    rig *r;
    moment when;
    bool armed;
} drill;

static void strike(drill *d, moment now)
{
    if (!d->armed || d->when != now)
        return;
    d->armed = false;
    replace_directory(d->r, 0);
}

static weir_status on_pause(void *context)
{
    strike(context, IN_TRANSFER);
    return WEIR_OK;
}

static weir_status on_postprocess(void *context, uint64_t version)
{
    (void)version;
    strike(context, IN_POSTPROCESS);
    return WEIR_OK;
}

/* One refit, in which each call may fail, but by its bound. *out_ok: it is known of as a whole. */
static bool run_refit(drill *d, weir_replica *replica, unsigned version)
{
    rig *r = d->r;
    rig_fill(&r->model, version);
    strike(d, BEFORE_PUBLISH);
    assert_ok(try_publish(r, 0, version));
    strike(d, BETWEEN_RANKS);
    assert_ok(try_publish(r, 1, version));
    strike(d, BEFORE_DISCOVER);
    weir_status status = weir_replica_install(replica, version, NULL);
    if (status != WEIR_OK) {
        assert_int_equal(status, WEIR_ERR_TIMED_OUT);
        return false;
    }
    strike(d, BEFORE_WAIT);
    assert_ok(weir_trainer_wait(r->trainers[0], version, 1, 2 * TIMEOUT_MS));
    assert_ok(weir_trainer_wait(r->trainers[1], version, 1, 2 * TIMEOUT_MS));
    return true;
}

static void a_directory_that_forgets_at_any_stop_ends_no_refit_but_its_own(void **state)
{
    (void)state;
    drill d = { .r = open_fleet(2) };
    const weir_engine_hooks hooks = { on_pause, on_postprocess, NULL, &d };
    weir_replica *replica = open_replica(d.r, "one", &hooks);
    assert_true(run_refit(&d, replica, 1));
    unsigned version = 2;
    for (d.when = 0; d.when < N_MOMENTS; d.when++) {
        double begun_s = weir_now_s();
        d.armed = true;
        bool whole = run_refit(&d, replica, version++);
        assert_false(d.armed);
        /* What was lost then the trainers' keepers bring back, but perhaps not within the bound. */
        assert_true(whole || d.when == BETWEEN_RANKS || d.when == BEFORE_DISCOVER);
        assert_true(weir_now_s() - begun_s < 4 * TIMEOUT_MS / 1e3);
        assert_true(run_refit(&d, replica, version));
        expect_verified(d.r, "one", version++);
    }
    weir_replica_close(replica);
    rig_close(d.r);
}

static void who_waits_rides_through_a_directory_that_is_away(void **state)
{
    rig *r = open_fleet(1);
    weir_replica *replica = open_replica(r, "one", NULL);
    pthread_t thread;
    install waiting;
    (void)state;
    begin_install(&waiting, replica, WEIR_LATEST);
    assert_int_equal(pthread_create(&thread, NULL, replace_soon, r), 0);
    pthread_join(thread, NULL);
    rig_fill(&r->model, 1);
    assert_ok(try_publish(r, 0, 1));
    end_install(&waiting, WEIR_OK, "");
    assert_int_equal(pthread_create(&thread, NULL, replace_soon, r), 0);
    assert_ok(weir_trainer_wait(r->trainers[0], 1, 1, 0));
    pthread_join(thread, NULL);
    replace_directory(r, 0); /* what was acknowledged is said again by a heartbeat */
    assert_ok(weir_trainer_wait(r->trainers[0], 1, 1, 2 * TIMEOUT_MS));
    assert_error(weir_trainer_wait(r->trainers[0], 1, 2, 300), WEIR_ERR_TIMED_OUT,
                 "1 of 2 replica workers hold version 1");
    weir_replica_close(replica);
    rig_close(r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_steady_refit_takes_three_control_messages_per_worker),
        cmocka_unit_test(every_further_rank_costs_its_manifest_alone),
        cmocka_unit_test(a_wait_is_one_message_and_ends_with_the_version),
        cmocka_unit_test(replicas_hear_at_once_that_a_rank_was_closed_before_all_had_published),
        cmocka_unit_test(the_trainer_says_who_has_refused_the_version_and_why),
        cmocka_unit_test(the_trainer_says_where_those_are_that_it_waits_for),
        cmocka_unit_test(a_trainers_wait_can_be_cancelled),
        cmocka_unit_test(a_directory_that_forgets_at_any_stop_ends_no_refit_but_its_own),
        cmocka_unit_test(who_waits_rides_through_a_directory_that_is_away),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
