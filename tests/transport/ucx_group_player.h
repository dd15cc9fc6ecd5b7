/* SPDX-License-Identifier: Apache-2.0 */
/* ucx_group_player.h - a rank of a broadcast group of transport ucx that the test plays itself,
 * word by word over plain sockets: what it says, and when, is the test's to choose.
 */
#ifndef WEIR_TESTS_UCX_GROUP_PLAYER_H
#define WEIR_TESTS_UCX_GROUP_PLAYER_H

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/time.h>

#include "transport/ucx_group_case.h"

typedef struct player {
    uint32_t rank, n_ranks;
    weir_ucx_group_key key; /* the group's, with where this rank listens */
    int listener;
    int words, before, after; /* connections; -1: none */
    weir_ucx_hello theirs;    /* the last hello that was heard */
    weir_key_buffer out;
} player;

/* ---- sockets ---------------------------------------------------------------------------------*/

static inline int bounded(int fd)
{
    const struct timeval limit = { .tv_sec = WAIT_MS / 1000 };
    assert_true(fd >= 0);
    assert_int_equal(setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit)), 0);
    return fd;
}

/* Port 0: a free one, which is given back. */
static inline int listen_at_loopback(uint8_t last_byte, uint16_t *port)
{
    struct sockaddr_in at = { .sin_family = AF_INET, .sin_port = htons(*port) };
    socklen_t n_bytes = sizeof(at);
    at.sin_addr.s_addr = htonl(0x7f000000u + last_byte);
    int fd = bounded(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    assert_int_equal(bind(fd, (struct sockaddr *)&at, n_bytes), 0);
    assert_int_equal(listen(fd, 16), 0);
    assert_int_equal(getsockname(fd, (struct sockaddr *)&at, &n_bytes), 0);
    *port = ntohs(at.sin_port);
    return fd;
}

static inline int call_loopback(uint16_t port)
{
    struct sockaddr_in to = { .sin_family = AF_INET, .sin_port = htons(port) };
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int fd = bounded(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    assert_int_equal(connect(fd, (struct sockaddr *)&to, sizeof(to)), 0);
    return fd;
}

static inline bool somebody_listens(uint16_t port)
{
    struct sockaddr_in to = { .sin_family = AF_INET, .sin_port = htons(port) };
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int fd = bounded(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    bool any = connect(fd, (struct sockaddr *)&to, sizeof(to)) == 0;
    close(fd);
    return any;
}

static inline int accept_one(int listener)
{
    return bounded(accept(listener, NULL, NULL));
}

static inline void hang_up(int *fd)
{
    if (*fd >= 0)
        close(*fd);
    *fd = -1;
}

static inline void say(int fd, const void *data, size_t n_bytes)
{
    assert_int_equal(send(fd, data, n_bytes, MSG_NOSIGNAL), n_bytes);
}

/* Whether the other end lets go of the connection, whatever it says before. */
static inline bool is_let_go(int fd)
{
    char byte;
    ssize_t n;
    while ((n = recv(fd, &byte, 1, 0)) > 0) {
    }
    return n == 0 || errno == ECONNRESET;
}

/* ---- saying ----------------------------------------------------------------------------------*/

static inline void say_out(player *one, int fd, weir_status encoded)
{
    assert_went_well(encoded);
    say(fd, one->out.data, one->out.n_bytes);
}

static inline void say_word(player *one, weir_ucx_word_kind kind, uint64_t n_done)
{
    weir_ucx_word word = { .kind = kind, .n_done = n_done };
    if (kind == WEIR_UCX_BROKEN) {
        word.status = WEIR_ERR_BUSY;
        snprintf(word.reason, sizeof(word.reason), "no more of this");
    }
    say_out(one, one->words, weir_ucx_word_encode(&word, &one->out));
}

static inline void say_hello(player *one, int fd, weir_ucx_purpose purpose)
{
    weir_ucx_hello hello = { .purpose = purpose,
                             .rank = one->rank,
                             .n_ranks = one->n_ranks,
                             .host = "elsewhere",
                             .where = one->key };
    say_out(one, fd, weir_ucx_hello_encode(&hello, &one->out));
}

/* As rank 0 of two: the rank after is rank 0 again. */
static inline void say_start(player *one, const weir_ucx_group_key *after)
{
    weir_ucx_start start = { .host = "elsewhere", .after = *after };
    say_out(one, one->words, weir_ucx_start_encode(&start, &one->out));
}

static inline void say_step(player *one, int fd, weir_ucx_step_kind kind, uint64_t value)
{
    weir_ucx_step step = { kind, value };
    say_out(one, fd, weir_ucx_step_encode(&step, &one->out));
}

static inline void say_head(player *one, int fd, const weir_ucx_head *head)
{
    say_out(one, fd, weir_ucx_head_encode(head, &one->out));
}

/* ---- hearing ---------------------------------------------------------------------------------*/

/* One message, whole; its kind. 0: the connection has ended. */
static inline char hear(int fd, uint8_t *in, size_t *out_n_bytes)
{
    char kind = 0;
    if (recv(fd, in, 12, MSG_WAITALL) != 12)
        return 0;
    assert_went_well(weir_ucx_message_kind(in, 12, &kind, out_n_bytes));
    assert_int_equal(recv(fd, in + 12, *out_n_bytes - 12, MSG_WAITALL), *out_n_bytes - 12);
    return kind;
}

static inline void hear_hello(player *one, int fd, weir_ucx_purpose purpose)
{
    uint8_t in[WEIR_UCX_FEED_BYTES];
    size_t n_bytes = 0;
    assert_int_equal(hear(fd, in, &n_bytes), 'h');
    assert_went_well(weir_ucx_hello_decode(in, n_bytes, "player", &one->theirs));
    assert_int_equal(one->theirs.purpose, purpose);
    assert_memory_equal(one->theirs.where.nonce, one->key.nonce, sizeof(one->key.nonce));
}

static inline void hear_word(player *one, weir_ucx_word_kind kind)
{
    uint8_t in[WEIR_UCX_FEED_BYTES];
    size_t n_bytes = 0;
    weir_ucx_word word;
    assert_int_equal(hear(one->words, in, &n_bytes), 'w');
    assert_went_well(weir_ucx_word_decode(in, n_bytes, "player", &word));
    assert_int_equal(word.kind, kind);
}

static inline void hear_start(player *one, weir_ucx_start *out)
{
    uint8_t in[WEIR_UCX_FEED_BYTES];
    size_t n_bytes = 0;
    assert_int_equal(hear(one->words, in, &n_bytes), 's');
    assert_went_well(weir_ucx_start_decode(in, n_bytes, "player", out));
}

/* ---- a life in the group, step by step -------------------------------------------------------*/

/* It listens at 127.0.0.1 alone, and says so. */
static inline player player_open(uint32_t rank, uint32_t n_ranks)
{
    player one = { .rank = rank, .n_ranks = n_ranks, .words = -1, .before = -1, .after = -1 };
    memset(one.key.nonce, 7, sizeof(one.key.nonce));
    one.listener = listen_at_loopback(1, &one.key.port);
    one.key.place = weir_ucx_place();
    return one;
}

static inline void player_close(player *one)
{
    hang_up(&one->words);
    hang_up(&one->before);
    hang_up(&one->after);
    hang_up(&one->listener);
    weir_key_buffer_close(&one->out);
}

/* As rank 0: the key that the others open their group with. */
static inline void player_give_key(player *one, void *out_key)
{
    assert_went_well(weir_ucx_group_key_encode(&one->key, &one->out));
    memcpy(out_key, one->out.data, WEIR_GROUP_KEY_BYTES);
}

/* As another: it has been told the key of rank 0, and goes there. */
static inline void player_join(player *one, const void *key)
{
    weir_ucx_group_key of_root;
    assert_went_well(weir_ucx_group_key_decode(key, WEIR_GROUP_KEY_BYTES, "player", &of_root));
    memcpy(one->key.nonce, of_root.nonce, sizeof(of_root.nonce));
    one->words = call_loopback(of_root.port);
    say_hello(one, one->words, WEIR_UCX_JOIN);
}

/* As rank 0: the one other rank comes. */
static inline void player_greet(player *one)
{
    one->words = accept_one(one->listener);
    hear_hello(one, one->words, WEIR_UCX_JOIN);
}

/* To the rank after, which listens at that port, and from the rank before. */
static inline void player_link(player *one, uint16_t port_after)
{
    one->after = call_loopback(port_after);
    say_hello(one, one->after, WEIR_UCX_FEED);
    hear_hello(one, one->after, WEIR_UCX_FEED);
    one->before = accept_one(one->listener);
    hear_hello(one, one->before, WEIR_UCX_FEED);
    say_hello(one, one->before, WEIR_UCX_FEED);
}

#endif
