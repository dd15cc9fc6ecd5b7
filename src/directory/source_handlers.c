/* SPDX-License-Identifier: Apache-2.0 */
/* source_handlers.c - P2pService: messages in, the store's answer out. Refusals are replies. */
#include <stdio.h>
#include <string.h>

#include "directory/directory_messages.h"
#include "directory/source_entry.h"
#include "directory/source_id.h"
#include "rpc/rpc_message.h"

typedef ModelExpress__P2p__PublishMetadataRequest publish_request;
typedef ModelExpress__P2p__SourceInstanceRef ref_message;

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

/* The same worker's earlier entry says more, while it is about that very version. */
static weir_status keep_what_others_read(weir_directory_call *call, weir_store_source *source)
{
    const weir_store_source *before =
        weir_store_get_source(call->core->store, source->source_id, source->worker_id);
    if (before == NULL || source->version_uid[0] == '\0' ||
        strcmp(before->version_uid, source->version_uid) != 0)
        return WEIR_OK;
    source->host = weir_arena_strdup(call->arena, before->host);
    source->part = weir_arena_strdup(call->arena, before->part);
    return source->host != NULL && source->part != NULL ? WEIR_OK : WEIR_ERR_NO_MEMORY;
}

static weir_status publish(weir_directory_call *call, const publish_request *request,
                           const char **out_source_id)
{
    weir_store_source source;
    weir_status status = weir_source_entry_read(request, NULL, call->arena, &source);
    if (status == WEIR_OK)
        status = keep_what_others_read(call, &source);
    if (status != WEIR_OK)
        return status;
    *out_source_id = source.source_id;
    return weir_store_publish_source(call->core->store, &source, call->now_ms);
}

static weir_rpc_code publish_metadata(weir_directory_call *call)
{
    const publish_request *request = (const void *)call->request;
    WEIR_MAKE_MESSAGE(ModelExpress__P2p__PublishMetadataResponse,
                      model_express__p2p__publish_metadata_response__init, response);
    call->response = &response->base;
    const char *missing = find_missing(request), *source_id = NULL;
    if (missing != NULL) {
        response->message = (char *)missing;
        return WEIR_RPC_OK;
    }
    char *refusal = weir_arena_alloc(call->arena, WEIR_RPC_MESSAGE_TEXT);
    if (refusal == NULL)
        return weir_directory_core_refuse(WEIR_ERR_NO_MEMORY, call->text);
    response->message = refusal;
    refusal[0] = '\0';
    if (!is_status((int)request->worker->status)) {
        snprintf(refusal, WEIR_RPC_MESSAGE_TEXT, "invalid status value: %d",
                 (int)request->worker->status);
        return WEIR_RPC_OK;
    }
    weir_status status = publish(call, request, &source_id);
    if (status != WEIR_OK) {
        weir_directory_core_refuse(status, refusal);
        return WEIR_RPC_OK;
    }
    response->success = true;
    response->mx_source_id = (char *)source_id;
    response->worker_id = request->worker_id;
    return WEIR_RPC_OK;
}

static weir_rpc_code update_status(weir_directory_call *call)
{
    const ModelExpress__P2p__UpdateStatusRequest *request = (const void *)call->request;
    WEIR_MAKE_MESSAGE(ModelExpress__P2p__UpdateStatusResponse,
                      model_express__p2p__update_status_response__init, response);
    char *refusal = weir_arena_alloc(call->arena, WEIR_RPC_MESSAGE_TEXT);
    if (refusal == NULL)
        return weir_directory_core_refuse(WEIR_ERR_NO_MEMORY, call->text);
    call->response = &response->base;
    response->message = refusal;
    refusal[0] = '\0';
    if (request->mx_source_id[0] == '\0') {
        snprintf(refusal, WEIR_RPC_MESSAGE_TEXT, "mx_source_id is required");
    } else if (request->worker_id[0] == '\0') {
        snprintf(refusal, WEIR_RPC_MESSAGE_TEXT, "worker_id is required");
    } else if (!is_status((int)request->status)) {
        snprintf(refusal, WEIR_RPC_MESSAGE_TEXT, "invalid status value: %d", (int)request->status);
    } else {
        weir_status status =
            weir_store_update_source(call->core->store, request->mx_source_id, request->worker_id,
                                     (weir_store_source_status)request->status, call->now_ms);
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

static weir_rpc_code list_sources(weir_directory_call *call)
{
    const ModelExpress__P2p__ListSourcesRequest *request = (const void *)call->request;
    weir_store_filter filter = { 0 };
    char source_id[WEIR_SOURCE_ID_BYTES];
    fill_filter(request, &filter);
    if (request->identity != NULL) {
        weir_status status = weir_source_id(request->identity, call->arena, source_id);
        if (status != WEIR_OK)
            return weir_directory_core_refuse(status, call->text);
        filter.source_id = source_id;
    }
    WEIR_MAKE_MESSAGE(ModelExpress__P2p__ListSourcesResponse,
                      model_express__p2p__list_sources_response__init, response);
    size_t n_all = weir_store_count_sources(call->core->store) + 1;
    const weir_store_source **sources = weir_arena_alloc(call->arena, n_all * sizeof(*sources));
    if (sources == NULL)
        return weir_directory_core_refuse(WEIR_ERR_NO_MEMORY, call->text);
    size_t n = weir_store_list_sources(call->core->store, &filter, sources);
    ref_message *refs = weir_arena_alloc(call->arena, (n + 1) * sizeof(*refs));
    response->instances = weir_arena_alloc(call->arena, (n + 1) * sizeof(*response->instances));
    if (refs == NULL || response->instances == NULL)
        return weir_directory_core_refuse(WEIR_ERR_NO_MEMORY, call->text);
    for (size_t i = 0; i < n; i++) {
        fill_ref(sources[i], &refs[i]);
        response->instances[i] = &refs[i];
    }
    response->n_instances = n;
    call->response = &response->base;
    return WEIR_RPC_OK;
}

/* ---- one source ------------------------------------------------------------------------------*/

static weir_rpc_code get_metadata(weir_directory_call *call)
{
    const ModelExpress__P2p__GetMetadataRequest *request = (const void *)call->request;
    WEIR_MAKE_MESSAGE(ModelExpress__P2p__GetMetadataResponse,
                      model_express__p2p__get_metadata_response__init, response);
    call->response = &response->base;
    response->mx_source_id = request->mx_source_id;
    response->worker_id = request->worker_id;
    const weir_store_source *source =
        weir_store_get_source(call->core->store, request->mx_source_id, request->worker_id);
    if (source == NULL)
        return WEIR_RPC_OK;
    ProtobufCMessage *worker = NULL, *identity = NULL;
    weir_status status =
        weir_rpc_message_unpack(&model_express__p2p__worker_metadata__descriptor, source->metadata,
                                source->n_metadata, call->arena, &worker);
    if (status == WEIR_OK)
        status =
            weir_rpc_message_unpack(&model_express__p2p__source_identity__descriptor,
                                    source->identity, source->n_identity, call->arena, &identity);
    if (status != WEIR_OK)
        return weir_directory_core_refuse(status, call->text);
    response->found = true;
    response->worker = (ModelExpress__P2p__WorkerMetadata *)worker;
    response->worker->status = (ModelExpress__P2p__SourceStatus)source->status;
    response->worker->updated_at = source->updated_at_ms;
    response->identity = (ModelExpress__P2p__SourceIdentity *)identity;
    return WEIR_RPC_OK;
}

#define METHOD(name_of, message, kind_of, ...)                         \
    {                                                                  \
        .name = "P2pService." name_of,                                 \
        .input = &model_express__p2p__##message##_request__descriptor, \
        .kind = WEIR_DIRECTORY_##kind_of, __VA_ARGS__                  \
    }

const weir_directory_method weir_source_methods[] = {
    METHOD("PublishMetadata", publish_metadata, CHANGE, .rule = publish_metadata),
    METHOD("ListSources", list_sources, READ, .rule = list_sources),
    METHOD("GetMetadata", get_metadata, READ, .rule = get_metadata),
    METHOD("UpdateStatus", update_status, CHANGE, .rule = update_status),
};
const size_t weir_n_source_methods = sizeof(weir_source_methods) / sizeof(weir_source_methods[0]);
