/* SPDX-License-Identifier: Apache-2.0 */
/* lenders.c - asking and reading the ranks that lend rows to this one.
 *
 * A lender has the version when its manifest of it can be had; until then it is asked again
 * (ranks.h). The wait has one bound for all lenders; reading ends when no byte has come for as
 * long.
 */
#include "refit/lenders.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "base/digest.h"
#include "base/error.h"
#include "refit/ranks.h"
#include "refit/remote.h"

typedef struct lender {
    const weir_share_loan *loan;
    weir_dtype dtype;
    uint64_t offset; /* in what all lend */
    weir_known_rank *known;
    weir_remote *remote; /* NULL until it was asked first */
    weir_digest digest;
    weir_copy copy;
    weir_transfer *transfer;
} lender;

struct weir_lenders {
    weir_trainer *trainer;
    unsigned char *rows; /* of all lenders, one behind the other */
    lender *lenders;
    weir_known_rank *ranks; /* parallel */
    size_t n_lenders;
    uint64_t version; /* that is waited for */
};

const char *weir_border_dtype_name(weir_dtype dtype)
{
    return dtype != WEIR_DTYPE_NONE ? weir_dtype_name(dtype) : "mixed";
}

/* ---- open and close --------------------------------------------------------------------------*/

static weir_status lay_out(weir_lenders *lenders, const weir_share *share,
                           const weir_dtype *borrowed)
{
    uint64_t n_bytes = 0;
    for (size_t i = 0; i < share->n_borrows; i++) {
        lender *l = &lenders->lenders[i];
        l->loan = &share->borrows[i];
        l->dtype = borrowed[i];
        l->offset = n_bytes;
        l->known = &lenders->ranks[i];
        l->known->rank = l->loan->rank;
        n_bytes += (l->loan->n_bytes + WEIR_BORDER_ALIGNMENT - 1) / WEIR_BORDER_ALIGNMENT *
                   WEIR_BORDER_ALIGNMENT;
    }
    lenders->rows = weir_alloc_aligned(WEIR_BORDER_ALIGNMENT, n_bytes);
    return lenders->rows != NULL ? WEIR_OK : WEIR_ERR_NO_MEMORY;
}

weir_status weir_lenders_open(weir_trainer *trainer, const weir_share *share,
                              const weir_dtype *borrowed, weir_lenders **out)
{
    weir_lenders *lenders = weir_alloc_zeroed(1, sizeof(*lenders));
    if (lenders == NULL)
        return WEIR_ERR_NO_MEMORY;
    lenders->trainer = trainer;
    lenders->lenders = weir_alloc_zeroed(share->n_borrows, sizeof(*lenders->lenders));
    lenders->ranks = weir_alloc_zeroed(share->n_borrows, sizeof(*lenders->ranks));
    weir_status status = WEIR_ERR_NO_MEMORY;
    if (lenders->lenders != NULL && lenders->ranks != NULL) {
        lenders->n_lenders = share->n_borrows;
        status = lay_out(lenders, share, borrowed);
    }
    if (status != WEIR_OK) {
        weir_lenders_close(lenders);
        return status;
    }
    *out = lenders;
    return WEIR_OK;
}

void weir_lenders_close(weir_lenders *lenders)
{
    if (lenders == NULL)
        return;
    for (size_t i = 0; i < lenders->n_lenders; i++)
        weir_remote_close(lenders->lenders[i].remote);
    weir_free(lenders->lenders);
    weir_free(lenders->ranks);
    weir_free(lenders->rows);
    weir_free(lenders);
}

const unsigned char *weir_lenders_at(const weir_lenders *lenders, uint32_t loan, uint64_t offset)
{
    return lenders->rows + lenders->lenders[loan].offset + offset;
}

/* ---- asking ----------------------------------------------------------------------------------*/

static const weir_shard *find_part(const lender *l, const char *name)
{
    for (size_t i = 0; i < l->remote->n_shards; i++) {
        if (strcmp(l->remote->shards[i].name, name) == 0)
            return &l->remote->shards[i];
    }
    return NULL;
}

static const char *plan_or_none(const char *plan)
{
    return plan[0] != '\0' ? plan : "no mesh";
}

/* Both have planned by themselves: what they say must agree. */
static weir_status check_part(const weir_lenders *lenders, const lender *l, const weir_shard *part)
{
    uint32_t rank = lenders->trainer->rank;
    const weir_remote *remote = l->remote;
    const weir_manifest *manifest = &remote->manifest;
    if (manifest->rank != l->loan->rank || manifest->n_ranks != lenders->trainer->n_ranks)
        return weir_fail(WEIR_ERR_LAYOUT, "%s says that it is trainer rank %u of %u, not %u of %u",
                         remote->who, manifest->rank, manifest->n_ranks, l->loan->rank,
                         lenders->trainer->n_ranks);
    if (strcmp(manifest->plan, lenders->trainer->plan) != 0)
        return weir_fail(WEIR_ERR_LAYOUT,
                         "%s shards the model otherwise: %s there, %s here; give all ranks the "
                         "same meshes, expert maps, conversion and config.json",
                         remote->who, plan_or_none(manifest->plan), lenders->trainer->plan);
    if (strcmp(manifest->layout_signature, lenders->trainer->source.signature) != 0)
        return weir_fail(WEIR_ERR_LAYOUT,
                         "%s lends by another plan than trainer rank %u has: %s, not %s: are their "
                         "configs and layouts the same?",
                         remote->who, rank, manifest->layout_signature,
                         lenders->trainer->source.signature);
    if (part == NULL)
        return weir_fail(WEIR_ERR_LAYOUT,
                         "%s lends trainer rank %u nothing, which needs %" PRIu64
                         " bytes of its rows: are their meshes and configs the same?",
                         remote->who, rank, l->loan->n_bytes);
    if (part->n_bytes != l->loan->n_bytes)
        return weir_fail(WEIR_ERR_LAYOUT,
                         "%s lends trainer rank %u %" PRIu64 " bytes of rows, which needs %" PRIu64
                         ": are their meshes and configs the same?",
                         remote->who, rank, part->n_bytes, l->loan->n_bytes);
    if (l->dtype != WEIR_DTYPE_NONE &&
        strcmp(part->compile_metadata, weir_border_dtype_name(l->dtype)) != 0)
        return weir_fail(WEIR_ERR_LAYOUT, "%s lends trainer rank %u rows of dtype %s, expected %s",
                         remote->who, rank, part->compile_metadata, weir_dtype_name(l->dtype));
    if (remote->peer == NULL)
        return weir_fail(WEIR_ERR_CORRUPT, "%s lends rows that cannot be read", remote->who);
    return WEIR_OK;
}

static weir_status take_part(weir_lenders *lenders, lender *l)
{
    char name[WEIR_BORDER_TEXT];
    snprintf(name, sizeof(name), WEIR_BORDER_PART, lenders->trainer->rank);
    const weir_shard *part = find_part(l, name);
    weir_status status = check_part(lenders, l, part);
    if (status != WEIR_OK)
        return status;
    l->digest = part->digest;
    l->copy = (weir_copy){ .remote = l->remote->regions[part->region],
                           .offset = part->offset,
                           .local = lenders->rows + l->offset,
                           .n_bytes = part->n_bytes };
    l->known->done = true;
    return WEIR_OK;
}

static weir_status fetch(lender *l, uint64_t version)
{
    char uid[WEIR_BORDER_TEXT];
    snprintf(uid, sizeof(uid), WEIR_BORDER_UID, version);
    weir_manifest_wish wish = { .endpoint = l->known->endpoint, .uid = uid, .version = version };
    return weir_remote_fetch(l->remote, &wish);
}

/* Which version it lent last. ERR_NOT_FOUND: it has lent none. Takes the memory of what was fetched
 * of it before, so that waiting allocates nothing. */
static weir_status find_newest(weir_lenders *lenders, const lender *l, uint64_t *out_version)
{
    char digest[WEIR_DIGEST_TEXT];
    weir_manifest manifest;
    weir_buffer *bytes = &l->remote->bytes;
    weir_status status = weir_directory_get_manifest(
        lenders->trainer->worker.client, l->known->endpoint, l->known->who, WEIR_BORDER_NEWEST,
        l->known->slot, &bytes->data, &bytes->capacity_bytes, &bytes->n_bytes, digest);
    weir_arena_reset(&l->remote->arena);
    if (status == WEIR_OK)
        status = weir_manifest_decode(bytes->data, bytes->n_bytes, &l->remote->arena, &manifest);
    if (status == WEIR_OK)
        *out_version = manifest.version;
    return status;
}

/* It answers, but not with this version: has it not come so far, or is it beyond? What it lends
 * next may have come between two questions, so that who is not behind is asked once more. */
static weir_status explain(weir_lenders *lenders, lender *l, uint64_t version)
{
    uint64_t newest = 0;
    weir_status status = find_newest(lenders, l, &newest);
    if (status == WEIR_ERR_NOT_FOUND)
        snprintf(
            l->known->found, sizeof(l->known->found),
            "it has announced itself but lent nothing; does it have the same mesh, config.json "
            "and conversion?");
    if (status != WEIR_OK)
        return status == WEIR_ERR_NOT_FOUND ? WEIR_IN_PROGRESS : status;
    snprintf(l->known->found, sizeof(l->known->found),
             "the newest rows that it lent are of version %" PRIu64, newest);
    if (newest < version)
        return WEIR_IN_PROGRESS;
    status = fetch(l, version);
    if (status != WEIR_ERR_NOT_FOUND)
        return status;
    if (newest == version)
        return WEIR_IN_PROGRESS; /* it lends that version anew */
    return weir_fail(WEIR_ERR_NOT_FOUND,
                     "needs rows of version %" PRIu64
                     " from rank %u, which lends those of version %" PRIu64
                     " already and keeps only the last two",
                     version, l->loan->rank, newest);
}

/* A rank that was started anew is another worker. */
static weir_status meet(weir_lenders *lenders, lender *l)
{
    if (l->remote != NULL && strcmp(l->remote->worker_id, l->known->worker_id) == 0)
        return WEIR_OK;
    weir_remote_close(l->remote);
    l->remote = NULL;
    return weir_remote_open(&lenders->trainer->worker, l->known->worker_id, l->known->slot,
                            l->known->who, &l->remote);
}

/* IN_PROGRESS: it has not lent this version, as far as one can see. */
static weir_status ask(void *context, size_t i)
{
    weir_lenders *lenders = context;
    lender *l = &lenders->lenders[i];
    weir_status status = meet(lenders, l);
    if (status == WEIR_OK)
        status = fetch(l, lenders->version);
    bool answered_no = status == WEIR_ERR_NOT_FOUND;
    if (answered_no)
        status = explain(lenders, l, lenders->version);
    return status == WEIR_OK ? take_part(lenders, l) : status;
}

static weir_status wait_for_all(weir_lenders *lenders, uint64_t version)
{
    char wanted[64];
    snprintf(wanted, sizeof(wanted), "rows of version %" PRIu64, version);
    lenders->version = version;
    for (size_t i = 0; i < lenders->n_lenders; i++)
        lenders->ranks[i].done = false;
    weir_rank_search search = { .trainer = lenders->trainer,
                                .ranks = lenders->ranks,
                                .n_ranks = lenders->n_lenders,
                                .wanted = wanted,
                                .ask = ask,
                                .context = lenders };
    return weir_ranks_search(&search);
}

/* ---- reading ---------------------------------------------------------------------------------*/

static weir_status post_all(weir_lenders *lenders)
{
    for (size_t i = 0; i < lenders->n_lenders; i++) {
        lender *l = &lenders->lenders[i];
        if (l->copy.n_bytes == 0)
            continue;
        weir_status status = l->remote->link.ops->post(l->remote->peer, &l->copy, 1, &l->transfer);
        if (status != WEIR_OK) {
            l->transfer = NULL;
            return status;
        }
    }
    return WEIR_OK;
}

/* One round over all transfers. *out_slowest: one that is still under way. */
static weir_status test_all(const weir_lenders *lenders, uint64_t *out_done_bytes,
                            const lender **out_slowest)
{
    weir_status result = WEIR_OK;
    *out_done_bytes = 0;
    for (size_t i = 0; i < lenders->n_lenders; i++) {
        const lender *l = &lenders->lenders[i];
        uint64_t done_bytes = 0;
        if (l->transfer == NULL)
            continue;
        weir_status status = l->remote->link.ops->test(l->transfer, &done_bytes);
        if (status < WEIR_OK)
            return status;
        if (status == WEIR_IN_PROGRESS) {
            result = WEIR_IN_PROGRESS;
            *out_slowest = l;
        }
        *out_done_bytes += done_bytes;
    }
    return result;
}

static weir_status drive(weir_lenders *lenders, uint64_t version)
{
    weir_worker *worker = &lenders->trainer->worker;
    weir_deadline deadline = weir_deadline_in(worker->timeout_ms);
    const lender *slowest = NULL;
    uint64_t best_bytes = 0, done_bytes;
    for (;;) {
        weir_status status = test_all(lenders, &done_bytes, &slowest);
        if (status != WEIR_IN_PROGRESS)
            return status;
        if (done_bytes > best_bytes) {
            best_bytes = done_bytes;
            deadline = weir_deadline_in(worker->timeout_ms);
        }
        status = weir_worker_check_cancelled(worker);
        if (status != WEIR_OK)
            return status;
        if (weir_deadline_passed(deadline))
            return weir_fail(WEIR_ERR_TIMED_OUT,
                             "timed out: no byte of the rows of version %" PRIu64
                             " came from %s for %.1f s",
                             version, slowest->remote->who, worker->timeout_ms / 1e3);
    }
}

static void finish_all(weir_lenders *lenders, bool failed)
{
    for (size_t i = 0; i < lenders->n_lenders; i++) {
        lender *l = &lenders->lenders[i];
        if (l->transfer != NULL)
            l->remote->link.ops->finish(l->transfer);
        l->transfer = NULL;
        if (failed)
            weir_remote_disconnect(l->remote);
    }
}

static weir_status read_all(weir_lenders *lenders, uint64_t version)
{
    weir_error_line cause;
    weir_status status = post_all(lenders);
    if (status == WEIR_OK)
        status = drive(lenders, version);
    if (status == WEIR_ERR_PEER_LOST) /* the transport knows who, not what for */
        weir_error_prefix("rows of version %" PRIu64, version);
    weir_error_save(&cause);
    finish_all(lenders, status != WEIR_OK);
    weir_error_restore(&cause);
    return status;
}

/* ---- verifying -------------------------------------------------------------------------------*/

static weir_status fail_changed(weir_lenders *lenders, lender *l, uint64_t version)
{
    uint64_t newest = version;
    bool moved_on = find_newest(lenders, l, &newest) == WEIR_OK && newest > version;
    if (moved_on && fetch(l, version) == WEIR_ERR_NOT_FOUND)
        return weir_fail(WEIR_ERR_CORRUPT,
                         "%s put rows of a later version over those of version %" PRIu64
                         " while trainer rank %u read them: it lends version %" PRIu64 " now",
                         l->remote->who, version, lenders->trainer->rank, newest);
    return weir_fail(WEIR_ERR_CORRUPT,
                     "%s: the digest of the %" PRIu64 " bytes of rows of version %" PRIu64
                     " that trainer rank %u read is not the one that it gave",
                     l->remote->who, l->copy.n_bytes, version, lenders->trainer->rank);
}

static weir_status verify_all(weir_lenders *lenders, uint64_t version)
{
    for (size_t i = 0; i < lenders->n_lenders; i++) {
        lender *l = &lenders->lenders[i];
        weir_digest found;
        weir_tensor bytes = { l->known->slot, WEIR_U8, { 1, { l->copy.n_bytes } }, l->copy.local };
        weir_status status = weir_digest_tensor(lenders->trainer->worker.pool, &bytes, &found);
        if (status == WEIR_OK && !weir_digest_equal(&found, &l->digest))
            status = fail_changed(lenders, l, version);
        if (status != WEIR_OK)
            return status;
    }
    return WEIR_OK;
}

weir_status weir_lenders_read(weir_lenders *lenders, uint64_t version)
{
    weir_status status = wait_for_all(lenders, version);
    if (status == WEIR_OK)
        status = read_all(lenders, version);
    if (status == WEIR_OK)
        status = verify_all(lenders, version);
    return status;
}
