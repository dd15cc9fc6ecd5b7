/* SPDX-License-Identifier: Apache-2.0 */
/* exchange.c - staging, and how it changes places with the live parameters.
 *
 * The undo log of a staged install costs no memory of its own: what a version replaces goes where
 * the version came from, by the plan of that version, and the same exchange brings it back. Bytes
 * that the plan does not fill (rows that pad a vocabulary) stay as they are.
 *
 * Parameters on a GPU change places with staging in host memory through a bounce buffer.
 */
#include <inttypes.h>

#include "base/alloc.h"
#include "base/error.h"
#include "base/pool.h"
#include "device/host.h"
#include "refit/replica.h"

#define STAGING_ALIGNMENT 256u
#define SWAP_BYTES ((uint64_t)4 << 20) /* of one task */

static uint64_t least(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

static unsigned char *live_of(const weir_replica *replica, const weir_swap *swap)
{
    return (unsigned char *)replica->live[swap->parameter].data + swap->live_at;
}

static unsigned char *staged_of(const weir_replica *replica, const weir_swap *swap)
{
    return replica->staging + replica->staging_offset[swap->parameter] + swap->staged_at;
}

/* ---- host memory -----------------------------------------------------------------------------*/

static const weir_swap *swap_of_task(const weir_landing *landing, size_t task)
{
    size_t low = 0, high = landing->n_swaps - 1;
    while (low < high) {
        size_t middle = low + (high - low + 1) / 2;
        if (landing->swaps[middle].first_task <= task)
            low = middle;
        else
            high = middle - 1;
    }
    return &landing->swaps[low];
}

static weir_status swap_task(void *context, size_t number, unsigned thread)
{
    const weir_replica *replica = context;
    const weir_swap *swap = swap_of_task(&replica->schedule.landing, number);
    unsigned char *live = live_of(replica, swap), *staged = staged_of(replica, swap);
    uint64_t at = (number - swap->first_task) * SWAP_BYTES;
    uint64_t end = least(at + SWAP_BYTES, swap->n_bytes);
    (void)thread;
    for (uint64_t n; at < end; at += n) {
        uint64_t run = at / swap->run_bytes, within = at % swap->run_bytes;
        n = least(swap->run_bytes - within, end - at);
        weir_host_swap(NULL, live + run * swap->pitch_bytes + within, staged + at, n);
    }
    return WEIR_OK;
}

static void number_tasks(weir_landing *landing)
{
    landing->n_swap_tasks = 0;
    for (size_t i = 0; i < landing->n_swaps; i++) {
        landing->swaps[i].first_task = landing->n_swap_tasks;
        landing->n_swap_tasks += (landing->swaps[i].n_bytes + SWAP_BYTES - 1) / SWAP_BYTES;
    }
}

/* ---- GPU memory ------------------------------------------------------------------------------*/

weir_status weir_bounce_open(weir_replica *replica)
{
    if (replica->bounce != NULL)
        return WEIR_OK;
    return weir_work_allocate(replica->work, WEIR_BOUNCE_BYTES, &replica->bounce);
}

/* Rows go to the bounce buffer, what was staged goes to their place, and they go to its. */
static void plan_rows(const weir_replica *replica, const weir_work_rows *live,
                      unsigned char *staged, weir_work_rows *out)
{
    uint64_t n = live->row_bytes;
    out[0] = (weir_work_rows){ replica->bounce, live->to, n, live->n_rows, n, live->to_pitch };
    out[1] = (weir_work_rows){ live->to, staged, n, live->n_rows, live->to_pitch, n };
    out[2] = (weir_work_rows){ staged, replica->bounce, n * live->n_rows, 1, 0, 0 };
}

/* Writes three copies for each bounce buffer that a swap fills, where `out` is not NULL; returns
 * how many copies that is. */
static size_t plan_swap(const weir_replica *replica, const weir_swap *swap, weir_work_rows *out)
{
    uint64_t row_bytes = least(swap->run_bytes, WEIR_BOUNCE_BYTES);
    uint64_t n_rows = swap->run_bytes <= WEIR_BOUNCE_BYTES ? WEIR_BOUNCE_BYTES / row_bytes : 1;
    size_t n_copies = 0;
    for (uint64_t at = 0, n; at < swap->n_bytes; at += n, n_copies += 3) {
        uint64_t run = at / swap->run_bytes, within = at % swap->run_bytes;
        uint64_t left = swap->run_bytes - within;
        weir_work_rows live = { .row_bytes = least(row_bytes, left), .n_rows = 1 };
        if (within == 0 && left == row_bytes)
            live.n_rows = least(n_rows, (swap->n_bytes - at) / row_bytes);
        live.to_pitch = live.n_rows > 1 ? swap->pitch_bytes : live.row_bytes;
        n = live.row_bytes * live.n_rows;
        if (out == NULL)
            continue;
        live.to = live_of(replica, swap) + run * swap->pitch_bytes + within;
        plan_rows(replica, &live, staged_of(replica, swap) + at, out + n_copies);
    }
    return n_copies;
}

static weir_status plan_exchange(weir_replica *replica)
{
    weir_landing *landing = &replica->schedule.landing;
    size_t n = 0;
    if (landing->exchange != NULL)
        return WEIR_OK;
    weir_status status = weir_bounce_open(replica);
    if (status != WEIR_OK)
        return status;
    for (size_t i = 0; i < landing->n_swaps; i++)
        n += plan_swap(replica, &landing->swaps[i], NULL);
    landing->exchange = weir_alloc_zeroed(n, sizeof(*landing->exchange));
    if (landing->exchange == NULL)
        return WEIR_ERR_NO_MEMORY;
    for (size_t i = 0; i < landing->n_swaps; i++)
        landing->n_exchange +=
            plan_swap(replica, &landing->swaps[i], landing->exchange + landing->n_exchange);
    return WEIR_OK;
}

/* ---- staging ---------------------------------------------------------------------------------*/

static weir_status allocate_staging(weir_replica *replica)
{
    uint64_t n_bytes = 0;
    void *memory;
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
    weir_status status = weir_work_allocate_host(replica->work, n_bytes ? n_bytes : 1, &memory);
    if (status != WEIR_OK) {
        weir_error_prefix("staging of %" PRIu64 " bytes", n_bytes);
        return status;
    }
    replica->worker.counters.allocations++;
    replica->staging = memory;
    replica->staging_bytes = n_bytes ? n_bytes : 1;
    return WEIR_OK;
}

weir_status weir_staging_open(weir_replica *replica)
{
    weir_status status = WEIR_OK;
    if (replica->mode != WEIR_INSTALL_STAGED)
        return WEIR_OK;
    if (replica->staging == NULL)
        status = allocate_staging(replica);
    if (status == WEIR_OK && weir_work_memory(replica->work) == WEIR_MEMORY_CUDA)
        status = plan_exchange(replica);
    else if (status == WEIR_OK)
        number_tasks(&replica->schedule.landing);
    return status;
}

void weir_staging_close(weir_replica *replica)
{
    if (replica->staging != NULL)
        weir_work_free_host(replica->work, replica->staging, replica->staging_bytes);
    if (replica->bounce != NULL)
        weir_work_free(replica->work, replica->bounce, WEIR_BOUNCE_BYTES);
    if (replica->windows != NULL)
        replica->serving.ops->release(replica->windows);
    weir_undo_close(&replica->undo);
    weir_buffer_free(&replica->places);
    replica->staging = NULL;
    replica->bounce = NULL;
    replica->windows = NULL;
}

/* ---- the exchange ----------------------------------------------------------------------------*/

weir_status weir_exchange(weir_replica *replica)
{
    const weir_landing *landing = &replica->schedule.landing;
    if (weir_work_memory(replica->work) == WEIR_MEMORY_HOST)
        return weir_pool_run(replica->worker.pool, landing->n_swap_tasks, swap_task, replica);
    weir_status status = weir_task_copy_rows(replica->derive, WEIR_LANE_KEEP, landing->exchange,
                                             landing->n_exchange);
    if (status == WEIR_OK)
        status = weir_task_wait(replica->derive, replica->worker.timeout_ms);
    return status;
}
