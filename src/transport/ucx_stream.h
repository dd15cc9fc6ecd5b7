/* SPDX-License-Identifier: Apache-2.0 */
/* ucx_stream.h - reads of transport ucx where there is nothing but TCP: over connections of Weir's.
 *
 * UCX emulates reads over TCP by messages, and UCX 1.13 aborts the owner of the bytes when a reader
 * dies within one. So UCX is never given TCP. Its address says where the owner listens instead, and
 * a reader that UCX does not connect asks for ranges of memory over one connection per peer; a
 * thread of the owner sends them. docs/wire.md has the messages.
 *
 *   reader  hello           request  request ...
 *   owner          welcome                     answer + bytes  answer + bytes ...
 *
 * Threads  the owner's thread sends (ucx_stream_serve.c, ucx_stream_answer.c); from which memory it
 * may is told to it by the thread of the transport's caller (ucx_stream_ranges.c). The reader's
 * half (ucx_stream_dial.c, ucx_stream_read.c) belongs to the caller of test.
 *
 * Order  requests are answered whole, one after the other, so a reader knows where each byte goes.
 * The owner keeps one request of a reader; what else it asked waits in the connection.
 *
 * Limits  a request has at most WEIR_STREAM_RANGES ranges and WEIR_STREAM_BYTES bytes, and a reader
 * has WEIR_STREAM_AHEAD of them on their way at most. Nothing is allocated but when a connection is
 * made. A reader that takes nothing for two minutes is dropped; nobody else waits for it.
 *
 * Errors  a range that is not within one sealed region is refused with a reason, and the connection
 * ends: ERR_PEER_LOST for the reader, a line of level WARN for the owner. Who does not show the
 * address's random word is shut out without an answer.
 */
#ifndef WEIR_TRANSPORT_UCX_STREAM_H
#define WEIR_TRANSPORT_UCX_STREAM_H

#include "transport/ucx.h"

/* ---- messages: ucx_stream_message.c ----------------------------------------------------------*/

#define WEIR_STREAM_HELLO_BYTES 32u
#define WEIR_STREAM_WELCOME_BYTES 16u
#define WEIR_STREAM_HEAD_BYTES 16u /* of a request, and of an answer */
#define WEIR_STREAM_RANGE_BYTES 16u
#define WEIR_STREAM_RANGES 256u
#define WEIR_STREAM_BYTES ((uint64_t)4 << 20)
#define WEIR_STREAM_REQUEST_BYTES \
    (WEIR_STREAM_HEAD_BYTES + WEIR_STREAM_RANGES * WEIR_STREAM_RANGE_BYTES)
#define WEIR_STREAM_REASON 96u /* bytes of why a request is refused, its end included */
#define WEIR_STREAM_AHEAD 16u

/* Memory of the owner's process. */
typedef struct ucx_range {
    uint64_t address, n_bytes;
} ucx_range;

/* An answer is followed by n_bytes, those of all ranges of its request one behind the other; or, of
 * a refused one, by so many bytes of the reason. */
typedef struct ucx_answer {
    bool refused;
    uint64_t n_bytes;
} ucx_answer;

void weir_stream_hello_encode(const uint8_t nonce[WEIR_UCX_NONCE], uint8_t *out);
/* False: no hello, or of another nonce. */
bool weir_stream_hello_agrees(const uint8_t *hello, const uint8_t nonce[WEIR_UCX_NONCE]);
void weir_stream_welcome_encode(uint64_t greeting, uint8_t *out);
bool weir_stream_welcome_decode(const uint8_t *welcome, uint64_t *out_greeting);
void weir_stream_request_encode(uint32_t n_ranges, uint8_t *out);
bool weir_stream_request_decode(const uint8_t *head, uint32_t *out_n_ranges);
void weir_stream_range_encode(ucx_range range, uint8_t *out);
ucx_range weir_stream_range_decode(const uint8_t *range);
/* All ranges of a whole request. False where one is empty or overflows, or all are too long. */
bool weir_stream_ranges_check(const uint8_t *request, uint32_t n_ranges, uint64_t *out_n_bytes);
void weir_stream_answer_encode(ucx_answer answer, uint8_t *out);
bool weir_stream_answer_decode(const uint8_t *head, ucx_answer *out);

/* ---- connections: ucx_stream_socket.c --------------------------------------------------------*/

void weir_stream_keep_alive(int fd);
/* Gives where->addresses: of the interfaces that UCX_NET_DEVICES names, or of all. */
void weir_stream_own_addresses(weir_ucx_group_key *where);

/* ---- what may be sent: ucx_stream_ranges.c ---------------------------------------------------*/

/* The memory of sealed regions. Whoever sends from it does so between _hold and _let_go, and what
 * is removed is not sent from any more when weir_stream_ranges_remove() returns. */
typedef struct ucx_ranges {
    pthread_mutex_t lock;
    pthread_cond_t let_go;
    ucx_range *ranges;
    size_t n_ranges, room;
    uint64_t n_removed; /* a look that is older must be taken again */
    uint64_t n_holds;
    bool held;
} ucx_ranges;

void weir_stream_ranges_open(ucx_ranges *ranges);
void weir_stream_ranges_close(ucx_ranges *ranges);
weir_status weir_stream_ranges_add(ucx_ranges *ranges, ucx_range range);
void weir_stream_ranges_remove(ucx_ranges *ranges, ucx_range range);
/* False, and nothing is held: one of the ranges is not within a sealed region. *seen is the
 * caller's memory of its last look at the same ranges, 0 when there was none. */
bool weir_stream_ranges_hold(ucx_ranges *ranges, const uint8_t *request, uint32_t n_ranges,
                             uint64_t *seen, ucx_range *out_missing);
void weir_stream_ranges_let_go(ucx_ranges *ranges);

/* ---- the owner -------------------------------------------------------------------------------*/

/* One reader's connection. */
typedef struct ucx_caller {
    int fd;
    bool welcomed;                         /* it has shown the word */
    bool waits;                            /* for room to send into; else for its next bytes */
    bool refused;                          /* it is told why, and shut out */
    uint64_t moved_ns;                     /* when its last byte came or went */
    uint8_t in[WEIR_STREAM_REQUEST_BYTES]; /* kept until it is answered */
    size_t n_in;
    uint32_t n_ranges; /* of the request that is being answered; 0: none is */
    uint32_t range;    /* the next byte to send */
    uint64_t offset;
    uint64_t seen; /* weir_stream_ranges_hold() */
    uint8_t head[WEIR_STREAM_HEAD_BYTES + WEIR_STREAM_REASON];
    size_t head_bytes, head_sent;
} ucx_caller;

typedef struct ucx_stream_server {
    ucx_ranges ranges;
    weir_ucx_group_key where; /* of the address */
    uint64_t greeting;
    pthread_t thread;
    int poll_fd, stop_fd, listener;
    ucx_caller **callers;
    size_t n_callers, room;
    bool deaf;    /* no descriptor is left for another reader */
    bool watches; /* somebody has a bound */
    uint64_t look_ns;
} ucx_stream_server;

/* ucx_stream_serve.c */
/* Gives *out and begins to listen. */
weir_status weir_stream_server_open(uint64_t greeting, ucx_stream_server **out);
void weir_stream_server_close(ucx_stream_server *server); /* accepts NULL; its readers lose it */

/* ucx_stream_answer.c */
/* Hears and answers for a millisecond or so, and sets caller->waits. False: it is to be closed. */
bool weir_stream_caller_turn(ucx_stream_server *server, ucx_caller *caller);

/* ---- the reader ------------------------------------------------------------------------------*/

/* A place among the bytes of a transfer. */
typedef struct ucx_place {
    size_t copy;
    uint64_t offset;
} ucx_place;

typedef struct ucx_stream {
    int fd;
    uint8_t out[WEIR_STREAM_REQUEST_BYTES]; /* the request that is being sent */
    size_t out_bytes, n_sent;
    uint64_t asked[WEIR_STREAM_AHEAD]; /* bytes of the requests that are not answered whole */
    unsigned first_asked, n_asked;
    uint8_t in[WEIR_STREAM_HEAD_BYTES]; /* of the next answer */
    size_t n_in;
    bool answered; /* the first request's answer has begun */
    uint64_t left; /* of its bytes */
    ucx_place landed;
} ucx_stream;

/* ucx_stream_dial.c */
/* Gives peer->stream. */
weir_status weir_stream_connect(ucx_peer *peer, const weir_ucx_address *address,
                                unsigned timeout_ms);
void weir_stream_disconnect(ucx_peer *peer); /* nothing is written any more */

/* ucx_stream_read.c */
weir_status weir_stream_begin(ucx_transfer *transfer);
/* Asks and takes what has come, for a millisecond or so; true when anything has moved. A peer that
 * is lost says so itself. */
bool weir_stream_turn(ucx_transfer *transfer, bool ask);
/* Sleeps until something has come for any transfer of the transport, or ms have passed. */
void weir_stream_sleep(ucx_transport *ucx, unsigned ms);
void weir_stream_end(ucx_transfer *transfer);

#endif
