/* SPDX-License-Identifier: Apache-2.0 */
/* rpc_connection.c - nghttp2's callbacks handed to streams, and the time limits of a connection. */
#include "rpc/rpc_connection.h"

#include <unistd.h>

#include "base/error.h"
#include "rpc/rpc_channel.h"
#include "rpc/rpc_stream.h"

#define NS_PER_S 1000000000ull
#define GREETING_S 10u                      /* from accept to the client's first SETTINGS */
#define IDLE_S 900u                         /* without a call */
#define REQUEST_S 120u                      /* from a call's headers to its last byte */
#define ANSWER_S 300u                       /* from an answer to its last byte taken */
#define UNPACK_BYTES ((size_t)256 << 20)    /* what one request and its answer may unpack to */
#define READ_TURN_BYTES ((size_t)256 << 10) /* then it is the next connection's turn */

struct weir_rpc_connection {
    weir_rpc_connection *next, **previous;
    weir_rpc_shared *shared;
    weir_rpc_channel channel;
    weir_rpc_stream *streams;
    bool has_greeted;
    uint64_t active_ns; /* when a call last began or ended */
};

void weir_rpc_shared_init(weir_rpc_shared *shared, const weir_rpc_service *services,
                          size_t n_services)
{
    *shared = (weir_rpc_shared){ .services = services, .n_services = n_services };
    weir_rpc_heap_init(&shared->heap);
    weir_arena_init(&shared->arena, UNPACK_BYTES);
}

void weir_rpc_shared_close(weir_rpc_shared *shared)
{
    weir_arena_close(&shared->arena);
    weir_rpc_heap_close(&shared->heap);
}

/* ---- nghttp2's callbacks ---------------------------------------------------------------------*/

static int on_begin_headers(nghttp2_session *session, const nghttp2_frame *frame, void *user_data)
{
    weir_rpc_connection *connection = user_data;
    if (frame->hd.type != NGHTTP2_HEADERS || frame->headers.cat != NGHTTP2_HCAT_REQUEST)
        return 0;
    weir_rpc_stream *stream = weir_rpc_stream_open(connection->shared, session, frame->hd.stream_id,
                                                   &connection->streams);
    if (stream == NULL)
        return NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE;
    connection->active_ns = stream->since_ns;
    nghttp2_session_set_stream_user_data(session, frame->hd.stream_id, stream);
    return 0;
}

static int on_header(nghttp2_session *session, const nghttp2_frame *frame, const uint8_t *name,
                     size_t n_name, const uint8_t *value, size_t n_value, uint8_t flags,
                     void *user_data)
{
    (void)flags;
    (void)user_data;
    weir_rpc_stream *stream = nghttp2_session_get_stream_user_data(session, frame->hd.stream_id);
    if (stream != NULL)
        weir_rpc_stream_header(stream, (const char *)name, n_name, (const char *)value, n_value);
    return 0;
}

static int on_frame_recv(nghttp2_session *session, const nghttp2_frame *frame, void *user_data)
{
    weir_rpc_connection *connection = user_data;
    if (frame->hd.type == NGHTTP2_SETTINGS)
        connection->has_greeted = true;
    if (frame->hd.type != NGHTTP2_HEADERS && frame->hd.type != NGHTTP2_DATA)
        return 0;
    weir_rpc_stream *stream = nghttp2_session_get_stream_user_data(session, frame->hd.stream_id);
    if (stream == NULL)
        return 0;
    if (frame->hd.type == NGHTTP2_HEADERS)
        weir_rpc_stream_headers_end(stream);
    if (frame->hd.flags & NGHTTP2_FLAG_END_STREAM)
        weir_rpc_stream_request_end(stream);
    return 0;
}

static int on_data(nghttp2_session *session, uint8_t flags, int32_t id, const uint8_t *data,
                   size_t n, void *user_data)
{
    (void)flags;
    (void)user_data;
    weir_rpc_stream *stream = nghttp2_session_get_stream_user_data(session, id);
    if (stream != NULL)
        weir_rpc_stream_data(stream, data, n);
    return 0;
}

/* An answer that ended before its request did: tell the client to stop sending. Only once the
 * trailers have left, since a reset before them would swallow them. */
static int on_frame_send(nghttp2_session *session, const nghttp2_frame *frame, void *user_data)
{
    (void)user_data;
    if (frame->hd.type != NGHTTP2_HEADERS || !(frame->hd.flags & NGHTTP2_FLAG_END_STREAM))
        return 0;
    weir_rpc_stream *stream = nghttp2_session_get_stream_user_data(session, frame->hd.stream_id);
    if (stream != NULL && !stream->remote_ended)
        nghttp2_submit_rst_stream(session, NGHTTP2_FLAG_NONE, frame->hd.stream_id,
                                  NGHTTP2_NO_ERROR);
    return 0;
}

static int on_stream_close(nghttp2_session *session, int32_t id, uint32_t error_code,
                           void *user_data)
{
    (void)error_code;
    weir_rpc_connection *connection = user_data;
    weir_rpc_stream *stream = nghttp2_session_get_stream_user_data(session, id);
    if (stream == NULL)
        return 0;
    weir_rpc_stream_close(stream);
    nghttp2_session_set_stream_user_data(session, id, NULL);
    connection->active_ns = weir_now_ns();
    return 0;
}

/* ---- life ------------------------------------------------------------------------------------*/

static weir_status open_channel(weir_rpc_connection *connection, int fd)
{
    nghttp2_session_callbacks *callbacks;
    if (nghttp2_session_callbacks_new(&callbacks) != 0) {
        close(fd);
        return weir_fail(WEIR_ERR_NO_MEMORY, "out of memory for an HTTP/2 session");
    }
    nghttp2_session_callbacks_set_on_begin_headers_callback(callbacks, on_begin_headers);
    nghttp2_session_callbacks_set_on_header_callback(callbacks, on_header);
    nghttp2_session_callbacks_set_on_frame_recv_callback(callbacks, on_frame_recv);
    nghttp2_session_callbacks_set_on_data_chunk_recv_callback(callbacks, on_data);
    nghttp2_session_callbacks_set_on_frame_send_callback(callbacks, on_frame_send);
    nghttp2_session_callbacks_set_on_stream_close_callback(callbacks, on_stream_close);
    weir_status status = weir_rpc_channel_open(&connection->channel, fd, &connection->shared->heap,
                                               WEIR_RPC_SERVER_SIDE, callbacks, connection);
    nghttp2_session_callbacks_del(callbacks);
    return status;
}

weir_status weir_rpc_connection_open(weir_rpc_shared *shared, int fd, weir_rpc_connection **out)
{
    weir_rpc_connection *connection = weir_rpc_heap_alloc(&shared->heap, sizeof(*connection));
    if (connection == NULL) {
        close(fd);
        return WEIR_ERR_NO_MEMORY;
    }
    *connection = (weir_rpc_connection){ .shared = shared, .active_ns = weir_now_ns() };
    weir_status status = open_channel(connection, fd);
    if (status != WEIR_OK) {
        weir_rpc_heap_free(&shared->heap, connection);
        return status;
    }
    *out = connection;
    return WEIR_OK;
}

void weir_rpc_connection_close(weir_rpc_connection *connection)
{
    while (connection->streams != NULL)
        weir_rpc_stream_close(connection->streams);
    weir_rpc_channel_close(&connection->channel);
    weir_rpc_heap_free(&connection->shared->heap, connection);
}

int weir_rpc_connection_fd(const weir_rpc_connection *connection)
{
    return connection->channel.fd;
}

/* ---- the server's list -----------------------------------------------------------------------*/

weir_rpc_connection *weir_rpc_connection_next(const weir_rpc_connection *connection)
{
    return connection->next;
}

void weir_rpc_connection_link(weir_rpc_connection *connection, weir_rpc_connection **list)
{
    connection->next = *list;
    connection->previous = list;
    if (*list != NULL)
        (*list)->previous = &connection->next;
    *list = connection;
}

void weir_rpc_connection_unlink(weir_rpc_connection *connection)
{
    *connection->previous = connection->next;
    if (connection->next != NULL)
        connection->next->previous = connection->previous;
}

/* ---- progress --------------------------------------------------------------------------------*/

bool weir_rpc_connection_is_blocked(const weir_rpc_connection *connection)
{
    return weir_rpc_channel_is_blocked(&connection->channel);
}

bool weir_rpc_connection_progress(weir_rpc_connection *connection, bool is_readable)
{
    weir_rpc_channel *channel = &connection->channel;
    weir_status status = WEIR_OK;
    if (is_readable && !weir_rpc_channel_is_blocked(channel))
        status = weir_rpc_channel_read(channel, READ_TURN_BYTES);
    if (status == WEIR_OK)
        status = weir_rpc_channel_write(channel);
    return status == WEIR_OK && !weir_rpc_channel_is_over(channel);
}

void weir_rpc_connection_answer_waiting(weir_rpc_connection *connection)
{
    for (weir_rpc_stream *stream = connection->streams; stream != NULL; stream = stream->next)
        weir_rpc_stream_answer_waiting(stream);
}

/* A call that began after the server looked at its clock has lasted for nothing. */
static uint64_t elapsed(uint64_t since_ns, uint64_t now_ns)
{
    return now_ns > since_ns ? now_ns - since_ns : 0;
}

bool weir_rpc_connection_check_time(weir_rpc_connection *connection, uint64_t now_ns)
{
    uint64_t silent_ns = elapsed(connection->active_ns, now_ns);
    if (!connection->has_greeted && silent_ns > GREETING_S * NS_PER_S)
        return false;
    if (connection->streams == NULL)
        return silent_ns <= IDLE_S * NS_PER_S;
    for (weir_rpc_stream *stream = connection->streams; stream != NULL; stream = stream->next) {
        uint64_t since_ns = elapsed(stream->since_ns, now_ns);
        if (stream->state == WEIR_RPC_STREAM_ANSWERED) {
            if (since_ns > ANSWER_S * NS_PER_S)
                return false;
        } else if (stream->deadline != 0 && now_ns >= stream->deadline) {
            weir_rpc_stream_refuse(stream, WEIR_RPC_DEADLINE_EXCEEDED, "the deadline passed");
        } else if (since_ns > REQUEST_S * NS_PER_S) {
            weir_rpc_stream_refuse(stream, WEIR_RPC_DEADLINE_EXCEEDED,
                                   "the request did not come in time");
        }
    }
    return true;
}

void weir_rpc_connection_shut(weir_rpc_connection *connection)
{
    for (weir_rpc_stream *stream = connection->streams; stream != NULL; stream = stream->next)
        weir_rpc_stream_refuse(stream, WEIR_RPC_UNAVAILABLE, "the server is closing");
    nghttp2_session *session = connection->channel.session;
    nghttp2_submit_goaway(session, NGHTTP2_FLAG_NONE,
                          nghttp2_session_get_last_proc_stream_id(session), NGHTTP2_NO_ERROR, NULL,
                          0);
}
