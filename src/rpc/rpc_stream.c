/* SPDX-License-Identifier: Apache-2.0 */
/* rpc_stream.c - from headers and data to one answer.
 *
 * Whatever is wrong with a call is answered as gRPC says, at once, as trailers alone; only what is
 * no gRPC at all gets an HTTP status. Memory is bounded over all calls of the server: requests
 * beyond the bound are refused, answers beyond it wait, because the request is already here and the
 * memory comes back as soon as others have read theirs. */
#include "rpc/rpc_stream.h"

#include <stdio.h>
#include <string.h>

#include "base/error.h"
#include "rpc/rpc_channel.h"

#define MAX_REQUEST_BYTES ((size_t)256 << 20) /* of all requests together */
#define BUSY_ANSWER_BYTES ((size_t)64 << 20)  /* answers unsent: further ones wait */
#define ARENA_KEEP_BYTES ((size_t)64 << 20)

#define HEADER(name_text, value_text, n_value)                                             \
    {                                                                                      \
        (uint8_t *)(name_text), (uint8_t *)(value_text), sizeof(name_text) - 1, (n_value), \
            NGHTTP2_NV_FLAG_NONE                                                           \
    }
#define FIXED(name_text, value_text) HEADER(name_text, value_text, sizeof(value_text) - 1)

weir_rpc_stream *weir_rpc_stream_open(weir_rpc_shared *shared, nghttp2_session *session, int32_t id,
                                      weir_rpc_stream **list)
{
    weir_rpc_stream *stream = weir_rpc_heap_alloc(&shared->heap, sizeof(*stream));
    if (stream == NULL)
        return NULL;
    *stream = (weir_rpc_stream){ .next = *list,
                                 .previous = list,
                                 .shared = shared,
                                 .session = session,
                                 .id = id,
                                 .since_ns = weir_now_ns() };
    if (*list != NULL)
        (*list)->previous = &stream->next;
    *list = stream;
    shared->n_streams++;
    return stream;
}

static void drop_request(weir_rpc_stream *stream)
{
    stream->shared->request_bytes -= stream->body.capacity;
    weir_grpc_body_close(&stream->body, &stream->shared->heap);
}

static void drop_answer(weir_rpc_stream *stream)
{
    stream->shared->answer_bytes -= stream->n_answer;
    weir_rpc_heap_free(&stream->shared->heap, stream->answer);
    stream->answer = NULL;
    stream->n_answer = stream->n_answer_sent = 0;
}

static void enter(weir_rpc_stream *stream, weir_rpc_stream_state state)
{
    if (stream->state == WEIR_RPC_STREAM_WAITING)
        stream->shared->n_waiting--;
    if (state == WEIR_RPC_STREAM_WAITING)
        stream->shared->n_waiting++;
    stream->state = state;
    stream->since_ns = weir_now_ns();
}

void weir_rpc_stream_close(weir_rpc_stream *stream)
{
    enter(stream, WEIR_RPC_STREAM_ANSWERED);
    drop_request(stream);
    drop_answer(stream);
    stream->shared->n_streams--;
    *stream->previous = stream->next;
    if (stream->next != NULL)
        stream->next->previous = stream->previous;
    weir_rpc_heap_free(&stream->shared->heap, stream);
}

/* ---- answers ---------------------------------------------------------------------------------*/

/* No gRPC: an HTTP status and nothing else. */
static void refuse_http(weir_rpc_stream *stream, const char *http_status)
{
    enter(stream, WEIR_RPC_STREAM_ANSWERED);
    drop_request(stream);
    nghttp2_nv headers[] = { HEADER(":status", http_status, 3) };
    nghttp2_submit_response(stream->session, stream->id, headers, 1, NULL);
}

void weir_rpc_stream_refuse(weir_rpc_stream *stream, weir_rpc_code code, const char *text)
{
    if (stream->state == WEIR_RPC_STREAM_ANSWERED)
        return;
    enter(stream, WEIR_RPC_STREAM_ANSWERED);
    drop_request(stream);
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
    nghttp2_submit_response(stream->session, stream->id, headers, 5, NULL);
}

static ssize_t read_answer(nghttp2_session *session, int32_t id, uint8_t *buffer, size_t n_buffer,
                           uint32_t *flags, nghttp2_data_source *source, void *user_data)
{
    (void)user_data;
    weir_rpc_stream *stream = source->ptr;
    size_t n = stream->n_answer - stream->n_answer_sent;
    if (n > n_buffer)
        n = n_buffer;
    memcpy(buffer, stream->answer + stream->n_answer_sent, n);
    stream->n_answer_sent += n;
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
    size_t n_message = protobuf_c_message_get_packed_size(message);
    if (n_message > WEIR_RPC_MAX_MESSAGE_BYTES) {
        weir_rpc_stream_refuse(stream, WEIR_RPC_RESOURCE_EXHAUSTED,
                               "the answer is larger than one message may be");
        return;
    }
    size_t n_answer = WEIR_GRPC_PREFIX_BYTES + n_message;
    unsigned char *answer = weir_rpc_heap_alloc(&stream->shared->heap, n_answer);
    if (answer == NULL) {
        weir_rpc_stream_refuse(stream, WEIR_RPC_RESOURCE_EXHAUSTED, "out of memory");
        return;
    }
    weir_grpc_put_prefix(answer, (uint32_t)n_message);
    protobuf_c_message_pack(message, answer + WEIR_GRPC_PREFIX_BYTES);
    enter(stream, WEIR_RPC_STREAM_ANSWERED);
    stream->answer = answer;
    stream->n_answer = n_answer;
    stream->shared->answer_bytes += n_answer;
    nghttp2_nv headers[] = { FIXED(":status", "200"), FIXED("content-type", "application/grpc") };
    nghttp2_data_provider provider = { { .ptr = stream }, read_answer };
    nghttp2_submit_response(stream->session, stream->id, headers, 2, &provider);
}

static void call_handler(weir_rpc_stream *stream)
{
    weir_rpc_shared *shared = stream->shared;
    if (stream->deadline != 0 && weir_deadline_passed(stream->deadline)) {
        weir_rpc_stream_refuse(stream, WEIR_RPC_DEADLINE_EXCEEDED,
                               "the deadline passed before the request was whole");
        return;
    }
    weir_rpc_answer answer;
    const weir_rpc_call_info call = { .bytes = stream->body.data,
                                      .n_bytes = stream->body.n_bytes,
                                      .deadline = stream->deadline };
    weir_rpc_dispatch(&stream->route, &call, &shared->arena, &answer);
    drop_request(stream);
    if (answer.code == WEIR_RPC_OK)
        answer_message(stream, answer.message);
    else
        weir_rpc_stream_refuse(stream, answer.code, answer.text);
    if (shared->arena.used_bytes > ARENA_KEEP_BYTES)
        weir_arena_close(&shared->arena);
}

/* ---- what comes in ---------------------------------------------------------------------------*/

static bool is(const char *name, const char *text, size_t n)
{
    return strlen(name) == n && memcmp(name, text, n) == 0;
}

static void take_path(weir_rpc_stream *stream, const char *value, size_t n)
{
    weir_rpc_shared *shared = stream->shared;
    stream->has_route =
        weir_rpc_find_route(shared->services, shared->n_services, value, n, &stream->route);
    size_t n_kept = n < sizeof(stream->path) ? n : sizeof(stream->path) - 1;
    memcpy(stream->path, value, n_kept);
    stream->path[n_kept] = '\0';
}

static void take_timeout(weir_rpc_stream *stream, const char *value, size_t n)
{
    uint64_t ns;
    if (!weir_grpc_parse_timeout(value, n, &ns)) {
        stream->has_bad_timeout = true;
        return;
    }
    uint64_t now = weir_now_ns();
    stream->deadline = ns > UINT64_MAX - now ? UINT64_MAX : now + ns;
}

void weir_rpc_stream_header(weir_rpc_stream *stream, const char *name, size_t n_name,
                            const char *value, size_t n_value)
{
    if (stream->state != WEIR_RPC_STREAM_READING)
        return;
    stream->n_header_bytes += n_name + n_value + 32; /* counted as RFC 9113 does */
    if (stream->n_header_bytes > WEIR_RPC_MAX_HEADER_BYTES) {
        enter(stream, WEIR_RPC_STREAM_ANSWERED);
        nghttp2_submit_rst_stream(stream->session, NGHTTP2_FLAG_NONE, stream->id,
                                  NGHTTP2_ENHANCE_YOUR_CALM);
    } else if (is(":method", name, n_name)) {
        stream->is_post = is("POST", value, n_value);
    } else if (is(":path", name, n_name)) {
        take_path(stream, value, n_value);
    } else if (is("content-type", name, n_name)) {
        stream->is_grpc = weir_grpc_is_content_type(value, n_value);
    } else if (is("grpc-timeout", name, n_name)) {
        take_timeout(stream, value, n_value);
    } else if (is("grpc-encoding", name, n_name)) {
        stream->is_compressed = !is("identity", value, n_value);
    }
}

void weir_rpc_stream_headers_end(weir_rpc_stream *stream)
{
    if (stream->state != WEIR_RPC_STREAM_READING)
        return;
    char text[WEIR_RPC_MESSAGE_TEXT];
    if (!stream->is_post) {
        refuse_http(stream, "405");
    } else if (!stream->is_grpc) {
        refuse_http(stream, "415");
    } else if (!stream->has_route) {
        snprintf(text, sizeof(text), "%s is not offered here", stream->path);
        weir_rpc_stream_refuse(stream, WEIR_RPC_UNIMPLEMENTED, text);
    } else if (stream->is_compressed) {
        weir_rpc_stream_refuse(stream, WEIR_RPC_UNIMPLEMENTED, "messages must not be compressed");
    } else if (stream->has_bad_timeout) {
        weir_rpc_stream_refuse(stream, WEIR_RPC_INVALID_ARGUMENT, "grpc-timeout is malformed");
    }
}

static void refuse_body(weir_rpc_stream *stream, weir_grpc_fault fault)
{
    static const struct {
        weir_rpc_code code;
        const char *text;
    } answers[] = {
        [WEIR_GRPC_COMPRESSED] = { WEIR_RPC_UNIMPLEMENTED, "messages must not be compressed" },
        [WEIR_GRPC_TOO_LARGE] = { WEIR_RPC_RESOURCE_EXHAUSTED,
                                  "the request is larger than 64 MiB" },
        [WEIR_GRPC_EXTRA] = { WEIR_RPC_INVALID_ARGUMENT, "more bytes than one message" },
        [WEIR_GRPC_NO_MEMORY] = { WEIR_RPC_RESOURCE_EXHAUSTED, "out of memory" },
    };
    weir_rpc_stream_refuse(stream, answers[fault].code, answers[fault].text);
}

void weir_rpc_stream_data(weir_rpc_stream *stream, const unsigned char *data, size_t n)
{
    if (stream->state != WEIR_RPC_STREAM_READING)
        return;
    weir_rpc_shared *shared = stream->shared;
    if (shared->request_bytes + n > MAX_REQUEST_BYTES) {
        weir_rpc_stream_refuse(stream, WEIR_RPC_RESOURCE_EXHAUSTED,
                               "the server holds as many request bytes as it may");
        return;
    }
    size_t before = stream->body.capacity;
    weir_grpc_fault fault = weir_grpc_body_add(&stream->body, &shared->heap, data, n);
    shared->request_bytes += stream->body.capacity - before;
    if (fault != WEIR_GRPC_FINE)
        refuse_body(stream, fault);
}

void weir_rpc_stream_request_end(weir_rpc_stream *stream)
{
    stream->remote_ended = true;
    if (stream->state != WEIR_RPC_STREAM_READING)
        return;
    if (!weir_grpc_body_is_whole(&stream->body)) {
        weir_rpc_stream_refuse(stream, WEIR_RPC_INVALID_ARGUMENT, "the request is not whole");
        return;
    }
    enter(stream, WEIR_RPC_STREAM_WAITING);
    weir_rpc_stream_answer_waiting(stream);
}

void weir_rpc_stream_answer_waiting(weir_rpc_stream *stream)
{
    if (stream->state == WEIR_RPC_STREAM_WAITING &&
        stream->shared->answer_bytes < BUSY_ANSWER_BYTES)
        call_handler(stream);
}
