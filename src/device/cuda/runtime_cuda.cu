/* SPDX-License-Identifier: Apache-2.0 */
/* runtime_cuda.cu - devices, memory, streams and events by the CUDA runtime, linked statically.
 *
 * The runtime uses the device's primary context, the one that PyTorch uses too, so both see the
 * same memory and streams. What other processes map is in share_cuda.cu.
 */
#include <string.h>

#include "device/cuda/driver_cuda.h"
#include "device/cuda/runtime_cuda.h"

#define NO_CONTEXT (-1) /* what a thread had that had used no GPU yet */

static const char *error_text(int error)
{
    return cudaGetErrorString(static_cast<cudaError_t>(error));
}

/* An error that is not sticky stays behind in the runtime and would surface in the host program's
 * next check: take it out. */
static int taken(cudaError_t error)
{
    if (error != cudaSuccess)
        cudaGetLastError();
    return error;
}

/* ---- devices ---------------------------------------------------------------------------------*/

static int count_devices(int *out_n)
{
    return taken(cudaGetDeviceCount(out_n));
}

static int describe(int device, weir_cuda_description *out)
{
    cudaDeviceProp properties;
    int driver = 0;
    cudaError_t error = cudaGetDeviceProperties(&properties, device);
    if (error == cudaSuccess)
        error = cudaDriverGetVersion(&driver);
    if (error != cudaSuccess)
        return taken(error);
    memset(out, 0, sizeof(*out));
    memcpy(out->name, properties.name, sizeof(out->name) - 1);
    out->memory_bytes = properties.totalGlobalMem;
    out->compute_major = properties.major;
    out->compute_minor = properties.minor;
    out->n_multiprocessors = properties.multiProcessorCount;
    out->driver_version = driver;
    return 0;
}

/* A thread without a context counts as one of GPU 0, but putting it back there would make one there:
 * half a gigabyte of a GPU that it may never use. It gets none again. */
static int leave(int previous)
{
    if (previous == NO_CONTEXT)
        return DRIVER(cuCtxSetCurrent, static_cast<CUcontext>(nullptr));
    return taken(cudaSetDevice(previous));
}

static int enter(int device, int *out_previous)
{
    CUcontext context = nullptr;
    cudaError_t error = cudaGetDevice(out_previous);
    int asked = DRIVER(cuCtxGetCurrent, &context);
    if (asked == CUDA_ERROR_NOT_INITIALIZED || (asked == 0 && context == nullptr))
        *out_previous = NO_CONTEXT;
    if (error != cudaSuccess || *out_previous == device)
        return taken(error);
    error = cudaSetDevice(device);
    if (error != cudaSuccess) /* it may have changed the device nevertheless */
        leave(*out_previous);
    return taken(error);
}

static int current_device(int *out)
{
    return taken(cudaGetDevice(out));
}

static int bus_id(int device, char *out, int out_bytes)
{
    return taken(cudaDeviceGetPCIBusId(out, out_bytes, device));
}

/* ---- memory ----------------------------------------------------------------------------------*/

static int allocate(size_t n_bytes, void **out)
{
    return taken(cudaMalloc(out, n_bytes));
}

static int free_device(void *data)
{
    weir_cuda_sharing sharing = WEIR_CUDA_SHARING_NONE;
    if (data != nullptr)
        weir_cuda_sharing_of(data, &sharing);
    bool pieces = sharing == WEIR_CUDA_SHARING_DESCRIPTOR || sharing == WEIR_CUDA_SHARING_PRIVATE;
    return pieces ? weir_cuda_pieces_free(data) : taken(cudaFree(data));
}

static int allocate_pinned(size_t n_bytes, void **out)
{
    return taken(cudaHostAlloc(out, n_bytes, cudaHostAllocPortable));
}

static int free_pinned(void *data)
{
    return taken(cudaFreeHost(data));
}

static int pin(void *data, size_t n_bytes)
{
    return taken(cudaHostRegister(data, n_bytes, cudaHostRegisterPortable));
}

static int unpin(void *data)
{
    return taken(cudaHostUnregister(data));
}

static int memory_left(size_t *out_bytes)
{
    size_t total;
    return taken(cudaMemGetInfo(out_bytes, &total));
}

static int pointer_kind(const void *data, weir_cuda_pointer_kind *out_kind, int *out_device)
{
    cudaPointerAttributes attributes;
    cudaError_t error = cudaPointerGetAttributes(&attributes, data);
    if (error != cudaSuccess)
        return taken(error);
    *out_device = attributes.device;
    *out_kind = attributes.type == cudaMemoryTypeDevice    ? WEIR_CUDA_POINTER_DEVICE
                : attributes.type == cudaMemoryTypeManaged ? WEIR_CUDA_POINTER_MANAGED
                : attributes.type == cudaMemoryTypeHost    ? WEIR_CUDA_POINTER_PINNED
                                                           : WEIR_CUDA_POINTER_HOST;
    return 0;
}

/* ---- streams and events ----------------------------------------------------------------------*/

static cudaStream_t stream_of(void *stream)
{
    return static_cast<cudaStream_t>(stream);
}

static cudaEvent_t event_of(void *event)
{
    return static_cast<cudaEvent_t>(event);
}

static int copy(void *dst, const void *src, size_t n_bytes, void *stream)
{
    return taken(cudaMemcpyAsync(dst, src, n_bytes, cudaMemcpyDefault, stream_of(stream)));
}

static int copy_rows(void *dst, size_t dst_pitch, const void *src, size_t src_pitch,
                     size_t row_bytes, size_t n_rows, void *stream)
{
    return taken(cudaMemcpy2DAsync(dst, dst_pitch, src, src_pitch, row_bytes, n_rows,
                                   cudaMemcpyDefault, stream_of(stream)));
}

static int fill(void *dst, int byte, size_t n_bytes, void *stream)
{
    return taken(cudaMemsetAsync(dst, byte, n_bytes, stream_of(stream)));
}

static int stream_open(void **out)
{
    return taken(
        cudaStreamCreateWithFlags(reinterpret_cast<cudaStream_t *>(out), cudaStreamNonBlocking));
}

static int stream_close(void *stream)
{
    return taken(cudaStreamDestroy(stream_of(stream)));
}

static int stream_test(void *stream)
{
    return taken(cudaStreamQuery(stream_of(stream)));
}

static int event_open(int timed, void **out)
{
    return taken(cudaEventCreateWithFlags(reinterpret_cast<cudaEvent_t *>(out),
                                          timed ? cudaEventDefault : cudaEventDisableTiming));
}

static int event_close(void *event)
{
    return taken(cudaEventDestroy(event_of(event)));
}

static int event_record(void *event, void *stream)
{
    return taken(cudaEventRecord(event_of(event), stream_of(stream)));
}

static int event_test(void *event)
{
    return taken(cudaEventQuery(event_of(event)));
}

static int event_seconds(void *begin, void *end, double *out_seconds)
{
    float milliseconds = 0;
    cudaError_t error = cudaEventElapsedTime(&milliseconds, event_of(begin), event_of(end));
    *out_seconds = milliseconds * 1e-3;
    return taken(error);
}

static int stream_after(void *stream, void *event)
{
    return taken(cudaStreamWaitEvent(stream_of(stream), event_of(event), 0));
}

/* ---- other devices ---------------------------------------------------------------------------*/

static int peer_enable(int peer)
{
    cudaError_t error = cudaDeviceEnablePeerAccess(peer, 0);
    taken(error);
    return error == cudaErrorPeerAccessAlreadyEnabled ? cudaSuccess : error;
}

/* ---- the table -------------------------------------------------------------------------------*/

extern "C" const weir_cuda_runtime weir_cuda_runtime_table = {
    sizeof(weir_cuda_runtime),
    error_text,
    count_devices,
    describe,
    enter,
    leave,
    allocate,
    free_device,
    allocate_pinned,
    free_pinned,
    pin,
    unpin,
    pointer_kind,
    weir_cuda_allocation_of,
    copy,
    fill,
    stream_open,
    stream_close,
    stream_test,
    event_open,
    event_close,
    event_record,
    event_test,
    event_seconds,
    stream_after,
    peer_enable,
    weir_cuda_ipc_export,
    weir_cuda_ipc_import,
    weir_cuda_ipc_close,
    memory_left,
    current_device,
    bus_id,
    weir_cuda_sharing_of,
    weir_cuda_memory_id,
    weir_cuda_pieces_allocate,
    weir_cuda_piece_export,
    weir_cuda_address_reserve,
    weir_cuda_address_map,
    weir_cuda_address_grant,
    weir_cuda_address_unmap,
    weir_cuda_address_free,
    copy_rows,
};
