/* SPDX-License-Identifier: Apache-2.0 */
/* digest.c - digests of bytes that are already there.
 *
 * The portable loop is the specification. The AVX-512 and AVX2 loops keep eight (four) keys in a
 * vector and add eight (four) steps per turn.
 */
#include "base/digest.h"

#include <stdatomic.h>
#include <string.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "base/cpu.h"
#include "base/pool.h"

typedef size_t (*row_fn)(weir_digest *digest, const unsigned char *row, size_t n_words,
                         uint64_t key);

/* Adds whole words of one row; returns how many it did. */
static size_t row_c(weir_digest *digest, const unsigned char *row, size_t n_words, uint64_t key)
{
    for (size_t i = 0; i < n_words; i++, key += WEIR_DIGEST_STEP) {
        uint64_t word;
        memcpy(&word, row + 8 * i, 8);
        weir_digest_word(digest, word, key);
    }
    return n_words;
}

#if defined(__x86_64__)
__attribute__((target("avx2"))) static size_t
row_avx2(weir_digest *digest, const unsigned char *row, size_t n_words, uint64_t key)
{
    size_t n = n_words & ~(size_t)3;
    __m256i keys = _mm256_set_epi64x((long long)(key + 3 * WEIR_DIGEST_STEP),
                                     (long long)(key + 2 * WEIR_DIGEST_STEP),
                                     (long long)(key + WEIR_DIGEST_STEP), (long long)key);
    const __m256i step = _mm256_set1_epi64x((long long)(4 * WEIR_DIGEST_STEP));
    __m256i product = _mm256_setzero_si256(), sum = product;
    for (size_t i = 0; i < n; i += 4) {
        __m256i words = _mm256_loadu_si256((const __m256i *)(const void *)(row + 8 * i));
        __m256i keyed = _mm256_add_epi32(words, keys);
        product = _mm256_add_epi64(product, _mm256_mul_epu32(keyed, _mm256_srli_epi64(keyed, 32)));
        sum = _mm256_add_epi64(sum, words);
        keys = _mm256_add_epi64(keys, step);
    }
    uint64_t lanes[8];
    _mm256_storeu_si256((__m256i *)(void *)lanes, product);
    _mm256_storeu_si256((__m256i *)(void *)(lanes + 4), sum);
    for (int i = 0; i < 4; i++) {
        digest->product += lanes[i];
        digest->sum += lanes[4 + i];
    }
    return n;
}

__attribute__((target("avx512f"))) static size_t
row_avx512(weir_digest *digest, const unsigned char *row, size_t n_words, uint64_t key)
{
    size_t n = n_words & ~(size_t)7;
    uint64_t first[8];
    for (int i = 0; i < 8; i++)
        first[i] = key + (uint64_t)i * WEIR_DIGEST_STEP;
    __m512i keys = _mm512_loadu_si512(first);
    const __m512i step = _mm512_set1_epi64((long long)(8 * WEIR_DIGEST_STEP));
    __m512i product = _mm512_setzero_si512(), sum = product;
    for (size_t i = 0; i < n; i += 8) {
        __m512i words = _mm512_loadu_si512(row + 8 * i);
        __m512i keyed = _mm512_add_epi32(words, keys);
        product = _mm512_add_epi64(product, _mm512_mul_epu32(keyed, _mm512_srli_epi64(keyed, 32)));
        sum = _mm512_add_epi64(sum, words);
        keys = _mm512_add_epi64(keys, step);
    }
    /* Not _mm512_reduce_add_epi64: it adds as signed numbers, and these sums wrap. */
    uint64_t lanes[16];
    _mm512_storeu_si512(lanes, product);
    _mm512_storeu_si512(lanes + 8, sum);
    for (int i = 0; i < 8; i++) {
        digest->product += lanes[i];
        digest->sum += lanes[8 + i];
    }
    return n;
}
#endif

static row_fn best_row(void)
{
#if defined(__x86_64__)
    if (weir_cpu_has(WEIR_CPU_AVX512))
        return row_avx512;
    if (weir_cpu_has(WEIR_CPU_AVX2))
        return row_avx2;
#endif
    return row_c;
}

void weir_digest_rectangle(weir_digest *digest, const void *data, size_t pitch_bytes, size_t n_rows,
                           size_t n_bytes, uint64_t word, uint64_t words_per_row)
{
    row_fn row_words = best_row();
    size_t n_words = n_bytes / 8, n_tail = n_bytes % 8;
    for (size_t r = 0; r < n_rows; r++, word += words_per_row) {
        const unsigned char *row = (const unsigned char *)data + r * pitch_bytes;
        size_t done = row_words(digest, row, n_words, weir_digest_key(word));
        if (done < n_words)
            row_c(digest, row + 8 * done, n_words - done, weir_digest_key(word + done));
        if (n_tail != 0) {
            uint64_t last = 0;
            memcpy(&last, row + 8 * n_words, n_tail);
            weir_digest_word(digest, last, weir_digest_key(word + n_words));
        }
    }
}

void weir_digest_add(weir_digest *digest, const void *data, size_t n_rows, size_t row_bytes)
{
    weir_digest_rectangle(digest, data, row_bytes, n_rows, row_bytes, 0,
                          weir_digest_words_per_row(row_bytes));
}

void weir_digest_rows_of(weir_dtype dtype, const weir_shape *shape, uint64_t *out_n_rows,
                         uint64_t *out_row_bytes)
{
    uint64_t n_rows = 1, last = shape->rank > 0 ? shape->dim[shape->rank - 1] : 1;
    for (uint32_t d = 0; d + 1 < shape->rank; d++)
        n_rows *= shape->dim[d];
    uint64_t row_bits = last * weir_dtype_bits(dtype);
    bool rows_share_bytes = row_bits % 8 != 0;
    *out_n_rows = rows_share_bytes ? 1 : n_rows;
    *out_row_bytes = rows_share_bytes ? (n_rows * row_bits + 7) / 8 : row_bits / 8;
}

#define TASK_BYTES ((uint64_t)1 << 20)

/* One pass over a tensor cut into equal runs: whole rows, or words of a single long row. */
typedef struct digest_loop {
    const unsigned char *data;
    uint64_t n_rows, row_bytes, rows_per_task, bytes_per_task, first_word;
    atomic_uint_fast64_t product, sum; /* one add per task: no contention to speak of */
} digest_loop;

static weir_status digest_task(void *context, size_t task, unsigned thread)
{
    digest_loop *loop = context;
    uint64_t words = weir_digest_words_per_row(loop->row_bytes);
    weir_digest part = { 0, 0 };
    if (loop->rows_per_task != 0) {
        uint64_t row = task * loop->rows_per_task;
        uint64_t n = loop->n_rows - row;
        if (n > loop->rows_per_task)
            n = loop->rows_per_task;
        weir_digest_rectangle(&part, loop->data + row * loop->row_bytes, loop->row_bytes, n,
                              loop->row_bytes, loop->first_word + row * words, words);
    } else {
        uint64_t per_row = (loop->row_bytes + loop->bytes_per_task - 1) / loop->bytes_per_task;
        uint64_t row = task / per_row, first = (task % per_row) * loop->bytes_per_task;
        uint64_t n = loop->row_bytes - first;
        if (n > loop->bytes_per_task)
            n = loop->bytes_per_task;
        weir_digest_rectangle(&part, loop->data + row * loop->row_bytes + first, 0, 1, n,
                              loop->first_word + row * words + first / 8, words);
    }
    (void)thread;
    atomic_fetch_add_explicit(&loop->product, part.product, memory_order_relaxed);
    atomic_fetch_add_explicit(&loop->sum, part.sum, memory_order_relaxed);
    return WEIR_OK;
}

weir_status weir_digest_part(weir_pool *pool, const weir_tensor *part, uint64_t first_word,
                             weir_digest *out)
{
    digest_loop loop = { .data = part->data, .first_word = first_word };
    weir_digest_rows_of(part->dtype, &part->shape, &loop.n_rows, &loop.row_bytes);
    uint64_t n_tasks = 0;
    if (loop.row_bytes > TASK_BYTES) {
        loop.bytes_per_task = TASK_BYTES;
        n_tasks = loop.n_rows * ((loop.row_bytes + TASK_BYTES - 1) / TASK_BYTES);
    } else if (loop.row_bytes > 0 && loop.n_rows > 0) {
        loop.rows_per_task = TASK_BYTES / loop.row_bytes;
        n_tasks = (loop.n_rows + loop.rows_per_task - 1) / loop.rows_per_task;
    }
    weir_status status = weir_pool_run(n_tasks > 1 ? pool : NULL, n_tasks, digest_task, &loop);
    if (status != WEIR_OK)
        return status;
    *out = (weir_digest){ atomic_load(&loop.product), atomic_load(&loop.sum) };
    return WEIR_OK;
}

weir_status weir_digest_tensor(weir_pool *pool, const weir_tensor *tensor, weir_digest *out)
{
    return weir_digest_part(pool, tensor, 0, out);
}
