/* SPDX-License-Identifier: Apache-2.0 */
/* nccl.c - transport nccl: broadcasts between GPUs through NVIDIA's library.
 *
 * Matched, not one-sided: all ranks of a group post the same list. No memory is exposed, and nobody
 * is connected to; which ranks there are and what comes next is told over another channel. NCCL's
 * own variables (NCCL_…) are left as its user has set them.
 */
#include "transport/nccl.h"

#include <string.h>

#include "base/alloc.h"
#include "base/env.h"
#include "transport/transport_lacks.h"
#include "transport/transport_table.h"

static weir_status check_device(const weir_cuda_runtime *cuda, unsigned device)
{
    int n = 0;
    weir_status status = weir_cuda_check(cuda->count_devices(&n), "cannot count the GPUs");
    if (status == WEIR_OK && device >= (unsigned)n)
        status =
            weir_fail(WEIR_ERR_UNSUPPORTED, "transport nccl: no GPU %u, there are %d", device, n);
    return status;
}

static weir_status open_transport(const weir_transport_options *given, weir_transport **out)
{
    weir_transport_options options;
    const weir_cuda_runtime *cuda;
    const weir_nccl_library *nccl;
    weir_status status =
        weir_transport_struct_read(given, sizeof(options), "weir_transport_options", &options);
    if (status == WEIR_OK)
        status = weir_cuda_runtime_get(&cuda);
    if (status == WEIR_OK)
        status = weir_nccl_library_get(&nccl);
    if (status == WEIR_OK)
        status = check_device(cuda, options.device);
    if (status != WEIR_OK)
        return status;
    if (weir_env_foreign_is("NCCL_COMM_BLOCKING", "1"))
        return weir_fail(WEIR_ERR_UNSUPPORTED,
                         "transport nccl: NCCL_COMM_BLOCKING=1 would take every bound from waiting "
                         "for other ranks: unset it");
    nccl_transport *transport = weir_alloc_zeroed(1, sizeof(*transport));
    if (transport == NULL)
        return WEIR_ERR_NO_MEMORY;
    *transport = (nccl_transport){ { &weir_transport_nccl }, nccl, cuda, options.device };
    *out = &transport->base;
    return WEIR_OK;
}

static void close_transport(weir_transport *transport)
{
    weir_free(transport);
}

static weir_status group_key(weir_transport *base, void *out_key)
{
    nccl_transport *transport = (nccl_transport *)base;
    weir_nccl_id id;
    int result = transport->nccl->get_unique_id(&id);
    if (result != WEIR_NCCL_SUCCESS)
        return weir_nccl_fail(transport->nccl, result, "transport nccl", "no key for a group");
    memcpy(out_key, &id, sizeof(id));
    return WEIR_OK;
}

const weir_transport_ops weir_transport_nccl = {
    .size = sizeof(weir_transport_ops),
    .name = "nccl",
    .caps = WEIR_CAP_MATCHED,
    .memory = WEIR_MEMORY_CUDA,
    .open = open_transport,
    .close = close_transport,
    WEIR_TRANSPORT_LACKS_READ,
    WEIR_TRANSPORT_LACKS_MAP,
    .group_key = group_key,
    .group_open = weir_nccl_group_open,
    .group_test = weir_nccl_group_test,
    .group_broadcast = weir_nccl_group_broadcast,
    .group_close = weir_nccl_group_close,
    .group_progress = weir_transport_lacks_group_progress,
    .group_leave = weir_nccl_group_leave,
};
