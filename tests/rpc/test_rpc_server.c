/* SPDX-License-Identifier: Apache-2.0 */
/* test_rpc_server.c - the server against callers that do not keep to gRPC, HTTP/2 or reason. After
 * each of them it must answer the next good one. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/alloc.h"
#include "rpc/echo_service.h"
#include "rpc/grpc_wire.h"
#include "rpc/rpc_address.h"
#include "rpc/rpc_channel.h"

#define TIMEOUT_MS 10000

static const char get_path[] = "/model_express.refit.RefitService/GetWeightVersion";

static int set_up(void **state)
{
    *state = echo_open("127.0.0.1:0");
    return *state == NULL;
}

static int tear_down(void **state)
{
    weir_rpc_server_close(*state);
    return 0;
}

static void assert_still_answers(weir_rpc_server *server)
{
    weir_rpc_client *client;
    weir_arena arena;
    weir_arena_init(&arena, 0);
    assert_int_equal(weir_rpc_client_open(weir_rpc_server_address(server), NULL, NULL, &client),
                     WEIR_OK);
    assert_int_equal(echo_call(client, "uid", TIMEOUT_MS, &arena, NULL), WEIR_OK);
    weir_rpc_client_close(client);
    weir_arena_close(&arena);
}

static int connect_to(weir_rpc_server *server)
{
    weir_rpc_address address;
    int fd = -1;
    assert_int_equal(weir_rpc_address_parse(weir_rpc_server_address(server), &address), WEIR_OK);
    assert_int_equal(weir_rpc_connect(&address, weir_deadline_in(TIMEOUT_MS), -1, &fd), WEIR_OK);
    return fd;
}

/* ---- one call, as any HTTP/2 client may make it ----------------------------------------------*/

typedef struct raw_call {
    const char *method, *path, *content_type, *timeout, *encoding, *bulk_header;
    const unsigned char *body;
    size_t n_body;
    bool stays_open; /* does not end its half of the stream */
    /* what came back */
    size_t n_sent, n_received;
    char http_status[8], grpc_status[8], grpc_message[300], accept_encoding[32];
    bool is_over;
    uint32_t reset_code;
} raw_call;

static int raw_header(nghttp2_session *session, const nghttp2_frame *frame, const uint8_t *name,
                      size_t n_name, const uint8_t *value, size_t n_value, uint8_t flags,
                      void *user_data)
{
    (void)session, (void)frame, (void)flags, (void)n_value;
    raw_call *call = user_data;
    const struct {
        const char *name;
        char *out;
        size_t n_out;
    } wanted[] = { { ":status", call->http_status, sizeof(call->http_status) },
                   { "grpc-status", call->grpc_status, sizeof(call->grpc_status) },
                   { "grpc-message", call->grpc_message, sizeof(call->grpc_message) },
                   { "grpc-accept-encoding", call->accept_encoding,
                     sizeof(call->accept_encoding) } };
    for (size_t i = 0; i < 4; i++) {
        if (n_name == strlen(wanted[i].name) && memcmp(name, wanted[i].name, n_name) == 0)
            snprintf(wanted[i].out, wanted[i].n_out, "%s", (const char *)value);
    }
    return 0;
}

static int raw_data(nghttp2_session *session, uint8_t flags, int32_t id, const uint8_t *data,
                    size_t n, void *user_data)
{
    (void)session, (void)flags, (void)id, (void)data;
    ((raw_call *)user_data)->n_received += n;
    return 0;
}

static int raw_close(nghttp2_session *session, int32_t id, uint32_t code, void *user_data)
{
    (void)session, (void)id;
    ((raw_call *)user_data)->is_over = true;
    ((raw_call *)user_data)->reset_code = code;
    return 0;
}

static ssize_t raw_read(nghttp2_session *session, int32_t id, uint8_t *buffer, size_t n_buffer,
                        uint32_t *flags, nghttp2_data_source *source, void *user_data)
{
    (void)session, (void)id, (void)user_data;
    raw_call *call = source->ptr;
    size_t n = call->n_body - call->n_sent;
    if (n > n_buffer)
        n = n_buffer;
    if (n == 0 && call->stays_open)
        return NGHTTP2_ERR_DEFERRED;
    if (n != 0)
        memcpy(buffer, call->body + call->n_sent, n);
    call->n_sent += n;
    if (call->n_sent == call->n_body && !call->stays_open)
        *flags |= NGHTTP2_DATA_FLAG_EOF;
    return (ssize_t)n;
}

static nghttp2_nv header(const char *name, const char *value)
{
    return (nghttp2_nv){ (uint8_t *)name, (uint8_t *)value, strlen(name), strlen(value), 0 };
}

static void submit(nghttp2_session *session, raw_call *call)
{
    nghttp2_nv headers[16];
    size_t n = 0;
    headers[n++] = header(":method", call->method ? call->method : "POST");
    headers[n++] = header(":scheme", "http");
    headers[n++] = header(":path", call->path ? call->path : get_path);
    headers[n++] = header(":authority", "test");
    headers[n++] = header("te", "trailers");
    headers[n++] =
        header("content-type", call->content_type ? call->content_type : "application/grpc");
    if (call->timeout != NULL)
        headers[n++] = header("grpc-timeout", call->timeout);
    if (call->encoding != NULL)
        headers[n++] = header("grpc-encoding", call->encoding);
    for (int i = 0; call->bulk_header != NULL && i < 8; i++)
        headers[n++] = header("x-bulk", call->bulk_header);
    nghttp2_data_provider provider = { { .ptr = call }, raw_read };
    assert_true(nghttp2_submit_request(session, NULL, headers, n, &provider, NULL) > 0);
}

static void make_call(weir_rpc_server *server, raw_call *call)
{
    weir_rpc_heap heap;
    weir_rpc_channel channel;
    nghttp2_session_callbacks *callbacks;
    weir_rpc_heap_init(&heap);
    nghttp2_session_callbacks_new(&callbacks);
    nghttp2_session_callbacks_set_on_header_callback(callbacks, raw_header);
    nghttp2_session_callbacks_set_on_data_chunk_recv_callback(callbacks, raw_data);
    nghttp2_session_callbacks_set_on_stream_close_callback(callbacks, raw_close);
    assert_int_equal(weir_rpc_channel_open(&channel, connect_to(server), &heap,
                                           WEIR_RPC_CLIENT_SIDE, callbacks, call),
                     WEIR_OK);
    submit(channel.session, call);
    weir_deadline deadline = weir_deadline_in(TIMEOUT_MS);
    while (!call->is_over && !weir_deadline_passed(deadline)) {
        if (weir_rpc_channel_write(&channel) != WEIR_OK)
            break;
        struct pollfd fd = { .fd = channel.fd, .events = POLLIN };
        poll(&fd, 1, 100);
        if (weir_rpc_channel_read(&channel, SIZE_MAX) != WEIR_OK)
            break;
    }
    assert_true(call->is_over);
    nghttp2_session_callbacks_del(callbacks);
    weir_rpc_channel_close(&channel);
    weir_rpc_heap_close(&heap);
}

#define BODY(...)                                   \
    .body = (const unsigned char[]){ __VA_ARGS__ }, \
    .n_body = sizeof((const unsigned char[]){ __VA_ARGS__ })
#define UID_BODY BODY(0, 0, 0, 0, 3, 0x0a, 1, 'x')

static void expect(weir_rpc_server *server, raw_call call, const char *http_status,
                   const char *grpc_status, const char *message)
{
    make_call(server, &call);
    assert_string_equal(call.http_status, http_status);
    assert_string_equal(call.grpc_status, grpc_status);
    assert_string_equal(call.grpc_message, message);
}

static void test_what_is_no_grpc_gets_an_http_status(void **state)
{
    expect(*state, (raw_call){ UID_BODY }, "200", "0", "");
    expect(*state, (raw_call){ UID_BODY, .content_type = "application/grpc+proto" }, "200", "0",
           "");
    expect(*state, (raw_call){ UID_BODY, .content_type = "application/json" }, "415", "", "");
    expect(*state, (raw_call){ UID_BODY, .content_type = "application/grpcx" }, "415", "", "");
    expect(*state, (raw_call){ UID_BODY, .method = "PUT" }, "405", "", "");
    assert_still_answers(*state);
}

static void test_unknown_paths_are_unimplemented(void **state)
{
    static const char *const paths[] = { "/",
                                         "/x",
                                         "//",
                                         "/model_express.refit.RefitService",
                                         "/model_express.refit.RefitService/",
                                         "/model_express.refit.RefitService/Nope",
                                         "/other.Service/GetWeightVersion" };
    for (size_t i = 0; i < sizeof(paths) / sizeof(paths[0]); i++) {
        char text[128];
        snprintf(text, sizeof(text), "%s is not offered here", paths[i]);
        expect(*state, (raw_call){ UID_BODY, .path = paths[i] }, "200", "12", text);
    }
}

static void test_compression_is_refused_with_what_is_accepted(void **state)
{
    raw_call flagged = { BODY(1, 0, 0, 0, 3, 0x0a, 1, 'x') };
    make_call(*state, &flagged);
    assert_string_equal(flagged.grpc_status, "12");
    assert_string_equal(flagged.accept_encoding, "identity");
    raw_call named = { UID_BODY, .encoding = "gzip" };
    make_call(*state, &named);
    assert_string_equal(named.grpc_status, "12");
    assert_string_equal(named.accept_encoding, "identity");
    expect(*state, (raw_call){ UID_BODY, .encoding = "identity" }, "200", "0", "");
}

static void test_bodies_that_are_not_one_message_are_refused(void **state)
{
    expect(*state, (raw_call){ .n_body = 0 }, "200", "3", "the request is not whole");
    expect(*state, (raw_call){ BODY(0, 0, 0) }, "200", "3", "the request is not whole");
    expect(*state, (raw_call){ BODY(0, 0, 0, 0, 9, 0x0a) }, "200", "3", "the request is not whole");
    expect(*state, (raw_call){ BODY(0, 0, 0, 0, 0) }, "200", "0", ""); /* all fields default */
    expect(*state, (raw_call){ BODY(0, 0, 0, 0, 0, 0, 0, 0, 0, 0) }, "200", "3",
           "more bytes than one message");
    expect(*state, (raw_call){ BODY(0, 0x7f, 0xff, 0xff, 0xff), .stays_open = true }, "200", "8",
           "the request is larger than 64 MiB");
    assert_still_answers(*state);
}

static void test_messages_that_do_not_decode_are_invalid(void **state)
{
    expect(*state, (raw_call){ BODY(0, 0, 0, 0, 2, 0x0a, 9) }, "200", "3",
           "bytes are not a GetWeightVersionRequest message");
    expect(*state, (raw_call){ BODY(0, 0, 0, 0, 4, 0x0a, 2, 'a', 0) }, "200", "3",
           "GetWeightVersionRequest.uid is not UTF-8 text without NUL");
    expect(*state, (raw_call){ BODY(0, 0, 0, 0, 4, 0x0a, 2, 0xff, 0xfe) }, "200", "3",
           "GetWeightVersionRequest.uid is not UTF-8 text without NUL");
}

static void test_deadlines_are_kept(void **state)
{
    double begin = weir_now_s();
    expect(*state, (raw_call){ BODY(0, 0, 0, 0, 3), .timeout = "200m", .stays_open = true }, "200",
           "4", "the deadline passed");
    assert_true(weir_now_s() - begin < 3.0);
    expect(*state, (raw_call){ UID_BODY, .timeout = "5x" }, "200", "3",
           "grpc-timeout is malformed");
    expect(*state, (raw_call){ UID_BODY, .timeout = "99999999H" }, "200", "0", "");
}

static void test_huge_headers_end_the_call(void **state)
{
    char bulk[3000];
    memset(bulk, 'h', sizeof(bulk) - 1);
    bulk[sizeof(bulk) - 1] = '\0';
    raw_call call = { UID_BODY, .bulk_header = bulk };
    make_call(*state, &call);
    assert_string_equal(call.grpc_status, "");
    assert_int_not_equal(call.reset_code, 0);
    assert_still_answers(*state);
}

static void test_an_early_refusal_stops_the_sender(void **state)
{
    raw_call call = { BODY(1, 0, 0, 0, 3), .stays_open = true };
    make_call(*state, &call);
    assert_string_equal(call.grpc_status, "12");
}

/* ---- bytes that are no HTTP/2 ----------------------------------------------------------------*/

#define PREFACE "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

/* Sends as much as the server takes, then waits for it to hang up. */
static void throw_bytes(weir_rpc_server *server, const void *bytes, size_t n)
{
    int fd = connect_to(server);
    weir_deadline deadline = weir_deadline_in(TIMEOUT_MS);
    for (size_t sent = 0; sent < n && !weir_deadline_passed(deadline);) {
        ssize_t k = send(fd, (const char *)bytes + sent, n - sent, MSG_NOSIGNAL);
        if (k < 0 && errno != EAGAIN)
            break;
        if (k > 0) {
            sent += (size_t)k;
            continue;
        }
        struct pollfd poll_fd = { .fd = fd, .events = POLLOUT };
        poll(&poll_fd, 1, 100);
        char sink[4096];
        while (recv(fd, sink, sizeof(sink), 0) > 0) {
        }
    }
    shutdown(fd, SHUT_WR);
    struct pollfd poll_fd = { .fd = fd, .events = POLLIN };
    char sink[4096];
    while (!weir_deadline_passed(deadline)) {
        poll(&poll_fd, 1, 100);
        ssize_t k = recv(fd, sink, sizeof(sink), 0);
        if (k == 0 || (k < 0 && errno != EAGAIN))
            break;
    }
    assert_false(weir_deadline_passed(deadline));
    close(fd);
}

static void test_garbage_is_survived(void **state)
{
    throw_bytes(*state, "", 0);
    throw_bytes(*state, "GET / HTTP/1.1\r\nHost: x\r\n\r\n", 27);
    throw_bytes(*state, PREFACE, 24);
    unsigned seed = 7;
    unsigned char bytes[2048];
    for (int round = 0; round < 200; round++) {
        memcpy(bytes, PREFACE, 24);
        for (size_t i = round % 2 ? 24 : 0; i < sizeof(bytes); i++)
            bytes[i] = (unsigned char)(rand_r(&seed) >> 8);
        if (round % 2) { /* a plausible frame: short, of a known type */
            bytes[24] = bytes[25] = 0;
            bytes[27] %= 10;
        }
        throw_bytes(*state, bytes, sizeof(bytes));
    }
    assert_still_answers(*state);
}

/* `n` frames of one kind behind the preface and an empty SETTINGS frame. */
static void flood(weir_rpc_server *server, const unsigned char *frame, size_t n_frame, size_t n)
{
    static const unsigned char settings[9] = { 0, 0, 0, 4, 0, 0, 0, 0, 0 };
    size_t n_bytes = 24 + sizeof(settings) + n * n_frame;
    unsigned char *bytes = malloc(n_bytes);
    memcpy(bytes, PREFACE, 24);
    memcpy(bytes + 24, settings, sizeof(settings));
    for (size_t i = 0; i < n; i++)
        memcpy(bytes + 24 + sizeof(settings) + i * n_frame, frame, n_frame);
    throw_bytes(server, bytes, n_bytes);
    free(bytes);
}

static void test_floods_are_survived(void **state)
{
    static const unsigned char ping[17] = { 0, 0, 8, 6 };
    static const unsigned char settings[9] = { 0, 0, 0, 4 };
    static const unsigned char window[13] = { 0, 0, 4, 8, 0, 0, 0, 0, 0, 0x7f, 0xff, 0xff, 0xff };
    static const unsigned char priority[14] = { 0, 0, 5, 2, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1 };
    flood(*state, ping, sizeof(ping), 20000);
    flood(*state, settings, sizeof(settings), 20000);
    flood(*state, window, sizeof(window), 20000);
    flood(*state, priority, sizeof(priority), 20000);
    assert_still_answers(*state);
}

/* HEADERS without END_HEADERS and then CONTINUATION for ever. */
static void test_endless_headers_are_survived(void **state)
{
    unsigned char bytes[24 + 9 + 10 + 100 * 10] = PREFACE;
    unsigned char *at = bytes + 24;
    at[3] = 4;
    at += 9;
    memcpy(at, (const unsigned char[]){ 0, 0, 1, 1, 0, 0, 0, 0, 1, 0x83 }, 10);
    at += 10;
    for (int i = 0; i < 100; i++, at += 10)
        memcpy(at, (const unsigned char[]){ 0, 0, 1, 9, 0, 0, 0, 0, 1, 0x40 }, 10);
    throw_bytes(*state, bytes, sizeof(bytes));
    assert_still_answers(*state);
}

/* Opens and resets streams as fast as it can; the server must end the connection. */
static void test_rapid_resets_end_the_connection(void **state)
{
    const size_t n = 3000, n_pair = 9 + 4 + 13;
    unsigned char *bytes = calloc(1, 24 + 9 + n * n_pair);
    memcpy(bytes, PREFACE, 24);
    bytes[24 + 3] = 4;
    for (size_t i = 0; i < n; i++) {
        unsigned char *at = bytes + 24 + 9 + i * n_pair;
        uint32_t id = (uint32_t)(2 * i + 1);
        /* HEADERS: :method POST, :scheme http, :path /, :authority "" by static index */
        const unsigned char pair[] = { 0,
                                       0,
                                       4,
                                       1,
                                       4,
                                       0,
                                       0,
                                       (unsigned char)(id >> 8),
                                       (unsigned char)id,
                                       0x83,
                                       0x86,
                                       0x84,
                                       0x81,
                                       0,
                                       0,
                                       4,
                                       3,
                                       0,
                                       0,
                                       0,
                                       (unsigned char)(id >> 8),
                                       (unsigned char)id,
                                       0,
                                       0,
                                       0,
                                       8 };
        memcpy(at, pair, sizeof(pair));
    }
    throw_bytes(*state, bytes, 24 + 9 + n * n_pair);
    free(bytes);
    assert_still_answers(*state);
}

static void test_many_connections_come_and_go(void **state)
{
    enum { N = 300 };
    int fds[N];
    for (int i = 0; i < N; i++)
        fds[i] = connect_to(*state);
    assert_still_answers(*state);
    for (int i = 0; i < N; i++)
        close(fds[i]);
    assert_still_answers(*state);
}

/* ---- opening ---------------------------------------------------------------------------------*/

static void test_listening_twice_names_the_address(void **state)
{
    weir_rpc_service service = ECHO_SERVICE;
    weir_rpc_server_options options = { .listen = weir_rpc_server_address(*state),
                                        .services = &service,
                                        .n_services = 1 };
    weir_rpc_server *server;
    assert_int_equal(weir_rpc_server_open(&options, &server), WEIR_ERR_IO);
    char expected[128];
    snprintf(expected, sizeof(expected), "cannot listen on %s: Address already in use",
             options.listen);
    assert_string_equal(weir_last_error(), expected);
    options.listen = "127.0.0.1:70000";
    assert_int_equal(weir_rpc_server_open(&options, &server), WEIR_ERR_INVALID);
}

static void test_failed_allocations_leave_nothing_open(void **state)
{
    (void)state;
    for (uint64_t n = 1; n <= 2; n++) {
        weir_alloc_fail_at(n);
        assert_null(echo_open("127.0.0.1:0"));
        weir_alloc_fail_at(0);
    }
    weir_rpc_server_close(NULL);
}

static unsigned count_tick(void *context)
{
    __atomic_add_fetch((int *)context, 1, __ATOMIC_RELAXED);
    return 10;
}

static void test_ticks_come(void **state)
{
    (void)state;
    int n_ticks = 0;
    weir_rpc_service service = ECHO_SERVICE;
    weir_rpc_server_options options = { .listen = "localhost:0",
                                        .services = &service,
                                        .n_services = 1,
                                        .tick = count_tick,
                                        .tick_context = &n_ticks,
                                        .tick_ms = 10 };
    weir_rpc_server *server;
    assert_int_equal(weir_rpc_server_open(&options, &server), WEIR_OK);
    weir_deadline deadline = weir_deadline_in(TIMEOUT_MS);
    while (__atomic_load_n(&n_ticks, __ATOMIC_RELAXED) < 3 && !weir_deadline_passed(deadline))
        weir_sleep_ms(5);
    assert_true(__atomic_load_n(&n_ticks, __ATOMIC_RELAXED) >= 3);
    assert_still_answers(server);
    weir_rpc_server_close(server);
}

/* ---- back-pressure ---------------------------------------------------------------------------*/

/* Asks for 17 x 15 MB without reading any, nearly as much as a server holds: all come once they are
 * read. With more of them, who reads nothing for a moment would be dropped for the others' sake. */
static void test_answers_wait_for_slow_readers(void **state)
{
    enum { N = 17 };
    raw_call calls[N];
    weir_rpc_heap heap[N];
    weir_rpc_channel channels[N];
    nghttp2_session_callbacks *callbacks;
    nghttp2_session_callbacks_new(&callbacks);
    nghttp2_session_callbacks_set_on_data_chunk_recv_callback(callbacks, raw_data);
    nghttp2_session_callbacks_set_on_stream_close_callback(callbacks, raw_close);
    for (int i = 0; i < N; i++) {
        calls[i] = (raw_call){ BODY(0, 0, 0, 0, 13, 0x0a, 11, 's', 'l', 'o', 't', 's', ':', '1',
                                    '5', '0', '0', '0') };
        weir_rpc_heap_init(&heap[i]);
        assert_int_equal(weir_rpc_channel_open(&channels[i], connect_to(*state), &heap[i],
                                               WEIR_RPC_CLIENT_SIDE, callbacks, &calls[i]),
                         WEIR_OK);
        submit(channels[i].session, &calls[i]);
        assert_int_equal(weir_rpc_channel_write(&channels[i]), WEIR_OK);
    }
    weir_sleep_ms(200);
    weir_deadline deadline = weir_deadline_in(60000);
    for (int n_over = 0; n_over < N && !weir_deadline_passed(deadline);) {
        n_over = 0;
        for (int i = 0; i < N; i++) {
            assert_int_equal(weir_rpc_channel_read(&channels[i], SIZE_MAX), WEIR_OK);
            assert_int_equal(weir_rpc_channel_write(&channels[i]), WEIR_OK);
            n_over += calls[i].is_over;
        }
    }
    for (int i = 0; i < N; i++) {
        assert_true(calls[i].is_over);
        assert_true(calls[i].n_received > 15000 * ECHO_SLOT_BYTES);
        weir_rpc_channel_close(&channels[i]);
        weir_rpc_heap_close(&heap[i]);
    }
    nghttp2_session_callbacks_del(callbacks);
}

int main(void)
{
#define CASE(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        CASE(test_what_is_no_grpc_gets_an_http_status),
        CASE(test_unknown_paths_are_unimplemented),
        CASE(test_compression_is_refused_with_what_is_accepted),
        CASE(test_bodies_that_are_not_one_message_are_refused),
        CASE(test_messages_that_do_not_decode_are_invalid),
        CASE(test_deadlines_are_kept),
        CASE(test_huge_headers_end_the_call),
        CASE(test_an_early_refusal_stops_the_sender),
        CASE(test_garbage_is_survived),
        CASE(test_floods_are_survived),
        CASE(test_endless_headers_are_survived),
        CASE(test_rapid_resets_end_the_connection),
        CASE(test_many_connections_come_and_go),
        CASE(test_answers_wait_for_slow_readers),
        CASE(test_listening_twice_names_the_address),
        cmocka_unit_test(test_failed_allocations_leave_nothing_open),
        cmocka_unit_test(test_ticks_come),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
