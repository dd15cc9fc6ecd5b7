/* SPDX-License-Identifier: Apache-2.0 */
/* cuda_share.c - the owner's half: what GPU memory is, and how another process may map it.
 *
 * Allocators that map their memory piece by piece (PyTorch's expandable segments) give ranges that
 * span several pieces; the pieces are found by walking over the range. Mapping is cuda_mapping.c.
 */
#include "device/cuda_share.h"

#include <stdio.h>
#include <string.h>

#include "base/error.h"

static uint64_t mix(uint64_t identity, uint64_t value)
{
    identity = (identity ^ value) * 0x9E3779B97F4A7C15u;
    return identity ^ identity >> 32;
}

static weir_status cannot(const weir_cuda_runtime *cuda, const void *data, size_t n_bytes,
                          int error)
{
    return weir_fail(WEIR_ERR_UNSUPPORTED,
                     "%zu bytes of GPU memory at %p cannot be described: CUDA says %s", n_bytes,
                     data, cuda->error_text(error));
}

static weir_status no_sharing(const void *data, size_t n_bytes, weir_cuda_sharing sharing)
{
    if (sharing == WEIR_CUDA_SHARING_PRIVATE)
        return weir_fail(
            WEIR_ERR_UNSUPPORTED,
            "%zu bytes of GPU memory at %p cannot be shared: their allocator made them "
            "without handles for other processes; with PyTorch set "
            "PYTORCH_CUDA_ALLOC_CONF=expandable_segments:False",
            n_bytes, data);
    return weir_fail(WEIR_ERR_UNSUPPORTED,
                     "%zu bytes of GPU memory at %p cannot be shared: they are from a pool "
                     "(cudaMallocAsync) or another process; with PyTorch set "
                     "PYTORCH_CUDA_ALLOC_CONF=backend:native,expandable_segments:False",
                     n_bytes, data);
}

static weir_status describe_handle(const weir_cuda_runtime *cuda, void *data, weir_cuda_share *out)
{
    void *base = NULL;
    size_t mapped = 0;
    uint64_t id = 0;
    int error = cuda->allocation_of(data, &base, &mapped);
    if (error == 0)
        error = cuda->memory_id(data, &id);
    if (error == 0)
        error = cuda->ipc_export(data, out->handle, &out->offset);
    if (error != 0)
        return cannot(cuda, data, out->n_bytes, error);
    out->mapped_bytes = mapped;
    out->identity = mix(mix(0, (uintptr_t)base), id);
    if (out->offset > mapped || out->n_bytes > mapped - out->offset)
        return weir_fail(WEIR_ERR_INVALID,
                         "%zu bytes of GPU memory at %p reach over the end of their allocation of "
                         "%zu bytes",
                         (size_t)out->n_bytes, data, mapped);
    return WEIR_OK;
}

/* One piece, at its begin; adds it to `out`. */
static weir_status add_piece(const weir_cuda_runtime *cuda, const char *at, weir_cuda_share *out)
{
    const void *data = (const void *)(uintptr_t)out->address;
    weir_cuda_sharing sharing = WEIR_CUDA_SHARING_NONE;
    void *base = NULL;
    size_t n_bytes = 0;
    uint64_t id = 0;
    int error = cuda->allocation_of(at, &base, &n_bytes);
    if (error == 0)
        error = cuda->memory_id(at, &id);
    if (error == 0)
        error = cuda->sharing_of(at, &sharing);
    if (error != 0 || base != at || n_bytes == 0)
        return weir_fail(WEIR_ERR_INVALID,
                         "%zu bytes of GPU memory at %p are not mapped from begin to end",
                         (size_t)out->n_bytes, data);
    if (sharing != WEIR_CUDA_SHARING_DESCRIPTOR)
        return no_sharing(data, out->n_bytes, sharing);
    out->mapped_bytes += n_bytes;
    out->identity = mix(mix(out->identity, (uintptr_t)base), id);
    return WEIR_OK;
}

static weir_status describe_pieces(const weir_cuda_runtime *cuda, char *data, weir_cuda_share *out)
{
    void *base = NULL;
    size_t n_bytes = 0;
    int error = cuda->allocation_of(data, &base, &n_bytes);
    if (error != 0)
        return cannot(cuda, data, out->n_bytes, error);
    out->offset = (uint64_t)(data - (char *)base);
    weir_status status = WEIR_OK;
    do
        status = add_piece(cuda, (char *)base + out->mapped_bytes, out);
    while (status == WEIR_OK && out->mapped_bytes - out->offset < out->n_bytes);
    return status;
}

static weir_status describe(const weir_cuda_runtime *cuda, int device, void *data,
                            weir_cuda_share *out)
{
    weir_cuda_sharing sharing = WEIR_CUDA_SHARING_NONE;
    int error = cuda->bus_id(device, out->gpu, sizeof(out->gpu));
    if (error == 0)
        error = cuda->sharing_of(data, &sharing);
    if (error != 0)
        return cannot(cuda, data, out->n_bytes, error);
    out->sharing = sharing;
    if (sharing == WEIR_CUDA_SHARING_HANDLE)
        return describe_handle(cuda, data, out);
    if (sharing == WEIR_CUDA_SHARING_DESCRIPTOR)
        return describe_pieces(cuda, data, out);
    return no_sharing(data, out->n_bytes, sharing);
}

weir_status weir_cuda_share_describe(const void *data, size_t n_bytes, weir_cuda_share *out)
{
    const weir_cuda_runtime *cuda;
    weir_cuda_pointer_kind kind = WEIR_CUDA_POINTER_HOST;
    weir_cuda_share share = { .address = (uintptr_t)data, .n_bytes = n_bytes };
    int device = 0, previous = 0;
    weir_status status = weir_cuda_runtime_get(&cuda);
    if (status != WEIR_OK)
        return status;
    int error = cuda->pointer_kind(data, &kind, &device);
    if (error != 0 || kind != WEIR_CUDA_POINTER_DEVICE)
        return weir_fail(WEIR_ERR_UNSUPPORTED,
                         "%zu bytes at %p are %s memory: only a GPU's own memory is shared between "
                         "processes by CUDA",
                         n_bytes, data, kind == WEIR_CUDA_POINTER_MANAGED ? "managed" : "host");
    status = weir_cuda_check(cuda->enter(device, &previous), "cannot use GPU %d", device);
    if (status != WEIR_OK)
        return status;
    status = describe(cuda, device, (void *)(uintptr_t)data, &share);
    cuda->leave(previous);
    if (status == WEIR_OK)
        *out = share;
    return status;
}

static weir_status export_piece(const weir_cuda_runtime *cuda, const void *piece, int *out_fd,
                                uint64_t *out_bytes)
{
    void *base = NULL;
    size_t n_bytes = 0;
    int fd = -1, error = cuda->allocation_of(piece, &base, &n_bytes);
    if (error == 0 && base != piece)
        return weir_fail(WEIR_ERR_INVALID, "no piece of GPU memory begins at %p", piece);
    if (error == 0)
        error = cuda->piece_export(piece, &fd);
    if (error != 0)
        return cannot(cuda, piece, n_bytes, error);
    *out_fd = fd;
    *out_bytes = n_bytes;
    return WEIR_OK;
}

weir_status weir_cuda_share_piece(const weir_cuda_share *own, uint64_t at, int *out_fd,
                                  uint64_t *out_bytes)
{
    const weir_cuda_runtime *cuda;
    weir_cuda_pointer_kind kind;
    int device = 0, previous = 0;
    weir_status status = weir_cuda_runtime_get(&cuda);
    if (status != WEIR_OK)
        return status;
    if (own->sharing != WEIR_CUDA_SHARING_DESCRIPTOR || at >= own->mapped_bytes)
        return weir_fail(WEIR_ERR_INVALID, "no piece of GPU memory begins %llu bytes into %llu",
                         (unsigned long long)at, (unsigned long long)own->mapped_bytes);
    const void *piece = (const void *)(uintptr_t)(own->address - own->offset + at);
    int error = cuda->pointer_kind(piece, &kind, &device);
    if (error == 0)
        error = cuda->enter(device, &previous);
    if (error != 0)
        return cannot(cuda, piece, 0, error);
    status = export_piece(cuda, piece, out_fd, out_bytes);
    cuda->leave(previous);
    return status;
}
