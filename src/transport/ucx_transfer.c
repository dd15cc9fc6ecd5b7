/* SPDX-License-Identifier: Apache-2.0 */
/* ucx_transfer.c - reads of transport ucx, in pieces and several at a time.
 *
 * A region that this process could map is copied by its own processor, on the transport's pool; any
 * other is read with ucp_get, or over TCP (ucx_stream.h). Nothing is allocated: a peer has one
 * transfer and its pieces for good.
 */
#include <string.h>

#include "base/clock.h"
#include "base/error.h"
#include "base/log.h"
#include "device/host.h"
#include "transport/transport_table.h"
#include "transport/ucx_stream.h"

#define IDLE_MS 2u
#define DRAIN_MS 200u   /* for reads in flight to end by themselves, so that the peer stays good */
#define CANCEL_MS 2000u /* for a closed endpoint to report them */
/* Where UCX emulates reads, their answers come interleaved: all of what is in flight ends at about
 * the same time. So little is, and progress shows on a slow link too. */
#define PIECE_BYTES ((uint64_t)4 << 20)
#define WINDOW_BYTES ((uint64_t)32 << 20)
#define TURN_BYTES ((uint64_t)16 << 20) /* copied or asked for by one test: about a millisecond */

static ucx_transport *transport_of(const ucx_transfer *transfer)
{
    return (ucx_transport *)transfer->base.peer->transport;
}

static ucx_peer *peer_of(const ucx_transfer *transfer)
{
    return (ucx_peer *)transfer->base.peer;
}

static void return_piece(ucx_piece *piece)
{
    ucx_transfer *transfer = piece->transfer;
    piece->next_free = transfer->free_piece;
    transfer->free_piece = piece;
    transfer->n_in_flight--;
    transfer->bytes_in_flight -= piece->n_bytes;
}

/* The first error is the one that says why; what follows is its wake. */
static void piece_ended(ucx_piece *piece, ucs_status_t status)
{
    ucx_transfer *transfer = piece->transfer;
    if (status == UCS_OK)
        transfer->done_bytes += piece->n_bytes;
    else
        weir_ucx_peer_lost(peer_of(transfer), WEIR_ERR_PEER_LOST, ucs_status_string(status));
    return_piece(piece);
}

static void on_read(void *request, ucs_status_t status, void *argument)
{
    ucp_request_free(request);
    piece_ended(argument, status);
}

static void read_piece(ucx_transfer *transfer, const weir_copy *copy, uint64_t n_bytes)
{
    const ucx_remote *remote = (const ucx_remote *)copy->remote;
    ucx_piece *piece = transfer->free_piece;
    transfer->free_piece = piece->next_free;
    transfer->n_in_flight++;
    transfer->bytes_in_flight += n_bytes;
    piece->n_bytes = n_bytes;
    ucp_request_param_t params = {
        .op_attr_mask = UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA |
                        UCP_OP_ATTR_FIELD_MEMORY_TYPE,
        .cb.send = on_read,
        .user_data = piece,
        .memory_type = UCS_MEMORY_TYPE_HOST,
    };
    uint8_t *local = (uint8_t *)copy->local + transfer->next_offset;
    ucs_status_ptr_t request =
        ucp_get_nbx(peer_of(transfer)->endpoint, local, n_bytes,
                    remote->address + copy->offset + transfer->next_offset, remote->rkey, &params);
    if (!UCS_PTR_IS_PTR(request))
        piece_ended(piece, UCS_PTR_STATUS(request)); /* done at once: no callback comes */
}

static bool may_read(const ucx_transfer *transfer)
{
    return transfer->free_piece != NULL && transfer->bytes_in_flight < WINDOW_BYTES &&
           peer_of(transfer)->lost == WEIR_OK;
}

/* Copies or asks for the next bytes. 0 when there is nothing to ask for, or no room to. */
static uint64_t advance(ucx_transfer *transfer)
{
    while (transfer->next_copy < transfer->n_copies) {
        const weir_copy *copy = &transfer->copies[transfer->next_copy];
        uint64_t n_bytes = copy->n_bytes - transfer->next_offset;
        if (n_bytes == 0) {
            transfer->next_copy++;
            transfer->next_offset = 0;
            continue;
        }
        const uint8_t *mapped = ((const ucx_remote *)copy->remote)->mapped;
        uint64_t limit = mapped != NULL ? TURN_BYTES : PIECE_BYTES;
        if (n_bytes > limit)
            n_bytes = limit;
        if (mapped != NULL) {
            uint8_t *local = (uint8_t *)copy->local + transfer->next_offset;
            weir_host_copy(transport_of(transfer)->pool, local,
                           mapped + copy->offset + transfer->next_offset, n_bytes);
            transfer->done_bytes += n_bytes;
        } else if (!may_read(transfer)) {
            return 0;
        } else {
            read_piece(transfer, copy, n_bytes);
        }
        transfer->next_offset += n_bytes;
        return n_bytes;
    }
    return 0;
}

static uint64_t advance_turn(ucx_transfer *transfer)
{
    uint64_t turn_bytes = 0, n_bytes;
    do {
        n_bytes = advance(transfer);
        turn_bytes += n_bytes;
    } while (n_bytes > 0 && turn_bytes < TURN_BYTES);
    return turn_bytes;
}

static weir_status lost(const ucx_peer *peer)
{
    return weir_fail(peer->lost, "%s: peer went away: %s", peer->who, peer->lost_why);
}

static weir_status check_bounds(const weir_copy *copies, size_t n_copies)
{
    weir_status status = WEIR_OK;
    for (size_t i = 0; i < n_copies && status == WEIR_OK; i++)
        status = weir_transport_bounds_check(&copies[i], i,
                                             ((const ucx_remote *)copies[i].remote)->n_bytes);
    return status;
}

static void begin(ucx_transfer *transfer, ucx_peer *peer)
{
    transfer->base.peer = &peer->base;
    transfer->next_copy = 0;
    transfer->next_offset = 0;
    transfer->done_bytes = 0;
    transfer->n_in_flight = 0;
    transfer->bytes_in_flight = 0;
    transfer->status = WEIR_IN_PROGRESS;
    transfer->free_piece = NULL;
    for (size_t i = 0; i < WEIR_UCX_IN_FLIGHT; i++) {
        transfer->pieces[i].transfer = transfer;
        transfer->pieces[i].next_free = transfer->free_piece;
        transfer->free_piece = &transfer->pieces[i];
    }
}

weir_status weir_ucx_post(weir_peer *base, const weir_copy *copies, size_t n_copies,
                          weir_transfer **out)
{
    ucx_peer *peer = (ucx_peer *)base;
    ucx_transfer *transfer = &peer->transfer;
    if (transfer->open)
        return weir_fail(WEIR_ERR_BUSY, "%s: a transfer is running already", peer->who);
    uint64_t n_bytes;
    weir_status status = weir_transport_copies_check(base, copies, n_copies, &n_bytes);
    if (status == WEIR_OK)
        status = check_bounds(copies, n_copies);
    if (status != WEIR_OK)
        return status;
    weir_ucx_peer_check(peer);
    if (peer->lost != WEIR_OK)
        return lost(peer);
    begin(transfer, peer);
    transfer->base.n_bytes = n_bytes;
    transfer->copies = copies;
    transfer->n_copies = n_copies;
    if (peer->stream != NULL)
        status = weir_stream_begin(transfer);
    else
        advance(transfer); /* the first answer is on its way while other peers are posted to */
    transfer->open = status == WEIR_OK;
    if (status != WEIR_OK)
        return status;
    *out = &transfer->base;
    return WEIR_OK;
}

static bool is_whole(const ucx_transfer *transfer)
{
    return transfer->done_bytes == transfer->base.n_bytes && transfer->n_in_flight == 0;
}

static void turn(ucx_transfer *transfer)
{
    ucx_peer *peer = peer_of(transfer);
    uint64_t before = transfer->done_bytes;
    uint64_t asked = advance_turn(transfer);
    if (is_whole(transfer) || (asked > 0 && transfer->n_in_flight == 0))
        return;
    bool idle = transfer->done_bytes == before;
    weir_ucx_reader_turn(transport_of(transfer), peer->process_fd, idle ? IDLE_MS : 0);
    if (transfer->done_bytes == before)
        weir_ucx_peer_check(peer);
}

static void turn_stream(ucx_transfer *transfer)
{
    if (weir_stream_turn(transfer, true) || is_whole(transfer))
        return;
    weir_stream_sleep(transport_of(transfer), IDLE_MS);
    weir_ucx_peer_check(peer_of(transfer));
}

weir_status weir_ucx_test(weir_transfer *base, uint64_t *out_done)
{
    ucx_transfer *transfer = (ucx_transfer *)base;
    ucx_peer *peer = peer_of(transfer);
    if (transfer->status == WEIR_IN_PROGRESS) {
        if (peer->stream != NULL)
            turn_stream(transfer);
        else
            turn(transfer);
        if (is_whole(transfer))
            transfer->status = WEIR_OK;
        else if (peer->lost != WEIR_OK)
            transfer->status = peer->lost;
    }
    if (out_done != NULL)
        *out_done = transfer->done_bytes;
    return transfer->status < 0 ? lost(peer) : transfer->status;
}

static void wait_in_flight(ucx_transfer *transfer, unsigned ms)
{
    weir_deadline deadline = weir_deadline_in(ms);
    while (transfer->n_in_flight > 0 && !weir_deadline_passed(deadline))
        weir_ucx_reader_turn(transport_of(transfer), -1, IDLE_MS);
}

/* A connection that still has bytes of this transfer to bring is no good for another. */
static void finish_stream(ucx_transfer *transfer)
{
    ucx_peer *peer = peer_of(transfer);
    weir_deadline deadline = weir_deadline_in(DRAIN_MS);
    while (transfer->n_in_flight > 0 && peer->lost == WEIR_OK && !weir_deadline_passed(deadline))
        if (!weir_stream_turn(transfer, false))
            weir_stream_sleep(transport_of(transfer), IDLE_MS);
    weir_stream_end(transfer);
    if (transfer->n_in_flight == 0 && peer->lost == WEIR_OK)
        return;
    weir_ucx_peer_lost(peer, WEIR_ERR_CANCELLED, "its connection was closed to cancel a transfer");
    weir_stream_disconnect(peer);
}

/* Closing the endpoint ends every read in flight. Should one not end even then, the reader is left
 * alone for good: without progress UCX writes nothing. */
void weir_ucx_finish(weir_transfer *base)
{
    ucx_transfer *transfer = (ucx_transfer *)base;
    if (transfer == NULL || !transfer->open)
        return;
    transfer->open = false;
    ucx_peer *peer = peer_of(transfer);
    if (peer->stream != NULL) {
        finish_stream(transfer);
        return;
    }
    if (peer->lost == WEIR_OK)
        wait_in_flight(transfer, DRAIN_MS);
    if (transfer->n_in_flight == 0)
        return;
    weir_ucx_peer_lost(peer, WEIR_ERR_CANCELLED, "its connection was closed to cancel a transfer");
    weir_ucx_peer_close_endpoint(peer);
    wait_in_flight(transfer, CANCEL_MS);
    if (transfer->n_in_flight > 0) {
        transport_of(transfer)->reader_stuck = true;
        weir_log(WEIR_LOG_ERROR, "ucx: %s: %u cancelled reads have not ended", peer->who,
                 transfer->n_in_flight);
    }
}
