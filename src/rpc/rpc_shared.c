/* SPDX-License-Identifier: Apache-2.0 */
/* rpc_shared.c - the defaults of a server's bounds, and what reaches a call from outside its
 * connection: a later answer, and the clock. */
#include "rpc/rpc_shared.h"

#include <sys/resource.h>

#include "rpc/rpc_stream.h"

#define CONNECTIONS 12288u
#define OTHER_DESCRIPTORS 640u /* of HTTP's connections, files, epoll sets */
#define PARKED 16384u
#define PARKED_BESIDE 4096u              /* connections, that have several calls parked */
#define UNPACK_BYTES ((size_t)256 << 20) /* what one request and its answer may unpack to */
#define EXPIRED_PER_TURN 256

static const weir_rpc_limits defaults = {
    .streams = 128,
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

static unsigned smaller(unsigned a, unsigned b)
{
    return a < b ? a : b;
}

static unsigned larger(unsigned a, unsigned b)
{
    return a > b ? a : b;
}

static unsigned long count_descriptors(void)
{
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) != 0 || limit.rlim_cur > INT32_MAX)
        return INT32_MAX;
    return limit.rlim_cur;
}

/* Who did not say how many shares the process with what else is in it: a trainer, say. */
static unsigned connections_of(unsigned wanted, unsigned long n_descriptors)
{
    unsigned half = (unsigned)(n_descriptors / 2);
    if (wanted == 0)
        return smaller(CONNECTIONS, half);
    unsigned most = (unsigned)n_descriptors - smaller((unsigned)n_descriptors, OTHER_DESCRIPTORS);
    return smaller(wanted, larger(most, half));
}

static void limit_clients(weir_rpc_shared *shared, const weir_rpc_limits *wanted)
{
    weir_rpc_limits *limits = &shared->limits;
    shared->n_descriptors = count_descriptors();
    limits->connections = connections_of(wanted->connections, shared->n_descriptors);
    limits->connections_per_host =
        smaller(number_or(wanted->connections_per_host, (limits->connections + 1) / 2),
                limits->connections);
    limits->parked = number_or(wanted->parked, larger(PARKED, limits->connections + PARKED_BESIDE));
    limits->client_parked = number_or(wanted->client_parked, (limits->parked + 3) / 4);
    shared->host_parked = limits->client_parked;
    if (wanted->client_parked == 0 && wanted->parked == 0) /* a fleet behind one address */
        shared->host_parked = larger(limits->client_parked, limits->connections_per_host);
    if (limits->parked >= WEIR_RPC_MAX_TICKETS)
        limits->parked = WEIR_RPC_MAX_TICKETS - 1; /* and one for the call being handled */
}

void weir_rpc_shared_init(weir_rpc_shared *shared, const weir_rpc_service *services,
                          size_t n_services, const weir_rpc_limits *limits)
{
    *shared = (weir_rpc_shared){ .services = services, .n_services = n_services };
    const weir_rpc_limits wanted = limits != NULL ? *limits : (weir_rpc_limits){ 0 };
    shared->limits = (weir_rpc_limits){
        .streams = number_or(wanted.streams, defaults.streams),
        .message_bytes = bytes_or(wanted.message_bytes, defaults.message_bytes),
        .request_bytes = bytes_or(wanted.request_bytes, defaults.request_bytes),
    };
    limit_clients(shared, &wanted);
    shared->limits.client_request_bytes =
        bytes_or(wanted.client_request_bytes, shared->limits.request_bytes / 4);
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
