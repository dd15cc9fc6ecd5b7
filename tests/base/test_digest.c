/* SPDX-License-Identifier: Apache-2.0 */
/* The digest against its definition, by every rung of the ladder, and what it detects. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/cpu.h"
#include "base/digest.h"
#include "base/pool.h"

/* The definition in weir/tensor.h, word by word, written without a look at the library's. */
static weir_digest defined(const unsigned char *data, size_t n_rows, size_t row_bytes)
{
    weir_digest digest = { 0, 0 };
    size_t words_per_row = (row_bytes + 7) / 8;
    for (size_t r = 0; r < n_rows; r++) {
        for (size_t c = 0; c < words_per_row; c++) {
            uint64_t w = 0, i = (uint64_t)r * words_per_row + c;
            for (size_t b = 0; b < 8 && 8 * c + b < row_bytes; b++)
                w |= (uint64_t)data[r * row_bytes + 8 * c + b] << (8 * b);
            uint64_t k = 0xD6E8FEB86659FD93ull + i * 0x9E3779B97F4A7C15ull;
            uint32_t low = (uint32_t)w + (uint32_t)k;
            uint32_t high = (uint32_t)(w >> 32) + (uint32_t)(k >> 32);
            digest.product += (uint64_t)low * high;
            digest.sum += w;
        }
    }
    return digest;
}

static unsigned char *random_bytes(size_t n)
{
    unsigned char *bytes = malloc(n ? n : 1);
    uint64_t x = 88172645463325252ull + n;
    for (size_t i = 0; i < n; i++) {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        bytes[i] = (unsigned char)(x >> 24);
    }
    return bytes;
}

static weir_digest added(const void *data, size_t n_rows, size_t row_bytes)
{
    weir_digest digest = { 0, 0 };
    weir_digest_add(&digest, data, n_rows, row_bytes);
    return digest;
}

static bool agrees_on_ragged_sizes(void)
{
    for (size_t row_bytes = 0; row_bytes < 200; row_bytes++) {
        for (size_t n_rows = 0; n_rows < 4; n_rows++) {
            unsigned char *bytes = random_bytes(n_rows * row_bytes); /* ends where they end */
            weir_digest got = added(bytes, n_rows, row_bytes);
            weir_digest expected = defined(bytes, n_rows, row_bytes);
            free(bytes);
            if (!weir_digest_equal(&got, &expected))
                return false;
        }
    }
    return true;
}

/* The ladder is climbed once per process: each rung gets a process of its own. */
static void every_rung_agrees_with_the_definition(void **state)
{
    (void)state;
    static const char *const disabled[] = { "all", "avx512", "" };
    for (size_t i = 0; i < 3; i++) {
        pid_t child = fork();
        assert_true(child >= 0);
        if (child == 0) {
            setenv("WEIR_CPU_DISABLE", disabled[i], 1);
            _exit(agrees_on_ragged_sizes() ? 0 : 1);
        }
        int status = 0;
        assert_int_equal(waitpid(child, &status, 0), child);
        assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    }
}

static void a_known_digest_is_pinned(void **state)
{
    (void)state;
    /* Digests travel between builds: worked out by hand from the definition. */
    const unsigned char zeros[8] = { 0 }, one[1] = { 1 };
    weir_digest digest = added(zeros, 1, 8);
    assert_true(digest.product == 0x6659FD93ull * 0xD6E8FEB8ull);
    assert_true(digest.sum == 0);
    digest = added(one, 1, 1);
    assert_true(digest.product == 0x6659FD94ull * 0xD6E8FEB8ull);
    assert_true(digest.sum == 1);
}

static void rectangles_add_up_to_the_whole(void **state)
{
    (void)state;
    enum { ROWS = 37, ROW_BYTES = 211, CUT = 80 }; /* a cut between words, a ragged end */
    unsigned char *bytes = random_bytes(ROWS * ROW_BYTES);
    weir_digest whole = defined(bytes, ROWS, ROW_BYTES), parts[3] = { { 0, 0 } }, sum = { 0, 0 };
    uint64_t words = weir_digest_words_per_row(ROW_BYTES);
    weir_digest_rectangle(&parts[0], bytes + CUT, ROW_BYTES, 20, ROW_BYTES - CUT, CUT / 8, words);
    weir_digest_rectangle(&parts[1], bytes, ROW_BYTES, 20, CUT, 0, words);
    weir_digest_rectangle(&parts[2], bytes + 20 * ROW_BYTES, ROW_BYTES, ROWS - 20, ROW_BYTES,
                          20 * words, words);
    for (int i = 2; i >= 0; i--)
        weir_digest_merge(&sum, &parts[i]);
    assert_true(weir_digest_equal(&sum, &whole));
    free(bytes);
}

static void changed(unsigned char *bytes, size_t n_rows, size_t row_bytes, weir_digest before)
{
    weir_digest after = added(bytes, n_rows, row_bytes);
    assert_false(weir_digest_equal(&before, &after));
}

static void damage_of_every_kind_shows(void **state)
{
    (void)state;
    enum { ROWS = 16, ROW_BYTES = 256, N = ROWS * ROW_BYTES };
    unsigned char *bytes = random_bytes(N), *copy = malloc(N), row[ROW_BYTES];
    weir_digest before = added(bytes, ROWS, ROW_BYTES);
    memcpy(copy, bytes, N);
    for (size_t bit = 0; bit < 8 * N; bit += 5) { /* one flipped bit */
        bytes[bit / 8] ^= (unsigned char)(1u << (bit % 8));
        changed(bytes, ROWS, ROW_BYTES, before);
        bytes[bit / 8] ^= (unsigned char)(1u << (bit % 8));
    }
    memcpy(row, bytes, ROW_BYTES); /* two rows swapped */
    memcpy(bytes, bytes + 3 * ROW_BYTES, ROW_BYTES);
    memcpy(bytes + 3 * ROW_BYTES, row, ROW_BYTES);
    changed(bytes, ROWS, ROW_BYTES, before);
    memcpy(bytes, copy, N);
    memcpy(row, bytes + 8, 8); /* two neighbouring words swapped */
    memcpy(bytes + 8, bytes + 16, 8);
    memcpy(bytes + 16, row, 8);
    changed(bytes, ROWS, ROW_BYTES, before);
    memcpy(bytes, copy, N);
    memset(bytes + 512, 0, 64); /* a stretch that was never written */
    changed(bytes, ROWS, ROW_BYTES, before);
    memcpy(bytes + 8, copy, N - 8); /* everything one word late */
    memcpy(bytes, copy + N - 8, 8);
    changed(bytes, ROWS, ROW_BYTES, before);
    memcpy(bytes, copy, N);
    memcpy(bytes + 2 * ROW_BYTES, copy + ROW_BYTES, ROW_BYTES); /* a row sent twice */
    changed(bytes, ROWS, ROW_BYTES, before);
    free(copy);
    free(bytes);
}

static void zeros_and_their_number_count(void **state)
{
    (void)state;
    unsigned char *zeros = calloc(64, 8);
    weir_digest none = { 0, 0 }, some = added(zeros, 64, 8), fewer = added(zeros, 63, 8);
    assert_false(weir_digest_equal(&none, &some));
    assert_false(weir_digest_equal(&fewer, &some));
    free(zeros);
}

static void threads_give_the_same(void **state)
{
    (void)state;
    static const weir_shape shapes[] = {
        { 2, { 3000, 1021 } },   { 1, { 5000003 } }, { 2, { 3, 1500001 } },
        { 3, { 7, 300, 1024 } }, { 0, { 0 } },       { 2, { 0, 7 } },
        { 2, { 7, 0 } },         { 1, { 1 << 20 } }, { 1, { (1 << 20) + 1 } },
    };
    weir_pool *pools[3] = { NULL };
    assert_int_equal(weir_pool_open(3, &pools[1]), WEIR_OK);
    assert_int_equal(weir_pool_open(70, &pools[2]), WEIR_OK);
    for (size_t i = 0; i < sizeof(shapes) / sizeof(shapes[0]); i++) {
        uint64_t n_bytes, n_rows, row_bytes;
        assert_int_equal(weir_tensor_bytes(WEIR_U8, &shapes[i], &n_bytes), WEIR_OK);
        unsigned char *bytes = random_bytes(n_bytes);
        const weir_tensor tensor = { "t", WEIR_U8, shapes[i], bytes };
        weir_digest_rows_of(WEIR_U8, &shapes[i], &n_rows, &row_bytes);
        assert_int_equal(n_rows * row_bytes, n_bytes);
        weir_digest expected = defined(bytes, n_rows, row_bytes);
        for (int p = 0; p < 3; p++) {
            weir_digest got = { 1, 1 };
            assert_int_equal(weir_digest_tensor(pools[p], &tensor, &got), WEIR_OK);
            assert_true(weir_digest_equal(&got, &expected));
        }
        free(bytes);
    }
    weir_pool_close(pools[1]);
    weir_pool_close(pools[2]);
}

static void rows_that_share_bytes_are_one_row(void **state)
{
    (void)state;
    const weir_shape odd = { 2, { 2, 3 } }, even = { 2, { 3, 2 } };
    uint64_t n_rows, row_bytes;
    weir_digest_rows_of(WEIR_F4, &odd, &n_rows, &row_bytes);
    assert_int_equal(n_rows, 1);
    assert_int_equal(row_bytes, 3);
    weir_digest_rows_of(WEIR_F4, &even, &n_rows, &row_bytes);
    assert_int_equal(n_rows, 3);
    assert_int_equal(row_bytes, 1);
    unsigned char *bytes = random_bytes(3); /* a fourth would be out of bounds */
    const weir_tensor tensor = { "t", WEIR_F4, odd, bytes };
    weir_digest got, expected = defined(bytes, 1, 3);
    assert_int_equal(weir_digest_tensor(NULL, &tensor, &got), WEIR_OK);
    assert_true(weir_digest_equal(&got, &expected));
    free(bytes);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_rung_agrees_with_the_definition), /* first: forks before a climb */
        cmocka_unit_test(a_known_digest_is_pinned),
        cmocka_unit_test(rectangles_add_up_to_the_whole),
        cmocka_unit_test(damage_of_every_kind_shows),
        cmocka_unit_test(zeros_and_their_number_count),
        cmocka_unit_test(threads_give_the_same),
        cmocka_unit_test(rows_that_share_bytes_are_one_row),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
