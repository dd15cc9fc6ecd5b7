/* SPDX-License-Identifier: Apache-2.0 */
/* Kernel format and the inference model's config.json. */
#include "config/config_case.h"

#include "checkpoint/test_directory.h"

#define QWEN "{\"model_type\": \"qwen3\"}"
#define QWEN_FP8                                                                        \
    "{\"model_type\": \"qwen3\", \"quantization_config\": {\"quant_method\": \"fp8\", " \
    "\"weight_block_size\": [128, 128]}}"

static test_directory directory;

static int make_directory(void **state)
{
    (void)state;
    test_directory_make(&directory);
    return 0;
}

static int remove_directory(void **state)
{
    (void)state;
    test_directory_remove(&directory);
    return 0;
}

/* A run in kernel format whose inference model lies in the directory; `more` is of its block. */
static const char *run_of(const char *json, bool is_kernel, const char *more)
{
    static char text[1024];
    if (json != NULL)
        test_directory_write(&directory, "config.json", json, strlen(json));
    snprintf(text, sizeof(text),
             "model: {name: m}\ntrainer: {model: {impl: custom}}\n"
             "weight_broadcast: {type: nccl, quantize_in_weight_transfer: %s}\n"
             "inference:\n%s  model:\n    name: q\n    path: %s\n",
             is_kernel ? "true" : "false", more, directory.path);
    return text;
}

static void expect_one(const char *text, const char *path, const char *why)
{
    weir_run_config *config = config_of(text);
    assert_int_equal(weir_run_config_problems(config), 1);
    const weir_run_problem *problem = weir_run_config_problem(config, 0);
    assert_string_equal(problem->path, path);
    if (strstr(problem->text, why) == NULL)
        fail_msg("expected '%s' in: %s", why, problem->text);
    weir_run_config_close(config);
}

static void the_quantization_config_says_the_conversion(void **state)
{
    (void)state;
    weir_run_config *config;
    const weir_run_settings *settings = settings_of(run_of(QWEN_FP8, true, ""), &config);
    assert_string_equal(settings->family, "qwen3");
    assert_string_equal(settings->conversion, "fp8_128x128");
    weir_run_config_close(config);
    settings = settings_of(run_of(QWEN, true, ""), &config);
    assert_string_equal(settings->conversion, "bf16_cast");
    weir_run_config_close(config);
}

static void a_conversion_that_is_named_stands(void **state)
{
    (void)state;
    weir_run_config *config;
    const weir_run_settings *settings = settings_of(
        run_of(QWEN_FP8, true, "  conversion: cutlass_fp8_e4m3_per_channel\n"), &config);
    assert_string_equal(settings->conversion, "cutlass_fp8_e4m3_per_channel");
    weir_run_config_close(config);
    expect_one(run_of(QWEN, true, "  conversion: fp9\n"), "inference.conversion", "fp9");
}

static void a_model_of_no_family_is_refused(void **state)
{
    (void)state;
    expect_one(run_of("{\"model_type\": \"gpt2\"}", true, ""), "inference.model.path",
               "model_type 'gpt2' is of no family");
    expect_one(run_of("{}", true, ""), "inference.model.path", "has no model_type");
}

static void a_quantization_of_no_conversion_is_refused(void **state)
{
    (void)state;
    expect_one(run_of("{\"model_type\": \"qwen3\", \"quantization_config\": {\"quant_method\": "
                      "\"none-such\"}}",
                      true, ""),
               "inference.model.path", "none-such");
}

static void a_config_that_cannot_be_read_is_refused(void **state)
{
    (void)state;
    expect_one(run_of(NULL, true, ""), "inference.model.path", "config.json: No such file");
    expect_one(run_of("{", true, ""), "inference.model.path", "config.json: line 1");
}

static void a_layout_of_another_family_is_refused(void **state)
{
    (void)state;
    expect_one(run_of(QWEN, true, "  layout: fused_indexer\n"), "inference.layout",
               "'fused_indexer' is no layout of family qwen3");
    expect_none(run_of("{\"model_type\": \"glm_moe_dsa\"}", true, "  layout: split_indexer\n"));
}

static void a_name_may_be_the_directory(void **state)
{
    (void)state;
    char text[1024];
    test_directory_write(&directory, "config.json", QWEN_FP8, strlen(QWEN_FP8));
    snprintf(text, sizeof(text),
             "model: {name: %s}\ntrainer: {model: {impl: custom}}\ninference: {}\n"
             "weight_broadcast: {type: nccl, quantize_in_weight_transfer: true}\n",
             directory.path);
    weir_run_config *config;
    assert_string_equal(settings_of(text, &config)->conversion, "fp8_128x128");
    weir_run_config_close(config);
    test_directory_write(&directory, "config.json", "{}", 2);
    expect_one(text, "model.name", "has no model_type");
}

static void nothing_is_said_of_models_elsewhere_or_in_checkpoint_format(void **state)
{
    (void)state;
    weir_run_config *config;
    const weir_run_settings *settings = settings_of(run_of("{}", false, ""), &config);
    assert_null(settings->family);
    assert_null(settings->conversion);
    weir_run_config_close(config);
    expect_none("model: {name: m}\ntrainer: {model: {impl: custom}}\n"
                "inference: {model: {path: /none/such}}\n"
                "weight_broadcast: {type: nccl, quantize_in_weight_transfer: true}\n");
}

#define CASE(name) cmocka_unit_test_setup_teardown(name, make_directory, remove_directory)

int main(void)
{
    const struct CMUnitTest tests[] = {
        CASE(the_quantization_config_says_the_conversion),
        CASE(a_conversion_that_is_named_stands),
        CASE(a_model_of_no_family_is_refused),
        CASE(a_quantization_of_no_conversion_is_refused),
        CASE(a_config_that_cannot_be_read_is_refused),
        CASE(a_layout_of_another_family_is_refused),
        CASE(a_name_may_be_the_directory),
        CASE(nothing_is_said_of_models_elsewhere_or_in_checkpoint_format),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
