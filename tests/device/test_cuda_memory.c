/* SPDX-License-Identifier: Apache-2.0 */
/* test_cuda_memory.c - GPU memory, streams and handles between processes; skipped without a GPU. */
#include "convert/cuda_case.h"
#include "device/cuda_device.h"

#include <sys/wait.h>
#include <unistd.h>

static const weir_device_ops *gpu_ops(void)
{
    const weir_device_ops *ops = NULL;
    must(weir_device_get(WEIR_MEMORY_CUDA, &ops));
    assert_true(ops->available);
    return ops;
}

static void memory_is_cleared_copied_and_swapped(void **state)
{
    (void)state;
    if (!have_gpu())
        skip();
    const weir_device_ops *ops = gpu_ops();
    enum { N = 100003 };
    void *a = NULL, *b = NULL;
    static unsigned char ones[N], twos[N], back[N];
    memset(ones, 1, N);
    memset(twos, 2, N);
    must(ops->allocate(N, &a));
    must(ops->allocate(N, &b));
    must(ops->copy(NULL, back, a, N));
    for (size_t i = 0; i < N; i++)
        assert_int_equal(back[i], 0);
    must(ops->copy(NULL, a, ones, N));
    must(ops->copy(NULL, b, twos, N));
    must(ops->swap(NULL, a, b, N));
    must(ops->copy(NULL, back, a, N));
    assert_memory_equal(back, twos, N);
    must(ops->copy(NULL, back, b, N));
    assert_memory_equal(back, ones, N);
    ops->free(a, N);
    ops->free(b, N);
}

static void devices_describe_themselves(void **state)
{
    (void)state;
    if (!have_gpu())
        skip();
    unsigned n = 0;
    weir_cuda_device device;
    must(weir_cuda_devices(&n));
    must(weir_cuda_describe(0, &device));
    assert_true(device.name[0] != '\0' && device.memory_bytes > 1u << 30);
    assert_true(device.n_multiprocessors > 0 && device.compute_major >= 8);
    print_message("%s, compute %u.%u, driver %u\n", device.name, device.compute_major,
                  device.compute_minor, device.driver_version);
    assert_int_equal(weir_cuda_describe(n, &device), WEIR_ERR_DEVICE);
}

static void memory_that_is_taken_is_not_left(void **state)
{
    (void)state;
    if (!have_gpu())
        skip();
    const uint64_t n_bytes = 256 << 20;
    uint64_t before = 0, meanwhile = 0;
    void *data = NULL;
    must(weir_cuda_memory_left(0, &before));
    must(weir_cuda_allocate(0, n_bytes, &data));
    must(weir_cuda_memory_left(0, &meanwhile));
    weir_cuda_free(0, data);
    assert_true(meanwhile + n_bytes <= before);
}

static void too_much_memory_is_no_memory(void **state)
{
    (void)state;
    if (!have_gpu())
        skip();
    void *data = NULL;
    assert_int_equal(weir_cuda_allocate(0, (size_t)1 << 50, &data), WEIR_ERR_NO_MEMORY);
    assert_null(data);
    must(weir_cuda_allocate(0, 16, &data)); /* and nothing is left behind of the failure */
    weir_cuda_free(0, data);
}

static void what_is_no_gpu_memory_has_no_handle(void **state)
{
    (void)state;
    if (!have_gpu())
        skip();
    const weir_device_ops *ops = gpu_ops();
    unsigned char handle[WEIR_CUDA_HANDLE_BYTES] = { 0 };
    size_t n = sizeof(handle);
    void *data = NULL;
    assert_int_equal(ops->export_memory(handle, 8, handle, &n), WEIR_ERR_UNSUPPORTED);
    assert_int_equal(ops->import_memory(handle, sizeof(handle), &data, &n), WEIR_ERR_CORRUPT);
    assert_int_equal(ops->import_memory(handle, 3, &data, &n), WEIR_ERR_CORRUPT);
    assert_null(data);
}

/* The child starts before CUDA does in the parent: a context does not survive a fork. */
static int import_and_check(int from, int to)
{
    unsigned char handle[WEIR_CUDA_HANDLE_BYTES], got[64];
    size_t n_handle = 0, n = 0;
    void *data = NULL;
    char word = 'n';
    const weir_device_ops *ops = NULL;
    if (read(from, &n_handle, sizeof(n_handle)) != sizeof(n_handle) || n_handle > sizeof(handle) ||
        read(from, handle, n_handle) != (ssize_t)n_handle)
        return 1;
    if (weir_device_get(WEIR_MEMORY_CUDA, &ops) == WEIR_OK &&
        ops->import_memory(handle, n_handle, &data, &n) == WEIR_OK && n == sizeof(got) &&
        ops->copy(NULL, got, data, n) == WEIR_OK && got[0] == 7 && got[63] == 7) {
        memset(got, 9, sizeof(got));
        if (ops->copy(NULL, data, got, n) == WEIR_OK)
            word = 'y';
        weir_cuda_import_close(data);
    } else {
        fprintf(stderr, "child: %s\n", weir_last_error());
    }
    return write(to, &word, 1) == 1 && word == 'y' ? 0 : 1;
}

static int down[2], up[2];
static pid_t child;

static void another_process_maps_the_same_bytes(void **state)
{
    (void)state;
    if (!have_gpu())
        skip();
    const weir_device_ops *ops = gpu_ops();
    unsigned char handle[WEIR_CUDA_HANDLE_BYTES], bytes[64];
    size_t n = sizeof(handle);
    unsigned char *base = NULL;
    char word = 'n';
    must(ops->allocate(4096, (void **)&base));
    memset(bytes, 7, sizeof(bytes));
    must(ops->copy(NULL, base + 512, bytes, sizeof(bytes)));
    must(ops->export_memory(base + 512, sizeof(bytes), handle, &n));
    assert_int_equal(write(down[1], &n, sizeof(n)), sizeof(n));
    assert_int_equal(write(down[1], handle, n), n);
    assert_int_equal(read(up[0], &word, 1), 1);
    assert_int_equal(word, 'y');
    must(ops->copy(NULL, bytes, base + 512, sizeof(bytes)));
    assert_int_equal(bytes[0], 9);
    assert_int_equal(bytes[63], 9);
    ops->free(base, 4096);
}

int main(void)
{
    if (pipe(down) != 0 || pipe(up) != 0)
        return 1;
    child = fork();
    if (child == 0) {
        close(down[1]); /* a parent that ends without a word is then the end of the pipe */
        _exit(import_and_check(down[0], up[1]));
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(memory_is_cleared_copied_and_swapped),
        cmocka_unit_test(devices_describe_themselves),
        cmocka_unit_test(memory_that_is_taken_is_not_left),
        cmocka_unit_test(too_much_memory_is_no_memory),
        cmocka_unit_test(what_is_no_gpu_memory_has_no_handle),
        cmocka_unit_test(another_process_maps_the_same_bytes),
    };
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    close(down[1]);
    waitpid(child, NULL, 0);
    return failed;
}
