/* SPDX-License-Identifier: Apache-2.0 */
/* fp8_body.h - the order in which the x86 kernels of both FP8 conversions walk a tile.
 *
 * Included after the header of an instruction set, which defines INLINE, peak_lanes, fp8_coder,
 * digest_lanes and the functions that a kernel file collects in an fp8_ops. Everything is inlined
 * into one function per conversion and source dtype.
 *
 * Finding the scale reads the source, encoding reads it again and writes. The two are woven: while
 * one piece is encoded from cache, row by row, the next is read from memory for its scale, so that
 * memory is read and written all the time and nothing is fetched twice.
 */
#ifndef WEIR_CONVERT_X86_FP8_BODY_H
#define WEIR_CONVERT_X86_FP8_BODY_H

#include "convert/kernels.h"

typedef struct fp8_ops {
    size_t element_bytes;
    void (*amax)(peak_lanes *peak, const void *source, size_t n);
    uint32_t (*amax_bits)(const peak_lanes *peak); /* as fp32; Inf and NaN stay above all others */
    void (*prepare)(fp8_coder *coder, uint32_t amax_bits);
    void (*encode)(const fp8_coder *coder, const void *source, size_t n, uint8_t *out, bool stream,
                   digest_lanes *digest, uint64_t word);
} fp8_ops;

INLINE const void *element(const fp8_ops *ops, const void *row, size_t column)
{
    return (const char *)row + column * ops->element_bytes;
}

INLINE size_t at_most(size_t n, size_t limit)
{
    return n < limit ? n : limit;
}

/* Whether every row of output 0 begins with a cache line, to be written around the cache. */
INLINE bool can_stream(const weir_tile *tile)
{
    size_t pitch_bytes = tile->n_rows > 1 ? tile->out[0].pitch_bytes : 0;
    return (((uintptr_t)tile->out[0].data | pitch_bytes) & 63) == 0;
}

/* Asks for elements to be brought into the first or only into the second cache. */
INLINE void prefetch(const fp8_ops *ops, const void *row, size_t column, size_t n, bool first)
{
    const char *from = element(ops, row, column);
    for (size_t i = 0; i < n * ops->element_bytes; i += 64) {
        if (first)
            _mm_prefetch(from + i, _MM_HINT_T0);
        else
            _mm_prefetch(from + i, _MM_HINT_T1);
    }
}

/* ---- one scale per 128 x 128 block -----------------------------------------------------------*/

#define BLOCK 128u
#define BAND_BLOCKS 8u
#define BAND (BAND_BLOCKS * BLOCK)
/* Rows of a band are too short for the processor to foresee the next: it is asked for this early.
 */
#define ROWS_AHEAD 4u

/* A run of blocks side by side: what is read for its scales while the one before is encoded. */
typedef struct fp8_band {
    size_t row, n_rows, column, n_cols;
    peak_lanes peaks[BAND_BLOCKS];
    fp8_coder coders[BAND_BLOCKS];
} fp8_band;

INLINE void band_start(fp8_band *band, const weir_tile *tile, size_t row, size_t column)
{
    band->row = row;
    band->n_rows = row < tile->n_rows ? at_most(tile->n_rows - row, BLOCK) : 0;
    band->column = column;
    band->n_cols = at_most(tile->n_cols - column, BAND);
    memset(band->peaks, 0, sizeof(band->peaks));
}

INLINE void band_amax_row(fp8_band *band, const weir_tile *tile, const fp8_ops *ops, size_t r)
{
    const void *row = tile->rows[band->row + r];
    if (r + ROWS_AHEAD < band->n_rows)
        prefetch(ops, tile->rows[band->row + r + ROWS_AHEAD], band->column, band->n_cols, false);
    size_t c = 0, k = 0;
    for (; c + BLOCK <= band->n_cols; c += BLOCK, k++)
        ops->amax(&band->peaks[k], element(ops, row, band->column + c), BLOCK);
    if (c < band->n_cols)
        ops->amax(&band->peaks[k], element(ops, row, band->column + c), band->n_cols - c);
}

/* False when an element is not finite. */
INLINE bool band_prepare(fp8_band *band, const weir_tile *tile, const fp8_ops *ops)
{
    float *scales =
        (float *)(void *)((char *)tile->out[1].data + band->row / BLOCK * tile->out[1].pitch_bytes);
    for (size_t c = 0, k = 0; c < band->n_cols; c += BLOCK, k++) {
        uint32_t bits = ops->amax_bits(&band->peaks[k]);
        if (bits >= WEIR_F32_INF_BITS)
            return false;
        ops->prepare(&band->coders[k], bits);
        scales[(band->column + c) / BLOCK] = band->coders[k].scale;
    }
    return true;
}

INLINE void band_encode_row(const fp8_band *band, const weir_tile *tile, const fp8_ops *ops,
                            size_t r, bool stream, digest_lanes *digest)
{
    const void *row = tile->rows[band->row + r];
    uint8_t *out = (uint8_t *)tile->out[0].data + (band->row + r) * tile->out[0].pitch_bytes;
    uint64_t word = tile->digest_word + (band->row + r) * tile->digest_words_per_row;
    digest_lanes sums = *digest; /* a copy, because `out` may alias all else */
    size_t c = band->column, k = 0, end = band->column + band->n_cols;
    for (; c + BLOCK <= end; c += BLOCK, k++)
        ops->encode(&band->coders[k], element(ops, row, c), BLOCK, out + c, stream, &sums,
                    word + c / 8);
    if (c < end)
        ops->encode(&band->coders[k], element(ops, row, c), end - c, out + c, stream, &sums,
                    word + c / 8);
    *digest = sums;
}

/* False when an element is not finite; the outputs are then half-written. */
INLINE bool block_tile_finite(const weir_tile *tile, const fp8_ops *ops, digest_lanes *digest)
{
    fp8_band bands[2], *band = &bands[0], *next = &bands[1];
    const bool stream = can_stream(tile);
    band_start(band, tile, 0, 0);
    for (size_t r = 0; r < band->n_rows; r++)
        band_amax_row(band, tile, ops, r);
    while (band->n_rows > 0) {
        if (!band_prepare(band, tile, ops))
            return false;
        bool last = band->column + band->n_cols == tile->n_cols;
        band_start(next, tile, last ? band->row + band->n_rows : band->row,
                   last ? 0 : band->column + band->n_cols);
        for (size_t r = 0; r < band->n_rows; r++) {
            if (r < next->n_rows)
                band_amax_row(next, tile, ops, r);
            else if (next->n_rows == 0 && r < tile->n_next_rows)
                prefetch(ops, tile->next_rows[r], 0, at_most(tile->n_cols, BAND), false);
            band_encode_row(band, tile, ops, r, stream, digest);
        }
        fp8_band *done = band;
        band = next;
        next = done;
    }
    return true;
}

INLINE weir_status block_tile(const weir_tile *tile, const fp8_ops *ops)
{
    digest_lanes digest;
    memset(&digest, 0, sizeof(digest));
    bool finite = tile->n_cols == 0 || block_tile_finite(tile, ops, &digest);
    _mm_sfence(); /* streaming stores become visible before the tile is reported done */
    if (!finite)
        return weir_convert_nonfinite_tile(tile, weir_fp8_128x128_c, tile->n_cols);
    digest_finish(&digest, tile->digest);
    return WEIR_OK;
}

/* ---- one scale per row -----------------------------------------------------------------------*/

#define RUN 256u    /* elements of a row that are encoded before as many of the next are read */
#define AHEAD 1024u /* elements beyond those being read that are asked for */

/* Asks for the n elements that come AHEAD after (row, column), in this row or in one after it: for
 * those of them that lie in one row. */
INLINE void channel_prefetch(const weir_tile *tile, const fp8_ops *ops, size_t row, size_t column,
                             size_t n)
{
    column += AHEAD;
    if (column >= tile->n_cols) {
        column -= tile->n_cols;
        row++;
    }
    if (column >= tile->n_cols) { /* rows shorter than AHEAD */
        row += column / tile->n_cols;
        column %= tile->n_cols;
    }
    if (row < tile->n_rows)
        prefetch(ops, tile->rows[row], column, at_most(tile->n_cols - column, n), true);
    else if (row - tile->n_rows < tile->n_next_rows)
        prefetch(ops, tile->next_rows[row - tile->n_rows], column,
                 at_most(tile->n_cols - column, n), true);
}

INLINE bool channel_row(const weir_tile *tile, const fp8_ops *ops, size_t r, peak_lanes *peak,
                        bool stream, digest_lanes *digest)
{
    uint32_t bits = ops->amax_bits(peak);
    if (bits >= WEIR_F32_INF_BITS)
        return false;
    fp8_coder coder;
    ops->prepare(&coder, bits);
    *(float *)(void *)((char *)tile->out[1].data + r * tile->out[1].pitch_bytes) = coder.scale;
    const void *row = tile->rows[r];
    const void *next = r + 1 < tile->n_rows ? tile->rows[r + 1] : NULL;
    uint8_t *out = (uint8_t *)tile->out[0].data + r * tile->out[0].pitch_bytes;
    uint64_t word = tile->digest_word + r * tile->digest_words_per_row;
    memset(peak, 0, sizeof(*peak));
    digest_lanes sums = *digest; /* a copy, because `out` may alias all else */
    for (size_t c = 0; c < tile->n_cols; c += RUN) {
        size_t n = at_most(tile->n_cols - c, RUN);
        channel_prefetch(tile, ops, r + 1, c, n);
        if (next != NULL)
            ops->amax(peak, element(ops, next, c), n);
        ops->encode(&coder, element(ops, row, c), n, out + c, stream, &sums, word + c / 8);
    }
    *digest = sums;
    return true;
}

INLINE weir_status channel_tile(const weir_tile *tile, const fp8_ops *ops)
{
    digest_lanes digest;
    peak_lanes peak;
    memset(&digest, 0, sizeof(digest));
    memset(&peak, 0, sizeof(peak));
    const bool stream = can_stream(tile);
    bool finite = true;
    if (tile->n_rows > 0)
        ops->amax(&peak, tile->rows[0], tile->n_cols);
    for (size_t r = 0; finite && r < tile->n_rows; r++)
        finite = channel_row(tile, ops, r, &peak, stream, &digest);
    _mm_sfence(); /* streaming stores become visible before the tile is reported done */
    if (!finite)
        return weir_convert_nonfinite_tile(tile, weir_fp8_channel_c, tile->n_cols);
    digest_finish(&digest, tile->digest);
    return WEIR_OK;
}

#endif
