/* SPDX-License-Identifier: Apache-2.0 */
/* rpc_hosts.h - how many connections each remote address has, and what their calls occupy. One
 * thread. */
#ifndef WEIR_RPC_RPC_HOSTS_H
#define WEIR_RPC_RPC_HOSTS_H

#include <stdbool.h>
#include <sys/socket.h>

#include "rpc/rpc_heap.h"

#define WEIR_RPC_HOST_BUCKETS 1024u

/* What the calls of a client occupy of what all share. */
typedef struct weir_rpc_usage {
    unsigned n_parked;
    size_t request_bytes; /* of requests that are not answered */
} weir_rpc_usage;

typedef struct weir_rpc_host {
    struct weir_rpc_host *next; /* of its bucket */
    unsigned char address[16];  /* IPv6; IPv4 as ::ffff:a.b.c.d */
    unsigned n_connections;
    bool is_loopback; /* has no bounds */
    weir_rpc_usage usage;
} weir_rpc_host;

typedef struct weir_rpc_hosts {
    weir_rpc_host *buckets[WEIR_RPC_HOST_BUCKETS];
} weir_rpc_hosts;

/* One connection more from this address, of max_connections at most; loopback has no bound. NULL
 * when it has as many, or memory is out. */
weir_rpc_host *weir_rpc_hosts_enter(weir_rpc_hosts *hosts, weir_rpc_heap *heap,
                                    const struct sockaddr_storage *address,
                                    unsigned max_connections);
void weir_rpc_hosts_leave(weir_rpc_hosts *hosts, weir_rpc_heap *heap, weir_rpc_host *host);

#endif
