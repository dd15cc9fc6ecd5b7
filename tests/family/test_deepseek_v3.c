/* SPDX-License-Identifier: Apache-2.0 */
#include <stdio.h>

#include "family/source_set.h"

#define LAYER "model.layers.1.self_attn."

/* Replaces "old" in the config of a set. */
static void change_config(source_set *set, const char *old, const char *new)
{
    char *text = weir_config_text(set->config), changed[4096];
    const char *at = strstr(text, old);
    assert_non_null(at);
    assert_true(strlen(text) + strlen(new) < sizeof(changed));
    snprintf(changed, sizeof(changed), "%.*s%s%s", (int)(at - text), text, new, at + strlen(old));
    weir_string_free(text);
    set_config(set, changed);
}

/* What the config describes now, instead of what it described before. */
static void fill_again(source_set *set)
{
    weir_tensor *tensors;
    size_t n;
    while (set->n > 0)
        set_remove(set, set->tensors[0].name);
    assert_int_equal(weir_family_sources(NULL, set->config, WEIR_NAMING_HF, &tensors, &n), WEIR_OK);
    for (size_t i = 0; i < n; i++)
        set_add(set, tensors[i].name, tensors[i].dtype, tensors[i].shape);
    weir_family_sources_free(tensors);
}

static void without_a_low_rank_the_query_stands_alone(void **state)
{
    (void)state;
    source_set *set = set_of_preset("deepseek_v3", "ragged", WEIR_NAMING_HF);
    weir_mapping *m = NULL;
    change_config(set, "\"q_lora_rank\":192", "\"q_lora_rank\":null");
    fill_again(set);
    assert_int_equal(set_open(set, NULL, NULL, "fp8_128x128", &m), WEIR_OK);
    const weir_map_entry *query = find_entry(m, LAYER "q_proj.weight");
    assert_shape(&query->shape, SHAPE(256, 256));
    assert_string_equal(query->conversion->name, "fp8_128x128");
    const weir_map_entry *kv = find_entry(m, LAYER "kv_a_proj_with_mqa.weight");
    assert_shape(&kv->shape, SHAPE(144, 256));
    assert_null(find_entry(m, LAYER "fused_qkv_a_proj.weight"));
    assert_null(find_entry(m, LAYER "q_b_proj.weight"));
    weir_mapping_close(m);
    set_free(set);
}

static void a_layer_without_a_config_is_read_as_with_a_low_rank(void **state)
{
    (void)state;
    source_set *set = set_new();
    weir_mapping *m = NULL;
    set_add(set, LAYER "q_a_proj.weight", WEIR_BF16, SHAPE(24, 16));
    set_add(set, LAYER "kv_a_proj_with_mqa.weight", WEIR_BF16, SHAPE(8, 16));
    assert_int_equal(set_open(set, "deepseek_v3", NULL, "bf16_cast", &m), WEIR_OK);
    size_t n;
    const weir_map_entry *entries = weir_mapping_entries(m, &n);
    assert_int_equal(n, 1);
    assert_shape(&entries[0].shape, SHAPE(32, 16));
    weir_mapping_close(m);
    set_free(set);
}

static void w_uv_and_w_uk_t_follow_each_layers_kv_b_proj(void **state)
{
    (void)state;
    source_set *set = set_of_preset("deepseek_v3", "ragged", WEIR_NAMING_STACKED);
    weir_mapping *m = NULL;
    size_t n;
    assert_int_equal(set_open(set, NULL, NULL, "fp8_128x128", &m), WEIR_OK);
    weir_mapping_derived(m, &n);
    assert_int_equal(n, 2 * 3);
    assert_shape(&find_parameter(m, LAYER "W_UV")->shape, SHAPE(4, 128, 32));
    assert_shape(&find_parameter(m, LAYER "W_UK_T")->shape, SHAPE(4, 48, 128));
    weir_mapping_close(m);
    set_free(set);
}

static void a_model_may_have_no_shared_expert(void **state)
{
    (void)state;
    source_set *set = set_of_preset("deepseek_v3", "ragged", WEIR_NAMING_HF);
    weir_mapping *m = NULL;
    change_config(set, "\"n_shared_experts\":1", "\"n_shared_experts\":null");
    assert_int_equal(set_open(set, NULL, NULL, NULL, &m), WEIR_ERR_LAYOUT);
    assert_error_has("mlp.shared_experts.down_proj.weight: no row of family deepseek_v3 takes it");
    fill_again(set);
    assert_int_equal(set_open(set, NULL, NULL, NULL, &m), WEIR_OK);
    weir_mapping_close(m);
    set_free(set);
}

static void the_layer_that_predicts_further_tokens_is_refused_with_the_way_out(void **state)
{
    (void)state;
    source_set *set = set_of_preset("deepseek_v3", "ragged", WEIR_NAMING_HF);
    weir_mapping *m = NULL;
    set_add(set, "model.layers.3.eh_proj.weight", WEIR_BF16, SHAPE(256, 512));
    assert_int_equal(set_open(set, NULL, NULL, NULL, &m), WEIR_ERR_LAYOUT);
    assert_error_has("is of layer 3, but config.json has num_hidden_layers 3 (--ignore "
                     "'model.layers.3.*' leaves it out)");
    set_free(set);
}

static void the_large_presets_have_their_models_sizes(void **state)
{
    (void)state;
    static const struct {
        const char *preset;
        uint64_t n_weights;
    } cases[] = { { "deepseek-v3", 671026419200ull }, { "kimi-k2", 1026408232448ull } };
    for (size_t c = 0; c < sizeof(cases) / sizeof(cases[0]); c++) {
        char *text;
        weir_config *config;
        weir_tensor *tensors;
        size_t n;
        uint64_t total = 0, n_elements;
        assert_int_equal(weir_family_preset("deepseek_v3", cases[c].preset, &text), WEIR_OK);
        assert_int_equal(weir_config_parse(text, cases[c].preset, &config), WEIR_OK);
        assert_int_equal(weir_family_sources(NULL, config, WEIR_NAMING_STACKED, &tensors, &n),
                         WEIR_OK);
        for (size_t i = 0; i < n; i++) {
            assert_int_equal(weir_shape_elements(&tensors[i].shape, &n_elements), WEIR_OK);
            total += n_elements;
        }
        assert_int_equal(total, cases[c].n_weights);
        weir_family_sources_free(tensors);
        weir_config_close(config);
        weir_string_free(text);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(without_a_low_rank_the_query_stands_alone),
        cmocka_unit_test(a_layer_without_a_config_is_read_as_with_a_low_rank),
        cmocka_unit_test(w_uv_and_w_uk_t_follow_each_layers_kv_b_proj),
        cmocka_unit_test(a_model_may_have_no_shared_expert),
        cmocka_unit_test(the_layer_that_predicts_further_tokens_is_refused_with_the_way_out),
        cmocka_unit_test(the_large_presets_have_their_models_sizes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
