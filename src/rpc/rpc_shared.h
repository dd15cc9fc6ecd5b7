/* SPDX-License-Identifier: Apache-2.0 */
/* rpc_shared.h - what the connections of one server share: memory, bounds, counts, and the list of
 * those that have something to do.
 *
 * Everything runs in the server's thread.
 */
#ifndef WEIR_RPC_RPC_SHARED_H
#define WEIR_RPC_RPC_SHARED_H

#include "rpc/rpc.h"
#include "rpc/rpc_heap.h"
#include "rpc/rpc_hosts.h"
#include "rpc/rpc_security.h"
#include "rpc/rpc_tickets.h"
#include "rpc/rpc_timers.h"
#include "rpc/rpc_tls.h"

struct weir_rpc_connection;

typedef struct weir_rpc_shared {
    const weir_rpc_service *services;
    size_t n_services;
    weir_rpc_limits limits;      /* none is 0 */
    unsigned host_parked;        /* calls of one address */
    unsigned long n_descriptors; /* that this process may have */
    void (*gone)(void *context, uint64_t ticket);
    void *gone_context;
    void (*refused)(void *context, const ProtobufCMethodDescriptor *method, weir_rpc_code code);
    void *refused_context;
    weir_security_kept kept;
    weir_tls_context *tls;                          /* NULL: plain text */
    const ProtobufCServiceDescriptor *open_service; /* NULL: none */
    weir_rpc_heap heap;
    weir_arena arena;         /* the call being answered */
    weir_rpc_timers timers;   /* of all calls */
    weir_rpc_tickets tickets; /* of calls that are being handled, or parked */
    size_t request_bytes;     /* of requests that are not answered yet */
    size_t answer_bytes;      /* of answers that are not sent yet */
    unsigned n_streams;       /* calls, whatever their state */
    unsigned n_waiting;       /* whole requests whose turn has not come */
    weir_rpc_counts counts;
    weir_rpc_hosts hosts;
    struct weir_rpc_connection *connections;             /* all of them */
    struct weir_rpc_connection *pending, **last_pending; /* in the order of their turns */
    unsigned n_pending;
    int64_t long_left_ns; /* of this round, for calls that take long */
} weir_rpc_shared;

/* limits NULL: the defaults. Looks how many descriptors there may be. */
void weir_rpc_shared_init(weir_rpc_shared *shared, const weir_rpc_service *services,
                          size_t n_services, const weir_rpc_limits *limits);
void weir_rpc_shared_close(weir_rpc_shared *shared);

/* Answers a parked call, or the one being handled. False: there is none of this ticket. */
bool weir_rpc_shared_answer(weir_rpc_shared *shared, uint64_t ticket, weir_rpc_code code,
                            const ProtobufCMessage *response, const char *text);
/* Ends calls whose time is up, as many as one turn allows. */
void weir_rpc_shared_expire(weir_rpc_shared *shared, uint64_t now_ns);

#endif
