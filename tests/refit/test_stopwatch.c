/* SPDX-License-Identifier: Apache-2.0 */
/* test_stopwatch.c - what a refit's time went into, without a refit. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "refit/worker.h"

typedef struct fixture {
    weir_worker worker;
    weir_stopwatch watch;
    weir_report report;
} fixture;

static int begin(void **state)
{
    static fixture f;
    memset(&f, 0, sizeof(f));
    snprintf(f.worker.id, sizeof(f.worker.id), "replica-1");
    f.worker.role = WEIR_ROLE_GENERATOR;
    weir_stopwatch_start(&f.watch, &f.worker, WEIR_LATEST, &f.report);
    *state = &f;
    return 0;
}

static int end(void **state)
{
    fixture *f = *state;
    if (f->worker.watch != NULL)
        weir_stopwatch_end(&f->watch, WEIR_OK);
    return 0;
}

static const weir_stop_span *find(const weir_stop_span *spans, size_t n, const char *name)
{
    for (size_t i = 0; i < n; i++) {
        if (strcmp(spans[i].name, name) == 0)
            return &spans[i];
    }
    return NULL;
}

static uint64_t distance(uint64_t a, uint64_t b)
{
    return a > b ? a - b : b - a;
}

static void stops_follow_each_other_and_are_as_long_as_the_report_says(void **state)
{
    fixture *f = *state;
    weir_stop_span spans[WEIR_MAX_SPANS];
    for (int stop = WEIR_STOP_DISCOVER; stop <= WEIR_STOP_ACK; stop++) {
        weir_stopwatch_enter(&f->watch, (weir_stop)stop);
        weir_sleep_ms(2);
    }
    weir_stopwatch_end(&f->watch, WEIR_OK);
    size_t n = weir_worker_spans(&f->worker, spans);
    assert_int_equal(n, 5);
    for (size_t i = 0; i < n; i++) {
        double seconds = f->report.seconds[WEIR_STOP_DISCOVER + i];
        assert_string_equal(spans[i].name, weir_stop_name((weir_stop)(WEIR_STOP_DISCOVER + i)));
        assert_true(distance(spans[i].duration_us, (uint64_t)(seconds * 1e6)) <= 1);
        assert_true(spans[i].duration_us >= 2000);
        if (i > 0)
            assert_true(distance(spans[i].begun_unix_us,
                                 spans[i - 1].begun_unix_us + spans[i - 1].duration_us) <= 2);
    }
}

static void the_stop_under_way_is_as_long_as_it_is_by_now(void **state)
{
    fixture *f = *state;
    weir_stop_span spans[WEIR_MAX_SPANS];
    weir_stopwatch_enter(&f->watch, WEIR_STOP_DISCOVER);
    weir_stopwatch_enter(&f->watch, WEIR_STOP_TRANSFER); /* discover took no time at all */
    weir_sleep_ms(5);
    assert_int_equal(weir_worker_spans(&f->worker, spans), 2);
    assert_true(spans[0].duration_us < 4000);
    assert_true(spans[1].duration_us >= 5000);
}

static void a_wait_for_the_version_is_before_its_stop_and_in_none(void **state)
{
    fixture *f = *state;
    weir_stop_span spans[WEIR_MAX_SPANS];
    weir_stopwatch_enter(&f->watch, WEIR_STOP_DISCOVER);
    double begun_s = weir_now_s();
    weir_sleep_ms(20);
    weir_worker_waited_outside(&f->worker, begun_s);
    size_t n = weir_worker_spans(&f->worker, spans);
    const weir_stop_span *wait = find(spans, n, "wait ready");
    assert_int_equal(n, 2);
    assert_non_null(wait);
    assert_true(wait->duration_us >= 20000);
    assert_true(wait->begun_unix_us + wait->duration_us <= spans[0].begun_unix_us + 1000);
    assert_true(spans[0].duration_us < 20000);
    weir_stopwatch_end(&f->watch, WEIR_OK);
    assert_true(f->report.waited_seconds >= 0.02);
    assert_true(f->report.total_seconds < 0.02);
}

static void waits_of_one_name_are_one(void **state)
{
    fixture *f = *state;
    weir_stop_span spans[WEIR_MAX_SPANS];
    static const char *const names[] = { "a", "b", "a", "c", "d" };
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++)
        weir_worker_waited(&f->worker, names[i], weir_now_s() - 1.0);
    size_t n = weir_worker_spans(&f->worker, spans);
    assert_int_equal(n, 3); /* there is no room for "d" */
    assert_true(distance(find(spans, n, "a")->duration_us, 2000000) < 1000);
}

static void the_slowest_reads_are_kept(void **state)
{
    fixture *f = *state;
    weir_stop_span spans[WEIR_MAX_SPANS];
    double now_s = weir_now_s();
    for (int i = 0; i < 20; i++) {
        char from[128];
        int ms = (i * 7) % 20 + 1;
        snprintf(from, sizeof(from), "rank-%d-%090d", ms, 0);
        weir_worker_has_read(&f->worker, from, (uint64_t)ms, now_s, now_s + ms / 1e3);
    }
    size_t n = weir_worker_spans(&f->worker, spans);
    assert_int_equal(n, WEIR_MAX_READS);
    for (size_t i = 0; i < n; i++) {
        assert_string_equal(spans[i].name, "read");
        assert_true(spans[i].n_bytes > 20 - WEIR_MAX_READS);
        assert_int_equal(strlen(spans[i].peer), sizeof(spans[i].peer) - 1);
    }
}

static char heard[1024];
static size_t n_heard;

static void listen(void *context, weir_log_level level, const char *line,
                   const weir_log_field *fields, size_t n_fields)
{
    size_t used = 0;
    (void)context;
    (void)line;
    assert_int_equal(level, WEIR_LOG_INFO);
    n_heard++;
    for (size_t i = 0; i < n_fields; i++)
        used += (size_t)snprintf(heard + used, sizeof(heard) - used, "%s=%s ", fields[i].name,
                                 fields[i].text);
}

static void one_line_tells_how_it_ended(void **state)
{
    fixture *f = *state;
    n_heard = 0;
    weir_log_set_structured(listen, NULL, WEIR_LOG_INFO);
    weir_stopwatch_enter(&f->watch, WEIR_STOP_DISCOVER);
    weir_worker_is_about(&f->worker, 7, "0123456789abcdef0123456789abcdef");
    weir_stopwatch_end(&f->watch, WEIR_ERR_LAYOUT);
    weir_log_set(NULL, NULL, WEIR_LOG_ERROR);
    assert_int_equal(n_heard, 1);
    assert_non_null(strstr(heard, "worker=replica-1 rank=0 version=7 "
                                  "trace_id=0123456789abcdef0123456789abcdef stop=discover "));
    assert_non_null(strstr(heard, "status=ERR_LAYOUT"));
    assert_null(weir_log_enter(NULL)); /* the thread is about nothing any more */
}

int main(void)
{
#define CASE(name) cmocka_unit_test_setup_teardown(name, begin, end)
    const struct CMUnitTest tests[] = {
        CASE(stops_follow_each_other_and_are_as_long_as_the_report_says),
        CASE(the_stop_under_way_is_as_long_as_it_is_by_now),
        CASE(a_wait_for_the_version_is_before_its_stop_and_in_none),
        CASE(waits_of_one_name_are_one),
        CASE(the_slowest_reads_are_kept),
        CASE(one_line_tells_how_it_ended),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
