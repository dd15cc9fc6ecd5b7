/* SPDX-License-Identifier: Apache-2.0 */
/* rpc_connection.c - nghttp2's callbacks handed to streams, and the time limits of a connection. */
#include "rpc/rpc_connection.h"

#include <stdio.h>
#include <time.h>
#include <unistd.h>

#include "base/error.h"
#include "rpc/rpc_channel.h"
#include "rpc/rpc_patience.h"
#include "rpc/rpc_stream.h"

#define NS_PER_S 1000000000ull
#define FRAME_HEADER_BYTES 9u
#define GREETING_S 10u /* from accept to the client's first SETTINGS */
#define IDLE_S 900u    /* without a call */
/* Where others find no place; the greeting's for all who never called. */
#define CROWDED_GREETING_S 1u
#define CROWDED_IDLE_S 30u
#define CROWDED_REQUEST_S 2u               /* of a request that is not whole */
#define READ_TURN_BYTES ((size_t)64 << 10) /* then it is the next connection's turn */
#define HANDLE_TURN_NS 250000ull           /* the same for its calls */
#define LONG_CALL_NS 250000
#define UNKNOWN_CALL_NS INT64_MAX
#define STALL_NS 100000000ull /* who takes nothing for so long makes room for others' answers */
/* One block of headers; what is between one call's bound and this one ends the call alone. */
#define MAX_BLOCK_BYTES (4 * WEIR_RPC_MAX_HEADER_BYTES)

struct weir_rpc_connection {
    weir_rpc_connection *next, **previous;                 /* of shared->connections */
    weir_rpc_connection *next_pending, **previous_pending; /* of shared->pending; NULL: not there */
    weir_rpc_calls calls;
    weir_rpc_channel channel;
    weir_rpc_host *host;
    weir_rpc_patience patience;
    size_t block_bytes; /* of the headers that are coming */
    bool is_refused, has_greeted, has_called, is_touched, is_doomed;
    bool is_abusive, is_faulty; /* it used up its patience; it made HTTP/2 end the session */
    int64_t call_ns;            /* what one of its calls takes */
    uint64_t active_ns;         /* when a call last began or ended */
    uint64_t moved_ns; /* when an answer's bytes last left, or the first of them came to be */
    char peer[WEIR_RPC_PEER_TEXT];
};

/* ---- nghttp2's callbacks ---------------------------------------------------------------------*/

/* Ends the session in the middle of what came. */
static int lose_patience(weir_rpc_connection *connection)
{
    connection->is_abusive = true;
    return NGHTTP2_ERR_CALLBACK_FAILURE;
}

static int on_begin_frame(nghttp2_session *session, const nghttp2_frame_hd *frame, void *user_data)
{
    (void)session;
    weir_rpc_connection *connection = user_data;
    connection->calls.shared->counts.in_bytes += frame->length + FRAME_HEADER_BYTES;
    unsigned cost = weir_rpc_frame_cost(frame->type, frame->flags, frame->length);
    return weir_rpc_patience_spend(&connection->patience, cost) ? 0 : lose_patience(connection);
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
    connection->has_called = true;
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
        return lose_patience(connection);
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
    if (frame->hd.type == NGHTTP2_GOAWAY && frame->goaway.error_code != NGHTTP2_NO_ERROR)
        connection->is_faulty = true;
    /* The fault was in what came: streams beyond the bound, or frames that no stream may have. */
    if (frame->hd.type == NGHTTP2_RST_STREAM && frame->rst_stream.error_code != NGHTTP2_NO_ERROR &&
        !weir_rpc_patience_spend(&connection->patience, WEIR_RPC_PATIENCE_PER_FAULT))
        connection->is_abusive = true; /* what is being written is written first */
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
                                     weir_rpc_host *host, weir_rpc_connection **out)
{
    weir_rpc_connection *connection = weir_rpc_heap_alloc(&shared->heap, sizeof(*connection));
    if (connection == NULL) {
        close(fd);
        return WEIR_ERR_NO_MEMORY;
    }
    *connection = (weir_rpc_connection){ .host = host,
                                         .call_ns = UNKNOWN_CALL_NS,
                                         .active_ns = weir_now_ns() };
    weir_rpc_patience_init(&connection->patience, connection->active_ns);
    snprintf(connection->peer, sizeof(connection->peer), "%s", peer);
    connection->calls = (weir_rpc_calls){ .shared = shared,
                                          .connection = connection,
                                          .peer = connection->peer,
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
    leave_pending(connection);
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

/* Frees the answers of the connection that holds the most and takes none of them, and ends it.
 * False: all of them are being taken. */
static bool make_room(weir_rpc_shared *shared)
{
    uint64_t now_ns = weir_now_ns();
    weir_rpc_connection *worst = NULL;
    for (weir_rpc_connection *each = shared->connections; each != NULL; each = each->next) {
        if (each->calls.answer_bytes != 0 && now_ns > each->moved_ns + STALL_NS &&
            (worst == NULL || each->calls.answer_bytes > worst->calls.answer_bytes))
            worst = each;
    }
    if (worst == NULL)
        return false;
    weir_rpc_calls_drop_answers(&worst->calls);
    weir_rpc_connection_doom(worst);
    return true;
}

/* A connection that reads its answers is not kept waiting by others that do not. */
static bool may_handle(weir_rpc_calls *calls)
{
    if (weir_rpc_calls_may_answer(calls))
        return true;
    return calls->answer_bytes == 0 && make_room(calls->shared) && weir_rpc_calls_may_answer(calls);
}

/* Those whose calls take long, or whose calls nobody knows yet, share a part of each round, so that
 * many of them at once delay the others by no more than one of their calls. */
static bool is_due(const weir_rpc_connection *connection)
{
    return connection->call_ns < LONG_CALL_NS || connection->calls.shared->long_left_ns > 0;
}

/* Of this thread: what others on the machine take of its time is not the call's fault. */
static uint64_t cpu_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return (uint64_t)now.tv_sec * NS_PER_S + (uint64_t)now.tv_nsec;
}

/* Looks at the slower clock only when the faster one says that it may matter. */
static void handle_call(weir_rpc_connection *connection, weir_rpc_stream *stream,
                        uint64_t *begin_cpu_ns)
{
    uint64_t begin_ns = weir_now_ns();
    int64_t average_ns = connection->call_ns;
    weir_rpc_stream_handle(stream);
    connection->moved_ns = weir_now_ns();
    uint64_t taken_ns = connection->moved_ns - begin_ns;
    if (taken_ns >= LONG_CALL_NS) {
        uint64_t now_ns = cpu_ns();
        taken_ns = now_ns - *begin_cpu_ns;
        *begin_cpu_ns = now_ns;
    }
    if (average_ns >= LONG_CALL_NS)
        connection->calls.shared->long_left_ns -= (int64_t)taken_ns;
    connection->call_ns = average_ns == UNKNOWN_CALL_NS
                              ? (int64_t)taken_ns
                              : average_ns + ((int64_t)taken_ns - average_ns) / 4;
}

/* Calls handlers in the order of the calls' coming, until the turn is over. */
static void handle_calls(weir_rpc_connection *connection)
{
    weir_rpc_calls *calls = &connection->calls;
    if (calls->n_waiting == 0 || !is_due(connection))
        return;
    uint64_t begin_cpu_ns = cpu_ns(), end_ns = weir_now_ns() + HANDLE_TURN_NS;
    for (weir_rpc_stream *stream = calls->first; stream != NULL; stream = stream->next) {
        if (stream->state != WEIR_RPC_STREAM_WAITING)
            continue;
        if (!is_due(connection) || !may_handle(calls))
            return;
        handle_call(connection, stream, &begin_cpu_ns);
        if (calls->n_waiting == 0 || connection->moved_ns > end_ns)
            return;
    }
}

/* Reads, and knows the peer by its certificate from when it has shown it. */
static weir_status hear(weir_rpc_connection *connection)
{
    weir_rpc_channel *channel = &connection->channel;
    bool is_new = weir_rpc_channel_deadline(channel) != 0;
    weir_status status = weir_rpc_channel_read(channel, READ_TURN_BYTES);
    if (!is_new)
        return status;
    const char *name = weir_rpc_channel_peer_name(channel);
    connection->is_refused = status != WEIR_OK && status != WEIR_ERR_PEER_LOST &&
                             weir_rpc_channel_deadline(channel) != 0;
    if (name[0] != '\0')
        snprintf(connection->peer, sizeof(connection->peer), "%s", name);
    return status;
}

static weir_status take_turn(weir_rpc_connection *connection, bool is_readable)
{
    weir_rpc_channel *channel = &connection->channel;
    weir_status status = WEIR_OK;
    connection->calls.turn_bytes = 0;
    if (weir_rpc_channel_is_blocked(channel))
        return weir_rpc_channel_write(channel);
    if (is_readable)
        status = hear(connection);
    if (status != WEIR_OK)
        return status;
    handle_calls(connection);
    return weir_rpc_channel_write(channel);
}

/* Says why to those who listen. */
static void dismiss(weir_rpc_connection *connection)
{
    connection->calls.shared->counts.dropped++;
    if (!connection->is_abusive)
        return;
    nghttp2_session_terminate_session(connection->channel.session, NGHTTP2_ENHANCE_YOUR_CALM);
    if (!weir_rpc_channel_is_blocked(&connection->channel))
        weir_rpc_channel_write(&connection->channel);
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
    weir_status status = WEIR_OK;
    if (!connection->is_doomed)
        status = take_turn(connection, is_readable);
    bool is_over = status != WEIR_OK || weir_rpc_channel_is_over(&connection->channel);
    if (connection->is_doomed || connection->is_abusive || connection->is_refused ||
        status == WEIR_ERR_FORMAT || (is_over && connection->is_faulty)) {
        dismiss(connection);
        return false;
    }
    if (is_over)
        return false;
    if (connection->calls.turn_bytes != 0)
        connection->moved_ns = weir_now_ns();
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

bool weir_rpc_connection_relieve(weir_rpc_calls *asking)
{
    weir_rpc_connection *largest = asking->connection;
    for (weir_rpc_connection *each = asking->shared->connections; each != NULL; each = each->next) {
        if (each->calls.reading_bytes > largest->calls.reading_bytes)
            largest = each;
    }
    if (largest == asking->connection)
        return false;
    for (weir_rpc_stream *stream = largest->calls.first; stream != NULL; stream = stream->next) {
        if (stream->state == WEIR_RPC_STREAM_READING)
            weir_rpc_stream_refuse(stream, WEIR_RPC_RESOURCE_EXHAUSTED, WEIR_RPC_FULL_TEXT);
    }
    return true;
}

/* ---- time ------------------------------------------------------------------------------------*/

bool weir_rpc_connection_check_time(const weir_rpc_connection *connection, uint64_t now_ns,
                                    bool is_crowded)
{
    if (now_ns <= connection->active_ns) /* it began after the server looked at its clock */
        return true;
    weir_deadline handshake = weir_rpc_channel_deadline(&connection->channel);
    if (handshake != 0 && now_ns >= handshake)
        return false;
    uint64_t silent_ns = now_ns - connection->active_ns;
    uint64_t greeting_s = is_crowded ? CROWDED_GREETING_S : GREETING_S;
    uint64_t idle_s = is_crowded ? CROWDED_IDLE_S : IDLE_S;
    if (!connection->has_greeted || (is_crowded && !connection->has_called))
        return silent_ns <= greeting_s * NS_PER_S;
    const weir_rpc_stream *oldest = connection->calls.first;
    if (oldest == NULL)
        return silent_ns <= idle_s * NS_PER_S;
    return !is_crowded || oldest->state != WEIR_RPC_STREAM_READING ||
           now_ns <= oldest->since_ns + CROWDED_REQUEST_S * NS_PER_S;
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
