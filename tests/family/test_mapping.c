/* SPDX-License-Identifier: Apache-2.0 */
#include "family/mapping.h"

#include <stdio.h>

#include "family/source_set.h"

#define LAYER "model.layers.3."

static weir_mapping *open_set(const source_set *set, const char *layout, const char *conversion)
{
    weir_mapping *mapping = NULL;
    if (set_open(set, "glm_moe_dsa", layout, conversion, &mapping) != WEIR_OK)
        fail_msg("%s", weir_last_error());
    return mapping;
}

/* Converts one entry into fresh buffers, as many as its conversion has outputs. */
static void convert(const weir_mapping *mapping, const weir_map_entry *entry,
                    void *outputs[WEIR_MAX_OUTPUTS])
{
    size_t n_parameters;
    const weir_parameter *p = weir_mapping_parameters(mapping, &n_parameters);
    weir_entry_convert_args args = WEIR_ENTRY_CONVERT_ARGS_INIT;
    for (size_t o = 0; o < entry->conversion->n_outputs; o++) {
        uint64_t n_bytes;
        const weir_parameter *parameter = &p[entry->first_parameter + o];
        assert_int_equal(weir_tensor_bytes(parameter->dtype, &parameter->shape, &n_bytes), WEIR_OK);
        args.outputs[o] = outputs[o] = malloc(n_bytes);
        assert_non_null(outputs[o]);
        memset(outputs[o], 0xA5, n_bytes);
    }
    if (weir_map_entry_convert(entry, &args) != WEIR_OK)
        fail_msg("%s", weir_last_error());
}

static void free_outputs(const weir_map_entry *entry, void *outputs[WEIR_MAX_OUTPUTS])
{
    for (size_t o = 0; o < entry->conversion->n_outputs; o++)
        free(outputs[o]);
}

static void assert_parameter(const weir_mapping *mapping, const char *name, weir_dtype dtype,
                             weir_shape shape)
{
    const weir_parameter *p = find_parameter(mapping, name);
    if (p == NULL)
        fail_msg("no parameter %s", name);
    assert_int_equal(p->dtype, dtype);
    assert_shape(&p->shape, shape);
}

/* ---- the synthetic layer ---------------------------------------------------------------------*/

static void the_synthetic_layer_in_bf16_has_fused_shapes_and_no_scales(void **state)
{
    (void)state;
    source_set *set = set_synthetic_layer();
    weir_mapping *m = open_set(set, NULL, "bf16_cast");
    size_t n;
    assert_parameter(m, LAYER "self_attn.fused_qkv_a_proj.weight", WEIR_BF16, SHAPE(7, 6));
    assert_parameter(m, LAYER "mlp.gate_up_proj.weight", WEIR_BF16, SHAPE(16, 6));
    assert_parameter(m, LAYER "mlp.experts.w13_weight", WEIR_BF16, SHAPE(2, 6, 6));
    assert_parameter(m, LAYER "mlp.experts.w2_weight", WEIR_BF16, SHAPE(2, 6, 3));
    assert_parameter(m, LAYER "mlp.gate.weight", WEIR_BF16, SHAPE(4, 6));
    assert_parameter(m, LAYER "mlp.gate.e_score_correction_bias", WEIR_F32, SHAPE(4));
    assert_parameter(m, LAYER "self_attn.indexer.wk_weights_proj.weight", WEIR_BF16, SHAPE(6, 6));
    assert_null(find_parameter(m, LAYER "self_attn.indexer.wk.weight"));
    assert_null(find_parameter(m, LAYER "self_attn.indexer.weights_proj.weight"));
    const weir_parameter *p = weir_mapping_parameters(m, &n);
    for (size_t i = 0; i < n; i++)
        assert_null(strstr(p[i].name, "scale"));
    assert_non_null(weir_mapping_derived(m, &n));
    assert_int_equal(n, 0); /* nothing tells the heads apart without a config */
    weir_mapping_close(m);
    set_free(set);
}

static void the_synthetic_layer_in_fp8_has_scales_where_it_is_quantised(void **state)
{
    (void)state;
    source_set *set = set_synthetic_layer();
    weir_mapping *m = open_set(set, NULL, "fp8_128x128");
    const char *qkv = LAYER "self_attn.fused_qkv_a_proj.weight";
    assert_parameter(m, qkv, WEIR_F8_E4M3, SHAPE(7, 6));
    assert_parameter(m, LAYER "self_attn.fused_qkv_a_proj.weight_scale_inv", WEIR_F32, SHAPE(1, 1));
    assert_parameter(m, LAYER "mlp.experts.w13_weight", WEIR_F8_E4M3, SHAPE(2, 6, 6));
    assert_parameter(m, LAYER "mlp.experts.w13_weight_scale_inv", WEIR_F32, SHAPE(2, 1, 1));
    assert_parameter(m, LAYER "mlp.experts.w2_weight_scale_inv", WEIR_F32, SHAPE(2, 1, 1));
    assert_parameter(m, LAYER "mlp.gate.weight", WEIR_BF16, SHAPE(4, 6));
    assert_parameter(m, LAYER "mlp.gate.e_score_correction_bias", WEIR_F32, SHAPE(4));
    assert_parameter(m, LAYER "self_attn.indexer.wk_weights_proj.weight", WEIR_BF16, SHAPE(6, 6));
    assert_parameter(m, LAYER "self_attn.indexer.k_norm.weight", WEIR_F32, SHAPE(6));
    assert_null(find_parameter(m, LAYER "self_attn.indexer.wk_weights_proj.weight_scale_inv"));
    assert_string_equal(find_parameter(m, qkv)->compile_target, "deep_gemm_fp8");
    assert_true(find_parameter(m, LAYER "mlp.experts.w13_weight_scale_inv")->is_expert);
    assert_false(find_parameter(m, qkv)->is_expert);
    weir_mapping_close(m);
    set_free(set);
}

static void w13_has_the_rows_of_w1_before_those_of_w3(void **state)
{
    (void)state;
    source_set *set = set_synthetic_layer();
    uint16_t *w1 = set->tensors[set_find(set, LAYER "mlp.experts.w1")].data;
    uint16_t *w3 = set->tensors[set_find(set, LAYER "mlp.experts.w3")].data;
    for (int i = 0; i < 2 * 3 * 6; i++) {
        w1[i] = 0x3F80; /* 1 */
        w3[i] = 0x4000; /* 2 */
    }
    weir_mapping *m = open_set(set, NULL, "bf16_cast");
    const weir_map_entry *entry = find_entry(m, LAYER "mlp.experts.w13_weight");
    void *outputs[WEIR_MAX_OUTPUTS];
    convert(m, entry, outputs);
    const uint16_t *w13 = outputs[0];
    for (int i = 0; i < 2 * 6 * 6; i++)
        assert_int_equal(w13[i], i / 6 % 6 < 3 ? 0x3F80 : 0x4000);
    free_outputs(entry, outputs);
    weir_mapping_close(m);
    set_free(set);
}

static void the_shared_experts_axis_of_one_is_removed(void **state)
{
    (void)state;
    source_set *set = set_synthetic_layer();
    weir_mapping *m = open_set(set, NULL, "bf16_cast");
    assert_parameter(m, LAYER "mlp.shared_experts.gate_up_proj.weight", WEIR_BF16, SHAPE(6, 6));
    assert_parameter(m, LAYER "mlp.shared_experts.down_proj.weight", WEIR_BF16, SHAPE(6, 3));
    weir_mapping_close(m);
    set->tensors[set_find(set, LAYER "mlp.shared_expert.w2")].shape = SHAPE(6, 3);
    m = open_set(set, NULL, "bf16_cast"); /* a trainer without that axis is understood too */
    assert_parameter(m, LAYER "mlp.shared_experts.down_proj.weight", WEIR_BF16, SHAPE(6, 3));
    weir_mapping_close(m);
    set_free(set);
}

/* ---- the scale grid belongs to the destination -----------------------------------------------*/

static void fill_bf16(weir_tensor *tensor, uint16_t bits)
{
    uint64_t n;
    assert_int_equal(weir_shape_elements(&tensor->shape, &n), WEIR_OK);
    for (uint64_t i = 0; i < n; i++)
        ((uint16_t *)tensor->data)[i] = bits;
}

static void a_block_across_two_sources_has_one_scale(void **state)
{
    (void)state;
    source_set *set = set_new();
    fill_bf16(set_add(set, LAYER "self_attn.q_a_proj.weight", WEIR_BF16, SHAPE(64, 128)), 0x3F80);
    fill_bf16(set_add(set, LAYER "self_attn.kv_a_proj_with_mqa.weight", WEIR_BF16, SHAPE(64, 128)),
              0x42C8); /* 100 */
    weir_mapping *m = open_set(set, NULL, "fp8_128x128");
    assert_parameter(m, LAYER "self_attn.fused_qkv_a_proj.weight_scale_inv", WEIR_F32, SHAPE(1, 1));
    const weir_map_entry *entry = find_entry(m, LAYER "self_attn.fused_qkv_a_proj.weight");
    void *outputs[WEIR_MAX_OUTPUTS];
    convert(m, entry, outputs);
    float scale;
    memcpy(&scale, outputs[1], sizeof(scale));
    assert_true(scale > 0.2232142f && scale < 0.2232144f);
    for (int i = 0; i < 128 * 128; i++)
        assert_int_equal(((uint8_t *)outputs[0])[i], i < 64 * 128 ? 0x49 : 0x7E);
    free_outputs(entry, outputs);
    weir_mapping_close(m);
    set_free(set);
}

static void scale_rows_count_the_fused_rows(void **state)
{
    (void)state;
    static const struct {
        uint64_t q_rows, kv_rows, scale_rows;
    } cases[] = { { 2048, 576, 21 }, { 576, 2048, 21 }, { 192, 192, 3 }, { 64, 64, 1 } };
    for (size_t c = 0; c < sizeof(cases) / sizeof(cases[0]); c++) {
        source_set *set = set_new();
        set_add(set, LAYER "self_attn.q_a_proj.weight", WEIR_BF16, SHAPE(cases[c].q_rows, 16));
        set_add(set, LAYER "self_attn.kv_a_proj_with_mqa.weight", WEIR_BF16,
                SHAPE(cases[c].kv_rows, 16));
        weir_mapping *m = open_set(set, NULL, "fp8_128x128");
        assert_parameter(m, LAYER "self_attn.fused_qkv_a_proj.weight_scale_inv", WEIR_F32,
                         SHAPE(cases[c].scale_rows, 1));
        weir_mapping_close(m);
        set_free(set);
    }
}

static void the_order_of_the_sources_changes_the_codes(void **state)
{
    (void)state;
    source_set *set = set_new();
    weir_tensor *q = set_add(set, LAYER "self_attn.q_a_proj.weight", WEIR_BF16, SHAPE(256, 16));
    weir_tensor *kv =
        set_add(set, LAYER "self_attn.kv_a_proj_with_mqa.weight", WEIR_BF16, SHAPE(72, 16));
    fill_bf16(q, 0x3F80);
    fill_bf16(kv, 0x42C8);
    weir_mapping *m = open_set(set, NULL, "fp8_128x128");
    const weir_map_entry *entry = find_entry(m, LAYER "self_attn.fused_qkv_a_proj.weight");
    void *outputs[WEIR_MAX_OUTPUTS];
    convert(m, entry, outputs);
    /* q_a comes first and fills two blocks alone; were it last, kv_a's scale would reach into it.
     */
    for (int i = 0; i < 256 * 16; i++)
        assert_int_equal(((uint8_t *)outputs[0])[i], 0x7E);
    free_outputs(entry, outputs);
    weir_mapping_close(m);
    set_free(set);
}

/* ---- namings, golden bytes -------------------------------------------------------------------*/

/* The same weights under three namings: slices and copies of the stacked ones. */
static source_set *renamed_experts(const source_set *stacked, weir_naming naming)
{
    source_set *set = set_of_preset("qwen3_moe", "ragged", naming);
    const size_t m = 96, d = 256, n_experts = 8, n = m * d;
    for (size_t i = 0; i < set->n; i++) {
        weir_tensor *t = &set->tensors[i];
        char prefix[64], source[96];
        int layer, expert = -1;
        if (sscanf(t->name, "model.layers.%d.mlp.experts.%d.", &layer, &expert) < 1)
            continue;
        snprintf(prefix, sizeof(prefix), "model.layers.%d.mlp.experts.", layer);
        if (strncmp(t->name, prefix, strlen(prefix)) != 0)
            continue;
        const char *w[3] = { "w1", "w2", "w3" };
        const uint16_t *data[3];
        for (int k = 0; k < 3; k++) {
            snprintf(source, sizeof(source), "%s%s", prefix, w[k]);
            data[k] = stacked->tensors[set_find(stacked, source)].data;
        }
        uint16_t *to = t->data;
        if (expert >= 0) {
            int k = strstr(t->name, "gate_proj") ? 0 : strstr(t->name, "down_proj") ? 1 : 2;
            memcpy(to, data[k] + (size_t)expert * n, n * 2);
        } else if (strstr(t->name, "down_proj") != NULL) {
            memcpy(to, data[1], n_experts * n * 2);
        } else {
            for (size_t e = 0; e < n_experts; e++) {
                memcpy(to + 2 * e * n, data[0] + e * n, n * 2);
                memcpy(to + (2 * e + 1) * n, data[2] + e * n, n * 2);
            }
        }
    }
    return set;
}

static void every_naming_gives_the_same_bytes(void **state)
{
    (void)state;
    static const char *const names[] = { "model.layers.1.mlp.experts.w13_weight",
                                         "model.layers.2.mlp.experts.w2_weight" };
    source_set *stacked = set_of_preset("qwen3_moe", "ragged", WEIR_NAMING_STACKED);
    weir_mapping *expected = NULL;
    assert_int_equal(set_open(stacked, NULL, NULL, "fp8_128x128", &expected), WEIR_OK);
    for (int naming = WEIR_NAMING_HF; naming <= WEIR_NAMING_HF_FUSED; naming++) {
        source_set *set = renamed_experts(stacked, (weir_naming)naming);
        weir_mapping *m = NULL;
        set_shuffle(set);
        assert_int_equal(set_open(set, NULL, NULL, "fp8_128x128", &m), WEIR_OK);
        for (int i = 0; i < 2; i++) {
            const weir_map_entry *a = find_entry(expected, names[i]), *b = find_entry(m, names[i]);
            void *want[WEIR_MAX_OUTPUTS], *got[WEIR_MAX_OUTPUTS];
            convert(expected, a, want);
            convert(m, b, got);
            uint64_t n_bytes;
            const weir_parameter *p = find_parameter(m, names[i]);
            weir_tensor_bytes(p[0].dtype, &p[0].shape, &n_bytes);
            assert_memory_equal(want[0], got[0], n_bytes);
            weir_tensor_bytes(p[1].dtype, &p[1].shape, &n_bytes);
            assert_memory_equal(want[1], got[1], n_bytes);
            free_outputs(a, want);
            free_outputs(b, got);
        }
        weir_mapping_close(m);
        set_free(set);
    }
    weir_mapping_close(expected);
    set_free(stacked);
}

/* Opens a golden file from the large set or from the copies; NULL, said aloud, without it. */
static weir_checkpoint *open_golden(const char *name)
{
    static const char *const folders[] = { "WEIR_TEST_GOLDEN", "WEIR_TEST_SHARED_GOLDEN" };
    for (int i = 0; i < 2; i++) {
        const char *folder = getenv(folders[i]);
        weir_checkpoint *checkpoint = NULL;
        char path[4096];
        snprintf(path, sizeof(path), "%s/%s", folder != NULL ? folder : ".", name);
        if (weir_checkpoint_open(path, &checkpoint) == WEIR_OK)
            return checkpoint;
    }
    print_message("SKIPPED: no golden file %s\n", name);
    return NULL;
}

static void compare_with_golden(const weir_mapping *m, const weir_checkpoint *golden)
{
    size_t n_parameters, n_entries, n_golden, n_compared = 0;
    const weir_parameter *p = weir_mapping_parameters(m, &n_parameters);
    const weir_map_entry *entries = weir_mapping_entries(m, &n_entries);
    weir_checkpoint_tensors(golden, &n_golden);
    for (size_t e = 0; e < n_entries; e++) {
        void *outputs[WEIR_MAX_OUTPUTS];
        convert(m, &entries[e], outputs);
        for (size_t o = 0; o < entries[e].conversion->n_outputs; o++, n_compared++) {
            const weir_parameter *parameter = &p[entries[e].first_parameter + o];
            const weir_tensor *want = weir_checkpoint_find(golden, parameter->name);
            uint64_t n_bytes;
            if (want == NULL)
                fail_msg("%s is not golden", parameter->name);
            assert_parameter(m, parameter->name, want->dtype, want->shape);
            weir_tensor_bytes(want->dtype, &want->shape, &n_bytes);
            if (memcmp(outputs[o], want->data, n_bytes) != 0)
                fail_msg("%s differs from the golden bytes", parameter->name);
        }
        free_outputs(&entries[e], outputs);
    }
    assert_int_equal(n_compared, n_golden);
    assert_int_equal(n_compared, n_parameters);
}

static void check_golden_layer(const char *conversion)
{
    char name[128];
    snprintf(name, sizeof(name), "glm_moe_dsa_layer.%s.safetensors", conversion);
    weir_checkpoint *trainer = open_golden("glm_moe_dsa_layer.trainer.safetensors");
    weir_checkpoint *golden = open_golden(name);
    if (trainer != NULL && golden != NULL) {
        weir_mapping_options options = WEIR_MAPPING_OPTIONS_INIT;
        options.family = "glm_moe_dsa";
        options.layout = "split_indexer";
        options.conversion = conversion;
        size_t n;
        const weir_tensor *tensors = weir_checkpoint_tensors(trainer, &n);
        weir_mapping *m = NULL;
        assert_int_equal(weir_mapping_open(&options, tensors, n, &m), WEIR_OK);
        compare_with_golden(m, golden);
        weir_mapping_close(m);
    }
    bool skipped = trainer == NULL || golden == NULL;
    weir_checkpoint_close(trainer);
    weir_checkpoint_close(golden);
    if (skipped)
        skip();
}

static void a_layer_in_fp8_equals_the_golden_bytes(void **state)
{
    (void)state;
    check_golden_layer("fp8_128x128");
}

static void a_layer_in_bf16_equals_the_golden_bytes(void **state)
{
    (void)state;
    check_golden_layer("bf16_cast");
}

/* ---- the list of parameters ------------------------------------------------------------------*/

static void entries_and_parameters_point_at_each_other(void **state)
{
    (void)state;
    source_set *set = set_of_preset("glm_moe_dsa", "ragged", WEIR_NAMING_HF);
    weir_mapping *m = open_set(set, NULL, "fp8_128x128");
    size_t n_entries, n_parameters, at = 0;
    const weir_map_entry *entries = weir_mapping_entries(m, &n_entries);
    const weir_parameter *p = weir_mapping_parameters(m, &n_parameters);
    int layer = 0;
    for (size_t e = 0; e < n_entries; e++) {
        assert_int_equal(entries[e].first_parameter, at);
        assert_string_equal(p[at].name, entries[e].name);
        for (size_t o = 0; o < entries[e].conversion->n_outputs; o++, at++) {
            assert_int_equal(p[at].entry, e);
            assert_int_equal(p[at].output, o);
        }
        weir_convert_args args = WEIR_CONVERT_ARGS_INIT;
        args.conversion = entries[e].conversion;
        args.sources = entries[e].sources;
        args.n_sources = entries[e].n_sources;
        args.n_experts = entries[e].n_experts;
        args.axis = entries[e].axis;
        weir_shape fused;
        assert_int_equal(weir_convert_fused_shape(&args, &fused), WEIR_OK);
        assert_shape(&fused, entries[e].shape);
        /* Layers ascend, and what belongs to none comes last. */
        assert_true(entries[e].layer == -1 || entries[e].layer >= layer);
        assert_true(layer != -1 || entries[e].layer == -1);
        layer = entries[e].layer;
    }
    assert_int_equal(layer, -1);
    assert_int_equal(n_parameters, at + 6); /* two derived ones per layer */
    weir_mapping_close(m);
    set_free(set);
}

static void derived_parameters_come_last_and_name_their_origin(void **state)
{
    (void)state;
    source_set *set = set_of_preset("glm_moe_dsa", "ragged", WEIR_NAMING_HF);
    weir_mapping *m = open_set(set, NULL, "fp8_128x128");
    size_t n_derived, n_parameters;
    const weir_derived *derived = weir_mapping_derived(m, &n_derived);
    const weir_parameter *p = weir_mapping_parameters(m, &n_parameters);
    assert_int_equal(n_derived, 6);
    for (size_t i = 0; i < n_derived; i++) {
        assert_int_equal(derived[i].parameter, n_parameters - 6 + i);
        assert_int_equal(p[derived[i].parameter].entry, SIZE_MAX);
        assert_non_null(strstr(p[derived[i].from].name, "kv_b_proj.weight"));
        assert_non_null(strstr(p[derived[i].from_scale].name, "kv_b_proj.weight_scale_inv"));
    }
    assert_parameter(m, "model.layers.2.self_attn.W_UV", WEIR_BF16, SHAPE(4, 128, 32));
    assert_parameter(m, "model.layers.2.self_attn.W_UK_T", WEIR_BF16, SHAPE(4, 48, 128));
    weir_mapping_close(m);
    m = open_set(set, NULL, "bf16_cast");
    derived = weir_mapping_derived(m, &n_derived);
    assert_int_equal(derived[0].from_scale, SIZE_MAX);
    weir_mapping_close(m);
    set_free(set);
}

static void the_config_chooses_the_conversion_and_a_name_overrides_it(void **state)
{
    (void)state;
    source_set *set = set_of_preset("bert", "ragged", WEIR_NAMING_HF);
    weir_mapping *m = NULL;
    char *text = weir_config_text(set->config);
    char quantised[2048];
    snprintf(quantised, sizeof(quantised),
             "%.*s,\"quantization_config\":{\"quant_method\":\"fp8\","
             "\"activation_scheme\":\"dynamic\",\"weight_block_size\":[128,128]}}",
             (int)strlen(text) - 1, text);
    weir_string_free(text);
    assert_int_equal(set_open(set, NULL, NULL, "auto", &m), WEIR_OK);
    assert_string_equal(weir_mapping_conversion(m)->name, "bf16_cast");
    weir_mapping_close(m);
    set_config(set, quantised);
    assert_int_equal(set_open(set, NULL, NULL, NULL, &m), WEIR_OK);
    assert_string_equal(weir_mapping_conversion(m)->name, "fp8_128x128");
    weir_mapping_close(m);
    assert_int_equal(set_open(set, NULL, NULL, "fp32_cast", &m), WEIR_OK);
    assert_string_equal(weir_mapping_conversion(m)->name, "fp32_cast");
    weir_mapping_close(m);
    assert_int_equal(set_open(set, NULL, NULL, "int3", &m), WEIR_ERR_NOT_FOUND);
    assert_error_has("unknown conversion 'int3'");
    assert_int_equal(set_open(set, "bert", "v7", NULL, &m), WEIR_ERR_NOT_FOUND);
    set_free(set);
}

static void bad_calls_are_refused(void **state)
{
    (void)state;
    weir_mapping *m = NULL;
    weir_mapping_options options = { 0 };
    assert_int_equal(weir_mapping_open(&options, NULL, 0, &m), WEIR_ERR_INVALID);
    assert_int_equal(weir_mapping_open(NULL, NULL, 0, &m), WEIR_ERR_INVALID);
    options.size = sizeof(options);
    assert_int_equal(weir_mapping_open(&options, NULL, 0, &m), WEIR_ERR_INVALID);
    assert_error_has("no family given");
    assert_null(m);
    weir_mapping_close(NULL);
    source_set *set = set_synthetic_layer();
    m = open_set(set, NULL, NULL);
    size_t n;
    weir_entry_convert_args args = { 0 };
    assert_int_equal(weir_map_entry_convert(weir_mapping_entries(m, &n), &args), WEIR_ERR_INVALID);
    weir_mapping_close(m);
    set_free(set);
}

/* ---- new pointers ----------------------------------------------------------------------------*/

static void rebinding_takes_new_data_and_allocates_nothing(void **state)
{
    (void)state;
    source_set *set = set_synthetic_layer();
    weir_mapping *m = open_set(set, NULL, "bf16_cast");
    weir_tensor *moved = calloc(set->n, sizeof(*moved));
    memcpy(moved, set->tensors, set->n * sizeof(*moved));
    uint16_t data[6 * 5] = { 0x3F80, 0x4000 };
    size_t o_proj = set_find(set, LAYER "self_attn.o_proj.weight");
    moved[o_proj].data = data;
    uint64_t n_allocations = weir_alloc_count();
    assert_int_equal(weir_mapping_rebind(m, moved, set->n), WEIR_OK);
    assert_int_equal(weir_alloc_count(), n_allocations);
    const weir_map_entry *entry = find_entry(m, LAYER "self_attn.o_proj.weight");
    assert_ptr_equal(entry->sources[0].data, data);
    void *outputs[WEIR_MAX_OUTPUTS];
    convert(m, entry, outputs);
    assert_memory_equal(outputs[0], data, sizeof(data));
    free_outputs(entry, outputs);
    /* The removed axis stays removed. */
    entry = find_entry(m, LAYER "mlp.shared_experts.down_proj.weight");
    assert_shape(&entry->sources[0].shape, SHAPE(6, 3));

    moved[o_proj].shape = SHAPE(5, 6);
    assert_int_equal(weir_mapping_rebind(m, moved, set->n), WEIR_ERR_LAYOUT);
    assert_error_has("o_proj.weight");
    moved[o_proj].shape = SHAPE(6, 5);
    moved[o_proj].dtype = WEIR_F32;
    assert_int_equal(weir_mapping_rebind(m, moved, set->n), WEIR_ERR_LAYOUT);
    moved[o_proj].dtype = WEIR_BF16;
    moved[o_proj].name = "other";
    assert_int_equal(weir_mapping_rebind(m, moved, set->n), WEIR_ERR_LAYOUT);
    assert_int_equal(weir_mapping_rebind(m, moved, set->n - 1), WEIR_ERR_LAYOUT);
    assert_ptr_equal(find_entry(m, LAYER "self_attn.o_proj.weight")->sources[0].data, data);
    free(moved);
    weir_mapping_close(m);
    set_free(set);
}

static void rebinding_compares_tied_embeddings_again(void **state)
{
    (void)state;
    source_set *set = set_of_preset("qwen3", "ragged", WEIR_NAMING_HF);
    weir_mapping *m = NULL;
    size_t embedding = set_find(set, "model.embed_tokens.weight");
    weir_tensor *head = set_add(set, "lm_head.weight", WEIR_BF16, SHAPE(1000, 256));
    memcpy(head->data, set->tensors[embedding].data, 1000 * 256 * 2);
    assert_int_equal(set_open(set, NULL, NULL, NULL, &m), WEIR_OK);
    assert_int_equal(weir_mapping_rebind(m, set->tensors, set->n), WEIR_OK);
    ((uint16_t *)head->data)[7] ^= 1;
    assert_int_equal(weir_mapping_rebind(m, set->tensors, set->n), WEIR_ERR_LAYOUT);
    assert_error_has("lm_head.weight differs from model.embed_tokens.weight");
    weir_mapping_close(m);
    set_free(set);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_synthetic_layer_in_bf16_has_fused_shapes_and_no_scales),
        cmocka_unit_test(the_synthetic_layer_in_fp8_has_scales_where_it_is_quantised),
        cmocka_unit_test(w13_has_the_rows_of_w1_before_those_of_w3),
        cmocka_unit_test(the_shared_experts_axis_of_one_is_removed),
        cmocka_unit_test(a_block_across_two_sources_has_one_scale),
        cmocka_unit_test(scale_rows_count_the_fused_rows),
        cmocka_unit_test(the_order_of_the_sources_changes_the_codes),
        cmocka_unit_test(every_naming_gives_the_same_bytes),
        cmocka_unit_test(a_layer_in_fp8_equals_the_golden_bytes),
        cmocka_unit_test(a_layer_in_bf16_equals_the_golden_bytes),
        cmocka_unit_test(entries_and_parameters_point_at_each_other),
        cmocka_unit_test(derived_parameters_come_last_and_name_their_origin),
        cmocka_unit_test(the_config_chooses_the_conversion_and_a_name_overrides_it),
        cmocka_unit_test(bad_calls_are_refused),
        cmocka_unit_test(rebinding_takes_new_data_and_allocates_nothing),
        cmocka_unit_test(rebinding_compares_tied_embeddings_again),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
