/* SPDX-License-Identifier: Apache-2.0 */
/* rpc_address.h - "HOST:PORT" to a socket that listens or is connected. IPv4, IPv6 and names. */
#ifndef WEIR_RPC_RPC_ADDRESS_H
#define WEIR_RPC_RPC_ADDRESS_H

#include <stdbool.h>

#include "base/clock.h"
#include "weir/status.h"

#define WEIR_RPC_HOST_BYTES 256
#define WEIR_RPC_ADDRESS_TEXT (WEIR_RPC_HOST_BYTES + 16)

typedef struct weir_rpc_address {
    char host[WEIR_RPC_HOST_BYTES]; /* without the brackets of an IPv6 address */
    unsigned port;
} weir_rpc_address;

/* "host:50051", "10.0.0.1:50051", "[::1]:50051". ERR_INVALID naming the text. */
weir_status weir_rpc_address_parse(const char *text, weir_rpc_address *out);
void weir_rpc_address_format(const weir_rpc_address *address, char out[WEIR_RPC_ADDRESS_TEXT]);

/* Both sockets are non-blocking, close-on-exec, without Nagle's delay. */

/* Sets address->port to the real one. ERR_IO. */
weir_status weir_rpc_listen(weir_rpc_address *address, int *out_fd);

/* Of the addresses that a host has: which one is tried first, and how many there were last time. */
typedef struct weir_rpc_pick {
    unsigned index, n;
} weir_rpc_pick;

/* Tries each address of the host in turn until the deadline, of which the first ones have but a
 * part; looking up a name is bounded by the resolver's own configuration. A readable cancel_fd ends
 * it with ERR_CANCELLED. ERR_PEER_LOST at once when nobody listens, ERR_TIMED_OUT; the line has the
 * reason alone, of a host with several addresses the reason of each. */
weir_status weir_rpc_connect(const weir_rpc_address *address, weir_deadline deadline, int cancel_fd,
                             int *out_fd);
/* The same, beginning with pick->index; *pick is then the one that was reached. */
weir_status weir_rpc_connect_from(const weir_rpc_address *address, weir_rpc_pick *pick,
                                  weir_deadline deadline, int cancel_fd, int *out_fd);

/* For an accepted socket: what listen and connect set on theirs. */
void weir_rpc_socket_prepare(int fd);

#define WEIR_RPC_LOST_S 10
/* From here on a connection on which nothing is under way is lost when its peer's machine has given
 * no sign for so long. One whose process stands still gives some. */
void weir_rpc_socket_watch_peer(int fd);
/* The same while bytes are under way: whether a peer must take some in that time, or has as long as
 * it likes. */
void weir_rpc_socket_expect_acks(int fd, bool expects);

#endif
