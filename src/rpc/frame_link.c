/* SPDX-License-Identifier: Apache-2.0 */
/* frame_link.c - frames over a non-blocking socket and poll, into one buffer per link that stays.
 *
 * The buffer grows as bytes come, never because a header says so: a peer that claims 64 MiB has to
 * send them. Receiving and sending end apart: after a failed send, what the peer said before it
 * went (why it gave up, say) can still be received.
 */
#include "rpc/frame_link.h"

#include <errno.h>
#include <limits.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include <linux/sockios.h>

#include "base/alloc.h"
#include "base/error.h"
#include "rpc/rpc_address.h"
#include "rpc/rpc_security.h"
#include "rpc/rpc_tls.h"

#define FIRST_CAPACITY_BYTES ((size_t)64 << 10)
#define WHO_BYTES 256
#define TOKEN_MS 5000u     /* for a token, from the connection on */
#define EARLY_BYTES 65536u /* of frames, until the handshake is done */
#define SMALL_BYTES 4096u  /* header and payload leave in one TLS record */
#define GOODBYE_MS 200u    /* for bytes on their way when a link is closed */
/* A machine that vanished is noticed after KEEP_IDLE_S + KEEP_PROBES * KEEP_INTERVAL_S. */
#define KEEP_IDLE_S 5
#define KEEP_INTERVAL_S 2
#define KEEP_PROBES 4

static const unsigned char magic[4] = { 'W', 'F', 'L', '1' };

/* Why one direction is over: the status, OK while it is not, and its line. */
typedef struct link_end {
    weir_status status;
    weir_error_line line;
} link_end;

struct weir_frame_listener {
    int fd;
    weir_security_kept kept;
    weir_tls_context *tls; /* NULL: plain text */
    char address[WEIR_RPC_ADDRESS_TEXT];
};

struct weir_frame_link {
    int fd;
    char who[WHO_BYTES];
    weir_tls_context *own_tls; /* of a link that connected */
    weir_tls_session *tls;     /* NULL: plain text */
    unsigned char *early;      /* frames that wait for the end of the handshake; NULL: none */
    size_t n_early;
    bool has_connected; /* the other side listens */
    const char *asked;  /* the listener's token, until the peer has shown it */
    weir_deadline asked_until;
    link_end sending, receiving;
    unsigned char *data; /* received and not yet dropped: [begin, end) */
    size_t capacity_bytes, begin, end;
    size_t handed_bytes; /* of these the frame that the caller still looks at */
    uint64_t active_ns;  /* when bytes last came */
    unsigned stall_ms;
};

/* ---- the format ------------------------------------------------------------------------------*/

static uint64_t little_endian(const unsigned char *bytes, unsigned n)
{
    uint64_t value = 0;
    for (unsigned i = 0; i < n; i++)
        value |= (uint64_t)bytes[i] << (8 * i);
    return value;
}

static void put_header(unsigned char header[WEIR_FRAME_HEADER_BYTES], uint16_t type, size_t n_bytes)
{
    memset(header, 0, WEIR_FRAME_HEADER_BYTES);
    memcpy(header, magic, sizeof(magic));
    for (unsigned i = 0; i < 2; i++)
        header[4 + i] = (unsigned char)(type >> (8 * i));
    for (unsigned i = 0; i < 8; i++)
        header[8 + i] = (unsigned char)((uint64_t)n_bytes >> (8 * i));
}

weir_status weir_frame_parse(const void *bytes, size_t n_bytes, weir_frame *out,
                             size_t *out_n_bytes)
{
    const unsigned char *at = bytes;
    size_t n_magic = n_bytes < sizeof(magic) ? n_bytes : sizeof(magic);
    if (n_magic != 0 && memcmp(at, magic, n_magic) != 0)
        return weir_fail(WEIR_ERR_CORRUPT, "a frame begins with 0x%02x.., not with WFL1", at[0]);
    *out_n_bytes = WEIR_FRAME_HEADER_BYTES;
    if (n_bytes < WEIR_FRAME_HEADER_BYTES)
        return WEIR_IN_PROGRESS;
    uint16_t type = (uint16_t)little_endian(at + 4, 2);
    uint16_t zero = (uint16_t)little_endian(at + 6, 2);
    uint64_t payload_bytes = little_endian(at + 8, 8);
    if (zero != 0)
        return weir_fail(WEIR_ERR_CORRUPT, "a frame of type %u has 0x%04x where 0 must be", type,
                         zero);
    if (payload_bytes > WEIR_FRAME_MAX_BYTES)
        return weir_fail(WEIR_ERR_CORRUPT,
                         "a frame of type %u claims %llu bytes, %zu are as many as there may be",
                         type, (unsigned long long)payload_bytes, WEIR_FRAME_MAX_BYTES);
    *out_n_bytes = WEIR_FRAME_HEADER_BYTES + (size_t)payload_bytes;
    if (n_bytes < *out_n_bytes)
        return WEIR_IN_PROGRESS;
    *out = (weir_frame){ type, at + WEIR_FRAME_HEADER_BYTES, (size_t)payload_bytes };
    return WEIR_OK;
}

/* ---- ends ------------------------------------------------------------------------------------*/

/* Records that a direction is over, with the line that was just set. */
static weir_status end_with(link_end *end, weir_status status)
{
    end->status = status;
    weir_error_save(&end->line);
    return status;
}

static weir_status repeat(const link_end *end)
{
    weir_error_restore(&end->line);
    return end->status;
}

/* Nothing more comes: whom nobody reads from need not be written to either. */
static weir_status end_both(weir_frame_link *link, weir_status status)
{
    if (link->sending.status == WEIR_OK)
        end_with(&link->sending, status);
    return end_with(&link->receiving, status);
}

static int poll_ms(weir_deadline deadline)
{
    unsigned left_ms = weir_deadline_left_ms(deadline);
    return left_ms > INT_MAX ? INT_MAX : (int)left_ms;
}

/* False when the deadline came first. */
static bool poll_one(int fd, short events, weir_deadline deadline)
{
    struct pollfd one = { .fd = fd, .events = events };
    do {
        if (poll(&one, 1, poll_ms(deadline)) > 0)
            return true;
    } while (!weir_deadline_passed(deadline));
    return false;
}

/* ---- listening -------------------------------------------------------------------------------*/

/* Peers cannot connect to a wildcard: they are told this machine's name, if it is known as one. */
static void name_wildcard(weir_rpc_address *address)
{
    if (strcmp(address->host, "0.0.0.0") != 0 && strcmp(address->host, "::") != 0)
        return;
    char host[WEIR_RPC_HOST_BYTES] = "";
    struct addrinfo hints = { .ai_socktype = SOCK_STREAM }, *list = NULL;
    if (gethostname(host, sizeof(host) - 1) != 0 || host[0] == '\0' ||
        getaddrinfo(host, NULL, &hints, &list) != 0)
        return;
    freeaddrinfo(list);
    memcpy(address->host, host, sizeof(host));
}

static weir_status secure_listener(weir_frame_listener *listener, const weir_rpc_address *address,
                                   const weir_rpc_security *security)
{
    if (security == NULL)
        return WEIR_OK;
    weir_status status = weir_security_copy(security, &listener->kept);
    if (status == WEIR_OK)
        status = weir_security_check_listen(&listener->kept.security, address);
    if (status == WEIR_OK)
        status = weir_tls_context_open(&listener->kept.security, WEIR_RPC_SERVER_SIDE,
                                       WEIR_TLS_FRAMES, &listener->tls);
    return status;
}

weir_status weir_frame_listener_open(const char *host, const weir_rpc_security *security,
                                     weir_frame_listener **out)
{
    weir_rpc_address address = { .port = 0 };
    size_t n_host = strlen(host);
    if (n_host == 0 || n_host >= sizeof(address.host))
        return weir_fail(WEIR_ERR_INVALID, "cannot listen on '%.64s': not a host", host);
    memcpy(address.host, host, n_host);
    weir_frame_listener *listener = weir_alloc_zeroed(1, sizeof(*listener));
    if (listener == NULL)
        return WEIR_ERR_NO_MEMORY;
    listener->fd = -1;
    weir_status status = secure_listener(listener, &address, security);
    if (status == WEIR_OK)
        status = weir_rpc_listen(&address, &listener->fd);
    if (status != WEIR_OK) {
        weir_frame_listener_close(listener);
        return status;
    }
    name_wildcard(&address);
    weir_rpc_address_format(&address, listener->address);
    *out = listener;
    return WEIR_OK;
}

void weir_frame_listener_close(weir_frame_listener *listener)
{
    if (listener == NULL)
        return;
    if (listener->fd >= 0)
        close(listener->fd);
    weir_tls_context_close(listener->tls);
    weir_security_free(&listener->kept);
    weir_free(listener);
}

const char *weir_frame_listener_address(const weir_frame_listener *listener)
{
    return listener->address;
}

/* ---- opening and closing links ---------------------------------------------------------------*/

/* The kernel's default is two hours. Nothing here ends a peer that lives but does not read. */
static void keep_alive(int fd)
{
    const int values[][2] = { { TCP_KEEPIDLE, KEEP_IDLE_S },
                              { TCP_KEEPINTVL, KEEP_INTERVAL_S },
                              { TCP_KEEPCNT, KEEP_PROBES } };
    for (size_t i = 0; i < sizeof(values) / sizeof(values[0]); i++)
        setsockopt(fd, IPPROTO_TCP, values[i][0], &values[i][1], sizeof(values[i][1]));
}

/* Takes fd, in failure too. */
static weir_status open_link(int fd, const char *who, weir_frame_link **out)
{
    weir_frame_link *link = weir_alloc_zeroed(1, sizeof(*link));
    unsigned char *data = link != NULL ? weir_alloc(FIRST_CAPACITY_BYTES) : NULL;
    if (data == NULL) {
        weir_free(link);
        close(fd);
        return WEIR_ERR_NO_MEMORY;
    }
    link->fd = fd;
    link->data = data;
    link->capacity_bytes = FIRST_CAPACITY_BYTES;
    link->stall_ms = WEIR_FRAME_STALL_MS;
    weir_frame_link_rename(link, who);
    keep_alive(fd);
    *out = link;
    return WEIR_OK;
}

/* What the listener asks of a link; the handshake goes on as bytes come. */
static weir_status accept_link(weir_frame_listener *listener, int fd, const char *who,
                               weir_frame_link **out)
{
    weir_frame_link *link;
    weir_status status = open_link(fd, who, &link);
    if (status != WEIR_OK)
        return status;
    link->asked = listener->kept.security.token;
    link->asked_until = weir_deadline_in(TOKEN_MS);
    if (listener->tls != NULL)
        status = weir_tls_session_open(listener->tls, fd, NULL, &link->tls);
    if (status != WEIR_OK) {
        weir_frame_link_close(link);
        return status;
    }
    *out = link;
    return WEIR_OK;
}

weir_status weir_frame_listener_accept(weir_frame_listener *listener, weir_frame_link **out)
{
    struct sockaddr_storage peer;
    socklen_t n_peer = sizeof(peer);
    int fd = accept4(listener->fd, (struct sockaddr *)&peer, &n_peer, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (fd < 0) {
        if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM)
            return weir_fail(WEIR_ERR_IO, "%s: cannot accept: %s", listener->address,
                             strerror(errno));
        return WEIR_IN_PROGRESS; /* nobody waits, or who waited is gone */
    }
    weir_rpc_socket_prepare(fd);
    weir_rpc_address address = { .port = 0 };
    char port[8] = "0", who[WEIR_RPC_ADDRESS_TEXT];
    if (getnameinfo((struct sockaddr *)&peer, n_peer, address.host, sizeof(address.host), port,
                    sizeof(port), NI_NUMERICHOST | NI_NUMERICSERV) != 0)
        return accept_link(listener, fd, "a peer", out);
    snprintf(who, sizeof(who), "%s port %s", address.host, port);
    return accept_link(listener, fd, who, out);
}

/* The first step of the handshake: the other side may look at it later. */
static weir_status greet(weir_frame_link *link)
{
    weir_status status = weir_tls_handshake(link->tls);
    return status == WEIR_IN_PROGRESS ? WEIR_OK : status;
}

/* TLS, and the token within it; errors without the peer's name. */
static weir_status secure_link(weir_frame_link *link, const weir_rpc_address *address,
                               const weir_rpc_security *security, weir_deadline deadline)
{
    weir_status status = weir_security_check_call(security, address);
    if (status == WEIR_OK)
        status =
            weir_tls_context_open(security, WEIR_RPC_CLIENT_SIDE, WEIR_TLS_FRAMES, &link->own_tls);
    if (status == WEIR_OK && link->own_tls != NULL)
        status = weir_tls_session_open(link->own_tls, link->fd, address->host, &link->tls);
    if (status == WEIR_OK && link->tls != NULL) {
        weir_tls_allow(link->tls, weir_deadline_left_ms(deadline));
        status = greet(link);
    }
    if (status != WEIR_OK || security->token == NULL)
        return status;
    return weir_frame_send(link, WEIR_FRAME_TOKEN, security->token, strlen(security->token),
                           weir_deadline_left_ms(deadline));
}

weir_status weir_frame_connect(const char *address, const char *who,
                               const weir_rpc_security *security, unsigned timeout_ms,
                               weir_frame_link **out)
{
    static const weir_rpc_security none = { .insecure = false };
    weir_rpc_address parsed;
    weir_frame_link *link = NULL;
    int fd = -1;
    weir_deadline deadline = weir_deadline_in(timeout_ms);
    weir_status status = weir_rpc_address_parse(address, &parsed);
    if (status == WEIR_OK)
        status = weir_rpc_connect(&parsed, deadline, -1, &fd);
    if (status == WEIR_OK)
        status = open_link(fd, who, &link);
    if (status == WEIR_OK) {
        link->has_connected = true;
        status = secure_link(link, &parsed, security != NULL ? security : &none, deadline);
    }
    if (status != WEIR_OK) {
        weir_error_line why;
        weir_error_save(&why);
        weir_frame_link_close(link);
        weir_error_restore(&why);
        weir_error_prefix("%s at %s", who, address != NULL ? address : "no address");
        return status;
    }
    *out = link;
    return WEIR_OK;
}

/* Closing a socket with unread bytes resets the connection, and what was sent may be lost with it:
 * first the peer is told that nothing more comes, and its bytes are thrown away until it has all of
 * ours. */
static void say_goodbye(int fd)
{
    unsigned char sink[4096];
    int n_unsent = 0;
    shutdown(fd, SHUT_WR);
    weir_deadline deadline = weir_deadline_in(GOODBYE_MS);
    for (;;) {
        ssize_t n;
        do {
            n = recv(fd, sink, sizeof(sink), MSG_DONTWAIT);
        } while (n > 0 && !weir_deadline_passed(deadline));
        bool is_over = n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR);
        if (is_over || ioctl(fd, SIOCOUTQ, &n_unsent) != 0 || n_unsent == 0 ||
            weir_deadline_passed(deadline))
            return;
        struct pollfd one = { .fd = fd, .events = POLLIN };
        poll(&one, 1, 1); /* what the peer takes wakes nobody */
    }
}

void weir_frame_link_close(weir_frame_link *link)
{
    if (link == NULL)
        return;
    weir_tls_session_close(link->tls);
    if (link->sending.status == WEIR_OK)
        say_goodbye(link->fd);
    close(link->fd);
    weir_tls_context_close(link->own_tls);
    weir_free(link->early);
    weir_free(link->data);
    weir_free(link);
}

void weir_frame_link_rename(weir_frame_link *link, const char *who)
{
    snprintf(link->who, sizeof(link->who), "%s", who);
    weir_error_one_line(link->who);
}

const char *weir_frame_link_who(const weir_frame_link *link)
{
    return link->who;
}

void weir_frame_link_set_stall(weir_frame_link *link, unsigned stall_ms)
{
    link->stall_ms = stall_ms;
}

/* ---- sending ---------------------------------------------------------------------------------*/

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
    return end_with(&link->sending, WEIR_ERR_TIMED_OUT);
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

/* The frames that waited, once the handshake is done. IN_PROGRESS: the socket takes no more. */
static weir_status send_early(weir_frame_link *link)
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
        status = send_early(link);
    return status == WEIR_OK ? send_encrypted(link, parts, out_n) : status;
}

weir_status weir_frame_send(weir_frame_link *link, uint16_t type, const void *payload,
                            size_t n_bytes, unsigned timeout_ms)
{
    if (link->sending.status != WEIR_OK)
        return repeat(&link->sending);
    if (n_bytes > WEIR_FRAME_MAX_BYTES)
        return weir_fail(WEIR_ERR_INVALID,
                         "%s: a frame of %zu bytes to send, %zu are as many as there may be",
                         link->who, n_bytes, WEIR_FRAME_MAX_BYTES);
    unsigned char header[WEIR_FRAME_HEADER_BYTES];
    put_header(header, type, n_bytes);
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
            return end_with(&link->sending, status);
        } else if (!poll_one(link->fd, awaited(link), deadline)) {
            return cut_off(link, type, n_sent, n_frame, timeout_ms);
        }
    }
    return WEIR_OK;
}

/* ---- receiving -------------------------------------------------------------------------------*/

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
    return end_both(link, WEIR_ERR_PEER_LOST);
}

static weir_status read_encrypted(weir_frame_link *link)
{
    size_t n = 0;
    weir_status status =
        weir_tls_receive(link->tls, link->data + link->end, link->capacity_bytes - link->end, &n);
    weir_status sent = status == WEIR_OK || status == WEIR_IN_PROGRESS ? send_early(link) : WEIR_OK;
    if (status == WEIR_IN_PROGRESS && (sent == WEIR_OK || sent == WEIR_IN_PROGRESS))
        return status;
    if (status == WEIR_IN_PROGRESS)
        status = sent;
    if (status != WEIR_OK) {
        weir_error_prefix("%s", link->who);
        return end_both(link, status);
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
        return end_both(link, WEIR_ERR_TIMED_OUT);
    }
    if (weir_deadline_passed(deadline))
        return WEIR_IN_PROGRESS;
    if (n_half != 0 && stalled < deadline)
        deadline = stalled;
    poll_one(link->fd, POLLIN, deadline);
    return WEIR_OK;
}

/* Of who has not shown the token yet: no more is taken in than one could have. */
static weir_status check_stranger(weir_frame_link *link, size_t n_frame)
{
    if (link->asked == NULL)
        return WEIR_OK;
    if (n_frame > WEIR_FRAME_HEADER_BYTES + WEIR_TOKEN_BYTES) {
        weir_fail(WEIR_ERR_REFUSED, "%s: shows no token", link->who);
        return end_both(link, WEIR_ERR_REFUSED);
    }
    if (!weir_deadline_passed(link->asked_until))
        return WEIR_OK;
    weir_fail(WEIR_ERR_TIMED_OUT, "%s: has shown no token for %u ms", link->who, TOKEN_MS);
    return end_both(link, WEIR_ERR_TIMED_OUT);
}

/* A whole frame has come. IN_PROGRESS: it was the token, which is right or not asked for. */
static weir_status look_at_frame(weir_frame_link *link, const weir_frame *frame, size_t n_frame)
{
    bool is_token = frame->type == WEIR_FRAME_TOKEN;
    link->handed_bytes = n_frame;
    if (link->asked != NULL &&
        !(is_token && weir_token_is(link->asked, frame->payload, frame->n_bytes))) {
        weir_frame_send(link, WEIR_FRAME_TOKEN, NULL, 0, 0); /* says why */
        weir_fail(WEIR_ERR_REFUSED, "%s: shows no token, or another", link->who);
        return end_both(link, WEIR_ERR_REFUSED);
    }
    link->asked = NULL;
    if (!is_token)
        return WEIR_OK;
    if (link->has_connected) {
        weir_fail(WEIR_ERR_REFUSED, "%s: asks for a token, or another one", link->who);
        return end_both(link, WEIR_ERR_REFUSED);
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
    return end_both(link, status);
}

weir_status weir_frame_receive(weir_frame_link *link, unsigned wait_ms, weir_frame *out)
{
    if (link->receiving.status != WEIR_OK)
        return repeat(&link->receiving);
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

/* ---- waiting ---------------------------------------------------------------------------------*/

/* Whether the next receive has something to say without a byte more: a whole frame, or an error. */
static bool has_word(const weir_frame_link *link)
{
    if (link->receiving.status != WEIR_OK || (link->tls != NULL && weir_tls_has_bytes(link->tls)))
        return true;
    size_t begin = link->begin + link->handed_bytes;
    if (link->end - begin < WEIR_FRAME_HEADER_BYTES)
        return false;
    uint64_t n_bytes = little_endian(link->data + begin + 8, 8);
    return n_bytes <= link->end - begin - WEIR_FRAME_HEADER_BYTES || n_bytes > WEIR_FRAME_MAX_BYTES;
}

weir_status weir_frame_wait(weir_frame_listener *listener, weir_frame_link *const *links,
                            size_t n_links, unsigned wait_ms)
{
    struct pollfd watched[WEIR_FRAME_MAX_LINKS + 1];
    nfds_t n_watched = 0;
    if (n_links > WEIR_FRAME_MAX_LINKS)
        return weir_fail(WEIR_ERR_INVALID, "%zu links to wait for, %u are as many as there may be",
                         n_links, WEIR_FRAME_MAX_LINKS);
    for (size_t i = 0; i < n_links; i++) {
        if (links[i] == NULL)
            continue;
        if (has_word(links[i]))
            return WEIR_OK;
        bool wants_write = links[i]->tls != NULL && weir_tls_wants_write(links[i]->tls);
        watched[n_watched++] =
            (struct pollfd){ .fd = links[i]->fd,
                             .events = (short)(POLLIN | (wants_write ? POLLOUT : 0)) };
    }
    if (listener != NULL)
        watched[n_watched++] = (struct pollfd){ .fd = listener->fd, .events = POLLIN };
    int n = poll(watched, n_watched, wait_ms > INT_MAX ? INT_MAX : (int)wait_ms);
    if (n < 0 && errno != EINTR)
        return weir_fail(WEIR_ERR_IO, "cannot wait for %zu links: %s", n_links, strerror(errno));
    return WEIR_OK;
}
