/* SPDX-License-Identifier: Apache-2.0 */
/* test_credits.c - who may read which group of a window, and when its buffers are free. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "base/error.h"
#include "refit/credits.h"

#define SECOND_NS ((uint64_t)1000000000)

/* Two workers; group 1 is of worker 0 alone, all else of both. */
#define N_GROUPS 6u
static const unsigned char reads[(N_GROUPS + 1) * 2] = { 1, 1, 1, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1 };

static void open_credits(weir_credits *credits, uint32_t n_buffers)
{
    *credits = (weir_credits){ 0 };
    assert_int_equal(weir_credits_open(credits, N_GROUPS, 2, n_buffers, reads), WEIR_OK);
    weir_credits_reset(credits);
}

static weir_group_state ask_at(weir_credits *credits, const char *reader, uint32_t worker,
                               uint32_t group, uint32_t round, uint64_t now_ns)
{
    weir_group_ask ask = {
        .reader = reader, .worker = worker, .group = group, .round = round, .gave_up = ""
    };
    weir_group_state state;
    assert_int_equal(weir_credits_ask(credits, &ask, now_ns, &state), WEIR_OK);
    return state;
}

static weir_group_state ask(weir_credits *credits, const char *reader, uint32_t worker,
                            uint32_t group)
{
    return ask_at(credits, reader, worker, group, 0, 0);
}

static void give_up(weir_credits *credits, const char *reader, const char *why)
{
    weir_group_ask word = { .reader = reader, .gave_up = why };
    weir_group_state state;
    assert_int_equal(weir_credits_ask(credits, &word, 0, &state), WEIR_OK);
}

static void make(weir_credits *credits, uint32_t group)
{
    weir_credits_fill(credits, group);
    weir_credits_made(credits);
}

static bool passed(const weir_credits *credits, uint32_t group)
{
    weir_credit_gap gap;
    return weir_credits_passed(credits, group, &gap);
}

static void test_a_buffer_is_free_when_its_group_was_read_by_all(void **state)
{
    (void)state;
    weir_credits credits;
    open_credits(&credits, 4);
    weir_credits_begin(&credits, 1, 0);
    for (uint32_t g = 0; g < 4; g++)
        make(&credits, g);
    assert_int_equal(ask(&credits, "a", 0, 0), WEIR_GROUP_READY);
    assert_int_equal(ask(&credits, "b", 1, 0), WEIR_GROUP_READY);
    assert_false(passed(&credits, 0)); /* both are in the midst of it */
    assert_int_equal(ask(&credits, "a", 0, 1), WEIR_GROUP_READY);
    assert_false(passed(&credits, 0));
    assert_int_equal(ask(&credits, "b", 1, 2), WEIR_GROUP_READY); /* none of group 1 is its own */
    assert_true(passed(&credits, 0));
    assert_false(passed(&credits, 1)); /* which worker 0 alone reads */
    make(&credits, 4);
    assert_int_equal(ask(&credits, "a", 0, 2), WEIR_GROUP_READY);
    assert_true(passed(&credits, 1));
    assert_false(passed(&credits, 2));
    weir_credits_close(&credits);
}

static void test_six_groups_through_four_buffers_end_with_four_finishes(void **state)
{
    (void)state;
    weir_credits credits;
    open_credits(&credits, 4);
    weir_credits_begin(&credits, 1, 0);
    for (uint32_t g = 0; g < N_GROUPS; g++) {
        if (g >= 4) {
            assert_false(passed(&credits, g - 4));
            ask(&credits, "a", 0, g - 3);
            ask(&credits, "b", 1, g - 3);
            assert_true(passed(&credits, g - 4));
        }
        assert_int_equal(ask(&credits, "a", 0, g), WEIR_GROUP_WAIT);
        ask(&credits, "a", 0, g >= 4 ? g - 3 : 0);
        make(&credits, g);
    }
    for (uint32_t g = 2; g < N_GROUPS; g++) { /* 2 to 5 are still there */
        assert_false(passed(&credits, g));
        assert_int_equal(ask(&credits, "a", 0, g), WEIR_GROUP_READY);
        ask(&credits, "a", 0, g + 1);
        ask(&credits, "b", 1, g + 1);
        assert_true(passed(&credits, g));
    }
    assert_true(passed(&credits, N_GROUPS));
    weir_credits_close(&credits);
}

static void test_readers_that_are_missing_are_counted(void **state)
{
    (void)state;
    weir_credits credits;
    weir_credit_gap gap;
    open_credits(&credits, 2);
    weir_credits_begin(&credits, 2, 0);
    make(&credits, 0);
    ask(&credits, "a0", 0, 2);
    ask(&credits, "b0", 0, 2);
    ask(&credits, "a1", 1, 2);
    assert_false(weir_credits_passed(&credits, 0, &gap));
    assert_null(gap.reader);
    assert_int_equal(gap.worker, 1);
    assert_int_equal(gap.n_there, 1);
    ask(&credits, "b1", 1, 0);
    assert_false(weir_credits_passed(&credits, 0, &gap));
    assert_string_equal(gap.reader->id, "b1");
    ask(&credits, "b1", 1, 2);
    assert_true(weir_credits_passed(&credits, 0, &gap));
    weir_credits_close(&credits);
}

static void test_more_readers_than_asked_for_count_when_they_come_in_time(void **state)
{
    (void)state;
    weir_credits credits;
    open_credits(&credits, 2);
    weir_credits_begin(&credits, 1, 0);
    make(&credits, 0);
    make(&credits, 1);
    ask(&credits, "a", 0, 1);
    ask(&credits, "b", 1, 2);
    assert_int_equal(ask(&credits, "more", 0, 0), WEIR_GROUP_READY);
    assert_false(passed(&credits, 0));
    ask(&credits, "more", 0, 1);
    assert_true(passed(&credits, 0));
    make(&credits, 2);
    assert_int_equal(ask(&credits, "late", 0, 0), WEIR_GROUP_GONE);
    assert_true(passed(&credits, 0)); /* who came too late is not waited for */
    assert_int_equal(credits.n_readers, 3);
    weir_credits_close(&credits);
}

static void test_a_reader_that_gives_up_is_lost_once_none_can_take_its_place(void **state)
{
    (void)state;
    weir_credits credits;
    open_credits(&credits, 1);
    weir_credits_begin(&credits, 1, 0);
    make(&credits, 0);
    ask(&credits, "a", 0, 1);
    ask(&credits, "b", 1, 0);
    give_up(&credits, "b", "disk\nfull");
    assert_null(weir_credits_lost(&credits)); /* group 0 is there for another */
    ask(&credits, "b2", 1, 2);
    make(&credits, 1);
    assert_null(weir_credits_lost(&credits)); /* which has come */
    give_up(&credits, "a", "digest differs");
    const weir_reader *lost = weir_credits_lost(&credits);
    assert_non_null(lost);
    assert_string_equal(lost->id, "a");
    assert_string_equal(lost->why, "digest differs");
    give_up(&credits, "nobody", "was never there");
    assert_int_equal(credits.n_readers, 3);
    assert_string_equal(credits.readers[1].why, "disk full"); /* one line */
    weir_credits_close(&credits);
}

static void test_a_failed_round_is_off_for_those_in_it_and_may_be_followed_by_another(void **state)
{
    (void)state;
    weir_credits credits;
    open_credits(&credits, 1);
    assert_int_equal(ask(&credits, "early", 0, 0), WEIR_GROUP_WAIT);
    weir_credits_begin(&credits, 1, 0);
    make(&credits, 0);
    assert_int_equal(ask_at(&credits, "early", 0, 0, credits.round, 0), WEIR_GROUP_READY);
    assert_int_equal(ask_at(&credits, "b", 1, N_GROUPS, credits.round, 0), WEIR_GROUP_READY);
    uint32_t first_round = credits.round;
    weir_credits_end(&credits, "a weight is NaN");
    assert_int_equal(ask_at(&credits, "early", 0, 1, first_round, 0), WEIR_GROUP_OFF);
    assert_string_equal(credits.why, "a weight is NaN");
    assert_int_equal(ask(&credits, "early", 0, 0), WEIR_GROUP_WAIT); /* it joins anew */
    weir_credits_begin(&credits, 1, 0);
    assert_int_equal(ask_at(&credits, "early", 0, 1, first_round, 0), WEIR_GROUP_OFF);
    for (uint32_t g = 0; g < N_GROUPS; g++) {
        make(&credits, g);
        ask(&credits, "early", 0, g + 1);
    }
    assert_true(passed(&credits, N_GROUPS)); /* b has had it all since the first round */
    weir_credits_end(&credits, NULL);
    assert_int_equal(ask(&credits, "late", 0, 0), WEIR_GROUP_WAIT); /* for a round after this one */
    assert_string_equal(credits.undone, "");
    weir_credits_withdraw(&credits, "all hold it");
    assert_int_equal(ask(&credits, "late", 0, 0), WEIR_GROUP_GONE);
    weir_credits_close(&credits);
}

static void test_a_round_begins_without_those_that_were_not_seen_for_long(void **state)
{
    (void)state;
    weir_credits credits;
    open_credits(&credits, 2);
    ask_at(&credits, "dead", 0, 0, 0, SECOND_NS);
    ask_at(&credits, "alive", 0, 0, 0, 9 * SECOND_NS);
    weir_credits_begin(&credits, 1, 10 * SECOND_NS);
    assert_int_equal(credits.n_readers, 1);
    assert_string_equal(credits.readers[0].id, "alive");
    weir_credits_close(&credits);
}

static void test_engines_are_ready_when_all_their_workers_are(void **state)
{
    (void)state;
    weir_credits credits;
    open_credits(&credits, 2);
    assert_int_equal(weir_credits_ready(&credits, SECOND_NS), 0);
    ask_at(&credits, "a0", 0, 0, 0, 9 * SECOND_NS);
    ask_at(&credits, "b0", 0, 0, 0, 9 * SECOND_NS);
    ask_at(&credits, "a1", 1, 0, 0, 9 * SECOND_NS);
    assert_int_equal(weir_credits_ready(&credits, 10 * SECOND_NS), 1);
    ask_at(&credits, "b1", 1, 0, 0, 9 * SECOND_NS);
    assert_int_equal(weir_credits_ready(&credits, 10 * SECOND_NS), 2);
    give_up(&credits, "b0", "it was killed");
    assert_int_equal(weir_credits_ready(&credits, 10 * SECOND_NS), 1);
    assert_int_equal(weir_credits_ready(&credits, 20 * SECOND_NS), 0);
    weir_credits_close(&credits);
}

static void test_of_a_failed_round_those_are_there_who_come_again(void **state)
{
    (void)state;
    weir_credits credits;
    open_credits(&credits, 2);
    ask_at(&credits, "a0", 0, 0, 0, 9 * SECOND_NS);
    ask_at(&credits, "a1", 1, 0, 0, 9 * SECOND_NS);
    weir_credits_begin(&credits, 1, 9 * SECOND_NS);
    make(&credits, 0);
    ask_at(&credits, "a1", 1, N_GROUPS, credits.round, 9 * SECOND_NS); /* has it all */
    weir_credits_end(&credits, "a0 is silent");
    assert_int_equal(weir_credits_ready(&credits, 9 * SECOND_NS), 0);
    ask_at(&credits, "a0", 0, 0, 0, 10 * SECOND_NS);
    assert_int_equal(weir_credits_ready(&credits, 10 * SECOND_NS), 1);
    weir_credits_close(&credits);
}

static void test_a_reader_that_is_started_anew_stands_in_its_own_place(void **state)
{
    (void)state;
    weir_credits credits;
    weir_credit_gap gap;
    open_credits(&credits, 2);
    weir_credits_begin(&credits, 1, 0);
    ask_at(&credits, "s-dp0-0000000a", 0, N_GROUPS, credits.round, 0);
    ask_at(&credits, "s-dp0-0000000b", 1, N_GROUPS, credits.round, 0);
    ask_at(&credits, "t-dp0-0000000c", 1, N_GROUPS, credits.round, 0);
    assert_true(weir_credits_passed(&credits, N_GROUPS, &gap));
    ask_at(&credits, "s-dp0-0000000d", 0, 0, credits.round, 0);
    assert_false(weir_credits_passed(&credits, N_GROUPS, &gap));
    assert_string_equal(gap.reader->id, "s-dp0-0000000d");
    assert_false(credits.readers[1].left || credits.readers[2].left);
    assert_true(credits.readers[0].left);
    weir_credits_close(&credits);
}

static void end_well(weir_credits *credits)
{
    weir_credits_begin(credits, 1, 0);
    ask_at(credits, "s-dp0-0000000a", 0, N_GROUPS, credits->round, 0);
    ask_at(credits, "s-dp0-0000000b", 1, N_GROUPS, credits->round, 0);
    weir_credits_end(credits, NULL);
    assert_string_equal(credits->undone, "");
}

static void test_who_has_it_all_and_fails_undoes_the_round(void **state)
{
    (void)state;
    weir_credits credits;
    open_credits(&credits, 2);
    end_well(&credits);
    ask(&credits, "t-dp0-0000000c", 0, 0); /* somebody else */
    assert_string_equal(credits.undone, "");
    give_up(&credits, "s-dp0-0000000a", "its engine refuses it");
    assert_string_equal(credits.undone, "s-dp0-0000000a");
    end_well(&credits);
    ask(&credits, "s-dp0-0000000b", 1, 0); /* it went back, and comes again */
    assert_string_equal(credits.undone, "s-dp0-0000000b");
    end_well(&credits);
    ask(&credits, "s-dp0-0000000d", 0, 0); /* it was killed, and started anew */
    assert_string_equal(credits.undone, "s-dp0-0000000a");
    weir_credits_close(&credits);
}

static void test_a_holder_that_is_started_anew_ends_a_broadcast(void **state)
{
    (void)state;
    weir_credits credits;
    open_credits(&credits, 2);
    end_well(&credits);
    credits.casts = true;
    weir_credits_begin(&credits, 1, 0);
    assert_null(weir_credits_lost(&credits));
    assert_int_equal(ask(&credits, "s-dp0-0000000d", 0, 0), WEIR_GROUP_WAIT);
    assert_non_null(weir_credits_lost(&credits));
    assert_string_equal(weir_credits_lost(&credits)->id, "s-dp0-0000000a");
    assert_string_equal(weir_credits_lost(&credits)->why, "it was started anew");
    weir_credits_end(&credits, "a was started anew");
    weir_credits_begin(&credits, 1, 0);
    assert_int_equal(ask(&credits, "s-dp0-0000000b", 1, 0), WEIR_GROUP_WAIT); /* it went back */
    assert_string_equal(weir_credits_lost(&credits)->id, "s-dp0-0000000b");
    assert_string_equal(weir_credits_lost(&credits)->why,
                        "it had all of it, and comes for it again");
    weir_credits_close(&credits);
}

static void test_a_version_that_was_withdrawn_is_over_for_all(void **state)
{
    (void)state;
    weir_credits credits;
    open_credits(&credits, 2);
    weir_credits_begin(&credits, 1, 0);
    make(&credits, 0);
    ask_at(&credits, "a", 0, 0, credits.round, 0);
    weir_credits_withdraw(&credits, "there is a newer one");
    assert_int_equal(ask_at(&credits, "a", 0, 1, credits.round, 0), WEIR_GROUP_OFF);
    assert_string_equal(credits.why, "there is a newer one");
    assert_int_equal(ask(&credits, "b", 1, 0), WEIR_GROUP_GONE);
    weir_credits_reset(&credits);
    assert_int_equal(ask(&credits, "b", 1, 0), WEIR_GROUP_WAIT);
    weir_credits_close(&credits);
}

static void expect_refused(weir_credits *credits, const char *reader, uint32_t worker,
                           uint32_t group, const char *line)
{
    weir_group_ask wrong = { .reader = reader, .worker = worker, .group = group };
    weir_group_state state;
    assert_int_equal(weir_credits_ask(credits, &wrong, 0, &state), WEIR_ERR_INVALID);
    assert_non_null(strstr(weir_last_error(), line));
    assert_int_equal(credits->n_readers, 0);
}

static void test_what_no_reader_says_is_refused(void **state)
{
    (void)state;
    char name[WEIR_NAME_BYTES + 1];
    weir_credits credits;
    open_credits(&credits, 2);
    memset(name, 'x', WEIR_NAME_BYTES);
    name[WEIR_NAME_BYTES] = '\0';
    expect_refused(&credits, "", 0, 0, "a name of 0 bytes");
    expect_refused(&credits, name, 0, 0, "a name of 256 bytes");
    expect_refused(&credits, "a", 2, 0, "worker 2 of an engine of 2");
    expect_refused(&credits, "a", 0, N_GROUPS + 1, "group 7 of 6");
    weir_credits_close(&credits);
}

static void test_progress_grows_with_every_step_of_a_reader(void **state)
{
    (void)state;
    weir_credits credits;
    open_credits(&credits, 2);
    weir_credits_begin(&credits, 1, 0);
    uint64_t before = weir_credits_progress(&credits);
    make(&credits, 0);
    assert_true(weir_credits_progress(&credits) > before);
    before = weir_credits_progress(&credits);
    ask(&credits, "a", 0, 0);
    ask(&credits, "b", 1, 3);                                  /* its part begins there */
    assert_int_equal(weir_credits_progress(&credits), before); /* coming is none */
    ask(&credits, "a", 0, 1);
    assert_int_equal(weir_credits_progress(&credits), before + 1);
    ask(&credits, "a", 0, 1);
    assert_int_equal(weir_credits_progress(&credits), before + 1); /* nor is asking again */
    ask(&credits, "b", 1, 5);
    assert_int_equal(weir_credits_progress(&credits), before + 3);
    weir_credits_close(&credits);
}

static void test_of_groups_that_are_broadcast_only_members_make_progress(void **state)
{
    (void)state;
    weir_credits credits;
    open_credits(&credits, 2);
    credits.casts = true;
    ask(&credits, "a", 0, 0);
    weir_credits_begin(&credits, 1, 0);
    uint64_t before = weir_credits_progress(&credits);
    ask(&credits, "late", 0, 0);
    ask(&credits, "late", 0, 4);
    assert_int_equal(weir_credits_progress(&credits), before);
    ask_at(&credits, "a", 0, 0, credits.round, 0);
    assert_true(weir_credits_progress(&credits) > before);
    weir_credits_close(&credits);
}

/* ---- groups that are broadcast ---------------------------------------------------------------*/

static weir_group_state ask_fresh(weir_credits *credits, const char *reader, uint32_t worker,
                                  uint32_t round)
{
    weir_group_ask ask = { .reader = reader, .worker = worker, .round = round, .fresh = true };
    weir_group_state state;
    assert_int_equal(weir_credits_ask(credits, &ask, 0, &state), WEIR_OK);
    return state;
}

/* One reader of each worker waits. */
static void open_cast(weir_credits *credits)
{
    open_credits(credits, 2);
    credits->casts = true;
    assert_int_equal(ask_fresh(credits, "a", 0, 0), WEIR_GROUP_WAIT);
    assert_int_equal(ask_fresh(credits, "b", 1, 0), WEIR_GROUP_WAIT);
}

static void test_a_round_begins_when_all_workers_have_come(void **state)
{
    (void)state;
    weir_credits credits;
    weir_credit_gap gap;
    open_cast(&credits);
    assert_true(weir_credits_gathered(&credits, 1, 0, &gap));
    assert_false(weir_credits_gathered(&credits, 2, 0, &gap));
    assert_int_equal(gap.worker, 0);
    assert_int_equal(gap.n_there, 1);
    ask_fresh(&credits, "c", 0, 0);
    assert_false(weir_credits_gathered(&credits, 2, 0, &gap));
    assert_int_equal(gap.worker, 1);
    assert_false(weir_credits_gathered(&credits, 1, 3 * SECOND_NS, &gap)); /* who asks no more */
    assert_int_equal(gap.n_there, 0);
    assert_null(weir_credits_member(&credits, "a")); /* there is no round */
    weir_credits_begin(&credits, 1, 0);
    assert_non_null(weir_credits_member(&credits, "a"));
    assert_non_null(weir_credits_member(&credits, "c")); /* all who are there */
    assert_null(weir_credits_member(&credits, "d"));
    weir_credits_close(&credits);
}

static void test_nothing_of_a_member_is_gone_and_who_comes_later_is_late(void **state)
{
    (void)state;
    weir_credits credits;
    open_cast(&credits);
    weir_credits_begin(&credits, 1, 0);
    assert_int_equal(ask_at(&credits, "a", 0, 0, 1, 0), WEIR_GROUP_WAIT);
    for (uint32_t g = 0; g < 5; g++)
        weir_credits_made(&credits);
    assert_int_equal(ask_at(&credits, "a", 0, 0, 1, 0), WEIR_GROUP_READY); /* two buffers */
    assert_int_equal(ask_at(&credits, "a", 0, 4, 1, 0), WEIR_GROUP_READY);
    assert_int_equal(ask_at(&credits, "a", 0, 5, 1, 0), WEIR_GROUP_WAIT);
    assert_int_equal(ask_at(&credits, "b", 1, 0, 0, 0), WEIR_GROUP_WAIT); /* has not heard of it */
    assert_int_equal(ask(&credits, "late", 0, 0), WEIR_GROUP_WAIT);
    assert_int_equal(ask(&credits, "late", 0, 5), WEIR_GROUP_WAIT);
    assert_null(weir_credits_member(&credits, "late"));
    weir_credits_close(&credits);
}

static void test_who_is_left_out_is_told_as_long_as_the_round_can_end_well(void **state)
{
    (void)state;
    weir_credits credits;
    open_cast(&credits);
    assert_false(weir_credits_left_out(&credits, "nobody")); /* there is no round */
    weir_credits_begin(&credits, 1, 0);
    assert_true(weir_credits_left_out(&credits, "nobody"));
    assert_int_equal(ask(&credits, "late", 0, 0), WEIR_GROUP_WAIT);
    assert_true(weir_credits_left_out(&credits, "late"));
    assert_false(weir_credits_left_out(&credits, "a"));
    give_up(&credits, "a", "no more disk");
    assert_false(weir_credits_left_out(&credits, "late")); /* another one is about to begin */
    weir_credits_end(&credits, "a gave up");
    assert_false(weir_credits_left_out(&credits, "late"));
    weir_credits_close(&credits);
}

static void test_members_say_themselves_that_they_stand_in_their_groups(void **state)
{
    (void)state;
    weir_credits credits;
    open_cast(&credits);
    weir_credits_begin(&credits, 1, 0);
    ask_fresh(&credits, "a", 0, 1); /* it is about to join */
    assert_string_equal(weir_credits_outside(&credits)->id, "a");
    uint64_t before = weir_credits_progress(&credits);
    assert_int_equal(ask_at(&credits, "a", 0, 0, 1, 0), WEIR_GROUP_WAIT);
    assert_true(weir_credits_progress(&credits) > before);
    assert_string_equal(weir_credits_outside(&credits)->id, "b");
    ask_at(&credits, "b", 1, 0, 1, 0);
    assert_null(weir_credits_outside(&credits));
    weir_credits_close(&credits);
}

static void test_a_member_that_leaves_ends_the_round_at_once(void **state)
{
    (void)state;
    weir_credits credits;
    open_cast(&credits);
    ask_fresh(&credits, "gone", 0, 0);
    give_up(&credits, "gone", "before it began");
    weir_credits_begin(&credits, 1, 0);
    assert_null(weir_credits_lost(&credits));
    give_up(&credits, "b", "no more disk");
    assert_string_equal(weir_credits_lost(&credits)->id, "b");
    assert_int_equal(ask_at(&credits, "b", 1, 0, 1, 0), WEIR_GROUP_OFF);
    assert_string_equal(weir_credits_lost(&credits)->id, "b");   /* asking makes nothing good */
    assert_int_equal(ask(&credits, "b", 1, 0), WEIR_GROUP_WAIT); /* for the next */
    assert_string_equal(weir_credits_lost(&credits)->id, "b");
    weir_credits_end(&credits, "b gave up");
    assert_int_equal(ask_at(&credits, "a", 0, 0, 1, 0), WEIR_GROUP_OFF);
    assert_string_equal(credits.why, "b gave up");
    weir_credits_close(&credits);
}

/* Another rank may have it in a round of its own, which waits for it. */
static void test_who_was_in_a_round_that_failed_hears_so_though_it_had_not_begun(void **state)
{
    (void)state;
    weir_credits credits;
    open_cast(&credits);
    weir_credits_begin(&credits, 1, 0);
    ask_fresh(&credits, "late", 1, 0);
    assert_int_equal(ask_fresh(&credits, "b", 1, credits.round), WEIR_GROUP_WAIT);
    give_up(&credits, "b", "it is in no other round");
    weir_credits_end(&credits, "b gave up");
    assert_int_equal(ask_fresh(&credits, "late", 1, 0), WEIR_GROUP_WAIT);
    assert_int_equal(ask_fresh(&credits, "b", 1, 0), WEIR_GROUP_WAIT); /* it knows */
    assert_int_equal(ask_fresh(&credits, "b", 1, 0), WEIR_GROUP_WAIT);
    assert_int_equal(ask_fresh(&credits, "a", 0, 0), WEIR_GROUP_OFF);
    assert_string_equal(credits.why, "b gave up");
    give_up(&credits, "a", "it is off");
    assert_int_equal(ask_fresh(&credits, "a", 0, 0), WEIR_GROUP_WAIT); /* for the next one */
    assert_int_equal(ask_fresh(&credits, "a", 0, 0), WEIR_GROUP_WAIT);
    weir_credits_begin(&credits, 1, 0);
    assert_non_null(weir_credits_member(&credits, "a"));
    assert_non_null(weir_credits_member(&credits, "b"));
    weir_credits_close(&credits);
}

static void test_a_member_that_begins_anew_has_left(void **state)
{
    (void)state;
    weir_credits credits;
    open_cast(&credits);
    weir_credits_begin(&credits, 1, 0);
    ask_fresh(&credits, "a", 0, 0); /* the answer was lost */
    assert_null(weir_credits_lost(&credits));
    ask_at(&credits, "a", 0, 0, 1, 0);
    assert_int_equal(ask_fresh(&credits, "a", 0, 0), WEIR_GROUP_WAIT);
    assert_string_equal(weir_credits_lost(&credits)->id, "a");
    assert_non_null(strstr(weir_credits_lost(&credits)->why, "begun anew"));
    weir_credits_close(&credits);
}

static void test_who_holds_the_version_counts_and_is_sent_nothing(void **state)
{
    (void)state;
    weir_credits credits;
    weir_credit_gap gap;
    open_cast(&credits);
    weir_credits_begin(&credits, 1, 0);
    for (uint32_t g = 0; g < N_GROUPS; g++)
        weir_credits_made(&credits);
    assert_int_equal(ask_at(&credits, "a", 0, N_GROUPS, 1, 0), WEIR_GROUP_READY);
    give_up(&credits, "b", "it failed at the end");
    weir_credits_end(&credits, "b gave up");
    ask_fresh(&credits, "b", 1, 0);
    assert_true(weir_credits_gathered(&credits, 1, 0, &gap));
    weir_credits_begin(&credits, 1, 0);
    assert_null(weir_credits_member(&credits, "a"));
    assert_non_null(weir_credits_member(&credits, "b"));
    assert_false(passed(&credits, N_GROUPS));
    ask_at(&credits, "b", 1, N_GROUPS, 2, 0);
    assert_true(passed(&credits, N_GROUPS));
    weir_credits_end(&credits, NULL);
    assert_int_equal(ask_at(&credits, "b", 1, N_GROUPS, 2, 0), WEIR_GROUP_READY);
    assert_int_equal(ask(&credits, "late", 0, 0), WEIR_GROUP_WAIT);
    weir_credits_close(&credits);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_buffer_is_free_when_its_group_was_read_by_all),
        cmocka_unit_test(test_six_groups_through_four_buffers_end_with_four_finishes),
        cmocka_unit_test(test_readers_that_are_missing_are_counted),
        cmocka_unit_test(test_more_readers_than_asked_for_count_when_they_come_in_time),
        cmocka_unit_test(test_a_reader_that_gives_up_is_lost_once_none_can_take_its_place),
        cmocka_unit_test(test_a_failed_round_is_off_for_those_in_it_and_may_be_followed_by_another),
        cmocka_unit_test(test_a_round_begins_without_those_that_were_not_seen_for_long),
        cmocka_unit_test(test_engines_are_ready_when_all_their_workers_are),
        cmocka_unit_test(test_of_a_failed_round_those_are_there_who_come_again),
        cmocka_unit_test(test_a_reader_that_is_started_anew_stands_in_its_own_place),
        cmocka_unit_test(test_who_has_it_all_and_fails_undoes_the_round),
        cmocka_unit_test(test_a_holder_that_is_started_anew_ends_a_broadcast),
        cmocka_unit_test(test_a_version_that_was_withdrawn_is_over_for_all),
        cmocka_unit_test(test_what_no_reader_says_is_refused),
        cmocka_unit_test(test_progress_grows_with_every_step_of_a_reader),
        cmocka_unit_test(test_of_groups_that_are_broadcast_only_members_make_progress),
        cmocka_unit_test(test_a_round_begins_when_all_workers_have_come),
        cmocka_unit_test(test_nothing_of_a_member_is_gone_and_who_comes_later_is_late),
        cmocka_unit_test(test_who_is_left_out_is_told_as_long_as_the_round_can_end_well),
        cmocka_unit_test(test_members_say_themselves_that_they_stand_in_their_groups),
        cmocka_unit_test(test_a_member_that_leaves_ends_the_round_at_once),
        cmocka_unit_test(test_who_was_in_a_round_that_failed_hears_so_though_it_had_not_begun),
        cmocka_unit_test(test_a_member_that_begins_anew_has_left),
        cmocka_unit_test(test_who_holds_the_version_counts_and_is_sent_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
