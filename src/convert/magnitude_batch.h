/* SPDX-License-Identifier: Apache-2.0 */
/* magnitude_batch.h - blocks of scales that lie on several ranks, as work of a batch on a GPU
 * (weir/cuda.h): the largest magnitudes of what lies here, and conversions whose scales are made of
 * what others hold, too.
 */
#ifndef WEIR_CONVERT_MAGNITUDE_BATCH_H
#define WEIR_CONVERT_MAGNITUDE_BATCH_H

#include "convert/magnitude.h"
#include "weir/cuda.h"

/* One weir_magnitude_raise(); the view's data and the magnitudes are the device's. */
typedef struct weir_cuda_measure {
    const char *name; /* for errors */
    weir_magnitude_view view;
    uint32_t n_block_cols;
    float *magnitudes; /* not NaN before, and not negative */
} weir_cuda_measure;

/* As weir_cuda_batch_start(), for any number of them in one launch; several may raise the same
 * magnitudes. */
weir_status weir_cuda_batch_measure(weir_cuda_batch *batch, const weir_cuda_measure *measures,
                                    size_t n_measures, void *stream);

/* weir_cuda_batch_start(), where a scale is that of the larger of its own elements' magnitude and
 * of what magnitudes[i] holds for it, on the device and laid out as output 1 of args[i], which
 * converts one matrix; NULL: of its own alone. What is not finite there is refused as an element
 * would be. */
weir_status weir_cuda_batch_start_joined(weir_cuda_batch *batch, const weir_convert_args *args,
                                         const float *const *magnitudes, size_t n_args,
                                         void *stream);

#endif
