/* SPDX-License-Identifier: Apache-2.0 */
/* replica.c - opening and closing a replica worker, and the memory that it installs into.
 *
 * What an install does is in refit.c; this file owns what lasts from one to the next.
 */
#include "refit/replica.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/error.h"
#include "base/log.h"
#include "base/options.h"
#include "refit/acquire.h"
#include "refit/engine_part.h"

#define PARAMETER_ALIGNMENT 256u
#define WINDOW_ALIGNMENT 256u
#define DEFAULT_WINDOW_BYTES ((uint64_t)128 << 20)

/* ---- open and close --------------------------------------------------------------------------*/

/* Which worker of which engine this is. */
static weir_status read_mesh(weir_replica *replica, const weir_replica_options *options)
{
    weir_replica_mesh *mesh = &replica->mesh;
    weir_status status =
        weir_engine_mesh_read(options->mesh, options->experts, mesh, replica->mesh_text);
    if (status != WEIR_OK)
        return status;
    uint32_t n_workers = weir_replica_mesh_workers(mesh);
    if (options->worker >= n_workers)
        return weir_fail(WEIR_ERR_INVALID, "worker %u: an engine of '%s' has %u, counted from 0",
                         options->worker, options->mesh != NULL ? options->mesh : "tp=1",
                         n_workers);
    replica->mesh_worker = options->worker;
    replica->place = weir_replica_mesh_place(mesh, options->worker);
    return WEIR_OK;
}

static weir_status copy_settings(weir_replica *replica, const weir_replica_options *options)
{
    weir_settings_given given = { options->family, options->layout, options->conversion,
                                  options->transport, options->config };
    weir_status status = weir_settings_open(&replica->settings, &given);
    if (status == WEIR_OK)
        status = weir_settings_copy_text(&replica->listen, options->listen);
    replica->mode = options->install;
    replica->wire = options->wire;
    replica->hooks = options->hooks;
    replica->agree = options->agree;
    replica->reads_trainers_alone = options->reads_trainers_alone;
    replica->serves_nobody = options->serves_nobody;
    replica->peer_wait_ms = options->peer_wait_ms;
    replica->window_bytes = (options->window_bytes ? options->window_bytes : DEFAULT_WINDOW_BYTES) /
                            WEIR_REPLICA_WINDOWS / WINDOW_ALIGNMENT * WINDOW_ALIGNMENT;
    if (status == WEIR_OK && replica->mode == WEIR_INSTALL_STAGED && replica->window_bytes == 0)
        status = weir_fail(WEIR_ERR_INVALID, "window_bytes of %" PRIu64 " is too little",
                           options->window_bytes);
    if (status == WEIR_OK)
        status = weir_device_parse(options->device, &replica->asked_memory, &replica->asked_device);
    if (status == WEIR_OK)
        status = read_mesh(replica, options);
    return status;
}

static weir_status open_worker(weir_replica *replica, const weir_replica_options *options)
{
    static atomic_uint n_opened; /* replicas of one process are not one that was started anew */
    char name[WEIR_NAME_BYTES] = "", host[64] = "";
    if (options->directory == NULL)
        return weir_fail(WEIR_ERR_INVALID, "directory is required");
    gethostname(host, sizeof(host) - 1);
    if (options->name == NULL)
        snprintf(name, sizeof(name), "replica-%s-%ld.%u", host, (long)getpid(),
                 atomic_fetch_add(&n_opened, 1u));
    weir_worker_options worker = { .directory = options->directory,
                                   .model = options->model,
                                   .run = options->run,
                                   .name = options->name ? options->name : name,
                                   .rank = options->worker,
                                   .role = WEIR_ROLE_GENERATOR,
                                   .timeout_ms = options->timeout_ms,
                                   .lease_ms = options->lease_ms,
                                   .n_threads = options->n_threads,
                                   .transport_directory = options->transport_directory,
                                   .progress = options->progress,
                                   .progress_context = options->progress_context,
                                   .security = &options->security };
    weir_status status = weir_worker_open(&replica->worker, &worker);
    if (status == WEIR_OK) /* long, and the same of every replica: who wants it asks one of them */
        status = weir_sidecar_registry_set(&replica->worker.registry, NULL);
    return status;
}

/* Two of one name, run and number supersede each other in the directory. */
static bool is_namesake(const weir_replica *replica, const char *name,
                        const weir_source_record *record)
{
    return record->rank == replica->mesh_worker && weir_worker_is_named(record->worker_id, name) &&
           strcmp(record->worker_id, replica->worker.id) != 0 &&
           strcmp(record->role, "inference_replica") == 0 &&
           strcmp(record->run, replica->worker.run) == 0;
}

/* Whether it still hands out a manifest; one in the midst of an install is not seen. */
static bool is_running(weir_replica *replica, const weir_source_record *record)
{
    weir_buffer manifest = { 0 };
    char digest[WEIR_DIGEST_TEXT];
    weir_status status = weir_directory_get_manifest(
        replica->worker.client, record->endpoint, record->worker_id, record->version_uid, "replica",
        &manifest.data, &manifest.capacity_bytes, &manifest.n_bytes, digest);
    weir_buffer_free(&manifest);
    return status == WEIR_OK;
}

/* Nobody is to count on the one that died before this one has installed a version. */
static weir_status supersede(weir_replica *replica)
{
    weir_source_record record = weir_worker_entry(&replica->worker, 0, "", "");
    weir_keeper *keeper = replica->worker.keeper;
    record.status = WEIR_SOURCE_INITIALIZING;
    record.rank = replica->mesh_worker;
    weir_keeper_pause(keeper);
    weir_status status =
        weir_directory_publish_source(replica->worker.client, &record, replica->source_id);
    if (status == WEIR_OK)
        weir_keeper_announce(keeper, &record, false);
    weir_keeper_resume(keeper);
    return status;
}

/* Refuses a name whose owner is there; one that died is superseded. */
static weir_status check_name(weir_replica *replica, const char *name)
{
    weir_directory_client *client = replica->worker.client;
    weir_source_record record;
    bool has_died = false;
    size_t n = 0;
    weir_status status = weir_directory_list_sources(
        client, replica->worker.model, WEIR_SOURCE_READY, 0, replica->refs, WEIR_MAX_REFS, &n);
    for (size_t i = 0; i < n && i < WEIR_MAX_REFS && status == WEIR_OK; i++) {
        const weir_source_ref *ref = &replica->refs[i];
        if (!weir_worker_is_named(ref->worker_id, name) ||
            weir_directory_get_source(client, ref->source_id, ref->worker_id, &record) != WEIR_OK ||
            !is_namesake(replica, name, &record))
            continue;
        has_died = true;
        if (is_running(replica, &record))
            status =
                weir_fail(WEIR_ERR_EXISTS, "replica %s of %s is running already: it answers at %s",
                          name, replica->worker.model, record.endpoint);
    }
    return status == WEIR_OK && has_died ? supersede(replica) : status;
}

/* Others read this replica one-sided from memory, and trainers that push write there; a transport
 * that writes files is none for that. */
static void choose_serving(weir_replica *replica)
{
    const weir_transport_ops *ops;
    const char *name = weir_work_memory(replica->work) == WEIR_MEMORY_CUDA ? "cuda_ipc" : NULL;
    if (weir_transport_get(name, &ops) != WEIR_OK || !(ops->caps & WEIR_CAP_LIVENESS) ||
        weir_worker_link(&replica->worker, ops->name, &replica->serving) != WEIR_OK) {
        replica->serving = (weir_link){ NULL, NULL };
        weir_log(WEIR_LOG_INFO, "replica %s cannot be read by others: no transport for it: %s",
                 replica->worker.id, weir_last_error());
    }
}

/* From now on the parameters lie there. */
static weir_status settle_memory(weir_replica *replica, uint32_t memory, unsigned device)
{
    if (replica->work != NULL)
        return WEIR_OK;
    replica->worker.device = device;
    weir_status status = weir_work_open(memory, device, replica->worker.pool, &replica->work);
    if (status == WEIR_OK)
        status = weir_task_open(replica->work, &replica->derive);
    if (status == WEIR_OK)
        choose_serving(replica);
    return status;
}

weir_status weir_replica_open(const weir_replica_options *given, weir_replica **out)
{
    weir_replica_options own;
    const weir_replica_options *options = &own;
    weir_status status = weir_options_read(given, "weir_replica_options", &own, sizeof(own));
    if (status != WEIR_OK)
        return status;
    weir_replica *replica = weir_alloc_zeroed(1, sizeof(*replica));
    if (replica == NULL)
        return WEIR_ERR_NO_MEMORY;
    pthread_mutex_init(&replica->lock, NULL);
    weir_arena_init(&replica->arena, 0);
    weir_arena_init(&replica->scratch, 0);
    status = copy_settings(replica, options);
    if (status == WEIR_OK)
        status = open_worker(replica, options);
    if (status == WEIR_OK) {
        replica->refs = weir_arena_alloc(&replica->arena, WEIR_MAX_REFS * sizeof(*replica->refs));
        replica->shards =
            weir_arena_alloc(&replica->arena, WEIR_MAX_LISTED * sizeof(*replica->shards));
        if (replica->refs == NULL || replica->shards == NULL)
            status = WEIR_ERR_NO_MEMORY;
    }
    if (status == WEIR_OK && options->name != NULL)
        status = check_name(replica, options->name);
    if (status != WEIR_OK) {
        weir_replica_close(replica);
        return status;
    }
    *out = replica;
    return WEIR_OK;
}

void weir_replica_close(weir_replica *replica)
{
    if (replica == NULL)
        return;
    weir_worker_leave(&replica->worker, replica->source_id, replica->mesh_worker);
    weir_schedule_dismiss(&replica->schedule); /* what they run works on the regions' memory */
    weir_schedule_dismiss(&replica->other);
    weir_holding_close(replica);
    for (size_t i = 0; i < replica->n_remotes; i++)
        weir_remote_close(replica->remotes[i]);
    weir_free(replica->remotes);
    weir_schedule_close(&replica->schedule);
    weir_schedule_close(&replica->other);
    weir_staging_close(replica);
    weir_loader_close(replica->loader);
    weir_buffer_free(&replica->answer);
    weir_task_close(replica->derive);
    if (replica->owned != NULL)
        weir_work_free(replica->work, replica->owned, replica->owned_bytes);
    weir_work_close(replica->work);
    weir_worker_close(&replica->worker);
    weir_mapping_close(replica->mapping);
    weir_family_sources_free(replica->described);
    weir_settings_close(&replica->settings);
    weir_expert_map_free(replica->mesh.expert_ids);
    weir_free(replica->listen);
    weir_arena_close(&replica->scratch);
    weir_arena_close(&replica->arena);
    pthread_mutex_destroy(&replica->lock);
    weir_free(replica);
}

/* ---- live parameters -------------------------------------------------------------------------*/

static weir_status reserve_parameters(weir_replica *replica, size_t n)
{
    if (replica->n_parameters != 0)
        return weir_fail(WEIR_ERR_EXISTS, "replica %s has registered its parameters already",
                         replica->worker.id);
    if (n == 0)
        return weir_fail(WEIR_ERR_INVALID, "no parameters to register");
    replica->live = weir_arena_zeroed(&replica->arena, n, sizeof(*replica->live));
    replica->wanted = weir_arena_zeroed(&replica->arena, n, sizeof(*replica->wanted));
    replica->staging_offset = weir_arena_zeroed(&replica->arena, n, sizeof(uint64_t));
    if (replica->live == NULL || replica->wanted == NULL || replica->staging_offset == NULL)
        return WEIR_ERR_NO_MEMORY;
    return WEIR_OK;
}

static weir_status copy_parameter(weir_replica *replica, size_t i, const weir_tensor *tensor,
                                  const weir_parameter *tag)
{
    const char *metadata = tag->compile_metadata != NULL ? tag->compile_metadata : "{}";
    const char *target = tag->compile_target != NULL ? tag->compile_target : WEIR_TARGET_HF_RAW;
    if (tensor->name == NULL || tensor->data == NULL)
        return weir_fail(WEIR_ERR_INVALID, "parameter %zu has no %s", i,
                         tensor->name == NULL ? "name" : "memory");
    char *name = weir_arena_strdup(&replica->arena, tensor->name);
    weir_parameter *wanted = &replica->wanted[i];
    *wanted = *tag;
    wanted->name = name;
    wanted->dtype = tensor->dtype;
    wanted->shape = tensor->shape;
    wanted->compile_target = weir_arena_strdup(&replica->arena, target);
    wanted->compile_metadata = weir_arena_strdup(&replica->arena, metadata);
    if (name == NULL || wanted->compile_target == NULL || wanted->compile_metadata == NULL)
        return WEIR_ERR_NO_MEMORY;
    replica->live[i] = *tensor;
    replica->live[i].name = name;
    uint64_t n_bytes;
    return weir_tensor_bytes(tensor->dtype, &tensor->shape, &n_bytes);
}

weir_status weir_replica_register(weir_replica *replica, const weir_tensor *tensors,
                                  const weir_parameter *tags, size_t n_tensors)
{
    uint32_t memory = WEIR_MEMORY_HOST;
    unsigned device = 0;
    weir_status status = reserve_parameters(replica, n_tensors);
    for (size_t i = 0; i < n_tensors && status == WEIR_OK; i++)
        status = copy_parameter(replica, i, &tensors[i], &tags[i]);
    if (status == WEIR_OK)
        status = weir_work_locate_all(tensors, n_tensors, &memory, &device);
    if (status == WEIR_OK)
        status = settle_memory(replica, memory, device);
    if (status != WEIR_OK)
        return status;
    replica->n_parameters = n_tensors;
    status = weir_load_open(replica);
    if (status == WEIR_OK)
        status = weir_holding_open(replica);
    if (status != WEIR_OK)
        replica->n_parameters = 0;
    return status;
}

static weir_status describe_engine(weir_replica *replica)
{
    if (replica->settings.config == NULL)
        return weir_fail(WEIR_ERR_INVALID,
                         "replica %s needs the engine's config.json to know its parameters",
                         replica->worker.id);
    const char *family = replica->settings.family;
    size_t n_sources;
    weir_status status = WEIR_OK;
    if (family == NULL)
        status = weir_family_of_config(replica->settings.config, &family);
    if (status == WEIR_OK)
        status = weir_family_sources(family, replica->settings.config, WEIR_NAMING_HF,
                                     &replica->described, &n_sources);
    if (status != WEIR_OK)
        return status;
    weir_mapping_options options = WEIR_MAPPING_OPTIONS_INIT;
    options.family = family;
    options.layout = replica->settings.layout;
    options.conversion = replica->settings.conversion;
    options.config = replica->settings.config;
    return weir_mapping_open(&options, replica->described, n_sources, &replica->mapping);
}

/* One block for all parameters, from the transport that others will read it through when there is
 * one: it moves its own memory best. */
static weir_status allocate_block(weir_replica *replica, uint64_t n_bytes, unsigned char **out)
{
    weir_status status;
    replica->worker.counters.allocations++;
    if (replica->serving.ops == NULL) {
        status = weir_work_allocate(replica->work, n_bytes, &replica->owned);
        replica->owned_bytes = n_bytes;
        *out = replica->owned;
        return status;
    }
    replica->worker.counters.registrations++;
    replica->regions = weir_arena_zeroed(&replica->arena, 1, sizeof(*replica->regions));
    if (replica->regions == NULL)
        return WEIR_ERR_NO_MEMORY;
    status =
        replica->serving.ops->allocate(replica->serving.transport, n_bytes, &replica->regions[0]);
    if (status != WEIR_OK)
        return status;
    replica->n_regions = 1;
    *out = replica->serving.ops->region_data(replica->regions[0]);
    return WEIR_OK;
}

static weir_status aligned_bytes(const weir_parameter *parameter, uint64_t *out_n_bytes)
{
    uint64_t n_bytes = 0;
    weir_status status = weir_tensor_bytes(parameter->dtype, &parameter->shape, &n_bytes);
    *out_n_bytes = (n_bytes + PARAMETER_ALIGNMENT - 1) / PARAMETER_ALIGNMENT * PARAMETER_ALIGNMENT;
    return status;
}

static weir_status place_parameters(weir_replica *replica, const weir_parameter *parameters,
                                    size_t n)
{
    uint64_t total_bytes = 0, n_bytes = 0;
    unsigned char *block;
    weir_status status = WEIR_OK;
    for (size_t i = 0; i < n && status == WEIR_OK; i++) {
        status = aligned_bytes(&parameters[i], &n_bytes);
        total_bytes += n_bytes;
    }
    if (status == WEIR_OK)
        status = allocate_block(replica, total_bytes ? total_bytes : 1, &block);
    if (status != WEIR_OK) {
        weir_error_prefix("live parameters of %" PRIu64 " bytes", total_bytes);
        return status;
    }
    for (size_t i = 0; i < n; i++) {
        replica->live[i] =
            (weir_tensor){ parameters[i].name, parameters[i].dtype, parameters[i].shape, block };
        aligned_bytes(&parameters[i], &n_bytes);
        block += n_bytes;
    }
    memcpy(replica->wanted, parameters, n * sizeof(*parameters));
    return WEIR_OK;
}

/* All of the engine's parameters, or this worker's part of them. */
static weir_status describe_part(weir_replica *replica, const weir_parameter **out, size_t *out_n)
{
    weir_engine_part part;
    if (replica->mesh_text[0] == '\0') {
        *out = weir_mapping_parameters(replica->mapping, out_n);
        replica->derived = weir_mapping_derived(replica->mapping, &replica->n_derived);
        return WEIR_OK;
    }
    weir_status status = weir_engine_part_of(replica->mapping, &replica->mesh, replica->mesh_worker,
                                             &replica->arena, &part);
    if (status != WEIR_OK)
        return status;
    *out = part.parameters;
    *out_n = part.n_parameters;
    replica->derived = part.derived;
    replica->n_derived = part.n_derived;
    replica->filled_bytes = part.filled_bytes;
    return WEIR_OK;
}

static weir_status describe_parameters(weir_replica *replica, const weir_parameter **out,
                                       size_t *out_n)
{
    weir_status status = replica->mapping == NULL ? describe_engine(replica) : WEIR_OK;
    if (status == WEIR_OK)
        status = describe_part(replica, out, out_n);
    return status;
}

/* The first n are described and placed: the replica can be installed into, and be read. */
static weir_status settle_parameters(weir_replica *replica, size_t n)
{
    replica->n_parameters = n;
    weir_status status = weir_load_open(replica);
    if (status == WEIR_OK)
        status = weir_holding_open(replica);
    if (status != WEIR_OK)
        replica->n_parameters = 0;
    return status;
}

weir_status weir_replica_allocate(weir_replica *replica)
{
    size_t n = 0;
    const weir_parameter *parameters = NULL;
    weir_status status = describe_parameters(replica, &parameters, &n);
    if (status == WEIR_OK)
        status = reserve_parameters(replica, n);
    if (status == WEIR_OK)
        status = settle_memory(replica, replica->asked_memory, replica->asked_device);
    if (status == WEIR_OK)
        status = place_parameters(replica, parameters, n);
    return status == WEIR_OK ? settle_parameters(replica, n) : status;
}

/* The parameters that are described, at addresses that are given. */
static weir_status place_there(weir_replica *replica, const weir_parameter *parameters,
                               const weir_tensor *tensors, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        const weir_parameter *wanted = &parameters[i];
        const weir_tensor *given = &tensors[i];
        if (strcmp(given->name, wanted->name) != 0 || given->dtype != wanted->dtype ||
            !weir_shape_equal(&given->shape, &wanted->shape))
            return weir_fail(WEIR_ERR_LAYOUT,
                             "parameter %zu is %s as config.json describes it, the memory is that "
                             "of %s, or of another dtype or shape",
                             i, wanted->name, given->name);
        replica->live[i] = *given;
        replica->live[i].name = wanted->name;
    }
    memcpy(replica->wanted, parameters, n * sizeof(*parameters));
    return WEIR_OK;
}

weir_status weir_replica_adopt(weir_replica *replica, const weir_tensor *tensors, size_t n_tensors)
{
    size_t n = 0;
    uint32_t memory = WEIR_MEMORY_HOST;
    unsigned device = 0;
    const weir_parameter *parameters = NULL;
    weir_status status = describe_parameters(replica, &parameters, &n);
    if (status == WEIR_OK && n != n_tensors)
        status = weir_fail(WEIR_ERR_LAYOUT,
                           "config.json describes %zu parameters, memory is given for %zu", n,
                           n_tensors);
    if (status == WEIR_OK)
        status = reserve_parameters(replica, n);
    if (status == WEIR_OK)
        status = place_there(replica, parameters, tensors, n);
    if (status == WEIR_OK)
        status = weir_work_locate_all(tensors, n, &memory, &device);
    if (status == WEIR_OK)
        status = settle_memory(replica, memory, device);
    return status == WEIR_OK ? settle_parameters(replica, n) : status;
}

const weir_tensor *weir_replica_parameters(const weir_replica *replica, size_t *out_n)
{
    *out_n = replica->n_parameters;
    return replica->live;
}

void weir_replica_rebound(weir_replica *replica, unsigned timeout_ms)
{
    replica->worker.timeout_ms = timeout_ms;
    atomic_store(&replica->worker.cancelled, false);
}

void weir_replica_cancel(weir_replica *replica)
{
    weir_worker_cancel(&replica->worker);
}
