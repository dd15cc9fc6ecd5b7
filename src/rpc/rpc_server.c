/* SPDX-License-Identifier: Apache-2.0 */
/* rpc_server.c - one thread, one epoll set: accepts, lets connections progress, looks at the clock.
 *
 * Handlers run here, one at a time, so services need no locks. Nothing in this thread blocks but
 * epoll_wait.
 */
#include <errno.h>
#include <pthread.h>
#include <signal.h>
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
#define MAX_CONNECTIONS 4096u
#define N_EVENTS 64
#define ACCEPTS_PER_TURN 64
#define TIME_CHECK_MS 100u   /* deadlines of calls that are not whole are this coarse */
#define IDLE_CHECK_MS 1000u  /* without any call */
#define ACCEPT_PAUSE_MS 100u /* after running out of file descriptors */
#define GOODBYE_MS 200u      /* for last answers when the server closes */

struct weir_rpc_server {
    weir_rpc_service *services;
    weir_rpc_shared shared;
    unsigned (*tick)(void *context);
    void *tick_context;
    unsigned tick_ms;
    weir_status (*begin)(void *context, weir_rpc_server *server);
    void *begin_context;
    weir_rpc_address listen;
    char address[WEIR_RPC_ADDRESS_TEXT];
    int listen_fd, epoll_fd, stop_fd;
    pthread_t thread;
    weir_rpc_connection *connections;
    unsigned n_connections;
    uint64_t next_tick_ns, next_check_ns;
    uint64_t accept_again_ns; /* 0: accepting */
};

/* ---- the epoll set ---------------------------------------------------------------------------*/

static int watch(weir_rpc_server *server, int operation, int fd, uint32_t events, void *who)
{
    struct epoll_event event = { .events = events, .data.ptr = who };
    return epoll_ctl(server->epoll_fd, operation, fd, &event);
}

static uint32_t events_of(const weir_rpc_connection *connection)
{
    return weir_rpc_connection_is_blocked(connection) ? EPOLLOUT : EPOLLIN;
}

static void drop(weir_rpc_server *server, weir_rpc_connection *connection)
{
    weir_rpc_connection_unlink(connection);
    weir_rpc_connection_close(connection);
    server->n_connections--;
}

/* Lets a connection go on. False when it is gone afterwards. */
static bool progress(weir_rpc_server *server, weir_rpc_connection *connection, bool is_readable)
{
    uint32_t before = events_of(connection);
    if (!weir_rpc_connection_progress(connection, is_readable)) {
        drop(server, connection);
        return false;
    }
    uint32_t after = events_of(connection);
    if (after != before)
        watch(server, EPOLL_CTL_MOD, weir_rpc_connection_fd(connection), after, connection);
    return true;
}

/* ---- accepting -------------------------------------------------------------------------------*/

static void add_connection(weir_rpc_server *server, int fd)
{
    weir_rpc_connection *connection;
    weir_rpc_socket_prepare(fd);
    if (weir_rpc_connection_open(&server->shared, fd, &connection) != WEIR_OK) {
        weir_log(WEIR_LOG_WARN, "%s: a connection is refused: %s", server->address,
                 weir_last_error());
        return;
    }
    weir_rpc_connection_link(connection, &server->connections);
    server->n_connections++;
    if (watch(server, EPOLL_CTL_ADD, fd, EPOLLIN, connection) != 0)
        drop(server, connection);
    else
        progress(server, connection, true); /* the first request is often here already */
}

/* Out of descriptors: without a pause the listening socket would keep epoll_wait from sleeping. */
static void pause_accepting(weir_rpc_server *server)
{
    weir_log(WEIR_LOG_WARN, "%s: cannot accept: %s", server->address, strerror(errno));
    watch(server, EPOLL_CTL_MOD, server->listen_fd, 0, &server->listen_fd);
    server->accept_again_ns = weir_now_ns() + ACCEPT_PAUSE_MS * NS_PER_MS;
}

static void accept_some(weir_rpc_server *server)
{
    for (int i = 0; i < ACCEPTS_PER_TURN; i++) {
        int fd = accept4(server->listen_fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd >= 0 && server->n_connections < MAX_CONNECTIONS) {
            add_connection(server, fd);
        } else if (fd >= 0) {
            weir_log(WEIR_LOG_WARN, "%s: %u connections are as many as there may be",
                     server->address, server->n_connections);
            close(fd);
        } else if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM) {
            pause_accepting(server);
            return;
        } else if (errno == EAGAIN || errno == EWOULDBLOCK) {
            return;
        } /* else that one connection was gone already */
    }
}

/* ---- time ------------------------------------------------------------------------------------*/

static void check_times(weir_rpc_server *server, uint64_t now_ns)
{
    for (weir_rpc_connection *connection = server->connections, *next; connection != NULL;
         connection = next) {
        next = weir_rpc_connection_next(connection);
        if (weir_rpc_connection_check_time(connection, now_ns))
            progress(server, connection, false);
        else
            drop(server, connection);
    }
}

static void answer_waiting(weir_rpc_server *server)
{
    for (weir_rpc_connection *connection = server->connections, *next;
         connection != NULL && server->shared.n_waiting != 0; connection = next) {
        next = weir_rpc_connection_next(connection);
        weir_rpc_connection_answer_waiting(connection);
        progress(server, connection, false);
    }
}

static void keep_time(weir_rpc_server *server)
{
    uint64_t now_ns = weir_now_ns();
    if (server->accept_again_ns != 0 && now_ns >= server->accept_again_ns) {
        server->accept_again_ns = 0;
        watch(server, EPOLL_CTL_MOD, server->listen_fd, EPOLLIN, &server->listen_fd);
    }
    if (now_ns >= server->next_check_ns) {
        check_times(server, now_ns);
        server->next_check_ns = now_ns + TIME_CHECK_MS * NS_PER_MS;
    }
    if (server->tick_ms != 0 && now_ns >= server->next_tick_ns) {
        server->tick_ms = server->tick(server->tick_context);
        server->next_tick_ns = now_ns + server->tick_ms * NS_PER_MS;
    }
}

/* Sleeps no longer than until the next thing that is due. */
static int sleep_ms(const weir_rpc_server *server)
{
    uint64_t now_ns = weir_now_ns();
    uint64_t wake_ns =
        now_ns + (server->shared.n_streams != 0 ? TIME_CHECK_MS : IDLE_CHECK_MS) * NS_PER_MS;
    if (server->tick_ms != 0 && server->next_tick_ns < wake_ns)
        wake_ns = server->next_tick_ns;
    if (server->accept_again_ns != 0 && server->accept_again_ns < wake_ns)
        wake_ns = server->accept_again_ns;
    return wake_ns <= now_ns ? 0 : (int)((wake_ns - now_ns + NS_PER_MS - 1) / NS_PER_MS);
}

/* ---- the thread ------------------------------------------------------------------------------*/

/* Answers that are under way get a moment, the rest ends with UNAVAILABLE. */
static void say_goodbye(weir_rpc_server *server)
{
    for (weir_rpc_connection *c = server->connections; c != NULL; c = weir_rpc_connection_next(c))
        weir_rpc_connection_shut(c);
    weir_deadline deadline = weir_deadline_in(GOODBYE_MS);
    bool is_blocked;
    do {
        is_blocked = false;
        for (weir_rpc_connection *connection = server->connections, *next; connection != NULL;
             connection = next) {
            next = weir_rpc_connection_next(connection);
            if (progress(server, connection, false))
                is_blocked |= weir_rpc_connection_is_blocked(connection);
        }
        if (is_blocked)
            weir_sleep_ms(5);
    } while (is_blocked && !weir_deadline_passed(deadline));
    while (server->connections != NULL)
        drop(server, server->connections);
}

static void *serve(void *context)
{
    weir_rpc_server *server = context;
    struct epoll_event events[N_EVENTS];
    for (bool is_stopping = false; !is_stopping;) {
        int n = epoll_wait(server->epoll_fd, events, N_EVENTS, sleep_ms(server));
        for (int i = 0; i < n; i++) {
            void *who = events[i].data.ptr;
            if (who == &server->stop_fd)
                is_stopping = true;
            else if (who == &server->listen_fd)
                accept_some(server);
            else
                progress(server, who, true);
        }
        if (server->shared.n_waiting != 0)
            answer_waiting(server);
        keep_time(server);
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
        watch(server, EPOLL_CTL_ADD, server->listen_fd, EPOLLIN, &server->listen_fd) != 0)
        return weir_fail(WEIR_ERR_IO, "cannot watch %s: %s", server->address, strerror(errno));
    return WEIR_OK;
}

static weir_status start(weir_rpc_server *server)
{
    weir_status status = weir_rpc_listen(&server->listen, &server->listen_fd);
    if (status != WEIR_OK)
        return status;
    weir_rpc_address_format(&server->listen, server->address);
    status = watch_all(server);
    if (status == WEIR_OK && server->begin != NULL)
        status = server->begin(server->begin_context, server);
    if (status != WEIR_OK)
        return status;
    server->next_tick_ns = weir_now_ns() + server->tick_ms * NS_PER_MS;
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
    weir_rpc_address listen;
    weir_status status = weir_rpc_address_parse(options->listen, &listen);
    if (status != WEIR_OK)
        return status;
    weir_rpc_server *server = weir_alloc_zeroed(1, sizeof(*server));
    if (server == NULL)
        return WEIR_ERR_NO_MEMORY;
    server->listen = listen;
    server->listen_fd = server->epoll_fd = server->stop_fd = -1;
    server->tick = options->tick;
    server->tick_context = options->tick_context;
    server->tick_ms = options->tick != NULL ? options->tick_ms : 0;
    server->begin = options->begin;
    server->begin_context = options->begin_context;
    size_t n_bytes = options->n_services * sizeof(*server->services);
    server->services = weir_alloc(n_bytes);
    if (server->services == NULL) {
        status = WEIR_ERR_NO_MEMORY;
    } else {
        memcpy(server->services, options->services, n_bytes);
        weir_rpc_shared_init(&server->shared, server->services, options->n_services);
        status = start(server);
    }
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
