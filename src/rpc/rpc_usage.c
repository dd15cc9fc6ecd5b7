/* SPDX-License-Identifier: Apache-2.0 */
/* rpc_usage.c - counts of a connection and of its address, side by side. */
#include "rpc/rpc_usage.h"

#include <stdio.h>

#include "rpc/rpc_address.h"

/* A vanished peer must not keep a call parked because an answer to another is under way to it. */
static void expect_acks(const weir_rpc_calls *calls, unsigned n_before)
{
    bool waits = calls->usage.n_parked != 0;
    if (waits != (n_before != 0))
        weir_rpc_socket_expect_acks(weir_rpc_connection_fd(calls->connection), waits);
}

void weir_rpc_usage_park(weir_rpc_calls *calls, int by)
{
    unsigned n_before = calls->usage.n_parked;
    calls->shared->counts.parked += (unsigned)by;
    calls->usage.n_parked += (unsigned)by;
    if (calls->host != NULL)
        calls->host->usage.n_parked += (unsigned)by;
    expect_acks(calls, n_before);
}

void weir_rpc_usage_bytes(weir_rpc_calls *calls, size_t before, size_t after)
{
    calls->shared->request_bytes += after - before;
    calls->usage.request_bytes += after - before;
    if (calls->host != NULL)
        calls->host->usage.request_bytes += after - before;
}

/* NULL: an address without bounds of its own. */
static const weir_rpc_host *host_of(const weir_rpc_calls *calls)
{
    return calls->host != NULL && !calls->host->is_loopback ? calls->host : NULL;
}

bool weir_rpc_usage_may_park(const weir_rpc_calls *calls, char text[WEIR_RPC_MESSAGE_TEXT])
{
    const weir_rpc_limits *limits = &calls->shared->limits;
    unsigned bound = limits->client_parked;
    const char *whose = NULL;
    if (calls->usage.n_parked > bound)
        whose = "one connection";
    else if (host_of(calls) != NULL &&
             host_of(calls)->usage.n_parked > (bound = calls->shared->host_parked))
        whose = "one address";
    else if (calls->shared->counts.parked > (bound = limits->parked))
        whose = "all clients";
    if (whose != NULL)
        snprintf(text, WEIR_RPC_MESSAGE_TEXT, "%u calls of %s wait for answers, as many as may",
                 bound, whose);
    return whose == NULL;
}

bool weir_rpc_usage_may_read(const weir_rpc_calls *calls, const weir_grpc_body *body, size_t n,
                             char text[WEIR_RPC_MESSAGE_TEXT])
{
    size_t bound = calls->shared->limits.client_request_bytes;
    size_t needed = body->n_bytes + n - body->capacity; /* may wrap: what is there already */
    const char *whose = NULL;
    if (calls->usage.request_bytes + needed > bound)
        whose = "one connection";
    else if (host_of(calls) != NULL && host_of(calls)->usage.request_bytes + needed > bound)
        whose = "one address";
    if (whose != NULL)
        snprintf(text, WEIR_RPC_MESSAGE_TEXT,
                 "the requests of %s occupy as much as they may, %zu bytes", whose, bound);
    return whose == NULL;
}
