/* SPDX-License-Identifier: Apache-2.0 */
/* verify.c - compares a live replica with a checkpoint, byte for byte.
 *
 * Takes the long way round on purpose: sources are joined by plain copies, the C reference kernels
 * convert them whole, and the replica's live parameters are read over its transport as any reader
 * would. Nothing here is shared with stage.c but the specification. Of a worker of a parallel
 * engine the whole model's sources are cut as the engine cuts them (gather.c), which owes nothing
 * to the plan by which trainer ranks share the work.
 */
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "base/error.h"
#include "base/options.h"
#include "refit/engine_part.h"
#include "refit/gather.h"
#include "refit/remote.h"
#include "refit/settings.h"

#define MAX_REFS 512u

typedef struct verification {
    const weir_verify_options *options;
    weir_verify_report *report;
    weir_worker worker;
    weir_config *config;
    weir_mapping *mapping;
    const weir_map_entry *entries;
    weir_replica_mesh mesh; /* of the engine */
    char mesh_text[WEIR_MESH_TEXT];
    weir_gather gather;
    weir_fleet_tensor *tensors; /* parallel to the mapping's entries; NULL of one worker */
    weir_arena arena;
    const weir_parameter *parameters; /* of the worker; those of one entry side by side */
    size_t n_parameters;
    const weir_derived *derived;
    size_t n_derived;
    weir_remote *remote;
    const weir_shard **by_name; /* the replica's parameters, sorted */
    weir_source_record record;
    weir_buffer fused, expected[WEIR_MAX_OUTPUTS], live;
} verification;

/* ---- the replica -----------------------------------------------------------------------------*/

/* Into job->record, when it is the entry of a replica worker of that name. */
static weir_status look_at(verification *job, const weir_source_ref *ref, bool *out_found)
{
    weir_source_record record;
    *out_found = false;
    if (!weir_worker_is_named(ref->worker_id, job->options->replica))
        return WEIR_OK;
    weir_status status =
        weir_directory_get_source(job->worker.client, ref->source_id, ref->worker_id, &record);
    if (status != WEIR_OK || strcmp(record.role, "inference_replica") != 0 ||
        strcmp(record.run, job->worker.run) != 0)
        return status == WEIR_ERR_NOT_FOUND ? WEIR_OK : status;
    job->record = record;
    *out_found = true;
    return WEIR_OK;
}

/* The workers of one engine may have one name: the one of that number, or any, to say which it is.
 */
static weir_status find_replica(verification *job)
{
    weir_source_ref *refs = weir_alloc(MAX_REFS * sizeof(*refs));
    size_t n = 0;
    if (refs == NULL)
        return WEIR_ERR_NO_MEMORY;
    weir_status status = weir_directory_list_sources(job->worker.client, job->worker.model,
                                                     WEIR_SOURCE_READY, 0, refs, MAX_REFS, &n);
    bool found = false, is_it = false;
    for (size_t i = 0; i < n && i < MAX_REFS && status == WEIR_OK && !is_it; i++) {
        bool found_here;
        status = look_at(job, &refs[i], &found_here);
        found |= found_here;
        is_it = found_here && job->record.rank == job->options->worker;
    }
    weir_free(refs);
    if (status == WEIR_OK && !found)
        status = weir_fail(WEIR_ERR_NOT_FOUND,
                           "directory %s knows no replica %s of %s, run %s, that holds a version",
                           weir_directory_client_address(job->worker.client), job->options->replica,
                           job->worker.model, job->worker.run);
    return status;
}

static weir_status fetch_replica(verification *job)
{
    weir_manifest_wish wish = { .endpoint = job->record.endpoint,
                                .uid = job->record.version_uid,
                                .version = job->record.version };
    weir_status status = weir_remote_fetch(job->remote, &wish);
    if (status == WEIR_ERR_NOT_FOUND)
        status = weir_fail(WEIR_ERR_BUSY,
                           "replica %s hands out no manifest of version %" PRIu64
                           ": it is installing another, or has no transport to be read through",
                           job->options->replica, job->record.version);
    return status;
}

static int compare_shards(const void *a, const void *b)
{
    return strcmp((*(const weir_shard *const *)a)->name, (*(const weir_shard *const *)b)->name);
}

static const char *mesh_name(const char *text)
{
    return text[0] != '\0' ? text : "one worker";
}

static bool is_at(const weir_mesh_place *a, const weir_mesh_place *b)
{
    return a->stage == b->stage && a->d == b->d && a->t == b->t;
}

/* Another engine's worker, or another worker, holds other bytes: each would seem to differ. */
static weir_status check_worker(const verification *job)
{
    const weir_mesh_place *mine = &job->gather.place;
    const char *text = job->remote->engine_mesh;
    if (strcmp(text, job->mesh_text) != 0)
        return weir_fail(WEIR_ERR_LAYOUT, "%s is of an engine of %s, not of %s", job->remote->who,
                         mesh_name(text), mesh_name(job->mesh_text));
    for (size_t i = 0; i < job->remote->n_shards; i++) {
        const weir_mesh_place *place = &job->remote->shards[i].place;
        if (!is_at(place, mine))
            return weir_fail(WEIR_ERR_LAYOUT,
                             "%s is the worker of stage %u, dp %u, tp %u; worker %u of %s is of "
                             "stage %u, dp %u, tp %u",
                             job->remote->who, place->stage, place->d, place->t,
                             job->options->worker, mesh_name(job->mesh_text), mine->stage, mine->d,
                             mine->t);
    }
    return WEIR_OK;
}

static weir_status connect_replica(verification *job)
{
    char who[WEIR_NAME_BYTES + 16];
    weir_status status = find_replica(job);
    if (status != WEIR_OK)
        return status;
    snprintf(who, sizeof(who), "replica %s", job->options->replica);
    status = weir_remote_open(&job->worker, job->record.worker_id, "replica", who, &job->remote);
    if (status == WEIR_OK)
        status = fetch_replica(job);
    if (status == WEIR_OK)
        status = check_worker(job);
    if (status != WEIR_OK)
        return status;
    job->by_name = weir_alloc(job->remote->n_shards * sizeof(weir_shard *));
    if (job->by_name == NULL)
        return WEIR_ERR_NO_MEMORY;
    for (size_t i = 0; i < job->remote->n_shards; i++)
        job->by_name[i] = &job->remote->shards[i];
    qsort(job->by_name, job->remote->n_shards, sizeof(*job->by_name), compare_shards);
    return WEIR_OK;
}

static const weir_shard *find_live(const verification *job, const char *name)
{
    weir_shard key = { .name = name };
    const weir_shard *wanted = &key;
    const weir_shard **found = bsearch(&wanted, job->by_name, job->remote->n_shards,
                                       sizeof(*job->by_name), compare_shards);
    return found != NULL ? *found : NULL;
}

static weir_status read_live(verification *job, const weir_shard *shard)
{
    weir_status status = weir_buffer_reserve(&job->live, shard->n_bytes ? shard->n_bytes : 1);
    if (status != WEIR_OK)
        return status;
    weir_transfer *transfer;
    weir_copy copy = { job->remote->regions[shard->region], shard->offset, job->live.data,
                       shard->n_bytes };
    const weir_transport_ops *ops = job->remote->link.ops;
    status = ops->post(job->remote->peer, &copy, 1, &transfer);
    if (status != WEIR_OK)
        return status;
    status = weir_transfer_wait(transfer, job->worker.timeout_ms);
    ops->finish(transfer);
    return status;
}

/* ---- comparing -------------------------------------------------------------------------------*/

static void note_difference(verification *job, const char *format, ...)
    __attribute__((format(printf, 2, 3)));
static void note_difference(verification *job, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    if (job->report->n_different++ == 0)
        vsnprintf(job->report->first_difference, sizeof(job->report->first_difference), format,
                  args);
    va_end(args);
}

/* Compares the first n_expected bytes; what lies behind them nobody fills. */
static weir_status compare_parameter(verification *job, const weir_parameter *parameter,
                                     const unsigned char *expected, uint64_t n_expected)
{
    char mine[WEIR_SHAPE_TEXT], theirs[WEIR_SHAPE_TEXT];
    const weir_shard *shard = find_live(job, parameter->name);
    job->report->n_parameters++;
    if (shard == NULL) {
        note_difference(job, "%s is missing from the replica", parameter->name);
        return WEIR_OK;
    }
    if (shard->dtype != parameter->dtype ||
        !weir_shape_equal(&shard->global_shape, &parameter->shape)) {
        note_difference(job, "%s: the replica has %s %s, the checkpoint gives %s %s",
                        parameter->name, weir_dtype_name(shard->dtype),
                        weir_shape_text(&shard->global_shape, theirs, sizeof(theirs)),
                        weir_dtype_name(parameter->dtype),
                        weir_shape_text(&parameter->shape, mine, sizeof(mine)));
        return WEIR_OK;
    }
    weir_status status = read_live(job, shard);
    if (status != WEIR_OK)
        return status;
    job->report->n_bytes += shard->n_bytes;
    if (memcmp(job->live.data, expected, n_expected) == 0)
        return WEIR_OK;
    uint64_t at = 0;
    while (job->live.data[at] == expected[at])
        at++;
    note_difference(job, "%s: byte %" PRIu64 " is 0x%02x in the replica, 0x%02x in the checkpoint",
                    parameter->name, at, job->live.data[at], expected[at]);
    return WEIR_OK;
}

/* ---- the independent conversion --------------------------------------------------------------*/

/* Joins the sources into one tensor by copying rows; *out is then the only source. Sources of
 * unequal dtypes cannot be joined and are left to the driver. */
static weir_status join_sources(verification *job, const weir_map_entry *entry, weir_tensor *out)
{
    size_t n_groups = entry->n_experts;
    uint64_t total_bytes = 0, at = 0, n_bytes;
    size_t n_tensors = entry->n_sources * (n_groups ? n_groups : 1);
    if (n_groups == 0)
        n_groups = entry->axis == 1 ? entry->shape.dim[0] : 1;
    for (size_t i = 0; i < n_tensors; i++) {
        if (weir_tensor_bytes(entry->sources[i].dtype, &entry->sources[i].shape, &n_bytes) !=
            WEIR_OK)
            return WEIR_ERR_INTERNAL;
        total_bytes += n_bytes;
    }
    weir_status status = weir_buffer_reserve(&job->fused, total_bytes ? total_bytes : 1);
    if (status != WEIR_OK)
        return status;
    for (size_t g = 0; g < n_groups; g++) {
        for (size_t s = 0; s < entry->n_sources; s++) {
            const weir_tensor *source = entry->n_experts != 0
                                            ? &entry->sources[g * entry->n_sources + s]
                                            : &entry->sources[s];
            weir_tensor_bytes(source->dtype, &source->shape, &n_bytes);
            uint64_t piece = entry->n_experts != 0 ? n_bytes : n_bytes / n_groups;
            uint64_t from = entry->n_experts != 0 ? 0 : g * piece;
            memcpy(job->fused.data + at, (const unsigned char *)source->data + from, piece);
            at += piece;
        }
    }
    *out = (weir_tensor){ entry->name, entry->sources[0].dtype, entry->shape, job->fused.data };
    return WEIR_OK;
}

static bool one_dtype(const weir_map_entry *entry)
{
    size_t n = entry->n_sources * (entry->n_experts ? entry->n_experts : 1);
    for (size_t i = 1; i < n; i++) {
        if (entry->sources[i].dtype != entry->sources[0].dtype)
            return false;
    }
    return true;
}

/* The entry with sources that are copies. */
static weir_status copy_sources(verification *job, const weir_map_entry *entry, weir_tensor *joined,
                                weir_map_entry *out)
{
    size_t index = (size_t)(entry - job->entries);
    if (job->tensors != NULL)
        return weir_gather_entry(&job->gather, entry, &job->tensors[index], out);
    *out = *entry;
    if (!one_dtype(entry))
        return WEIR_OK;
    weir_status status = join_sources(job, entry, joined);
    if (status != WEIR_OK)
        return status;
    out->sources = joined;
    out->n_sources = 1;
    out->n_experts = 0;
    out->axis = 0;
    return WEIR_OK;
}

/* *n_bytes: of each output. */
static weir_status convert_entry(verification *job, const weir_map_entry *entry, uint64_t *n_bytes)
{
    weir_tensor joined;
    weir_map_entry independent;
    weir_entry_convert_args args = WEIR_ENTRY_CONVERT_ARGS_INIT;
    args.keep_masters = job->options->keep_masters;
    args.reference = true;
    args.pool = job->worker.pool;
    weir_status status = copy_sources(job, entry, &joined, &independent);
    for (size_t o = 0; o < entry->conversion->n_outputs && status == WEIR_OK; o++) {
        weir_shape shape;
        n_bytes[o] = 0;
        if (independent.n_sources > 0)
            status = weir_conversion_output_shape(entry->conversion, o, &independent.shape, &shape);
        if (independent.n_sources > 0 && status == WEIR_OK)
            status = weir_tensor_bytes(entry->conversion->outputs[o].dtype, &shape, &n_bytes[o]);
        if (status == WEIR_OK)
            status = weir_buffer_reserve(&job->expected[o], n_bytes[o] ? n_bytes[o] : 1);
        args.outputs[o] = job->expected[o].data;
    }
    if (status != WEIR_OK || independent.n_sources == 0) /* all of it is padding */
        return status;
    return weir_map_entry_convert(&independent, &args);
}

static weir_status compare_derived(verification *job, size_t parameter)
{
    for (size_t i = 0; i < job->n_derived; i++) {
        const weir_derived *derived = &job->derived[i];
        if (derived->from != parameter)
            continue;
        const weir_parameter *made = &job->parameters[derived->parameter];
        bool scaled = derived->from_scale != SIZE_MAX;
        uint64_t n_bytes;
        weir_status status = weir_tensor_bytes(made->dtype, &made->shape, &n_bytes);
        if (status == WEIR_OK)
            status = weir_buffer_reserve(&job->fused, n_bytes);
        if (status == WEIR_OK)
            status = weir_derived_compute(
                derived, job->parameters[parameter].dtype, job->expected[0].data,
                scaled ? (const float *)(const void *)job->expected[1].data : NULL,
                scaled ? &job->parameters[derived->from_scale].shape : NULL, job->fused.data);
        if (status == WEIR_OK)
            status = compare_parameter(job, made, job->fused.data, n_bytes);
        if (status != WEIR_OK)
            return status;
    }
    return WEIR_OK;
}

/* The parameters of one entry, of which `first` is the first. */
static weir_status compare_entry(verification *job, size_t first, const weir_map_entry *entry)
{
    uint64_t n_bytes[WEIR_MAX_OUTPUTS];
    weir_status status = convert_entry(job, entry, n_bytes);
    for (size_t o = 0; o < entry->conversion->n_outputs && status == WEIR_OK; o++)
        status =
            compare_parameter(job, &job->parameters[first + o], job->expected[o].data, n_bytes[o]);
    if (status == WEIR_OK)
        status = compare_derived(job, first);
    return status;
}

/* ---- the whole -------------------------------------------------------------------------------*/

static weir_status read_mesh(verification *job)
{
    const weir_verify_options *options = job->options;
    weir_status status =
        weir_engine_mesh_read(options->mesh, options->experts, &job->mesh, job->mesh_text);
    if (status != WEIR_OK)
        return status;
    uint32_t n_workers = weir_replica_mesh_workers(&job->mesh);
    if (options->worker >= n_workers)
        return weir_fail(WEIR_ERR_INVALID, "worker %u: an engine of %s has %u, counted from 0",
                         options->worker, mesh_name(job->mesh_text), n_workers);
    job->gather.mesh = &job->mesh;
    job->gather.place = weir_replica_mesh_place(&job->mesh, options->worker);
    return WEIR_OK;
}

/* What the replica should have: all of the model, or one worker's part. */
static weir_status find_part(verification *job)
{
    size_t n;
    weir_engine_part part;
    job->entries = weir_mapping_entries(job->mapping, &n);
    job->parameters = weir_mapping_parameters(job->mapping, &job->n_parameters);
    job->derived = weir_mapping_derived(job->mapping, &job->n_derived);
    if (job->mesh_text[0] == '\0')
        return WEIR_OK;
    weir_status status = weir_fleet_tensors_of(job->mapping, &job->tensors, &n);
    if (status == WEIR_OK)
        status =
            weir_engine_part_of(job->mapping, &job->mesh, job->options->worker, &job->arena, &part);
    if (status != WEIR_OK)
        return status;
    job->parameters = part.parameters;
    job->n_parameters = part.n_parameters;
    job->derived = part.derived;
    job->n_derived = part.n_derived;
    return WEIR_OK;
}

static weir_status open_mapping(verification *job)
{
    weir_mapping_options options = WEIR_MAPPING_OPTIONS_INIT;
    weir_status status = WEIR_OK;
    if (job->options->config != NULL)
        status = weir_settings_config(job->options->config, &job->config);
    if (status != WEIR_OK)
        return status;
    options.family = job->options->family;
    options.layout = job->options->layout;
    options.conversion = job->options->conversion;
    options.config = job->config;
    options.ignore = job->options->ignore;
    options.n_ignore = job->options->n_ignore;
    status =
        weir_mapping_open(&options, job->options->sources, job->options->n_sources, &job->mapping);
    return status == WEIR_OK ? find_part(job) : status;
}

static weir_status compare_all(verification *job)
{
    uint64_t total_bytes = 0;
    weir_status status = WEIR_OK;
    for (size_t i = 0; i < job->remote->n_shards; i++)
        total_bytes += job->remote->shards[i].n_bytes;
    for (size_t i = 0; i < job->n_parameters && status == WEIR_OK;) {
        if (job->parameters[i].entry == SIZE_MAX)
            break; /* derived ones, compared with what they are made from */
        const weir_map_entry *entry = &job->entries[job->parameters[i].entry];
        status = compare_entry(job, i, entry);
        i += entry->conversion->n_outputs;
        weir_worker_progress(&job->worker, WEIR_STOP_TRANSFER, job->record.version,
                             job->report->n_bytes, total_bytes);
    }
    if (status == WEIR_OK && job->remote->n_shards > job->n_parameters)
        note_difference(job, "the replica has %zu parameters, the checkpoint gives %zu",
                        job->remote->n_shards, job->n_parameters);
    /* The manifest is withdrawn while anything changes: still there, nothing has. */
    return status == WEIR_OK ? fetch_replica(job) : status;
}

static weir_status open_worker(verification *job)
{
    const weir_verify_options *options = job->options;
    weir_worker_options worker = { .directory = options->directory,
                                   .model = options->model,
                                   .run = options->run,
                                   .name = "verify",
                                   .role = WEIR_ROLE_GENERATOR,
                                   .looks_on = true,
                                   .timeout_ms = options->timeout_ms,
                                   .n_threads = options->n_threads,
                                   .transport_directory = options->transport_directory,
                                   .progress = options->progress,
                                   .progress_context = options->progress_context,
                                   .security = &options->security };
    if (options->directory == NULL || options->replica == NULL)
        return weir_fail(WEIR_ERR_INVALID, "directory and replica are required");
    return weir_worker_open(&job->worker, &worker);
}

static void close_job(verification *job)
{
    weir_error_line cause;
    weir_error_save(&cause);
    weir_remote_close(job->remote);
    weir_worker_close(&job->worker);
    weir_mapping_close(job->mapping);
    weir_config_close(job->config);
    weir_free(job->by_name);
    weir_fleet_tensors_free(job->tensors);
    weir_expert_map_free(job->mesh.expert_ids);
    weir_arena_close(&job->arena);
    weir_arena_close(&job->gather.arena);
    weir_buffer_free(&job->gather.bytes);
    weir_buffer_free(&job->fused);
    weir_buffer_free(&job->live);
    for (int o = 0; o < WEIR_MAX_OUTPUTS; o++)
        weir_buffer_free(&job->expected[o]);
    weir_error_restore(&cause);
}

weir_status weir_verify(const weir_verify_options *given, weir_verify_report *report)
{
    weir_verify_options options;
    weir_status status = weir_options_read(given, "weir_verify_options", &options, sizeof(options));
    if (status != WEIR_OK)
        return status;
    *report = (weir_verify_report){ 0 };
    verification job = { .options = &options, .report = report };
    weir_arena_init(&job.arena, 0);
    weir_arena_init(&job.gather.arena, 0);
    status = open_worker(&job);
    if (status == WEIR_OK)
        status = read_mesh(&job);
    if (status == WEIR_OK)
        status = open_mapping(&job);
    if (status == WEIR_OK)
        status = connect_replica(&job);
    if (status == WEIR_OK) {
        report->version = job.record.version;
        status = compare_all(&job);
    }
    close_job(&job);
    return status;
}
