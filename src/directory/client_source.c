/* SPDX-License-Identifier: Apache-2.0 */
/* client_source.c - P2pService as Weir's workers use it: one entry per worker, found by model. */
#include <string.h>

#include "base/error.h"
#include "directory/client_core.h"
#include "directory/client_entry.h"
#include "directory/sidecar.h"

typedef ModelExpress__P2p__SourceIdentity identity_message;

static weir_status call_p2p(weir_directory_client *client, const char *method,
                            const ProtobufCMessage *request, const ProtobufCMessage **out_response)
{
    return weir_client_call(client, &model_express__p2p__p2p_service__descriptor, method, request,
                            out_response);
}

static weir_status refused(const weir_directory_client *client, const char *method,
                           const char *text)
{
    return weir_fail(WEIR_ERR_REFUSED, "directory %s: P2pService.%s: %s", client->address, method,
                     text[0] != '\0' ? text : "refused without a reason");
}

/* ---- publishing ------------------------------------------------------------------------------*/

weir_status weir_directory_publish_source(weir_directory_client *client,
                                          const weir_source_record *record,
                                          char out_source_id[WEIR_ID_BYTES])
{
    weir_client_entry entry;
    weir_status status = weir_client_entry_fill(record, &entry);
    const ProtobufCMessage *answer;
    if (status == WEIR_OK)
        status = call_p2p(client, "PublishMetadata", &entry.request.base, &answer);
    if (status != WEIR_OK)
        return status;
    const ModelExpress__P2p__PublishMetadataResponse *response = (const void *)answer;
    if (!response->success)
        return refused(client, "PublishMetadata", response->message);
    return weir_client_copy(client, "PublishMetadataResponse.mx_source_id", response->mx_source_id,
                            out_source_id, WEIR_ID_BYTES);
}

weir_status weir_directory_update_status(weir_directory_client *client, const char *source_id,
                                         const char *worker_id, uint32_t rank,
                                         weir_source_status status)
{
    ModelExpress__P2p__UpdateStatusRequest request =
        MODEL_EXPRESS__P2P__UPDATE_STATUS_REQUEST__INIT;
    request.mx_source_id = (char *)source_id;
    request.worker_id = (char *)worker_id;
    request.worker_rank = rank;
    request.status = (ModelExpress__P2p__SourceStatus)status;
    const ProtobufCMessage *answer;
    weir_status result = call_p2p(client, "UpdateStatus", &request.base, &answer);
    if (result != WEIR_OK)
        return result;
    const ModelExpress__P2p__UpdateStatusResponse *response = (const void *)answer;
    return response->success ? WEIR_OK : refused(client, "UpdateStatus", response->message);
}

/* ---- finding ---------------------------------------------------------------------------------*/

/* A server of ModelExpress need not know the step of any: it would have nothing to answer. */
static void ask_for_sources(const weir_directory_client *client, const weir_source_wish *wish,
                            size_t n_max, ModelExpress__P2p__ListSourcesRequest *request)
{
    request->_model_name_filter_case =
        MODEL_EXPRESS__P2P__LIST_SOURCES_REQUEST___MODEL_NAME_FILTER_MODEL_NAME_FILTER;
    request->model_name_filter = (char *)wish->model;
    if (wish->status != WEIR_SOURCE_UNKNOWN) {
        request->_status_filter_case =
            MODEL_EXPRESS__P2P__LIST_SOURCES_REQUEST___STATUS_FILTER_STATUS_FILTER;
        request->status_filter = (ModelExpress__P2p__SourceStatus)wish->status;
    }
    if (wish->min_version != 0 && !client->is_plain) {
        request->_min_training_step_case =
            MODEL_EXPRESS__P2P__LIST_SOURCES_REQUEST___MIN_TRAINING_STEP_MIN_TRAINING_STEP;
        request->min_training_step = wish->min_version;
    }
    request->_limit_case = MODEL_EXPRESS__P2P__LIST_SOURCES_REQUEST___LIMIT_LIMIT;
    request->limit = n_max < UINT32_MAX ? (uint32_t)n_max : UINT32_MAX;
}

static weir_status take_ref(const weir_directory_client *client,
                            const ModelExpress__P2p__SourceInstanceRef *instance,
                            weir_source_ref *out)
{
    *out =
        (weir_source_ref){ .rank = instance->worker_rank, .updated_at_ms = instance->updated_at };
    out->has_version = instance->_training_step_case ==
                       MODEL_EXPRESS__P2P__SOURCE_INSTANCE_REF___TRAINING_STEP_TRAINING_STEP;
    if (out->has_version)
        out->version = instance->training_step;
    weir_status status =
        weir_client_copy(client, "SourceInstanceRef.mx_source_id", instance->mx_source_id,
                         out->source_id, sizeof(out->source_id));
    return status != WEIR_OK
               ? status
               : weir_client_copy(client, "SourceInstanceRef.worker_id", instance->worker_id,
                                  out->worker_id, sizeof(out->worker_id));
}

static weir_status list(weir_directory_client *client, identity_message *identity,
                        const weir_source_wish *wish, weir_source_ref *refs, size_t n_max,
                        size_t *out_n)
{
    ModelExpress__P2p__ListSourcesRequest request = MODEL_EXPRESS__P2P__LIST_SOURCES_REQUEST__INIT;
    ask_for_sources(client, wish, n_max, &request);
    request.identity = identity;
    const ProtobufCMessage *answer;
    weir_status result = call_p2p(client, "ListSources", &request.base, &answer);
    if (result != WEIR_OK)
        return result;
    const ModelExpress__P2p__ListSourcesResponse *response = (const void *)answer;
    size_t n = 0;
    for (size_t i = 0; i < response->n_instances && n < n_max; i++) {
        const ModelExpress__P2p__SourceInstanceRef *instance = response->instances[i];
        if (strcmp(instance->model_name, wish->model) != 0)
            continue; /* a server that does not know the filter */
        result = take_ref(client, instance, &refs[n]);
        if (result != WEIR_OK)
            return result;
        n += !refs[n].has_version || refs[n].version >= wish->min_version;
    }
    *out_n = n;
    return WEIR_OK;
}

weir_status weir_directory_list_sources(weir_directory_client *client, const char *model,
                                        weir_source_status status, uint64_t min_version,
                                        weir_source_ref *refs, size_t n_max, size_t *out_n)
{
    const weir_source_wish wish = { model, "", "", status, min_version };
    return list(client, NULL, &wish, refs, n_max, out_n);
}

weir_status weir_directory_list_role(weir_directory_client *client, const weir_source_wish *wish,
                                     weir_source_ref *refs, size_t n_max, size_t *out_n)
{
    char revision[WEIR_NAME_BYTES + WEIR_ID_BYTES];
    identity_message identity;
    weir_client_identity_fill(wish->model, wish->run, wish->role, revision, &identity);
    return list(client, &identity, wish, refs, n_max, out_n);
}

/* ---- one source ------------------------------------------------------------------------------*/

static weir_status take_names(const weir_directory_client *client,
                              const ModelExpress__P2p__GetMetadataResponse *response,
                              weir_source_record *out)
{
    const identity_message *identity = response->identity;
    const struct {
        const char *field, *text;
        char *out;
        size_t n_out;
    } texts[] = {
        { "identity.model_name", identity != NULL ? identity->model_name : "", out->model,
          sizeof(out->model) },
        { "worker_grpc_endpoint", response->worker->worker_grpc_endpoint, out->endpoint,
          sizeof(out->endpoint) },
    };
    for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++) {
        weir_status status =
            weir_client_copy(client, texts[i].field, texts[i].text, texts[i].out, texts[i].n_out);
        if (status != WEIR_OK)
            return status;
    }
    return WEIR_OK;
}

/* What an entry of another program says of its version. */
static void take_foreign(const ModelExpress__P2p__GetMetadataResponse *response,
                         weir_source_record *out)
{
    const identity_message none = MODEL_EXPRESS__P2P__SOURCE_IDENTITY__INIT;
    weir_sidecar said;
    weir_sidecar_read(response->identity != NULL ? response->identity : &none, response->worker,
                      &said);
    out->version = said.step;
    memcpy(out->role, said.role, sizeof(out->role));
    memcpy(out->run, said.run, sizeof(out->run));
    if (strlen(said.layout_signature) < sizeof(out->layout_signature))
        memcpy(out->layout_signature, said.layout_signature, strlen(said.layout_signature) + 1);
}

static weir_status take_source(const weir_directory_client *client,
                               const ModelExpress__P2p__GetMetadataResponse *response,
                               weir_source_record *out)
{
    out->rank = response->worker->worker_rank;
    out->status = (weir_source_status)response->worker->status;
    out->updated_at_ms = response->worker->updated_at;
    weir_status status = take_names(client, response, out);
    if (status != WEIR_OK)
        return status;
    const char *words = weir_sidecar_find(response->worker, WEIR_SIDECAR_WEIR);
    const char *of = weir_sidecar_find(response->worker, WEIR_SIDECAR_WEIR_OF);
    if (words == NULL) {
        take_foreign(response, out);
        return WEIR_OK;
    }
    status = weir_sidecar_parse(words, out);
    if (status == WEIR_OK)
        status = weir_sidecar_parse_of(of != NULL ? of : "", out);
    if (status != WEIR_OK)
        weir_error_prefix("directory %s: source %s of %s", client->address, out->source_id,
                          out->worker_id);
    return status;
}

weir_status weir_directory_get_source(weir_directory_client *client, const char *source_id,
                                      const char *worker_id, weir_source_record *out)
{
    ModelExpress__P2p__GetMetadataRequest request = MODEL_EXPRESS__P2P__GET_METADATA_REQUEST__INIT;
    request.mx_source_id = (char *)source_id;
    request.worker_id = (char *)worker_id;
    const ProtobufCMessage *answer;
    weir_status status = call_p2p(client, "GetMetadata", &request.base, &answer);
    if (status != WEIR_OK)
        return status;
    const ModelExpress__P2p__GetMetadataResponse *response = (const void *)answer;
    if (!response->found || response->worker == NULL)
        return weir_fail(WEIR_ERR_NOT_FOUND, "directory %s: no source '%s' of worker '%s'",
                         client->address, source_id, worker_id);
    weir_source_record record = { .rank = 0 };
    status = weir_client_copy(client, "mx_source_id", source_id, record.source_id,
                              sizeof(record.source_id));
    if (status == WEIR_OK)
        status = weir_client_copy(client, "worker_id", worker_id, record.worker_id,
                                  sizeof(record.worker_id));
    if (status == WEIR_OK)
        status = take_source(client, response, &record);
    if (status == WEIR_OK)
        *out = record;
    return status;
}
