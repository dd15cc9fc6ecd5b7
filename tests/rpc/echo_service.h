/* SPDX-License-Identifier: Apache-2.0 */
/* echo_service.h - RefitService with made-up answers, for the tests of rpc.
 *
 * GetWeightVersion: "missing" is NOT_FOUND with a text that needs encoding, "slots:N" has N slots
 * of 1,000 characters, "nothing" forgets to answer, anything else comes back as the uid.
 * DeleteWeightVersion is not offered. */
#ifndef WEIR_TEST_ECHO_SERVICE_H
#define WEIR_TEST_ECHO_SERVICE_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "refit.pb-c.h"
#include "rpc/rpc.h"

#define ECHO_SLOT_BYTES 1000

static inline weir_rpc_code echo_slots(size_t n, weir_arena *arena,
                                       ModelExpress__Refit__WeightVersion *version)
{
    char *slot = weir_arena_alloc(arena, ECHO_SLOT_BYTES + 1);
    version->expected_source_slots = weir_arena_zeroed(arena, n, sizeof(char *));
    if (slot == NULL || version->expected_source_slots == NULL)
        return WEIR_RPC_RESOURCE_EXHAUSTED;
    memset(slot, 's', ECHO_SLOT_BYTES);
    slot[ECHO_SLOT_BYTES] = '\0';
    for (size_t i = 0; i < n; i++)
        version->expected_source_slots[i] = slot;
    version->n_expected_source_slots = n;
    return WEIR_RPC_OK;
}

static inline weir_rpc_code echo_get(void *context, const weir_rpc_call_info *call,
                                     const ProtobufCMessage *message, weir_arena *arena,
                                     const ProtobufCMessage **out_response, char *text)
{
    (void)call;
    (void)context;
    const ModelExpress__Refit__GetWeightVersionRequest *request = (const void *)message;
    if (strcmp(request->uid, "missing") == 0) {
        snprintf(text, WEIR_RPC_MESSAGE_TEXT, "no such version: 100%%, \xc3\xa9");
        return WEIR_RPC_NOT_FOUND;
    }
    if (strcmp(request->uid, "nothing") == 0)
        return WEIR_RPC_OK;
    ModelExpress__Refit__WeightVersion *version = weir_arena_alloc(arena, sizeof(*version));
    if (version == NULL)
        return WEIR_RPC_RESOURCE_EXHAUSTED;
    *version = (ModelExpress__Refit__WeightVersion)MODEL_EXPRESS__REFIT__WEIGHT_VERSION__INIT;
    version->uid = request->uid;
    *out_response = &version->base;
    if (strncmp(request->uid, "slots:", 6) == 0)
        return echo_slots(strtoul(request->uid + 6, NULL, 10), arena, version);
    return WEIR_RPC_OK;
}

static const weir_rpc_method echo_methods[] = { { "GetWeightVersion", echo_get } };

#define ECHO_SERVICE \
    ((weir_rpc_service){ &model_express__refit__refit_service__descriptor, echo_methods, 1, NULL })

static inline weir_rpc_server *echo_open(const char *listen)
{
    weir_rpc_service service = ECHO_SERVICE;
    weir_rpc_server_options options = { .listen = listen, .services = &service, .n_services = 1 };
    weir_rpc_server *server = NULL;
    return weir_rpc_server_open(&options, &server) == WEIR_OK ? server : NULL;
}

/* One GetWeightVersion. The answer is in the arena. */
static inline weir_status echo_call(weir_rpc_client *client, const char *uid, unsigned timeout_ms,
                                    weir_arena *arena,
                                    const ModelExpress__Refit__WeightVersion **out)
{
    ModelExpress__Refit__GetWeightVersionRequest request =
        MODEL_EXPRESS__REFIT__GET_WEIGHT_VERSION_REQUEST__INIT;
    request.uid = (char *)uid;
    const ProtobufCMessage *response = NULL;
    weir_arena_reset(arena);
    weir_status status =
        weir_rpc_call(client, &model_express__refit__refit_service__descriptor, "GetWeightVersion",
                      &request.base, timeout_ms, arena, &response);
    if (out != NULL)
        *out = (const void *)response;
    return status;
}

#endif
