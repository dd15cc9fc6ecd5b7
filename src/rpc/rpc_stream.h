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

typedef enum weir_rpc_stream_state {
    WEIR_RPC_STREAM_READING,
    WEIR_RPC_STREAM_WAITING,  /* the request is whole, other answers occupy the memory */
    WEIR_RPC_STREAM_ANSWERED, /* submitted; what still comes in is thrown away */
} weir_rpc_stream_state;

typedef struct weir_rpc_stream {
    struct weir_rpc_stream *next, **previous;
    weir_rpc_shared *shared;
    nghttp2_session *session;
    int32_t id;
    weir_rpc_stream_state state;
    bool remote_ended;
    uint64_t since_ns;      /* when this state began */
    weir_deadline deadline; /* the caller's; 0: none */
    /* headers */
    size_t n_header_bytes;
    bool is_post, is_grpc, is_compressed, has_bad_timeout, has_route;
    weir_rpc_route route;
    char path[96]; /* cut; for the error text */
    weir_grpc_body body;
    unsigned char *answer; /* prefix and message */
    size_t n_answer, n_answer_sent;
} weir_rpc_stream;

/* NULL when memory is out. */
weir_rpc_stream *weir_rpc_stream_open(weir_rpc_shared *shared, nghttp2_session *session, int32_t id,
                                      weir_rpc_stream **list);
void weir_rpc_stream_close(weir_rpc_stream *stream); /* and unlinks it */

/* Each of these may answer the call. */
void weir_rpc_stream_header(weir_rpc_stream *stream, const char *name, size_t n_name,
                            const char *value, size_t n_value);
void weir_rpc_stream_headers_end(weir_rpc_stream *stream);
void weir_rpc_stream_data(weir_rpc_stream *stream, const unsigned char *data, size_t n);
void weir_rpc_stream_request_end(weir_rpc_stream *stream);
/* Calls the handler of a request that waited, if there is memory. */
void weir_rpc_stream_answer_waiting(weir_rpc_stream *stream);
/* Answers without a message. */
void weir_rpc_stream_refuse(weir_rpc_stream *stream, weir_rpc_code code, const char *text);

#endif
