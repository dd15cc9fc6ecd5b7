/* SPDX-License-Identifier: Apache-2.0 */
/* piece_case.h - a conversion cut into pieces as a push cuts it: rows at multiples of 128, experts,
 * elements of a vector; each piece writes its part of the whole's outputs. */
#ifndef WEIR_TESTS_PIECE_CASE_H
#define WEIR_TESTS_PIECE_CASE_H

#include "convert/convert_case.h"

#define MAX_PIECES 64
#define MAX_PIECE_SOURCES 8
#define PIECE_STEP 128u

typedef struct piece {
    weir_convert_args args;
    weir_tensor sources[MAX_PIECE_SOURCES];
    weir_digest digests[WEIR_MAX_OUTPUTS];
} piece;

typedef struct pieces {
    size_t n;
    piece piece[MAX_PIECES];
} pieces;

/* The place of (matrix, row) of the whole in each output. */
static inline void piece_place(piece *p, const weir_convert_args *whole, const weir_shape *shape,
                               uint64_t matrix, uint64_t row)
{
    uint64_t n_rows = shape->dim[shape->rank - 2], n_cols = shape->dim[shape->rank - 1];
    for (size_t i = 0; i < whole->conversion->n_outputs; i++) {
        const weir_conversion_output *output = &whole->conversion->outputs[i];
        uint64_t element_bytes = weir_dtype_bits(output->dtype) / 8, first_byte;
        if (output->cell_cols == WEIR_WHOLE) { /* a matrix is one row of scales */
            p->args.first_words[i] =
                matrix * ((n_rows * element_bytes + 7) / 8) + row * element_bytes / 8;
            first_byte = (matrix * n_rows + row) * element_bytes;
        } else {
            uint64_t in_matrix = (n_rows + output->cell_rows - 1) / output->cell_rows;
            uint64_t out_row = matrix * in_matrix + row / output->cell_rows;
            uint64_t row_bytes =
                (n_cols + output->cell_cols - 1) / output->cell_cols * element_bytes;
            p->args.first_words[i] = out_row * ((row_bytes + 7) / 8);
            first_byte = out_row * row_bytes;
        }
        p->args.outputs[i] = (unsigned char *)whole->outputs[i] + first_byte;
    }
}

static inline piece *piece_add(pieces *all, const weir_convert_args *whole)
{
    assert_true(all->n < MAX_PIECES);
    piece *p = &all->piece[all->n++];
    p->args = *whole;
    p->args.sources = p->sources;
    p->args.digests = p->digests;
    return p;
}

/* Rows [row, end) of a matrix: of each source what lies between them. */
static inline void piece_add_rows(pieces *all, const weir_convert_args *whole,
                                  const weir_shape *shape, uint64_t matrix, uint64_t row,
                                  uint64_t end)
{
    piece *p = piece_add(all, whole);
    uint64_t first = 0, n_cols = shape->dim[shape->rank - 1];
    p->args.n_sources = p->args.n_experts = p->args.axis = 0;
    for (size_t i = 0; i < whole->n_sources; i++) {
        const weir_tensor *source =
            &whole->sources[whole->n_experts != 0 ? matrix * whole->n_sources + i : i];
        uint64_t n = source->shape.dim[source->shape.rank - 2];
        uint64_t from = row > first ? row - first : 0, to = end < first + n ? end - first : n;
        first += n;
        if (end <= first - n || from >= to)
            continue;
        uint64_t in_source = (whole->n_experts != 0 ? 0 : matrix * n) + from;
        p->sources[p->args.n_sources++] =
            tensor_2d(source->name, source->dtype, to - from, n_cols,
                      (unsigned char *)source->data +
                          in_source * n_cols * weir_dtype_bits(source->dtype) / 8);
    }
    piece_place(p, whole, shape, matrix, row);
}

/* Experts [matrix, end). */
static inline void piece_add_experts(pieces *all, const weir_convert_args *whole,
                                     const weir_shape *shape, uint64_t matrix, uint64_t end)
{
    piece *p = piece_add(all, whole);
    if (whole->n_experts != 0) {
        p->args.sources = whole->sources + matrix * whole->n_sources;
        p->args.n_experts = end - matrix;
    } else {
        for (size_t i = 0; i < whole->n_sources; i++) {
            weir_tensor *source = &p->sources[i];
            *source = whole->sources[i];
            source->shape.dim[0] = end - matrix;
            source->data = (unsigned char *)source->data + matrix * source->shape.dim[1] *
                                                               source->shape.dim[2] *
                                                               weir_dtype_bits(source->dtype) / 8;
        }
    }
    piece_place(p, whole, shape, matrix, 0);
}

/* Elements of a vector. */
static inline void piece_add_elements(pieces *all, const weir_convert_args *whole, uint64_t at,
                                      uint64_t end)
{
    piece *p = piece_add(all, whole);
    uint64_t out_bytes = weir_dtype_bits(whole->conversion->outputs[0].dtype) / 8;
    p->sources[0] = whole->sources[0];
    p->sources[0].shape.dim[0] = end - at;
    p->sources[0].data =
        (unsigned char *)p->sources[0].data + at * weir_dtype_bits(whole->sources[0].dtype) / 8;
    p->args.outputs[0] = (unsigned char *)whole->outputs[0] + at * out_bytes;
    p->args.first_words[0] = at * out_bytes / 8;
}

static inline uint64_t piece_end(uint64_t *seed, uint64_t at, uint64_t n, uint64_t step)
{
    uint64_t end = at + step * (1 + random_below(seed, 3));
    return end < n ? end : n;
}

/* Cuts at random; the outputs and sources of `whole` are those of the whole. */
static inline void pieces_cut(pieces *all, const weir_convert_args *whole, uint64_t *seed)
{
    weir_shape shape;
    all->n = 0;
    if (weir_convert_fused_shape(whole, &shape) != WEIR_OK)
        fail_msg("%s", weir_last_error());
    if (shape.rank == 1) {
        for (uint64_t at = 0, end; at < shape.dim[0]; at = end)
            piece_add_elements(all, whole, at, end = piece_end(seed, at, shape.dim[0], PIECE_STEP));
        return;
    }
    uint64_t n_matrices = shape.rank == 3 ? shape.dim[0] : 1;
    uint64_t n_rows = shape.dim[shape.rank - 2];
    for (uint64_t m = 0, end; m < n_matrices; m = end) {
        end = piece_end(seed, m, n_matrices, 1);
        if (shape.rank == 3 && random_below(seed, 2) == 0) {
            piece_add_experts(all, whole, &shape, m, end);
            continue;
        }
        end = m + 1;
        for (uint64_t row = 0, last; row < n_rows; row = last)
            piece_add_rows(all, whole, &shape, m, row,
                           last = piece_end(seed, row, n_rows, PIECE_STEP));
    }
}

/* What the digests of all pieces come to. */
static inline void pieces_add_up(const pieces *all, weir_digest out[WEIR_MAX_OUTPUTS])
{
    memset(out, 0, WEIR_MAX_OUTPUTS * sizeof(*out));
    for (size_t i = 0; i < all->n; i++)
        for (size_t k = 0; k < all->piece[i].args.conversion->n_outputs; k++)
            weir_digest_merge(&out[k], &all->piece[i].digests[k]);
}

#endif
