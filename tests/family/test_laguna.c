/* SPDX-License-Identifier: Apache-2.0 */
#include "family/model.h"
#include "family/source_set.h"

#define CONFIG(more)                                                                           \
    "{\"model_type\":\"laguna\",\"num_hidden_layers\":3,\"num_experts\":2,\"hidden_size\":64," \
    "\"num_attention_heads\":2,\"num_key_value_heads\":1,\"head_dim\":16,"                     \
    "\"intermediate_size\":48,\"moe_intermediate_size\":24,\"vocab_size\":100" more "}"

static weir_status open_config(source_set *set, const char *text, weir_mapping **out)
{
    weir_tensor *tensors;
    size_t n;
    set_config(set, text);
    weir_status status = weir_family_sources(NULL, set->config, WEIR_NAMING_HF, &tensors, &n);
    if (status != WEIR_OK)
        return status;
    for (size_t i = 0; i < n; i++)
        set_add(set, tensors[i].name, tensors[i].dtype, tensors[i].shape);
    weir_family_sources_free(tensors);
    return set_open(set, NULL, NULL, "fp8_128x128", out);
}

static void check_dense(const char *text, const char *expected)
{
    weir_model model;
    weir_config *config = NULL;
    assert_int_equal(weir_config_parse(text, "test", &config), WEIR_OK);
    assert_int_equal(weir_model_init(&model, NULL, NULL, config), WEIR_OK);
    for (size_t i = 0; expected[i] != '\0'; i++)
        assert_int_equal(model.dense[i], expected[i] == 'd');
    weir_config_close(config);
}

static void dense_layers_are_told_by_type_or_by_list(void **state)
{
    (void)state;
    check_dense(CONFIG(""), "dss");
    check_dense(CONFIG(",\"mlp_layer_types\":[\"sparse\",\"dense\",\"sparse\"]"), "sds");
    check_dense(CONFIG(",\"mlp_only_layers\":[2]"), "ssd");
    check_dense(CONFIG(",\"mlp_only_layers\":[]"), "sss");
    check_dense(CONFIG(",\"mlp_only_layers\":[],\"decoder_sparse_step\":2"), "dsd");
    check_dense(CONFIG(",\"mlp_only_layers\":[2],"
                       "\"mlp_layer_types\":[\"dense\",\"sparse\",\"sparse\"]"),
                "dss");
}

static void a_layer_of_no_known_type_is_refused(void **state)
{
    (void)state;
    static const struct {
        const char *text, *error;
    } cases[] = {
        { CONFIG(",\"mlp_layer_types\":[\"dense\"]"), "says '' of layer 1, expected dense or" },
        { CONFIG(",\"mlp_layer_types\":[\"dense\",\"moe\",\"sparse\"]"), "says 'moe' of layer 1" },
        { CONFIG(",\"mlp_layer_types\":3"), "says '' of layer 0" },
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        weir_model model;
        weir_config *config = NULL;
        assert_int_equal(weir_config_parse(cases[i].text, "test", &config), WEIR_OK);
        assert_int_equal(weir_model_init(&model, NULL, NULL, config), WEIR_ERR_LAYOUT);
        assert_error_has(cases[i].error);
        weir_config_close(config);
    }
}

static void heads_may_differ_by_layer(void **state)
{
    (void)state;
    source_set *set = set_new();
    weir_mapping *m = NULL;
    const char *text = CONFIG(",\"num_attention_heads_per_layer\":[2,5,3]");
    assert_int_equal(open_config(set, text, &m), WEIR_OK);
    const weir_map_entry *entry = find_entry(m, "model.layers.1.self_attn.qkv_proj.weight");
    assert_shape(&entry->shape, SHAPE((5 + 1 + 1) * 16, 64));
    assert_int_equal(entry->units[0], 5);
    assert_int_equal(entry->units[1], 1);
    entry = find_entry(m, "model.layers.2.self_attn.o_proj.weight");
    assert_shape(&entry->shape, SHAPE(64, 3 * 16));
    weir_mapping_close(m);
    set_free(set);
    set = set_new();
    text = CONFIG(",\"num_attention_heads_per_layer\":[2,5]");
    assert_int_equal(open_config(set, text, &m), WEIR_ERR_LAYOUT);
    assert_error_has(
        "num_attention_heads_per_layer is no whole number nor a list of one per layer");
    set_free(set);
}

static void the_gate_of_attention_has_heads_or_elements_or_is_not_there(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        uint64_t n_rows;
    } cases[] = { { CONFIG(""), 2 },
                  { CONFIG(",\"gating\":true"), 2 },
                  { CONFIG(",\"gating\":\"per-head\""), 2 },
                  { CONFIG(",\"gating\":\"per-element\""), 32 },
                  { CONFIG(",\"gating\":false"), 0 } };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        source_set *set = set_new();
        weir_mapping *m = NULL;
        assert_int_equal(open_config(set, cases[i].text, &m), WEIR_OK);
        const weir_map_entry *entry = find_entry(m, "model.layers.0.self_attn.g_proj.weight");
        assert_int_equal(entry != NULL, cases[i].n_rows > 0);
        if (entry != NULL)
            assert_shape(&entry->shape, SHAPE(cases[i].n_rows, 64));
        weir_mapping_close(m);
        set_free(set);
    }
}

static void namings_of_checkpoint_and_model_may_be_mixed(void **state)
{
    (void)state;
    source_set *set = set_of_preset("laguna", "ragged", WEIR_NAMING_HF);
    weir_mapping *m = NULL;
    set_rename(set, "model.layers.1.mlp.experts.e_score_correction_bias",
               "model.layers.1.mlp.gate.e_score_correction_bias");
    set_rename(set, "model.layers.2.mlp.shared_expert.up_proj.weight",
               "model.layers.2.mlp.shared_experts.up_proj.weight");
    assert_int_equal(set_open(set, NULL, NULL, NULL, &m), WEIR_OK);
    weir_mapping_close(m);
    set_free(set);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(dense_layers_are_told_by_type_or_by_list),
        cmocka_unit_test(a_layer_of_no_known_type_is_refused),
        cmocka_unit_test(heads_may_differ_by_layer),
        cmocka_unit_test(the_gate_of_attention_has_heads_or_elements_or_is_not_there),
        cmocka_unit_test(namings_of_checkpoint_and_model_may_be_mixed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
