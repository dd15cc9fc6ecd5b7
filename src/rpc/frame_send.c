/* SPDX-License-Identifier: Apache-2.0 */
/* frame_send.c - whole frames out of a link, within TLS or plain; what cannot be sent in time ends
 * it.
 */
#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include "base/alloc.h"
#include "rpc/frame_link_core.h"

#define EARLY_BYTES 65536u /* of frames, until the handshake is done */
#define SMALL_BYTES 4096u  /* header and payload leave in one TLS record */

static void advance(struct iovec parts[2], size_t n_bytes)
{
    for (int i = 0; i < 2; i++) {
        size_t n = n_bytes < parts[i].iov_len ? n_bytes : parts[i].iov_len;
        if (n != 0)
            parts[i].iov_base = (char *)parts[i].iov_base + n;
        parts[i].iov_len -= n;
        n_bytes -= n;
    }
}

/* Half a frame cannot be taken back: the peer is told that the rest will not come. */
static weir_status cut_off(weir_frame_link *link, uint16_t type, size_t n_sent, size_t n_frame,
                           unsigned timeout_ms)
{
    if (n_sent == 0 && link->tls == NULL) /* else a record may be half sent all the same */
        return weir_fail(WEIR_ERR_TIMED_OUT,
                         "%s: does not read: frame of type %u not sent in %u ms", link->who, type,
                         timeout_ms);
    weir_fail(
        WEIR_ERR_TIMED_OUT,
        "%s: does not read: %zu of %zu bytes of a frame of type %u sent in %u ms, the link is "
        "dead",
        link->who, n_sent, n_frame, type, timeout_ms);
    shutdown(link->fd, SHUT_WR);
    return weir_frame_end_with(&link->sending, WEIR_ERR_TIMED_OUT);
}

static weir_status send_plain(weir_frame_link *link, const struct iovec parts[2], size_t *out_n)
{
    struct msghdr message = { .msg_iov = (struct iovec *)parts, .msg_iovlen = 2 };
    ssize_t n;
    do {
        n = sendmsg(link->fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
    } while (n < 0 && errno == EINTR);
    if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
        return WEIR_IN_PROGRESS;
    if (n < 0)
        return weir_fail(WEIR_ERR_PEER_LOST, "the connection is lost: %s", strerror(errno));
    *out_n = (size_t)n;
    return WEIR_OK;
}

/* What could not be sent must come again as it was: the parts are the same until it is. */
static weir_status send_encrypted(weir_frame_link *link, const struct iovec parts[2], size_t *out_n)
{
    unsigned char small[SMALL_BYTES];
    size_t n_first = parts[0].iov_len, n_second = parts[1].iov_len;
    if (n_first == 0)
        return weir_tls_send(link->tls, parts[1].iov_base, n_second, out_n);
    if (n_second == 0 || n_first + n_second > sizeof(small))
        return weir_tls_send(link->tls, parts[0].iov_base, n_first, out_n);
    memcpy(small, parts[0].iov_base, n_first);
    memcpy(small + n_first, parts[1].iov_base, n_second);
    return weir_tls_send(link->tls, small, n_first + n_second, out_n);
}

/* A peer that has not accepted the connection yet takes frames all the same, as a socket does. */
static bool is_early(const weir_frame_link *link)
{
    return link->tls != NULL && weir_tls_deadline(link->tls) != 0;
}

static weir_status keep_early(weir_frame_link *link, const struct iovec parts[2])
{
    size_t n_bytes = parts[0].iov_len + parts[1].iov_len;
    if (link->early == NULL)
        link->early = weir_alloc(EARLY_BYTES);
    if (link->early == NULL)
        return WEIR_ERR_NO_MEMORY;
    if (n_bytes > EARLY_BYTES - link->n_early)
        return WEIR_IN_PROGRESS;
    for (int i = 0; i < 2; i++) {
        if (parts[i].iov_len != 0)
            memcpy(link->early + link->n_early, parts[i].iov_base, parts[i].iov_len);
        link->n_early += parts[i].iov_len;
    }
    return WEIR_OK;
}

weir_status weir_frame_send_early(weir_frame_link *link)
{
    while (link->n_early != 0 && !is_early(link)) {
        size_t n = 0;
        weir_status status = weir_tls_send(link->tls, link->early, link->n_early, &n);
        if (status != WEIR_OK)
            return status;
        memmove(link->early, link->early + n, link->n_early - n);
        link->n_early -= n;
    }
    return WEIR_OK;
}

static short awaited(const weir_frame_link *link)
{
    return is_early(link) && !weir_tls_wants_write(link->tls) ? POLLIN : POLLOUT;
}

static weir_status send_some(weir_frame_link *link, const struct iovec parts[2], size_t *out_n)
{
    if (link->tls == NULL)
        return send_plain(link, parts, out_n);
    weir_status status = weir_tls_handshake(link->tls);
    if (status == WEIR_IN_PROGRESS) {
        *out_n = parts[0].iov_len + parts[1].iov_len;
        return keep_early(link, parts);
    }
    if (status == WEIR_OK)
        status = weir_frame_send_early(link);
    return status == WEIR_OK ? send_encrypted(link, parts, out_n) : status;
}

weir_status weir_frame_send(weir_frame_link *link, uint16_t type, const void *payload,
                            size_t n_bytes, unsigned timeout_ms)
{
    if (link->sending.status != WEIR_OK)
        return weir_frame_end_repeat(&link->sending);
    if (n_bytes > WEIR_FRAME_MAX_BYTES)
        return weir_fail(WEIR_ERR_INVALID,
                         "%s: a frame of %zu bytes to send, %zu are as many as there may be",
                         link->who, n_bytes, WEIR_FRAME_MAX_BYTES);
    unsigned char header[WEIR_FRAME_HEADER_BYTES];
    weir_frame_put_header(header, type, n_bytes);
    struct iovec parts[2] = { { header, sizeof(header) }, { (void *)payload, n_bytes } };
    const size_t n_frame = sizeof(header) + n_bytes;
    weir_deadline deadline = weir_deadline_in(timeout_ms);
    for (size_t n_sent = 0; n_sent < n_frame;) {
        size_t n = 0;
        weir_status status = send_some(link, parts, &n);
        if (status == WEIR_OK) {
            advance(parts, n);
            n_sent += n;
        } else if (status != WEIR_IN_PROGRESS) {
            weir_error_prefix("%s", link->who);
            return weir_frame_end_with(&link->sending, status);
        } else if (!weir_frame_poll(link->fd, awaited(link), deadline)) {
            return cut_off(link, type, n_sent, n_frame, timeout_ms);
        }
    }
    return WEIR_OK;
}
