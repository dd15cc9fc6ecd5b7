/* SPDX-License-Identifier: Apache-2.0 */
/* ucx_chain.c - broadcasts of a group of transport ucx, from each rank to the one after it.
 *
 * A rank tells the next one where its bytes lie, and how many of them are there; the next one reads
 * them, one-sided, and says when it has them all. What a rank has read so far it offers on, so all
 * links of the chain work at once and a long one takes hardly longer than a short one. A head goes
 * first: ranks that disagree about a broadcast find out before anything of it is written.
 *
 * UCX reads through shared memory, the kernel and RDMA. Over TCP it would emulate reads by
 * messages, and UCX 1.13 aborts a process whose peer dies within one; a trainer must outlive its
 * readers. So where there is nothing but TCP the bytes are sent over the connection that tells of
 * them.
 *
 * Everything here is called by the group's thread, and nothing waits but connecting and ending what
 * is under way, both for a bounded time.
 */
#include <errno.h>
#include <string.h>
#include <sys/socket.h>

#include "base/alloc.h"
#include "transport/transport_table.h"
#include "transport/ucx_group.h"

/* Read before it is offered on: long enough to keep a link busy, and short against a broadcast. */
#define STEP_BYTES ((uint64_t)16 << 20)
#define SENT_BYTES ((uint64_t)1 << 20) /* of one announcement: they are still cached */

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
    cast->begun = cast->head_told = false;
    cast->may_read = 0;
    cast->n_parts_told = 0;
    cast->in = cast->told = (ucx_cursor){ 0, 0, 0 };
}

/* To the part that has the next byte. */
static void pass_ends(const ucx_cast *cast, ucx_cursor *cursor)
{
    while (cursor->part < cast->n_parts && cursor->offset == cast->parts[cursor->part].n_bytes) {
        cursor->part++;
        cursor->offset = 0;
    }
}

static void move_on(ucx_cursor *cursor, uint64_t n_bytes)
{
    cursor->offset += n_bytes;
    cursor->n_bytes += n_bytes;
}

static bool is_sound(const ucx_chain *chain)
{
    return !chain->broken && chain->failure == WEIR_OK;
}

/* ---- receiving -------------------------------------------------------------------------------*/

static void note_lost(ucx_chain *chain)
{
    weir_ucx_note_broken(chain, weir_ucx_rank_before(chain), ((ucx_peer *)chain->peer)->lost_why);
}

static bool read_next(ucx_chain *chain, ucx_cast *cast)
{
    pass_ends(cast, &cast->in);
    const weir_group_part *part = &cast->parts[cast->in.part];
    uint64_t n_bytes = cast->may_read - cast->in.n_bytes; /* of this part: hear_step() */
    if (n_bytes > STEP_BYTES)
        n_bytes = STEP_BYTES;
    chain->copy =
        (weir_copy){ .remote = chain->source,
                     .offset = chain->source_offset + (cast->in.n_bytes - chain->source_begin),
                     .local = (uint8_t *)part->data + cast->in.offset,
                     .n_bytes = n_bytes };
    weir_status status = weir_transport_ucx.post(chain->peer, &chain->copy, 1, &chain->transfer);
    if (status == WEIR_ERR_PEER_LOST)
        note_lost(chain);
    else
        chain->failure = status;
    return status == WEIR_OK;
}

static bool read_on(ucx_chain *chain, ucx_cast *cast)
{
    weir_status status = weir_transport_ucx.test(chain->transfer, NULL);
    if (status == WEIR_IN_PROGRESS)
        return false;
    /* It lets go of the connection before it gives its memory back: what was read while the
     * connection stood is what it had sent. */
    if (status != WEIR_OK)
        note_lost(chain);
    else if (weir_ucx_link_has_ended(chain->before))
        weir_ucx_note_broken(chain, weir_ucx_rank_before(chain), "its connection has ended");
    else
        move_on(&cast->in, chain->copy.n_bytes);
    weir_ucx_chain_stop(chain);
    return !chain->broken;
}

/* What came along with words is in the connection's buffer, the rest in the kernel's. */
static bool take_sent(ucx_chain *chain, ucx_cast *cast)
{
    ucx_link *before = chain->before;
    pass_ends(cast, &cast->in);
    const weir_group_part *part = &cast->parts[cast->in.part];
    uint8_t *to = (uint8_t *)part->data + cast->in.offset;
    uint64_t n_bytes = cast->may_read - cast->in.n_bytes;
    if (n_bytes > part->n_bytes - cast->in.offset)
        n_bytes = part->n_bytes - cast->in.offset;
    ssize_t n = 0;
    if (before->n_in > 0) {
        n = (ssize_t)(n_bytes < before->n_in ? n_bytes : before->n_in);
        memcpy(to, before->in, (size_t)n);
        weir_ucx_link_heard(before, (size_t)n);
    } else {
        n = recv(before->fd, to, n_bytes, 0);
        if (n == 0 || (n < 0 && errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR))
            weir_ucx_note_broken(chain, weir_ucx_rank_before(chain),
                                 n == 0 ? "its connection has ended" : strerror(errno));
        if (n <= 0)
            return false;
    }
    move_on(&cast->in, (uint64_t)n);
    return true;
}

static bool receive(ucx_chain *chain, ucx_cast *cast)
{
    if (!is_sound(chain))
        return false;
    if (chain->transfer != NULL)
        return read_on(chain, cast);
    weir_ucx_hear_before(chain, cast);
    if (!is_sound(chain) || cast->in.n_bytes == cast->may_read)
        return false;
    return chain->from_before == UCX_WAY_READ ? read_next(chain, cast) : take_sent(chain, cast);
}

bool weir_ucx_cast_receive(ucx_chain *chain, ucx_cast *cast)
{
    if (cast->head.root == chain->rank) {
        cast->begun = true;
        cast->in.n_bytes = cast->head.n_bytes;
        return false;
    }
    bool any = receive(chain, cast);
    if (weir_ucx_cast_received(cast) && chain->failure == WEIR_OK)
        weir_ucx_tell_step(chain, WEIR_UCX_TAKEN, cast->head.number + 1);
    return any;
}

bool weir_ucx_cast_received(const ucx_cast *cast)
{
    return cast->begun && cast->in.n_bytes == cast->head.n_bytes;
}

/* ---- offering --------------------------------------------------------------------------------*/

static bool is_last(const ucx_chain *chain, const ucx_cast *cast)
{
    return weir_ucx_rank_after(chain) == cast->head.root;
}

static bool offer_part(ucx_chain *chain, ucx_cast *cast)
{
    const weir_group_part *part = &cast->parts[cast->told.part];
    ucx_kept_region kept = { 0 };
    chain->failure = weir_ucx_keep_region(&chain->kept, chain->data, part, cast->head.number,
                                          chain->n_taken, &kept);
    if (chain->failure != WEIR_OK ||
        !weir_ucx_tell_key(chain, kept.region, (uint64_t)((uint8_t *)part->data - kept.data)))
        return false;
    cast->n_parts_told = cast->told.part + 1;
    return true;
}

/* What is here of the part at hand; true when there may be more. */
static bool offer_bytes(ucx_chain *chain, ucx_cast *cast)
{
    uint64_t there = cast->in.n_bytes - cast->told.n_bytes;
    uint64_t left = cast->parts[cast->told.part].n_bytes - cast->told.offset;
    if (there == 0)
        return false;
    move_on(&cast->told, there < left ? there : left);
    return weir_ucx_tell_step(chain, WEIR_UCX_HERE, cast->told.n_bytes);
}

/* Words go first, whole. */
static bool send_bytes(ucx_chain *chain, ucx_cast *cast)
{
    const weir_group_part *part = &cast->parts[cast->told.part];
    uint64_t there = cast->in.n_bytes - cast->told.n_bytes;
    uint64_t left = part->n_bytes - cast->told.offset;
    if (chain->n_announced == 0) {
        uint64_t n_bytes = there < left ? there : left;
        n_bytes = n_bytes < SENT_BYTES ? n_bytes : SENT_BYTES;
        if (n_bytes == 0 || !weir_ucx_tell_step(chain, WEIR_UCX_HERE, cast->told.n_bytes + n_bytes))
            return false;
        chain->n_announced = n_bytes;
    }
    weir_ucx_chain_flush(chain);
    if (chain->to_after.n_sent < chain->to_after.n_bytes)
        return false;
    ssize_t n = send(chain->after->fd, (uint8_t *)part->data + cast->told.offset,
                     chain->n_announced, MSG_NOSIGNAL);
    if (n < 0 && errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR)
        weir_ucx_note_broken(chain, weir_ucx_rank_after(chain), strerror(errno));
    if (n <= 0)
        return false;
    chain->n_announced -= (uint64_t)n;
    move_on(&cast->told, (uint64_t)n);
    return true;
}

bool weir_ucx_cast_offer(ucx_chain *chain, ucx_cast *cast)
{
    if (is_last(chain, cast) || !cast->begun || !is_sound(chain) || !weir_ucx_agree_on_way(chain))
        return false;
    if (!is_sound(chain)) /* by what was just heard */
        return false;
    if (!cast->head_told)
        cast->head_told = weir_ucx_tell_head(chain, &cast->head);
    pass_ends(cast, &cast->told);
    if (!cast->head_told || cast->told.part == cast->n_parts)
        return false;
    if (chain->to_the_after == UCX_WAY_SENT)
        return send_bytes(chain, cast);
    if (cast->n_parts_told <= cast->told.part && !offer_part(chain, cast))
        return false;
    return offer_bytes(chain, cast);
}

bool weir_ucx_cast_offered(const ucx_chain *chain, const ucx_cast *cast)
{
    if (is_last(chain, cast))
        return weir_ucx_cast_received(cast);
    return cast->head_told && cast->told.n_bytes == cast->head.n_bytes;
}

bool weir_ucx_cast_taken(ucx_chain *chain, const ucx_cast *cast)
{
    if (is_last(chain, cast))
        return true;
    if (chain->n_taken <= cast->head.number)
        weir_ucx_hear_after(chain);
    return chain->n_taken > cast->head.number;
}

/* ---- ending ----------------------------------------------------------------------------------*/

void weir_ucx_chain_stop(ucx_chain *chain)
{
    weir_transport_ucx.finish(chain->transfer);
    chain->transfer = NULL;
}

void weir_ucx_chain_close(ucx_chain *chain)
{
    weir_ucx_chain_stop(chain);
    if (chain->before != NULL) /* so that nobody waits for this rank */
        weir_ucx_link_close(chain->before);
    if (chain->after != NULL)
        weir_ucx_link_close(chain->after);
    weir_ucx_kept_forget(&chain->kept);
    weir_transport_ucx.disconnect(chain->peer);
    chain->peer = NULL;
    if (chain->data != NULL)
        weir_ucx_server_close((ucx_transport *)chain->data); /* nobody reads any more */
    weir_ucx_kept_release(&chain->kept);
    weir_transport_ucx.close(chain->data);
    chain->data = NULL;
    weir_free(chain->to_before.data);
    weir_free(chain->to_after.data);
    chain->to_before = chain->to_after = (ucx_outbox){ 0 };
    weir_key_buffer_close(&chain->message);
}
