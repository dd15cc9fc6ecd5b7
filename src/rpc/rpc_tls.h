/* SPDX-License-Identifier: Apache-2.0 */
/* rpc_tls.h - TLS 1.2 and later on a connected socket, for HTTP/2 channels and frame links alike.
 *
 * A context is who one server or client is and whom it believes; its sessions are its connections.
 * Files that are replaced are read again for the next session.
 *
 * Threads    a context and its sessions belong to one thread at a time.
 * Ownership  a context outlives its sessions; a session borrows its socket, which never blocks.
 * Errors     one line without the peer's address: what is wrong with its certificate, or with ours,
 *            or that there is no TLS. ERR_REFUSED for those, ERR_FORMAT for what is no TLS,
 *            ERR_PEER_LOST, ERR_TIMED_OUT for a handshake that does not end.
 */
#ifndef WEIR_RPC_RPC_TLS_H
#define WEIR_RPC_RPC_TLS_H

#include <stdbool.h>
#include <stddef.h>

#include "rpc/rpc.h"

#define WEIR_TLS_HANDSHAKE_MS 5000u

/* ALPN: what is spoken within. */
#define WEIR_TLS_HTTP2 "h2"
#define WEIR_TLS_FRAMES "weir-frames"

/* What begins a connection in TLS, and what answers in it. */
#define WEIR_TLS_IS_RECORD(bytes, n) \
    ((n) >= 2 && ((bytes)[0] == 0x15 || (bytes)[0] == 0x16) && (bytes)[1] == 0x03)

typedef enum weir_rpc_side { WEIR_RPC_CLIENT_SIDE, WEIR_RPC_SERVER_SIDE } weir_rpc_side;

typedef struct weir_tls_context weir_tls_context;
typedef struct weir_tls_session weir_tls_session;

/* Reads the files. *out NULL: plain text is what `security` asks of this side (a server without a
 * certificate, a client without a CA; security may be NULL). `protocol` is a literal. */
weir_status weir_tls_context_open(const weir_rpc_security *security, weir_rpc_side side,
                                  const char *protocol, weir_tls_context **out);
void weir_tls_context_close(weir_tls_context *context); /* accepts NULL */

/* `host` is whom a client calls, which the certificate must name; of a server NULL. */
weir_status weir_tls_session_open(weir_tls_context *context, int fd, const char *host,
                                  weir_tls_session **out);
/* Says goodbye if the socket takes it at once. Accepts NULL; the socket stays open. */
void weir_tls_session_close(weir_tls_session *session);

/* Another bound of the handshake than WEIR_TLS_HANDSHAKE_MS, from now on. */
void weir_tls_allow(weir_tls_session *session, unsigned handshake_ms);
/* OK when it is done, IN_PROGRESS while the peer has something to say or to take. */
weir_status weir_tls_handshake(weir_tls_session *session);
/* When the handshake must be done; 0: it is. */
weir_deadline weir_tls_deadline(const weir_tls_session *session);
/* It waits for room in the socket, not for bytes. */
bool weir_tls_wants_write(const weir_tls_session *session);
/* Bytes are here that the socket will not announce. */
bool weir_tls_has_bytes(const weir_tls_session *session);
/* The name in the peer's certificate; "" when it showed none. */
const char *weir_tls_peer_name(const weir_tls_session *session);

/* Some bytes; each does the handshake first. IN_PROGRESS: none for the moment. */
weir_status weir_tls_receive(weir_tls_session *session, void *buffer, size_t n_bytes,
                             size_t *out_n);
weir_status weir_tls_send(weir_tls_session *session, const void *data, size_t n_bytes,
                          size_t *out_n);

#endif
