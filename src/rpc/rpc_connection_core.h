/* SPDX-License-Identifier: Apache-2.0 */
/* rpc_connection_core.h - what a connection of the server is, for the files that drive it. */
#ifndef WEIR_RPC_RPC_CONNECTION_CORE_H
#define WEIR_RPC_RPC_CONNECTION_CORE_H

#include "rpc/rpc_channel.h"
#include "rpc/rpc_connection.h"
#include "rpc/rpc_patience.h"
#include "rpc/rpc_stream.h"

#define WEIR_RPC_UNKNOWN_CALL_NS INT64_MAX

struct weir_rpc_connection {
    weir_rpc_connection *next, **previous;                 /* of shared->connections */
    weir_rpc_connection *next_pending, **previous_pending; /* of shared->pending; NULL: not there */
    weir_rpc_calls calls;
    weir_rpc_channel channel;
    weir_rpc_host *host;
    weir_rpc_patience patience;
    size_t block_bytes; /* of the headers that are coming */
    bool is_refused, has_greeted, is_touched, is_doomed;
    bool is_proven;             /* a call of it was let in */
    bool is_abusive, is_faulty; /* it used up its patience; it made HTTP/2 end the session */
    const char *why;            /* it is dismissed; NULL: it ends in order */
    int64_t call_ns;            /* what one of its calls takes */
    uint64_t active_ns;         /* when a call last began or ended */
    uint64_t moved_ns; /* when an answer's bytes last left, or the first of them came to be */
    char peer[WEIR_RPC_PEER_TEXT];
};

/* Out of shared->pending, if it is there. */
void weir_rpc_connection_leave_pending(weir_rpc_connection *connection);

#endif
