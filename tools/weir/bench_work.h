/* SPDX-License-Identifier: Apache-2.0 */
/* bench_work.h - what `weir bench convert --device cuda` converts: a matrix, a large one, stacked
 * experts, or a whole layer, in GPU memory. */
#ifndef WEIR_TOOLS_BENCH_WORK_H
#define WEIR_TOOLS_BENCH_WORK_H

#include "weir/cuda.h"

#define WEIR_BENCH_MAX_ARGS 24

/* One set of buffers and the args that convert it. */
typedef struct weir_bench_work {
    weir_convert_args args[WEIR_BENCH_MAX_ARGS];
    size_t n_args;
    weir_tensor *sources;
    size_t n_sources, sources_room;
    unsigned char *in, *out; /* device memory; NULL while it is being measured */
    size_t in_bytes, out_bytes;
    uint64_t n_bytes; /* weights read and written, scales left out */
    weir_digest digests[WEIR_BENCH_MAX_ARGS][WEIR_MAX_OUTPUTS];
} weir_bench_work;

typedef enum weir_bench_shape {
    WEIR_BENCH_MATRIX,  /* rows x cols */
    WEIR_BENCH_LARGE,   /* 16384 x 16384 */
    WEIR_BENCH_EXPERTS, /* (128, 2 * 768, 2048), each expert from two matrices */
    WEIR_BENCH_LAYER,   /* one layer of the glm-dsa-31b preset, 128 experts */
} weir_bench_shape;

typedef struct weir_bench_wish {
    weir_bench_shape shape;
    const weir_conversion *conversion;
    weir_dtype dtype;
    uint64_t rows, cols;
    bool digests;
} weir_bench_wish;

/* Allocates and fills. */
weir_status weir_bench_work_open(const weir_bench_wish *wish, weir_bench_work *work);
void weir_bench_work_close(weir_bench_work *work);

#endif
