/* SPDX-License-Identifier: Apache-2.0 */
/* ucx_stream_dial.c - a reader's way to an owner that sends over TCP: its addresses in turn, and
 * the words by which the two know each other. Waits, for as long as connect may.
 */
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

#include "base/alloc.h"
#include "transport/ucx_group.h"
#include "transport/ucx_stream.h"

#define WELCOME_MS 5000u /* from one address, when others may be better */
#define AGAIN_MS 100u    /* before all addresses are tried once more */

/* What came of one address. */
typedef enum dialled { DIALLED_WELCOME, DIALLED_NOBODY, DIALLED_ANOTHER, DIALLED_SILENCE } dialled;

/* False: the deadline has passed, or the peer is gone. */
static bool wait_for(ucx_peer *peer, int fd, short events, weir_deadline until)
{
    struct pollfd fds[] = { { .fd = fd, .events = events },
                            { .fd = peer->process_fd, .events = POLLIN } }; /* -1 is passed over */
    for (;;) {
        unsigned left_ms = weir_deadline_left_ms(until);
        int n = poll(fds, 2, (int)left_ms);
        weir_ucx_peer_check(peer);
        if (peer->lost != WEIR_OK)
            return false;
        if (n > 0 && fds[0].revents != 0)
            return true;
        if (left_ms == 0)
            return false;
    }
}

static weir_deadline sooner(weir_deadline a, unsigned ms)
{
    weir_deadline b = weir_deadline_in(ms);
    return a < b ? a : b;
}

static dialled hear_welcome(ucx_peer *peer, int fd, uint64_t greeting, weir_deadline until)
{
    uint8_t welcome[WEIR_STREAM_WELCOME_BYTES];
    uint64_t theirs;
    size_t n_in = 0;
    while (n_in < sizeof(welcome)) {
        if (!wait_for(peer, fd, POLLIN, until))
            return DIALLED_SILENCE;
        ssize_t n = recv(fd, welcome + n_in, sizeof(welcome) - n_in, 0);
        if (n > 0)
            n_in += (size_t)n;
        else if (n == 0 || (errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR))
            return DIALLED_ANOTHER; /* who does not know our word hangs up */
    }
    bool is_it = weir_stream_welcome_decode(welcome, &theirs) && theirs == greeting;
    return is_it ? DIALLED_WELCOME : DIALLED_ANOTHER;
}

/* Over a connection that is about to stand. */
static dialled introduce(ucx_peer *peer, ucx_dial *dial, uint64_t greeting, weir_deadline deadline)
{
    uint8_t hello[WEIR_STREAM_HELLO_BYTES];
    weir_deadline until = dial->link->until < deadline ? dial->link->until : deadline;
    if (!wait_for(peer, dial->link->fd, POLLOUT, until))
        return DIALLED_SILENCE;
    if (!weir_ucx_dial_stands(dial))
        return DIALLED_NOBODY;
    weir_stream_hello_encode(dial->to.nonce, hello);
    if (send(dial->link->fd, hello, sizeof(hello), MSG_NOSIGNAL) != (ssize_t)sizeof(hello))
        return DIALLED_NOBODY;
    return hear_welcome(peer, dial->link->fd, greeting, sooner(deadline, WELCOME_MS));
}

/* The best that any address has come to. */
static dialled try_all(ucx_peer *peer, ucx_dial *dial, uint64_t greeting, weir_deadline deadline)
{
    dialled best = DIALLED_NOBODY;
    for (;;) {
        ucx_dialled begun = weir_ucx_dial_next(dial);
        if (begun == UCX_DIAL_ALL_TRIED || begun == UCX_DIAL_NOWHERE)
            return best;
        if (begun != UCX_DIAL_BEGUN)
            continue;
        dialled outcome = introduce(peer, dial, greeting, deadline);
        if (outcome == DIALLED_WELCOME)
            return outcome;
        weir_ucx_dial_drop(dial);
        if (peer->lost != WEIR_OK)
            return outcome;
        if (outcome > best)
            best = outcome;
    }
}

static weir_status fail(const ucx_peer *peer, dialled outcome, unsigned timeout_ms)
{
    if (peer->lost != WEIR_OK)
        return weir_fail(peer->lost, "%s: peer went away: %s", peer->who, peer->lost_why);
    if (outcome == DIALLED_SILENCE)
        return weir_fail(WEIR_ERR_TIMED_OUT, "%s: no answer to a connection for %.1f s", peer->who,
                         timeout_ms * 1e-3);
    return weir_fail(WEIR_ERR_PEER_LOST, "%s: peer went away: %s", peer->who,
                     outcome == DIALLED_ANOTHER ? "another process answers at its address"
                                                : "nobody listens at its address");
}

weir_status weir_stream_connect(ucx_peer *peer, const weir_ucx_address *address,
                                unsigned timeout_ms)
{
    weir_deadline deadline = weir_deadline_in(timeout_ms);
    ucx_link link = { .fd = -1 };
    ucx_dial dial = { .link = &link };
    weir_status status =
        weir_ucx_group_key_decode(address->stream, address->stream_bytes, peer->who, &dial.to);
    if (status != WEIR_OK)
        return status;
    dialled outcome = try_all(peer, &dial, address->greeting_is, deadline);
    while (outcome == DIALLED_SILENCE && peer->lost == WEIR_OK && !weir_deadline_passed(deadline)) {
        weir_sleep_ms(AGAIN_MS);
        outcome = try_all(peer, &dial, address->greeting_is, deadline);
    }
    if (outcome != DIALLED_WELCOME)
        return fail(peer, outcome, timeout_ms);
    peer->stream = weir_alloc_zeroed(1, sizeof(*peer->stream));
    if (peer->stream == NULL) {
        weir_ucx_link_close(&link);
        return WEIR_ERR_NO_MEMORY;
    }
    weir_stream_keep_alive(link.fd);
    peer->stream->fd = link.fd;
    return WEIR_OK;
}

void weir_stream_disconnect(ucx_peer *peer)
{
    if (peer->stream == NULL)
        return;
    ucx_link link = { .fd = peer->stream->fd };
    weir_ucx_link_close(&link);
    weir_free(peer->stream);
    peer->stream = NULL;
}
