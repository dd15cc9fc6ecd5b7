/* SPDX-License-Identifier: Apache-2.0 */
/* test_waits.c - who waits is found by ticket, looked at when its model changes, and let go in
 * time. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "directory/waits.h"

#define MODELS 8

/* What `look` saw, and what it is to do about it. */
typedef struct looks {
    weir_waits *waits;
    uint64_t revisions[MODELS];
    uint64_t tickets[4096];
    size_t n;
    uint64_t drop, drop_also; /* tickets that are dropped when one of them is looked at */
} looks;

static uint64_t revision_of(void *context, const char *model)
{
    const looks *seen = context;
    return seen->revisions[model[0] - '0'];
}

static void look(void *context, weir_wait *wait)
{
    looks *seen = context;
    uint64_t ticket = wait->ticket;
    seen->tickets[seen->n++] = ticket;
    if (ticket != seen->drop)
        return;
    weir_waits_drop(seen->waits, wait);
    if (seen->drop_also != 0)
        weir_waits_drop(seen->waits, weir_waits_find(seen->waits, seen->drop_also));
}

static weir_wait *park(weir_waits *waits, uint64_t ticket, const char *model, uint64_t due_ns)
{
    const weir_wait request = {
        .ticket = ticket, .due_ns = due_ns, .bytes = (const unsigned char *)"request", .n_bytes = 7
    };
    weir_wait *wait = NULL;
    assert_int_equal(weir_waits_park(waits, &request, model, &wait), WEIR_OK);
    return wait;
}

static void test_a_wait_is_found_until_it_is_dropped(void **state)
{
    (void)state;
    weir_waits waits;
    weir_waits_init(&waits);
    assert_null(weir_waits_find(&waits, 1));
    weir_wait *wait = park(&waits, 1, "0", UINT64_MAX);
    weir_wait *twin = park(&waits, 1 + 4096, NULL, UINT64_MAX); /* of the same bucket */
    assert_ptr_equal(weir_waits_find(&waits, 1), wait);
    assert_ptr_equal(weir_waits_find(&waits, 1 + 4096), twin);
    assert_memory_equal(wait->bytes, "request", 7);
    assert_int_equal(waits.n_waits, 2);
    assert_int_equal(waits.n_bytes, 14);
    weir_waits_drop(&waits, wait);
    assert_null(weir_waits_find(&waits, 1));
    assert_ptr_equal(weir_waits_find(&waits, 1 + 4096), twin);
    weir_waits_close(&waits);
}

static void test_a_wait_can_be_made_shorter_and_never_longer(void **state)
{
    (void)state;
    weir_waits waits;
    weir_waits_init(&waits);
    weir_wait *early = park(&waits, 1, "0", 10), *late = park(&waits, 2, "0", 20);
    weir_wait *endless = park(&waits, 3, "0", UINT64_MAX);
    weir_waits_hasten(&waits, early, 15);
    assert_int_equal(early->due_ns, 10);
    weir_waits_hasten(&waits, late, 5);
    weir_waits_hasten(&waits, endless, 7);
    assert_ptr_equal(weir_waits_take_due(&waits, 10), late);
    assert_ptr_equal(weir_waits_take_due(&waits, 10), endless);
    assert_ptr_equal(weir_waits_take_due(&waits, 10), early);
    assert_null(weir_waits_take_due(&waits, UINT64_MAX - 1));
    weir_waits_close(&waits);
}

static void test_only_models_that_changed_are_looked_at_oldest_first(void **state)
{
    (void)state;
    weir_waits waits;
    looks seen = { .waits = &waits, .revisions = { 5, 5 } };
    weir_waits_init(&waits);
    park(&waits, 1, "0", UINT64_MAX);
    park(&waits, 2, "1", UINT64_MAX);
    park(&waits, 3, "0", UINT64_MAX);
    weir_waits_look(&waits, revision_of, look, &seen);
    assert_int_equal(seen.n, 3); /* never looked at before */
    seen.n = 0;
    weir_waits_look(&waits, revision_of, look, &seen);
    assert_int_equal(seen.n, 0);
    seen.revisions[0]++;
    weir_waits_look(&waits, revision_of, look, &seen);
    assert_int_equal(seen.n, 2);
    assert_int_equal(seen.tickets[0], 1);
    assert_int_equal(seen.tickets[1], 3);
    weir_waits_close(&waits);
}

static void test_waits_may_be_dropped_from_a_look(void **state)
{
    (void)state;
    weir_waits waits;
    looks seen = { .waits = &waits, .revisions = { 1, 1 }, .drop = 1, .drop_also = 2 };
    weir_waits_init(&waits);
    for (uint64_t ticket = 1; ticket <= 3; ticket++)
        park(&waits, ticket, "0", ticket);
    weir_waits_look(&waits, revision_of, look, &seen);
    assert_int_equal(seen.n, 2); /* the second was gone before its turn */
    assert_int_equal(seen.tickets[1], 3);
    assert_int_equal(waits.n_waits, 1);
    assert_int_equal(weir_waits_next_due(&waits), 3);
    weir_waits_close(&waits);
}

static void test_times_come_up_in_their_order_and_once(void **state)
{
    (void)state;
    weir_waits waits;
    weir_waits_init(&waits);
    assert_true(weir_waits_next_due(&waits) == UINT64_MAX);
    for (uint64_t i = 0; i < 1000; i++)
        park(&waits, i + 1, "0", i * 7919 % 1000 + 1);
    for (uint64_t ticket = 1; ticket <= 1000; ticket += 3)
        weir_waits_drop(&waits, weir_waits_find(&waits, ticket));
    uint64_t last = 0;
    size_t n = 0;
    for (weir_wait *wait; (wait = weir_waits_take_due(&waits, 500)) != NULL; n++) {
        assert_true(wait->due_ns >= last && wait->due_ns <= 500);
        assert_int_not_equal(wait->ticket % 3, 1);
        last = wait->due_ns;
    }
    assert_int_equal(n + waits.n_heap, 666);
    assert_true(weir_waits_next_due(&waits) > 500);
    assert_int_equal(waits.n_waits, 666); /* given out is not dropped */
    weir_waits_close(&waits);
}

static void test_there_is_a_bound(void **state)
{
    (void)state;
    weir_waits waits;
    weir_waits_init(&waits);
    for (uint64_t i = 0; i < WEIR_WAITS_MOST; i++)
        park(&waits, i + 1, "0", UINT64_MAX);
    const weir_wait request = { .ticket = 1 << 20, .due_ns = UINT64_MAX };
    weir_wait *wait;
    assert_int_equal(weir_waits_park(&waits, &request, "0", &wait), WEIR_ERR_NO_MEMORY);
    weir_waits_drop(&waits, weir_waits_find(&waits, 1));
    assert_int_equal(weir_waits_park(&waits, &request, "0", &wait), WEIR_OK);
    weir_waits_close(&waits);
    weir_waits_init(&waits);
    const weir_wait large = { .ticket = 1, .n_bytes = WEIR_WAITS_MOST_BYTES + 1 };
    assert_int_equal(weir_waits_park(&waits, &large, "0", &wait), WEIR_ERR_NO_MEMORY);
    weir_waits_close(&waits);
}

static void test_failed_allocations_leave_nothing_parked(void **state)
{
    (void)state;
    for (uint64_t n = 1; n < 4; n++) {
        weir_waits waits;
        weir_wait *wait;
        const weir_wait request = { .ticket = 1, .due_ns = 1 };
        weir_waits_init(&waits);
        weir_alloc_fail_at(n);
        weir_status status = weir_waits_park(&waits, &request, "0", &wait);
        weir_alloc_fail_at(0);
        assert_true(status == WEIR_ERR_NO_MEMORY || n > 1);
        assert_int_equal(waits.n_waits, status == WEIR_OK);
        weir_waits_close(&waits);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_wait_is_found_until_it_is_dropped),
        cmocka_unit_test(test_a_wait_can_be_made_shorter_and_never_longer),
        cmocka_unit_test(test_only_models_that_changed_are_looked_at_oldest_first),
        cmocka_unit_test(test_waits_may_be_dropped_from_a_look),
        cmocka_unit_test(test_times_come_up_in_their_order_and_once),
        cmocka_unit_test(test_there_is_a_bound),
        cmocka_unit_test(test_failed_allocations_leave_nothing_parked),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
