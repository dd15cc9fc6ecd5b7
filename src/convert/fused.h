/* SPDX-License-Identifier: Apache-2.0 */
/* fused.h - several sources seen as one: matrices of rows, without a copy.
 *
 * Everything is a stack of n_matrices matrices of n_rows x n_cols (a vector is one row). Within
 * each matrix the sources' rows follow each other; those of a vector follow each other in its row.
 * In memory a source's rows touch, or lie a pitch apart when the source is a view of a matrix.
 */
#ifndef WEIR_CONVERT_FUSED_H
#define WEIR_CONVERT_FUSED_H

#include "weir/convert.h"

typedef struct weir_fused {
    const weir_tensor *sources;
    const uint64_t *pitches; /* per source, 0: its rows touch; NULL: all rows do */
    size_t n_sources;        /* per matrix when they are separate matrices, else in all */
    bool separate;           /* matrix m is made of sources[m * n_sources ...] */
    weir_shape shape;        /* of the whole */
    uint64_t n_matrices, n_rows, n_cols;
} weir_fused;

/* A run of elements of one row that lies in one source. */
typedef struct weir_fused_run {
    const weir_tensor *source;
    const unsigned char *data;
    uint64_t n_elements;  /* from the place asked for to the end of the run */
    uint64_t n_more_rows; /* rows of the same source that follow in this matrix */
    uint64_t row_step;    /* bytes from one of them to the next */
} weir_fused_run;

/* Checks that the sources fit together; their data is not looked at. */
weir_status weir_fused_init(weir_fused *fused, const weir_convert_args *args);

/* ERR_INVALID for a pitch that the source's rows cannot have; shape and dtype have been checked. */
weir_status weir_fused_check_pitch(const weir_fused *fused, const weir_tensor *source);

/* Bytes from one row of a source to the next. */
uint64_t weir_fused_row_step(const weir_fused *fused, const weir_tensor *source);

/* Where element (matrix, row, column) lies; it must exist. */
weir_fused_run weir_fused_at(const weir_fused *fused, uint64_t matrix, uint64_t row,
                             uint64_t column);

/* Number of weir_tensors in `sources`. */
size_t weir_fused_n_tensors(const weir_fused *fused);

/* ERR_INVALID with the row's rank_error. */
weir_status weir_conversion_check_rank(const weir_conversion *conversion, const weir_shape *source);

#endif
