/* SPDX-License-Identifier: Apache-2.0 */
#include "convert/magnitude.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "convert/source_value.h"

#define MAX_ROWS 70u
#define MAX_COLS 300u
#define PITCH (MAX_COLS + 7u)

static uint32_t seed = 7;

static uint32_t next_random(uint32_t below)
{
    seed = seed * 1664525u + 1013904223u;
    return (seed >> 8) % below;
}

/* Any bits but those of NaN. */
static void fill(weir_dtype dtype, void *data, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        uint32_t bits = next_random(1u << 24) << 8 | next_random(256);
        if (dtype == WEIR_F32)
            ((uint32_t *)data)[i] = (bits & 0x7F800000u) == 0x7F800000u ? 0 : bits;
        else
            ((uint16_t *)data)[i] = (uint16_t)(bits >> 16 & 0xBBFFu); /* an exponent bit is clear */
    }
}

static void check_view(weir_dtype dtype, const void *matrix)
{
    uint32_t block_rows = 1 + next_random(40), block_cols = 1 + next_random(140);
    uint32_t row = next_random(block_rows), col = next_random(block_cols);
    uint32_t n_rows = 1 + next_random(MAX_ROWS), n_cols = 1 + next_random(MAX_COLS);
    uint32_t down = (row + n_rows - 1) / block_rows + 1;
    uint32_t across = (col + n_cols - 1) / block_cols + 1;
    float *found = calloc((size_t)down * across, sizeof(*found));
    float *expected = calloc((size_t)down * across, sizeof(*expected));
    assert_true(found != NULL && expected != NULL);
    found[0] = expected[0] = 1e-3F; /* what is there already counts */
    size_t element_bytes = weir_dtype_bits(dtype) / 8;
    for (uint32_t r = 0; r < n_rows; r++) {
        for (uint32_t c = 0; c < n_cols; c++) {
            float value = fabsf(weir_source_value(dtype, matrix, (size_t)r * PITCH + c));
            float *block = &expected[(row + r) / block_rows * across + (col + c) / block_cols];
            *block = value > *block ? value : *block;
        }
    }
    weir_magnitude_view view = { dtype,  matrix,     PITCH * element_bytes,
                                 n_rows, n_cols,     row,
                                 col,    block_rows, block_cols };
    weir_magnitude_raise(&view, across, found);
    assert_memory_equal(found, expected, (size_t)down * across * sizeof(*found));
    free(found);
    free(expected);
}

static void largest_of_every_block_is_found_wherever_the_grid_lies(void **state)
{
    const weir_dtype dtypes[] = { WEIR_BF16, WEIR_F16, WEIR_F32 };
    void *matrix = malloc((size_t)MAX_ROWS * PITCH * sizeof(float));
    (void)state;
    assert_non_null(matrix);
    for (size_t d = 0; d < 3; d++) {
        fill(dtypes[d], matrix, (size_t)MAX_ROWS * PITCH);
        for (int i = 0; i < 200; i++)
            check_view(dtypes[d], matrix);
    }
    free(matrix);
}

static void what_is_no_number_is_above_all(void **state)
{
    (void)state;
    const uint16_t row[4] = { 0x3F80, 0x7F80, 0xFFC1, 0x4000 }; /* 1, inf, -nan, 2 */
    float block[2] = { 0, 0 };
    weir_magnitude_view view = { WEIR_BF16, row, 8, 1, 4, 0, 0, 1, 2 };
    weir_magnitude_raise(&view, 2, block);
    assert_true(isinf(block[0]));
    assert_true(isnan(block[1]));
    assert_true(isnan(weir_magnitude_max(block[1], 3.0F)));
    assert_true(isnan(weir_magnitude_max(block[0], block[1])));
    assert_true(weir_magnitude_max(-4.0F, 3.0F) == 4.0F);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(largest_of_every_block_is_found_wherever_the_grid_lies),
        cmocka_unit_test(what_is_no_number_is_above_all),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
