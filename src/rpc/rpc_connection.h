/* SPDX-License-Identifier: Apache-2.0 */
/* rpc_connection.h - the server's half of one connection: requests in, answers out.
 *
 * Everything runs in the server's thread and nothing blocks. The server owns the socket's events;
 * a connection is told when to read, when to write and when to look at the clock.
 */
#ifndef WEIR_RPC_RPC_CONNECTION_H
#define WEIR_RPC_RPC_CONNECTION_H

#include "rpc/rpc.h"
#include "rpc/rpc_heap.h"

/* What the connections of one server share. */
typedef struct weir_rpc_shared {
    const weir_rpc_service *services;
    size_t n_services;
    weir_rpc_heap heap;
    weir_arena arena;     /* the call being answered */
    size_t request_bytes; /* of requests that are not answered yet */
    size_t answer_bytes;  /* of answers that are not sent yet */
    unsigned n_streams;   /* calls, whatever their state */
    unsigned n_waiting;   /* whole requests that wait for answer_bytes to fall */
} weir_rpc_shared;

void weir_rpc_shared_init(weir_rpc_shared *shared, const weir_rpc_service *services,
                          size_t n_services);
void weir_rpc_shared_close(weir_rpc_shared *shared);

typedef struct weir_rpc_connection weir_rpc_connection;

/* Takes the (non-blocking) socket, on failure too. */
weir_status weir_rpc_connection_open(weir_rpc_shared *shared, int fd, weir_rpc_connection **out);
void weir_rpc_connection_close(weir_rpc_connection *connection);
int weir_rpc_connection_fd(const weir_rpc_connection *connection);

/* Reads, answers, writes, as far as the socket goes. False: nothing more can come of this
 * connection, close it. */
bool weir_rpc_connection_progress(weir_rpc_connection *connection, bool is_readable);
/* True: it waits for the socket to take bytes, and reads nothing until then, so that a peer that
 * does not read cannot make it gather answers. */
bool weir_rpc_connection_is_blocked(const weir_rpc_connection *connection);

/* Answers requests that waited for memory, as far as there is some. */
void weir_rpc_connection_answer_waiting(weir_rpc_connection *connection);
/* Ends calls whose time is up. False: close it, it has been silent or stuck for too long. */
bool weir_rpc_connection_check_time(weir_rpc_connection *connection, uint64_t now_ns);
/* Says goodbye: calls in flight end with UNAVAILABLE. */
void weir_rpc_connection_shut(weir_rpc_connection *connection);

/* The server's list. */
weir_rpc_connection *weir_rpc_connection_next(const weir_rpc_connection *connection);
void weir_rpc_connection_link(weir_rpc_connection *connection, weir_rpc_connection **list);
void weir_rpc_connection_unlink(weir_rpc_connection *connection);

#endif
