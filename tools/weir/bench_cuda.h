/* SPDX-License-Identifier: Apache-2.0 */
/* bench_cuda.h - `weir bench convert --device cuda`: the GPU's half of cmd_bench_convert.c. */
#ifndef WEIR_TOOLS_BENCH_CUDA_H
#define WEIR_TOOLS_BENCH_CUDA_H

#include "cli.h"

typedef struct weir_bench_cuda {
    const char *only; /* a conversion; NULL: all that GPUs have */
    weir_dtype dtype; /* of the sources */
    uint64_t rows, cols;
    uint64_t seconds; /* for each line of the table */
    bool json;
} weir_bench_cuda;

/* Returns an exit code. */
int weir_bench_cuda_run(const weir_bench_cuda *options);

#endif
