/* SPDX-License-Identifier: Apache-2.0 */
/* cuda_magnitude.h - rows to measure as the words of magnitude_job.h, sent and started. */
#ifndef WEIR_CONVERT_CUDA_MAGNITUDE_H
#define WEIR_CONVERT_CUDA_MAGNITUDE_H

#include "convert/cuda/cuda_tables.h"
#include "convert/cuda/magnitude_job.h"
#include "convert/magnitude_batch.h"

/* Writes `image`: a job for each measure, then the number of each one's first run. Checks what the
 * kernel relies on; errors name the view. Pure. */
weir_status weir_cuda_measures_plan(const weir_cuda_measure *measures, size_t n,
                                    unsigned char *image, uint32_t *out_n_runs);
size_t weir_cuda_measures_image_bytes(size_t n_measures);

/* On the calling thread's current device. Nothing runs any more when it fails. */
weir_status weir_cuda_measures_start(weir_cuda_tables *tables, const weir_cuda_converter *converter,
                                     int device, const weir_cuda_measure *measures, size_t n,
                                     void *stream);

#endif
