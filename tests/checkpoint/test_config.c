/* SPDX-License-Identifier: Apache-2.0 */
/* config.json: opening, typed reads, text, and what is refused. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "checkpoint/test_directory.h"
#include "weir/checkpoint.h"

static const char text[] =
    "{\n  \"model_type\": \"qwen3_moe\", \"n\": -7, \"big\": 9223372036854775807,\n"
    "  \"eps\": 1e-06, \"tie\": true, \"untied\": false, \"nothing\": null,\n"
    "  \"quantization_config\": {\"quant_method\": \"fp8\", \"weight_block_size\": [128, 64],\n"
    "    \"deep\": {\"x\": 1}},\n"
    "  \"architectures\": [\"A\", 3, \"B\"], \"empty\": [], \"mixed\": [1, 2.5]\n}\n";

static weir_config *parsed(void)
{
    weir_config *config = NULL;
    assert_int_equal(weir_config_parse(text, "text", &config), WEIR_OK);
    return config;
}

static void refused(const char *json, const char *line)
{
    weir_config *config = NULL;
    assert_int_equal(weir_config_parse(json, "C", &config), WEIR_ERR_FORMAT);
    assert_null(config);
    if (strstr(weir_last_error(), line) == NULL)
        fail_msg("expected '%s' in: %s", line, weir_last_error());
}

static void values_of_the_right_type_are_read(void **state)
{
    (void)state;
    weir_config *config = parsed();
    int64_t integer = 0;
    bool flag = false;
    double number = 0;
    assert_true(weir_config_int(config, "n", &integer));
    assert_int_equal(integer, -7);
    assert_true(weir_config_int(config, "big", &integer));
    assert_true(integer == INT64_MAX);
    assert_true(weir_config_bool(config, "tie", &flag));
    assert_true(flag);
    assert_true(weir_config_bool(config, "untied", &flag));
    assert_false(flag);
    assert_true(weir_config_number(config, "eps", &number));
    assert_true(fabs(number - 1e-6) < 1e-15);
    assert_true(weir_config_number(config, "n", &number));
    assert_true(fabs(number + 7) < 1e-15);
    assert_string_equal(weir_config_string(config, "model_type"), "qwen3_moe");
    weir_config_close(config);
}

static void values_of_another_type_leave_the_output_alone(void **state)
{
    (void)state;
    weir_config *config = parsed();
    int64_t integer = 42;
    bool flag = true;
    double number = 42;
    static const char *const keys[] = { "model_type", "nothing", "absent", "empty",
                                        "quantization_config" };
    for (size_t i = 0; i < sizeof(keys) / sizeof(keys[0]); i++) {
        assert_false(weir_config_int(config, keys[i], &integer));
        assert_false(weir_config_bool(config, keys[i], &flag));
        assert_false(weir_config_number(config, keys[i], &number));
    }
    assert_false(weir_config_int(config, "eps", &integer));
    assert_false(weir_config_bool(config, "n", &flag));
    assert_int_equal(integer, 42);
    assert_true(flag);
    assert_true(number > 41 && number < 43);
    assert_null(weir_config_string(config, "n"));
    assert_null(weir_config_object(config, "empty"));
    weir_config_close(config);
}

static void has_means_there_and_not_null(void **state)
{
    (void)state;
    weir_config *config = parsed();
    assert_true(weir_config_has(config, "untied"));
    assert_true(weir_config_has(config, "empty"));
    assert_false(weir_config_has(config, "nothing"));
    assert_false(weir_config_has(config, "absent"));
    weir_config_close(config);
}

static void children_are_borrowed(void **state)
{
    (void)state;
    weir_config *config = parsed();
    const weir_config *quantization = weir_config_object(config, "quantization_config");
    int64_t x = 0;
    assert_string_equal(weir_config_string(quantization, "quant_method"), "fp8");
    assert_true(weir_config_int(weir_config_object(quantization, "deep"), "x", &x));
    assert_int_equal(x, 1);
    weir_config_close(config);
}

static void arrays_of_integers_are_copied_up_to_n(void **state)
{
    (void)state;
    weir_config *config = parsed();
    const weir_config *quantization = weir_config_object(config, "quantization_config");
    int64_t sizes[2] = { -1, -1 };
    assert_int_equal(weir_config_ints(quantization, "weight_block_size", sizes, 1), 2);
    assert_int_equal(sizes[0], 128);
    assert_int_equal(sizes[1], -1);
    assert_int_equal(weir_config_ints(quantization, "weight_block_size", sizes, 2), 2);
    assert_int_equal(sizes[1], 64);
    assert_int_equal(weir_config_ints(quantization, "weight_block_size", NULL, 0), 2);
    assert_int_equal(weir_config_ints(config, "empty", sizes, 2), 0);
    sizes[0] = 5;
    assert_int_equal(weir_config_ints(config, "mixed", sizes, 2), -1);
    assert_int_equal(weir_config_ints(config, "n", sizes, 2), -1);
    assert_int_equal(weir_config_ints(config, "absent", sizes, 2), -1);
    assert_int_equal(sizes[0], 5);
    weir_config_close(config);
}

static void strings_of_an_array_are_read_by_index(void **state)
{
    (void)state;
    weir_config *config = parsed();
    assert_string_equal(weir_config_string_at(config, "architectures", 0), "A");
    assert_null(weir_config_string_at(config, "architectures", 1));
    assert_string_equal(weir_config_string_at(config, "architectures", 2), "B");
    assert_null(weir_config_string_at(config, "architectures", 3));
    assert_null(weir_config_string_at(config, "architectures", -1));
    assert_null(weir_config_string_at(config, "model_type", 0));
    weir_config_close(config);
}

static void nothing_can_be_asked(void **state)
{
    (void)state;
    int64_t n = 1;
    assert_false(weir_config_has(NULL, "a"));
    assert_false(weir_config_int(NULL, "a", &n));
    assert_null(weir_config_string(NULL, "a"));
    assert_null(weir_config_object(NULL, "a"));
    assert_int_equal(weir_config_ints(NULL, "a", &n, 1), -1);
    weir_config_close(NULL);
    weir_string_free(NULL);
}

static void the_text_keeps_the_order_of_keys(void **state)
{
    (void)state;
    weir_config *config;
    assert_int_equal(
        weir_config_parse("{ \"z\" : 1, \"a\" : [ true, null, \"\\n\" ] }", "C", &config), WEIR_OK);
    char *got = weir_config_text(config);
    assert_string_equal(got, "{\"z\":1,\"a\":[true,null,\"\\n\"]}");
    weir_string_free(got);
    weir_alloc_fail_at(1);
    assert_null(weir_config_text(config));
    weir_alloc_fail_at(0);
    weir_config_close(config);
}

static void errors_have_line_and_column(void **state)
{
    (void)state;
    refused("{\"a\": 1,\n  \"b\" 2}", "C: line 2 column 7: ':' expected near '2'");
    refused("", "C: line 1 column 0: '[' or '{' expected");
    refused("{\"a\":1,\"a\":2}", "duplicate object key near '\"a\"'");
    refused("{\"a\":{\"b\":1,\"b\":1}}", "duplicate object key near '\"b\"'");
    refused("{\"a\":99999999999999999999}", "too big integer");
    refused("{\"a\":1e999}", "real number overflow");
    refused("{\"a\":1} x", "end of file expected");
    refused("[1]", "C: expected a JSON object, got an array");
    refused("{\"a\":\"\xff\"}", "unable to decode byte 0xff");
    refused("{\"a\":\"\\u0000\"}", "\\u0000 is not allowed");
}

static void a_file_or_its_directory_is_opened(void **state)
{
    (void)state;
    test_directory directory;
    weir_config *config = NULL;
    test_directory_make(&directory);
    assert_int_equal(weir_config_open(directory.path, &config), WEIR_ERR_NOT_FOUND);
    assert_non_null(strstr(weir_last_error(), "/config.json: No such file"));
    test_directory_write(&directory, "config.json", text, strlen(text));
    assert_int_equal(weir_config_open(directory.path, &config), WEIR_OK);
    assert_string_equal(weir_config_string(config, "model_type"), "qwen3_moe");
    weir_config_close(config);
    assert_int_equal(weir_config_open(test_directory_file(&directory, "config.json"), &config),
                     WEIR_OK);
    weir_config_close(config);
    config = NULL;
    weir_alloc_fail_at(1);
    assert_int_equal(weir_config_open(directory.path, &config), WEIR_ERR_NO_MEMORY);
    weir_alloc_fail_at(0);
    assert_int_equal(weir_config_open("/none", &config), WEIR_ERR_NOT_FOUND);
    test_directory_write(&directory, "config.json", "", 0);
    assert_int_equal(weir_config_open(directory.path, &config), WEIR_ERR_FORMAT);
    assert_null(config);
    test_directory_remove(&directory);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(values_of_the_right_type_are_read),
        cmocka_unit_test(values_of_another_type_leave_the_output_alone),
        cmocka_unit_test(has_means_there_and_not_null),
        cmocka_unit_test(children_are_borrowed),
        cmocka_unit_test(arrays_of_integers_are_copied_up_to_n),
        cmocka_unit_test(strings_of_an_array_are_read_by_index),
        cmocka_unit_test(nothing_can_be_asked),
        cmocka_unit_test(the_text_keeps_the_order_of_keys),
        cmocka_unit_test(errors_have_line_and_column),
        cmocka_unit_test(a_file_or_its_directory_is_opened),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
