/* SPDX-License-Identifier: Apache-2.0 */
/* frame_receive.c - frames out of what came, in one buffer per link that stays.
 *
 * The buffer grows as bytes come, never because a header says so: a peer that claims 64 MiB has to
 * send them. Of who has not shown the token that is asked for, less is taken in than that.
 */
#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>

#include "base/alloc.h"
#include "rpc/frame_link_core.h"
#include "rpc/rpc_security.h"

static void drop_handed(weir_frame_link *link)
{
    link->begin += link->handed_bytes;
    link->handed_bytes = 0;
    if (link->begin == link->end)
        link->begin = link->end = 0;
}

/* Room for more of a frame that needs n_frame bytes, which it does not have yet. */
static weir_status make_room(weir_frame_link *link, size_t n_frame)
{
    if (link->begin != 0 && n_frame > link->capacity_bytes - link->begin) {
        memmove(link->data, link->data + link->begin, link->end - link->begin);
        link->end -= link->begin;
        link->begin = 0;
    }
    if (link->end < link->capacity_bytes)
        return WEIR_OK;
    const size_t most_bytes = WEIR_FRAME_HEADER_BYTES + WEIR_FRAME_MAX_BYTES;
    size_t capacity_bytes = 2 * link->capacity_bytes;
    if (capacity_bytes > most_bytes)
        capacity_bytes = most_bytes;
    unsigned char *data = weir_realloc(link->data, capacity_bytes);
    if (data == NULL)
        return WEIR_ERR_NO_MEMORY;
    link->data = data;
    link->capacity_bytes = capacity_bytes;
    return WEIR_OK;
}

static weir_status peer_left(weir_frame_link *link, size_t n_frame, const char *how)
{
    size_t n_half = link->end - link->begin;
    if (n_half == 0)
        weir_fail(WEIR_ERR_PEER_LOST, "%s: %s", link->who, how);
    else
        weir_fail(WEIR_ERR_PEER_LOST, "%s: %s in the midst of a frame, after %zu of %zu bytes",
                  link->who, how, n_half, n_frame);
    return weir_frame_end_both(link, WEIR_ERR_PEER_LOST);
}

static weir_status read_encrypted(weir_frame_link *link)
{
    size_t n = 0;
    weir_status status =
        weir_tls_receive(link->tls, link->data + link->end, link->capacity_bytes - link->end, &n);
    weir_status sent =
        status == WEIR_OK || status == WEIR_IN_PROGRESS ? weir_frame_send_early(link) : WEIR_OK;
    if (status == WEIR_IN_PROGRESS && (sent == WEIR_OK || sent == WEIR_IN_PROGRESS))
        return status;
    if (status == WEIR_IN_PROGRESS)
        status = sent;
    if (status != WEIR_OK) {
        weir_error_prefix("%s", link->who);
        return weir_frame_end_both(link, status);
    }
    link->end += n;
    link->active_ns = weir_now_ns();
    return WEIR_OK;
}

/* Takes what is there; IN_PROGRESS when nothing is. */
static weir_status read_some(weir_frame_link *link, size_t n_frame)
{
    weir_status status = make_room(link, n_frame);
    if (status != WEIR_OK)
        return status;
    if (link->tls != NULL)
        return read_encrypted(link);
    ssize_t n;
    do {
        n = recv(link->fd, link->data + link->end, link->capacity_bytes - link->end, MSG_DONTWAIT);
    } while (n < 0 && errno == EINTR);
    if (n == 0)
        return peer_left(link, n_frame, "closed the connection");
    if (n < 0)
        return errno == EAGAIN || errno == EWOULDBLOCK ? WEIR_IN_PROGRESS
                                                       : peer_left(link, n_frame, strerror(errno));
    link->end += (size_t)n;
    link->active_ns = weir_now_ns();
    return WEIR_OK;
}

/* Sleeps for more bytes, unless the caller's time is over or half a frame's. */
static weir_status await_bytes(weir_frame_link *link, weir_deadline deadline, size_t n_frame)
{
    size_t n_half = link->end - link->begin;
    weir_deadline stalled = link->active_ns + link->stall_ms * 1000000ull;
    if (n_half != 0 && weir_deadline_passed(stalled)) {
        weir_fail(WEIR_ERR_TIMED_OUT, "%s: %zu of %zu bytes of a frame, then none for %u ms",
                  link->who, n_half, n_frame, link->stall_ms);
        return weir_frame_end_both(link, WEIR_ERR_TIMED_OUT);
    }
    if (weir_deadline_passed(deadline))
        return WEIR_IN_PROGRESS;
    if (n_half != 0 && stalled < deadline)
        deadline = stalled;
    weir_frame_poll(link->fd, POLLIN, deadline);
    return WEIR_OK;
}

/* Of who has not shown the token yet: no more is taken in than one could have. */
static weir_status check_stranger(weir_frame_link *link, size_t n_frame)
{
    if (link->asked == NULL)
        return WEIR_OK;
    if (n_frame > WEIR_FRAME_HEADER_BYTES + WEIR_TOKEN_BYTES) {
        weir_fail(WEIR_ERR_REFUSED, "%s: shows no token", link->who);
        return weir_frame_end_both(link, WEIR_ERR_REFUSED);
    }
    if (!weir_deadline_passed(link->asked_until))
        return WEIR_OK;
    weir_fail(WEIR_ERR_TIMED_OUT, "%s: has shown no token for %u ms", link->who,
              WEIR_FRAME_TOKEN_MS);
    return weir_frame_end_both(link, WEIR_ERR_TIMED_OUT);
}

/* A whole frame has come. IN_PROGRESS: it was the token, which is right or not asked for. */
static weir_status look_at_frame(weir_frame_link *link, const weir_frame *frame, size_t n_frame)
{
    bool is_token = frame->type == WEIR_FRAME_TOKEN;
    link->handed_bytes = n_frame;
    if (link->asked != NULL &&
        !(is_token && weir_security_accepts(link->asked, frame->payload, frame->n_bytes))) {
        weir_frame_send(link, WEIR_FRAME_TOKEN, NULL, 0, 0); /* says why */
        weir_fail(WEIR_ERR_REFUSED, "%s: shows no token, or another", link->who);
        return weir_frame_end_both(link, WEIR_ERR_REFUSED);
    }
    link->asked = NULL;
    if (!is_token)
        return WEIR_OK;
    if (link->has_connected) {
        weir_fail(WEIR_ERR_REFUSED, "%s: asks for a token, or another one", link->who);
        return weir_frame_end_both(link, WEIR_ERR_REFUSED);
    }
    drop_handed(link);
    return WEIR_IN_PROGRESS;
}

/* Bytes that are no frame; TLS is one way to come to them. */
static weir_status no_frame(weir_frame_link *link, weir_status status)
{
    if (link->tls == NULL && WEIR_TLS_IS_RECORD(link->data + link->begin, link->end - link->begin))
        status = weir_fail(WEIR_ERR_REFUSED, "speaks TLS, and this side does not");
    weir_error_prefix("%s", link->who);
    return weir_frame_end_both(link, status);
}

weir_status weir_frame_receive(weir_frame_link *link, unsigned wait_ms, weir_frame *out)
{
    if (link->receiving.status != WEIR_OK)
        return weir_frame_end_repeat(&link->receiving);
    drop_handed(link);
    weir_deadline deadline = weir_deadline_in(wait_ms);
    for (;;) {
        size_t n_frame = 0;
        weir_status status =
            weir_frame_parse(link->data + link->begin, link->end - link->begin, out, &n_frame);
        if (status == WEIR_OK) {
            status = look_at_frame(link, out, n_frame);
            if (status == WEIR_IN_PROGRESS)
                continue;
            return status;
        }
        if (status != WEIR_IN_PROGRESS)
            return no_frame(link, status);
        status = check_stranger(link, n_frame);
        if (status == WEIR_OK)
            status = read_some(link, n_frame);
        if (status == WEIR_IN_PROGRESS)
            status = await_bytes(link, deadline, n_frame);
        if (status != WEIR_OK)
            return status;
    }
}
