/* SPDX-License-Identifier: Apache-2.0 */
/* rpc_client.c - one call at a time over one kept connection.
 *
 * The caller's thread drives the HTTP/2 session itself, between polls on the socket and on the
 * descriptor that cancels. A connection is kept only after a call that ended well; whatever else
 * happened, the next call begins on a fresh one. Which address that goes to is rpc_route.h's. */
#include <errno.h>
#include <openssl/crypto.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/error.h"
#include "base/log.h"
#include "rpc/grpc_wire.h"
#include "rpc/rpc_channel.h"
#include "rpc/rpc_message.h"
#include "rpc/rpc_route.h"
#include "rpc/rpc_security.h"
#include "weir/weir.h"

#define MAX_PATH_BYTES 256
#define BEARER "Bearer "
#define TIMEOUT_HEADER 8                   /* of those that a call has */
#define SPARE_REQUEST_BYTES ((size_t)4096) /* a number grows by a digit: no reason to allocate */

/* What a call has come to. */
typedef struct call {
    int32_t stream_id;
    bool has_begun; /* a byte of an answer is here */
    bool is_over;   /* the stream is closed */
    uint32_t reset_code;
    int http_status;
    int code; /* grpc-status, -1: none yet */
    bool is_grpc;
    size_t n_header_bytes;
    weir_grpc_fault fault;
    char text[WEIR_RPC_MESSAGE_TEXT];
} call;

struct weir_rpc_client {
    weir_rpc_route route;
    char who[128]; /* "directory " */
    weir_security_kept kept;
    weir_tls_context *tls;              /* NULL: plain text */
    char *bearer;                       /* "Bearer TOKEN", NULL: none */
    char trace[WEIR_TRACEPARENT_BYTES]; /* "": none */
    int cancel_fd;
    bool is_connected;
    weir_rpc_heap heap;
    weir_rpc_channel channel;
    nghttp2_session_callbacks *callbacks;
    unsigned char *request; /* prefix and message */
    size_t n_request, n_request_sent, request_capacity;
    weir_grpc_body body;
    call call;
};

/* One unary call as its parameters. */
typedef struct target {
    const ProtobufCServiceDescriptor *service;
    const ProtobufCMethodDescriptor *method;
    unsigned timeout_ms;
    weir_deadline deadline;
} target;

/* ---- nghttp2's callbacks ---------------------------------------------------------------------*/

static bool is(const uint8_t *name, const char *text, size_t n)
{
    return strlen(text) == n && memcmp(name, text, n) == 0;
}

/* At most three digits; -1 for anything else. */
static int small_number(const uint8_t *value, size_t n)
{
    int number = 0;
    if (n == 0 || n > 3)
        return -1;
    for (size_t i = 0; i < n; i++) {
        if (value[i] < '0' || value[i] > '9')
            return -1;
        number = number * 10 + (value[i] - '0');
    }
    return number;
}

static int on_header(nghttp2_session *session, const nghttp2_frame *frame, const uint8_t *name,
                     size_t n_name, const uint8_t *value, size_t n_value, uint8_t flags,
                     void *user_data)
{
    (void)flags;
    call *current = &((weir_rpc_client *)user_data)->call;
    if (frame->hd.stream_id != current->stream_id)
        return 0;
    current->has_begun = true;
    current->n_header_bytes += n_name + n_value + 32;
    if (current->n_header_bytes > WEIR_RPC_MAX_HEADER_BYTES) {
        nghttp2_submit_rst_stream(session, NGHTTP2_FLAG_NONE, current->stream_id,
                                  NGHTTP2_ENHANCE_YOUR_CALM);
        return 0;
    }
    if (is(name, ":status", n_name))
        current->http_status = small_number(value, n_value);
    else if (is(name, "content-type", n_name))
        current->is_grpc = weir_grpc_is_content_type((const char *)value, n_value);
    else if (is(name, "grpc-status", n_name))
        current->code = small_number(value, n_value);
    else if (is(name, "grpc-message", n_name))
        weir_grpc_decode_text((const char *)value, n_value, current->text, sizeof(current->text));
    return 0;
}

static int on_data(nghttp2_session *session, uint8_t flags, int32_t id, const uint8_t *data,
                   size_t n, void *user_data)
{
    (void)flags;
    weir_rpc_client *client = user_data;
    call *current = &client->call;
    if (id != current->stream_id || current->fault != WEIR_GRPC_FINE)
        return 0;
    current->has_begun = true;
    if (current->http_status != 200 || !current->is_grpc)
        return 0; /* some web server's page */
    current->fault = weir_grpc_body_add(&client->body, &client->heap, data, n);
    if (current->fault != WEIR_GRPC_FINE)
        nghttp2_submit_rst_stream(session, NGHTTP2_FLAG_NONE, id, NGHTTP2_CANCEL);
    return 0;
}

static int on_stream_close(nghttp2_session *session, int32_t id, uint32_t error_code,
                           void *user_data)
{
    (void)session;
    call *current = &((weir_rpc_client *)user_data)->call;
    if (id == current->stream_id) {
        current->is_over = true;
        current->reset_code = error_code;
    }
    return 0;
}

static ssize_t read_request(nghttp2_session *session, int32_t id, uint8_t *buffer, size_t n_buffer,
                            uint32_t *flags, nghttp2_data_source *source, void *user_data)
{
    (void)session;
    (void)id;
    (void)source;
    weir_rpc_client *client = user_data;
    size_t n = client->n_request - client->n_request_sent;
    if (n > n_buffer)
        n = n_buffer;
    memcpy(buffer, client->request + client->n_request_sent, n);
    client->n_request_sent += n;
    if (client->n_request_sent == client->n_request)
        *flags |= NGHTTP2_DATA_FLAG_EOF;
    return (ssize_t)n;
}

/* ---- life ------------------------------------------------------------------------------------*/

static void hang_up(weir_rpc_client *client)
{
    if (client->is_connected)
        weir_rpc_channel_close(&client->channel);
    client->is_connected = false;
}

static void forget_bearer(weir_rpc_client *client)
{
    if (client->bearer != NULL)
        OPENSSL_cleanse(client->bearer, strlen(client->bearer));
    weir_free(client->bearer);
    client->bearer = NULL;
}

/* The token of the calls from here on. */
static weir_status show(weir_rpc_client *client, const char *token)
{
    char *bearer = weir_format(BEARER "%s", token);
    if (bearer == NULL)
        return WEIR_ERR_NO_MEMORY;
    forget_bearer(client);
    client->bearer = bearer;
    return WEIR_OK;
}

static weir_status secure(weir_rpc_client *client, const weir_rpc_security *security)
{
    weir_status status = weir_security_copy(security, &client->kept);
    for (size_t i = 0; i < client->route.n_places && status == WEIR_OK; i++) {
        client->route.current = i; /* for the error's line */
        status = weir_security_check_call(&client->kept.security, &client->route.places[i].address);
    }
    if (status == WEIR_OK) {
        client->route.current = 0;
        status = weir_tls_context_open(&client->kept.security, WEIR_RPC_CLIENT_SIDE, WEIR_TLS_HTTP2,
                                       &client->tls);
    }
    if (status != WEIR_OK) {
        weir_error_prefix("%s%s", client->who, weir_rpc_client_address(client));
        return status;
    }
    return client->kept.security.token != NULL ? show(client, client->kept.security.token)
                                               : WEIR_OK;
}

static weir_status prepare(weir_rpc_client *client)
{
    client->cancel_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    if (client->cancel_fd < 0)
        return weir_fail(WEIR_ERR_IO, "cannot open an eventfd: %s", strerror(errno));
    if (nghttp2_session_callbacks_new(&client->callbacks) != 0)
        return weir_fail(WEIR_ERR_NO_MEMORY, "out of memory for an HTTP/2 session");
    nghttp2_session_callbacks_set_on_header_callback(client->callbacks, on_header);
    nghttp2_session_callbacks_set_on_data_chunk_recv_callback(client->callbacks, on_data);
    nghttp2_session_callbacks_set_on_stream_close_callback(client->callbacks, on_stream_close);
    return WEIR_OK;
}

weir_status weir_rpc_client_open(const char *addresses, const char *who,
                                 const weir_rpc_security *security, weir_rpc_client **out)
{
    weir_rpc_client *client = weir_alloc_zeroed(1, sizeof(*client));
    if (client == NULL)
        return WEIR_ERR_NO_MEMORY;
    client->cancel_fd = -1;
    weir_rpc_heap_init(&client->heap);
    snprintf(client->who, sizeof(client->who), "%.120s%s", who != NULL ? who : "",
             who != NULL ? " " : "");
    weir_status status = weir_rpc_route_open(addresses, &client->route);
    if (status == WEIR_OK)
        status = prepare(client);
    if (status == WEIR_OK)
        status = secure(client, security);
    if (status != WEIR_OK) {
        weir_rpc_client_close(client);
        return status;
    }
    *out = client;
    return WEIR_OK;
}

void weir_rpc_client_close(weir_rpc_client *client)
{
    if (client == NULL)
        return;
    hang_up(client);
    weir_grpc_body_close(&client->body, &client->heap);
    weir_rpc_heap_close(&client->heap);
    nghttp2_session_callbacks_del(client->callbacks);
    weir_tls_context_close(client->tls);
    weir_security_free(&client->kept);
    forget_bearer(client);
    weir_free(client->request);
    weir_rpc_route_close(&client->route);
    if (client->cancel_fd >= 0)
        close(client->cancel_fd);
    weir_free(client);
}

const char *weir_rpc_client_address(const weir_rpc_client *client)
{
    return weir_rpc_route_place(&client->route)->authority;
}

uint64_t weir_rpc_client_moves(const weir_rpc_client *client)
{
    return client->route.n_moves;
}

void weir_rpc_client_trace(weir_rpc_client *client, const weir_traceparent *trace)
{
    client->trace[0] = '\0';
    if (trace != NULL && trace->trace_id[0] != '\0')
        weir_traceparent_write(trace, client->trace);
}

void weir_rpc_client_cancel(weir_rpc_client *client)
{
    uint64_t one = 1;
    ssize_t n = write(client->cancel_fd, &one, sizeof(one));
    (void)n; /* full means that a cancellation is pending already */
}

void weir_rpc_client_uncancel(weir_rpc_client *client)
{
    uint64_t count;
    ssize_t n = read(client->cancel_fd, &count, sizeof(count));
    (void)n; /* used up, or there was none: the next call may run */
}

static weir_status cancelled(weir_rpc_client *client)
{
    weir_rpc_client_uncancel(client);
    return weir_fail(WEIR_ERR_CANCELLED, "cancelled");
}

static weir_status timed_out(const target *to)
{
    return weir_fail(WEIR_ERR_TIMED_OUT, "no answer within %.1f s", to->timeout_ms / 1000.0);
}

/* ---- one attempt -----------------------------------------------------------------------------*/

static weir_status hang_on(weir_rpc_client *client, const target *to)
{
    int fd;
    weir_rpc_place *place = weir_rpc_route_place(&client->route);
    weir_status status =
        weir_rpc_connect_from(&place->address, &place->pick, to->deadline, client->cancel_fd, &fd);
    if (status == WEIR_ERR_CANCELLED)
        return cancelled(client);
    if (status != WEIR_OK)
        return status;
    status = weir_rpc_channel_open(&client->channel, fd, &client->heap, WEIR_RPC_CLIENT_SIDE,
                                   client->callbacks, client);
    if (status != WEIR_OK)
        return status;
    client->is_connected = true;
    return weir_rpc_channel_secure(&client->channel, client->tls, place->address.host);
}

static nghttp2_nv header(const char *name, const char *value)
{
    return (nghttp2_nv){ (uint8_t *)name, (uint8_t *)value, strlen(name), strlen(value),
                         NGHTTP2_NV_FLAG_NONE };
}

static weir_status submit(weir_rpc_client *client, const target *to)
{
    char path[MAX_PATH_BYTES], timeout[16];
    snprintf(path, sizeof(path), "/%s/%s", to->service->name, to->method->name);
    unsigned left_ms = weir_deadline_left_ms(to->deadline);
    weir_grpc_format_timeout(left_ms != 0 ? left_ms : 1, timeout);
    nghttp2_nv headers[] = {
        header(":method", "POST"),
        header(":scheme", client->tls != NULL ? "https" : "http"),
        header(":path", path),
        header(":authority", weir_rpc_client_address(client)),
        header("te", "trailers"),
        header("content-type", "application/grpc"),
        header("user-agent", "weir/" WEIR_VERSION),
        header("grpc-accept-encoding", "identity"),
        header("grpc-timeout", timeout),
        header("", ""), /* room for two that not every call has */
        header("", ""),
    };
    size_t n_headers = sizeof(headers) / sizeof(headers[0]) - 2;
    if (client->trace[0] != '\0')
        headers[n_headers++] = header("traceparent", client->trace);
    if (client->bearer != NULL) {
        headers[n_headers] = header("authorization", client->bearer);
        headers[n_headers++].flags = NGHTTP2_NV_FLAG_NO_INDEX; /* nobody is to guess at it */
    }
    headers[TIMEOUT_HEADER].flags = NGHTTP2_NV_FLAG_NO_INDEX; /* it is never the same twice */
    client->n_request_sent = 0;
    weir_grpc_body_rewind(&client->body);
    client->call = (call){ .code = -1 };
    nghttp2_data_provider provider = { { .ptr = client }, read_request };
    int32_t id =
        nghttp2_submit_request(client->channel.session, NULL, headers, n_headers, &provider, NULL);
    if (id == NGHTTP2_ERR_STREAM_ID_NOT_AVAILABLE) /* after 2^30 calls */
        return weir_fail(WEIR_ERR_PEER_LOST, "the connection is worn out");
    if (id < 0)
        return weir_fail(WEIR_ERR_NO_MEMORY, "out of memory for a call");
    client->call.stream_id = id;
    return WEIR_OK;
}

/* Waits for the socket, the deadline or a cancellation. */
static weir_status wait_for_socket(weir_rpc_client *client, const target *to)
{
    bool is_blocked = weir_rpc_channel_is_blocked(&client->channel);
    struct pollfd fds[2] = {
        { .fd = client->channel.fd, .events = (short)(POLLIN | (is_blocked ? POLLOUT : 0)) },
        { .fd = client->cancel_fd, .events = POLLIN },
    };
    weir_deadline handshake = weir_rpc_channel_deadline(&client->channel);
    bool is_early = handshake != 0 && handshake < to->deadline;
    unsigned left_ms = weir_deadline_left_ms(is_early ? handshake : to->deadline);
    int n = poll(fds, 2, left_ms > INT32_MAX ? INT32_MAX : (int)left_ms);
    if (n < 0 && errno != EINTR)
        return weir_fail(WEIR_ERR_IO, "poll: %s", strerror(errno));
    if (fds[1].revents != 0)
        return cancelled(client);
    if (n == 0 && weir_deadline_passed(to->deadline))
        return timed_out(to);
    return WEIR_OK;
}

/* A peer that takes nothing more may have said why. */
static weir_status hear_last_words(weir_rpc_client *client)
{
    weir_status status = weir_rpc_channel_read(&client->channel, SIZE_MAX);
    if (client->call.is_over)
        return WEIR_OK;
    return status != WEIR_OK ? status
                             : weir_fail(WEIR_ERR_PEER_LOST, "connection lost by the other side");
}

/* Drives the session until the call's stream is closed. */
static weir_status exchange(weir_rpc_client *client, const target *to)
{
    weir_rpc_channel *channel = &client->channel;
    for (;;) {
        weir_status status = weir_rpc_channel_write(channel);
        if (status == WEIR_ERR_PEER_LOST)
            return hear_last_words(client);
        if (status != WEIR_OK)
            return status;
        if (client->call.is_over)
            return WEIR_OK;
        if (weir_rpc_channel_is_over(channel))
            return weir_fail(WEIR_ERR_PEER_LOST, "the other side broke off the connection");
        status = wait_for_socket(client, to);
        if (status == WEIR_OK)
            status = weir_rpc_channel_read(channel, SIZE_MAX);
        if (client->call.is_over && status == WEIR_ERR_PEER_LOST)
            return WEIR_OK; /* it answered, then closed */
        if (status != WEIR_OK)
            return status;
    }
}

static weir_status attempt_once(weir_rpc_client *client, const target *to)
{
    client->call = (call){ .code = -1 };
    weir_status status = client->is_connected ? WEIR_OK : hang_on(client, to);
    if (status != WEIR_OK)
        return status;
    /* What came since the last call: a goodbye, if the other side is gone. */
    status = weir_rpc_channel_read(&client->channel, SIZE_MAX);
    if (status == WEIR_OK && !nghttp2_session_check_request_allowed(client->channel.session))
        status = weir_fail(WEIR_ERR_PEER_LOST, "the other side is closing");
    if (status == WEIR_OK)
        status = submit(client, to);
    if (status == WEIR_OK)
        status = exchange(client, to);
    if (status == WEIR_OK && client->call.reset_code == NGHTTP2_REFUSED_STREAM)
        status = weir_fail(WEIR_ERR_PEER_LOST, "the other side is closing");
    return status;
}

/* A token may have been replaced: on this side, or only on the other. */
static weir_status attempt(weir_rpc_client *client, const target *to)
{
    weir_status status = WEIR_OK;
    if (weir_security_refresh(&client->kept, false))
        status = show(client, client->kept.security.token);
    if (status == WEIR_OK)
        status = attempt_once(client, to);
    if (status != WEIR_OK || client->call.code != WEIR_RPC_UNAUTHENTICATED ||
        client->bearer == NULL)
        return status;
    const char *other =
        weir_security_other_token(&client->kept, client->bearer + sizeof(BEARER) - 1);
    if (other == NULL)
        return WEIR_OK;
    status = show(client, other);
    return status == WEIR_OK ? attempt_once(client, to) : status;
}

/* ---- what an answer means --------------------------------------------------------------------*/

/* As gRPC maps HTTP statuses of servers and proxies that do not speak it. */
static int code_of_http(int http_status)
{
    switch (http_status) {
    case 400:
        return WEIR_RPC_INTERNAL;
    case 401:
        return WEIR_RPC_UNAUTHENTICATED;
    case 403:
        return WEIR_RPC_PERMISSION_DENIED;
    case 404:
        return WEIR_RPC_UNIMPLEMENTED;
    case 429:
    case 502:
    case 503:
    case 504:
        return WEIR_RPC_UNAVAILABLE;
    default:
        return WEIR_RPC_UNKNOWN;
    }
}

static weir_status status_of_code(int code)
{
    switch (code) {
    case WEIR_RPC_UNAVAILABLE:
        return WEIR_ERR_PEER_LOST;
    case WEIR_RPC_DEADLINE_EXCEEDED:
        return WEIR_ERR_TIMED_OUT;
    case WEIR_RPC_NOT_FOUND:
        return WEIR_ERR_NOT_FOUND;
    case WEIR_RPC_ALREADY_EXISTS:
        return WEIR_ERR_EXISTS;
    case WEIR_RPC_UNIMPLEMENTED:
        return WEIR_ERR_UNSUPPORTED;
    default:
        return WEIR_ERR_REFUSED;
    }
}

static weir_status judge_fault(weir_grpc_fault fault)
{
    switch (fault) {
    case WEIR_GRPC_COMPRESSED:
        return weir_fail(WEIR_ERR_FORMAT, "the answer is compressed, which nobody asked for");
    case WEIR_GRPC_TOO_LARGE:
        return weir_fail(WEIR_ERR_FORMAT, "the answer is larger than 64 MiB");
    case WEIR_GRPC_NO_MEMORY:
        return WEIR_ERR_NO_MEMORY;
    default:
        return weir_fail(WEIR_ERR_FORMAT, "the answer has more bytes than one message");
    }
}

static weir_status judge(const weir_rpc_client *client)
{
    const call *ended = &client->call;
    if (ended->fault != WEIR_GRPC_FINE)
        return judge_fault(ended->fault);
    if (ended->http_status != 200 && ended->code < 0 && ended->http_status > 0)
        return weir_fail(status_of_code(code_of_http(ended->http_status)), "HTTP status %d",
                         ended->http_status);
    if (ended->code > WEIR_RPC_OK)
        return weir_fail(status_of_code(ended->code), "%s%s%s", weir_grpc_code_name(ended->code),
                         ended->text[0] != '\0' ? ": " : "", ended->text);
    if (ended->code < 0)
        return weir_fail(WEIR_ERR_PEER_LOST, "the call ended without a status: %s",
                         nghttp2_http2_strerror(ended->reset_code));
    if (!ended->is_grpc || !weir_grpc_body_is_whole(&client->body))
        return weir_fail(WEIR_ERR_FORMAT, "the answer is not whole");
    return WEIR_OK;
}

/* ---- the call --------------------------------------------------------------------------------*/

static weir_status pack(weir_rpc_client *client, const ProtobufCMessage *message)
{
    size_t n_message = protobuf_c_message_get_packed_size(message);
    if (n_message > WEIR_RPC_MAX_MESSAGE_BYTES)
        return weir_fail(WEIR_ERR_INVALID, "the request has %zu bytes, more than 64 MiB",
                         n_message);
    size_t n_request = WEIR_GRPC_PREFIX_BYTES + n_message;
    if (n_request > client->request_capacity) {
        size_t capacity = n_request + n_request / 4 + SPARE_REQUEST_BYTES;
        unsigned char *larger = weir_realloc(client->request, capacity);
        if (larger == NULL)
            return WEIR_ERR_NO_MEMORY;
        client->request = larger;
        client->request_capacity = capacity;
    }
    weir_grpc_put_prefix(client->request, (uint32_t)n_message);
    protobuf_c_message_pack(message, client->request + WEIR_GRPC_PREFIX_BYTES);
    client->n_request = n_request;
    /* A peer would refuse the whole message for one string that is no UTF-8, and not say which. */
    return weir_rpc_message_check(message->descriptor, client->request + WEIR_GRPC_PREFIX_BYTES,
                                  n_message) == WEIR_OK
               ? WEIR_OK
               : WEIR_ERR_INVALID;
}

/* Asks the place that the route is at. */
static weir_status ask_place(weir_rpc_client *client, const target *to)
{
    bool was_kept = client->is_connected;
    weir_status status = attempt(client, to);
    if (status == WEIR_ERR_PEER_LOST && was_kept && !client->call.has_begun) {
        hang_up(client);
        status = attempt(client, to);
    }
    return status == WEIR_OK ? judge(client) : status;
}

/* Until one answers: what a server refuses, the others would refuse too. */
static weir_status perform(weir_rpc_client *client, const target *to,
                           const ProtobufCMessage *request, bool *out_is_told)
{
    weir_rpc_round round;
    weir_status status = pack(client, request);
    if (status != WEIR_OK)
        return status;
    weir_rpc_round_begin(&client->route, &round);
    for (;;) {
        target bounded = *to;
        bounded.deadline = weir_rpc_round_deadline(&round, to->deadline);
        if (round.n_left != 0)
            bounded.timeout_ms = weir_deadline_left_ms(bounded.deadline);
        status = ask_place(client, &bounded);
        if (status != WEIR_ERR_PEER_LOST && status != WEIR_ERR_TIMED_OUT)
            break;
        uint64_t n_moves = client->route.n_moves;
        bool goes_on =
            weir_rpc_round_next(&client->route, &round, status, client->is_connected, to->deadline);
        if (client->route.n_moves != n_moves)
            hang_up(client); /* it led elsewhere */
        if (!goes_on) {
            *out_is_told = round.n_said != 0;
            return status;
        }
    }
    if (round.n_said != 0)
        weir_log(WEIR_LOG_WARN, "%s%s is asked from here on; %s", client->who,
                 weir_rpc_client_address(client), round.said);
    return status;
}

/* Whether the connection is as good as before the call. */
static bool is_reusable(const weir_rpc_client *client)
{
    return client->is_connected && client->call.is_over &&
           client->call.reset_code == NGHTTP2_NO_ERROR && client->call.code >= 0 &&
           !weir_rpc_channel_is_over(&client->channel);
}

weir_status weir_rpc_call(weir_rpc_client *client, const ProtobufCServiceDescriptor *service,
                          const char *method, const ProtobufCMessage *request, unsigned timeout_ms,
                          weir_arena *arena, const ProtobufCMessage **out_response)
{
    target to = { service, protobuf_c_service_descriptor_get_method_by_name(service, method),
                  timeout_ms, weir_deadline_in(timeout_ms) };
    if (to.method == NULL || to.method->input != request->descriptor)
        return weir_fail(WEIR_ERR_INVALID, "%s has no method %s that takes a %s",
                         service->short_name, method, request->descriptor->short_name);
    bool is_told = false; /* the line says whom it is about */
    weir_status status = perform(client, &to, request, &is_told);
    if (!is_reusable(client))
        hang_up(client);
    ProtobufCMessage *response;
    if (status == WEIR_OK)
        status = weir_rpc_message_unpack(to.method->output, client->body.data, client->body.n_bytes,
                                         arena, &response);
    if (status != WEIR_OK) {
        weir_error_prefix("%s%s: %s.%s", client->who,
                          is_told ? "at none of its addresses" : weir_rpc_client_address(client),
                          service->short_name, method);
        return status;
    }
    *out_response = response;
    return WEIR_OK;
}
