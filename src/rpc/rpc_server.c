/* SPDX-License-Identifier: Apache-2.0 */
/* rpc_server.c - one thread, one epoll set: accepts, lets connections progress, looks at the clock.
 *
 * Handlers run here, one at a time, so services need no locks. Nothing in this thread blocks but
 * epoll_wait.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <netdb.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/error.h"
#include "base/log.h"
#include "rpc/rpc_address.h"
#include "rpc/rpc_connection.h"

#define NS_PER_MS 1000000ull
#define N_EVENTS 64
#define N_WATCHED 8
#define ACCEPTS_PER_TURN 16
#define LONG_CALLS_NS 1000000 /* per round */
#define IDLE_CHECK_MS 1000u   /* silence is as coarse as this; deadlines are not */
#define WAITING_CHECK_MS 50u
#define COMPLAINT_MS 1000u
#define ACCEPT_PAUSE_MS 100u /* after running out of file descriptors */
#define GOODBYE_MS 200u      /* for last answers when the server closes */

/* A file descriptor that others look after. */
typedef struct watched_fd {
    int fd; /* -1: free */
    void (*ready)(void *context, uint32_t events);
    void *context;
} watched_fd;

struct weir_rpc_server {
    weir_rpc_service *services;
    weir_rpc_shared shared;
    unsigned (*tick)(void *context);
    void *tick_context;
    weir_status (*begin)(void *context, weir_rpc_server *server);
    void *begin_context;
    bool is_uncounted;
    weir_rpc_address listen;
    bool listens;
    char address[WEIR_RPC_ADDRESS_TEXT];
    int listen_fd, epoll_fd, stop_fd;
    unsigned wanted_connections; /* 0: nobody said */
    pthread_t thread;
    watched_fd watched[N_WATCHED];
    bool is_crowded; /* somebody found no place */
    uint64_t next_tick_ns, next_check_ns;
    uint64_t next_complaint_ns, next_drop_line_ns;
    uint64_t accept_again_ns; /* 0: accepting */
};

/* ---- the epoll set ---------------------------------------------------------------------------*/

static int watch(weir_rpc_server *server, int operation, int fd, uint32_t events, void *who)
{
    struct epoll_event event = { .events = events, .data.ptr = who };
    return epoll_ctl(server->epoll_fd, operation, fd, &event);
}

/* Some lines of many: whoever causes them often must not fill the disk with them. */
static bool is_due_again(uint64_t *next_ns)
{
    uint64_t now_ns = weir_now_ns();
    if (now_ns < *next_ns)
        return false;
    *next_ns = now_ns + COMPLAINT_MS * NS_PER_MS;
    return true;
}

static bool may_complain(weir_rpc_server *server)
{
    return is_due_again(&server->next_complaint_ns);
}

static void note_refusal(weir_rpc_server *server, const char *peer, const char *why)
{
    server->shared.counts.refused_connections++;
    if (!may_complain(server))
        return;
    weir_log(WEIR_LOG_WARN, "%s: a connection from %s is refused (%llu so far): %s",
             server->address, peer, (unsigned long long)server->shared.counts.refused_connections,
             why);
}

static void note_drop(weir_rpc_server *server, const weir_rpc_connection *connection,
                      const char *why)
{
    if (!is_due_again(&server->next_drop_line_ns))
        return;
    weir_log(WEIR_LOG_WARN, "%s: the connection from %s is dropped (%llu so far): %s",
             server->address, weir_rpc_connection_peer(connection),
             (unsigned long long)server->shared.counts.dropped, why);
}

static uint32_t events_of(const weir_rpc_connection *connection)
{
    return weir_rpc_connection_is_blocked(connection) ? EPOLLOUT : EPOLLIN;
}

/* Out of the set first: a process that forks keeps the socket until it has become another program,
 * and with it events of what is long gone. */
static void drop(weir_rpc_server *server, weir_rpc_connection *connection)
{
    watch(server, EPOLL_CTL_DEL, weir_rpc_connection_fd(connection), 0, NULL);
    weir_rpc_connection_close(connection);
}

/* Lets a connection go on. False when it is gone afterwards. */
static bool progress(weir_rpc_server *server, weir_rpc_connection *connection, bool is_readable)
{
    uint32_t before = events_of(connection);
    if (!weir_rpc_connection_progress(connection, is_readable)) {
        if (weir_rpc_connection_is_refused(connection))
            note_refusal(server, weir_rpc_connection_peer(connection), weir_last_error());
        else if (weir_rpc_connection_why(connection) != NULL)
            note_drop(server, connection, weir_rpc_connection_why(connection));
        drop(server, connection);
        return false;
    }
    uint32_t after = events_of(connection);
    if (after != before)
        watch(server, EPOLL_CTL_MOD, weir_rpc_connection_fd(connection), after, connection);
    return true;
}

/* One turn for each connection that has something to do without an event of its socket. */
static void take_turns(weir_rpc_server *server)
{
    weir_rpc_shared *shared = &server->shared;
    shared->long_left_ns = LONG_CALLS_NS;
    for (unsigned n = shared->n_pending; n != 0; n--) {
        weir_rpc_connection *connection = weir_rpc_connection_take_pending(shared);
        if (connection == NULL)
            break;
        progress(server, connection, false);
    }
    shared->long_left_ns = 0;
}

/* ---- other file descriptors ------------------------------------------------------------------*/

/* NULL: none of this fd. */
static watched_fd *find_watched(weir_rpc_server *server, int fd)
{
    for (size_t i = 0; i < N_WATCHED; i++) {
        if (server->watched[i].fd == fd)
            return &server->watched[i];
    }
    return NULL;
}

static weir_status watch_more(weir_rpc_server *server, int fd, uint32_t events,
                              void (*ready)(void *context, uint32_t events), void *context)
{
    watched_fd *place = find_watched(server, fd);
    int operation = place != NULL ? EPOLL_CTL_MOD : EPOLL_CTL_ADD;
    if (place == NULL)
        place = find_watched(server, -1);
    if (place == NULL)
        return weir_fail(WEIR_ERR_REFUSED, "%s: %d file descriptors are as many as may be watched",
                         server->address, N_WATCHED);
    if (watch(server, operation, fd, events, place) != 0)
        return weir_fail(WEIR_ERR_IO, "%s: cannot watch file descriptor %d: %s", server->address,
                         fd, strerror(errno));
    *place = (watched_fd){ fd, ready, context };
    return WEIR_OK;
}

static void watch_no_more(weir_rpc_server *server, int fd)
{
    watched_fd *place = find_watched(server, fd);
    if (place == NULL)
        return;
    watch(server, EPOLL_CTL_DEL, fd, 0, NULL);
    *place = (watched_fd){ .fd = -1 };
}

weir_status weir_rpc_server_watch(weir_rpc_server *server, int fd, uint32_t events,
                                  void (*ready)(void *context, uint32_t events), void *context)
{
    if (fd < 0)
        return weir_fail(WEIR_ERR_INVALID, "%s: %d is no file descriptor", server->address, fd);
    if (events != 0)
        return watch_more(server, fd, events, ready, context);
    watch_no_more(server, fd);
    return WEIR_OK;
}

/* False when `who` is none of them. */
static bool tell_watched(weir_rpc_server *server, const void *who, uint32_t events)
{
    size_t i = 0;
    while (i < N_WATCHED && who != &server->watched[i])
        i++;
    if (i == N_WATCHED)
        return false;
    const watched_fd *watched = &server->watched[i];
    if (watched->fd >= 0) /* else it went in this very turn */
        watched->ready(watched->context, events);
    return true;
}

/* ---- accepting -------------------------------------------------------------------------------*/

static void add_connection(weir_rpc_server *server, int fd, const char *peer, weir_rpc_host *host)
{
    weir_rpc_connection *connection;
    weir_rpc_socket_prepare(fd);
    if (weir_rpc_connection_open(&server->shared, fd, peer, host, &connection) != WEIR_OK) {
        weir_rpc_hosts_leave(&server->shared.hosts, &server->shared.heap, host);
        note_refusal(server, peer, weir_last_error());
        return;
    }
    server->shared.counts.connections++;
    if (watch(server, EPOLL_CTL_ADD, fd, EPOLLIN, connection) != 0)
        drop(server, connection);
    else
        progress(server, connection, true); /* the first request is often here already */
}

static void format_peer(const struct sockaddr_storage *address, socklen_t n_address,
                        char out[WEIR_RPC_PEER_TEXT])
{
    char host[INET6_ADDRSTRLEN], port[8];
    int code = getnameinfo((const void *)address, n_address, host, sizeof(host), port, sizeof(port),
                           NI_NUMERICHOST | NI_NUMERICSERV);
    if (code != 0)
        snprintf(out, WEIR_RPC_PEER_TEXT, "unknown");
    else
        snprintf(out, WEIR_RPC_PEER_TEXT, strchr(host, ':') != NULL ? "[%s]:%s" : "%s:%s", host,
                 port);
}

/* Out of descriptors: who is silent for longest goes. */
static bool make_place(weir_rpc_server *server, const char *why)
{
    weir_rpc_connection *idlest = weir_rpc_connection_idlest(&server->shared, weir_now_ns());
    server->is_crowded = true;
    if (may_complain(server))
        weir_log(WEIR_LOG_WARN,
                 "%s: cannot accept: %s (%u connections, %lu descriptors may be open); %s%s%s",
                 server->address, why, server->shared.counts.open_connections,
                 server->shared.n_descriptors, idlest != NULL ? "the idlest, " : "none is idle",
                 idlest != NULL ? weir_rpc_connection_peer(idlest) : "",
                 idlest != NULL ? ", is closed" : "");
    if (idlest == NULL)
        return false;
    server->shared.counts.dropped++;
    drop(server, idlest);
    return true;
}

/* Without a pause the listening socket would keep epoll_wait from sleeping. */
static void pause_accepting(weir_rpc_server *server)
{
    watch(server, EPOLL_CTL_MOD, server->listen_fd, 0, &server->listen_fd);
    server->accept_again_ns = weir_now_ns() + ACCEPT_PAUSE_MS * NS_PER_MS;
}

static void admit(weir_rpc_server *server, int fd, const struct sockaddr_storage *address,
                  socklen_t n_address)
{
    weir_rpc_shared *shared = &server->shared;
    char peer[WEIR_RPC_PEER_TEXT];
    format_peer(address, n_address, peer);
    if (shared->counts.open_connections >= shared->limits.connections) {
        server->is_crowded = true;
        note_refusal(server, peer, "there are as many connections as there may be");
        close(fd);
        return;
    }
    weir_rpc_host *host = weir_rpc_hosts_enter(&shared->hosts, &shared->heap, address,
                                               shared->limits.connections_per_host);
    if (host == NULL) {
        note_refusal(server, peer, "its host has as many connections as one may have");
        close(fd);
        return;
    }
    add_connection(server, fd, peer, host);
}

/* At most one that rests makes place per pause: looking for it takes a while where there are many.
 */
static void accept_some(weir_rpc_server *server)
{
    bool has_made_place = false;
    for (int i = 0; i < ACCEPTS_PER_TURN; i++) {
        struct sockaddr_storage address = { 0 };
        socklen_t n_address = sizeof(address);
        int fd = accept4(server->listen_fd, (struct sockaddr *)&address, &n_address,
                         SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd >= 0) {
            admit(server, fd, &address, n_address);
        } else if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM) {
            if (has_made_place || !make_place(server, strerror(errno))) {
                pause_accepting(server);
                return;
            }
            has_made_place = true;
        } else if (errno == EAGAIN || errno == EWOULDBLOCK) {
            return;
        } /* else that one connection was gone already */
    }
}

/* ---- time ------------------------------------------------------------------------------------*/

static void check_silence(weir_rpc_server *server, uint64_t now_ns)
{
    for (weir_rpc_connection *connection = server->shared.connections, *next; connection != NULL;
         connection = next) {
        next = weir_rpc_connection_next(connection);
        const char *why = weir_rpc_connection_check_time(connection, now_ns, server->is_crowded);
        if (why == NULL)
            continue;
        server->shared.counts.dropped++;
        note_drop(server, connection, why);
        drop(server, connection);
    }
    server->is_crowded = false;
}

static void keep_time(weir_rpc_server *server)
{
    uint64_t now_ns = weir_now_ns();
    if (server->accept_again_ns != 0 && now_ns >= server->accept_again_ns) {
        server->accept_again_ns = 0;
        watch(server, EPOLL_CTL_MOD, server->listen_fd, EPOLLIN, &server->listen_fd);
    }
    weir_rpc_shared_expire(&server->shared, now_ns);
    if (now_ns >= server->next_check_ns) {
        check_silence(server, now_ns);
        weir_security_refresh(&server->shared.kept, false);
        server->next_check_ns = now_ns + IDLE_CHECK_MS * NS_PER_MS;
    }
    if (server->tick != NULL && now_ns >= server->next_tick_ns) {
        unsigned next_ms = server->tick(server->tick_context);
        server->next_tick_ns = weir_now_ns() + (next_ms != 0 ? next_ms : 1) * NS_PER_MS;
    }
}

static uint64_t earlier(uint64_t a_ns, uint64_t b_ns)
{
    return a_ns < b_ns ? a_ns : b_ns;
}

/* Sleeps no longer than until the next thing that is due. */
static int sleep_ms(const weir_rpc_server *server)
{
    if (weir_rpc_connection_any_ready(&server->shared))
        return 0;
    uint64_t wake_ns =
        earlier(server->next_check_ns, weir_rpc_timers_next_ns(&server->shared.timers));
    if (server->shared.n_waiting != 0) /* for memory, which others may have to be relieved of */
        wake_ns = earlier(wake_ns, weir_now_ns() + WAITING_CHECK_MS * NS_PER_MS);
    if (server->tick != NULL)
        wake_ns = earlier(wake_ns, server->next_tick_ns);
    if (server->accept_again_ns != 0)
        wake_ns = earlier(wake_ns, server->accept_again_ns);
    uint64_t now_ns = weir_now_ns();
    return wake_ns <= now_ns ? 0 : (int)((wake_ns - now_ns + NS_PER_MS - 1) / NS_PER_MS);
}

/* ---- the thread ------------------------------------------------------------------------------*/

/* Answers that are under way get a moment, the rest ends with UNAVAILABLE. */
static void say_goodbye(weir_rpc_server *server)
{
    for (weir_rpc_connection *c = server->shared.connections; c != NULL;
         c = weir_rpc_connection_next(c))
        weir_rpc_connection_shut(c);
    weir_deadline deadline = weir_deadline_in(GOODBYE_MS);
    bool is_blocked;
    do {
        is_blocked = false;
        for (weir_rpc_connection *connection = server->shared.connections, *next;
             connection != NULL; connection = next) {
            next = weir_rpc_connection_next(connection);
            if (progress(server, connection, false))
                is_blocked |= weir_rpc_connection_is_blocked(connection);
        }
        is_blocked |= server->shared.n_pending != 0;
        if (is_blocked)
            weir_sleep_ms(1);
    } while (is_blocked && !weir_deadline_passed(deadline));
    while (server->shared.connections != NULL)
        drop(server, server->shared.connections);
}

static void *serve(void *context)
{
    weir_rpc_server *server = context;
    struct epoll_event events[N_EVENTS];
    if (server->is_uncounted)
        weir_alloc_uncount_thread();
    for (bool is_stopping = false; !is_stopping;) {
        int n = epoll_wait(server->epoll_fd, events, N_EVENTS, sleep_ms(server));
        for (int i = 0; i < n; i++) {
            void *who = events[i].data.ptr;
            if (who == &server->stop_fd)
                is_stopping = true;
            else if (who == &server->listen_fd)
                accept_some(server);
            else if (!tell_watched(server, who, events[i].events))
                progress(server, who, true);
        }
        keep_time(server);
        take_turns(server);
    }
    say_goodbye(server);
    return NULL;
}

/* Signals belong to the program's own threads. */
static int start_thread(weir_rpc_server *server)
{
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int code = pthread_create(&server->thread, NULL, serve, server);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return code;
}

/* ---- opening and closing ---------------------------------------------------------------------*/

static weir_status watch_all(weir_rpc_server *server)
{
    server->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    server->stop_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    if (server->epoll_fd < 0 || server->stop_fd < 0 ||
        watch(server, EPOLL_CTL_ADD, server->stop_fd, EPOLLIN, &server->stop_fd) != 0 ||
        (server->listen_fd >= 0 &&
         watch(server, EPOLL_CTL_ADD, server->listen_fd, EPOLLIN, &server->listen_fd) != 0))
        return weir_fail(WEIR_ERR_IO, "cannot watch %s: %s", server->address, strerror(errno));
    return WEIR_OK;
}

static weir_status secure(weir_rpc_server *server, const weir_rpc_security *security)
{
    weir_rpc_shared *shared = &server->shared;
    weir_status status = weir_security_copy(security, &shared->kept);
    if (status == WEIR_OK && server->listens)
        status = weir_security_check_listen(&shared->kept.security, &server->listen);
    if (status == WEIR_OK)
        status = weir_tls_context_open(&shared->kept.security, WEIR_RPC_SERVER_SIDE, WEIR_TLS_HTTP2,
                                       &shared->tls);
    return status;
}

/* Aloud only when it is less than what was asked for. */
static void say_limits(const weir_rpc_server *server)
{
    const weir_rpc_shared *shared = &server->shared;
    if (shared->limits.connections < server->wanted_connections)
        weir_log(WEIR_LOG_WARN,
                 "%s: takes %u connections, not %u: this process may have %lu descriptors (ulimit "
                 "-n)",
                 server->address, shared->limits.connections, server->wanted_connections,
                 shared->n_descriptors);
    else
        weir_log(WEIR_LOG_INFO,
                 "%s: takes %u connections, %u from one address; this process may have %lu "
                 "descriptors",
                 server->address, shared->limits.connections, shared->limits.connections_per_host,
                 shared->n_descriptors);
}

static weir_status listen_there(weir_rpc_server *server)
{
    if (!server->listens)
        return WEIR_OK;
    weir_status status = weir_rpc_listen(&server->listen, &server->listen_fd);
    if (status != WEIR_OK)
        return status;
    weir_rpc_address_format(&server->listen, server->address);
    say_limits(server);
    return WEIR_OK;
}

static weir_status start(weir_rpc_server *server)
{
    weir_status status = listen_there(server);
    if (status == WEIR_OK)
        status = watch_all(server);
    if (status == WEIR_OK && server->begin != NULL)
        status = server->begin(server->begin_context, server);
    if (status != WEIR_OK)
        return status;
    int code = start_thread(server);
    if (code != 0)
        return weir_fail(WEIR_ERR_IO, "cannot start a thread for %s: %s", server->address,
                         strerror(code));
    return WEIR_OK;
}

static void free_server(weir_rpc_server *server)
{
    weir_rpc_shared_close(&server->shared);
    const int fds[] = { server->listen_fd, server->epoll_fd, server->stop_fd };
    for (size_t i = 0; i < sizeof(fds) / sizeof(fds[0]); i++) {
        if (fds[i] >= 0)
            close(fds[i]);
    }
    weir_free(server->services);
    weir_free(server);
}

weir_status weir_rpc_server_open(const weir_rpc_server_options *options, weir_rpc_server **out)
{
    weir_rpc_address listen = { .port = 0 };
    weir_status status = WEIR_OK;
    if (options->listen != NULL)
        status = weir_rpc_address_parse(options->listen, &listen);
    if (status != WEIR_OK)
        return status;
    weir_rpc_server *server = weir_alloc_zeroed(1, sizeof(*server));
    if (server == NULL)
        return WEIR_ERR_NO_MEMORY;
    server->listen = listen;
    server->listens = options->listen != NULL;
    server->listen_fd = server->epoll_fd = server->stop_fd = -1;
    server->tick = options->tick;
    server->tick_context = options->tick_context;
    server->next_tick_ns = weir_now_ns() + options->tick_ms * NS_PER_MS;
    for (size_t i = 0; i < N_WATCHED; i++)
        server->watched[i].fd = -1;
    server->begin = options->begin;
    server->begin_context = options->begin_context;
    server->is_uncounted = options->is_uncounted;
    size_t n_bytes = options->n_services * sizeof(*server->services);
    server->services = weir_alloc(n_bytes);
    if (server->services == NULL) {
        status = WEIR_ERR_NO_MEMORY;
    } else {
        if (n_bytes != 0)
            memcpy(server->services, options->services, n_bytes);
        weir_rpc_shared_init(&server->shared, server->services, options->n_services,
                             &options->limits);
        server->wanted_connections = options->limits.connections;
        server->shared.gone = options->gone;
        server->shared.gone_context = options->gone_context;
        server->shared.refused = options->refused;
        server->shared.refused_context = options->refused_context;
        server->shared.open_service = options->open_service;
        status = secure(server, &options->security);
    }
    if (status == WEIR_OK)
        status = start(server);
    if (status != WEIR_OK) {
        free_server(server);
        return status;
    }
    *out = server;
    return WEIR_OK;
}

void weir_rpc_server_close(weir_rpc_server *server)
{
    if (server == NULL)
        return;
    uint64_t one = 1;
    ssize_t n = write(server->stop_fd, &one, sizeof(one));
    (void)n; /* an eventfd at zero takes it */
    pthread_join(server->thread, NULL);
    free_server(server);
}

const char *weir_rpc_server_address(const weir_rpc_server *server)
{
    return server->address;
}

bool weir_rpc_server_answer(weir_rpc_server *server, uint64_t ticket, weir_rpc_code code,
                            const ProtobufCMessage *response, const char *text)
{
    return weir_rpc_shared_answer(&server->shared, ticket, code, response, text);
}

weir_rpc_counts weir_rpc_server_counts(const weir_rpc_server *server)
{
    return server->shared.counts;
}
