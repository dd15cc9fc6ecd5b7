/* SPDX-License-Identifier: Apache-2.0 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdlib.h>

#include "base/alloc.h"
#include "rpc/rpc_timers.h"

#define N 500

typedef struct timed {
    weir_rpc_heap heap;
    weir_rpc_timers timers;
    weir_rpc_timer timer[N];
} timed;

static int set_up(void **state)
{
    timed *all = calloc(1, sizeof(*all));
    *state = all;
    if (all == NULL)
        return 1;
    weir_rpc_heap_init(&all->heap);
    return !weir_rpc_timers_reserve(&all->timers, &all->heap, N);
}

static int tear_down(void **state)
{
    timed *all = *state;
    weir_rpc_timers_close(&all->timers, &all->heap);
    weir_rpc_heap_close(&all->heap);
    free(all);
    return 0;
}

static void test_the_earliest_is_due_first(void **state)
{
    timed *all = *state;
    unsigned seed = 3;
    for (int i = 0; i < N; i++)
        weir_rpc_timers_set(&all->timers, &all->timer[i], (uint64_t)(rand_r(&seed) % 1000));
    for (int i = 0; i < N; i += 2) /* half of them to another time */
        weir_rpc_timers_set(&all->timers, &all->timer[i], (uint64_t)(rand_r(&seed) % 1000));
    uint64_t before = 0;
    for (int i = 0; i < N; i++) {
        weir_rpc_timer *timer = weir_rpc_timers_due(&all->timers, 1000);
        assert_non_null(timer);
        assert_true(timer->due_ns >= before);
        before = timer->due_ns;
        weir_rpc_timers_set(&all->timers, timer, WEIR_RPC_NEVER);
    }
    assert_null(weir_rpc_timers_due(&all->timers, UINT64_MAX - 1));
}

static void test_any_of_them_leaves(void **state)
{
    timed *all = *state;
    unsigned seed = 5;
    for (int i = 0; i < N; i++)
        weir_rpc_timers_set(&all->timers, &all->timer[i], (uint64_t)(rand_r(&seed) % 1000));
    for (int i = 0; i < N; i++) {
        uint64_t least = WEIR_RPC_NEVER;
        for (int k = i; k < N; k++)
            least = all->timer[k].due_ns < least ? all->timer[k].due_ns : least;
        assert_true(weir_rpc_timers_next_ns(&all->timers) == least);
        weir_rpc_timers_set(&all->timers, &all->timer[i], WEIR_RPC_NEVER);
        weir_rpc_timers_set(&all->timers, &all->timer[i], WEIR_RPC_NEVER); /* out already */
    }
    assert_true(weir_rpc_timers_next_ns(&all->timers) == WEIR_RPC_NEVER);
}

static void test_nothing_is_due_before_its_time(void **state)
{
    timed *all = *state;
    weir_rpc_timers_set(&all->timers, &all->timer[0], 100);
    assert_null(weir_rpc_timers_due(&all->timers, 99));
    assert_ptr_equal(weir_rpc_timers_due(&all->timers, 100), &all->timer[0]);
}

static void test_without_memory_there_is_no_room(void **state)
{
    timed *all = *state;
    weir_alloc_fail_at(1);
    assert_false(weir_rpc_timers_reserve(&all->timers, &all->heap, 1u << 20));
    weir_alloc_fail_at(0);
    assert_true(weir_rpc_timers_reserve(&all->timers, &all->heap, N));
}

int main(void)
{
#define CASE(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        CASE(test_the_earliest_is_due_first),
        CASE(test_any_of_them_leaves),
        CASE(test_nothing_is_due_before_its_time),
        CASE(test_without_memory_there_is_no_room),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
