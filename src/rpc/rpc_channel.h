/* SPDX-License-Identifier: Apache-2.0 */
/* rpc_channel.h - one HTTP/2 session on one socket: bytes in, bytes out, nothing about calls.
 *
 * The only place that reads and writes a connected socket. Owned by one thread. The session's
 * memory comes from a heap that the owner keeps.
 */
#ifndef WEIR_RPC_RPC_CHANNEL_H
#define WEIR_RPC_RPC_CHANNEL_H

#include <nghttp2/nghttp2.h>
#include <stdbool.h>

#include "rpc/rpc_heap.h"
#include "weir/status.h"

#define WEIR_RPC_MAX_STREAMS 128u /* calls at once on one connection */
#define WEIR_RPC_MAX_HEADER_BYTES ((size_t)16 << 10)

typedef enum weir_rpc_side { WEIR_RPC_CLIENT_SIDE, WEIR_RPC_SERVER_SIDE } weir_rpc_side;

typedef struct weir_rpc_channel {
    int fd;
    nghttp2_session *session;
    weir_rpc_heap *heap;
    unsigned char *out; /* serialised, not yet in the socket */
    size_t out_begin, out_end, out_capacity;
} weir_rpc_channel;

/* Takes the (non-blocking) socket, on failure too. The callbacks are copied. */
weir_status weir_rpc_channel_open(weir_rpc_channel *channel, int fd, weir_rpc_heap *heap,
                                  weir_rpc_side side, const nghttp2_session_callbacks *callbacks,
                                  void *user_data);
void weir_rpc_channel_close(weir_rpc_channel *channel); /* accepts one that is closed */

/* Feeds what the socket has to the session, at most about max_bytes. Never blocks. ERR_PEER_LOST
 * when the peer closed, ERR_FORMAT when it does not speak HTTP/2, ERR_NO_MEMORY. */
weir_status weir_rpc_channel_read(weir_rpc_channel *channel, size_t max_bytes);

/* Writes what the session has, as far as the socket takes it. Never blocks. ERR_PEER_LOST,
 * ERR_FORMAT when the session ended itself over the peer's fault, ERR_NO_MEMORY. */
weir_status weir_rpc_channel_write(weir_rpc_channel *channel);

/* Bytes wait for room in the socket. */
bool weir_rpc_channel_is_blocked(const weir_rpc_channel *channel);
/* Neither side has anything more to say. */
bool weir_rpc_channel_is_over(const weir_rpc_channel *channel);

#endif
