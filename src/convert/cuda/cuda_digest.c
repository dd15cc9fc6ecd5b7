/* SPDX-License-Identifier: Apache-2.0 */
/* cuda_digest.c - checks ranges, numbers their slices, and reads what came of them. */
#include "convert/cuda/cuda_digest.h"

#include <string.h>

#include "base/alloc.h"
#include "base/digest.h"
#include "base/error.h"
#include "convert/nonfinite.h"
#include "device/cuda_wait.h"

#define MAX_SLICES ((uint64_t)0x7FFFFFFF) /* of one launch */

/* ---- planning --------------------------------------------------------------------------------*/

static const char *name_of(const weir_cuda_range *range)
{
    return range->name != NULL ? range->name : "(unnamed)";
}

static weir_status check_dtype(const weir_cuda_range *range)
{
    if (range->dtype != WEIR_BF16 && range->dtype != WEIR_F16 && range->dtype != WEIR_F32)
        return weir_fail(WEIR_ERR_INVALID, "%s has dtype %s, only BF16, F16 and F32 can be checked",
                         name_of(range), weir_dtype_name(range->dtype));
    unsigned element_bytes = weir_dtype_bits(range->dtype) / 8;
    if ((uintptr_t)range->data % element_bytes != 0 || range->row_bytes % element_bytes != 0)
        return weir_fail(WEIR_ERR_INVALID, "%s is not aligned to %u bytes, as a GPU needs it",
                         name_of(range), element_bytes);
    return WEIR_OK;
}

static weir_status check_range(const weir_cuda_range *range, uint64_t *out_bytes)
{
    if (__builtin_mul_overflow(range->n_rows, range->row_bytes, out_bytes))
        return weir_fail(WEIR_ERR_INVALID, "%s: a range of more than 2^64 bytes", name_of(range));
    if (range->digest == NULL || (range->data == NULL && *out_bytes != 0))
        return weir_fail(WEIR_ERR_INVALID, "%s has no %s", name_of(range),
                         range->digest == NULL ? "digest to fill" : "data");
    if (range->row_bytes % 8 == 0 && (uintptr_t)range->data % 8 != 0)
        return weir_fail(WEIR_ERR_INVALID, "%s is not aligned to 8 bytes, as a GPU needs it",
                         name_of(range));
    return range->check ? check_dtype(range) : WEIR_OK;
}

static void describe_check(const weir_cuda_range *range, weir_cuda_digest_job *job)
{
    if (!range->check)
        return;
    job->check = range->dtype == WEIR_F32 ? WEIR_CUDA_CHECK_WORDS : WEIR_CUDA_CHECK_HALVES;
    job->least_refused = weir_nonfinite_least(range->dtype, false);
}

/* Rows of whole words follow each other like one; so does a single row, but for its last bytes. */
static uint64_t describe(const weir_cuda_range *range, uint64_t n_bytes, weir_cuda_digest_job *job)
{
    uint64_t outside = (uintptr_t)range->data / 8 % 2;
    job->data = (uintptr_t)range->data;
    job->first_word = range->first_word;
    job->row_bytes = range->row_bytes;
    job->words_per_row = weir_digest_words_per_row(range->row_bytes);
    job->ragged =
        (uintptr_t)range->data % 8 != 0 || (range->row_bytes % 8 != 0 && range->n_rows > 1);
    job->n_words = job->ragged ? range->n_rows * job->words_per_row : n_bytes / 8;
    job->n_tail_bytes = job->ragged ? 0 : (uint32_t)(n_bytes % 8);
    describe_check(range, job);
    return job->n_words + (job->n_tail_bytes != 0) + (job->ragged ? 0 : outside);
}

static size_t slices_at(size_t n_ranges)
{
    return n_ranges * sizeof(weir_cuda_digest_job);
}

size_t weir_cuda_digests_image_bytes(size_t n_ranges)
{
    return slices_at(n_ranges) + n_ranges * sizeof(uint32_t);
}

weir_status weir_cuda_digests_plan(const weir_cuda_range *ranges, size_t n, unsigned char *image,
                                   uint32_t *out_n_slices)
{
    weir_cuda_digest_job *jobs = (weir_cuda_digest_job *)(void *)image;
    uint32_t *first_slices = (uint32_t *)(void *)(image + slices_at(n));
    uint64_t n_slices = 0, n_bytes;
    memset(image, 0, weir_cuda_digests_image_bytes(n)); /* padding too: images are compared */
    for (size_t i = 0; i < n; i++) {
        weir_status status = check_range(&ranges[i], &n_bytes);
        if (status != WEIR_OK)
            return status;
        first_slices[i] = (uint32_t)n_slices;
        if (n_bytes == 0)
            continue;
        uint64_t n_words = describe(&ranges[i], n_bytes, &jobs[i]);
        n_slices += (n_words - 1) / WEIR_CUDA_SLICE_WORDS + 1;
        if (n_slices > MAX_SLICES)
            return weir_fail(WEIR_ERR_UNSUPPORTED, "%s: more bytes than one launch digests",
                             name_of(&ranges[i]));
    }
    *out_n_slices = (uint32_t)n_slices;
    return WEIR_OK;
}

/* ---- starting --------------------------------------------------------------------------------*/

static weir_status room_for_ranges(weir_cuda_digests *digests, size_t n)
{
    if (n <= digests->n_ranges_room)
        return WEIR_OK;
    weir_cuda_range *room = weir_alloc_zeroed(n, sizeof(*room));
    if (room == NULL)
        return WEIR_ERR_NO_MEMORY;
    weir_free(digests->ranges);
    digests->ranges = room;
    digests->n_ranges_room = n;
    return WEIR_OK;
}

weir_status weir_cuda_digests_room(weir_cuda_digests *digests, size_t n_ranges)
{
    weir_status status = room_for_ranges(digests, n_ranges);
    if (status != WEIR_OK)
        return status;
    return weir_cuda_tables_room(&digests->tables, weir_cuda_digests_image_bytes(n_ranges),
                                 n_ranges);
}

static weir_status send(weir_cuda_digests *digests, int device, size_t image_bytes, void *stream)
{
    weir_status status = WEIR_OK;
    if (weir_cuda_tables_are_sent(&digests->tables, image_bytes))
        return WEIR_OK;
    for (size_t i = 0; status == WEIR_OK && i < digests->n_ranges; i++)
        status = weir_cuda_check_reach(digests->tables.cuda, device, digests->ranges[i].data,
                                       digests->ranges[i].name);
    return status == WEIR_OK ? weir_cuda_tables_send(&digests->tables, image_bytes, stream)
                             : status;
}

static int queue(weir_cuda_digests *digests, const weir_cuda_converter *converter,
                 uint32_t n_slices, void *stream)
{
    weir_cuda_tables *tables = &digests->tables;
    const unsigned char *image = tables->image;
    weir_cuda_digest_launch launch = {
        .jobs = (const weir_cuda_digest_job *)(const void *)image,
        .first_slices = (const uint32_t *)(const void *)(image + slices_at(digests->n_ranges)),
        .results = tables->device_results,
        .out = tables->results,
        .n_done = weir_cuda_tables_counters(tables),
        .n_jobs = (uint32_t)digests->n_ranges,
        .n_slices = n_slices,
    };
    int error = weir_cuda_tables_zero(tables, digests->n_ranges, stream);
    if (error == 0 && n_slices > 0)
        error = converter->digest(&launch, stream);
    tables->dirty = error != 0;
    if (error != 0)
        weir_cuda_tables_settle(tables, stream);
    return error;
}

weir_status weir_cuda_digests_start(weir_cuda_digests *digests,
                                    const weir_cuda_converter *converter, int device,
                                    const weir_cuda_range *ranges, size_t n, void *stream)
{
    uint32_t n_slices = 0;
    if (ranges == NULL || n > UINT32_MAX / 64)
        return weir_fail(WEIR_ERR_INVALID, "%zu ranges to digest at %p", n, (const void *)ranges);
    size_t image_bytes = weir_cuda_digests_image_bytes(n);
    weir_status status = weir_cuda_digests_room(digests, n);
    if (status != WEIR_OK)
        return status;
    memcpy(digests->ranges, ranges, n * sizeof(*ranges));
    digests->n_ranges = n;
    status = weir_cuda_digests_plan(digests->ranges, n, digests->tables.built, &n_slices);
    if (status == WEIR_OK)
        status = send(digests, device, image_bytes, stream);
    if (status != WEIR_OK)
        return status;
    return weir_cuda_check(queue(digests, converter, n_slices, stream),
                           "cannot queue the digests of %zu ranges", n);
}

/* ---- ending ----------------------------------------------------------------------------------*/

static uint64_t bytes_of(const weir_tensor *source)
{
    return weir_dtype_bits(source->dtype) / 8;
}

/* The position of the first refused element, or how many there are, and its bits. The first result
 * on either side is the search's word: the batch has ended. */
static int search(weir_cuda_tables *tables, const weir_cuda_converter *converter,
                  const weir_cuda_search *wanted, void *stream, uint64_t *out_element,
                  uint32_t *out_bits)
{
    const weir_cuda_runtime *cuda = tables->cuda;
    uint64_t *word = &tables->results->product;
    uint64_t n_bytes = wanted->element_bytes;
    *word = wanted->n_elements;
    tables->dirty = true;
    int error = cuda->copy(wanted->first, word, sizeof(*word), stream);
    if (error == 0)
        error = converter->find_refused(wanted, stream);
    if (error == 0)
        error = cuda->copy(word, wanted->first, sizeof(*word), stream);
    if (error == 0)
        error = weir_cuda_wait_stream(cuda, stream, WEIR_CUDA_DRAIN_MS);
    if (error != 0)
        return error;
    *out_element = *word;
    *word = 0;
    if (*out_element < wanted->n_elements) {
        uint64_t row = *out_element / wanted->n_cols, column = *out_element % wanted->n_cols;
        error = cuda->copy(word,
                           (const char *)wanted->source + row * wanted->row_step + column * n_bytes,
                           n_bytes, stream);
    }
    if (error == 0)
        error = weir_cuda_wait_stream(cuda, stream, WEIR_CUDA_DRAIN_MS);
    *out_bits = (uint32_t)*word;
    return error;
}

/* In a stream of its own: the default one would wait for whatever else the process computes. */
weir_status weir_cuda_name_refused(weir_cuda_tables *tables, const weir_cuda_converter *converter,
                                   const weir_tensor *source, uint64_t row_step,
                                   uint32_t least_refused)
{
    weir_cuda_search wanted = { .source = source->data,
                                .first = &tables->device_results->product,
                                .n_cols = source->shape.dim[source->shape.rank - 1],
                                .row_step = row_step,
                                .element_bytes = (uint32_t)bytes_of(source),
                                .least_refused = least_refused };
    uint64_t element = 0;
    uint32_t bits = 0;
    void *stream = NULL;
    weir_shape_elements(&source->shape, &wanted.n_elements); /* has been checked */
    int error = tables->cuda->stream_open(&stream);
    if (error == 0) {
        error = search(tables, converter, &wanted, stream, &element, &bits);
        if (error != 0)
            weir_cuda_tables_settle(tables, stream);
        tables->cuda->stream_close(stream);
    }
    if (error != 0)
        return weir_cuda_check(error, "cannot search the refused %s",
                               source->name != NULL ? source->name : "(unnamed)");
    return element < wanted.n_elements ? weir_nonfinite_fail(source, element, bits) : WEIR_OK;
}

static weir_status report_refused(weir_cuda_digests *digests, const weir_cuda_converter *converter,
                                  const weir_cuda_range *range)
{
    uint64_t n_elements = range->n_rows * range->row_bytes / (weir_dtype_bits(range->dtype) / 8);
    weir_tensor seen = { name_of(range), range->dtype, { 1, { n_elements } }, NULL };
    memcpy(&seen.data, &range->data, sizeof(seen.data)); /* only read */
    weir_status status = weir_cuda_name_refused(&digests->tables, converter, &seen, 0,
                                                weir_nonfinite_least(range->dtype, false));
    if (status != WEIR_OK)
        return status;
    return weir_fail(WEIR_ERR_NONFINITE, "%s held what is not finite when it was digested",
                     name_of(range));
}

weir_status weir_cuda_digests_take(weir_cuda_digests *digests, const weir_cuda_converter *converter)
{
    const weir_cuda_result *results = digests->tables.results;
    for (size_t i = 0; i < digests->n_ranges; i++) {
        if (results[i].nonfinite != 0)
            return report_refused(digests, converter, &digests->ranges[i]);
    }
    for (size_t i = 0; i < digests->n_ranges; i++)
        *digests->ranges[i].digest = (weir_digest){ results[i].product, results[i].sum };
    return WEIR_OK;
}

void weir_cuda_digests_drop(weir_cuda_digests *digests)
{
    weir_cuda_tables_drop(&digests->tables);
    weir_free(digests->ranges);
}
