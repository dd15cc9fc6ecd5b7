/* SPDX-License-Identifier: Apache-2.0 */
/* The one line per thread, and the texts of the statuses. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>

#include "base/error.h"

static void a_thread_starts_without_a_line(void **state)
{
    (void)state;
    assert_string_equal(weir_last_error(), "");
}

static void the_line_is_the_last_failure(void **state)
{
    (void)state;
    assert_int_equal(weir_fail(WEIR_ERR_LAYOUT, "%s: %d of %d", "w", 3, 4), WEIR_ERR_LAYOUT);
    assert_string_equal(weir_last_error(), "w: 3 of 4");
    weir_fail(WEIR_ERR_INVALID, "again: %s", weir_last_error()); /* may quote itself */
    assert_string_equal(weir_last_error(), "again: w: 3 of 4");
}

static void bytes_from_outside_stay_one_line(void **state)
{
    (void)state;
    weir_fail(WEIR_ERR_FORMAT, "a\nb\r\tc\x1b[0m\x7f");
    assert_string_equal(weir_last_error(), "a b  c [0m ");
}

static void a_long_line_is_cut(void **state)
{
    (void)state;
    weir_fail(WEIR_ERR_FORMAT, "%*s", 5 * WEIR_ERROR_TEXT, "x");
    assert_int_equal(strlen(weir_last_error()), WEIR_ERROR_TEXT - 1);
}

static void errno_decides_the_status(void **state)
{
    (void)state;
    errno = ENOENT;
    assert_int_equal(weir_fail_errno("f"), WEIR_ERR_NOT_FOUND);
    assert_string_equal(weir_last_error(), "f: No such file or directory");
    errno = ENOMEM;
    assert_int_equal(weir_fail_errno("f"), WEIR_ERR_NO_MEMORY);
    errno = ENOSPC;
    assert_int_equal(weir_fail_errno("cannot write %d", 7), WEIR_ERR_IO);
    assert_string_equal(weir_last_error(), "cannot write 7: No space left on device");
}

static void a_prefix_goes_before_the_line(void **state)
{
    (void)state;
    weir_fail(WEIR_ERR_INVALID, "rank 9");
    weir_error_prefix("tensor '%s'", "w");
    assert_string_equal(weir_last_error(), "tensor 'w': rank 9");
}

static void *fail_elsewhere(void *argument)
{
    assert_string_equal(weir_last_error(), "");
    weir_fail(WEIR_ERR_IO, "elsewhere");
    weir_error_save(argument);
    return NULL;
}

static void a_line_belongs_to_its_thread_and_can_be_carried(void **state)
{
    (void)state;
    pthread_t thread;
    weir_error_line line;
    weir_fail(WEIR_ERR_IO, "here");
    assert_int_equal(pthread_create(&thread, NULL, fail_elsewhere, &line), 0);
    pthread_join(thread, NULL);
    assert_string_equal(weir_last_error(), "here");
    weir_error_restore(&line);
    assert_string_equal(weir_last_error(), "elsewhere");
}

static void every_status_has_name_and_text(void **state)
{
    (void)state;
#define CHECK(name, number, text)                              \
    assert_int_equal(WEIR_##name, number);                     \
    assert_string_equal(weir_status_name(WEIR_##name), #name); \
    assert_string_equal(weir_status_text(WEIR_##name), text);
    WEIR_STATUS_LIST(CHECK)
#undef CHECK
    assert_string_equal(weir_status_text((weir_status)-78), "unknown status");
    assert_string_equal(weir_status_name((weir_status)-78), "UNKNOWN");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_thread_starts_without_a_line),
        cmocka_unit_test(the_line_is_the_last_failure),
        cmocka_unit_test(bytes_from_outside_stay_one_line),
        cmocka_unit_test(a_long_line_is_cut),
        cmocka_unit_test(errno_decides_the_status),
        cmocka_unit_test(a_prefix_goes_before_the_line),
        cmocka_unit_test(a_line_belongs_to_its_thread_and_can_be_carried),
        cmocka_unit_test(every_status_has_name_and_text),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
