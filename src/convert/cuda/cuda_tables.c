/* SPDX-License-Identifier: Apache-2.0 */
/* cuda_tables.c - memory that grows, and the two ways between host and GPU. */
#include "convert/cuda/cuda_tables.h"

#include <string.h>

#include "base/alloc.h"
#include "base/error.h"
#include "base/log.h"
#include "device/cuda_wait.h"

/* ---- room ------------------------------------------------------------------------------------*/

static void drop_image(weir_cuda_tables *tables)
{
    tables->cuda->free_pinned(tables->built);
    tables->cuda->free_pinned(tables->sent);
    tables->cuda->free(tables->image);
    tables->built = tables->sent = NULL;
    tables->image = NULL;
    tables->image_room = tables->sent_bytes = 0;
}

static weir_status room_for_image(weir_cuda_tables *tables, size_t n_bytes)
{
    if (n_bytes <= tables->image_room)
        return WEIR_OK;
    drop_image(tables);
    void *built = NULL, *sent = NULL;
    int error = tables->cuda->allocate_pinned(n_bytes, &built);
    tables->built = built;
    if (error == 0)
        error = tables->cuda->allocate_pinned(n_bytes, &sent);
    tables->sent = sent;
    if (error == 0)
        error = tables->cuda->allocate(n_bytes, &tables->image);
    if (error != 0) {
        drop_image(tables);
        return weir_cuda_check(error, "cannot allocate %zu bytes for a batch's tables", n_bytes);
    }
    tables->image_room = n_bytes;
    return weir_alloc_note(n_bytes) ? WEIR_OK : WEIR_ERR_NO_MEMORY;
}

static void drop_results(weir_cuda_tables *tables)
{
    tables->cuda->free_pinned(tables->results);
    tables->cuda->free(tables->device_results);
    tables->results = tables->device_results = NULL;
    tables->n_results_room = 0;
}

static size_t counter_bytes(const weir_cuda_tables *tables)
{
    return tables->n_counters * sizeof(uint32_t);
}

static weir_status room_for_results(weir_cuda_tables *tables, size_t n)
{
    if (n <= tables->n_results_room)
        return WEIR_OK;
    drop_results(tables);
    size_t n_bytes = n * sizeof(weir_cuda_result);
    void *host = NULL, *device = NULL;
    int error = tables->cuda->allocate_pinned(n_bytes, &host);
    if (error == 0)
        error = tables->cuda->allocate(n_bytes + counter_bytes(tables), &device);
    tables->results = host;
    tables->device_results = device;
    if (error != 0) {
        drop_results(tables);
        return weir_cuda_check(error, "cannot allocate %zu bytes for a batch's results", n_bytes);
    }
    tables->n_results_room = n;
    tables->dirty = true;
    return weir_alloc_note(n_bytes) ? WEIR_OK : WEIR_ERR_NO_MEMORY;
}

weir_status weir_cuda_tables_room(weir_cuda_tables *tables, size_t image_bytes, size_t n_results)
{
    if (tables->stuck)
        return weir_fail(WEIR_ERR_DEVICE, "what this batch ran before has not ended on the GPU");
    weir_status status = room_for_image(tables, image_bytes);
    return status == WEIR_OK ? room_for_results(tables, n_results) : status;
}

void weir_cuda_tables_drop(weir_cuda_tables *tables)
{
    if (tables->stuck) {
        weir_log(WEIR_LOG_ERROR, "cuda: a batch does not end: its tables are left behind");
        return;
    }
    drop_image(tables);
    drop_results(tables);
}

void weir_cuda_tables_settle(weir_cuda_tables *tables, void *stream)
{
    int error = weir_cuda_wait_stream(tables->cuda, stream, WEIR_CUDA_DRAIN_MS);
    tables->stuck = tables->stuck || error == WEIR_CUDA_NOT_READY;
}

/* ---- there and back --------------------------------------------------------------------------*/

bool weir_cuda_tables_are_sent(const weir_cuda_tables *tables, size_t image_bytes)
{
    return image_bytes == tables->sent_bytes &&
           memcmp(tables->built, tables->sent, image_bytes) == 0;
}

weir_status weir_cuda_tables_send(weir_cuda_tables *tables, size_t image_bytes, void *stream)
{
    unsigned char *image = tables->built;
    tables->built = tables->sent;
    tables->sent = image;
    tables->sent_bytes = 0; /* until the copy is queued */
    weir_status status =
        weir_cuda_check(tables->cuda->copy(tables->image, image, image_bytes, stream),
                        "cannot send a batch's tables");
    if (status == WEIR_OK)
        tables->sent_bytes = image_bytes;
    return status;
}

int weir_cuda_tables_zero(weir_cuda_tables *tables, size_t n_results, void *stream)
{
    memset(tables->results, 0, n_results * sizeof(*tables->results));
    bool dirty = tables->dirty;
    tables->dirty = true;
    return dirty ? tables->cuda->fill(tables->device_results, 0,
                                      tables->n_results_room * sizeof(*tables->results) +
                                          counter_bytes(tables),
                                      stream)
                 : 0;
}

uint32_t *weir_cuda_tables_counters(const weir_cuda_tables *tables)
{
    return (uint32_t *)(void *)(tables->device_results + tables->n_results_room);
}

weir_status weir_cuda_check_reach(const weir_cuda_runtime *cuda, int device, const void *data,
                                  const char *name)
{
    weir_cuda_pointer_kind kind;
    int owner;
    int error = data != NULL ? cuda->pointer_kind(data, &kind, &owner) : 0;
    if (data == NULL || (error == 0 && kind != WEIR_CUDA_POINTER_HOST))
        return WEIR_OK;
    return weir_fail(WEIR_ERR_INVALID, "%s lies in host memory that GPU %d cannot reach",
                     name != NULL ? name : "(unnamed)", device);
}
