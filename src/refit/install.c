/* SPDX-License-Identifier: Apache-2.0 */
/* install.c - stop 7 of 9: puts landed bytes over the engine's live parameters.
 *
 * Takes   a finished transfer and the parameters that the engine registered.
 * Gives   the same parameters, at the same addresses, holding the new version.
 * Before  transfer.c        After  postprocess.c
 * Breaks  staged: before the first write nothing has changed; after it the undo log brings the old
 *         version back. Direct: the bytes are in place already, and a digest that differs leaves
 * the replica UNUSABLE.
 *
 * In place, because captured CUDA graphs hold these addresses. Every check that can fail therefore
 * runs before the first write. The undo log costs no memory of its own: parameters and staging
 * change places, so that staging then holds what was replaced, and undoing is the same exchange.
 */
#include <inttypes.h>

#include "base/digest.h"
#include "base/error.h"
#include "base/pool.h"
#include "device/host.h"
#include "refit/replica.h"

#define STAGING_ALIGNMENT 256u

weir_status weir_staging_open(weir_replica *replica)
{
    if (replica->mode != WEIR_INSTALL_STAGED || replica->staging != NULL)
        return WEIR_OK;
    uint64_t n_bytes = 0;
    for (size_t i = 0; i < replica->n_parameters; i++) {
        uint64_t parameter_bytes;
        weir_status status =
            weir_tensor_bytes(replica->live[i].dtype, &replica->live[i].shape, &parameter_bytes);
        if (status != WEIR_OK)
            return status;
        replica->staging_offset[i] = n_bytes;
        if (replica->wanted[i].entry == SIZE_MAX)
            continue; /* derived: never transferred */
        n_bytes +=
            (parameter_bytes + STAGING_ALIGNMENT - 1) / STAGING_ALIGNMENT * STAGING_ALIGNMENT;
    }
    void *memory;
    weir_status status = weir_host_allocate(n_bytes ? n_bytes : 1, &memory);
    if (status != WEIR_OK) {
        weir_error_prefix("staging of %" PRIu64 " bytes", n_bytes);
        return status;
    }
    replica->worker.counters.allocations++;
    replica->staging = memory;
    replica->staging_bytes = n_bytes ? n_bytes : 1;
    return WEIR_OK;
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

/* ---- verify ----------------------------------------------------------------------------------*/

static weir_status verify_copy(weir_replica *replica, size_t i)
{
    const weir_schedule *schedule = &replica->schedule;
    const weir_plan_copy *planned = &schedule->planned[i];
    const weir_remote *remote = schedule->participants[planned->source].remote;
    const weir_shard *shard = &remote->shards[planned->shard];
    weir_tensor landed = { .name = shard->name,
                           .dtype = shard->dtype,
                           .shape = weir_box_shape(&shard->box),
                           .data = schedule->copies[i].local };
    weir_digest found;
    weir_status status = weir_digest_tensor(replica->worker.pool, &landed, &found);
    if (status != WEIR_OK || weir_digest_equal(&found, &shard->digest))
        return status;
    return weir_fail(WEIR_ERR_CORRUPT,
                     "digest of %s differs: %s published %016" PRIx64 "%016" PRIx64 ", %016" PRIx64
                     "%016" PRIx64 " arrived",
                     shard->name, remote->who, shard->digest.product, shard->digest.sum,
                     found.product, found.sum);
}

static weir_status verify_landed(weir_replica *replica)
{
    weir_status status = WEIR_OK;
    for (size_t i = 0; i < replica->schedule.n_copies && status == WEIR_OK; i++)
        status = verify_copy(replica, i);
    return status;
}

/* ---- exchange --------------------------------------------------------------------------------*/

/* Live parameters and staging change places; doing it twice is doing nothing. Cannot fail. */
static void exchange(weir_replica *replica)
{
    for (size_t i = 0; i < replica->n_parameters; i++) {
        uint64_t n_bytes;
        if (replica->wanted[i].entry == SIZE_MAX ||
            weir_tensor_bytes(replica->live[i].dtype, &replica->live[i].shape, &n_bytes) != WEIR_OK)
            continue;
        weir_host_swap(replica->worker.pool, replica->live[i].data,
                       replica->staging + replica->staging_offset[i], n_bytes);
    }
}

weir_status weir_stop_install(weir_replica *replica)
{
    weir_status status = verify_landed(replica);
    if (status != WEIR_OK || replica->mode == WEIR_INSTALL_DIRECT)
        return status;
    status = weir_live_begin(replica);
    if (status == WEIR_OK)
        exchange(replica);
    return status;
}

void weir_install_undo(weir_replica *replica)
{
    exchange(replica);
}
