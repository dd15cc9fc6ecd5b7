/* SPDX-License-Identifier: Apache-2.0 */
/* cuda_ipc_transfer.c - reads of transport cuda_ipc: copies by the copy engines, a few at a time.
 *
 * A peer has a stream of its own. Copies are queued in batches with an event behind each; what is
 * in flight is bounded, so that a finish waits for milliseconds: CUDA cannot take a copy back. A
 * destination that CUDA does not know (pageable memory) is copied to by the call itself, in pieces
 * that take about a millisecond. Nothing is allocated.
 */
#include <string.h>
#include <time.h>

#include "base/clock.h"
#include "base/error.h"
#include "base/log.h"
#include "transport/cuda_ipc.h"
#include "transport/transport_table.h"

/* Between two copies of a stream lie microseconds, so that large ones are faster: 64 MiB take 170
 * us over NVLink. The first ones are small, so that progress shows early. */
#define BATCH_BYTES ((uint64_t)16 << 20)
#define BATCH_BYTES_MAX ((uint64_t)64 << 20)
#define BATCH_COPIES 256u
#define BLOCKING_BYTES ((uint64_t)4 << 20)
#define TURN_NS 2000000u
#define SPIN_NS 30000u /* a batch often ends within that: cheaper than to sleep */
#define NAP_NS 20000
#define DRAIN_MS 2000u /* for what is in flight to end */

static cuda_ipc_transport *transport_of(const cuda_ipc_peer *peer)
{
    return (cuda_ipc_transport *)peer->base.transport;
}

static cuda_ipc_peer *peer_of(const cuda_ipc_transfer *transfer)
{
    return (cuda_ipc_peer *)transfer->base.peer;
}

static const weir_cuda_runtime *cuda_of(const cuda_ipc_transfer *transfer)
{
    return transport_of(peer_of(transfer))->cuda;
}

/* ---- a peer's stream and events --------------------------------------------------------------*/

weir_status weir_cuda_ipc_transfer_open(cuda_ipc_peer *peer)
{
    const cuda_ipc_transport *ipc = transport_of(peer);
    int previous, error = ipc->cuda->enter((int)ipc->device, &previous);
    if (error == 0) {
        error = ipc->cuda->stream_open(&peer->stream);
        for (unsigned i = 0; error == 0 && i < WEIR_CUDA_IPC_BATCHES; i++)
            error = ipc->cuda->event_open(0, &peer->transfer.batches[i].event);
        ipc->cuda->leave(previous);
    }
    return weir_cuda_check(error, "%s: no stream on GPU %u", peer->who, ipc->device);
}

void weir_cuda_ipc_transfer_close(cuda_ipc_peer *peer)
{
    const cuda_ipc_transport *ipc = transport_of(peer);
    int previous;
    if (peer->stream == NULL || ipc->cuda->enter((int)ipc->device, &previous) != 0)
        return;
    for (unsigned i = 0; i < WEIR_CUDA_IPC_BATCHES; i++)
        if (peer->transfer.batches[i].event != NULL)
            ipc->cuda->event_close(peer->transfer.batches[i].event);
    ipc->cuda->stream_close(peer->stream);
    ipc->cuda->leave(previous);
}

/* ---- queueing --------------------------------------------------------------------------------*/

/* False when there is nothing left to queue. */
static bool next_copy(cuda_ipc_transfer *transfer)
{
    while (transfer->next_copy < transfer->n_copies &&
           transfer->next_offset == transfer->copies[transfer->next_copy].n_bytes) {
        transfer->next_copy++;
        transfer->next_offset = 0;
    }
    return transfer->next_copy < transfer->n_copies;
}

static void look_at_destination(cuda_ipc_transfer *transfer, const weir_copy *copy)
{
    weir_cuda_pointer_kind kind = WEIR_CUDA_POINTER_HOST;
    int device;
    int error = cuda_of(transfer)->pointer_kind(copy->local, &kind, &device);
    transfer->next_blocks = error != 0 || kind == WEIR_CUDA_POINTER_HOST;
}

/* Queues up to `room` bytes of the next copy, and adds them to the batch. */
static int queue_copy(cuda_ipc_transfer *transfer, cuda_ipc_batch *batch, uint64_t room)
{
    const weir_copy *copy = &transfer->copies[transfer->next_copy];
    const cuda_ipc_remote *remote = (const cuda_ipc_remote *)copy->remote;
    uint64_t n_bytes = copy->n_bytes - transfer->next_offset;
    if (transfer->next_offset == 0)
        look_at_destination(transfer, copy);
    if (transfer->next_blocks && room > BLOCKING_BYTES)
        room = BLOCKING_BYTES;
    if (n_bytes > room)
        n_bytes = room;
    int error = cuda_of(transfer)->copy((char *)copy->local + transfer->next_offset,
                                        remote->data + copy->offset + transfer->next_offset,
                                        n_bytes, peer_of(transfer)->stream);
    if (error == 0) {
        transfer->next_offset += n_bytes;
        batch->n_bytes += n_bytes;
    }
    return error;
}

static int queue_batch(cuda_ipc_transfer *transfer, uint64_t end_ns)
{
    unsigned slot = (transfer->first_batch + transfer->n_batches) % WEIR_CUDA_IPC_BATCHES;
    cuda_ipc_batch *batch = &transfer->batches[slot];
    int error = 0;
    batch->n_bytes = 0;
    for (unsigned i = 0; error == 0 && i < BATCH_COPIES && batch->n_bytes < transfer->batch_bytes &&
                         (i == 0 || weir_now_ns() < end_ns) && next_copy(transfer);
         i++)
        error = queue_copy(transfer, batch, transfer->batch_bytes - batch->n_bytes);
    int recorded = cuda_of(transfer)->event_record(batch->event, peer_of(transfer)->stream);
    if (recorded == 0)
        transfer->n_batches++; /* what was queued before a failure is waited for, too */
    if (transfer->batch_bytes < BATCH_BYTES_MAX)
        transfer->batch_bytes *= 2;
    return error != 0 ? error : recorded;
}

static int queue_turn(cuda_ipc_transfer *transfer, unsigned n_batches)
{
    uint64_t end_ns = weir_now_ns() + TURN_NS;
    int error = 0;
    for (unsigned i = 0;
         error == 0 && i < n_batches && transfer->n_batches < WEIR_CUDA_IPC_BATCHES &&
         next_copy(transfer) && (i == 0 || weir_now_ns() < end_ns);
         i++)
        error = queue_batch(transfer, end_ns);
    return error;
}

/* ---- what has arrived ------------------------------------------------------------------------*/

/* Waits for the oldest batch until end_ns: 0, WEIR_CUDA_NOT_READY, or why it failed. */
static int wait_batch(const cuda_ipc_transfer *transfer, uint64_t end_ns)
{
    const cuda_ipc_batch *batch = &transfer->batches[transfer->first_batch];
    const struct timespec nap = { .tv_nsec = NAP_NS };
    uint64_t spin_ns = weir_now_ns() + SPIN_NS;
    for (;;) {
        int error = cuda_of(transfer)->event_test(batch->event);
        uint64_t now_ns = weir_now_ns();
        if (error != WEIR_CUDA_NOT_READY || now_ns >= end_ns)
            return error;
        if (now_ns >= spin_ns)
            nanosleep(&nap, NULL);
    }
}

/* One batch a turn, so that progress shows as it is made. */
static int take_batch(cuda_ipc_transfer *transfer, uint64_t end_ns)
{
    if (transfer->n_batches == 0)
        return 0;
    int error = wait_batch(transfer, end_ns);
    if (error != 0)
        return error == WEIR_CUDA_NOT_READY ? 0 : error;
    transfer->done_bytes += transfer->batches[transfer->first_batch].n_bytes;
    transfer->first_batch = (transfer->first_batch + 1) % WEIR_CUDA_IPC_BATCHES;
    transfer->n_batches--;
    return 0;
}

/* An owner that dies may take the mapping with it: then that is why. */
static weir_status failed(const cuda_ipc_transfer *transfer, int error)
{
    cuda_ipc_peer *peer = peer_of(transfer);
    weir_status status = weir_cuda_ipc_peer_check(peer);
    if (status != WEIR_OK)
        return status;
    status =
        weir_cuda_check(error, "%s: cannot copy on GPU %u", peer->who, transport_of(peer)->device);
    weir_cuda_ipc_peer_lost(peer, status, cuda_of(transfer)->error_text(error));
    return status;
}

static weir_status turn(cuda_ipc_transfer *transfer)
{
    cuda_ipc_peer *peer = peer_of(transfer);
    const cuda_ipc_transport *ipc = transport_of(peer);
    int previous;
    weir_status status = weir_cuda_ipc_peer_check(peer);
    if (status != WEIR_OK)
        return status;
    int error = ipc->cuda->enter((int)ipc->device, &previous);
    if (error != 0)
        return failed(transfer, error);
    error = queue_turn(transfer, WEIR_CUDA_IPC_BATCHES);
    if (error == 0)
        error = take_batch(transfer, weir_now_ns() + TURN_NS);
    ipc->cuda->leave(previous);
    if (error != 0)
        return failed(transfer, error);
    return transfer->n_batches == 0 && !next_copy(transfer) ? WEIR_OK : WEIR_IN_PROGRESS;
}

/* ---- the transfer ----------------------------------------------------------------------------*/

static weir_status check_bounds(const weir_copy *copies, size_t n_copies)
{
    weir_status status = WEIR_OK;
    for (size_t i = 0; i < n_copies && status == WEIR_OK; i++)
        status = weir_transport_bounds_check(&copies[i], i,
                                             ((const cuda_ipc_remote *)copies[i].remote)->n_bytes);
    return status;
}

static void begin(cuda_ipc_transfer *transfer, const weir_copy *copies, size_t n_copies)
{
    transfer->copies = copies;
    transfer->n_copies = n_copies;
    transfer->next_copy = 0;
    transfer->next_offset = 0;
    transfer->done_bytes = 0;
    transfer->batch_bytes = BATCH_BYTES;
    transfer->status = WEIR_IN_PROGRESS;
    transfer->open = true;
}

weir_status weir_cuda_ipc_post(weir_peer *base, const weir_copy *copies, size_t n_copies,
                               weir_transfer **out)
{
    cuda_ipc_peer *peer = (cuda_ipc_peer *)base;
    const cuda_ipc_transport *ipc = transport_of(peer);
    cuda_ipc_transfer *transfer = &peer->transfer;
    uint64_t n_bytes;
    int previous;
    if (transfer->open)
        return weir_fail(WEIR_ERR_BUSY, "%s: a transfer is running already", peer->who);
    weir_status status = weir_transport_copies_check(base, copies, n_copies, &n_bytes);
    if (status == WEIR_OK)
        status = check_bounds(copies, n_copies);
    if (status == WEIR_OK)
        status = weir_cuda_ipc_peer_check(peer);
    if (status != WEIR_OK)
        return status;
    transfer->base = (weir_transfer){ base, n_bytes };
    begin(transfer, copies, n_copies);
    int error = ipc->cuda->enter((int)ipc->device, &previous);
    if (error == 0) {
        error = queue_turn(transfer, 1); /* it runs while other peers are posted to */
        ipc->cuda->leave(previous);
    }
    if (error != 0) {
        status = failed(transfer, error);
        weir_cuda_ipc_finish(&transfer->base);
        return status;
    }
    *out = &transfer->base;
    return WEIR_OK;
}

weir_status weir_cuda_ipc_test(weir_transfer *base, uint64_t *out_done)
{
    cuda_ipc_transfer *transfer = (cuda_ipc_transfer *)base;
    if (transfer->status == WEIR_IN_PROGRESS)
        transfer->status = turn(transfer);
    else if (transfer->status < 0)
        weir_cuda_ipc_peer_check(peer_of(transfer)); /* records the line again */
    if (out_done != NULL)
        *out_done = transfer->done_bytes;
    return transfer->status;
}

/* CUDA has no way to take back what is queued: it is waited for, and is little. */
void weir_cuda_ipc_finish(weir_transfer *base)
{
    cuda_ipc_transfer *transfer = (cuda_ipc_transfer *)base;
    if (transfer == NULL || !transfer->open)
        return;
    transfer->open = false;
    weir_deadline deadline = weir_deadline_in(DRAIN_MS);
    int error = 0;
    while (error == 0 && transfer->n_batches > 0 && !weir_deadline_passed(deadline))
        error = take_batch(transfer, weir_now_ns() + TURN_NS);
    if (transfer->n_batches == 0)
        return;
    cuda_ipc_peer *peer = peer_of(transfer);
    transfer->n_batches = 0;
    weir_cuda_ipc_peer_lost(peer, WEIR_ERR_DEVICE, "its copies have not ended");
    weir_log(WEIR_LOG_ERROR, "cuda_ipc: %s: copies on GPU %u have not ended: %s", peer->who,
             transport_of(peer)->device,
             error != 0 ? cuda_of(transfer)->error_text(error) : "still running");
}
