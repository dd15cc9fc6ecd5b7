/* SPDX-License-Identifier: Apache-2.0 */
/* refit_handlers.c - RefitService: messages in, the store's answer out. */
#include "directory/directory_messages.h"

typedef ModelExpress__Refit__WeightVersion version_message;
typedef ModelExpress__Refit__WeightVersionShard shard_message;

/* What only replicas have cannot be read by who knows trainers alone: for them it is over. */
static weir_rpc_code answer_version(weir_directory_call *call, weir_status status,
                                    const weir_store_version *version)
{
    if (status != WEIR_OK)
        return weir_directory_core_refuse(status, call->text);
    WEIR_MAKE_MESSAGE(version_message, model_express__refit__weight_version__init, response);
    weir_message_of_version(version, response);
    if (weir_store_is_taken_back(call->core->store, version->uid))
        response->state =
            MODEL_EXPRESS__REFIT__WEIGHT_VERSION_STATE__WEIGHT_VERSION_STATE_RELEASING;
    call->response = &response->base;
    return WEIR_RPC_OK;
}

/* ---- workers ---------------------------------------------------------------------------------*/

static weir_rpc_code check_worker(weir_directory_call *call)
{
    const ModelExpress__Refit__RegisterWorkerRequest *request = (const void *)call->request;
    if (request->worker == NULL)
        return weir_directory_core_invalid(call, "worker is required");
    return WEIR_RPC_OK;
}

static weir_rpc_code register_worker(weir_directory_call *call)
{
    const ModelExpress__Refit__RegisterWorkerRequest *request = (const void *)call->request;
    WEIR_MAKE_MESSAGE(ModelExpress__Refit__WorkerRegistration,
                      model_express__refit__worker_registration__init, response);
    response->worker_id = request->worker->worker_id;
    response->role = request->worker->role;
    response->model_name = request->worker->model_name;
    weir_status status = weir_store_register_worker(
        call->core->store, response->worker_id, (int)response->role, response->model_name,
        request->ttl_seconds, call->now_ms, &response->expires_at_unix_ms);
    if (status != WEIR_OK)
        return weir_directory_core_refuse(status, call->text);
    call->response = &response->base;
    return WEIR_RPC_OK;
}

/* ---- versions --------------------------------------------------------------------------------*/

static weir_rpc_code create_version(weir_directory_call *call)
{
    const ModelExpress__Refit__CreateWeightVersionRequest *request = (const void *)call->request;
    weir_store_version wanted = {
        .model = request->model_name,
        .has_number =
            request->_version_number_case ==
            MODEL_EXPRESS__REFIT__CREATE_WEIGHT_VERSION_REQUEST___VERSION_NUMBER_VERSION_NUMBER,
        .idempotency_key = request->idempotency_key,
        .payload = (int)request->payload_format,
        .slots = (const char *const *)request->expected_source_slots,
        .n_slots = request->n_expected_source_slots,
        .trace_id = call->trace_id,
    };
    if (wanted.has_number)
        wanted.number = request->version_number;
    if (request->_base_version_id_case ==
        MODEL_EXPRESS__REFIT__CREATE_WEIGHT_VERSION_REQUEST___BASE_VERSION_ID_BASE_VERSION_ID)
        wanted.base_uid = request->base_version_id;
    const weir_store_version *version = NULL;
    weir_status status =
        weir_store_create_version(call->core->store, &wanted, call->salt, call->now_ms, &version);
    return answer_version(call, status, version);
}

static weir_rpc_code get_version(weir_directory_call *call)
{
    const ModelExpress__Refit__GetWeightVersionRequest *request = (const void *)call->request;
    const weir_store_version *version = NULL;
    weir_status status = weir_store_get_version(call->core->store, request->uid, &version);
    return answer_version(call, status, version);
}

static weir_rpc_code delete_version(weir_directory_call *call)
{
    const ModelExpress__Refit__DeleteWeightVersionRequest *request = (const void *)call->request;
    const weir_store_version *version = NULL;
    weir_status status =
        weir_store_delete_version(call->core->store, request->uid, call->now_ms, &version);
    return answer_version(call, status, version);
}

/* ---- shards ----------------------------------------------------------------------------------*/

static weir_rpc_code check_shard(weir_directory_call *call)
{
    const ModelExpress__Refit__CreateWeightVersionShardRequest *request =
        (const void *)call->request;
    if (request->shard == NULL)
        return weir_directory_core_invalid(call, "shard is required");
    return WEIR_RPC_OK;
}

static weir_rpc_code create_shard(weir_directory_call *call)
{
    const ModelExpress__Refit__CreateWeightVersionShardRequest *request =
        (const void *)call->request;
    WEIR_MAKE_MESSAGE(ModelExpress__Refit__CreateWeightVersionShardResponse,
                      model_express__refit__create_weight_version_shard_response__init, response);
    weir_store_shard shard;
    weir_shard_of_message(request->shard, &shard);
    const weir_store_version *version = NULL;
    weir_status status = weir_store_create_shard(call->core->store, &shard, call->now_ms, &version);
    weir_rpc_code code = answer_version(call, status, version);
    if (code != WEIR_RPC_OK)
        return code;
    response->shard = request->shard;
    response->version = (version_message *)call->response;
    call->response = &response->base;
    return WEIR_RPC_OK;
}

static weir_rpc_code list_shards(weir_directory_call *call)
{
    const ModelExpress__Refit__ListWeightVersionShardsRequest *request =
        (const void *)call->request;
    const weir_store_shard *first = NULL;
    weir_status status = weir_store_list_shards(call->core->store, request->version_id, &first);
    if (status != WEIR_OK)
        return weir_directory_core_refuse(status, call->text);
    WEIR_MAKE_MESSAGE(ModelExpress__Refit__ListWeightVersionShardsResponse,
                      model_express__refit__list_weight_version_shards_response__init, response);
    size_t n = 0;
    for (const weir_store_shard *shard = first; shard != NULL; shard = shard->next)
        n++;
    response->shards = weir_arena_alloc(call->arena, (n + 1) * sizeof(*response->shards));
    shard_message *messages = weir_arena_alloc(call->arena, (n + 1) * sizeof(*messages));
    if (response->shards == NULL || messages == NULL)
        return weir_directory_core_refuse(WEIR_ERR_NO_MEMORY, call->text);
    for (const weir_store_shard *shard = first; shard != NULL; shard = shard->next) {
        if (!weir_store_shard_counts(shard, call->now_ms))
            continue;
        weir_message_of_shard(shard, &messages[response->n_shards]);
        response->shards[response->n_shards] = &messages[response->n_shards];
        response->n_shards++;
    }
    call->response = &response->base;
    return WEIR_RPC_OK;
}

static weir_rpc_code delete_shard(weir_directory_call *call)
{
    const ModelExpress__Refit__DeleteWeightVersionShardRequest *request =
        (const void *)call->request;
    WEIR_MAKE_MESSAGE(ModelExpress__Refit__DeleteWeightVersionShardResponse,
                      model_express__refit__delete_weight_version_shard_response__init, response);
    bool deleted = false;
    weir_status status =
        weir_store_delete_shard(call->core->store, request->version_id, request->source_slot_id,
                                request->worker_id, call->now_ms, &deleted);
    if (status != WEIR_OK)
        return weir_directory_core_refuse(status, call->text);
    response->deleted = deleted;
    call->response = &response->base;
    return WEIR_RPC_OK;
}

/* ---- leases ----------------------------------------------------------------------------------*/

static weir_rpc_code register_lease(weir_directory_call *call)
{
    const ModelExpress__Refit__RegisterVersionLeaseRequest *request = (const void *)call->request;
    WEIR_MAKE_MESSAGE(ModelExpress__Refit__VersionLease, model_express__refit__version_lease__init,
                      response);
    weir_store_lease lease;
    weir_status status =
        weir_store_register_lease(call->core->store, request->version_id, request->worker_id,
                                  request->ttl_seconds, call->now_ms, &lease);
    if (status != WEIR_OK)
        return weir_directory_core_refuse(status, call->text);
    response->lease_id = weir_arena_strdup(call->arena, lease.lease_id);
    if (response->lease_id == NULL)
        return weir_directory_core_refuse(WEIR_ERR_NO_MEMORY, call->text);
    response->version_id = request->version_id;
    response->worker_id = request->worker_id;
    response->expires_at_unix_ms = lease.expires_ms;
    call->response = &response->base;
    return WEIR_RPC_OK;
}

static weir_rpc_code delete_lease(weir_directory_call *call)
{
    const ModelExpress__Refit__DeleteVersionLeaseRequest *request = (const void *)call->request;
    WEIR_MAKE_MESSAGE(ModelExpress__Refit__DeleteVersionLeaseResponse,
                      model_express__refit__delete_version_lease_response__init, response);
    bool deleted = false;
    weir_status status =
        weir_store_delete_lease(call->core->store, request->version_id, request->lease_id,
                                request->worker_id, call->now_ms, &deleted);
    if (status != WEIR_OK)
        return weir_directory_core_refuse(status, call->text);
    response->deleted = deleted;
    call->response = &response->base;
    return WEIR_RPC_OK;
}

#define METHOD(name_of, message, kind_of, ...)                           \
    {                                                                    \
        .name = "RefitService." name_of,                                 \
        .input = &model_express__refit__##message##_request__descriptor, \
        .kind = WEIR_DIRECTORY_##kind_of, __VA_ARGS__                    \
    }

const weir_directory_method weir_refit_methods[] = {
    METHOD("CreateWeightVersion", create_weight_version, CHANGE, .rule = create_version),
    METHOD("GetWeightVersion", get_weight_version, READ, .rule = get_version),
    METHOD("DeleteWeightVersion", delete_weight_version, CHANGE, .rule = delete_version),
    METHOD("RegisterWorker", register_worker, CHANGE, .rule = register_worker,
           .check = check_worker),
    METHOD("CreateWeightVersionShard", create_weight_version_shard, CHANGE, .rule = create_shard,
           .check = check_shard),
    METHOD("ListWeightVersionShards", list_weight_version_shards, READ, .rule = list_shards),
    METHOD("DeleteWeightVersionShard", delete_weight_version_shard, CHANGE, .rule = delete_shard),
    METHOD("RegisterVersionLease", register_version_lease, CHANGE, .rule = register_lease),
    METHOD("DeleteVersionLease", delete_version_lease, CHANGE, .rule = delete_lease),
};
const size_t weir_n_refit_methods = sizeof(weir_refit_methods) / sizeof(weir_refit_methods[0]);
