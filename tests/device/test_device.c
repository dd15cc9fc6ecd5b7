/* SPDX-License-Identifier: Apache-2.0 */
/* test_device.c - the table of memory kinds: every cell is filled, and says so when it is empty. */
#include "device/device.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

static void every_cell_of_every_kind_is_filled(void **state)
{
    (void)state;
    const uint32_t kinds[] = { WEIR_MEMORY_HOST, WEIR_MEMORY_CUDA };
    for (size_t i = 0; i < 2; i++) {
        const weir_device_ops *ops = NULL;
        assert_int_equal(weir_device_get(kinds[i], &ops), WEIR_OK);
        assert_int_equal(ops->size, sizeof(*ops));
        assert_int_equal(ops->memory, kinds[i]);
        assert_non_null(ops->name);
        assert_true(ops->allocate && ops->free && ops->copy && ops->swap && ops->pin);
        assert_true(ops->unpin && ops->export_memory && ops->import_memory);
    }
}

static void host_memory_is_allocated_copied_swapped_and_pinned(void **state)
{
    (void)state;
    const weir_device_ops *host = NULL;
    assert_int_equal(weir_device_get(WEIR_MEMORY_HOST, &host), WEIR_OK);
    assert_true(host->available);
    void *a = NULL, *b = NULL;
    assert_int_equal(host->allocate(5000, &a), WEIR_OK);
    assert_int_equal(host->allocate(5000, &b), WEIR_OK);
    memset(a, 1, 5000);
    assert_int_equal(host->copy(NULL, b, a, 2500), WEIR_OK);
    assert_int_equal(((char *)b)[2499], 1);
    assert_int_equal(((char *)b)[2500], 0);
    assert_int_equal(host->swap(NULL, a, b, 5000), WEIR_OK);
    assert_int_equal(((char *)a)[2500], 0);
    assert_int_equal(((char *)b)[2500], 1);
    assert_int_equal(host->pin(a, 4096), WEIR_OK);
    host->unpin(a, 4096);
    host->free(a, 5000);
    host->free(b, 5000);
}

static void what_a_kind_lacks_is_unsupported(void **state)
{
    (void)state;
    const weir_device_ops *host = NULL, *cuda = NULL;
    assert_int_equal(weir_device_get(WEIR_MEMORY_HOST, &host), WEIR_OK);
    assert_int_equal(weir_device_get(WEIR_MEMORY_CUDA, &cuda), WEIR_OK);
    void *data = NULL;
    size_t n = 0;
    assert_int_equal(host->export_memory(&n, 8, NULL, &n), WEIR_ERR_UNSUPPORTED);
    assert_int_equal(host->import_memory(&n, 8, &data, &n), WEIR_ERR_UNSUPPORTED);
    if (cuda->available) {
        print_message("a GPU is here: its memory is tested by test_cuda_memory\n");
        return;
    }
    assert_int_equal(cuda->allocate(8, &data), WEIR_ERR_UNSUPPORTED);
    assert_non_null(strstr(weir_last_error(), "CUDA is off: "));
    cuda->free(NULL, 8);
    assert_int_equal(cuda->copy(NULL, &n, &data, 8), WEIR_ERR_UNSUPPORTED);
    assert_int_equal(cuda->swap(NULL, &n, &data, 8), WEIR_ERR_UNSUPPORTED);
    assert_int_equal(cuda->pin(&n, 8), WEIR_ERR_UNSUPPORTED);
    cuda->unpin(&n, 8);
    assert_int_equal(cuda->export_memory(&n, 8, NULL, &n), WEIR_ERR_UNSUPPORTED);
    assert_int_equal(cuda->import_memory(&n, 8, &data, &n), WEIR_ERR_UNSUPPORTED);
    assert_null(data);
    assert_int_equal(weir_device_get(WEIR_MEMORY_HOST | WEIR_MEMORY_CUDA, &host), WEIR_ERR_INVALID);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_cell_of_every_kind_is_filled),
        cmocka_unit_test(host_memory_is_allocated_copied_swapped_and_pinned),
        cmocka_unit_test(what_a_kind_lacks_is_unsupported),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
