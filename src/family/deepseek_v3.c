/* SPDX-License-Identifier: Apache-2.0 */
/* deepseek_v3.c - DeepSeek-V3 and Kimi K2, as vLLM's DeepseekV3ForCausalLM holds them.
 *
 * With q_lora_rank the query goes through a low rank, whose first half is fused with that of keys
 * and values; without it the two stand alone. Layers behind num_hidden_layers, which predict
 * further tokens, are a model of their own to the engine and are refused with the way to leave them
 * out.
 */
#include "family/expert_rows.h"

#define Q_DIM "num_attention_heads*qk_nope_head_dim+num_attention_heads*qk_rope_head_dim"
#define KV_A_DIM "kv_lora_rank+qk_rope_head_dim"
#define KV_B_DIM "num_attention_heads*qk_nope_head_dim+num_attention_heads*v_head_dim"

static const weir_family_row base[] = {
    { "input_layernorm.weight", .conversion = "bf16_cast",
      WEIR_HF({ "input_layernorm.weight", "hidden_size" }) },
    { "post_attention_layernorm.weight", .conversion = "bf16_cast",
      WEIR_HF({ "post_attention_layernorm.weight", "hidden_size" }) },
    { "self_attn.fused_qkv_a_proj.weight", WEIR_ROW_LINEAR, .when = "q_lora_rank",
      WEIR_HF({ "self_attn.q_a_proj.weight", "q_lora_rank, hidden_size" },
              { "self_attn.kv_a_proj_with_mqa.weight", KV_A_DIM ", hidden_size" }) },
    { "self_attn.q_a_layernorm.weight", .conversion = "bf16_cast", .when = "q_lora_rank",
      WEIR_HF({ "self_attn.q_a_layernorm.weight", "q_lora_rank" }) },
    { "self_attn.q_b_proj.weight", WEIR_ROW_LINEAR, .cut = WEIR_CUT_COLUMN,
      .units = { "num_attention_heads" }, .when = "q_lora_rank",
      WEIR_HF({ "self_attn.q_b_proj.weight", Q_DIM ", q_lora_rank" }) },
    { "self_attn.kv_a_proj_with_mqa.weight", WEIR_ROW_LINEAR, .when = "!q_lora_rank",
      WEIR_HF({ "self_attn.kv_a_proj_with_mqa.weight", KV_A_DIM ", hidden_size" }) },
    { "self_attn.q_proj.weight", WEIR_ROW_LINEAR, .cut = WEIR_CUT_COLUMN,
      .units = { "num_attention_heads" }, .when = "!q_lora_rank",
      WEIR_HF({ "self_attn.q_proj.weight", Q_DIM ", hidden_size" }) },
    { "self_attn.kv_a_layernorm.weight", .conversion = "bf16_cast",
      WEIR_HF({ "self_attn.kv_a_layernorm.weight", "kv_lora_rank" }) },
    { "self_attn.kv_b_proj.weight", WEIR_ROW_LINEAR, .cut = WEIR_CUT_COLUMN,
      .units = { "num_attention_heads" },
      WEIR_HF({ "self_attn.kv_b_proj.weight", KV_B_DIM ", kv_lora_rank" }) },
    { "self_attn.o_proj.weight", WEIR_ROW_LINEAR, .cut = WEIR_CUT_ROW,
      WEIR_HF({ "self_attn.o_proj.weight", "hidden_size, num_attention_heads*v_head_dim" }) },
    WEIR_ROWS_END,
};

static const weir_family_row sparse[] = {
    { "mlp.gate.weight", .conversion = "bf16_cast",
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
    "\"architectures\": [\"DeepseekV3ForCausalLM\"], \"torch_dtype\": \"bfloat16\", "    \
    "\"hidden_act\": \"silu\", \"attention_bias\": false, \"moe_layer_freq\": 1, "       \
    "\"n_shared_experts\": 1, \"norm_topk_prob\": true, \"scoring_func\": \"sigmoid\", " \
    "\"topk_method\": \"noaux_tc\", \"rms_norm_eps\": 1e-06, \"tie_word_embeddings\": false, "

/* What DeepSeek-V3 and Kimi K2 have in common. */
#define LARGE                                                                              \
    "\"hidden_size\": 7168, \"num_hidden_layers\": 61, \"q_lora_rank\": 1536, "            \
    "\"kv_lora_rank\": 512, \"qk_nope_head_dim\": 128, \"qk_rope_head_dim\": 64, "         \
    "\"v_head_dim\": 128, \"intermediate_size\": 18432, \"moe_intermediate_size\": 2048, " \
    "\"num_experts_per_tok\": 8, "

const weir_family weir_family_deepseek_v3 = {
    .name = "deepseek_v3",
    .summary = "DeepSeek-V3 and Kimi K2 mixture of experts with latent attention",
    .layer_prefix = "model.layers.{i}.",
    .n_experts = "n_routed_experts",
    .dense_rule = WEIR_DENSE_FIRST_K,
    .model_types = { "deepseek_v3", "kimi_k2" },
    .layouts = { "default" },
    .parts = { { base, weir_rows_gated_mlp, sparse, weir_rows_causal_lm } },
    .drop = { "model.layers.*.mlp.tokens_per_expert",
              "model.layers.*.self_attn.rotary_emb.inv_freq" },
    .defaults = { { "first_k_dense_replace", "0" } },
    .mla = { .from = "self_attn.kv_b_proj.weight",
             .w_uv = "self_attn.W_UV",
             .w_uk_t = "self_attn.W_UK_T",
             .heads = "num_attention_heads",
             .nope_dim = "qk_nope_head_dim",
             .v_dim = "v_head_dim",
             .lora_rank = "kv_lora_rank" },
    .presets = { "tiny", "ragged", "demo", "deepseek-v3", "kimi-k2" },
    .configs = {
        "{" COMMON
        "\"model_type\": \"deepseek_v3\", \"hidden_size\": 160, \"num_hidden_layers\": 3, "
        "\"first_k_dense_replace\": 1, \"num_attention_heads\": 4, "
        "\"num_key_value_heads\": 4, \"q_lora_rank\": 256, \"kv_lora_rank\": 128, "
        "\"qk_nope_head_dim\": 64, \"qk_rope_head_dim\": 64, \"v_head_dim\": 64, "
        "\"intermediate_size\": 512, \"moe_intermediate_size\": 256, "
        "\"n_routed_experts\": 8, \"num_experts_per_tok\": 2, \"vocab_size\": 1000}",
        "{" COMMON "\"model_type\": \"deepseek_v3\", "
        "\"hidden_size\": 256, \"num_hidden_layers\": 3, \"first_k_dense_replace\": 1, "
        "\"num_attention_heads\": 4, \"num_key_value_heads\": 4, "
        "\"q_lora_rank\": 192, \"kv_lora_rank\": 128, \"qk_nope_head_dim\": 48, "
        "\"qk_rope_head_dim\": 16, \"v_head_dim\": 32, \"intermediate_size\": 352, "
        "\"moe_intermediate_size\": 96, \"n_routed_experts\": 8, "
        "\"num_experts_per_tok\": 2, \"vocab_size\": 1000}",
        "{" COMMON "\"model_type\": \"deepseek_v3\", "
        "\"hidden_size\": 1024, \"num_hidden_layers\": 6, \"first_k_dense_replace\": 1, "
        "\"num_attention_heads\": 16, \"num_key_value_heads\": 16, "
        "\"q_lora_rank\": 512, \"kv_lora_rank\": 256, \"qk_nope_head_dim\": 64, "
        "\"qk_rope_head_dim\": 32, \"v_head_dim\": 64, \"intermediate_size\": 3072, "
        "\"moe_intermediate_size\": 512, \"n_routed_experts\": 16, "
        "\"num_experts_per_tok\": 4, \"vocab_size\": 32000}",
        "{" COMMON LARGE "\"model_type\": \"deepseek_v3\", "
        "\"first_k_dense_replace\": 3, \"num_attention_heads\": 128, "
        "\"num_key_value_heads\": 128, \"n_routed_experts\": 256, \"n_group\": 8, "
        "\"topk_group\": 4, \"routed_scaling_factor\": 2.5, \"num_nextn_predict_layers\": 1, "
        "\"vocab_size\": 129280}",
        "{" COMMON LARGE "\"model_type\": \"kimi_k2\", "
        "\"first_k_dense_replace\": 1, \"num_attention_heads\": 64, "
        "\"num_key_value_heads\": 64, \"n_routed_experts\": 384, \"n_group\": 1, "
        "\"topk_group\": 1, \"routed_scaling_factor\": 2.827, \"num_nextn_predict_layers\": 0, "
        "\"vocab_size\": 163840}",
    },
};
