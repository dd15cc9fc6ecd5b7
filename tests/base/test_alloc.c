/* SPDX-License-Identifier: Apache-2.0 */
/* The counted heap and its planned failures. */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <string.h>

#include "base/alloc.h"
#include "weir/status.h"

static void blocks_are_usable_aligned_and_counted(void **state)
{
    (void)state;
    uint64_t before = weir_alloc_count();
    char *block = weir_alloc(3);
    unsigned char *zeroed = weir_alloc_zeroed(4, 8);
    void *aligned = weir_alloc_aligned(256, 10);
    char *text = weir_strdup("abc");
    char *made = weir_format("%s-%d", text, 7);
    assert_int_equal(weir_alloc_count() - before, 5);
    memcpy(block, "xy", 3);
    block = weir_realloc(block, 100);
    assert_string_equal(block, "xy");
    for (int i = 0; i < 32; i++)
        assert_int_equal(zeroed[i], 0);
    assert_int_equal((uintptr_t)aligned % 256, 0);
    assert_string_equal(text, "abc");
    assert_string_equal(made, "abc-7");
    weir_free(block);
    weir_free(zeroed);
    weir_free(aligned);
    weir_free(text);
    weir_free(made);
}

static void no_bytes_are_a_valid_block(void **state)
{
    (void)state;
    void *blocks[] = { weir_alloc(0), weir_alloc_zeroed(0, 8), weir_alloc_aligned(64, 0),
                       weir_realloc(NULL, 0) };
    for (size_t i = 0; i < 4; i++) {
        assert_non_null(blocks[i]);
        weir_free(blocks[i]);
    }
    weir_free(NULL);
    assert_null(weir_strdup(NULL));
}

static void the_nth_allocation_fails_and_only_that(void **state)
{
    (void)state;
    weir_alloc_fail_at(3);
    for (int i = 1; i <= 6; i++) {
        void *block = weir_alloc(8);
        assert_true((block == NULL) == (i == 3));
        if (block == NULL)
            assert_string_equal(weir_last_error(), "out of memory: 8 bytes wanted");
        weir_free(block);
    }
    weir_alloc_fail_at(0);
}

static void every_kind_can_fail(void **state)
{
    (void)state;
    char *old = weir_strdup("old");
    weir_alloc_fail_at(1);
    assert_null(weir_alloc_zeroed(1, 1));
    weir_alloc_fail_at(1);
    assert_null(weir_alloc_aligned(64, 1));
    weir_alloc_fail_at(1);
    assert_null(weir_strdup("x"));
    weir_alloc_fail_at(1);
    assert_null(weir_format("x"));
    weir_alloc_fail_at(1);
    assert_null(weir_realloc(old, 100));
    weir_alloc_fail_at(0);
    assert_string_equal(old, "old"); /* still there after the failure */
    weir_free(old);
}

static void what_cannot_be_had_is_refused(void **state)
{
    (void)state;
    volatile size_t half = SIZE_MAX / 2 + 1;
    assert_null(weir_alloc_zeroed(half, 2));
    assert_non_null(strstr(weir_last_error(), "out of memory"));
}

static void *allocate_uncounted(void *unused)
{
    (void)unused;
    weir_alloc_uncount_thread();
    weir_free(weir_alloc(16));
    return NULL;
}

static void a_thread_can_be_left_out_of_the_count(void **state)
{
    pthread_t thread;
    uint64_t before = weir_alloc_count();
    (void)state;
    assert_int_equal(pthread_create(&thread, NULL, allocate_uncounted, NULL), 0);
    assert_int_equal(pthread_join(thread, NULL), 0);
    assert_int_equal(weir_alloc_count(), before);
    weir_free(weir_alloc(16));
    assert_int_equal(weir_alloc_count(), before + 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_thread_can_be_left_out_of_the_count),
        cmocka_unit_test(blocks_are_usable_aligned_and_counted),
        cmocka_unit_test(no_bytes_are_a_valid_block),
        cmocka_unit_test(the_nth_allocation_fails_and_only_that),
        cmocka_unit_test(every_kind_can_fail),
        cmocka_unit_test(what_cannot_be_had_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
