/* SPDX-License-Identifier: Apache-2.0 */
/* redis_link.c - hiredis' asynchronous context on somebody's event loop.
 *
 * hiredis frees a context by itself when its connection ends, in the middle of a read or a write;
 * link->context is NULL from the first notice of that, and whatever is called after is ignored.
 */
#include "directory/redis_link.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "base/error.h"

#define WORDS_MAX 24

typedef struct asked {
    weir_redis_answer answer;
    uint64_t number;
} asked;

/* ---- its socket ------------------------------------------------------------------------------*/

static void ready(void *context, uint32_t events)
{
    weir_redis_link *link = context;
    const redisAsyncContext *before = link->context;
    /* Errors are noticed by reading, or by writing while it connects. */
    bool failed = (events & (EPOLLERR | EPOLLHUP)) != 0;
    if (link->context != NULL && (link->mask & EPOLLOUT) != 0 &&
        ((events & EPOLLOUT) != 0 || failed))
        redisAsyncHandleWrite(link->context);
    if (link->context == NULL || link->context != before)
        return;
    if ((events & EPOLLIN) != 0 || failed) {
        link->heard_ns = weir_now_ns();
        redisAsyncHandleRead(link->context);
    }
}

static void watch(weir_redis_link *link, const redisAsyncContext *context, uint32_t mask)
{
    if (mask == link->mask)
        return;
    link->mask = mask;
    /* Where it fails the connection falls silent, and is given up for that. */
    if (link->events != NULL)
        link->events->watch(link->events->context, context->c.fd, mask, ready, link);
}

/* NULL: that connection is given up, and hiredis is yet to free it. */
static weir_redis_link *link_of(void *context)
{
    const redisAsyncContext *redis = context;
    weir_redis_link *link = redis->data;
    return link->context == redis ? link : NULL;
}

static void add_read(void *context)
{
    weir_redis_link *link = link_of(context);
    if (link != NULL)
        watch(link, link->context, link->mask | EPOLLIN);
}

static void remove_read(void *context)
{
    weir_redis_link *link = link_of(context);
    if (link != NULL)
        watch(link, link->context, link->mask & ~(uint32_t)EPOLLIN);
}

static void add_write(void *context)
{
    weir_redis_link *link = link_of(context);
    if (link != NULL)
        watch(link, link->context, link->mask | EPOLLOUT);
}

static void remove_write(void *context)
{
    weir_redis_link *link = link_of(context);
    if (link != NULL)
        watch(link, link->context, link->mask & ~(uint32_t)EPOLLOUT);
}

static void forget_socket(void *context)
{
    weir_redis_link *link = link_of(context);
    if (link != NULL)
        watch(link, link->context, 0);
}

/* ---- its end ---------------------------------------------------------------------------------*/

static void ended(weir_redis_link *link, const char *error)
{
    char why[256];
    snprintf(why, sizeof(why), "%s", error != NULL && error[0] != '\0' ? error : "closed");
    weir_error_one_line(why);
    if (why[0] >= 'A' && why[0] <= 'Z' && why[1] >= 'a' && why[1] <= 'z')
        why[0] = (char)(why[0] - 'A' + 'a'); /* "Connection refused", after a colon */
    link->down(link->owner, why);
}

static void disconnected(const redisAsyncContext *context, int status)
{
    weir_redis_link *link = context->data;
    (void)status;
    if (link->context != context)
        return;
    watch(link, context, 0);
    link->context = NULL;
    ended(link, context->c.errstr);
}

static void connected(const redisAsyncContext *context, int status)
{
    if (status != REDIS_OK)
        disconnected(context, status);
}

void weir_redis_link_close(weir_redis_link *link)
{
    redisAsyncContext *context = link->context;
    if (context == NULL)
        return;
    watch(link, context, 0);
    link->context = NULL;
    redisAsyncFree(context);
}

void weir_redis_link_free(weir_redis_link *link)
{
    weir_redis_link_close(link);
    weir_redis_queue_close(&link->asked);
}

/* ---- commands --------------------------------------------------------------------------------*/

static void answered(redisAsyncContext *context, void *data, void *unused)
{
    weir_redis_link *link = context->data;
    const redisReply *reply = data;
    (void)unused;
    if (link->context != context || link->asked.n_items == 0)
        return;
    asked one = *(const asked *)weir_redis_queue_at(&link->asked, 0);
    weir_redis_queue_pop(&link->asked);
    if (reply == NULL)
        return;
    if (one.answer != NULL) {
        one.answer(link->owner, reply, one.number);
    } else if (reply->type == REDIS_REPLY_ERROR) {
        link->refused = true;
        weir_redis_link_close(link);
        ended(link, reply->str);
    }
}

bool weir_redis_link_send(weir_redis_link *link, weir_redis_answer answer, uint64_t number,
                          const weir_redis_word *words, size_t n_words)
{
    const char *bytes[WORDS_MAX];
    size_t n_bytes[WORDS_MAX];
    if (link->context == NULL || n_words > WORDS_MAX)
        return false;
    for (size_t i = 0; i < n_words; i++) {
        bytes[i] = words[i].bytes;
        n_bytes[i] = words[i].n_bytes;
    }
    if (link->asked.n_items == 0)
        link->heard_ns = weir_now_ns(); /* it had no reason to speak before */
    asked *one = weir_redis_queue_push(&link->asked);
    if (one == NULL)
        return false;
    *one = (asked){ answer, number };
    if (redisAsyncCommandArgv(link->context, answered, NULL, (int)n_words, bytes, n_bytes) ==
        REDIS_OK)
        return true;
    link->asked.n_items--;
    return false;
}

bool weir_redis_link_say(weir_redis_link *link, weir_redis_answer answer, const char *word, ...)
{
    weir_redis_word words[WORDS_MAX];
    size_t n = 0;
    va_list args;
    va_start(args, word);
    for (; word != NULL && n < WORDS_MAX; word = va_arg(args, const char *))
        words[n++] = (weir_redis_word){ word, strlen(word) };
    va_end(args);
    return weir_redis_link_send(link, answer, 0, words, n);
}

/* ---- its beginning ---------------------------------------------------------------------------*/

static bool greet(weir_redis_link *link, const weir_redis_url *url)
{
    bool sent = true;
    if (url->password[0] != '\0' && url->user[0] != '\0')
        sent = weir_redis_link_say(link, NULL, "AUTH", url->user, url->password, NULL);
    else if (url->password[0] != '\0')
        sent = weir_redis_link_say(link, NULL, "AUTH", url->password, NULL);
    char database[16];
    snprintf(database, sizeof(database), "%u", url->database);
    return sent && weir_redis_link_say(link, NULL, "SELECT", database, NULL);
}

void weir_redis_link_init(weir_redis_link *link, const weir_redis_events *events,
                          void (*down)(void *owner, const char *why), void *owner)
{
    *link = (weir_redis_link){ .events = events, .down = down, .owner = owner };
    link->asked.item_bytes = sizeof(asked);
}

bool weir_redis_link_connect(weir_redis_link *link, const weir_redis_url *url, const char *address)
{
    weir_redis_link_close(link);
    while (link->asked.n_items > 0)
        weir_redis_queue_pop(&link->asked);
    link->mask = 0;
    link->refused = false;
    link->heard_ns = weir_now_ns();
    redisAsyncContext *context = redisAsyncConnect(address, (int)url->port);
    if (context == NULL || context->err != 0) {
        char why[128];
        snprintf(why, sizeof(why), "%s", context != NULL ? context->errstr : "out of memory");
        if (context != NULL)
            redisAsyncFree(context);
        ended(link, why);
        return false;
    }
    context->data = link;
    context->ev.data = context;
    context->ev.addRead = add_read;
    context->ev.delRead = remove_read;
    context->ev.addWrite = add_write;
    context->ev.delWrite = remove_write;
    context->ev.cleanup = forget_socket;
    link->context = context;
    redisAsyncSetConnectCallback(context, connected);
    redisAsyncSetDisconnectCallback(context, disconnected);
    if (greet(link, url))
        return true;
    weir_redis_link_close(link);
    ended(link, "out of memory");
    return false;
}

weir_status weir_redis_link_move(weir_redis_link *link, const weir_redis_events *events)
{
    const redisAsyncContext *context = link->context;
    if (context != NULL && link->events != NULL)
        link->events->watch(link->events->context, context->c.fd, 0, ready, link);
    link->events = events;
    if (context == NULL || events == NULL || link->mask == 0)
        return WEIR_OK;
    return events->watch(events->context, context->c.fd, link->mask, ready, link);
}
