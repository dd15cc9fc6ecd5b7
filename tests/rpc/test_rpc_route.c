/* SPDX-License-Identifier: Apache-2.0 */
/* test_rpc_route.c - one service at several addresses: lists, names with several addresses, and
 * servers that go away. The name "many.test" is 127.0.0.1, 127.0.0.2 and 127.0.0.3. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <arpa/inet.h>
#include <netdb.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include "rpc/echo_service.h"
#include "rpc/rpc_route.h"

#define TIMEOUT_MS 10000
#define MANY 3u

/* ---- a resolver of our own -------------------------------------------------------------------*/

static struct sockaddr_in addresses[MANY];
static struct addrinfo infos[MANY];

int getaddrinfo(const char *host, const char *port, const struct addrinfo *hints,
                struct addrinfo **out)
{
    (void)hints;
    bool is_many = strcmp(host, "many.test") == 0;
    for (uint32_t i = 0; i < MANY; i++) {
        addresses[i] = (struct sockaddr_in){ .sin_family = AF_INET,
                                             .sin_port = htons((uint16_t)atoi(port)),
                                             .sin_addr.s_addr = htonl(INADDR_LOOPBACK + i) };
        infos[i] = (struct addrinfo){ .ai_family = AF_INET,
                                      .ai_socktype = SOCK_STREAM,
                                      .ai_addrlen = sizeof(addresses[i]),
                                      .ai_addr = (struct sockaddr *)&addresses[i],
                                      .ai_next = is_many && i + 1 < MANY ? &infos[i + 1] : NULL };
    }
    if (!is_many && inet_pton(AF_INET, host, &addresses[0].sin_addr) != 1)
        return EAI_NONAME;
    *out = infos;
    return 0;
}

void freeaddrinfo(struct addrinfo *list)
{
    (void)list;
}

/* ---- servers ---------------------------------------------------------------------------------*/

/* Answers with its context's code when there is one, else with its address as the uid. */
typedef struct answerer {
    weir_rpc_server *server;
    weir_rpc_code code;
    int n_asked;
    char address[64];
} answerer;

static weir_rpc_code answer(void *context, const weir_rpc_call_info *call,
                            const ProtobufCMessage *request, weir_arena *arena,
                            const ProtobufCMessage **out, char *text)
{
    (void)call;
    (void)request;
    answerer *one = context;
    one->n_asked++;
    snprintf(text, WEIR_RPC_MESSAGE_TEXT, "not today");
    ModelExpress__Refit__WeightVersion *version = weir_arena_alloc(arena, sizeof(*version));
    model_express__refit__weight_version__init(version);
    version->uid = one->address;
    *out = &version->base;
    return one->code;
}

static const weir_rpc_method methods[] = { { "GetWeightVersion", answer } };

static void answerer_open(answerer *one, const char *listen)
{
    weir_rpc_service service = { &model_express__refit__refit_service__descriptor, methods, 1,
                                 one };
    weir_rpc_server_options options = { .listen = listen, .services = &service, .n_services = 1 };
    assert_int_equal(weir_rpc_server_open(&options, &one->server), WEIR_OK);
    snprintf(one->address, sizeof(one->address), "%s", weir_rpc_server_address(one->server));
}

static void answerer_close(answerer *one)
{
    weir_rpc_server_close(one->server);
    one->server = NULL;
}

typedef struct fixture {
    answerer a, b;
    weir_rpc_client *client; /* of "a,b" */
    weir_arena arena;
} fixture;

static int set_up(void **state)
{
    fixture *f = calloc(1, sizeof(*f));
    char both[140];
    weir_arena_init(&f->arena, 0);
    answerer_open(&f->a, "127.0.0.1:0");
    answerer_open(&f->b, "127.0.0.1:0");
    snprintf(both, sizeof(both), "%s, %s", f->a.address, f->b.address);
    assert_int_equal(weir_rpc_client_open(both, "directory", NULL, &f->client), WEIR_OK);
    *state = f;
    return 0;
}

static int tear_down(void **state)
{
    fixture *f = *state;
    weir_rpc_client_close(f->client);
    answerer_close(&f->a);
    answerer_close(&f->b);
    weir_arena_close(&f->arena);
    free(f);
    return 0;
}

static void assert_answered_by(fixture *f, const char *address)
{
    const ModelExpress__Refit__WeightVersion *version = NULL;
    if (echo_call(f->client, "x", TIMEOUT_MS, &f->arena, &version) != WEIR_OK)
        fail_msg("%s", weir_last_error());
    assert_string_equal(version->uid, address);
    assert_string_equal(weir_rpc_client_address(f->client), address);
}

/* ---- lists -----------------------------------------------------------------------------------*/

static void test_lists_are_read_and_bad_ones_named(void **state)
{
    (void)state;
    static const char *const bad[][2] = {
        { "", "address '' is not HOST:PORT" },
        { "a:1,", "address '' is not HOST:PORT" },
        { ",a:1", "address '' is not HOST:PORT" },
        { "a:1,b", "address 'b' is not HOST:PORT" },
        { "a:1,b:x", "address 'b:x' has no port from 0 to 65535" },
        { "a:1,b:1,c:1,d:1,e:1,f:1,g:1,h:1,i:1", "9 addresses, at most 8 are possible" },
    };
    weir_rpc_route route;
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        assert_int_equal(weir_rpc_route_open(bad[i][0], &route), WEIR_ERR_INVALID);
        assert_string_equal(weir_last_error(), bad[i][1]);
    }
    assert_int_equal(weir_rpc_route_open(NULL, &route), WEIR_ERR_INVALID);
    char longest[400];
    memset(longest, 'h', sizeof(longest));
    strcpy(longest + sizeof(longest) - 3, ":1");
    assert_int_equal(weir_rpc_route_open(longest, &route), WEIR_ERR_INVALID);
    assert_int_equal(weir_rpc_route_open(" a:1 ,[::1]:2,c.d:3", &route), WEIR_OK);
    assert_int_equal(route.n_places, 3);
    assert_string_equal(route.places[0].authority, "a:1");
    assert_string_equal(route.places[1].authority, "[::1]:2");
    assert_string_equal(route.places[2].address.host, "c.d");
    weir_rpc_route_close(&route);
}

static void test_while_others_are_left_an_address_has_a_part_of_the_time(void **state)
{
    (void)state;
    weir_rpc_route route;
    weir_rpc_round round;
    assert_int_equal(weir_rpc_route_open("a:1,b:1,c:1", &route), WEIR_OK);
    weir_rpc_round_begin(&route, &round);
    weir_deadline deadline = weir_deadline_in(3000);
    assert_in_range(weir_deadline_left_ms(weir_rpc_round_deadline(&round, deadline)), 900, 1000);
    weir_fail(WEIR_ERR_PEER_LOST, "away");
    assert_true(weir_rpc_round_next(&route, &round, WEIR_ERR_PEER_LOST, false, deadline));
    assert_true(weir_rpc_round_next(&route, &round, WEIR_ERR_PEER_LOST, false, deadline));
    assert_true(weir_rpc_round_deadline(&round, deadline) == deadline);
    assert_false(weir_rpc_round_next(&route, &round, WEIR_ERR_PEER_LOST, false, deadline));
    assert_string_equal(weir_last_error(), "a:1: away; b:1: away; c:1: away");
    assert_int_equal(route.current, 0);
    /* However long the call may take, who is silent for 10 s is left. */
    weir_rpc_round_begin(&route, &round);
    weir_deadline hour = weir_deadline_in(3600000);
    assert_in_range(weir_deadline_left_ms(weir_rpc_round_deadline(&round, hour)), 9000, 10000);
    /* No time, no next one. */
    assert_false(
        weir_rpc_round_next(&route, &round, WEIR_ERR_TIMED_OUT, true, weir_deadline_in(0)));
    assert_int_equal(route.current, 1);
    weir_rpc_route_close(&route);
}

/* ---- with servers ----------------------------------------------------------------------------*/

static void test_the_next_is_asked_when_one_is_gone_and_kept_to(void **state)
{
    fixture *f = *state;
    char a[64];
    assert_answered_by(f, f->a.address);
    assert_answered_by(f, f->a.address);
    assert_int_equal(f->b.n_asked, 0);
    snprintf(a, sizeof(a), "%s", f->a.address);
    answerer_close(&f->a);
    assert_answered_by(f, f->b.address);
    assert_int_equal(weir_rpc_client_moves(f->client), 1);
    answerer_open(&f->a, a); /* back, but the other works */
    assert_answered_by(f, f->b.address);
    answerer_close(&f->b);
    assert_answered_by(f, a);
    assert_int_equal(weir_rpc_client_moves(f->client), 2);
}

static void test_who_is_unavailable_is_passed_over_and_who_refuses_is_not(void **state)
{
    fixture *f = *state;
    f->a.code = WEIR_RPC_UNAVAILABLE;
    assert_answered_by(f, f->b.address);
    assert_int_equal(f->a.n_asked, 1);
    f->a.code = WEIR_RPC_OK;
    static const weir_rpc_code codes[] = { WEIR_RPC_NOT_FOUND, WEIR_RPC_FAILED_PRECONDITION,
                                           WEIR_RPC_UNAUTHENTICATED, WEIR_RPC_UNIMPLEMENTED,
                                           WEIR_RPC_RESOURCE_EXHAUSTED };
    char expected[160];
    for (size_t i = 0; i < sizeof(codes) / sizeof(codes[0]); i++) {
        f->b.code = codes[i];
        assert_int_not_equal(echo_call(f->client, "x", TIMEOUT_MS, &f->arena, NULL), WEIR_OK);
        snprintf(expected, sizeof(expected),
                 "directory %s: RefitService.GetWeightVersion:", f->b.address);
        assert_ptr_equal(strstr(weir_last_error(), expected), weir_last_error());
    }
    assert_int_equal(f->a.n_asked, 1);
}

static void test_all_gone_is_said_in_one_line_with_each_cause(void **state)
{
    fixture *f = *state;
    char expected[400];
    answerer_close(&f->a);
    f->b.code = WEIR_RPC_UNAVAILABLE;
    for (int i = 0; i < 3; i++) { /* each once in a call, whichever is the first */
        f->b.n_asked = 0;
        assert_int_equal(echo_call(f->client, "x", TIMEOUT_MS, &f->arena, NULL),
                         WEIR_ERR_PEER_LOST);
        assert_int_equal(f->b.n_asked, 1);
    }
    snprintf(expected, sizeof(expected),
             "directory at none of its addresses: RefitService.GetWeightVersion: %s: cannot "
             "connect: Connection refused; %s: UNAVAILABLE: not today",
             f->a.address, f->b.address);
    assert_string_equal(weir_last_error(), expected);
    f->b.code = WEIR_RPC_OK;
    assert_answered_by(f, f->b.address);
}

/* Takes connections and says nothing. */
static int open_silent(char *out_address, size_t n_address)
{
    struct sockaddr_in address = { .sin_family = AF_INET,
                                   .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
    socklen_t n = sizeof(address);
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    assert_int_equal(bind(fd, (struct sockaddr *)&address, n), 0);
    assert_int_equal(listen(fd, 8), 0);
    getsockname(fd, (struct sockaddr *)&address, &n);
    snprintf(out_address, n_address, "127.0.0.1:%u", ntohs(address.sin_port));
    return fd;
}

static void test_a_silent_one_has_its_part_of_the_time(void **state)
{
    fixture *f = *state;
    char silent[64], list[200];
    int fd = open_silent(silent, sizeof(silent));
    snprintf(list, sizeof(list), "%s,%s", silent, f->b.address);
    weir_rpc_client_close(f->client);
    assert_int_equal(weir_rpc_client_open(list, NULL, NULL, &f->client), WEIR_OK);
    double begun_s = weir_now_s();
    assert_int_equal(echo_call(f->client, "x", 600, &f->arena, NULL), WEIR_OK);
    assert_true(weir_now_s() - begun_s >= 0.25);
    assert_answered_by(f, f->b.address);
    /* Both silent: the call ends by its deadline. */
    snprintf(list, sizeof(list), "%s,%s", silent, silent);
    weir_rpc_client_close(f->client);
    assert_int_equal(weir_rpc_client_open(list, "directory", NULL, &f->client), WEIR_OK);
    begun_s = weir_now_s();
    assert_int_equal(echo_call(f->client, "x", 400, &f->arena, NULL), WEIR_ERR_TIMED_OUT);
    assert_true(weir_now_s() - begun_s < 3);
    assert_non_null(strstr(weir_last_error(), "no answer within 0.2 s; "));
    close(fd);
}

/* ---- a name with several addresses -----------------------------------------------------------*/

/* Nobody listens there, and nobody else can. -1: somebody does. */
static int hold(uint32_t host, const char *port)
{
    const struct sockaddr_in address = { .sin_family = AF_INET,
                                         .sin_port = htons((uint16_t)atoi(port)),
                                         .sin_addr.s_addr = htonl(INADDR_LOOPBACK + host) };
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_true(fd >= 0);
    if (bind(fd, (const struct sockaddr *)&address, sizeof(address)) == 0)
        return fd;
    close(fd);
    return -1;
}

/* A server at 127.0.0.3 whose port is free, and stays so, at the name's other addresses. */
static void open_last(answerer *last, int held[2])
{
    for (int i = 0; i < 100; i++) {
        answerer_open(last, "127.0.0.3:0");
        const char *port = strrchr(last->address, ':') + 1;
        held[0] = hold(0, port);
        held[1] = held[0] >= 0 ? hold(1, port) : -1;
        if (held[1] >= 0)
            return;
        if (held[0] >= 0)
            close(held[0]);
        answerer_close(last);
    }
    fail_msg("no port is free at three addresses");
}

static void test_every_address_of_a_name_is_tried(void **state)
{
    fixture *f = *state;
    answerer last = { .code = WEIR_RPC_OK };
    int held[2];
    open_last(&last, held);
    char name[64];
    snprintf(name, sizeof(name), "many.test%s", strrchr(last.address, ':'));
    weir_rpc_client_close(f->client);
    assert_int_equal(weir_rpc_client_open(name, "directory", NULL, &f->client), WEIR_OK);
    assert_int_equal(echo_call(f->client, "x", TIMEOUT_MS, &f->arena, NULL), WEIR_OK);
    answerer_close(&last);
    assert_int_equal(echo_call(f->client, "x", TIMEOUT_MS, &f->arena, NULL), WEIR_ERR_PEER_LOST);
    for (uint32_t i = 1; i <= MANY; i++) {
        char cause[64];
        snprintf(cause, sizeof(cause), "127.0.0.%u: cannot connect: Connection refused", i);
        assert_non_null(strstr(weir_last_error(), cause));
    }
    close(held[0]);
    close(held[1]);
}

static void test_another_address_of_the_name_answers_for_one_that_cannot(void **state)
{
    fixture *f = *state;
    answerer first = { .code = WEIR_RPC_UNAVAILABLE }, last = { .code = WEIR_RPC_OK };
    int held[2];
    open_last(&last, held);
    char listen[64], name[64];
    const char *port = strrchr(last.address, ':');
    close(held[0]); /* for the first */
    snprintf(listen, sizeof(listen), "127.0.0.1%s", port);
    snprintf(name, sizeof(name), "many.test%s", port);
    answerer_open(&first, listen);
    weir_rpc_client_close(f->client);
    assert_int_equal(weir_rpc_client_open(name, "directory", NULL, &f->client), WEIR_OK);
    for (int i = 0; i < 3; i++)
        assert_int_equal(echo_call(f->client, "x", TIMEOUT_MS, &f->arena, NULL), WEIR_OK);
    assert_int_equal(first.n_asked, 1);
    assert_int_equal(last.n_asked, 3);
    last.code = WEIR_RPC_UNAVAILABLE;
    assert_int_equal(echo_call(f->client, "x", TIMEOUT_MS, &f->arena, NULL), WEIR_ERR_PEER_LOST);
    answerer_close(&first);
    answerer_close(&last);
    close(held[1]);
}

int main(void)
{
#define CASE(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_lists_are_read_and_bad_ones_named),
        cmocka_unit_test(test_while_others_are_left_an_address_has_a_part_of_the_time),
        CASE(test_the_next_is_asked_when_one_is_gone_and_kept_to),
        CASE(test_who_is_unavailable_is_passed_over_and_who_refuses_is_not),
        CASE(test_all_gone_is_said_in_one_line_with_each_cause),
        CASE(test_a_silent_one_has_its_part_of_the_time),
        CASE(test_every_address_of_a_name_is_tried),
        CASE(test_another_address_of_the_name_answers_for_one_that_cannot),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
