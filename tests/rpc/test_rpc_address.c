/* SPDX-License-Identifier: Apache-2.0 */
/* test_rpc_address.c - "HOST:PORT", listening and connecting. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "rpc/rpc_address.h"

static void test_addresses_parse_and_format(void **state)
{
    (void)state;
    static const char *const same[] = { "127.0.0.1:0", "[::1]:65535", "my-host.local:50051" };
    weir_rpc_address address;
    char text[WEIR_RPC_ADDRESS_TEXT];
    for (size_t i = 0; i < sizeof(same) / sizeof(same[0]); i++) {
        assert_int_equal(weir_rpc_address_parse(same[i], &address), WEIR_OK);
        weir_rpc_address_format(&address, text);
        assert_string_equal(text, same[i]);
    }
    assert_int_equal(weir_rpc_address_parse("[::1]:7", &address), WEIR_OK);
    assert_string_equal(address.host, "::1");
    assert_int_equal(address.port, 7);
}

static void test_bad_addresses_are_named(void **state)
{
    (void)state;
    static const char *const bad[][2] = {
        { "", "address '' is not HOST:PORT" },
        { "host", "address 'host' is not HOST:PORT" },
        { ":1", "address ':1' is not HOST:PORT" },
        { "[]:1", "address '[]:1' is not HOST:PORT" },
        { "host:", "address 'host:' has no port from 0 to 65535" },
        { "host:x", "address 'host:x' has no port from 0 to 65535" },
        { "host:-1", "address 'host:-1' has no port from 0 to 65535" },
        { "host:65536", "address 'host:65536' has no port from 0 to 65535" },
        { "host:000001", "address 'host:000001' has no port from 0 to 65535" },
        { "::1:5", "address '::1:5' needs brackets: [HOST]:PORT" },
    };
    weir_rpc_address address;
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        assert_int_equal(weir_rpc_address_parse(bad[i][0], &address), WEIR_ERR_INVALID);
        assert_string_equal(weir_last_error(), bad[i][1]);
    }
    char longest[400];
    memset(longest, 'h', sizeof(longest));
    strcpy(longest + sizeof(longest) - 3, ":1");
    assert_int_equal(weir_rpc_address_parse(longest, &address), WEIR_ERR_INVALID);
    assert_int_equal(weir_rpc_address_parse(NULL, &address), WEIR_ERR_INVALID);
}

static void test_who_listens_can_be_reached(void **state)
{
    (void)state;
    static const char *const hosts[] = { "127.0.0.1:0", "localhost:0", "[::1]:0" };
    for (size_t i = 0; i < sizeof(hosts) / sizeof(hosts[0]); i++) {
        weir_rpc_address address;
        int listening, fd;
        assert_int_equal(weir_rpc_address_parse(hosts[i], &address), WEIR_OK);
        if (weir_rpc_listen(&address, &listening) != WEIR_OK && i == 2) {
            print_message("no IPv6 here: %s\n", weir_last_error());
            continue;
        }
        assert_int_not_equal(address.port, 0);
        assert_int_equal(weir_rpc_connect(&address, weir_deadline_in(10000), -1, &fd), WEIR_OK);
        close(fd);
        close(listening);
        assert_int_equal(weir_rpc_connect(&address, weir_deadline_in(10000), -1, &fd),
                         WEIR_ERR_PEER_LOST);
        /* A name may have several addresses: then each says so. */
        const char *line = weir_last_error();
        assert_non_null(strstr(line, "cannot connect: Connection refused"));
        if (i != 1)
            assert_string_equal(line, "cannot connect: Connection refused");
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_addresses_parse_and_format),
        cmocka_unit_test(test_bad_addresses_are_named),
        cmocka_unit_test(test_who_listens_can_be_reached),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
