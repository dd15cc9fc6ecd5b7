/* SPDX-License-Identifier: Apache-2.0 */
/* rpc_turns.c - one connection's turn, and the order of turns: what is read, handled and written in
 * one of them is bounded, and so is what one connection may keep the others waiting for. */
#include <stdio.h>
#include <time.h>

#include "base/error.h"
#include "rpc/rpc_connection_core.h"

#define NS_PER_S 1000000000ull
#define READ_TURN_BYTES ((size_t)64 << 10) /* then it is the next connection's turn */
#define HANDLE_TURN_NS 250000ull           /* the same for its calls */
#define LONG_CALL_NS 250000
#define STALL_NS 100000000ull /* who takes nothing for so long makes room for others' answers */

/* ---- waiting for a turn ----------------------------------------------------------------------*/

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

void weir_rpc_connection_leave_pending(weir_rpc_connection *connection)
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
    connection->call_ns = average_ns == WEIR_RPC_UNKNOWN_CALL_NS
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
    if (connection->is_doomed)
        connection->why = "it does not read its answers, others wait for the room";
    else if (connection->why == NULL)
        connection->why = weir_last_error();
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
    weir_rpc_connection_leave_pending(connection);
    if (is_ready(connection) || connection->calls.n_waiting != 0)
        enter_pending(connection);
    return true;
}

/* ---- turns without an event ------------------------------------------------------------------*/

weir_rpc_connection *weir_rpc_connection_take_pending(weir_rpc_shared *shared)
{
    weir_rpc_connection *connection = shared->pending;
    if (connection != NULL)
        weir_rpc_connection_leave_pending(connection);
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
