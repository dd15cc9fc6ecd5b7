/* SPDX-License-Identifier: Apache-2.0 */
/* inference_memory.c - one block for all parameters of a worker, in the order and of the shapes in
 * which weir_replica_adopt() wants them; or those that an engine has, with their tags. */
#include "broadcast/inference_memory.h"

#include <inttypes.h>

#include "base/error.h"
#include "device/host.h"
#include "refit/engine_part.h"
#include "refit/work.h"
#include "weir/cuda.h"

#define ALIGNMENT 256u

/* What the shapes follow from. */
typedef struct description {
    weir_config *config;
    weir_tensor *sources;
    weir_mapping *mapping;
    weir_replica_mesh mesh;
    char mesh_text[WEIR_MESH_TEXT];
} description;

static void forget(description *described)
{
    weir_mapping_close(described->mapping);
    weir_family_sources_free(described->sources);
    weir_config_close(described->config);
    weir_expert_map_free(described->mesh.expert_ids);
}

static weir_status describe(const weir_inference_part *part, description *out)
{
    const char *family = part->family;
    size_t n_sources;
    weir_status status = weir_config_open(part->config, &out->config);
    if (status == WEIR_OK && family == NULL)
        status = weir_family_of_config(out->config, &family);
    if (status == WEIR_OK)
        status =
            weir_family_sources(family, out->config, WEIR_NAMING_HF, &out->sources, &n_sources);
    if (status != WEIR_OK)
        return status;
    weir_mapping_options options = WEIR_MAPPING_OPTIONS_INIT;
    options.family = family;
    options.layout = part->layout;
    options.conversion = part->conversion;
    options.config = out->config;
    status = weir_mapping_open(&options, out->sources, n_sources, &out->mapping);
    if (status == WEIR_OK)
        status = weir_engine_mesh_read(part->mesh, part->experts, &out->mesh, out->mesh_text);
    return status;
}

/* All of the model's, or the worker's part of them. */
static weir_status list(const description *described, uint32_t worker, weir_arena *arena,
                        const weir_parameter **out, size_t *out_n)
{
    weir_engine_part part;
    if (described->mesh_text[0] == '\0') {
        *out = weir_mapping_parameters(described->mapping, out_n);
        return WEIR_OK;
    }
    weir_status status =
        weir_engine_part_of(described->mapping, &described->mesh, worker, arena, &part);
    if (status != WEIR_OK)
        return status;
    *out = part.parameters;
    *out_n = part.n_parameters;
    return WEIR_OK;
}

static weir_status allocate(weir_inference_memory *memory, const char *device)
{
    uint32_t kind = WEIR_MEMORY_HOST;
    weir_status status = weir_device_parse(device, &kind, &memory->device);
    if (status != WEIR_OK)
        return status;
    memory->on_gpu = kind == WEIR_MEMORY_CUDA;
    if (!memory->on_gpu)
        return weir_host_allocate(memory->n_bytes, &memory->block);
    status = weir_cuda_allocate(memory->device, memory->n_bytes, &memory->block);
    if (status == WEIR_OK)
        status = weir_cuda_fill(memory->device, memory->block, 0, memory->n_bytes, NULL);
    if (status == WEIR_OK)
        status = weir_cuda_stream_wait(memory->device, NULL);
    return status;
}

/* Offsets into the block, until there is one. */
static weir_status lay_out(weir_inference_memory *memory, const weir_parameter *parameters)
{
    for (size_t i = 0; i < memory->n_tensors; i++) {
        uint64_t n_bytes = 0;
        const weir_parameter *parameter = &parameters[i];
        weir_status status = weir_tensor_bytes(parameter->dtype, &parameter->shape, &n_bytes);
        if (status != WEIR_OK)
            return status;
        memory->tensors[i] =
            (weir_tensor){ .name = weir_arena_strdup(&memory->arena, parameter->name),
                           .dtype = parameter->dtype,
                           .shape = parameter->shape,
                           .data = (void *)(uintptr_t)memory->n_bytes };
        if (memory->tensors[i].name == NULL)
            return WEIR_ERR_NO_MEMORY;
        memory->n_bytes += (n_bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    }
    return WEIR_OK;
}

static weir_status fill(weir_inference_memory *memory, const weir_inference_part *part,
                        const weir_parameter *parameters)
{
    memory->tensors =
        weir_arena_zeroed(&memory->arena, memory->n_tensors, sizeof(*memory->tensors));
    if (memory->tensors == NULL)
        return WEIR_ERR_NO_MEMORY;
    weir_status status = lay_out(memory, parameters);
    if (status == WEIR_OK)
        status = allocate(memory, part->device);
    if (status != WEIR_OK) {
        weir_error_prefix("live parameters of %" PRIu64 " bytes", memory->n_bytes);
        return status;
    }
    for (size_t i = 0; i < memory->n_tensors; i++) {
        uintptr_t offset = (uintptr_t)memory->tensors[i].data;
        memory->tensors[i].data = (unsigned char *)memory->block + offset;
    }
    return WEIR_OK;
}

weir_status weir_inference_memory_open(weir_inference_memory *memory,
                                       const weir_inference_part *part)
{
    description described = { .mesh_text = "" };
    const weir_parameter *parameters = NULL;
    weir_arena_init(&memory->arena, 0);
    weir_status status = describe(part, &described);
    if (status == WEIR_OK)
        status = list(&described, part->worker, &memory->arena, &parameters, &memory->n_tensors);
    if (status == WEIR_OK)
        status = fill(memory, part, parameters);
    forget(&described);
    return status;
}

static weir_status keep(weir_arena *arena, const char **text)
{
    const char *given = *text;
    *text = given != NULL ? weir_arena_strdup(arena, given) : NULL;
    return given != NULL && *text == NULL ? WEIR_ERR_NO_MEMORY : WEIR_OK;
}

weir_status weir_inference_memory_take(weir_inference_memory *memory,
                                       const weir_inference_live *live)
{
    size_t n = live->n_tensors;
    weir_status status = WEIR_OK;
    weir_arena_init(&memory->arena, 0);
    if (n == 0 || live->tensors == NULL || live->tags == NULL)
        return weir_fail(WEIR_ERR_INVALID, "no live parameters");
    memory->tensors = weir_arena_zeroed(&memory->arena, n, sizeof(*memory->tensors));
    memory->tags = weir_arena_zeroed(&memory->arena, n, sizeof(*memory->tags));
    if (memory->tensors == NULL || memory->tags == NULL)
        return WEIR_ERR_NO_MEMORY;
    memory->n_tensors = n;
    for (size_t i = 0; i < n && status == WEIR_OK; i++) {
        memory->tensors[i] = live->tensors[i];
        memory->tags[i] = live->tags[i];
        status = keep(&memory->arena, &memory->tensors[i].name);
        memory->tags[i].name = memory->tensors[i].name;
        if (status == WEIR_OK)
            status = keep(&memory->arena, &memory->tags[i].compile_target);
        if (status == WEIR_OK)
            status = keep(&memory->arena, &memory->tags[i].compile_metadata);
    }
    return status;
}

void weir_inference_memory_close(weir_inference_memory *memory)
{
    if (memory->on_gpu)
        weir_cuda_free(memory->device, memory->block);
    else if (memory->block != NULL)
        weir_host_free(memory->block, memory->n_bytes);
    weir_arena_close(&memory->arena);
    *memory = (weir_inference_memory){ .block = NULL };
}
