/* SPDX-License-Identifier: Apache-2.0 */
/* ucx_feed.c - what neighbours of the chain tell each other about their broadcasts.
 *
 * Once: the address that a rank is read at, and back whether it will be. Of every broadcast: its
 * head, and of each part where it lies and how far it may be read. Back: how many broadcasts are
 * through. Where UCX does not reach the other rank but by TCP, the bytes follow over the same
 * connection. Only connecting waits.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

#include "base/alloc.h"
#include "base/log.h"
#include "transport/transport_table.h"
#include "transport/ucx_group.h"

#define CONNECT_MS 5000u /* to one that has just said that it is there */

uint32_t weir_ucx_rank_before(const ucx_chain *chain)
{
    return (chain->rank + chain->n_ranks - 1) % chain->n_ranks;
}

uint32_t weir_ucx_rank_after(const ucx_chain *chain)
{
    return (chain->rank + 1) % chain->n_ranks;
}

void weir_ucx_note_broken(ucx_chain *chain, uint32_t rank, const char *why)
{
    if (chain->broken)
        return;
    chain->broken = true;
    chain->broken_rank = rank;
    snprintf(chain->broken_why, sizeof(chain->broken_why), "%s", why);
}

/* ---- telling ---------------------------------------------------------------------------------*/

static bool put(ucx_chain *chain, ucx_outbox *box, const void *message, size_t n_bytes)
{
    if (box->n_sent == box->n_bytes)
        box->n_sent = box->n_bytes = 0;
    if (box->room - box->n_bytes < n_bytes) {
        size_t room = 2 * (box->n_bytes + n_bytes);
        uint8_t *grown = weir_realloc(box->data, room);
        if (grown == NULL) {
            chain->failure = WEIR_ERR_NO_MEMORY;
            return false;
        }
        box->data = grown;
        box->room = room;
    }
    memcpy(box->data + box->n_bytes, message, n_bytes);
    box->n_bytes += n_bytes;
    return true;
}

bool weir_ucx_tell_head(ucx_chain *chain, const weir_ucx_head *head)
{
    chain->failure = weir_ucx_head_encode(head, &chain->message);
    return chain->failure == WEIR_OK &&
           put(chain, &chain->to_after, chain->message.data, chain->message.n_bytes);
}

static bool tell_step_to(ucx_chain *chain, ucx_outbox *box, const weir_ucx_step *step)
{
    chain->failure = weir_ucx_step_encode(step, &chain->message);
    return chain->failure == WEIR_OK &&
           put(chain, box, chain->message.data, chain->message.n_bytes);
}

bool weir_ucx_tell_step(ucx_chain *chain, weir_ucx_step_kind kind, uint64_t value)
{
    const weir_ucx_step step = { kind, value };
    ucx_outbox *box = kind == WEIR_UCX_TAKEN ? &chain->to_before : &chain->to_after;
    return tell_step_to(chain, box, &step);
}

static weir_status open_data(ucx_chain *chain)
{
    if (chain->data != NULL)
        return WEIR_OK;
    if (chain->of->quiet == NULL)
        return WEIR_ERR_UNSUPPORTED;
    return weir_ucx_open_beside(chain->of, &chain->data);
}

/* Who cannot be read at all does not ask. */
bool weir_ucx_agree_on_way(ucx_chain *chain)
{
    const void *address;
    size_t n_bytes;
    if (chain->to_the_after == UCX_WAY_ASKED)
        weir_ucx_hear_after(chain);
    if (chain->to_the_after != UCX_WAY_UNKNOWN)
        return chain->to_the_after != UCX_WAY_ASKED;
    weir_status status = open_data(chain);
    if (status == WEIR_OK)
        status = weir_transport_ucx.address(chain->data, &address, &n_bytes);
    if (status == WEIR_OK) {
        chain->to_the_after = UCX_WAY_ASKED;
        put(chain, &chain->to_after, address, n_bytes);
        return false;
    }
    chain->to_the_after = UCX_WAY_SENT;
    return weir_ucx_tell_step(chain, WEIR_UCX_WAY, 0);
}

bool weir_ucx_tell_key(ucx_chain *chain, weir_region *region, uint64_t offset)
{
    const void *key;
    size_t n_bytes;
    if (!weir_ucx_tell_step(chain, WEIR_UCX_AT, offset))
        return false;
    chain->failure = weir_transport_ucx.region_key(region, &key, &n_bytes);
    return chain->failure == WEIR_OK && put(chain, &chain->to_after, key, n_bytes);
}

/* One that cannot be told has gone, which what is heard from it says. */
static void flush(const ucx_link *link, ucx_outbox *box)
{
    while (link != NULL && box->n_sent < box->n_bytes) {
        ssize_t n =
            send(link->fd, box->data + box->n_sent, box->n_bytes - box->n_sent, MSG_NOSIGNAL);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return;
        box->n_sent += (size_t)n;
    }
}

void weir_ucx_chain_flush(ucx_chain *chain)
{
    flush(chain->before, &chain->to_before);
    flush(chain->after, &chain->to_after);
}

/* ---- hearing from the rank before ------------------------------------------------------------*/

static weir_status out_of_turn(const ucx_chain *chain, uint32_t rank)
{
    return weir_fail(WEIR_ERR_CORRUPT, "%s: rank %u says what none may say then", chain->who, rank);
}

static weir_status check_head(const ucx_chain *chain, const ucx_cast *cast, const void *data,
                              size_t n_bytes)
{
    weir_ucx_head head;
    const weir_ucx_head *own = &cast->head;
    weir_status status = weir_ucx_head_decode(data, n_bytes, chain->who, &head);
    if (status != WEIR_OK)
        return status;
    if (head.number == own->number && head.root == own->root && head.n_bytes == own->n_bytes &&
        head.parts == own->parts)
        return WEIR_OK;
    return weir_fail(WEIR_ERR_INVALID,
                     "%s: broadcast %llu is of %llu bytes of rank %u on rank %u, but rank %u sends "
                     "number %llu, %llu bytes of rank %u%s",
                     chain->who, (unsigned long long)own->number, (unsigned long long)own->n_bytes,
                     own->root, chain->rank, weir_ucx_rank_before(chain),
                     (unsigned long long)head.number, (unsigned long long)head.n_bytes, head.root,
                     head.n_bytes == own->n_bytes ? ", in other parts" : "");
}

/* Whatever keeps UCX from reading there: the connection that told of it serves as well. A rank
 * before that goes meanwhile ends it, and so does rank 0 or the caller when the group is over. */
static weir_status connect_to(ucx_chain *chain, const void *address, size_t n_bytes)
{
    char who[192];
    snprintf(who, sizeof(who), "%.128s: rank %u", chain->who, weir_ucx_rank_before(chain));
    weir_status status = open_data(chain);
    if (status == WEIR_OK) {
        int *give_up_fds = ((ucx_transport *)chain->data)->give_up_fds;
        give_up_fds[0] = chain->before->fd; /* it says no more before it is answered */
        give_up_fds[1] = chain->root != NULL ? chain->root->fd : -1;
        give_up_fds[2] = chain->abort_fd;
        status = weir_transport_ucx.connect(chain->data, address, n_bytes, who, CONNECT_MS,
                                            &chain->peer);
        memset(give_up_fds, -1, sizeof(((ucx_transport *)chain->data)->give_up_fds));
    }
    if (status == WEIR_ERR_NO_MEMORY)
        return status;
    chain->from_before = status == WEIR_OK ? UCX_WAY_READ : UCX_WAY_SENT;
    weir_log(WEIR_LOG_DEBUG, "ucx: %s: broadcasts are %s", who,
             status == WEIR_OK ? "read" : "sent over TCP");
    tell_step_to(chain, &chain->to_before,
                 &(weir_ucx_step){ WEIR_UCX_WAY, status == WEIR_OK ? 1 : 0 });
    return chain->failure;
}

/* Where a part lies is said when all of the one before it is here. */
static bool may_hear_of_part(const ucx_chain *chain, const ucx_cast *cast)
{
    return cast->begun && chain->from_before == UCX_WAY_READ &&
           cast->in.n_bytes >= chain->source_end;
}

static weir_status hear_key(ucx_chain *chain, ucx_cast *cast, const void *key, size_t n_bytes)
{
    while (cast->in.part < cast->n_parts && cast->in.offset == cast->parts[cast->in.part].n_bytes) {
        cast->in.part++;
        cast->in.offset = 0;
    }
    if (cast->in.part == cast->n_parts || cast->in.offset != 0)
        return out_of_turn(chain, weir_ucx_rank_before(chain));
    weir_status status = weir_ucx_keep_remote(&chain->kept, chain->peer, key, n_bytes,
                                              cast->head.number, &chain->source);
    if (status == WEIR_ERR_PEER_LOST) {
        weir_ucx_note_broken(chain, weir_ucx_rank_before(chain), "its connection has ended");
        return WEIR_OK;
    }
    chain->source_follows = false;
    chain->source_begin = cast->in.n_bytes;
    chain->source_end = cast->in.n_bytes + cast->parts[cast->in.part].n_bytes;
    return status;
}

static weir_status hear_step(ucx_chain *chain, ucx_cast *cast, const void *data, size_t n_bytes)
{
    weir_ucx_step step;
    weir_status status = weir_ucx_step_decode(data, n_bytes, chain->who, &step);
    if (status != WEIR_OK)
        return status;
    if (step.kind == WEIR_UCX_WAY && step.value == 0 && chain->from_before == UCX_WAY_UNKNOWN) {
        chain->from_before = UCX_WAY_SENT;
        return WEIR_OK;
    }
    if (step.kind == WEIR_UCX_AT && !chain->source_follows && may_hear_of_part(chain, cast)) {
        chain->source_follows = true;
        chain->source_offset = step.value;
        return WEIR_OK;
    }
    uint64_t limit = chain->from_before == UCX_WAY_READ ? chain->source_end : cast->head.n_bytes;
    if (step.kind != WEIR_UCX_HERE || !cast->begun || step.value > limit ||
        step.value <= cast->may_read)
        return out_of_turn(chain, weir_ucx_rank_before(chain));
    cast->may_read = step.value;
    return WEIR_OK;
}

static weir_status hear_one(ucx_chain *chain, ucx_cast *cast, char kind, size_t n_bytes)
{
    const uint8_t *in = chain->before->in;
    if (kind == 'a' && chain->from_before == UCX_WAY_UNKNOWN)
        return connect_to(chain, in, n_bytes);
    if (kind == 'b' && !cast->begun && chain->from_before != UCX_WAY_UNKNOWN) {
        weir_status status = check_head(chain, cast, in, n_bytes);
        cast->begun = status == WEIR_OK;
        chain->source_begin = chain->source_end = 0;
        chain->source_follows = false;
        return status;
    }
    if (kind == 'k' && chain->source_follows)
        return hear_key(chain, cast, in, n_bytes);
    if (kind == 't')
        return hear_step(chain, cast, in, n_bytes);
    return out_of_turn(chain, weir_ucx_rank_before(chain));
}

static bool is_waiting(const ucx_chain *chain, const ucx_cast *cast)
{
    if (chain->broken || chain->failure != WEIR_OK)
        return false;
    return !cast->begun ||
           (cast->in.n_bytes == cast->may_read && cast->may_read < cast->head.n_bytes);
}

void weir_ucx_hear_before(ucx_chain *chain, ucx_cast *cast)
{
    char kind = 0;
    size_t n_bytes = 0;
    while (is_waiting(chain, cast)) {
        switch (weir_ucx_link_hear(chain->before, &kind, &n_bytes)) {
        case UCX_HEARD_NOTHING:
            return;
        case UCX_HEARD_END:
            weir_ucx_note_broken(chain, weir_ucx_rank_before(chain), "its connection has ended");
            return;
        case UCX_HEARD_NONSENSE:
            chain->failure = out_of_turn(chain, weir_ucx_rank_before(chain));
            return;
        default:
            chain->failure = hear_one(chain, cast, kind, n_bytes);
            weir_ucx_link_heard(chain->before, n_bytes);
        }
    }
}

/* ---- hearing from the rank after -------------------------------------------------------------*/

static weir_status hear_answer(ucx_chain *chain, char kind, size_t n_bytes)
{
    weir_ucx_step step = { .kind = WEIR_UCX_STEPS };
    weir_status status = WEIR_OK;
    if (kind == 't')
        status = weir_ucx_step_decode(chain->after->in, n_bytes, chain->who, &step);
    if (status != WEIR_OK)
        return status;
    if (step.kind == WEIR_UCX_WAY && chain->to_the_after == UCX_WAY_ASKED) {
        chain->to_the_after = step.value == 1 ? UCX_WAY_READ : UCX_WAY_SENT;
        return WEIR_OK;
    }
    if (step.kind != WEIR_UCX_TAKEN || step.value <= chain->n_taken ||
        step.value > chain->n_offered)
        return out_of_turn(chain, weir_ucx_rank_after(chain));
    chain->n_taken = step.value;
    return WEIR_OK;
}

void weir_ucx_hear_after(ucx_chain *chain)
{
    char kind = 0;
    size_t n_bytes = 0;
    while (!chain->broken && chain->failure == WEIR_OK) {
        switch (weir_ucx_link_hear(chain->after, &kind, &n_bytes)) {
        case UCX_HEARD_NOTHING:
            return;
        case UCX_HEARD_END:
            weir_ucx_note_broken(chain, weir_ucx_rank_after(chain), "its connection has ended");
            return;
        case UCX_HEARD_NONSENSE:
            chain->failure = out_of_turn(chain, weir_ucx_rank_after(chain));
            return;
        default:
            chain->failure = hear_answer(chain, kind, n_bytes);
            weir_ucx_link_heard(chain->after, n_bytes);
        }
    }
}
