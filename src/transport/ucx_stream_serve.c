/* SPDX-License-Identifier: Apache-2.0 */
/* ucx_stream_serve.c - the owner's thread for readers over TCP: who has come, and whose turn it is.
 *
 * It sleeps until a reader says something or takes something. Each has a turn of a few megabytes;
 * what a turn does is ucx_stream_answer.c's matter. Readers may come, stall and be killed as they
 * like: a connection that ends is closed, and nothing else follows from it.
 */
#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "base/log.h"
#include "transport/ucx_group.h"
#include "transport/ucx_stream.h"

#define NS_PER_MS 1000000ull
#define LOOK_MS 1000u      /* between looks at who is late */
#define HELLO_MS 5000u     /* for a reader to say who it is */
#define STALLED_MS 120000u /* for one to take a byte of what it has asked for */
#define CALLERS 4096u
#define STRANGERS 64u /* of them that have not said who they are */

/* ---- callers ---------------------------------------------------------------------------------*/

static bool watch(const ucx_stream_server *server, ucx_caller *caller, int how)
{
    struct epoll_event event = { .events = EPOLLRDHUP | (caller->waits ? EPOLLOUT : EPOLLIN),
                                 .data.ptr = caller };
    return epoll_ctl(server->poll_fd, how, caller->fd, &event) == 0;
}

static void drop(ucx_stream_server *server, size_t index)
{
    ucx_caller *caller = server->callers[index];
    server->callers[index] = server->callers[--server->n_callers];
    shutdown(caller->fd, SHUT_RDWR); /* a child of this process may have it too */
    close(caller->fd);
    weir_free(caller);
}

static void drop_caller(ucx_stream_server *server, const ucx_caller *caller)
{
    for (size_t i = 0; i < server->n_callers; i++) {
        if (server->callers[i] == caller) {
            drop(server, i);
            return;
        }
    }
}

/* The one that has waited for longest gives way to whoever comes when there are too many. */
static void limit_strangers(ucx_stream_server *server)
{
    size_t n = 0, oldest = 0;
    for (size_t i = 0; i < server->n_callers; i++) {
        const ucx_caller *caller = server->callers[i];
        if (caller->welcomed)
            continue;
        if (n++ == 0 || caller->moved_ns < server->callers[oldest]->moved_ns)
            oldest = i;
    }
    if (n > STRANGERS)
        drop(server, oldest);
}

static bool make_room(ucx_stream_server *server)
{
    if (server->n_callers < server->room)
        return true;
    size_t room = server->room > 0 ? 2 * server->room : 16;
    ucx_caller **grown = weir_realloc(server->callers, room * sizeof(*grown));
    if (grown == NULL)
        return false;
    server->callers = grown;
    server->room = room;
    return true;
}

static void take(ucx_stream_server *server, int fd)
{
    ucx_caller *caller = NULL;
    if (server->n_callers < CALLERS && make_room(server))
        caller = weir_alloc_zeroed(1, sizeof(*caller));
    if (caller == NULL) {
        weir_log(WEIR_LOG_WARN, "ucx: no room for another reader beside %zu", server->n_callers);
        close(fd);
        return;
    }
    weir_stream_keep_alive(fd);
    caller->fd = fd;
    caller->moved_ns = weir_now_ns();
    server->callers[server->n_callers++] = caller;
    if (!watch(server, caller, EPOLL_CTL_ADD))
        drop(server, server->n_callers - 1);
    server->watches = true;
    limit_strangers(server);
}

static void listen_again(ucx_stream_server *server, bool listens)
{
    struct epoll_event event = { .events = listens ? EPOLLIN : 0, .data.ptr = &server->listener };
    epoll_ctl(server->poll_fd, EPOLL_CTL_MOD, server->listener, &event);
    server->deaf = !listens;
}

/* Without a descriptor to spare, whoever waits at the door would wake the thread for ever. */
static void accept_all(ucx_stream_server *server)
{
    int fd;
    while ((fd = weir_ucx_accept(server->listener)) >= 0)
        take(server, fd);
    if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM) {
        weir_log(WEIR_LOG_WARN, "ucx: cannot take another reader yet: %s", strerror(errno));
        listen_again(server, false);
    }
}

static void give_turn(ucx_stream_server *server, ucx_caller *caller, uint32_t events)
{
    bool waited = caller->waits;
    if ((events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR)) != 0 ||
        !weir_stream_caller_turn(server, caller) ||
        (caller->waits != waited && !watch(server, caller, EPOLL_CTL_MOD)))
        drop_caller(server, caller);
    else if (caller->waits)
        server->watches = true;
}

/* ---- the thread ------------------------------------------------------------------------------*/

static void look_for_late(ucx_stream_server *server, uint64_t now_ns)
{
    server->watches = false;
    if (server->deaf)
        listen_again(server, true);
    for (size_t i = server->n_callers; i-- > 0;) {
        const ucx_caller *caller = server->callers[i];
        uint64_t ms = !caller->welcomed ? HELLO_MS : STALLED_MS;
        if (caller->welcomed && !caller->waits)
            continue;
        if (now_ns - caller->moved_ns > ms * NS_PER_MS) {
            weir_log(WEIR_LOG_INFO, "ucx: a reader has %s for %u s: dropped",
                     caller->welcomed ? "taken nothing" : "said nothing", (unsigned)(ms / 1000));
            drop(server, i);
        } else {
            server->watches = true;
        }
    }
    server->look_ns = now_ns + LOOK_MS * NS_PER_MS;
}

/* One event at a time: a caller that goes leaves none behind. */
static void *serve(void *argument)
{
    ucx_stream_server *server = argument;
    for (;;) {
        struct epoll_event event;
        bool looks = server->watches || server->deaf;
        int n = epoll_wait(server->poll_fd, &event, 1, looks ? (int)LOOK_MS : -1);
        if (n > 0 && event.data.ptr == &server->stop_fd)
            return NULL;
        if (n > 0 && event.data.ptr == &server->listener)
            accept_all(server);
        else if (n > 0)
            give_turn(server, event.data.ptr, event.events);
        uint64_t now_ns = weir_now_ns();
        if (looks && now_ns >= server->look_ns)
            look_for_late(server, now_ns);
    }
}

/* ---- opening and closing ---------------------------------------------------------------------*/

/* The application's signal handlers must not run on our thread. */
static weir_status start_thread(ucx_stream_server *server)
{
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int code = pthread_create(&server->thread, NULL, serve, server);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (code == 0)
        return WEIR_OK;
    return weir_fail(WEIR_ERR_NO_MEMORY, "transport ucx: cannot start a thread for its readers");
}

static weir_status watch_door(ucx_stream_server *server)
{
    struct epoll_event stop = { .events = EPOLLIN, .data.ptr = &server->stop_fd };
    struct epoll_event door = { .events = EPOLLIN, .data.ptr = &server->listener };
    server->poll_fd = epoll_create1(EPOLL_CLOEXEC);
    server->stop_fd = eventfd(0, EFD_CLOEXEC);
    if (server->poll_fd < 0 || server->stop_fd < 0 ||
        epoll_ctl(server->poll_fd, EPOLL_CTL_ADD, server->stop_fd, &stop) != 0 ||
        epoll_ctl(server->poll_fd, EPOLL_CTL_ADD, server->listener, &door) != 0)
        return weir_fail_errno("transport ucx: cannot wait for its readers");
    return WEIR_OK;
}

static void close_fds(ucx_stream_server *server)
{
    const int fds[] = { server->listener, server->poll_fd, server->stop_fd };
    for (size_t i = 0; i < sizeof(fds) / sizeof(fds[0]); i++)
        if (fds[i] >= 0)
            close(fds[i]);
}

weir_status weir_stream_server_open(uint64_t greeting, ucx_stream_server **out)
{
    ucx_stream_server *server = weir_alloc_zeroed(1, sizeof(*server));
    if (server == NULL)
        return WEIR_ERR_NO_MEMORY;
    server->greeting = greeting;
    server->listener = server->poll_fd = server->stop_fd = -1;
    weir_stream_ranges_open(&server->ranges);
    weir_status status = WEIR_OK;
    if (getrandom(server->where.nonce, sizeof(server->where.nonce), 0) < 0)
        status = weir_fail_errno("transport ucx: no random bytes");
    if (status == WEIR_OK)
        status = weir_ucx_listen(&server->listener, &server->where.port);
    if (status == WEIR_OK)
        status = watch_door(server);
    server->where.place = weir_ucx_place();
    weir_stream_own_addresses(&server->where);
    if (status == WEIR_OK)
        status = start_thread(server);
    if (status != WEIR_OK) {
        close_fds(server);
        weir_stream_ranges_close(&server->ranges);
        weir_free(server);
        return status;
    }
    *out = server;
    return WEIR_OK;
}

void weir_stream_server_close(ucx_stream_server *server)
{
    if (server == NULL)
        return;
    eventfd_write(server->stop_fd, 1);
    pthread_join(server->thread, NULL);
    while (server->n_callers > 0)
        drop(server, server->n_callers - 1);
    close_fds(server);
    weir_free(server->callers);
    weir_stream_ranges_close(&server->ranges);
    weir_free(server);
}
