/* SPDX-License-Identifier: Apache-2.0 */
/* cuda_digest.h - the digests of a batch: ranges as the words of digest_job.h, sent and started. */
#ifndef WEIR_CONVERT_CUDA_DIGEST_H
#define WEIR_CONVERT_CUDA_DIGEST_H

#include "convert/cuda/cuda_tables.h"
#include "convert/cuda/digest_job.h"
#include "weir/cuda.h"

typedef struct weir_cuda_digests {
    weir_cuda_tables tables;
    weir_cuda_range *ranges; /* copies; names, data and digests are the caller's */
    size_t n_ranges, n_ranges_room;
} weir_cuda_digests;

#define WEIR_CUDA_DIGEST_COUNTERS 1

/* Writes `image`: a job for each range, then the number of each one's first slice. Checks what a
 * kernel relies on; errors name the range. Pure. */
weir_status weir_cuda_digests_plan(const weir_cuda_range *ranges, size_t n, unsigned char *image,
                                   uint32_t *out_n_slices);
size_t weir_cuda_digests_image_bytes(size_t n_ranges);
weir_status weir_cuda_digests_room(weir_cuda_digests *digests, size_t n_ranges);

/* On the calling thread's current device. Nothing runs any more when it fails. */
weir_status weir_cuda_digests_start(weir_cuda_digests *digests,
                                    const weir_cuda_converter *converter, int device,
                                    const weir_cuda_range *ranges, size_t n, void *stream);
/* Once it has ended: fills the ranges' digests, or names the first refused element. */
weir_status weir_cuda_digests_take(weir_cuda_digests *digests,
                                   const weir_cuda_converter *converter);
void weir_cuda_digests_drop(weir_cuda_digests *digests);

/* Names the first refused element of a source that may have one, its rows row_step bytes apart: OK
 * when it has none. For what has ended: its results in `tables` are lost. */
weir_status weir_cuda_name_refused(weir_cuda_tables *tables, const weir_cuda_converter *converter,
                                   const weir_tensor *source, uint64_t row_step,
                                   uint32_t least_refused);

#endif
