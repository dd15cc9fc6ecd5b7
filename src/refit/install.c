/* SPDX-License-Identifier: Apache-2.0 */
/* install.c - stop 7 of 9: puts landed bytes over the engine's live parameters.
 *
 * Takes   landed bytes that landing.c has verified, and the parameters that the engine registered.
 * Gives   the same parameters, at the same addresses, holding the new version.
 * Before  transfer.c        After  postprocess.c
 * Breaks  before the first write nothing has changed; after it the undo log brings the old version
 *         back. Of a direct install the bytes are in place already and there is nothing to do here:
 *         a digest that differs leaves the replica UNUSABLE.
 *
 * In place, because captured CUDA graphs hold these addresses. Every check that can fail therefore
 * runs before the first write. The undo log costs no memory of its own: parameters and staging
 * change places, so that staging then holds what was replaced, and undoing is the same exchange.
 */
#include <inttypes.h>

#include "base/error.h"
#include "refit/replica.h"

static weir_status open_undo(weir_replica *replica)
{
    uint64_t n_bytes = 0;
    weir_status status = WEIR_OK;
    for (size_t i = 0; i < replica->n_parameters && status == WEIR_OK; i++) {
        uint64_t parameter_bytes = 0;
        status =
            weir_tensor_bytes(replica->live[i].dtype, &replica->live[i].shape, &parameter_bytes);
        n_bytes += replica->wanted[i].entry != SIZE_MAX ? parameter_bytes : 0;
    }
    return status == WEIR_OK ? weir_undo_begin(&replica->undo, replica->work, n_bytes) : status;
}

weir_status weir_windows_open(weir_replica *replica)
{
    weir_status status = WEIR_OK;
    if (replica->mode == WEIR_INSTALL_STAGED)
        status = open_undo(replica);
    if (status != WEIR_OK || replica->windows != NULL)
        return status;
    if (replica->serving.ops == NULL)
        return weir_fail(WEIR_ERR_UNSUPPORTED,
                         "replica %s has no transport by which its windows could be written",
                         replica->worker.id);
    uint64_t total_bytes = replica->window_bytes * WEIR_REPLICA_WINDOWS;
    weir_seal seal = WEIR_SEAL_INIT;
    seal.model = replica->worker.model;
    seal.label = replica->worker.id;
    replica->worker.counters.registrations++;
    replica->worker.counters.allocations++;
    status =
        replica->serving.ops->allocate(replica->serving.transport, total_bytes, &replica->windows);
    if (status == WEIR_OK)
        status = replica->serving.ops->seal(replica->windows, &seal);
    if (status != WEIR_OK)
        weir_error_prefix("windows of %" PRIu64 " bytes", total_bytes);
    return status;
}

unsigned char *weir_window_of(const weir_replica *replica, uint32_t step)
{
    unsigned char *data = replica->serving.ops->region_data(replica->windows);
    return data + step % WEIR_REPLICA_WINDOWS * replica->window_bytes;
}

weir_status weir_live_begin(weir_replica *replica)
{
    weir_status status = WEIR_OK;
    if (replica->hooks.pause != NULL)
        status = replica->hooks.pause(replica->hooks.context);
    if (status != WEIR_OK)
        return weir_fail(status, "the engine did not pause: %s", weir_status_text(status));
    weir_holding_withdraw(replica);
    return WEIR_OK;
}

void weir_live_end(weir_replica *replica)
{
    if (replica->hooks.resume != NULL)
        replica->hooks.resume(replica->hooks.context);
}

weir_status weir_stop_install(weir_replica *replica)
{
    weir_status status = weir_live_begin(replica);
    if (status != WEIR_OK)
        return status;
    status = weir_exchange(replica);
    if (status == WEIR_OK)
        return WEIR_OK;
    weir_error_prefix("the parameters of replica %s were exchanged half way", replica->worker.id);
    return WEIR_ERR_PARTIAL;
}

weir_status weir_install_undo(weir_replica *replica)
{
    return weir_exchange(replica);
}
