/* SPDX-License-Identifier: Apache-2.0 */
/* expert_rows.h - rows of mixtures of experts that differ between families only in the keys of
 * config.json they count with. A family that names a parameter otherwise writes its own rows.
 */
#ifndef WEIR_FAMILY_EXPERT_ROWS_H
#define WEIR_FAMILY_EXPERT_ROWS_H

#include "family/table.h"

/* Routed experts; `count` is the key that counts them. Hugging Face has them one by one or fused.
 */
#define WEIR_EXPERT_ROWS(count)                                                                    \
    { "mlp.experts.w13_weight",                                                                    \
      WEIR_ROW_EXPERT,                                                                             \
      .cut = WEIR_CUT_COLUMN,                                                                      \
      .axis = 1,                                                                                   \
      WEIR_HF({ "mlp.experts.{e}.gate_proj.weight", "moe_intermediate_size, hidden_size" },        \
              { "mlp.experts.{e}.up_proj.weight", "moe_intermediate_size, hidden_size" }),         \
      WEIR_HF_FUSED(                                                                               \
          { "mlp.experts.gate_up_proj", count ", 2*moe_intermediate_size, hidden_size" }),         \
      WEIR_STACKED({ "mlp.experts.w1", count ", moe_intermediate_size, hidden_size" },             \
                   { "mlp.experts.w3", count ", moe_intermediate_size, hidden_size" }) },          \
    {                                                                                              \
        "mlp.experts.w2_weight", WEIR_ROW_EXPERT,                                                  \
            .cut = WEIR_CUT_ROW, .axis = 1,                                                        \
            WEIR_HF({ "mlp.experts.{e}.down_proj.weight", "hidden_size, moe_intermediate_size" }), \
            WEIR_HF_FUSED(                                                                         \
                { "mlp.experts.down_proj", count ", hidden_size, moe_intermediate_size" }),        \
            WEIR_STACKED({ "mlp.experts.w2", count ", hidden_size, moe_intermediate_size" })       \
    }

/* Experts that every token visits, as one MLP; `count` is the key that counts them. */
#define WEIR_SHARED_EXPERT_ROWS(count)                                                            \
    { "mlp.shared_experts.gate_up_proj.weight",                                                   \
      WEIR_ROW_LINEAR,                                                                            \
      .cut = WEIR_CUT_COLUMN,                                                                     \
      .when = count,                                                                              \
      WEIR_HF(                                                                                    \
          { "mlp.shared_experts.gate_proj.weight", count "*moe_intermediate_size, hidden_size" }, \
          { "mlp.shared_experts.up_proj.weight", count "*moe_intermediate_size, hidden_size" }),  \
      WEIR_STACKED(                                                                               \
          { "mlp.shared_expert.w1", "1, " count "*moe_intermediate_size, hidden_size" },          \
          { "mlp.shared_expert.w3", "1, " count "*moe_intermediate_size, hidden_size" }) },       \
    {                                                                                             \
        "mlp.shared_experts.down_proj.weight", WEIR_ROW_LINEAR,                                   \
            .cut = WEIR_CUT_ROW, .when = count,                                                   \
            WEIR_HF({ "mlp.shared_experts.down_proj.weight",                                      \
                      "hidden_size, " count "*moe_intermediate_size" }),                          \
            WEIR_STACKED(                                                                         \
                { "mlp.shared_expert.w2", "1, hidden_size, " count "*moe_intermediate_size" })    \
    }

#endif
