/* SPDX-License-Identifier: Apache-2.0 */
/* minimax_m2.c - MiniMax-M2, as vLLM's MiniMaxM2ForCausalLM holds it. All layers have experts.
 *
 * Queries and keys are normalised over all heads at once, so that these norms are cut with them.
 * The engine keeps its router in fp32.
 */
#include "family/table.h"

static const weir_family_row base[] = {
    { "input_layernorm.weight", .conversion = "bf16_cast",
      WEIR_HF({ "input_layernorm.weight", "hidden_size" }) },
    { "post_attention_layernorm.weight", .conversion = "bf16_cast",
      WEIR_HF({ "post_attention_layernorm.weight", "hidden_size" }) },
    { "self_attn.q_norm.weight", .cut = WEIR_CUT_COLUMN, .units = { "num_attention_heads" },
      .conversion = "bf16_cast",
      WEIR_HF({ "self_attn.q_norm.weight", "num_attention_heads*head_dim" }) },
    { "self_attn.k_norm.weight", .cut = WEIR_CUT_COLUMN, .units = { "num_key_value_heads" },
      .conversion = "bf16_cast",
      WEIR_HF({ "self_attn.k_norm.weight", "num_key_value_heads*head_dim" }) },
    { "self_attn.qkv_proj.weight", WEIR_ROW_LINEAR, .cut = WEIR_CUT_COLUMN,
      .units = { "num_attention_heads", "num_key_value_heads", "num_key_value_heads" },
      WEIR_HF({ "self_attn.q_proj.weight", "num_attention_heads*head_dim, hidden_size" },
              { "self_attn.k_proj.weight", "num_key_value_heads*head_dim, hidden_size" },
              { "self_attn.v_proj.weight", "num_key_value_heads*head_dim, hidden_size" }) },
    { "self_attn.o_proj.weight", WEIR_ROW_LINEAR, .cut = WEIR_CUT_ROW,
      WEIR_HF({ "self_attn.o_proj.weight", "hidden_size, num_attention_heads*head_dim" }) },
    WEIR_ROWS_END,
};

static const weir_family_row sparse[] = {
    { "block_sparse_moe.gate.weight", .conversion = "fp32_cast",
      WEIR_HF({ "block_sparse_moe.gate.weight", "num_local_experts, hidden_size" }),
      WEIR_STACKED({ "mlp.router.gate.weight", "num_local_experts, hidden_size" }) },
    { "block_sparse_moe.e_score_correction_bias", .conversion = "fp32_cast",
      .when = "use_routing_bias",
      WEIR_HF({ "block_sparse_moe.e_score_correction_bias", "num_local_experts" }),
      WEIR_STACKED({ "mlp.expert_bias", "num_local_experts" }) },
    { "block_sparse_moe.experts.w13_weight", WEIR_ROW_EXPERT, .cut = WEIR_CUT_COLUMN, .axis = 1,
      WEIR_HF({ "block_sparse_moe.experts.{e}.w1.weight", "intermediate_size, hidden_size" },
              { "block_sparse_moe.experts.{e}.w3.weight", "intermediate_size, hidden_size" }),
      WEIR_STACKED({ "mlp.experts.w1", "num_local_experts, intermediate_size, hidden_size" },
                   { "mlp.experts.w3", "num_local_experts, intermediate_size, hidden_size" }) },
    { "block_sparse_moe.experts.w2_weight", WEIR_ROW_EXPERT, .cut = WEIR_CUT_ROW, .axis = 1,
      WEIR_HF({ "block_sparse_moe.experts.{e}.w2.weight", "hidden_size, intermediate_size" }),
      WEIR_STACKED({ "mlp.experts.w2", "num_local_experts, hidden_size, intermediate_size" }) },
    WEIR_ROWS_END,
};

#define COMMON                                                                             \
    "\"architectures\": [\"MiniMaxM2ForCausalLM\"], \"model_type\": \"minimax_m2\", "      \
    "\"torch_dtype\": \"bfloat16\", \"hidden_act\": \"silu\", \"use_qk_norm\": true, "     \
    "\"use_routing_bias\": true, \"scoring_func\": \"sigmoid\", \"rms_norm_eps\": 1e-06, " \
    "\"rope_theta\": 5000000, \"tie_word_embeddings\": false, "

const weir_family weir_family_minimax_m2 = {
    .name = "minimax_m2",
    .summary = "MiniMax-M2 mixture of experts",
    .layer_prefix = "model.layers.{i}.",
    .n_experts = "num_local_experts",
    .dense_rule = WEIR_DENSE_ALL,
    .model_types = { "minimax_m2" },
    .layouts = { "default" },
    .parts = { { base, NULL, sparse, weir_rows_causal_lm } },
    .drop = { "model.layers.*.mlp.tokens_per_expert",
              "model.layers.*.self_attn.rotary_emb.inv_freq" },
    .defaults = { { "head_dim", "hidden_size/num_attention_heads" },
                  { "num_key_value_heads", "num_attention_heads" } },
    .presets = { "tiny", "ragged", "demo" },
    .configs = {
        "{" COMMON
        "\"hidden_size\": 192, \"num_hidden_layers\": 2, \"num_attention_heads\": 4, "
        "\"num_key_value_heads\": 2, \"head_dim\": 128, \"rotary_dim\": 64, "
        "\"intermediate_size\": 256, \"num_local_experts\": 8, \"num_experts_per_tok\": 2, "
        "\"vocab_size\": 1000}",
        "{" COMMON
        "\"hidden_size\": 256, \"num_hidden_layers\": 2, \"num_attention_heads\": 4, "
        "\"num_key_value_heads\": 2, \"head_dim\": 72, \"rotary_dim\": 36, "
        "\"intermediate_size\": 96, \"num_local_experts\": 8, \"num_experts_per_tok\": 2, "
        "\"vocab_size\": 1000}",
        "{" COMMON
        "\"hidden_size\": 1024, \"num_hidden_layers\": 6, \"num_attention_heads\": 16, "
        "\"num_key_value_heads\": 8, \"head_dim\": 64, \"rotary_dim\": 32, "
        "\"intermediate_size\": 512, \"num_local_experts\": 16, \"num_experts_per_tok\": 4, "
        "\"vocab_size\": 32000}",
    },
};
