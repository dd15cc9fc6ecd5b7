/* SPDX-License-Identifier: Apache-2.0 */
#include "family/model.h"

#include "family/source_set.h"

#define QWEN "\"model_type\":\"qwen3_moe\",\"num_hidden_layers\":6,\"num_experts\":4"
#define HYBRID "\"model_type\":\"qwen3_5_text\",\"num_hidden_layers\":5"
#define GEMMA "\"model_type\":\"gemma2\",\"num_hidden_layers\":2"

static weir_config *parse(const char *text)
{
    weir_config *config = NULL;
    assert_int_equal(weir_config_parse(text, "test", &config), WEIR_OK);
    return config;
}

static weir_status init(weir_model *model, const char *text, weir_config **out)
{
    *out = parse(text);
    return weir_model_init(model, NULL, NULL, *out);
}

static void expressions_add_and_multiply_config_keys(void **state)
{
    (void)state;
    weir_model model;
    weir_config *config;
    uint64_t number;
    assert_int_equal(init(&model, "{" QWEN ",\"a\":3,\"b\":5,\"c_2\":7}", &config), WEIR_OK);
    assert_int_equal(weir_model_number(&model, "a*b+c_2", "x", &number), WEIR_OK);
    assert_int_equal(number, 22);
    assert_int_equal(weir_model_number(&model, "a + b*2*c_2", "x", &number), WEIR_OK);
    assert_int_equal(number, 73);
    weir_shape shape;
    assert_int_equal(weir_model_shape(&model, -1, "a, 2*b, c_2+1", "x", &shape), WEIR_OK);
    assert_shape(&shape, SHAPE(3, 10, 8));
    weir_config_close(config);
}

static void a_list_has_a_number_for_each_layer(void **state)
{
    (void)state;
    weir_model model;
    weir_config *config;
    weir_shape shape;
    const char *text = "{" QWEN ",\"n\":[1,2,3,4,5,6],\"few\":[1,2],\"d\":8}";
    assert_int_equal(init(&model, text, &config), WEIR_OK);
    assert_int_equal(weir_model_shape(&model, 4, "n*d, d", "x", &shape), WEIR_OK);
    assert_shape(&shape, SHAPE(40, 8));
    assert_int_equal(weir_model_shape(&model, -1, "n", "x", &shape), WEIR_ERR_LAYOUT);
    assert_error_has("n is no whole number, x needs one");
    assert_int_equal(weir_model_shape(&model, 0, "few", "x", &shape), WEIR_ERR_LAYOUT);
    assert_error_has("few is no whole number nor a list of one per layer");
    weir_config_close(config);
}

static bool applies(const weir_model *model, const char *when)
{
    weir_family_row row = { .dst = "x", .when = when };
    return weir_model_row_applies(model, &row);
}

static void a_row_applies_where_its_condition_holds(void **state)
{
    (void)state;
    static const struct {
        const char *when;
        bool holds;
    } cases[] = {
        { "yes", true },           { "!yes", false },       { "no", false },
        { "!no", true },           { "missing", false },    { "!missing", true },
        { "none", false },         { "!none", true },       { "zero", false },
        { "rank", true },          { "!rank", false },      { "text", true },
        { "text=per-head", true }, { "text=other", false }, { "text!=per-head", false },
        { "text!=other", true },   { "yes!=other", true },  { "no!=other", false },
        { "yes=other", false },    { "list", false },
    };
    weir_model model;
    weir_config *config;
    const char *text = "{" QWEN ",\"yes\":true,\"no\":false,\"none\":null,\"zero\":0,\"rank\":7,"
                       "\"text\":\"per-head\",\"list\":[1]}";
    assert_int_equal(init(&model, text, &config), WEIR_OK);
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        if (applies(&model, cases[i].when) != cases[i].holds)
            fail_msg("%s", cases[i].when);
    }
    weir_config_close(config);
    assert_int_equal(weir_model_init(&model, "qwen3_moe", NULL, NULL), WEIR_OK);
    assert_true(applies(&model, "rank"));
    assert_false(applies(&model, "!rank"));
    assert_true(applies(&model, "text!=per-element"));
    assert_false(applies(&model, "text=per-element"));
}

static void a_missing_key_is_named_with_the_row_that_needs_it(void **state)
{
    (void)state;
    weir_model model;
    weir_config *config;
    uint64_t number;
    assert_int_equal(init(&model, "{" QWEN ",\"half\":0.5,\"less\":-1}", &config), WEIR_OK);
    assert_int_equal(weir_model_number(&model, "hidden_size", "o_proj", &number), WEIR_ERR_LAYOUT);
    assert_string_equal(weir_last_error(), "config.json: hidden_size is missing, o_proj needs it");
    assert_int_equal(weir_model_number(&model, "half", "x", &number), WEIR_ERR_LAYOUT);
    assert_error_has("half is no whole number");
    assert_int_equal(weir_model_number(&model, "less", "x", &number), WEIR_ERR_LAYOUT);
    assert_error_has("less is -1");
    weir_config_close(config);
}

static void declared_defaults_stand_in_for_missing_keys(void **state)
{
    (void)state;
    weir_model model;
    weir_config *config;
    uint64_t number;
    const char *text = "{" QWEN ",\"hidden_size\":96,\"num_attention_heads\":4}";
    assert_int_equal(init(&model, text, &config), WEIR_OK);
    assert_int_equal(weir_model_number(&model, "head_dim", "x", &number), WEIR_OK);
    assert_int_equal(number, 24);
    assert_int_equal(weir_model_number(&model, "num_key_value_heads", "x", &number), WEIR_OK);
    assert_int_equal(number, 4);
    weir_config_close(config);
    text = "{" QWEN ",\"hidden_size\":97,\"num_attention_heads\":4}";
    assert_int_equal(init(&model, text, &config), WEIR_OK);
    assert_int_equal(weir_model_number(&model, "head_dim", "x", &number), WEIR_ERR_LAYOUT);
    assert_error_has("97 does not divide by 4");
    weir_config_close(config);
}

static void keys_are_looked_for_in_text_config_too(void **state)
{
    (void)state;
    weir_model model;
    weir_config *config;
    const char *text = "{\"model_type\":\"tower\",\"text_config\":{" QWEN ",\"a\":3}}";
    uint64_t number;
    assert_int_equal(init(&model, text, &config), WEIR_OK);
    assert_int_equal(model.n_layers, 6);
    assert_int_equal(weir_model_number(&model, "a", "x", &number), WEIR_OK);
    assert_int_equal(number, 3);
    weir_config_close(config);
}

static void overflow_is_refused(void **state)
{
    (void)state;
    weir_model model;
    weir_config *config;
    uint64_t number;
    weir_shape shape;
    const char *text = "{" QWEN ",\"big\":9000000000000000000,\"zero\":0}";
    assert_int_equal(init(&model, text, &config), WEIR_OK);
    assert_int_equal(weir_model_number(&model, "big*big", "x", &number), WEIR_ERR_LAYOUT);
    assert_int_equal(weir_model_number(&model, "big+big+big", "x", &number), WEIR_ERR_LAYOUT);
    assert_error_has("exceeds 64 bits");
    assert_int_equal(weir_model_shape(&model, -1, "big, big", "x", &shape), WEIR_ERR_LAYOUT);
    assert_int_equal(weir_model_shape(&model, -1, "2, zero", "x", &shape), WEIR_ERR_LAYOUT);
    assert_error_has("axis 1 of x (2, zero) is 0");
    weir_config_close(config);
}

static void a_text_config_chooses_the_layout_with_a_prefix(void **state)
{
    (void)state;
    weir_model model;
    char name[WEIR_MODEL_NAME_BYTES];
    weir_config *config = parse("{\"text_config\":{" HYBRID "}}");
    assert_int_equal(weir_model_init(&model, NULL, NULL, config), WEIR_OK);
    assert_true(weir_model_dst(&model, 2, "mlp.x", name));
    assert_string_equal(name, "language_model.model.layers.2.mlp.x");
    assert_true(weir_model_dst(&model, -1, "lm_head.weight", name));
    assert_string_equal(name, "language_model.lm_head.weight");
    assert_int_equal(weir_model_init(&model, NULL, "text", config), WEIR_OK);
    assert_true(weir_model_dst(&model, 2, "mlp.x", name));
    assert_string_equal(name, "model.layers.2.mlp.x");
    weir_config_close(config);
    config = parse("{\"text_config\":{" QWEN "}}");
    assert_int_equal(weir_model_init(&model, NULL, NULL, config), WEIR_OK);
    assert_true(weir_model_dst(&model, 2, "mlp.x", name));
    assert_string_equal(name, "model.layers.2.mlp.x");
    weir_config_close(config);
}

static void what_a_config_leaves_out_may_be_true(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        bool tied;
    } cases[] = { { "{" GEMMA "}", true },
                  { "{" GEMMA ",\"tie_word_embeddings\":false}", false },
                  { "{" QWEN "}", false } };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        weir_model model;
        weir_config *config;
        assert_int_equal(init(&model, cases[i].text, &config), WEIR_OK);
        assert_int_equal(model.tied, cases[i].tied);
        weir_config_close(config);
    }
}

static void hostile_configs_are_refused(void **state)
{
    (void)state;
    static const struct {
        const char *text, *error;
    } cases[] = {
        { "{\"model_type\":\"llama\"}", "num_hidden_layers is missing" },
        { "{\"model_type\":\"llama\",\"num_hidden_layers\":1000000}", "1000000 layers, at most" },
        { "{\"model_type\":\"qwen3_moe\",\"num_hidden_layers\":1}", "num_experts is missing" },
        { "{\"model_type\":\"qwen3_moe\",\"num_hidden_layers\":1,\"num_experts\":100000}",
          "100000 experts, at most" },
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        weir_model model;
        weir_config *config;
        assert_int_equal(init(&model, cases[i].text, &config), WEIR_ERR_LAYOUT);
        assert_error_has(cases[i].error);
        weir_config_close(config);
    }
    weir_model model;
    assert_int_equal(weir_model_init(&model, NULL, NULL, NULL), WEIR_ERR_INVALID);
}

static void without_a_config_a_layer_has_both_parts(void **state)
{
    (void)state;
    weir_model model;
    const weir_family_row *tables[WEIR_MODEL_TABLES];
    assert_int_equal(weir_model_init(&model, "glm_moe_dsa", NULL, NULL), WEIR_OK);
    assert_int_equal(weir_model_tables(&model, 3, tables), 3);
    assert_int_equal(weir_model_tables(&model, -1, tables), 1);
    assert_int_equal(weir_model_init(&model, "bert", NULL, NULL), WEIR_OK);
    assert_int_equal(weir_model_tables(&model, 0, tables), 1);
}

static void torch_dtype_names_the_dtype_and_bf16_is_the_default(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        weir_dtype dtype;
    } cases[] = { { "{" QWEN "}", WEIR_BF16 },
                  { "{" QWEN ",\"torch_dtype\":\"float32\"}", WEIR_F32 },
                  { "{" QWEN ",\"dtype\":\"float16\"}", WEIR_F16 } };
    weir_model model;
    weir_config *config;
    weir_dtype dtype;
    for (size_t i = 0; i < 3; i++) {
        assert_int_equal(init(&model, cases[i].text, &config), WEIR_OK);
        assert_int_equal(weir_model_dtype(&model, &dtype), WEIR_OK);
        assert_int_equal(dtype, cases[i].dtype);
        weir_config_close(config);
    }
    assert_int_equal(init(&model, "{" QWEN ",\"torch_dtype\":\"int4\"}", &config), WEIR_OK);
    assert_int_equal(weir_model_dtype(&model, &dtype), WEIR_ERR_LAYOUT);
    assert_error_has("torch_dtype is 'int4'");
    weir_config_close(config);
}

static void names_are_built_and_taken_apart(void **state)
{
    (void)state;
    weir_model model;
    char name[WEIR_MODEL_NAME_BYTES];
    const char *suffix;
    uint64_t expert;
    assert_int_equal(weir_model_init(&model, "qwen3_moe", NULL, NULL), WEIR_OK);
    assert_true(weir_model_name(&model, 12, "mlp.experts.{e}.up_proj.weight", 127, name));
    assert_string_equal(name, "model.layers.12.mlp.experts.127.up_proj.weight");
    assert_true(weir_model_name(&model, -1, "lm_head.weight", 0, name));
    assert_string_equal(name, "lm_head.weight");
    assert_int_equal(weir_model_layer_of(&model, "model.layers.12.mlp.x", &suffix), 12);
    assert_string_equal(suffix, "mlp.x");
    assert_int_equal(weir_model_layer_of(&model, "model.layers.012.mlp.x", &suffix), -1);
    assert_int_equal(weir_model_layer_of(&model, "model.layers.x", &suffix), -1);
    assert_int_equal(weir_model_layer_of(&model, "model.layers.12", &suffix), -1);
    assert_int_equal(weir_model_layer_of(&model, "model.layers.99999999999.a", &suffix), -1);
    assert_int_equal(weir_model_layer_of(&model, "lm_head.weight", &suffix), -1);
    assert_true(weir_model_expert_of("e.{e}.w", "e.30.w", &expert));
    assert_int_equal(expert, 30);
    assert_false(weir_model_expert_of("e.{e}.w", "e.30.v", &expert));
    assert_false(weir_model_expert_of("e.{e}.w", "e..w", &expert));
    assert_false(weir_model_expert_of("e.w", "e.w", &expert));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(expressions_add_and_multiply_config_keys),
        cmocka_unit_test(a_list_has_a_number_for_each_layer),
        cmocka_unit_test(a_row_applies_where_its_condition_holds),
        cmocka_unit_test(a_missing_key_is_named_with_the_row_that_needs_it),
        cmocka_unit_test(declared_defaults_stand_in_for_missing_keys),
        cmocka_unit_test(keys_are_looked_for_in_text_config_too),
        cmocka_unit_test(overflow_is_refused),
        cmocka_unit_test(a_text_config_chooses_the_layout_with_a_prefix),
        cmocka_unit_test(what_a_config_leaves_out_may_be_true),
        cmocka_unit_test(hostile_configs_are_refused),
        cmocka_unit_test(without_a_config_a_layer_has_both_parts),
        cmocka_unit_test(torch_dtype_names_the_dtype_and_bf16_is_the_default),
        cmocka_unit_test(names_are_built_and_taken_apart),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
