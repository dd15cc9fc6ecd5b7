/* SPDX-License-Identifier: Apache-2.0 */
/* qwen3_moe.c - Qwen3 with experts, as vLLM's Qwen3MoeForCausalLM holds it. */
#include "family/table.h"

static const weir_family_row base[] = {
    { "input_layernorm.weight", .conversion = "bf16_cast",
      WEIR_HF({ "input_layernorm.weight", "hidden_size" }) },
    { "post_attention_layernorm.weight", .conversion = "bf16_cast",
      WEIR_HF({ "post_attention_layernorm.weight", "hidden_size" }) },
    { "self_attn.q_norm.weight", .conversion = "bf16_cast",
      WEIR_HF({ "self_attn.q_norm.weight", "head_dim" }) },
    { "self_attn.k_norm.weight", .conversion = "bf16_cast",
      WEIR_HF({ "self_attn.k_norm.weight", "head_dim" }) },
    { "self_attn.qkv_proj.weight", WEIR_ROW_LINEAR,
      WEIR_HF({ "self_attn.q_proj.weight", "num_attention_heads*head_dim, hidden_size" },
              { "self_attn.k_proj.weight", "num_key_value_heads*head_dim, hidden_size" },
              { "self_attn.v_proj.weight", "num_key_value_heads*head_dim, hidden_size" }) },
    { "self_attn.qkv_proj.bias", .conversion = "bf16_cast", .when = "attention_bias",
      WEIR_HF({ "self_attn.q_proj.bias", "num_attention_heads*head_dim" },
              { "self_attn.k_proj.bias", "num_key_value_heads*head_dim" },
              { "self_attn.v_proj.bias", "num_key_value_heads*head_dim" }) },
    { "self_attn.o_proj.weight", WEIR_ROW_LINEAR,
      WEIR_HF({ "self_attn.o_proj.weight", "hidden_size, num_attention_heads*head_dim" }) },
    WEIR_ROWS_END,
};

static const weir_family_row dense[] = {
    { "mlp.gate_up_proj.weight", WEIR_ROW_LINEAR,
      WEIR_HF({ "mlp.gate_proj.weight", "intermediate_size, hidden_size" },
              { "mlp.up_proj.weight", "intermediate_size, hidden_size" }) },
    { "mlp.down_proj.weight", WEIR_ROW_LINEAR,
      WEIR_HF({ "mlp.down_proj.weight", "hidden_size, intermediate_size" }) },
    WEIR_ROWS_END,
};

static const weir_family_row sparse[] = {
    { "mlp.gate.weight", .conversion = "bf16_cast",
      WEIR_HF({ "mlp.gate.weight", "num_experts, hidden_size" }),
      WEIR_STACKED({ "mlp.router.gate.weight", "num_experts, hidden_size" }) },
    { "mlp.experts.w13_weight", WEIR_ROW_EXPERT, .axis = 1,
      WEIR_HF({ "mlp.experts.{e}.gate_proj.weight", "moe_intermediate_size, hidden_size" },
              { "mlp.experts.{e}.up_proj.weight", "moe_intermediate_size, hidden_size" }),
      WEIR_HF_FUSED(
          { "mlp.experts.gate_up_proj", "num_experts, 2*moe_intermediate_size, hidden_size" }),
      WEIR_STACKED({ "mlp.experts.w1", "num_experts, moe_intermediate_size, hidden_size" },
                   { "mlp.experts.w3", "num_experts, moe_intermediate_size, hidden_size" }) },
    { "mlp.experts.w2_weight", WEIR_ROW_EXPERT, .axis = 1,
      WEIR_HF({ "mlp.experts.{e}.down_proj.weight", "hidden_size, moe_intermediate_size" }),
      WEIR_HF_FUSED({ "mlp.experts.down_proj", "num_experts, hidden_size, moe_intermediate_size" }),
      WEIR_STACKED({ "mlp.experts.w2", "num_experts, hidden_size, moe_intermediate_size" }) },
    WEIR_ROWS_END,
};

static const weir_family_row rest[] = {
    { "model.embed_tokens.weight", .conversion = "bf16_cast",
      WEIR_HF({ "model.embed_tokens.weight", "vocab_size, hidden_size" }) },
    { "model.norm.weight", .conversion = "bf16_cast",
      WEIR_HF({ "model.norm.weight", "hidden_size" }) },
    { "lm_head.weight", .conversion = "bf16_cast", .tied_with = "model.embed_tokens.weight",
      WEIR_HF({ "lm_head.weight", "vocab_size, hidden_size" }) },
    WEIR_ROWS_END,
};

#define COMMON                                                                             \
    "\"architectures\": [\"Qwen3MoeForCausalLM\"], \"model_type\": \"qwen3_moe\", "        \
    "\"torch_dtype\": \"bfloat16\", \"hidden_act\": \"silu\", \"attention_bias\": false, " \
    "\"decoder_sparse_step\": 1, \"norm_topk_prob\": true, \"rms_norm_eps\": 1e-06, "      \
    "\"rope_theta\": 1000000.0, \"tie_word_embeddings\": false, "

const weir_family weir_family_qwen3_moe = {
    .name = "qwen3_moe",
    .summary = "Qwen3 mixture of experts",
    .layer_prefix = "model.layers.{i}.",
    .n_experts = "num_experts",
    .dense_rule = WEIR_DENSE_QWEN3_MOE,
    .model_types = { "qwen3_moe" },
    .layouts = { "default" },
    .parts = { { base, dense, sparse, rest } },
    .drop = { "model.layers.*.mlp.tokens_per_expert",
              "model.layers.*.self_attn.rotary_emb.inv_freq" },
    .defaults = { { "head_dim", "hidden_size/num_attention_heads" },
                  { "num_key_value_heads", "num_attention_heads" },
                  { "decoder_sparse_step", "1" } },
    .presets = { "tiny", "demo" },
    .configs = {
        "{" COMMON
        "\"hidden_size\": 256, \"num_hidden_layers\": 3, "
        "\"num_attention_heads\": 4, \"num_key_value_heads\": 1, \"head_dim\": 64, "
        "\"intermediate_size\": 352, \"moe_intermediate_size\": 96, \"num_experts\": 8, "
        "\"num_experts_per_tok\": 2, \"mlp_only_layers\": [0], \"vocab_size\": 1000}",
        "{" COMMON
        "\"hidden_size\": 1024, \"num_hidden_layers\": 8, "
        "\"num_attention_heads\": 16, \"num_key_value_heads\": 4, \"head_dim\": 64, "
        "\"intermediate_size\": 3072, \"moe_intermediate_size\": 384, "
        "\"num_experts\": 16, \"num_experts_per_tok\": 4, \"mlp_only_layers\": [], "
        "\"vocab_size\": 32000}",
    },
};
