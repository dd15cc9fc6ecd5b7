/* SPDX-License-Identifier: Apache-2.0 */
/* test_options.c - callers of older and newer versions are understood, or refused by name. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "base/options.h"

typedef struct options {
    size_t size;
    uint64_t first, second;
} options;

typedef struct older {
    size_t size;
    uint64_t first;
} older;

typedef struct newer {
    size_t size;
    uint64_t first, second, third;
} newer;

static void an_older_caller_leaves_the_default(void **state)
{
    older given = { sizeof(given), 7 };
    options own = { 1, 2, 3 };
    (void)state;
    assert_int_equal(weir_options_read(&given, "options", &own, sizeof(own)), WEIR_OK);
    assert_int_equal(own.size, sizeof(own));
    assert_int_equal(own.first, 7);
    assert_int_equal(own.second, 0);
}

static void a_newer_caller_is_understood_while_it_asks_for_nothing_new(void **state)
{
    newer given = { sizeof(given), 7, 8, 0 };
    options own;
    (void)state;
    assert_int_equal(weir_options_read(&given, "options", &own, sizeof(own)), WEIR_OK);
    assert_int_equal(own.second, 8);
    given.third = 1;
    assert_int_equal(weir_options_read(&given, "options", &own, sizeof(own)), WEIR_ERR_INVALID);
    assert_string_equal(weir_last_error(),
                        "options of 32 bytes sets a field that this version, of 24 bytes, does not "
                        "know");
}

static void what_cannot_be_is_refused(void **state)
{
    options given = { 0, 1, 2 }, own = { 4, 5, 6 };
    (void)state;
    assert_int_equal(weir_options_read(NULL, "options", &own, sizeof(own)), WEIR_ERR_INVALID);
    assert_int_equal(weir_options_read(&given, "options", &own, sizeof(own)), WEIR_ERR_INVALID);
    assert_non_null(strstr(weir_last_error(), "options: size is 0"));
    given.size = SIZE_MAX;
    assert_int_equal(weir_options_read(&given, "options", &own, sizeof(own)), WEIR_ERR_INVALID);
    assert_int_equal(own.first, 5);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(an_older_caller_leaves_the_default),
        cmocka_unit_test(a_newer_caller_is_understood_while_it_asks_for_nothing_new),
        cmocka_unit_test(what_cannot_be_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
