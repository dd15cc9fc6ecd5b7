/* SPDX-License-Identifier: Apache-2.0 */
/* ucx_link.c - the TCP connections between rank 0 of a group and the others: opening them, and
 * whole messages over them. Nothing here waits; what messages mean is ucx_meet.c's matter.
 */
#include <errno.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "transport/ucx_group.h"

#define BACKLOG 128
#define DRAINED 64u /* buffers of one link at a time: who sends for ever is not waited for */

typedef union socket_address {
    struct sockaddr any;
    struct sockaddr_in v4;
    struct sockaddr_in6 v6;
} socket_address;

/* ---- listening -------------------------------------------------------------------------------*/

static int listen_at(const socket_address *at, socklen_t n_bytes)
{
    const int off = 0;
    int fd = socket(at->any.sa_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return -1;
    if (at->any.sa_family == AF_INET6)
        setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof(off));
    if (bind(fd, &at->any, n_bytes) == 0 && listen(fd, BACKLOG) == 0)
        return fd;
    close(fd);
    return -1;
}

weir_status weir_ucx_listen(int *out_fd, uint16_t *out_port)
{
    socket_address at = { .v6 = { .sin6_family = AF_INET6, .sin6_addr = in6addr_any } };
    int fd = listen_at(&at, sizeof(at.v6));
    if (fd < 0) { /* a host without IPv6 */
        at = (socket_address){ .v4 = { .sin_family = AF_INET } };
        fd = listen_at(&at, sizeof(at.v4));
    }
    socklen_t n_bytes = sizeof(at);
    if (fd < 0 || getsockname(fd, &at.any, &n_bytes) != 0) {
        weir_status status = weir_fail_errno("transport ucx: cannot listen for ranks of a group");
        if (fd >= 0)
            close(fd);
        return status;
    }
    *out_fd = fd;
    *out_port = ntohs(at.any.sa_family == AF_INET6 ? at.v6.sin6_port : at.v4.sin_port);
    return WEIR_OK;
}

static void add_address(weir_ucx_group_key *key, uint8_t family, const void *bytes, size_t n_bytes)
{
    if (key->n_addresses == WEIR_UCX_ADDRESSES)
        return;
    weir_ip_address *address = &key->addresses[key->n_addresses++];
    address->family = family;
    memcpy(address->bytes, bytes, n_bytes);
}

/* Link-local addresses mean nothing without an interface, which differs from host to host. */
static void add_interface(weir_ucx_group_key *key, const struct ifaddrs *entry, int family)
{
    if (entry->ifa_addr == NULL || entry->ifa_addr->sa_family != family ||
        (entry->ifa_flags & IFF_UP) == 0 || (entry->ifa_flags & IFF_LOOPBACK) != 0)
        return;
    socket_address at;
    if (family == AF_INET) {
        memcpy(&at.v4, entry->ifa_addr, sizeof(at.v4));
        const uint8_t *bytes = (const uint8_t *)&at.v4.sin_addr;
        if (bytes[0] != 169 || bytes[1] != 254)
            add_address(key, 4, bytes, 4);
        return;
    }
    memcpy(&at.v6, entry->ifa_addr, sizeof(at.v6));
    if (!IN6_IS_ADDR_LINKLOCAL(&at.v6.sin6_addr))
        add_address(key, 6, &at.v6.sin6_addr, 16);
}

void weir_ucx_own_addresses(weir_ucx_group_key *key)
{
    struct ifaddrs *all;
    key->n_addresses = 0;
    if (getifaddrs(&all) != 0)
        return;
    for (const struct ifaddrs *entry = all; entry != NULL; entry = entry->ifa_next)
        add_interface(key, entry, AF_INET);
    for (const struct ifaddrs *entry = all; entry != NULL; entry = entry->ifa_next)
        add_interface(key, entry, AF_INET6);
    freeifaddrs(all);
}

/* ---- connections -----------------------------------------------------------------------------*/

/* The kernel ends an idle connection when the other host has fallen silent. While bytes are on
 * their way it goes on sending them for minutes, and the callers' bounds come first: the time-out
 * of its own for that (TCP_USER_TIMEOUT) would end the connection to a rank that only takes its
 * time, too. */
static void prepare(int fd)
{
    const int on = 1, seconds = 1, probes = 2;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
    setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof(on));
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &seconds, sizeof(seconds));
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &seconds, sizeof(seconds));
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPCNT, &probes, sizeof(probes));
}

int weir_ucx_accept(int listener)
{
    int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (fd >= 0)
        prepare(fd);
    return fd;
}

int weir_ucx_connect_begin(const weir_ip_address *address, uint16_t port)
{
    socket_address to = { .v6 = { .sin6_family = AF_INET6, .sin6_port = htons(port) } };
    socklen_t n_bytes = sizeof(to.v6);
    if (address->family == 4) {
        to = (socket_address){ .v4 = { .sin_family = AF_INET, .sin_port = htons(port) } };
        memcpy(&to.v4.sin_addr, address->bytes, 4);
        n_bytes = sizeof(to.v4);
    } else {
        memcpy(&to.v6.sin6_addr, address->bytes, 16);
    }
    int fd = socket(to.any.sa_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return -1;
    prepare(fd);
    if (connect(fd, &to.any, n_bytes) == 0 || errno == EINPROGRESS)
        return fd;
    close(fd);
    return -1;
}

bool weir_ucx_connect_stands(int fd)
{
    int error = 0;
    socklen_t n_bytes = sizeof(error);
    return getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &n_bytes) == 0 && error == 0;
}

void weir_ucx_link_close(ucx_link *link)
{
    if (link->fd >= 0) {
        shutdown(link->fd, SHUT_RDWR); /* a child of this process may have it too */
        close(link->fd);
    }
    link->fd = -1;
    link->n_in = 0;
}

/* ---- messages --------------------------------------------------------------------------------*/

bool weir_ucx_link_send(const ucx_link *link, const weir_key_buffer *message)
{
    if (link->fd < 0)
        return false;
    ssize_t n;
    do
        n = send(link->fd, message->data, message->n_bytes, MSG_NOSIGNAL);
    while (n < 0 && errno == EINTR);
    return n == (ssize_t)message->n_bytes;
}

ucx_heard weir_ucx_link_hear(ucx_link *link, char *out_kind, size_t *out_n_bytes)
{
    for (;;) {
        if (weir_ucx_message_kind(link->in, link->n_in, out_kind, out_n_bytes) != WEIR_OK ||
            *out_n_bytes > link->room)
            return UCX_HEARD_NONSENSE;
        if (*out_n_bytes > 0 && link->n_in >= *out_n_bytes)
            return UCX_HEARD_MESSAGE;
        ssize_t n = recv(link->fd, link->in + link->n_in, link->room - link->n_in, 0);
        if (n > 0)
            link->n_in += (size_t)n;
        else if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
            return UCX_HEARD_NOTHING;
        else if (n == 0 || errno != EINTR)
            return UCX_HEARD_END;
    }
}

bool weir_ucx_link_has_message(const ucx_link *link)
{
    char kind;
    size_t n_bytes;
    weir_status status = weir_ucx_message_kind(link->in, link->n_in, &kind, &n_bytes);
    return status != WEIR_OK || (n_bytes > 0 && link->n_in >= n_bytes);
}

void weir_ucx_link_heard(ucx_link *link, size_t n_bytes)
{
    memmove(link->in, link->in + n_bytes, link->n_in - n_bytes);
    link->n_in -= n_bytes;
}

bool weir_ucx_link_has_ended(const ucx_link *link)
{
    struct pollfd fd = { .fd = link->fd, .events = POLLRDHUP };
    return link->fd < 0 || poll(&fd, 1, 0) > 0; /* errors and hang-ups come unasked */
}

bool weir_ucx_link_drain(ucx_link *link)
{
    ssize_t n = 1;
    link->n_in = 0;
    for (unsigned i = 0; link->fd >= 0 && n > 0 && i < DRAINED; i++)
        n = recv(link->fd, link->in, link->room, 0);
    if (n == 0 || (n < 0 && errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR))
        weir_ucx_link_close(link);
    return link->fd >= 0;
}
