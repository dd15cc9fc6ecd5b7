/* SPDX-License-Identifier: Apache-2.0 */
/* redis_poll.c - the smallest event loop that a connection can be driven by. */
#include "directory/redis_poll.h"

#include <poll.h>
#include <string.h>
#include <sys/epoll.h>

#include "base/error.h"

/* What poll() and epoll say is the same number on Linux, and stays so. */
_Static_assert(EPOLLIN == POLLIN && EPOLLOUT == POLLOUT && EPOLLERR == POLLERR, "");

static weir_status watch(void *context, int fd, uint32_t events,
                         void (*ready)(void *context, uint32_t events), void *ready_context)
{
    weir_redis_poll *loop = context;
    struct weir_redis_polled *place = NULL;
    for (size_t i = 0; i < WEIR_REDIS_POLL_MAX; i++) {
        struct weir_redis_polled *one = &loop->all[i];
        if (one->events != 0 && one->fd == fd) {
            place = one;
            break;
        }
        if (one->events == 0 && place == NULL)
            place = one;
    }
    if (place == NULL)
        return weir_fail(WEIR_ERR_INTERNAL, "more than %d sockets of Redis", WEIR_REDIS_POLL_MAX);
    *place = (struct weir_redis_polled){ fd, events, ready, ready_context };
    return WEIR_OK;
}

void weir_redis_poll_init(weir_redis_poll *poll, weir_redis_events *out)
{
    memset(poll, 0, sizeof(*poll));
    *out = (weir_redis_events){ .watch = watch, .context = poll };
}

void weir_redis_poll_once(weir_redis_poll *loop, unsigned timeout_ms)
{
    struct pollfd fds[WEIR_REDIS_POLL_MAX];
    nfds_t n = 0;
    for (size_t i = 0; i < WEIR_REDIS_POLL_MAX; i++) {
        if (loop->all[i].events != 0)
            fds[n++] = (struct pollfd){ loop->all[i].fd, (short)loop->all[i].events, 0 };
    }
    if (poll(fds, n, (int)timeout_ms) <= 0)
        return;
    for (nfds_t k = 0; k < n; k++) {
        /* By its number: who was called before may have closed it. */
        for (size_t i = 0; fds[k].revents != 0 && i < WEIR_REDIS_POLL_MAX; i++) {
            const struct weir_redis_polled *one = &loop->all[i];
            if (one->events == 0 || one->fd != fds[k].fd)
                continue;
            one->ready(one->context, (uint32_t)fds[k].revents);
            break;
        }
    }
}
