/* SPDX-License-Identifier: Apache-2.0 */
/* magnitudes.c - measures, joins and converts borders by magnitude, on all threads of the pool;
 * what lies on a GPU is measured and converted by magnitudes_cuda.c.
 *
 * A job is cut into chunks of whole blocks, one task each. Rows below the block's height are padded
 * with a row, where they lie; columns narrower than the block are copied beside one more column.
 * The outputs of a chunk are made in scratch, without their padding put into the slot, and digested
 * there.
 */
#include "refit/magnitudes_state.h"

#include <string.h>

#include "base/alloc.h"
#include "base/digest.h"
#include "base/error.h"
#include "base/pool.h"
#include "convert/magnitude.h"
#include "numeric/scalar.h"

#define CHUNK_ELEMENTS ((uint64_t)1 << 19)
#define CHUNK_ALIGN_ROWS 64u /* so that chunks of scales begin at whole digest words */

/* ---- open ------------------------------------------------------------------------------------*/

/* Whether a job's rows fill its blocks' height: then columns are what they lack. */
static bool lacks_columns(const weir_share_border *border, const weir_share_job *job)
{
    return job->copy.n_rows == border->copy.n_rows;
}

static uint32_t rows_of_chunk(const weir_share_border *border, const weir_share_job *job)
{
    uint64_t rows = CHUNK_ELEMENTS / job->copy.n_cols;
    uint64_t step = border->block_rows % CHUNK_ALIGN_ROWS == 0
                        ? border->block_rows
                        : (uint64_t)border->block_rows * CHUNK_ALIGN_ROWS;
    if (!lacks_columns(border, job))
        return job->copy.n_rows;
    rows = rows > step ? rows / step * step : step;
    return rows < job->copy.n_rows ? (uint32_t)rows : job->copy.n_rows;
}

/* A chunk's source with its padding, as F32 at most. */
static weir_shape padded_shape(const weir_share_border *border, const weir_share_job *job,
                               uint32_t n_rows)
{
    bool by_columns = lacks_columns(border, job);
    return (weir_shape){
        2, { n_rows + (by_columns ? 0u : 1u), job->copy.n_cols + (by_columns ? 1u : 0u) }
    };
}

static uint64_t aligned(uint64_t n_bytes)
{
    return (n_bytes + 63) / 64 * 64;
}

/* Bytes of output `o` of a chunk in scratch. */
static weir_status bytes_of_output(const weir_conversion *conversion, size_t o,
                                   const weir_shape *source, uint64_t *out)
{
    weir_shape shape;
    weir_status status = weir_conversion_output_shape(conversion, o, source, &shape);
    if (status == WEIR_OK)
        status = weir_tensor_bytes(conversion->outputs[o].dtype, &shape, out);
    return status;
}

static weir_status plan_job(weir_magnitudes *m, uint32_t j)
{
    const weir_share_job *job = &m->share->jobs[j];
    const weir_share_border *border = &m->share->borders[job->border];
    const weir_conversion *conversion = weir_magnitudes_conversion(m, job);
    uint32_t n_rows = rows_of_chunk(border, job);
    weir_shape source = padded_shape(border, job, n_rows);
    uint64_t total = aligned(source.dim[0] * source.dim[1] * sizeof(float)), n_bytes;
    for (size_t o = 0; o < conversion->n_outputs; o++) {
        weir_status status = bytes_of_output(conversion, o, &source, &n_bytes);
        if (status != WEIR_OK)
            return status;
        total += aligned(n_bytes);
    }
    if ((uint64_t)weir_dtype_bits(conversion->outputs[0].dtype) * job->copy.n_cols % 8 != 0)
        return weir_fail(WEIR_ERR_UNSUPPORTED, "%s: %u columns of %s are no whole number of bytes",
                         m->tensors[job->copy.tensor].name, job->copy.n_cols, conversion->name);
    m->scratch_bytes = total > m->scratch_bytes ? total : m->scratch_bytes;
    for (uint32_t row = 0; row < job->copy.n_rows; row += n_rows) {
        uint32_t left = job->copy.n_rows - row;
        if (m->chunks != NULL)
            m->chunks[m->n_chunks] =
                (weir_magnitude_chunk){ j, row, left < n_rows ? left : n_rows };
        m->n_chunks++;
    }
    return WEIR_OK;
}

/* Counts the chunks, or lists them once there is room. */
static weir_status plan_jobs(weir_magnitudes *m)
{
    weir_status status = WEIR_OK;
    m->n_chunks = 0;
    for (size_t j = 0; j < m->share->n_jobs && status == WEIR_OK; j++) {
        if (m->share->jobs[j].border != WEIR_ANY)
            status = plan_job(m, (uint32_t)j);
    }
    return status;
}

static weir_status make_room(weir_magnitudes *m, weir_arena *arena)
{
    const weir_share *share = m->share;
    m->first_value = weir_arena_zeroed(arena, share->n_borders + 1, sizeof(*m->first_value));
    if (m->first_value == NULL)
        return WEIR_ERR_NO_MEMORY;
    for (size_t b = 0; b < share->n_borders; b++)
        m->first_value[b + 1] = m->first_value[b] + (size_t)share->borders[b].n_block_rows *
                                                        share->borders[b].n_block_cols;
    m->pieces = weir_arena_zeroed(arena, share->n_pieces, sizeof(*m->pieces));
    m->jobs = weir_arena_zeroed(arena, share->n_jobs, sizeof(*m->jobs));
    return m->pieces != NULL && m->jobs != NULL ? WEIR_OK : WEIR_ERR_NO_MEMORY;
}

static weir_status open_on_host(weir_magnitudes *m, weir_arena *arena)
{
    size_t n_values = m->first_value[m->share->n_borders];
    m->own = weir_arena_zeroed(arena, n_values, sizeof(*m->own));
    m->joined = weir_arena_zeroed(arena, n_values, sizeof(*m->joined));
    if (m->own == NULL || m->joined == NULL)
        return WEIR_ERR_NO_MEMORY;
    weir_status status = plan_jobs(m);
    if (status != WEIR_OK)
        return status;
    m->chunks = weir_arena_zeroed(arena, m->n_chunks, sizeof(*m->chunks));
    m->digests = weir_arena_zeroed(arena, m->n_chunks * WEIR_MAX_OUTPUTS, sizeof(*m->digests));
    m->scratch = weir_alloc_aligned(64, (m->scratch_bytes + 64) * weir_pool_threads(m->pool));
    if (m->chunks == NULL || m->digests == NULL || m->scratch == NULL)
        return WEIR_ERR_NO_MEMORY;
    return plan_jobs(m);
}

weir_status weir_magnitudes_open(const weir_magnitudes_options *options, weir_magnitudes **out)
{
    weir_magnitudes *m = weir_alloc_zeroed(1, sizeof(*m));
    if (m == NULL)
        return WEIR_ERR_NO_MEMORY;
    m->share = options->share;
    m->tensors = options->tensors;
    m->pool = options->pool;
    weir_status status = make_room(m, options->arena);
    if (status == WEIR_OK)
        status = options->work != NULL ? weir_magnitudes_cuda_open(m, options)
                                       : open_on_host(m, options->arena);
    if (status != WEIR_OK) {
        weir_magnitudes_close(m);
        return status;
    }
    *out = m;
    return WEIR_OK;
}

void weir_magnitudes_close(weir_magnitudes *magnitudes)
{
    if (magnitudes == NULL)
        return;
    weir_magnitudes_cuda_close(magnitudes);
    weir_free(magnitudes->scratch);
    weir_free(magnitudes);
}

const float *weir_magnitudes_own(const weir_magnitudes *magnitudes, uint32_t border,
                                 uint32_t *out_n)
{
    size_t first = magnitudes->first_value[border];
    *out_n = (uint32_t)(magnitudes->first_value[border + 1] - first);
    return magnitudes->own + first;
}

void weir_magnitudes_aim_piece(weir_magnitudes *magnitudes, size_t piece,
                               const weir_magnitude_rows *rows)
{
    magnitudes->pieces[piece] = *rows;
}

void weir_magnitudes_aim_job(weir_magnitudes *magnitudes, size_t job,
                             const weir_magnitude_rows *rows)
{
    magnitudes->jobs[job] = *rows;
}

/* ---- measure and join ------------------------------------------------------------------------*/

weir_magnitude_view weir_magnitudes_view_of(const weir_magnitudes *m,
                                            const weir_share_border *border, size_t piece)
{
    const weir_share_piece *own = &m->share->pieces[piece];
    return (weir_magnitude_view){ .dtype = m->pieces[piece].view.dtype,
                                  .data = m->pieces[piece].view.data,
                                  .pitch_bytes = m->pieces[piece].pitch_bytes,
                                  .n_rows = own->n_rows,
                                  .n_cols = own->n_cols,
                                  .row = own->row - border->copy.row,
                                  .col = own->col - border->copy.col,
                                  .block_rows = border->block_rows,
                                  .block_cols = border->block_cols };
}

static weir_status measure_border(void *context, size_t b, unsigned thread)
{
    weir_magnitudes *m = context;
    const weir_share_border *border = &m->share->borders[b];
    float *own = m->own + m->first_value[b];
    (void)thread;
    memset(own, 0, (m->first_value[b + 1] - m->first_value[b]) * sizeof(*own));
    for (size_t k = border->first_piece; k < border->first_piece + border->n_pieces; k++) {
        if (m->share->pieces[k].loan != WEIR_ANY)
            continue;
        weir_magnitude_view view = weir_magnitudes_view_of(m, border, k);
        weir_magnitude_raise(&view, border->n_block_cols, own);
    }
    return WEIR_OK;
}

weir_status weir_magnitudes_measure(weir_magnitudes *magnitudes)
{
    if (magnitudes->gpu != NULL)
        return weir_magnitudes_cuda_measure(magnitudes);
    return weir_pool_run(magnitudes->pool, magnitudes->share->n_borders, measure_border,
                         magnitudes);
}

void weir_magnitudes_join(weir_magnitudes *magnitudes, weir_loan_at at, void *context)
{
    weir_magnitudes *m = magnitudes;
    for (size_t b = 0; b < m->share->n_borders; b++) {
        const weir_share_border *border = &m->share->borders[b];
        size_t n = m->first_value[b + 1] - m->first_value[b];
        float *joined = m->joined + m->first_value[b];
        memcpy(joined, m->own + m->first_value[b], n * sizeof(*joined));
        for (size_t k = border->first_piece; k < border->first_piece + border->n_pieces; k++) {
            const weir_share_piece *piece = &m->share->pieces[k];
            if (piece->loan == WEIR_ANY)
                continue;
            const unsigned char *others = at(context, piece->loan, piece->offset);
            for (size_t i = 0; i < n; i++) {
                float other;
                memcpy(&other, others + i * sizeof(other), sizeof(other));
                joined[i] = weir_magnitude_max(joined[i], other);
            }
        }
    }
}

/* ---- convert ---------------------------------------------------------------------------------*/

/* What a task works with. */
typedef struct bench {
    const weir_magnitudes *m;
    const weir_share_job *job;
    const weir_share_border *border;
    const weir_magnitude_chunk *at;
    weir_tensor rows; /* the chunk's, as they lie */
    uint64_t pitch_bytes;
    const float *magnitudes; /* of the first block of the job */
    weir_dtype pad_dtype;
    unsigned char *free; /* of the thread's scratch */
} bench;

static unsigned char *take(bench *b, uint64_t n_bytes)
{
    unsigned char *taken = b->free;
    b->free += aligned(n_bytes);
    return taken;
}

/* The dtype that holds the rows and their magnitudes: of the rows themselves, but for the odd rank
 * whose neighbours keep masters where it keeps bf16. */
static weir_dtype dtype_of_padding(const weir_magnitudes *m, weir_dtype dtype, size_t b)
{
    if (dtype != WEIR_BF16)
        return WEIR_F32;
    for (size_t i = m->first_value[b]; i < m->first_value[b + 1]; i++) {
        if ((weir_float_bits(m->joined[i]) & 0xFFFFu) != 0)
            return WEIR_F32;
    }
    return WEIR_BF16;
}

static void put_value(weir_dtype dtype, unsigned char *at, float value)
{
    uint16_t bf16 = (uint16_t)(weir_float_bits(value) >> 16);
    if (dtype == WEIR_BF16)
        memcpy(at, &bf16, sizeof(bf16));
    else
        memcpy(at, &value, sizeof(value));
}

/* One row below the chunk's, with each block's magnitude in the block's first column. */
static void pad_with_row(bench *b, weir_tensor sources[2], uint64_t pitches[2])
{
    const weir_fleet_copy *copy = &b->job->copy;
    size_t element_bytes = weir_dtype_bits(b->pad_dtype) / 8;
    unsigned char *row = take(b, copy->n_cols * element_bytes);
    memset(row, 0, copy->n_cols * element_bytes);
    uint32_t first = (copy->col - b->border->copy.col) / b->border->block_cols;
    for (uint32_t c = 0, block = first; c < copy->n_cols; block++) {
        put_value(b->pad_dtype, row + c * element_bytes, b->magnitudes[block]);
        c = (block + 1) * b->border->block_cols - (copy->col - b->border->copy.col);
    }
    sources[0] = b->rows;
    pitches[0] = b->pitch_bytes;
    sources[1] = (weir_tensor){ b->rows.name, b->pad_dtype, { 2, { 1, copy->n_cols } }, row };
    pitches[1] = 0;
}

static float value_of(weir_dtype dtype, const unsigned char *at)
{
    uint16_t half;
    float value;
    if (dtype == WEIR_F32) {
        memcpy(&value, at, sizeof(value));
        return value;
    }
    memcpy(&half, at, sizeof(half));
    return dtype == WEIR_BF16 ? weir_float_from_bf16(half) : weir_float_from_fp16(half);
}

/* The chunk's rows with one more column, which holds the magnitude in the first row of each block.
 */
static void pad_with_column(bench *b, weir_tensor *source)
{
    uint32_t n_cols = b->job->copy.n_cols;
    size_t from_bytes = weir_dtype_bits(b->rows.dtype) / 8;
    size_t to_bytes = weir_dtype_bits(b->pad_dtype) / 8;
    unsigned char *copy = take(b, (uint64_t)b->at->n_rows * (n_cols + 1) * to_bytes);
    for (uint32_t r = 0; r < b->at->n_rows; r++) {
        const unsigned char *from = (const unsigned char *)b->rows.data + r * b->pitch_bytes;
        unsigned char *to = copy + (size_t)r * (n_cols + 1) * to_bytes;
        uint32_t row = b->at->row + r;
        if (b->rows.dtype == b->pad_dtype)
            memcpy(to, from, n_cols * to_bytes);
        for (uint32_t c = 0; c < n_cols && b->rows.dtype != b->pad_dtype; c++)
            put_value(b->pad_dtype, to + c * to_bytes,
                      value_of(b->rows.dtype, from + c * from_bytes));
        bool first = row % b->border->block_rows == 0;
        put_value(b->pad_dtype, to + n_cols * to_bytes,
                  first ? b->magnitudes[row / b->border->block_rows] : 0);
    }
    *source =
        (weir_tensor){ b->rows.name, b->pad_dtype, { 2, { b->at->n_rows, n_cols + 1 } }, copy };
}

/* Rows and bytes of output `o` of the chunk, without padding. */
typedef struct output_rows {
    uint64_t first, n_rows; /* within the job */
    uint64_t row_bytes, scratch_pitch;
    bool is_vector;
} output_rows;

static output_rows rows_of_output(const bench *b, size_t o)
{
    const weir_conversion_output *row = &weir_magnitudes_conversion(b->m, b->job)->outputs[o];
    uint64_t cols = row->cell_cols == WEIR_WHOLE
                        ? 1
                        : (b->job->copy.n_cols + row->cell_cols - 1) / row->cell_cols;
    weir_shape padded = padded_shape(b->border, b->job, b->at->n_rows);
    uint64_t made =
        row->cell_cols == WEIR_WHOLE ? 1 : (padded.dim[1] + row->cell_cols - 1) / row->cell_cols;
    unsigned bits = weir_dtype_bits(row->dtype);
    return (output_rows){ b->at->row / row->cell_rows,
                          (b->at->n_rows + row->cell_rows - 1) / row->cell_rows, cols * bits / 8,
                          made * bits / 8, row->cell_cols == WEIR_WHOLE };
}

/* Puts output `o` where it belongs, and digests it there. */
static void deliver(const bench *b, size_t o, const unsigned char *made, weir_digest *digest)
{
    const weir_magnitude_target *target = b->m->target;
    uint32_t shard = weir_magnitudes_shard(b->m, target, b->at->job, o);
    if (shard == WEIR_ANY)
        return;
    output_rows rows = rows_of_output(b, o);
    unsigned char *to = target->data + target->shards[shard].offset + b->job->offsets[o] +
                        rows.first * rows.row_bytes;
    for (uint64_t r = 0; r < rows.n_rows; r++)
        memcpy(to + r * rows.row_bytes, made + r * rows.scratch_pitch, rows.row_bytes);
    uint64_t word = b->job->first_words[o];
    if (rows.is_vector)
        weir_digest_rectangle(digest, to, 0, 1, rows.n_rows * rows.row_bytes,
                              word + rows.first * rows.row_bytes / 8, 0);
    else
        weir_digest_rectangle(digest, to, rows.row_bytes, rows.n_rows, rows.row_bytes,
                              word + rows.first * weir_digest_words_per_row(rows.row_bytes),
                              weir_digest_words_per_row(rows.row_bytes));
}

/* The first chunk of job `job` or of one after it; they come in the order of their jobs. */
static size_t first_chunk_of(const weir_magnitudes *m, size_t job)
{
    size_t low = 0, high = m->n_chunks;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (m->chunks[middle].job < job)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

static weir_status convert_chunk(void *context, size_t number, unsigned thread)
{
    weir_magnitudes *m = context;
    size_t index = m->first_chunk + number;
    const weir_magnitude_chunk *at = &m->chunks[index];
    const weir_share_job *job = &m->share->jobs[at->job];
    const weir_conversion *conversion = weir_magnitudes_conversion(m, job);
    const weir_share_border *border = &m->share->borders[job->border];
    const weir_magnitude_rows *rows = &m->jobs[at->job];
    weir_digest *digests = &m->digests[index * WEIR_MAX_OUTPUTS];
    memset(digests, 0, WEIR_MAX_OUTPUTS * sizeof(*digests));
    bench b = { .m = m,
                .job = job,
                .border = border,
                .at = at,
                .rows = rows->view,
                .pitch_bytes = rows->pitch_bytes,
                .magnitudes = m->joined + m->first_value[job->border],
                .free = m->scratch + thread * m->scratch_bytes };
    b.rows.shape = (weir_shape){ 2, { at->n_rows, job->copy.n_cols } };
    b.rows.data = (unsigned char *)rows->view.data + at->row * rows->pitch_bytes;
    b.pad_dtype = dtype_of_padding(m, rows->view.dtype, job->border);
    weir_tensor sources[2];
    uint64_t pitches[2] = { 0, 0 }, n_bytes;
    weir_convert_args args = WEIR_CONVERT_ARGS_INIT;
    args.conversion = conversion;
    args.sources = sources;
    args.source_pitches = pitches;
    args.n_sources = lacks_columns(border, job) ? 1 : 2;
    args.round_masters = m->target->round_masters && rows->view.dtype != WEIR_F16;
    if (lacks_columns(border, job))
        pad_with_column(&b, sources);
    else
        pad_with_row(&b, sources, pitches);
    weir_shape padded = padded_shape(border, job, at->n_rows);
    for (size_t o = 0; o < conversion->n_outputs; o++) {
        weir_status status = bytes_of_output(conversion, o, &padded, &n_bytes);
        if (status != WEIR_OK)
            return status;
        args.outputs[o] = take(&b, n_bytes);
    }
    weir_status status = weir_convert(&args);
    for (size_t o = 0; o < conversion->n_outputs && status == WEIR_OK; o++)
        deliver(&b, o, args.outputs[o], &digests[o]);
    return status;
}

weir_status weir_magnitudes_convert(weir_magnitudes *magnitudes,
                                    const weir_magnitude_target *target)
{
    weir_magnitudes *m = magnitudes;
    if (m->gpu != NULL)
        return weir_magnitudes_cuda_convert(m, target);
    size_t end = first_chunk_of(m, target->end_job);
    m->target = target;
    m->first_chunk = first_chunk_of(m, target->first_job);
    weir_status status = weir_pool_run(m->pool, end - m->first_chunk, convert_chunk, m);
    for (size_t i = m->first_chunk; i < end && status == WEIR_OK; i++) {
        const weir_share_job *job = &m->share->jobs[m->chunks[i].job];
        for (size_t o = 0; o < weir_magnitudes_conversion(m, job)->n_outputs; o++) {
            uint32_t shard = weir_magnitudes_shard(m, target, m->chunks[i].job, o);
            if (shard != WEIR_ANY)
                weir_digest_merge(&target->digests[shard], &m->digests[i * WEIR_MAX_OUTPUTS + o]);
        }
    }
    m->target = NULL;
    return status;
}
