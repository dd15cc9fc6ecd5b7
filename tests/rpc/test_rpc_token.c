/* SPDX-License-Identifier: Apache-2.0 */
/* test_rpc_token.c - a token whose file is replaced, in the ways that files are; and servers and
 * clients that go on meanwhile. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "rpc/echo_service.h"
#include "rpc/frame_link.h"
#include "rpc/rpc_security.h"
#include "rpc/rpc_token.h"

#define TIMEOUT_MS 10000
#define PATH_BYTES 128

static char folder[64];

typedef struct path {
    char text[PATH_BYTES];
} path;

static path in_folder(const char *name)
{
    path out;
    snprintf(out.text, sizeof(out.text), "%s/%s", folder, name);
    return out;
}

static int set_up(void **state)
{
    (void)state;
    snprintf(folder, sizeof(folder), "/tmp/weir-token-XXXXXX");
    return mkdtemp(folder) == NULL;
}

static int tear_down(void **state)
{
    (void)state;
    char command[128];
    snprintf(command, sizeof(command), "rm -rf %s", folder);
    return system(command);
}

static path put(const char *name, const char *text)
{
    path file = in_folder(name);
    int fd = open(file.text, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, text, strlen(text)), strlen(text));
    close(fd);
    return file;
}

/* As programs do it that leave nothing half done. */
static path replace(const char *name, const char *text)
{
    path from = put("next", text), to = in_folder(name);
    assert_int_equal(rename(from.text, to.text), 0);
    return to;
}

/* A folder of secrets as Kubernetes has it: token -> ..data/token, ..data -> the folder in force.
 */
static path swap(const char *generation, const char *text)
{
    path data = in_folder("..data"), next = in_folder("..next"), token = in_folder("token");
    path secrets = in_folder(generation);
    char name[64];
    assert_int_equal(mkdir(secrets.text, 0700), 0);
    snprintf(name, sizeof(name), "%s/token", generation);
    put(name, text);
    assert_int_equal(symlink(generation, next.text), 0);
    assert_int_equal(rename(next.text, data.text), 0);
    if (access(token.text, F_OK) != 0)
        assert_int_equal(symlink("..data/token", token.text), 0);
    return token;
}

/* ---- the watch -------------------------------------------------------------------------------*/

static void assert_token(const weir_token_watch *watch, const char *now, const char *before)
{
    assert_string_equal(watch->now, now);
    const char *known = weir_token_watch_before(watch);
    if (before == NULL)
        assert_null(known);
    else
        assert_string_equal(known, before);
}

static void test_a_file_that_is_replaced_is_read_again(void **state)
{
    (void)state;
    weir_token_watch watch;
    path file = put("token", "one\n");
    weir_token_watch_init(&watch, "one");
    assert_false(weir_token_watch_look(&watch, file.text, true));
    replace("token", "two");
    assert_true(weir_token_watch_look(&watch, file.text, true));
    assert_token(&watch, "two", "one");
    put("token", "three\n"); /* into the same inode */
    assert_true(weir_token_watch_look(&watch, file.text, true));
    assert_token(&watch, "three", "two");
    replace("token", "three");
    assert_false(weir_token_watch_look(&watch, file.text, true));
    assert_token(&watch, "three", "two");
}

static void test_a_link_that_points_elsewhere_is_seen(void **state)
{
    (void)state;
    weir_token_watch watch;
    path token = swap("..1", "one\n");
    weir_token_watch_init(&watch, "one");
    assert_false(weir_token_watch_look(&watch, token.text, true));
    swap("..2", "two\n");
    assert_true(weir_token_watch_look(&watch, token.text, true));
    assert_token(&watch, "two", "one");
}

static void test_a_file_that_will_not_do_changes_nothing(void **state)
{
    (void)state;
    static const char *const bad[] = { "", "\n", "with space", "\x01" };
    weir_token_watch watch;
    path file = put("token", "one");
    weir_token_watch_init(&watch, "one");
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        replace("token", bad[i]);
        assert_false(weir_token_watch_look(&watch, file.text, true));
        assert_token(&watch, "one", NULL);
    }
    assert_int_equal(unlink(file.text), 0);
    assert_false(weir_token_watch_look(&watch, file.text, true));
    assert_token(&watch, "one", NULL);
    put("token", "two");
    assert_true(weir_token_watch_look(&watch, file.text, true));
    assert_token(&watch, "two", "one");
}

static void test_a_file_is_looked_at_once_per_second(void **state)
{
    (void)state;
    weir_token_watch watch;
    path file = put("token", "one");
    weir_token_watch_init(&watch, "one");
    assert_false(weir_token_watch_look(&watch, file.text, false));
    replace("token", "two");
    assert_false(weir_token_watch_look(&watch, file.text, false));
    assert_token(&watch, "one", NULL);
    watch.next_look = 1; /* a second is over */
    assert_true(weir_token_watch_look(&watch, file.text, false));
    assert_token(&watch, "two", "one");
}

static void test_the_token_before_is_good_for_a_while(void **state)
{
    (void)state;
    weir_token_watch watch;
    path file = put("token", "one");
    weir_token_watch_init(&watch, "one");
    weir_token_watch_look(&watch, file.text, true);
    replace("token", "two");
    weir_token_watch_look(&watch, file.text, true);
    unsigned left_ms = weir_deadline_left_ms(watch.before_until);
    assert_in_range(left_ms, WEIR_TOKEN_GRACE_MS - 5000, WEIR_TOKEN_GRACE_MS + 5000);
    watch.before_until = 1; /* it is over */
    assert_null(weir_token_watch_before(&watch));
}

/* ---- servers and clients ---------------------------------------------------------------------*/

static weir_rpc_server *serve(const char *token, const char *file)
{
    const weir_rpc_service service = ECHO_SERVICE;
    const weir_rpc_server_options options = { .listen = "127.0.0.1:0",
                                              .services = &service,
                                              .n_services = 1,
                                              .security = { .token = token, .token_file = file } };
    weir_rpc_server *server;
    assert_int_equal(weir_rpc_server_open(&options, &server), WEIR_OK);
    return server;
}

static weir_rpc_client *client_of(const weir_rpc_server *server, const char *token,
                                  const char *file)
{
    weir_rpc_client *client;
    const weir_rpc_security security = { .token = token, .token_file = file };
    assert_int_equal(
        weir_rpc_client_open(weir_rpc_server_address(server), NULL, &security, &client), WEIR_OK);
    return client;
}

static weir_status call(weir_rpc_client *client)
{
    weir_arena arena;
    weir_arena_init(&arena, (size_t)1 << 20);
    weir_status status = echo_call(client, "uid", TIMEOUT_MS, &arena, NULL);
    weir_arena_close(&arena);
    return status;
}

static void test_a_server_takes_a_new_token_at_once_and_the_old_one_for_a_while(void **state)
{
    (void)state;
    path file = swap("..1", "one");
    weir_rpc_server *server = serve("one", file.text);
    weir_rpc_client *old = client_of(server, "one", NULL), *new = client_of(server, "two", NULL);
    assert_int_equal(call(old), WEIR_OK);
    assert_int_equal(call(new), WEIR_ERR_REFUSED);
    swap("..2", "two");
    assert_int_equal(call(new), WEIR_OK);
    assert_int_equal(call(old), WEIR_OK);
    weir_rpc_client_close(old);
    old = client_of(server, "on", NULL);
    assert_int_equal(call(old), WEIR_ERR_REFUSED);
    weir_rpc_client_close(old);
    weir_rpc_client_close(new);
    weir_rpc_server_close(server);
}

/* The server's file is later than the client's, and later by one. */
static void test_a_client_goes_on_when_either_file_is_replaced_first(void **state)
{
    (void)state;
    path servers = put("servers", "one"), clients = put("clients", "one");
    weir_rpc_server *server = serve("one", servers.text);
    weir_rpc_client *client = client_of(server, "one", clients.text);
    assert_int_equal(call(client), WEIR_OK);
    replace("clients", "two");
    weir_rpc_client *early = client_of(server, "one", clients.text);
    assert_int_equal(call(early), WEIR_OK); /* with the one before: the server has no other yet */
    assert_int_equal(call(client), WEIR_OK);
    replace("servers", "two");
    assert_int_equal(call(early), WEIR_OK);
    replace("servers", "three"); /* two generations after what `early` shows */
    weir_rpc_client *other = client_of(server, "three", NULL);
    assert_int_equal(call(other), WEIR_OK);
    assert_int_equal(call(early), WEIR_OK);
    replace("servers", "four");
    replace("clients", "four");
    assert_int_equal(call(early), WEIR_OK);
    assert_int_equal(call(client), WEIR_OK);
    weir_rpc_client_close(client);
    weir_rpc_client_close(early);
    weir_rpc_client_close(other);
    weir_rpc_server_close(server);
}

static void test_links_show_and_take_what_the_files_have_by_now(void **state)
{
    (void)state;
    path servers = put("servers", "one"), clients = put("clients", "one");
    const weir_rpc_security asks = { .token = "one", .token_file = servers.text };
    const weir_rpc_security shows = { .token = "one", .token_file = clients.text };
    weir_frame_listener *listener;
    assert_int_equal(weir_frame_listener_open("127.0.0.1", &asks, &listener), WEIR_OK);
    replace("servers", "two");
    for (int i = 0; i < 2; i++) { /* with the token before, then with the next */
        weir_frame_link *near = NULL, *far = NULL;
        weir_frame frame;
        assert_int_equal(weir_frame_connect(weir_frame_listener_address(listener), "trainer",
                                            &shows, TIMEOUT_MS, &near),
                         WEIR_OK);
        while (far == NULL)
            assert_true(weir_frame_listener_accept(listener, &far) != WEIR_ERR_IO);
        assert_int_equal(weir_frame_send(near, 77, "x", 1, TIMEOUT_MS), WEIR_OK);
        assert_int_equal(weir_frame_receive(far, TIMEOUT_MS, &frame), WEIR_OK);
        assert_int_equal(frame.type, 77);
        weir_frame_link_close(near);
        weir_frame_link_close(far);
        replace("clients", "two");
    }
    weir_frame_listener_close(listener);
}

/* ---- the file that an embedder names ---------------------------------------------------------*/

static bool accepts(weir_security_kept *kept, const char *token)
{
    return weir_security_accepts(kept, token, strlen(token));
}

static void test_the_file_that_is_given_is_read_again_too(void **state)
{
    (void)state;
    path file = put("token", "one\n");
    const weir_security given = { .token_file = file.text };
    weir_security_kept server, client;
    assert_int_equal(weir_security_resolve(&given, &server), WEIR_OK);
    assert_int_equal(weir_security_resolve(&given, &client), WEIR_OK);
    assert_true(accepts(&server, client.security.token));
    replace("token", "two\n");
    assert_true(accepts(&server, "two"));
    assert_true(accepts(&server, "one")); /* for a while */
    assert_false(accepts(&server, "three"));
    assert_string_equal(weir_security_other_token(&client, "one"), "two");
    weir_security_free(&client);
    weir_security_free(&server);
}

static void test_the_file_that_is_given_counts_before_the_environments(void **state)
{
    (void)state;
    path file = put("token", "given"), other = put("other", "environment");
    const weir_security given = { .token_file = file.text }, nothing = { .token_file = "" };
    weir_security_kept kept;
    assert_int_equal(setenv("WEIR_TOKEN_FILE", other.text, 1), 0);
    assert_int_equal(weir_security_resolve(&given, &kept), WEIR_OK);
    assert_string_equal(kept.security.token, "given");
    weir_security_free(&kept);
    assert_int_equal(weir_security_resolve(&nothing, &kept), WEIR_OK);
    assert_null(kept.security.token);
    weir_security_free(&kept);
    assert_int_equal(unsetenv("WEIR_TOKEN_FILE"), 0);
}

static void test_a_token_beside_its_file_is_refused(void **state)
{
    (void)state;
    path file = put("token", "one");
    const weir_security both = { .token = "one", .token_file = file.text };
    const weir_security gone = { .token_file = "/nonexistent/token" };
    weir_security_kept kept;
    assert_int_equal(weir_security_resolve(&both, &kept), WEIR_ERR_INVALID);
    assert_non_null(strstr(weir_last_error(), "a token and a token_file are given: "));
    assert_int_equal(weir_security_resolve(&gone, &kept), WEIR_ERR_NOT_FOUND);
}

int main(void)
{
#define CASE(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        CASE(test_the_file_that_is_given_is_read_again_too),
        CASE(test_the_file_that_is_given_counts_before_the_environments),
        CASE(test_a_token_beside_its_file_is_refused),
        CASE(test_a_file_that_is_replaced_is_read_again),
        CASE(test_a_link_that_points_elsewhere_is_seen),
        CASE(test_a_file_that_will_not_do_changes_nothing),
        CASE(test_a_file_is_looked_at_once_per_second),
        CASE(test_the_token_before_is_good_for_a_while),
        CASE(test_a_server_takes_a_new_token_at_once_and_the_old_one_for_a_while),
        CASE(test_a_client_goes_on_when_either_file_is_replaced_first),
        CASE(test_links_show_and_take_what_the_files_have_by_now),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
