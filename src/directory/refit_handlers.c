/* SPDX-License-Identifier: Apache-2.0 */
/* refit_handlers.c - RefitService: messages in, the store's answer out. */
#include <stdio.h>

#include "directory/directory_core.h"
#include "refit.pb-c.h"

typedef ModelExpress__Refit__WeightVersion version_message;
typedef ModelExpress__Refit__WeightVersionShard shard_message;

/* Makes `name` of a message type in the arena, or answers RESOURCE_EXHAUSTED. */
#define MAKE(type, init, name)                                       \
    type *name = weir_arena_alloc(arena, sizeof(*name));             \
    if ((name) == NULL)                                              \
        return weir_directory_core_refuse(WEIR_ERR_NO_MEMORY, text); \
    init(name)

#define HANDLER(name)                                                             \
    static weir_rpc_code name(void *context, const weir_rpc_call_info *call,      \
                              const ProtobufCMessage *message, weir_arena *arena, \
                              const ProtobufCMessage **out_response, char *text)

/* ---- to messages -----------------------------------------------------------------------------*/

static void fill_version(const weir_store_version *version, version_message *out)
{
    model_express__refit__weight_version__init(out);
    out->uid = (char *)version->uid;
    out->model_name = (char *)version->model;
    if (version->has_number) {
        out->_version_number_case =
            MODEL_EXPRESS__REFIT__WEIGHT_VERSION___VERSION_NUMBER_VERSION_NUMBER;
        out->version_number = version->number;
    }
    out->idempotency_key = (char *)version->idempotency_key;
    out->payload_format = (ModelExpress__Refit__WeightPayloadFormat)version->payload;
    if (version->base_uid != NULL) {
        out->_base_version_id_case =
            MODEL_EXPRESS__REFIT__WEIGHT_VERSION___BASE_VERSION_ID_BASE_VERSION_ID;
        out->base_version_id = (char *)version->base_uid;
    }
    out->expected_source_slots = (char **)version->slots;
    out->n_expected_source_slots = version->n_slots;
    out->state = (ModelExpress__Refit__WeightVersionState)version->state;
    out->created_at_unix_ms = version->created_at_ms;
}

static void fill_shard(const weir_store_shard *shard, shard_message *out)
{
    model_express__refit__weight_version_shard__init(out);
    out->version_id = (char *)shard->version_uid;
    out->source_slot_id = (char *)shard->slot;
    out->worker_id = (char *)shard->worker_id;
    out->tensor_count = shard->n_tensors;
    out->total_bytes = shard->n_bytes;
    out->manifest_digest = (char *)shard->manifest_digest;
    out->manifest_endpoint = (char *)shard->manifest_endpoint;
    out->transport = (char *)shard->transport;
}

static weir_rpc_code answer_version(weir_status status, const weir_store_version *version,
                                    weir_arena *arena, const ProtobufCMessage **out_response,
                                    char *text)
{
    if (status != WEIR_OK)
        return weir_directory_core_refuse(status, text);
    version_message *response = weir_arena_alloc(arena, sizeof(*response));
    if (response == NULL)
        return weir_directory_core_refuse(WEIR_ERR_NO_MEMORY, text);
    fill_version(version, response);
    *out_response = &response->base;
    return WEIR_RPC_OK;
}

/* ---- workers ---------------------------------------------------------------------------------*/

HANDLER(register_worker)
{
    (void)call;
    const weir_directory_core *core = context;
    const ModelExpress__Refit__RegisterWorkerRequest *request = (const void *)message;
    if (request->worker == NULL) {
        snprintf(text, WEIR_RPC_MESSAGE_TEXT, "worker is required");
        return WEIR_RPC_INVALID_ARGUMENT;
    }
    MAKE(ModelExpress__Refit__WorkerRegistration, model_express__refit__worker_registration__init,
         response);
    response->worker_id = request->worker->worker_id;
    response->role = request->worker->role;
    response->model_name = request->worker->model_name;
    weir_status status = weir_store_register_worker(
        core->store, response->worker_id, (int)response->role, response->model_name,
        request->ttl_seconds, weir_directory_core_now_ms(core), &response->expires_at_unix_ms);
    if (status != WEIR_OK)
        return weir_directory_core_refuse(status, text);
    *out_response = &response->base;
    return WEIR_RPC_OK;
}

/* ---- versions --------------------------------------------------------------------------------*/

HANDLER(create_version)
{
    (void)call;
    const weir_directory_core *core = context;
    const ModelExpress__Refit__CreateWeightVersionRequest *request = (const void *)message;
    weir_store_version wanted = {
        .model = request->model_name,
        .has_number =
            request->_version_number_case ==
            MODEL_EXPRESS__REFIT__CREATE_WEIGHT_VERSION_REQUEST___VERSION_NUMBER_VERSION_NUMBER,
        .idempotency_key = request->idempotency_key,
        .payload = (int)request->payload_format,
        .slots = (const char *const *)request->expected_source_slots,
        .n_slots = request->n_expected_source_slots,
    };
    if (wanted.has_number)
        wanted.number = request->version_number;
    if (request->_base_version_id_case ==
        MODEL_EXPRESS__REFIT__CREATE_WEIGHT_VERSION_REQUEST___BASE_VERSION_ID_BASE_VERSION_ID)
        wanted.base_uid = request->base_version_id;
    const weir_store_version *version = NULL;
    weir_status status = weir_store_create_version(core->store, &wanted, core->salt,
                                                   weir_directory_core_now_ms(core), &version);
    return answer_version(status, version, arena, out_response, text);
}

HANDLER(get_version)
{
    (void)call;
    const weir_directory_core *core = context;
    const ModelExpress__Refit__GetWeightVersionRequest *request = (const void *)message;
    const weir_store_version *version = NULL;
    weir_status status = weir_store_get_version(core->store, request->uid, &version);
    return answer_version(status, version, arena, out_response, text);
}

HANDLER(delete_version)
{
    (void)call;
    const weir_directory_core *core = context;
    const ModelExpress__Refit__DeleteWeightVersionRequest *request = (const void *)message;
    const weir_store_version *version = NULL;
    weir_status status = weir_store_delete_version(core->store, request->uid,
                                                   weir_directory_core_now_ms(core), &version);
    return answer_version(status, version, arena, out_response, text);
}

/* ---- shards ----------------------------------------------------------------------------------*/

HANDLER(create_shard)
{
    (void)call;
    const weir_directory_core *core = context;
    const ModelExpress__Refit__CreateWeightVersionShardRequest *request = (const void *)message;
    const shard_message *wanted = request->shard;
    if (wanted == NULL) {
        snprintf(text, WEIR_RPC_MESSAGE_TEXT, "shard is required");
        return WEIR_RPC_INVALID_ARGUMENT;
    }
    MAKE(ModelExpress__Refit__CreateWeightVersionShardResponse,
         model_express__refit__create_weight_version_shard_response__init, response);
    const weir_store_shard shard = {
        .version_uid = wanted->version_id,
        .slot = wanted->source_slot_id,
        .worker_id = wanted->worker_id,
        .n_tensors = wanted->tensor_count,
        .n_bytes = wanted->total_bytes,
        .manifest_digest = wanted->manifest_digest,
        .manifest_endpoint = wanted->manifest_endpoint,
        .transport = wanted->transport,
    };
    const weir_store_version *version = NULL;
    weir_status status =
        weir_store_create_shard(core->store, &shard, weir_directory_core_now_ms(core), &version);
    const ProtobufCMessage *version_answer = NULL;
    weir_rpc_code code = answer_version(status, version, arena, &version_answer, text);
    if (code != WEIR_RPC_OK)
        return code;
    response->shard = request->shard;
    response->version = (version_message *)version_answer;
    *out_response = &response->base;
    return WEIR_RPC_OK;
}

HANDLER(list_shards)
{
    (void)call;
    const weir_directory_core *core = context;
    const ModelExpress__Refit__ListWeightVersionShardsRequest *request = (const void *)message;
    const weir_store_shard *first = NULL;
    weir_status status = weir_store_list_shards(core->store, request->version_id, &first);
    if (status != WEIR_OK)
        return weir_directory_core_refuse(status, text);
    MAKE(ModelExpress__Refit__ListWeightVersionShardsResponse,
         model_express__refit__list_weight_version_shards_response__init, response);
    size_t n = 0;
    for (const weir_store_shard *shard = first; shard != NULL; shard = shard->next)
        n++;
    response->shards = weir_arena_alloc(arena, (n + 1) * sizeof(*response->shards));
    shard_message *messages = weir_arena_alloc(arena, (n + 1) * sizeof(*messages));
    if (response->shards == NULL || messages == NULL)
        return weir_directory_core_refuse(WEIR_ERR_NO_MEMORY, text);
    for (const weir_store_shard *shard = first; shard != NULL; shard = shard->next) {
        fill_shard(shard, &messages[response->n_shards]);
        response->shards[response->n_shards] = &messages[response->n_shards];
        response->n_shards++;
    }
    *out_response = &response->base;
    return WEIR_RPC_OK;
}

HANDLER(delete_shard)
{
    (void)call;
    const weir_directory_core *core = context;
    const ModelExpress__Refit__DeleteWeightVersionShardRequest *request = (const void *)message;
    MAKE(ModelExpress__Refit__DeleteWeightVersionShardResponse,
         model_express__refit__delete_weight_version_shard_response__init, response);
    bool deleted = false;
    weir_status status =
        weir_store_delete_shard(core->store, request->version_id, request->source_slot_id,
                                request->worker_id, weir_directory_core_now_ms(core), &deleted);
    if (status != WEIR_OK)
        return weir_directory_core_refuse(status, text);
    response->deleted = deleted;
    *out_response = &response->base;
    return WEIR_RPC_OK;
}

/* ---- leases ----------------------------------------------------------------------------------*/

HANDLER(register_lease)
{
    (void)call;
    const weir_directory_core *core = context;
    const ModelExpress__Refit__RegisterVersionLeaseRequest *request = (const void *)message;
    MAKE(ModelExpress__Refit__VersionLease, model_express__refit__version_lease__init, response);
    weir_store_lease lease;
    weir_status status =
        weir_store_register_lease(core->store, request->version_id, request->worker_id,
                                  request->ttl_seconds, weir_directory_core_now_ms(core), &lease);
    if (status != WEIR_OK)
        return weir_directory_core_refuse(status, text);
    response->lease_id = weir_arena_strdup(arena, lease.lease_id);
    if (response->lease_id == NULL)
        return weir_directory_core_refuse(WEIR_ERR_NO_MEMORY, text);
    response->version_id = request->version_id;
    response->worker_id = request->worker_id;
    response->expires_at_unix_ms = lease.expires_ms;
    *out_response = &response->base;
    return WEIR_RPC_OK;
}

HANDLER(delete_lease)
{
    (void)call;
    const weir_directory_core *core = context;
    const ModelExpress__Refit__DeleteVersionLeaseRequest *request = (const void *)message;
    MAKE(ModelExpress__Refit__DeleteVersionLeaseResponse,
         model_express__refit__delete_version_lease_response__init, response);
    bool deleted = false;
    weir_status status =
        weir_store_delete_lease(core->store, request->version_id, request->lease_id,
                                request->worker_id, weir_directory_core_now_ms(core), &deleted);
    if (status != WEIR_OK)
        return weir_directory_core_refuse(status, text);
    response->deleted = deleted;
    *out_response = &response->base;
    return WEIR_RPC_OK;
}

const weir_rpc_method weir_refit_methods[] = {
    { "CreateWeightVersion", create_version },    { "GetWeightVersion", get_version },
    { "DeleteWeightVersion", delete_version },    { "RegisterWorker", register_worker },
    { "CreateWeightVersionShard", create_shard }, { "ListWeightVersionShards", list_shards },
    { "DeleteWeightVersionShard", delete_shard }, { "RegisterVersionLease", register_lease },
    { "DeleteVersionLease", delete_lease },
};
const size_t weir_n_refit_methods = sizeof(weir_refit_methods) / sizeof(weir_refit_methods[0]);
