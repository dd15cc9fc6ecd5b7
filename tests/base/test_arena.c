/* SPDX-License-Identifier: Apache-2.0 */
/* Many pieces, one end, a cap, and no allocation the second time. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "base/arena.h"
#include "weir/status.h"

static void pieces_are_aligned_and_apart(void **state)
{
    (void)state;
    enum { N = 500 };
    weir_arena arena;
    unsigned char *pieces[N];
    weir_arena_init(&arena, 0);
    for (int i = 0; i < N; i++) {
        pieces[i] = weir_arena_alloc(&arena, (size_t)i);
        assert_int_equal((uintptr_t)pieces[i] % 16, 0);
        memset(pieces[i], i % 256, (size_t)i);
    }
    for (int i = 0; i < N; i++) {
        for (int k = 0; k < i; k++)
            assert_int_equal(pieces[i][k], i % 256);
    }
    assert_int_equal(arena.used_bytes, N * (N - 1) / 2);
    weir_arena_close(&arena);
    assert_null(arena.first);
}

static void a_piece_larger_than_a_block_fits(void **state)
{
    (void)state;
    weir_arena arena;
    weir_arena_init(&arena, 0);
    char *small = weir_arena_strdup(&arena, "small");
    unsigned char *large = weir_arena_zeroed(&arena, 1000, 1000);
    assert_string_equal(small, "small");
    for (size_t i = 0; i < 1000000; i += 999)
        assert_int_equal(large[i], 0);
    assert_string_equal(weir_arena_format(&arena, "%d-%s", 7, "x"), "7-x");
    weir_arena_close(&arena);
}

static void filling_it_again_allocates_nothing(void **state)
{
    (void)state;
    weir_arena arena;
    weir_arena_init(&arena, 0);
    uint64_t after_first = 0;
    for (int round = 0; round < 3; round++) {
        for (size_t i = 0; i < 200; i++)
            assert_non_null(weir_arena_alloc(&arena, i * 13 % 3000));
        if (round == 0)
            after_first = weir_alloc_count();
        weir_arena_reset(&arena);
        assert_int_equal(arena.used_bytes, 0);
    }
    assert_int_equal(weir_alloc_count(), after_first);
    weir_arena_close(&arena);
}

static void the_cap_holds(void **state)
{
    (void)state;
    weir_arena arena;
    weir_arena_init(&arena, 100);
    assert_non_null(weir_arena_alloc(&arena, 60));
    assert_null(weir_arena_alloc(&arena, 41));
    assert_non_null(strstr(weir_last_error(), "100 bytes"));
    assert_null(weir_arena_alloc(&arena, SIZE_MAX));
    assert_non_null(weir_arena_alloc(&arena, 40));
    weir_arena_reset(&arena);
    assert_non_null(weir_arena_alloc(&arena, 100));
    weir_arena_close(&arena);
}

static void sizes_that_overflow_are_refused(void **state)
{
    (void)state;
    weir_arena arena;
    weir_arena_init(&arena, 0);
    assert_null(weir_arena_zeroed(&arena, SIZE_MAX / 2, 4));
    assert_null(weir_arena_alloc(&arena, SIZE_MAX));
    weir_arena_close(&arena);
}

static void an_allocation_may_fail(void **state)
{
    (void)state;
    weir_arena arena;
    weir_arena_init(&arena, 0);
    weir_alloc_fail_at(1);
    assert_null(weir_arena_alloc(&arena, 8));
    weir_alloc_fail_at(1);
    assert_null(weir_arena_zeroed(&arena, 1, 8));
    weir_alloc_fail_at(1);
    assert_null(weir_arena_strdup(&arena, "x"));
    weir_alloc_fail_at(1);
    assert_null(weir_arena_format(&arena, "x"));
    weir_alloc_fail_at(0);
    assert_non_null(weir_arena_alloc(&arena, 8)); /* and the next is good again */
    weir_arena_close(&arena);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(pieces_are_aligned_and_apart),
        cmocka_unit_test(a_piece_larger_than_a_block_fits),
        cmocka_unit_test(filling_it_again_allocates_nothing),
        cmocka_unit_test(the_cap_holds),
        cmocka_unit_test(sizes_that_overflow_are_refused),
        cmocka_unit_test(an_allocation_may_fail),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
