/* SPDX-License-Identifier: Apache-2.0 */
/* gpu_upload.c - one piece of GPU memory, a tensor after the other. */
#include "gpu_upload.h"

#include <stdlib.h>
#include <string.h>

#include "weir/cuda.h"

#define ALIGNMENT 256u

static uint64_t bytes_of(const weir_tensor *tensor)
{
    uint64_t n_bytes = 0;
    weir_tensor_bytes(tensor->dtype, &tensor->shape, &n_bytes); /* the checkpoint has checked it */
    return n_bytes;
}

static uint64_t room_of(const weir_tensor *tensor)
{
    return (bytes_of(tensor) + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
}

static bool make_room(weir_gpu_upload *upload, uint64_t n_bytes, size_t n_tensors)
{
    void *memory = upload->memory;
    weir_tensor *tensors = realloc(upload->tensors, (n_tensors + 1) * sizeof(*tensors));
    if (tensors == NULL)
        return weir_cli_error("out of memory"), false;
    upload->tensors = tensors;
    if (upload->stream == NULL && weir_cuda_stream_open(upload->device, &upload->stream) != WEIR_OK)
        return weir_cli_fail(), false;
    if (n_bytes <= upload->memory_bytes)
        return true;
    weir_cuda_free(upload->device, memory);
    upload->memory = NULL;
    upload->memory_bytes = 0;
    if (weir_cuda_allocate(upload->device, n_bytes, &memory) != WEIR_OK)
        return weir_cli_fail(), false;
    upload->memory = memory;
    upload->memory_bytes = n_bytes;
    return true;
}

bool weir_gpu_upload_tensors(weir_gpu_upload *upload, const weir_tensor *tensors, size_t n_tensors)
{
    uint64_t total = 0;
    weir_status status = WEIR_OK;
    for (size_t i = 0; i < n_tensors; i++)
        total += room_of(&tensors[i]);
    if (!make_room(upload, total, n_tensors))
        return false;
    unsigned char *at = upload->memory;
    for (size_t i = 0; i < n_tensors && status == WEIR_OK; i++) {
        upload->tensors[i] = tensors[i];
        upload->tensors[i].data = at;
        status = weir_cuda_copy(upload->device, at, tensors[i].data, bytes_of(&tensors[i]),
                                upload->stream);
        at += room_of(&tensors[i]);
    }
    if (status == WEIR_OK)
        status = weir_cuda_stream_wait(upload->device, upload->stream);
    upload->n_tensors = n_tensors;
    return status == WEIR_OK || (weir_cli_fail(), false);
}

void weir_gpu_upload_close(weir_gpu_upload *upload)
{
    weir_cuda_free(upload->device, upload->memory);
    weir_cuda_stream_close(upload->device, upload->stream);
    free(upload->tensors);
    *upload = (weir_gpu_upload){ 0 };
}
