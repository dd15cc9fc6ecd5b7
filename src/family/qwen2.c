/* SPDX-License-Identifier: Apache-2.0 */
/* qwen2.c - Qwen2 and Qwen2.5, as vLLM's Qwen2ForCausalLM holds them. Q, K and V have biases,
 * whatever config.json says; the output projection has none.
 */
#include "family/table.h"

static const weir_family_row base[] = {
    { "input_layernorm.weight", .conversion = "bf16_cast",
      WEIR_HF({ "input_layernorm.weight", "hidden_size" }) },
    { "post_attention_layernorm.weight", .conversion = "bf16_cast",
      WEIR_HF({ "post_attention_layernorm.weight", "hidden_size" }) },
    { "self_attn.qkv_proj.weight", WEIR_ROW_LINEAR, .cut = WEIR_CUT_COLUMN,
      .units = { "num_attention_heads", "num_key_value_heads", "num_key_value_heads" },
      WEIR_HF({ "self_attn.q_proj.weight", "num_attention_heads*head_dim, hidden_size" },
              { "self_attn.k_proj.weight", "num_key_value_heads*head_dim, hidden_size" },
              { "self_attn.v_proj.weight", "num_key_value_heads*head_dim, hidden_size" }) },
    { "self_attn.qkv_proj.bias", .cut = WEIR_CUT_COLUMN,
      .units = { "num_attention_heads", "num_key_value_heads", "num_key_value_heads" },
      .conversion = "bf16_cast",
      WEIR_HF({ "self_attn.q_proj.bias", "num_attention_heads*head_dim" },
              { "self_attn.k_proj.bias", "num_key_value_heads*head_dim" },
              { "self_attn.v_proj.bias", "num_key_value_heads*head_dim" }) },
    { "self_attn.o_proj.weight", WEIR_ROW_LINEAR, .cut = WEIR_CUT_ROW,
      WEIR_HF({ "self_attn.o_proj.weight", "hidden_size, num_attention_heads*head_dim" }) },
    WEIR_ROWS_END,
};

#define COMMON                                                                           \
    "\"architectures\": [\"Qwen2ForCausalLM\"], \"model_type\": \"qwen2\", "             \
    "\"torch_dtype\": \"bfloat16\", \"hidden_act\": \"silu\", \"rms_norm_eps\": 1e-06, " \
    "\"rope_theta\": 1000000.0, "

const weir_family weir_family_qwen2 = {
    .name = "qwen2",
    .summary = "Qwen2 and Qwen2.5 dense",
    .layer_prefix = "model.layers.{i}.",
    .dense_rule = WEIR_DENSE_ALL,
    .model_types = { "qwen2" },
    .layouts = { "default" },
    .parts = { { base, weir_rows_gated_mlp, NULL, weir_rows_causal_lm } },
    .drop = { "model.layers.*.self_attn.rotary_emb.inv_freq" },
    .defaults = { { "head_dim", "hidden_size/num_attention_heads" },
                  { "num_key_value_heads", "num_attention_heads" } },
    .presets = { "tiny", "ragged", "demo" },
    .configs = {
        "{" COMMON
        "\"tie_word_embeddings\": false, \"hidden_size\": 192, \"num_hidden_layers\": 2, "
        "\"num_attention_heads\": 4, \"num_key_value_heads\": 2, \"head_dim\": 128, "
        "\"intermediate_size\": 512, \"vocab_size\": 1000}",
        "{" COMMON
        "\"tie_word_embeddings\": false, \"hidden_size\": 256, \"num_hidden_layers\": 2, "
        "\"num_attention_heads\": 4, \"num_key_value_heads\": 1, "
        "\"intermediate_size\": 672, \"vocab_size\": 1000}",
        "{" COMMON
        "\"tie_word_embeddings\": true, \"hidden_size\": 1024, \"num_hidden_layers\": 14, "
        "\"num_attention_heads\": 16, \"num_key_value_heads\": 8, "
        "\"intermediate_size\": 4096, \"vocab_size\": 32000}",
    },
};
