/* SPDX-License-Identifier: Apache-2.0 */
/* afmoe.c - Arcee's AFMoE (Trinity), as vLLM's AfmoeForCausalLM holds it.
 *
 * What attention gives is gated, and norms stand before and behind attention and MLP. The engine
 * keeps its router in fp32.
 */
#include "family/expert_rows.h"

static const weir_family_row base[] = {
    { "input_layernorm.weight", .conversion = "bf16_cast",
      WEIR_HF({ "input_layernorm.weight", "hidden_size" }) },
    { "post_attention_layernorm.weight", .conversion = "bf16_cast",
      WEIR_HF({ "post_attention_layernorm.weight", "hidden_size" }) },
    { "pre_mlp_layernorm.weight", .conversion = "bf16_cast",
      WEIR_HF({ "pre_mlp_layernorm.weight", "hidden_size" }) },
    { "post_mlp_layernorm.weight", .conversion = "bf16_cast",
      WEIR_HF({ "post_mlp_layernorm.weight", "hidden_size" }) },
    { "self_attn.q_norm.weight", .conversion = "bf16_cast",
      WEIR_HF({ "self_attn.q_norm.weight", "head_dim" }) },
    { "self_attn.k_norm.weight", .conversion = "bf16_cast",
      WEIR_HF({ "self_attn.k_norm.weight", "head_dim" }) },
    { "self_attn.qkv_proj.weight", WEIR_ROW_LINEAR, .cut = WEIR_CUT_COLUMN,
      .units = { "num_attention_heads", "num_key_value_heads", "num_key_value_heads" },
      WEIR_HF({ "self_attn.q_proj.weight", "num_attention_heads*head_dim, hidden_size" },
              { "self_attn.k_proj.weight", "num_key_value_heads*head_dim, hidden_size" },
              { "self_attn.v_proj.weight", "num_key_value_heads*head_dim, hidden_size" }) },
    { "self_attn.gate_proj.weight", WEIR_ROW_LINEAR, .cut = WEIR_CUT_COLUMN,
      .units = { "num_attention_heads" },
      WEIR_HF({ "self_attn.gate_proj.weight", "num_attention_heads*head_dim, hidden_size" }) },
    { "self_attn.o_proj.weight", WEIR_ROW_LINEAR, .cut = WEIR_CUT_ROW,
      WEIR_HF({ "self_attn.o_proj.weight", "hidden_size, num_attention_heads*head_dim" }) },
    WEIR_ROWS_END,
};

static const weir_family_row sparse[] = {
    { "mlp.gate.weight", .conversion = "fp32_cast",
      WEIR_HF({ "mlp.router.gate.weight", "num_experts, hidden_size" }) },
    { "mlp.expert_bias", .conversion = "fp32_cast", WEIR_HF({ "mlp.expert_bias", "num_experts" }) },
    WEIR_EXPERT_ROWS("num_experts"),
    WEIR_SHARED_EXPERT_ROWS("num_shared_experts"),
    WEIR_ROWS_END,
};

#define COMMON                                                                               \
    "\"architectures\": [\"AfmoeForCausalLM\"], \"model_type\": \"afmoe\", "                 \
    "\"torch_dtype\": \"bfloat16\", \"hidden_act\": \"silu\", \"score_func\": \"sigmoid\", " \
    "\"route_norm\": true, \"num_dense_layers\": 1, \"rms_norm_eps\": 1e-05, "               \
    "\"rope_theta\": 10000, \"tie_word_embeddings\": false, "

const weir_family weir_family_afmoe = {
    .name = "afmoe",
    .summary = "Arcee AFMoE (Trinity) mixture of experts",
    .layer_prefix = "model.layers.{i}.",
    .n_experts = "num_experts",
    .dense_rule = WEIR_DENSE_FIRST_K,
    .model_types = { "afmoe" },
    .layouts = { "default" },
    .parts = { { base, weir_rows_gated_mlp, sparse, weir_rows_causal_lm } },
    .drop = { "model.layers.*.mlp.tokens_per_expert", "model.layers.*.mlp.reorderer*",
              "model.layers.*.self_attn.rotary_emb.inv_freq" },
    .defaults = { { "first_k_dense_replace", "num_dense_layers" },
                  { "head_dim", "hidden_size/num_attention_heads" },
                  { "num_key_value_heads", "num_attention_heads" } },
    .presets = { "tiny", "ragged", "demo" },
    .configs = {
        "{" COMMON
        "\"num_shared_experts\": 2, \"hidden_size\": 128, \"num_hidden_layers\": 3, "
        "\"num_attention_heads\": 4, \"num_key_value_heads\": 2, \"head_dim\": 128, "
        "\"intermediate_size\": 512, \"moe_intermediate_size\": 256, \"num_experts\": 8, "
        "\"num_experts_per_tok\": 2, \"vocab_size\": 1000}",
        "{" COMMON "\"num_shared_experts\": 2, "
        "\"hidden_size\": 256, \"num_hidden_layers\": 3, "
        "\"num_attention_heads\": 4, \"num_key_value_heads\": 1, \"head_dim\": 72, "
        "\"intermediate_size\": 352, \"moe_intermediate_size\": 96, \"num_experts\": 8, "
        "\"num_experts_per_tok\": 2, \"vocab_size\": 1000}",
        "{" COMMON "\"num_shared_experts\": 1, "
        "\"hidden_size\": 1024, \"num_hidden_layers\": 6, "
        "\"num_attention_heads\": 16, \"num_key_value_heads\": 8, \"head_dim\": 64, "
        "\"intermediate_size\": 3072, \"moe_intermediate_size\": 512, \"num_experts\": 16, "
        "\"num_experts_per_tok\": 4, \"vocab_size\": 32000}",
    },
};
