/* SPDX-License-Identifier: Apache-2.0 */
/* rpc_stream.h - one call on the server: its headers, request bytes and answer bytes.
 *
 * Answers are handed to the HTTP/2 session; whoever drives the connection writes them out.
 */
#ifndef WEIR_RPC_RPC_STREAM_H
#define WEIR_RPC_RPC_STREAM_H

#include <nghttp2/nghttp2.h>

#include "rpc/grpc_wire.h"
#include "rpc/rpc_connection.h"
#include "rpc/rpc_dispatch.h"

#define WEIR_RPC_WRITE_TURN_BYTES ((size_t)256 << 10) /* then it is the next connection's turn */

#define WEIR_RPC_FULL_TEXT "the server holds as many request bytes as it may"

struct weir_rpc_stream;

/* The calls of one connection, in the order of their coming. */
typedef struct weir_rpc_calls {
    weir_rpc_shared *shared;
    weir_rpc_connection *connection;
    nghttp2_session *session;
    const char *peer;
    weir_rpc_host *host; /* NULL: none */
    weir_rpc_usage usage;
    struct weir_rpc_stream *first, **last;
    unsigned n_waiting;
    size_t answer_bytes,
        reading_bytes; /* its part of what is shared; of requests, what is not whole */
    size_t largest_answer;
    size_t turn_bytes; /* of answers that left in this turn */
} weir_rpc_calls;

typedef enum weir_rpc_stream_state {
    WEIR_RPC_STREAM_READING,
    WEIR_RPC_STREAM_WAITING,  /* the request is whole; its turn comes */
    WEIR_RPC_STREAM_HANDLED,  /* its handler is running */
    WEIR_RPC_STREAM_PARKED,   /* somebody keeps its ticket */
    WEIR_RPC_STREAM_ANSWERED, /* submitted; what still comes in is thrown away */
} weir_rpc_stream_state;

/* Kept within 256 bytes, since thousands may be parked. */
typedef struct weir_rpc_stream {
    struct weir_rpc_stream *next, **previous;
    weir_rpc_calls *calls;
    int32_t id;
    uint8_t state;
    bool remote_ended, has_ticket;
    bool is_post, is_grpc, is_compressed, has_bad_timeout, has_route, has_token, has_trace;
    uint32_t n_header_bytes;
    uint64_t since_ns; /* when this state began */
    weir_rpc_timer timer;
    weir_rpc_call_info call; /* ticket and bytes from when its handler is called */
    weir_rpc_route route;
    char *path; /* of no route, cut; for the error text */
    weir_grpc_body body;
    unsigned char *answer; /* prefix and message */
    size_t n_answer, n_answer_sent;
} weir_rpc_stream;

/* NULL when memory is out. */
weir_rpc_stream *weir_rpc_stream_open(weir_rpc_calls *calls, int32_t id);
void weir_rpc_stream_close(weir_rpc_stream *stream); /* and unlinks it */
weir_rpc_stream *weir_rpc_stream_of_timer(weir_rpc_timer *timer);

/* Each of these may answer the call. */
void weir_rpc_stream_header(weir_rpc_stream *stream, const char *name, size_t n_name,
                            const char *value, size_t n_value);
void weir_rpc_stream_headers_end(weir_rpc_stream *stream);
void weir_rpc_stream_data(weir_rpc_stream *stream, const unsigned char *data, size_t n);
void weir_rpc_stream_request_end(weir_rpc_stream *stream);
/* Of a call that waits: calls its handler. */
void weir_rpc_stream_handle(weir_rpc_stream *stream);
/* Of one that is handled or parked: its answer. */
void weir_rpc_stream_answer(weir_rpc_stream *stream, weir_rpc_code code,
                            const ProtobufCMessage *message, const char *text);
/* Answers without a message. */
void weir_rpc_stream_refuse(weir_rpc_stream *stream, weir_rpc_code code, const char *text);
/* Its timer is due. */
void weir_rpc_stream_time_up(weir_rpc_stream *stream, uint64_t now_ns);

/* Memory allows that this connection's next call is handled. */
bool weir_rpc_calls_may_answer(const weir_rpc_calls *calls);
/* Of a connection that will write no more. */
void weir_rpc_calls_drop_answers(weir_rpc_calls *calls);
/* Refuses what another connection has not sent yet and occupies most with. False: nobody occupies
 * more than the one that asks. */
bool weir_rpc_connection_relieve(weir_rpc_calls *asking);

#endif
