/* SPDX-License-Identifier: Apache-2.0 */
/* Fields and values as programs that list them see them. */
#include "config/config_case.h"

static void fields_are_listed_with_all_that_is_known(void **state)
{
    (void)state;
    weir_run_field fields[128];
    size_t n_fields = weir_run_fields(fields, 128);
    assert_in_range(n_fields, 40, 128);
    assert_int_equal(weir_run_fields(NULL, 0), n_fields);
    size_t n_found = 0;
    for (size_t i = 0; i < n_fields; i++) {
        if (strcmp(fields[i].path, "trainer.weight_broadcast.port") == 0) {
            assert_string_equal(fields[i].type, "integer");
            assert_string_equal(fields[i].default_value, "29501");
            assert_string_equal(fields[i].from, "weight_broadcast.port");
            assert_int_equal(fields[i].least, 1);
            assert_int_equal(fields[i].most, 65535);
            n_found++;
        } else if (strcmp(fields[i].path, "inference") == 0) {
            assert_string_equal(fields[i].type, "block");
            assert_true(fields[i].optional);
            n_found++;
        } else if (strcmp(fields[i].path, "trainer") == 0) {
            assert_false(fields[i].optional);
            n_found++;
        }
    }
    assert_int_equal(n_found, 3);
}

static void value_is(const weir_run_config *config, const char *path, const char *item,
                     const char *source, uint32_t line)
{
    weir_run_value value;
    assert_true(weir_run_config_value(config, path, &value));
    assert_int_equal(value.n_items, 1);
    assert_string_equal(value.items[0], item);
    assert_int_equal(value.line, line);
    if (source == NULL)
        assert_null(value.source);
    else
        assert_string_equal(value.source, source);
}

static void values_say_where_they_come_from(void **state)
{
    (void)state;
    weir_run_config *config = config_of("model: {name: m}\nweight_broadcast:\n  type: nccl\n");
    value_is(config, "weight_broadcast.type", "nccl", "weight_broadcast.type", 3);
    value_is(config, "trainer.weight_broadcast.type", "nccl", "weight_broadcast.type", 3);
    value_is(config, "trainer.weight_broadcast.port", "29501", NULL, 0);
    value_is(config, "orchestrator.model.name", "m", "model.name", 1);
    value_is(config, "trainer.weight_broadcast.quantize_in_weight_transfer", "false", NULL, 0);
    weir_run_config_close(config);
}

static void a_list_has_all_its_items(void **state)
{
    (void)state;
    weir_run_value value;
    weir_run_config *config = config_of("orchestrator: {servers: [a:1, b:1]}\n");
    assert_true(weir_run_config_value(config, "orchestrator.servers", &value));
    assert_int_equal(value.n_items, 2);
    assert_string_equal(value.items[1], "b:1");
    weir_run_config_close(config);
}

static void what_is_not_there_has_no_value(void **state)
{
    (void)state;
    weir_run_value value;
    weir_run_config *config = config_of("model: {name: m}\n");
    static const char *const absent[] = { "inference.tp",
                                          "inference",
                                          "weight_broadcast.port",
                                          "trainer.model.lora.rank",
                                          "model.path",
                                          "none",
                                          "" };
    for (size_t i = 0; i < sizeof(absent) / sizeof(absent[0]); i++)
        assert_false(weir_run_config_value(config, absent[i], &value));
    assert_true(weir_run_config_value(config, "trainer", &value));
    assert_int_equal(value.n_items, 0);
    weir_run_config_close(config);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(fields_are_listed_with_all_that_is_known),
        cmocka_unit_test(values_say_where_they_come_from),
        cmocka_unit_test(a_list_has_all_its_items),
        cmocka_unit_test(what_is_not_there_has_no_value),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
