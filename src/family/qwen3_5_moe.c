/* SPDX-License-Identifier: Apache-2.0 */
/* qwen3_5_moe.c - Qwen3.5 with experts, as vLLM holds it. All layers have experts and one shared
 * expert behind a gate; attention, layouts and names are those of qwen3_5.c.
 */
#include "family/expert_rows.h"

#define SHARED_DIM "shared_expert_intermediate_size"

static const weir_family_row sparse[] = {
    { "mlp.gate.weight", .conversion = "bf16_cast",
      WEIR_HF({ "mlp.gate.weight", "num_experts, hidden_size" }),
      WEIR_STACKED({ "mlp.router.gate.weight", "num_experts, hidden_size" }) },
    WEIR_EXPERT_ROWS("num_experts"),
    /* 1*1: an axis of one that the engine keeps. */
    { "mlp.shared_expert_gate.weight", .conversion = "bf16_cast",
      WEIR_HF({ "mlp.shared_expert_gate.weight", "1*1, hidden_size" }),
      WEIR_STACKED({ "shared_expert_gate.weight", "1*1, hidden_size" }) },
    { "mlp.shared_expert.gate_up_proj.weight", WEIR_ROW_LINEAR, .cut = WEIR_CUT_COLUMN,
      WEIR_HF({ "mlp.shared_expert.gate_proj.weight", SHARED_DIM ", hidden_size" },
              { "mlp.shared_expert.up_proj.weight", SHARED_DIM ", hidden_size" }),
      WEIR_STACKED({ "shared_expert.w1.weight", SHARED_DIM ", hidden_size" },
                   { "shared_expert.w3.weight", SHARED_DIM ", hidden_size" }) },
    { "mlp.shared_expert.down_proj.weight", WEIR_ROW_LINEAR, .cut = WEIR_CUT_ROW,
      WEIR_HF({ "mlp.shared_expert.down_proj.weight", "hidden_size, " SHARED_DIM }),
      WEIR_STACKED({ "shared_expert.w2.weight", "hidden_size, " SHARED_DIM }) },
    WEIR_ROWS_END,
};

#define COMMON                                                                               \
    "\"architectures\": [\"Qwen3_5MoeForCausalLM\"], \"model_type\": \"qwen3_5_moe_text\", " \
    "\"torch_dtype\": \"bfloat16\", \"hidden_act\": \"silu\", \"attention_bias\": false, "   \
    "\"attn_output_gate\": true, \"full_attention_interval\": 4, \"rms_norm_eps\": 1e-06, "  \
    "\"linear_conv_kernel_dim\": 4, \"tie_word_embeddings\": false, "

const weir_family weir_family_qwen3_5_moe = {
    .name = "qwen3_5_moe",
    .summary = "Qwen3.5 mixture of experts, with linear attention",
    .layer_prefix = "model.layers.{i}.",
    .n_experts = "num_experts",
    .dense_rule = WEIR_DENSE_ALL,
    .layer_kinds = { .key = "layer_types",
                     .names = { "full_attention", "linear_attention" },
                     .rows = { weir_rows_qwen3_5_full, weir_rows_qwen3_5_linear },
                     .interval = "full_attention_interval" },
    .model_types = { "qwen3_5_moe", "qwen3_5_moe_text" },
    .layouts = { "text", "composite" },
    .parts = { { weir_rows_qwen3_5_layer, NULL, sparse, weir_rows_causal_lm },
               { weir_rows_qwen3_5_layer, NULL, sparse, weir_rows_causal_lm } },
    .dst_prefix = { NULL, "language_model." },
    .drop = { "mtp.*", "model.layers.*.mlp.tokens_per_expert",
              "model.layers.*.self_attn.rotary_emb.inv_freq" },
    .alias = { "model.language_model.", "model." },
    .defaults = { { "head_dim", "256" },
                  { "num_key_value_heads", "2" },
                  { "full_attention_interval", "4" },
                  { "linear_conv_kernel_dim", "4" },
                  { "linear_key_head_dim", "128" },
                  { "linear_value_head_dim", "128" },
                  { "linear_num_key_heads", "16" },
                  { "linear_num_value_heads", "32" } },
    .presets = { "tiny", "ragged", "demo" },
    .configs = {
        "{" COMMON
        "\"hidden_size\": 96, \"num_hidden_layers\": 4, \"layer_types\": "
        "[\"linear_attention\", \"full_attention\", \"linear_attention\", "
        "\"full_attention\"], \"num_attention_heads\": 4, \"num_key_value_heads\": 2, "
        "\"head_dim\": 128, \"linear_key_head_dim\": 128, \"linear_value_head_dim\": 64, "
        "\"linear_num_key_heads\": 2, \"linear_num_value_heads\": 4, "
        "\"moe_intermediate_size\": 256, \"shared_expert_intermediate_size\": 256, "
        "\"num_experts\": 8, \"num_experts_per_tok\": 2, \"vocab_size\": 1000}",
        "{" COMMON
        "\"hidden_size\": 256, \"num_hidden_layers\": 2, \"layer_types\": "
        "[\"linear_attention\", \"full_attention\"], \"num_attention_heads\": 4, "
        "\"num_key_value_heads\": 1, \"head_dim\": 72, \"linear_key_head_dim\": 24, "
        "\"linear_value_head_dim\": 40, \"linear_num_key_heads\": 2, "
        "\"linear_num_value_heads\": 4, \"moe_intermediate_size\": 96, "
        "\"shared_expert_intermediate_size\": 72, \"num_experts\": 8, "
        "\"num_experts_per_tok\": 2, \"vocab_size\": 1000}",
        "{" COMMON
        "\"hidden_size\": 1024, \"num_hidden_layers\": 5, \"num_attention_heads\": 8, "
        "\"num_key_value_heads\": 2, \"head_dim\": 128, \"linear_key_head_dim\": 64, "
        "\"linear_value_head_dim\": 64, \"linear_num_key_heads\": 8, "
        "\"linear_num_value_heads\": 16, \"moe_intermediate_size\": 512, "
        "\"shared_expert_intermediate_size\": 512, \"num_experts\": 16, "
        "\"num_experts_per_tok\": 4, \"vocab_size\": 32000}",
    },
};
