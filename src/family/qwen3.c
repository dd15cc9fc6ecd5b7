/* SPDX-License-Identifier: Apache-2.0 */
/* qwen3.c - dense Qwen3, as vLLM's Qwen3ForCausalLM holds it. */
#include "family/table.h"

#define COMMON                                                                             \
    "\"architectures\": [\"Qwen3ForCausalLM\"], \"model_type\": \"qwen3\", "               \
    "\"torch_dtype\": \"bfloat16\", \"hidden_act\": \"silu\", \"attention_bias\": false, " \
    "\"rms_norm_eps\": 1e-06, \"rope_theta\": 1000000.0, \"tie_word_embeddings\": true, "

const weir_family weir_family_qwen3 = {
    .name = "qwen3",
    .summary = "Qwen3 dense",
    .layer_prefix = "model.layers.{i}.",
    .dense_rule = WEIR_DENSE_ALL,
    .model_types = { "qwen3" },
    .layouts = { "default" },
    .parts = { { weir_rows_qwen3_layer, weir_rows_gated_mlp, NULL, weir_rows_causal_lm } },
    .drop = { "model.layers.*.self_attn.rotary_emb.inv_freq" },
    .defaults = { { "head_dim", "hidden_size/num_attention_heads" },
                  { "num_key_value_heads", "num_attention_heads" } },
    .presets = { "tiny", "ragged", "demo" },
    .configs = {
        "{" COMMON
        "\"hidden_size\": 192, \"num_hidden_layers\": 2, \"num_attention_heads\": 4, "
        "\"num_key_value_heads\": 2, \"head_dim\": 128, \"intermediate_size\": 512, "
        "\"vocab_size\": 1000}",
        "{" COMMON
        "\"hidden_size\": 256, \"num_hidden_layers\": 2, "
        "\"num_attention_heads\": 4, \"num_key_value_heads\": 1, \"head_dim\": 72, "
        "\"intermediate_size\": 672, \"vocab_size\": 1000}",
        "{" COMMON
        "\"hidden_size\": 1024, \"num_hidden_layers\": 12, "
        "\"num_attention_heads\": 16, \"num_key_value_heads\": 8, \"head_dim\": 128, "
        "\"intermediate_size\": 3072, \"vocab_size\": 32000}",
    },
};
