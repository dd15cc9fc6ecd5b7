/* SPDX-License-Identifier: Apache-2.0 */
/* test_nccl_group.c - joining, broadcasting and leaving, with every answer that NCCL may give and
 * those that never come; on fake_nccl.so, so that it needs no GPU. */
#include "transport/nccl_case.h"

static const weir_transport_ops *const ops = &weir_transport_nccl;

static void a_group_joins_without_blocking(void **state)
{
    (void)state;
    weir_transport *transport = open_nccl(1);
    fake->init_polls = 3;
    fake->broadcast_polls = 2;
    fake->event_result = WEIR_CUDA_NOT_READY;
    weir_group *group = open_group(transport, 1000);
    assert_int_equal(fake->n_inits, 1);
    assert_true(fake->rank == 1 && fake->n_ranks == 3 && fake->device == 1);
    assert_string_equal(fake->id.internal, "a key");
    for (int i = 0; i < 3; i++) {
        assert_int_equal(ops->group_test(group), WEIR_IN_PROGRESS);
        assert_int_equal(fake->n_broadcasts, 0);
    }
    for (int i = 0; i < 10; i++)
        assert_int_equal(ops->group_test(group), WEIR_IN_PROGRESS);
    assert_int_equal(fake->n_broadcasts, 1); /* which sets up the links */
    fake->event_result = 0;
    assert_int_equal(ops->group_test(group), WEIR_OK);
    assert_int_equal(ops->group_test(group), WEIR_OK);
    assert_int_equal(fake->n_broadcasts, 1);
    assert_int_equal(fake_current(), 0);
    ops->group_close(group, false);
    ops->close(transport);
}

static void the_config_is_laid_out_for_the_library(void **state)
{
    (void)state;
    weir_transport *transport = open_nccl(0);
    weir_nccl_library older = *((nccl_transport *)transport)->nccl;
    ops->group_close(open_group(transport, 1000), true);
    assert_int_equal(fake->config.size, 40);
    assert_int_equal(fake->config.magic, 0xcafebeefu);
    assert_int_equal(fake->config.version, 21700);
    assert_int_equal(fake->config.blocking, 0);
    assert_int_equal(fake->config.cga_cluster_size, INT_MIN);
    assert_int_equal(fake->config.min_ctas, INT_MIN);
    assert_int_equal(fake->config.max_ctas, 16);
    assert_null(fake->config.net_name);
    reset_fake(NULL);
    older.version = 21605;
    ((nccl_transport *)transport)->nccl = &older;
    ops->group_close(open_group(transport, 1000), true);
    assert_int_equal(fake->config.size, 24);
    assert_int_equal(fake->config.version, 21400);
    assert_int_equal(fake->config.blocking, 0);
    ops->close(transport);
}

/* How a group fails that has 60 ms: always the same words, aborted once. */
static void check_overdue(const char *verb)
{
    weir_transport *transport = open_nccl(0);
    weir_group *group = open_group(transport, 60);
    char want[128];
    uint64_t begun = weir_now_ns();
    snprintf(want, sizeof(want),
             "round of version 7: not all of 3 ranks have %s NCCL within 0.1 s (this is rank 1)",
             verb);
    assert_int_equal(await_group(group), WEIR_ERR_TIMED_OUT);
    assert_string_equal(weir_last_error(), want);
    assert_true(weir_now_ns() - begun < 5000000000ull);
    weir_fail(WEIR_ERR_INVALID, "something else");
    assert_int_equal(ops->group_test(group), WEIR_ERR_TIMED_OUT);
    assert_string_equal(weir_last_error(), want);
    assert_int_equal(ops->group_broadcast(group, 0, &(weir_group_part){ want, 8 }, 1, NULL),
                     WEIR_ERR_TIMED_OUT);
    ops->group_close(group, false);
    assert_true(fake->n_aborted == 1 && fake->n_finalized == 0);
    ops->close(transport);
}

static void a_rank_that_never_comes_ends_in_an_error(void **state)
{
    (void)state;
    fake->init_polls = FAKE_NEVER;
    check_overdue("joined");
}

static void a_rank_that_never_connects_ends_in_an_error(void **state)
{
    (void)state;
    fake->broadcast_polls = FAKE_NEVER;
    check_overdue("connected through");
}

static void a_first_broadcast_that_never_ends_is_an_error(void **state)
{
    (void)state;
    fake->event_result = WEIR_CUDA_NOT_READY;
    check_overdue("connected through");
}

static void a_rank_that_dies_while_joining_is_a_lost_peer(void **state)
{
    (void)state;
    weir_transport *transport = open_nccl(0);
    fake->init_polls = 2;
    fake->outcome = WEIR_NCCL_REMOTE_ERROR;
    fake->last_error = "connection closed";
    weir_group *group = open_group(transport, 1000);
    assert_int_equal(await_group(group), WEIR_ERR_PEER_LOST);
    assert_string_equal(weir_last_error(), "round of version 7: joining failed: NCCL says remote "
                                           "error (connection closed)");
    ops->group_close(group, true);
    assert_int_equal(fake->n_aborted, 1);
    ops->close(transport);
}

static void a_rank_that_dies_later_is_a_lost_peer(void **state)
{
    (void)state;
    char data[8];
    weir_transport *transport = open_nccl(0);
    weir_group *group = join_group(transport);
    fake->outcome = WEIR_NCCL_REMOTE_ERROR;
    assert_int_equal(ops->group_test(group), WEIR_ERR_PEER_LOST);
    assert_string_equal(weir_last_error(),
                        "round of version 7: the group broke: NCCL says remote error");
    fake->outcome = WEIR_NCCL_SUCCESS; /* a group that has failed stays failed */
    assert_int_equal(ops->group_test(group), WEIR_ERR_PEER_LOST);
    assert_int_equal(ops->group_broadcast(group, 0, &(weir_group_part){ data, 8 }, 1, NULL),
                     WEIR_ERR_PEER_LOST);
    ops->group_close(group, false);
    assert_true(fake->n_aborted == 1 && fake->n_finalized == 0);
    ops->close(transport);
}

static void what_cannot_be_joined_is_refused_and_leaves_nothing(void **state)
{
    (void)state;
    weir_transport *transport = open_nccl(0);
    weir_group *group = NULL;
    weir_group_options options = rank_one_of_three(0);
    fake->init_result = WEIR_NCCL_INVALID_USAGE;
    assert_int_equal(ops->group_open(transport, &options, &group), WEIR_ERR_UNSUPPORTED);
    assert_string_equal(weir_last_error(), "round of version 7: cannot join: NCCL says some error");
    options.rank = 3;
    assert_int_equal(ops->group_open(transport, &options, &group), WEIR_ERR_INVALID);
    options.n_ranks = 0;
    assert_int_equal(ops->group_open(transport, &options, &group), WEIR_ERR_INVALID);
    options = rank_one_of_three(0);
    options.key = NULL;
    assert_int_equal(ops->group_open(transport, &options, &group), WEIR_ERR_INVALID);
    assert_int_equal(ops->group_open(transport, NULL, &group), WEIR_ERR_INVALID);
    assert_int_equal(fake->n_inits, 1);
    assert_null(group);
    fake->init_result = 0;
    fake->broadcast_result = WEIR_NCCL_INTERNAL_ERROR;
    group = open_group(transport, 1000);
    assert_int_equal(await_group(group), WEIR_ERR_DEVICE);
    assert_non_null(strstr(weir_last_error(), "cannot connect"));
    ops->group_close(group, true);
    ops->close(transport);
}

static void a_broadcast_returns_once_it_is_queued(void **state)
{
    (void)state;
    char data[16], stream;
    weir_transport *transport = open_nccl(1);
    weir_group *group = join_group(transport);
    fake->broadcast_polls = 4100; /* past spinning */
    assert_int_equal(ops->group_broadcast(group, 2, &(weir_group_part){ data, 16 }, 1, &stream),
                     WEIR_OK);
    assert_int_equal(fake->polls_left, 0);
    assert_true(fake->root == 2 && fake->n_bytes == 16 && fake->device == 1);
    assert_ptr_equal(fake->data, data);
    assert_ptr_equal(fake->stream, &stream);
    assert_int_equal(fake_current(), 0);
    fake->broadcast_polls = 1;
    uint64_t before = weir_alloc_count();
    for (int i = 0; i < 200; i++)
        assert_int_equal(ops->group_broadcast(group, 0, &(weir_group_part){ data, 16 }, 1, &stream),
                         WEIR_OK);
    assert_int_equal(weir_alloc_count(), before);
    assert_int_equal(fake->n_broadcasts, 202);
    ops->group_close(group, false);
    ops->close(transport);
}

static void many_parts_are_queued_as_few_pieces_of_work(void **state)
{
    (void)state;
    static char data[100][16];
    weir_group_part parts[100];
    weir_transport *transport = open_nccl(1);
    weir_group *group = join_group(transport);
    for (size_t i = 0; i < 100; i++)
        parts[i] = (weir_group_part){ data[i], i == 7 ? 0 : 16 };
    int before = fake->n_broadcasts;
    assert_int_equal(ops->group_broadcast(group, 0, parts, 100, NULL), WEIR_OK);
    assert_int_equal(fake->n_broadcasts, before + 99); /* an empty part needs none */
    assert_int_equal(fake->n_groups, 4);
    assert_ptr_equal(fake->data, data[99]);
    ops->group_close(group, false);
    ops->close(transport);
}

static void a_broadcast_that_makes_no_sense_is_refused(void **state)
{
    (void)state;
    char data[16];
    weir_transport *transport = open_nccl(0);
    fake->init_polls = 1;
    weir_group *group = open_group(transport, 1000);
    assert_int_equal(ops->group_broadcast(group, 0, &(weir_group_part){ data, 16 }, 1, NULL),
                     WEIR_ERR_INVALID);
    assert_string_equal(weir_last_error(),
                        "round of version 7: a broadcast before all ranks have joined");
    assert_int_equal(await_group(group), WEIR_OK);
    assert_int_equal(ops->group_broadcast(group, 3, &(weir_group_part){ data, 16 }, 1, NULL),
                     WEIR_ERR_INVALID);
    assert_int_equal(ops->group_broadcast(group, 0, &(weir_group_part){ NULL, 16 }, 1, NULL),
                     WEIR_ERR_INVALID);
    assert_int_equal(ops->group_broadcast(group, 0, &(weir_group_part){ NULL, 0 }, 1, NULL),
                     WEIR_OK);
    assert_int_equal(fake->n_broadcasts, 1);
    ops->group_close(group, false); /* a refused call leaves the group good */
    assert_true(fake->n_finalized == 1 && fake->n_aborted == 1);
    ops->close(transport);
}

static void a_broadcast_that_is_never_queued_is_an_error(void **state)
{
    (void)state;
    char data[16];
    weir_transport *transport = open_nccl(0);
    weir_group *group = join_group(transport);
    ((nccl_group *)group)->timeout_ms = 30;
    fake->broadcast_polls = FAKE_NEVER;
    assert_int_equal(ops->group_broadcast(group, 0, &(weir_group_part){ data, 16 }, 1, NULL),
                     WEIR_ERR_TIMED_OUT);
    assert_string_equal(weir_last_error(), "round of version 7: a broadcast was not queued within "
                                           "0.0 s (this is rank 1 of 3)");
    assert_int_equal(ops->group_test(group), WEIR_ERR_TIMED_OUT);
    ops->group_close(group, true);
    ops->close(transport);
}

static void a_broadcast_that_fails_breaks_the_group(void **state)
{
    (void)state;
    char data[16];
    weir_transport *transport = open_nccl(0);
    weir_group *group = join_group(transport);
    fake->broadcast_polls = 3;
    fake->outcome = WEIR_NCCL_SYSTEM_ERROR;
    assert_int_equal(ops->group_broadcast(group, 0, &(weir_group_part){ data, 16 }, 1, NULL),
                     WEIR_ERR_PEER_LOST);
    assert_non_null(strstr(weir_last_error(), "round of version 7: a broadcast failed"));
    assert_int_equal(ops->group_test(group), WEIR_ERR_PEER_LOST);
    ops->group_close(group, false);
    assert_true(fake->n_aborted == 1 && fake->n_finalized == 0);
    ops->close(transport);
}

/* --- leaving -----------------------------------------------------------------------------------*/

static void leaving_finishes_what_is_queued_or_not_as_told(void **state)
{
    (void)state;
    weir_transport *transport = open_nccl(0);
    fake->finalize_polls = 4;
    ops->group_close(join_group(transport), false);
    assert_true(fake->n_finalized == 1 && fake->n_aborted == 1);
    reset_fake(NULL);
    ops->group_close(join_group(transport), true);
    assert_true(fake->n_finalized == 0 && fake->n_aborted == 1);
    reset_fake(NULL);
    fake->init_polls = FAKE_NEVER; /* who has not joined has nothing to finish */
    ops->group_close(open_group(transport, 1000), false);
    assert_true(fake->n_finalized == 0 && fake->n_aborted == 1);
    ops->group_close(NULL, true);
    ops->close(transport);
    ops->close(NULL);
}

static void what_does_not_finish_is_aborted(void **state)
{
    (void)state;
    weir_transport *transport = open_nccl(0);
    weir_group *group = join_group(transport);
    ((nccl_group *)group)->leave_ms = 100;
    fake->finalize_polls = FAKE_NEVER;
    ops->group_close(group, false);
    assert_true(fake->n_finalized == 1 && fake->n_aborted == 1);
    ops->close(transport);
}

static void leaving_begins_before_it_is_waited_for(void **state)
{
    (void)state;
    weir_transport *transport = open_nccl(0);
    weir_group *group = join_group(transport);
    fake->abort_holds = 1; /* for what another group has queued */
    uint64_t begun = weir_now_ns();
    ops->group_leave(group, true);
    ops->group_leave(group, true);
    assert_true(weir_now_ns() - begun < 5000000000ull);
    assert_int_equal(fake->n_aborted, 0);
    fake->abort_holds = 0;
    ops->group_close(group, true);
    assert_true(fake->n_finalized == 0 && fake->n_aborted == 1 && fake->n_open == 0);
    ops->close(transport);
}

static void leaving_in_peace_begins_before_it_is_waited_for(void **state)
{
    (void)state;
    weir_transport *transport = open_nccl(0);
    weir_group *group = join_group(transport);
    fake->finalize_polls = FAKE_NEVER;
    ops->group_leave(group, false);
    weir_deadline deadline = weir_deadline_in(5000);
    while (fake->n_finalized == 0 && !weir_deadline_passed(deadline))
        weir_sleep_ms(1);
    assert_true(fake->n_finalized == 1 && fake->n_aborted == 0);
    fake->polls_left = 0;
    ops->group_close(group, false);
    assert_true(fake->n_finalized == 1 && fake->n_aborted == 1 && fake->n_open == 0);
    ops->close(transport);
}

static void an_abort_that_hangs_is_left_to_a_thread(void **state)
{
    (void)state;
    weir_transport *transport = open_nccl(0);
    weir_group *group = join_group(transport);
    ((nccl_group *)group)->leave_ms = 50;
    fake->abort_holds = 1;
    uint64_t begun = weir_now_ns();
    ops->group_close(group, true);
    uint64_t took = weir_now_ns() - begun;
    assert_true(took > 40000000ull && took < 5000000000ull);
    ops->close(transport);
    assert_true(fake->n_aborted == 0 && fake->n_open == 3);
    fake->abort_holds = 0; /* once NCCL returns, everything is let go */
    for (int i = 0; i < 5000 && fake->n_open != 0; i++)
        weir_sleep_ms(1);
    assert_true(fake->n_aborted == 1 && fake->n_open == 0);
    weir_sleep_ms(20); /* for the thread to free the group */
}

/* The bound begins with leaving, not with closing. */
static void groups_that_hang_are_given_up_together(void **state)
{
    (void)state;
    weir_transport *transport = open_nccl(0);
    weir_group *groups[2] = { join_group(transport), join_group(transport) };
    fake->abort_holds = 1;
    uint64_t begun = weir_now_ns();
    for (int i = 0; i < 2; i++) {
        ((nccl_group *)groups[i])->leave_ms = 1000;
        ops->group_leave(groups[i], true);
    }
    for (int i = 0; i < 2; i++)
        ops->group_close(groups[i], true);
    assert_true(weir_now_ns() - begun < 1900000000ull);
    ops->close(transport);
    fake->abort_holds = 0;
    for (int i = 0; i < 5000 && fake->n_open != 0; i++)
        weir_sleep_ms(1);
    assert_true(fake->n_aborted == 2 && fake->n_open == 0);
    weir_sleep_ms(20); /* for the threads to free the groups */
}

static void running_out_of_memory_leaves_nothing(void **state)
{
    (void)state;
    weir_group_options options = rank_one_of_three(1000);
    for (uint64_t n = 1;; n++) {
        weir_transport *transport = NULL;
        weir_group *group = NULL;
        weir_alloc_fail_at(n);
        weir_status status = ops->open(NULL, &transport);
        if (status == WEIR_OK)
            status = ops->group_open(transport, &options, &group);
        weir_alloc_fail_at(0);
        ops->group_close(group, true);
        ops->close(transport);
        if (status == WEIR_OK) {
            assert_int_equal(n, 5);
            break;
        }
        assert_int_equal(status, WEIR_ERR_NO_MEMORY);
        assert_int_equal(fake->n_open, 0);
        assert_int_equal(fake->n_inits, 0);
    }
}

#define CASE(name) cmocka_unit_test_setup_teardown(name, reset_fake, check_fake)

int main(void)
{
    if (!use_fake())
        return 1;
    const struct CMUnitTest tests[] = {
        CASE(a_group_joins_without_blocking),
        CASE(the_config_is_laid_out_for_the_library),
        CASE(a_rank_that_never_comes_ends_in_an_error),
        CASE(a_rank_that_never_connects_ends_in_an_error),
        CASE(a_first_broadcast_that_never_ends_is_an_error),
        CASE(a_rank_that_dies_while_joining_is_a_lost_peer),
        CASE(a_rank_that_dies_later_is_a_lost_peer),
        CASE(what_cannot_be_joined_is_refused_and_leaves_nothing),
        CASE(a_broadcast_returns_once_it_is_queued),
        CASE(many_parts_are_queued_as_few_pieces_of_work),
        CASE(a_broadcast_that_makes_no_sense_is_refused),
        CASE(a_broadcast_that_is_never_queued_is_an_error),
        CASE(a_broadcast_that_fails_breaks_the_group),
        CASE(leaving_finishes_what_is_queued_or_not_as_told),
        CASE(what_does_not_finish_is_aborted),
        CASE(leaving_begins_before_it_is_waited_for),
        CASE(leaving_in_peace_begins_before_it_is_waited_for),
        CASE(an_abort_that_hangs_is_left_to_a_thread),
        CASE(groups_that_hang_are_given_up_together),
        CASE(running_out_of_memory_leaves_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
