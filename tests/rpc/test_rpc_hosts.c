/* SPDX-License-Identifier: Apache-2.0 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <arpa/inet.h>
#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "rpc/rpc_hosts.h"

static weir_rpc_heap heap;
static weir_rpc_hosts hosts;

static int set_up(void **state)
{
    (void)state;
    weir_rpc_heap_init(&heap);
    memset(&hosts, 0, sizeof(hosts));
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    weir_rpc_heap_close(&heap);
    return 0;
}

static weir_rpc_host *enter(const char *text, unsigned max_connections)
{
    struct sockaddr_storage address = { 0 };
    struct sockaddr_in *v4 = (void *)&address;
    struct sockaddr_in6 *v6 = (void *)&address;
    if (inet_pton(AF_INET, text, &v4->sin_addr) == 1)
        address.ss_family = AF_INET;
    else if (inet_pton(AF_INET6, text, &v6->sin6_addr) == 1)
        address.ss_family = AF_INET6;
    return weir_rpc_hosts_enter(&hosts, &heap, &address, max_connections);
}

static void leave(weir_rpc_host *host)
{
    weir_rpc_hosts_leave(&hosts, &heap, host);
}

static void test_a_host_has_no_more_than_it_may(void **state)
{
    (void)state;
    weir_rpc_host *first = enter("10.0.0.1", 2);
    assert_non_null(first);
    assert_ptr_equal(enter("10.0.0.1", 2), first);
    assert_null(enter("10.0.0.1", 2));
    assert_ptr_equal(enter("::ffff:10.0.0.1", 3), first); /* one host, however it comes */
    weir_rpc_host *second = enter("10.0.0.2", 2);
    assert_non_null(second);
    assert_ptr_not_equal(second, first);
    leave(first);
    leave(first);
    assert_non_null(enter("10.0.0.1", 2));
    assert_null(enter("10.0.0.1", 2));
}

static void test_loopback_has_no_bound(void **state)
{
    (void)state;
    for (int i = 0; i < 100; i++) {
        assert_non_null(enter("127.0.0.1", 2));
        assert_non_null(enter("127.3.2.1", 2));
        assert_non_null(enter("::1", 2));
        assert_non_null(enter("::ffff:127.0.0.1", 2));
    }
}

static void test_hosts_that_left_are_forgotten(void **state)
{
    (void)state;
    enum { N = 5000 };
    static weir_rpc_host *all[N];
    for (int i = 0; i < N; i++) {
        char text[32];
        snprintf(text, sizeof(text), "2001:db8::%x", i + 1);
        all[i] = enter(text, 1);
        assert_non_null(all[i]);
    }
    for (int i = 0; i < N; i++)
        leave(all[(i * 7) % N]);
    for (unsigned i = 0; i < WEIR_RPC_HOST_BUCKETS; i++)
        assert_null(hosts.buckets[i]);
}

static void test_without_memory_nobody_enters(void **state)
{
    (void)state;
    weir_alloc_fail_at(1);
    assert_null(enter("10.0.0.1", 2));
    weir_alloc_fail_at(0);
    assert_non_null(enter("10.0.0.1", 2));
}

int main(void)
{
#define CASE(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        CASE(test_a_host_has_no_more_than_it_may),
        CASE(test_loopback_has_no_bound),
        CASE(test_hosts_that_left_are_forgotten),
        CASE(test_without_memory_nobody_enters),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
