/* SPDX-License-Identifier: Apache-2.0 */
/* view_case.h - views of wider matrices beside contiguous copies of them. All around a view lies
 * what is not finite, so that whoever reads a neighbour as a weight is refused. */
#ifndef WEIR_TESTS_VIEW_CASE_H
#define WEIR_TESTS_VIEW_CASE_H

#include "convert/convert_case.h"

#define MAX_VIEWS 16

/* Sources as a trainer has them (wide) and as they would be without pitches (dense). */
typedef struct views {
    size_t n;
    weir_tensor wide[MAX_VIEWS], dense[MAX_VIEWS];
    uint64_t pitches[MAX_VIEWS];
    unsigned char *blocks[MAX_VIEWS]; /* which end where the last row of the view ends */
    size_t block_bytes[MAX_VIEWS];
} views;

/* How a view lies in its matrix: in bytes, `begin` from an aligned address. */
typedef struct view_placing {
    size_t begin, pitch; /* pitch 0: contiguous */
} view_placing;

/* Adds a view of random values. */
static inline void views_add(views *v, const char *name, weir_dtype dtype, size_t n_rows,
                             size_t n_cols, view_placing at, regime kind, uint64_t *seed)
{
    assert_true(v->n < MAX_VIEWS);
    size_t i = v->n++, row_bytes = n_cols * (weir_dtype_bits(dtype) / 8);
    size_t step = at.pitch != 0 ? at.pitch : row_bytes;
    size_t n_bytes = at.begin + (n_rows != 0 ? (n_rows - 1) * step + row_bytes : 0);
    unsigned char *dense = malloc(n_rows * row_bytes + 1), *block = malloc(n_bytes + 1);
    assert_true(dense != NULL && block != NULL);
    fill(dense, dtype, n_rows * n_cols, kind, seed);
    block = realloc(block, n_bytes != 0 ? n_bytes : 1);
    memset(block, 0xFF, n_bytes);
    for (size_t r = 0; r < n_rows; r++)
        memcpy(block + at.begin + r * step, dense + r * row_bytes, row_bytes);
    v->blocks[i] = block;
    v->block_bytes[i] = n_bytes;
    v->dense[i] = tensor_2d(name, dtype, n_rows, n_cols, dense);
    v->wide[i] = tensor_2d(name, dtype, n_rows, n_cols, block + at.begin);
    v->pitches[i] = at.pitch;
}

/* Writes one element of a view and of its copy. */
static inline void views_put(views *v, size_t i, size_t row, size_t column, uint32_t bits)
{
    size_t element_bytes = weir_dtype_bits(v->wide[i].dtype) / 8;
    size_t n_cols = v->wide[i].shape.dim[1];
    size_t step = v->pitches[i] != 0 ? v->pitches[i] : n_cols * element_bytes;
    put_bits(v->dense[i].data, v->wide[i].dtype, row * n_cols + column, bits);
    memcpy((unsigned char *)v->wide[i].data + row * step + column * element_bytes,
           (unsigned char *)v->dense[i].data + (row * n_cols + column) * element_bytes,
           element_bytes);
}

static inline void views_free(views *v)
{
    for (size_t i = 0; i < v->n; i++) {
        free(v->blocks[i]);
        free(v->dense[i].data);
    }
    v->n = 0;
}

/* Any pitch that rows of these bytes can have: none, the least, a bit more, a whole page more. */
static inline size_t random_pitch(size_t row_bytes, size_t element_bytes, uint64_t *seed)
{
    switch (random_below(seed, 6)) {
    case 0:
        return 0;
    case 1:
        return row_bytes;
    case 2:
        return (row_bytes + 4095) / 4096 * 4096;
    case 3:
        return (row_bytes + 31) / 16 * 16;
    default:
        return row_bytes + element_bytes * random_below(seed, 200);
    }
}

#endif
