/* SPDX-License-Identifier: Apache-2.0 */
/* cuda_scatter.h - rows to copy as the words of scatter_job.h, sent and started. */
#ifndef WEIR_CONVERT_CUDA_SCATTER_H
#define WEIR_CONVERT_CUDA_SCATTER_H

#include "convert/cuda/cuda_tables.h"
#include "convert/cuda/scatter_job.h"
#include "convert/scatter_batch.h"

/* Writes `image`: a job for each of the rows, then the number of each one's first run. Pure. */
weir_status weir_cuda_scatter_plan(const weir_rows *rows, size_t n, unsigned char *image,
                                   uint32_t *out_n_runs);
size_t weir_cuda_scatter_image_bytes(size_t n);

/* On the calling thread's current device. Nothing runs any more when it fails. */
weir_status weir_cuda_scatter_start(weir_cuda_tables *tables, const weir_cuda_converter *converter,
                                    int device, const weir_rows *rows, size_t n, void *stream);

#endif
