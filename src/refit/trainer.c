/* SPDX-License-Identifier: Apache-2.0 */
/* trainer.c - opening and closing a trainer rank, and the manifests that it hands out.
 *
 * What a publish does is in refit.c; this file owns what lasts from one to the next.
 */
#include "refit/trainer.h"

#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "base/error.h"
#include "base/options.h"
#include "refit/border.h"
#include "refit/engine_part.h"
#include "refit/rank_plan.h"
#include "refit/registries.h"
#include "refit/window.h"

#define DEFAULT_SLOTS 2u

/* ---- manifest service ------------------------------------------------------------------------*/

/* Uids of versions, not of what ranks hand each other. */
static bool is_version_uid(const char *uid)
{
    return strlen(uid) == 8 && strspn(uid, "0123456789abcdef") == 8;
}

static const weir_slot *find_slot(const weir_trainer *trainer, const char *uid)
{
    for (unsigned i = 0; i < trainer->n_slots; i++) {
        if (strcmp(trainer->slots[i].uid, uid) == 0)
            return &trainer->slots[i];
    }
    return NULL;
}

static bool find_locked(const weir_trainer *trainer, const weir_manifest_request *request,
                        weir_manifest_found *out)
{
    if (request->reader[0] != '\0')
        return trainer->window != NULL && weir_window_answer(trainer->window, request, out);
    if (trainer->border != NULL && weir_border_manifest(trainer->border, request->version_uid,
                                                        &out->bytes, &out->n_bytes, &out->digest))
        return true;
    if (trainer->registries != NULL &&
        weir_registries_manifest(trainer->registries, request->version_uid, &out->bytes,
                                 &out->n_bytes, &out->digest))
        return true;
    const weir_slot *found = find_slot(trainer, request->version_uid);
    char uid[WEIR_ID_BYTES];
    if (found == NULL && weir_keeper_find(trainer->worker.keeper, request->version_uid, uid))
        found = find_slot(trainer, uid);
    /* The directory may say which version it is to readers before it says it here. Who means
     * another one sees the digest differ. */
    if (found == NULL && is_version_uid(request->version_uid))
        found = trainer->pending;
    if (found == NULL)
        return false;
    *out = (weir_manifest_found){ found->manifest.data, found->manifest.n_bytes,
                                  found->manifest_digest };
    return true;
}

/* Runs in the service's thread; holds the lock until manifest_done(). */
static bool manifest_find(void *context, const weir_manifest_request *request,
                          weir_manifest_found *out)
{
    weir_trainer *trainer = context;
    if (strcmp(request->slot, trainer->slot_name) != 0 || request->version_uid[0] == '\0')
        return false;
    pthread_mutex_lock(&trainer->lock);
    if (find_locked(trainer, request, out))
        return true;
    pthread_mutex_unlock(&trainer->lock);
    return false;
}

static void manifest_done(void *context)
{
    weir_trainer *trainer = context;
    pthread_mutex_unlock(&trainer->lock);
}

/* ---- open and close --------------------------------------------------------------------------*/

static bool is_sharded(const weir_trainer_options *options)
{
    return options->mesh != NULL || options->replica_mesh != NULL;
}

/* A checkpoint is the same for every engine: layout and conversion are the replicas' affair. Ranks
 * of a mesh plan by the rows of the engine's parameters, and name what they send by its sources. */
static weir_status read_wire(weir_trainer *trainer, const weir_trainer_options *options,
                             weir_settings_given *given)
{
    trainer->wire = options->wire;
    if (options->wire == WEIR_WIRE_KERNEL)
        return WEIR_OK;
    if (options->wire != WEIR_WIRE_CHECKPOINT)
        return weir_fail(WEIR_ERR_INVALID, "wire %d: there are kernel (0) and checkpoint (1)",
                         (int)options->wire);
    if (options->config == NULL)
        return weir_fail(WEIR_ERR_INVALID, "a trainer that sends a checkpoint needs the model's "
                                           "config.json, which says what its tensors are named");
    if (options->keep_masters)
        return weir_fail(WEIR_ERR_INVALID, "a checkpoint is sent in bf16: masters cannot be kept");
    given->layout = is_sharded(options) ? NULL : WEIR_LAYOUT_CHECKPOINT;
    given->conversion = "bf16_cast";
    return WEIR_OK;
}

static weir_status copy_settings(weir_trainer *trainer, const weir_trainer_options *options)
{
    weir_settings_given given = { options->family, options->layout, options->conversion,
                                  options->transport, options->config };
    weir_status status = read_wire(trainer, options, &given);
    if (status == WEIR_OK)
        status = weir_settings_open(&trainer->settings, &given);
    trainer->ignore = weir_alloc_zeroed(options->n_ignore, sizeof(*trainer->ignore));
    if (status == WEIR_OK && trainer->ignore == NULL)
        status = WEIR_ERR_NO_MEMORY;
    for (size_t i = 0; i < options->n_ignore && status == WEIR_OK; i++, trainer->n_ignore++)
        status = weir_settings_copy_text(&trainer->ignore[i], options->ignore[i]);
    trainer->keep_masters = options->keep_masters;
    trainer->asked_delivery = options->delivery;
    trainer->window_bytes = options->window_bytes;
    trainer->scan_first = options->scan_first;
    trainer->stream = options->stream;
    if (status == WEIR_OK)
        status = weir_settings_copy_text(&trainer->listen, options->listen);
    return status;
}

/* Ranks whose boxes no mesh says. */
static weir_status read_explicit(weir_trainer *trainer, const weir_trainer_options *options)
{
    trainer->is_explicit = true;
    if (options->n_ranks == 0)
        return weir_fail(WEIR_ERR_INVALID,
                         "mesh %s does not say how many trainer ranks there are: give n_ranks",
                         WEIR_MESH_EXPLICIT);
    if (options->expert_owners != NULL)
        return weir_fail(WEIR_ERR_INVALID,
                         "mesh %s: experts are of who registers them, expert_owners say nothing",
                         WEIR_MESH_EXPLICIT);
    trainer->n_ranks = options->n_ranks;
    return WEIR_OK;
}

static weir_status read_trainer_mesh(weir_trainer *trainer, const weir_trainer_options *options)
{
    if (options->mesh != NULL && strcmp(options->mesh, WEIR_MESH_EXPLICIT) == 0)
        return read_explicit(trainer, options);
    weir_status status =
        weir_trainer_mesh_parse(options->mesh ? options->mesh : "", &trainer->mesh);
    if (status == WEIR_OK && options->expert_owners != NULL)
        status = weir_trainer_mesh_set_owners(&trainer->mesh, options->expert_owners);
    if (status != WEIR_OK)
        return status;
    uint32_t n_ranks = weir_trainer_mesh_ranks(&trainer->mesh);
    if (options->n_ranks != 0 && options->n_ranks != n_ranks)
        return weir_fail(WEIR_ERR_INVALID, "%u trainer ranks, but the mesh %s has %u",
                         options->n_ranks, options->mesh ? options->mesh : "(none)", n_ranks);
    trainer->n_ranks = n_ranks;
    return WEIR_OK;
}

/* A rank of a mesh, or of a trainer whose engines are parallel. */
static weir_status read_meshes(weir_trainer *trainer, const weir_trainer_options *options)
{
    bool whole = options->wire == WEIR_WIRE_CHECKPOINT; /* every worker reads whole tensors */
    trainer->is_sharded = is_sharded(options);
    if (!trainer->is_sharded)
        return WEIR_OK;
    weir_status status = read_trainer_mesh(trainer, options);
    if (status == WEIR_OK)
        status = weir_engine_mesh_read(whole ? NULL : options->replica_mesh,
                                       whole ? NULL : options->replica_experts,
                                       &trainer->replica_mesh, trainer->mesh_text);
    return status;
}

static weir_status name_slots(weir_trainer *trainer, const weir_trainer_options *options)
{
    trainer->rank = options->rank;
    if (!trainer->is_sharded)
        trainer->n_ranks = options->n_ranks ? options->n_ranks : 1;
    trainer->n_slots = options->n_slots ? options->n_slots : DEFAULT_SLOTS;
    if (trainer->n_ranks > WEIR_MAX_RANKS)
        return weir_fail(WEIR_ERR_INVALID, "%u trainer ranks, at most %d are possible",
                         trainer->n_ranks, WEIR_MAX_RANKS);
    if (trainer->rank >= trainer->n_ranks)
        return weir_fail(WEIR_ERR_INVALID, "trainer rank %u: of %u ranks the last is %u",
                         trainer->rank, trainer->n_ranks, trainer->n_ranks - 1);
    if (trainer->n_slots > WEIR_MAX_SLOTS)
        return weir_fail(WEIR_ERR_INVALID, "%u slots, at most %d are possible", trainer->n_slots,
                         WEIR_MAX_SLOTS);
    snprintf(trainer->slot_name, sizeof(trainer->slot_name), "rank-%u", trainer->rank);
    trainer->slot_names = weir_alloc_zeroed(trainer->n_ranks, sizeof(*trainer->slot_names));
    if (trainer->slot_names == NULL)
        return WEIR_ERR_NO_MEMORY;
    for (uint32_t i = 0; i < trainer->n_ranks; i++) {
        trainer->slot_names[i] = weir_format("rank-%u", i);
        if (trainer->slot_names[i] == NULL)
            return WEIR_ERR_NO_MEMORY;
    }
    return WEIR_OK;
}

static weir_status find_directory(weir_trainer *trainer, const weir_trainer_options *given)
{
    weir_status status = WEIR_OK;
    const char *address = given->directory;
    if (address == NULL) {
        weir_directory_options options = WEIR_DIRECTORY_OPTIONS_INIT;
        options.security = given->security;
        status = weir_directory_open(&options, &trainer->embedded);
        if (status == WEIR_OK)
            address = weir_directory_address(trainer->embedded);
    }
    if (status == WEIR_OK && (trainer->directory = weir_strdup(address)) == NULL)
        status = WEIR_ERR_NO_MEMORY;
    return status;
}

static weir_status open_worker(weir_trainer *trainer, const weir_trainer_options *options)
{
    char name[32];
    snprintf(name, sizeof(name), "trainer-%u", trainer->rank);
    weir_worker_options worker = { .directory = trainer->directory,
                                   .model = options->model,
                                   .run = options->run,
                                   .name = name,
                                   .rank = trainer->rank,
                                   .role = WEIR_ROLE_TRAINER,
                                   .timeout_ms = options->timeout_ms,
                                   .lease_ms = options->lease_ms,
                                   .n_threads = options->n_threads,
                                   .transport_directory = options->transport_directory,
                                   .progress = options->progress,
                                   .progress_context = options->progress_context,
                                   .security = &options->security };
    weir_status status = weir_worker_open(&trainer->worker, &worker);
    if (status != WEIR_OK)
        return status;
    weir_manifest_source source = { manifest_find, manifest_done, trainer };
    return weir_manifest_service_open(options->listen ? options->listen : "127.0.0.1", &source,
                                      &trainer->worker.security.security, &trainer->service);
}

weir_status weir_trainer_open(const weir_trainer_options *given, weir_trainer **out)
{
    weir_trainer_options own;
    const weir_trainer_options *options = &own;
    weir_status status = weir_options_read(given, "weir_trainer_options", &own, sizeof(own));
    if (status != WEIR_OK)
        return status;
    weir_trainer *trainer = weir_alloc_zeroed(1, sizeof(*trainer));
    if (trainer == NULL)
        return WEIR_ERR_NO_MEMORY;
    pthread_mutex_init(&trainer->lock, NULL);
    weir_arena_init(&trainer->scratch, 0);
    status = copy_settings(trainer, options);
    if (status == WEIR_OK && options->traceparent != NULL)
        status = weir_trace_read(options->traceparent, trainer->given_trace);
    if (status == WEIR_OK)
        status = read_meshes(trainer, options);
    if (status == WEIR_OK)
        status = name_slots(trainer, options);
    if (status == WEIR_OK && trainer->is_explicit)
        status = weir_registries_open(trainer, &trainer->registries);
    if (status == WEIR_OK)
        status = find_directory(trainer, options);
    if (status == WEIR_OK)
        status = open_worker(trainer, options);
    if (status != WEIR_OK) {
        weir_trainer_close(trainer);
        return status;
    }
    *out = trainer;
    return WEIR_OK;
}

void weir_trainer_close(weir_trainer *trainer)
{
    if (trainer == NULL)
        return;
    weir_slots_withdraw(trainer);
    weir_manifest_service_close(trainer->service); /* which asks the keeper */
    weir_worker_leave(&trainer->worker, trainer->source_id, trainer->rank);
    weir_window_close(trainer); /* its broadcast groups may have registered the slots */
    weir_slots_release(trainer);
    weir_source_release(&trainer->source); /* borders on a GPU end in the work's streams */
    weir_rank_plan_close(trainer->rank_plan);
    weir_delivery_close(trainer);
    weir_registries_close(trainer->registries);
    weir_worker_close(&trainer->worker);
    weir_directory_close(trainer->embedded);
    for (uint32_t i = 0; trainer->slot_names != NULL && i < trainer->n_ranks; i++)
        weir_free(trainer->slot_names[i]);
    for (size_t i = 0; i < trainer->n_ignore; i++)
        weir_free(trainer->ignore[i]);
    weir_expert_map_free(trainer->mesh.expert_owners);
    weir_expert_map_free(trainer->replica_mesh.expert_ids);
    weir_free(trainer->slot_names);
    weir_free(trainer->rank_refs);
    weir_free(trainer->ignore);
    weir_free(trainer->listen);
    weir_free(trainer->directory);
    weir_settings_close(&trainer->settings);
    weir_arena_close(&trainer->scratch);
    pthread_mutex_destroy(&trainer->lock);
    weir_free(trainer);
}

const char *weir_trainer_directory(const weir_trainer *trainer)
{
    return trainer->directory;
}

/* Whole tensors are shards that are whole: whatever a rank holds besides its own is not used. */
static weir_status register_whole(weir_trainer *trainer, const weir_tensor *tensors,
                                  size_t n_tensors)
{
    weir_tensor_shard *shards = weir_alloc_zeroed(n_tensors, sizeof(*shards));
    if (shards == NULL)
        return WEIR_ERR_NO_MEMORY;
    for (size_t i = 0; i < n_tensors; i++)
        shards[i] =
            (weir_tensor_shard){ tensors[i], tensors[i].shape, weir_box_whole(&tensors[i].shape) };
    weir_status status = weir_source_bind_shards(trainer, shards, n_tensors);
    weir_free(shards);
    return status;
}

weir_status weir_trainer_register(weir_trainer *trainer, const weir_tensor *tensors,
                                  size_t n_tensors)
{
    return trainer->is_sharded ? register_whole(trainer, tensors, n_tensors)
                               : weir_source_bind(trainer, tensors, n_tensors);
}

weir_status weir_trainer_register_shards(weir_trainer *trainer, const weir_tensor_shard *shards,
                                         size_t n_shards)
{
    if (!trainer->is_sharded)
        return weir_fail(WEIR_ERR_INVALID,
                         "trainer rank %u was opened without a mesh: register whole tensors",
                         trainer->rank);
    return weir_source_bind_shards(trainer, shards, n_shards);
}

void weir_trainer_cancel(weir_trainer *trainer)
{
    weir_worker_cancel(&trainer->worker);
}

void weir_trainer_uncancel(weir_trainer *trainer)
{
    weir_worker_uncancel(&trainer->worker);
}
