/* SPDX-License-Identifier: Apache-2.0 */
/* publish_registry.c - shards as descriptors, and the one text that an entry carries of them. */
#include "refit/publish_registry.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "base/error.h"
#include "base/log.h"

/* ---- names that come again -------------------------------------------------------------------*/

typedef struct numbered {
    const char *name;
    size_t shard;
    uint32_t nth;   /* of its name */
    bool is_shared; /* there are others */
} numbered;

static int by_name(const void *a, const void *b)
{
    const numbered *x = a, *y = b;
    int order = strcmp(x->name, y->name);
    return order != 0 ? order : (x->shard > y->shard) - (x->shard < y->shard);
}

static int by_shard(const void *a, const void *b)
{
    const numbered *x = a, *y = b;
    return (x->shard > y->shard) - (x->shard < y->shard);
}

static void number_names(const weir_published *published, numbered *names)
{
    size_t n = published->n_shards;
    for (size_t i = 0; i < n; i++)
        names[i] = (numbered){ .name = published->shards[i].name, .shard = i };
    qsort(names, n, sizeof(*names), by_name);
    for (size_t i = 1; i < n; i++) {
        if (strcmp(names[i].name, names[i - 1].name) != 0)
            continue;
        names[i].nth = names[i - 1].nth + 1;
        names[i].is_shared = names[i - 1].is_shared = true;
    }
    qsort(names, n, sizeof(*names), by_shard);
}

/* ---- one shard -------------------------------------------------------------------------------*/

static const char *place_text(uint32_t number, char out[16])
{
    snprintf(out, 16, "%" PRIu32, number);
    return number == WEIR_ANY ? "null" : out;
}

/* The shard's metadata and whose part it is, in the arena. */
static const char *metadata_of(const weir_shard *shard, weir_arena *arena)
{
    char stage[16], d[16], t[16];
    const char *metadata = shard->compile_metadata != NULL ? shard->compile_metadata : "{}";
    size_t n = strlen(metadata);
    while (n > 0 && metadata[n - 1] != '}')
        n--;
    bool is_empty = n > 0 && strspn(metadata + 1, " \n\t}") == strlen(metadata + 1);
    return weir_arena_format(arena, "%.*s%s\"weir_place\":[%s,%s,%s]}", n > 0 ? (int)n - 1 : 0,
                             metadata, is_empty ? "" : ",", place_text(shard->place.stage, stage),
                             place_text(shard->place.d, d), place_text(shard->place.t, t));
}

static void set_placement(const weir_shard *shard, weir_tensor_descriptor *out)
{
    unsigned n_cut = 0;
    for (uint32_t a = 0; a < shard->box.rank; a++) {
        if (shard->box.lo[a] == 0 && shard->box.hi[a] == shard->global_shape.dim[a])
            continue;
        out->shard_axis = a;
        n_cut++;
    }
    if (n_cut > 1) {
        out->placement = WEIR_PLACEMENT_BOX;
        out->shard_axis = 0;
        out->box = shard->box;
    } else if (n_cut == 1) {
        out->placement = WEIR_PLACEMENT_SHARD;
        out->has_range = true;
        out->range_lo = shard->box.lo[out->shard_axis];
        out->range_hi = shard->box.hi[out->shard_axis];
    }
}

static weir_status set_experts(const weir_shard *shard, weir_arena *arena,
                               weir_tensor_descriptor *out)
{
    uint64_t n = shard->box.hi[0] - shard->box.lo[0];
    uint32_t *ids = weir_arena_zeroed(arena, n, sizeof(*ids));
    if (ids == NULL)
        return WEIR_ERR_NO_MEMORY;
    for (uint64_t i = 0; i < n; i++)
        ids[i] = (uint32_t)(shard->box.lo[0] + i);
    out->is_expert = true;
    out->expert_ids = ids;
    out->n_expert_ids = n;
    return WEIR_OK;
}

static weir_status describe(const weir_published *published, const numbered *name,
                            weir_arena *arena, weir_tensor_descriptor *out)
{
    const weir_shard *shard = &published->shards[name->shard];
    const char *dtype = weir_dtype_torch_name(shard->dtype);
    *out = (weir_tensor_descriptor){ .name = shard->name,
                                     .global_shape = shard->global_shape,
                                     .dtype = dtype != NULL ? dtype : weir_dtype_name(shard->dtype),
                                     .compile_target = shard->compile_target,
                                     .compile_metadata = shard->compile_metadata };
    set_placement(shard, out);
    if (name->nth > 0)
        out->name = weir_arena_format(arena, "%s#%" PRIu32, shard->name, name->nth);
    if (published->in_parts)
        out->compile_metadata = metadata_of(shard, arena);
    if (out->name == NULL || (published->in_parts && out->compile_metadata == NULL))
        return WEIR_ERR_NO_MEMORY;
    bool is_part = published->in_parts || name->is_shared || out->placement == WEIR_PLACEMENT_BOX;
    if (is_part && strcmp(shard->compile_target, WEIR_TARGET_HF_RAW) == 0)
        out->compile_target = WEIR_TARGET_PART;
    bool of_experts = published->of_experts != NULL && published->of_experts[name->shard];
    if (of_experts && !published->in_parts && shard->box.rank > 0)
        return set_experts(shard, arena, out);
    return WEIR_OK;
}

static bool is_empty(const weir_shard *shard)
{
    for (uint32_t a = 0; a < shard->box.rank; a++) {
        if (shard->box.lo[a] >= shard->box.hi[a])
            return true;
    }
    return false;
}

/* ---- all of them -----------------------------------------------------------------------------*/

static weir_status encode(const weir_published *published, weir_arena *arena, char **out)
{
    size_t n = published->n_shards;
    numbered *names = weir_arena_zeroed(arena, n + 1, sizeof(*names));
    weir_tensor_descriptor *list = weir_arena_zeroed(arena, n + 1, sizeof(*list));
    weir_tensor_registry registry = { .world = published->world, .tensors = list };
    weir_status status = names != NULL && list != NULL ? WEIR_OK : WEIR_ERR_NO_MEMORY;
    if (status == WEIR_OK)
        number_names(published, names);
    for (size_t i = 0; i < n && status == WEIR_OK; i++) {
        if (!is_empty(&published->shards[i]))
            status = describe(published, &names[i], arena, &list[registry.n_tensors++]);
    }
    return status == WEIR_OK ? weir_tensor_registry_encode(&registry, out) : status;
}

weir_status weir_published_encode(const weir_published *published, char **out)
{
    weir_arena arena;
    weir_arena_init(&arena, 0);
    weir_status status = encode(published, &arena, out);
    weir_arena_close(&arena);
    return status;
}

/* ---- a trainer rank's ------------------------------------------------------------------------*/

static weir_world_layout world_of(const weir_trainer *trainer)
{
    const weir_trainer_mesh *mesh = &trainer->mesh;
    weir_world_layout ranks = { .fsdp = trainer->n_ranks, .tp = 1, .pp = 1, .ep = 1 };
    if (!trainer->is_sharded || trainer->is_explicit)
        return ranks;
    uint32_t n_groups = mesh->hsdp > 0 ? mesh->hsdp : 1;
    return (weir_world_layout){ .fsdp = (mesh->fsdp > 0 ? mesh->fsdp : 1) * n_groups,
                                .tp = mesh->tp,
                                .pp = mesh->pp,
                                .ep = mesh->ep };
}

static weir_status write_registry(const weir_trainer *trainer, weir_sidecar_registry *text)
{
    const weir_source *source = &trainer->source;
    char *registry = NULL;
    bool *of_experts = weir_alloc_zeroed(source->n_shards + 1, sizeof(*of_experts));
    if (of_experts == NULL)
        return WEIR_ERR_NO_MEMORY;
    for (size_t j = 0; j < source->n_jobs; j++) {
        const weir_stage_job *job = &source->jobs[j];
        for (size_t o = 0; o < job->args.conversion->n_outputs && job->args.n_experts > 0; o++)
            of_experts[job->shards[o]] = true;
    }
    const weir_published published = { source->shards, source->n_shards, of_experts,
                                       trainer->mesh_text[0] != '\0', world_of(trainer) };
    weir_status status = weir_published_encode(&published, &registry);
    if (status == WEIR_OK)
        status = weir_sidecar_registry_set(text, registry);
    weir_string_free(registry);
    weir_free(of_experts);
    return status;
}

void weir_publish_registry(weir_trainer *trainer, weir_source_record *record)
{
    weir_worker *worker = &trainer->worker;
    weir_world_layout world = world_of(trainer);
    if (worker->registry_of != trainer->source.generation) {
        if (write_registry(trainer, &worker->registry) != WEIR_OK) {
            weir_log(WEIR_LOG_WARN, "trainer rank %u leaves its registry to its manifests: %s",
                     trainer->rank, weir_last_error());
            weir_sidecar_registry_set(&worker->registry, NULL);
        }
        worker->registry_of = trainer->source.generation;
    }
    weir_world_layout_text(&world, record->world_layout, sizeof(record->world_layout));
    record->registry = &worker->registry;
}
