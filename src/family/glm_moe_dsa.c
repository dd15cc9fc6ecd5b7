/* SPDX-License-Identifier: Apache-2.0 */
/* glm_moe_dsa.c - GLM with experts, latent attention and a sparse-attention indexer, as vLLM holds
 * it.
 *
 * Two engine layouts. fused_indexer: wk and weights_proj of the indexer are one parameter that is
 * never quantised. split_indexer, of older engines: they are two, and wk is quantised.
 */
#include "family/expert_rows.h"

#define Q_DIM "num_attention_heads*qk_nope_head_dim+num_attention_heads*qk_rope_head_dim"
#define KV_DIM "num_attention_heads*qk_nope_head_dim+num_attention_heads*v_head_dim"

/* Everything but the indexer's rows is one text for both layouts; `cast` is how the unquantised
 * weights are pinned, `bias_cast` the router's bias, which is what the layouts differ in besides.
 */
#define ATTENTION_ROWS(cast)                                                                       \
    { "input_layernorm.weight", .conversion = cast,                                                \
      WEIR_HF({ "input_layernorm.weight", "hidden_size" }) },                                      \
        { "post_attention_layernorm.weight", .conversion = cast,                                   \
          WEIR_HF({ "post_attention_layernorm.weight", "hidden_size" }) },                         \
        { "self_attn.fused_qkv_a_proj.weight", WEIR_ROW_LINEAR,                                    \
          WEIR_HF({ "self_attn.q_a_proj.weight", "q_lora_rank, hidden_size" },                     \
                  { "self_attn.kv_a_proj_with_mqa.weight",                                         \
                    "kv_lora_rank+qk_rope_head_dim, hidden_size" }) },                             \
        { "self_attn.q_a_layernorm.weight", .conversion = cast,                                    \
          WEIR_HF({ "self_attn.q_a_layernorm.weight", "q_lora_rank" }) },                          \
        { "self_attn.kv_a_layernorm.weight", .conversion = cast,                                   \
          WEIR_HF({ "self_attn.kv_a_layernorm.weight", "kv_lora_rank" }) },                        \
        { "self_attn.q_b_proj.weight", WEIR_ROW_LINEAR, .cut = WEIR_CUT_COLUMN,                    \
          .units = { "num_attention_heads" },                                                      \
          WEIR_HF({ "self_attn.q_b_proj.weight", Q_DIM ", q_lora_rank" }) },                       \
        { "self_attn.kv_b_proj.weight", WEIR_ROW_LINEAR, .cut = WEIR_CUT_COLUMN,                   \
          .units = { "num_attention_heads" },                                                      \
          WEIR_HF({ "self_attn.kv_b_proj.weight", KV_DIM ", kv_lora_rank" }) },                    \
        { "self_attn.o_proj.weight", WEIR_ROW_LINEAR, .cut = WEIR_CUT_ROW,                         \
          WEIR_HF({ "self_attn.o_proj.weight", "hidden_size, num_attention_heads*v_head_dim" }) }, \
    {                                                                                              \
        "self_attn.indexer.wq_b.weight", WEIR_ROW_LINEAR,                                          \
            WEIR_HF(                                                                               \
                { "self_attn.indexer.wq_b.weight", "index_n_heads*index_head_dim, q_lora_rank" })  \
    }

#define SPARSE_ROWS(cast, bias_cast)                                                 \
    { "mlp.gate.weight", .conversion = cast,                                         \
      WEIR_HF({ "mlp.gate.weight", "n_routed_experts, hidden_size" }),               \
      WEIR_STACKED({ "mlp.router.gate.weight", "n_routed_experts, hidden_size" }) }, \
        { "mlp.gate.e_score_correction_bias", .conversion = bias_cast,               \
          WEIR_HF({ "mlp.gate.e_score_correction_bias", "n_routed_experts" }),       \
          WEIR_STACKED({ "mlp.expert_bias", "n_routed_experts" }) },                 \
        WEIR_EXPERT_ROWS("n_routed_experts"), WEIR_SHARED_EXPERT_ROWS("n_shared_experts")

#define REST_ROWS(cast)                                                            \
    { "model.embed_tokens.weight", .conversion = cast, .cut = WEIR_CUT_VOCABULARY, \
      WEIR_HF({ "model.embed_tokens.weight", "vocab_size, hidden_size" }) },       \
        { "model.norm.weight", .conversion = cast,                                 \
          WEIR_HF({ "model.norm.weight", "hidden_size" }) },                       \
    {                                                                              \
        "lm_head.weight", .conversion = cast, .cut = WEIR_CUT_VOCABULARY,          \
                          .tied_with = "model.embed_tokens.weight",                \
                          WEIR_HF({ "lm_head.weight", "vocab_size, hidden_size" }) \
    }

static const weir_family_row fused_base[] = {
    ATTENTION_ROWS("bf16_cast"),
    { "self_attn.indexer.wk_weights_proj.weight", .conversion = "bf16_cast",
      WEIR_HF({ "self_attn.indexer.wk.weight", "index_head_dim, hidden_size" },
              { "self_attn.indexer.weights_proj.weight", "index_n_heads, hidden_size" }) },
    { "self_attn.indexer.k_norm.weight", .conversion = "fp32_cast",
      WEIR_HF({ "self_attn.indexer.k_norm.weight", "index_head_dim" }) },
    { "self_attn.indexer.k_norm.bias", .conversion = "fp32_cast",
      WEIR_HF({ "self_attn.indexer.k_norm.bias", "index_head_dim" }) },
    WEIR_ROWS_END,
};

static const weir_family_row split_base[] = {
    ATTENTION_ROWS(WEIR_COPY),
    { "self_attn.indexer.wk.weight", WEIR_ROW_LINEAR,
      WEIR_HF({ "self_attn.indexer.wk.weight", "index_head_dim, hidden_size" }) },
    { "self_attn.indexer.k_norm.weight", .conversion = WEIR_COPY,
      WEIR_HF({ "self_attn.indexer.k_norm.weight", "index_head_dim" }) },
    { "self_attn.indexer.k_norm.bias", .conversion = WEIR_COPY,
      WEIR_HF({ "self_attn.indexer.k_norm.bias", "index_head_dim" }) },
    { "self_attn.indexer.weights_proj.weight", .conversion = WEIR_COPY,
      WEIR_HF({ "self_attn.indexer.weights_proj.weight", "index_n_heads, hidden_size" }) },
    WEIR_ROWS_END,
};

static const weir_family_row fused_sparse[] = { SPARSE_ROWS("bf16_cast", "fp32_cast"),
                                                WEIR_ROWS_END };
static const weir_family_row split_sparse[] = { SPARSE_ROWS(WEIR_COPY, WEIR_COPY_F32),
                                                WEIR_ROWS_END };
static const weir_family_row fused_rest[] = { REST_ROWS("bf16_cast"), WEIR_ROWS_END };
static const weir_family_row split_rest[] = { REST_ROWS(WEIR_COPY), WEIR_ROWS_END };

#define COMMON                                                                             \
    "\"architectures\": [\"GlmMoeDsaForCausalLM\"], \"model_type\": \"glm_moe_dsa\", "     \
    "\"torch_dtype\": \"bfloat16\", \"hidden_act\": \"silu\", \"attention_bias\": false, " \
    "\"n_shared_experts\": 1, \"norm_topk_prob\": true, \"rms_norm_eps\": 1e-05, "         \
    "\"rope_theta\": 1000000.0, \"tie_word_embeddings\": false, "

const weir_family weir_family_glm_moe_dsa = {
    .name = "glm_moe_dsa",
    .summary = "GLM mixture of experts with latent attention and sparse-attention indexer",
    .layer_prefix = "model.layers.{i}.",
    .n_experts = "n_routed_experts",
    .dense_rule = WEIR_DENSE_FIRST_K,
    .model_types = { "glm_moe_dsa" },
    .layouts = { "fused_indexer", "split_indexer" },
    .parts = { { fused_base, weir_rows_gated_mlp, fused_sparse, fused_rest },
               { split_base, weir_rows_gated_mlp, split_sparse, split_rest } },
    .drop = { "model.layers.*.mlp.tokens_per_expert",
              "model.layers.*.self_attn.rotary_emb.inv_freq" },
    .defaults = { { "first_k_dense_replace", "0" } },
    .mla = { .from = "self_attn.kv_b_proj.weight",
             .w_uv = "self_attn.W_UV",
             .w_uk_t = "self_attn.W_UK_T",
             .heads = "num_attention_heads",
             .nope_dim = "qk_nope_head_dim",
             .v_dim = "v_head_dim",
             .lora_rank = "kv_lora_rank" },
    .presets = { "tiny", "ragged", "demo", "glm-dsa-31b" },
    .configs = {
        "{" COMMON
        "\"hidden_size\": 160, \"num_hidden_layers\": 3, \"first_k_dense_replace\": 1, "
        "\"num_attention_heads\": 4, \"num_key_value_heads\": 4, \"q_lora_rank\": 256, "
        "\"kv_lora_rank\": 128, \"qk_nope_head_dim\": 64, \"qk_rope_head_dim\": 64, "
        "\"v_head_dim\": 64, \"index_n_heads\": 2, \"index_head_dim\": 64, "
        "\"index_topk\": 64, \"intermediate_size\": 512, \"moe_intermediate_size\": 256, "
        "\"n_routed_experts\": 8, \"num_experts_per_tok\": 2, \"vocab_size\": 1000}",
        "{" COMMON
        "\"hidden_size\": 256, \"num_hidden_layers\": 3, \"first_k_dense_replace\": 1, "
        "\"num_attention_heads\": 4, \"num_key_value_heads\": 4, "
        "\"q_lora_rank\": 192, \"kv_lora_rank\": 128, \"qk_nope_head_dim\": 48, "
        "\"qk_rope_head_dim\": 16, \"v_head_dim\": 32, \"index_n_heads\": 2, "
        "\"index_head_dim\": 64, \"index_topk\": 64, \"intermediate_size\": 352, "
        "\"moe_intermediate_size\": 96, \"n_routed_experts\": 8, "
        "\"num_experts_per_tok\": 2, \"vocab_size\": 1000}",
        "{" COMMON
        "\"hidden_size\": 1024, \"num_hidden_layers\": 6, \"first_k_dense_replace\": 1, "
        "\"num_attention_heads\": 16, \"num_key_value_heads\": 16, "
        "\"q_lora_rank\": 512, \"kv_lora_rank\": 256, \"qk_nope_head_dim\": 64, "
        "\"qk_rope_head_dim\": 32, \"v_head_dim\": 64, \"index_n_heads\": 8, "
        "\"index_head_dim\": 64, \"index_topk\": 512, \"intermediate_size\": 3072, "
        "\"moe_intermediate_size\": 512, \"n_routed_experts\": 16, "
        "\"num_experts_per_tok\": 4, \"vocab_size\": 32000}",
        /* No dense layer: its 48 sparse ones make the 31.4 billion weights. */
        "{" COMMON
        "\"hidden_size\": 2048, \"num_hidden_layers\": 48, \"first_k_dense_replace\": 0, "
        "\"num_attention_heads\": 32, \"num_key_value_heads\": 32, "
        "\"q_lora_rank\": 1536, \"kv_lora_rank\": 512, \"qk_nope_head_dim\": 128, "
        "\"qk_rope_head_dim\": 64, \"v_head_dim\": 128, \"index_n_heads\": 32, "
        "\"index_head_dim\": 128, \"index_topk\": 2048, \"intermediate_size\": 6144, "
        "\"moe_intermediate_size\": 768, \"n_routed_experts\": 128, "
        "\"num_experts_per_tok\": 8, \"vocab_size\": 151936}",
    },
};
