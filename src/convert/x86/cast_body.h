/* SPDX-License-Identifier: Apache-2.0 */
/* cast_body.h - the walk of the x86 cast kernels over a tile: row by row, in one pass.
 *
 * Included after the vector header of an instruction set.
 */
#ifndef WEIR_CONVERT_X86_CAST_BODY_H
#define WEIR_CONVERT_X86_CAST_BODY_H

#include <string.h>

#include "convert/kernels.h"

typedef struct cast_ops {
    size_t out_bytes; /* of one element */
    uint32_t limit;   /* the least magnitude, in source bits, that does not stay finite */
    uint32_t (*top)(const peak_lanes *peak);
    void (*row)(void *out, const void *in, size_t n, bool stream, peak_lanes *peak,
                digest_lanes *digest, uint64_t word);
} cast_ops;

INLINE weir_status cast_tile(const weir_tile *tile, const cast_ops *ops, weir_convert_fn reference)
{
    digest_lanes digest;
    peak_lanes peak;
    memset(&digest, 0, sizeof(digest));
    memset(&peak, 0, sizeof(peak));
    size_t pitch_bytes = tile->n_rows > 1 ? tile->out[0].pitch_bytes : 0;
    bool stream = (((uintptr_t)tile->out[0].data | pitch_bytes) & 63) == 0;
    for (size_t r = 0; r < tile->n_rows; r++)
        ops->row((char *)tile->out[0].data + r * tile->out[0].pitch_bytes, tile->rows[r],
                 tile->n_cols, stream, &peak, &digest,
                 tile->digest_word + r * tile->digest_words_per_row);
    _mm_sfence(); /* streaming stores become visible before the tile is reported done */
    if (ops->top(&peak) >= ops->limit)
        return weir_convert_nonfinite_tile(tile, reference, tile->n_cols * ops->out_bytes);
    digest_finish(&digest, tile->digest);
    return WEIR_OK;
}

#define BF16_LIMIT 0x7F80u
#define F16_LIMIT 0x7C00u
#define F32_LIMIT 0x7F800000u
#define F32_AS_BF16_LIMIT 0x7F7F8000u /* rounds to Inf */

#endif
