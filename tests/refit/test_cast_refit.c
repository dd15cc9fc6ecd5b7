/* SPDX-License-Identifier: Apache-2.0 */
/* test_cast_refit.c - versions that ranks of a mesh broadcast group by group: whole refits in one
 * process over transport ucx, trainer ranks and workers in threads of their own. */
#include "refit/window_rig.h"

/* Two ranks that broadcast. */
static stage *open_ranks(const rig *wish, const char *mesh, const char *engine_mesh)
{
    rig casts = *wish;
    casts.delivery = WEIR_DELIVERY_PUSH;
    casts.window_bytes = WINDOW_BYTES;
    stage *s = open_stage(&casts, mesh, 2, engine_mesh);
    open_trainers(s);
    return s;
}

static peer *add_to_engine(stage *s, const char *engine, uint32_t number, weir_install_mode mode)
{
    char name[16];
    snprintf(name, sizeof(name), "%s-%u", engine, number);
    return add_worker(s, name, number, mode);
}

/* Two engines of two workers. */
static void add_engines(stage *s, weir_install_mode first, weir_install_mode second)
{
    for (uint32_t w = 0; w < 4; w++)
        add_to_engine(s, w < 2 ? "a" : "b", w % 2, w < 2 ? first : second);
}

/* Engines, or of a checkpoint, which any worker takes whole, workers. */
static unsigned n_replicas_of(const stage *s)
{
    return (unsigned)(s->r->wire == WEIR_WIRE_KERNEL ? s->n_workers / 2 : s->n_workers);
}

static void refit_all(stage *s, unsigned version)
{
    refit(s, version, n_replicas_of(s));
}

static void expect_all_verified(const stage *s, uint64_t version)
{
    for (size_t w = 0; w < s->n_workers; w++)
        expect_verified(s, &s->workers[w], version);
}

/* ---- refits ----------------------------------------------------------------------------------*/

static void follow(const rig *wish, const char *mesh, const char *engine_mesh)
{
    stage *s = open_ranks(wish, mesh, engine_mesh);
    add_engines(s, WEIR_INSTALL_STAGED, WEIR_INSTALL_DIRECT);
    for (unsigned version = 1; version <= 2; version++) {
        refit_all(s, version);
        expect_all_verified(s, version);
    }
    close_stage(s);
}

static void engines_get_their_parts_in_kernel_format(void **state)
{
    (void)state;
    static const char *const conversions[] = { "fp8_128x128", "cutlass_fp8_e4m3_per_channel",
                                               "bf16_cast" };
    for (size_t c = 0; c < 3; c++) {
        const rig wish = { .family = "llama", .conversion = conversions[c], .preset = "tiny" };
        follow(&wish, "fsdp=2", "tp=2");
    }
}

static void experts_of_other_ranks_are_sent_too(void **state)
{
    (void)state;
    const rig wish = { .family = "qwen3_moe", .conversion = "fp8_128x128", .preset = "tiny" };
    follow(&wish, "ep=2", "tp=2");
}

/* Blocks of scales lie on both ranks, each of which converts its own rows of them. */
static void borders_are_found_in_whatever_order_groups_go(void **state)
{
    (void)state;
    const rig wish = { .family = "qwen3_moe", .conversion = "fp8_128x128" };
    follow(&wish, "fsdp=2", "dp=2,ep=2");
}

static void stages_of_engines_are_sent_their_own_layers(void **state)
{
    (void)state;
    const rig wish = { .family = "llama", .conversion = "fp8_128x128", .preset = "tiny" };
    follow(&wish, "fsdp=2", "pp=2");
}

static void engines_convert_a_checkpoint_themselves(void **state)
{
    (void)state;
    const rig wish = { .family = "llama",
                       .conversion = "fp8_128x128",
                       .preset = "tiny",
                       .wire = WEIR_WIRE_CHECKPOINT };
    follow(&wish, "fsdp=2", "tp=2");
}

static void later_versions_allocate_register_plan_and_connect_nothing(void **state)
{
    (void)state;
    const rig wish = { .family = "llama", .conversion = "fp8_128x128", .preset = "tiny" };
    stage *s = open_ranks(&wish, "fsdp=2", "tp=2");
    add_engines(s, WEIR_INSTALL_STAGED, WEIR_INSTALL_DIRECT);
    refit_all(s, 1);
    refit_all(s, 2);
    weir_counters before[2] = { s->ranks[0].trainer->worker.counters,
                                s->ranks[1].trainer->worker.counters };
    refit_all(s, 3);
    for (size_t w = 0; w < s->n_workers; w++) {
        const weir_counters *took = &s->workers[w].report.counters;
        assert_int_equal(took->registrations + took->plans + took->connections, 0);
        assert_int_equal(took->allocations, 0);
    }
    for (uint32_t rank = 0; rank < 2; rank++)
        assert_memory_equal(&before[rank], &s->ranks[rank].trainer->worker.counters,
                            sizeof(before[rank]));
    close_stage(s);
}

/* ---- who is started anew ---------------------------------------------------------------------*/

static void workers_and_ranks_may_be_started_anew_between_versions(void **state)
{
    (void)state;
    const rig wish = { .family = "llama", .conversion = "fp8_128x128", .preset = "tiny" };
    stage *s = open_ranks(&wish, "fsdp=2", "tp=2");
    add_engines(s, WEIR_INSTALL_STAGED, WEIR_INSTALL_DIRECT);
    refit_all(s, 1);
    uint64_t before = s->ranks[0].trainer->worker.counters.connections;
    peer last = s->workers[3]; /* worker 1 of its engine */
    weir_replica_close(last.replica);
    s->n_workers = 3;
    add_to_engine(s, "b", last.worker, WEIR_INSTALL_STAGED);
    refit_all(s, 2);
    expect_all_verified(s, 2);
    uint64_t anew = s->ranks[0].trainer->worker.counters.connections - before;
    assert_true(anew > 0 && anew < before); /* groups of worker 0 alone stand */
    weir_trainer_close(s->ranks[1].trainer);
    open_trainer(s, 1);
    refit_all(s, 3);
    expect_all_verified(s, 3);
    close_stage(s);
}

/* Bf16 weights become masters and back: other tensors, another plan, other groups. */
static void what_is_registered_may_change_between_versions(void **state)
{
    (void)state;
    const rig wish = { .family = "llama", .conversion = "bf16_cast", .preset = "tiny" };
    stage *s = open_ranks(&wish, "fsdp=2", "tp=2");
    add_to_engine(s, "a", 0, WEIR_INSTALL_STAGED);
    add_to_engine(s, "a", 1, WEIR_INSTALL_STAGED);
    for (unsigned version = 1; version <= 3; version++) {
        weir_dtype dtype = version == 2 ? WEIR_F32 : WEIR_BF16;
        for (size_t t = 0; t < s->r->model.n && version > 1; t++) {
            weir_tensor *tensor = &s->r->model.tensors[t];
            uint64_t n_bytes;
            assert_ok(weir_tensor_bytes(dtype, &tensor->shape, &n_bytes));
            free(tensor->data);
            tensor->dtype = dtype;
            tensor->data = aligned_alloc(64, (n_bytes + 63) / 64 * 64);
            assert_non_null(tensor->data);
        }
        refit_all(s, version);
        expect_all_verified(s, version);
    }
    close_stage(s);
}

/* ---- what fails ------------------------------------------------------------------------------*/

static void a_worker_that_never_came_is_counted_and_the_same_call_begins_afresh(void **state)
{
    (void)state;
    const rig wish = { .family = "llama", .conversion = "bf16_cast", .preset = "tiny" };
    stage *s = open_ranks(&wish, "fsdp=2", "tp=2");
    add_to_engine(s, "a", 0, WEIR_INSTALL_STAGED);
    add_to_engine(s, "a", 1, WEIR_INSTALL_STAGED);
    start_ranks(s, 1, 1, SHORT_MS);
    start_worker(&s->workers[0], 1);
    for (uint32_t rank = 0; rank < 2; rank++) {
        peer *p = &s->ranks[rank];
        join(p);
        assert_int_equal(p->status, WEIR_ERR_TIMED_OUT);
        assert_non_null(strstr(p->line, "0 of 1 replicas have a worker 1 that has come for "
                                        "version 1 of model"));
        start_rank(p, 1, 0);
    }
    start_worker(&s->workers[1], 1);
    for (size_t i = 0; i < 2; i++)
        join_ok(&s->ranks[i]), join_ok(&s->workers[i]);
    expect_all_verified(s, 1);
    close_stage(s);
}

static void expect_word(const peer *p, const char *words)
{
    if (p->status != WEIR_ERR_PEER_LOST || strstr(p->line, words) == NULL)
        fail_msg("got %s: '%s', wanted '%s'", weir_status_name(p->status), p->line, words);
}

static void await_members(weir_trainer *trainer, size_t n)
{
    for (int turn = 0;; turn++) {
        size_t n_told = 0;
        pthread_mutex_lock(&trainer->lock);
        const weir_credits *credits = &trainer->window->credits;
        for (size_t i = 0; i < credits->n_readers; i++)
            n_told += credits->readers[i].member && credits->readers[i].began;
        pthread_mutex_unlock(&trainer->lock);
        if (n_told == n)
            return;
        assert_true(turn < 5000);
        weir_sleep_ms(1);
    }
}

/* It came between the gatherings of two ranks. */
static void who_is_in_the_round_of_one_rank_alone_ends_it_at_once(void **state)
{
    (void)state;
    const rig wish = { .family = "llama", .conversion = "bf16_cast", .preset = "tiny" };
    stage *s = open_ranks(&wish, "fsdp=2", "tp=2");
    add_engines(s, WEIR_INSTALL_STAGED, WEIR_INSTALL_STAGED);
    start_ranks(s, 1, 0, 0); /* published alone */
    for (uint32_t rank = 0; rank < 2; rank++)
        join_ok(&s->ranks[rank]);
    for (size_t w = 0; w < 2; w++)
        start_worker(&s->workers[w], 1);
    start_rank(&s->ranks[0], 1, 0);
    await_members(s->ranks[0].trainer, 2);
    for (size_t w = 2; w < 4; w++)
        start_worker(&s->workers[w], 1);
    double begun_s = weir_now_s();
    start_rank(&s->ranks[1], 2, 0);
    for (size_t i = 0; i < 2; i++)
        join(&s->ranks[i]);
    for (size_t w = 0; w < 4; w++)
        join(&s->workers[w]);
    assert_true(weir_now_s() - begun_s < 10); /* of the bound of 30 */
    expect_word(&s->ranks[1], " has a round of version 1 under way without replica b-");
    expect_word(&s->ranks[0], "under way without replica b-");
    for (size_t w = 0; w < 4; w++)
        expect_word(&s->workers[w], "under way without replica b-");
    for (uint32_t rank = 0; rank < 2; rank++)
        start_rank(&s->ranks[rank], 2, 0);
    for (size_t w = 0; w < 4; w++)
        start_worker(&s->workers[w], 1);
    for (uint32_t rank = 0; rank < 2; rank++)
        join_ok(&s->ranks[rank]);
    for (size_t w = 0; w < 4; w++)
        join_ok(&s->workers[w]);
    expect_all_verified(s, 1);
    close_stage(s);
}

static weir_status refuse_to_pause(void *context)
{
    (void)context;
    return WEIR_ERR_REFUSED;
}

static void who_gives_up_ends_the_round_and_the_next_version_goes_to_all(void **state)
{
    (void)state;
    const rig wish = { .family = "llama", .conversion = "fp8_128x128", .preset = "tiny" };
    stage *s = open_ranks(&wish, "fsdp=2", "tp=2");
    add_to_engine(s, "a", 0, WEIR_INSTALL_STAGED);
    peer *bad = add_to_engine(s, "a", 1, WEIR_INSTALL_STAGED);
    refit_all(s, 1);
    bad->replica->mode = WEIR_INSTALL_DIRECT; /* so that it pauses after it has joined */
    bad->replica->hooks.pause = refuse_to_pause;
    start_ranks(s, 2, 1, SHORT_MS);
    for (size_t w = 0; w < 2; w++)
        start_worker(&s->workers[w], 2);
    join(bad);
    assert_int_equal(bad->status, WEIR_ERR_REFUSED);
    for (uint32_t rank = 0; rank < 2; rank++) {
        join(&s->ranks[rank]);
        if (strstr(s->ranks[rank].line, " gave up") == NULL)
            fail_msg("rank %u: %s", rank, s->ranks[rank].line);
    }
    for (uint32_t rank = 0; rank < 2; rank++) /* who waited is told when the version goes */
        assert_ok(weir_slot_retire_sent(s->ranks[rank].trainer, 2));
    join(&s->workers[0]);
    assert_true(s->workers[0].status != WEIR_OK);
    assert_int_equal(weir_replica_version(s->workers[0].replica), 1);
    bad->replica->hooks.pause = NULL;
    refit_all(s, 3);
    expect_all_verified(s, 3);
    close_stage(s);
}

/* Two workers of one engine, who install together or not at all. */
typedef struct electorate {
    pthread_barrier_t gather, told;
    weir_status votes[2];
} electorate;

typedef struct voter {
    electorate *of;
    int number;
    weir_status after; /* what its engine says to what was installed */
    unsigned n_votes, n_resumes;
    unsigned lost_vote; /* in which it says that bytes have landed; 0: none */
} voter;

static weir_status vote(void *context, uint64_t version, weir_status mine)
{
    voter *own = context;
    (void)version;
    own->of->votes[own->number] = ++own->n_votes == own->lost_vote ? WEIR_ERR_PARTIAL : mine;
    pthread_barrier_wait(&own->of->gather);
    weir_status all = own->of->votes[0] != WEIR_OK ? own->of->votes[0] : own->of->votes[1];
    pthread_barrier_wait(&own->of->told);
    return all;
}

static weir_status after_install(void *context, uint64_t version)
{
    (void)version;
    return ((const voter *)context)->after;
}

static void resume_engine(void *context)
{
    ((voter *)context)->n_resumes++;
}

static void add_voters(stage *s, electorate *both, voter voters[2], weir_install_mode mode)
{
    pthread_barrier_init(&both->gather, NULL, 2);
    pthread_barrier_init(&both->told, NULL, 2);
    for (uint32_t w = 0; w < 2; w++) {
        voters[w] = (voter){ .of = both, .number = (int)w };
        weir_replica *replica = add_to_engine(s, "a", w, mode)->replica;
        replica->agree = vote;
        replica->hooks.context = &voters[w];
        replica->hooks.postprocess = after_install;
        replica->hooks.resume = resume_engine;
    }
}

static void dismiss(electorate *both)
{
    pthread_barrier_destroy(&both->gather);
    pthread_barrier_destroy(&both->told);
}

static void workers_of_one_engine_take_it_together_or_not_at_all(void **state)
{
    (void)state;
    const rig wish = { .family = "llama", .conversion = "bf16_cast", .preset = "tiny" };
    electorate both;
    voter voters[2];
    stage *s = open_ranks(&wish, "fsdp=2", "tp=2");
    add_voters(s, &both, voters, WEIR_INSTALL_STAGED);
    refit_all(s, 1);
    expect_all_verified(s, 1);
    voters[1].after = WEIR_ERR_REFUSED;
    start_ranks(s, 2, 1, SHORT_MS);
    for (size_t w = 0; w < 2; w++)
        start_worker(&s->workers[w], 2);
    for (size_t w = 0; w < 2; w++) {
        join(&s->workers[w]);
        assert_int_equal(s->workers[w].status, WEIR_ERR_REFUSED);
        assert_int_equal(weir_replica_version(s->workers[w].replica), 1);
    }
    assert_non_null(strstr(s->workers[0].line, "another worker of it did not take version 2"));
    for (uint32_t rank = 0; rank < 2; rank++) {
        join(&s->ranks[rank]);
        assert_true(s->ranks[rank].status != WEIR_OK);
    }
    voters[1].after = WEIR_OK;
    refit_all(s, 3);
    expect_all_verified(s, 3);
    dismiss(&both);
    close_stage(s);
}

/* A round of version 2 that never begins, since another engine does not come. */
static void wait_in_vain(stage *s, voter voters[2])
{
    for (size_t w = 0; w < 2; w++) {
        voters[w].n_votes = voters[w].n_resumes = 0;
        weir_replica_rebound(s->workers[w].replica, SHORT_MS);
    }
    start_ranks(s, 2, 2, SHORT_MS);
    for (size_t w = 0; w < 2; w++)
        start_worker(&s->workers[w], 2);
    for (size_t w = 0; w < 2; w++) {
        join(&s->workers[w]);
        assert_true(s->workers[w].status != WEIR_OK);
        assert_int_equal(voters[w].n_votes, 3);
        weir_replica_rebound(s->workers[w].replica, 10 * RIG_TIMEOUT_MS);
    }
    for (uint32_t rank = 0; rank < 2; rank++) {
        join(&s->ranks[rank]);
        assert_int_equal(s->ranks[rank].status, WEIR_ERR_TIMED_OUT);
    }
}

static void direct_workers_that_no_byte_has_reached_keep_what_they_have(void **state)
{
    (void)state;
    const rig wish = { .family = "llama", .conversion = "bf16_cast", .preset = "tiny" };
    electorate both;
    voter voters[2];
    stage *s = open_ranks(&wish, "fsdp=2", "tp=2");
    add_voters(s, &both, voters, WEIR_INSTALL_DIRECT);
    refit_all(s, 1);
    wait_in_vain(s, voters);
    for (size_t w = 0; w < 2; w++) {
        assert_int_equal(weir_replica_get_state(s->workers[w].replica), WEIR_REPLICA_HOLDING);
        assert_int_equal(weir_replica_version(s->workers[w].replica), 1);
        assert_int_equal(voters[w].n_resumes, 1);
    }
    refit_all(s, 3);
    expect_all_verified(s, 3);
    for (size_t w = 0; w < 2; w++) /* their broadcast groups still stood */
        assert_int_equal(s->workers[w].report.counters.connections, 0);
    dismiss(&both);
    close_stage(s);
}

static void direct_workers_are_unusable_when_a_byte_has_reached_one_of_them(void **state)
{
    (void)state;
    const rig wish = { .family = "llama", .conversion = "bf16_cast", .preset = "tiny" };
    electorate both;
    voter voters[2];
    stage *s = open_ranks(&wish, "fsdp=2", "tp=2");
    add_voters(s, &both, voters, WEIR_INSTALL_DIRECT);
    refit_all(s, 1);
    voters[1].lost_vote = 3;
    wait_in_vain(s, voters);
    for (size_t w = 0; w < 2; w++) {
        assert_int_equal(weir_replica_get_state(s->workers[w].replica), WEIR_REPLICA_UNUSABLE);
        assert_int_equal(voters[w].n_resumes, 0);
        assert_non_null(strstr(s->workers[w].line, "is unusable until a whole version is in"));
    }
    refit_all(s, 3);
    expect_all_verified(s, 3);
    dismiss(&both);
    close_stage(s);
}

/* Staged workers keep what they have, direct ones wait for a whole version. */
static void a_weight_that_is_not_finite_ends_the_round_for_all(void **state)
{
    (void)state;
    const rig wish = { .family = "llama", .conversion = "bf16_cast", .preset = "tiny" };
    stage *s = open_ranks(&wish, "fsdp=2", "tp=2");
    peer *staged = add_to_engine(s, "a", 0, WEIR_INSTALL_STAGED);
    peer *direct = add_to_engine(s, "a", 1, WEIR_INSTALL_DIRECT);
    refit_all(s, 1);
    rig_fill(&s->r->model, 2);
    for (size_t t = 0; t < s->r->model.n; t++) /* rank 0's, of the last layer */
        if (strcmp(s->r->model.tensors[t].name, "model.layers.1.mlp.down_proj.weight") == 0)
            ((uint16_t *)s->r->model.tensors[t].data)[5] = 0x7fc0;
    for (uint32_t rank = 0; rank < 2; rank++) {
        assert_ok(
            weir_trainer_register(s->ranks[rank].trainer, s->r->model.tensors, s->r->model.n));
        s->ranks[rank].version = 2;
    }
    for (uint32_t rank = 0; rank < 2; rank++)
        start_rank(&s->ranks[rank], 1, 0);
    start_worker(staged, 2);
    start_worker(direct, 2);
    join(&s->ranks[0]);
    assert_int_equal(s->ranks[0].status, WEIR_ERR_NONFINITE);
    join(&s->ranks[1]); /* it hears so of its readers */
    assert_int_equal(s->ranks[1].status, WEIR_ERR_PEER_LOST);
    assert_non_null(strstr(s->ranks[1].line, "down_proj.weight[0, 5] is NaN"));
    for (size_t w = 0; w < 2; w++) {
        join(&s->workers[w]);
        assert_int_equal(s->workers[w].status, WEIR_ERR_PEER_LOST);
        assert_non_null(strstr(s->workers[w].line, "down_proj.weight[0, 5] is NaN"));
    }
    assert_int_equal(weir_replica_version(staged->replica), 1);
    assert_int_equal(weir_replica_get_state(direct->replica), WEIR_REPLICA_UNUSABLE);
    refit_all(s, 3);
    expect_all_verified(s, 3);
    close_stage(s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(engines_get_their_parts_in_kernel_format),
        cmocka_unit_test(experts_of_other_ranks_are_sent_too),
        cmocka_unit_test(borders_are_found_in_whatever_order_groups_go),
        cmocka_unit_test(stages_of_engines_are_sent_their_own_layers),
        cmocka_unit_test(engines_convert_a_checkpoint_themselves),
        cmocka_unit_test(later_versions_allocate_register_plan_and_connect_nothing),
        cmocka_unit_test(workers_and_ranks_may_be_started_anew_between_versions),
        cmocka_unit_test(what_is_registered_may_change_between_versions),
        cmocka_unit_test(a_worker_that_never_came_is_counted_and_the_same_call_begins_afresh),
        cmocka_unit_test(who_is_in_the_round_of_one_rank_alone_ends_it_at_once),
        cmocka_unit_test(who_gives_up_ends_the_round_and_the_next_version_goes_to_all),
        cmocka_unit_test(workers_of_one_engine_take_it_together_or_not_at_all),
        cmocka_unit_test(direct_workers_that_no_byte_has_reached_keep_what_they_have),
        cmocka_unit_test(direct_workers_are_unusable_when_a_byte_has_reached_one_of_them),
        cmocka_unit_test(a_weight_that_is_not_finite_ends_the_round_for_all),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
