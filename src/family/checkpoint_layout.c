/* SPDX-License-Identifier: Apache-2.0 */
/* checkpoint_layout.c - one entry per tensor of the checkpoint, whatever the trainer's naming.
 *
 * The rows of a family say it already: bound to the checkpoint that config.json describes they name
 * its tensors, bound to the trainer's they find the same rows of the same engine parameter. What
 * the trainer stacks is a slice of its tensor; what it keeps in several is joined, by the
 * conversion that an entry is.
 */
#include "family/checkpoint_layout.h"

#include <string.h>

#include "base/error.h"

/* The family's rows bound twice; entries are parallel. */
typedef struct pair {
    weir_mapping *mapping;       /* that is made */
    const weir_mapping *trainer; /* of the sources */
    const weir_mapping *named;   /* of the checkpoint that config.json describes */
    const weir_conversion *bf16, *fp32;
    size_t bundle; /* the first entry of the parameter at hand */
} pair;

/* ---- sizes -----------------------------------------------------------------------------------*/

static size_t sources_of(const weir_map_entry *entry)
{
    return entry->n_sources * (entry->n_experts > 0 ? entry->n_experts : 1);
}

/* One tensor of the checkpoint holds all that the engine's parameter is made of. */
static bool is_one(const weir_map_entry *named)
{
    return named->n_sources == 1 && named->n_experts == 0;
}

static weir_status reserve(pair *p)
{
    weir_mapping *m = p->mapping;
    size_t n_entries = 0, n_bound = 0;
    for (size_t i = 0; i < p->named->n_entries; i++) {
        const weir_map_entry *named = &p->named->entries[i];
        n_entries += sources_of(named);
        n_bound += is_one(named) ? sources_of(&p->trainer->entries[i]) : sources_of(named);
    }
    m->bound = weir_arena_zeroed(&m->arena, n_bound, sizeof(m->bound[0]));
    m->origin = weir_arena_zeroed(&m->arena, n_bound, sizeof(m->origin[0]));
    m->offset = weir_arena_zeroed(&m->arena, n_bound, sizeof(m->offset[0]));
    m->entries = weir_arena_zeroed(&m->arena, n_entries, sizeof(m->entries[0]));
    m->parameters = weir_arena_zeroed(&m->arena, n_entries, sizeof(m->parameters[0]));
    return m->bound != NULL && m->origin != NULL && m->offset != NULL && m->entries != NULL &&
                   m->parameters != NULL
               ? WEIR_OK
               : WEIR_ERR_NO_MEMORY;
}

/* ---- entries ---------------------------------------------------------------------------------*/

/* Source `from` of the trainer's mapping, from `offset` bytes on. */
static weir_tensor *add_view(pair *p, const weir_tensor *from, uint64_t offset)
{
    weir_mapping *m = p->mapping;
    weir_tensor *view = &m->bound[m->n_bound];
    *view = *from;
    if (view->data != NULL)
        view->data = (unsigned char *)view->data + offset;
    m->origin[m->n_bound] = p->trainer->origin[from - p->trainer->bound];
    m->offset[m->n_bound++] = offset;
    return view;
}

/* An entry of the sources that were added last, and its one parameter. */
static weir_status add_entry(pair *p, const char *name, const weir_map_entry *entry, bool is_expert)
{
    weir_mapping *m = p->mapping;
    weir_map_entry *added = &m->entries[m->n_entries];
    bool full = entry->conversion->outputs[0].dtype == WEIR_F32;
    *added = *entry;
    added->name = weir_arena_strdup(&m->arena, name);
    added->conversion = full ? p->fp32 : p->bf16;
    added->first_parameter = m->n_parameters;
    added->bundle = p->bundle;
    added->cut = WEIR_CUT_NONE;
    added->n_parts = added->n_sources;
    memset(added->units, 0, sizeof(added->units));
    memset(added->part_rows, 0, sizeof(added->part_rows));
    m->parameters[m->n_parameters++] =
        (weir_parameter){ .name = added->name,
                          .dtype = added->conversion->outputs[0].dtype,
                          .shape = added->shape,
                          .compile_target = added->conversion->compile_target,
                          .compile_metadata = WEIR_CHECKPOINT_METADATA,
                          .entry = m->n_entries++,
                          .is_expert = is_expert };
    return added->name != NULL ? WEIR_OK : WEIR_ERR_NO_MEMORY;
}

static weir_status fail_unlike(const weir_map_entry *trainer, const weir_tensor *named)
{
    char want[WEIR_SHAPE_TEXT], got[WEIR_SHAPE_TEXT];
    return weir_fail(WEIR_ERR_UNSUPPORTED, "%s: %s %s of the checkpoint is no run of rows of %s %s",
                     trainer->name, named->name, weir_shape_text(&named->shape, want, sizeof(want)),
                     trainer->sources[0].name,
                     weir_shape_text(&trainer->sources[0].shape, got, sizeof(got)));
}

/* All that the trainer has of this parameter is one tensor of the checkpoint. */
static weir_status add_whole(pair *p, size_t i)
{
    const weir_map_entry *trainer = &p->trainer->entries[i], *named = &p->named->entries[i];
    weir_map_entry entry = *trainer;
    if (!weir_shape_equal(&trainer->shape, &named->sources[0].shape))
        return fail_unlike(trainer, &named->sources[0]);
    entry.sources = p->mapping->bound + p->mapping->n_bound;
    for (size_t s = 0; s < sources_of(trainer); s++)
        add_view(p, &trainer->sources[s], 0);
    return add_entry(p, named->sources[0].name, &entry, p->named->rows[i]->kind == WEIR_ROW_EXPERT);
}

/* Where the rows of a parameter (of an expert of it) are among the trainer's sources. */
typedef struct cursor {
    const weir_map_entry *entry;
    uint32_t leading; /* 1: each source has all experts in front */
    size_t source;
    uint64_t row; /* within the source, of one expert */
} cursor;

static uint64_t elements_behind(const weir_shape *shape, uint32_t axis)
{
    uint64_t n = 1;
    for (uint32_t d = axis + 1; d < shape->rank; d++)
        n *= shape->dim[d];
    return n;
}

/* Adds the rows that `wanted` is, and moves behind them. */
static weir_status add_rows(pair *p, cursor *at, size_t expert, const weir_tensor *wanted)
{
    const weir_map_entry *entry = at->entry;
    if (at->source == entry->n_sources)
        return fail_unlike(entry, wanted);
    size_t first = entry->n_experts > 0 ? expert * entry->n_sources : 0;
    const weir_tensor *from = &entry->sources[first + at->source];
    uint64_t n_cols = elements_behind(&from->shape, at->leading);
    uint64_t n_rows = from->shape.rank > at->leading ? from->shape.dim[at->leading] : 1;
    uint64_t n_wanted = wanted->shape.rank > 0 ? wanted->shape.dim[0] : 1;
    if (from->shape.rank != wanted->shape.rank + at->leading || n_wanted > n_rows - at->row ||
        elements_behind(&wanted->shape, 0) != n_cols)
        return fail_unlike(entry, wanted);
    uint64_t row = (at->leading > 0 ? expert * n_rows : 0) + at->row;
    weir_tensor *view = add_view(p, from, row * n_cols * (weir_dtype_bits(from->dtype) / 8));
    view->shape = wanted->shape;
    at->row += n_wanted;
    if (at->row == n_rows) {
        at->source++;
        at->row = 0;
    }
    return WEIR_OK;
}

/* A tensor of the checkpoint for each of the parameter's sources, expert by expert. */
static weir_status add_slices(pair *p, size_t i)
{
    const weir_map_entry *trainer = &p->trainer->entries[i], *named = &p->named->entries[i];
    uint32_t leading = named->n_experts > 0 && trainer->n_experts == 0 ? 1 : 0;
    size_t n_experts = named->n_experts > 0 ? named->n_experts : 1;
    weir_status status = WEIR_OK;
    for (size_t e = 0; e < n_experts && status == WEIR_OK; e++) {
        cursor at = { trainer, leading, 0, 0 };
        for (size_t s = 0; s < named->n_sources && status == WEIR_OK; s++) {
            const weir_tensor *wanted = &named->sources[e * named->n_sources + s];
            weir_map_entry entry = *trainer;
            entry.sources = p->mapping->bound + p->mapping->n_bound;
            entry.n_sources = 1;
            entry.n_experts = 0;
            entry.axis = 0;
            entry.shape = wanted->shape;
            status = add_rows(p, &at, e, wanted);
            if (status == WEIR_OK)
                status = add_entry(p, wanted->name, &entry, false);
        }
        if (status == WEIR_OK && at.source != trainer->n_sources)
            status = fail_unlike(trainer, &named->sources[e * named->n_sources]);
    }
    return status;
}

static weir_status add_all(pair *p, bool of_layers)
{
    weir_status status = WEIR_OK;
    for (size_t i = 0; i < p->named->n_entries && status == WEIR_OK; i++) {
        const weir_map_entry *named = &p->named->entries[i];
        if ((named->layer >= 0) != of_layers)
            continue;
        p->bundle = p->mapping->n_entries;
        status = is_one(named) ? add_whole(p, i) : add_slices(p, i);
    }
    return status;
}

/* ---- binding ---------------------------------------------------------------------------------*/

static weir_status keep_given(weir_mapping *m, const weir_mapping *trainer)
{
    m->given = weir_arena_zeroed(&m->arena, trainer->n_given, sizeof(m->given[0]));
    if (m->given == NULL)
        return WEIR_ERR_NO_MEMORY;
    memcpy(m->given, trainer->given, trainer->n_given * sizeof(m->given[0]));
    m->n_given = trainer->n_given;
    memcpy(m->tied, trainer->tied, sizeof(m->tied));
    return WEIR_OK;
}

static weir_status pair_up(weir_mapping *mapping, const weir_mapping *trainer,
                           const weir_mapping *named)
{
    pair p = { .mapping = mapping, .trainer = trainer, .named = named };
    if (trainer->n_entries != named->n_entries)
        return weir_fail(WEIR_ERR_INTERNAL, "the same rows bind to %zu entries and to %zu",
                         trainer->n_entries, named->n_entries);
    weir_status status = weir_conversion_get("bf16_cast", &p.bf16);
    if (status == WEIR_OK)
        status = weir_conversion_get("fp32_cast", &p.fp32);
    mapping->conversion = p.bf16;
    if (status == WEIR_OK)
        status = keep_given(mapping, trainer);
    if (status == WEIR_OK)
        status = reserve(&p);
    if (status == WEIR_OK)
        status = add_all(&p, false);
    return status == WEIR_OK ? add_all(&p, true) : status;
}

weir_status weir_checkpoint_layout_bind(weir_mapping *mapping, const weir_mapping_options *options,
                                        const weir_tensor *sources, size_t n_sources)
{
    if (options->config == NULL)
        return weir_fail(WEIR_ERR_INVALID,
                         "layout %s needs a config.json, which says what a checkpoint is named",
                         WEIR_LAYOUT_CHECKPOINT);
    weir_mapping_options engine = *options;
    weir_mapping *trainer = NULL, *named = NULL;
    weir_tensor *described = NULL;
    size_t n_described = 0;
    engine.layout = NULL;
    engine.conversion = "bf16_cast";
    weir_status status = weir_mapping_open(&engine, sources, n_sources, &trainer);
    if (status == WEIR_OK)
        status = weir_family_sources(options->family, options->config, WEIR_NAMING_HF, &described,
                                     &n_described);
    engine.ignore = NULL;
    engine.n_ignore = 0;
    if (status == WEIR_OK)
        status = weir_mapping_open(&engine, described, n_described, &named);
    if (status == WEIR_OK)
        status = pair_up(mapping, trainer, named);
    weir_mapping_close(named);
    weir_family_sources_free(described);
    weir_mapping_close(trainer);
    return status;
}
