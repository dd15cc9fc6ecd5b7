/* SPDX-License-Identifier: Apache-2.0 */
/* source_handlers.c - P2pService. Identity and metadata are kept as the bytes they came in: fields
 * that this build does not know survive. */
#include <stdio.h>

#include "directory/directory_core.h"
#include "directory/sidecar.h"
#include "directory/source_id.h"
#include "p2p.pb-c.h"
#include "rpc/rpc_message.h"

typedef ModelExpress__P2p__PublishMetadataRequest publish_request;
typedef ModelExpress__P2p__SourceInstanceRef ref_message;

#define MAKE(type, init, name)                                       \
    type *name = weir_arena_alloc(arena, sizeof(*name));             \
    if ((name) == NULL)                                              \
        return weir_directory_core_refuse(WEIR_ERR_NO_MEMORY, text); \
    init(name)

#define HANDLER(name)                                                             \
    static weir_rpc_code name(void *context, const weir_rpc_call_info *call,      \
                              const ProtobufCMessage *message, weir_arena *arena, \
                              const ProtobufCMessage **out_response, char *text)

static bool is_status(int status)
{
    return status >= WEIR_STORE_SOURCE_UNKNOWN && status <= WEIR_STORE_SOURCE_STALE;
}

/* ---- publishing ------------------------------------------------------------------------------*/

/* What is missing, NULL when nothing is. */
static const char *find_missing(const publish_request *request)
{
    if (request->identity == NULL)
        return "identity is required";
    if (request->identity->model_name[0] == '\0')
        return "identity.model_name is required";
    if (request->worker_id[0] == '\0')
        return "worker_id is required";
    return request->worker == NULL ? "worker is required" : NULL;
}

static const void *pack(const ProtobufCMessage *message, weir_arena *arena, size_t *out_n)
{
    *out_n = protobuf_c_message_get_packed_size(message);
    void *bytes = weir_arena_alloc(arena, *out_n);
    if (bytes != NULL)
        protobuf_c_message_pack(message, bytes);
    return bytes;
}

static weir_status publish(const weir_directory_core *core, const publish_request *request,
                           const char *source_id, weir_arena *arena)
{
    weir_sidecar said;
    weir_sidecar_read(request->identity, request->worker, &said);
    weir_store_source source = {
        .source_id = source_id,
        .worker_id = request->worker_id,
        .model = request->identity->model_name,
        .accelerator = request->worker->accelerator,
        .rank = request->worker->worker_rank,
        .status = (weir_store_source_status)request->worker->status,
        .has_step = said.has_step,
        .step = said.step,
        .layout_signature = said.layout_signature[0] != '\0' ? said.layout_signature : NULL,
    };
    source.identity = pack(&request->identity->base, arena, &source.n_identity);
    source.metadata = pack(&request->worker->base, arena, &source.n_metadata);
    if (source.identity == NULL || source.metadata == NULL)
        return WEIR_ERR_NO_MEMORY;
    return weir_store_publish_source(core->store, &source, weir_directory_core_now_ms(core));
}

HANDLER(publish_metadata)
{
    (void)call;
    const publish_request *request = (const void *)message;
    MAKE(ModelExpress__P2p__PublishMetadataResponse,
         model_express__p2p__publish_metadata_response__init, response);
    *out_response = &response->base;
    const char *missing = find_missing(request);
    if (missing != NULL) {
        response->message = (char *)missing;
        return WEIR_RPC_OK;
    }
    char *refusal = weir_arena_alloc(arena, WEIR_RPC_MESSAGE_TEXT);
    char *source_id = weir_arena_alloc(arena, WEIR_SOURCE_ID_BYTES);
    if (refusal == NULL || source_id == NULL)
        return weir_directory_core_refuse(WEIR_ERR_NO_MEMORY, text);
    if (!is_status((int)request->worker->status)) {
        snprintf(refusal, WEIR_RPC_MESSAGE_TEXT, "invalid status value: %d",
                 (int)request->worker->status);
        response->message = refusal;
        return WEIR_RPC_OK;
    }
    weir_status status = weir_source_id(request->identity, arena, source_id);
    if (status == WEIR_OK)
        status = publish(context, request, source_id, arena);
    if (status != WEIR_OK) {
        weir_directory_core_refuse(status, refusal);
        response->message = refusal;
        return WEIR_RPC_OK;
    }
    response->success = true;
    response->mx_source_id = source_id;
    response->worker_id = request->worker_id;
    return WEIR_RPC_OK;
}

HANDLER(update_status)
{
    (void)call;
    const weir_directory_core *core = context;
    const ModelExpress__P2p__UpdateStatusRequest *request = (const void *)message;
    MAKE(ModelExpress__P2p__UpdateStatusResponse, model_express__p2p__update_status_response__init,
         response);
    char *refusal = weir_arena_alloc(arena, WEIR_RPC_MESSAGE_TEXT);
    if (refusal == NULL)
        return weir_directory_core_refuse(WEIR_ERR_NO_MEMORY, text);
    *out_response = &response->base;
    response->message = refusal;
    refusal[0] = '\0';
    if (request->mx_source_id[0] == '\0') {
        snprintf(refusal, WEIR_RPC_MESSAGE_TEXT, "mx_source_id is required");
    } else if (request->worker_id[0] == '\0') {
        snprintf(refusal, WEIR_RPC_MESSAGE_TEXT, "worker_id is required");
    } else if (!is_status((int)request->status)) {
        snprintf(refusal, WEIR_RPC_MESSAGE_TEXT, "invalid status value: %d", (int)request->status);
    } else {
        weir_status status = weir_store_update_source(
            core->store, request->mx_source_id, request->worker_id,
            (weir_store_source_status)request->status, weir_directory_core_now_ms(core));
        response->success = status == WEIR_OK;
        if (status != WEIR_OK)
            weir_directory_core_refuse(status, refusal);
    }
    return WEIR_RPC_OK;
}

/* ---- listing ---------------------------------------------------------------------------------*/

#define ASKS_FOR(request, field, FIELD) \
    ((request)->_##field##_case == MODEL_EXPRESS__P2P__LIST_SOURCES_REQUEST___##FIELD##_##FIELD)

static void fill_filter(const ModelExpress__P2p__ListSourcesRequest *request,
                        weir_store_filter *out)
{
    if (ASKS_FOR(request, status_filter, STATUS_FILTER)) {
        out->has_status = true;
        out->status = (int)request->status_filter;
    }
    if (ASKS_FOR(request, model_name_filter, MODEL_NAME_FILTER))
        out->model = request->model_name_filter;
    if (ASKS_FOR(request, worker_rank_filter, WORKER_RANK_FILTER)) {
        out->has_rank = true;
        out->rank = request->worker_rank_filter;
    }
    if (ASKS_FOR(request, min_training_step, MIN_TRAINING_STEP)) {
        out->has_min_step = true;
        out->min_step = request->min_training_step;
    }
    if (ASKS_FOR(request, min_updated_at, MIN_UPDATED_AT)) {
        out->has_min_updated = true;
        out->min_updated_at_ms = request->min_updated_at;
    }
    if (ASKS_FOR(request, limit, LIMIT)) {
        out->has_limit = true;
        out->limit = request->limit;
    }
}

static void fill_ref(const weir_store_source *source, ref_message *out)
{
    model_express__p2p__source_instance_ref__init(out);
    out->mx_source_id = (char *)source->source_id;
    out->worker_id = (char *)source->worker_id;
    out->model_name = (char *)source->model;
    out->worker_rank = source->rank;
    out->accelerator = (char *)source->accelerator;
    out->updated_at = source->updated_at_ms;
    if (source->has_step) {
        out->_training_step_case =
            MODEL_EXPRESS__P2P__SOURCE_INSTANCE_REF___TRAINING_STEP_TRAINING_STEP;
        out->training_step = source->step;
    }
    if (source->layout_signature != NULL) {
        out->_layout_signature_case =
            MODEL_EXPRESS__P2P__SOURCE_INSTANCE_REF___LAYOUT_SIGNATURE_LAYOUT_SIGNATURE;
        out->layout_signature = (char *)source->layout_signature;
    }
}

HANDLER(list_sources)
{
    (void)call;
    const weir_directory_core *core = context;
    const ModelExpress__P2p__ListSourcesRequest *request = (const void *)message;
    weir_store_filter filter = { 0 };
    char source_id[WEIR_SOURCE_ID_BYTES];
    fill_filter(request, &filter);
    if (request->identity != NULL) {
        weir_status status = weir_source_id(request->identity, arena, source_id);
        if (status != WEIR_OK)
            return weir_directory_core_refuse(status, text);
        filter.source_id = source_id;
    }
    MAKE(ModelExpress__P2p__ListSourcesResponse, model_express__p2p__list_sources_response__init,
         response);
    size_t n_all = weir_store_count_sources(core->store) + 1;
    const weir_store_source **sources = weir_arena_alloc(arena, n_all * sizeof(*sources));
    if (sources == NULL)
        return weir_directory_core_refuse(WEIR_ERR_NO_MEMORY, text);
    size_t n = weir_store_list_sources(core->store, &filter, sources);
    ref_message *refs = weir_arena_alloc(arena, (n + 1) * sizeof(*refs));
    response->instances = weir_arena_alloc(arena, (n + 1) * sizeof(*response->instances));
    if (refs == NULL || response->instances == NULL)
        return weir_directory_core_refuse(WEIR_ERR_NO_MEMORY, text);
    for (size_t i = 0; i < n; i++) {
        fill_ref(sources[i], &refs[i]);
        response->instances[i] = &refs[i];
    }
    response->n_instances = n;
    *out_response = &response->base;
    return WEIR_RPC_OK;
}

/* ---- one source ------------------------------------------------------------------------------*/

HANDLER(get_metadata)
{
    (void)call;
    const weir_directory_core *core = context;
    const ModelExpress__P2p__GetMetadataRequest *request = (const void *)message;
    MAKE(ModelExpress__P2p__GetMetadataResponse, model_express__p2p__get_metadata_response__init,
         response);
    *out_response = &response->base;
    response->mx_source_id = request->mx_source_id;
    response->worker_id = request->worker_id;
    const weir_store_source *source =
        weir_store_get_source(core->store, request->mx_source_id, request->worker_id);
    if (source == NULL)
        return WEIR_RPC_OK;
    ProtobufCMessage *worker = NULL, *identity = NULL;
    weir_status status =
        weir_rpc_message_unpack(&model_express__p2p__worker_metadata__descriptor, source->metadata,
                                source->n_metadata, arena, &worker);
    if (status == WEIR_OK)
        status = weir_rpc_message_unpack(&model_express__p2p__source_identity__descriptor,
                                         source->identity, source->n_identity, arena, &identity);
    if (status != WEIR_OK)
        return weir_directory_core_refuse(status, text);
    response->found = true;
    response->worker = (ModelExpress__P2p__WorkerMetadata *)worker;
    response->worker->status = (ModelExpress__P2p__SourceStatus)source->status;
    response->worker->updated_at = source->updated_at_ms;
    response->identity = (ModelExpress__P2p__SourceIdentity *)identity;
    return WEIR_RPC_OK;
}

const weir_rpc_method weir_source_methods[] = {
    { "PublishMetadata", publish_metadata },
    { "ListSources", list_sources },
    { "GetMetadata", get_metadata },
    { "UpdateStatus", update_status },
};
const size_t weir_n_source_methods = sizeof(weir_source_methods) / sizeof(weir_source_methods[0]);
