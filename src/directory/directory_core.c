/* SPDX-License-Identifier: Apache-2.0 */
/* directory_core.c - the table of services, the clock, and HealthService. */
#include "directory/directory_core.h"

#include <stdio.h>

#include "base/clock.h"
#include "health.pb-c.h"
#include "p2p.pb-c.h"
#include "refit.pb-c.h"
#include "rpc/rpc_message.h"
#include "weir/weir.h"

#define NS_PER_MS 1000000ull

weir_status weir_directory_core_open(const weir_store_options *options, weir_directory_core *out)
{
    out->begun_unix_ms = weir_unix_ms();
    out->begun_ns = weir_now_ns();
    return weir_store_open(options, &out->store);
}

void weir_directory_core_close(weir_directory_core *core)
{
    weir_store_close(core->store);
    core->store = NULL;
}

uint64_t weir_directory_core_now_ms(const weir_directory_core *core)
{
    return core->begun_unix_ms + (weir_now_ns() - core->begun_ns) / NS_PER_MS;
}

weir_rpc_code weir_directory_core_refuse(weir_status status, char *text)
{
    snprintf(text, WEIR_RPC_MESSAGE_TEXT, "%s", weir_last_error());
    weir_rpc_text_repair(text); /* names in it may have been cut */
    switch (status) {
    case WEIR_ERR_INVALID:
        return WEIR_RPC_INVALID_ARGUMENT;
    case WEIR_ERR_NOT_FOUND:
        return WEIR_RPC_NOT_FOUND;
    case WEIR_ERR_EXISTS:
        return WEIR_RPC_ALREADY_EXISTS;
    case WEIR_ERR_REFUSED:
        return WEIR_RPC_FAILED_PRECONDITION;
    case WEIR_ERR_NO_MEMORY:
        return WEIR_RPC_RESOURCE_EXHAUSTED;
    default:
        return WEIR_RPC_INTERNAL;
    }
}

static weir_rpc_code get_health(void *context, const weir_rpc_call_info *call,
                                const ProtobufCMessage *request, weir_arena *arena,
                                const ProtobufCMessage **out_response, char *text)
{
    (void)call;
    (void)request;
    (void)text;
    const weir_directory_core *core = context;
    ModelExpress__Health__HealthResponse *response = weir_arena_alloc(arena, sizeof(*response));
    if (response == NULL)
        return WEIR_RPC_RESOURCE_EXHAUSTED;
    model_express__health__health_response__init(response);
    response->version = (char *)WEIR_VERSION;
    response->status = (char *)"ok";
    response->uptime = (weir_directory_core_now_ms(core) - core->begun_unix_ms) / 1000;
    *out_response = &response->base;
    return WEIR_RPC_OK;
}

static const weir_rpc_method health_methods[] = { { "GetHealth", get_health } };

void weir_directory_core_services(weir_directory_core *core,
                                  weir_rpc_service out[WEIR_DIRECTORY_SERVICES])
{
    out[0] = (weir_rpc_service){ &model_express__refit__refit_service__descriptor,
                                 weir_refit_methods, weir_n_refit_methods, core };
    out[1] = (weir_rpc_service){ &model_express__p2p__p2p_service__descriptor, weir_source_methods,
                                 weir_n_source_methods, core };
    out[2] = (weir_rpc_service){ &model_express__health__health_service__descriptor, health_methods,
                                 1, core };
}
