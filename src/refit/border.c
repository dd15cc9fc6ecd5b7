/* SPDX-License-Identifier: Apache-2.0 */
/* border.c - what this rank lends: two buffers that other ranks read, and their manifests.
 *
 * A buffer holds one version's rows, borrower by borrower, without the gaps that they have where
 * they are registered. Filling one takes its manifest away first, so who can still have the
 * manifest of a version reads that version or notices by the digest. Both buffers are known to a
 * reader from its first version on. What others lend is read by lenders.c.
 */
#include "refit/border.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "base/digest.h"
#include "base/error.h"
#include "base/pool.h"
#include "refit/lenders.h"
#include "refit/ranks.h"

#define N_BUFFERS 2u
#define PIECE_ALIGNMENT 16u

typedef struct lent_buffer {
    weir_region *region;
    unsigned char *data;
    uint64_t version;
    uint64_t turn; /* of the lending that filled it; 0: none */
    char
        uid[WEIR_BORDER_TEXT]; /* "": no manifest; this and the next two under the trainer's lock */
    weir_buffer manifest;
    char digest[WEIR_SHA256_HEX];
} lent_buffer;

/* Where a piece is put. */
typedef struct lent_place {
    uint64_t offset, n_bytes; /* in the buffer; up to the next piece, which is aligned */
    uint32_t borrower;
} lent_place;

struct weir_border {
    weir_trainer *trainer;
    const weir_share *share;
    const weir_border_rows *lent;
    weir_arena arena; /* what lasts */
    weir_arena scratch;
    weir_link link;
    lent_buffer buffers[N_BUFFERS];
    uint64_t buffer_bytes;
    uint64_t n_turns;
    const lent_buffer *newest; /* filled last; under the trainer's lock */
    lent_place *places;        /* parallel to share->lent */
    weir_shard *parts;         /* one per borrower */
    weir_digest *digests;
    weir_buffer layout;
    weir_lenders *lenders; /* NULL when nothing is borrowed */
};

/* ---- open ------------------------------------------------------------------------------------*/

/* Whether rows are handed over, not magnitudes alone. */
static bool moves_rows(const weir_share *share)
{
    for (size_t i = 0; i < share->n_lent; i++) {
        if (share->lent[i].border == WEIR_ANY)
            return true;
    }
    for (size_t i = 0; i < share->n_pieces; i++) {
        if (share->pieces[i].loan != WEIR_ANY && share->pieces[i].border == WEIR_ANY)
            return true;
    }
    return false;
}

/* Rows are copied by this processor, and converted by it; magnitudes lie in host memory wherever
 * the rows do. */
static weir_status refuse_devices(const weir_border *border)
{
    if (border->trainer->memory != WEIR_MEMORY_CUDA || !moves_rows(border->share))
        return WEIR_OK;
    return weir_fail(WEIR_ERR_UNSUPPORTED,
                     "blocks of scales lie on several ranks, which takes tensors in host memory: "
                     "these are on a GPU");
}

static weir_dtype dtype_of(const weir_border *border, const weir_share_loan *loan)
{
    const weir_border_rows *lent = border->lent + loan->first_piece;
    for (size_t i = 1; i < loan->n_pieces; i++) {
        if (lent[i].dtype != lent[0].dtype)
            return WEIR_DTYPE_NONE;
    }
    return loan->n_pieces > 0 ? lent[0].dtype : WEIR_DTYPE_NONE;
}

/* One borrower's part, behind those before it. */
static weir_status lay_out_part(weir_border *border, size_t number)
{
    const weir_share_loan *loan = &border->share->lends[number];
    uint64_t offset = border->buffer_bytes;
    const char *name = weir_arena_format(&border->arena, WEIR_BORDER_PART, loan->rank);
    if (name == NULL)
        return WEIR_ERR_NO_MEMORY;
    weir_shape shape = { 1, { loan->n_bytes } };
    border->parts[number] =
        (weir_shard){ .name = name,
                      .dtype = WEIR_U8,
                      .global_shape = shape,
                      .box = weir_box_whole(&shape),
                      .compile_target = "border",
                      .compile_metadata = weir_border_dtype_name(dtype_of(border, loan)),
                      .offset = offset,
                      .n_bytes = loan->n_bytes };
    for (size_t i = 0; i < loan->n_pieces; i++) {
        const weir_share_piece *piece = &border->share->lent[loan->first_piece + i];
        uint64_t end = i + 1 < loan->n_pieces ? piece[1].offset : loan->n_bytes;
        if (end < piece->offset || end > loan->n_bytes)
            return weir_fail(WEIR_ERR_INTERNAL,
                             "a loan of %" PRIu64 " bytes has a piece at %" PRIu64, loan->n_bytes,
                             piece->offset);
        border->places[loan->first_piece + i] =
            (lent_place){ offset + piece->offset, end - piece->offset, loan->rank };
    }
    border->buffer_bytes +=
        (loan->n_bytes + WEIR_BORDER_ALIGNMENT - 1) / WEIR_BORDER_ALIGNMENT * WEIR_BORDER_ALIGNMENT;
    return WEIR_OK;
}

static weir_status lay_out(weir_border *border)
{
    const weir_share *share = border->share;
    border->places = weir_arena_zeroed(&border->arena, share->n_lent, sizeof(*border->places));
    border->parts = weir_arena_zeroed(&border->arena, share->n_lends, sizeof(*border->parts));
    border->digests = weir_arena_zeroed(&border->arena, share->n_lends, sizeof(*border->digests));
    if (border->places == NULL || border->parts == NULL || border->digests == NULL)
        return WEIR_ERR_NO_MEMORY;
    weir_status status = WEIR_OK;
    for (size_t i = 0; i < share->n_lends && status == WEIR_OK; i++)
        status = lay_out_part(border, i);
    if (status == WEIR_OK)
        status =
            weir_layout_encode(border->parts, share->n_lends, &border->scratch, &border->layout);
    return status;
}

static weir_status seal(const weir_border *border, const lent_buffer *buffer)
{
    char label[64];
    const weir_trainer *trainer = border->trainer;
    snprintf(label, sizeof(label), "border-v%08" PRIu64 "-%s", buffer->version, trainer->slot_name);
    weir_seal sealed = WEIR_SEAL_INIT;
    sealed.model = trainer->worker.model;
    sealed.label = label;
    sealed.shards = border->parts;
    sealed.n_shards = border->share->n_lends;
    return border->link.ops->seal(buffer->region, &sealed);
}

static weir_status allocate(weir_border *border, lent_buffer *buffer)
{
    const weir_link *link = &border->link;
    uint64_t n_bytes = border->buffer_bytes ? border->buffer_bytes : 1;
    border->trainer->worker.counters.registrations++;
    border->trainer->worker.counters.allocations++;
    weir_status status = link->ops->allocate(link->transport, n_bytes, &buffer->region);
    if (status != WEIR_OK) {
        weir_error_prefix("%" PRIu64 " bytes of rows for other ranks", n_bytes);
        return status;
    }
    buffer->data = link->ops->region_data(buffer->region);
    return link->ops->caps & WEIR_CAP_DURABLE ? WEIR_OK : seal(border, buffer);
}

static weir_status open_lending(weir_border *border)
{
    weir_trainer *trainer = border->trainer;
    const weir_transport_ops *ops;
    const char *name = trainer->settings.transport;
    weir_status status = weir_transport_get(name, &ops);
    if (status == WEIR_OK && !(ops->memory & WEIR_MEMORY_HOST))
        name = NULL; /* what is lent need not travel as versions do */
    if (status == WEIR_OK)
        status = weir_worker_link(&trainer->worker, name, &border->link);
    if (status == WEIR_OK)
        status = lay_out(border);
    for (unsigned i = 0; i < N_BUFFERS && status == WEIR_OK; i++)
        status = allocate(border, &border->buffers[i]);
    return status;
}

weir_status weir_border_open(const weir_border_options *options, weir_border **out)
{
    weir_trainer *trainer = options->trainer;
    weir_border *border = weir_alloc_zeroed(1, sizeof(*border));
    if (border == NULL)
        return WEIR_ERR_NO_MEMORY;
    border->trainer = trainer;
    border->share = options->share;
    border->lent = options->lent;
    weir_arena_init(&border->arena, 0);
    weir_arena_init(&border->scratch, 0);
    weir_status status = refuse_devices(border);
    if (status == WEIR_OK && options->share->n_lends > 0)
        status = open_lending(border);
    if (status == WEIR_OK && options->share->n_borrows > 0)
        status = weir_lenders_open(trainer, options->share, options->borrowed, &border->lenders);
    if (status == WEIR_OK)
        status = weir_ranks_announce(trainer);
    if (status != WEIR_OK) {
        weir_border_close(border);
        return status;
    }
    pthread_mutex_lock(&trainer->lock); /* *out may be what the manifest service looks at */
    *out = border;
    pthread_mutex_unlock(&trainer->lock);
    return WEIR_OK;
}

void weir_border_close(weir_border *border)
{
    if (border == NULL)
        return;
    weir_trainer *trainer = border->trainer;
    pthread_mutex_lock(&trainer->lock);
    if (trainer->border == border)
        trainer->border = NULL;
    pthread_mutex_unlock(&trainer->lock);
    weir_lenders_close(border->lenders);
    for (unsigned i = 0; i < N_BUFFERS; i++) {
        if (border->buffers[i].region != NULL)
            border->link.ops->release(border->buffers[i].region);
        weir_buffer_free(&border->buffers[i].manifest);
    }
    weir_buffer_free(&border->layout);
    weir_arena_close(&border->arena);
    weir_arena_close(&border->scratch);
    weir_free(border);
}

/* ---- lending ---------------------------------------------------------------------------------*/

/* The one that holds this version, or else the older one; nobody gets its manifest any more. */
static lent_buffer *take_buffer(weir_border *border, uint64_t version)
{
    lent_buffer *buffer = &border->buffers[0];
    for (unsigned i = 0; i < N_BUFFERS; i++) {
        lent_buffer *candidate = &border->buffers[i];
        if (candidate->turn != 0 && candidate->version == version) {
            buffer = candidate;
            break;
        }
        if (candidate->turn < buffer->turn)
            buffer = candidate;
    }
    pthread_mutex_lock(&border->trainer->lock);
    buffer->uid[0] = '\0';
    pthread_mutex_unlock(&border->trainer->lock);
    buffer->turn = 0;
    buffer->version = version;
    return buffer;
}

/* Rows of another dtype than planned would run into the next piece, or leave stale bytes. */
static weir_status check_rows(const weir_border *border)
{
    for (size_t i = 0; i < border->share->n_lent; i++) {
        const weir_border_rows *rows = &border->lent[i];
        const lent_place *place = &border->places[i];
        uint64_t n_bytes;
        if (__builtin_mul_overflow(rows->row_bytes, rows->n_rows, &n_bytes) ||
            n_bytes > place->n_bytes || place->n_bytes - n_bytes >= PIECE_ALIGNMENT)
            return weir_fail(WEIR_ERR_LAYOUT,
                             "lends rank %u %u rows of %" PRIu64 " bytes (%s) where %" PRIu64
                             " bytes were planned",
                             place->borrower, rows->n_rows, rows->row_bytes,
                             weir_dtype_name(rows->dtype), place->n_bytes);
    }
    return WEIR_OK;
}

typedef struct row_copy {
    const weir_border *border;
    unsigned char *data;
} row_copy;

static weir_status copy_piece(void *context, size_t piece, unsigned thread)
{
    const row_copy *copy = context;
    const weir_border_rows *rows = &copy->border->lent[piece];
    unsigned char *to = copy->data + copy->border->places[piece].offset;
    (void)thread;
    if (rows->pitch_bytes == rows->row_bytes) {
        memcpy(to, rows->data, rows->row_bytes * rows->n_rows);
        return WEIR_OK;
    }
    for (uint32_t r = 0; r < rows->n_rows; r++)
        memcpy(to + r * rows->row_bytes, rows->data + r * rows->pitch_bytes, rows->row_bytes);
    return WEIR_OK;
}

static weir_status fill(weir_border *border, const lent_buffer *buffer)
{
    weir_pool *pool = border->trainer->worker.pool;
    row_copy copy = { border, buffer->data };
    weir_status status = weir_pool_run(pool, border->share->n_lent, copy_piece, &copy);
    for (size_t i = 0; i < border->share->n_lends && status == WEIR_OK; i++) {
        weir_shard *part = &border->parts[i];
        weir_tensor bytes = { part->name, WEIR_U8, part->global_shape,
                              buffer->data + part->offset };
        status = weir_digest_tensor(pool, &bytes, &border->digests[i]);
        part->digest = border->digests[i];
    }
    return status;
}

/* The buffer's own region first, which the layout counts from. */
static weir_status list_regions(const weir_border *border, const lent_buffer *buffer,
                                weir_manifest_region *regions, size_t *out_n)
{
    const weir_transport_ops *ops = border->link.ops;
    weir_status status = WEIR_OK;
    *out_n = ops->caps & WEIR_CAP_DURABLE ? 1 : N_BUFFERS;
    for (size_t i = 0; i < *out_n && status == WEIR_OK; i++) {
        size_t number = (size_t)(buffer - border->buffers) + i;
        regions[i].n_bytes = border->buffer_bytes ? border->buffer_bytes : 1;
        status = ops->region_key(border->buffers[number % N_BUFFERS].region, &regions[i].key,
                                 &regions[i].key_bytes);
    }
    return status;
}

static weir_status encode(weir_border *border, lent_buffer *buffer)
{
    const weir_trainer *trainer = border->trainer;
    weir_manifest_region regions[N_BUFFERS];
    weir_manifest manifest = { .model = trainer->worker.model,
                               .run = trainer->worker.run,
                               .worker_id = trainer->worker.id,
                               .transport = border->link.ops->name,
                               .layout_signature = trainer->source.signature,
                               .plan = trainer->plan,
                               .version = buffer->version,
                               .rank = trainer->rank,
                               .n_ranks = trainer->n_ranks,
                               .regions = regions,
                               .layout = border->layout.data,
                               .layout_bytes = border->layout.n_bytes,
                               .digests = border->digests,
                               .n_digests = border->share->n_lends };
    weir_status status = list_regions(border, buffer, regions, &manifest.n_regions);
    if (status == WEIR_OK)
        status = border->link.ops->address(border->link.transport, &manifest.address,
                                           &manifest.address_bytes);
    weir_arena_reset(&border->scratch);
    if (status == WEIR_OK)
        status = weir_manifest_encode(&manifest, &border->scratch, &buffer->manifest);
    for (unsigned i = 0; i < N_BUFFERS && status == WEIR_OK; i++) { /* the other will be as long */
        if (border->buffers[i].manifest.data == NULL)
            status = weir_buffer_reserve(&border->buffers[i].manifest, buffer->manifest.n_bytes);
    }
    return status == WEIR_OK
               ? weir_sha256_hex(buffer->manifest.data, buffer->manifest.n_bytes, buffer->digest)
               : status;
}

weir_status weir_border_lend(weir_border *border, uint64_t version)
{
    if (border->share->n_lends == 0)
        return WEIR_OK;
    weir_status status = check_rows(border);
    if (status != WEIR_OK)
        return status;
    lent_buffer *buffer = take_buffer(border, version);
    status = fill(border, buffer);
    if (status == WEIR_OK)
        status = seal(border, buffer);
    if (status == WEIR_OK)
        status = encode(border, buffer);
    if (status != WEIR_OK)
        return status;
    buffer->turn = ++border->n_turns;
    pthread_mutex_lock(&border->trainer->lock);
    snprintf(buffer->uid, sizeof(buffer->uid), WEIR_BORDER_UID, version);
    border->newest = buffer;
    pthread_mutex_unlock(&border->trainer->lock);
    return WEIR_OK;
}

bool weir_border_manifest(const weir_border *border, const char *uid, const void **out_bytes,
                          size_t *out_n_bytes, const char **out_digest)
{
    const lent_buffer *buffer = NULL;
    if (strcmp(uid, WEIR_BORDER_NEWEST) == 0)
        buffer = border->newest;
    for (unsigned i = 0; i < N_BUFFERS && buffer == NULL; i++) {
        if (strcmp(border->buffers[i].uid, uid) == 0)
            buffer = &border->buffers[i];
    }
    if (buffer == NULL || buffer->uid[0] == '\0')
        return false;
    *out_bytes = buffer->manifest.data;
    *out_n_bytes = buffer->manifest.n_bytes;
    *out_digest = buffer->digest;
    return true;
}

/* ---- borrowing -------------------------------------------------------------------------------*/

weir_status weir_border_borrow(weir_border *border, uint64_t version)
{
    if (border->lenders == NULL)
        return WEIR_OK;
    double begun_s = weir_now_s();
    weir_status status = weir_lenders_read(border->lenders, version);
    weir_worker_waited(&border->trainer->worker, "wait rows", begun_s);
    return status;
}

const unsigned char *weir_border_at(const weir_border *border, uint32_t loan, uint64_t offset)
{
    return weir_lenders_at(border->lenders, loan, offset);
}
