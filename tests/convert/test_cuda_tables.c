/* SPDX-License-Identifier: Apache-2.0 */
/* test_cuda_tables.c - a batch's memory, on a stand-in for CUDA that counts what is freed. */
#include "convert/cuda/cuda_tables.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/error.h"

static size_t n_taken, n_freed, n_copied;

static int take(size_t n_bytes, void **out)
{
    *out = calloc(1, n_bytes);
    n_taken++;
    return *out != NULL ? 0 : 2;
}

static int give(void *data)
{
    n_freed += data != NULL;
    free(data);
    return 0;
}

static int copy(void *dst, const void *src, size_t n_bytes, void *stream)
{
    (void)stream;
    memcpy(dst, src, n_bytes);
    n_copied++;
    return 0;
}

static int fill(void *dst, int byte, size_t n_bytes, void *stream)
{
    (void)stream;
    memset(dst, byte, n_bytes);
    return 0;
}

static int ended(void *stream)
{
    (void)stream;
    return 0;
}

static const weir_cuda_runtime runtime = { .size = sizeof(weir_cuda_runtime),
                                           .allocate = take,
                                           .free = give,
                                           .allocate_pinned = take,
                                           .free_pinned = give,
                                           .copy = copy,
                                           .fill = fill,
                                           .stream_test = ended };

static int clear(void **state)
{
    (void)state;
    n_taken = n_freed = n_copied = 0;
    return 0;
}

static void memory_only_grows_and_is_freed_once(void **state)
{
    (void)state;
    weir_cuda_tables tables = { .cuda = &runtime, .n_counters = 2 };
    assert_int_equal(weir_cuda_tables_room(&tables, 100, 3), WEIR_OK);
    assert_int_equal(n_taken, 5);
    assert_int_equal(weir_cuda_tables_room(&tables, 50, 2), WEIR_OK);
    assert_int_equal(n_taken, 5);
    assert_int_equal(weir_cuda_tables_room(&tables, 200, 3), WEIR_OK);
    assert_int_equal(n_taken, 8);
    weir_cuda_tables_settle(&tables, NULL);
    assert_false(tables.stuck);
    weir_cuda_tables_drop(&tables);
    assert_int_equal(n_freed, n_taken);
}

static void an_image_that_the_gpu_has_is_not_sent_again(void **state)
{
    (void)state;
    weir_cuda_tables tables = { .cuda = &runtime };
    assert_int_equal(weir_cuda_tables_room(&tables, 64, 1), WEIR_OK);
    memset(tables.built, 7, 64);
    assert_false(weir_cuda_tables_are_sent(&tables, 64));
    assert_int_equal(weir_cuda_tables_send(&tables, 64, NULL), WEIR_OK);
    memset(tables.built, 7, 64);
    assert_true(weir_cuda_tables_are_sent(&tables, 64));
    tables.built[63] = 8;
    assert_false(weir_cuda_tables_are_sent(&tables, 64));
    assert_int_equal(n_copied, 1);
    weir_cuda_tables_drop(&tables);
}

static void what_the_gpu_still_uses_is_neither_used_again_nor_freed(void **state)
{
    (void)state;
    weir_cuda_tables tables = { .cuda = &runtime, .n_counters = 1 };
    assert_int_equal(weir_cuda_tables_room(&tables, 100, 3), WEIR_OK);
    tables.stuck = true;
    assert_int_equal(weir_cuda_tables_room(&tables, 100, 3), WEIR_ERR_DEVICE);
    assert_non_null(strstr(weir_last_error(), "has not ended"));
    weir_cuda_tables_drop(&tables);
    assert_int_equal(n_freed, 0);
    tables.stuck = false;
    weir_cuda_tables_drop(&tables);
    assert_int_equal(n_freed, n_taken);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(memory_only_grows_and_is_freed_once, clear),
        cmocka_unit_test_setup(an_image_that_the_gpu_has_is_not_sent_again, clear),
        cmocka_unit_test_setup(what_the_gpu_still_uses_is_neither_used_again_nor_freed, clear),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
