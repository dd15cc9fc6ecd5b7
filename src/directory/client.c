/* SPDX-License-Identifier: Apache-2.0 */
/* client.c - the client's connections, and RefitService. */
#include "directory/client.h"

#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "base/error.h"
#include "directory/client_core.h"

#define ARENA_BYTES ((size_t)512 << 20) /* what one answer may unpack to */

typedef ModelExpress__Refit__WeightVersion version_message;
typedef ModelExpress__Refit__WeightVersionShard shard_message;

/* ---- connections -----------------------------------------------------------------------------*/

weir_status weir_directory_client_open(const char *addresses, unsigned timeout_ms,
                                       weir_directory_client **out)
{
    weir_directory_client *client = weir_alloc_zeroed(1, sizeof(*client));
    if (client == NULL)
        return WEIR_ERR_NO_MEMORY;
    client->timeout_ms = timeout_ms;
    weir_arena_init(&client->arena, ARENA_BYTES);
    weir_status status = weir_rpc_client_open(addresses, "directory", NULL, &client->rpc);
    if (status == WEIR_OK && (client->addresses = weir_strdup(addresses)) == NULL)
        status = WEIR_ERR_NO_MEMORY;
    if (status != WEIR_OK) {
        weir_directory_client_close(client);
        return status;
    }
    client->address = weir_rpc_client_address(client->rpc);
    *out = client;
    return WEIR_OK;
}

weir_status weir_directory_client_secure(weir_directory_client *client,
                                         const weir_rpc_security *security)
{
    weir_rpc_client *rpc;
    weir_status status = weir_rpc_client_open(client->addresses, "directory", security, &rpc);
    if (status != WEIR_OK)
        return status;
    weir_rpc_client_close(client->rpc);
    client->rpc = rpc;
    client->address = weir_rpc_client_address(rpc);
    weir_security_free(&client->kept);
    return weir_security_copy(security, &client->kept);
}

void weir_directory_client_close(weir_directory_client *client)
{
    if (client == NULL)
        return;
    for (size_t i = 0; i < client->n_workers; i++)
        weir_rpc_client_close(client->workers[i].rpc);
    weir_free(client->workers);
    weir_rpc_client_close(client->rpc);
    weir_security_free(&client->kept);
    weir_free(client->addresses);
    weir_arena_close(&client->arena);
    weir_free(client);
}

unsigned weir_directory_client_bound(weir_directory_client *client, unsigned timeout_ms)
{
    unsigned before_ms = client->timeout_ms;
    client->timeout_ms = timeout_ms;
    return before_ms;
}

void weir_directory_client_trace(weir_directory_client *client, const char *trace_id,
                                 const char *worker_id)
{
    if (client == NULL)
        return;
    weir_traceparent_of(trace_id, worker_id, &client->trace);
    weir_rpc_client_trace(client->rpc, &client->trace);
}

const char *weir_directory_client_address(const weir_directory_client *client)
{
    return client->address;
}

void weir_directory_client_cancel(weir_directory_client *client)
{
    weir_rpc_client_cancel(client->rpc);
}

/* Before it travels in vain: a directory says no more than that it is too large. */
static weir_status check_size(const weir_directory_client *client, const char *method,
                              const ProtobufCMessage *request)
{
    size_t n_bytes = protobuf_c_message_get_packed_size(request);
    if (n_bytes <= WEIR_DIRECTORY_MESSAGE_BYTES)
        return WEIR_OK;
    return weir_fail(
        WEIR_ERR_INVALID,
        "directory %s: %s: the request has %zu bytes, a directory takes at most %zu MiB",
        client->address, method, n_bytes, WEIR_DIRECTORY_MESSAGE_BYTES >> 20);
}

weir_status weir_client_call_for(weir_directory_client *client, unsigned timeout_ms,
                                 const ProtobufCServiceDescriptor *service, const char *method,
                                 const ProtobufCMessage *request,
                                 const ProtobufCMessage **out_response)
{
    weir_arena_reset(&client->arena);
    client->version = NULL;
    weir_status status = check_size(client, method, request);
    if (status != WEIR_OK)
        return status;
    client->n_messages++;
    uint64_t n_moves = weir_rpc_client_moves(client->rpc);
    status = weir_rpc_call(client->rpc, service, method, request, timeout_ms, &client->arena,
                           out_response);
    client->address = weir_rpc_client_address(client->rpc);
    /* Who answers next may be another. */
    if (status == WEIR_ERR_PEER_LOST || weir_rpc_client_moves(client->rpc) != n_moves)
        client->is_plain = false;
    return status;
}

weir_status weir_client_call(weir_directory_client *client,
                             const ProtobufCServiceDescriptor *service, const char *method,
                             const ProtobufCMessage *request, const ProtobufCMessage **out_response)
{
    weir_status status =
        weir_client_call_for(client, client->timeout_ms, service, method, request, out_response);
    /* Meant for a wait that was over by then. */
    if (status == WEIR_ERR_CANCELLED && atomic_exchange(&client->interrupted, false))
        status = weir_client_call_for(client, client->timeout_ms, service, method, request,
                                      out_response);
    return status;
}

static weir_status call_refit(weir_directory_client *client, const char *method,
                              const ProtobufCMessage *request,
                              const ProtobufCMessage **out_response)
{
    return weir_client_call(client, &model_express__refit__refit_service__descriptor, method,
                            request, out_response);
}

weir_status weir_client_copy(const weir_directory_client *client, const char *field,
                             const char *text, char *out, size_t n_out)
{
    size_t n = strlen(text);
    if (n >= n_out)
        return weir_fail(WEIR_ERR_FORMAT, "directory %s: %s has %zu bytes, at most %zu are allowed",
                         client->address, field, n, n_out - 1);
    memcpy(out, text, n + 1);
    return WEIR_OK;
}

/* ---- workers ---------------------------------------------------------------------------------*/

weir_status weir_directory_register_worker(weir_directory_client *client, const char *worker_id,
                                           weir_worker_role role, const char *model, unsigned ttl_s)
{
    ModelExpress__Refit__WorkerRegistration worker =
        MODEL_EXPRESS__REFIT__WORKER_REGISTRATION__INIT;
    worker.worker_id = (char *)worker_id;
    worker.role = (ModelExpress__Refit__WorkerRole)role;
    worker.model_name = (char *)model;
    ModelExpress__Refit__RegisterWorkerRequest request =
        MODEL_EXPRESS__REFIT__REGISTER_WORKER_REQUEST__INIT;
    request.worker = &worker;
    request.ttl_seconds = ttl_s;
    const ProtobufCMessage *response;
    return call_refit(client, "RegisterWorker", &request.base, &response);
}

/* ---- versions --------------------------------------------------------------------------------*/

weir_status weir_client_take_version(weir_directory_client *client, const version_message *version,
                                     weir_version_record *out)
{
    weir_version_record record = { .state = (weir_version_state)version->state };
    weir_status status =
        weir_client_copy(client, "WeightVersion.uid", version->uid, record.uid, sizeof(record.uid));
    if (status == WEIR_OK)
        status = weir_client_copy(client, "WeightVersion.model_name", version->model_name,
                                  record.model, sizeof(record.model));
    if (status == WEIR_OK && version->n_expected_source_slots > WEIR_MAX_RANKS)
        status = weir_fail(
            WEIR_ERR_FORMAT, "directory %s: version %s expects %zu shards, at most %d are allowed",
            client->address, record.uid, version->n_expected_source_slots, WEIR_MAX_RANKS);
    if (status != WEIR_OK)
        return status;
    record.has_number = version->_version_number_case ==
                        MODEL_EXPRESS__REFIT__WEIGHT_VERSION___VERSION_NUMBER_VERSION_NUMBER;
    if (record.has_number)
        record.number = version->version_number;
    record.n_slots = (uint32_t)version->n_expected_source_slots;
    client->version = version;
    *out = record;
    return WEIR_OK;
}

weir_status weir_directory_create_version(weir_directory_client *client, const char *model,
                                          uint64_t number, const char *idempotency_key,
                                          const char *const *slots, size_t n_slots,
                                          weir_version_record *out)
{
    ModelExpress__Refit__CreateWeightVersionRequest request =
        MODEL_EXPRESS__REFIT__CREATE_WEIGHT_VERSION_REQUEST__INIT;
    request.model_name = (char *)model;
    request._version_number_case =
        MODEL_EXPRESS__REFIT__CREATE_WEIGHT_VERSION_REQUEST___VERSION_NUMBER_VERSION_NUMBER;
    request.version_number = number;
    request.idempotency_key = (char *)idempotency_key;
    request.payload_format =
        MODEL_EXPRESS__REFIT__WEIGHT_PAYLOAD_FORMAT__WEIGHT_PAYLOAD_FORMAT_FULL_TENSOR;
    request.expected_source_slots = (char **)slots;
    request.n_expected_source_slots = n_slots;
    const ProtobufCMessage *response;
    weir_status status = call_refit(client, "CreateWeightVersion", &request.base, &response);
    return status != WEIR_OK ? status
                             : weir_client_take_version(client, (const void *)response, out);
}

weir_status weir_directory_get_version(weir_directory_client *client, const char *uid,
                                       weir_version_record *out)
{
    ModelExpress__Refit__GetWeightVersionRequest request =
        MODEL_EXPRESS__REFIT__GET_WEIGHT_VERSION_REQUEST__INIT;
    request.uid = (char *)uid;
    const ProtobufCMessage *response;
    weir_status status = call_refit(client, "GetWeightVersion", &request.base, &response);
    return status != WEIR_OK ? status
                             : weir_client_take_version(client, (const void *)response, out);
}

const char *weir_directory_version_slot(const weir_directory_client *client, size_t index)
{
    const version_message *version = client->version;
    return version != NULL && index < version->n_expected_source_slots
               ? version->expected_source_slots[index]
               : NULL;
}

weir_status weir_directory_delete_version(weir_directory_client *client, const char *uid)
{
    ModelExpress__Refit__DeleteWeightVersionRequest request =
        MODEL_EXPRESS__REFIT__DELETE_WEIGHT_VERSION_REQUEST__INIT;
    request.uid = (char *)uid;
    const ProtobufCMessage *response;
    return call_refit(client, "DeleteWeightVersion", &request.base, &response);
}

/* ---- shards ----------------------------------------------------------------------------------*/

void weir_client_fill_shard(const weir_shard_record *shard, shard_message *message)
{
    model_express__refit__weight_version_shard__init(message);
    message->version_id = (char *)shard->version_uid;
    message->source_slot_id = (char *)shard->slot;
    message->worker_id = (char *)shard->worker_id;
    message->tensor_count = shard->n_tensors;
    message->total_bytes = shard->n_bytes;
    message->manifest_digest = (char *)shard->manifest_digest;
    message->manifest_endpoint = (char *)shard->manifest_endpoint;
    message->transport = (char *)shard->transport;
}

weir_status weir_directory_create_shard(weir_directory_client *client,
                                        const weir_shard_record *shard,
                                        weir_version_record *out_version)
{
    shard_message message;
    weir_client_fill_shard(shard, &message);
    ModelExpress__Refit__CreateWeightVersionShardRequest request =
        MODEL_EXPRESS__REFIT__CREATE_WEIGHT_VERSION_SHARD_REQUEST__INIT;
    request.shard = &message;
    const ProtobufCMessage *answer;
    weir_status status = call_refit(client, "CreateWeightVersionShard", &request.base, &answer);
    if (status != WEIR_OK)
        return status;
    const ModelExpress__Refit__CreateWeightVersionShardResponse *response = (const void *)answer;
    if (response->version == NULL)
        return weir_fail(WEIR_ERR_FORMAT, "directory %s: CreateWeightVersionShard gave no version",
                         client->address);
    return weir_client_take_version(client, response->version, out_version);
}

weir_status weir_client_take_shard(const weir_directory_client *client,
                                   const shard_message *message, weir_shard_record *out)
{
    const struct {
        const char *field, *text;
        char *out;
        size_t n_out;
    } texts[] = {
        { "version_id", message->version_id, out->version_uid, sizeof(out->version_uid) },
        { "source_slot_id", message->source_slot_id, out->slot, sizeof(out->slot) },
        { "worker_id", message->worker_id, out->worker_id, sizeof(out->worker_id) },
        { "manifest_digest", message->manifest_digest, out->manifest_digest,
          sizeof(out->manifest_digest) },
        { "manifest_endpoint", message->manifest_endpoint, out->manifest_endpoint,
          sizeof(out->manifest_endpoint) },
        { "transport", message->transport, out->transport, sizeof(out->transport) },
    };
    for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++) {
        weir_status status =
            weir_client_copy(client, texts[i].field, texts[i].text, texts[i].out, texts[i].n_out);
        if (status != WEIR_OK)
            return status;
    }
    out->n_tensors = message->tensor_count;
    out->n_bytes = message->total_bytes;
    return WEIR_OK;
}

weir_status weir_directory_list_shards(weir_directory_client *client, const char *version_uid,
                                       weir_shard_record *shards, size_t n_max, size_t *out_n)
{
    ModelExpress__Refit__ListWeightVersionShardsRequest request =
        MODEL_EXPRESS__REFIT__LIST_WEIGHT_VERSION_SHARDS_REQUEST__INIT;
    request.version_id = (char *)version_uid;
    const ProtobufCMessage *answer;
    weir_status status = call_refit(client, "ListWeightVersionShards", &request.base, &answer);
    if (status != WEIR_OK)
        return status;
    const ModelExpress__Refit__ListWeightVersionShardsResponse *response = (const void *)answer;
    for (size_t i = 0; i < response->n_shards && i < n_max; i++) {
        status = weir_client_take_shard(client, response->shards[i], &shards[i]);
        if (status != WEIR_OK)
            return status;
    }
    *out_n = response->n_shards;
    return WEIR_OK;
}

weir_status weir_directory_delete_shard(weir_directory_client *client, const char *version_uid,
                                        const char *slot, const char *worker_id)
{
    ModelExpress__Refit__DeleteWeightVersionShardRequest request =
        MODEL_EXPRESS__REFIT__DELETE_WEIGHT_VERSION_SHARD_REQUEST__INIT;
    request.version_id = (char *)version_uid;
    request.source_slot_id = (char *)slot;
    request.worker_id = (char *)worker_id;
    const ProtobufCMessage *response;
    return call_refit(client, "DeleteWeightVersionShard", &request.base, &response);
}

/* ---- leases ----------------------------------------------------------------------------------*/

weir_status weir_directory_register_lease(weir_directory_client *client, const char *version_uid,
                                          const char *worker_id, unsigned ttl_s,
                                          char out_lease_id[WEIR_ID_BYTES])
{
    ModelExpress__Refit__RegisterVersionLeaseRequest request =
        MODEL_EXPRESS__REFIT__REGISTER_VERSION_LEASE_REQUEST__INIT;
    request.version_id = (char *)version_uid;
    request.worker_id = (char *)worker_id;
    request.ttl_seconds = ttl_s;
    const ProtobufCMessage *answer;
    weir_status status = call_refit(client, "RegisterVersionLease", &request.base, &answer);
    if (status != WEIR_OK)
        return status;
    const ModelExpress__Refit__VersionLease *lease = (const void *)answer;
    return weir_client_copy(client, "VersionLease.lease_id", lease->lease_id, out_lease_id,
                            WEIR_ID_BYTES);
}

weir_status weir_directory_delete_lease(weir_directory_client *client, const char *version_uid,
                                        const char *lease_id, const char *worker_id)
{
    ModelExpress__Refit__DeleteVersionLeaseRequest request =
        MODEL_EXPRESS__REFIT__DELETE_VERSION_LEASE_REQUEST__INIT;
    request.version_id = (char *)version_uid;
    request.lease_id = (char *)lease_id;
    request.worker_id = (char *)worker_id;
    const ProtobufCMessage *response;
    return call_refit(client, "DeleteVersionLease", &request.base, &response);
}
