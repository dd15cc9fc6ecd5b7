/* SPDX-License-Identifier: Apache-2.0 */
/* test_rpc_heap.c - blocks do not overlap, come back, and are bounded. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "rpc/rpc_heap.h"

static void test_blocks_keep_their_bytes(void **state)
{
    (void)state;
    enum { N = 500 };
    weir_rpc_heap heap;
    unsigned char *blocks[N] = { NULL };
    size_t sizes[N] = { 0 };
    unsigned seed = 3;
    weir_rpc_heap_init(&heap);
    for (int round = 0; round < 20000; round++) {
        int i = rand_r(&seed) % N;
        for (size_t k = 0; k < sizes[i]; k++)
            assert_int_equal(blocks[i][k], (unsigned char)i);
        size_t n = (size_t)rand_r(&seed) % (round % 50 ? 300 : 20000);
        if (round % 3 == 0) {
            weir_rpc_heap_free(&heap, blocks[i]);
            blocks[i] = NULL, sizes[i] = 0;
            continue;
        }
        unsigned char *block = weir_rpc_heap_realloc(&heap, blocks[i], n);
        assert_non_null(block);
        assert_int_equal((uintptr_t)block % 16, 0);
        for (size_t k = 0; k < sizes[i] && k < n; k++)
            assert_int_equal(block[k], (unsigned char)i);
        memset(block, i, n);
        blocks[i] = block, sizes[i] = n;
    }
    for (int i = 0; i < N; i++)
        weir_rpc_heap_free(&heap, blocks[i]);
    weir_rpc_heap_close(&heap);
}

static void test_freed_blocks_are_used_again(void **state)
{
    (void)state;
    weir_rpc_heap heap;
    weir_rpc_heap_init(&heap);
    static const size_t sizes[] = { 0, 1, 32, 33, 4096, 4097, 100000, (size_t)1 << 20 };
    uint64_t before = 0;
    for (int round = 0; round < 3; round++) {
        if (round == 1)
            before = weir_alloc_count();
        for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++)
            weir_rpc_heap_free(&heap, weir_rpc_heap_alloc(&heap, sizes[i]));
    }
    assert_int_equal(weir_alloc_count(), before);
    weir_rpc_heap_close(&heap);
}

static void test_what_is_kept_is_bounded(void **state)
{
    (void)state;
    weir_rpc_heap heap;
    void *blocks[10];
    weir_rpc_heap_init(&heap);
    for (int i = 0; i < 10; i++)
        blocks[i] = weir_rpc_heap_alloc(&heap, (size_t)16 << 20);
    for (int i = 0; i < 10; i++)
        weir_rpc_heap_free(&heap, blocks[i]);
    assert_int_equal(heap.kept_bytes, (size_t)64 << 20);
    weir_rpc_heap_close(&heap);
    assert_int_equal(heap.kept_bytes, 0);
}

static void test_failure_leaves_the_old_block(void **state)
{
    (void)state;
    weir_rpc_heap heap;
    weir_rpc_heap_init(&heap);
    char *block = weir_rpc_heap_alloc(&heap, 8);
    strcpy(block, "kept");
    weir_alloc_fail_at(1);
    assert_null(weir_rpc_heap_realloc(&heap, block, 100000));
    weir_alloc_fail_at(0);
    assert_string_equal(block, "kept");
    assert_null(weir_rpc_heap_alloc(&heap, ((size_t)128 << 20) + 1));
    assert_null(weir_rpc_heap_alloc(&heap, SIZE_MAX));
    weir_rpc_heap_free(&heap, block);
    weir_rpc_heap_free(&heap, NULL);
    weir_rpc_heap_close(&heap);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_blocks_keep_their_bytes),
        cmocka_unit_test(test_freed_blocks_are_used_again),
        cmocka_unit_test(test_what_is_kept_is_bounded),
        cmocka_unit_test(test_failure_leaves_the_old_block),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
