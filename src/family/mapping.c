/* SPDX-License-Identifier: Apache-2.0 */
/* mapping.c - a family applied to one set of sources: opened once, read by every stop of a refit.
 *
 * bind.c finds the sources; here the entries become the list of engine parameters, with the
 * derived ones behind them.
 */
#include "family/mapping.h"

#include <string.h>

#include "base/alloc.h"
#include "base/error.h"
#include "base/options.h"
#include "family/bind.h"
#include "family/checkpoint_layout.h"

/* ---- parameters ------------------------------------------------------------------------------*/

static weir_status add_parameter(weir_mapping *m, size_t entry, size_t output)
{
    const weir_map_entry *e = &m->entries[entry];
    char name[WEIR_MODEL_NAME_BYTES + 64];
    weir_parameter *p = &m->parameters[m->n_parameters];
    weir_status status =
        weir_conversion_output_name(e->conversion, output, e->name, false, name, sizeof(name));
    if (status == WEIR_OK)
        status = weir_conversion_output_shape(e->conversion, output, &e->shape, &p->shape);
    if (status != WEIR_OK) {
        weir_error_prefix("%s", e->name);
        return status;
    }
    p->name = weir_arena_strdup(&m->arena, name);
    p->dtype = e->conversion->outputs[output].dtype;
    p->compile_target = e->conversion->compile_target;
    p->compile_metadata = e->conversion->compile_metadata;
    p->entry = entry;
    p->output = output;
    p->is_expert = m->rows[entry]->kind == WEIR_ROW_EXPERT;
    m->n_parameters++;
    return p->name != NULL ? WEIR_OK : WEIR_ERR_NO_MEMORY;
}

static bool has_derived(const weir_mapping *m, const weir_model *model, size_t entry)
{
    return model->config != NULL && model->family->mla.from != NULL &&
           strcmp(m->rows[entry]->dst, model->family->mla.from) == 0;
}

static weir_status allocate_parameters(weir_mapping *m, const weir_model *model)
{
    size_t n_outputs = 0, n_derived = 0;
    for (size_t i = 0; i < m->n_entries; i++) {
        n_outputs += m->entries[i].conversion->n_outputs;
        n_derived += has_derived(m, model, i) ? 2 : 0;
    }
    m->parameters = weir_arena_zeroed(&m->arena, n_outputs + n_derived, sizeof(m->parameters[0]));
    m->derived = weir_arena_zeroed(&m->arena, n_derived, sizeof(m->derived[0]));
    return m->parameters != NULL && m->derived != NULL ? WEIR_OK : WEIR_ERR_NO_MEMORY;
}

/* ---- derived parameters ----------------------------------------------------------------------*/

static weir_status read_dims(const weir_model *model, weir_derived *d)
{
    const weir_family_mla *mla = &model->family->mla;
    weir_status status = weir_model_number(model, mla->heads, mla->from, &d->n_heads);
    if (status == WEIR_OK)
        status = weir_model_number(model, mla->nope_dim, mla->from, &d->nope_dim);
    if (status == WEIR_OK)
        status = weir_model_number(model, mla->v_dim, mla->from, &d->v_dim);
    if (status == WEIR_OK)
        status = weir_model_number(model, mla->lora_rank, mla->from, &d->lora_rank);
    if (status == WEIR_OK && (d->nope_dim == 0 || d->v_dim == 0))
        status = weir_fail(WEIR_ERR_LAYOUT, "config.json: %s is 0, %s needs it",
                           d->nope_dim == 0 ? mla->nope_dim : mla->v_dim, mla->from);
    return status;
}

/* One of the two of a layer. The engine keeps both in bf16, whatever kv_b_proj is. */
static weir_status add_derived(weir_mapping *m, const weir_model *model, size_t entry,
                               weir_derived_kind kind)
{
    const weir_family_mla *mla = &model->family->mla;
    const weir_map_entry *e = &m->entries[entry];
    const weir_conversion *cast;
    weir_derived *d = &m->derived[m->n_derived];
    bool uv = kind == WEIR_DERIVED_MLA_W_UV;
    char name[WEIR_MODEL_NAME_BYTES];
    weir_status status = read_dims(model, d);
    if (status == WEIR_OK)
        status = weir_conversion_get("bf16_cast", &cast);
    if (status != WEIR_OK)
        return status;
    if (!weir_model_dst(model, e->layer, uv ? mla->w_uv : mla->w_uk_t, name))
        return weir_fail(WEIR_ERR_LAYOUT, "%s: too long a name", e->name);
    d->kind = kind;
    d->parameter = m->n_parameters;
    d->from = e->first_parameter;
    d->from_scale = e->conversion->n_outputs > 1 ? e->first_parameter + 1 : SIZE_MAX;
    m->n_derived++;
    m->parameters[m->n_parameters++] = (weir_parameter){
        .name = weir_arena_strdup(&m->arena, name),
        .dtype = WEIR_BF16,
        .shape = uv ? (weir_shape){ 3, { d->n_heads, d->lora_rank, d->v_dim } }
                    : (weir_shape){ 3, { d->n_heads, d->nope_dim, d->lora_rank } },
        .compile_target = cast->compile_target,
        .compile_metadata = cast->compile_metadata,
        .entry = SIZE_MAX,
    };
    return m->parameters[d->parameter].name != NULL ? WEIR_OK : WEIR_ERR_NO_MEMORY;
}

static weir_status list_parameters(weir_mapping *m, const weir_model *model)
{
    weir_status status = allocate_parameters(m, model);
    for (size_t i = 0; i < m->n_entries && status == WEIR_OK; i++) {
        m->entries[i].first_parameter = m->n_parameters;
        for (size_t o = 0; o < m->entries[i].conversion->n_outputs && status == WEIR_OK; o++)
            status = add_parameter(m, i, o);
    }
    for (size_t i = 0; i < m->n_entries && status == WEIR_OK; i++) {
        if (!has_derived(m, model, i))
            continue;
        status = add_derived(m, model, i, WEIR_DERIVED_MLA_W_UV);
        if (status == WEIR_OK)
            status = add_derived(m, model, i, WEIR_DERIVED_MLA_W_UK_T);
    }
    return status;
}

/* ---- opening ---------------------------------------------------------------------------------*/

static weir_status choose_conversion(const weir_mapping_options *options,
                                     const weir_conversion **out)
{
    const char *name = options->conversion;
    if (name != NULL && strcmp(name, "auto") != 0)
        return weir_conversion_get(name, out);
    if (options->config == NULL)
        return weir_conversion_get("bf16_cast", out);
    return weir_conversion_select(options->config, out);
}

static weir_status bind_engine(weir_mapping *m, const weir_mapping_options *options,
                               const weir_tensor *sources, size_t n_sources)
{
    weir_model model;
    weir_status status = weir_model_init(&model, options->family, options->layout, options->config);
    if (status == WEIR_OK)
        status = choose_conversion(options, &m->conversion);
    if (status == WEIR_OK)
        status = weir_mapping_bind(m, &model, options, sources, n_sources);
    return status == WEIR_OK ? list_parameters(m, &model) : status;
}

weir_status weir_mapping_open(const weir_mapping_options *given, const weir_tensor *sources,
                              size_t n_sources, weir_mapping **out)
{
    weir_mapping_options options;
    weir_status status =
        weir_options_read(given, "weir_mapping_options", &options, sizeof(options));
    if (status != WEIR_OK)
        return status;
    if (sources == NULL && n_sources > 0)
        return weir_fail(WEIR_ERR_INVALID, "mapping: %zu sources at NULL", n_sources);
    weir_mapping *m = weir_alloc_zeroed(1, sizeof(*m));
    if (m == NULL)
        return WEIR_ERR_NO_MEMORY;
    weir_arena_init(&m->arena, 0);
    m->unreadable = options.unreadable;
    bool checkpoint = options.layout != NULL && strcmp(options.layout, WEIR_LAYOUT_CHECKPOINT) == 0;
    status = checkpoint ? weir_checkpoint_layout_bind(m, &options, sources, n_sources)
                        : bind_engine(m, &options, sources, n_sources);
    if (status != WEIR_OK) {
        weir_mapping_close(m);
        return status;
    }
    *out = m;
    return WEIR_OK;
}

void weir_mapping_close(weir_mapping *mapping)
{
    if (mapping == NULL)
        return;
    weir_arena_close(&mapping->arena);
    weir_free(mapping);
}

/* ---- new pointers ----------------------------------------------------------------------------*/

weir_status weir_mapping_check_tied(const weir_tensor *head, const weir_tensor *embedding)
{
    uint64_t n_bytes;
    bool equal =
        head->dtype == embedding->dtype && weir_shape_equal(&head->shape, &embedding->shape);
    if (equal && head->data != NULL && embedding->data != NULL && head->data != embedding->data)
        equal = weir_tensor_bytes(head->dtype, &head->shape, &n_bytes) == WEIR_OK &&
                memcmp(head->data, embedding->data, n_bytes) == 0;
    if (equal)
        return WEIR_OK;
    return weir_fail(WEIR_ERR_LAYOUT,
                     "%s differs from %s, but config.json has tie_word_embeddings true", head->name,
                     embedding->name);
}

weir_status weir_mapping_rebind(weir_mapping *mapping, const weir_tensor *sources, size_t n_sources)
{
    weir_mapping *m = mapping;
    if (n_sources != m->n_given)
        return weir_fail(WEIR_ERR_LAYOUT, "%zu sources, there were %zu", n_sources, m->n_given);
    for (size_t i = 0; i < n_sources; i++) {
        const weir_tensor *a = &sources[i], *b = &m->given[i];
        if (strcmp(a->name, b->name) != 0 || a->dtype != b->dtype ||
            !weir_shape_equal(&a->shape, &b->shape))
            return weir_fail(WEIR_ERR_LAYOUT, "source %zu is %s, it was %s of another layout", i,
                             a->name, b->name);
    }
    if (m->tied[0] != SIZE_MAX && !m->unreadable) {
        weir_status status = weir_mapping_check_tied(&sources[m->tied[0]], &sources[m->tied[1]]);
        if (status != WEIR_OK)
            return status;
    }
    if (n_sources > 0)
        memcpy(m->given, sources, n_sources * sizeof(m->given[0]));
    for (size_t i = 0; i < m->n_bound; i++) {
        m->bound[i].name = m->given[m->origin[i]].name;
        m->bound[i].data = m->given[m->origin[i]].data;
        if (m->offset != NULL && m->bound[i].data != NULL)
            m->bound[i].data = (unsigned char *)m->bound[i].data + m->offset[i];
    }
    return WEIR_OK;
}

/* ---- reading ---------------------------------------------------------------------------------*/

const weir_map_entry *weir_mapping_entries(const weir_mapping *mapping, size_t *out_n)
{
    *out_n = mapping->n_entries;
    return mapping->entries;
}

const weir_parameter *weir_mapping_parameters(const weir_mapping *mapping, size_t *out_n)
{
    *out_n = mapping->n_parameters;
    return mapping->parameters;
}

const weir_derived *weir_mapping_derived(const weir_mapping *mapping, size_t *out_n)
{
    *out_n = mapping->n_derived;
    return mapping->derived;
}

const weir_conversion *weir_mapping_conversion(const weir_mapping *mapping)
{
    return mapping->conversion;
}

weir_convert_args weir_map_entry_args(const weir_map_entry *entry)
{
    weir_convert_args args = WEIR_CONVERT_ARGS_INIT;
    args.conversion = entry->conversion;
    args.sources = entry->sources;
    args.n_sources = entry->n_sources;
    args.n_experts = entry->n_experts;
    args.axis = entry->axis;
    return args;
}

weir_status weir_map_entry_convert(const weir_map_entry *entry,
                                   const weir_entry_convert_args *given)
{
    weir_entry_convert_args args;
    weir_status status = weir_options_read(given, "weir_entry_convert_args", &args, sizeof(args));
    if (status != WEIR_OK)
        return status;
    weir_convert_args whole = weir_map_entry_args(entry);
    memcpy(whole.outputs, args.outputs, sizeof(whole.outputs));
    whole.digests = args.digests;
    whole.propagate = args.propagate;
    whole.round_masters = !args.keep_masters;
    whole.reference = args.reference;
    whole.pool = args.pool;
    return weir_convert(&whole);
}
