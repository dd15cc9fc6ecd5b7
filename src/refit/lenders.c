/* SPDX-License-Identifier: Apache-2.0 */
/* lenders.c - finding, asking and reading the ranks that lend rows to this one.
 *
 * A lender has the version when its manifest of it can be had. Until then it is asked again, a
 * little later each time, and the directory is looked at now and then: a rank that was started anew
 * is another worker. The wait has one bound for all lenders; reading ends when no byte has come for
 * as long.
 */
#include "refit/lenders.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "base/digest.h"
#include "base/error.h"
#include "refit/remote.h"

#define LOOK_UP_EVERY_MS 200u
#define MAX_REFS 4096u
#define NEWEST_CAP_BYTES ((size_t)64 << 20)

/* Why a lender's rows are not here. */
typedef enum lender_absence {
    LENDER_UNSEEN = 0, /* no entry in the directory */
    LENDER_SILENT,     /* its worker does not answer */
    LENDER_EMPTY,      /* it has lent nothing */
    LENDER_BEHIND      /* nothing newer than `newest` */
} lender_absence;

typedef struct lender {
    const weir_share_loan *loan;
    weir_dtype dtype;
    uint64_t offset; /* in what all lend */
    char slot[32];
    char endpoint[WEIR_NAME_BYTES];
    weir_remote *remote; /* NULL until its entry was found */
    bool has_version;
    lender_absence absence;
    uint64_t newest;
    weir_digest digest;
    weir_copy copy;
    weir_transfer *transfer;
    const weir_source_ref *entry; /* during a look-up: the newest of its rank */
} lender;

struct weir_lenders {
    weir_trainer *trainer;
    unsigned char *rows; /* of all lenders, one behind the other */
    lender *lenders;
    size_t n_lenders;
    weir_buffer manifest; /* of a lender's newest version, whichever that is */
    weir_arena arena;     /* and decoded */
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
        snprintf(l->slot, sizeof(l->slot), "rank-%u", l->loan->rank);
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
    weir_arena_init(&lenders->arena, NEWEST_CAP_BYTES);
    lenders->lenders = weir_alloc_zeroed(share->n_borrows, sizeof(*lenders->lenders));
    weir_status status = WEIR_ERR_NO_MEMORY;
    if (lenders->lenders != NULL) {
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
    weir_buffer_free(&lenders->manifest);
    weir_arena_close(&lenders->arena);
    weir_free(lenders->lenders);
    weir_free(lenders->rows);
    weir_free(lenders);
}

const unsigned char *weir_lenders_at(const weir_lenders *lenders, uint32_t loan, uint64_t offset)
{
    return lenders->rows + lenders->lenders[loan].offset + offset;
}

/* ---- the directory ---------------------------------------------------------------------------*/

/* Notes the newest entry of each lender's rank. All ranks of a run have one source id: theirs is
 * this rank's own. */
static void note_entries(weir_lenders *lenders, const weir_source_ref *refs, size_t n_refs)
{
    for (size_t r = 0; r < n_refs; r++) {
        if (strcmp(refs[r].source_id, lenders->trainer->source_id) != 0)
            continue;
        for (size_t i = 0; i < lenders->n_lenders; i++) {
            lender *l = &lenders->lenders[i];
            if (l->loan->rank != refs[r].rank)
                continue;
            if (l->entry == NULL || refs[r].updated_at_ms > l->entry->updated_at_ms)
                l->entry = &refs[r];
        }
    }
}

/* Takes the worker that the entry names for the lender, when it is another than before. */
static weir_status follow_entry(weir_lenders *lenders, lender *l)
{
    weir_source_record record;
    char who[2 * WEIR_NAME_BYTES];
    weir_worker *worker = &lenders->trainer->worker;
    if (l->remote != NULL && strcmp(l->remote->worker_id, l->entry->worker_id) == 0)
        return WEIR_OK;
    weir_status status = weir_directory_get_source(worker->client, l->entry->source_id,
                                                   l->entry->worker_id, &record);
    if (status == WEIR_ERR_NOT_FOUND)
        return WEIR_OK; /* gone since it was listed */
    if (status != WEIR_OK)
        return status;
    weir_remote_close(l->remote);
    l->remote = NULL;
    memcpy(l->endpoint, record.endpoint, sizeof(l->endpoint));
    snprintf(who, sizeof(who), "trainer rank %u (worker %s)", l->loan->rank, record.worker_id);
    return weir_remote_open(worker, record.worker_id, l->slot, who, &l->remote);
}

/* Those who have published are READY, those who have not are INITIALIZING. */
static weir_status look_up(weir_lenders *lenders)
{
    static const weir_source_status statuses[] = { WEIR_SOURCE_INITIALIZING, WEIR_SOURCE_READY };
    weir_worker *worker = &lenders->trainer->worker;
    weir_source_ref *refs = weir_alloc(2 * MAX_REFS * sizeof(*refs));
    weir_status status = refs != NULL ? WEIR_OK : WEIR_ERR_NO_MEMORY;
    for (size_t i = 0; i < lenders->n_lenders; i++)
        lenders->lenders[i].entry = NULL;
    for (size_t s = 0; s < 2 && status == WEIR_OK; s++) {
        size_t n = 0;
        status = weir_directory_list_sources(worker->client, worker->model, statuses[s], 0,
                                             refs + s * MAX_REFS, MAX_REFS, &n);
        if (status == WEIR_OK)
            note_entries(lenders, refs + s * MAX_REFS, n);
    }
    for (size_t i = 0; i < lenders->n_lenders && status == WEIR_OK; i++) {
        if (!lenders->lenders[i].has_version && lenders->lenders[i].entry != NULL)
            status = follow_entry(lenders, &lenders->lenders[i]);
    }
    weir_free(refs);
    return status;
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
    l->has_version = true;
    return WEIR_OK;
}

static weir_status fetch(lender *l, uint64_t version)
{
    char uid[WEIR_BORDER_TEXT];
    snprintf(uid, sizeof(uid), WEIR_BORDER_UID, version);
    weir_manifest_wish wish = { .endpoint = l->endpoint, .uid = uid, .version = version };
    return weir_remote_fetch(l->remote, &wish);
}

/* Which version it lent last. ERR_NOT_FOUND: it has lent none. */
static weir_status find_newest(weir_lenders *lenders, const lender *l, uint64_t *out_version)
{
    char digest[WEIR_DIGEST_TEXT];
    weir_manifest manifest;
    weir_buffer *bytes = &lenders->manifest;
    weir_status status = weir_directory_get_manifest(
        lenders->trainer->worker.client, l->endpoint, l->remote->who, WEIR_BORDER_NEWEST, l->slot,
        &bytes->data, &bytes->capacity_bytes, &bytes->n_bytes, digest);
    weir_arena_reset(&lenders->arena);
    if (status == WEIR_OK)
        status = weir_manifest_decode(bytes->data, bytes->n_bytes, &lenders->arena, &manifest);
    if (status == WEIR_OK)
        *out_version = manifest.version;
    return status;
}

/* It answers, but not with this version: has it not come so far, or is it beyond? What it lends
 * next may have come between two questions, so that who is beyond is asked once more. */
static weir_status explain(weir_lenders *lenders, lender *l, uint64_t version)
{
    weir_status status = find_newest(lenders, l, &l->newest);
    if (status == WEIR_OK && l->newest > version) {
        status = fetch(l, version);
        if (status != WEIR_ERR_NOT_FOUND)
            return status;
        return weir_fail(WEIR_ERR_NOT_FOUND,
                         "trainer rank %u needs rows of version %" PRIu64
                         " from rank %u, which lends those of version %" PRIu64
                         " already and keeps only the last two",
                         lenders->trainer->rank, version, l->loan->rank, l->newest);
    }
    l->absence = status == WEIR_OK ? LENDER_BEHIND : LENDER_EMPTY;
    return status == WEIR_OK || status == WEIR_ERR_NOT_FOUND ? WEIR_IN_PROGRESS : status;
}

/* IN_PROGRESS: it has not lent this version, as far as one can see. */
static weir_status ask(weir_lenders *lenders, lender *l, uint64_t version)
{
    l->absence = LENDER_UNSEEN;
    if (l->remote == NULL)
        return WEIR_IN_PROGRESS;
    weir_status status = fetch(l, version);
    bool answered_no = status == WEIR_ERR_NOT_FOUND;
    if (answered_no)
        status = explain(lenders, l, version);
    if (status == WEIR_ERR_PEER_LOST || status == WEIR_ERR_TIMED_OUT) {
        l->absence = LENDER_SILENT;
        return WEIR_IN_PROGRESS;
    }
    return status == WEIR_OK ? take_part(lenders, l) : status;
}

static weir_status time_out(const weir_lenders *lenders, uint64_t version)
{
    size_t first = 0, n_more = 0;
    char why[2 * WEIR_NAME_BYTES + 64], more[64] = "";
    while (lenders->lenders[first].has_version)
        first++;
    for (size_t i = first + 1; i < lenders->n_lenders; i++)
        n_more += !lenders->lenders[i].has_version;
    const lender *l = &lenders->lenders[first];
    if (l->absence == LENDER_UNSEEN)
        snprintf(why, sizeof(why), "it has not announced itself");
    else if (l->absence == LENDER_SILENT)
        snprintf(why, sizeof(why), "worker %s does not answer at %s", l->remote->worker_id,
                 l->endpoint);
    else if (l->absence == LENDER_EMPTY)
        snprintf(why, sizeof(why), "it has announced itself but lent nothing");
    else
        snprintf(why, sizeof(why), "the newest rows that it lent are of version %" PRIu64,
                 l->newest);
    if (n_more > 0)
        snprintf(more, sizeof(more), " (and %zu more ranks are missing)", n_more);
    const weir_trainer *trainer = lenders->trainer;
    return weir_fail(
        WEIR_ERR_TIMED_OUT,
        "trainer rank %u waited %.1f s for rows of version %" PRIu64 " from rank %u: %s%s",
        trainer->rank, trainer->worker.timeout_ms / 1e3, version, l->loan->rank, why, more);
}

/* Asks all that have not lent it yet. IN_PROGRESS when some still have not. */
static weir_status ask_all(weir_lenders *lenders, uint64_t version)
{
    weir_status result = WEIR_OK;
    for (size_t i = 0; i < lenders->n_lenders; i++) {
        lender *l = &lenders->lenders[i];
        weir_status status = l->has_version ? WEIR_OK : ask(lenders, l, version);
        if (status < WEIR_OK)
            return status;
        if (status == WEIR_IN_PROGRESS)
            result = WEIR_IN_PROGRESS;
    }
    return result;
}

/* The directory is looked at only after the lenders that are known have been asked. */
static weir_status wait_for_all(weir_lenders *lenders, uint64_t version)
{
    weir_worker *worker = &lenders->trainer->worker;
    weir_deadline deadline = weir_deadline_in(worker->timeout_ms);
    weir_deadline look_up_at = weir_deadline_in(0);
    for (size_t i = 0; i < lenders->n_lenders; i++)
        lenders->lenders[i].has_version = false;
    for (weir_patience patience = { 0 };;) {
        weir_status status = ask_all(lenders, version);
        if (status != WEIR_IN_PROGRESS)
            return status;
        if (weir_deadline_passed(deadline))
            return time_out(lenders, version);
        if (weir_deadline_passed(look_up_at)) {
            status = look_up(lenders);
            look_up_at = weir_deadline_in(LOOK_UP_EVERY_MS);
        } else {
            status = weir_worker_pause(worker, &patience);
        }
        if (status < WEIR_OK)
            return status;
    }
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
        weir_tensor bytes = { l->slot, WEIR_U8, { 1, { l->copy.n_bytes } }, l->copy.local };
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
