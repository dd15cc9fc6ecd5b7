/* SPDX-License-Identifier: Apache-2.0 */
/* test_judge_settle.c - sources compared with each other. */
#include "judge_case.h"

static judge_source source(const char *worker_id, const char *role, const char *rank,
                           const char *step, int64_t updated_at_ms)
{
    return (judge_source){ .worker_id = worker_id,
                           .role = role,
                           .rank = rank,
                           .step = step,
                           .updated_at_ms = updated_at_ms,
                           .by = WEIR_ROUTE_IDENTITY };
}

static void expect_order(const judge_case *c, const char *const *workers, size_t n_taken)
{
    assert_int_equal(c->n_taken, n_taken);
    for (size_t i = 0; i < c->n; i++) {
        assert_string_equal(c->judged[i].candidate.worker_id, workers[i]);
        assert_int_equal(c->judged[i].candidate.taken, i < n_taken);
        assert_ptr_equal(c->judged[i].candidate.findings, c->judged[i].findings);
    }
}

static void test_g14_trainers_come_before_replicas_then_the_newest(void **state)
{
    (void)state;
    static const char *const order[] = { "t1", "t0", "r0", "r1" };
    judge_case c;
    case_open(&c);
    case_add(&c, source("r0", "inference_replica", "0", "1", 99));
    case_add(&c, source("t0", "trainer", "0", "1", 10));
    case_add(&c, source("r1", "inference_replica", "0", "1", 98));
    case_add(&c, source("t1", "trainer", "1", "1", 11));
    case_settle(&c);
    expect_order(&c, order, 4);
    weir_arena_close(&c.arena);
}

static void test_of_a_rank_that_was_started_anew_the_last_heard_of_is_taken(void **state)
{
    (void)state;
    static const char *const order[] = { "new", "old" };
    judge_case c;
    case_open(&c);
    case_add(&c, source("old", "trainer", "0", "9", 50));
    case_add(&c, source("new", "trainer", "0", "3", 60));
    case_settle(&c);
    expect_order(&c, order, 1);
    expect_refused(&c, 1,
                   "superseded: wanted the last word of its rank, found version 3 of worker "
                   "new is newer");
    weir_arena_close(&c.arena);
}

/* What the wish refuses supersedes all the same: the old worker is gone. */
static void test_a_newer_worker_that_is_refused_supersedes_too(void **state)
{
    (void)state;
    static const char *const order[] = { "new", "old" };
    judge_case c;
    case_open(&c);
    c.given.has_min_version = true;
    c.given.min_version = 5;
    case_add(&c, source("old", "trainer", "0", "9", 50));
    judge_source begun = source("new", "trainer", "0", "0", 60);
    begun.status = 1;
    case_add(&c, begun);
    case_settle(&c);
    expect_order(&c, order, 0);
    weir_arena_close(&c.arena);
}

/* A heartbeat that keeps the first step's entry alive says nothing of that step. */
static void test_a_workers_greatest_version_counts_whatever_its_heartbeat_says(void **state)
{
    (void)state;
    judge_case c;
    case_open(&c);
    case_add(&c, source("w", "trainer", "0", "1", 90));
    case_add(&c, source("w", "trainer", "0", "5", 50));
    case_add(&c, source("v", "trainer", "0", "4", 70));
    case_settle(&c);
    assert_int_equal(c.n_taken, 1);
    assert_string_equal(c.judged[0].candidate.worker_id, "w");
    assert_int_equal(c.judged[0].candidate.version, 5);
    weir_arena_close(&c.arena);
}

static void test_replicas_and_ranks_do_not_supersede_each_other(void **state)
{
    (void)state;
    judge_case c;
    case_open(&c);
    case_add(&c, source("r0", "inference_replica", "0", "1", 1));
    case_add(&c, source("r1", "inference_replica", "0", "2", 2));
    case_add(&c, source("t0", "trainer", "0", "1", 3));
    case_add(&c, source("t1", "trainer", "1", "2", 4));
    judge_source stale = source("t0-old", "trainer", "0", "9", 9);
    stale.status = 3;
    case_add(&c, stale);
    case_settle(&c);
    assert_int_equal(c.n_taken, 4);
    weir_arena_close(&c.arena);
}

static void test_no_sources_are_none(void **state)
{
    (void)state;
    judge_case c;
    case_open(&c);
    case_settle(&c);
    assert_int_equal(c.n_taken, 0);
    weir_arena_close(&c.arena);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_g14_trainers_come_before_replicas_then_the_newest),
        cmocka_unit_test(test_of_a_rank_that_was_started_anew_the_last_heard_of_is_taken),
        cmocka_unit_test(test_a_newer_worker_that_is_refused_supersedes_too),
        cmocka_unit_test(test_a_workers_greatest_version_counts_whatever_its_heartbeat_says),
        cmocka_unit_test(test_replicas_and_ranks_do_not_supersede_each_other),
        cmocka_unit_test(test_no_sources_are_none),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
