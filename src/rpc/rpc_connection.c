/* SPDX-License-Identifier: Apache-2.0 */
/* rpc_connection.c - nghttp2's callbacks handed to streams, and the time limits of a connection.
 *
 * What it does when it is its turn is rpc_turns.c's. */
#include "rpc/rpc_connection.h"

#include <stdio.h>
#include <unistd.h>

#include "base/error.h"
#include "rpc/rpc_connection_core.h"

#define NS_PER_S 1000000000ull
#define FRAME_HEADER_BYTES 9u
#define GREETING_S 10u /* from accept to the client's first SETTINGS */
#define IDLE_S 900u    /* without a call */
/* Where others find no place; the greeting's for all of whom no call was let in. */
#define CROWDED_GREETING_S 1u
#define CROWDED_IDLE_S 30u
#define CROWDED_REQUEST_S 2u /* of a request that is not whole */
/* One block of headers; what is between one call's bound and this one ends the call alone. */
#define MAX_BLOCK_BYTES (4 * WEIR_RPC_MAX_HEADER_BYTES)

/* ---- nghttp2's callbacks ---------------------------------------------------------------------*/

/* Ends the session in the middle of what came. */
static int lose_patience(weir_rpc_connection *connection, const char *why)
{
    connection->is_abusive = true;
    connection->why = why;
    return NGHTTP2_ERR_CALLBACK_FAILURE;
}

static int on_begin_frame(nghttp2_session *session, const nghttp2_frame_hd *frame, void *user_data)
{
    (void)session;
    weir_rpc_connection *connection = user_data;
    connection->calls.shared->counts.in_bytes += frame->length + FRAME_HEADER_BYTES;
    unsigned cost = weir_rpc_frame_cost(frame->type, frame->flags, frame->length);
    if (weir_rpc_patience_spend(&connection->patience, cost))
        return 0;
    return lose_patience(connection, frame->type == NGHTTP2_RST_STREAM
                                         ? "it resets its calls faster than they are worth"
                                         : "it sends more frames than its calls are worth");
}

static int on_begin_headers(nghttp2_session *session, const nghttp2_frame *frame, void *user_data)
{
    weir_rpc_connection *connection = user_data;
    connection->block_bytes = 0;
    if (frame->hd.type != NGHTTP2_HEADERS || frame->headers.cat != NGHTTP2_HCAT_REQUEST)
        return 0;
    weir_rpc_stream *stream = weir_rpc_stream_open(&connection->calls, frame->hd.stream_id);
    if (stream == NULL)
        return NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE;
    if (connection->is_proven)
        connection->active_ns = stream->since_ns;
    nghttp2_session_set_stream_user_data(session, frame->hd.stream_id, stream);
    return 0;
}

static int on_header(nghttp2_session *session, const nghttp2_frame *frame, const uint8_t *name,
                     size_t n_name, const uint8_t *value, size_t n_value, uint8_t flags,
                     void *user_data)
{
    (void)flags;
    weir_rpc_connection *connection = user_data;
    connection->block_bytes += n_name + n_value;
    if (connection->block_bytes > MAX_BLOCK_BYTES)
        return lose_patience(connection, "its headers are too long");
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
static void stop_sender(nghttp2_session *session, int32_t id)
{
    weir_rpc_stream *stream = nghttp2_session_get_stream_user_data(session, id);
    if (stream != NULL && !stream->remote_ended)
        nghttp2_submit_rst_stream(session, NGHTTP2_FLAG_NONE, id, NGHTTP2_NO_ERROR);
}

static int on_frame_send(nghttp2_session *session, const nghttp2_frame *frame, void *user_data)
{
    weir_rpc_connection *connection = user_data;
    connection->calls.shared->counts.out_bytes += frame->hd.length + FRAME_HEADER_BYTES;
    if (frame->hd.type == NGHTTP2_DATA)
        weir_rpc_patience_earn(&connection->patience, WEIR_RPC_PATIENCE_PER_DATA);
    if (frame->hd.type == NGHTTP2_HEADERS && frame->hd.flags & NGHTTP2_FLAG_END_STREAM) {
        weir_rpc_patience_earn(&connection->patience, WEIR_RPC_PATIENCE_PER_CALL);
        stop_sender(session, frame->hd.stream_id);
    }
    if (frame->hd.type == NGHTTP2_GOAWAY && frame->goaway.error_code != NGHTTP2_NO_ERROR) {
        connection->is_faulty = true;
        connection->why = nghttp2_http2_strerror(frame->goaway.error_code);
    }
    /* The fault was in what came: streams beyond the bound, or frames that no stream may have. */
    if (frame->hd.type == NGHTTP2_RST_STREAM && frame->rst_stream.error_code != NGHTTP2_NO_ERROR &&
        !weir_rpc_patience_spend(&connection->patience, WEIR_RPC_PATIENCE_PER_FAULT))
        lose_patience(connection, "it breaks the rules of its calls again and again");
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
    if (connection->is_proven) /* who is turned away again and again is as good as silent */
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
    nghttp2_session_callbacks_set_on_begin_frame_callback(callbacks, on_begin_frame);
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
    if (status != WEIR_OK)
        return status;
    status = weir_rpc_channel_secure(&connection->channel, connection->calls.shared->tls, NULL);
    if (status != WEIR_OK)
        weir_rpc_channel_close(&connection->channel);
    return status;
}

/* What the channel announces is this library's default. */
static weir_status announce_streams(weir_rpc_connection *connection)
{
    unsigned n_streams = connection->calls.shared->limits.streams;
    const nghttp2_settings_entry entry = { NGHTTP2_SETTINGS_MAX_CONCURRENT_STREAMS, n_streams };
    if (n_streams == WEIR_RPC_MAX_STREAMS ||
        nghttp2_submit_settings(connection->channel.session, NGHTTP2_FLAG_NONE, &entry, 1) == 0)
        return WEIR_OK;
    weir_rpc_channel_close(&connection->channel);
    return weir_fail(WEIR_ERR_NO_MEMORY, "out of memory for an HTTP/2 session");
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

weir_status weir_rpc_connection_open(weir_rpc_shared *shared, int fd, const char *peer,
                                     weir_rpc_host *host, weir_rpc_connection **out)
{
    weir_rpc_connection *connection = weir_rpc_heap_alloc(&shared->heap, sizeof(*connection));
    if (connection == NULL) {
        close(fd);
        return WEIR_ERR_NO_MEMORY;
    }
    *connection = (weir_rpc_connection){ .host = host,
                                         .call_ns = WEIR_RPC_UNKNOWN_CALL_NS,
                                         .active_ns = weir_now_ns() };
    weir_rpc_patience_init(&connection->patience, connection->active_ns);
    snprintf(connection->peer, sizeof(connection->peer), "%s", peer);
    connection->calls = (weir_rpc_calls){ .shared = shared,
                                          .connection = connection,
                                          .peer = connection->peer,
                                          .host = host,
                                          .last = &connection->calls.first };
    weir_status status = open_channel(connection, fd);
    if (status == WEIR_OK)
        status = announce_streams(connection);
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
    weir_rpc_connection_leave_pending(connection);
    unlink_from_all(connection);
    shared->counts.open_connections--;
    weir_rpc_channel_close(&connection->channel);
    if (connection->host != NULL)
        weir_rpc_hosts_leave(&shared->hosts, &shared->heap, connection->host);
    weir_rpc_heap_free(&shared->heap, connection);
}

const char *weir_rpc_connection_peer(const weir_rpc_connection *connection)
{
    return connection->peer;
}

bool weir_rpc_connection_is_refused(const weir_rpc_connection *connection)
{
    return connection->is_refused;
}

const char *weir_rpc_connection_why(const weir_rpc_connection *connection)
{
    return connection->why;
}

int weir_rpc_connection_fd(const weir_rpc_connection *connection)
{
    return connection->channel.fd;
}

weir_rpc_connection *weir_rpc_connection_next(const weir_rpc_connection *connection)
{
    return connection->next;
}

/* ---- time ------------------------------------------------------------------------------------*/

const char *weir_rpc_connection_check_time(const weir_rpc_connection *connection, uint64_t now_ns,
                                           bool is_crowded)
{
    if (now_ns <= connection->active_ns) /* it began after the server looked at its clock */
        return NULL;
    weir_deadline handshake = weir_rpc_channel_deadline(&connection->channel);
    if (handshake != 0 && now_ns >= handshake)
        return "its TLS handshake did not end in time";
    uint64_t silent_ns = now_ns - connection->active_ns;
    uint64_t greeting_s = is_crowded ? CROWDED_GREETING_S : GREETING_S;
    uint64_t idle_s = is_crowded ? CROWDED_IDLE_S : IDLE_S;
    if (!connection->has_greeted)
        return silent_ns <= greeting_s * NS_PER_S ? NULL : "it is silent: no HTTP/2 came";
    if (is_crowded && !connection->is_proven)
        return silent_ns <= greeting_s * NS_PER_S ? NULL : "it makes no call, others find no place";
    const weir_rpc_stream *oldest = connection->calls.first;
    if (oldest == NULL)
        return silent_ns <= idle_s * NS_PER_S ? NULL : "it is idle";
    bool is_slow = is_crowded && oldest->state == WEIR_RPC_STREAM_READING &&
                   now_ns > oldest->since_ns + CROWDED_REQUEST_S * NS_PER_S;
    return is_slow ? "its request does not come to an end, and others find no place" : NULL;
}

void weir_rpc_connection_prove(weir_rpc_connection *connection)
{
    connection->is_proven = true;
    connection->active_ns = weir_now_ns();
}

/* Those of whom no call was let in go before those that only rest, and of each the longest first.
 */
static bool goes_before(const weir_rpc_connection *a, const weir_rpc_connection *b)
{
    if (a->is_proven != b->is_proven)
        return !a->is_proven;
    return a->active_ns < b->active_ns;
}

weir_rpc_connection *weir_rpc_connection_idlest(const weir_rpc_shared *shared, uint64_t now_ns)
{
    weir_rpc_connection *idlest = NULL;
    for (weir_rpc_connection *each = shared->connections; each != NULL; each = each->next) {
        bool is_calling = each->is_proven && each->calls.first != NULL;
        if (!is_calling && now_ns > each->active_ns + CROWDED_GREETING_S * NS_PER_S &&
            (idlest == NULL || goes_before(each, idlest)))
            idlest = each;
    }
    return idlest;
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
