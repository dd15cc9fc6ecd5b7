/* SPDX-License-Identifier: Apache-2.0 */
/* cuda_device.c - the cells of the device table for GPU memory.
 *
 * Another process maps memory by CUDA's legacy handle, which names a whole cudaMalloc allocation;
 * the offset into it travels beside. An allocator that maps its memory piece by piece (PyTorch's
 * expandable segments) has none: the error names its setting.
 */
#include "device/cuda_device.h"

#include <pthread.h>
#include <string.h>

#include "base/alloc.h"
#include "base/error.h"
#include "device/cuda_loader.h"

#define HANDLE_MAGIC 0x31435057u /* "WPC1": legacy handle, little-endian fields */
#define SWAP_BYTES ((size_t)64 << 20)
#define MAX_IMPORTS 4096u

typedef struct memory_handle {
    uint32_t magic, device;
    uint64_t offset, n_bytes;
    unsigned char ipc[WEIR_CUDA_IPC_HANDLE_BYTES];
} memory_handle;
_Static_assert(sizeof(memory_handle) <= WEIR_CUDA_HANDLE_BYTES, "a handle fits its room");

static weir_status allocate(size_t n_bytes, void **out)
{
    const weir_cuda_runtime *cuda;
    void *data = NULL;
    weir_status status = weir_cuda_runtime_get(&cuda);
    if (status == WEIR_OK && !weir_alloc_note(n_bytes))
        status = WEIR_ERR_NO_MEMORY;
    if (status == WEIR_OK)
        status = weir_cuda_check(cuda->allocate(n_bytes != 0 ? n_bytes : 1, &data),
                                 "cannot allocate %zu bytes of GPU memory", n_bytes);
    if (status != WEIR_OK)
        return status;
    int error = cuda->fill(data, 0, n_bytes, NULL);
    if (error == 0)
        error = cuda->stream_wait(NULL);
    if (error != 0) {
        cuda->free(data);
        return weir_cuda_check(error, "cannot clear %zu bytes of GPU memory", n_bytes);
    }
    *out = data;
    return WEIR_OK;
}

static void release(void *data, size_t n_bytes)
{
    const weir_cuda_runtime *cuda;
    (void)n_bytes;
    if (data != NULL && weir_cuda_runtime_get(&cuda) == WEIR_OK)
        cuda->free(data);
}

static weir_status copy(weir_pool *pool, void *dst, const void *src, size_t n_bytes)
{
    const weir_cuda_runtime *cuda;
    (void)pool;
    weir_status status = weir_cuda_runtime_get(&cuda);
    if (status != WEIR_OK || n_bytes == 0)
        return status;
    int error = cuda->copy(dst, src, n_bytes, NULL);
    if (error == 0)
        error = cuda->stream_wait(NULL);
    return weir_cuda_check(error, "cannot copy %zu bytes", n_bytes);
}

/* Through a bounded piece of device memory: three copies, in the order of one stream. */
static weir_status swap(weir_pool *pool, void *a, void *b, size_t n_bytes)
{
    const weir_cuda_runtime *cuda;
    void *bounce = NULL;
    (void)pool;
    weir_status status = weir_cuda_runtime_get(&cuda);
    if (status != WEIR_OK || n_bytes == 0)
        return status;
    size_t room = n_bytes < SWAP_BYTES ? n_bytes : SWAP_BYTES;
    int error = cuda->allocate(room, &bounce);
    for (size_t at = 0; error == 0 && at < n_bytes; at += room) {
        size_t n = n_bytes - at < room ? n_bytes - at : room;
        error = cuda->copy(bounce, (char *)a + at, n, NULL);
        if (error == 0)
            error = cuda->copy((char *)a + at, (char *)b + at, n, NULL);
        if (error == 0)
            error = cuda->copy((char *)b + at, bounce, n, NULL);
    }
    if (error == 0)
        error = cuda->stream_wait(NULL);
    cuda->free(bounce);
    return weir_cuda_check(error, "cannot swap %zu bytes", n_bytes);
}

static weir_status pin(void *data, size_t n_bytes)
{
    const weir_cuda_runtime *cuda;
    weir_status status = weir_cuda_runtime_get(&cuda);
    if (status == WEIR_OK)
        status = weir_cuda_check(cuda->pin(data, n_bytes),
                                 "cannot pin %zu bytes of host memory for the GPU", n_bytes);
    return status;
}

static void unpin(void *data, size_t n_bytes)
{
    const weir_cuda_runtime *cuda;
    (void)n_bytes;
    if (weir_cuda_runtime_get(&cuda) == WEIR_OK)
        cuda->unpin(data);
}

/* ---- other processes -------------------------------------------------------------------------*/

static weir_status export_memory(void *data, size_t n_bytes, void *handle, size_t *handle_bytes)
{
    const weir_cuda_runtime *cuda;
    weir_status status = weir_cuda_runtime_get(&cuda);
    if (status != WEIR_OK)
        return status;
    if (handle == NULL || *handle_bytes < sizeof(memory_handle))
        return weir_fail(WEIR_ERR_INVALID, "a handle of GPU memory takes %zu bytes",
                         sizeof(memory_handle));
    weir_cuda_pointer_kind kind;
    int device = 0, error = cuda->pointer_kind(data, &kind, &device);
    if (error != 0 || kind != WEIR_CUDA_POINTER_DEVICE)
        return weir_fail(WEIR_ERR_INVALID, "%p is no GPU memory, and cannot be exported as such",
                         data);
    memory_handle out = { .magic = HANDLE_MAGIC, .device = (uint32_t)device, .n_bytes = n_bytes };
    error = cuda->ipc_export(data, out.ipc, &out.offset);
    if (error != 0)
        return weir_fail(WEIR_ERR_UNSUPPORTED,
                         "GPU memory at %p cannot be shared with another process: it is not from "
                         "cudaMalloc; with PyTorch set PYTORCH_CUDA_ALLOC_CONF=expandable_segments:"
                         "False (CUDA says %s)",
                         data, cuda->error_text(error));
    memcpy(handle, &out, sizeof(out));
    *handle_bytes = sizeof(out);
    return WEIR_OK;
}

/* CUDA closes a mapping by its base; who imported knows only base + offset. */
static struct import {
    void *data, *base;
} imports[MAX_IMPORTS];
static pthread_mutex_t imports_lock = PTHREAD_MUTEX_INITIALIZER;

static bool imports_put(void *data, void *base)
{
    bool found = false;
    pthread_mutex_lock(&imports_lock);
    for (size_t i = 0; i < MAX_IMPORTS && !found; i++) {
        if (imports[i].base == NULL) {
            imports[i] = (struct import){ data, base };
            found = true;
        }
    }
    pthread_mutex_unlock(&imports_lock);
    return found;
}

static void *imports_take(void *data)
{
    void *base = NULL;
    pthread_mutex_lock(&imports_lock);
    for (size_t i = 0; i < MAX_IMPORTS && base == NULL; i++) {
        if (imports[i].base != NULL && imports[i].data == data) {
            base = imports[i].base;
            imports[i] = (struct import){ NULL, NULL };
        }
    }
    pthread_mutex_unlock(&imports_lock);
    return base;
}

/* The bytes come from another process: lengths are checked against what CUDA says was mapped. */
static weir_status import_memory(const void *handle, size_t handle_bytes, void **out,
                                 size_t *out_n_bytes)
{
    const weir_cuda_runtime *cuda;
    memory_handle in;
    void *base = NULL, *start = NULL;
    size_t mapped = 0;
    weir_status status = weir_cuda_runtime_get(&cuda);
    if (status != WEIR_OK)
        return status;
    if (handle_bytes != sizeof(in))
        return weir_fail(WEIR_ERR_CORRUPT, "a handle of GPU memory has %zu bytes, got %zu",
                         sizeof(in), handle_bytes);
    memcpy(&in, handle, sizeof(in));
    if (in.magic != HANDLE_MAGIC)
        return weir_fail(WEIR_ERR_CORRUPT, "handle of GPU memory begins with %08x", in.magic);
    status = weir_cuda_check(cuda->ipc_import(in.ipc, &base),
                             "cannot map GPU memory of another process");
    if (status != WEIR_OK)
        return status;
    int error = cuda->allocation_of(base, &start, &mapped);
    if (error != 0 || in.offset > mapped || in.n_bytes > mapped - in.offset)
        status = weir_fail(WEIR_ERR_CORRUPT,
                           "handle of GPU memory names bytes %llu to %llu of an allocation of %zu",
                           (unsigned long long)in.offset,
                           (unsigned long long)(in.offset + in.n_bytes), mapped);
    else if (!imports_put((char *)base + in.offset, base))
        status =
            weir_fail(WEIR_ERR_BUSY, "%u pieces of GPU memory are mapped already", MAX_IMPORTS);
    if (status != WEIR_OK) {
        cuda->ipc_close(base);
        return status;
    }
    *out = (char *)base + in.offset;
    *out_n_bytes = in.n_bytes;
    return WEIR_OK;
}

void weir_cuda_import_close(void *data)
{
    const weir_cuda_runtime *cuda;
    void *base = data != NULL ? imports_take(data) : NULL;
    if (base != NULL && weir_cuda_runtime_get(&cuda) == WEIR_OK)
        cuda->ipc_close(base);
}

/* ---- the row ---------------------------------------------------------------------------------*/

static weir_device_ops ops = {
    .size = sizeof(weir_device_ops),
    .name = "cuda",
    .memory = WEIR_MEMORY_CUDA,
    .available = false,
    .allocate = allocate,
    .free = release,
    .copy = copy,
    .swap = swap,
    .pin = pin,
    .unpin = unpin,
    .export_memory = export_memory,
    .import_memory = import_memory,
};
static pthread_once_t once = PTHREAD_ONCE_INIT;

static void find_out(void)
{
    const weir_cuda_runtime *cuda;
    weir_error_line line; /* asking is no failure of the caller's */
    weir_error_save(&line);
    ops.available = weir_cuda_runtime_get(&cuda) == WEIR_OK;
    weir_error_restore(&line);
}

const weir_device_ops *weir_cuda_device_ops(void)
{
    pthread_once(&once, find_out);
    return &ops;
}
