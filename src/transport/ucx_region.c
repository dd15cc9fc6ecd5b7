/* SPDX-License-Identifier: Apache-2.0 */
/* ucx_region.c - memory that readers of transport ucx may read.
 *
 * Memory that UCX allocates lies in a shared segment: a reader on the same host maps it. Memory of
 * the caller's is read through the kernel (CMA) or, where that is denied, by messages.
 */
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

#include "base/alloc.h"
#include "base/error.h"
#include "transport/transport_table.h"
#include "transport/ucx_stream.h"

static weir_status encode_key(ucx_transport *ucx, ucx_region *region)
{
    void *rkey;
    size_t rkey_bytes;
    ucs_status_t status = ucp_rkey_pack(ucx->context, region->memory, &rkey, &rkey_bytes);
    if (status != UCS_OK)
        return weir_ucx_fail(status, "transport ucx", "a region has no remote key");
    weir_ucx_key key = { .base = (uintptr_t)region->data,
                         .n_bytes = region->n_bytes,
                         .rkey = rkey,
                         .rkey_bytes = rkey_bytes };
    snprintf(key.ucx_version, sizeof(key.ucx_version), "%s", ucp_get_version_string());
    weir_status result = weir_ucx_key_encode(&key, &region->key);
    ucp_rkey_buffer_release(rkey);
    return result;
}

/* data NULL: UCX allocates. */
static weir_status map_memory(ucx_transport *ucx, void *data, ucx_region *region)
{
    size_t n_bytes = region->n_bytes > 0 ? (size_t)region->n_bytes : 1; /* UCX maps no empty one */
    ucp_mem_map_params_t params = {
        .field_mask = UCP_MEM_MAP_PARAM_FIELD_ADDRESS | UCP_MEM_MAP_PARAM_FIELD_LENGTH |
                      UCP_MEM_MAP_PARAM_FIELD_FLAGS,
        .address = data,
        .length = n_bytes,
        .flags = data == NULL ? UCP_MEM_MAP_ALLOCATE : 0,
    };
    ucs_status_t status = ucp_mem_map(ucx->context, &params, &region->memory);
    if (status != UCS_OK)
        return weir_ucx_fail(status, "transport ucx", "cannot map a region");
    ucp_mem_attr_t attributes = { .field_mask = UCP_MEM_ATTR_FIELD_ADDRESS };
    status = ucp_mem_query(region->memory, &attributes);
    if (status != UCS_OK) {
        ucp_mem_unmap(ucx->context, region->memory);
        return weir_ucx_fail(status, "transport ucx", "cannot query a region");
    }
    /* Of the caller's memory UCX may answer with what it has registered around it. */
    region->data = data != NULL ? data : attributes.address;
    return WEIR_OK;
}

static weir_status open_region(weir_transport *transport, void *data, uint64_t n_bytes,
                               weir_region **out)
{
    ucx_transport *ucx = (ucx_transport *)transport;
    weir_status status = weir_ucx_server_open(ucx);
    if (status != WEIR_OK)
        return status;
    ucx_region *region = weir_alloc_zeroed(1, sizeof(*region));
    if (region == NULL)
        return WEIR_ERR_NO_MEMORY;
    region->base.transport = transport;
    region->n_bytes = n_bytes;
    region->allocated = data == NULL;
    status = map_memory(ucx, data, region);
    if (status != WEIR_OK)
        goto err_free_region;
    if (region->allocated)
        memset(region->data, 0, n_bytes); /* touches every page too: none is left to fault later */
    status = encode_key(ucx, region);
    if (status != WEIR_OK)
        goto err_unmap;
    *out = &region->base;
    return WEIR_OK;

err_unmap:
    ucp_mem_unmap(ucx->context, region->memory);
err_free_region:
    weir_key_buffer_close(&region->key);
    weir_free(region);
    return status;
}

weir_status weir_ucx_allocate(weir_transport *transport, uint64_t n_bytes, weir_region **out)
{
    if (!weir_alloc_note((size_t)n_bytes))
        return WEIR_ERR_NO_MEMORY;
    return open_region(transport, NULL, n_bytes, out);
}

weir_status weir_ucx_expose(weir_transport *transport, void *data, uint64_t n_bytes,
                            weir_region **out)
{
    if (data == NULL)
        return weir_fail(WEIR_ERR_INVALID, "transport ucx: no memory to expose");
    return open_region(transport, data, n_bytes, out);
}

static void unmap(ucx_transport *ucx, ucx_region *region)
{
    ucp_mem_unmap(ucx->context, region->memory);
    weir_free(region);
}

static ucx_range range_of(const ucx_region *region)
{
    return (ucx_range){ (uintptr_t)region->data, region->n_bytes };
}

/* A reader may still hold the key of a released region. One over TCP is refused what it asks for.
 * Where UCX emulates its read, our own worker would touch the address; where it maps the segment,
 * one that is gone makes ucp_ep_rkey_unpack() of UCX 1.13 clean up what it has not set. So the
 * memory is given back, but the mapping stays: it reads as zeros, which no digest agrees with,
 * until the transport closes. */
void weir_ucx_release(weir_region *base)
{
    if (base == NULL)
        return;
    ucx_region *region = (ucx_region *)base;
    ucx_transport *ucx = (ucx_transport *)base->transport;
    weir_key_buffer_close(&region->key);
    if (region->sealed && ucx->server.streams != NULL)
        weir_stream_ranges_remove(&ucx->server.streams->ranges, range_of(region));
    if (!region->allocated || !region->sealed) {
        unmap(ucx, region);
        return;
    }
    if (madvise(region->data, region->n_bytes, MADV_REMOVE) != 0) /* of a shared segment */
        madvise(region->data, region->n_bytes, MADV_DONTNEED);    /* of anything else */
    region->next_released = ucx->released;
    ucx->released = region;
}

void weir_ucx_released_close(ucx_transport *ucx)
{
    while (ucx->released != NULL) {
        ucx_region *region = ucx->released;
        ucx->released = region->next_released;
        unmap(ucx, region);
    }
}

void *weir_ucx_region_data(weir_region *region)
{
    return ((ucx_region *)region)->data;
}

/* The bytes are read where they are, so there is nothing to write down. */
weir_status weir_ucx_seal(weir_region *base, const weir_seal *seal)
{
    ucx_region *region = (ucx_region *)base;
    ucx_stream_server *streams = ((ucx_transport *)base->transport)->server.streams;
    weir_status status = WEIR_OK;
    (void)seal;
    if (!region->sealed && streams != NULL)
        status = weir_stream_ranges_add(&streams->ranges, range_of(region));
    if (status == WEIR_OK)
        region->sealed = true;
    return status;
}

weir_status weir_ucx_region_key(weir_region *base, const void **out_key, size_t *out_n_bytes)
{
    ucx_region *region = (ucx_region *)base;
    if (!region->sealed)
        return weir_fail(WEIR_ERR_INVALID, "transport ucx: a region has no key before its seal");
    *out_key = region->key.data;
    *out_n_bytes = region->key.n_bytes;
    return WEIR_OK;
}
