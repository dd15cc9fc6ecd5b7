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
    const weir_tensor *sources = context;
    return strcmp(sources[*(const size_t *)a].name, sources[*(const size_t *)b].name);
}

size_t weir_source_index_find(const weir_source_index *index, const char *name)
{
    size_t low = 0, high = index->n_sources;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        size_t i = index->sorted[middle];
        int order = strcmp(index->sources[i].name, name);
        if (order == 0)
            return index->states[i] == WEIR_SOURCE_LEFT_OUT ? SIZE_MAX : i;
        if (order < 0)
            low = middle + 1;
        else
            high = middle;
    }
    return SIZE_MAX;
}

static weir_status sort_sources(weir_source_index *index)
{
    for (size_t i = 0; i < index->n_sources; i++) {
        const weir_tensor *source = &index->sources[i];
        if (source->name == NULL || source->shape.rank > WEIR_MAX_RANK ||
            weir_dtype_bits(source->dtype) == 0)
            return weir_fail(WEIR_ERR_INVALID, "source %zu (%s) is no tensor view", i,
                             source->name != NULL ? source->name : "without a name");
        index->sorted[i] = i;
    }
    qsort_r(index->sorted, index->n_sources, sizeof(size_t), compare_names,
            (void *)(uintptr_t)index->sources);
    for (size_t i = 1; i < index->n_sources; i++) {
        const char *name = index->sources[index->sorted[i]].name;
        if (strcmp(name, index->sources[index->sorted[i - 1]].name) == 0)
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
        int layer = weir_model_layer_of(model, index->sources[i].name, &suffix);
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
        weir_source_layer key = { .layer =
                                      weir_model_layer_of(model, index->sources[i].name, &suffix) };
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
    index->sorted = weir_arena_zeroed(arena, n_sources, sizeof(size_t));
    index->states = weir_arena_zeroed(arena, n_sources, 1);
    index->layers = weir_arena_zeroed(arena, n_layers, sizeof(index->layers[0]));
    if (index->sorted == NULL || index->states == NULL || index->layers == NULL)
        return WEIR_ERR_NO_MEMORY;
    weir_status status = sort_sources(index);
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
