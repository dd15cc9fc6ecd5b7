/* SPDX-License-Identifier: Apache-2.0 */
#include "family/source_set.h"

/* clang-format off */
static const char *const names[] = {
    "afmoe",
    "bert",
    "deepseek_v3",
    "gemma2",
    "gemma3_text",
    "glm4_moe",
    "glm_moe_dsa",
    "gpt_oss",
    "laguna",
    "llama",
    "minimax_m2",
    "mistral",
    "mixtral",
    "nemotron_h",
    "qwen2",
    "qwen3",
    "qwen3_5",
    "qwen3_5_moe",
    "qwen3_moe",
};
/* clang-format on */
#define N_NAMES (sizeof(names) / sizeof(names[0]))

static void every_family_has_a_layout_a_model_type_and_presets(void **state)
{
    (void)state;
    weir_family_info families[SET_MAX_FAMILIES];
    size_t n = weir_families(families, SET_MAX_FAMILIES);
    assert_int_equal(n, N_NAMES);
    for (size_t i = 0; i < n; i++) {
        assert_string_equal(families[i].name, names[i]);
        assert_non_null(families[i].layouts[0]);
        assert_non_null(families[i].model_types[0]);
        assert_string_equal(families[i].presets[0], "tiny");
        assert_true(i == 0 || strcmp(families[i - 1].name, families[i].name) < 0);
    }
    assert_int_equal(weir_families(NULL, 0), N_NAMES);
}

static void the_default_glm_layout_has_the_fused_indexer(void **state)
{
    (void)state;
    const weir_family *family;
    assert_int_equal(weir_family_find("glm_moe_dsa", &family), WEIR_OK);
    assert_string_equal(family->layouts[0], "fused_indexer");
    assert_string_equal(family->layouts[1], "split_indexer");
}

static void every_preset_selects_its_own_family(void **state)
{
    (void)state;
    weir_family_info families[SET_MAX_FAMILIES];
    size_t n = weir_families(families, SET_MAX_FAMILIES);
    for (size_t i = 0; i < n; i++) {
        for (size_t p = 0; families[i].presets[p] != NULL; p++) {
            char *text;
            const char *family;
            weir_config *config;
            assert_int_equal(weir_family_preset(families[i].name, families[i].presets[p], &text),
                             WEIR_OK);
            assert_int_equal(weir_config_parse(text, "preset", &config), WEIR_OK);
            assert_int_equal(weir_family_of_config(config, &family), WEIR_OK);
            assert_string_equal(family, families[i].name);
            assert_false(weir_config_has(config, "quantization_config"));
            weir_config_close(config);
            weir_string_free(text);
        }
    }
}

static void a_model_type_within_text_config_counts(void **state)
{
    (void)state;
    weir_config *config;
    const char *family;
    const char *text = "{\"model_type\":\"tower\",\"text_config\":{\"model_type\":\"qwen3_moe\"}}";
    assert_int_equal(weir_config_parse(text, "test", &config), WEIR_OK);
    assert_int_equal(weir_family_of_config(config, &family), WEIR_OK);
    assert_string_equal(family, "qwen3_moe");
    weir_config_close(config);
}

static void unknown_names_list_what_there_is(void **state)
{
    (void)state;
    const weir_family *family;
    const weir_family_parts *parts;
    const char *name;
    char *text;
    weir_config *config;
    assert_int_equal(weir_family_find("gpt", &family), WEIR_ERR_NOT_FOUND);
    assert_error_has("unknown family 'gpt'; there are: afmoe, ");
    for (size_t i = 0; i < N_NAMES; i++)
        assert_error_has(names[i]);
    assert_int_equal(weir_family_find("bert", &family), WEIR_OK);
    assert_int_equal(weir_family_find_parts(family, "v2", &parts), WEIR_ERR_NOT_FOUND);
    assert_error_has("family bert has no engine layout 'v2'; it has: default");
    assert_int_equal(weir_family_preset("bert", "huge", &text), WEIR_ERR_NOT_FOUND);
    assert_error_has("no preset 'huge'; it has: tiny, ragged, minilm, demo");
    assert_int_equal(weir_family_preset("gpt", "tiny", &text), WEIR_ERR_NOT_FOUND);
    assert_int_equal(weir_config_parse("{\"model_type\":\"gpt\"}", "test", &config), WEIR_OK);
    assert_int_equal(weir_family_of_config(config, &name), WEIR_ERR_NOT_FOUND);
    assert_error_has("model_type 'gpt' is of no family; known: afmoe,");
    weir_config_close(config);
    assert_int_equal(weir_config_parse("{}", "test", &config), WEIR_OK);
    assert_int_equal(weir_family_of_config(config, &name), WEIR_ERR_NOT_FOUND);
    assert_error_has("config.json has no model_type");
    weir_config_close(config);
}

static void a_preset_that_finds_no_memory_says_so(void **state)
{
    (void)state;
    char *text = NULL;
    weir_alloc_fail_at(1);
    assert_int_equal(weir_family_preset("bert", "tiny", &text), WEIR_ERR_NO_MEMORY);
    weir_alloc_fail_at(0);
    assert_null(text);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_family_has_a_layout_a_model_type_and_presets),
        cmocka_unit_test(the_default_glm_layout_has_the_fused_indexer),
        cmocka_unit_test(every_preset_selects_its_own_family),
        cmocka_unit_test(a_model_type_within_text_config_counts),
        cmocka_unit_test(unknown_names_list_what_there_is),
        cmocka_unit_test(a_preset_that_finds_no_memory_says_so),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
