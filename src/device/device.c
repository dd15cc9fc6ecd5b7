/* SPDX-License-Identifier: Apache-2.0 */
/* device.c - the table of memory kinds, and the stand-ins for what a kind does not have. */
#include "device/device.h"

#include <sys/mman.h>

#include "base/error.h"
#include "device/cuda_device.h"
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

static const weir_device_ops host = {
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
};

weir_status weir_device_get(uint32_t memory, const weir_device_ops **out)
{
    if (memory != WEIR_MEMORY_HOST && memory != WEIR_MEMORY_CUDA)
        return weir_fail(WEIR_ERR_INVALID, "%u is no kind of memory", memory);
    *out = memory == WEIR_MEMORY_HOST ? &host : weir_cuda_device_ops();
    return WEIR_OK;
}
