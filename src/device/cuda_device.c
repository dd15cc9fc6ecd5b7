/* SPDX-License-Identifier: Apache-2.0 */
/* cuda_device.c - the cells of the device table for GPU memory.
 *
 * A handle for another process is cuda_share.h's description, of cudaMalloc memory alone: what is
 * shared by file descriptors needs a socket, and that is transport cuda_ipc's.
 */
#include "device/cuda_device.h"

#include <pthread.h>
#include <string.h>

#include "base/alloc.h"
#include "base/error.h"
#include "device/cuda_share.h"
#include "device/cuda_wait.h"

#define HANDLE_MAGIC 0x32435057u /* "WPC2" */
#define SWAP_BYTES ((size_t)64 << 20)

typedef struct memory_handle {
    uint32_t magic, unused;
    weir_cuda_share share;
} memory_handle;
_Static_assert(sizeof(memory_handle) <= WEIR_CUDA_HANDLE_BYTES, "a handle fits its room");

/* In a stream of its own: the default one waits for the streams of the whole process, and they for
 * it. */
typedef struct own_stream {
    const weir_cuda_runtime *cuda;
    void *stream;
} own_stream;

static weir_status stream_open(own_stream *own)
{
    weir_status status = weir_cuda_runtime_get(&own->cuda);
    if (status != WEIR_OK)
        return status;
    return weir_cuda_check(own->cuda->stream_open(&own->stream), "cannot make a stream");
}

/* Waits for what is queued; gives WEIR_CUDA_NOT_READY when that goes on, else `error`, or how it
 * ended. */
static int stream_end(own_stream *own, int error)
{
    int ended = weir_cuda_wait_stream(own->cuda, own->stream, WEIR_CUDA_DRAIN_MS);
    own->cuda->stream_close(own->stream);
    return error == 0 || ended == WEIR_CUDA_NOT_READY ? ended : error;
}

static weir_status allocate(size_t n_bytes, void **out)
{
    own_stream own = { 0 };
    void *data = NULL;
    weir_status status = stream_open(&own);
    if (status != WEIR_OK)
        return status;
    int error = 0;
    if (!weir_alloc_note(n_bytes))
        status = WEIR_ERR_NO_MEMORY;
    if (status == WEIR_OK)
        error = own.cuda->allocate(n_bytes != 0 ? n_bytes : 1, &data);
    if (status == WEIR_OK && error == 0)
        error = own.cuda->fill(data, 0, n_bytes, own.stream);
    error = stream_end(&own, error);
    if (status == WEIR_OK)
        status = weir_cuda_check(error, "cannot allocate %zu bytes of GPU memory", n_bytes);
    if (status == WEIR_OK)
        *out = data;
    else if (error != WEIR_CUDA_NOT_READY) /* else it is left behind: it is still in use */
        own.cuda->free(data);
    return status;
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
    own_stream own = { 0 };
    (void)pool;
    weir_status status = stream_open(&own);
    if (status != WEIR_OK)
        return status;
    int error = n_bytes != 0 ? own.cuda->copy(dst, src, n_bytes, own.stream) : 0;
    return weir_cuda_check(stream_end(&own, error), "cannot copy %zu bytes", n_bytes);
}

/* Three copies, in the order of one stream. */
static int swap_through(const own_stream *own, void *bounce, size_t room, char *a, char *b,
                        size_t n_bytes)
{
    int error = 0;
    for (size_t at = 0; error == 0 && at < n_bytes; at += room) {
        size_t n = n_bytes - at < room ? n_bytes - at : room;
        error = own->cuda->copy(bounce, a + at, n, own->stream);
        if (error == 0)
            error = own->cuda->copy(a + at, b + at, n, own->stream);
        if (error == 0)
            error = own->cuda->copy(b + at, bounce, n, own->stream);
    }
    return error;
}

/* Through a bounded piece of device memory. */
static weir_status swap(weir_pool *pool, void *a, void *b, size_t n_bytes)
{
    own_stream own = { 0 };
    void *bounce = NULL;
    (void)pool;
    weir_status status = stream_open(&own);
    if (status != WEIR_OK)
        return status;
    size_t room = n_bytes < SWAP_BYTES ? n_bytes : SWAP_BYTES;
    int error = n_bytes != 0 ? own.cuda->allocate(room, &bounce) : 0;
    if (error == 0)
        error = swap_through(&own, bounce, room, a, b, n_bytes);
    error = stream_end(&own, error);
    if (error != WEIR_CUDA_NOT_READY)
        own.cuda->free(bounce);
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
    memory_handle out = { .magic = HANDLE_MAGIC };
    weir_status status = weir_cuda_runtime_get(&cuda);
    if (status != WEIR_OK)
        return status;
    if (handle == NULL || *handle_bytes < sizeof(out))
        return weir_fail(WEIR_ERR_INVALID, "a handle of GPU memory takes %zu bytes", sizeof(out));
    status = weir_cuda_share_describe(data, n_bytes, &out.share);
    if (status != WEIR_OK)
        return status;
    if (out.share.sharing != WEIR_CUDA_SHARING_HANDLE)
        return weir_fail(WEIR_ERR_UNSUPPORTED,
                         "%zu bytes of GPU memory at %p are shared by file descriptors, which no "
                         "handle holds: expose them by transport cuda_ipc",
                         n_bytes, data);
    memcpy(handle, &out, sizeof(out));
    *handle_bytes = sizeof(out);
    return WEIR_OK;
}

/* Who imported knows the data alone. */
typedef struct import {
    struct import *next;
    void *data;
    weir_cuda_mapping *mapping;
} import;
static import *imports;
static pthread_mutex_t imports_lock = PTHREAD_MUTEX_INITIALIZER;

/* The bytes come from another process: lengths are checked against what CUDA says was mapped. */
static weir_status import_memory(const void *handle, size_t handle_bytes, void **out,
                                 size_t *out_n_bytes)
{
    const weir_cuda_runtime *cuda;
    memory_handle in;
    int device = 0;
    weir_status status = weir_cuda_runtime_get(&cuda);
    if (status != WEIR_OK)
        return status;
    if (handle_bytes != sizeof(in))
        return weir_fail(WEIR_ERR_CORRUPT, "a handle of GPU memory has %zu bytes, got %zu",
                         sizeof(in), handle_bytes);
    memcpy(&in, handle, sizeof(in));
    if (in.magic != HANDLE_MAGIC || in.share.sharing != WEIR_CUDA_SHARING_HANDLE)
        return weir_fail(WEIR_ERR_CORRUPT, "handle of GPU memory begins with %08x", in.magic);
    status = weir_cuda_check(cuda->current_device(&device), "no current GPU");
    import *entry = status == WEIR_OK ? weir_alloc_zeroed(1, sizeof(*entry)) : NULL;
    if (status == WEIR_OK && entry == NULL)
        status = WEIR_ERR_NO_MEMORY;
    if (status != WEIR_OK)
        return status;
    weir_cuda_importer importer = { .device = (unsigned)device, .who = "handle of GPU memory" };
    status = weir_cuda_share_open(&in.share, &importer, &entry->mapping, &entry->data);
    if (status != WEIR_OK) {
        weir_free(entry);
        return status;
    }
    *out = entry->data;
    *out_n_bytes = in.share.n_bytes;
    pthread_mutex_lock(&imports_lock);
    entry->next = imports;
    imports = entry;
    pthread_mutex_unlock(&imports_lock);
    return WEIR_OK;
}

void weir_cuda_import_close(void *data)
{
    import *found = NULL;
    pthread_mutex_lock(&imports_lock);
    for (import **link = &imports; *link != NULL; link = &(*link)->next) {
        if ((*link)->data == data) {
            found = *link;
            *link = found->next;
            break;
        }
    }
    pthread_mutex_unlock(&imports_lock);
    if (found != NULL)
        weir_cuda_share_close(found->mapping);
    weir_free(found);
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
    ops.available = weir_cuda_why_not()[0] == '\0';
}

const weir_device_ops *weir_cuda_device_ops(void)
{
    pthread_once(&once, find_out);
    return &ops;
}
