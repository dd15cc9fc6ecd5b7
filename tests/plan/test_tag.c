/* SPDX-License-Identifier: Apache-2.0 */
#include "plan/tag.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

static void check(const char *published, const char *wanted, const char *expected)
{
    char difference[WEIR_TAG_TEXT] = "";
    bool equal = weir_tag_metadata_equal(published, wanted, "W", difference);
    assert_int_equal(equal, expected == NULL);
    assert_string_equal(difference, expected != NULL ? expected : "");
}

static void equal_objects_are_equal_whatever_their_text(void **state)
{
    (void)state;
    check("{}", "{ }", NULL);
    check("{\"a\":1,\"b\":[2,{\"c\":null}]}", "{\"b\": [2, {\"c\": null}], \"a\": 1}", NULL);
    check("not json", "not json", NULL);
}

static void the_differing_key_is_named_with_both_values(void **state)
{
    (void)state;
    check("{\"a\":1,\"b\":\"x\"}", "{\"a\":1,\"b\":\"y\"}",
          "b is \"x\" at W, this replica needs \"y\"");
    check("{\"a\":1}", "{\"a\":1,\"b\":2}", "b is missing at W, this replica needs 2");
    check("{\"a\":1,\"b\":2}", "{\"a\":1}", "b is 2 at W, this replica knows no such key");
    check("{\"a\":1}", "{\"a\":1.0}", "a is 1 at W, this replica needs 1.0");
}

static void what_is_no_object_is_quoted(void **state)
{
    (void)state;
    check("[1]", "{}", "is [1] at W, this replica needs {}");
    check("{\"a\":1,\"a\":1}", "{\"a\":1}",
          "is {\"a\":1,\"a\":1} at W, this replica needs {\"a\":1}");
    check("", "{}", "is  at W, this replica needs {}");
}

static void long_values_are_cut(void **state)
{
    (void)state;
    char published[4096] = "{\"a\":\"", difference[WEIR_TAG_TEXT];
    memset(published + 6, 'x', 3000);
    strcpy(published + 3006, "\"}");
    assert_false(weir_tag_metadata_equal(published, "{\"a\":0}", "W", difference));
    assert_true(strlen(difference) < WEIR_TAG_TEXT);
    assert_non_null(strstr(difference, "this replica needs 0"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(equal_objects_are_equal_whatever_their_text),
        cmocka_unit_test(the_differing_key_is_named_with_both_values),
        cmocka_unit_test(what_is_no_object_is_quoted),
        cmocka_unit_test(long_values_are_cut),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
