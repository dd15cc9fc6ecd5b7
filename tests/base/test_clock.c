/* SPDX-License-Identifier: Apache-2.0 */
/* Monotonic time and deadlines. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <time.h>

#include "base/clock.h"

static void time_only_goes_forward(void **state)
{
    (void)state;
    uint64_t before = weir_now_ns();
    for (int i = 0; i < 1000; i++) {
        uint64_t now = weir_now_ns();
        assert_true(now >= before);
        before = now;
    }
    double seconds = weir_now_s();
    assert_true(seconds >= (double)before * 1e-9 - 1e-3);
}

static void the_wall_clock_counts_from_1970(void **state)
{
    (void)state;
    uint64_t expected = (uint64_t)time(NULL) * 1000;
    uint64_t got = weir_unix_ms();
    assert_true(got + 5000 > expected && got < expected + 5000);
}

static void sleeping_takes_at_least_as_long(void **state)
{
    (void)state;
    uint64_t before = weir_now_ns();
    weir_sleep_ms(20);
    assert_true(weir_now_ns() - before >= 20000000ull);
}

static void a_deadline_passes(void **state)
{
    (void)state;
    weir_deadline soon = weir_deadline_in(30), later = weir_deadline_in(60000);
    unsigned left = weir_deadline_left_ms(later);
    assert_false(weir_deadline_passed(later));
    assert_true(left > 50000 && left <= 60000);
    weir_sleep_ms(31);
    assert_true(weir_deadline_passed(soon));
    assert_int_equal(weir_deadline_left_ms(soon), 0);
    assert_true(weir_deadline_passed(weir_deadline_in(0)));
}

static void what_is_left_is_rounded_up(void **state)
{
    (void)state;
    /* A wait of the milliseconds that are left must not end before the deadline. */
    weir_deadline deadline = weir_deadline_in(5);
    for (unsigned left; (left = weir_deadline_left_ms(deadline)) > 0;) {
        weir_sleep_ms(left);
        assert_true(weir_deadline_passed(deadline));
    }
}

static void the_longest_wait_does_not_wrap(void **state)
{
    (void)state;
    assert_false(weir_deadline_passed(weir_deadline_in(~0u)));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(time_only_goes_forward),
        cmocka_unit_test(the_wall_clock_counts_from_1970),
        cmocka_unit_test(sleeping_takes_at_least_as_long),
        cmocka_unit_test(a_deadline_passes),
        cmocka_unit_test(what_is_left_is_rounded_up),
        cmocka_unit_test(the_longest_wait_does_not_wrap),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
