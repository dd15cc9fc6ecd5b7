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
#define STAGING_BOUNCE ((uint64_t)32 << 20)

/* Each piece of a parameter goes to the bounce buffer, its new bytes come, and what was there goes
 * to where they were. */
static void plan_swap(weir_replica *replica, size_t i, uint64_t n_bytes, weir_work_copy *out)
{
    unsigned char *live = replica->live[i].data;
    unsigned char *staged = replica->staging + replica->staging_offset[i];
    for (uint64_t at = 0; at < n_bytes; at += STAGING_BOUNCE, out += 3) {
        uint64_t n = n_bytes - at < STAGING_BOUNCE ? n_bytes - at : STAGING_BOUNCE;
        out[0] = (weir_work_copy){ replica->bounce, live + at, n };
        out[1] = (weir_work_copy){ live + at, staged + at, n };
        out[2] = (weir_work_copy){ staged + at, replica->bounce, n };
    }
}

/* Parameters on a GPU and staging in host memory change places through a bounce buffer. */
static weir_status plan_exchange(weir_replica *replica)
{
    size_t n_copies = 0;
    weir_status status = weir_work_allocate(replica->work, STAGING_BOUNCE, &replica->bounce);
    for (int pass = 0; pass < 2 && status == WEIR_OK; pass++) {
        if (pass == 1)
            replica->exchange =
                weir_arena_alloc(&replica->arena, (n_copies + 1) * sizeof(*replica->exchange));
        if (pass == 1 && replica->exchange == NULL)
            return WEIR_ERR_NO_MEMORY;
        n_copies = 0;
        for (size_t i = 0; i < replica->n_parameters; i++) {
            uint64_t n_bytes;
            if (replica->wanted[i].entry == SIZE_MAX ||
                weir_tensor_bytes(replica->live[i].dtype, &replica->live[i].shape, &n_bytes) !=
                    WEIR_OK)
                continue;
            if (pass == 1)
                plan_swap(replica, i, n_bytes, replica->exchange + n_copies);
            n_copies += 3 * ((n_bytes + STAGING_BOUNCE - 1) / STAGING_BOUNCE);
        }
    }
    replica->n_exchange = n_copies;
    return status;
}

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
    weir_status status = weir_work_allocate_host(replica->work, n_bytes ? n_bytes : 1, &memory);
    if (status != WEIR_OK) {
        weir_error_prefix("staging of %" PRIu64 " bytes", n_bytes);
        return status;
    }
    replica->worker.counters.allocations++;
    replica->staging = memory;
    replica->staging_bytes = n_bytes ? n_bytes : 1;
    return weir_work_memory(replica->work) == WEIR_MEMORY_CUDA ? plan_exchange(replica) : WEIR_OK;
}

void weir_staging_close(weir_replica *replica)
{
    if (replica->staging != NULL)
        weir_work_free_host(replica->work, replica->staging, replica->staging_bytes);
    if (replica->bounce != NULL)
        weir_work_free(replica->work, replica->bounce, STAGING_BOUNCE);
    if (replica->windows != NULL)
        replica->serving.ops->release(replica->windows);
    weir_undo_close(&replica->undo);
    weir_buffer_free(&replica->places);
    replica->staging = NULL;
    replica->bounce = NULL;
    replica->windows = NULL;
}

weir_status weir_windows_open(weir_replica *replica)
{
    uint64_t n_bytes = 0;
    weir_status status = WEIR_OK;
    for (size_t i = 0; i < replica->n_parameters && status == WEIR_OK; i++) {
        uint64_t parameter_bytes = 0;
        status =
            weir_tensor_bytes(replica->live[i].dtype, &replica->live[i].shape, &parameter_bytes);
        n_bytes += replica->wanted[i].entry != SIZE_MAX ? parameter_bytes : 0;
    }
    if (status == WEIR_OK)
        status = weir_undo_begin(&replica->undo, replica->work, n_bytes);
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

/* ---- verify ----------------------------------------------------------------------------------*/

/* What landed in staging lies in host memory; what landed directly, where the parameters lie. */
static weir_status digest_landed(weir_replica *replica, const weir_tensor *landed, weir_digest *out)
{
    if (replica->mode == WEIR_INSTALL_STAGED)
        return weir_digest_tensor(replica->worker.pool, landed, out);
    weir_work_range range = { .name = landed->name, .data = landed->data, .dtype = landed->dtype };
    range.digest = out;
    weir_digest_rows_of(landed->dtype, &landed->shape, &range.n_rows, &range.row_bytes);
    weir_status status = weir_task_digest(replica->derive, WEIR_LANE_COMPUTE, &range, 1);
    if (status == WEIR_OK)
        status = weir_task_wait(replica->derive, replica->worker.timeout_ms);
    return status;
}

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
    weir_status status = digest_landed(replica, &landed, &found);
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

/* Live parameters and staging change places; doing it twice is doing nothing. */
static weir_status exchange(weir_replica *replica)
{
    if (weir_work_memory(replica->work) == WEIR_MEMORY_CUDA) {
        weir_status status =
            weir_task_copy(replica->derive, WEIR_LANE_KEEP, replica->exchange, replica->n_exchange);
        if (status == WEIR_OK)
            status = weir_task_wait(replica->derive, replica->worker.timeout_ms);
        return status;
    }
    for (size_t i = 0; i < replica->n_parameters; i++) {
        uint64_t n_bytes;
        if (replica->wanted[i].entry == SIZE_MAX ||
            weir_tensor_bytes(replica->live[i].dtype, &replica->live[i].shape, &n_bytes) != WEIR_OK)
            continue;
        weir_host_swap(replica->worker.pool, replica->live[i].data,
                       replica->staging + replica->staging_offset[i], n_bytes);
    }
    return WEIR_OK;
}

weir_status weir_stop_install(weir_replica *replica)
{
    weir_status status = verify_landed(replica);
    if (status != WEIR_OK || replica->mode == WEIR_INSTALL_DIRECT)
        return status;
    status = weir_live_begin(replica);
    if (status != WEIR_OK)
        return status;
    status = exchange(replica);
    if (status == WEIR_OK)
        return WEIR_OK;
    weir_error_prefix("the parameters of replica %s were exchanged half way", replica->worker.id);
    return WEIR_ERR_PARTIAL;
}

weir_status weir_install_undo(weir_replica *replica)
{
    return exchange(replica);
}
