/* SPDX-License-Identifier: Apache-2.0 */
/* source.c - stop 1 of 9: what this rank has, as views; nothing is copied.
 *
 * Takes   the tensors that the trainer registered, or its shards of them, and the family's rows.
 * Gives   the conversions that this rank makes of them, and the layout of a slot.
 * Before  weir_trainer_register()        After  stage.c
 * Breaks  nothing has happened yet: the publish is refused, everything else is good.
 *
 * Binding plans: which rows exist, who makes which, where each output lies in the slot. Ranks that
 * all hold everything own whole entries; what a rank of a mesh makes, sharded.c finds out. A layout
 * that is bound already keeps its plan and only takes the new pointers.
 */
#include <fnmatch.h>

#include "base/alloc.h"
#include "base/error.h"
#include "family/mapping.h"
#include "refit/sharded.h"
#include "refit/window.h"

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

uint64_t weir_source_align(uint64_t n_bytes)
{
    return (n_bytes + SHARD_ALIGNMENT - 1) / SHARD_ALIGNMENT * SHARD_ALIGNMENT;
}

weir_status weir_source_lay_out(weir_source *source, weir_shard *shard)
{
    uint64_t n_bytes;
    weir_shape shape = weir_box_shape(&shard->box);
    weir_status status = weir_tensor_bytes(shard->dtype, &shape, &n_bytes);
    if (status != WEIR_OK)
        return status;
    shard->n_bytes = n_bytes;
    shard->offset = source->slot_bytes;
    source->n_bytes += n_bytes;
    source->slot_bytes += weir_source_align(n_bytes);
    return WEIR_OK;
}

static weir_status own_entry(weir_source *source, const weir_map_entry *entry,
                             const weir_parameter *parameters)
{
    weir_stage_job *job = &source->jobs[source->n_jobs++];
    source->owned[source->n_owned++] = (weir_owned_entry){ entry, source->n_shards };
    job->args = weir_map_entry_args(entry);
    for (size_t o = 0; o < entry->conversion->n_outputs; o++) {
        const weir_parameter *parameter = &parameters[entry->first_parameter + o];
        weir_shard *shard = &source->shards[source->n_shards];
        *shard = (weir_shard){ .name = parameter->name,
                               .dtype = parameter->dtype,
                               .global_shape = parameter->shape,
                               .box = weir_box_whole(&parameter->shape),
                               .compile_target = parameter->compile_target,
                               .compile_metadata = parameter->compile_metadata };
        job->shards[o] = (uint32_t)source->n_shards++;
        weir_status status = weir_source_lay_out(source, shard);
        if (status != WEIR_OK)
            return status;
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
    source->jobs = weir_arena_zeroed(&source->arena, n_entries, sizeof(*source->jobs));
    source->shards = weir_arena_zeroed(&source->arena, n_parameters, sizeof(*source->shards));
    if (owners == NULL || source->owned == NULL || source->jobs == NULL || source->shards == NULL)
        return WEIR_ERR_NO_MEMORY;
    weir_status status = weir_plan_owners(source->mapping, trainer->n_ranks, owners);
    for (size_t i = 0; i < n_entries && status == WEIR_OK; i++) {
        if (owners[i] == trainer->rank)
            status = own_entry(source, &entries[i], parameters);
    }
    return status;
}

/* What is the same however the rank came by its jobs. */
static weir_status finish_binding(weir_trainer *trainer)
{
    weir_source *source = &trainer->source;
    size_t n_parameters;
    const weir_parameter *parameters = weir_mapping_parameters(source->mapping, &n_parameters);
    source->job_digests = weir_arena_zeroed(&source->arena, source->n_jobs * WEIR_MAX_OUTPUTS,
                                            sizeof(*source->job_digests));
    if (source->job_digests == NULL)
        return WEIR_ERR_NO_MEMORY;
    weir_status status = WEIR_OK;
    if (source->signature[0] == '\0')
        status = weir_layout_signature(parameters, n_parameters, source->signature);
    if (status == WEIR_OK)
        status =
            weir_layout_encode(source->shards, source->n_shards, &source->arena, &source->layout);
    return status;
}

void weir_source_release(weir_source *source)
{
    if (source->sharded == NULL) /* of a sharded one it is the plan's */
        weir_mapping_close(source->mapping);
    weir_sharded_close(source->sharded);
    weir_buffer_free(&source->layout);
    weir_arena_close(&source->arena);
    *source = (weir_source){ .generation = source->generation + 1 };
}

/* Gives back the slots of the old layout, each once nobody reads it, and begins a new one. */
static weir_status begin_layout(weir_trainer *trainer)
{
    weir_status status = weir_slots_retire(trainer);
    if (status != WEIR_OK)
        return status;
    weir_window_close(trainer); /* its broadcast groups may have registered the slots */
    weir_slots_release(trainer);
    weir_source_release(&trainer->source);
    weir_arena_init(&trainer->source.arena, 0);
    return WEIR_OK;
}

weir_status weir_source_bind(weir_trainer *trainer, const weir_tensor *tensors, size_t n_tensors)
{
    weir_source *source = &trainer->source;
    weir_status status = weir_delivery_settle(trainer, tensors, n_tensors);
    if (status != WEIR_OK)
        return status;
    bool kept = source->mapping != NULL && source->sharded == NULL &&
                weir_mapping_rebind(source->mapping, tensors, n_tensors) == WEIR_OK;
    if (!kept) {
        status = begin_layout(trainer);
        if (status != WEIR_OK)
            return status;
        status = open_mapping(trainer, tensors, n_tensors);
        if (status == WEIR_OK)
            status = bind_owned(trainer);
        if (status == WEIR_OK)
            status = finish_binding(trainer);
    }
    if (status == WEIR_OK)
        status = weir_delivery_check_tied(trainer);
    if (status != WEIR_OK)
        weir_source_release(source);
    return status;
}

/* ---- a rank of a mesh ------------------------------------------------------------------------*/

static bool is_ignored(const weir_trainer *trainer, const char *name)
{
    for (size_t i = 0; i < trainer->n_ignore; i++) {
        if (fnmatch(trainer->ignore[i], name, 0) == 0)
            return true;
    }
    return false;
}

/* The shards that are not left out, and their memory. Both arrays have room for all. */
static size_t choose_shards(const weir_trainer *trainer, const weir_tensor_shard *shards,
                            size_t n_shards, weir_tensor_shard *chosen, weir_tensor *locals)
{
    size_t n = 0;
    for (size_t i = 0; i < n_shards; i++) {
        if (shards[i].local.name != NULL && is_ignored(trainer, shards[i].local.name))
            continue;
        chosen[n] = shards[i];
        locals[n++] = shards[i].local;
    }
    return n;
}

static weir_status bind_chosen(weir_trainer *trainer, const weir_tensor_shard *shards,
                               const weir_tensor *locals, size_t n)
{
    weir_source *source = &trainer->source;
    weir_status status = weir_delivery_settle(trainer, locals, n);
    if (status != WEIR_OK)
        return status;
    if (source->sharded != NULL && weir_sharded_rebind(trainer, shards, n) == WEIR_OK)
        return WEIR_OK;
    status = begin_layout(trainer);
    if (status != WEIR_OK)
        return status;
    status = weir_sharded_bind(trainer, shards, n);
    if (status == WEIR_OK && weir_window_is_wanted(trainer))
        status = weir_window_open(trainer);
    if (status == WEIR_OK)
        status = finish_binding(trainer);
    if (status != WEIR_OK) {
        weir_error_prefix("trainer rank %u", trainer->rank);
        weir_source_release(source);
    }
    return status;
}

weir_status weir_source_bind_shards(weir_trainer *trainer, const weir_tensor_shard *shards,
                                    size_t n_shards)
{
    if (shards == NULL && n_shards > 0)
        return weir_fail(WEIR_ERR_INVALID, "%zu shards at NULL", n_shards);
    weir_tensor_shard *chosen = weir_alloc_zeroed(n_shards, sizeof(*chosen));
    weir_tensor *locals = weir_alloc_zeroed(n_shards, sizeof(*locals));
    weir_status status = WEIR_ERR_NO_MEMORY;
    if (chosen != NULL && locals != NULL) {
        size_t n = choose_shards(trainer, shards, n_shards, chosen, locals);
        status = bind_chosen(trainer, chosen, locals, n);
    }
    weir_free(chosen);
    weir_free(locals);
    return status;
}

/* ---- the stop --------------------------------------------------------------------------------*/

weir_status weir_stop_source(weir_trainer *trainer)
{
    const weir_source *source = &trainer->source;
    if (source->mapping == NULL)
        return weir_fail(WEIR_ERR_INVALID, "trainer rank %u has registered no tensors",
                         trainer->rank);
    for (size_t i = 0; i < source->n_jobs; i++) {
        const weir_convert_args *args = &source->jobs[i].args;
        size_t n = args->n_sources * (args->n_experts ? args->n_experts : 1);
        for (size_t s = 0; s < n; s++) {
            if (args->sources[s].data == NULL)
                return weir_fail(WEIR_ERR_INVALID, "%s has no data", args->sources[s].name);
        }
    }
    return weir_delivery_follow(trainer);
}
