/* SPDX-License-Identifier: Apache-2.0 */
/* model_case.h - tensors for tests/plan that are written by hand: one matrix, or a large model. */
#ifndef WEIR_TESTS_PLAN_MODEL_CASE_H
#define WEIR_TESTS_PLAN_MODEL_CASE_H

#include "fleet_case.h"

static inline weir_fleet *open_meshes(const weir_fleet_tensor *tensors, size_t n,
                                      const char *trainer, const char *replica)
{
    weir_trainer_mesh from;
    weir_replica_mesh to;
    weir_fleet_args args = WEIR_FLEET_ARGS_INIT;
    weir_fleet *fleet = NULL;
    assert_int_equal(weir_trainer_mesh_parse(trainer, &from), WEIR_OK);
    assert_int_equal(weir_replica_mesh_parse(replica, &to), WEIR_OK);
    args.tensors = tensors;
    args.n_tensors = n;
    args.trainer = &from;
    args.replica = &to;
    if (weir_fleet_open(&args, &fleet) != WEIR_OK)
        return NULL;
    return fleet;
}

static inline weir_fleet_tensor matrix_of(const char *name, weir_cut cut, uint64_t rows,
                                          uint64_t cols)
{
    weir_fleet_tensor t = { .name = name,
                            .conversion = &case_conversions[0],
                            .cut = cut,
                            .source_bits = 16,
                            .n_cols = cols,
                            .n_sources = 1,
                            .n_parts = 1 };
    t.source_rows[0] = t.parts[0].n_rows = rows;
    return t;
}

typedef struct model {
    weir_fleet_tensor tensors[1024];
    size_t n;
    const weir_conversion *fp8, *bf16;
} model;

static inline weir_fleet_tensor *add(model *m, const char *name, int layer, weir_cut cut,
                                     uint64_t rows, uint64_t cols)
{
    weir_fleet_tensor *t = &m->tensors[m->n++];
    *t = matrix_of(name, cut, rows, cols);
    t->layer = layer;
    t->conversion = cols > 1 ? m->fp8 : m->bf16;
    t->shape.rank = cols > 1 ? 0 : 1;
    return t;
}

static inline void add_second(weir_fleet_tensor *t, uint64_t rows)
{
    t->n_sources = t->n_parts = 2;
    t->source_rows[1] = rows;
    t->parts[1] = (weir_fleet_part){ .source = 1, .n_rows = rows };
}

/* The shapes of DeepSeek-V3: 61 layers, 256 experts, 671 billion weights. */
static inline void add_deepseek_layer(model *m, int layer, uint32_t n_experts)
{
    add(m, "norm", layer, WEIR_CUT_NONE, 7168, 1);
    add(m, "norm", layer, WEIR_CUT_NONE, 7168, 1);
    add_second(add(m, "fused_qkv_a", layer, WEIR_CUT_NONE, 1536, 7168), 576);
    add(m, "q_a_norm", layer, WEIR_CUT_NONE, 1536, 1);
    add(m, "kv_a_norm", layer, WEIR_CUT_NONE, 512, 1);
    add(m, "q_b", layer, WEIR_CUT_COLUMN, 24576, 1536)->parts[0].units = 128;
    add(m, "kv_b", layer, WEIR_CUT_COLUMN, 32768, 512)->parts[0].units = 128;
    add(m, "o", layer, WEIR_CUT_ROW, 7168, 16384);
    if (layer < 3) {
        add_second(add(m, "gate_up", layer, WEIR_CUT_COLUMN, 18432, 7168), 18432);
        add(m, "down", layer, WEIR_CUT_ROW, 7168, 18432);
        return;
    }
    add(m, "router", layer, WEIR_CUT_NONE, n_experts, 7168)->conversion = m->bf16;
    add(m, "bias", layer, WEIR_CUT_NONE, n_experts, 1);
    add_second(add(m, "shared_gate_up", layer, WEIR_CUT_COLUMN, 2048, 7168), 2048);
    add(m, "shared_down", layer, WEIR_CUT_ROW, 7168, 2048);
    weir_fleet_tensor *w13 = add(m, "w13", layer, WEIR_CUT_COLUMN, 2048, 7168);
    add_second(w13, 2048);
    w13->n_experts = n_experts;
    add(m, "w2", layer, WEIR_CUT_ROW, 7168, 2048)->n_experts = n_experts;
}

static inline model *deepseek_v3_of(const char *conversion, int n_layers, uint32_t n_experts)
{
    model *m = calloc(1, sizeof(*m));
    assert_int_equal(weir_conversion_get(conversion, &m->fp8), WEIR_OK);
    assert_int_equal(weir_conversion_get("bf16_cast", &m->bf16), WEIR_OK);
    add(m, "embed", WEIR_LAYER_BEFORE, WEIR_CUT_VOCABULARY, 129280, 7168)->conversion = m->bf16;
    for (int layer = 0; layer < n_layers; layer++)
        add_deepseek_layer(m, layer, n_experts);
    add(m, "norm", WEIR_LAYER_BEHIND, WEIR_CUT_NONE, 7168, 1);
    add(m, "head", WEIR_LAYER_BEHIND, WEIR_CUT_VOCABULARY, 129280, 7168)->conversion = m->bf16;
    return m;
}

static inline model *deepseek_v3(const char *conversion)
{
    return deepseek_v3_of(conversion, 61, 256);
}

#endif
