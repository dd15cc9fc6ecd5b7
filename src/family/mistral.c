/* SPDX-License-Identifier: Apache-2.0 */
/* mistral.c - Mistral, as vLLM's MistralForCausalLM holds it: Llama's parameters without biases. */
#include "family/table.h"

#define COMMON                                                                           \
    "\"architectures\": [\"MistralForCausalLM\"], \"model_type\": \"mistral\", "         \
    "\"torch_dtype\": \"bfloat16\", \"hidden_act\": \"silu\", \"rms_norm_eps\": 1e-05, " \
    "\"rope_theta\": 1000000.0, \"sliding_window\": null, \"tie_word_embeddings\": false, "

const weir_family weir_family_mistral = {
    .name = "mistral",
    .summary = "Mistral dense",
    .layer_prefix = "model.layers.{i}.",
    .dense_rule = WEIR_DENSE_ALL,
    .model_types = { "mistral" },
    .layouts = { "default" },
    .parts = { { weir_rows_llama_layer, weir_rows_llama_mlp, NULL, weir_rows_causal_lm } },
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
        "\"hidden_size\": 320, \"num_hidden_layers\": 2, \"num_attention_heads\": 4, "
        "\"num_key_value_heads\": 2, \"head_dim\": 64, \"intermediate_size\": 672, "
        "\"vocab_size\": 1000}",
        "{" COMMON
        "\"hidden_size\": 1024, \"num_hidden_layers\": 12, \"num_attention_heads\": 16, "
        "\"num_key_value_heads\": 8, \"head_dim\": 64, \"intermediate_size\": 4096, "
        "\"vocab_size\": 32000}",
    },
};
