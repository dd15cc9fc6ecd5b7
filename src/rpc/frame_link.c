/* SPDX-License-Identifier: Apache-2.0 */
/* frame_link.c - a link's life: connecting, waiting for several, saying goodbye.
 *
 * What goes over it is frame_send.c's and frame_receive.c's, who connects to us frame_listener.c's.
 */
#include "rpc/frame_link.h"

#include <errno.h>
#include <limits.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <linux/sockios.h>

#include "base/alloc.h"
#include "rpc/frame_link_core.h"
#include "rpc/rpc_address.h"
#include "rpc/rpc_security.h"

#define FIRST_CAPACITY_BYTES ((size_t)64 << 10)
#define GOODBYE_MS 200u /* for bytes on their way when a link is closed */
/* A machine that vanished is noticed after KEEP_IDLE_S + KEEP_PROBES * KEEP_INTERVAL_S. */
#define KEEP_IDLE_S 5
#define KEEP_INTERVAL_S 2
#define KEEP_PROBES 4

/* ---- ends ------------------------------------------------------------------------------------*/

weir_status weir_frame_end_with(weir_frame_end *end, weir_status status)
{
    end->status = status;
    weir_error_save(&end->line);
    return status;
}

weir_status weir_frame_end_repeat(const weir_frame_end *end)
{
    weir_error_restore(&end->line);
    return end->status;
}

weir_status weir_frame_end_both(weir_frame_link *link, weir_status status)
{
    if (link->sending.status == WEIR_OK)
        weir_frame_end_with(&link->sending, status);
    return weir_frame_end_with(&link->receiving, status);
}

static int poll_ms(weir_deadline deadline)
{
    unsigned left_ms = weir_deadline_left_ms(deadline);
    return left_ms > INT_MAX ? INT_MAX : (int)left_ms;
}

bool weir_frame_poll(int fd, short events, weir_deadline deadline)
{
    struct pollfd one = { .fd = fd, .events = events };
    do {
        if (poll(&one, 1, poll_ms(deadline)) > 0)
            return true;
    } while (!weir_deadline_passed(deadline));
    return false;
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

weir_status weir_frame_link_open(int fd, const char *who, weir_frame_link **out)
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

/* The first step of the handshake: the other side may look at it later. */
static weir_status greet(weir_frame_link *link)
{
    weir_status status = weir_tls_handshake(link->tls);
    return status == WEIR_IN_PROGRESS ? WEIR_OK : status;
}

/* As its file has it at this moment. */
static weir_status show_token(weir_frame_link *link, const weir_rpc_security *security,
                              weir_deadline deadline)
{
    weir_security_kept kept;
    weir_status status = weir_security_copy(security, &kept);
    if (status == WEIR_OK)
        status = weir_frame_send(link, WEIR_FRAME_TOKEN, kept.security.token,
                                 strlen(kept.security.token), weir_deadline_left_ms(deadline));
    weir_security_free(&kept);
    return status;
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
    return show_token(link, security, deadline);
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
        status = weir_frame_link_open(fd, who, &link);
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

/* ---- waiting ---------------------------------------------------------------------------------*/

/* Whether the next receive has something to say without a byte more: a whole frame, or an error. */
static bool has_word(const weir_frame_link *link)
{
    if (link->receiving.status != WEIR_OK || (link->tls != NULL && weir_tls_has_bytes(link->tls)))
        return true;
    size_t begin = link->begin + link->handed_bytes;
    if (link->end - begin < WEIR_FRAME_HEADER_BYTES)
        return false;
    uint64_t n_bytes = weir_frame_claimed_bytes(link->data + begin);
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
        watched[n_watched++] =
            (struct pollfd){ .fd = weir_frame_listener_fd(listener), .events = POLLIN };
    int n = poll(watched, n_watched, wait_ms > INT_MAX ? INT_MAX : (int)wait_ms);
    if (n < 0 && errno != EINTR)
        return weir_fail(WEIR_ERR_IO, "cannot wait for %zu links: %s", n_links, strerror(errno));
    return WEIR_OK;
}
