/* SPDX-License-Identifier: Apache-2.0 */
/* rpc_connection.c - nghttp2's callbacks handed to streams, and the time limits of a connection. */
#include "rpc/rpc_connection.h"

#include <stdio.h>
#include <unistd.h>

#include "base/error.h"
#include "rpc/rpc_channel.h"
#include "rpc/rpc_stream.h"

#define NS_PER_S 1000000000ull
#define GREETING_S 10u                     /* from accept to the client's first SETTINGS */
#define IDLE_S 900u                        /* without a call */
#define READ_TURN_BYTES ((size_t)64 << 10) /* then it is the next connection's turn */
#define HANDLE_TURN_NS 500000ull           /* the same for its calls */

struct weir_rpc_connection {
    weir_rpc_connection *next, **previous;                 /* of shared->connections */
    weir_rpc_connection *next_pending, **previous_pending; /* of shared->pending; NULL: not there */
    weir_rpc_calls calls;
    weir_rpc_channel channel;
    bool has_greeted, is_touched, is_doomed;
    uint64_t active_ns; /* when a call last began or ended */
    char peer[WEIR_RPC_PEER_TEXT];
};

/* ---- nghttp2's callbacks ---------------------------------------------------------------------*/

static int on_begin_headers(nghttp2_session *session, const nghttp2_frame *frame, void *user_data)
{
    weir_rpc_connection *connection = user_data;
    if (frame->hd.type != NGHTTP2_HEADERS || frame->headers.cat != NGHTTP2_HCAT_REQUEST)
        return 0;
    weir_rpc_stream *stream = weir_rpc_stream_open(&connection->calls, frame->hd.stream_id);
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
    weir_status status =
        weir_rpc_channel_open(&connection->channel, fd, &connection->calls.shared->heap,
                              WEIR_RPC_SERVER_SIDE, callbacks, connection);
    nghttp2_session_callbacks_del(callbacks);
    return status;
}

static void link_into(weir_rpc_connection *connection, weir_rpc_connection **list)
{
    connection->next = *list;
    connection->previous = list;
    if (*list != NULL)
        (*list)->previous = &connection->next;
    *list = connection;
}

static void unlink_from_all(weir_rpc_connection *connection)
{
    *connection->previous = connection->next;
    if (connection->next != NULL)
        connection->next->previous = connection->previous;
}

static void enter_pending(weir_rpc_connection *connection)
{
    weir_rpc_shared *shared = connection->calls.shared;
    if (connection->previous_pending != NULL)
        return;
    connection->next_pending = NULL;
    connection->previous_pending = shared->last_pending;
    *shared->last_pending = connection;
    shared->last_pending = &connection->next_pending;
    shared->n_pending++;
}

static void leave_pending(weir_rpc_connection *connection)
{
    weir_rpc_shared *shared = connection->calls.shared;
    connection->is_touched = false;
    if (connection->previous_pending == NULL)
        return;
    *connection->previous_pending = connection->next_pending;
    if (connection->next_pending != NULL)
        connection->next_pending->previous_pending = connection->previous_pending;
    else
        shared->last_pending = connection->previous_pending;
    connection->previous_pending = NULL;
    shared->n_pending--;
}

weir_status weir_rpc_connection_open(weir_rpc_shared *shared, int fd, const char *peer,
                                     weir_rpc_connection **out)
{
    weir_rpc_connection *connection = weir_rpc_heap_alloc(&shared->heap, sizeof(*connection));
    if (connection == NULL) {
        close(fd);
        return WEIR_ERR_NO_MEMORY;
    }
    *connection = (weir_rpc_connection){ .active_ns = weir_now_ns() };
    snprintf(connection->peer, sizeof(connection->peer), "%s", peer);
    connection->calls = (weir_rpc_calls){ .shared = shared,
                                          .connection = connection,
                                          .peer = connection->peer,
                                          .last = &connection->calls.first };
    weir_status status = open_channel(connection, fd);
    if (status != WEIR_OK) {
        weir_rpc_heap_free(&shared->heap, connection);
        return status;
    }
    connection->calls.session = connection->channel.session;
    link_into(connection, &shared->connections);
    shared->counts.open_connections++;
    *out = connection;
    return WEIR_OK;
}

void weir_rpc_connection_close(weir_rpc_connection *connection)
{
    weir_rpc_shared *shared = connection->calls.shared;
    while (connection->calls.first != NULL) /* whoever keeps a ticket may answer others meanwhile */
        weir_rpc_stream_close(connection->calls.first);
    leave_pending(connection);
    unlink_from_all(connection);
    shared->counts.open_connections--;
    weir_rpc_channel_close(&connection->channel);
    weir_rpc_heap_free(&shared->heap, connection);
}

int weir_rpc_connection_fd(const weir_rpc_connection *connection)
{
    return connection->channel.fd;
}

weir_rpc_connection *weir_rpc_connection_next(const weir_rpc_connection *connection)
{
    return connection->next;
}

/* ---- progress --------------------------------------------------------------------------------*/

bool weir_rpc_connection_is_blocked(const weir_rpc_connection *connection)
{
    return weir_rpc_channel_is_blocked(&connection->channel);
}

/* Calls handlers in the order of the calls' coming, until the turn is over. */
static void handle_calls(weir_rpc_connection *connection)
{
    weir_rpc_calls *calls = &connection->calls;
    if (calls->n_waiting == 0)
        return;
    uint64_t begin_ns = weir_now_ns();
    for (weir_rpc_stream *stream = calls->first; stream != NULL; stream = stream->next) {
        if (stream->state != WEIR_RPC_STREAM_WAITING)
            continue;
        if (!weir_rpc_calls_may_answer(calls))
            return;
        weir_rpc_stream_handle(stream);
        if (calls->n_waiting == 0 || weir_now_ns() - begin_ns > HANDLE_TURN_NS)
            return;
    }
}

static weir_status take_turn(weir_rpc_connection *connection, bool is_readable)
{
    weir_rpc_channel *channel = &connection->channel;
    weir_status status = WEIR_OK;
    connection->calls.turn_bytes = 0;
    if (weir_rpc_channel_is_blocked(channel))
        return weir_rpc_channel_write(channel);
    if (is_readable)
        status = weir_rpc_channel_read(channel, READ_TURN_BYTES);
    if (status != WEIR_OK)
        return status;
    handle_calls(connection);
    return weir_rpc_channel_write(channel);
}

/* It goes on without an event: calls wait, or answers were cut short for the others' sake. */
static bool is_ready(const weir_rpc_connection *connection)
{
    if (connection->is_doomed)
        return true;
    if (weir_rpc_channel_is_blocked(&connection->channel))
        return false;
    const weir_rpc_calls *calls = &connection->calls;
    return calls->turn_bytes >= WEIR_RPC_WRITE_TURN_BYTES ||
           (calls->n_waiting != 0 && weir_rpc_calls_may_answer(calls));
}

bool weir_rpc_connection_progress(weir_rpc_connection *connection, bool is_readable)
{
    if (connection->is_doomed) {
        connection->calls.shared->counts.dropped++;
        return false;
    }
    weir_status status = take_turn(connection, is_readable);
    if (status == WEIR_ERR_FORMAT)
        connection->calls.shared->counts.dropped++;
    if (status != WEIR_OK || weir_rpc_channel_is_over(&connection->channel))
        return false;
    leave_pending(connection);
    if (is_ready(connection) || connection->calls.n_waiting != 0)
        enter_pending(connection);
    return true;
}

/* ---- turns without an event ------------------------------------------------------------------*/

weir_rpc_connection *weir_rpc_connection_take_pending(weir_rpc_shared *shared)
{
    weir_rpc_connection *connection = shared->pending;
    if (connection != NULL)
        leave_pending(connection);
    return connection;
}

bool weir_rpc_connection_any_ready(const weir_rpc_shared *shared)
{
    for (const weir_rpc_connection *connection = shared->pending; connection != NULL;
         connection = connection->next_pending) {
        if (connection->is_touched || is_ready(connection))
            return true;
    }
    return false;
}

void weir_rpc_connection_touch(weir_rpc_connection *connection)
{
    connection->is_touched = true;
    enter_pending(connection);
}

void weir_rpc_connection_doom(weir_rpc_connection *connection)
{
    connection->is_doomed = true;
    weir_rpc_connection_touch(connection);
}

/* ---- time ------------------------------------------------------------------------------------*/

bool weir_rpc_connection_check_time(const weir_rpc_connection *connection, uint64_t now_ns)
{
    if (now_ns <= connection->active_ns) /* it began after the server looked at its clock */
        return true;
    uint64_t silent_ns = now_ns - connection->active_ns;
    if (!connection->has_greeted && silent_ns > GREETING_S * NS_PER_S)
        return false;
    return connection->calls.first != NULL || silent_ns <= IDLE_S * NS_PER_S;
}

void weir_rpc_connection_shut(weir_rpc_connection *connection)
{
    for (weir_rpc_stream *stream = connection->calls.first; stream != NULL; stream = stream->next)
        weir_rpc_stream_refuse(stream, WEIR_RPC_UNAVAILABLE, "the server is closing");
    nghttp2_session *session = connection->channel.session;
    nghttp2_submit_goaway(session, NGHTTP2_FLAG_NONE,
                          nghttp2_session_get_last_proc_stream_id(session), NGHTTP2_NO_ERROR, NULL,
                          0);
    weir_rpc_connection_touch(connection);
}
