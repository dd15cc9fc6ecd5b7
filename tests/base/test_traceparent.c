/* SPDX-License-Identifier: Apache-2.0 */
/* test_traceparent.c - W3C Trace Context's header, read as it says and no otherwise. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/traceparent.h"

#define TRACE "4bf92f3577b34da6a3ce929d0e0e4736"
#define SPAN "00f067aa0ba902b7"

static bool read_exactly(const char *text, weir_traceparent *out)
{
    size_t n = strlen(text);
    char *copy = malloc(n + 1); /* without a NUL behind it: a sanitizer sees who looks further */
    assert_non_null(copy);
    memcpy(copy, text, n);
    copy = realloc(copy, n != 0 ? n : 1);
    bool is_read = weir_traceparent_read(copy, n, out);
    free(copy);
    return is_read;
}

static void test_both_ids_are_read_and_written_back(void **state)
{
    (void)state;
    weir_traceparent trace;
    char text[WEIR_TRACEPARENT_BYTES];
    assert_true(read_exactly("00-" TRACE "-" SPAN "-01", &trace));
    assert_string_equal(trace.trace_id, TRACE);
    assert_string_equal(trace.span_id, SPAN);
    weir_traceparent_write(&trace, text);
    assert_string_equal(text, "00-" TRACE "-" SPAN "-01");
    assert_true(read_exactly("00-" TRACE "-" SPAN "-00", &trace)); /* not sampled: still a trace */
    assert_true(read_exactly("cc-" TRACE "-" SPAN "-09-what-comes-later", &trace));
}

static void test_all_else_is_ignored(void **state)
{
    (void)state;
    static const char *const bad[] = {
        "",
        "0",
        "00-" TRACE "-" SPAN,
        "00-" TRACE "-" SPAN "-0",
        "00-" TRACE "-" SPAN "-01-",
        "00-" TRACE "-" SPAN "-01-more",
        "cc-" TRACE "-" SPAN "-01more",
        "ff-" TRACE "-" SPAN "-01",
        "00-4BF92F3577B34DA6A3CE929D0E0E4736-" SPAN "-01",
        "00-00000000000000000000000000000000-" SPAN "-01",
        "00-" TRACE "-0000000000000000-01",
        "00_" TRACE "-" SPAN "-01",
        "0g-" TRACE "-" SPAN "-01",
        " 00-" TRACE "-" SPAN "-01",
    };
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        weir_traceparent trace = { .trace_id = "untouched" };
        assert_false(read_exactly(bad[i], &trace));
        assert_string_equal(trace.trace_id, "untouched");
    }
}

static void test_each_worker_has_its_own_span_in_each_trace(void **state)
{
    (void)state;
    weir_traceparent a, again, b, other, none;
    weir_traceparent_of(TRACE, "trainer-0-00000001", &a);
    weir_traceparent_of(TRACE, "trainer-0-00000001", &again);
    weir_traceparent_of(TRACE, "trainer-1-00000001", &b);
    weir_traceparent_of("4bf92f3577b34da6a3ce929d0e0e4737", "trainer-0-00000001", &other);
    assert_memory_equal(&a, &again, sizeof(a));
    assert_string_equal(a.trace_id, TRACE);
    assert_int_equal(strspn(a.span_id, "0123456789abcdef"), 16);
    assert_string_not_equal(a.span_id, b.span_id);
    assert_string_not_equal(a.span_id, other.span_id);
    static const char *const no_ids[] = { "", "abc", "00000000000000000000000000000000", TRACE "0",
                                          "4BF92F3577B34DA6A3CE929D0E0E4736" };
    for (size_t i = 0; i < sizeof(no_ids) / sizeof(no_ids[0]); i++) {
        weir_traceparent_of(no_ids[i], "w", &none);
        assert_string_equal(none.trace_id, "");
        assert_string_equal(none.span_id, "");
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_both_ids_are_read_and_written_back),
        cmocka_unit_test(test_all_else_is_ignored),
        cmocka_unit_test(test_each_worker_has_its_own_span_in_each_trace),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
