/* SPDX-License-Identifier: Apache-2.0 */
/* rpc_address.c - getaddrinfo, socket, listen, connect. */
#include "rpc/rpc_address.h"

#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/error.h"

#define QUIET_S 4       /* before a peer is asked for a sign, then until it is lost */
#define PROBE_EVERY_S 1 /* several, where lines lose some */

static bool parse_port(const char *text, unsigned *out)
{
    unsigned port = 0;
    size_t n = strlen(text);
    if (n == 0 || n > 5)
        return false;
    for (size_t i = 0; i < n; i++) {
        if (text[i] < '0' || text[i] > '9')
            return false;
        port = port * 10 + (unsigned)(text[i] - '0');
    }
    *out = port;
    return port <= 65535;
}

weir_status weir_rpc_address_parse(const char *text, weir_rpc_address *out)
{
    const char *colon = text != NULL ? strrchr(text, ':') : NULL;
    if (colon == NULL)
        return weir_fail(WEIR_ERR_INVALID, "address '%s' is not HOST:PORT", text ? text : "");
    const char *host = text;
    size_t n_host = (size_t)(colon - text);
    if (n_host >= 2 && host[0] == '[' && host[n_host - 1] == ']') {
        host++;
        n_host -= 2;
    } else if (memchr(host, ':', n_host) != NULL) {
        return weir_fail(WEIR_ERR_INVALID, "address '%s' needs brackets: [HOST]:PORT", text);
    }
    weir_rpc_address address = { .port = 0 };
    if (n_host == 0 || n_host >= sizeof(address.host))
        return weir_fail(WEIR_ERR_INVALID, "address '%s' is not HOST:PORT", text);
    memcpy(address.host, host, n_host);
    if (!parse_port(colon + 1, &address.port))
        return weir_fail(WEIR_ERR_INVALID, "address '%s' has no port from 0 to 65535", text);
    *out = address;
    return WEIR_OK;
}

void weir_rpc_address_format(const weir_rpc_address *address, char out[WEIR_RPC_ADDRESS_TEXT])
{
    bool is_v6 = strchr(address->host, ':') != NULL;
    snprintf(out, WEIR_RPC_ADDRESS_TEXT, is_v6 ? "[%s]:%u" : "%s:%u", address->host, address->port);
}

void weir_rpc_socket_prepare(int fd)
{
    int on = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
    setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof(on));
}

/* Done by the kernel: a user's ping would wake both sides for each of ten thousand calls that wait,
 * and would take a process that stands still for one that is gone. */
void weir_rpc_socket_watch_peer(int fd)
{
    const int options[][2] = { { TCP_KEEPIDLE, QUIET_S },
                               { TCP_KEEPINTVL, PROBE_EVERY_S },
                               { TCP_KEEPCNT, (WEIR_RPC_LOST_S - QUIET_S) / PROBE_EVERY_S } };
    for (size_t i = 0; i < sizeof(options) / sizeof(options[0]); i++)
        setsockopt(fd, IPPROTO_TCP, options[i][0], &options[i][1], sizeof(int));
}

void weir_rpc_socket_expect_acks(int fd, bool expects)
{
    unsigned ms = expects ? WEIR_RPC_LOST_S * 1000 : 0;
    setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &ms, sizeof(ms));
}

/* Gives a list to free with freeaddrinfo, or NULL with *out_error set. */
static struct addrinfo *look_up(const weir_rpc_address *address, int flags, const char **out_error)
{
    char port[8];
    snprintf(port, sizeof(port), "%u", address->port);
    struct addrinfo hints = { .ai_family = AF_UNSPEC,
                              .ai_socktype = SOCK_STREAM,
                              .ai_flags = flags | AI_NUMERICSERV };
    struct addrinfo *list = NULL;
    int code = getaddrinfo(address->host, port, &hints, &list);
    if (code == 0)
        return list;
    *out_error = code == EAI_SYSTEM ? strerror(errno) : gai_strerror(code);
    return NULL;
}

static int open_socket(const struct addrinfo *info)
{
    return socket(info->ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, info->ai_protocol);
}

/* ---- listening -------------------------------------------------------------------------------*/

static int listen_on(const struct addrinfo *info)
{
    int fd = open_socket(info);
    if (fd < 0)
        return -1;
    int on = 1;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
    if (bind(fd, info->ai_addr, info->ai_addrlen) == 0 && listen(fd, SOMAXCONN) == 0)
        return fd;
    int code = errno;
    close(fd);
    errno = code;
    return -1;
}

static unsigned port_of(int fd)
{
    struct sockaddr_storage storage = { 0 };
    socklen_t n = sizeof(storage);
    getsockname(fd, (struct sockaddr *)&storage, &n);
    if (storage.ss_family == AF_INET6)
        return ntohs(((struct sockaddr_in6 *)&storage)->sin6_port);
    return ntohs(((struct sockaddr_in *)&storage)->sin_port);
}

weir_status weir_rpc_listen(weir_rpc_address *address, int *out_fd)
{
    const char *error = NULL;
    struct addrinfo *list = look_up(address, AI_PASSIVE, &error);
    int fd = -1;
    for (struct addrinfo *info = list; info != NULL && fd < 0; info = info->ai_next) {
        fd = listen_on(info);
        if (fd < 0)
            error = strerror(errno);
    }
    if (list != NULL)
        freeaddrinfo(list);
    if (fd < 0) {
        char text[WEIR_RPC_ADDRESS_TEXT];
        weir_rpc_address_format(address, text);
        return weir_fail(WEIR_ERR_IO, "cannot listen on %s: %s", text,
                         error ? error : "no address");
    }
    address->port = port_of(fd);
    *out_fd = fd;
    return WEIR_OK;
}

/* ---- connecting ------------------------------------------------------------------------------*/

static weir_status wait_until_connected(int fd, weir_deadline deadline, int cancel_fd)
{
    struct pollfd fds[2] = { { .fd = fd, .events = POLLOUT },
                             { .fd = cancel_fd, .events = POLLIN } };
    for (;;) {
        unsigned left_ms = weir_deadline_left_ms(deadline);
        int n = poll(fds, 2, left_ms > INT32_MAX ? INT32_MAX : (int)left_ms);
        if (n < 0 && errno != EINTR)
            return weir_fail(WEIR_ERR_IO, "poll: %s", strerror(errno));
        if (n > 0 && fds[1].revents != 0)
            return weir_fail(WEIR_ERR_CANCELLED, "cancelled");
        if (n > 0)
            break;
        if (weir_deadline_passed(deadline))
            return weir_fail(WEIR_ERR_TIMED_OUT, "no connection in time");
    }
    int code = 0;
    socklen_t n_code = sizeof(code);
    if (getsockopt(fd, SOL_SOCKET, SO_ERROR, &code, &n_code) != 0)
        code = errno;
    if (code != 0)
        return weir_fail(WEIR_ERR_PEER_LOST, "cannot connect: %s", strerror(code));
    return WEIR_OK;
}

static weir_status connect_to(const struct addrinfo *info, weir_deadline deadline, int cancel_fd,
                              int *out_fd)
{
    int fd = open_socket(info);
    if (fd < 0)
        return weir_fail(WEIR_ERR_IO, "cannot open a socket: %s", strerror(errno));
    weir_status status = WEIR_OK;
    if (connect(fd, info->ai_addr, info->ai_addrlen) != 0) {
        if (errno == EINPROGRESS)
            status = wait_until_connected(fd, deadline, cancel_fd);
        else
            status = weir_fail(WEIR_ERR_PEER_LOST, "cannot connect: %s", strerror(errno));
    }
    if (status != WEIR_OK) {
        close(fd);
        return status;
    }
    weir_rpc_socket_prepare(fd);
    *out_fd = fd;
    return WEIR_OK;
}

/* A host's addresses, and what was wrong with those that were tried. */
typedef struct host_list {
    struct addrinfo *first;
    unsigned n;
    char said[WEIR_ERROR_TEXT / 2];
    size_t n_said;
} host_list;

static void note_failure(host_list *hosts, const struct addrinfo *info)
{
    char name[64] = "?";
    size_t room = sizeof(hosts->said) - hosts->n_said;
    getnameinfo(info->ai_addr, info->ai_addrlen, name, sizeof(name), NULL, 0, NI_NUMERICHOST);
    int n = snprintf(hosts->said + hosts->n_said, room, "%s%s: %.160s",
                     hosts->n_said != 0 ? "; " : "", name, weir_last_error());
    hosts->n_said += (size_t)n < room ? (size_t)n : room - 1;
}

static const struct addrinfo *host_at(const host_list *hosts, unsigned index)
{
    const struct addrinfo *info = hosts->first;
    for (index %= hosts->n; index > 0; index--)
        info = info->ai_next;
    return info;
}

/* Who is silent must not use up the time of those that come after. */
static weir_status connect_in_turn(host_list *hosts, weir_rpc_pick *pick, weir_deadline deadline,
                                   int cancel_fd, int *out_fd)
{
    weir_status status = WEIR_ERR_PEER_LOST;
    for (unsigned i = 0; i < hosts->n; i++) {
        unsigned n_left = hosts->n - i;
        weir_deadline share =
            n_left == 1 ? deadline : weir_deadline_in(weir_deadline_left_ms(deadline) / n_left);
        const struct addrinfo *info = host_at(hosts, pick->index + i);
        status = connect_to(info, share, cancel_fd, out_fd);
        if (status == WEIR_OK)
            pick->index = (pick->index + i) % hosts->n;
        if (status != WEIR_ERR_PEER_LOST && status != WEIR_ERR_TIMED_OUT)
            return status;
        if (hosts->n > 1)
            note_failure(hosts, info);
        if (weir_deadline_passed(deadline))
            break;
    }
    return hosts->n > 1 ? weir_fail(status, "%s", hosts->said) : status;
}

weir_status weir_rpc_connect_from(const weir_rpc_address *address, weir_rpc_pick *pick,
                                  weir_deadline deadline, int cancel_fd, int *out_fd)
{
    const char *error = NULL;
    host_list hosts = { .first = look_up(address, 0, &error) };
    if (hosts.first == NULL)
        return weir_fail(WEIR_ERR_PEER_LOST, "cannot find host '%s': %s", address->host, error);
    for (const struct addrinfo *info = hosts.first; info != NULL; info = info->ai_next)
        hosts.n++;
    pick->n = hosts.n;
    weir_status status = connect_in_turn(&hosts, pick, deadline, cancel_fd, out_fd);
    freeaddrinfo(hosts.first);
    return status;
}

weir_status weir_rpc_connect(const weir_rpc_address *address, weir_deadline deadline, int cancel_fd,
                             int *out_fd)
{
    weir_rpc_pick pick = { 0, 0 };
    return weir_rpc_connect_from(address, &pick, deadline, cancel_fd, out_fd);
}
