/* SPDX-License-Identifier: Apache-2.0 */
/* redis_poll.h - who looks after a Redis connection's socket: an rpc server's thread, or poll(). */
#ifndef WEIR_DIRECTORY_REDIS_POLL_H
#define WEIR_DIRECTORY_REDIS_POLL_H

#include <stdint.h>

#include "weir/status.h"

/* As weir_rpc_server_watch(): `ready` is called whenever fd has one of `events`, until they are 0.
 */
typedef struct weir_redis_events {
    weir_status (*watch)(void *context, int fd, uint32_t events,
                         void (*ready)(void *context, uint32_t events), void *ready_context);
    void *context;
} weir_redis_events;

/* A few sockets and poll(): while a log is opened, when there is no server yet. */
#define WEIR_REDIS_POLL_MAX 4
typedef struct weir_redis_poll {
    struct weir_redis_polled {
        int fd;
        uint32_t events; /* 0: free */
        void (*ready)(void *context, uint32_t events);
        void *context;
    } all[WEIR_REDIS_POLL_MAX];
} weir_redis_poll;

void weir_redis_poll_init(weir_redis_poll *poll, weir_redis_events *out);
/* Waits at most timeout_ms for one of them, and calls who is ready. */
void weir_redis_poll_once(weir_redis_poll *poll, unsigned timeout_ms);

#endif
