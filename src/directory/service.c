/* SPDX-License-Identifier: Apache-2.0 */
/* service.c - RefitWorkerService and WorkerService: hand out the manifests that a worker has, and
 * the groups of a version that passes through a window. */
#include "directory/service.h"

#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "base/error.h"
#include "refit.pb-c.h"
#include "rpc/rpc.h"
#include "rpc/rpc_address.h"
#include "worker.pb-c.h"

struct weir_manifest_service {
    weir_manifest_source source;
    weir_rpc_server *server;
};

typedef ModelExpress__Refit__GetWeightVersionShardManifestResponse manifest_response;

/* Copied, so that the owner's bytes are held for no longer than this. */
static bool copy_bytes(weir_arena *arena, const weir_manifest_found *found,
                       ProtobufCBinaryData *out)
{
    out->data = weir_arena_alloc(arena, found->n_bytes);
    out->len = found->n_bytes;
    if (out->data == NULL)
        return false;
    if (found->n_bytes != 0)
        memcpy(out->data, found->bytes, found->n_bytes);
    return true;
}

static weir_rpc_code too_large(char *text)
{
    snprintf(text, WEIR_RPC_MESSAGE_TEXT, "the answer does not fit in memory");
    return WEIR_RPC_RESOURCE_EXHAUSTED;
}

static weir_rpc_code get_manifest(void *context, const weir_rpc_call_info *call,
                                  const ProtobufCMessage *message, weir_arena *arena,
                                  const ProtobufCMessage **out_response, char *text)
{
    (void)call;
    const weir_manifest_source *source = &((weir_manifest_service *)context)->source;
    const ModelExpress__Refit__GetWeightVersionShardManifestRequest *request =
        (const void *)message;
    const weir_manifest_request wanted = { .version_uid = request->version_id,
                                           .slot = request->source_slot_id,
                                           .reader = "",
                                           .gave_up = "" };
    weir_manifest_found found;
    if (!source->find(source->context, &wanted, &found)) {
        snprintf(text, WEIR_RPC_MESSAGE_TEXT, "no manifest of version '%.64s', slot '%.64s' here",
                 request->version_id, request->source_slot_id);
        return WEIR_RPC_NOT_FOUND;
    }
    ModelExpress__Refit__GetWeightVersionShardManifestResponse *response =
        weir_arena_alloc(arena, sizeof(*response));
    bool copied = response != NULL;
    if (copied) {
        model_express__refit__get_weight_version_shard_manifest_response__init(response);
        response->manifest_digest = weir_arena_strdup(arena, found.digest);
        copied =
            response->manifest_digest != NULL && copy_bytes(arena, &found, &response->manifest);
    }
    source->done(source->context);
    if (!copied)
        return too_large(text);
    *out_response = &response->base;
    return WEIR_RPC_OK;
}

static weir_rpc_code ask_group(void *context, const weir_rpc_call_info *call,
                               const ProtobufCMessage *message, weir_arena *arena,
                               const ProtobufCMessage **out_response, char *text)
{
    (void)call;
    const weir_manifest_source *source = &((weir_manifest_service *)context)->source;
    const Weir__Worker__AskGroupRequest *request = (const void *)message;
    const weir_manifest_request wanted = { .version_uid = request->version_id,
                                           .slot = request->source_slot_id,
                                           .reader = request->reader,
                                           .worker = request->worker,
                                           .group = request->group,
                                           .round = request->round,
                                           .gave_up = request->gave_up,
                                           .fresh = request->fresh };
    if (request->reader[0] == '\0') {
        snprintf(text, WEIR_RPC_MESSAGE_TEXT, "reader is required");
        return WEIR_RPC_INVALID_ARGUMENT;
    }
    weir_manifest_found found;
    if (!source->find(source->context, &wanted, &found)) {
        snprintf(text, WEIR_RPC_MESSAGE_TEXT, "no group of version '%.64s', slot '%.64s' here",
                 request->version_id, request->source_slot_id);
        return WEIR_RPC_NOT_FOUND;
    }
    Weir__Worker__AskGroupResponse *response = weir_arena_alloc(arena, sizeof(*response));
    bool copied = response != NULL;
    if (copied) {
        weir__worker__ask_group_response__init(response);
        copied = copy_bytes(arena, &found, &response->group);
    }
    source->done(source->context);
    if (!copied)
        return too_large(text);
    *out_response = &response->base;
    return WEIR_RPC_OK;
}

static const weir_rpc_method manifest_methods[] = {
    { "GetWeightVersionShardManifest", get_manifest },
};
static const weir_rpc_method worker_methods[] = { { "AskGroup", ask_group } };

weir_status weir_manifest_service_open(const char *host, const weir_manifest_source *source,
                                       const weir_rpc_security *security,
                                       weir_manifest_service **out)
{
    char listen[WEIR_RPC_ADDRESS_TEXT];
    bool needs_brackets = strchr(host, ':') != NULL && host[0] != '[';
    int n = snprintf(listen, sizeof(listen), needs_brackets ? "[%s]:0" : "%s:0", host);
    if (n < 0 || (size_t)n >= sizeof(listen))
        return weir_fail(WEIR_ERR_INVALID, "host '%.80s' is too long", host);
    weir_manifest_service *service = weir_alloc_zeroed(1, sizeof(*service));
    if (service == NULL)
        return WEIR_ERR_NO_MEMORY;
    service->source = *source;
    const weir_rpc_service offered[] = {
        { &model_express__refit__refit_worker_service__descriptor, manifest_methods, 1, service },
        { &weir__worker__worker_service__descriptor, worker_methods, 1, service },
    };
    /* Who reads here, and when the first does, is no part of this worker's own refits. */
    weir_rpc_server_options options = {
        .listen = listen, .services = offered, .n_services = 2, .is_uncounted = true
    };
    if (security != NULL)
        options.security = *security;
    weir_status status = weir_rpc_server_open(&options, &service->server);
    if (status != WEIR_OK) {
        weir_free(service);
        return status;
    }
    *out = service;
    return WEIR_OK;
}

void weir_manifest_service_close(weir_manifest_service *service)
{
    if (service == NULL)
        return;
    weir_rpc_server_close(service->server);
    weir_free(service);
}

const char *weir_manifest_service_address(const weir_manifest_service *service)
{
    return weir_rpc_server_address(service->server);
}
