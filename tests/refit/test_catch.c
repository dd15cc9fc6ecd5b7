/* SPDX-License-Identifier: Apache-2.0 */
/* test_catch.c - a replica's places in broadcast groups, and its windows: kept from refit to refit,
 * and refused where they make no sense. */
#include "refit/catch_bench.h"

#include "refit/work_ops.h"

static void later_versions_take_nothing_and_keep_their_groups(void **state)
{
    (void)state;
    bool landed;
    uint64_t before = 0;
    bench *b = open_bench(WEIR_INSTALL_STAGED);
    uint64_t n_taken = b->replica.worker.counters.allocations;
    for (unsigned version = 1; version <= 5; version++) {
        script_net.n_queued = 0;
        for (uint32_t r = 0; r < N_RANKS; r++)
            b->ranks[r].round = version;
        fill(b, version);
        before = version == 4 ? weir_alloc_count() : before;
        must(refit_once(b, &landed));
        expect_installed(b);
        for (uint32_t c = 0; c < script_net.n_casts; c++)
            assert_int_equal(script_net.casts[c].n_opened, 1);
    }
    assert_int_equal(weir_alloc_count(), before);
    assert_int_equal(b->replica.worker.counters.connections, 4);
    assert_int_equal(b->replica.worker.counters.allocations - n_taken, WEIR_CATCH_WINDOWS);
    for (uint32_t r = 0; r < N_RANKS; r++) {
        assert_int_equal(b->ranks[r].n_fresh, 1);
        assert_int_equal(b->ranks[r].n_stale, 4);
    }
    close_bench(b);
}

static void only_groups_with_another_key_are_joined_anew(void **state)
{
    (void)state;
    bool landed;
    bench *b = open_bench(WEIR_INSTALL_DIRECT);
    must(refit_once(b, &landed));
    uint32_t before = b->casts[1][0];
    new_cast(b, 1, 0); /* who is in audience 0 of rank 1 has changed */
    fill(b, 2);
    must(refit_once(b, &landed));
    expect_installed(b);
    for (uint32_t c = 0; c < script_net.n_casts; c++)
        assert_int_equal(script_net.casts[c].n_opened, 1);
    assert_false(script_net.casts[before].is_open);
    assert_int_equal(script_net.casts[before].n_aborted, 1); /* its rank has left it, too */
    assert_true(script_net.casts[b->casts[1][0]].is_open);
    assert_true(script_net.casts[b->casts[0][0]].is_open);
    close_bench(b);
}

static void a_group_that_broke_meanwhile_is_asked_for_anew(void **state)
{
    (void)state;
    bool landed;
    bench *b = open_bench(WEIR_INSTALL_STAGED);
    must(refit_once(b, &landed));
    expect_installed(b);
    script_net.casts[b->casts[0][1]].is_broken = WEIR_ERR_PEER_LOST;
    new_cast(b, 0, 0);
    new_cast(b, 0, 1);
    must(refit_once(b, &landed));
    assert_int_equal(b->ranks[0].n_fresh, 2);
    assert_int_equal(b->ranks[1].n_fresh, 1);
    close_bench(b);
}

static void windows_grow_when_groups_do(void **state)
{
    (void)state;
    bool landed;
    bench *b = open_bench(WEIR_INSTALL_STAGED);
    uint64_t n_taken = b->replica.worker.counters.allocations;
    must(refit_once(b, &landed));
    assert_int_equal(b->replica.caught.window_bytes, SECOND_AT + HALF);
    for (uint32_t g = 0; g < N_GROUPS; g++)
        b->group_bytes[g] = BUFFER_BYTES - g;
    for (uint32_t r = 0; r < N_RANKS; r++) {
        new_cast(b, r, 0);
        new_cast(b, r, 1);
    }
    must(refit_once(b, &landed)); /* the round has begun when it joins */
    assert_int_equal(b->replica.caught.window_bytes, BUFFER_BYTES);
    assert_int_equal(b->replica.worker.counters.allocations - n_taken, 2 * WEIR_CATCH_WINDOWS);
    expect_installed(b);
    close_bench(b);
}

static void what_fails_behind_the_transfer_costs_no_group(void **state)
{
    (void)state;
    bool landed = false;
    bench *b = open_bench(WEIR_INSTALL_STAGED);
    must(weir_group_join(&b->replica, &b->discovery));
    weir_landing_aim(&b->replica);
    must(weir_group_transfer(&b->replica, &b->discovery, &landed));
    weir_fail(WEIR_ERR_REFUSED, "the engine does not want it");
    weir_group_leave(&b->replica, &b->discovery);
    for (uint32_t r = 0; r < N_RANKS; r++)
        assert_string_equal(b->ranks[r].gave_up, "the engine does not want it");
    must(refit_once(b, &landed));
    expect_installed(b);
    for (uint32_t c = 0; c < script_net.n_casts; c++)
        assert_int_equal(script_net.casts[c].n_opened, 1);
    close_bench(b);
}

static void a_round_that_never_begins_costs_no_group(void **state)
{
    (void)state;
    bool landed;
    bench *b = open_bench(WEIR_INSTALL_STAGED);
    must(refit_once(b, &landed));
    expect_installed(b);
    b->replica.worker.timeout_ms = 100;
    for (uint32_t r = 0; r < N_RANKS; r++)
        b->ranks[r].has_not_begun = true;
    expect_fails(refit_once(b, &landed), WEIR_ERR_TIMED_OUT, "it has not begun to send it");
    for (uint32_t r = 0; r < N_RANKS; r++) {
        assert_true(b->ranks[r].is_left);
        b->ranks[r].has_not_begun = false;
    }
    fill(b, 2);
    must(refit_once(b, &landed));
    expect_installed(b);
    for (uint32_t c = 0; c < script_net.n_casts; c++)
        assert_int_equal(script_net.casts[c].n_opened, 1);
    close_bench(b);
}

static void all_groups_of_a_failed_round_are_left_though_a_rank_answers_no_more(void **state)
{
    (void)state;
    bool landed;
    bench *b = open_bench(WEIR_INSTALL_STAGED);
    b->ranks[1].off_at = 2;
    b->ranks[0].is_silent_to_leavers = true;
    must(weir_group_join(&b->replica, &b->discovery));
    weir_landing_aim(&b->replica);
    expect_fails(weir_group_transfer(&b->replica, &b->discovery, &landed), WEIR_ERR_PEER_LOST,
                 "layers.3.weight is not finite");
    assert_false(b->ranks[1].is_left); /* that one is told later */
    expect_groups_left(b);
    weir_group_keep(&b->replica);
    close_bench(b);
}

static void need_gpu(void)
{
    unsigned n_gpus;
    if (weir_cuda_devices(&n_gpus) == WEIR_OK)
        return;
    print_message("SKIPPED: %s\n", weir_last_error());
    if (getenv("WEIR_TEST_REQUIRE_GPU") != NULL)
        fail_msg("a GPU is required");
    skip();
}

/* Into the live parameters, and from the second version on without an allocation. */
static void what_is_caught_is_written_over_what_was_live(void **state)
{
    (void)state;
    bool landed;
    uint64_t before = 0;
    unsigned char found[TENSOR_BYTES];
    void *stream = NULL;
    need_gpu();
    bench *b = open_bench_on(WEIR_INSTALL_DIRECT, WEIR_MEMORY_CUDA);
    must(weir_cuda_stream_open(0, &stream));
    for (unsigned version = 1; version <= 3; version++) {
        fill(b, version);
        before = version == 2 ? weir_alloc_count() : before;
        must(refit_once(b, &landed));
        assert_true(landed);
        for (uint32_t i = 0; i < N_RANKS * N_PARAMETERS; i++) {
            const weir_plan_copy *copy = &b->planned[i];
            const unsigned char *sent =
                b->bytes[copy->source][group_of(visible[copy->shard])] + copy->source_offset;
            const unsigned char *at = found + copy->parameter_offset;
            must(weir_cuda_copy(0, found, b->live[copy->parameter].data, TENSOR_BYTES, stream));
            must(weir_cuda_stream_wait(0, stream));
            for (uint64_t n = 0; n < copy->n_bytes; n += copy->run_bytes, at += copy->pitch_bytes)
                assert_memory_equal(at, sent + n, copy->run_bytes);
        }
    }
    assert_int_equal(weir_alloc_count(), before);
    weir_cuda_stream_close(0, stream);
    close_bench(b);
}

static void what_lies_on_a_gpu_is_caught_there(void **state)
{
    (void)state;
    bool landed;
    need_gpu();
    bench *b = open_bench_on(WEIR_INSTALL_STAGED, WEIR_MEMORY_CUDA);
    for (unsigned version = 1; version <= 2; version++) {
        fill(b, version);
        must(refit_once(b, &landed));
        for (uint32_t i = 0; i < N_RANKS * N_PARAMETERS; i++) {
            const weir_plan_copy *copy = &b->planned[i];
            const unsigned char *sent = b->bytes[copy->source][group_of(visible[copy->shard])];
            assert_memory_equal(b->replica.staging + b->staging_offset[copy->parameter] +
                                    copy->packed_offset,
                                sent + copy->source_offset, copy->n_bytes);
        }
    }
    b->digests[1][5].sum ^= 1;
    expect_fails(refit_once(b, &landed), WEIR_ERR_CORRUPT, "digest of layers.1.a differs");
    close_bench(b);
}

/* ---- a GPU that takes its time ---------------------------------------------------------------*/

#define FOR_EVER INT_MAX

/* The work of host memory, whose digests and copies do not end before they were asked for often. */
static struct slow_work {
    weir_work_ops ops;
    const weir_work_ops *real;
    const weir_replica *replica;
    int digest_tests, copy_tests; /* how often */
    int left;                     /* of what is under way */
    bool was_caught;              /* the other window's group, when that began */
    bool caught_meanwhile;        /* it was not, and then it was */
    weir_status *breaks;          /* once a copy is under way: a broadcast group; NULL: none */
} slow;

static bool other_is_caught(void)
{
    const weir_catch *caught = &slow.replica->caught;
    const weir_catch_window *other = &caught->windows[caught->taken == &caught->windows[0]];
    return caught->taken != NULL && other->from != NULL && other->is_caught;
}

static weir_status slow_digest(weir_task *task, weir_lane lane, const weir_work_range *ranges,
                               size_t n_ranges)
{
    slow.left = slow.digest_tests;
    slow.was_caught = other_is_caught();
    return slow.real->digest(task, lane, ranges, n_ranges);
}

static weir_status slow_scatter(weir_task *task, weir_lane lane, const weir_work_rows *rows,
                                size_t n_rows)
{
    slow.left = slow.copy_tests;
    slow.was_caught = other_is_caught();
    return slow.real->scatter(task, lane, rows, n_rows);
}

static weir_status slow_test(weir_task *task)
{
    slow.caught_meanwhile |= !slow.was_caught && other_is_caught();
    if (slow.breaks != NULL && slow.replica->caught.is_copied)
        *slow.breaks = WEIR_ERR_PEER_LOST;
    if (slow.left > 0 && slow.left-- > 0)
        return WEIR_IN_PROGRESS;
    return slow.real->test(task);
}

static bench *open_slow_bench(int digest_tests, int copy_tests)
{
    bench *b = open_bench(WEIR_INSTALL_DIRECT);
    slow = (struct slow_work){ .ops = *b->replica.work->ops,
                               .real = b->replica.work->ops,
                               .replica = &b->replica,
                               .digest_tests = digest_tests,
                               .copy_tests = copy_tests };
    slow.ops.digest = slow_digest;
    slow.ops.scatter = slow_scatter;
    slow.ops.test = slow_test;
    b->replica.work->ops = &slow.ops;
    return b;
}

static void groups_are_caught_while_one_is_verified_and_copied(void **state)
{
    (void)state;
    for (int is_copy = 0; is_copy < 2; is_copy++) {
        bool landed;
        bench *b = open_slow_bench(is_copy ? 0 : 20, is_copy ? 20 : 0);
        must(refit_once(b, &landed));
        assert_true(landed);
        expect_installed(b);
        assert_true(slow.caught_meanwhile);
        close_bench(b);
    }
}

/* Nothing has landed before it is copied; what hung may end later, and the next refit goes on. */
static void a_gpu_that_does_not_end_is_named_within_the_bound(void **state)
{
    (void)state;
    static const char *const lines[2] = {
        "timed out after 0.1 s: GPU 0 has not verified group 0 of 6 of version 7 of trainer rank 0",
        "timed out after 0.1 s: GPU 0 has not copied group 0 of 6 of version 7 of trainer rank 0"
    };
    for (int is_copy = 0; is_copy < 2; is_copy++) {
        bool landed;
        bench *b = open_slow_bench(is_copy ? 0 : FOR_EVER, is_copy ? FOR_EVER : 0);
        b->replica.worker.timeout_ms = 100;
        uint64_t begun = weir_now_ns();
        expect_fails(refit_once(b, &landed), WEIR_ERR_TIMED_OUT, lines[is_copy]);
        assert_true(weir_now_ns() - begun < 2000000000u);
        assert_int_equal(landed, is_copy);
        for (uint32_t r = 0; r < N_RANKS; r++) {
            new_cast(b, r, 0);
            new_cast(b, r, 1);
        }
        expect_fails(refit_once(b, &landed), WEIR_ERR_TIMED_OUT,
                     "GPU 0 is still at what replica replica-0 caught of a version before");
        assert_false(landed);
        slow.digest_tests = slow.copy_tests = slow.left = 0;
        b->replica.worker.timeout_ms = 5000;
        must(refit_once(b, &landed));
        expect_installed(b);
        close_bench(b);
    }
}

/* What is being copied has ended before anybody else is told. */
static void a_failure_waits_for_what_is_being_copied(void **state)
{
    (void)state;
    bool landed;
    bench *b = open_slow_bench(0, 2000);
    slow.breaks = &script_net.casts[b->casts[1][0]].is_broken;
    expect_fails(refit_once(b, &landed), WEIR_ERR_PEER_LOST, "");
    assert_true(landed);
    assert_int_equal(slow.left, 0);
    assert_null(b->replica.caught.taken);
    close_bench(b);
}

static void who_is_not_sent_what_it_needs_says_so(void **state)
{
    (void)state;
    bool landed;
    bench *b = open_bench(WEIR_INSTALL_STAGED);
    b->ranks[1].places[0].audience = 7;
    expect_fails(
        refit_once(b, &landed), WEIR_ERR_LAYOUT,
        "trainer rank 1 does not send embed to replica replica-0 (worker 0 of its engine), "
        "which needs it: its group 0 goes to broadcast group 0");
    assert_int_equal(script_net.n_queued, 0);
    expect_left(b, "does not send embed");
    b->ranks[1].places[0].audience = 2;
    expect_fails(refit_once(b, &landed), WEIR_ERR_CORRUPT,
                 "trainer rank 1 names broadcast group 2 twice");
    close_bench(b);
}

static void a_transport_that_does_not_reach_the_parameters_is_named(void **state)
{
    (void)state;
    bool landed;
    bench *b = open_bench(WEIR_INSTALL_STAGED);
    script_ops.memory = WEIR_MEMORY_CUDA;
    expect_fails(refit_once(b, &landed), WEIR_ERR_UNSUPPORTED,
                 "trainer rank 0 broadcasts over script, which does not reach host memory, where "
                 "replica replica-0 has its parameters");
    close_bench(b);
}

static void running_out_of_memory_is_reported_and_can_be_repeated(void **state)
{
    (void)state;
    uint64_t n = 1;
    for (bool is_over = false; !is_over; n++) {
        bool landed;
        bench *b = open_bench(WEIR_INSTALL_STAGED);
        weir_alloc_fail_at(n);
        weir_status status = weir_catch_open(&b->replica);
        weir_alloc_fail_at(0);
        is_over = status == WEIR_OK;
        if (!is_over)
            expect_fails(status, WEIR_ERR_NO_MEMORY, "memory");
        must(refit_once(b, &landed));
        expect_installed(b);
        close_bench(b);
    }
    assert_true(n > 1 + WEIR_CATCH_WINDOWS);
}

int main(int argc, char **argv)
{
    if (argc > 1)
        cmocka_set_test_filter(argv[1]);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(later_versions_take_nothing_and_keep_their_groups),
        cmocka_unit_test(only_groups_with_another_key_are_joined_anew),
        cmocka_unit_test(a_group_that_broke_meanwhile_is_asked_for_anew),
        cmocka_unit_test(windows_grow_when_groups_do),
        cmocka_unit_test(what_fails_behind_the_transfer_costs_no_group),
        cmocka_unit_test(a_round_that_never_begins_costs_no_group),
        cmocka_unit_test(all_groups_of_a_failed_round_are_left_though_a_rank_answers_no_more),
        cmocka_unit_test(what_lies_on_a_gpu_is_caught_there),
        cmocka_unit_test(what_is_caught_is_written_over_what_was_live),
        cmocka_unit_test(groups_are_caught_while_one_is_verified_and_copied),
        cmocka_unit_test(a_gpu_that_does_not_end_is_named_within_the_bound),
        cmocka_unit_test(a_failure_waits_for_what_is_being_copied),
        cmocka_unit_test(who_is_not_sent_what_it_needs_says_so),
        cmocka_unit_test(a_transport_that_does_not_reach_the_parameters_is_named),
        cmocka_unit_test(running_out_of_memory_is_reported_and_can_be_repeated),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
