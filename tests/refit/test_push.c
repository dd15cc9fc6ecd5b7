/* SPDX-License-Identifier: Apache-2.0 */
/* test_push.c - versions that are pushed: trainer ranks and replicas in threads of one process,
 * with real sockets and real shared memory; the same on a GPU where there is one. */
#include "refit/refit_rig.h"

#include <pthread.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "weir/cuda.h"

#define MAX_REPLICAS 3
#define N_VERSIONS 3

/* Where tensors and parameters lie, and what moves the bytes. */
typedef struct place {
    const char *device; /* NULL: host */
    const char *transport;
} place;

static place host = { NULL, "ucx" };
static place gpu = { "cuda:0", "cuda_ipc" };
static place two_gpus = { "cuda:1", "cuda_ipc" };
static place broadcast = { "cuda:1", "nccl" };

static void skip_or_fail(const char *why)
{
    print_message("needs GPUs: %s\n", why);
    if (getenv("WEIR_TEST_REQUIRE_GPU") != NULL)
        fail_msg("GPUs are required: %s", why);
    skip();
}

/* Skips, aloud, where the place is not to be had. */
static const place *place_of(void **state)
{
    const place *at = *state;
    const weir_transport_ops *ops;
    unsigned n_gpus = 0;
    if (at->device == NULL)
        return at;
    if (weir_cuda_devices(&n_gpus) != WEIR_OK || weir_transport_get(at->transport, &ops) != WEIR_OK)
        skip_or_fail(weir_last_error());
    if (at->device[5] - '0' >= (int)n_gpus) { /* a machine of one GPU has no second */
        print_message("needs %c GPUs, there are %u\n", at->device[5] + 1, n_gpus);
        skip();
    }
    return at;
}

/* One side of a refit, in a thread of its own. */
typedef struct side {
    pthread_t thread;
    weir_trainer *trainer;
    weir_replica *replica;
    uint64_t version;
    unsigned n_replicas, timeout_ms;
    weir_status status;
    weir_report report;
    char error[1024];
} side;

static void *run_side(void *context)
{
    side *s = context;
    if (s->trainer != NULL) /* conversions keep their scratch by thread, and this one is new */
        weir_alloc_uncount_thread();
    s->status = s->trainer != NULL
                    ? weir_trainer_wait(s->trainer, s->version, s->n_replicas, s->timeout_ms)
                    : weir_replica_install(s->replica, s->version, &s->report);
    snprintf(s->error, sizeof(s->error), "%s", weir_last_error());
    return NULL;
}

static void start_side(side *s)
{
    assert_int_equal(pthread_create(&s->thread, NULL, run_side, s), 0);
}

/* Trainer ranks and replicas of one refit; replicas come first in `sides`. */
typedef struct refit {
    side sides[MAX_REPLICAS + RIG_RANKS];
    size_t n_replicas;
} refit;

static void run_refit(rig *r, weir_replica *const *replicas, size_t n, uint64_t version, refit *out)
{
    *out = (refit){ .n_replicas = n };
    for (size_t i = 0; i < n; i++) {
        out->sides[i].replica = replicas[i];
        out->sides[i].version = version;
        start_side(&out->sides[i]);
    }
    for (size_t rank = 0; rank < RIG_RANKS; rank++) {
        side *s = &out->sides[n + rank];
        s->trainer = r->trainers[rank];
        s->version = version;
        s->n_replicas = (unsigned)n;
        start_side(s);
    }
    for (size_t i = 0; i < n + RIG_RANKS; i++)
        pthread_join(out->sides[i].thread, NULL);
}

static void expect_all_ok(const refit *done)
{
    for (size_t i = 0; i < done->n_replicas + RIG_RANKS; i++) {
        if (done->sides[i].status != WEIR_OK)
            fail_msg("side %zu: %s: %s", i, weir_status_name(done->sides[i].status),
                     done->sides[i].error);
    }
}

static void expect_side(const side *s, weir_status status, const char *line)
{
    if (s->status != status || strstr(s->error, line) == NULL)
        fail_msg("got %s: '%s', wanted %s: '%s'", weir_status_name(s->status), s->error,
                 weir_status_name(status), line);
}

static void expect_verified(const rig *r, const char *name, uint64_t version)
{
    weir_verify_report report = rig_verify(r, name);
    assert_string_equal(report.first_difference, "");
    assert_int_equal(report.n_different, 0);
    assert_int_equal(report.version, version);
}

/* ---- what must work --------------------------------------------------------------------------*/

static rig *open_rig(const place *at, const char *family, const char *conversion,
                     uint64_t window_bytes)
{
    rig wish = { .family = family,
                 .conversion = conversion,
                 .transport = at->transport,
                 .device = at->device,
                 .delivery = WEIR_DELIVERY_PUSH,
                 .window_bytes = window_bytes };
    return rig_open_as(&wish);
}

/* Versions go to n replicas, which install in turn direct and staged, beginning with `first`. */
static void follow(const place *at, const char *family, const char *conversion, size_t n,
                   weir_install_mode first, uint64_t window_bytes)
{
    static const char *const names[MAX_REPLICAS] = { "one", "two", "three" };
    rig *r = open_rig(at, family, conversion, window_bytes);
    weir_replica *replicas[MAX_REPLICAS];
    for (size_t i = 0; i < n; i++)
        replicas[i] =
            rig_open_replica(r, names[i], i % 2 == 0 ? first : (weir_install_mode)(1 - first));
    for (unsigned version = 1; version <= N_VERSIONS; version++) {
        refit done;
        rig_publish(r, version);
        run_refit(r, replicas, n, version, &done);
        expect_all_ok(&done);
        for (size_t i = 0; i < n; i++) {
            assert_int_equal(weir_replica_version(replicas[i]), version);
            expect_verified(r, names[i], version);
        }
    }
    for (size_t i = 0; i < n; i++)
        weir_replica_close(replicas[i]);
    rig_close(r);
}

static void every_family_and_conversion_is_pushed_byte_for_byte(void **state)
{
    const place *at = place_of(state);
    static const char *const families[] = { "qwen3_moe", "glm_moe_dsa", "qwen3", "llama", "bert" };
    static const char *const conversions[] = { "bf16_cast", "fp8_128x128",
                                               "cutlass_fp8_e4m3_per_channel" };
    for (size_t f = 0; f < sizeof(families) / sizeof(*families); f++) {
        for (size_t c = 0; c < sizeof(conversions) / sizeof(*conversions); c++)
            follow(at, families[f], conversions[c], 1, WEIR_INSTALL_DIRECT, 0);
    }
}

static void staged_versions_pass_through_windows(void **state)
{
    const place *at = place_of(state);
    follow(at, "glm_moe_dsa", "fp8_128x128", 1, WEIR_INSTALL_STAGED, 0);
    follow(at, "glm_moe_dsa", "fp8_128x128", 1, WEIR_INSTALL_STAGED, 1 << 20);
}

static void replicas_pass_steps_on_to_each_other(void **state)
{
    const place *at = place_of(state);
    if (at == &broadcast)
        skip(); /* NCCL takes no two ranks on one GPU */
    follow(at, "glm_moe_dsa", "fp8_128x128", 3, WEIR_INSTALL_DIRECT, 0);
    follow(at, "qwen3_moe", "cutlass_fp8_e4m3_per_channel", 3, WEIR_INSTALL_STAGED, 1 << 20);
}

static void addresses_never_change_and_the_second_refit_takes_nothing(void **state)
{
    const place *at = place_of(state);
    rig *r = open_rig(at, "glm_moe_dsa", "fp8_128x128", 0);
    weir_replica *replica = rig_open_replica(r, "one", WEIR_INSTALL_DIRECT);
    size_t n;
    const weir_tensor *live = weir_replica_parameters(replica, &n);
    const void *before = live[n / 2].data;
    for (unsigned version = 1; version <= 4; version++) {
        refit done;
        rig_publish(r, version);
        run_refit(r, &replica, 1, version, &done);
        expect_all_ok(&done);
        const weir_counters *spent = &done.sides[0].report.counters;
        if (version == 1) {
            assert_true(spent->plans > 0);
            assert_true(spent->connections > 0);
        } else {
            assert_int_equal(spent->plans, 0);
            assert_int_equal(spent->connections, 0);
            assert_int_equal(spent->registrations, 0);
        }
        if (version > 2) /* the trainers' threads of the round before met it too */
            assert_int_equal(spent->allocations, 0);
    }
    assert_ptr_equal(live[n / 2].data, before);
    weir_replica_close(replica);
    rig_close(r);
}

/* ---- who comes and goes ----------------------------------------------------------------------*/

static weir_status take_a_while(void *context, uint64_t version)
{
    const unsigned *milliseconds = context;
    (void)version;
    usleep(*milliseconds * 1000);
    return WEIR_OK;
}

static weir_replica *open_slow_replica(const rig *r, const char *name, unsigned *milliseconds)
{
    weir_replica_options options = rig_replica_options(r, name, WEIR_INSTALL_DIRECT);
    weir_replica *replica = NULL;
    options.hooks.postprocess = take_a_while;
    options.hooks.context = milliseconds;
    assert_ok(weir_replica_open(&options, &replica));
    assert_ok(weir_replica_allocate(replica));
    return replica;
}

static void start_replica(refit *running, size_t i, weir_replica *replica, uint64_t version)
{
    running->sides[i].replica = replica;
    running->sides[i].version = version;
    start_side(&running->sides[i]);
}

/* They wait for `wanted` replicas. */
static void start_trainers(const rig *r, refit *running, size_t n_replicas, uint64_t version,
                           unsigned wanted)
{
    running->n_replicas = n_replicas;
    for (size_t rank = 0; rank < RIG_RANKS; rank++) {
        side *s = &running->sides[n_replicas + rank];
        s->trainer = r->trainers[rank];
        s->version = version;
        s->n_replicas = wanted;
        start_side(s);
    }
}

static void join_sides(refit *running, size_t first, size_t end)
{
    for (size_t i = first; i < end; i++)
        pthread_join(running->sides[i].thread, NULL);
}

static void a_replica_may_leave_as_soon_as_it_holds_the_version(void **state)
{
    const place *at = place_of(state);
    if (at == &broadcast)
        skip(); /* NCCL takes no two ranks on one GPU */
    rig *r = open_rig(at, "qwen3_moe", "fp8_128x128", 0);
    unsigned milliseconds = 600;
    refit running = { 0 };
    rig_publish(r, 1);
    weir_replica *slow = open_slow_replica(r, "slow", &milliseconds);
    weir_replica *quick = rig_open_replica(r, "quick", WEIR_INSTALL_DIRECT);
    start_replica(&running, 0, quick, 1);
    start_replica(&running, 1, slow, 1);
    start_trainers(r, &running, 2, 1, 2);
    join_sides(&running, 0, 1);
    weir_replica_close(quick);
    join_sides(&running, 1, 2 + RIG_RANKS);
    expect_all_ok(&running);
    expect_verified(r, "slow", 1);
    weir_replica_close(slow);
    rig_close(r);
}

static void wait_by_all_ranks(const rig *r, uint64_t version, unsigned n_replicas,
                              unsigned timeout_ms, weir_status status, const char *line)
{
    for (size_t rank = 0; rank < RIG_RANKS; rank++) {
        weir_status found = weir_trainer_wait(r->trainers[rank], version, n_replicas, timeout_ms);
        if (found != status || (status != WEIR_OK && strstr(weir_last_error(), line) == NULL))
            fail_msg("rank %zu: %s: %s", rank, weir_status_name(found), weir_last_error());
    }
}

static void replicas_that_were_served_count_in_the_next_wait(void **state)
{
    const place *at = place_of(state);
    if (at == &broadcast)
        skip(); /* NCCL takes no two ranks on one GPU */
    rig *r = open_rig(at, "qwen3_moe", "fp8_128x128", 0);
    refit done = { 0 };
    rig_publish(r, 1);
    weir_replica *one = rig_open_replica(r, "one", WEIR_INSTALL_DIRECT);
    weir_replica *two = rig_open_replica(r, "two", WEIR_INSTALL_STAGED);
    run_refit(r, &one, 1, 1, &done);
    expect_all_ok(&done);
    wait_by_all_ranks(r, 1, 1, 100, WEIR_OK, "");
    wait_by_all_ranks(r, 1, 2, 100, WEIR_ERR_TIMED_OUT,
                      "0 of 2 replicas are ready for version 1 of model, 1 hold it already");
    start_replica(&done, 0, two, 1);
    start_trainers(r, &done, 1, 1, 2);
    join_sides(&done, 0, 1 + RIG_RANKS);
    expect_all_ok(&done);
    expect_verified(r, "two", 1);
    wait_by_all_ranks(r, 1, 2, 100, WEIR_OK, "");
    weir_replica_close(one);
    weir_replica_close(two);
    rig_publish(r, 2);
    wait_by_all_ranks(r, 2, 1, 100, WEIR_ERR_TIMED_OUT, "0 of 1 replicas are ready for version 2");
    rig_close(r);
}

static void dawdle(void *context, weir_stop stop, uint64_t version, uint64_t done_bytes,
                   uint64_t total_bytes)
{
    const unsigned *milliseconds = context;
    (void)version, (void)done_bytes, (void)total_bytes;
    if (stop == WEIR_STOP_TRANSFER)
        usleep(*milliseconds * 1000);
}

static void every_rank_sends_to_those_who_were_there_for_the_first(void **state)
{
    const place *at = place_of(state);
    if (at == &broadcast)
        skip(); /* NCCL takes no two ranks on one GPU */
    rig *r = open_rig(at, "qwen3_moe", "fp8_128x128", 0);
    unsigned milliseconds = 200;
    refit running = { 0 };
    weir_replica_options options = rig_replica_options(r, "slow", WEIR_INSTALL_DIRECT);
    weir_replica *slow = NULL, *quick = rig_open_replica(r, "quick", WEIR_INSTALL_DIRECT);
    options.progress = dawdle;
    options.progress_context = &milliseconds;
    assert_ok(weir_replica_open(&options, &slow));
    assert_ok(weir_replica_allocate(slow));
    rig_publish(r, 1);
    start_replica(&running, 0, quick, 1);
    usleep(300000);
    start_replica(&running, 1, slow, 1);
    usleep(300000);
    start_trainers(r, &running, 2, 1, 1);
    join_sides(&running, 0, 2 + RIG_RANKS);
    expect_all_ok(&running);
    expect_verified(r, "slow", 1);
    weir_replica_close(slow);
    weir_replica_close(quick);
    rig_close(r);
}

static void restarted_trainers_and_replicas_find_each_other(void **state)
{
    const place *at = place_of(state);
    rig *r = open_rig(at, "qwen3_moe", "fp8_128x128", 0);
    weir_replica *replica = rig_open_replica(r, "one", WEIR_INSTALL_STAGED);
    for (unsigned version = 1; version <= 6; version++) {
        refit done;
        if (version % 2 == 0) {
            for (uint32_t rank = 0; rank < RIG_RANKS; rank++) {
                weir_trainer_close(r->trainers[rank]);
                r->trainers[rank] = rig_open_trainer(r, rank, 2);
            }
        }
        if (version % 3 == 0) {
            weir_replica_close(replica);
            replica = rig_open_replica(r, "one", WEIR_INSTALL_STAGED);
        }
        rig_publish(r, version);
        run_refit(r, &replica, 1, version, &done);
        expect_all_ok(&done);
        expect_verified(r, "one", version);
    }
    weir_replica_close(replica);
    rig_close(r);
}

static void a_replica_that_is_cancelled_while_it_waits_may_come_again(void **state)
{
    const place *at = place_of(state);
    rig *r = open_rig(at, "qwen3_moe", "fp8_128x128", 0);
    weir_replica *replica = rig_open_replica(r, "one", WEIR_INSTALL_DIRECT);
    refit running = { 0 }, done;
    rig_publish(r, 1);
    run_refit(r, &replica, 1, 1, &done);
    expect_all_ok(&done);
    rig_publish(r, 2);
    start_replica(&running, 0, replica, 2);
    usleep(300000);
    weir_replica_cancel(replica);
    join_sides(&running, 0, 1);
    expect_side(&running.sides[0], WEIR_ERR_CANCELLED, "");
    assert_int_equal(weir_replica_version(replica), 1);
    run_refit(r, &replica, 1, 2, &done);
    expect_all_ok(&done);
    expect_verified(r, "one", 2);
    weir_replica_close(replica);
    rig_close(r);
}

/* ---- what must not happen --------------------------------------------------------------------*/

static void spoil(rig *r)
{
    for (size_t t = 0; t < r->model.n; t++) {
        if (strstr(r->model.tensors[t].name, "layers.2.") != NULL &&
            r->model.tensors[t].dtype == WEIR_BF16) {
            ((uint16_t *)r->model.tensors[t].data)[5] = 0x7F80;
            return;
        }
    }
    fail_msg("there is no layer 2");
}

static void republish_spoilt(rig *r, unsigned version, weir_status *out_status)
{
    rig_fill(&r->model, version);
    spoil(r);
    const weir_tensor *tensors = rig_tensors(r);
    for (int rank = 0; rank < RIG_RANKS; rank++) {
        assert_ok(weir_trainer_register(r->trainers[rank], tensors, r->model.n));
        out_status[rank] = weir_trainer_publish(r->trainers[rank], version, NULL);
    }
}

static void a_weight_that_is_not_finite_ends_the_round(const place *at, weir_install_mode mode)
{
    rig *r = open_rig(at, "qwen3_moe", "fp8_128x128", 1 << 20);
    weir_replica *replica = rig_open_replica(r, "one", mode);
    weir_status published[RIG_RANKS];
    refit done;
    rig_publish(r, 1);
    run_refit(r, &replica, 1, 1, &done);
    expect_all_ok(&done);
    uint64_t n_bytes;
    unsigned char *before = rig_snapshot(replica, &n_bytes);
    republish_spoilt(r, 2, published);
    run_refit(r, &replica, 1, 2, &done);
    expect_side(&done.sides[0], WEIR_ERR_NONFINITE, "called it off");
    expect_side(&done.sides[0], WEIR_ERR_NONFINITE, "layers.2.");
    if (mode == WEIR_INSTALL_STAGED) {
        unsigned char *after = rig_snapshot(replica, &n_bytes);
        assert_memory_equal(before, after, n_bytes);
        assert_int_equal(weir_replica_version(replica), 1);
        free(after);
    } else {
        assert_int_equal(weir_replica_get_state(replica), WEIR_REPLICA_UNUSABLE);
        assert_non_null(strstr(done.sides[0].error, "unusable"));
    }
    rig_publish(r, 3);
    run_refit(r, &replica, 1, 3, &done);
    expect_all_ok(&done);
    expect_verified(r, "one", 3);
    free(before);
    weir_replica_close(replica);
    rig_close(r);
}

static void a_spoilt_staged_version_leaves_the_old_one(void **state)
{
    a_weight_that_is_not_finite_ends_the_round(place_of(state), WEIR_INSTALL_STAGED);
}

static void a_spoilt_direct_version_leaves_an_unusable_replica_until_the_next(void **state)
{
    a_weight_that_is_not_finite_ends_the_round(place_of(state), WEIR_INSTALL_DIRECT);
}

static void a_scan_refuses_a_spoilt_version_before_it_is_published(void **state)
{
    const place *at = place_of(state);
    rig wish = { .family = "qwen3_moe",
                 .conversion = "fp8_128x128",
                 .transport = at->transport,
                 .device = at->device,
                 .delivery = WEIR_DELIVERY_PUSH,
                 .scan_first = true };
    rig *r = rig_open_as(&wish);
    weir_status published[RIG_RANKS];
    republish_spoilt(r, 1, published);
    assert_true(published[0] == WEIR_ERR_NONFINITE || published[1] == WEIR_ERR_NONFINITE);
    weir_replica *replica = rig_open_replica(r, "one", WEIR_INSTALL_DIRECT);
    refit done;
    rig_publish(r, 2);
    run_refit(r, &replica, 1, 2, &done);
    expect_all_ok(&done);
    weir_replica_close(replica);
    rig_close(r);
}

static weir_status refuse(void *context, uint64_t version)
{
    const unsigned *bad_version = context;
    return version == *bad_version ? WEIR_ERR_REFUSED : WEIR_OK;
}

static void a_replica_that_refuses_is_named_to_the_trainer(void **state)
{
    const place *at = place_of(state);
    rig *r = open_rig(at, "qwen3_moe", "fp8_128x128", 0);
    unsigned bad_version = 2;
    weir_replica_options options = rig_replica_options(r, "choosy", WEIR_INSTALL_STAGED);
    weir_replica *replica = NULL;
    options.hooks.postprocess = refuse;
    options.hooks.context = &bad_version;
    assert_ok(weir_replica_open(&options, &replica));
    assert_ok(weir_replica_allocate(replica));
    refit done;
    rig_publish(r, 1);
    run_refit(r, &replica, 1, 1, &done);
    expect_all_ok(&done);
    rig_publish(r, 2);
    run_refit(r, &replica, 1, 2, &done);
    expect_side(&done.sides[0], WEIR_ERR_REFUSED, "postprocess hook refused version 2");
    expect_side(&done.sides[1], WEIR_ERR_REFUSED, "replica choosy");
    assert_int_equal(weir_replica_version(replica), 1);
    rig_publish(r, 3);
    run_refit(r, &replica, 1, 3, &done);
    expect_all_ok(&done);
    expect_verified(r, "choosy", 3);
    weir_replica_close(replica);
    rig_close(r);
}

static weir_status pause_unless_it_refuses(void *context)
{
    const bool *refuses = context;
    return *refuses ? WEIR_ERR_REFUSED : WEIR_OK;
}

static void a_direct_replica_is_spared_when_another_never_gets_ready(void **state)
{
    const place *at = place_of(state);
    if (at == &broadcast)
        skip(); /* NCCL takes no two ranks on one GPU */
    rig *r = open_rig(at, "qwen3_moe", "fp8_128x128", 0);
    bool refuses = false;
    weir_replica_options options = rig_replica_options(r, "stubborn", WEIR_INSTALL_DIRECT);
    weir_replica *replicas[2] = { rig_open_replica(r, "one", WEIR_INSTALL_DIRECT), NULL };
    options.hooks.pause = pause_unless_it_refuses;
    options.hooks.context = &refuses;
    assert_ok(weir_replica_open(&options, &replicas[1]));
    assert_ok(weir_replica_allocate(replicas[1]));
    for (unsigned version = 1; version <= 3; version++) {
        refit done;
        refuses = version == 2;
        rig_publish(r, version);
        run_refit(r, replicas, 2, version, &done);
        if (!refuses) {
            expect_all_ok(&done);
            expect_verified(r, "one", version);
            continue;
        }
        expect_side(&done.sides[0], WEIR_ERR_REFUSED, "replica stubborn-");
        expect_side(&done.sides[0], WEIR_ERR_REFUSED, ": the engine did not pause");
        expect_side(&done.sides[1], WEIR_ERR_REFUSED, "the engine did not pause");
        for (size_t i = 0; i < 2; i++)
            assert_int_equal(weir_replica_version(replicas[i]), 1);
    }
    for (size_t i = 0; i < 2; i++)
        weir_replica_close(replicas[i]);
    rig_close(r);
}

/* What the other workers of a replica come to, and what it is asked for last. */
typedef struct others {
    unsigned n_votes;
    weir_status untouched, last;
} others;

static weir_status vote_as_others(void *context, uint64_t version, weir_status mine)
{
    others *all = context;
    (void)version;
    all->last = mine;
    return ++all->n_votes < 3 ? mine : all->untouched;
}

static void
a_direct_worker_is_unusable_where_bytes_have_reached_another_of_its_replica(void **state)
{
    const place *at = place_of(state);
    if (at == &broadcast)
        skip(); /* NCCL takes no two ranks on one GPU */
    rig *r = open_rig(at, "qwen3_moe", "fp8_128x128", 0);
    bool refuses = false;
    others all = { 0 };
    weir_replica *replicas[2];
    weir_replica_options options = rig_replica_options(r, "one", WEIR_INSTALL_DIRECT);
    options.agree = vote_as_others;
    options.hooks.context = &all;
    assert_ok(weir_replica_open(&options, &replicas[0]));
    options = rig_replica_options(r, "stubborn", WEIR_INSTALL_DIRECT);
    options.hooks.pause = pause_unless_it_refuses;
    options.hooks.context = &refuses;
    assert_ok(weir_replica_open(&options, &replicas[1]));
    for (size_t i = 0; i < 2; i++)
        assert_ok(weir_replica_allocate(replicas[i]));
    for (unsigned version = 1; version <= 4; version++) {
        refit done;
        refuses = version == 2 || version == 3;
        all = (others){ .untouched = version == 3 ? WEIR_ERR_PARTIAL : WEIR_OK };
        rig_publish(r, version);
        run_refit(r, replicas, 2, version, &done);
        assert_int_equal(all.n_votes, refuses ? 3 : 2);
        assert_int_equal(all.last, WEIR_OK);
        if (!refuses)
            expect_all_ok(&done);
        if (version == 2)
            assert_int_equal(weir_replica_version(replicas[0]), 1);
        if (version == 3)
            assert_int_equal(weir_replica_get_state(replicas[0]), WEIR_REPLICA_UNUSABLE);
    }
    expect_verified(r, "one", 4);
    for (size_t i = 0; i < 2; i++)
        weir_replica_close(replicas[i]);
    rig_close(r);
}

static void a_replica_that_never_comes_is_counted_when_the_wait_ends(void **state)
{
    const place *at = place_of(state);
    rig *r = open_rig(at, "qwen3_moe", "fp8_128x128", 0);
    rig_publish(r, 1);
    assert_error(weir_trainer_wait(r->trainers[0], 1, 2, 300), WEIR_ERR_TIMED_OUT,
                 "0 of 2 replicas are ready for version 1 of model");
    rig_close(r);
}

static void a_trainer_that_never_begins_is_named_by_the_replica(void **state)
{
    const place *at = place_of(state);
    rig *r = open_rig(at, "qwen3_moe", "fp8_128x128", 0);
    weir_replica *replica = rig_open_replica(r, "one", WEIR_INSTALL_DIRECT);
    rig_publish(r, 1);
    assert_error(weir_replica_install(replica, 1, NULL), WEIR_ERR_TIMED_OUT,
                 "trainer rank 0 (worker trainer-0");
    assert_int_equal(weir_replica_get_state(replica), WEIR_REPLICA_EMPTY);
    refit done;
    run_refit(r, &replica, 1, 1, &done);
    expect_all_ok(&done);
    weir_replica_close(replica);
    rig_close(r);
}

static void a_replica_hears_at_once_that_a_version_is_withdrawn_and_takes_the_next(void **state)
{
    const place *at = place_of(state);
    rig *r = open_rig(at, "qwen3_moe", "fp8_128x128", 0);
    weir_replica *replica = rig_open_replica(r, "one", WEIR_INSTALL_DIRECT);
    side waiting = { .replica = replica, .version = 1 };
    unsigned n_ready = 0;
    rig_publish(r, 1);
    start_side(&waiting);
    while (n_ready == 0)
        assert_ok(weir_trainer_ready(r->trainers[0], 1, &n_ready));
    double begun_s = weir_now_s();
    for (int rank = 0; rank < RIG_RANKS; rank++)
        assert_ok(weir_trainer_withdraw(r->trainers[rank], 1, "the loss is nan", 0));
    pthread_join(waiting.thread, NULL);
    assert_true(weir_now_s() - begun_s < 1);
    expect_side(
        &waiting, WEIR_ERR_ABORTED,
        "called it off: version 1 was aborted: trainer rank 0 has withdrawn it: the loss is "
        "nan");
    assert_int_equal(weir_replica_get_state(replica), WEIR_REPLICA_EMPTY);
    refit done;
    rig_publish(r, 2);
    run_refit(r, &replica, 1, 2, &done);
    expect_all_ok(&done);
    weir_replica_close(replica);
    rig_close(r);
}

static void a_window_that_is_too_small_is_said_so(void **state)
{
    const place *at = place_of(state);
    rig *r = open_rig(at, "qwen3_moe", "bf16_cast", 1024);
    weir_replica *replica = rig_open_replica(r, "one", WEIR_INSTALL_STAGED);
    refit done;
    rig_publish(r, 1);
    run_refit(r, &replica, 1, 1, &done);
    expect_side(&done.sides[1], WEIR_ERR_UNSUPPORTED, "give it more window_bytes");
    expect_side(&done.sides[0], WEIR_ERR_UNSUPPORTED, "called it off");
    weir_replica_close(replica);
    rig_close(r);
}

static void an_old_version_cannot_be_pushed(void **state)
{
    const place *at = place_of(state);
    rig *r = open_rig(at, "qwen3_moe", "fp8_128x128", 0);
    assert_error(weir_trainer_wait(r->trainers[0], 1, 1, 100), WEIR_ERR_NOT_FOUND,
                 "cannot be pushed");
    rig_publish(r, 1);
    rig_publish(r, 2);
    assert_error(weir_trainer_wait(r->trainers[0], 1, 1, 100), WEIR_ERR_NOT_FOUND,
                 "cannot be pushed");
    rig_close(r);
}

#define EVERYWHERE(test)                                                                    \
    { #test ", host", test, NULL, NULL, &host }, { #test ", GPU", test, NULL, NULL, &gpu }, \
        { #test ", two GPUs", test, NULL, NULL, &two_gpus },                                \
    {                                                                                       \
#test ", NCCL", test, NULL, NULL, &broadcast                                        \
    }

int main(void)
{
    const struct CMUnitTest tests[] = {
        EVERYWHERE(every_family_and_conversion_is_pushed_byte_for_byte),
        EVERYWHERE(staged_versions_pass_through_windows),
        EVERYWHERE(replicas_pass_steps_on_to_each_other),
        EVERYWHERE(addresses_never_change_and_the_second_refit_takes_nothing),
        EVERYWHERE(a_replica_may_leave_as_soon_as_it_holds_the_version),
        EVERYWHERE(replicas_that_were_served_count_in_the_next_wait),
        EVERYWHERE(every_rank_sends_to_those_who_were_there_for_the_first),
        EVERYWHERE(restarted_trainers_and_replicas_find_each_other),
        EVERYWHERE(a_replica_that_is_cancelled_while_it_waits_may_come_again),
        EVERYWHERE(a_spoilt_staged_version_leaves_the_old_one),
        EVERYWHERE(a_spoilt_direct_version_leaves_an_unusable_replica_until_the_next),
        EVERYWHERE(a_scan_refuses_a_spoilt_version_before_it_is_published),
        EVERYWHERE(a_replica_that_refuses_is_named_to_the_trainer),
        EVERYWHERE(a_direct_replica_is_spared_when_another_never_gets_ready),
        EVERYWHERE(a_direct_worker_is_unusable_where_bytes_have_reached_another_of_its_replica),
        EVERYWHERE(a_replica_that_never_comes_is_counted_when_the_wait_ends),
        EVERYWHERE(a_trainer_that_never_begins_is_named_by_the_replica),
        EVERYWHERE(a_replica_hears_at_once_that_a_version_is_withdrawn_and_takes_the_next),
        EVERYWHERE(a_window_that_is_too_small_is_said_so),
        EVERYWHERE(an_old_version_cannot_be_pushed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
