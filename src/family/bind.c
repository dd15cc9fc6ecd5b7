/* SPDX-License-Identifier: Apache-2.0 */
/* bind.c - row by row: which sources are there, do they fit, what do they make.
 *
 * Differences do not stop the walk: the first one becomes the error line, the others are counted,
 * so that one look tells a wrong file from a wrong tensor. Only a broken config, an unknown
 * conversion and memory end it at once.
 */
#include "family/bind.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/error.h"
#include "family/source_index.h"

typedef struct binder {
    weir_mapping *mapping;
    const weir_model *model;
    weir_source_index index;
    size_t *found;    /* sources of the row at hand, expert by expert */
    size_t embedding; /* that a tied head is made of; SIZE_MAX: there is none */
    int naming; /* the one that most sources have, to word what is missing; -1: not asked for yet */
    weir_error_line first; /* problem */
    size_t n_problems;
} binder;

/* One row in one layer. */
typedef struct row_site {
    const weir_family_row *row;
    int layer;
    uint64_t n_experts; /* of this layer, as far as they are worth looking for */
    const char *dst;    /* full name, in the mapping's arena once it is an entry */
    const weir_row_source *sources;
    size_t n_sources;   /* per expert when `each` */
    size_t n_found;     /* entries of binder.found: all experts' */
    weir_naming naming; /* of the sources */
    bool each;          /* one source per expert */
} row_site;

static void problem(binder *b, const char *format, ...) __attribute__((format(printf, 2, 3)));

static void problem(binder *b, const char *format, ...)
{
    if (b->n_problems++ > 0)
        return;
    va_list args;
    va_start(args, format);
    vsnprintf(b->first.text, sizeof(b->first.text) - 64, format, args);
    va_end(args);
}

/* ---- which sources are there -----------------------------------------------------------------*/

/* Looks up all sources of a row under one naming. Returns how many are there. */
static size_t look_up(binder *b, row_site *site, weir_naming naming)
{
    char name[WEIR_MODEL_NAME_BYTES];
    size_t n = 0, n_present = 0;
    site->naming = naming;
    site->sources = weir_row_sources(site->row, naming);
    site->each = strstr(site->sources[0].name, "{e}") != NULL;
    for (site->n_sources = 0; site->sources[site->n_sources].name != NULL;)
        site->n_sources++;
    uint64_t n_experts = site->each ? site->n_experts : 1;
    for (uint64_t e = 0; e < n_experts; e++) {
        for (size_t s = 0; s < site->n_sources; s++, n++) {
            bool fits = weir_model_name(b->model, site->layer, site->sources[s].name, e, name);
            b->found[n] = fits ? weir_source_index_find(&b->index, name) : SIZE_MAX;
            n_present += b->found[n] != SIZE_MAX;
        }
    }
    site->n_found = n;
    return n_present;
}

static void take_found(binder *b, const row_site *site)
{
    for (size_t i = 0; i < site->n_found; i++) {
        if (b->found[i] != SIZE_MAX)
            b->index.states[b->found[i]] = WEIR_SOURCE_TAKEN;
    }
}

static size_t first_present(const binder *b, const row_site *site)
{
    size_t i = 0;
    while (i < site->n_found && b->found[i] == SIZE_MAX)
        i++;
    return b->found[i];
}

/* "DST needs A (there) and B (missing)". */
static void complain_partial(binder *b, const row_site *site)
{
    char text[WEIR_ERROR_TEXT], name[WEIR_MODEL_NAME_BYTES];
    size_t used = 0, missing = 0;
    while (missing + 1 < site->n_found && b->found[missing] != SIZE_MAX)
        missing++;
    uint64_t expert = site->n_sources > 0 ? missing / site->n_sources : 0;
    text[0] = '\0';
    for (size_t s = 0; s < site->n_sources && used < sizeof(text); s++) {
        size_t at = expert * site->n_sources + s;
        bool there = at < site->n_found && b->found[at] != SIZE_MAX;
        weir_model_source_name(b->model, site->layer, site->sources[s].name, expert, site->naming,
                               name);
        int n = snprintf(text + used, sizeof(text) - used, "%s%s (%s)", s > 0 ? " and " : "", name,
                         there ? "there" : "missing");
        used += n > 0 ? (size_t)n : 0;
    }
    if (site->each && b->model->config != NULL)
        problem(b, "%s needs %s: expert %" PRIu64 " of %" PRIu64, site->dst, text, expert,
                b->model->n_experts);
    else
        problem(b, "%s needs %s", site->dst, text);
}

/* Sources of a layer (-1: outside the layers) that are there under one naming. Of experts it looks
 * for the first alone. */
static size_t count_named(binder *b, int layer, weir_naming naming)
{
    const weir_family_row *tables[WEIR_MODEL_TABLES];
    size_t n_tables = weir_model_tables(b->model, layer, tables), n = 0;
    for (size_t t = 0; t < n_tables; t++) {
        for (const weir_family_row *row = tables[t]; row->dst != NULL; row++) {
            row_site site = { .row = row, .layer = layer, .n_experts = 1 };
            n += look_up(b, &site, naming);
        }
    }
    return n;
}

/* Leaves nothing of what was looked up before. */
static weir_naming usual_naming(binder *b)
{
    size_t most = 0;
    int usual = b->naming;
    for (int naming = 0; naming < WEIR_N_NAMINGS && b->naming < 0; naming++) {
        size_t n = count_named(b, -1, (weir_naming)naming);
        for (size_t i = 0; i < b->index.n_layers; i++)
            n += count_named(b, b->index.layers[i].layer, (weir_naming)naming);
        if (n > most || naming == 0) {
            most = n;
            usual = naming;
        }
    }
    b->naming = usual;
    return (weir_naming)usual;
}

/* Decides the naming of a row by what is there. False: the row makes no entry. */
static bool choose_naming(binder *b, row_site *site)
{
    int chosen = -1;
    size_t n_present = 0, witness = 0;
    for (int naming = 0; naming < WEIR_N_NAMINGS; naming++) {
        if (site->row->sources[naming][0].name == NULL)
            continue;
        size_t n = look_up(b, site, (weir_naming)naming);
        if (n == 0)
            continue;
        take_found(b, site);
        if (chosen >= 0) {
            problem(b, "%s: two namings at once: %s and %s", site->dst,
                    b->index.sources[witness].name, b->index.sources[first_present(b, site)].name);
            return false;
        }
        chosen = naming;
        n_present = n;
        witness = first_present(b, site);
    }
    if (chosen < 0 && b->model->config == NULL)
        return false;
    look_up(b, site, chosen >= 0 ? (weir_naming)chosen : usual_naming(b));
    uint64_t wanted =
        site->each && b->model->config != NULL ? b->model->n_experts : site->n_experts;
    if (chosen < 0 || n_present != site->n_sources * (site->each ? wanted : 1)) {
        complain_partial(b, site);
        return false;
    }
    return true;
}

/* ---- do they fit -----------------------------------------------------------------------------*/

static weir_status pinned_conversion(binder *b, const row_site *site, const weir_conversion **out)
{
    const char *name = site->row->conversion;
    if (name == NULL) {
        *out = b->mapping->conversion;
        return WEIR_OK;
    }
    bool copies_f32 = strcmp(name, WEIR_COPY_F32) == 0;
    if (!copies_f32 && strcmp(name, WEIR_COPY) != 0)
        return weir_conversion_get(name, out);
    weir_dtype dtype = b->index.sources[b->found[0]].dtype;
    if (b->model->config != NULL && copies_f32) {
        dtype = WEIR_F32;
    } else if (b->model->config != NULL) {
        weir_status status = weir_model_dtype(b->model, &dtype);
        if (status != WEIR_OK)
            return status;
    }
    if (dtype == WEIR_BF16 || dtype == WEIR_F32)
        return weir_conversion_get(dtype == WEIR_F32 ? "fp32_cast" : "bf16_cast", out);
    problem(b, "%s is kept in the dtype %s %s, expected BF16 or F32", site->dst,
            b->model->config != NULL ? "of config.json," : "of its source,",
            weir_dtype_name(dtype));
    *out = NULL;
    return WEIR_OK;
}

/* Removes the axis of one that some trainers keep in front. */
static weir_shape squeezed(const weir_shape *shape)
{
    weir_shape out = { .rank = shape->rank - 1 };
    memcpy(out.dim, shape->dim + 1, out.rank * sizeof(out.dim[0]));
    return out;
}

static bool check_dtype(binder *b, const row_site *site, const weir_tensor *source,
                        const weir_conversion *conversion)
{
    if ((conversion->sources & WEIR_DTYPE_BIT(source->dtype)) != 0)
        return true;
    char known[128];
    size_t used = 0;
    for (int d = 1; d < WEIR_DTYPE_END && used < sizeof(known); d++) {
        if ((conversion->sources & WEIR_DTYPE_BIT(d)) == 0)
            continue;
        int n = snprintf(known + used, sizeof(known) - used, "%s%s", used > 0 ? ", " : "",
                         weir_dtype_name((weir_dtype)d));
        used += n > 0 ? (size_t)n : 0;
    }
    problem(b, "%s: source %s is %s, %s takes %s", site->dst, source->name,
            weir_dtype_name(source->dtype), conversion->name, used > 0 ? known : "nothing");
    return false;
}

/* Checks a source's shape against the table (rank) and the config (all axes), and gives it without
 * the axis of one. False after a problem. */
static bool check_shape(binder *b, const row_site *site, const weir_row_source *expected,
                        const weir_shape *config_shape, weir_tensor *view)
{
    char got[WEIR_SHAPE_TEXT], want[WEIR_SHAPE_TEXT];
    bool squeeze;
    uint32_t rank = weir_shape_expression_rank(expected->shape, &squeeze);
    weir_shape config = *config_shape;
    weir_shape_text(&view->shape, got, sizeof(got));
    if (squeeze) {
        if (view->shape.rank == rank && view->shape.dim[0] == 1)
            view->shape = squeezed(&view->shape);
        rank--;
        if (b->model->config != NULL)
            config = squeezed(&config);
    }
    if (view->shape.rank != rank) {
        problem(b, "%s: source %s has shape %s, expected %u axes (%s)", site->dst, view->name, got,
                rank, expected->shape);
        return false;
    }
    if (b->model->config != NULL && !weir_shape_equal(&view->shape, &config)) {
        problem(b, "%s: source %s has shape %s, config.json makes it %s (%s)", site->dst,
                view->name, got, weir_shape_text(&config, want, sizeof(want)), expected->shape);
        return false;
    }
    uint64_t n_elements;
    if (weir_shape_elements(&view->shape, &n_elements) != WEIR_OK || n_elements == 0) {
        problem(b, "%s: source %s has the impossible shape %s", site->dst, view->name, got);
        return false;
    }
    return true;
}

/* All axes but the joined one must agree; experts one by one must agree on all. */
static bool check_agreement(binder *b, const row_site *site, const weir_tensor *views)
{
    char got[WEIR_SHAPE_TEXT], want[WEIR_SHAPE_TEXT];
    uint32_t joined = site->each ? 0 : site->row->axis;
    for (size_t i = 1; i < site->n_found; i++) {
        const weir_tensor *like = &views[site->each ? i % site->n_sources : 0];
        bool equal = true;
        for (uint32_t d = 0; d < views[i].shape.rank; d++)
            equal &=
                (d == joined && i < site->n_sources) || views[i].shape.dim[d] == like->shape.dim[d];
        if (site->each && equal)
            equal = views[i].shape.dim[1] == views[0].shape.dim[1];
        if (!equal) {
            like = site->each && i < site->n_sources ? &views[0] : like;
            problem(b, "%s: source %s has shape %s, which does not fit %s with %s", site->dst,
                    views[i].name, weir_shape_text(&views[i].shape, got, sizeof(got)), like->name,
                    weir_shape_text(&like->shape, want, sizeof(want)));
            return false;
        }
    }
    return true;
}

/* ---- what they make --------------------------------------------------------------------------*/

static bool join_shapes(const row_site *site, const weir_tensor *views, weir_shape *out)
{
    weir_shape shape = views[0].shape;
    uint32_t joined = site->each ? 0 : site->row->axis;
    for (size_t s = 1; s < site->n_sources; s++) {
        if (__builtin_add_overflow(shape.dim[joined], views[s].shape.dim[joined],
                                   &shape.dim[joined]))
            return false;
    }
    if (site->each) {
        shape = (weir_shape){ 3, { site->n_found / site->n_sources, shape.dim[0], shape.dim[1] } };
    }
    uint64_t n_bytes;
    *out = shape;
    return weir_tensor_bytes(WEIR_F64, &shape, &n_bytes) == WEIR_OK;
}

/* One number of a part; 0 where the table gives no expression. */
static weir_status part_number(const binder *b, const row_site *site, const char *expression,
                               uint64_t *out)
{
    *out = 0;
    return expression != NULL
               ? weir_model_layer_number(b->model, site->layer, expression, site->row->dst, out)
               : WEIR_OK;
}

/* The parts are what the row says, else the sources as Hugging Face has them, whatever this trainer
 * stacks. Without a config parts of the row's own have no size, and nothing can be cut. */
static weir_status describe_cut(const binder *b, const row_site *site, weir_map_entry *entry)
{
    const weir_family_row *row = site->row;
    const weir_row_source *sources = weir_row_sources(row, WEIR_NAMING_HF);
    bool counted = row->parts[0] != NULL;
    entry->cut = counted && b->model->config == NULL ? WEIR_CUT_NONE : row->cut;
    counted &= b->model->config != NULL;
    while (entry->n_parts < WEIR_MAX_PARTS &&
           (counted ? row->parts[entry->n_parts] != NULL : sources[entry->n_parts].name != NULL))
        entry->n_parts++;
    for (size_t p = 0; p < entry->n_parts && b->model->config != NULL; p++) {
        uint64_t units = 0;
        weir_status status = part_number(b, site, row->units[p], &units);
        if (status == WEIR_OK)
            status = part_number(b, site, row->parts[p], &entry->part_rows[p]);
        if (status != WEIR_OK)
            return status;
        if (units > UINT32_MAX)
            return weir_fail(WEIR_ERR_LAYOUT, "config.json: %s is %" PRIu64 ", too many",
                             row->units[p], units);
        entry->units[p] = (uint32_t)units;
    }
    return WEIR_OK;
}

static weir_status add_entry(binder *b, const row_site *site, const weir_conversion *conversion,
                             const weir_shape *shape)
{
    weir_mapping *m = b->mapping;
    const char *name = weir_arena_strdup(&m->arena, site->dst);
    if (name == NULL)
        return WEIR_ERR_NO_MEMORY;
    weir_map_entry *entry = &m->entries[m->n_entries];
    m->rows[m->n_entries++] = site->row;
    *entry = (weir_map_entry){
        .name = name,
        .conversion = conversion,
        .sources = m->bound + m->n_bound,
        .n_sources = site->n_sources,
        .n_experts = site->each ? site->n_found / site->n_sources : 0,
        .axis = site->row->axis,
        .keep = site->row->conversion != NULL,
        .layer = site->layer,
        .shape = *shape,
        .bundle = m->n_entries - 1,
    };
    m->n_bound += site->n_found;
    return describe_cut(b, site, entry);
}

static weir_status config_shapes(const binder *b, const row_site *site,
                                 weir_shape shapes[WEIR_ROW_SOURCES])
{
    for (size_t s = 0; s < site->n_sources && b->model->config != NULL; s++) {
        weir_status status = weir_model_shape(b->model, site->layer, site->sources[s].shape,
                                              site->sources[s].name, &shapes[s]);
        if (status != WEIR_OK)
            return status;
    }
    return WEIR_OK;
}

static weir_status bind_found(binder *b, row_site *site)
{
    weir_mapping *m = b->mapping;
    weir_shape shapes[WEIR_ROW_SOURCES] = { { 0 } };
    const weir_conversion *conversion = NULL;
    weir_status status = pinned_conversion(b, site, &conversion);
    if (status == WEIR_OK)
        status = config_shapes(b, site, shapes);
    if (status != WEIR_OK || conversion == NULL)
        return status;
    weir_tensor *views = m->bound + m->n_bound;
    for (size_t i = 0; i < site->n_found; i++) {
        size_t s = i % site->n_sources;
        views[i] = b->index.sources[b->found[i]];
        m->origin[m->n_bound + i] = b->found[i];
        if (!check_dtype(b, site, &views[i], conversion) ||
            !check_shape(b, site, &site->sources[s], &shapes[s], &views[i]))
            return WEIR_OK;
    }
    weir_shape shape;
    if (!check_agreement(b, site, views))
        return WEIR_OK;
    if (!join_shapes(site, views, &shape)) {
        problem(b, "%s: its sources together exceed 64 bits", site->dst);
        return WEIR_OK;
    }
    return add_entry(b, site, conversion, &shape);
}

/* A tied parameter is not the engine's: its source may be there, but only with the same bytes. */
static weir_status skip_tied(binder *b, const weir_family_row *row)
{
    size_t head = weir_source_index_find(&b->index, row->sources[WEIR_NAMING_HF][0].name);
    size_t embedding = weir_source_index_find(&b->index, row->tied_with);
    b->embedding = embedding;
    if (head == SIZE_MAX)
        return WEIR_OK;
    b->index.states[head] = WEIR_SOURCE_TAKEN;
    if (embedding == SIZE_MAX)
        return WEIR_OK; /* whose row says that it is missing */
    b->mapping->tied[0] = head;
    b->mapping->tied[1] = embedding;
    if (b->mapping->unreadable)
        return WEIR_OK;
    return weir_mapping_check_tied(&b->index.sources[head], &b->index.sources[embedding]);
}

static weir_status bind_row(binder *b, const weir_family_row *row, int layer,
                            const weir_source_layer *experts)
{
    if (!weir_model_row_applies(b->model, row))
        return row->tied_with != NULL && b->model->tied ? skip_tied(b, row) : WEIR_OK;
    char dst[WEIR_MODEL_NAME_BYTES];
    row_site site = { .row = row, .layer = layer, .dst = dst };
    if (!weir_model_dst(b->model, layer, row->dst, dst))
        return weir_fail(WEIR_ERR_LAYOUT, "%s: its name in layer %d is too long", row->dst, layer);
    if (experts != NULL) {
        /* n sources cannot be more than n experts: one further look finds the gap. */
        uint64_t n = b->model->config != NULL ? b->model->n_experts : experts->n_experts;
        uint64_t most = (uint64_t)experts->n_expert_sources + 1;
        site.n_experts = n < most ? n : most;
    }
    return choose_naming(b, &site) ? bind_found(b, &site) : WEIR_OK;
}

static weir_status bind_layer(binder *b, int layer, const weir_source_layer *experts)
{
    const weir_family_row *tables[WEIR_MODEL_TABLES];
    size_t n_tables = weir_model_tables(b->model, layer, tables);
    for (size_t t = 0; t < n_tables; t++) {
        for (const weir_family_row *row = tables[t]; row->dst != NULL; row++) {
            weir_status status = bind_row(b, row, layer, experts);
            if (status != WEIR_OK)
                return status;
        }
    }
    return WEIR_OK;
}

/* ---- what is left over -----------------------------------------------------------------------*/

static void complain_left_over(binder *b, size_t at)
{
    const weir_model *model = b->model;
    const weir_tensor *source = &b->index.sources[at];
    const char *name = b->index.names[at], *suffix = name;
    uint64_t expert;
    int layer = weir_model_layer_of(model, name, &suffix);
    if (model->config != NULL && layer >= 0 && (uint64_t)layer >= model->n_layers) {
        problem(b,
                "source %s is of layer %d, but config.json has num_hidden_layers %" PRIu64
                " (--ignore '%.*s*' leaves it out)",
                source->name, layer, model->n_layers, (int)(strlen(source->name) - strlen(suffix)),
                source->name);
        return;
    }
    const weir_family_row *rows = model->parts->sparse;
    for (; layer >= 0 && model->config != NULL && rows != NULL && rows->dst != NULL; rows++) {
        const weir_row_source *sources = rows->sources[WEIR_NAMING_HF];
        for (size_t s = 0; sources[s].name != NULL && !model->dense[layer]; s++) {
            if (weir_model_expert_of(sources[s].name, suffix, &expert)) {
                problem(b, "source %s is of expert %" PRIu64 ", but config.json has %s %" PRIu64,
                        source->name, expert, model->family->n_experts, model->n_experts);
                return;
            }
        }
    }
    bool known = layer >= 0 && model->config != NULL && model->parts->sparse != NULL;
    bool of_kind = layer >= 0 && model->config != NULL && model->family->layer_kinds.key != NULL;
    problem(b, "source %s: no row of family %s takes it%s%s%s", source->name, model->family->name,
            !known                ? ""
            : model->dense[layer] ? " (config.json makes its layer dense)"
                                  : " (config.json gives its layer experts)",
            of_kind ? "; its layer is of kind " : "",
            of_kind ? model->family->layer_kinds.names[model->kind[layer]] : "");
}

static weir_status finish(binder *b)
{
    for (size_t i = 0; i < b->index.n_sources; i++) {
        size_t at = b->index.sorted[i];
        if (b->index.states[at] == WEIR_SOURCE_FREE)
            complain_left_over(b, at);
    }
    if (b->n_problems == 0 && b->mapping->n_entries == 0)
        problem(b, "no source is of family %s", b->model->family->name);
    if (b->n_problems == 0)
        return WEIR_OK;
    if (b->n_problems == 1)
        return weir_fail(WEIR_ERR_LAYOUT, "%s", b->first.text);
    return weir_fail(WEIR_ERR_LAYOUT, "%s (and %zu more)", b->first.text, b->n_problems - 1);
}

static weir_status allocate(weir_mapping *m, const weir_tensor *sources, size_t n_sources)
{
    m->given = weir_arena_zeroed(&m->arena, n_sources, sizeof(m->given[0]));
    m->bound = weir_arena_zeroed(&m->arena, n_sources, sizeof(m->bound[0]));
    m->origin = weir_arena_zeroed(&m->arena, n_sources, sizeof(m->origin[0]));
    m->entries = weir_arena_zeroed(&m->arena, n_sources, sizeof(m->entries[0]));
    m->rows = weir_arena_zeroed(&m->arena, n_sources, sizeof(m->rows[0]));
    if (m->given == NULL || m->bound == NULL || m->origin == NULL || m->entries == NULL ||
        m->rows == NULL)
        return WEIR_ERR_NO_MEMORY;
    if (n_sources > 0)
        memcpy(m->given, sources, n_sources * sizeof(m->given[0]));
    m->n_given = n_sources;
    return WEIR_OK;
}

static void mark_tied(binder *b)
{
    weir_mapping *m = b->mapping;
    for (size_t i = 0; i < m->n_entries && b->embedding != SIZE_MAX; i++)
        m->entries[i].tied = m->origin[m->entries[i].sources - m->bound] == b->embedding;
}

static weir_status bind_all(binder *b)
{
    weir_status status = WEIR_OK;
    for (size_t i = 0; i < b->index.n_layers && status == WEIR_OK; i++)
        status = bind_layer(b, b->index.layers[i].layer, &b->index.layers[i]);
    if (status == WEIR_OK)
        status = bind_layer(b, -1, NULL);
    if (status != WEIR_OK)
        return status;
    mark_tied(b);
    return finish(b);
}

weir_status weir_mapping_bind(weir_mapping *mapping, const weir_model *model,
                              const weir_mapping_options *options, const weir_tensor *sources,
                              size_t n_sources)
{
    weir_arena scratch;
    weir_arena_init(&scratch, 0);
    binder b = { .mapping = mapping, .model = model, .naming = -1, .embedding = SIZE_MAX };
    mapping->tied[0] = mapping->tied[1] = SIZE_MAX;
    /* Every entry has a source of its own, so n_sources of everything is enough. */
    weir_status status = allocate(mapping, sources, n_sources);
    if (status == WEIR_OK)
        status = weir_source_index_init(&b.index, &scratch, model, options, sources, n_sources);
    if (status == WEIR_OK) {
        b.found = weir_arena_zeroed(&scratch, (n_sources + 2) * WEIR_ROW_SOURCES, sizeof(size_t));
        status = b.found != NULL ? bind_all(&b) : WEIR_ERR_NO_MEMORY;
    }
    weir_arena_close(&scratch);
    return status;
}
