/* SPDX-License-Identifier: Apache-2.0 */
/* rpc_dispatch.h - from a path and request bytes to a handler and its answer. No sockets. */
#ifndef WEIR_RPC_RPC_DISPATCH_H
#define WEIR_RPC_RPC_DISPATCH_H

#include "rpc/rpc.h"

typedef struct weir_rpc_route {
    const weir_rpc_service *service;
    const ProtobufCMethodDescriptor *method;
    weir_rpc_handler handler;
} weir_rpc_route;

/* "/package.Service/Method". False when none of the services offers it. */
bool weir_rpc_find_route(const weir_rpc_service *services, size_t n_services, const char *path,
                         size_t n_path, weir_rpc_route *out);

typedef struct weir_rpc_answer {
    weir_rpc_code code;
    char text[WEIR_RPC_MESSAGE_TEXT]; /* why, when code is not OK */
    const ProtobufCMessage *message;  /* when it is: in the arena, or the handler's */
} weir_rpc_answer;

/* Unpacks call->bytes, calls the handler. Resets the arena first. */
void weir_rpc_dispatch(const weir_rpc_route *route, const weir_rpc_call_info *call,
                       weir_arena *arena, weir_rpc_answer *out);

#endif
