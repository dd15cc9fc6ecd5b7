/* SPDX-License-Identifier: Apache-2.0 */
/* frame_link_core.h - what a link is, for the files that open, send, receive and listen.
 *
 * Receiving and sending end apart: after a failed send, what the peer said before it went (why it
 * gave up, say) can still be received.
 */
#ifndef WEIR_RPC_FRAME_LINK_CORE_H
#define WEIR_RPC_FRAME_LINK_CORE_H

#include "base/clock.h"
#include "base/error.h"
#include "rpc/frame_link.h"
#include "rpc/rpc_security.h"
#include "rpc/rpc_tls.h"

#define WEIR_FRAME_TOKEN_MS 5000u /* for a token, from the connection on */

/* Why one direction is over: the status, OK while it is not, and its line. */
typedef struct weir_frame_end {
    weir_status status;
    weir_error_line line;
} weir_frame_end;

struct weir_frame_link {
    int fd;
    char who[256];
    weir_tls_context *own_tls; /* of a link that connected */
    weir_tls_session *tls;     /* NULL: plain text */
    unsigned char *early;      /* frames that wait for the end of the handshake; NULL: none */
    size_t n_early;
    bool has_connected; /* the other side listens */
    weir_security_kept
        *asked; /* the listener's, until the peer has shown its token; NULL: it has */
    weir_deadline asked_until;
    weir_frame_end sending, receiving;
    unsigned char *data; /* received and not yet dropped: [begin, end) */
    size_t capacity_bytes, begin, end;
    size_t handed_bytes; /* of these the frame that the caller still looks at */
    uint64_t active_ns;  /* when bytes last came */
    unsigned stall_ms;
};

/* ---- frame_wire.c ----------------------------------------------------------------------------*/

void weir_frame_put_header(unsigned char header[WEIR_FRAME_HEADER_BYTES], uint16_t type,
                           size_t n_bytes);
/* The payload bytes that a whole header claims. */
uint64_t weir_frame_claimed_bytes(const unsigned char *header);

/* ---- frame_link.c ----------------------------------------------------------------------------*/

/* Takes fd, in failure too. Gives *out. */
weir_status weir_frame_link_open(int fd, const char *who, weir_frame_link **out);

/* Records that a direction is over, with the line that was just set. Returns `status`. */
weir_status weir_frame_end_with(weir_frame_end *end, weir_status status);
/* The same of both: whom nobody reads from need not be written to either. */
weir_status weir_frame_end_both(weir_frame_link *link, weir_status status);
/* Says again why it is over. */
weir_status weir_frame_end_repeat(const weir_frame_end *end);

/* False when the deadline came first. */
bool weir_frame_poll(int fd, short events, weir_deadline deadline);
/* The listener's socket, for weir_frame_wait(). */
int weir_frame_listener_fd(const weir_frame_listener *listener);

/* ---- frame_send.c ----------------------------------------------------------------------------*/

/* The frames that waited, once the handshake is done. IN_PROGRESS: the socket takes no more. */
weir_status weir_frame_send_early(weir_frame_link *link);

#endif
