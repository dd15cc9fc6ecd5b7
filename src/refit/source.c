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
#include "base/alloc.h"
#include "base/error.h"
#include "family/mapping.h"
#include "refit/trainer.h"

/* Shards begin on cache-line pairs, so that streaming stores and RDMA reads stay aligned. */
#define SHARD_ALIGNMENT 256u

static weir_status open_mapping(weir_trainer *trainer, const weir_tensor *tensors, size_t n_tensors)
{
    weir_source *source = &trainer->source;
    weir_mapping_options options = WEIR_MAPPING_OPTIONS_INIT;
    options.family = trainer->settings.family;
    options.layout = trainer->settings.layout;
    options.conversion = trainer->settings.conversion;
    options.config = trainer->settings.config;
    options.ignore = (const char *const *)trainer->ignore;
    options.n_ignore = trainer->n_ignore;
    options.unreadable = trainer->memory == WEIR_MEMORY_CUDA;
    trainer->worker.counters.plans++;
    return weir_mapping_open(&options, tensors, n_tensors, &source->mapping);
}

static uint64_t align_up(uint64_t n)
{
    return (n + SHARD_ALIGNMENT - 1) / SHARD_ALIGNMENT * SHARD_ALIGNMENT;
}

static weir_status lay_out(weir_source *source, weir_owned_entry *owned,
                           const weir_parameter *parameters)
{
    owned->first_shard = source->n_shards;
    for (size_t o = 0; o < owned->entry->conversion->n_outputs; o++) {
        const weir_parameter *parameter = &parameters[owned->entry->first_parameter + o];
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
    if (owners == NULL || source->owned == NULL || source->shards == NULL)
        return WEIR_ERR_NO_MEMORY;
    weir_status status = weir_plan_owners(source->mapping, trainer->n_ranks, owners);
    for (size_t i = 0; i < n_entries && status == WEIR_OK; i++) {
        if (owners[i] != trainer->rank)
            continue;
        source->owned[source->n_owned].entry = &entries[i];
        status = lay_out(source, &source->owned[source->n_owned++], parameters);
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
    *source = (weir_source){ .generation = source->generation + 1 };
}

weir_status weir_source_bind(weir_trainer *trainer, const weir_tensor *tensors, size_t n_tensors)
{
    weir_source *source = &trainer->source;
    weir_status status = weir_delivery_settle(trainer, tensors, n_tensors);
    if (status != WEIR_OK)
        return status;
    bool kept = source->mapping != NULL &&
                weir_mapping_rebind(source->mapping, tensors, n_tensors) == WEIR_OK;
    if (!kept) {
        status = weir_slots_retire(trainer);
        if (status != WEIR_OK)
            return status;
        weir_slots_release(trainer);
        weir_source_release(source);
        weir_arena_init(&source->arena, 0);
        status = open_mapping(trainer, tensors, n_tensors);
        if (status == WEIR_OK)
            status = bind_owned(trainer);
    }
    if (status == WEIR_OK)
        status = weir_delivery_check_tied(trainer);
    if (status != WEIR_OK)
        weir_source_release(source);
    return status;
}

weir_status weir_stop_source(weir_trainer *trainer)
{
    const weir_source *source = &trainer->source;
    if (source->mapping == NULL)
        return weir_fail(WEIR_ERR_INVALID, "trainer rank %u has registered no tensors",
                         trainer->rank);
    for (size_t i = 0; i < source->n_owned; i++) {
        const weir_map_entry *entry = source->owned[i].entry;
        size_t n = entry->n_sources * (entry->n_experts ? entry->n_experts : 1);
        for (size_t s = 0; s < n; s++) {
            if (entry->sources[s].data == NULL)
                return weir_fail(WEIR_ERR_INVALID, "%s has no data", entry->sources[s].name);
        }
    }
    return weir_delivery_follow(trainer);
}
