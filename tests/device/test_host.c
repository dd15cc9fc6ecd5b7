/* SPDX-License-Identifier: Apache-2.0 */
/* test_host.c - host memory: what is allocated, copied and swapped, at ragged sizes and edges. */
#include "device/host.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "base/alloc.h"

#define GUARD 64u

static const size_t sizes[] = { 0,
                                1,
                                63,
                                64,
                                65,
                                4095,
                                4096,
                                16384,
                                1u << 20,
                                (1u << 20) + 1,
                                (4u << 20) - 3,
                                4u << 20,
                                (9u << 20) + 77 };

static uint8_t pattern(size_t i, unsigned seed)
{
    return (uint8_t)((i * 2654435761u + seed * 40503u) >> 11);
}

static void fill(uint8_t *data, size_t n_bytes, unsigned seed)
{
    for (size_t i = 0; i < n_bytes; i++)
        data[i] = pattern(i, seed);
}

static void assert_filled(const uint8_t *data, size_t n_bytes, unsigned seed)
{
    for (size_t i = 0; i < n_bytes; i++) {
        if (data[i] != pattern(i, seed))
            fail_msg("byte %zu of %zu is %u", i, n_bytes, data[i]);
    }
}

static weir_pool *open_pool(void)
{
    weir_pool *pool = NULL;
    assert_int_equal(weir_pool_open(3, &pool), WEIR_OK);
    return pool;
}

static void allocated_memory_is_zeroed_and_aligned(void **state)
{
    (void)state;
    const size_t n_bytes[] = { 0, 1, 4097, 2u << 20, (5u << 20) + 1 };
    for (size_t i = 0; i < sizeof(n_bytes) / sizeof(n_bytes[0]); i++) {
        void *data = NULL;
        assert_int_equal(weir_host_allocate(n_bytes[i], &data), WEIR_OK);
        assert_non_null(data);
        assert_int_equal((uintptr_t)data % (n_bytes[i] >= (2u << 20) ? 2u << 20 : 4096u), 0);
        for (size_t at = 0; at < n_bytes[i]; at++)
            assert_int_equal(((uint8_t *)data)[at], 0);
        memset(data, 0xff, n_bytes[i]);
        weir_host_free(data, n_bytes[i]);
    }
    weir_host_free(NULL, 17);
}

static void allocation_is_counted_and_can_fail(void **state)
{
    (void)state;
    void *data = NULL;
    uint64_t before = weir_alloc_count();
    assert_int_equal(weir_host_allocate(100, &data), WEIR_OK);
    assert_int_equal(weir_alloc_count(), before + 1);
    weir_host_free(data, 100);
    void *untouched = &before;
    weir_alloc_fail_at(1);
    assert_int_equal(weir_host_allocate(100, &untouched), WEIR_ERR_NO_MEMORY);
    assert_int_equal(weir_host_allocate(SIZE_MAX, &untouched), WEIR_ERR_NO_MEMORY);
    assert_int_equal(weir_host_allocate(SIZE_MAX / 4, &untouched), WEIR_ERR_NO_MEMORY);
    assert_non_null(strstr(weir_last_error(), "out of memory"));
    assert_ptr_equal(untouched, &before);
}

static void copy_is_exact_and_stays_in_bounds(void **state)
{
    (void)state;
    weir_pool *pool = open_pool();
    for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
        for (size_t shift = 0; shift < 20; shift += 19) {
            size_t room = sizes[i] + shift + 2 * GUARD;
            void *src = NULL, *dst = NULL;
            assert_int_equal(weir_host_allocate(room, &src), WEIR_OK);
            assert_int_equal(weir_host_allocate(room, &dst), WEIR_OK);
            fill(src, room, 1);
            for (int parallel = 0; parallel < 2; parallel++) {
                memset(dst, 0xcd, room);
                uint8_t *to = (uint8_t *)dst + GUARD + shift;
                weir_host_copy(parallel ? pool : NULL, to, src, sizes[i]);
                assert_filled(to, sizes[i], 1);
                for (size_t at = 0; at < GUARD; at++) {
                    assert_int_equal(to[-1 - (ptrdiff_t)at], 0xcd);
                    assert_int_equal(to[sizes[i] + at], 0xcd);
                }
            }
            weir_host_free(src, room);
            weir_host_free(dst, room);
        }
    }
    weir_pool_close(pool);
}

static void swap_exchanges_and_swaps_back(void **state)
{
    (void)state;
    weir_pool *pool = open_pool();
    for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
        size_t room = sizes[i] + GUARD;
        void *a = NULL, *b = NULL;
        assert_int_equal(weir_host_allocate(room, &a), WEIR_OK);
        assert_int_equal(weir_host_allocate(room, &b), WEIR_OK);
        fill(a, room, 1);
        fill(b, room, 2);
        uint64_t allocations = weir_alloc_count();
        weir_host_swap(pool, a, b, sizes[i]);
        assert_filled(a, sizes[i], 2);
        assert_filled(b, sizes[i], 1);
        assert_int_equal(((uint8_t *)a)[sizes[i]], pattern(sizes[i], 1));
        assert_int_equal(((uint8_t *)b)[sizes[i]], pattern(sizes[i], 2));
        weir_host_swap(NULL, a, b, sizes[i]);
        assert_filled(a, room, 1);
        assert_filled(b, room, 2);
        assert_int_equal(weir_alloc_count(), allocations);
        weir_host_free(a, room);
        weir_host_free(b, room);
    }
    weir_pool_close(pool);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(allocated_memory_is_zeroed_and_aligned),
        cmocka_unit_test(allocation_is_counted_and_can_fail),
        cmocka_unit_test(copy_is_exact_and_stays_in_bounds),
        cmocka_unit_test(swap_exchanges_and_swaps_back),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
