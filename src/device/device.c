/* SPDX-License-Identifier: Apache-2.0 */
/* device.c - the table of memory kinds, and the stand-ins for what a kind does not have. */
#include "device/device.h"

#include <sys/mman.h>

#include "base/error.h"
#include "device/host.h"

static weir_status host_copy(weir_pool *pool, void *dst, const void *src, size_t n_bytes)
{
    weir_host_copy(pool, dst, src, n_bytes);
    return WEIR_OK;
}

static weir_status host_swap(weir_pool *pool, void *a, void *b, size_t n_bytes)
{
    weir_host_swap(pool, a, b, n_bytes);
    return WEIR_OK;
}

static weir_status host_pin(void *data, size_t n_bytes)
{
    if (mlock(data, n_bytes) != 0)
        return weir_fail_errno("cannot pin %zu bytes of host memory", n_bytes);
    return WEIR_OK;
}

static void host_unpin(void *data, size_t n_bytes)
{
    munlock(data, n_bytes);
}

static weir_status host_export_unsupported(void *data, size_t n_bytes, void *handle,
                                           size_t *handle_bytes)
{
    (void)data, (void)n_bytes, (void)handle, (void)handle_bytes;
    return weir_fail(WEIR_ERR_UNSUPPORTED, "host memory has no handle: expose it by a transport");
}

static weir_status host_import_unsupported(const void *handle, size_t handle_bytes, void **out,
                                           size_t *out_n_bytes)
{
    (void)handle, (void)handle_bytes, (void)out, (void)out_n_bytes;
    return weir_fail(WEIR_ERR_UNSUPPORTED, "host memory has no handle: read it by a transport");
}

static weir_status cuda_missing(void)
{
    return weir_fail(WEIR_ERR_UNSUPPORTED, "this build has no CUDA memory");
}

static weir_status cuda_allocate_missing(size_t n_bytes, void **out)
{
    (void)n_bytes, (void)out;
    return cuda_missing();
}

static void cuda_free_missing(void *data, size_t n_bytes)
{
    (void)data, (void)n_bytes;
}

static weir_status cuda_copy_missing(weir_pool *pool, void *dst, const void *src, size_t n_bytes)
{
    (void)pool, (void)dst, (void)src, (void)n_bytes;
    return cuda_missing();
}

static weir_status cuda_swap_missing(weir_pool *pool, void *a, void *b, size_t n_bytes)
{
    (void)pool, (void)a, (void)b, (void)n_bytes;
    return cuda_missing();
}

static weir_status cuda_pin_missing(void *data, size_t n_bytes)
{
    (void)data, (void)n_bytes;
    return cuda_missing();
}

static void cuda_unpin_missing(void *data, size_t n_bytes)
{
    (void)data, (void)n_bytes;
}

static weir_status cuda_export_missing(void *data, size_t n_bytes, void *handle,
                                       size_t *handle_bytes)
{
    (void)data, (void)n_bytes, (void)handle, (void)handle_bytes;
    return cuda_missing();
}

static weir_status cuda_import_missing(const void *handle, size_t handle_bytes, void **out,
                                       size_t *out_n_bytes)
{
    (void)handle, (void)handle_bytes, (void)out, (void)out_n_bytes;
    return cuda_missing();
}

static const weir_device_ops devices[] = {
    {
        .size = sizeof(weir_device_ops),
        .name = "host",
        .memory = WEIR_MEMORY_HOST,
        .available = true,
        .allocate = weir_host_allocate,
        .free = weir_host_free,
        .copy = host_copy,
        .swap = host_swap,
        .pin = host_pin,
        .unpin = host_unpin,
        .export_memory = host_export_unsupported,
        .import_memory = host_import_unsupported,
    },
    {
        .size = sizeof(weir_device_ops),
        .name = "cuda",
        .memory = WEIR_MEMORY_CUDA,
        .available = false,
        .allocate = cuda_allocate_missing,
        .free = cuda_free_missing,
        .copy = cuda_copy_missing,
        .swap = cuda_swap_missing,
        .pin = cuda_pin_missing,
        .unpin = cuda_unpin_missing,
        .export_memory = cuda_export_missing,
        .import_memory = cuda_import_missing,
    },
};

weir_status weir_device_get(uint32_t memory, const weir_device_ops **out)
{
    for (size_t i = 0; i < sizeof(devices) / sizeof(devices[0]); i++) {
        if (devices[i].memory == memory) {
            *out = &devices[i];
            return WEIR_OK;
        }
    }
    return weir_fail(WEIR_ERR_INVALID, "%u is no kind of memory", memory);
}
