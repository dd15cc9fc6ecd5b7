/* SPDX-License-Identifier: Apache-2.0 */
/* client_core.h - what the client's source files share. */
#ifndef WEIR_DIRECTORY_CLIENT_CORE_H
#define WEIR_DIRECTORY_CLIENT_CORE_H

#include <stdatomic.h>

#include "base/arena.h"
#include "directory/client.h"
#include "refit.pb-c.h"
#include "rpc/rpc.h"
#include "rpc/rpc_security.h"

/* Connections to workers that gave manifests; the one unused for longest makes room. */
#define WEIR_CLIENT_MAX_WORKERS (2 * WEIR_MAX_RANKS)

typedef struct client_worker {
    char endpoint[WEIR_NAME_BYTES];
    weir_rpc_client *rpc;
    uint64_t used_at; /* number of the call */
} client_worker;

struct weir_directory_client {
    char *addresses;     /* as they were given */
    const char *address; /* the one of them that is asked: rpc's */
    weir_rpc_client *rpc;
    weir_security_kept kept;
    weir_traceparent trace; /* of calls to the directory and to workers; "": none */
    unsigned timeout_ms;
    weir_arena arena;                                  /* of the last call's answer */
    const ModelExpress__Refit__WeightVersion *version; /* of the last call, or NULL */
    client_worker *workers;
    size_t n_workers, workers_room;
    uint64_t n_calls;
    uint64_t n_messages; /* requests made, of workers too */
    bool is_plain;       /* the server has no DirectoryService */
    const atomic_bool *cancelled;
    atomic_bool is_waiting, interrupted; /* a call waits; it was told to look */
};

/* A call to the directory: resets the arena, forgets the last version. */
weir_status weir_client_call(weir_directory_client *client,
                             const ProtobufCServiceDescriptor *service, const char *method,
                             const ProtobufCMessage *request,
                             const ProtobufCMessage **out_response);

/* As weir_client_call(), with a time of its own. */
weir_status weir_client_call_for(weir_directory_client *client, unsigned timeout_ms,
                                 const ProtobufCServiceDescriptor *service, const char *method,
                                 const ProtobufCMessage *request,
                                 const ProtobufCMessage **out_response);

/* What answers of both services have in them. */
weir_status weir_client_take_version(weir_directory_client *client,
                                     const ModelExpress__Refit__WeightVersion *version,
                                     weir_version_record *out);
weir_status weir_client_take_shard(const weir_directory_client *client,
                                   const ModelExpress__Refit__WeightVersionShard *message,
                                   weir_shard_record *out);
/* `message` borrows the record's strings. */
void weir_client_fill_shard(const weir_shard_record *shard,
                            ModelExpress__Refit__WeightVersionShard *message);

/* Copies text that the server sent; ERR_FORMAT naming the field when it does not fit. */
weir_status weir_client_copy(const weir_directory_client *client, const char *field,
                             const char *text, char *out, size_t n_out);

#endif
