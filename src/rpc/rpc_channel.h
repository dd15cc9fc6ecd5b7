/* SPDX-License-Identifier: Apache-2.0 */
/* rpc_channel.h - one HTTP/2 session on one socket, within TLS or as it is: bytes in, bytes out,
 * nothing about calls.
 *
 * The only place that reads and writes a connected socket of a call, by rpc_tls.h where it is
 * encrypted. Owned by one thread. The HTTP/2 session's memory comes from a heap that the owner
 * keeps.
 */
#ifndef WEIR_RPC_RPC_CHANNEL_H
#define WEIR_RPC_RPC_CHANNEL_H

#include <nghttp2/nghttp2.h>
#include <stdbool.h>

#include "rpc/rpc_heap.h"
#include "rpc/rpc_tls.h"
#include "weir/status.h"

#define WEIR_RPC_MAX_STREAMS 128u /* calls at once on one connection */
#define WEIR_RPC_MAX_HEADER_BYTES ((size_t)16 << 10)

typedef struct weir_rpc_channel {
    int fd;
    weir_rpc_side side;
    weir_tls_session *tls; /* NULL: plain text */
    bool has_read;
    nghttp2_session *session;
    weir_rpc_heap *heap;
    unsigned char *out; /* serialised, not yet in the socket; NULL: nothing */
    size_t out_begin, out_end, out_capacity;
} weir_rpc_channel;

/* Takes the (non-blocking) socket, on failure too. The callbacks are copied. */
weir_status weir_rpc_channel_open(weir_rpc_channel *channel, int fd, weir_rpc_heap *heap,
                                  weir_rpc_side side, const nghttp2_session_callbacks *callbacks,
                                  void *user_data);
/* From here on within TLS; before the first byte. `host` as for weir_tls_session_open(). A context
 * of NULL changes nothing. The channel stays open on failure. */
weir_status weir_rpc_channel_secure(weir_rpc_channel *channel, weir_tls_context *context,
                                    const char *host);
void weir_rpc_channel_close(weir_rpc_channel *channel); /* accepts one that is closed */

/* Feeds what the socket has to the session, at most about max_bytes. Never blocks. ERR_PEER_LOST
 * when the peer closed, ERR_FORMAT when it does not speak HTTP/2, ERR_NO_MEMORY; what rpc_tls.h
 * says of a handshake that fails. */
weir_status weir_rpc_channel_read(weir_rpc_channel *channel, size_t max_bytes);

/* Writes what the session has, as far as the socket takes it. Never blocks. ERR_PEER_LOST,
 * ERR_FORMAT when the session ended itself over the peer's fault, ERR_NO_MEMORY. */
weir_status weir_rpc_channel_write(weir_rpc_channel *channel);

/* Bytes wait for room in the socket. */
bool weir_rpc_channel_is_blocked(const weir_rpc_channel *channel);
/* When the TLS handshake must be done; 0: none is under way. */
weir_deadline weir_rpc_channel_deadline(const weir_rpc_channel *channel);
/* The name in the peer's certificate; "" for none. */
const char *weir_rpc_channel_peer_name(const weir_rpc_channel *channel);
/* Neither side has anything more to say. */
bool weir_rpc_channel_is_over(const weir_rpc_channel *channel);

#endif
