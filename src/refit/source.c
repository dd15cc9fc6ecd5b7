/* SPDX-License-Identifier: Apache-2.0 */
/* source.c - stop 1 of 9: what this rank has, as views; nothing is copied.
 *
 * Takes   the tensors that the trainer registered and the family's rows.
 * Gives   the entries that this rank owns, bound to those tensors, and the layout of a slot.
 * Before  weir_trainer_register()        After  stage.c
 * Breaks  nothing has happened yet: the publish is refused, everything else is good.
 *
 * Binding plans: which rows exist, who owns which, where each output lies in the slot. A layout
 * that is bound already keeps its plan and only takes the new pointers.
 */
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "base/error.h"
#include "refit/trainer.h"

/* Shards begin on cache-line pairs, so that streaming stores and RDMA reads stay aligned. */
#define SHARD_ALIGNMENT 256u

static bool same_layout(const weir_source *source, const weir_tensor *tensors, size_t n_tensors)
{
    if (source->mapping == NULL || source->n_registered != n_tensors)
        return false;
    for (size_t i = 0; i < n_tensors; i++) {
        const weir_tensor *had = &source->registered[i];
        if (had->dtype != tensors[i].dtype || !weir_shape_equal(&had->shape, &tensors[i].shape) ||
            strcmp(had->name, tensors[i].name) != 0)
            return false;
    }
    return true;
}

static void refresh_pointers(weir_source *source, const weir_tensor *tensors)
{
    for (size_t i = 0; i < source->n_registered; i++)
        source->registered[i].data = tensors[i].data;
    for (size_t i = 0; i < source->n_owned; i++) {
        weir_owned_entry *owned = &source->owned[i];
        for (size_t s = 0; s < owned->n_bound; s++)
            owned->sources[s].data = source->registered[owned->registered[s]].data;
    }
}

static weir_status copy_tensors(weir_source *source, const weir_tensor *tensors, size_t n_tensors)
{
    source->registered = weir_arena_alloc(&source->arena, n_tensors * sizeof(*tensors));
    if (source->registered == NULL)
        return WEIR_ERR_NO_MEMORY;
    for (size_t i = 0; i < n_tensors; i++) {
        source->registered[i] = tensors[i];
        source->registered[i].name = weir_arena_strdup(&source->arena, tensors[i].name);
        if (source->registered[i].name == NULL)
            return WEIR_ERR_NO_MEMORY;
    }
    source->n_registered = n_tensors;
    return WEIR_OK;
}

static weir_status open_mapping(weir_trainer *trainer)
{
    weir_source *source = &trainer->source;
    weir_mapping_options options = WEIR_MAPPING_OPTIONS_INIT;
    options.family = trainer->family;
    options.layout = trainer->layout;
    options.conversion = trainer->conversion;
    options.config = trainer->config;
    options.ignore = (const char *const *)trainer->ignore;
    options.n_ignore = trainer->n_ignore;
    trainer->worker.counters.plans++;
    return weir_mapping_open(&options, source->registered, source->n_registered, &source->mapping);
}

/* Registered tensors by name, to find where a source of the mapping came from. */
typedef struct by_name {
    const char *name;
    uint32_t index;
} by_name;

static int compare_names(const void *a, const void *b)
{
    return strcmp(((const by_name *)a)->name, ((const by_name *)b)->name);
}

static by_name *sort_names(weir_source *source)
{
    by_name *sorted = weir_arena_alloc(&source->arena, source->n_registered * sizeof(*sorted));
    for (size_t i = 0; sorted != NULL && i < source->n_registered; i++)
        sorted[i] = (by_name){ source->registered[i].name, (uint32_t)i };
    if (sorted != NULL)
        qsort(sorted, source->n_registered, sizeof(*sorted), compare_names);
    return sorted;
}

static weir_status bind_entry(weir_source *source, const by_name *sorted,
                              const weir_map_entry *entry, weir_owned_entry *owned)
{
    size_t n = entry->n_sources * (entry->n_experts ? entry->n_experts : 1);
    uint32_t *registered = weir_arena_alloc(&source->arena, n * sizeof(*registered));
    owned->sources = weir_arena_alloc(&source->arena, n * sizeof(*owned->sources));
    if (registered == NULL || owned->sources == NULL)
        return WEIR_ERR_NO_MEMORY;
    for (size_t i = 0; i < n; i++) {
        by_name key = { entry->sources[i].name, 0 };
        const by_name *found =
            bsearch(&key, sorted, source->n_registered, sizeof(*sorted), compare_names);
        if (found == NULL)
            return weir_fail(WEIR_ERR_INTERNAL, "%s is mapped but was not registered", key.name);
        registered[i] = found->index;
        owned->sources[i] = entry->sources[i];
    }
    owned->entry = *entry;
    owned->entry.sources = owned->sources;
    owned->registered = registered;
    owned->n_bound = n;
    return WEIR_OK;
}

static uint64_t align_up(uint64_t n)
{
    return (n + SHARD_ALIGNMENT - 1) / SHARD_ALIGNMENT * SHARD_ALIGNMENT;
}

static weir_status lay_out(weir_source *source, weir_owned_entry *owned,
                           const weir_parameter *parameters)
{
    owned->first_shard = source->n_shards;
    for (size_t o = 0; o < owned->entry.conversion->n_outputs; o++) {
        const weir_parameter *parameter = &parameters[owned->entry.first_parameter + o];
        weir_shard *shard = &source->shards[source->n_shards++];
        *shard = (weir_shard){ .name = parameter->name,
                               .dtype = parameter->dtype,
                               .global_shape = parameter->shape,
                               .box = weir_box_whole(&parameter->shape),
                               .compile_target = parameter->compile_target,
                               .compile_metadata = parameter->compile_metadata,
                               .offset = source->slot_bytes };
        weir_status status =
            weir_tensor_bytes(parameter->dtype, &parameter->shape, &shard->n_bytes);
        if (status != WEIR_OK)
            return status;
        source->n_bytes += shard->n_bytes;
        source->slot_bytes += align_up(shard->n_bytes);
    }
    return WEIR_OK;
}

static weir_status bind_owned(weir_trainer *trainer)
{
    weir_source *source = &trainer->source;
    size_t n_entries, n_parameters;
    const weir_map_entry *entries = weir_mapping_entries(source->mapping, &n_entries);
    const weir_parameter *parameters = weir_mapping_parameters(source->mapping, &n_parameters);
    uint32_t *owners = weir_arena_alloc(&source->arena, n_entries * sizeof(*owners));
    source->owned = weir_arena_zeroed(&source->arena, n_entries, sizeof(*source->owned));
    source->shards = weir_arena_zeroed(&source->arena, n_parameters, sizeof(*source->shards));
    by_name *sorted = sort_names(source);
    if (owners == NULL || source->owned == NULL || source->shards == NULL || sorted == NULL)
        return WEIR_ERR_NO_MEMORY;
    weir_status status = weir_plan_owners(source->mapping, trainer->n_ranks, owners);
    for (size_t i = 0; i < n_entries && status == WEIR_OK; i++) {
        if (owners[i] != trainer->rank)
            continue;
        weir_owned_entry *owned = &source->owned[source->n_owned++];
        status = bind_entry(source, sorted, &entries[i], owned);
        if (status == WEIR_OK)
            status = lay_out(source, owned, parameters);
    }
    if (status == WEIR_OK)
        status = weir_layout_signature(parameters, n_parameters, source->signature);
    if (status == WEIR_OK)
        status =
            weir_layout_encode(source->shards, source->n_shards, &source->arena, &source->layout);
    return status;
}

void weir_source_release(weir_source *source)
{
    weir_mapping_close(source->mapping);
    weir_buffer_free(&source->layout);
    weir_arena_close(&source->arena);
    *source = (weir_source){ 0 };
}

weir_status weir_source_bind(weir_trainer *trainer, const weir_tensor *tensors, size_t n_tensors)
{
    weir_source *source = &trainer->source;
    if (same_layout(source, tensors, n_tensors)) {
        refresh_pointers(source, tensors);
        return WEIR_OK;
    }
    weir_status status = weir_slots_retire(trainer);
    if (status != WEIR_OK)
        return status;
    weir_slots_release(trainer);
    weir_source_release(source);
    weir_arena_init(&source->arena, 0);
    status = copy_tensors(source, tensors, n_tensors);
    if (status == WEIR_OK)
        status = open_mapping(trainer);
    if (status == WEIR_OK)
        status = bind_owned(trainer);
    if (status != WEIR_OK)
        weir_source_release(source);
    else
        refresh_pointers(source, tensors);
    return status;
}

weir_status weir_stop_source(weir_trainer *trainer)
{
    const weir_source *source = &trainer->source;
    if (source->mapping == NULL)
        return weir_fail(WEIR_ERR_INVALID, "trainer rank %u has registered no tensors",
                         trainer->rank);
    for (size_t i = 0; i < source->n_owned; i++) {
        for (size_t s = 0; s < source->owned[i].n_bound; s++) {
            if (source->owned[i].sources[s].data == NULL)
                return weir_fail(WEIR_ERR_INVALID, "%s has no data",
                                 source->owned[i].sources[s].name);
        }
    }
    return WEIR_OK;
}
