/* SPDX-License-Identifier: Apache-2.0 */
/* test_rpc_later.c - calls that are answered later: by ticket, from handlers, ticks and watched
 * file descriptors, and every way in which they can be over before. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "refit.pb-c.h"
#include "rpc/many_calls.h"

#define TIMEOUT_MS 10000
#define MAX_TICKETS 1024u

/* The service parks "park..." and "twice" (the latter answered in the handler), answers all parked
 * ones at "all", fails them at "fail", and gives its counts as text at "counts". What the test's
 * thread reads is written by the server's before the answer that the test waits for. */
typedef struct parking {
    weir_rpc_server *server;
    int event_fd;
    bool by_event; /* parked calls are answered from the watched descriptor */
    uint64_t tickets[MAX_TICKETS];
    const weir_rpc_call_info *infos[MAX_TICKETS];
    unsigned n_tickets, n_stale;
    _Atomic unsigned n_parked, n_gone;
    _Atomic uint64_t last_gone;
    weir_rpc_counts counts;
    char peer[64];
    bool bytes_differ;
} parking;

static bool answer_one(parking *park, uint64_t ticket, weir_rpc_code code, const char *uid)
{
    ModelExpress__Refit__WeightVersion version = MODEL_EXPRESS__REFIT__WEIGHT_VERSION__INIT;
    version.uid = (char *)uid;
    return weir_rpc_server_answer(park->server, ticket, code, &version.base, "because");
}

static void answer_all(parking *park, weir_rpc_code code)
{
    for (unsigned i = 0; i < park->n_tickets; i++) {
        const weir_rpc_call_info *call = park->infos[i];
        if (park->n_gone == 0)
            park->bytes_differ |= call->n_bytes < 6 || memcmp(call->bytes + 2, "park", 4) != 0 ||
                                  call->ticket != park->tickets[i];
        if (!answer_one(park, park->tickets[i], code, "later"))
            park->n_stale++;
        if (answer_one(park, park->tickets[i], code, "later"))
            park->bytes_differ = true; /* a second answer must find nobody */
    }
    park->n_tickets = 0;
}

static weir_rpc_code handle(void *context, const weir_rpc_call_info *call,
                            const ProtobufCMessage *message, weir_arena *arena,
                            const ProtobufCMessage **out_response, char *text)
{
    (void)text;
    parking *park = context;
    const ModelExpress__Refit__GetWeightVersionRequest *request = (const void *)message;
    snprintf(park->peer, sizeof(park->peer), "%s", call->peer);
    if (strncmp(request->uid, "park", 4) == 0) {
        park->tickets[park->n_tickets] = call->ticket;
        park->infos[park->n_tickets++] = call;
        park->n_parked++;
        return WEIR_RPC_LATER;
    }
    if (strcmp(request->uid, "twice") == 0) {
        park->bytes_differ |= !answer_one(park, call->ticket, WEIR_RPC_OK, "at once");
        park->bytes_differ |= answer_one(park, call->ticket, WEIR_RPC_OK, "again");
        park->bytes_differ |= memcmp(call->bytes + 2, "twice", 5) != 0;
        return WEIR_RPC_LATER;
    }
    if (strcmp(request->uid, "event") == 0) {
        uint64_t one = 1;
        park->bytes_differ |= write(park->event_fd, &one, sizeof(one)) != sizeof(one);
    }
    if (strcmp(request->uid, "all") == 0)
        answer_all(park, WEIR_RPC_OK);
    if (strcmp(request->uid, "fail") == 0)
        answer_all(park, WEIR_RPC_ABORTED);
    park->counts = weir_rpc_server_counts(park->server);
    ModelExpress__Refit__WeightVersion *version = weir_arena_alloc(arena, sizeof(*version));
    *version = (ModelExpress__Refit__WeightVersion)MODEL_EXPRESS__REFIT__WEIGHT_VERSION__INIT;
    *out_response = &version->base;
    return WEIR_RPC_OK;
}

static void gone(void *context, uint64_t ticket)
{
    parking *park = context;
    park->last_gone = ticket;
    park->n_gone++;
}

static void on_event(void *context, uint32_t events)
{
    parking *park = context;
    uint64_t n;
    park->bytes_differ |= (events & EPOLLIN) == 0 || read(park->event_fd, &n, sizeof(n)) < 0;
    answer_all(park, WEIR_RPC_OK);
}

static weir_status begin(void *context, weir_rpc_server *server)
{
    parking *park = context;
    park->server = server;
    return weir_rpc_server_watch(server, park->event_fd, EPOLLIN, on_event, park);
}

static const weir_rpc_method methods[] = { { "GetWeightVersion", handle } };

static parking *open_parking(const weir_rpc_limits *limits)
{
    parking *park = calloc(1, sizeof(*park));
    assert_non_null(park);
    park->event_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    const weir_rpc_service service = { &model_express__refit__refit_service__descriptor, methods, 1,
                                       park };
    weir_rpc_server_options options = { .listen = "127.0.0.1:0",
                                        .services = &service,
                                        .n_services = 1,
                                        .begin = begin,
                                        .begin_context = park,
                                        .gone = gone,
                                        .gone_context = park };
    if (limits != NULL)
        options.limits = *limits;
    weir_rpc_server *server;
    assert_int_equal(weir_rpc_server_open(&options, &server), WEIR_OK);
    return park;
}

static void close_parking(parking *park)
{
    weir_rpc_server_close(park->server);
    assert_false(park->bytes_differ);
    close(park->event_fd);
    free(park);
}

static int set_up(void **state)
{
    *state = open_parking(NULL);
    return 0;
}

static int tear_down(void **state)
{
    close_parking(*state);
    return 0;
}

static const char *address_of(const parking *park)
{
    return weir_rpc_server_address(park->server);
}

/* One call on a connection of its own, answered at once. */
static void call_now(parking *park, const char *uid)
{
    many_calls calls;
    many_call call;
    assert_true(many_open(&calls, address_of(park)));
    many_begin(&calls, &call, uid, NULL);
    assert_true(many_wait(&calls, 1, TIMEOUT_MS));
    assert_int_equal(call.grpc_status, 0);
    many_close(&calls);
}

/* The event may come a moment after what the test did. */
static void wait_for(const _Atomic unsigned *number, unsigned wanted)
{
    weir_deadline deadline = weir_deadline_in(TIMEOUT_MS);
    while (*number != wanted && !weir_deadline_passed(deadline))
        weir_sleep_ms(1);
    assert_int_equal(*number, wanted);
}

/* n calls parked on one connection. */
static void park_calls(parking *park, many_calls *calls, many_call *call, unsigned n,
                       const char *timeout)
{
    unsigned before = park->n_parked;
    assert_true(many_open(calls, address_of(park)));
    for (unsigned i = 0; i < n; i++)
        many_begin(calls, &call[i], "park", timeout);
    weir_deadline deadline = weir_deadline_in(TIMEOUT_MS);
    while (park->n_parked != before + n && !weir_deadline_passed(deadline))
        assert_true(many_progress(calls, 1));
    assert_int_equal(park->n_parked, before + n);
}

static void test_one_event_answers_all_that_are_parked(void **state)
{
    enum { CONNECTIONS = 8, EACH = 125, N = CONNECTIONS * EACH };
    parking *park = *state;
    static many_calls calls[CONNECTIONS];
    static many_call call[N];
    for (int i = 0; i < CONNECTIONS; i++)
        park_calls(park, &calls[i], &call[i * EACH], EACH, "60S");
    call_now(park, "counts");
    assert_int_equal(park->counts.parked, N);
    uint64_t begin_ns = weir_now_ns();
    call_now(park, "event");
    for (int i = 0; i < CONNECTIONS; i++)
        assert_true(many_wait(&calls[i], EACH, TIMEOUT_MS));
    printf("%d parked calls answered by one event in %.2f ms\n", N,
           (double)(weir_now_ns() - begin_ns) / 1e6);
    for (int i = 0; i < N; i++)
        assert_int_equal(call[i].grpc_status, 0);
    call_now(park, "counts");
    assert_int_equal(park->counts.parked, 0);
    assert_int_equal(park->n_stale + park->n_gone, 0);
    for (int i = 0; i < CONNECTIONS; i++)
        many_close(&calls[i]);
}

static void test_a_handler_answers_others_on_its_own_connection(void **state)
{
    parking *park = *state;
    many_calls calls;
    many_call call[4];
    park_calls(park, &calls, call, 3, NULL);
    many_begin(&calls, &call[3], "fail", NULL);
    assert_true(many_wait(&calls, 4, TIMEOUT_MS));
    assert_int_equal(call[3].grpc_status, 0);
    for (int i = 0; i < 3; i++) {
        assert_int_equal(call[i].grpc_status, WEIR_RPC_ABORTED);
        assert_string_equal(call[i].message, "because");
    }
    assert_int_equal(park->counts.failures, 3);
    assert_memory_equal(park->peer, "127.0.0.1:", 10);
    many_close(&calls);
}

static void test_a_ticket_answered_within_its_handler_counts(void **state)
{
    call_now(*state, "twice");
}

static void test_deadlines_end_parked_calls_on_time(void **state)
{
    parking *park = *state;
    many_calls calls;
    many_call call[2];
    uint64_t begin_ns = weir_now_ns();
    park_calls(park, &calls, call, 1, "150m");
    many_begin(&calls, &call[1], "park", "60S");
    assert_true(many_wait(&calls, 1, TIMEOUT_MS));
    double ms = (double)(call[0].over_ns - begin_ns) / 1e6;
    assert_int_equal(call[0].grpc_status, WEIR_RPC_DEADLINE_EXCEEDED);
    assert_string_equal(call[0].message, "the deadline passed");
    assert_true(ms >= 149.0);
    printf("a deadline of 150 ms ended its call after %.1f ms\n", ms);
    wait_for(&park->n_gone, 1);
    assert_true(park->last_gone == park->tickets[0]);
    call_now(park, "all"); /* the other one's lives, this one's does not */
    assert_true(many_wait(&calls, 2, TIMEOUT_MS));
    assert_int_equal(call[1].grpc_status, 0);
    assert_int_equal(park->n_stale, 1);
    many_close(&calls);
}

static void test_resets_and_lost_connections_end_tickets(void **state)
{
    parking *park = *state;
    many_calls calls;
    many_call call[5];
    park_calls(park, &calls, call, 5, NULL);
    nghttp2_submit_rst_stream(calls.channel.session, 0, call[2].id, NGHTTP2_CANCEL);
    assert_true(many_progress(&calls, 0));
    wait_for(&park->n_gone, 1);
    assert_true(park->last_gone == park->tickets[2]);
    many_close(&calls);
    wait_for(&park->n_gone, 5);
    call_now(park, "all");
    assert_int_equal(park->n_stale, 5);
    call_now(park, "counts");
    assert_int_equal(park->counts.parked, 0);
}

static void test_closing_ends_parked_calls(void **state)
{
    (void)state;
    parking *park = open_parking(NULL);
    many_calls calls;
    many_call call[3];
    park_calls(park, &calls, call, 3, NULL);
    weir_rpc_server_close(park->server);
    many_wait(&calls, 3, TIMEOUT_MS);
    for (int i = 0; i < 3; i++)
        assert_int_equal(call[i].grpc_status, WEIR_RPC_UNAVAILABLE);
    assert_int_equal(park->n_gone, 3);
    many_close(&calls);
    close(park->event_fd);
    free(park);
}

static void test_no_more_are_parked_than_may_be(void **state)
{
    (void)state;
    parking *park = open_parking(&(weir_rpc_limits){ .parked = 4, .client_parked = 4 });
    many_calls calls;
    many_call call[6];
    park_calls(park, &calls, call, 6, NULL);
    assert_true(many_wait(&calls, 2, TIMEOUT_MS));
    for (int i = 0; i < 6; i++)
        assert_int_equal(call[i].grpc_status, i < 4 ? -1 : WEIR_RPC_RESOURCE_EXHAUSTED);
    assert_int_equal(park->n_gone, 2);
    call_now(park, "all");
    assert_true(many_wait(&calls, 6, TIMEOUT_MS));
    assert_int_equal(call[0].grpc_status, 0);
    many_close(&calls);
    close_parking(park);
}

/* What one leaves, another has; and what is answered may be taken again. */
static void test_one_connection_has_a_quarter_of_the_parked(void **state)
{
    (void)state;
    parking *park = open_parking(&(weir_rpc_limits){ .parked = 16 });
    many_calls calls[2];
    many_call call[2][7];
    for (int i = 0; i < 2; i++) {
        park_calls(park, &calls[i], call[i], 7, NULL);
        assert_true(many_wait(&calls[i], 3, TIMEOUT_MS));
        for (int k = 0; k < 7; k++)
            assert_int_equal(call[i][k].grpc_status, k < 4 ? -1 : WEIR_RPC_RESOURCE_EXHAUSTED);
        assert_memory_equal(call[i][4].message, "4 calls of one connection wait", 30);
    }
    call_now(park, "all");
    for (int i = 0; i < 2; i++) {
        assert_true(many_wait(&calls[i], 7, TIMEOUT_MS));
        assert_int_equal(call[i][3].grpc_status, 0);
        many_close(&calls[i]);
    }
    park_calls(park, &calls[0], call[0], 4, NULL);
    call_now(park, "all");
    assert_true(many_wait(&calls[0], 4, TIMEOUT_MS));
    assert_int_equal(call[0][3].grpc_status, 0);
    many_close(&calls[0]);
    close_parking(park);
}

int main(void)
{
#define CASE(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        CASE(test_one_event_answers_all_that_are_parked),
        CASE(test_a_handler_answers_others_on_its_own_connection),
        CASE(test_a_ticket_answered_within_its_handler_counts),
        CASE(test_deadlines_end_parked_calls_on_time),
        CASE(test_resets_and_lost_connections_end_tickets),
        cmocka_unit_test(test_closing_ends_parked_calls),
        cmocka_unit_test(test_no_more_are_parked_than_may_be),
        cmocka_unit_test(test_one_connection_has_a_quarter_of_the_parked),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
