/* SPDX-License-Identifier: Apache-2.0 */
/* test_catch_turns.c - a replica takes a version that two ranks broadcast: in one order, into a
 * loader too, within bounds, and what failures leave behind. */
#include "refit/catch_bench.h"

static void groups_of_two_ranks_are_caught_in_one_order(void **state)
{
    (void)state;
    static const script_place order[] = { { 0, 0 }, { 2, 0 },   /* embed */
                                          { 0, 1 }, { 2, 1 },   /* norm */
                                          { 0, 2 }, { 1, 0 },   /* layer 0, rank 0 */
                                          { 2, 2 }, { 3, 0 },   /* layer 0, rank 1 */
                                          { 0, 3 }, { 2, 3 } }; /* layer 1 */
    for (int mode = WEIR_INSTALL_STAGED; mode <= WEIR_INSTALL_DIRECT; mode++) {
        bool landed;
        bench *b = open_bench((weir_install_mode)mode);
        must(refit_once(b, &landed));
        assert_true(landed);
        assert_int_equal(script_net.n_queued, sizeof(order) / sizeof(*order));
        assert_memory_equal(script_net.queued, order, sizeof(order));
        expect_installed(b);
        for (uint32_t r = 0; r < N_RANKS; r++) {
            assert_true(b->participants[r].reading.done);
            assert_false(b->ranks[r].is_left);
            assert_int_equal(b->participants[r].read_bytes, N_PARAMETERS * HALF);
        }
        close_bench(b);
    }
}

static void ranks_take_turns_by_their_number_whatever_their_place(void **state)
{
    (void)state;
    bool landed;
    bench *b = open_bench(WEIR_INSTALL_STAGED);
    b->remotes[0].manifest.rank = 9;
    b->remotes[1].manifest.rank = 2;
    must(refit_once(b, &landed));
    assert_int_equal(script_net.queued[0].cast, b->casts[1][0]);
    assert_int_equal(script_net.queued[1].cast, b->casts[0][0]);
    expect_installed(b);
    close_bench(b);
}

static void a_rank_that_is_ahead_waits_for_its_turn(void **state)
{
    (void)state;
    bool landed;
    bench *b = open_bench(WEIR_INSTALL_STAGED);
    b->replica.worker.timeout_ms = 300;
    b->ranks[0].n_made = 2; /* layer 0 of rank 0 does not come */
    expect_fails(refit_once(b, &landed), WEIR_ERR_TIMED_OUT,
                 "timed out after 0.3 s: trainer rank 0 has not made group 2 of 6 of version 7");
    assert_int_equal(script_net.n_queued, 6); /* a window for rank 0's, one for that of rank 1 */
    expect_untouched(b);
    expect_left(b, "has not made group 2 of 6");
    close_bench(b);
}

static void windows_are_held_out_before_their_groups_are_made(void **state)
{
    (void)state;
    bool landed = true;
    bench *b = open_bench(WEIR_INSTALL_DIRECT);
    b->replica.worker.timeout_ms = 300;
    b->ranks[0].n_made = 0; /* what is sent all the same is of nobody knows what */
    expect_fails(refit_once(b, &landed), WEIR_ERR_TIMED_OUT,
                 "timed out after 0.3 s: trainer rank 0 has not made group 0 of 6 of version 7");
    assert_int_equal(script_net.n_queued, WEIR_CATCH_WINDOWS);
    assert_false(landed);
    expect_untouched(b);
    close_bench(b);
}

static void a_group_that_is_made_is_asked_for_once(void **state)
{
    (void)state;
    bool landed;
    bench *b = open_bench(WEIR_INSTALL_STAGED);
    must(refit_once(b, &landed));
    for (uint32_t r = 0; r < N_RANKS;
         r++) /* five groups, and the end; one as it heard its places */
        assert_in_range(b->ranks[r].n_inside + b->ranks[r].n_outside, 6, 7);
    close_bench(b);
}

/* A loader that converts nothing, one group per parameter. */
static void load_in_order(bench *b, weir_loader *loader, weir_loader_tensor *tensors,
                          const uint32_t *loads)
{
    weir_replica *replica = &b->replica;
    *loader = (weir_loader){ .tensors = tensors,
                             .n_wanted = N_PARAMETERS,
                             .n_groups = N_PARAMETERS,
                             .buffer_bytes = TENSOR_BYTES,
                             .is_reserved = true };
    weir_arena_init(&loader->arena, 0);
    loader->left = weir_arena_zeroed(&loader->arena, N_PARAMETERS, sizeof(*loader->left));
    loader->first_jobs =
        weir_arena_zeroed(&loader->arena, N_PARAMETERS + 1, sizeof(*loader->first_jobs));
    loader->tasks = weir_arena_zeroed(&loader->arena, N_PARAMETERS, sizeof(*loader->tasks));
    for (uint32_t i = 0; i < N_PARAMETERS; i++) {
        tensors[i] = (weir_loader_tensor){ .group = loads[i], .n_bytes = TENSOR_BYTES };
        must(weir_task_open(replica->work, &loader->tasks[i]));
    }
    for (uint32_t k = 0; k < WEIR_LOADER_BUFFERS; k++) {
        void *buffer;
        must(weir_work_allocate(replica->work, TENSOR_BYTES, &buffer));
        loader->buffers[k] = buffer;
    }
    weir_landing_close(&replica->schedule.landing);
    replica->loader = loader;
    replica->schedule.loads = true;
    replica->schedule.planned = b->planned;
    must(weir_landing_open(replica));
    for (size_t k = 0; k < replica->schedule.landing.n_parts; k++)
        weir_loader_expect(loader, replica->schedule.landing.parts[k].load, 1);
}

static void close_loader(bench *b, weir_loader *loader)
{
    for (uint32_t i = 0; i < N_PARAMETERS; i++)
        weir_task_close(loader->tasks[i]);
    for (uint32_t k = 0; k < WEIR_LOADER_BUFFERS; k++)
        weir_work_free(b->replica.work, loader->buffers[k], TENSOR_BYTES);
    weir_arena_close(&loader->arena);
    b->replica.loader = NULL;
}

static void a_loader_takes_groups_as_it_has_room(void **state)
{
    (void)state;
    static const uint32_t in_order[N_PARAMETERS] = { 0, 1, 2, 3, 4 };
    bool landed;
    weir_loader loader;
    weir_loader_tensor tensors[N_PARAMETERS];
    bench *b = open_bench(WEIR_INSTALL_DIRECT);
    load_in_order(b, &loader, tensors, in_order);
    must(refit_once(b, &landed));
    assert_true(landed);
    assert_int_equal(loader.next, N_PARAMETERS);
    expect_untouched(b); /* it has converted nothing */
    close_loader(b, &loader);
    close_bench(b);
}

static void what_a_loader_needs_behind_what_it_has_no_room_for_is_named(void **state)
{
    (void)state;
    static const uint32_t last_first[N_PARAMETERS] = { 1, 2, 3, 4, 0 };
    bool landed;
    weir_loader loader;
    weir_loader_tensor tensors[N_PARAMETERS];
    bench *b = open_bench(WEIR_INSTALL_DIRECT);
    b->planned[0] = b->planned[N_PARAMETERS - 1]; /* the last one comes from rank 0 alone */
    memcpy(b->planned + 1, b->planned + N_PARAMETERS, (N_PARAMETERS - 1) * sizeof(*b->planned));
    b->replica.schedule.n_copies = N_PARAMETERS;
    load_in_order(b, &loader, tensors, last_first);
    expect_fails(refit_once(b, &landed), WEIR_ERR_UNSUPPORTED,
                 "trainer rank 1 sends norm before tensors that this replica has to convert first");
    assert_false(landed);
    close_loader(b, &loader);
    close_bench(b);
}

static void bytes_that_differ_are_refused_by_name(void **state)
{
    (void)state;
    for (int mode = WEIR_INSTALL_STAGED; mode <= WEIR_INSTALL_DIRECT; mode++) {
        bool landed;
        bench *b = open_bench((weir_install_mode)mode);
        b->bytes[1][5][SECOND_AT + 7] ^= 1;
        expect_fails(refit_once(b, &landed), WEIR_ERR_CORRUPT,
                     "digest of layers.1.b differs: trainer rank 1 published");
        assert_true(landed); /* direct, that makes the replica unusable */
        if (mode == WEIR_INSTALL_STAGED)
            expect_untouched(b);
        expect_left(b, "digest of layers.1.b differs");
        close_bench(b);
    }
}

static void what_is_not_needed_may_differ(void **state)
{
    (void)state;
    bool landed;
    bench *b = open_bench(WEIR_INSTALL_STAGED);
    b->bytes[0][4][7] ^= 1;
    must(refit_once(b, &landed));
    expect_installed(b);
    close_bench(b);
}

static void every_wait_is_bounded_and_names_the_rank_and_the_group(void **state)
{
    (void)state;
    static const char *const lines[] = {
        "timed out after 0.3 s: trainer rank 1 has not made group 0 of 6 of version 7: it has not "
        "begun to send it",
        "timed out after 0.3 s: not all have joined broadcast group 0 of trainer rank 1 for "
        "version 7",
        "timed out after 0.3 s: the broadcast of group 1 of 6 of version 7 by trainer rank 1 does "
        "not end",
        "timed out after 0.3 s: trainer rank 1 has not made group 5 of 6 of version 7",
        "timed out after 0.3 s: trainer rank 1 has not made group 6 of 6 of version 7",
    };
    for (size_t i = 0; i < sizeof(lines) / sizeof(*lines); i++) {
        bool landed;
        bench *b = open_bench(WEIR_INSTALL_STAGED);
        script_cast *cast = &script_net.casts[b->casts[1][0]];
        b->replica.worker.timeout_ms = 300;
        b->ranks[1].has_not_begun = i == 0;
        cast->holds_join = i == 1;
        cast->n_ends = i == 2 ? 1 : UINT32_MAX;
        b->ranks[1].n_made = i == 3 ? 5 : i == 4 ? 6 : UINT32_MAX;
        double begun_s = weir_now_s();
        expect_fails(refit_once(b, &landed), WEIR_ERR_TIMED_OUT, lines[i]);
        assert_true(weir_now_s() - begun_s < 2);
        expect_untouched(b);
        if (i > 0)
            expect_left(b, "timed out");
        close_bench(b);
    }
}

static void a_group_that_breaks_ends_the_refit(void **state)
{
    (void)state;
    bool landed;
    bench *b = open_bench(WEIR_INSTALL_STAGED);
    script_net.casts[b->casts[1][1]].is_broken = WEIR_ERR_PEER_LOST;
    expect_fails(refit_once(b, &landed), WEIR_ERR_PEER_LOST, "the group is broken");
    expect_untouched(b);
    expect_left(b, "the group is broken");
    close_bench(b);
}

static void cancel_at_once(void *context, weir_stop stop, uint64_t version, uint64_t done_bytes,
                           uint64_t total_bytes)
{
    (void)stop, (void)version, (void)done_bytes, (void)total_bytes;
    weir_worker_cancel(context);
}

static void a_refit_that_is_cancelled_half_way_leaves_its_groups(void **state)
{
    (void)state;
    bool landed;
    bench *b = open_bench(WEIR_INSTALL_STAGED);
    b->replica.worker.progress = cancel_at_once;
    b->replica.worker.progress_context = &b->replica.worker;
    expect_fails(refit_once(b, &landed), WEIR_ERR_CANCELLED, "cancelled while worker replica-0");
    assert_true(landed);
    expect_untouched(b);
    expect_left(b, "cancelled while worker replica-0");
    close_bench(b);
}

/* Direct, nothing else could end a wait for a round before its bound. */
static void a_refit_is_cancelled_as_long_as_nothing_has_landed(void **state)
{
    (void)state;
    for (int mode = WEIR_INSTALL_STAGED; mode <= WEIR_INSTALL_DIRECT; mode++) {
        bool landed;
        bench *b = open_bench((weir_install_mode)mode);
        b->ranks[0].has_not_begun = true;
        weir_worker_cancel(&b->replica.worker);
        double begun_s = weir_now_s();
        expect_fails(refit_once(b, &landed), WEIR_ERR_CANCELLED, "cancelled while worker replica");
        assert_true(weir_now_s() - begun_s < b->replica.worker.timeout_ms / 2e3);
        assert_false(landed);
        expect_untouched(b);
        close_bench(b);
    }
}

static void a_direct_refit_is_not_cancelled_once_bytes_have_landed(void **state)
{
    (void)state;
    bool landed;
    bench *b = open_bench(WEIR_INSTALL_DIRECT);
    b->replica.worker.progress = cancel_at_once;
    b->replica.worker.progress_context = &b->replica.worker;
    must(refit_once(b, &landed));
    expect_installed(b);
    close_bench(b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(groups_of_two_ranks_are_caught_in_one_order),
        cmocka_unit_test(ranks_take_turns_by_their_number_whatever_their_place),
        cmocka_unit_test(a_rank_that_is_ahead_waits_for_its_turn),
        cmocka_unit_test(windows_are_held_out_before_their_groups_are_made),
        cmocka_unit_test(a_group_that_is_made_is_asked_for_once),
        cmocka_unit_test(a_loader_takes_groups_as_it_has_room),
        cmocka_unit_test(what_a_loader_needs_behind_what_it_has_no_room_for_is_named),
        cmocka_unit_test(bytes_that_differ_are_refused_by_name),
        cmocka_unit_test(what_is_not_needed_may_differ),
        cmocka_unit_test(every_wait_is_bounded_and_names_the_rank_and_the_group),
        cmocka_unit_test(a_group_that_breaks_ends_the_refit),
        cmocka_unit_test(a_refit_that_is_cancelled_half_way_leaves_its_groups),
        cmocka_unit_test(a_refit_is_cancelled_as_long_as_nothing_has_landed),
        cmocka_unit_test(a_direct_refit_is_not_cancelled_once_bytes_have_landed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
