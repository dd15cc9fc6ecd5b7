/* SPDX-License-Identifier: Apache-2.0 */
/* test_simulate.c - flows over shared links: small cases worked out by hand, and of random ones
 * what must hold whatever the sharing. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/alloc.h"
#include "weir/simulate.h"

#define FLOW(bytes, start, a, b)         \
    {                                    \
        (bytes), (start),                \
        {                                \
            (a), (b), WEIR_ANY, WEIR_ANY \
        }                                \
    }
#define NONE WEIR_ANY

static weir_simulation simulate(const double *rates, size_t n_links, const weir_flow *flows,
                                size_t n_flows, double step, double *ends)
{
    weir_simulate_args args = WEIR_SIMULATE_ARGS_INIT;
    weir_simulation out;
    args.link_rates = rates;
    args.n_links = n_links;
    args.flows = flows;
    args.n_flows = n_flows;
    args.step = step;
    args.ends = ends;
    assert_int_equal(weir_simulate(&args, &out), WEIR_OK);
    return out;
}

static void assert_near(double got, double expected)
{
    assert_true(got > expected * (1 - 1e-9) - 1e-12 && got < expected * (1 + 1e-9) + 1e-12);
}

/* ---- worked out by hand ----------------------------------------------------------------------*/

/* Links of a pair: what the source sends, what the sink receives. */
static void test_one_pair_goes_at_the_slower_link(void **state)
{
    (void)state;
    const double rates[] = { 100, 40 };
    const weir_flow flows[] = { FLOW(200, 0.5, 0, 1) };
    weir_simulation got = simulate(rates, 2, flows, 1, 0, NULL);
    assert_near(got.seconds, 5.5);
    assert_near(got.bound_seconds, 5);
    assert_int_equal(got.bound_link, 1);
}

static void test_two_sources_share_one_sink(void **state)
{
    (void)state;
    const double rates[] = { 100, 100, 100 };
    const weir_flow flows[] = { FLOW(100, 0, 0, 2), FLOW(300, 0, 1, 2) };
    double ends[2];
    weir_simulation got = simulate(rates, 3, flows, 2, 0, ends);
    assert_near(ends[0], 2); /* half of the sink each, then all of it */
    assert_near(ends[1], 4);
    assert_near(got.seconds, 4);
    assert_near(got.bound_seconds, 4);
    assert_int_equal(got.bound_link, 2);
}

/* One source feeds three sinks, the third sink hears another source too: 10 each of the hot source,
 * and the other flow has the 20 that this leaves of its sink. */
static void test_a_hot_link_leaves_others_free(void **state)
{
    (void)state;
    const double rates[] = { 30, 100, 30, 30, 30 }; /* two sources, three sinks */
    const weir_flow flows[] = { FLOW(30, 0, 0, 2), FLOW(30, 0, 0, 3), FLOW(30, 0, 0, 4),
                                FLOW(30, 0, 1, 4) };
    double ends[4];
    weir_simulation got = simulate(rates, 5, flows, 4, 0, ends);
    for (int i = 0; i < 3; i++)
        assert_near(ends[i], 3);
    assert_near(ends[3], 1.5);
    assert_near(got.seconds, 3);
    assert_int_equal(got.bound_link, 0);
}

/* The textbook's: a flow over both links, one over each. Of link 0 (10) both have 5; of link 1 (20)
 * the other has 15. */
static void test_rates_rise_until_each_flow_has_a_full_link(void **state)
{
    (void)state;
    const double rates[] = { 10, 20 };
    const weir_flow flows[] = { FLOW(10, 0, 0, 1), FLOW(50, 0, 0, NONE), FLOW(60, 0, 1, NONE) };
    double ends[3];
    simulate(rates, 2, flows, 3, 0, ends);
    assert_near(ends[0], 2);
    assert_near(ends[1], 6);   /* 2 s at 5, then 40 at 10 */
    assert_near(ends[2], 3.5); /* 2 s at 15, then 30 at 20 */
}

static void test_a_late_flow_takes_its_share_when_it_begins(void **state)
{
    (void)state;
    const double rates[] = { 10 };
    const weir_flow flows[] = { FLOW(20, 5, 0, NONE), FLOW(100, 0, 0, NONE) };
    double ends[2];
    weir_simulation got = simulate(rates, 1, flows, 2, 0, ends);
    assert_near(ends[0], 9);
    assert_near(ends[1], 12);
    assert_near(got.bound_seconds, 12);
}

/* A few bytes that wait long: the links are not what bounds them. */
static void test_latency_bounds_what_is_small(void **state)
{
    (void)state;
    const double rates[] = { 1e9, 1e9 };
    const weir_flow flows[] = { FLOW(1000, 0.1, 0, 1), FLOW(1000, 0.3, 0, 1) };
    weir_simulation got = simulate(rates, 2, flows, 2, 0, NULL);
    assert_near(got.seconds, 0.300001);
    assert_near(got.bound_seconds, 2e-6);
}

static void test_four_links_of_a_flow_all_count(void **state)
{
    (void)state;
    const double rates[] = { 50, 50, 50, 10, 20 };
    const weir_flow flows[] = { { 20, 0, { 0, 1, 2, 3 } }, { 20, 0, { 0, 1, 2, 4 } } };
    double ends[2];
    weir_simulation got = simulate(rates, 5, flows, 2, 0, ends);
    assert_near(ends[0], 2);
    assert_near(ends[1], 1);
    assert_int_equal(got.bound_link, 3);
}

static void test_nothing_takes_no_time(void **state)
{
    (void)state;
    const double rates[] = { 10 };
    const weir_flow flows[] = { FLOW(0, 3, 0, NONE) };
    double end = -1;
    weir_simulation got = simulate(rates, 1, NULL, 0, 0, NULL);
    assert_true(got.seconds == 0 && got.bound_seconds == 0);
    assert_int_equal(got.bound_link, WEIR_ANY);
    got = simulate(rates, 1, flows, 1, 0, &end);
    assert_true(got.bound_seconds == 0 && got.seconds == 3 && end == 3);
}

/* ---- random ones -----------------------------------------------------------------------------*/

#define MOST_FLOWS 600
#define MOST_LINKS 40

typedef struct random_case {
    uint64_t state;
    double rates[MOST_LINKS], ends[MOST_FLOWS];
    weir_flow flows[MOST_FLOWS];
    size_t n_links, n_flows;
} random_case;

static uint64_t draw(random_case *c, uint64_t n)
{
    c->state ^= c->state << 13;
    c->state ^= c->state >> 7;
    c->state ^= c->state << 17;
    return (c->state * 0x2545F4914F6CDD1D >> 33) % n;
}

static void draw_case(random_case *c, uint64_t seed, bool starts)
{
    c->state = seed * 0x9E3779B97F4A7C15 + 1;
    c->n_links = 2 + draw(c, MOST_LINKS - 1);
    c->n_flows = 1 + draw(c, MOST_FLOWS);
    for (size_t l = 0; l < c->n_links; l++)
        c->rates[l] = 1 + (double)draw(c, 1000);
    for (size_t i = 0; i < c->n_flows; i++) {
        uint32_t a = (uint32_t)draw(c, c->n_links), b = (uint32_t)draw(c, c->n_links);
        c->flows[i] = (weir_flow)FLOW((double)draw(c, 5000), 0, a, a != b ? b : NONE);
        if (starts)
            c->flows[i].start_seconds = (double)draw(c, 100) / 7;
    }
}

static weir_simulation simulate_case(random_case *c, double step)
{
    return simulate(c->rates, c->n_links, c->flows, c->n_flows, step, c->ends);
}

/* No link carries more than its rate allows in the time that its flows take. */
static void assert_no_link_is_faster(const random_case *c)
{
    double bytes[MOST_LINKS] = { 0 }, until[MOST_LINKS] = { 0 };
    for (size_t i = 0; i < c->n_flows; i++) {
        assert_true(c->ends[i] >= c->flows[i].start_seconds);
        for (size_t k = 0; k < 2 && c->flows[i].links[k] != NONE; k++) {
            uint32_t l = c->flows[i].links[k];
            bytes[l] += c->flows[i].n_bytes;
            until[l] = c->ends[i] > until[l] ? c->ends[i] : until[l];
        }
    }
    for (size_t l = 0; l < c->n_links; l++)
        assert_true(until[l] * c->rates[l] >= bytes[l] * (1 - 1e-9));
}

static void test_no_sharing_is_faster_than_the_links(void **state)
{
    (void)state;
    random_case *c = calloc(1, sizeof(*c));
    assert_non_null(c);
    for (uint64_t seed = 1; seed <= 300; seed++) {
        draw_case(c, seed, seed % 2 == 0);
        weir_simulation got = simulate_case(c, 0);
        if (got.seconds < got.bound_seconds)
            fail_msg("seed %llu: faster than its links", (unsigned long long)seed);
        assert_no_link_is_faster(c);
    }
    free(c);
}

/* All links k times as fast: all flows are through in a k-th of the time. */
static void test_time_falls_as_rates_rise(void **state)
{
    (void)state;
    random_case *c = calloc(1, sizeof(*c));
    assert_non_null(c);
    for (uint64_t seed = 1; seed <= 100; seed++) {
        draw_case(c, seed, false);
        double slow = simulate_case(c, 1e-9).seconds, factor = 1 + (double)draw(c, 900) / 100;
        for (size_t l = 0; l < c->n_links; l++)
            c->rates[l] *= factor;
        assert_near(simulate_case(c, 1e-9).seconds * factor, slow);
    }
    free(c);
}

static void test_the_default_step_is_near_the_exact_time(void **state)
{
    (void)state;
    random_case *c = calloc(1, sizeof(*c));
    assert_non_null(c);
    for (uint64_t seed = 1; seed <= 200; seed++) {
        draw_case(c, seed, seed % 2 == 0);
        double exact = simulate_case(c, 1e-12).seconds, stepped = simulate_case(c, 0).seconds;
        if (stepped < exact * 0.99 || stepped > exact * 1.02)
            fail_msg("seed %llu: %g s instead of %g s", (unsigned long long)seed, stepped, exact);
    }
    free(c);
}

static void test_it_is_the_same_every_time(void **state)
{
    (void)state;
    random_case *c = calloc(1, sizeof(*c));
    assert_non_null(c);
    draw_case(c, 5, true);
    double first = simulate_case(c, 0).seconds;
    assert_true(first == simulate_case(c, 0).seconds);
    free(c);
}

/* ---- what cannot be --------------------------------------------------------------------------*/

static void refuse(const weir_simulate_args *args, const char *reason)
{
    weir_simulation out;
    assert_int_equal(weir_simulate(args, &out), WEIR_ERR_INVALID);
    assert_non_null(strstr(weir_last_error(), reason));
}

static void test_what_cannot_be_is_refused_by_number(void **state)
{
    (void)state;
    double rates[] = { 10, 10 };
    weir_flow good = FLOW(1, 0, 0, 1), flows[2] = { good, good };
    weir_simulate_args args = WEIR_SIMULATE_ARGS_INIT;
    args.link_rates = rates;
    args.n_links = 2;
    args.flows = flows;
    args.n_flows = 2;
    const weir_flow bad[] = { FLOW(-1, 0, 0, 1),
                              FLOW(1, -1, 0, 1),
                              FLOW(1, 0, NONE, 1),
                              FLOW(1, 0, 0, 2),
                              FLOW(1, 0, 1, 1),
                              FLOW(0.0 / 0.0, 0, 0, 1),
                              { 1, 0, { 0, NONE, 1, NONE } } };
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        flows[1] = bad[i];
        refuse(&args, "flow 1:");
    }
    flows[1] = good;
    args.step = 1.5;
    refuse(&args, "step is 1.5");
    args.step = 0;
    rates[1] = 0;
    refuse(&args, "link 1: 0 bytes per second");
    args.size = 3;
    refuse(&args, "weir_simulate_args");
}

static void test_no_memory_is_said_and_nothing_is_lost(void **state)
{
    (void)state;
    const double rates[] = { 10 };
    const weir_flow flows[] = { FLOW(10, 0, 0, NONE) };
    weir_simulate_args args = WEIR_SIMULATE_ARGS_INIT;
    weir_simulation out;
    args.link_rates = rates;
    args.n_links = args.n_flows = 1;
    args.flows = flows;
    unsigned n_failed = 0;
    for (uint64_t n = 1;; n++) {
        weir_alloc_fail_at(n);
        weir_status status = weir_simulate(&args, &out);
        weir_alloc_fail_at(0);
        if (status == WEIR_OK)
            break;
        assert_int_equal(status, WEIR_ERR_NO_MEMORY);
        n_failed++;
    }
    assert_true(n_failed >= 4);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_one_pair_goes_at_the_slower_link),
        cmocka_unit_test(test_two_sources_share_one_sink),
        cmocka_unit_test(test_a_hot_link_leaves_others_free),
        cmocka_unit_test(test_rates_rise_until_each_flow_has_a_full_link),
        cmocka_unit_test(test_a_late_flow_takes_its_share_when_it_begins),
        cmocka_unit_test(test_latency_bounds_what_is_small),
        cmocka_unit_test(test_four_links_of_a_flow_all_count),
        cmocka_unit_test(test_nothing_takes_no_time),
        cmocka_unit_test(test_no_sharing_is_faster_than_the_links),
        cmocka_unit_test(test_time_falls_as_rates_rise),
        cmocka_unit_test(test_the_default_step_is_near_the_exact_time),
        cmocka_unit_test(test_it_is_the_same_every_time),
        cmocka_unit_test(test_what_cannot_be_is_refused_by_number),
        cmocka_unit_test(test_no_memory_is_said_and_nothing_is_lost),
    };
    return cmocka_run_group_tests_name("simulate", tests, NULL, NULL);
}
