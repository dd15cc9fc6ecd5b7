/* SPDX-License-Identifier: Apache-2.0 */
/* rpc_dispatch.c - one table of services; protobuf-c's descriptors do the rest. */
#include "rpc/rpc_dispatch.h"

#include <stdio.h>
#include <string.h>

#include "rpc/rpc_message.h"

static bool equals(const char *name, const char *text, size_t n)
{
    return strlen(name) == n && memcmp(name, text, n) == 0;
}

static bool find_method(const weir_rpc_service *service, const char *name, size_t n,
                        weir_rpc_route *out)
{
    for (size_t i = 0; i < service->n_methods; i++) {
        if (!equals(service->methods[i].name, name, n))
            continue;
        const ProtobufCMethodDescriptor *method = protobuf_c_service_descriptor_get_method_by_name(
            service->descriptor, service->methods[i].name);
        if (method == NULL)
            return false;
        *out = (weir_rpc_route){ service, method, service->methods[i].handler };
        return true;
    }
    return false;
}

bool weir_rpc_find_route(const weir_rpc_service *services, size_t n_services, const char *path,
                         size_t n_path, weir_rpc_route *out)
{
    if (n_path < 2 || path[0] != '/')
        return false;
    const char *slash = memchr(path + 1, '/', n_path - 1);
    if (slash == NULL)
        return false;
    size_t n_service = (size_t)(slash - path) - 1;
    for (size_t i = 0; i < n_services; i++) {
        if (equals(services[i].descriptor->name, path + 1, n_service))
            return find_method(&services[i], slash + 1, n_path - n_service - 2, out);
    }
    return false;
}

void weir_rpc_dispatch(const weir_rpc_route *route, const weir_rpc_call_info *call,
                       weir_arena *arena, weir_rpc_answer *out)
{
    out->message = NULL;
    out->text[0] = '\0';
    weir_arena_reset(arena);
    ProtobufCMessage *message;
    weir_status status =
        weir_rpc_message_unpack(route->method->input, call->bytes, call->n_bytes, arena, &message);
    if (status != WEIR_OK) {
        out->code =
            status == WEIR_ERR_NO_MEMORY ? WEIR_RPC_RESOURCE_EXHAUSTED : WEIR_RPC_INVALID_ARGUMENT;
        snprintf(out->text, sizeof(out->text), "%s", weir_last_error());
        return;
    }
    out->code =
        route->handler(route->service->context, call, message, arena, &out->message, out->text);
    weir_rpc_text_repair(out->text);
    if (out->code == WEIR_RPC_OK && out->message == NULL) {
        out->code = WEIR_RPC_INTERNAL;
        snprintf(out->text, sizeof(out->text), "%s has no answer", route->method->name);
    }
}
