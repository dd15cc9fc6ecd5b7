/* SPDX-License-Identifier: Apache-2.0 */
/* find_nonfinite.h - the weight of a rank of a mesh that its conversions refuse, by its place in
 * the whole tensor.
 *
 * Conversions count within the piece that they are given, which is a box of a worker's part; who
 * reads the error has the model before him.
 */
#ifndef WEIR_REFIT_FIND_NONFINITE_H
#define WEIR_REFIT_FIND_NONFINITE_H

#include "weir/weir.h"

/* Looks through tensors in host memory, in their order. ERR_NONFINITE with the line "NAME[12, 345]
 * is NaN" for the first weight that is not finite or, when there is none and fp32 becomes bf16
 * (`rounds`), the first that would not stay so; OK when all would. One thread: a failed publish has
 * time. */
weir_status weir_find_nonfinite(const weir_tensor_shard *shards, size_t n_shards, bool rounds);

#endif
