/* SPDX-License-Identifier: Apache-2.0 */
/* http_caller.h - a small HTTP/1.1 client for tests: one request per connection, every wait
 * bounded. */
#ifndef WEIR_TEST_HTTP_CALLER_H
#define WEIR_TEST_HTTP_CALLER_H

#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/clock.h"
#include "rpc/rpc_address.h"

#define HTTP_WAIT_MS 10000u

typedef struct http_reply {
    int status; /* 0: the connection ended without one */
    char *text; /* headers and body; free() */
    const char *body;
    size_t n_body;
} http_reply;

/* -1: nobody listens. */
static inline int http_connect(const char *address)
{
    weir_rpc_address to;
    int fd;
    if (weir_rpc_address_parse(address, &to) != WEIR_OK ||
        weir_rpc_connect(&to, weir_deadline_in(HTTP_WAIT_MS), -1, &fd) != WEIR_OK)
        return -1;
    return fd;
}

static inline bool http_send(int fd, const char *text)
{
    size_t n = strlen(text);
    return send(fd, text, n, MSG_NOSIGNAL) == (ssize_t)n;
}

/* Until the connection ends: ask for "Connection: close". */
static inline http_reply http_receive(int fd)
{
    http_reply reply = { .text = malloc(1) };
    size_t n = 0, capacity = 1;
    weir_deadline deadline = weir_deadline_in(HTTP_WAIT_MS);
    for (;;) {
        struct pollfd ready = { .fd = fd, .events = POLLIN };
        if (poll(&ready, 1, (int)weir_deadline_left_ms(deadline)) <= 0)
            break;
        if (capacity - n < 65536)
            reply.text = realloc(reply.text, capacity = 2 * capacity + 65536);
        ssize_t got = recv(fd, reply.text + n, capacity - n - 1, 0);
        if (got <= 0)
            break;
        n += (size_t)got;
    }
    reply.text[n] = '\0';
    if (strncmp(reply.text, "HTTP/1.1 ", 9) == 0)
        reply.status = atoi(reply.text + 9);
    const char *end = strstr(reply.text, "\r\n\r\n");
    reply.body = end != NULL ? end + 4 : reply.text + n;
    reply.n_body = (size_t)(reply.text + n - reply.body);
    return reply;
}

/* `headers` are whole lines, each with its end; "" for none. */
static inline http_reply http_ask(const char *address, const char *method, const char *path,
                                  const char *headers)
{
    char request[8192];
    int fd = http_connect(address);
    if (fd < 0)
        return (http_reply){ .text = strdup("") };
    snprintf(request, sizeof(request), "%s %s HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n%s\r\n",
             method, path, address, headers);
    http_send(fd, request);
    http_reply reply = http_receive(fd);
    close(fd);
    return reply;
}

static inline http_reply http_get(const char *address, const char *path)
{
    return http_ask(address, "GET", path, "");
}

static inline bool http_has(const http_reply *reply, const char *header)
{
    return strcasestr(reply->text, header) != NULL;
}

#endif
