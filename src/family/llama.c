/* SPDX-License-Identifier: Apache-2.0 */
/* llama.c - Llama, as vLLM's LlamaForCausalLM holds it. */
#include "family/table.h"

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
    .parts = { { weir_rows_llama_layer, weir_rows_llama_mlp, NULL, weir_rows_causal_lm } },
    .drop = { "model.layers.*.self_attn.rotary_emb.inv_freq" },
    .defaults = { { "head_dim", "hidden_size/num_attention_heads" },
                  { "num_key_value_heads", "num_attention_heads" } },
    .presets = { "tiny", "ragged", "demo" },
    .configs = {
        "{" COMMON
        "\"attention_bias\": true, \"mlp_bias\": true, \"hidden_size\": 192, "
        "\"num_hidden_layers\": 2, \"num_attention_heads\": 4, \"num_key_value_heads\": 2, "
        "\"head_dim\": 128, \"intermediate_size\": 512, \"vocab_size\": 1000}",
        "{" COMMON
        "\"attention_bias\": true, \"mlp_bias\": true, \"hidden_size\": 256, "
        "\"num_hidden_layers\": 2, \"num_attention_heads\": 4, "
        "\"num_key_value_heads\": 1, \"intermediate_size\": 672, \"vocab_size\": 1000}",
        "{" COMMON
        "\"attention_bias\": false, \"mlp_bias\": false, "
        "\"hidden_size\": 1024, \"num_hidden_layers\": 12, "
        "\"num_attention_heads\": 16, \"num_key_value_heads\": 8, "
        "\"intermediate_size\": 4096, \"vocab_size\": 32000}",
    },
};
