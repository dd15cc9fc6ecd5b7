/* SPDX-License-Identifier: Apache-2.0 */
/* ucx_stream_read.c - reads over TCP: which ranges to ask for next, and where their bytes go.
 *
 * Requests of many ranges go out ahead of what has come, so that the owner always has something to
 * send; their bytes come in the same order and are received straight into their places. Nothing is
 * allocated, and nothing waits but weir_stream_sleep().
 */
#include <errno.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include "base/error.h"
#include "transport/ucx_stream.h"

#define TURN_BYTES ((uint64_t)16 << 20) /* taken by one turn: a few milliseconds */
#define RECEIVE_PIECES 64

/* ---- asking ----------------------------------------------------------------------------------*/

/* Moves on to the next byte that a copy wants; false behind the last. */
static bool find_next(const ucx_transfer *transfer, size_t *copy, uint64_t *offset)
{
    while (*copy < transfer->n_copies && *offset == transfer->copies[*copy].n_bytes) {
        (*copy)++;
        *offset = 0;
    }
    return *copy < transfer->n_copies;
}

static void make_request(ucx_transfer *transfer, ucx_stream *stream)
{
    uint32_t n_ranges = 0;
    uint64_t n_bytes = 0;
    while (n_ranges < WEIR_STREAM_RANGES && n_bytes < WEIR_STREAM_BYTES &&
           find_next(transfer, &transfer->next_copy, &transfer->next_offset)) {
        const weir_copy *copy = &transfer->copies[transfer->next_copy];
        const ucx_remote *remote = (const ucx_remote *)copy->remote;
        uint64_t left = copy->n_bytes - transfer->next_offset;
        if (left > WEIR_STREAM_BYTES - n_bytes)
            left = WEIR_STREAM_BYTES - n_bytes;
        weir_stream_range_encode(
            (ucx_range){ remote->address + copy->offset + transfer->next_offset, left },
            stream->out + WEIR_STREAM_HEAD_BYTES + n_ranges * WEIR_STREAM_RANGE_BYTES);
        transfer->next_offset += left;
        n_bytes += left;
        n_ranges++;
    }
    if (n_ranges == 0)
        return;
    weir_stream_request_encode(n_ranges, stream->out);
    stream->out_bytes = WEIR_STREAM_HEAD_BYTES + n_ranges * WEIR_STREAM_RANGE_BYTES;
    stream->n_sent = 0;
    stream->asked[(stream->first_asked + stream->n_asked++) % WEIR_STREAM_AHEAD] = n_bytes;
    transfer->n_in_flight++;
    transfer->bytes_in_flight += n_bytes;
}

static void note_lost(ucx_transfer *transfer, const char *why)
{
    weir_ucx_peer_lost((ucx_peer *)transfer->base.peer, WEIR_ERR_PEER_LOST, why);
}

static bool would_block(void)
{
    return errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR;
}

/* Sends requests until there is nothing to ask, enough is on its way, or no room to send into. */
static bool send_requests(ucx_transfer *transfer, ucx_stream *stream, bool ask)
{
    bool any = false;
    for (;;) {
        if (stream->n_sent == stream->out_bytes) {
            stream->n_sent = stream->out_bytes = 0;
            if (ask && stream->n_asked < WEIR_STREAM_AHEAD)
                make_request(transfer, stream);
            if (stream->out_bytes == 0)
                return any;
        }
        ssize_t n = send(stream->fd, stream->out + stream->n_sent,
                         stream->out_bytes - stream->n_sent, MSG_NOSIGNAL);
        if (n < 0) { /* of one that has gone, what it has said first is worth hearing */
            if (!would_block() && errno != EPIPE && errno != ECONNRESET)
                note_lost(transfer, strerror(errno));
            return any;
        }
        stream->n_sent += (size_t)n;
        any = true;
    }
}

/* ---- taking ----------------------------------------------------------------------------------*/

/* Bytes that have come; 0: none has. */
static uint64_t has_come(ucx_transfer *transfer, ssize_t n)
{
    if (n > 0)
        return (uint64_t)n;
    if (n == 0)
        note_lost(transfer, "its connection has ended");
    else if (!would_block())
        note_lost(transfer, strerror(errno));
    return 0;
}

/* The reason of a refusal comes right behind its head, and the end of the connection behind it. */
static void hear_reason(ucx_transfer *transfer, const ucx_stream *stream, uint64_t n_bytes)
{
    char why[WEIR_STREAM_REASON] = "";
    ssize_t n = recv(stream->fd, why, (size_t)n_bytes, 0);
    why[n > 0 ? n : 0] = '\0';
    weir_error_one_line(why);
    note_lost(transfer, why[0] != '\0' ? why : "it refuses a read");
}

static bool hear_answer(ucx_transfer *transfer, ucx_stream *stream)
{
    ucx_answer answer;
    while (stream->n_in < sizeof(stream->in)) {
        uint64_t n = has_come(transfer, recv(stream->fd, stream->in + stream->n_in,
                                             sizeof(stream->in) - stream->n_in, 0));
        if (n == 0)
            return false;
        stream->n_in += n;
    }
    stream->n_in = 0;
    if (!weir_stream_answer_decode(stream->in, &answer) ||
        (!answer.refused && answer.n_bytes != stream->asked[stream->first_asked])) {
        note_lost(transfer, "it says what is no answer");
        return false;
    }
    if (answer.refused) {
        hear_reason(transfer, stream, answer.n_bytes);
        return false;
    }
    stream->answered = true;
    stream->left = answer.n_bytes;
    return true;
}

/* Where the next bytes of the answer go. */
static size_t gather(const ucx_transfer *transfer, const ucx_stream *stream, struct iovec *pieces)
{
    size_t n = 0;
    ucx_place at = stream->landed;
    uint64_t left = stream->left;
    while (n < RECEIVE_PIECES && left > 0 && find_next(transfer, &at.copy, &at.offset)) {
        const weir_copy *copy = &transfer->copies[at.copy];
        uint64_t n_bytes = copy->n_bytes - at.offset;
        if (n_bytes > left)
            n_bytes = left;
        pieces[n++] = (struct iovec){ (uint8_t *)copy->local + at.offset, n_bytes };
        at.offset += n_bytes;
        left -= n_bytes;
    }
    return n;
}

static void move_on(const ucx_transfer *transfer, ucx_place *at, uint64_t n_bytes)
{
    while (n_bytes > 0 && find_next(transfer, &at->copy, &at->offset)) {
        uint64_t left = transfer->copies[at->copy].n_bytes - at->offset;
        uint64_t step = n_bytes < left ? n_bytes : left;
        at->offset += step;
        n_bytes -= step;
    }
}

static uint64_t take_bytes(ucx_transfer *transfer, ucx_stream *stream)
{
    struct iovec pieces[RECEIVE_PIECES];
    struct msghdr message = { .msg_iov = pieces, .msg_iovlen = gather(transfer, stream, pieces) };
    uint64_t n = has_come(transfer, recvmsg(stream->fd, &message, 0));
    move_on(transfer, &stream->landed, n);
    transfer->done_bytes += n;
    transfer->bytes_in_flight -= n;
    stream->left -= n;
    if (stream->left == 0) {
        stream->answered = false;
        stream->first_asked = (stream->first_asked + 1) % WEIR_STREAM_AHEAD;
        stream->n_asked--;
        transfer->n_in_flight--;
    }
    return n;
}

bool weir_stream_turn(ucx_transfer *transfer, bool ask)
{
    ucx_peer *peer = (ucx_peer *)transfer->base.peer;
    ucx_stream *stream = peer->stream;
    uint64_t turn_bytes = 0, n_bytes = 1;
    bool any = false;
    while (peer->lost == WEIR_OK && n_bytes > 0 && turn_bytes < TURN_BYTES) {
        any |= send_requests(transfer, stream, ask);
        n_bytes = 0;
        if (stream->n_asked > 0 && (stream->answered || hear_answer(transfer, stream)))
            n_bytes = take_bytes(transfer, stream);
        turn_bytes += n_bytes;
    }
    return any || turn_bytes > 0;
}

/* ---- a transfer ------------------------------------------------------------------------------*/

weir_status weir_stream_begin(ucx_transfer *transfer)
{
    ucx_transport *ucx = (ucx_transport *)transfer->base.peer->transport;
    ucx_stream *stream = ((ucx_peer *)transfer->base.peer)->stream;
    struct epoll_event event = { .events = EPOLLIN | EPOLLRDHUP };
    if (ucx->streams_fd < 0)
        ucx->streams_fd = epoll_create1(EPOLL_CLOEXEC);
    if (ucx->streams_fd < 0 || epoll_ctl(ucx->streams_fd, EPOLL_CTL_ADD, stream->fd, &event) != 0)
        return weir_fail_errno("%s: cannot wait for it", transfer->base.peer->who);
    stream->landed = (ucx_place){ 0, 0 };
    send_requests(transfer, stream, true);
    return WEIR_OK;
}

void weir_stream_sleep(ucx_transport *ucx, unsigned ms)
{
    struct epoll_event event;
    epoll_wait(ucx->streams_fd, &event, 1, (int)ms);
}

void weir_stream_end(ucx_transfer *transfer)
{
    ucx_transport *ucx = (ucx_transport *)transfer->base.peer->transport;
    const ucx_stream *stream = ((ucx_peer *)transfer->base.peer)->stream;
    if (stream != NULL)
        epoll_ctl(ucx->streams_fd, EPOLL_CTL_DEL, stream->fd, NULL);
}
