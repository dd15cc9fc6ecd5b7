/* SPDX-License-Identifier: Apache-2.0 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "base/alloc.h"
#include "rpc/rpc_tickets.h"

static weir_rpc_heap heap;
static weir_rpc_tickets tickets;

static int set_up(void **state)
{
    (void)state;
    weir_rpc_heap_init(&heap);
    tickets = (weir_rpc_tickets){ 0 };
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    weir_rpc_tickets_close(&tickets, &heap);
    weir_rpc_heap_close(&heap);
    return 0;
}

static void test_each_ticket_finds_its_owner(void **state)
{
    (void)state;
    enum { N = 3000 };
    static uint64_t ticket[N];
    static char owners[N];
    for (int i = 0; i < N; i++) {
        ticket[i] = weir_rpc_tickets_take(&tickets, &heap, &owners[i]);
        assert_true(ticket[i] != 0);
    }
    for (int i = 0; i < N; i++)
        assert_ptr_equal(weir_rpc_tickets_find(&tickets, ticket[i]), &owners[i]);
}

static void test_a_ticket_that_is_over_finds_nobody(void **state)
{
    (void)state;
    char owner;
    assert_null(weir_rpc_tickets_find(&tickets, 0));
    assert_null(weir_rpc_tickets_find(&tickets, UINT64_MAX));
    uint64_t before = 0;
    for (int i = 0; i < 1000; i++) { /* one place, a thousand times */
        uint64_t ticket = weir_rpc_tickets_take(&tickets, &heap, &owner);
        assert_ptr_equal(weir_rpc_tickets_find(&tickets, ticket), &owner);
        assert_null(weir_rpc_tickets_find(&tickets, before));
        weir_rpc_tickets_release(&tickets, ticket);
        assert_null(weir_rpc_tickets_find(&tickets, ticket));
        before = ticket;
    }
    assert_int_equal(tickets.n, 1);
}

static void test_there_are_as_many_as_may_be(void **state)
{
    (void)state;
    char owner;
    uint64_t last = 0;
    for (unsigned i = 0; i < WEIR_RPC_MAX_TICKETS; i++) {
        last = weir_rpc_tickets_take(&tickets, &heap, &owner);
        assert_true(last != 0);
    }
    assert_true(weir_rpc_tickets_take(&tickets, &heap, &owner) == 0);
    weir_rpc_tickets_release(&tickets, last);
    assert_true(weir_rpc_tickets_take(&tickets, &heap, &owner) != 0);
}

static void test_without_memory_there_is_none(void **state)
{
    (void)state;
    char owner;
    weir_alloc_fail_at(1);
    assert_true(weir_rpc_tickets_take(&tickets, &heap, &owner) == 0);
    weir_alloc_fail_at(0);
    assert_true(weir_rpc_tickets_take(&tickets, &heap, &owner) != 0);
}

int main(void)
{
#define CASE(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        CASE(test_each_ticket_finds_its_owner),
        CASE(test_a_ticket_that_is_over_finds_nobody),
        CASE(test_there_are_as_many_as_may_be),
        CASE(test_without_memory_there_is_none),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
