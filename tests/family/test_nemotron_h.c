/* SPDX-License-Identifier: Apache-2.0 */
#include "family/model.h"
#include "family/source_set.h"
#include "numeric/exponential.h"

#define CONFIG(more)                                                                   \
    "{\"model_type\":\"nemotron_h\",\"hidden_size\":64,\"vocab_size\":100,"            \
    "\"num_attention_heads\":4,\"num_key_value_heads\":2,\"intermediate_size\":48,"    \
    "\"mamba_num_heads\":6,\"mamba_head_dim\":8,\"n_groups\":2,\"ssm_state_size\":16," \
    "\"n_routed_experts\":2,\"n_shared_experts\":1,\"moe_intermediate_size\":24,"      \
    "\"moe_shared_expert_intermediate_size\":40" more "}"

#define PATTERN(text) CONFIG(",\"hybrid_override_pattern\":\"" text "\"")

/* ---- names -----------------------------------------------------------------------------------*/

static void checkpoints_say_backbone_and_trainers_model(void **state)
{
    (void)state;
    source_set *set = set_of_preset("nemotron_h", "ragged", WEIR_NAMING_HF);
    weir_mapping *m = NULL;
    set_find(set, "backbone.embeddings.weight");
    set_find(set, "backbone.layers.0.mixer.A_log");
    set_find(set, "lm_head.weight");
    set_rename(set, "backbone.layers.0.mixer.A_log", "model.layers.0.mixer.A_log");
    assert_int_equal(set_open(set, NULL, NULL, NULL, &m), WEIR_OK);
    weir_mapping_close(m);
    set_free(set);
    set = set_of_preset("nemotron_h", "ragged", WEIR_NAMING_STACKED);
    set_find(set, "model.embed_tokens.weight");
    set_find(set, "model.layers.0.mamba.A_log");
    set_find(set, "model.layers.1.mlp.router.gate");
    set_find(set, "model.layers.2.self_attn.q_proj.weight");
    set_free(set);
}

/* The third matrix of experts that have two is there for the trainer's sake, and empty. */
static void what_engines_do_not_hold_is_dropped(void **state)
{
    (void)state;
    source_set *set = set_of_preset("nemotron_h", "ragged", WEIR_NAMING_STACKED);
    weir_mapping *m = NULL;
    set_add(set, "model.layers.1.mlp.experts.w3", WEIR_BF16, SHAPE(0));
    set_add(set, "model.layers.1.mlp.tokens_per_expert", WEIR_F32, SHAPE(8));
    set_add(set, "mtp.layers.0.norm.weight", WEIR_BF16, SHAPE(256));
    assert_int_equal(set_open(set, NULL, NULL, NULL, &m), WEIR_OK);
    weir_mapping_close(m);
    set_free(set);
}

static void a_source_of_another_kind_of_layer_is_refused(void **state)
{
    (void)state;
    source_set *set = set_of_preset("nemotron_h", "ragged", WEIR_NAMING_HF);
    weir_mapping *m = NULL;
    set_add(set, "backbone.layers.2.mixer.D", WEIR_BF16, SHAPE(6));
    assert_int_equal(set_open(set, NULL, NULL, NULL, &m), WEIR_ERR_LAYOUT);
    assert_error_has("source backbone.layers.2.mixer.D: no row of family nemotron_h takes it");
    assert_error_has("its layer is of kind attention");
    set_free(set);
}

/* ---- what the rows make ----------------------------------------------------------------------*/

static void a_is_computed_of_its_logarithm(void **state)
{
    (void)state;
    source_set *set = set_of_preset("nemotron_h", "ragged", WEIR_NAMING_HF);
    weir_mapping *m = NULL;
    float out[6];
    weir_entry_convert_args args = WEIR_ENTRY_CONVERT_ARGS_INIT;
    args.outputs[0] = out;
    assert_int_equal(set_open(set, NULL, NULL, "fp8_128x128", &m), WEIR_OK);
    const weir_map_entry *entry = find_entry(m, "model.layers.0.mixer.A");
    assert_int_equal(weir_map_entry_convert(entry, &args), WEIR_OK);
    const float *logarithms = entry->sources[0].data;
    for (size_t i = 0; i < 6; i++)
        assert_int_equal(weir_float_bits(out[i]), weir_float_bits(weir_neg_exp(logarithms[i])));
    weir_mapping_close(m);
    set_free(set);
}

/* in_proj is [z; x; B; C; dt]. */
static void mamba_is_cut_part_by_part(void **state)
{
    (void)state;
    static const uint64_t rows[5] = { 240, 240, 48, 48, 6 };
    static const uint32_t units[5] = { 6, 6, 2, 2, 6 };
    source_set *set = set_of_preset("nemotron_h", "ragged", WEIR_NAMING_STACKED);
    weir_mapping *m = NULL;
    assert_int_equal(set_open(set, NULL, NULL, NULL, &m), WEIR_OK);
    const weir_map_entry *entry = find_entry(m, "model.layers.0.mixer.in_proj.weight");
    assert_int_equal(entry->cut, WEIR_CUT_COLUMN);
    assert_int_equal(entry->n_parts, 5);
    assert_memory_equal(entry->part_rows, rows, sizeof(rows));
    assert_memory_equal(entry->units, units, sizeof(units));
    entry = find_entry(m, "model.layers.0.mixer.conv1d.bias");
    assert_int_equal(entry->n_parts, 3);
    assert_memory_equal(entry->part_rows, rows + 1, 3 * sizeof(rows[0]));
    weir_mapping_close(m);
    set_free(set);
}

/* Parts have no size then, so that nobody may cut them. */
static void without_a_config_mamba_is_not_cut(void **state)
{
    (void)state;
    source_set *set = set_of_preset("nemotron_h", "ragged", WEIR_NAMING_STACKED);
    weir_mapping *m = NULL;
    weir_config_close(set->config);
    set->config = NULL;
    assert_int_equal(set_open(set, "nemotron_h", NULL, NULL, &m), WEIR_OK);
    const weir_map_entry *entry = find_entry(m, "model.layers.0.mixer.in_proj.weight");
    assert_int_equal(entry->cut, WEIR_CUT_NONE);
    assert_int_equal(entry->n_parts, 1);
    assert_int_equal(entry->part_rows[0], 0);
    weir_mapping_close(m);
    set_free(set);
}

static void experts_work_in_the_latent_size_where_there_is_one(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        uint64_t size;
        bool projects;
    } cases[] = { { PATTERN("E"), 64, false },
                  { CONFIG(",\"moe_latent_size\":null,\"layers_block_type\":[\"moe\"]"), 64,
                    false },
                  { CONFIG(",\"moe_latent_size\":32,\"layers_block_type\":[\"moe\"]"), 32, true } };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        source_set *set = set_new();
        weir_mapping *m = NULL;
        weir_tensor *tensors;
        size_t n;
        set_config(set, cases[i].text);
        assert_int_equal(weir_family_sources(NULL, set->config, WEIR_NAMING_HF_FUSED, &tensors, &n),
                         WEIR_OK);
        for (size_t t = 0; t < n; t++)
            set_add(set, tensors[t].name, tensors[t].dtype, tensors[t].shape);
        weir_family_sources_free(tensors);
        assert_int_equal(set_open(set, NULL, NULL, NULL, &m), WEIR_OK);
        assert_shape(&find_entry(m, "model.layers.0.mixer.experts.w13_weight")->shape,
                     SHAPE(2, 24, cases[i].size));
        assert_shape(&find_entry(m, "model.layers.0.mixer.shared_experts.up_proj.weight")->shape,
                     SHAPE(40, 64));
        assert_int_equal(find_entry(m, "model.layers.0.mixer.fc1_latent_proj.weight") != NULL,
                         cases[i].projects);
        weir_mapping_close(m);
        set_free(set);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(checkpoints_say_backbone_and_trainers_model),
        cmocka_unit_test(what_engines_do_not_hold_is_dropped),
        cmocka_unit_test(a_source_of_another_kind_of_layer_is_refused),
        cmocka_unit_test(a_is_computed_of_its_logarithm),
        cmocka_unit_test(mamba_is_cut_part_by_part),
        cmocka_unit_test(without_a_config_mamba_is_not_cut),
        cmocka_unit_test(experts_work_in_the_latent_size_where_there_is_one),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
