/* SPDX-License-Identifier: Apache-2.0 */
/* ucx_stream_answer.c - the owner's side of one connection: who it is, what it asks for, and the
 * bytes.
 *
 * Nothing here waits. One request is taken and answered whole before the next is looked at; what a
 * reader asks ahead stays in its connection, so a reader that does not take its bytes holds up
 * itself alone.
 */
#include <errno.h>
#include <netdb.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include "base/clock.h"
#include "base/log.h"
#include "transport/ucx_stream.h"

#define TURN_BYTES ((uint64_t)4 << 20) /* before another reader has its turn */
#define SEND_BYTES ((uint64_t)1 << 20) /* a region that is released waits for so many */
#define SEND_PIECES 64

typedef enum moved { MOVED_ON, MOVED_NOTHING, MOVED_AWAY } moved;

/* Of a reader that has shown the word: what it does wrong is worth a line. */
static void warn(const ucx_caller *caller, const char *what)
{
    struct sockaddr_storage at;
    socklen_t n_bytes = sizeof(at);
    char host[64] = "?", port[16] = "?";
    if (getpeername(caller->fd, (struct sockaddr *)&at, &n_bytes) == 0)
        getnameinfo((struct sockaddr *)&at, n_bytes, host, sizeof(host), port, sizeof(port),
                    NI_NUMERICHOST | NI_NUMERICSERV);
    weir_log(WEIR_LOG_WARN, "ucx: the reader at %s port %s is shut out: %s", host, port, what);
}

static bool would_block(void)
{
    return errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR;
}

/* ---- hearing ---------------------------------------------------------------------------------*/

static void refuse(ucx_caller *caller, const char *why)
{
    size_t n_bytes = strlen(why);
    warn(caller, why);
    weir_stream_answer_encode((ucx_answer){ true, n_bytes }, caller->head);
    memcpy(caller->head + WEIR_STREAM_HEAD_BYTES, why, n_bytes);
    caller->head_bytes = WEIR_STREAM_HEAD_BYTES + n_bytes;
    caller->head_sent = 0;
    caller->n_ranges = 0;
    caller->refused = true;
}

static void refuse_range(ucx_caller *caller, const ucx_range *range)
{
    char why[WEIR_STREAM_REASON];
    snprintf(why, sizeof(why), "no sealed region has the %llu bytes at 0x%llx that it asks for",
             (unsigned long long)range->n_bytes, (unsigned long long)range->address);
    refuse(caller, why);
}

static bool welcome(const ucx_stream_server *server, ucx_caller *caller)
{
    if (!weir_stream_hello_agrees(caller->in, server->where.nonce)) {
        weir_log(WEIR_LOG_INFO, "ucx: somebody who does not know this address is shut out");
        return false;
    }
    weir_stream_welcome_encode(server->greeting, caller->head);
    caller->head_bytes = WEIR_STREAM_WELCOME_BYTES;
    caller->head_sent = 0;
    caller->welcomed = true;
    caller->n_in = 0;
    return true;
}

static void begin_answer(ucx_caller *caller, uint32_t n_ranges)
{
    uint64_t n_bytes;
    if (!weir_stream_ranges_check(caller->in, n_ranges, &n_bytes)) {
        refuse(caller, "its request is longer than one may be, or has an empty range");
        return;
    }
    weir_stream_answer_encode((ucx_answer){ false, n_bytes }, caller->head);
    caller->head_bytes = WEIR_STREAM_HEAD_BYTES;
    caller->head_sent = 0;
    caller->n_ranges = n_ranges;
    caller->range = 0;
    caller->offset = 0;
    caller->seen = 0;
}

/* How long what is to come is, as far as what has come tells; 0: it is nonsense. */
static size_t expected_bytes(const ucx_caller *caller, uint32_t *out_n_ranges)
{
    *out_n_ranges = 0;
    if (!caller->welcomed)
        return WEIR_STREAM_HELLO_BYTES;
    if (caller->n_in < WEIR_STREAM_HEAD_BYTES)
        return WEIR_STREAM_HEAD_BYTES;
    if (!weir_stream_request_decode(caller->in, out_n_ranges))
        return 0;
    return WEIR_STREAM_HEAD_BYTES + *out_n_ranges * WEIR_STREAM_RANGE_BYTES;
}

static moved hear(const ucx_stream_server *server, ucx_caller *caller)
{
    uint32_t n_ranges;
    size_t n_bytes;
    while ((n_bytes = expected_bytes(caller, &n_ranges)) > caller->n_in) {
        ssize_t n = recv(caller->fd, caller->in + caller->n_in, n_bytes - caller->n_in, 0);
        if (n <= 0)
            return n < 0 && would_block() ? MOVED_NOTHING : MOVED_AWAY;
        caller->n_in += (size_t)n;
        caller->moved_ns = weir_now_ns();
    }
    if (!caller->welcomed)
        return welcome(server, caller) ? MOVED_ON : MOVED_AWAY;
    if (n_bytes == 0)
        refuse(caller, "it says what is no request");
    else
        begin_answer(caller, n_ranges);
    return MOVED_ON;
}

/* ---- answering -------------------------------------------------------------------------------*/

static size_t gather(const ucx_caller *caller, struct iovec *pieces, uint64_t *out_n_bytes)
{
    size_t n = 0;
    uint64_t offset = caller->offset;
    *out_n_bytes = 0;
    if (caller->head_sent < caller->head_bytes)
        pieces[n++] = (struct iovec){ (void *)(uintptr_t)(caller->head + caller->head_sent),
                                      caller->head_bytes - caller->head_sent };
    for (uint32_t i = caller->range; i < caller->n_ranges && n < SEND_PIECES; i++, offset = 0) {
        const ucx_range range = weir_stream_range_decode(caller->in + WEIR_STREAM_HEAD_BYTES +
                                                         i * WEIR_STREAM_RANGE_BYTES);
        uint64_t n_bytes = range.n_bytes - offset;
        if (n_bytes > SEND_BYTES - *out_n_bytes)
            n_bytes = SEND_BYTES - *out_n_bytes;
        if (n_bytes == 0)
            break;
        pieces[n++] = (struct iovec){ (void *)(uintptr_t)(range.address + offset), n_bytes };
        *out_n_bytes += n_bytes;
    }
    return n;
}

static void has_sent(ucx_caller *caller, uint64_t n_bytes)
{
    uint64_t of_head = caller->head_bytes - caller->head_sent;
    if (of_head > n_bytes)
        of_head = n_bytes;
    caller->head_sent += of_head;
    n_bytes -= of_head;
    while (n_bytes > 0) {
        const ucx_range range = weir_stream_range_decode(caller->in + WEIR_STREAM_HEAD_BYTES +
                                                         caller->range * WEIR_STREAM_RANGE_BYTES);
        uint64_t left = range.n_bytes - caller->offset;
        if (n_bytes < left) {
            caller->offset += n_bytes;
            return;
        }
        n_bytes -= left;
        caller->range++;
        caller->offset = 0;
    }
}

static bool is_answering(const ucx_caller *caller)
{
    return caller->head_sent < caller->head_bytes || caller->range < caller->n_ranges;
}

/* A region that went when a part of the answer had left cannot be refused any more. */
static moved lacks(ucx_caller *caller, const ucx_range *missing)
{
    if (caller->head_sent == 0) {
        refuse_range(caller, missing);
        return MOVED_ON;
    }
    warn(caller, "a region that it reads was released");
    return MOVED_AWAY;
}

static moved answer(ucx_stream_server *server, ucx_caller *caller, uint64_t *turn_bytes)
{
    struct iovec pieces[SEND_PIECES];
    ucx_range missing;
    uint64_t n_bytes;
    bool holds = caller->n_ranges > 0;
    if (holds && !weir_stream_ranges_hold(&server->ranges, caller->in, caller->n_ranges,
                                          &caller->seen, &missing))
        return lacks(caller, &missing);
    struct msghdr message = { .msg_iov = pieces, .msg_iovlen = gather(caller, pieces, &n_bytes) };
    ssize_t n = sendmsg(caller->fd, &message, MSG_NOSIGNAL);
    int code = errno;
    if (holds)
        weir_stream_ranges_let_go(&server->ranges);
    errno = code;
    if (n < 0 && would_block())
        return MOVED_NOTHING;
    if (n < 0 && errno == EFAULT)
        warn(caller, "a region that it reads is not mapped, or no host memory");
    if (n < 0)
        return MOVED_AWAY;
    *turn_bytes += (uint64_t)n;
    caller->moved_ns = weir_now_ns();
    has_sent(caller, (uint64_t)n);
    if (!is_answering(caller) && caller->n_ranges > 0) { /* the next request may come */
        caller->n_ranges = caller->range = 0;
        caller->n_in = 0;
    }
    return MOVED_ON;
}

bool weir_stream_caller_turn(ucx_stream_server *server, ucx_caller *caller)
{
    uint64_t turn_bytes = 0;
    while (turn_bytes < TURN_BYTES) {
        bool answering = is_answering(caller);
        if (!answering && caller->refused)
            return false;
        moved how = answering ? answer(server, caller, &turn_bytes) : hear(server, caller);
        if (how == MOVED_AWAY)
            return false;
        caller->waits = is_answering(caller);
        if (how == MOVED_NOTHING)
            return true;
    }
    return true;
}
