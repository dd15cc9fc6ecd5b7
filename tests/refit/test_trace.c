/* SPDX-License-Identifier: Apache-2.0 */
/* test_trace.c - trace ids as W3C Trace Context has them. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "refit/trace.h"

#define TRACE "4bf92f3577b34da6a3ce929d0e0e4736"
#define SPAN "00f067aa0ba902b7"

static void ids_are_made_anew_each_time(void **state)
{
    (void)state;
    char a[WEIR_TRACE_BYTES], b[WEIR_TRACE_BYTES];
    weir_trace_make(a);
    weir_trace_make(b);
    assert_int_equal(strspn(a, "0123456789abcdef"), 32);
    assert_int_equal(strlen(a), 32);
    assert_string_not_equal(a, b);
}

static void the_trace_of_a_traceparent_is_read(void **state)
{
    (void)state;
    char id[WEIR_TRACE_BYTES];
    assert_int_equal(weir_trace_read("00-" TRACE "-" SPAN "-01", id), WEIR_OK);
    assert_string_equal(id, TRACE);
    assert_int_equal(weir_trace_read("01-" TRACE "-" SPAN "-00-later", id), WEIR_OK);
}

static void others_are_refused_and_write_nothing(void **state)
{
    (void)state;
    static const char *const bad[] = {
        "",
        "00",
        "00-" TRACE "-" SPAN "-0",
        "00-" TRACE "-" SPAN "-01x",
        "00-" TRACE "-" SPAN "-01-more",
        "01-" TRACE "-" SPAN "-01more",
        "ff-" TRACE "-" SPAN "-01",
        "00-4BF92F3577B34DA6A3CE929D0E0E4736-" SPAN "-01",
        "00-00000000000000000000000000000000-" SPAN "-01",
        "00-" TRACE "-0000000000000000-01",
        "00_" TRACE "-" SPAN "-01",
        "0g-" TRACE "-" SPAN "-01",
    };
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        char id[WEIR_TRACE_BYTES] = "untouched";
        assert_int_equal(weir_trace_read(bad[i], id), WEIR_ERR_INVALID);
        assert_string_equal(id, "untouched");
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(ids_are_made_anew_each_time),
        cmocka_unit_test(the_trace_of_a_traceparent_is_read),
        cmocka_unit_test(others_are_refused_and_write_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
