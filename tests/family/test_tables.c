/* SPDX-License-Identifier: Apache-2.0 */
#include <stdio.h>

#include "family/source_set.h"
#include "family/table.h"

/* ---- what one layer becomes ------------------------------------------------------------------*/

#define MAX_LINES 32

/* The parameters of one layer (-1: outside the layers) of preset "ragged" under fp8_128x128, before
 * quantisation: "name [shape] conversion". What is never quantised shows as a cast. */
typedef struct layer_case {
    const char *family;
    int layer;
    const char *lines[MAX_LINES];
} layer_case;

static const layer_case cases[] = {
    { "llama",
      1,
      { "model.layers.1.input_layernorm.weight [256] bf16_cast",
        "model.layers.1.post_attention_layernorm.weight [256] bf16_cast",
        "model.layers.1.self_attn.qkv_proj.weight [384, 256] fp8_128x128",
        "model.layers.1.self_attn.qkv_proj.bias [384] bf16_cast",
        "model.layers.1.self_attn.o_proj.weight [256, 256] fp8_128x128",
        "model.layers.1.self_attn.o_proj.bias [256] bf16_cast",
        "model.layers.1.mlp.gate_up_proj.weight [1344, 256] fp8_128x128",
        "model.layers.1.mlp.gate_up_proj.bias [1344] bf16_cast",
        "model.layers.1.mlp.down_proj.weight [256, 672] fp8_128x128",
        "model.layers.1.mlp.down_proj.bias [256] bf16_cast" } },
    { "deepseek_v3",
      1,
      { "model.layers.1.input_layernorm.weight [256] bf16_cast",
        "model.layers.1.post_attention_layernorm.weight [256] bf16_cast",
        "model.layers.1.self_attn.fused_qkv_a_proj.weight [336, 256] fp8_128x128",
        "model.layers.1.self_attn.q_a_layernorm.weight [192] bf16_cast",
        "model.layers.1.self_attn.q_b_proj.weight [256, 192] fp8_128x128",
        "model.layers.1.self_attn.kv_a_layernorm.weight [128] bf16_cast",
        "model.layers.1.self_attn.kv_b_proj.weight [320, 128] fp8_128x128",
        "model.layers.1.self_attn.o_proj.weight [256, 128] fp8_128x128",
        "model.layers.1.mlp.gate.weight [8, 256] bf16_cast",
        "model.layers.1.mlp.gate.e_score_correction_bias [8] fp32_cast",
        "model.layers.1.mlp.experts.w13_weight [8, 192, 256] fp8_128x128",
        "model.layers.1.mlp.experts.w2_weight [8, 256, 96] fp8_128x128",
        "model.layers.1.mlp.shared_experts.gate_up_proj.weight [192, 256] fp8_128x128",
        "model.layers.1.mlp.shared_experts.down_proj.weight [256, 96] fp8_128x128" } },
    { "glm4_moe",
      1,
      { "model.layers.1.input_layernorm.weight [256] bf16_cast",
        "model.layers.1.post_attention_layernorm.weight [256] bf16_cast",
        "model.layers.1.self_attn.q_norm.weight [72] bf16_cast",
        "model.layers.1.self_attn.k_norm.weight [72] bf16_cast",
        "model.layers.1.self_attn.qkv_proj.weight [432, 256] fp8_128x128",
        "model.layers.1.self_attn.qkv_proj.bias [432] bf16_cast",
        "model.layers.1.self_attn.o_proj.weight [256, 288] fp8_128x128",
        "model.layers.1.mlp.gate.weight [8, 256] fp32_cast",
        "model.layers.1.mlp.gate.e_score_correction_bias [8] fp32_cast",
        "model.layers.1.mlp.experts.w13_weight [8, 192, 256] fp8_128x128",
        "model.layers.1.mlp.experts.w2_weight [8, 256, 96] fp8_128x128",
        "model.layers.1.mlp.shared_experts.gate_up_proj.weight [192, 256] fp8_128x128",
        "model.layers.1.mlp.shared_experts.down_proj.weight [256, 96] fp8_128x128" } },
    { "minimax_m2",
      1,
      { "model.layers.1.input_layernorm.weight [256] bf16_cast",
        "model.layers.1.post_attention_layernorm.weight [256] bf16_cast",
        "model.layers.1.self_attn.q_norm.weight [288] bf16_cast",
        "model.layers.1.self_attn.k_norm.weight [144] bf16_cast",
        "model.layers.1.self_attn.qkv_proj.weight [576, 256] fp8_128x128",
        "model.layers.1.self_attn.o_proj.weight [256, 288] fp8_128x128",
        "model.layers.1.block_sparse_moe.gate.weight [8, 256] fp32_cast",
        "model.layers.1.block_sparse_moe.e_score_correction_bias [8] fp32_cast",
        "model.layers.1.block_sparse_moe.experts.w13_weight [8, 192, 256] fp8_128x128",
        "model.layers.1.block_sparse_moe.experts.w2_weight [8, 256, 96] fp8_128x128" } },
    { "afmoe",
      1,
      { "model.layers.1.input_layernorm.weight [256] bf16_cast",
        "model.layers.1.post_attention_layernorm.weight [256] bf16_cast",
        "model.layers.1.pre_mlp_layernorm.weight [256] bf16_cast",
        "model.layers.1.post_mlp_layernorm.weight [256] bf16_cast",
        "model.layers.1.self_attn.q_norm.weight [72] bf16_cast",
        "model.layers.1.self_attn.k_norm.weight [72] bf16_cast",
        "model.layers.1.self_attn.qkv_proj.weight [432, 256] fp8_128x128",
        "model.layers.1.self_attn.gate_proj.weight [288, 256] fp8_128x128",
        "model.layers.1.self_attn.o_proj.weight [256, 288] fp8_128x128",
        "model.layers.1.mlp.gate.weight [8, 256] fp32_cast",
        "model.layers.1.mlp.expert_bias [8] fp32_cast",
        "model.layers.1.mlp.experts.w13_weight [8, 192, 256] fp8_128x128",
        "model.layers.1.mlp.experts.w2_weight [8, 256, 96] fp8_128x128",
        "model.layers.1.mlp.shared_experts.gate_up_proj.weight [384, 256] fp8_128x128",
        "model.layers.1.mlp.shared_experts.down_proj.weight [256, 192] fp8_128x128" } },
    { "laguna",
      1,
      { "model.layers.1.input_layernorm.weight [256] bf16_cast",
        "model.layers.1.post_attention_layernorm.weight [256] bf16_cast",
        "model.layers.1.self_attn.q_norm.weight [40] bf16_cast",
        "model.layers.1.self_attn.k_norm.weight [40] bf16_cast",
        "model.layers.1.self_attn.qkv_proj.weight [400, 256] fp8_128x128",
        "model.layers.1.self_attn.g_proj.weight [6, 256] fp8_128x128",
        "model.layers.1.self_attn.o_proj.weight [256, 240] fp8_128x128",
        "model.layers.1.mlp.gate.weight [8, 256] bf16_cast",
        "model.layers.1.mlp.experts.e_score_correction_bias [8] fp32_cast",
        "model.layers.1.mlp.experts.w13_weight [8, 192, 256] fp8_128x128",
        "model.layers.1.mlp.experts.w2_weight [8, 256, 96] fp8_128x128",
        "model.layers.1.mlp.shared_expert.gate_proj.weight [160, 256] fp8_128x128",
        "model.layers.1.mlp.shared_expert.up_proj.weight [160, 256] fp8_128x128",
        "model.layers.1.mlp.shared_expert.down_proj.weight [256, 160] fp8_128x128" } },
    { "gpt_oss",
      1,
      { "model.layers.1.input_layernorm.weight [256] bf16_cast",
        "model.layers.1.post_attention_layernorm.weight [256] bf16_cast",
        "model.layers.1.self_attn.sinks [4] bf16_cast",
        "model.layers.1.self_attn.qkv_proj.weight [432, 256] bf16_cast",
        "model.layers.1.self_attn.qkv_proj.bias [432] bf16_cast",
        "model.layers.1.self_attn.o_proj.weight [256, 288] bf16_cast",
        "model.layers.1.self_attn.o_proj.bias [256] bf16_cast",
        "model.layers.1.mlp.router.weight [8, 256] bf16_cast",
        "model.layers.1.mlp.router.bias [8] bf16_cast",
        "model.layers.1.mlp.experts.w13_weight [8, 256, 192] bf16_cast",
        "model.layers.1.mlp.experts.w13_weight_bias [8, 192] fp32_cast",
        "model.layers.1.mlp.experts.w2_weight [8, 96, 256] bf16_cast",
        "model.layers.1.mlp.experts.w2_weight_bias [8, 256] fp32_cast" } },
    { "qwen3_moe",
      1,
      { "model.layers.1.input_layernorm.weight [256] bf16_cast",
        "model.layers.1.post_attention_layernorm.weight [256] bf16_cast",
        "model.layers.1.self_attn.q_norm.weight [64] bf16_cast",
        "model.layers.1.self_attn.k_norm.weight [64] bf16_cast",
        "model.layers.1.self_attn.qkv_proj.weight [384, 256] fp8_128x128",
        "model.layers.1.self_attn.o_proj.weight [256, 256] fp8_128x128",
        "model.layers.1.mlp.gate.weight [8, 256] bf16_cast",
        "model.layers.1.mlp.experts.w13_weight [8, 192, 256] fp8_128x128",
        "model.layers.1.mlp.experts.w2_weight [8, 256, 96] fp8_128x128" } },
    { "qwen3_moe",
      -1,
      { "model.embed_tokens.weight [1000, 256] bf16_cast", "model.norm.weight [256] bf16_cast",
        "lm_head.weight [1000, 256] bf16_cast" } },
    { "qwen2",
      1,
      { "model.layers.1.input_layernorm.weight [256] bf16_cast",
        "model.layers.1.post_attention_layernorm.weight [256] bf16_cast",
        "model.layers.1.self_attn.qkv_proj.weight [384, 256] fp8_128x128",
        "model.layers.1.self_attn.qkv_proj.bias [384] bf16_cast",
        "model.layers.1.self_attn.o_proj.weight [256, 256] fp8_128x128",
        "model.layers.1.mlp.gate_up_proj.weight [1344, 256] fp8_128x128",
        "model.layers.1.mlp.down_proj.weight [256, 672] fp8_128x128" } },
    { "mistral",
      1,
      { "model.layers.1.input_layernorm.weight [320] bf16_cast",
        "model.layers.1.post_attention_layernorm.weight [320] bf16_cast",
        "model.layers.1.self_attn.qkv_proj.weight [512, 320] fp8_128x128",
        "model.layers.1.self_attn.o_proj.weight [320, 256] fp8_128x128",
        "model.layers.1.mlp.gate_up_proj.weight [1344, 320] fp8_128x128",
        "model.layers.1.mlp.down_proj.weight [320, 672] fp8_128x128" } },
    { "mixtral",
      1,
      { "model.layers.1.input_layernorm.weight [256] bf16_cast",
        "model.layers.1.post_attention_layernorm.weight [256] bf16_cast",
        "model.layers.1.self_attn.qkv_proj.weight [384, 256] fp8_128x128",
        "model.layers.1.self_attn.o_proj.weight [256, 256] fp8_128x128",
        "model.layers.1.block_sparse_moe.gate.weight [8, 256] bf16_cast",
        "model.layers.1.block_sparse_moe.experts.w13_weight [8, 192, 256] fp8_128x128",
        "model.layers.1.block_sparse_moe.experts.w2_weight [8, 256, 96] fp8_128x128" } },
    { "gemma2",
      1,
      { "model.layers.1.input_layernorm.weight [256] bf16_cast",
        "model.layers.1.post_attention_layernorm.weight [256] bf16_cast",
        "model.layers.1.pre_feedforward_layernorm.weight [256] bf16_cast",
        "model.layers.1.post_feedforward_layernorm.weight [256] bf16_cast",
        "model.layers.1.self_attn.qkv_proj.weight [432, 256] fp8_128x128",
        "model.layers.1.self_attn.o_proj.weight [256, 288] fp8_128x128",
        "model.layers.1.mlp.gate_up_proj.weight [1344, 256] fp8_128x128",
        "model.layers.1.mlp.down_proj.weight [256, 672] fp8_128x128" } },
    { "gemma2",
      -1,
      { "model.embed_tokens.weight [1000, 256] bf16_cast", "model.norm.weight [256] bf16_cast" } },
    { "gemma3_text",
      1,
      { "model.layers.1.input_layernorm.weight [256] bf16_cast",
        "model.layers.1.post_attention_layernorm.weight [256] bf16_cast",
        "model.layers.1.pre_feedforward_layernorm.weight [256] bf16_cast",
        "model.layers.1.post_feedforward_layernorm.weight [256] bf16_cast",
        "model.layers.1.self_attn.q_norm.weight [72] bf16_cast",
        "model.layers.1.self_attn.k_norm.weight [72] bf16_cast",
        "model.layers.1.self_attn.qkv_proj.weight [432, 256] fp8_128x128",
        "model.layers.1.self_attn.o_proj.weight [256, 288] fp8_128x128",
        "model.layers.1.mlp.gate_up_proj.weight [1344, 256] fp8_128x128",
        "model.layers.1.mlp.down_proj.weight [256, 672] fp8_128x128" } },
    { "qwen3_5",
      0,
      { "model.layers.0.input_layernorm.weight [256] bf16_cast",
        "model.layers.0.post_attention_layernorm.weight [256] bf16_cast",
        "model.layers.0.linear_attn.in_proj_qkvz.weight [416, 256] fp8_128x128",
        "model.layers.0.linear_attn.in_proj_ba.weight [8, 256] bf16_cast",
        "model.layers.0.linear_attn.conv1d.weight [256, 1, 4] bf16_cast",
        "model.layers.0.linear_attn.dt_bias [4] bf16_cast",
        "model.layers.0.linear_attn.A_log [4] fp32_cast",
        "model.layers.0.linear_attn.norm.weight [40] bf16_cast",
        "model.layers.0.linear_attn.out_proj.weight [256, 160] fp8_128x128",
        "model.layers.0.mlp.gate_up_proj.weight [1344, 256] fp8_128x128",
        "model.layers.0.mlp.down_proj.weight [256, 672] fp8_128x128" } },
    { "qwen3_5",
      1,
      { "model.layers.1.input_layernorm.weight [256] bf16_cast",
        "model.layers.1.post_attention_layernorm.weight [256] bf16_cast",
        "model.layers.1.self_attn.q_norm.weight [72] bf16_cast",
        "model.layers.1.self_attn.k_norm.weight [72] bf16_cast",
        "model.layers.1.self_attn.qkv_proj.weight [720, 256] fp8_128x128",
        "model.layers.1.self_attn.o_proj.weight [256, 288] fp8_128x128",
        "model.layers.1.mlp.gate_up_proj.weight [1344, 256] fp8_128x128",
        "model.layers.1.mlp.down_proj.weight [256, 672] fp8_128x128" } },
    { "qwen3_5_moe",
      1,
      { "model.layers.1.input_layernorm.weight [256] bf16_cast",
        "model.layers.1.post_attention_layernorm.weight [256] bf16_cast",
        "model.layers.1.self_attn.q_norm.weight [72] bf16_cast",
        "model.layers.1.self_attn.k_norm.weight [72] bf16_cast",
        "model.layers.1.self_attn.qkv_proj.weight [720, 256] fp8_128x128",
        "model.layers.1.self_attn.o_proj.weight [256, 288] fp8_128x128",
        "model.layers.1.mlp.gate.weight [8, 256] bf16_cast",
        "model.layers.1.mlp.experts.w13_weight [8, 192, 256] fp8_128x128",
        "model.layers.1.mlp.experts.w2_weight [8, 256, 96] fp8_128x128",
        "model.layers.1.mlp.shared_expert_gate.weight [1, 256] bf16_cast",
        "model.layers.1.mlp.shared_expert.gate_up_proj.weight [144, 256] fp8_128x128",
        "model.layers.1.mlp.shared_expert.down_proj.weight [256, 72] fp8_128x128" } },
};

static void check_layer(const layer_case *c, weir_naming naming)
{
    source_set *set = set_of_preset(c->family, "ragged", naming);
    weir_mapping *mapping = NULL;
    size_t n_entries, n = 0;
    assert_int_equal(set_open(set, NULL, NULL, "fp8_128x128", &mapping), WEIR_OK);
    const weir_map_entry *entries = weir_mapping_entries(mapping, &n_entries);
    for (size_t i = 0; i < n_entries; i++) {
        char line[256], shape[WEIR_SHAPE_TEXT];
        if (entries[i].layer != c->layer)
            continue;
        snprintf(line, sizeof(line), "%s %s %s", entries[i].name,
                 weir_shape_text(&entries[i].shape, shape, sizeof(shape)),
                 entries[i].conversion->name);
        assert_true(n < MAX_LINES - 1);
        assert_non_null(c->lines[n]);
        assert_string_equal(line, c->lines[n]);
        n++;
    }
    assert_null(c->lines[n]);
    weir_mapping_close(mapping);
    set_free(set);
}

static void a_layer_becomes_what_the_engine_holds_in_every_naming(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        for (int naming = 0; naming < WEIR_N_NAMINGS; naming++)
            check_layer(&cases[i], (weir_naming)naming);
    }
}

/* ---- what every family refuses ---------------------------------------------------------------*/

static void assert_refused(const source_set *set, const char *what, const char *text)
{
    weir_mapping *mapping = NULL;
    if (set_open(set, NULL, NULL, "fp8_128x128", &mapping) != WEIR_ERR_LAYOUT)
        fail_msg("%s is not refused", what);
    assert_null(mapping);
    assert_error_has(text);
}

static void check_refusals(source_set *set)
{
    for (size_t i = 0; i < set->n; i++) {
        weir_tensor left_out = set->tensors[i];
        set->tensors[i] = set->tensors[--set->n];
        assert_refused(set, left_out.name, "(missing)");
        set->tensors[set->n++] = set->tensors[i];
        set->tensors[i] = left_out;
    }
    set_add(set, "model.layers.1.no_such.weight", WEIR_BF16, SHAPE(8, 8));
    assert_refused(set, "no_such", "source model.layers.1.no_such.weight: no row of family");
}

static void every_family_refuses_each_missing_and_any_unknown_source(void **state)
{
    (void)state;
    weir_family_info families[SET_MAX_FAMILIES];
    size_t n_families = weir_families(families, SET_MAX_FAMILIES);
    for (size_t f = 0; f < n_families; f++) {
        for (int naming = 0; naming < WEIR_N_NAMINGS; naming++) {
            source_set *set = set_of_preset(families[f].name, "ragged", (weir_naming)naming);
            check_refusals(set);
            set_free(set);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_layer_becomes_what_the_engine_holds_in_every_naming),
        cmocka_unit_test(every_family_refuses_each_missing_and_any_unknown_source),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
