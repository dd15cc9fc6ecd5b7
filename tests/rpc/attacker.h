/* SPDX-License-Identifier: Apache-2.0 */
/* attacker.h - HTTP/2 frames written by hand, on one connection, by somebody who means no good. */
#ifndef WEIR_TEST_ATTACKER_H
#define WEIR_TEST_ATTACKER_H

#include <errno.h>
#include <poll.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/clock.h"
#include "rpc/rpc_address.h"

enum { DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE };
enum { CONTINUATION = 9, UNKNOWN = 77 };
#define END_STREAM 1
#define END_HEADERS 4
#define ENHANCE_YOUR_CALM 0xb

typedef struct attacker {
    int fd;
    bool is_over;        /* the server hung up */
    int64_t goaway_code; /* -1: none */
    unsigned n_resets;   /* that the server sent */
    unsigned n_ended;    /* calls that it answered */
    unsigned char in[64 << 10];
    size_t n_in;
    unsigned char out[64 << 10];
    size_t n_out;
} attacker;

static inline void attacker_put(attacker *who, const void *bytes, size_t n)
{
    memcpy(who->out + who->n_out, bytes, n);
    who->n_out += n;
}

static inline void attacker_frame(attacker *who, unsigned type, unsigned flags, uint32_t id,
                                  const void *payload, size_t n)
{
    const unsigned char head[9] = { (unsigned char)(n >> 16),  (unsigned char)(n >> 8),
                                    (unsigned char)n,          (unsigned char)type,
                                    (unsigned char)flags,      (unsigned char)(id >> 24),
                                    (unsigned char)(id >> 16), (unsigned char)(id >> 8),
                                    (unsigned char)id };
    attacker_put(who, head, sizeof(head));
    if (n != 0)
        attacker_put(who, payload, n);
}

/* POST GetWeightVersion, application/grpc. */
static inline void attacker_headers(attacker *who, uint32_t id, unsigned flags)
{
    static const char path[] = "/model_express.refit.RefitService/GetWeightVersion";
    unsigned char block[128] = { 0x83, 0x86, 0x04, sizeof(path) - 1 };
    size_t n = 4;
    memcpy(block + n, path, sizeof(path) - 1);
    n += sizeof(path) - 1;
    memcpy(block + n,
           "\x01\x01x\x0f\x10\x10"
           "application/grpc",
           22);
    attacker_frame(who, HEADERS, flags, id, block, n + 22);
}

/* One message with the uid, at most 100 characters. */
static inline void attacker_message(attacker *who, uint32_t id, const char *uid)
{
    unsigned char body[128] = { 0 };
    size_t n_uid = strlen(uid);
    body[4] = (unsigned char)(2 + n_uid);
    body[5] = 0x0a;
    body[6] = (unsigned char)n_uid;
    memcpy(body + 7, uid, n_uid);
    attacker_frame(who, DATA, END_STREAM, id, body, 7 + n_uid);
}

static inline bool attacker_open(attacker *who, const char *server_address)
{
    weir_rpc_address address;
    who->fd = -1;
    who->n_in = who->n_out = 0;
    who->is_over = false;
    who->goaway_code = -1;
    who->n_resets = who->n_ended = 0;
    if (weir_rpc_address_parse(server_address, &address) != WEIR_OK ||
        weir_rpc_connect(&address, weir_deadline_in(5000), -1, &who->fd) != WEIR_OK)
        return false;
    attacker_put(who, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 24);
    attacker_frame(who, SETTINGS, 0, 0, NULL, 0);
    return true;
}

static inline void attacker_close(attacker *who)
{
    if (who->fd >= 0)
        close(who->fd);
    who->fd = -1;
}

static inline void attacker_notice(attacker *who)
{
    size_t at = 0;
    while (who->n_in - at >= 9) {
        const unsigned char *frame = who->in + at;
        size_t n = (size_t)frame[0] << 16 | (size_t)frame[1] << 8 | frame[2];
        if (who->n_in - at < 9 + n)
            break;
        if (frame[3] == GOAWAY && n >= 8)
            who->goaway_code = frame[9 + 7];
        who->n_resets += frame[3] == RST_STREAM;
        who->n_ended += frame[3] == HEADERS && frame[4] & END_STREAM;
        at += 9 + n;
    }
    memmove(who->in, who->in + at, who->n_in - at);
    who->n_in -= at;
}

static inline void attacker_listen(attacker *who)
{
    while (!who->is_over) {
        ssize_t n = recv(who->fd, who->in + who->n_in, sizeof(who->in) - who->n_in, 0);
        if (n < 0 && errno == EAGAIN)
            return;
        if (n <= 0) {
            who->is_over = true;
            return;
        }
        who->n_in += (size_t)n;
        attacker_notice(who);
    }
}

/* Sends what was put together, unless the server hangs up. Listens before, so that the server's
 * last words are heard. */
static inline bool attacker_send(attacker *who)
{
    weir_deadline deadline = weir_deadline_in(10000);
    size_t sent = 0, n_out = who->n_out;
    who->n_out = 0;
    while (sent < n_out && !weir_deadline_passed(deadline)) {
        attacker_listen(who);
        if (who->is_over)
            return false;
        ssize_t n = send(who->fd, who->out + sent, n_out - sent, MSG_NOSIGNAL);
        if (n > 0) {
            sent += (size_t)n;
            continue;
        }
        if (n < 0 && errno != EAGAIN) {
            who->is_over = true;
            return false;
        }
        struct pollfd fd = { .fd = who->fd, .events = POLLIN | POLLOUT };
        poll(&fd, 1, 100);
    }
    return sent == n_out;
}

/* Waits until the server has answered n calls, or hung up. */
static inline bool attacker_wait_ended(attacker *who, unsigned n, unsigned timeout_ms)
{
    weir_deadline deadline = weir_deadline_in(timeout_ms);
    while (who->n_ended < n && !who->is_over && !weir_deadline_passed(deadline)) {
        struct pollfd fd = { .fd = who->fd, .events = POLLIN };
        poll(&fd, 1, (int)weir_deadline_left_ms(deadline));
        attacker_listen(who);
    }
    return who->n_ended >= n;
}

/* Waits until the server has hung up. */
static inline bool attacker_wait_over(attacker *who, unsigned timeout_ms)
{
    weir_deadline deadline = weir_deadline_in(timeout_ms);
    while (!who->is_over && !weir_deadline_passed(deadline)) {
        struct pollfd fd = { .fd = who->fd, .events = POLLIN };
        poll(&fd, 1, (int)weir_deadline_left_ms(deadline));
        attacker_listen(who);
    }
    return who->is_over;
}

#endif
