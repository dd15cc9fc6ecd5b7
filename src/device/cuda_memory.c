/* SPDX-License-Identifier: Apache-2.0 */
/* cuda_memory.c - weir/cuda.h's devices, memory, streams and timers over the loaded table.
 *
 * Every call enters its device and leaves it again, so that the host program's own choice of a
 * current device stands.
 */
#include <string.h>

#include "base/alloc.h"
#include "base/error.h"
#include "device/cuda_loader.h"
#include "device/cuda_wait.h"
#include "weir/cuda.h"

static weir_status enter(unsigned device, const weir_cuda_runtime **out, int *out_previous)
{
    weir_status status = weir_cuda_runtime_get(out);
    if (status == WEIR_OK)
        status =
            weir_cuda_check((*out)->enter((int)device, out_previous), "cannot use GPU %u", device);
    return status;
}

/* ---- devices ---------------------------------------------------------------------------------*/

weir_status weir_cuda_devices(unsigned *out_n)
{
    const weir_cuda_runtime *cuda;
    int n = 0;
    weir_status status = weir_cuda_runtime_get(&cuda);
    if (status == WEIR_OK)
        status = weir_cuda_check(cuda->count_devices(&n), "cannot count the GPUs");
    if (status == WEIR_OK)
        *out_n = (unsigned)n;
    return status;
}

weir_status weir_cuda_describe(unsigned device, weir_cuda_device *out)
{
    const weir_cuda_runtime *cuda;
    weir_cuda_description description;
    weir_status status = weir_cuda_runtime_get(&cuda);
    if (status == WEIR_OK)
        status = weir_cuda_check(cuda->describe((int)device, &description),
                                 "cannot describe GPU %u", device);
    if (status != WEIR_OK)
        return status;
    *out = (weir_cuda_device){ .memory_bytes = description.memory_bytes,
                               .compute_major = description.compute_major,
                               .compute_minor = description.compute_minor,
                               .n_multiprocessors = description.n_multiprocessors,
                               .driver_version = description.driver_version };
    memcpy(out->name, description.name, sizeof(out->name));
    return WEIR_OK;
}

/* ---- memory ----------------------------------------------------------------------------------*/

weir_status weir_cuda_memory_left(unsigned device, uint64_t *out_bytes)
{
    const weir_cuda_runtime *cuda;
    int previous;
    size_t left = 0;
    weir_status status = enter(device, &cuda, &previous);
    if (status != WEIR_OK)
        return status;
    status =
        weir_cuda_check(cuda->memory_left(&left), "cannot ask for the memory of GPU %u", device);
    cuda->leave(previous);
    if (status == WEIR_OK)
        *out_bytes = left;
    return status;
}

weir_status weir_cuda_allocate(unsigned device, size_t n_bytes, void **out)
{
    const weir_cuda_runtime *cuda;
    int previous;
    weir_status status = enter(device, &cuda, &previous);
    if (status != WEIR_OK)
        return status;
    void *data = NULL;
    if (!weir_alloc_note(n_bytes))
        status = WEIR_ERR_NO_MEMORY;
    else
        status = weir_cuda_check(cuda->allocate(n_bytes != 0 ? n_bytes : 1, &data),
                                 "cannot allocate %zu bytes on GPU %u", n_bytes, device);
    cuda->leave(previous);
    if (status == WEIR_OK)
        *out = data;
    return status;
}

void weir_cuda_free(unsigned device, void *data)
{
    const weir_cuda_runtime *cuda;
    int previous;
    if (data == NULL || enter(device, &cuda, &previous) != WEIR_OK)
        return;
    cuda->free(data);
    cuda->leave(previous);
}

weir_status weir_cuda_allocate_pinned(size_t n_bytes, void **out)
{
    const weir_cuda_runtime *cuda;
    void *data = NULL;
    weir_status status = weir_cuda_runtime_get(&cuda);
    if (status == WEIR_OK && !weir_alloc_note(n_bytes))
        status = WEIR_ERR_NO_MEMORY;
    if (status == WEIR_OK)
        status = weir_cuda_check(cuda->allocate_pinned(n_bytes != 0 ? n_bytes : 1, &data),
                                 "cannot allocate %zu bytes of pinned memory", n_bytes);
    if (status == WEIR_OK)
        *out = data;
    return status;
}

void weir_cuda_free_pinned(void *data)
{
    const weir_cuda_runtime *cuda;
    if (data != NULL && weir_cuda_runtime_get(&cuda) == WEIR_OK)
        cuda->free_pinned(data);
}

weir_status weir_cuda_copy(unsigned device, void *dst, const void *src, size_t n_bytes,
                           void *stream)
{
    const weir_cuda_runtime *cuda;
    int previous;
    weir_status status = enter(device, &cuda, &previous);
    if (status != WEIR_OK)
        return status;
    if (n_bytes != 0)
        status = weir_cuda_check(cuda->copy(dst, src, n_bytes, stream), "cannot copy %zu bytes",
                                 n_bytes);
    cuda->leave(previous);
    return status;
}

weir_status weir_cuda_fill(unsigned device, void *dst, int byte, size_t n_bytes, void *stream)
{
    const weir_cuda_runtime *cuda;
    int previous;
    weir_status status = enter(device, &cuda, &previous);
    if (status != WEIR_OK)
        return status;
    if (n_bytes != 0)
        status = weir_cuda_check(cuda->fill(dst, byte, n_bytes, stream), "cannot fill %zu bytes",
                                 n_bytes);
    cuda->leave(previous);
    return status;
}

weir_status weir_cuda_device_of(const void *data, unsigned *out_device)
{
    const weir_cuda_runtime *cuda;
    weir_cuda_pointer_kind kind = WEIR_CUDA_POINTER_HOST;
    int device = 0;
    weir_status status = weir_cuda_runtime_get(&cuda);
    if (status == WEIR_OK)
        status = weir_cuda_check(cuda->pointer_kind(data, &kind, &device),
                                 "cannot ask what memory %p is", data);
    if (status != WEIR_OK)
        return status;
    if (kind != WEIR_CUDA_POINTER_DEVICE)
        return weir_fail(WEIR_ERR_INVALID, "%p is no memory of a GPU but %s memory", data,
                         kind == WEIR_CUDA_POINTER_MANAGED ? "managed" : "host");
    *out_device = (unsigned)device;
    return WEIR_OK;
}

weir_status weir_cuda_allocate_shareable(unsigned device, size_t n_bytes, void **out)
{
    const weir_cuda_runtime *cuda;
    int previous;
    weir_status status = enter(device, &cuda, &previous);
    if (status != WEIR_OK)
        return status;
    void *data = NULL;
    size_t taken_bytes;
    int error = 0;
    if (!weir_alloc_note(n_bytes))
        status = WEIR_ERR_NO_MEMORY;
    else
        error = cuda->pieces_allocate((int)device, n_bytes, 0, 1, &data, &taken_bytes);
    if (error == WEIR_CUDA_NOT_SUPPORTED)
        status = weir_fail(WEIR_ERR_UNSUPPORTED,
                           "GPU %u has no memory that is shared by file descriptor", device);
    else if (status == WEIR_OK)
        status = weir_cuda_check(error, "cannot allocate %zu shareable bytes on GPU %u", n_bytes,
                                 device);
    cuda->leave(previous);
    if (status == WEIR_OK)
        *out = data;
    return status;
}

weir_status weir_cuda_peer_enable(unsigned device, unsigned peer)
{
    const weir_cuda_runtime *cuda;
    int previous;
    weir_status status = enter(device, &cuda, &previous);
    if (status != WEIR_OK)
        return status;
    int error = device == peer ? 0 : cuda->peer_enable((int)peer);
    cuda->leave(previous);
    if (error == 0)
        return WEIR_OK;
    return weir_fail(WEIR_ERR_UNSUPPORTED, "GPU %u cannot reach the memory of GPU %u: CUDA says %s",
                     device, peer, cuda->error_text(error));
}

/* ---- streams ---------------------------------------------------------------------------------*/

weir_status weir_cuda_stream_open(unsigned device, void **out)
{
    const weir_cuda_runtime *cuda;
    int previous;
    weir_status status = enter(device, &cuda, &previous);
    if (status != WEIR_OK)
        return status;
    void *stream = NULL;
    status = weir_cuda_check(cuda->stream_open(&stream), "cannot make a stream");
    cuda->leave(previous);
    if (status == WEIR_OK)
        *out = stream;
    return status;
}

void weir_cuda_stream_close(unsigned device, void *stream)
{
    const weir_cuda_runtime *cuda;
    int previous;
    if (stream == NULL || enter(device, &cuda, &previous) != WEIR_OK)
        return;
    cuda->stream_close(stream);
    cuda->leave(previous);
}

weir_status weir_cuda_stream_wait(unsigned device, void *stream)
{
    const weir_cuda_runtime *cuda;
    int previous;
    weir_status status = enter(device, &cuda, &previous);
    if (status != WEIR_OK)
        return status;
    status = weir_cuda_check(weir_cuda_wait_stream(cuda, stream, WEIR_CUDA_WAIT_MS),
                             "work in a stream of GPU %u failed", device);
    cuda->leave(previous);
    return status;
}

struct weir_cuda_timer {
    const weir_cuda_runtime *cuda;
    int device;
    void *begin, *end;
};

weir_status weir_cuda_timer_open(unsigned device, weir_cuda_timer **out)
{
    const weir_cuda_runtime *cuda;
    int previous;
    weir_status status = enter(device, &cuda, &previous);
    if (status != WEIR_OK)
        return status;
    weir_cuda_timer *timer = weir_alloc_zeroed(1, sizeof(*timer));
    if (timer == NULL)
        status = WEIR_ERR_NO_MEMORY;
    if (status == WEIR_OK) {
        timer->cuda = cuda;
        timer->device = (int)device;
        status = weir_cuda_check(cuda->event_open(1, &timer->begin), "cannot make an event");
    }
    if (status == WEIR_OK)
        status = weir_cuda_check(cuda->event_open(1, &timer->end), "cannot make an event");
    cuda->leave(previous);
    if (status == WEIR_OK)
        *out = timer;
    else
        weir_cuda_timer_close(timer);
    return status;
}

void weir_cuda_timer_close(weir_cuda_timer *timer)
{
    if (timer == NULL)
        return;
    if (timer->begin != NULL)
        timer->cuda->event_close(timer->begin);
    if (timer->end != NULL)
        timer->cuda->event_close(timer->end);
    weir_free(timer);
}

static weir_status record(weir_cuda_timer *timer, void *event, void *stream)
{
    int previous, error = timer->cuda->enter(timer->device, &previous);
    if (error == 0) {
        error = timer->cuda->event_record(event, stream);
        timer->cuda->leave(previous);
    }
    return weir_cuda_check(error, "cannot record an event on GPU %d", timer->device);
}

weir_status weir_cuda_timer_begin(weir_cuda_timer *timer, void *stream)
{
    return record(timer, timer->begin, stream);
}

weir_status weir_cuda_timer_end(weir_cuda_timer *timer, void *stream)
{
    return record(timer, timer->end, stream);
}

weir_status weir_cuda_timer_seconds(weir_cuda_timer *timer, double *out_seconds)
{
    int error = weir_cuda_wait_event(timer->cuda, timer->end, WEIR_CUDA_WAIT_MS);
    if (error == 0)
        error = timer->cuda->event_seconds(timer->begin, timer->end, out_seconds);
    return weir_cuda_check(error, "cannot read a timer of GPU %d", timer->device);
}
