/* SPDX-License-Identifier: Apache-2.0 */
/* nemotron_h.c - Nemotron-H and Nemotron 3, as vLLM's NemotronHForCausalLM holds them: each layer
 * is one of mamba, attention, experts, or an MLP. Nothing is gated: of an expert there are up and
 * down alone, and w13 is the up projection.
 *
 * The engine holds A = -exp(A_log), computed as it loads, and its router in fp32. The router's bias
 * is what the trainer has: one that came from Hugging Face's less its least element, which chooses
 * the same experts.
 *
 * Not here, because no released model has them: biases of linear layers, layers that differ in
 * their sizes.
 */
#include "family/table.h"

#define INNER "mamba_num_heads*mamba_head_dim"
#define STATE "n_groups*ssm_state_size"
#define CONV INNER "+2*" STATE
#define SHARED "n_shared_experts*moe_shared_expert_intermediate_size"

static const weir_family_row base[] = {
    { "norm.weight", .conversion = "bf16_cast", WEIR_HF({ "norm.weight", "hidden_size" }) },
    WEIR_ROWS_END,
};

/* in_proj is [z; x; B; C; dt], the convolution [x; B; C]: B and C have groups, the others heads. */
static const weir_family_row mamba[] = {
    { "mixer.in_proj.weight", WEIR_ROW_LINEAR, .cut = WEIR_CUT_COLUMN,
      .parts = { INNER, INNER, STATE, STATE, "mamba_num_heads" },
      .units = { "mamba_num_heads", "mamba_num_heads", "n_groups", "n_groups", "mamba_num_heads" },
      WEIR_HF({ "mixer.in_proj.weight", INNER "+" CONV "+mamba_num_heads, hidden_size" }),
      WEIR_STACKED({ "mamba.in_proj.weight", INNER "+" CONV "+mamba_num_heads, hidden_size" }) },
    { "mixer.conv1d.weight", .conversion = "bf16_cast", .cut = WEIR_CUT_COLUMN,
      .parts = { INNER, STATE, STATE }, .units = { "mamba_num_heads", "n_groups", "n_groups" },
      WEIR_HF({ "mixer.conv1d.weight", CONV ", 1, conv_kernel" }),
      WEIR_STACKED({ "mamba.conv1d.weight", CONV ", 1, conv_kernel" }) },
    { "mixer.conv1d.bias", .conversion = "bf16_cast", .cut = WEIR_CUT_COLUMN,
      .parts = { INNER, STATE, STATE }, .units = { "mamba_num_heads", "n_groups", "n_groups" },
      .when = "use_conv_bias", WEIR_HF({ "mixer.conv1d.bias", CONV }),
      WEIR_STACKED({ "mamba.conv1d.bias", CONV }) },
    { "mixer.A", .conversion = "neg_exp", .cut = WEIR_CUT_COLUMN,
      WEIR_HF({ "mixer.A_log", "mamba_num_heads" }),
      WEIR_STACKED({ "mamba.A_log", "mamba_num_heads" }) },
    { "mixer.D", .conversion = "bf16_cast", .cut = WEIR_CUT_COLUMN,
      WEIR_HF({ "mixer.D", "mamba_num_heads" }), WEIR_STACKED({ "mamba.D", "mamba_num_heads" }) },
    { "mixer.dt_bias", .conversion = "bf16_cast", .cut = WEIR_CUT_COLUMN,
      WEIR_HF({ "mixer.dt_bias", "mamba_num_heads" }),
      WEIR_STACKED({ "mamba.dt_bias", "mamba_num_heads" }) },
    { "mixer.norm.weight", .conversion = "bf16_cast", .cut = WEIR_CUT_COLUMN,
      .units = { "mamba_num_heads" }, WEIR_HF({ "mixer.norm.weight", INNER }),
      WEIR_STACKED({ "mamba.norm.weight", INNER }) },
    { "mixer.out_proj.weight", WEIR_ROW_LINEAR, .cut = WEIR_CUT_ROW,
      WEIR_HF({ "mixer.out_proj.weight", "hidden_size, " INNER }),
      WEIR_STACKED({ "mamba.out_proj.weight", "hidden_size, " INNER }) },
    WEIR_ROWS_END,
};

static const weir_family_row attention[] = {
    { "mixer.qkv_proj.weight", WEIR_ROW_LINEAR, .cut = WEIR_CUT_COLUMN,
      .units = { "num_attention_heads", "num_key_value_heads", "num_key_value_heads" },
      WEIR_HF({ "mixer.q_proj.weight", "num_attention_heads*head_dim, hidden_size" },
              { "mixer.k_proj.weight", "num_key_value_heads*head_dim, hidden_size" },
              { "mixer.v_proj.weight", "num_key_value_heads*head_dim, hidden_size" }),
      WEIR_STACKED({ "self_attn.q_proj.weight", "num_attention_heads*head_dim, hidden_size" },
                   { "self_attn.k_proj.weight", "num_key_value_heads*head_dim, hidden_size" },
                   { "self_attn.v_proj.weight", "num_key_value_heads*head_dim, hidden_size" }) },
    { "mixer.o_proj.weight", WEIR_ROW_LINEAR, .cut = WEIR_CUT_ROW,
      WEIR_HF({ "mixer.o_proj.weight", "hidden_size, num_attention_heads*head_dim" }),
      WEIR_STACKED({ "self_attn.o_proj.weight", "hidden_size, num_attention_heads*head_dim" }) },
    WEIR_ROWS_END,
};

/* Trainers that stack experts know no MLPs of their own, and name them as they name the rest. */
static const weir_family_row mlp[] = {
    { "mixer.up_proj.weight", WEIR_ROW_LINEAR, .cut = WEIR_CUT_COLUMN,
      WEIR_HF({ "mixer.up_proj.weight", "intermediate_size, hidden_size" }),
      WEIR_STACKED({ "mamba.up_proj.weight", "intermediate_size, hidden_size" }) },
    { "mixer.down_proj.weight", WEIR_ROW_LINEAR, .cut = WEIR_CUT_ROW,
      WEIR_HF({ "mixer.down_proj.weight", "hidden_size, intermediate_size" }),
      WEIR_STACKED({ "mamba.down_proj.weight", "hidden_size, intermediate_size" }) },
    WEIR_ROWS_END,
};

/* Routed experts work in moe_latent_size where there is one, the shared one never does. */
static const weir_family_row sparse[] = {
    { "mixer.gate.weight", .conversion = "fp32_cast",
      WEIR_HF({ "mixer.gate.weight", "n_routed_experts, hidden_size" }),
      WEIR_STACKED({ "mlp.router.gate", "n_routed_experts, hidden_size" }) },
    { "mixer.gate.e_score_correction_bias", .conversion = "fp32_cast",
      WEIR_HF({ "mixer.gate.e_score_correction_bias", "n_routed_experts" }),
      WEIR_STACKED({ "mlp.router.e_score_correction_bias", "n_routed_experts" }) },
    { "mixer.experts.w13_weight", WEIR_ROW_EXPERT, .cut = WEIR_CUT_COLUMN, .axis = 1,
      WEIR_HF({ "mixer.experts.{e}.up_proj.weight", "moe_intermediate_size, moe_latent_size" }),
      WEIR_HF_FUSED(
          { "mixer.experts.up_proj", "n_routed_experts, moe_intermediate_size, moe_latent_size" }),
      WEIR_STACKED(
          { "mlp.experts.w1", "n_routed_experts, moe_intermediate_size, moe_latent_size" }) },
    { "mixer.experts.w2_weight", WEIR_ROW_EXPERT, .cut = WEIR_CUT_ROW, .axis = 1,
      WEIR_HF({ "mixer.experts.{e}.down_proj.weight", "moe_latent_size, moe_intermediate_size" }),
      WEIR_HF_FUSED({ "mixer.experts.down_proj",
                      "n_routed_experts, moe_latent_size, moe_intermediate_size" }),
      WEIR_STACKED(
          { "mlp.experts.w2", "n_routed_experts, moe_latent_size, moe_intermediate_size" }) },
    { "mixer.shared_experts.up_proj.weight", WEIR_ROW_LINEAR, .cut = WEIR_CUT_COLUMN,
      .when = "n_shared_experts",
      WEIR_HF({ "mixer.shared_experts.up_proj.weight", SHARED ", hidden_size" }),
      WEIR_STACKED({ "mlp.shared_expert.up_proj.weight", SHARED ", hidden_size" }) },
    { "mixer.shared_experts.down_proj.weight", WEIR_ROW_LINEAR, .cut = WEIR_CUT_ROW,
      .when = "n_shared_experts",
      WEIR_HF({ "mixer.shared_experts.down_proj.weight", "hidden_size, " SHARED }),
      WEIR_STACKED({ "mlp.shared_expert.down_proj.weight", "hidden_size, " SHARED }) },
    { "mixer.fc1_latent_proj.weight", WEIR_ROW_LINEAR, .when = "moe_latent_size",
      WEIR_HF({ "mixer.fc1_latent_proj.weight", "moe_latent_size, hidden_size" }),
      WEIR_STACKED({ "mlp.fc1_latent_proj.weight", "moe_latent_size, hidden_size" }) },
    { "mixer.fc2_latent_proj.weight", WEIR_ROW_LINEAR, .when = "moe_latent_size",
      WEIR_HF({ "mixer.fc2_latent_proj.weight", "hidden_size, moe_latent_size" }),
      WEIR_STACKED({ "mlp.fc2_latent_proj.weight", "hidden_size, moe_latent_size" }) },
    WEIR_ROWS_END,
};

static const weir_family_row rest[] = {
    { "model.embed_tokens.weight", .cut = WEIR_CUT_VOCABULARY, .conversion = "bf16_cast",
      WEIR_HF({ "model.embeddings.weight", "vocab_size, hidden_size" }),
      WEIR_STACKED({ "model.embed_tokens.weight", "vocab_size, hidden_size" }) },
    { "model.norm_f.weight", .conversion = "bf16_cast",
      WEIR_HF({ "model.norm_f.weight", "hidden_size" }),
      WEIR_STACKED({ "model.norm.weight", "hidden_size" }) },
    { "lm_head.weight", .cut = WEIR_CUT_VOCABULARY, .conversion = "bf16_cast",
      WEIR_HF({ "lm_head.weight", "vocab_size, hidden_size" }) },
    WEIR_ROWS_END,
};

#define COMMON                                                                                  \
    "\"architectures\": [\"NemotronHForCausalLM\"], \"model_type\": \"nemotron_h\", "           \
    "\"torch_dtype\": \"bfloat16\", \"mlp_hidden_act\": \"relu2\", \"attention_bias\": false, " \
    "\"mlp_bias\": false, \"use_bias\": false, \"use_conv_bias\": true, \"conv_kernel\": 4, "   \
    "\"mamba_hidden_act\": \"silu\", \"n_shared_experts\": 1, \"norm_topk_prob\": true, "       \
    "\"layer_norm_epsilon\": 1e-05, \"tie_word_embeddings\": false, "

const weir_family weir_family_nemotron_h = {
    .name = "nemotron_h",
    .summary = "Nemotron-H and Nemotron 3: mamba, attention and experts by layer",
    .layer_prefix = "model.layers.{i}.",
    .n_experts = "n_routed_experts",
    .dense_rule = WEIR_DENSE_LAYER_KIND,
    .layer_kinds = { .key = "layers_block_type",
                     .names = { "mamba", "attention", "mlp", "moe" },
                     .rows = { mamba, attention, mlp, NULL },
                     .pattern = "hybrid_override_pattern",
                     .letters = "M*-E",
                     .experts = "moe" },
    .model_types = { "nemotron_h" },
    .layouts = { "default" },
    .parts = { { base, NULL, sparse, rest } },
    .drop = { "mtp.*", "model.layers.*.mlp.experts.w3", "model.layers.*.mlp.tokens_per_expert" },
    .alias = { "backbone.", "model." },
    .hf_says_alias = true,
    .defaults = { { "head_dim", "attention_head_dim" },
                  { "attention_head_dim", "hidden_size/num_attention_heads" },
                  { "num_key_value_heads", "num_attention_heads" },
                  { "n_routed_experts", "0" },
                  { "moe_latent_size", "hidden_size" },
                  { "use_conv_bias", "1" },
                  { "conv_kernel", "4" } },
    .presets = { "tiny", "ragged", "demo" },
    /* tiny and demo have many small mamba heads: in_proj has a row of dt for each, and engines that
     * cut block FP8 take whole blocks of them alone. */
    .configs = {
        "{" COMMON
        "\"hidden_size\": 128, \"num_hidden_layers\": 8, "
        "\"hybrid_override_pattern\": \"ME*-ME*-\", \"mamba_num_heads\": 256, "
        "\"mamba_head_dim\": 2, \"n_groups\": 2, \"ssm_state_size\": 128, "
        "\"num_attention_heads\": 4, \"num_key_value_heads\": 2, \"head_dim\": 128, "
        "\"intermediate_size\": 512, \"moe_intermediate_size\": 256, "
        "\"moe_shared_expert_intermediate_size\": 256, \"moe_latent_size\": 136, "
        "\"n_routed_experts\": 8, \"num_experts_per_tok\": 2, \"vocab_size\": 1000}",
        "{" COMMON
        "\"hidden_size\": 256, \"num_hidden_layers\": 4, \"hybrid_override_pattern\": \"ME*-\", "
        "\"mamba_num_heads\": 6, \"mamba_head_dim\": 40, \"n_groups\": 2, "
        "\"ssm_state_size\": 24, \"num_attention_heads\": 4, \"num_key_value_heads\": 1, "
        "\"head_dim\": 72, \"intermediate_size\": 352, \"moe_intermediate_size\": 96, "
        "\"moe_shared_expert_intermediate_size\": 160, \"moe_latent_size\": 136, "
        "\"n_routed_experts\": 8, \"num_experts_per_tok\": 2, \"vocab_size\": 1000}",
        "{" COMMON
        "\"hidden_size\": 1024, \"layers_block_type\": [\"mamba\", \"moe\", \"mamba\", \"moe\", "
        "\"mamba\", \"attention\", \"moe\", \"mamba\", \"attention\"], "
        "\"mamba_num_heads\": 512, \"mamba_head_dim\": 4, "
        "\"n_groups\": 8, \"ssm_state_size\": 128, \"num_attention_heads\": 16, "
        "\"num_key_value_heads\": 2, \"head_dim\": 128, \"moe_intermediate_size\": 1024, "
        "\"moe_shared_expert_intermediate_size\": 1536, \"n_routed_experts\": 16, "
        "\"num_experts_per_tok\": 4, \"vocab_size\": 32000}",
    },
};
