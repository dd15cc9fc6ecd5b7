/* SPDX-License-Identifier: Apache-2.0 */
/* Layout "checkpoint": of every family, from every naming, the tensors that Hugging Face names; and
 * what an engine makes of those is what it makes of the trainer's own.
 */
#include "family/checkpoint_layout.h"

#include <stdio.h>

#include "family/source_set.h"

/* A preset's tensors in one naming, with data when they are to be converted. */
typedef struct model_case {
    const char *family;
    weir_config *config;
    weir_tensor *sources;
    size_t n_sources;
} model_case;

static void fill(weir_tensor *tensor, uint32_t salt)
{
    uint64_t n_elements;
    assert_int_equal(weir_shape_elements(&tensor->shape, &n_elements), WEIR_OK);
    tensor->data = set_data(tensor->dtype, n_elements, salt);
}

static model_case open_case(const char *family, const char *preset, weir_naming naming,
                            bool with_data)
{
    model_case c = { .family = family };
    char *text;
    assert_int_equal(weir_family_preset(family, preset, &text), WEIR_OK);
    assert_int_equal(weir_config_parse(text, preset, &c.config), WEIR_OK);
    weir_string_free(text);
    if (weir_family_sources(family, c.config, naming, &c.sources, &c.n_sources) != WEIR_OK)
        fail_msg("%s %s naming %d: %s", family, preset, (int)naming, weir_last_error());
    for (size_t i = 0; i < c.n_sources && with_data; i++)
        fill(&c.sources[i], (uint32_t)i);
    return c;
}

static void close_case(model_case *c)
{
    for (size_t i = 0; i < c->n_sources; i++)
        free(c->sources[i].data);
    weir_family_sources_free(c->sources);
    weir_config_close(c->config);
}

static weir_mapping *must_open(const model_case *c, const char *layout, const weir_tensor *sources,
                               size_t n_sources)
{
    weir_mapping *mapping = NULL;
    weir_mapping_options options = WEIR_MAPPING_OPTIONS_INIT;
    options.family = c->family;
    options.config = c->config;
    options.layout = layout;
    options.conversion = "bf16_cast";
    if (weir_mapping_open(&options, sources, n_sources, &mapping) != WEIR_OK)
        fail_msg("%s layout %s: %s", c->family, layout ? layout : "(default)", weir_last_error());
    return mapping;
}

static void for_each_family(void (*check)(const char *family, const char *const *presets))
{
    weir_family_info families[SET_MAX_FAMILIES];
    size_t n_families = weir_families(families, SET_MAX_FAMILIES);
    for (size_t f = 0; f < n_families; f++)
        check(families[f].name, families[f].presets);
}

/* ---- names -----------------------------------------------------------------------------------*/

static const weir_tensor *find_source(const model_case *c, const char *name)
{
    for (size_t i = 0; i < c->n_sources; i++) {
        if (strcmp(c->sources[i].name, name) == 0)
            return &c->sources[i];
    }
    return NULL;
}

static void check_parameters(const weir_mapping *mapping, const model_case *hf)
{
    size_t n, n_derived;
    const weir_parameter *p = weir_mapping_parameters(mapping, &n);
    assert_int_equal(n, hf->n_sources);
    weir_mapping_derived(mapping, &n_derived);
    assert_int_equal(n_derived, 0);
    for (size_t i = 0; i < n; i++) {
        const weir_tensor *named = find_source(hf, p[i].name);
        if (named == NULL)
            fail_msg("%s: %s is no tensor of the checkpoint", hf->family, p[i].name);
        assert_int_equal(p[i].dtype, named->dtype);
        assert_int_equal(p[i].entry, i);
        assert_string_equal(p[i].compile_target, "hf_raw");
        assert_string_equal(p[i].compile_metadata, WEIR_CHECKPOINT_METADATA);
    }
}

/* Nothing of what the trainer has is left out, nothing of it is there twice. */
static void check_elements(const weir_mapping *mapping, const model_case *c)
{
    size_t n;
    uint64_t n_elements, n_given = 0, n_made = 0;
    const weir_parameter *p = weir_mapping_parameters(mapping, &n);
    for (size_t i = 0; i < n; i++) {
        assert_int_equal(weir_shape_elements(&p[i].shape, &n_elements), WEIR_OK);
        n_made += n_elements;
    }
    for (size_t i = 0; i < c->n_sources; i++) {
        assert_int_equal(weir_shape_elements(&c->sources[i].shape, &n_elements), WEIR_OK);
        n_given += n_elements;
    }
    assert_int_equal(n_made, n_given);
}

static void check_order(const weir_mapping *mapping)
{
    size_t n;
    const weir_map_entry *entries = weir_mapping_entries(mapping, &n);
    for (size_t i = 1; i < n; i++)
        assert_true(entries[i - 1].layer <= entries[i].layer);
}

/* Names of the largest models are those of the small ones, many times. */
#define MOST_SOURCES 2000u

static void check_names(const char *family, const char *const *presets)
{
    for (size_t p = 0; presets[p] != NULL; p++) {
        model_case hf = open_case(family, presets[p], WEIR_NAMING_HF, false);
        for (int naming = 0; naming < 3 && hf.n_sources <= MOST_SOURCES; naming++) {
            model_case c = open_case(family, presets[p], (weir_naming)naming, false);
            weir_mapping *m = must_open(&c, WEIR_LAYOUT_CHECKPOINT, c.sources, c.n_sources);
            check_parameters(m, &hf);
            check_elements(m, &c);
            check_order(m);
            weir_mapping_close(m);
            close_case(&c);
        }
        close_case(&hf);
    }
}

static void every_naming_of_every_family_becomes_the_same_checkpoint(void **state)
{
    (void)state;
    for_each_family(check_names);
}

/* ---- bytes -----------------------------------------------------------------------------------*/

/* Every output of a mapping, one behind the other. */
static unsigned char *convert_all(const weir_mapping *mapping, uint64_t *out_bytes,
                                  weir_tensor *tensors)
{
    size_t n_entries, n_parameters;
    uint64_t n_bytes = 0, total_bytes = 0;
    const weir_map_entry *entries = weir_mapping_entries(mapping, &n_entries);
    const weir_parameter *p = weir_mapping_parameters(mapping, &n_parameters);
    for (size_t i = 0; i < n_parameters; i++) {
        assert_int_equal(weir_tensor_bytes(p[i].dtype, &p[i].shape, &n_bytes), WEIR_OK);
        total_bytes += (n_bytes + 15) / 16 * 16;
    }
    unsigned char *data = calloc(1, total_bytes + 1), *at = data;
    assert_non_null(data);
    for (size_t i = 0; i < n_entries; i++) {
        size_t number = entries[i].first_parameter;
        const weir_parameter *parameter = &p[number];
        weir_entry_convert_args args = WEIR_ENTRY_CONVERT_ARGS_INIT;
        args.outputs[0] = at;
        if (weir_map_entry_convert(&entries[i], &args) != WEIR_OK)
            fail_msg("%s: %s", parameter->name, weir_last_error());
        if (tensors != NULL)
            tensors[number] =
                (weir_tensor){ parameter->name, parameter->dtype, parameter->shape, at };
        assert_int_equal(weir_tensor_bytes(parameter->dtype, &parameter->shape, &n_bytes), WEIR_OK);
        at += (n_bytes + 15) / 16 * 16;
    }
    *out_bytes = total_bytes;
    return data;
}

static void check_bytes(const char *family, const char *const *presets)
{
    (void)presets;
    for (int naming = 0; naming < 3; naming++) {
        uint64_t direct_bytes, wire_bytes, made_bytes;
        size_t n;
        model_case c = open_case(family, "tiny", (weir_naming)naming, true);
        weir_mapping *direct = must_open(&c, NULL, c.sources, c.n_sources);
        weir_mapping *wire = must_open(&c, WEIR_LAYOUT_CHECKPOINT, c.sources, c.n_sources);
        unsigned char *wanted = convert_all(direct, &direct_bytes, NULL);
        weir_mapping_parameters(wire, &n);
        weir_tensor *tensors = calloc(n, sizeof(*tensors));
        unsigned char *sent = convert_all(wire, &wire_bytes, tensors);
        weir_mapping *engine = must_open(&c, NULL, tensors, n);
        unsigned char *made = convert_all(engine, &made_bytes, NULL);
        assert_int_equal(made_bytes, direct_bytes);
        if (memcmp(made, wanted, made_bytes) != 0)
            fail_msg("%s naming %d: the engine's bytes differ", family, naming);
        free(made);
        weir_mapping_close(engine);
        free(sent);
        free(tensors);
        free(wanted);
        weir_mapping_close(wire);
        weir_mapping_close(direct);
        close_case(&c);
    }
}

static void an_engine_makes_the_same_of_the_checkpoint_as_of_the_trainers_tensors(void **state)
{
    (void)state;
    for_each_family(check_bytes);
}

static void new_pointers_move_the_slices_too(void **state)
{
    (void)state;
    uint64_t n_bytes;
    model_case c = open_case("glm_moe_dsa", "tiny", WEIR_NAMING_STACKED, true);
    model_case other = open_case("glm_moe_dsa", "tiny", WEIR_NAMING_STACKED, true);
    for (size_t i = 0; i < other.n_sources; i++) {
        free(other.sources[i].data);
        fill(&other.sources[i], (uint32_t)i + 1000);
    }
    weir_mapping *m = must_open(&c, WEIR_LAYOUT_CHECKPOINT, c.sources, c.n_sources);
    weir_mapping *wanted =
        must_open(&other, WEIR_LAYOUT_CHECKPOINT, other.sources, other.n_sources);
    assert_int_equal(weir_mapping_rebind(m, other.sources, other.n_sources), WEIR_OK);
    unsigned char *a = convert_all(m, &n_bytes, NULL), *b = convert_all(wanted, &n_bytes, NULL);
    assert_memory_equal(a, b, n_bytes);
    free(a);
    free(b);
    weir_mapping_close(wanted);
    weir_mapping_close(m);
    close_case(&other);
    close_case(&c);
}

/* ---- refusals --------------------------------------------------------------------------------*/

static void without_a_config_nothing_says_the_names(void **state)
{
    (void)state;
    weir_mapping *mapping = NULL;
    model_case c = open_case("llama", "tiny", WEIR_NAMING_HF, false);
    weir_mapping_options options = WEIR_MAPPING_OPTIONS_INIT;
    options.family = "llama";
    options.layout = WEIR_LAYOUT_CHECKPOINT;
    assert_int_equal(weir_mapping_open(&options, c.sources, c.n_sources, &mapping),
                     WEIR_ERR_INVALID);
    assert_non_null(strstr(weir_last_error(), "needs a config.json"));
    assert_null(mapping);
    close_case(&c);
}

static void a_missing_source_is_named_as_ever(void **state)
{
    (void)state;
    weir_mapping *mapping = NULL;
    model_case c = open_case("llama", "tiny", WEIR_NAMING_HF, false);
    weir_mapping_options options = WEIR_MAPPING_OPTIONS_INIT;
    options.config = c.config;
    options.layout = WEIR_LAYOUT_CHECKPOINT;
    assert_int_equal(weir_mapping_open(&options, c.sources + 1, c.n_sources - 1, &mapping),
                     WEIR_ERR_LAYOUT);
    assert_non_null(strstr(weir_last_error(), c.sources[0].name));
    close_case(&c);
}

static void memory_that_runs_out_is_said_and_given_back(void **state)
{
    (void)state;
    model_case c = open_case("llama", "tiny", WEIR_NAMING_HF, false);
    weir_mapping_options options = WEIR_MAPPING_OPTIONS_INIT;
    options.config = c.config;
    options.layout = WEIR_LAYOUT_CHECKPOINT;
    weir_status status = WEIR_ERR_NO_MEMORY;
    for (uint64_t n = 1; status == WEIR_ERR_NO_MEMORY; n++) {
        weir_mapping *mapping = NULL;
        weir_alloc_fail_at(n);
        status = weir_mapping_open(&options, c.sources, c.n_sources, &mapping);
        weir_alloc_fail_at(0);
        weir_mapping_close(mapping);
    }
    assert_int_equal(status, WEIR_OK);
    close_case(&c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_naming_of_every_family_becomes_the_same_checkpoint),
        cmocka_unit_test(an_engine_makes_the_same_of_the_checkpoint_as_of_the_trainers_tensors),
        cmocka_unit_test(new_pointers_move_the_slices_too),
        cmocka_unit_test(without_a_config_nothing_says_the_names),
        cmocka_unit_test(a_missing_source_is_named_as_ever),
        cmocka_unit_test(memory_that_runs_out_is_said_and_given_back),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
