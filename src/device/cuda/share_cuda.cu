/* SPDX-License-Identifier: Apache-2.0 */
/* share_cuda.cu - GPU memory that other processes map: legacy handles, and virtual memory by file
 * descriptor.
 *
 * Virtual memory is the driver's alone.
 */
#include <string.h>
#include <unistd.h>

#include "device/cuda/driver_cuda.h"
#include "device/cuda/runtime_cuda.h"

#define HANDLE_TYPE CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR

static CUdeviceptr address_of(const void *data)
{
    return reinterpret_cast<CUdeviceptr>(data);
}

static int taken(cudaError_t error)
{
    if (error != cudaSuccess)
        cudaGetLastError();
    return error;
}

/* ---- what lies where -------------------------------------------------------------------------*/

int weir_cuda_allocation_of(const void *data, void **out_base, size_t *out_bytes)
{
    CUdeviceptr base = 0;
    int error = DRIVER(cuMemGetAddressRange, &base, out_bytes, address_of(data));
    *out_base = reinterpret_cast<void *>(base);
    return error;
}

int weir_cuda_memory_id(const void *data, uint64_t *out)
{
    unsigned long long id = 0;
    int error =
        DRIVER(cuPointerGetAttribute, &id, CU_POINTER_ATTRIBUTE_MEMORY_BLOCK_ID, address_of(data));
    if (error != 0)
        error = DRIVER(cuPointerGetAttribute, &id, CU_POINTER_ATTRIBUTE_BUFFER_ID, address_of(data));
    *out = id;
    return error;
}

/* A handle type that was asked for may still be refused (a container, a driver's setting): only an
 * export tells. */
static weir_cuda_sharing sharing_of_piece(CUmemGenericAllocationHandle piece)
{
    CUmemAllocationProp properties;
    int fd = -1;
    if (DRIVER(cuMemGetAllocationPropertiesFromHandle, &properties, piece) != 0 ||
        (properties.requestedHandleTypes & HANDLE_TYPE) == 0 ||
        DRIVER(cuMemExportToShareableHandle, &fd, piece, HANDLE_TYPE, 0ull) != 0)
        return WEIR_CUDA_SHARING_PRIVATE;
    close(fd);
    return WEIR_CUDA_SHARING_DESCRIPTOR;
}

int weir_cuda_sharing_of(const void *data, weir_cuda_sharing *out)
{
    int legacy = 0;
    CUmemGenericAllocationHandle piece;
    *out = WEIR_CUDA_SHARING_NONE;
    if (DRIVER(cuPointerGetAttribute, &legacy, CU_POINTER_ATTRIBUTE_IS_LEGACY_CUDA_IPC_CAPABLE,
               address_of(data)) == 0 &&
        legacy != 0) {
        *out = WEIR_CUDA_SHARING_HANDLE;
    } else if (DRIVER(cuMemRetainAllocationHandle, &piece, const_cast<void *>(data)) == 0) {
        *out = sharing_of_piece(piece);
        DRIVER(cuMemRelease, piece);
    }
    return 0;
}

/* ---- legacy handles --------------------------------------------------------------------------*/

/* The handle names the whole allocation, so the offset travels beside it. */
int weir_cuda_ipc_export(void *data, void *handle, uint64_t *out_offset)
{
    cudaIpcMemHandle_t own;
    void *base = nullptr;
    size_t n_bytes = 0;
    int error = weir_cuda_allocation_of(data, &base, &n_bytes);
    if (error != 0)
        return error;
    error = taken(cudaIpcGetMemHandle(&own, base));
    if (error != 0)
        return error;
    static_assert(sizeof(own) == WEIR_CUDA_IPC_HANDLE_BYTES, "size of CUDA's handle");
    memcpy(handle, &own, sizeof(own));
    *out_offset = static_cast<char *>(data) - static_cast<char *>(base);
    return 0;
}

int weir_cuda_ipc_import(const void *handle, void **out_base)
{
    cudaIpcMemHandle_t own;
    memcpy(&own, handle, sizeof(own));
    return taken(cudaIpcOpenMemHandle(out_base, own, cudaIpcMemLazyEnablePeerAccess));
}

int weir_cuda_ipc_close(void *base)
{
    return taken(cudaIpcCloseMemHandle(base));
}

/* ---- virtual memory --------------------------------------------------------------------------*/

int weir_cuda_address_reserve(size_t n_bytes, void **out)
{
    CUdeviceptr base = 0;
    int error = DRIVER(cuMemAddressReserve, &base, n_bytes, 0, 0, 0ull);
    if (error == 0)
        *out = reinterpret_cast<void *>(base);
    return error;
}

int weir_cuda_address_free(void *base, size_t n_bytes)
{
    return DRIVER(cuMemAddressFree, address_of(base), n_bytes);
}

int weir_cuda_address_unmap(void *at, size_t n_bytes)
{
    return DRIVER(cuMemUnmap, address_of(at), n_bytes);
}

int weir_cuda_address_grant(int device, void *at, size_t n_bytes)
{
    CUmemAccessDesc access = {};
    access.location.type = CU_MEM_LOCATION_TYPE_DEVICE;
    access.location.id = device;
    access.flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE;
    return DRIVER(cuMemSetAccess, address_of(at), n_bytes, &access, 1);
}

/* Takes the piece: it lives on as long as it is mapped somewhere. */
static int map_piece(void *at, size_t n_bytes, CUmemGenericAllocationHandle piece)
{
    int error = DRIVER(cuMemMap, address_of(at), n_bytes, 0, piece, 0ull);
    DRIVER(cuMemRelease, piece);
    return error;
}

int weir_cuda_address_map(void *at, size_t n_bytes, int fd)
{
    CUmemGenericAllocationHandle piece;
    void *descriptor = reinterpret_cast<void *>(static_cast<uintptr_t>(fd));
    int error = DRIVER(cuMemImportFromShareableHandle, &piece, descriptor, HANDLE_TYPE);
    return error != 0 ? error : map_piece(at, n_bytes, piece);
}

int weir_cuda_piece_export(const void *data, int *out_fd)
{
    CUmemGenericAllocationHandle piece;
    int error = DRIVER(cuMemRetainAllocationHandle, &piece, const_cast<void *>(data));
    if (error != 0)
        return error;
    error = DRIVER(cuMemExportToShareableHandle, out_fd, piece, HANDLE_TYPE, 0ull);
    DRIVER(cuMemRelease, piece);
    return error;
}

static void unmap_all(char *base, size_t mapped, size_t piece_bytes, size_t n_bytes)
{
    for (size_t at = 0; at < mapped; at += piece_bytes)
        weir_cuda_address_unmap(base + at, piece_bytes);
    weir_cuda_address_free(base, n_bytes);
}

int weir_cuda_pieces_allocate(int device, size_t n_bytes, size_t piece_bytes, int shareable,
                              void **out, size_t *out_bytes)
{
    CUmemAllocationProp properties = {};
    properties.type = CU_MEM_ALLOCATION_TYPE_PINNED;
    properties.location.type = CU_MEM_LOCATION_TYPE_DEVICE;
    properties.location.id = device;
    properties.requestedHandleTypes = shareable ? HANDLE_TYPE : CU_MEM_HANDLE_TYPE_NONE;
    size_t unit = 0;
    int error = DRIVER(cuMemGetAllocationGranularity, &unit, &properties,
                       CU_MEM_ALLOC_GRANULARITY_RECOMMENDED);
    if (error != 0)
        return error;
    size_t piece = piece_bytes != 0 ? piece_bytes : n_bytes;
    if (n_bytes > SIZE_MAX / 4 || piece > SIZE_MAX / 4)
        return cudaErrorMemoryAllocation;
    piece = piece == 0 ? unit : (piece + unit - 1) / unit * unit;
    size_t total = n_bytes == 0 ? piece : (n_bytes + piece - 1) / piece * piece, at = 0;
    void *base = nullptr;
    error = weir_cuda_address_reserve(total, &base);
    if (error != 0)
        return error;
    for (; error == 0 && at < total; at += error == 0 ? piece : 0) {
        CUmemGenericAllocationHandle handle;
        error = DRIVER(cuMemCreate, &handle, piece, &properties, 0ull);
        if (error == 0)
            error = map_piece(static_cast<char *>(base) + at, piece, handle);
    }
    if (error == 0)
        error = weir_cuda_address_grant(device, base, total);
    if (error != 0) {
        unmap_all(static_cast<char *>(base), at, piece, total);
        return error;
    }
    *out = base;
    *out_bytes = total;
    return 0;
}

int weir_cuda_pieces_free(void *data)
{
    void *base = nullptr;
    size_t n_bytes = 0;
    int error = weir_cuda_allocation_of(data, &base, &n_bytes);
    if (error == 0 && base != data)
        error = cudaErrorInvalidValue;
    if (error == 0)
        error = weir_cuda_address_unmap(base, n_bytes);
    return error != 0 ? error : weir_cuda_address_free(base, n_bytes);
}
