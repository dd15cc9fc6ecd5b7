/* SPDX-License-Identifier: Apache-2.0 */
/* test_rpc_tls.c - certificates, tokens and plain text against each other: who gets through, and
 * what the others are told. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "rpc/echo_service.h"
#include "rpc/frame_link.h"
#include "rpc/rpc_address.h"
#include "rpc/rpc_tls.h"
#include "rpc/tls_case.h"

#define TIMEOUT_MS 10000
#define N_BULK 3000

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static char last_peer[128]; /* of the last call; guarded by the lock */

static void assert_last_peer(const char *expected, size_t n)
{
    pthread_mutex_lock(&lock);
    assert_memory_equal(last_peer, expected, n);
    pthread_mutex_unlock(&lock);
}

static weir_rpc_code answer(void *context, const weir_rpc_call_info *call,
                            const ProtobufCMessage *message, weir_arena *arena,
                            const ProtobufCMessage **out_response, char *text)
{
    pthread_mutex_lock(&lock);
    snprintf(last_peer, sizeof(last_peer), "%s", call->peer);
    pthread_mutex_unlock(&lock);
    return echo_get(context, call, message, arena, out_response, text);
}

static const weir_rpc_method methods[] = { { "GetWeightVersion", answer } };
static const weir_rpc_service service = { &model_express__refit__refit_service__descriptor, methods,
                                          1, NULL };

static weir_rpc_server *serve_on(const char *listen, const weir_rpc_security *security)
{
    weir_rpc_server *server = NULL;
    const weir_rpc_server_options options = {
        .listen = listen, .services = &service, .n_services = 1, .security = *security
    };
    assert_int_equal(weir_rpc_server_open(&options, &server), WEIR_OK);
    return server;
}

static weir_rpc_server *serve(const char *certificate, const char *ca, const char *token)
{
    tls_party party;
    return serve_on("127.0.0.1:0", tls_as(&party, certificate, ca, token));
}

static weir_status call_as(const char *address, const weir_rpc_security *security)
{
    weir_arena arena;
    weir_rpc_client *client;
    weir_status status = weir_rpc_client_open(address, "directory", security, &client);
    if (status != WEIR_OK)
        return status;
    weir_arena_init(&arena, (size_t)64 << 20);
    status = echo_call(client, "uid", TIMEOUT_MS, &arena, NULL);
    weir_arena_close(&arena);
    weir_rpc_client_close(client);
    return status;
}

static weir_status call(const weir_rpc_server *server, const char *certificate, const char *ca,
                        const char *token)
{
    tls_party party;
    return call_as(weir_rpc_server_address(server), tls_as(&party, certificate, ca, token));
}

static void assert_error_has(const char *piece)
{
    if (strstr(weir_last_error(), piece) == NULL)
        fail_msg("'%s' is not in '%s'", piece, weir_last_error());
}

/* The other side is told in so many words, and the server goes on. */
static void assert_refused(weir_status status, weir_status expected, const char *piece)
{
    assert_error_has(piece);
    assert_int_equal(status, expected);
}

static int set_up(void **state)
{
    (void)state;
    return tls_make_certificates();
}

static int tear_down(void **state)
{
    (void)state;
    return tls_remove_certificates();
}

/* ---- who gets through ------------------------------------------------------------------------*/

static void test_calls_pass_within_tls_under_names_and_addresses(void **state)
{
    (void)state;
    tls_party party;
    weir_rpc_address address;
    char by_name[64];
    weir_rpc_server *server = serve("server", NULL, NULL);
    assert_int_equal(call(server, NULL, "ca", NULL), WEIR_OK);
    assert_last_peer("127.0.0.1:", 10);
    assert_int_equal(weir_rpc_address_parse(weir_rpc_server_address(server), &address), WEIR_OK);
    snprintf(by_name, sizeof(by_name), "localhost:%u", address.port);
    assert_int_equal(call_as(by_name, tls_as(&party, NULL, "ca", NULL)), WEIR_OK);
    weir_rpc_server_close(server);
}

static void test_of_several_servers_each_must_have_its_name(void **state)
{
    (void)state;
    tls_party party;
    char both[160];
    weir_rpc_client *client;
    weir_arena arena;
    weir_rpc_server *good = serve("server", NULL, "secret");
    weir_rpc_server *other = serve("other-name", NULL, "secret");
    snprintf(both, sizeof(both), "localhost%s,%s", strrchr(weir_rpc_server_address(good), ':'),
             weir_rpc_server_address(other));
    weir_arena_init(&arena, (size_t)64 << 20);
    assert_int_equal(
        weir_rpc_client_open(both, "directory", tls_as(&party, NULL, "ca", "secret"), &client),
        WEIR_OK);
    assert_int_equal(echo_call(client, "uid", TIMEOUT_MS, &arena, NULL), WEIR_OK);
    weir_rpc_server_close(good);
    assert_refused(echo_call(client, "uid", TIMEOUT_MS, &arena, NULL), WEIR_ERR_REFUSED,
                   "its certificate is for 'other', 'other.example', not '127.0.0.1'");
    weir_rpc_client_close(client);
    weir_arena_close(&arena);
    weir_rpc_server_close(other);
    /* A token must not leave the machine without TLS, wherever in the list its way out is. */
    assert_int_equal(weir_rpc_client_open("127.0.0.1:1,192.0.2.1:1", "directory",
                                          tls_as(&party, NULL, NULL, "secret"), &client),
                     WEIR_ERR_REFUSED);
    assert_error_has("directory 192.0.2.1:1");
}

static void test_a_client_certificate_names_the_caller(void **state)
{
    (void)state;
    weir_rpc_server *server = serve("server", "ca", NULL);
    assert_int_equal(call(server, "worker", "ca", NULL), WEIR_OK);
    assert_last_peer("trainer-0", sizeof("trainer-0"));
    weir_rpc_server_close(server);
}

static void test_large_messages_and_many_calls_pass_within_tls(void **state)
{
    (void)state;
    tls_party party;
    weir_arena arena;
    weir_rpc_client *client;
    const ModelExpress__Refit__WeightVersion *version;
    weir_rpc_server *server = serve("server", "ca", "secret");
    const weir_rpc_security *security = tls_as(&party, "worker", "ca", "secret");
    assert_int_equal(
        weir_rpc_client_open(weir_rpc_server_address(server), "directory", security, &client),
        WEIR_OK);
    weir_arena_init(&arena, (size_t)256 << 20);
    assert_int_equal(echo_call(client, "slots:8000", TIMEOUT_MS, &arena, &version), WEIR_OK);
    assert_int_equal(version->n_expected_source_slots, 8000);
    assert_int_equal(strlen(version->expected_source_slots[7999]), ECHO_SLOT_BYTES);
    size_t n = (size_t)8 << 20;
    char *large = malloc(n);
    memset(large, 'x', n - 1);
    large[n - 1] = '\0';
    assert_int_equal(echo_call(client, large, TIMEOUT_MS, &arena, &version), WEIR_OK);
    assert_string_equal(version->uid, large);
    free(large);
    for (int i = 0; i < N_BULK; i++)
        assert_int_equal(echo_call(client, "uid", TIMEOUT_MS, &arena, NULL), WEIR_OK);
    weir_rpc_client_close(client);
    weir_arena_close(&arena);
    weir_rpc_server_close(server);
}

/* ---- certificates that will not do -----------------------------------------------------------*/

static void test_a_server_of_another_ca_is_not_believed(void **state)
{
    (void)state;
    weir_rpc_server *server = serve("server", NULL, NULL);
    assert_refused(call(server, NULL, "other-ca", NULL), WEIR_ERR_REFUSED,
                   "RefitService.GetWeightVersion: its certificate is not signed by CA ");
    assert_error_has("/other-ca.pem");
    assert_int_equal(call(server, NULL, "ca", NULL), WEIR_OK);
    weir_rpc_server_close(server);
}

static void test_a_certificate_for_another_host_is_not_believed(void **state)
{
    (void)state;
    weir_rpc_server *server = serve("other-name", NULL, NULL);
    assert_refused(call(server, NULL, "ca", NULL), WEIR_ERR_REFUSED,
                   "its certificate is for 'other', 'other.example', not '127.0.0.1'");
    weir_rpc_server_close(server);
}

static void test_an_expired_certificate_says_since_when(void **state)
{
    (void)state;
    weir_rpc_server *server = serve("expired", NULL, NULL);
    assert_refused(call(server, NULL, "ca", NULL), WEIR_ERR_REFUSED,
                   "its certificate has expired (not after 20");
    weir_rpc_server_close(server);
}

static void test_a_caller_without_a_certificate_is_asked_for_one(void **state)
{
    (void)state;
    weir_rpc_server *server = serve("server", "ca", NULL);
    assert_refused(call(server, NULL, "ca", NULL), WEIR_ERR_REFUSED,
                   "the other side asks for a client certificate");
    assert_int_equal(call(server, "worker", "ca", NULL), WEIR_OK);
    weir_rpc_server_close(server);
}

static void test_a_caller_of_another_ca_is_told_so(void **state)
{
    (void)state;
    weir_rpc_server *server = serve("server", "ca", NULL);
    assert_refused(call(server, "stranger", "ca", NULL), WEIR_ERR_REFUSED,
                   "the other side's CA did not sign the certificate shown to it (/tmp/");
    assert_refused(call(server, "expired", "ca", NULL), WEIR_ERR_REFUSED, "expired");
    weir_rpc_server_close(server);
}

static void expect_open(const weir_rpc_security *security, weir_status expected, const char *piece)
{
    weir_rpc_server *server = NULL;
    const weir_rpc_server_options options = {
        .listen = "127.0.0.1:0", .services = &service, .n_services = 1, .security = *security
    };
    assert_refused(weir_rpc_server_open(&options, &server), expected, piece);
    assert_null(server);
}

static void test_files_that_will_not_do_are_named(void **state)
{
    (void)state;
    tls_party party;
    tls_path other = tls_file("worker", "key");
    tls_as(&party, "server", NULL, NULL);
    party.security.key = other.text;
    expect_open(&party.security, WEIR_ERR_INVALID, "/worker.key is not that of the certificate");
    party.security.key = NULL;
    expect_open(&party.security, WEIR_ERR_INVALID, "a certificate is given without its key: /tmp/");
    party.security.key = "/nowhere/key.pem";
    expect_open(&party.security, WEIR_ERR_NOT_FOUND, "cannot read the key /nowhere/key.pem: No ");
    tls_as(&party, "server", "missing", NULL);
    expect_open(&party.security, WEIR_ERR_NOT_FOUND, "/missing.pem: No such file");
    tls_as(&party, "server", NULL, NULL);
    party.security.ca = other.text;
    expect_open(&party.security, WEIR_ERR_INVALID, "cannot use the CA ");
    party.security.certificate = other.text;
    expect_open(&party.security, WEIR_ERR_INVALID, "cannot use the certificate ");
}

static void copy_file(const char *from, const char *to)
{
    char command[6 * TLS_PATH_BYTES];
    snprintf(command, sizeof(command), "cp %s %s.new && mv %s.new %s", from, to, to, to);
    assert_int_equal(system(command), 0);
}

static void replace(const char *by)
{
    copy_file(tls_file(by, "pem").text, tls_file("current", "pem").text);
    copy_file(tls_file(by, "key").text, tls_file("current", "key").text);
}

static void test_certificates_replaced_on_disk_are_read_for_the_next_connection(void **state)
{
    (void)state;
    replace("other-name");
    weir_rpc_server *server = serve("current", NULL, NULL);
    assert_refused(call(server, NULL, "ca", NULL), WEIR_ERR_REFUSED, "its certificate is for ");
    replace("renewed");
    assert_int_equal(call(server, NULL, "ca", NULL), WEIR_OK);
    copy_file("/dev/null", tls_file("current", "pem").text); /* half a renewal: the old one stays */
    assert_int_equal(call(server, NULL, "ca", NULL), WEIR_OK);
    assert_int_equal(unlink(tls_file("current", "key").text), 0);
    assert_int_equal(call(server, NULL, "ca", NULL), WEIR_OK);
    replace("expired");
    assert_refused(call(server, NULL, "ca", NULL), WEIR_ERR_REFUSED, "has expired");
    weir_rpc_server_close(server);
}

/* ---- plain text and TLS ----------------------------------------------------------------------*/

static void test_plain_text_at_a_tls_port_is_told_so(void **state)
{
    (void)state;
    weir_rpc_server *server = serve("server", NULL, NULL);
    for (int i = 0; i < 20; i++)
        assert_refused(call(server, NULL, NULL, NULL), WEIR_ERR_REFUSED, "the server wants TLS");
    assert_int_equal(call(server, NULL, "ca", NULL), WEIR_OK);
    weir_rpc_server_close(server);
}

static void test_tls_at_a_plain_port_is_told_so(void **state)
{
    (void)state;
    weir_rpc_server *server = serve(NULL, NULL, NULL);
    for (int i = 0; i < 20; i++)
        assert_refused(call(server, NULL, "ca", NULL), WEIR_ERR_REFUSED,
                       "the server does not speak TLS");
    assert_int_equal(call(server, NULL, NULL, NULL), WEIR_OK);
    weir_rpc_server_close(server);
}

/* ---- tokens ----------------------------------------------------------------------------------*/

static void test_calls_without_the_token_are_unauthenticated(void **state)
{
    (void)state;
    static const char *const wrong[] = { NULL, "secre", "secrets", "Secret", "x" };
    weir_rpc_server *server = serve("server", NULL, "secret");
    for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++)
        assert_refused(call(server, NULL, "ca", wrong[i]), WEIR_ERR_REFUSED,
                       "UNAUTHENTICATED: the token is missing, or another");
    assert_int_equal(call(server, NULL, "ca", "secret"), WEIR_OK);
    weir_rpc_server_close(server);
    server = serve(NULL, NULL, "secret");
    assert_refused(call(server, NULL, NULL, "other"), WEIR_ERR_REFUSED, "UNAUTHENTICATED");
    assert_int_equal(call(server, NULL, NULL, "secret"), WEIR_OK);
    weir_rpc_server_close(server);
}

static void test_an_open_service_asks_for_no_token(void **state)
{
    (void)state;
    tls_party party;
    weir_rpc_server *server = NULL;
    const weir_rpc_server_options options = {
        .listen = "127.0.0.1:0",
        .services = &service,
        .n_services = 1,
        .security = *tls_as(&party, "server", NULL, "secret"),
        .open_service = &model_express__refit__refit_service__descriptor,
    };
    assert_int_equal(weir_rpc_server_open(&options, &server), WEIR_OK);
    assert_int_equal(call(server, NULL, "ca", NULL), WEIR_OK);
    weir_rpc_server_close(server);
}

static void test_a_token_does_not_leave_the_machine_in_plain_text(void **state)
{
    (void)state;
    tls_party party;
    tls_as(&party, NULL, NULL, "secret");
    assert_refused(call_as("192.0.2.1:1", &party.security), WEIR_ERR_REFUSED,
                   "directory 192.0.2.1:1: no token is sent without TLS beyond this machine");
}

/* ---- where to listen -------------------------------------------------------------------------*/

static void test_nobody_listens_for_all_without_certificate_and_token(void **state)
{
    (void)state;
    static const struct {
        const char *certificate, *ca, *token, *piece;
    } cases[] = {
        { NULL, NULL, NULL, "0.0.0.0:0: not without a certificate and a token" },
        { NULL, NULL, "secret", "0.0.0.0:0: not without a certificate: " },
        { "server", NULL, NULL, "0.0.0.0:0: not without a token" },
    };
    tls_party party;
    weir_rpc_server *server = NULL;
    weir_rpc_server_options options = { .listen = "0.0.0.0:0",
                                        .services = &service,
                                        .n_services = 1 };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        options.security = *tls_as(&party, cases[i].certificate, cases[i].ca, cases[i].token);
        assert_refused(weir_rpc_server_open(&options, &server), WEIR_ERR_REFUSED, cases[i].piece);
    }
    options.security.insecure = true;
    assert_int_equal(weir_rpc_server_open(&options, &server), WEIR_OK);
    weir_rpc_server_close(server);
    weir_rpc_server_close(serve_on("0.0.0.0:0", tls_as(&party, "server", NULL, "secret")));
    weir_rpc_server_close(serve_on("0.0.0.0:0", tls_as(&party, "server", "ca", NULL)));
    weir_rpc_server_close(serve_on("127.8.8.8:0", tls_as(&party, NULL, NULL, NULL)));
    weir_rpc_server_close(serve_on("localhost:0", tls_as(&party, NULL, NULL, NULL)));
}

/* ---- peers that misbehave --------------------------------------------------------------------*/

static int connect_to(const char *address)
{
    weir_rpc_address parsed;
    int fd = -1;
    assert_int_equal(weir_rpc_address_parse(address, &parsed), WEIR_OK);
    assert_int_equal(weir_rpc_connect(&parsed, weir_deadline_in(TIMEOUT_MS), -1, &fd), WEIR_OK);
    return fd;
}

/* Until the other side hangs up; what came is thrown away. */
static bool is_hung_up_on(int fd, unsigned within_ms)
{
    char sink[4096];
    weir_deadline deadline = weir_deadline_in(within_ms);
    while (!weir_deadline_passed(deadline)) {
        struct pollfd one = { .fd = fd, .events = POLLIN };
        poll(&one, 1, (int)weir_deadline_left_ms(deadline));
        ssize_t n = recv(fd, sink, sizeof(sink), MSG_DONTWAIT);
        if (n == 0 || (n < 0 && errno != EAGAIN))
            return true;
    }
    return false;
}

static void test_a_handshake_that_stalls_ends_and_holds_up_nobody(void **state)
{
    (void)state;
    static const unsigned char half[] = { 0x16, 0x03, 0x01, 0x02, 0x00, 0x01 };
    weir_rpc_server *server = serve("server", NULL, NULL);
    int silent = connect_to(weir_rpc_server_address(server));
    int halting = connect_to(weir_rpc_server_address(server));
    assert_int_equal(send(halting, half, sizeof(half), MSG_NOSIGNAL), sizeof(half));
    uint64_t begin_ns = weir_now_ns();
    assert_int_equal(call(server, NULL, "ca", NULL), WEIR_OK);
    assert_true(is_hung_up_on(halting, WEIR_TLS_HANDSHAKE_MS + 3000));
    assert_true(is_hung_up_on(silent, 3000));
    assert_true(weir_now_ns() - begin_ns >= (WEIR_TLS_HANDSHAKE_MS - 500) * 1000000ull);
    close(silent);
    close(halting);
    weir_rpc_server_close(server);
}

static void test_garbage_at_a_tls_port_ends_that_connection_alone(void **state)
{
    (void)state;
    weir_rpc_server *server = serve("server", "ca", NULL);
    for (unsigned seed = 0; seed < 200; seed++) {
        unsigned char bytes[300];
        uint64_t x = seed * 0x9e3779b97f4a7c15ull + 1;
        for (size_t i = 0; i < sizeof(bytes); i++)
            bytes[i] =
                (unsigned char)((x = x * 6364136223846793005ull + 1442695040888963407ull) >> 56);
        if (seed % 2 == 0) { /* a record by its first bytes */
            bytes[0] = 0x16;
            bytes[1] = 0x03;
            bytes[2] = (unsigned char)(seed % 5);
            bytes[3] = 0;
            bytes[4] = (unsigned char)seed;
        }
        int fd = connect_to(weir_rpc_server_address(server));
        send(fd, bytes, sizeof(bytes), MSG_NOSIGNAL);
        shutdown(fd, SHUT_WR); /* closed by half: what is missing will not come */
        assert_true(is_hung_up_on(fd, 3000));
        close(fd);
    }
    assert_int_equal(call(server, "worker", "ca", NULL), WEIR_OK);
    weir_rpc_server_close(server);
}

/* A server that takes one connection and says nothing, or hangs up at once. */
typedef struct mute {
    int listen_fd, fd;
    char address[WEIR_RPC_ADDRESS_TEXT];
} mute;

static mute listen_mutely(void)
{
    weir_rpc_address address = { .host = "127.0.0.1" };
    mute m = { .fd = -1 };
    assert_int_equal(weir_rpc_listen(&address, &m.listen_fd), WEIR_OK);
    weir_rpc_address_format(&address, m.address);
    return m;
}

static void test_a_server_that_does_not_greet_costs_five_seconds_at_most(void **state)
{
    (void)state;
    tls_party party;
    mute m = listen_mutely();
    uint64_t begin_ns = weir_now_ns();
    assert_refused(call_as(m.address, tls_as(&party, NULL, "ca", NULL)), WEIR_ERR_TIMED_OUT,
                   "no TLS handshake within 5.0 s");
    assert_true(weir_now_ns() - begin_ns < (WEIR_TLS_HANDSHAKE_MS + 2000) * 1000000ull);
    close(m.listen_fd);
}

static void *hang_up(void *context)
{
    mute *m = context;
    struct pollfd one = { .fd = m->listen_fd, .events = POLLIN };
    poll(&one, 1, TIMEOUT_MS);
    m->fd = accept(m->listen_fd, NULL, NULL);
    shutdown(m->fd, SHUT_WR);
    return NULL;
}

static void test_a_server_that_hangs_up_in_the_handshake_is_lost(void **state)
{
    (void)state;
    tls_party party;
    pthread_t thread;
    mute m = listen_mutely();
    assert_int_equal(pthread_create(&thread, NULL, hang_up, &m), 0);
    assert_refused(call_as(m.address, tls_as(&party, NULL, "ca", NULL)), WEIR_ERR_PEER_LOST,
                   "connection closed by the other side in the midst of the TLS handshake");
    pthread_join(thread, NULL);
    close(m.fd);
    close(m.listen_fd);
}

/* ---- two sessions face to face ---------------------------------------------------------------*/

static void test_what_is_spoken_within_tls_must_be_the_same(void **state)
{
    (void)state;
    tls_party party, other;
    int fds[2];
    weir_tls_context *far = NULL, *near = NULL;
    weir_tls_session *server = NULL, *client = NULL;
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, fds), 0);
    assert_int_equal(weir_tls_context_open(tls_as(&party, "server", NULL, NULL),
                                           WEIR_RPC_SERVER_SIDE, WEIR_TLS_HTTP2, &far),
                     WEIR_OK);
    assert_int_equal(weir_tls_context_open(tls_as(&other, NULL, "ca", NULL), WEIR_RPC_CLIENT_SIDE,
                                           WEIR_TLS_FRAMES, &near),
                     WEIR_OK);
    assert_int_equal(weir_tls_session_open(far, fds[0], NULL, &server), WEIR_OK);
    assert_int_equal(weir_tls_session_open(near, fds[1], "localhost", &client), WEIR_OK);
    weir_status status[2] = { WEIR_IN_PROGRESS, WEIR_IN_PROGRESS };
    for (int i = 0; i < 10 && (status[0] == WEIR_IN_PROGRESS || status[1] == WEIR_IN_PROGRESS);
         i++) {
        status[1] = weir_tls_handshake(client);
        status[0] = weir_tls_handshake(server);
    }
    assert_int_equal(status[0], WEIR_ERR_REFUSED);
    assert_int_equal(weir_tls_handshake(client), WEIR_ERR_REFUSED);
    assert_error_has("what is spoken there within TLS is not weir-frames");
    weir_tls_session_close(server);
    weir_tls_session_close(client);
    weir_tls_context_close(far);
    weir_tls_context_close(near);
    close(fds[0]);
    close(fds[1]);
}

/* ---- frame links -----------------------------------------------------------------------------*/

typedef struct link_pair {
    tls_party far_party, near_party;
    weir_frame_listener *listener;
    weir_frame_link *far, *near; /* accepted, connected */
} link_pair;

static void open_links(link_pair *pair, const char *far_token, const char *near_certificate,
                       const char *near_ca, const char *near_token)
{
    *pair = (link_pair){ .far = NULL };
    const weir_rpc_security *far = tls_as(&pair->far_party, "server", "ca", far_token);
    assert_int_equal(weir_frame_listener_open("127.0.0.1", far, &pair->listener), WEIR_OK);
    const weir_rpc_security *near =
        tls_as(&pair->near_party, near_certificate, near_ca, near_token);
    assert_int_equal(weir_frame_connect(weir_frame_listener_address(pair->listener), "trainer 0",
                                        near, TIMEOUT_MS, &pair->near),
                     WEIR_OK);
    /* Nobody has accepted yet, and yet it can speak. */
    assert_int_equal(weir_frame_send(pair->near, 7, "hello", 5, TIMEOUT_MS), WEIR_OK);
    assert_int_equal(weir_frame_wait(pair->listener, NULL, 0, TIMEOUT_MS), WEIR_OK);
    assert_int_equal(weir_frame_listener_accept(pair->listener, &pair->far), WEIR_OK);
}

static void close_links(link_pair *pair)
{
    weir_frame_link_close(pair->near);
    weir_frame_link_close(pair->far);
    weir_frame_listener_close(pair->listener);
}

/* Both ends look in turn, until neither is waiting for more. */
static void look(link_pair *pair, weir_status *far, weir_status *near, weir_frame *frame)
{
    weir_frame ignored;
    weir_deadline deadline = weir_deadline_in(TIMEOUT_MS);
    *far = *near = WEIR_IN_PROGRESS;
    while (*far == WEIR_IN_PROGRESS && !weir_deadline_passed(deadline)) {
        *near = weir_frame_receive(pair->near, 1, &ignored);
        *far = weir_frame_receive(pair->far, 1, frame);
    }
}

static void test_frames_pass_within_tls_after_the_token(void **state)
{
    (void)state;
    link_pair pair;
    weir_frame frame;
    weir_status far, near;
    open_links(&pair, "secret", "worker", "ca", "secret");
    look(&pair, &far, &near, &frame);
    assert_int_equal(far, WEIR_OK);
    assert_int_equal(frame.type, 7);
    assert_memory_equal(frame.payload, "hello", 5);
    const size_t n = (size_t)32 << 20;
    char *bytes = malloc(n);
    memset(bytes, 'b', n);
    for (int i = 0; i < 3; i++) { /* fits into both sockets */
        assert_int_equal(weir_frame_send(pair.far, 8, bytes, 60000, TIMEOUT_MS), WEIR_OK);
        assert_int_equal(weir_frame_receive(pair.near, TIMEOUT_MS, &frame), WEIR_OK);
        assert_int_equal(frame.n_bytes, 60000);
        assert_memory_equal(frame.payload, bytes, 60000);
    }
    assert_int_equal(weir_frame_send(pair.far, 8, bytes, n, 50), WEIR_ERR_TIMED_OUT);
    free(bytes);
    close_links(&pair);
}

static void test_a_link_with_another_token_is_refused_and_told_so(void **state)
{
    (void)state;
    static const char *const wrong[] = { "secre", "secrets", NULL };
    for (size_t i = 0; i < 3; i++) {
        link_pair pair;
        weir_frame frame;
        weir_status far, near;
        open_links(&pair, "secret", "worker", "ca", wrong[i]);
        look(&pair, &far, &near, &frame);
        assert_refused(far, WEIR_ERR_REFUSED, ": shows no token, or another");
        assert_refused(weir_frame_receive(pair.near, TIMEOUT_MS, &frame), WEIR_ERR_REFUSED,
                       "trainer 0: asks for a token, or another one");
        close_links(&pair);
    }
}

static void test_a_link_that_will_not_do_says_why(void **state)
{
    (void)state;
    link_pair pair;
    weir_frame frame;
    weir_status far, near;
    open_links(&pair, NULL, NULL, "ca", NULL);
    look(&pair, &far, &near, &frame);
    assert_refused(far, WEIR_ERR_REFUSED, "it shows no client certificate");
    assert_refused(weir_frame_receive(pair.near, TIMEOUT_MS, &frame), WEIR_ERR_REFUSED,
                   "trainer 0: the other side asks for a client certificate");
    close_links(&pair);
    open_links(&pair, NULL, "worker", "other-ca", NULL);
    look(&pair, &far, &near, &frame);
    assert_int_equal(far, WEIR_ERR_REFUSED);
    assert_refused(weir_frame_receive(pair.near, TIMEOUT_MS, &frame), WEIR_ERR_REFUSED,
                   "trainer 0: its certificate is not signed by CA ");
    close_links(&pair);
    open_links(&pair, "secret", NULL, NULL, "secret"); /* in plain text */
    look(&pair, &far, &near, &frame);
    assert_int_equal(far, WEIR_ERR_FORMAT);
    assert_refused(weir_frame_receive(pair.near, TIMEOUT_MS, &frame), WEIR_ERR_REFUSED,
                   "trainer 0: speaks TLS, and this side does not");
    close_links(&pair);
}

static void test_a_stranger_on_a_link_is_given_little_room(void **state)
{
    (void)state;
    link_pair pair;
    weir_frame frame;
    static const unsigned char large[16] = { 'W', 'F', 'L', '1', 7, 0, 0, 0, 0, 0, 1 };
    const weir_rpc_security security = { .token = "secret" };
    assert_int_equal(weir_frame_listener_open("127.0.0.1", &security, &pair.listener), WEIR_OK);
    int fd = connect_to(weir_frame_listener_address(pair.listener));
    assert_int_equal(send(fd, large, sizeof(large), MSG_NOSIGNAL), sizeof(large));
    assert_int_equal(weir_frame_wait(pair.listener, NULL, 0, TIMEOUT_MS), WEIR_OK);
    assert_int_equal(weir_frame_listener_accept(pair.listener, &pair.far), WEIR_OK);
    assert_refused(weir_frame_receive(pair.far, TIMEOUT_MS, &frame), WEIR_ERR_REFUSED,
                   ": shows no token");
    close(fd);
    weir_frame_link_close(pair.far);
    weir_frame_listener_close(pair.listener);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_calls_pass_within_tls_under_names_and_addresses),
        cmocka_unit_test(test_of_several_servers_each_must_have_its_name),
        cmocka_unit_test(test_a_client_certificate_names_the_caller),
        cmocka_unit_test(test_large_messages_and_many_calls_pass_within_tls),
        cmocka_unit_test(test_a_server_of_another_ca_is_not_believed),
        cmocka_unit_test(test_a_certificate_for_another_host_is_not_believed),
        cmocka_unit_test(test_an_expired_certificate_says_since_when),
        cmocka_unit_test(test_a_caller_without_a_certificate_is_asked_for_one),
        cmocka_unit_test(test_a_caller_of_another_ca_is_told_so),
        cmocka_unit_test(test_files_that_will_not_do_are_named),
        cmocka_unit_test(test_certificates_replaced_on_disk_are_read_for_the_next_connection),
        cmocka_unit_test(test_plain_text_at_a_tls_port_is_told_so),
        cmocka_unit_test(test_tls_at_a_plain_port_is_told_so),
        cmocka_unit_test(test_calls_without_the_token_are_unauthenticated),
        cmocka_unit_test(test_an_open_service_asks_for_no_token),
        cmocka_unit_test(test_a_token_does_not_leave_the_machine_in_plain_text),
        cmocka_unit_test(test_nobody_listens_for_all_without_certificate_and_token),
        cmocka_unit_test(test_a_handshake_that_stalls_ends_and_holds_up_nobody),
        cmocka_unit_test(test_garbage_at_a_tls_port_ends_that_connection_alone),
        cmocka_unit_test(test_a_server_that_does_not_greet_costs_five_seconds_at_most),
        cmocka_unit_test(test_a_server_that_hangs_up_in_the_handshake_is_lost),
        cmocka_unit_test(test_what_is_spoken_within_tls_must_be_the_same),
        cmocka_unit_test(test_frames_pass_within_tls_after_the_token),
        cmocka_unit_test(test_a_link_with_another_token_is_refused_and_told_so),
        cmocka_unit_test(test_a_link_that_will_not_do_says_why),
        cmocka_unit_test(test_a_stranger_on_a_link_is_given_little_room),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
