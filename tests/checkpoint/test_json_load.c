/* SPDX-License-Identifier: Apache-2.0 */
/* JSON from outside: the limits that jansson alone does not set. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <string.h>

#include "checkpoint/json_load.h"

static void an_object_is_given(void **state)
{
    (void)state;
    json_t *root;
    assert_int_equal(weir_json_load("{\"a\":1}trailing", 7, "T", &root), WEIR_OK);
    assert_int_equal(json_integer_value(json_object_get(root, "a")), 1);
    json_decref(root);
}

static void a_text_over_the_limit_is_not_even_read(void **state)
{
    (void)state;
    json_t *root = NULL;
    assert_int_equal(weir_json_load("{}", WEIR_JSON_MAX_BYTES + 1ull, "T", &root), WEIR_ERR_FORMAT);
    assert_string_equal(weir_last_error(),
                        "T: 100000001 bytes of JSON, at most 100000000 are taken");
    assert_null(root);
}

static void nothing_at_all_is_refused(void **state)
{
    (void)state;
    json_t *root = NULL;
    assert_int_equal(weir_json_load(NULL, 0, "T", &root), WEIR_ERR_FORMAT);
    assert_null(root);
}

static void nesting_is_bounded(void **state)
{
    (void)state;
    char text[8192];
    json_t *root = NULL;
    memset(text, 0, sizeof(text));
    strcpy(text, "{\"a\":");
    memset(text + 5, '[', 3000);
    memset(text + 3005, ']', 3000);
    strcpy(text + 6005, "}");
    assert_int_equal(weir_json_load(text, strlen(text), "T", &root), WEIR_ERR_FORMAT);
    assert_non_null(strstr(weir_last_error(), "maximum parsing depth reached"));
    memset(text + 5, ' ', 2000);
    memset(text + 4005, ' ', 2000); /* 1,000 left on either side */
    assert_int_equal(weir_json_load(text, strlen(text), "T", &root), WEIR_OK);
    json_decref(root);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(an_object_is_given),
        cmocka_unit_test(a_text_over_the_limit_is_not_even_read),
        cmocka_unit_test(nothing_at_all_is_refused),
        cmocka_unit_test(nesting_is_bounded),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
