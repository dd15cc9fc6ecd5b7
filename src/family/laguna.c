/* SPDX-License-Identifier: Apache-2.0 */
/* laguna.c - Poolside's Laguna, as vLLM's LagunaForCausalLM holds it.
 *
 * Layers may differ in their number of heads. The engine does not fuse the gate and up projections
 * of its plain MLPs, dense ones and shared expert. Checkpoints put the router's bias among the
 * experts and say shared_expert; Hugging Face's model, whose experts are fused, puts it at the gate
 * and says shared_experts.
 *
 * Not here, because no released model has them: attention sinks, biases of attention.
 */
#include "family/expert_rows.h"

#define HEADS "num_attention_heads_per_layer"
#define SHARED_DIM "shared_expert_intermediate_size"

static const weir_family_row base[] = {
    { "input_layernorm.weight", .conversion = "bf16_cast",
      WEIR_HF({ "input_layernorm.weight", "hidden_size" }) },
    { "post_attention_layernorm.weight", .conversion = "bf16_cast",
      WEIR_HF({ "post_attention_layernorm.weight", "hidden_size" }) },
    { "self_attn.q_norm.weight", .conversion = "bf16_cast",
      WEIR_HF({ "self_attn.q_norm.weight", "head_dim" }) },
    { "self_attn.k_norm.weight", .conversion = "bf16_cast",
      WEIR_HF({ "self_attn.k_norm.weight", "head_dim" }) },
    { "self_attn.qkv_proj.weight", WEIR_ROW_LINEAR, .cut = WEIR_CUT_COLUMN,
      .units = { HEADS, "num_key_value_heads", "num_key_value_heads" },
      WEIR_HF({ "self_attn.q_proj.weight", HEADS "*head_dim, hidden_size" },
              { "self_attn.k_proj.weight", "num_key_value_heads*head_dim, hidden_size" },
              { "self_attn.v_proj.weight", "num_key_value_heads*head_dim, hidden_size" }) },
    { "self_attn.g_proj.weight", WEIR_ROW_LINEAR, .cut = WEIR_CUT_COLUMN, .units = { HEADS },
      .when = "gating!=per-element",
      WEIR_HF({ "self_attn.g_proj.weight", HEADS ", hidden_size" }) },
    { "self_attn.g_proj.weight", WEIR_ROW_LINEAR, .cut = WEIR_CUT_COLUMN, .units = { HEADS },
      .when = "gating=per-element",
      WEIR_HF({ "self_attn.g_proj.weight", HEADS "*head_dim, hidden_size" }) },
    { "self_attn.o_proj.weight", WEIR_ROW_LINEAR, .cut = WEIR_CUT_ROW,
      WEIR_HF({ "self_attn.o_proj.weight", "hidden_size, " HEADS "*head_dim" }) },
    WEIR_ROWS_END,
};

static const weir_family_row dense[] = {
    { "mlp.gate_proj.weight", WEIR_ROW_LINEAR, .cut = WEIR_CUT_COLUMN,
      WEIR_HF({ "mlp.gate_proj.weight", "intermediate_size, hidden_size" }) },
    { "mlp.up_proj.weight", WEIR_ROW_LINEAR, .cut = WEIR_CUT_COLUMN,
      WEIR_HF({ "mlp.up_proj.weight", "intermediate_size, hidden_size" }) },
    { "mlp.down_proj.weight", WEIR_ROW_LINEAR, .cut = WEIR_CUT_ROW,
      WEIR_HF({ "mlp.down_proj.weight", "hidden_size, intermediate_size" }) },
    WEIR_ROWS_END,
};

static const weir_family_row sparse[] = {
    { "mlp.gate.weight", .conversion = "bf16_cast",
      WEIR_HF({ "mlp.gate.weight", "num_experts, hidden_size" }),
      WEIR_STACKED({ "mlp.router.gate.weight", "num_experts, hidden_size" }) },
    { "mlp.experts.e_score_correction_bias", .conversion = "fp32_cast",
      WEIR_HF({ "mlp.experts.e_score_correction_bias", "num_experts" }),
      WEIR_HF_FUSED({ "mlp.gate.e_score_correction_bias", "num_experts" }),
      WEIR_STACKED({ "mlp.expert_bias", "num_experts" }) },
    WEIR_EXPERT_ROWS("num_experts"),
    { "mlp.shared_expert.gate_proj.weight", WEIR_ROW_LINEAR, .cut = WEIR_CUT_COLUMN,
      .when = SHARED_DIM,
      WEIR_HF({ "mlp.shared_expert.gate_proj.weight", SHARED_DIM ", hidden_size" }),
      WEIR_HF_FUSED({ "mlp.shared_experts.gate_proj.weight", SHARED_DIM ", hidden_size" }),
      WEIR_STACKED({ "shared_expert.w1.weight", SHARED_DIM ", hidden_size" }) },
    { "mlp.shared_expert.up_proj.weight", WEIR_ROW_LINEAR, .cut = WEIR_CUT_COLUMN,
      .when = SHARED_DIM,
      WEIR_HF({ "mlp.shared_expert.up_proj.weight", SHARED_DIM ", hidden_size" }),
      WEIR_HF_FUSED({ "mlp.shared_experts.up_proj.weight", SHARED_DIM ", hidden_size" }),
      WEIR_STACKED({ "shared_expert.w3.weight", SHARED_DIM ", hidden_size" }) },
    { "mlp.shared_expert.down_proj.weight", WEIR_ROW_LINEAR, .cut = WEIR_CUT_ROW,
      .when = SHARED_DIM,
      WEIR_HF({ "mlp.shared_expert.down_proj.weight", "hidden_size, " SHARED_DIM }),
      WEIR_HF_FUSED({ "mlp.shared_experts.down_proj.weight", "hidden_size, " SHARED_DIM }),
      WEIR_STACKED({ "shared_expert.w2.weight", "hidden_size, " SHARED_DIM }) },
    WEIR_ROWS_END,
};

#define COMMON                                                                             \
    "\"architectures\": [\"LagunaForCausalLM\"], \"model_type\": \"laguna\", "             \
    "\"torch_dtype\": \"bfloat16\", \"hidden_act\": \"silu\", \"attention_bias\": false, " \
    "\"norm_topk_prob\": true, \"rms_norm_eps\": 1e-06, "                                  \
    "\"tie_word_embeddings\": false, "

const weir_family weir_family_laguna = {
    .name = "laguna",
    .summary = "Poolside Laguna mixture of experts",
    .layer_prefix = "model.layers.{i}.",
    .n_experts = "num_experts",
    .dense_rule = WEIR_DENSE_LAYER_TYPES,
    .model_types = { "laguna" },
    .layouts = { "default" },
    .parts = { { base, dense, sparse, weir_rows_causal_lm } },
    .drop = { "model.layers.*.mlp.tokens_per_expert",
              "model.layers.*.self_attn.rotary_emb.inv_freq" },
    .defaults = { { HEADS, "num_attention_heads" },
                  { "head_dim", "hidden_size/num_attention_heads" },
                  { "num_key_value_heads", "num_attention_heads" },
                  { "decoder_sparse_step", "1" },
                  { "gating", "1" } },
    .presets = { "tiny", "ragged", "demo" },
    .configs = {
        "{" COMMON
        "\"gating\": \"per-element\", \"hidden_size\": 128, \"num_hidden_layers\": 3, "
        "\"num_attention_heads\": 4, \"num_attention_heads_per_layer\": [4, 6, 4], "
        "\"num_key_value_heads\": 2, \"head_dim\": 128, \"intermediate_size\": 512, "
        "\"moe_intermediate_size\": 256, \"shared_expert_intermediate_size\": 256, "
        "\"num_experts\": 8, \"num_experts_per_tok\": 2, "
        "\"mlp_layer_types\": [\"dense\", \"sparse\", \"sparse\"], \"vocab_size\": 1000}",
        "{" COMMON "\"gating\": \"per-head\", "
        "\"hidden_size\": 256, \"num_hidden_layers\": 3, \"num_attention_heads\": 4, "
        "\"num_attention_heads_per_layer\": [4, 6, 4], \"num_key_value_heads\": 2, "
        "\"head_dim\": 40, \"intermediate_size\": 352, \"moe_intermediate_size\": 96, "
        "\"shared_expert_intermediate_size\": 160, \"num_experts\": 8, "
        "\"num_experts_per_tok\": 2, \"mlp_layer_types\": [\"dense\", \"sparse\", \"sparse\"], "
        "\"vocab_size\": 1000}",
        "{" COMMON "\"gating\": \"per-element\", "
        "\"hidden_size\": 1024, \"num_hidden_layers\": 6, \"num_attention_heads\": 16, "
        "\"num_attention_heads_per_layer\": [16, 24, 24, 24, 16, 24], "
        "\"num_key_value_heads\": 8, \"head_dim\": 64, \"intermediate_size\": 3072, "
        "\"moe_intermediate_size\": 512, \"shared_expert_intermediate_size\": 512, "
        "\"num_experts\": 16, \"num_experts_per_tok\": 4, \"mlp_only_layers\": [0], "
        "\"vocab_size\": 32000}",
    },
};
