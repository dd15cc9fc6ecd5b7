/* SPDX-License-Identifier: Apache-2.0 */
/* cast_body.h - the walk of the x86 cast kernels over a tile: row by row, in one pass.
 *
 * Included after the vector header of an instruction set and after six functions that make one
 * vector of output: bf16_to_bf16_vector() and so on. Defines the two kernels' tiles.
 */
#ifndef WEIR_CONVERT_X86_CAST_BODY_H
#define WEIR_CONVERT_X86_CAST_BODY_H

#include <string.h>

#include "convert/kernels.h"

#define BYTES_AHEAD 2048u /* of the source that are asked for; beyond its end that does no harm */

/* What is asked for while a row is read: what comes BYTES_AHEAD later, where the rows of the tile
 * and of the next one are read one after the other, however far apart they lie. With byte `x` of
 * the row that is first + x, or then + x from `turn` on. */
typedef struct cast_ahead {
    uintptr_t first, then;
    size_t turn;
} cast_ahead;

/* Reads the elements of one vector of output at `in`; keeps their largest magnitude. */
typedef vector_bytes (*vector_fn)(const void *in, peak_lanes *peak);

typedef struct cast_ops {
    vector_fn vector;
    size_t in_bytes, out_bytes; /* of one element */
    uint32_t limit;             /* the least magnitude, in source bits, that does not stay finite */
    uint32_t (*top)(const peak_lanes *peak);
} cast_ops;

/* Row `r` of those that are known, or, as nothing is, what lies behind the present one. */
INLINE uintptr_t known_row(const weir_tile *tile, size_t r, uintptr_t otherwise)
{
    if (r < tile->n_rows)
        return (uintptr_t)tile->rows[r];
    return r - tile->n_rows < tile->n_next_rows ? (uintptr_t)tile->next_rows[r - tile->n_rows]
                                                : otherwise;
}

INLINE cast_ahead ahead_of(const weir_tile *tile, size_t r, size_t row_bytes, size_t rows_ahead)
{
    size_t rest = BYTES_AHEAD - rows_ahead * row_bytes;
    uintptr_t behind = (uintptr_t)tile->rows[r] + rows_ahead * row_bytes;
    return (cast_ahead){ .first = known_row(tile, r + rows_ahead, behind) + rest,
                         .then = known_row(tile, r + rows_ahead + 1, behind + row_bytes) + rest -
                                 row_bytes,
                         .turn = row_bytes - rest };
}

INLINE void cast_row(const cast_ops *ops, void *out, const void *in, size_t n, bool stream,
                     const cast_ahead *ahead, peak_lanes *peak, digest_lanes *digest, uint64_t word)
{
    const cast_ahead far = *ahead;
    const size_t n_bytes = n * ops->out_bytes;
    const char *from = in;
    /* Copies, because `out` may alias anything else as far as the compiler knows. */
    digest_lanes sums = *digest;
    peak_lanes top = *peak;
    vector_bytes keys = digest_keys(word);
    size_t i = 0;
    for (; i + VECTOR_BYTES <= n_bytes; i += VECTOR_BYTES, keys = digest_next(keys)) {
        size_t at = i / ops->out_bytes * ops->in_bytes;
        _mm_prefetch((const char *)((at < far.turn ? far.first : far.then) + at), _MM_HINT_T0);
        vector_bytes y = ops->vector(from + at, &top);
        store_vector((char *)out + i, y, stream);
        digest_add(&sums, y, keys);
    }
    if (i < n_bytes) { /* a vector of output takes at most two of source */
        char line[2 * VECTOR_BYTES] = { 0 };
        size_t done = i / ops->out_bytes;
        memcpy(line, from + done * ops->in_bytes, (n - done) * ops->in_bytes);
        store_end((char *)out + i, ops->vector(line, &top), n_bytes - i, &sums, word + i / 8);
    }
    *digest = sums;
    *peak = top;
}

INLINE weir_status cast_tile(const weir_tile *tile, const cast_ops *ops, weir_convert_fn reference)
{
    digest_lanes digest;
    peak_lanes peak;
    memset(&digest, 0, sizeof(digest));
    memset(&peak, 0, sizeof(peak));
    size_t pitch_bytes = tile->n_rows > 1 ? tile->out[0].pitch_bytes : 0;
    bool stream = (((uintptr_t)tile->out[0].data | pitch_bytes) & 63) == 0;
    const size_t row_bytes = tile->n_cols * ops->in_bytes;
    const size_t rows_ahead = row_bytes != 0 ? BYTES_AHEAD / row_bytes : 0;
    for (size_t r = 0; r < tile->n_rows; r++) {
        const cast_ahead ahead = ahead_of(tile, r, row_bytes, rows_ahead);
        cast_row(ops, (char *)tile->out[0].data + r * tile->out[0].pitch_bytes, tile->rows[r],
                 tile->n_cols, stream, &ahead, &peak, &digest,
                 tile->digest_word + r * tile->digest_words_per_row);
    }
    _mm_sfence(); /* streaming stores become visible before the tile is reported done */
    if (ops->top(&peak) >= ops->limit)
        return weir_convert_nonfinite_tile(tile, reference, tile->n_cols * ops->out_bytes);
    digest_finish(&digest, tile->digest);
    return WEIR_OK;
}

INLINE weir_status bf16_cast_tile(const weir_tile *tile)
{
    static const cast_ops from_bf16 = { bf16_to_bf16_vector, 2, 2, 0x7F80, top_16bit };
    static const cast_ops from_f16 = { f16_to_bf16_vector, 2, 2, 0x7C00, top_16bit };
    /* From this magnitude on an fp32 rounds to Inf. */
    static const cast_ops from_f32 = { f32_to_bf16_vector, 4, 2, 0x7F7F8000, top_32bit };
    if (tile->dtype == WEIR_BF16)
        return cast_tile(tile, &from_bf16, weir_bf16_cast_c);
    if (tile->dtype == WEIR_F16)
        return cast_tile(tile, &from_f16, weir_bf16_cast_c);
    return cast_tile(tile, &from_f32, weir_bf16_cast_c);
}

INLINE weir_status fp32_cast_tile(const weir_tile *tile)
{
    /* The vectors take the magnitudes of what they have widened. */
    static const cast_ops from_bf16 = { bf16_to_f32_vector, 2, 4, 0x7F800000, top_32bit };
    static const cast_ops from_f16 = { f16_to_f32_vector, 2, 4, 0x7F800000, top_32bit };
    static const cast_ops from_f32 = { f32_to_f32_vector, 4, 4, 0x7F800000, top_32bit };
    if (tile->dtype == WEIR_BF16)
        return cast_tile(tile, &from_bf16, weir_fp32_cast_c);
    if (tile->dtype == WEIR_F16)
        return cast_tile(tile, &from_f16, weir_fp32_cast_c);
    return cast_tile(tile, &from_f32, weir_fp32_cast_c);
}

#endif
