/* SPDX-License-Identifier: Apache-2.0 */
#include "family/layers.h"

#include "family/source_set.h"

#define QWEN "\"model_type\":\"qwen3_moe\",\"num_hidden_layers\":6,\"num_experts\":4"
#define HYBRID "\"model_type\":\"qwen3_5_text\",\"num_hidden_layers\":5"
#define NEMOTRON(more) "{\"model_type\":\"nemotron_h\",\"n_routed_experts\":2" more "}"
#define NEMOTRON_PATTERN(text) NEMOTRON(",\"hybrid_override_pattern\":\"" text "\"")

static weir_status init(weir_model *model, const char *text, weir_config **out)
{
    *out = NULL;
    assert_int_equal(weir_config_parse(text, "test", out), WEIR_OK);
    return weir_model_init(model, NULL, NULL, *out);
}

static void check_dense(const char *text, const char *expected)
{
    weir_model model;
    weir_config *config;
    assert_int_equal(init(&model, text, &config), WEIR_OK);
    for (size_t i = 0; expected[i] != '\0'; i++)
        assert_int_equal(model.dense[i], expected[i] == 'd');
    weir_config_close(config);
}

static void dense_layers_follow_each_familys_rule(void **state)
{
    (void)state;
    check_dense("{" QWEN "}", "ssssss");
    check_dense("{" QWEN ",\"mlp_only_layers\":[1,5,99]}", "sdsssd");
    check_dense("{" QWEN ",\"decoder_sparse_step\":2}", "dsdsds");
    check_dense("{\"model_type\":\"qwen3_moe\",\"num_hidden_layers\":2,\"num_experts\":0}", "dd");
    check_dense("{\"model_type\":\"glm_moe_dsa\",\"num_hidden_layers\":4,\"n_routed_experts\":8,"
                "\"first_k_dense_replace\":3}",
                "ddds");
    check_dense("{\"model_type\":\"llama\",\"num_hidden_layers\":2}", "dd");
}

static void check_kinds(const char *text, const char *expected)
{
    weir_model model;
    weir_config *config;
    const weir_family_row *tables[WEIR_MODEL_TABLES];
    assert_int_equal(init(&model, text, &config), WEIR_OK);
    for (int i = 0; expected[i] != '\0'; i++) {
        assert_int_equal(model.kind[i], expected[i] == 'l');
        assert_int_equal(weir_model_tables(&model, i, tables), 3);
        assert_ptr_equal(tables[1], model.family->layer_kinds.rows[expected[i] == 'l']);
    }
    weir_config_close(config);
}

static void kinds_of_layers_follow_the_list_or_the_interval(void **state)
{
    (void)state;
    check_kinds("{" HYBRID "}", "lllfl");
    check_kinds("{" HYBRID ",\"full_attention_interval\":2}", "lflfl");
    check_kinds("{" HYBRID ",\"layer_types\":[\"full_attention\",\"linear_attention\","
                "\"linear_attention\",\"full_attention\",\"full_attention\"]}",
                "fllff");
}

/* A letter per layer, as in the pattern. */
static void check_pattern(const char *text, const char *expected)
{
    weir_model model;
    weir_config *config = NULL;
    assert_int_equal(weir_config_parse(text, "test", &config), WEIR_OK);
    assert_int_equal(weir_model_init(&model, NULL, NULL, config), WEIR_OK);
    assert_int_equal(model.n_layers, strlen(expected));
    for (size_t i = 0; expected[i] != '\0'; i++) {
        assert_int_equal("M*-E"[model.kind[i]], expected[i]);
        assert_int_equal(model.dense[i], expected[i] != 'E');
    }
    weir_config_close(config);
}

static void list_and_pattern_tell_the_kinds_of_layers(void **state)
{
    (void)state;
    check_pattern(NEMOTRON_PATTERN("ME*-"), "ME*-");
    check_pattern(NEMOTRON(",\"num_hidden_layers\":3,\"hybrid_override_pattern\":\"EEM\""), "EEM");
    check_pattern(NEMOTRON(",\"layers_block_type\":[\"moe\",\"attention\",\"mamba\"]"), "E*M");
    check_pattern(NEMOTRON(",\"layers_block_type\":[\"moe\"],\"hybrid_override_pattern\":\"M\""),
                  "E");
}

static void configs_that_do_not_tell_are_refused(void **state)
{
    (void)state;
    static const struct {
        const char *text, *error;
    } cases[] = {
        { "{" QWEN ",\"decoder_sparse_step\":0}", "decoder_sparse_step is 0" },
        { "{" QWEN ",\"mlp_only_layers\":\"all\"}", "mlp_only_layers is no list" },
        { "{" HYBRID ",\"full_attention_interval\":0}", "full_attention_interval is 0" },
        { "{" HYBRID ",\"layer_types\":[\"linear_attention\",\"mamba\"]}",
          "layer_types says 'mamba' of layer 1, expected full_attention or linear_attention" },
        { "{" HYBRID ",\"layer_types\":[\"linear_attention\"]}", "layer_types says '' of layer 1" },
        { "{" HYBRID ",\"layer_types\":\"LLLF\"}", "layer_types says '' of layer 0" },
        { NEMOTRON_PATTERN("MX"),
          "hybrid_override_pattern says 'X' of layer 1, expected M, *, - or E" },
        { NEMOTRON(",\"layers_block_type\":[\"conv\"]"),
          "layers_block_type says 'conv' of layer 0, expected mamba, attention, mlp or moe" },
        { NEMOTRON(",\"num_hidden_layers\":2,\"hybrid_override_pattern\":\"MMM\""),
          "hybrid_override_pattern has 3 layers, num_hidden_layers is 2" },
        { NEMOTRON(",\"num_hidden_layers\":3,\"hybrid_override_pattern\":\"MM\""),
          "hybrid_override_pattern has 2 layers, num_hidden_layers is 3" },
        { NEMOTRON(",\"num_hidden_layers\":2,\"layers_block_type\":[\"mamba\"]"),
          "layers_block_type says '' of layer 1" },
        { NEMOTRON(",\"num_hidden_layers\":2"),
          "neither layers_block_type nor hybrid_override_pattern tells the kinds of layers" },
        { NEMOTRON(""), "num_hidden_layers is missing" },
        { NEMOTRON_PATTERN(""), "num_hidden_layers is missing" },
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

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(dense_layers_follow_each_familys_rule),
        cmocka_unit_test(kinds_of_layers_follow_the_list_or_the_interval),
        cmocka_unit_test(list_and_pattern_tell_the_kinds_of_layers),
        cmocka_unit_test(configs_that_do_not_tell_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
