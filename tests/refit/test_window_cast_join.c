/* SPDX-License-Identifier: Apache-2.0 */
/* test_window_cast_join.c - rounds in which a reader that has heard of its broadcast groups never
 * connects: over transport ucx, and over nccl, which is a stand-in; or in which one dies. */
#include "refit/cast_rig.h"
#include "transport/nccl_case.h"

#define ROUND_MS 1000

/* Goes on asking, and stands where it stood, until the round is over. */
static void *ask_until_off(void *context)
{
    reader *r = context;
    weir_group_record record = { 0 };
    while (record.state != WEIR_GROUP_OFF && !r->s->is_over) {
        assert_ok(put(r, 0, NULL, &record));
        weir_sleep_ms(5);
    }
    return NULL;
}

static void expect_in_line(const stage *s, const char *words)
{
    if (strstr(s->line, words) == NULL)
        fail_msg("'%s' is not in '%s'", words, s->line);
}

static void over_ucx_the_line_has_the_name_and_the_rank_of_who_never_connects(void **state)
{
    (void)state;
    stage *s = open_stage_by_ucx();
    weir_transport_options options = WEIR_TRANSPORT_OPTIONS_INIT;
    assert_ok(weir_transport_get("ucx", &s->link.ops));
    assert_ok(s->link.ops->open(&options, &s->link.transport));
    reader *a = open_reader(s, "a-0", 0), *b = open_reader(s, "a-1", 1);
    publish(s, 1);
    ask(a, 0);
    ask(b, 0);
    start_round(s, 1, ROUND_MS);
    join_round(a);
    come(b); /* and stays outside, though it goes on asking */
    assert_int_equal(pthread_create(&a->thread, NULL, ask_until_off, a), 0);
    ask_until_off(b);
    join_reader(a);
    end_round(s, WEIR_ERR_TIMED_OUT, "trainer rank 0: a-1 (worker 1 of its engine) has not joined");
    expect_in_line(s, "the broadcast groups of version 1 of model: broadcast group ");
    expect_in_line(s, ": a-1: 1 of "); /* the one for both workers, or its own */
    expect_in_line(s, " ranks have not come within 0.9 s: ");
    assert_true(s->took_s < 3 * ROUND_MS / 1e3); /* a busy machine has time */
    leave_seats(a);
    close_reader(a);
    close_reader(b);
    s->link.ops->close(s->link.transport);
    close_stage(s);
}

/* Others have not even heard of their groups yet: it is no fault of theirs. */
static void what_fails_at_once_is_blamed_on_nobody(void **state)
{
    (void)state;
    stage *s = open_stage();
    reader *a = open_reader(s, "a-0", 0), *b = open_reader(s, "a-1", 1);
    publish(s, 1);
    ask(a, 0);
    ask(b, 0);
    start_round(s, 1, ROUND_MS);
    join_round(a);
    weir_matched *seat = NULL;
    for (size_t i = 0; i < WEIR_MAX_AUDIENCES && seat == NULL; i++) {
        seat = a->seats[i];
        a->seats[i] = NULL;
    }
    weir_matched_close(seat, true); /* it dies without a word */
    end_round(
        s, WEIR_ERR_PEER_LOST,
        "trainer rank 0: the stand-in's group is broken: the broadcast groups of version 1 of "
        "model are not complete");
    close_reader(a);
    close_reader(b);
    close_stage(s);
}

static void over_nccl_the_line_has_the_readers_that_are_outside(void **state)
{
    (void)state;
    stage *s = open_stage_by_ucx();
    weir_transport *nccl = open_nccl(0);
    fake->init_polls = FAKE_NEVER;
    cast_over(s, (weir_link){ &weir_transport_nccl, nccl });
    reader *a = open_reader(s, "a-0", 0), *b = open_reader(s, "a-1", 1);
    publish(s, 1);
    ask(a, 0);
    ask(b, 0);
    start_round(s, 1, ROUND_MS);
    come(a);
    come(b); /* NCCL lets nobody in before all are there */
    assert_int_equal(pthread_create(&a->thread, NULL, ask_until_off, a), 0);
    ask_until_off(b);
    join_reader(a);
    end_round(s, WEIR_ERR_TIMED_OUT,
              "trainer rank 0: a-0 (worker 0 of its engine), a-1 (worker 1 of its engine) have not "
              "joined the broadcast groups of version 1 of model: ");
    expect_in_line(s, " ranks have joined NCCL within 0.9 s (this is rank 0)");
    assert_true(s->took_s < 3 * ROUND_MS / 1e3); /* a busy machine has time */
    close_reader(a);
    close_reader(b);
    close_stage(s);
    weir_transport_nccl.close(nccl);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(over_ucx_the_line_has_the_name_and_the_rank_of_who_never_connects),
        cmocka_unit_test(what_fails_at_once_is_blamed_on_nobody),
        cmocka_unit_test_setup(over_nccl_the_line_has_the_readers_that_are_outside, reset_fake),
    };
    return use_fake_with_cuda() ? cmocka_run_group_tests(tests, NULL, NULL) : 1;
}
