/* SPDX-License-Identifier: Apache-2.0 */
/* ucx_chain.c - broadcasts of a group of transport ucx, from each rank to the one after it.
 *
 * A broadcast is cut into chunks, and a rank passes each on as soon as it has it: with a few of
 * them under way all links work at once, and a long chain takes hardly longer than a short one. A
 * chunk is a tagged message: the tag says of which group and broadcast, which one and whether it is
 * the last, so that ranks that disagree about the bytes end in an error. Sends are synchronous: one
 * that has ended has been matched, so who has sent all he had to may go.
 *
 * Everything here is called by the group's thread. Nothing is allocated once the chain is linked.
 */
#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "base/log.h"
#include "transport/ucx_group.h"

#define CHUNK_BYTES ((uint64_t)2 << 20)
#define TURNS 64 /* of UCX, before connections are looked at */
#define CANCEL_MS 2000u

#define LAST_CHUNK 1ull /* lowest bit of a tag */
#define CHUNK_BITS 23
#define CAST_BITS 24
#define MAX_CHUNKS (1ull << CHUNK_BITS)

/* ---- the worker and its endpoints ------------------------------------------------------------*/

weir_status weir_ucx_chain_open(ucx_transport *ucx, ucx_chain *chain)
{
    chain->received_end = &chain->received;
    for (size_t i = 0; i < WEIR_UCX_CHUNKS; i++) {
        chain->chunks[i].chain = chain;
        chain->chunks[i].next = chain->free_chunk;
        chain->free_chunk = &chain->chunks[i];
    }
    return weir_ucx_worker_open(ucx, &chain->worker, &chain->ucx_fd);
}

static void note_broken(ucx_chain *chain, uint32_t rank, ucs_status_t status)
{
    if (chain->broken != UCS_OK)
        return;
    chain->broken = status;
    chain->broken_rank = rank;
}

static uint32_t rank_before(const ucx_chain *chain)
{
    return (chain->rank + chain->n_ranks - 1) % chain->n_ranks;
}

static uint32_t rank_after(const ucx_chain *chain)
{
    return (chain->rank + 1) % chain->n_ranks;
}

static void on_before_error(void *argument, ucp_ep_h endpoint, ucs_status_t status)
{
    (void)endpoint;
    note_broken(argument, rank_before(argument), status);
}

static void on_after_error(void *argument, ucp_ep_h endpoint, ucs_status_t status)
{
    (void)endpoint;
    note_broken(argument, rank_after(argument), status);
}

weir_status weir_ucx_chain_link(ucx_chain *chain, const weir_ucx_start *start)
{
    ucs_status_t status = weir_ucx_endpoint_open(chain->worker, start->after, start->after_bytes,
                                                 on_after_error, chain, &chain->after);
    if (status == UCS_OK && chain->n_ranks > 2)
        status = weir_ucx_endpoint_open(chain->worker, start->before, start->before_bytes,
                                        on_before_error, chain, &chain->before);
    if (status == UCS_OK)
        return WEIR_OK;
    char what[64];
    snprintf(what, sizeof(what), "rank %u cannot reach its neighbours", chain->rank);
    return weir_ucx_fail(status, chain->who, what);
}

bool weir_ucx_chain_progress(ucx_chain *chain)
{
    bool any = false;
    for (int i = 0; i < TURNS && ucp_worker_progress(chain->worker) != 0; i++)
        any = true;
    return any;
}

bool weir_ucx_chain_arm(ucx_chain *chain)
{
    return chain->received == NULL && ucp_worker_arm(chain->worker) == UCS_OK;
}

/* ---- chunks ----------------------------------------------------------------------------------*/

static void fail_chunk(ucx_chunk *chunk, weir_status status)
{
    if (chunk->chain->failure != WEIR_OK)
        return;
    chunk->chain->failure = status;
    weir_error_save(&chunk->chain->why);
}

static uint64_t chunk_number(const ucx_chunk *chunk)
{
    return chunk->tag >> 1 & (MAX_CHUNKS - 1);
}

static ucx_chunk *take_chunk(ucx_chain *chain, ucx_cast *cast)
{
    ucx_chunk *chunk = chain->free_chunk;
    chain->free_chunk = chunk->next;
    chunk->cast = cast;
    chunk->request = NULL;
    chain->n_under_way++;
    cast->n_under_way++;
    return chunk;
}

static void return_chunk(ucx_chunk *chunk)
{
    ucx_chain *chain = chunk->chain;
    chunk->request = NULL;
    chunk->next = chain->free_chunk;
    chain->free_chunk = chunk;
    chain->n_under_way--;
    chunk->cast->n_under_way--;
}

/* A chunk that has failed is not returned to its broadcast, which must not seem to have ended. */
static void drop_chunk(ucx_chunk *chunk, uint32_t rank, ucs_status_t status)
{
    chunk->request = NULL;
    chunk->chain->n_under_way--;
    note_broken(chunk->chain, rank, status);
}

static void sent(ucx_chunk *chunk, ucs_status_t status)
{
    if (status == UCS_OK)
        return_chunk(chunk);
    else
        drop_chunk(chunk, rank_after(chunk->chain), status);
}

static void on_sent(void *request, ucs_status_t status, void *argument)
{
    ucp_request_free(request);
    sent(argument, status);
}

static void send_chunk(ucx_chunk *chunk)
{
    ucp_request_param_t params = {
        .op_attr_mask = UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA |
                        UCP_OP_ATTR_FIELD_MEMORY_TYPE,
        .cb.send = on_sent,
        .user_data = chunk,
        .memory_type = UCS_MEMORY_TYPE_HOST,
    };
    chunk->receiving = false;
    ucs_status_ptr_t request = ucp_tag_send_sync_nbx(chunk->chain->after, chunk->data,
                                                     chunk->n_bytes, chunk->tag, &params);
    if (UCS_PTR_IS_PTR(request))
        chunk->request = request;
    else
        sent(chunk, UCS_PTR_STATUS(request));
}

/* The ranks disagree about a broadcast: it is over, here and everywhere. */
static void fail_difference(ucx_chunk *chunk, const ucp_tag_recv_info_t *info)
{
    const ucx_chain *chain = chunk->chain;
    bool last = (chunk->tag & LAST_CHUNK) != 0;
    char came[64] = "more";
    if (info != NULL)
        snprintf(came, sizeof(came), "%zu%s", info->length,
                 (info->sender_tag & LAST_CHUNK) != 0 ? " as the last" : "");
    fail_chunk(chunk,
               weir_fail(WEIR_ERR_INVALID,
                         "%s: broadcast %llu has other parts on rank %u than on rank %u: for "
                         "piece %llu it expected %llu bytes%s, and %s came",
                         chain->who, (unsigned long long)chunk->cast->number, chain->rank,
                         rank_before(chain), (unsigned long long)chunk_number(chunk),
                         (unsigned long long)chunk->n_bytes, last ? " as the last" : "", came));
    chunk->request = NULL;
    chunk->chain->n_under_way--;
}

static void received(ucx_chunk *chunk, ucs_status_t status, const ucp_tag_recv_info_t *info)
{
    ucx_chain *chain = chunk->chain;
    chunk->request = NULL;
    if (status == UCS_ERR_MESSAGE_TRUNCATED) {
        fail_difference(chunk, NULL);
    } else if (status != UCS_OK) {
        drop_chunk(chunk, rank_before(chain), status);
    } else if (info->length != chunk->n_bytes || info->sender_tag != chunk->tag) {
        fail_difference(chunk, info);
    } else if (rank_after(chain) == chunk->cast->root) {
        return_chunk(chunk);
    } else { /* passed on by the next turn: not from within UCX */
        chunk->next = NULL;
        *chain->received_end = chunk;
        chain->received_end = &chunk->next;
    }
}

static void on_received(void *request, ucs_status_t status, const ucp_tag_recv_info_t *info,
                        void *argument)
{
    received(argument, status, info);
    ucp_request_free(request); /* and with it `info` */
}

/* UCX 1.13 does not say what a receive that ends at once was of: that is looked at before. */
static void receive_chunk(ucx_chunk *chunk)
{
    const ucp_tag_t mask = ~(ucp_tag_t)LAST_CHUNK;
    ucp_worker_h worker = chunk->chain->worker;
    ucp_tag_recv_info_t info = { 0 };
    ucp_request_param_t params = {
        .op_attr_mask = UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA |
                        UCP_OP_ATTR_FIELD_MEMORY_TYPE,
        .cb.recv = on_received,
        .user_data = chunk,
        .memory_type = UCS_MEMORY_TYPE_HOST,
    };
    chunk->receiving = true;
    ucp_tag_probe_nb(worker, chunk->tag, mask, 0, &info);
    ucs_status_ptr_t request =
        ucp_tag_recv_nbx(worker, chunk->data, chunk->n_bytes, chunk->tag, mask, &params);
    if (UCS_PTR_IS_PTR(request))
        chunk->request = request;
    else
        received(chunk, UCS_PTR_STATUS(request), &info);
}

bool weir_ucx_chain_pass_on(ucx_chain *chain)
{
    bool any = false;
    while (chain->received != NULL && chain->failure == WEIR_OK && chain->broken == UCS_OK) {
        ucx_chunk *chunk = chain->received;
        chain->received = chunk->next;
        if (chain->received == NULL)
            chain->received_end = &chain->received;
        send_chunk(chunk);
        any = true;
    }
    return any;
}

/* ---- broadcasts ------------------------------------------------------------------------------*/

weir_status weir_ucx_cast_begin(ucx_cast *cast, const char *who)
{
    cast->n_chunks = 0;
    for (size_t i = 0; i < cast->n_parts && cast->n_chunks < MAX_CHUNKS; i++)
        cast->n_chunks +=
            cast->parts[i].n_bytes / CHUNK_BYTES + (cast->parts[i].n_bytes % CHUNK_BYTES != 0);
    if (cast->n_chunks >= MAX_CHUNKS)
        return weir_fail(WEIR_ERR_UNSUPPORTED,
                         "%s: a broadcast of %zu parts has more than %llu pieces of %llu bytes",
                         who, cast->n_parts, MAX_CHUNKS - 1, (unsigned long long)CHUNK_BYTES);
    if (cast->n_chunks == 0)
        cast->n_chunks = 1; /* an empty one: ranks still meet in it */
    cast->n_posted = 0;
    cast->next_part = 0;
    cast->next_offset = 0;
    cast->n_under_way = 0;
    return WEIR_OK;
}

/* Where the next chunk lies. */
static void cut_chunk(const ucx_chain *chain, ucx_cast *cast, ucx_chunk *chunk)
{
    while (cast->next_part < cast->n_parts &&
           cast->next_offset == cast->parts[cast->next_part].n_bytes) {
        cast->next_part++;
        cast->next_offset = 0;
    }
    chunk->data = NULL;
    chunk->n_bytes = 0;
    if (cast->next_part < cast->n_parts) {
        const weir_group_part *part = &cast->parts[cast->next_part];
        uint64_t left = part->n_bytes - cast->next_offset;
        chunk->data = (uint8_t *)part->data + cast->next_offset;
        chunk->n_bytes = left < CHUNK_BYTES ? left : CHUNK_BYTES;
        cast->next_offset += chunk->n_bytes;
    }
    uint64_t cast_number = cast->number & ((1ull << CAST_BITS) - 1);
    chunk->tag = (uint64_t)chain->group << (CAST_BITS + CHUNK_BITS + 1) |
                 cast_number << (CHUNK_BITS + 1) | cast->n_posted << 1 |
                 (cast->n_posted + 1 == cast->n_chunks ? LAST_CHUNK : 0);
    cast->n_posted++;
}

bool weir_ucx_cast_advance(ucx_chain *chain, ucx_cast *cast)
{
    bool any = weir_ucx_chain_pass_on(chain);
    if (chain->n_ranks == 1)
        cast->n_posted = cast->n_chunks;
    while (cast->n_posted < cast->n_chunks && chain->free_chunk != NULL &&
           chain->failure == WEIR_OK && chain->broken == UCS_OK) {
        ucx_chunk *chunk = take_chunk(chain, cast);
        cut_chunk(chain, cast, chunk);
        if (cast->root == chain->rank)
            send_chunk(chunk);
        else
            receive_chunk(chunk);
        any = true;
    }
    return any;
}

bool weir_ucx_cast_begun(const ucx_cast *cast)
{
    return cast->n_posted == cast->n_chunks;
}

bool weir_ucx_cast_ended(const ucx_cast *cast)
{
    return weir_ucx_cast_begun(cast) && cast->n_under_way == 0;
}

/* ---- closing ---------------------------------------------------------------------------------*/

static bool await(ucx_chain *chain, ucs_status_ptr_t request, weir_deadline deadline)
{
    if (!UCS_PTR_IS_PTR(request))
        return true;
    while (ucp_request_check_status(request) == UCS_INPROGRESS && !weir_deadline_passed(deadline)) {
        if (!weir_ucx_chain_progress(chain))
            weir_sleep_ms(1);
    }
    bool ended = ucp_request_check_status(request) != UCS_INPROGRESS;
    ucp_request_free(request);
    return ended;
}

static void close_endpoint(ucx_chain *chain, ucp_ep_h *endpoint, unsigned flags, unsigned ms)
{
    ucp_request_param_t params = { .op_attr_mask = UCP_OP_ATTR_FIELD_FLAGS, .flags = flags };
    if (*endpoint != NULL)
        await(chain, ucp_ep_close_nbx(*endpoint, &params), weir_deadline_in(ms));
    *endpoint = NULL;
}

void weir_ucx_chain_flush(ucx_chain *chain, unsigned ms)
{
    if (chain->broken != UCS_OK)
        return;
    close_endpoint(chain, &chain->after, 0, ms);
    close_endpoint(chain, &chain->before, 0, ms);
}

/* What waits to be passed on is under way for its broadcast, but UCX has nothing of it. */
static void forget_received(ucx_chain *chain)
{
    for (ucx_chunk *chunk = chain->received; chunk != NULL; chunk = chunk->next)
        chain->n_under_way--;
    chain->received = NULL;
    chain->received_end = &chain->received;
}

/* Receives that nothing has come for are cancelled; closing the endpoints ends whatever else UCX
 * has. Should a piece not end even then, its worker is left alone for good: without progress it
 * writes nothing. */
void weir_ucx_chain_close(ucx_chain *chain)
{
    if (chain->worker == NULL)
        return;
    weir_deadline deadline = weir_deadline_in(CANCEL_MS);
    for (size_t i = 0; i < WEIR_UCX_CHUNKS; i++) {
        if (chain->chunks[i].request != NULL && chain->chunks[i].receiving)
            ucp_request_cancel(chain->worker, chain->chunks[i].request);
    }
    close_endpoint(chain, &chain->after, UCP_EP_CLOSE_FLAG_FORCE, CANCEL_MS / 2);
    close_endpoint(chain, &chain->before, UCP_EP_CLOSE_FLAG_FORCE, CANCEL_MS / 2);
    forget_received(chain);
    while (chain->n_under_way > 0 && !weir_deadline_passed(deadline)) {
        if (!weir_ucx_chain_progress(chain))
            weir_sleep_ms(1);
        forget_received(chain);
    }
    chain->stuck = chain->n_under_way > 0;
    if (chain->stuck)
        weir_log(WEIR_LOG_ERROR, "ucx: %s: %u cancelled pieces of broadcasts have not ended",
                 chain->who, chain->n_under_way);
    else
        ucp_worker_destroy(chain->worker);
    chain->worker = NULL;
}
