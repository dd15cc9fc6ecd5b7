/* SPDX-License-Identifier: Apache-2.0 */
/* shared_rows.c - rows that several families have word for word. A family that differs in one row
 * writes its own table.
 */
#include "family/table.h"

const weir_family_row weir_rows_qwen3_layer[] = {
    { "input_layernorm.weight", .conversion = "bf16_cast",
      WEIR_HF({ "input_layernorm.weight", "hidden_size" }) },
    { "post_attention_layernorm.weight", .conversion = "bf16_cast",
      WEIR_HF({ "post_attention_layernorm.weight", "hidden_size" }) },
    { "self_attn.q_norm.weight", .conversion = "bf16_cast",
      WEIR_HF({ "self_attn.q_norm.weight", "head_dim" }) },
    { "self_attn.k_norm.weight", .conversion = "bf16_cast",
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

const weir_family_row weir_rows_llama_layer[] = {
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
      .conversion = "bf16_cast", .when = "attention_bias",
      WEIR_HF({ "self_attn.q_proj.bias", "num_attention_heads*head_dim" },
              { "self_attn.k_proj.bias", "num_key_value_heads*head_dim" },
              { "self_attn.v_proj.bias", "num_key_value_heads*head_dim" }) },
    { "self_attn.o_proj.weight", WEIR_ROW_LINEAR, .cut = WEIR_CUT_ROW,
      WEIR_HF({ "self_attn.o_proj.weight", "hidden_size, num_attention_heads*head_dim" }) },
    { "self_attn.o_proj.bias", .conversion = "bf16_cast", .when = "attention_bias",
      WEIR_HF({ "self_attn.o_proj.bias", "hidden_size" }) },
    WEIR_ROWS_END,
};

const weir_family_row weir_rows_llama_mlp[] = {
    { "mlp.gate_up_proj.weight", WEIR_ROW_LINEAR, .cut = WEIR_CUT_COLUMN,
      WEIR_HF({ "mlp.gate_proj.weight", "intermediate_size, hidden_size" },
              { "mlp.up_proj.weight", "intermediate_size, hidden_size" }) },
    { "mlp.gate_up_proj.bias", .cut = WEIR_CUT_COLUMN, .conversion = "bf16_cast",
      .when = "mlp_bias",
      WEIR_HF({ "mlp.gate_proj.bias", "intermediate_size" },
              { "mlp.up_proj.bias", "intermediate_size" }) },
    { "mlp.down_proj.weight", WEIR_ROW_LINEAR, .cut = WEIR_CUT_ROW,
      WEIR_HF({ "mlp.down_proj.weight", "hidden_size, intermediate_size" }) },
    { "mlp.down_proj.bias", .conversion = "bf16_cast", .when = "mlp_bias",
      WEIR_HF({ "mlp.down_proj.bias", "hidden_size" }) },
    WEIR_ROWS_END,
};

const weir_family_row weir_rows_gated_mlp[] = {
    { "mlp.gate_up_proj.weight", WEIR_ROW_LINEAR, .cut = WEIR_CUT_COLUMN,
      WEIR_HF({ "mlp.gate_proj.weight", "intermediate_size, hidden_size" },
              { "mlp.up_proj.weight", "intermediate_size, hidden_size" }) },
    { "mlp.down_proj.weight", WEIR_ROW_LINEAR, .cut = WEIR_CUT_ROW,
      WEIR_HF({ "mlp.down_proj.weight", "hidden_size, intermediate_size" }) },
    WEIR_ROWS_END,
};

/* Norms stand before and behind attention and MLP. */
const weir_family_row weir_rows_gemma_layer[] = {
    { "input_layernorm.weight", .conversion = "bf16_cast",
      WEIR_HF({ "input_layernorm.weight", "hidden_size" }) },
    { "post_attention_layernorm.weight", .conversion = "bf16_cast",
      WEIR_HF({ "post_attention_layernorm.weight", "hidden_size" }) },
    { "pre_feedforward_layernorm.weight", .conversion = "bf16_cast",
      WEIR_HF({ "pre_feedforward_layernorm.weight", "hidden_size" }) },
    { "post_feedforward_layernorm.weight", .conversion = "bf16_cast",
      WEIR_HF({ "post_feedforward_layernorm.weight", "hidden_size" }) },
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
    { "self_attn.o_proj.bias", .conversion = "bf16_cast", .when = "attention_bias",
      WEIR_HF({ "self_attn.o_proj.bias", "hidden_size" }) },
    WEIR_ROWS_END,
};

const weir_family_row weir_rows_causal_lm[] = {
    { "model.embed_tokens.weight", .cut = WEIR_CUT_VOCABULARY, .conversion = "bf16_cast",
      WEIR_HF({ "model.embed_tokens.weight", "vocab_size, hidden_size" }) },
    { "model.norm.weight", .conversion = "bf16_cast",
      WEIR_HF({ "model.norm.weight", "hidden_size" }) },
    { "lm_head.weight", .cut = WEIR_CUT_VOCABULARY, .conversion = "bf16_cast",
      .tied_with = "model.embed_tokens.weight",
      WEIR_HF({ "lm_head.weight", "vocab_size, hidden_size" }) },
    WEIR_ROWS_END,
};

const weir_family_row weir_rows_qwen3_5_layer[] = {
    { "input_layernorm.weight", .conversion = "bf16_cast",
      WEIR_HF({ "input_layernorm.weight", "hidden_size" }) },
    { "post_attention_layernorm.weight", .conversion = "bf16_cast",
      WEIR_HF({ "post_attention_layernorm.weight", "hidden_size" }) },
    WEIR_ROWS_END,
};

/* Each head of q_proj holds its gate behind its query. */
const weir_family_row weir_rows_qwen3_5_full[] = {
    { "self_attn.q_norm.weight", .conversion = "bf16_cast",
      WEIR_HF({ "self_attn.q_norm.weight", "head_dim" }) },
    { "self_attn.k_norm.weight", .conversion = "bf16_cast",
      WEIR_HF({ "self_attn.k_norm.weight", "head_dim" }) },
    { "self_attn.qkv_proj.weight", WEIR_ROW_LINEAR, .cut = WEIR_CUT_COLUMN,
      .units = { "num_attention_heads", "num_key_value_heads", "num_key_value_heads" },
      WEIR_HF({ "self_attn.q_proj.weight", "num_attention_heads*head_dim*2, hidden_size" },
              { "self_attn.k_proj.weight", "num_key_value_heads*head_dim, hidden_size" },
              { "self_attn.v_proj.weight", "num_key_value_heads*head_dim, hidden_size" }) },
    { "self_attn.o_proj.weight", WEIR_ROW_LINEAR, .cut = WEIR_CUT_ROW,
      WEIR_HF({ "self_attn.o_proj.weight", "hidden_size, num_attention_heads*head_dim" }) },
    WEIR_ROWS_END,
};

#define KEY_DIM "linear_num_key_heads*linear_key_head_dim"
#define VALUE_DIM "linear_num_value_heads*linear_value_head_dim"
#define CONV_DIM "2*" KEY_DIM "+" VALUE_DIM

/* A_log is fp32 in checkpoints and engines; norm is in many checkpoints, but in no engine. The rows
 * of in_proj_ba are too few for a grid of scales. Engines cut [q;k;v;z] and the convolution's
 * [q;k;v] part by part; the norm is of one head, whichever. */
const weir_family_row weir_rows_qwen3_5_linear[] = {
    { "linear_attn.in_proj_qkvz.weight", WEIR_ROW_LINEAR, .cut = WEIR_CUT_COLUMN,
      .parts = { KEY_DIM, KEY_DIM, VALUE_DIM, VALUE_DIM },
      .units = { "linear_num_key_heads", "linear_num_key_heads", "linear_num_value_heads",
                 "linear_num_value_heads" },
      WEIR_HF({ "linear_attn.in_proj_qkv.weight", CONV_DIM ", hidden_size" },
              { "linear_attn.in_proj_z.weight", VALUE_DIM ", hidden_size" }) },
    { "linear_attn.in_proj_ba.weight", WEIR_ROW_LINEAR, .conversion = "bf16_cast",
      .cut = WEIR_CUT_COLUMN,
      WEIR_HF({ "linear_attn.in_proj_b.weight", "linear_num_value_heads, hidden_size" },
              { "linear_attn.in_proj_a.weight", "linear_num_value_heads, hidden_size" }) },
    { "linear_attn.conv1d.weight", .conversion = "bf16_cast", .cut = WEIR_CUT_COLUMN,
      .parts = { KEY_DIM, KEY_DIM, VALUE_DIM },
      .units = { "linear_num_key_heads", "linear_num_key_heads", "linear_num_value_heads" },
      WEIR_HF({ "linear_attn.conv1d.weight", CONV_DIM ", 1, linear_conv_kernel_dim" }) },
    { "linear_attn.dt_bias", .conversion = "bf16_cast", .cut = WEIR_CUT_COLUMN,
      WEIR_HF({ "linear_attn.dt_bias", "linear_num_value_heads" }) },
    { "linear_attn.A_log", .conversion = "fp32_cast", .cut = WEIR_CUT_COLUMN,
      WEIR_HF({ "linear_attn.A_log", "linear_num_value_heads" }) },
    { "linear_attn.norm.weight", .conversion = "bf16_cast",
      WEIR_HF({ "linear_attn.norm.weight", "linear_value_head_dim" }) },
    { "linear_attn.out_proj.weight", WEIR_ROW_LINEAR, .cut = WEIR_CUT_ROW,
      WEIR_HF({ "linear_attn.out_proj.weight", "hidden_size, " VALUE_DIM }) },
    WEIR_ROWS_END,
};
