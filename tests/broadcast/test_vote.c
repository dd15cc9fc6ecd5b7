/* SPDX-License-Identifier: Apache-2.0 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <pthread.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "broadcast/vote.h"

#define WORKERS 3
#define LONG_MS 10000u

/* One worker's round: what it says in each ballot, and what it hears. */
typedef struct member {
    weir_vote *vote;
    uint32_t index;
    unsigned late_ms;
    uint64_t version;
    bool skips_changed, is_direct;
    weir_status says[WEIR_N_BALLOTS], heard[WEIR_N_BALLOTS];
} member;

static void *vote_through(void *context)
{
    member *m = context;
    weir_status verdict = WEIR_OK;
    if (m->late_ms != 0)
        weir_sleep_ms(m->late_ms);
    for (int ballot = 0; ballot <= WEIR_BALLOT_TAKEN && verdict == WEIR_OK; ballot++) {
        m->heard[ballot] = WEIR_IN_PROGRESS;
        if (ballot == WEIR_BALLOT_CHANGED && m->skips_changed)
            continue;
        verdict =
            weir_vote_cast(m->vote, m->index, (weir_ballot)ballot, m->version, m->says[ballot]);
        m->heard[ballot] = verdict;
    }
    if (m->is_direct && verdict != WEIR_OK)
        m->heard[WEIR_BALLOT_UNTOUCHED] = weir_vote_cast(
            m->vote, m->index, WEIR_BALLOT_UNTOUCHED, m->version, m->says[WEIR_BALLOT_UNTOUCHED]);
    weir_vote_leave(m->vote, m->index, verdict);
    return NULL;
}

/* All but the first `n_absent` of them. */
static void vote_all(weir_vote *vote, member members[WORKERS], uint32_t n_absent)
{
    pthread_t threads[WORKERS];
    for (uint32_t i = n_absent; i < WORKERS; i++) {
        members[i].vote = vote;
        members[i].index = i;
        assert_int_equal(pthread_create(&threads[i], NULL, vote_through, &members[i]), 0);
    }
    for (uint32_t i = n_absent; i < WORKERS; i++)
        pthread_join(threads[i], NULL);
}

static void expect(const member members[WORKERS], uint32_t from, weir_ballot ballot,
                   weir_status verdict)
{
    for (uint32_t i = from; i < WORKERS; i++)
        assert_int_equal(members[i].heard[ballot], verdict);
}

static void all_hear_ok_when_all_have_said_so_in_every_round(void **state)
{
    (void)state;
    weir_vote *vote;
    assert_int_equal(weir_vote_open(WORKERS, &vote), WEIR_OK);
    for (int round = 0; round < 20; round++) {
        member members[WORKERS] = { { .version = 7 }, { .version = 7 }, { .version = 7 } };
        for (int i = 0; i < WORKERS; i++)
            members[i].skips_changed = round % 2 == 1; /* an engine without that hook */
        weir_vote_begin(vote, LONG_MS, LONG_MS);
        vote_all(vote, members, 0);
        expect(members, 0, WEIR_BALLOT_LANDED, WEIR_OK);
        expect(members, 0, WEIR_BALLOT_TAKEN, WEIR_OK);
        assert_int_equal(weir_vote_culprit(vote), WEIR_NO_CULPRIT);
        assert_false(weir_vote_stop(vote, WEIR_ERR_CANCELLED));
    }
    weir_vote_close(vote);
}

static void one_failure_is_everybodys_and_has_a_culprit(void **state)
{
    (void)state;
    for (int ballot = 0; ballot <= WEIR_BALLOT_TAKEN; ballot++) {
        weir_vote *vote;
        member members[WORKERS] = { { .version = 7 }, { .version = 7 }, { .version = 7 } };
        members[1].says[ballot] = WEIR_ERR_CORRUPT;
        assert_int_equal(weir_vote_open(WORKERS, &vote), WEIR_OK);
        weir_vote_begin(vote, LONG_MS, LONG_MS);
        vote_all(vote, members, 0);
        for (int before = 0; before < ballot; before++)
            expect(members, 0, (weir_ballot)before, WEIR_OK);
        expect(members, 0, (weir_ballot)ballot, WEIR_ERR_CORRUPT);
        assert_int_equal(weir_vote_culprit(vote), 1);
        assert_int_equal(weir_vote_stop(vote, WEIR_ERR_CANCELLED), ballot == WEIR_BALLOT_LANDED);
        weir_vote_close(vote);
    }
}

static void who_fails_is_not_waited_for_in_what_it_leaves_out(void **state)
{
    (void)state;
    weir_vote *vote;
    member members[WORKERS] = { { .version = 7 }, { .version = 7 }, { .version = 7 } };
    members[2].skips_changed = true; /* it did not get that far */
    members[2].says[WEIR_BALLOT_TAKEN] = WEIR_ERR_DEVICE;
    assert_int_equal(weir_vote_open(WORKERS, &vote), WEIR_OK);
    weir_vote_begin(vote, LONG_MS, LONG_MS);
    uint64_t begun_ns = weir_now_ns();
    vote_all(vote, members, 0);
    assert_true(weir_now_ns() - begun_ns < LONG_MS / 2 * 1000000ull);
    for (int i = 0; i < 2; i++)
        assert_int_equal(members[i].heard[WEIR_BALLOT_CHANGED], WEIR_ERR_DEVICE);
    assert_int_equal(members[2].heard[WEIR_BALLOT_TAKEN], WEIR_ERR_DEVICE);
    weir_vote_close(vote);
}

static void different_versions_are_refused(void **state)
{
    (void)state;
    weir_vote *vote;
    member members[WORKERS] = { { .version = 7 }, { .version = 8 }, { .version = 7 } };
    assert_int_equal(weir_vote_open(WORKERS, &vote), WEIR_OK);
    weir_vote_begin(vote, LONG_MS, LONG_MS);
    vote_all(vote, members, 0);
    expect(members, 0, WEIR_BALLOT_LANDED, WEIR_ERR_REFUSED);
    assert_int_equal(weir_vote_culprit(vote), WEIR_NO_CULPRIT);
    weir_vote_close(vote);
}

static void who_never_comes_ends_it_for_all_within_the_bound(void **state)
{
    (void)state;
    weir_vote *vote;
    member members[WORKERS] = { { .version = 7 }, { .version = 7 }, { .version = 7 } };
    assert_int_equal(weir_vote_open(WORKERS, &vote), WEIR_OK);
    weir_vote_begin(vote, 100, LONG_MS);
    uint64_t begun_ns = weir_now_ns();
    vote_all(vote, members, 1);
    uint64_t took_ns = weir_now_ns() - begun_ns;
    assert_true(took_ns >= 90 * 1000000ull && took_ns < LONG_MS / 2 * 1000000ull);
    expect(members, 1, WEIR_BALLOT_LANDED, WEIR_ERR_TIMED_OUT);
    /* It comes at last, and hears what the others heard. */
    assert_int_equal(weir_vote_cast(vote, 0, WEIR_BALLOT_LANDED, 7, WEIR_OK), WEIR_ERR_TIMED_OUT);
    weir_vote_close(vote);
}

static void the_later_ballots_have_a_bound_of_their_own(void **state)
{
    (void)state;
    weir_vote *vote;
    member members[WORKERS] = { { .version = 7 }, { .version = 7 }, { .version = 7 } };
    assert_int_equal(weir_vote_open(WORKERS, &vote), WEIR_OK);
    weir_vote_begin(vote, LONG_MS, 100);
    members[0].says[WEIR_BALLOT_LANDED] = WEIR_OK;
    pthread_t thread;
    members[1].vote = members[2].vote = vote;
    members[1].index = 1;
    members[2].index = 2;
    pthread_t other;
    assert_int_equal(pthread_create(&thread, NULL, vote_through, &members[1]), 0);
    assert_int_equal(pthread_create(&other, NULL, vote_through, &members[2]), 0);
    assert_int_equal(weir_vote_cast(vote, 0, WEIR_BALLOT_LANDED, 7, WEIR_OK), WEIR_OK);
    pthread_join(thread, NULL); /* and then says nothing more */
    pthread_join(other, NULL);
    expect(members, 1, WEIR_BALLOT_CHANGED, WEIR_ERR_TIMED_OUT);
    weir_vote_close(vote);
}

static void it_is_stopped_before_anything_has_changed_and_never_after(void **state)
{
    (void)state;
    weir_vote *vote;
    member members[WORKERS] = { { .version = 7 }, { .version = 7 }, { .version = 7 } };
    assert_int_equal(weir_vote_open(WORKERS, &vote), WEIR_OK);
    weir_vote_begin(vote, LONG_MS, LONG_MS);
    assert_true(weir_vote_stop(vote, WEIR_ERR_CANCELLED));
    vote_all(vote, members, 0);
    expect(members, 0, WEIR_BALLOT_LANDED, WEIR_ERR_CANCELLED);
    weir_vote_begin(vote, LONG_MS, LONG_MS);
    vote_all(vote, members, 0);
    assert_false(weir_vote_stop(vote, WEIR_ERR_CANCELLED));
    expect(members, 0, WEIR_BALLOT_TAKEN, WEIR_OK);
    weir_vote_close(vote);
}

static void all_are_untouched_or_none_is_said_to_be_whatever_failed(void **state)
{
    (void)state;
    weir_vote *vote;
    assert_int_equal(weir_vote_open(WORKERS, &vote), WEIR_OK);
    for (int touched = 0; touched <= 1; touched++) {
        member members[WORKERS] = { { .version = 7 }, { .version = 7 }, { .version = 7 } };
        for (int i = 0; i < WORKERS; i++)
            members[i].is_direct = true;
        members[1].says[WEIR_BALLOT_TAKEN] = WEIR_ERR_PEER_LOST;
        members[0].says[WEIR_BALLOT_UNTOUCHED] = touched ? WEIR_ERR_PARTIAL : WEIR_OK;
        members[2].late_ms = 30; /* it hears of the failure when it has landed */
        weir_vote_begin(vote, LONG_MS, LONG_MS);
        vote_all(vote, members, 0);
        expect(members, 0, WEIR_BALLOT_TAKEN, WEIR_ERR_PEER_LOST);
        expect(members, 0, WEIR_BALLOT_UNTOUCHED, touched ? WEIR_ERR_PARTIAL : WEIR_OK);
        assert_int_equal(weir_vote_culprit(vote), 1);
    }
    weir_vote_close(vote);
}

static void who_does_not_say_that_it_is_untouched_may_not_be(void **state)
{
    (void)state;
    weir_vote *vote;
    assert_int_equal(weir_vote_open(WORKERS, &vote), WEIR_OK);
    weir_vote_begin(vote, LONG_MS, 50);
    assert_int_equal(weir_vote_cast(vote, 0, WEIR_BALLOT_TAKEN, 7, WEIR_ERR_TIMED_OUT),
                     WEIR_ERR_TIMED_OUT);
    uint64_t begun_ns = weir_now_ns();
    assert_int_equal(weir_vote_cast(vote, 0, WEIR_BALLOT_UNTOUCHED, 7, WEIR_OK),
                     WEIR_ERR_TIMED_OUT);
    uint64_t took_ns = weir_now_ns() - begun_ns;
    assert_true(took_ns >= 90 * 1000000ull && took_ns < LONG_MS / 2 * 1000000ull);
    assert_int_equal(weir_vote_cast(vote, 1, WEIR_BALLOT_UNTOUCHED, 7, WEIR_OK),
                     WEIR_ERR_TIMED_OUT);
    weir_vote_close(vote);
}

static void no_memory_is_said(void **state)
{
    (void)state;
    weir_vote *vote = NULL;
    weir_alloc_fail_at(1);
    assert_int_equal(weir_vote_open(WORKERS, &vote), WEIR_ERR_NO_MEMORY);
    weir_alloc_fail_at(0);
    weir_vote_close(vote);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(all_hear_ok_when_all_have_said_so_in_every_round),
        cmocka_unit_test(one_failure_is_everybodys_and_has_a_culprit),
        cmocka_unit_test(who_fails_is_not_waited_for_in_what_it_leaves_out),
        cmocka_unit_test(different_versions_are_refused),
        cmocka_unit_test(who_never_comes_ends_it_for_all_within_the_bound),
        cmocka_unit_test(the_later_ballots_have_a_bound_of_their_own),
        cmocka_unit_test(it_is_stopped_before_anything_has_changed_and_never_after),
        cmocka_unit_test(all_are_untouched_or_none_is_said_to_be_whatever_failed),
        cmocka_unit_test(who_does_not_say_that_it_is_untouched_may_not_be),
        cmocka_unit_test(no_memory_is_said),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
