/* SPDX-License-Identifier: Apache-2.0 */
/* Which conversion a config.json selects, and in which order rules are asked. */
#include "convert/convert_case.h"

#include "base/alloc.h"

#define BLOCK_128 "\"weight_block_size\":[128,128]"

/* The selected conversion's name; NULL when select failed. */
static const char *selected(const char *quantization)
{
    char text[4096];
    weir_config *config = NULL;
    const weir_conversion *conversion = NULL;
    snprintf(text, sizeof(text), "{\"model_type\":\"qwen3\",\"quantization_config\":%s}",
             quantization);
    if (weir_config_parse(text, "test", &config) != WEIR_OK)
        fail_msg("%s", weir_last_error());
    weir_status status = weir_conversion_select(config, &conversion);
    weir_config_close(config);
    if (status == WEIR_OK)
        return conversion->name;
    assert_int_equal(status, WEIR_ERR_UNSUPPORTED);
    return NULL;
}

/* B3 */
static void no_quantization_config_means_bf16(void **state)
{
    (void)state;
    weir_config *config = NULL;
    const weir_conversion *conversion = NULL;
    assert_int_equal(weir_config_parse("{\"model_type\":\"qwen3\"}", "test", &config), WEIR_OK);
    assert_int_equal(weir_conversion_select(config, &conversion), WEIR_OK);
    weir_config_close(config);
    assert_string_equal(conversion->name, "bf16_cast");
    assert_int_equal(weir_conversion_select(NULL, &conversion), WEIR_OK);
    assert_string_equal(conversion->name, "bf16_cast");
    assert_string_equal(selected("null"), "bf16_cast");
}

static void a_language_model_within_a_larger_one_is_asked_too(void **state)
{
    (void)state;
    const struct {
        const char *config, *conversion;
    } cases[] = {
        { "{\"text_config\":{\"quantization_config\":{\"quant_method\":\"fp8\"," BLOCK_128 "}}}",
          "fp8_128x128" },
        { "{\"quantization_config\":{\"quant_method\":\"fp8\",\"quant_format\":\"cutlass\"},"
          "\"text_config\":{\"quantization_config\":{\"quant_method\":\"fp8\"," BLOCK_128 "}}}",
          "cutlass_fp8_e4m3_per_channel" },
        { "{\"text_config\":{\"quantization_config\":null}}", "bf16_cast" },
        { "{\"text_config\":3}", "bf16_cast" },
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        weir_config *config = NULL;
        const weir_conversion *conversion = NULL;
        assert_int_equal(weir_config_parse(cases[i].config, "test", &config), WEIR_OK);
        assert_int_equal(weir_conversion_select(config, &conversion), WEIR_OK);
        weir_config_close(config);
        assert_string_equal(conversion->name, cases[i].conversion);
    }
}

/* B4 to B7 */
static void configs_select_in_order_of_the_rules(void **state)
{
    (void)state;
    const char *block = "fp8_128x128", *channel = "cutlass_fp8_e4m3_per_channel";
    assert_string_equal(selected("{\"quant_method\":\"fp8\"," BLOCK_128 "}"), block);
    assert_string_equal(
        selected("{\"quant_method\":\"fp8\"," BLOCK_128 ",\"quant_format\":\"cutlass\"}"), block);
    assert_string_equal(
        selected("{\"quant_method\":\"fp8\"," BLOCK_128 ",\"activation_scheme\":\"dynamic\"}"),
        block);
    assert_string_equal(selected("{\"quant_method\":\"fp8\",\"quant_format\":\"cutlass\"}"),
                        channel);
    assert_string_equal(selected("{\"quant_method\":\"fp8\",\"activation_scheme\":\"dynamic\"}"),
                        channel);
    assert_string_equal(selected("{\"quant_method\":\"fp8\",\"weight_block_size\":null,"
                                 "\"activation_scheme\":\"dynamic\"}"),
                        channel);
    assert_string_equal(selected("{\"quant_method\":\"fp8\",\"weight_block_size\":[],"
                                 "\"activation_scheme\":\"dynamic\"}"),
                        channel);
    assert_string_equal(selected("{\"quant_method\":\"fp8\",\"weight_block_size\":[64,64],"
                                 "\"quant_format\":\"cutlass\"}"),
                        channel);
}

/* B8 */
static void other_configs_are_unsupported(void **state)
{
    (void)state;
    const char *configs[] = {
        "{\"quant_method\":\"fp8\",\"activation_scheme\":\"static\"}",
        "{\"quant_method\":\"gptq\"}",
        "{\"quant_method\":\"fp8\",\"weight_block_size\":[64,64],\"activation_scheme\":"
        "\"dynamic\"}",
        "{\"quant_method\":\"fp8\",\"weight_block_size\":[128,128,1]}",
        "{\"quant_method\":\"fp8\",\"weight_block_size\":\"128\",\"activation_scheme\":"
        "\"dynamic\"}",
        "{\"quant_method\":[\"fp8\"]," BLOCK_128 "}",
        "{}",
    };
    for (size_t i = 0; i < sizeof(configs) / sizeof(configs[0]); i++)
        assert_null(selected(configs[i]));
    assert_null(selected("{\"quant_method\":\"gptq\"}"));
    assert_string_equal(weir_last_error(),
                        "unsupported inference quantization: {\"quant_method\":\"gptq\"}; "
                        "registered conversions: [bf16_cast, cutlass_fp8_e4m3_per_channel, "
                        "fp32_cast, fp8_128x128, neg_exp]; register a new rule via "
                        "weir_default_rule_register");
    assert_null(selected("\"fp8\""));
    assert_non_null(strstr(weir_last_error(), "registered conversions: [bf16_cast"));
}

static void a_long_config_leaves_room_for_the_conversions(void **state)
{
    (void)state;
    char config[3000] = "{\"quant_method\":\"gptq\",\"modules_to_not_convert\":[\"lm_head\"";
    for (int i = 0; i < 100; i++)
        strcat(config, ",\"model.layers\"");
    strcat(config, "]}");
    assert_null(selected(config));
    assert_non_null(strstr(weir_last_error(), "neg_exp]; register a new rule"));
}

/* B10 */
static void resolve_prefers_the_given_name(void **state)
{
    (void)state;
    const weir_conversion *conversion = NULL;
    assert_int_equal(weir_conversion_resolve("fp32_cast", "fp8_128x128", &conversion), WEIR_OK);
    assert_string_equal(conversion->name, "fp32_cast");
    assert_int_equal(weir_conversion_resolve(NULL, "fp8_128x128", &conversion), WEIR_OK);
    assert_string_equal(conversion->name, "fp8_128x128");
    assert_int_equal(weir_conversion_resolve("", "bf16_cast", &conversion), WEIR_OK);
    assert_string_equal(conversion->name, "bf16_cast");
    assert_int_equal(weir_conversion_resolve("nope", "bf16_cast", &conversion), WEIR_ERR_NOT_FOUND);
    assert_int_equal(weir_conversion_resolve(NULL, NULL, &conversion), WEIR_ERR_NOT_FOUND);
}

/* ---- rules of one's own (they stay for the rest of the process) ------------------------------*/

static int counted_answer(void *context, const weir_config *quantization)
{
    int *rule = context;
    rule[1]++;
    return weir_config_has(quantization, "test_rule") ? rule[0] : 0;
}

static int always_yes[2] = { 1, 0 }, cannot_read[2] = { -1, 0 }, never[2] = { 0, 0 };

/* B9 */
static void a_rule_put_first_is_asked_before_the_built_in(void **state)
{
    (void)state;
    const char *config = "{\"test_rule\":1,\"quant_method\":\"fp8\"," BLOCK_128 "}";
    assert_string_equal(selected(config), "fp8_128x128");
    assert_int_equal(weir_default_rule_register(counted_answer, always_yes, "bf16_cast", false),
                     WEIR_OK);
    assert_string_equal(selected(config), "fp8_128x128");
    assert_int_equal(always_yes[1], 0);
    assert_string_equal(selected("{\"test_rule\":1}"), "bf16_cast");
    assert_int_equal(weir_default_rule_register(counted_answer, always_yes, "fp32_cast", true),
                     WEIR_OK);
    assert_string_equal(selected(config), "fp32_cast");
}

static void a_rule_that_cannot_read_its_config_does_not_match(void **state)
{
    (void)state;
    assert_int_equal(weir_default_rule_register(counted_answer, cannot_read, "bf16_cast", true),
                     WEIR_OK);
    assert_string_equal(selected("{\"test_rule\":1,\"quant_method\":\"fp8\"}"), "fp32_cast");
    assert_int_equal(cannot_read[1], 1);
}

static void a_rule_names_its_conversion_only_when_it_matches(void **state)
{
    (void)state;
    static int yes[2] = { 1, 0 };
    assert_int_equal(weir_default_rule_register(counted_answer, yes, "not_there_yet", true),
                     WEIR_OK);
    weir_config *config = NULL;
    const weir_conversion *conversion = NULL;
    assert_int_equal(
        weir_config_parse("{\"quantization_config\":{\"test_rule\":1}}", "test", &config), WEIR_OK);
    assert_int_equal(weir_conversion_select(config, &conversion), WEIR_ERR_NOT_FOUND);
    weir_config_close(config);
    assert_non_null(strstr(weir_last_error(), "unknown conversion 'not_there_yet'"));
    yes[0] = 0;
}

static void rules_need_a_function_and_a_name(void **state)
{
    (void)state;
    assert_int_equal(weir_default_rule_register(NULL, NULL, "bf16_cast", false), WEIR_ERR_INVALID);
    assert_int_equal(weir_default_rule_register(counted_answer, never, NULL, false),
                     WEIR_ERR_INVALID);
}

static void running_out_of_memory_loses_no_rule(void **state)
{
    (void)state;
    bool failed = false;
    for (int i = 0; i < 40; i++) {
        weir_alloc_fail_at(1);
        weir_status status = weir_default_rule_register(counted_answer, never, "bf16_cast", true);
        weir_alloc_fail_at(0);
        failed |= status == WEIR_ERR_NO_MEMORY;
        if (status == WEIR_ERR_NO_MEMORY)
            assert_int_equal(weir_default_rule_register(counted_answer, never, "bf16_cast", true),
                             WEIR_OK);
    }
    assert_true(failed);
    assert_string_equal(selected("{\"quant_method\":\"fp8\"," BLOCK_128 "}"), "fp8_128x128");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(no_quantization_config_means_bf16),
        cmocka_unit_test(a_language_model_within_a_larger_one_is_asked_too),
        cmocka_unit_test(configs_select_in_order_of_the_rules),
        cmocka_unit_test(other_configs_are_unsupported),
        cmocka_unit_test(a_long_config_leaves_room_for_the_conversions),
        cmocka_unit_test(resolve_prefers_the_given_name),
        cmocka_unit_test(a_rule_put_first_is_asked_before_the_built_in),
        cmocka_unit_test(a_rule_that_cannot_read_its_config_does_not_match),
        cmocka_unit_test(a_rule_names_its_conversion_only_when_it_matches),
        cmocka_unit_test(rules_need_a_function_and_a_name),
        cmocka_unit_test(running_out_of_memory_loses_no_rule),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
