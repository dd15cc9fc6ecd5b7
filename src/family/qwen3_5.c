/* SPDX-License-Identifier: Apache-2.0 */
/* qwen3_5.c - dense Qwen3.5, as vLLM holds it: layers of full attention with an output gate among
 * layers of linear attention (gated delta rule).
 *
 * Two engine layouts: text is Qwen3_5ForCausalLM; composite is the language model within
 * Qwen3_5ForConditionalGeneration, whose vision tower Weir leaves alone (--ignore
 * 'model.visual.*'). Sources may be named either way. Norms but that of linear attention are stored
 * less one on both sides. The layers that predict several tokens are no part of the model.
 */
#include "family/table.h"

#define COMMON                                                                              \
    "\"architectures\": [\"Qwen3_5ForCausalLM\"], \"model_type\": \"qwen3_5_text\", "       \
    "\"torch_dtype\": \"bfloat16\", \"hidden_act\": \"silu\", \"attention_bias\": false, "  \
    "\"attn_output_gate\": true, \"full_attention_interval\": 4, \"rms_norm_eps\": 1e-06, " \
    "\"linear_conv_kernel_dim\": 4, \"tie_word_embeddings\": false, "

const weir_family weir_family_qwen3_5 = {
    .name = "qwen3_5",
    .summary = "Qwen3.5 dense, with linear attention",
    .layer_prefix = "model.layers.{i}.",
    .dense_rule = WEIR_DENSE_ALL,
    .layer_kinds = { .key = "layer_types",
                     .names = { "full_attention", "linear_attention" },
                     .rows = { weir_rows_qwen3_5_full, weir_rows_qwen3_5_linear },
                     .interval = "full_attention_interval" },
    .model_types = { "qwen3_5", "qwen3_5_text" },
    .layouts = { "text", "composite" },
    .parts = { { weir_rows_qwen3_5_layer, weir_rows_gated_mlp, NULL, weir_rows_causal_lm },
               { weir_rows_qwen3_5_layer, weir_rows_gated_mlp, NULL, weir_rows_causal_lm } },
    .dst_prefix = { NULL, "language_model." },
    .drop = { "mtp.*", "model.layers.*.self_attn.rotary_emb.inv_freq" },
    .alias = { "model.language_model.", "model." },
    .defaults = { { "head_dim", "256" },
                  { "num_key_value_heads", "4" },
                  { "full_attention_interval", "4" },
                  { "linear_conv_kernel_dim", "4" },
                  { "linear_key_head_dim", "128" },
                  { "linear_value_head_dim", "128" },
                  { "linear_num_key_heads", "16" },
                  { "linear_num_value_heads", "32" } },
    .presets = { "tiny", "ragged", "demo" },
    .configs = {
        "{" COMMON
        "\"hidden_size\": 192, \"num_hidden_layers\": 4, \"layer_types\": "
        "[\"linear_attention\", \"full_attention\", \"linear_attention\", "
        "\"full_attention\"], \"num_attention_heads\": 4, \"num_key_value_heads\": 2, "
        "\"head_dim\": 128, \"linear_key_head_dim\": 128, \"linear_value_head_dim\": 64, "
        "\"linear_num_key_heads\": 2, \"linear_num_value_heads\": 4, "
        "\"intermediate_size\": 512, \"vocab_size\": 1000}",
        "{" COMMON
        "\"hidden_size\": 256, \"num_hidden_layers\": 2, \"layer_types\": "
        "[\"linear_attention\", \"full_attention\"], \"num_attention_heads\": 4, "
        "\"num_key_value_heads\": 1, \"head_dim\": 72, \"linear_key_head_dim\": 24, "
        "\"linear_value_head_dim\": 40, \"linear_num_key_heads\": 2, "
        "\"linear_num_value_heads\": 4, \"intermediate_size\": 672, \"vocab_size\": 1000}",
        "{" COMMON
        "\"hidden_size\": 1024, \"num_hidden_layers\": 12, \"num_attention_heads\": 8, "
        "\"num_key_value_heads\": 2, \"head_dim\": 128, \"linear_key_head_dim\": 64, "
        "\"linear_value_head_dim\": 64, \"linear_num_key_heads\": 8, "
        "\"linear_num_value_heads\": 16, \"intermediate_size\": 3072, \"vocab_size\": 32000}",
    },
};
