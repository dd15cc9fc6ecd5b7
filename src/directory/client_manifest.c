/* SPDX-License-Identifier: Apache-2.0 */
/* client_manifest.c - asking workers for their manifests and groups, over connections that are kept
 * from refit to refit. */
#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "base/error.h"
#include "directory/client_core.h"
#include "worker.pb-c.h"

static client_worker *find_worker(weir_directory_client *client, const char *endpoint)
{
    for (size_t i = 0; i < client->n_workers; i++) {
        if (strcmp(client->workers[i].endpoint, endpoint) == 0)
            return &client->workers[i];
    }
    return NULL;
}

void weir_directory_forget_worker(weir_directory_client *client, const char *endpoint)
{
    client_worker *worker = find_worker(client, endpoint);
    if (worker == NULL)
        return;
    weir_rpc_client_close(worker->rpc);
    *worker = client->workers[--client->n_workers];
}

static client_worker *oldest_worker(weir_directory_client *client)
{
    client_worker *oldest = &client->workers[0];
    for (size_t i = 1; i < client->n_workers; i++) {
        if (client->workers[i].used_at < oldest->used_at)
            oldest = &client->workers[i];
    }
    return oldest;
}

/* The place for a new connection: a free one, or the one unused for longest. */
static client_worker *make_place(weir_directory_client *client)
{
    if (client->n_workers == WEIR_CLIENT_MAX_WORKERS) {
        client_worker *oldest = oldest_worker(client);
        weir_rpc_client_close(oldest->rpc);
        return oldest;
    }
    if (client->n_workers == client->workers_room) {
        size_t room = client->workers_room * 2 + 4;
        client_worker *grown = weir_realloc(client->workers, room * sizeof(*grown));
        if (grown == NULL)
            return NULL;
        client->workers = grown;
        client->workers_room = room;
    }
    return &client->workers[client->n_workers++];
}

static weir_status connect_worker(weir_directory_client *client, const char *endpoint,
                                  const char *who, weir_rpc_client **out)
{
    client_worker *worker = find_worker(client, endpoint);
    if (worker != NULL) {
        worker->used_at = ++client->n_calls;
        *out = worker->rpc;
        return WEIR_OK;
    }
    if (strlen(endpoint) >= WEIR_NAME_BYTES)
        return weir_fail(WEIR_ERR_INVALID, "%s: endpoint '%.80s' is too long", who, endpoint);
    weir_rpc_client *rpc;
    weir_status status = weir_rpc_client_open(endpoint, who, &client->kept.security, &rpc);
    if (status != WEIR_OK) {
        weir_error_prefix("%s", who);
        return status;
    }
    worker = make_place(client);
    if (worker == NULL) {
        weir_rpc_client_close(rpc);
        return WEIR_ERR_NO_MEMORY;
    }
    memcpy(worker->endpoint, endpoint, strlen(endpoint) + 1);
    worker->rpc = rpc;
    worker->used_at = ++client->n_calls;
    *out = rpc;
    return WEIR_OK;
}

static weir_status copy_bytes(const ProtobufCBinaryData *manifest, unsigned char **buffer,
                              size_t *buffer_bytes)
{
    if (manifest->len > *buffer_bytes) {
        /* The next version's manifest may be a few digits longer. */
        size_t n_bytes = manifest->len + manifest->len / 16 + 4096;
        unsigned char *larger = weir_realloc(*buffer, n_bytes);
        if (larger == NULL)
            return WEIR_ERR_NO_MEMORY;
        *buffer = larger;
        *buffer_bytes = n_bytes;
    }
    if (manifest->len != 0)
        memcpy(*buffer, manifest->data, manifest->len);
    return WEIR_OK;
}

typedef ModelExpress__Refit__GetWeightVersionShardManifestResponse manifest_response;

typedef struct question {
    const ProtobufCServiceDescriptor *service;
    const char *method;
    const ProtobufCMessage *request;
    unsigned timeout_ms;
} question;

/* The response lives until the client's next call. */
static weir_status ask_worker(weir_directory_client *client, const char *endpoint, const char *who,
                              const question *what, const ProtobufCMessage **out)
{
    weir_rpc_client *rpc = NULL;
    weir_status status = connect_worker(client, endpoint, who, &rpc);
    if (status != WEIR_OK)
        return status;
    weir_arena_reset(&client->arena);
    client->version = NULL;
    client->n_messages++;
    weir_rpc_client_trace(rpc, &client->trace);
    status = weir_rpc_call(rpc, what->service, what->method, what->request, what->timeout_ms,
                           &client->arena, out);
    if (status == WEIR_ERR_PEER_LOST) /* a worker that is started anew listens elsewhere */
        weir_directory_forget_worker(client, endpoint);
    return status;
}

weir_status weir_directory_get_manifest(weir_directory_client *client, const char *endpoint,
                                        const char *who, const char *version_uid, const char *slot,
                                        unsigned char **buffer, size_t *buffer_bytes,
                                        size_t *out_n_bytes, char out_digest[WEIR_DIGEST_TEXT])
{
    ModelExpress__Refit__GetWeightVersionShardManifestRequest request =
        MODEL_EXPRESS__REFIT__GET_WEIGHT_VERSION_SHARD_MANIFEST_REQUEST__INIT;
    request.version_id = (char *)version_uid;
    request.source_slot_id = (char *)slot;
    const question what = { &model_express__refit__refit_worker_service__descriptor,
                            "GetWeightVersionShardManifest", &request.base, client->timeout_ms };
    const ProtobufCMessage *answer;
    who = who != NULL ? who : "worker";
    weir_status status = ask_worker(client, endpoint, who, &what, &answer);
    if (status != WEIR_OK)
        return status;
    const manifest_response *response = (const void *)answer;
    if (strlen(response->manifest_digest) >= WEIR_DIGEST_TEXT)
        return weir_fail(WEIR_ERR_FORMAT,
                         "%s %s: manifest_digest has %zu bytes, at most %d are allowed", who,
                         endpoint, strlen(response->manifest_digest), WEIR_DIGEST_TEXT - 1);
    status = copy_bytes(&response->manifest, buffer, buffer_bytes);
    if (status != WEIR_OK)
        return status;
    *out_n_bytes = response->manifest.len;
    memcpy(out_digest, response->manifest_digest, strlen(response->manifest_digest) + 1);
    return WEIR_OK;
}

weir_status weir_directory_ask_group(weir_directory_client *client, const char *endpoint,
                                     const char *who, const char *version_uid, const char *slot,
                                     const weir_group_ask *ask, unsigned timeout_ms,
                                     unsigned char **buffer, size_t *buffer_bytes,
                                     size_t *out_n_bytes)
{
    Weir__Worker__AskGroupRequest request = WEIR__WORKER__ASK_GROUP_REQUEST__INIT;
    request.version_id = (char *)version_uid;
    request.source_slot_id = (char *)slot;
    request.reader = (char *)ask->reader;
    request.worker = ask->worker;
    request.group = ask->group;
    request.round = ask->round;
    request.fresh = ask->fresh;
    if (ask->gave_up != NULL)
        request.gave_up = (char *)ask->gave_up;
    const question what = { &weir__worker__worker_service__descriptor, "AskGroup", &request.base,
                            timeout_ms != 0 ? timeout_ms : client->timeout_ms };
    const ProtobufCMessage *answer;
    weir_status status = ask_worker(client, endpoint, who, &what, &answer);
    if (status != WEIR_OK)
        return status;
    const Weir__Worker__AskGroupResponse *response = (const void *)answer;
    status = copy_bytes(&response->group, buffer, buffer_bytes);
    if (status == WEIR_OK)
        *out_n_bytes = response->group.len;
    return status;
}
