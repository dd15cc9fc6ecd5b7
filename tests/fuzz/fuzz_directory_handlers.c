/* SPDX-License-Identifier: Apache-2.0 */
/* fuzz_directory_handlers.c - request bytes through unpacking, every handler and the store.
 *
 * One input is a series of calls on one directory: method, length, bytes. Time passes between them,
 * so expiries are reached too. Every answer must pack to what unpacks again. */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "directory/directory_core.h"
#include "directory/sidecar.h"
#include "rpc/rpc_dispatch.h"
#include "rpc/rpc_message.h"

static void check_answer(const weir_rpc_route *route, const ProtobufCMessage *message)
{
    size_t n = protobuf_c_message_get_packed_size(message);
    unsigned char *bytes = malloc(n + 1);
    protobuf_c_message_pack(message, bytes);
    if (message->descriptor != route->method->output ||
        weir_rpc_message_check(message->descriptor, bytes, n) != WEIR_OK)
        __builtin_trap();
    free(bytes);
}

static void call(const weir_rpc_service *services, unsigned number, const uint8_t *data, size_t n,
                 weir_arena *arena)
{
    const weir_rpc_service *service = &services[number % WEIR_DIRECTORY_SERVICES];
    const weir_rpc_method *method =
        &service->methods[number / WEIR_DIRECTORY_SERVICES % service->n_methods];
    weir_rpc_route route = { service,
                             protobuf_c_service_descriptor_get_method_by_name(service->descriptor,
                                                                              method->name),
                             method->handler };
    weir_rpc_answer answer;
    const weir_rpc_call_info call = { .ticket = 1, .bytes = data, .n_bytes = n };
    weir_rpc_dispatch(&route, &call, arena, &answer);
    if (answer.code == WEIR_RPC_OK)
        check_answer(&route, answer.message);
    else if (memchr(answer.text, '\0', sizeof(answer.text)) == NULL)
        __builtin_trap();
}

static void parse_words(const uint8_t *data, size_t n)
{
    char text[1024];
    weir_source_record record = { .rank = 0 };
    if (n >= sizeof(text))
        return;
    memcpy(text, data, n);
    text[n] = '\0';
    weir_sidecar_parse(text, &record);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    weir_directory_core core;
    weir_rpc_service services[WEIR_DIRECTORY_SERVICES];
    weir_store_options options = { 0 };
    weir_arena arena;
    weir_arena_init(&arena, (size_t)32 << 20);
    if (weir_directory_core_open(&options, &core) != WEIR_OK)
        return 0;
    weir_directory_core_services(&core, services);
    uint64_t skipped_ms = 0;
    while (n >= 3) {
        unsigned number = data[0];
        size_t n_call = data[1] | (size_t)data[2] << 8;
        data += 3, n -= 3;
        if (n_call > n)
            n_call = n;
        if (number >= 250) {
            skipped_ms += (uint64_t)60000 << (number - 250);
            core.begun_unix_ms += skipped_ms;
            weir_store_sweep(core.store, weir_directory_core_now_ms(&core));
        } else {
            call(services, number, data, n_call, &arena);
        }
        data += n_call, n -= n_call;
    }
    parse_words(data, n);
    weir_directory_core_close(&core);
    weir_arena_close(&arena);
    return 0;
}
