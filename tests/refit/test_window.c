/* SPDX-License-Identifier: Apache-2.0 */
/* test_window.c - versions that are read while they are made, group by group: whole refits in one
 * process, trainer ranks and workers in threads of their own. */
#include "refit/window_rig.h"

#include "directory/client.h"

/* A rig of sizes that engines cut in block FP8, before its trainers are opened. */
static stage *open_llama(const char *conversion, const char *trainer_mesh, uint32_t n_ranks,
                         const char *replica_mesh)
{
    const rig wish = {
        .family = "llama", .conversion = conversion, .preset = "tiny", .window_bytes = WINDOW_BYTES
    };
    return open_stage(&wish, trainer_mesh, n_ranks, replica_mesh);
}

/* ---- readers that the tests are --------------------------------------------------------------*/

/* Says to rank 0 what a worker's reads would; the bytes are not its concern. */
typedef struct ghost {
    weir_directory_client *client;
    const char *name, *endpoint;
    char uid[WEIR_ID_BYTES];
    uint32_t round;
    unsigned char *answer;
    size_t answer_bytes;
} ghost;

static ghost open_ghost(const stage *s, const char *name)
{
    weir_trainer *trainer = s->ranks[0].trainer;
    ghost g = { .name = name, .endpoint = weir_manifest_service_address(trainer->service) };
    assert_ok(
        weir_directory_client_open(weir_trainer_directory(trainer), RIG_TIMEOUT_MS, &g.client));
    return g;
}

static void close_ghost(ghost *g)
{
    weir_directory_client_close(g->client);
    weir_free(g->answer);
}

static weir_group_state ask(ghost *g, uint32_t worker, uint32_t group)
{
    weir_group_ask question = {
        .reader = g->name, .worker = worker, .group = group, .round = g->round
    };
    weir_group_record record;
    weir_arena arena;
    size_t n_bytes;
    weir_arena_init(&arena, 0);
    assert_ok(weir_directory_ask_group(g->client, g->endpoint, "rank 0", g->uid, "rank-0",
                                       &question, 0, &g->answer, &g->answer_bytes, &n_bytes));
    assert_ok(weir_group_record_decode(g->answer, n_bytes, &arena, &record));
    g->round = record.round;
    uint32_t state = record.state;
    weir_arena_close(&arena);
    return (weir_group_state)state;
}

/* Until the round of this version is there and its first group made. */
static void join_round(ghost *g, const stage *s, uint32_t worker)
{
    weir_trainer *trainer = s->ranks[0].trainer;
    g->round = 0;
    for (int i = 0; i < 300; i++) {
        pthread_mutex_lock(&trainer->lock);
        bool offered = trainer->window != NULL && trainer->window->version != NULL &&
                       trainer->window->version->version == s->ranks[0].version;
        if (offered)
            memcpy(g->uid, trainer->window->uid, sizeof(g->uid));
        pthread_mutex_unlock(&trainer->lock);
        if (offered && ask(g, worker, 0) == WEIR_GROUP_READY)
            return;
        weir_sleep_ms(10);
    }
    fail_msg("version %" PRIu64 " is not sent", s->ranks[0].version);
}

static uint32_t n_groups_of(const stage *s)
{
    return s->ranks[0].trainer->window->groups.n_groups;
}

/* ---- refits ----------------------------------------------------------------------------------*/

/* What all workers hold after one version, one after another. */
static unsigned char *bytes_through(const char *conversion, uint64_t window_bytes,
                                    weir_install_mode mode, uint64_t *out_n_bytes)
{
    stage *s = open_llama(conversion, "fsdp=2", 2, "tp=2");
    unsigned char *all = NULL;
    *out_n_bytes = 0;
    s->r->window_bytes = window_bytes;
    open_trainers(s);
    add_worker(s, "worker-0", 0, mode);
    add_worker(s, "worker-1", 1, mode);
    refit(s, 7, window_bytes > 0 ? 1 : 2);
    for (uint32_t w = 0; w < 2; w++) {
        uint64_t n_bytes;
        unsigned char *part = rig_snapshot(s->workers[w].replica, &n_bytes);
        all = realloc(all, *out_n_bytes + n_bytes);
        assert_non_null(all);
        memcpy(all + *out_n_bytes, part, n_bytes);
        *out_n_bytes += n_bytes;
        free(part);
        expect_verified(s, &s->workers[w], 7);
    }
    close_stage(s);
    return all;
}

static void the_bytes_are_those_of_a_refit_from_slots(void **state)
{
    (void)state;
    static const char *const conversions[] = { "fp8_128x128", "cutlass_fp8_e4m3_per_channel",
                                               "bf16_cast" };
    for (size_t i = 0; i < 3; i++) {
        uint64_t n_whole, n_staged, n_direct;
        unsigned char *whole = bytes_through(conversions[i], 0, WEIR_INSTALL_STAGED, &n_whole);
        unsigned char *staged =
            bytes_through(conversions[i], WINDOW_BYTES, WEIR_INSTALL_STAGED, &n_staged);
        unsigned char *direct =
            bytes_through(conversions[i], WINDOW_BYTES, WEIR_INSTALL_DIRECT, &n_direct);
        assert_true(n_whole == n_staged && n_whole == n_direct);
        assert_memory_equal(whole, staged, n_whole);
        assert_memory_equal(whole, direct, n_whole);
        free(whole), free(staged), free(direct);
    }
}

static void a_trainer_keeps_no_more_than_its_window(void **state)
{
    (void)state;
    stage *s = open_llama("fp8_128x128", "", 1, NULL);
    open_trainers(s);
    add_worker(s, "replica", 0, WEIR_INSTALL_STAGED);
    refit(s, 1, 1);
    const weir_trainer *trainer = s->ranks[0].trainer;
    uint64_t kept = 0;
    for (unsigned i = 0; i < trainer->n_slots; i++) {
        assert_non_null(trainer->slots[i].region);
        kept += trainer->source.slot_bytes;
    }
    assert_true(kept <= WINDOW_BYTES);
    assert_true(trainer->source.n_bytes > 8 * kept);
    assert_true(n_groups_of(s) > 16);
    assert_int_equal(s->workers[0].report.n_bytes, trainer->source.n_bytes);
    expect_verified(s, &s->workers[0], 1);
    close_stage(s);
}

/* As refit(), the only rank in this thread: memory that conversions need is a thread's own. */
static void refit_from_here(stage *s, unsigned version)
{
    peer *rank = &s->ranks[0];
    rig_fill(&s->r->model, version);
    assert_ok(weir_trainer_register(rank->trainer, s->r->model.tensors, s->r->model.n));
    for (size_t w = 0; w < s->n_workers; w++)
        start_worker(&s->workers[w], version);
    assert_ok(weir_trainer_publish(rank->trainer, version, &rank->report));
    assert_ok(weir_trainer_wait(rank->trainer, version, 1, 0));
    for (size_t w = 0; w < s->n_workers; w++)
        join_ok(&s->workers[w]);
}

static void the_second_refit_takes_nothing(weir_install_mode mode)
{
    stage *s = open_llama("fp8_128x128", "", 1, "tp=2");
    open_trainers(s);
    add_worker(s, "a", 0, mode);
    add_worker(s, "b", 1, mode);
    for (unsigned version = 1; version <= 3; version++)
        refit_from_here(s, version);
    for (size_t w = 0; w < 2; w++) {
        const weir_counters *took = &s->workers[w].report.counters; /* the trainers' heap too */
        assert_int_equal(took->registrations + took->plans + took->connections, 0);
        assert_int_equal(took->allocations, 0);
    }
    expect_verified(s, &s->workers[0], 3);
    expect_verified(s, &s->workers[1], 3);
    close_stage(s);
}

static void later_refits_allocate_register_plan_and_connect_nothing(void **state)
{
    (void)state;
    the_second_refit_takes_nothing(WEIR_INSTALL_STAGED);
    the_second_refit_takes_nothing(WEIR_INSTALL_DIRECT);
}

static void a_version_that_was_sent_is_gone_at_once(void **state)
{
    (void)state;
    stage *s = open_llama("bf16_cast", "", 1, NULL);
    open_trainers(s);
    add_worker(s, "a", 0, WEIR_INSTALL_STAGED);
    refit(s, 1, 1);
    peer *late = add_worker(s, "late", 0, WEIR_INSTALL_STAGED);
    late->replica->worker.timeout_ms = SHORT_MS;
    start_worker(late, WEIR_LATEST);
    join_error(late, WEIR_ERR_TIMED_OUT, "timed out");
    assert_error(weir_trainer_wait(s->ranks[0].trainer, 1, 1, SHORT_MS), WEIR_ERR_NOT_FOUND,
                 "version 1 cannot be sent: trainer rank 0 has published 1 last");
    late->replica->worker.timeout_ms = RIG_TIMEOUT_MS;
    refit(s, 2, 2);
    expect_verified(s, late, 2);
    close_stage(s);
}

/* ---- readers that fail -----------------------------------------------------------------------*/

static void a_reader_that_died_is_named_and_the_others_keep_their_version(void **state)
{
    (void)state;
    stage *s = open_llama("bf16_cast", "", 1, NULL);
    open_trainers(s);
    peer *worker = add_worker(s, "alive", 0, WEIR_INSTALL_STAGED);
    refit(s, 1, 1);
    ghost g = open_ghost(s, "dead");
    start_ranks(s, 2, 2, SHORT_MS);
    join_round(&g, s, 0); /* and nothing more */
    start_worker(worker, 2);
    join_error(&s->ranks[0], WEIR_ERR_TIMED_OUT,
               "trainer rank 0: timed out after 0.7 s: dead (worker 0 of its engine) has not read "
               "group 0 of ");
    assert_non_null(strstr(s->ranks[0].line, "of version 2 of model"));
    join_error(worker, WEIR_ERR_PEER_LOST, "has stopped sending version 2: ");
    assert_non_null(strstr(worker->line, "dead (worker 0"));
    assert_true(worker->took_s < 10); /* told, not timed out */
    assert_int_equal(weir_replica_version(worker->replica), 1);
    assert_int_equal(ask(&g, 0, 1), WEIR_GROUP_OFF);
    refit(s, 3, 1);
    expect_verified(s, worker, 3);
    close_ghost(&g);
    close_stage(s);
}

static void workers_that_never_came_are_counted(void **state)
{
    (void)state;
    stage *s = open_llama("bf16_cast", "", 1, "tp=2");
    open_trainers(s);
    peer *worker = add_worker(s, "half", 0, WEIR_INSTALL_DIRECT);
    start_ranks(s, 1, 1, SHORT_MS);
    start_worker(worker, 1);
    join_error(&s->ranks[0], WEIR_ERR_TIMED_OUT,
               "0 of 1 replicas have a worker 1 that has come for group 0 of ");
    join_error(worker, WEIR_ERR_PEER_LOST, "has stopped sending version 1");
    assert_int_equal(weir_replica_get_state(worker->replica), WEIR_REPLICA_UNUSABLE);
    close_stage(s);
}

static void a_reader_that_comes_and_goes_renews_no_bound(void **state)
{
    (void)state;
    stage *s = open_llama("bf16_cast", "", 1, NULL);
    open_trainers(s);
    ghost g = open_ghost(s, "fickle");
    weir_group_ask leave = { .reader = "fickle", .gave_up = "it has changed its mind" };
    size_t n_bytes;
    start_ranks(s, 1, 2, SHORT_MS);
    join_round(&g, s, 0);
    for (int turn = 0; turn < 60 && !s->ranks[0].is_over; turn++) {
        if (turn % 2 == 0)
            assert_ok(weir_directory_ask_group(g.client, g.endpoint, "rank 0", g.uid, "rank-0",
                                               &leave, 0, &g.answer, &g.answer_bytes, &n_bytes));
        else
            ask(&g, 0, 0);
        weir_sleep_ms(50);
    }
    join_error(&s->ranks[0], WEIR_ERR_TIMED_OUT, "timed out after 0.7 s");
    assert_true(s->ranks[0].took_s < 3); /* as long as it goes on */
    close_ghost(&g);
    close_stage(s);
}

static weir_status refuse_to_pause(void *context)
{
    (void)context;
    return WEIR_ERR_REFUSED;
}

static void a_reader_that_gives_up_is_named_with_its_reason(void **state)
{
    (void)state;
    stage *s = open_llama("bf16_cast", "", 1, "tp=2");
    open_trainers(s);
    peer *good = add_worker(s, "good", 0, WEIR_INSTALL_STAGED);
    peer *bad = add_worker(s, "bad", 1, WEIR_INSTALL_STAGED);
    refit(s, 1, 1);
    bad->replica->mode = WEIR_INSTALL_DIRECT; /* so that it pauses after it has joined */
    bad->replica->hooks.pause = refuse_to_pause;
    start_ranks(s, 2, 1, SHORT_MS);
    start_worker(bad, 2);
    join_error(bad, WEIR_ERR_REFUSED, "the engine did not pause");
    start_worker(good, 2);
    join_error(&s->ranks[0], WEIR_ERR_TIMED_OUT, "0 of 1 replicas have a worker 1");
    assert_non_null(strstr(s->ranks[0].line, "; bad-"));
    assert_non_null(strstr(s->ranks[0].line, " gave up: the engine did not pause"));
    join_error(good, WEIR_ERR_PEER_LOST, " gave up: the engine did not pause");
    assert_int_equal(weir_replica_version(good->replica), 1);
    close_stage(s);
}

static void a_wait_that_is_cancelled_is_off_for_its_readers(void **state)
{
    (void)state;
    stage *s = open_llama("bf16_cast", "", 1, NULL);
    open_trainers(s);
    peer *worker = add_worker(s, "replica", 0, WEIR_INSTALL_STAGED);
    refit(s, 1, 1);
    ghost g = open_ghost(s, "slow");
    start_ranks(s, 2, 2, 0);
    join_round(&g, s, 0); /* it holds the round back */
    start_worker(worker, 2);
    weir_sleep_ms(100);
    weir_trainer_cancel(s->ranks[0].trainer);
    join_error(&s->ranks[0], WEIR_ERR_CANCELLED, "cancelled");
    join_error(worker, WEIR_ERR_PEER_LOST, "cancelled");
    assert_int_equal(weir_replica_version(worker->replica), 1);
    close_ghost(&g);
    close_stage(s);
}

static void a_loss_that_nobody_can_make_good_ends_the_wait_at_once(void **state)
{
    (void)state;
    stage *s = open_llama("bf16_cast", "", 1, NULL);
    open_trainers(s);
    ghost g = open_ghost(s, "quitter");
    start_ranks(s, 1, 1, 0);
    join_round(&g, s, 0);
    while (ask(&g, 0, 1) != WEIR_GROUP_READY)
        weir_sleep_ms(1);
    while (ask(&g, 0, 2) != WEIR_GROUP_READY) /* so that group 0 is gone */
        weir_sleep_ms(1);
    weir_group_ask word = { .reader = "quitter", .gave_up = "no more disk" };
    size_t n_bytes;
    assert_ok(weir_directory_ask_group(g.client, g.endpoint, "rank 0", g.uid, "rank-0", &word, 0,
                                       &g.answer, &g.answer_bytes, &n_bytes));
    join_error(&s->ranks[0], WEIR_ERR_PEER_LOST,
               "trainer rank 0: quitter (worker 0 of its engine) gave up version 1 at group 2 of ");
    assert_non_null(strstr(s->ranks[0].line, ": no more disk"));
    assert_true(s->ranks[0].took_s < 10);
    close_ghost(&g);
    close_stage(s);
}

/* ---- late, again, off ------------------------------------------------------------------------*/

static void who_comes_too_late_is_told_and_takes_the_next_version(void **state)
{
    (void)state;
    stage *s = open_llama("bf16_cast", "", 1, NULL);
    open_trainers(s);
    peer *late = add_worker(s, "late", 0, WEIR_INSTALL_STAGED);
    ghost g = open_ghost(s, "early");
    start_ranks(s, 1, 1, SHORT_MS);
    join_round(&g, s, 0);
    for (uint32_t group = 1; group <= 2; group++) {
        while (ask(&g, 0, group) != WEIR_GROUP_READY)
            weir_sleep_ms(1);
    }
    start_worker(late, 1); /* this very version */
    join_error(late, WEIR_ERR_NOT_FOUND,
               " came too late for version 1: its group 0 is gone at trainer rank 0");
    start_worker(late, WEIR_LATEST); /* whichever comes next */
    join_error(&s->ranks[0], WEIR_ERR_TIMED_OUT, "early (worker 0");
    start_ranks(s, 2, 1, 0);
    join_ok(late);
    join_ok(&s->ranks[0]);
    assert_int_equal(weir_replica_version(late->replica), 2);
    expect_verified(s, late, 2);
    close_ghost(&g);
    close_stage(s);
}

static void a_round_that_failed_can_be_repeated(void **state)
{
    (void)state;
    stage *s = open_llama("fp8_128x128", "", 1, NULL);
    open_trainers(s);
    peer *worker = add_worker(s, "replica", 0, WEIR_INSTALL_STAGED);
    start_ranks(s, 1, 1, SHORT_MS); /* nobody comes */
    join_error(&s->ranks[0], WEIR_ERR_TIMED_OUT, "0 of 1 replicas have a worker 0 that has come");
    start_worker(worker, 1);
    start_rank(&s->ranks[0], 1, 0);
    join_ok(worker);
    join_ok(&s->ranks[0]);
    expect_verified(s, &s->workers[0], 1);
    close_stage(s);
}

static void readers_wait_for_a_trainer_that_has_not_begun(void **state)
{
    (void)state;
    stage *s = open_llama("bf16_cast", "", 1, NULL);
    open_trainers(s);
    peer *worker = add_worker(s, "replica", 0, WEIR_INSTALL_STAGED);
    worker->replica->worker.timeout_ms = SHORT_MS;
    start_ranks(s, 1, 0, 0); /* published, not sent */
    join_ok(&s->ranks[0]);
    start_worker(worker, 1);
    join_error(worker, WEIR_ERR_TIMED_OUT, "has not made group 0 of ");
    assert_non_null(strstr(worker->line, "of version 1: it has not begun to send it"));
    start_worker(worker, 1);
    weir_sleep_ms(50);
    start_ranks(s, 2, 0, 0); /* the next one comes instead */
    join_ok(&s->ranks[0]);
    join_error(worker, WEIR_ERR_NOT_FOUND, "version ");
    close_stage(s);
}

static void readers_hear_at_once_that_a_version_is_withdrawn_and_take_the_next(void **state)
{
    (void)state;
    stage *s = open_llama("bf16_cast", "", 1, NULL);
    open_trainers(s);
    peer *worker = add_worker(s, "replica", 0, WEIR_INSTALL_STAGED);
    start_ranks(s, 1, 0, 0); /* published, not sent */
    join_ok(&s->ranks[0]);
    start_worker(worker, 1);
    unsigned n_ready = 0;
    while (n_ready == 0)
        assert_ok(weir_trainer_ready(s->ranks[0].trainer, 1, &n_ready));
    double begun_s = weir_now_s();
    assert_ok(weir_trainer_withdraw(s->ranks[0].trainer, 1, "the loss is nan", 0));
    join_error(worker, WEIR_ERR_NOT_FOUND, "trainer rank 0 has withdrawn it: the loss is nan");
    assert_true(weir_now_s() - begun_s < 1);
    assert_error(weir_trainer_wait(s->ranks[0].trainer, 1, 1, SHORT_MS), WEIR_ERR_NOT_FOUND,
                 "version 1");
    start_worker(worker, 1);
    join_error(worker, WEIR_ERR_ABORTED, "trainer rank 0 has withdrawn it: the loss is nan");
    refit(s, 2, 1);
    close_stage(s);
}

/* ---- what cannot be sent ---------------------------------------------------------------------*/

static void spoil(const stage *s, const char *name)
{
    for (size_t t = 0; t < s->r->model.n; t++) {
        if (strcmp(s->r->model.tensors[t].name, name) == 0)
            ((uint16_t *)s->r->model.tensors[t].data)[5] = 0x7fc0;
    }
}

static void a_weight_that_is_not_finite_is_found_before_or_while_it_is_sent(void **state)
{
    (void)state;
    static const char name[] = "model.norm.weight"; /* of the last group */
    stage *s = open_llama("fp8_128x128", "", 1, NULL);
    open_trainers(s);
    peer *worker = add_worker(s, "replica", 0, WEIR_INSTALL_STAGED), *rank = &s->ranks[0];
    refit(s, 1, 1);
    spoil(s, name);
    rank->version = 2;
    start_rank(rank, 1, 0);
    start_worker(worker, 2);
    join_error(rank, WEIR_ERR_NONFINITE, "trainer rank 0: model.norm.weight[5] is NaN");
    join_error(worker, WEIR_ERR_PEER_LOST, "model.norm.weight[5] is NaN");
    assert_int_equal(weir_replica_version(worker->replica), 1);
    rank->trainer->scan_first = true;
    assert_error(weir_trainer_publish(rank->trainer, 3, NULL), WEIR_ERR_NONFINITE,
                 "trainer rank 0: model.norm.weight[5] is NaN");
    refit(s, 4, 1); /* with whole weights it goes on */
    expect_verified(s, &s->workers[0], 4);
    close_stage(s);
}

static void what_a_window_cannot_do_is_refused(void **state)
{
    (void)state;
    stage *s = open_llama("bf16_cast", "", 1, NULL);
    weir_trainer_options options = trainer_options(s, 0);
    options.window_bytes = 512;
    assert_ok(weir_trainer_open(&options, &s->ranks[0].trainer));
    assert_error(weir_trainer_register(s->ranks[0].trainer, s->r->model.tensors, s->r->model.n),
                 WEIR_ERR_UNSUPPORTED, "does not fit a buffer of 256 bytes of the window");
    weir_trainer_close(s->ranks[0].trainer);
    options.window_bytes = WINDOW_BYTES;
    options.transport = "file";
    options.transport_directory = s->r->share;
    assert_ok(weir_trainer_open(&options, &s->ranks[0].trainer));
    assert_ok(weir_trainer_register(s->ranks[0].trainer, s->r->model.tensors, s->r->model.n));
    assert_error(weir_trainer_publish(s->ranks[0].trainer, 1, NULL), WEIR_ERR_UNSUPPORTED,
                 "transport file keeps versions whole");
    weir_trainer_close(s->ranks[0].trainer);
    options.transport = NULL;
    assert_ok(weir_trainer_open(&options, &s->ranks[0].trainer));
    rig_fill(&s->r->model, 1);
    assert_ok(weir_trainer_register(s->ranks[0].trainer, s->r->model.tensors, s->r->model.n));
    assert_error(weir_trainer_wait(s->ranks[0].trainer, 1, 1, SHORT_MS), WEIR_ERR_NOT_FOUND,
                 "version 1 cannot be sent: trainer rank 0 has published nothing");
    assert_ok(weir_trainer_publish(s->ranks[0].trainer, 1, NULL));
    assert_error(weir_trainer_wait(s->ranks[0].trainer, 1, 0, SHORT_MS), WEIR_ERR_INVALID,
                 "it can be sent only to a number of replicas");
    close_stage(s);
}

static void questions_that_make_no_sense_are_answered_with_no(void **state)
{
    (void)state;
    stage *s = open_llama("bf16_cast", "", 1, NULL);
    open_trainers(s);
    ghost g = open_ghost(s, "odd");
    start_ranks(s, 1, 1, SHORT_MS);
    join_round(&g, s, 0);
    weir_group_ask questions[] = { { .reader = "odd", .worker = 1 },
                                   { .reader = "odd", .group = UINT32_MAX } };
    size_t n_bytes;
    for (size_t i = 0; i < 2; i++)
        assert_error(weir_directory_ask_group(g.client, g.endpoint, "rank 0", g.uid, "rank-0",
                                              &questions[i], 0, &g.answer, &g.answer_bytes,
                                              &n_bytes),
                     WEIR_ERR_NOT_FOUND, "rank-0");
    questions[0].worker = 0;
    assert_error(weir_directory_ask_group(g.client, g.endpoint, "rank 0", "other", "rank-0",
                                          &questions[0], 0, &g.answer, &g.answer_bytes, &n_bytes),
                 WEIR_ERR_NOT_FOUND, "rank-0");
    join_error(&s->ranks[0], WEIR_ERR_TIMED_OUT, "odd (worker 0");
    close_ghost(&g);
    close_stage(s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_bytes_are_those_of_a_refit_from_slots),
        cmocka_unit_test(a_trainer_keeps_no_more_than_its_window),
        cmocka_unit_test(later_refits_allocate_register_plan_and_connect_nothing),
        cmocka_unit_test(a_version_that_was_sent_is_gone_at_once),
        cmocka_unit_test(a_reader_that_died_is_named_and_the_others_keep_their_version),
        cmocka_unit_test(workers_that_never_came_are_counted),
        cmocka_unit_test(a_reader_that_comes_and_goes_renews_no_bound),
        cmocka_unit_test(a_reader_that_gives_up_is_named_with_its_reason),
        cmocka_unit_test(a_wait_that_is_cancelled_is_off_for_its_readers),
        cmocka_unit_test(a_loss_that_nobody_can_make_good_ends_the_wait_at_once),
        cmocka_unit_test(who_comes_too_late_is_told_and_takes_the_next_version),
        cmocka_unit_test(a_round_that_failed_can_be_repeated),
        cmocka_unit_test(readers_wait_for_a_trainer_that_has_not_begun),
        cmocka_unit_test(readers_hear_at_once_that_a_version_is_withdrawn_and_take_the_next),
        cmocka_unit_test(a_weight_that_is_not_finite_is_found_before_or_while_it_is_sent),
        cmocka_unit_test(what_a_window_cannot_do_is_refused),
        cmocka_unit_test(questions_that_make_no_sense_are_answered_with_no),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
