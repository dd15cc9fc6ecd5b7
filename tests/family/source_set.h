/* SPDX-License-Identifier: Apache-2.0 */
/* source_set.h - lists of sources for the tests of this folder: built by hand, from a family's
 * tables, or the synthetic layer that the reference implementation tests with. */
#ifndef WEIR_TESTS_FAMILY_SOURCE_SET_H
#define WEIR_TESTS_FAMILY_SOURCE_SET_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/alloc.h"
#include "family/mapping.h"
#include "weir/family.h"

#define SET_MAX 4096
#define SET_MAX_FAMILIES 64

typedef struct source_set {
    weir_tensor tensors[SET_MAX];
    size_t n;
    weir_config *config;
} source_set;

/* Data of small numbers, all different from their neighbours. */
static inline void *set_data(weir_dtype dtype, uint64_t n_elements, uint32_t salt)
{
    size_t element_bytes = weir_dtype_bits(dtype) / 8;
    uint8_t *data = calloc(n_elements + 1, element_bytes);
    assert_non_null(data);
    for (uint64_t i = 0; i < n_elements; i++) {
        float value = (float)((i * 7 + salt * 13) % 61) * 0.25f - 7.0f;
        uint32_t bits;
        memcpy(&bits, &value, 4);
        if (dtype == WEIR_F32)
            memcpy(data + i * 4, &value, 4);
        else if (dtype == WEIR_BF16)
            ((uint16_t *)(void *)data)[i] = (uint16_t)(bits >> 16);
    }
    return data;
}

static inline weir_tensor *set_add(source_set *set, const char *name, weir_dtype dtype,
                                   weir_shape shape)
{
    uint64_t n_elements;
    assert_true(set->n < SET_MAX);
    assert_int_equal(weir_shape_elements(&shape, &n_elements), WEIR_OK);
    weir_tensor *tensor = &set->tensors[set->n];
    *tensor =
        (weir_tensor){ strdup(name), dtype, shape, set_data(dtype, n_elements, (uint32_t)set->n) };
    set->n++;
    return tensor;
}

#define SHAPE(...) \
    ((weir_shape){ sizeof((uint64_t[]){ __VA_ARGS__ }) / sizeof(uint64_t), { __VA_ARGS__ } })

static inline source_set *set_new(void)
{
    source_set *set = calloc(1, sizeof(*set));
    assert_non_null(set);
    return set;
}

static inline void set_free(source_set *set)
{
    for (size_t i = 0; i < set->n; i++) {
        free((void *)(uintptr_t)set->tensors[i].name);
        free(set->tensors[i].data);
    }
    weir_config_close(set->config);
    free(set);
}

static inline size_t set_find(const source_set *set, const char *name)
{
    for (size_t i = 0; i < set->n; i++) {
        if (strcmp(set->tensors[i].name, name) == 0)
            return i;
    }
    fail_msg("no source %s in the set", name);
    return 0;
}

static inline void set_remove(source_set *set, const char *name)
{
    size_t i = set_find(set, name);
    free((void *)(uintptr_t)set->tensors[i].name);
    free(set->tensors[i].data);
    set->n--;
    memmove(&set->tensors[i], &set->tensors[i + 1], (set->n - i) * sizeof(set->tensors[0]));
}

static inline void set_rename(source_set *set, const char *name, const char *new_name)
{
    weir_tensor *tensor = &set->tensors[set_find(set, name)];
    free((void *)(uintptr_t)tensor->name);
    tensor->name = strdup(new_name);
}

/* A fixed shuffle. */
static inline void set_shuffle(source_set *set)
{
    uint64_t state = 42;
    for (size_t i = set->n; i > 1; i--) {
        state = state * 6364136223846793005ull + 1442695040888963407ull;
        size_t j = (size_t)((state >> 33) % i);
        weir_tensor swap = set->tensors[i - 1];
        set->tensors[i - 1] = set->tensors[j];
        set->tensors[j] = swap;
    }
}

/* The layer of six hidden units, dense and sparse part at once; some of its norms are missing. */
static inline source_set *set_synthetic_layer(void)
{
    static const struct {
        const char *name;
        weir_shape shape;
    } rows[] = {
        { "self_attn.q_a_proj.weight", { 2, { 4, 6 } } },
        { "self_attn.kv_a_proj_with_mqa.weight", { 2, { 3, 6 } } },
        { "self_attn.q_b_proj.weight", { 2, { 5, 6 } } },
        { "self_attn.kv_b_proj.weight", { 2, { 7, 6 } } },
        { "self_attn.o_proj.weight", { 2, { 6, 5 } } },
        { "self_attn.indexer.wq_b.weight", { 2, { 4, 6 } } },
        { "self_attn.indexer.wk.weight", { 2, { 4, 6 } } },
        { "self_attn.indexer.k_norm.weight", { 1, { 6 } } },
        { "self_attn.indexer.weights_proj.weight", { 2, { 2, 6 } } },
        { "mlp.gate_proj.weight", { 2, { 8, 6 } } },
        { "mlp.up_proj.weight", { 2, { 8, 6 } } },
        { "mlp.down_proj.weight", { 2, { 6, 8 } } },
        { "mlp.router.gate.weight", { 2, { 4, 6 } } },
        { "mlp.expert_bias", { 1, { 4 } } },
        { "mlp.experts.w1", { 3, { 2, 3, 6 } } },
        { "mlp.experts.w3", { 3, { 2, 3, 6 } } },
        { "mlp.experts.w2", { 3, { 2, 6, 3 } } },
        { "mlp.shared_expert.w1", { 3, { 1, 3, 6 } } },
        { "mlp.shared_expert.w3", { 3, { 1, 3, 6 } } },
        { "mlp.shared_expert.w2", { 3, { 1, 6, 3 } } },
    };
    source_set *set = set_new();
    char name[128];
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        strcpy(name, "model.layers.3.");
        strcat(name, rows[i].name);
        bool bias = strcmp(rows[i].name, "mlp.expert_bias") == 0;
        set_add(set, name, bias ? WEIR_F32 : WEIR_BF16, rows[i].shape);
    }
    return set;
}

/* All sources of a preset, with data. */
static inline source_set *set_of_preset(const char *family, const char *preset, weir_naming naming)
{
    source_set *set = set_new();
    char *text;
    weir_tensor *tensors;
    size_t n;
    assert_int_equal(weir_family_preset(family, preset, &text), WEIR_OK);
    assert_int_equal(weir_config_parse(text, preset, &set->config), WEIR_OK);
    assert_int_equal(weir_family_sources(family, set->config, naming, &tensors, &n), WEIR_OK);
    for (size_t i = 0; i < n; i++)
        set_add(set, tensors[i].name, tensors[i].dtype, tensors[i].shape);
    weir_family_sources_free(tensors);
    weir_string_free(text);
    return set;
}

/* Replaces the config by text. */
static inline void set_config(source_set *set, const char *text)
{
    weir_config_close(set->config);
    set->config = NULL;
    assert_int_equal(weir_config_parse(text, "test", &set->config), WEIR_OK);
}

static inline weir_status set_open(const source_set *set, const char *family, const char *layout,
                                   const char *conversion, weir_mapping **out)
{
    weir_mapping_options options = WEIR_MAPPING_OPTIONS_INIT;
    options.family = family;
    options.layout = layout;
    options.conversion = conversion;
    options.config = set->config;
    return weir_mapping_open(&options, set->tensors, set->n, out);
}

static inline const weir_parameter *find_parameter(const weir_mapping *mapping, const char *name)
{
    size_t n;
    const weir_parameter *parameters = weir_mapping_parameters(mapping, &n);
    for (size_t i = 0; i < n; i++) {
        if (strcmp(parameters[i].name, name) == 0)
            return &parameters[i];
    }
    return NULL;
}

static inline const weir_map_entry *find_entry(const weir_mapping *mapping, const char *name)
{
    size_t n;
    const weir_map_entry *entries = weir_mapping_entries(mapping, &n);
    for (size_t i = 0; i < n; i++) {
        if (strcmp(entries[i].name, name) == 0)
            return &entries[i];
    }
    return NULL;
}

static inline void assert_shape(const weir_shape *shape, weir_shape expected)
{
    char got[WEIR_SHAPE_TEXT], want[WEIR_SHAPE_TEXT];
    assert_string_equal(weir_shape_text(shape, got, sizeof(got)),
                        weir_shape_text(&expected, want, sizeof(want)));
}

#define assert_error_has(text)                                               \
    do {                                                                     \
        if (strstr(weir_last_error(), text) == NULL)                         \
            fail_msg("error line '%s' lacks '%s'", weir_last_error(), text); \
    } while (0)

#endif
