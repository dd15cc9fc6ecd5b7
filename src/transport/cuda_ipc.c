/* SPDX-License-Identifier: Apache-2.0 */
/* cuda_ipc.c - transport cuda_ipc: GPUs of one host read and map each other's memory.
 *
 * The table, and opening one. It needs no CUDA to be built: everything of CUDA is in
 * libweir_cuda.so, and without a GPU opening says why not.
 */
#include "transport/cuda_ipc.h"

#include <string.h>
#include <sys/random.h>

#include "base/alloc.h"
#include "base/error.h"
#include "transport/transport_lacks.h"
#include "transport/transport_table.h"

static weir_status find_device(cuda_ipc_transport *ipc)
{
    int n = 0;
    weir_status status = weir_cuda_runtime_get(&ipc->cuda);
    if (status == WEIR_OK)
        status = weir_cuda_check(ipc->cuda->count_devices(&n), "cannot count the GPUs");
    if (status == WEIR_OK && ipc->device >= (unsigned)n)
        return weir_fail(WEIR_ERR_INVALID, "transport cuda_ipc: no GPU %u: this process sees %d",
                         ipc->device, n);
    if (status == WEIR_OK)
        status = weir_cuda_check(ipc->cuda->bus_id((int)ipc->device, ipc->gpu, sizeof(ipc->gpu)),
                                 "cannot tell where GPU %u is", ipc->device);
    return status;
}

static weir_status open_transport(const weir_transport_options *given, weir_transport **out)
{
    weir_transport_options options;
    weir_status status =
        weir_transport_struct_read(given, sizeof(options), "weir_transport_options", &options);
    if (status != WEIR_OK)
        return status;
    cuda_ipc_transport *ipc = weir_alloc_zeroed(1, sizeof(*ipc));
    if (ipc == NULL)
        return WEIR_ERR_NO_MEMORY;
    ipc->base.ops = &weir_transport_cuda_ipc;
    ipc->device = options.device;
    status = find_device(ipc);
    if (status == WEIR_OK &&
        getrandom(ipc->owner, sizeof(ipc->owner), 0) != (ssize_t)sizeof(ipc->owner))
        status = weir_fail_errno("transport cuda_ipc: no random bytes");
    if (status != WEIR_OK) {
        weir_free(ipc);
        return status;
    }
    pthread_mutex_init(&ipc->lock, NULL);
    *out = &ipc->base;
    return WEIR_OK;
}

static void close_transport(weir_transport *transport)
{
    if (transport == NULL)
        return;
    cuda_ipc_transport *ipc = (cuda_ipc_transport *)transport;
    weir_cuda_ipc_server_close(ipc);
    pthread_mutex_destroy(&ipc->lock);
    weir_free(ipc);
}

static weir_status address_of(weir_transport *transport, const void **out, size_t *out_n_bytes)
{
    cuda_ipc_transport *ipc = (cuda_ipc_transport *)transport;
    weir_status status = weir_cuda_ipc_server_open(ipc);
    if (status != WEIR_OK)
        return status;
    *out = ipc->server.address.data;
    *out_n_bytes = ipc->server.address.n_bytes;
    return WEIR_OK;
}

const weir_transport_ops weir_transport_cuda_ipc = {
    .size = sizeof(weir_transport_ops),
    .name = "cuda_ipc",
    .caps = WEIR_CAP_READ | WEIR_CAP_LIVENESS | WEIR_CAP_MAP,
    .memory = WEIR_MEMORY_CUDA,
    .open = open_transport,
    .close = close_transport,
    .allocate = weir_cuda_ipc_allocate,
    .expose = weir_cuda_ipc_expose,
    .release = weir_cuda_ipc_release,
    .region_data = weir_cuda_ipc_region_data,
    .seal = weir_cuda_ipc_seal,
    .region_key = weir_cuda_ipc_region_key,
    .address = address_of,
    .connect = weir_cuda_ipc_connect,
    .disconnect = weir_cuda_ipc_disconnect,
    .import = weir_cuda_ipc_import,
    .forget = weir_cuda_ipc_forget,
    .post = weir_cuda_ipc_post,
    .test = weir_cuda_ipc_test,
    .finish = weir_cuda_ipc_finish,
    .map = weir_cuda_ipc_map,
    WEIR_TRANSPORT_LACKS_GROUPS,
};
