/* SPDX-License-Identifier: Apache-2.0 */
/* glm4_moe.c - GLM-4.5 to 4.7 with experts, as vLLM's Glm4MoeForCausalLM holds them. The engine
 * keeps its router in fp32.
 */
#include "family/expert_rows.h"

static const weir_family_row base[] = {
    { "input_layernorm.weight", .conversion = "bf16_cast",
      WEIR_HF({ "input_layernorm.weight", "hidden_size" }) },
    { "post_attention_layernorm.weight", .conversion = "bf16_cast",
      WEIR_HF({ "post_attention_layernorm.weight", "hidden_size" }) },
    { "self_attn.q_norm.weight", .conversion = "bf16_cast", .when = "use_qk_norm",
      WEIR_HF({ "self_attn.q_norm.weight", "head_dim" }) },
    { "self_attn.k_norm.weight", .conversion = "bf16_cast", .when = "use_qk_norm",
      WEIR_HF({ "self_attn.k_norm.weight", "head_dim" }) },
    { "self_attn.qkv_proj.weight", WEIR_ROW_LINEAR, .cut = WEIR_CUT_COLUMN,
      .units = { "num_attention_heads", "num_key_value_heads", "num_key_value_heads" },
      WEIR_HF({ "self_attn.q_proj.weight", "num_attention_heads*head_dim, hidden_size" },
              { "self_attn.k_proj.weight", "num_key_value_heads*head_dim, hidden_size" },
              { "self_attn.v_proj.weight", "num_key_value_heads*head_dim, hidden_size" }) },
    { "self_attn.qkv_proj.bias", .cut = WEIR_CUT_COLUMN,
      .units = { "num_attention_heads", "num_key_value_heads", "num_key_value_heads" },
      .conversion = "bf16_cast", .when = "attention_bias",
      WEIR_HF({ "self_attn.q_proj.bias", "num_attention_heads*head_dim" },
              { "self_attn.k_proj.bias", "num_key_value_heads*head_dim" },
              { "self_attn.v_proj.bias", "num_key_value_heads*head_dim" }) },
    { "self_attn.o_proj.weight", WEIR_ROW_LINEAR, .cut = WEIR_CUT_ROW,
      WEIR_HF({ "self_attn.o_proj.weight", "hidden_size, num_attention_heads*head_dim" }) },
    WEIR_ROWS_END,
};

static const weir_family_row sparse[] = {
    { "mlp.gate.weight", .conversion = "fp32_cast",
      WEIR_HF({ "mlp.gate.weight", "n_routed_experts, hidden_size" }),
      WEIR_STACKED({ "mlp.router.gate.weight", "n_routed_experts, hidden_size" }) },
    { "mlp.gate.e_score_correction_bias", .conversion = "fp32_cast",
      WEIR_HF({ "mlp.gate.e_score_correction_bias", "n_routed_experts" }),
      WEIR_STACKED({ "mlp.expert_bias", "n_routed_experts" }) },
    WEIR_EXPERT_ROWS("n_routed_experts"),
    WEIR_SHARED_EXPERT_ROWS("n_shared_experts"),
    WEIR_ROWS_END,
};

#define COMMON                                                                           \
    "\"architectures\": [\"Glm4MoeForCausalLM\"], \"model_type\": \"glm4_moe\", "        \
    "\"torch_dtype\": \"bfloat16\", \"hidden_act\": \"silu\", \"n_shared_experts\": 1, " \
    "\"norm_topk_prob\": true, \"rms_norm_eps\": 1e-05, \"rope_theta\": 1000000.0, "     \
    "\"partial_rotary_factor\": 0.5, \"tie_word_embeddings\": false, "

const weir_family weir_family_glm4_moe = {
    .name = "glm4_moe",
    .summary = "GLM-4.5 to 4.7 mixture of experts",
    .layer_prefix = "model.layers.{i}.",
    .n_experts = "n_routed_experts",
    .dense_rule = WEIR_DENSE_FIRST_K,
    .model_types = { "glm4_moe" },
    .layouts = { "default" },
    .parts = { { base, weir_rows_gated_mlp, sparse, weir_rows_causal_lm } },
    .drop = { "model.layers.*.mlp.tokens_per_expert",
              "model.layers.*.self_attn.rotary_emb.inv_freq" },
    .defaults = { { "first_k_dense_replace", "0" },
                  { "num_key_value_heads", "num_attention_heads" } },
    .presets = { "tiny", "ragged", "demo" },
    .configs = {
        "{" COMMON
        "\"attention_bias\": true, \"use_qk_norm\": true, \"hidden_size\": 128, "
        "\"num_hidden_layers\": 3, \"first_k_dense_replace\": 1, \"num_attention_heads\": 4, "
        "\"num_key_value_heads\": 2, \"head_dim\": 128, \"intermediate_size\": 512, "
        "\"moe_intermediate_size\": 256, \"n_routed_experts\": 8, "
        "\"num_experts_per_tok\": 2, \"vocab_size\": 1000}",
        "{" COMMON "\"attention_bias\": true, \"use_qk_norm\": true, "
        "\"hidden_size\": 256, \"num_hidden_layers\": 3, \"first_k_dense_replace\": 1, "
        "\"num_attention_heads\": 4, \"num_key_value_heads\": 1, \"head_dim\": 72, "
        "\"intermediate_size\": 352, \"moe_intermediate_size\": 96, \"n_routed_experts\": 8, "
        "\"num_experts_per_tok\": 2, \"vocab_size\": 1000}",
        "{" COMMON "\"attention_bias\": true, \"use_qk_norm\": false, "
        "\"hidden_size\": 1024, \"num_hidden_layers\": 6, \"first_k_dense_replace\": 1, "
        "\"num_attention_heads\": 16, \"num_key_value_heads\": 8, \"head_dim\": 64, "
        "\"intermediate_size\": 3072, \"moe_intermediate_size\": 512, \"n_routed_experts\": 16, "
        "\"num_experts_per_tok\": 4, \"vocab_size\": 32000}",
    },
};
