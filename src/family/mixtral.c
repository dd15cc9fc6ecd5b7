/* SPDX-License-Identifier: Apache-2.0 */
/* mixtral.c - Mixtral, as vLLM's MixtralForCausalLM holds it. All layers have experts.
 *
 * Checkpoints say block_sparse_moe and w1 (gate), w3 (up), w2 (down); Hugging Face's model holds
 * its experts fused, in mlp.
 */
#include "family/table.h"

static const weir_family_row sparse[] = {
    { "block_sparse_moe.gate.weight", .conversion = "bf16_cast",
      WEIR_HF({ "block_sparse_moe.gate.weight", "num_local_experts, hidden_size" }),
      WEIR_HF_FUSED({ "mlp.gate.weight", "num_local_experts, hidden_size" }) },
    { "block_sparse_moe.experts.w13_weight", WEIR_ROW_EXPERT, .cut = WEIR_CUT_COLUMN, .axis = 1,
      WEIR_HF({ "block_sparse_moe.experts.{e}.w1.weight", "intermediate_size, hidden_size" },
              { "block_sparse_moe.experts.{e}.w3.weight", "intermediate_size, hidden_size" }),
      WEIR_HF_FUSED(
          { "mlp.experts.gate_up_proj", "num_local_experts, 2*intermediate_size, hidden_size" }) },
    { "block_sparse_moe.experts.w2_weight", WEIR_ROW_EXPERT, .cut = WEIR_CUT_ROW, .axis = 1,
      WEIR_HF({ "block_sparse_moe.experts.{e}.w2.weight", "hidden_size, intermediate_size" }),
      WEIR_HF_FUSED(
          { "mlp.experts.down_proj", "num_local_experts, hidden_size, intermediate_size" }) },
    WEIR_ROWS_END,
};

#define COMMON                                                                           \
    "\"architectures\": [\"MixtralForCausalLM\"], \"model_type\": \"mixtral\", "         \
    "\"torch_dtype\": \"bfloat16\", \"hidden_act\": \"silu\", \"rms_norm_eps\": 1e-05, " \
    "\"rope_theta\": 1000000.0, \"tie_word_embeddings\": false, "

const weir_family weir_family_mixtral = {
    .name = "mixtral",
    .summary = "Mixtral mixture of experts",
    .layer_prefix = "model.layers.{i}.",
    .n_experts = "num_local_experts",
    .dense_rule = WEIR_DENSE_ALL,
    .model_types = { "mixtral" },
    .layouts = { "default" },
    .parts = { { weir_rows_llama_layer, NULL, sparse, weir_rows_causal_lm } },
    .drop = { "model.layers.*.self_attn.rotary_emb.inv_freq" },
    .defaults = { { "head_dim", "hidden_size/num_attention_heads" },
                  { "num_key_value_heads", "num_attention_heads" } },
    .presets = { "tiny", "ragged", "demo" },
    .configs = {
        "{" COMMON
        "\"hidden_size\": 192, \"num_hidden_layers\": 2, \"num_attention_heads\": 4, "
        "\"num_key_value_heads\": 2, \"head_dim\": 128, \"intermediate_size\": 256, "
        "\"num_local_experts\": 8, \"num_experts_per_tok\": 2, \"vocab_size\": 1000}",
        "{" COMMON
        "\"hidden_size\": 256, \"num_hidden_layers\": 2, \"num_attention_heads\": 4, "
        "\"num_key_value_heads\": 1, \"intermediate_size\": 96, \"num_local_experts\": 8, "
        "\"num_experts_per_tok\": 2, \"vocab_size\": 1000}",
        "{" COMMON
        "\"hidden_size\": 1024, \"num_hidden_layers\": 6, \"num_attention_heads\": 16, "
        "\"num_key_value_heads\": 8, \"intermediate_size\": 1024, \"num_local_experts\": 8, "
        "\"num_experts_per_tok\": 2, \"vocab_size\": 32000}",
    },
};
