/* SPDX-License-Identifier: Apache-2.0 */
/* The index of a sharded checkpoint: what it names, and what it may not name. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <string.h>

#include "base/alloc.h"
#include "checkpoint/shard_index.h"

static void refused(const char *text, const char *line)
{
    weir_shard_index index = { 0 };
    assert_int_equal(weir_shard_index_parse(text, strlen(text), "I", &index), WEIR_ERR_FORMAT);
    assert_null(index.root);
    if (strstr(weir_last_error(), line) == NULL)
        fail_msg("expected '%s' in: %s", line, weir_last_error());
}

static void each_file_is_named_once_in_order(void **state)
{
    (void)state;
    const char *text = "{\"weight_map\":{\"a\":\"2.st\",\"b\":\"1.st\",\"c\":\"2.st\"}}";
    weir_shard_index index;
    assert_int_equal(weir_shard_index_parse(text, strlen(text), "I", &index), WEIR_OK);
    assert_int_equal(index.n_files, 2);
    assert_string_equal(index.files[0], "2.st");
    assert_string_equal(index.files[1], "1.st");
    weir_shard_index_free(&index);
}

static void a_path_out_of_the_directory_is_refused(void **state)
{
    (void)state;
    static const char *const names[] = { "../x", "/etc/passwd", "a/b", "..", ".", "" };
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        char text[128];
        snprintf(text, sizeof(text), "{\"weight_map\":{\"w\":\"%s\"}}", names[i]);
        refused(text, "is no plain file name");
    }
    refused("{\"weight_map\":{\"w\":\"a\\u0000b\"}}", "\\u0000 is not allowed");
}

static void what_is_no_weight_map_is_refused(void **state)
{
    (void)state;
    refused("{}", "I: weight_map is missing, empty or no object");
    refused("{\"weight_map\":{}}", "I: weight_map is missing, empty or no object");
    refused("{\"weight_map\":[]}", "I: weight_map is missing, empty or no object");
    refused("{\"weight_map\":{\"w\":1}}", "I: weight_map 'w' is no string");
    refused("{\"weight_map\":{\"w\":\"x\",\"w\":\"y\"}}", "duplicate object key");
    refused("nonsense", "I: line 1 column");
}

static void an_allocation_may_fail(void **state)
{
    (void)state;
    const char *text = "{\"weight_map\":{\"a\":\"1.st\"}}";
    weir_shard_index index = { 0 };
    weir_alloc_fail_at(1);
    assert_int_equal(weir_shard_index_parse(text, strlen(text), "I", &index), WEIR_ERR_NO_MEMORY);
    weir_alloc_fail_at(0);
    assert_null(index.root);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(each_file_is_named_once_in_order),
        cmocka_unit_test(a_path_out_of_the_directory_is_refused),
        cmocka_unit_test(what_is_no_weight_map_is_refused),
        cmocka_unit_test(an_allocation_may_fail),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
