/* SPDX-License-Identifier: Apache-2.0 */
/* Calls to a socket that answers as each case likes. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <arpa/inet.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/clock.h"
#include "broadcast/server_call.h"

#define OK_HEAD "HTTP/1.1 200 OK\r\nContent-Length: "

typedef struct listener {
    int fd;
    char url[64];
    const char *answer; /* NULL: none, until it is closed */
    size_t n_extra;     /* bytes of filling behind it */
    char request[4096];
    pthread_t thread;
} listener;

static void *serve(void *context)
{
    listener *server = context;
    int fd = accept(server->fd, NULL, NULL);
    ssize_t n = fd >= 0 ? read(fd, server->request, sizeof(server->request) - 1) : -1;
    server->request[n > 0 ? n : 0] = '\0';
    if (server->answer == NULL) {
        char byte;
        while (read(fd, &byte, 1) > 0) /* until the caller has given up */
            ;
    } else if (write(fd, server->answer, strlen(server->answer)) > 0) {
        static char filling[1 << 20];
        memset(filling, 'x', sizeof(filling));
        n = send(fd, filling, server->n_extra, MSG_NOSIGNAL);
    }
    close(fd);
    return NULL;
}

static void listen_at(listener *server, const char *answer)
{
    struct sockaddr_in address = { .sin_family = AF_INET,
                                   .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
    socklen_t n = sizeof(address);
    *server = (listener){ .fd = socket(AF_INET, SOCK_STREAM, 0), .answer = answer };
    assert_int_equal(bind(server->fd, (struct sockaddr *)&address, n), 0);
    assert_int_equal(listen(server->fd, 4), 0);
    assert_int_equal(getsockname(server->fd, (struct sockaddr *)&address, &n), 0);
    snprintf(server->url, sizeof(server->url), "http://127.0.0.1:%u", ntohs(address.sin_port));
}

static void stop(listener *server)
{
    pthread_join(server->thread, NULL);
    close(server->fd);
}

static weir_server_calls *open_calls(const char *const *urls, size_t n, const char *token)
{
    const weir_security security = { .token = token != NULL ? token : "", .ca = "" };
    weir_server_calls *calls = NULL;
    assert_int_equal(weir_server_calls_open(urls, n, &security, &calls), WEIR_OK);
    return calls;
}

static weir_server_reply wait_for_one(weir_server_calls *calls)
{
    weir_server_reply reply;
    weir_deadline deadline = weir_deadline_in(10000);
    while (!weir_server_calls_wait(calls, 100, &reply))
        assert_false(weir_deadline_passed(deadline));
    return reply;
}

/* What one POST comes to; its texts live as long as the calls. */
static weir_server_reply call(listener *server, weir_server_calls *calls, unsigned timeout_ms)
{
    assert_int_equal(pthread_create(&server->thread, NULL, serve, server), 0);
    assert_int_equal(
        weir_server_calls_begin(calls, 0, "/pause?mode=keep", "{\"a\": 1}", timeout_ms), WEIR_OK);
    weir_server_reply reply = wait_for_one(calls);
    stop(server);
    return reply;
}

static void a_call_says_what_it_should_and_hears_the_answer(void **state)
{
    listener server;
    (void)state;
    listen_at(&server, OK_HEAD "2\r\n\r\n{}");
    const char *const urls[] = { server.url };
    weir_server_calls *calls = open_calls(urls, 1, "secret");
    weir_server_reply reply = call(&server, calls, 5000);
    assert_int_equal(reply.end, WEIR_CALL_OK);
    assert_int_equal(reply.http_status, 200);
    assert_string_equal(reply.body, "{}");
    assert_non_null(strstr(server.request, "POST /pause?mode=keep HTTP/1.1\r\n"));
    assert_non_null(strstr(server.request, "Authorization: Bearer secret\r\n"));
    assert_non_null(strstr(server.request, "Content-Type: application/json\r\n"));
    assert_non_null(strstr(server.request, "\r\n\r\n{\"a\": 1}"));
    weir_server_calls_close(calls);
}

static void each_way_to_fail_has_its_name(void **state)
{
    static const struct {
        const char *answer;
        size_t n_extra;
        weir_call_end end;
    } cases[] = {
        { "HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n", 0, WEIR_CALL_REFUSED },
        { "HTTP/1.1 302 No\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n", 0,
          WEIR_CALL_REFUSED },
        { "HTTP/1.1 404 No\r\nContent-Length: 0\r\n\r\n", 0, WEIR_CALL_ABSENT },
        { OK_HEAD "300000\r\n\r\n", 300000, WEIR_CALL_GARBLED },
        { OK_HEAD "300000\r\n\r\n", 3000, WEIR_CALL_LOST },
        { "SSH-2.0-OpenSSH_9.2\r\n", 0, WEIR_CALL_GARBLED },
        { "", 0, WEIR_CALL_LOST },
        { NULL, 0, WEIR_CALL_LATE },
    };
    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        listener server;
        listen_at(&server, cases[i].answer);
        server.n_extra = cases[i].n_extra;
        const char *const urls[] = { server.url };
        weir_server_calls *calls = open_calls(urls, 1, NULL);
        weir_server_reply reply = call(&server, calls, 300);
        assert_int_equal(reply.end, cases[i].end);
        assert_true(reply.http_status != 0 || reply.cause[0] != '\0');
        weir_server_calls_close(calls);
    }
}

static void nobody_there_is_a_call_that_was_not_sent(void **state)
{
    listener server;
    (void)state;
    listen_at(&server, NULL);
    close(server.fd);
    const char *const urls[] = { server.url };
    weir_server_calls *calls = open_calls(urls, 1, NULL);
    assert_int_equal(weir_server_calls_begin(calls, 0, "/weight_info", NULL, 5000), WEIR_OK);
    assert_int_equal(wait_for_one(calls).end, WEIR_CALL_UNSENT);
    weir_server_calls_close(calls);
}

static void a_slow_server_does_not_hold_up_another(void **state)
{
    listener slow, good;
    (void)state;
    listen_at(&slow, NULL);
    listen_at(&good, OK_HEAD "0\r\n\r\n");
    const char *const urls[] = { slow.url, good.url };
    weir_server_calls *calls = open_calls(urls, 2, NULL);
    assert_int_equal(pthread_create(&slow.thread, NULL, serve, &slow), 0);
    assert_int_equal(pthread_create(&good.thread, NULL, serve, &good), 0);
    for (size_t i = 0; i < 2; i++)
        assert_int_equal(weir_server_calls_begin(calls, i, "/resume", "{}", 60000), WEIR_OK);
    assert_int_equal(wait_for_one(calls).server, 1);
    weir_server_calls_close(calls); /* ends the other one */
    stop(&slow);
    stop(&good);
}

static void addresses_are_checked_before_the_first_call(void **state)
{
    static const struct {
        const char *url;
        weir_security security;
        weir_status status;
    } cases[] = {
        { "127.0.0.1:80", { .ca = "", .token = "" }, WEIR_OK },
        { "https://h:80/", { .ca = "", .token = "" }, WEIR_OK },
        { "ftp://h:80", { .ca = "", .token = "" }, WEIR_ERR_INVALID },
        { "http://", { .ca = "", .token = "" }, WEIR_ERR_INVALID },
        { "http://h:80", { .ca = "system", .token = "" }, WEIR_ERR_REFUSED },
        { "h:80", { .ca = "system", .token = "secret" }, WEIR_OK },
        { "http://10.1.1.1:80", { .ca = "", .token = "secret" }, WEIR_ERR_REFUSED },
        { "http://127.0.0.1:80", { .ca = "", .token = "secret" }, WEIR_OK },
    };
    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        weir_server_calls *calls = NULL;
        assert_int_equal(weir_server_calls_open(&cases[i].url, 1, &cases[i].security, &calls),
                         cases[i].status);
        weir_server_calls_close(calls);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_call_says_what_it_should_and_hears_the_answer),
        cmocka_unit_test(each_way_to_fail_has_its_name),
        cmocka_unit_test(nobody_there_is_a_call_that_was_not_sent),
        cmocka_unit_test(a_slow_server_does_not_hold_up_another),
        cmocka_unit_test(addresses_are_checked_before_the_first_call),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
