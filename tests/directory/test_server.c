/* SPDX-License-Identifier: Apache-2.0 */
/* test_server.c - opening and closing a directory. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "health.pb-c.h"
#include "rpc/rpc.h"
#include "weir/weir.h"

static void test_it_says_where_it_listens_and_how_it_is(void **state)
{
    (void)state;
    weir_directory *directory;
    weir_rpc_client *client;
    weir_arena arena;
    weir_arena_init(&arena, 0);
    assert_int_equal(weir_directory_open(NULL, &directory), WEIR_OK);
    assert_memory_equal(weir_directory_address(directory), "127.0.0.1:", 10);
    assert_int_equal(weir_rpc_client_open(weir_directory_address(directory), NULL, NULL, &client),
                     WEIR_OK);
    ModelExpress__Health__HealthRequest request = MODEL_EXPRESS__HEALTH__HEALTH_REQUEST__INIT;
    const ProtobufCMessage *answer;
    assert_int_equal(weir_rpc_call(client, &model_express__health__health_service__descriptor,
                                   "GetHealth", &request.base, 10000, &arena, &answer),
                     WEIR_OK);
    const ModelExpress__Health__HealthResponse *response = (const void *)answer;
    assert_string_equal(response->status, "ok");
    assert_string_equal(response->version, WEIR_VERSION);
    weir_rpc_client_close(client);
    weir_arena_close(&arena);
    weir_directory_close(directory);
    weir_directory_close(NULL);
}

static void test_a_port_in_use_is_named(void **state)
{
    (void)state;
    weir_directory *first, *second;
    assert_int_equal(weir_directory_open(NULL, &first), WEIR_OK);
    weir_directory_options options = WEIR_DIRECTORY_OPTIONS_INIT;
    options.listen = weir_directory_address(first);
    assert_int_equal(weir_directory_open(&options, &second), WEIR_ERR_IO);
    char expected[128];
    snprintf(expected, sizeof(expected), "cannot listen on %s: Address already in use",
             options.listen);
    assert_string_equal(weir_last_error(), expected);
    weir_directory_close(first);
}

static void test_options_of_another_age(void **state)
{
    (void)state;
    struct {
        weir_directory_options known;
        uint64_t later;
    } options = { WEIR_DIRECTORY_OPTIONS_INIT, 0 };
    weir_directory *directory;
    options.known.size = sizeof(options);
    assert_int_equal(weir_directory_open(&options.known, &directory), WEIR_OK);
    weir_directory_close(directory);
    options.later = 1;
    assert_int_equal(weir_directory_open(&options.known, &directory), WEIR_ERR_INVALID);
    options.known.size = 0;
    assert_int_equal(weir_directory_open(&options.known, &directory), WEIR_ERR_INVALID);
    assert_string_equal(weir_last_error(),
                        "weir_directory_options: size is 0, set it with its _INIT macro");
}

static void test_failed_allocations_leave_nothing_open(void **state)
{
    (void)state;
    for (uint64_t n = 1; n <= 4; n++) {
        weir_directory *directory = NULL;
        weir_alloc_fail_at(n);
        weir_status status = weir_directory_open(NULL, &directory);
        weir_alloc_fail_at(0);
        assert_int_equal(status, WEIR_ERR_NO_MEMORY);
        assert_null(directory);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_it_says_where_it_listens_and_how_it_is),
        cmocka_unit_test(test_a_port_in_use_is_named),
        cmocka_unit_test(test_options_of_another_age),
        cmocka_unit_test(test_failed_allocations_leave_nothing_open),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
