/* SPDX-License-Identifier: Apache-2.0 */
/* llama.c - Llama, as vLLM's LlamaForCausalLM holds it. */
#include "family/table.h"

static const weir_family_row base[] = {
    { "input_layernorm.weight", .conversion = "bf16_cast",
      WEIR_HF({ "input_layernorm.weight", "hidden_size" }) },
    { "post_attention_layernorm.weight", .conversion = "bf16_cast",
      WEIR_HF({ "post_attention_layernorm.weight", "hidden_size" }) },
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
    { "self_attn.o_proj.bias", .conversion = "bf16_cast", .when = "attention_bias",
      WEIR_HF({ "self_attn.o_proj.bias", "hidden_size" }) },
    WEIR_ROWS_END,
};

static const weir_family_row dense[] = {
    { "mlp.gate_up_proj.weight", WEIR_ROW_LINEAR,
      WEIR_HF({ "mlp.gate_proj.weight", "intermediate_size, hidden_size" },
              { "mlp.up_proj.weight", "intermediate_size, hidden_size" }) },
    { "mlp.gate_up_proj.bias", .conversion = "bf16_cast", .when = "mlp_bias",
      WEIR_HF({ "mlp.gate_proj.bias", "intermediate_size" },
              { "mlp.up_proj.bias", "intermediate_size" }) },
    { "mlp.down_proj.weight", WEIR_ROW_LINEAR,
      WEIR_HF({ "mlp.down_proj.weight", "hidden_size, intermediate_size" }) },
    { "mlp.down_proj.bias", .conversion = "bf16_cast", .when = "mlp_bias",
      WEIR_HF({ "mlp.down_proj.bias", "hidden_size" }) },
    WEIR_ROWS_END,
};

#define COMMON                                                                           \
    "\"architectures\": [\"LlamaForCausalLM\"], \"model_type\": \"llama\", "             \
    "\"torch_dtype\": \"bfloat16\", \"hidden_act\": \"silu\", \"rms_norm_eps\": 1e-05, " \
    "\"rope_theta\": 500000.0, \"tie_word_embeddings\": false, "

const weir_family weir_family_llama = {
    .name = "llama",
    .summary = "Llama dense",
    .layer_prefix = "model.layers.{i}.",
    .dense_rule = WEIR_DENSE_ALL,
    .model_types = { "llama" },
    .layouts = { "default" },
    .parts = { { base, dense, NULL, weir_rows_causal_lm } },
    .drop = { "model.layers.*.self_attn.rotary_emb.inv_freq" },
    .defaults = { { "head_dim", "hidden_size/num_attention_heads" },
                  { "num_key_value_heads", "num_attention_heads" } },
    .presets = { "tiny", "demo" },
    .configs = {
        "{" COMMON
        "\"attention_bias\": true, \"mlp_bias\": true, \"hidden_size\": 256, "
        "\"num_hidden_layers\": 2, \"num_attention_heads\": 4, "
        "\"num_key_value_heads\": 1, \"intermediate_size\": 672, \"vocab_size\": 1000}",
        "{" COMMON
        "\"attention_bias\": false, \"mlp_bias\": false, "
        "\"hidden_size\": 1024, \"num_hidden_layers\": 12, "
        "\"num_attention_heads\": 16, \"num_key_value_heads\": 4, "
        "\"intermediate_size\": 4096, \"vocab_size\": 32000}",
    },
};
