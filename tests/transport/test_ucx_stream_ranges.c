/* SPDX-License-Identifier: Apache-2.0 */
/* test_ucx_stream_ranges.c - which memory may be sent, while it comes and goes in another thread.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "transport/ucx_stream.h"

/* Holds and lets go again; whether it could. */
static bool may_send(ucx_ranges *ranges, ucx_range range, uint64_t *seen)
{
    uint8_t request[WEIR_STREAM_HEAD_BYTES + WEIR_STREAM_RANGE_BYTES];
    ucx_range missing = { 0, 0 };
    weir_stream_request_encode(1, request);
    weir_stream_range_encode(range, request + WEIR_STREAM_HEAD_BYTES);
    bool held = weir_stream_ranges_hold(ranges, request, 1, seen, &missing);
    if (held)
        weir_stream_ranges_let_go(ranges);
    else
        assert_true(missing.address == range.address && missing.n_bytes == range.n_bytes);
    return held;
}

static bool may_send_anew(ucx_ranges *ranges, uint64_t address, uint64_t n_bytes)
{
    uint64_t seen = 0;
    return may_send(ranges, (ucx_range){ address, n_bytes }, &seen);
}

static void what_lies_within_one_region_may_be_sent(void **state)
{
    (void)state;
    ucx_ranges ranges;
    weir_stream_ranges_open(&ranges);
    assert_false(may_send_anew(&ranges, 1000, 1));
    for (uint64_t i = 0; i < 100; i++)
        assert_int_equal(weir_stream_ranges_add(&ranges, (ucx_range){ 1000 * (i + 1), 1000 }),
                         WEIR_OK);
    assert_int_equal(weir_stream_ranges_add(&ranges, (ucx_range){ UINT64_MAX - 9, 9 }), WEIR_OK);
    assert_true(may_send_anew(&ranges, 1000, 1000));
    assert_true(may_send_anew(&ranges, 100999, 1));
    assert_true(may_send_anew(&ranges, UINT64_MAX - 9, 9));
    assert_false(may_send_anew(&ranges, 999, 2));
    assert_false(may_send_anew(&ranges, 1999, 2)); /* in two that touch */
    assert_false(may_send_anew(&ranges, 101000, 1));
    assert_false(may_send_anew(&ranges, 1000, UINT64_MAX));
    assert_false(may_send_anew(&ranges, UINT64_MAX - 9, 10));
    weir_stream_ranges_close(&ranges);
}

static void a_look_ends_with_the_next_removal(void **state)
{
    (void)state;
    ucx_ranges ranges;
    const ucx_range one = { 1000, 10 }, other = { 5000, 10 };
    uint64_t seen = 0;
    weir_stream_ranges_open(&ranges);
    weir_stream_ranges_add(&ranges, one);
    weir_stream_ranges_add(&ranges, one); /* exposed twice */
    weir_stream_ranges_add(&ranges, other);
    assert_true(may_send(&ranges, one, &seen));
    weir_stream_ranges_remove(&ranges, one);
    assert_true(may_send(&ranges, one, &seen));
    weir_stream_ranges_remove(&ranges, one);
    assert_false(may_send(&ranges, one, &seen));
    assert_true(may_send_anew(&ranges, 5000, 10));
    weir_stream_ranges_close(&ranges);
}

typedef struct removal {
    ucx_ranges ranges;
    atomic_bool removed;
} removal;

static void *remove_it(void *argument)
{
    removal *r = argument;
    weir_stream_ranges_remove(&r->ranges, (ucx_range){ 1000, 10 });
    atomic_store(&r->removed, true);
    return NULL;
}

static void removing_waits_for_what_is_being_sent(void **state)
{
    (void)state;
    removal r = { .removed = false };
    uint8_t request[WEIR_STREAM_HEAD_BYTES + WEIR_STREAM_RANGE_BYTES];
    uint64_t seen = 0, n_removed = 0;
    ucx_range missing;
    pthread_t thread;
    weir_stream_ranges_open(&r.ranges);
    weir_stream_ranges_add(&r.ranges, (ucx_range){ 1000, 10 });
    weir_stream_range_encode((ucx_range){ 1000, 10 }, request + WEIR_STREAM_HEAD_BYTES);
    assert_true(weir_stream_ranges_hold(&r.ranges, request, 1, &seen, &missing));
    assert_int_equal(pthread_create(&thread, NULL, remove_it, &r), 0);
    while (n_removed < 2) { /* it has begun */
        pthread_mutex_lock(&r.ranges.lock);
        n_removed = r.ranges.n_removed;
        pthread_mutex_unlock(&r.ranges.lock);
    }
    assert_false(atomic_load(&r.removed));
    weir_stream_ranges_let_go(&r.ranges);
    pthread_join(thread, NULL);
    assert_true(atomic_load(&r.removed));
    assert_false(may_send(&r.ranges, (ucx_range){ 1000, 10 }, &seen));
    weir_stream_ranges_close(&r.ranges);
}

static void without_memory_nothing_is_added(void **state)
{
    (void)state;
    ucx_ranges ranges;
    weir_stream_ranges_open(&ranges);
    weir_alloc_fail_at(1);
    assert_int_equal(weir_stream_ranges_add(&ranges, (ucx_range){ 1, 1 }), WEIR_ERR_NO_MEMORY);
    weir_alloc_fail_at(0);
    assert_false(may_send_anew(&ranges, 1, 1));
    weir_stream_ranges_close(&ranges);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_lies_within_one_region_may_be_sent),
        cmocka_unit_test(a_look_ends_with_the_next_removal),
        cmocka_unit_test(removing_waits_for_what_is_being_sent),
        cmocka_unit_test(without_memory_nothing_is_added),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
