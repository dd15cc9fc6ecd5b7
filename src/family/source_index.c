/* SPDX-License-Identifier: Apache-2.0 */
/* source_index.c - a sorted array of names: tens of thousands of sources, whoever chose the names,
 * cost n log n.
 */
#include "family/source_index.h"

#include <fnmatch.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"

static int compare_names(const void *a, const void *b, void *context)
{
    const char *const *names = context;
    return strcmp(names[*(const size_t *)a], names[*(const size_t *)b]);
}

size_t weir_source_index_find(const weir_source_index *index, const char *name)
{
    size_t low = 0, high = index->n_sources;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        size_t i = index->sorted[middle];
        int order = strcmp(index->names[i], name);
        if (order == 0)
            return index->states[i] == WEIR_SOURCE_LEFT_OUT ? SIZE_MAX : i;
        if (order < 0)
            low = middle + 1;
        else
            high = middle;
    }
    return SIZE_MAX;
}

/* Gives a source the name that the tables have for it: its own unless it bears the alias. */
static weir_status name_source(weir_source_index *index, size_t i, weir_arena *arena,
                               const weir_family *family)
{
    const char *name = index->sources[i].name;
    size_t n_alias = family->alias[0] != NULL ? strlen(family->alias[0]) : 0;
    index->names[i] = name;
    if (n_alias == 0 || strncmp(name, family->alias[0], n_alias) != 0)
        return WEIR_OK;
    size_t n_front = strlen(family->alias[1]), n_rest = strlen(name + n_alias) + 1;
    char *known = weir_arena_zeroed(arena, n_front + n_rest, 1);
    if (known == NULL)
        return WEIR_ERR_NO_MEMORY;
    memcpy(known, family->alias[1], n_front);
    memcpy(known + n_front, name + n_alias, n_rest);
    index->names[i] = known;
    return WEIR_OK;
}

static weir_status sort_sources(weir_source_index *index, weir_arena *arena,
                                const weir_family *family)
{
    for (size_t i = 0; i < index->n_sources; i++) {
        const weir_tensor *source = &index->sources[i];
        if (source->name == NULL || source->shape.rank > WEIR_MAX_RANK ||
            weir_dtype_bits(source->dtype) == 0)
            return weir_fail(WEIR_ERR_INVALID, "source %zu (%s) is no tensor view", i,
                             source->name != NULL ? source->name : "without a name");
        weir_status status = name_source(index, i, arena, family);
        if (status != WEIR_OK)
            return status;
        index->sorted[i] = i;
    }
    qsort_r(index->sorted, index->n_sources, sizeof(size_t), compare_names, (void *)index->names);
    for (size_t i = 1; i < index->n_sources; i++) {
        const char *name = index->names[index->sorted[i]];
        if (strcmp(name, index->names[index->sorted[i - 1]]) == 0)
            return weir_fail(WEIR_ERR_LAYOUT, "source %s is there twice", name);
    }
    return WEIR_OK;
}

static bool is_left_out(const char *name, const weir_model *model,
                        const weir_mapping_options *options)
{
    for (size_t i = 0; i < options->n_ignore; i++) {
        if (fnmatch(options->ignore[i], name, 0) == 0)
            return true;
    }
    for (size_t i = 0; model->family->drop[i] != NULL; i++) {
        if (fnmatch(model->family->drop[i], name, 0) == 0)
            return true;
    }
    return false;
}

static int compare_layers(const void *a, const void *b)
{
    int left = ((const weir_source_layer *)a)->layer, right = ((const weir_source_layer *)b)->layer;
    return (left > right) - (left < right);
}

/* The layers of the config, else those that names mention. */
static void list_layers(weir_source_index *index, const weir_model *model)
{
    const char *suffix;
    size_t n = 0;
    if (model->config != NULL) {
        for (; n < model->n_layers; n++)
            index->layers[n].layer = (int)n;
        index->n_layers = n;
        return;
    }
    for (size_t i = 0; i < index->n_sources; i++) {
        int layer = weir_model_layer_of(model, index->names[i], &suffix);
        if (index->states[i] == WEIR_SOURCE_FREE && layer >= 0)
            index->layers[n++].layer = layer;
    }
    qsort(index->layers, n, sizeof(index->layers[0]), compare_layers);
    size_t kept = 0;
    for (size_t i = 0; i < n; i++) {
        if (kept == 0 || index->layers[kept - 1].layer != index->layers[i].layer)
            index->layers[kept++] = index->layers[i];
    }
    index->n_layers = kept;
}

static bool names_expert(const weir_family_row *rows, const char *suffix, uint64_t *out_expert)
{
    for (; rows != NULL && rows->dst != NULL; rows++) {
        const weir_row_source *sources = rows->sources[WEIR_NAMING_HF];
        for (size_t s = 0; sources[s].name != NULL; s++) {
            if (weir_model_expert_of(sources[s].name, suffix, out_expert))
                return true;
        }
    }
    return false;
}

static void count_experts(weir_source_index *index, const weir_model *model)
{
    for (size_t i = 0; i < index->n_sources; i++) {
        const char *suffix;
        uint64_t expert;
        weir_source_layer key = { .layer = weir_model_layer_of(model, index->names[i], &suffix) };
        if (index->states[i] != WEIR_SOURCE_FREE || key.layer < 0 ||
            !names_expert(model->parts->sparse, suffix, &expert))
            continue;
        weir_source_layer *layer =
            bsearch(&key, index->layers, index->n_layers, sizeof(index->layers[0]), compare_layers);
        if (layer == NULL)
            continue;
        layer->n_expert_sources++;
        if (expert >= layer->n_experts)
            layer->n_experts = expert + 1;
    }
}

weir_status weir_source_index_init(weir_source_index *index, weir_arena *arena,
                                   const weir_model *model, const weir_mapping_options *options,
                                   const weir_tensor *sources, size_t n_sources)
{
    size_t n_layers = model->config != NULL ? model->n_layers : n_sources;
    *index = (weir_source_index){ .sources = sources, .n_sources = n_sources };
    index->names = weir_arena_zeroed(arena, n_sources, sizeof(index->names[0]));
    index->sorted = weir_arena_zeroed(arena, n_sources, sizeof(size_t));
    index->states = weir_arena_zeroed(arena, n_sources, 1);
    index->layers = weir_arena_zeroed(arena, n_layers, sizeof(index->layers[0]));
    if (index->names == NULL || index->sorted == NULL || index->states == NULL ||
        index->layers == NULL)
        return WEIR_ERR_NO_MEMORY;
    weir_status status = sort_sources(index, arena, model->family);
    if (status != WEIR_OK)
        return status;
    for (size_t i = 0; i < n_sources; i++) {
        if (is_left_out(sources[i].name, model, options))
            index->states[i] = WEIR_SOURCE_LEFT_OUT;
    }
    list_layers(index, model);
    count_experts(index, model);
    return WEIR_OK;
}
