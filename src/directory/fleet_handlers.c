/* SPDX-License-Identifier: Apache-2.0 */
/* fleet_handlers.c - DirectoryService's table; a replica's wish, the abort of a version, and what
 * people look at. */
#include "directory/fleet_handlers.h"

#include <stdio.h>
#include <string.h>

#include "directory/fleet_json.h"

#define MOST_AVOIDED 256u
#define MOST_NAME 255u

typedef Weir__Directory__AcquireVersionRequest acquire_request;
typedef Weir__Directory__AcquireVersionResponse acquire_response;

static bool is_name(const char *text)
{
    return text[0] != '\0' && strlen(text) <= MOST_NAME;
}

/* ---- AcquireVersion --------------------------------------------------------------------------*/

static weir_rpc_code check_acquire(weir_directory_call *call)
{
    const acquire_request *request = (const void *)call->request;
    const char *const optional[] = { request->but_not_id, request->held_id, request->host,
                                     request->part, request->trace_id };
    if (!is_name(request->model_name) || !is_name(request->run) || !is_name(request->worker_id))
        return weir_directory_core_invalid(
            call, "model_name, run and worker_id are required, of at most 255 bytes");
    if (request->lowest > request->highest)
        return weir_directory_core_invalid(call, "lowest is greater than highest");
    if (request->ttl_seconds == 0)
        return weir_directory_core_invalid(call, "ttl_seconds must be greater than zero");
    if (request->n_avoid > MOST_AVOIDED)
        return weir_directory_core_invalid(call, "at most 256 workers can be avoided");
    for (size_t i = 0; i < sizeof(optional) / sizeof(optional[0]); i++) {
        if (strlen(optional[i]) > MOST_NAME)
            return weir_directory_core_invalid(
                call, "but_not_id, held_id, host, part or trace_id is too long");
    }
    return WEIR_RPC_OK;
}

static weir_directory_bound bound_acquire(const weir_directory_call *call)
{
    const acquire_request *request = (const void *)call->request;
    return (weir_directory_bound){ request->model_name, request->timeout_ms };
}

static weir_store_wish wish_of(const acquire_request *request)
{
    return (weir_store_wish){ .model = request->model_name,
                              .run = request->run,
                              .worker_id = request->worker_id,
                              .worker_rank = request->worker_rank,
                              .lowest = request->lowest,
                              .highest = request->highest,
                              .but_not_uid = request->but_not_id,
                              .held_uid = request->held_id,
                              .host = request->host,
                              .part = request->part,
                              .avoid = (const char *const *)request->avoid,
                              .n_avoid = request->n_avoid,
                              .ttl_s = request->ttl_seconds,
                              .peer_wait_ms = request->peer_wait_ms,
                              .trace_id = request->trace_id };
}

static bool fill_shards(weir_directory_call *call, const weir_store_grant *grant,
                        acquire_response *response)
{
    size_t n = grant->n_shards;
    ModelExpress__Refit__WeightVersionShard *shards =
        weir_arena_zeroed(call->arena, n + 1, sizeof(*shards));
    response->shards = weir_arena_zeroed(call->arena, n + 1, sizeof(*response->shards));
    if (shards == NULL || response->shards == NULL)
        return false;
    for (size_t i = 0; i < n; i++) {
        weir_message_of_shard(grant->shards[i], &shards[i]);
        response->shards[i] = &shards[i];
    }
    response->n_shards = n;
    return true;
}

static bool fill_peer(weir_directory_call *call, const weir_store_grant *grant,
                      acquire_response *response)
{
    if (grant->peer == NULL)
        return true;
    Weir__Directory__Peer *peer = weir_arena_alloc(call->arena, sizeof(*peer));
    if (peer == NULL)
        return false;
    weir__directory__peer__init(peer);
    peer->worker_id = (char *)grant->peer->worker_id;
    peer->mx_source_id = (char *)grant->peer->source_id;
    peer->manifest_endpoint = (char *)grant->peer_endpoint;
    peer->host = (char *)grant->peer_host;
    peer->n_readers = grant->n_peer_readers;
    response->peer = peer;
    return true;
}

static bool fill_lease(weir_directory_call *call, const weir_store_grant *grant,
                       acquire_response *response)
{
    const acquire_request *request = (const void *)call->request;
    ModelExpress__Refit__WeightVersion *version = weir_arena_alloc(call->arena, sizeof(*version));
    ModelExpress__Refit__VersionLease *lease = weir_arena_alloc(call->arena, sizeof(*lease));
    if (version == NULL || lease == NULL)
        return false;
    weir_message_of_version(grant->version, version);
    model_express__refit__version_lease__init(lease);
    lease->lease_id = weir_arena_strdup(call->arena, grant->lease.lease_id);
    lease->version_id = version->uid;
    lease->worker_id = request->worker_id;
    lease->expires_at_unix_ms = grant->lease.expires_ms;
    response->version = version;
    response->lease = lease;
    response->attempt = grant->version->attempt;
    response->trace_id = (char *)grant->version->trace_id;
    return lease->lease_id != NULL;
}

typedef struct gone_list {
    weir_arena *arena;
    Weir__Directory__GoneSlot **items;
    size_t n;
    bool has_failed;
} gone_list;

static bool take_gone(void *context, const weir_store_gap *gap)
{
    gone_list *list = context;
    if (!gap->was_published)
        return true;
    Weir__Directory__GoneSlot *item = weir_arena_alloc(list->arena, sizeof(*item));
    list->has_failed = item == NULL;
    if (item == NULL)
        return false;
    weir__directory__gone_slot__init(item);
    item->source_slot_id = (char *)gap->slot;
    item->worker_id = (char *)gap->worker_id;
    list->items[list->n++] = item;
    return true;
}

static bool fill_lack(weir_directory_call *call, const weir_store_grant *grant,
                      acquire_response *response)
{
    gone_list list = { .arena = call->arena };
    response->has_trainer = grant->has_trainer;
    response->newest = grant->newest;
    if (grant->awaited == NULL)
        return true;
    response->awaited_id = (char *)grant->awaited->uid;
    response->awaited_state = (Weir__Directory__VersionState)grant->awaited->state;
    response->reason = (char *)grant->awaited->reason;
    response->missing_slots = (char **)grant->missing;
    response->n_missing_slots = grant->n_missing;
    if (grant->n_missing == 0)
        return true;
    list.items = weir_arena_zeroed(call->arena, grant->n_missing, sizeof(*list.items));
    if (list.items == NULL)
        return false;
    weir_store_each_gap(call->core->store, grant->awaited->uid, call->now_ms, take_gone, &list);
    response->gone_slots = list.items;
    response->n_gone_slots = list.n;
    return !list.has_failed;
}

/* With its lease, or what there is instead. */
static weir_rpc_code answer_acquire(weir_directory_call *call, const weir_store_grant *grant)
{
    WEIR_MAKE_MESSAGE(acquire_response, weir__directory__acquire_version_response__init, response);
    call->response = &response->base;
    if (grant->version != NULL) {
        response->found = true;
        if (!fill_lease(call, grant, response) || !fill_shards(call, grant, response) ||
            !fill_peer(call, grant, response))
            return weir_directory_core_refuse(WEIR_ERR_NO_MEMORY, call->text);
        return WEIR_RPC_OK;
    }
    if (!fill_lack(call, grant, response))
        return weir_directory_core_refuse(WEIR_ERR_NO_MEMORY, call->text);
    return WEIR_RPC_OK;
}

/* Waiting brings nothing: the caller is to hear why. Who was told of an abort asks for another than
 * that version. */
static bool is_hopeless(const acquire_request *request, const weir_store_grant *grant)
{
    if (grant->awaited != NULL && grant->awaited->state != WEIR_STORE_RELEASING)
        return grant->awaited->state == WEIR_STORE_ABORTED;
    return grant->has_trainer && grant->newest > request->highest;
}

static weir_rpc_code look_acquire(weir_directory_call *call)
{
    weir_store_wish wish = wish_of((const void *)call->request);
    weir_store_grant grant = { 0 };
    weir_status status = weir_store_acquire(call->core->store, &wish, false, call->now_ms, &grant);
    if (status == WEIR_OK)
        return WEIR_DIRECTORY_TAKE;
    if (status != WEIR_IN_PROGRESS)
        return weir_directory_core_refuse(status, call->text);
    if (grant.again_ms != 0)
        call->again_ms = grant.again_ms;
    bool is_over = call->is_last || is_hopeless((const void *)call->request, &grant);
    return is_over ? answer_acquire(call, &grant) : WEIR_RPC_LATER;
}

static weir_rpc_code acquire(weir_directory_call *call)
{
    const acquire_request *request = (const void *)call->request;
    weir_directory_counts *counts = &call->core->counts;
    weir_rpc_code code = check_acquire(call);
    if (code != WEIR_RPC_OK)
        return code;
    weir_store_wish wish = wish_of(request);
    weir_store_grant grant = { 0 };
    weir_status status = weir_store_acquire(call->core->store, &wish, true, call->now_ms, &grant);
    if (status == WEIR_IN_PROGRESS)
        return call->is_last ? answer_acquire(call, &grant) : WEIR_RPC_LATER;
    if (status != WEIR_OK)
        return weir_directory_core_refuse(status, call->text);
    if (call->is_asked) {
        counts->n_granted_peers += grant.peer != NULL;
        counts->n_retried += request->but_not_id[0] != '\0' || request->n_avoid != 0;
    }
    return answer_acquire(call, &grant);
}

/* ---- AbortVersion ----------------------------------------------------------------------------*/

static weir_rpc_code check_abort(weir_directory_call *call)
{
    const Weir__Directory__AbortVersionRequest *request = (const void *)call->request;
    if (!is_name(request->version_id) || !is_name(request->worker_id))
        return weir_directory_core_invalid(call, "version_id and worker_id are required");
    return WEIR_RPC_OK;
}

static weir_rpc_code abort_version(weir_directory_call *call)
{
    const Weir__Directory__AbortVersionRequest *request = (const void *)call->request;
    const weir_store_version *version = NULL;
    WEIR_MAKE_MESSAGE(Weir__Directory__AbortVersionResponse,
                      weir__directory__abort_version_response__init, response);
    WEIR_MAKE_MESSAGE(ModelExpress__Refit__WeightVersion,
                      model_express__refit__weight_version__init, message);
    weir_status status =
        weir_store_abort_version(call->core->store, request->version_id, request->worker_id,
                                 request->reason, call->now_ms, &version);
    if (status != WEIR_OK)
        return weir_directory_core_refuse(status, call->text);
    weir_message_of_version(version, message);
    response->version = message;
    call->response = &response->base;
    return WEIR_RPC_OK;
}

/* ---- for people ------------------------------------------------------------------------------*/

static weir_rpc_code report_progress(weir_directory_call *call)
{
    const Weir__Directory__ReportProgressRequest *request = (const void *)call->request;
    if (!is_name(request->worker_id) || !is_name(request->model_name) ||
        strlen(request->stop) > MOST_NAME || strlen(request->slowest_from) > MOST_NAME)
        return weir_directory_core_invalid(
            call, "worker_id and model_name are required, names have at most 255 bytes");
    WEIR_MAKE_MESSAGE(Weir__Directory__ReportProgressResponse,
                      weir__directory__report_progress_response__init, response);
    const weir_progress_entry entry = { .worker_id = request->worker_id,
                                        .model = request->model_name,
                                        .stop = request->stop,
                                        .slowest_from = request->slowest_from,
                                        .number = request->version_number,
                                        .done_bytes = request->done_bytes,
                                        .total_bytes = request->total_bytes,
                                        .at_ms = call->now_ms };
    weir_status status = WEIR_OK;
    if (request->stop[0] == '\0')
        weir_progress_forget(&call->core->progress, request->worker_id);
    else
        status = weir_progress_put(&call->core->progress, &entry);
    if (status != WEIR_OK)
        return weir_directory_core_refuse(status, call->text);
    call->response = &response->base;
    return WEIR_RPC_OK;
}

static weir_directory_bound bound_fleet(const weir_directory_call *call)
{
    const Weir__Directory__GetFleetRequest *request = (const void *)call->request;
    return (weir_directory_bound){ request->model_name, request->timeout_ms };
}

static weir_rpc_code look_fleet(weir_directory_call *call)
{
    const Weir__Directory__GetFleetRequest *request = (const void *)call->request;
    const char *model = request->model_name[0] != '\0' ? request->model_name : NULL;
    uint64_t revision = weir_store_revision(call->core->store, model);
    if (revision <= request->after_revision && !call->is_last)
        return WEIR_RPC_LATER;
    WEIR_MAKE_MESSAGE(Weir__Directory__GetFleetResponse, weir__directory__get_fleet_response__init,
                      response);
    weir_status status = weir_fleet_json(call->core, model, request->version_number, call->now_ms,
                                         call->arena, &response->json);
    if (status != WEIR_OK)
        return weir_directory_core_refuse(status, call->text);
    response->revision = revision;
    call->response = &response->base;
    return WEIR_RPC_OK;
}

#define METHOD(name_of, message, kind_of, ...)                      \
    {                                                               \
        .name = "DirectoryService." name_of,                        \
        .input = &weir__directory__##message##_request__descriptor, \
        .kind = WEIR_DIRECTORY_##kind_of, __VA_ARGS__               \
    }

const weir_directory_method weir_fleet_methods[] = {
    METHOD("PublishVersionShard", publish_version_shard, CHANGE, .rule = weir_publish_shard,
           .check = weir_publish_shard_check),
    METHOD("AwaitReplicas", await_replicas, WAIT, .check = weir_await_check,
           .look = weir_await_look, .bound = weir_await_bound),
    METHOD("RetireVersions", retire_versions, WAIT, .rule = weir_retire, .check = weir_retire_check,
           .look = weir_retire_look, .bound = weir_retire_bound),
    METHOD("AbortVersion", abort_version, CHANGE, .rule = abort_version, .check = check_abort),
    METHOD("AcquireVersion", acquire_version, WAIT, .rule = acquire, .check = check_acquire,
           .look = look_acquire, .bound = bound_acquire),
    METHOD("AcknowledgeVersion", acknowledge_version, CHANGE, .rule = weir_acknowledge,
           .check = weir_acknowledge_check),
    METHOD("ReportProgress", report_progress, LOCAL, .rule = report_progress),
    METHOD("GetFleet", get_fleet, WAIT, .look = look_fleet, .bound = bound_fleet),
};
const size_t weir_n_fleet_methods = sizeof(weir_fleet_methods) / sizeof(weir_fleet_methods[0]);
