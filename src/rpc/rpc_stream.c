/* SPDX-License-Identifier: Apache-2.0 */
/* rpc_stream.c - from headers and data to one answer.
 *
 * Whatever is wrong with a call is answered as gRPC says, at once, as trailers alone; only what is
 * no gRPC at all gets an HTTP status. Memory is bounded over all calls of the server: requests
 * beyond the bound are refused, answers beyond it wait, because the request is already here and the
 * memory comes back as soon as others have read theirs. */
#include "rpc/rpc_stream.h"

#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include "base/error.h"
#include "rpc/rpc_channel.h"
#include "rpc/rpc_message.h"
#include "rpc/rpc_usage.h"

#define NS_PER_S 1000000000ull
/* Bounds of a state, each with one second more for each MiB. */
#define REQUEST_S 30u /* from a call's headers to its last byte */
#define ANSWER_S 30u  /* from an answer to its last byte taken */
#define PARKED_S 900u /* from a call's handling to its answer, when the caller has no deadline */
/* Answers unsent: those who have some of their own wait; everybody waits; this one waits. */
#define BUSY_ANSWER_BYTES ((size_t)64 << 20)
#define MAX_ANSWER_BYTES ((size_t)256 << 20)
#define RESERVE_ANSWER_BYTES ((size_t)64 << 20) /* beyond it, for those whose answers are small */
#define SMALL_ANSWER_BYTES ((size_t)64 << 10)
#define CONNECTION_ANSWER_BYTES ((size_t)4 << 20)
#define ARENA_KEEP_BYTES ((size_t)64 << 20)
#define PATH_BYTES 96u

#define HEADER(name_text, value_text, n_value)                                             \
    {                                                                                      \
        (uint8_t *)(name_text), (uint8_t *)(value_text), sizeof(name_text) - 1, (n_value), \
            NGHTTP2_NV_FLAG_NONE                                                           \
    }
#define FIXED(name_text, value_text) HEADER(name_text, value_text, sizeof(value_text) - 1)

_Static_assert(sizeof(weir_rpc_stream) <= 256, "what a parked call takes");

/* ---- life ------------------------------------------------------------------------------------*/

weir_rpc_stream *weir_rpc_stream_of_timer(weir_rpc_timer *timer)
{
    return (void *)((char *)timer - offsetof(weir_rpc_stream, timer));
}

static uint64_t later(uint64_t since_ns, unsigned seconds, size_t n_bytes)
{
    return since_ns + (seconds + (n_bytes >> 20)) * NS_PER_S;
}

/* The earlier of the caller's deadline and what this state may last. */
static uint64_t due_ns(const weir_rpc_stream *stream)
{
    uint64_t deadline = stream->call.deadline != 0 ? stream->call.deadline : WEIR_RPC_NEVER;
    uint64_t bound;
    switch (stream->state) {
    case WEIR_RPC_STREAM_READING:
        bound = later(stream->since_ns, REQUEST_S, stream->body.n_bytes);
        return deadline < bound ? deadline : bound;
    case WEIR_RPC_STREAM_ANSWERED:
        return later(stream->since_ns, ANSWER_S, stream->n_answer);
    default:
        return stream->call.deadline != 0 ? deadline : later(stream->since_ns, PARKED_S, 0);
    }
}

static void set_timer(weir_rpc_stream *stream)
{
    weir_rpc_timers_set(&stream->calls->shared->timers, &stream->timer, due_ns(stream));
}

weir_rpc_stream *weir_rpc_stream_open(weir_rpc_calls *calls, int32_t id)
{
    weir_rpc_shared *shared = calls->shared;
    if (!weir_rpc_timers_reserve(&shared->timers, &shared->heap, shared->n_streams + 1))
        return NULL;
    weir_rpc_stream *stream = weir_rpc_heap_alloc(&shared->heap, sizeof(*stream));
    if (stream == NULL)
        return NULL;
    *stream = (weir_rpc_stream){ .previous = calls->last,
                                 .calls = calls,
                                 .id = id,
                                 .since_ns = weir_now_ns(),
                                 .call.peer = calls->peer,
                                 .body.max_bytes = shared->limits.message_bytes };
    *calls->last = stream;
    calls->last = &stream->next;
    shared->n_streams++;
    set_timer(stream);
    return stream;
}

static void drop_request(weir_rpc_stream *stream)
{
    weir_rpc_usage_bytes(stream->calls, stream->body.capacity, 0);
    weir_grpc_body_close(&stream->body, &stream->calls->shared->heap);
}

static void drop_answer(weir_rpc_stream *stream)
{
    stream->calls->answer_bytes -= stream->n_answer;
    stream->calls->shared->answer_bytes -= stream->n_answer;
    weir_rpc_heap_free(&stream->calls->shared->heap, stream->answer);
    stream->answer = NULL;
    stream->n_answer = stream->n_answer_sent = 0;
}

static void count_state(weir_rpc_stream *stream, int by)
{
    if (stream->state == WEIR_RPC_STREAM_READING) {
        stream->calls->reading_bytes += (size_t)by * stream->body.capacity;
    } else if (stream->state == WEIR_RPC_STREAM_WAITING) {
        stream->calls->n_waiting += (unsigned)by;
        stream->calls->shared->n_waiting += (unsigned)by;
    } else if (stream->state == WEIR_RPC_STREAM_PARKED) {
        weir_rpc_usage_park(stream->calls, by);
    }
}

static void enter(weir_rpc_stream *stream, weir_rpc_stream_state state)
{
    count_state(stream, -1);
    stream->state = (uint8_t)state;
    stream->since_ns = weir_now_ns();
    count_state(stream, 1);
    set_timer(stream);
}

/* From here on the ticket names nobody. */
static void end_ticket(weir_rpc_stream *stream)
{
    if (stream->has_ticket)
        weir_rpc_tickets_release(&stream->calls->shared->tickets, stream->call.ticket);
    stream->has_ticket = false;
}

/* Who keeps the ticket learns that it is over. */
static void lose_ticket(weir_rpc_stream *stream)
{
    const weir_rpc_shared *shared = stream->calls->shared;
    bool is_kept = stream->has_ticket && stream->state == WEIR_RPC_STREAM_PARKED;
    end_ticket(stream);
    if (is_kept && shared->gone != NULL)
        shared->gone(shared->gone_context, stream->call.ticket);
}

void weir_rpc_stream_close(weir_rpc_stream *stream)
{
    weir_rpc_shared *shared = stream->calls->shared;
    lose_ticket(stream);
    count_state(stream, -1);
    drop_request(stream);
    drop_answer(stream);
    weir_rpc_timers_set(&shared->timers, &stream->timer, WEIR_RPC_NEVER);
    shared->n_streams--;
    *stream->previous = stream->next;
    if (stream->next != NULL)
        stream->next->previous = stream->previous;
    else
        stream->calls->last = stream->previous;
    weir_rpc_heap_free(&shared->heap, stream->path);
    weir_rpc_heap_free(&shared->heap, (void *)stream->call.trace);
    weir_rpc_heap_free(&shared->heap, stream);
}

/* ---- answers ---------------------------------------------------------------------------------*/

/* A handler that is still running goes on reading its request. */
static void become_answered(weir_rpc_stream *stream, bool is_failure)
{
    weir_rpc_calls *calls = stream->calls;
    bool is_read = stream->state == WEIR_RPC_STREAM_HANDLED;
    lose_ticket(stream);
    enter(stream, WEIR_RPC_STREAM_ANSWERED);
    if (!is_read)
        drop_request(stream);
    calls->shared->counts.calls++;
    calls->shared->counts.failures += is_failure;
    weir_rpc_connection_touch(calls->connection);
}

/* No gRPC: an HTTP status and nothing else. */
static void refuse_http(weir_rpc_stream *stream, const char *http_status)
{
    become_answered(stream, true);
    nghttp2_nv headers[] = { HEADER(":status", http_status, 3) };
    nghttp2_submit_response(stream->calls->session, stream->id, headers, 1, NULL);
}

void weir_rpc_stream_refuse(weir_rpc_stream *stream, weir_rpc_code code, const char *text)
{
    const weir_rpc_shared *shared = stream->calls->shared;
    if (stream->state == WEIR_RPC_STREAM_ANSWERED)
        return;
    become_answered(stream, true);
    if (shared->refused != NULL)
        shared->refused(shared->refused_context, stream->has_route ? stream->route.method : NULL,
                        code);
    char number[4];
    char encoded[WEIR_GRPC_ENCODED_TEXT];
    size_t n_number = (size_t)snprintf(number, sizeof(number), "%u", (unsigned)code % 100);
    size_t n_encoded = weir_grpc_encode_text(text, encoded);
    nghttp2_nv headers[] = {
        FIXED(":status", "200"),
        FIXED("content-type", "application/grpc"),
        HEADER("grpc-status", number, n_number),
        HEADER("grpc-message", encoded, n_encoded),
        FIXED("grpc-accept-encoding", "identity"),
    };
    headers[3].flags = NGHTTP2_NV_FLAG_NO_INDEX; /* texts seldom repeat */
    nghttp2_submit_response(stream->calls->session, stream->id, headers, 5, NULL);
}

static ssize_t read_answer(nghttp2_session *session, int32_t id, uint8_t *buffer, size_t n_buffer,
                           uint32_t *flags, nghttp2_data_source *source, void *user_data)
{
    (void)user_data;
    weir_rpc_stream *stream = source->ptr;
    if (stream->calls->turn_bytes >= WEIR_RPC_WRITE_TURN_BYTES)
        return NGHTTP2_ERR_PAUSE;
    size_t n = stream->n_answer - stream->n_answer_sent;
    if (n > n_buffer)
        n = n_buffer;
    memcpy(buffer, stream->answer + stream->n_answer_sent, n);
    stream->n_answer_sent += n;
    stream->calls->turn_bytes += n;
    if (stream->n_answer_sent == stream->n_answer) {
        drop_answer(stream);
        *flags |= NGHTTP2_DATA_FLAG_EOF | NGHTTP2_DATA_FLAG_NO_END_STREAM;
        nghttp2_nv trailers[] = { FIXED("grpc-status", "0") };
        nghttp2_submit_trailer(session, id, trailers, 1);
    }
    return (ssize_t)n;
}

static void answer_message(weir_rpc_stream *stream, const ProtobufCMessage *message)
{
    weir_rpc_calls *calls = stream->calls;
    size_t n_message = protobuf_c_message_get_packed_size(message);
    if (n_message > WEIR_RPC_MAX_MESSAGE_BYTES) {
        weir_rpc_stream_refuse(stream, WEIR_RPC_RESOURCE_EXHAUSTED,
                               "the answer is larger than one message may be");
        return;
    }
    size_t n_answer = WEIR_GRPC_PREFIX_BYTES + n_message;
    unsigned char *answer = weir_rpc_heap_alloc(&calls->shared->heap, n_answer);
    if (answer == NULL) {
        weir_rpc_stream_refuse(stream, WEIR_RPC_RESOURCE_EXHAUSTED, "out of memory");
        return;
    }
    weir_grpc_put_prefix(answer, (uint32_t)n_message);
    protobuf_c_message_pack(message, answer + WEIR_GRPC_PREFIX_BYTES);
    stream->answer = answer;
    stream->n_answer = n_answer;
    calls->answer_bytes += n_answer;
    if (n_answer > calls->largest_answer)
        calls->largest_answer = n_answer;
    calls->shared->answer_bytes += n_answer;
    become_answered(stream, false);
    nghttp2_nv headers[] = { FIXED(":status", "200"), FIXED("content-type", "application/grpc") };
    nghttp2_data_provider provider = { { .ptr = stream }, read_answer };
    nghttp2_submit_response(calls->session, stream->id, headers, 2, &provider);
}

void weir_rpc_stream_answer(weir_rpc_stream *stream, weir_rpc_code code,
                            const ProtobufCMessage *message, const char *text)
{
    char repaired[WEIR_RPC_MESSAGE_TEXT];
    end_ticket(stream);
    if (code == WEIR_RPC_OK && message != NULL) {
        answer_message(stream, message);
        return;
    }
    if (code == WEIR_RPC_OK || code == WEIR_RPC_LATER) {
        code = WEIR_RPC_INTERNAL;
        text = "there is no answer";
    }
    snprintf(repaired, sizeof(repaired), "%s", text != NULL ? text : "");
    weir_rpc_text_repair(repaired);
    weir_rpc_stream_refuse(stream, code, repaired);
}

/* ---- handling --------------------------------------------------------------------------------*/

bool weir_rpc_calls_may_answer(const weir_rpc_calls *calls)
{
    size_t unsent = calls->shared->answer_bytes;
    bool is_modest = calls->largest_answer != 0 && calls->largest_answer <= SMALL_ANSWER_BYTES;
    if (calls->answer_bytes == 0)
        return unsent < MAX_ANSWER_BYTES + (is_modest ? RESERVE_ANSWER_BYTES : 0);
    return calls->answer_bytes < CONNECTION_ANSWER_BYTES && unsent < BUSY_ANSWER_BYTES;
}

void weir_rpc_calls_drop_answers(weir_rpc_calls *calls)
{
    for (weir_rpc_stream *stream = calls->first; stream != NULL; stream = stream->next)
        drop_answer(stream);
}

static void park(weir_rpc_stream *stream)
{
    char text[WEIR_RPC_MESSAGE_TEXT];
    enter(stream, WEIR_RPC_STREAM_PARKED);
    if (!weir_rpc_usage_may_park(stream->calls, text))
        weir_rpc_stream_refuse(stream, WEIR_RPC_RESOURCE_EXHAUSTED, text);
}

static void call_handler(weir_rpc_stream *stream)
{
    weir_rpc_shared *shared = stream->calls->shared;
    weir_rpc_answer answer;
    stream->call.bytes = stream->body.data;
    stream->call.n_bytes = stream->body.n_bytes;
    weir_rpc_dispatch(&stream->route, &stream->call, &shared->arena, &answer);
    /* It may have answered by ticket, which comes before what it returns. */
    if (stream->state != WEIR_RPC_STREAM_ANSWERED) {
        if (answer.code == WEIR_RPC_LATER)
            park(stream);
        else
            weir_rpc_stream_answer(stream, answer.code, answer.message, answer.text);
    }
    if (stream->state == WEIR_RPC_STREAM_ANSWERED)
        drop_request(stream);
    if (shared->arena.used_bytes > ARENA_KEEP_BYTES)
        weir_arena_close(&shared->arena);
}

void weir_rpc_stream_handle(weir_rpc_stream *stream)
{
    weir_rpc_shared *shared = stream->calls->shared;
    if (stream->call.deadline != 0 && weir_deadline_passed(stream->call.deadline)) {
        weir_rpc_stream_refuse(stream, WEIR_RPC_DEADLINE_EXCEEDED,
                               "the deadline passed before the call's turn came");
        return;
    }
    stream->call.ticket = weir_rpc_tickets_take(&shared->tickets, &shared->heap, stream);
    if (stream->call.ticket == 0) {
        weir_rpc_stream_refuse(stream, WEIR_RPC_RESOURCE_EXHAUSTED, "out of memory");
        return;
    }
    stream->has_ticket = true;
    enter(stream, WEIR_RPC_STREAM_HANDLED);
    call_handler(stream);
}

void weir_rpc_stream_time_up(weir_rpc_stream *stream, uint64_t now_ns)
{
    uint64_t due = due_ns(stream);
    if (due > now_ns) { /* bytes came meanwhile, and each buys a little time */
        set_timer(stream);
    } else if (stream->state == WEIR_RPC_STREAM_ANSWERED) {
        weir_rpc_timers_set(&stream->calls->shared->timers, &stream->timer, WEIR_RPC_NEVER);
        weir_rpc_connection_doom(stream->calls->connection);
    } else if (stream->call.deadline != 0 && now_ns >= stream->call.deadline) {
        weir_rpc_stream_refuse(stream, WEIR_RPC_DEADLINE_EXCEEDED, "the deadline passed");
    } else {
        weir_rpc_stream_refuse(stream, WEIR_RPC_DEADLINE_EXCEEDED,
                               stream->state == WEIR_RPC_STREAM_READING
                                   ? "the request did not come in time"
                                   : "no answer came in time");
    }
}

/* ---- what comes in ---------------------------------------------------------------------------*/

static bool is(const char *name, const char *text, size_t n)
{
    return strlen(name) == n && memcmp(name, text, n) == 0;
}

static void take_path(weir_rpc_stream *stream, const char *value, size_t n)
{
    weir_rpc_shared *shared = stream->calls->shared;
    stream->has_route =
        weir_rpc_find_route(shared->services, shared->n_services, value, n, &stream->route);
    if (stream->has_route || stream->path != NULL)
        return;
    stream->path = weir_rpc_heap_alloc(&shared->heap, PATH_BYTES);
    if (stream->path != NULL)
        snprintf(stream->path, PATH_BYTES, "%.*s", (int)(n < PATH_BYTES ? n : PATH_BYTES), value);
}

static void take_timeout(weir_rpc_stream *stream, const char *value, size_t n)
{
    uint64_t ns;
    if (!weir_grpc_parse_timeout(value, n, &ns)) {
        stream->has_bad_timeout = true;
        return;
    }
    uint64_t now = weir_now_ns();
    stream->call.deadline = ns > UINT64_MAX - now ? UINT64_MAX : now + ns;
    set_timer(stream);
}

/* As W3C Trace Context has it: one that is malformed, or one of several, is as good as none. */
static void take_trace(weir_rpc_stream *stream, const char *value, size_t n)
{
    weir_rpc_heap *heap = &stream->calls->shared->heap;
    weir_traceparent trace;
    weir_rpc_heap_free(heap, (void *)stream->call.trace);
    stream->call.trace = NULL;
    bool is_only = !stream->has_trace;
    stream->has_trace = true;
    if (!is_only || !weir_traceparent_read(value, n, &trace))
        return;
    weir_traceparent *kept = weir_rpc_heap_alloc(heap, sizeof(*kept));
    if (kept != NULL)
        *kept = trace;
    stream->call.trace = kept;
}

void weir_rpc_stream_header(weir_rpc_stream *stream, const char *name, size_t n_name,
                            const char *value, size_t n_value)
{
    if (stream->state != WEIR_RPC_STREAM_READING)
        return;
    stream->n_header_bytes += (uint32_t)(n_name + n_value + 32); /* counted as RFC 9113 does */
    if (stream->n_header_bytes > WEIR_RPC_MAX_HEADER_BYTES) {
        enter(stream, WEIR_RPC_STREAM_ANSWERED);
        nghttp2_submit_rst_stream(stream->calls->session, NGHTTP2_FLAG_NONE, stream->id,
                                  NGHTTP2_ENHANCE_YOUR_CALM);
    } else if (is(":method", name, n_name)) {
        stream->is_post = is("POST", value, n_value);
    } else if (is(":path", name, n_name)) {
        take_path(stream, value, n_value);
    } else if (is("content-type", name, n_name)) {
        stream->is_grpc = weir_grpc_is_content_type(value, n_value);
    } else if (is("grpc-timeout", name, n_name)) {
        take_timeout(stream, value, n_value);
    } else if (is("authorization", name, n_name)) {
        stream->has_token =
            weir_security_accepts_bearer(&stream->calls->shared->kept, value, n_value);
    } else if (is("traceparent", name, n_name)) {
        take_trace(stream, value, n_value);
    } else if (is("grpc-encoding", name, n_name)) {
        stream->is_compressed = !is("identity", value, n_value);
    }
}

static bool is_trusted(const weir_rpc_stream *stream)
{
    return stream->calls->shared->kept.security.token == NULL || stream->has_token;
}

/* Who has no token is not even told which methods there are. */
static bool may_call(const weir_rpc_stream *stream)
{
    const weir_rpc_shared *shared = stream->calls->shared;
    bool is_open = stream->has_route && shared->open_service != NULL &&
                   stream->route.service->descriptor == shared->open_service;
    return is_trusted(stream) || is_open;
}

void weir_rpc_stream_headers_end(weir_rpc_stream *stream)
{
    if (stream->state != WEIR_RPC_STREAM_READING)
        return;
    char text[WEIR_RPC_MESSAGE_TEXT];
    if (stream->is_post && stream->is_grpc && is_trusted(stream))
        weir_rpc_connection_prove(stream->calls->connection);
    if (!stream->is_post) {
        refuse_http(stream, "405");
    } else if (!stream->is_grpc) {
        refuse_http(stream, "415");
    } else if (!may_call(stream)) {
        stream->calls->shared->counts.unauthenticated++;
        weir_rpc_stream_refuse(stream, WEIR_RPC_UNAUTHENTICATED,
                               "the token is missing, or another (authorization: Bearer TOKEN)");
    } else if (!stream->has_route) {
        snprintf(text, sizeof(text), "%s is not offered here",
                 stream->path != NULL ? stream->path : "the method");
        weir_rpc_stream_refuse(stream, WEIR_RPC_UNIMPLEMENTED, text);
    } else if (stream->is_compressed) {
        weir_rpc_stream_refuse(stream, WEIR_RPC_UNIMPLEMENTED, "messages must not be compressed");
    } else if (stream->has_bad_timeout) {
        weir_rpc_stream_refuse(stream, WEIR_RPC_INVALID_ARGUMENT, "grpc-timeout is malformed");
    }
}

static void refuse_too_large(weir_rpc_stream *stream)
{
    char text[WEIR_RPC_MESSAGE_TEXT];
    size_t limit = stream->calls->shared->limits.message_bytes;
    if (limit >> 20 << 20 == limit)
        snprintf(text, sizeof(text), "the request is larger than %zu MiB", limit >> 20);
    else
        snprintf(text, sizeof(text), "the request is larger than %zu bytes", limit);
    weir_rpc_stream_refuse(stream, WEIR_RPC_RESOURCE_EXHAUSTED, text);
}

static void refuse_body(weir_rpc_stream *stream, weir_grpc_fault fault)
{
    if (fault == WEIR_GRPC_TOO_LARGE)
        refuse_too_large(stream);
    else if (fault == WEIR_GRPC_COMPRESSED)
        weir_rpc_stream_refuse(stream, WEIR_RPC_UNIMPLEMENTED, "messages must not be compressed");
    else if (fault == WEIR_GRPC_EXTRA)
        weir_rpc_stream_refuse(stream, WEIR_RPC_INVALID_ARGUMENT, "more bytes than one message");
    else
        weir_rpc_stream_refuse(stream, WEIR_RPC_RESOURCE_EXHAUSTED, "out of memory");
}

void weir_rpc_stream_data(weir_rpc_stream *stream, const unsigned char *data, size_t n)
{
    if (stream->state != WEIR_RPC_STREAM_READING)
        return;
    weir_rpc_calls *calls = stream->calls;
    weir_rpc_shared *shared = calls->shared;
    char text[WEIR_RPC_MESSAGE_TEXT];
    if (!weir_rpc_usage_may_read(calls, &stream->body, n, text)) {
        weir_rpc_stream_refuse(stream, WEIR_RPC_RESOURCE_EXHAUSTED, text);
        return;
    }
    if (shared->request_bytes + n > shared->limits.request_bytes &&
        !weir_rpc_connection_relieve(calls)) {
        weir_rpc_stream_refuse(stream, WEIR_RPC_RESOURCE_EXHAUSTED, WEIR_RPC_FULL_TEXT);
        return;
    }
    size_t before = stream->body.capacity;
    weir_grpc_fault fault = weir_grpc_body_add(&stream->body, &shared->heap, data, n);
    calls->reading_bytes += stream->body.capacity - before;
    weir_rpc_usage_bytes(calls, before, stream->body.capacity);
    if (fault != WEIR_GRPC_FINE)
        refuse_body(stream, fault);
}

void weir_rpc_stream_request_end(weir_rpc_stream *stream)
{
    stream->remote_ended = true;
    if (stream->state != WEIR_RPC_STREAM_READING)
        return;
    if (weir_grpc_body_is_whole(&stream->body))
        enter(stream, WEIR_RPC_STREAM_WAITING);
    else
        weir_rpc_stream_refuse(stream, WEIR_RPC_INVALID_ARGUMENT, "the request is not whole");
}
