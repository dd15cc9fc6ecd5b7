/* SPDX-License-Identifier: Apache-2.0 */
/* test_cuda_loader.c - without libweir_cuda.so, everything of CUDA says why it is off, and the rest
 * of Weir does not care. Runs with and without a GPU: the library is looked for where it is not. */
#include "device/cuda_loader.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "device/cuda_device.h"
#include "weir/cuda.h"

static void assert_off(weir_status status)
{
    assert_int_equal(status, WEIR_ERR_UNSUPPORTED);
    assert_non_null(strstr(weir_last_error(), "CUDA is off: libweir_cuda.so cannot be loaded"));
    assert_non_null(strstr(weir_last_error(), "/nowhere/libweir_cuda.so"));
}

static void every_call_says_why_it_is_off(void **state)
{
    (void)state;
    unsigned n = 77;
    void *data = NULL;
    weir_cuda_device device;
    weir_cuda_batch *batch = NULL;
    weir_cuda_timer *timer = NULL;
    const weir_cuda_runtime *runtime = NULL;
    assert_off(weir_cuda_runtime_get(&runtime));
    assert_off(weir_cuda_devices(&n));
    assert_off(weir_cuda_describe(0, &device));
    assert_off(weir_cuda_allocate(0, 8, &data));
    assert_off(weir_cuda_allocate_pinned(8, &data));
    assert_off(weir_cuda_copy(0, &n, &n, 4, NULL));
    assert_off(weir_cuda_fill(0, &n, 0, 4, NULL));
    assert_off(weir_cuda_peer_enable(0, 1));
    assert_off(weir_cuda_device_of(&n, &n));
    assert_off(weir_cuda_allocate_shareable(0, 8, &data));
    assert_non_null(strstr(weir_cuda_why_not(), "/nowhere/libweir_cuda.so"));
    assert_off(weir_cuda_stream_open(0, &data));
    assert_off(weir_cuda_stream_wait(0, NULL));
    assert_off(weir_cuda_timer_open(0, &timer));
    assert_off(weir_cuda_batch_open(0, &batch));
    assert_int_equal(n, 77);
    assert_true(data == NULL && batch == NULL && timer == NULL && runtime == NULL);
    weir_cuda_free(0, &n); /* nothing to do, nothing done */
    weir_cuda_free_pinned(NULL);
    weir_cuda_stream_close(0, NULL);
    weir_cuda_batch_close(NULL);
    weir_cuda_timer_close(NULL);
}

static void the_device_table_has_its_cells_all_the_same(void **state)
{
    (void)state;
    const weir_device_ops *ops = weir_cuda_device_ops();
    void *data = NULL;
    size_t n = 8;
    assert_false(ops->available);
    assert_off(ops->allocate(8, &data));
    assert_off(ops->copy(NULL, &n, &data, 8));
    assert_off(ops->swap(NULL, &n, &data, 8));
    assert_off(ops->pin(&n, 8));
    assert_off(ops->export_memory(&n, 8, &n, &n));
    assert_off(ops->import_memory(&n, 8, &data, &n));
    ops->unpin(&n, 8);
    ops->free(NULL, 8);
    weir_cuda_import_close(NULL);
}

static void an_error_of_cuda_gets_a_status(void **state)
{
    (void)state;
    assert_int_equal(weir_cuda_check(0, "nothing"), WEIR_OK);
    assert_int_equal(weir_cuda_check(2, "allocating %d", 5), WEIR_ERR_NO_MEMORY);
    assert_int_equal(weir_cuda_check(700, "running"), WEIR_ERR_DEVICE);
    assert_non_null(strstr(weir_last_error(), "running: CUDA says"));
}

int main(void)
{
    setenv("WEIR_CUDA_LIBRARY", "/nowhere/libweir_cuda.so", 1);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_call_says_why_it_is_off),
        cmocka_unit_test(the_device_table_has_its_cells_all_the_same),
        cmocka_unit_test(an_error_of_cuda_gets_a_status),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
