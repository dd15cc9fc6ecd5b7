/* SPDX-License-Identifier: Apache-2.0 */
/* replica.c - opening, closing and cancelling a replica worker.
 *
 * The memory that it installs into is in parameters.c, what an install does in refit.c.
 */
#include "refit/replica.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/error.h"
#include "base/options.h"
#include "refit/acquire.h"
#include "refit/engine_part.h"

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
        weir_remote_begin_leaving(replica->remotes[i], replica->remotes[i]->is_casting);
    for (size_t i = 0; i < replica->n_remotes; i++)
        weir_remote_close(replica->remotes[i]);
    weir_free(replica->remotes);
    weir_schedule_close(&replica->schedule);
    weir_schedule_close(&replica->other);
    weir_staging_close(replica);
    weir_catch_close(replica);
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

/* ---- between and during calls ----------------------------------------------------------------*/

void weir_replica_rebound(weir_replica *replica, unsigned timeout_ms)
{
    replica->worker.timeout_ms = timeout_ms;
    weir_replica_uncancel(replica);
}

void weir_replica_uncancel(weir_replica *replica)
{
    weir_worker_uncancel(&replica->worker);
}

void weir_replica_cancel(weir_replica *replica)
{
    weir_worker_cancel(&replica->worker);
}
