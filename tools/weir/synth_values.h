/* SPDX-License-Identifier: Apache-2.0 */
/* synth_values.h - plausible weights out of nothing but a seed, a tensor's name and an index. */
#ifndef WEIR_TOOLS_SYNTH_VALUES_H
#define WEIR_TOOLS_SYNTH_VALUES_H

#include "weir/tensor.h"

/* How the elements of one tensor are spread: mean + spread * (roughly normal). */
typedef struct weir_synth_spread {
    uint64_t key; /* of the tensor: from seed and name */
    float mean, spread;
    float drift;  /* how far optimiser steps have moved elements along their direction */
    float jitter; /* how far the last step moved them besides */
    uint64_t step;
} weir_synth_spread;

/* Linear weights spread as 1/sqrt(inputs), norms around 1, biases little around 0. */
weir_synth_spread weir_synth_spread_of(const weir_tensor *tensor, uint64_t seed, uint64_t step);

/* For a tensor that has data: moves its values as steps would, in units of their RMS. */
weir_synth_spread weir_synth_spread_from(const weir_tensor *tensor, uint64_t seed, uint64_t step);

/* Writes elements [first, first + n) as BF16 or F32. The same for any way of cutting a tensor. */
void weir_synth_fill(const weir_synth_spread *spread, uint64_t first, size_t n, weir_dtype dtype,
                     void *out);

/* Writes elements [first, first + n) of `tensor`'s data after the steps: F32 and BF16 move,
 * other dtypes and step 0 stay as they are. */
void weir_synth_perturb(const weir_synth_spread *spread, const weir_tensor *tensor, uint64_t first,
                        size_t n, void *out);

#endif
