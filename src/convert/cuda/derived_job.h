/* SPDX-License-Identifier: Apache-2.0 */
/* derived_job.h - one derived parameter, as the host tells the GPU of it: values of weir_derived
 * (weir/family.h), addresses of the device. */
#ifndef WEIR_CONVERT_DERIVED_JOB_H
#define WEIR_CONVERT_DERIVED_JOB_H

#include <stdint.h>

#define WEIR_CUDA_DERIVED_TILE 64u /* rows and columns that a thread block lays out */

typedef enum weir_cuda_derived_from {
    WEIR_CUDA_DERIVED_FROM_BF16 = 0,
    WEIR_CUDA_DERIVED_FROM_F32 = 1,
    WEIR_CUDA_DERIVED_FROM_BLOCKS = 2, /* e4m3, a scale for each 128 x 128 */
    WEIR_CUDA_DERIVED_FROM_ROWS = 3,   /* e4m3, a scale for each row */
} weir_cuda_derived_from;

/* Of every head, n_rows of its rows_per_head rows from first_row on are taken. */
typedef struct weir_cuda_derived_job {
    uint64_t from, scale, out;
    uint64_t n_heads, rows_per_head, first_row, n_rows, n_cols;
    uint32_t dtype; /* weir_cuda_derived_from */
    uint32_t transposes;
    uint32_t n_tiles, tiles_down, tiles_across; /* the last two of a head */
} weir_cuda_derived_job;

#endif
