/* SPDX-License-Identifier: Apache-2.0 */
/* test_row_list.c - copies of rows are joined, and what they copy stays the same. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "refit/row_list.h"

#define N_BYTES 4096u
#define MAX_ROWS 512u

static unsigned char from[N_BYTES], to[N_BYTES], expected[N_BYTES];
static weir_work_rows rows[MAX_ROWS];
static weir_row_list list;

static int reset(void **state)
{
    (void)state;
    for (size_t i = 0; i < N_BYTES; i++)
        from[i] = (unsigned char)(i * 7 + i / 251);
    memset(to, 0, sizeof(to));
    memset(expected, 0, sizeof(expected));
    list = (weir_row_list){ .rows = rows };
    return 0;
}

static void copy(const weir_work_rows *one, unsigned char *into)
{
    for (uint64_t r = 0; r < one->n_rows; r++)
        memcpy(into + ((unsigned char *)one->to - to) + r * one->to_pitch,
               (const unsigned char *)one->from + r * one->from_pitch, one->row_bytes);
}

static void add(size_t at, size_t source, size_t row_bytes, size_t n_rows, size_t to_pitch,
                size_t from_pitch, uint32_t piece)
{
    const weir_work_rows one = { to + at, from + source, row_bytes, n_rows, to_pitch, from_pitch };
    copy(&one, expected);
    weir_row_list_add(&list, &one, piece);
}

static void add_one(size_t at, size_t source, size_t row_bytes)
{
    add(at, source, row_bytes, 1, 0, 0, 0);
}

static void expect(size_t n)
{
    assert_int_equal(list.n, n);
    for (size_t i = 0; i < list.n; i++)
        copy(&rows[i], to);
    assert_memory_equal(to, expected, sizeof(to));
}

static void neighbours_at_both_ends_become_one(void **state)
{
    (void)state;
    add_one(100, 0, 8);
    add_one(108, 8, 24);
    add_one(132, 32, 8);
    expect(1);
    assert_int_equal(rows[0].row_bytes, 40);
    assert_int_equal(rows[0].n_rows, 1);
}

static void halves_of_stacked_experts_become_one(void **state)
{
    (void)state;
    for (size_t e = 0; e < 60; e++) /* the other rank holds what lies between */
        add_one(e * 64, e * 32, 32);
    expect(1);
    assert_int_equal(rows[0].n_rows, 60);
    assert_int_equal(rows[0].to_pitch, 64);
    assert_int_equal(rows[0].from_pitch, 32);
}

static void weights_and_scales_take_turns(void **state)
{
    (void)state;
    for (size_t e = 0; e < 40; e++) {
        add(e * 64, e * 40, 32, 1, 0, 0, 5);
        add(3000 + e * 16, e * 40 + 32, 8, 1, 0, 0, 6);
    }
    expect(2);
}

static void rows_of_rows_go_on_at_their_own_distance(void **state)
{
    (void)state;
    add(0, 0, 16, 4, 32, 16, 0);
    add(128, 64, 16, 4, 32, 16, 0);
    add_one(256, 128, 16);
    expect(1);
    assert_int_equal(rows[0].n_rows, 9);
    add(288, 144, 16, 2, 48, 16, 0); /* another distance */
    expect(2);
}

static void nothing_reaches_into_another_piece_of_memory(void **state)
{
    (void)state;
    add(0, 0, 32, 1, 0, 0, 1);
    add(32, 32, 32, 1, 0, 0, 2);
    add(64, 64, 32, 1, 0, 0, 3);
    expect(3);
}

static void what_lies_before_or_within_is_not_joined(void **state)
{
    (void)state;
    add_one(512, 256, 32);
    add_one(256, 512, 32);  /* before it, where it is written */
    add_one(1024, 240, 32); /* behind what comes before, and before what it is read from */
    add_one(2048, 250, 32); /* read from within what the last one reads */
    expect(4);
}

static void random_pieces_copy_what_they_did(void **state)
{
    (void)state;
    srand(20261122);
    for (int round = 0; round < 300; round++) {
        size_t at = 0, source = 0, n = 0;
        reset(NULL);
        while (n < MAX_ROWS) {
            size_t row_bytes = 8u << (rand() % 2), n_rows = (size_t)(1 + rand() % 3);
            size_t gap = 8u * (size_t)(rand() % 3), back = 8u * (size_t)(rand() % 2);
            size_t to_pitch = row_bytes + gap, from_pitch = row_bytes + back;
            if (at + n_rows * to_pitch > N_BYTES || source + n_rows * from_pitch > N_BYTES)
                break;
            add(at, source, row_bytes, n_rows, to_pitch, from_pitch, (uint32_t)(rand() % 2));
            at += n_rows * to_pitch;
            source += n_rows * from_pitch;
            n++;
        }
        assert_true(list.n <= n);
        expect(list.n);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(neighbours_at_both_ends_become_one, reset),
        cmocka_unit_test_setup(halves_of_stacked_experts_become_one, reset),
        cmocka_unit_test_setup(weights_and_scales_take_turns, reset),
        cmocka_unit_test_setup(rows_of_rows_go_on_at_their_own_distance, reset),
        cmocka_unit_test_setup(nothing_reaches_into_another_piece_of_memory, reset),
        cmocka_unit_test_setup(what_lies_before_or_within_is_not_joined, reset),
        cmocka_unit_test_setup(random_pieces_copy_what_they_did, reset),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
