/* SPDX-License-Identifier: Apache-2.0 */
/* share_case.h - plays all ranks of a fleet on one thread: lends, borrows, converts every job into
 * its shard, and puts a worker's parameters together from the shards of its place. What a rank may
 * read is the caller's to say. */
#ifndef WEIR_TESTS_PLAN_SHARE_CASE_H
#define WEIR_TESTS_PLAN_SHARE_CASE_H

#include "base/digest.h"
#include "fleet_case.h"

/* ---- conversions with small blocks -----------------------------------------------------------*/

/* Per block the largest bits, and each element mixed with them: what is converted with a part of
 * its block, or with another, shows. */
static inline weir_status mix_cells(const weir_tile *tile, size_t rows, size_t cols)
{
    for (size_t r0 = 0; r0 < tile->n_rows; r0 += rows) {
        size_t r1 = r0 + rows < tile->n_rows ? r0 + rows : tile->n_rows;
        for (size_t c0 = 0; c0 < tile->n_cols; c0 += cols) {
            size_t c1 = c0 + cols < tile->n_cols ? c0 + cols : tile->n_cols;
            uint32_t most = 0;
            for (size_t r = r0; r < r1; r++)
                for (size_t c = c0; c < c1; c++) {
                    uint16_t v = ((const uint16_t *)tile->rows[r])[c];
                    most = most * 31 + v + (uint32_t)(r - r0) * 7;
                }
            for (size_t r = r0; r < r1; r++)
                for (size_t c = c0; c < c1; c++) {
                    uint16_t v = ((const uint16_t *)tile->rows[r])[c];
                    ((uint8_t *)tile->out[0].data)[r * tile->out[0].pitch_bytes + c] =
                        (uint8_t)(v ^ v >> 8 ^ most ^ most >> 11);
                }
            memcpy((uint8_t *)tile->out[1].data + r0 / rows * tile->out[1].pitch_bytes +
                       c0 / cols * sizeof(most),
                   &most, sizeof(most));
        }
    }
    return WEIR_OK;
}

static inline weir_status mix_blocks(const weir_tile *tile)
{
    return mix_cells(tile, 4, 4);
}

static inline weir_status mix_rows(const weir_tile *tile)
{
    return mix_cells(tile, 1, tile->n_cols);
}

/* The same, of the largest magnitude of each block. */
static inline void mix_magnitude(const weir_tile *tile, size_t r0, size_t r1, size_t c0, size_t c1,
                                 uint32_t *out)
{
    uint32_t most = 0;
    for (size_t r = r0; r < r1; r++) {
        for (size_t c = c0; c < c1; c++) {
            uint16_t magnitude = ((const uint16_t *)tile->rows[r])[c] & 0x7FFF;
            most = magnitude > most ? magnitude : most;
        }
    }
    for (size_t r = r0; r < r1; r++) {
        for (size_t c = c0; c < c1; c++) {
            uint32_t v = ((const uint16_t *)tile->rows[r])[c];
            ((uint8_t *)tile->out[0].data)[r * tile->out[0].pitch_bytes + c] =
                (uint8_t)((v * 0x9E3779B1u + most * 0x85EBCA77u) >> 17);
        }
    }
    memcpy(out, &most, sizeof(most));
}

static inline weir_status mix_magnitudes(const weir_tile *tile, size_t rows, size_t cols)
{
    for (size_t r0 = 0; r0 < tile->n_rows; r0 += rows) {
        for (size_t c0 = 0; c0 < tile->n_cols; c0 += cols) {
            uint8_t *out = (uint8_t *)tile->out[1].data + r0 / rows * tile->out[1].pitch_bytes +
                           c0 / cols * sizeof(uint32_t);
            mix_magnitude(tile, r0, r0 + rows < tile->n_rows ? r0 + rows : tile->n_rows, c0,
                          c0 + cols < tile->n_cols ? c0 + cols : tile->n_cols, (uint32_t *)out);
        }
    }
    return WEIR_OK;
}

static inline weir_status mix_blocks_by_magnitude(const weir_tile *tile)
{
    return mix_magnitudes(tile, 4, 4);
}

static inline weir_status mix_rows_by_magnitude(const weir_tile *tile)
{
    return mix_magnitudes(tile, 1, tile->n_cols);
}

#define SHARE_CONVERSION(label, rows, cols, kernel, magnitude)                         \
    {                                                                                  \
        .size = sizeof(weir_conversion), .name = label, .compile_target = "t",         \
        .compile_metadata = "{}", .sources = WEIR_DTYPE_BIT(WEIR_BF16), .min_rank = 2, \
        .max_rank = 3, .border_rows = rows, .border_cols = cols, .n_outputs = 2,       \
        .outputs = { { "weight", WEIR_U8, 1, 1 }, { "scale", WEIR_U32, rows, cols } }, \
        .reference = kernel, .by_magnitude = magnitude,                                \
    }
static const weir_conversion share_block = SHARE_CONVERSION("share_block", 4, 4, mix_blocks, false);
static const weir_conversion share_channel =
    SHARE_CONVERSION("share_channel", 1, WEIR_WHOLE, mix_rows, false);
static const weir_conversion share_block_by_magnitude =
    SHARE_CONVERSION("share_block_by_magnitude", 4, 4, mix_blocks_by_magnitude, true);
static const weir_conversion share_channel_by_magnitude =
    SHARE_CONVERSION("share_channel_by_magnitude", 1, WEIR_WHOLE, mix_rows_by_magnitude, true);

/* ---- values ----------------------------------------------------------------------------------*/

/* A finite bf16 told by the place in the source. */
static inline uint16_t share_value(uint64_t place)
{
    uint64_t mixed = place * 0x9E3779B97F4A7C15;
    return place == 0 ? 0 : (uint16_t)(0x3E00 | (mixed >> 48 & 0x81FF));
}

/* ---- outputs ---------------------------------------------------------------------------------*/

typedef struct share_outputs {
    uint8_t *data[WEIR_MAX_OUTPUTS];
    weir_shape shapes[WEIR_MAX_OUTPUTS];
    uint64_t n_bytes[WEIR_MAX_OUTPUTS];
    weir_digest digests[WEIR_MAX_OUTPUTS];
} share_outputs;

static inline void share_outputs_free(share_outputs *out)
{
    for (size_t o = 0; o < WEIR_MAX_OUTPUTS; o++)
        free(out->data[o]);
}

/* Converts one box; a vector where the parameter is one. */
static inline share_outputs share_convert(const weir_fleet_tensor *t, void *values, uint64_t rows,
                                          uint64_t cols, const uint64_t *first_words)
{
    uint32_t leading = t->n_experts > 0 ? 1 : 0, rank = t->shape.rank;
    weir_tensor source = { "box", WEIR_BF16, { 2, { rows, cols } }, values };
    weir_convert_args args = WEIR_CONVERT_ARGS_INIT;
    share_outputs out = { 0 };
    if (rank == leading + 1)
        source.shape = (weir_shape){ 1, { rows } };
    if (rank == leading + 3)
        source.shape =
            (weir_shape){ 3, { rows, t->shape.dim[leading + 1], t->shape.dim[leading + 2] } };
    args.conversion = t->conversion;
    args.sources = &source;
    args.n_sources = 1;
    args.digests = out.digests;
    for (size_t o = 0; o < t->conversion->n_outputs; o++) {
        assert_int_equal(
            weir_conversion_output_shape(t->conversion, o, &source.shape, &out.shapes[o]), WEIR_OK);
        assert_int_equal(
            weir_tensor_bytes(t->conversion->outputs[o].dtype, &out.shapes[o], &out.n_bytes[o]),
            WEIR_OK);
        args.outputs[o] = out.data[o] = calloc(1, out.n_bytes[o] + 1);
        args.first_words[o] = first_words != NULL ? first_words[o] : 0;
    }
    if (weir_convert(&args) != WEIR_OK)
        fail_msg("%s", weir_last_error());
    return out;
}

/* ---- all ranks -------------------------------------------------------------------------------*/

typedef struct share_player share_player;
/* Reads one element that a rank holds; fails where it does not hold it. */
typedef uint16_t (*share_read)(const share_player *p, uint32_t rank, uint32_t tensor,
                               uint32_t source, uint32_t expert, uint64_t row, uint64_t col);

struct share_player {
    const weir_fleet *fleet;
    const weir_fleet_tensor *tensors;
    size_t n_tensors;
    share_read read;
    const void *context;
    uint64_t most_bytes; /* as weir_fleet_share_in_pieces() takes it */
    uint32_t n_ranks;
    weir_share **shares;
    uint16_t ***lent;  /* by rank, by loan: what it hands over */
    uint8_t ***shards; /* by rank, by shard */
    uint64_t n_shards, n_shard_bytes, largest_shard_bytes;
};

/* ---- magnitudes ------------------------------------------------------------------------------*/

static inline float share_float(uint16_t bf16)
{
    uint32_t bits = (uint32_t)bf16 << 16;
    float value;
    memcpy(&value, &bits, sizeof(value));
    return value;
}

static inline uint16_t share_bf16(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof(bits));
    assert_int_equal(bits & 0x8000FFFF, 0);
    return (uint16_t)(bits >> 16);
}

static inline bool share_is_plain(const weir_conversion *conversion, size_t output)
{
    return conversion->outputs[output].cell_rows == 1 && conversion->outputs[output].cell_cols == 1;
}

/* A border as its tensor and grid want it. */
static inline void share_check_border(const share_player *p, const weir_share_border *border)
{
    const weir_conversion *conversion = p->tensors[border->copy.tensor].conversion;
    const weir_fleet_copy *copy = &border->copy;
    uint64_t rows = conversion->border_rows, cols = conversion->border_cols;
    assert_true(conversion->by_magnitude);
    assert_int_equal(copy->source, WEIR_FLEET_MIXED);
    rows = rows == WEIR_WHOLE || rows > copy->n_rows ? copy->n_rows : rows;
    cols = cols == WEIR_WHOLE || cols > copy->n_cols ? copy->n_cols : cols;
    assert_int_equal(border->block_rows, rows);
    assert_int_equal(border->block_cols, cols);
    assert_int_equal(border->n_block_rows, (copy->n_rows + rows - 1) / rows);
    assert_int_equal(border->n_block_cols, (copy->n_cols + cols - 1) / cols);
}

/* The largest magnitude of each block of a border of what a rank holds of it. */
static inline float *share_magnitudes(const share_player *p, uint32_t rank, uint32_t index)
{
    const weir_share *share = p->shares[rank];
    const weir_share_border *border = &share->borders[index];
    float *most = calloc((size_t)border->n_block_rows * border->n_block_cols, sizeof(*most));
    size_t n_own = 0;
    share_check_border(p, border);
    assert_true(border->first_piece + border->n_pieces <= share->n_pieces);
    for (size_t i = 0; i < border->n_pieces; i++) {
        const weir_share_piece *piece = &share->pieces[border->first_piece + i];
        assert_int_equal(piece->tensor, border->copy.tensor);
        assert_int_equal(piece->expert, border->copy.expert);
        if (piece->loan != WEIR_ANY)
            continue;
        n_own++;
        assert_int_equal(piece->border, WEIR_ANY);
        for (uint32_t r = 0; r < piece->n_rows; r++) {
            for (uint32_t c = 0; c < piece->n_cols; c++) {
                uint32_t row = piece->row + r - border->copy.row;
                uint32_t col = piece->col + c - border->copy.col;
                assert_true(row < border->copy.n_rows && col < border->copy.n_cols);
                float *of = &most[row / border->block_rows * border->n_block_cols +
                                  col / border->block_cols];
                float value =
                    share_float(p->read(p, rank, piece->tensor, piece->source, piece->expert,
                                        piece->source_row + r, piece->source_col + c) &
                                0x7FFF);
                *of = value > *of ? value : *of;
            }
        }
    }
    assert_true(n_own > 0 && n_own < border->n_pieces);
    return most;
}

/* ---- lending ---------------------------------------------------------------------------------*/

/* Writes one piece of a loan, and returns its bytes. */
static inline uint64_t share_lend_piece(share_player *p, uint32_t rank,
                                        const weir_share_piece *piece, void *data)
{
    uint16_t *at = data;
    if (piece->border != WEIR_ANY) {
        const weir_share_border *border = &p->shares[rank]->borders[piece->border];
        uint64_t n_bytes = (uint64_t)border->n_block_rows * border->n_block_cols * sizeof(float);
        assert_true(piece->border < p->shares[rank]->n_borders);
        assert_int_equal(piece->n_rows, border->n_block_rows);
        assert_int_equal(piece->n_cols, border->n_block_cols);
        float *most = share_magnitudes(p, rank, piece->border);
        memcpy(data, most, n_bytes);
        free(most);
        return n_bytes;
    }
    for (uint64_t r = 0; r < piece->n_rows; r++)
        for (uint64_t c = 0; c < piece->n_cols; c++)
            *at++ = p->read(p, rank, piece->tensor, piece->source, piece->expert,
                            piece->source_row + r, piece->source_col + c);
    return (uint64_t)piece->n_rows * piece->n_cols * 2;
}

static inline void share_lend(share_player *p, uint32_t rank)
{
    const weir_share *share = p->shares[rank];
    p->lent[rank] = calloc(share->n_lends + 1, sizeof(*p->lent[rank]));
    size_t n_pieces = 0;
    for (size_t i = 0; i < share->n_lends; i++) {
        const weir_share_loan *loan = &share->lends[i];
        uint16_t *data = p->lent[rank][i] = calloc(loan->n_bytes, 1);
        uint64_t end = 0;
        assert_true(i == 0 || share->lends[i - 1].rank < loan->rank);
        assert_true(loan->rank != rank);
        assert_int_equal(loan->first_piece, n_pieces);
        for (size_t k = 0; k < loan->n_pieces; k++) {
            const weir_share_piece *piece = &share->lent[loan->first_piece + k];
            uint64_t alignment = piece->border == WEIR_ANY ? 16 : 4;
            assert_int_equal(piece->loan, i);
            assert_true(piece->offset >= end && piece->offset < end + alignment);
            assert_int_equal(piece->offset % alignment, 0);
            assert_true(piece->offset < loan->n_bytes);
            end = piece->offset + share_lend_piece(p, rank, piece, data + piece->offset / 2);
        }
        assert_int_equal(loan->n_bytes, end);
        n_pieces += loan->n_pieces;
    }
    assert_int_equal(n_pieces, share->n_lent);
}

/* What `lender` hands over to `rank`. */
static inline const uint16_t *share_loan_of(const share_player *p, uint32_t lender, uint32_t rank,
                                            uint64_t n_bytes)
{
    const weir_share *share = p->shares[lender];
    for (size_t i = 0; i < share->n_lends; i++) {
        if (share->lends[i].rank == rank) {
            assert_int_equal(share->lends[i].n_bytes, n_bytes);
            return p->lent[lender][i];
        }
    }
    fail_msg("rank %u lends rank %u nothing", lender, rank);
    return NULL;
}

/* The magnitudes of a border, of all its ranks. */
static inline float *share_join(const share_player *p, uint32_t rank, uint32_t index)
{
    const weir_share *share = p->shares[rank];
    const weir_share_border *border = &share->borders[index];
    float *most = share_magnitudes(p, rank, index);
    for (size_t i = 0; i < border->n_pieces; i++) {
        const weir_share_piece *piece = &share->pieces[border->first_piece + i];
        if (piece->loan == WEIR_ANY)
            continue;
        assert_true(piece->loan < share->n_borrows);
        assert_int_equal(piece->border, index);
        assert_int_equal(piece->n_rows, border->n_block_rows);
        assert_int_equal(piece->n_cols, border->n_block_cols);
        const weir_share_loan *from = &share->borrows[piece->loan];
        const uint16_t *loan =
            share_loan_of(p, from->rank, rank, from->n_bytes) + piece->offset / 2;
        for (size_t k = 0; k < (size_t)border->n_block_rows * border->n_block_cols; k++) {
            float other;
            memcpy(&other, loan + 2 * k, sizeof(other));
            most[k] = other > most[k] ? other : most[k];
        }
    }
    return most;
}

static inline void share_gather_border(const share_player *p, uint32_t rank,
                                       const weir_share_job *job, uint16_t *box)
{
    const weir_share *share = p->shares[rank];
    const weir_fleet_copy *copy = &job->copy;
    assert_true(copy->first_piece + (size_t)copy->n_pieces <= share->n_pieces);
    for (uint32_t i = 0; i < copy->n_pieces; i++) {
        const weir_share_piece *piece = &share->pieces[copy->first_piece + i];
        const uint16_t *loan = NULL;
        assert_int_equal(piece->tensor, copy->tensor);
        assert_int_equal(piece->expert, copy->expert);
        if (piece->loan != WEIR_ANY) {
            assert_true(piece->loan < share->n_borrows);
            const weir_share_loan *from = &share->borrows[piece->loan];
            loan = share_loan_of(p, from->rank, rank, from->n_bytes) + piece->offset / 2;
        }
        for (uint32_t r = 0; r < piece->n_rows; r++) {
            for (uint32_t c = 0; c < piece->n_cols; c++) {
                uint64_t row = piece->row - copy->row + r, col = piece->col - copy->col + c;
                assert_true(row < copy->n_rows && col < copy->n_cols);
                assert_int_equal(box[row * copy->n_cols + col], 0xFFFF);
                box[row * copy->n_cols + col] =
                    loan != NULL ? *loan++
                                 : p->read(p, rank, piece->tensor, piece->source, piece->expert,
                                           piece->source_row + r, piece->source_col + c);
            }
        }
    }
}

/* The unconverted box of a job; every element is put there once. */
static inline uint16_t *share_gather(const share_player *p, uint32_t rank,
                                     const weir_share_job *job)
{
    const weir_fleet_copy *copy = &job->copy;
    uint64_t n = (uint64_t)copy->n_rows * copy->n_cols;
    uint16_t *box = malloc(n * sizeof(*box));
    memset(box, 0xFF, n * sizeof(*box));
    if (copy->source == WEIR_FLEET_MIXED)
        share_gather_border(p, rank, job, box);
    for (uint64_t i = 0; i < n && copy->source != WEIR_FLEET_MIXED; i++)
        box[i] = p->read(p, rank, copy->tensor, copy->source, copy->expert,
                         copy->source_row + i / copy->n_cols, copy->source_col + i % copy->n_cols);
    for (uint64_t i = 0; i < n; i++)
        assert_int_not_equal(box[i], 0xFFFF);
    return box;
}

/* Where an output of a job goes. */
static inline uint8_t *share_target(share_player *p, uint32_t rank, const weir_share_job *job,
                                    size_t o, uint64_t n_bytes, uint64_t *filled)
{
    const weir_share *share = p->shares[rank];
    uint32_t s = job->shards[o];
    assert_true(s < share->n_shards);
    assert_int_equal(share->shards[s].tensor, job->copy.tensor);
    assert_int_equal(share->shards[s].output, o);
    /* Jobs come in the order of the shard's bytes: what is filled grows without a gap. */
    assert_int_equal(job->offsets[o], filled[s]);
    filled[s] += n_bytes;
    assert_true(filled[s] <= share->shards[s].n_bytes);
    return p->shards[rank][s] + job->offsets[o];
}

/* A piece of a border by magnitude and one more row, or column where that is what its blocks lack,
 * which holds the magnitudes. */
static inline uint16_t *share_pad(const share_player *p, uint32_t rank, const weir_share_job *job,
                                  uint32_t *out_rows, uint32_t *out_cols)
{
    const weir_share_border *border = &p->shares[rank]->borders[job->border];
    const weir_fleet_copy *copy = &job->copy;
    bool by_columns = copy->n_rows == border->copy.n_rows;
    uint32_t rows = copy->n_rows + !by_columns, cols = copy->n_cols + by_columns;
    uint16_t *box = share_gather(p, rank, job), *padded = calloc((size_t)rows * cols, 2);
    float *most = share_join(p, rank, job->border);
    for (uint32_t r = 0; r < copy->n_rows; r++)
        memcpy(padded + (size_t)r * cols, box + (size_t)r * copy->n_cols, copy->n_cols * 2u);
    for (uint32_t b = 0; by_columns && b < border->n_block_rows; b++)
        padded[(size_t)b * border->block_rows * cols + copy->n_cols] = share_bf16(most[b]);
    for (uint32_t b = 0; !by_columns && b < border->n_block_cols; b++)
        padded[(size_t)copy->n_rows * cols + b * border->block_cols] = share_bf16(most[b]);
    assert_true(by_columns ? border->n_block_cols == 1 : border->n_block_rows == 1);
    free(most);
    free(box);
    *out_rows = rows;
    *out_cols = cols;
    return padded;
}

static inline void share_run_border_job(share_player *p, uint32_t rank, const weir_share_job *job,
                                        weir_digest *digests, uint64_t *filled)
{
    const weir_fleet_tensor *t = &p->tensors[job->copy.tensor];
    const weir_share_border *border = &p->shares[rank]->borders[job->border];
    uint32_t rows, cols;
    assert_true(job->border < p->shares[rank]->n_borders);
    uint16_t *padded = share_pad(p, rank, job, &rows, &cols);
    share_outputs out = share_convert(t, padded, rows, cols, NULL);
    for (size_t o = 0; o < t->conversion->n_outputs; o++) {
        bool plain = share_is_plain(t->conversion, o);
        uint32_t n_rows = plain ? job->copy.n_rows : border->n_block_rows;
        uint32_t n_cols = plain ? job->copy.n_cols : border->n_block_cols;
        size_t element = weir_dtype_bits(t->conversion->outputs[o].dtype) / 8;
        size_t row_bytes = n_cols * element, pitch = (plain ? cols : n_cols) * element;
        if (job->shards[o] == WEIR_ANY) {
            assert_false(plain);
            assert_int_equal(job->offsets[o] + job->first_words[o], 0);
            continue;
        }
        assert_true(plain || border->copy.rank == rank);
        uint8_t *to = share_target(p, rank, job, o, n_rows * row_bytes, filled);
        for (uint32_t r = 0; r < n_rows; r++)
            memcpy(to + r * row_bytes, out.data[o] + r * pitch, row_bytes);
        bool vector = t->conversion->outputs[o].cell_cols == WEIR_WHOLE;
        weir_digest_rectangle(&digests[job->shards[o]], to, row_bytes, vector ? 1 : n_rows,
                              vector ? n_rows * row_bytes : row_bytes, job->first_words[o],
                              (row_bytes + 7) / 8);
    }
    share_outputs_free(&out);
    free(padded);
}

static inline void share_run_job(share_player *p, uint32_t rank, const weir_share_job *job,
                                 weir_digest *digests, uint64_t *filled)
{
    const weir_fleet_tensor *t = &p->tensors[job->copy.tensor];
    assert_int_equal(job->copy.rank, rank);
    if (job->border != WEIR_ANY) {
        share_run_border_job(p, rank, job, digests, filled);
        return;
    }
    uint16_t *box = share_gather(p, rank, job);
    share_outputs out = share_convert(t, box, job->copy.n_rows, job->copy.n_cols, job->first_words);
    for (size_t o = 0; o < t->conversion->n_outputs; o++) {
        memcpy(share_target(p, rank, job, o, out.n_bytes[o], filled), out.data[o], out.n_bytes[o]);
        weir_digest_merge(&digests[job->shards[o]], &out.digests[o]);
    }
    share_outputs_free(&out);
    free(box);
}

static inline void share_run(share_player *p, uint32_t rank)
{
    const weir_share *share = p->shares[rank];
    weir_digest *digests = calloc(share->n_shards + 1, sizeof(*digests));
    uint64_t *filled = calloc(share->n_shards + 1, sizeof(*filled));
    p->shards[rank] = calloc(share->n_shards + 1, sizeof(*p->shards[rank]));
    for (size_t s = 0; s < share->n_shards; s++) {
        p->shards[rank][s] = calloc(share->shards[s].n_bytes + 1, 1);
        p->n_shards++;
        p->n_shard_bytes += share->shards[s].n_bytes;
        if (share->shards[s].n_bytes > p->largest_shard_bytes)
            p->largest_shard_bytes = share->shards[s].n_bytes;
    }
    for (size_t i = 0; i < share->n_jobs; i++)
        share_run_job(p, rank, &share->jobs[i], digests, filled);
    for (size_t s = 0; s < share->n_shards; s++) {
        const weir_share_shard *shard = &share->shards[s];
        const weir_fleet_tensor *t = &p->tensors[shard->tensor];
        weir_dtype dtype = t->conversion->outputs[shard->output].dtype;
        weir_shape shape = weir_box_shape(&shard->box);
        uint64_t n_rows, row_bytes;
        weir_digest whole = { 0, 0 };
        assert_int_equal(filled[s], shard->n_bytes);
        if (shard->n_bytes > 0) {
            weir_digest_rows_of(dtype, &shape, &n_rows, &row_bytes);
            assert_int_equal(n_rows * row_bytes, shard->n_bytes);
            weir_digest_add(&whole, p->shards[rank][s], n_rows, row_bytes);
        }
        assert_true(weir_digest_equal(&whole, &digests[s]));
    }
    free(digests);
    free(filled);
}

/* Every loan has its counterpart. */
static inline void share_check_loans(const share_player *p)
{
    size_t n_lends = 0, n_borrows = 0;
    for (uint32_t rank = 0; rank < p->n_ranks; rank++) {
        const weir_share *share = p->shares[rank];
        n_lends += share->n_lends;
        n_borrows += share->n_borrows;
        for (size_t i = 0; i < share->n_borrows; i++) {
            assert_true(i == 0 || share->borrows[i - 1].rank < share->borrows[i].rank);
            share_loan_of(p, share->borrows[i].rank, rank, share->borrows[i].n_bytes);
        }
    }
    assert_int_equal(n_lends, n_borrows);
}

static inline void share_play(share_player *p)
{
    p->n_ranks = weir_fleet_ranks(p->fleet);
    p->shares = calloc(p->n_ranks, sizeof(*p->shares));
    p->lent = calloc(p->n_ranks, sizeof(*p->lent));
    p->shards = calloc(p->n_ranks, sizeof(*p->shards));
    for (uint32_t rank = 0; rank < p->n_ranks; rank++) {
        if (weir_fleet_share_in_pieces(p->fleet, rank, p->most_bytes, &p->shares[rank]) != WEIR_OK)
            fail_msg("%s", weir_last_error());
        share_lend(p, rank);
    }
    share_check_loans(p);
    for (uint32_t rank = 0; rank < p->n_ranks; rank++)
        share_run(p, rank);
}

static inline void share_close(share_player *p)
{
    for (uint32_t rank = 0; rank < p->n_ranks; rank++) {
        for (size_t i = 0; i < p->shares[rank]->n_lends; i++)
            free(p->lent[rank][i]);
        for (size_t i = 0; i < p->shares[rank]->n_shards; i++)
            free(p->shards[rank][i]);
        free(p->lent[rank]);
        free(p->shards[rank]);
        weir_share_free(p->shares[rank]);
    }
    free(p->shares);
    free(p->lent);
    free(p->shards);
}

/* ---- one worker ------------------------------------------------------------------------------*/

/* One output of a worker's parameter, and how often each of its elements has been written. */
typedef struct share_parameter {
    weir_shape shape;
    uint64_t n_elements, n_padding_rows;
    size_t element_bytes;
    uint8_t *data, *written;
} share_parameter;

static inline void share_write_shard(share_parameter *to, const weir_share_shard *shard,
                                     const uint8_t *data)
{
    uint64_t at[WEIR_MAX_RANK] = { 0 }, n = 1;
    const weir_box *box = &shard->box;
    for (uint32_t d = 0; d < box->rank; d++) {
        assert_true(box->lo[d] <= box->hi[d] && box->hi[d] <= to->shape.dim[d]);
        n *= box->hi[d] - box->lo[d];
        at[d] = box->lo[d];
    }
    for (uint64_t i = 0; i < n; i++) {
        uint64_t index = 0;
        for (uint32_t d = 0; d < box->rank; d++)
            index = index * to->shape.dim[d] + at[d];
        assert_int_equal(to->written[index], 0);
        to->written[index] = 1;
        memcpy(to->data + index * to->element_bytes, data + i * to->element_bytes,
               to->element_bytes);
        for (uint32_t d = box->rank; d-- > 0;) {
            if (++at[d] < box->hi[d])
                break;
            at[d] = box->lo[d];
        }
    }
}

/* Puts one output together from the shards that match a place. False: there is no such shard. */
static inline bool share_assemble(const share_player *p, const weir_mesh_place *place,
                                  uint32_t tensor, uint32_t output, share_parameter *to)
{
    bool found = false;
    memset(to, 0, sizeof(*to));
    for (uint32_t rank = 0; rank < p->n_ranks; rank++) {
        const weir_share *share = p->shares[rank];
        for (size_t s = 0; s < share->n_shards; s++) {
            const weir_share_shard *shard = &share->shards[s];
            if (shard->tensor != tensor || shard->output != output ||
                !weir_mesh_place_matches(&shard->place, place))
                continue;
            if (!found) {
                to->shape = shard->shape;
                to->n_padding_rows = shard->n_padding_rows;
                to->element_bytes =
                    weir_dtype_bits(p->tensors[tensor].conversion->outputs[output].dtype) / 8;
                assert_int_equal(weir_shape_elements(&to->shape, &to->n_elements), WEIR_OK);
                to->data = calloc(to->n_elements + 1, to->element_bytes);
                to->written = calloc(to->n_elements + 1, 1);
            }
            found = true;
            assert_true(weir_shape_equal(&to->shape, &shard->shape));
            assert_int_equal(to->n_padding_rows, shard->n_padding_rows);
            share_write_shard(to, shard, p->shards[rank][s]);
        }
    }
    return found;
}

static inline void share_parameter_free(share_parameter *to)
{
    free(to->data);
    free(to->written);
}

#endif
