/* SPDX-License-Identifier: Apache-2.0 */
/* test_rpc_client.c - a client against our server, against sockets that misbehave, and alone. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <arpa/inet.h>
#include <netinet/in.h>
#include <pthread.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/alloc.h"
#include "rpc/echo_service.h"

#define TIMEOUT_MS 10000

typedef struct fixture {
    weir_rpc_server *server;
    weir_rpc_client *client;
    weir_arena arena;
} fixture;

static int set_up(void **state)
{
    fixture *f = calloc(1, sizeof(*f));
    f->server = echo_open("127.0.0.1:0");
    assert_non_null(f->server);
    weir_arena_init(&f->arena, (size_t)256 << 20);
    assert_int_equal(
        weir_rpc_client_open(weir_rpc_server_address(f->server), "directory", NULL, &f->client),
        WEIR_OK);
    *state = f;
    return 0;
}

static int tear_down(void **state)
{
    fixture *f = *state;
    weir_rpc_client_close(f->client);
    weir_rpc_server_close(f->server);
    weir_arena_close(&f->arena);
    free(f);
    return 0;
}

static void assert_error_has(const char *piece)
{
    if (strstr(weir_last_error(), piece) == NULL)
        fail_msg("'%s' is not in '%s'", piece, weir_last_error());
}

/* ---- with a good server ----------------------------------------------------------------------*/

static void test_answers_come_back(void **state)
{
    fixture *f = *state;
    const ModelExpress__Refit__WeightVersion *version;
    for (int i = 0; i < 50; i++) {
        char uid[16];
        snprintf(uid, sizeof(uid), "uid-%d", i);
        assert_int_equal(echo_call(f->client, uid, TIMEOUT_MS, &f->arena, &version), WEIR_OK);
        assert_string_equal(version->uid, uid);
    }
}

static void test_refusals_have_code_and_text(void **state)
{
    fixture *f = *state;
    assert_int_equal(echo_call(f->client, "missing", TIMEOUT_MS, &f->arena, NULL),
                     WEIR_ERR_NOT_FOUND);
    char expected[256];
    snprintf(expected, sizeof(expected),
             "directory %s: RefitService.GetWeightVersion: NOT_FOUND: no such version: 100%%, ??",
             weir_rpc_server_address(f->server));
    assert_string_equal(weir_last_error(), expected);
    assert_int_equal(echo_call(f->client, "nothing", TIMEOUT_MS, &f->arena, NULL),
                     WEIR_ERR_REFUSED);
    assert_error_has("INTERNAL: GetWeightVersion has no answer");
    assert_int_equal(echo_call(f->client, "good", TIMEOUT_MS, &f->arena, NULL), WEIR_OK);
}

static weir_status call_other(fixture *f, const char *method, const ProtobufCMessage *request)
{
    const ProtobufCMessage *response;
    return weir_rpc_call(f->client, &model_express__refit__refit_service__descriptor, method,
                         request, TIMEOUT_MS, &f->arena, &response);
}

static void test_a_method_that_is_not_offered_is_unsupported(void **state)
{
    ModelExpress__Refit__DeleteWeightVersionRequest request =
        MODEL_EXPRESS__REFIT__DELETE_WEIGHT_VERSION_REQUEST__INIT;
    assert_int_equal(call_other(*state, "DeleteWeightVersion", &request.base),
                     WEIR_ERR_UNSUPPORTED);
    assert_error_has("/model_express.refit.RefitService/DeleteWeightVersion is not offered here");
}

static void test_wrong_requests_do_not_leave_the_process(void **state)
{
    ModelExpress__Refit__GetWeightVersionRequest request =
        MODEL_EXPRESS__REFIT__GET_WEIGHT_VERSION_REQUEST__INIT;
    assert_int_equal(call_other(*state, "NoSuchMethod", &request.base), WEIR_ERR_INVALID);
    assert_int_equal(call_other(*state, "DeleteWeightVersion", &request.base), WEIR_ERR_INVALID);
    request.uid = (char *)"\xff\xfe";
    assert_int_equal(call_other(*state, "GetWeightVersion", &request.base), WEIR_ERR_INVALID);
    assert_error_has("GetWeightVersionRequest.uid is not UTF-8");
}

static void test_large_messages_pass_both_ways(void **state)
{
    fixture *f = *state;
    const ModelExpress__Refit__WeightVersion *version;
    assert_int_equal(echo_call(f->client, "slots:8000", TIMEOUT_MS, &f->arena, &version), WEIR_OK);
    assert_int_equal(version->n_expected_source_slots, 8000);
    assert_int_equal(strlen(version->expected_source_slots[7999]), ECHO_SLOT_BYTES);
    size_t n = (size_t)8 << 20;
    char *uid = malloc(n + 1);
    memset(uid, 'u', n);
    uid[n] = '\0';
    assert_int_equal(echo_call(f->client, uid, TIMEOUT_MS, &f->arena, &version), WEIR_OK);
    assert_string_equal(version->uid, uid);
    free(uid);
}

static void test_an_answer_over_the_limit_is_refused(void **state)
{
    fixture *f = *state;
    assert_int_equal(echo_call(f->client, "slots:70000", TIMEOUT_MS, &f->arena, NULL),
                     WEIR_ERR_REFUSED);
    assert_error_has("RESOURCE_EXHAUSTED: the answer is larger");
}

static void test_a_request_over_the_limit_is_refused_here(void **state)
{
    fixture *f = *state;
    size_t n = WEIR_RPC_MAX_MESSAGE_BYTES;
    char *uid = malloc(n + 1);
    memset(uid, 'u', n);
    uid[n] = '\0';
    assert_int_equal(echo_call(f->client, uid, TIMEOUT_MS, &f->arena, NULL), WEIR_ERR_INVALID);
    assert_error_has("more than 64 MiB");
    free(uid);
}

static void test_steady_calls_take_nothing_from_the_heap(void **state)
{
    fixture *f = *state;
    uint64_t before = 0;
    for (int i = 0; i < 200; i++) {
        if (i == 10)
            before = weir_alloc_count();
        assert_int_equal(echo_call(f->client, "slots:20", TIMEOUT_MS, &f->arena, NULL), WEIR_OK);
        assert_int_equal(echo_call(f->client, "missing", TIMEOUT_MS, &f->arena, NULL),
                         WEIR_ERR_NOT_FOUND);
    }
    assert_int_equal(weir_alloc_count() - before, 0); /* the server's thread included */
}

static void test_a_restarted_server_is_found_again(void **state)
{
    fixture *f = *state;
    assert_int_equal(echo_call(f->client, "a", TIMEOUT_MS, &f->arena, NULL), WEIR_OK);
    char address[64];
    snprintf(address, sizeof(address), "%s", weir_rpc_server_address(f->server));
    weir_rpc_server_close(f->server);
    f->server = NULL;
    double begin = weir_now_s();
    assert_int_equal(echo_call(f->client, "b", TIMEOUT_MS, &f->arena, NULL), WEIR_ERR_PEER_LOST);
    assert_error_has("cannot connect: Connection refused");
    assert_true(weir_now_s() - begin < 2.0);
    f->server = echo_open(address);
    assert_non_null(f->server);
    assert_int_equal(echo_call(f->client, "c", TIMEOUT_MS, &f->arena, NULL), WEIR_OK);
    /* Restarted between two calls: the kept connection is dead, and nobody notices. */
    weir_rpc_server_close(f->server);
    f->server = echo_open(address);
    assert_non_null(f->server);
    assert_int_equal(echo_call(f->client, "d", TIMEOUT_MS, &f->arena, NULL), WEIR_OK);
}

static void test_every_failed_allocation_is_survived(void **state)
{
    fixture *f = *state;
    for (uint64_t n = 1; n < 40; n++) {
        weir_rpc_client *client = NULL;
        weir_arena arena;
        weir_arena_init(&arena, 0);
        weir_alloc_fail_at(n);
        weir_status status =
            weir_rpc_client_open(weir_rpc_server_address(f->server), NULL, NULL, &client);
        if (status == WEIR_OK)
            status = echo_call(client, "uid", TIMEOUT_MS, &arena, NULL);
        weir_alloc_fail_at(0);
        assert_true(status == WEIR_OK || weir_last_error()[0] != '\0');
        if (client != NULL) /* whatever failed, the next call is good */
            assert_int_equal(echo_call(client, "uid", TIMEOUT_MS, &arena, NULL), WEIR_OK);
        weir_rpc_client_close(client);
        weir_arena_close(&arena);
    }
}

/* ---- with sockets that misbehave -------------------------------------------------------------*/

typedef struct bad_peer {
    int fd;
    char address[64];
    const char *says; /* sent to whoever connects */
    size_t n_says;
    bool closes; /* after it has read something */
    int n_accepted;
    pthread_t thread;
} bad_peer;

static void *misbehave(void *context)
{
    bad_peer *peer = context;
    for (;;) {
        int fd = accept(peer->fd, NULL, NULL);
        if (fd < 0)
            return NULL;
        peer->n_accepted++;
        char buffer[4096];
        ssize_t n = recv(fd, buffer, sizeof(buffer), 0);
        if (peer->n_says != 0)
            n = send(fd, peer->says, peer->n_says, MSG_NOSIGNAL);
        while (!peer->closes && n > 0)
            n = recv(fd, buffer, sizeof(buffer), 0);
        close(fd);
    }
}

static void bad_peer_open(bad_peer *peer)
{
    struct sockaddr_in address = { .sin_family = AF_INET,
                                   .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
    socklen_t n = sizeof(address);
    peer->fd = socket(AF_INET, SOCK_STREAM, 0);
    assert_int_equal(bind(peer->fd, (struct sockaddr *)&address, n), 0);
    assert_int_equal(listen(peer->fd, 8), 0);
    getsockname(peer->fd, (struct sockaddr *)&address, &n);
    snprintf(peer->address, sizeof(peer->address), "127.0.0.1:%u", ntohs(address.sin_port));
    assert_int_equal(pthread_create(&peer->thread, NULL, misbehave, peer), 0);
}

static void bad_peer_close(bad_peer *peer)
{
    shutdown(peer->fd, SHUT_RDWR);
    pthread_join(peer->thread, NULL);
    close(peer->fd);
}

static weir_status call_bad_peer(bad_peer *peer, unsigned timeout_ms, double *out_s)
{
    weir_rpc_client *client;
    weir_arena arena;
    weir_arena_init(&arena, 0);
    bad_peer_open(peer);
    assert_int_equal(weir_rpc_client_open(peer->address, NULL, NULL, &client), WEIR_OK);
    double begin = weir_now_s();
    weir_status status = echo_call(client, "uid", timeout_ms, &arena, NULL);
    *out_s = weir_now_s() - begin;
    weir_rpc_client_close(client);
    bad_peer_close(peer);
    weir_arena_close(&arena);
    return status;
}

static void test_a_silent_server_is_left_at_the_deadline(void **state)
{
    (void)state;
    bad_peer peer = { .n_says = 0 };
    double seconds;
    assert_int_equal(call_bad_peer(&peer, 300, &seconds), WEIR_ERR_TIMED_OUT);
    assert_true(seconds >= 0.29 && seconds < 3.0);
    assert_error_has("RefitService.GetWeightVersion: no answer within 0.3 s");
    assert_int_equal(peer.n_accepted, 1);
}

static void test_a_server_that_closes_is_lost_at_once(void **state)
{
    (void)state;
    bad_peer peer = { .closes = true };
    double seconds;
    assert_int_equal(call_bad_peer(&peer, TIMEOUT_MS, &seconds), WEIR_ERR_PEER_LOST);
    assert_true(seconds < 3.0);
    assert_int_equal(peer.n_accepted, 1); /* a fresh connection is not tried twice */
}

static void test_a_web_server_is_no_peer(void **state)
{
    (void)state;
    static const char page[] = "HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n";
    bad_peer peer = { .says = page, .n_says = sizeof(page) - 1, .closes = true };
    double seconds;
    weir_status status = call_bad_peer(&peer, TIMEOUT_MS, &seconds);
    assert_true(status == WEIR_ERR_FORMAT || status == WEIR_ERR_PEER_LOST);
    assert_true(seconds < 3.0);
}

static void *cancel_soon(void *client)
{
    weir_sleep_ms(100);
    weir_rpc_client_cancel(client);
    return NULL;
}

static void test_a_call_in_flight_can_be_cancelled(void **state)
{
    (void)state;
    bad_peer peer = { .n_says = 0 };
    bad_peer_open(&peer);
    weir_rpc_client *client;
    weir_arena arena;
    weir_arena_init(&arena, 0);
    assert_int_equal(weir_rpc_client_open(peer.address, NULL, NULL, &client), WEIR_OK);
    pthread_t thread;
    pthread_create(&thread, NULL, cancel_soon, client);
    double begin = weir_now_s();
    assert_int_equal(echo_call(client, "uid", TIMEOUT_MS, &arena, NULL), WEIR_ERR_CANCELLED);
    assert_true(weir_now_s() - begin < 5.0);
    pthread_join(thread, NULL);
    /* It is used up: the next call waits for its own deadline. */
    assert_int_equal(echo_call(client, "uid", 100, &arena, NULL), WEIR_ERR_TIMED_OUT);
    weir_rpc_client_cancel(client);
    weir_rpc_client_uncancel(client); /* so is one that was forgotten */
    weir_rpc_client_uncancel(client);
    assert_int_equal(echo_call(client, "uid", 100, &arena, NULL), WEIR_ERR_TIMED_OUT);
    weir_rpc_client_close(client);
    bad_peer_close(&peer);
}

static void test_nobody_listening_is_noticed_at_once(void **state)
{
    fixture *f = *state;
    char address[64];
    snprintf(address, sizeof(address), "%s", weir_rpc_server_address(f->server));
    weir_rpc_server_close(f->server);
    f->server = NULL;
    double begin = weir_now_s();
    assert_int_equal(echo_call(f->client, "uid", TIMEOUT_MS, &f->arena, NULL), WEIR_ERR_PEER_LOST);
    assert_true(weir_now_s() - begin < 2.0);
}

static void test_a_host_without_address_is_named(void **state)
{
    (void)state;
    weir_rpc_client *client;
    weir_arena arena;
    weir_arena_init(&arena, 0);
    assert_int_equal(weir_rpc_client_open("no-such-host.invalid:1", NULL, NULL, &client), WEIR_OK);
    assert_int_equal(echo_call(client, "uid", TIMEOUT_MS, &arena, NULL), WEIR_ERR_PEER_LOST);
    assert_error_has("cannot find host 'no-such-host.invalid'");
    weir_rpc_client_close(client);
    assert_int_equal(weir_rpc_client_open("nonsense", NULL, NULL, &client), WEIR_ERR_INVALID);
    assert_error_has("address 'nonsense' is not HOST:PORT");
}

/* ---- many at once ----------------------------------------------------------------------------*/

static void *call_often(void *context)
{
    weir_rpc_client *client;
    weir_arena arena;
    weir_arena_init(&arena, 0);
    intptr_t n_failed = weir_rpc_client_open(context, NULL, NULL, &client) != WEIR_OK;
    for (int i = 0; i < 100 && n_failed == 0; i++)
        n_failed +=
            echo_call(client, i % 10 ? "uid" : "slots:300", TIMEOUT_MS, &arena, NULL) != WEIR_OK;
    weir_rpc_client_close(client);
    weir_arena_close(&arena);
    return (void *)n_failed;
}

static void test_many_clients_are_served(void **state)
{
    fixture *f = *state;
    pthread_t threads[16];
    for (int i = 0; i < 16; i++)
        pthread_create(&threads[i], NULL, call_often, (void *)weir_rpc_server_address(f->server));
    for (int i = 0; i < 16; i++) {
        void *n_failed;
        pthread_join(threads[i], &n_failed);
        assert_null(n_failed);
    }
}

static void test_closing_a_server_ends_calls_in_flight(void **state)
{
    fixture *f = *state;
    pthread_t thread;
    pthread_create(&thread, NULL, call_often, (void *)weir_rpc_server_address(f->server));
    weir_sleep_ms(5);
    double begin = weir_now_s();
    weir_rpc_server_close(f->server);
    f->server = NULL;
    assert_true(weir_now_s() - begin < 2.0);
    void *ignored;
    pthread_join(thread, &ignored); /* it ends, well or not */
}

int main(void)
{
#define CASE(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        CASE(test_answers_come_back),
        CASE(test_refusals_have_code_and_text),
        CASE(test_a_method_that_is_not_offered_is_unsupported),
        CASE(test_wrong_requests_do_not_leave_the_process),
        CASE(test_large_messages_pass_both_ways),
        CASE(test_an_answer_over_the_limit_is_refused),
        CASE(test_a_request_over_the_limit_is_refused_here),
        CASE(test_steady_calls_take_nothing_from_the_heap),
        CASE(test_a_restarted_server_is_found_again),
        CASE(test_every_failed_allocation_is_survived),
        CASE(test_nobody_listening_is_noticed_at_once),
        CASE(test_many_clients_are_served),
        CASE(test_closing_a_server_ends_calls_in_flight),
        cmocka_unit_test(test_a_silent_server_is_left_at_the_deadline),
        cmocka_unit_test(test_a_server_that_closes_is_lost_at_once),
        cmocka_unit_test(test_a_web_server_is_no_peer),
        cmocka_unit_test(test_a_call_in_flight_can_be_cancelled),
        cmocka_unit_test(test_a_host_without_address_is_named),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
