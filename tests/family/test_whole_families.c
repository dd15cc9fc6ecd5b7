/* SPDX-License-Identifier: Apache-2.0 */
/* Every family as a whole: each preset, naming and layout; what is kept from quantisation; what a
 * source too few or too many comes to. Sources are views without data.
 */
#include <fnmatch.h>
#include <stdio.h>

#include "family/source_set.h"

/* One checkpoint of a preset, as config.json and naming describe it. */
typedef struct model_case {
    const weir_family_info *family;
    const char *preset;
    weir_naming naming;
    weir_config *config;
    weir_tensor *sources;
    size_t n_sources;
} model_case;

static model_case open_case(const weir_family_info *family, const char *preset, weir_naming naming)
{
    model_case c = { .family = family, .preset = preset, .naming = naming };
    char *text;
    assert_int_equal(weir_family_preset(family->name, preset, &text), WEIR_OK);
    assert_int_equal(weir_config_parse(text, preset, &c.config), WEIR_OK);
    weir_string_free(text);
    if (weir_family_sources(family->name, c.config, naming, &c.sources, &c.n_sources) != WEIR_OK)
        fail_msg("%s %s naming %d: %s", family->name, preset, (int)naming, weir_last_error());
    return c;
}

static void close_case(model_case *c)
{
    weir_family_sources_free(c->sources);
    weir_config_close(c->config);
}

static weir_status open_mapping(const model_case *c, const char *layout, const weir_tensor *sources,
                                size_t n_sources, weir_mapping **out)
{
    weir_mapping_options options = WEIR_MAPPING_OPTIONS_INIT;
    options.config = c->config;
    options.layout = layout;
    options.conversion = "fp8_128x128";
    return weir_mapping_open(&options, sources, n_sources, out);
}

static weir_mapping *must_open(const model_case *c, const char *layout)
{
    weir_mapping *mapping = NULL;
    if (open_mapping(c, layout, c->sources, c->n_sources, &mapping) != WEIR_OK)
        fail_msg("%s %s naming %d layout %s: %s", c->family->name, c->preset, (int)c->naming,
                 layout, weir_last_error());
    return mapping;
}

typedef void (*case_check)(const model_case *c, const char *layout);

static void for_each_layout(const model_case *c, case_check check)
{
    for (size_t l = 0; c->family->layouts[l] != NULL; l++)
        check(c, c->family->layouts[l]);
}

/* preset NULL: all of them. */
static void for_each_case(const char *preset, case_check check)
{
    weir_family_info families[SET_MAX_FAMILIES];
    size_t n_families = weir_families(families, SET_MAX_FAMILIES);
    for (size_t f = 0; f < n_families; f++) {
        for (size_t p = 0; families[f].presets[p] != NULL; p++) {
            if (preset != NULL && strcmp(families[f].presets[p], preset) != 0)
                continue;
            for (int naming = 0; naming < 3; naming++) {
                model_case c = open_case(&families[f], families[f].presets[p], (weir_naming)naming);
                for_each_layout(&c, check);
                close_case(&c);
            }
        }
    }
}

static int compare_texts(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

/* Sorts names and returns one that is there twice, NULL when there is none. */
static const char *find_twin(const char **names, size_t n)
{
    qsort(names, n, sizeof(*names), compare_texts);
    for (size_t i = 1; i < n; i++) {
        if (strcmp(names[i - 1], names[i]) == 0)
            return names[i];
    }
    return NULL;
}

/* ---- sources and parameters ------------------------------------------------------------------*/

static void check_all_consumed_once(const model_case *c, const char *layout)
{
    weir_mapping *mapping = must_open(c, layout);
    size_t n_entries, n_bound = 0;
    const weir_map_entry *entries = weir_mapping_entries(mapping, &n_entries);
    const char **names = malloc(c->n_sources * sizeof(*names));
    for (size_t e = 0; e < n_entries; e++) {
        size_t n = entries[e].n_sources * (entries[e].n_experts > 0 ? entries[e].n_experts : 1);
        for (size_t s = 0; s < n; s++, n_bound++) {
            assert_true(n_bound < c->n_sources);
            names[n_bound] = entries[e].sources[s].name;
        }
    }
    assert_int_equal(n_bound, c->n_sources);
    if (find_twin(names, n_bound) != NULL)
        fail_msg("%s is consumed twice", find_twin(names, n_bound));
    free(names);
    weir_mapping_close(mapping);
}

static void every_source_is_consumed_exactly_once(void **state)
{
    (void)state;
    for_each_case(NULL, check_all_consumed_once);
}

/* Each entry has an output in each parameter slot, and what no entry fills is derived. */
static void check_all_filled_once(const model_case *c, const char *layout)
{
    weir_mapping *mapping = must_open(c, layout);
    size_t n_entries, n, n_derived, n_filled = 0;
    const weir_map_entry *entries = weir_mapping_entries(mapping, &n_entries);
    const weir_parameter *parameters = weir_mapping_parameters(mapping, &n);
    const weir_derived *derived = weir_mapping_derived(mapping, &n_derived);
    const char **names = malloc(n * sizeof(*names));
    for (size_t e = 0; e < n_entries; e++) {
        for (size_t o = 0; o < entries[e].conversion->n_outputs; o++, n_filled++) {
            assert_int_equal(parameters[n_filled].entry, e);
            assert_int_equal(parameters[n_filled].output, o);
        }
    }
    for (size_t d = 0; d < n_derived; d++, n_filled++)
        assert_int_equal(derived[d].parameter, n_filled);
    assert_int_equal(n_filled, n);
    for (size_t i = 0; i < n; i++)
        names[i] = parameters[i].name;
    if (find_twin(names, n) != NULL)
        fail_msg("%s is there twice", find_twin(names, n));
    free(names);
    weir_mapping_close(mapping);
}

static void every_parameter_is_filled_exactly_once(void **state)
{
    (void)state;
    for_each_case(NULL, check_all_filled_once);
}

/* The engine's parameters are its own: the trainer's naming does not show. */
static void every_naming_fills_the_same_parameters(void **state)
{
    (void)state;
    weir_family_info families[SET_MAX_FAMILIES];
    size_t n_families = weir_families(families, SET_MAX_FAMILIES);
    for (size_t f = 0; f < n_families; f++) {
        weir_mapping *mappings[3];
        model_case cases[3];
        size_t n, n_like;
        for (int naming = 0; naming < 3; naming++) {
            cases[naming] = open_case(&families[f], "tiny", (weir_naming)naming);
            mappings[naming] = must_open(&cases[naming], families[f].layouts[0]);
        }
        const weir_parameter *like = weir_mapping_parameters(mappings[0], &n_like);
        for (int naming = 1; naming < 3; naming++) {
            const weir_parameter *parameters = weir_mapping_parameters(mappings[naming], &n);
            assert_int_equal(n, n_like);
            for (size_t i = 0; i < n; i++) {
                assert_string_equal(parameters[i].name, like[i].name);
                assert_int_equal(parameters[i].dtype, like[i].dtype);
                assert_true(weir_shape_equal(&parameters[i].shape, &like[i].shape));
            }
        }
        for (int naming = 0; naming < 3; naming++) {
            weir_mapping_close(mappings[naming]);
            close_case(&cases[naming]);
        }
    }
}

/* ---- what is never quantised -----------------------------------------------------------------*/

#define MAX_KEPT 24

/* By hand, from what engines hold: parameters that an FP8 conversion leaves alone, and their dtype.
 * Everything else must be quantised. */
typedef struct kept_case {
    const char *family, *layout;
    struct {
        const char *glob;
        weir_dtype dtype;
    } kept[MAX_KEPT];
} kept_case;

#define L "model.layers.*."
#define LM "language_model."
#define CAUSAL_LM                                                                   \
    { "model.embed_tokens.weight", WEIR_BF16 }, { "model.norm.weight", WEIR_BF16 }, \
    {                                                                               \
        "lm_head.weight", WEIR_BF16                                                 \
    }
#define TIED_LM                                 \
    { "model.embed_tokens.weight", WEIR_BF16 }, \
    {                                           \
        "model.norm.weight", WEIR_BF16          \
    }
#define TWO_NORMS                                      \
    { L "input_layernorm.weight", WEIR_BF16 },         \
    {                                                  \
        L "post_attention_layernorm.weight", WEIR_BF16 \
    }
#define HEAD_NORMS                              \
    { L "self_attn.q_norm.weight", WEIR_BF16 }, \
    {                                           \
        L "self_attn.k_norm.weight", WEIR_BF16  \
    }
#define MLA_NORMS                                                                     \
    { L "self_attn.q_a_layernorm.weight", WEIR_BF16 },                                \
        { L "self_attn.kv_a_layernorm.weight", WEIR_BF16 }, /* and what is derived */ \
        { L "self_attn.W_UV", WEIR_BF16 },                                            \
    {                                                                                 \
        L "self_attn.W_UK_T", WEIR_BF16                                               \
    }
#define ROUTER(dtype)                                  \
    { L "mlp.gate.weight", dtype },                    \
    {                                                  \
        L "mlp.gate.e_score_correction_bias", WEIR_F32 \
    }
#define LINEAR_ATTENTION(front)                                                                  \
    { front L "linear_attn.in_proj_ba.weight", WEIR_BF16 },                                      \
        { front L "linear_attn.conv1d.weight", WEIR_BF16 },                                      \
        { front L "linear_attn.dt_bias", WEIR_BF16 }, { front L "linear_attn.A_log", WEIR_F32 }, \
        { front L "linear_attn.norm.weight", WEIR_BF16 },                                        \
        { front L "self_attn.q_norm.weight", WEIR_BF16 },                                        \
        { front L "self_attn.k_norm.weight", WEIR_BF16 },                                        \
        { front L "input_layernorm.weight", WEIR_BF16 },                                         \
        { front L "post_attention_layernorm.weight", WEIR_BF16 },                                \
        { front "model.embed_tokens.weight", WEIR_BF16 },                                        \
        { front "model.norm.weight", WEIR_BF16 },                                                \
    {                                                                                            \
        front "lm_head.weight", WEIR_BF16                                                        \
    }
#define SHARED_EXPERT(front)                               \
    { front L "mlp.gate.weight", WEIR_BF16 },              \
    {                                                      \
        front L "mlp.shared_expert_gate.weight", WEIR_BF16 \
    }

/* clang-format off */
static const kept_case kept_cases[] = {
    { "afmoe", "default",
      { CAUSAL_LM, TWO_NORMS, HEAD_NORMS,
        { L "pre_mlp_layernorm.weight", WEIR_BF16 },
        { L "post_mlp_layernorm.weight", WEIR_BF16 },
        { L "mlp.gate.weight", WEIR_F32 },
        { L "mlp.expert_bias", WEIR_F32 } } },
    { "bert", "default",
      { { "embeddings.*", WEIR_BF16 },
        { "pooler.dense.*", WEIR_BF16 },
        { "encoder.layer.*.LayerNorm.weight", WEIR_BF16 },
        { "encoder.layer.*.bias", WEIR_BF16 } } },
    { "deepseek_v3", "default", { CAUSAL_LM, TWO_NORMS, MLA_NORMS, ROUTER(WEIR_BF16) } },
    { "gemma2", "default",
      { TIED_LM, TWO_NORMS,
        { L "pre_feedforward_layernorm.weight", WEIR_BF16 },
        { L "post_feedforward_layernorm.weight", WEIR_BF16 } } },
    { "gemma3_text", "default",
      { TIED_LM, TWO_NORMS, HEAD_NORMS,
        { L "pre_feedforward_layernorm.weight", WEIR_BF16 },
        { L "post_feedforward_layernorm.weight", WEIR_BF16 } } },
    { "glm4_moe", "default",
      { CAUSAL_LM, TWO_NORMS, HEAD_NORMS, ROUTER(WEIR_F32),
        { L "self_attn.qkv_proj.bias", WEIR_BF16 } } },
    { "glm_moe_dsa", "fused_indexer",
      { CAUSAL_LM, TWO_NORMS, MLA_NORMS, ROUTER(WEIR_BF16),
        { L "self_attn.indexer.wk_weights_proj.weight", WEIR_BF16 },
        { L "self_attn.indexer.k_norm.weight", WEIR_F32 },
        { L "self_attn.indexer.k_norm.bias", WEIR_F32 } } },
    { "glm_moe_dsa", "split_indexer",
      { CAUSAL_LM, TWO_NORMS, MLA_NORMS, ROUTER(WEIR_BF16),
        { L "self_attn.indexer.weights_proj.weight", WEIR_BF16 },
        { L "self_attn.indexer.k_norm.weight", WEIR_BF16 },
        { L "self_attn.indexer.k_norm.bias", WEIR_BF16 } } },
    { "gpt_oss", "sglang_triton",
      { CAUSAL_LM, TWO_NORMS,
        { L "self_attn.*", WEIR_BF16 },
        { L "mlp.router.*", WEIR_BF16 },
        { L "mlp.experts.w*_weight", WEIR_BF16 },
        { L "mlp.experts.w*_weight_bias", WEIR_F32 } } },
    { "laguna", "default",
      { CAUSAL_LM, TWO_NORMS, HEAD_NORMS,
        { L "mlp.gate.weight", WEIR_BF16 },
        { L "mlp.experts.e_score_correction_bias", WEIR_F32 } } },
    { "llama", "default",
      { CAUSAL_LM, TWO_NORMS,
        { L "self_attn.*.bias", WEIR_BF16 },
        { L "mlp.*.bias", WEIR_BF16 } } },
    { "minimax_m2", "default",
      { CAUSAL_LM, TWO_NORMS, HEAD_NORMS,
        { L "block_sparse_moe.gate.weight", WEIR_F32 },
        { L "block_sparse_moe.e_score_correction_bias", WEIR_F32 } } },
    { "mistral", "default", { CAUSAL_LM, TWO_NORMS } },
    { "mixtral", "default",
      { CAUSAL_LM, TWO_NORMS, { L "block_sparse_moe.gate.weight", WEIR_BF16 } } },
    { "nemotron_h", "default",
      { { "model.embed_tokens.weight", WEIR_BF16 },
        { "model.norm_f.weight", WEIR_BF16 },
        { "lm_head.weight", WEIR_BF16 },
        { L "norm.weight", WEIR_BF16 },
        { "model.layers.0.mixer.norm.weight", WEIR_BF16 },
        { L "mixer.conv1d.*", WEIR_BF16 },
        { L "mixer.A", WEIR_F32 },
        { L "mixer.D", WEIR_BF16 },
        { L "mixer.dt_bias", WEIR_BF16 },
        { L "mixer.gate.weight", WEIR_F32 },
        { L "mixer.gate.e_score_correction_bias", WEIR_F32 } } },
    { "qwen2", "default",
      { CAUSAL_LM, TWO_NORMS, { L "self_attn.qkv_proj.bias", WEIR_BF16 } } },
    { "qwen3", "default", { TIED_LM, TWO_NORMS, HEAD_NORMS } },
    { "qwen3_5", "text", { LINEAR_ATTENTION("") } },
    { "qwen3_5", "composite", { LINEAR_ATTENTION(LM) } },
    { "qwen3_5_moe", "text", { LINEAR_ATTENTION(""), SHARED_EXPERT("") } },
    { "qwen3_5_moe", "composite", { LINEAR_ATTENTION(LM), SHARED_EXPERT(LM) } },
    { "qwen3_moe", "default",
      { CAUSAL_LM, TWO_NORMS, HEAD_NORMS, { L "mlp.gate.weight", WEIR_BF16 } } },
};
/* clang-format on */
#define N_KEPT_CASES (sizeof(kept_cases) / sizeof(kept_cases[0]))

static const kept_case *kept_of(const char *family, const char *layout)
{
    for (size_t i = 0; i < N_KEPT_CASES; i++) {
        if (strcmp(kept_cases[i].family, family) == 0 && strcmp(kept_cases[i].layout, layout) == 0)
            return &kept_cases[i];
    }
    fail_msg("family %s, layout %s: nobody wrote down what is never quantised", family, layout);
    return NULL;
}

/* The scale of an FP8 parameter, which is none that anyone keeps. */
static bool is_scale(const weir_parameter *p)
{
    return p->entry != SIZE_MAX && p->output > 0;
}

static void check_kept(const model_case *c, const char *layout)
{
    const kept_case *expected = kept_of(c->family->name, layout);
    weir_mapping *mapping = must_open(c, layout);
    size_t n, n_met[MAX_KEPT] = { 0 };
    const weir_parameter *parameters = weir_mapping_parameters(mapping, &n);
    for (size_t i = 0; i < n; i++) {
        const weir_parameter *p = &parameters[i];
        weir_dtype dtype = WEIR_F8_E4M3;
        for (size_t k = 0; k < MAX_KEPT && expected->kept[k].glob != NULL; k++) {
            if (fnmatch(expected->kept[k].glob, p->name, 0) != 0)
                continue;
            dtype = expected->kept[k].dtype;
            n_met[k]++;
        }
        if (!is_scale(p) && p->dtype != dtype)
            fail_msg("%s: %s is %s, expected %s", c->family->name, p->name,
                     weir_dtype_name(p->dtype), weir_dtype_name(dtype));
    }
    for (size_t k = 0; k < MAX_KEPT && expected->kept[k].glob != NULL; k++) {
        if (n_met[k] == 0)
            fail_msg("%s: no parameter is %s", c->family->name, expected->kept[k].glob);
    }
    weir_mapping_close(mapping);
}

static void norms_routers_biases_and_the_like_are_never_quantised(void **state)
{
    (void)state;
    for_each_case("tiny", check_kept);
}

/* ---- what trainers keep in fp32 --------------------------------------------------------------*/

/* Sources that stacked-expert trainers hold in fp32, whatever the engine's parameter is. */
static const struct {
    const char *family, *source;
    weir_dtype engine;
} full_cases[] = {
    { "glm4_moe", L "mlp.expert_bias", WEIR_F32 },
    { "glm_moe_dsa", L "mlp.expert_bias", WEIR_F32 },
    { "nemotron_h", L "mamba.A_log", WEIR_F32 },
    { "nemotron_h", L "mamba.D", WEIR_BF16 },
    { "nemotron_h", L "mlp.router.e_score_correction_bias", WEIR_F32 },
    { "qwen3_5", L "linear_attn.A_log", WEIR_F32 },
    { "qwen3_5", L "linear_attn.norm.weight", WEIR_BF16 },
    { "qwen3_5_moe", L "linear_attn.A_log", WEIR_F32 },
    { "qwen3_5_moe", L "linear_attn.norm.weight", WEIR_BF16 },
};

static const weir_family_info *find_family(const weir_family_info *families, const char *name)
{
    while (strcmp(families->name, name) != 0)
        families++;
    return families;
}

static void what_trainers_keep_in_fp32_is_taken_as_fp32(void **state)
{
    (void)state;
    weir_family_info families[SET_MAX_FAMILIES];
    weir_families(families, SET_MAX_FAMILIES);
    for (size_t i = 0; i < sizeof(full_cases) / sizeof(full_cases[0]); i++) {
        model_case c =
            open_case(find_family(families, full_cases[i].family), "tiny", WEIR_NAMING_STACKED);
        size_t n_entries, n_parameters, n_met = 0;
        for (size_t s = 0; s < c.n_sources; s++) {
            if (fnmatch(full_cases[i].source, c.sources[s].name, 0) == 0)
                c.sources[s].dtype = WEIR_F32;
        }
        weir_mapping *mapping = must_open(&c, c.family->layouts[0]);
        const weir_map_entry *entries = weir_mapping_entries(mapping, &n_entries);
        const weir_parameter *parameters = weir_mapping_parameters(mapping, &n_parameters);
        for (size_t e = 0; e < n_entries; e++) {
            if (fnmatch(full_cases[i].source, entries[e].sources[0].name, 0) != 0)
                continue;
            assert_int_equal(parameters[entries[e].first_parameter].dtype, full_cases[i].engine);
            n_met++;
        }
        assert_true(n_met > 0);
        weir_mapping_close(mapping);
        close_case(&c);
    }
}

/* ---- one source too few or too many ----------------------------------------------------------*/

static void assert_refused_by_name(const model_case *c, const char *layout,
                                   const weir_tensor *sources, size_t n_sources, const char *name)
{
    weir_mapping *mapping = NULL;
    if (open_mapping(c, layout, sources, n_sources, &mapping) != WEIR_ERR_LAYOUT)
        fail_msg("%s naming %d: not refused: %s", c->family->name, (int)c->naming, name);
    assert_null(mapping);
    if (strstr(weir_last_error(), name) == NULL)
        fail_msg("%s naming %d: '%s' does not name %s", c->family->name, (int)c->naming,
                 weir_last_error(), name);
}

static void check_each_missing(const model_case *c, const char *layout)
{
    weir_tensor *sources = malloc(c->n_sources * sizeof(*sources));
    char text[256];
    for (size_t i = 0; i < c->n_sources; i++) {
        memcpy(sources, c->sources, i * sizeof(*sources));
        memcpy(sources + i, c->sources + i + 1, (c->n_sources - i - 1) * sizeof(*sources));
        snprintf(text, sizeof(text), "%s (missing)", c->sources[i].name);
        assert_refused_by_name(c, layout, sources, c->n_sources - 1, text);
    }
    free(sources);
}

static void any_missing_source_is_refused_by_name(void **state)
{
    (void)state;
    for_each_case("tiny", check_each_missing);
}

static void check_unknown_added(const model_case *c, const char *layout)
{
    weir_tensor *sources = malloc((c->n_sources + 1) * sizeof(*sources));
    char name[256], text[300];
    memcpy(sources, c->sources, c->n_sources * sizeof(*sources));
    for (size_t i = 0; i < c->n_sources; i += 7) {
        snprintf(name, sizeof(name), "%s.unknown", c->sources[i].name);
        snprintf(text, sizeof(text), "source %s: no row of family %s takes it", name,
                 c->family->name);
        sources[c->n_sources] = (weir_tensor){ name, WEIR_BF16, { 1, { 4 } }, NULL };
        assert_refused_by_name(c, layout, sources, c->n_sources + 1, text);
    }
    free(sources);
}

static void any_unknown_source_is_refused_by_name(void **state)
{
    (void)state;
    for_each_case("tiny", check_unknown_added);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_source_is_consumed_exactly_once),
        cmocka_unit_test(every_parameter_is_filled_exactly_once),
        cmocka_unit_test(every_naming_fills_the_same_parameters),
        cmocka_unit_test(norms_routers_biases_and_the_like_are_never_quantised),
        cmocka_unit_test(what_trainers_keep_in_fp32_is_taken_as_fp32),
        cmocka_unit_test(any_missing_source_is_refused_by_name),
        cmocka_unit_test(any_unknown_source_is_refused_by_name),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
