/* SPDX-License-Identifier: Apache-2.0 */
/* frame_link.h - typed frames between two processes over one TCP connection, both ways.
 *
 * For talk that unary calls do not fit: either side speaks when it has something to say, and a dead
 * peer is noticed at once. Knows nothing of weights. A frame is 16 bytes, little-endian (magic
 * "WFL1", u16 type, u16 zero, u64 payload bytes), and its payload. Where security is given all of
 * it goes within TLS, and the first frame of who connects is the token; callers see neither.
 *
 * Threads    a link or listener belongs to one thread at a time; different ones are independent.
 * Ownership  a received payload lives until the next receive on that link. A listener with security
 *            outlives the links that it accepted.
 * Errors     every call is bounded. ERR_PEER_LOST when the other side is gone, ERR_TIMED_OUT,
 *            ERR_CORRUPT for bytes that are no frame or one too large (the link is then dead).
 *            A link that is dead repeats its error; what came before can still be received when
 *            only sending is over. Buffers grow to the largest frame and stay: later frames
 *            allocate nothing.
 */
#ifndef WEIR_RPC_FRAME_LINK_H
#define WEIR_RPC_FRAME_LINK_H

#include <stddef.h>
#include <stdint.h>

#include "rpc/rpc.h"
#include "weir/status.h"

#define WEIR_FRAME_MAX_BYTES ((size_t)64 << 20) /* of one payload */
#define WEIR_FRAME_MAX_LINKS 4096u              /* that weir_frame_wait() watches at once */
#define WEIR_FRAME_HEADER_BYTES 16u
#define WEIR_FRAME_TOKEN 0xffffu   /* the type of the first frame where a token is asked for */
#define WEIR_FRAME_STALL_MS 30000u /* unless weir_frame_link_set_stall() says */

typedef struct weir_frame_listener weir_frame_listener;
typedef struct weir_frame_link weir_frame_link;

typedef struct weir_frame {
    uint16_t type;
    const void *payload;
    size_t n_bytes;
} weir_frame;

/* Listens on `host` ("127.0.0.1", "0.0.0.0", "::1", a name), any free port. `security` as of a
 * server in rpc.h, NULL: none, wherever that is. Gives *out. */
weir_status weir_frame_listener_open(const char *host, const weir_rpc_security *security,
                                     weir_frame_listener **out);
void weir_frame_listener_close(weir_frame_listener *listener); /* accepts NULL */
/* "HOST:PORT", as peers connect to it: this machine's name when it listens on every address. */
const char *weir_frame_listener_address(const weir_frame_listener *listener);
/* A connection that waits, else IN_PROGRESS; never blocks. Gives *out. */
weir_status weir_frame_listener_accept(weir_frame_listener *listener, weir_frame_link **out);

/* `who` names the peer in errors (copied); `security` as of a client in rpc.h, NULL: none. What is
 * wrong with the peer's certificate, or with ours, is what receiving says. Gives *out. */
weir_status weir_frame_connect(const char *address, const char *who,
                               const weir_rpc_security *security, unsigned timeout_ms,
                               weir_frame_link **out);
void weir_frame_link_close(weir_frame_link *link); /* accepts NULL; what was sent still arrives */
/* Another name for the peer, once it has said who it is. */
void weir_frame_link_rename(weir_frame_link *link, const char *who);
const char *weir_frame_link_who(const weir_frame_link *link);
/* A frame that has begun must go on within this, or receiving it is ERR_TIMED_OUT. */
void weir_frame_link_set_stall(weir_frame_link *link, unsigned stall_ms);

/* Sends a whole frame. While the peer does not read, blocks until timeout_ms: ERR_TIMED_OUT. If
 * part of the frame had left by then, nothing more can be sent on this link. ERR_INVALID for more
 * than WEIR_FRAME_MAX_BYTES. */
weir_status weir_frame_send(weir_frame_link *link, uint16_t type, const void *payload,
                            size_t n_bytes, unsigned timeout_ms);
/* The next whole frame: IN_PROGRESS when none has come in wait_ms (0: only looks). */
weir_status weir_frame_receive(weir_frame_link *link, unsigned wait_ms, weir_frame *out);

/* Sleeps until a link has bytes to receive or is dead, the listener (may be NULL) has a connection,
 * or wait_ms are over: OK in each case. Spurious returns are allowed. NULL links are passed over.
 */
weir_status weir_frame_wait(weir_frame_listener *listener, weir_frame_link *const *links,
                            size_t n_links, unsigned wait_ms);

/* The frame that bytes begin with, borrowed from them; *out_n_bytes is what it takes up, header and
 * all. IN_PROGRESS while it is not whole: *out_n_bytes then says how many bytes are needed to know
 * more. ERR_CORRUPT. Pure. */
weir_status weir_frame_parse(const void *bytes, size_t n_bytes, weir_frame *out,
                             size_t *out_n_bytes);

#endif
