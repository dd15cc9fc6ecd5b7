/* SPDX-License-Identifier: Apache-2.0 */
/* scatter_batch.h - many pieces of memory to where they belong, as work of a batch on a GPU
 * (weir/cuda.h): one launch, where a copy for each costs microseconds however short it is.
 */
#ifndef WEIR_CONVERT_SCATTER_BATCH_H
#define WEIR_CONVERT_SCATTER_BATCH_H

#include "weir/cuda.h"

/* Rows that lie a pitch apart at either end, none of them overlapping. */
typedef struct weir_rows {
    void *to;
    const void *from;
    uint64_t row_bytes, n_rows;
    uint64_t to_pitch, from_pitch; /* from one row to the next; unused of one row */
} weir_rows;

/* As weir_cuda_batch_start(), for any number of them, which are copied in no order: no byte is
 * written twice, or read after it was written. Memory that the device reaches, aligned anyhow: what
 * lies on 16 bytes at both ends, pitches and length too, goes at the speed of memory. */
weir_status weir_cuda_batch_scatter(weir_cuda_batch *batch, const weir_rows *rows, size_t n_rows,
                                    void *stream);

/* Room for so many digests and so many of those at once. What needs more than there is room for
 * gives back what it had, for which CUDA waits until all that runs on the device has ended: a
 * broadcast that nobody answers would hold that up for ever. ERR_BUSY while something runs. */
weir_status weir_cuda_batch_room(weir_cuda_batch *batch, size_t n_digests, size_t n_rows);

#endif
