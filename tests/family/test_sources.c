/* SPDX-License-Identifier: Apache-2.0 */
#include "family/source_set.h"

static void each_naming_names_experts_its_own_way(void **state)
{
    (void)state;
    static const struct {
        weir_naming naming;
        const char *present, *absent;
        weir_shape shape;
    } cases[] = {
        { WEIR_NAMING_HF,
          "model.layers.1.mlp.experts.7.gate_proj.weight",
          "model.layers.1.mlp.experts.w1",
          { 2, { 96, 256 } } },
        { WEIR_NAMING_HF_FUSED,
          "model.layers.1.mlp.experts.gate_up_proj",
          "model.layers.1.mlp.experts.0.gate_proj.weight",
          { 3, { 8, 192, 256 } } },
        { WEIR_NAMING_STACKED,
          "model.layers.1.mlp.experts.w1",
          "model.layers.1.mlp.gate.weight",
          { 3, { 8, 96, 256 } } },
        { WEIR_NAMING_STACKED,
          "model.layers.1.mlp.shared_expert.w2",
          "model.layers.1.mlp.shared_experts.down_proj.weight",
          { 3, { 1, 256, 96 } } },
    };
    for (size_t c = 0; c < sizeof(cases) / sizeof(cases[0]); c++) {
        source_set *set = set_of_preset("glm_moe_dsa", "ragged", cases[c].naming);
        const weir_tensor *tensor = &set->tensors[set_find(set, cases[c].present)];
        assert_shape(&tensor->shape, cases[c].shape);
        for (size_t i = 0; i < set->n; i++)
            assert_string_not_equal(set->tensors[i].name, cases[c].absent);
        set_free(set);
    }
}

static void what_the_engine_keeps_in_fp32_is_fp32(void **state)
{
    (void)state;
    source_set *set = set_of_preset("glm_moe_dsa", "ragged", WEIR_NAMING_HF);
    for (size_t i = 0; i < set->n; i++) {
        bool full = strstr(set->tensors[i].name, "e_score_correction_bias") != NULL ||
                    strstr(set->tensors[i].name, "k_norm") != NULL;
        assert_int_equal(set->tensors[i].dtype, full ? WEIR_F32 : WEIR_BF16);
    }
    set_free(set);
}

static void conditions_of_the_config_add_and_remove_rows(void **state)
{
    (void)state;
    source_set *tied = set_of_preset("qwen3", "ragged", WEIR_NAMING_HF);
    for (size_t i = 0; i < tied->n; i++)
        assert_string_not_equal(tied->tensors[i].name, "lm_head.weight");
    set_free(tied);
    source_set *biased = set_of_preset("llama", "ragged", WEIR_NAMING_HF);
    set_find(biased, "model.layers.1.mlp.up_proj.bias");
    set_find(biased, "model.layers.1.self_attn.q_proj.bias");
    set_find(biased, "lm_head.weight");
    set_free(biased);
}

static void sizes_of_the_presets_are_as_promised(void **state)
{
    (void)state;
    weir_family_info families[SET_MAX_FAMILIES];
    size_t n_families = weir_families(families, SET_MAX_FAMILIES);
    for (size_t f = 0; f < n_families; f++) {
        for (size_t p = 0; families[f].presets[p] != NULL; p++) {
            char *text;
            weir_config *config;
            weir_tensor *tensors;
            size_t n;
            uint64_t total = 0, n_bytes;
            assert_int_equal(weir_family_preset(families[f].name, families[f].presets[p], &text),
                             WEIR_OK);
            assert_int_equal(weir_config_parse(text, "preset", &config), WEIR_OK);
            assert_int_equal(weir_family_sources(NULL, config, WEIR_NAMING_HF, &tensors, &n),
                             WEIR_OK);
            for (size_t i = 0; i < n; i++) {
                assert_int_equal(weir_tensor_bytes(tensors[i].dtype, &tensors[i].shape, &n_bytes),
                                 WEIR_OK);
                total += n_bytes;
            }
            if (strcmp(families[f].presets[p], "tiny") == 0 ||
                strcmp(families[f].presets[p], "ragged") == 0)
                assert_in_range(total, 1000000, 8000000);
            else if (strcmp(families[f].presets[p], "demo") == 0)
                assert_in_range(total, 400000000, 520000000);
            weir_family_sources_free(tensors);
            weir_config_close(config);
            weir_string_free(text);
        }
    }
}

static void glm_dsa_31b_has_31_4_billion_weights_in_every_naming(void **state)
{
    (void)state;
    const struct {
        weir_naming naming;
        size_t n_per_layer; /* of them 19 that are no routed experts */
    } cases[] = { { WEIR_NAMING_HF, 19 + 128 * 3 }, { WEIR_NAMING_STACKED, 19 + 3 } };
    char *text;
    weir_config *config;
    assert_int_equal(weir_family_preset("glm_moe_dsa", "glm-dsa-31b", &text), WEIR_OK);
    assert_int_equal(weir_config_parse(text, "preset", &config), WEIR_OK);
    for (size_t c = 0; c < 2; c++) {
        weir_tensor *tensors;
        size_t n;
        uint64_t total = 0, n_elements;
        assert_int_equal(weir_family_sources(NULL, config, cases[c].naming, &tensors, &n), WEIR_OK);
        assert_int_equal(n, 48 * cases[c].n_per_layer + 3);
        for (size_t i = 0; i < n; i++) {
            assert_int_equal(weir_shape_elements(&tensors[i].shape, &n_elements), WEIR_OK);
            total += n_elements;
        }
        assert_int_equal(total, 31435051008ull);
        weir_family_sources_free(tensors);
    }
    weir_config_close(config);
    weir_string_free(text);
}

static void wrong_calls_and_configs_are_refused(void **state)
{
    (void)state;
    weir_config *config;
    weir_tensor *tensors = NULL;
    size_t n;
    assert_int_equal(weir_family_sources("bert", NULL, WEIR_NAMING_HF, &tensors, &n),
                     WEIR_ERR_INVALID);
    assert_int_equal(weir_config_parse("{\"num_hidden_layers\":1}", "test", &config), WEIR_OK);
    assert_int_equal(weir_family_sources("bert", config, (weir_naming)9, &tensors, &n),
                     WEIR_ERR_INVALID);
    assert_int_equal(weir_family_sources("bert", config, WEIR_NAMING_HF, &tensors, &n),
                     WEIR_ERR_LAYOUT);
    assert_error_has("hidden_size is missing, attention.self.query.weight needs it");
    weir_config_close(config);
    assert_null(tensors);
    weir_family_sources_free(NULL);
}

static void more_tensors_than_any_model_has_are_refused(void **state)
{
    (void)state;
    weir_config *config;
    weir_tensor *tensors = NULL;
    size_t n;
    const char *text =
        "{\"model_type\":\"qwen3_moe\",\"num_hidden_layers\":4096,\"num_experts\":65536,"
        "\"hidden_size\":1,\"head_dim\":1,\"num_attention_heads\":1,\"moe_intermediate_size\":1}";
    assert_int_equal(weir_config_parse(text, "test", &config), WEIR_OK);
    assert_int_equal(weir_family_sources(NULL, config, WEIR_NAMING_HF, &tensors, &n),
                     WEIR_ERR_LAYOUT);
    assert_error_has("more than 1048576 tensors");
    weir_config_close(config);
}

static void no_memory_is_reported(void **state)
{
    (void)state;
    source_set *set = set_of_preset("bert", "ragged", WEIR_NAMING_HF);
    weir_tensor *tensors = NULL;
    size_t n;
    weir_alloc_fail_at(1);
    assert_int_equal(weir_family_sources("bert", set->config, WEIR_NAMING_HF, &tensors, &n),
                     WEIR_ERR_NO_MEMORY);
    weir_alloc_fail_at(0);
    set_free(set);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(each_naming_names_experts_its_own_way),
        cmocka_unit_test(what_the_engine_keeps_in_fp32_is_fp32),
        cmocka_unit_test(conditions_of_the_config_add_and_remove_rows),
        cmocka_unit_test(sizes_of_the_presets_are_as_promised),
        cmocka_unit_test(glm_dsa_31b_has_31_4_billion_weights_in_every_naming),
        cmocka_unit_test(wrong_calls_and_configs_are_refused),
        cmocka_unit_test(more_tensors_than_any_model_has_are_refused),
        cmocka_unit_test(no_memory_is_reported),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
