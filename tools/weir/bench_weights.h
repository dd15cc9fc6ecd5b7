/* SPDX-License-Identifier: Apache-2.0 */
/* bench_weights.h - all weights of a model, in host or GPU memory, other ones for each version.
 *
 * Their values come from one block of random finite numbers, which every tensor starts to read at a
 * place of its own: a GPU fills itself at the speed of its memory, and whoever checks what arrived
 * knows each tensor's bytes without having seen them.
 */
#ifndef WEIR_TOOLS_BENCH_WEIGHTS_H
#define WEIR_TOOLS_BENCH_WEIGHTS_H

#include "cli.h"

/* Where memory lies: "cpu", or the number of a GPU. */
typedef struct weir_bench_place {
    bool cuda;
    unsigned device;
} weir_bench_place;

typedef struct weir_bench_weights {
    weir_tensor *tensors; /* their data is set by weir_bench_weights_place() */
    size_t n_tensors;
    uint64_t n_bytes, n_weights; /* of all tensors */
    uint64_t seed;
    unsigned char *block; /* host memory; NULL: none */
    uint64_t block_bytes;
    weir_bench_place place;
    unsigned char *arena; /* holds the tensors; NULL: not placed */
    uint64_t arena_bytes;
    unsigned char *device_block;
    void *stream;
} weir_bench_weights;

/* Names, shapes and the block. False after having printed why; close in any case. */
bool weir_bench_weights_open(const char *family, const char *config, weir_naming naming,
                             uint64_t seed, weir_bench_weights *out);
/* Takes memory for all of them. */
bool weir_bench_weights_place(weir_bench_weights *weights, weir_bench_place place);
/* Makes them those of `version`; they are there when it returns. */
bool weir_bench_weights_fill(weir_bench_weights *weights, uint64_t version);
/* Writes what fill puts into tensor `index`, n_bytes of it. */
void weir_bench_weights_copy(const weir_bench_weights *weights, size_t index, uint64_t version,
                             void *out, uint64_t n_bytes);
void weir_bench_weights_close(weir_bench_weights *weights);

#endif
