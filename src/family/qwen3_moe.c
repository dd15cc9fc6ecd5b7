/* SPDX-License-Identifier: Apache-2.0 */
/* qwen3_moe.c - Qwen3 with experts, as vLLM's Qwen3MoeForCausalLM holds it. */
#include "family/expert_rows.h"

static const weir_family_row sparse[] = {
    { "mlp.gate.weight", .conversion = "bf16_cast",
      WEIR_HF({ "mlp.gate.weight", "num_experts, hidden_size" }),
      WEIR_STACKED({ "mlp.router.gate.weight", "num_experts, hidden_size" }) },
    WEIR_EXPERT_ROWS("num_experts"),
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
    .parts = { { weir_rows_qwen3_layer, weir_rows_gated_mlp, sparse, weir_rows_causal_lm } },
    .drop = { "model.layers.*.mlp.tokens_per_expert",
              "model.layers.*.self_attn.rotary_emb.inv_freq" },
    .defaults = { { "head_dim", "hidden_size/num_attention_heads" },
                  { "num_key_value_heads", "num_attention_heads" },
                  { "decoder_sparse_step", "1" } },
    .presets = { "tiny", "ragged", "demo" },
    .configs = {
        "{" COMMON
        "\"hidden_size\": 192, \"num_hidden_layers\": 3, \"num_attention_heads\": 4, "
        "\"num_key_value_heads\": 2, \"head_dim\": 128, \"intermediate_size\": 512, "
        "\"moe_intermediate_size\": 256, \"num_experts\": 8, \"num_experts_per_tok\": 2, "
        "\"mlp_only_layers\": [0], \"vocab_size\": 1000}",
        "{" COMMON
        "\"hidden_size\": 256, \"num_hidden_layers\": 3, "
        "\"num_attention_heads\": 4, \"num_key_value_heads\": 1, \"head_dim\": 64, "
        "\"intermediate_size\": 352, \"moe_intermediate_size\": 96, \"num_experts\": 8, "
        "\"num_experts_per_tok\": 2, \"mlp_only_layers\": [0], \"vocab_size\": 1000}",
        "{" COMMON
        "\"hidden_size\": 1024, \"num_hidden_layers\": 6, "
        "\"num_attention_heads\": 16, \"num_key_value_heads\": 8, \"head_dim\": 64, "
        "\"intermediate_size\": 3072, \"moe_intermediate_size\": 512, "
        "\"num_experts\": 16, \"num_experts_per_tok\": 4, \"mlp_only_layers\": [], "
        "\"vocab_size\": 32000}",
    },
};
