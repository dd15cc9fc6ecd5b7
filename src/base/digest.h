/* SPDX-License-Identifier: Apache-2.0 */
/* digest.h - the pieces of weir_digest (weir/tensor.h) that kernels and SIMD code share.
 *
 * CUDA code includes this header too.
 */
#ifndef WEIR_BASE_DIGEST_H
#define WEIR_BASE_DIGEST_H

#include "weir/tensor.h"

#define WEIR_DIGEST_KEY 0xD6E8FEB86659FD93ull
#define WEIR_DIGEST_STEP 0x9E3779B97F4A7C15ull

static inline uint64_t weir_digest_words_per_row(uint64_t row_bytes)
{
    return (row_bytes + 7) / 8;
}

static inline uint64_t weir_digest_key(uint64_t word)
{
    return WEIR_DIGEST_KEY + word * WEIR_DIGEST_STEP;
}

/* Adds one little-endian word with its position's key. */
static inline void weir_digest_word(weir_digest *digest, uint64_t word, uint64_t key)
{
    uint32_t low = (uint32_t)word + (uint32_t)key;
    uint32_t high = (uint32_t)(word >> 32) + (uint32_t)(key >> 32);
    digest->product += (uint64_t)low * high;
    digest->sum += word;
}

static inline void weir_digest_merge(weir_digest *into, const weir_digest *part)
{
    into->product += part->product;
    into->sum += part->sum;
}

static inline bool weir_digest_equal(const weir_digest *a, const weir_digest *b)
{
    return a->product == b->product && a->sum == b->sum;
}

/* Adds a rectangle: n_rows rows of n_bytes each, pitch_bytes apart; `word` is the number of its
 * first word, words_per_row the step from row to row. A row's last partial word is zero-padded, so
 * n_bytes may be ragged only where the tensor's row ends. */
void weir_digest_rectangle(weir_digest *digest, const void *data, size_t pitch_bytes,
                           size_t n_rows, size_t n_bytes, uint64_t word, uint64_t words_per_row);

/* Rows of a tensor as the digest sees them: all dims but the last, and bytes of the last. One row
 * when rows would share bytes ([2, 3] of F4). The shape has passed weir_tensor_bytes(). */
void weir_digest_rows_of(weir_dtype dtype, const weir_shape *shape, uint64_t *out_n_rows,
                         uint64_t *out_row_bytes);

/* The digest of a whole tensor, on all threads of the pool (NULL: this one). */
struct weir_pool;
weir_status weir_digest_tensor(struct weir_pool *pool, const weir_tensor *tensor,
                               weir_digest *out);

/* The same of a part of a tensor, whose first word has the number first_word in the whole. */
weir_status weir_digest_part(struct weir_pool *pool, const weir_tensor *part, uint64_t first_word,
                             weir_digest *out);

#endif
