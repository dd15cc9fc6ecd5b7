/* SPDX-License-Identifier: Apache-2.0 */
/* rpc_connection.h - the server's half of one connection: requests in, answers out.
 *
 * Everything runs in the server's thread and nothing blocks. The server owns the socket's events; a
 * connection says when it wants a turn without any, and what it does in one turn is bounded, so
 * that one of them cannot keep the others waiting.
 */
#ifndef WEIR_RPC_RPC_CONNECTION_H
#define WEIR_RPC_RPC_CONNECTION_H

#include "rpc/rpc_shared.h"

#define WEIR_RPC_PEER_TEXT 128

typedef struct weir_rpc_connection weir_rpc_connection;

/* Takes the (non-blocking) socket, on failure too. `peer` is copied; `host` (NULL: none) is left on
 * close, after success alone. */
weir_status weir_rpc_connection_open(weir_rpc_shared *shared, int fd, const char *peer,
                                     weir_rpc_host *host, weir_rpc_connection **out);
void weir_rpc_connection_close(weir_rpc_connection *connection);
/* Its peer as errors name it: an address, or the name in its certificate. */
const char *weir_rpc_connection_peer(const weir_rpc_connection *connection);
/* Its handshake failed over what either side asks for, as weir_last_error() says. */
bool weir_rpc_connection_is_refused(const weir_rpc_connection *connection);
/* Why it is ended for what its peer did, after weir_rpc_connection_progress() has said false: a
 * constant, or the last error. NULL: it ended in order. */
const char *weir_rpc_connection_why(const weir_rpc_connection *connection);
int weir_rpc_connection_fd(const weir_rpc_connection *connection);

/* One turn: reads, answers, writes, as far as the socket goes. False: nothing more can come of this
 * connection, close it. */
bool weir_rpc_connection_progress(weir_rpc_connection *connection, bool is_readable);
/* True: it waits for the socket to take bytes, and reads nothing until then, so that a peer that
 * does not read cannot make it gather answers. */
bool weir_rpc_connection_is_blocked(const weir_rpc_connection *connection);

/* Puts it at the end of shared->pending: something is to be written. */
void weir_rpc_connection_touch(weir_rpc_connection *connection);
/* The next one of shared->pending, taken out; NULL when there is none. */
weir_rpc_connection *weir_rpc_connection_take_pending(weir_rpc_shared *shared);
/* Some connection of shared->pending has something to do that needs no event. */
bool weir_rpc_connection_any_ready(const weir_rpc_shared *shared);

/* NULL: it may stay. Else why to close it: it has been silent for too long; which is less where
 * others find no place. */
const char *weir_rpc_connection_check_time(const weir_rpc_connection *connection, uint64_t now_ns,
                                           bool is_crowded);
/* A call of it was let in: it is no stranger. */
void weir_rpc_connection_prove(weir_rpc_connection *connection);
/* Whom to close for the sake of one that finds no descriptor: who has no call and was silent for
 * longest, strangers first, but nobody within a second. NULL: all of them have something to do. */
weir_rpc_connection *weir_rpc_connection_idlest(const weir_rpc_shared *shared, uint64_t now_ns);
/* The next turn ends it. */
void weir_rpc_connection_doom(weir_rpc_connection *connection);
/* Says goodbye: calls in flight end with UNAVAILABLE. */
void weir_rpc_connection_shut(weir_rpc_connection *connection);

/* The next of shared->connections. */
weir_rpc_connection *weir_rpc_connection_next(const weir_rpc_connection *connection);

#endif
