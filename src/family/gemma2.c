/* SPDX-License-Identifier: Apache-2.0 */
/* gemma2.c - Gemma 2, as vLLM's Gemma2ForCausalLM holds it. Norms are stored less one and the
 * embeddings unscaled on both sides: the engine adds and multiplies as it computes.
 *
 * config.json leaves out whatever is as in the 2B model.
 */
#include "family/table.h"

#define COMMON                                                                      \
    "\"architectures\": [\"Gemma2ForCausalLM\"], \"model_type\": \"gemma2\", "      \
    "\"torch_dtype\": \"bfloat16\", \"hidden_activation\": \"gelu_pytorch_tanh\", " \
    "\"rms_norm_eps\": 1e-06, \"query_pre_attn_scalar\": 64, \"sliding_window\": 4096, "

const weir_family weir_family_gemma2 = {
    .name = "gemma2",
    .summary = "Gemma 2",
    .layer_prefix = "model.layers.{i}.",
    .dense_rule = WEIR_DENSE_ALL,
    .model_types = { "gemma2" },
    .layouts = { "default" },
    .parts = { { weir_rows_gemma_layer, weir_rows_gated_mlp, NULL, weir_rows_causal_lm } },
    .drop = { "model.layers.*.self_attn.rotary_emb.inv_freq" },
    .defaults = { { "tie_word_embeddings", "1" },
                  { "head_dim", "256" },
                  { "num_attention_heads", "8" },
                  { "num_key_value_heads", "4" },
                  { "hidden_size", "2304" },
                  { "intermediate_size", "9216" },
                  { "num_hidden_layers", "26" },
                  { "vocab_size", "256000" } },
    .presets = { "tiny", "ragged", "demo" },
    .configs = {
        "{" COMMON
        "\"attention_bias\": false, \"hidden_size\": 192, \"num_hidden_layers\": 2, "
        "\"num_attention_heads\": 4, \"num_key_value_heads\": 2, \"head_dim\": 128, "
        "\"intermediate_size\": 512, \"vocab_size\": 1000}",
        "{" COMMON
        "\"attention_bias\": false, \"hidden_size\": 256, \"num_hidden_layers\": 2, "
        "\"num_attention_heads\": 4, \"num_key_value_heads\": 1, \"head_dim\": 72, "
        "\"intermediate_size\": 672, \"vocab_size\": 1000}",
        "{" COMMON
        "\"attention_bias\": false, \"hidden_size\": 1024, \"num_hidden_layers\": 14, "
        "\"num_attention_heads\": 8, \"num_key_value_heads\": 4, \"head_dim\": 128, "
        "\"intermediate_size\": 4096, \"vocab_size\": 32000}",
    },
};
