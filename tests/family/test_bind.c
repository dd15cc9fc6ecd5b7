/* SPDX-License-Identifier: Apache-2.0 */
#include <stdio.h>

#include "family/source_set.h"

#define LAYER "model.layers.3."

/* Opens and expects ERR_LAYOUT with this text. */
static void assert_refused(const source_set *set, const char *family, const char *text)
{
    weir_mapping *mapping = NULL;
    assert_int_equal(set_open(set, family, NULL, "bf16_cast", &mapping), WEIR_ERR_LAYOUT);
    assert_null(mapping);
    assert_error_has(text);
}

static void assert_opens(const source_set *set, const char *family)
{
    weir_mapping *mapping = NULL;
    if (set_open(set, family, NULL, "bf16_cast", &mapping) != WEIR_OK)
        fail_msg("%s", weir_last_error());
    weir_mapping_close(mapping);
}

/* ---- what is accepted ------------------------------------------------------------------------*/

static void every_family_takes_every_naming_in_any_order(void **state)
{
    (void)state;
    weir_family_info families[SET_MAX_FAMILIES];
    size_t n_families = weir_families(families, SET_MAX_FAMILIES);
    for (size_t f = 0; f < n_families; f++) {
        for (int naming = 0; naming < 3; naming++) {
            for (size_t l = 0; families[f].layouts[l] != NULL; l++) {
                source_set *set = set_of_preset(families[f].name, "ragged", (weir_naming)naming);
                set_shuffle(set);
                weir_mapping *mapping = NULL;
                if (set_open(set, NULL, families[f].layouts[l], "fp8_128x128", &mapping) != WEIR_OK)
                    fail_msg("%s naming %d: %s", families[f].name, naming, weir_last_error());
                size_t n_entries, n_bound = 0;
                const weir_map_entry *entries = weir_mapping_entries(mapping, &n_entries);
                for (size_t e = 0; e < n_entries; e++)
                    n_bound += entries[e].n_sources *
                               (entries[e].n_experts > 0 ? entries[e].n_experts : 1);
                assert_int_equal(n_bound, set->n);
                weir_mapping_close(mapping);
                set_free(set);
            }
        }
    }
}

static void a_layer_alone_maps_without_a_config(void **state)
{
    (void)state;
    source_set *set = set_synthetic_layer();
    assert_opens(set, "glm_moe_dsa");
    set_free(set);
}

static void one_checkpoint_may_mix_namings_row_by_row(void **state)
{
    (void)state;
    source_set *set = set_of_preset("qwen3_moe", "ragged", WEIR_NAMING_HF);
    set_rename(set, "model.layers.1.mlp.gate.weight", "model.layers.1.mlp.router.gate.weight");
    assert_opens(set, NULL);
    set_free(set);
}

static void what_engines_do_not_hold_is_dropped_by_declaration(void **state)
{
    (void)state;
    source_set *set = set_of_preset("qwen3_moe", "ragged", WEIR_NAMING_STACKED);
    set_add(set, "model.layers.1.mlp.tokens_per_expert", WEIR_I64, SHAPE(8));
    set_add(set, "model.layers.0.self_attn.rotary_emb.inv_freq", WEIR_F32, SHAPE(32));
    assert_opens(set, NULL);
    set_free(set);
    set = set_of_preset("bert", "minilm", WEIR_NAMING_HF);
    set_add(set, "embeddings.position_ids", WEIR_I64, SHAPE(1, 512));
    assert_opens(set, NULL);
    set_free(set);
}

static void ignored_sources_are_as_if_they_were_not_there(void **state)
{
    (void)state;
    source_set *set = set_of_preset("llama", "ragged", WEIR_NAMING_HF);
    const char *ignore[] = { "model.layers.2.*", "*.extra" };
    weir_mapping_options options = WEIR_MAPPING_OPTIONS_INIT;
    weir_mapping *mapping = NULL;
    set_add(set, "model.layers.2.input_layernorm.weight", WEIR_BF16, SHAPE(256));
    set_add(set, "some.extra", WEIR_I8, SHAPE(3));
    options.config = set->config;
    options.ignore = ignore;
    options.n_ignore = 2;
    assert_int_equal(weir_mapping_open(&options, set->tensors, set->n, &mapping), WEIR_OK);
    weir_mapping_close(mapping);
    options.n_ignore = 1;
    assert_int_equal(weir_mapping_open(&options, set->tensors, set->n, &mapping), WEIR_ERR_LAYOUT);
    assert_error_has("source some.extra: no row of family llama takes it");
    set_free(set);
}

static void sources_may_be_named_as_in_a_model_of_several_towers(void **state)
{
    (void)state;
    source_set *set = set_of_preset("qwen3_5", "ragged", WEIR_NAMING_HF);
    weir_mapping *mapping = NULL;
    for (size_t i = 0; i < set->n; i++) {
        char name[256];
        if (strncmp(set->tensors[i].name, "model.", 6) != 0)
            continue;
        snprintf(name, sizeof(name), "model.language_model.%s", set->tensors[i].name + 6);
        set_rename(set, set->tensors[i].name, name);
    }
    set_add(set, "mtp.norm.weight", WEIR_BF16, SHAPE(256));
    assert_int_equal(set_open(set, NULL, "composite", "fp8_128x128", &mapping), WEIR_OK);
    assert_non_null(
        find_entry(mapping, "language_model.model.layers.0.linear_attn.in_proj_qkvz.weight"));
    assert_non_null(find_entry(mapping, "language_model.lm_head.weight"));
    assert_string_equal(
        find_entry(mapping, "language_model.model.embed_tokens.weight")->sources->name,
        "model.language_model.embed_tokens.weight");
    weir_mapping_close(mapping);
    set_add(set, "model.visual.patch_embed.proj.weight", WEIR_BF16, SHAPE(8, 8));
    assert_refused(set, NULL, "source model.visual.patch_embed.proj.weight: no row of family");
    set_remove(set, "model.visual.patch_embed.proj.weight");
    set_add(set, "model.language_model.layers.2.x.weight", WEIR_BF16, SHAPE(8, 8));
    assert_refused(set, NULL, "(--ignore 'model.language_model.layers.2.*' leaves it out)");
    set_remove(set, "model.language_model.layers.2.x.weight");
    set_add(set, "model.norm.weight", WEIR_BF16, SHAPE(256));
    assert_refused(set, NULL, "source model.norm.weight is there twice");
    set_free(set);
}

static void a_source_of_another_kind_of_layer_is_refused(void **state)
{
    (void)state;
    source_set *set = set_of_preset("qwen3_5", "ragged", WEIR_NAMING_HF);
    set_add(set, "model.layers.0.self_attn.o_proj.weight", WEIR_BF16, SHAPE(256, 288));
    assert_refused(set, NULL,
                   "source model.layers.0.self_attn.o_proj.weight: no row of family qwen3_5 takes "
                   "it; its layer is of kind linear_attention");
    set_free(set);
}

/* ---- missing sources -------------------------------------------------------------------------*/

static void half_a_fused_row_is_refused_by_name(void **state)
{
    (void)state;
    source_set *set = set_synthetic_layer();
    set_remove(set, LAYER "self_attn.kv_a_proj_with_mqa.weight");
    weir_mapping *mapping = NULL;
    assert_int_equal(set_open(set, "glm_moe_dsa", NULL, NULL, &mapping), WEIR_ERR_LAYOUT);
    assert_string_equal(weir_last_error(), LAYER "self_attn.fused_qkv_a_proj.weight needs " LAYER
                                                 "self_attn.q_a_proj.weight (there) and " LAYER
                                                 "self_attn.kv_a_proj_with_mqa.weight (missing)");
    set_free(set);
}

static void a_parameter_that_nobody_fills_is_refused(void **state)
{
    (void)state;
    source_set *set = set_of_preset("bert", "ragged", WEIR_NAMING_HF);
    set_remove(set, "encoder.layer.1.output.LayerNorm.bias");
    assert_refused(set, NULL,
                   "encoder.layer.1.output.LayerNorm.bias needs "
                   "encoder.layer.1.output.LayerNorm.bias (missing)");
    set_free(set);
}

static void a_missing_expert_is_named(void **state)
{
    (void)state;
    source_set *set = set_of_preset("qwen3_moe", "ragged", WEIR_NAMING_HF);
    set_remove(set, "model.layers.2.mlp.experts.5.up_proj.weight");
    assert_refused(set, NULL,
                   "model.layers.2.mlp.experts.w13_weight needs "
                   "model.layers.2.mlp.experts.5.gate_proj.weight (there) and "
                   "model.layers.2.mlp.experts.5.up_proj.weight (missing): expert 5 of 8");
    weir_config_close(set->config);
    set->config = NULL;
    assert_refused(set, "qwen3_moe", "model.layers.2.mlp.experts.5.up_proj.weight (missing)");
    set_free(set);
}

static void the_last_expert_may_not_be_missing_either(void **state)
{
    (void)state;
    source_set *set = set_of_preset("qwen3_moe", "ragged", WEIR_NAMING_HF);
    set_remove(set, "model.layers.1.mlp.experts.7.gate_proj.weight");
    set_remove(set, "model.layers.1.mlp.experts.7.up_proj.weight");
    set_remove(set, "model.layers.1.mlp.experts.7.down_proj.weight");
    assert_refused(set, NULL, "expert 7 of 8 (and 1 more)");
    set_free(set);
}

static void a_far_expert_number_does_not_make_the_search_long(void **state)
{
    (void)state;
    source_set *set = set_new();
    set_add(set, "model.layers.0.mlp.experts.999999999.up_proj.weight", WEIR_BF16, SHAPE(4, 4));
    set_add(set, "model.layers.999999999.input_layernorm.weight", WEIR_BF16, SHAPE(4));
    assert_refused(set, "qwen3_moe", "model.layers.0.mlp.experts.999999999.up_proj.weight: no row");
    set_add(set, "model.layers.0.mlp.experts.1.up_proj.weight", WEIR_BF16, SHAPE(4, 4));
    assert_refused(set, "qwen3_moe", "model.layers.0.mlp.experts.0.gate_proj.weight (missing)");
    set_free(set);
}

static void what_is_missing_is_worded_in_the_naming_that_is_there(void **state)
{
    (void)state;
    source_set *set = set_of_preset("qwen3_moe", "ragged", WEIR_NAMING_STACKED);
    set_remove(set, "model.layers.2.mlp.experts.w2");
    assert_refused(set, NULL, "needs model.layers.2.mlp.experts.w2 (missing)");
    set_free(set);
    set = set_of_preset("mixtral", "ragged", WEIR_NAMING_HF_FUSED);
    set_remove(set, "model.layers.1.mlp.experts.down_proj");
    assert_refused(set, NULL,
                   "model.layers.1.block_sparse_moe.experts.w2_weight needs "
                   "model.layers.1.mlp.experts.down_proj (missing)");
    set_free(set);
}

/* ---- too many sources ------------------------------------------------------------------------*/

static void a_source_that_nobody_takes_is_refused(void **state)
{
    (void)state;
    source_set *set = set_synthetic_layer();
    set_add(set, LAYER "foo.weight", WEIR_BF16, SHAPE(4, 4));
    assert_refused(set, "glm_moe_dsa",
                   "source " LAYER "foo.weight: no row of family glm_moe_dsa takes it");
    set_add(set, "bar", WEIR_BF16, SHAPE(4, 4));
    assert_refused(set, "glm_moe_dsa",
                   "source bar: no row of family glm_moe_dsa takes it "
                   "(and 1 more)");
    set_free(set);
}

static void a_layer_beyond_the_config_is_named_with_the_way_out(void **state)
{
    (void)state;
    source_set *set = set_of_preset("glm_moe_dsa", "ragged", WEIR_NAMING_HF);
    set_add(set, "model.layers.3.eh_proj.weight", WEIR_BF16, SHAPE(4, 4));
    assert_refused(set, NULL,
                   "source model.layers.3.eh_proj.weight is of layer 3, but config.json has "
                   "num_hidden_layers 3 (--ignore 'model.layers.3.*' leaves it out)");
    set_free(set);
}

static void an_expert_beyond_the_config_is_named(void **state)
{
    (void)state;
    source_set *set = set_of_preset("glm_moe_dsa", "ragged", WEIR_NAMING_HF);
    set_add(set, "model.layers.1.mlp.experts.8.up_proj.weight", WEIR_BF16, SHAPE(96, 256));
    assert_refused(set, NULL, "is of expert 8, but config.json has n_routed_experts 8");
    set_free(set);
}

static void experts_in_a_dense_layer_are_refused(void **state)
{
    (void)state;
    source_set *set = set_of_preset("glm_moe_dsa", "ragged", WEIR_NAMING_HF);
    set_add(set, "model.layers.0.mlp.gate.weight", WEIR_BF16, SHAPE(8, 256));
    assert_refused(set, NULL,
                   "model.layers.0.mlp.gate.weight: no row of family glm_moe_dsa takes "
                   "it (config.json makes its layer dense)");
    set_free(set);
}

static void two_namings_for_one_row_are_refused(void **state)
{
    (void)state;
    source_set *set = set_of_preset("qwen3_moe", "ragged", WEIR_NAMING_HF);
    set_add(set, "model.layers.1.mlp.router.gate.weight", WEIR_BF16, SHAPE(8, 256));
    assert_refused(set, NULL,
                   "model.layers.1.mlp.gate.weight: two namings at once: "
                   "model.layers.1.mlp.gate.weight and model.layers.1.mlp.router.gate.weight");
    set_free(set);
}

static void a_name_that_is_there_twice_is_refused(void **state)
{
    (void)state;
    source_set *set = set_synthetic_layer();
    set_add(set, LAYER "mlp.experts.w1", WEIR_BF16, SHAPE(2, 3, 6));
    assert_refused(set, "glm_moe_dsa", "source " LAYER "mlp.experts.w1 is there twice");
    set_free(set);
}

/* ---- wrong dtypes and shapes -----------------------------------------------------------------*/

static void a_shape_that_the_config_contradicts_is_refused(void **state)
{
    (void)state;
    source_set *set = set_of_preset("qwen3_moe", "ragged", WEIR_NAMING_HF);
    weir_tensor *tensor = &set->tensors[set_find(set, "model.layers.1.self_attn.k_proj.weight")];
    tensor->shape.dim[0] = 32;
    assert_refused(set, NULL,
                   "model.layers.1.self_attn.qkv_proj.weight: source "
                   "model.layers.1.self_attn.k_proj.weight has shape [32, 256], config.json makes "
                   "it [64, 256] (num_key_value_heads*head_dim, hidden_size)");
    set_free(set);
}

static void a_wrong_number_of_axes_is_refused(void **state)
{
    (void)state;
    source_set *set = set_synthetic_layer();
    weir_tensor *tensor = &set->tensors[set_find(set, LAYER "self_attn.o_proj.weight")];
    tensor->shape = SHAPE(1, 6, 5);
    assert_refused(set, "glm_moe_dsa", "has shape [1, 6, 5], expected 2 axes");
    tensor->shape = SHAPE(6, 0);
    assert_refused(set, "glm_moe_dsa", "has the impossible shape [6, 0]");
    set_free(set);
}

static void sources_of_one_row_must_agree(void **state)
{
    (void)state;
    source_set *set = set_synthetic_layer();
    size_t i = set_find(set, LAYER "self_attn.kv_a_proj_with_mqa.weight");
    set->tensors[i].shape = SHAPE(3, 5);
    assert_refused(set, "glm_moe_dsa",
                   "has shape [3, 5], which does not fit " LAYER
                   "self_attn.q_a_proj.weight with [4, 6]");
    set->tensors[i].shape = SHAPE(3, 6);
    i = set_find(set, LAYER "mlp.experts.w3");
    set->tensors[i].shape = SHAPE(1, 3, 6);
    assert_refused(set, "glm_moe_dsa", "has shape [1, 3, 6], which does not fit");
    set_free(set);
}

static void experts_must_agree_with_each_other(void **state)
{
    (void)state;
    source_set *set = set_of_preset("qwen3_moe", "ragged", WEIR_NAMING_HF);
    weir_config_close(set->config);
    set->config = NULL;
    assert_opens(set, "qwen3_moe");
    size_t i = set_find(set, "model.layers.1.mlp.experts.4.up_proj.weight");
    set->tensors[i].shape = SHAPE(95, 256);
    assert_refused(set, "qwen3_moe",
                   "experts.4.up_proj.weight has shape [95, 256], which does not fit "
                   "model.layers.1.mlp.experts.0.up_proj.weight with [96, 256]");
    set->tensors[i].shape = SHAPE(96, 256);
    i = set_find(set, "model.layers.1.mlp.experts.0.up_proj.weight");
    set->tensors[i].shape = SHAPE(96, 255);
    assert_refused(set, "qwen3_moe", "experts.0.up_proj.weight has shape [96, 255]");
    set_free(set);
}

static void a_dtype_that_the_conversion_does_not_take_is_refused(void **state)
{
    (void)state;
    source_set *set = set_of_preset("qwen3_moe", "ragged", WEIR_NAMING_HF);
    size_t i = set_find(set, "model.layers.1.self_attn.o_proj.weight");
    set->tensors[i].dtype = WEIR_I32;
    assert_refused(set, NULL,
                   "source model.layers.1.self_attn.o_proj.weight is I32, bf16_cast "
                   "takes F16, BF16, F32");
    set_free(set);
}

static void shapes_beyond_64_bits_are_refused(void **state)
{
    (void)state;
    source_set *set = set_synthetic_layer();
    uint64_t half = (uint64_t)1 << 62;
    set->tensors[set_find(set, LAYER "mlp.gate_proj.weight")].shape = SHAPE(half, 1);
    set->tensors[set_find(set, LAYER "mlp.up_proj.weight")].shape = SHAPE(half, 1);
    assert_refused(set, "glm_moe_dsa", "its sources together exceed 64 bits");
    set_free(set);
}

static void a_view_that_is_none_is_refused(void **state)
{
    (void)state;
    source_set *set = set_synthetic_layer();
    weir_mapping *mapping = NULL;
    set->tensors[2].shape.rank = 77;
    assert_int_equal(set_open(set, "glm_moe_dsa", NULL, NULL, &mapping), WEIR_ERR_INVALID);
    set->tensors[2].shape.rank = 2;
    set->tensors[2].dtype = (weir_dtype)99;
    assert_int_equal(set_open(set, "glm_moe_dsa", NULL, NULL, &mapping), WEIR_ERR_INVALID);
    set_free(set);
}

static void nothing_at_all_is_refused(void **state)
{
    (void)state;
    source_set *set = set_new();
    assert_refused(set, "llama", "no source is of family llama");
    set_free(set);
}

/* ---- copies and ties -------------------------------------------------------------------------*/

static void unquantised_rows_of_the_split_layout_keep_their_dtype(void **state)
{
    (void)state;
    source_set *set = set_synthetic_layer();
    weir_mapping *mapping = NULL;
    const char *norm = LAYER "self_attn.indexer.k_norm.weight";
    assert_int_equal(set_open(set, "glm_moe_dsa", "split_indexer", NULL, &mapping), WEIR_OK);
    assert_string_equal(find_entry(mapping, norm)->conversion->name, "bf16_cast");
    assert_true(find_entry(mapping, norm)->keep);
    weir_mapping_close(mapping);
    set->tensors[set_find(set, norm)].dtype = WEIR_F32;
    set->tensors[set_find(set, norm)].shape = SHAPE(3); /* as many bytes */
    assert_int_equal(set_open(set, "glm_moe_dsa", "split_indexer", NULL, &mapping), WEIR_OK);
    assert_string_equal(find_entry(mapping, norm)->conversion->name, "fp32_cast");
    weir_mapping_close(mapping);
    set->tensors[set_find(set, norm)].dtype = WEIR_F16;
    assert_int_equal(set_open(set, "glm_moe_dsa", "split_indexer", NULL, &mapping),
                     WEIR_ERR_LAYOUT);
    assert_error_has("k_norm.weight is kept in the dtype of its source, F16");
    set_free(set);
}

static void the_router_bias_of_the_split_layout_is_what_its_source_is(void **state)
{
    (void)state;
    source_set *set = set_synthetic_layer();
    weir_mapping *mapping = NULL;
    const char *from = LAYER "mlp.expert_bias", *bias = LAYER "mlp.gate.e_score_correction_bias";
    set_remove(set, from);
    set_add(set, from, WEIR_BF16, SHAPE(4));
    assert_int_equal(set_open(set, "glm_moe_dsa", "split_indexer", NULL, &mapping), WEIR_OK);
    assert_string_equal(find_entry(mapping, bias)->conversion->name, "bf16_cast");
    weir_mapping_close(mapping);
    assert_int_equal(set_open(set, "glm_moe_dsa", "fused_indexer", NULL, &mapping), WEIR_OK);
    assert_string_equal(find_entry(mapping, bias)->conversion->name, "fp32_cast");
    weir_mapping_close(mapping);
    set_free(set);
}

static void with_a_config_copies_take_its_dtype(void **state)
{
    (void)state;
    source_set *set = set_of_preset("glm_moe_dsa", "ragged", WEIR_NAMING_HF);
    weir_mapping *mapping = NULL;
    const char *norm = "model.layers.1.self_attn.indexer.k_norm.weight";
    assert_int_equal(set->tensors[set_find(set, norm)].dtype, WEIR_F32);
    assert_int_equal(set_open(set, NULL, "split_indexer", NULL, &mapping), WEIR_OK);
    assert_string_equal(find_entry(mapping, norm)->conversion->name, "bf16_cast");
    const char *bias = "model.layers.1.mlp.gate.e_score_correction_bias";
    assert_string_equal(find_entry(mapping, bias)->conversion->name, "fp32_cast");
    weir_mapping_close(mapping);
    set_free(set);
}

static void tied_embeddings_make_one_parameter(void **state)
{
    (void)state;
    source_set *set = set_of_preset("qwen3", "ragged", WEIR_NAMING_HF);
    weir_mapping *mapping = NULL;
    size_t embedding = set_find(set, "model.embed_tokens.weight");
    weir_tensor *head = set_add(set, "lm_head.weight", WEIR_BF16, SHAPE(1000, 256));
    memcpy(head->data, set->tensors[embedding].data, 1000 * 256 * 2);
    assert_int_equal(set_open(set, NULL, NULL, NULL, &mapping), WEIR_OK);
    assert_null(find_parameter(mapping, "lm_head.weight"));
    assert_non_null(find_parameter(mapping, "model.embed_tokens.weight"));
    assert_true(find_entry(mapping, "model.embed_tokens.weight")->tied);
    assert_false(find_entry(mapping, "model.norm.weight")->tied);
    weir_mapping_close(mapping);
    ((uint8_t *)head->data)[512001 - 2] ^= 1;
    assert_refused(set, NULL,
                   "lm_head.weight differs from model.embed_tokens.weight, but "
                   "config.json has tie_word_embeddings true");
    void *data = head->data;
    head->data = NULL;
    assert_opens(set, NULL);
    head->shape = SHAPE(500, 512);
    assert_refused(set, NULL, "lm_head.weight differs");
    head->data = data;
    set_free(set);
}

/* ---- memory ----------------------------------------------------------------------------------*/

static void every_allocation_may_fail(void **state)
{
    (void)state;
    source_set *set = set_of_preset("glm_moe_dsa", "ragged", WEIR_NAMING_HF);
    weir_status status = WEIR_ERR_NO_MEMORY;
    int n_failed = 0;
    for (uint64_t n = 1; status != WEIR_OK; n++) {
        weir_mapping *mapping = NULL;
        weir_alloc_fail_at(n);
        status = set_open(set, NULL, NULL, "fp8_128x128", &mapping);
        weir_alloc_fail_at(0);
        if (status != WEIR_OK) {
            assert_int_equal(status, WEIR_ERR_NO_MEMORY);
            assert_null(mapping);
            n_failed++;
        }
        weir_mapping_close(mapping);
    }
    assert_true(n_failed >= 4); /* the mapping, two arenas, and growth */
    set_free(set);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_family_takes_every_naming_in_any_order),
        cmocka_unit_test(a_layer_alone_maps_without_a_config),
        cmocka_unit_test(one_checkpoint_may_mix_namings_row_by_row),
        cmocka_unit_test(what_engines_do_not_hold_is_dropped_by_declaration),
        cmocka_unit_test(ignored_sources_are_as_if_they_were_not_there),
        cmocka_unit_test(sources_may_be_named_as_in_a_model_of_several_towers),
        cmocka_unit_test(a_source_of_another_kind_of_layer_is_refused),
        cmocka_unit_test(half_a_fused_row_is_refused_by_name),
        cmocka_unit_test(a_parameter_that_nobody_fills_is_refused),
        cmocka_unit_test(a_missing_expert_is_named),
        cmocka_unit_test(the_last_expert_may_not_be_missing_either),
        cmocka_unit_test(a_far_expert_number_does_not_make_the_search_long),
        cmocka_unit_test(what_is_missing_is_worded_in_the_naming_that_is_there),
        cmocka_unit_test(a_source_that_nobody_takes_is_refused),
        cmocka_unit_test(a_layer_beyond_the_config_is_named_with_the_way_out),
        cmocka_unit_test(an_expert_beyond_the_config_is_named),
        cmocka_unit_test(experts_in_a_dense_layer_are_refused),
        cmocka_unit_test(two_namings_for_one_row_are_refused),
        cmocka_unit_test(a_name_that_is_there_twice_is_refused),
        cmocka_unit_test(a_shape_that_the_config_contradicts_is_refused),
        cmocka_unit_test(a_wrong_number_of_axes_is_refused),
        cmocka_unit_test(sources_of_one_row_must_agree),
        cmocka_unit_test(experts_must_agree_with_each_other),
        cmocka_unit_test(a_dtype_that_the_conversion_does_not_take_is_refused),
        cmocka_unit_test(shapes_beyond_64_bits_are_refused),
        cmocka_unit_test(a_view_that_is_none_is_refused),
        cmocka_unit_test(nothing_at_all_is_refused),
        cmocka_unit_test(unquantised_rows_of_the_split_layout_keep_their_dtype),
        cmocka_unit_test(the_router_bias_of_the_split_layout_is_what_its_source_is),
        cmocka_unit_test(with_a_config_copies_take_its_dtype),
        cmocka_unit_test(tied_embeddings_make_one_parameter),
        cmocka_unit_test(every_allocation_may_fail),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
