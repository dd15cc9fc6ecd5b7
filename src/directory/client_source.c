/* SPDX-License-Identifier: Apache-2.0 */
/* client_source.c - P2pService as Weir's workers use it: one entry per worker, found by model.
 *
 * The identity holds model, run and role alone, so the source id stays from version to version and
 * a worker's entry is replaced, not added to. It has no extra parameters: clients of ModelExpress
 * v2 look at the sidecar of a source only when there are none. They find the compile target of
 * every tensor there, and pass over what they cannot read. */
#include <stdio.h>
#include <string.h>

#include "base/error.h"
#include "directory/client_core.h"
#include "directory/sidecar.h"

#define IDENTITY_VERSION "0.3.0" /* part of the hash: it never changes */

typedef ModelExpress__P2p__SourceIdentity identity_message;
typedef ModelExpress__P2p__TensorDescriptor descriptor_message;

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

static weir_status call_publish(weir_directory_client *client, const weir_source_record *record,
                                identity_message *identity,
                                ModelExpress__P2p__TensorSourceMetadata *tensors,
                                const ModelExpress__P2p__PublishMetadataResponse **out)
{
    ModelExpress__P2p__WorkerMetadata worker;
    model_express__p2p__worker_metadata__init(&worker);
    worker.worker_rank = record->rank;
    worker.status = (ModelExpress__P2p__SourceStatus)record->status;
    worker.agent_name = (char *)record->worker_id;
    worker.worker_grpc_endpoint = (char *)record->endpoint;
    worker.source_payload_case = MODEL_EXPRESS__P2P__WORKER_METADATA__SOURCE_PAYLOAD_TENSOR_SOURCE;
    worker.tensor_source = tensors;
    ModelExpress__P2p__PublishMetadataRequest request =
        MODEL_EXPRESS__P2P__PUBLISH_METADATA_REQUEST__INIT;
    request.identity = identity;
    request.worker = &worker;
    request.worker_id = (char *)record->worker_id;
    const ProtobufCMessage *answer = NULL;
    weir_status status = call_p2p(client, "PublishMetadata", &request.base, &answer);
    *out = (const void *)answer;
    return status;
}

weir_status weir_directory_publish_source(weir_directory_client *client,
                                          const weir_source_record *record,
                                          char out_source_id[WEIR_ID_BYTES])
{
    weir_sidecar_texts texts;
    weir_status status = weir_sidecar_write(record, &texts);
    if (status != WEIR_OK)
        return status;
    char revision[WEIR_NAME_BYTES + WEIR_ID_BYTES];
    snprintf(revision, sizeof(revision), "%s/%s", record->run, record->role);
    identity_message identity = MODEL_EXPRESS__P2P__SOURCE_IDENTITY__INIT;
    identity.mx_version = (char *)IDENTITY_VERSION;
    identity.model_name = (char *)record->model;
    identity.revision = revision;
    descriptor_message for_weir = MODEL_EXPRESS__P2P__TENSOR_DESCRIPTOR__INIT;
    descriptor_message of_weir = for_weir, for_all = for_weir;
    for_weir.name = (char *)WEIR_SIDECAR_WEIR, for_weir.dtype = texts.words;
    of_weir.name = (char *)WEIR_SIDECAR_WEIR_OF, of_weir.dtype = texts.of;
    for_all.name = (char *)WEIR_SIDECAR_JSON, for_all.dtype = (char *)texts.json;
    descriptor_message *descriptors[] = { &for_weir, &of_weir, &for_all };
    ModelExpress__P2p__TensorSourceMetadata tensors =
        MODEL_EXPRESS__P2P__TENSOR_SOURCE_METADATA__INIT;
    tensors.tensors = descriptors;
    tensors.n_tensors = 3;
    const ModelExpress__P2p__PublishMetadataResponse *response;
    status = call_publish(client, record, &identity, &tensors, &response);
    if (status != WEIR_OK)
        return status;
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

static void ask_for_sources(ModelExpress__P2p__ListSourcesRequest *request, const char *model,
                            weir_source_status status, uint64_t min_version, size_t n_max)
{
    request->_model_name_filter_case =
        MODEL_EXPRESS__P2P__LIST_SOURCES_REQUEST___MODEL_NAME_FILTER_MODEL_NAME_FILTER;
    request->model_name_filter = (char *)model;
    if (status != WEIR_SOURCE_UNKNOWN) {
        request->_status_filter_case =
            MODEL_EXPRESS__P2P__LIST_SOURCES_REQUEST___STATUS_FILTER_STATUS_FILTER;
        request->status_filter = (ModelExpress__P2p__SourceStatus)status;
    }
    if (min_version != 0) {
        request->_min_training_step_case =
            MODEL_EXPRESS__P2P__LIST_SOURCES_REQUEST___MIN_TRAINING_STEP_MIN_TRAINING_STEP;
        request->min_training_step = min_version;
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
    if (instance->_training_step_case ==
        MODEL_EXPRESS__P2P__SOURCE_INSTANCE_REF___TRAINING_STEP_TRAINING_STEP)
        out->version = instance->training_step;
    weir_status status =
        weir_client_copy(client, "SourceInstanceRef.mx_source_id", instance->mx_source_id,
                         out->source_id, sizeof(out->source_id));
    return status != WEIR_OK
               ? status
               : weir_client_copy(client, "SourceInstanceRef.worker_id", instance->worker_id,
                                  out->worker_id, sizeof(out->worker_id));
}

weir_status weir_directory_list_sources(weir_directory_client *client, const char *model,
                                        weir_source_status status, uint64_t min_version,
                                        weir_source_ref *refs, size_t n_max, size_t *out_n)
{
    ModelExpress__P2p__ListSourcesRequest request = MODEL_EXPRESS__P2P__LIST_SOURCES_REQUEST__INIT;
    ask_for_sources(&request, model, status, min_version, n_max);
    const ProtobufCMessage *answer;
    weir_status result = call_p2p(client, "ListSources", &request.base, &answer);
    if (result != WEIR_OK)
        return result;
    const ModelExpress__P2p__ListSourcesResponse *response = (const void *)answer;
    size_t n = 0;
    for (size_t i = 0; i < response->n_instances && n < n_max; i++) {
        const ModelExpress__P2p__SourceInstanceRef *instance = response->instances[i];
        if (strcmp(instance->model_name, model) != 0)
            continue; /* a server that does not know the filter */
        result = take_ref(client, instance, &refs[n]);
        if (result != WEIR_OK)
            return result;
        n += refs[n].version >= min_version;
    }
    *out_n = n;
    return WEIR_OK;
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
