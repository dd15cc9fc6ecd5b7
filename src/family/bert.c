/* SPDX-License-Identifier: Apache-2.0 */
/* bert.c - BERT encoders, as vLLM's BertModel holds them. */
#include "family/table.h"

static const weir_family_row base[] = {
    { "attention.self.qkv_proj.weight", WEIR_ROW_LINEAR, .cut = WEIR_CUT_COLUMN,
      .units = { "num_attention_heads", "num_attention_heads", "num_attention_heads" },
      WEIR_HF({ "attention.self.query.weight", "hidden_size, hidden_size" },
              { "attention.self.key.weight", "hidden_size, hidden_size" },
              { "attention.self.value.weight", "hidden_size, hidden_size" }) },
    { "attention.self.qkv_proj.bias", .conversion = "bf16_cast", .cut = WEIR_CUT_COLUMN,
      .units = { "num_attention_heads", "num_attention_heads", "num_attention_heads" },
      WEIR_HF({ "attention.self.query.bias", "hidden_size" },
              { "attention.self.key.bias", "hidden_size" },
              { "attention.self.value.bias", "hidden_size" }) },
    { "attention.output.dense.weight", WEIR_ROW_LINEAR, .cut = WEIR_CUT_ROW,
      WEIR_HF({ "attention.output.dense.weight", "hidden_size, hidden_size" }) },
    { "attention.output.dense.bias", .conversion = "bf16_cast",
      WEIR_HF({ "attention.output.dense.bias", "hidden_size" }) },
    { "attention.output.LayerNorm.weight", .conversion = "bf16_cast",
      WEIR_HF({ "attention.output.LayerNorm.weight", "hidden_size" }) },
    { "attention.output.LayerNorm.bias", .conversion = "bf16_cast",
      WEIR_HF({ "attention.output.LayerNorm.bias", "hidden_size" }) },
    { "intermediate.dense.weight", WEIR_ROW_LINEAR, .cut = WEIR_CUT_COLUMN,
      WEIR_HF({ "intermediate.dense.weight", "intermediate_size, hidden_size" }) },
    { "intermediate.dense.bias", .conversion = "bf16_cast", .cut = WEIR_CUT_COLUMN,
      WEIR_HF({ "intermediate.dense.bias", "intermediate_size" }) },
    { "output.dense.weight", WEIR_ROW_LINEAR, .cut = WEIR_CUT_ROW,
      WEIR_HF({ "output.dense.weight", "hidden_size, intermediate_size" }) },
    { "output.dense.bias", .conversion = "bf16_cast",
      WEIR_HF({ "output.dense.bias", "hidden_size" }) },
    { "output.LayerNorm.weight", .conversion = "bf16_cast",
      WEIR_HF({ "output.LayerNorm.weight", "hidden_size" }) },
    { "output.LayerNorm.bias", .conversion = "bf16_cast",
      WEIR_HF({ "output.LayerNorm.bias", "hidden_size" }) },
    WEIR_ROWS_END,
};

static const weir_family_row rest[] = {
    { "embeddings.word_embeddings.weight", .conversion = "bf16_cast", .cut = WEIR_CUT_VOCABULARY,
      WEIR_HF({ "embeddings.word_embeddings.weight", "vocab_size, hidden_size" }) },
    { "embeddings.position_embeddings.weight", .conversion = "bf16_cast",
      WEIR_HF(
          { "embeddings.position_embeddings.weight", "max_position_embeddings, hidden_size" }) },
    { "embeddings.token_type_embeddings.weight", .conversion = "bf16_cast",
      WEIR_HF({ "embeddings.token_type_embeddings.weight", "type_vocab_size, hidden_size" }) },
    { "embeddings.LayerNorm.weight", .conversion = "bf16_cast",
      WEIR_HF({ "embeddings.LayerNorm.weight", "hidden_size" }) },
    { "embeddings.LayerNorm.bias", .conversion = "bf16_cast",
      WEIR_HF({ "embeddings.LayerNorm.bias", "hidden_size" }) },
    { "pooler.dense.weight", .conversion = "bf16_cast",
      WEIR_HF({ "pooler.dense.weight", "hidden_size, hidden_size" }) },
    { "pooler.dense.bias", .conversion = "bf16_cast",
      WEIR_HF({ "pooler.dense.bias", "hidden_size" }) },
    WEIR_ROWS_END,
};

#define COMMON                                                                             \
    "\"architectures\": [\"BertModel\"], \"model_type\": \"bert\", "                       \
    "\"torch_dtype\": \"bfloat16\", \"hidden_act\": \"gelu\", \"layer_norm_eps\": 1e-12, " \
    "\"max_position_embeddings\": 512, \"type_vocab_size\": 2, "

const weir_family weir_family_bert = {
    .name = "bert",
    .summary = "BERT encoders, sentence embedders among them",
    .layer_prefix = "encoder.layer.{i}.",
    .dense_rule = WEIR_DENSE_ALL,
    .model_types = { "bert" },
    .layouts = { "default" },
    .parts = { { base, NULL, NULL, rest } },
    .drop = { "embeddings.position_ids" },
    .presets = { "tiny", "ragged", "minilm", "demo" },
    .configs = {
        "{" COMMON
        "\"hidden_size\": 256, \"num_hidden_layers\": 2, \"num_attention_heads\": 4, "
        "\"intermediate_size\": 512, \"vocab_size\": 1000}",
        "{" COMMON
        "\"hidden_size\": 192, \"num_hidden_layers\": 2, "
        "\"num_attention_heads\": 3, \"intermediate_size\": 800, \"vocab_size\": 1000}",
        "{" COMMON
        "\"hidden_size\": 384, \"num_hidden_layers\": 6, "
        "\"num_attention_heads\": 12, \"intermediate_size\": 1536, "
        "\"vocab_size\": 30522}",
        "{" COMMON
        "\"hidden_size\": 1024, \"num_hidden_layers\": 16, "
        "\"num_attention_heads\": 16, \"intermediate_size\": 4096, "
        "\"vocab_size\": 30522}",
    },
};
