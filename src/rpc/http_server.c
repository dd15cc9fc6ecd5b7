/* SPDX-License-Identifier: Apache-2.0 */
/* http_server.c - libmicrohttpd without a thread: its epoll descriptor and a timer are watched by
 * the rpc server's thread, which lets it run a turn whenever one of them has something.
 *
 * libmicrohttpd's own timeout starts anew with every byte. Here each connection has a time by which
 * its request must be there whole, or its answer read. */
#include "rpc/http_server.h"

#include <errno.h>
#include <netdb.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/error.h"
#include "base/log.h"
#include "rpc/http_core.h"

#define NS_PER_MS 1000000ull
#define NS_PER_S 1000000000ull
#define CHECK_MS 1000u

/* ---- connections -----------------------------------------------------------------------------*/

static void name_peer(weir_http_link *link, const struct sockaddr *address)
{
    char host[NI_MAXHOST], port[NI_MAXSERV];
    socklen_t n_address =
        address->sa_family == AF_INET6 ? sizeof(struct sockaddr_in6) : sizeof(struct sockaddr_in);
    if (getnameinfo(address, n_address, host, sizeof(host), port, sizeof(port),
                    NI_NUMERICHOST | NI_NUMERICSERV) == 0)
        snprintf(link->peer, sizeof(link->peer), strchr(host, ':') != NULL ? "[%.45s]:%s" : "%s:%s",
                 host, port);
}

static void add_link(weir_http_server *http, struct MHD_Connection *connection,
                     void **socket_context)
{
    weir_http_link *link = weir_alloc_zeroed(1, sizeof(*link));
    const union MHD_ConnectionInfo *socket_info =
        MHD_get_connection_info(connection, MHD_CONNECTION_INFO_CONNECTION_FD);
    const union MHD_ConnectionInfo *address =
        MHD_get_connection_info(connection, MHD_CONNECTION_INFO_CLIENT_ADDRESS);
    http->counts.open_connections++;
    *socket_context = link;
    if (link == NULL || socket_info == NULL) {
        weir_free(link);
        *socket_context = NULL; /* its requests are refused */
        return;
    }
    link->http = http;
    link->fd = socket_info->connect_fd;
    link->due_ns = weir_now_ns() + http->limits.request_ms * NS_PER_MS;
    if (address != NULL)
        name_peer(link, address->client_addr);
    const union MHD_ConnectionInfo *tls =
        MHD_get_connection_info(connection, MHD_CONNECTION_INFO_GNUTLS_SESSION);
    if (tls != NULL)
        weir_http_identify(link, (gnutls_session_t)tls->tls_session);
    link->next = http->links;
    if (http->links != NULL)
        http->links->previous = link;
    http->links = link;
}

static void remove_link(weir_http_server *http, weir_http_link *link)
{
    http->counts.open_connections--;
    if (link == NULL)
        return;
    if (link->previous != NULL)
        link->previous->next = link->next;
    else
        http->links = link->next;
    if (link->next != NULL)
        link->next->previous = link->previous;
    if (link->identity != NULL)
        link->identity->n_links--;
    weir_free(link);
}

static void on_connection(void *cls, struct MHD_Connection *connection, void **socket_context,
                          enum MHD_ConnectionNotificationCode code)
{
    if (code == MHD_CONNECTION_NOTIFY_STARTED)
        add_link(cls, connection, socket_context);
    else
        remove_link(cls, *socket_context);
}

/* ---- time ------------------------------------------------------------------------------------*/

/* Its end is seen by libmicrohttpd, which cleans up behind it. */
static void cut_off_the_slow(weir_http_server *http)
{
    uint64_t now_ns = weir_now_ns();
    for (weir_http_link *link = http->links; link != NULL; link = link->next) {
        if (link->due_ns == 0 || now_ns < link->due_ns)
            continue;
        shutdown(link->fd, SHUT_RDWR);
        link->due_ns = now_ns + http->limits.answer_ms * NS_PER_MS; /* it is counted once */
        http->counts.cut_off++;
    }
}

/* A parked connection is not looked at by libmicrohttpd. */
static void give_up_the_gone(weir_http_server *http)
{
    for (weir_http_exchange *exchange = http->parked, *next; exchange != NULL; exchange = next) {
        char byte;
        next = exchange->next;
        if (recv(exchange->link->fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT) == 0)
            weir_http_exchange_give_up(exchange);
    }
}

static uint64_t wait_ns(const weir_http_server *http)
{
    MHD_UNSIGNED_LONG_LONG wait_ms;
    uint64_t now_ns = weir_now_ns();
    if (http->has_resumed || now_ns >= http->next_check_ns)
        return 1;
    uint64_t until_check_ns = http->next_check_ns - now_ns;
    if (MHD_get_timeout(http->daemon, &wait_ms) != MHD_YES || wait_ms > CHECK_MS)
        return until_check_ns;
    uint64_t ns = wait_ms != 0 ? wait_ms * NS_PER_MS : 1;
    return ns < until_check_ns ? ns : until_check_ns;
}

static void arm(const weir_http_server *http)
{
    struct itimerspec when = { { 0, 0 }, { 0, 0 } }; /* never */
    if (http->links != NULL) {
        uint64_t ns = wait_ns(http);
        when.it_value = (struct timespec){ (time_t)(ns / NS_PER_S), (long)(ns % NS_PER_S) };
    }
    timerfd_settime(http->timer_fd, 0, &when, NULL);
}

static void run(void *context, uint32_t events)
{
    weir_http_server *http = context;
    (void)events;
    if (weir_now_ns() >= http->next_check_ns) {
        http->next_check_ns = weir_now_ns() + CHECK_MS * NS_PER_MS;
        cut_off_the_slow(http);
        give_up_the_gone(http);
    }
    http->has_resumed = false;
    MHD_run(http->daemon);
    weir_http_forget_identities(http, false);
    arm(http);
}

static void timer_rings(void *context, uint32_t events)
{
    const weir_http_server *http = context;
    uint64_t n_times;
    ssize_t n = read(http->timer_fd, &n_times, sizeof(n_times));
    (void)n; /* it may have been set anew since */
    run(context, events);
}

/* Its epoll set does not tell of connections that have been resumed. */
void weir_http_resume(weir_http_server *http, struct MHD_Connection *connection)
{
    MHD_resume_connection(connection);
    http->has_resumed = true;
    if (http->timer_fd >= 0)
        arm(http);
}

/* ---- opening ---------------------------------------------------------------------------------*/

static void log_line(void *cls, const char *format, va_list arguments)
    __attribute__((format(printf, 2, 0)));
static void log_line(void *cls, const char *format, va_list arguments)
{
    const weir_http_server *http = cls;
    char line[256];
    vsnprintf(line, sizeof(line), format, arguments);
    line[strcspn(line, "\r\n")] = '\0';
    weir_log(WEIR_LOG_DEBUG, "%s: %s", http->address, line);
}

static weir_http_limits limits_of(const weir_http_limits *asked)
{
    weir_http_limits limits = *asked;
    limits.connections = limits.connections != 0 ? limits.connections : 512;
    limits.connections_per_host =
        limits.connections_per_host != 0 ? limits.connections_per_host : 128;
    limits.request_ms = limits.request_ms != 0 ? limits.request_ms : 10000;
    limits.answer_ms = limits.answer_ms != 0 ? limits.answer_ms : 30000;
    limits.header_bytes = limits.header_bytes != 0 ? limits.header_bytes : (size_t)16 << 10;
    limits.answer_bytes = limits.answer_bytes != 0 ? limits.answer_bytes : (size_t)64 << 20;
    limits.body_bytes = limits.body_bytes != 0 ? limits.body_bytes : (size_t)64 << 10;
    return limits;
}

static weir_status start_daemon(weir_http_server *http, int listen_fd)
{
    weir_http_credentials pem;
    weir_status status = weir_http_credentials_read(&http->kept.security, &pem);
    if (status != WEIR_OK) {
        close(listen_fd);
        return status;
    }
    struct MHD_OptionItem tls[5] = { { MHD_OPTION_END, 0, NULL } };
    size_t n = 0;
    unsigned flags = MHD_USE_EPOLL | MHD_ALLOW_SUSPEND_RESUME | MHD_USE_ERROR_LOG;
    if (pem.certificate != NULL) {
        static const char priorities[] = "NORMAL:-VERS-ALL:+VERS-TLS1.3:+VERS-TLS1.2";
        flags |= MHD_USE_TLS;
        tls[n++] = (struct MHD_OptionItem){ MHD_OPTION_HTTPS_MEM_CERT, 0, pem.certificate };
        tls[n++] = (struct MHD_OptionItem){ MHD_OPTION_HTTPS_MEM_KEY, 0, pem.key };
        tls[n++] = (struct MHD_OptionItem){ MHD_OPTION_HTTPS_PRIORITIES, 0, (void *)priorities };
        if (pem.ca != NULL)
            tls[n++] = (struct MHD_OptionItem){ MHD_OPTION_HTTPS_MEM_TRUST, 0, pem.ca };
        tls[n] = (struct MHD_OptionItem){ MHD_OPTION_END, 0, NULL };
    }
    http->daemon = MHD_start_daemon(
        flags, 0, NULL, NULL, weir_http_on_request, http, MHD_OPTION_EXTERNAL_LOGGER, log_line,
        http, MHD_OPTION_LISTEN_SOCKET, listen_fd, MHD_OPTION_CONNECTION_LIMIT,
        http->limits.connections, MHD_OPTION_PER_IP_CONNECTION_LIMIT,
        http->limits.connections_per_host, MHD_OPTION_CONNECTION_MEMORY_LIMIT,
        http->limits.header_bytes, MHD_OPTION_NOTIFY_COMPLETED, weir_http_on_completed, http,
        MHD_OPTION_NOTIFY_CONNECTION, on_connection, http, MHD_OPTION_STRICT_FOR_CLIENT, 1,
        MHD_OPTION_ARRAY, tls, MHD_OPTION_END);
    weir_http_credentials_free(&pem);
    if (http->daemon != NULL)
        return WEIR_OK;
    /* It has closed the socket. */
    return weir_fail(WEIR_ERR_IO, "cannot serve HTTP on %s%s", http->address,
                     n != 0 ? ": see to its certificate and key" : "");
}

static weir_status start(weir_http_server *http)
{
    int listen_fd;
    weir_status status = weir_security_check_listen(&http->kept.security, &http->listen);
    if (status == WEIR_OK)
        status = weir_rpc_listen(&http->listen, &listen_fd);
    if (status != WEIR_OK)
        return status;
    weir_rpc_address_format(&http->listen, http->address);
    status = start_daemon(http, listen_fd);
    if (status != WEIR_OK)
        return status;
    http->timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    if (http->timer_fd < 0)
        return weir_fail(WEIR_ERR_IO, "cannot make a timer: %s", strerror(errno));
    const union MHD_DaemonInfo *info = MHD_get_daemon_info(http->daemon, MHD_DAEMON_INFO_EPOLL_FD);
    status =
        weir_rpc_server_watch(http->server, info != NULL ? info->epoll_fd : -1, EPOLLIN, run, http);
    if (status == WEIR_OK)
        status = weir_rpc_server_watch(http->server, http->timer_fd, EPOLLIN, timer_rings, http);
    return status;
}

weir_status weir_http_server_open(const weir_http_options *options, weir_rpc_server *server,
                                  weir_http_server **out)
{
    weir_rpc_address listen;
    weir_status status = weir_rpc_address_parse(options->listen, &listen);
    if (status != WEIR_OK)
        return status;
    weir_http_server *http = weir_alloc_zeroed(1, sizeof(*http));
    if (http == NULL)
        return WEIR_ERR_NO_MEMORY;
    http->server = server;
    http->listen = listen;
    http->limits = limits_of(&options->limits);
    http->is_open = options->is_open;
    http->methods = options->methods;
    http->handler = options->handler;
    http->gone = options->gone;
    http->context = options->context;
    http->timer_fd = -1;
    status = weir_security_copy(&options->security, &http->kept);
    if (status == WEIR_OK)
        status = start(http);
    if (status != WEIR_OK) {
        weir_http_server_close(http);
        return status;
    }
    *out = http;
    return WEIR_OK;
}

void weir_http_server_close(weir_http_server *http)
{
    if (http == NULL)
        return;
    while (http->parked != NULL) /* or libmicrohttpd does not stop */
        weir_http_exchange_give_up(http->parked);
    if (http->daemon != NULL)
        MHD_stop_daemon(http->daemon);
    weir_http_forget_identities(http, true);
    if (http->timer_fd >= 0)
        close(http->timer_fd);
    weir_security_free(&http->kept);
    weir_free(http);
}

const char *weir_http_server_address(const weir_http_server *http)
{
    return http->address;
}

weir_http_counts weir_http_server_counts(const weir_http_server *http)
{
    return http->counts;
}
