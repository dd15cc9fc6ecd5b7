/* SPDX-License-Identifier: Apache-2.0 */
/* rpc_shared.c - the defaults of a server's bounds, and what reaches a call from outside its
 * connection: a later answer, and the clock. */
#include "rpc/rpc_shared.h"

#include "rpc/rpc_stream.h"

#define UNPACK_BYTES ((size_t)256 << 20) /* what one request and its answer may unpack to */
#define EXPIRED_PER_TURN 256

static const weir_rpc_limits defaults = {
    .connections = 4096,
    .connections_per_host = 1024,
    .streams = 128,
    .parked = 16384,
    .message_bytes = WEIR_RPC_MAX_MESSAGE_BYTES,
    .request_bytes = (size_t)256 << 20,
};

static unsigned number_or(unsigned number, unsigned other)
{
    return number != 0 ? number : other;
}

static size_t bytes_or(size_t n_bytes, size_t other)
{
    return n_bytes != 0 ? n_bytes : other;
}

void weir_rpc_shared_init(weir_rpc_shared *shared, const weir_rpc_service *services,
                          size_t n_services, const weir_rpc_limits *limits)
{
    *shared = (weir_rpc_shared){ .services = services, .n_services = n_services };
    const weir_rpc_limits wanted = limits != NULL ? *limits : (weir_rpc_limits){ 0 };
    shared->limits = (weir_rpc_limits){
        .connections = number_or(wanted.connections, defaults.connections),
        .connections_per_host =
            number_or(wanted.connections_per_host, defaults.connections_per_host),
        .streams = number_or(wanted.streams, defaults.streams),
        .parked = number_or(wanted.parked, defaults.parked),
        .message_bytes = bytes_or(wanted.message_bytes, defaults.message_bytes),
        .request_bytes = bytes_or(wanted.request_bytes, defaults.request_bytes),
    };
    const weir_rpc_limits *limited = &shared->limits;
    shared->limits.client_parked = number_or(wanted.client_parked, (limited->parked + 3) / 4);
    shared->limits.client_request_bytes =
        bytes_or(wanted.client_request_bytes, limited->request_bytes / 4);
    if (shared->limits.parked >= WEIR_RPC_MAX_TICKETS)
        shared->limits.parked = WEIR_RPC_MAX_TICKETS - 1; /* and one for the call being handled */
    if (shared->limits.message_bytes > WEIR_RPC_MAX_MESSAGE_BYTES)
        shared->limits.message_bytes = WEIR_RPC_MAX_MESSAGE_BYTES;
    if (shared->limits.client_request_bytes < shared->limits.message_bytes)
        shared->limits.client_request_bytes = shared->limits.message_bytes; /* one always fits */
    weir_rpc_heap_init(&shared->heap);
    weir_arena_init(&shared->arena, UNPACK_BYTES);
    shared->last_pending = &shared->pending;
}

void weir_rpc_shared_close(weir_rpc_shared *shared)
{
    weir_tls_context_close(shared->tls);
    weir_security_free(&shared->kept);
    weir_rpc_timers_close(&shared->timers, &shared->heap);
    weir_rpc_tickets_close(&shared->tickets, &shared->heap);
    weir_arena_close(&shared->arena);
    weir_rpc_heap_close(&shared->heap);
}

bool weir_rpc_shared_answer(weir_rpc_shared *shared, uint64_t ticket, weir_rpc_code code,
                            const ProtobufCMessage *response, const char *text)
{
    weir_rpc_stream *stream = weir_rpc_tickets_find(&shared->tickets, ticket);
    if (stream == NULL)
        return false;
    weir_rpc_stream_answer(stream, code, response, text);
    return true;
}

void weir_rpc_shared_expire(weir_rpc_shared *shared, uint64_t now_ns)
{
    for (int i = 0; i < EXPIRED_PER_TURN; i++) {
        weir_rpc_timer *timer = weir_rpc_timers_due(&shared->timers, now_ns);
        if (timer == NULL)
            return;
        weir_rpc_stream_time_up(weir_rpc_stream_of_timer(timer), now_ns);
    }
}
