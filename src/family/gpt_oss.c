/* SPDX-License-Identifier: Apache-2.0 */
/* gpt_oss.c - GPT-OSS in bf16, as SGLang's GptOssForCausalLM holds it for its triton kernels.
 *
 * That engine keeps experts as Hugging Face has them: the input features outermost, the columns of
 * gate and up alternating. Others turn each expert's matrices, which no conversion does. All rows
 * are pinned: attention and router stay unquantised in every format of this model, and no engine
 * reads quantised experts in this layout.
 *
 * Ranks that divide an expert's width add up their results, so one of them alone holds the bias of
 * the down projection and the others zeros. No plan writes zeros: such replicas are refused.
 *
 * Not here: vLLM's layout, which turns each expert's matrices; MXFP4, because no conversion makes
 * it and its kernels disagree on the order of its bytes.
 */
#include "family/table.h"

static const weir_family_row base[] = {
    { "input_layernorm.weight", .conversion = "bf16_cast",
      WEIR_HF({ "input_layernorm.weight", "hidden_size" }) },
    { "post_attention_layernorm.weight", .conversion = "bf16_cast",
      WEIR_HF({ "post_attention_layernorm.weight", "hidden_size" }) },
    { "self_attn.sinks", .cut = WEIR_CUT_COLUMN, .units = { "num_attention_heads" },
      .conversion = "bf16_cast", WEIR_HF({ "self_attn.sinks", "num_attention_heads" }) },
    { "self_attn.qkv_proj.weight", WEIR_ROW_LINEAR, .cut = WEIR_CUT_COLUMN,
      .units = { "num_attention_heads", "num_key_value_heads", "num_key_value_heads" },
      .conversion = "bf16_cast",
      WEIR_HF({ "self_attn.q_proj.weight", "num_attention_heads*head_dim, hidden_size" },
              { "self_attn.k_proj.weight", "num_key_value_heads*head_dim, hidden_size" },
              { "self_attn.v_proj.weight", "num_key_value_heads*head_dim, hidden_size" }) },
    { "self_attn.qkv_proj.bias", .cut = WEIR_CUT_COLUMN,
      .units = { "num_attention_heads", "num_key_value_heads", "num_key_value_heads" },
      .conversion = "bf16_cast", .when = "attention_bias",
      WEIR_HF({ "self_attn.q_proj.bias", "num_attention_heads*head_dim" },
              { "self_attn.k_proj.bias", "num_key_value_heads*head_dim" },
              { "self_attn.v_proj.bias", "num_key_value_heads*head_dim" }) },
    { "self_attn.o_proj.weight", WEIR_ROW_LINEAR, .cut = WEIR_CUT_ROW, .conversion = "bf16_cast",
      WEIR_HF({ "self_attn.o_proj.weight", "hidden_size, num_attention_heads*head_dim" }) },
    { "self_attn.o_proj.bias", .conversion = "bf16_cast", .when = "attention_bias",
      WEIR_HF({ "self_attn.o_proj.bias", "hidden_size" }) },
    WEIR_ROWS_END,
};

/* Of an expert's (hidden, 2 * width) it is the columns that a cut divides, hence the cuts that look
 * exchanged. */
static const weir_family_row sparse[] = {
    { "mlp.router.weight", .conversion = "bf16_cast",
      WEIR_HF({ "mlp.router.weight", "num_local_experts, hidden_size" }) },
    { "mlp.router.bias", .conversion = "bf16_cast",
      WEIR_HF({ "mlp.router.bias", "num_local_experts" }) },
    { "mlp.experts.w13_weight", WEIR_ROW_EXPERT, .cut = WEIR_CUT_ROW, .axis = 1,
      .conversion = "bf16_cast",
      WEIR_HF(
          { "mlp.experts.gate_up_proj", "num_local_experts, hidden_size, 2*intermediate_size" }) },
    { "mlp.experts.w13_weight_bias", WEIR_ROW_EXPERT, .cut = WEIR_CUT_COLUMN, .axis = 1,
      .units = { "intermediate_size" }, .conversion = "fp32_cast",
      WEIR_HF({ "mlp.experts.gate_up_proj_bias", "num_local_experts, 2*intermediate_size" }) },
    { "mlp.experts.w2_weight", WEIR_ROW_EXPERT, .cut = WEIR_CUT_COLUMN, .axis = 1,
      .conversion = "bf16_cast",
      WEIR_HF({ "mlp.experts.down_proj", "num_local_experts, intermediate_size, hidden_size" }) },
    { "mlp.experts.w2_weight_bias", WEIR_ROW_EXPERT, .cut = WEIR_CUT_ONE_RANK, .axis = 1,
      .conversion = "fp32_cast",
      WEIR_HF({ "mlp.experts.down_proj_bias", "num_local_experts, hidden_size" }) },
    WEIR_ROWS_END,
};

#define COMMON                                                                            \
    "\"architectures\": [\"GptOssForCausalLM\"], \"model_type\": \"gpt_oss\", "           \
    "\"torch_dtype\": \"bfloat16\", \"hidden_act\": \"silu\", \"attention_bias\": true, " \
    "\"swiglu_limit\": 7.0, \"rms_norm_eps\": 1e-05, \"rope_theta\": 150000, "            \
    "\"tie_word_embeddings\": false, "

const weir_family weir_family_gpt_oss = {
    .name = "gpt_oss",
    .summary = "GPT-OSS mixture of experts",
    .layer_prefix = "model.layers.{i}.",
    .n_experts = "num_local_experts",
    .dense_rule = WEIR_DENSE_ALL,
    .model_types = { "gpt_oss" },
    .layouts = { "sglang_triton" },
    .parts = { { base, NULL, sparse, weir_rows_causal_lm } },
    .drop = { "model.layers.*.self_attn.rotary_emb.inv_freq" },
    .defaults = { { "attention_bias", "1" },
                  { "head_dim", "hidden_size/num_attention_heads" },
                  { "num_key_value_heads", "num_attention_heads" } },
    .presets = { "tiny", "ragged", "demo" },
    .configs = {
        "{" COMMON
        "\"hidden_size\": 192, \"num_hidden_layers\": 2, \"num_attention_heads\": 4, "
        "\"num_key_value_heads\": 2, \"head_dim\": 128, \"intermediate_size\": 256, "
        "\"num_local_experts\": 8, \"num_experts_per_tok\": 2, \"vocab_size\": 1000}",
        "{" COMMON
        "\"hidden_size\": 256, \"num_hidden_layers\": 2, \"num_attention_heads\": 4, "
        "\"num_key_value_heads\": 1, \"head_dim\": 72, \"intermediate_size\": 96, "
        "\"num_local_experts\": 8, \"num_experts_per_tok\": 2, \"vocab_size\": 1000}",
        "{" COMMON
        "\"hidden_size\": 1024, \"num_hidden_layers\": 8, \"num_attention_heads\": 16, "
        "\"num_key_value_heads\": 4, \"head_dim\": 64, \"intermediate_size\": 384, "
        "\"num_local_experts\": 16, \"num_experts_per_tok\": 4, \"vocab_size\": 32000}",
    },
};
