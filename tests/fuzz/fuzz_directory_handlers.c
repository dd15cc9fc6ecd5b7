/* SPDX-License-Identifier: Apache-2.0 */
/* fuzz_directory_handlers.c - request bytes through unpacking, every handler and the store.
 *
 * One input is a series of calls on one directory: method, length, bytes. Time passes between them,
 * so expiries are reached too, waits are looked at, and some of their callers leave. Every answer
 * must pack to what unpacks again. */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "directory/directory_core.h"
#include "directory/made_up_log.h"
#include "directory/sidecar.h"
#include "rpc/rpc_dispatch.h"
#include "rpc/rpc_message.h"

static uint64_t last_ticket;

static void check_answer(const ProtobufCMessage *message)
{
    size_t n = protobuf_c_message_get_packed_size(message);
    unsigned char *bytes = malloc(n + 1);
    protobuf_c_message_pack(message, bytes);
    if (weir_rpc_message_check(message->descriptor, bytes, n) != WEIR_OK)
        __builtin_trap();
    free(bytes);
}

static bool answer_later(void *context, uint64_t ticket, weir_rpc_code code,
                         const ProtobufCMessage *response, const char *text)
{
    (void)context, (void)text;
    if (ticket == 0 || ticket > last_ticket)
        __builtin_trap();
    if (code == WEIR_RPC_OK)
        check_answer(response);
    return true;
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
    const weir_rpc_call_info info = { .ticket = ++last_ticket, .bytes = data, .n_bytes = n };
    weir_rpc_dispatch(&route, &info, arena, &answer);
    if (answer.code == WEIR_RPC_OK && answer.message->descriptor != route.method->output)
        __builtin_trap();
    if (answer.code == WEIR_RPC_OK)
        check_answer(answer.message);
    else if (memchr(answer.text, '\0', sizeof(answer.text)) == NULL)
        __builtin_trap();
}

static void let_time_pass(weir_directory_core *core, made_up_log *log, unsigned number)
{
    const weir_log_record sweep = { .method = "",
                                    .bytes = (const unsigned char *)"",
                                    .salt = number };
    log->now_ms += (uint64_t)60000 << (number - 250);
    log->log.ops->append(&log->log, &sweep, 0);
    if (number % 2 != 0)
        weir_directory_core_gone(core, last_ticket);
    weir_directory_core_tick(core);
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
    static weir_directory_core core;
    const weir_directory_core_options options = { .salt = 1, .hooks = { .answer = answer_later } };
    made_up_log *log;
    weir_arena arena;
    weir_arena_init(&arena, (size_t)32 << 20);
    if (weir_directory_core_open(&options, &core) != WEIR_OK)
        return 0;
    const weir_log_reader reader = weir_directory_core_reader(&core);
    if (made_up_log_open(&reader, &log) != WEIR_OK)
        return 0;
    core.log = &log->log;
    last_ticket = 0;
    while (n >= 3) {
        unsigned number = data[0];
        size_t n_call = data[1] | (size_t)data[2] << 8;
        data += 3, n -= 3;
        if (n_call > n)
            n_call = n;
        if (number >= 250)
            let_time_pass(&core, log, number);
        else
            call(core.services, number, data, n_call, &arena);
        data += n_call, n -= n_call;
    }
    parse_words(data, n);
    weir_directory_core_close(&core);
    weir_arena_close(&arena);
    return 0;
}
