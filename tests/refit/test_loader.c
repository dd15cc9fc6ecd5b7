/* SPDX-License-Identifier: Apache-2.0 */
/* A checkpoint loader by itself: what it makes of tensors that are laid into its buffers, group by
 * group, against conversions of the whole; its memory, its order, its refusals.
 */
#include "refit/loader.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/alloc.h"
#include "base/error.h"
#include "base/pool.h"

static void must(weir_status status)
{
    if (status != WEIR_OK)
        fail_msg("%s: %s", weir_status_name(status), weir_last_error());
}

/* ---- a model ---------------------------------------------------------------------------------*/

typedef struct model {
    weir_settings settings;
    weir_tensor *sources;
    size_t n_sources;
    weir_mapping *engine;
    const weir_parameter *parameters;
    size_t n_parameters;
    unsigned char **live, **wanted; /* parallel to the parameters: made here, and by the mapping */
    weir_pool *pool;
    weir_work *work;
} model;

static uint64_t bytes_of(weir_dtype dtype, const weir_shape *shape)
{
    uint64_t n_bytes;
    must(weir_tensor_bytes(dtype, shape, &n_bytes));
    return n_bytes;
}

static void fill_sources(model *m)
{
    for (size_t t = 0; t < m->n_sources; t++) {
        weir_tensor *tensor = &m->sources[t];
        uint64_t n_bytes = bytes_of(tensor->dtype, &tensor->shape);
        uint32_t x = (uint32_t)t + 1;
        tensor->data = malloc(n_bytes);
        for (uint64_t i = 0; i < n_bytes / (tensor->dtype == WEIR_F32 ? 4 : 2); i++) {
            x = x * 1664525u + 1013904223u;
            if (tensor->dtype == WEIR_F32)
                ((float *)tensor->data)[i] = (float)(int32_t)x * 1e-10f;
            else
                ((uint16_t *)tensor->data)[i] =
                    (uint16_t)(0x3a00u + (x >> 23)) | (uint16_t)((x & 0x100u) << 7);
        }
    }
}

static void convert_whole(model *m)
{
    size_t n_entries;
    const weir_map_entry *entries = weir_mapping_entries(m->engine, &n_entries);
    m->live = calloc(m->n_parameters, sizeof(*m->live));
    m->wanted = calloc(m->n_parameters, sizeof(*m->wanted));
    for (size_t i = 0; i < m->n_parameters; i++) {
        uint64_t n_bytes = bytes_of(m->parameters[i].dtype, &m->parameters[i].shape);
        m->live[i] = calloc(1, n_bytes);
        m->wanted[i] = calloc(1, n_bytes);
    }
    for (size_t e = 0; e < n_entries; e++) {
        weir_entry_convert_args args = WEIR_ENTRY_CONVERT_ARGS_INIT;
        args.reference = true;
        for (size_t o = 0; o < entries[e].conversion->n_outputs; o++)
            args.outputs[o] = m->wanted[entries[e].first_parameter + o];
        must(weir_map_entry_convert(&entries[e], &args));
    }
}

static model open_model(const char *family, const char *preset)
{
    model m = { .settings.family = weir_strdup(family),
                .settings.conversion = weir_strdup("fp8_128x128") };
    char *text;
    must(weir_family_preset(family, preset, &text));
    must(weir_config_parse(text, preset, &m.settings.config));
    weir_string_free(text);
    must(weir_family_sources(family, m.settings.config, WEIR_NAMING_HF, &m.sources, &m.n_sources));
    fill_sources(&m);
    weir_mapping_options options = WEIR_MAPPING_OPTIONS_INIT;
    options.config = m.settings.config;
    options.conversion = "fp8_128x128";
    must(weir_mapping_open(&options, m.sources, m.n_sources, &m.engine));
    m.parameters = weir_mapping_parameters(m.engine, &m.n_parameters);
    convert_whole(&m);
    must(weir_pool_open(1, &m.pool));
    must(weir_work_open(WEIR_MEMORY_HOST, 0, m.pool, &m.work));
    return m;
}

static void close_model(model *m)
{
    for (size_t i = 0; i < m->n_parameters; i++) {
        free(m->live[i]);
        free(m->wanted[i]);
    }
    free(m->live);
    free(m->wanted);
    for (size_t t = 0; t < m->n_sources; t++)
        free(m->sources[t].data);
    weir_work_close(m->work);
    weir_pool_close(m->pool);
    weir_mapping_close(m->engine);
    weir_family_sources_free(m->sources);
    weir_settings_close(&m->settings);
}

static const weir_replica_mesh one_worker = { .tp = 1, .ep = 1, .dp = 1, .pp = 1 };

static weir_loader_options options_of(const model *m)
{
    return (weir_loader_options){ .settings = &m->settings,
                                  .mesh = &one_worker,
                                  .parameters = m->parameters,
                                  .n_parameters = m->n_parameters };
}

static weir_loader *must_load(const model *m)
{
    weir_loader_options options = options_of(m);
    weir_loader *loader = NULL;
    must(weir_loader_open(&options, &loader));
    return loader;
}

/* ---- one refit -------------------------------------------------------------------------------*/

static const weir_tensor *source_named(const model *m, const char *name)
{
    for (size_t t = 0; t < m->n_sources; t++) {
        if (strcmp(m->sources[t].name, name) == 0)
            return &m->sources[t];
    }
    fail_msg("the checkpoint has no %s", name);
    return NULL;
}

/* Lays every tensor of a group into its buffer. */
static void land(const model *m, weir_loader *loader, uint32_t group)
{
    assert_true(weir_loader_has_room(loader, group));
    for (uint32_t i = 0; i < loader->n_wanted; i++) {
        if (loader->tensors[i].group != group)
            continue;
        const weir_tensor *source = source_named(m, loader->wanted[i].name);
        assert_int_equal(source->dtype, loader->wanted[i].dtype);
        memcpy(weir_loader_at(loader, i), source->data, loader->tensors[i].n_bytes);
        weir_loader_landed(loader, group, loader->tensors[i].n_bytes);
    }
}

static void begin(weir_loader *loader)
{
    weir_loader_begin(loader);
    for (size_t i = 0; i < loader->n_wanted; i++)
        weir_loader_expect(loader, loader->tensors[i].group, loader->tensors[i].n_bytes);
}

static void refit(const model *m, weir_loader *loader, weir_undo *undo)
{
    bool taken;
    must(weir_loader_reserve(loader, m->work, &taken));
    begin(loader);
    for (uint32_t group = 0; group < loader->n_groups; group++) {
        assert_false(weir_loader_is_ready(loader));
        land(m, loader, group);
        assert_true(weir_loader_is_ready(loader));
        must(weir_loader_convert(loader, m->live, undo, 1000));
    }
    assert_false(weir_loader_is_ready(loader));
}

static void assert_live_is_wanted(const model *m)
{
    for (size_t i = 0; i < m->n_parameters; i++) {
        if (m->parameters[i].entry == SIZE_MAX)
            continue;
        uint64_t n_bytes = bytes_of(m->parameters[i].dtype, &m->parameters[i].shape);
        if (memcmp(m->live[i], m->wanted[i], n_bytes) != 0)
            fail_msg("%s differs", m->parameters[i].name);
    }
}

static void what_it_makes_equals_a_conversion_of_the_whole(void **state)
{
    (void)state;
    static const char *const families[] = { "qwen3", "qwen3_moe", "deepseek_v3", "nemotron_h" };
    for (size_t f = 0; f < sizeof(families) / sizeof(families[0]); f++) {
        model m = open_model(families[f], "ragged");
        weir_loader *loader = must_load(&m);
        refit(&m, loader, NULL);
        assert_live_is_wanted(&m);
        weir_loader_close(loader);
        close_model(&m);
    }
}

static void a_second_refit_allocates_nothing(void **state)
{
    (void)state;
    model m = open_model("qwen3_moe", "tiny");
    weir_loader *loader = must_load(&m);
    refit(&m, loader, NULL);
    uint64_t before = weir_alloc_count();
    refit(&m, loader, NULL);
    assert_int_equal(weir_alloc_count(), before);
    weir_loader_close(loader);
    close_model(&m);
}

static void groups_are_those_outside_the_layers_one_by_one_then_layers(void **state)
{
    (void)state;
    model m = open_model("qwen3", "tiny");
    weir_loader *loader = must_load(&m);
    int64_t layers;
    assert_true(weir_config_int(m.settings.config, "num_hidden_layers", &layers));
    uint32_t n_outside = 0;
    for (size_t i = 0; i < loader->n_wanted; i++)
        n_outside += strstr(loader->wanted[i].name, ".layers.") == NULL;
    assert_int_equal(loader->n_groups, layers + n_outside);
    for (size_t i = 0; i < loader->n_wanted; i++) {
        bool of_layer = strstr(loader->wanted[i].name, ".layers.") != NULL;
        assert_int_equal(of_layer, loader->tensors[i].group >= n_outside);
        assert_true(loader->tensors[i].at + loader->tensors[i].n_bytes <= loader->buffer_bytes);
    }
    weir_loader_close(loader);
    close_model(&m);
}

static void a_group_has_room_once_that_before_the_last_is_converted(void **state)
{
    (void)state;
    bool taken;
    model m = open_model("qwen3", "tiny");
    weir_loader *loader = must_load(&m);
    must(weir_loader_reserve(loader, m.work, &taken));
    assert_true(taken);
    begin(loader);
    assert_true(weir_loader_has_room(loader, 1));
    assert_false(weir_loader_has_room(loader, 2));
    land(&m, loader, 1);
    assert_false(weir_loader_is_ready(loader)); /* the first comes first */
    land(&m, loader, 0);
    must(weir_loader_convert(loader, m.live, NULL, 1000));
    assert_true(weir_loader_is_ready(loader));
    assert_true(weir_loader_has_room(loader, 2));
    assert_false(weir_loader_has_room(loader, 3));
    must(weir_loader_reserve(loader, m.work, &taken));
    assert_false(taken);
    weir_loader_close(loader);
    close_model(&m);
}

static void what_a_group_replaces_can_be_brought_back(void **state)
{
    (void)state;
    model m = open_model("qwen3", "tiny");
    weir_loader *loader = must_load(&m);
    weir_undo undo = { 0 };
    uint64_t n_bytes = 0;
    for (size_t i = 0; i < m.n_parameters; i++) {
        uint64_t parameter_bytes = bytes_of(m.parameters[i].dtype, &m.parameters[i].shape);
        memset(m.live[i], 0x5a, parameter_bytes);
        n_bytes += parameter_bytes;
    }
    must(weir_undo_begin(&undo, m.work, n_bytes));
    refit(&m, loader, &undo);
    assert_live_is_wanted(&m);
    must(weir_undo_run(&undo, 1000));
    for (size_t i = 0; i < m.n_parameters; i++) {
        uint64_t parameter_bytes = bytes_of(m.parameters[i].dtype, &m.parameters[i].shape);
        for (uint64_t b = 0; b < parameter_bytes; b++)
            assert_int_equal(m.live[i][b], 0x5a);
    }
    weir_undo_close(&undo);
    weir_loader_close(loader);
    close_model(&m);
}

/* Ranks that push one after the other: no group waits for two of them. */
static void groups_are_of_one_sender(void **state)
{
    (void)state;
    model m = open_model("qwen3_moe", "tiny");
    weir_loader *first = must_load(&m);
    uint32_t *senders = calloc(first->n_wanted, sizeof(*senders));
    for (size_t i = 0; i < first->n_wanted; i++)
        senders[i] = strstr(first->wanted[i].name, "down_proj") != NULL;
    weir_loader_options options = options_of(&m);
    options.senders = senders;
    weir_loader *loader = NULL;
    must(weir_loader_open(&options, &loader));
    uint32_t latest = 0;
    for (size_t i = 0; i < loader->n_wanted; i++) {
        if (senders[i] == 0 && loader->tensors[i].group > latest)
            latest = loader->tensors[i].group;
    }
    for (size_t i = 0; i < loader->n_wanted; i++)
        assert_true(senders[i] == 0 || loader->tensors[i].group > latest);
    refit(&m, loader, NULL);
    assert_live_is_wanted(&m);
    weir_loader_close(loader);
    for (size_t i = 0; i < first->n_wanted; i++)
        senders[i] = strstr(first->wanted[i].name, "k_proj") != NULL;
    assert_int_equal(weir_loader_open(&options, &loader), WEIR_ERR_UNSUPPORTED);
    assert_non_null(strstr(weir_last_error(), "comes from another rank than"));
    free(senders);
    weir_loader_close(first);
    close_model(&m);
}

/* ---- refusals --------------------------------------------------------------------------------*/

static void expect_refused(const model *m, weir_parameter *changed, const char *line)
{
    weir_loader_options options = options_of(m);
    weir_loader *loader = NULL;
    options.parameters = changed;
    assert_int_equal(weir_loader_open(&options, &loader), WEIR_ERR_LAYOUT);
    if (strstr(weir_last_error(), line) == NULL)
        fail_msg("got '%s', wanted '%s'", weir_last_error(), line);
    assert_null(loader);
}

static void parameters_that_the_config_does_not_make_are_refused_by_name(void **state)
{
    (void)state;
    model m = open_model("llama", "tiny");
    weir_parameter *changed = calloc(m.n_parameters, sizeof(*changed));
    memcpy(changed, m.parameters, m.n_parameters * sizeof(*changed));
    changed[0].name = "model.other";
    expect_refused(&m, changed, "is made of the checkpoint, the engine does not have it");
    changed[0] = m.parameters[0];
    changed[0].dtype = WEIR_F32;
    expect_refused(&m, changed, "the engine has F32");
    changed[0] = m.parameters[0];
    changed[0].compile_target = "cutlass";
    expect_refused(&m, changed, "the engine has it for cutlass");
    free(changed);
    changed = calloc(m.n_parameters + 1, sizeof(*changed));
    memcpy(changed, m.parameters, m.n_parameters * sizeof(*changed));
    changed[m.n_parameters] = m.parameters[0];
    changed[m.n_parameters].name = "model.surplus";
    m.n_parameters++;
    expect_refused(&m, changed, "model.surplus: the checkpoint makes 0 bytes of it");
    m.n_parameters--;
    free(changed);
    close_model(&m);
}

static void without_a_config_nothing_says_what_to_make(void **state)
{
    (void)state;
    weir_settings none = { 0 };
    weir_loader_options options = { .settings = &none, .mesh = &one_worker };
    weir_loader *loader = NULL;
    assert_int_equal(weir_loader_open(&options, &loader), WEIR_ERR_INVALID);
    assert_non_null(strstr(weir_last_error(), "config.json"));
}

static void memory_that_runs_out_is_said_and_given_back(void **state)
{
    (void)state;
    model m = open_model("llama", "tiny");
    static const weir_replica_mesh two = { .tp = 2, .ep = 1, .dp = 1, .pp = 1 };
    static const weir_replica_mesh *const meshes[] = { &one_worker, &two };
    for (int k = 0; k < 2; k++) {
        weir_status status = WEIR_ERR_NO_MEMORY;
        for (uint64_t n = 1; status == WEIR_ERR_NO_MEMORY; n++) {
            weir_loader_options options = options_of(&m);
            weir_loader *loader = NULL;
            bool taken;
            options.mesh = meshes[k];
            options.is_part = k == 1;
            weir_alloc_fail_at(n);
            status = weir_loader_open(&options, &loader);
            if (status == WEIR_OK)
                status = weir_loader_reserve(loader, m.work, &taken);
            weir_alloc_fail_at(0);
            weir_loader_close(loader);
        }
        /* The parameters are those of a whole engine. */
        assert_int_equal(status, k == 0 ? WEIR_OK : WEIR_ERR_LAYOUT);
    }
    close_model(&m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_it_makes_equals_a_conversion_of_the_whole),
        cmocka_unit_test(a_second_refit_allocates_nothing),
        cmocka_unit_test(groups_are_those_outside_the_layers_one_by_one_then_layers),
        cmocka_unit_test(a_group_has_room_once_that_before_the_last_is_converted),
        cmocka_unit_test(what_a_group_replaces_can_be_brought_back),
        cmocka_unit_test(groups_are_of_one_sender),
        cmocka_unit_test(parameters_that_the_config_does_not_make_are_refused_by_name),
        cmocka_unit_test(without_a_config_nothing_says_what_to_make),
        cmocka_unit_test(memory_that_runs_out_is_said_and_given_back),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
