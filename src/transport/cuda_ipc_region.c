/* SPDX-License-Identifier: Apache-2.0 */
/* cuda_ipc_region.c - GPU memory that readers of transport cuda_ipc may map.
 *
 * What the transport allocates is virtual memory where the device has it: a reader's mapping keeps
 * that alive, whatever the owner does. Memory of the caller's is described as what it is.
 */
#include "base/alloc.h"
#include "base/error.h"
#include "transport/cuda_ipc.h"
#include "weir/cuda.h"

#define UNIT ((uint64_t)2 << 20) /* from which on cudaMalloc gives whole pages */

static weir_status encode_key(const cuda_ipc_transport *ipc, cuda_ipc_region *region)
{
    weir_cuda_ipc_key key = { .owner = { ipc->owner[0], ipc->owner[1] },
                              .region = region->number,
                              .n_bytes = region->n_bytes };
    return weir_cuda_ipc_key_encode(&key, &region->key);
}

/* Takes region->data where the region allocated it. */
static weir_status add_region(cuda_ipc_transport *ipc, const cuda_ipc_region *given,
                              weir_region **out)
{
    cuda_ipc_region *region = weir_alloc_zeroed(1, sizeof(*region));
    if (region == NULL)
        return WEIR_ERR_NO_MEMORY;
    *region = *given;
    region->base.transport = &ipc->base;
    region->number = ++ipc->last_region;
    weir_status status = encode_key(ipc, region);
    if (status != WEIR_OK) {
        weir_key_buffer_close(&region->key);
        weir_free(region);
        return status;
    }
    pthread_mutex_lock(&ipc->lock);
    region->next = ipc->regions;
    ipc->regions = region;
    pthread_mutex_unlock(&ipc->lock);
    *out = &region->base;
    return WEIR_OK;
}

/* In a stream of its own: the default one would wait for whatever else the process computes. */
static weir_status clear(const cuda_ipc_transport *ipc, void *data, uint64_t n_bytes)
{
    void *stream = NULL;
    weir_status status = weir_cuda_stream_open(ipc->device, &stream);
    if (status == WEIR_OK)
        status = weir_cuda_fill(ipc->device, data, 0, n_bytes, stream);
    if (status == WEIR_OK)
        status = weir_cuda_stream_wait(ipc->device, stream);
    weir_cuda_stream_close(ipc->device, stream);
    return status;
}

/* A driver or container that gives out no descriptors still has legacy handles. */
static weir_status allocate_memory(const cuda_ipc_transport *ipc, cuda_ipc_region *region)
{
    uint64_t n_bytes = region->n_bytes;
    weir_status status = weir_cuda_allocate_shareable(ipc->device, n_bytes, &region->data);
    if (status == WEIR_OK)
        status = weir_cuda_share_describe(region->data, n_bytes, &region->share);
    if (status != WEIR_ERR_UNSUPPORTED)
        return status;
    weir_cuda_free(ipc->device, region->data);
    region->data = NULL;
    if (n_bytes > UINT64_MAX - UNIT)
        return weir_fail(WEIR_ERR_NO_MEMORY, "out of memory: %llu bytes wanted",
                         (unsigned long long)n_bytes);
    status = weir_cuda_allocate(ipc->device, (n_bytes / UNIT + 1) * UNIT, &region->data);
    if (status == WEIR_OK)
        status = weir_cuda_share_describe(region->data, n_bytes, &region->share);
    return status;
}

weir_status weir_cuda_ipc_allocate(weir_transport *transport, uint64_t n_bytes, weir_region **out)
{
    cuda_ipc_transport *ipc = (cuda_ipc_transport *)transport;
    cuda_ipc_region region = { .n_bytes = n_bytes, .allocated = true };
    weir_status status = allocate_memory(ipc, &region);
    if (status == WEIR_OK)
        status = clear(ipc, region.data, n_bytes);
    if (status == WEIR_OK)
        status = add_region(ipc, &region, out);
    if (status != WEIR_OK)
        weir_cuda_free(ipc->device, region.data);
    return status;
}

weir_status weir_cuda_ipc_expose(weir_transport *transport, void *data, uint64_t n_bytes,
                                 weir_region **out)
{
    cuda_ipc_transport *ipc = (cuda_ipc_transport *)transport;
    cuda_ipc_region region = { .data = data, .n_bytes = n_bytes };
    if (data == NULL)
        return weir_fail(WEIR_ERR_INVALID, "transport cuda_ipc: no memory to expose");
    weir_status status = weir_cuda_share_describe(data, n_bytes, &region.share);
    if (status != WEIR_OK) {
        weir_error_prefix("transport cuda_ipc");
        return status;
    }
    return add_region(ipc, &region, out);
}

/* Once it is out of the list the server's thread does not touch it any more. */
void weir_cuda_ipc_release(weir_region *base)
{
    if (base == NULL)
        return;
    cuda_ipc_region *region = (cuda_ipc_region *)base;
    cuda_ipc_transport *ipc = (cuda_ipc_transport *)base->transport;
    pthread_mutex_lock(&ipc->lock);
    for (cuda_ipc_region **link = &ipc->regions; *link != NULL; link = &(*link)->next) {
        if (*link == region) {
            *link = region->next;
            break;
        }
    }
    pthread_mutex_unlock(&ipc->lock);
    if (region->allocated)
        weir_cuda_free(ipc->device, region->data);
    weir_key_buffer_close(&region->key);
    weir_free(region);
}

void *weir_cuda_ipc_region_data(weir_region *region)
{
    return ((cuda_ipc_region *)region)->data;
}

/* The bytes are read where they are, so there is nothing to write down. */
weir_status weir_cuda_ipc_seal(weir_region *base, const weir_seal *seal)
{
    cuda_ipc_transport *ipc = (cuda_ipc_transport *)base->transport;
    (void)seal;
    pthread_mutex_lock(&ipc->lock);
    ((cuda_ipc_region *)base)->sealed = true;
    pthread_mutex_unlock(&ipc->lock);
    return WEIR_OK;
}

weir_status weir_cuda_ipc_region_key(weir_region *base, const void **out_key, size_t *out_n_bytes)
{
    const cuda_ipc_region *region = (const cuda_ipc_region *)base;
    if (!region->sealed)
        return weir_fail(WEIR_ERR_INVALID,
                         "transport cuda_ipc: a region has no key before its seal");
    *out_key = region->key.data;
    *out_n_bytes = region->key.n_bytes;
    return WEIR_OK;
}
