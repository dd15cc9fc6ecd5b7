/* SPDX-License-Identifier: Apache-2.0 */
/* redis_link.h - one connection to Redis that never blocks.
 *
 * Says who it is (AUTH), takes its database (SELECT), and then carries commands; each answer comes
 * to the callback that its command was sent with, in order. When the connection ends, the callbacks
 * that are left are not called: `down` is, once.
 */
#ifndef WEIR_DIRECTORY_REDIS_LINK_H
#define WEIR_DIRECTORY_REDIS_LINK_H

#include <hiredis/async.h>
#include <stdbool.h>
#include <stddef.h>

#include "directory/redis_poll.h"
#include "directory/redis_queue.h"
#include "directory/redis_url.h"

typedef struct weir_redis_link {
    redisAsyncContext *context; /* NULL: not connected */
    const weir_redis_events *events;
    uint32_t mask;          /* of what its socket is watched for */
    uint64_t heard_ns;      /* when a byte came last, or the first of `asked` was sent */
    bool refused;           /* by AUTH or SELECT */
    weir_redis_queue asked; /* commands whose answers are to come */
    void (*down)(void *owner, const char *why);
    void *owner;
} weir_redis_link;

typedef struct weir_redis_word {
    const void *bytes;
    size_t n_bytes;
} weir_redis_word;
/* `reply` is the link's again when this returns. */
typedef void (*weir_redis_answer)(void *owner, const redisReply *reply, uint64_t number);

void weir_redis_link_init(weir_redis_link *link, const weir_redis_events *events,
                          void (*down)(void *owner, const char *why), void *owner);
/* Begins to connect to `address`, an IP address of the URL's host. False: `down` was called. */
bool weir_redis_link_connect(weir_redis_link *link, const weir_redis_url *url, const char *address);
/* False without a connection or memory. `number` is what the answer is called with. answer NULL: of
 * the answer only an error matters, and it ends the connection. */
bool weir_redis_link_send(weir_redis_link *link, weir_redis_answer answer, uint64_t number,
                          const weir_redis_word *words, size_t n_words);
/* The same for words that are strings, NULL last. */
bool weir_redis_link_say(weir_redis_link *link, weir_redis_answer answer, const char *word, ...)
    __attribute__((sentinel));
/* Without a call of `down`; it can be connected again, until weir_redis_link_free(). */
void weir_redis_link_close(weir_redis_link *link);
void weir_redis_link_free(weir_redis_link *link);
/* From now on others look after its socket; NULL: nobody, for now. */
weir_status weir_redis_link_move(weir_redis_link *link, const weir_redis_events *events);

#endif
