/* SPDX-License-Identifier: Apache-2.0 */
/* verify.c - compares a live replica with a checkpoint, byte for byte.
 *
 * Takes the long way round on purpose: sources are joined by plain copies, the C reference kernels
 * convert them whole, and the replica's live parameters are read over its transport as any reader
 * would. Nothing here is shared with stage.c but the specification.
 */
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "base/error.h"
#include "base/options.h"
#include "refit/remote.h"

#define MAX_REFS 512u

typedef struct verification {
    const weir_verify_options *options;
    weir_verify_report *report;
    weir_worker worker;
    weir_config *config;
    weir_mapping *mapping;
    const weir_parameter *parameters;
    size_t n_parameters;
    weir_remote *remote;
    const weir_shard **by_name; /* the replica's parameters, sorted */
    weir_source_record record;
    weir_buffer fused, expected[WEIR_MAX_OUTPUTS], live;
} verification;

/* ---- the replica -----------------------------------------------------------------------------*/

static weir_status find_replica(verification *job)
{
    weir_source_ref *refs = weir_alloc(MAX_REFS * sizeof(*refs));
    size_t n = 0;
    if (refs == NULL)
        return WEIR_ERR_NO_MEMORY;
    weir_status status = weir_directory_list_sources(job->worker.client, job->worker.model,
                                                     WEIR_SOURCE_READY, 0, refs, MAX_REFS, &n);
    bool found = false;
    for (size_t i = 0; i < n && i < MAX_REFS && status == WEIR_OK && !found; i++) {
        if (strcmp(refs[i].worker_id, job->options->replica) != 0)
            continue;
        status = weir_directory_get_source(job->worker.client, refs[i].source_id, refs[i].worker_id,
                                           &job->record);
        found = status == WEIR_OK && strcmp(job->record.role, "inference_replica") == 0 &&
                strcmp(job->record.run, job->worker.run) == 0;
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
    weir_manifest_wish wish = { job->record.endpoint, job->record.version_uid, NULL,
                                job->record.version, NULL };
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

static weir_status connect_replica(verification *job)
{
    char who[WEIR_NAME_BYTES + 16];
    weir_status status = find_replica(job);
    if (status != WEIR_OK)
        return status;
    snprintf(who, sizeof(who), "replica %s", job->options->replica);
    status = weir_remote_open(&job->worker, job->options->replica, "replica", who, &job->remote);
    if (status == WEIR_OK)
        status = fetch_replica(job);
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

static weir_status compare_parameter(verification *job, const weir_parameter *parameter,
                                     const unsigned char *expected)
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
    if (memcmp(job->live.data, expected, shard->n_bytes) == 0)
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

static weir_status convert_entry(verification *job, const weir_map_entry *entry)
{
    weir_tensor joined;
    weir_map_entry independent = *entry;
    weir_entry_convert_args args = WEIR_ENTRY_CONVERT_ARGS_INIT;
    args.keep_masters = job->options->keep_masters;
    args.reference = true;
    args.pool = job->worker.pool;
    for (size_t o = 0; o < entry->conversion->n_outputs; o++) {
        const weir_parameter *parameter = &job->parameters[entry->first_parameter + o];
        uint64_t n_bytes;
        weir_status status = weir_tensor_bytes(parameter->dtype, &parameter->shape, &n_bytes);
        if (status == WEIR_OK)
            status = weir_buffer_reserve(&job->expected[o], n_bytes ? n_bytes : 1);
        if (status != WEIR_OK)
            return status;
        args.outputs[o] = job->expected[o].data;
    }
    if (one_dtype(entry)) {
        weir_status status = join_sources(job, entry, &joined);
        if (status != WEIR_OK)
            return status;
        independent.sources = &joined;
        independent.n_sources = 1;
        independent.n_experts = 0;
        independent.axis = 0;
    }
    return weir_map_entry_convert(&independent, &args);
}

static weir_status compare_derived(verification *job, size_t parameter)
{
    size_t n_derived;
    const weir_derived *derived = weir_mapping_derived(job->mapping, &n_derived);
    for (size_t i = 0; i < n_derived; i++) {
        if (derived[i].from != parameter)
            continue;
        const weir_parameter *made = &job->parameters[derived[i].parameter];
        bool scaled = derived[i].from_scale != SIZE_MAX;
        uint64_t n_bytes;
        weir_status status = weir_tensor_bytes(made->dtype, &made->shape, &n_bytes);
        if (status == WEIR_OK)
            status = weir_buffer_reserve(&job->fused, n_bytes);
        if (status == WEIR_OK)
            status = weir_derived_compute(
                &derived[i], job->parameters[parameter].dtype, job->expected[0].data,
                scaled ? (const float *)(const void *)job->expected[1].data : NULL,
                scaled ? &job->parameters[derived[i].from_scale].shape : NULL, job->fused.data);
        if (status == WEIR_OK)
            status = compare_parameter(job, made, job->fused.data);
        if (status != WEIR_OK)
            return status;
    }
    return WEIR_OK;
}

static weir_status compare_entry(verification *job, const weir_map_entry *entry)
{
    weir_status status = convert_entry(job, entry);
    for (size_t o = 0; o < entry->conversion->n_outputs && status == WEIR_OK; o++)
        status = compare_parameter(job, &job->parameters[entry->first_parameter + o],
                                   job->expected[o].data);
    if (status == WEIR_OK)
        status = compare_derived(job, entry->first_parameter);
    return status;
}

/* ---- the whole -------------------------------------------------------------------------------*/

static weir_status open_mapping(verification *job)
{
    weir_mapping_options options = WEIR_MAPPING_OPTIONS_INIT;
    weir_status status = WEIR_OK;
    if (job->options->config != NULL)
        status = weir_config_open(job->options->config, &job->config);
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
    if (status == WEIR_OK)
        job->parameters = weir_mapping_parameters(job->mapping, &job->n_parameters);
    return status;
}

static weir_status compare_all(verification *job)
{
    size_t n_entries;
    const weir_map_entry *entries = weir_mapping_entries(job->mapping, &n_entries);
    uint64_t total_bytes = 0;
    weir_status status = WEIR_OK;
    for (size_t i = 0; i < job->remote->n_shards; i++)
        total_bytes += job->remote->shards[i].n_bytes;
    for (size_t i = 0; i < n_entries && status == WEIR_OK; i++) {
        status = compare_entry(job, &entries[i]);
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
                                   .timeout_ms = options->timeout_ms,
                                   .n_threads = options->n_threads,
                                   .transport_directory = options->transport_directory,
                                   .progress = options->progress,
                                   .progress_context = options->progress_context };
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
    status = open_worker(&job);
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
