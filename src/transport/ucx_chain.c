/* SPDX-License-Identifier: Apache-2.0 */
/* ucx_chain.c - broadcasts of a group of transport ucx, from each rank to the one after it.
 *
 * A rank passes bytes on as they come, so all links of the chain work at once and a long one takes
 * hardly longer than a short one. A head goes before the bytes: ranks that disagree about a
 * broadcast find out before anything of it is written. The bytes go over plain sockets, not by
 * UCX's messages: UCX 1.13 aborts a process whose peer dies within one, and a trainer must outlive
 * its readers.
 *
 * Everything here is called by the group's thread, and nothing waits or allocates.
 */
#include <errno.h>
#include <string.h>
#include <sys/socket.h>

#include "transport/ucx_group.h"

#define STEP_BYTES                                                                 \
    ((uint64_t)1 << 20) /* received before they are sent on: they are still cached \
                         */

/* ---- one broadcast ---------------------------------------------------------------------------*/

void weir_ucx_cast_begin(ucx_cast *cast)
{
    weir_digest lengths = { 0, 0 };
    cast->head.n_bytes = 0;
    for (size_t i = 0; i < cast->n_parts; i++) {
        uint64_t n_bytes = cast->parts[i].n_bytes;
        cast->head.n_bytes += n_bytes;
        weir_digest_word(&lengths, n_bytes, weir_digest_key(i));
    }
    cast->head.parts = lengths.product ^ lengths.sum ^ cast->n_parts;
    cast->head_in = cast->head_out = 0;
    cast->in = cast->out = (ucx_cursor){ 0, 0, 0 };
}

/* The bytes from a cursor on that lie in one piece, `limit` at most. */
static uint64_t piece_at(const ucx_cast *cast, ucx_cursor *cursor, uint64_t limit, uint8_t **out)
{
    while (cursor->part < cast->n_parts && cursor->offset == cast->parts[cursor->part].n_bytes) {
        cursor->part++;
        cursor->offset = 0;
    }
    if (cursor->part == cast->n_parts)
        return 0;
    const weir_group_part *part = &cast->parts[cursor->part];
    uint64_t left = part->n_bytes - cursor->offset;
    *out = (uint8_t *)part->data + cursor->offset;
    return left < limit ? left : limit;
}

static void move_on(ucx_cursor *cursor, uint64_t n_bytes)
{
    cursor->offset += n_bytes;
    cursor->n_bytes += n_bytes;
}

/* ---- sockets ---------------------------------------------------------------------------------*/

static void note_broken(ucx_chain *chain, uint32_t rank, int error)
{
    if (chain->broken)
        return;
    chain->broken = true;
    chain->broken_rank = rank;
    chain->broken_error = error;
}

static uint32_t rank_before(const ucx_chain *chain)
{
    return (chain->rank + chain->n_ranks - 1) % chain->n_ranks;
}

static uint32_t rank_after(const ucx_chain *chain)
{
    return (chain->rank + 1) % chain->n_ranks;
}

/* 0: nothing to be had now, or ever. */
static size_t receive(ucx_chain *chain, void *data, size_t n_bytes)
{
    ssize_t n = recv(chain->before_fd, data, n_bytes, 0);
    if (n > 0)
        return (size_t)n;
    if (n == 0)
        note_broken(chain, rank_before(chain), 0);
    else if (errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR)
        note_broken(chain, rank_before(chain), errno);
    return 0;
}

static size_t send_on(ucx_chain *chain, const void *data, size_t n_bytes, int flags)
{
    ssize_t n = send(chain->after_fd, data, n_bytes, MSG_NOSIGNAL | flags);
    if (n >= 0)
        return (size_t)n;
    if (errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR)
        note_broken(chain, rank_after(chain), errno);
    return 0;
}

/* ---- receiving -------------------------------------------------------------------------------*/

static weir_status check_head(const ucx_chain *chain, const ucx_cast *cast)
{
    weir_ucx_head head;
    const weir_ucx_head *own = &cast->head;
    weir_status status =
        weir_ucx_head_decode(cast->received_head, WEIR_UCX_HEAD_BYTES, chain->who, &head);
    if (status != WEIR_OK)
        return status;
    if (head.number == own->number && head.root == own->root && head.n_bytes == own->n_bytes &&
        head.parts == own->parts)
        return WEIR_OK;
    return weir_fail(WEIR_ERR_INVALID,
                     "%s: broadcast %llu is of %llu bytes of rank %u on rank %u, but rank %u sends "
                     "number %llu, %llu bytes of rank %u%s",
                     chain->who, (unsigned long long)own->number, (unsigned long long)own->n_bytes,
                     own->root, chain->rank, rank_before(chain), (unsigned long long)head.number,
                     (unsigned long long)head.n_bytes, head.root,
                     head.n_bytes == own->n_bytes ? ", in other parts" : "");
}

static bool receive_head(ucx_chain *chain, ucx_cast *cast)
{
    size_t n =
        receive(chain, cast->received_head + cast->head_in, WEIR_UCX_HEAD_BYTES - cast->head_in);
    cast->head_in += (unsigned)n;
    if (cast->head_in < WEIR_UCX_HEAD_BYTES)
        return n > 0;
    chain->failure = check_head(chain, cast);
    return chain->failure == WEIR_OK;
}

bool weir_ucx_cast_receive(ucx_chain *chain, ucx_cast *cast)
{
    if (cast->head.root == chain->rank) {
        cast->head_in = WEIR_UCX_HEAD_BYTES;
        cast->in.n_bytes = cast->head.n_bytes;
        return false;
    }
    if (chain->broken || chain->failure != WEIR_OK)
        return false;
    if (cast->head_in < WEIR_UCX_HEAD_BYTES && !receive_head(chain, cast))
        return false;
    if (cast->head_in < WEIR_UCX_HEAD_BYTES)
        return true;
    uint8_t *data = NULL;
    uint64_t n_bytes = piece_at(cast, &cast->in, STEP_BYTES, &data);
    size_t n = n_bytes > 0 ? receive(chain, data, n_bytes) : 0;
    move_on(&cast->in, n);
    return n > 0;
}

bool weir_ucx_cast_received(const ucx_cast *cast)
{
    return cast->head_in == WEIR_UCX_HEAD_BYTES && cast->in.n_bytes == cast->head.n_bytes;
}

/* ---- sending ---------------------------------------------------------------------------------*/

static bool send_head(ucx_chain *chain, ucx_cast *cast)
{
    chain->failure = weir_ucx_head_encode(&cast->head, &chain->head);
    if (chain->failure != WEIR_OK)
        return false;
    size_t n = send_on(chain, chain->head.data + cast->head_out,
                       WEIR_UCX_HEAD_BYTES - cast->head_out, cast->head.n_bytes > 0 ? MSG_MORE : 0);
    cast->head_out += (unsigned)n;
    return n > 0;
}

bool weir_ucx_cast_send(ucx_chain *chain, ucx_cast *cast)
{
    if (rank_after(chain) == cast->head.root) { /* the last of the chain */
        if (weir_ucx_cast_received(cast)) {
            cast->head_out = WEIR_UCX_HEAD_BYTES;
            cast->out.n_bytes = cast->head.n_bytes;
        }
        return false;
    }
    if (chain->broken || chain->failure != WEIR_OK || cast->head_in < WEIR_UCX_HEAD_BYTES)
        return false;
    if (cast->head_out < WEIR_UCX_HEAD_BYTES && !send_head(chain, cast))
        return false;
    uint64_t there = cast->in.n_bytes - cast->out.n_bytes;
    if (cast->head_out < WEIR_UCX_HEAD_BYTES || there == 0)
        return false;
    uint8_t *data = NULL;
    uint64_t n_bytes = piece_at(cast, &cast->out, there < STEP_BYTES ? there : STEP_BYTES, &data);
    size_t n = n_bytes > 0 ? send_on(chain, data, n_bytes, 0) : 0;
    move_on(&cast->out, n);
    return n > 0;
}

bool weir_ucx_cast_sent(const ucx_cast *cast)
{
    return cast->head_out == WEIR_UCX_HEAD_BYTES && cast->out.n_bytes == cast->head.n_bytes;
}
