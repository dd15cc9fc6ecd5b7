/* SPDX-License-Identifier: Apache-2.0 */
/* test_http_server.c - HTTP beside gRPC in one thread: what is answered, what is refused, and that
 * who is slow costs only himself. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdatomic.h>

#include "base/alloc.h"
#include "rpc/echo_service.h"
#include "rpc/http_caller.h"
#include "rpc/http_server.h"

#define LARGE_BYTES ((size_t)8 << 20)

typedef struct http_case {
    weir_rpc_server *server;
    weir_http_server *http;
    weir_http_options options;
    weir_status opened;
    bool is_alone; /* no gRPC beside it */
    char address[WEIR_RPC_ADDRESS_TEXT];
    char *large;
    uint64_t waiting; /* ticket of "/later", answered by the tick when `is_told` */
    atomic_bool is_told;
    atomic_uint n_parked, n_gone, n_open, n_cut_off, n_handled;
} http_case;

/* ---- a server with some answers --------------------------------------------------------------*/

static bool answer(void *context, const weir_http_request *request, weir_http_answer *out)
{
    http_case *the = context;
    the->n_handled++;
    *out = (weir_http_answer){ 200, "text/plain", "hello\n", 6, true };
    if (strcmp(request->path, "/large") == 0)
        *out = (weir_http_answer){ 200, "text/plain", the->large, LARGE_BYTES, false };
    if (strcmp(request->path, "/query") == 0) {
        const char *value = weir_http_query(request, "name");
        value = value != NULL ? value : "(none)";
        *out = (weir_http_answer){ 200, "text/plain", value, strlen(value), false };
    }
    if (strcmp(request->path, "/post") == 0) {
        assert_true(request->is_post);
        *out = (weir_http_answer){ 200, "text/plain", request->body, request->n_body_bytes, false };
    }
    if (strcmp(request->path, "/later") != 0)
        return true;
    the->waiting = request->ticket;
    the->n_parked++;
    return false;
}

static void gone(void *context, uint64_t ticket)
{
    http_case *the = context;
    (void)ticket;
    the->n_gone++;
}

static bool is_open(const char *path)
{
    return strcmp(path, "/open") == 0;
}

static const char *methods(const char *path)
{
    return strcmp(path, "/post") == 0 ? WEIR_HTTP_POST : WEIR_HTTP_READS;
}

static weir_status begin(void *context, weir_rpc_server *server)
{
    http_case *the = context;
    the->opened = weir_http_server_open(&the->options, server, &the->http);
    if (the->opened == WEIR_OK)
        snprintf(the->address, sizeof(the->address), "%s", weir_http_server_address(the->http));
    return the->opened;
}

static unsigned tick(void *context)
{
    http_case *the = context;
    weir_http_counts counts = weir_http_server_counts(the->http);
    the->n_open = counts.open_connections;
    the->n_cut_off = (unsigned)counts.cut_off;
    if (the->is_told) {
        const weir_http_answer told = { 200, "text/plain", "now\n", 4, false };
        weir_http_server_answer(the->http, the->waiting, &told);
        the->is_told = false;
    }
    return 5;
}

static weir_status open_case(http_case *the)
{
    weir_rpc_service service = ECHO_SERVICE;
    the->options.handler = answer;
    the->options.gone = gone;
    the->options.is_open = is_open;
    the->options.context = the;
    if (the->options.listen == NULL)
        the->options.listen = "127.0.0.1:0";
    the->large = calloc(1, LARGE_BYTES);
    const weir_rpc_server_options options = { .listen = the->is_alone ? NULL : "127.0.0.1:0",
                                              .services = &service,
                                              .n_services = 1,
                                              .tick = tick,
                                              .tick_context = the,
                                              .begin = begin,
                                              .begin_context = the };
    return weir_rpc_server_open(&options, &the->server);
}

static void close_case(http_case *the)
{
    weir_rpc_server_close(the->server);
    weir_http_server_close(the->http);
    free(the->large);
}

#define UNTIL(condition)                                                         \
    for (weir_deadline until_ = weir_deadline_in(HTTP_WAIT_MS); !(condition);) { \
        assert_false(weir_deadline_passed(until_));                              \
        weir_sleep_ms(2);                                                        \
    }

static void expect(const http_case *the, const char *method, const char *path, const char *headers,
                   int status)
{
    http_reply reply = http_ask(the->address, method, path, headers);
    if (reply.status != status)
        print_error("%s %s %s: %d\n", method, path, headers, reply.status);
    assert_int_equal(reply.status, status);
    free(reply.text);
}

/* ---- what is answered ------------------------------------------------------------------------*/

static void test_gets_are_answered_with_headers_that_keep_browsers_safe(void **state)
{
    (void)state;
    http_case the = { 0 };
    assert_int_equal(open_case(&the), WEIR_OK);
    http_reply reply = http_get(the.address, "/");
    assert_int_equal(reply.status, 200);
    assert_string_equal(reply.body, "hello\n");
    assert_true(http_has(&reply, "Content-Security-Policy: default-src 'self';"));
    assert_true(http_has(&reply, "X-Content-Type-Options: nosniff"));
    assert_true(http_has(&reply, "Cache-Control: no-store"));
    free(reply.text);
    reply = http_ask(the.address, "HEAD", "/", "");
    assert_int_equal(reply.status, 200);
    assert_int_equal(reply.n_body, 0);
    assert_true(http_has(&reply, "Content-Length: 6"));
    free(reply.text);
    reply = http_get(the.address, "/query?name=a%20%3Cb%3E&other=1");
    assert_string_equal(reply.body, "a <b>");
    free(reply.text);
    reply = http_get(the.address, "/query?other=1");
    assert_string_equal(reply.body, "(none)");
    free(reply.text);
    reply = http_get(the.address, "/large");
    assert_int_equal(reply.n_body, LARGE_BYTES);
    free(reply.text);
    close_case(&the);
}

static void test_other_requests_are_refused(void **state)
{
    (void)state;
    http_case the = { 0 };
    assert_int_equal(open_case(&the), WEIR_OK);
    expect(&the, "DELETE", "/", "", 405);
    expect(&the, "OPTIONS", "/", "", 405);
    expect(&the, "POST", "/", "Content-Length: 3\r\n", 405);
    expect(&the, "GET", "/", "Content-Length: 3\r\n", 400);
    expect(&the, "GET", "/", "Transfer-Encoding: chunked\r\n", 400);
    assert_int_equal(the.n_handled, 0);
    close_case(&the);
}

/* ---- bodies ----------------------------------------------------------------------------------*/

/* Sends the parts one by one, after an answer to the first where it asks for one. */
static http_reply post(const http_case *the, const char *headers, const char *first,
                       const char *second)
{
    char head[512];
    int fd = http_connect(the->address);
    assert_true(fd >= 0);
    snprintf(head, sizeof(head),
             "POST /post HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n%s\r\n", headers);
    assert_true(http_send(fd, head));
    if (strstr(headers, "100-continue") != NULL) {
        static const char told[] = "HTTP/1.1 100 Continue\r\n\r\n";
        char got[sizeof(told)] = "";
        struct pollfd ready = { .fd = fd, .events = POLLIN };
        assert_int_equal(poll(&ready, 1, (int)HTTP_WAIT_MS), 1);
        assert_int_equal(recv(fd, got, strlen(told), MSG_WAITALL), strlen(told));
        assert_string_equal(got, told);
    }
    http_send(fd, first);
    http_send(fd, second);
    http_reply reply = http_receive(fd);
    close(fd);
    return reply;
}

static void expect_echo(const http_case *the, const char *headers, const char *first,
                        const char *second, const char *body)
{
    http_reply reply = post(the, headers, first, second);
    assert_int_equal(reply.status, 200);
    assert_string_equal(reply.body, body);
    free(reply.text);
}

static void test_a_post_brings_its_body(void **state)
{
    (void)state;
    http_case the = { .options.methods = methods, .is_alone = true };
    assert_int_equal(open_case(&the), WEIR_OK);
    expect_echo(&the, "Content-Length: 7\r\n", "{\"a\"", ":1}", "{\"a\":1}");
    expect_echo(&the, "Content-Length: 2\r\nExpect: 100-continue\r\n", "{", "}", "{}");
    expect_echo(&the, "Transfer-Encoding: chunked\r\n", "1\r\n{\r\n", "3\r\n12}\r\n0\r\n\r\n",
                "{12}");
    expect_echo(&the, "Content-Length: 0\r\n", "", "", "");
    expect_echo(&the, "", "", "", "");
    close_case(&the);
}

static void test_each_path_takes_its_own_methods(void **state)
{
    (void)state;
    http_case the = { .options.methods = methods };
    assert_int_equal(open_case(&the), WEIR_OK);
    http_reply reply = http_get(the.address, "/post");
    assert_int_equal(reply.status, 405);
    assert_true(http_has(&reply, "Allow: POST\r\n"));
    assert_string_equal(reply.body, "{\"error\": \"POST alone\"}\n");
    free(reply.text);
    reply = http_ask(the.address, "POST", "/", "Content-Length: 0\r\n");
    assert_int_equal(reply.status, 405);
    assert_true(http_has(&reply, "Allow: GET, HEAD\r\n"));
    free(reply.text);
    expect(&the, "PUT", "/post", "Content-Length: 0\r\n", 405);
    expect(&the, "GET", "/", "Content-Length: 3\r\n", 400);
    assert_int_equal(the.n_handled, 0);
    close_case(&the);
}

static void test_a_long_body_is_refused_however_it_comes(void **state)
{
    (void)state;
    http_case the = { .options = { .methods = methods, .limits.body_bytes = 16 } };
    char long_chunk[64], endless[4096];
    assert_int_equal(open_case(&the), WEIR_OK);
    snprintf(long_chunk, sizeof(long_chunk), "11\r\n%017d\r\n", 1);
    memset(endless, 'a', sizeof(endless) - 1);
    endless[sizeof(endless) - 1] = '\0';
    memcpy(endless, "fff\r\n", 5);
    static const char exactly[] = "0123456789abcdef";
    expect_echo(&the, "Content-Length: 16\r\n", exactly, "", exactly);
    const struct {
        const char *headers, *first, *second;
        int status;
    } rows[] = {
        { "Content-Length: 17\r\n", "", "", 413 },
        { "Content-Length: 17000000000000000000000\r\n", "", "", 413 },
        { "Transfer-Encoding: chunked\r\n", long_chunk, "0\r\n\r\n", 413 },
        { "Transfer-Encoding: chunked\r\n", endless, "", 0 }, /* nobody reads on for ever */
    };
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        http_reply reply = post(&the, rows[i].headers, rows[i].first, rows[i].second);
        assert_int_equal(reply.status, rows[i].status);
        free(reply.text);
    }
    assert_int_equal(the.n_handled, 1);
    close_case(&the);
}

static void test_no_web_page_posts(void **state)
{
    (void)state;
    http_case the = { .options.methods = methods };
    assert_int_equal(open_case(&the), WEIR_OK);
    expect(&the, "POST", "/post", "Origin: https://attacker.example\r\nContent-Length: 0\r\n", 403);
    expect(&the, "POST", "/post", "Origin: null\r\nContent-Length: 0\r\n", 403);
    assert_int_equal(the.n_handled, 0);
    close_case(&the);
}

static void test_a_slow_body_is_cut_off(void **state)
{
    (void)state;
    http_case the = { .options = { .methods = methods, .limits.request_ms = 300 } };
    assert_int_equal(open_case(&the), WEIR_OK);
    int fd = http_connect(the.address);
    assert_true(
        http_send(fd, "POST /post HTTP/1.1\r\nHost: localhost\r\nContent-Length: 90\r\n\r\n"));
    for (int k = 0; the.n_cut_off == 0; k++) { /* a byte now and then does not help */
        assert_true(k < 80);
        http_send(fd, "a");
        weir_sleep_ms(50);
    }
    UNTIL(the.n_open == 0);
    assert_int_equal(the.n_handled, 0);
    close(fd);
    close_case(&the);
}

static void test_a_page_of_another_name_reads_nothing(void **state)
{
    (void)state;
    http_case the = { 0 };
    char request[256];
    static const struct {
        const char *host;
        int status;
    } hosts[] = { { "attacker.example", 403 },
                  { "attacker.example:80", 403 },
                  { "localhost", 200 },
                  { "127.0.0.1", 200 },
                  { "[::1]:8501", 200 } };
    assert_int_equal(open_case(&the), WEIR_OK);
    for (size_t i = 0; i < sizeof(hosts) / sizeof(hosts[0]); i++) {
        int fd = http_connect(the.address);
        snprintf(request, sizeof(request),
                 "GET / HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n", hosts[i].host);
        assert_true(http_send(fd, request));
        http_reply reply = http_receive(fd);
        assert_int_equal(reply.status, hosts[i].status);
        free(reply.text);
        close(fd);
    }
    close_case(&the);
}

static void test_a_token_opens_everything_else(void **state)
{
    (void)state;
    http_case the = { .options.security.token = "correct-horse" };
    assert_int_equal(open_case(&the), WEIR_OK);
    http_reply reply = http_get(the.address, "/");
    assert_int_equal(reply.status, 401);
    assert_true(http_has(&reply, "WWW-Authenticate: Bearer"));
    free(reply.text);
    expect(&the, "GET", "/open", "", 200);
    expect(&the, "GET", "/", "Authorization: Bearer correct-hors\r\n", 401);
    expect(&the, "GET", "/", "Authorization: Bearer correct-horses\r\n", 401);
    expect(&the, "GET", "/", "Authorization: Basic correct-horse\r\n", 401);
    expect(&the, "GET", "/?token=correct-horse", "", 401);
    assert_int_equal(the.n_handled, 1);
    expect(&the, "GET", "/", "Authorization: bearer correct-horse\r\n", 200);
    close_case(&the);
}

static void test_it_listens_for_others_only_when_it_can_tell_them_apart(void **state)
{
    (void)state;
    http_case the = { .options = { .listen = "0.0.0.0:0", .security.token = "t" } };
    assert_int_equal(open_case(&the), WEIR_ERR_REFUSED);
    assert_non_null(strstr(weir_last_error(), "0.0.0.0:0: not without a certificate"));
    close_case(&the);
    the = (http_case){ .options = { .listen = "0.0.0.0:0", .security.insecure = true } };
    assert_int_equal(open_case(&the), WEIR_OK);
    close_case(&the);
}

static void test_what_keeps_it_from_opening_is_named(void **state)
{
    (void)state;
    http_case first = { 0 };
    assert_int_equal(open_case(&first), WEIR_OK);
    http_case the = { .options.listen = first.address };
    assert_int_equal(open_case(&the), WEIR_ERR_IO);
    assert_non_null(strstr(weir_last_error(), "Address already in use"));
    close_case(&the);
    close_case(&first);
    the = (http_case){ .options.security = { .certificate = "/nowhere.pem", .key = "/no.key" } };
    assert_int_equal(open_case(&the), WEIR_ERR_NOT_FOUND);
    assert_non_null(strstr(weir_last_error(), "/nowhere.pem"));
    close_case(&the);
    the = (http_case){ .options.security = { .certificate = "/proc/self/status",
                                             .key = "/proc/self/status" } };
    assert_int_equal(open_case(&the), WEIR_ERR_IO);
    assert_non_null(strstr(weir_last_error(), "see to its certificate and key"));
    close_case(&the);
}

/* ---- later -----------------------------------------------------------------------------------*/

static void test_an_answer_may_come_later(void **state)
{
    (void)state;
    http_case the = { 0 };
    char request[128];
    assert_int_equal(open_case(&the), WEIR_OK);
    int fd = http_connect(the.address);
    snprintf(request, sizeof(request),
             "GET /later HTTP/1.1\r\nHost: localhost\r\nConnection: "
             "close\r\n\r\n");
    assert_true(http_send(fd, request));
    UNTIL(the.n_parked == 1);
    expect(&the, "GET", "/", "", 200); /* others do not wait for it */
    uint64_t told_ns = weir_now_ns();
    the.is_told = true;
    http_reply reply = http_receive(fd);
    assert_true(weir_now_ns() - told_ns < 500000000); /* not by a timer */
    assert_int_equal(reply.status, 200);
    assert_string_equal(reply.body, "now\n");
    assert_int_equal(the.n_gone, 0);
    free(reply.text);
    close(fd);
    close_case(&the);
}

static void test_who_leaves_is_waited_for_no_more(void **state)
{
    (void)state;
    http_case the = { 0 };
    assert_int_equal(open_case(&the), WEIR_OK);
    int fd = http_connect(the.address);
    assert_true(http_send(fd, "GET /later HTTP/1.1\r\nHost: localhost\r\n\r\n"));
    UNTIL(the.n_parked == 1);
    close(fd);
    UNTIL(the.n_gone == 1);
    UNTIL(the.n_open == 0);
    fd = http_connect(the.address); /* and one that is there when all ends */
    assert_true(http_send(fd, "GET /later HTTP/1.1\r\nHost: localhost\r\n\r\n"));
    UNTIL(the.n_parked == 2);
    close_case(&the);
    assert_int_equal(the.n_gone, 2);
    close(fd);
}

/* ---- those who are slow ----------------------------------------------------------------------*/

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Milliseconds: of 100 calls 99 take no longer. */
static double p99_of_calls(const char *address, unsigned n)
{
    weir_rpc_client *client;
    weir_arena arena;
    double *took_ms = calloc(n, sizeof(*took_ms));
    weir_arena_init(&arena, 0);
    assert_int_equal(weir_rpc_client_open(address, NULL, NULL, &client), WEIR_OK);
    for (unsigned i = 0; i < n; i++) {
        uint64_t begun_ns = weir_now_ns();
        assert_int_equal(echo_call(client, "uid", 5000, &arena, NULL), WEIR_OK);
        took_ms[i] = (double)(weir_now_ns() - begun_ns) / 1e6;
    }
    qsort(took_ms, n, sizeof(*took_ms), compare);
    double p99_ms = took_ms[n * 99 / 100];
    weir_rpc_client_close(client);
    weir_arena_close(&arena);
    free(took_ms);
    return p99_ms;
}

static void test_slow_connections_cost_no_call_and_are_cut_off(void **state)
{
    (void)state;
    enum { N_SLOW = 200 };
    http_case the = { .options.limits = {
                          .connections = 300, .connections_per_host = 300, .request_ms = 1500 } };
    int fds[N_SLOW];
    assert_int_equal(open_case(&the), WEIR_OK);
    double before_ms = p99_of_calls(weir_rpc_server_address(the.server), 500);
    for (int i = 0; i < N_SLOW; i++) {
        fds[i] = http_connect(the.address);
        assert_true(fds[i] >= 0);
        assert_true(http_send(fds[i], "GET / HTTP/1.1\r\nHost: localhost\r\nX-Slow: a"));
    }
    UNTIL(the.n_open == N_SLOW);
    double during_ms = p99_of_calls(weir_rpc_server_address(the.server), 2000);
    print_message("p99 of a call: %.3f ms, with %d slow connections of HTTP %.3f ms\n", before_ms,
                  N_SLOW, during_ms);
    assert_true(during_ms < 10 * before_ms + 20);
    for (int k = 0; the.n_open != 0; k++) { /* a byte now and then does not help them */
        assert_true(k < 100);
        for (int i = 0; i < N_SLOW; i++)
            http_send(fds[i], "a");
        weir_sleep_ms(50);
    }
    assert_int_equal(the.n_cut_off, N_SLOW);
    expect(&the, "GET", "/", "", 200);
    for (int i = 0; i < N_SLOW; i++)
        close(fds[i]);
    close_case(&the);
}

static void test_answers_that_nobody_reads_are_bounded(void **state)
{
    (void)state;
    http_case the = { .options.limits = { .answer_bytes = LARGE_BYTES, .answer_ms = 500 } };
    assert_int_equal(open_case(&the), WEIR_OK);
    int fd = http_connect(the.address);
    assert_true(http_send(fd, "GET /large HTTP/1.1\r\nHost: localhost\r\n\r\n"));
    UNTIL(the.n_handled == 1);
    expect(&the, "GET", "/large", "", 503); /* the first one has all the room */
    expect(&the, "GET", "/", "", 200);
    UNTIL(the.n_cut_off == 1);
    UNTIL(the.n_open == 0);
    http_reply reply = http_get(the.address, "/large");
    assert_int_equal(reply.n_body, LARGE_BYTES);
    free(reply.text);
    close(fd);
    close_case(&the);
}

static void test_one_address_has_so_many_connections(void **state)
{
    (void)state;
    http_case the = { .options.limits = { .connections_per_host = 4 } };
    int fds[5];
    assert_int_equal(open_case(&the), WEIR_OK);
    for (int i = 0; i < 5; i++)
        assert_true((fds[i] = http_connect(the.address)) >= 0);
    struct pollfd fifth = { .fd = fds[4], .events = POLLIN };
    char byte;
    assert_int_equal(poll(&fifth, 1, (int)HTTP_WAIT_MS), 1);
    assert_true(recv(fds[4], &byte, 1, 0) <= 0);
    close(fds[0]);
    UNTIL(the.n_open == 3);
    expect(&the, "GET", "/", "", 200);
    for (int i = 1; i < 5; i++)
        close(fds[i]);
    close_case(&the);
}

static void test_long_headers_are_refused(void **state)
{
    (void)state;
    http_case the = { .options.limits = { .header_bytes = 4096 } };
    char headers[6000] = "X-Long: ";
    assert_int_equal(open_case(&the), WEIR_OK);
    memset(headers + 8, 'a', sizeof(headers) - 12);
    memcpy(headers + sizeof(headers) - 4, "\r\n", 3);
    http_reply reply = http_ask(the.address, "GET", "/", headers);
    assert_true(reply.status == 431 || reply.status == 413 || reply.status == 0);
    free(reply.text);
    assert_int_equal(the.n_handled, 0);
    expect(&the, "GET", "/", "", 200);
    close_case(&the);
}

static void test_failed_allocations_leave_nothing_open(void **state)
{
    (void)state;
    for (uint64_t n = 1;; n++) {
        http_case the = { .options.security.token = "t" };
        weir_alloc_fail_at(n);
        weir_status status = open_case(&the);
        weir_alloc_fail_at(0);
        close_case(&the);
        if (status == WEIR_OK)
            break;
        assert_int_equal(status, WEIR_ERR_NO_MEMORY);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_gets_are_answered_with_headers_that_keep_browsers_safe),
        cmocka_unit_test(test_other_requests_are_refused),
        cmocka_unit_test(test_a_post_brings_its_body),
        cmocka_unit_test(test_each_path_takes_its_own_methods),
        cmocka_unit_test(test_a_long_body_is_refused_however_it_comes),
        cmocka_unit_test(test_no_web_page_posts),
        cmocka_unit_test(test_a_slow_body_is_cut_off),
        cmocka_unit_test(test_a_page_of_another_name_reads_nothing),
        cmocka_unit_test(test_a_token_opens_everything_else),
        cmocka_unit_test(test_it_listens_for_others_only_when_it_can_tell_them_apart),
        cmocka_unit_test(test_what_keeps_it_from_opening_is_named),
        cmocka_unit_test(test_an_answer_may_come_later),
        cmocka_unit_test(test_who_leaves_is_waited_for_no_more),
        cmocka_unit_test(test_slow_connections_cost_no_call_and_are_cut_off),
        cmocka_unit_test(test_answers_that_nobody_reads_are_bounded),
        cmocka_unit_test(test_one_address_has_so_many_connections),
        cmocka_unit_test(test_long_headers_are_refused),
        cmocka_unit_test(test_failed_allocations_leave_nothing_open),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
